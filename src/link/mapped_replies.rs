//! Replies to other clusters: which of this server's are mapped, and where mapped ones lead.
//!
//! A fresh inbox is not known to other clusters when the first request leaves. So its reply is
//! mapped: it names the cluster and the server, and the answer comes straight back. The server of
//! the responder shows its clients the plain reply, and remembers for each that got a request
//! where the answer goes.

use std::collections::{HashMap, VecDeque};

use crate::interest::ids::{AccountId, ConnId};
use crate::proto::gateway::plain_subject;
use crate::subject::Table;

/// Nanoseconds for which interest is recent, and for which an answer is sent where the request
/// came from.
const RECENT_NS: u64 = 2_000_000_000;

/// Entries of either kind on a shard, at most; the oldest is forgotten first.
const ENTRIES_MAX: usize = 64 * 1024;

/// Bytes of their texts, at most.
const TEXT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A mapped reply that a client of this shard has got.
#[derive(Debug)]
struct MappedReply {
    conn: ConnId,
    mapped: Box<[u8]>,
    expires: u64,
}

/// The mapped replies that clients of this shard may answer.
#[derive(Debug, Default)]
pub(crate) struct MappedReplies {
    /// Replies by a hash of the client and the plain reply; two of one hash are the newer one.
    by_hash: HashMap<u64, MappedReply, ahash::RandomState>,
    /// Hashes with the time at which they expire, the earliest first.
    order: VecDeque<(u64, u64)>,
    text_bytes: usize,
}

impl MappedReplies {
    /// Whether there is none, so that no answer has to be looked at.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.by_hash.is_empty()
    }

    /// Remembers that a client got a request with this mapped reply, of which it was shown
    /// `plain`.
    pub(crate) fn remember(&mut self, conn: ConnId, mapped: &[u8], plain: &[u8], now: u64) {
        self.forget_expired(now);
        // A subject that a stored message was published to is no part of its reply.
        let mapped_at = mapped.len() - plain_subject(mapped).len();
        let Some(mapped) = mapped.get(..mapped_at + plain.len()) else { return };
        let hash = self.by_hash.hasher().hash_one((conn, plain));
        let expires = now.saturating_add(RECENT_NS);
        let entry = MappedReply { conn, mapped: mapped.into(), expires };
        self.text_bytes += mapped.len();
        if let Some(old) = self.by_hash.insert(hash, entry) {
            self.text_bytes -= old.mapped.len();
        }
        self.order.push_back((hash, expires));
        while self.order.len() > ENTRIES_MAX || self.text_bytes > TEXT_BYTES_MAX {
            self.forget_first();
        }
    }

    /// Returns the subject on which an answer of a client leaves; `None` if it is no answer to
    /// another cluster.
    pub(crate) fn find(&mut self, conn: ConnId, subject: &[u8], now: u64) -> Option<Box<[u8]>> {
        self.forget_expired(now);
        let hash = self.by_hash.hasher().hash_one((conn, subject));
        let found = self.by_hash.get(&hash)?;
        let is_it = found.conn == conn && plain_subject(&found.mapped) == subject;
        is_it.then(|| found.mapped.clone())
    }

    fn forget_expired(&mut self, now: u64) {
        while self.order.front().is_some_and(|(_, expires)| *expires <= now) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        let Some((hash, expires)) = self.order.pop_front() else { return };
        // A newer one of the same hash stays.
        if self.by_hash.get(&hash).is_some_and(|entry| entry.expires == expires)
            && let Some(entry) = self.by_hash.remove(&hash)
        {
            self.text_bytes -= entry.mapped.len();
        }
    }
}

/// Interest of this server's clients that other clusters may not know yet.
#[derive(Debug, Default)]
pub(crate) struct RecentInterest {
    /// Times at which filters are recent no more.
    tables: HashMap<AccountId, Table<u64>>,
    order: VecDeque<(u64, AccountId, Box<[u8]>)>,
    text_bytes: usize,
}

impl RecentInterest {
    /// Notes new interest in a filter.
    pub(crate) fn note(&mut self, account: AccountId, filter: &[u8], now: u64) {
        self.forget_old(now);
        let until = now.saturating_add(RECENT_NS);
        *self.tables.entry(account).or_default().entry(filter) = until;
        self.text_bytes += filter.len();
        self.order.push_back((until, account, filter.into()));
        while self.order.len() > ENTRIES_MAX || self.text_bytes > TEXT_BYTES_MAX {
            self.forget_first();
        }
    }

    /// Whether recent interest covers a reply.
    pub(crate) fn covers(&mut self, account: AccountId, reply: &[u8], now: u64) -> bool {
        self.forget_old(now);
        let Some(table) = self.tables.get(&account) else { return false };
        let mut covers = false;
        table.for_each_match(reply, |_| covers = true);
        covers
    }

    fn forget_old(&mut self, now: u64) {
        while self.order.front().is_some_and(|(until, ..)| *until <= now) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        let Some((until, account, filter)) = self.order.pop_front() else { return };
        self.text_bytes -= filter.len();
        let Some(table) = self.tables.get_mut(&account) else { return };
        if table.get(&filter).is_some_and(|other| *other == until) {
            table.remove(&filter);
        }
        if table.is_empty() {
            self.tables.remove(&account);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: ConnId = ConnId { slot: 1, generation: 0 };
    const ACCOUNT: AccountId = AccountId::GLOBAL;

    #[test]
    fn an_answer_goes_back_for_two_seconds_from_the_client_that_was_asked_only() {
        let (mut replies, mapped) = (MappedReplies::default(), b"_GR_.AAAAAA.BBBBBB.r.1");
        replies.remember(CLIENT, mapped, b"r.1", 0);
        assert_eq!(replies.find(CLIENT, b"r.1", 1).as_deref(), Some(&mapped[..]));
        assert_eq!(replies.find(ConnId { slot: 2, ..CLIENT }, b"r.1", 1), None);
        assert_eq!(replies.find(CLIENT, b"r.2", 1), None);
        assert_eq!(replies.find(CLIENT, b"r.1", RECENT_NS), None);
        assert!(replies.is_empty() && replies.text_bytes == 0);
    }

    #[test]
    fn the_subject_of_a_stored_message_is_no_part_of_its_reply() {
        let mut replies = MappedReplies::default();
        replies.remember(CLIENT, b"_GR_.AAAAAA.BBBBBB.r@s", b"r", 0);
        let found = replies.find(CLIENT, b"r", 0);
        assert_eq!(found.as_deref(), Some(&b"_GR_.AAAAAA.BBBBBB.r"[..]));
    }

    #[test]
    fn replies_and_filters_are_bounded_and_the_oldest_goes_first() {
        let (mut replies, mut recent) = (MappedReplies::default(), RecentInterest::default());
        for at in 0..ENTRIES_MAX + 10 {
            let plain = format!("r.{at}");
            let mapped = format!("_GR_.AAAAAA.BBBBBB.{plain}");
            replies.remember(CLIENT, mapped.as_bytes(), plain.as_bytes(), 0);
            recent.note(ACCOUNT, plain.as_bytes(), 0);
        }
        assert_eq!((replies.order.len(), recent.order.len()), (ENTRIES_MAX, ENTRIES_MAX));
        assert!(replies.find(CLIENT, b"r.9", 0).is_none() && !recent.covers(ACCOUNT, b"r.9", 0));
        assert!(replies.find(CLIENT, b"r.10", 0).is_some() && recent.covers(ACCOUNT, b"r.10", 0));
        let long = vec![b'x'; TEXT_BYTES_MAX / 2];
        (0..3).for_each(|_| recent.note(ACCOUNT, &long, 0));
        assert!(recent.text_bytes <= TEXT_BYTES_MAX);
    }

    #[test]
    fn interest_is_recent_for_two_seconds_and_a_repeated_one_from_then_on() {
        let mut recent = RecentInterest::default();
        recent.note(ACCOUNT, b"_INBOX.a.*", 0);
        recent.note(ACCOUNT, b"_INBOX.b", 0);
        recent.note(ACCOUNT, b"_INBOX.b", 5);
        assert!(recent.covers(ACCOUNT, b"_INBOX.a.1", RECENT_NS - 1));
        assert!(!recent.covers(ACCOUNT, b"_INBOX.a.1", RECENT_NS));
        assert!(recent.covers(ACCOUNT, b"_INBOX.b", RECENT_NS + 4));
        assert!(!recent.covers(ACCOUNT, b"_INBOX.b", RECENT_NS + 5));
        assert!(recent.tables.is_empty() && recent.text_bytes == 0);
    }
}
