//! The layers of one connection, one within another.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ServerConfig};

use super::proxy_header::ProxyHeader;
use super::s2::S2Layer;
use super::tls::{TlsInfo, TlsLayer};
use super::websocket::WebSocketLayer;
use super::{
    Allowance, BATCH_BYTES_MAX, Bench, Compression, Failure, LayerScratch, LayerStep, Taking,
    Upgraded, WebSocketDial, WebSocketSettings, Wrapping,
};
use crate::output::{InFlight, Outbox, Piece, Spares};
use crate::proto::Connect;

/// The longest frame of a WebSocket without TLS, in bytes: a batch ends with the piece that reaches
/// it.
const FRAME_BYTES_MAX: usize = 1024 * 1024;

/// The layers between the wire and the protocol of one connection; most connections have none.
#[derive(Debug, Default)]
pub(crate) struct Layers(Option<Box<Stack>>);

/// The layers of a connection that has at least one, the outermost first.
#[derive(Debug, Default)]
struct Stack {
    header: Option<ProxyHeader>,
    tls: Option<Box<TlsLayer>>,
    inner: Inner,
    /// Bytes of the outbox in the batch in flight that are not yet counted as sent.
    in_flight: InFlight,
}

/// The layer within TLS.
#[derive(Debug, Default)]
enum Inner {
    #[default]
    Protocol,
    WebSocket(Box<WebSocketLayer>),
    S2(Box<S2Layer>),
}

impl Layers {
    /// Whether there is no layer: the only check that a plain connection pays for.
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

    /// Allows a proxy's header before everything else.
    pub(crate) fn expect_header(&mut self) {
        self.stack().header = Some(ProxyHeader::default());
    }

    /// Makes a TLS handshake of the peer obligatory.
    pub(crate) fn expect_tls(&mut self) {
        self.stack().tls = Some(Box::new(TlsLayer::expected()));
    }

    /// Allows a TLS handshake of the peer; without one the connection goes on in clear.
    pub(crate) fn allow_tls(&mut self) {
        self.stack().tls = Some(Box::new(TlsLayer::optional()));
    }

    /// Begins a TLS handshake with a server whose certificate must be for `host`.
    ///
    /// # Errors
    ///
    /// Returns an error if `host` cannot be in a certificate.
    pub(crate) fn dial_tls(&mut self, config: Arc<ClientConfig>, host: &str) -> Result<(), String> {
        let tls = TlsLayer::dialing(config, host)?;
        self.stack().tls = Some(Box::new(tls));
        Ok(())
    }

    /// Expects the peer's request for a WebSocket.
    pub(crate) fn expect_websocket(&mut self) {
        self.stack().inner = Inner::WebSocket(Box::default());
    }

    /// Asks the server that was dialled for a WebSocket.
    pub(crate) fn dial_websocket(&mut self, dial: WebSocketDial) {
        self.stack().inner = Inner::WebSocket(Box::new(WebSocketLayer::dialing(dial)));
    }

    /// Compresses both directions from now on. `head` is sent first, uncompressed, like the output
    /// in flight. Input waits for [`Layers::grant_turn`].
    pub(crate) fn begin_s2(&mut self, mode: Compression, head: Vec<u8>, outbox: &Outbox) {
        let was_bare = self.is_bare();
        let stack = self.stack();
        if was_bare {
            stack.in_flight.set(outbox.pending_bytes() - outbox.queued_bytes());
        }
        stack.inner = Inner::S2(Box::new(S2Layer::new(mode, head)));
    }

    /// Whether compression was agreed upon with the operation handled last: the input behind it is
    /// for [`Layers::put_aside`].
    #[inline]
    pub(crate) fn begins_s2(&self) -> bool {
        self.s2().is_some_and(|s2| s2.begins)
    }

    /// Adds compressed bytes that were taken for the protocol's behind those that wait.
    pub(crate) fn put_aside(&mut self, mut bytes: &[u8]) {
        if let Inner::S2(s2) = &mut self.stack().inner {
            s2.put_aside(&mut bytes);
        }
    }

    /// Unwraps bytes off the wire, one step; `wire` keeps the rest.
    pub(crate) fn next(
        &mut self,
        wire: &mut &[u8],
        allowance: Allowance,
        scratch: &mut LayerScratch,
    ) -> LayerStep {
        let Some(stack) = self.0.as_deref_mut() else { return LayerStep::Done };
        let step = stack.next(wire, allowance, scratch);
        if stack.is_over() {
            self.0 = None;
        }
        step
    }

    /// Grants the next step of the handshake, to be taken with [`Layers::next`]. Returns whether a
    /// session is needed first: [`Layers::start_tls`].
    pub(crate) fn grant_handshake(&mut self) -> bool {
        self.tls_mut().is_some_and(|tls| {
            tls.grant_step();
            !tls.has_session()
        })
    }

    /// Answers the TLS handshake that the peer has begun. Returns whether it was optional.
    ///
    /// # Errors
    ///
    /// Returns an error if rustls has no session for the configuration.
    pub(crate) fn start_tls(&mut self, config: Arc<ServerConfig>) -> Result<bool, String> {
        self.tls_mut().map_or(Ok(false), |tls| tls.start(config))
    }

    /// Grants waiting input its turn, to be unwrapped with [`Layers::next`].
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

    /// Answers a whole request for a WebSocket: the connection becomes one, or the request is
    /// refused. Without `settings` every request is
    /// refused.
    ///
    /// # Errors
    ///
    /// Returns the reason for a refusal; the response to the client is queued.
    pub(crate) fn upgrade(
        &mut self,
        settings: Option<&WebSocketSettings>,
    ) -> Result<Upgraded, Failure> {
        self.websocket_mut()
            .map_or(Ok(Upgraded::default()), |websocket| websocket.upgrade(settings))
    }

    /// Whether input waits in any layer for [`Layers::grant_handshake`] or [`Layers::grant_turn`],
    /// or the end of input for the input before it.
    pub(crate) fn waits(&self) -> bool {
        let is_shaking_hands = self.tls_layer().is_some_and(TlsLayer::waits);
        is_shaking_hands || self.wants_turn() || self.has_end()
    }

    /// Whether input waits for [`Layers::grant_turn`].
    pub(crate) fn wants_turn(&self) -> bool {
        match self.0.as_deref().map(|stack| &stack.inner) {
            Some(Inner::WebSocket(websocket)) => websocket.in_line && !websocket.has_end(),
            Some(Inner::S2(s2)) => s2.in_line,
            _ => false,
        }
    }

    /// Whether the end of the input waits for the input before it.
    pub(crate) fn has_end(&self) -> bool {
        self.websocket().is_some_and(WebSocketLayer::has_end)
    }

    /// Takes the next batch as it goes over the wire; `None` while one is in flight, or if nothing
    /// may be sent.
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

    /// Returns the bytes of the outbox that `bytes` on the wire stand for.
    #[inline]
    pub(crate) fn on_sent(&mut self, bytes: usize, complete: bool) -> usize {
        match self.0.as_deref_mut() {
            Some(stack) if stack.wraps() => stack.in_flight.on_sent(bytes, complete),
            _ => bytes,
        }
    }

    /// Whether a layer has bytes to send that are in no outbox.
    #[inline]
    pub(crate) fn wants_write(&self) -> bool {
        self.0.as_deref().is_some_and(Stack::wants_write)
    }

    /// Sets the contents of a WebSocket's close frame, unless they are set already.
    pub(crate) fn end(&mut self, code: u16, text: &str) {
        if let Some(websocket) = self.websocket_mut() {
            websocket.end(code, text);
        }
    }

    /// Announces the end of the output over TLS, once all output is sent, a WebSocket's close
    /// frame included.
    pub(crate) fn say_goodbye(&mut self) {
        if let Some(stack) = self.0.as_deref_mut() {
            stack.say_goodbye();
        }
    }

    /// Whether bytes of the protocol may be sent: a WebSocket must be open first.
    #[inline]
    pub(crate) fn is_understood(&self) -> bool {
        self.websocket().is_none_or(|websocket| websocket.is_open)
    }

    /// Whether an obligatory TLS handshake is not complete.
    pub(crate) fn awaits_tls(&self) -> bool {
        self.tls_layer().is_some_and(TlsLayer::is_awaited)
    }

    /// Returns the properties of the TLS session; `None` before the end of the handshake.
    pub(crate) fn tls(&self) -> Option<&Arc<TlsInfo>> {
        self.tls_layer().and_then(TlsLayer::info)
    }

    /// Returns the certificates of the peer, its own first.
    pub(crate) fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        self.tls_layer().map(TlsLayer::peer_certificates).unwrap_or_default()
    }

    /// Fills in fields that CONNECT leaves out from the cookies of a WebSocket's request.
    pub(crate) fn complete(&self, connect: &mut Connect) {
        if let Some(websocket) = self.websocket() {
            websocket.complete(connect);
        }
    }

    /// Returns the compression of output; `None` without compression.
    pub(crate) fn compression(&self) -> Option<&Compression> {
        self.s2().map(|s2| &s2.mode)
    }

    /// Changes the compression of output from now on, if there is one.
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

    /// Returns the bytes of a compressed chunk that has not wholly arrived.
    pub(crate) fn chunk_bytes(&self) -> usize {
        match self.0.as_deref().map(|stack| &stack.inner) {
            Some(Inner::S2(s2)) => s2.partial_bytes(),
            _ => 0,
        }
    }

    /// Returns the input that waits in all layers: its bytes, and the bytes of its memory.
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
    /// Whether no layer is left.
    fn is_over(&self) -> bool {
        self.header.is_none() && !self.wraps()
    }

    /// Whether bytes on the wire differ from those of the outbox.
    fn wraps(&self) -> bool {
        self.tls.is_some() || !matches!(self.inner, Inner::Protocol)
    }

    fn next(
        &mut self,
        wire: &mut &[u8],
        allowance: Allowance,
        scratch: &mut LayerScratch,
    ) -> LayerStep {
        if let Some(header) = &mut self.header {
            let step = header.next(wire);
            if !matches!(step, LayerStep::Done | LayerStep::HeaderBegins) {
                self.header = None;
            }
            return step;
        }
        if let Some(tls) = &mut self.tls {
            if !wire.is_empty() && tls.is_declined(wire) {
                self.tls = None;
                return LayerStep::InClear;
            }
            let step = tls.receive(wire, &mut scratch.cleartext);
            if !matches!(step, LayerStep::Done) {
                return step;
            }
        }
        let step = self.next_within(wire, allowance, scratch);
        let is_idle = matches!(step, LayerStep::Done);
        let end = self.tls.as_deref_mut().filter(|_| is_idle).and_then(TlsLayer::take_end);
        end.unwrap_or(step)
    }

    /// Unwraps the layer within TLS, one step.
    fn next_within(
        &mut self,
        wire: &mut &[u8],
        allowance: Allowance,
        scratch: &mut LayerScratch,
    ) -> LayerStep {
        let LayerScratch { cleartext, taken_bytes, bench } = scratch;
        if matches!(self.inner, Inner::Protocol) {
            // All at once: it is there anyway.
            std::mem::swap(cleartext, &mut bench.plain);
            return if bench.plain.is_empty() { LayerStep::Done } else { LayerStep::Plain };
        }
        let mut rest = &cleartext[*taken_bytes..];
        if rest.is_empty() {
            // Without TLS the bytes on the wire are behind those that have waited.
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

    /// Ends the TLS session, after the WebSocket's close frame.
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
    fn next(&mut self, bytes: &mut &[u8], allowance: Allowance, bench: &mut Bench) -> LayerStep {
        match self {
            Self::Protocol => LayerStep::Done,
            Self::WebSocket(websocket) => websocket.next(bytes, allowance, bench),
            Self::S2(s2) => s2.next(bytes, allowance, bench),
        }
    }

    /// Takes the next batch, which ends with the piece that reaches `bytes_max`, and the bytes of
    /// the outbox in it.
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
