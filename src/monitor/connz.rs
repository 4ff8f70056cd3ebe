//! `/connz`: connections one by one, open and closed.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::query::{BadQuery, Detail, Query};
use super::{MonitorState, text};
use crate::auth::certificate;
use crate::config::accounts::GLOBAL;
use crate::engine::{self, ClosedConn, ConnSnapshot, Credentials, SubSnapshot, Transport};
use crate::subject;

/// Entries in an answer by default.
pub(super) const LIMIT: usize = 1024;

#[derive(Serialize)]
pub(super) struct Connz<'a> {
    server_id: &'a str,
    now: String,
    num_connections: usize,
    total: usize,
    offset: usize,
    limit: usize,
    connections: Option<Vec<ConnInfo>>,
}

#[derive(Serialize)]
struct ConnInfo {
    cid: u64,
    kind: &'static str,
    #[serde(rename = "type")]
    protocol: &'static str,
    /// The client's address; for a Unix socket, its path.
    ip: Box<str>,
    port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    unix_peer: Option<UnixPeer>,
    start: String,
    last_activity: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    rtt: String,
    uptime: String,
    idle: String,
    pending_bytes: usize,
    in_msgs: u64,
    out_msgs: u64,
    in_bytes: u64,
    out_bytes: u64,
    #[serde(skip_serializing_if = "is_zero")]
    stalls: u64,
    /// Messages missed on subjects with an overflow policy; a field that nats-server does not have.
    #[serde(skip_serializing_if = "Option::is_none")]
    dropped: Option<DroppedMsgs>,
    subscriptions: usize,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: Box<str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    mqtt_client: Box<str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    lang: Box<str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    version: Box<str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_version: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_cipher_suite: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tls_peer_certs: Vec<PeerCert>,
    #[serde(skip_serializing_if = "Option::is_none")]
    authorized_user: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    subscriptions_list: Vec<Box<str>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    subscriptions_list_detail: Vec<SubDetail>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jwt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    issuer_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name_tag: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
}

/// Messages that a slow client has missed, by policy.
#[derive(Serialize)]
struct DroppedMsgs {
    drop_newest: u64,
    drop_oldest: u64,
    conflate: u64,
}

impl DroppedMsgs {
    /// Returns `None` if the client has missed nothing.
    fn new(dropped: engine::Dropped) -> Option<Self> {
        let engine::Dropped { newest, oldest, conflated } = dropped;
        (dropped != engine::Dropped::default()).then_some(Self {
            drop_newest: newest,
            drop_oldest: oldest,
            conflate: conflated,
        })
    }
}

/// The process at the other end of a Unix socket.
#[derive(Serialize)]
struct UnixPeer {
    pid: u32,
    uid: u32,
    gid: u32,
}

impl UnixPeer {
    fn of(transport: Transport) -> Option<Self> {
        let Transport::Unix(Credentials { pid, uid, gid }) = transport else { return None };
        Some(Self { pid, uid, gid })
    }
}

/// A certificate that a client has presented.
#[derive(Serialize)]
struct PeerCert {
    subject: String,
    spki_sha256: String,
    cert_sha256: String,
}

impl PeerCert {
    fn new(shown: &certificate::Shown) -> Self {
        let certificate::Shown { subject, key_sha256, sha256 } = shown.clone();
        Self { subject, spki_sha256: key_sha256, cert_sha256: sha256 }
    }
}

/// A subscription as pages show it.
#[derive(Serialize)]
pub(super) struct SubDetail {
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    account_tag: Option<String>,
    subject: Box<str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    qgroup: Option<Box<str>>,
    sid: Box<str>,
    msgs: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<u64>,
    cid: u64,
}

/// Parameters of a request for connections.
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
    mqtt_client: &'q str,
    filter_subject: &'q str,
}

#[derive(PartialEq, Eq)]
enum ConnState {
    Open,
    Closed,
    Any,
}

/// A connection that the request selects.
struct Found {
    conn: ConnSnapshot,
    end: Option<ConnEnd>,
}

/// The end of a connection.
struct ConnEnd {
    at_ns: u64,
    reason: &'static str,
    subs: Vec<SubSnapshot>,
}

impl<'q> ConnRequest<'q> {
    pub(super) fn new(query: &'q Query) -> Result<Self, BadQuery> {
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
                    return Err(BadQuery(format!("Error decoding state for {state}")));
                }
            },
            user: query.text("user"),
            account: query.text("acc"),
            mqtt_client: query.text("mqtt_client"),
            filter_subject: query.text("filter_subject"),
        })
    }

    /// Checks that the order asked for exists.
    fn check_order(&self) -> Result<(), BadQuery> {
        match self.sort {
            "" | "cid" | "start" | "subs" | "pending" | "msgs_to" | "msgs_from" | "bytes_to"
            | "bytes_from" | "last" | "idle" | "uptime" | "rtt" => Ok(()),
            "stop" | "reason" if self.state == ConnState::Closed => Ok(()),
            by @ ("stop" | "reason") => {
                Err(BadQuery(format!("sort by {by} only valid on closed connections")))
            }
            other => Err(BadQuery(format!("invalid sorting option: {other}"))),
        }
    }

    /// Sorts connections: by start, the oldest first; by idle time, the longest first; by uptime,
    /// the shortest first; by others, the largest or latest first. `now_ns` is on the clock of the
    /// snapshots.
    fn order(&self, found: &mut [Found], now_ns: u64) {
        let by_number = |found: &mut [Found], key: fn(&ConnSnapshot) -> u64| {
            found.sort_by_key(|found| Reverse(key(&found.conn)));
        };
        found.sort_unstable_by_key(|found| found.conn.cid);
        match self.sort {
            "start" => found.sort_by_key(|found| found.conn.opened_ns),
            "subs" => by_number(found, |conn| conn.subscriptions as u64),
            "pending" => by_number(found, |conn| conn.pending_bytes as u64),
            "msgs_to" => by_number(found, |conn| conn.traffic.out_msgs),
            "msgs_from" => by_number(found, |conn| conn.traffic.in_msgs),
            "bytes_to" => by_number(found, |conn| conn.traffic.out_bytes),
            "bytes_from" => by_number(found, |conn| conn.traffic.in_bytes),
            "last" => by_number(found, |conn| conn.last_active_ns),
            "rtt" => by_number(found, |conn| conn.rtt_ns),
            "idle" => found.sort_by_key(|found| found.conn.last_active_ns),
            "uptime" => {
                let until = |found: &Found| found.end.as_ref().map_or(now_ns, |end| end.at_ns);
                found.sort_by_key(|found| until(found).saturating_sub(found.conn.opened_ns));
            }
            "stop" => found.sort_by_key(|found| Reverse(found.end.as_ref().map(|end| end.at_ns))),
            "reason" => found.sort_by_key(|found| found.end.as_ref().map(|end| end.reason)),
            _ => {}
        }
    }

    fn wants_account(&self, conn: &ConnSnapshot) -> bool {
        self.account.is_empty() || *conn.account == *self.account
    }

    fn wants(&self, conn: &ConnSnapshot) -> bool {
        (self.cid == 0 || self.cid == conn.cid)
            && (self.user.is_empty() || conn.user.as_deref() == Some(self.user))
            && (self.mqtt_client.is_empty()
                || (conn.transport.is_mqtt() && *conn.name == *self.mqtt_client))
    }

    /// Whether a subscription to `filter` could receive messages on the subject asked for.
    fn wants_filter(&self, filter: &str) -> bool {
        subject::overlap(filter.as_bytes(), self.filter_subject.as_bytes())
    }

    /// Retains connections with a subscription that could receive messages on the subject asked
    /// for.
    fn retain_interested(&self, state: &MonitorState, found: &mut Vec<Found>) {
        if self.filter_subject.is_empty() {
            return;
        }
        let mut interested = HashSet::new();
        if self.state != ConnState::Closed {
            state.reporter.subs(|sub| {
                if self.wants_filter(&sub.subject) {
                    interested.insert(sub.cid);
                }
            });
        }
        found.retain(|Found { conn, end }| match end {
            Some(end) => end.subs.iter().any(|sub| self.wants_filter(&sub.subject)),
            None => interested.contains(&conn.cid),
        });
    }

    fn find(&self, state: &MonitorState) -> Vec<Found> {
        let mut found = Vec::new();
        if self.state != ConnState::Open {
            let mut closed = state.reporter.closed();
            closed.sort_unstable_by_key(|closed| Reverse(closed.stopped_ns));
            closed.truncate(state.options.monitoring.closed_conns_max);
            found.extend(closed.into_iter().map(Found::from));
        }
        if self.state != ConnState::Closed {
            let open = state.reporter.conns().into_iter();
            // A connection that has just ended may be found twice.
            let ended: HashSet<u64> = found.iter().map(|found| found.conn.cid).collect();
            let open = open.filter(|conn| !ended.contains(&conn.cid));
            found.extend(open.map(|conn| Found { conn, end: None }));
        }
        found
    }
}

impl From<ClosedConn> for Found {
    fn from(closed: ClosedConn) -> Self {
        let ClosedConn { conn, stopped_ns, reason, subs } = closed;
        Self { conn, end: Some(ConnEnd { at_ns: stopped_ns, reason: reason.text(), subs }) }
    }
}

impl<'a> Connz<'a> {
    pub(super) fn new(
        state: &'a MonitorState,
        request: &ConnRequest<'_>,
    ) -> Result<Self, BadQuery> {
        request.check_order()?;
        let now = Utc::now();
        let limit = if request.cid == 0 { request.limit } else { 1 };
        let mut connz = Self {
            server_id: "",
            now: text::time(now),
            num_connections: 0,
            total: 0,
            offset: request.offset,
            limit,
            connections: None,
        };
        if !is_known(state, request.account) {
            return Ok(connz);
        }
        connz.server_id = &state.identity.id;
        let origin = state.reporter.started_at();
        let mut found = request.find(state);
        // The total is that of the account; other filters do not change it.
        found.retain(|found| request.wants_account(&found.conn));
        connz.total = found.len();
        found.retain(|found| request.wants(&found.conn));
        request.retain_interested(state, &mut found);
        request.order(&mut found, text::ns_between(origin, now));
        let shown = found.into_iter().skip(request.offset).take(limit);
        let mut conns: Vec<ConnInfo> =
            shown.map(|found| ConnInfo::new(found, request, state, now)).collect();
        if request.detail != Detail::None {
            add_subscriptions(state, &mut conns, request.detail);
        }
        connz.num_connections = conns.len();
        connz.connections = Some(conns);
        Ok(connz)
    }
}

/// Whether an account of that name exists; an empty name stands for all accounts.
pub(super) fn is_known(state: &MonitorState, account: &str) -> bool {
    account.is_empty() || state.options.accounts.get(account).is_some()
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl ConnInfo {
    fn new(
        found: Found,
        request: &ConnRequest<'_>,
        state: &MonitorState,
        now: DateTime<Utc>,
    ) -> Self {
        let Found { conn, end } = found;
        let origin = state.reporter.started_at();
        let opened = text::after(origin, conn.opened_ns);
        let last_active = text::after(origin, conn.last_active_ns);
        let stop = end.as_ref().map(|end| text::after(origin, end.at_ns));
        let until = stop.unwrap_or(now);
        // As in nats-server, an account is only shown for open connections.
        let has_tag = request.auth && end.is_none();
        let name_tag = has_tag.then(|| state.options.account_label(&conn.account).to_owned());
        // The credentials are shown for all closed connections.
        let token = conn.token.as_deref().filter(|_| request.auth || end.is_some());
        let has_nkey = conn.has_nkey && (request.auth || end.is_some());
        let nkeys_issuer = || has_nkey.then(|| conn.account.to_string());
        let issuer_key = token.map(|token| token.issuer.clone()).or_else(nkeys_issuer);
        let account = Some(conn.account).filter(|name| request.auth && **name != *GLOBAL);
        let tls = conn.tls.as_deref();
        let certs = tls.filter(|_| request.auth).map_or(&[][..], |tls| &tls.peer_certs);
        let reason = end.as_ref().map(|end| end.reason);
        let (name, mqtt_client) = names_of(conn.transport, conn.name);
        let subs = end.map_or(Vec::new(), |end| end.subs);
        let (mut subscriptions_list, mut subscriptions_list_detail) = (Vec::new(), Vec::new());
        match request.detail {
            Detail::None => {}
            Detail::Subjects => subscriptions_list.extend(subs.into_iter().map(|sub| sub.subject)),
            Detail::All => {
                let subs = subs.into_iter().map(|sub| SubDetail::with_account(sub, state));
                subscriptions_list_detail.extend(subs);
            }
        }
        Self {
            cid: conn.cid,
            kind: "Client",
            protocol: match conn.transport {
                Transport::WebSocket | Transport::LeafWebSocket => "websocket",
                Transport::Tcp | Transport::Unix(_) | Transport::Leaf => "nats",
                Transport::Mqtt | Transport::MqttWebSocket => "mqtt",
            },
            ip: conn.ip,
            port: conn.port,
            unix_peer: UnixPeer::of(conn.transport),
            start: text::time(opened),
            last_activity: text::time(last_active),
            stop: stop.map(text::time),
            reason,
            rtt: text::round_trip(conn.rtt_ns),
            uptime: text::between(opened, until),
            idle: text::between(last_active, until),
            pending_bytes: conn.pending_bytes,
            in_msgs: conn.traffic.in_msgs,
            out_msgs: conn.traffic.out_msgs,
            in_bytes: conn.traffic.in_bytes,
            out_bytes: conn.traffic.out_bytes,
            stalls: conn.stalls,
            dropped: DroppedMsgs::new(conn.dropped),
            subscriptions: conn.subscriptions,
            name,
            mqtt_client,
            lang: conn.lang,
            version: conn.version,
            tls_version: tls.map(|tls| tls.version),
            tls_cipher_suite: tls.map(|tls| tls.cipher_suite.clone()),
            tls_peer_certs: certs.iter().map(PeerCert::new).collect(),
            authorized_user: conn.user.filter(|_| request.auth),
            account,
            subscriptions_list,
            subscriptions_list_detail,
            jwt: token.and_then(|token| token.text.clone()),
            issuer_key,
            name_tag,
            tags: token.map_or(Vec::new(), |token| token.tags.clone()),
        }
    }
}

impl SubDetail {
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

    pub(super) fn with_account(sub: SubSnapshot, state: &MonitorState) -> Self {
        let account = Some(Arc::clone(&sub.account));
        let account_tag = Some(state.options.account_label(&sub.account).to_owned());
        Self { account, account_tag, ..Self::new(sub) }
    }
}

/// Returns a client's name, and its id if it is one of MQTT, which has no name.
fn names_of(transport: Transport, name: Box<str>) -> (Box<str>, Box<str>) {
    if transport.is_mqtt() { (Box::default(), name) } else { (name, Box::default()) }
}

/// Adds subscriptions to open connections; closed ones have theirs.
fn add_subscriptions(state: &MonitorState, conns: &mut [ConnInfo], detail: Detail) {
    let open = conns.iter_mut().filter(|conn| conn.stop.is_none());
    let mut by_cid: HashMap<u64, &mut ConnInfo> = open.map(|conn| (conn.cid, conn)).collect();
    if by_cid.is_empty() {
        return;
    }
    state.reporter.subs(|sub| {
        let Some(conn) = by_cid.get_mut(&sub.cid) else { return };
        if detail == Detail::All {
            conn.subscriptions_list_detail.push(SubDetail::new(sub));
        } else {
            conn.subscriptions_list.push(sub.subject);
        }
    });
}
