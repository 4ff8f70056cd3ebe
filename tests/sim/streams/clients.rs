//! What clients do with streams, and what they hear.

use super::super::book::fill;
use super::super::pipe::Pipe;
use super::super::wire::{self, Heard, Message, show};
use super::ledger::{Consumer, Fate, Presence, Publication};
use super::{World, tell};

/// Streams that are made in one run.
const STREAMS_MAX: usize = 4;
/// Consumers of one stream.
const CONSUMERS_MAX: usize = 3;

/// A client's connection.
pub(super) struct Link {
    pub(super) client: usize,
    pub(super) pipe: Pipe,
    /// All bytes that it has written, and how many the shard has got.
    pub(super) out: Vec<u8>,
    pub(super) given: usize,
    heard: Vec<u8>,
    /// Its inbox is in force.
    pub(super) is_greeted: bool,
    pub(super) is_over: bool,
}

impl Link {
    pub(super) fn new(client: usize, pipe: Pipe) -> Self {
        let connect = "CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true}\r\n";
        let out = format!("{connect}SUB _INBOX.{client}.> 1\r\nPING\r\n").into_bytes();
        let heard = Vec::new();
        Self { client, pipe, out, given: 0, heard, is_greeted: false, is_over: false }
    }
}

/// What is asked for. Streams, consumers and messages are named by their places.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ask {
    /// With the last sequence that anybody had seen.
    Publish(usize, u64),
    MakeStream(usize),
    EndStream(usize),
    MakeConsumer(usize, usize),
    EndConsumer(usize, usize),
    Pull(usize, usize),
    /// With whether it is a delivery of this life.
    Ack(usize, usize, u64, bool),
    Remove(usize, u64),
    Purge(usize, u64),
    Get(usize, u64),
    Info(usize),
    ConsumerInfo(usize, usize),
}

pub(super) struct Request {
    pub(super) link: usize,
    pub(super) ask: Ask,
    pub(super) is_answered: bool,
}

/// A delivery that was heard and not acknowledged.
pub(super) struct Held {
    link: usize,
    stream: usize,
    consumer: usize,
    sequence: u64,
    reply: String,
}

/// What came as an answer.
struct Answer {
    json: serde_json::Value,
    status: Option<String>,
}

impl Answer {
    fn is_error(&self) -> bool {
        self.status.is_some() || self.json.get("error").is_some()
    }

    fn number(&self, name: &str) -> u64 {
        self.json[name].as_u64().unwrap_or_else(|| panic!("no {name}: {}", self.json))
    }
}

impl World {
    /// Whether a request has to be answered, and was not.
    pub(super) fn must_answer(&self, request: &Request) -> bool {
        let is_certain = match request.ask {
            Ask::Pull(..) => false,
            // What comes to a stream at its end is for nobody.
            Ask::Publish(id, _) => {
                let stream = self.ledger.messages[id].stream;
                self.ledger.streams[stream].presence == Presence::Yes
            }
            Ask::Get(stream, _) => self.ledger.streams[stream].presence == Presence::Yes,
            Ask::Ack(stream, consumer, _, is_recent) => {
                let stream = &self.ledger.streams[stream];
                let consumer = &stream.consumers[consumer];
                is_recent && (stream.presence, consumer.presence) == (Presence::Yes, Presence::Yes)
            }
            _ => true,
        };
        is_certain && !request.is_answered
    }

    pub(super) fn ask(&mut self, link: usize, ask: Ask, subject: &str, headers: &str, body: &[u8]) {
        tell!(self, "link {link} {ask:?}");
        let reply = format!("_INBOX.{}.{}", self.links[link].client, self.requests.len());
        self.requests.push(Request { link, ask, is_answered: false });
        self.write(link, subject, &reply, headers, body);
    }

    fn write(&mut self, link: usize, subject: &str, reply: &str, headers: &str, body: &[u8]) {
        let (head, len) = (headers.len(), headers.len() + body.len());
        let line = match headers {
            "" => format!("PUB {subject} {reply} {len}\r\n"),
            _ => format!("HPUB {subject} {reply} {head} {len}\r\n"),
        };
        let out = &mut self.links[link].out;
        for part in [line.as_bytes(), headers.as_bytes(), body, b"\r\n"] {
            out.extend_from_slice(part);
        }
    }

    fn call(&mut self, link: usize, ask: Ask, subject: &str, body: &str) {
        self.ask(link, ask, &format!("$JS.API.{subject}"), "", body.as_bytes());
    }

    /// Some client does something.
    pub(super) fn act(&mut self) {
        let link = self.rng.usize(self.first_link..self.links.len());
        if !self.links[link].is_greeted {
            return;
        }
        match self.rng.u32(..100) {
            0..50 => self.publish_some(link),
            50..55 => self.make_stream(link),
            55..60 => self.make_consumer(link),
            60..73 => self.pull_some(link),
            73..88 => self.acknowledge(link, false),
            88..92 => self.remove(link),
            92 => self.purge(link),
            93 => self.end_something(link),
            94..97 => self.publish_again(link),
            _ => self.look(link),
        }
    }

    /// A stream that is there, as far as is known.
    fn pick_stream(&mut self) -> Option<usize> {
        let is_there = |at: &usize| self.ledger.streams[*at].presence == Presence::Yes;
        let all: Vec<usize> = (0..self.ledger.streams.len()).filter(is_there).collect();
        (!all.is_empty()).then(|| all[self.rng.usize(..all.len())])
    }

    fn pick_consumer(&mut self) -> Option<(usize, usize)> {
        let stream = self.pick_stream()?;
        let consumers = &self.ledger.streams[stream].consumers;
        let is_there = |at: &usize| consumers[*at].presence == Presence::Yes;
        let all: Vec<usize> = (0..consumers.len()).filter(is_there).collect();
        (!all.is_empty()).then(|| (stream, all[self.rng.usize(..all.len())]))
    }

    fn publish_some(&mut self, link: usize) {
        let Some(stream) = self.pick_stream() else { return self.make_stream(link) };
        for _ in 0..self.rng.u32(1..6) {
            let id = self.ledger.messages.len();
            let mut body = format!("{id}:").into_bytes();
            let len = [0, 10, 100, 300, 1_000, 6_000][self.rng.usize(..6)];
            fill(&mut body, id, len);
            let message = Publication {
                stream,
                subject: format!("s{stream}.{}", self.rng.u32(..3)),
                body,
                is_named: self.rng.bool(),
                attempts: 0,
                fate: Fate::Unknown,
            };
            self.ledger.messages.push(message);
            self.publish(link, id);
        }
    }

    fn publish(&mut self, link: usize, id: usize) {
        let floor = self.ledger.publish(id, link);
        let message = &self.ledger.messages[id];
        let (subject, body) = (message.subject.clone(), message.body.clone());
        let headers = match message.is_named {
            true => format!("NATS/1.0\r\nNats-Msg-Id: m{id}\r\n\r\n"),
            false => String::new(),
        };
        tell!(
            self,
            "message {id} on {subject}, {} bytes, named: {}",
            body.len(),
            !headers.is_empty()
        );
        self.ask(link, Ask::Publish(id, floor), &subject, &headers, &body);
    }

    /// A message that names itself, and of which nothing was heard, is published once more.
    fn publish_again(&mut self, link: usize) {
        let ledger = &self.ledger;
        let is_it = |id: &usize| {
            let message = &ledger.messages[*id];
            let is_stored = matches!(message.fate, Fate::Stored(_));
            let presence = ledger.streams[message.stream].presence;
            message.is_named && !is_stored && presence == Presence::Yes
        };
        let all: Vec<usize> = (0..ledger.messages.len()).filter(is_it).collect();
        if !all.is_empty() {
            let id = all[self.rng.usize(..all.len())];
            self.publish(link, id);
        }
    }

    fn make_stream(&mut self, link: usize) {
        if self.ledger.streams.len() == STREAMS_MAX {
            return;
        }
        let is_work = self.rng.u32(..3) == 0;
        let messages_max = (self.rng.u32(..4) == 0).then(|| self.rng.u64(1..20));
        let is_direct = self.rng.bool();
        let stream = self.ledger.add_stream(is_work, messages_max, is_direct);
        let retention = if is_work { "workqueue" } else { "limits" };
        let max = messages_max.map_or(String::new(), |max| format!("\"max_msgs\":{max},"));
        let body = format!(
            "{{\"name\":\"S{stream}\",\"subjects\":[\"s{stream}.>\"],\"storage\":\"file\",\
             \"retention\":\"{retention}\",{max}\"allow_direct\":{is_direct},\
             \"duplicate_window\":86400000000000,\"num_replicas\":1}}"
        );
        self.call(link, Ask::MakeStream(stream), &format!("STREAM.CREATE.S{stream}"), &body);
    }

    fn make_consumer(&mut self, link: usize) {
        let Some(stream) = self.pick_stream() else { return };
        let here = &mut self.ledger.streams[stream];
        let count = here.consumers.len();
        if count == if here.is_work { 1 } else { CONSUMERS_MAX } {
            return;
        }
        let name = format!("C{stream}-{count}");
        here.consumers.push(Consumer::new(name.clone()));
        let wait = [1, 5, 30][self.rng.usize(..3)];
        let pending = [8, 1_000][self.rng.usize(..2)];
        let body = format!(
            "{{\"stream_name\":\"S{stream}\",\"config\":{{\"durable_name\":\"{name}\",\
             \"ack_policy\":\"explicit\",\"ack_wait\":{wait}000000000,\
             \"max_ack_pending\":{pending},\"deliver_policy\":\"all\"}}}}"
        );
        let subject = format!("CONSUMER.CREATE.S{stream}.{name}");
        self.call(link, Ask::MakeConsumer(stream, count), &subject, &body);
    }

    fn pull_some(&mut self, link: usize) {
        let Some((stream, consumer)) = self.pick_consumer() else { return };
        let batch = self.rng.u32(1..20);
        self.pull(link, (stream, consumer), batch);
    }

    pub(super) fn pull(&mut self, link: usize, (stream, consumer): (usize, usize), batch: u32) {
        let name = &self.ledger.streams[stream].consumers[consumer].name;
        let subject = format!("CONSUMER.MSG.NEXT.S{stream}.{name}");
        let rest = if self.rng.bool() { "\"no_wait\":true" } else { "\"expires\":2000000000" };
        let body = format!("{{\"batch\":{batch},{rest}}}");
        self.call(link, Ask::Pull(stream, consumer), &subject, &body);
    }

    /// One or more deliveries are acknowledged, in one way or another; with `all` all of them, so
    /// that it is confirmed.
    pub(super) fn acknowledge(&mut self, link: usize, all: bool) {
        let count = if all { self.held.len() } else { self.rng.usize(1..6) };
        for _ in 0..count.min(self.held.len()) {
            let at = self.rng.usize(..self.held.len());
            let Held { link: of, stream, consumer, sequence, reply } = self.held.swap_remove(at);
            let ack = Ask::Ack(stream, consumer, sequence, of >= self.first_link);
            let way = if all { 0 } else { self.rng.u32(..10) };
            tell!(self, "link {link} answers {reply} in way {way}");
            match way {
                0..4 => self.ask(link, ack, &reply, "", b"+ACK"),
                4..7 => self.write(link, &reply, "", "", b"+ACK"),
                7 => self.write(link, &reply, "", "", b"-NAK"),
                8 => self.write(link, &reply, "", "", b"+TERM"),
                _ => {
                    self.write(link, &reply, "", "", b"+WPI");
                    self.held.push(Held { link: of, stream, consumer, sequence, reply });
                }
            }
        }
    }

    fn remove(&mut self, link: usize) {
        let Some(stream) = self.pick_stream() else { return };
        let known = &self.ledger.streams[stream].known;
        let Some((sequence, _)) = known.iter().nth(self.rng.usize(..known.len().max(1))) else {
            return;
        };
        let sequence = *sequence;
        self.ledger.remove(stream, sequence, false);
        let body = format!("{{\"seq\":{sequence},\"no_erase\":true}}");
        let subject = format!("STREAM.MSG.DELETE.S{stream}");
        self.call(link, Ask::Remove(stream, sequence), &subject, &body);
    }

    fn purge(&mut self, link: usize) {
        let Some(stream) = self.pick_stream() else { return };
        let last = self.ledger.streams[stream].last;
        if last == 0 {
            return;
        }
        let before = self.rng.u64(1..=last) + 1;
        self.ledger.purge(stream, before, false);
        let body = format!("{{\"seq\":{before}}}");
        self.call(link, Ask::Purge(stream, before), &format!("STREAM.PURGE.S{stream}"), &body);
    }

    fn end_something(&mut self, link: usize) {
        if self.rng.bool() {
            let Some((stream, consumer)) = self.pick_consumer() else { return };
            let here = &mut self.ledger.streams[stream].consumers[consumer];
            here.presence = Presence::Maybe;
            let subject = format!("CONSUMER.DELETE.S{stream}.{}", here.name);
            self.call(link, Ask::EndConsumer(stream, consumer), &subject, "");
        } else if self.rng.u32(..3) == 0 {
            let Some(stream) = self.pick_stream() else { return };
            self.ledger.streams[stream].presence = Presence::Maybe;
            self.call(link, Ask::EndStream(stream), &format!("STREAM.DELETE.S{stream}"), "");
        }
    }

    fn look(&mut self, link: usize) {
        let Some(stream) = self.pick_stream() else { return };
        let last = self.ledger.streams[stream].last;
        let sequence = self.rng.u64(1..last + 2);
        self.get(link, stream, sequence);
    }

    pub(super) fn get(&mut self, link: usize, stream: usize, sequence: u64) {
        let way = match self.ledger.streams[stream].is_direct && self.rng.bool() {
            true => "DIRECT.GET",
            false => "STREAM.MSG.GET",
        };
        let (subject, body) = (format!("{way}.S{stream}"), format!("{{\"seq\":{sequence}}}"));
        self.call(link, Ask::Get(stream, sequence), &subject, &body);
    }

    /// Takes what has arrived on a link.
    pub(super) fn hear(&mut self, at: usize, bytes: &[u8]) {
        let mut heard = std::mem::take(&mut self.links[at].heard);
        heard.extend_from_slice(bytes);
        let mut done = 0;
        while done < heard.len()
            && let Some((operation, used)) = wire::parse(&heard[done..])
        {
            done += used;
            match operation {
                Heard::Info(_) | Heard::Ok => {}
                Heard::Ping => self.links[at].out.extend_from_slice(b"PONG\r\n"),
                Heard::Pong => self.links[at].is_greeted = true,
                Heard::Err(text) => panic!("link {at}: {}", show(text)),
                Heard::Message(message) => self.on_message(at, &message),
            }
        }
        heard.drain(..done);
        self.links[at].heard = heard;
    }

    fn on_message(&mut self, at: usize, message: &Message<'_>) {
        let reply = String::from_utf8_lossy(message.reply.unwrap_or_default()).into_owned();
        if reply.starts_with("$JS.ACK.") {
            return self.on_delivery(at, message, reply);
        }
        let subject = String::from_utf8_lossy(message.subject).into_owned();
        let number = subject.rsplit('.').next().and_then(|number| number.parse::<usize>().ok());
        let Some(request) = number.and_then(|number| self.requests.get_mut(number)) else {
            panic!("link {at}: an answer to nothing: {}", show(message.payload));
        };
        let ask = request.ask;
        assert_eq!(request.link, at, "an answer to {ask:?} goes elsewhere");
        let is_first = !std::mem::replace(&mut request.is_answered, true);
        let is_pull = matches!(ask, Ask::Pull(..));
        assert!(is_first || is_pull, "{ask:?} has two answers: {}", show(message.payload));
        let (head, body) = split(message);
        let status = head.strip_prefix("NATS/1.0 ").and_then(|rest| rest.lines().next());
        tell!(self, "link {at}: {ask:?}: {} {}", show(head.as_bytes()), show(body));
        if let Some(sequence) = header(&head, "Nats-Sequence: ") {
            return self.on_found(ask, sequence, body);
        }
        let json = serde_json::from_slice(body).unwrap_or_default();
        self.on_answer(at, ask, &Answer { json, status: status.map(str::to_owned) });
    }

    fn on_answer(&mut self, at: usize, ask: Ask, answer: &Answer) {
        let is_done = !answer.is_error();
        match ask {
            Ask::Publish(id, floor) if is_done => {
                let again = answer.json["duplicate"].as_bool() == Some(true);
                self.outcome.duplicates += u64::from(again);
                self.outcome.stored += u64::from(!again);
                self.ledger.acked(id, at, floor, (answer.number("seq"), again));
            }
            Ask::Publish(id, _) => {
                self.outcome.refused += 1;
                self.ledger.refused(id);
            }
            Ask::MakeStream(stream) if is_done => {
                self.ledger.streams[stream].presence = Presence::Yes;
            }
            Ask::EndStream(stream) if is_done => {
                self.ledger.streams[stream].presence = Presence::No;
            }
            Ask::MakeConsumer(stream, consumer) if is_done => {
                self.ledger.streams[stream].consumers[consumer].presence = Presence::Yes;
            }
            Ask::EndConsumer(stream, consumer) if is_done => {
                self.ledger.streams[stream].consumers[consumer].presence = Presence::No;
            }
            Ask::Ack(stream, consumer, sequence, _) if is_done => {
                self.outcome.confirmed += 1;
                self.ledger.confirmed(stream, consumer, at, sequence);
            }
            Ask::Remove(stream, sequence) if is_done => {
                self.outcome.removed += 1;
                self.ledger.remove(stream, sequence, true);
            }
            Ask::Purge(stream, before) if is_done => self.ledger.purge(stream, before, true),
            Ask::Get(stream, sequence) if is_done => {
                let message = &answer.json["message"];
                assert_eq!(message["seq"].as_u64(), Some(sequence), "{message}");
                let text = message["data"].as_str().unwrap_or_default();
                let body = base64_of(text);
                self.on_found(Ask::Get(stream, sequence), sequence, &body);
            }
            Ask::Info(stream) => {
                let state = &answer.json["state"];
                let numbers = ["first_seq", "last_seq", "messages"].map(|n| state[n].as_u64());
                self.infos.insert(stream, numbers.map(Option::unwrap_or_default));
                self.note_presence(stream, None, is_done);
            }
            Ask::ConsumerInfo(stream, consumer) => {
                let waits = ["num_pending", "num_ack_pending"];
                let waits = waits.map(|name| answer.json[name].as_u64().unwrap_or_default());
                self.waiting.insert((stream, consumer), waits);
                self.note_presence(stream, Some(consumer), is_done);
            }
            _ => {}
        }
    }

    /// Whether a stream or a consumer is there is what was said last.
    fn note_presence(&mut self, stream: usize, consumer: Option<usize>, is_there: bool) {
        let stream = &mut self.ledger.streams[stream];
        let presence = match consumer {
            Some(consumer) => &mut stream.consumers[consumer].presence,
            None => &mut stream.presence,
        };
        let expected = if is_there { Presence::No } else { Presence::Yes };
        assert_ne!(*presence, expected, "{consumer:?} is there: {is_there}");
        *presence = if is_there { Presence::Yes } else { Presence::No };
    }

    fn on_found(&mut self, ask: Ask, sequence: u64, body: &[u8]) {
        let Ask::Get(stream, asked) = ask else { panic!("{ask:?} is answered with a message") };
        assert_eq!(sequence, asked, "another message");
        let id = self.check_body(body);
        self.ledger.learn(stream, sequence, id);
        self.found.entry(stream).or_default().insert(sequence, id);
    }

    /// The message of this body, which has to be whole.
    fn check_body(&self, body: &[u8]) -> usize {
        let digits = body.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let id = std::str::from_utf8(&body[..digits]).ok().and_then(|text| text.parse().ok());
        let Some(id) = id.filter(|id: &usize| *id < self.ledger.messages.len()) else {
            panic!("a message that nobody has sent: {}", show(body));
        };
        assert!(self.ledger.messages[id].body == body, "message {id} has changed: {}", show(body));
        id
    }

    fn on_delivery(&mut self, at: usize, message: &Message<'_>, reply: String) {
        tell!(self, "link {at} gets {reply}");
        let parts: Vec<&str> = reply.split('.').collect();
        let number = |at: usize| parts.get(at).and_then(|part| part.parse::<u64>().ok());
        let place = |text: &str| text.parse::<usize>().ok();
        let stream = place(&parts[2][1..]);
        let consumer = parts[3].split_once('-').and_then(|(_, number)| place(number));
        let [Some(count), Some(sequence), Some(delivery)] = [4, 5, 6].map(number) else {
            panic!("not the form of a delivery: {reply}");
        };
        let (Some(stream), Some(consumer)) = (stream, consumer) else { panic!("{reply}") };
        let (_, body) = split(message);
        let id = self.check_body(body);
        let subject = self.ledger.messages[id].subject.as_bytes();
        assert_eq!(message.subject, subject, "the subject of message {id}");
        self.ledger.learn(stream, sequence, id);
        self.ledger.delivered((stream, consumer), at, (sequence, count, delivery));
        self.outcome.deliveries += 1;
        self.outcome.again += u64::from(count > 1);
        self.held.push(Held { link: at, stream, consumer, sequence, reply });
    }
}

/// Headers as text, and what follows them.
fn split<'a>(message: &Message<'a>) -> (String, &'a [u8]) {
    let len = message.header_text.and_then(|text| std::str::from_utf8(text).ok());
    let len = len.and_then(|text| text.parse().ok()).unwrap_or(0);
    let (head, body) = message.payload.split_at(len);
    (String::from_utf8_lossy(head).into_owned(), body)
}

fn header(head: &str, name: &str) -> Option<u64> {
    head.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

fn base64_of(text: &str) -> Vec<u8> {
    use base64::Engine;
    let decoded = base64::engine::general_purpose::STANDARD.decode(text);
    decoded.unwrap_or_else(|error| panic!("{error}: {text}"))
}
