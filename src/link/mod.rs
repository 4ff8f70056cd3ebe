//! Links: the state of connections to other servers, and the notices and snapshots of them.

#![forbid(unsafe_code)]

pub(crate) mod gateway_settings;
pub(crate) mod gateway_state;
pub(crate) mod gateways;
pub(crate) mod leaf_clusters;
pub(crate) mod leaf_gates;
pub(crate) mod leaf_state;
pub(crate) mod leaf_told;
pub(crate) mod mapped_replies;
pub(crate) mod newcomers;
pub(crate) mod remote_interest;
pub(crate) mod route_state;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::auth::Secret;
use crate::cluster::{ClientUrls, PoolPart, Pooling};
use crate::interest::census::InterestListener;
use crate::interest::ids::{ConnId, ServerKey};
use crate::interest::reach::{Kind, LinkSlot};
use crate::link::gateway_state::GatewayState;
use crate::link::gateways::Gateways;
use crate::link::leaf_clusters::LeafClusters;
use crate::link::leaf_state::{LeafState, NewLeaf};
use crate::link::newcomers::Newcomers;
use crate::link::remote_interest::{RemoteInterest, RemoteInterestBytes};
use crate::link::route_state::RouteState;
use crate::measure::Traffic;
use crate::proto::route::{AccountNaming, Form, InterestEntry, RouteInfo};
use crate::subject::Scan;

/// Filters of one peer that monitoring shows, at most.
pub(crate) const FILTERS_SHOWN_MAX: usize = 4096;

/// A connection to another server that is to become a route.
#[derive(Debug, Clone)]
pub struct NewRoute {
    /// Number of the route, unique in the server.
    pub rid: u64,
    /// The credentials to dial with, if there are some; `None` for an accepted route.
    pub dialed: Option<Option<(String, Secret)>>,
    /// Host name for which the certificate of the dialled server has to be valid, where there is
    /// TLS.
    pub host: String,
}

/// News of a shard's routes for the process.
#[derive(Debug)]
pub enum RouteNotice {
    /// A peer has sent its INFO; its route waits for [`RouteOrder::Register`].
    Greeted {
        /// The route.
        rid: u64,
        /// The peer's INFO.
        info: Box<RouteInfo>,
        /// The peer's address, without the port.
        ip: Box<str>,
    },
    /// A registered peer has answered: it has taken the route, too.
    Confirmed {
        /// The route.
        rid: u64,
    },
    /// A registered peer has sent another INFO: about itself, or about another server. Its route
    /// waits for [`RouteOrder::HearOn`].
    Heard {
        /// The route.
        rid: u64,
        /// The INFO.
        info: Box<RouteInfo>,
    },
    /// The cluster has another name than the one that this server has generated for it.
    Named {
        /// The route over which the name came.
        rid: u64,
        /// The name.
        name: String,
        /// Whether that name was generated, too.
        is_dynamic: bool,
    },
    /// The route is at its end.
    Ended {
        /// The route.
        rid: u64,
        /// Whether it led to this server itself.
        is_self: bool,
    },
}

/// The links of a shard, and its view of the cluster.
#[derive(Debug, Default)]
pub(crate) struct Links {
    /// The cluster's name, if this server is part of one.
    pub(crate) name: Option<String>,
    /// Whether the name was generated.
    pub(crate) is_dynamic: bool,
    /// Addresses of the other servers for clients.
    pub(crate) urls: ClientUrls,
    /// Registered routes of this shard.
    pub(crate) routes: Vec<ConnId>,
    /// All routes of this shard, registered or not, by their numbers.
    pub(crate) by_rid: HashMap<u64, ConnId>,
    /// Leaf connections of this shard that are bound to an account.
    pub(crate) leaves: Vec<ConnId>,
    /// Accepted leaf connections of this shard that may not have logged in, the oldest first.
    pub(crate) strangers: VecDeque<ConnId>,
    /// Clusters of leaf nodes that are connected to any shard.
    pub(crate) clusters: LeafClusters,
    /// Memory of all remote interest.
    pub(crate) remote_bytes: RemoteInterestBytes,
    /// New peers with an interest sync under way.
    pub(crate) syncing: VecDeque<ConnId>,
    /// New links of this shard, of which other shards may not know yet.
    pub(crate) newcomers: Newcomers,
    /// Links to other clusters.
    pub(crate) gateways: Gateways,
}

impl Links {
    /// Notes that a leaf node of a cluster is connected, or gone; of an empty name it has none.
    pub(crate) fn note_leaf(&mut self, cluster: &Arc<str>, is_in: bool) {
        if !cluster.is_empty() {
            self.clusters.note(cluster, is_in);
        }
    }
}

/// A connection to another server: the state that all protocols between servers share.
#[derive(Debug)]
pub(crate) struct Link {
    /// Number of the link, unique in the server.
    pub(crate) rid: u64,
    pub(crate) stage: Stage,
    pub(crate) dialed: Option<Option<(String, Secret)>>,
    /// The credentials of a peer that has dialled, where there have to be some.
    pub(crate) login: Option<(String, Secret)>,
    /// Compression that the peer has first offered.
    pub(crate) offered: Option<String>,
    /// Whether the peer takes HMSG.
    pub(crate) headers: bool,
    pub(crate) peer: RouteInfo,
    /// The peer, once it has sent its INFO.
    pub(crate) server: ServerKey,
    /// The peer's interest.
    pub(crate) remote: RemoteInterest,
    /// Progress of the interest sync; `None` before and after.
    pub(crate) sync: Option<InterestSync>,
    /// Bytes of unsent output above which the peer is a slow consumer.
    pub(crate) pending_bytes_max: usize,
    pub(crate) speaks: Speaks,
}

/// The protocol of a link, with the state that only such links have.
#[derive(Debug)]
pub(crate) enum Speaks {
    Route(RouteState),
    Gateway(Box<GatewayState>),
    Leaf(Box<LeafState>),
}

impl Link {
    /// A link that has just been connected; its peer has not sent anything.
    pub(crate) fn new(
        new: NewRoute,
        remote: RemoteInterest,
        pending_bytes_max: usize,
        speaks: Speaks,
    ) -> Self {
        let NewRoute { rid, dialed, .. } = new;
        Self {
            rid,
            stage: if dialed.is_some() { Stage::Info } else { Stage::Connect },
            dialed,
            login: None,
            offered: None,
            headers: false,
            peer: RouteInfo::default(),
            server: ServerKey::default(),
            remote,
            sync: None,
            pending_bytes_max,
            speaks,
        }
    }

    /// A leaf connection that begins; its other end has not sent anything.
    pub(crate) fn leaf_connection(
        new: NewLeaf,
        remote: RemoteInterest,
        pending_bytes_max: usize,
        is_websocket: bool,
    ) -> Self {
        let NewLeaf { lid, dialed } = new;
        let route =
            NewRoute { rid: lid, dialed: dialed.as_ref().map(|_| None), host: String::new() };
        let speaks = Speaks::Leaf(Box::new(LeafState::new(dialed, is_websocket)));
        Self::new(route, remote, pending_bytes_max, speaks)
    }

    /// Returns the kind of the peer.
    pub(crate) fn kind(&self) -> Kind {
        match &self.speaks {
            Speaks::Route(_) => Kind::Route,
            Speaks::Gateway(_) => Kind::Gateway,
            Speaks::Leaf(leaf) if leaf.is_leaf => Kind::Leaf,
            Speaks::Leaf(_) => Kind::Hub,
        }
    }

    /// Returns the state that only a route has; `None` for other links.
    pub(crate) fn route(&self) -> Option<&RouteState> {
        match &self.speaks {
            Speaks::Route(route) => Some(route),
            _ => None,
        }
    }

    pub(crate) fn route_mut(&mut self) -> Option<&mut RouteState> {
        match &mut self.speaks {
            Speaks::Route(route) => Some(route),
            _ => None,
        }
    }

    /// Returns the state that only a gateway has; `None` for other links.
    pub(crate) fn gateway(&self) -> Option<&GatewayState> {
        match &self.speaks {
            Speaks::Gateway(gateway) => Some(gateway),
            _ => None,
        }
    }

    pub(crate) fn gateway_mut(&mut self) -> Option<&mut GatewayState> {
        match &mut self.speaks {
            Speaks::Gateway(gateway) => Some(gateway),
            _ => None,
        }
    }

    /// Returns the state that only a leaf connection has; `None` for other links.
    pub(crate) fn leaf(&self) -> Option<&LeafState> {
        match &self.speaks {
            Speaks::Leaf(leaf) => Some(leaf),
            _ => None,
        }
    }

    /// Returns the facts by which interest is told to a leaf node or hub, of which this is the
    /// connection; `None` for other peers.
    pub(crate) fn listener(&self, id: ConnId) -> Option<InterestListener> {
        self.leaf().map(|leaf| InterestListener {
            link: LinkSlot::new(id.slot, self.kind()),
            origin: leaf.origin,
            is_isolated: leaf.is_isolated,
        })
    }

    pub(crate) fn leaf_mut(&mut self) -> Option<&mut LeafState> {
        match &mut self.speaks {
            Speaks::Leaf(leaf) => Some(leaf),
            _ => None,
        }
    }

    /// Returns the part of the accounts that a route carries; `None` for other links.
    pub(crate) fn part(&self) -> Option<&PoolPart> {
        self.route().map(|route| &route.part)
    }

    /// Returns the peer's interest, each filter with its account.
    pub(crate) fn remote_interest(&self) -> impl Iterator<Item = (InterestEntry<'_>, &[u8])> {
        self.remote.iter(self.form()).map(|entry| (entry, self.account_named(entry.account)))
    }

    /// Returns the account that the peer means by `written`.
    pub(crate) fn account_named<'a>(&'a self, written: &'a [u8]) -> &'a [u8] {
        match &self.speaks {
            Speaks::Route(RouteState { part: PoolPart::Account(name), .. }) => name.as_bytes(),
            Speaks::Leaf(leaf) => leaf.account.as_bytes(),
            _ => written,
        }
    }

    /// Returns the name under which an account is written to the peer.
    pub(crate) fn written_account<'a>(&self, name: &'a [u8]) -> &'a [u8] {
        if self.is_dedicated() { b"" } else { name }
    }

    /// Whether messages of an account go over the link.
    pub(crate) fn carries(&self, pooling: &Pooling, account: &str) -> bool {
        match &self.speaks {
            Speaks::Route(route) => pooling.is_on(account, &route.part, route.modulus),
            Speaks::Leaf(leaf) => *leaf.account == *account,
            Speaks::Gateway(_) => true,
        }
    }

    /// Whether the peer is accepted.
    pub(crate) fn is_registered(&self) -> bool {
        self.stage == Stage::Registered
    }

    /// Whether the link is for one account only, which is not named on it.
    pub(crate) fn is_dedicated(&self) -> bool {
        matches!(self.part(), Some(PoolPart::Account(_))) || self.leaf().is_some()
    }

    /// Returns the form in which the peer writes.
    pub(crate) fn form(&self) -> Form {
        let accounts =
            if self.is_dedicated() { AccountNaming::Unnamed } else { AccountNaming::Named };
        // The entries with an origin of a gateway are made here.
        let origins = self.peer.lnocu || self.peer.ln || self.gateway().is_some();
        Form { accounts, origins }
    }

    /// Takes the lines of interest that came before the peer's INFO, as the peer would send them
    /// now.
    pub(crate) fn take_early(&mut self) -> Vec<u8> {
        let form = self.form();
        self.route_mut().map(|route| route.take_early(form)).unwrap_or_default()
    }

    /// Returns the version of the protocol that the peer knows.
    pub(crate) fn peer_proto(&self) -> i32 {
        self.peer.proto
    }

    /// Whether the peer distinguishes messages that were passed on for queue groups from others.
    pub(crate) fn tells_passed_on(&self) -> bool {
        self.peer.shardcast
    }

    /// Returns the number of the link, and the name of the server behind it.
    pub(crate) fn peer_names(&self) -> (u64, &str) {
        (self.rid, &self.peer.server_name)
    }
}

/// Returns a filter of a peer's interest as monitoring shows it.
pub(crate) fn shown_filter(entry: InterestEntry<'_>) -> Box<[u8]> {
    let words = [Some(entry.account), Some(entry.subject), entry.queue];
    let words: Vec<&[u8]> = words.into_iter().flatten().filter(|word| !word.is_empty()).collect();
    words.join(&b' ').into()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// CONNECT has to come, and nothing else.
    Connect,
    /// INFO has to come.
    Info,
    /// The peer is part of the cluster.
    Registered,
    Ended,
}

/// A route as monitoring shows it. Times are nanoseconds since the process began.
#[derive(Debug, Clone)]
pub struct RouteSnapshot {
    /// Number of the route, unique in the server.
    pub rid: u64,
    /// Id of the peer.
    pub remote_id: String,
    /// Name of the peer.
    pub remote_name: String,
    /// Whether this server has dialled.
    pub did_solicit: bool,
    /// The peer's address without the port.
    pub ip: Box<str>,
    /// The peer's port.
    pub port: u16,
    /// Time at which the route was connected.
    pub opened_ns: u64,
    /// Time of the last input from the peer, or of the last message sent to it.
    pub last_active_ns: u64,
    /// The last measured round trip, in nanoseconds; 0 before the first.
    pub rtt_ns: u64,
    /// Output not yet taken by the kernel, in bytes.
    pub pending_bytes: usize,
    /// Messages and bytes over the route.
    pub traffic: Traffic,
    /// Compression of the route, as nats-server names it.
    pub compression: &'static str,
    /// Number of filters that the peer is interested in.
    pub subscriptions: usize,
    /// The only account of the route, which no filter names; `None` if it carries several.
    pub account: Option<Box<str>>,
    /// Filters of its interest, if they were asked for: account, subject and queue group.
    pub interest: Vec<Box<[u8]>>,
}

/// Progress of the interest sync with a new peer.
#[derive(Debug, Default)]
pub(crate) struct InterestSync {
    pub(crate) account: usize,
    /// Position in the account's table of filters; `None` before the first piece.
    pub(crate) scan: Option<Scan>,
    /// Whether queue groups are told, which come first to another cluster.
    pub(crate) is_plain: bool,
}

/// An order of the process about routes, to the shard that has the route or to all.
#[derive(Debug, Clone)]
pub enum RouteOrder {
    /// Accepts the peer of this route, for this part of the accounts.
    Register(u64, PoolPart),
    /// Closes this route, which is not needed.
    Close(u64),
    /// Asks the peer of this route for an answer now.
    Ask(u64),
    /// Closes this route, whose peer has not sent its INFO, for want of room for others.
    TurnAway(u64),
    /// Closes this route, which is configured no more.
    Remove(u64),
    /// Reads on from this route: the last INFO of its peer is handled.
    HearOn(u64),
    /// Announces another server to the peer of this route.
    Gossip(u64, Box<RouteInfo>),
    /// Sets the addresses of other servers for clients.
    Urls(ClientUrls),
    /// Sets the name of the cluster.
    Name {
        /// The name.
        name: String,
        /// Whether it was generated.
        is_dynamic: bool,
    },
}
