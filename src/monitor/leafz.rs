//! `/leafz`: leaf connections one by one.

use std::time::Duration;

use chrono::Utc;
use serde::{Serialize, Serializer};

use super::query::{BadQuery, Query};
use super::{MonitorState, text};
use crate::cluster::LeafUrl;
use crate::config::LeafRemoteOptions;
use crate::engine::LeafSnapshot;

#[derive(Serialize)]
pub(super) struct Leafz<'a> {
    server_id: &'a str,
    now: String,
    leafnodes: usize,
    leafs: Vec<LeafDetail>,
}

#[derive(Serialize)]
struct LeafDetail {
    id: u64,
    name: String,
    is_spoke: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    is_isolated: bool,
    account: String,
    ip: Box<str>,
    port: u16,
    rtt: String,
    in_msgs: u64,
    out_msgs: u64,
    in_bytes: u64,
    out_bytes: u64,
    subscriptions: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    subscriptions_list: Vec<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    compression: &'static str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    websocket: bool,
}

impl<'a> Leafz<'a> {
    pub(super) fn new(state: &'a MonitorState, query: &Query) -> Result<Self, BadQuery> {
        let with_interest = query.boolean("subs")?;
        let account = query.text("acc");
        let mut leaves = state.reporter.leaves(with_interest);
        if let Some(account) = Some(account).filter(|account| !account.is_empty()) {
            leaves.retain(|leaf| *leaf.account == *account);
        }
        leaves.sort_unstable_by_key(|leaf| (leaf.is_spoke, leaf.lid));
        let (server_id, now) = (state.identity.id.as_str(), text::time(Utc::now()));
        let leafs: Vec<LeafDetail> = leaves.into_iter().map(shown).collect();
        Ok(Self { server_id, now, leafnodes: leafs.len(), leafs })
    }
}

fn shown(leaf: LeafSnapshot) -> LeafDetail {
    let filters = leaf.interest.iter();
    LeafDetail {
        id: leaf.lid,
        name: leaf.name,
        is_spoke: leaf.is_spoke,
        is_isolated: leaf.is_isolated,
        account: leaf.account.to_string(),
        ip: leaf.ip,
        port: leaf.port,
        rtt: text::round_trip(leaf.rtt_ns),
        in_msgs: leaf.traffic.in_msgs,
        out_msgs: leaf.traffic.out_msgs,
        in_bytes: leaf.traffic.in_bytes,
        out_bytes: leaf.traffic.out_bytes,
        subscriptions: leaf.subscriptions,
        subscriptions_list: filters.map(|text| String::from_utf8_lossy(text).into()).collect(),
        compression: leaf.compression,
        websocket: leaf.is_websocket,
    }
}

/// The block `leaf` of `/varz`.
#[derive(Serialize, Default)]
pub(super) struct LeafVarz {
    #[serde(skip_serializing_if = "String::is_empty")]
    host: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "seconds")]
    auth_timeout: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "seconds")]
    tls_timeout: Option<f64>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    tls_required: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    tls_verify: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    remotes: Vec<RemoteVarz>,
}

#[derive(Serialize)]
struct RemoteVarz {
    local_account: String,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "seconds")]
    tls_timeout: Option<f64>,
    urls: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deny: Option<DenyVarz>,
}

#[derive(Serialize)]
struct DenyVarz {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    imports: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    exports: Vec<String>,
}

fn seconds<S: Serializer>(seconds: &Option<f64>, to: S) -> Result<S::Ok, S::Error> {
    text::number(&seconds.unwrap_or_default(), to)
}

impl LeafVarz {
    pub(super) fn new(state: &MonitorState) -> Self {
        let leaf = &state.options.leaf;
        let in_s = |ms: u64| Duration::from_millis(ms).as_secs_f64();
        let remotes = leaf.remotes.iter().map(RemoteVarz::new).collect();
        let Some(own) = &state.identity.leaf else { return Self { remotes, ..Self::default() } };
        Self {
            host: own.host.clone(),
            port: Some(own.port),
            auth_timeout: Some(in_s(leaf.timeout_ms)),
            tls_timeout: leaf.tls.as_ref().map(|tls| in_s(tls.timeout_ms)),
            tls_required: leaf.tls.is_some(),
            tls_verify: leaf.tls.as_ref().is_some_and(|tls| tls.verify),
            remotes,
        }
    }
}

impl RemoteVarz {
    fn new(remote: &LeafRemoteOptions) -> Self {
        let link = &remote.link;
        let (imports, exports) = (link.deny_imports.clone(), link.deny_exports.clone());
        let denies = !imports.is_empty() || !exports.is_empty();
        let address = |url: &LeafUrl| match url.host.contains(':') {
            true => format!("[{}]:{}", url.host, url.port),
            false => format!("{}:{}", url.host, url.port),
        };
        let in_s = |ms: u64| Duration::from_millis(ms).as_secs_f64();
        Self {
            local_account: link.account.clone(),
            tls_timeout: link.tls.as_ref().map(|tls| in_s(tls.timeout_ms)),
            urls: remote.urls.iter().map(address).collect(),
            deny: denies.then_some(DenyVarz { imports, exports }),
        }
    }
}
