//! Pushed messages: who listens, how much is under way, and how fast.

use bytes::Bytes;

use super::advisory::random_text;
use super::config::{AckPolicy, ConsumerConfig};
use super::live::{LiveConsumer, Turn};
use super::output::{LAST_CONSUMER, LAST_STREAM, StatusMessage};
use super::pending::SequencePair;
use crate::stream::headers;

/// Beginning of subjects on which servers listen for their clients of MQTT, by a pattern.
const OF_SERVERS: &[u8] = b"$MQTT.";
/// Most bytes under way that were not answered for.
const FLOW_BYTES_MAX: u64 = 32 << 20;
/// Bytes under way at the start.
const FLOW_BYTES_START: u64 = FLOW_BYTES_MAX / 16;
/// Random characters at the end of the subject that answers flow control.
const FLOW_CHARACTERS: usize = 4;
const SECOND: u64 = 1_000_000_000;

/// Bytes under way to a receiver that answers for them.
#[derive(Debug)]
pub(super) struct FlowWindow {
    /// Bytes that may be under way.
    window: u64,
    bytes: u64,
    /// Bytes for which the awaited answer is.
    asked_bytes: u64,
    /// The subject of the awaited answer.
    asked: Option<Bytes>,
}

impl FlowWindow {
    fn is_full(&self) -> bool {
        self.bytes > self.window
    }

    /// Counts bytes. Returns whether an answer is to be asked for.
    fn sent(&mut self, bytes: u64) -> bool {
        self.bytes += bytes;
        if self.asked.is_none() {
            return self.bytes > self.window / 2;
        }
        if self.bytes.saturating_sub(self.asked_bytes) >= self.window {
            self.asked_bytes += bytes;
        }
        false
    }

    fn answered(&mut self) {
        self.window = (self.window * 2).min(FLOW_BYTES_MAX);
        self.bytes = self.bytes.saturating_sub(self.asked_bytes);
        (self.asked, self.asked_bytes) = (None, 0);
    }
}

/// A limit of bytes a second.
#[derive(Debug)]
struct RateLimit {
    bytes_per_second: u64,
    /// Bytes that may go at once.
    burst: u64,
    /// Time at which all bytes that went have been paid for.
    paid_at: u64,
}

impl RateLimit {
    fn cost(&self, bytes: u64) -> u64 {
        u64::try_from(u128::from(bytes) * u128::from(SECOND) / u128::from(self.bytes_per_second))
            .unwrap_or(u64::MAX)
    }

    /// Time at which so many bytes may go.
    fn free_at(&self, bytes: u64, now: u64) -> u64 {
        let paid_at = self.paid_at.max(now).saturating_add(self.cost(bytes.min(self.burst)));
        paid_at.saturating_sub(self.cost(self.burst))
    }

    fn pay(&mut self, bytes: u64, now: u64) {
        self.paid_at = self.paid_at.max(now).saturating_add(self.cost(bytes.min(self.burst)));
    }
}

/// A consumer that pushes.
#[derive(Debug, Default)]
pub(super) struct PushState {
    /// The subject that messages are pushed to.
    pub(super) subject: Bytes,
    /// The queue group that messages are pushed to.
    pub(super) group: Option<Bytes>,
    /// Whether somebody listens.
    pub(super) is_active: bool,
    /// Whether the subject is a new one, and nobody has looked for interest yet.
    pub(super) is_moved: bool,
    flow: Option<Box<FlowWindow>>,
    rate: Option<Box<RateLimit>>,
    /// Time of the next sign of life.
    heartbeat_at: Option<u64>,
}

impl PushState {
    pub(super) fn new(config: &ConsumerConfig, message_bytes_max: u64) -> Self {
        let window = FlowWindow { window: FLOW_BYTES_START, bytes: 0, asked_bytes: 0, asked: None };
        let flow = config.flow_control.then(|| Box::new(window));
        let mut push = Self { flow, ..Self::default() };
        push.set_subject(config);
        push.set_rate(config, message_bytes_max);
        push
    }

    /// Sets the subject that messages are pushed to.
    pub(super) fn set_subject(&mut self, config: &ConsumerConfig) {
        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        self.subject = bytes(&config.deliver_subject);
        let group = Some(&config.deliver_group).filter(|group| !group.is_empty());
        self.group = group.map(|group| bytes(group));
    }

    /// Sets the limit of bytes a second.
    pub(super) fn set_rate(&mut self, config: &ConsumerConfig, message_bytes_max: u64) {
        let bytes_per_second = (config.rate_limit_bps / 8).max(1);
        let burst = message_bytes_max.max(1);
        let rate = RateLimit { bytes_per_second, burst, paid_at: 0 };
        self.rate = (config.rate_limit_bps > 0).then(|| Box::new(rate));
    }

    /// Whether a message may go, as far as the receiver is concerned.
    pub(super) fn has_room(&self) -> bool {
        self.is_active && !self.flow.as_ref().is_some_and(|flow| flow.is_full())
    }

    /// Time at which so many bytes may go.
    pub(super) fn free_at(&self, bytes: u64, now: u64) -> u64 {
        self.rate.as_ref().map_or(now, |rate| rate.free_at(bytes, now))
    }

    /// The next time at which something is due.
    pub(super) fn next_due(&self) -> Option<u64> {
        self.heartbeat_at
    }

    /// The subject on which an answer is awaited.
    fn stalled(&self) -> Option<&Bytes> {
        self.flow.as_ref()?.asked.as_ref()
    }

    /// Bytes of memory beside the state itself.
    pub(super) fn memory_bytes(&self) -> usize {
        let flow = self.flow.as_ref().map_or(0, |_| size_of::<FlowWindow>());
        flow + self.rate.as_ref().map_or(0, |_| size_of::<RateLimit>())
    }
}

impl LiveConsumer {
    /// Learns whether somebody listens.
    pub(super) fn look_for_interest(&mut self, turn: &Turn<'_>) {
        let Some(push) = &mut self.push else { return };
        push.is_moved = false;
        let is_of_copy = self.config.direct;
        let has = if is_of_copy {
            turn.source.reaches(&push.subject)
        } else if push.subject.starts_with(OF_SERVERS) {
            turn.source.has_interest(&push.subject)
        } else {
            turn.source.is_bound(&push.subject, push.group.as_deref())
        };
        if has != push.is_active {
            push.is_active = has;
            self.activity = turn.moment.mono;
            push.heartbeat_at = None;
        }
        // Who copies may listen in another account, of which nobody hears: it is looked for.
        let beats = has || is_of_copy;
        if beats && push.heartbeat_at.is_none() && self.config.idle_heartbeat > 0 {
            push.heartbeat_at = Some(turn.moment.after(self.config.idle_heartbeat));
        }
    }

    /// Counts a message that was pushed, and asks for an answer when it is time.
    pub(super) fn pushed(&mut self, bytes: u64, turn: &mut Turn<'_>) {
        let Some(push) = &mut self.push else { return };
        if let Some(rate) = &mut push.rate {
            rate.pay(bytes, turn.moment.mono);
        }
        if self.config.idle_heartbeat > 0 {
            push.heartbeat_at = Some(turn.moment.after(self.config.idle_heartbeat));
        }
        let Some(flow) = &mut push.flow else { return };
        let is_held = self.config.ack_policy == AckPolicy::FlowControl
            && flow.asked.is_none()
            && self.config.max_ack_pending > 0
            && self.acks.pending_count() as u64 >= self.config.max_ack_pending.unsigned_abs();
        if flow.sent(bytes) || is_held {
            self.ask(turn);
        }
    }

    /// Asks for an answer to all that was sent.
    fn ask(&mut self, turn: &mut Turn<'_>) {
        let Some(push) = &mut self.push else { return };
        let (to, Some(flow)) = (push.subject.clone(), &mut push.flow) else { return };
        let random = random_text(turn.rng, FLOW_CHARACTERS);
        let reply = Bytes::from(format!("$JS.FC.{}.{}.{random}", turn.about.name, self.name));
        (flow.asked_bytes, flow.asked) = (flow.bytes, Some(reply.clone()));
        let mut status = StatusMessage::new(to, "100 FlowControl Request");
        status.reply = Some(reply);
        turn.out.status(status);
    }

    /// Takes an answer to flow control.
    pub(super) fn flow_reply(&mut self, subject: &[u8], block: &[u8], turn: &mut Turn<'_>) {
        let Some(flow) = self.push.as_mut().and_then(|push| push.flow.as_mut()) else { return };
        if flow.asked.as_deref() != Some(subject) {
            return;
        }
        flow.answered();
        if self.config.ack_policy != AckPolicy::FlowControl {
            return;
        }
        let number = |name| {
            let text =
                headers::value(block, name).and_then(|value| std::str::from_utf8(value).ok());
            text.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0)
        };
        let to = SequencePair { consumer: number(LAST_CONSUMER), stream: number(LAST_STREAM) };
        if to.stream > 0 {
            self.acknowledge_upto(to, turn);
        }
    }

    /// Sends a sign of life, if it is time.
    pub(super) fn push_heartbeat(&mut self, turn: &mut Turn<'_>) {
        let is_due = |at: u64| at <= turn.moment.mono;
        let Some(push) = &mut self.push else { return };
        if !push.heartbeat_at.is_some_and(is_due) {
            return;
        }
        push.heartbeat_at = Some(turn.moment.after(self.config.idle_heartbeat));
        if self.config.direct {
            self.look_for_interest(turn);
        }
        let Some(push) = self.push.as_ref().filter(|push| push.is_active) else { return };
        let to = push.subject.clone();
        let (consumer, stream) = self.last_sequences();
        let stalled = self.push.as_ref().and_then(|push| push.stalled());
        let is_idle = stalled.is_none() && self.acks.pending_count() > 0;
        let status = StatusMessage::heartbeat(to, consumer, stream, stalled.map(|it| &**it));
        turn.out.status(status);
        if is_idle && self.config.ack_policy == AckPolicy::FlowControl {
            self.ask(turn);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_asks_at_half_and_doubles_with_each_answer() {
        let mut flow = FlowWindow { window: 100, bytes: 0, asked_bytes: 0, asked: None };
        assert!(!flow.sent(50));
        assert!(flow.sent(1) && !flow.is_full());
        (flow.asked, flow.asked_bytes) = (Some(Bytes::from_static(b"a")), flow.bytes);
        assert!(!flow.sent(50) && flow.is_full());
        flow.answered();
        assert_eq!((flow.window, flow.bytes), (200, 50));
        flow.window = FLOW_BYTES_MAX;
        flow.answered();
        assert_eq!(flow.window, FLOW_BYTES_MAX);
    }

    #[test]
    fn bytes_over_the_burst_wait_for_their_second() {
        let mut rate = RateLimit { bytes_per_second: 1000, burst: 500, paid_at: 0 };
        let now = 10 * SECOND;
        assert!(rate.free_at(500, now) <= now);
        rate.pay(500, now);
        assert_eq!(rate.free_at(100, now), now + SECOND / 10);
        assert!(rate.free_at(100_000, now + SECOND) <= now + SECOND);
    }
}
