//! Imports and exports: messages that leave an account for another, and the answers of services.
//!
//! **Outlets.** An import is an [`Outlet`] of the account that a message is published in: for a
//! stream the exporting account, for a service the importing one. The outlets of a subject are
//! part of what it resolves to, so a subject without any pays one look at an empty list. With
//! some, the publisher's shard renders the run again, with the other account's subject, and
//! delivers it by that account's own interest and cache. So no cache depends on the subscriptions
//! of another account. A message that came by a stream import goes no further; one that came by a
//! service may, through at most 16 accounts (`HOPS_MAX`).
//!
//! **Answers of services.** A request to a service gets a reply subject of its own,
//! `_R_.<server>.<shard><number>`, which hides the requester's from the exporting account. A
//! message on it goes, besides its subscribers, to the shard that it names. Only that shard knows
//! the requester's reply subject, how many answers are allowed, and until when: at most 64 Ki
//! entries and 16 MiB for each asking account (`ANSWERS_MAX`, `ANSWERS_BYTES_MAX`). The oldest
//! entry of the same account is forgotten first.
//!
//! **The server's own services.** The system account has an `Outlet::Server` for each request that
//! the server answers; those requests go to the thread `system`.

#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use ahash::RandomState;
use serde::Serialize;

use super::account_settings::Response;
use super::accounts::AccountId;
use super::interest::Targets;
use super::message_trace::{DEST, DISABLED, StepEvent, with_header};
use super::publish::{Audience, Source};
use super::record::{Record, RunRecord};
use super::run::{Content, Run};
use super::tokens::TokenUser;
use super::{Conn, ConnId, Engine, ShardId, ShardSet};
use crate::proto::encode;
use crate::subject::{self, Transform};

/// Accounts that a message may go through.
const HOPS_MAX: u8 = 16;
/// What a shard remembers of requests of one account that may still be answered; beyond, the
/// oldest is forgotten.
const ANSWERS_MAX: usize = 64 * 1024;
const ANSWERS_BYTES_MAX: usize = 16 * 1024 * 1024;
/// What remembering one costs besides its reply subject, in bytes.
const ANSWER_BYTES: usize = 96;
/// Requests to the server itself that wait to be taken; more are not answered.
const SERVER_REQUESTS_MAX: usize = 1024;
/// An answer to an answer is taken for as long as this.
const ANSWER_BACK_NS: u64 = 120_000_000_000;

const ANSWER_PREFIX: &[u8] = b"_R_.";
const REQUEST_INFO: &[u8] = b"Nats-Request-Info:";

/// Where messages of an account go besides its own subscriptions.
#[derive(Debug)]
pub(super) enum Outlet {
    /// To the subscriptions of an account that imports them.
    Stream {
        /// That account.
        to: AccountId,
        /// From subjects of the exporting account to those of the importing one.
        transform: Transform,
        /// Messages that are traced are so beyond.
        trace: bool,
    },
    /// To the account that answers them.
    Service {
        /// That account.
        to: AccountId,
        /// From subjects of the importing account to those of the exporting one.
        transform: Transform,
        /// How many answers there are.
        response: Response,
        /// How long one is taken.
        threshold_ns: u64,
        /// Who answers is told who asks.
        share: bool,
        /// Messages that are traced are so beyond.
        trace: bool,
    },
    /// To the server itself.
    Server {
        /// Other servers may ask, too: each answers for itself.
        of_cluster: bool,
    },
}

/// How long an answer of JetStream is taken, in nanoseconds.
const JETSTREAM_NS: u64 = 120_000_000_000;

impl Outlet {
    /// Requests to JetStream, which other servers of the cluster may have.
    pub(super) fn jetstream(system: AccountId) -> Option<Self> {
        Some(Self::Service {
            to: system,
            transform: Transform::new(b"$JS.API.>", b"$JS.API.>").ok()?,
            response: Response::Stream,
            threshold_ns: JETSTREAM_NS,
            share: true,
            trace: false,
        })
    }

    /// The account that answers, if it is a service.
    pub(super) fn asked(&self) -> Option<AccountId> {
        match self {
            Self::Service { to, .. } => Some(*to),
            _ => None,
        }
    }

    /// Requests about an account, which every server answers for its own part of it.
    pub(super) fn own_account(system: AccountId, from: &str, to: &str) -> Option<Self> {
        Some(Self::Service {
            to: system,
            transform: Transform::new(from.as_bytes(), to.as_bytes()).ok()?,
            response: Response::Stream,
            threshold_ns: ANSWER_BACK_NS,
            share: false,
            trace: false,
        })
    }

    /// Whether other servers have to send what is published there.
    pub(super) fn is_told(&self) -> bool {
        matches!(self, Self::Stream { .. } | Self::Server { of_cluster: true })
    }
}

/// An outlet for one subject.
#[derive(Debug)]
pub(super) struct Exit {
    pub(super) outlet: Rc<Outlet>,
    /// The subject behind it.
    pub(super) subject: Box<[u8]>,
}

impl Exit {
    /// `None` if the outlet is not for this subject.
    pub(super) fn of(outlet: &Rc<Outlet>, subject: &[u8]) -> Option<Self> {
        let mut mapped = Vec::new();
        match &**outlet {
            Outlet::Stream { transform, .. } | Outlet::Service { transform, .. } => {
                // Imports have nothing random in them.
                let mut rng = fastrand::Rng::with_seed(0);
                transform.apply(subject, &mut rng, &mut mapped).then_some(())?;
            }
            Outlet::Server { .. } => mapped.extend_from_slice(subject),
        }
        Some(Self { outlet: Rc::clone(outlet), subject: mapped.into() })
    }
}

/// A request to the server itself.
#[derive(Debug)]
pub struct ServerRequest {
    /// Shard of the requester. An answer from another shard might arrive before the interest in
    /// it.
    pub shard: ShardId,
    /// Account of the request.
    pub account: AccountId,
    /// Subject of the request.
    pub subject: Box<[u8]>,
    /// Reply subject; empty if there is none.
    pub reply: Box<[u8]>,
    /// Payload of the request, without headers.
    pub payload: Box<[u8]>,
    /// Name of the account of the request.
    pub account_name: Arc<str>,
    /// User of the requester; `None` without authentication.
    pub user: Option<Box<str>>,
    /// Claims of the user's token, for a login by token.
    pub token: Option<Arc<TokenUser>>,
}

/// A request of a local connection that may still be answered.
#[derive(Debug)]
struct Answer {
    /// The account that answers.
    from: AccountId,
    /// The account that has asked, and where it waits.
    to: AccountId,
    reply: Box<[u8]>,
    response: Response,
    threshold_ns: u64,
    expires: u64,
}

/// The requests of local connections that may still be answered.
#[derive(Debug)]
pub(super) struct Answers {
    open: HashMap<u64, Answer, RandomState>,
    /// By asking account, the oldest first, each with its cost; some are answered already.
    queues: HashMap<AccountId, AnswerQueue, RandomState>,
}

#[derive(Debug, Default)]
struct AnswerQueue {
    ids: VecDeque<(u64, usize)>,
    bytes: usize,
}

impl Answers {
    pub(super) fn new(hasher: &RandomState) -> Self {
        Self {
            open: HashMap::with_hasher(hasher.clone()),
            queues: HashMap::with_hasher(hasher.clone()),
        }
    }

    fn insert(&mut self, id: u64, answer: Answer, now: u64) {
        let cost = ANSWER_BYTES + answer.reply.len();
        let queue = self.queues.entry(answer.to).or_default();
        queue.ids.push_back((id, cost));
        queue.bytes += cost;
        self.open.insert(id, answer);
        while let Some(&(oldest, cost)) = queue.ids.front() {
            let is_over = self.open.get(&oldest).is_none_or(|answer| answer.expires <= now);
            let is_full = queue.ids.len() > ANSWERS_MAX || queue.bytes > ANSWERS_BYTES_MAX;
            if !is_over && !is_full {
                break;
            }
            self.open.remove(&oldest);
            queue.ids.pop_front();
            queue.bytes -= cost;
        }
    }

    /// Where a message of `from` goes that answers request `id`; `body_bytes` are those behind its
    /// headers.
    fn take(
        &mut self,
        id: u64,
        from: AccountId,
        body_bytes: usize,
        now: u64,
    ) -> Option<(AccountId, Box<[u8]>)> {
        let answer = self.open.get_mut(&id).filter(|answer| answer.from == from)?;
        let is_last = match answer.response {
            Response::Singleton => true,
            // As in nats-server, an empty one is the last of a stream, too.
            Response::Stream | Response::Chunked => body_bytes == 0,
        };
        let is_late = answer.expires <= now;
        answer.expires = now.saturating_add(answer.threshold_ns);
        let destination = (answer.to, answer.reply.clone());
        if is_last || is_late {
            self.open.remove(&id);
        }
        (!is_late).then_some(destination)
    }
}

/// The shard that knows where messages on `subject` go, if it is one for answers.
pub(super) fn answering_shard(subject: &[u8]) -> Option<ShardId> {
    parse_answer(subject).map(|(_, shard, _)| shard)
}

/// The server, the shard and the number in it.
fn parse_answer(subject: &[u8]) -> Option<(&[u8], ShardId, u64)> {
    let text = std::str::from_utf8(subject.strip_prefix(ANSWER_PREFIX)?).ok()?;
    let (server, rest) = text.split_once('.')?;
    let (shard, id) = rest.split_at_checked(2)?;
    let shard = u8::from_str_radix(shard, 16).ok()?;
    Some((server.as_bytes(), ShardId(shard), u64::from_str_radix(id, 16).ok()?))
}

fn answer_subject(server: &str, shard: ShardId, id: u64) -> Vec<u8> {
    let mut subject = ANSWER_PREFIX.to_vec();
    subject.extend_from_slice(format!("{server}.{:02x}{id:016x}", shard.0).as_bytes());
    subject
}

/// The subjects of all answers to a server, as other servers are told.
pub(super) fn answers_filter(server: &str) -> Vec<u8> {
    [ANSWER_PREFIX, server.as_bytes(), b".>"].concat()
}

impl Engine {
    /// Requests to the server itself, until there are no more.
    pub fn pop_server_request(&mut self) -> Option<ServerRequest> {
        self.server_requests.pop_front()
    }

    /// Publishes a run wherever else it goes.
    pub(super) fn deliver_abroad(&mut self, source: &Source, run: &Run<'_>, targets: &Targets) {
        if source.hops >= HOPS_MAX {
            return;
        }
        for exit in &targets.exits {
            self.deliver_through(source, run, exit);
        }
        let server = self.settings.node.as_bytes();
        let is_ours = parse_answer(run.subject()).is_some_and(|(of, ..)| of == server);
        let answering = targets.answering.filter(|_| is_ours);
        if let Some(shard) = answering.filter(|shard| shard.index() < self.lanes.len()) {
            // The other shards cannot tell whether it is still waited for, so it always is.
            self.place_first(run.len());
            if shard == self.shard {
                self.deliver_answers(source, run);
            } else {
                self.stage_answers(source, run, shard);
            }
        }
    }

    /// Publishes a run in the account behind an outlet. If it is traced and may not be beyond, its
    /// trace ends here, and so does a message that is only to be traced.
    fn deliver_through(&mut self, source: &Source, run: &Run<'_>, exit: &Exit) {
        // A request enters a service where it was made.
        if source.routed && !exit.outlet.is_told() {
            return;
        }
        let aside = if self.trace.is_some() { self.trace_exit(run, exit) } else { None };
        if aside.as_ref().is_none_or(|trace| !trace.is_only()) {
            match &*exit.outlet {
                Outlet::Stream { to, .. } => self.deliver_stream(source, run, *to, &exit.subject),
                Outlet::Service { .. } => self.deliver_request(source, run, exit),
                Outlet::Server { of_cluster } => {
                    self.ask_server(source, run, &exit.subject, *of_cluster);
                }
            }
        }
        self.resume_trace(aside);
    }

    fn deliver_stream(&mut self, source: &Source, run: &Run<'_>, to: AccountId, subject: &[u8]) {
        let targets = self.targets(to, subject);
        if targets.is_empty() {
            return;
        }
        self.charge(run, &targets);
        // An import is of what is published there, not of what is imported there.
        // Other servers have the message as it was published, and import it themselves.
        let source = &Source { account: to, routed: true, origin: None, ..*source };
        self.deliver_at_home(source, &run.renamed(subject), &targets, Audience::All);
    }

    fn deliver_request(&mut self, source: &Source, run: &Run<'_>, exit: &Exit) {
        let Outlet::Service { to, response, threshold_ns, share, .. } = &*exit.outlet else {
            return;
        };
        let next = &Source { account: *to, hops: source.hops + 1, ..*source };
        let targets = self.targets(*to, &exit.subject);
        if targets.is_empty() {
            return;
        }
        for publish in run.publishes() {
            let reply = publish.reply.map(|reply| {
                let answer = Answer {
                    from: *to,
                    to: source.account,
                    reply: reply.into(),
                    response: *response,
                    threshold_ns: *threshold_ns,
                    expires: self.now.saturating_add(*threshold_ns),
                };
                self.expect_answer(answer)
            });
            let info = self.settings.headers.then(|| self.request_info(source, *share));
            let mut header = Cow::Borrowed(publish.header_block());
            if let Some(info) = info {
                header = with_header(&header, REQUEST_INFO, &info).into();
            }
            if let Some(dest) = self.trace_dest_beyond(*to, &header) {
                header = with_header(&header, DEST, &dest).into();
            }
            let content = Content::new(&header, publish.body());
            let request = Run::of(content.publish(&exit.subject, reply.as_deref()));
            self.charge(&request, &targets);
            self.deliver(next, &request, &targets);
        }
    }

    /// What is said of where a message is traced to, to the account that it enters; `None` if
    /// nothing was. Who may go on with a trace tells it by a subject of that account.
    fn trace_dest_beyond(&mut self, asked: AccountId, header: &[u8]) -> Option<Vec<u8>> {
        memchr::memmem::find(header, DEST)?;
        let dest = self.trace.as_ref().and_then(|trace| trace.dest());
        let Some((dest, asking)) = dest else { return Some(DISABLED.to_vec()) };
        let answer = Answer {
            from: asked,
            to: asking,
            reply: dest.into(),
            response: Response::Stream,
            threshold_ns: ANSWER_BACK_NS,
            expires: self.now.saturating_add(ANSWER_BACK_NS),
        };
        Some(self.expect_answer(answer))
    }

    /// Remembers where an answer goes; returns the subject that it is published on.
    fn expect_answer(&mut self, answer: Answer) -> Vec<u8> {
        let id = self.rng.u64(..);
        self.answers.insert(id, answer, self.now);
        answer_subject(&self.settings.node, self.shard, id)
    }

    /// Publishes answers where they are waited for.
    pub(super) fn deliver_answers(&mut self, source: &Source, run: &Run<'_>) {
        if self.is_trace_only() {
            return;
        }
        for publish in run.publishes() {
            let Some((_, _, id)) = parse_answer(publish.subject) else { continue };
            let body_bytes = publish.body().len();
            let taken = self.answers.take(id, source.account, body_bytes, self.now);
            let Some((to, subject)) = taken else { continue };
            let reply = publish.reply.map(|reply| {
                self.expect_answer(Answer {
                    from: to,
                    to: source.account,
                    reply: reply.into(),
                    response: Response::Singleton,
                    threshold_ns: ANSWER_BACK_NS,
                    expires: self.now.saturating_add(ANSWER_BACK_NS),
                })
            });
            let mut aside = None;
            if self.trace.is_some() {
                let (from, account) = (publish.subject.into(), self.accounts.name(to));
                let event = StepEvent::Service { account, from, to: subject.clone() };
                // Whom an answer reaches is nothing that who answers may follow.
                aside = self.trace_leaves(Some(event), false);
            }
            let mut header = Cow::Borrowed(publish.header_block());
            if memchr::memmem::find(&header, DEST).is_some() {
                header = with_header(&header, DEST, DISABLED).into();
            }
            let content = Content::new(&header, publish.body());
            let answer = Run::of(content.publish(&subject, reply.as_deref()));
            // Whoever waits may be anywhere in the cluster.
            let (hops, routed, origin) = (source.hops + 1, false, None);
            let next = &Source { account: to, hops, routed, origin, ..*source };
            let targets = self.targets(to, &subject);
            self.charge(&answer, &targets);
            self.deliver(next, &answer, &targets);
            self.resume_trace(aside);
        }
    }

    fn stage_answers(&mut self, source: &Source, run: &Run<'_>, shard: ShardId) {
        let Source { account, publisher, echo, routed, hops, .. } = *source;
        let record = RunRecord {
            account,
            publisher,
            echo,
            routed,
            origin: None,
            visited: ShardSet::default(),
            arrived: self.arrived,
            trace: self.ticket(),
            ask: None,
            wire: run.concat(),
            plain: false,
            answers: true,
            hops,
            picks: Vec::new(),
        };
        self.stage(shard, Record::Run(Box::new(record)));
    }

    fn ask_server(&mut self, source: &Source, run: &Run<'_>, subject: &[u8], of_cluster: bool) {
        if self.is_trace_only() {
            return;
        }
        self.place_first(run.len());
        let conn = self.conns.get(source.publisher.conn);
        let user = conn.and_then(|conn| conn.user.as_ref());
        let token = user.and_then(|user| user.pass.as_ref()).map(|pass| &pass.says);
        let user = user.and_then(|user| user.name.clone());
        let token = token.map(Arc::clone);
        let account_name = self.accounts.name(source.account);
        for publish in run.publishes() {
            // What all servers are told need not be answered.
            let Some(reply) = publish.reply.or(of_cluster.then_some(b"")) else { continue };
            if self.server_requests.len() < SERVER_REQUESTS_MAX {
                self.server_requests.push_back(ServerRequest {
                    shard: self.shard,
                    account: source.account,
                    subject: subject.into(),
                    reply: reply.into(),
                    payload: publish.body().into(),
                    account_name: Arc::clone(&account_name),
                    user: user.clone(),
                    token: token.clone(),
                });
            }
        }
    }

    /// What is said of the requester to who answers: the account it is in, and the one through
    /// which its request came; with `share`, who it is.
    fn request_info(&self, source: &Source, share: bool) -> Vec<u8> {
        let conn = self.conns.get(source.publisher.conn);
        let conn = conn.filter(|_| source.publisher.shard == self.shard);
        let here = self.accounts.name(source.account);
        let mut info = RequestInfo::default();
        let account = conn.map_or_else(|| Arc::clone(&here), Conn::account_name);
        info.acc = &account;
        if let Some(conn) = conn {
            info.svc = Some(&*here).filter(|here| **here != *account);
            info.rtt = Some(conn.timing.rtt);
            if share {
                let user = conn.user.as_ref().and_then(|user| user.name.as_deref());
                info.start = Some(self.settings.wall_clock(conn.timing.opened));
                let given = |text| Some(text).filter(|text: &&str| !text.is_empty());
                info.host = Some(&conn.peer.ip);
                info.id = Some(conn.peer.cid);
                info.user = user;
                info.name = given(&conn.connect.name);
                info.lang = given(&conn.connect.lang);
                info.ver = given(&conn.connect.version);
                info.server = Some(self.settings.server_name());
                // JetStream places a stream in the cluster where it is asked for.
                info.cluster = self.cluster.name.as_deref();
                (info.kind, info.client_type) = (Some("Client"), Some("nats"));
            }
        }
        serde_json::to_vec(&info).unwrap_or_default()
    }

    /// Publishes a message of the server itself in an account; an empty `reply` is none.
    pub fn publish_own(
        &mut self,
        account: AccountId,
        subject: &[u8],
        reply: &[u8],
        payload: &[u8],
    ) {
        let reply = Some(reply).filter(|reply| !reply.is_empty());
        if ![Some(subject), reply].into_iter().flatten().all(subject::is_word) {
            let subject = encode::go_quoted(subject);
            return tracing::error!("Not published on {subject}: that is no subject, or its reply");
        }
        let content = Content::new(b"", payload);
        let run = Run::of(content.publish(subject, reply));
        let nobody = ConnId { slot: u32::MAX, generation: u32::MAX };
        let source = Source::new(account, self.shard, nobody);
        let targets = self.targets(account, subject);
        self.deliver(&source, &run, &targets);
        self.settle_deliveries();
    }
}

/// Who asks, in the order in which nats-server says it.
#[derive(Debug, Default, Serialize)]
struct RequestInfo<'a> {
    /// When the requester was connected.
    #[serde(skip_serializing_if = "Option::is_none")]
    start: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    acc: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    svc: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lang: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ver: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rtt: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_type: Option<&'a str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers() -> Answers {
        Answers::new(&RandomState::with_seeds(1, 2, 3, 4))
    }

    fn answer(to: u32, response: Response, reply: &[u8], expires: u64) -> Answer {
        Answer {
            from: AccountId::new(9),
            to: AccountId::new(to),
            reply: reply.into(),
            response,
            threshold_ns: 100,
            expires,
        }
    }

    #[test]
    fn only_the_account_that_was_asked_can_answer_and_only_as_often_as_it_may() {
        let mut all = answers();
        let (asked, other) = (AccountId::new(9), AccountId::new(8));
        all.insert(1, answer(1, Response::Singleton, b"r", 100), 0);
        assert_eq!(all.take(1, other, 1, 0), None);
        assert!(all.take(1, asked, 1, 0).is_some());
        assert_eq!(all.take(1, asked, 1, 0), None, "one answer is all");
        all.insert(2, answer(1, Response::Stream, b"r", 100), 0);
        assert!((0..5).all(|_| all.take(2, asked, 1, 0).is_some()));
        all.insert(3, answer(1, Response::Chunked, b"r", 100), 0);
        assert!(all.take(3, asked, 1, 0).is_some());
        assert!(all.take(3, asked, 0, 0).is_some(), "the end is still delivered");
        assert_eq!(all.take(3, asked, 1, 0), None);
    }

    #[test]
    fn an_answer_that_comes_too_late_goes_nowhere() {
        let mut all = answers();
        all.insert(1, answer(1, Response::Stream, b"r", 100), 0);
        let asked = AccountId::new(9);
        assert!(all.take(1, asked, 1, 99).is_some());
        assert!(all.take(1, asked, 1, 198).is_some(), "each answer gives time for the next");
        assert_eq!(all.take(1, asked, 1, 298), None);
        assert_eq!(all.open.len(), 0);
    }

    #[test]
    fn requests_that_nobody_answers_push_out_only_those_of_their_own_account() {
        let mut all = answers();
        all.insert(u64::MAX, answer(2, Response::Singleton, b"r", u64::MAX), 0);
        for id in 0..2 * ANSWERS_MAX as u64 {
            all.insert(id, answer(1, Response::Singleton, b"r", u64::MAX), 0);
        }
        assert_eq!(all.open.len(), ANSWERS_MAX + 1);
        for id in 0..20_000 {
            all.insert(id, answer(1, Response::Singleton, &[b'x'; 4000], u64::MAX), 0);
        }
        assert!(all.open.len() * 4000 < ANSWERS_BYTES_MAX + 4000, "{}", all.open.len());
        assert!(all.take(u64::MAX, AccountId::new(9), 1, 0).is_some());
    }

    #[test]
    fn an_answers_subject_names_its_shard_and_no_other_subject_does() {
        for (shard, id) in [(0, 0), (63, u64::MAX), (7, 0xabc)] {
            let subject = answer_subject("S", ShardId(shard), id);
            assert_eq!(parse_answer(&subject), Some((&b"S"[..], ShardId(shard), id)));
        }
        for subject in ["_R_.", "_R_.x", "_R_.S.0", "_R_.S.00", "_R_.S.zz1", "_R_.001", "a.S.001"] {
            assert_eq!(parse_answer(subject.as_bytes()), None, "{subject}");
        }
    }

    #[test]
    fn a_requester_cannot_say_itself_who_it_is() {
        let with = |header: &str| {
            String::from_utf8(with_header(header.as_bytes(), REQUEST_INFO, b"{}")).unwrap()
        };
        assert_eq!(with(""), "NATS/1.0\r\nNats-Request-Info: {}\r\n\r\n");
        let given = "NATS/1.0\r\nA: b\r\nnats-request-info: {\"acc\":\"X\"}\r\n\r\n";
        assert_eq!(with(given), "NATS/1.0\r\nA: b\r\nNats-Request-Info: {}\r\n\r\n");
    }
}
