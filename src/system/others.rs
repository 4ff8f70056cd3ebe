//! Other servers of the system: what they tell of themselves, and what they are told of the
//! connections of accounts here.

use serde::Deserialize;
use serde_json::Value;

use super::elsewhere::{CREW_MAX, Crew, Elsewhere, excess};
use super::requests::RequestOutcome;
use super::{ANY_SHARD, Worker, tell_conns};
use crate::config::Options;
use crate::engine::{AccountId, Excess, ServerRequest, ShardId, conns_inbox};
use crate::shard::Control;

/// Reports of the server's state for one of the connections of all accounts.
const REPORTS_PER_BEAT: u64 = 3;

/// Seconds between two greetings of new servers, at least.
const GREETING_INTERVAL_S: u64 = 2;

/// The other servers, and when this one has told them of itself.
#[derive(Debug, Default)]
pub(super) struct Others {
    elsewhere: Elsewhere,
    /// Second of the last greeting.
    greeted_s: Option<u64>,
    is_new_one_waiting: bool,
    reports: u64,
}

/// The members of an event about the connections of an account that are looked at.
#[derive(Deserialize)]
struct ConnsEvent {
    server: ConnsTeller,
    acc: String,
    #[serde(default)]
    conns: i64,
    #[serde(default)]
    leafnodes: i64,
}

#[derive(Deserialize)]
struct ConnsTeller {
    id: String,
}

impl ConnsEvent {
    fn crew(&self) -> Crew {
        let count = |told: i64| usize::try_from(told).unwrap_or(0).min(CREW_MAX);
        Crew { conns: count(self.conns), leaves: count(self.leafnodes) }
    }
}

/// Takes what another server tells of itself. Returns whether the message was of that kind.
pub(super) fn on_message(worker: &mut Worker, request: &ServerRequest, subject: &str) -> bool {
    let words: Vec<&str> = subject.split('.').collect();
    match *words {
        ["$SYS", "SERVER", "ACCOUNT", _, "CONNS"] | ["$SYS", "_INBOX_", _] => {
            if let Ok(event) = serde_json::from_slice(&request.payload) {
                on_conns(worker, &event);
            }
        }
        ["$SYS", "SERVER", id, "STATSZ"] => on_sign_of_life(worker, id),
        ["$SYS", "SERVER", id, "LAMEDUCK" | "SHUTDOWN"] => {
            for account in worker.others.elsewhere.forget(id) {
                count_elsewhere(worker, &account);
            }
        }
        _ => return false,
    }
    true
}

/// Does what is due with each report of the server's state.
pub(super) fn tend(worker: &mut Worker) {
    let now_s = now_s(worker);
    for account in worker.others.elsewhere.forget_silent(now_s) {
        count_elsewhere(worker, &account);
    }
    if worker.others.is_new_one_waiting {
        greet(worker);
    }
    worker.others.reports += 1;
    let identity = &worker.identity;
    let has_others =
        identity.cluster.is_some() || identity.gateway.is_some() || identity.leaf.is_some();
    if has_others && worker.others.reports.is_multiple_of(REPORTS_PER_BEAT) {
        tell_all_conns(worker);
    }
}

/// Takes over new options: accounts that came with them are asked about, and limits are other ones.
pub(super) fn count_anew(worker: &Worker, old: &Options) {
    let known = worker.others.elsewhere.accounts();
    known.for_each(|account| count_elsewhere(worker, account));
    ask_about_accounts(worker, |name| old.accounts.get(name).is_none());
}

fn now_s(worker: &Worker) -> u64 {
    worker.started.elapsed().as_secs()
}

fn on_conns(worker: &mut Worker, event: &ConnsEvent) {
    on_sign_of_life(worker, &event.server.id);
    let is_ours = worker.options.accounts.get(&event.acc).is_some();
    if is_ours && worker.others.elsewhere.set(&event.server.id, &event.acc, event.crew()) {
        count_elsewhere(worker, &event.acc);
    }
}

/// Greets a server that is new.
fn on_sign_of_life(worker: &mut Worker, id: &str) {
    if *id == *worker.identity.id || !worker.others.elsewhere.hear_of(id, now_s(worker)) {
        return;
    }
    let is_soon = |greeted_s: u64| now_s(worker) < greeted_s + GREETING_INTERVAL_S;
    match worker.others.greeted_s.is_some_and(is_soon) {
        true => worker.others.is_new_one_waiting = true,
        false => greet(worker),
    }
}

/// Tells new servers what they have not heard, and asks for what they have told before.
fn greet(worker: &mut Worker) {
    worker.others.greeted_s = Some(now_s(worker));
    worker.others.is_new_one_waiting = false;
    worker.tell_statsz();
    tell_all_conns(worker);
    ask_about_accounts(worker, |_| true);
}

/// Asks other servers for their connections of those accounts whose limits need it.
fn ask_about_accounts(worker: &Worker, is_asked: impl Fn(&str) -> bool) {
    let Some(system) = worker.account() else { return };
    let reply = conns_inbox(&worker.identity.id);
    for account in &worker.options.accounts.list {
        if account.limits.counts_all_servers() && is_asked(&account.name) {
            let subject = format!("$SYS.REQ.ACCOUNT.{}.CONNS", account.name);
            let control = Control::Publish {
                account: system,
                subject: subject.into_bytes().into(),
                reply: reply.as_bytes().into(),
                header: Box::default(),
                payload: Box::default(),
            };
            worker.reporter.tell(ANY_SHARD, control);
        }
    }
}

/// Tells the connections of all accounts that have some.
fn tell_all_conns(worker: &mut Worker) {
    let query = [("unused", "false".to_owned())];
    let RequestOutcome::Data(mut statz) = worker.page("/accstatz", &query) else { return };
    let Some(all) = statz["account_statz"].as_array_mut().map(std::mem::take) else { return };
    for one in all {
        let (Value::Object(figures), Some(name)) = (&one, one["acc"].as_str()) else { continue };
        if one["total_conns"] == 0 || Some(name) == worker.options.accounts.system.as_deref() {
            continue;
        }
        let mut document = worker.event("account_connections");
        document.extend(figures.clone());
        tell_conns(worker, name, &Value::Object(document));
    }
}

/// Puts the number of an account's connections elsewhere in force. If there are too many now, the
/// newest of those here go, as in nats-server.
fn count_elsewhere(worker: &Worker, account: &str) {
    let Crew { conns, leaves } = worker.others.elsewhere.total(account);
    let accounts = &worker.options.accounts;
    let (seats, number) = (accounts.seats(account), accounts.number(account));
    seats.set_elsewhere(conns, leaves);
    let limits = accounts.get(account).map(|account| account.limits);
    let (Some(limits), Some(id)) = (limits, number.map(AccountId::new)) else { return };
    if excess(seats.taken(), conns, limits.connections_max) > 0 {
        let all = worker.reporter.conns();
        let own = all.iter().filter(|conn| *conn.account == *account);
        let cids: Vec<u64> = own.map(|conn| conn.cid).collect();
        let here = cids.len() + seats.taken_by_leaves();
        shed(worker, cids, excess(here, conns, limits.connections_max), Excess::OfAccount(id));
    }
    if excess(seats.taken_by_leaves(), leaves, limits.leafnodes_max) > 0 {
        let all = worker.reporter.leaves(false);
        let own = all.iter().filter(|leaf| *leaf.account == *account);
        // A hub that this server has dialled would only be dialled again.
        let own = own.filter(|leaf| !leaf.is_spoke);
        let lids: Vec<u64> = own.map(|leaf| leaf.lid).collect();
        let count = excess(lids.len(), leaves, limits.leafnodes_max);
        shed(worker, lids, count, Excess::Leaves(id));
    }
}

/// Closes the newest connections of these.
fn shed(worker: &Worker, mut cids: Vec<u64>, count: usize, excess: Excess) {
    let Some(first) = cids.len().checked_sub(count.min(cids.len())).filter(|_| count > 0) else {
        return;
    };
    cids.sort_unstable();
    let Some(&first) = cids.get(first) else { return };
    for shard in 0..worker.reporter.shards() {
        let Ok(shard) = u8::try_from(shard) else { return };
        worker.reporter.tell(ShardId(shard), Control::Shed { cids: first..=u64::MAX, excess });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_connections_is_taken_from_the_event_of_nats_server() {
        let told = r#"{"type":"io.nats.server.advisory.v1.account_connections","id":"x",
            "timestamp":"2026-01-01T00:00:00Z","server":{"name":"n","host":"h","id":"NA","seq":7},
            "acc":"A","conns":3,"leafnodes":2,"total_conns":5,"num_subscriptions":9}"#;
        let event: ConnsEvent = serde_json::from_str(told).expect("an event");
        assert_eq!((&*event.server.id, &*event.acc), ("NA", "A"));
        assert_eq!(event.crew(), Crew { conns: 3, leaves: 2 });
        let crew = |conns: &str| {
            let text = format!("{{\"server\":{{\"id\":\"N\"}},\"acc\":\"A\",\"conns\":{conns}}}");
            serde_json::from_str::<ConnsEvent>(&text).ok().map(|event| event.crew().conns)
        };
        assert_eq!((crew("-5"), crew("1e3"), crew("[]")), (Some(0), None, None));
        assert_eq!(crew("9000000000000000000"), Some(CREW_MAX));
    }
}
