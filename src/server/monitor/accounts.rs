//! `/accountz` and `/accstatz`: the accounts. There is one, which everybody is in.

#![forbid(unsafe_code)]

use chrono::Utc;
use serde::Serialize;

use super::connz::ACCOUNT;
use super::query::{Query, Refusal};
use super::subsz::SublistStats;
use super::{State, text};
use crate::shard::Report;

#[derive(Serialize)]
pub(super) struct Accountz<'a> {
    server_id: &'a str,
    now: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    accounts: Option<[&'static str; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    account_detail: Option<Account>,
}

#[derive(Serialize)]
struct Account {
    account_name: &'static str,
    update_time: String,
    expired: bool,
    complete: bool,
    jetstream_enabled: bool,
    leafnode_connections: usize,
    client_connections: usize,
    subscriptions: usize,
    name_tag: &'static str,
    sublist_stats: SublistStats,
}

impl<'a> Accountz<'a> {
    pub(super) fn new(state: &'a State, query: &Query) -> Result<Self, Refusal> {
        let account = query.text("acc");
        let (accounts, account_detail) = match account {
            "" => (Some([ACCOUNT]), None),
            ACCOUNT => (None, Some(Account::new(state))),
            _ => return Err(Refusal(format!("Account {account} does not exist"))),
        };
        let (server_id, now) = (state.identity.id.as_str(), text::time(Utc::now()));
        Ok(Self { server_id, now, accounts, account_detail })
    }
}

impl Account {
    fn new(state: &State) -> Self {
        let reports = state.reporter.report();
        Self {
            account_name: ACCOUNT,
            update_time: text::time(state.configured_at),
            expired: false,
            complete: true,
            jetstream_enabled: false,
            leafnode_connections: 0,
            client_connections: reports.iter().map(|report| report.conns).sum(),
            subscriptions: reports.iter().map(|report| report.subscriptions).sum(),
            name_tag: ACCOUNT,
            sublist_stats: SublistStats::new(&reports),
        }
    }
}

#[derive(Serialize)]
pub(super) struct Accstatz<'a> {
    server_id: &'a str,
    now: String,
    account_statz: Vec<Statz>,
}

#[derive(Serialize, Default)]
struct Statz {
    acc: &'static str,
    name: &'static str,
    conns: usize,
    leafnodes: usize,
    total_conns: usize,
    num_subscriptions: usize,
    sent: Flow,
    received: Flow,
    slow_consumers: u64,
}

/// What went in one direction, and how much of it to or from other servers.
#[derive(Serialize, Default)]
struct Flow {
    msgs: u64,
    bytes: u64,
    gateways: Amount,
    routes: Amount,
    leafs: Amount,
}

#[derive(Serialize, Default)]
struct Amount {
    msgs: u64,
    bytes: u64,
}

impl<'a> Accstatz<'a> {
    pub(super) fn new(state: &'a State, query: &Query) -> Result<Self, Refusal> {
        let unused = query.boolean("unused")?;
        let statz = Statz::new(&state.reporter.report());
        let shown = unused || statz.conns > 0;
        let (server_id, now) = (state.identity.id.as_str(), text::time(Utc::now()));
        Ok(Self { server_id, now, account_statz: shown.then_some(statz).into_iter().collect() })
    }
}

impl Statz {
    fn new(reports: &[Report]) -> Self {
        let mut all = Self { acc: ACCOUNT, name: ACCOUNT, ..Self::default() };
        for report in reports {
            let stats = &report.stats;
            all.conns += report.conns;
            all.total_conns += report.conns;
            all.num_subscriptions += report.subscriptions;
            all.sent.msgs += stats.out_msgs;
            all.sent.bytes += stats.out_bytes;
            all.received.msgs += stats.in_msgs;
            all.received.bytes += stats.in_bytes;
            all.slow_consumers += stats.slow_consumers;
        }
        all
    }
}
