//! `/healthz`: whether the server accepts clients.

use hyper::StatusCode;
use serde_json::Value;

use super::jsz::{JetStreamState, has_consumer};
use super::query::{BadQuery, Query};

/// A problem, with its kind, its HTTP status, and what it is about.
struct Problem {
    status: StatusCode,
    kind: &'static str,
    word: &'static str,
    about: Vec<(&'static str, String)>,
    error: String,
}

/// The state of the server that a probe reads.
pub(super) struct ProbedServer {
    pub(super) is_lame_duck: bool,
    /// Streams, if JetStream is on and the probe asks for one.
    pub(super) streams: Option<JetStreamState>,
}

/// Returns status and body of the answer to a probe, on one line.
pub(super) fn probe(
    query: &Query,
    server: &ProbedServer,
) -> Result<(StatusCode, String), BadQuery> {
    query.boolean("js-enabled")?;
    query.boolean("js-enabled-only")?;
    query.boolean("js-server-only")?;
    query.boolean("js-meta-only")?;
    let in_detail = query.boolean("details")?;
    let found = problem(query, server).or_else(|| missing(query, server));
    let Some(Problem { status, kind, word, about, error }) = found else {
        return Ok((StatusCode::OK, r#"{"status":"ok"}"#.to_owned()));
    };
    tracing::warn!("Healthcheck failed: {error:?}");
    // The fields have the order in which nats-server writes them.
    let error = Value::from(error);
    let body = if in_detail {
        let about =
            about.iter().map(|(name, what)| format!(r#","{name}":{}"#, Value::from(&**what)));
        let about: String = about.collect();
        format!(r#"{{"status":"error","errors":[{{"type":"{kind}"{about},"error":{error}}}]}}"#)
    } else {
        format!(r#"{{"status":"{word}","error":{error}}}"#)
    };
    Ok((status, body))
}

/// Returns a problem with the query, or with the server.
fn problem(query: &Query, server: &ProbedServer) -> Option<Problem> {
    let given = |name: &str| !query.text(name).is_empty();
    let bad_request = |error: &str| {
        let (status, kind) = (StatusCode::BAD_REQUEST, "BAD_REQUEST");
        let (about, error) = (Vec::new(), error.to_owned());
        Some(Problem { status, kind, word: "error", about, error })
    };
    if given("stream") && !given("account") {
        return bad_request(r#""account" must not be empty when checking stream health"#);
    }
    if given("consumer") && !given("stream") {
        return bad_request(r#""stream" must not be empty when checking consumer health"#);
    }
    server.is_lame_duck.then(|| Problem {
        status: StatusCode::INTERNAL_SERVER_ERROR,
        kind: "CONNECTION",
        word: "error",
        about: Vec::new(),
        error: "failed to be ready for connections after 1ms: server".to_owned(),
    })
}

/// Returns a problem if the account, stream or consumer that a probe asks for is not there.
fn missing(query: &Query, server: &ProbedServer) -> Option<Problem> {
    let streams = server.streams.as_ref()?;
    let [account, stream, consumer] = ["account", "stream", "consumer"].map(|it| query.text(it));
    let about = |number: usize| {
        let all = [("account", account), ("stream", stream), ("consumer", consumer)];
        all.into_iter().take(number).map(|(name, what)| (name, what.to_owned())).collect()
    };
    let not_found = |kind, number, error| Problem {
        status: StatusCode::NOT_FOUND,
        kind,
        word: "unavailable",
        about: about(number),
        error,
    };
    if !streams.has_account(account) {
        let error = format!("JetStream account {account:?} not found");
        return Some(not_found("ACCOUNT", 1, error));
    }
    if stream.is_empty() {
        return None;
    }
    let Some(found) = streams.find(account, stream) else {
        let error = format!("JetStream stream {stream:?} not found on account {account:?}");
        return Some(not_found("STREAM", 2, error));
    };
    (!consumer.is_empty() && !has_consumer(found, consumer)).then(|| {
        let error = format!(
            "JetStream consumer {consumer:?} not found for stream {stream:?} on account {account:?}"
        );
        not_found("CONSUMER", 3, error)
    })
}
