//! What is between the wire and the protocol of one connection.
//!
//! Most connections have nothing there: their bytes are the protocol's own, and one look
//! (`Layers::is_bare`) says so. Others have up to three layers, the outermost first:
//!
//! 1. the header by which a proxy names its client (`proxy_header`, until it is over);
//! 2. TLS (`tls`), expected or optional, of a client or between servers;
//! 3. WebSocket (`websocket`) of a client, or S2 (`s2`) of a route.
//!
//! Bytes off the wire are pulled through them by `Layers::next`, step by step: each `Step` says
//! what has come of them, or what has to be done before it goes on. What unwrapping may cost is
//! given with each call (`Allowance`); what it has cost, `LayerScratch::take_work` says. Two
//! things are not done when they come but when it is their turn, which the caller grants: the next
//! step of a handshake, and what is left of compressed data when much has come of it.
//!
//! In the other direction `Layers::take` makes a batch of what an outbox holds, and
//! `Layers::on_sent` says how much of the outbox is gone when the kernel has taken so much.
//!
//! Pure: no sockets and no clock. Who is at the other end, what it may do and how long it may take
//! is not known here.

#![forbid(unsafe_code)]

mod layers;
mod proxy_header;
mod s2;
mod settings;
mod tls;
mod websocket;

use core::net::IpAddr;

use rustls::pki_types::CertificateDer;

use crate::auth::ConnectionType;
use crate::output::{Outbox, Spares};
use crate::proto::proxy::ProxyError;
pub(crate) use layers::Layers;
use s2::Encoder;
pub(crate) use s2::negotiate;
pub use settings::{
    Compression, Cookies, HandshakeFirst, MutualTls, Network, Tls, WebSocketSettings,
};
pub use tls::TlsInfo;
use websocket::deflate::Packer;

/// What is encrypted or compressed at once, in bytes: each receiver needs a copy of its own of it.
const BATCH_BYTES_MAX: usize = 64 * 1024;
/// What is taken out of frames or chunks is handled at this many bytes.
const CLEAR_BYTES_MAX: usize = 64 * 1024;
/// When so much has come of a connection's compressed data, in bytes, the rest waits for the next
/// turn: a thousand times as much, and more, can come of it.
pub(crate) const UNPACKED_BYTES_PER_TURN: usize = 1024 * 1024;

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
    pub(crate) fn kind(self) -> ConnectionType {
        match self {
            Self::Tcp | Self::Unix(_) => ConnectionType::Standard,
            Self::WebSocket => ConnectionType::Websocket,
        }
    }
}

/// The process at the other end of a Unix socket, when it connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// Process id.
    pub pid: u32,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
}

/// What has come of a connection's bytes, or has to be done before more can.
#[derive(Debug)]
pub(crate) enum Step {
    /// Nothing more before more bytes come, or before what waits is granted.
    Done,
    /// The protocol's next bytes: [`LayerScratch::take_plain`].
    Plain,
    /// The first part of a proxy's header, and not all of it.
    HeaderBegins,
    /// The whole of one: the address and port of whom it names, if anybody.
    Header(Option<(IpAddr, u16)>),
    /// There is none. These bytes, which could have been the beginning of one, come first.
    NoHeader(Vec<u8>),
    /// There is to be no TLS.
    InClear,
    /// The next step of a TLS handshake waits for [`Layers::grant_handshake`].
    Handshake {
        /// It did not before.
        is_new: bool,
        /// More has come than a step needs.
        is_much: bool,
    },
    /// A TLS handshake is done: [`Layers::tls`].
    Secured {
        /// It goes on with an earlier session.
        resumed: bool,
        /// The certificate of the other end, if it has shown one.
        own_cert: Option<CertificateDer<'static>>,
    },
    /// A request to become a WebSocket is whole: [`Layers::upgrade`].
    Request,
    /// What is left waits for [`Layers::grant_turn`], since much has come of what there was.
    Turn,
    /// The other end has said that nothing follows.
    Ended,
    /// The bytes make no sense.
    Failed(Failure),
}

/// What is wrong with bytes off the wire.
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

/// How far a connection's bytes may be unwrapped now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Allowance {
    /// What it may cost, in units of about a nanosecond.
    pub(crate) work: u64,
    /// What came before is not handled yet: frames and chunks wait until it is.
    pub(crate) is_held: bool,
    /// Whatever comes of a chunk is handled before there is more.
    pub(crate) is_piecemeal: bool,
}

/// What it is that a batch is taken for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taking {
    /// Nothing follows what is in the outbox.
    pub(crate) is_last: bool,
    /// How long a round trip takes, in nanoseconds.
    pub(crate) rtt_ns: u64,
}

/// Memory for unwrapping and wrapping, one for all connections of a shard: nothing in it outlives
/// the bytes of one connection that are being handled.
#[derive(Debug, Default)]
pub(crate) struct LayerScratch {
    /// What is within TLS, or has waited there, …
    cleartext: Vec<u8>,
    /// … and how much of it is unwrapped.
    taken_bytes: usize,
    bench: Bench,
}

/// What the layers within TLS work with.
#[derive(Debug, Default)]
struct Bench {
    plain: Vec<u8>,
    packer: Packer,
    encoder: Encoder,
    /// Something was unwrapped.
    has_begun: bool,
    /// What has come of compressed data.
    unpacked_bytes: usize,
    /// What that has cost, and was not told.
    work: u64,
}

/// A batch that is being made.
struct Wrapping<'a> {
    outbox: &'a mut Outbox,
    spares: &'a mut Spares,
    bench: &'a mut Bench,
    taking: Taking,
}

impl Bench {
    /// So much has come of compressed data, for so much work a byte.
    fn count_unpacked(&mut self, bytes: usize, work: u64) {
        self.unpacked_bytes += bytes;
        self.work += work * bytes as u64;
    }

    /// Whether others should have their turn.
    fn has_much(&self) -> bool {
        self.unpacked_bytes > UNPACKED_BYTES_PER_TURN
    }
}

impl LayerScratch {
    /// Bytes of a connection are going to be unwrapped.
    pub(crate) fn begin(&mut self) {
        (self.taken_bytes, self.bench.has_begun, self.bench.unpacked_bytes) = (0, false, 0);
    }

    /// They are. What a bomb has made of the memory is not kept.
    pub(crate) fn finish(&mut self) {
        for buffer in [&mut self.cleartext, &mut self.bench.plain] {
            buffer.clear();
            buffer.shrink_to(2 * CLEAR_BYTES_MAX);
        }
    }

    /// The protocol's bytes that [`Step::Plain`] has announced.
    pub(crate) fn take_plain(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bench.plain)
    }

    /// Takes the memory of [`LayerScratch::take_plain`] back.
    pub(crate) fn keep_plain(&mut self, mut plain: Vec<u8>) {
        plain.clear();
        self.bench.plain = plain;
    }

    /// What unwrapping has cost since this was last asked, in units of about a nanosecond.
    pub(crate) fn take_work(&mut self) -> u64 {
        std::mem::take(&mut self.bench.work)
    }

    /// Bytes of memory that is kept for the next connection.
    #[cfg(test)]
    pub(crate) fn kept_bytes(&self) -> usize {
        self.cleartext.capacity() + self.bench.plain.capacity()
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
