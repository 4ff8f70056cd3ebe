//! Random histories of a consumer, compared with a naive model of it.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const ACK_WAIT: u64 = 10 * SECOND;

#[derive(Debug, Clone)]
enum Event {
    Store {
        is_wanted: bool,
    },
    Pull {
        batch: u64,
        no_wait: bool,
    },
    /// One of all deliveries so far is acknowledged, perhaps with a wish to be confirmed.
    Ack {
        which: usize,
        is_confirmed: bool,
    },
    Refuse {
        which: usize,
        delay: u64,
    },
    InProgress {
        which: usize,
    },
    Pass {
        time: u64,
    },
    Remove {
        which: usize,
    },
    /// All is kept first.
    Restart,
    /// A kill: everything that was not kept is lost.
    Crash,
}

fn event() -> impl Strategy<Value = Event> {
    let which = 0..1000_usize;
    prop_oneof![
        6 => any::<bool>().prop_map(|is_wanted| Event::Store { is_wanted }),
        5 => (1..5_u64, any::<bool>()).prop_map(|(batch, no_wait)| Event::Pull { batch, no_wait }),
        6 => (which.clone(), any::<bool>())
            .prop_map(|(which, is_confirmed)| Event::Ack { which, is_confirmed }),
        2 => (which.clone(), 0..3_u64)
            .prop_map(|(which, delay)| Event::Refuse { which, delay: delay * SECOND }),
        1 => which.clone().prop_map(|which| Event::InProgress { which }),
        3 => (1..6_000_u64).prop_map(|time| Event::Pass { time: time * MILLISECOND }),
        1 => which.prop_map(|which| Event::Remove { which }),
        1 => Just(Event::Restart),
        1 => Just(Event::Crash),
    ]
}

/// A message that was delivered and not acknowledged.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    /// Time before which the message may not come again.
    due: u64,
    deliveries: u64,
}

struct ConsumerModel {
    bench: Bench,
    wanted: BTreeSet<u64>,
    /// The last message that was delivered for the first time.
    position: u64,
    waiting: BTreeMap<u64, Waiting>,
    /// Messages whose acknowledgement was confirmed.
    confirmed: BTreeSet<u64>,
    /// Messages whose acknowledgement was sent.
    acknowledged: BTreeSet<u64>,
    deliveries: Vec<Delivery>,
    last_number: u64,
}

impl ConsumerModel {
    fn new(max_ack_pending: i64) -> Self {
        let mut bench = Bench::with(&[]);
        let config = json!({"durable_name":"C","ack_policy":"explicit","ack_wait":ACK_WAIT,
            "filter_subject":"s.a","max_ack_pending":max_ack_pending});
        bench.create("C", &config).unwrap();
        bench.run();
        Self {
            bench,
            wanted: BTreeSet::new(),
            position: 0,
            waiting: BTreeMap::new(),
            confirmed: BTreeSet::new(),
            acknowledged: BTreeSet::new(),
            deliveries: Vec::new(),
            last_number: 0,
        }
    }

    fn apply(&mut self, event: &Event) {
        match *event {
            Event::Store { is_wanted } => {
                self.bench.store(if is_wanted { "s.a" } else { "s.b" });
                if is_wanted {
                    self.wanted.insert(self.bench.stream.messages.len() as u64);
                }
            }
            Event::Pull { batch, no_wait } => {
                let body = json!({"batch":batch,"no_wait":no_wait,"expires":SECOND}).to_string();
                self.bench.pull("C", "in", &body);
            }
            Event::Ack { which, is_confirmed } => self.ack(which, is_confirmed),
            Event::Refuse { which, delay } => self.refuse(which, delay),
            Event::InProgress { which } => {
                let Some(delivery) = self.delivery(which) else { return };
                self.bench.ack(&delivery, "+WPI", None);
                let due = self.bench.now.mono + ACK_WAIT;
                if let Some(waiting) = self.waiting.get_mut(&delivery.sequence) {
                    waiting.due = due;
                }
            }
            Event::Pass { time } => self.bench.pass(time),
            Event::Remove { which } => self.remove(which),
            Event::Restart => {
                self.run();
                self.bench.pass(SECOND);
                self.run();
                self.bench.restart();
                self.resume();
            }
            Event::Crash => {
                self.bench.outputs.clear();
                let records = self.bench.records.clone();
                while let Some(output) = self.bench.consumers.next_output() {
                    drop(output);
                }
                self.bench.consumers =
                    Consumers::new(about(&self.bench.config), ConsumerRules::default(), 2);
                records.iter().for_each(|record| assert!(self.bench.consumers.restore(record)));
                let Bench { consumers, now, stream, .. } = &mut self.bench;
                consumers.start(*now, stream);
                self.resume();
            }
        }
        self.run();
        self.check();
    }

    fn delivery(&self, which: usize) -> Option<Delivery> {
        let count = self.deliveries.len();
        (count > 0).then(|| self.deliveries[which % count].clone())
    }

    fn ack(&mut self, which: usize, is_confirmed: bool) {
        let Some(delivery) = self.delivery(which) else { return };
        self.bench.ack(&delivery, "+ACK", is_confirmed.then_some("r"));
        let outputs = self.bench.run();
        let confirm = |output: &ConsumerOutput| matches!(output, ConsumerOutput::Confirm { .. });
        if outputs.iter().any(confirm) {
            self.confirmed.insert(delivery.sequence);
        }
        if delivery.sequence <= self.position {
            self.acknowledged.insert(delivery.sequence);
            self.waiting.remove(&delivery.sequence);
        }
        self.take(outputs);
    }

    fn refuse(&mut self, which: usize, delay: u64) {
        let Some(delivery) = self.delivery(which) else { return };
        let body = if delay == 0 { "-NAK".to_owned() } else { format!("-NAK {delay}ns") };
        self.bench.ack(&delivery, &body, None);
        // A number of a delivery that is not known any more is not heard.
        if let Some(waiting) = self.waiting.get_mut(&delivery.sequence) {
            waiting.due = waiting.due.min(self.bench.now.mono + delay);
        }
    }

    fn remove(&mut self, which: usize) {
        let all: Vec<u64> = self.bench.stream.all().map(|(sequence, _)| sequence).collect();
        let Some(sequence) = (!all.is_empty()).then(|| all[which % all.len()]) else { return };
        self.bench.remove(sequence, sequence);
        self.wanted.remove(&sequence);
        self.waiting.remove(&sequence);
    }

    /// Learns what the consumer has found again, which has to be between what was kept for sure and
    /// what was true.
    fn resume(&mut self) {
        let (_, consumer) = self.bench.consumers.slots.iter().next().unwrap();
        assert!(consumer.acks.delivered.stream <= self.position);
        self.position = consumer.acks.delivered.stream;
        self.last_number = consumer.acks.delivered.consumer;
        let found: BTreeSet<u64> =
            consumer.acks.all_pending().map(|(sequence, _)| sequence).collect();
        for sequence in &found {
            assert!(*sequence <= self.position && !self.confirmed.contains(sequence));
            assert!(self.wanted.contains(sequence));
        }
        for sequence in self.wanted.range(..=self.position) {
            let is_done = self.acknowledged.contains(sequence);
            assert!(is_done || found.contains(sequence), "{sequence} is lost");
        }
        let now = self.bench.now.mono;
        self.waiting = found
            .into_iter()
            .map(|sequence| {
                let deliveries = consumer.acks.redeliveries(sequence) + 1;
                (sequence, Waiting { due: now, deliveries })
            })
            .collect();
    }

    fn run(&mut self) {
        let outputs = self.bench.run();
        self.take(outputs);
    }

    fn take(&mut self, outputs: Vec<ConsumerOutput>) {
        for output in outputs {
            if let ConsumerOutput::Deliver(delivery) = output {
                self.take_delivery(delivery);
            }
        }
    }

    fn take_delivery(&mut self, delivery: Delivery) {
        let sequence = delivery.sequence;
        assert!(self.wanted.contains(&sequence), "{sequence} is not wanted");
        assert!(!self.confirmed.contains(&sequence), "{sequence} was acknowledged");
        assert!(delivery.consumer_sequence == self.last_number + 1);
        self.last_number = delivery.consumer_sequence;
        let now = self.bench.now.mono;
        let due = now + ACK_WAIT;
        match self.waiting.get_mut(&sequence) {
            Some(waiting) => {
                assert_eq!(delivery.deliveries, waiting.deliveries + 1);
                (waiting.due, waiting.deliveries) = (due, waiting.deliveries + 1);
            }
            None => {
                let next = self.wanted.range(self.position + 1..).next();
                assert_eq!((next, delivery.deliveries), (Some(&sequence), 1));
                self.position = sequence;
                self.acknowledged.remove(&sequence);
                self.waiting.insert(sequence, Waiting { due, deliveries: 1 });
            }
        }
        self.deliveries.push(delivery);
    }

    fn check(&mut self) {
        let info = self.bench.info("C");
        let outputs = self.bench.run();
        self.take(outputs);
        let following = self.wanted.range(self.position + 1..).count();
        assert_eq!(info["num_pending"], following);
        assert_eq!(info["num_ack_pending"], self.waiting.len());
        let again = self.waiting.values().filter(|waiting| waiting.deliveries > 1).count();
        assert_eq!(info["num_redelivered"], again);
        let floor = info["ack_floor"]["stream_seq"].as_u64().unwrap();
        let first = self.waiting.keys().next();
        assert!(first.is_none_or(|first| floor < *first), "{floor} {first:?}");
    }

    /// Acknowledges all that comes, until nothing does.
    fn drain(&mut self) {
        for _ in 0..200 {
            self.bench.pull("C", "in", r#"{"batch":100,"expires":1000000000}"#);
            let from = self.deliveries.len();
            self.run();
            for at in from..self.deliveries.len() {
                self.ack(at, true);
            }
            self.bench.pass(ACK_WAIT);
            self.run();
        }
        self.check();
        assert!(self.waiting.is_empty(), "{:?}", self.waiting);
        let left: Vec<_> =
            self.wanted.iter().filter(|it| !self.acknowledged.contains(it)).collect();
        assert!(left.is_empty(), "{left:?} were never acknowledged");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn each_message_comes_until_it_is_acknowledged_and_never_after_that_was_confirmed(
        limit in prop_oneof![Just(-1_i64), 1..6_i64],
        events in prop::collection::vec(event(), 1..80),
    ) {
        let mut model = ConsumerModel::new(limit);
        for event in &events {
            model.apply(event);
        }
        model.drain();
    }
}
