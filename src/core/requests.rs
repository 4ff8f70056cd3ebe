//! No responders: the 503 status for requests that have no receiver on any shard.
//!
//! A client with `no_responders` gets the status 503 when its request has no receiver. If a local
//! receiver is certain, there is nothing to do. Otherwise, while the run is delivered,
//! [`Requests::asked`] notes which of its messages have a receiver; any other run pays a look at an
//! empty field. Records to other shards carry an [`Ask`]. Each shard reports which messages it has
//! placed (`Record::Placed`), with its credit, as in message traces: when all credit is back, the
//! messages that are left get their 503. A run is asked about and reported on as a whole, so
//! requests cost one record back per run.
//!
//! Epochs with undecided requests are not settled. So a PONG waits for them as for a barrier, and
//! the status is put in front of it (`Outbox::push_status`). Above 4 MiB undecided
//! (`OPEN_BYTES_MAX`) requesters are paused. A request that goes over a route counts as placed, as
//! in nats-server.
//!
//! Requests that the server itself answers are answered on the shard where they were asked:
//! another shard may not know the requester's interest yet.

use std::collections::BTreeMap;

use ahash::RandomState;
use smallvec::{SmallVec, smallvec};

use crate::core::answers::Answers;
use crate::core::{Core, events};
use crate::interest::halves::WaitingReports;
use crate::interest::ids::ConnId;
use crate::interest::latency::MeasuredRequests;
use crate::run::ticket::Ask;

/// Bytes that a shard keeps of requests that other shards have not reported on; beyond, connections
/// that make more are not read from until half of them has gone.
pub(crate) const OPEN_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes that one open request takes besides its texts.
const OPEN_BYTES: usize = 96;

/// The question about the requests that are being delivered, and the receivers found so far.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) ask: Ask,
    /// Whether each message of the run has a receiver.
    pub(crate) placed: SmallVec<[bool; 16]>,
    /// Messages without a receiver so far.
    pub(crate) left: usize,
}

impl Asked {
    pub(crate) fn new(ask: Ask) -> Self {
        let left = ask.numbers.len();
        Self { placed: smallvec![false; left], left, ask }
    }

    pub(crate) fn place(&mut self, at: usize) {
        if let Some(placed) = self.placed.get_mut(at) {
            self.left -= usize::from(!std::mem::replace(placed, true));
        }
    }

    /// Returns a share of the question for another shard, which gets the messages `at` these
    /// places, or all.
    fn share(&mut self, at: Option<&[u32]>) -> Option<Box<Ask>> {
        if self.left == 0 {
            return None;
        }
        let credit = self.ask.credit / 2;
        if credit == 0 {
            // The report could not be complete any more: better no status than a false one.
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
#[derive(Debug)]
pub(crate) struct Requests {
    /// Open runs of requests by number, so that the first is the oldest.
    pub(crate) open: BTreeMap<u64, Open>,
    pub(crate) bytes: usize,
    pub(crate) next_id: u64,
    /// Connections that are not read from because too many requests are open.
    pub(crate) feeders: Vec<ConnId>,
    /// The question, while requests are being delivered.
    pub(crate) asked: Option<Box<Asked>>,
    /// Requests to services of other accounts.
    pub(crate) answers: Answers,
    /// Requests to services that are measured.
    pub(crate) measured: MeasuredRequests,
    /// Reports that wait for what the responder's server has measured.
    pub(crate) reports: WaitingReports<Box<events::LatencyReport>>,
}

/// A run of requests, some of which have no receiver on this shard.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) conn: ConnId,
    /// Number of the run among the connection's requests, as its outbox counts them.
    pub(crate) request: u64,
    pub(crate) epoch: u64,
    pub(crate) subject: Box<[u8]>,
    /// Credit that is still to come back.
    pub(crate) missing: u128,
    pub(crate) unplaced: Vec<Unplaced>,
}

#[derive(Debug)]
pub(crate) struct Unplaced {
    pub(crate) number: u32,
    pub(crate) reply: Box<[u8]>,
    /// Sid of the subscription that gets the status.
    pub(crate) sid: Box<[u8]>,
}

impl Open {
    pub(crate) fn cost_bytes(&self) -> usize {
        let texts = self.unplaced.iter().map(|one| OPEN_BYTES + one.reply.len() + one.sid.len());
        self.subject.len() + texts.sum::<usize>()
    }
}

impl Requests {
    pub(crate) fn new(hasher: &RandomState) -> Self {
        Self {
            open: BTreeMap::new(),
            bytes: 0,
            next_id: 0,
            feeders: Vec::new(),
            asked: None,
            answers: Answers::new(hasher),
            measured: MeasuredRequests::default(),
            reports: WaitingReports::default(),
        }
    }

    /// Notes a receiver for the first `count` messages of the run that is being delivered.
    pub(crate) fn place_first(&mut self, count: usize) {
        if let Some(asked) = &mut self.asked {
            (0..count).for_each(|at| asked.place(at));
        }
    }

    /// Notes a receiver for the message at place `at` of the run that is being delivered.
    pub(crate) fn place_at(&mut self, at: usize) {
        if let Some(asked) = &mut self.asked {
            asked.place(at);
        }
    }

    /// Returns the question for another shard about the messages `at` these places, or about all.
    pub(crate) fn ask(&mut self, at: Option<&[u32]>) -> Option<Box<Ask>> {
        self.asked.as_mut()?.share(at)
    }

    /// Returns the last epoch of which all requests have been reported on.
    pub(crate) fn decided_epoch(&self) -> u64 {
        self.open.first_key_value().map_or(u64::MAX, |(_, oldest)| oldest.epoch - 1)
    }
}

impl Core {
    /// Gives up all open requests: their reports are not waited for.
    pub(crate) fn forget_requests(&mut self) {
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
    use crate::config::Options;
    use crate::engine::{Engine, Output, Peer, Settings};
    use crate::interest::ids::ShardId;

    /// Two shards: a requester on the first, and on the second a subscriber to `a` and to `b` that
    /// takes one message of `b`.
    fn two_shards() -> ([Engine; 2], ConnId) {
        two_shards_with(&Options::default())
    }

    fn two_shards_with(options: &Options) -> ([Engine; 2], ConnId) {
        let settings = Rc::new(Settings::new(options, &Default::default(), usize::MAX));
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

    /// Takes turns until neither shard has records for the other.
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
                is_over &= !engines[from.index()].view().has_more();
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
        assert_eq!((engines[0].core.requests.open.len(), engines[0].core.requests.bytes), (0, 0));
    }

    #[test]
    fn a_requester_that_ends_hears_first_of_what_nobody_has_got() {
        let (mut engines, id) = two_shards();
        engines[0].on_bytes(id, &b"PUB b inbox 0\r\n\r\n".repeat(2));
        engines[0].on_ended(id, false);
        let closes = |engine: &mut Engine| {
            let closes = |action| matches!(action, Output::Close { .. });
            std::iter::from_fn(|| engine.next_output()).any(closes)
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
    fn who_is_owed_too_much_by_statuses_alone_is_cut_before_any_of_it_leaves() {
        let mut options = Options::default();
        options.limits.pending_bytes_max = 1000;
        let (mut engines, id) = two_shards_with(&options);
        engines[0]
            .on_bytes(id, &[b"PUB b inbox 0\r\n\r\n".repeat(50), b"PING\r\n".into()].concat());
        exchange(&mut engines);
        assert_eq!(output(&mut engines[0], id), "");
        let is_cut = |action| matches!(action, Output::Close { abort: true, .. });
        assert!(std::iter::from_fn(|| engines[0].next_output()).any(is_cut));
        assert_eq!(engines[0].view().stats().slow_consumers.total(), 1);
    }

    #[test]
    fn a_server_that_ends_waits_for_no_report() {
        let (mut engines, id) = two_shards();
        engines[0].on_bytes(id, b"PUB a inbox 0\r\n\r\nPING\r\n");
        engines[0].shut_down();
        assert_eq!(output(&mut engines[0], id), "PONG\r\n");
        let closes = |action| matches!(action, Output::Close { abort: false, .. });
        assert!(std::iter::from_fn(|| engines[0].next_output()).any(closes));
    }

    #[test]
    fn who_makes_more_requests_than_are_reported_on_is_not_read_from_meanwhile() {
        let (mut engines, id) = two_shards();
        let asks = (b"PUB a inbox 0\r\n\r\n".repeat(50), b"PUB b inbox 0\r\n\r\n".repeat(50));
        let mut is_read = true;
        let mut rounds = 0;
        let mut follow = |engine: &mut Engine| {
            while let Some(action) = engine.next_output() {
                is_read = match action {
                    Output::Pause(_) => false,
                    Output::Resume(_) => true,
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
            assert!(engines[0].core.requests.bytes < OPEN_BYTES_MAX + 100_000);
        }
        assert!(rounds > 100, "{rounds}");
        exchange(&mut engines);
        // A requester that does not take its statuses is not read from, either.
        let mut told = output(&mut engines[0], id);
        exchange(&mut engines);
        told += &output(&mut engines[0], id);
        assert!(follow(&mut engines[0]));
        assert_eq!(refusals(&told), rounds * 50 - 1);
    }
}
