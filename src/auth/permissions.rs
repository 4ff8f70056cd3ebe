//! Permissions as they are written: lists of subjects.

use crate::auth::jwt;
use crate::subject::is_valid_filter;

/// What a user may publish and subscribe to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Permissions {
    /// Subjects to publish to; no entry names a queue.
    pub publish: SubjectList,
    /// Subjects to subscribe to.
    pub subscribe: SubjectList,
    /// Leave to answer requests whose reply subject `publish` does not allow (none). With it,
    /// an empty `publish.allow` is nothing instead of everything.
    pub allow_responses: Option<Responses>,
}

/// Two lists of subjects; what is denied is denied even if it is allowed too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubjectList {
    /// What is allowed; empty is everything.
    pub allow: Vec<SubjectEntry>,
    /// What is not.
    pub deny: Vec<SubjectEntry>,
}

/// One line of a list: `"subject"` or `"subject queue"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubjectEntry {
    /// The subject, with wildcards.
    pub subject: String,
    /// The queue group that is meant, with wildcards (none: not about queue groups).
    pub queue: Option<String>,
}

/// How often and how long a request may be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Responses {
    /// Messages to one reply subject (1); negative is without limit.
    pub max: i64,
    /// Milliseconds from the request on (120 000); negative is without limit.
    pub expires_ms: i64,
}

impl Default for Responses {
    fn default() -> Self {
        Self { max: 1, expires_ms: 120_000 }
    }
}

impl Permissions {
    /// The permissions of a token; `None` if a subject in them is not valid.
    pub fn from_token(from: &jwt::Permissions) -> Option<Self> {
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
        let list = |list: &jwt::SubjectList| {
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
