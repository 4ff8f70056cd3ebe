//! Halves of measurements: where requester and responder are on different servers.
//!
//! The requester's server measures the whole time of a request, the responder's server that of the
//! service. A reply subject says which server measures ([`measuring_server`]); the other one sends
//! it its half, which may come before the answer or behind it. A half that came first is kept with
//! its request; a report waits for one that is late, for a bounded time.
//!
//! [`measuring_server`]: crate::interest::outlets::measuring_server

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use crate::interest::ids::AccountId;

/// Nanoseconds for which a report waits for the half of the responder's server.
pub(crate) const HALF_WAIT_NS: u64 = 5_000_000_000;

/// Bytes of the reports that wait on a shard; beyond, the oldest waits no longer.
const WAITING_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Bytes that a shard keeps of requests that other servers measure; beyond, the one with the least
/// time left is not measured.
const OPEN_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes that one of them takes besides its reply subject.
const OPEN_BYTES: usize = 160;

/// The half of a measurement that the responder's server has sent.
#[derive(Debug)]
pub struct FarHalf {
    /// Name of the account that has answered.
    pub account: Box<str>,
    /// The responder, as JSON; `None` if it was not told.
    pub responder: Option<Box<str>>,
    /// Round trip between the responder and its server, in nanoseconds.
    pub rtt_ns: u64,
    /// Nanoseconds that the service took.
    pub service_ns: u64,
}

impl FarHalf {
    pub(super) fn cost_bytes(&self) -> usize {
        let responder = self.responder.as_ref().map_or(0, |responder| responder.len());
        size_of::<Self>() + self.account.len() + responder
    }
}

/// Reports that wait for the half of the responder's server, by the number of the answer.
#[derive(Debug)]
pub(crate) struct WaitingReports<R> {
    reports: BTreeMap<u64, WaitingReport<R>>,
    /// Numbers by the time at which the report waits no longer.
    due: BTreeSet<(u64, u64)>,
    bytes: usize,
}

#[derive(Debug)]
struct WaitingReport<R> {
    report: R,
    cost_bytes: usize,
    expires: u64,
}

impl<R> Default for WaitingReports<R> {
    fn default() -> Self {
        Self { reports: BTreeMap::new(), due: BTreeSet::new(), bytes: 0 }
    }
}

impl<R> WaitingReports<R> {
    /// Keeps a report. Returns those that have to go for want of room.
    pub(crate) fn insert(&mut self, id: u64, report: R, cost_bytes: usize, now: u64) -> Vec<R> {
        let expires = now.saturating_add(HALF_WAIT_NS);
        let mut gone: Vec<R> = self.take(id).into_iter().collect();
        self.bytes += cost_bytes;
        self.due.insert((expires, id));
        self.reports.insert(id, WaitingReport { report, cost_bytes, expires });
        while self.bytes > WAITING_BYTES_MAX {
            let Some((_, oldest)) = self.due.first().copied() else { break };
            gone.extend(self.take(oldest));
        }
        gone
    }

    /// Takes a report of which the half is there.
    pub(crate) fn take(&mut self, id: u64) -> Option<R> {
        let waiting = self.reports.remove(&id)?;
        self.bytes -= waiting.cost_bytes;
        self.due.remove(&(waiting.expires, id));
        Some(waiting.report)
    }

    pub(crate) fn get(&self, id: u64) -> Option<&R> {
        self.reports.get(&id).map(|waiting| &waiting.report)
    }

    /// Returns the time at which the next report waits no longer.
    pub(crate) fn due(&self) -> Option<u64> {
        self.due.first().map(|(expires, _)| *expires)
    }

    /// Takes a report that has waited long enough.
    pub(crate) fn pop_due(&mut self, now: u64) -> Option<R> {
        let (_, id) = self.due.first().copied().filter(|(expires, _)| *expires <= now)?;
        self.take(id)
    }
}

/// A request that another server measures, and that a client here may answer.
#[derive(Debug)]
struct OpenHalf {
    account: AccountId,
    asked_ns: u64,
    expires: u64,
}

/// The requests that other servers measure and that clients of this shard have got, by the subject
/// of the answer.
#[derive(Debug, Default)]
pub(crate) struct OpenHalves {
    open: HashMap<Rc<[u8]>, OpenHalf, ahash::RandomState>,
    /// Subjects by the time after which an answer is late.
    due: BTreeSet<(u64, Rc<[u8]>)>,
    bytes: usize,
}

impl OpenHalves {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Notes a request at `now` that is answered until `expires`.
    pub(crate) fn note(&mut self, account: AccountId, reply: &[u8], now: u64, expires: u64) {
        self.forget_late(now);
        self.remove(reply);
        let reply: Rc<[u8]> = reply.into();
        self.bytes += OPEN_BYTES + reply.len();
        self.due.insert((expires, Rc::clone(&reply)));
        self.open.insert(reply, OpenHalf { account, asked_ns: now, expires });
        while self.bytes > OPEN_BYTES_MAX {
            let Some((_, first)) = self.due.first().cloned() else { break };
            self.remove(&first);
        }
    }

    /// Takes the request that a message of `account` answers in time. Returns when it came.
    pub(crate) fn take(&mut self, account: AccountId, subject: &[u8], now: u64) -> Option<u64> {
        self.open.get(subject).filter(|half| half.account == account)?;
        let half = self.remove(subject)?;
        (half.expires > now).then_some(half.asked_ns)
    }

    /// Forgets the requests that were not answered in time.
    pub(crate) fn forget_late(&mut self, now: u64) {
        while let Some((_, reply)) = self.due.first().filter(|(expires, _)| *expires <= now) {
            let reply = Rc::clone(reply);
            self.remove(&reply);
        }
    }

    fn remove(&mut self, reply: &[u8]) -> Option<OpenHalf> {
        let (reply, half) = self.open.remove_entry(reply)?;
        self.bytes -= OPEN_BYTES + reply.len();
        self.due.remove(&(half.expires, reply));
        Some(half)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNT: AccountId = AccountId::GLOBAL;

    #[test]
    fn a_report_waits_for_a_bounded_time_and_is_taken_once() {
        let mut waiting = WaitingReports::default();
        assert!(
            waiting.insert(1, "a", 10, 0).is_empty() && waiting.insert(2, "b", 10, 5).is_empty()
        );
        assert_eq!((waiting.due(), waiting.get(2)), (Some(HALF_WAIT_NS), Some(&"b")));
        assert_eq!((waiting.take(2), waiting.take(2)), (Some("b"), None));
        assert_eq!(waiting.pop_due(HALF_WAIT_NS - 1), None);
        assert_eq!(waiting.pop_due(HALF_WAIT_NS), Some("a"));
        assert!(waiting.reports.is_empty() && waiting.due.is_empty() && waiting.bytes == 0);
    }

    #[test]
    fn no_report_is_lost_for_want_of_room() {
        let mut waiting = WaitingReports::default();
        let cost = WAITING_BYTES_MAX / 100;
        let mut gone = Vec::new();
        for id in 0..150 {
            gone.extend(waiting.insert(id, id, cost, id));
            assert!(waiting.bytes <= WAITING_BYTES_MAX);
        }
        // One that is larger than all the room does not wait at all.
        gone.extend(waiting.insert(150, 150, WAITING_BYTES_MAX + 1, 150));
        // Of the same number there is one.
        gone.extend(waiting.insert(7, 1007, 1, 151));
        gone.extend(waiting.insert(7, 2007, 1, 152));
        gone.extend(std::iter::from_fn(|| waiting.pop_due(u64::MAX)));
        gone.sort_unstable();
        let all: Vec<u64> = (0..=150).chain([1007, 2007]).collect();
        assert_eq!(gone, all);
    }

    #[test]
    fn the_account_that_was_asked_answers_once_and_in_time() {
        let mut halves = OpenHalves::default();
        halves.note(ACCOUNT, b"r.1", 3, 10);
        halves.note(ACCOUNT, b"r.2", 4, 20);
        assert_eq!(halves.take(AccountId::new(7), b"r.1", 5), None);
        assert_eq!(halves.take(ACCOUNT, b"r.3", 5), None);
        assert_eq!(halves.take(ACCOUNT, b"r.1", 5), Some(3));
        assert_eq!(halves.take(ACCOUNT, b"r.1", 5), None);
        assert_eq!(halves.take(ACCOUNT, b"r.2", 20), None);
        halves.note(ACCOUNT, b"r.4", 30, 40);
        halves.note(ACCOUNT, b"r.4", 31, 50);
        halves.forget_late(40);
        assert_eq!(halves.take(ACCOUNT, b"r.4", 41), Some(31));
        halves.note(ACCOUNT, b"r.5", 50, 60);
        halves.forget_late(60);
        assert!(halves.is_empty() && halves.due.is_empty() && halves.bytes == 0);
    }

    #[test]
    fn requests_of_others_have_a_bound_and_the_one_with_the_least_time_goes_first() {
        let mut halves = OpenHalves::default();
        for at in 0_u64..50_000 {
            halves.note(ACCOUNT, format!("r.{at}").as_bytes(), 0, 100_000 - at);
            assert!(halves.bytes <= OPEN_BYTES_MAX);
        }
        assert_eq!(halves.take(ACCOUNT, b"r.0", 1), Some(0));
        assert_eq!(halves.take(ACCOUNT, b"r.30000", 1), None);
        assert!(halves.open.len() == halves.due.len() && halves.open.len() > 10_000);
    }
}
