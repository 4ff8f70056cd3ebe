//! `/varz`: what the server is, what it allows, and what it has done.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{State, text};
use crate::auth::jwt;
use crate::config;
use crate::config::tls::TIMEOUT_MS;
use crate::engine::RouteSnapshot;
use crate::shard::{Figures, Report};
use crate::transport::Tls;

/// The body. Fields that only a nats-server has something for are as there with that off.
#[derive(Serialize)]
pub(super) struct Varz<'a> {
    #[serde(flatten)]
    identity: Identity<'a>,
    #[serde(flatten)]
    limits: Limits<'a>,
    websocket: WebSocket<'a>,
    cluster: Cluster<'a>,
    #[serde(flatten)]
    missing: Missing,
    #[serde(serialize_with = "text::number")]
    tls_timeout: f64,
    write_deadline: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    write_timeout: Option<&'static str>,
    #[serde(flatten)]
    process: Process,
    #[serde(flatten)]
    traffic: Traffic,
    http_req_stats: &'a BTreeMap<&'static str, u64>,
    config_load_time: String,
    config_digest: String,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    tags: &'a [String],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: &'a BTreeMap<String, String>,
    feature_flags: FeatureFlags,
    #[serde(flatten)]
    trust: Trust<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    system_account: Option<&'a str>,
    slow_consumer_stats: ByKind,
    stale_connection_stats: ByKind,
    disk_io_wait_stats: DiskWaits,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_cert_not_after: Option<String>,
    shardcast: Shardcast,
}

#[derive(Serialize)]
struct Identity<'a> {
    server_id: &'a str,
    server_name: &'a str,
    version: &'static str,
    proto: i32,
    git_commit: &'static str,
    go: &'static str,
    host: &'a str,
    port: u16,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    auth_required: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    tls_required: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    tls_verify: bool,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    connect_urls: &'a [String],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    ws_connect_urls: &'a [String],
}

/// Who vouches for accounts; nothing if they are in the file.
#[derive(Serialize, Default)]
struct Trust<'a> {
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    trusted_operators_jwt: &'a [String],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    trusted_operators_claim: Vec<Value>,
}

impl<'a> Trust<'a> {
    fn new(trust: &'a config::trust::Trust) -> Self {
        let tokens = trust.operators.as_slice();
        let claims = tokens.iter().map(|token| jwt::document(token)).collect();
        Self { trusted_operators_jwt: tokens, trusted_operators_claim: claims }
    }
}

/// What of JetStream nats-server can switch, and how it is there by itself.
#[derive(Serialize)]
pub(crate) struct FeatureFlags {
    js_ack_fc_v2: bool,
    js_api_reply_v2: bool,
    js_raft_delete_range: bool,
    js_snapshot_sources: bool,
}

pub(crate) const FEATURE_FLAGS: FeatureFlags = FeatureFlags {
    js_ack_fc_v2: false,
    js_api_reply_v2: false,
    js_raft_delete_range: true,
    js_snapshot_sources: false,
};

#[derive(Serialize)]
struct Limits<'a> {
    max_connections: usize,
    #[serde(skip_serializing_if = "is_zero")]
    max_subscriptions: usize,
    ping_interval: u64,
    ping_max: u32,
    http_host: &'a str,
    http_port: u16,
    http_base_path: &'a str,
    https_port: u16,
    #[serde(serialize_with = "text::number")]
    auth_timeout: f64,
    max_control_line: usize,
    max_payload: usize,
    max_pending: usize,
}

/// How WebSocket clients come in; nothing if they do not.
#[derive(Serialize, Default)]
struct WebSocket<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    host: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    port: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    advertise: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    no_auth_user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jwt_cookie: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    handshake_timeout: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    auth_timeout: Option<f64>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    no_tls: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    same_origin: bool,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    allowed_origins: &'a [String],
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    compression: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_cert_not_after: Option<String>,
}

/// The cluster as it is configured; nothing if there is none.
#[derive(Serialize, Default)]
struct Cluster<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    addr: &'a str,
    #[serde(skip_serializing_if = "is_none")]
    cluster_port: u16,
    #[serde(skip_serializing_if = "is_no_time", serialize_with = "text::number")]
    auth_timeout: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    urls: Vec<String>,
    #[serde(skip_serializing_if = "is_no_time", serialize_with = "text::number")]
    tls_timeout: f64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    tls_required: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    tls_verify: bool,
    #[serde(skip_serializing_if = "is_none")]
    pool_size: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_cert_not_after: Option<String>,
}

impl<'a> Cluster<'a> {
    fn new(state: &'a State) -> Self {
        let (options, identity) = (&state.options.cluster, &state.identity.cluster);
        let Some(identity) = identity else { return Self::default() };
        let timeout = Duration::from_millis(options.timeout_ms);
        let tls_timeout_ms =
            options.tls.as_ref().map_or(TIMEOUT_MS, |mutual| mutual.tls.timeout_ms);
        let tls_timeout = Duration::from_millis(tls_timeout_ms);
        let url = |url: &config::RouteUrl| format!("{}:{}", url.host, url.port);
        Self {
            name: options.name.as_deref().unwrap_or(&identity.name),
            addr: &options.host,
            cluster_port: identity.port,
            auth_timeout: timeout.as_secs_f64(),
            urls: options.routes.iter().map(url).collect(),
            tls_timeout: tls_timeout.as_secs_f64(),
            tls_required: options.tls.is_some(),
            tls_verify: options.tls.is_some(),
            pool_size: identity.pooling.size(),
            tls_cert_not_after: options.tls.as_ref().and_then(|mutual| not_after(&mutual.tls)),
        }
    }
}

/// When the certificate ends.
fn not_after(tls: &Tls) -> Option<String> {
    DateTime::from_timestamp(tls.ends_at?, 0).map(text::time)
}

fn is_none(number: &u16) -> bool {
    *number == 0
}

fn is_no_time(seconds: &f64) -> bool {
    *seconds == 0.0
}

/// Subsystems that this server does not have.
#[derive(Serialize, Default)]
struct Missing {
    gateway: Map<String, Value>,
    leaf: Map<String, Value>,
    mqtt: Map<String, Value>,
    jetstream: Map<String, Value>,
}

#[derive(Serialize)]
struct Process {
    start: String,
    now: String,
    uptime: String,
    mem: u64,
    cores: usize,
    gomaxprocs: usize,
    #[serde(serialize_with = "text::number")]
    cpu: f64,
}

#[derive(Serialize, Default)]
struct Traffic {
    connections: usize,
    total_connections: u64,
    routes: usize,
    remotes: usize,
    leafnodes: usize,
    in_msgs: u64,
    in_bytes: u64,
    in_client_msgs: u64,
    in_client_bytes: u64,
    out_msgs: u64,
    out_bytes: u64,
    out_client_msgs: u64,
    out_client_bytes: u64,
    slow_consumers: u64,
    stale_connections: u64,
    stalled_clients: u64,
    subscriptions: usize,
}

#[derive(Serialize, Default)]
struct ByKind {
    clients: u64,
    routes: u64,
    gateways: u64,
    leafs: u64,
}

#[derive(Serialize, Default)]
struct DiskWaits {
    waiters: u64,
    waits: u64,
    wait_time: u64,
    max_wait_time: u64,
}

/// What nats-server has not.
#[derive(Serialize)]
struct Shardcast {
    version: &'static str,
    /// What of io_uring is used, and the release of the kernel.
    tier: String,
    kernel: String,
    shards: Vec<Shard>,
}

#[derive(Serialize)]
struct Shard {
    shard: u8,
    connections: usize,
    subscriptions: usize,
    in_msgs: u64,
    in_bytes: u64,
    out_msgs: u64,
    out_bytes: u64,
    /// Output that is queued or with the kernel; what connections share counts once.
    pending_bytes: usize,
    /// Records on the lanes to other shards, and those that have no room there.
    waiting_records: usize,
    slow_consumers: u64,
    queue_msgs_lost: u64,
}

const NS_PER_MS: u64 = 1_000_000;

impl<'a> Varz<'a> {
    pub(super) fn new(state: &'a State, figures: &'a [Figures], cpu: f64) -> Self {
        let reports: Vec<Report> = figures.iter().map(|figures| figures.report).collect();
        let options = &state.options;
        let traffic = Traffic::new(&reports, &state.reporter.routes(false));
        let digest = options.source.as_ref().map(|source| format!("sha256:{}", source.sha256));
        let shardcast = Shardcast::new(state, figures);
        let tls_timeout_ms = options.tls.as_ref().map_or(TIMEOUT_MS, |tls| tls.timeout_ms);
        let clients = |clients| ByKind { clients, ..ByKind::default() };
        Self {
            identity: Identity::new(state, figures),
            limits: Limits::new(state),
            websocket: WebSocket::new(state).unwrap_or_default(),
            cluster: Cluster::new(state),
            missing: Missing::default(),
            tls_timeout: Duration::from_millis(tls_timeout_ms).as_secs_f64(),
            write_deadline: options.write_deadline_ms.saturating_mul(NS_PER_MS),
            process: Process::new(state, cpu),
            http_req_stats: &state.requests,
            config_load_time: text::time(state.configured_at),
            config_digest: digest.unwrap_or_default(),
            tags: &options.server_tags,
            metadata: &options.server_metadata,
            write_timeout: options.write_timeout,
            tls_cert_not_after: options.tls.as_ref().and_then(not_after),
            feature_flags: FEATURE_FLAGS,
            trust: options.trust.as_ref().map(Trust::new).unwrap_or_default(),
            system_account: options.accounts.system.as_deref(),
            slow_consumer_stats: clients(traffic.slow_consumers),
            stale_connection_stats: clients(traffic.stale_connections),
            disk_io_wait_stats: DiskWaits::default(),
            traffic,
            shardcast,
        }
    }
}

impl<'a> Identity<'a> {
    fn new(state: &'a State, figures: &'a [Figures]) -> Self {
        let options = &state.options;
        let (host, port) = options.shown_address(state.identity.port);
        let urls = figures.first().map(|shard| &shard.client_urls);
        Self {
            server_id: &state.identity.id,
            server_name: &state.identity.name,
            version: crate::NATS_VERSION,
            proto: 1,
            git_commit: crate::GIT_COMMIT,
            go: "",
            host,
            port,
            auth_required: options.auth.is_required() || options.trust.is_some(),
            tls_required: options.tls.is_some() && !options.allow_non_tls,
            tls_verify: options.tls.as_ref().is_some_and(|tls| tls.verify),
            connect_urls: urls.and_then(|urls| urls.tcp.as_deref()).unwrap_or_default(),
            ws_connect_urls: urls.and_then(|urls| urls.websocket.as_deref()).unwrap_or_default(),
        }
    }
}

impl<'a> Limits<'a> {
    fn new(state: &'a State) -> Self {
        let options = &state.options;
        let http = state.identity.http.as_ref();
        Self {
            max_connections: options.limits.connections_max,
            max_subscriptions: options.limits.subscriptions_max,
            ping_interval: options.ping_interval_ms.saturating_mul(NS_PER_MS),
            ping_max: options.ping_max,
            http_host: http.map_or("", |http| &http.host),
            http_port: http.filter(|http| !http.is_tls).map_or(0, |http| http.port),
            http_base_path: &options.http_base_path,
            https_port: http.filter(|http| http.is_tls).map_or(0, |http| http.port),
            auth_timeout: Duration::from_millis(options.auth.timeout_ms).as_secs_f64(),
            max_control_line: options.limits.control_line_bytes_max,
            max_payload: options.limits.payload_bytes_max,
            max_pending: options.limits.pending_bytes_max,
        }
    }
}

impl<'a> WebSocket<'a> {
    fn new(state: &'a State) -> Option<Self> {
        let endpoint = state.identity.websocket.as_ref()?;
        let options = state.options.websocket.as_ref()?;
        let auth = options.auth.as_ref();
        let auth_timeout = auth.map(|auth| Duration::from_millis(auth.timeout_ms).as_secs_f64());
        Some(Self {
            host: &endpoint.host,
            port: usize::from(endpoint.port),
            advertise: options.advertise.as_deref(),
            no_auth_user: options.no_auth_user.as_deref(),
            jwt_cookie: options.cookies.jwt.as_deref(),
            handshake_timeout: Some(options.handshake_timeout_ms)
                .filter(|ms| *ms != config::WebSocketOptions::default().handshake_timeout_ms)
                .map(|ms| ms.saturating_mul(NS_PER_MS)),
            auth_timeout,
            no_tls: options.no_tls,
            same_origin: options.same_origin,
            allowed_origins: &options.allowed_origins,
            compression: options.compression,
            tls_cert_not_after: options.tls.as_ref().and_then(not_after),
        })
    }
}

impl Process {
    fn new(state: &State, cpu: f64) -> Self {
        let now = Utc::now();
        Self {
            start: text::time(state.started_at),
            now: text::time(now),
            uptime: text::between(state.started_at, now),
            mem: resident_bytes(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            gomaxprocs: state.reporter.shards(),
            cpu,
        }
    }
}

impl Traffic {
    fn new(reports: &[Report], routes: &[RouteSnapshot]) -> Self {
        let mut remotes: Vec<&str> = routes.iter().map(|route| &*route.remote_id).collect();
        remotes.sort_unstable();
        remotes.dedup();
        let (routes, remotes) = (routes.len(), remotes.len());
        let mut all = Self { routes, remotes, ..Self::default() };
        for report in reports {
            all.connections += report.conns;
            all.total_connections += report.accepted;
            all.subscriptions += report.subscriptions;
            all.in_msgs += report.stats.in_msgs;
            all.in_bytes += report.stats.in_bytes;
            all.out_msgs += report.stats.out_msgs;
            all.out_bytes += report.stats.out_bytes;
            all.slow_consumers += report.stats.slow_consumers;
            all.stale_connections += report.stats.stale_connections;
            all.stalled_clients += report.stats.stalls;
        }
        (all.in_client_msgs, all.in_client_bytes) = (all.in_msgs, all.in_bytes);
        (all.out_client_msgs, all.out_client_bytes) = (all.out_msgs, all.out_bytes);
        for routed in reports.iter().map(|report| report.stats.routed) {
            all.in_msgs += routed.in_msgs;
            all.in_bytes += routed.in_bytes;
            all.out_msgs += routed.out_msgs;
            all.out_bytes += routed.out_bytes;
        }
        all
    }
}

impl Shardcast {
    fn new(state: &State, figures: &[Figures]) -> Self {
        Self {
            version: crate::VERSION,
            tier: state.reporter.tier().to_string(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            shards: figures.iter().map(Shard::new).collect(),
        }
    }
}

impl Shard {
    fn new(figures: &Figures) -> Self {
        let report = &figures.report;
        let stats = &report.stats;
        let waiting = figures.lanes.iter().map(|(_, lane)| lane.waiting_records);
        Self {
            shard: report.shard.0,
            connections: report.conns,
            subscriptions: report.subscriptions,
            in_msgs: stats.in_msgs,
            in_bytes: stats.in_bytes,
            out_msgs: stats.out_msgs,
            out_bytes: stats.out_bytes,
            pending_bytes: figures.output_bytes,
            waiting_records: waiting.sum(),
            slow_consumers: stats.slow_consumers,
            queue_msgs_lost: stats.queue_msgs_lost,
        }
    }
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// Memory that the process holds.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0).saturating_mul(rustix::param::page_size() as u64)
}

/// The share of one core that the process uses, in percent.
pub(super) struct Cpu {
    /// Since when, and what had been used by then, in seconds.
    since: DateTime<Utc>,
    used_s: f64,
    percent: f64,
}

impl Cpu {
    pub(super) fn new() -> Self {
        Self { since: Utc::now(), used_s: used_s(), percent: 0.0 }
    }

    /// The share since it was last asked for, but not over less than a second.
    pub(super) fn percent(&mut self) -> f64 {
        const SPAN_S_MIN: f64 = 1.0;
        let (now, used_s) = (Utc::now(), used_s());
        let span_s = (now - self.since).as_seconds_f64();
        if span_s >= SPAN_S_MIN {
            self.percent = (100.0 * (used_s - self.used_s) / span_s).round();
            (self.since, self.used_s) = (now, used_s);
        }
        self.percent
    }
}

/// Processor time of the process.
#[expect(clippy::cast_precision_loss, reason = "a share needs no more digits")]
fn used_s() -> f64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}
