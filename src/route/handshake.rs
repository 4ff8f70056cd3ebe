//! The beginning of a route: CONNECT and INFO of both servers, agreement on the cluster's name, on
//! compression, and on the place of the connection in the pool.

use crate::auth::Secret;
use crate::auth::credential_check::CredentialCheck;
use crate::cluster::PoolPart;
use crate::cluster::names::{Agreement, ClusterName};
use crate::core::Core;
use crate::core::close::Reason;
use crate::core::input::Held;
use crate::core::outputs::Output;
use crate::core::timers::Deadline;
use crate::interest::ids::{ConnId, ServerKey};
use crate::link::gateways::GatewayNotice;
use crate::link::{Link, RouteNotice, Stage};
use crate::proto::encode;
use crate::proto::gateway::{GOSSIP, GatewayInfo};
use crate::proto::route::{self as wire, RouteConnect, RouteInfo};
use crate::route::{self, INTRODUCTION_NS, NO_DEDICATED};
use crate::transport;

pub(crate) fn on_route_connect(core: &mut Core, id: ConnId, json: &[u8]) {
    let connect: RouteConnect = match wire::read(json) {
        Some(connect) if route::stage_of(core, id) == Stage::Connect => connect,
        _ => return core.fail(id, None, Reason::Protocol("Protocol Violation")),
    };
    if !connect.lang.is_empty() {
        return route::refuse_route(core, id, "attempted to connect to route port");
    }
    if connect.cluster == wire::NO_CLUSTER {
        let name = encode::go_quoted(connect.cluster.as_bytes());
        let error = format!("Rejecting connection, cluster name {name} is reserved");
        return route::refuse_route(core, id, &error);
    }
    if !connect.gateway.is_empty() {
        let gateway = encode::go_quoted(connect.gateway.as_bytes());
        let error = format!("Rejecting connection from gateway {gateway} on the Route port");
        return route::refuse_route(core, id, &error);
    }
    if let (Some(user), Some(secret)) = (&core.settings.route.user, &core.settings.route.pass) {
        let is_user = *user == connect.user;
        if is_user && secret.is_bcrypt() {
            let check =
                CredentialCheck::Password { secret: secret.clone(), given: connect.pass.clone() };
            core.hold(id, Held::Check);
            core.out.push(Output::Check(id, Box::new(check)));
        } else if !is_user || !secret.matches(&connect.pass) {
            return route::refuse_route(core, id, "Authorization Violation");
        }
    }
    if !agree_on_name(core, id, &connect.cluster, connect.dynamic) {
        let (own, theirs) = (core.links.name.as_deref().unwrap_or_default(), &connect.cluster);
        let error = format!(
            "Rejecting connection, cluster name {} does not match {}",
            encode::go_quoted(theirs.as_bytes()),
            encode::go_quoted(own.as_bytes())
        );
        return route::refuse_route(core, id, &error);
    }
    let due = core.times.now.saturating_add(INTRODUCTION_NS);
    if let Some(conn) = core.conns.get_mut(id)
        && let Some(link) = &mut conn.link
    {
        (link.peer.lnocu, link.peer.ln) = (false, connect.ln);
        conn.connect.echo = connect.echo;
        link.login = Some((connect.user, Secret::new(connect.pass)));
        link.stage = Stage::Info;
        conn.deadlines.arm(Deadline::Login, due);
    }
    core.rearm(id);
}

/// Agrees on the cluster's name, and takes over the peer's where it must; `false` if the two
/// servers cannot be of one cluster.
fn agree_on_name(core: &mut Core, id: ConnId, theirs: &str, is_dynamic: bool) -> bool {
    let name = core.links.name.as_deref().unwrap_or_default();
    let own = ClusterName { name, is_dynamic: core.links.is_dynamic };
    match own.agree(ClusterName { name: theirs, is_dynamic }) {
        Agreement::Keep => true,
        Agreement::Refuse => false,
        Agreement::Adopt => {
            let Some(conn) = core.conns.get(id) else { return false };
            let Some(link) = &conn.link else { return false };
            tracing::info!("{} - Cluster name updated to {theirs}", conn.label());
            let (rid, name) = (link.rid, theirs.to_owned());
            let notice = RouteNotice::Named { rid, name, is_dynamic };
            route::name_cluster(core, theirs, is_dynamic);
            core.out.notify(notice);
            true
        }
    }
}

/// Takes the permissions of a registered peer, which may be others now.
fn take_permissions(link: &mut Link, info: &RouteInfo) {
    let is_peer = info.server_id == link.peer.server_id;
    let was = (link.peer.import.take(), link.peer.export.take());
    let is = if is_peer { (info.import.clone(), info.export.clone()) } else { was.clone() };
    (link.peer.import, link.peer.export) = is.clone();
    // The peer may take interest now that it did not take before; a repeated filter makes no
    // difference.
    link.route_mut().into_iter().for_each(|route| route.is_to_be_told = was != is);
}

pub(crate) fn on_route_info(core: &mut Core, id: ConnId, json: &[u8]) {
    let Some(info) = wire::read::<RouteInfo>(json) else {
        return core.fail(id, None, Reason::Protocol("Protocol Violation"));
    };
    let Some(conn) = core.conns.get_mut(id) else { return };
    let label = conn.label();
    let Some(link) = &mut conn.link else { return };
    let rid = link.rid;
    if link.stage == Stage::Registered && info.gateway_cmd > 0 {
        return on_gossip_of_gateway(core, id, rid, info);
    }
    if link.stage == Stage::Registered {
        take_permissions(link, &info);
        core.out.notify(RouteNotice::Heard { rid, info: Box::new(info) });
        return core.hold(id, Held::Peer);
    }
    let own = &core.settings.route.info;
    let is_dialed = link.dialed.is_some();
    let reason = if info.server_id == own.server_id {
        tracing::debug!("{label} - route to core");
        let ended = RouteNotice::Ended { rid, is_self: true };
        link.stage = Stage::Ended;
        core.out.notify(ended);
        "Duplicate Route"
    } else if info.client_id != 0 {
        tracing::error!(
            "{label} - attempted to connect to a client port; routes need that of the cluster"
        );
        "Wrong Port"
    } else if info.server_id.is_empty() {
        "Protocol Violation"
    } else if let Some(error) = (!is_dialed).then(|| misplaced(core, &info)).flatten() {
        return route::refuse_route(core, id, &error);
    } else if !is_dialed && info.server_name == own.server_name {
        tracing::error!("{label} - Remote server has a duplicate name: {:?}", info.server_name);
        "Duplicate Server Name"
    } else if info.cluster == wire::NO_CLUSTER {
        "Cluster Name Conflict"
    } else if !info.cluster.is_empty()
        && !agree_on_name(core, id, &info.cluster, info.cluster_dynamic)
    {
        tracing::error!(
            "{label} - Rejecting connection, cluster name {:?} does not match {:?}",
            info.cluster,
            core.links.name.as_deref().unwrap_or_default()
        );
        "Cluster Name Conflict"
    } else {
        ""
    };
    if !reason.is_empty() {
        return core.fail(id, None, Reason::Protocol(reason));
    }
    if begins_packing(core, id, &info.compression) {
        return;
    }
    // The next step is not the peer's.
    let due = core.times.now.saturating_add(route::stale_ns(core));
    let Some(conn) = core.conns.get_mut(id) else { return };
    conn.deadlines.arm(Deadline::Login, due);
    let ip = conn.peer.ip.clone();
    // A peer that has dialled has said so in CONNECT; one that was dialled says nothing, and a
    // shardcast server wants none.
    conn.connect.echo &= !info.shardcast;
    if let Some(link) = &mut conn.link {
        link.headers = info.headers && core.settings.headers;
        link.server = ServerKey::of(&info.server_id);
        link.peer = info.clone();
    }
    core.hold(id, Held::Peer);
    let info = Box::new(info);
    core.out.notify(RouteNotice::Greeted { rid, info, ip });
}

/// Takes the announcement of another cluster by a member.
fn on_gossip_of_gateway(core: &mut Core, id: ConnId, route: u64, info: RouteInfo) {
    if core.settings.gateway.is_none() || info.gateway_cmd != GOSSIP {
        return;
    }
    let about = GatewayInfo {
        gateway: info.gateway,
        gateway_urls: info.gateway_urls,
        gateway_cmd: info.gateway_cmd,
        ..GatewayInfo::default()
    };
    core.out.notify_of_gateway(GatewayNotice::Gossip { route, info: Box::new(about) });
    core.hold(id, Held::Peer);
}

/// Returns the error about the place among the connections that the dialling server wants, if there
/// is one.
fn misplaced(core: &Core, info: &RouteInfo) -> Option<String> {
    let pooling = &core.settings.route.pooling;
    let (account, index) = (&info.route_account, info.route_pool_idx);
    let size = pooling.size_with(info.route_pool_size);
    if !account.is_empty() {
        let name = encode::go_quoted(account.as_bytes());
        return match (core.accounts.find(account.as_bytes()), size) {
            (None, _) => Some(format!("Unable to lookup account {name}: account missing")),
            (_, 0) => Some(format!("{NO_DEDICATED} for account {name} between those servers")),
            _ if pooling.is_dedicated(account) => None,
            _ => Some(format!("No route for account {name}")),
        };
    }
    match u16::try_from(index) {
        // Without a pool there are no places in it.
        _ if size == 0 => None,
        Ok(at) if at < size => None,
        _ => Some(format!("Invalid route pool index: {index} - pool size is {size}")),
    }
}

/// Compresses the route from here on, if its peer and this server want that: INFO is sent again
/// then. Also `true` if the route ends here.
fn begins_packing(core: &mut Core, id: ConnId, theirs: &str) -> bool {
    let Some(conn) = core.conns.get_mut(id) else { return true };
    let Some(link) = &mut conn.link else { return true };
    if link.offered.is_some() {
        return false;
    }
    link.offered = Some(theirs.to_owned());
    let login = link.dialed.clone();
    let Ok(agreed) = transport::negotiate(&core.settings.route.compression, theirs) else {
        let mode = encode::go_quoted(theirs.as_bytes());
        route::refuse_route(core, id, &format!("unsupported route compression mode {mode}"));
        return true;
    };
    let Some(mode) = agreed else { return false };
    let mut head = Vec::new();
    if let Some(login) = &login {
        wire::connect(&mut head, &route_connect(core, login.clone()));
        let info = RouteInfo { compression: mode.name().to_owned(), ..route_info(core) };
        wire::info(&mut head, &info);
    }
    core.begin_s2(id, mode, head);
    if login.is_none() {
        send_route_info(core, id);
    }
    true
}

fn route_connect(core: &Core, login: Option<(String, Secret)>) -> RouteConnect {
    let (user, pass) = match login {
        Some((user, pass)) => (user, pass.revealed().to_owned()),
        None => Default::default(),
    };
    RouteConnect {
        echo: false,
        headers: core.settings.headers,
        tls_required: core.settings.route.info.tls_required,
        user,
        pass,
        name: core.settings.route.info.server_id.clone(),
        cluster: core.links.name.clone().unwrap_or_default(),
        dynamic: core.links.is_dynamic,
        lnoc: true,
        ln: true,
        ..RouteConnect::default()
    }
}

pub(crate) fn send_route_connect(core: &mut Core, id: ConnId, login: Option<(String, Secret)>) {
    let connect = route_connect(core, login);
    let Some(conn) = core.conns.get_mut(id) else { return };
    // Not through the traced log, which would show the password.
    conn.outbox.push(&mut core.spares, |out| wire::connect(out, &connect));
    core.flush_soon(id);
}

/// Returns the INFO of this server for any route.
fn route_info(core: &Core) -> RouteInfo {
    let mut info = core.settings.route.info.clone();
    info.cluster = core.links.name.clone().unwrap_or_default();
    info.cluster_dynamic = core.links.is_dynamic;
    info.ldm = core.endings.lame_duck.is_some();
    info
}

pub(crate) fn send_route_info(core: &mut Core, id: ConnId) {
    let Some(conn) = core.conns.get(id) else { return };
    let mut info = route_info(core);
    info.nonce = core.settings.nonce(conn.peer.cid);
    if let Some(mode) = conn.layers.compression() {
        info.compression = mode.name().to_owned();
    }
    // The dialling server chooses the part that the connection carries.
    let dialed = conn.link.as_ref().filter(|link| link.dialed.is_some());
    match dialed.and_then(|link| link.part()) {
        Some(PoolPart::Pool(index)) => info.route_pool_idx = (*index).into(),
        Some(PoolPart::Account(name)) => info.route_account = (**name).into(),
        Some(PoolPart::All) | None => {}
    }
    core.reply(id, |out| wire::info(out, &info));
}
