//! The record of a session in its stream: JSON, as nats-server writes it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Session;
use super::flights::{Flights, KeptFlights};
use super::settings::MqttSettings;

/// A consumer of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SessionConsumer {
    pub(crate) name: Box<str>,
    /// The subject to which the consumer delivers, which is the sid of its subscription.
    pub(crate) deliver: Box<str>,
    /// The subject of its messages in their stream.
    pub(crate) filter: Box<str>,
    pub(crate) ack_pending_max: usize,
}

/// A session as it is stored.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct StoredSession {
    #[serde(skip_serializing_if = "String::is_empty")]
    origin: String,
    id: String,
    #[serde(skip_serializing_if = "is_false")]
    clean: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    subs: BTreeMap<String, u8>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    cons: BTreeMap<String, StoredConsumer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pubrel: Option<StoredConsumer>,
    /// Packet ids of messages on their way, which nats-server does not store.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    ids: KeptFlights,
}

// Serde wants a reference.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_false(is: &bool) -> bool {
    !*is
}

/// The configuration of a consumer in requests and records.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct StoredConsumer {
    durable_name: String,
    deliver_subject: String,
    deliver_policy: String,
    ack_policy: String,
    ack_wait: u64,
    filter_subject: String,
    replay_policy: String,
    max_ack_pending: usize,
    #[serde(skip_serializing_if = "is_zero")]
    inactive_threshold: u64,
    num_replicas: u32,
    #[serde(skip_serializing_if = "is_false")]
    mem_storage: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl SessionConsumer {
    fn config(&self, settings: &MqttSettings) -> StoredConsumer {
        StoredConsumer {
            durable_name: self.name.to_string(),
            deliver_subject: self.deliver.to_string(),
            deliver_policy: "new".to_owned(),
            ack_policy: "explicit".to_owned(),
            ack_wait: settings.ack_wait_ns,
            filter_subject: self.filter.to_string(),
            replay_policy: "instant".to_owned(),
            max_ack_pending: self.ack_pending_max,
            inactive_threshold: settings.inactive_ns,
            num_replicas: 0,
            mem_storage: settings.has_memory_consumers,
        }
    }

    fn of(config: StoredConsumer) -> Self {
        Self {
            name: config.durable_name.into(),
            deliver: config.deliver_subject.into(),
            filter: config.filter_subject.into(),
            ack_pending_max: config.max_ack_pending,
        }
    }

    /// Returns the request that makes the consumer in a stream.
    pub(crate) fn request(&self, stream: &str, settings: &MqttSettings) -> Vec<u8> {
        #[derive(Serialize)]
        struct CreateRequest<'a> {
            stream_name: &'a str,
            config: StoredConsumer,
        }
        let request = CreateRequest { stream_name: stream, config: self.config(settings) };
        serde_json::to_vec(&request).unwrap_or_default()
    }
}

/// A session that was read.
#[derive(Debug)]
pub(crate) struct FoundSession {
    /// The client's id.
    pub(crate) id: String,
    /// Whether the session was to end with its connection.
    pub(crate) was_clean: bool,
    pub(crate) session: Session,
}

/// Returns the record of a session. `origin` is the server's name in subjects.
pub(crate) fn write(
    session: &Session,
    id: &str,
    is_clean: bool,
    origin: &str,
    settings: &MqttSettings,
) -> Vec<u8> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let stored = StoredSession {
        origin: origin.to_owned(),
        id: id.to_owned(),
        clean: is_clean,
        subs: session.filters.iter().map(|(filter, qos)| (text(filter), *qos)).collect(),
        cons: session
            .consumers
            .iter()
            .map(|(sid, consumer)| (text(sid), consumer.config(settings)))
            .collect(),
        pubrel: session.releases.as_ref().map(|consumer| consumer.config(settings)),
        ids: if is_clean { KeptFlights::new() } else { session.flights.to_keep() },
    };
    serde_json::to_vec(&stored).unwrap_or_default()
}

/// Reads the record of a session; `None` if it is none.
pub(crate) fn read(record: &[u8], sequence: u64) -> Option<FoundSession> {
    let stored: StoredSession = serde_json::from_slice(record).ok()?;
    let bytes = |text: String| text.into_bytes().into_boxed_slice();
    let mut flights = Flights::default();
    let has_flights = !stored.ids.is_empty();
    flights.keep(stored.ids);
    let session = Session {
        hash: super::hash_of(&stored.id),
        filters: stored.subs.into_iter().map(|(filter, qos)| (bytes(filter), qos.min(2))).collect(),
        consumers: stored
            .cons
            .into_iter()
            .map(|(sid, config)| (bytes(sid), Box::new(SessionConsumer::of(config))))
            .collect(),
        releases: stored.pubrel.map(SessionConsumer::of).map(Box::new),
        sequence,
        flights,
        has_stored_flights: has_flights,
        ..Session::default()
    };
    Some(FoundSession { id: stored.id, was_clean: stored.clean, session })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_found_as_it_was_written() {
        let settings = crate::session::testing::settings();
        let consumer = Box::new(SessionConsumer {
            name: "h_n".into(),
            deliver: "$MQTT.sub.n".into(),
            filter: "$MQTT.msgs.a.*".into(),
            ack_pending_max: 1024,
        });
        let mut session = Session::default();
        session.filters.insert(b"a.*"[..].into(), 1);
        session.consumers.insert(b"a.*"[..].into(), consumer.clone());
        session.releases = Some(consumer.clone());
        let text = write(&session, "dev1", false, "me", &settings);
        let json: serde_json::Value = serde_json::from_slice(&text).expect("it is JSON");
        assert_eq!(json["subs"]["a.*"], 1);
        assert_eq!(json["cons"]["a.*"]["ack_wait"], 30_000_000_000u64);
        assert_eq!(json.get("clean"), None);
        let found = read(&text, 7).expect("it is a session");
        assert_eq!((found.id.as_str(), found.was_clean), ("dev1", false));
        assert_eq!((&found.session.filters, found.session.sequence), (&session.filters, 7));
        assert_eq!(found.session.consumers, session.consumers);
        assert_eq!(found.session.releases, Some(consumer));
        assert!(read(b"[1", 1).is_none());
    }
}
