//! Operations of the server to clients, appended to a buffer.

use std::fmt::Write;

use serde::Serialize;

use super::Publish;

/// Appends `+OK`.
pub fn ok(out: &mut Vec<u8>) {
    out.extend_from_slice(b"+OK\r\n");
}

/// Appends `PING`.
pub fn ping(out: &mut Vec<u8>) {
    out.extend_from_slice(b"PING\r\n");
}

/// Appends `PONG`.
pub fn pong(out: &mut Vec<u8>) {
    out.extend_from_slice(b"PONG\r\n");
}

/// Appends `-ERR '<text>'`; the texts are those of nats-server.
pub fn err(out: &mut Vec<u8>, text: &str) {
    append(out, &[b"-ERR '", text.as_bytes(), b"'\r\n"]);
}

/// Appends an INFO line with a JSON object already rendered, without line ends in it.
pub fn info(out: &mut Vec<u8>, json: &[u8]) {
    append(out, &[b"INFO ", json, b" \r\n"]);
}

/// Appends the part of a message before [`Publish::tail`]: `HMSG <subject> <sid> `, or MSG without
/// `headers`.
pub fn msg_prefix(out: &mut Vec<u8>, headers: bool, subject: &[u8], sid: &[u8]) {
    let name: &[u8] = if headers { b"HMSG " } else { b"MSG " };
    append(out, &[name, subject, b" ", sid, b" "]);
}

/// Appends a publish as a client would write it.
pub fn publish_again(out: &mut Vec<u8>, message: &Publish<'_>) {
    let name: &[u8] = if message.header.is_some() { b"HPUB " } else { b"PUB " };
    append(out, &[name, message.subject, b" "]);
    if let Some(reply) = message.reply {
        append(out, &[reply, b" "]);
    }
    if let Some(header) = message.header {
        append(out, &[header.text, b" "]);
    }
    append(out, &[message.size_text, b"\r\n", message.payload, b"\r\n"]);
}

/// Returns the bytes that [`publish_again`] appends.
pub fn publish_again_bytes(message: &Publish<'_>) -> usize {
    let Publish { subject, reply, header, size_text, payload, .. } = message;
    let name_len = if header.is_some() { b"HPUB ".len() } else { b"PUB ".len() };
    let reply_len = reply.map_or(0, |reply| reply.len() + 1);
    let header_len = header.map_or(0, |header| header.text.len() + 1);
    let head_len = name_len + subject.len() + 1 + reply_len + header_len + size_text.len();
    head_len + b"\r\n".len() + payload.len() + b"\r\n".len()
}

/// Appends a whole MSG or HMSG: `message` for the subscription `sid` of a receiver with or without
/// `headers`.
pub fn msg(out: &mut Vec<u8>, message: &Publish<'_>, sid: &[u8], headers: bool) {
    let header = message.header.filter(|_| headers);
    msg_prefix(out, header.is_some(), message.subject, sid);
    let stripped = message.header.is_some() && !headers;
    if let Some(tail) = message.tail
        && !stripped
    {
        out.extend_from_slice(tail);
        return;
    }
    if let Some(reply) = message.reply {
        append(out, &[reply, b" "]);
    }
    if let Some(header) = header {
        append(out, &[header.text, b" "]);
    }
    if stripped {
        let body = message.body();
        let size = itoa::Buffer::new().format(body.len()).to_owned();
        append(out, &[size.as_bytes(), b"\r\n", body, b"\r\n"]);
    } else {
        append(out, &[message.size_text, b"\r\n", message.payload, b"\r\n"]);
    }
}

/// Appends the 503 status that a publisher gets at its `reply` when its message to `subject` had no
/// receiver.
pub fn no_responders(out: &mut Vec<u8>, reply: &[u8], sid: &[u8], subject: &[u8]) {
    const BEFORE: &[u8] = b"NATS/1.0 503\r\nNats-Subject: ";
    const BEHIND: &[u8] = b"\r\n\r\n";
    let mut number = itoa::Buffer::new();
    let size = number.format(BEFORE.len() + subject.len() + BEHIND.len()).as_bytes();
    msg_prefix(out, true, reply, sid);
    append(out, &[size, b" ", size, b"\r\n", BEFORE, subject, BEHIND, b"\r\n"]);
}

pub(super) fn append(out: &mut Vec<u8>, parts: &[&[u8]]) {
    out.reserve(parts.iter().map(|part| part.len()).sum());
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// Returns the -ERR text for publishing to `subject` without permission.
pub fn publish_violation(subject: &[u8]) -> String {
    format!("Permissions Violation for Publish to {}", go_quoted(subject))
}

/// Returns the -ERR text for publishing with a `reply` that is not allowed.
pub fn reply_violation(reply: &[u8]) -> String {
    format!("Permissions Violation for Publish with Reply of {}", go_quoted(reply))
}

/// Returns the -ERR text for subscribing to `subject` without permission.
pub fn subscription_violation(subject: &[u8], queue: Option<&[u8]>) -> String {
    let mut text = format!("Permissions Violation for Subscription to {}", go_quoted(subject));
    if let Some(queue) = queue {
        text.push_str(" using queue ");
        text.push_str(&go_quoted(queue));
    }
    text
}

/// Returns the -ERR text for a subscription that a reload of the configuration removed.
pub fn removed_subscription(subject: &[u8], queue: Option<&[u8]>, sid: &[u8]) -> String {
    format!("{} (sid {})", subscription_violation(subject, queue), go_quoted(sid))
}

/// Returns the -ERR text for subscribing to a subject of more tokens than
/// `max_subscription_tokens`.
pub fn too_many_tokens(subject: &[u8]) -> String {
    format!("{}, too many tokens", subscription_violation(subject, None))
}

/// Quotes text as Go's `%q` does, quotation marks included: clients compare these texts.
pub fn go_quoted(text: &[u8]) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for chunk in text.utf8_chunks() {
        for char in chunk.valid().chars() {
            push_quoted(&mut quoted, char);
        }
        for byte in chunk.invalid() {
            push_hex(&mut quoted, "\\x", 2, u32::from(*byte));
        }
    }
    quoted.push('"');
    quoted
}

fn push_quoted(quoted: &mut String, char: char) {
    match char {
        '\x07' => quoted.push_str("\\a"),
        '\x08' => quoted.push_str("\\b"),
        '\t' => quoted.push_str("\\t"),
        '\n' => quoted.push_str("\\n"),
        '\x0b' => quoted.push_str("\\v"),
        '\x0c' => quoted.push_str("\\f"),
        '\r' => quoted.push_str("\\r"),
        '"' => quoted.push_str("\\\""),
        '\\' => quoted.push_str("\\\\"),
        ' '..='~' => quoted.push(char),
        '\0'..='\x7f' => push_hex(quoted, "\\x", 2, char.into()),
        _ if is_printable(char) => quoted.push(char),
        '\u{80}'..='\u{ffff}' => push_hex(quoted, "\\u", 4, char.into()),
        _ => push_hex(quoted, "\\U", 8, char.into()),
    }
}

fn push_hex(quoted: &mut String, mark: &str, digits: usize, number: u32) {
    write!(quoted, "{mark}{number:0digits$x}").expect("a String takes everything");
}

/// Whether a character beyond ASCII is a letter, mark, number, punctuation or symbol.
fn is_printable(char: char) -> bool {
    // Rust escapes combining marks only at the beginning of a text, therefore the second place.
    let mut pair = [b'x'; 5];
    let len = 1 + char.encode_utf8(&mut pair[1..]).len();
    std::str::from_utf8(&pair[..len]).is_ok_and(|pair| pair.escape_debug().nth(1) == Some(char))
}

/// The server's description of itself: the JSON object of an INFO line.
///
/// Empty fields are left out: false, empty texts and lists, `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Info {
    /// The server's identity: a public key, 56 characters beginning with `N`.
    pub server_id: String,
    /// The configured name, else the id.
    pub server_name: String,
    /// Semantic version; clients derive the available features from it.
    pub version: String,
    /// The protocol level: 1.
    pub proto: u32,
    /// The commit that the server was built from.
    pub git_commit: String,
    /// The version of Go that the server was built with: none, but clients look for the field.
    pub go: String,
    /// The configured listen address.
    pub host: String,
    /// The listening port.
    pub port: u16,
    /// Whether HPUB and HMSG are supported.
    pub headers: bool,
    /// Whether CONNECT must bring credentials.
    #[serde(skip_serializing_if = "is_false")]
    pub auth_required: bool,
    /// Whether a TLS handshake must follow.
    #[serde(skip_serializing_if = "is_false")]
    pub tls_required: bool,
    /// Whether the client must have a certificate.
    #[serde(skip_serializing_if = "is_false")]
    pub tls_verify: bool,
    /// Whether a TLS handshake may follow.
    #[serde(skip_serializing_if = "is_false")]
    pub tls_available: bool,
    /// The largest payload in bytes.
    pub max_payload: usize,
    /// The connection's number.
    pub client_id: u64,
    /// The client's address.
    pub client_ip: String,
    /// The nonce that clients with nkeys have to sign.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// The cluster's name, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Whether the cluster's name was made up.
    #[serde(skip_serializing_if = "is_false")]
    pub cluster_dynamic: bool,
    /// `host:port` of the cluster's client ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub connect_urls: Vec<String>,
    /// `host:port` of the cluster's client ports for WebSocket.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ws_connect_urls: Vec<String>,
    /// Whether this INFO announces lame duck mode.
    #[serde(skip_serializing_if = "is_false")]
    pub ldm: bool,
    /// Whether this INFO follows CONNECT.
    #[serde(skip_serializing_if = "is_false")]
    pub connect_info: bool,
    /// The client's account; empty before it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote_account: Option<String>,
    /// Whether the client's account is the system account.
    #[serde(skip_serializing_if = "is_false")]
    pub acc_is_sys: bool,
    /// Whether JetStream runs.
    #[serde(skip_serializing_if = "is_false")]
    pub jetstream: bool,
    /// Name of JetStream's domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// The level of JetStream's API.
    pub api_lvl: u32,
    /// The server's public key for sealing messages to it: 56 characters beginning with `X`.
    pub xkey: String,
}

impl Info {
    /// Returns the JSON text, one line.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("texts, numbers and lists always have a JSON form")
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use super::super::Header;
    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_written_as_clients_expect_them() {
        assert_eq!(written(ok), "+OK\r\n");
        assert_eq!(written(ping), "PING\r\n");
        assert_eq!(written(pong), "PONG\r\n");
        assert_eq!(written(|out| err(out, "Stale Connection")), "-ERR 'Stale Connection'\r\n");
        assert_eq!(written(|out| info(out, b"{}")), "INFO {} \r\n");
        assert_eq!(written(|out| msg_prefix(out, false, b"a", b"1")), "MSG a 1 ");
        assert_eq!(written(|out| msg_prefix(out, true, b"a", b"1")), "HMSG a 1 ");
    }

    #[test]
    fn a_receiver_without_headers_gets_the_bare_body() {
        let message = Publish {
            subject: b"a",
            reply: Some(b"r"),
            header: Some(Header { len: 3, text: b"03" }),
            size_text: b"005",
            payload: b"xyzhi",
            tail: Some(b"r 03 005\r\nxyzhi\r\n"),
        };
        let with = written(|out| msg(out, &message, b"1", true));
        assert_eq!(with, "HMSG a 1 r 03 005\r\nxyzhi\r\n");
        let without = written(|out| msg(out, &message, b"1", false));
        assert_eq!(without, "MSG a 1 r 2\r\nhi\r\n");
    }

    #[test]
    fn a_plain_message_stays_plain_for_a_receiver_with_headers() {
        let message = Publish {
            subject: b"a",
            reply: None,
            header: None,
            size_text: b"02",
            payload: b"hi",
            tail: None,
        };
        for headers in [true, false] {
            let out = written(|out| msg(out, &message, b"1", headers));
            assert_eq!(out, "MSG a 1 02\r\nhi\r\n");
        }
    }

    #[test]
    fn no_responders_tells_the_subject_and_counts_it() {
        assert_eq!(
            written(|out| no_responders(out, b"gone.reply", b"1", b"gone.with.me")),
            "HMSG gone.reply 1 44 44\r\nNATS/1.0 503\r\nNats-Subject: gone.with.me\r\n\r\n\r\n"
        );
    }

    #[test]
    fn violations_are_worded_as_clients_compare_them() {
        let for_ = "Permissions Violation for";
        assert_eq!(publish_violation(b"a"), format!("{for_} Publish to \"a\""));
        assert_eq!(reply_violation(b"a"), format!("{for_} Publish with Reply of \"a\""));
        let subscription = format!("{for_} Subscription to \"a\"");
        assert_eq!(subscription_violation(b"a", None), subscription);
        let queue = format!("{subscription} using queue \"q\"");
        assert_eq!(subscription_violation(b"a", Some(b"q")), queue);
        assert_eq!(too_many_tokens(b"a"), format!("{subscription}, too many tokens"));
        let removed = format!("{subscription} (sid \"7\")");
        assert_eq!(removed_subscription(b"a", None, b"7"), removed);
        let removed = format!("{queue} (sid \"7\")");
        assert_eq!(removed_subscription(b"a", Some(b"q"), b"7"), removed);
    }

    #[test]
    fn quoting_escapes_what_go_escapes() {
        for (text, quoted) in [
            (&b"plain ~!'<>"[..], r#""plain ~!'<>""#),
            (b"\"\\", r#""\"\\""#),
            (b"\x07\x08\t\n\x0b\x0c\r", r#""\a\b\t\n\v\f\r""#),
            (b"\0\x1b\x7f", r#""\x00\x1b\x7f""#),
            (b"\xff\xe2\x82a\xed\xa0\x80", r#""\xff\xe2\x82a\xed\xa0\x80""#),
            ("é日😀\u{fffd}".as_bytes(), "\"é日😀\u{fffd}\""),
            ("e\u{301}\u{301}".as_bytes(), "\"e\u{301}\u{301}\""),
            (
                "\u{80}\u{a0}\u{ad}\u{200b}\u{2028}".as_bytes(),
                r#""\u0080\u00a0\u00ad\u200b\u2028""#,
            ),
            ("\u{feff}\u{e000}\u{e0001}".as_bytes(), r#""\ufeff\ue000\U000e0001""#),
        ] {
            assert_eq!(go_quoted(text), quoted);
        }
    }

    #[test]
    fn info_leaves_out_what_it_has_not_to_say() {
        let mut info = Info { proto: 1, headers: true, max_payload: 16, ..Info::default() };
        assert_eq!(
            info.to_json(),
            r#"{"server_id":"","server_name":"","version":"","proto":1,"git_commit":"","go":"","#
                .to_owned()
                + r#""host":"","port":0,"headers":true,"max_payload":16,"client_id":0,"#
                + r#""client_ip":"","api_lvl":0,"xkey":""}"#
        );
        info.connect_info = true;
        info.remote_account = Some("$G".into());
        info.connect_urls.push("h:1".into());
        let json = info.to_json();
        assert!(json.contains(r#""connect_urls":["h:1"],"connect_info":true"#), "{json}");
        assert!(json.contains(r#""remote_account":"$G","api_lvl""#), "{json}");
    }
}
