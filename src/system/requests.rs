//! Requests in the system account: for the monitoring's documents, and for actions of the server.

use crossbeam_channel::bounded;
use hyper::body::Bytes;
use serde_json::{Map, Value, json};

use super::far_half::{self, Addressed};
use super::{SystemOrder, Worker, others};
use crate::config;
use crate::engine::{ServerRequest, halves_subject};
use crate::identity::ServerIdentity;
use crate::shard::{ClientOrder, Control};
use crate::subject;

const NS_PER_S: i64 = 1_000_000_000;

/// The outcome of a request.
pub(super) enum RequestOutcome {
    Data(Value),
    Error(u16, String),
    /// A missing page, with the reason.
    NoPage(String),
    /// An action that was carried out.
    Done,
    /// No answer: the request is not for this server.
    None,
}

impl Worker {
    pub(super) fn on_request(&mut self, request: &ServerRequest) {
        let subject = String::from_utf8_lossy(&request.subject).into_owned();
        if self.on_claims(request, &subject) || on_half(self, request, &subject) {
            return;
        }
        if others::on_message(self, request, &subject) {
            return;
        }
        let tokens: Vec<&str> = subject.split('.').skip(2).collect();
        let own_name = request.account_name.to_string();
        let is_system = self.options.accounts.system.as_deref() == Some(&*own_name);
        if subject == "$SYS.DEBUG.SUBSCRIBERS" {
            let words = String::from_utf8_lossy(&request.payload).into_owned();
            let mut words = words.split_ascii_whitespace();
            let count = self.subscribers(&own_name, words.next(), words.next());
            return self.reply(request, count.to_string());
        }
        let filter = match parameters(&request.payload) {
            Ok(filter) => filter,
            Err(error) => return self.answer(request, RequestOutcome::Error(400, error)),
        };
        let reply = match *tokens {
            ["USER", "INFO"] => RequestOutcome::Data(self.user_info(request)),
            _ if !is_system => return,
            ["SERVER", _, "IDZ"] => {
                let ServerIdentity { name, id, port, .. } = &*self.identity;
                let (host, _) = self.options.network.shown_address(*port);
                let idz = json!({"name": name, "host": host, "id": id});
                return self.reply(request, idz.to_string());
            }
            ["SERVER", _, order @ ("KICK" | "LDM")] => self.order(order, &filter),
            ["SERVER", _, "RELOAD"] => self.reload(),
            ["ACCOUNT", "NSUBS"] => {
                let count = self.count_subs(&filter);
                return self.reply(request, count.to_string());
            }
            _ if !self.is_meant(&filter) => return,
            ["SERVER", "PING"] | ["SERVER", _, "STATSZ"] => {
                let statsz = self.statsz();
                return self.reply(request, statsz.to_string());
            }
            ["SERVER", _, kind] => self.server_page(kind, &filter),
            ["ACCOUNT", "PING", kind @ ("CONNZ" | "STATZ" | "SUBSZ" | "LEAFZ" | "JSZ")] => {
                self.server_page(kind, &filter)
            }
            ["ACCOUNT", account, "CONNS"] => {
                if self.options.accounts.get(account).is_none() {
                    return;
                }
                let conns = self.account_conns(account);
                return self.reply(request, conns.to_string());
            }
            ["ACCOUNT", account, kind] => self.account_page(account, kind, &filter),
            _ => RequestOutcome::None,
        };
        self.answer(request, reply);
    }

    fn answer(&mut self, request: &ServerRequest, reply: RequestOutcome) {
        let server = self.server();
        let document = match reply {
            RequestOutcome::Data(data) => json!({"server": server, "data": data}),
            RequestOutcome::Error(code, description) => {
                let error = json!({"code": code, "description": description});
                json!({"server": server, "error": error})
            }
            RequestOutcome::NoPage(description) => {
                let error = json!({"code": 500, "description": description});
                json!({"server": server, "data": null, "error": error})
            }
            RequestOutcome::Done => json!({"server": server}),
            RequestOutcome::None => return,
        };
        self.reply(request, document.to_string());
    }

    /// Whether a request's filter selects this server.
    fn is_meant(&self, filter: &Value) -> bool {
        let is_exact = filter["exact_match"].as_bool().unwrap_or(false);
        let fits = |wanted: &Value, given: &str| match wanted.as_str() {
            None | Some("") => true,
            Some(wanted) if is_exact => wanted == given,
            Some(wanted) => given.contains(wanted),
        };
        let tags = filter["tags"].as_array().map_or(&[][..], Vec::as_slice);
        let has = |tag: &Value| {
            let tag = tag.as_str().unwrap_or_default();
            self.options.server.tags.iter().any(|own| own.eq_ignore_ascii_case(tag))
        };
        let cluster = self.identity.cluster.as_ref().map_or("", |cluster| &cluster.name);
        fits(&filter["server_name"], &self.identity.name)
            && fits(&filter["host"], self.options.network.shown_address(self.identity.port).0)
            && fits(&filter["cluster"], cluster)
            && fits(&filter["domain"], self.options.jetstream.domain.as_deref().unwrap_or(""))
            && tags.iter().all(has)
    }

    /// Carries out an order about one client.
    fn order(&self, order: &str, parameters: &Value) -> RequestOutcome {
        let (order, unknown) = match order {
            "KICK" => (ClientOrder::Kick, "no such client or leafnode id"),
            _ => (ClientOrder::LameDuck, "no such client id"),
        };
        let cid = parameters["cid"].as_u64().unwrap_or(0);
        match self.reporter.order(cid, order) {
            true => RequestOutcome::Done,
            false => RequestOutcome::Error(500, unknown.to_owned()),
        }
    }

    /// Reloads the configuration, as SIGHUP does.
    fn reload(&mut self) -> RequestOutcome {
        let (to, outcome) = bounded(1);
        let sent = self.orders.send(SystemOrder::Reload(to));
        let outcome = sent.ok().and_then(|()| outcome.recv().ok());
        self.take_changes();
        match outcome {
            Some(Ok(())) => RequestOutcome::Done,
            Some(Err(error)) => RequestOutcome::Error(500, error.to_string()),
            None => RequestOutcome::None,
        }
    }

    /// Returns the number of subscriptions of clients here that match a subject.
    fn count_subs(&self, parameters: &Value) -> usize {
        use base64::Engine as _;
        let text = |key: &str| parameters[key].as_str();
        let queue = text("queue").map(|queue| {
            let queue = base64::engine::general_purpose::STANDARD.decode(queue);
            String::from_utf8(queue.unwrap_or_default()).unwrap_or_default()
        });
        self.subscribers(text("acc").unwrap_or_default(), text("subject"), queue.as_deref())
    }

    fn subscribers(&self, account: &str, subject: Option<&str>, queue: Option<&str>) -> usize {
        let Some(wanted) = subject.filter(|wanted| subject::is_valid_filter(wanted.as_bytes()))
        else {
            return 0;
        };
        let mut count = 0;
        self.reporter.subs(|sub| {
            let is_in_queue = queue.is_none() || sub.queue.as_deref() == queue;
            let is_wanted = *sub.account == *account
                && is_in_queue
                && subject::matches(sub.subject.as_bytes(), wanted.as_bytes());
            count += usize::from(is_wanted);
        });
        count
    }

    fn server_page(&mut self, kind: &str, filter: &Value) -> RequestOutcome {
        match kind {
            "RAFTZ" => RequestOutcome::Data(json!({})),
            "PROFILEZ" => {
                RequestOutcome::Data(json!({"profile": null, "error": profile_error(filter)}))
            }
            "EXPVARZ" => match self.page("/varz", &[]) {
                // Those variables of Go's runtime that have a meaning here.
                RequestOutcome::Data(varz) => RequestOutcome::Data(json!({
                    "cmdline": [self.identity.program],
                    "memstats": {"Sys": varz["mem"]},
                })),
                other => other,
            },
            "HEALTHZ" => {
                let (status, body) = self.document("/healthz", &query_of(filter));
                let health: Map<String, Value> = serde_json::from_slice(&body).unwrap_or_default();
                // The code follows the status.
                let mut all = health.into_iter();
                let mut shown: Map<String, Value> = all.next().into_iter().collect();
                shown.insert("status_code".to_owned(), status.into());
                shown.extend(all);
                RequestOutcome::Data(shown.into())
            }
            // Without JetStream there is no leader of it, and only a requester that asks for one
            // waits for it.
            "JSZ" if filter["leader_only"] == true && self.identity.streams.is_none() => {
                RequestOutcome::None
            }
            "STATZ" => {
                let unused = filter["include_unused"].as_bool().unwrap_or(false);
                self.page("/accstatz", &[("unused", unused.to_string())])
            }
            "VARZ" | "CONNZ" | "SUBSZ" | "ACCOUNTZ" | "ROUTEZ" | "GATEWAYZ" | "LEAFZ" | "JSZ"
            | "IPQUEUESZ" => {
                self.page(&format!("/{}", kind.to_ascii_lowercase()), &query_of(filter))
            }
            _ => RequestOutcome::None,
        }
    }

    /// Returns a page about one account.
    fn account_page(&mut self, account: &str, kind: &str, filter: &Value) -> RequestOutcome {
        if self.options.accounts.get(account).is_none() {
            return RequestOutcome::NoPage(match kind {
                "JSZ" => format!("account {account:?} not found"),
                _ => format!("Account {account} does not exist"),
            });
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
            "JSZ" => match self.page("/jsz", &query) {
                RequestOutcome::Data(mut found) if found["account_details"].is_array() => {
                    RequestOutcome::Data(found["account_details"][0].take())
                }
                _ => RequestOutcome::NoPage(match self.identity.streams {
                    Some(_) => format!("account {account:?} not jetstream enabled"),
                    None => "jetstream not enabled".to_owned(),
                }),
            },
            "INFO" => match self.page("/accountz", &query) {
                RequestOutcome::Data(mut found) => {
                    RequestOutcome::Data(found["account_detail"].take())
                }
                other => other,
            },
            "STATZ" => match self.page("/accstatz", &[("unused", "true".to_owned())]) {
                RequestOutcome::Data(mut statz) => {
                    if let Some(all) = statz["account_statz"].as_array_mut() {
                        all.retain(|one| one["acc"] == account);
                    }
                    RequestOutcome::Data(statz)
                }
                other => other,
            },
            _ => RequestOutcome::None,
        }
    }

    fn document(&mut self, path: &str, query: &[(&str, String)]) -> (u16, Bytes) {
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
        self.documents.page(path, &query)
    }

    pub(super) fn page(&mut self, path: &str, query: &[(&str, String)]) -> RequestOutcome {
        let (status, body) = self.document(path, query);
        if status != 200 {
            return RequestOutcome::NoPage(String::from_utf8_lossy(&body).into_owned());
        }
        serde_json::from_slice(&body).map_or(RequestOutcome::None, RequestOutcome::Data)
    }

    /// Returns the requester's user and permissions.
    fn user_info(&self, request: &ServerRequest) -> Value {
        let account = &*request.account_name;
        let label = self.options.account_label(account);
        let mut info = json!({"user": request.user, "account": account, "account_name": label});
        if let Some(token) = &request.token {
            if !token.name.is_empty() {
                info["user_name"] = token.name.as_str().into();
            }
            if token.permissions != config::Permissions::default() {
                info["permissions"] = permissions_of(&token.permissions);
            }
            let left_s = token.expires - chrono::Utc::now().timestamp();
            if token.expires > 0 && left_s > 0 {
                info["expires"] = left_s.saturating_mul(NS_PER_S).into();
            }
            return info;
        }
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

/// Returns the reason why there is no profile: profiles are a feature of Go.
fn profile_error(parameters: &Value) -> String {
    match parameters["name"].as_str() {
        None | Some("") => "Profile name not specified".to_owned(),
        Some(name) => {
            format!("Profile {name:?} not found; run `perf record -p PID` where the server is")
        }
    }
}

fn permissions_of(permissions: &config::Permissions) -> Value {
    let list = |list: &config::SubjectList| {
        let mut shown = Map::new();
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
    let mut shown = Map::new();
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

/// Hands what another server has measured to the shard of the request. Returns whether the message
/// was of that kind.
fn on_half(worker: &Worker, request: &ServerRequest, subject: &str) -> bool {
    let Some(node) = subject.strip_prefix(&*halves_subject("")) else { return false };
    let is_system = worker.options.accounts.system.as_deref() == Some(&*request.account_name);
    if is_system && let Some(addressed) = far_half::read(&request.payload, node) {
        let Addressed { shard, id, half } = addressed;
        worker.reporter.tell(shard, Control::FarHalf { id, half });
    }
    true
}

/// Parses the parameters of a request, which select and shape the answer.
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

/// Converts a request's parameters into those of the monitoring's pages.
fn query_of(parameters: &Value) -> Vec<(&'static str, String)> {
    /// Pairs of a request's key and the page's.
    const KEYS: [(&str, &str); 28] = [
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
        ("accounts", "accounts"),
        ("streams", "streams"),
        ("direct_consumer", "direct-consumers"),
        ("config", "config"),
        ("raft", "raft"),
        ("stream_leader_only", "stream-leader-only"),
        ("js-enabled", "js-enabled"),
        ("js-enabled-only", "js-enabled-only"),
        ("js-server-only", "js-server-only"),
        ("js-meta-only", "js-meta-only"),
        ("account", "account"),
        ("stream", "stream"),
        ("consumer", "consumer"),
        ("details", "details"),
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
