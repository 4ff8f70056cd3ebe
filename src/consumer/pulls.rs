//! Requests for messages: what they ask for, how they wait, and which one is served next.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;

use super::advisory::{Advisory, ConsumerEvent, random_text};
use super::config::{ConsumerConfig, PriorityPolicy};
use super::live::{LiveConsumer, Turn};
use super::output::{Shortfall, StatusMessage};
use crate::stream::{headers, json, time};

/// Most requests of one consumer that wait, whatever it asks for.
const REQUESTS_MAX: usize = 1 << 16;
/// Time between two looks at all requests of a full queue, in nanoseconds.
const CHECK_INTERVAL: u64 = time::SECOND;
/// Characters of the id of a pinned client.
const PIN_CHARACTERS: usize = 22;
const PRIORITY_MAX: i64 = 9;

/// A request for messages, as it was sent.
#[derive(Debug, Clone)]
pub struct PullMessage<'a> {
    /// The subject that messages are sent to.
    pub reply: Bytes,
    /// Headers of the request.
    pub headers: &'a [u8],
    /// Body of the request.
    pub body: &'a [u8],
}

/// The body of a request. Durations are in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
struct PullWish {
    expires: i64,
    batch: i64,
    max_bytes: i64,
    no_wait: bool,
    idle_heartbeat: i64,
    group: String,
    min_pending: i64,
    min_ack_pending: i64,
    id: String,
    priority: i64,
    /// Whether the request can have said anything about groups.
    #[serde(skip)]
    is_formal: bool,
}

impl PullWish {
    /// Reads a body: nothing, a number of messages, or an object.
    ///
    /// # Errors
    ///
    /// Returns the reason why it is a bad request.
    fn parse(body: &[u8]) -> Result<Self, String> {
        let body = body.trim_ascii();
        if body.first() != Some(&b'{') {
            let number = std::str::from_utf8(body).ok().and_then(|text| text.parse().ok());
            return Ok(Self { batch: number.unwrap_or(1), ..Self::default() });
        }
        let mut wish: Self =
            json::parse_request(body, false).map_err(|error| error.json_mistake().to_owned())?;
        if wish.idle_heartbeat > 0 && wish.idle_heartbeat.saturating_mul(2) > wish.expires {
            return Err("heartbeat value too large".to_owned());
        }
        wish.is_formal = true;
        Ok(wish)
    }

    /// Checks a request against the limits of its consumer.
    ///
    /// # Errors
    ///
    /// Returns the status for a request over a limit.
    fn check(&self, config: &ConsumerConfig) -> Result<(), String> {
        if config.max_batch > 0 && self.batch > config.max_batch {
            return Err(format!("409 Exceeded MaxRequestBatch of {}", config.max_batch));
        }
        if config.max_expires > 0 && self.expires > config.max_expires {
            let longest = time::duration(config.max_expires.unsigned_abs());
            return Err(format!("409 Exceeded MaxRequestExpires of {longest}"));
        }
        if config.max_bytes > 0 && self.max_bytes > config.max_bytes {
            return Err(format!("409 Exceeded MaxRequestMaxBytes of {}", config.max_bytes));
        }
        if self.is_formal { self.check_group(config) } else { Ok(()) }
    }

    fn check_group(&self, config: &ConsumerConfig) -> Result<(), String> {
        let policy = config.priority_policy;
        let has_minimum = self.min_pending != 0 || self.min_ack_pending != 0;
        let why = if has_minimum && policy != PriorityPolicy::Overflow {
            "Not a Overflow Priority consumer"
        } else if !self.id.is_empty() && policy != PriorityPolicy::PinnedClient {
            "Not a Pinned Client Priority consumer"
        } else if !(0..=PRIORITY_MAX).contains(&self.priority) {
            "Priority must be between 0 and 9"
        } else if policy == PriorityPolicy::None {
            return Ok(());
        } else if self.group.is_empty() {
            "Priority Group missing"
        } else if !config.priority_groups.contains(&self.group) {
            "Invalid Priority Group"
        } else {
            return Ok(());
        };
        Err(format!("400 Bad Request - {why}"))
    }
}

/// The terms of a request of a group.
#[derive(Debug)]
struct GroupWish {
    group: Arc<str>,
    min_pending: i64,
    min_ack_pending: i64,
    id: String,
    priority: i64,
}

/// A request that waits.
#[derive(Debug)]
struct PullRequest {
    reply: Bytes,
    /// Messages that it still wants.
    left: i64,
    sent: u64,
    /// Bytes that it still takes; 0 is no limit.
    bytes: i64,
    expires: Option<u64>,
    heartbeat: i64,
    next_heartbeat: Option<u64>,
    no_wait: bool,
    group: Option<Box<GroupWish>>,
}

impl PullRequest {
    fn shortfall(&self) -> Shortfall {
        Shortfall { messages: self.left, bytes: self.bytes }
    }

    fn ends_with(&self, status: &str) -> StatusMessage {
        StatusMessage::with_shortfall(self.reply.clone(), status, self.shortfall())
    }

    fn is_expired(&self, now: u64) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }

    fn priority(&self) -> i64 {
        self.group.as_ref().map_or(i64::MAX, |group| group.priority)
    }
}

/// The client of a group that is the only one to be served.
#[derive(Debug)]
pub(super) struct PinnedClient {
    pub(super) id: Arc<str>,
    pub(super) group: Arc<str>,
    /// Time since which it is so, in nanoseconds since 1970.
    pub(super) since: i64,
    until: u64,
}

/// The requests of one consumer.
#[derive(Debug, Default)]
pub(super) struct PullQueue {
    waiting: VecDeque<PullRequest>,
    /// Time of the first request, or of the last look at a full queue.
    checked_at: Option<u64>,
    pub(super) pin: Option<Box<PinnedClient>>,
}

/// A request that gets the next message.
#[derive(Debug)]
pub(super) struct ServedRequest {
    pub(super) to: Bytes,
    pub(super) pin: Option<Arc<str>>,
    /// Messages and bytes that it lacks now.
    lacks: Shortfall,
}

impl ServedRequest {
    /// The status that tells a request that it is filled, with bytes to spare.
    pub(super) fn completed(&self) -> Option<StatusMessage> {
        let is_filled = self.lacks.messages <= 0 && self.lacks.bytes > 0;
        let status = "409 Batch Completed";
        is_filled.then(|| StatusMessage::with_shortfall(self.to.clone(), status, self.lacks))
    }
}

/// A message that a request has to fit to be served.
#[derive(Debug, Clone, Copy)]
pub(super) struct ServedMessage {
    /// Bytes of the message with its subjects.
    pub(super) bytes: i64,
    /// Messages that wait, with this one.
    pub(super) pending: i64,
    /// Messages that wait for an acknowledgement.
    pub(super) ack_pending: i64,
}

impl PullQueue {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The next time at which something is due.
    pub(super) fn next_due(&self) -> Option<u64> {
        let all = self.waiting.iter();
        let times = all.flat_map(|request| [request.expires, request.next_heartbeat]);
        times.chain([self.pin.as_ref().map(|pin| pin.until)]).flatten().min()
    }

    /// Ends all requests, each with this status if there is one.
    pub(super) fn end_all(&mut self, out: &mut dyn FnMut(StatusMessage), with_shortfall: bool) {
        for request in self.waiting.drain(..) {
            out(if with_shortfall {
                request.ends_with("409 Server Shutdown")
            } else {
                StatusMessage::new(request.reply, "409 Consumer Deleted")
            });
        }
    }

    fn push(&mut self, request: PullRequest, policy: PriorityPolicy) {
        if policy != PriorityPolicy::Prioritized {
            self.waiting.push_back(request);
            return;
        }
        let priority = request.priority();
        let at = self.waiting.partition_point(|other| other.priority() <= priority);
        self.waiting.insert(at, request);
    }

    /// Drops requests whose inbox nobody listens to any more.
    fn drop_unheard(&mut self, is_heard: &dyn Fn(&[u8]) -> bool) {
        self.waiting.retain(|request| is_heard(&request.reply));
    }

    /// Bytes of memory beside the queue itself, about.
    pub(super) fn memory_bytes(&self) -> usize {
        self.waiting.capacity() * size_of::<PullRequest>()
    }
}

impl LiveConsumer {
    /// Takes a request for messages.
    pub(super) fn pull(&mut self, pull: &PullMessage<'_>, turn: &mut Turn<'_>) {
        let status = if headers::needs_higher_level(pull.headers) {
            Some("412 Required Api Level".to_owned())
        } else {
            self.accept(pull, turn).err()
        };
        if let Some(status) = status.filter(|status| !status.is_empty()) {
            turn.out.status(StatusMessage::new(pull.reply.clone(), &status));
        }
    }

    /// Lets a request wait.
    ///
    /// # Errors
    ///
    /// Returns the status for a request that does not; it is empty if the request is not told.
    fn accept(&mut self, pull: &PullMessage<'_>, turn: &mut Turn<'_>) -> Result<(), String> {
        if self.config.is_push() {
            return Err("409 Consumer is push based".to_owned());
        }
        let wish = PullWish::parse(pull.body).map_err(|why| format!("400 Bad Request - {why}"))?;
        wish.check(&self.config)?;
        self.refresh_pin(&wish, turn.moment.mono)?;
        let max = usize::try_from(self.config.max_waiting).unwrap_or(0).min(REQUESTS_MAX);
        let now = turn.moment.mono;
        let checked_at = *self.pulls.checked_at.get_or_insert(now);
        let is_old = now.saturating_sub(checked_at) > CHECK_INTERVAL;
        if self.pulls.len() >= max && is_old {
            self.pulls.checked_at = Some(now);
            self.look_at_requests(false, turn);
            self.drop_unheard(turn);
        }
        if wish.no_wait {
            self.check_at_once(&wish, turn)?;
        }
        if self.pulls.len() >= max {
            let is_told = wish.idle_heartbeat == 0;
            return Err(if is_told { "409 Exceeded MaxWaiting" } else { "" }.to_owned());
        }
        self.activity = turn.moment.mono;
        let after = |wait: i64| (wait != 0).then(|| turn.moment.after(wait));
        let group = wish.is_formal && self.config.priority_policy != PriorityPolicy::None;
        let request = PullRequest {
            reply: pull.reply.clone(),
            left: wish.batch,
            sent: 0,
            bytes: wish.max_bytes.max(0),
            expires: after(wish.expires),
            heartbeat: wish.idle_heartbeat.max(0),
            next_heartbeat: after(wish.idle_heartbeat.max(0)),
            no_wait: wish.no_wait,
            group: group.then(|| Box::new(GroupWish::of(wish))),
        };
        self.pulls.push(request, self.config.priority_policy);
        Ok(())
    }

    /// Lets the pinned client be so for longer, if the request is its own.
    fn refresh_pin(&mut self, wish: &PullWish, now: u64) -> Result<(), String> {
        let timeout = self.config.priority_timeout.unsigned_abs();
        let Some(pin) = self.pulls.pin.as_mut().filter(|_| wish.is_formal) else { return Ok(()) };
        if wish.id == *pin.id {
            pin.until = now.saturating_add(timeout);
        } else if !wish.id.is_empty() {
            return Err("423 Nats-Pin-Id mismatch".to_owned());
        }
        Ok(())
    }

    /// Checks that a request which does not wait gets something.
    fn check_at_once(&mut self, wish: &PullWish, turn: &mut Turn<'_>) -> Result<(), String> {
        let waiting = self.pending(turn) + self.acks.queued_count() as u64;
        if waiting == 0 {
            if wish.expires == 0 {
                self.activity = turn.moment.mono;
                return Err("404 No Messages".to_owned());
            }
            return Ok(());
        }
        self.look_at_requests(false, turn);
        self.drop_unheard(turn);
        let wanted: i64 = self.pulls.waiting.iter().map(|request| request.left).sum();
        if waiting < u64::try_from(wanted).unwrap_or(0) {
            self.activity = turn.moment.mono;
            return Err("408 Requests Pending".to_owned());
        }
        Ok(())
    }

    /// Drops requests whose inbox nobody listens to any more.
    pub(super) fn drop_unheard(&mut self, turn: &mut Turn<'_>) {
        let source = &*turn.source;
        self.pulls.drop_unheard(&|inbox| source.has_interest(inbox));
    }

    /// Ends requests whose time is over and, at the end of the stream, those that do not wait.
    /// Sends signs of life.
    pub(super) fn look_at_requests(&mut self, is_at_end: bool, turn: &mut Turn<'_>) {
        let now = turn.moment.mono;
        let (consumer, stream) = self.last_sequences();
        let pulls = &mut self.pulls;
        let activity = &mut self.activity;
        pulls.waiting.retain_mut(|request| {
            if request.is_expired(now) {
                turn.out.status(request.ends_with("408 Request Timeout"));
                *activity = (*activity).max(request.expires.unwrap_or(now));
                return false;
            }
            if is_at_end && request.no_wait && (request.expires.is_none() || request.sent > 0) {
                let reply = request.reply.clone();
                turn.out.status(StatusMessage::new(reply, "404 No Messages"));
                *activity = (*activity).max(now);
                return false;
            }
            if request.next_heartbeat.is_some_and(|at| at <= now) {
                let reply = request.reply.clone();
                turn.out.status(StatusMessage::heartbeat(reply, consumer, stream, None));
                request.next_heartbeat = Some(turn.moment.after(request.heartbeat));
            }
            true
        });
        if let Some(pin) = pulls.pin.take_if(|pin| pin.until <= now) {
            let event = ConsumerEvent::Unpinned { group: pin.group, reason: "timeout" };
            turn.out.advise(Advisory::new(&self.name, turn.moment, event));
        }
    }

    /// Chooses the request that gets a message. Requests that cannot have it any more end.
    pub(super) fn choose(
        &mut self,
        message: ServedMessage,
        turn: &mut Turn<'_>,
    ) -> Option<ServedRequest> {
        let now = turn.moment.mono;
        let mut passed = 0;
        while passed < self.pulls.len() {
            let Some(mut request) = self.pulls.waiting.pop_front() else { break };
            if request.is_expired(now) {
                turn.out.status(request.ends_with("408 Request Timeout"));
                self.activity = self.activity.max(request.expires.unwrap_or(now));
                continue;
            }
            let is_pinned_now = match self.pin_of(&request, turn) {
                Pinning::Mine { is_new } => is_new,
                Pinning::Standby => {
                    self.pulls.waiting.push_back(request);
                    passed += 1;
                    continue;
                }
                Pinning::Wrong => {
                    turn.out.status(request.ends_with("423 Nats-Wrong-Pin-Id"));
                    continue;
                }
            };
            if self.overflow_holds(&request, message) {
                self.pulls.waiting.push_back(request);
                passed += 1;
                continue;
            }
            if request.bytes > 0 && message.bytes > request.bytes {
                turn.out.status(request.ends_with("409 Message Size Exceeds MaxBytes"));
                self.release_pin(is_pinned_now);
                continue;
            }
            if !turn.source.has_interest(&request.reply) {
                self.release_pin(is_pinned_now);
                continue;
            }
            if request.bytes > 0 {
                request.bytes -= message.bytes;
                if request.bytes == 0 {
                    request.left = 1;
                }
            }
            return Some(self.serve(request, turn));
        }
        None
    }

    /// Counts a message for a request, which goes to the end if it wants more.
    fn serve(&mut self, mut request: PullRequest, turn: &Turn<'_>) -> ServedRequest {
        request.sent += 1;
        request.left -= 1;
        let pin = self.pulls.pin.as_ref().map(|pin| pin.id.clone());
        let served = ServedRequest { to: request.reply.clone(), pin, lacks: request.shortfall() };
        if request.left > 0 {
            if request.heartbeat > 0 {
                request.next_heartbeat = Some(turn.moment.after(request.heartbeat));
            }
            self.pulls.push(request, self.config.priority_policy);
        }
        served
    }

    fn release_pin(&mut self, is_new: bool) {
        if is_new {
            self.pulls.pin = None;
        }
    }

    /// Whether a request is that of the pinned client, which it becomes if there is none.
    fn pin_of(&mut self, request: &PullRequest, turn: &mut Turn<'_>) -> Pinning {
        if self.config.priority_policy != PriorityPolicy::PinnedClient {
            return Pinning::Mine { is_new: false };
        }
        let id = request.group.as_ref().map_or("", |group| &group.id);
        match &self.pulls.pin {
            Some(pin) if *pin.id == *id => Pinning::Mine { is_new: false },
            Some(_) if id.is_empty() => Pinning::Standby,
            None if id.is_empty() => {
                if let Some(group) = &request.group {
                    self.pin(group.group.clone(), turn);
                }
                Pinning::Mine { is_new: true }
            }
            _ => Pinning::Wrong,
        }
    }

    fn pin(&mut self, group: Arc<str>, turn: &mut Turn<'_>) {
        let id: Arc<str> = random_text(turn.rng, PIN_CHARACTERS).into();
        self.pulls.pin = Some(Box::new(PinnedClient {
            id: id.clone(),
            group: group.clone(),
            since: turn.moment.wall_time(),
            until: turn.moment.after(self.config.priority_timeout),
        }));
        let event = ConsumerEvent::Pinned { group, id };
        turn.out.advise(Advisory::new(&self.name, turn.moment, event));
    }

    /// Whether a request waits for more messages than there are.
    fn overflow_holds(&self, request: &PullRequest, message: ServedMessage) -> bool {
        let Some(group) = &request.group else { return false };
        if self.config.priority_policy != PriorityPolicy::Overflow {
            return false;
        }
        let (pending, ack_pending) = (group.min_pending, group.min_ack_pending);
        let has_minimum = pending > 0 || ack_pending > 0;
        let is_reached = (pending > 0 && pending <= message.pending)
            || (ack_pending > 0 && ack_pending <= message.ack_pending);
        has_minimum && !is_reached
    }
}

/// Whether a request may be served beside the pinned client.
enum Pinning {
    /// A request of the pinned client, perhaps since now.
    Mine { is_new: bool },
    /// A request that waits until there is no pinned client.
    Standby,
    /// A request of a client that is pinned no more.
    Wrong,
}

impl GroupWish {
    fn of(wish: PullWish) -> Self {
        Self {
            group: wish.group.into(),
            min_pending: wish.min_pending,
            min_ack_pending: wish.min_ack_pending,
            id: wish.id,
            priority: wish.priority,
        }
    }
}
