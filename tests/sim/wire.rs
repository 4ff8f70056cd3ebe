//! A strict parser of what the server sends: whatever is not exactly the protocol panics.

/// One operation of the server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard<'a> {
    Info(&'a [u8]),
    Ping,
    Pong,
    Ok,
    Err(&'a [u8]),
    Message(Message<'a>),
}

/// A MSG or HMSG.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    pub(crate) subject: &'a [u8],
    pub(crate) sid: &'a [u8],
    pub(crate) reply: Option<&'a [u8]>,
    /// The header size as it was written; `None` for MSG.
    pub(crate) header_text: Option<&'a [u8]>,
    pub(crate) size_text: &'a [u8],
    pub(crate) payload: &'a [u8],
}

/// The first operation of `bytes` and its length; `None` while it is not whole.
pub(crate) fn parse(bytes: &[u8]) -> Option<(Heard<'_>, usize)> {
    let known =
        [&b"INFO {"[..], b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b"-ERR '", b"MSG ", b"HMSG "];
    let start = known.iter().find(|known| {
        let len = known.len().min(bytes.len());
        known[..len] == bytes[..len]
    });
    assert!(start.is_some(), "the server sent something else than an operation: {}", show(bytes));
    let line_end = bytes.windows(2).take(5000).position(|pair| pair == b"\r\n")?;
    let (line, used) = (&bytes[..line_end], line_end + 2);
    let heard = match line {
        b"PING" => Heard::Ping,
        b"PONG" => Heard::Pong,
        b"+OK" => Heard::Ok,
        _ if line.starts_with(b"INFO ") => {
            assert!(line.ends_with(b"} "), "INFO is JSON and a blank: {}", show(line));
            Heard::Info(&line[5..line.len() - 1])
        }
        _ if line.starts_with(b"-ERR '") => {
            assert!(line.ends_with(b"'"), "-ERR quotes its text: {}", show(line));
            Heard::Err(&line[6..line.len() - 1])
        }
        _ => return message(line, &bytes[used..], used),
    };
    Some((heard, used))
}

fn message<'a>(line: &'a [u8], rest: &'a [u8], line_len: usize) -> Option<(Heard<'a>, usize)> {
    let parts: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    assert!(parts.iter().all(|part| !part.is_empty()), "blanks are single: {}", show(line));
    let headers = parts[0] == b"HMSG";
    let sizes = if headers { 2 } else { 1 };
    let fixed = 3 + sizes;
    assert!(parts.len() == fixed || parts.len() == fixed + 1, "arguments: {}", show(line));
    let reply = (parts.len() > fixed).then(|| parts[3]);
    let size_text = parts[parts.len() - 1];
    let size = number(size_text);
    let header_text = headers.then(|| parts[parts.len() - 2]);
    assert!(header_text.is_none_or(|text| number(text) <= size), "sizes: {}", show(line));
    let whole = size + 2;
    if rest.len() < whole {
        return None;
    }
    let (payload, end) = rest[..whole].split_at(size);
    assert_eq!(end, b"\r\n", "a payload ends with CRLF: {}", show(line));
    let (subject, sid) = (parts[1], parts[2]);
    let message = Message { subject, sid, reply, header_text, size_text, payload };
    Some((Heard::Message(message), line_len + whole))
}

fn number(text: &[u8]) -> usize {
    let digits = (1..=9).contains(&text.len()) && text.iter().all(u8::is_ascii_digit);
    assert!(digits, "a size is 1 to 9 digits, not {}", show(text));
    text.iter().fold(0, |number, digit| number * 10 + usize::from(digit - b'0'))
}

/// Bytes as readable text, cut to what fits in a line.
pub(crate) fn show(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(120)];
    let more = if shown.len() < bytes.len() { "…" } else { "" };
    format!("{:?}{more}", String::from_utf8_lossy(shown))
}
