//! `/routez`: the routes one by one.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::query::{Detail, Query, Refusal};
use super::{State, text};
use crate::engine::RouteSnapshot;

#[derive(Serialize)]
pub(super) struct Routez<'a> {
    server_id: &'a str,
    server_name: &'a str,
    now: String,
    num_routes: usize,
    routes: Vec<Route>,
}

#[derive(Serialize)]
struct Route {
    rid: u64,
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
    subscriptions_list_detail: Vec<Sub>,
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<Box<str>>,
    compression: &'static str,
}

/// What the server behind a route wants.
#[derive(Serialize)]
struct Sub {
    account: String,
    subject: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    qgroup: Option<String>,
    sid: &'static str,
    msgs: u64,
    cid: u64,
}

impl<'a> Routez<'a> {
    pub(super) fn new(state: &'a State, query: &Query) -> Result<Self, Refusal> {
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

fn shown(state: &State, route: RouteSnapshot, detail: Detail, now: DateTime<Utc>) -> Route {
    let zero = state.reporter.started_at();
    let (start, last) =
        (text::after(zero, route.opened_ns), text::after(zero, route.last_active_ns));
    let account = route.account.as_deref();
    let subs = route.wishes.iter().map(|wish| sub(account, wish, route.rid)).collect::<Vec<_>>();
    let configured = &state.options.cluster.routes;
    let (list, details) = match detail {
        Detail::All => (Vec::new(), subs),
        _ => (subs.into_iter().map(|sub| sub.subject).collect(), Vec::new()),
    };
    Route {
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

/// Takes apart what a peer has written: account, unless the route is for that one, subject and
/// perhaps a queue group.
fn sub(account: Option<&str>, wish: &[u8], cid: u64) -> Sub {
    let text = String::from_utf8_lossy(wish);
    let mut words = account.into_iter().chain(text.split_whitespace()).map(str::to_owned);
    Sub {
        account: words.next().unwrap_or_default(),
        subject: words.next().unwrap_or_default(),
        qgroup: words.next(),
        sid: "",
        msgs: 0,
        cid,
    }
}
