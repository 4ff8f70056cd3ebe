//! Monitoring over HTTP, with nats-server's paths and bodies.
//!
//! One thread answers one request after the other. It asks shards by messages, which they answer
//! between two turns in bounded pages: monitoring slows a shard by one page at most, and a shard
//! that hangs costs the client of the monitoring 1 s, and no other client.
//!
//! **Counters.** Each shard counts in plain integers of its own: the reactor system calls,
//! completions, sent bytes and wake-ups; the mesh the shards it woke; the engine what each lane
//! took and how long input waited; the loop the duration of each turn with work, for which it
//! reads the clock a second time. They are copied only when asked for (`shard::Figures`). The
//! delay of a send is counted from the oldest input that it answers: a connection keeps that
//! arrival until its batch is taken, and a run carries its own over a lane.
//!
//! **Ended connections.** Each shard remembers the latest ones, bounded in number and to 8 MiB;
//! the monitoring merges them and shows the latest `max_closed_clients`. Pages are asked for by
//! running number, so no connection is shown twice.

#![forbid(unsafe_code)]

mod absent;
mod accounts;
mod connz;
mod gatewayz;
mod healthz;
mod history;
mod jsz;
mod leafz;
mod metrics;
mod page;
mod path;
mod process;
mod query;
mod routez;
mod subsz;
mod text;
mod varz;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use chrono::{DateTime, Utc};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, LOCATION,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::task::{AbortHandle, LocalSet};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;

use crate::config::{Options, StartError};
use crate::identity::ServerIdentity;
use crate::measure::Crowd;
use crate::shard::ACCEPT_REST;
use crate::shard::Reporter;
use absent::ipqueuesz;
use accounts::{Accountz, Accstatz};
use connz::{ConnRequest, Connz};
use gatewayz::Gatewayz;
use history::History;
use jsz::{JetStreamState, Jsz};
use leafz::Leafz;
use page::Shardz;
use process::CpuShare;
use query::{BadQuery, Query};
use routez::Routez;
use subsz::Subsz;
use varz::Varz;

pub(crate) use varz::{FEATURE_FLAGS, FeatureFlags};

/// Connections at one time; a further one replaces the longest idle. Each takes a file descriptor
/// that clients cannot have.
const CONNS_MAX: usize = 64;
/// Connections accepted before those that they replace are closed.
const ACCEPTED_AT_ONCE: u64 = 16;
/// The time for a request to arrive, and for a connection to be idle between two.
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// The time that a client may read nothing of its answer.
const UNREAD_MAX: Duration = Duration::from_secs(60);
/// The age of a connection.
const CONN_MAX: Duration = Duration::from_secs(600);
const LAST_ANSWER_MAX: Duration = Duration::from_secs(30);
/// Bytes of a request's head, at most.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Bytes of large answers that wait for slow clients, at most; a single one may always wait.
const UNREAD_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of an answer that is not large, at most.
const SMALL_BYTES_MAX: usize = 64 * 1024;

type HttpAnswer = Response<Bytes>;

/// The status that the control thread shares with others; only the latest value counts.
pub(crate) struct ServerStatus {
    /// The options in force.
    pub(crate) options: Arc<Options>,
    /// The time since which the options are in force.
    pub(crate) configured_at: DateTime<Utc>,
    /// Whether the server has stopped accepting clients.
    pub(crate) is_lame_duck: bool,
}

impl ServerStatus {
    pub(crate) fn new(options: Arc<Options>) -> Self {
        Self { options, configured_at: Utc::now(), is_lame_duck: false }
    }
}

/// The running monitoring, stopped when dropped.
pub(crate) struct Monitor {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// State from which answers are made.
struct MonitorState {
    identity: Arc<ServerIdentity>,
    options: Arc<Options>,
    reporter: Reporter,
    told: watch::Receiver<ServerStatus>,
    started_at: DateTime<Utc>,
    configured_at: DateTime<Utc>,
    /// The prefix of pages' paths: empty, or beginning with a slash.
    base_path: String,
    is_lame_duck: bool,
    /// The number of requests by path.
    requests: BTreeMap<&'static str, u64>,
    /// Bytes of large answers that are not fully sent.
    unread_bytes: Arc<AtomicUsize>,
    cpu: CpuShare,
    history: History,
}

impl Monitor {
    /// Starts a thread that answers requests on `listener`.
    pub(crate) fn start(
        listener: TcpListener,
        identity: &Arc<ServerIdentity>,
        told: watch::Receiver<ServerStatus>,
        reporter: Reporter,
    ) -> Result<Self, StartError> {
        let failed = |error: io::Error| StartError::new(format!("Can't start monitoring: {error}"));
        let (stop, stopped) = oneshot::channel();
        let identity = Arc::clone(identity);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = {
            let _context = runtime.enter();
            tokio::net::TcpListener::from_std(listener).map_err(failed)?
        };
        let serve = move || {
            let state = MonitorState::new(identity, told, reporter);
            LocalSet::new().block_on(&runtime, async {
                let state = Rc::new(RefCell::new(state));
                tokio::select! {
                    _ = stopped => {}
                    () = remember(Rc::clone(&state)) => {}
                    () = accept(listener, state) => {}
                }
            });
        };
        let thread = std::thread::Builder::new().name("monitor".to_owned()).spawn(serve);
        Ok(Self { stop: Some(stop), thread: Some(thread.map_err(failed)?) })
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panicked thread has reported it.
            let _ = thread.join();
        }
    }
}

/// The open connections, by number.
#[derive(Debug)]
struct Visitors {
    crowd: Crowd,
    tasks: BTreeMap<u64, AbortHandle>,
    last: u64,
}

impl Visitors {
    fn new() -> Self {
        Self { crowd: Crowd::new(CONNS_MAX), tasks: BTreeMap::new(), last: 0 }
    }

    /// Admits a connection. If all places are taken, the address with most of them loses the
    /// connection that has been idle longest, so that slow clients cannot keep a new one out.
    fn enter(&mut self, from: IpAddr) -> u64 {
        self.last += 1;
        if let Some(gone) = self.crowd.enter(self.last, from)
            && let Some(task) = self.tasks.remove(&gone)
        {
            task.abort();
        }
        self.last
    }

    fn leave(&mut self, number: u64) {
        self.crowd.leave(number);
        self.tasks.remove(&number);
    }
}

/// Keeps the figures of the last hour.
async fn remember(state: Rc<RefCell<MonitorState>>) {
    let mut ticks = tokio::time::interval(history::INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let mut state = state.borrow_mut();
        let figures = state.reporter.figures();
        state.history.note(Utc::now().timestamp_millis(), &figures);
    }
}

async fn accept(listener: tokio::net::TcpListener, state: Rc<RefCell<MonitorState>>) {
    let visitors = Rc::new(RefCell::new(Visitors::new()));
    loop {
        match listener.accept().await {
            Ok((socket, from)) => {
                let number = visitors.borrow_mut().enter(from.ip());
                let visit = visit(socket, number, Rc::clone(&state), Rc::clone(&visitors));
                let task = tokio::task::spawn_local(visit).abort_handle();
                visitors.borrow_mut().tasks.insert(number, task);
                // Aborted connections are closed before many more are accepted.
                if number.is_multiple_of(ACCEPTED_AT_ONCE) {
                    tokio::task::yield_now().await;
                }
            }
            Err(error) => {
                tracing::error!("Error accepting monitoring connection: {error}");
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
}

/// Serves one connection from its beginning to its end.
async fn visit(
    socket: TcpStream,
    number: u64,
    state: Rc<RefCell<MonitorState>>,
    visitors: Rc<RefCell<Visitors>>,
) {
    let mut socket = TimeoutStream::new(socket);
    socket.set_write_timeout(Some(UNREAD_MAX));
    let socket = Box::pin(socket);
    let acceptor = state.borrow_mut().acceptor();
    let asked = {
        let visitors = Rc::clone(&visitors);
        move || visitors.borrow_mut().crowd.renew(number)
    };
    match acceptor {
        None => serve(socket, state, asked).await,
        Some(acceptor) => {
            // A failed handshake needs no report.
            let done = tokio::time::timeout(REQUEST_MAX, acceptor.accept(socket)).await;
            if let Ok(Ok(stream)) = done {
                serve(stream, state, asked).await;
            }
        }
    }
    visitors.borrow_mut().leave(number);
}

/// Answers the requests of one connection; calls `asked` for each.
async fn serve(
    socket: impl AsyncRead + AsyncWrite + Unpin + 'static,
    state: Rc<RefCell<MonitorState>>,
    asked: impl Fn(),
) {
    let service = service_fn(move |request: Request<Incoming>| {
        asked();
        let state = Rc::clone(&state);
        async move {
            // A client that pipelines a hundred requests is answered in turn with all others.
            tokio::task::yield_now().await;
            let mut state = state.borrow_mut();
            let answer = state.answer(&request);
            let answer = state.bound(answer);
            Ok::<_, Infallible>(answer.map(Full::new))
        }
    });
    let conn = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(socket), service);
    tokio::pin!(conn);
    // A failed connection needs no report.
    if tokio::time::timeout(CONN_MAX, conn.as_mut()).await.is_err() {
        conn.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(LAST_ANSWER_MAX, conn).await;
    }
}

/// A large answer, counted in `unread_bytes` until it is dropped.
struct Large {
    body: Bytes,
    unread_bytes: Arc<AtomicUsize>,
}

impl AsRef<[u8]> for Large {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        self.unread_bytes.fetch_sub(self.body.len(), Ordering::Relaxed);
    }
}

/// The monitoring's pages without HTTP.
pub(crate) struct Documents {
    state: MonitorState,
}

impl Documents {
    pub(crate) fn new(
        identity: &Arc<ServerIdentity>,
        told: watch::Receiver<ServerStatus>,
        reporter: Reporter,
    ) -> Self {
        Self { state: MonitorState::new(Arc::clone(identity), told, reporter) }
    }

    /// Returns status and body of a page, by its path below the root and its query.
    pub(crate) fn page(&mut self, path: &str, query: &str) -> (u16, Bytes) {
        let (parts, body) = self.state.page(path, &Query::new(Some(query))).into_parts();
        (parts.status.as_u16(), body)
    }
}

/// Formats a time as documents show it.
pub(crate) fn time(at: DateTime<Utc>) -> String {
    text::time(at)
}

/// Formats the time `ns` nanoseconds after `start` as documents show it.
pub(crate) fn time_after(start: DateTime<Utc>, ns: u64) -> String {
    text::time(text::after(start, ns))
}

impl MonitorState {
    fn new(
        identity: Arc<ServerIdentity>,
        mut told: watch::Receiver<ServerStatus>,
        reporter: Reporter,
    ) -> Self {
        let now = Utc::now();
        let options = Arc::clone(&told.borrow_and_update().options);
        let parts = options.monitoring.base_path.split('/').filter(|part| !part.is_empty());
        let base_path = parts.map(|part| format!("/{part}")).collect();
        Self {
            identity,
            options,
            reporter,
            told,
            started_at: now,
            configured_at: now,
            base_path,
            is_lame_duck: false,
            requests: BTreeMap::new(),
            unread_bytes: Arc::default(),
            cpu: CpuShare::new(),
            history: History::default(),
        }
    }

    /// Returns an acceptor for the next handshake, if the monitoring uses TLS.
    fn acceptor(&mut self) -> Option<TlsAcceptor> {
        self.heed_changes();
        let is_tls = self.options.monitoring.is_tls();
        let tls = self.options.network.tls.as_ref().filter(|_| is_tls)?;
        Some(TlsAcceptor::from(Arc::clone(&tls.monitoring)))
    }

    fn heed_changes(&mut self) {
        if self.told.has_changed().unwrap_or(false) {
            let standing = self.told.borrow_and_update();
            self.options = Arc::clone(&standing.options);
            self.configured_at = standing.configured_at;
            self.is_lame_duck = standing.is_lame_duck;
        }
    }

    fn answer(&mut self, request: &Request<Incoming>) -> HttpAnswer {
        let uri = request.uri();
        if let Some(path) = path::cleaned(uri.path()) {
            return path::redirection(request.method(), &path, uri.query());
        }
        let query = Query::new(uri.query());
        let path = uri.path().strip_prefix(&self.base_path);
        self.page(path.unwrap_or("elsewhere"), &query)
    }

    fn page(&mut self, path: &str, query: &Query) -> HttpAnswer {
        self.heed_changes();
        let answer = match path {
            "/" => Ok(self.index()),
            "/varz" => Ok(self.varz()),
            "/connz" => self.connz(query),
            "/routez" => self.json("/routez", |state| Routez::new(state, query)),
            "/subsz" | "/subscriptionsz" => self.json("/subsz", |state| Subsz::new(state, query)),
            "/accountz" => self.json("/accountz", |state| Accountz::new(state, query)),
            "/accstatz" => self.json("/accstatz", |state| Accstatz::new(state, query)),
            "/leafz" => self.json("/leafz", |state| Leafz::new(state, query)),
            "/gatewayz" => self.json("/gatewayz", |state| Gatewayz::new(state, query)),
            "/jsz" => self.json("/jsz", |state| Jsz::new(state, query)),
            "/ipqueuesz" => self.json("/ipqueuesz", |_| ipqueuesz(query)),
            "/raftz" => Ok(plain(StatusCode::NOT_FOUND, "No Raft nodes registered".to_owned())),
            "/healthz" => self.healthz(query),
            "/metrics" => Ok(self.metrics()),
            "/shardz" => Ok(self.shardz()),
            "/historyz" => {
                self.json("/historyz", |state| Ok(state.history.page(&state.identity.id)))
            }
            "" => Ok(self.to_directory()),
            _ => Ok(plain(StatusCode::NOT_FOUND, "404 page not found\n".to_owned())),
        };
        answer.unwrap_or_else(|BadQuery(reason)| plain(StatusCode::BAD_REQUEST, reason))
    }

    /// Counts a request and answers it with a page in JSON.
    fn json<'a, T: Serialize>(
        &'a mut self,
        path: &'static str,
        page: impl FnOnce(&'a Self) -> Result<T, BadQuery>,
    ) -> Result<HttpAnswer, BadQuery> {
        self.count(path);
        page(self).map(|page| indented(&page))
    }

    /// Redirects from the base path to the index below it, so that the page's relative links hold.
    fn to_directory(&self) -> HttpAnswer {
        let name = self.base_path.rsplit('/').next().unwrap_or_default();
        let mut answer = plain(StatusCode::TEMPORARY_REDIRECT, String::new());
        if let Ok(location) = HeaderValue::from_str(&format!("{name}/")) {
            answer.headers_mut().insert(LOCATION, location);
        }
        answer
    }

    /// Refuses or counts a large answer, so that clients that do not read cannot fill the memory.
    fn bound(&self, answer: HttpAnswer) -> HttpAnswer {
        let bytes = answer.body().len();
        let unread = self.unread_bytes.load(Ordering::Relaxed);
        if bytes <= SMALL_BYTES_MAX {
            return answer;
        }
        if unread > 0 && unread + bytes > UNREAD_BYTES_MAX {
            let reason = "too many large answers wait to be read; ask for less with limit=\n";
            return plain(StatusCode::SERVICE_UNAVAILABLE, reason.to_owned());
        }
        self.unread_bytes.fetch_add(bytes, Ordering::Relaxed);
        let unread_bytes = Arc::clone(&self.unread_bytes);
        answer.map(|body| Bytes::from_owner(Large { body, unread_bytes }))
    }

    fn count(&mut self, path: &'static str) {
        *self.requests.entry(path).or_default() += 1;
    }

    fn index(&mut self) -> HttpAnswer {
        self.count("/");
        let html = HeaderValue::from_static("text/html; charset=utf-8");
        let mut answer = answer(StatusCode::OK, html, page::PAGE.to_owned());
        if let Ok(policy) = HeaderValue::from_str(&page::POLICY) {
            answer.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
        }
        answer
    }

    fn metrics(&mut self) -> HttpAnswer {
        self.count("/metrics");
        let (figures, cpu) = (self.reporter.figures(), self.cpu.percent());
        let kind = HeaderValue::from_static(metrics::CONTENT_TYPE);
        answer(StatusCode::OK, kind, metrics::render(self, &figures, cpu))
    }

    fn shardz(&mut self) -> HttpAnswer {
        self.count("/shardz");
        let figures = self.reporter.figures();
        indented(&Shardz::new(self, &figures))
    }

    fn varz(&mut self) -> HttpAnswer {
        self.count("/varz");
        let (figures, cpu) = (self.reporter.figures(), self.cpu.percent());
        indented(&Varz::new(self, &figures, cpu))
    }

    fn connz(&mut self, query: &Query) -> Result<HttpAnswer, BadQuery> {
        let request = ConnRequest::new(query)?;
        self.count("/connz");
        Connz::new(self, &request).map(|connz| indented(&connz))
    }

    fn healthz(&mut self, query: &Query) -> Result<HttpAnswer, BadQuery> {
        self.count("/healthz");
        // Only a question about a stream is one for the shards.
        let has_streams = self.identity.streams.is_some() && !query.text("account").is_empty();
        let with_consumers = !query.text("consumer").is_empty();
        let server = healthz::ProbedServer {
            is_lame_duck: self.is_lame_duck,
            streams: has_streams.then(|| JetStreamState::new(self, with_consumers)),
        };
        let (status, body) = healthz::probe(query, &server)?;
        Ok(in_json(status, body))
    }
}

fn indented(body: &impl Serialize) -> HttpAnswer {
    match serde_json::to_string_pretty(body) {
        Ok(body) => in_json(StatusCode::OK, body),
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

fn in_json(status: StatusCode, body: String) -> HttpAnswer {
    let mut answer = answer(status, HeaderValue::from_static("application/json"), body);
    let everybody = HeaderValue::from_static("*");
    answer.headers_mut().insert(ACCESS_CONTROL_ALLOW_ORIGIN, everybody);
    answer
}

fn plain(status: StatusCode, body: String) -> HttpAnswer {
    answer(status, HeaderValue::from_static("text/plain; charset=utf-8"), body)
}

fn answer(status: StatusCode, kind: HeaderValue, body: String) -> HttpAnswer {
    let mut answer = Response::new(Bytes::from(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}
