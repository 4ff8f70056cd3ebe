//! The way of a traced message, as a document.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;

use crate::engine::{Kind, MessageTrace, Party, Step, StepEvent};
use crate::monitor::time_after;
use crate::proto::headers::header_values;

/// Kinds of connections, as nats-server numbers them.
const CLIENT: u8 = 0;
const ROUTER: u8 = 1;
const GATEWAY: u8 = 2;
const LEAF: u8 = 4;

#[derive(Serialize)]
struct Document<'a> {
    server: &'a Value,
    request: MsgTraceRequest,
    #[serde(skip_serializing_if = "is_zero")]
    hops: u32,
    events: Vec<MsgTraceEvent<'a>>,
    #[serde(skip_serializing_if = "is_zero")]
    events_left_out: u64,
}

#[derive(Serialize)]
struct MsgTraceRequest {
    header: BTreeMap<String, Vec<String>>,
    #[serde(rename = "msgsize")]
    message_bytes: usize,
}

/// An event of a trace, of any type, its fields in nats-server's order; `shard` is ours.
#[derive(Serialize, Default)]
struct MsgTraceEvent<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    ts: String,
    #[serde(rename = "kind", skip_serializing_if = "Option::is_none")]
    party: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cid: Option<u64>,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    hop: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    acc: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subj: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sub: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    shard: u8,
}

/// Returns the document about `trace`, sent by `server`, of a process that began at `started_at`.
pub(super) fn document(server: &Value, trace: &MessageTrace, started_at: DateTime<Utc>) -> String {
    let values = header_values(&trace.header).into_iter();
    let all = |values: Vec<&[u8]>| values.into_iter().map(text).collect();
    let document = Document {
        server,
        request: MsgTraceRequest {
            header: values.map(|(name, values)| (text(name), all(values))).collect(),
            message_bytes: trace.message_bytes,
        },
        hops: trace.hops,
        events: trace.steps.iter().map(|step| event(step, started_at)).collect(),
        events_left_out: trace.left_out,
    };
    serde_json::to_string(&document).unwrap_or_default()
}

fn event(step: &Step, started_at: DateTime<Utc>) -> MsgTraceEvent<'_> {
    let base = |kind| MsgTraceEvent {
        kind,
        ts: time_after(started_at, step.at_ns),
        shard: step.shard.0,
        ..MsgTraceEvent::default()
    };
    match &step.event {
        StepEvent::Ingress { from, account, subject, error } => MsgTraceEvent {
            acc: Some(account),
            subj: Some(text(subject)),
            error: error.as_deref(),
            ..with(base("in"), from)
        },
        StepEvent::Mapped { to } => MsgTraceEvent { to: Some(text(to)), ..base("sm") },
        StepEvent::Service { account, from, to } => MsgTraceEvent {
            acc: Some(account),
            from: Some(text(from)),
            to: Some(text(to)),
            ..base("si")
        },
        StepEvent::Stream { account, to } => {
            MsgTraceEvent { acc: Some(account), to: Some(text(to)), ..base("se") }
        }
        StepEvent::Egress { to, account, filter, queue, hop, error } => MsgTraceEvent {
            hop: hop.map(|hop| hop.to_string()),
            acc: account.as_deref(),
            sub: filter.as_deref().map(text),
            queue: queue.as_deref().map(text),
            error: *error,
            ..with(base("eg"), to)
        },
    }
}

fn with<'a>(event: MsgTraceEvent<'a>, party: &'a Party) -> MsgTraceEvent<'a> {
    let kind = match party.kind {
        Kind::Client => CLIENT,
        Kind::Route => ROUTER,
        Kind::Gateway => GATEWAY,
        Kind::Leaf | Kind::Hub => LEAF,
    };
    MsgTraceEvent { party: Some(kind), cid: Some(party.cid), name: &party.name, ..event }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn is_zero<N: Default + PartialEq>(number: &N) -> bool {
    *number == N::default()
}
