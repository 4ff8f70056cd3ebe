//! Bytes of a client become operations.
//!
//! [`parse()`] keeps no state: it is shown the same bytes again when more have arrived. What it
//! returns depends on the bytes alone, so the places where TCP cuts the stream never matter.

#![forbid(unsafe_code)]

use memchr::{memchr, memchr2};
use serde::de::IgnoredAny;

use super::encode::go_quoted;
use super::{Header, Limits, Op, Parsed, ProtoError, Publish};

/// Longest text between an operation's name and its line end that counts towards no limit of
/// §13, in bytes: the blanks before the first argument, and anything behind PING, PONG and +OK.
///
/// nats-server knows no limit there because it forgets such bytes as they come. Here the caller
/// has to keep them, so there must be one.
pub const IGNORED_BYTES_MAX: usize = 64 * 1024;

/// How much of an unknown operation the log shows, in bytes.
const SNIPPET_BYTES_MAX: usize = 32;

/// Reads the first operation of `input`.
///
/// Reads no byte behind that operation. An error is returned as soon as the bytes that prove it
/// are there, whole operation or not; nothing can be read behind it.
///
/// # Errors
///
/// Whenever a client breaks the rules of §1, §7, §8 and §13. Operations before it, which
/// earlier calls returned, stand.
pub fn parse<'a>(input: &'a [u8], limits: &Limits) -> Result<Parsed<'a>, ProtoError> {
    if let Some(parsed) = parse_usual_pub(input, limits) {
        return Ok(parsed);
    }
    let Some((name, name_len)) = find_name(input)? else {
        return Ok(Parsed::Incomplete { need: input.len() + 1 });
    };
    let kind = match name {
        Name::Bare(op) => return parse_bare(input, name_len, op),
        Name::WithArguments(kind) => kind,
    };
    let Some(line) = find_line(input, kind, name_len, limits)? else {
        return Ok(Parsed::Incomplete { need: input.len() + 1 });
    };
    let op = match kind {
        Kind::Pub => return parse_pub(input, &line, limits),
        Kind::Hpub => return parse_hpub(input, &line, limits),
        Kind::Sub => parse_sub(line.args)?,
        Kind::Unsub => parse_unsub(line.args)?,
        Kind::Connect => Op::Connect(trim(line.args)),
        Kind::Info => parse_info(line.args)?,
        Kind::Err => {
            let text = String::from_utf8_lossy(trim(line.args)).into_owned();
            return Err(ProtoError::ErrorFromClient(text));
        }
    };
    Ok(Parsed::Op { op, used: line.used })
}

/// The operation almost every client sends almost always: a whole
/// `PUB <subject> [reply] <size>`, written with single blanks and CRLF, within the limits.
///
/// `None` means only that it is something else; [`parse()`] then looks at it without haste.
fn parse_usual_pub<'a>(input: &'a [u8], limits: &Limits) -> Option<Parsed<'a>> {
    const START: usize = b"PUB ".len();
    if !input.get(..START)?.eq_ignore_ascii_case(b"PUB ") {
        return None;
    }
    let subject_end = word_end(input, START)?;
    if subject_end == START || input[subject_end] != b' ' {
        return None;
    }
    let tail_start = subject_end + 1;
    let mut size_start = tail_start;
    let mut size_end = word_end(input, size_start)?;
    let mut reply = None;
    if input[size_end] == b' ' && size_end > size_start {
        reply = Some(&input[size_start..size_end]);
        size_start = size_end + 1;
        size_end = word_end(input, size_start)?;
    }
    if !input[size_end..].starts_with(b"\r\n") {
        return None;
    }
    let size_text = &input[size_start..size_end];
    let size = parse_number(size_text)?;
    let payload_start = size_end + 2;
    let payload_end = payload_start + size;
    let used = payload_end + 2;
    if size > limits.payload_bytes_max
        || size_end - START > limits.control_line_bytes_max
        || input.get(payload_end..used)? != b"\r\n"
    {
        return None;
    }
    let publish = Publish {
        subject: &input[START..subject_end],
        reply,
        header: None,
        size_text,
        payload: &input[payload_start..payload_end],
        tail: Some(&input[tail_start..used]),
    };
    Some(Parsed::Op { op: Op::Pub(publish), used })
}

/// The first place from `at` on of a byte that is a blank or less; `None` if all are greater.
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
enum Name {
    /// The name is all there is to it.
    Bare(Op<'static>),
    WithArguments(Kind),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Pub,
    Hpub,
    Sub,
    Unsub,
    Connect,
    Info,
    Err,
}

/// Likely ones first.
const NAMES: [(&[u8], Name); 10] = [
    (b"PUB", Name::WithArguments(Kind::Pub)),
    (b"HPUB", Name::WithArguments(Kind::Hpub)),
    (b"SUB", Name::WithArguments(Kind::Sub)),
    (b"UNSUB", Name::WithArguments(Kind::Unsub)),
    (b"PING", Name::Bare(Op::Ping)),
    (b"PONG", Name::Bare(Op::Pong)),
    (b"CONNECT", Name::WithArguments(Kind::Connect)),
    (b"INFO", Name::WithArguments(Kind::Info)),
    (b"+OK", Name::Bare(Op::Nothing)),
    (b"-ERR", Name::WithArguments(Kind::Err)),
];

/// The operation that `input` begins with and the length of its name. `None`: too short to tell.
fn find_name(input: &[u8]) -> Result<Option<(Name, usize)>, ProtoError> {
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

/// An operation without arguments: whatever is on its line is ignored.
fn parse_bare<'a>(
    input: &'a [u8],
    name_len: usize,
    op: Op<'a>,
) -> Result<Parsed<'a>, ProtoError> {
    let rest = &input[name_len..];
    match memchr(b'\n', &rest[..rest.len().min(IGNORED_BYTES_MAX)]) {
        Some(end) => Ok(Parsed::Op { op, used: name_len + end + 1 }),
        None if rest.len() >= IGNORED_BYTES_MAX => Err(ProtoError::ControlLineTooLong),
        None => Ok(Parsed::Incomplete { need: input.len() + 1 }),
    }
}

/// A whole control line with arguments.
struct Line<'a> {
    /// From the first byte that is no blank to the last before the line end.
    args: &'a [u8],
    /// Where they begin.
    start: usize,
    /// Where the next line begins.
    used: usize,
}

/// Finds the arguments behind the operation's name. `None`: their end is not there yet.
fn find_line<'a>(
    input: &'a [u8],
    kind: Kind,
    name_len: usize,
    limits: &Limits,
) -> Result<Option<Line<'a>>, ProtoError> {
    let behind_name = &input[name_len..];
    let Some(first) = behind_name.first() else {
        return Ok(None);
    };
    if !matches!(first, b' ' | b'\t') && !matches!(kind, Kind::Connect | Kind::Info) {
        return Err(unknown(input, name_len, false));
    }
    let is_argument = |byte: &u8| !matches!(byte, b' ' | b'\t');
    let blanks = behind_name.iter().position(is_argument).unwrap_or(behind_name.len());
    if blanks > IGNORED_BYTES_MAX {
        return Err(ProtoError::ControlLineTooLong);
    }
    let start = name_len + blanks;
    let rest = &input[start..];
    // Not one byte further than a line with CRLF may reach: what is behind may be long.
    let window = &rest[..rest.len().min(limits.control_line_bytes_max.saturating_add(2))];
    let end = memchr(b'\n', window);
    let args = &window[..end.unwrap_or(window.len())];
    let args = args.strip_suffix(b"\r").unwrap_or(args);
    if args.len() > limits.control_line_bytes_max {
        return Err(ProtoError::ControlLineTooLong);
    }
    Ok(end.map(|end| Line { args, start, used: start + end + 1 }))
}

fn parse_pub<'a>(
    input: &'a [u8],
    line: &Line<'a>,
    limits: &Limits,
) -> Result<Parsed<'a>, ProtoError> {
    let words = Words::of(line.args);
    let (subject, reply, size_text) = match *words.as_slice() {
        [subject, size] => (subject, None, size),
        [subject, reply, size] => (subject, Some(reply), size),
        _ => return Err(bad_arguments("processPub Parse Error", line.args)),
    };
    let size = parse_number(size_text)
        .ok_or_else(|| bad_arguments("processPub Bad or Missing Size", line.args))?;
    let publish = Publish { subject, reply, header: None, size_text, payload: b"", tail: None };
    let tail_start = is_canonical(line, words.as_slice()).then(|| subject.len() + 1);
    parse_payload(input, line, publish, tail_start, size, limits)
}

fn parse_hpub<'a>(
    input: &'a [u8],
    line: &Line<'a>,
    limits: &Limits,
) -> Result<Parsed<'a>, ProtoError> {
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
    let size = parse_number(size_text)
        .ok_or_else(|| bad("processHeaderPub Bad or Missing Total Size"))?;
    if header_len > size {
        return Err(bad("processHeaderPub Header Size larger then TotalSize"));
    }
    let header = (header_len > 0).then_some(Header { len: header_len, text: header_text });
    let publish = Publish { subject, reply, header, size_text, payload: b"", tail: None };
    let tail_start = match (header, reply) {
        _ if !is_canonical(line, words.as_slice()) => None,
        (Some(_), _) => Some(subject.len() + 1),
        // It goes out as MSG, without the header size in the middle.
        (None, None) => Some(subject.len() + 1 + header_text.len() + 1),
        (None, Some(_)) => None,
    };
    parse_payload(input, line, publish, tail_start, size, limits)
}

/// Whether the line is its words with one blank between them, and CRLF.
fn is_canonical(line: &Line<'_>, words: &[&[u8]]) -> bool {
    let len: usize = words.iter().map(|word| word.len()).sum::<usize>() + words.len() - 1;
    len == line.args.len()
        && line.used == line.start + len + 2
        && memchr2(b'\t', b'\r', line.args).is_none()
}

/// Adds the payload of `size` bytes that follows `line`. `tail_start` is the place in the
/// arguments from which on everything may be passed on as it is.
fn parse_payload<'a>(
    input: &'a [u8],
    line: &Line<'a>,
    publish: Publish<'a>,
    tail_start: Option<usize>,
    size: usize,
    limits: &Limits,
) -> Result<Parsed<'a>, ProtoError> {
    if size > limits.payload_bytes_max {
        return Err(ProtoError::PayloadTooLarge { size, limit: limits.payload_bytes_max });
    }
    let end = line.used + size;
    for (at, expected) in [(end, b'\r'), (end + 1, b'\n')] {
        match input.get(at) {
            Some(byte) if *byte == expected => {}
            Some(_) => return Err(unknown(input, at, true)),
            None => return Ok(Parsed::Incomplete { need: at + 1 }),
        }
    }
    let used = end + 2;
    let publish = Publish {
        payload: &input[line.used..end],
        tail: tail_start.map(|tail_start| &input[line.start + tail_start..used]),
        ..publish
    };
    Ok(Parsed::Op { op: Op::Pub(publish), used })
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
    /// One more than any operation takes, so that too many can be told.
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

/// A CR inside a line counts as a blank: nobody sends one, and so none gets into a subject.
fn is_blank(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r')
}

fn trim(mut text: &[u8]) -> &[u8] {
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

/// A size: 1 to 9 digits and nothing else.
fn parse_number(text: &[u8]) -> Option<usize> {
    if text.is_empty() || text.len() > 9 {
        return None;
    }
    text.iter().try_fold(0, |number, byte| {
        byte.is_ascii_digit().then(|| number * 10 + usize::from(byte - b'0'))
    })
}

#[cold]
fn unknown(input: &[u8], at: usize, behind_payload: bool) -> ProtoError {
    let rest = &input[at..];
    let snippet = go_quoted(&rest[..rest.len().min(SNIPPET_BYTES_MAX)]);
    ProtoError::UnknownOperation { at, behind_payload, snippet }
}

#[cold]
fn bad_arguments(problem: &'static str, args: &[u8]) -> ProtoError {
    ProtoError::BadArguments { problem, args: go_quoted(args) }
}
