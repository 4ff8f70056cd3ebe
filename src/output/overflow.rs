//! Overflow policies: the subjects of which a slow connection misses messages, instead of being
//! closed.

use std::rc::Rc;

use crate::subject::Table;

/// Overflow policy for the subjects that a filter matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverflowRule {
    /// The filter; of several that match, the first counts.
    pub filter: String,
    /// Choice of the messages that are dropped.
    pub kind: OverflowKind,
    /// Bytes queued for a client, without those with the kernel, from which on messages are dropped
    /// (1 MiB); never more than half of `max_pending`.
    pub pending_bytes_max: usize,
}

/// The choice of dropped messages when too much is pending for a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverflowKind {
    /// The message that comes.
    DropNewest,
    /// The message that has waited longest.
    DropOldest,
    /// Messages with a later one on the same subject behind them.
    Conflate,
}

/// The overflow policy for the messages of a subject.
#[derive(Debug)]
pub(crate) struct Policy {
    /// The rule's place in the configuration.
    pub(crate) number: u16,
    pub(crate) kind: OverflowKind,
    /// Bytes that may be queued, behind the batch in flight, with a message of this policy; from
    /// half of it on messages may still be dropped for later ones.
    pub(crate) bytes_max: usize,
}

/// Counters of messages that a slow connection has not received.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Dropped {
    /// Messages dropped as they came: there was no room, and none to be made.
    pub newest: u64,
    /// Messages dropped for later ones by `drop_oldest`, or by `conflate` when room was still
    /// missing.
    pub oldest: u64,
    /// Messages dropped by `conflate` for later ones of the same subject.
    pub conflated: u64,
}

impl Dropped {
    /// Adds the counters of another connection or shard.
    pub fn add(&mut self, other: &Self) {
        self.newest += other.newest;
        self.oldest += other.oldest;
        self.conflated += other.conflated;
    }
}

/// The overflow policies of an account, by the filters of their subjects.
#[derive(Debug)]
pub(crate) struct Overflow {
    policies: Vec<Rc<Policy>>,
    filters: Table<usize>,
}

impl Overflow {
    /// Returns the policies of `rules`, or `None` without rules. With the batch in flight no policy
    /// lets more be pending than `pending_bytes_max`.
    pub(crate) fn new<'a>(
        rules: impl Iterator<Item = &'a OverflowRule>,
        pending_bytes_max: usize,
    ) -> Option<Rc<Self>> {
        let mut filters = Table::new();
        let mut policies = Vec::new();
        for (at, rule) in rules.enumerate() {
            // Of two for one filter the first counts, too.
            let known = filters.get(rule.filter.as_bytes()).copied();
            *filters.entry(rule.filter.as_bytes()) = known.unwrap_or(at);
            let bytes_max = rule.pending_bytes_max.min(pending_bytes_max / 2);
            let number = u16::try_from(at).unwrap_or(u16::MAX);
            policies.push(Rc::new(Policy { number, kind: rule.kind, bytes_max }));
        }
        (!policies.is_empty()).then(|| Rc::new(Self { policies, filters }))
    }

    /// Returns the policy for a subject: the first of the configuration that matches.
    pub(crate) fn policy(&self, subject: &[u8]) -> Option<Rc<Policy>> {
        let mut first = usize::MAX;
        self.filters.for_each_match(subject, |at| first = first.min(*at));
        self.policies.get(first).cloned()
    }
}
