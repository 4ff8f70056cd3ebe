//! Accounts as they are configured: limits, exports and imports.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::interest::mapping::Mapping;
use crate::output::OverflowRule;
use crate::stream::AccountUsage;
use crate::subject::{Transform, TransformError, covers, tokens};

/// Name of the account of all users that are in no other one.
pub const GLOBAL: &str = "$G";

/// An account: a namespace of subjects of its own.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Account {
    /// Name of the account, or its public key.
    pub name: String,
    /// Limits of the account.
    pub limits: AccountLimits,
    /// Streams that the account may have (none: it has no JetStream).
    pub streams: Option<AccountAssetLimits>,
    /// Exports: streams and services that other accounts may import.
    pub exports: Vec<Export>,
    /// Imports: streams and services of other accounts.
    pub imports: Vec<Import>,
    /// Subject mappings for what the users of the account publish.
    pub mappings: Vec<Mapping>,
    /// Overflow rules of the account; they come before those of all accounts.
    pub overflow: Vec<OverflowRule>,
    /// Rule for tracing messages with a sampled `traceparent` (none: they are not traced).
    pub trace_rule: Option<TraceRule>,
    /// Whether a service in the account is asked about clients that log in (false).
    pub has_callouts: bool,
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

/// Limits of an account's users, in place of those of the server.
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

impl AccountLimits {
    /// Whether there is a limit for the connections of all servers of the system together.
    pub fn counts_all_servers(&self) -> bool {
        self.connections_max.is_some() || self.leafnodes_max.is_some()
    }
}

/// Limits of the streams and consumers of an account.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AccountAssetLimits {
    /// Bytes of its streams in memory (none: without limit).
    pub memory_bytes_max: Option<u64>,
    /// Bytes of its streams on disk (none: without limit).
    pub file_bytes_max: Option<u64>,
    /// Streams (none: without limit).
    pub streams_max: Option<u64>,
    /// Consumers of each stream (none: without limit).
    pub consumers_max: Option<u64>,
    /// Messages that a consumer may have unacknowledged (none: without limit).
    pub max_ack_pending: Option<u64>,
    /// Bytes of one stream in memory (none: without limit).
    pub memory_stream_bytes_max: Option<u64>,
    /// Bytes of one stream on disk (none: without limit).
    pub file_stream_bytes_max: Option<u64>,
    /// Whether streams must have a limit of bytes (false).
    pub max_bytes_required: bool,
    /// Whether the limits are those of a tier: of streams with one replica (false).
    pub is_tiered: bool,
}

/// The kind of an export or import between two accounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shared {
    /// Messages that the exporting account publishes.
    Stream,
    /// Requests to the exporting account, and their answers.
    Service,
}

impl Shared {
    /// Returns the name of the kind in the configuration file and in monitoring.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Service => "service",
        }
    }
}

/// Number of answers to a request to a service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Response {
    /// One answer.
    #[default]
    Singleton,
    /// Any number of answers, until an empty one.
    Stream,
    /// One answer in several messages, until an empty one.
    Chunked,
}

/// The measurement of a service: its share of the requests, and the subject of its reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LatencyRule {
    /// Subject of the reports, in the exporting account.
    pub subject: String,
    /// Share of the requests that is measured, in percent, 0 to 100 (100). Those with headers by
    /// which another system traces them are measured, too.
    pub percent: u8,
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
    /// Whether requesters of a service may trace their messages beyond it (false).
    pub allow_trace: bool,
    /// Measurement of a service with one answer for each request (none).
    pub latency: Option<LatencyRule>,
}

/// A stream or service of another account that an account uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// Stream or service.
    pub shared: Shared,
    /// The exporting account.
    pub account: String,
    /// The subjects in the exporting account.
    pub subject: String,
    /// The subjects in the importing account.
    pub local: String,
    /// Whether the service gets information about the requester (false).
    pub share: bool,
    /// Whether publishers of a stream may trace their messages beyond it (false).
    pub allow_trace: bool,
}

/// Numbers of open connections of an account, and the use of its limits by its streams, counted by
/// all shards together, so that no two of them give the last seat away.
#[derive(Debug, Clone, Default)]
pub struct Seats {
    counts: Arc<SeatCounts>,
    streams: Arc<AccountUsage>,
}

#[derive(Debug, Default)]
struct SeatCounts {
    /// Connections of clients and leaf nodes.
    all: AtomicUsize,
    leaves: AtomicUsize,
    /// Clients on the other servers of the system, as far as they are known.
    elsewhere: AtomicUsize,
    leaves_elsewhere: AtomicUsize,
}

fn take(count: &AtomicUsize, elsewhere: usize, max: Option<usize>) -> bool {
    let before = count.fetch_add(1, Ordering::SeqCst);
    let is_free = max.is_none_or(|max| before.saturating_add(elsewhere) < max);
    if !is_free {
        count.fetch_sub(1, Ordering::SeqCst);
    }
    is_free
}

impl Seats {
    /// Use of the account's limits by its streams, counted by all shards together.
    pub(crate) fn streams(&self) -> &Arc<AccountUsage> {
        &self.streams
    }

    /// Takes a seat, unless `max` are taken here and elsewhere; `false` if none is free.
    pub fn take(&self, max: Option<usize>) -> bool {
        take(&self.counts.all, self.counts.elsewhere.load(Ordering::SeqCst), max)
    }

    /// Takes a seat as a connection for a leaf node, unless `max` are taken here.
    pub fn take_beside_leaf(&self, max: Option<usize>) -> bool {
        take(&self.counts.all, 0, max)
    }

    /// Takes the seat of a leaf node beside its seat as a connection, unless `max` are taken here
    /// and elsewhere.
    pub fn take_leaf(&self, max: Option<usize>) -> bool {
        take(&self.counts.leaves, self.counts.leaves_elsewhere.load(Ordering::SeqCst), max)
    }

    /// Sets how many clients and leaf nodes the account has on other servers.
    pub fn set_elsewhere(&self, conns: usize, leaves: usize) {
        self.counts.elsewhere.store(conns, Ordering::SeqCst);
        self.counts.leaves_elsewhere.store(leaves, Ordering::SeqCst);
    }

    /// Returns the number of connections here, those of leaf nodes included.
    pub fn taken(&self) -> usize {
        self.counts.all.load(Ordering::SeqCst)
    }

    /// Returns the number of leaf nodes here.
    pub fn taken_by_leaves(&self) -> usize {
        self.counts.leaves.load(Ordering::SeqCst)
    }

    /// Moves seats of `conns` connections and `leaves` leaf nodes here that were taken of another
    /// account, or of the same one before.
    pub fn take_over(&self, old: &Self, conns: usize, leaves: usize) {
        if !Arc::ptr_eq(&self.counts, &old.counts) {
            self.counts.all.fetch_add(conns + leaves, Ordering::SeqCst);
            old.counts.all.fetch_sub(conns + leaves, Ordering::SeqCst);
            self.counts.leaves.fetch_add(leaves, Ordering::SeqCst);
            old.counts.leaves.fetch_sub(leaves, Ordering::SeqCst);
        }
    }

    /// Gives a taken seat back.
    pub fn leave(&self) {
        self.counts.all.fetch_sub(1, Ordering::SeqCst);
    }

    /// Gives the seat of a leaf node back.
    pub fn leave_leaf(&self) {
        self.counts.leaves.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Equality of settings, of which a count is no part.
impl PartialEq for Seats {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Import {
    /// Returns the change of subjects through the import: a stream's from the exporting account to
    /// the importing one, a service's the other way.
    ///
    /// # Errors
    ///
    /// When the two subjects do not fit.
    pub fn mapping(&self) -> Result<Transform, TransformError> {
        // Wildcards of `local` stand for those of `subject`, in order.
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

    /// Returns the subjects in the importing account as a filter; `None` if the import is invalid.
    pub(crate) fn filter(&self) -> Option<Vec<u8>> {
        let mapping = self.mapping().ok()?;
        match self.shared {
            Shared::Stream => mapping.apply_filter(self.subject.as_bytes()),
            Shared::Service => Some(mapping.source().to_vec()),
        }
    }
}

impl LatencyRule {
    /// Returns the reason why the last of these exports of an account cannot be measured;
    /// `has_system` says whether there is a system account.
    pub fn objection(exports: &[Export], has_system: bool) -> Option<&'static str> {
        let export = exports.last()?;
        let subject = &export.latency.as_ref()?.subject;
        let reports_itself = |other: &Export| {
            other.shared == Shared::Service && covers(other.subject.as_bytes(), subject.as_bytes())
        };
        if export.shared != Shared::Service {
            Some("only a service has a latency; leave it out of the stream")
        } else if export.response != Response::Singleton {
            Some("latency is of services with one answer; leave it or the response_type out")
        } else if exports.iter().any(reports_itself) {
            Some("the subject of latencies is not one of the account's services; choose another")
        } else if !has_system {
            Some("latency needs a system account; leave no_system_account out")
        } else {
            None
        }
    }
}

impl Export {
    /// Whether `account` may import from this export.
    pub fn permits(&self, import: &Import, account: &str) -> bool {
        let subject = import.subject.as_bytes();
        let named = match self.account_token.checked_sub(1) {
            Some(at) => tokens(subject).nth(at) == Some(account.as_bytes()),
            None => self.accounts.is_empty() || self.accounts.iter().any(|name| name == account),
        };
        self.shared == import.shared && named && covers(self.subject.as_bytes(), subject)
    }
}
