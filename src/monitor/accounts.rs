//! `/accountz` and `/accstatz`: the accounts.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;

use super::query::{BadQuery, Query};
use super::subsz::SublistStats;
use super::{MonitorState, text};
use crate::auth::jwt::{self, Claims};
use crate::config::{self, Options, Response, Shared};
use crate::engine::{ACCOUNT_REQUESTS, AccountFigures, OWN_USER};

#[derive(Serialize)]
pub(super) struct Accountz<'a> {
    server_id: &'a str,
    now: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    system_account: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accounts: Option<Vec<&'a str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    account_detail: Option<AccountInfo<'a>>,
}

#[derive(Serialize)]
struct AccountInfo<'a> {
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
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    mappings: BTreeMap<&'a str, Vec<MapDest<'a>>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    exports: Vec<ExportInfo<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    imports: Vec<ImportInfo<'a>>,
    #[serde(flatten)]
    token: Option<AccountToken<'a>>,
    name_tag: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    tags: &'a [String],
    #[serde(skip_serializing_if = "Value::is_null")]
    decoded_jwt: Value,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    revoked_user: BTreeMap<&'a str, String>,
    sublist_stats: SublistStats,
}

/// The token of an account that is not configured in the file.
#[derive(Serialize)]
struct AccountToken<'a> {
    jwt: &'a str,
    issuer_key: &'a str,
}

#[derive(Serialize)]
struct MapDest<'a> {
    subject: String,
    weight: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<&'a str>,
}

#[derive(Serialize)]
struct ExportInfo<'a> {
    subject: &'a str,
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_type: Option<&'static str>,
    #[serde(skip_serializing_if = "is_false")]
    token_req: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    approved_accounts: Vec<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    revoked_activations: BTreeMap<&'a str, String>,
}

#[derive(Serialize)]
struct ImportInfo<'a> {
    subject: Cow<'a, str>,
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
    pub(super) fn new(state: &'a MonitorState, query: &Query) -> Result<Self, BadQuery> {
        let name = query.text("acc");
        let all = &state.options.accounts;
        let (accounts, account_detail) = if name.is_empty() {
            (Some(all.list.iter().map(|account| account.name.as_str()).collect()), None)
        } else if let Some(account) = all.get(name) {
            (None, Some(AccountInfo::new(state, account)))
        } else {
            return Err(BadQuery(format!("Account {name} does not exist")));
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

impl<'a> AccountInfo<'a> {
    fn new(state: &'a MonitorState, account: &'a config::Account) -> Self {
        let name = account.name.as_str();
        let figures = state.reporter.accounts();
        let figures: Vec<_> = figures.iter().filter(|figures| *figures.name == *name).collect();
        let claims = state.options.trust.as_ref().and_then(|trust| trust.accounts.get(name));
        let own = account.imports.iter().map(ImportInfo::new);
        let of_server = server_imports(state, name);
        Self {
            account_name: name,
            update_time: text::time(state.configured_at),
            is_system: state.options.accounts.system.as_deref() == Some(name),
            expired: claims.is_some_and(|claims| !claims.is_in_time(Utc::now().timestamp())),
            complete: true,
            jetstream_enabled: state.options.streams_of(account).is_some(),
            leafnode_connections: figures.iter().map(|figures| figures.leaves).sum(),
            client_connections: figures.iter().map(|figures| figures.conns).sum(),
            subscriptions: figures.iter().map(|figures| figures.subscriptions).sum(),
            mappings: account.mappings.iter().map(mapping).collect(),
            exports: account.exports.iter().map(|one| ExportInfo::new(name, one, claims)).collect(),
            imports: own.chain(of_server).collect(),
            token: claims
                .map(|claims| AccountToken { jwt: &claims.text, issuer_key: &claims.issuer }),
            name_tag: state.options.account_label(name),
            tags: claims.map_or(&[], |claims| &claims.body.tags),
            decoded_jwt: claims.map_or(Value::Null, |claims| jwt::document(&claims.text)),
            revoked_user: claims.map(|claims| times(&claims.body.revocations)).unwrap_or_default(),
            sublist_stats: SublistStats::new(figures),
        }
    }
}

/// Returns a filter and its destinations for each cluster that has its own. Weights are sums up to
/// each destination; the last one gets the rest of a hundred.
fn mapping(mapping: &config::Mapping) -> (&str, Vec<MapDest<'_>>) {
    const ALL: u8 = 100;
    let mut clusters = vec![None];
    clusters.extend(mapping.destinations.iter().filter_map(|to| to.cluster.as_deref()).map(Some));
    clusters.sort_unstable();
    clusters.dedup();
    let is_lossy = mapping.destinations.iter().any(|to| to.subject == mapping.source);
    let mut shown = Vec::new();
    for cluster in clusters {
        let own = mapping.destinations.iter().filter(|to| to.cluster.as_deref() == cluster);
        let mut own: Vec<_> = own.map(|to| (to.weight, to.subject.clone())).collect();
        let sum = own.iter().fold(0, |sum: u8, (weight, _)| sum.saturating_add(*weight));
        if sum < ALL && !is_lossy {
            own.push((ALL - sum, numbered(&mapping.source)));
        }
        own.sort_by_key(|(weight, _)| *weight);
        let mut sum: u8 = 0;
        shown.extend(own.into_iter().map(|(weight, subject)| {
            sum = sum.saturating_add(weight);
            MapDest { subject, weight: sum, cluster }
        }));
    }
    (&mapping.source, shown)
}

/// Returns a filter as its own destination: `a.$1` for `a.*`.
fn numbered(filter: &str) -> String {
    let mut wildcards = 0;
    let tokens = filter.split('.').map(|token| match token {
        "*" => {
            wildcards += 1;
            format!("${wildcards}")
        }
        token => token.to_owned(),
    });
    tokens.collect::<Vec<_>>().join(".")
}

/// Returns the imports of every account from the system account, by which it requests its own
/// pages.
fn server_imports<'a>(state: &'a MonitorState, name: &str) -> Vec<ImportInfo<'a>> {
    let system = state.options.accounts.system.as_deref();
    let Some(system) = system.filter(|system| *system != name) else { return Vec::new() };
    let import = |(local, about, share): (&'static str, String, bool)| ImportInfo {
        subject: Cow::Owned(about),
        account: system,
        to: Some(local),
        local_subject: local,
        r#type: Shared::Service.name(),
        invalid: false,
        share,
        tracking: false,
    };
    let pages = ACCOUNT_REQUESTS
        .iter()
        .map(|(asked, page)| (*asked, format!("$SYS.REQ.ACCOUNT.{name}.{page}"), false));
    let user = (OWN_USER, format!("$SYS.REQ.USER.{name}.INFO"), true);
    pages.chain([user]).map(import).collect()
}

/// Formats the times of revocations, by key.
fn times(revocations: &BTreeMap<String, i64>) -> BTreeMap<&str, String> {
    let time = |seconds: i64| text::time(DateTime::from_timestamp(seconds, 0).unwrap_or_default());
    revocations.iter().map(|(key, until)| (key.as_str(), time(*until))).collect()
}

impl<'a> ExportInfo<'a> {
    fn new(
        account: &str,
        export: &'a config::Export,
        claims: Option<&'a Arc<Claims<jwt::AccountClaims>>>,
    ) -> Self {
        let written = claims.and_then(|claims| {
            let mut all = claims.body.exports.iter();
            all.find(|one| one.subject == export.subject && one.shared == export.shared.name())
        });
        let response_type = match export.response {
            Response::Singleton => "Singleton",
            Response::Stream => "Streamed",
            Response::Chunked => "Chunked",
        };
        Self {
            subject: &export.subject,
            r#type: export.shared.name(),
            response_type: (export.shared == Shared::Service).then_some(response_type),
            token_req: written.is_some_and(|export| export.token_req),
            approved_accounts: export
                .accounts
                .iter()
                .map(String::as_str)
                .filter(|one| *one != account)
                .collect(),
            revoked_activations: written
                .map(|export| times(&export.revocations))
                .unwrap_or_default(),
        }
    }
}

impl<'a> ImportInfo<'a> {
    fn new(import: &'a config::Import) -> Self {
        let is_service = import.shared == Shared::Service;
        Self {
            subject: Cow::Borrowed(&import.subject),
            account: &import.account,
            to: is_service.then_some(&import.local),
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

/// Traffic in one direction, and the parts of it to or from other servers.
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
    pub(super) fn new(state: &'a MonitorState, query: &Query) -> Result<Self, BadQuery> {
        let unused = query.boolean("unused")?;
        let accounts = state.reporter.accounts();
        let shown = accounts.iter().filter(|account| unused || account.conns + account.leaves > 0);
        let shown = shown.map(|account| Statz::new(account, &state.options));
        let (server_id, now) = (state.identity.id.as_str(), text::time(Utc::now()));
        Ok(Self { server_id, now, account_statz: shown.collect() })
    }
}

impl Statz {
    fn new(account: &AccountFigures, options: &Options) -> Self {
        let traffic = &account.traffic;
        let flow = |msgs, bytes| Flow { msgs, bytes, ..Flow::default() };
        Self {
            acc: account.name.to_string(),
            name: options.account_label(&account.name).to_owned(),
            conns: account.conns,
            leafnodes: account.leaves,
            total_conns: account.conns + account.leaves,
            num_subscriptions: account.subscriptions,
            sent: flow(traffic.out_msgs, traffic.out_bytes),
            received: flow(traffic.in_msgs, traffic.in_bytes),
            slow_consumers: account.slow_consumers,
        }
    }
}
