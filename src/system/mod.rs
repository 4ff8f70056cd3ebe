//! The server's own voice in the system account: events, and answers to requests.
//!
//! One thread takes events and requests from the shards, makes documents of them, by the
//! monitoring's code where there is a page of the same kind, and has a shard publish them. Its
//! queue is bounded; an event or request that does not fit is dropped.

#![forbid(unsafe_code)]

mod claims;
mod requests;
mod store;
mod trace_document;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use chrono::Utc;
use crossbeam_channel::{Receiver, Sender, never, select, tick};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::auth::jwt::{self, Claims};
use crate::config::{Options, StartError};
use crate::engine::{AccountId, ConnEvent, ConnSnapshot, MessageTrace, Reason, ShardId, Traffic};
use crate::identity::Identity;
use crate::monitor::{self, Documents, FEATURE_FLAGS, FeatureFlags, Standing};
use crate::shard::{Control, News, Reporter};
use requests::Reply;
use store::Store;

/// How often the server says how it is.
const STATSZ_INTERVAL: Duration = Duration::from_secs(10);
/// Characters of an event's id.
const EVENT_ID_CHARS: usize = 22;
/// Where the server speaks that nobody has asked.
const ANY_SHARD: ShardId = ShardId(0);

/// What the system account has the control thread do.
pub(crate) enum Order {
    /// Read the configuration again, and say how it went.
    Reload(Sender<Result<(), StartError>>),
    /// Go by other tokens of these accounts, none where one is gone; say when it is so.
    Accounts(Vec<(String, Option<Arc<Claims<jwt::Account>>>)>, Sender<()>),
}

/// The running thread.
pub(crate) struct System {
    notes: Sender<News>,
    thread: JoinHandle<()>,
}

struct Worker {
    identity: Arc<Identity>,
    options: Arc<Options>,
    reporter: Reporter,
    documents: Documents,
    told: watch::Receiver<Standing>,
    is_lame_duck: bool,
    /// What the control thread is to do.
    orders: Sender<Order>,
    /// The tokens of accounts, if they are in a directory.
    store: Option<Store>,
    /// What the server has told so far.
    seq: u64,
}

/// Who tells or answers.
#[derive(Serialize)]
struct ServerInfo<'a> {
    name: &'a str,
    host: &'a str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<&'a str>,
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
    stop: Option<String>,
    name_tag: &'a str,
    kind: &'static str,
    client_type: &'static str,
}

impl System {
    /// Takes over the other end of what shards send to `notes`.
    pub(crate) fn start(
        (notes, news): (Sender<News>, Receiver<News>),
        identity: &Arc<Identity>,
        mut told: watch::Receiver<Standing>,
        reporter: Reporter,
        orders: Sender<Order>,
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
            seq: 0,
        };
        let thread = std::thread::Builder::new().name("system".to_owned());
        let thread = thread.spawn(move || worker.run(&news)).map_err(|error| {
            StartError::new(format!("cannot start a thread: {error}; raise `ulimit -u`"))
        })?;
        Ok(Self { notes, thread })
    }

    /// Something is to be looked at that has been told.
    pub(crate) fn wake(&self) {
        // If there is no room, it is awake already.
        let _ = self.notes.try_send(News::Change);
    }

    /// Tells that the server ends, and waits until that is on its way.
    pub(crate) fn stop(self) {
        if self.notes.send(News::Stop).is_ok() {
            // If it panicked, it has said so.
            let _ = self.thread.join();
        }
    }
}

impl Worker {
    fn run(mut self, news: &Receiver<News>) {
        let ticks = tick(STATSZ_INTERVAL);
        let mut pack_ticks = self.pack_ticks();
        loop {
            let next = select! {
                recv(news) -> next => next,
                recv(ticks) -> _ => {
                    self.tell_statsz();
                    continue;
                }
                recv(pack_ticks) -> _ => {
                    self.ask_for_packs();
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
                Ok(News::Change) => {}
                Ok(News::Stop) | Err(_) => break,
            }
        }
        let subject = format!("$SYS.SERVER.{}.SHUTDOWN", self.identity.id);
        let info = json!(self.server());
        self.tell(&subject, &info);
    }

    /// When the other servers are asked what tokens they have; at first as soon as they may be
    /// there.
    fn pack_ticks(&self) -> Receiver<Instant> {
        let interval = self.store.as_ref().map(|store| store.directory().interval_ms);
        interval.map_or_else(never, |ms| tick(Duration::from_millis(ms)))
    }

    /// Takes over what has changed; whether the options have.
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
            self.options = options;
        }
        if is_lame_duck && !std::mem::replace(&mut self.is_lame_duck, true) {
            let subject = format!("$SYS.SERVER.{}.LAMEDUCK", self.identity.id);
            let info = json!(self.server());
            self.tell(&subject, &info);
        }
        is_other
    }

    /// Goes on with the directory of the new options, if it is another.
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

    /// The system account, if there is one.
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

    /// Has a shard publish something. An answer is for the shard where the request came in: there
    /// it is known already who waits for it.
    fn publish(&self, from: ShardId, account: AccountId, subject: &[u8], text: String) {
        let control = Control::Publish {
            account,
            subject: subject.into(),
            reply: Box::default(),
            payload: text.into_bytes().into(),
        };
        self.reporter.tell(from, control);
    }

    fn server(&mut self) -> ServerInfo<'_> {
        self.seq += 1;
        ServerInfo {
            name: &self.identity.name,
            host: self.options.shown_address(self.identity.port).0,
            id: &self.identity.id,
            cluster: self.identity.cluster.as_ref().map(|cluster| cluster.name.as_str()),
            ver: crate::NATS_VERSION,
            tags: &self.options.server_tags,
            feature_flags: FEATURE_FLAGS,
            jetstream: false,
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

    /// What every event begins with.
    fn event(&mut self, kind: &str) -> serde_json::Map<String, Value> {
        let id: String = (0..EVENT_ID_CHARS).map(|_| fastrand::alphanumeric()).collect();
        let mut event = serde_json::Map::new();
        event.insert("type".into(), format!("io.nats.server.advisory.v1.{kind}").into());
        event.insert("id".into(), id.into());
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
        };
        let account = Arc::clone(&conn.account);
        let kind = if ended.is_some() { "client_disconnect" } else { "client_connect" };
        let mut document = self.event(kind);
        document.insert("client".into(), json!(self.client(conn, ended.map(|(_, at)| at))));
        if let Some((reason, _)) = ended {
            let traffic = &conn.traffic;
            let flow = |msgs: u64, bytes: u64| json!({"msgs": msgs, "bytes": bytes});
            document.insert("sent".into(), flow(traffic.out_msgs, traffic.out_bytes));
            document.insert("received".into(), flow(traffic.in_msgs, traffic.in_bytes));
            document.insert("reason".into(), reason.text().into());
        }
        let document = Value::Object(document);
        if counts {
            let conns = self.account_conns(&account);
            self.tell(&format!("$SYS.SERVER.ACCOUNT.{account}.CONNS"), &conns);
            self.tell(&format!("$SYS.ACCOUNT.{account}.SERVER.CONNS"), &conns);
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

    fn client<'a>(&'a self, conn: &'a ConnSnapshot, stopped_ns: Option<u64>) -> ClientInfo<'a> {
        let at = |ns| monitor::time_after(self.reporter.started_at(), ns);
        ClientInfo {
            start: at(conn.opened_ns),
            host: &conn.ip,
            id: conn.cid,
            acc: &conn.account,
            user: conn.user.as_deref(),
            name: &conn.name,
            lang: &conn.lang,
            ver: &conn.version,
            rtt: stopped_ns.map(|_| conn.rtt_ns),
            stop: stopped_ns.map(at),
            name_tag: self.options.account_label(&conn.account),
            kind: "Client",
            client_type: "nats",
        }
    }

    /// How many connections an account has, as an event.
    fn account_conns(&mut self, account: &str) -> Value {
        let mut document = self.event("account_connections");
        let query = [("unused", "true".to_owned())];
        if let Reply::Data(statz) = self.page("/accstatz", &query) {
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

    /// How the server is: some of what `/varz` says.
    fn statsz(&mut self) -> Value {
        let accounts = self.reporter.accounts();
        let active = accounts.iter().filter(|account| account.conns > 0).count();
        let varz = match self.page("/varz", &[]) {
            Reply::Data(varz) => varz,
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
