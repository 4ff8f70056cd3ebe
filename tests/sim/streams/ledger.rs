//! What clients know of streams: what they were told is stored, removed or acknowledged, and what
//! therefore must be there, may be there, or must not.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Whether a stream or consumer is there, as far as anybody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    /// Its creation was asked for, or its end.
    Maybe,
    Yes,
    No,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nobody has said anything about it.
    Unknown,
    /// It was stored with this sequence.
    Stored(u64),
    /// It was refused, or has not outlived the server.
    Lost,
}

/// A message that was published, perhaps several times.
#[derive(Debug)]
pub(super) struct Publication {
    pub(super) stream: usize,
    pub(super) subject: String,
    pub(super) body: Vec<u8>,
    /// It names itself, so that it is stored but once.
    pub(super) is_named: bool,
    pub(super) attempts: u32,
    pub(super) fate: Fate,
}

#[derive(Debug)]
pub(super) struct Consumer {
    pub(super) name: String,
    pub(super) presence: Presence,
    /// Messages that somebody has got.
    pub(super) heard: BTreeSet<u64>,
    /// Acknowledgements that were confirmed, with the link and the number of rests then.
    confirmed: BTreeMap<u64, (usize, usize)>,
    /// The last delivery on a link, and the last message that came for the first time.
    last: HashMap<usize, (u64, u64)>,
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) presence: Presence,
    pub(super) is_work: bool,
    pub(super) messages_max: Option<u64>,
    pub(super) is_direct: bool,
    /// Messages by sequence.
    pub(super) known: BTreeMap<u64, usize>,
    /// The highest sequence that anybody has seen.
    pub(super) last: u64,
    /// Messages whose removal was asked for; those with `true` are gone.
    removed: BTreeMap<u64, bool>,
    /// All messages before the first may be gone, those before the second are.
    purged: (u64, u64),
    pub(super) consumers: Vec<Consumer>,
}

/// All that is known.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) messages: Vec<Publication>,
    pub(super) streams: Vec<Stream>,
    /// First attempts of a life by link and stream, in order.
    sent: BTreeMap<(usize, usize), Vec<usize>>,
    /// The last sequence that was acknowledged on a link, by link and stream.
    acked: HashMap<(usize, usize), u64>,
    /// How often all was at rest.
    pub(super) rests: usize,
}

impl Stream {
    fn new(is_work: bool, messages_max: Option<u64>, is_direct: bool) -> Self {
        Self {
            presence: Presence::Maybe,
            is_work,
            messages_max,
            is_direct,
            known: BTreeMap::new(),
            last: 0,
            removed: BTreeMap::new(),
            purged: (0, 0),
            consumers: Vec::new(),
        }
    }

    /// Whether a message that was stored may not be there.
    pub(super) fn may_lack(&self, sequence: u64) -> bool {
        let is_evicted = self.messages_max.is_some_and(|max| sequence + max <= self.last);
        let is_done = || self.is_work && self.consumers.iter().any(|c| c.heard.contains(&sequence));
        self.removed.contains_key(&sequence) || sequence < self.purged.0 || is_evicted || is_done()
    }

    /// Whether it is certain that a message is not there.
    fn must_lack(&self, sequence: u64) -> bool {
        self.removed.get(&sequence) == Some(&true) || sequence < self.purged.1
    }

    /// Whether messages may be gone of which nobody knows that they were there.
    fn forgets(&self) -> bool {
        self.is_work || self.messages_max.is_some() || self.purged.0 > 0
    }
}

impl Consumer {
    pub(super) fn new(name: String) -> Self {
        let (heard, confirmed) = (BTreeSet::new(), BTreeMap::new());
        Self { name, presence: Presence::Maybe, heard, confirmed, last: HashMap::new() }
    }
}

impl Ledger {
    pub(super) fn add_stream(&mut self, work: bool, max: Option<u64>, direct: bool) -> usize {
        self.streams.push(Stream::new(work, max, direct));
        self.streams.len() - 1
    }

    /// A message is published, the first time or once more. Returns what was the last sequence
    /// that anybody had seen.
    pub(super) fn publish(&mut self, id: usize, link: usize) -> u64 {
        let message = &mut self.messages[id];
        message.attempts += 1;
        if message.attempts == 1 {
            self.sent.entry((link, message.stream)).or_default().push(id);
        } else {
            message.fate = Fate::Unknown;
        }
        self.streams[message.stream].last
    }

    /// A publisher is told that its message is stored.
    pub(super) fn acked(&mut self, id: usize, link: usize, floor: u64, (seq, again): (u64, bool)) {
        let message = &self.messages[id];
        let (stream, is_named) = (message.stream, message.is_named);
        self.learn(stream, seq, id);
        if again {
            assert!(is_named, "message {id} is called a duplicate, but has no name");
            return;
        }
        assert!(seq > floor, "message {id} is number {seq}, but {floor} was seen before");
        let last = self.acked.entry((link, stream)).or_default();
        assert!(seq > *last, "message {id} is number {seq}, behind {last} of the same publisher");
        *last = seq;
    }

    /// A publisher is told that its message is not stored.
    pub(super) fn refused(&mut self, id: usize) {
        let message = &mut self.messages[id];
        if message.fate == Fate::Unknown && message.attempts == 1 {
            message.fate = Fate::Lost;
        }
    }

    /// Somebody has seen a message with this sequence.
    pub(super) fn learn(&mut self, stream: usize, sequence: u64, id: usize) {
        let here = &mut self.streams[stream];
        let known = *here.known.entry(sequence).or_insert(id);
        assert_eq!(known, id, "number {sequence} of stream {stream} was another message");
        here.last = here.last.max(sequence);
        let message = &mut self.messages[id];
        assert_eq!(message.stream, stream, "message {id} is in another stream");
        match message.fate {
            Fate::Stored(before) if before != sequence => {
                let is_gone = here.may_lack(before);
                assert!(is_gone, "message {id} of stream {stream}: {before} and {sequence}");
            }
            Fate::Lost => panic!("message {id} of stream {stream} was not stored, but is there"),
            _ => {}
        }
        message.fate = Fate::Stored(sequence);
    }

    pub(super) fn remove(&mut self, stream: usize, sequence: u64, is_done: bool) {
        *self.streams[stream].removed.entry(sequence).or_default() |= is_done;
    }

    pub(super) fn purge(&mut self, stream: usize, before: u64, is_done: bool) {
        let purged = &mut self.streams[stream].purged;
        purged.0 = purged.0.max(before);
        if is_done {
            purged.1 = purged.1.max(before);
        }
    }

    /// A client has got a message of a consumer, for the so-manieth time, as its so-manieth
    /// delivery.
    pub(super) fn delivered(
        &mut self,
        (stream, consumer): (usize, usize),
        link: usize,
        (sequence, count, delivery): (u64, u64, u64),
    ) {
        let rests = self.rests;
        let consumer = &mut self.streams[stream].consumers[consumer];
        let about = format!("number {sequence} of {}", consumer.name);
        let is_new = |(of, at): &(usize, usize)| *of != link && *at == rests;
        let confirmed = consumer.confirmed.get(&sequence);
        assert!(confirmed.is_none_or(is_new), "{about} comes again, but is acknowledged");
        consumer.heard.insert(sequence);
        let (last_delivery, last_first) = consumer.last.entry(link).or_default();
        assert!(delivery > *last_delivery, "{about}: delivery {delivery} after {last_delivery}");
        *last_delivery = delivery;
        if count == 1 {
            assert!(sequence > *last_first, "{about} comes first after {last_first}");
            *last_first = sequence;
        }
    }

    /// A client is told that its acknowledgement is kept.
    pub(super) fn confirmed(&mut self, stream: usize, consumer: usize, link: usize, sequence: u64) {
        let now = (link, self.rests);
        let consumer = &mut self.streams[stream].consumers[consumer];
        consumer.confirmed.entry(sequence).or_insert(now);
    }

    /// Whether an acknowledgement was confirmed.
    pub(super) fn is_confirmed(&self, stream: usize, consumer: usize, sequence: u64) -> bool {
        self.streams[stream].consumers[consumer].confirmed.contains_key(&sequence)
    }

    /// Everything is at rest, and this is what the stream has. With `is_new` the server has
    /// just begun: what is not there now was never stored. With `is_rough` the disk has failed
    /// before.
    pub(super) fn audit(&mut self, stream: usize, found: &BTreeMap<u64, usize>, is_rough: bool) {
        for (sequence, id) in found {
            self.learn(stream, *sequence, *id);
        }
        let here = &self.streams[stream];
        for (sequence, id) in &here.known {
            let is_there = found.contains_key(sequence);
            let about = || format!("message {id}, number {sequence} of stream {stream}");
            assert!(is_there || here.may_lack(*sequence), "{} is lost", about());
            assert!(!is_there || !here.must_lack(*sequence), "{} was removed", about());
        }
        let count = found.len() as u64;
        let is_too_long = here.messages_max.is_some_and(|max| count > max);
        assert!(!is_too_long, "stream {stream} has {count} messages");
        self.judge_order(stream, is_rough);
        for message in self.messages.iter_mut().filter(|message| message.stream == stream) {
            if message.fate == Fate::Unknown {
                message.fate = Fate::Lost;
            }
        }
    }

    /// Of what a link has published to a stream the first is stored, and the rest is not.
    fn judge_order(&mut self, stream: usize, is_rough: bool) {
        let is_it = |at: &(usize, usize)| at.1 == stream;
        let links: Vec<_> = self.sent.keys().copied().filter(is_it).collect();
        let is_unsure = is_rough || self.streams[stream].forgets();
        for link in links {
            let Some(sent) = self.sent.remove(&link).filter(|_| !is_unsure) else { continue };
            let mut missing = None;
            for id in sent.into_iter().filter(|id| self.messages[*id].attempts == 1) {
                match self.messages[id].fate {
                    Fate::Unknown => missing = missing.or(Some(id)),
                    Fate::Stored(_) => assert!(
                        missing.is_none(),
                        "message {id} of stream {stream} is stored, but {missing:?} is not"
                    ),
                    Fate::Lost => {}
                }
            }
        }
    }
}
