//! Layers between the wire and the protocol of one connection.
//!
//! Most connections have none: their bytes are the protocol's own, and one check
//! (`Layers::is_bare`) shows it. Others have up to three layers, the outermost first:
//!
//! 1. the header by which a proxy names its client (`proxy_header`, until it is over);
//! 2. TLS (`tls`), expected or optional, of a client or between servers;
//! 3. WebSocket (`websocket`) of a client or leaf node, or S2 (`s2`) of a route.
//!
//! Bytes off the wire are pulled through them by `Layers::next`: each `LayerStep` is a result, or a
//! task to be done before the next step. The cost that unwrapping may have is given
//! with each call (`Allowance`); `LayerScratch::take_work` returns the cost it has had. Two things
//! are done only when the caller grants them their turn: the next step of a handshake, and the rest
//! of compressed data when much of it was unwrapped.
//!
//! In the other direction `Layers::take` makes a batch of an outbox's pieces, and `Layers::on_sent`
//! returns the bytes of the outbox that are sent when the kernel has taken so many.
//!
//! Pure: no sockets and no clock. The identity of the peer, its permissions and its deadlines are
//! not known here.

#![forbid(unsafe_code)]

mod layers;
mod proxy_header;
mod s2;
mod settings;
mod staple;
mod tls;
mod websocket;

use core::net::IpAddr;

use rustls::pki_types::CertificateDer;

use crate::auth::ConnectionType;
use crate::output::{Outbox, Spares};
use crate::proto::proxy::ProxyError;
pub(crate) use layers::Layers;
use s2::Encoder;
pub(crate) use s2::{S2Reader, S2Writer, negotiate};
pub use settings::{
    Compression, Cookies, DialedTls, HandshakeFirst, MutualTls, Network, Tls, WebSocketSettings,
};
pub use staple::Staple;
pub use tls::TlsInfo;
use websocket::deflate::Packer;
pub(crate) use websocket::dial::WebSocketDial;

/// Bytes that are encrypted or compressed at once: each receiver needs its own copy of them.
const BATCH_BYTES_MAX: usize = 64 * 1024;
/// Bytes out of frames or chunks after which they are handled.
const CLEAR_BYTES_MAX: usize = 64 * 1024;
/// Decompressed bytes of one connection after which the rest waits for the next turn: compressed
/// data can become a thousand times as long, and more.
pub(crate) const UNPACKED_BYTES_PER_TURN: usize = 1024 * 1024;

/// The transport of a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Transport {
    /// TCP, with or without TLS.
    #[default]
    Tcp,
    /// A Unix socket; there is no TLS.
    Unix(Credentials),
    /// WebSocket, with or without TLS.
    WebSocket,
    /// TCP to another server's leaf node port, or from a leaf node; with or without TLS.
    Leaf,
    /// WebSocket of a leaf node, or to a hub; with or without TLS.
    LeafWebSocket,
    /// MQTT over TCP, with or without TLS.
    Mqtt,
    /// MQTT in a WebSocket, with or without TLS.
    MqttWebSocket,
}

impl Transport {
    /// Whether the connection is one of leaf nodes.
    pub(crate) fn is_leaf(self) -> bool {
        matches!(self, Self::Leaf | Self::LeafWebSocket)
    }

    /// Whether the connection is one of MQTT.
    pub(crate) fn is_mqtt(self) -> bool {
        matches!(self, Self::Mqtt | Self::MqttWebSocket)
    }

    /// Returns the type of connection to which users can be bound.
    pub(crate) fn kind(self) -> ConnectionType {
        match self {
            Self::Tcp | Self::Unix(_) => ConnectionType::Standard,
            Self::WebSocket => ConnectionType::Websocket,
            Self::Leaf => ConnectionType::Leafnode,
            Self::LeafWebSocket => ConnectionType::LeafnodeWs,
            Self::Mqtt => ConnectionType::Mqtt,
            Self::MqttWebSocket => ConnectionType::MqttWs,
        }
    }
}

/// The process at the other end of a Unix socket, as it was when it connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// Process id.
    pub pid: u32,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
}

/// The result of a step of unwrapping, or a task before the next step.
#[derive(Debug)]
pub(crate) enum LayerStep {
    /// An end for now: more bytes must come, or waiting input must be granted its turn.
    Done,
    /// Bytes of the protocol, in [`LayerScratch::take_plain`].
    Plain,
    /// A first part of a proxy's header.
    HeaderBegins,
    /// A whole proxy's header, with the address and port of the client that it names, if it does.
    Header(Option<(IpAddr, u16)>),
    /// The absence of a proxy's header. These bytes, which could have begun one, come first.
    NoHeader(Vec<u8>),
    /// The absence of TLS on a connection where it is optional.
    InClear,
    /// A step of a TLS handshake that waits for [`Layers::grant_handshake`].
    Handshake {
        /// Whether the step has just begun to wait.
        is_new: bool,
        /// Whether more bytes have come than a step needs.
        is_much: bool,
    },
    /// A TLS handshake that is complete: [`Layers::tls`].
    Secured {
        /// Whether an earlier session was resumed.
        resumed: bool,
        /// The peer's certificate, if it has shown one.
        own_cert: Option<CertificateDer<'static>>,
    },
    /// A whole request for a WebSocket, for [`Layers::upgrade`].
    Request,
    /// A pause: much was unwrapped, and the rest waits for [`Layers::grant_turn`].
    Turn,
    /// An orderly end of the peer's bytes.
    Ended,
    /// Bytes that break the rules of a layer.
    Failed(Failure),
}

/// The layer whose rules were broken, with the reason.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A proxy's header.
    Header(ProxyError),
    /// A TLS handshake.
    Handshake(String),
    /// A TLS session.
    Tls(String),
    /// The request to become a WebSocket.
    Upgrade(&'static str),
    /// A WebSocket's frames.
    Frames(&'static str),
    /// A stream of S2.
    S2(&'static str),
}

/// A request for a WebSocket that was granted.
#[derive(Debug, Default)]
pub(crate) struct Upgraded {
    /// The addresses that the request has passed, the client's first, as proxies have named them.
    pub(crate) forwarded_for: Option<String>,
    /// The protocol that is spoken in the WebSocket.
    pub(crate) speaks: SocketProtocol,
}

/// The protocol that a request for a WebSocket asks for, by its path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum SocketProtocol {
    /// The protocol of clients.
    #[default]
    Client,
    /// MQTT.
    Mqtt,
    /// The protocol of leaf nodes.
    Leaf,
}

/// The limits of unwrapping a connection's bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Allowance {
    /// The highest cost, in units of about 1 ns.
    pub(crate) work: u64,
    /// Whether earlier input is not handled yet: frames and chunks wait until it is.
    pub(crate) is_held: bool,
    /// Whether the contents of a chunk are handled before the next chunk is unwrapped.
    pub(crate) is_piecemeal: bool,
}

/// The circumstances in which a batch is taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taking {
    /// Whether the outbox holds the connection's last output.
    pub(crate) is_last: bool,
    /// The round-trip time of the connection, in nanoseconds.
    pub(crate) rtt_ns: u64,
}

/// Memory for unwrapping and wrapping, one for all connections of a shard; it holds bytes of a
/// connection only while they are handled.
#[derive(Debug, Default)]
pub(crate) struct LayerScratch {
    /// Bytes decrypted by TLS, or those that have waited within it.
    cleartext: Vec<u8>,
    /// Bytes of `cleartext` that are already unwrapped.
    taken_bytes: usize,
    bench: Bench,
}

/// Memory and tools of the layers within TLS.
#[derive(Debug, Default)]
struct Bench {
    plain: Vec<u8>,
    packer: Packer,
    encoder: Encoder,
    /// Whether something was unwrapped for this connection.
    has_begun: bool,
    /// Decompressed bytes of this connection.
    unpacked_bytes: usize,
    /// The cost of unwrapping that `take_work` has not returned yet, in units of about 1 ns.
    work: u64,
}

/// The context of a batch that is being made.
struct Wrapping<'a> {
    outbox: &'a mut Outbox,
    spares: &'a mut Spares,
    bench: &'a mut Bench,
    taking: Taking,
}

impl Bench {
    /// Counts decompressed bytes, at a cost of `work` for each.
    fn count_unpacked(&mut self, bytes: usize, work: u64) {
        self.unpacked_bytes += bytes;
        self.work += work * bytes as u64;
    }

    /// Whether other connections should have their turn.
    fn has_much(&self) -> bool {
        self.unpacked_bytes > UNPACKED_BYTES_PER_TURN
    }
}

impl LayerScratch {
    /// Begins the unwrapping of a connection's bytes.
    pub(crate) fn begin(&mut self) {
        (self.taken_bytes, self.bench.has_begun, self.bench.unpacked_bytes) = (0, false, 0);
    }

    /// Ends the unwrapping, and frees memory that highly compressed data has taken.
    pub(crate) fn finish(&mut self) {
        for buffer in [&mut self.cleartext, &mut self.bench.plain] {
            buffer.clear();
            buffer.shrink_to(2 * CLEAR_BYTES_MAX);
        }
    }

    /// Takes the protocol's bytes that [`LayerStep::Plain`] has announced.
    pub(crate) fn take_plain(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bench.plain)
    }

    /// Takes the memory of [`LayerScratch::take_plain`] back.
    pub(crate) fn keep_plain(&mut self, mut plain: Vec<u8>) {
        plain.clear();
        self.bench.plain = plain;
    }

    /// Returns the cost of unwrapping since the last call, in units of about 1 ns.
    pub(crate) fn take_work(&mut self) -> u64 {
        std::mem::take(&mut self.bench.work)
    }

    /// Returns the bytes of memory that are kept for the next connection.
    #[cfg(test)]
    pub(crate) fn kept_bytes(&self) -> usize {
        self.cleartext.capacity() + self.bench.plain.capacity()
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
