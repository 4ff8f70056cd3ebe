//! Permissions as they are configured: lists of subjects.

use crate::auth::jwt;
use crate::subject::is_valid_filter;

/// Permissions to publish, subscribe and respond.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Permissions {
    /// Subjects that the user may publish to; no entry names a queue.
    pub publish: SubjectList,
    /// Subjects that the user may subscribe to.
    pub subscribe: SubjectList,
    /// Permission to answer requests whose reply subject `publish` does not allow (none). With it,
    /// an empty `publish.allow` means no subject instead of all.
    pub allow_responses: Option<Responses>,
}

/// Subjects that are allowed and subjects that are denied; a denial wins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubjectList {
    /// Allowed subjects; empty: all.
    pub allow: Vec<SubjectEntry>,
    /// Denied subjects.
    pub deny: Vec<SubjectEntry>,
}

/// One line of a list: `"subject"` or `"subject queue"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubjectEntry {
    /// The subject, with wildcards.
    pub subject: String,
    /// The queue group that the entry is about, with wildcards (none: not about queue groups).
    pub queue: Option<String>,
}

/// Limits on the answers to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Responses {
    /// Messages to one reply subject (1); negative: no limit.
    pub max: i64,
    /// Milliseconds from the request on (120 000); negative: no limit.
    pub expires_ms: i64,
}

impl Default for Responses {
    fn default() -> Self {
        Self { max: 1, expires_ms: 120_000 }
    }
}

impl Permissions {
    /// Converts the permissions of a token; `None` if one of their subjects is not valid.
    pub fn from_token(from: &jwt::PermissionsClaim) -> Option<Self> {
        let entry = |text: &String| {
            let mut words = text.split_ascii_whitespace();
            match (words.next(), words.next(), words.next()) {
                (Some(subject), queue, None) if is_valid_filter(subject.as_bytes()) => {
                    Some(SubjectEntry {
                        subject: subject.to_owned(),
                        queue: queue.map(str::to_owned),
                    })
                }
                _ => None,
            }
        };
        let entries = |texts: &[String]| texts.iter().map(entry).collect::<Option<Vec<_>>>();
        let list = |list: &jwt::SubjectsClaim| {
            Some(SubjectList { allow: entries(&list.allow)?, deny: entries(&list.deny)? })
        };
        let defaults = Responses::default();
        let responses = from.responses.as_ref().map(|responses| Responses {
            max: if responses.max == 0 { defaults.max } else { responses.max },
            expires_ms: match responses.ttl {
                0 => defaults.expires_ms,
                ..0 => -1,
                ttl => ttl / 1_000_000,
            },
        });
        Some(Self {
            publish: list(&from.publish)?,
            subscribe: list(&from.subscribe)?,
            allow_responses: responses,
        })
    }
}
