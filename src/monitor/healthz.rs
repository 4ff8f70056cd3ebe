//! `/healthz`: whether the server takes clients.

use hyper::StatusCode;
use serde_json::Value;

use super::query::{Query, Refusal};

/// What is wrong, and what kind of wrong that is.
struct Problem {
    status: StatusCode,
    kind: &'static str,
    word: &'static str,
    error: &'static str,
}

/// What a probe looks at.
pub(super) struct Server {
    pub(super) is_lame_duck: bool,
    /// JetStream is in the configuration.
    pub(super) wants_jetstream: bool,
}

/// Status and body of the answer to a probe, on one line.
pub(super) fn probe(query: &Query, server: &Server) -> Result<(StatusCode, String), Refusal> {
    query.boolean("js-enabled")?;
    query.boolean("js-enabled-only")?;
    let is_server_only = query.boolean("js-server-only")?;
    query.boolean("js-meta-only")?;
    let in_detail = query.boolean("details")?;
    let found = problem(query, server).or_else(|| missing(server).filter(|_| !is_server_only));
    let Some(Problem { status, kind, word, error }) = found else {
        return Ok((StatusCode::OK, r#"{"status":"ok"}"#.to_owned()));
    };
    tracing::warn!("Healthcheck failed: {error:?}");
    // The fields have the order in which nats-server writes them.
    let error = Value::from(error);
    let body = if in_detail {
        format!(r#"{{"status":"error","errors":[{{"type":"{kind}","error":{error}}}]}}"#)
    } else {
        format!(r#"{{"status":"{word}","error":{error}}}"#)
    };
    Ok((status, body))
}

/// Who has JetStream in the configuration counts on it, and it is not there.
fn missing(server: &Server) -> Option<Problem> {
    server.wants_jetstream.then_some(Problem {
        status: StatusCode::SERVICE_UNAVAILABLE,
        kind: "JETSTREAM",
        word: "unavailable",
        error: "JetStream not enabled (10076)",
    })
}

/// There are no streams whose health could be bad, only questions that make no sense.
fn problem(query: &Query, server: &Server) -> Option<Problem> {
    let given = |name: &str| !query.text(name).is_empty();
    let bad_request = |error| {
        let (status, kind) = (StatusCode::BAD_REQUEST, "BAD_REQUEST");
        Some(Problem { status, kind, word: "error", error })
    };
    if given("stream") && !given("account") {
        return bad_request(r#""account" must not be empty when checking stream health"#);
    }
    if given("consumer") && !given("stream") {
        return bad_request(r#""stream" must not be empty when checking consumer health"#);
    }
    server.is_lame_duck.then_some(Problem {
        status: StatusCode::INTERNAL_SERVER_ERROR,
        kind: "CONNECTION",
        word: "error",
        error: "failed to be ready for connections after 1ms: server",
    })
}
