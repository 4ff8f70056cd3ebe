//! How connections and subscriptions end, one by one or with the server.

#![forbid(unsafe_code)]

use super::conn::{Conn, FLUSH_NS, Phase};
use super::interest::{Side, SubKey};
use super::{AccountId, Action, ConnId, Engine, InterestRecord, Record};
use crate::output::Outbox;
use crate::proto::encode;

/// Why a connection ends, as monitoring names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The client closed it.
    ClientClosed,
    /// What was read or its absence broke the protocol; the text is the field's own.
    Protocol(&'static str),
    /// More was pending than `max_pending`.
    SlowConsumerPending,
    /// A write took longer than `write_deadline`.
    SlowConsumerDeadline,
    /// Writing failed.
    WriteError,
    /// Reading failed.
    ReadError,
    /// The server ends or sends its clients away.
    ServerShutdown,
}

impl Reason {
    /// Its name in the log and in monitoring.
    pub fn text(self) -> &'static str {
        match self {
            Self::ClientClosed => "Client Closed",
            Self::Protocol(text) => text,
            Self::SlowConsumerPending => "Slow Consumer (Pending Bytes)",
            Self::SlowConsumerDeadline => "Slow Consumer (Write Deadline)",
            Self::WriteError => "Write Error",
            Self::ReadError => "Read Error",
            Self::ServerShutdown => "Server Shutdown",
        }
    }
}

/// A connection that ends and wants more than this stands in line with it.
const RETRACTED_AT_ONCE: usize = 64;
/// One that stands there has so many taken out before it is another's turn.
const RETRACTED_PER_STEP: usize = 512;

/// How the last clients are sent away.
#[derive(Debug, Clone, Copy)]
pub(super) struct LameDuck {
    pub(super) next_close: u64,
    pub(super) interval: u64,
}

impl Engine {
    /// The server is about to end: everybody gets what is queued, then the end of the stream.
    pub fn shut_down(&mut self) {
        // Other shards may be gone before they answer: a barrier promises nothing any more.
        self.settled_epoch = u64::MAX;
        self.forget_requests();
        self.settle();
        for id in self.conns.ids() {
            self.fail(id, None, Reason::ServerShutdown);
        }
    }

    /// The server takes no more connections and will send these away: clients that can be told
    /// are told now; from `first_close_ns` on they are closed one by one within `spread_ns`.
    pub fn start_lame_duck(&mut self, first_close_ns: u64, spread_ns: u64) {
        const INTERVAL_NS_MAX: u64 = 1_000_000_000;
        let interval = spread_ns / (self.open_conns as u64).max(1);
        let next_close = self.now.saturating_add(first_close_ns);
        let interval = interval.min(INTERVAL_NS_MAX);
        self.lame_duck = Some(LameDuck { next_close, interval });
        self.inform_clients(|_| true);
        self.announce_lame_duck();
    }

    /// Closes the next connection of a lame duck.
    pub(super) fn send_one_away(&mut self) {
        let Some(duck) = &mut self.lame_duck else { return };
        if duck.next_close > self.now {
            return;
        }
        duck.next_close = self.now.saturating_add(duck.interval);
        let client = |conn: &&Conn| conn.is_open() && conn.route.is_none();
        let client = self.conns.iter().find(client).map(|conn| conn.id);
        if let Some(id) = client {
            self.fail(id, None, Reason::ServerShutdown);
        }
    }

    /// Ends a connection: its error, if any, and all that is queued is sent within
    /// [`FLUSH_NS`], or the write deadline when the server sends it away; nothing more is read.
    pub(super) fn fail(&mut self, id: ConnId, error: Option<&str>, reason: Reason) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if !conn.is_open() {
            return;
        }
        let patience = match reason {
            Reason::ServerShutdown => self.settings.write_deadline_ns,
            _ => FLUSH_NS,
        };
        let until = self.now.saturating_add(patience);
        conn.phase = Phase::Flushing { until };
        conn.review();
        (conn.partial, conn.waits, conn.ended) = (Vec::new(), false, None);
        if conn.layers.is_understood() {
            conn.log_end(reason);
        }
        if let Some(code) = reason.close_code() {
            conn.layers.end(code, reason.text());
        }
        if let Some(error) = error.filter(|_| conn.layers.is_understood()) {
            // Nothing comes behind the last word, nor does a status that is not known yet.
            if conn.outbox.may_have_statuses() {
                self.hold_back(id, Outbox::hold_behind_statuses);
            }
            self.reply(id, |out| encode::err(out, error));
        }
        self.remember(id, reason);
        self.leave(id);
        self.actions.push_back(Action::Pause(id));
        self.rearm(id);
        self.flush_to_end(id);
    }

    /// Has what is left of a connection at its end sent, or closes it if nothing is.
    pub(super) fn flush_to_end(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.outbox.is_empty() {
            conn.layers.say_goodbye();
        }
        if conn.is_drained() {
            self.close(id, false);
        } else {
            conn.flush(&mut self.flushes, true);
        }
    }

    /// Ends a connection at once; what is queued is dropped.
    pub(super) fn abort(&mut self, id: ConnId, reason: Reason) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.phase == Phase::Closed {
            return;
        }
        if matches!(reason, Reason::SlowConsumerPending | Reason::SlowConsumerDeadline) {
            self.stats.slow_consumers += 1;
            self.accounts.at(conn.account).slow_consumers += 1;
        }
        if conn.is_open() {
            conn.log_end(reason);
            self.remember(id, reason);
        }
        self.close(id, true);
        self.leave(id);
    }

    pub(super) fn close(&mut self, id: ConnId, abort: bool) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.phase == Phase::Closed {
            return;
        }
        conn.phase = Phase::Closed;
        conn.review();
        conn.outbox.clear(&mut self.spares);
        conn.closing = Some(abort);
        self.open_conns -= usize::from(conn.route.is_none());
        self.close_if_left(id);
    }

    /// Lets go of the slot: what names it in tables of interest is gone.
    fn close_if_left(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.interests() == 0)
            && let Some(abort) = conn.closing.take()
        {
            self.actions.push_back(Action::Close { conn: id, abort });
        }
    }

    /// Takes the connection out of every table.
    pub(super) fn leave(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.checks = None;
        self.drop_subscriptions(id);
        self.leave_route(id);
        self.leave_account(id);
        self.relieve(id, 0);
        self.close_if_left(id);
    }

    /// Nothing is delivered any more to the subscriptions that a connection has, or for what its
    /// server wants. That is taken out: a little at once, very much in turns to come.
    pub(super) fn drop_subscriptions(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.is_leaving {
            return;
        }
        if conn.interests() <= RETRACTED_AT_ONCE {
            self.retract_some(id, RETRACTED_AT_ONCE);
            return;
        }
        conn.is_leaving = true;
        conn.review();
        self.leaving.push_back(id);
    }

    /// Whether subscriptions can be taken out: not while the other shards cannot be told.
    pub(super) fn has_leaving(&self) -> bool {
        !self.leaving.is_empty() && !self.has_full_lane()
    }

    /// Goes on with those that are leaving, each in its turn.
    pub(super) fn advance_leaving(&mut self) {
        while self.has_leaving()
            && let count @ 1.. = self.budget.retractions()
            && let Some(id) = self.leaving.pop_front()
        {
            self.retract_some(id, count.min(RETRACTED_PER_STEP));
            let Some(conn) = self.conns.get_mut(id) else { continue };
            if conn.interests() > 0 {
                self.leaving.push_back(id);
                continue;
            }
            conn.is_leaving = false;
            conn.review();
            self.close_if_left(id);
            self.admit_if_left(id);
        }
    }

    /// Takes out up to `count` subscriptions of a connection, or wishes of a peer.
    pub(super) fn retract_some(&mut self, id: ConnId, count: usize) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let keys = conn.subs.take(count);
        let retracted = keys.len();
        for key in keys {
            self.retract(key);
        }
        let wishes = self.retract_wishes(id, count - retracted);
        self.budget.spend_retract(retracted + wishes);
    }

    /// Counts a connection as one of its account no more.
    pub(super) fn leave_account(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if std::mem::take(&mut conn.seated) {
            self.accounts.at(conn.account).leave();
        }
    }

    /// Removes a subscription that its connection no longer knows.
    pub(super) fn retract(&mut self, key: SubKey) {
        let Some(conn) = self.conns.at(self.subs[key as usize].conn) else { return };
        let (id, account) = (conn.id, conn.account);
        let interest = &mut self.accounts.at(account).interest;
        let (sub, change) = interest.remove(key, &mut self.subs);
        let what = (sub.subject(), sub.queue());
        if let Some(members) = change.announce {
            self.announce(id, account, Side::Clients, what, members);
        }
        if let Some(members) = change.tell {
            self.tell_routes(account, what, members);
        }
    }

    pub(super) fn announce(
        &mut self,
        id: ConnId,
        account: AccountId,
        side: Side,
        (filter, queue): (&[u8], Option<&[u8]>),
        members: u32,
    ) {
        for shard in self.others() {
            let record = InterestRecord {
                account,
                side,
                filter: filter.into(),
                queue: queue.map(Into::into),
                members,
            };
            self.push_record(shard, Record::Interest(Box::new(record)));
            self.announced_epoch = self.epoch;
            self.mark_staged(id, shard);
        }
    }

    /// Ends subscriptions that reached their maximum and connections that went over a limit while
    /// a run was delivered: not before, because its targets name them.
    #[inline]
    pub(super) fn settle_deliveries(&mut self) {
        if !self.ended.is_empty() || !self.doomed.is_empty() {
            self.end_what_is_over();
        }
    }

    #[cold]
    fn end_what_is_over(&mut self) {
        while let Some(key) = self.ended.pop() {
            self.end_subscription(key);
        }
        while let Some(id) = self.doomed.pop() {
            let Some(conn) = self.conns.get(id) else { continue };
            if conn.phase == Phase::Closed {
                continue;
            }
            tracing::info!(
                "{} - Slow Consumer Detected: MaxPending of {} Exceeded",
                conn.label(),
                conn.pending_bytes_max(&self.settings.limits)
            );
            self.abort(id, Reason::SlowConsumerPending);
        }
    }

    pub(super) fn end_subscription(&mut self, key: SubKey) {
        let Some(sub) = self.subs.get(key as usize) else { return };
        let (subs, hasher) = (&self.subs, &self.hasher);
        let hash_of = |key: &SubKey| hasher.hash_one(subs[*key as usize].sid());
        if let Some(conn) = self.conns.at_mut(sub.conn)
            && conn.subs.remove(hash_of(&key), |other| *other == key, hash_of).is_some()
        {
            self.retract(key);
        }
    }
}
