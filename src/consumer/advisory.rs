//! Events about consumers, as those hear of them who subscribe to their subjects.

use std::sync::Arc;

use serde::Serialize;

use super::source::Moment;
use crate::stream::time::{NO_TIME, Timestamp, rfc3339};

/// Characters of an event's id.
const ID_CHARACTERS: usize = 22;
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Returns a text of so many digits and letters.
pub(super) fn random_text(rng: &mut fastrand::Rng, characters: usize) -> String {
    (0..characters).map(|_| char::from(DIGITS[rng.usize(..DIGITS.len())])).collect()
}

/// A kind of event about a consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsumerEvent {
    /// The consumer was made.
    Created,
    /// The consumer was deleted.
    Deleted,
    /// Delivery has stopped until a time, or goes on.
    Paused {
        /// Whether delivery has stopped.
        paused: bool,
        /// The end of the pause.
        until: Option<Timestamp>,
    },
    /// A message was delivered as often as it may be.
    MaxDeliveries(AckedDelivery),
    /// A message was refused.
    Refused(AckedDelivery),
    /// A message was given up, for a reason that may be empty.
    Terminated(AckedDelivery, Arc<str>),
    /// A message was acknowledged, so many nanoseconds after its delivery.
    Acknowledged(AckedDelivery, i64),
    /// A client of a group is the only one that is served.
    Pinned {
        /// Name of the group.
        group: Arc<str>,
        /// The client's id.
        id: Arc<str>,
    },
    /// No client of a group is so any more.
    Unpinned {
        /// Name of the group.
        group: Arc<str>,
        /// The reason: `admin` or `timeout`.
        reason: &'static str,
    },
}

/// A delivery that an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AckedDelivery {
    /// Number of the delivery.
    pub consumer_sequence: u64,
    /// Sequence of the message.
    pub sequence: u64,
    /// Number of the message's deliveries.
    pub deliveries: u64,
}

/// An event about a consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advisory {
    /// Name of the consumer.
    pub consumer: Arc<str>,
    /// Time of the event, in nanoseconds since 1970.
    pub time: i64,
    /// The kind of event.
    pub event: ConsumerEvent,
}

/// The place of an event.
#[derive(Debug, Clone, Copy)]
pub struct AdvisoryPlace<'a> {
    /// The account, which only some events name.
    pub account: &'a str,
    /// The stream of the consumer.
    pub stream: &'a str,
    /// The domain of the server.
    pub domain: Option<&'a str>,
}

/// Fields of an event, in their order.
#[derive(Debug, Default, Serialize)]
struct AdvisoryShown<'a> {
    #[serde(rename = "type")]
    kind: String,
    id: &'a str,
    timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<&'a str>,
    stream: &'a str,
    consumer: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    paused: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pause_until: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    consumer_seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ack_time: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deliveries: Option<u64>,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pinned_id: Option<&'a str>,
}

impl Advisory {
    pub(super) fn new(consumer: &Arc<str>, moment: Moment, event: ConsumerEvent) -> Self {
        Self { consumer: consumer.clone(), time: moment.wall_time(), event }
    }

    /// The words of the event in its type and its subject.
    fn words(&self) -> (&'static str, &'static str) {
        match &self.event {
            ConsumerEvent::Created => ("advisory.v1.consumer_action", "ADVISORY.CONSUMER.CREATED"),
            ConsumerEvent::Deleted => ("advisory.v1.consumer_action", "ADVISORY.CONSUMER.DELETED"),
            ConsumerEvent::Paused { .. } => {
                ("advisory.v1.consumer_pause", "ADVISORY.CONSUMER.PAUSE")
            }
            ConsumerEvent::MaxDeliveries(_) => {
                ("advisory.v1.max_deliver", "ADVISORY.CONSUMER.MAX_DELIVERIES")
            }
            ConsumerEvent::Refused(_) => ("advisory.v1.nak", "ADVISORY.CONSUMER.MSG_NAKED"),
            ConsumerEvent::Terminated(..) => {
                ("advisory.v1.terminated", "ADVISORY.CONSUMER.MSG_TERMINATED")
            }
            ConsumerEvent::Acknowledged(..) => ("metric.v1.consumer_ack", "METRIC.CONSUMER.ACK"),
            ConsumerEvent::Pinned { .. } => {
                ("advisory.v1.consumer_group_pinned", "ADVISORY.CONSUMER.PINNED")
            }
            ConsumerEvent::Unpinned { .. } => {
                ("advisory.v1.consumer_group_unpinned", "ADVISORY.CONSUMER.UNPINNED")
            }
        }
    }

    /// The subject of the event.
    pub fn subject(&self, stream: &str) -> String {
        format!("$JS.EVENT.{}.{stream}.{}", self.words().1, self.consumer)
    }

    /// The event as JSON.
    pub fn text(&self, place: AdvisoryPlace<'_>, rng: &mut fastrand::Rng) -> Vec<u8> {
        let id = random_text(rng, ID_CHARACTERS);
        let mut shown = AdvisoryShown {
            kind: format!("io.nats.jetstream.{}", self.words().0),
            id: &id,
            timestamp: rfc3339(self.time),
            stream: place.stream,
            consumer: &self.consumer,
            domain: place.domain,
            ..AdvisoryShown::default()
        };
        match &self.event {
            ConsumerEvent::Created => shown.action = Some("create"),
            ConsumerEvent::Deleted => shown.action = Some("delete"),
            ConsumerEvent::Paused { paused, until } => {
                shown.paused = Some(*paused);
                shown.pause_until =
                    Some(until.map_or_else(|| NO_TIME.to_owned(), |until| rfc3339(until.0)));
            }
            ConsumerEvent::MaxDeliveries(delivered) => {
                shown.about(*delivered);
                shown.consumer_seq = None;
            }
            ConsumerEvent::Refused(delivered) => shown.about(*delivered),
            ConsumerEvent::Terminated(delivered, reason) => {
                shown.about(*delivered);
                shown.reason = reason;
            }
            ConsumerEvent::Acknowledged(delivered, ack_time) => {
                shown.about(*delivered);
                shown.ack_time = Some(*ack_time);
            }
            ConsumerEvent::Pinned { group, id } => {
                shown.account = Some(place.account);
                (shown.group, shown.pinned_id) = (Some(&**group), Some(&**id));
            }
            ConsumerEvent::Unpinned { group, reason } => {
                shown.account = Some(place.account);
                (shown.group, shown.reason) = (Some(&**group), *reason);
            }
        }
        serde_json::to_vec(&shown).unwrap_or_default()
    }
}

impl AdvisoryShown<'_> {
    fn about(&mut self, delivered: AckedDelivery) {
        self.consumer_seq = Some(delivered.consumer_sequence);
        self.stream_seq = Some(delivered.sequence);
        self.deliveries = Some(delivered.deliveries);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(event: ConsumerEvent) -> (String, serde_json::Value) {
        let moment = Moment { mono: 1, wall: 1_500_000_000 };
        let advisory = Advisory::new(&"C".into(), moment, event);
        let place = AdvisoryPlace { account: "A", stream: "S", domain: None };
        let text = advisory.text(place, &mut fastrand::Rng::with_seed(1));
        (advisory.subject("S"), serde_json::from_slice(&text).unwrap())
    }

    #[test]
    fn events_have_the_subjects_and_fields_of_their_kind() {
        let about = AckedDelivery { consumer_sequence: 1, sequence: 2, deliveries: 3 };
        let (subject, body) = text(ConsumerEvent::Terminated(about, "bad".into()));
        assert_eq!(subject, "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.S.C");
        assert_eq!(body["type"], "io.nats.jetstream.advisory.v1.terminated");
        assert_eq!(body["id"].as_str().unwrap().len(), ID_CHARACTERS);
        assert_eq!(body["timestamp"], "1970-01-01T00:00:01.5Z");
        assert_eq!((&body["stream_seq"], &body["reason"]), (&2.into(), &"bad".into()));
        let (subject, body) = text(ConsumerEvent::MaxDeliveries(about));
        assert_eq!(subject, "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.S.C");
        assert!(body.get("consumer_seq").is_none() && body["deliveries"] == 3);
        let (subject, body) = text(ConsumerEvent::Acknowledged(about, 9));
        assert_eq!(subject, "$JS.EVENT.METRIC.CONSUMER.ACK.S.C");
        assert!(body["ack_time"] == 9 && body.get("reason").is_none());
        let (_, body) = text(ConsumerEvent::Paused { paused: false, until: None });
        assert_eq!(body["pause_until"], NO_TIME);
        let (_, body) = text(ConsumerEvent::Unpinned { group: "g".into(), reason: "admin" });
        assert!(body["account"] == "A" && body["group"] == "g" && body["reason"] == "admin");
    }
}
