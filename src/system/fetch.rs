//! Tokens of accounts from a server over HTTP, on a thread of its own.
//!
//! A GET of the resolver's URL with the account's key behind it returns the token. Connections are
//! kept for the next account. Everything has a bound: accounts that wait, requests at once, the
//! time and the length of an answer, redirects. Whatever comes is only a text: whether an operator
//! has signed it is for the asker to find out.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use hyper::StatusCode;
use tokio::sync::{Semaphore, mpsc};

use super::http::HttpClient;
use crate::auth::jwt;
use crate::config::trust::UrlResolver;
use crate::config::{self, Options, StartError};
use crate::shard::News;

/// The time that a token may take to come.
const FETCH_TIMEOUT: Duration = Duration::from_millis(1900);
/// The time after which a token that came is worth a warning.
const FETCH_LONG: Duration = Duration::from_secs(1);
/// Accounts that wait to be asked for, at most.
const FETCHES_MAX: usize = 256;
/// Accounts that are asked for at once, at most.
const AT_ONCE_MAX: usize = 16;

/// The running thread; it ends when this is dropped.
pub(super) struct Fetcher {
    resolver: UrlResolver,
    keys: mpsc::Sender<String>,
}

impl Fetcher {
    /// Starts the thread, which sends what it fetches to `news`.
    pub(super) fn start(resolver: UrlResolver, news: Sender<News>) -> Result<Self, StartError> {
        let (to, mut keys) = mpsc::channel::<String>(FETCHES_MAX);
        let (client, runtime) = (HttpClient::new(&resolver.tls.config), runtime("resolver")?);
        let base = resolver.url.clone();
        let fetch_all = async move {
            let at_once = Arc::new(Semaphore::new(AT_ONCE_MAX));
            while let Some(key) = keys.recv().await {
                let Ok(permit) = Arc::clone(&at_once).acquire_owned().await else { return };
                let (client, news) = (client.clone(), news.clone());
                let url = format!("{base}{key}");
                tokio::spawn(async move {
                    let token = fetch(&client, &url).await;
                    // Without room the account was not found: the asker has a deadline.
                    let _ = news.try_send(News::Fetched { account: key.into(), token });
                    drop(permit);
                });
            }
        };
        let thread = std::thread::Builder::new().name("resolver".to_owned());
        thread.spawn(move || runtime.block_on(fetch_all)).map_err(|error| {
            StartError::new(format!("cannot start a thread: {error}; raise `ulimit -u`"))
        })?;
        Ok(Self { resolver, keys: to })
    }

    /// The resolver that is asked.
    pub(super) fn resolver(&self) -> &UrlResolver {
        &self.resolver
    }

    /// Asks for the token of an account; `false` if too many wait already.
    pub(super) fn fetch(&self, account: &str) -> bool {
        self.keys.try_send(account.to_owned()).is_ok()
    }
}

/// Asks the resolver of `options`, if it is one over HTTP, whether it is there, and for the token
/// of the system account. Returns the options with that account.
///
/// # Errors
///
/// Fails if the resolver does not answer, or not with a token of that account.
pub(crate) fn prepare(options: Options) -> Result<Options, StartError> {
    let Some(trust) = &options.trust else { return Ok(options) };
    let Some(resolver) = trust.url.clone() else { return Ok(options) };
    let (client, runtime) = (HttpClient::new(&resolver.tls.config), runtime("resolver")?);
    let refused = |reason: String| StartError::new(format!("resolver: {reason}"));
    runtime.block_on(fetch(&client, &resolver.url)).map_err(refused)?;
    let Some(system) = options.accounts.system.clone().filter(|key| jwt::is_key(key, &['A']))
    else {
        return Ok(options);
    };
    let url = format!("{}{system}", resolver.url);
    let text = runtime.block_on(fetch(&client, &url)).map_err(refused)?;
    let claims = trust.read_of(&system, &text, chrono::Utc::now().timestamp());
    let claims = claims.map_err(|reason| refused(format!("system account: {reason}")))?;
    Ok(config::trust::update(&options, vec![(system, Some(Arc::new(claims)))]))
}

/// Returns a runtime for one thread; errors name its purpose.
pub(super) fn runtime(purpose: &str) -> Result<tokio::runtime::Runtime, StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| StartError::new(format!("{purpose}: {error}")))
}

/// Returns the body of what is at `url`; the error is for the log.
async fn fetch(client: &HttpClient, url: &str) -> Result<String, String> {
    let failed = |reason: &str| format!("could not fetch <\"{url}\">: {reason}");
    let began = tokio::time::Instant::now();
    let fetched = tokio::time::timeout(FETCH_TIMEOUT, text(client, url)).await;
    let fetched = fetched.unwrap_or_else(|_| Err(format!("no answer in {FETCH_TIMEOUT:?}")));
    let took = began.elapsed();
    if fetched.is_ok() && took > FETCH_LONG {
        tracing::warn!("Account fetch of <\"{url}\"> took {took:?}");
    }
    fetched.map_err(|reason| failed(&reason))
}

async fn text(client: &HttpClient, url: &str) -> Result<String, String> {
    let answer = client.get(url, jwt::TOKEN_BYTES_MAX).await?;
    if answer.status != StatusCode::OK {
        return Err(answer.status.to_string());
    }
    String::from_utf8(answer.body.to_vec()).map_err(|_| "it is no text".to_owned())
}
