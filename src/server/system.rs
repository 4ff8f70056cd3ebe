//! The system account's other end: the server tells there what happens, and answers requests.
//!
//! One thread takes what shards hand over, makes documents of it, by the monitoring's code where
//! there is a page of the same kind, and has a shard publish them. What it is handed is bounded;
//! what does not fit is not told, and not answered.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use chrono::Utc;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use serde::Serialize;
use serde_json::{Value, json};

use super::Identity;
use super::monitor::{Change, Documents};
use super::shards::Reporter;
use super::trace;
use crate::config::{self, Options, StartError};
use crate::engine::{AccountId, ConnEvent, ConnSnapshot, MessageTrace, Reason, ServerRequest};
use crate::shard::{Control, News};

/// How often the server says how it is.
const STATSZ_INTERVAL: Duration = Duration::from_secs(10);
/// Characters of an event's id.
const EVENT_ID_CHARS: usize = 22;

/// The running thread.
pub(super) struct System {
    notes: Sender<News>,
    changes: Sender<Change>,
    thread: JoinHandle<()>,
}

struct Worker {
    identity: Arc<Identity>,
    options: Arc<Options>,
    reporter: Reporter,
    documents: Documents,
    changes: Receiver<Change>,
    /// What the server has told so far.
    seq: u64,
}

/// Who tells or answers.
#[derive(Serialize)]
struct ServerInfo<'a> {
    name: &'a str,
    host: &'a str,
    id: &'a str,
    ver: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    tags: &'a [String],
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

/// What a request asks for, or why there is no answer to it.
enum Reply {
    Data(Value),
    Error(u16, String),
    /// Not of this server.
    None,
}

impl System {
    /// Takes over the other end of what shards send to `notes`.
    pub(super) fn start(
        (notes, news): (Sender<News>, Receiver<News>),
        identity: &Arc<Identity>,
        options: &Arc<Options>,
        reporter: Reporter,
    ) -> Result<Self, StartError> {
        let (changes, changed) = crossbeam_channel::unbounded();
        let documents = Documents::new(identity, options, reporter.clone());
        let worker = Worker {
            identity: Arc::clone(identity),
            options: Arc::clone(options),
            reporter,
            documents,
            changes: changed,
            seq: 0,
        };
        let thread = std::thread::Builder::new().name("system".to_owned());
        let thread = thread.spawn(move || worker.run(&news)).map_err(|error| {
            StartError::new(format!("cannot start a thread: {error}; raise `ulimit -u`"))
        })?;
        Ok(Self { notes, changes, thread })
    }

    /// Tells what has changed.
    pub(super) fn note(&self, change: Change) {
        let _ = self.changes.send(change);
        // If there is no room, it is awake already.
        let _ = self.notes.try_send(News::Change);
    }

    /// Tells that the server ends, and waits until that is on its way.
    pub(super) fn stop(self) {
        if self.notes.send(News::Stop).is_ok() {
            // If it panicked, it has said so.
            let _ = self.thread.join();
        }
    }
}

impl Worker {
    fn run(mut self, news: &Receiver<News>) {
        let ticks = crossbeam_channel::tick(STATSZ_INTERVAL);
        loop {
            if ticks.try_recv().is_ok() {
                self.tell_statsz();
            }
            let next = news.recv_timeout(STATSZ_INTERVAL);
            while let Ok(change) = self.changes.try_recv() {
                self.on_change(change);
            }
            match next {
                Ok(News::Event(event)) => self.on_event(&event),
                Ok(News::Request(request)) => self.on_request(&request),
                Ok(News::Trace(trace)) => self.on_trace(&trace),
                Ok(News::Change) | Err(RecvTimeoutError::Timeout) => {}
                Ok(News::Stop) | Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let subject = format!("$SYS.SERVER.{}.SHUTDOWN", self.identity.id);
        let info = json!(self.server());
        self.tell(&subject, &info);
    }

    fn on_change(&mut self, change: Change) {
        if let Change::Options(options) = &change {
            self.options = Arc::clone(options);
        }
        let is_lame_duck = matches!(change, Change::LameDuck);
        self.documents.note(change);
        if is_lame_duck {
            let subject = format!("$SYS.SERVER.{}.LAMEDUCK", self.identity.id);
            let info = json!(self.server());
            self.tell(&subject, &info);
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
            self.publish(account, subject.as_bytes(), document.to_string());
        }
    }

    fn publish(&self, account: AccountId, subject: &[u8], text: String) {
        self.reporter.tell_one(Control::Publish {
            account,
            subject: subject.into(),
            payload: text.into(),
        });
    }

    fn server(&mut self) -> ServerInfo<'_> {
        self.seq += 1;
        ServerInfo {
            name: &self.identity.name,
            host: &self.identity.host,
            id: &self.identity.id,
            ver: crate::NATS_VERSION,
            tags: &self.options.server_tags,
            jetstream: false,
            flags: 0,
            seq: self.seq,
            time: super::monitor::time(Utc::now()),
        }
    }

    fn on_trace(&mut self, trace: &MessageTrace) {
        let started_at = self.reporter.started_at();
        let document = trace::document(&json!(self.server()), trace, started_at);
        self.publish(trace.account, &trace.dest, document);
    }

    /// What every event begins with.
    fn event(&mut self, kind: &str) -> serde_json::Map<String, Value> {
        let id: String = (0..EVENT_ID_CHARS).map(|_| fastrand::alphanumeric()).collect();
        let mut event = serde_json::Map::new();
        event.insert("type".into(), format!("io.nats.server.advisory.v1.{kind}").into());
        event.insert("id".into(), id.into());
        event.insert("timestamp".into(), super::monitor::time(Utc::now()).into());
        event.insert("server".into(), json!(self.server()));
        event
    }

    fn on_event(&mut self, event: &ConnEvent) {
        let (conn, ended) = match event {
            ConnEvent::Connected(conn) => (conn, None),
            ConnEvent::Disconnected { conn, reason, stopped_ns } => {
                (conn, Some((*reason, *stopped_ns)))
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
        let conns = self.account_conns(&account);
        self.tell(&format!("$SYS.SERVER.ACCOUNT.{account}.CONNS"), &conns);
        self.tell(&format!("$SYS.ACCOUNT.{account}.SERVER.CONNS"), &conns);
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

    fn client<'a>(&self, conn: &'a ConnSnapshot, stopped_ns: Option<u64>) -> ClientInfo<'a> {
        let at = |ns| super::monitor::time_after(self.reporter.started_at(), ns);
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
            name_tag: &conn.account,
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
        let sent = json!({"msgs": varz["out_msgs"], "bytes": varz["out_bytes"]});
        let received = json!({"msgs": varz["in_msgs"], "bytes": varz["in_bytes"]});
        let mut statsz = serde_json::Map::new();
        for key in ["start", "mem", "cores", "cpu", "connections", "total_connections"] {
            statsz.insert(key.into(), varz[key].clone());
        }
        statsz.insert("active_accounts".into(), active.into());
        statsz.insert("subscriptions".into(), varz["subscriptions"].clone());
        statsz.insert("sent".into(), sent.clone());
        statsz.insert("sent_to_clients".into(), sent);
        statsz.insert("received".into(), received.clone());
        statsz.insert("received_from_clients".into(), received);
        statsz.insert("slow_consumers".into(), varz["slow_consumers"].clone());
        statsz.insert("gomaxprocs".into(), varz["gomaxprocs"].clone());
        statsz.insert("active_servers".into(), 1.into());
        json!({"server": self.server(), "statsz": statsz})
    }

    fn on_request(&mut self, request: &ServerRequest) {
        let subject = String::from_utf8_lossy(&request.subject).into_owned();
        let tokens: Vec<&str> = subject.split('.').skip(2).collect();
        let own_name = request.account_name.to_string();
        let is_system = self.options.accounts.system.as_deref() == Some(&*own_name);
        let filter = match parameters(&request.payload) {
            Ok(filter) => filter,
            Err(error) => return self.answer(request, Reply::Error(400, error)),
        };
        let reply = match *tokens {
            ["USER", "INFO"] => Reply::Data(self.user_info(request)),
            ["SERVER", "PING", "CONNZ"] | ["ACCOUNT", "PING", "CONNZ"] if !is_system => {
                self.account_page(&own_name, "CONNZ", &filter)
            }
            ["ACCOUNT", "PING", "STATZ"] if !is_system => {
                self.account_page(&own_name, "STATZ", &filter)
            }
            _ if !is_system || !self.is_meant(&filter) => return,
            ["SERVER", "PING"] | ["SERVER", _, "STATSZ"] => {
                let statsz = self.statsz();
                return self.publish(request.account, &request.reply, statsz.to_string());
            }
            ["SERVER", _, "IDZ"] => {
                let Identity { name, host, id, .. } = &*self.identity;
                let idz = json!({"name": name, "host": host, "id": id});
                return self.publish(request.account, &request.reply, idz.to_string());
            }
            ["SERVER", _, kind] => self.server_page(kind, &filter),
            ["ACCOUNT", "PING", kind] => self.server_page(kind, &filter),
            ["ACCOUNT", account, "CONNS"] => {
                let conns = self.account_conns(account);
                return self.publish(request.account, &request.reply, conns.to_string());
            }
            ["ACCOUNT", account, kind] => self.account_page(account, kind, &filter),
            _ => Reply::None,
        };
        self.answer(request, reply);
    }

    fn answer(&mut self, request: &ServerRequest, reply: Reply) {
        let server = self.server();
        let document = match reply {
            Reply::Data(data) => json!({"server": server, "data": data}),
            Reply::Error(code, description) => {
                let error = json!({"code": code, "description": description});
                json!({"server": server, "error": error})
            }
            Reply::None => return,
        };
        self.publish(request.account, &request.reply, document.to_string());
    }

    /// Whether a request is for this server, by what it says of those it is for.
    fn is_meant(&self, filter: &Value) -> bool {
        let is_exact = filter["exact_match"].as_bool().unwrap_or(false);
        let fits = |wanted: &Value, given: &str| match wanted.as_str() {
            None | Some("") => true,
            Some(wanted) if is_exact => wanted == given,
            Some(wanted) => given.contains(wanted),
        };
        let tags = filter["tags"].as_array().map_or(&[][..], Vec::as_slice);
        let has = |tag: &Value| self.options.server_tags.iter().any(|own| tag == own);
        fits(&filter["server_name"], &self.identity.name)
            && fits(&filter["host"], &self.identity.host)
            && fits(&filter["cluster"], "")
            && fits(&filter["domain"], "")
            && tags.iter().all(has)
    }

    fn server_page(&mut self, kind: &str, filter: &Value) -> Reply {
        match kind {
            "RAFTZ" => Reply::Data(json!({})),
            "HEALTHZ" => {
                let (status, body) = self.documents.page("/healthz", "");
                let mut health: Value = serde_json::from_slice(&body).unwrap_or_default();
                health["status_code"] = status.into();
                Reply::Data(health)
            }
            "STATZ" => {
                let unused = filter["include_unused"].as_bool().unwrap_or(false);
                self.page("/accstatz", &[("unused", unused.to_string())])
            }
            "VARZ" | "CONNZ" | "SUBSZ" | "ACCOUNTZ" | "ROUTEZ" | "GATEWAYZ" | "LEAFZ" | "JSZ"
            | "IPQUEUESZ" => {
                self.page(&format!("/{}", kind.to_ascii_lowercase()), &query_of(filter))
            }
            _ => Reply::None,
        }
    }

    /// A page about one account.
    fn account_page(&mut self, account: &str, kind: &str, filter: &Value) -> Reply {
        if self.options.accounts.get(account).is_none() {
            return Reply::Error(500, format!("Account {account} does not exist"));
        }
        let mut query = query_of(filter);
        query.retain(|(key, _)| *key != "acc");
        query.push(("acc", account.to_owned()));
        match kind {
            "CONNZ" => self.page("/connz", &query),
            "SUBSZ" => {
                query.retain(|(key, _)| *key != "subs");
                query.push(("subs", "true".to_owned()));
                self.page("/subsz", &query)
            }
            "LEAFZ" => self.page("/leafz", &query),
            "JSZ" => Reply::Error(500, "jetstream not enabled".to_owned()),
            "INFO" => match self.page("/accountz", &query) {
                Reply::Data(mut found) => Reply::Data(found["account_detail"].take()),
                other => other,
            },
            "STATZ" => match self.page("/accstatz", &[("unused", "true".to_owned())]) {
                Reply::Data(mut statz) => {
                    if let Some(all) = statz["account_statz"].as_array_mut() {
                        all.retain(|one| one["acc"] == account);
                    }
                    Reply::Data(statz)
                }
                other => other,
            },
            _ => Reply::None,
        }
    }

    fn page(&mut self, path: &str, query: &[(&str, String)]) -> Reply {
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
        let (status, body) = self.documents.page(path, &query);
        if status != 200 {
            return Reply::Error(500, String::from_utf8_lossy(&body).into_owned());
        }
        serde_json::from_slice(&body).map_or(Reply::None, Reply::Data)
    }

    /// Who asks, and what that user may do.
    fn user_info(&self, request: &ServerRequest) -> Value {
        let account = &*request.account_name;
        let mut info = json!({"user": request.user, "account": account, "account_name": account});
        let mut users = self.options.auth.users.iter();
        let user = users.find(|user| Some(user.name.as_str()) == request.user.as_deref());
        let defaults = self.options.auth.default_permissions.as_ref();
        let defaults = defaults.filter(|_| account == config::accounts::GLOBAL);
        let own = user.and_then(|user| user.permissions.as_ref());
        if let Some(permissions) = own.or(defaults.filter(|_| user.is_some())) {
            info["permissions"] = permissions_of(permissions);
        }
        info
    }
}

fn permissions_of(permissions: &config::Permissions) -> Value {
    let list = |list: &config::SubjectList| {
        let mut shown = serde_json::Map::new();
        for (key, entries) in [("allow", &list.allow), ("deny", &list.deny)] {
            let entry = |entry: &config::SubjectEntry| match &entry.queue {
                Some(queue) => format!("{} {queue}", entry.subject),
                None => entry.subject.clone(),
            };
            if !entries.is_empty() {
                let entries: Vec<String> = entries.iter().map(entry).collect();
                shown.insert(key.to_owned(), entries.into());
            }
        }
        shown
    };
    let mut shown = serde_json::Map::new();
    for (key, subjects) in
        [("publish", &permissions.publish), ("subscribe", &permissions.subscribe)]
    {
        shown.insert(key.to_owned(), list(subjects).into());
    }
    if let Some(responses) = &permissions.allow_responses {
        let ttl = responses.expires_ms.saturating_mul(1_000_000);
        shown.insert("responses".into(), json!({"max": responses.max, "ttl": ttl}));
    }
    Value::Object(shown)
}

/// What a request says about the answer that it wants.
fn parameters(payload: &[u8]) -> Result<Value, String> {
    if payload.is_empty() {
        return Ok(json!({}));
    }
    match serde_json::from_slice(payload) {
        Ok(given @ Value::Object(_)) => Ok(given),
        Ok(_) => Err("the options of a request are a JSON object".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// The same as the monitoring's pages take it.
fn query_of(parameters: &Value) -> Vec<(&'static str, String)> {
    /// A request's key, and the page's.
    const KEYS: [(&str, &str); 14] = [
        ("sort", "sort"),
        ("auth", "auth"),
        ("subscriptions", "subs"),
        ("offset", "offset"),
        ("limit", "limit"),
        ("cid", "cid"),
        ("user", "user"),
        ("acc", "acc"),
        ("account", "acc"),
        ("filter_subject", "filter_subject"),
        ("mqtt_client", "mqtt_client"),
        ("test", "test"),
        ("state", "state"),
        ("include_unused", "unused"),
    ];
    let mut query = Vec::new();
    for (given, name) in KEYS {
        let text = match (&parameters[given], name) {
            (Value::Null, _) => continue,
            (Value::Number(state), "state") => match state.as_u64() {
                Some(1) => "closed".to_owned(),
                Some(2) => "all".to_owned(),
                _ => "open".to_owned(),
            },
            (Value::String(text), _) => text.clone(),
            (value, _) => value.to_string(),
        };
        query.push((name, text));
    }
    if parameters["subscriptions_detail"] == true {
        query.retain(|(name, _)| *name != "subs");
        query.push(("subs", "detail".to_owned()));
    }
    query
}
