//! Links to other clusters on one shard, and what is said about them between shards and process.

use std::collections::HashMap;

use crate::auth::Secret;
use crate::interest::ids::ConnId;
use crate::link::gateway_state::AccountModeSnapshot;
use crate::link::mapped_replies::{MappedReplies, RecentInterest};
use crate::measure::Traffic;
use crate::proto::gateway::{GatewayInfo, NameHash};

/// A connection to another cluster that is to become a gateway.
#[derive(Debug, Clone)]
pub struct NewGateway {
    /// Number of the gateway, unique among them.
    pub rid: u64,
    /// Properties of the cluster, if this server has dialled.
    pub dialed: Option<DialedGateway>,
}

/// The cluster that this server has dialled.
#[derive(Debug, Clone)]
pub struct DialedGateway {
    /// Name of the cluster.
    pub cluster: String,
    /// Whether the cluster is configured.
    pub is_configured: bool,
    /// The credentials in the address, if there are some.
    pub login: Option<(String, Secret)>,
    /// Host name for which the certificate of the dialled server has to be valid.
    pub host: String,
}

/// News of a shard's gateways for the process.
#[derive(Debug)]
pub enum GatewayNotice {
    /// A peer has sent its first INFO; its gateway waits for [`GatewayOrder::Register`].
    Greeted {
        /// The gateway.
        rid: u64,
        /// The peer's INFO.
        info: Box<GatewayInfo>,
    },
    /// The peer of a registered gateway has sent another INFO: about its cluster or another. Its
    /// gateway waits for [`GatewayOrder::HearOn`].
    Heard {
        /// The gateway.
        rid: u64,
        /// The INFO.
        info: Box<GatewayInfo>,
    },
    /// The peer of a route has announced another cluster. Its route waits to be heard on.
    Gossip {
        /// The route.
        route: u64,
        /// The announcement.
        info: Box<GatewayInfo>,
    },
    /// A route to a member of the own cluster is registered.
    Member {
        /// The route.
        route: u64,
        /// The member's id.
        id: String,
        /// The member's name.
        name: String,
        /// The address at which other clusters reach the member; empty if they cannot.
        url: String,
    },
    /// The route to a member is at its end.
    MemberGone {
        /// The route.
        route: u64,
    },
    /// The gateway is at its end.
    Ended {
        /// The gateway.
        rid: u64,
    },
}

/// An order of the process about gateways, to the shard that has the gateway or to all.
#[derive(Debug, Clone)]
pub enum GatewayOrder {
    /// Accepts the peer of this gateway, which is then told of these other clusters.
    Register(u64, Vec<GatewayInfo>),
    /// Closes this gateway, for the reason given.
    Close(u64, &'static str),
    /// Reads on from this gateway: the last INFO of its peer is handled.
    HearOn(u64),
    /// Sets the addresses of this cluster's servers, which peers that have dialled are told.
    Urls(Vec<String>),
    /// Sets the members of this cluster, to which mapped answers are passed on.
    Members(Vec<NameHash>),
    /// Sets the other clusters that this server has dialled, of which members are told.
    Clusters(Vec<GatewayInfo>),
}

/// The gateways of a shard, and what its clients have to do with other clusters.
#[derive(Debug, Default)]
pub(crate) struct Gateways {
    /// All gateways of this shard, registered or not, by their numbers.
    pub(crate) by_rid: HashMap<u64, ConnId>,
    /// Registered gateways to peers that this server has dialled, the nearest first.
    pub(crate) outbounds: Vec<ConnId>,
    /// Registered gateways from peers that have dialled.
    pub(crate) inbounds: Vec<ConnId>,
    /// Whether some peer may be sent messages without interest in them.
    pub(crate) is_optimistic: bool,
    /// Addresses of this cluster's servers; empty until other members are known.
    pub(crate) urls: Vec<String>,
    /// Members of this cluster, by the hashes of their ids.
    pub(crate) members: Vec<NameHash>,
    /// Other clusters that members are told of.
    pub(crate) clusters: Vec<GatewayInfo>,
    pub(crate) replies: MappedReplies,
    pub(crate) recent: RecentInterest,
}

/// A gateway as monitoring shows it. Times are nanoseconds since the process began.
#[derive(Debug, Clone)]
pub struct GatewaySnapshot {
    /// Number of the gateway.
    pub rid: u64,
    /// Name of the peer's cluster.
    pub cluster: String,
    /// Whether that cluster is configured.
    pub is_configured: bool,
    /// Whether this server has dialled.
    pub is_outbound: bool,
    /// Id of the peer.
    pub remote_id: String,
    /// The peer's address without the port.
    pub ip: Box<str>,
    /// The peer's port.
    pub port: u16,
    /// Time at which the gateway was connected.
    pub opened_ns: u64,
    /// Time of the last input from the peer, or of the last message sent to it.
    pub last_active_ns: u64,
    /// The last measured round trip, in nanoseconds; 0 before the first.
    pub rtt_ns: u64,
    /// Output not yet taken by the kernel, in bytes.
    pub pending_bytes: usize,
    /// Messages and bytes over the gateway.
    pub traffic: Traffic,
    /// Number of filters that the peer is interested in.
    pub subscriptions: usize,
    /// Modes of the accounts.
    pub accounts: Vec<AccountModeSnapshot>,
    /// Filters of the peer's interest, if they were asked for: account, subject and queue group.
    pub interest: Vec<InterestShown>,
}

/// A filter of a peer's interest: account, subject and queue group.
pub(crate) type InterestShown = (Box<[u8]>, Box<[u8]>, Option<Box<[u8]>>);
