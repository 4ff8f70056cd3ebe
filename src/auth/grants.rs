//! A user's permissions, compiled, and the checks of one connection against them.
//!
//! Lists are compiled once for each user and shared by its connections; each connection remembers
//! results for publish subjects, and the replies that it may send.

use std::collections::HashMap;

use ahash::RandomState;

use crate::auth::{self, Responses, SubjectEntry};
use crate::subject::{self, Table};

/// Whether clients may not publish to `subject`. With `is_system`, for a client of the system
/// account, `$NRG.` is not reserved.
pub(crate) fn is_reserved_subject(subject: &[u8], is_system: bool) -> bool {
    matches!(subject.first(), Some(b'_' | b'$'))
        && (subject.starts_with(b"_GR_.") || (subject.starts_with(b"$NRG.") && !is_system))
}

/// Publish subjects whose permission a connection remembers.
const CHECKED_SUBJECTS_MAX: usize = 256;

/// Reply subjects that a connection may answer at one time.
const REPLIES_MAX: usize = 64 * 1024;

/// Bytes of text of the reply subjects that a connection may answer at one time.
const REPLIES_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The compiled permissions of one user.
#[derive(Debug)]
pub(crate) struct Grants {
    publish_allow: Option<Table<Entry>>,
    publish_deny: Table<Entry>,
    subscribe_allow: Option<Table<Entry>>,
    subscribe_deny: Table<Entry>,
    responses: Option<Responses>,
}

/// Allowed and denied subjects.
pub(crate) type Lists = (Vec<String>, Vec<String>);

/// The entries of one list for one subject filter.
#[derive(Debug, Default)]
struct Entry {
    /// Whether the list has the filter without a queue.
    plain: bool,
    /// Queue names that the list has the filter with; they may contain wildcards.
    queues: Vec<Box<[u8]>>,
    /// Whether the filter's last token is `>`, so that it covers a subscription that ends in `>`.
    covers_rest: bool,
}

impl Grants {
    /// Compiles configured permissions.
    pub(crate) fn new(from: &auth::Permissions) -> Self {
        // A user that may only respond may publish nothing else.
        let restricted = !from.publish.allow.is_empty() || from.allow_responses.is_some();
        Self {
            publish_allow: restricted.then(|| table(&from.publish.allow)),
            publish_deny: table(&from.publish.deny),
            subscribe_allow: (!from.subscribe.allow.is_empty())
                .then(|| table(&from.subscribe.allow)),
            subscribe_deny: table(&from.subscribe.deny),
            responses: from.allow_responses,
        }
    }

    /// Whether deliveries have to be checked against the deny list.
    pub(crate) fn filters_deliveries(&self) -> bool {
        !self.subscribe_deny.is_empty()
    }

    /// Whether received requests have to be remembered.
    pub(crate) fn allows_responses(&self) -> bool {
        self.responses.is_some()
    }

    /// Whether a message on `subject` may be delivered to a subscription with `queue`.
    pub(crate) fn may_receive(&self, subject: &[u8], queue: Option<&[u8]>) -> bool {
        !self.denies_subscription(subject, queue)
    }

    /// Whether `SUB subject [queue]` is permitted.
    ///
    /// A subscription's wildcards are looked up as if they were literal tokens, but one that ends
    /// in `>` has to be covered by an entry that does.
    pub(crate) fn may_subscribe(&self, subject: &[u8], queue: Option<&[u8]>) -> bool {
        self.allows_subscription(subject, queue) && !self.denies_subscription(subject, queue)
    }

    fn allows_subscription(&self, subject: &[u8], queue: Option<&[u8]>) -> bool {
        let Some(allow) = &self.subscribe_allow else {
            return true;
        };
        let open = subject == b">" || subject.ends_with(b".>");
        let (mut plain, mut queued, mut named) = (false, false, false);
        visit(allow, subject, |entry| {
            if open && !entry.covers_rest {
                return;
            }
            plain |= entry.plain;
            queued |= !entry.queues.is_empty();
            named |= queue.is_some_and(|queue| entry.names(queue));
        });
        match queue {
            None => plain,
            Some(_) if queued => named,
            Some(_) => plain,
        }
    }

    fn denies_subscription(&self, subject: &[u8], queue: Option<&[u8]>) -> bool {
        let mut denied = false;
        visit(&self.subscribe_deny, subject, |entry| {
            denied |= entry.plain || queue.is_some_and(|queue| entry.names(queue));
        });
        denied
    }

    /// Returns the subjects that may be published, and those that may be subscribed to: each time
    /// the allowed ones, of which none are all, and the denied ones.
    pub(crate) fn lists(&self) -> (Lists, Lists) {
        let texts = |table: &Table<Entry>| {
            let filters = table.iter().map(|(filter, _)| String::from_utf8_lossy(filter));
            let mut texts: Vec<String> = filters.map(|text| text.into_owned()).collect();
            texts.sort_unstable();
            texts
        };
        let list = |allow: &Option<Table<Entry>>, deny: &Table<Entry>| {
            (allow.as_ref().map(texts).unwrap_or_default(), texts(deny))
        };
        (
            list(&self.publish_allow, &self.publish_deny),
            list(&self.subscribe_allow, &self.subscribe_deny),
        )
    }

    /// Whether the lists allow a publish to `subject`, whatever was published before.
    pub(crate) fn may_publish(&self, subject: &[u8]) -> bool {
        let found = |table: &Table<Entry>| {
            let mut found = false;
            visit(table, subject, |_| found = true);
            found
        };
        self.publish_allow.as_ref().is_none_or(found) && !found(&self.publish_deny)
    }
}

impl Entry {
    fn names(&self, queue: &[u8]) -> bool {
        self.queues.iter().any(|filter| subject::matches(filter, queue))
    }
}

fn table(entries: &[SubjectEntry]) -> Table<Entry> {
    let mut table = Table::default();
    for SubjectEntry { subject, queue } in entries {
        let entry: &mut Entry = table.entry(subject.as_bytes());
        entry.covers_rest = subject == ">" || subject.ends_with(".>");
        match queue {
            None => entry.plain = true,
            Some(queue) => entry.queues.push(queue.as_bytes().into()),
        }
    }
    table
}

/// Visits the entries that match `subject`; a malformed subject is matched by its whole text.
fn visit<'t>(table: &'t Table<Entry>, subject: &[u8], mut see: impl FnMut(&'t Entry)) {
    table.for_each_match(subject, &mut see);
}

/// Results of permission checks that one connection remembers.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    publish: HashMap<Box<[u8]>, bool, RandomState>,
    replies: HashMap<Box<[u8]>, Reply, RandomState>,
    replies_bytes: usize,
}

#[derive(Debug)]
struct Reply {
    left: i64,
    /// The end of the permission, in nanoseconds since the start; `u64::MAX`: never.
    expires: u64,
}

impl Checks {
    /// Whether a publish to `subject` is permitted now; counts it if it is a response.
    pub(crate) fn may_publish(&mut self, user: &Grants, subject: &[u8], now: u64) -> bool {
        self.may_always_publish(user, subject) || self.may_respond(subject, now)
    }

    /// Whether a publish to `subject` is permitted whatever requests were received.
    pub(crate) fn may_always_publish(&mut self, user: &Grants, subject: &[u8]) -> bool {
        if let Some(listed) = self.publish.get(subject) {
            return *listed;
        }
        let listed = user.may_publish(subject);
        if self.publish.len() >= CHECKED_SUBJECTS_MAX {
            self.publish.clear();
        }
        self.publish.insert(subject.into(), listed);
        listed
    }

    /// Permits answers to `reply`, the reply subject of a message that the connection has received.
    pub(crate) fn on_request(&mut self, user: &Grants, reply: &[u8], now: u64) {
        let Some(responses) = user.responses else { return };
        if self.has_many_replies() {
            self.replies.retain(|_, reply| reply.expires > now && reply.left != 0);
            self.replies_bytes = self.replies.keys().map(|subject| subject.len()).sum();
            if self.has_many_replies() {
                self.replies.clear();
                self.replies_bytes = 0;
            }
        }
        let left = if responses.max < 0 { i64::MAX } else { responses.max };
        let expires = match u64::try_from(responses.expires_ms) {
            Ok(ms) => now.saturating_add(ms.saturating_mul(1_000_000)),
            Err(_) => u64::MAX,
        };
        if self.replies.insert(reply.into(), Reply { left, expires }).is_none() {
            self.replies_bytes += reply.len();
        }
    }

    fn has_many_replies(&self) -> bool {
        self.replies.len() >= REPLIES_MAX || self.replies_bytes >= REPLIES_BYTES_MAX
    }

    fn may_respond(&mut self, subject: &[u8], now: u64) -> bool {
        let Some(reply) = self.replies.get_mut(subject) else {
            return false;
        };
        if reply.left == 0 || reply.expires <= now {
            self.replies.remove(subject);
            self.replies_bytes -= subject.len();
            return false;
        }
        reply.left -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leave_to_answer_is_bounded_in_bytes() {
        let allow_responses = Some(Responses::default());
        let user = Grants::new(&auth::Permissions { allow_responses, ..Default::default() });
        let mut checks = Checks::default();
        for number in 0..5000 {
            let reply = format!("{number:04000}");
            checks.on_request(&user, reply.as_bytes(), 0);
            assert!(checks.may_publish(&user, reply.as_bytes(), 1), "it may be answered");
            let held: usize = checks.replies.keys().map(|subject| subject.len()).sum();
            assert_eq!(held, checks.replies_bytes);
            assert!(held <= REPLIES_BYTES_MAX + 4000, "{held} bytes");
            if number % 3 == 0 {
                assert!(!checks.may_publish(&user, reply.as_bytes(), 1), "but once");
            }
        }
    }
}
