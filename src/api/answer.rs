//! Texts of answers.

use serde::Serialize;

use super::error::ApiError;

/// An answer, and the commit that it waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiAnswer {
    /// The answer as JSON.
    pub text: Vec<u8>,
    /// The number of the commit that has to be on the disk before; 0 if none.
    pub commit: u64,
}

/// A kind of answer: its type, and the fields that it has even if there is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnswerKind {
    name: &'static str,
    always: &'static str,
}

impl AnswerKind {
    /// ApiAnswer to INFO.
    pub const ACCOUNT_INFO: Self = Self::new("account_info", "");
    /// ApiAnswer to STREAM.CREATE.
    pub const STREAM_CREATE: Self = Self::new("stream_create", "");
    /// ApiAnswer to STREAM.UPDATE.
    pub const STREAM_UPDATE: Self = Self::new("stream_update", "");
    /// ApiAnswer to STREAM.DELETE.
    pub const STREAM_DELETE: Self = Self::new("stream_delete", "");
    /// ApiAnswer to STREAM.INFO.
    pub const STREAM_INFO: Self = Self::new("stream_info", r#","total":0,"offset":0,"limit":0"#);
    /// ApiAnswer to STREAM.NAMES.
    pub const STREAM_NAMES: Self =
        Self::new("stream_names", r#","total":0,"offset":0,"limit":0,"streams":null"#);
    /// ApiAnswer to STREAM.LIST.
    pub const STREAM_LIST: Self =
        Self::new("stream_list", r#","total":0,"offset":0,"limit":0,"streams":[]"#);
    /// ApiAnswer to STREAM.PURGE.
    pub const STREAM_PURGE: Self = Self::new("stream_purge", r#","purged":0"#);
    /// ApiAnswer to STREAM.MSG.GET.
    pub const MESSAGE_GET: Self = Self::new("stream_msg_get", "");
    /// ApiAnswer to STREAM.MSG.DELETE.
    pub const MESSAGE_DELETE: Self = Self::new("stream_msg_delete", "");
    /// ApiAnswer to STREAM.SNAPSHOT.
    pub const STREAM_SNAPSHOT: Self = Self::new("stream_snapshot", "");
    /// ApiAnswer to STREAM.RESTORE.
    pub const STREAM_RESTORE: Self = Self::new("stream_restore", r#","deliver_subject":"""#);
    /// ApiAnswer to STREAM.LEADER.STEPDOWN.
    pub const STREAM_STEP_DOWN: Self = Self::new("stream_leader_stepdown", "");
    /// ApiAnswer to STREAM.PEER.REMOVE.
    pub const STREAM_REMOVE_PEER: Self = Self::new("stream_remove_peer", "");
    /// ApiAnswer to CONSUMER.CREATE.
    pub const CONSUMER_CREATE: Self = Self::new("consumer_create", "");
    /// ApiAnswer to CONSUMER.DELETE.
    pub const CONSUMER_DELETE: Self = Self::new("consumer_delete", "");
    /// ApiAnswer to CONSUMER.INFO.
    pub const CONSUMER_INFO: Self = Self::new("consumer_info", "");
    /// ApiAnswer to CONSUMER.NAMES.
    pub const CONSUMER_NAMES: Self =
        Self::new("consumer_names", r#","total":0,"offset":0,"limit":0,"consumers":[]"#);
    /// ApiAnswer to CONSUMER.LIST.
    pub const CONSUMER_LIST: Self =
        Self::new("consumer_list", r#","total":0,"offset":0,"limit":0,"consumers":[]"#);
    /// ApiAnswer to CONSUMER.PAUSE.
    pub const CONSUMER_PAUSE: Self =
        Self::new("consumer_pause", r#","paused":false,"pause_until":"0001-01-01T00:00:00Z""#);
    /// ApiAnswer to CONSUMER.RESET.
    pub const CONSUMER_RESET: Self = Self::new("consumer_reset", r#","reset_seq":0"#);
    /// ApiAnswer to CONSUMER.UNPIN.
    pub const CONSUMER_UNPIN: Self = Self::new("consumer_unpin", "");
    /// ApiAnswer to CONSUMER.LEADER.STEPDOWN.
    pub const CONSUMER_STEP_DOWN: Self = Self::new("consumer_leader_stepdown", "");

    const fn new(name: &'static str, always: &'static str) -> Self {
        Self { name, always }
    }

    /// Whether a text is an answer that something went wrong.
    pub fn is_error(answer: &[u8]) -> bool {
        let rest = answer.strip_prefix(br#"{"type":""#.as_slice()).unwrap_or_default();
        let end = rest.iter().position(|byte| *byte == b'"').unwrap_or(rest.len());
        rest[end..].starts_with(br#"","error":"#)
    }

    fn begin(self) -> Vec<u8> {
        format!(r#"{{"type":"io.nats.jetstream.api.v1.{}_response""#, self.name).into_bytes()
    }

    /// Returns the answer that something went wrong.
    pub fn error(self, error: &ApiError) -> Vec<u8> {
        let mut text = self.begin();
        text.extend_from_slice(br#","error":"#);
        write_json(&mut text, error);
        text.extend_from_slice(self.always.as_bytes());
        text.push(b'}');
        text
    }

    /// Returns the answer with these fields, which are an object.
    pub fn answer(self, fields: &impl Serialize) -> Vec<u8> {
        let mut text = self.begin();
        let start = text.len();
        write_json(&mut text, fields);
        if text[start..] == *b"{}" {
            text.remove(start);
        } else {
            text[start] = b',';
        }
        text
    }
}

/// Appends a value as JSON. The types of this room have nothing that JSON has not.
pub(crate) fn write_json(text: &mut Vec<u8>, value: &impl Serialize) {
    let written = serde_json::to_writer(&mut *text, value);
    debug_assert!(written.is_ok(), "{written:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_their_type_first_and_errors_keep_what_is_always_there() {
        let text = AnswerKind::STREAM_PURGE.error(&ApiError::STREAM_NOT_FOUND);
        let expected = concat!(
            r#"{"type":"io.nats.jetstream.api.v1.stream_purge_response","error":{"code":404,"#,
            r#""err_code":10059,"description":"stream not found"},"purged":0}"#
        );
        assert_eq!(String::from_utf8(text).unwrap(), expected);
        assert!(AnswerKind::is_error(expected.as_bytes()));
        let text = AnswerKind::STREAM_DELETE.answer(&serde_json::json!({"success":true}));
        assert!(!AnswerKind::is_error(&text));
        let expected =
            r#"{"type":"io.nats.jetstream.api.v1.stream_delete_response","success":true}"#;
        assert_eq!(String::from_utf8(text).unwrap(), expected);
        let text = AnswerKind::CONSUMER_UNPIN.answer(&serde_json::json!({}));
        let expected = r#"{"type":"io.nats.jetstream.api.v1.consumer_unpin_response"}"#;
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }
}
