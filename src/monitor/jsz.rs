//! `/jsz`: JetStream with its accounts, streams and consumers; and its parts of other pages.

use std::collections::BTreeMap;

use chrono::Utc;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::query::{BadQuery, Query};
use super::{MonitorState, text};
use crate::config::{BatchLimits, SyncPolicy};
use crate::stream::{StorageKind, StreamFigures, UsageFigures};

/// Accounts on a page, unless another number is asked for.
const ACCOUNTS_PER_PAGE: usize = 1024;

/// The page `/jsz`.
#[derive(Serialize)]
pub(super) struct Jsz<'a> {
    #[serde(flatten)]
    stats: JetStreamStats,
    server_id: &'a str,
    now: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    disabled: bool,
    config: JetStreamShown,
    #[serde(skip_serializing_if = "Map::is_empty")]
    limits: Map<String, Value>,
    streams: usize,
    consumers: usize,
    messages: u64,
    bytes: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    account_details: Vec<AccountDetail>,
    total: usize,
}

/// Use of JetStream, by all accounts or one.
#[derive(Serialize, Default)]
struct JetStreamStats {
    memory: u64,
    storage: u64,
    reserved_memory: u64,
    reserved_storage: u64,
    accounts: usize,
    ha_assets: usize,
    api: ApiStats,
}

#[derive(Serialize, Default)]
struct ApiStats {
    level: u32,
    total: u64,
    errors: u64,
}

/// The configuration of JetStream.
#[derive(Serialize, Default)]
struct JetStreamShown {
    max_memory: u64,
    max_storage: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    store_dir: String,
    #[serde(skip_serializing_if = "is_zero")]
    sync_interval: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    sync_always: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    compress_ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    unique_tag: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    strict: bool,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// An account with its streams.
#[derive(Serialize)]
struct AccountDetail {
    name: String,
    id: String,
    #[serde(flatten)]
    stats: JetStreamStats,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stream_detail: Vec<Value>,
}

/// Details that a request asks for.
#[derive(Clone, Copy)]
struct DetailWanted {
    accounts: bool,
    streams: bool,
    consumers: bool,
    config: bool,
    /// Accounts before the page.
    offset: usize,
    /// Accounts of the page, at most.
    limit: usize,
}

/// The figures of all shards.
pub(super) struct JetStreamState {
    usage: Vec<UsageFigures>,
    streams: Vec<StreamFigures>,
}

impl JetStreamState {
    /// Asks the shards; streams are in order of their accounts and names.
    pub(super) fn new(state: &MonitorState, with_consumers: bool) -> Self {
        let mut streams = state.reporter.streams(with_consumers);
        streams.sort_by(|a, b| (&a.account, &a.name).cmp(&(&b.account, &b.name)));
        Self { usage: state.reporter.stream_usage(), streams }
    }

    /// Whether an account may have streams.
    pub(super) fn has_account(&self, account: &str) -> bool {
        self.usage.iter().any(|usage| *usage.account == *account)
    }

    /// The stream of that name in an account.
    pub(super) fn find(&self, account: &str, name: &str) -> Option<&StreamFigures> {
        self.streams.iter().find(|stream| *stream.account == *account && stream.name == name)
    }

    fn of<'a>(&'a self, account: &'a str) -> impl Iterator<Item = &'a StreamFigures> {
        self.streams.iter().filter(move |stream| *stream.account == *account)
    }

    fn stats(&self) -> JetStreamStats {
        let mut stats = reserved(self.streams.iter());
        stats.accounts = self.usage.len();
        for usage in &self.usage {
            stats.add(usage);
        }
        stats
    }
}

/// Bytes that limits of streams reserve.
fn reserved<'a>(streams: impl Iterator<Item = &'a StreamFigures>) -> JetStreamStats {
    let mut stats = JetStreamStats::default();
    stats.api.level = crate::JETSTREAM_API_LEVEL;
    for stream in streams {
        let reserved = match stream.storage {
            StorageKind::File => &mut stats.reserved_storage,
            StorageKind::Memory => &mut stats.reserved_memory,
        };
        *reserved = reserved.saturating_add(stream.reserved_bytes);
    }
    stats
}

impl JetStreamStats {
    fn add(&mut self, usage: &UsageFigures) {
        self.memory += usage.memory_bytes;
        self.storage += usage.file_bytes;
        self.api.total += usage.api_total;
        self.api.errors += usage.api_errors;
    }
}

impl JetStreamShown {
    fn new(state: &MonitorState) -> Self {
        let (options, place) = (&state.options.jetstream, state.identity.streams.as_ref());
        let Some(place) = place else { return Self::default() };
        let limits = options.asset_limits(place.limits);
        let (sync_interval, sync_always) = match options.sync {
            SyncPolicy::Always => (SyncPolicy::USUAL_NS, true),
            SyncPolicy::Every(ns) => (ns, false),
        };
        Self {
            max_memory: limits.memory_bytes_max,
            max_storage: limits.file_bytes_max,
            store_dir: place.directory.display().to_string(),
            sync_interval,
            sync_always,
            domain: options.domain.clone(),
            compress_ok: true,
            unique_tag: options.unique_tag.clone(),
            strict: !options.is_lenient,
        }
    }
}

fn limits_shown(state: &MonitorState) -> Map<String, Value> {
    let limits = &state.options.jetstream.limits;
    let window = i64::try_from(limits.duplicate_window_max_ns).unwrap_or(i64::MAX);
    // Limits of batches are shown where they are not the usual ones.
    let (batch, usual) = (limits.batch, BatchLimits::default());
    let unusual = |limit: usize, usual: usize| json!(if limit == usual { 0 } else { limit });
    let timeout = if batch.timeout_ns == usual.timeout_ns { 0 } else { batch.timeout_ns };
    let all = [
        ("max_request_batch", json!(limits.request_batch_max)),
        ("max_ack_pending", json!(limits.ack_pending_max)),
        ("max_ha_assets", json!(limits.replicated_assets_max)),
        ("max_duplicate_window", json!(window)),
        (
            "max_batch_inflight_per_stream",
            unusual(batch.batches_per_stream_max, usual.batches_per_stream_max),
        ),
        ("max_batch_inflight_total", unusual(batch.batches_max, usual.batches_max)),
        ("max_batch_size", unusual(batch.messages_max, usual.messages_max)),
        ("max_batch_timeout", json!(timeout)),
        ("default_max_consumers", json!(limits.stream_consumers_max)),
    ];
    let all = all.into_iter().filter(|(_, value)| *value != json!(0));
    all.map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Returns the part `jetstream` of `/varz`; empty while JetStream is off.
pub(super) fn varz_part(state: &MonitorState) -> Map<String, Value> {
    if state.identity.streams.is_none() {
        return Map::new();
    }
    let stats = JetStreamState::new(state, false).stats();
    let parts = [
        ("config", json!(JetStreamShown::new(state))),
        ("stats", json!(stats)),
        ("limits", limits_shown(state).into()),
    ];
    parts.into_iter().map(|(name, part)| (name.to_owned(), part)).collect()
}

/// Figures for the metrics, by the names of the exporter.
pub(super) fn metrics(state: &MonitorState) -> Vec<(&'static str, u64)> {
    let is_off = state.identity.streams.is_none();
    let mut all = vec![("jetstream_server_jetstream_disabled", u64::from(is_off))];
    if is_off {
        return all;
    }
    let (found, shown) = (JetStreamState::new(state, false), JetStreamShown::new(state));
    let sum = |of: fn(&StreamFigures) -> u64| found.streams.iter().map(of).sum();
    all.extend([
        ("jetstream_server_total_streams", found.streams.len() as u64),
        ("jetstream_server_total_consumers", sum(|stream| stream.consumers as u64)),
        ("jetstream_server_total_messages", sum(|stream| stream.messages)),
        ("jetstream_server_total_message_bytes", sum(|stream| stream.bytes)),
        ("jetstream_server_max_memory", shown.max_memory),
        ("jetstream_server_max_storage", shown.max_storage),
    ]);
    all
}

impl<'a> Jsz<'a> {
    pub(super) fn new(state: &'a MonitorState, query: &Query) -> Result<Self, BadQuery> {
        let given = |name: &str| query.boolean(name);
        let (accounts, streams) = (given("accounts")?, given("streams")?);
        // Requests by message have another word for it.
        let consumers = given("consumers")? || query.text("consumer") == "true";
        let config = given("config")?;
        given("direct-consumers")?;
        let leader_only = given("leader-only")?;
        let (offset, limit) = (query.count("offset")?, query.count("limit")?);
        given("raft")?;
        given("stream-leader-only")?;
        let (server_id, now) = (state.identity.id.as_str(), text::time(Utc::now()));
        let is_off = state.identity.streams.is_none();
        if is_off {
            if leader_only {
                return Err(BadQuery("filtered response: not leader".to_owned()));
            }
            return Ok(Self {
                stats: JetStreamStats::default(),
                server_id,
                now,
                disabled: true,
                config: JetStreamShown::default(),
                limits: Map::new(),
                streams: 0,
                consumers: 0,
                messages: 0,
                bytes: 0,
                account_details: Vec::new(),
                total: 0,
            });
        }
        let streams = streams || consumers;
        let wanted = DetailWanted {
            accounts: accounts || streams,
            streams,
            consumers,
            config,
            offset,
            limit: if limit == 0 { ACCOUNTS_PER_PAGE } else { limit },
        };
        let found = JetStreamState::new(state, consumers);
        let account_details = details(&found, wanted, query.text("acc"));
        let all = &found.streams;
        Ok(Self {
            stats: found.stats(),
            server_id,
            now,
            disabled: false,
            config: JetStreamShown::new(state),
            limits: limits_shown(state),
            streams: all.len(),
            consumers: all.iter().map(|stream| stream.consumers).sum(),
            messages: all.iter().map(|stream| stream.messages).sum(),
            bytes: all.iter().map(|stream| stream.bytes).sum(),
            account_details,
            total: found.usage.len(),
        })
    }
}

/// The accounts of a page in order of their names, or the one that is asked for.
fn details(found: &JetStreamState, wanted: DetailWanted, only: &str) -> Vec<AccountDetail> {
    let accounts: BTreeMap<&str, &UsageFigures> =
        found.usage.iter().map(|usage| (&*usage.account, usage)).collect();
    if !only.is_empty() {
        let usage = accounts.get(only);
        return usage.map(|usage| detail(found, usage, wanted)).into_iter().collect();
    }
    if !wanted.accounts {
        return Vec::new();
    }
    let page = accounts.into_values().skip(wanted.offset).take(wanted.limit);
    page.map(|usage| detail(found, usage, wanted)).collect()
}

fn detail(found: &JetStreamState, usage: &UsageFigures, wanted: DetailWanted) -> AccountDetail {
    let name = usage.account.to_string();
    let mut stats = reserved(found.of(&name));
    stats.add(usage);
    // The level is the server's.
    stats.api.level = 0;
    let streams = found.of(&name).filter(|_| wanted.streams);
    let stream_detail = streams.map(|stream| stream_detail(stream, wanted)).collect();
    AccountDetail { id: name.clone(), name, stats, stream_detail }
}

fn stream_detail(stream: &StreamFigures, wanted: DetailWanted) -> Value {
    let mut shown = Map::new();
    shown.insert("name".to_owned(), stream.name.clone().into());
    if let Ok(Value::Object(mut info)) = serde_json::to_value(&stream.info) {
        for name in ["created", "cluster", "config", "state", "mirror", "sources"] {
            let is_wanted = name != "config" || wanted.config;
            let value = info.remove(name).filter(|_| is_wanted);
            shown.extend(value.map(|value| (name.to_owned(), value)));
        }
    }
    if wanted.consumers {
        let list: Value = serde_json::from_slice(&stream.consumers_shown).unwrap_or_default();
        let mut consumers = list["consumers"].clone();
        if !wanted.config
            && let Some(all) = consumers.as_array_mut()
        {
            all.iter_mut().filter_map(Value::as_object_mut).for_each(|one| {
                one.remove("config");
            });
        }
        let has_some = consumers.as_array().is_some_and(|all| !all.is_empty());
        shown.extend(has_some.then(|| ("consumer_detail".to_owned(), consumers)));
    }
    shown.into()
}

/// Whether a stream has a consumer of that name, if consumers were asked for.
pub(super) fn has_consumer(stream: &StreamFigures, name: &str) -> bool {
    let list: Value = serde_json::from_slice(&stream.consumers_shown).unwrap_or_default();
    let all = list["consumers"].as_array();
    all.is_some_and(|all| all.iter().any(|consumer| consumer["name"] == name))
}
