//! MQTT sessions: what a client has asked for, and the packets that are on their way.
//!
//! A session is decided here and stored elsewhere: `record` has its form in the stream
//! `$MQTT_sess`, `flights` the packet ids of messages that are not acknowledged, `replies` the
//! answers that wait for the disk, `trace` packets as the log shows them. All are values; the room
//! `mqtt` moves them.

#![forbid(unsafe_code)]

pub(crate) mod flights;
pub(crate) mod record;
pub(crate) mod replies;
pub(crate) mod settings;
pub(crate) mod trace;

use std::collections::BTreeMap;
use std::rc::Rc;

use flights::{Flights, ReleaseId, ReleaseWay, ReleasedMessage};
use record::SessionConsumer;
use replies::PacketReplies;

use crate::auth::user::User;
use crate::consumer::AckSubject;
use crate::interest::ids::{AccountId, ConnId};
use crate::proto::gateway::name_hash;
use crate::proto::mqtt::{MqttConnect, Qos, topic};
use crate::subject::is_literal;

/// Suffix of the sid of the subscription one level above a filter that ends in `#`.
const ABOVE_SUFFIX: &[u8] = b" fwc";
/// The beginning of subjects to which consumers of sessions deliver.
pub(crate) const DELIVER_PREFIX: &str = "$MQTT.sub.";
/// The beginning of subjects of messages of QoS 1 and 2 in their stream.
pub(crate) const MESSAGE_PREFIX: &str = "$MQTT.msgs.";
/// The header with the QoS of a message's publisher.
pub(crate) const PUBLISH_HEADER: &str = "Nmqtt-Pub";
/// The header with the packet id of a PUBREL that is stored.
pub(crate) const RELEASE_HEADER: &str = "Nmqtt-PubRel";
/// The header with the subject by which the message of a stored PUBREL is acknowledged.
pub(crate) const RELEASED_ACK_HEADER: &str = "Nmqtt-Ack";
/// The sum of `max_ack_pending` over the consumers of a session, at most.
pub(crate) const ACK_PENDING_SUM_MAX: usize = 65_535;

/// The beginning of subjects to which PUBRELs are delivered.
pub(crate) const RELEASE_PREFIX: &str = "$MQTT.deliver.pubrel.";

/// Whether consumers of sessions deliver to a subject.
pub(crate) fn is_delivery_subject(subject: &[u8]) -> bool {
    [DELIVER_PREFIX, RELEASE_PREFIX].iter().any(|prefix| subject.starts_with(prefix.as_bytes()))
}

/// A will that the server keeps for a client.
#[derive(Debug, Clone)]
pub(crate) struct KeptWill {
    pub(crate) topic: Box<[u8]>,
    pub(crate) payload: Box<[u8]>,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
}

/// Progress of a client between its first packet and its last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientPhase {
    /// No CONNECT has come.
    Silent,
    /// CONNECT has come, and the login is not decided.
    LogsIn,
    /// The client has a user, and its session is being opened.
    Opens,
    /// CONNACK was sent.
    In,
}

/// A client of MQTT.
#[derive(Debug)]
pub(crate) struct MqttClient {
    pub(crate) phase: ClientPhase,
    /// The client's id, its own or made here.
    pub(crate) id: Rc<str>,
    /// Whether the session ends with the connection.
    pub(crate) is_clean: bool,
    /// Nanoseconds that may pass without a packet; 0 is without limit.
    pub(crate) silence_ns_max: u64,
    pub(crate) will: Option<Box<KeptWill>>,
    /// Time of CONNECT, in nanoseconds since 1970: of two clients with one id the later one stays.
    pub(crate) since: u64,
    /// Whether another client with the same id has come.
    pub(crate) is_taken_over: bool,
    pub(crate) session: Session,
    pub(crate) replies: PacketReplies,
}

impl Default for MqttClient {
    fn default() -> Self {
        Self {
            phase: ClientPhase::Silent,
            id: Rc::default(),
            is_clean: true,
            silence_ns_max: 0,
            will: None,
            since: 0,
            is_taken_over: false,
            session: Session::default(),
            replies: PacketReplies::default(),
        }
    }
}

impl MqttClient {
    /// Takes over what CONNECT says.
    pub(crate) fn connect(&mut self, connect: &MqttConnect<'_>, id: Rc<str>, now: u64) {
        /// Nanoseconds of one and a half seconds.
        const SILENCE_NS: u64 = 1_500_000_000;
        self.phase = ClientPhase::LogsIn;
        self.session.hash = hash_of(&id);
        self.id = id;
        self.is_clean = connect.is_clean;
        self.silence_ns_max = u64::from(connect.keep_alive_s) * SILENCE_NS;
        self.since = now;
        self.will = connect.will.map(|will| {
            Box::new(KeptWill {
                topic: will.topic.into(),
                payload: will.payload.into(),
                qos: will.qos,
                retain: will.retain,
            })
        });
    }
}

/// A client of MQTT whose connection has ended.
#[derive(Debug)]
pub(crate) struct EndedClient {
    pub(crate) conn: ConnId,
    pub(crate) client: Box<MqttClient>,
    pub(crate) account: AccountId,
    /// The client's user, if it had logged in.
    pub(crate) user: Option<Rc<User>>,
}

/// Returns the hash of a client's id, which names the client in subjects and consumers.
pub(crate) fn hash_of(id: &str) -> Box<str> {
    String::from_utf8_lossy(&name_hash::<8>(id)).into()
}

/// The way of messages to a subscription of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Messages as they are published; those of a consumer come another way if the filter has a
    /// QoS and they have one, too.
    Live { qos: Qos, is_reserved: bool },
    /// Messages of a consumer.
    Stored { qos: Qos, is_reserved: bool },
    /// PUBRELs that are stored until PUBCOMP.
    Release,
}

/// Consumers by the sids of the subscriptions that they are for.
type SessionConsumers = BTreeMap<Box<[u8]>, Box<SessionConsumer>>;

/// The state of a client that may outlive its connection.
#[derive(Debug, Default)]
pub(crate) struct Session {
    /// The hash of the client's id.
    pub(crate) hash: Box<str>,
    /// Filters as subjects.
    pub(crate) filters: BTreeMap<Box<[u8]>, Qos>,
    /// Consumers by the sid of the subscription that they are for.
    pub(crate) consumers: SessionConsumers,
    /// The consumer of PUBRELs, once there is one.
    pub(crate) releases: Option<Box<SessionConsumer>>,
    /// Sequence of the session's record; 0 if there is none.
    pub(crate) sequence: u64,
    pub(crate) flights: Flights,
    /// Whether the record has packet ids of messages on their way.
    pub(crate) has_stored_flights: bool,
    /// Ways of messages by sid.
    arrivals: BTreeMap<Box<[u8]>, Arrival>,
}

impl Session {
    /// Returns the way of messages to the subscription with a sid.
    pub(crate) fn arrival(&self, sid: &[u8]) -> Option<Arrival> {
        self.arrivals.get(sid).copied()
    }

    /// Sets the way of messages to the subscription with a sid.
    pub(crate) fn set_arrival(&mut self, sid: &[u8], arrival: Arrival) {
        self.arrivals.insert(sid.into(), arrival);
    }

    /// Forgets a subscription.
    pub(crate) fn forget_arrival(&mut self, sid: &[u8]) {
        self.arrivals.remove(sid);
    }

    /// Returns the PUBREL of a message that is not settled, if it is stored, by the subject of the
    /// message's acknowledgement.
    pub(crate) fn landed(&self, ack: &[u8]) -> Option<ReleaseId> {
        let (sid, sequence) = self.delivery_of(ack)?;
        self.flights.landed(sid, sequence)
    }

    /// Takes over a PUBREL that an earlier connection has stored with the subject of its message's
    /// acknowledgement.
    pub(crate) fn keep_release(&mut self, packet: u16, message_ack: &[u8]) -> ReleaseId {
        let message = released(&self.consumers, message_ack);
        self.flights.keep_release(packet, message)
    }

    /// Takes a PUBREL from its stream, with the subjects of its acknowledgement and of its
    /// message's.
    pub(crate) fn on_release(&mut self, packet: u16, ack: &[u8], message_ack: &[u8]) -> ReleaseWay {
        let message = released(&self.consumers, message_ack);
        self.flights.on_release(packet, ack, message)
    }

    /// Returns the sid of the subscription and the sequence of the message that an acknowledgement
    /// is for.
    pub(crate) fn delivery_of(&self, ack: &[u8]) -> Option<(&[u8], u64)> {
        delivery_of(&self.consumers, ack)
    }

    /// Returns the sids of subscriptions that a filter has, each with its subject: its own, and
    /// that of the level above.
    pub(crate) fn sids(subject: &[u8]) -> impl Iterator<Item = FilterSid<'_>> {
        let own = FilterSid { sid: subject.into(), subject };
        let above = topic::level_above(subject)
            .map(|above| FilterSid { sid: [above, ABOVE_SUFFIX].concat().into(), subject: above });
        std::iter::once(own).chain(above)
    }

    /// Whether consumers with `more` in all fit beside those that there are.
    pub(crate) fn has_room(&self, more: usize) -> bool {
        let all = self.consumers.values().chain(&self.releases);
        let sum: usize = all.map(|consumer| consumer.ack_pending_max).sum();
        sum.saturating_add(more) <= ACK_PENDING_SUM_MAX
    }
}

/// Returns the message that an acknowledgement is for; `None` if the session has no such consumer.
fn released<'a>(consumers: &'a SessionConsumers, ack: &'a [u8]) -> Option<ReleasedMessage<'a>> {
    let (sid, sequence) = delivery_of(consumers, ack)?;
    Some(ReleasedMessage { sid, sequence, ack })
}

fn delivery_of<'a>(consumers: &'a SessionConsumers, ack: &[u8]) -> Option<(&'a [u8], u64)> {
    let about = AckSubject::parse(ack)?;
    let consumer = consumers.values().find(|it| it.name.as_bytes() == about.consumer)?;
    Some((consumer.deliver.as_bytes(), about.sequence))
}

/// A subscription of a filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FilterSid<'a> {
    pub(crate) sid: Box<[u8]>,
    pub(crate) subject: &'a [u8],
}

/// Returns the subject by which the message of a stored PUBREL is acknowledged, by the headers of
/// that; empty if they name none.
pub(crate) fn released_ack(headers: &[u8]) -> &[u8] {
    let ack = crate::api::headers::value(headers, RELEASED_ACK_HEADER);
    let is_one = |ack: &&[u8]| is_literal(ack) && AckSubject::parse(ack).is_some();
    ack.filter(is_one).unwrap_or_default()
}

/// Returns the QoS that a message was published with, by its headers; 0 if they do not say.
pub(crate) fn published_qos(headers: &[u8]) -> Qos {
    match crate::api::headers::value(headers, PUBLISH_HEADER) {
        Some([digit @ b'0'..=b'2', ..]) => digit - b'0',
        _ => 0,
    }
}

/// Returns the headers of a message of this QoS.
pub(crate) fn publish_headers(qos: Qos) -> Vec<u8> {
    format!("NATS/1.0\r\n{PUBLISH_HEADER}:{qos}\r\n\r\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_with_a_hash_has_a_subscription_one_level_up() {
        let sids = |subject: &'static [u8]| Session::sids(subject).collect::<Vec<_>>();
        assert_eq!(sids(b"a.*").len(), 1);
        let both = sids(b"a.>");
        assert_eq!(both[0], FilterSid { sid: b"a.>"[..].into(), subject: b"a.>" });
        assert_eq!(both[1], FilterSid { sid: b"a fwc"[..].into(), subject: b"a" });
    }

    /// The bound of the memory of an idle client, besides its connection, its id and its filters.
    #[test]
    fn an_idle_client_takes_at_most_320_bytes_besides_what_it_points_to() {
        assert!(size_of::<MqttClient>() <= 320, "{} bytes", size_of::<MqttClient>());
    }

    #[test]
    fn the_qos_of_a_publisher_is_in_the_header() {
        for qos in 0..=2 {
            assert_eq!(published_qos(&publish_headers(qos)), qos);
        }
        assert_eq!(published_qos(b"NATS/1.0\r\nNmqtt-Pub: 1\r\n\r\n"), 1);
        assert_eq!(published_qos(b"NATS/1.0\r\nA: b\r\n\r\n"), 0);
        assert_eq!(published_qos(b""), 0);
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::settings::MqttSettings;

    /// Settings as they are without configuration.
    pub(crate) fn settings() -> MqttSettings {
        MqttSettings {
            tls: None,
            auth_timeout_ms: None,
            no_auth_user: None,
            ack_wait_ns: 30_000_000_000,
            ack_pending_max: 1024,
            domain: None,
            replicas: 0,
            has_memory_consumers: false,
            inactive_ns: 0,
            api_timeout_ns: 5_000_000_000,
            rejects_qos2: false,
            downgrades_qos2: false,
        }
    }
}
