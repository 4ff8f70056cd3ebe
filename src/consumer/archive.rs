//! Consumers as archives of streams have them.

use serde::{Deserialize, Serialize};

use std::collections::BTreeMap;

use super::config::{ConfigCheck, ConsumerConfig};
use super::consumers::Consumers;
use super::journal::{KeptEntry, KeptMessage, KeptState};
use super::pending::SequencePair;
use super::source::Moment;
use crate::store::SEQUENCE_MAX;
use crate::stream::StreamConfig;
use crate::stream::time::Timestamp;

/// A consumer that goes into an archive, or comes out of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ArchivedConsumer {
    /// Name of the consumer.
    pub(crate) name: String,
    /// The configuration as JSON; it may have the time of the consumer, as `Created`.
    pub(crate) config: Vec<u8>,
    /// The position of the consumer.
    pub(crate) position: ConsumerPosition,
}

/// The position of a consumer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ConsumerPosition {
    /// Sequences of consumer and stream up to which all is acknowledged.
    pub(crate) floor: (u64, u64),
    /// The last sequences of consumer and stream that were delivered.
    pub(crate) delivered: (u64, u64),
    /// Messages that wait for their acknowledgements: the sequences of stream and consumer, and the
    /// time of delivery in nanoseconds since 1970, to a second.
    pub(crate) pending: Vec<(u64, u64, i64)>,
    /// Messages that were delivered again, with how often.
    pub(crate) redelivered: Vec<(u64, u64)>,
}

/// A consumer's configuration in an archive.
#[derive(Serialize, Deserialize)]
struct ConsumerFile {
    #[serde(rename = "Created", default, skip_serializing_if = "Option::is_none")]
    created: Option<Timestamp>,
    #[serde(flatten)]
    config: ConsumerConfig,
}

/// Returns all consumers as an archive has them.
pub(crate) fn consumers_of_archive(all: &Consumers, moment: Moment) -> Vec<ArchivedConsumer> {
    let shown = all.slots.iter().filter(|(_, consumer)| !consumer.config.direct);
    let archived = shown.map(|(_, consumer)| {
        let (acks, name) = (&consumer.acks, consumer.name.to_string());
        // Times of deliveries are those of the clock that never goes back.
        let behind = moment.wall_time().saturating_sub(moment.mono_time());
        let pending = acks.all_pending().map(|(sequence, message)| {
            (sequence, message.consumer_sequence, message.since.saturating_add(behind))
        });
        let position = ConsumerPosition {
            floor: (acks.floor.consumer, acks.floor.stream),
            delivered: (acks.delivered.consumer, acks.delivered.stream),
            pending: pending.collect(),
            redelivered: acks.all_redelivered().collect(),
        };
        let config = serde_json::to_vec(&*consumer.config).unwrap_or_default();
        ArchivedConsumer { name, config, position }
    });
    archived.collect()
}

impl ArchivedConsumer {
    /// Returns the memory that the consumer takes, in bytes, about.
    pub(crate) fn cost_bytes(&self) -> usize {
        let ConsumerPosition { pending, redelivered, .. } = &self.position;
        size_of::<Self>()
            + self.name.len()
            + self.config.len()
            + size_of_val(&pending[..])
            + size_of_val(&redelivered[..])
    }
}

/// Takes a consumer of an archive of this stream, before [`Consumers::start`]. Returns whether it
/// could be read, and may be made.
pub(crate) fn take_consumer(
    all: &mut Consumers,
    archived: &ArchivedConsumer,
    stream: &StreamConfig,
    moment: Moment,
) -> bool {
    let file = serde_json::from_slice::<ConsumerFile>(&archived.config);
    let Ok(mut file) = file else { return false };
    // Whoever sends an archive may have written anything into it.
    let (config, rules) = (&mut file.config, &all.rules);
    let named = if config.is_durable() { &mut config.durable_name } else { &mut config.name };
    if named.is_empty() {
        named.clone_from(&archived.name);
    }
    let is_it = *named == archived.name && all.find(&archived.name).is_none();
    if !is_it
        || (ConfigCheck { config, is_pedantic: false, stream, rules }).run().is_err()
        || all.check_place(&archived.name, &file.config, stream).is_err()
    {
        return false;
    }
    let number = all.last_number + 1;
    let (name, config) = (archived.name.clone(), Box::new(file.config));
    let created = file.created.unwrap_or(Timestamp(moment.wall_time()));
    all.restore_entry(KeptEntry::Consumer { number, name, created, config });
    let ConsumerPosition { floor, delivered, pending, redelivered } = &archived.position;
    let bounded = |sequence: u64| sequence.min(SEQUENCE_MAX);
    let pair = |(consumer, stream): (u64, u64)| SequencePair {
        consumer: bounded(consumer),
        stream: bounded(stream),
    };
    let given_up = |(sequence, count): &(u64, u64)| {
        (bounded(*sequence), KeptMessage::GivenUp { redeliveries: *count })
    };
    let counts: BTreeMap<u64, u64> = redelivered.iter().copied().collect();
    let mut messages: BTreeMap<u64, KeptMessage> = redelivered.iter().map(given_up).collect();
    for (sequence, consumer_sequence, since) in pending {
        let redeliveries = counts.get(sequence).copied().unwrap_or(0);
        let (consumer_sequence, since) = (bounded(*consumer_sequence), *since);
        let message = KeptMessage::Pending { consumer_sequence, since, redeliveries };
        messages.insert(bounded(*sequence), message);
    }
    let state = KeptState {
        is_whole: true,
        delivered: pair(*delivered),
        floor: pair(*floor),
        next: bounded(delivered.1) + 1,
        last_messages_upto: 0,
        messages: messages.into_iter().collect(),
    };
    all.restore_entry(KeptEntry::State { number, state });
    true
}

/// Keeps all consumers whole, as they are new to the log.
pub(crate) fn keep_all(all: &mut Consumers, moment: Moment) {
    let places: Vec<usize> = all.names.values().copied().collect();
    places.into_iter().for_each(|at| all.keep_consumer(at, moment));
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::consumer::{ConsumerRules, StreamAbout};

    #[test]
    fn a_consumer_of_an_archive_is_made_only_if_a_request_could_make_it() {
        let stream: StreamConfig =
            serde_json::from_value(json!({"name": "S", "subjects": ["s.>"]})).unwrap();
        let take = |name: &str, config: Value, delivered: (u64, u64)| {
            let about = StreamAbout::of(&stream, 1 << 20);
            let mut all = Consumers::new(about, ConsumerRules::default(), 1);
            let position = ConsumerPosition { delivered, ..ConsumerPosition::default() };
            let config = serde_json::to_vec(&config).unwrap();
            let archived = ArchivedConsumer { name: name.to_owned(), config, position };
            let moment = Moment { mono: 1, wall: 1_700_000_000_000_000_000 };
            let is_first = take_consumer(&mut all, &archived, &stream, moment);
            (is_first, take_consumer(&mut all, &archived, &stream, moment))
        };
        let good = json!({"durable_name": "C", "ack_policy": "explicit"});
        assert_eq!(take("C", good.clone(), (u64::MAX, u64::MAX)), (true, false), "once only");
        assert_eq!(take("D", good, (1, 1)), (false, false), "of another name");
        for bad in [
            json!({"durable_name": "C", "deliver_subject": "a b\r\nPING"}),
            json!({"durable_name": "C", "ack_policy": "explicit", "filter_subject": "a..b"}),
        ] {
            assert_eq!(take("C", bad.clone(), (1, 1)), (false, false), "{bad}");
        }
        assert_eq!(take("C d", json!({"durable_name": "C d"}), (1, 1)), (false, false));
    }
}
