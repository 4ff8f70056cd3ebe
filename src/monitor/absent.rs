//! Pages of what nats-server has and this server has not: complete, with nothing in them.

use chrono::Utc;
use serde::Serialize;
use serde_json::{Map, Value};

use super::query::{Query, Refusal};
use super::{State, text};

#[derive(Serialize)]
pub(super) struct Leafz<'a> {
    server_id: &'a str,
    now: String,
    leafnodes: usize,
    leafs: [(); 0],
}

impl<'a> Leafz<'a> {
    pub(super) fn new(state: &'a State, query: &Query) -> Result<Self, Refusal> {
        query.boolean("subs")?;
        let (server_id, now) = (state.identity.id.as_str(), text::time(Utc::now()));
        Ok(Self { server_id, now, leafnodes: 0, leafs: [] })
    }
}

#[derive(Serialize)]
pub(super) struct Gatewayz<'a> {
    server_id: &'a str,
    now: String,
    outbound_gateways: Map<String, Value>,
    inbound_gateways: Map<String, Value>,
}

impl<'a> Gatewayz<'a> {
    pub(super) fn new(state: &'a State, query: &Query) -> Result<Self, Refusal> {
        query.boolean("accs")?;
        let (server_id, now) = (state.identity.id.as_str(), text::time(Utc::now()));
        let (outbound_gateways, inbound_gateways) = (Map::new(), Map::new());
        Ok(Self { server_id, now, outbound_gateways, inbound_gateways })
    }
}

/// What nats-server answers when JetStream is off.
#[derive(Serialize)]
pub(super) struct Jsz<'a> {
    memory: u64,
    storage: u64,
    reserved_memory: u64,
    reserved_storage: u64,
    accounts: usize,
    ha_assets: usize,
    api: JszApi,
    server_id: &'a str,
    now: String,
    disabled: bool,
    config: JszConfig,
    streams: usize,
    consumers: usize,
    messages: u64,
    bytes: u64,
    total: usize,
}

#[derive(Serialize, Default)]
struct JszApi {
    level: u64,
    total: u64,
    errors: u64,
}

#[derive(Serialize, Default)]
struct JszConfig {
    max_memory: u64,
    max_storage: u64,
}

impl<'a> Jsz<'a> {
    pub(super) fn new(state: &'a State, query: &Query) -> Result<Self, Refusal> {
        for name in ["accounts", "streams", "consumers", "direct-consumers", "config"] {
            query.boolean(name)?;
        }
        let leader_only = query.boolean("leader-only")?;
        query.count("offset")?;
        query.count("limit")?;
        query.boolean("raft")?;
        query.boolean("stream-leader-only")?;
        if leader_only {
            return Err(Refusal("filtered response: not leader".to_owned()));
        }
        Ok(Self {
            memory: 0,
            storage: 0,
            reserved_memory: 0,
            reserved_storage: 0,
            accounts: 0,
            ha_assets: 0,
            api: JszApi::default(),
            server_id: &state.identity.id,
            now: text::time(Utc::now()),
            disabled: true,
            config: JszConfig::default(),
            streams: 0,
            consumers: 0,
            messages: 0,
            bytes: 0,
            total: 0,
        })
    }
}

/// Queues inside the process that wait: none of a kind that nats-server has.
pub(super) fn ipqueuesz(query: &Query) -> Result<Map<String, Value>, Refusal> {
    query.boolean("all")?;
    Ok(Map::new())
}
