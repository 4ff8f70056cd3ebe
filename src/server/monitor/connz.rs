//! `/connz` and `/subsz`: the connections and subscriptions one by one.

#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::query::{Detail, Query, Refusal};
use super::{State, text};
use crate::engine::{ConnSnapshot, SubSnapshot};
use crate::subject;

/// Entries in an answer unless the request says otherwise.
const LIMIT: usize = 1024;
/// The one account there is.
const ACCOUNT: &str = "$G";

#[derive(Serialize)]
pub(super) struct Connz<'a> {
    server_id: &'a str,
    now: String,
    num_connections: usize,
    total: usize,
    offset: usize,
    limit: usize,
    connections: Option<Vec<Conn>>,
}

#[derive(Serialize)]
struct Conn {
    cid: u64,
    kind: &'static str,
    #[serde(rename = "type")]
    protocol: &'static str,
    ip: Box<str>,
    port: u16,
    start: String,
    last_activity: String,
    rtt: String,
    uptime: String,
    idle: String,
    pending_bytes: usize,
    in_msgs: u64,
    out_msgs: u64,
    in_bytes: u64,
    out_bytes: u64,
    subscriptions: usize,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: Box<str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    lang: Box<str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    version: Box<str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    authorized_user: Option<Box<str>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    subscriptions_list: Vec<Box<str>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    subscriptions_list_detail: Vec<Sub>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name_tag: Option<&'static str>,
}

#[derive(Serialize)]
struct Sub {
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    account_tag: Option<&'static str>,
    subject: Box<str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    qgroup: Option<Box<str>>,
    sid: Box<str>,
    msgs: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<u64>,
    cid: u64,
}

/// A request for connections.
pub(super) struct ConnRequest<'q> {
    sort: &'q str,
    auth: bool,
    detail: Detail,
    offset: usize,
    limit: usize,
    cid: u64,
    state: ConnState,
    user: &'q str,
    account: &'q str,
}

#[derive(PartialEq, Eq)]
enum ConnState {
    Open,
    Closed,
    Any,
}

impl<'q> ConnRequest<'q> {
    pub(super) fn new(query: &'q Query) -> Result<Self, Refusal> {
        Ok(Self {
            sort: query.text("sort"),
            auth: query.boolean("auth")?,
            detail: query.detail("subs")?,
            offset: query.count("offset")?,
            limit: Some(query.count("limit")?).filter(|limit| *limit > 0).unwrap_or(LIMIT),
            cid: query.number("cid")?,
            state: match query.text("state").to_ascii_lowercase().as_str() {
                "" | "open" => ConnState::Open,
                "closed" => ConnState::Closed,
                "any" | "all" => ConnState::Any,
                _ => {
                    let state = query.text("state");
                    return Err(Refusal(format!("Error decoding state for {state}")));
                }
            },
            user: query.text("user"),
            account: query.text("acc"),
        })
    }

    /// Whether the order asked for exists.
    fn check_order(&self) -> Result<(), Refusal> {
        match self.sort {
            "" | "cid" | "start" | "subs" | "pending" | "msgs_to" | "msgs_from" | "bytes_to"
            | "bytes_from" | "last" | "idle" | "uptime" | "rtt" => Ok(()),
            "stop" | "reason" if self.state == ConnState::Closed => Ok(()),
            by @ ("stop" | "reason") => {
                Err(Refusal(format!("sort by {by} only valid on closed connections")))
            }
            other => Err(Refusal(format!("invalid sorting option: {other}"))),
        }
    }

    /// The largest, latest or, for `idle`, longest idle first, but the oldest connection.
    fn order(&self, conns: &mut [ConnSnapshot]) {
        conns.sort_unstable_by_key(|conn| conn.cid);
        match self.sort {
            "subs" => conns.sort_by_key(|conn| Reverse(conn.subscriptions)),
            "pending" => conns.sort_by_key(|conn| Reverse(conn.pending_bytes)),
            "msgs_to" => conns.sort_by_key(|conn| Reverse(conn.traffic.out_msgs)),
            "msgs_from" => conns.sort_by_key(|conn| Reverse(conn.traffic.in_msgs)),
            "bytes_to" => conns.sort_by_key(|conn| Reverse(conn.traffic.out_bytes)),
            "bytes_from" => conns.sort_by_key(|conn| Reverse(conn.traffic.in_bytes)),
            "last" => conns.sort_by_key(|conn| Reverse(conn.last_active_ns)),
            "idle" => conns.sort_by_key(|conn| conn.last_active_ns),
            "uptime" => conns.sort_by_key(|conn| Reverse(conn.opened_ns)),
            "rtt" => conns.sort_by_key(|conn| Reverse(conn.rtt_ns)),
            _ => {}
        }
    }

    fn wants(&self, conn: &ConnSnapshot) -> bool {
        (self.cid == 0 || self.cid == conn.cid)
            && (self.user.is_empty() || conn.user.as_deref() == Some(self.user))
    }
}

impl<'a> Connz<'a> {
    pub(super) fn new(state: &'a State, request: &ConnRequest<'_>) -> Result<Self, Refusal> {
        request.check_order()?;
        let now = Utc::now();
        if !is_known(request.account) {
            let (server_id, now) = ("", text::time(now));
            let (limit, offset) = (request.limit, request.offset);
            let (num_connections, total) = (0, 0);
            return Ok(Self {
                server_id,
                now,
                num_connections,
                total,
                offset,
                limit,
                connections: None,
            });
        }
        let mut conns = match request.state {
            ConnState::Closed => Vec::new(),
            ConnState::Open | ConnState::Any => state.reporter.conns(),
        };
        let all = conns.len();
        conns.retain(|conn| request.wants(conn));
        let total = if request.user.is_empty() { all } else { conns.len() };
        request.order(&mut conns);
        let limit = if request.cid == 0 { request.limit } else { 1 };
        let shown = conns.into_iter().skip(request.offset).take(limit);
        let origin = state.reporter.started_at();
        let mut conns: Vec<Conn> =
            shown.map(|conn| Conn::new(conn, request.auth, origin, now)).collect();
        if request.detail != Detail::None {
            add_subscriptions(state, &mut conns, request.detail);
        }
        Ok(Self {
            server_id: &state.identity.id,
            now: text::time(now),
            num_connections: conns.len(),
            total,
            offset: request.offset,
            limit,
            connections: Some(conns),
        })
    }
}

/// Whether there is an account of that name; none is all.
fn is_known(account: &str) -> bool {
    account.is_empty() || account == ACCOUNT
}

impl Conn {
    fn new(conn: ConnSnapshot, auth: bool, origin: DateTime<Utc>, now: DateTime<Utc>) -> Self {
        let opened = text::after(origin, conn.opened_ns);
        let last_active = text::after(origin, conn.last_active_ns);
        Self {
            cid: conn.cid,
            kind: "Client",
            protocol: "nats",
            ip: conn.ip,
            port: conn.port,
            start: text::time(opened),
            last_activity: text::time(last_active),
            rtt: text::round_trip(conn.rtt_ns),
            uptime: text::between(opened, now),
            idle: text::between(last_active, now),
            pending_bytes: conn.pending_bytes,
            in_msgs: conn.traffic.in_msgs,
            out_msgs: conn.traffic.out_msgs,
            in_bytes: conn.traffic.in_bytes,
            out_bytes: conn.traffic.out_bytes,
            subscriptions: conn.subscriptions,
            name: conn.name,
            lang: conn.lang,
            version: conn.version,
            authorized_user: conn.user.filter(|_| auth),
            subscriptions_list: Vec::new(),
            subscriptions_list_detail: Vec::new(),
            name_tag: auth.then_some(ACCOUNT),
        }
    }
}

impl Sub {
    fn new(sub: SubSnapshot) -> Self {
        Self {
            account: None,
            account_tag: None,
            subject: sub.subject,
            qgroup: sub.queue,
            sid: sub.sid,
            msgs: sub.msgs,
            max: sub.max,
            cid: sub.cid,
        }
    }
}

fn add_subscriptions(state: &State, conns: &mut [Conn], detail: Detail) {
    let mut by_cid: HashMap<u64, &mut Conn> =
        conns.iter_mut().map(|conn| (conn.cid, conn)).collect();
    state.reporter.subs(|sub| {
        let Some(conn) = by_cid.get_mut(&sub.cid) else { return };
        if detail == Detail::All {
            conn.subscriptions_list_detail.push(Sub::new(sub));
        } else {
            conn.subscriptions_list.push(sub.subject);
        }
    });
}

#[derive(Serialize, Default)]
pub(super) struct Subsz<'a> {
    server_id: &'a str,
    now: String,
    num_subscriptions: usize,
    num_cache: usize,
    num_inserts: u64,
    num_removes: u64,
    num_matches: u64,
    cache_hit_rate: f64,
    max_fanout: u64,
    avg_fanout: f64,
    total: usize,
    offset: usize,
    limit: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    subscriptions_list: Vec<Sub>,
}

impl<'a> Subsz<'a> {
    pub(super) fn new(state: &'a State, query: &Query) -> Result<Self, Refusal> {
        let listed = query.boolean("subs")?;
        let offset = query.count("offset")?;
        let limit = Some(query.count("limit")?).filter(|limit| *limit > 0).unwrap_or(LIMIT);
        let (test, account) = (query.text("test"), query.text("acc"));
        if !test.is_empty() && !subject::is_valid_publish(test.as_bytes()) {
            let reason = format!("invalid test subject, must be valid publish subject: {test}");
            return Err(Refusal(reason));
        }
        let mut subsz = Self {
            server_id: &state.identity.id,
            now: text::time(Utc::now()),
            offset,
            limit,
            ..Self::default()
        };
        if !is_known(account) {
            return Ok(subsz);
        }
        for report in state.reporter.report() {
            subsz.num_subscriptions += report.subscriptions;
            subsz.num_cache += report.cached_subjects;
        }
        if listed {
            state.reporter.subs(|sub| subsz.add(sub, test));
        }
        Ok(subsz)
    }

    fn add(&mut self, sub: SubSnapshot, test: &str) {
        if !test.is_empty() && !subject::matches(sub.subject.as_bytes(), test.as_bytes()) {
            return;
        }
        self.total += 1;
        if self.total > self.offset && self.subscriptions_list.len() < self.limit {
            let (account, account_tag) = (Some(ACCOUNT), Some(ACCOUNT));
            self.subscriptions_list.push(Sub { account, account_tag, ..Sub::new(sub) });
        }
    }
}
