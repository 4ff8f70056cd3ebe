//! `/accountz` and `/accstatz`: the accounts.

#![forbid(unsafe_code)]

use chrono::Utc;
use serde::Serialize;

use super::query::{Query, Refusal};
use super::subsz::SublistStats;
use super::{State, text};
use crate::config::{self, Response, Shared};
use crate::engine::AccountFigures;

#[derive(Serialize)]
pub(super) struct Accountz<'a> {
    server_id: &'a str,
    now: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    system_account: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accounts: Option<Vec<&'a str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    account_detail: Option<Account<'a>>,
}

#[derive(Serialize)]
struct Account<'a> {
    account_name: &'a str,
    update_time: String,
    #[serde(skip_serializing_if = "is_false")]
    is_system: bool,
    expired: bool,
    complete: bool,
    jetstream_enabled: bool,
    leafnode_connections: usize,
    client_connections: usize,
    subscriptions: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    exports: Vec<Export<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    imports: Vec<Import<'a>>,
    name_tag: &'a str,
    sublist_stats: SublistStats,
}

#[derive(Serialize)]
struct Export<'a> {
    subject: &'a str,
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_type: Option<&'static str>,
    #[serde(skip_serializing_if = "is_false")]
    token_req: bool,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    approved_accounts: &'a [String],
}

#[derive(Serialize)]
struct Import<'a> {
    subject: &'a str,
    account: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<&'a str>,
    local_subject: &'a str,
    r#type: &'static str,
    invalid: bool,
    share: bool,
    tracking: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

impl<'a> Accountz<'a> {
    pub(super) fn new(state: &'a State, query: &Query) -> Result<Self, Refusal> {
        let name = query.text("acc");
        let all = &state.options.accounts;
        let (accounts, account_detail) = if name.is_empty() {
            (Some(all.list.iter().map(|account| account.name.as_str()).collect()), None)
        } else if let Some(account) = all.get(name) {
            (None, Some(Account::new(state, account)))
        } else {
            return Err(Refusal(format!("Account {name} does not exist")));
        };
        Ok(Self {
            server_id: &state.identity.id,
            now: text::time(Utc::now()),
            system_account: all.system.as_deref(),
            accounts,
            account_detail,
        })
    }
}

impl<'a> Account<'a> {
    fn new(state: &'a State, account: &'a config::Account) -> Self {
        let name = account.name.as_str();
        let figures = state.reporter.accounts();
        let figures: Vec<_> = figures.iter().filter(|figures| *figures.name == *name).collect();
        Self {
            account_name: name,
            update_time: text::time(state.configured_at),
            is_system: state.options.accounts.system.as_deref() == Some(name),
            expired: false,
            complete: true,
            jetstream_enabled: false,
            leafnode_connections: 0,
            client_connections: figures.iter().map(|figures| figures.conns).sum(),
            subscriptions: figures.iter().map(|figures| figures.subscriptions).sum(),
            exports: account.exports.iter().map(Export::new).collect(),
            imports: account.imports.iter().map(Import::new).collect(),
            name_tag: name,
            sublist_stats: SublistStats::new(figures),
        }
    }
}

impl<'a> Export<'a> {
    fn new(export: &'a config::Export) -> Self {
        let response_type = match export.response {
            Response::Singleton => "Singleton",
            Response::Stream => "Stream",
            Response::Chunked => "Chunked",
        };
        Self {
            subject: &export.subject,
            r#type: export.shared.name(),
            response_type: (export.shared == Shared::Service).then_some(response_type),
            token_req: false,
            approved_accounts: &export.accounts,
        }
    }
}

impl<'a> Import<'a> {
    fn new(import: &'a config::Import) -> Self {
        let is_service = import.shared == Shared::Service;
        Self {
            subject: &import.subject,
            account: &import.account,
            to: (is_service && import.local != import.subject).then_some(&import.local),
            local_subject: &import.local,
            r#type: import.shared.name(),
            invalid: false,
            share: import.share,
            tracking: false,
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
pub(super) struct Statz {
    acc: String,
    name: String,
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
        let accounts = state.reporter.accounts();
        let shown = accounts.iter().filter(|account| unused || account.conns > 0);
        let (server_id, now) = (state.identity.id.as_str(), text::time(Utc::now()));
        Ok(Self { server_id, now, account_statz: shown.map(Statz::new).collect() })
    }
}

impl Statz {
    pub(super) fn new(account: &AccountFigures) -> Self {
        let traffic = &account.traffic;
        let flow = |msgs, bytes| Flow { msgs, bytes, ..Flow::default() };
        Self {
            acc: account.name.to_string(),
            name: account.name.to_string(),
            conns: account.conns,
            leafnodes: 0,
            total_conns: account.conns,
            num_subscriptions: account.subscriptions,
            sent: flow(traffic.out_msgs, traffic.out_bytes),
            received: flow(traffic.in_msgs, traffic.in_bytes),
            slow_consumers: account.slow_consumers,
        }
    }
}
