//! Connections with layers between the wire and the protocol (`crate::transport`): their turns, and
//! the effects of their input.
//!
//! The engine pulls input through the layers step by step (`Engine::unwrap`). Each call limits its
//! work and says whether earlier output is handled. Steps of handshakes stand in line; a turn takes
//! a bounded number. Compressed input is taken 1 KiB at a time; after 1 MiB of output the rest
//! waits in another line (`advance_unpacking`), and the connection is paused.

use core::net::IpAddr;

use rustls::pki_types::CertificateDer;

use crate::auth::certificate;
use crate::client::info;
use crate::core::close::Reason;
use crate::core::conn::Conn;
use crate::core::input::Held;
use crate::core::timers::Deadline;
use crate::core::{input, layers};
use crate::engine::{Engine, leaves, peer_status};
use crate::interest::ids::ConnId;
use crate::transport::{Allowance, LayerStep, SocketProtocol, Transport};

/// Steps of handshakes in one turn. One takes up to a millisecond, with a long RSA key.
const HANDSHAKE_STEPS_PER_TURN: usize = 1;

impl Conn {
    /// Whether no output is left to be sent.
    pub(crate) fn is_drained(&self) -> bool {
        self.outbox.is_empty() && !self.layers.wants_write()
    }

    /// Returns the allowance for unwrapping the connection's bytes with `work`.
    fn allowance(&self, work: u64) -> Allowance {
        // Bytes of a peer that is not decided about wait as they came: they may be a bomb. INFO is
        // the first that comes; its sender is decided about before there is more.
        let link = self.link.as_ref();
        let held = self.input.held();
        let is_undecided = held.is_some() && (link.is_some() || held == Some(Held::Status));
        let is_piecemeal = link.is_some_and(|link| !link.is_registered());
        Allowance { work, is_held: self.input.waits() || is_undecided, is_piecemeal }
    }
}

impl Reason {
    /// Returns the code of a WebSocket's close frame for this reason, if there is to be one.
    pub(crate) fn close_code(self) -> Option<u16> {
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

impl Engine {
    /// Handles bytes of a connection whose bytes are not the protocol's own.
    pub(crate) fn on_wrapped(&mut self, id: ConnId, bytes: &[u8]) {
        // Nothing follows an end that a layer has reported.
        let has_ended = self.core.conns.get(id).is_none_or(|conn| conn.input.has_ended());
        self.core.input.layers.scratch.begin();
        self.unwrap(id, if has_ended { &[] } else { bytes });
    }

    /// Unwraps `wire`, and what is in the scratch memory, as far as it goes.
    fn unwrap(&mut self, id: ConnId, mut wire: &[u8]) {
        while let Some(conn) = self.core.conns.get_mut(id).filter(|conn| conn.is_open()) {
            if conn.layers.is_bare() {
                // There were fewer layers than there might have been.
                if !wire.is_empty() {
                    self.on_plaintext(id, wire);
                }
                break;
            }
            let allowance = conn.allowance(self.core.budget.room());
            let scratch = &mut self.core.input.layers.scratch;
            let step = conn.layers.next(&mut wire, allowance, scratch);
            self.core.budget.spend(scratch.take_work());
            match step {
                LayerStep::Done => break,
                LayerStep::Plain => {
                    let plain = scratch.take_plain();
                    self.on_plaintext(id, &plain);
                    self.core.input.layers.scratch.keep_plain(plain);
                }
                end @ (LayerStep::Ended | LayerStep::Failed(_)) => {
                    self.on_step(id, end);
                    break;
                }
                step => self.on_step(id, step),
            }
        }
        self.core.input.layers.scratch.finish();
        if let Some(first) = self.core.input.layers.one_too_many(id, &self.core.conns) {
            self.core.fail(first, None, Reason::Protocol("Authentication Timeout"));
        }
        self.core.flush_if_wanted(id);
    }

    fn on_step(&mut self, id: ConnId, step: LayerStep) {
        match step {
            LayerStep::Done | LayerStep::Plain | LayerStep::InClear => {}
            LayerStep::HeaderBegins => layers::on_header_begun(&mut self.core, id),
            LayerStep::Header(source) => layers::on_header(&mut self.core, id, source),
            LayerStep::NoHeader(bytes) => {
                layers::on_header(&mut self.core, id, None);
                if !bytes.is_empty() {
                    self.unwrap(id, &bytes);
                }
            }
            LayerStep::Handshake { is_new, is_much } => {
                if is_new {
                    self.core.input.layers.handshakes.push_back(id);
                }
                if is_much {
                    self.core.brake(id, |brakes| brakes.in_line = true);
                }
            }
            LayerStep::Secured { resumed, own_cert } => self.on_secured(id, resumed, own_cert),
            LayerStep::Request => self.on_request(id),
            LayerStep::Turn => {
                self.core.input.layers.unpacking.push_back(id);
                self.core.brake(id, |brakes| brakes.in_line = true);
            }
            LayerStep::Ended => layers::on_layer_ended(&mut self.core, id, false),
            LayerStep::Failed(failure) => layers::on_unwrapping_failed(&mut self.core, id, failure),
        }
    }

    fn on_request(&mut self, id: ConnId) {
        let Some(conn) = self.core.conns.get_mut(id) else { return };
        let upgraded = match conn.layers.upgrade(self.core.settings.listen.websocket.as_ref()) {
            Ok(upgraded) => upgraded,
            Err(failure) => return layers::on_unwrapping_failed(&mut self.core, id, failure),
        };
        let forwarded_for = upgraded.forwarded_for.unwrap_or_default();
        if upgraded.speaks == SocketProtocol::Mqtt {
            conn.begin_mqtt(Transport::MqttWebSocket);
        }
        if !forwarded_for.is_empty() && self.core.settings.trusts(&conn.peer.ip) {
            // Each proxy appends its client: the last hop that is no trusted proxy is the client.
            let mut hops = forwarded_for.rsplit(',').map(str::trim);
            let client = hops.find(|hop| !self.core.settings.trusts(hop));
            if let Some(client) = client.filter(|hop| hop.parse::<IpAddr>().is_ok()) {
                conn.peer.ip = client.into();
            }
        }
        if upgraded.speaks == SocketProtocol::Leaf {
            return leaves::begin_in_websocket(&mut self.core, id);
        }
        tracing::debug!("{} - Client connection created", conn.label());
        let interval = self.core.settings.ping_interval_of(conn.transport);
        let ping = self.core.times.now.saturating_add(interval);
        conn.deadlines.arm(Deadline::Ping, ping);
        let login = self.core.settings.auth_due(conn.transport, self.core.times.now);
        conn.deadlines.arm(Deadline::Login, login);
        info::send_info(&mut self.core, id, false);
        self.core.rearm(id);
    }

    fn on_secured(&mut self, id: ConnId, resumed: bool, own_cert: Option<CertificateDer<'_>>) {
        let Some(conn) = self.core.conns.get_mut(id) else { return };
        let is_leaf = conn.link.as_ref().is_some_and(|link| link.leaf().is_some());
        let tls = self.core.settings.tls_for(conn);
        if tls.is_none() && !is_leaf {
            return;
        }
        let Some(info) = conn.layers.tls() else { return };
        let (label, how) = (conn.label(), if resumed { ", resumed" } else { "" });
        tracing::debug!("{label} - TLS handshake complete");
        tracing::debug!(
            "{label} - TLS version {}, cipher suite {}{how}",
            info.version,
            info.cipher_suite
        );
        if tls.is_some_and(|tls| !layers::is_pinned(tls, info)) {
            layers::fail_handshake(&mut self.core, id, "the certificate is not in pinned_certs");
            return;
        }
        if tls.is_some_and(|tls| tls.map) {
            conn.login.cert_names = own_cert.map(|cert| Box::new(certificate::names(&cert)));
        }
        if !peer_status::ask(&mut self.core, id) {
            peer_status::greet_secured(&mut self.core, id);
        }
    }

    /// Takes the next steps of handshakes.
    pub(crate) fn advance_handshakes(&mut self) {
        for _ in 0..HANDSHAKE_STEPS_PER_TURN {
            let Some(id) = self.core.input.layers.handshakes.pop_front() else { return };
            let Some(conn) = self.core.conns.get_mut(id).filter(|conn| conn.is_open()) else {
                continue;
            };
            let wants_session = conn.layers.grant_handshake();
            self.core.release(id, |brakes| brakes.in_line = false);
            if !wants_session || layers::start_tls(&mut self.core, id) {
                self.on_wrapped(id, &[]);
            }
            input::end_if_heard(&mut self.core, id);
        }
    }

    /// Continues one of the connections with compressed data that waits.
    pub(crate) fn advance_unpacking(&mut self) {
        let Some(id) = self.core.input.layers.unpacking.pop_front() else { return };
        let Some(conn) = self.core.conns.get_mut(id).filter(|conn| conn.is_open()) else { return };
        if conn.input.waits() {
            return; // Input that waits comes first; its end resumes the connection.
        }
        self.core.budget.serve_input();
        self.core.input.layers.scratch.begin();
        conn.layers.grant_turn(&mut self.core.input.layers.scratch);
        self.core.release(id, |brakes| brakes.in_line = false);
        self.unwrap(id, &[]);
        input::end_if_heard(&mut self.core, id);
    }

    /// Continues input that waits in the layers around the protocol, and be it the end: everything
    /// before it is handled.
    pub(crate) fn resume_unwrapping(&mut self, id: ConnId) {
        let Some(conn) = self.core.conns.get(id) else { return };
        if conn.layers.has_end() {
            self.on_wrapped(id, &[]);
        } else if conn.layers.wants_turn() {
            self.core.input.layers.unpacking.push_back(id);
        }
        input::end_if_heard(&mut self.core, id);
    }
}

#[cfg(test)]
mod header_tests;

#[cfg(test)]
mod s2_tests;

#[cfg(test)]
mod tls_tests;

#[cfg(test)]
mod websocket_tests;
