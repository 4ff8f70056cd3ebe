//! Turns of the layers between wire and protocol (TLS handshakes, compressed data).

use core::net::IpAddr;
use std::collections::VecDeque;
use std::sync::Arc;

use crate::core::close::Reason;
use crate::core::conn::Conn;
use crate::core::conns::Conns;
use crate::core::settings::Settings;
use crate::core::timers::Deadline;
use crate::core::{Core, input};
use crate::interest::ids::ConnId;
use crate::transport::{
    Compression, Failure, HandshakeFirst, LayerScratch, MutualTls, Tls, TlsInfo, Transport,
};

/// Bytes of a chunk that a peer may send before it is accepted, without being one of
/// [`UNDECIDED_MAX`].
const FIRST_CHUNK_BYTES_MAX: usize = 16 * 1024;

/// Peers that may have sent more than that before they are accepted, per shard; with one more the
/// first goes. The chunk of an accepted peer comes at once.
pub(crate) const UNDECIDED_MAX: usize = 8;

/// State that the layers of a shard's connections share.
#[derive(Debug, Default)]
pub(crate) struct Unwrapping {
    pub(crate) scratch: LayerScratch,
    /// Connections whose TLS handshake can go on.
    pub(crate) handshakes: VecDeque<ConnId>,
    /// Connections whose compressed data waits until other connections had their turn.
    pub(crate) unpacking: VecDeque<ConnId>,
    /// Routes that are not accepted yet, and have sent much of a chunk.
    undecided: VecDeque<ConnId>,
}

impl Unwrapping {
    /// Whether any connection has a step left for the next turn.
    pub(crate) fn has_more(&self) -> bool {
        !self.handshakes.is_empty() || !self.unpacking.is_empty()
    }

    /// Returns the route that has to go if this one, not accepted yet, has sent much of a chunk,
    /// too.
    pub(crate) fn one_too_many(&mut self, id: ConnId, conns: &Conns) -> Option<ConnId> {
        let is_undecided = |conn: &Conn| {
            let is_new = conn.link.as_ref().is_some_and(|link| !link.is_registered());
            is_new && conn.is_open() && conn.layers.chunk_bytes() > FIRST_CHUNK_BYTES_MAX
        };
        if !conns.get(id).is_some_and(is_undecided) || self.undecided.contains(&id) {
            return None;
        }
        self.undecided.retain(|other| conns.get(*other).is_some_and(is_undecided));
        self.undecided.push_back(id);
        if self.undecided.len() > UNDECIDED_MAX { self.undecided.pop_front() } else { None }
    }
}

impl Core {
    /// Begins the compression of a route, in both directions; `head` is sent before that. Its input
    /// behind this point waits.
    pub(crate) fn begin_s2(&mut self, id: ConnId, mode: Compression, head: Vec<u8>) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.layers.begin_s2(mode, head, &conn.outbox);
        self.input.layers.unpacking.push_back(id);
        self.flush_if_wanted(id);
    }

    /// Flushes output of the layers around the protocol, if there is any.
    pub(crate) fn flush_if_wanted(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.layers.wants_write() {
            conn.flush(&mut self.out.flushes, true);
        }
    }
}

/// Makes a new connection a WebSocket, which is silent until its request is there.
pub(crate) fn begin_websocket(core: &mut Core, id: ConnId) {
    let (Some(conn), Some(options)) = (core.conns.get_mut(id), &core.settings.listen.websocket)
    else {
        return;
    };
    conn.layers.expect_websocket();
    let timeout_ns = options.handshake_timeout_ms.saturating_mul(1_000_000);
    conn.deadlines.arm(Deadline::Login, core.times.now.saturating_add(timeout_ns));
    conn.deadlines.disarm(Deadline::Ping);
}

/// Expects a header of the connection if it may have one.
pub(crate) fn begin_header(core: &mut Core, id: ConnId) {
    let Some(conn) = core.conns.get_mut(id) else { return };
    let settings = &core.settings;
    if settings.listen.proxy_protocol && conn.transport == Transport::Tcp {
        let nobody_named = settings.listen.trusted_proxies.is_empty();
        if nobody_named || settings.trusts(&conn.peer.ip) {
            conn.layers.expect_header();
        }
    }
}

/// Expects TLS of a new connection, if it is configured. Returns whether the greeting goes out in
/// clear.
pub(crate) fn begin_tls(core: &mut Core, id: ConnId) -> bool {
    let Some(conn) = core.conns.get_mut(id) else { return false };
    let is_websocket = !conn.layers.is_understood();
    let Some(tls) = core.settings.tls_of(conn.transport) else { return !is_websocket };
    if is_websocket {
        // The timeout and the first bytes are those of the upgrade.
        conn.layers.expect_tls();
        return false;
    }
    if core.settings.listen.allow_non_tls {
        conn.layers.allow_tls();
        return true;
    }
    conn.layers.expect_tls();
    let due = core.times.now.saturating_add(ms_to_ns(tls.timeout_ms));
    conn.deadlines.arm(Deadline::Login, due);
    match tls.first {
        HandshakeFirst::No => true,
        HandshakeFirst::Always => false,
        HandshakeFirst::Within(ms) => {
            conn.deadlines.arm(Deadline::Info, core.times.now.saturating_add(ms_to_ns(ms)));
            false
        }
    }
}

/// Begins TLS on a new route, if it is configured. Returns whether the route goes without. The
/// dialling side speaks first; its certificate check is for `host`.
pub(crate) fn begin_route_tls(core: &mut Core, id: ConnId, host: Option<&str>) -> bool {
    let Some(conn) = core.conns.get_mut(id) else { return false };
    let mutual = conn.link.as_ref().and_then(|link| core.settings.mutual_tls(link));
    let Some(MutualTls { tls, client, .. }) = mutual else { return true };
    let due = core.times.now.saturating_add(ms_to_ns(tls.timeout_ms));
    conn.deadlines.arm(Deadline::Login, due);
    let Some(host) = host else {
        conn.layers.expect_tls();
        return false;
    };
    tracing::debug!(
        "{} - Starting TLS {} client handshake",
        conn.label(),
        conn.kind().lower_noun()
    );
    match conn.layers.dial_tls(Arc::clone(client), host) {
        Ok(()) => core.flush_if_wanted(id),
        Err(error) => fail_handshake(core, id, &error),
    }
    false
}

pub(crate) fn on_header_begun(core: &mut Core, id: ConnId) {
    let Some(conn) = core.conns.get_mut(id) else { return };
    conn.deadlines.arm(Deadline::Header, core.times.now.saturating_add(HEADER_NS));
    core.rearm(id);
}

pub(crate) fn on_header(core: &mut Core, id: ConnId, source: Option<(IpAddr, u16)>) {
    let Some(conn) = core.conns.get_mut(id) else { return };
    conn.deadlines.disarm(Deadline::Header);
    if let Some((ip, port)) = source {
        let before = conn.label();
        (conn.peer.ip, conn.peer.port) = (ip.to_string().into(), port);
        tracing::debug!("{} - connected through proxy {before}", conn.label());
    }
}

/// Ends a connection whose proxy header is invalid, or not there in time.
pub(crate) fn fail_header(core: &mut Core, id: ConnId, why: &str) {
    if let Some(conn) = core.conns.get(id) {
        let label = conn.label();
        tracing::warn!("Error reading PROXY protocol header from {label}: {why}");
    }
    core.fail(id, None, Reason::Protocol("Protocol Violation"));
}

/// Ends a connection whose handshake has failed; TLS gives the client the reason.
pub(crate) fn fail_handshake(core: &mut Core, id: ConnId, why: &str) {
    if let Some(conn) = core.conns.get(id) {
        let label = conn.label();
        match conn.kind().lower_noun() {
            "" => tracing::error!("{label} - TLS handshake error: {why}"),
            noun => tracing::error!("{label} - TLS {noun} handshake error: {why}"),
        }
    }
    core.fail(id, None, Reason::Protocol("TLS Handshake Failure"));
}

/// Ends a connection whose handshake took too long. No error can be sent in a protocol not agreed
/// upon.
pub(crate) fn on_handshake_timeout(core: &mut Core, id: ConnId) {
    if let Some(conn) = core.conns.get(id) {
        let label = conn.label();
        match conn.link {
            // The operator wants this route, and looks for the reason of its absence.
            Some(_) => {
                let noun = conn.kind().lower_noun();
                tracing::error!("{label} - TLS {noun} handshake error: timeout");
            }
            None => tracing::debug!("{label} - TLS handshake timeout"),
        }
    }
    core.fail(id, None, Reason::Protocol("TLS Handshake Failure"));
}

/// Ends a connection that has not become a WebSocket.
pub(crate) fn fail_upgrade(core: &mut Core, id: ConnId, why: &str) {
    if let Some(conn) = core.conns.get(id) {
        let address = conn.peer.address();
        match conn.link {
            None => tracing::error!("{address} - websocket handshake error: {why}"),
            Some(_) => tracing::error!("Error soliciting websocket connection: {address}: {why}"),
        }
    }
    core.fail(id, None, Reason::Protocol("Protocol Violation"));
}

pub(crate) fn start_tls(core: &mut Core, id: ConnId) -> bool {
    let Some(conn) = core.conns.get_mut(id) else { return false };
    let Some(tls) = core.settings.tls_for(conn) else {
        // A reload has turned TLS off since; the client will not be understood.
        fail_handshake(core, id, "TLS is not configured any more");
        return false;
    };
    match conn.kind().lower_noun() {
        "" => tracing::debug!("{} - Starting TLS client connection handshake", conn.label()),
        noun => tracing::debug!("{} - Starting TLS {noun} server handshake", conn.label()),
    }
    conn.deadlines.disarm(Deadline::Info);
    match conn.layers.start_tls(Arc::clone(&tls.server)) {
        Ok(was_optional) => {
            if was_optional {
                let due = core.times.now.saturating_add(ms_to_ns(tls.timeout_ms));
                conn.deadlines.arm(Deadline::Login, due);
            }
            core.rearm(id);
            true
        }
        Err(error) => {
            fail_handshake(core, id, &error);
            false
        }
    }
}

pub(crate) fn on_unwrapping_failed(core: &mut Core, id: ConnId, failure: Failure) {
    let Some(conn) = core.conns.get(id) else { return };
    match failure {
        // Nothing has come before these.
        Failure::Header(error) => return fail_header(core, id, &error.to_string()),
        Failure::Handshake(why) => return fail_handshake(core, id, &why),
        Failure::Upgrade(why) => return fail_upgrade(core, id, why),
        Failure::Tls(error) => tracing::debug!("TLS read error: {error}"),
        Failure::Frames(why) => tracing::error!("{} - read error: {why}", conn.label()),
        Failure::S2(what) => {
            tracing::error!("{} - read error: {what} in the compressed stream", conn.label());
        }
    }
    on_layer_ended(core, id, true);
}

/// Takes the end of a layer's stream to the protocol.
pub(crate) fn on_layer_ended(core: &mut Core, id: ConnId, failed: bool) {
    let Some(conn) = core.conns.get_mut(id) else { return };
    conn.input.end_within(failed);
    input::end_if_heard(core, id);
}

/// Nanoseconds that a proxy's header may take once it has begun.
pub(crate) const HEADER_NS: u64 = 5_000_000_000;

impl Settings {
    /// Whether a proxy at `ip` is trusted.
    pub(crate) fn trusts(&self, ip: &str) -> bool {
        let Ok(ip) = ip.parse::<IpAddr>() else { return false };
        self.listen.trusted_proxies.iter().any(|network| network.contains(ip))
    }
}

pub(crate) fn is_pinned(tls: &Tls, info: &TlsInfo) -> bool {
    let own = info.peer_certs.first();
    tls.pinned_certs.is_empty() || own.is_some_and(|own| tls.pinned_certs.contains(&own.key_sha256))
}

fn ms_to_ns(ms: u64) -> u64 {
    ms.saturating_mul(1_000_000)
}
