//! The parser of a client's operations.
//!
//! [`parse()`] keeps no state: it is shown the same bytes again when more have arrived. Its result
//! depends on the bytes alone, so the places where TCP cuts the stream never matter.

use memchr::{memchr, memchr2};
use serde::de::IgnoredAny;

use super::encode::go_quoted;
use super::{Header, Op, ParseLimits, Parsed, ProtoError, Publish};

/// Longest text between an operation's name and its line end that counts towards no limit of the
/// configuration, in bytes: the blanks before the first argument, and anything behind PING, PONG
/// and +OK.
///
/// nats-server has no limit there because it drops such bytes as they come. Here the caller has to
/// keep them, so there must be one.
pub const IGNORED_BYTES_MAX: usize = 64 * 1024;

/// Bytes of an unknown operation that the log shows.
const SNIPPET_BYTES_MAX: usize = 32;

/// Reads the first operation of `input`.
///
/// Reads no byte behind that operation. An error is returned as soon as the bytes that prove it
/// are there, whole operation or not; nothing can be read behind it.
///
/// # Errors
///
/// Returns an error whenever a client breaks the rules of the protocol or a limit. Operations
/// before it, which earlier calls returned, stand.
pub fn parse<'a>(input: &'a [u8], limits: &ParseLimits) -> Result<Parsed<'a>, ProtoError> {
    if let Some((publish, used)) = parse_usual_publish(input, limits) {
        return Ok(Parsed::Op { op: Op::Pub(publish), used });
    }
    let Some((name, name_len)) = find_name(input)? else {
        return Ok(Parsed::Incomplete { need: input.len() + 1 });
    };
    let kind = match name {
        OpName::Bare(op) => return parse_bare(input, name_len, op),
        OpName::WithArguments(kind) => kind,
    };
    let Some(line) = find_line(input, kind, name_len, limits)? else {
        return Ok(Parsed::Incomplete { need: input.len() + 1 });
    };
    let op = match kind {
        OpKind::Pub => return parse_pub(&line, limits),
        OpKind::Hpub => return parse_hpub(&line, limits),
        OpKind::Sub => parse_sub(line.args)?,
        OpKind::Unsub => parse_unsub(line.args)?,
        OpKind::Connect => Op::Connect(trim(line.args)),
        OpKind::Info => parse_info(line.args)?,
        OpKind::Err => {
            let text = String::from_utf8_lossy(trim(line.args)).into_owned();
            return Err(ProtoError::ErrorFromClient(text));
        }
    };
    Ok(Parsed::Op { op, used: line.used })
}

/// Reads the operations that clients send most: a whole `PUB <subject> [reply] <size>` or `HPUB
/// <subject> [reply] <header size> <size>`, written with single blanks and CRLF, within the limits.
///
/// Returns the bytes that it took, too. `None` means only that the input is something else, which
/// [`parse()`] then reads in the general way.
#[inline(always)]
fn parse_usual_publish<'a>(input: &'a [u8], limits: &ParseLimits) -> Option<(Publish<'a>, usize)> {
    match usual_name(input, limits)? {
        OpKind::Pub => parse_usual::<false>(input, b"PUB ".len(), limits),
        _ => parse_usual::<true>(input, b"HPUB ".len(), limits),
    }
}

/// Reads the arguments and the payload of a publish in its usual form; its name ends at `start`.
#[inline(always)]
fn parse_usual<'a, const HAS_HEADER: bool>(
    input: &'a [u8],
    start: usize,
    limits: &ParseLimits,
) -> Option<(Publish<'a>, usize)> {
    let (subject, subject_end) = usual_word(input, start)?;
    if input[subject_end] != b' ' {
        return None;
    }
    let tail_start = subject_end + 1;
    let (first, end) = usual_word(input, tail_start)?;
    let (reply, header_text, size_text, size_end) = if input[end] == b' ' {
        let (second, end) = usual_word(input, end + 1)?;
        match (HAS_HEADER, input[end]) {
            (false, _) => (Some(first), None, second, end),
            (true, b' ') => {
                let (third, end) = usual_word(input, end + 1)?;
                (Some(first), Some(second), third, end)
            }
            (true, _) => (None, Some(first), second, end),
        }
    } else {
        (None, None, first, end)
    };
    if !input[size_end..].starts_with(b"\r\n") {
        return None;
    }
    let size = parse_number(size_text)?;
    let header = if HAS_HEADER { Some(usual_header(header_text?, size)?) } else { None };
    let payload_start = size_end + 2;
    let payload_end = payload_start + size;
    let used = payload_end + 2;
    if size > limits.payload_bytes_max
        || size_end - start > limits.control_line_bytes_max
        || input.get(payload_end..used)? != b"\r\n"
    {
        return None;
    }
    let payload = &input[payload_start..payload_end];
    let tail = Some(&input[tail_start..used]);
    Some((Publish { subject, reply, header, size_text, payload, tail }, used))
}

/// Returns the kind of a publish if `input` begins with `PUB ` or `HPUB `.
#[inline(always)]
fn usual_name(input: &[u8], limits: &ParseLimits) -> Option<OpKind> {
    const PUB: u32 = u32::from_le_bytes(*b"pub ");
    const HPUB: u32 = u32::from_le_bytes(*b"hpub");
    // As a bit of each letter has it, upper or lower case.
    const LETTERS: u32 = 0x2020_2020;
    let name = u32::from_le_bytes(*input.first_chunk()?);
    if name | (LETTERS >> 8) == PUB {
        return Some(OpKind::Pub);
    }
    let is_hpub = limits.headers && name | LETTERS == HPUB && input.get(4) == Some(&b' ');
    is_hpub.then_some(OpKind::Hpub)
}

/// Returns the word at `at`, and the place where it ends.
#[inline(always)]
fn usual_word(input: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let end = word_end(input, at)?;
    (end > at).then(|| (&input[at..end], end))
}

/// Returns a header of some of a payload's `size` bytes.
fn usual_header(text: &[u8], size: usize) -> Option<Header<'_>> {
    let len = parse_number(text)?;
    (1..=size).contains(&len).then_some(Header { len, text })
}

/// Returns the first place from `at` on of a byte that is a blank or less; `None` if all are
/// greater.
#[inline(always)]
fn word_end(input: &[u8], mut at: usize) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    while let Some(eight) = input.get(at..)?.first_chunk::<8>() {
        let eight = u64::from_le_bytes(*eight);
        // The highest bit of each byte below 0x21; a borrow can only spoil the bytes above one.
        let found = eight.wrapping_sub(ONES * 0x21) & !eight & (ONES * 0x80);
        if found != 0 {
            return Some(at + (found.trailing_zeros() / 8) as usize);
        }
        at += 8;
    }
    input.get(at..)?.iter().position(|byte| *byte <= b' ').map(|words| at + words)
}

#[derive(Clone, Copy)]
enum OpName {
    /// An operation without arguments.
    Bare(Op<'static>),
    WithArguments(OpKind),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum OpKind {
    Pub,
    Hpub,
    Sub,
    Unsub,
    Connect,
    Info,
    Err,
}

/// Names of operations, likely ones first.
const NAMES: [(&[u8], OpName); 10] = [
    (b"PUB", OpName::WithArguments(OpKind::Pub)),
    (b"HPUB", OpName::WithArguments(OpKind::Hpub)),
    (b"SUB", OpName::WithArguments(OpKind::Sub)),
    (b"UNSUB", OpName::WithArguments(OpKind::Unsub)),
    (b"PING", OpName::Bare(Op::Ping)),
    (b"PONG", OpName::Bare(Op::Pong)),
    (b"CONNECT", OpName::WithArguments(OpKind::Connect)),
    (b"INFO", OpName::WithArguments(OpKind::Info)),
    (b"+OK", OpName::Bare(Op::Nothing)),
    (b"-ERR", OpName::WithArguments(OpKind::Err)),
];

/// Returns the operation with which `input` begins, and the length of its name. `None`: too short
/// to tell.
fn find_name(input: &[u8]) -> Result<Option<(OpName, usize)>, ProtoError> {
    let mut common_max = 0;
    for (text, name) in NAMES {
        let equal = |(a, b): &(&u8, &u8)| a.eq_ignore_ascii_case(b);
        let common = input.iter().zip(text).take_while(equal).count();
        if common == text.len() {
            return Ok(Some((name, common)));
        }
        common_max = common_max.max(common);
    }
    if common_max == input.len() { Ok(None) } else { Err(unknown(input, common_max, false)) }
}

/// Reads an operation without arguments: the rest of its line is ignored.
fn parse_bare<'a>(input: &'a [u8], name_len: usize, op: Op<'a>) -> Result<Parsed<'a>, ProtoError> {
    let rest = &input[name_len..];
    match memchr(b'\n', &rest[..rest.len().min(IGNORED_BYTES_MAX)]) {
        Some(end) => Ok(Parsed::Op { op, used: name_len + end + 1 }),
        None if rest.len() >= IGNORED_BYTES_MAX => Err(ProtoError::ControlLineTooLong),
        None => Ok(Parsed::Incomplete { need: input.len() + 1 }),
    }
}

/// A whole control line with arguments.
pub(super) struct Line<'a> {
    /// All bytes that were shown, from the beginning of the line.
    input: &'a [u8],
    /// Arguments, from the first byte that is not a blank to the last before the line end.
    pub(super) args: &'a [u8],
    /// The place where the arguments begin.
    start: usize,
    /// The place where the next line begins.
    pub(super) used: usize,
}

impl<'a> Line<'a> {
    /// Whether the line is `words` with one blank between them, and CRLF.
    pub(super) fn is_canonical(&self, words: &[&[u8]]) -> bool {
        let len: usize = words.iter().map(|word| word.len()).sum::<usize>() + words.len() - 1;
        len == self.args.len()
            && self.used == self.start + len + 2
            && memchr2(b'\t', b'\r', self.args).is_none()
    }

    /// Adds to `publish` its payload, the `size` bytes that follow the line. `tail_start` is the
    /// place in the arguments from which on everything may be passed on as it is.
    pub(super) fn parse_payload(
        &self,
        publish: Publish<'a>,
        size: usize,
        tail_start: Option<usize>,
        limits: &ParseLimits,
    ) -> Result<Parsed<'a>, ProtoError> {
        if size > limits.payload_bytes_max {
            return Err(ProtoError::PayloadTooLarge { size, limit: limits.payload_bytes_max });
        }
        let end = self.used + size;
        for (at, expected) in [(end, b'\r'), (end + 1, b'\n')] {
            match self.input.get(at) {
                Some(byte) if *byte == expected => {}
                Some(_) => return Err(unknown(self.input, at, true)),
                None => return Ok(Parsed::Incomplete { need: at + 1 }),
            }
        }
        let used = end + 2;
        let publish = Publish {
            payload: &self.input[self.used..end],
            tail: tail_start.map(|tail_start| &self.input[self.start + tail_start..used]),
            ..publish
        };
        Ok(Parsed::Op { op: Op::Pub(publish), used })
    }
}

/// Finds the arguments behind the operation's name. `None`: their end has not arrived.
pub(super) fn find_line<'a>(
    input: &'a [u8],
    kind: OpKind,
    name_len: usize,
    limits: &ParseLimits,
) -> Result<Option<Line<'a>>, ProtoError> {
    let behind_name = &input[name_len..];
    let Some(first) = behind_name.first() else {
        return Ok(None);
    };
    if !matches!(first, b' ' | b'\t') && !matches!(kind, OpKind::Connect | OpKind::Info) {
        return Err(unknown(input, name_len, false));
    }
    let is_argument = |byte: &u8| !matches!(byte, b' ' | b'\t');
    let blanks = behind_name.iter().position(is_argument).unwrap_or(behind_name.len());
    if blanks > IGNORED_BYTES_MAX {
        return Err(ProtoError::ControlLineTooLong);
    }
    let start = name_len + blanks;
    let rest = &input[start..];
    // Not one byte further than a line with CRLF may reach: the bytes behind it may be many.
    let window = &rest[..rest.len().min(limits.control_line_bytes_max.saturating_add(2))];
    let end = memchr(b'\n', window);
    let args = &window[..end.unwrap_or(window.len())];
    let args = args.strip_suffix(b"\r").unwrap_or(args);
    if args.len() > limits.control_line_bytes_max {
        return Err(ProtoError::ControlLineTooLong);
    }
    Ok(end.map(|end| Line { input, args, start, used: start + end + 1 }))
}

fn parse_pub<'a>(line: &Line<'a>, limits: &ParseLimits) -> Result<Parsed<'a>, ProtoError> {
    let words = Words::of(line.args);
    let (subject, reply, size_text) = match *words.as_slice() {
        [subject, size] => (subject, None, size),
        [subject, reply, size] => (subject, Some(reply), size),
        _ => return Err(bad_arguments("processPub Parse Error", line.args)),
    };
    let size = parse_number(size_text)
        .ok_or_else(|| bad_arguments("processPub Bad or Missing Size", line.args))?;
    let publish = Publish { subject, reply, header: None, size_text, payload: b"", tail: None };
    let tail_start = line.is_canonical(words.as_slice()).then(|| subject.len() + 1);
    line.parse_payload(publish, size, tail_start, limits)
}

fn parse_hpub<'a>(line: &Line<'a>, limits: &ParseLimits) -> Result<Parsed<'a>, ProtoError> {
    if !limits.headers {
        return Err(ProtoError::HeadersNotSupported);
    }
    let bad = |problem| bad_arguments(problem, line.args);
    let words = Words::of(line.args);
    let (subject, reply, header_text, size_text) = match *words.as_slice() {
        [subject, header, size] => (subject, None, header, size),
        [subject, reply, header, size] => (subject, Some(reply), header, size),
        _ => return Err(bad("processHeaderPub Parse Error")),
    };
    let header_len = parse_number(header_text)
        .ok_or_else(|| bad("processHeaderPub Bad or Missing Header Size"))?;
    let size =
        parse_number(size_text).ok_or_else(|| bad("processHeaderPub Bad or Missing Total Size"))?;
    if header_len > size {
        return Err(bad("processHeaderPub Header Size larger then TotalSize"));
    }
    let header = (header_len > 0).then_some(Header { len: header_len, text: header_text });
    let publish = Publish { subject, reply, header, size_text, payload: b"", tail: None };
    let tail_start = match (header, reply) {
        _ if !line.is_canonical(words.as_slice()) => None,
        (Some(_), _) => Some(subject.len() + 1),
        // It goes out as MSG, without the header size in the middle.
        (None, None) => Some(subject.len() + 1 + header_text.len() + 1),
        (None, Some(_)) => None,
    };
    line.parse_payload(publish, size, tail_start, limits)
}

fn parse_sub(args: &[u8]) -> Result<Op<'_>, ProtoError> {
    match *Words::of(args).as_slice() {
        [subject, sid] => Ok(Op::Sub { subject, queue: None, sid }),
        [subject, queue, sid] => Ok(Op::Sub { subject, queue: Some(queue), sid }),
        _ => Err(bad_arguments("processSub Parse Error", args)),
    }
}

fn parse_unsub(args: &[u8]) -> Result<Op<'_>, ProtoError> {
    let (sid, max) = match *Words::of(args).as_slice() {
        [sid] => (sid, None),
        [sid, max] => (sid, parse_number(max)),
        _ => return Err(bad_arguments("processUnsub Parse Error", args)),
    };
    Ok(Op::Unsub { sid, max: max.filter(|max| *max > 0).map(|max| max as u64) })
}

fn parse_info(args: &[u8]) -> Result<Op<'_>, ProtoError> {
    let args = trim(args);
    if !args.starts_with(b"{") || serde_json::from_slice::<IgnoredAny>(args).is_err() {
        return Err(ProtoError::BadInfo);
    }
    Ok(Op::Nothing)
}

/// The arguments of a line.
struct Words<'a> {
    /// Words in order: one more than any operation takes, so that too many are noticed.
    list: [&'a [u8]; 5],
    count: usize,
}

impl<'a> Words<'a> {
    fn of(args: &'a [u8]) -> Self {
        let mut words = Self { list: [b""; 5], count: 0 };
        let split = args.split(is_blank).filter(|word| !word.is_empty());
        for (place, word) in words.list.iter_mut().zip(split) {
            *place = word;
            words.count += 1;
        }
        words
    }

    fn as_slice(&self) -> &[&'a [u8]] {
        &self.list[..self.count]
    }
}

/// Whether a byte is a blank. A CR inside a line is one: clients send none, and so none gets into a
/// subject.
pub(super) fn is_blank(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r')
}

pub(super) fn trim(mut text: &[u8]) -> &[u8] {
    while let [first, rest @ ..] = text
        && is_blank(first)
    {
        text = rest;
    }
    while let [rest @ .., last] = text
        && is_blank(last)
    {
        text = rest;
    }
    text
}

/// Reads a size: 1 to 9 digits and nothing else.
pub(super) fn parse_number(text: &[u8]) -> Option<usize> {
    if text.is_empty() || text.len() > 9 {
        return None;
    }
    text.iter().try_fold(0, |number, byte| {
        byte.is_ascii_digit().then(|| number * 10 + usize::from(byte - b'0'))
    })
}

#[cold]
pub(super) fn unknown(input: &[u8], at: usize, behind_payload: bool) -> ProtoError {
    let rest = &input[at..];
    let snippet = go_quoted(&rest[..rest.len().min(SNIPPET_BYTES_MAX)]);
    ProtoError::UnknownOperation { at, behind_payload, snippet }
}

#[cold]
pub(super) fn bad_arguments(problem: &'static str, args: &[u8]) -> ProtoError {
    ProtoError::BadArguments { problem, args: go_quoted(args) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::encode;
    use super::*;

    const LIMITS: ParseLimits =
        ParseLimits { control_line_bytes_max: 64, payload_bytes_max: 100, headers: true };

    /// Every kind of operation, in usual and in unusual writing.
    const SAMPLE: &[u8] = b"CONNECT {\"verbose\":false}\r\nping\r\nPONG ignored\n\
        PUB a.b 5\r\nhello\r\npub  c\treply 02 \npu\r\nPUB d e 0\r\n\r\n\
        HPUB f 3 5\r\nNATxy\r\nHPUB f g 2 2\r\n\r\n\r\nHPUB h 0 1\r\nx\r\nHPUB h i 0 1\r\n1\r\n\
        SUB j 1\r\nsub\tk.*  q   2 \nUNSUB 1\r\nUNSUB 2 7\r\nUnsub 2 0\n\
        +ok\r\nINFO{}\r\nINFO  {\"a\":[1]} \r\nCONNECT{} \nPING\r\n";

    /// Returns all operations of `wire`, of which the bytes up to each of `ends` arrive together.
    fn ops(wire: &[u8], ends: impl IntoIterator<Item = usize>) -> Result<Vec<String>, Vec<String>> {
        let mut ops = Vec::new();
        let mut start = 0;
        let mut needed = 0;
        for end in ends {
            while end - start >= needed {
                match parse(&wire[start..end], &LIMITS) {
                    Ok(Parsed::Op { op, used }) => {
                        assert!(used > 0);
                        ops.push(format!("{op:?}"));
                        start += used;
                        needed = 0;
                    }
                    Ok(Parsed::Incomplete { need }) => {
                        assert!(need > end - start);
                        needed = need;
                    }
                    Err(error) => {
                        ops.push(format!("{:?} {}", error.wire(), error.reason()));
                        return Err(ops);
                    }
                }
            }
        }
        Ok(ops)
    }

    fn parse_one(wire: &[u8]) -> Op<'_> {
        match parse(wire, &LIMITS) {
            Ok(Parsed::Op { op, used }) => {
                assert_eq!(used, wire.len(), "{}", wire.escape_ascii());
                op
            }
            other => panic!("{}: {other:?}", wire.escape_ascii()),
        }
    }

    fn publish(wire: &[u8]) -> Publish<'_> {
        match parse_one(wire) {
            Op::Pub(publish) => publish,
            other => panic!("{}: {other:?}", wire.escape_ascii()),
        }
    }

    /// Asserts that the last byte of `wire` is the first that proves it wrong.
    fn earliest_error(wire: &[u8], limits: &ParseLimits) -> ProtoError {
        let shown = wire.escape_ascii();
        for end in 0..wire.len() {
            match parse(&wire[..end], limits) {
                Ok(Parsed::Incomplete { need }) => assert!(need <= wire.len(), "{shown} at {end}"),
                other => panic!("{shown} at {end}: {other:?}"),
            }
        }
        match parse(wire, limits) {
            Err(error) => error,
            other => panic!("{shown}: {other:?}"),
        }
    }

    #[test]
    fn the_place_where_tcp_cuts_the_stream_never_matters() {
        let whole = ops(SAMPLE, [SAMPLE.len()]).unwrap();
        assert_eq!(whole.len(), 20);
        for cut in 0..SAMPLE.len() {
            assert_eq!(ops(SAMPLE, [cut, SAMPLE.len()]).unwrap(), whole, "cut at {cut}");
        }
        assert_eq!(ops(SAMPLE, 1..=SAMPLE.len()).unwrap(), whole, "byte by byte");
    }

    #[test]
    fn the_usual_and_the_general_way_agree() {
        for wire in [
            &b"PUB a.b 5\r\nhello\r\n"[..],
            b"pub a.b.c.d.e.f reply.to.me 05\r\nhello\r\n",
            b"HPUB a.b 3 5\r\nhello\r\n",
            b"hPuB a.b.c.d.e.f reply.to.me 005 05\r\nhello\r\n",
        ] {
            let usual = parse_usual_publish(wire, &LIMITS).unwrap();
            let (_, name_len) = find_name(wire).unwrap().unwrap();
            let kind = if name_len == 3 { OpKind::Pub } else { OpKind::Hpub };
            let line = find_line(wire, kind, name_len, &LIMITS).unwrap().unwrap();
            let parse = if kind == OpKind::Pub { parse_pub } else { parse_hpub };
            let (publish, used) = usual;
            assert_eq!(parse(&line, &LIMITS), Ok(Parsed::Op { op: Op::Pub(publish), used }));
        }
    }

    #[test]
    fn what_is_not_usual_is_left_to_the_general_way() {
        let limits = ParseLimits { payload_bytes_max: 5, ..LIMITS };
        for wire in [
            &b"PUB a.b\t5\r\nhello\r\n"[..],
            b"PUB a 5\nhello\r\n",
            b"PUB a 6\r\nhellos\r\n",
            b"PUB a b c 5\r\nhello\r\n",
            b"QUB a 5\r\nhello\r\n",
            b"HPUB a 5\r\nhello\r\n",
            b"HPUB a 0 5\r\nhello\r\n",
            b"HPUB a 6 5\r\nhello\r\n",
            b"HPUB a  5 5\r\nhello\r\n",
            b"HPUB a r 5 5 \r\nhello\r\n",
            b"HPUBa 5 5\r\nhello\r\n",
        ] {
            assert_eq!(parse_usual_publish(wire, &limits), None, "{}", wire.escape_ascii());
        }
        let no_headers = ParseLimits { headers: false, ..LIMITS };
        assert_eq!(parse_usual_publish(b"HPUB a 5 5\r\nhello\r\n", &no_headers), None);
    }

    #[test]
    fn a_publish_has_its_parts_as_they_were_sent() {
        let message = publish(b"PUB a.b reply 05\r\nhello\r\n");
        assert_eq!(message.subject, b"a.b");
        assert_eq!(message.reply, Some(&b"reply"[..]));
        assert_eq!(message.size_text, b"05");
        assert_eq!(message.payload, b"hello");
        assert_eq!(message.body(), b"hello");
        assert_eq!(message.tail, Some(&b"reply 05\r\nhello\r\n"[..]));

        let message = publish(b"HPUB a 3 5\r\nxyzhi\r\n");
        assert_eq!(message.header, Some(Header { len: 3, text: b"3" }));
        assert_eq!(message.payload, b"xyzhi");
        assert_eq!(message.body(), b"hi");
        assert_eq!(message.tail, Some(&b"3 5\r\nxyzhi\r\n"[..]));
        assert_eq!(publish(b"HPUB a r 3 3\r\nxyz\r\n").tail, Some(&b"r 3 3\r\nxyz\r\n"[..]));
    }

    #[test]
    fn a_header_size_of_zero_makes_a_plain_message() {
        let message = publish(b"HPUB a 00 5\r\nhello\r\n");
        assert_eq!((message.header, message.tail), (None, Some(&b"5\r\nhello\r\n"[..])));
        let message = publish(b"HPUB a r 0 5\r\nhello\r\n");
        assert_eq!((message.header, message.tail), (None, None));
    }

    #[test]
    fn a_tail_is_given_only_for_single_blanks_and_crlf() {
        for wire in [
            &b"PUB a  1\r\nx\r\n"[..],
            b"PUB a 1 \r\nx\r\n",
            b"PUB a\t1\r\nx\r\n",
            b"PUB a r\t1\r\nx\r\n",
            b"PUB a 1\nx\r\n",
            b"PUB a 1\r\r\nx\r\n",
            b"HPUB a  1 1\r\nx\r\n",
            b"HPUB a 1 1\nx\r\n",
        ] {
            let message = publish(wire);
            assert_eq!(message.tail, None, "{}", wire.escape_ascii());
            assert_eq!((message.subject, message.payload), (&b"a"[..], &b"x"[..]));
        }
        assert_eq!(publish(b"PUB   a 1\r\nx\r\n").tail, Some(&b"1\r\nx\r\n"[..]));
        assert_eq!(publish(b"hpub \t a r 1 1\r\nx\r\n").tail, Some(&b"r 1 1\r\nx\r\n"[..]));
    }

    #[test]
    fn subjects_hold_any_bytes_but_blanks() {
        let message = publish(b"PUB \x01\x7f\xff\xfe.\0 1\r\n\n\r\n");
        assert_eq!((message.subject, message.payload), (&b"\x01\x7f\xff\xfe.\0"[..], &b"\n"[..]));
        assert_eq!(
            parse_one(b"SUB \xc3\xa9 \x01 \0\n"),
            Op::Sub { subject: b"\xc3\xa9", queue: Some(b"\x01"), sid: b"\0" }
        );
    }

    #[test]
    fn unsub_without_a_usable_limit_means_now() {
        for (wire, expected) in [
            (&b"UNSUB 1\r\n"[..], None),
            (b"UNSUB 1 0\r\n", None),
            (b"UNSUB 1 soon\r\n", None),
            (b"UNSUB 1 -1\r\n", None),
            (b"UNSUB 1 1000000000\r\n", None),
            (b"UNSUB 1 999999999\r\n", Some(999_999_999)),
            (b"unsub\t1   007\n", Some(7)),
        ] {
            assert_eq!(parse_one(wire), Op::Unsub { sid: b"1", max: expected });
        }
    }

    #[test]
    fn connect_is_handed_over_without_the_blanks_around_it() {
        assert_eq!(parse_one(b"CONNECT \t{\"a\": 1} \r\n"), Op::Connect(b"{\"a\": 1}"));
        assert_eq!(parse_one(b"connect{}\n"), Op::Connect(b"{}"));
        assert_eq!(parse_one(b"CONNECT\r\n"), Op::Connect(b""));
        assert_eq!(parse_one(b"CONNECT \r\n"), Op::Connect(b""));
    }

    #[test]
    fn an_unknown_operation_is_noticed_at_its_first_wrong_byte() {
        for wire in [
            " ", "\r", "\n", "\0", "X", "HE", "HM", "M", "R", "L", "A", "PX", "PUX", "PUBf",
            "PUB\r", "PUB\n", "SUBS", "SUB\r", "UNSUB\r", "UNSUBx", "HPUB\n", "PI\n", "PIN\r",
            "CONNECX", "INFX", "+K", "+O\r", "-ERR\r", "-ERRx", "-R",
        ] {
            let error = earliest_error(wire.as_bytes(), &LIMITS);
            assert_eq!(error.wire(), Some("Unknown Protocol Operation"), "{wire:?}");
            assert_eq!(error.reason(), "Protocol Violation");
        }
    }

    #[test]
    fn a_payload_with_a_wrong_end_is_noticed_at_its_first_wrong_byte() {
        for wire in [
            "PUB a 5\r\nhello!",
            "PUB a 5\r\nhello\n",
            "PUB a 5\r\nhello\r\r",
            "PUB a 0\r\nP",
            "PUB a 0\n\n",
            "HPUB a 1 2\r\nhix",
            "HPUB a 1 2\r\nhi\rx",
        ] {
            let error = earliest_error(wire.as_bytes(), &LIMITS);
            assert_eq!(error.wire(), Some("Unknown Protocol Operation"), "{wire:?}");
            assert!(matches!(error, ProtoError::UnknownOperation { behind_payload: true, .. }));
        }
    }

    #[test]
    fn a_payload_too_large_is_refused_before_it_is_sent() {
        for wire in ["PUB a 101\n", "PUB a r 999999999\r\n", "HPUB a 1 101\r\n"] {
            let error = earliest_error(wire.as_bytes(), &LIMITS);
            assert_eq!(error.wire(), Some("Maximum Payload Violation"), "{wire:?}");
            assert_eq!(error.reason(), "Maximum Message Payload Exceeded");
        }
        let error = earliest_error(b"PUB a 101\r\n", &LIMITS);
        assert_eq!(error.to_string(), "maximum payload exceeded: 101 vs 100");
    }

    #[test]
    fn wrong_arguments_close_silently_as_soon_as_their_line_was_read() {
        for (wire, log) in [
            ("SUB \n", "processSub Parse Error: \"\""),
            ("SUB foo\r\n", "processSub Parse Error: \"foo\""),
            ("SUB a b c d\r\n", "processSub Parse Error: \"a b c d\""),
            ("SUB a b c d e f g\n", "processSub Parse Error: \"a b c d e f g\""),
            ("UNSUB \n", "processUnsub Parse Error: \"\""),
            ("UNSUB 1 2 3\r\n", "processUnsub Parse Error: \"1 2 3\""),
            ("PUB foo\r\n", "processPub Parse Error: \"foo\""),
            ("PUB a b c d\r\n", "processPub Parse Error: \"a b c d\""),
            ("PUB a five\r\n", "processPub Bad or Missing Size: \"a five\""),
            ("PUB a -1\r\n", "processPub Bad or Missing Size: \"a -1\""),
            ("PUB a +5\n", "processPub Bad or Missing Size: \"a +5\""),
            ("PUB a 0x5\n", "processPub Bad or Missing Size: \"a 0x5\""),
            ("PUB a 5.0\n", "processPub Bad or Missing Size: \"a 5.0\""),
            ("PUB a 0000000005\n", "processPub Bad or Missing Size: \"a 0000000005\""),
            ("HPUB a 1\n", "processHeaderPub Parse Error: \"a 1\""),
            ("HPUB a b 1 1 1\n", "processHeaderPub Parse Error: \"a b 1 1 1\""),
            ("HPUB a x 1\n", "processHeaderPub Bad or Missing Header Size: \"a x 1\""),
            ("HPUB a 1 -2\n", "processHeaderPub Bad or Missing Total Size: \"a 1 -2\""),
            ("HPUB a 3 2\n", "processHeaderPub Header Size larger then TotalSize: \"a 3 2\""),
            ("INFO []\n", "INFO is not a JSON object"),
            ("INFO {\n", "INFO is not a JSON object"),
            ("INFO\n", "INFO is not a JSON object"),
        ] {
            let error = earliest_error(wire.as_bytes(), &LIMITS);
            assert_eq!(error.wire(), None, "{wire:?}");
            assert_eq!(error.reason(), "Protocol Violation");
            assert_eq!(error.to_string(), log);
        }
    }

    #[test]
    fn an_error_from_the_client_closes_silently() {
        let error = earliest_error(b"-err 'what ever' \r\n", &LIMITS);
        assert_eq!(error.wire(), None);
        assert_eq!(error.reason(), "Parse Error");
        assert_eq!(error.to_string(), "Client Error 'what ever'");
    }

    #[test]
    fn hpub_without_headers_closes_silently_as_soon_as_its_line_was_read() {
        let limits = ParseLimits { headers: false, ..LIMITS };
        for wire in ["HPUB a 12 14\r\n", "HPUB a 12 1000\n", "HPUB \n"] {
            let error = earliest_error(wire.as_bytes(), &limits);
            assert_eq!(error, ProtoError::HeadersNotSupported);
            assert_eq!(error.wire(), None);
            assert_eq!(error.to_string(), "message headers not supported");
        }
    }

    #[test]
    fn a_control_line_too_long_is_noticed_without_its_end() {
        let limits = ParseLimits { control_line_bytes_max: 9, ..LIMITS };
        for wire in [
            "SUB 12345678 1",
            "SUB  \t 12345678 1",
            "UNSUB 1234567890",
            "PUB 123456 r 5",
            "HPUB 1234567 15",
            "CONNECT {        }",
            "INFO{        }",
            "-ERR 1234567890",
            "SUB 1234567\r\r\r\r",
        ] {
            let error = earliest_error(wire.as_bytes(), &limits);
            assert_eq!(error.wire(), Some("maximum control line exceeded"), "{wire:?}");
            assert_eq!(error.reason(), "Maximum Control Line Exceeded");
        }
        for end in ["\n", "\r\n", " 1\n"] {
            let wire = format!("PUB 1234567 1{end}x\r\n");
            let whole = parse(wire.as_bytes(), &limits);
            assert_eq!(whole.is_err(), end.starts_with(' '), "{end:?}");
        }
        let mut long = b"PUB ".to_vec();
        long.resize(1_000_000, b'p');
        assert_eq!(parse(&long, &limits), Err(ProtoError::ControlLineTooLong));
    }

    #[test]
    fn what_counts_towards_no_limit_still_ends_somewhere() {
        for name in ["PING", "pong", "+OK"] {
            let mut wire = name.as_bytes().to_vec();
            wire.resize(name.len() + IGNORED_BYTES_MAX - 1, b' ');
            assert!(parse(&wire, &LIMITS).is_ok());
            wire.push(b'\n');
            assert!(matches!(parse(&wire, &LIMITS), Ok(Parsed::Op { .. })));
            *wire.last_mut().unwrap() = b' ';
            assert_eq!(parse(&wire, &LIMITS), Err(ProtoError::ControlLineTooLong));
        }
        let mut wire = b"SUB".to_vec();
        wire.resize(3 + IGNORED_BYTES_MAX, b' ');
        assert!(parse(&wire, &LIMITS).is_ok());
        wire.push(b' ');
        assert_eq!(parse(&wire, &LIMITS), Err(ProtoError::ControlLineTooLong));
    }

    #[test]
    fn a_payload_is_asked_for_up_to_its_cr_and_then_to_its_lf() {
        let wire = b"PUB a 50\r\n";
        assert_eq!(parse(wire, &LIMITS), Ok(Parsed::Incomplete { need: wire.len() + 51 }));
        let mut wire = wire.to_vec();
        wire.resize(wire.len() + 50, b'x');
        wire.push(b'\r');
        assert_eq!(parse(&wire, &LIMITS), Ok(Parsed::Incomplete { need: wire.len() + 1 }));
    }

    #[test]
    fn the_log_shows_where_an_unknown_operation_went_wrong() {
        let error = parse(b"PUBfoo 0\r\n\r\n", &LIMITS).unwrap_err();
        let log = r#"Client parser ERROR, state=0, i=3: proto='"foo 0\r\n\r\n"...'"#;
        assert_eq!(error.to_string(), log);
    }

    #[test]
    fn what_the_server_writes_to_anyone_is_understood() {
        let mut wire = Vec::new();
        encode::ok(&mut wire);
        encode::ping(&mut wire);
        encode::pong(&mut wire);
        encode::info(&mut wire, encode::Info::default().to_json().as_bytes());
        let nothing = format!("{:?}", Op::Nothing);
        let limits = ParseLimits { control_line_bytes_max: 4096, ..LIMITS };
        let mut rest = &wire[..];
        let mut ops = Vec::new();
        while !rest.is_empty() {
            let Ok(Parsed::Op { op, used }) = parse(rest, &limits) else { panic!() };
            ops.push(format!("{op:?}"));
            rest = &rest[used..];
        }
        assert_eq!(ops, [nothing.clone(), "Ping".into(), "Pong".into(), nothing]);
        wire.clear();
        encode::err(&mut wire, "some text");
        let error = ProtoError::ErrorFromClient("'some text'".into());
        assert_eq!(parse(&wire, &LIMITS), Err(error));
    }

    fn word() -> impl Strategy<Value = Vec<u8>> {
        let byte = any::<u8>().prop_filter("no blank", |byte| !b" \t\r\n".contains(byte));
        prop::collection::vec(byte, 1..20)
    }

    /// Pieces of which some together make operations.
    fn piece() -> impl Strategy<Value = &'static [u8]> {
        prop::sample::select(vec![
            &b"PUB "[..],
            b"hpub ",
            b"SUB\t",
            b"UNSUB ",
            b"PING",
            b"+OK",
            b"INFO ",
            b"CONNECT ",
            b"-ERR ",
            b"a.b",
            b"1",
            b"3",
            b"02",
            b"101",
            b"{}",
            b"x",
            b" ",
            b" ",
            b"\t",
            b"\r",
            b"\n",
            b"\r\n",
            b"\r\n",
            b"\r\nabc\r\n",
            b"\xff",
        ])
    }

    proptest! {
        #[test]
        fn any_publish_is_read_back(
            subject in word(),
            reply in prop::option::of(word()),
            payload in prop::collection::vec(any::<u8>(), 0..100),
            header_len in prop::option::of(0..100_usize),
            behind in prop::collection::vec(any::<u8>(), 0..10),
        ) {
            let mut wire = Vec::new();
            wire.extend_from_slice(if header_len.is_some() { b"HPUB " } else { b"PUB " });
            wire.extend_from_slice(&subject);
            let reply = reply.as_deref();
            if let Some(text) = reply {
                wire.push(b' ');
                wire.extend_from_slice(text);
            }
            let header_len = header_len.map(|len| len.min(payload.len()));
            if let Some(len) = header_len {
                wire.extend_from_slice(format!(" {len}").as_bytes());
            }
            wire.extend_from_slice(format!(" {}\r\n", payload.len()).as_bytes());
            wire.extend_from_slice(&payload);
            wire.extend_from_slice(b"\r\n");
            let len = wire.len();
            wire.extend_from_slice(&behind);
            let limits = ParseLimits { control_line_bytes_max: 4096, ..LIMITS };
            let Ok(Parsed::Op { op: Op::Pub(message), used }) = parse(&wire, &limits) else {
                panic!("{}", wire.escape_ascii());
            };
            prop_assert_eq!(used, len);
            prop_assert_eq!(message.subject, &subject);
            prop_assert_eq!(message.reply, reply);
            prop_assert_eq!(message.payload, &payload);
            prop_assert_eq!(message.header.map_or(0, |h| h.len), header_len.unwrap_or(0));
            let whole = header_len != Some(0) || reply.is_none();
            prop_assert_eq!(message.tail.is_some(), whole);
            for headers in [true, false] {
                let (mut quick, mut slow) = (Vec::new(), Vec::new());
                encode::msg(&mut quick, &message, b"7", headers);
                encode::msg(&mut slow, &Publish { tail: None, ..message }, b"7", headers);
                prop_assert_eq!(quick, slow);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            name in 0..NAMES.len(),
        ) {
            let _ = parse(&bytes, &LIMITS);
            let _ = parse(&[NAMES[name].0, b" ", &bytes].concat(), &LIMITS);
        }

        #[test]
        fn cuts_never_matter_and_errors_never_wait(
            pieces in prop::collection::vec(piece(), 0..25),
            cut in any::<prop::sample::Index>(),
        ) {
            let wire = pieces.concat();
            let whole = ops(&wire, [wire.len()]);
            prop_assert_eq!(&ops(&wire, 1..=wire.len()), &whole);
            prop_assert_eq!(&ops(&wire, [cut.index(wire.len() + 1), wire.len()]), &whole);
        }

        #[test]
        fn the_end_of_a_word_is_its_first_byte_up_to_a_blank(
            bytes in prop::collection::vec(prop::sample::select(vec![
                0_u8, 0x1f, 0x20, 0x21, 0x22, 0x7f, 0x80, 0xa0, 0xa1, 0xff, b'a', b'b', b'c'
            ]), 0..40),
            from in 0..40_usize,
        ) {
            let naive = (from..bytes.len()).find(|at| bytes[*at] <= b' ');
            prop_assert_eq!(word_end(&bytes, from), naive);
        }
    }
}
