//! Operations as the log shows them when everything is traced.

use crate::core::conn::Conn;
use crate::interest::mapping::Mapped;
use crate::proto::{Op, Publish, encode};
use crate::run::Run;

/// Parts of a message that the log shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tracing {
    /// Whether only headers are shown, and no payloads.
    pub(crate) headers_only: bool,
    /// Bytes shown of the headers or the payload, at most; 0 shows all.
    pub(crate) bytes_max: usize,
}

impl Tracing {
    /// Returns the part of a message's content that is shown, if any.
    fn content(self, publish: &Publish<'_>, headers: bool) -> Option<String> {
        let shown = match (self.headers_only, publish.header) {
            (true, Some(header)) => publish.payload[..header.len].trim_ascii_end(),
            (true, None) => return None,
            (false, _) if headers => publish.payload,
            (false, _) => publish.body(),
        };
        self.cut(shown)
    }

    fn cut(self, shown: &[u8]) -> Option<String> {
        if shown.is_empty() {
            return None;
        }
        if self.bytes_max == 0 || shown.len() <= self.bytes_max {
            return Some(encode::go_quoted(shown));
        }
        let mut cut = shown[..self.bytes_max].to_vec();
        cut.extend_from_slice(b"...");
        Some(encode::go_quoted(&cut))
    }

    /// Logs the payload of a message without headers, as its client sent it.
    pub(crate) fn payload(self, conn: &Conn, payload: &[u8]) {
        let shown = if self.headers_only { b"" } else { payload };
        if let Some(content) = self.cut(shown) {
            tracing::trace!("{} - <<- MSG_PAYLOAD: [{content}]", conn.label());
        }
    }

    /// Logs a message as its client sent it.
    pub(crate) fn publish(
        self,
        conn: &Conn,
        publish: &Publish<'_>,
        mapped: Option<&Mapped>,
        wire: &[u8],
    ) {
        tracing::trace!("{} - <<- [{}]", conn.label(), control_line(wire));
        if let Some(Mapped { subject, .. }) = mapped.filter(|m| *m.subject != *publish.subject) {
            let (from, to) = [publish.subject, subject].map(String::from_utf8_lossy).into();
            tracing::trace!("{} - <<- [MAPPING {from} -> {to}]", conn.label());
        }
        if let Some(content) = self.content(publish, true) {
            tracing::trace!("{} - <<- MSG_PAYLOAD: [{content}]", conn.label());
        }
    }

    /// Logs the first `count` messages of a run as they are sent to a client.
    pub(crate) fn deliveries(
        self,
        conn: &Conn,
        sid: &[u8],
        run: &Run<'_>,
        count: usize,
        headers: bool,
    ) {
        let mut rendered = Vec::new();
        for publish in run.publishes().take(count) {
            rendered.clear();
            encode::msg(&mut rendered, publish, sid, headers);
            tracing::trace!("{} - ->> [{}]", conn.label(), control_line(&rendered));
            if let Some(content) = self.content(publish, headers) {
                tracing::trace!("{} - ->> MSG_PAYLOAD: [{content}]", conn.label());
            }
        }
    }
}

/// Fields of CONNECT whose values are never shown.
const SECRETS: [&str; 5] = ["pass", "auth_token", "jwt", "sig", "nkey"];

/// Logs an operation without a payload, as its client sent it.
pub(crate) fn operation(conn: &Conn, op: &Op<'_>) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let line = match op {
        Op::Connect(json) => format!("CONNECT {}", redacted(json)),
        Op::Ping => "PING".to_owned(),
        Op::Pong => "PONG".to_owned(),
        Op::Sub { subject, queue, sid } => {
            let queue = queue.map_or(String::new(), |queue| format!("{} ", text(queue)));
            format!("SUB {} {queue}{}", text(subject), text(sid))
        }
        Op::Unsub { sid, max: None } => format!("UNSUB {}", text(sid)),
        Op::Unsub { sid, max: Some(max) } => format!("UNSUB {} {max}", text(sid)),
        Op::Pub(_) | Op::Nothing => return,
    };
    tracing::trace!("{} - <<- [{line}]", conn.label());
}

fn control_line(wire: &[u8]) -> String {
    let line_len = memchr::memchr(b'\n', wire).unwrap_or(wire.len());
    String::from_utf8_lossy(&wire[..line_len]).trim_end().to_owned()
}

/// Returns the JSON of CONNECT without its secrets.
fn redacted(json: &[u8]) -> String {
    let Ok(serde_json::Value::Object(mut fields)) = serde_json::from_slice(json) else {
        return "[REDACTED]".to_owned();
    };
    for (name, value) in &mut fields {
        if SECRETS.iter().any(|secret| name.eq_ignore_ascii_case(secret)) {
            *value = "[REDACTED]".into();
        }
    }
    serde_json::Value::Object(fields).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Header;

    fn message(payload: &[u8], header_len: usize) -> Publish<'_> {
        let header = (header_len > 0).then_some(Header { len: header_len, text: b"12" });
        Publish { subject: b"a", reply: None, header, size_text: b"1", payload, tail: None }
    }

    #[test]
    fn content_is_cut_and_quoted_as_nats_server_does() {
        let tracing = |headers_only, bytes_max| Tracing { headers_only, bytes_max };
        let plain = message(b"hello \"you\"\n", 0);
        let shown = |tracing: Tracing, publish: &Publish<'_>| tracing.content(publish, true);
        assert_eq!(shown(tracing(false, 0), &plain).unwrap(), "\"hello \\\"you\\\"\\n\"");
        assert_eq!(shown(tracing(false, 5), &plain).unwrap(), "\"hello...\"");
        assert_eq!(shown(tracing(true, 0), &plain), None);
        assert_eq!(shown(tracing(false, 0), &message(b"", 0)), None);
        let with_header = message(b"NATS/1.0\r\nA: b\r\n\r\nbody", 18);
        assert_eq!(shown(tracing(true, 0), &with_header).unwrap(), "\"NATS/1.0\\r\\nA: b\"");
        assert_eq!(shown(tracing(true, 4), &with_header).unwrap(), "\"NATS...\"");
        assert_eq!(tracing(false, 0).content(&with_header, false).unwrap(), "\"body\"");
    }

    #[test]
    fn no_secret_of_connect_is_shown_however_its_name_is_written() {
        let json = br#"{"user":"a","pass":"hush","AUTH_TOKEN":"hush","Jwt":"hush","sig":"hush"}"#;
        let shown = redacted(json);
        assert!(!shown.contains("hush") && shown.contains("\"user\":\"a\""), "{shown}");
        assert_eq!(redacted(br#"["hush"]"#), "[REDACTED]");
        assert_eq!(redacted(br#"{"pass":"hush""#), "[REDACTED]");
    }
}
