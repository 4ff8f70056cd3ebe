//! Requests to servers over HTTP, with bounds of length and redirects. Callers bound the time.

use std::error::Error;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, CONTENT_TYPE, LOCATION, USER_AGENT};
use hyper::{Request, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;

/// Redirects that are followed, one after the other.
const REDIRECTS_MAX: usize = 10;
/// Connections that are kept while there is nothing to ask for, and the time for which they are.
const IDLE_MAX: usize = 10;
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// A client of servers over HTTP; clones share its connections.
#[derive(Clone)]
pub(super) struct HttpClient(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

/// The answer of a server.
pub(super) struct HttpReply {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

impl HttpClient {
    /// A client without connections.
    pub(super) fn new(tls: &ClientConfig) -> Self {
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls.clone())
            .https_or_http()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_MAX)
            .build(connector);
        Self(client)
    }

    /// Returns what is at `url`, at most `bytes_max` bytes. Redirects are followed, none out of
    /// TLS.
    pub(super) async fn get(&self, url: &str, bytes_max: usize) -> Result<HttpReply, String> {
        let mut uri = parsed(url)?;
        for _ in 0..=REDIRECTS_MAX {
            let request = Request::get(uri.clone()).header(USER_AGENT, "shardcast");
            let request = request.body(Full::default()).map_err(|error| error.to_string())?;
            let response = self.0.request(request).await.map_err(|error| causes(&error))?;
            let status = response.status();
            if status.is_redirection()
                && let Some(location) = response.headers().get(LOCATION)
            {
                uri = elsewhere(&uri, location.to_str().unwrap_or_default())?;
                continue;
            }
            let body = Limited::new(response.into_body(), bytes_max).collect().await;
            let body = body.map_err(|error| causes(&*error))?.to_bytes();
            return Ok(HttpReply { status, body });
        }
        Err("too many redirects".to_owned())
    }

    /// Posts a question in the form of OCSP. Returns the answer, at most `bytes_max` bytes.
    pub(super) async fn post_ocsp(
        &self,
        url: &str,
        question: Vec<u8>,
        bytes_max: usize,
    ) -> Result<HttpReply, String> {
        let request = Request::post(parsed(url)?)
            .header(USER_AGENT, "shardcast")
            .header(CONTENT_TYPE, "application/ocsp-request")
            .header(ACCEPT, "application/ocsp-response")
            .body(Full::from(question));
        let request = request.map_err(|error| error.to_string())?;
        let response = self.0.request(request).await.map_err(|error| causes(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), bytes_max).collect().await;
        let body = body.map_err(|error| causes(&*error))?.to_bytes();
        Ok(HttpReply { status, body })
    }
}

fn parsed(url: &str) -> Result<Uri, String> {
    url.parse().map_err(|error| format!("{error}"))
}

/// Returns the address that a redirect from `from` names; none leads out of TLS.
fn elsewhere(from: &Uri, location: &str) -> Result<Uri, String> {
    let invalid = || format!("a redirect to {location:?}");
    let to: Uri = location.parse().map_err(|_| invalid())?;
    let mut parts = to.into_parts();
    if parts.authority.is_none() {
        (parts.scheme, parts.authority) = (from.scheme().cloned(), from.authority().cloned());
    }
    let to = Uri::from_parts(parts).map_err(|_| invalid())?;
    match (from.scheme_str(), to.scheme_str()) {
        (Some("https"), Some("https")) | (Some("http"), Some("http" | "https")) => Ok(to),
        _ => Err(invalid()),
    }
}

/// An error with its causes, which say more than itself.
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_leads_to_another_path_or_server_but_never_out_of_tls() {
        let from: Uri = "https://a/x".parse().unwrap();
        let to = |location| elsewhere(&from, location).map(|uri| uri.to_string());
        assert_eq!(to("/y"), Ok("https://a/y".to_owned()));
        assert_eq!(to("https://b/z"), Ok("https://b/z".to_owned()));
        for location in ["http://a/x", "ftp://a/x", "", "a b"] {
            assert!(to(location).is_err(), "{location}");
        }
        let clear: Uri = "http://a/x".parse().unwrap();
        assert!(elsewhere(&clear, "https://a/x").is_ok());
    }
}
