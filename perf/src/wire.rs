//! The NATS client protocol as far as a load generator needs it, without I/O.
//!
//! The scanner is built to cost much less per message than any broker: it looks at one control
//! line, compares it with the line before, and skips the payload without touching it.

use crate::fault::{Fault, Outcome};
use crate::mqtt;
use std::io::Write as _;
use std::rc::Rc;

/// A control line longer than this is not a NATS server's (its own limit is 4 KiB, INFO aside).
const LINE_BYTES_MAX: usize = 64 * 1024;

/// What is spoken with the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) enum Dialect {
    /// NATS.
    #[default]
    Nats,
    /// MQTT, with messages of this quality of service: 0 or 1.
    Mqtt(u8),
}

impl Dialect {
    /// What is answered at once.
    pub(crate) fn ping(self) -> &'static [u8] {
        match self {
            Self::Nats => b"PING\r\n",
            Self::Mqtt(_) => mqtt::PING,
        }
    }

    /// Appends a subscription.
    pub(crate) fn push_sub(self, filter: &str, queue: Option<&str>, sid: usize, out: &mut Vec<u8>) {
        match self {
            Self::Nats => push_sub(filter, queue, sid, out),
            Self::Mqtt(qos) => {
                let id = u16::try_from(sid % usize::from(u16::MAX)).unwrap_or(0);
                out.extend(mqtt::subscribe(filter, qos, id.max(1)));
            }
        }
    }
}

/// One MSG or HMSG as the scanner shows it.
#[derive(Debug)]
pub(crate) struct Message<'a> {
    /// The control line, without its CRLF.
    pub(crate) line: &'a [u8],
    /// The first bytes of the payload (headers not counted), as many as were asked for.
    pub(crate) prefix: &'a [u8],
}

impl<'a> Message<'a> {
    /// The reply subject, when the message has one.
    pub(crate) fn reply(&self) -> Option<&'a [u8]> {
        let words = self.line.split(|&b| b == b' ').filter(|word| !word.is_empty());
        let sizes = if self.line.starts_with(b"H") { 2 } else { 1 };
        // MSG subject sid [reply] sizes…
        let count = words.clone().count();
        (count == 4 + sizes).then(|| words.clone().nth(3)).flatten()
    }
}

/// What one call of [`Scanner::scan`] saw besides messages.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Scanned {
    /// Bytes that need not be shown again.
    pub(crate) used: usize,
    /// What has to be answered: a PONG for each PING, and, with MQTT, acknowledgements.
    pub(crate) owed: Vec<u8>,
    /// PONGs that arrived; with MQTT all that answers a packet but a subscription's.
    pub(crate) pongs: usize,
}

/// Walks what a server sends, however TCP cut it.
#[derive(Debug)]
pub(crate) struct Scanner {
    dialect: Dialect,
    prefix_bytes: usize,
    /// Bytes of the current payload that are still to come.
    skip: usize,
    /// The latest MSG line with its CRLF: most messages of a connection have the same one.
    line: Vec<u8>,
    sizes: Sizes,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sizes {
    header: usize,
    total: usize,
}

impl Scanner {
    /// A scanner that shows the first `prefix_bytes` of each payload.
    pub(crate) fn new(prefix_bytes: usize) -> Self {
        Self::of(Dialect::Nats, prefix_bytes)
    }

    /// The same for what is spoken in `dialect`.
    pub(crate) fn of(dialect: Dialect, prefix_bytes: usize) -> Self {
        Self { dialect, prefix_bytes, skip: 0, line: Vec::new(), sizes: Sizes::default() }
    }

    /// Calls `on_message` for each message that begins in `input`. Bytes that were not used must
    /// be shown again, with more behind them.
    pub(crate) fn scan(
        &mut self,
        input: &[u8],
        mut on_message: impl FnMut(Message<'_>),
    ) -> Outcome<Scanned> {
        let mut seen = Scanned::default();
        loop {
            let step = self.skip.min(input.len() - seen.used);
            seen.used += step;
            self.skip -= step;
            let rest = &input[seen.used..];
            if rest.is_empty() {
                return Ok(seen);
            }
            if self.dialect != Dialect::Nats {
                let next = mqtt::step(rest, self.prefix_bytes, &mut seen, &mut on_message)?;
                let Some([used, skip]) = next else { return Ok(seen) };
                seen.used += used;
                self.skip = skip;
                continue;
            }
            let repeated = !self.line.is_empty() && rest.starts_with(&self.line);
            let line_bytes = if repeated { self.line.len() } else { line_end(rest)? };
            if line_bytes == 0 {
                return Ok(seen);
            }
            let line = rest[..line_bytes].trim_ascii_end();
            if !repeated {
                match sizes_of(line) {
                    Some(sizes) => {
                        self.sizes = sizes;
                        self.line.clear();
                        self.line.extend_from_slice(&rest[..line_bytes]);
                    }
                    None => {
                        other(line, &mut seen)?;
                        seen.used += line_bytes;
                        continue;
                    }
                }
            }
            let start = line_bytes + self.sizes.header;
            let shown = self.prefix_bytes.min(self.sizes.total - self.sizes.header);
            let Some(prefix) = rest.get(start..start + shown) else {
                return Ok(seen);
            };
            on_message(Message { line, prefix });
            seen.used += line_bytes;
            self.skip = self.sizes.total + 2;
        }
    }
}

/// The length of the first line with its LF, or 0 when it is not complete.
fn line_end(rest: &[u8]) -> Outcome<usize> {
    match memchr::memchr(b'\n', &rest[..rest.len().min(LINE_BYTES_MAX)]) {
        Some(at) => Ok(at + 1),
        None if rest.len() < LINE_BYTES_MAX => Ok(0),
        None => Err(not_nats("a line without end")),
    }
}

/// The sizes in a MSG or HMSG line; nothing when it is another operation or makes no sense.
fn sizes_of(line: &[u8]) -> Option<Sizes> {
    let with_headers = line.starts_with(b"HMSG ");
    if !with_headers && !line.starts_with(b"MSG ") {
        return None;
    }
    let mut words = line.rsplit(|&b| b == b' ');
    let total = number(words.next()?)?;
    let header = if with_headers { number(words.next()?)? } else { 0 };
    (header <= total).then_some(Sizes { header, total })
}

fn number(word: &[u8]) -> Option<usize> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

fn other(line: &[u8], seen: &mut Scanned) -> Outcome<()> {
    match line {
        b"PING" => seen.owed.extend_from_slice(b"PONG\r\n"),
        b"PONG" => seen.pongs += 1,
        b"+OK" => {}
        _ if line.starts_with(b"INFO ") => {}
        _ if line.starts_with(b"-ERR") => return Err(refused(line)),
        _ => return Err(not_nats(&String::from_utf8_lossy(&line[..line.len().min(60)]))),
    }
    Ok(())
}

fn not_nats(what: &str) -> Fault {
    Fault::new(
        format!("the server sent what is not NATS protocol ({what})"),
        "check that the port is a NATS client port, and --tlsfirst if it begins with TLS",
    )
}

/// Turns an -ERR line into a failure that says what to change.
fn refused(line: &[u8]) -> Fault {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_start_matches("-ERR").trim().trim_matches('\'');
    let lower = text.to_lowercase();
    let remedy = if lower.contains("authorization") || lower.contains("authentication") {
        "give credentials: --url nats://user:pass@host:port, --creds or --nkey"
    } else if lower.contains("payload") {
        "lower --payload or raise the server's max_payload"
    } else if lower.contains("permissions") {
        "let the user publish and subscribe to the subjects below --subject"
    } else if lower.contains("connections") {
        "open fewer connections or raise the server's max_connections"
    } else if lower.contains("tls") {
        "give --tls, and --tlscert and --tlskey if it wants a client's certificate"
    } else {
        "the server's log says more"
    };
    Fault::new(format!("the server refused: -ERR '{text}'"), remedy)
}

/// What the generator reads from INFO.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(default)]
pub(crate) struct ServerInfo {
    /// The server's version, as it says it.
    pub(crate) version: String,
    /// Whether HPUB is understood.
    pub(crate) headers: bool,
    /// The largest payload, in bytes, headers included.
    pub(crate) max_payload: usize,
    /// Whether credentials are wanted.
    pub(crate) auth_required: bool,
    /// Whether the server goes on only after a TLS handshake.
    pub(crate) tls_required: bool,
    /// Whether a TLS handshake is possible.
    pub(crate) tls_available: bool,
    /// What a credential's key has to sign.
    pub(crate) nonce: String,
}

/// Reads an INFO line.
pub(crate) fn parse_info(line: &[u8]) -> Outcome<ServerInfo> {
    let line = line.trim_ascii_end();
    if line.starts_with(b"-ERR") {
        return Err(refused(line));
    }
    line.strip_prefix(b"INFO ")
        .and_then(|json| serde_json::from_slice(json).ok())
        .ok_or_else(|| not_nats(&String::from_utf8_lossy(&line[..line.len().min(60)])))
}

/// Writes `PUB` and `HPUB`, with the payload's first bytes stamped. Copies share what they write.
#[derive(Clone, Debug)]
pub(crate) struct Renderer {
    dialect: Dialect,
    /// Control lines with header blocks, one per subject, in the order in which they are sent.
    heads: Rc<[Box<[u8]>]>,
    payload: Rc<[u8]>,
    next: usize,
    /// The latest packet identifier, where messages have one.
    packet: u16,
}

/// What a payload begins with: enough to measure latency and to check order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// When the message should have been sent, in nanoseconds since the run's origin.
    pub(crate) intended_ns: u64,
    /// Which publisher sent it.
    pub(crate) publisher: u32,
    /// The publisher's count, modulo 2³².
    pub(crate) sequence: u32,
}

impl Stamp {
    /// Bytes of a whole stamp; a payload of at least [`Stamp::TIME_BYTES`] holds the time only.
    pub(crate) const BYTES: usize = 16;
    /// Bytes of the time alone.
    pub(crate) const TIME_BYTES: usize = 8;

    /// The stamp as the payload holds it.
    pub(crate) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.intended_ns.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.publisher.to_le_bytes());
        bytes[12..].copy_from_slice(&self.sequence.to_le_bytes());
        bytes
    }

    /// Reads a stamp from the first bytes of a payload; what is not there is zero.
    pub(crate) fn from_prefix(prefix: &[u8]) -> Self {
        let mut bytes = [0; Self::BYTES];
        let there = prefix.len().min(Self::BYTES);
        bytes[..there].copy_from_slice(&prefix[..there]);
        let (time, rest) = bytes.split_at(8);
        let (publisher, sequence) = rest.split_at(4);
        Self {
            intended_ns: u64::from_le_bytes(time.try_into().unwrap_or_default()),
            publisher: u32::from_le_bytes(publisher.try_into().unwrap_or_default()),
            sequence: u32::from_le_bytes(sequence.try_into().unwrap_or_default()),
        }
    }
}

impl Renderer {
    /// Messages to `subjects` (perhaps with a reply subject behind) in turn, each with
    /// `payload_bytes` behind a block of `header_bytes` (0: no headers; otherwise as near to it as
    /// a header block can be, and at least 20).
    pub(crate) fn new(subjects: &[String], payload_bytes: usize, header_bytes: usize) -> Self {
        Self::of(Dialect::Nats, subjects, payload_bytes, header_bytes)
    }

    /// The same in `dialect`; MQTT has no headers.
    pub(crate) fn of(
        dialect: Dialect,
        subjects: &[String],
        payload_bytes: usize,
        header_bytes: usize,
    ) -> Self {
        let block = header_block(header_bytes);
        let head = |subject: &String| match dialect {
            Dialect::Nats => head(subject, &block, payload_bytes),
            Dialect::Mqtt(qos) => mqtt::publish_head(subject, qos, payload_bytes).into(),
        };
        let heads = subjects.iter().map(head).collect();
        let payload = b"shardcast-perf.".iter().copied().cycle().take(payload_bytes).collect();
        Self { dialect, heads, payload, next: 0, packet: 0 }
    }

    /// The same, with part `part` of `parts` of the subjects as the first to come.
    pub(crate) fn beginning_at(&self, part: usize, parts: usize) -> Self {
        Self { next: self.heads.len() * part / parts, ..self.clone() }
    }

    /// The bytes of one message on the wire, for the subject that is next.
    pub(crate) fn message_bytes(&self) -> usize {
        // The end of a line, or a packet identifier.
        let besides = if self.dialect == Dialect::Mqtt(0) { 0 } else { 2 };
        self.heads[self.next].len() + self.payload.len() + besides
    }

    /// Whether every message is the same but for its stamp.
    pub(crate) fn is_uniform(&self) -> bool {
        self.heads.len() == 1 && self.dialect != Dialect::Mqtt(1)
    }

    /// Appends one message to the next subject.
    pub(crate) fn push(&mut self, stamp: Stamp, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.heads[self.next]);
        self.next = if self.next + 1 == self.heads.len() { 0 } else { self.next + 1 };
        if self.dialect == Dialect::Mqtt(1) {
            self.packet = self.packet % u16::MAX + 1;
            out.extend_from_slice(&self.packet.to_be_bytes());
        }
        let stamped = self.payload.len().min(Stamp::BYTES);
        out.extend_from_slice(&stamp.to_bytes()[..stamped]);
        out.extend_from_slice(&self.payload[stamped..]);
        if self.dialect == Dialect::Nats {
            out.extend_from_slice(b"\r\n");
        }
    }
}

fn head(subject: &str, block: &[u8], payload_bytes: usize) -> Box<[u8]> {
    let line = if block.is_empty() {
        format!("PUB {subject} {payload_bytes}\r\n")
    } else {
        format!("HPUB {subject} {} {}\r\n", block.len(), block.len() + payload_bytes)
    };
    [line.as_bytes(), block].concat().into_boxed_slice()
}

/// A blank and a reply subject of `bytes` (at least 8), or nothing for 0.
pub(crate) fn reply(bytes: usize) -> String {
    match bytes {
        0 => String::new(),
        bytes => format!(" _INBOX.{}", "r".repeat(bytes.saturating_sub(7).max(1))),
    }
}

/// One message as a subscription gets it, on the wire: `address` is subject, sid and perhaps a
/// reply subject. See [`Renderer::new`].
pub(crate) fn delivery(address: &str, payload_bytes: usize, header_bytes: usize) -> Vec<u8> {
    let mut renderer = Renderer::new(&[address.to_owned()], payload_bytes, header_bytes);
    let mut wire = Vec::new();
    renderer.push(Stamp { intended_ns: 0, publisher: 0, sequence: 0 }, &mut wire);
    // What a subscriber gets differs from what its publisher sent in the name and the sid.
    let head = if header_bytes == 0 { b"MSG ".as_slice() } else { b"HMSG ".as_slice() };
    let rest = wire.iter().position(|&b| b == b' ').map_or(0, |at| at + 1);
    [head, &wire[rest..]].concat()
}

/// A header block of about `bytes`: one header, `H`, filled up.
fn header_block(bytes: usize) -> Vec<u8> {
    if bytes == 0 {
        return Vec::new();
    }
    let frame = b"NATS/1.0\r\nH: \r\n\r\n".len();
    let value = "x".repeat(bytes.saturating_sub(frame).max(3));
    format!("NATS/1.0\r\nH: {value}\r\n\r\n").into_bytes()
}

/// Appends a SUB.
pub(crate) fn push_sub(filter: &str, queue: Option<&str>, sid: usize, out: &mut Vec<u8>) {
    let queue = queue.unwrap_or("");
    // Writing to a Vec cannot fail.
    let _ = write!(out, "SUB {filter} {queue} {sid}\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload_starts(wire: &[u8], cut: usize, prefix: usize) -> (Vec<Vec<u8>>, Scanned) {
        let mut scanner = Scanner::new(prefix);
        let (mut starts, mut total) = (Vec::new(), Scanned::default());
        let mut held: Vec<u8> = Vec::new();
        for part in [&wire[..cut], &wire[cut..]] {
            held.extend_from_slice(part);
            let seen = scanner.scan(&held, |m| starts.push(m.prefix.to_vec())).unwrap();
            held.drain(..seen.used);
            total.used += seen.used;
            total.owed.extend(seen.owed);
            total.pongs += seen.pongs;
        }
        (starts, total)
    }

    #[test]
    fn the_place_where_tcp_cuts_the_stream_never_matters() {
        let wire = b"INFO {} \r\nMSG a 1 5\r\nhello\r\nMSG a 1 5\r\nworld\r\nPING\r\n\
            HMSG b 2 r.1 12 15\r\nNATS/1.0\r\n\r\nabc\r\n+OK\r\nMSG a 1 0\r\n\r\nPONG\r\n";
        let expected: Vec<Vec<u8>> =
            vec![b"hel".to_vec(), b"wor".to_vec(), b"abc".to_vec(), Vec::new()];
        for cut in 0..wire.len() {
            let (starts, seen) = payload_starts(wire, cut, 3);
            assert_eq!(starts, expected, "cut at {cut}");
            let all = Scanned { used: wire.len(), owed: b"PONG\r\n".to_vec(), pongs: 1 };
            assert_eq!(seen, all, "cut at {cut}");
        }
    }

    #[test]
    fn a_line_that_begins_like_the_one_before_is_not_taken_for_it() {
        let wire = b"MSG a 1 5\r\nhello\r\nMSG a 1 50\r\n01234567890123456789012345678901234567\
            890123456789\r\nMSG a 1 5\r\nhello\r\n";
        let (starts, seen) = payload_starts(wire, 0, 2);
        assert_eq!(starts.len(), 3);
        assert_eq!(seen.used, wire.len());
    }

    #[test]
    fn a_reply_is_found_with_and_without_headers() {
        let reply = |line: &'static [u8]| Message { line, prefix: b"" }.reply();
        assert_eq!(reply(b"MSG a 1 5"), None);
        assert_eq!(reply(b"MSG a 1 r.x 5"), Some(&b"r.x"[..]));
        assert_eq!(reply(b"HMSG a 1 12 15"), None);
        assert_eq!(reply(b"HMSG a 1 r.x 12 15"), Some(&b"r.x"[..]));
    }

    #[test]
    fn an_error_of_the_server_names_the_option_to_change() {
        let mut scanner = Scanner::new(0);
        let fault = scanner.scan(b"-ERR 'Maximum Payload Violation'\r\n", |_| {}).unwrap_err();
        assert!(fault.to_string().contains("Maximum Payload Violation"), "{fault}");
        assert!(fault.to_string().contains("--payload"), "{fault}");
        let fault = parse_info(b"-ERR 'Authorization Violation'\r\n").unwrap_err();
        assert!(fault.to_string().contains("--creds"), "{fault}");
    }

    #[test]
    fn what_is_not_nats_is_refused() {
        assert!(Scanner::new(0).scan(b"HTTP/1.1 400 Bad Request\r\n", |_| {}).is_err());
        assert!(parse_info(b"SSH-2.0-OpenSSH\r\n").is_err());
    }

    #[test]
    fn messages_go_to_the_subjects_in_turn_with_their_stamps() {
        let mut renderer = Renderer::new(&["a".into(), "b".into()], 18, 0);
        let stamp = Stamp { intended_ns: 7, publisher: 2, sequence: 9 };
        let mut out = Vec::new();
        assert_eq!(renderer.message_bytes(), 30);
        renderer.push(stamp, &mut out);
        renderer.push(stamp, &mut out);
        renderer.push(stamp, &mut out);
        assert_eq!(out.len(), 90);
        assert!(out.starts_with(b"PUB a 18\r\n"));
        assert!(out[30..].starts_with(b"PUB b 18\r\n"));
        assert!(out[60..].starts_with(b"PUB a 18\r\n"));
        assert_eq!(Stamp::from_prefix(&out[10..26]), stamp);
    }

    #[test]
    fn several_publishers_begin_at_different_subjects_and_go_round_them_all() {
        let subjects: Vec<String> = (0..6).map(|number| number.to_string()).collect();
        let stamp = Stamp { intended_ns: 0, publisher: 0, sequence: 0 };
        let renderer = Renderer::new(&subjects, 0, 0);
        let round = |part| {
            let mut renderer = renderer.beginning_at(part, 3);
            let mut out = Vec::new();
            (0..6).for_each(|_| renderer.push(stamp, &mut out));
            let heads = out.chunks(b"PUB n 0\r\n\r\n".len());
            heads.map(|head| char::from(head[4])).collect::<String>()
        };
        assert_eq!([0, 1, 2].map(round), ["012345", "234501", "450123"]);
    }

    #[test]
    fn a_delivery_is_what_a_subscriber_reads() {
        assert_eq!(delivery("a 7", 2, 0), b"MSG a 7 2\r\n\0\0\r\n");
        let wire = delivery("a 7", 30, 40);
        assert!(wire.starts_with(b"HMSG a 7 40 70\r\nNATS/1.0\r\n"));
        let address = format!("a 7{}", reply(32));
        let line = delivery(&address, 2, 0);
        let line = line.split(|&b| b == b'\r').next().unwrap();
        assert_eq!(Message { line, prefix: b"" }.reply().unwrap().len(), 32);
        let mut count = 0;
        let seen = Scanner::new(0).scan(&wire.repeat(3), |_| count += 1).unwrap();
        assert_eq!((count, seen.used), (3, wire.len() * 3));
    }

    #[test]
    fn a_header_block_has_the_size_that_was_asked_for() {
        assert_eq!(header_block(64).len(), 64);
        let mut out = Vec::new();
        let mut renderer = Renderer::new(&["a".into()], 4, 64);
        renderer.push(Stamp { intended_ns: 0, publisher: 0, sequence: 0 }, &mut out);
        assert!(out.starts_with(b"HPUB a 64 68\r\nNATS/1.0\r\nH: x"));
        assert_eq!(out.len(), 14 + 68 + 2);
    }
}
