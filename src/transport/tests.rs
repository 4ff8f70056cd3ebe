//! Two ends of a connection back to back, without an engine: one end's output is the other's input,
//! wherever the wire is cut.

use std::sync::Arc;

use proptest::prelude::*;
use rcgen::CertifiedKey;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::testing::{deflated, end_of_request, frame, understood};
use super::*;
use crate::output::Piece;

const ALL: Allowance = Allowance { work: u64::MAX, is_held: false, is_piecemeal: false };
const HEADER: &[u8] = b"PROXY TCP4 9.8.7.6 5.6.7.8 1111 2222\r\n";
const REQUEST: &[u8] =
    b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
    Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n";

/// Settings of both ends of a TLS handshake.
fn tls() -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(vec!["here".to_owned()]).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    (Arc::new(client), Arc::new(server))
}

/// One end of a connection, which does every task at once.
#[derive(Default)]
struct End {
    layers: Layers,
    outbox: Outbox,
    spares: Spares,
    scratch: LayerScratch,
    server: Option<Arc<ServerConfig>>,
    settings: WebSocketSettings,
    heard: Vec<u8>,
    /// Steps other than plain bytes, in order.
    steps: Vec<String>,
    is_last: bool,
}

impl End {
    fn with(put_on: impl FnOnce(&mut Layers)) -> Self {
        let mut end = Self::default();
        put_on(&mut end.layers);
        end
    }

    fn dialing(client: &Arc<ClientConfig>) -> Self {
        Self::with(|layers| layers.dial_tls(Arc::clone(client), "here").unwrap())
    }

    fn say(&mut self, bytes: &[u8]) {
        self.outbox.push(&mut self.spares, |out| out.extend_from_slice(bytes));
    }

    /// Returns all bytes that the end has for the wire.
    fn wire(&mut self) -> Vec<u8> {
        let mut wire = Vec::new();
        let taking = Taking { is_last: self.is_last, rtt_ns: 0 };
        let Self { layers, outbox, spares, scratch, .. } = self;
        while let Some(batch) = layers.take(outbox, spares, scratch, taking) {
            let before = wire.len();
            batch.iter().for_each(|piece| wire.extend_from_slice(piece.bytes()));
            let bytes = wire.len() - before;
            // The kernel takes a part first.
            let sent = layers.on_sent(bytes / 2, false);
            outbox.on_sent(sent);
            spares.keep_batch(batch);
            let sent = layers.on_sent(bytes - bytes / 2, true);
            outbox.on_sent(sent);
            outbox.on_done();
        }
        wire
    }

    fn hear(&mut self, wire: &[u8]) {
        self.scratch.begin();
        self.unwrap(wire, ALL);
        self.scratch.finish();
    }

    fn unwrap(&mut self, mut wire: &[u8], allowance: Allowance) {
        loop {
            if self.layers.is_bare() {
                self.heard.extend_from_slice(wire);
                return;
            }
            match self.layers.next(&mut wire, allowance, &mut self.scratch) {
                LayerStep::Done => return,
                LayerStep::Plain => {
                    let plain = self.scratch.take_plain();
                    assert!(!plain.is_empty());
                    self.heard.extend_from_slice(&plain);
                    self.scratch.keep_plain(plain);
                }
                LayerStep::NoHeader(bytes) => self.unwrap(&bytes, allowance),
                LayerStep::Handshake { .. } => {
                    if self.layers.grant_handshake() {
                        let config = self.server.clone().unwrap();
                        self.layers.start_tls(config).unwrap();
                    }
                }
                LayerStep::Request => {
                    if let Err(failure) = self.layers.upgrade(Some(&self.settings)) {
                        return self.steps.push(format!("{failure:?}"));
                    }
                }
                LayerStep::Header(source) => self.steps.push(format!("{source:?}")),
                LayerStep::Failed(failure) => return self.steps.push(format!("{failure:?}")),
                LayerStep::Ended => self.steps.push("ended".to_owned()),
                LayerStep::Turn => self.steps.push("turn".to_owned()),
                LayerStep::HeaderBegins | LayerStep::InClear | LayerStep::Secured { .. } => {}
            }
        }
    }
}

/// Carries all bytes between two ends; each flight arrives in two parts.
fn exchange(one: &mut End, other: &mut End, cut: usize) {
    loop {
        let mut is_quiet = true;
        for forth in [true, false] {
            let (from, to) =
                if forth { (&mut *one, &mut *other) } else { (&mut *other, &mut *one) };
            let wire = from.wire();
            if !wire.is_empty() {
                let (head, tail) = wire.split_at(cut % wire.len());
                to.hear(head);
                to.hear(tail);
                is_quiet = false;
            }
        }
        if is_quiet {
            return;
        }
    }
}

fn text() -> Vec<u8> {
    b"PUB a 5\r\nhello\r\n".repeat(20)
}

#[test]
fn what_is_bare_goes_over_the_wire_as_it_is() {
    let (mut one, mut other) = (End::default(), End::default());
    assert!(one.layers.is_bare());
    one.say(b"PING\r\n");
    exchange(&mut one, &mut other, 3);
    assert_eq!(other.heard, b"PING\r\n");
    assert_eq!(one.spares.held_bytes(), 0);
}

#[test]
fn two_ends_of_tls_understand_one_another_wherever_their_bytes_are_cut() {
    let (client, server) = tls();
    for cut in (0..1500).step_by(3) {
        let mut dialing = End::dialing(&client);
        let mut dialed = End::with(Layers::expect_tls);
        dialed.server = Some(Arc::clone(&server));
        dialing.say(b"from the client");
        dialed.say(b"in clear");
        assert_eq!(dialed.wire(), b"in clear", "before the handshake");
        exchange(&mut dialing, &mut dialed, cut);
        dialed.say(&text());
        dialed.is_last = true;
        exchange(&mut dialing, &mut dialed, cut);
        assert!(dialed.heard == b"from the client" && dialing.heard == text(), "cut at {cut}");
        assert_eq!(dialing.steps, ["ended"], "cut at {cut}");
        assert!(!dialing.layers.awaits_tls() && dialing.layers.tls().is_some());
        assert_eq!(dialing.spares.held_bytes() + dialed.spares.held_bytes(), 0);
        assert_eq!(dialed.layers.waiting_bytes(), (0, 0), "nothing is kept of the handshake");
    }
}

#[test]
fn who_may_have_tls_and_does_not_want_it_is_heard_in_clear() {
    let mut end = End::with(Layers::allow_tls);
    assert!(!end.layers.awaits_tls());
    end.say(b"INFO {}\r\n");
    assert_eq!(end.wire(), b"INFO {}\r\n");
    end.hear(b"PING\r\n");
    assert!(end.layers.is_bare());
    assert_eq!(end.heard, b"PING\r\n");
}

#[test]
fn what_is_no_handshake_fails_and_nothing_is_heard() {
    let (_, server) = tls();
    let mut end = End::with(Layers::expect_tls);
    end.server = Some(server);
    end.hear(b"PING\r\n");
    assert!(end.steps[0].starts_with("Handshake("), "{:?}", end.steps);
    assert!(end.heard.is_empty());
    assert!(end.layers.wants_write(), "it says why");
    let mut end = End::with(Layers::expect_tls);
    let much = vec![0x16; 64 * 1024 + 1];
    end.scratch.begin();
    end.unwrap(&much, ALL);
    assert!(end.steps[0].contains("more was sent"), "{:?}", end.steps);
    assert_eq!(end.layers.waiting_bytes(), (0, 0));
}

#[test]
fn two_ends_of_s2_understand_one_another_wherever_their_bytes_are_cut() {
    let (client, server) = tls();
    for has_tls in [false, true] {
        for cut in 0..200 {
            let (mut one, mut other) = match has_tls {
                true => (End::dialing(&client), End::with(Layers::expect_tls)),
                false => (End::default(), End::default()),
            };
            other.server = Some(Arc::clone(&server));
            exchange(&mut one, &mut other, cut);
            // Output in flight when compression begins is not compressed, nor is the head.
            one.say(b"INFO {}\r\n");
            let taking = Taking { is_last: false, rtt_ns: 0 };
            let End { layers, outbox, spares, scratch, .. } = &mut one;
            let batch = layers.take(outbox, spares, scratch, taking).unwrap();
            let mut wire: Vec<u8> = batch.iter().flat_map(Piece::bytes).copied().collect();
            layers.begin_s2(Compression::Fast, b"CONNECT {}\r\n".to_vec(), outbox);
            assert!(layers.begins_s2() && layers.waits() && layers.wants_write());
            outbox.on_sent(layers.on_sent(wire.len(), true));
            outbox.on_done();
            spares.keep_batch(batch);
            assert!(outbox.is_empty());
            wire.extend(one.wire());
            other.hear(&wire);
            assert_eq!(other.heard, b"INFO {}\r\nCONNECT {}\r\n", "cut at {cut}");
            other.heard.clear();
            other.layers.begin_s2(Compression::Best, Vec::new(), &other.outbox);
            for end in [&mut one, &mut other] {
                end.layers.grant_turn(&mut end.scratch);
            }
            one.say(&text());
            other.say(&text());
            exchange(&mut one, &mut other, cut);
            assert!(one.heard == text() && other.heard == text(), "cut at {cut}");
            assert_eq!(one.spares.held_bytes() + other.spares.held_bytes(), 0);
            assert_eq!((one.steps.len(), other.steps.len()), (0, 0), "cut at {cut}");
        }
    }
}

#[test]
fn a_websocket_understands_and_is_understood_wherever_its_bytes_are_cut() {
    let (client, server) = tls();
    let says = [
        frame(0x82, b"PING\r\n"),
        frame(0x89, b"ping"),
        frame(0xc2, &deflated(&text())),
        frame(0x88, &[]),
    ]
    .concat();
    let heard = [&b"PING\r\n"[..], &text()].concat();
    for (compression, has_tls) in [(true, false), (true, true)] {
        for cut in 0..REQUEST.len().max(says.len()) {
            // Over TLS a client is an end whose protocol is WebSocket.
            let mut browser = if has_tls { End::dialing(&client) } else { End::default() };
            let mut end = End::with(Layers::expect_websocket);
            if has_tls {
                end.layers.expect_tls();
                end.server = Some(Arc::clone(&server));
            }
            end.settings.compression = compression;
            browser.say(REQUEST);
            assert!(!end.layers.is_understood());
            exchange(&mut browser, &mut end, cut);
            assert!(end.layers.is_understood(), "cut at {cut}: {:?}", end.steps);
            end.say(&text());
            exchange(&mut browser, &mut end, cut);
            browser.say(&says);
            exchange(&mut browser, &mut end, cut);
            assert!(end.heard == heard, "cut at {cut}");
            assert_eq!(end.steps, ["ended"], "cut at {cut}");
            end.is_last = true;
            end.layers.end(1000, "never said: the client's own word comes back");
            exchange(&mut browser, &mut end, cut);
            let answer = end_of_request(&browser.heard).unwrap();
            let (said, others) = understood(&browser.heard[answer..]);
            assert!(said.as_bytes() == text(), "cut at {cut}");
            assert_eq!(others, [(0x8a, b"ping".to_vec()), (0x88, Vec::new())]);
            assert_eq!(browser.steps.len(), usize::from(has_tls), "TLS says goodbye, too");
            assert_eq!(end.spares.held_bytes(), 0);
        }
    }
}

#[test]
fn a_proxys_header_is_taken_off_before_whatever_follows_wherever_it_is_cut() {
    let (client, server) = tls();
    for cut in 0..HEADER.len() + 5 {
        let mut end = End::with(Layers::expect_header);
        let wire = [HEADER, b"PING\r\n"].concat();
        end.hear(&wire[..cut]);
        end.hear(&wire[cut..]);
        assert_eq!((&end.heard[..], end.steps.len()), (&b"PING\r\n"[..], 1), "cut at {cut}");
        assert!(end.layers.is_bare());
        // It is outside of TLS.
        let mut dialing = End::dialing(&client);
        let mut dialed = End::with(Layers::expect_header);
        dialed.layers.expect_tls();
        dialed.server = Some(Arc::clone(&server));
        let wire = [HEADER, &dialing.wire()].concat();
        dialed.hear(&wire[..cut]);
        dialed.hear(&wire[cut..]);
        dialing.say(b"PING\r\n");
        exchange(&mut dialing, &mut dialed, cut);
        assert_eq!((&dialed.heard[..], dialed.steps.len()), (&b"PING\r\n"[..], 1), "cut at {cut}");
    }
}

#[test]
fn what_only_begins_like_a_header_is_heard_whole() {
    let wire = b"PROPER\r\n";
    for cut in 0..wire.len() {
        let mut end = End::with(Layers::expect_header);
        end.hear(&wire[..cut]);
        end.hear(&wire[cut..]);
        assert_eq!((&end.heard[..], end.steps.len()), (&wire[..], 0), "cut at {cut}");
    }
    let mut end = End::with(Layers::expect_header);
    end.hear(b"PROXY nonsense\r\nPING\r\n");
    assert!(end.steps[0].starts_with("Header("), "{:?}", end.steps);
    assert!(end.heard.is_empty());
}

/// A WebSocket that compresses, and an S2 stream; each with some wire for it.
fn unpackers() -> [(End, Vec<u8>); 2] {
    let mut websocket = End::with(Layers::expect_websocket);
    websocket.settings.compression = true;
    websocket.hear(REQUEST);
    let frames: Vec<u8> = (0..4).flat_map(|_| frame(0xc2, &deflated(&text()))).collect();
    let (mut one, mut s2) = (End::default(), End::default());
    for end in [&mut one, &mut s2] {
        end.layers.begin_s2(Compression::Fast, Vec::new(), &end.outbox);
        end.layers.grant_turn(&mut end.scratch);
    }
    let mut chunks = Vec::new();
    for _ in 0..4 {
        one.say(&text());
        chunks.extend(one.wire());
    }
    [(websocket, frames), (s2, chunks)]
}

#[test]
fn what_is_held_back_waits_as_it_came_and_nothing_of_it_is_lost() {
    for (mut end, wire) in unpackers() {
        let held = Allowance { is_held: true, ..ALL };
        end.scratch.begin();
        end.unwrap(&wire[..100], held);
        end.scratch.finish();
        end.hear(&wire[100..]);
        assert!(end.heard.is_empty() && end.layers.wants_turn());
        assert_eq!(end.layers.waiting_bytes().0, wire.len());
        end.scratch.begin();
        end.layers.grant_turn(&mut end.scratch);
        end.unwrap(&[], ALL);
        assert!(end.heard == text().repeat(4) && !end.layers.waits());
    }
}

#[test]
fn what_costs_more_than_it_may_waits_for_another_turn() {
    for (mut end, wire) in unpackers() {
        let little = Allowance { work: 1, ..ALL };
        end.scratch.begin();
        end.unwrap(&wire, little);
        let mut turns = 1;
        while end.layers.wants_turn() {
            assert!(end.steps.len() == turns, "each turn says that there is more");
            // Each turn begins with work that may be done.
            end.scratch.take_work();
            end.scratch.begin();
            end.layers.grant_turn(&mut end.scratch);
            end.unwrap(&[], little);
            turns += 1;
        }
        assert_eq!(turns, 4, "one message or chunk in each");
        assert!(end.heard == text().repeat(4));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_is_allowed_and_granted_when_the_same_is_heard(
        parts in prop::collection::vec((1..300usize, any::<bool>(), 0..3u64, any::<bool>()), 1..20),
    ) {
        for (mut end, wire) in unpackers() {
            let (mut rest, mut parts) = (&wire[..], parts.iter().cycle());
            while !rest.is_empty() {
                let &(len, is_held, work, is_granted) = parts.next().unwrap();
                let (head, tail) = rest.split_at(len.min(rest.len()));
                rest = tail;
                let allowance = Allowance { work, is_held, is_piecemeal: is_granted };
                end.scratch.begin();
                end.unwrap(head, allowance);
                if is_granted && end.layers.wants_turn() {
                    end.scratch.begin();
                    end.layers.grant_turn(&mut end.scratch);
                    end.unwrap(&[], allowance);
                }
                end.scratch.take_work();
                end.scratch.finish();
                prop_assert!(text().repeat(4).starts_with(&end.heard));
            }
            end.layers.grant_turn(&mut end.scratch);
            end.unwrap(&[], ALL);
            prop_assert!(end.heard == text().repeat(4));
        }
    }
}

#[test]
fn piece_by_piece_means_that_each_chunk_is_heard_before_the_next() {
    let [_, (mut end, wire)] = unpackers();
    let allowance = Allowance { is_piecemeal: true, ..ALL };
    let mut rest = &wire[..];
    end.scratch.begin();
    for _ in 0..4 {
        assert!(matches!(
            end.layers.next(&mut rest, allowance, &mut end.scratch),
            LayerStep::Plain
        ));
        assert!(end.scratch.take_plain() == text());
    }
    assert!(matches!(end.layers.next(&mut rest, allowance, &mut end.scratch), LayerStep::Done));
}

#[test]
fn the_end_of_frames_is_told_when_what_came_before_it_is_handled() {
    let [(mut end, _), _] = unpackers();
    let wire = [frame(0x82, b"PING\r\n"), frame(0x88, b"")].concat();
    let (mut rest, held) = (&wire[..], Allowance { is_held: true, ..ALL });
    end.scratch.begin();
    assert!(matches!(end.layers.next(&mut rest, ALL, &mut end.scratch), LayerStep::Plain));
    end.scratch.take_plain();
    assert!(matches!(end.layers.next(&mut rest, held, &mut end.scratch), LayerStep::Done));
    assert!(end.layers.waits() && end.layers.has_end() && !end.layers.wants_turn());
    end.hear(&[]);
    assert_eq!(end.steps, ["ended"]);
}

/// Takes one step with these bytes.
fn step(end: &mut End, mut wire: &[u8]) -> LayerStep {
    end.layers.next(&mut wire, ALL, &mut end.scratch)
}

#[test]
fn what_waits_for_a_step_of_a_handshake_counts_even_if_nothing_follows() {
    let (client, server) = tls();
    let mut dialing = End::dialing(&client);
    let mut dialed = End::with(Layers::expect_tls);
    assert!(matches!(step(&mut dialed, &dialing.wire()), LayerStep::Handshake { .. }));
    assert!(!dialed.layers.waits(), "an answer to a first word reaches nobody any more");
    assert!(dialed.layers.grant_handshake());
    dialed.layers.start_tls(server).unwrap();
    assert!(matches!(step(&mut dialed, &[]), LayerStep::Done));
    dialing.hear(&dialed.wire());
    assert!(matches!(step(&mut dialed, &dialing.wire()), LayerStep::Handshake { .. }));
    assert!(dialed.layers.waits() && !dialed.layers.wants_turn() && !dialed.layers.has_end());
    assert!(!dialed.layers.grant_handshake());
    assert!(matches!(step(&mut dialed, &[]), LayerStep::Secured { .. }));
    assert!(!dialed.layers.waits());
    // A peer that does not speak TLS must get a reason in clear.
    let mut dialed = End::with(Layers::expect_tls);
    assert!(matches!(step(&mut dialed, b"PING\r\n"), LayerStep::Handshake { .. }));
    assert!(dialed.layers.waits());
}

#[test]
fn what_came_before_a_record_without_sense_is_heard_wherever_that_is_cut() {
    let (client, server) = tls();
    for cut in 0..100 {
        let mut dialing = End::dialing(&client);
        let mut dialed = End::with(Layers::expect_tls);
        dialed.server = Some(Arc::clone(&server));
        exchange(&mut dialing, &mut dialed, 0);
        dialing.say(b"PING\r\n");
        // The same record again is none.
        let wire = dialing.wire().repeat(3);
        let (head, tail) = wire.split_at(cut.min(wire.len()));
        dialed.hear(head);
        dialed.hear(tail);
        assert_eq!(dialed.heard, b"PING\r\n", "cut at {cut}");
        assert!(matches!(&dialed.steps[..], [end] if end.starts_with("Tls(")), "cut at {cut}");
    }
}

#[test]
fn who_asks_for_a_websocket_understands_who_grants_it_wherever_their_bytes_are_cut() {
    let (client, server) = tls();
    let dial = |compression, no_masking| WebSocketDial {
        host: "here:80".to_owned(),
        path: "/leafnode".to_owned(),
        compression,
        no_masking,
        seed: 7,
    };
    for (has_tls, compression, no_masking) in
        [(false, false, false), (false, true, true), (false, false, true), (true, true, false)]
    {
        for cut in 0..400 {
            let mut one = if has_tls { End::dialing(&client) } else { End::default() };
            one.layers.dial_websocket(dial(compression, no_masking));
            let mut other = End::with(Layers::expect_websocket);
            if has_tls {
                other.layers.expect_tls();
                other.server = Some(Arc::clone(&server));
            }
            (other.settings.compression, other.settings.speaks_leaf) = (true, true);
            assert!(one.layers.wants_write() && !one.layers.is_understood());
            // The one that grants it speaks first, with its answer.
            one.say(b"CONNECT {}\r\n");
            other.say(&text());
            exchange(&mut one, &mut other, cut);
            one.say(&text());
            exchange(&mut one, &mut other, cut);
            assert!(one.heard == text(), "cut at {cut}: {:?}", one.steps);
            assert!(other.heard == [b"CONNECT {}\r\n", &text()[..]].concat(), "cut at {cut}");
            one.is_last = true;
            one.layers.end(1000, "the end");
            exchange(&mut one, &mut other, cut);
            assert_eq!(other.steps[0], "ended", "cut at {cut}");
            assert_eq!(one.spares.held_bytes() + other.spares.held_bytes(), 0);
        }
    }
}

#[test]
fn who_asks_for_a_websocket_and_gets_none_hears_nothing() {
    for answer in [&b"HTTP/1.1 404 Not Found\r\n\r\n"[..], b"INFO {}\r\n\r\n\r\n", &[b'x'; 20_000]]
    {
        let mut end = End::default();
        let (host, path) = ("h".to_owned(), "/".to_owned());
        let (compression, no_masking) = (false, false);
        end.layers.dial_websocket(WebSocketDial { host, path, compression, no_masking, seed: 1 });
        end.wire();
        end.hear(answer);
        assert!(end.steps[0].starts_with("Upgrade("), "{:?}", end.steps);
        assert!(end.heard.is_empty() && !end.layers.is_understood());
    }
}
