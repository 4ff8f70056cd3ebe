//! Accounts as they are configured: limits, and what they let one another have.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::mapping::Mapping;
use crate::output::OverflowRule;
use crate::subject::{Transform, TransformError, covers, tokens};

/// Everybody who is in no other account is in this one.
pub const GLOBAL: &str = "$G";

/// A world of subjects of its own.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Account {
    /// Name of the account, or its public key.
    pub name: String,
    /// Limits of the account.
    pub limits: AccountLimits,
    /// Exports: streams and services that other accounts may import.
    pub exports: Vec<Export>,
    /// Imports: streams and services of other accounts.
    pub imports: Vec<Import>,
    /// Subject mappings for what the users of the account publish.
    pub mappings: Vec<Mapping>,
    /// Overflow rules of the account; they come before those of all accounts.
    pub overflow: Vec<OverflowRule>,
    /// Messages with a sampled `traceparent` are traced (none: they are not).
    pub trace_rule: Option<TraceRule>,
}

/// Tracing of messages that another system traces: the share that is traced, and the subject of
/// its reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceRule {
    /// Subject of the reports.
    pub dest: String,
    /// Share of the messages that is traced, in percent, 0 to 100 (100).
    pub sampling: u8,
}

impl Account {
    /// An account without limits that shares nothing.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }
}

/// What the users of an account may use of the server, besides what everybody may.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AccountLimits {
    /// Connections of the account at one time (none: without limit).
    pub connections_max: Option<usize>,
    /// Subscriptions of each of its connections (none: as for everybody).
    pub subscriptions_max: Option<usize>,
    /// Bytes of header and payload of one message (none: as for everybody).
    pub payload_bytes_max: Option<usize>,
    /// Leafnode connections of the account at one time (none: without limit).
    pub leafnodes_max: Option<usize>,
}

/// What is shared between two accounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shared {
    /// Messages that the exporting account publishes.
    Stream,
    /// Requests to the exporting account, and their answers.
    Service,
}

impl Shared {
    /// Its name in the file and in monitoring.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Service => "service",
        }
    }
}

/// How many answers a request to a service gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Response {
    /// One.
    #[default]
    Singleton,
    /// Any number, until an empty one.
    Stream,
    /// One in several messages, until an empty one.
    Chunked,
}

/// A stream or service that other accounts may import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Stream or service.
    pub shared: Shared,
    /// The subjects, with wildcards.
    pub subject: String,
    /// Accounts that may import it (empty: all).
    pub accounts: Vec<String>,
    /// The token of the subject, from 1, that has to be the name of the importing account; 0 is
    /// none (0).
    pub account_token: usize,
    /// Number of answers of a service (singleton).
    pub response: Response,
    /// Time limit for answers of a service, in milliseconds (120 000).
    pub response_threshold_ms: u64,
    /// Of a service: who asks may trace what becomes of it (false).
    pub allow_trace: bool,
}

/// A stream or service of another account that an account uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// Stream or service.
    pub shared: Shared,
    /// The exporting account.
    pub account: String,
    /// The subjects there.
    pub subject: String,
    /// The subjects here.
    pub local: String,
    /// Of a service: it is told who asks (false).
    pub share: bool,
    /// Of a stream: who publishes may trace what becomes of it (false).
    pub allow_trace: bool,
}

/// How many connections of an account are open, counted by all shards together: so that no two of
/// them give the last seat away.
#[derive(Debug, Clone, Default)]
pub struct Seats(Arc<AtomicUsize>);

impl Seats {
    /// Takes one, unless `max` are taken.
    pub fn take(&self, max: Option<usize>) -> bool {
        let before = self.0.fetch_add(1, Ordering::SeqCst);
        let is_free = max.is_none_or(|max| before < max);
        if !is_free {
            self.leave();
        }
        is_free
    }

    /// Counts `count` here that were taken of another account's, or of an earlier one's.
    pub fn take_over(&self, old: &Self, count: usize) {
        if !Arc::ptr_eq(&self.0, &old.0) {
            self.0.fetch_add(count, Ordering::SeqCst);
            old.0.fetch_sub(count, Ordering::SeqCst);
        }
    }

    /// Gives one back that was taken.
    pub fn leave(&self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A count is nothing that was configured.
impl PartialEq for Seats {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Import {
    /// How the subjects of messages change on their way through it: a stream's from there to
    /// here, a service's from here to there.
    ///
    /// # Errors
    ///
    /// When the two subjects do not fit.
    pub fn mapping(&self) -> Result<Transform, TransformError> {
        // Wildcards here stand for those there, in order.
        let mut stars = 0;
        let marked = |token: &str| {
            if token != "*" {
                return token.to_owned();
            }
            stars += 1;
            format!("${stars}")
        };
        let local: Vec<String> = self.local.split('.').map(marked).collect();
        let inwards = Transform::strict(self.subject.as_bytes(), local.join(".").as_bytes())?;
        match self.shared {
            Shared::Stream => Ok(inwards),
            Shared::Service => inwards.reversed().ok_or(TransformError::UnusedWildcards),
        }
    }

    /// The subjects here as a filter; none if there are none.
    pub(crate) fn filter(&self) -> Option<Vec<u8>> {
        let mapping = self.mapping().ok()?;
        match self.shared {
            Shared::Stream => mapping.apply_filter(self.subject.as_bytes()),
            Shared::Service => Some(mapping.source().to_vec()),
        }
    }
}

impl Export {
    /// Whether `account` may import this of it.
    pub fn permits(&self, import: &Import, account: &str) -> bool {
        let subject = import.subject.as_bytes();
        let named = match self.account_token.checked_sub(1) {
            Some(at) => tokens(subject).nth(at) == Some(account.as_bytes()),
            None => self.accounts.is_empty() || self.accounts.iter().any(|name| name == account),
        };
        self.shared == import.shared && named && covers(self.subject.as_bytes(), subject)
    }
}
