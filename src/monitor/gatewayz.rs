//! `/gatewayz`: connections to other clusters; and the block `gateway` in `/varz`.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::query::{BadQuery, Detail, Query};
use super::varz::not_after;
use super::{MonitorState, text};
use crate::config::RouteUrl;
use crate::config::tls::TIMEOUT_MS;
use crate::engine::{AccountModeSnapshot, GatewaySnapshot};

/// Subjects without interest after which a nats-server tells all its interest; this server does
/// so at once.
const INTEREST_ONLY_THRESHOLD: usize = 1000;

#[derive(Serialize)]
pub(super) struct Gatewayz<'a> {
    server_id: &'a str,
    now: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    host: &'a str,
    #[serde(skip_serializing_if = "is_none")]
    port: u16,
    outbound_gateways: BTreeMap<String, RemoteGatewayz>,
    inbound_gateways: BTreeMap<String, Vec<RemoteGatewayz>>,
}

#[derive(Serialize)]
struct RemoteGatewayz {
    configured: bool,
    connection: GatewayConnz,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    accounts: Vec<AccountGatewayz>,
}

#[derive(Serialize)]
struct GatewayConnz {
    cid: u64,
    kind: &'static str,
    ip: Box<str>,
    port: u16,
    start: String,
    last_activity: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    rtt: String,
    uptime: String,
    idle: String,
    pending_bytes: usize,
    in_msgs: u64,
    out_msgs: u64,
    in_bytes: u64,
    out_bytes: u64,
    subscriptions: usize,
    name: String,
}

#[derive(Serialize)]
struct AccountGatewayz {
    name: String,
    interest_mode: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    no_interest_count: usize,
    interest_only_threshold: usize,
    #[serde(skip_serializing_if = "is_zero")]
    num_subs: usize,
    #[serde(skip_serializing_if = "is_zero")]
    num_queue_subs: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    subscriptions_list: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    subscriptions_list_detail: Vec<GatewaySub>,
}

/// A filter of a cluster's interest.
#[derive(Serialize)]
struct GatewaySub {
    subject: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    qgroup: Option<String>,
    sid: &'static str,
    msgs: u64,
    cid: u64,
}

fn is_none(number: &u16) -> bool {
    *number == 0
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// The accounts, and the detail of their interest, that a request asks for.
struct AskedModes<'a> {
    account: &'a str,
    accounts: bool,
    detail: Detail,
}

impl<'a> Gatewayz<'a> {
    pub(super) fn new(state: &'a MonitorState, query: &Query) -> Result<Self, BadQuery> {
        let detail = query.detail("subs")?;
        let account = query.text("acc_name");
        let accounts = query.boolean("accs")? || !account.is_empty();
        let (asked, now) = (AskedModes { account, accounts, detail }, Utc::now());
        let cluster = query.text("gw_name");
        let mut page = Self {
            server_id: &state.identity.id,
            now: text::time(now),
            name: "",
            host: "",
            port: 0,
            outbound_gateways: BTreeMap::new(),
            inbound_gateways: BTreeMap::new(),
        };
        let Some(own) = &state.identity.gateway else { return Ok(page) };
        (page.name, page.host, page.port) = (&own.name, &own.host, own.port);
        for gateway in state.reporter.gateways(accounts && detail != Detail::None) {
            if !cluster.is_empty() && gateway.cluster != cluster {
                continue;
            }
            let (name, is_outbound) = (gateway.cluster.clone(), gateway.is_outbound);
            let remote = remote(state, gateway, &asked, now);
            if is_outbound {
                page.outbound_gateways.insert(name, remote);
            } else {
                page.inbound_gateways.entry(name).or_default().push(remote);
            }
        }
        Ok(page)
    }
}

fn remote(
    state: &MonitorState,
    gateway: GatewaySnapshot,
    asked: &AskedModes<'_>,
    now: DateTime<Utc>,
) -> RemoteGatewayz {
    let zero = state.reporter.started_at();
    let start = text::after(zero, gateway.opened_ns);
    let last = text::after(zero, gateway.last_active_ns);
    let is_asked = |mode: &&AccountModeSnapshot| {
        asked.accounts && (asked.account.is_empty() || asked.account == mode.account)
    };
    let accounts = gateway.accounts.iter().filter(is_asked);
    let accounts = accounts.map(|mode| account(&gateway, mode, asked.detail)).collect();
    RemoteGatewayz {
        configured: gateway.is_configured,
        accounts,
        connection: GatewayConnz {
            cid: gateway.rid,
            kind: "Gateway",
            ip: gateway.ip,
            port: gateway.port,
            start: text::time(start),
            last_activity: text::time(last),
            rtt: if gateway.rtt_ns > 0 { text::round_trip(gateway.rtt_ns) } else { String::new() },
            uptime: text::between(start, now),
            idle: text::between(last, now),
            pending_bytes: gateway.pending_bytes,
            in_msgs: gateway.traffic.in_msgs,
            out_msgs: gateway.traffic.out_msgs,
            in_bytes: gateway.traffic.in_bytes,
            out_bytes: gateway.traffic.out_bytes,
            subscriptions: gateway.subscriptions,
            name: gateway.remote_id,
        },
    }
}

fn account(
    gateway: &GatewaySnapshot,
    mode: &AccountModeSnapshot,
    detail: Detail,
) -> AccountGatewayz {
    let readable = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let of_account =
        gateway.interest.iter().filter(|(account, ..)| **account == *mode.account.as_bytes());
    let subs = of_account.map(|(_, subject, queue)| GatewaySub {
        subject: readable(subject),
        qgroup: queue.as_deref().map(readable),
        sid: "",
        msgs: 0,
        cid: gateway.rid,
    });
    let (list, details) = match detail {
        Detail::All => (Vec::new(), subs.collect()),
        _ => (subs.map(|sub| sub.subject).collect(), Vec::new()),
    };
    AccountGatewayz {
        name: mode.account.clone(),
        interest_mode: mode.mode,
        no_interest_count: mode.refused,
        interest_only_threshold: INTEREST_ONLY_THRESHOLD,
        num_subs: mode.filters + mode.queues,
        num_queue_subs: mode.queues,
        subscriptions_list: list,
        subscriptions_list_detail: details,
    }
}

/// The configured gateways; empty if there are none.
#[derive(Serialize, Default)]
pub(super) struct GatewayVarz<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    host: &'a str,
    #[serde(skip_serializing_if = "is_none")]
    port: u16,
    #[serde(skip_serializing_if = "is_no_time", serialize_with = "text::number")]
    auth_timeout: f64,
    #[serde(skip_serializing_if = "is_no_time", serialize_with = "text::number")]
    tls_timeout: f64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    tls_required: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    tls_verify: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    advertise: &'a str,
    #[serde(skip_serializing_if = "is_no_retry")]
    connect_retries: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    gateways: Vec<RemoteGatewayVarz<'a>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    reject_unknown: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_cert_not_after: Option<String>,
}

#[derive(Serialize)]
struct RemoteGatewayVarz<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "is_no_time", serialize_with = "text::number")]
    tls_timeout: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    urls: Vec<String>,
}

fn is_no_time(seconds: &f64) -> bool {
    *seconds == 0.0
}

fn is_no_retry(retries: &u32) -> bool {
    *retries == 0
}

fn seconds(ms: u64) -> f64 {
    Duration::from_millis(ms).as_secs_f64()
}

impl<'a> GatewayVarz<'a> {
    pub(super) fn new(state: &'a MonitorState) -> Self {
        let (options, identity) = (&state.options.gateway, &state.identity.gateway);
        let Some(identity) = identity else { return Self::default() };
        let url = |url: &RouteUrl| format!("{}:{}", url.host, url.port);
        let remotes = options.remotes.iter().map(|remote| RemoteGatewayVarz {
            name: &remote.name,
            tls_timeout: remote.tls.as_ref().map_or(0.0, |tls| seconds(tls.tls.timeout_ms)),
            urls: remote.urls.iter().map(url).collect(),
        });
        let tls_timeout_ms = options.tls.as_ref().map_or(TIMEOUT_MS, |tls| tls.tls.timeout_ms);
        Self {
            name: &identity.name,
            host: &identity.host,
            port: identity.port,
            auth_timeout: seconds(options.timeout_ms),
            tls_timeout: seconds(tls_timeout_ms),
            tls_required: options.tls.is_some(),
            tls_verify: options.tls.is_some(),
            advertise: options.advertise.as_deref().unwrap_or_default(),
            connect_retries: options.connect_retries,
            gateways: remotes.collect(),
            reject_unknown: options.reject_unknown,
            tls_cert_not_after: options.tls.as_ref().and_then(|tls| not_after(&tls.tls)),
        }
    }
}
