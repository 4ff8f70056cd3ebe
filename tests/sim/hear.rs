//! What a client receives, judged as it comes.

use super::book::{Awaited, Book, Publication, REMOVED, Step, Subscription};
use super::script::{QUEUES, SUBJECTS};
use super::wire::{self, Heard, Message, show};

/// What a client has to do about what it heard.
#[derive(Debug, Default)]
pub(crate) struct Heeded {
    pub(crate) pings: usize,
    /// It was told that its connection is stale.
    pub(crate) stale: bool,
}

impl Book {
    /// Takes what has arrived at the client of a session.
    pub(crate) fn hear(&mut self, s: usize, bytes: &[u8]) -> Heeded {
        self.step += 1;
        let mut heeded = Heeded::default();
        let mut heard = std::mem::take(&mut self.sessions[s].heard);
        heard.extend_from_slice(bytes);
        let mut at = 0;
        while at < heard.len()
            && let Some((operation, used)) = wire::parse(&heard[at..])
        {
            at += used;
            self.on_heard(s, &operation, &mut heeded);
        }
        heard.drain(..at);
        self.sessions[s].heard = heard;
        heeded
    }

    /// The client has read all there is, and sees the end of the stream.
    pub(crate) fn on_over(&mut self, s: usize) {
        self.step += 1;
        let session = &mut self.sessions[s];
        session.over = true;
        if session.closed.is_some_and(|closed| !closed.lossy) && !session.reset {
            assert!(session.heard.is_empty(), "session {s}: the stream ends within an operation");
            let cause = session.stale || session.last_op.is_some();
            assert!(cause, "session {s}: closed for no reason");
            let answered = session.stale || session.awaited.is_empty();
            assert!(answered, "session {s}: closed without {:?}", session.awaited.front());
        }
    }

    fn on_heard(&mut self, s: usize, heard: &Heard<'_>, heeded: &mut Heeded) {
        let session = &mut self.sessions[s];
        assert!(!session.stale, "session {s}: something came behind the last -ERR");
        let info_due = std::mem::replace(&mut session.info_due, false);
        let is_info = matches!(heard, Heard::Info(_));
        assert!(!info_due || is_info, "session {s}: INFO follows the first PONG after CONNECT");
        match heard {
            Heard::Info(json) => {
                let text = String::from_utf8_lossy(json);
                let first = session.info_count == 0;
                session.info_count += 1;
                // Those who understand it are told of other servers whenever there are others.
                let told = self.has_cluster && session.greeted && session.protocol() >= 1;
                assert!(first || info_due || told, "session {s}: an INFO for no reason: {text}");
                session.urls = text.matches(":2\"").count();
                assert_eq!(text.contains("\"connect_info\":true"), info_due, "session {s}: {text}");
            }
            _ if session.info_count == 0 => panic!("session {s}: the server begins with INFO"),
            Heard::Ping => heeded.pings += 1,
            Heard::Pong => self.on_reply(s, Awaited::Pong),
            Heard::Ok => self.on_reply(s, Awaited::Ok),
            Heard::Err(b"Stale Connection") => {
                session.stale = true;
                heeded.stale = true;
            }
            Heard::Err(text) => self.on_error(s, text),
            Heard::Message(message) => self.on_message(s, message),
        }
    }

    fn on_error(&mut self, s: usize, text: &[u8]) {
        match self.sessions[s].awaited.pop_front() {
            Some((Awaited::Err(awaited), _)) if awaited.as_bytes() == text => {}
            other => panic!("session {s}: -ERR {} where {other:?} had to come", show(text)),
        }
    }

    fn on_reply(&mut self, s: usize, reply: Awaited) {
        let op = match self.sessions[s].awaited.pop_front() {
            Some((awaited, op)) if awaited == reply => op,
            other => panic!("session {s}: {reply:?} where {other:?} had to come"),
        };
        let session = &mut self.sessions[s];
        session.info_due = session.greeting == Some(op);
        if reply == Awaited::Pong {
            session.ponged_ops = op;
        }
        // The +OK of a publish says nothing about the message itself.
        let is_publish = session.messages.iter().any(|id| self.messages[*id].op == op);
        self.confirm(s, if is_publish { op } else { op + 1 });
    }

    /// The first `ops` operations of a session are known to be in force.
    fn confirm(&mut self, s: usize, ops: usize) {
        self.note_in_force(s, ops);
        self.check_loop(s, ops);
    }

    fn note_in_force(&mut self, s: usize, ops: usize) {
        let session = &mut self.sessions[s];
        for op in session.confirmed_ops..ops {
            session.ops[op].confirmed = Some(self.step);
        }
        session.confirmed_ops = session.confirmed_ops.max(ops);
        for sub in &session.subs {
            let sub = &mut self.subs[*sub];
            for limit in sub.limits.iter_mut().filter(|limit| limit.op < ops) {
                limit.count_then.get_or_insert(sub.received);
            }
        }
    }

    /// What a session published to itself comes before any later reply.
    fn check_loop(&mut self, s: usize, ops: usize) {
        let session = &self.sessions[s];
        let mut looped = session.looped;
        while let Some(&id) = session.messages.get(looped).filter(|id| self.messages[**id].op < ops)
        {
            looped += 1;
            for sub in &session.subs {
                let sub = &self.subs[*sub];
                assert!(
                    !self.loops_back(id, sub) || session.got.contains(&(sub.sid, id)),
                    "session {s}: a reply overtook its own message {id} for sid {}",
                    sub.sid
                );
            }
        }
        self.sessions[s].looped = looped;
    }

    fn on_message(&mut self, s: usize, message: &Message<'_>) {
        if message.payload.starts_with(b"NATS/1.0 503") {
            return self.on_no_responders(s, message);
        }
        let id = id_of(message.payload);
        let sid = sid_of(message.sid);
        let Some(publication) = self.messages.get(id) else {
            panic!("session {s}: a message that nobody has sent: {}", show(message.payload));
        };
        self.check_form(s, id, publication, message);
        let publisher = publication.session;
        let sender = &self.sessions[publisher];
        let (op, subject) = (publication.op, publication.subject);
        assert!(
            sender.last_op.is_none_or(|last| op < last),
            "session {s}: message {id} was sent behind its publisher's end"
        );
        assert!(!publication.is_denied, "session {s}: message {id} was refused, but came");
        let denied = self.sessions[s].denied_since.filter(|_| self.is_deniable(subject));
        assert!(
            denied.is_none_or(|since| since > publication.written),
            "session {s}: message {id} came, which nobody may get"
        );
        if publisher == s {
            // A queue message that is passed on may find it changed.
            assert!(sender.may_echo(op), "session {s}: got its own {id} without echo");
            let answers = |(reply, of): &(Awaited, usize)| *of == op && *reply != REMOVED;
            let early = sender.awaited.iter().any(answers);
            assert!(!early, "session {s}: its own {id} came before the +OK for it");
        }
        let new = self.sessions[s].got.insert((sid, id));
        assert!(
            new || self.has_used_again(s, sid, subject),
            "session {s}: message {id} came twice for sid {sid}"
        );
        self.sessions[s].got_again += u64::from(!new);
        self.deliveries += 1;
        self.delivered.insert(id);
        let takers = self.takers(s, sid, id);
        match takers[..] {
            [sub] => {
                self.book_delivery(s, sub, id, publisher, subject);
                // What comes back is an answer as good as a PONG, also to itself. A queue message
                // may have come back from another shard, where it was passed on.
                if publisher == s && self.subs[sub].queue.is_none() {
                    self.note_in_force(s, op + 1);
                }
            }
            [] => panic!("session {s}: no subscription takes {id} for sid {sid}: {}", {
                self.why_not(s, sid, id)
            }),
            _ => {
                for sub in takers {
                    self.subs[sub].fuzzy = true;
                    self.subs[sub].received += 1;
                }
            }
        }
    }

    /// Whether several subscriptions of a session, one after the other, had this sid and take this
    /// subject: with queue groups of their own each may get the message.
    fn has_used_again(&self, s: usize, sid: u32, subject: usize) -> bool {
        let subs = self.sessions[s].subs.iter().map(|sub| &self.subs[*sub]);
        let takes = |sub: &&Subscription| sub.sid == sid && self.matches(sub.filter, subject);
        subs.filter(takes).nth(1).is_some()
    }

    fn check_form(&self, s: usize, id: usize, sent: &Publication, got: &Message<'_>) {
        let about = || format!("session {s}, message {id}: {got:?}");
        assert_eq!(got.subject, SUBJECTS[sent.subject].as_bytes(), "{}", about());
        assert_eq!(self.plain_reply(s, sent, got), sent.reply.as_deref(), "{}", about());
        let session = &self.sessions[s];
        let current = session.configs.iter().rposition(|(from, _)| *from < session.confirmed_ops);
        let may_have = |headers: bool| {
            let recent = &session.configs[current.unwrap_or(0)..];
            (current.is_none() && !headers) || recent.iter().any(|(_, c)| c.headers == headers)
        };
        match (sent.header_len, got.header_text) {
            (Some(len), Some(text)) => {
                assert!(may_have(true), "session {s}: HMSG without headers: {}", about());
                assert_eq!(text, len.to_string().as_bytes(), "{}", about());
            }
            (Some(len), None) => {
                assert!(may_have(false), "session {s}: headers are missing: {}", about());
                let body = &sent.payload[len..];
                assert!(got.payload == body, "{}", about());
                assert_eq!(got.size_text, body.len().to_string().as_bytes(), "{}", about());
                return;
            }
            (None, text) => assert_eq!(text, None, "{}", about()),
        }
        assert!(got.payload == sent.payload, "the payload has changed: {}", about());
        assert_eq!(got.size_text, sent.size_text.as_bytes(), "{}", about());
    }

    /// The reply of a message as it was sent: between clusters it may say where it leads to.
    fn plain_reply<'a>(&self, s: usize, sent: &Publication, got: &Message<'a>) -> Option<&'a str> {
        let reply = got.reply.map(|reply| std::str::from_utf8(reply).unwrap_or_default())?;
        if !self.has_gateways || !self.are_apart(s, sent.session) {
            return Some(reply);
        }
        // `_GR_.<cluster>.<server>.` comes before it.
        let mapped = reply.strip_prefix("_GR_.").and_then(|rest| rest.splitn(3, '.').nth(2));
        Some(mapped.unwrap_or(reply))
    }

    /// The subscriptions of a session with this sid that may have got the message now.
    fn takers(&self, s: usize, sid: u32, id: usize) -> Vec<usize> {
        let subs = self.sessions[s].subs.iter().copied();
        subs.filter(|sub| self.subs[*sub].sid == sid && self.refusal(*sub, id).is_none()).collect()
    }

    /// Why a subscription cannot get this message, now or at all.
    fn refusal(&self, sub: usize, id: usize) -> Option<&'static str> {
        let (sub, message) = (&self.subs[sub], &self.messages[id]);
        let session = &self.sessions[sub.session];
        let ended = sub.end.and_then(|end| session.confirmed(end));
        let settled = self.sessions[message.session].confirmed(message.op);
        let own = message.session == sub.session;
        let is_apart = self.are_apart(message.session, sub.session);
        let was_settled = settled.is_some_and(|settled| match is_apart {
            true => self.rested_between(settled, sub.written),
            false => settled < sub.written,
        });
        if !self.matches(sub.filter, message.subject) {
            Some("its filter does not match")
        } else if ended.is_some_and(|ended| ended < self.step) {
            Some("it was known to have ended")
        } else if sub.queue.is_some() {
            None
        } else if own && (message.op < sub.op || sub.end.is_some_and(|end| end < message.op)) {
            Some("it was not there when its own session published")
        } else if !own && was_settled {
            Some("the message was settled before SUB was sent")
        } else {
            None
        }
    }

    fn why_not(&self, s: usize, sid: u32, id: usize) -> String {
        let subs = self.sessions[s].subs.iter().copied();
        let reasons: Vec<_> = subs
            .filter(|sub| self.subs[*sub].sid == sid)
            .map(|sub| self.refusal(sub, id).unwrap_or("?"))
            .collect();
        if reasons.is_empty() { "there is no such sid".to_owned() } else { reasons.join("; ") }
    }

    fn book_delivery(&mut self, s: usize, at: usize, id: usize, publisher: usize, subject: usize) {
        self.subs[at].received += 1;
        let (sub, session) = (&self.subs[at], &self.sessions[s]);
        if let Some(limit) = sub.limits.last().filter(|_| !sub.fuzzy)
            && let Some(count_then) = limit.count_then
        {
            assert!(
                sub.received <= limit.max.max(count_then),
                "session {s}: sid {} got {} messages, its limit is {}",
                sub.sid,
                sub.received,
                limit.max
            );
        }
        let last = session.last_by_sub.get(&(at, publisher)).copied();
        let has_parted = self.may_have_parted(publisher, s, self.messages[id].written);
        let is_strict = !has_parted && !self.may_come_for_others(at, id);
        let overtaken = last.filter(|last| *last > id && !has_parted);
        if let Some(queue) = sub.queue {
            let placed = self.placed.entry((id, queue)).or_default();
            *placed += 1;
            let group = QUEUES[queue];
            assert_eq!(*placed, 1, "message {id} went to several members of {group:?}");
            assert!(
                overtaken.is_none_or(|last| self.is_restless(queue, id, last)),
                "session {s}: {last:?} overtook {id} in the calm group {group:?}"
            );
        } else {
            let overtaken = overtaken.filter(|_| is_strict);
            assert!(overtaken.is_none(), "session {s}: {last:?} overtook {id} for sid {}", sub.sid);
            let others = session.last_by_subject.iter();
            let mut others = others.filter(|((p, other), _)| *p == publisher && *other != subject);
            let overtaken = others.find(|(_, last)| **last > id && is_strict);
            assert!(overtaken.is_none(), "session {s}: {overtaken:?} overtook {id}");
            let last = self.sessions[s].last_by_subject.entry((publisher, subject)).or_default();
            *last = id.max(*last);
        }
        self.sessions[s].last_by_sub.insert((at, publisher), last.map_or(id, |last| last.max(id)));
    }

    /// Whether a message from another server may have come there for a queue group alone, because
    /// the plain subscription was not known yet: the order of what is passed on is not promised.
    fn may_come_for_others(&self, at: usize, id: usize) -> bool {
        let (sub, message) = (&self.subs[at], &self.messages[id]);
        if !self.are_apart(sub.session, message.session) {
            return false;
        }
        let session = &self.sessions[sub.session];
        let before = self.rest_before(message.written);
        let is_known =
            before.is_some_and(|before| session.confirmed(sub.op).is_some_and(|c| c < before));
        let is_here = |other: &Subscription| !self.are_apart(other.session, sub.session);
        let mut members = self.subs.iter().filter(|other| other.queue.is_some() && is_here(other));
        !is_known && members.any(|member| self.is_possible(member, message))
    }

    /// Whether members of the group came or went since the first of two messages was sent, or some
    /// could not be given it.
    fn is_restless(&self, queue: usize, first: usize, second: usize) -> bool {
        let mut since = self.messages[first.min(second)].written;
        if self.was_deniable_since(first, since) {
            return true;
        }
        if self.has_cluster {
            // What one server knows of the group another one learns by the next time of rest.
            since = self.rest_before(since).unwrap_or(0);
            if self.has_parted_since(since) {
                return true;
            }
        }
        let open = |at: Option<Step>| at.is_none_or(|at| at >= since);
        self.subs.iter().filter(|sub| sub.queue == Some(queue)).any(|sub| {
            let session = &self.sessions[sub.session];
            let ended = session.reset || session.closed.is_some() || session.last_op.is_some();
            !sub.limits.is_empty()
                || open(session.confirmed(sub.op))
                || sub.end.is_some_and(|end| open(session.confirmed(end)))
                || (ended && open(session.closed.map(|closed| closed.at)))
                || (ended && session.closed.is_some_and(|c| !self.rested_between(c.at, since)))
        })
    }

    /// Whether everything was at rest at some moment between two steps.
    pub(crate) fn rested_between(&self, from: Step, to: Step) -> bool {
        self.rests.iter().any(|rest| (from..to).contains(rest))
    }

    fn on_no_responders(&mut self, s: usize, message: &Message<'_>) {
        let text = String::from_utf8_lossy(message.reply.unwrap_or(message.subject)).into_owned();
        let inbox = text.rsplit_once('.').and_then(|(_, id)| id.parse::<usize>().ok());
        let id = inbox.filter(|id| *id < self.messages.len());
        let Some(id) = id else { panic!("session {s}: a status for no message: {message:?}") };
        let (sent, session) = (&self.messages[id], &self.sessions[s]);
        let subject = SUBJECTS[sent.subject];
        let payload = format!("NATS/1.0 503\r\nNats-Subject: {subject}\r\n\r\n");
        assert_eq!(message.payload, payload.as_bytes(), "session {s}: {message:?}");
        let size = payload.len().to_string();
        let sizes = [message.header_text, Some(message.size_text)];
        assert_eq!(sizes, [Some(size.as_bytes()); 2], "session {s}: {message:?}");
        let reply = sent.reply.as_deref().unwrap_or_default();
        assert_eq!(message.subject, reply.as_bytes(), "session {s}: {message:?}");
        assert!(!sent.is_denied, "session {s}: a status for {id}, which was refused");
        assert_eq!(sent.session, s, "a status goes to the one who asked");
        assert!(session.config_at(sent.op).no_responders, "session {s} wants no status for {id}");
        assert!(sent.op >= session.ponged_ops, "session {s}: a status for {id} behind the PONG");
        let sid = sid_of(message.sid);
        let mut subs = session.subs.iter().map(|sub| &self.subs[*sub]);
        let there = subs.any(|sub| sub.sid == sid && self.takes_replies(sub, sent));
        assert!(there, "session {s}: a status for {id} to sid {sid}, which does not take it");
        let new = self.sessions[s].unanswered.insert(id);
        assert!(new, "session {s}: two statuses for {id}");
    }

    /// Whether a plain subscription of its publisher takes what comes to a message's reply.
    pub(crate) fn takes_replies(&self, sub: &Subscription, message: &Publication) -> bool {
        let reply = message.reply.as_deref().unwrap_or_default();
        sub.session == message.session
            && sub.queue.is_none()
            && sub.op < message.op
            && sub.end.is_none_or(|end| end > message.op)
            && shardcast::subject::matches(Self::filter_text(sub).as_bytes(), reply.as_bytes())
    }
}

fn sid_of(text: &[u8]) -> u32 {
    let sid = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    sid.unwrap_or_else(|| panic!("a sid that nobody has: {}", show(text)))
}

/// The number at the beginning of a payload's body.
fn id_of(payload: &[u8]) -> usize {
    let body = match payload.strip_prefix(b"NATS/1.0\r\n") {
        Some(rest) => {
            let end = rest.windows(4).position(|bytes| bytes == b"\r\n\r\n");
            &rest[end.map_or(0, |end| end + 4)..]
        }
        None => payload,
    };
    let digits = body.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let id = std::str::from_utf8(&body[..digits]).ok().and_then(|text| text.parse().ok());
    match id {
        Some(id) if body.get(digits) == Some(&b':') => id,
        _ => panic!("a payload that nobody has sent: {}", show(payload)),
    }
}
