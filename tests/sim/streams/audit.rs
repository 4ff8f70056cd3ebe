//! All that is there, compared with what must be, while everything is at rest.

use super::clients::Ask;
use super::ledger::{Fate, Presence};
use super::{NS_PER_MS, World, tell};

/// Rounds in which consumers are to be read to their end.
const ROUNDS_MAX: usize = 2_000;
/// The longest time for which a consumer waits for an acknowledgement, and a little more.
const ACK_WAIT_MS: u64 = 31_000;

impl World {
    /// Asks for everything and judges it.
    pub(super) fn audit(&mut self) {
        tell!(self, "audit");
        let link = self.rng.usize(self.first_link..self.links.len());
        self.infos.clear();
        self.found.clear();
        let messages = self.ledger.messages.iter().enumerate();
        let open = messages.filter(|(_, message)| message.fate == Fate::Unknown);
        let open: Vec<usize> = open.map(|(id, _)| id).collect();
        for stream in 0..self.ledger.streams.len() {
            let subject = format!("$JS.API.STREAM.INFO.S{stream}");
            self.ask(link, Ask::Info(stream), &subject, "", b"");
        }
        self.settle();
        for stream in 0..self.ledger.streams.len() {
            if self.ledger.streams[stream].presence != Presence::Yes {
                continue;
            }
            let [first, last, _] = self.infos[&stream];
            let known = self.ledger.streams[stream].last;
            assert!(last >= known, "stream {stream} ends with {last}, but had {known}");
            for sequence in first.max(1)..=last {
                self.get(link, stream, sequence);
            }
            self.ask_consumers(link, stream);
        }
        self.settle();
        for stream in 0..self.ledger.streams.len() {
            if self.ledger.streams[stream].presence == Presence::Yes {
                self.judge(stream);
            }
        }
        for id in open {
            match self.ledger.messages[id].fate {
                Fate::Stored(_) => self.outcome.found += 1,
                _ => self.outcome.lost += 1,
            }
        }
        self.ledger.rests += 1;
    }

    fn ask_consumers(&mut self, link: usize, stream: usize) {
        for consumer in 0..self.ledger.streams[stream].consumers.len() {
            let name = &self.ledger.streams[stream].consumers[consumer].name;
            let subject = format!("$JS.API.CONSUMER.INFO.S{stream}.{name}");
            self.ask(link, Ask::ConsumerInfo(stream, consumer), &subject, "", b"");
        }
    }

    fn judge(&mut self, stream: usize) {
        let found = self.found.remove(&stream).unwrap_or_default();
        let [_, _, count] = self.infos[&stream];
        assert_eq!(found.len() as u64, count, "stream {stream} does not know what it has");
        self.ledger.audit(stream, &found, self.was_rough);
        self.found.insert(stream, found);
    }

    /// Consumers are read to their end: everybody gets everything.
    pub(super) fn drain(&mut self) {
        let link = self.rng.usize(self.first_link..self.links.len());
        for round in 0.. {
            assert!(round < ROUNDS_MAX, "consumers never come to their end: {:?}", self.waiting);
            let mut all = Vec::new();
            for (stream, here) in self.ledger.streams.iter().enumerate() {
                let is_there = here.presence == Presence::Yes;
                let consumers = here.consumers.iter().enumerate().filter(|_| is_there);
                let consumers = consumers.filter(|(_, of)| of.presence == Presence::Yes);
                all.extend(consumers.map(|(consumer, _)| (stream, consumer)));
            }
            for place in &all {
                self.pull(link, *place, 50);
            }
            self.settle();
            let any = !self.held.is_empty();
            self.acknowledge(link, true);
            self.settle();
            all.iter().for_each(|(stream, _)| self.ask_consumers(link, *stream));
            self.settle();
            if all.iter().all(|place| self.waiting[place] == [0, 0]) {
                break;
            }
            if !any {
                self.now += ACK_WAIT_MS * NS_PER_MS;
                self.settle();
            }
        }
        self.audit();
        self.all_is_delivered();
    }

    fn all_is_delivered(&self) {
        for (stream, found) in &self.found {
            let here = &self.ledger.streams[*stream];
            let consumers = || here.consumers.iter().filter(|of| of.presence == Presence::Yes);
            for consumer in consumers() {
                for sequence in found.keys() {
                    let is_heard = consumer.heard.contains(sequence);
                    assert!(is_heard, "{} never got number {sequence}", consumer.name);
                }
            }
            let is_empty = !here.is_work || consumers().next().is_none() || found.is_empty();
            assert!(is_empty, "of stream {stream} {found:?} is done, but still there");
        }
    }
}
