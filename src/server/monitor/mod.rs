//! Monitoring over HTTP, with nats-server's paths and bodies.
//!
//! One thread of its own answers one request after the other. What only shards know it asks them
//! by messages, which they answer between two turns' work in bounded pages: watching never slows a
//! shard by more than a page, and a shard that hangs costs the watcher a second, nobody else.

#![forbid(unsafe_code)]

mod connz;
mod metrics;
mod page;
mod query;
mod text;
mod varz;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use chrono::{DateTime, Utc};
use crossbeam_channel::{Receiver, Sender, unbounded};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::LocalSet;

use super::Identity;
use super::shards::Reporter;
use crate::config::{Options, StartError};
use connz::{ConnRequest, Connz, Subsz};
use page::Shardz;
use query::{Query, Refusal};
use varz::{Cpu, Varz};

/// Connections at one time; more wait in the kernel. Each is a file that clients cannot have.
const CONNS_MAX: usize = 64;
/// How long a request may take to arrive, and a connection may idle between two.
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// How long a connection may last, and after that, how long its last answer may take.
const CONN_MAX: Duration = Duration::from_secs(600);
const LAST_ANSWER_MAX: Duration = Duration::from_secs(30);
/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// How long accepting rests after it failed, for instance for want of descriptors.
const ACCEPT_REST: Duration = Duration::from_millis(250);

type Answer = Response<Full<Bytes>>;

/// What the control thread tells the monitoring.
pub(super) enum Change {
    /// The options have changed.
    Options(Arc<Options>),
    /// No more clients are taken.
    LameDuck,
}

/// The running monitoring. It ends when dropped.
pub(super) struct Monitor {
    changes: Sender<Change>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What answers are made of.
struct State {
    identity: Arc<Identity>,
    options: Arc<Options>,
    reporter: Reporter,
    changes: Receiver<Change>,
    started_at: DateTime<Utc>,
    configured_at: DateTime<Utc>,
    is_lame_duck: bool,
    /// Requests by path.
    requests: BTreeMap<&'static str, u64>,
    cpu: Cpu,
}

impl Monitor {
    /// Answers requests on `listener` from now on.
    pub(super) fn start(
        listener: TcpListener,
        identity: &Arc<Identity>,
        options: &Arc<Options>,
        reporter: Reporter,
    ) -> Result<Self, StartError> {
        let failed = |error: io::Error| StartError::new(format!("Can't start monitoring: {error}"));
        let (changes, changed) = unbounded();
        let (stop, stopped) = oneshot::channel();
        let (identity, options) = (Arc::clone(identity), Arc::clone(options));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = {
            let _context = runtime.enter();
            tokio::net::TcpListener::from_std(listener).map_err(failed)?
        };
        let serve = move || {
            let state = State::new(identity, options, reporter, changed);
            LocalSet::new().block_on(&runtime, async {
                tokio::select! {
                    _ = stopped => {}
                    () = accept(listener, Rc::new(RefCell::new(state))) => {}
                }
            });
        };
        let thread = std::thread::Builder::new().name("monitor".to_owned()).spawn(serve);
        Ok(Self { changes, stop: Some(stop), thread: Some(thread.map_err(failed)?) })
    }

    /// Tells what has changed.
    pub(super) fn note(&self, change: Change) {
        // A monitoring that has ended needs no news.
        let _ = self.changes.send(change);
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

async fn accept(listener: tokio::net::TcpListener, state: Rc<RefCell<State>>) {
    let seats = Arc::new(Semaphore::new(CONNS_MAX));
    while let Ok(seat) = Arc::clone(&seats).acquire_owned().await {
        match listener.accept().await {
            Ok((socket, _)) => {
                let state = Rc::clone(&state);
                tokio::task::spawn_local(async move {
                    serve(socket, state).await;
                    drop(seat);
                });
            }
            Err(error) => {
                tracing::error!("Error accepting monitoring connection: {error}");
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
}

/// Answers the requests of one connection.
async fn serve(socket: TcpStream, state: Rc<RefCell<State>>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = state.borrow_mut().answer(&request);
        async move { Ok::<_, Infallible>(answer) }
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

impl State {
    fn new(
        identity: Arc<Identity>,
        options: Arc<Options>,
        reporter: Reporter,
        changes: Receiver<Change>,
    ) -> Self {
        let now = Utc::now();
        Self {
            identity,
            options,
            reporter,
            changes,
            started_at: now,
            configured_at: now,
            is_lame_duck: false,
            requests: BTreeMap::new(),
            cpu: Cpu::new(),
        }
    }

    fn answer(&mut self, request: &Request<Incoming>) -> Answer {
        while let Ok(change) = self.changes.try_recv() {
            match change {
                Change::Options(options) => {
                    (self.options, self.configured_at) = (options, Utc::now());
                }
                Change::LameDuck => self.is_lame_duck = true,
            }
        }
        let query = Query::new(request.uri().query());
        let answer = match request.uri().path() {
            "/" => Ok(self.index()),
            "/varz" => Ok(self.varz()),
            "/connz" => self.connz(&query),
            "/subsz" | "/subscriptionsz" => self.subsz(&query),
            "/healthz" => self.healthz(&query),
            "/metrics" => Ok(self.metrics()),
            "/shardz" => Ok(self.shardz()),
            _ => Ok(plain(StatusCode::NOT_FOUND, "404 page not found\n".to_owned())),
        };
        answer.unwrap_or_else(|Refusal(reason)| plain(StatusCode::BAD_REQUEST, reason))
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
        let (reports, cpu) = (self.reporter.report(), self.cpu.percent());
        indented(&Varz::new(self, &reports, cpu))
    }

    fn connz(&mut self, query: &Query) -> Result<Answer, Refusal> {
        let request = ConnRequest::new(query)?;
        self.count("/connz");
        Connz::new(self, &request).map(|connz| indented(&connz))
    }

    fn subsz(&mut self, query: &Query) -> Result<Answer, Refusal> {
        self.count("/subsz");
        Subsz::new(self, query).map(|subsz| indented(&subsz))
    }

    fn healthz(&mut self, query: &Query) -> Result<Answer, Refusal> {
        self.count("/healthz");
        for name in ["js-enabled", "js-enabled-only", "js-server-only", "js-meta-only"] {
            query.boolean(name)?;
        }
        let in_detail = query.boolean("details")?;
        if !self.is_lame_duck {
            return Ok(in_json(StatusCode::OK, json!({ "status": "ok" }).to_string()));
        }
        let error = "failed to be ready for connections after 1ms: server";
        tracing::warn!("Healthcheck failed: {error:?}");
        // The fields have the order in which nats-server writes them.
        let body = if in_detail {
            format!(r#"{{"status":"error","errors":[{{"type":"CONNECTION","error":"{error}"}}]}}"#)
        } else {
            format!(r#"{{"status":"error","error":"{error}"}}"#)
        };
        Ok(in_json(StatusCode::INTERNAL_SERVER_ERROR, body))
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
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}
