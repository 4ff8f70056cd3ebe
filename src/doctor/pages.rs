//! Pages of a running broker's monitoring, asked over HTTP.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::Uri;
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// The pages that a report of a fault may need.
pub(super) const PAGES: &[&str] = &[
    "varz",
    "connz?subs=1&limit=4096",
    "connz?state=closed&limit=1024",
    "routez",
    "gatewayz",
    "leafz",
    "subsz",
    "accountz",
    "accstatz?unused=1",
    "jsz?accounts=1&streams=1&consumers=1&config=1",
    "healthz?details=1",
    "shardz",
    "metrics",
];
/// The time for one page.
const PAGE_MAX: Duration = Duration::from_secs(10);
/// Bytes of a page, at most.
const PAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Returns each of [`PAGES`] with its text, or why it is not there. `base` begins with `http://`.
pub(super) fn ask(base: &str) -> Vec<(&'static str, Result<String, String>)> {
    let base = base.trim_end_matches('/');
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return PAGES.iter().map(|page| (*page, Err(error.to_string()))).collect(),
    };
    let client = Client::builder(TokioExecutor::new()).build_http();
    let ask = |page: &&'static str| {
        let body = runtime.block_on(async {
            let page = tokio::time::timeout(PAGE_MAX, one(&client, format!("{base}/{page}")));
            page.await.unwrap_or_else(|_| Err("no answer in time".to_owned()))
        });
        (*page, body)
    };
    PAGES.iter().map(ask).collect()
}

async fn one(client: &Client<HttpConnector, Full<Bytes>>, url: String) -> Result<String, String> {
    let url: Uri = url.parse().map_err(|error| format!("{url}: {error}"))?;
    let answer = client.get(url).await.map_err(|error| error.to_string())?;
    let body = Limited::new(answer.into_body(), PAGE_BYTES_MAX).collect();
    let body = body.await.map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned())
}
