//! The half of a measured request as a document between servers: `$SYS.LATENCY.M2.<server>`.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::engine::{AnsweredRequest, FarHalf, ShardId, parse_answer};
use crate::monitor::time_after;
use crate::proto::gateway::plain_subject;

/// Bytes of a half that is taken. The responder's token may be in it.
const HALF_BYTES_MAX: usize = 64 * 1024;

/// The time of an event that is none, as Go writes it.
const NO_TIME: &str = "0001-01-01T00:00:00Z";

/// The document, its fields in nats-server's order.
#[derive(Serialize)]
struct HalfDocument<'a> {
    account: &'a str,
    req_id: &'a str,
    m2: ServiceHalf<'a>,
}

#[derive(Serialize)]
struct ServiceHalf<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    id: &'a str,
    timestamp: &'a str,
    status: u16,
    responder: Value,
    start: String,
    service: u64,
    system: u64,
    total: u64,
}

/// The members of a document that are looked at.
#[derive(Deserialize)]
struct GivenHalf {
    account: String,
    req_id: String,
    m2: GivenService,
}

#[derive(Deserialize)]
struct GivenService {
    responder: Option<Value>,
    service: i64,
}

/// A half with the request that it is of.
#[derive(Debug)]
pub(super) struct Addressed {
    pub(super) shard: ShardId,
    /// Number of the request's answer on that shard.
    pub(super) id: u64,
    pub(super) half: Box<FarHalf>,
}

/// Returns the document of an answer; `responder` is who has given it.
pub(super) fn document(
    answered: &AnsweredRequest,
    responder: Value,
    started_at: DateTime<Utc>,
) -> String {
    let took_ns = answered.took_ns.end.saturating_sub(answered.took_ns.start);
    // The round trip is that between the responder and this server.
    let service = took_ns.saturating_sub(answered.responder.rtt_ns);
    let document = HalfDocument {
        account: &answered.responder.account,
        req_id: &String::from_utf8_lossy(&answered.reply),
        m2: ServiceHalf {
            kind: "",
            id: "",
            timestamp: NO_TIME,
            status: 200,
            responder,
            start: time_after(started_at, answered.took_ns.start),
            service,
            system: 0,
            total: service + answered.responder.rtt_ns,
        },
    };
    serde_json::to_string(&document).unwrap_or_default()
}

/// Reads the half of a request to the server `node`; `None` if it is none.
pub(super) fn read(payload: &[u8], node: &str) -> Option<Addressed> {
    if payload.len() > HALF_BYTES_MAX {
        return None;
    }
    let GivenHalf { account, req_id, m2 } = serde_json::from_slice(payload).ok()?;
    // A request that came from another cluster may have named it.
    let (server, shard, id) = parse_answer(plain_subject(req_id.as_bytes()))?;
    if server != node.as_bytes() {
        return None;
    }
    let not_negative = |ns: i64| u64::try_from(ns).unwrap_or(0);
    let responder = m2.responder.filter(Value::is_object);
    let rtt = responder.as_ref().and_then(|responder| responder["rtt"].as_i64());
    let half = FarHalf {
        account: account.into(),
        responder: responder.map(|responder| responder.to_string().into()),
        rtt_ns: not_negative(rtt.unwrap_or(0)),
        service_ns: not_negative(m2.service),
    };
    Some(Addressed { shard, id, half: Box::new(half) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn given(req_id: &str, m2: Value) -> Option<Addressed> {
        let document = json!({"account": "EXP", "req_id": req_id, "m2": m2, "other": [1]});
        read(document.to_string().as_bytes(), "ABC")
    }

    #[test]
    fn the_half_of_nats_server_names_its_request_also_behind_the_name_of_a_cluster() {
        let m2 = json!({
            "type": "", "id": "", "timestamp": NO_TIME, "status": 200,
            "responder": {"acc": "EXP", "rtt": 7, "name": "n", "kind": "Client"},
            "start": "2026-01-01T00:00:00Z", "service": 5, "system": 0, "total": 12,
        });
        for prefix in ["", "_GR_.AAAAAA.BBBBBB."] {
            let req_id = format!("{prefix}_R_.ABC.02000000000000000f.ABC.T");
            let Some(Addressed { shard, id, half }) = given(&req_id, m2.clone()) else {
                panic!("{req_id} is ours");
            };
            assert_eq!((shard, id, &*half.account), (ShardId(2), 15, "EXP"));
            assert_eq!((half.rtt_ns, half.service_ns), (7, 5));
            // In the order in which it came.
            let text = r#"{"acc":"EXP","rtt":7,"name":"n","kind":"Client"}"#;
            assert_eq!(half.responder.as_deref(), Some(text));
        }
    }

    #[test]
    fn what_is_no_half_or_not_ours_is_dropped_and_no_time_is_negative() {
        let ours = "_R_.ABC.02000000000000000f.ABC.T";
        let half = |m2: Value| given(ours, m2).map(|given| given.half);
        for m2 in
            [json!({}), json!({"service": "5"}), json!({"service": 1e300}), json!([]), json!(1)]
        {
            assert!(half(m2.clone()).is_none(), "{m2}");
        }
        for req_id in ["", "_R_", "_R_.ABD.02000000000000000f.ABD.T", "_R_.ABC.02.ABC.T", "in.1"] {
            assert!(given(req_id, json!({"service": 1})).is_none(), "{req_id}");
        }
        for payload in [&b""[..], b"null", b"{", &b"[".repeat(10_000), &b" ".repeat(100_000)] {
            assert!(read(payload, "ABC").is_none());
        }
        let wrong = half(json!({"service": -1, "responder": {"rtt": -5}})).unwrap();
        assert_eq!((wrong.service_ns, wrong.rtt_ns), (0, 0));
        let none = half(json!({"service": 1, "responder": "who"})).unwrap();
        assert!(none.responder.is_none());
    }
}
