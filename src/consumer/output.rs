//! What consumers want to be done: deliveries, statuses, records, removals.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;

use super::advisory::Advisory;
use crate::stream::headers;

/// Header of a status: messages that a request lacks.
const PENDING_MESSAGES: &str = "Nats-Pending-Messages";
/// Header of a status: bytes that a request has left.
const PENDING_BYTES: &str = "Nats-Pending-Bytes";
/// Header of a heartbeat: the last sequence of the consumer.
pub const LAST_CONSUMER: &str = "Nats-Last-Consumer";
/// Header of a heartbeat: the last sequence of the stream.
pub const LAST_STREAM: &str = "Nats-Last-Stream";
/// Header of a heartbeat: the subject on which an answer is missing.
pub const STALLED: &str = "Nats-Consumer-Stalled";
/// Header of a message: the id of the client that is pinned.
const PIN_ID: &str = "Nats-Pin-Id";

/// A message that is to be delivered, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Name of the consumer.
    pub consumer: Arc<str>,
    /// The subject that the message is sent to; the receiver is shown the stored one.
    pub to: Bytes,
    /// The queue group that one member of is to get the message.
    pub queue: Option<Bytes>,
    /// Sequence of the message.
    pub sequence: u64,
    /// Number of deliveries of the message, with this one.
    pub deliveries: u64,
    /// Number of the delivery.
    pub consumer_sequence: u64,
    /// Time of the message, in nanoseconds since 1970.
    pub time: u64,
    /// Messages that follow.
    pub pending: u64,
    /// Whether the payload is left out.
    pub headers_only: bool,
    /// The id of the pinned client, which the message is to carry.
    pub pin: Option<Arc<str>>,
}

impl Delivery {
    /// Appends the subject on which the message is acknowledged.
    pub fn ack_subject(&self, stream: &str, subject: &mut Vec<u8>) {
        subject.extend_from_slice(b"$JS.ACK.");
        subject.extend_from_slice(stream.as_bytes());
        subject.push(b'.');
        subject.extend_from_slice(self.consumer.as_bytes());
        let Self { deliveries, sequence, consumer_sequence, time, pending, .. } = *self;
        for number in [deliveries, sequence, consumer_sequence, time, pending] {
            subject.push(b'.');
            subject.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
        }
    }

    /// Bytes of that subject.
    pub(super) fn ack_subject_bytes(&self, stream: &str) -> usize {
        let Self { deliveries, sequence, consumer_sequence, time, pending, .. } = *self;
        let numbers = [deliveries, sequence, consumer_sequence, time, pending];
        let digits = numbers.map(|number| 1 + number.checked_ilog10().unwrap_or(0) as usize + 1);
        "$JS.ACK..".len() + stream.len() + self.consumer.len() + digits.iter().sum::<usize>()
    }

    /// The headers of the message where they are others than the stored ones.
    pub fn headers(&self, stored: &[u8], payload_bytes: usize) -> Option<Vec<u8>> {
        if !self.headers_only && self.pin.is_none() {
            return None;
        }
        let mut block = stored.to_vec();
        if self.headers_only {
            headers::add(&mut block, headers::name::MSG_SIZE, payload_bytes.to_string());
        }
        if let Some(pin) = &self.pin {
            headers::add(&mut block, PIN_ID, pin.as_bytes());
        }
        Some(block)
    }
}

/// A message without payload that says how a request or a consumer is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusMessage {
    /// The subject that the status is sent to.
    pub to: Bytes,
    /// The subject on which an answer is expected.
    pub reply: Option<Bytes>,
    /// The headers, with the line that they begin with.
    pub headers: Vec<u8>,
}

/// Messages and bytes that a request lacks when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shortfall {
    pub(super) messages: i64,
    pub(super) bytes: i64,
}

impl StatusMessage {
    /// A status by its number and text.
    pub(super) fn new(to: Bytes, status: &str) -> Self {
        Self { to, reply: None, headers: format!("NATS/1.0 {status}\r\n\r\n").into_bytes() }
    }

    /// A status that says what a request lacks.
    pub(super) fn with_shortfall(to: Bytes, status: &str, lacks: Shortfall) -> Self {
        let Shortfall { messages, bytes } = lacks;
        let headers = format!(
            "NATS/1.0 {status}\r\n{PENDING_MESSAGES}: {messages}\r\n{PENDING_BYTES}: \
             {bytes}\r\n\r\n"
        );
        Self { to, reply: None, headers: headers.into_bytes() }
    }

    /// A sign of life with the last sequences, and the subject on which an answer is missing.
    pub(super) fn heartbeat(to: Bytes, consumer: u64, stream: u64, stalled: Option<&[u8]>) -> Self {
        let mut text = format!(
            "NATS/1.0 100 Idle Heartbeat\r\n{LAST_CONSUMER}: {consumer}\r\n{LAST_STREAM}: \
             {stream}\r\n"
        );
        if let Some(subject) = stalled {
            let _ = write!(text, "{STALLED}: {}\r\n", String::from_utf8_lossy(subject));
        }
        text.push_str("\r\n");
        Self { to, reply: None, headers: text.into_bytes() }
    }
}

/// Something that is to be done, in the order in which it comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsumerOutput {
    /// A message is delivered.
    Deliver(Delivery),
    /// A status is sent.
    Status(StatusMessage),
    /// A record is kept, for [`Consumers::restore`](super::Consumers::restore).
    Keep(Vec<u8>),
    /// An acknowledgement is confirmed by an empty message.
    Confirm {
        /// The subject that the message is sent to.
        reply: Bytes,
        /// Whether the commit of the last record before has to end first.
        waits: bool,
    },
    /// An event is published.
    Advise(Advisory),
    /// Messages that no consumer needs any more are removed from the stream, ascending. The commit
    /// of the last record before comes first.
    Removable(Vec<u64>),
    /// A consumer has ended, and is known no more.
    Ended(Arc<str>),
    /// The subjects that a consumer pushes to, whose interest it hears of, are others now.
    Listens {
        /// The old subject.
        before: Option<Bytes>,
        /// The new one.
        now: Option<Bytes>,
    },
}

/// Outputs, and what leaves together with the next record.
#[derive(Debug, Default)]
pub(super) struct Outbound {
    pub(super) queue: VecDeque<ConsumerOutput>,
    /// Acknowledgements that are confirmed when the next record is kept.
    pub(super) confirms: Vec<Bytes>,
    /// Messages that were acknowledged, and perhaps are needed no more.
    pub(super) acknowledged: Vec<u64>,
    /// Time at which changes are to be kept.
    pub(super) keep_at: Option<u64>,
}

impl Outbound {
    pub(super) fn push(&mut self, output: ConsumerOutput) {
        self.queue.push_back(output);
    }

    pub(super) fn status(&mut self, status: StatusMessage) {
        self.push(ConsumerOutput::Status(status));
    }

    pub(super) fn advise(&mut self, advisory: Advisory) {
        self.push(ConsumerOutput::Advise(advisory));
    }

    /// Lets changes be kept at a time or before.
    pub(super) fn keep_by(&mut self, time: u64) {
        self.keep_at = Some(self.keep_at.map_or(time, |at| at.min(time)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery() -> Delivery {
        Delivery {
            consumer: "C".into(),
            to: Bytes::from_static(b"in"),
            queue: None,
            sequence: 5,
            deliveries: 2,
            consumer_sequence: 7,
            time: 1_700_000_000_000_000_001,
            pending: 3,
            headers_only: false,
            pin: None,
        }
    }

    #[test]
    fn the_subject_of_an_acknowledgement_has_nine_tokens() {
        let mut subject = Vec::new();
        delivery().ack_subject("S", &mut subject);
        assert_eq!(subject, b"$JS.ACK.S.C.2.5.7.1700000000000000001.3");
        assert_eq!(delivery().ack_subject_bytes("S"), subject.len());
    }

    #[test]
    fn headers_are_the_stored_ones_but_for_a_size_and_a_pin() {
        assert_eq!(delivery().headers(b"", 5), None);
        let bare = Delivery { headers_only: true, ..delivery() };
        assert_eq!(bare.headers(b"", 5).unwrap(), b"NATS/1.0\r\nNats-Msg-Size: 5\r\n\r\n");
        let pinned = Delivery { pin: Some("id".into()), ..delivery() };
        let block = pinned.headers(b"NATS/1.0\r\nA: b\r\n\r\n", 5).unwrap();
        assert_eq!(block, b"NATS/1.0\r\nA: b\r\nNats-Pin-Id: id\r\n\r\n");
    }

    #[test]
    fn a_heartbeat_names_what_it_waits_for() {
        let to = Bytes::from_static(b"d");
        let status = StatusMessage::heartbeat(to, 1, 2, Some(b"$JS.FC.S.C.abcd"));
        let expected = "NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 1\r\n\
                        Nats-Last-Stream: 2\r\nNats-Consumer-Stalled: $JS.FC.S.C.abcd\r\n\r\n";
        assert_eq!(String::from_utf8(status.headers).unwrap(), expected);
    }
}
