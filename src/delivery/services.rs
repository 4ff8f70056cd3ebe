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
//! `_R_.<server>.<shard><number>`, which hides the requester's from the exporting account; that of
//! a measured request ends in `.<server>.T`. A message on it goes, besides its subscribers, to the
//! shard that it names. Only that shard knows the requester's reply subject, how many answers are
//! allowed, and until when: at most 64 Ki entries and 16 MiB for each asking account
//! (`ANSWERS_MAX`, `ANSWERS_BYTES_MAX`). The oldest entry of the same account is forgotten first.
//!
//! **The server's own services.** The system account has a tap (`Tap::Server`) for each request
//! that the server answers; those requests go to the thread `system`.

use std::borrow::Cow;
use std::sync::Arc;

use serde::Serialize;

use crate::core::Core;
use crate::core::answers::{Answer, CalloutAnswer, ServerRequest};
use crate::core::conn::Conn;
use crate::core::message_trace::{self, StepEvent};
use crate::delivery::publish::{Audience, Source};
use crate::delivery::{deliver, latency, taps, traced};
use crate::interest::account_settings::Response;
use crate::interest::ids::{AccountId, Publisher};
use crate::interest::outlets::{
    ANSWER_BACK_NS, Exit, Outlet, answer_subject, measured_answer_subject, parse_answer,
};
use crate::interest::reach::Kind;
use crate::interest::targets::Targets;
use crate::proto::headers::{DEST, DISABLED, with_header};
use crate::run::{Content, Run};

/// Accounts that a message may go through.
pub(super) const HOPS_MAX: u8 = 16;

const REQUEST_INFO: &[u8] = b"Nats-Request-Info:";

/// Information about a requester, in the order of nats-server.
#[derive(Debug, Default, Serialize)]
struct RequestInfo<'a> {
    /// Time at which the requester connected.
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

/// Publishes a run in the accounts behind its exits.
pub(super) fn deliver_abroad(core: &mut Core, source: &Source, run: &Run<'_>, targets: &Targets) {
    if source.hops >= HOPS_MAX {
        return;
    }
    for exit in &targets.exits {
        deliver_through(core, source, run, exit);
    }
}

/// Publishes a run in the account behind an outlet. If it is traced and may not be beyond, its
/// trace ends here, and so does a message that is only to be traced.
fn deliver_through(core: &mut Core, source: &Source, run: &Run<'_>, exit: &Exit) {
    // A request enters a service on the server where it was made.
    if source.from.has_entered_services() && !exit.outlet.is_told() {
        return;
    }
    let aside =
        if core.tracer.trace.is_some() { traced::trace_exit(core, run, exit) } else { None };
    if aside.as_ref().is_none_or(|trace| !trace.is_only()) {
        match &*exit.outlet {
            Outlet::Stream { to, .. } => deliver_stream(core, source, run, *to, &exit.subject),
            Outlet::Service { .. } => deliver_request(core, source, run, exit),
        }
    }
    message_trace::resume_trace(core, aside);
}

fn deliver_stream(core: &mut Core, source: &Source, run: &Run<'_>, to: AccountId, subject: &[u8]) {
    let targets = core.targets(to, subject);
    if targets.is_empty() {
        return;
    }
    core.charge(run, &targets);
    // An import is of messages that are published there, not imported there: it goes no further.
    // Other servers have the message as it was published, and import it themselves.
    let (from, named_by, hops) = (Kind::Route, None, HOPS_MAX);
    let source = &Source { account: to, from, named_by, hops, ..*source };
    let run = &run.renamed(subject);
    deliver::deliver_at_home(core, source, run, &targets, Audience::All);
    taps::deliver_to_taps(core, source, run, &targets);
}

fn deliver_request(core: &mut Core, source: &Source, run: &Run<'_>, exit: &Exit) {
    let Outlet::Service { to, response, threshold_ns, share, latency: rule, .. } = &*exit.outlet
    else {
        return;
    };
    let next = &Source { account: *to, hops: source.hops + 1, ..*source };
    let targets = core.targets(*to, &exit.subject);
    if targets.is_empty() && rule.is_none() {
        return;
    }
    for publish in run.publishes() {
        let has_receivers = !targets.is_empty();
        let measured = match rule {
            Some(_) => latency::begin(core, source, exit, publish, has_receivers),
            None => None,
        };
        if !has_receivers {
            continue;
        }
        let reply = publish.reply.map(|reply| {
            let answer = Answer {
                from: *to,
                to: source.account,
                reply: reply.into(),
                response: *response,
                threshold_ns: *threshold_ns,
                expires: core.times.now.saturating_add(*threshold_ns),
            };
            let Some(measured) = measured else { return expect_answer(core, answer) };
            let id = keep_answer(core, answer);
            core.requests.measured.insert(id, measured);
            measured_answer_subject(&core.settings.node, core.shard, id)
        });
        let info = core
            .settings
            .headers
            .then(|| request_info(core, source.publisher, source.account, *share));
        let mut header = Cow::Borrowed(publish.header_block());
        if let Some(info) = info {
            header = with_header(&header, REQUEST_INFO, &info).into();
        }
        if let Some(dest) = trace_dest_beyond(core, *to, &header) {
            header = with_header(&header, DEST, &dest).into();
        }
        let content = Content::new(&header, publish.body());
        let request = Run::of(content.publish(&exit.subject, reply.as_deref()));
        core.charge(&request, &targets);
        deliver::deliver(core, next, &request, &targets);
    }
}

/// Returns the trace destination of a message in the account that it enters; `None` if it had none.
/// An account that may follow a trace reports to it by a subject of its own; for the others tracing
/// is disabled.
fn trace_dest_beyond(core: &mut Core, asked: AccountId, header: &[u8]) -> Option<Vec<u8>> {
    memchr::memmem::find(header, DEST)?;
    let dest = core.tracer.trace.as_ref().and_then(|trace| trace.dest());
    let Some((dest, asking)) = dest else { return Some(DISABLED.to_vec()) };
    let answer = Answer {
        from: asked,
        to: asking,
        reply: dest.into(),
        response: Response::Stream,
        threshold_ns: ANSWER_BACK_NS,
        expires: core.times.now.saturating_add(ANSWER_BACK_NS),
    };
    Some(expect_answer(core, answer))
}

/// Keeps the destination of an answer; returns the subject that it is published on.
fn expect_answer(core: &mut Core, answer: Answer) -> Vec<u8> {
    let id = keep_answer(core, answer);
    answer_subject(&core.settings.node, core.shard, id)
}

/// Keeps the destination of an answer; returns its number.
fn keep_answer(core: &mut Core, answer: Answer) -> u64 {
    let id = core.random.rng.u64(..);
    core.requests.answers.insert(id, answer, core.times.now);
    id
}

/// Publishes answers on the reply subjects of their requests.
pub(super) fn deliver_answers(core: &mut Core, source: &Source, run: &Run<'_>) {
    if message_trace::is_trace_only(core) {
        return;
    }
    for message in &run.messages {
        let publish = &message.publish;
        let Some((_, _, id)) = parse_answer(publish.subject) else { continue };
        let body_bytes = publish.body().len();
        let taken = core.requests.answers.take(id, source.account, body_bytes, core.times.now);
        let Some((to, subject)) = taken else { continue };
        if !core.requests.measured.is_empty() {
            latency::on_answer(core, source, id);
        }
        // Messages of streams are acknowledged by their own subjects, which accounts import.
        let reply = publish.reply.filter(|_| !message.is_stored()).map(|reply| {
            expect_answer(
                core,
                Answer {
                    from: to,
                    to: source.account,
                    reply: reply.into(),
                    response: Response::Singleton,
                    threshold_ns: ANSWER_BACK_NS,
                    expires: core.times.now.saturating_add(ANSWER_BACK_NS),
                },
            )
        });
        let mut aside = None;
        if core.tracer.trace.is_some() {
            let (from, account) = (publish.subject.into(), core.accounts.name(to));
            let event = StepEvent::Service { account, from, to: subject.clone() };
            // The receivers of an answer are not for the answering account to follow.
            aside = message_trace::trace_leaves(core, Some(event), false);
        }
        let mut header = Cow::Borrowed(publish.header_block());
        if memchr::memmem::find(&header, DEST).is_some() {
            header = with_header(&header, DEST, DISABLED).into();
        }
        let content = Content::new(&header, publish.body());
        let mut answer = Run::default();
        if message.is_stored() {
            answer.push_stored(content.publish(&subject, publish.reply));
        } else {
            answer = Run::of(content.publish(&subject, reply.as_deref()));
        }
        // The requester may be anywhere in the cluster.
        let (hops, from, named_by) = (source.hops + 1, Kind::Client, None);
        let staged_by = core.shard;
        let next = &Source { account: to, hops, from, named_by, staged_by, ..*source };
        let targets = core.targets(to, &subject);
        core.charge(&answer, &targets);
        deliver::deliver(core, next, &answer, &targets);
        message_trace::resume_trace(core, aside);
    }
}

/// Hands requests on to the server itself.
pub(super) fn ask_server(core: &mut Core, source: &Source, run: &Run<'_>, of_cluster: bool) {
    if message_trace::is_trace_only(core) {
        return;
    }
    core.requests.place_first(run.len());
    let conn = core.conns.get(source.publisher.conn);
    let user = conn.and_then(|conn| conn.login.user());
    let token = user.and_then(|user| user.pass.as_ref()).map(|pass| &pass.says);
    let user = user.and_then(|user| user.name.clone());
    let token = token.map(Arc::clone);
    let account_name = core.accounts.name(source.account);
    for publish in run.publishes() {
        // Requests to all servers need not be answered.
        let Some(reply) = publish.reply.or(of_cluster.then_some(b"")) else { continue };
        if core.out.takes_requests() {
            core.out.ask(ServerRequest {
                shard: core.shard,
                account: source.account,
                subject: publish.subject.into(),
                reply: reply.into(),
                payload: publish.body().into(),
                account_name: Arc::clone(&account_name),
                user: user.clone(),
                token: token.clone(),
            });
        }
    }
}

/// Hands on answers to questions about clients.
pub(super) fn take_callout_answers(core: &mut Core, run: &Run<'_>) {
    if message_trace::is_trace_only(core) {
        return;
    }
    core.requests.place_first(run.len());
    for publish in run.publishes() {
        if core.out.takes_callout_answers() {
            let (subject, payload) = (publish.subject.into(), publish.body().into());
            core.out.answer_callout(CalloutAnswer { subject, payload });
        }
    }
}

/// Returns all information about a requester, whose request has come into this account, as JSON.
pub(crate) fn client_info(core: &Core, publisher: Publisher, account: AccountId) -> Vec<u8> {
    request_info(core, publisher, account, true)
}

/// Returns the information about a requester for the service: its account, and the one through
/// which its request came; with `share`, also its user and connection.
fn request_info(core: &Core, publisher: Publisher, account: AccountId, share: bool) -> Vec<u8> {
    let conn = core.conns.get(publisher.conn);
    let conn = conn.filter(|_| publisher.shard == core.shard);
    let here = core.accounts.name(account);
    let mut info = RequestInfo::default();
    let account = conn.map_or_else(|| Arc::clone(&here), Conn::account_name);
    info.acc = &account;
    if let Some(conn) = conn {
        info.svc = Some(&*here).filter(|here| **here != *account);
        info.rtt = Some(conn.liveness.rtt);
        if share {
            let user = conn.login.user().and_then(|user| user.name.as_deref());
            info.start = Some(core.settings.wall_clock(conn.liveness.opened));
            let given = |text| Some(text).filter(|text: &&str| !text.is_empty());
            info.host = Some(&conn.peer.ip);
            info.id = Some(conn.peer.cid);
            info.user = user;
            info.name = given(&conn.connect.name);
            info.lang = given(&conn.connect.lang);
            info.ver = given(&conn.connect.version);
            info.server = Some(core.settings.server_name());
            // JetStream places a stream in the cluster where it is asked for.
            info.cluster = core.links.name.as_deref();
            (info.kind, info.client_type) = (Some("Client"), Some("nats"));
        }
    }
    serde_json::to_vec(&info).unwrap_or_default()
}
