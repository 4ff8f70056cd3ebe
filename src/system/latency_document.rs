//! The report on a measured request to a service, as a document.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;

use crate::engine::{AskedBy, LatencyReport};
use crate::monitor::time_after;

/// A report, its fields in nats-server's order. Times are nanoseconds.
#[derive(Serialize)]
struct LatencyDocument<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    id: String,
    timestamp: String,
    status: u16,
    #[serde(skip_serializing_if = "str::is_empty")]
    description: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    requestor: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    responder: Option<Value>,
    #[serde(skip_serializing_if = "AskedBy::is_empty")]
    header: &'a AskedBy,
    start: String,
    service: u64,
    system: u64,
    total: u64,
}

/// The requester and the responder, as far as they are told.
#[derive(Default)]
pub(super) struct Parties {
    pub(super) requestor: Option<Value>,
    pub(super) responder: Option<Value>,
}

/// The number and the time of a report, and the start of the process.
pub(super) struct Stamp {
    pub(super) id: String,
    pub(super) time: String,
    pub(super) started_at: DateTime<Utc>,
}

/// Returns the document of a report.
///
/// A round trip of the requester is part of the whole, one of the responder is none of the service:
/// so much of the measured time the messages were on their ways to and from the server. Where the
/// responder is on another server, that one has measured the service, and the rest is the system's.
pub(super) fn document(report: &LatencyReport, parties: Parties, stamp: Stamp) -> String {
    let rtt_ns = |conn: &Option<_>| {
        conn.as_ref().map_or(0, |conn: &crate::engine::ConnSnapshot| conn.rtt_ns)
    };
    let requester_ns = rtt_ns(&report.requester);
    let is_answered = report.status == 200;
    let whole_ns = report.ended_ns - report.asked_ns;
    let (service, system) = match &report.far {
        _ if !is_answered => (0, 0),
        None => {
            let waited_ns = report.arrived_ns - report.asked_ns;
            let service = waited_ns.saturating_sub(rtt_ns(&report.responder));
            (service, report.ended_ns - report.arrived_ns)
        }
        // Whatever another server says, no part is more than the whole.
        Some(far) => {
            let service = far.service_ns.min(whole_ns);
            (service, (whole_ns - service).saturating_sub(far.rtt_ns))
        }
    };
    let document = LatencyDocument {
        kind: "io.nats.server.metric.v1.service_latency",
        id: stamp.id,
        timestamp: stamp.time,
        status: report.status,
        description: description(report.status),
        requestor: parties.requestor,
        responder: parties.responder,
        header: &report.headers,
        start: time_after(stamp.started_at, report.asked_ns.saturating_sub(requester_ns)),
        service,
        system,
        total: if is_answered { requester_ns + whole_ns } else { 0 },
    };
    serde_json::to_string(&document).unwrap_or_default()
}

fn description(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        408 => "Request Timeout",
        503 => "Service Unavailable",
        504 => "Service Timeout",
        _ => "",
    }
}
