//! The beginning of a gateway: the acceptor's INFO, CONNECT and INFO of the dialling server; and
//! what is said later in an INFO.

use crate::auth::Secret;
use crate::auth::credential_check::CredentialCheck;
use crate::core::Core;
use crate::core::close::Reason;
use crate::core::input::Held;
use crate::core::outputs::Output;
use crate::core::timers::Deadline;
use crate::gateway::{self, interest};
use crate::interest::ids::{ConnId, ServerKey};
use crate::link::Stage;
use crate::link::gateways::GatewayNotice;
use crate::proto::encode;
use crate::proto::gateway::{
    self as wire, ALL_INTEREST_BEGINS, ALL_INTEREST_IS_TOLD, GOSSIP, GatewayConnect, GatewayInfo,
};
use crate::proto::route::{self as route_wire, RouteInfo};

pub(crate) fn on_connect(core: &mut Core, id: ConnId, json: &[u8]) {
    let stage = crate::route::stage_of(core, id);
    let connect: GatewayConnect = match route_wire::read(json) {
        Some(connect) if stage == Stage::Connect => connect,
        _ => return gateway::violate(core, id, "Protocol Violation"),
    };
    let Some(settings) = &core.settings.gateway else { return };
    if connect.gateway.is_empty() {
        return gateway::refuse(core, id, "attempted to connect to gateway port");
    }
    let own = encode::go_quoted(settings.info.gateway.as_bytes());
    if settings.known.as_ref().is_some_and(|known| !known.contains(&connect.gateway)) {
        if let Some(conn) = core.conns.get(id) {
            let theirs = encode::go_quoted(connect.gateway.as_bytes());
            tracing::error!("{} - Rejecting connection from gateway {theirs}", conn.label());
        }
        let error = format!("Connection to gateway {own} rejected");
        return core.fail(id, Some(&error), Reason::Protocol("Wrong Gateway"));
    }
    if let (Some(user), Some(secret)) = (&settings.user, &settings.pass) {
        let is_user = *user == connect.user;
        if is_user && secret.is_bcrypt() {
            let check =
                CredentialCheck::Password { secret: secret.clone(), given: connect.pass.clone() };
            core.hold(id, Held::Check);
            core.out.push(Output::Check(id, Box::new(check)));
        } else if !is_user || !secret.matches(&connect.pass) {
            return gateway::refuse(core, id, "Authorization Violation");
        }
    }
    let is_configured = is_configured(core, &connect.gateway);
    let Some(link) = core.conns.get_mut(id).and_then(|conn| conn.link.as_mut()) else { return };
    link.login = Some((connect.user, Secret::new(connect.pass)));
    link.stage = Stage::Info;
    if let Some(peer) = link.gateway_mut() {
        peer.name(&connect.gateway);
        peer.is_configured = is_configured;
    }
}

/// Whether a cluster is among the configured ones.
fn is_configured(core: &Core, cluster: &str) -> bool {
    core.settings.gateway.as_ref().is_some_and(|settings| settings.remotes.contains(cluster))
}

pub(crate) fn on_info(core: &mut Core, id: ConnId, json: &[u8]) {
    let Some(info) = route_wire::read::<GatewayInfo>(json) else {
        return gateway::violate(core, id, "Protocol Violation");
    };
    let Some(conn) = core.conns.get(id) else { return };
    let Some(link) = &conn.link else { return };
    let is_dialed = link.dialed.is_some();
    match (link.stage, is_dialed) {
        (Stage::Info, true) => on_acceptors_info(core, id, info),
        (Stage::Info, false) => on_diallers_info(core, id, info),
        (Stage::Registered, true) => on_further_info(core, id, info),
        // A peer that has dialled has no more to say that matters.
        _ => {}
    }
}

/// Takes the first INFO of a server that was dialled.
fn on_acceptors_info(core: &mut Core, id: ConnId, info: GatewayInfo) {
    let Some(conn) = core.conns.get(id) else { return };
    let wanted = conn.link.as_ref().and_then(|link| link.gateway());
    let wanted = wanted.map(|peer| peer.cluster.clone()).unwrap_or_default();
    let quoted = |name: &str| encode::go_quoted(name.as_bytes());
    if info.gateway.is_empty() {
        let error = format!("Attempt to connect to gateway {} using wrong port", quoted(&wanted));
        return gateway::refuse(core, id, &error);
    }
    if *info.gateway != *wanted {
        let (wanted, theirs) = (quoted(&wanted), quoted(&info.gateway));
        tracing::error!(
            "{} - Failing connection to gateway {wanted}, remote gateway name is {theirs}",
            conn.label()
        );
        let own = core.settings.gateway.as_ref().map_or("", |own| &own.info.gateway);
        let error = format!(
            "Connection from {} rejected, wanted to connect to {wanted}, this is {theirs}",
            quoted(own)
        );
        return core.fail(id, Some(&error), Reason::Protocol("Wrong Gateway"));
    }
    introduce(core, id, info);
}

/// Takes the first INFO of a server that has dialled, behind its CONNECT.
fn on_diallers_info(core: &mut Core, id: ConnId, info: GatewayInfo) {
    let link = core.conns.get(id).and_then(|conn| conn.link.as_ref());
    let named = link.and_then(|link| link.gateway());
    if named.is_none_or(|peer| *peer.cluster != *info.gateway) {
        return gateway::violate(core, id, "Protocol Violation");
    }
    introduce(core, id, info);
}

/// Notes who the peer is, and gives notice of it.
fn introduce(core: &mut Core, id: ConnId, info: GatewayInfo) {
    let headers = info.headers && core.settings.headers;
    let Some(settings) = &core.settings.gateway else { return };
    let patience_ns = settings.ping_interval_ns.saturating_mul(u64::from(settings.ping_max) + 1);
    let Some(conn) = core.conns.get_mut(id) else { return };
    if settings.info.server_id == info.server_id {
        // A cluster that is configured by an address of this one.
        return gateway::violate(core, id, "Attempt to connect to the own cluster");
    }
    if settings.info.server_name == info.server_name {
        tracing::error!(
            "{} - Remote server has a duplicate name: {:?}",
            conn.label(),
            info.server_name
        );
        return core.fail(id, None, Reason::Protocol("Duplicate Server Name"));
    }
    // The next step is not the peer's.
    conn.deadlines.arm(Deadline::Login, core.times.now.saturating_add(patience_ns));
    let Some(link) = &mut conn.link else { return };
    let rid = link.rid;
    link.headers = headers;
    link.server = ServerKey::of(&info.server_id);
    link.peer = RouteInfo {
        server_id: info.server_id.clone(),
        server_name: info.server_name.clone(),
        proto: info.proto,
        shardcast: info.shardcast,
        ..RouteInfo::default()
    };
    if let Some(peer) = link.gateway_mut() {
        peer.tells_all = info.gateway_iom;
    }
    core.rearm(id);
    core.hold(id, Held::Peer);
    core.out.notify_of_gateway(GatewayNotice::Greeted { rid, info: Box::new(info) });
}

/// Takes another INFO of a registered peer that was dialled.
fn on_further_info(core: &mut Core, id: ConnId, info: GatewayInfo) {
    let Some(link) = core.conns.get(id).and_then(|conn| conn.link.as_ref()) else { return };
    let rid = link.rid;
    let is_its_own = link.gateway().is_some_and(|peer| *peer.cluster == *info.gateway);
    match info.gateway_cmd {
        ALL_INTEREST_BEGINS | ALL_INTEREST_IS_TOLD if is_its_own => match info.account() {
            Some(account) if info.gateway_cmd == ALL_INTEREST_BEGINS => {
                interest::on_all_begins(core, id, &account);
            }
            Some(account) => interest::on_all_told(core, id, &account),
            None => {
                let which = match info.gateway_cmd {
                    ALL_INTEREST_BEGINS => "start",
                    _ => "complete",
                };
                let error =
                    format!("Account absent from receive-all-subscriptions-{which} command");
                gateway::refuse(core, id, &error);
            }
        },
        0 if is_its_own => hear(core, id, rid, info),
        GOSSIP if !is_its_own => hear(core, id, rid, info),
        command if is_its_own => {
            tracing::warn!("Received unknown command {command} from gateway {:?}", info.gateway);
        }
        _ => {
            let error = format!("Wrong gateway {}", encode::go_quoted(info.gateway.as_bytes()));
            gateway::refuse(core, id, &error);
        }
    }
}

fn hear(core: &mut Core, id: ConnId, rid: u64, info: GatewayInfo) {
    core.out.notify_of_gateway(GatewayNotice::Heard { rid, info: Box::new(info) });
    core.hold(id, Held::Peer);
}

/// Sends CONNECT to a peer that was dialled, and is the expected one.
pub(crate) fn send_connect(core: &mut Core, id: ConnId) {
    let Some(settings) = &core.settings.gateway else { return };
    let Some(conn) = core.conns.get_mut(id) else { return };
    let Some(link) = &conn.link else { return };
    let (user, pass) = match link.dialed.clone().flatten() {
        Some((user, pass)) => (user, pass.revealed().to_owned()),
        None => Default::default(),
    };
    let connect = GatewayConnect {
        tls_required: core.settings.mutual_tls(link).is_some(),
        user,
        pass,
        name: settings.info.server_id.clone(),
        gateway: settings.info.gateway.clone(),
        ..GatewayConnect::default()
    };
    // Not through the traced log, which would show the password.
    conn.outbox.push(&mut core.spares, |out| wire::connect(out, &connect));
    core.flush_soon(id);
}

/// Sends the INFO of this server, with the addresses of its cluster.
pub(crate) fn send_info(core: &mut Core, id: ConnId) {
    let Some(settings) = &core.settings.gateway else { return };
    let mut info = settings.info.clone();
    if !core.links.gateways.urls.is_empty() {
        info.gateway_urls.clone_from(&core.links.gateways.urls);
    }
    core.reply(id, |out| wire::info(out, &info));
}
