//! Connections with layers between the wire and the protocol (`crate::transport`): their turns,
//! and what follows from their input.
//!
//! The engine pulls input through the layers step by step (`Engine::unwrap`). Each call says how
//! much it may cost and whether earlier output is handled. Steps of handshakes stand in line; a
//! turn takes a bounded number. Compressed input is taken 1 KiB at a time; after 1 MiB of output
//! the rest waits in another line (`advance_unpacking`), and the connection is paused.

#![forbid(unsafe_code)]

use core::net::IpAddr;
use std::collections::VecDeque;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;

use super::conn::Conn;
use super::ids::Conns;
use super::timers::NEVER;
use super::{ConnId, Engine, Reason};
use crate::auth::certificate;
use crate::transport::{
    Allowance, Compression, Failure, HandshakeFirst, LayerScratch, MutualTls, Step, Tls, TlsInfo,
    Transport,
};

/// How long a proxy's header may take once it has begun.
const HEADER_NS: u64 = 5_000_000_000;
/// Steps of handshakes in one turn. One takes up to a millisecond, with a long RSA key.
const HANDSHAKE_STEPS_PER_TURN: usize = 1;

/// What a peer may send of a chunk before it may stay, in bytes, and be one of many.
const FIRST_CHUNK_BYTES_MAX: usize = 16 * 1024;
/// Of those who have sent more a shard listens to so many: of more the one goes that came first. A
/// peer's chunk comes at once.
const UNDECIDED_MAX: usize = 8;

/// What the layers of a shard's connections have in common.
#[derive(Debug, Default)]
pub(super) struct Unwrapping {
    pub(super) scratch: LayerScratch,
    /// Connections whose TLS handshake can go on.
    handshakes: VecDeque<ConnId>,
    /// Connections whose compressed data waits until others had their turn.
    unpacking: VecDeque<ConnId>,
    /// Routes that may not stay yet, and have sent much of a chunk.
    undecided: VecDeque<ConnId>,
}

impl Unwrapping {
    /// Whether somebody has something left for the next turn.
    pub(super) fn has_more(&self) -> bool {
        !self.handshakes.is_empty() || !self.unpacking.is_empty()
    }

    /// Who has to go of those that may not stay yet if this one has sent much of a chunk, too.
    fn one_too_many(&mut self, id: ConnId, conns: &Conns) -> Option<ConnId> {
        let is_undecided = |conn: &Conn| {
            let is_new = conn.route.as_ref().is_some_and(|route| !route.is_registered());
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

impl Conn {
    /// Whether there is nothing more to be sent.
    pub(super) fn is_drained(&self) -> bool {
        self.outbox.is_empty() && !self.layers.wants_write()
    }

    /// How far its bytes may be unwrapped for so much work.
    fn allowance(&self, work: u64) -> Allowance {
        // What a peer says that is not decided about waits as it came: it may be a bomb. INFO is
        // the first that comes; who it is from is decided before there is more.
        let route = self.route.as_ref();
        let is_undecided = route.is_some() && self.claim.is_some();
        let is_piecemeal = route.is_some_and(|route| !route.is_registered());
        Allowance { work, is_held: self.waits || is_undecided, is_piecemeal }
    }
}

impl Reason {
    /// What a WebSocket's last frame says of it, if there is to be one.
    pub(super) fn close_code(self) -> Option<u16> {
        const NORMAL: u16 = 1000;
        const GOING_AWAY: u16 = 1001;
        const PROTOCOL_ERROR: u16 = 1002;
        const POLICY_VIOLATION: u16 = 1008;
        const TOO_BIG: u16 = 1009;
        Some(match self {
            Self::ClientClosed => NORMAL,
            Self::ServerShutdown => GOING_AWAY,
            Self::ReadError | Self::WriteError => return None,
            Self::Protocol("Maximum Message Payload Exceeded") => TOO_BIG,
            Self::Protocol("Protocol Violation" | "Parse Error") => PROTOCOL_ERROR,
            _ => POLICY_VIOLATION,
        })
    }
}

/// What a new connection has around it.
impl Engine {
    /// Makes a new connection a WebSocket, which is silent until its request is there.
    pub(super) fn begin_websocket(&mut self, id: ConnId) {
        let (Some(conn), Some(options)) = (self.conns.get_mut(id), &self.settings.websocket) else {
            return;
        };
        conn.layers.expect_websocket();
        let timeout_ns = options.handshake_timeout_ms.saturating_mul(1_000_000);
        conn.timing.auth_due = self.now.saturating_add(timeout_ns);
        conn.timing.ping_due = NEVER;
    }

    /// Expects a header of the connection if it may have one.
    pub(super) fn begin_header(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let settings = &self.settings;
        if settings.proxy_protocol && conn.transport == Transport::Tcp {
            let nobody_named = settings.trusted_proxies.is_empty();
            if nobody_named || settings.trusts(&conn.peer.ip) {
                conn.layers.expect_header();
            }
        }
    }

    /// Gives a new connection its TLS, and says whether it is to be greeted in clear.
    pub(super) fn begin_tls(&mut self, id: ConnId) -> bool {
        let Some(conn) = self.conns.get_mut(id) else { return false };
        let is_websocket = !conn.layers.is_understood();
        let Some(tls) = self.settings.tls_of(conn.transport) else { return !is_websocket };
        if is_websocket {
            // The time that it has, and the first word, are the upgrade's.
            conn.layers.expect_tls();
            return false;
        }
        if self.settings.allow_non_tls {
            conn.layers.allow_tls();
            return true;
        }
        conn.layers.expect_tls();
        conn.timing.auth_due = self.now.saturating_add(ms_to_ns(tls.timeout_ms));
        match tls.first {
            HandshakeFirst::No => true,
            HandshakeFirst::Always => false,
            HandshakeFirst::Within(ms) => {
                conn.timing.info_due = self.now.saturating_add(ms_to_ns(ms));
                false
            }
        }
    }

    /// Gives a new route its TLS, if there is any, and says whether it goes without. Who dials
    /// says first what it can; `host` is whom its certificate has to be for.
    pub(super) fn begin_route_tls(&mut self, id: ConnId, host: Option<&str>) -> bool {
        let Some(conn) = self.conns.get_mut(id) else { return false };
        let Some(MutualTls { tls, client, .. }) = &self.settings.route.tls else { return true };
        conn.timing.auth_due = self.now.saturating_add(ms_to_ns(tls.timeout_ms));
        let Some(host) = host else {
            conn.layers.expect_tls();
            return false;
        };
        tracing::debug!("{} - Starting TLS route client handshake", conn.label());
        match conn.layers.dial_tls(Arc::clone(client), host) {
            Ok(()) => self.flush_if_wanted(id),
            Err(error) => self.fail_handshake(id, &error),
        }
        false
    }

    /// From here on, in both directions, a route is compressed; `head` is sent before that. What
    /// of its input follows waits.
    pub(super) fn begin_s2(&mut self, id: ConnId, mode: Compression, head: Vec<u8>) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.layers.begin_s2(mode, head, &conn.outbox);
        self.unwrapping.unpacking.push_back(id);
        self.flush_if_wanted(id);
    }
}

/// Taking it off what comes.
impl Engine {
    /// Handles what came for a connection whose bytes are not the protocol's own.
    pub(super) fn on_wrapped(&mut self, id: ConnId, bytes: &[u8]) {
        // Nothing follows the end that a layer has told.
        let has_ended = self.conns.get(id).is_none_or(|conn| conn.ended.is_some());
        self.unwrapping.scratch.begin();
        self.unwrap(id, if has_ended { &[] } else { bytes });
    }

    /// Unwraps what came, and what is in the scratch memory, as far as it goes.
    fn unwrap(&mut self, id: ConnId, mut wire: &[u8]) {
        while let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.is_open()) {
            if conn.layers.is_bare() {
                // There was less around it than there might have been.
                if !wire.is_empty() {
                    self.on_plaintext(id, wire);
                }
                break;
            }
            let allowance = conn.allowance(self.budget.room());
            let scratch = &mut self.unwrapping.scratch;
            let step = conn.layers.next(&mut wire, allowance, scratch);
            self.budget.spend(scratch.take_work());
            match step {
                Step::Done => break,
                Step::Plain => {
                    let plain = scratch.take_plain();
                    self.on_plaintext(id, &plain);
                    self.unwrapping.scratch.keep_plain(plain);
                }
                end @ (Step::Ended | Step::Failed(_)) => {
                    self.on_step(id, end);
                    break;
                }
                step => self.on_step(id, step),
            }
        }
        self.unwrapping.scratch.finish();
        if let Some(first) = self.unwrapping.one_too_many(id, &self.conns) {
            self.fail(first, None, Reason::Protocol("Authentication Timeout"));
        }
        self.flush_if_wanted(id);
    }

    fn on_step(&mut self, id: ConnId, step: Step) {
        match step {
            Step::Done | Step::Plain | Step::InClear => {}
            Step::HeaderBegins => self.on_header_begun(id),
            Step::Header(source) => self.on_header(id, source),
            Step::NoHeader(bytes) => {
                self.on_header(id, None);
                if !bytes.is_empty() {
                    self.unwrap(id, &bytes);
                }
            }
            Step::Handshake { is_new, is_much } => {
                if is_new {
                    self.unwrapping.handshakes.push_back(id);
                }
                if is_much {
                    self.brake(id, |brakes| brakes.in_line = true);
                }
            }
            Step::Secured { resumed, own_cert } => self.on_secured(id, resumed, own_cert),
            Step::Request => self.on_request(id),
            Step::Turn => {
                self.unwrapping.unpacking.push_back(id);
                self.brake(id, |brakes| brakes.in_line = true);
            }
            Step::Ended => self.on_layer_ended(id, false),
            Step::Failed(failure) => self.on_unwrapping_failed(id, failure),
        }
    }

    fn on_header_begun(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.timing.preface_due = self.now.saturating_add(HEADER_NS);
        self.rearm(id);
    }

    fn on_header(&mut self, id: ConnId, source: Option<(IpAddr, u16)>) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.timing.preface_due = NEVER;
        if let Some((ip, port)) = source {
            let before = conn.label();
            (conn.peer.ip, conn.peer.port) = (ip.to_string().into(), port);
            tracing::debug!("{} - speaks by proxy {before}", conn.label());
        }
    }

    fn on_request(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let forwarded_for = match conn.layers.upgrade(self.settings.websocket.as_ref()) {
            Ok(forwarded_for) => forwarded_for.unwrap_or_default(),
            Err(failure) => return self.on_unwrapping_failed(id, failure),
        };
        if !forwarded_for.is_empty() && self.settings.trusts(&conn.peer.ip) {
            // Each proxy appends whom it has heard: the last one that no proxy of ours is.
            let mut hops = forwarded_for.rsplit(',').map(str::trim);
            let client = hops.find(|hop| !self.settings.trusts(hop));
            if let Some(client) = client.filter(|hop| hop.parse::<IpAddr>().is_ok()) {
                conn.peer.ip = client.into();
            }
        }
        tracing::debug!("{} - Client connection created", conn.label());
        let interval = self.settings.ping_interval_of(conn.transport);
        conn.timing.ping_due = self.now.saturating_add(interval);
        conn.timing.auth_due = self.settings.auth_due(conn.transport, self.now);
        self.send_info(id, false);
        self.rearm(id);
    }

    fn on_secured(&mut self, id: ConnId, resumed: bool, own_cert: Option<CertificateDer<'_>>) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let Some(tls) = self.settings.tls_for(conn) else { return };
        let Some(info) = conn.layers.tls() else { return };
        let (label, how) = (conn.label(), if resumed { ", resumed" } else { "" });
        tracing::debug!("{label} - TLS handshake complete");
        tracing::debug!(
            "{label} - TLS version {}, cipher suite {}{how}",
            info.version,
            info.cipher_suite
        );
        if !is_pinned(tls, info) {
            self.fail_handshake(id, "the certificate is not one of pinned_certs");
            return;
        }
        if tls.map {
            conn.cert_names = own_cert.map(|cert| Box::new(certificate::names(&cert)));
        }
        if !conn.layers.is_understood() {
            return; // The request comes next.
        }
        if conn.route.is_some() {
            self.greet_route(id);
            return;
        }
        conn.timing.auth_due = self.settings.auth_due(conn.transport, self.now);
        if !conn.informed {
            self.send_info(id, false);
        }
        self.rearm(id);
    }

    fn on_unwrapping_failed(&mut self, id: ConnId, failure: Failure) {
        let Some(conn) = self.conns.get(id) else { return };
        match failure {
            // Nothing has come before these.
            Failure::Header(error) => return self.fail_header(id, &error.to_string()),
            Failure::Handshake(why) => return self.fail_handshake(id, &why),
            Failure::Upgrade(why) => return self.fail_upgrade(id, why),
            Failure::Tls(error) => tracing::debug!("TLS read error: {error}"),
            Failure::Frames(why) => tracing::error!("{} - read error: {why}", conn.label()),
            Failure::S2(what) => {
                tracing::error!("{} - read error: {what} in the compressed stream", conn.label());
            }
        }
        self.on_layer_ended(id, true);
    }

    /// A layer has no more for the protocol than what has come of it.
    fn on_layer_ended(&mut self, id: ConnId, failed: bool) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        // Whatever else has ended was around it, and waits for this.
        conn.ended = Some(failed);
        self.end_if_heard(id);
    }

    /// Ends a connection whose proxy's header is none, or not there in time.
    pub(super) fn fail_header(&mut self, id: ConnId, why: &str) {
        if let Some(conn) = self.conns.get(id) {
            let label = conn.label();
            tracing::warn!("Error reading PROXY protocol header from {label}: {why}");
        }
        self.fail(id, None, Reason::Protocol("Protocol Violation"));
    }

    /// Ends a connection that has not come to an understanding; TLS tells the client why.
    fn fail_handshake(&mut self, id: ConnId, why: &str) {
        if let Some(conn) = self.conns.get(id) {
            let noun = if conn.route.is_some() { "TLS route" } else { "TLS" };
            tracing::error!("{} - {noun} handshake error: {why}", conn.label());
        }
        self.fail(id, None, Reason::Protocol("TLS Handshake Failure"));
    }

    /// The time for a handshake is over. Nothing can be said in a language not agreed upon.
    pub(super) fn on_handshake_timeout(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get(id) {
            let label = conn.label();
            match conn.route {
                // Somebody wants this route, and wonders why it is not there.
                Some(_) => tracing::error!("{label} - TLS route handshake error: timeout"),
                None => tracing::debug!("{label} - TLS handshake timeout"),
            }
        }
        self.fail(id, None, Reason::Protocol("TLS Handshake Failure"));
    }

    /// Ends a connection that has not become a WebSocket.
    pub(super) fn fail_upgrade(&mut self, id: ConnId, why: &str) {
        if let Some(conn) = self.conns.get(id) {
            let address = conn.peer.address();
            tracing::error!("{address} - websocket handshake error: {why}");
        }
        self.fail(id, None, Reason::Protocol("Protocol Violation"));
    }
}

/// Whose turn it is.
impl Engine {
    /// Takes the next steps of handshakes.
    pub(super) fn advance_handshakes(&mut self) {
        for _ in 0..HANDSHAKE_STEPS_PER_TURN {
            let Some(id) = self.unwrapping.handshakes.pop_front() else { return };
            let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.is_open()) else { continue };
            let wants_session = conn.layers.grant_handshake();
            self.release(id, |brakes| brakes.in_line = false);
            if !wants_session || self.start_tls(id) {
                self.on_wrapped(id, &[]);
            }
            self.end_if_heard(id);
        }
    }

    fn start_tls(&mut self, id: ConnId) -> bool {
        let Some(conn) = self.conns.get_mut(id) else { return false };
        let Some(tls) = self.settings.tls_for(conn) else {
            // A reload has turned TLS off since; the client will not be understood.
            self.fail_handshake(id, "TLS is not configured any more");
            return false;
        };
        let what = if conn.route.is_some() { "route server" } else { "client connection" };
        tracing::debug!("{} - Starting TLS {what} handshake", conn.label());
        conn.timing.info_due = NEVER;
        match conn.layers.start_tls(Arc::clone(&tls.server)) {
            Ok(was_optional) => {
                if was_optional {
                    conn.timing.auth_due = self.now.saturating_add(ms_to_ns(tls.timeout_ms));
                }
                self.rearm(id);
                true
            }
            Err(error) => {
                self.fail_handshake(id, &error);
                false
            }
        }
    }

    /// Goes on with one of those whose compressed data waits.
    pub(super) fn advance_unpacking(&mut self) {
        let Some(id) = self.unwrapping.unpacking.pop_front() else { return };
        let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.is_open()) else { return };
        if conn.waits {
            return; // It is resumed when that has been handled.
        }
        self.budget.serve_input();
        self.unwrapping.scratch.begin();
        conn.layers.grant_turn(&mut self.unwrapping.scratch);
        self.release(id, |brakes| brakes.in_line = false);
        self.unwrap(id, &[]);
        self.end_if_heard(id);
    }

    /// Goes on with what waits in the layers around the protocol, and be it the end: what came
    /// before is handled.
    pub(super) fn resume_unwrapping(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get(id) else { return };
        if conn.layers.has_end() {
            self.on_wrapped(id, &[]);
        } else if conn.layers.wants_turn() {
            self.unwrapping.unpacking.push_back(id);
        }
        self.end_if_heard(id);
    }

    /// Has what the layers around the protocol want to send taken.
    fn flush_if_wanted(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.layers.wants_write() {
            conn.flush(&mut self.flushes, true);
        }
    }
}

impl super::Settings {
    /// Whether a proxy at `ip` is believed.
    fn trusts(&self, ip: &str) -> bool {
        let Ok(ip) = ip.parse::<IpAddr>() else { return false };
        self.trusted_proxies.iter().any(|network| network.contains(ip))
    }
}

fn is_pinned(tls: &Tls, info: &TlsInfo) -> bool {
    let own = info.peer_certs.first();
    tls.pinned_certs.is_empty() || own.is_some_and(|own| tls.pinned_certs.contains(&own.key_sha256))
}

fn ms_to_ns(ms: u64) -> u64 {
    ms.saturating_mul(1_000_000)
}

#[cfg(test)]
mod header_tests;
#[cfg(test)]
mod s2_tests;
#[cfg(test)]
mod tls_tests;
#[cfg(test)]
mod websocket_tests;
