//! Leaf connections that begin, accepted or dialled.

use crate::auth::user::Peer;
use crate::core::Core;
use crate::core::close::Reason;
use crate::core::conn::Conn;
use crate::core::timers::Deadline;
use crate::engine::Engine;
use crate::interest::ids::ConnId;
use crate::leaf::{handshake, tls};
use crate::link::Link;
use crate::link::leaf_state::{LeafDial, NewLeaf};
use crate::link::remote_interest::RemoteInterest;
use crate::transport::{Transport, WebSocketDial};

/// Accepted leaf connections of a shard that have not logged in; beyond it, one is closed for each
/// new one.
const STRANGERS_MAX: usize = 256;

impl Engine {
    /// Takes over a leaf connection that begins, dialled or accepted.
    pub fn open_leaf(&mut self, id: ConnId, peer: Peer, new: NewLeaf) {
        let core = &mut self.core;
        let mut conn = Box::new(Conn::new(id, peer, core.times.now));
        let is_dialed = new.dialed.is_some();
        let websocket = new.dialed.as_deref().and_then(|dial| websocket(dial, core));
        let begins_tls = new.dialed.as_deref().is_some_and(LeafDial::begins_with_tls);
        conn.transport = Transport::Leaf;
        if let Some(websocket) = websocket {
            conn.transport = Transport::LeafWebSocket;
            conn.layers.dial_websocket(websocket);
        }
        conn.link = Some(new_link(core, new, conn.transport));
        core.place_conn(conn);
        if begins_tls {
            tls::begin_dialed(core, id);
        } else if is_dialed || tls::begin_accepted(core, id) {
            handshake::greet(core, id);
        }
        turn_away_strangers(&mut self.core, id);
        self.core.rearm(id);
        self.core.flush_if_wanted(id);
    }

    /// Closes the leaf connection of this number, which the server has dialled.
    pub fn close_leaf(&mut self, lid: u64) {
        let is_it = |conn: &&Conn| {
            let leaf = conn.link.as_ref().and_then(|link| link.leaf());
            conn.peer.cid == lid && leaf.is_some_and(|leaf| leaf.dialed.is_some())
        };
        let id = self.core.conns.iter().find(is_it).map(|conn| conn.id);
        if let Some(id) = id {
            self.core.fail(id, None, Reason::Protocol("Client Closed"));
        }
    }
}

/// Makes a connection that was a client's one of a leaf node: it has asked for that with its
/// WebSocket.
pub(super) fn begin_in_websocket(core: &mut Core, id: ConnId) {
    let Some(lid) = core.conns.get(id).map(|conn| conn.peer.cid) else { return };
    let link = new_link(core, NewLeaf { lid, dialed: None }, Transport::LeafWebSocket);
    let Some(conn) = core.conns.get_mut(id) else { return };
    (conn.transport, conn.link) = (Transport::LeafWebSocket, Some(link));
    conn.deadlines.disarm(Deadline::Ping);
    conn.review();
    handshake::greet(core, id);
    turn_away_strangers(core, id);
}

fn new_link(core: &Core, new: NewLeaf, transport: Transport) -> Box<Link> {
    let remote = RemoteInterest::new(&core.random.hasher);
    let pending_bytes_max = core.settings.limits.pending_bytes_max;
    let is_websocket = transport == Transport::LeafWebSocket;
    Box::new(Link::leaf_connection(new, remote, pending_bytes_max, is_websocket))
}

/// Returns the WebSocket to ask the remote for, if there is to be one.
fn websocket(dial: &LeafDial, core: &mut Core) -> Option<WebSocketDial> {
    let (host, path) = dial.websocket.clone()?;
    Some(WebSocketDial {
        host,
        path: format!("{path}/leafnode"),
        compression: dial.remote.ws_compression,
        no_masking: dial.remote.ws_no_masking,
        seed: core.random.rng.u64(..),
    })
}

/// Ends the accepted leaf connection that has waited longest for its login, if there are too
/// many that have not logged in.
fn turn_away_strangers(core: &mut Core, id: ConnId) {
    let is_stranger = |id: ConnId| {
        let conn = core.conns.get(id).filter(|conn| conn.is_open());
        let link = conn.and_then(|conn| conn.link.as_ref());
        link.is_some_and(|link| link.dialed.is_none() && !link.is_registered())
    };
    let mut strangers = std::mem::take(&mut core.links.strangers);
    // Once for many: most have logged in long before.
    if strangers.len() >= STRANGERS_MAX {
        strangers.retain(|id| is_stranger(*id));
    }
    let one_too_many = if strangers.len() >= STRANGERS_MAX { strangers.pop_front() } else { None };
    strangers.extend(is_stranger(id).then_some(id));
    core.links.strangers = strangers;
    if let Some(first) = one_too_many {
        core.fail(first, None, Reason::Protocol("Authentication Timeout"));
    }
}

/// Sends INFO in clear to the other end of a connection that might have begun TLS first.
pub(super) fn inform_leaf(core: &mut Core, id: ConnId) {
    let due = core.settings.leaf.tls.as_ref().map_or(0, |tls| tls.timeout_ms);
    handshake::send_info(core, id, None);
    let due = core.times.now.saturating_add(due.saturating_mul(1_000_000));
    if let Some(conn) = core.conns.get_mut(id) {
        conn.deadlines.arm_by(Deadline::Login, due);
    }
}
