//! Consumers over a stream in a list.

mod acks;
mod api;
mod model;
mod pull;
mod push;
mod restart;
mod retention;

use std::collections::BTreeSet;

use bytes::Bytes;
use serde_json::{Value, json};

use super::*;
use crate::store::{NextMessage, StoredMessage};
use crate::stream::{ApiError, Purge, StreamConfig};
use crate::subject::matches;

const SECOND: u64 = 1_000_000_000;
const MILLISECOND: u64 = 1_000_000;

/// A message of the list.
#[derive(Debug, Clone)]
struct ListedMessage {
    subject: &'static str,
    headers: Vec<u8>,
    payload: Vec<u8>,
    time: u64,
}

/// A stream in a list; the sequence of the first message is 1.
#[derive(Debug, Clone, Default)]
struct MockStream {
    messages: Vec<Option<ListedMessage>>,
    /// Messages at the end that are not committed.
    staged: u64,
    /// Subjects that nobody listens to; with a queue group, `subject group`.
    deaf: BTreeSet<Vec<u8>>,
    is_cold: bool,
    searches: usize,
}

impl MockStream {
    fn at(&self, sequence: u64) -> Option<&ListedMessage> {
        let at = usize::try_from(sequence).ok()?.checked_sub(1)?;
        self.messages.get(at)?.as_ref()
    }

    fn all(&self) -> impl Iterator<Item = (u64, &ListedMessage)> {
        (1..)
            .zip(&self.messages)
            .filter_map(|(sequence, message)| Some((sequence, message.as_ref()?)))
    }
}

fn is_wanted(filters: &[&[u8]], message: &ListedMessage) -> bool {
    filters.is_empty() || filters.iter().any(|filter| matches(filter, message.subject.as_bytes()))
}

impl ConsumerSource for MockStream {
    fn bounds(&self) -> StreamBounds {
        let staged = self.messages.len() as u64;
        let last = staged - self.staged;
        StreamBounds { first: self.all().next().map_or(last + 1, |(first, _)| first), last, staged }
    }

    fn next(&mut self, filters: &[&[u8]], from: u64) -> NextMessage {
        self.searches += 1;
        let shown = from..=self.bounds().last;
        for (steps, (sequence, message)) in
            self.all().filter(|(sequence, _)| shown.contains(sequence)).enumerate()
        {
            if is_wanted(filters, message) {
                return NextMessage::Found(sequence);
            }
            if steps == 10 {
                return NextMessage::Later(sequence + 1);
            }
        }
        NextMessage::None
    }

    fn count(&mut self, filters: &[&[u8]], from: u64) -> u64 {
        let all = self.all().filter(|(sequence, _)| *sequence >= from);
        all.filter(|(_, message)| is_wanted(filters, message)).count() as u64
    }

    fn last_of_subjects(&mut self, filters: &[&[u8]]) -> Vec<u64> {
        let mut subjects = BTreeSet::new();
        let mut found: Vec<u64> = self
            .all()
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .filter(|(_, message)| is_wanted(filters, message) && subjects.insert(message.subject))
            .map(|(sequence, _)| sequence)
            .collect();
        found.reverse();
        found
    }

    fn at_time(&mut self, time: i64) -> u64 {
        let found = self.all().find(|(_, message)| message.time.cast_signed() >= time);
        found.map_or(self.messages.len() as u64 + 1, |(sequence, _)| sequence)
    }

    fn look(&mut self, sequence: u64) -> Look<'_> {
        let is_cold = self.is_cold;
        match self.at(sequence) {
            None => Look::None,
            Some(_) if is_cold => Look::Cold,
            Some(message) => Look::Now(StoredMessage {
                sequence,
                time: message.time,
                flags: 0,
                subject: message.subject.as_bytes(),
                headers: &message.headers,
                payload: &message.payload,
            }),
        }
    }

    fn subject(&mut self, sequence: u64) -> Option<&[u8]> {
        self.at(sequence).map(|message| message.subject.as_bytes())
    }

    fn has_interest(&self, subject: &[u8]) -> bool {
        !self.deaf.contains(subject)
    }

    fn is_bound(&self, subject: &[u8], queue: Option<&[u8]>) -> bool {
        let mut key = subject.to_vec();
        if let Some(queue) = queue {
            key.push(b' ');
            key.extend_from_slice(queue);
        }
        !self.deaf.contains(&key)
    }
}

/// A stream with its consumers, and the time.
struct Bench {
    stream: MockStream,
    config: StreamConfig,
    consumers: Consumers,
    now: Moment,
    outputs: Vec<ConsumerOutput>,
    records: Vec<Vec<u8>>,
}

fn about(config: &StreamConfig) -> StreamAbout {
    StreamAbout::of(config, 1 << 20)
}

impl Bench {
    fn new(config: &Value) -> Self {
        let mut config: StreamConfig = serde_json::from_value(config.clone()).unwrap();
        "S".clone_into(&mut config.name);
        config.num_replicas = 1;
        if config.subjects.is_empty() {
            config.subjects = vec!["s.>".to_owned()];
        }
        Self {
            stream: MockStream::default(),
            consumers: Consumers::new(about(&config), ConsumerRules::default(), 1),
            config,
            now: Moment { mono: 100 * SECOND, wall: 1_700_000_000 * SECOND },
            outputs: Vec::new(),
            records: Vec::new(),
        }
    }

    /// A stream `S` with these subjects' messages, whose payloads are their sequences.
    fn with(subjects: &[&'static str]) -> Self {
        let mut bench = Self::new(&json!({}));
        subjects.iter().for_each(|subject| bench.store(subject));
        bench
    }

    fn pass(&mut self, time: u64) {
        self.now.mono += time;
        self.now.wall += time;
    }

    fn store(&mut self, subject: &'static str) {
        let payload = (self.stream.messages.len() + 1).to_string().into_bytes();
        self.store_as(subject, &payload);
    }

    fn store_as(&mut self, subject: &'static str, payload: &[u8]) {
        let (time, payload) = (self.now.wall, payload.to_vec());
        let message = ListedMessage { subject, headers: Vec::new(), payload, time };
        self.stream.messages.push(Some(message));
        self.consumers.on_stored();
    }

    /// Removes messages, as limits or requests do.
    fn remove(&mut self, first: u64, last: u64) {
        for sequence in first..=last {
            let at = usize::try_from(sequence - 1).unwrap();
            self.stream.messages[at] = None;
        }
        self.consumers.on_removed(first..=last, self.now, &mut self.stream);
    }

    /// Purges messages that a filter matches, all if it is empty.
    fn purge(&mut self, filter: &str) {
        let last = self.stream.messages.len() as u64;
        for message in &mut self.stream.messages {
            let filters = [filter.as_bytes()];
            let filters = if filter.is_empty() { &[][..] } else { &filters[..] };
            message.take_if(|message| is_wanted(filters, message));
        }
        let purge = Purge { range: 1..=last, filter: filter.as_bytes().into() };
        on_purged(&mut self.consumers, &purge, self.now, &mut self.stream);
    }

    fn create(&mut self, name: &str, config: &Value) -> Result<Value, ApiError> {
        self.ask(name, &json!({"stream_name":"S","config":config}))
    }

    fn ask(&mut self, name: &str, request: &Value) -> Result<Value, ApiError> {
        let body = serde_json::to_vec(request).unwrap();
        let mut request = ConsumerRequest::parse(&body, true)?;
        request.check_subject("S", ConsumerForm::Named(name, None))?;
        let (consumers, stream) = (&mut self.consumers, &mut self.stream);
        let text = consumers.create(&request, &self.config, self.now, stream)?;
        Ok(serde_json::from_slice(&text).unwrap())
    }

    fn info(&mut self, name: &str) -> Value {
        let text = self.consumers.info(name, self.now, &mut self.stream).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    /// Asks for messages to an inbox.
    fn pull(&mut self, name: &str, inbox: &'static str, body: &str) {
        let reply = Bytes::from_static(inbox.as_bytes());
        let pull = PullMessage { reply, headers: b"", body: body.as_bytes() };
        assert!(self.consumers.on_pull(name, &pull, self.now, &mut self.stream));
    }

    /// Acknowledges a delivery.
    fn ack(&mut self, delivery: &Delivery, body: &str, reply: Option<&'static str>) {
        let mut subject = Vec::new();
        delivery.ack_subject("S", &mut subject);
        let about = AckSubject::parse(&subject).unwrap();
        let reply = reply.map(|reply| Bytes::from_static(reply.as_bytes()));
        let ack = AckMessage { about, reply, body: body.as_bytes() };
        assert!(self.consumers.on_ack(&ack, self.now, &mut self.stream));
    }

    /// Polls until there is nothing to do, keeps records and removes messages, and returns the
    /// other outputs.
    fn run(&mut self) -> Vec<ConsumerOutput> {
        while self.consumers.poll(self.now, &mut self.stream) {}
        while let Some(output) = self.consumers.next_output() {
            match output {
                ConsumerOutput::Keep(record) => self.records.push(record),
                ConsumerOutput::Removable(sequences) => {
                    assert!(sequences.is_sorted());
                    for sequence in &sequences {
                        let at = usize::try_from(*sequence - 1).unwrap();
                        self.stream.messages[at] = None;
                    }
                    self.outputs.push(ConsumerOutput::Removable(sequences));
                }
                output => self.outputs.push(output),
            }
        }
        std::mem::take(&mut self.outputs)
    }

    /// Runs, and returns what was delivered.
    fn deliveries(&mut self) -> Vec<Delivery> {
        let deliver = |output| match output {
            ConsumerOutput::Deliver(delivery) => Some(delivery),
            _ => None,
        };
        self.run().into_iter().filter_map(deliver).collect()
    }

    /// Runs, and returns deliveries and statuses in short: `inbox:sequence` and `inbox 100 Text`.
    fn seen(&mut self) -> Vec<String> {
        self.run().iter().filter_map(short).collect()
    }

    /// Runs, and returns the subjects of events.
    fn events(&mut self) -> Vec<String> {
        let event = |output| match output {
            ConsumerOutput::Advise(advisory) => Some(advisory.subject("S")),
            _ => None,
        };
        self.run().into_iter().filter_map(event).collect()
    }

    /// Lets time pass to the next deadline, and runs.
    fn wait(&mut self) -> Vec<String> {
        let deadline = self.consumers.next_deadline().unwrap();
        self.pass(deadline.saturating_sub(self.now.mono));
        self.seen()
    }

    /// Starts again from what was kept.
    fn restart(&mut self) {
        self.run();
        let rules = ConsumerRules::default();
        self.consumers = Consumers::new(about(&self.config), rules, 2);
        for record in &self.records {
            assert!(self.consumers.restore(record));
        }
        self.now.mono = SECOND;
        self.consumers.start(self.now, &mut self.stream);
    }
}

fn short(output: &ConsumerOutput) -> Option<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output {
        ConsumerOutput::Deliver(delivery) => {
            let again = if delivery.deliveries > 1 { "*" } else { "" };
            Some(format!("{}:{}{again}", text(&delivery.to), delivery.sequence))
        }
        ConsumerOutput::Status(status) => {
            let headers = text(&status.headers);
            let words = headers.strip_prefix("NATS/1.0 ").unwrap().trim_end();
            Some(format!("{} {}", text(&status.to), words.replace("\r\n", "|")))
        }
        _ => None,
    }
}
