//! Orders of the process about routes, and peers that may speak.

use crate::auth::user::Peer;
use crate::client::info;
use crate::core::conn::Conn;
use crate::core::interest_sync::PLACES_PER_TURN;
use crate::core::layers;
use crate::engine::Engine;
use crate::gateway::{self, telling};
use crate::interest::account_settings::AccountLimits;
use crate::interest::ids::ConnId;
use crate::interest::reach::Kind;
use crate::leaf::handshake;
use crate::link::gateway_state::GatewayState;
use crate::link::gateways::{GatewayOrder, NewGateway};
use crate::link::remote_interest::{RemoteInterest, RemoteInterestBytes};
use crate::link::route_state::RouteState;
use crate::link::{Link, NewRoute, RouteOrder, Speaks};
use crate::route;

impl Engine {
    /// Carries out an order of the process about a route of this shard, or about all.
    pub fn on_route_order(&mut self, order: RouteOrder) {
        let core = &mut self.core;
        match order {
            RouteOrder::Register(rid, part) => route::register_route(core, rid, part),
            RouteOrder::Close(rid) => route::close_route(core, rid, "Duplicate Route"),
            RouteOrder::Ask(rid) => route::ask_route(core, rid),
            RouteOrder::TurnAway(rid) => {
                route::close_route(core, rid, "Maximum Connections Exceeded");
            }
            RouteOrder::Remove(rid) => route::close_route(core, rid, "Route Removed"),
            RouteOrder::HearOn(rid) => hear_on(self, rid),
            RouteOrder::Gossip(rid, info) => route::gossip(core, rid, &info),
            RouteOrder::Urls(urls) => {
                let has_news = core.links.urls.leaf != urls.leaf;
                info::set_cluster_urls(core, urls);
                if has_news {
                    handshake::inform_leaves(core);
                }
            }
            RouteOrder::Name { name, is_dynamic } => route::name_cluster(core, &name, is_dynamic),
        }
    }

    /// Takes over a connection to another server, dialled or accepted.
    pub fn open_route(&mut self, id: ConnId, peer: Peer, new: NewRoute) {
        let mut conn = Box::new(Conn::new(id, peer, self.core.times.now));
        let (rid, host) = (new.rid, new.host.clone());
        let is_dialed = new.dialed.is_some();
        let remote = RemoteInterest::new(&self.core.random.hasher);
        let pending_bytes_max = self.core.settings.limits.pending_bytes_max;
        let speaks = Speaks::Route(RouteState::default());
        conn.link = Some(Box::new(Link::new(new, remote, pending_bytes_max, speaks)));
        conn.login.enter(self.core.settings.nobody(), AccountLimits::default());
        self.core.links.by_rid.insert(rid, id);
        self.core.place_conn(conn);
        if layers::begin_route_tls(&mut self.core, id, is_dialed.then_some(&*host)) {
            route::greet_route(&mut self.core, id);
        }
        self.core.rearm(id);
    }

    /// Carries out an order of the process about a gateway of this shard, or about all.
    pub fn on_gateway_order(&mut self, order: GatewayOrder) {
        if let GatewayOrder::HearOn(rid) = order {
            if let Some(id) = gateway::find(&self.core, rid) {
                hear_peer(self, id);
            }
            return;
        }
        gateway::on_order(&mut self.core, order);
    }

    /// Takes over a connection to another cluster, dialled or accepted.
    pub fn open_gateway(&mut self, id: ConnId, peer: Peer, new: NewGateway) {
        let mut conn = Box::new(Conn::new(id, peer, self.core.times.now));
        let rid = new.rid;
        let remote = RemoteInterest::new(&self.core.random.hasher);
        let pending_bytes_max = self.core.settings.limits.pending_bytes_max;
        let dialed = new.dialed;
        let state = match &dialed {
            Some(dialed) => GatewayState::new(&dialed.cluster, dialed.is_configured),
            None => GatewayState::default(),
        };
        let host = dialed.as_ref().map(|dialed| dialed.host.clone());
        let login = dialed.map(|dialed| dialed.login);
        let new = NewRoute { rid, dialed: login, host: host.clone().unwrap_or_default() };
        let speaks = Speaks::Gateway(Box::new(state));
        conn.link = Some(Box::new(Link::new(new, remote, pending_bytes_max, speaks)));
        conn.login.enter(self.core.settings.nobody(), AccountLimits::default());
        self.core.links.gateways.by_rid.insert(rid, id);
        self.core.place_conn(conn);
        if layers::begin_route_tls(&mut self.core, id, host.as_deref()) {
            gateway::greet(&mut self.core, id);
        }
        self.core.rearm(id);
    }

    /// Counts the bytes of remote interest together with the other shards.
    pub fn share_remote_interest_bytes(&mut self, remote_bytes: RemoteInterestBytes) {
        self.core.links.remote_bytes = remote_bytes;
    }
}

/// Reads from a registered peer, whose interest sync is complete.
fn hear_peer(engine: &mut Engine, id: ConnId) {
    let Some(conn) = engine.core.conns.get_mut(id).filter(|conn| conn.is_open()) else { return };
    // Otherwise it was heard before.
    let Some(rest) = conn.input.take_held() else { return };
    let early = conn.link.as_mut().map(|link| link.take_early()).unwrap_or_default();
    let rest = [early, rest].concat();
    engine.core.release(id, |brakes| brakes.held = false);
    engine.on_plaintext(id, &rest);
    engine.resume_unwrapping(id);
}

/// Reads from a peer again: the process has handled its INFO. If the peer is to get more
/// interest because of that, its interest sync comes first. So no peer speaks faster than it is
/// heard.
fn hear_on(engine: &mut Engine, rid: u64) {
    let Some(id) = route::find_route(&engine.core, rid) else { return };
    let link = engine.core.conns.get_mut(id).and_then(|conn| conn.link.as_mut());
    let Some(link) = link.filter(|link| link.is_registered()) else { return };
    let Some(route) = link.route_mut() else { return };
    if std::mem::take(&mut route.is_to_be_told) {
        engine.core.start_sync(id);
    } else {
        hear_peer(engine, id);
    }
}

/// Continues the interest sync of new peers, up to [`PLACES_PER_TURN`] places.
pub(super) fn advance_syncs(engine: &mut Engine) {
    let mut places = PLACES_PER_TURN;
    while places > 0
        && let Some(peer) = engine.core.links.syncing.pop_front()
    {
        let is_gateway = engine.core.conns.get(peer).is_some_and(|c| c.kind() == Kind::Gateway);
        let is_told = match is_gateway {
            true => telling::sync(&mut engine.core, peer, &mut places),
            false => engine.core.sync(peer, &mut places),
        };
        match is_told {
            true => hear_peer(engine, peer),
            false => engine.core.links.syncing.push_back(peer),
        }
    }
}
