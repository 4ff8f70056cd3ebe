//! Acknowledgements, pulls and requests about consumers, with any subjects and bodies: whatever
//! comes, and wherever a crash cuts the records, a message whose acknowledgement was confirmed is
//! not delivered again.
//!
//! Each line is a step: a letter for its kind, a digit for a consumer or delivery, and its body.

#![no_main]

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use shardcast::consumer::{
    AckMessage, AckPolicy, AckSubject, ConsumerForm, ConsumerOutput, ConsumerRequest,
    ConsumerRules, ConsumerSource, Consumers, Delivery, Look, Moment, PullMessage, StreamAbout,
    StreamBounds, on_purged,
};
use shardcast::store::{NextMessage, StoredMessage};
use shardcast::stream::{Purge, Retention, StreamConfig};
use shardcast::subject::matches;

const SECOND: u64 = 1_000_000_000;
const LINES_MAX: usize = 100;
const MESSAGES_MAX: usize = 200;
const SUBJECTS: [&[u8]; 4] = [b"s", b"s.a", b"s.b", b"s.a.b"];
const NAMES: [&str; 3] = ["A", "B", "C"];

/// A stream in a list; the sequence of the first message is 1.
#[derive(Default)]
struct List {
    messages: Vec<Option<(&'static [u8], u64)>>,
    is_deaf: bool,
}

impl List {
    fn wanted<'a>(
        &'a self,
        filters: &'a [&[u8]],
        from: u64,
    ) -> impl Iterator<Item = (u64, &'static [u8])> {
        let all = (1..).zip(&self.messages).filter(move |(sequence, _)| *sequence >= from);
        let here = all.filter_map(|(sequence, message)| Some((sequence, message.as_ref()?.0)));
        here.filter(move |(_, subject)| {
            filters.is_empty() || filters.iter().any(|filter| matches(filter, subject))
        })
    }
}

impl ConsumerSource for List {
    fn bounds(&self) -> StreamBounds {
        let last = self.messages.len() as u64;
        StreamBounds {
            first: self.wanted(&[], 0).next().map_or(last + 1, |(first, _)| first),
            last,
            staged: last,
        }
    }

    fn next(&mut self, filters: &[&[u8]], from: u64) -> NextMessage {
        self.wanted(filters, from)
            .next()
            .map_or(NextMessage::None, |(at, _)| NextMessage::Found(at))
    }

    fn count(&mut self, filters: &[&[u8]], from: u64) -> u64 {
        self.wanted(filters, from).count() as u64
    }

    fn last_of_subjects(&mut self, filters: &[&[u8]]) -> Vec<u64> {
        let last: BTreeMap<_, _> =
            self.wanted(filters, 0).map(|(sequence, subject)| (subject, sequence)).collect();
        let all: BTreeSet<u64> = last.into_values().collect();
        all.into_iter().collect()
    }

    fn at_time(&mut self, time: i64) -> u64 {
        let is_late = |message: &Option<(_, u64)>| {
            message.is_some_and(|(_, stored): (&[u8], u64)| stored.cast_signed() >= time)
        };
        let found = self.messages.iter().position(is_late);
        found.unwrap_or(self.messages.len()) as u64 + 1
    }

    fn look(&mut self, sequence: u64) -> Look<'_> {
        let at = usize::try_from(sequence).ok().and_then(|at| at.checked_sub(1));
        match at.and_then(|at| *self.messages.get(at)?) {
            None => Look::None,
            Some((subject, time)) => {
                let (headers, payload) = (b"", b"body");
                Look::Now(StoredMessage { sequence, time, flags: 0, subject, headers, payload })
            }
        }
    }

    fn subject(&mut self, sequence: u64) -> Option<&[u8]> {
        let at = usize::try_from(sequence).ok()?.checked_sub(1)?;
        self.messages.get(at)?.map(|(subject, _)| subject)
    }

    fn has_interest(&self, _: &[u8]) -> bool {
        !self.is_deaf
    }

    fn is_bound(&self, _: &[u8], _: Option<&[u8]>) -> bool {
        !self.is_deaf
    }
}

struct Bench {
    list: List,
    config: StreamConfig,
    consumers: Consumers,
    now: Moment,
    /// Records, and how many of them no crash may take.
    records: Vec<Vec<u8>>,
    kept: usize,
    deliveries: Vec<Delivery>,
    /// Acknowledgements on their way: the reply, the consumer and the sequence.
    open: BTreeMap<Bytes, (&'static str, u64)>,
    confirmed: BTreeSet<(&'static str, u64)>,
    /// Consumers that a crash must leave.
    durable: BTreeSet<&'static str>,
    /// Consumers whose acknowledgements are of all messages before, too: one of an old delivery is
    /// confirmed and means nothing, as with nats-server.
    of_all: BTreeSet<&'static str>,
    replies: usize,
}

fn name(digit: u8) -> &'static str {
    NAMES[usize::from(digit.wrapping_sub(b'A')) % NAMES.len()]
}

impl Bench {
    fn new(retention: Retention) -> Self {
        let config = StreamConfig {
            name: "S".to_owned(),
            subjects: vec!["s".to_owned(), "s.>".to_owned()],
            num_replicas: 1,
            max_consumers: -1,
            max_msgs: -1,
            max_bytes: -1,
            max_msg_size: -1,
            retention,
            ..StreamConfig::default()
        };
        let rules = ConsumerRules { is_strict: false, ..ConsumerRules::default() };
        Self {
            list: List::default(),
            consumers: Consumers::new(StreamAbout::of(&config, 1 << 20), rules, 1),
            config,
            now: Moment { mono: 100 * SECOND, wall: 1_700_000_000 * SECOND },
            records: Vec::new(),
            kept: 0,
            deliveries: Vec::new(),
            open: BTreeMap::new(),
            confirmed: BTreeSet::new(),
            durable: BTreeSet::new(),
            of_all: BTreeSet::new(),
            replies: 0,
        }
    }

    fn store(&mut self, digit: u8) {
        if self.list.messages.len() < MESSAGES_MAX {
            let subject = SUBJECTS[usize::from(digit) % SUBJECTS.len()];
            self.list.messages.push(Some((subject, self.now.wall)));
            self.consumers.on_stored();
        }
    }

    fn remove(&mut self, first: u8, len: u8) {
        let last = (u64::from(first) + u64::from(len)).min(self.list.messages.len() as u64);
        let first = u64::from(first) + 1;
        if first <= last {
            (first..=last).for_each(|at| self.list.messages[at as usize - 1] = None);
            self.consumers.on_removed(first..=last, self.now, &mut self.list);
        }
    }

    /// Purges a subject, or all messages.
    fn purge(&mut self, digit: u8) {
        let filter = SUBJECTS.get(usize::from(digit % 8)).copied().unwrap_or_default();
        for message in &mut self.list.messages {
            message.take_if(|(subject, _)| filter.is_empty() || *subject == filter);
        }
        let range = 1..=self.list.messages.len() as u64;
        let purge = Purge { range, filter: filter.into() };
        on_purged(&mut self.consumers, &purge, self.now, &mut self.list);
    }

    fn create(&mut self, name: &'static str, body: &[u8]) {
        let Ok(mut request) = ConsumerRequest::parse(body, false) else { return };
        request.stream_name = "S".to_owned();
        let filter = Some(request.config.filter_subject.clone()).filter(|it| !it.is_empty());
        let form = ConsumerForm::Named(name, filter.as_deref());
        if request.check_subject("S", form).is_err() {
            return;
        }
        let was_there = self.consumers.has(name);
        let made = self.consumers.create(&request, &self.config, self.now, &mut self.list);
        if made.is_ok_and(|answer| is_json(&answer)) {
            if !was_there {
                self.forget(name);
            }
            // The answer waits until the record is on the disk.
            self.run();
            self.kept = self.records.len();
            let is_kept = request.config.is_durable() && !request.config.mem_storage;
            if request.config.ack_policy == AckPolicy::All {
                self.of_all.insert(name);
            }
            if is_kept && self.consumers.has(name) {
                self.durable.insert(name);
            }
        }
    }

    /// A new consumer of an old name knows nothing.
    fn forget(&mut self, name: &'static str) {
        self.confirmed.retain(|(other, _)| *other != name);
        self.open.retain(|_, (other, _)| *other != name);
        self.deliveries.retain(|delivery| &*delivery.consumer != name);
        self.durable.remove(name);
        self.of_all.remove(name);
        self.kept = self.records.len();
    }

    fn ask(&mut self, kind: u8, name: &'static str, body: &[u8]) {
        let (all, now, list) = (&mut self.consumers, self.now, &mut self.list);
        let answer = match kind {
            b'i' => all.info(name, now, list),
            b'I' => all.list(body, now, list),
            b'N' => all.list_names(body),
            b'P' => all.pause(name, body, now, list),
            b'U' => all.unpin(name, body, now),
            b'R' => all.reset(name, body, now, list),
            _ => all.delete(name, now),
        };
        if answer.is_ok_and(|answer| is_json(&answer)) && matches!(kind, b'R' | b'X') {
            let (durable, of_all) = (self.durable.clone(), self.of_all.clone());
            self.forget(name);
            self.run();
            self.kept = self.records.len();
            if kind == b'R' {
                (self.durable, self.of_all) = (durable, of_all);
            }
        }
    }

    fn pull(&mut self, name: &str, body: &[u8]) {
        let pull = PullMessage { reply: Bytes::from_static(b"in"), headers: b"", body };
        self.consumers.on_pull(name, &pull, self.now, &mut self.list);
    }

    /// Acknowledges a delivery, and asks that it be confirmed.
    fn ack(&mut self, at: u8, body: &[u8]) {
        let Some(delivery) = self.deliveries.get(usize::from(at)) else { return };
        let mut subject = Vec::new();
        delivery.ack_subject("S", &mut subject);
        let is_final = matches!(body, b"" | b"+ACK" | b"+OK") || body.starts_with(b"+TERM");
        let name = NAMES.into_iter().find(|name| **name == *delivery.consumer);
        let sequence = delivery.sequence;
        self.replies += 1;
        let reply = Bytes::from(format!("r{}", self.replies));
        let counts = |name: &&str| is_final && !self.of_all.contains(name);
        if let Some(name) = name.filter(counts) {
            self.open.insert(reply.clone(), (name, sequence));
        }
        self.ack_by(&subject, Some(reply), body);
    }

    fn ack_by(&mut self, subject: &[u8], reply: Option<Bytes>, body: &[u8]) {
        let Some(about) = AckSubject::parse(subject) else { return };
        let ack = AckMessage { about, reply, body };
        self.consumers.on_ack(&ack, self.now, &mut self.list);
    }

    fn run(&mut self) {
        for _ in 0..100 {
            let goes_on = self.consumers.poll(self.now, &mut self.list);
            while let Some(output) = self.consumers.next_output() {
                self.take(output);
            }
            if !goes_on {
                break;
            }
        }
    }

    fn take(&mut self, output: ConsumerOutput) {
        match output {
            ConsumerOutput::Keep(record) => self.records.push(record),
            ConsumerOutput::Confirm { reply, waits } => {
                if waits {
                    self.kept = self.records.len();
                }
                self.confirmed.extend(self.open.remove(&reply));
            }
            ConsumerOutput::Removable(sequences) => {
                assert!(sequences.is_sorted());
                self.kept = self.records.len();
                for sequence in sequences {
                    self.list.messages[sequence as usize - 1] = None;
                }
            }
            ConsumerOutput::Deliver(delivery) => {
                let name = NAMES.into_iter().find(|name| **name == *delivery.consumer);
                if let Some(name) = name {
                    let was_confirmed = self.confirmed.contains(&(name, delivery.sequence));
                    assert!(!was_confirmed, "{delivery:?} was confirmed");
                }
                if self.deliveries.len() < 256 {
                    self.deliveries.push(delivery);
                }
            }
            ConsumerOutput::Ended(name) => {
                if let Some(name) = NAMES.into_iter().find(|other| **other == *name) {
                    self.forget(name);
                }
            }
            _ => {}
        }
    }

    /// Ends without warning, and begins again with what must be there and some of the rest.
    fn crash(&mut self, more: u8) {
        self.run();
        let len = self.records.len().min(self.kept + usize::from(more));
        self.records.truncate(len);
        let rules = ConsumerRules { is_strict: false, ..ConsumerRules::default() };
        self.consumers = Consumers::new(StreamAbout::of(&self.config, 1 << 20), rules, 2);
        for record in &self.records {
            assert!(self.consumers.restore(record));
        }
        self.open.clear();
        self.deliveries.clear();
        self.now.mono = SECOND;
        self.consumers.start(self.now, &mut self.list);
        let mut gone: Vec<_> = NAMES.into_iter().collect();
        gone.retain(|name| !self.consumers.has(name));
        assert!(!gone.iter().any(|name| self.durable.contains(name)), "{gone:?} were answered");
        gone.into_iter().for_each(|name| self.forget(name));
    }

    fn step(&mut self, kind: u8, digit: u8, body: &[u8]) {
        let more = body.first().copied().unwrap_or(0);
        match kind {
            b's' => self.store(digit),
            b'c' => self.create(name(digit), body),
            b'm' => self.pull(name(digit), body),
            b'a' => self.ack(digit.wrapping_sub(b'0'), body),
            b'A' => {
                let mut parts = body.splitn(2, |byte| *byte == b' ');
                let subject = parts.next().unwrap_or_default();
                self.ack_by(subject, None, parts.next().unwrap_or_default());
            }
            b'f' => self.consumers.on_flow_reply(body, b"", self.now, &mut self.list),
            b'x' => self.remove(digit, more % 20),
            b'p' => self.purge(digit),
            b'h' => {
                self.list.is_deaf = digit % 2 == 0;
                self.consumers.on_interest_changed(body, self.now, &mut self.list);
            }
            b't' => {
                let time = u64::from(digit) * SECOND / 8;
                self.now.mono += time;
                self.now.wall += time;
            }
            b'k' => self.crash(digit % 4),
            b'i' | b'I' | b'N' | b'P' | b'U' | b'R' | b'X' => self.ask(kind, name(digit), body),
            _ => {}
        }
        self.run();
    }
}

fn is_json(text: &[u8]) -> bool {
    assert!(serde_json::from_slice::<serde_json::Value>(text).is_ok(), "{text:?}");
    true
}

fuzz_target!(|bytes: &[u8]| {
    let [first, rest @ ..] = bytes else { return };
    let retention = match first % 3 {
        0 => Retention::Limits,
        1 => Retention::Interest,
        _ => Retention::WorkQueue,
    };
    let mut bench = Bench::new(retention);
    for line in rest.split(|byte| *byte == b'\n').take(LINES_MAX) {
        let [kind, digit, body @ ..] = line else { continue };
        bench.step(*kind, *digit, body);
    }
});
