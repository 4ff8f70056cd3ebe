//! The server's own messages in the system account: events, and answers to requests.
//!
//! One thread takes events and requests from the shards, makes documents of them, by the
//! monitoring's code where there is a page of the same kind, and has a shard publish them. Its
//! queue is bounded; an event or request that does not fit is dropped.

#![forbid(unsafe_code)]

mod claims;
mod elsewhere;
mod far_half;
mod fetch;
mod http;
mod latency_document;
mod lookups;
mod others;
mod requests;
mod status;
mod store;
mod trace_document;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use chrono::Utc;
use crossbeam_channel::{Receiver, Sender, at, never, select, tick};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::auth::jwt::{self, Claims};
use crate::config::{Options, StartError};
use crate::engine::{
    AccountId, AnsweredRequest, ConnEvent, ConnId, ConnSnapshot, LatencyReport, LoginNews,
    MessageTrace, Reason, ShardId, Traffic, Transport, halves_subject, measuring_server,
};
use crate::identity::ServerIdentity;
use crate::monitor::{self, Documents, FEATURE_FLAGS, FeatureFlags, ServerStatus};
use crate::ocsp::PeerQuestion;
use crate::shard::{Control, News, NewsQueue, PeerEvent, Reporter};
pub(crate) use fetch::prepare;
use latency_document::{Parties, Stamp};
use lookups::Lookups;
use others::Others;
use requests::RequestOutcome;
use status::StatusThread;
pub(crate) use status::prepare_staples;
use store::Store;

/// The time between two reports of the server's state.
const STATSZ_INTERVAL: Duration = Duration::from_secs(10);
/// Characters in an event's id.
const EVENT_ID_CHARS: usize = 22;
/// The shard that publishes messages other than answers.
const ANY_SHARD: ShardId = ShardId(0);

/// An order of the system account to the control thread.
pub(crate) enum SystemOrder {
    /// Read the configuration again, and send the outcome.
    Reload(Sender<Result<(), StartError>>),
    /// End the server, for this reason.
    End(String),
    /// Put the tokens of these accounts in force, `None` for a removed account; confirm when it is
    /// done.
    Accounts(Vec<(String, Option<Arc<Claims<jwt::AccountClaims>>>)>, Sender<()>),
}

/// The running thread of the system account.
pub(crate) struct System {
    notes: Sender<News>,
    thread: Option<JoinHandle<()>>,
}

struct Worker {
    identity: Arc<ServerIdentity>,
    options: Arc<Options>,
    reporter: Reporter,
    documents: Documents,
    told: watch::Receiver<ServerStatus>,
    is_lame_duck: bool,
    /// The channel to the control thread.
    orders: Sender<SystemOrder>,
    /// The stored tokens of accounts, if there is a directory.
    store: Option<Store>,
    /// Accounts that logins need and that are asked for.
    lookups: Lookups,
    /// The thread that asks for the status of certificates, if there is any to ask for.
    status: Option<StatusThread>,
    /// The sender to this thread.
    news: Sender<News>,
    /// The other servers of the system.
    others: Others,
    started: Instant,
    /// The number of the latest message.
    seq: u64,
}

/// The server that sends an event or answer.
#[derive(Serialize)]
struct ServerInfo<'a> {
    name: &'a str,
    host: &'a str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<&'a str>,
    ver: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    tags: &'a [String],
    feature_flags: FeatureFlags,
    jetstream: bool,
    flags: u64,
    seq: u64,
    time: String,
}

/// A connection, as events show it.
#[derive(Serialize)]
struct ClientInfo<'a> {
    start: String,
    host: &'a str,
    id: u64,
    acc: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    lang: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    ver: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rtt: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jwt: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    issuer_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name_tag: Option<&'a str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    tags: &'a [String],
    kind: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    client_type: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    client_id: &'a str,
}

impl System {
    /// Starts the thread, which takes events and requests from `queue`.
    #[expect(clippy::disallowed_methods, reason = "a thread that no client waits for in vain")]
    pub(crate) fn start(
        queue: NewsQueue,
        identity: &Arc<ServerIdentity>,
        mut told: watch::Receiver<ServerStatus>,
        reporter: Reporter,
        orders: Sender<SystemOrder>,
    ) -> Result<Self, StartError> {
        let options = Arc::clone(&told.borrow_and_update().options);
        let store = options.trust.as_ref().map(Store::open).transpose()?.flatten();
        let documents = Documents::new(identity, told.clone(), reporter.clone());
        let worker = Worker {
            identity: Arc::clone(identity),
            options,
            reporter,
            documents,
            told,
            is_lame_duck: false,
            orders,
            store,
            lookups: Lookups::default(),
            status: None,
            news: queue.to.clone(),
            others: Others::default(),
            started: Instant::now(),
            seq: 0,
        };
        let NewsQueue { to, from } = queue;
        let thread = std::thread::Builder::new().name("system".to_owned());
        let thread = thread.spawn(move || worker.run(&from)).map_err(|error| {
            StartError::new(format!("cannot start a thread: {error}; raise `ulimit -u`"))
        })?;
        Ok(Self { notes: to, thread: Some(thread) })
    }

    /// Wakes the thread to look at a changed status.
    pub(crate) fn wake(&self) {
        // If there is no room, the thread is awake already.
        let _ = self.notes.try_send(News::Change);
    }
}

impl Drop for System {
    /// Publishes that the server ends, and waits until a shard has the message.
    fn drop(&mut self) {
        if self.notes.send(News::Stop).is_ok()
            && let Some(thread) = self.thread.take()
        {
            // A panicked thread has reported it.
            let _ = thread.join();
        }
    }
}

impl Worker {
    fn run(mut self, news: &Receiver<News>) {
        let ticks = tick(STATSZ_INTERVAL);
        let mut pack_ticks = self.pack_ticks();
        let options = Arc::clone(&self.options);
        self.reopen_fetcher(&options);
        self.reopen_status(&options);
        loop {
            let (lookup_timer, expiry_timer) = (self.lookups.timer(), self.expiry_timer());
            let next = select! {
                recv(news) -> next => next,
                recv(ticks) -> _ => {
                    self.tell_statsz();
                    others::tend(&mut self);
                    continue;
                }
                recv(pack_ticks) -> _ => {
                    self.ask_for_packs();
                    continue;
                }
                recv(lookup_timer) -> _ => {
                    self.end_late_lookups();
                    continue;
                }
                recv(expiry_timer) -> _ => {
                    self.store.iter_mut().for_each(Store::expire);
                    continue;
                }
            };
            if self.take_changes() {
                pack_ticks = self.pack_ticks();
            }
            match next {
                Ok(News::Event(event)) => self.on_event(&event),
                Ok(News::Request(request)) => self.on_request(&request),
                Ok(News::Trace(trace)) => self.on_trace(&trace),
                Ok(News::Wanted { shard, conn, account }) => {
                    self.on_wanted(shard, conn, &account);
                }
                Ok(News::PeerQuestion { shard, conn, question }) => {
                    self.on_peer_question(shard, conn, question);
                }
                Ok(News::PeerStatus { shard, conn, is_good, events }) => {
                    events.into_iter().for_each(|event| self.tell_of_peer(event));
                    tell_peer_status(&self.reporter, shard, conn, is_good);
                }
                Ok(News::Fetched { account, token }) => self.on_fetched(&account, token),
                Ok(News::Change) => {}
                Ok(News::Stop) | Err(_) => break,
            }
        }
        let subject = format!("$SYS.SERVER.{}.SHUTDOWN", self.identity.id);
        let info = json!(self.server());
        self.tell(&subject, &info);
    }

    /// Returns the ticks at which other servers are asked for tokens; never without a directory.
    fn pack_ticks(&self) -> Receiver<Instant> {
        let full = self.store.as_ref().filter(|store| !store.directory().is_cache);
        let interval = full.map(|store| store.directory().interval_ms);
        interval.map_or_else(never, |ms| tick(Duration::from_millis(ms)))
    }

    /// Returns the time at which the oldest token of a cache goes, as a channel.
    fn expiry_timer(&self) -> Receiver<Instant> {
        self.store.as_ref().and_then(Store::next_expiry).map_or_else(never, at)
    }

    /// Takes over a changed status. Returns whether the options have changed.
    fn take_changes(&mut self) -> bool {
        if !self.told.has_changed().unwrap_or(false) {
            return false;
        }
        let (options, is_lame_duck) = {
            let standing = self.told.borrow_and_update();
            (Arc::clone(&standing.options), standing.is_lame_duck)
        };
        let is_other = !Arc::ptr_eq(&options, &self.options);
        if is_other {
            self.reopen_store(&options);
            self.reopen_fetcher(&options);
            self.reopen_status(&options);
            let old = std::mem::replace(&mut self.options, options);
            others::count_anew(self, &old);
        }
        if is_lame_duck && !std::mem::replace(&mut self.is_lame_duck, true) {
            let subject = format!("$SYS.SERVER.{}.LAMEDUCK", self.identity.id);
            let info = json!(self.server());
            self.tell(&subject, &info);
        }
        is_other
    }

    /// Hands the new options to the thread that asks for the status of certificates; starts it if
    /// there is something to ask for.
    fn reopen_status(&mut self, options: &Arc<Options>) {
        match &self.status {
            Some(thread) => thread.reload(options),
            None => {
                let news = self.news.clone();
                let started = StatusThread::start(options, news, self.orders.clone());
                self.status = started.unwrap_or_else(|error| {
                    tracing::error!("{error}");
                    None
                });
            }
        }
    }

    fn on_peer_question(&self, shard: ShardId, conn: ConnId, question: Box<PeerQuestion>) {
        let asks = self.status.as_ref().is_some_and(|thread| thread.ask(shard, conn, question));
        if !asks {
            tell_peer_status(&self.reporter, shard, conn, false);
        }
    }

    /// Publishes an event about the certificate of a peer.
    fn tell_of_peer(&mut self, event: PeerEvent) {
        let mut document = self.event(event.kind);
        document.extend(event.members);
        let subject = format!("$SYS.SERVER.{}.{}", self.identity.id, event.subject);
        self.tell(&subject, &Value::Object(document));
    }

    /// Opens the directory of the new options, if it is another.
    fn reopen_store(&mut self, options: &Options) {
        let directory = options.trust.as_ref().and_then(|trust| trust.directory.as_ref());
        if self.store.as_ref().map(Store::directory) != directory {
            let store = options.trust.as_ref().map(Store::open).transpose();
            self.store = store.map(Option::flatten).unwrap_or_else(|error| {
                tracing::error!("{error}");
                None
            });
        }
    }

    /// Returns the system account, if there is one.
    fn account(&self) -> Option<AccountId> {
        let accounts = &self.options.accounts;
        let name = accounts.system.as_deref()?;
        accounts.number(name).map(AccountId::new)
    }

    fn tell(&self, subject: &str, document: &Value) {
        if let Some(account) = self.account() {
            self.publish(ANY_SHARD, account, subject.as_bytes(), document.to_string());
        }
    }

    /// Publishes a message by a shard. For an answer, it is the shard that received the request:
    /// there the interest of the requester is already known.
    fn publish(&self, from: ShardId, account: AccountId, subject: &[u8], text: String) {
        let control = Control::Publish {
            account,
            subject: subject.into(),
            reply: Box::default(),
            header: Box::default(),
            payload: text.into_bytes().into(),
        };
        self.reporter.tell(from, control);
    }

    fn server(&mut self) -> ServerInfo<'_> {
        self.seq += 1;
        ServerInfo {
            name: &self.identity.name,
            host: self.options.network.shown_address(self.identity.port).0,
            id: &self.identity.id,
            cluster: self.identity.cluster.as_ref().map(|cluster| cluster.name.as_str()),
            domain: self.options.jetstream.domain.as_deref(),
            ver: crate::NATS_VERSION,
            tags: &self.options.server.tags,
            feature_flags: FEATURE_FLAGS,
            jetstream: self.identity.streams.is_some(),
            flags: 0,
            seq: self.seq,
            time: monitor::time(Utc::now()),
        }
    }

    fn on_trace(&mut self, trace: &MessageTrace) {
        let started_at = self.reporter.started_at();
        let document = trace_document::document(&json!(self.server()), trace, started_at);
        self.publish(trace.shard, trace.account, &trace.dest, document);
    }

    /// Returns the members that every event begins with.
    fn event(&mut self, kind: &str) -> serde_json::Map<String, Value> {
        let mut event = serde_json::Map::new();
        event.insert("type".into(), format!("io.nats.server.advisory.v1.{kind}").into());
        event.insert("id".into(), event_id().into());
        event.insert("timestamp".into(), monitor::time(Utc::now()).into());
        event.insert("server".into(), json!(self.server()));
        event
    }

    fn on_event(&mut self, event: &ConnEvent) {
        let (conn, ended, counts) = match event {
            ConnEvent::Connected(conn) => (conn, None, true),
            ConnEvent::Disconnected { conn, reason, stopped_ns, was_in } => {
                (conn, Some((*reason, *stopped_ns)), *was_in)
            }
            ConnEvent::Refused { .. } => return self.on_refusal(event),
            ConnEvent::Measured(report) => return tell_latency(self, report),
            ConnEvent::Answered(answered) => return tell_half(self, answered),
        };
        let account = Arc::clone(&conn.account);
        let kind = if ended.is_some() { "client_disconnect" } else { "client_connect" };
        let mut document = self.event(kind);
        document.insert("client".into(), json!(self.client(conn, ended.map(|(_, at)| at))));
        if let Some((reason, _)) = ended {
            describe_end(&mut document, &conn.traffic, reason.text());
        }
        let document = Value::Object(document);
        if counts {
            let conns = self.account_conns(&account);
            tell_conns(self, &account, &conns);
        }
        match ended {
            None => self.tell(&format!("$SYS.ACCOUNT.{account}.CONNECT"), &document),
            Some((reason, _)) => {
                if reason == Reason::Protocol("Authentication Failure") {
                    let id = &self.identity.id;
                    self.tell(&format!("$SYS.SERVER.{id}.CLIENT.AUTH.ERR"), &document);
                }
                self.tell(&format!("$SYS.ACCOUNT.{account}.DISCONNECT"), &document);
            }
        }
    }

    /// Tells the account of a service about a client that the service has refused.
    fn on_refusal(&mut self, event: &ConnEvent) {
        let ConnEvent::Refused { conn, account, account_name, reason, stopped_ns } = event else {
            return;
        };
        let mut document = self.event("client_disconnect");
        let client = ClientInfo { acc: account_name, ..self.client(conn, Some(*stopped_ns)) };
        document.insert("client".into(), json!(client));
        describe_end(&mut document, &conn.traffic, reason);
        let text = Value::Object(document).to_string();
        self.publish(ANY_SHARD, *account, b"$SYS.ACCOUNT.CLIENT.AUTH.ERR", text);
    }

    fn client<'a>(&'a self, conn: &'a ConnSnapshot, stopped_ns: Option<u64>) -> ClientInfo<'a> {
        let at = |ns| monitor::time_after(self.reporter.started_at(), ns);
        let is_leaf = matches!(conn.transport, Transport::Leaf | Transport::LeafWebSocket);
        let is_mqtt = conn.transport.is_mqtt();
        let token = conn.token.as_deref();
        let of_nkey = conn.has_nkey.then_some(&*conn.account);
        ClientInfo {
            start: at(conn.opened_ns),
            host: &conn.ip,
            id: conn.cid,
            acc: &conn.account,
            user: conn.user.as_deref(),
            name: if is_mqtt { "" } else { &conn.name },
            lang: &conn.lang,
            ver: &conn.version,
            rtt: stopped_ns.map(|_| conn.rtt_ns),
            server: None,
            cluster: None,
            stop: stopped_ns.map(at),
            jwt: token.and_then(|token| token.text.as_deref()),
            issuer_key: token.map(|token| &*token.issuer).or(of_nkey),
            name_tag: Some(self.options.account_label(&conn.account)),
            tags: token.map_or(&[], |token| &token.tags),
            kind: if is_leaf { "Leafnode" } else { "Client" },
            client_type: match (is_leaf, is_mqtt) {
                (true, _) => "",
                (_, true) => "mqtt",
                _ if conn.transport == Transport::WebSocket => "websocket",
                _ => "nats",
            },
            client_id: if is_mqtt { &conn.name } else { "" },
        }
    }

    /// Returns an event with an account's number of connections.
    fn account_conns(&mut self, account: &str) -> Value {
        let mut document = self.event("account_connections");
        let query = [("unused", "true".to_owned())];
        if let RequestOutcome::Data(statz) = self.page("/accstatz", &query) {
            let all = statz["account_statz"].as_array().cloned().unwrap_or_default();
            if let Some(Value::Object(found)) = all.into_iter().find(|one| one["acc"] == account) {
                document.extend(found);
            }
        }
        Value::Object(document)
    }

    fn tell_statsz(&mut self) {
        let subject = format!("$SYS.SERVER.{}.STATSZ", self.identity.id);
        let document = self.statsz();
        self.tell(&subject, &document);
    }

    /// Returns a report of the server's state: some members of `/varz`.
    fn statsz(&mut self) -> Value {
        let accounts = self.reporter.accounts();
        let active = accounts.iter().filter(|account| account.conns > 0).count();
        let varz = match self.page("/varz", &[]) {
            RequestOutcome::Data(varz) => varz,
            _ => Value::Null,
        };
        let routes = self.reporter.routes(false);
        let routed = routes.iter().fold(Traffic::default(), |mut all, route| {
            all.add(&route.traffic);
            all
        });
        let of = |key: &str, routed: u64| varz[key].as_u64().unwrap_or(0).saturating_sub(routed);
        let flow = |msgs: u64, bytes: u64| json!({"msgs": msgs, "bytes": bytes});
        let Traffic { in_msgs, in_bytes, out_msgs, out_bytes, .. } = routed;
        let mut statsz = serde_json::Map::new();
        for key in ["start", "mem", "cores", "cpu", "connections", "total_connections"] {
            statsz.insert(key.into(), varz[key].clone());
        }
        statsz.insert("active_accounts".into(), active.into());
        statsz.insert("subscriptions".into(), varz["subscriptions"].clone());
        statsz.insert("sent".into(), flow(of("out_msgs", 0), of("out_bytes", 0)));
        let to_clients = flow(of("out_msgs", out_msgs), of("out_bytes", out_bytes));
        statsz.insert("sent_to_clients".into(), to_clients);
        statsz.insert("received".into(), flow(of("in_msgs", 0), of("in_bytes", 0)));
        let from_clients = flow(of("in_msgs", in_msgs), of("in_bytes", in_bytes));
        statsz.insert("received_from_clients".into(), from_clients);
        statsz.insert("slow_consumers".into(), varz["slow_consumers"].clone());
        let servers: BTreeSet<&str> = routes.iter().map(|route| &*route.remote_id).collect();
        if !routes.is_empty() {
            let routes = routes.iter().map(|route| {
                let Traffic { in_msgs, in_bytes, out_msgs, out_bytes, .. } = route.traffic;
                json!({
                    "rid": route.rid,
                    "name": route.remote_name,
                    "sent": {"msgs": out_msgs, "bytes": out_bytes},
                    "received": {"msgs": in_msgs, "bytes": in_bytes},
                    "pending": route.pending_bytes,
                })
            });
            statsz.insert("routes".into(), routes.collect());
        }
        statsz.insert("active_servers".into(), (servers.len() + 1).into());
        statsz.insert("gomaxprocs".into(), varz["gomaxprocs"].clone());
        json!({"server": self.server(), "statsz": statsz})
    }
}

/// Tells how many connections an account has.
fn tell_conns(worker: &Worker, account: &str, conns: &Value) {
    worker.tell(&format!("$SYS.SERVER.ACCOUNT.{account}.CONNS"), conns);
    worker.tell(&format!("$SYS.ACCOUNT.{account}.SERVER.CONNS"), conns);
}

/// Returns who has asked or answered.
fn party(worker: &Worker, conn: &ConnSnapshot) -> Value {
    let rtt = Some(conn.rtt_ns).filter(|rtt| *rtt > 0);
    json!(ClientInfo {
        rtt,
        server: Some(&worker.identity.name),
        cluster: cluster_name(worker),
        // That of the user, and not of the account as in events of connections.
        name_tag: conn.token.as_ref().map(|token| &*token.name),
        ..worker.client(conn, None)
    })
}

/// Returns the name of the cluster that this server is of for others; a leaf node without one is
/// its own.
fn cluster_name(worker: &Worker) -> Option<&str> {
    let identity = &worker.identity;
    let cluster = identity.cluster.as_ref().map(|cluster| &*cluster.name);
    let gateway = || identity.gateway.as_ref().map(|gateway| &*gateway.name);
    let is_leaf = !worker.options.leaf.remotes.is_empty();
    cluster.or_else(gateway).or_else(|| is_leaf.then_some(&*identity.name))
}

/// Tells the server that measures a request about its answer.
fn tell_half(worker: &Worker, answered: &AnsweredRequest) {
    let Some(account) = worker.account() else { return };
    let Some(server) = measuring_server(&answered.reply) else { return };
    let responder = party(worker, &answered.responder);
    let text = far_half::document(answered, responder, worker.reporter.started_at());
    let subject = halves_subject(&String::from_utf8_lossy(server));
    worker.publish(ANY_SHARD, account, subject.as_bytes(), text);
}

/// Tells the account of a service about a measured request.
fn tell_latency(worker: &Worker, report: &LatencyReport) {
    let unnamed = |conn: &ConnSnapshot| json!({"acc": &*conn.account, "rtt": conn.rtt_ns});
    let parties = Parties {
        requestor: report.requester.as_ref().map(|conn| match report.share {
            true => party(worker, conn),
            false => unnamed(conn),
        }),
        responder: match &report.far {
            None => report.responder.as_ref().map(|conn| party(worker, conn)),
            Some(far) => far.responder.as_ref().and_then(|text| serde_json::from_str(text).ok()),
        },
    };
    let started_at = worker.reporter.started_at();
    let stamp = Stamp { id: event_id(), time: monitor::time(Utc::now()), started_at };
    let text = latency_document::document(report, parties, stamp);
    worker.publish(ANY_SHARD, report.account, report.rule.subject.as_bytes(), text);
}

fn event_id() -> String {
    (0..EVENT_ID_CHARS).map(|_| fastrand::alphanumeric()).collect()
}

/// Adds the members of an event about the end of a connection.
fn describe_end(document: &mut serde_json::Map<String, Value>, traffic: &Traffic, reason: &str) {
    let flow = |msgs: u64, bytes: u64| json!({"msgs": msgs, "bytes": bytes});
    document.insert("sent".into(), flow(traffic.out_msgs, traffic.out_bytes));
    document.insert("received".into(), flow(traffic.in_msgs, traffic.in_bytes));
    document.insert("reason".into(), reason.into());
}
fn tell_peer_status(reporter: &Reporter, shard: ShardId, conn: ConnId, is_good: bool) {
    reporter.tell(shard, Control::Login { conn, news: LoginNews::PeerStatus(is_good) });
}
