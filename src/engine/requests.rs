//! No responders: the 503 status for requests that nobody gets, on any shard.
//!
//! A client with `no_responders` gets the status 503 when its request has no receiver. If a local
//! receiver is certain, there is nothing to do. Otherwise, while the run is delivered,
//! [`Engine::asked`] notes which of its messages have a receiver; any other run pays a look at a
//! field that is empty. Records to other shards carry an [`Ask`]. Each shard reports which
//! messages it has placed (`Record::Placed`), with its credit, as in message traces: when all
//! credit is back, the messages that are left get their 503. A run is asked about and reported on
//! as a whole, so requests cost one record back per run.
//!
//! Epochs with undecided requests are not settled. So a PONG waits for them as for a barrier, and
//! the status is put in front of it (`Outbox::push_status`). Above 4 MiB undecided
//! (`OPEN_BYTES_MAX`) requesters are paused. A request that goes over a route counts as placed, as
//! in nats-server.
//!
//! Requests that the server itself answers are answered on the shard where they were asked:
//! another shard may not know the requester's interest yet.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::conn::Phase;
use super::interest::Targets;
use super::message_trace::CREDIT;
use super::publish::Source;
use super::record::{Placed, Record};
use super::run::Run;
use super::{ConnId, Engine, ShardId};
use crate::proto::encode;

/// What a shard remembers of requests that other shards have not reported on, in bytes; beyond,
/// connections that make more are not read from until half of it has gone.
const OPEN_BYTES_MAX: usize = 4 * 1024 * 1024;
/// What remembering one costs besides its texts, in bytes.
const OPEN_BYTES: usize = 96;

/// Goes along with requests to another shard.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    /// Where it is reported to.
    origin: ShardId,
    id: u64,
    credit: u128,
    /// The messages of its record, as the origin counts them.
    numbers: Vec<u32>,
}

impl Ask {
    /// What is asked of the messages from `at` on, which are delivered later; the credit follows.
    pub(super) fn split_off(&mut self, at: usize) -> Box<Self> {
        let numbers = self.numbers.split_off(at.min(self.numbers.len()));
        Box::new(Self { credit: 0, numbers, ..*self })
    }

    /// What it costs to keep, in bytes.
    pub(super) fn cost_bytes(&self) -> usize {
        size_of::<Self>() + size_of::<u32>() * self.numbers.len()
    }
}

/// What is known of the requests that are being delivered.
#[derive(Debug)]
pub(super) struct Asked {
    ask: Ask,
    /// Whether somebody gets each message of the run.
    placed: Vec<bool>,
    /// Those that nobody gets yet.
    left: usize,
}

impl Asked {
    fn new(ask: Ask) -> Self {
        let left = ask.numbers.len();
        Self { placed: vec![false; left], left, ask }
    }

    fn place(&mut self, at: usize) {
        if let Some(placed) = self.placed.get_mut(at) {
            self.left -= usize::from(!std::mem::replace(placed, true));
        }
    }

    /// A part of it for another shard, which gets the messages `at` these places, or all.
    fn share(&mut self, at: Option<&[u32]>) -> Option<Box<Ask>> {
        if self.left == 0 {
            return None;
        }
        let credit = self.ask.credit / 2;
        if credit == 0 {
            // It cannot be told any more what becomes of them: better no status than a false one.
            (0..self.placed.len()).for_each(|at| self.place(at));
            return None;
        }
        self.ask.credit -= credit;
        let Ask { origin, id, ref numbers, .. } = self.ask;
        let number = |at: &u32| numbers.get(*at as usize).copied();
        let numbers = match at {
            Some(places) => places.iter().filter_map(number).collect(),
            None => numbers.clone(),
        };
        Some(Box::new(Ask { origin, id, credit, numbers }))
    }
}

/// The requests of a shard's connections that other shards have not reported on.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// By number, so that the first is the oldest.
    open: BTreeMap<u64, Open>,
    bytes: usize,
    next_id: u64,
    /// Connections that are not read from because there are too many.
    feeders: Vec<ConnId>,
}

/// A run of requests of which nobody here gets some.
#[derive(Debug)]
struct Open {
    conn: ConnId,
    /// Which of its requests that is, as its outbox counts them.
    request: u64,
    epoch: u64,
    subject: Box<[u8]>,
    /// Credit that is still to come back.
    missing: u128,
    unplaced: Vec<Unplaced>,
}

#[derive(Debug)]
struct Unplaced {
    number: u32,
    reply: Box<[u8]>,
    /// Of the subscription that gets the status.
    sid: Box<[u8]>,
}

impl Open {
    fn cost_bytes(&self) -> usize {
        let texts = self.unplaced.iter().map(|one| OPEN_BYTES + one.reply.len() + one.sid.len());
        self.subject.len() + texts.sum::<usize>()
    }
}

impl Requests {
    /// The last epoch of which all requests have been reported on.
    pub(super) fn decided_epoch(&self) -> u64 {
        self.open.first_key_value().map_or(u64::MAX, |(_, oldest)| oldest.epoch - 1)
    }
}

impl Engine {
    /// Delivers requests of a local connection, and sees to it that it is told of those that nobody
    /// gets.
    pub(super) fn request(
        &mut self,
        from: ConnId,
        source: &Source,
        run: &Run<'_>,
        targets: &Targets,
    ) {
        let id = self.requests.next_id;
        self.requests.next_id += 1;
        let numbers = (0..).zip(&run.messages).map(|(number, _)| number).collect();
        let ask = Ask { origin: self.shard, id, credit: CREDIT, numbers };
        let mut asked = Box::new(Asked::new(ask));
        for (at, publish) in run.publishes().enumerate() {
            if publish.reply.is_none() {
                asked.place(at);
            }
        }
        self.asked = Some(asked);
        self.deliver(source, run, targets);
        let Some(asked) = self.asked.take() else { return };
        let mut unplaced = Vec::new();
        let left = run.publishes().zip(&asked.placed).zip(&asked.ask.numbers);
        for ((publish, _), number) in left.filter(|((_, is_placed), _)| !*is_placed) {
            let reply = publish.reply.unwrap_or_default();
            if let Some(sid) = self.sid_for_reply(from, reply) {
                unplaced.push(Unplaced { number: *number, reply: reply.into(), sid });
            }
        }
        let missing = CREDIT - asked.ask.credit;
        let subject = run.subject();
        if missing > 0 && !unplaced.is_empty() {
            return self.wait_for_reports(from, id, missing, (subject, unplaced));
        }
        for Unplaced { reply, sid, .. } in unplaced {
            // It shows that the subscription is known, and somebody may rely on that elsewhere.
            self.confirm(from, |out| encode::no_responders(out, &reply, &sid, subject));
        }
    }

    fn wait_for_reports(
        &mut self,
        from: ConnId,
        id: u64,
        missing: u128,
        (subject, unplaced): (&[u8], Vec<Unplaced>),
    ) {
        let Some(conn) = self.conns.get_mut(from) else { return };
        let open = Open {
            conn: from,
            request: conn.outbox.expect_status(),
            epoch: self.epoch,
            subject: subject.into(),
            missing,
            unplaced,
        };
        self.requests.bytes += open.cost_bytes();
        self.requests.open.insert(id, open);
        if self.requests.bytes > OPEN_BYTES_MAX && !conn.brakes.requests {
            self.requests.feeders.push(from);
            self.brake(from, |brakes| brakes.requests = true);
        }
    }

    /// Which own plain subscription of a connection takes what comes to `reply`.
    fn sid_for_reply(&mut self, id: ConnId, reply: &[u8]) -> Option<Box<[u8]>> {
        let account = self.conns.get(id)?.account;
        let targets = self.targets(account, reply);
        let mut members = targets.groups.iter().flat_map(|group| &group.members);
        let member = members.find(|member| member.conn == id.slot)?;
        Some(self.subs[member.sub as usize].sid().into())
    }

    /// Somebody gets the first `count` messages of the run that is being delivered.
    pub(super) fn place_first(&mut self, count: usize) {
        if let Some(asked) = &mut self.asked {
            (0..count).for_each(|at| asked.place(at));
        }
    }

    /// Somebody gets the message at this place of it.
    pub(super) fn place_at(&mut self, at: usize) {
        if let Some(asked) = &mut self.asked {
            asked.place(at);
        }
    }

    /// What another shard needs to report on the messages `at` these places, or all.
    pub(super) fn ask(&mut self, at: Option<&[u32]>) -> Option<Box<Ask>> {
        self.asked.as_mut()?.share(at)
    }

    /// Goes on with what another shard has asked.
    pub(super) fn begin_report(&mut self, ask: Option<Box<Ask>>) {
        self.asked = ask.map(|ask| Box::new(Asked::new(*ask)));
    }

    /// The messages have been delivered, as far as this shard is concerned, but for those that are
    /// asked about in `later`.
    pub(super) fn end_report(&mut self, later: Option<&mut Ask>) {
        let Some(asked) = self.asked.take() else { return };
        let Ask { origin, id, mut credit, numbers } = asked.ask;
        if let Some(later) = later {
            later.credit = std::mem::take(&mut credit);
        }
        let placed = numbers.into_iter().zip(asked.placed).filter(|(_, is_placed)| *is_placed);
        let numbers = placed.map(|(number, _)| number).collect();
        let placed = Box::new(Placed { id, credit, numbers });
        if origin == self.shard {
            self.on_placed(&placed);
        } else {
            self.push_record(origin, Record::Placed(placed));
        }
    }

    /// A shard has delivered its part of requests.
    pub(super) fn on_placed(&mut self, placed: &Placed) {
        let Some(mut open) = self.requests.open.remove(&placed.id) else { return };
        self.requests.bytes -= open.cost_bytes();
        open.missing = open.missing.saturating_sub(placed.credit);
        // They are in order: runs and their parts are.
        open.unplaced.retain(|one| placed.numbers.binary_search(&one.number).is_err());
        if open.missing > 0 && !open.unplaced.is_empty() {
            self.requests.bytes += open.cost_bytes();
            self.requests.open.insert(placed.id, open);
            return;
        }
        self.tell_unplaced(&open);
        self.settle();
        if self.requests.bytes <= OPEN_BYTES_MAX / 2 {
            for id in std::mem::take(&mut self.requests.feeders) {
                self.release(id, |brakes| brakes.requests = false);
            }
        }
        self.settle_deliveries();
    }

    fn tell_unplaced(&mut self, open: &Open) {
        let Some(conn) = self.conns.get_mut(open.conn) else { return };
        conn.outbox.decide_status();
        for Unplaced { reply, sid, .. } in &open.unplaced {
            let write = |out: &mut Vec<u8>| encode::no_responders(out, reply, sid, &open.subject);
            let Some(conn) = self.conns.get_mut(open.conn) else { return };
            if !conn.outbox.push_status(open.request, &mut self.spares, write) {
                self.confirm(open.conn, write);
            }
        }
        // One at its end may have waited for nothing else.
        let conn = self.conns.get(open.conn);
        if conn.is_some_and(|conn| matches!(conn.phase, Phase::Flushing { .. })) {
            self.flush_to_end(open.conn);
        }
    }

    /// No report is waited for any more.
    pub(super) fn forget_requests(&mut self) {
        self.requests.bytes = 0;
        for open in std::mem::take(&mut self.requests.open).into_values() {
            if let Some(conn) = self.conns.get_mut(open.conn) {
                conn.outbox.expect_no_status();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::engine::{Action, Peer, Settings};

    /// Two shards: a requester on the first, and on the second a subscriber to `a` and to `b`, who
    /// takes one message of `b`.
    fn two_shards() -> ([Engine; 2], ConnId) {
        let settings = Rc::new(Settings::new(&Default::default(), &Default::default(), usize::MAX));
        let id = ConnId { slot: 0, generation: 0 };
        let mut engines = [0, 1].map(|shard| {
            let mut engine = Engine::new(ShardId(shard), 2, Rc::clone(&settings), 1);
            engine.open(id, Peer { cid: 1, ip: "".into(), port: 1 }, true);
            let connect =
                b"CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true}\r\n";
            engine.on_bytes(id, connect);
            engine
        });
        engines[0].on_bytes(id, b"SUB inbox 1\r\n");
        engines[1].on_bytes(id, b"SUB a 1\r\nSUB b 2\r\nUNSUB 2 1\r\n");
        exchange(&mut engines);
        engines.iter_mut().for_each(|engine| drop(output(engine, id)));
        (engines, id)
    }

    /// Turns until neither has anything to tell the other.
    fn exchange(engines: &mut [Engine; 2]) {
        let mut is_over = false;
        while !is_over {
            is_over = true;
            for (from, to) in [(ShardId(0), ShardId(1)), (ShardId(1), ShardId(0))] {
                // Input that had to wait goes on.
                engines[from.index()].tick();
                engines[from.index()].end_turn();
                while let Some(record) = engines[from.index()].pop_record(to) {
                    engines[to.index()].on_record(from, record);
                    is_over = false;
                }
                is_over &= !engines[from.index()].has_more();
            }
        }
    }

    fn output(engine: &mut Engine, id: ConnId) -> String {
        let mut text = String::new();
        while let Some(batch) = engine.take_batch(id) {
            let bytes: Vec<u8> = batch.iter().flat_map(|piece| piece.bytes()).copied().collect();
            engine.on_sent(id, bytes.len(), Some(batch));
            text.push_str(&String::from_utf8_lossy(&bytes));
        }
        text
    }

    fn refusals(text: &str) -> usize {
        text.matches("NATS/1.0 503").count()
    }

    #[test]
    fn what_no_shard_can_place_is_refused_before_the_pong_and_the_rest_is_not() {
        let (mut engines, id) = two_shards();
        let ask = |subject| format!("PUB {subject} inbox 0\r\n\r\n");
        let asks = ask("a") + &ask("b") + &ask("b") + &ask("b") + &ask("a") + "PING\r\n";
        engines[0].on_bytes(id, asks.as_bytes());
        assert_eq!(output(&mut engines[0], id), "");
        exchange(&mut engines);
        let text = output(&mut engines[0], id);
        assert!(refusals(&text) == 2 && text.ends_with("\r\n\r\n\r\nPONG\r\n"), "{text}");
        assert_eq!(output(&mut engines[1], id).matches("MSG ").count(), 3);
        assert_eq!((engines[0].requests.open.len(), engines[0].requests.bytes), (0, 0));
    }

    #[test]
    fn a_requester_that_ends_hears_first_of_what_nobody_has_got() {
        let (mut engines, id) = two_shards();
        engines[0].on_bytes(id, &b"PUB b inbox 0\r\n\r\n".repeat(2));
        engines[0].on_ended(id, false);
        let closes = |engine: &mut Engine| {
            let closes = |action| matches!(action, Action::Close { .. });
            std::iter::from_fn(|| engine.next_action()).any(closes)
        };
        assert!(!closes(&mut engines[0]));
        exchange(&mut engines);
        assert_eq!(refusals(&output(&mut engines[0], id)), 1);
        assert!(closes(&mut engines[0]));
    }

    #[test]
    fn the_last_error_comes_behind_the_statuses_of_what_was_asked_before_it() {
        let (mut engines, id) = two_shards();
        let asks = b"PUB b inbox 0\r\n\r\n".repeat(2);
        engines[0].on_bytes(id, &[&asks[..], b"NONSENSE\r\n"].concat());
        let mut text = output(&mut engines[0], id);
        exchange(&mut engines);
        text += &output(&mut engines[0], id);
        assert_eq!(refusals(&text), 1);
        assert!(text.ends_with("\r\n\r\n\r\n-ERR 'Unknown Protocol Operation'\r\n"), "{text}");
    }

    #[test]
    fn a_server_that_ends_waits_for_no_report() {
        let (mut engines, id) = two_shards();
        engines[0].on_bytes(id, b"PUB a inbox 0\r\n\r\nPING\r\n");
        engines[0].shut_down();
        assert_eq!(output(&mut engines[0], id), "PONG\r\n");
        let closes = |action| matches!(action, Action::Close { abort: false, .. });
        assert!(std::iter::from_fn(|| engines[0].next_action()).any(closes));
    }

    #[test]
    fn who_makes_more_requests_than_are_reported_on_is_not_read_from_meanwhile() {
        let (mut engines, id) = two_shards();
        let asks = (b"PUB a inbox 0\r\n\r\n".repeat(50), b"PUB b inbox 0\r\n\r\n".repeat(50));
        let mut is_read = true;
        let mut rounds = 0;
        let mut follow = |engine: &mut Engine| {
            while let Some(action) = engine.next_action() {
                is_read = match action {
                    Action::Pause(_) => false,
                    Action::Resume(_) => true,
                    _ => is_read,
                };
            }
            is_read
        };
        while follow(&mut engines[0]) {
            engines[0].on_bytes(id, &asks.0);
            engines[0].on_bytes(id, &asks.1);
            engines[0].end_turn();
            // The lane has room at all times.
            while let Some(record) = engines[0].pop_record(ShardId(1)) {
                engines[1].on_record(ShardId(0), record);
            }
            rounds += 1;
            assert!(engines[0].requests.bytes < OPEN_BYTES_MAX + 100_000);
        }
        assert!(rounds > 100, "{rounds}");
        exchange(&mut engines);
        // Whoever does not take what it has caused is not read from, either.
        let mut told = output(&mut engines[0], id);
        exchange(&mut engines);
        told += &output(&mut engines[0], id);
        assert!(follow(&mut engines[0]));
        assert_eq!(refusals(&told), rounds * 50 - 1);
    }
}
