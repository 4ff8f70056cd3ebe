//! Ends of connections and subscriptions, one by one or with the server.

use std::collections::VecDeque;

use crate::core::conn::{Conn, FLUSH_NS, Phase};
use crate::core::outputs::Output;
use crate::core::{Core, announce};
use crate::interest::Wanted;
use crate::interest::ids::ConnId;
use crate::interest::reach::Via;
use crate::interest::subscription::SubKey;
use crate::output::Outbox;
use crate::proto::encode;
use crate::proto::mqtt::{ConnectCode, connack};
use crate::session::{ClientPhase, EndedClient};

/// The reason of a connection's end, as monitoring names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The client closed the connection.
    ClientClosed,
    /// Input, or its absence, broke the protocol; the text is the field's own.
    Protocol(&'static str),
    /// More output was pending than `max_pending`.
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
    /// Whether a login was refused.
    fn is_of_login(self) -> bool {
        let text = self.text();
        text.starts_with("Authentication ") || text.starts_with("Maximum Account ")
    }

    /// Returns the name of the reason in the log and in monitoring.
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

/// Places in tables of interest that are removed at once with a connection; with more, the
/// connection stands in line for that.
const RETRACTED_AT_ONCE: usize = 64;

/// Places that are removed for a connection in that line before it is another's turn.
pub(crate) const RETRACTED_PER_STEP: usize = 512;

/// The schedule by which the last clients are sent away.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LameDuck {
    pub(crate) next_close: u64,
    pub(crate) interval: u64,
}

/// Subscriptions and connections that are about to end.
#[derive(Debug, Default)]
pub(crate) struct Endings {
    /// Subscriptions that reached their maximum in the run being delivered.
    pub(crate) ended: Vec<SubKey>,
    /// Connections that went over `max_pending` in the run being delivered.
    pub(crate) doomed: Vec<ConnId>,
    /// Connections with subscriptions to be removed, some in each turn.
    pub(crate) leaving: VecDeque<ConnId>,
    pub(crate) lame_duck: Option<LameDuck>,
    /// Clients of MQTT whose connections have ended: of each at most one.
    pub(crate) mqtt: Vec<EndedClient>,
}

impl Core {
    /// Ends a connection: its error, if any, and all that is queued is sent within [`FLUSH_NS`], or
    /// the write deadline when the server sends it away; nothing more is read.
    pub(crate) fn fail(&mut self, id: ConnId, error: Option<&str>, reason: Reason) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if !conn.is_open() {
            return;
        }
        let patience = match reason {
            Reason::ServerShutdown => self.settings.intervals.write_deadline_ns,
            _ => FLUSH_NS,
        };
        let until = self.times.now.saturating_add(patience);
        conn.phase = Phase::Flushing { until };
        conn.review();
        conn.input.clear();
        if conn.layers.is_understood() {
            conn.log_end(reason);
        }
        if let Some(code) = reason.close_code() {
            conn.layers.end(code, reason.text());
        }
        if let Some(client) = &conn.mqtt {
            // A client that is refused is told so; any other end says enough.
            if client.phase == ClientPhase::LogsIn && reason.is_of_login() {
                self.reply(id, |out| out.extend(connack(ConnectCode::NotAuthorized, false)));
            }
        } else if let Some(error) = error.filter(|_| conn.layers.is_understood()) {
            // Nothing comes behind the last error, nor does a status that is not known yet.
            if conn.outbox.may_have_statuses() {
                self.hold_back(id, Outbox::hold_behind_statuses);
            }
            self.reply(id, |out| encode::err(out, error));
        }
        self.remember(id, reason);
        self.leave(id);
        self.out.push(Output::Pause(id));
        self.rearm(id);
        self.flush_to_end(id);
    }

    /// Sends the rest of the output of a connection at its end, or closes the connection if there
    /// is none.
    pub(crate) fn flush_to_end(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.outbox.is_empty() {
            conn.layers.say_goodbye();
        }
        if conn.is_drained() {
            self.close(id, false);
        } else {
            conn.flush(&mut self.out.flushes, true);
        }
    }

    /// Ends a connection at once; queued output is dropped.
    pub(crate) fn abort(&mut self, id: ConnId, reason: Reason) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.is_closed() {
            return;
        }
        if matches!(reason, Reason::SlowConsumerPending | Reason::SlowConsumerDeadline) {
            self.monitor.stats.slow_consumers.add(conn.kind());
            self.accounts.at(conn.account).slow_consumers += 1;
        }
        if conn.is_open() {
            conn.log_end(reason);
            self.remember(id, reason);
        }
        self.close(id, true);
        self.leave(id);
    }

    pub(crate) fn close(&mut self, id: ConnId, abort: bool) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.is_closed() {
            return;
        }
        conn.phase = Phase::Closing { abort };
        conn.review();
        conn.outbox.clear(&mut self.spares);
        self.monitor.open_conns -= usize::from(conn.has_seat_of_clients());
        self.close_if_left(id);
    }

    /// Closes a connection at its end, once no table of interest names its slot.
    pub(crate) fn close_if_left(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.interests() == 0)
            && let Phase::Closing { abort } = conn.phase
        {
            conn.phase = Phase::Closed;
            let frees_seat = conn.has_seat_of_clients();
            self.out.push(Output::Close { conn: id, abort, frees_seat });
        }
    }

    /// Removes the connection from every table.
    pub(crate) fn leave(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.login.forget_checks();
        if let Some(client) = conn.mqtt.take() {
            let (account, user) = (conn.account, conn.login.user().cloned());
            self.endings.mqtt.push(EndedClient { conn: id, client, account, user });
        }
        self.drop_subscriptions(id);
        self.leave_link(id);
        self.leave_account(id);
        self.relieve(id, 0);
        self.close_if_left(id);
    }

    /// Stops deliveries to the subscriptions of a connection, or for the remote interest of a peer,
    /// and removes them: a few at once, very many in turns to come.
    pub(crate) fn drop_subscriptions(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.takes.is_leaving() {
            return;
        }
        if conn.interests() <= RETRACTED_AT_ONCE {
            self.retract_some(id, RETRACTED_AT_ONCE);
            return;
        }
        conn.set_leaving(true);
        self.endings.leaving.push_back(id);
    }

    /// Whether subscriptions can be removed: not while lanes are full and other shards cannot be
    /// told.
    pub(crate) fn has_leaving(&self) -> bool {
        !self.endings.leaving.is_empty() && !self.lanes.has_full()
    }

    /// Removes up to `count` subscriptions of a connection, or places of a peer's remote interest.
    pub(crate) fn retract_some(&mut self, id: ConnId, count: usize) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let keys = conn.subs.take(count);
        let retracted = keys.len();
        for key in keys {
            self.retract(key);
        }
        let filters = self.retract_remote_interest(id, count - retracted);
        self.budget.spend_retract(retracted + filters);
    }

    /// Counts a connection as one of its account no more.
    pub(crate) fn leave_account(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.login.leave_seat() {
            self.accounts.at(conn.account).leave();
        }
    }

    /// Removes a subscription that its connection no longer knows.
    fn retract(&mut self, key: SubKey) {
        let Some(conn) = self.conns.at(self.subs[key as usize].conn) else { return };
        let (id, account) = (conn.id, conn.account);
        let interest = &mut self.accounts.at(account).interest;
        let (sub, change) = interest.remove(key, &mut self.subs);
        let wanted = Wanted { filter: sub.subject(), queue: sub.queue() };
        if let Some(members) = change.announce {
            self.announce(id, account, Via::CLIENTS, wanted, members);
        }
        announce::tell_servers(self, account, wanted, change);
        if !self.requests.measured.is_empty() {
            self.requests.measured.note_left(account, sub.subject());
        }
    }

    /// Ends subscriptions that reached their maximum and connections that went over a limit while
    /// a run was delivered: not before, because its targets name them.
    #[inline]
    pub(crate) fn settle_deliveries(&mut self) {
        if !self.endings.ended.is_empty() || !self.endings.doomed.is_empty() {
            self.end_what_is_over();
        }
    }

    #[cold]
    fn end_what_is_over(&mut self) {
        while let Some(key) = self.endings.ended.pop() {
            self.end_subscription(key);
        }
        while let Some(id) = self.endings.doomed.pop() {
            let Some(conn) = self.conns.get(id) else { continue };
            if conn.is_closed() {
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

    pub(crate) fn end_subscription(&mut self, key: SubKey) {
        let Some(sub) = self.subs.get(key as usize) else { return };
        let (subs, hasher) = (&self.subs, &self.random.hasher);
        let hash_of = |key: &SubKey| hasher.hash_one(subs[*key as usize].sid());
        if let Some(conn) = self.conns.at_mut(sub.conn)
            && conn.subs.remove(hash_of(&key), |other| *other == key, hash_of).is_some()
        {
            self.retract(key);
        }
    }
}

/// Closes the next connection of a lame duck.
pub(crate) fn send_one_away(core: &mut Core) {
    let Some(duck) = &mut core.endings.lame_duck else { return };
    if duck.next_close > core.times.now {
        return;
    }
    duck.next_close = core.times.now.saturating_add(duck.interval);
    let client = |conn: &&Conn| conn.is_open() && conn.link.is_none();
    let client = core.conns.iter().find(client).map(|conn| conn.id);
    if let Some(id) = client {
        core.fail(id, None, Reason::ServerShutdown);
    }
}
