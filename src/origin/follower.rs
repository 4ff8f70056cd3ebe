//! The state machine of one copy: it asks for a consumer, follows its deliveries, and asks anew.

use std::collections::VecDeque;

use super::answer::{AnsweredConsumer, read_answer};
use super::terms::{AskedConsumer, AskedLevel, FollowTerms};
use crate::consumer::{AckSubject, LAST_CONSUMER, LAST_STREAM, STALLED};
use crate::proto::gateway::plain_subject;
use crate::proto::route::stored_subject;
use crate::store::SEQUENCE_MAX;
use crate::stream::{ApiError, CopyPlace, CopyStart, Incoming, headers};
use crate::subject::is_valid_publish;

const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;
/// Nanoseconds after which a new copy asks for the first time: what made it is answered before.
const BEGIN_NS: u64 = SECOND / 4;
/// Nanoseconds after which a copy looks again whether anybody takes its request.
const LOOK_NS: u64 = SECOND / 2;
/// Nanoseconds between two requests, at least.
const ASK_EVERY_NS: u64 = 2 * SECOND;
/// Nanoseconds for which a copy waits for the answer to its request.
const ANSWER_NS: u64 = 30 * SECOND;
/// Nanoseconds for which a copy waits for the answer about a consumer that is there already.
const RESET_ANSWER_NS: u64 = 5 * SECOND;
/// Nanoseconds without a sign of life after which a copy asks anew.
const SILENCE_NS: u64 = 10 * SECOND;
/// Nanoseconds that a copy waits longer after each request in vain, at most.
const PATIENCE_NS_MAX: u64 = 120 * SECOND;
/// Bytes of messages that are kept before the answer; a message is added while there are less.
const EARLY_BYTES_MAX: usize = 4 << 20;
/// Messages that are kept before the answer.
const EARLY_MESSAGES_MAX: usize = 1 << 16;
/// Random characters at the end of a subject.
const SUBJECT_CHARACTERS: usize = 8;
/// Beginning of subjects on which flow control is answered.
const FLOW_PREFIX: &[u8] = b"$JS.FC.";
/// Beginning of the subjects of answers.
const ANSWER_PREFIX: &str = "$JSC.R.";
/// Errors of a server that does not know what it is asked.
const UNKNOWN_ERRORS: [u16; 2] = [ApiError::REQUIRED_API_LEVEL.err_code, 10025];
/// The error of an origin that is another one than it was.
const OTHER_IDENTITY_CODE: u16 = 10225;

/// Something that is to be done for a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FollowWish {
    /// Messages on these subjects are wanted: deliveries, and the answer to a request.
    Listen {
        /// The subject of deliveries.
        deliver: String,
        /// The subject of the answer.
        answer: String,
    },
    /// Nothing is wanted any more of what was.
    Unlisten,
    /// A request.
    Ask {
        /// The subject, by which it is taken.
        subject: String,
        /// The subject of the answer.
        answer: String,
        /// Headers with the line that they begin with.
        headers: Vec<u8>,
        /// The body.
        body: Vec<u8>,
    },
    /// A message that says how far the copy is, once all that it has is on the disk.
    Confirm {
        /// The subject, one of flow control.
        subject: Vec<u8>,
        /// Headers with the line that they begin with.
        headers: Vec<u8>,
    },
}

/// The outcome of an answer.
#[derive(Debug, PartialEq, Eq)]
pub enum AnswerOfOrigin {
    /// Nothing is to be done.
    Nothing,
    /// There is no consumer: the error is to be shown.
    Failed(ApiError),
    /// The origin is another one than it was: the copy begins anew, before it asks again.
    Anew,
    /// The copy follows. Messages that came before the answer are to be heard now.
    Follows(Vec<EarlyMessage>),
}

/// A message that came before the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EarlyMessage {
    subject: Box<[u8]>,
    reply: Box<[u8]>,
    headers: Box<[u8]>,
    payload: Box<[u8]>,
}

impl EarlyMessage {
    /// The message as it came.
    pub fn incoming(&self) -> Incoming<'_> {
        let Self { subject, reply, headers, payload } = self;
        Incoming { subject, reply, headers, payload }
    }
}

/// The meaning of a message on the subject of deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeardOfOrigin<'a> {
    /// Nothing is to be stored.
    Nothing,
    /// A message of the origin.
    Message {
        /// Sequence in the origin.
        sequence: u64,
        /// Time in the origin, in nanoseconds since 1970.
        time: u64,
        /// Subject in the origin.
        subject: &'a [u8],
        /// Messages that follow.
        lag: u64,
    },
}

/// Deliveries of a consumer, as far as they have come.
#[derive(Debug)]
struct Deliveries {
    consumer: Box<[u8]>,
    identity: Box<str>,
    /// Number of the last delivery.
    delivered: u64,
    /// Sequence of the last message, or the last one that is not wanted.
    sequence: u64,
    /// Whether the consumer may have been there before, and had a receiver.
    is_lasting: bool,
}

/// A request that is not answered yet.
#[derive(Debug)]
struct OpenRequest {
    deliver: String,
    place: CopyPlace,
    early: Vec<EarlyMessage>,
    early_bytes: usize,
}

#[derive(Debug)]
enum FollowState {
    Rests,
    Asks(OpenRequest),
    Follows(Deliveries),
}

/// A copy of a stream in another account or domain.
#[derive(Debug)]
pub struct Follower {
    terms: FollowTerms,
    rng: fastrand::Rng,
    state: FollowState,
    level: AskedLevel,
    /// Time of the next thing to do.
    due: u64,
    /// Time of the last request.
    asked_at: Option<u64>,
    /// Requests in vain, one after the other.
    fails: u32,
    wishes: VecDeque<FollowWish>,
}

impl Follower {
    /// A copy that is to begin.
    pub fn new(terms: FollowTerms, seed: u64, now: u64) -> Self {
        Self {
            level: terms.first_level(),
            terms,
            rng: fastrand::Rng::with_seed(seed),
            state: FollowState::Rests,
            due: now.saturating_add(BEGIN_NS),
            asked_at: None,
            fails: 0,
            wishes: VecDeque::new(),
        }
    }

    /// The terms of the copy.
    pub fn terms(&self) -> &FollowTerms {
        &self.terms
    }

    /// Time of the next thing to do, in nanoseconds.
    pub fn next_due(&self) -> u64 {
        self.due
    }

    /// Whether the copy has a consumer.
    pub fn follows(&self) -> bool {
        matches!(self.state, FollowState::Follows(_))
    }

    /// A text that tells the origin from others of its name; empty if it is not known.
    pub fn identity(&self) -> &str {
        match &self.state {
            FollowState::Follows(deliveries) => &deliveries.identity,
            _ => "",
        }
    }

    /// Takes the next wish. They are carried out after each call, in order.
    pub fn next_wish(&mut self) -> Option<FollowWish> {
        self.wishes.pop_front()
    }

    /// Does what is due. `place` is how far the copy is, if that is known; `is_taken` whether
    /// anybody takes a request with this subject.
    pub fn tick(
        &mut self,
        now: u64,
        place: Option<CopyPlace>,
        is_taken: &mut dyn FnMut(&str) -> bool,
    ) {
        if now < self.due {
            return;
        }
        match &self.state {
            FollowState::Rests => {
                let name = self.terms.name(self.level, "");
                match place.filter(|_| is_taken(&self.terms.subject(&name))) {
                    Some(place) => self.ask(now, place),
                    None => self.due = now.saturating_add(LOOK_NS),
                }
            }
            FollowState::Asks(_) => {
                self.level = self.terms.first_level();
                self.rest_after_failure(now);
            }
            FollowState::Follows(_) => self.rest(now, 0),
        }
    }

    /// The subject of deliveries that a request without an answer has named.
    #[cfg(test)]
    pub(super) fn asked_for(&self) -> Option<String> {
        match &self.state {
            FollowState::Asks(request) => Some(request.deliver.clone()),
            _ => None,
        }
    }

    /// Gives up what is under way, and asks again from where the copy is then.
    pub fn ask_anew(&mut self, now: u64) {
        self.rest(now, 0);
    }

    /// Ends the copy, with a consumer of its own that would stay.
    pub fn end(&mut self) {
        self.wishes.clear();
        self.wishes.push_back(FollowWish::Unlisten);
        if let FollowState::Follows(deliveries) = &self.state
            && deliveries.is_lasting
            && !self.terms.is_durable()
        {
            let name = String::from_utf8_lossy(&deliveries.consumer);
            let subject = self.terms.delete_subject(&name);
            let answer = format!("{ANSWER_PREFIX}{}", random_text(&mut self.rng));
            let (headers, body) = (Vec::new(), Vec::new());
            self.wishes.push_back(FollowWish::Ask { subject, answer, headers, body });
        }
        (self.state, self.due) = (FollowState::Rests, u64::MAX);
    }

    fn ask(&mut self, now: u64, place: CopyPlace) {
        let deliver = random_text(&mut self.rng);
        let deliver = self.terms.deliver_subject(&deliver);
        let answer = format!("{ANSWER_PREFIX}{}", random_text(&mut self.rng));
        let name = random_text(&mut self.rng);
        let name = self.terms.name(self.level, &name);
        let asked =
            AskedConsumer { name: &name, deliver: &deliver, level: self.level, place: &place };
        let ask = FollowWish::Ask {
            subject: self.terms.subject(&name),
            answer: answer.clone(),
            headers: self.terms.headers(self.level, &place.identity),
            body: self.terms.body(&asked),
        };
        self.wishes.push_back(FollowWish::Listen { deliver: deliver.clone(), answer });
        self.wishes.push_back(ask);
        let wait = if self.terms.is_durable() { RESET_ANSWER_NS } else { ANSWER_NS };
        (self.asked_at, self.due) = (Some(now), now.saturating_add(wait));
        let (early, early_bytes) = (Vec::new(), 0);
        self.state = FollowState::Asks(OpenRequest { deliver, place, early, early_bytes });
    }

    fn rest(&mut self, now: u64, longer: u64) {
        // What was not stored is not confirmed.
        self.wishes.retain(|wish| !matches!(wish, FollowWish::Confirm { .. }));
        self.wishes.push_back(FollowWish::Unlisten);
        self.state = FollowState::Rests;
        let soonest = self.asked_at.map_or(now, |asked| asked.saturating_add(ASK_EVERY_NS));
        let random = 100 * MILLISECOND + self.rng.u64(..100 * MILLISECOND);
        self.due = soonest.max(now).saturating_add(longer).saturating_add(random);
    }

    fn rest_after_failure(&mut self, now: u64) {
        self.fails = self.fails.saturating_add(1);
        let longer = SECOND.saturating_mul(1 << self.fails.min(16)) - SECOND;
        self.rest(now, longer.min(PATIENCE_NS_MAX));
    }

    /// Takes the answer to the last request.
    pub fn on_answer(&mut self, now: u64, message: &Incoming<'_>) -> AnswerOfOrigin {
        let FollowState::Asks(request) = &self.state else { return AnswerOfOrigin::Nothing };
        let is_mirror = self.terms.is_mirror();
        let answer = read_answer(message, &request.deliver, |why| match is_mirror {
            true => ApiError::mirror_consumer_setup_failed(why),
            false => ApiError::source_consumer_setup_failed(why),
        });
        match answer {
            Ok(answer) if self.terms.is_durable() && !answer.acknowledges => {
                self.rest_after_failure(now);
                AnswerOfOrigin::Failed(match is_mirror {
                    true => ApiError::MIRROR_CONSUMER_REQUIRES_ACK_FLOW_CONTROL,
                    false => ApiError::SOURCE_CONSUMER_REQUIRES_ACK_FLOW_CONTROL,
                })
            }
            Ok(answer) => self.follow(now, answer),
            Err(error) => self.on_refusal(now, error),
        }
    }

    fn follow(&mut self, now: u64, answer: AnsweredConsumer) -> AnswerOfOrigin {
        let FollowState::Asks(request) = &mut self.state else { return AnswerOfOrigin::Nothing };
        let known = &request.place.identity;
        let is_known = !known.is_empty() && !answer.identity.is_empty();
        if is_known && *known != answer.identity && !self.terms.is_mirror() {
            self.rest(now, 0);
            return AnswerOfOrigin::Anew;
        }
        let before = match request.place.start {
            CopyStart::Sequence(next) => next.saturating_sub(1),
            CopyStart::Time(_) => 0,
        };
        let early = std::mem::take(&mut request.early);
        let AnsweredConsumer { name, passed, identity, acknowledges } = answer;
        self.state = FollowState::Follows(Deliveries {
            consumer: name,
            identity,
            delivered: 0,
            sequence: passed.max(before),
            is_lasting: acknowledges,
        });
        (self.fails, self.due) = (0, now.saturating_add(SILENCE_NS));
        AnswerOfOrigin::Follows(early)
    }

    fn on_refusal(&mut self, now: u64, error: ApiError) -> AnswerOfOrigin {
        if error.err_code == OTHER_IDENTITY_CODE && !self.terms.is_mirror() {
            self.rest(now, 0);
            return AnswerOfOrigin::Anew;
        }
        let lower = match self.level {
            AskedLevel::Identities => Some(AskedLevel::Copies),
            AskedLevel::Copies if !self.terms.is_durable() => Some(AskedLevel::Plain),
            _ => None,
        };
        if let Some(level) = lower.filter(|_| UNKNOWN_ERRORS.contains(&error.err_code)) {
            self.level = level;
            self.rest(now, 0);
            self.due = now;
            return AnswerOfOrigin::Nothing;
        }
        // A server that knows more may answer the next time.
        self.level = self.terms.first_level();
        self.rest_after_failure(now);
        AnswerOfOrigin::Failed(error)
    }

    /// Takes a message on the subject of deliveries.
    pub fn on_message<'a>(&mut self, now: u64, message: &Incoming<'a>) -> HeardOfOrigin<'a> {
        match &mut self.state {
            FollowState::Rests => HeardOfOrigin::Nothing,
            FollowState::Asks(request) => {
                request.keep(message);
                HeardOfOrigin::Nothing
            }
            FollowState::Follows(deliveries) => {
                self.due = now.saturating_add(SILENCE_NS);
                let is_control =
                    message.payload.is_empty() && message.headers.starts_with(b"NATS/1.0 100 ");
                let heard = match is_control {
                    true => deliveries.on_control(message, &mut self.wishes),
                    false => deliveries.on_delivery(message),
                };
                heard.unwrap_or_else(|Gap| {
                    self.rest(now, 0);
                    HeardOfOrigin::Nothing
                })
            }
        }
    }
}

/// Deliveries have not come.
struct Gap;

impl OpenRequest {
    /// Keeps a message until the answer. One that there is no room for is missed then.
    fn keep(&mut self, message: &Incoming<'_>) {
        if self.early_bytes >= EARLY_BYTES_MAX || self.early.len() >= EARLY_MESSAGES_MAX {
            return;
        }
        let Incoming { subject, reply, headers, payload } = *message;
        self.early_bytes += subject.len() + reply.len() + headers.len() + payload.len();
        let [subject, reply, headers, payload] = [subject, reply, headers, payload].map(Into::into);
        self.early.push(EarlyMessage { subject, reply, headers, payload });
    }
}

impl Deliveries {
    fn on_control<'a>(
        &self,
        message: &Incoming<'_>,
        wishes: &mut VecDeque<FollowWish>,
    ) -> Result<HeardOfOrigin<'a>, Gap> {
        if !message.reply.is_empty() {
            self.confirm(message.reply, wishes);
            return Ok(HeardOfOrigin::Nothing);
        }
        let last = headers::value(message.headers, LAST_CONSUMER).and_then(headers::number);
        if last.is_some_and(|last| last > 0 && last != self.delivered) {
            return Err(Gap);
        }
        if let Some(stalled) = headers::value(message.headers, STALLED) {
            self.confirm(stalled, wishes);
        }
        Ok(HeardOfOrigin::Nothing)
    }

    /// Answers flow control, on a subject that is for it.
    fn confirm(&self, subject: &[u8], wishes: &mut VecDeque<FollowWish>) {
        if !plain_subject(subject).starts_with(FLOW_PREFIX) || !is_valid_publish(subject) {
            return;
        }
        let mut block = Vec::new();
        headers::add(&mut block, LAST_CONSUMER, self.delivered.to_string());
        headers::add(&mut block, LAST_STREAM, self.sequence.to_string());
        // The last one says all: so there is one at most.
        wishes.retain(|wish| !matches!(wish, FollowWish::Confirm { .. }));
        wishes.push_back(FollowWish::Confirm { subject: subject.to_vec(), headers: block });
    }

    fn on_delivery<'a>(&mut self, message: &Incoming<'a>) -> Result<HeardOfOrigin<'a>, Gap> {
        let nothing = Ok(HeardOfOrigin::Nothing);
        let reply = plain_subject(message.reply);
        let (reply, subject) = match stored_subject(reply) {
            Some(at) => (&reply[..at - 1], &reply[at..]),
            None => (reply, message.subject),
        };
        let Some(ack) = AckSubject::parse(reply) else { return nothing };
        let number = ack.consumer_sequence;
        if *ack.consumer != *self.consumer || ack.deliveries > 1 || number == u64::MAX {
            return nothing;
        }
        let is_next = number == self.delivered + 1;
        // What a consumer has sent before it went back.
        let is_older = number <= self.delivered || (self.is_lasting && self.delivered == 0);
        if !is_next {
            return if is_older || ack.sequence <= self.sequence { nothing } else { Err(Gap) };
        }
        self.delivered = number;
        let is_time = i64::try_from(ack.time).is_ok();
        if ack.sequence <= self.sequence {
            return nothing;
        }
        if ack.sequence > SEQUENCE_MAX || !is_time || !is_valid_publish(subject) {
            return Err(Gap);
        }
        self.sequence = ack.sequence;
        let (sequence, time) = (ack.sequence, ack.time);
        Ok(HeardOfOrigin::Message { sequence, time, subject, lag: ack.pending.saturating_sub(1) })
    }
}

fn random_text(rng: &mut fastrand::Rng) -> String {
    (0..SUBJECT_CHARACTERS).map(|_| rng.alphanumeric()).collect()
}
