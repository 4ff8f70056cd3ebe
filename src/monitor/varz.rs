//! `/varz`: the server's identity, limits and counters.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Map, Value};

use super::gatewayz::GatewayVarz;
use super::leafz::LeafVarz;
use super::{MonitorState, jsz, process, text};
use crate::auth::jwt;
use crate::config;
use crate::config::tls::TIMEOUT_MS;
use crate::engine::{Kind, PerKind, RouteSnapshot, Stats};
use crate::shard::{Figures, ShardReport};
use crate::transport::Tls;

/// The page `/varz`. Fields of features that only nats-server has are as in one without them.
#[derive(Serialize)]
pub(super) struct Varz<'a> {
    #[serde(flatten)]
    identity: IdentityVarz<'a>,
    #[serde(flatten)]
    limits: LimitsVarz<'a>,
    websocket: WebSocket<'a>,
    cluster: ClusterVarz<'a>,
    gateway: GatewayVarz<'a>,
    #[serde(flatten)]
    missing: AbsentVarz,
    jetstream: Map<String, Value>,
    #[serde(serialize_with = "text::number")]
    tls_timeout: f64,
    write_deadline: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    write_timeout: Option<&'static str>,
    #[serde(flatten)]
    process: ProcessVarz,
    #[serde(flatten)]
    traffic: TrafficVarz,
    http_req_stats: &'a BTreeMap<&'static str, u64>,
    config_load_time: String,
    config_digest: String,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    tags: &'a [String],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: &'a BTreeMap<String, String>,
    feature_flags: FeatureFlags,
    #[serde(flatten)]
    trust: OperatorsVarz<'a>,
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
struct IdentityVarz<'a> {
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
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    tls_ocsp_peer_verify: bool,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    connect_urls: &'a [String],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    ws_connect_urls: &'a [String],
}

/// Operators that vouch for accounts; empty if accounts are configured in the file.
#[derive(Serialize, Default)]
struct OperatorsVarz<'a> {
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    trusted_operators_jwt: &'a [String],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    trusted_operators_claim: Vec<Value>,
}

impl<'a> OperatorsVarz<'a> {
    fn new(trust: &'a config::trust::TrustOptions) -> Self {
        let tokens = trust.operators.as_slice();
        let claims = tokens.iter().map(|token| jwt::document(token)).collect();
        Self { trusted_operators_jwt: tokens, trusted_operators_claim: claims }
    }
}

/// Features of JetStream that nats-server can switch, with its defaults.
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
struct LimitsVarz<'a> {
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

/// The listener for WebSocket clients; empty if there is none.
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

/// The configured cluster; empty if there is none.
#[derive(Serialize, Default)]
struct ClusterVarz<'a> {
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

impl<'a> ClusterVarz<'a> {
    fn new(state: &'a MonitorState) -> Self {
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

/// Returns the end of validity of the certificate.
pub(super) fn not_after(tls: &Tls) -> Option<String> {
    DateTime::from_timestamp(tls.ends_at?, 0).map(text::time)
}

fn is_none(number: &u16) -> bool {
    *number == 0
}

fn is_no_time(seconds: &f64) -> bool {
    *seconds == 0.0
}

/// Leaf nodes and MQTT.
#[derive(Serialize, Default)]
struct AbsentVarz {
    leaf: LeafVarz,
    mqtt: MqttVarz,
}

/// The block `mqtt`; what is not set is left out.
#[derive(Serialize, Default)]
struct MqttVarz {
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    no_auth_user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    auth_timeout: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_map: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_timeout: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    js_domain: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    js_api_timeout: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ack_wait: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_ack_pending: Option<u16>,
}

impl MqttVarz {
    fn new(state: &MonitorState) -> Option<Self> {
        let endpoint = state.identity.mqtt.as_ref()?;
        let options = state.options.network.mqtt.as_ref()?;
        let seconds = |ms: u64| Duration::from_millis(ms).as_secs_f64();
        let ns = |ms: u64| Some(ms).filter(|ms| *ms > 0).map(|ms| ms.saturating_mul(NS_PER_MS));
        let tls = options.tls.as_ref();
        Some(Self {
            host: Some(endpoint.host.clone()),
            port: Some(endpoint.port),
            no_auth_user: options.no_auth_user.clone(),
            auth_timeout: options.login.timeout_ms.map(seconds),
            tls_map: tls.map(|tls| tls.map).filter(|is| *is),
            tls_timeout: Some(seconds(tls.map_or(TIMEOUT_MS, |tls| tls.timeout_ms))),
            js_domain: options.domain.clone(),
            js_api_timeout: ns(options.api_timeout_ms),
            ack_wait: ns(options.ack_wait_ms),
            max_ack_pending: Some(options.ack_pending_max).filter(|count| *count > 0),
        })
    }
}

#[derive(Serialize)]
struct ProcessVarz {
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
struct TrafficVarz {
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

impl ByKind {
    /// Returns the sums over all shards.
    fn of(figures: &[Figures], count: impl Fn(&Stats) -> PerKind) -> Self {
        let mut all = PerKind::default();
        figures.iter().for_each(|shard| all += count(&shard.report.stats));
        Self {
            clients: all.of(Kind::Client),
            routes: all.of(Kind::Route),
            gateways: all.of(Kind::Gateway),
            leafs: all.of(Kind::Leaf) + all.of(Kind::Hub),
        }
    }
}

#[derive(Serialize, Default)]
struct DiskWaits {
    waiters: u64,
    waits: u64,
    wait_time: u64,
    max_wait_time: u64,
}

/// Figures that nats-server does not have.
#[derive(Serialize)]
struct Shardcast {
    version: &'static str,
    /// The io_uring tier in use.
    tier: String,
    kernel: String,
    shards: Vec<ShardVarz>,
}

#[derive(Serialize)]
struct ShardVarz {
    shard: u8,
    connections: usize,
    subscriptions: usize,
    in_msgs: u64,
    in_bytes: u64,
    out_msgs: u64,
    out_bytes: u64,
    /// Bytes of output queued or with the kernel; bytes that connections share count once.
    pending_bytes: usize,
    /// Records for other shards, on their lanes or waiting for room there.
    waiting_records: usize,
    slow_consumers: u64,
    queue_msgs_lost: u64,
}

const NS_PER_MS: u64 = 1_000_000;

impl<'a> Varz<'a> {
    pub(super) fn new(state: &'a MonitorState, figures: &'a [Figures], cpu: f64) -> Self {
        let reports: Vec<ShardReport> = figures.iter().map(|figures| figures.report).collect();
        let options = &state.options;
        let leafnodes = state.reporter.leaves(false).len();
        let traffic = TrafficVarz::new(&reports, &state.reporter.routes(false), leafnodes);
        let digest = options.source.as_ref().map(|source| format!("sha256:{}", source.sha256));
        let shardcast = Shardcast::new(state, figures);
        let tls_timeout_ms = options.network.tls.as_ref().map_or(TIMEOUT_MS, |tls| tls.timeout_ms);
        Self {
            identity: IdentityVarz::new(state, figures),
            limits: LimitsVarz::new(state),
            websocket: WebSocket::new(state).unwrap_or_default(),
            cluster: ClusterVarz::new(state),
            gateway: GatewayVarz::new(state),
            missing: AbsentVarz {
                leaf: LeafVarz::new(state),
                mqtt: MqttVarz::new(state).unwrap_or_default(),
            },
            jetstream: jsz::varz_part(state),
            tls_timeout: Duration::from_millis(tls_timeout_ms).as_secs_f64(),
            write_deadline: options.timeouts.write_deadline_ms.saturating_mul(NS_PER_MS),
            process: ProcessVarz::new(state, cpu),
            http_req_stats: &state.requests,
            config_load_time: text::time(state.configured_at),
            config_digest: digest.unwrap_or_default(),
            tags: &options.server.tags,
            metadata: &options.server.metadata,
            write_timeout: options.timeouts.write_timeout,
            tls_cert_not_after: options.network.tls.as_ref().and_then(not_after),
            feature_flags: FEATURE_FLAGS,
            trust: options.trust.as_ref().map(OperatorsVarz::new).unwrap_or_default(),
            system_account: options.accounts.system.as_deref(),
            slow_consumer_stats: ByKind::of(figures, |stats| stats.slow_consumers),
            stale_connection_stats: ByKind::of(figures, |stats| stats.stale_connections),
            disk_io_wait_stats: DiskWaits::default(),
            traffic,
            shardcast,
        }
    }
}

impl<'a> IdentityVarz<'a> {
    fn new(state: &'a MonitorState, figures: &'a [Figures]) -> Self {
        let options = &state.options;
        let (host, port) = options.network.shown_address(state.identity.port);
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
            tls_required: options.network.requires_tls(),
            tls_verify: options.network.tls.as_ref().is_some_and(|tls| tls.verify),
            tls_ocsp_peer_verify: options.network.requires_tls()
                && options.network.tls.as_ref().is_some_and(|tls| tls.peers.is_some()),
            connect_urls: urls.and_then(|urls| urls.tcp.as_deref()).unwrap_or_default(),
            ws_connect_urls: urls.and_then(|urls| urls.websocket.as_deref()).unwrap_or_default(),
        }
    }
}

impl<'a> LimitsVarz<'a> {
    fn new(state: &'a MonitorState) -> Self {
        let options = &state.options;
        let http = state.identity.http.as_ref();
        Self {
            max_connections: options.limits.connections_max,
            max_subscriptions: options.limits.subscriptions_max,
            ping_interval: options.timeouts.ping_interval_ms.saturating_mul(NS_PER_MS),
            ping_max: options.timeouts.ping_max,
            http_host: http.map_or("", |http| &http.host),
            http_port: http.filter(|http| !http.is_tls).map_or(0, |http| http.port),
            http_base_path: &options.monitoring.base_path,
            https_port: http.filter(|http| http.is_tls).map_or(0, |http| http.port),
            auth_timeout: Duration::from_millis(options.auth.timeout_ms).as_secs_f64(),
            max_control_line: options.limits.control_line_bytes_max,
            max_payload: options.limits.payload_bytes_max,
            max_pending: options.limits.pending_bytes_max,
        }
    }
}

impl<'a> WebSocket<'a> {
    fn new(state: &'a MonitorState) -> Option<Self> {
        let endpoint = state.identity.websocket.as_ref()?;
        let options = state.options.network.websocket.as_ref()?;
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

impl ProcessVarz {
    fn new(state: &MonitorState, cpu: f64) -> Self {
        let now = Utc::now();
        Self {
            start: text::time(state.started_at),
            now: text::time(now),
            uptime: text::between(state.started_at, now),
            mem: process::memory().resident_bytes,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            gomaxprocs: state.reporter.shards(),
            cpu,
        }
    }
}

impl TrafficVarz {
    fn new(reports: &[ShardReport], routes: &[RouteSnapshot], leafnodes: usize) -> Self {
        let mut remotes: Vec<&str> = routes.iter().map(|route| &*route.remote_id).collect();
        remotes.sort_unstable();
        remotes.dedup();
        let (routes, remotes) = (routes.len(), remotes.len());
        let mut all = Self { routes, remotes, leafnodes, ..Self::default() };
        for report in reports {
            all.connections += report.conns;
            all.total_connections += report.accepted;
            all.subscriptions += report.subscriptions;
            all.in_msgs += report.stats.in_msgs;
            all.in_bytes += report.stats.in_bytes;
            all.out_msgs += report.stats.out_msgs;
            all.out_bytes += report.stats.out_bytes;
            all.slow_consumers += report.stats.slow_consumers.total();
            all.stale_connections += report.stats.stale_connections.total();
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
    fn new(state: &MonitorState, figures: &[Figures]) -> Self {
        Self {
            version: crate::VERSION,
            tier: state.reporter.tier().to_string(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            shards: figures.iter().map(ShardVarz::new).collect(),
        }
    }
}

impl ShardVarz {
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
            slow_consumers: stats.slow_consumers.total(),
            queue_msgs_lost: stats.queue_msgs_lost,
        }
    }
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}
