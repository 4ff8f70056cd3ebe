//! `/healthz`: whether the server takes clients.

#![forbid(unsafe_code)]

use hyper::StatusCode;
use serde_json::Value;

use super::query::{Query, Refusal};

/// What is wrong, and what kind of wrong that is.
struct Problem {
    status: StatusCode,
    kind: &'static str,
    error: &'static str,
}

/// Status and body of the answer to a probe, on one line.
pub(super) fn probe(query: &Query, is_lame_duck: bool) -> Result<(StatusCode, String), Refusal> {
    for name in ["js-enabled", "js-enabled-only", "js-server-only", "js-meta-only"] {
        query.boolean(name)?;
    }
    let in_detail = query.boolean("details")?;
    let Some(Problem { status, kind, error }) = problem(query, is_lame_duck) else {
        return Ok((StatusCode::OK, r#"{"status":"ok"}"#.to_owned()));
    };
    tracing::warn!("Healthcheck failed: {error:?}");
    // The fields have the order in which nats-server writes them.
    let error = Value::from(error);
    let body = if in_detail {
        format!(r#"{{"status":"error","errors":[{{"type":"{kind}","error":{error}}}]}}"#)
    } else {
        format!(r#"{{"status":"error","error":{error}}}"#)
    };
    Ok((status, body))
}

/// There are no streams whose health could be bad, only questions that make no sense.
fn problem(query: &Query, is_lame_duck: bool) -> Option<Problem> {
    let given = |name: &str| !query.text(name).is_empty();
    let bad_request =
        |error| Some(Problem { status: StatusCode::BAD_REQUEST, kind: "BAD_REQUEST", error });
    if given("stream") && !given("account") {
        return bad_request(r#""account" must not be empty when checking stream health"#);
    }
    if given("consumer") && !given("stream") {
        return bad_request(r#""stream" must not be empty when checking consumer health"#);
    }
    is_lame_duck.then_some(Problem {
        status: StatusCode::INTERNAL_SERVER_ERROR,
        kind: "CONNECTION",
        error: "failed to be ready for connections after 1ms: server",
    })
}
