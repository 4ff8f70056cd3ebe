//! Monitoring over HTTP, with nats-server's paths and bodies.
//!
//! One thread answers one request after the other. It asks shards by messages, which they answer
//! between two turns in bounded pages: monitoring slows a shard by one page at most, and a shard
//! that hangs costs the client of the monitoring 1 s, nobody else.
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
mod healthz;
mod metrics;
mod page;
mod path;
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
use crate::identity::Identity;
use crate::measure::Crowd;
use crate::shard::ACCEPT_REST;
use crate::shard::Reporter;
use absent::{Gatewayz, Jsz, Leafz, ipqueuesz};
use accounts::{Accountz, Accstatz};
use connz::{ConnRequest, Connz};
use page::Shardz;
use query::{Query, Refusal};
use routez::Routez;
use subsz::Subsz;
use varz::{Cpu, Varz};

pub(crate) use varz::{FEATURE_FLAGS, FeatureFlags};

/// Connections at one time; for each that comes beyond, one goes that has not asked for longest.
/// Each is a file that clients cannot have.
const CONNS_MAX: usize = 64;
/// So many are taken in before those who have to go for them are closed.
const ACCEPTED_AT_ONCE: u64 = 16;
/// How long a request may take to arrive, and a connection may idle between two.
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// How long who is answered may take nothing of it.
const UNREAD_MAX: Duration = Duration::from_secs(60);
/// How long a connection may last, and after that, how long its last answer may take.
const CONN_MAX: Duration = Duration::from_secs(600);
const LAST_ANSWER_MAX: Duration = Duration::from_secs(30);
/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Bytes of large answers that may wait for those who asked to read them; one may always.
const UNREAD_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of an answer that is not large.
const SMALL_BYTES_MAX: usize = 64 * 1024;

type Answer = Response<Bytes>;

/// What the control thread tells the others: only the latest counts, whoever has read what before.
pub(crate) struct Standing {
    /// The options in force.
    pub(crate) options: Arc<Options>,
    /// Since when.
    pub(crate) configured_at: DateTime<Utc>,
    /// No more clients are taken.
    pub(crate) is_lame_duck: bool,
}

impl Standing {
    pub(crate) fn new(options: Arc<Options>) -> Self {
        Self { options, configured_at: Utc::now(), is_lame_duck: false }
    }
}

/// The running monitoring. It ends when dropped.
pub(crate) struct Monitor {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What answers are made of.
struct State {
    identity: Arc<Identity>,
    options: Arc<Options>,
    reporter: Reporter,
    told: watch::Receiver<Standing>,
    started_at: DateTime<Utc>,
    configured_at: DateTime<Utc>,
    /// What comes before the pages' paths: nothing, or something that begins with a slash.
    base_path: String,
    is_lame_duck: bool,
    /// Requests by path.
    requests: BTreeMap<&'static str, u64>,
    /// Bytes of large answers that are not wholly sent.
    unread_bytes: Arc<AtomicUsize>,
    cpu: Cpu,
}

impl Monitor {
    /// Answers requests on `listener` from now on.
    pub(crate) fn start(
        listener: TcpListener,
        identity: &Arc<Identity>,
        told: watch::Receiver<Standing>,
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
            let state = State::new(identity, told, reporter);
            LocalSet::new().block_on(&runtime, async {
                tokio::select! {
                    _ = stopped => {}
                    () = accept(listener, Rc::new(RefCell::new(state))) => {}
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
            // If it panicked, it has said so.
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

    /// Whoever watches the server gets in, however many others are slow: who takes up most of the
    /// places, and has asked for nothing for longest, loses one.
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

async fn accept(listener: tokio::net::TcpListener, state: Rc<RefCell<State>>) {
    let visitors = Rc::new(RefCell::new(Visitors::new()));
    loop {
        match listener.accept().await {
            Ok((socket, from)) => {
                let number = visitors.borrow_mut().enter(from.ip());
                let visit = visit(socket, number, Rc::clone(&state), Rc::clone(&visitors));
                let task = tokio::task::spawn_local(visit).abort_handle();
                visitors.borrow_mut().tasks.insert(number, task);
                // Those who had to go are gone before many more come.
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

/// One connection from its beginning to its end.
async fn visit(
    socket: TcpStream,
    number: u64,
    state: Rc<RefCell<State>>,
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
            // If it fails there is nobody to tell.
            let done = tokio::time::timeout(REQUEST_MAX, acceptor.accept(socket)).await;
            if let Ok(Ok(stream)) = done {
                serve(stream, state, asked).await;
            }
        }
    }
    visitors.borrow_mut().leave(number);
}

/// Answers the requests of one connection; `asked` hears of each.
async fn serve(
    socket: impl AsyncRead + AsyncWrite + Unpin + 'static,
    state: Rc<RefCell<State>>,
    asked: impl Fn(),
) {
    let service = service_fn(move |request: Request<Incoming>| {
        asked();
        let state = Rc::clone(&state);
        async move {
            // Whoever asks a hundred things at once is answered in turn with all others.
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
    // However it ends, there is nobody to tell.
    if tokio::time::timeout(CONN_MAX, conn.as_mut()).await.is_err() {
        conn.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(LAST_ANSWER_MAX, conn).await;
    }
}

/// A large answer, counted until nobody needs it any more.
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

/// The same pages without HTTP.
pub(crate) struct Documents {
    state: State,
}

impl Documents {
    pub(crate) fn new(
        identity: &Arc<Identity>,
        told: watch::Receiver<Standing>,
        reporter: Reporter,
    ) -> Self {
        Self { state: State::new(Arc::clone(identity), told, reporter) }
    }

    /// Status and body of the page below the root that is asked for with this query.
    pub(crate) fn page(&mut self, path: &str, query: &str) -> (u16, Bytes) {
        let (parts, body) = self.state.page(path, &Query::new(Some(query))).into_parts();
        (parts.status.as_u16(), body)
    }
}

/// A time as documents show it.
pub(crate) fn time(at: DateTime<Utc>) -> String {
    text::time(at)
}

/// The same of one that is so many nanoseconds after `start`.
pub(crate) fn time_after(start: DateTime<Utc>, ns: u64) -> String {
    text::time(text::after(start, ns))
}

impl State {
    fn new(
        identity: Arc<Identity>,
        mut told: watch::Receiver<Standing>,
        reporter: Reporter,
    ) -> Self {
        let now = Utc::now();
        let options = Arc::clone(&told.borrow_and_update().options);
        let parts = options.http_base_path.split('/').filter(|part| !part.is_empty());
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
            cpu: Cpu::new(),
        }
    }

    /// What does the handshakes of the next connections, if they are over TLS.
    fn acceptor(&mut self) -> Option<TlsAcceptor> {
        self.heed_changes();
        let is_tls = self.options.http.as_ref().is_some_and(|http| http.is_tls);
        let tls = self.options.tls.as_ref().filter(|_| is_tls)?;
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

    fn answer(&mut self, request: &Request<Incoming>) -> Answer {
        let uri = request.uri();
        if let Some(path) = path::cleaned(uri.path()) {
            return path::redirection(request.method(), &path, uri.query());
        }
        let query = Query::new(uri.query());
        let path = uri.path().strip_prefix(&self.base_path);
        self.page(path.unwrap_or("elsewhere"), &query)
    }

    fn page(&mut self, path: &str, query: &Query) -> Answer {
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
            "" => Ok(self.to_directory()),
            _ => Ok(plain(StatusCode::NOT_FOUND, "404 page not found\n".to_owned())),
        };
        answer.unwrap_or_else(|Refusal(reason)| plain(StatusCode::BAD_REQUEST, reason))
    }

    /// Counts a request and answers it with a page in JSON.
    fn json<'a, T: Serialize>(
        &'a mut self,
        path: &'static str,
        page: impl FnOnce(&'a Self) -> Result<T, Refusal>,
    ) -> Result<Answer, Refusal> {
        self.count(path);
        page(self).map(|page| indented(&page))
    }

    /// Sends who asks for the base path to the index below it, so that its relative links hold.
    fn to_directory(&self) -> Answer {
        let name = self.base_path.rsplit('/').next().unwrap_or_default();
        let mut answer = plain(StatusCode::TEMPORARY_REDIRECT, String::new());
        if let Ok(location) = HeaderValue::from_str(&format!("{name}/")) {
            answer.headers_mut().insert(LOCATION, location);
        }
        answer
    }

    /// Sees to it that those who ask for much and do not read it cannot fill the memory.
    fn bound(&self, answer: Answer) -> Answer {
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

    fn index(&mut self) -> Answer {
        self.count("/");
        let html = HeaderValue::from_static("text/html; charset=utf-8");
        let mut answer = answer(StatusCode::OK, html, page::PAGE.to_owned());
        if let Ok(policy) = HeaderValue::from_str(&page::POLICY) {
            answer.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
        }
        answer
    }

    fn metrics(&mut self) -> Answer {
        self.count("/metrics");
        let (figures, cpu) = (self.reporter.figures(), self.cpu.percent());
        let kind = HeaderValue::from_static(metrics::CONTENT_TYPE);
        answer(StatusCode::OK, kind, metrics::render(self, &figures, cpu))
    }

    fn shardz(&mut self) -> Answer {
        self.count("/shardz");
        let figures = self.reporter.figures();
        indented(&Shardz::new(self, &figures))
    }

    fn varz(&mut self) -> Answer {
        self.count("/varz");
        let (figures, cpu) = (self.reporter.figures(), self.cpu.percent());
        indented(&Varz::new(self, &figures, cpu))
    }

    fn connz(&mut self, query: &Query) -> Result<Answer, Refusal> {
        let request = ConnRequest::new(query)?;
        self.count("/connz");
        Connz::new(self, &request).map(|connz| indented(&connz))
    }

    fn healthz(&mut self, query: &Query) -> Result<Answer, Refusal> {
        self.count("/healthz");
        let server = healthz::Server {
            is_lame_duck: self.is_lame_duck,
            wants_jetstream: self.options.wants_jetstream,
        };
        let (status, body) = healthz::probe(query, &server)?;
        Ok(in_json(status, body))
    }
}

fn indented(body: &impl Serialize) -> Answer {
    match serde_json::to_string_pretty(body) {
        Ok(body) => in_json(StatusCode::OK, body),
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

fn in_json(status: StatusCode, body: String) -> Answer {
    let mut answer = answer(status, HeaderValue::from_static("application/json"), body);
    let everybody = HeaderValue::from_static("*");
    answer.headers_mut().insert(ACCESS_CONTROL_ALLOW_ORIGIN, everybody);
    answer
}

fn plain(status: StatusCode, body: String) -> Answer {
    answer(status, HeaderValue::from_static("text/plain; charset=utf-8"), body)
}

fn answer(status: StatusCode, kind: HeaderValue, body: String) -> Answer {
    let mut answer = Response::new(Bytes::from(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}
