//! `/routez`: routes one by one.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::query::{BadQuery, Detail, Query};
use super::{MonitorState, text};
use crate::engine::RouteSnapshot;

#[derive(Serialize)]
pub(super) struct Routez<'a> {
    server_id: &'a str,
    server_name: &'a str,
    now: String,
    num_routes: usize,
    routes: Vec<RouteDetail>,
}

#[derive(Serialize)]
struct RouteDetail {
    pub(crate) rid: u64,
    remote_id: String,
    remote_name: String,
    did_solicit: bool,
    is_configured: bool,
    ip: Box<str>,
    port: u16,
    start: String,
    last_activity: String,
    rtt: String,
    uptime: String,
    idle: String,
    pending_size: usize,
    in_msgs: u64,
    out_msgs: u64,
    in_bytes: u64,
    out_bytes: u64,
    subscriptions: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    subscriptions_list: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    subscriptions_list_detail: Vec<RouteSub>,
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<Box<str>>,
    compression: &'static str,
}

/// A subscription of the server behind a route.
#[derive(Serialize)]
struct RouteSub {
    account: String,
    subject: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    qgroup: Option<String>,
    sid: &'static str,
    msgs: u64,
    cid: u64,
}

impl<'a> Routez<'a> {
    pub(super) fn new(state: &'a MonitorState, query: &Query) -> Result<Self, BadQuery> {
        let detail = query.detail("subs")?;
        let now = Utc::now();
        let routes = state.reporter.routes(detail != Detail::None);
        Ok(Self {
            server_id: &state.identity.id,
            server_name: &state.identity.name,
            now: text::time(now),
            num_routes: routes.len(),
            routes: routes.into_iter().map(|route| shown(state, route, detail, now)).collect(),
        })
    }
}

fn shown(
    state: &MonitorState,
    route: RouteSnapshot,
    detail: Detail,
    now: DateTime<Utc>,
) -> RouteDetail {
    let zero = state.reporter.started_at();
    let (start, last) =
        (text::after(zero, route.opened_ns), text::after(zero, route.last_active_ns));
    let account = route.account.as_deref();
    let subs =
        route.interest.iter().map(|entry| sub(account, entry, route.rid)).collect::<Vec<_>>();
    let configured = &state.options.cluster.routes;
    let (list, details) = match detail {
        Detail::All => (Vec::new(), subs),
        _ => (subs.into_iter().map(|sub| sub.subject).collect(), Vec::new()),
    };
    RouteDetail {
        rid: route.rid,
        remote_id: route.remote_id,
        remote_name: route.remote_name,
        did_solicit: route.did_solicit,
        is_configured: route.did_solicit && configured.iter().any(|url| url.port == route.port),
        ip: route.ip,
        port: route.port,
        start: text::time(start),
        last_activity: text::time(last),
        rtt: text::round_trip(route.rtt_ns),
        uptime: text::between(start, now),
        idle: text::between(last, now),
        pending_size: route.pending_bytes,
        in_msgs: route.traffic.in_msgs,
        out_msgs: route.traffic.out_msgs,
        in_bytes: route.traffic.in_bytes,
        out_bytes: route.traffic.out_bytes,
        subscriptions: route.subscriptions,
        subscriptions_list: list,
        subscriptions_list_detail: details,
        account: route.account,
        compression: route.compression,
    }
}

/// Splits a peer's interest into account, unless the route is for one account, subject and optional
/// queue group.
fn sub(account: Option<&str>, entry: &[u8], cid: u64) -> RouteSub {
    let text = String::from_utf8_lossy(entry);
    let mut words = account.into_iter().chain(text.split_whitespace()).map(str::to_owned);
    RouteSub {
        account: words.next().unwrap_or_default(),
        subject: words.next().unwrap_or_default(),
        qgroup: words.next(),
        sid: "",
        msgs: 0,
        cid,
    }
}
