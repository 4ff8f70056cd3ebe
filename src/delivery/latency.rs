//! Latency of services: the measurement of requests, and the reports on them in the exporting
//! account.
//!
//! A request is chosen where it enters the service (`interest::latency`): on the shard of its
//! connection, which keeps it until it is answered. The answer comes there, too, so both times are
//! of one shard; only who has answered may be known to another shard, which completes the report.
//! A report is an event (`ConnEvent::Measured`), of which the thread `system` makes a document.
//!
//! Where the responder is on another server, that one measures the service, too, and sends its half
//! ([`FarHalf`]); the report waits for it. In the same way this shard notes the requests that other
//! servers measure, and its clients' answers to them are events (`ConnEvent::Answered`), of which
//! the thread `system` makes a document for the server that measures.
//!
//! Services without a rule pay a look at an empty field for each request and answer.

use std::rc::Rc;
use std::sync::Arc;

use crate::core::Core;
use crate::core::conn::Conn;
use crate::core::events::{AnsweredRequest, ConnEvent, LatencyReport};
use crate::core::shard_message::Record;
use crate::core::snapshot::ConnSnapshot;
use crate::delivery::inside::NOBODY;
use crate::delivery::publish::Source;
use crate::interest::halves::FarHalf;
use crate::interest::ids::ConnId;
use crate::interest::latency::MeasuredRequest;
use crate::interest::outlets::{Exit, Outlet, measuring_server};
use crate::proto::Publish;
use crate::proto::gateway::plain_subject;
use crate::run::Run;

/// Status of a request that is answered.
const ANSWERED: u16 = 200;
/// Status of a request that cannot be answered, for want of a reply subject.
const BAD_REQUEST: u16 = 400;
/// Status of a request whose requester has left before the answer.
const LEFT: u16 = 408;
/// Status of a request that has no receiver.
const UNAVAILABLE: u16 = 503;
/// Status of a request that is not answered in time.
const TOO_LATE: u16 = 504;

/// Requests that are looked at in a turn for having no answer.
const ENDED_PER_TURN: usize = 512;

/// Decides whether a request is measured that enters a service by `exit`. Returns it if it waits
/// for an answer; one that can have none, or that nobody takes, is reported at once.
pub(super) fn begin(
    core: &mut Core,
    source: &Source,
    exit: &Exit,
    publish: &Publish<'_>,
    has_receivers: bool,
) -> Option<MeasuredRequest> {
    let Outlet::Service { to, threshold_ns, share, latency: Some(rule), .. } = &*exit.outlet else {
        return None;
    };
    let headers = rule.sample(publish.header_block(), &mut core.random.rng)?;
    let now = core.times.now;
    let measured = MeasuredRequest {
        rule: Arc::clone(rule),
        asked: *to,
        asking: source.account,
        reply: Rc::from(publish.reply.unwrap_or_default()),
        requester: source.publisher.conn,
        share: *share,
        headers,
        half: None,
        asked_ns: now,
        expires: now.saturating_add(*threshold_ns),
    };
    let status = match publish.reply {
        None => BAD_REQUEST,
        Some(_) if !has_receivers => UNAVAILABLE,
        Some(_) => return Some(measured),
    };
    end(core, measured, status);
    None
}

/// Ends the measurement of a request that `source` has answered.
pub(super) fn on_answer(core: &mut Core, source: &Source, id: u64) {
    let Some(mut measured) = core.requests.measured.remove(id) else { return };
    let far = measured.half.take();
    let responder = source.publisher;
    // As in nats-server, what a server answers by itself is not measured.
    if responder.conn == NOBODY {
        return;
    }
    let Some(mut report) = report(core, measured, ANSWERED) else { return };
    // An answer may have waited on its way from another shard.
    report.arrived_ns = core.times.arrived.clamp(report.asked_ns, report.ended_ns);
    let (conn, mut report) = (responder.conn, Box::new(report));
    if source.from.is_server() {
        if responder.shard == core.shard {
            report.responder = party(core, conn);
        }
        report.far = far;
        wait_for_half(core, id, report);
    } else if responder.shard == core.shard {
        complete(core, conn, report);
    } else {
        core.push_record(responder.shard, Record::Measured { responder: conn, report });
    }
}

/// Queues a report on an answer that another server has sent, or keeps it until the half of that
/// server comes.
fn wait_for_half(core: &mut Core, id: u64, report: Box<LatencyReport>) {
    if report.far.is_some() {
        return tell(core, report);
    }
    let (cost_bytes, now) = (report.cost_bytes(), core.times.now);
    for report in core.requests.reports.insert(id, report, cost_bytes, now) {
        tell(core, report);
    }
}

/// Takes the half that another server has measured of the request with this number. One that is
/// not waited for is dropped.
pub(crate) fn join(core: &mut Core, id: u64, half: Box<FarHalf>) {
    let asked = match core.requests.reports.get(id) {
        Some(report) => Some(report.account),
        None => core.requests.measured.asked(id),
    };
    if asked.is_none_or(|account| *core.accounts.name(account) != *half.account) {
        return;
    }
    match core.requests.reports.take(id) {
        Some(report) => tell(core, Box::new(LatencyReport { far: Some(half), ..*report })),
        None => core.requests.measured.keep_half(id, half),
    }
}

/// Notes the requests in a run from another server that are measured: clients here have got them,
/// and may answer.
pub(super) fn note_far_requests(core: &mut Core, source: &Source, run: &Run<'_>) {
    for publish in run.publishes() {
        let Some(reply) = publish.reply.map(plain_subject) else { continue };
        if measuring_server(reply).is_none() {
            continue;
        }
        let (account, now) = (source.account, core.times.now);
        let Some(threshold_ns) = core.accounts.at(account).answers_within(run.subject()) else {
            return;
        };
        core.requests.measured.halves.note(account, reply, now, now.saturating_add(threshold_ns));
    }
}

/// Tells the server that measures a request what has been measured here, if a client answers it
/// with this run.
#[cold]
pub(super) fn on_near_answer(core: &mut Core, source: &Source, run: &Run<'_>) {
    let (account, now) = (source.account, core.times.now);
    let Some(asked_ns) = core.requests.measured.halves.take(account, run.subject(), now) else {
        return;
    };
    if let Some(conn) = core.conns.get(source.publisher.conn).filter(|_| core.out.takes_events()) {
        core.out.tell(ConnEvent::Answered(Box::new(AnsweredRequest {
            reply: run.subject().into(),
            responder: conn.snapshot(),
            took_ns: asked_ns..now,
        })));
    }
}

/// Adds who has answered to a report, and queues it.
pub(crate) fn complete(core: &mut Core, responder: ConnId, mut report: Box<LatencyReport>) {
    report.responder = party(core, responder);
    tell(core, report);
}

/// Reports on the requests whose answers have no receiver any more; on very many in later turns.
pub(crate) fn end_turn(core: &mut Core) {
    for _ in 0..ENDED_PER_TURN {
        let Some((id, account, reply)) = core.requests.measured.next_left() else { return };
        if core.accounts.has_receivers(account, &reply) {
            core.requests.measured.keep(account, reply);
        } else if let Some(measured) = core.requests.measured.remove(id) {
            end(core, measured, LEFT);
        }
    }
}

/// Reports on the requests that have not been answered in time, and on those whose half has not
/// come; on very many in later turns.
pub(crate) fn tick(core: &mut Core) {
    core.requests.measured.halves.forget_late(core.times.now);
    for _ in 0..ENDED_PER_TURN {
        let Some(report) = core.requests.reports.pop_due(core.times.now) else { break };
        tell(core, report);
    }
    for _ in 0..ENDED_PER_TURN {
        let Some(measured) = core.requests.measured.pop_due(core.times.now) else { return };
        end(core, measured, TOO_LATE);
    }
}

fn end(core: &mut Core, measured: MeasuredRequest, status: u16) {
    if let Some(report) = report(core, measured, status) {
        tell(core, Box::new(report));
    }
}

fn tell(core: &mut Core, report: Box<LatencyReport>) {
    if core.out.takes_events() {
        core.out.tell(ConnEvent::Measured(report));
    }
}

/// Returns the report on a request that is over now; `None` if nobody would get it.
fn report(core: &mut Core, measured: MeasuredRequest, status: u16) -> Option<LatencyReport> {
    let MeasuredRequest { rule, asked, requester, share, headers, asked_ns, .. } = measured;
    if core.targets(asked, rule.subject.as_bytes()).is_empty() {
        return None;
    }
    let ended_ns = core.times.now;
    let requester = party(core, requester);
    Some(LatencyReport {
        account: asked,
        rule,
        status,
        requester,
        share,
        responder: None,
        headers,
        asked_ns,
        arrived_ns: ended_ns,
        ended_ns,
        far: None,
    })
}

/// Returns the client or leaf node of a connection.
fn party(core: &Core, conn: ConnId) -> Option<ConnSnapshot> {
    let is_shown = |conn: &&Conn| conn.link.as_ref().is_none_or(|link| link.leaf().is_some());
    core.conns.get(conn).filter(is_shown).map(Conn::snapshot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Account, Export, Import, LatencyRule, Options};
    use crate::config::{Response, Secret, Shared, UserOptions};
    use crate::engine::{Engine, Identity, Output, Peer, Settings, ShardId};
    use crate::interest::halves::HALF_WAIT_NS;
    use crate::interest::outlets::parse_answer;
    use crate::interest::reach::Kind;

    const REQUESTER: ConnId = ConnId { slot: 0, generation: 0 };
    const RESPONDER: ConnId = ConnId { slot: 1, generation: 0 };

    /// Two shards: the first has a requester of account A, the second a client of account S, which
    /// exports the service `svc` with the reports on `lat`.
    fn two_shards() -> [Engine; 2] {
        let mut options = Options::default();
        let export = Export {
            shared: Shared::Service,
            subject: "svc".into(),
            accounts: Vec::new(),
            account_token: 0,
            response: Response::Singleton,
            response_threshold_ms: 1000,
            allow_trace: false,
            latency: Some(LatencyRule { subject: "lat".into(), percent: 100 }),
        };
        let import = Import {
            shared: Shared::Service,
            account: "S".into(),
            subject: "svc".into(),
            local: "svc".into(),
            share: false,
            allow_trace: false,
        };
        options.accounts.add(Account { exports: vec![export], ..Account::named("S") });
        options.accounts.add(Account { imports: vec![import], ..Account::named("A") });
        for name in ["S", "A"] {
            let (account, password) = (name.to_owned(), Secret::new("p"));
            let user = UserOptions::named(name.to_owned());
            options.auth.users.push(UserOptions { account, password, ..user });
        }
        let settings = Rc::new(Settings::new(&options, &Identity::default(), usize::MAX));
        let mut engines = [(0, REQUESTER, "A", "SUB in 1"), (1, RESPONDER, "S", "SUB > 1")].map(
            |(shard, id, user, sub)| {
                let mut engine = Engine::new(ShardId(shard), 2, Rc::clone(&settings), 1);
                engine.open(id, Peer { cid: 1, ip: "".into(), port: 1 }, true);
                let login = format!("{{\"verbose\":false,\"user\":\"{user}\",\"pass\":\"p\"}}");
                engine.on_bytes(id, format!("CONNECT {login}\r\n{sub}\r\n").as_bytes());
                engine
            },
        );
        settle(&mut engines);
        engines
    }

    /// Takes turns until nothing happens any more. Returns the reports, each with its shard, and
    /// what the responder has got.
    fn settle(engines: &mut [Engine; 2]) -> (Vec<(usize, LatencyReport)>, String) {
        let (mut reports, mut heard) = (Vec::new(), String::new());
        for _ in 0..8 {
            for (at, other) in [(0, 1), (1, 0)] {
                let engine = &mut engines[at];
                engine.tick();
                engine.end_turn();
                while let Some(output) = engine.next_output() {
                    if let Output::Event(event) = output
                        && let ConnEvent::Measured(report) = *event
                    {
                        reports.push((at, *report));
                    }
                }
                while let Some(batch) = engine.take_batch(RESPONDER) {
                    let bytes: Vec<u8> =
                        batch.iter().flat_map(|piece| piece.bytes()).copied().collect();
                    engine.on_sent(RESPONDER, bytes.len(), Some(batch));
                    heard.push_str(&String::from_utf8_lossy(&bytes));
                }
                let to = ShardId(u8::try_from(other).unwrap());
                while let Some(record) = engines[at].pop_record(to) {
                    let from = ShardId(u8::try_from(at).unwrap());
                    engines[other].on_record(from, record);
                }
            }
        }
        (reports, heard)
    }

    fn ask(engines: &mut [Engine; 2]) -> String {
        engines[0].on_bytes(REQUESTER, b"PUB svc in 1\r\nx\r\n");
        let (reports, heard) = settle(engines);
        assert!(reports.is_empty());
        let reply = heard.split(' ').find(|word| word.starts_with("_R_."));
        reply.expect("a request").to_owned()
    }

    #[test]
    fn an_answer_of_another_shard_is_measured_where_it_was_asked_and_named_where_it_was_given() {
        let mut engines = two_shards();
        engines.iter_mut().for_each(|engine| engine.set_now(1000));
        let reply = ask(&mut engines);
        engines[1].set_now(5000);
        engines[1].on_bytes(RESPONDER, format!("PUB {reply} 1\r\ny\r\n").as_bytes());
        engines[1].end_turn();
        engines[0].set_now(5300);
        let (reports, _) = settle(&mut engines);
        let [(1, report)] = &reports[..] else { panic!("{reports:?}") };
        let account =
            |conn: &Option<ConnSnapshot>| conn.as_ref().map(|conn| conn.account.to_string());
        assert_eq!(account(&report.requester).as_deref(), Some("A"));
        assert_eq!(account(&report.responder).as_deref(), Some("S"));
        let times = (report.asked_ns, report.arrived_ns, report.ended_ns);
        assert_eq!((report.status, times), (ANSWERED, (1000, 5000, 5300)));
        assert!(engines[0].core.requests.measured.is_empty());
    }

    #[test]
    fn who_is_late_is_reported_when_the_time_is_over_and_not_once_more() {
        let mut engines = two_shards();
        let reply = ask(&mut engines);
        engines[0].set_now(999_999_999);
        assert!(settle(&mut engines).0.is_empty());
        assert_eq!(engines[0].next_deadline(), Some(1_000_000_000));
        engines.iter_mut().for_each(|engine| engine.set_now(1_000_000_000));
        let (reports, _) = settle(&mut engines);
        assert!(matches!(&reports[..], [(0, report)] if report.status == TOO_LATE), "{reports:?}");
        engines[1].on_bytes(RESPONDER, format!("PUB {reply} 1\r\ny\r\n").as_bytes());
        assert!(settle(&mut engines).0.is_empty());
    }

    /// Makes a request that another server answers 4000 ns later. Returns its number.
    fn answer_of_other_server(
        engines: &mut [Engine; 2],
        asked_ns: u64,
        before: impl FnOnce(&mut Core, u64),
    ) -> u64 {
        engines.iter_mut().for_each(|engine| engine.set_now(asked_ns));
        let reply = ask(engines);
        let core = &mut engines[0].core;
        let (_, _, id) = parse_answer(reply.as_bytes()).expect("an answer's subject");
        before(core, id);
        let asked = core.accounts.find(b"S").expect("it is configured");
        let link = ConnId { slot: 7, generation: 0 };
        let source = Source { from: Kind::Route, ..Source::new(asked, core.shard, link) };
        engines[0].set_now(asked_ns + 4000);
        on_answer(&mut engines[0].core, &source, id);
        id
    }

    fn half(account: &str, service_ns: u64) -> Box<FarHalf> {
        Box::new(FarHalf { account: account.into(), responder: None, rtt_ns: 1, service_ns })
    }

    fn far_service_ns(reports: &[(usize, LatencyReport)]) -> Vec<Option<u64>> {
        reports.iter().map(|(_, one)| one.far.as_ref().map(|far| far.service_ns)).collect()
    }

    #[test]
    fn the_half_of_another_server_is_joined_whether_it_comes_before_the_answer_or_behind_it() {
        let mut engines = two_shards();
        answer_of_other_server(&mut engines, 1000, |core, id| {
            join(core, id, half("A", 66));
            join(core, id + 1, half("S", 77));
            join(core, id, half("S", 2000));
            join(core, id, half("S", 88));
        });
        let (reports, _) = settle(&mut engines);
        assert_eq!(far_service_ns(&reports), [Some(2000)]);

        let id = answer_of_other_server(&mut engines, 10_000, |_, _| {});
        assert!(settle(&mut engines).0.is_empty());
        let core = &mut engines[0].core;
        join(core, id, half("A", 66));
        join(core, id + 1, half("S", 77));
        join(core, id, half("S", 3000));
        join(core, id, half("S", 88));
        let (reports, _) = settle(&mut engines);
        assert_eq!(far_service_ns(&reports), [Some(3000)]);
        let (_, report) = &reports[0];
        let times = (report.asked_ns, report.ended_ns);
        assert_eq!((report.status, times), (ANSWERED, (10_000, 14_000)));
        assert!(report.requester.is_some());
    }

    #[test]
    fn a_report_whose_other_half_does_not_come_is_told_alone_and_once() {
        let mut engines = two_shards();
        let id = answer_of_other_server(&mut engines, 1000, |_, _| {});
        let due = 5000 + HALF_WAIT_NS;
        assert!(engines[0].next_deadline().is_some_and(|next| next <= due));
        engines[0].set_now(due - 1);
        assert!(settle(&mut engines).0.is_empty());
        engines[0].set_now(due);
        let (reports, _) = settle(&mut engines);
        assert_eq!(far_service_ns(&reports), [None]);
        assert_eq!(reports[0].1.ended_ns, 5000);
        join(&mut engines[0].core, id, half("S", 3000));
        assert!(settle(&mut engines).0.is_empty());
    }

    #[test]
    fn nothing_is_reported_to_nobody() {
        let mut engines = two_shards();
        engines[1].on_bytes(RESPONDER, b"UNSUB 1\r\nSUB svc 2\r\n");
        settle(&mut engines);
        let reply = ask(&mut engines);
        engines[1].on_bytes(RESPONDER, format!("PUB {reply} 1\r\ny\r\n").as_bytes());
        assert!(settle(&mut engines).0.is_empty());
        engines[0].on_bytes(REQUESTER, b"PUB svc 1\r\nx\r\n");
        assert!(settle(&mut engines).0.is_empty());
    }
}
