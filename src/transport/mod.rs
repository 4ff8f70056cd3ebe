//! What is between the wire and the protocol of one connection.
//!
//! Most connections have nothing there: their bytes are the protocol's own, and one look
//! ([`Layers::is_bare`]) says so. Others have up to three layers, the outermost first:
//!
//! 1. the header by which a proxy names its client ([`proxy_header`], until it is over);
//! 2. TLS ([`tls`]), expected or optional, of a client or between servers;
//! 3. WebSocket ([`websocket`]) of a client, or S2 ([`s2`]) of a route.
//!
//! Bytes off the wire are pulled through them by [`Layers::next`], step by step: each [`Step`] says
//! what has come of them, or what has to be done before it goes on. What unwrapping may cost is
//! given with each call ([`Allowance`]); what it has cost, [`LayerScratch::take_work`] says. Two
//! things are not done when they come but when it is their turn, which the caller grants: the next
//! step of a handshake, and what is left of compressed data when much has come of it.
//!
//! In the other direction [`Layers::take`] makes a batch of what an outbox holds, and
//! [`Layers::on_sent`] says how much of the outbox is gone when the kernel has taken so much.
//!
//! Pure: no sockets and no clock. Who is at the other end, what it may do and how long it may take
//! is not known here.

#![forbid(unsafe_code)]

mod proxy_header;
mod s2;
mod settings;
mod tls;
mod websocket;

use core::net::IpAddr;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ServerConfig};

use crate::auth::ConnectionType;
use crate::output::{InFlight, Outbox, Piece, Spares};
use crate::proto::Connect;
use crate::proto::proxy::ProxyError;
use proxy_header::ProxyHeader;
pub(crate) use s2::negotiate;
use s2::{Encoder, S2Layer};
pub use settings::{
    Compression, Cookies, HandshakeFirst, MutualTls, Network, Tls, WebSocketSettings,
};
pub use tls::TlsInfo;
use tls::TlsLayer;
use websocket::WebSocketLayer;
use websocket::deflate::Packer;

/// What is encrypted or compressed at once, in bytes: each receiver needs a copy of its own of it.
const BATCH_BYTES_MAX: usize = 64 * 1024;
/// The longest frame of a WebSocket that has no TLS, in bytes: a batch ends with the piece that
/// makes it so long.
const FRAME_BYTES_MAX: usize = 1024 * 1024;
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
    /// Its id.
    pub pid: u32,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
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

/// What is between the wire and the protocol of one connection; most have nothing.
#[derive(Debug, Default)]
pub(crate) struct Layers(Option<Box<Stack>>);

/// The layers of a connection that has any, the outermost first.
#[derive(Debug, Default)]
struct Stack {
    header: Option<ProxyHeader>,
    tls: Option<Box<TlsLayer>>,
    inner: Inner,
    /// Bytes of the outbox behind what is in flight that are not counted as sent yet.
    in_flight: InFlight,
}

/// What is within TLS.
#[derive(Debug, Default)]
enum Inner {
    #[default]
    Protocol,
    WebSocket(Box<WebSocketLayer>),
    S2(Box<S2Layer>),
}

impl Layers {
    /// Whether bytes are the protocol's own: the one look that a plain connection pays.
    #[inline]
    pub(crate) fn is_bare(&self) -> bool {
        self.0.is_none()
    }

    fn stack(&mut self) -> &mut Stack {
        self.0.get_or_insert_default()
    }

    fn websocket(&self) -> Option<&WebSocketLayer> {
        match self.0.as_deref() {
            Some(Stack { inner: Inner::WebSocket(websocket), .. }) => Some(websocket),
            _ => None,
        }
    }

    fn websocket_mut(&mut self) -> Option<&mut WebSocketLayer> {
        match self.0.as_deref_mut() {
            Some(Stack { inner: Inner::WebSocket(websocket), .. }) => Some(websocket),
            _ => None,
        }
    }

    fn s2(&self) -> Option<&S2Layer> {
        match self.0.as_deref() {
            Some(Stack { inner: Inner::S2(s2), .. }) => Some(s2),
            _ => None,
        }
    }

    fn tls_layer(&self) -> Option<&TlsLayer> {
        self.0.as_deref().and_then(|stack| stack.tls.as_deref())
    }

    fn tls_mut(&mut self) -> Option<&mut TlsLayer> {
        self.0.as_deref_mut().and_then(|stack| stack.tls.as_deref_mut())
    }

    /// A proxy's header may come first.
    pub(crate) fn expect_header(&mut self) {
        self.stack().header = Some(ProxyHeader::default());
    }

    /// The other end begins a TLS handshake.
    pub(crate) fn expect_tls(&mut self) {
        self.stack().tls = Some(Box::new(TlsLayer::expected()));
    }

    /// The other end begins a TLS handshake, or speaks without.
    pub(crate) fn allow_tls(&mut self) {
        self.stack().tls = Some(Box::new(TlsLayer::optional()));
    }

    /// Begins a TLS handshake with a server whose certificate has to be for `host`.
    ///
    /// # Errors
    ///
    /// `host` cannot be in a certificate.
    pub(crate) fn dial_tls(&mut self, config: Arc<ClientConfig>, host: &str) -> Result<(), String> {
        let tls = TlsLayer::dialing(config, host)?;
        self.stack().tls = Some(Box::new(tls));
        Ok(())
    }

    /// The other end asks for a WebSocket.
    pub(crate) fn expect_websocket(&mut self) {
        self.stack().inner = Inner::WebSocket(Box::default());
    }

    /// From here on both directions are compressed. `head` is sent before that, as it is; what is
    /// in flight of the outbox is not compressed yet. What comes waits for
    /// [`Layers::grant_turn`].
    pub(crate) fn begin_s2(&mut self, mode: Compression, head: Vec<u8>, outbox: &Outbox) {
        let was_bare = self.is_bare();
        let stack = self.stack();
        if was_bare {
            stack.in_flight.set(outbox.pending_bytes() - outbox.queued_bytes());
        }
        stack.inner = Inner::S2(Box::new(S2Layer::new(mode, head)));
    }

    /// Whether compression was agreed upon with the operation that was just handled: what follows
    /// is for [`Layers::put_aside`].
    #[inline]
    pub(crate) fn begins_s2(&self) -> bool {
        self.s2().is_some_and(|s2| s2.begins)
    }

    /// Compressed bytes that were taken for the protocol's wait behind those that do.
    pub(crate) fn put_aside(&mut self, mut bytes: &[u8]) {
        if let Inner::S2(s2) = &mut self.stack().inner {
            s2.put_aside(&mut bytes);
        }
    }

    /// Unwraps what came off the wire, one step; `wire` is what is left of it.
    pub(crate) fn next(
        &mut self,
        wire: &mut &[u8],
        allowance: Allowance,
        scratch: &mut LayerScratch,
    ) -> Step {
        let Some(stack) = self.0.as_deref_mut() else { return Step::Done };
        let step = stack.next(wire, allowance, scratch);
        if stack.is_over() {
            self.0 = None;
        }
        step
    }

    /// It is its turn to take the next step of its handshake, with [`Layers::next`]. True if a
    /// session is needed before: [`Layers::start_tls`].
    pub(crate) fn grant_handshake(&mut self) -> bool {
        self.tls_mut().is_some_and(|tls| {
            tls.grant_step();
            !tls.has_session()
        })
    }

    /// Answers the handshake that the other end has begun. Returns whether it need not have.
    ///
    /// # Errors
    ///
    /// rustls has no session for the configuration.
    pub(crate) fn start_tls(&mut self, config: Arc<ServerConfig>) -> Result<bool, String> {
        self.tls_mut().map_or(Ok(false), |tls| tls.start(config))
    }

    /// It is its turn to have unwrapped what waits, with [`Layers::next`].
    pub(crate) fn grant_turn(&mut self, scratch: &mut LayerScratch) {
        let (in_line, waiting) = match self.0.as_deref_mut().map(|stack| &mut stack.inner) {
            Some(Inner::WebSocket(websocket)) => (&mut websocket.in_line, &mut websocket.waiting),
            Some(Inner::S2(s2)) => {
                s2.begins = false;
                (&mut s2.in_line, &mut s2.waiting)
            }
            _ => return,
        };
        *in_line = false;
        (scratch.cleartext, scratch.taken_bytes) = (std::mem::take(waiting), 0);
    }

    /// Makes a WebSocket of the connection whose request is whole, or refuses that. Returns what
    /// the request says in `X-Forwarded-For`. Without `settings` it is refused.
    ///
    /// # Errors
    ///
    /// Why it is refused; the other end is told what it needs to know.
    pub(crate) fn upgrade(
        &mut self,
        settings: Option<&WebSocketSettings>,
    ) -> Result<Option<String>, Failure> {
        self.websocket_mut().map_or(Ok(None), |websocket| websocket.upgrade(settings))
    }

    /// Whether input waits for [`Layers::grant_turn`], or its end for what came before it.
    pub(crate) fn waits(&self) -> bool {
        match self.0.as_deref().map(|stack| &stack.inner) {
            Some(Inner::WebSocket(websocket)) => websocket.waits(),
            Some(Inner::S2(s2)) => s2.in_line,
            _ => false,
        }
    }

    /// Whether it waits for [`Layers::grant_turn`].
    pub(crate) fn wants_turn(&self) -> bool {
        self.waits() && !self.has_end()
    }

    /// Whether the end of the input waits for what came before it.
    pub(crate) fn has_end(&self) -> bool {
        self.websocket().is_some_and(WebSocketLayer::has_end)
    }

    /// The next batch as it goes over the wire; none while one is in flight, or if nothing may go.
    #[inline]
    pub(crate) fn take(
        &mut self,
        outbox: &mut Outbox,
        spares: &mut Spares,
        scratch: &mut LayerScratch,
        taking: Taking,
    ) -> Option<Vec<Piece>> {
        let Some(stack) = self.0.as_deref_mut() else { return outbox.take(spares) };
        stack.take(Wrapping { outbox, spares, bench: &mut scratch.bench, taking })
    }

    /// How many bytes of the outbox `bytes` on the wire stand for.
    #[inline]
    pub(crate) fn on_sent(&mut self, bytes: usize, complete: bool) -> usize {
        match self.0.as_deref_mut() {
            Some(stack) if stack.wraps() => stack.in_flight.on_sent(bytes, complete),
            _ => bytes,
        }
    }

    /// Whether something is to be sent that is in no outbox.
    #[inline]
    pub(crate) fn wants_write(&self) -> bool {
        self.0.as_deref().is_some_and(Stack::wants_write)
    }

    /// The connection ends: a WebSocket's last frame says so, unless something else is decided.
    pub(crate) fn end(&mut self, code: u16, text: &str) {
        if let Some(websocket) = self.websocket_mut() {
            websocket.end(code, text);
        }
    }

    /// Tells the other end that nothing follows, once all is said.
    pub(crate) fn say_goodbye(&mut self) {
        if let Some(stack) = self.0.as_deref_mut() {
            stack.say_goodbye();
        }
    }

    /// Whether the other end understands the protocol by now.
    #[inline]
    pub(crate) fn is_understood(&self) -> bool {
        self.websocket().is_none_or(|websocket| websocket.is_open)
    }

    /// Whether a TLS handshake is still to be made, and has to be.
    pub(crate) fn awaits_tls(&self) -> bool {
        self.tls_layer().is_some_and(TlsLayer::is_awaited)
    }

    /// What a TLS handshake came to; none before its end.
    pub(crate) fn tls(&self) -> Option<&Arc<TlsInfo>> {
        self.tls_layer().and_then(TlsLayer::info)
    }

    /// Lets what a WebSocket's request said stand for what CONNECT leaves out.
    pub(crate) fn complete(&self, connect: &mut Connect) {
        if let Some(websocket) = self.websocket() {
            websocket.complete(connect);
        }
    }

    /// How what is sent is compressed; none if it is not.
    pub(crate) fn compression(&self) -> Option<&Compression> {
        self.s2().map(|s2| &s2.mode)
    }

    /// From here on it is compressed so, if it is compressed.
    pub(crate) fn set_compression(&mut self, mode: Compression) {
        if let Some(Stack { inner: Inner::S2(s2), .. }) = self.0.as_deref_mut() {
            s2.mode = mode;
        }
    }

    /// Whether there is a TLS session, for tests.
    #[cfg(test)]
    pub(crate) fn has_session(&self) -> bool {
        self.tls_layer().is_some_and(TlsLayer::has_session)
    }

    /// What waits in all layers: its bytes, and those of its memory.
    #[cfg(test)]
    pub(crate) fn waiting_bytes(&self) -> (usize, usize) {
        let inner = match self.0.as_deref().map(|stack| &stack.inner) {
            Some(Inner::WebSocket(websocket)) => Some(&websocket.waiting),
            Some(Inner::S2(s2)) => Some(&s2.waiting),
            _ => None,
        };
        let all = self.tls_layer().map(|tls| &tls.waiting).into_iter().chain(inner);
        all.fold((0, 0), |(len, kept), bytes| (len + bytes.len(), kept + bytes.capacity()))
    }
}

impl Stack {
    /// Whether there is no layer left.
    fn is_over(&self) -> bool {
        self.header.is_none() && !self.wraps()
    }

    /// Whether what is on the wire is not what is in the outbox.
    fn wraps(&self) -> bool {
        self.tls.is_some() || !matches!(self.inner, Inner::Protocol)
    }

    fn next(&mut self, wire: &mut &[u8], allowance: Allowance, scratch: &mut LayerScratch) -> Step {
        if let Some(header) = &mut self.header {
            let step = header.next(wire);
            if !matches!(step, Step::Done | Step::HeaderBegins) {
                self.header = None;
            }
            return step;
        }
        if let Some(tls) = &mut self.tls {
            if !wire.is_empty() && tls.is_declined(wire) {
                self.tls = None;
                return Step::InClear;
            }
            let step = tls.receive(wire, &mut scratch.cleartext);
            if !matches!(step, Step::Done) {
                return step;
            }
        }
        let step = self.next_within(wire, allowance, scratch);
        let is_idle = matches!(step, Step::Done);
        let has_ended = is_idle && self.tls.as_deref_mut().is_some_and(TlsLayer::take_end);
        if has_ended { Step::Ended } else { step }
    }

    /// Unwraps what is within TLS.
    fn next_within(
        &mut self,
        wire: &mut &[u8],
        allowance: Allowance,
        scratch: &mut LayerScratch,
    ) -> Step {
        let LayerScratch { cleartext, taken_bytes, bench } = scratch;
        if matches!(self.inner, Inner::Protocol) {
            // All at once: it is there anyway.
            std::mem::swap(cleartext, &mut bench.plain);
            return if bench.plain.is_empty() { Step::Done } else { Step::Plain };
        }
        let mut rest = &cleartext[*taken_bytes..];
        if rest.is_empty() {
            // Without TLS what is on the wire is behind what has waited.
            return self.inner.next(wire, allowance, bench);
        }
        let step = self.inner.next(&mut rest, allowance, bench);
        *taken_bytes = cleartext.len() - rest.len();
        step
    }

    fn wants_write(&self) -> bool {
        self.tls.as_deref().is_some_and(TlsLayer::wants_write)
            || match &self.inner {
                Inner::Protocol => false,
                Inner::WebSocket(websocket) => websocket.wants_write(),
                Inner::S2(s2) => s2.wants_write(),
            }
    }

    /// Within TLS, a WebSocket's goodbye comes first.
    fn say_goodbye(&mut self) {
        let is_next = match &self.inner {
            Inner::WebSocket(websocket) => !websocket.wants_goodbye(),
            _ => true,
        };
        if let Some(tls) = self.tls.as_deref_mut().filter(|_| is_next) {
            tls.say_goodbye();
        }
    }

    fn take(&mut self, mut wrapping: Wrapping<'_>) -> Option<Vec<Piece>> {
        match self.tls.as_deref() {
            Some(tls) if tls.has_session() => self.take_encrypted(wrapping),
            Some(_) => {
                // In clear, before the handshake.
                let batch = wrapping.outbox.take(wrapping.spares)?;
                self.in_flight.set(bytes_of(&batch));
                Some(batch)
            }
            None => {
                let (batch, bytes) = self.inner.take(FRAME_BYTES_MAX, &mut wrapping)?;
                self.in_flight.set(bytes);
                Some(batch)
            }
        }
    }

    fn take_encrypted(&mut self, mut wrapping: Wrapping<'_>) -> Option<Vec<Piece>> {
        if wrapping.outbox.is_in_flight() {
            return None;
        }
        let mut taken_bytes = 0;
        if let Some(tls) = self.tls.as_deref_mut().filter(|tls| tls.is_established())
            && let Some((batch, bytes)) = self.inner.take(BATCH_BYTES_MAX, &mut wrapping)
        {
            tls.encrypt(&batch);
            wrapping.spares.keep_batch(batch);
            taken_bytes = bytes;
        }
        let Wrapping { outbox, spares, taking, .. } = wrapping;
        if taking.is_last && outbox.ends_with(taken_bytes) {
            self.say_goodbye();
        }
        let tls = self.tls.as_deref_mut().filter(|tls| tls.wants_write())?;
        let piece = spares.own_piece(|out| tls.write(out));
        self.in_flight.set(taken_bytes);
        Some(outbox.start(spares, piece))
    }
}

impl Inner {
    fn next(&mut self, bytes: &mut &[u8], allowance: Allowance, bench: &mut Bench) -> Step {
        match self {
            Self::Protocol => Step::Done,
            Self::WebSocket(websocket) => websocket.next(bytes, allowance, bench),
            Self::S2(s2) => s2.next(bytes, allowance, bench),
        }
    }

    /// The next batch, which ends with the piece that makes it `bytes_max` long, and how many
    /// bytes of the outbox that is.
    fn take(
        &mut self,
        bytes_max: usize,
        wrapping: &mut Wrapping<'_>,
    ) -> Option<(Vec<Piece>, usize)> {
        match self {
            Self::WebSocket(websocket) => websocket.take(bytes_max, wrapping),
            Self::S2(s2) => s2.take(wrapping),
            Self::Protocol => {
                let batch = wrapping.outbox.take_up_to(bytes_max, wrapping.spares)?;
                let bytes = bytes_of(&batch);
                Some((batch, bytes))
            }
        }
    }
}

fn bytes_of(batch: &[Piece]) -> usize {
    batch.iter().map(|piece| piece.bytes().len()).sum()
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
