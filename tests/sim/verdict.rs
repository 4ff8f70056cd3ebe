//! What must have arrived once everything is at rest.

use std::collections::HashSet;

use super::book::{Book, Publication, Step, Subscription};
use super::script::{QUEUES, SUBJECTS};

/// The subject of which clients that are behind get only the last.
const CONFLATED: &str = "x.y";

impl Book {
    /// Whether a publisher surely gets this message back itself, and at once.
    pub(crate) fn loops_back(&self, id: usize, sub: &Subscription) -> bool {
        let message = &self.messages[id];
        let sender = &self.sessions[message.session];
        sub.session == message.session
            && sub.queue.is_none()
            && sub.limits.is_empty()
            && was_there(sub, message)
            && sender.config_at(message.op).echo
            && self.matches(sub.filter, message.subject)
            && !self.is_droppable(message.subject)
            && !self.is_deniable(message.subject)
            && !message.is_denied
    }

    /// Whether a message has surely been handled by its publisher's shard.
    fn is_handled(&self, message: &Publication) -> bool {
        let sender = &self.sessions[message.session];
        if message.is_denied || sender.last_op.is_some_and(|last| last < message.op) {
            return false;
        }
        let op = &sender.ops[message.op];
        let ended_well = sender.over && sender.last_op.is_some() && sender.is_complete();
        let in_time = |handed| sender.closed.is_none_or(|closed| handed < closed.turn);
        ended_well || op.confirmed.is_some() || (!sender.stale && op.handed.is_some_and(in_time))
    }

    /// Whether the subscription was in force for the whole way of the message. Of a queue group
    /// only one that never ended counts: its messages may change their way.
    fn is_stable(&self, sub: &Subscription, message: &Publication) -> bool {
        let receiver = &self.sessions[sub.session];
        let sender = &self.sessions[message.session];
        let is_certain = !message.is_denied && !self.is_deniable(message.subject);
        let matches = self.matches(sub.filter, message.subject);
        if !is_certain || !matches || !receiver.is_complete() {
            return false;
        }
        if message.session == sub.session {
            let lasts = sub.queue.is_none() || sub.end.is_none();
            return lasts && was_there(sub, message) && receiver.config_at(message.op).echo;
        }
        if self.are_apart(sub.session, message.session) {
            return self.is_stable_abroad(sub, message);
        }
        let settled = sender.confirmed(message.op);
        receiver.confirmed(sub.op).is_some_and(|confirmed| confirmed < message.written)
            && sub.end.is_none_or(|end| {
                let ended = receiver.ops[end].written;
                sub.queue.is_none() && settled.is_some_and(|settled| settled < ended)
            })
    }

    /// The same where the message has to cross a route: from one time of rest to another the
    /// subscription was in force and the route held.
    fn is_stable_abroad(&self, sub: &Subscription, message: &Publication) -> bool {
        let (receiver, sender) = (&self.sessions[sub.session], &self.sessions[message.session]);
        let before = self.rest_before(message.written);
        let after = sender.ops[message.op].handed.and_then(|handed| self.rest_after(handed));
        let (Some(before), Some(after)) = (before, after) else { return false };
        receiver.confirmed(sub.op).is_some_and(|confirmed| confirmed < before)
            && sub.end.is_none_or(|end| sub.queue.is_none() && receiver.ops[end].written > after)
            && self.are_joined(sender.server, receiver.server, before, after)
    }

    /// Whether the subscription can have been in force at any point of the message's way.
    pub(crate) fn is_possible(&self, sub: &Subscription, message: &Publication) -> bool {
        let receiver = &self.sessions[sub.session];
        let sender = &self.sessions[message.session];
        if message.is_denied || !self.matches(sub.filter, message.subject) {
            return false;
        }
        if message.session == sub.session && sub.queue.is_none() {
            return was_there(sub, message) && receiver.config_at(message.op).echo;
        }
        let own_silent = message.session == sub.session && !receiver.config_at(message.op).echo;
        let is_apart = self.are_apart(sub.session, message.session);
        let precedes = |one: Step, other: Step| match is_apart {
            true => self.rested_between(one, other),
            false => one < other,
        };
        let settled = sender.confirmed(message.op);
        let too_late = settled.is_some_and(|settled| precedes(settled, sub.written));
        let ended = sub.end.and_then(|end| receiver.confirmed(end));
        let too_early = ended.is_some_and(|ended| precedes(ended, message.written))
            || receiver.closed.is_some_and(|c| self.rested_between(c.at, message.written));
        !own_silent && !too_late && !too_early
    }

    /// Checks that everything has arrived; nothing is under way any more.
    pub(crate) fn judge(&self) {
        for (s, session) in self.sessions.iter().enumerate() {
            let settled = session.over || session.reset || session.awaited.is_empty();
            assert!(settled, "session {s}: {:?} never came", session.awaited.front());
        }
        let handled: Vec<usize> =
            (0..self.messages.len()).filter(|id| self.is_handled(&self.messages[*id])).collect();
        for sub in self.subs.iter().filter(|sub| sub.queue.is_none()) {
            self.judge_plain(sub, &handled);
        }
        for id in handled {
            for queue in 0..QUEUES.len() {
                self.judge_group(queue, id);
            }
            self.judge_status(id);
        }
        self.judge_dropped();
    }

    /// Checks that no more is missing than was dropped, and of a subject that is conflated never
    /// the last.
    fn judge_dropped(&self) {
        let ids = |publisher: usize, subject: usize| {
            self.sessions[publisher]
                .messages
                .iter()
                .copied()
                .filter(move |id| self.messages[*id].subject == subject)
        };
        for (s, session) in self.sessions.iter().enumerate() {
            let Some(dropped) = session.dropped else { continue };
            let mut missing = 0;
            let unlimited = |sub: &&Subscription| sub.queue.is_none() && sub.limits.is_empty();
            for sub in session.subs.iter().map(|sub| &self.subs[*sub]).filter(unlimited) {
                let is_due = |id: &usize| {
                    let message = &self.messages[*id];
                    self.is_handled(message) && self.is_stable(sub, message)
                };
                let came = |id: &usize| session.got.contains(&(sub.sid, *id));
                let all = 0..self.messages.len();
                missing += all.filter(|id| is_due(id) && !came(id)).count();
                let Some(subject) = (0..SUBJECTS.len()).find(|at| SUBJECTS[*at] == CONFLATED)
                else {
                    continue;
                };
                let mut published = (0..self.messages.len())
                    .filter(|id| self.messages[*id].subject == subject)
                    .peekable();
                let is_certain = published.peek().is_some() && published.all(|id| is_due(&id));
                if !is_certain || dropped.oldest + dropped.newest > 0 {
                    continue;
                }
                let mut last = (0..self.sessions.len()).filter_map(|p| ids(p, subject).next_back());
                assert!(
                    last.any(|id| came(&id)),
                    "session {s}: the last on {CONFLATED} is missing"
                );
            }
            let count = dropped.newest + dropped.oldest + dropped.conflated;
            assert!(missing as u64 <= count, "session {s}: {missing} missing, {dropped:?}");
        }
    }

    fn judge_plain(&self, sub: &Subscription, handled: &[usize]) {
        let (s, sid) = (sub.session, sub.sid);
        let session = &self.sessions[s];
        let due = handled.iter().copied().filter(|id| self.is_stable(sub, &self.messages[*id]));
        let Some(limit) = sub.limits.iter().map(|limit| limit.max).min() else {
            for id in due.filter(|id| !self.is_droppable(self.messages[*id].subject)) {
                assert!(
                    session.got.contains(&(sid, id)),
                    "session {s}: message {id} never came for sid {sid}"
                );
            }
            return;
        };
        if self.misses(sub.filter) {
            return; // What was dropped counts, too, and it is not known when.
        }
        let mut missing: Option<(usize, usize)> = None;
        let mut count = 0;
        for id in due {
            count += 1;
            let publisher = self.messages[id].session;
            let came = session.got.contains(&(sid, id));
            let gap = missing.filter(|(_, of)| *of == publisher && came);
            assert!(gap.is_none(), "session {s}: {gap:?} is missing, but {id} came for sid {sid}");
            if !came {
                missing.get_or_insert((id, publisher));
            }
        }
        assert!(
            sub.fuzzy || sub.received >= limit.min(count),
            "session {s}: sid {sid} got {} of {count} messages, its limit is {limit}",
            sub.received
        );
    }

    fn members(&self, queue: usize) -> impl Iterator<Item = &Subscription> {
        self.subs.iter().filter(move |sub| sub.queue == Some(queue))
    }

    fn judge_group(&self, queue: usize, id: usize) {
        let message = &self.messages[id];
        let mut members = self.members(queue).filter(|sub| sub.limits.is_empty());
        if !members.any(|sub| self.is_stable(sub, message)) {
            return;
        }
        let lost_with_its_member = self
            .members(queue)
            .any(|sub| !self.sessions[sub.session].is_complete() && self.is_possible(sub, message));
        assert!(
            lost_with_its_member
                || self.may_be_lost_abroad(queue, message)
                || self.placed.contains_key(&(id, queue))
                || self.is_fuzzy(queue),
            "message {id} reached nobody in the group {:?}",
            QUEUES[queue]
        );
    }

    /// Whether a message may have been lost between servers: a route has ended meanwhile, it has
    /// come to two servers on which no member was left, or to one while there were others only
    /// where it came from, to where it does not go back: so it is between clusters and leaf nodes.
    fn may_be_lost_abroad(&self, queue: usize, message: &Publication) -> bool {
        let is_away = |sub: &&Subscription| self.are_apart(sub.session, message.session);
        let members = || self.members(queue).filter(is_away);
        let server = |sub: &Subscription| self.sessions[sub.session].server;
        let stays = |sub: &&Subscription| sub.limits.is_empty() && self.is_stable(sub, message);
        let certain: HashSet<usize> = members().filter(stays).map(server).collect();
        let possible = members().filter(|sub| self.is_possible(sub, message)).map(server);
        let doubtful = possible.collect::<HashSet<_>>().difference(&certain).count();
        let has_parted = self.has_parted_since(self.rest_before(message.written).unwrap_or(0));
        let is_one_way = self.has_leaves || self.has_gateways || certain.is_empty();
        (doubtful > 0 && (has_parted || is_one_way)) || doubtful > 1
    }

    fn is_fuzzy(&self, queue: usize) -> bool {
        self.members(queue).any(|sub| sub.fuzzy)
    }

    fn judge_status(&self, id: usize) {
        let message = &self.messages[id];
        let sender = &self.sessions[message.session];
        if message.reply.is_none() || !sender.is_complete() {
            return;
        }
        let told = sender.unanswered.contains(&id);
        let is_delivered = self.delivered.contains(&id);
        assert!(
            !told || !is_delivered,
            "session {}: told that nobody got {id}, but somebody did",
            message.session
        );
        let waits = sender.config_at(message.op).no_responders
            && self.subs.iter().any(|s| s.limits.is_empty() && self.takes_replies(s, message));
        assert!(
            told || !waits || is_delivered || self.may_be_lost(message),
            "session {}: nobody got {id}, and its publisher was not told",
            message.session
        );
    }

    /// Whether a message may have been on its way to somebody, whom it has not reached: a client
    /// that has lost its connection or was behind, or anybody at another server.
    fn may_be_lost(&self, message: &Publication) -> bool {
        self.subs.iter().filter(|sub| self.is_possible(sub, message)).any(|sub| {
            !self.sessions[sub.session].is_complete()
                || self.is_droppable(message.subject)
                || self.are_apart(sub.session, message.session)
        })
    }
}

/// Whether the publisher's own subscription was in force when it published.
fn was_there(sub: &Subscription, message: &Publication) -> bool {
    sub.op < message.op && sub.end.is_none_or(|end| end > message.op)
}
