//! What carries a connection, and what a proxy says of it before it begins.

#![forbid(unsafe_code)]

use core::net::IpAddr;

use super::{ConnId, Engine, Reason};
use crate::auth::ConnectionType;
use crate::proto::proxy::{self, Beginning};

/// How long a proxy's header may take once it has begun.
const PREFACE_NS: u64 = 5_000_000_000;

/// What carries a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Transport {
    /// TCP, with or without TLS.
    #[default]
    Tcp,
    /// A Unix socket; TLS is not asked for.
    Unix(Credentials),
    /// WebSocket, with or without TLS.
    WebSocket,
}

impl Transport {
    /// What users are allowed by that come so.
    pub(super) fn kind(self) -> ConnectionType {
        match self {
            Self::Tcp | Self::Unix(_) => ConnectionType::Standard,
            Self::WebSocket => ConnectionType::Websocket,
        }
    }
}

/// The process at the other end of a Unix socket, when it connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// Its id.
    pub pid: u32,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

/// The first bytes of a connection that may begin with a proxy's header.
#[derive(Debug, Default)]
pub(super) struct Preface(Vec<u8>);

impl Engine {
    /// Expects a header of the connection if it may have one.
    pub(super) fn begin_preface(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let settings = &self.settings;
        if settings.proxy_protocol && conn.transport == Transport::Tcp {
            let nobody_named = settings.trusted_proxies.is_empty();
            if nobody_named || settings.trusts(&conn.peer.ip) {
                conn.preface = Some(Box::default());
            }
        }
    }

    /// Handles what came for a connection whose bytes are not the protocol's own.
    pub(super) fn on_wrapped(&mut self, id: ConnId, bytes: &[u8]) {
        let preface = self.conns.get_mut(id).and_then(|conn| conn.preface.take());
        match preface {
            Some(preface) => self.on_preface(id, *preface, bytes),
            None => self.on_unprefaced(id, bytes),
        }
    }

    fn on_preface(&mut self, id: ConnId, Preface(mut head): Preface, bytes: &[u8]) {
        let has_begun = !head.is_empty();
        let input = if has_begun {
            head.extend_from_slice(bytes);
            &head
        } else {
            bytes
        };
        match proxy::parse(input) {
            Ok(Beginning::Incomplete) => {
                if !has_begun {
                    head.extend_from_slice(bytes);
                }
                let Some(conn) = self.conns.get_mut(id) else { return };
                conn.preface = Some(Box::new(Preface(head)));
                if !has_begun {
                    let due = self.now.saturating_add(PREFACE_NS);
                    conn.timing.preface_due = due;
                    self.rearm(id);
                }
            }
            Ok(Beginning::Header { source, used }) => {
                let Some(conn) = self.conns.get_mut(id) else { return };
                conn.timing.preface_due = super::NEVER;
                if let Some((ip, port)) = source {
                    let before = conn.label();
                    (conn.peer.ip, conn.peer.port) = (ip.to_string().into(), port);
                    tracing::debug!("{} - speaks by proxy {before}", conn.label());
                }
                let rest = input[used..].to_vec();
                self.on_unprefaced(id, &rest);
            }
            Ok(Beginning::Other) => {
                if let Some(conn) = self.conns.get_mut(id) {
                    conn.timing.preface_due = super::NEVER;
                }
                self.on_unprefaced(id, input);
            }
            Err(error) => self.fail_preface(id, &error.to_string()),
        }
    }

    pub(super) fn fail_preface(&mut self, id: ConnId, why: &str) {
        if let Some(conn) = self.conns.get(id) {
            let label = conn.label();
            tracing::warn!("Error reading PROXY protocol header from {label}: {why}");
        }
        self.fail(id, None, Reason::Protocol("Protocol Violation"));
    }

    fn on_unprefaced(&mut self, id: ConnId, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if !self.on_ciphertext(id, bytes) {
            self.on_cleartext(id, bytes);
        }
    }

    /// Handles what is left without TLS.
    pub(super) fn on_cleartext(&mut self, id: ConnId, bytes: &[u8]) {
        match self.conns.get(id) {
            Some(conn) if conn.websocket.is_some() => self.on_frames(id, bytes),
            Some(conn) if conn.packing.is_some() => self.on_packed(id, bytes),
            _ => self.on_plaintext(id, bytes),
        }
    }
}

impl super::Settings {
    /// Whether a proxy at `ip` is believed.
    pub(super) fn trusts(&self, ip: &str) -> bool {
        let Ok(ip) = ip.parse::<IpAddr>() else { return false };
        self.trusted_proxies.iter().any(|network| network.contains(ip))
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::config::Options;
    use crate::engine::{Action, Identity, Peer, Settings, ShardId};

    const ID: ConnId = ConnId { slot: 0, generation: 0 };

    /// An engine with a connection from 127.0.0.1, and proxies trusted there or nowhere.
    fn behind_proxy(trusted: &[&str]) -> Engine {
        let trusted_proxies = trusted.iter().map(|network| network.parse().unwrap()).collect();
        let options = Options { proxy_protocol: true, trusted_proxies, ..Options::default() };
        let settings = Settings::new(&options, &Identity::default(), usize::MAX);
        let mut engine = Engine::new(ShardId(0), 1, Rc::new(settings), 1);
        engine.open(ID, Peer { cid: 1, ip: "127.0.0.1".into(), port: 9 }, true);
        engine
    }

    fn who(engine: &Engine) -> (String, u16) {
        let conn = &engine.conns_page(0).entries[0];
        (conn.ip.to_string(), conn.port)
    }

    fn heard(engine: &mut Engine) -> String {
        let batch = engine.take_batch(ID).unwrap_or_default();
        let bytes: Vec<u8> = batch.iter().flat_map(|piece| piece.bytes()).copied().collect();
        engine.on_sent(ID, bytes.len(), Some(batch));
        let text = String::from_utf8(bytes).unwrap();
        text.rsplit_once('}').map_or(text.clone(), |(_, rest)| rest.trim().to_owned())
    }

    const HEADER: &[u8] = b"PROXY TCP4 9.8.7.6 5.6.7.8 1111 2222\r\nCONNECT {}\r\nPING\r\n";

    #[test]
    fn the_client_that_a_proxy_names_is_shown_wherever_its_header_is_cut() {
        for cut in 0..HEADER.len() {
            let mut engine = behind_proxy(&[]);
            engine.on_bytes(ID, &HEADER[..cut]);
            engine.on_bytes(ID, &HEADER[cut..]);
            assert_eq!(who(&engine), ("9.8.7.6".to_owned(), 1111), "cut at {cut}");
            assert_eq!(heard(&mut engine), "+OK\r\nPONG", "cut at {cut}");
        }
    }

    #[test]
    fn who_comes_without_a_header_is_served() {
        let mut engine = behind_proxy(&[]);
        engine.on_bytes(ID, b"P");
        engine.on_bytes(ID, b"ING\r\n");
        assert_eq!(heard(&mut engine), "PONG");
        assert_eq!(who(&engine).1, 9);
    }

    #[test]
    fn a_header_is_believed_of_trusted_proxies_only() {
        let mut engine = behind_proxy(&["127.0.0.0/8"]);
        engine.on_bytes(ID, HEADER);
        assert_eq!(who(&engine).1, 1111);
        let mut engine = behind_proxy(&["10.0.0.0/8"]);
        engine.on_bytes(ID, HEADER);
        assert_eq!(heard(&mut engine), "-ERR 'Unknown Protocol Operation'");
    }

    #[test]
    fn a_header_that_does_not_end_is_waited_for_no_longer_than_it_may_take() {
        let mut engine = behind_proxy(&[]);
        engine.on_bytes(ID, &HEADER[..10]);
        engine.set_now(PREFACE_NS - 1);
        engine.tick();
        assert_eq!(engine.open_conns(), 1);
        heard(&mut engine);
        engine.set_now(PREFACE_NS);
        engine.tick();
        let closed = std::iter::from_fn(|| engine.next_action())
            .any(|action| matches!(action, Action::Close { .. }));
        assert!(closed);
    }

    #[test]
    fn a_broken_header_ends_the_connection() {
        let mut engine = behind_proxy(&[]);
        heard(&mut engine);
        engine.on_bytes(ID, b"PROXY TCP4 nobody\r\nPING\r\n");
        assert_eq!(engine.open_conns(), 0);
    }
}
