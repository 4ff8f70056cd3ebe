//! Acknowledgements: their subjects and bodies, and what follows from them.

use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;

use super::advisory::{AckedDelivery, Advisory, ConsumerEvent};
use super::config::AckPolicy;
use super::live::{LiveConsumer, Turn};
use super::output::ConsumerOutput;
use super::pending::SequencePair;
use super::pulls::PullMessage;
use crate::stream::{json, time};
use crate::subject::tokens;

/// Time within which an acknowledgement that is not confirmed is kept, in nanoseconds.
const KEEP_ACK_WITHIN: u64 = 10_000_000;
/// Tokens of the short form of the subject, and fewest of the long one.
const SHORT_TOKENS: usize = 9;
const LONG_TOKENS: usize = 11;
const ALL_TOKENS_MAX: usize = 16;
/// Reason of a message that is given up because the stream has it no more.
const DELETED_REASON: &str = "Unacknowledged message was deleted";

/// The delivery that an acknowledgement is about, by its subject
/// `$JS.ACK.<stream>.<consumer>.<deliveries>.<stream seq>.<consumer seq>.<time>.<pending>`, or with
/// domain and account before the stream and more at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AckSubject<'a> {
    /// Name of the stream.
    pub stream: &'a [u8],
    /// Name of the consumer.
    pub consumer: &'a [u8],
    /// Number of the message's deliveries.
    pub deliveries: u64,
    /// Sequence of the message.
    pub sequence: u64,
    /// Number of the delivery.
    pub consumer_sequence: u64,
    /// Time of the message, in nanoseconds since 1970.
    pub time: u64,
    /// Messages that followed.
    pub pending: u64,
}

impl<'a> AckSubject<'a> {
    /// Reads a subject; `None` if it is not one of an acknowledgement. A number that is none is the
    /// highest one.
    pub fn parse(subject: &'a [u8]) -> Option<Self> {
        let mut all: [&[u8]; ALL_TOKENS_MAX] = [b""; ALL_TOKENS_MAX];
        let mut count = 0;
        for token in tokens(subject) {
            if let Some(place) = all.get_mut(count) {
                *place = token;
            }
            count += 1;
        }
        let offset = match count {
            SHORT_TOKENS => 2,
            LONG_TOKENS.. => 4,
            _ => return None,
        };
        if all[..2] != [&b"$JS"[..], b"ACK"] {
            return None;
        }
        let number = |at: usize| parse_number(all[offset + at]);
        Some(Self {
            stream: all[offset],
            consumer: all[offset + 1],
            deliveries: number(2),
            sequence: number(3),
            consumer_sequence: number(4),
            time: number(5),
            pending: number(6),
        })
    }
}

fn parse_number(token: &[u8]) -> u64 {
    let digit = |number: u64, byte: &u8| {
        let digit = u64::from(byte.wrapping_sub(b'0'));
        if digit > 9 { None } else { number.checked_mul(10)?.checked_add(digit) }
    };
    match token {
        [] => u64::MAX,
        digits => digits.iter().try_fold(0, digit).unwrap_or(u64::MAX),
    }
}

/// An acknowledgement as it was sent.
#[derive(Debug, Clone)]
pub struct AckMessage<'a> {
    /// The delivery that it is about.
    pub about: AckSubject<'a>,
    /// The subject on which it is to be confirmed, or that more messages are to be sent to.
    pub reply: Option<Bytes>,
    /// Body of the acknowledgement, without its headers.
    pub body: &'a [u8],
}

/// The meaning of an acknowledgement.
#[derive(Debug, PartialEq, Eq)]
enum AckWord<'a> {
    Done,
    /// Done, and a request for more.
    Next(&'a [u8]),
    /// To be delivered again, after some nanoseconds if there are any.
    Again(Option<i64>),
    InProgress,
    /// Never again, for a reason.
    Never(&'a [u8]),
    Unknown,
}

/// The argument of a refusal.
#[derive(Default, Deserialize)]
#[serde(default)]
struct RefusalOptions {
    delay: i64,
}

impl<'a> AckWord<'a> {
    fn parse(body: &'a [u8]) -> Self {
        match body {
            b"" | b"+ACK" | b"+OK" => return Self::Done,
            b"+WPI" => return Self::InProgress,
            _ => {}
        }
        if let Some(request) = body.strip_prefix(b"+NXT") {
            Self::Next(request)
        } else if let Some(delay) = body.strip_prefix(b"-NAK") {
            Self::Again(parse_delay(delay.trim_ascii()))
        } else if let Some(reason) = body.strip_prefix(b"+TERM") {
            Self::Never(reason.trim_ascii())
        } else {
            Self::Unknown
        }
    }
}

fn parse_delay(text: &[u8]) -> Option<i64> {
    match text.first()? {
        b'{' => json::parse_request::<RefusalOptions>(text, false).ok().map(|it| it.delay),
        _ => time::parse_duration(std::str::from_utf8(text).ok()?),
    }
}

impl LiveConsumer {
    /// Whether acknowledgements are listened for.
    pub(super) fn takes_acks(&self) -> bool {
        matches!(self.config.ack_policy, AckPolicy::All | AckPolicy::Explicit)
    }

    /// Takes an acknowledgement.
    pub(super) fn ack(&mut self, ack: &AckMessage<'_>, turn: &mut Turn<'_>) {
        if self.config.inactive_threshold > 0 {
            self.activity = turn.moment.mono;
        }
        let about = ack.about;
        let sequence = about.sequence;
        let delivered = AckedDelivery {
            consumer_sequence: about.consumer_sequence,
            sequence,
            deliveries: about.deliveries,
        };
        match AckWord::parse(ack.body) {
            AckWord::Done => {
                if self.acknowledge(delivered, true, turn) {
                    self.confirm(ack.reply.as_ref(), turn);
                }
            }
            AckWord::Next(body) => {
                self.acknowledge(delivered, true, turn);
                if let Some(reply) = ack.reply.clone() {
                    self.pull(&PullMessage { reply, headers: b"", body }, turn);
                }
            }
            AckWord::Never(reason) => {
                let is_known = self.acknowledge(delivered, false, turn);
                let reason = String::from_utf8_lossy(reason).into();
                let event = ConsumerEvent::Terminated(delivered, reason);
                turn.out.advise(Advisory::new(&self.name, turn.moment, event));
                if is_known {
                    self.confirm(ack.reply.as_ref(), turn);
                }
            }
            word => {
                match word {
                    AckWord::Again(delay) => self.refuse(delivered, delay, turn),
                    AckWord::InProgress => self.in_progress(sequence, turn),
                    _ => {}
                }
                if let Some(reply) = ack.reply.clone().filter(|_| sequence != 0) {
                    turn.out.push(ConsumerOutput::Confirm { reply, waits: false });
                }
            }
        }
    }

    /// Confirms an acknowledgement when it is kept.
    fn confirm(&self, reply: Option<&Bytes>, turn: &mut Turn<'_>) {
        let Some(reply) = reply.cloned() else { return };
        if self.is_kept(turn.about) {
            turn.out.confirms.push(reply);
            turn.out.keep_by(turn.moment.mono);
        } else {
            turn.out.push(ConsumerOutput::Confirm { reply, waits: false });
        }
    }

    /// Acknowledges a message. Returns whether it had been delivered.
    fn acknowledge(&mut self, about: AckedDelivery, samples: bool, turn: &mut Turn<'_>) -> bool {
        let sequence = about.sequence;
        if sequence == 0 || sequence >= self.place.next().max(self.acks.delivered.stream + 1) {
            return false;
        }
        if self.config.ack_policy != AckPolicy::Explicit {
            let to = SequencePair { consumer: about.consumer_sequence, stream: sequence };
            self.acknowledge_upto(to, turn);
            return true;
        }
        let since = self.acks.pending(sequence).map(|message| message.since);
        if let Some(since) = since.filter(|_| samples && self.samples(turn)) {
            let ack_time = turn.moment.mono_time().saturating_sub(since);
            let event = ConsumerEvent::Acknowledged(about, ack_time);
            turn.out.advise(Advisory::new(&self.name, turn.moment, event));
        }
        self.acknowledge_one(sequence, turn);
        true
    }

    /// Acknowledges one message.
    pub(super) fn acknowledge_one(&mut self, sequence: u64, turn: &mut Turn<'_>) {
        let is_given_up = self.acks.is_given_up(sequence);
        if self.acks.acknowledge(sequence).is_some() || is_given_up {
            turn.out.acknowledged.push(sequence);
        }
        self.acknowledged_at(turn);
    }

    /// Acknowledges all messages up to one.
    pub(super) fn acknowledge_upto(&mut self, to: SequencePair, turn: &mut Turn<'_>) {
        let floor = self.acks.floor;
        let stream = to.stream.min(self.acks.delivered.stream);
        if to.consumer <= floor.consumer || stream <= floor.stream {
            return;
        }
        let taken = self.acks.acknowledge_all(SequencePair { stream, ..to });
        turn.out.acknowledged.extend(taken);
        self.acknowledged_at(turn);
    }

    fn acknowledged_at(&mut self, turn: &mut Turn<'_>) {
        self.last_acked = Some(turn.moment.wall_time());
        turn.out.keep_by(turn.moment.after(KEEP_ACK_WITHIN.cast_signed()));
    }

    /// Whether a metric of this acknowledgement is published.
    fn samples(&self, turn: &mut Turn<'_>) -> bool {
        match self.config.sample_percentage() {
            0 => false,
            percentage => turn.rng.u32(..100) < percentage,
        }
    }

    /// Delivers a message again, after a delay if there is one.
    fn refuse(&mut self, about: AckedDelivery, delay: Option<i64>, turn: &mut Turn<'_>) {
        let (number, sequence) = (about.consumer_sequence, about.sequence);
        let is_delivered =
            number > self.acks.floor.consumer && number <= self.acks.delivered.consumer + 1;
        if !is_delivered || self.acks.pending(sequence).is_none() {
            return;
        }
        let event = ConsumerEvent::Refused(about);
        turn.out.advise(Advisory::new(&self.name, turn.moment, event));
        match delay {
            None => self.acks.redeliver(sequence),
            Some(delay) => {
                let wait = self.config.wait_of(self.acks.redeliveries(sequence)).unwrap_or(0);
                let since = turn.moment.mono_time().saturating_sub(wait).saturating_add(delay);
                self.acks.wait_from(sequence, since, &self.config);
            }
        }
        turn.out.keep_by(turn.moment.after(KEEP_ACK_WITHIN.cast_signed()));
    }

    /// Lets the wait of a message begin anew.
    fn in_progress(&mut self, sequence: u64, turn: &mut Turn<'_>) {
        if self.acks.pending(sequence).is_some() {
            self.acks.wait_from(sequence, turn.moment.mono_time(), &self.config);
            turn.out.keep_by(turn.moment.after(KEEP_ACK_WITHIN.cast_signed()));
        }
    }

    /// Looks for messages whose wait has ended: they are delivered again, or given up.
    pub(super) fn look_at_waits(&mut self, turn: &mut Turn<'_>) {
        let now = turn.moment.mono_time();
        let mut due = Vec::new();
        while let Some(sequence) = self.acks.pop_due(now, &self.config) {
            due.push(sequence);
        }
        if !due.is_empty() {
            // Who works on a message is heard of until its wait ends.
            self.activity = self.activity.max(turn.moment.mono);
        }
        due.sort_unstable();
        for sequence in due {
            if !self.give_up_if_due(sequence, turn) {
                self.acks.redeliver(sequence);
            }
        }
    }

    /// Gives a message up that was delivered as often as it may be.
    pub(super) fn give_up_if_due(&mut self, sequence: u64, turn: &mut Turn<'_>) -> bool {
        let deliveries = self.acks.redeliveries(sequence) + 1;
        if self.config.deliveries_max().is_none_or(|max| deliveries < max) {
            return false;
        }
        let consumer_sequence =
            self.acks.pending(sequence).map_or(0, |message| message.consumer_sequence);
        let about = AckedDelivery { consumer_sequence, sequence, deliveries };
        let event = ConsumerEvent::MaxDeliveries(about);
        turn.out.advise(Advisory::new(&self.name, turn.moment, event));
        self.acks.give_up(sequence);
        turn.out.keep_by(turn.moment.after(KEEP_ACK_WITHIN.cast_signed()));
        true
    }

    /// Gives a message up that waits for its acknowledgement and was removed from the stream.
    pub(super) fn terminate_removed(&mut self, sequence: u64, turn: &mut Turn<'_>) {
        let Some(message) = self.acks.pending(sequence) else { return };
        let about = AckedDelivery {
            consumer_sequence: message.consumer_sequence,
            sequence,
            // Here the first delivery does not count, unless it is the only one.
            deliveries: self.acks.redeliveries(sequence).max(1),
        };
        self.acks.acknowledge(sequence);
        self.acknowledged_at(turn);
        let reason: Arc<str> = DELETED_REASON.into();
        let event = ConsumerEvent::Terminated(about, reason);
        turn.out.advise(Advisory::new(&self.name, turn.moment, event));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subject_is_read_in_both_forms() {
        let short = AckSubject::parse(b"$JS.ACK.S.C.1.2.3.4.5").unwrap();
        assert_eq!((short.stream, short.consumer), (&b"S"[..], &b"C"[..]));
        assert_eq!((short.deliveries, short.sequence, short.consumer_sequence), (1, 2, 3));
        assert_eq!((short.time, short.pending), (4, 5));
        for long in ["$JS.ACK._.hash.S.C.1.2.3.4.5", "$JS.ACK.hub.hash.S.C.1.2.3.4.5.random.x"] {
            assert_eq!(AckSubject::parse(long.as_bytes()), Some(short), "{long}");
        }
        for none in ["", "$JS.ACK.S.C.1.2.3.4", "$JS.ACK.a.S.C.1.2.3.4.5", "$JS.FC.S.C.1.2.3.4.5"] {
            assert_eq!(AckSubject::parse(none.as_bytes()), None, "{none}");
        }
        let odd = AckSubject::parse(b"$JS.ACK.S.C.x..-1.99999999999999999999.5").unwrap();
        assert_eq!((odd.deliveries, odd.sequence, odd.time), (u64::MAX, u64::MAX, u64::MAX));
        let many = [&b"$JS.ACK.a.b.c.d.1.2.3.4.5"[..], &b".x".repeat(40)].concat();
        assert_eq!(AckSubject::parse(&many).unwrap().pending, 5);
    }

    #[test]
    fn bodies_say_what_is_to_be_done() {
        for done in ["", "+ACK", "+OK"] {
            assert_eq!(AckWord::parse(done.as_bytes()), AckWord::Done);
        }
        assert_eq!(AckWord::parse(b"+NXT 5"), AckWord::Next(b" 5"));
        assert_eq!(AckWord::parse(b"-NAK"), AckWord::Again(None));
        assert_eq!(AckWord::parse(b"-NAK {\"delay\":7}"), AckWord::Again(Some(7)));
        assert_eq!(AckWord::parse(b"-NAK 5s"), AckWord::Again(Some(5_000_000_000)));
        assert_eq!(AckWord::parse(b"-NAK soon"), AckWord::Again(None));
        assert_eq!(AckWord::parse(b"+TERM  why "), AckWord::Never(b"why"));
        assert_eq!(AckWord::parse(b"+WPI"), AckWord::InProgress);
        for other in ["+ACKS", "ok", "+WPI x"] {
            assert_eq!(AckWord::parse(other.as_bytes()), AckWord::Unknown);
        }
    }
}
