//! The oracle's memory: a broker that is nothing but a list of subscriptions and a list of
//! messages, with the moments at which clients sent something and knew it to be in force.
//!
//! Nobody knows what happens first of things that go on at the same time. What is certain is the
//! order that replies give: a reply to a later operation shows that the earlier ones are in force.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt::Write;

use shardcast::engine::Dropped;
use shardcast::subject;

use super::script::{
    BAD_FILTERS, FILTERS, Flavour, OVERFLOW, PRIVATE, QUEUES, Rules, SUBJECTS, UNDELIVERED,
    UNPUBLISHED,
};

/// A moment: everything that happens has a number of its own.
pub(crate) type Step = u64;

/// An operation of a client.
#[derive(Debug)]
pub(crate) struct Sent {
    /// Where it ends in all that its session sends.
    pub(crate) end: usize,
    pub(crate) written: Step,
    /// The engine has got all of it.
    pub(crate) handed: Option<Step>,
    /// The client knows that it is in force.
    pub(crate) confirmed: Option<Step>,
}

/// What CONNECT can change.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "so is CONNECT")]
pub(crate) struct Config {
    pub(crate) verbose: bool,
    pub(crate) pedantic: bool,
    pub(crate) echo: bool,
    pub(crate) headers: bool,
    pub(crate) no_responders: bool,
    pub(crate) protocol: u8,
}

impl Config {
    const BEFORE_CONNECT: Self = Self {
        verbose: true,
        pedantic: true,
        echo: true,
        headers: false,
        no_responders: false,
        protocol: 0,
    };
}

/// A reply that has to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Awaited {
    Ok,
    Pong,
    Err(&'static str),
}

/// What comes when a reload ends the subscription that may be denied; it answers nothing.
pub(crate) const REMOVED: Awaited =
    Awaited::Err("Permissions Violation for Subscription to \"private\" (sid \"777777\")");

/// How a session came to its end on the server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Closed {
    pub(crate) at: Step,
    /// When the turn began from which on it may have been at its end.
    pub(crate) turn: Step,
    /// What was queued is lost.
    pub(crate) lossy: bool,
}

/// One connection, as its client sees it.
#[derive(Debug, Default)]
pub(crate) struct Session {
    /// The server that it is at.
    pub(crate) server: usize,
    /// All bytes the client has written.
    pub(crate) out: Vec<u8>,
    pub(crate) ops: Vec<Sent>,
    pub(crate) handed_ops: usize,
    pub(crate) confirmed_ops: usize,
    /// Operations before its last PONG.
    pub(crate) ponged_ops: usize,
    /// Each with the first operation to which it applies.
    pub(crate) configs: Vec<(usize, Config)>,
    pub(crate) connected: bool,
    pub(crate) subs: Vec<usize>,
    pub(crate) messages: Vec<usize>,
    /// Messages of its own of which it was checked that they came back at once.
    pub(crate) looped: usize,
    /// With the operation that each answers.
    pub(crate) awaited: VecDeque<(Awaited, usize)>,
    /// The PING behind whose PONG an INFO comes.
    pub(crate) greeting: Option<usize>,
    pub(crate) info_due: bool,
    pub(crate) greeted: bool,
    pub(crate) info_count: usize,
    /// Servers where it may connect, as it was last told.
    pub(crate) urls: usize,
    pub(crate) heard: Vec<u8>,
    /// By sid and message.
    pub(crate) got: HashSet<(u32, usize)>,
    /// What came a second time, where that can be.
    pub(crate) got_again: u64,
    /// Messages for which the status came that nobody has got them.
    pub(crate) unanswered: HashSet<usize>,
    /// The last message by publisher and subject.
    pub(crate) last_by_subject: HashMap<(usize, usize), usize>,
    /// The last message by subscription and publisher.
    pub(crate) last_by_sub: HashMap<(usize, usize), usize>,
    sids: u32,
    /// The operation behind which nothing is handled: the end, or a breach of the protocol.
    pub(crate) last_op: Option<usize>,
    pub(crate) reset: bool,
    pub(crate) stale: bool,
    pub(crate) closed: Option<Closed>,
    /// The client has seen the end.
    pub(crate) over: bool,
    /// What it has missed, where that is known.
    pub(crate) dropped: Option<Dropped>,
    /// Operations that subscribe to what may be denied.
    private_ops: Vec<usize>,
    /// It has that subscription.
    is_private: bool,
    /// Since when it must not get what is delivered to nobody.
    pub(crate) denied_since: Option<Step>,
}

impl Session {
    pub(crate) fn config_at(&self, op: usize) -> Config {
        let last = self.configs.iter().rev().find(|(from, _)| *from <= op);
        last.map_or(Config::BEFORE_CONNECT, |(_, config)| *config)
    }

    /// Whether it had echo when it did this, or later.
    pub(crate) fn may_echo(&self, op: usize) -> bool {
        let later = self.configs.iter().filter(|(from, _)| *from > op);
        self.config_at(op).echo || later.into_iter().any(|(_, config)| config.echo)
    }

    fn config(&self) -> Config {
        self.config_at(usize::MAX)
    }

    /// The version of the protocol that it speaks.
    pub(crate) fn protocol(&self) -> u8 {
        self.config().protocol
    }

    /// Whether the client can still send something that has an effect.
    pub(crate) fn speaks(&self) -> bool {
        !self.over && !self.reset && self.last_op.is_none()
    }

    /// Whether everything that was queued for it before its end arrives.
    pub(crate) fn is_complete(&self) -> bool {
        !self.reset && !self.stale && self.closed.is_none_or(|closed| !closed.lossy)
    }

    /// Whether it waits for a PONG.
    pub(crate) fn awaits_pong(&self) -> bool {
        !self.over && !self.reset && self.awaited.iter().any(|(reply, _)| *reply == Awaited::Pong)
    }

    pub(crate) fn confirmed(&self, op: usize) -> Option<Step> {
        self.ops[op].confirmed
    }
}

/// What a subscription was told about its end.
#[derive(Debug)]
pub(crate) struct Limit {
    pub(crate) op: usize,
    pub(crate) max: u64,
    /// Messages that had come when it was known to be in force.
    pub(crate) count_then: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct Subscription {
    pub(crate) session: usize,
    pub(crate) sid: u32,
    /// The number of the filter; one beyond the last is that of the session's inboxes.
    pub(crate) filter: usize,
    pub(crate) queue: Option<usize>,
    pub(crate) op: usize,
    pub(crate) written: Step,
    /// The operation that ends it.
    pub(crate) end: Option<usize>,
    pub(crate) limits: Vec<Limit>,
    pub(crate) received: u64,
    /// Another subscription had the same sid, and it is not known which of the two got something.
    pub(crate) fuzzy: bool,
}

impl Subscription {
    /// Whether its limit is surely reached.
    fn is_used_up(&self) -> bool {
        let max = self.limits.iter().map(|limit| limit.max).max();
        !self.fuzzy && max.is_some_and(|max| self.received >= max)
    }
}

#[derive(Debug)]
pub(crate) struct Publication {
    pub(crate) session: usize,
    pub(crate) op: usize,
    pub(crate) subject: usize,
    pub(crate) reply: Option<String>,
    /// Of an HPUB.
    pub(crate) header_len: Option<usize>,
    pub(crate) payload: Vec<u8>,
    pub(crate) size_text: String,
    pub(crate) written: Step,
    /// Its publisher was not allowed to publish it.
    pub(crate) is_denied: bool,
}

/// Everything that clients have done.
#[derive(Debug)]
pub(crate) struct Book {
    pub(crate) step: Step,
    pub(crate) sessions: Vec<Session>,
    pub(crate) subs: Vec<Subscription>,
    pub(crate) messages: Vec<Publication>,
    /// How many members of a queue group have got a message.
    pub(crate) placed: HashMap<(usize, usize), u32>,
    /// Messages that anybody has got.
    pub(crate) delivered: HashSet<usize>,
    /// When everything was at rest: whatever a server was to know of another one it knew then.
    pub(crate) rests: Vec<Step>,
    /// Pairs of servers between which a route came to its end, the smaller first, and when.
    partings: Vec<(usize, usize, Step)>,
    /// Shards that deny a subject to those who get it, …
    deniers: HashSet<usize>,
    /// … and when one of them last ended to do so.
    last_denial: Option<Step>,
    /// Messages that have arrived, over all subscriptions.
    pub(crate) deliveries: u64,
    /// There are several servers.
    pub(crate) has_cluster: bool,
    /// Messages between servers may pass others.
    pub(crate) has_leaves: bool,
    /// Replies between servers may say where they lead to.
    pub(crate) has_gateways: bool,
    /// Permissions change.
    has_reloads: bool,
    matches: Vec<Vec<bool>>,
    /// Which subjects may be dropped for a client that is behind.
    droppable: Vec<bool>,
}

const HEADER: &[u8] = b"NATS/1.0\r\nMade-By: simulator\r\n\r\n";

impl Book {
    pub(crate) fn new(flavour: &Flavour, has_cluster: bool) -> Self {
        let row = |filter: &&str| {
            let matches = |subject: &&str| subject::matches(filter.as_bytes(), subject.as_bytes());
            SUBJECTS.iter().map(matches).collect()
        };
        let mut matches: Vec<Vec<bool>> = FILTERS.iter().map(row).collect();
        matches.push(vec![false; SUBJECTS.len()]);
        let droppable = SUBJECTS.iter().map(|subject| {
            let mut rules = OVERFLOW.iter();
            flavour.overflow && rules.any(|r| subject::matches(r.0.as_bytes(), subject.as_bytes()))
        });
        Self {
            step: 0,
            sessions: Vec::new(),
            subs: Vec::new(),
            messages: Vec::new(),
            placed: HashMap::new(),
            delivered: HashSet::new(),
            rests: Vec::new(),
            partings: Vec::new(),
            deniers: HashSet::new(),
            last_denial: None,
            deliveries: 0,
            has_cluster,
            has_leaves: flavour.leaves,
            has_gateways: flavour.gateways,
            has_reloads: flavour.reloads,
            matches,
            droppable: droppable.collect(),
        }
    }

    /// Whether a filter, by number, matches a subject, by number.
    pub(crate) fn matches(&self, filter: usize, subject: usize) -> bool {
        self.matches[filter][subject]
    }

    /// Whether a subject, by number, has an overflow policy.
    pub(crate) fn is_droppable(&self, subject: usize) -> bool {
        self.droppable[subject]
    }

    /// Whether a filter, by number, matches a subject with an overflow policy.
    pub(crate) fn misses(&self, filter: usize) -> bool {
        self.matches[filter].iter().zip(&self.droppable).any(|(matches, drops)| *matches && *drops)
    }

    pub(crate) fn filter_text(sub: &Subscription) -> String {
        match FILTERS.get(sub.filter) {
            Some(filter) => (*filter).to_owned(),
            None => format!("_INBOX.{}.*", sub.session),
        }
    }

    pub(crate) fn open(&mut self, server: usize) -> usize {
        self.sessions.push(Session { server, ..Session::default() });
        self.sessions.len() - 1
    }

    /// The session's shard knows of it.
    pub(crate) fn adopted(&mut self, s: usize, rules: Rules) {
        self.sessions[s].denied_since = rules.undelivered.then_some(self.step);
    }

    /// Whether a subject, by number, may be denied to those who get it.
    pub(crate) fn is_deniable(&self, subject: usize) -> bool {
        self.has_reloads && SUBJECTS[subject] == UNDELIVERED
    }

    /// A shard has got another configuration, which may deny a subject to those who get it.
    pub(crate) fn note_denial(&mut self, shard: usize, denies: bool) {
        if denies {
            self.deniers.insert(shard);
        } else if self.deniers.remove(&shard) {
            self.last_denial = Some(self.step);
        }
    }

    /// Whether a member of a queue group may have been denied a message since then: that message
    /// is passed on to another one.
    pub(crate) fn was_deniable_since(&self, id: usize, since: Step) -> bool {
        let is_denied =
            || !self.deniers.is_empty() || self.last_denial.is_some_and(|at| at >= since);
        self.is_deniable(self.messages[id].subject) && is_denied()
    }

    /// An operation is answered with an error, and with nothing else.
    fn refuse(&mut self, s: usize, op: usize, error: &'static str) {
        let awaited = &mut self.sessions[s].awaited;
        awaited.retain(|(reply, of)| *of != op || *reply != Awaited::Ok);
        let at = awaited.partition_point(|(_, other)| *other <= op);
        awaited.insert(at, (Awaited::Err(error), op));
    }

    /// The server of an open session has got another configuration, on the session's shard.
    pub(crate) fn reloaded(&mut self, s: usize, rules: Rules) {
        self.step += 1;
        let session = &mut self.sessions[s];
        if !rules.undelivered {
            session.denied_since = None;
            return;
        }
        session.denied_since.get_or_insert(self.step);
        // The end of a stream is no operation: whoever has heard of it is not among those.
        let is_said = |last: usize| last == 0 || session.ops[last - 1].end < session.ops[last].end;
        let is_over =
            session.last_op.is_some_and(|last| last < session.handed_ops && is_said(last));
        if std::mem::take(&mut session.is_private) && !is_over {
            let last = session.handed_ops - 1;
            let at = session.awaited.partition_point(|(_, op)| *op <= last);
            session.awaited.insert(at, (REMOVED, last));
        }
    }

    pub(crate) fn sub_private(&mut self, s: usize) {
        let (filter, sid) = PRIVATE;
        let op = self.write(s, format!("SUB {filter} {sid}\r\n").as_bytes());
        self.sessions[s].private_ops.push(op);
        self.await_ok(s, op);
    }

    /// The engine has got an operation when these rules were in force.
    fn obey(&mut self, s: usize, op: usize, rules: Rules) {
        let session = &mut self.sessions[s];
        // The first CONNECT ends nothing.
        if session.configs.iter().skip(1).any(|(at, _)| *at == op) {
            session.is_private = false;
        }
        if session.private_ops.contains(&op) {
            if rules.undelivered {
                let text = "Permissions Violation for Subscription to \"private\"";
                return self.refuse(s, op, text);
            }
            session.is_private = true;
        }
        if !rules.unpublished {
            return;
        }
        let id = session.messages.iter().copied().find(|id| self.messages[*id].op == op);
        let message = id.map(|id| &mut self.messages[id]);
        if let Some(message) = message.filter(|m| SUBJECTS[m.subject] == UNPUBLISHED) {
            message.is_denied = true;
            self.refuse(s, op, "Permissions Violation for Publish to \"a.c\"");
        }
    }

    /// A route between two servers comes to its end: what is on its way is lost.
    pub(crate) fn part(&mut self, one: usize, other: usize) {
        self.partings.push((one.min(other), one.max(other), self.step));
    }

    /// Whether no route between two servers came to its end in that time; if others are between
    /// the two, no route at all.
    pub(crate) fn are_joined(&self, one: usize, other: usize, from: Step, to: Step) -> bool {
        let pair = (one.min(other), one.max(other));
        let is_between = |between: (usize, usize)| between == pair || self.has_leaves;
        let parted =
            |&(a, b, at): &(usize, usize, Step)| is_between((a, b)) && at >= from && at <= to;
        !self.partings.iter().any(parted)
    }

    /// Whether any route came to its end since then.
    pub(crate) fn has_parted_since(&self, step: Step) -> bool {
        self.partings.iter().any(|(.., at)| *at >= step)
    }

    /// When everything was last at rest before a moment.
    pub(crate) fn rest_before(&self, step: Step) -> Option<Step> {
        self.rests.iter().rev().copied().find(|rest| *rest < step)
    }

    /// When everything was next at rest after a moment.
    pub(crate) fn rest_after(&self, step: Step) -> Option<Step> {
        self.rests.iter().copied().find(|rest| *rest > step)
    }

    /// Whether two sessions are at different servers. What one of them does is known to the other
    /// one's server some time later, and no reply says when.
    pub(crate) fn are_apart(&self, one: usize, other: usize) -> bool {
        self.sessions[one].server != self.sessions[other].server
    }

    /// Whether a route by which messages of one session came to the other may have ended since
    /// the time before `step`. Another one may be on another shard, with other lanes.
    pub(crate) fn may_have_parted(&self, one: usize, other: usize, step: Step) -> bool {
        let (one, other) = (self.sessions[one].server, self.sessions[other].server);
        let from = self.rest_before(step).unwrap_or(0);
        one != other && !self.are_joined(one, other, from, Step::MAX)
    }

    fn write(&mut self, s: usize, wire: &[u8]) -> usize {
        self.step += 1;
        let session = &mut self.sessions[s];
        session.out.extend_from_slice(wire);
        let (end, written) = (session.out.len(), self.step);
        session.ops.push(Sent { end, written, handed: None, confirmed: None });
        session.ops.len() - 1
    }

    fn await_ok(&mut self, s: usize, op: usize) {
        if self.sessions[s].config_at(op).verbose {
            self.sessions[s].awaited.push_back((Awaited::Ok, op));
        }
    }

    /// The engine has got the first `len` bytes of what a session sends.
    pub(crate) fn handed(&mut self, s: usize, len: usize, rules: Rules) {
        self.step += 1;
        let session = &mut self.sessions[s];
        let first = session.handed_ops;
        while let Some(op) = session.ops.get_mut(session.handed_ops).filter(|op| op.end <= len) {
            op.handed = Some(self.step);
            session.handed_ops += 1;
        }
        if self.has_reloads {
            for op in first..self.sessions[s].handed_ops {
                self.obey(s, op, rules);
            }
        }
    }

    pub(crate) fn connect(&mut self, s: usize, config: Config) {
        let Config { verbose, pedantic, echo, headers, no_responders, protocol } = config;
        let wire = format!(
            "CONNECT {{\"verbose\":{verbose},\"pedantic\":{pedantic},\"echo\":{echo},\
             \"headers\":{headers},\"no_responders\":{no_responders},\"protocol\":{protocol}}}\r\n"
        );
        let op = self.write(s, wire.as_bytes());
        let again = std::mem::replace(&mut self.sessions[s].connected, true);
        self.sessions[s].configs.push((op, config));
        if again {
            self.end_all(s, op);
        }
        self.await_ok(s, op);
    }

    /// Another CONNECT, which keeps what decides about headers.
    pub(crate) fn connect_again(&mut self, s: usize, flags: u8) {
        let old = self.sessions[s].config();
        self.connect(
            s,
            Config {
                verbose: flags.is_multiple_of(4),
                pedantic: (flags / 4).is_multiple_of(4),
                echo: (flags / 16).is_multiple_of(2),
                ..old
            },
        );
    }

    fn end_all(&mut self, s: usize, op: usize) {
        for sub in self.subs.iter_mut().filter(|sub| sub.session == s && sub.end.is_none()) {
            sub.end = Some(op);
        }
    }

    pub(crate) fn ping(&mut self, s: usize) {
        let op = self.write(s, b"PING\r\n");
        let session = &mut self.sessions[s];
        session.awaited.push_back((Awaited::Pong, op));
        if session.connected && !std::mem::replace(&mut session.greeted, session.connected) {
            session.greeting = (session.config().protocol >= 1).then_some(op);
        }
    }

    pub(crate) fn pong(&mut self, s: usize) {
        self.write(s, b"PONG\r\n");
    }

    pub(crate) fn sub(
        &mut self,
        s: usize,
        filter: Option<usize>,
        queue: Option<usize>,
        reuse: bool,
    ) {
        let free = self.free_sid(s).filter(|_| reuse);
        let session = &mut self.sessions[s];
        let sid = free.unwrap_or_else(|| {
            session.sids += 1;
            session.sids
        });
        let filter = filter.unwrap_or(FILTERS.len());
        let text = FILTERS.get(filter).map_or_else(|| format!("_INBOX.{s}.*"), |f| (*f).to_owned());
        let queue_text = queue.map_or(String::new(), |queue| format!("{} ", QUEUES[queue]));
        let op = self.write(s, format!("SUB {text} {queue_text}{sid}\r\n").as_bytes());
        let used_up = self.subs.iter_mut().filter(|sub| sub.session == s && sub.sid == sid);
        used_up.filter(|sub| sub.end.is_none()).for_each(|sub| sub.end = Some(op));
        self.sessions[s].subs.push(self.subs.len());
        self.subs.push(Subscription {
            session: s,
            sid,
            filter,
            queue,
            op,
            written: self.step,
            end: None,
            limits: Vec::new(),
            received: 0,
            fuzzy: false,
        });
        self.await_ok(s, op);
    }

    /// A sid whose subscription has surely ended before a SUB that comes now.
    fn free_sid(&self, s: usize) -> Option<u32> {
        let subs = || self.sessions[s].subs.iter().map(|sub| &self.subs[*sub]);
        let taken: HashSet<u32> =
            subs().filter(|sub| sub.end.is_none() && !sub.is_used_up()).map(|s| s.sid).collect();
        subs().map(|sub| sub.sid).find(|sid| !taken.contains(sid))
    }

    /// One of the subscriptions that the client has not ended.
    fn pick(&self, s: usize, which: u8, only_unlimited: bool) -> Option<usize> {
        let open = |sub: &&usize| {
            let sub = &self.subs[**sub];
            sub.end.is_none() && (!only_unlimited || sub.limits.is_empty())
        };
        let open: Vec<usize> = self.sessions[s].subs.iter().filter(open).copied().collect();
        (!open.is_empty()).then(|| open[usize::from(which) % open.len()])
    }

    pub(crate) fn sub_twice(&mut self, s: usize, which: u8, filter: usize) {
        let Some(sub) = self.pick(s, which, true) else { return };
        let wire = format!("SUB {} {}\r\n", FILTERS[filter], self.subs[sub].sid);
        let op = self.write(s, wire.as_bytes());
        self.await_ok(s, op);
    }

    pub(crate) fn sub_invalid(&mut self, s: usize, filter: usize) {
        let op = self.write(s, format!("SUB {} 999999\r\n", BAD_FILTERS[filter]).as_bytes());
        self.sessions[s].awaited.push_back((Awaited::Err("Invalid Subject"), op));
    }

    pub(crate) fn unsub(&mut self, s: usize, which: u8) {
        let Some(sub) = self.pick(s, which, false) else { return };
        let op = self.write(s, format!("UNSUB {}\r\n", self.subs[sub].sid).as_bytes());
        self.subs[sub].end = Some(op);
        self.await_ok(s, op);
    }

    pub(crate) fn unsub_max(&mut self, s: usize, which: u8, max: u64) {
        let Some(sub) = self.pick(s, which, false) else { return };
        let op = self.write(s, format!("UNSUB {} {max}\r\n", self.subs[sub].sid).as_bytes());
        self.subs[sub].limits.push(Limit { op, max, count_then: None });
        self.await_ok(s, op);
    }

    pub(crate) fn unsub_unknown(&mut self, s: usize) {
        let op = self.write(s, b"UNSUB 888888\r\n");
        self.await_ok(s, op);
    }

    /// `shape` decides about header, reply and size; the last is at most `filler` bytes and what
    /// identifies the message.
    pub(crate) fn publish(&mut self, s: usize, subject: usize, shape: u8, filler: usize) {
        let id = self.messages.len();
        let config = self.sessions[s].config();
        let header = config.headers && shape % 4 == 1;
        let empty_header = config.headers && shape % 16 == 2;
        let reply = (shape / 16 % 4 == 1).then(|| format!("_INBOX.{s}.{id}"));
        let mut payload = if header { HEADER.to_vec() } else { Vec::new() };
        payload.extend_from_slice(format!("{id}:").as_bytes());
        fill(&mut payload, id, filler);
        let pad = if shape / 64 == 3 { "00" } else { "" };
        let size_text = format!("{pad}{}", payload.len());
        let mut wire = Vec::new();
        let hpub = header || empty_header;
        let header_len = hpub.then_some(if header { HEADER.len() } else { 0 });
        let mut line = format!("{} {} ", if hpub { "HPUB" } else { "PUB" }, SUBJECTS[subject]);
        for part in [reply.clone(), header_len.map(|len| len.to_string())].into_iter().flatten() {
            let _ = write!(line, "{part} "); // Writing to a String cannot fail.
        }
        wire.extend_from_slice(line.as_bytes());
        wire.extend_from_slice(size_text.as_bytes());
        wire.extend_from_slice(b"\r\n");
        wire.extend_from_slice(&payload);
        wire.extend_from_slice(b"\r\n");
        let op = self.write(s, &wire);
        self.sessions[s].messages.push(id);
        let written = self.step;
        let header_len = header_len.filter(|len| *len > 0);
        let message = Publication {
            session: s,
            op,
            subject,
            reply,
            header_len,
            payload,
            size_text,
            written,
            is_denied: false,
        };
        self.messages.push(message);
        if config.pedantic && !subject::is_valid_publish(SUBJECTS[subject].as_bytes()) {
            let error = Awaited::Err("Invalid Publish Subject");
            self.sessions[s].awaited.push_back((error, op));
        }
        self.await_ok(s, op);
    }

    /// Breaks the protocol; what comes behind has no effect.
    pub(crate) fn garbage(&mut self, s: usize, which: u8) {
        let (wire, error): (&[u8], _) = match which % 5 {
            0 => (b"BOGUS\r\n", Some("Unknown Protocol Operation")),
            1 => (b"SUB \r\n", None),
            2 => (b"PUB a 3\r\nabcdef", Some("Unknown Protocol Operation")),
            3 => (b"PUB a 999999999\r\n", Some("Maximum Payload Violation")),
            _ => (b"CONNECT []\r\n", None),
        };
        let op = self.write(s, wire);
        self.end_all(s, op);
        self.sessions[s].last_op = Some(op);
        if let Some(error) = error {
            self.sessions[s].awaited.push_back((Awaited::Err(error), op));
        }
    }

    pub(crate) fn half_close(&mut self, s: usize) {
        let op = self.write(s, b"");
        self.end_all(s, op);
        self.sessions[s].last_op = Some(op);
    }

    pub(crate) fn reset(&mut self, s: usize) {
        self.step += 1;
        self.sessions[s].reset = true;
    }

    /// The most bytes that could ever have been queued for a session.
    pub(crate) fn owed_bytes_max(&self, s: usize) -> usize {
        let session = &self.sessions[s];
        let mut bytes = 2_000 + session.ops.len() * 100;
        // Each time that a route comes or goes there may be an INFO.
        bytes += self.partings.len() * 3_000 + session.info_count * 600;
        for message in &self.messages {
            let subs = session.subs.iter().map(|sub| &self.subs[*sub]);
            let matching = subs.filter(|sub| self.matches(sub.filter, message.subject)).count();
            bytes += matching * (message.payload.len() + 100) + 150;
        }
        bytes
    }
}

/// Appends `len` bytes that look like operations, different ones for each message.
pub(crate) fn fill(payload: &mut Vec<u8>, id: usize, len: usize) {
    const PATTERN: &[u8] = b"PING\r\nMSG a 1 2\r\n+OK\r\n-ERR 'x'\r\nPUB b 0\r\n\r\n0123456789";
    let skip = id % PATTERN.len();
    let end = payload.len() + len;
    payload.extend_from_slice(&PATTERN[skip..]);
    while payload.len() < end {
        payload.extend_from_slice(PATTERN);
    }
    payload.truncate(end);
}
