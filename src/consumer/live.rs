//! A consumer as it runs: what it delivers next, to whom, and when it is to be looked at again.

use std::sync::Arc;

use bytes::Bytes;

use super::advisory::{Advisory, ConsumerEvent};
use super::config::{AckPolicy, ConsumerConfig, ReplayPolicy};
use super::consumers::StreamAbout;
use super::cursor::{NextUnread, ReadPlace};
use super::output::{ConsumerOutput, Delivery, Outbound};
use super::pending::{ACK_PENDING_MAX, AckState};
use super::pulls::{PullQueue, ServedMessage};
use super::push::PushState;
use super::source::{ConsumerSource, Look, Moment};
use crate::store::StoredMessage;
use crate::stream::Retention;
use crate::stream::headers::{LINE, name::MSG_SIZE};
use crate::stream::time::Timestamp;

/// Time within which deliveries are kept, in nanoseconds.
const KEEP_DELIVERY_WITHIN: u64 = 50_000_000;
/// Shortest gap between messages that a replay keeps, in nanoseconds.
const SHORTEST_GAP: u64 = 1_000_000;

/// Things that all consumers of a stream need in one call.
pub(super) struct Turn<'a> {
    pub(super) moment: Moment,
    pub(super) source: &'a mut dyn ConsumerSource,
    pub(super) out: &'a mut Outbound,
    pub(super) about: &'a StreamAbout,
    pub(super) rng: &'a mut fastrand::Rng,
}

/// The pace at which messages were stored.
#[derive(Debug)]
struct ReplayPace {
    /// The last message that was there at the start.
    upto: u64,
    /// Time of the last message that was delivered.
    message_time: u64,
    /// The time at which that was.
    delivered_at: u64,
}

impl ReplayPace {
    /// Time at which a message may go.
    fn free_at(&self, message_time: u64) -> u64 {
        let gap = message_time.saturating_sub(self.message_time);
        if self.message_time == 0 || gap <= SHORTEST_GAP {
            return 0;
        }
        self.delivered_at.saturating_add(gap)
    }
}

/// A consumer of a stream.
#[derive(Debug)]
pub(super) struct LiveConsumer {
    pub(super) name: Arc<str>,
    /// Number of the consumer in records.
    pub(super) number: u32,
    pub(super) created: Timestamp,
    pub(super) config: Box<ConsumerConfig>,
    pub(super) place: ReadPlace,
    pub(super) acks: AckState,
    pub(super) pulls: PullQueue,
    /// `None` if messages are pulled.
    pub(super) push: Option<Box<PushState>>,
    pace: Option<Box<ReplayPace>>,
    /// The last time at which a client was heard of.
    pub(super) activity: u64,
    pub(super) last_delivered: Option<i64>,
    pub(super) last_acked: Option<i64>,
    /// Whether nothing is delivered now.
    pub(super) is_paused: bool,
    /// Time before which the next message may not go.
    held_until: Option<u64>,
    /// Time for which the consumer is in the list of times.
    pub(super) wakes_at: Option<u64>,
    pub(super) is_ready: bool,
    /// Whether new messages are of interest.
    pub(super) is_hungry: bool,
    /// Whether changes are to be kept.
    pub(super) is_listed: bool,
    /// The last sequence of the last messages that were not all delivered, as it was kept.
    pub(super) restored_upto: u64,
}

/// The state of a consumer that has been looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// Waiting for a client, an acknowledgement or a time.
    Idle,
    /// Waiting for new messages.
    Hungry,
    /// Able to do more at once.
    Busy,
    /// Waiting for a message to come from the disk.
    Cold,
    /// To be ended, as no client has been heard of.
    Over,
}

/// A message that is to be delivered.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    sequence: u64,
    is_again: bool,
    time: u64,
    subject_bytes: usize,
    headers_bytes: usize,
    payload_bytes: usize,
}

/// The next thing to deliver, or why there is none.
enum NextStep {
    Deliver(Candidate),
    Wait(Rest),
    /// Too many messages wait for their acknowledgement.
    Full,
}

impl LiveConsumer {
    /// A consumer that is at a place.
    pub(super) fn new(
        name: Arc<str>,
        number: u32,
        created: Timestamp,
        config: ConsumerConfig,
        place: ReadPlace,
    ) -> Self {
        Self {
            name,
            number,
            created,
            config: Box::new(config),
            place,
            acks: AckState::default(),
            pulls: PullQueue::default(),
            push: None,
            pace: None,
            activity: 0,
            last_delivered: None,
            last_acked: None,
            is_paused: false,
            held_until: None,
            wakes_at: None,
            is_ready: false,
            is_hungry: false,
            is_listed: false,
            restored_upto: 0,
        }
    }

    /// Begins to run.
    pub(super) fn begin(&mut self, turn: &mut Turn<'_>) {
        self.activity = turn.moment.mono;
        self.is_paused = self.is_paused_at(turn.moment);
        let bounds = turn.source.bounds();
        let replays = self.config.replay_policy == ReplayPolicy::Original;
        let pace = ReplayPace { upto: bounds.last, message_time: 0, delivered_at: 0 };
        self.pace = replays.then(|| Box::new(pace));
        if self.config.is_push() {
            let push = PushState::new(&self.config, turn.about.message_bytes_max);
            self.push = Some(Box::new(push));
            self.look_for_interest(turn);
        }
    }

    /// Whether the consumer outlives a restart.
    pub(super) fn is_kept(&self, about: &StreamAbout) -> bool {
        !about.is_memory && !self.config.mem_storage && !self.config.direct
    }

    /// Whether delivery is paused at a moment.
    pub(super) fn is_paused_at(&self, moment: Moment) -> bool {
        self.config.pause_until.is_some_and(|until| until.0 > moment.wall_time())
    }

    /// The last sequences of the consumer and the stream, as signs of life tell them.
    pub(super) fn last_sequences(&self) -> (u64, u64) {
        (self.acks.delivered.consumer, self.place.next().saturating_sub(1))
    }

    /// Number of messages that follow.
    pub(super) fn pending(&mut self, turn: &mut Turn<'_>) -> u64 {
        self.place.pending(&self.config, turn.source)
    }

    /// Whether a message is still to be acknowledged by this consumer: then a stream that keeps
    /// messages for its consumers keeps it.
    pub(super) fn needs(&self, sequence: u64, subject: &[u8]) -> bool {
        let (acks, floor) = (&self.acks, self.acks.floor.stream);
        let is_open = match self.config.ack_policy {
            AckPolicy::Explicit if sequence > floor => {
                sequence >= self.place.next() || acks.pending(sequence).is_some()
            }
            AckPolicy::Explicit => false,
            _ => sequence > floor,
        };
        (is_open || acks.redeliveries(sequence) > 0) && self.config.matches(subject)
    }

    /// Does what is due and delivers, while there are steps.
    pub(super) fn look(&mut self, steps: &mut usize, turn: &mut Turn<'_>) -> Rest {
        self.held_until = None;
        self.look_at_waits(turn);
        self.look_at_pause(turn);
        if self.push.as_ref().is_some_and(|push| push.is_moved) {
            self.look_for_interest(turn);
        }
        let (mut rest, mut is_full) = (Rest::Idle, false);
        while !self.is_paused && self.has_receiver() {
            if *steps == 0 {
                return Rest::Busy;
            }
            *steps -= 1;
            match self.next_step(turn) {
                NextStep::Deliver(candidate) => {
                    if !self.deliver(candidate, turn) {
                        // A request may wait for more messages than there are.
                        rest = if self.held_until.is_some() { Rest::Idle } else { Rest::Hungry };
                        break;
                    }
                }
                NextStep::Wait(Rest::Busy) => {
                    // A search is worth as much as all steps of a turn.
                    *steps = 0;
                    return Rest::Busy;
                }
                NextStep::Wait(why) => {
                    rest = why;
                    break;
                }
                NextStep::Full => {
                    is_full = true;
                    break;
                }
            }
        }
        self.end_replay();
        if self.config.is_push() {
            self.push_heartbeat(turn);
        } else {
            let is_at_end = !is_full && rest != Rest::Cold && self.held_until.is_none();
            self.look_at_requests(is_at_end, turn);
        }
        if self.is_over(turn) { Rest::Over } else { rest }
    }

    fn has_receiver(&self) -> bool {
        self.push.as_ref().map_or(!self.pulls.is_empty(), |push| push.has_room())
    }

    /// Notices the end of a pause.
    fn look_at_pause(&mut self, turn: &mut Turn<'_>) {
        if self.is_paused && !self.is_paused_at(turn.moment) {
            self.is_paused = false;
            self.advise_pause(turn);
        }
    }

    /// Tells that a pause has begun or ended.
    pub(super) fn advise_pause(&self, turn: &mut Turn<'_>) {
        let until = self.config.pause_until;
        let event = ConsumerEvent::Paused { paused: self.is_paused, until };
        turn.out.advise(Advisory::new(&self.name, turn.moment, event));
    }

    fn end_replay(&mut self) {
        if self.pace.as_ref().is_some_and(|pace| self.place.next() > pace.upto) {
            self.pace = None;
        }
    }

    fn next_step(&mut self, turn: &mut Turn<'_>) -> NextStep {
        while let Some(sequence) = self.acks.next_redelivery() {
            if self.give_up_if_due(sequence, turn) {
                continue;
            }
            match turn.source.look(sequence) {
                Look::Now(message) => return NextStep::Deliver(Candidate::of(&message, true)),
                Look::Cold => return NextStep::Wait(Rest::Cold),
                Look::None => self.terminate_removed(sequence, turn),
            }
        }
        if self.is_full() {
            return NextStep::Full;
        }
        match self.place.find(&self.config, turn.source) {
            NextUnread::None => NextStep::Wait(Rest::Hungry),
            NextUnread::Later => NextStep::Wait(Rest::Busy),
            NextUnread::Found(sequence) => match turn.source.look(sequence) {
                Look::Now(message) => NextStep::Deliver(Candidate::of(&message, false)),
                Look::Cold => NextStep::Wait(Rest::Cold),
                Look::None => {
                    // It was removed, or is damaged.
                    self.place.take(sequence);
                    self.place.recount();
                    NextStep::Wait(Rest::Busy)
                }
            },
        }
    }

    /// Whether too many messages wait for their acknowledgement.
    fn is_full(&self) -> bool {
        let limit = usize::try_from(self.config.max_ack_pending).ok().filter(|limit| *limit > 0);
        let limit = limit.unwrap_or(ACK_PENDING_MAX).min(ACK_PENDING_MAX);
        self.config.ack_policy != AckPolicy::None && self.acks.pending_count() >= limit
    }

    /// Delivers a message. Returns false if it cannot go now.
    fn deliver(&mut self, candidate: Candidate, turn: &mut Turn<'_>) -> bool {
        let now = turn.moment.mono;
        let mut delivery = self.delivery_of(candidate, turn);
        let ack_bytes = delivery.ack_subject_bytes(&turn.about.name);
        let stored = candidate.headers_bytes + candidate.payload_bytes;
        let content = if self.config.headers_only { candidate.bare_bytes() } else { stored };
        let bytes = (candidate.subject_bytes + ack_bytes + content) as u64;
        let paced = self.pace.as_ref().map_or(0, |pace| pace.free_at(candidate.time));
        let rated = self.push.as_ref().map_or(0, |push| push.free_at(bytes, now));
        let free_at = paced.max(rated);
        if free_at > now {
            self.held_until = Some(free_at);
            return false;
        }
        let mut completed = None;
        if self.push.is_none() {
            let message = ServedMessage {
                bytes: i64::try_from(bytes).unwrap_or(i64::MAX),
                pending: i64::try_from(delivery.pending + 1).unwrap_or(i64::MAX),
                ack_pending: i64::try_from(self.acks.pending_count()).unwrap_or(i64::MAX),
            };
            let Some(request) = self.choose(message, turn) else { return false };
            completed = request.completed();
            (delivery.to, delivery.pin) = (request.to, request.pin);
            self.activity = now;
        }
        self.count_delivery(candidate, turn);
        let to_bytes = delivery.to.len();
        turn.out.push(ConsumerOutput::Deliver(delivery));
        if let Some(status) = completed {
            turn.out.status(status);
        }
        if self.push.is_some() {
            self.pushed((to_bytes + ack_bytes + content) as u64, turn);
        }
        true
    }

    fn delivery_of(&mut self, candidate: Candidate, turn: &mut Turn<'_>) -> Delivery {
        let is_new = !candidate.is_again;
        let pending = self.pending(turn).saturating_sub(u64::from(is_new));
        let redeliveries = self.acks.redeliveries(candidate.sequence);
        let (to, queue) = match &self.push {
            Some(push) => (push.subject.clone(), push.group.clone()),
            None => (Bytes::new(), None),
        };
        Delivery {
            consumer: self.name.clone(),
            to,
            queue,
            sequence: candidate.sequence,
            deliveries: if is_new { 1 } else { redeliveries + 2 },
            consumer_sequence: self.acks.delivered.consumer + 1,
            time: candidate.time,
            pending,
            headers_only: self.config.headers_only,
            pin: None,
        }
    }

    fn count_delivery(&mut self, candidate: Candidate, turn: &mut Turn<'_>) {
        let sequence = candidate.sequence;
        if !candidate.is_again {
            self.place.take(sequence);
        }
        if self.config.ack_policy == AckPolicy::None {
            self.acks.deliver_without_ack(sequence);
            if turn.about.retention != Retention::Limits {
                turn.out.acknowledged.push(sequence);
            }
        } else {
            self.acks.deliver(sequence, turn.moment.mono_time(), &self.config);
        }
        self.last_delivered = Some(turn.moment.wall_time());
        if let Some(pace) = &mut self.pace {
            (pace.message_time, pace.delivered_at) = (candidate.time, turn.moment.mono);
        }
        turn.out.keep_by(turn.moment.after(KEEP_DELIVERY_WITHIN.cast_signed()));
    }

    /// The time at which the consumer ends, if no client is heard of until then.
    fn ends_at(&self) -> Option<u64> {
        let threshold = u64::try_from(self.config.inactive_threshold).ok()?;
        let is_bound = match &self.push {
            Some(push) => push.is_active,
            None => !self.pulls.is_empty(),
        };
        if threshold == 0 || is_bound {
            return None;
        }
        // Who works on a message may be heard of until its wait ends.
        let working = self.acks.next_due().and_then(|due| u64::try_from(due).ok());
        let from = if self.push.is_none() { working.unwrap_or(0) } else { 0 };
        Some(self.activity.max(from).saturating_add(threshold))
    }

    fn is_over(&mut self, turn: &mut Turn<'_>) -> bool {
        let now = turn.moment.mono;
        let threshold = self.config.inactive_threshold.unsigned_abs();
        // Requests of clients that left keep nobody here.
        let is_quiet = self.activity.saturating_add(threshold) <= now;
        if threshold > 0 && is_quiet && !self.pulls.is_empty() {
            self.drop_unheard(turn);
        }
        self.ends_at().is_some_and(|end| end <= now)
    }

    /// The next time at which the consumer is to be looked at.
    pub(super) fn next_due(&self, moment: Moment) -> Option<u64> {
        let now = moment.mono;
        let waits = self.acks.next_due().map(|due| u64::try_from(due).unwrap_or(0));
        let pause = self.config.pause_until.filter(|_| self.is_paused);
        let pause = pause.map(|until| moment.after(until.0.saturating_sub(moment.wall_time())));
        let push = self.push.as_ref().and_then(|push| push.next_due());
        let threshold = self.config.inactive_threshold.unsigned_abs();
        let quiet = (threshold > 0 && !self.pulls.is_empty())
            .then(|| self.activity.max(now).saturating_add(threshold));
        let times =
            [waits, pause, push, quiet, self.pulls.next_due(), self.ends_at(), self.held_until];
        times.into_iter().flatten().min()
    }

    /// Bytes of memory, about.
    pub(super) fn memory_bytes(&self) -> usize {
        let push =
            self.push.as_ref().map_or(0, |push| size_of::<PushState>() + push.memory_bytes());
        let config = size_of::<ConsumerConfig>() + self.name.len() * 3;
        let parts =
            [self.place.memory_bytes(), self.acks.memory_bytes(), self.pulls.memory_bytes()];
        size_of::<Self>() + push + config + parts.iter().sum::<usize>()
    }
}

impl Candidate {
    fn of(message: &StoredMessage<'_>, is_again: bool) -> Self {
        Self {
            sequence: message.sequence,
            is_again,
            time: message.time,
            subject_bytes: message.subject.len(),
            headers_bytes: message.headers.len(),
            payload_bytes: message.payload.len(),
        }
    }

    /// Bytes of the headers with the size of the payload, which is left out.
    fn bare_bytes(&self) -> usize {
        let before = if self.headers_bytes == 0 { LINE.len() + 2 } else { self.headers_bytes };
        let size = itoa::Buffer::new().format(self.payload_bytes).len();
        before + MSG_SIZE.len() + 2 + size + 2
    }
}
