//! Leaf connections as monitoring shows them.

use std::sync::Arc;

use crate::core::Core;
use crate::core::conn::Conn;
use crate::link::leaf_state::LeafAwaits;
use crate::link::{FILTERS_SHOWN_MAX, shown_filter};
use crate::measure::Traffic;
use crate::proto::leaf::FORM;

/// A leaf connection as monitoring shows it.
#[derive(Debug, Clone)]
pub struct LeafSnapshot {
    /// Number of the connection, unique in the server.
    pub lid: u64,
    /// Name of the server at the other end.
    pub name: String,
    /// Whether this server is the leaf node.
    pub is_spoke: bool,
    /// Whether the other end is not told the interest of other leaf nodes.
    pub is_isolated: bool,
    /// The account that is bound at this end.
    pub account: Arc<str>,
    /// The address of the other end without the port.
    pub ip: Box<str>,
    /// The port of the other end.
    pub port: u16,
    /// The last measured round trip, in nanoseconds; 0 before the first.
    pub rtt_ns: u64,
    /// Messages and bytes over the connection.
    pub traffic: Traffic,
    /// Compression of the connection, as nats-server names it; empty if it has none.
    pub compression: &'static str,
    /// Whether the connection goes over a WebSocket.
    pub is_websocket: bool,
    /// Number of filters that the other end is interested in.
    pub subscriptions: usize,
    /// Filters of its interest, if they were asked for.
    pub interest: Vec<Box<[u8]>>,
}

/// Returns the leaf connections that are up; `with_interest` decides whether the interest of each
/// is included.
pub(crate) fn leaves(core: &Core, with_interest: bool) -> Vec<LeafSnapshot> {
    let shown = if with_interest { FILTERS_SHOWN_MAX } else { 0 };
    let conns = core.links.leaves.iter().filter_map(|id| core.conns.get(*id));
    let snapshot = |conn: &Conn| {
        let link = conn.link.as_ref()?;
        let leaf = link.leaf().filter(|leaf| leaf.awaits == LeafAwaits::Nothing)?;
        Some(LeafSnapshot {
            lid: conn.peer.cid,
            name: link.peer.server_name.clone(),
            is_spoke: !leaf.is_leaf,
            is_isolated: leaf.is_isolated,
            account: Arc::clone(&leaf.account),
            ip: conn.peer.ip.clone(),
            port: conn.peer.port,
            rtt_ns: conn.liveness.rtt,
            traffic: conn.traffic,
            compression: match conn.layers.compression() {
                Some(mode) => mode.name_at(conn.liveness.rtt),
                None => "",
            },
            is_websocket: leaf.is_websocket,
            subscriptions: link.remote.len(),
            interest: link.remote.iter(FORM).take(shown).map(shown_filter).collect(),
        })
    };
    conns.filter_map(snapshot).collect()
}
