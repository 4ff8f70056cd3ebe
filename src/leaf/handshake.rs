//! The beginning of a leaf connection: INFO, CONNECT with the login, and INFO again with the
//! account that was bound.

use std::rc::Rc;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::auth::grants::Lists;
use crate::auth::user::User;
use crate::client::login;
use crate::cluster::Version;
use crate::core::Core;
use crate::core::close::Reason;
use crate::core::conn::Conn;
use crate::core::input::Held;
use crate::core::lanes::send_barrier;
use crate::core::outputs::Output;
use crate::core::shard_message::LeafRecord;
use crate::core::timers::Deadline;
use crate::core::{events, leaf_interest};
use crate::interest::account_settings::AccountLimits;
use crate::interest::ids::{ConnId, Origin, ServerKey};
use crate::leaf::{self, leaf_mut, origin_of, refuse, tls};
use crate::link::Stage;
use crate::link::leaf_gates::Gate;
use crate::link::leaf_state::{LeafAwaits, LeafDial, LeafNotice};
use crate::proto::encode;
use crate::proto::leaf::{self as wire, LeafConnect, LeafInfo};
use crate::proto::route::{NO_CLUSTER, Permitted, read};
use crate::transport::{self, Transport};

/// Nanoseconds from the binding of an account to the first PING, which comes up to a fifth later.
const FIRST_PING_NS: u64 = 1_000_000_000;

/// Nanoseconds that a hub has for its INFO after CONNECT.
const CONNECT_INFO_NS: u64 = 2_000_000_000;

/// Addresses of one hub that are taken from its INFO.
const URLS_MAX: usize = 256;

const SAME_CLUSTER: &str = "remote leafnode has same cluster name";

/// Parts of errors after which a hub is not dialled for a long time.
pub(super) const LOOP_PAUSE_TEXTS: [&str; 3] =
    ["Loop detected", SAME_CLUSTER, "Permissions Violation"];

/// A part of the error for a version that is too old.
pub(super) const TOO_OLD: &str = "minimum version required";

/// Greets the other end of a connection that is ready for the protocol.
pub(crate) fn greet(core: &mut Core, id: ConnId) {
    let Some(conn) = core.conns.get(id) else { return };
    tracing::info!("{} - Leafnode connection created", conn.label());
    let Some(leaf) = leaf::leaf(core, id) else { return };
    let patience_ns = match &leaf.dialed {
        Some(dialed) => dialed.remote.first_info_timeout_ms.saturating_mul(1_000_000),
        None => core.settings.leaf.auth_timeout_ns,
    };
    let is_accepted = leaf.dialed.is_none();
    let due = core.times.now.saturating_add(patience_ns);
    if let Some(conn) = core.conns.get_mut(id) {
        conn.deadlines.disarm(Deadline::Info);
        conn.deadlines.arm(Deadline::Login, due);
    }
    if is_accepted {
        send_info(core, id, None);
    }
    core.rearm(id);
}

/// Goes on with a dialled connection whose TLS handshake is complete.
pub(crate) fn on_secured(core: &mut Core, id: ConnId) {
    let Some(leaf) = leaf::leaf(core, id) else { return };
    match (&leaf.dialed, leaf.hub.is_some()) {
        (Some(_), true) => agree(core, id),
        _ if leaf.is_informed => {}
        _ => greet(core, id),
    }
}

/// Ends a connection whose other end has not said what it has to in time.
pub(crate) fn on_deadline(core: &mut Core, id: ConnId) {
    let Some(awaits) = leaf::leaf(core, id).map(|leaf| leaf.awaits) else { return };
    let Some(conn) = core.conns.get(id) else { return };
    let label = conn.label();
    let (error, reason) = match awaits {
        LeafAwaits::Info | LeafAwaits::PackedInfo => {
            tracing::error!("{label} - Timeout waiting for INFO of the hub");
            (None, "Protocol Violation")
        }
        LeafAwaits::ConnectInfo => {
            tracing::error!("{label} - Stale Leaf Node Connection - Closing");
            (Some("Stale Leaf Node Connection - Closing"), "Stale Connection")
        }
        LeafAwaits::Connect | LeafAwaits::Nothing => {
            tracing::error!("{label} - authentication timeout");
            (Some("Authentication Timeout"), "Authentication Timeout")
        }
    };
    core.fail(id, error, Reason::Protocol(reason));
}

/// Takes the CONNECT of a server that has dialled.
pub(super) fn on_connect(core: &mut Core, id: ConnId, json: &[u8]) {
    let awaits = leaf::leaf(core, id).map(|leaf| leaf.awaits);
    let connect: LeafConnect = match read(json) {
        Some(connect) if awaits == Some(LeafAwaits::Connect) => connect,
        _ => return core.fail(id, None, Reason::Protocol("Protocol Violation")),
    };
    let Some(conn) = core.conns.get_mut(id) else { return };
    if conn.connect.apply(json).is_err() {
        return core.fail(id, None, Reason::Protocol("Protocol Violation"));
    }
    conn.layers.complete(&mut conn.connect);
    // No message goes back to where it came from.
    let fields = &mut conn.connect;
    (fields.echo, fields.verbose, fields.pedantic) = (false, false, false);
    conn.liveness.on_first_connect(core.times.now);
    conn.login.on_connect();
    if let Some(leaf) = leaf_mut(core, id) {
        leaf.connect = Some(Box::new(connect));
    }
    login::log_in(core, id, false);
    admit_if_in(core, id);
}

/// Binds a server to the account of its user, if its login is decided.
pub(crate) fn admit_if_in(core: &mut Core, id: ConnId) {
    if leaf::leaf(core, id).is_none_or(|leaf| leaf.connect.is_none()) {
        return; // No leaf node, or one that was admitted before.
    }
    let user = core.conns.get(id).filter(|conn| conn.is_open()).and_then(|conn| conn.login.user());
    if let Some(user) = user.cloned() {
        admit(core, id, user);
    }
}

/// Binds a server that has shown valid credentials to the account of `user`.
fn admit(core: &mut Core, id: ConnId, user: Rc<User>) {
    let Some(connect) = leaf_mut(core, id).and_then(|leaf| leaf.connect.take()) else { return };
    if let Some(error) = objection(core, &connect) {
        if error == SAME_CLUSTER || error.contains(TOO_OLD) {
            // The other end reads why, and dials later.
            send_info(core, id, Some(&user));
        }
        return refuse(core, id, &error);
    }
    if !enter_account(core, id, Rc::clone(&user)) {
        return;
    }
    let is_system = core.accounts.system == Some(user.account);
    let (headers, is_isolated) = (core.settings.headers, core.settings.leaf.is_isolated);
    let own_domain = kept_domain(core, &connect.domain);
    let Some(conn) = core.conns.get_mut(id) else { return };
    let cid = conn.peer.cid;
    let Some(link) = &mut conn.link else { return };
    link.headers = connect.headers && headers;
    link.peer.server_id.clone_from(&connect.server_id);
    link.peer.server_name.clone_from(&connect.name);
    link.peer.proto = connect.protocol;
    link.peer.shardcast = connect.shardcast;
    link.server = server_key(&connect.server_id, cid);
    let key = duplicate_key(&connect, &user.account_name);
    let Some(leaf) = link.leaf_mut() else { return };
    leaf.is_leaf = !connect.is_hub;
    (leaf.account, leaf.account_id) = (Arc::clone(&user.account_name), user.account);
    leaf.cluster = connect.cluster.as_str().into();
    leaf.origin = if leaf.is_leaf { origin_of(&connect.cluster) } else { Origin::PEER };
    leaf.is_isolated = connect.isolate || is_isolated;
    leaf.key = key;
    leaf.gates.add_out(Gate::denying(&connect.deny_pub));
    leaf.gates.add_out(Gate::denying(&own_domain));
    leaf.gates.keeps_jetstream = !is_system;
    send_info(core, id, Some(&user));
    go_up(core, id);
    events::tell_connected(core, id);
}

/// Returns the error about a CONNECT that does not fit this server, if there is one.
fn objection(core: &Core, connect: &LeafConnect) -> Option<String> {
    let LeafConnect { lang, gateway, cluster, version, .. } = connect;
    if !lang.is_empty() {
        return Some("attempted to connect to leaf node port".to_owned());
    }
    if cluster.contains(' ') {
        return Some("cluster name cannot contain spaces".to_owned());
    }
    if cluster == NO_CLUSTER {
        return Some("cluster name is reserved".to_owned());
    }
    if !gateway.is_empty() {
        let gateway = encode::go_quoted(gateway.as_bytes());
        return Some(format!("Rejecting connection from gateway {gateway} on the leafnode port"));
    }
    if let Some(min) = &core.settings.leaf.min_version
        && Version::parse(version).is_none_or(|version| version < *min)
    {
        return Some(format!("connection rejected since minimum version required is \"{min}\""));
    }
    (!cluster.is_empty() && *cluster == own_cluster(core)).then(|| SAME_CLUSTER.to_owned())
}

/// Returns the name of this server's cluster for leaf connections: its own name, if it is in none.
fn own_cluster(core: &Core) -> String {
    match &core.links.name {
        Some(name) => name.clone(),
        None => core.settings.server_name().to_owned(),
    }
}

/// Moves a leaf node into its user's account; `false` if there is no room for it there.
fn enter_account(core: &mut Core, id: ConnId, user: Rc<User>) -> bool {
    let account = user.account;
    let limits = core.accounts.at(account).limits();
    let Some(conn) = core.conns.get_mut(id) else { return false };
    conn.account = account;
    conn.login.enter(user, limits);
    conn.review();
    if !core.accounts.at(account).enter_leaf() {
        login::refuse_account_seat(core, id);
        return false;
    }
    if let Some(leaf) = leaf_mut(core, id) {
        leaf.has_seat = true;
    }
    true
}

/// Returns a key for all links to a server, which may not have told its id.
fn server_key(server_id: &str, cid: u64) -> ServerKey {
    match server_id {
        "" => ServerKey::of(&format!("leaf {cid}")),
        id => ServerKey::of(id),
    }
}

/// Returns the key of all connections of the same leaf node between the same accounts; 0 if it
/// does not name its account.
fn duplicate_key(connect: &LeafConnect, account: &str) -> u64 {
    if connect.remote_account.is_empty() {
        return 0;
    }
    let names = (&connect.name, &connect.cluster, &connect.remote_account, account);
    // Equal on all shards.
    ahash::RandomState::with_seeds(0x6475_706c, 1, 2, 3).hash_one(names).max(1)
}

/// Begins to exchange interest with the other end, which is known now.
fn go_up(core: &mut Core, id: ConnId) {
    let Some(conn) = core.conns.get_mut(id) else { return };
    let interval_ns = core.settings.ping_interval_of(conn.transport);
    let cid = conn.peer.cid;
    let Some(link) = &mut conn.link else { return };
    link.stage = Stage::Registered;
    let Some(leaf) = link.leaf_mut() else { return };
    leaf.awaits = LeafAwaits::Nothing;
    let (key, cluster, is_leaf) = (leaf.key, Arc::clone(&leaf.cluster), leaf.is_leaf);
    conn.deadlines.disarm(Deadline::Login);
    let jitter = core.random.rng.u64(..=FIRST_PING_NS / 5);
    let first = FIRST_PING_NS.min(interval_ns).saturating_add(jitter);
    conn.deadlines.arm(Deadline::Ping, core.times.now.saturating_add(first));
    conn.review();
    core.links.leaves.push(id);
    // Interest of a leaf node comes behind the name of its cluster, and its messages do, too.
    let cluster = if is_leaf { cluster } else { "".into() };
    leaf_interest::note_leaf(core, LeafRecord { cluster, is_in: true, key, cid });
    if key != 0 {
        leaf::close_older(core, key, cid);
    }
    let (epoch, unaware) = (send_barrier(core), core.others().collect());
    core.links.newcomers.add(id, epoch, unaware);
    core.hold(id, Held::Peer);
    core.rearm(id);
    core.start_sync(id);
}

/// Takes an INFO: of a hub, or, of a leaf node, the agreement on compression.
pub(super) fn on_info(core: &mut Core, id: ConnId, json: &[u8]) {
    let Some(info) = read::<LeafInfo>(json) else {
        return core.fail(id, None, Reason::Protocol("Protocol Violation"));
    };
    let Some(awaits) = leaf::leaf(core, id).map(|leaf| leaf.awaits) else { return };
    tell_urls(core, id, &info);
    match awaits {
        LeafAwaits::Info => on_first_info(core, id, info),
        LeafAwaits::PackedInfo => say_connect(core, id),
        LeafAwaits::ConnectInfo if info.connect_info => on_connect_info(core, id, &info),
        LeafAwaits::ConnectInfo | LeafAwaits::Nothing => {}
        LeafAwaits::Connect => on_mode(core, id, &info),
    }
}

/// Tells the process where else the hub may be dialled.
fn tell_urls(core: &mut Core, id: ConnId, info: &LeafInfo) {
    let Some(leaf) = leaf::leaf(core, id) else { return };
    if leaf.dialed.is_none() {
        return;
    }
    let urls = if leaf.is_websocket { &info.ws_connect_urls } else { &info.leafnode_urls };
    if urls.is_empty() {
        return;
    }
    let urls = urls.iter().take(URLS_MAX).cloned().collect();
    let Some(lid) = core.conns.get(id).map(|conn| conn.peer.cid) else { return };
    core.out.push(Output::Leaf(Box::new(LeafNotice::Urls { lid, urls })));
}

fn on_first_info(core: &mut Core, id: ConnId, info: LeafInfo) {
    let Some(conn) = core.conns.get_mut(id) else { return };
    if info.client_id == 0 || (info.leafnode_urls.is_empty() && !info.info_on_connect) {
        tracing::error!("{} - attempted to connect to wrong port", conn.label());
        return core.fail(id, None, Reason::Protocol("Wrong Port"));
    }
    conn.connect.echo = false;
    let headers = info.headers && core.settings.headers;
    let cid = conn.peer.cid;
    let Some(link) = &mut conn.link else { return };
    link.headers = headers;
    link.peer.server_id.clone_from(&info.server_id);
    link.peer.server_name.clone_from(&info.server_name);
    link.peer.proto = info.proto;
    link.peer.shardcast = info.shardcast;
    link.server = server_key(&info.server_id, cid);
    let Some(leaf) = link.leaf_mut() else { return };
    let is_tls = leaf.dialed.as_ref().is_some_and(|dialed| dialed.is_tls);
    let wants_tls = (info.tls_required || is_tls) && !leaf.is_websocket;
    leaf.hub = Some(Box::new(info));
    if wants_tls && conn.layers.tls().is_none() {
        tls::begin_dialed(core, id);
    } else {
        agree(core, id);
    }
}

/// Agrees on compression with the hub, or goes on without.
fn agree(core: &mut Core, id: ConnId) {
    let Some(leaf) = leaf::leaf(core, id) else { return };
    let (Some(dialed), Some(hub)) = (&leaf.dialed, &leaf.hub) else { return };
    // A WebSocket compresses by itself, if it is to.
    let agreed = transport::negotiate(&dialed.remote.compression, &hub.compression);
    let Some(mode) = agreed.ok().flatten().filter(|_| !leaf.is_websocket) else {
        return say_connect(core, id);
    };
    let compression = mode.name().to_owned();
    let info = LeafInfo { client_id: hub.client_id, compression, ..LeafInfo::default() };
    let mut head = Vec::new();
    wire::info(&mut head, &info);
    if let Some(leaf) = leaf_mut(core, id) {
        leaf.awaits = LeafAwaits::PackedInfo;
    }
    core.begin_s2(id, mode, head);
}

/// Takes the mode of compression that a leaf node has chosen, before its CONNECT.
fn on_mode(core: &mut Core, id: ConnId, info: &LeafInfo) {
    // It was not offered in a WebSocket, nor a second time.
    let is_packed = core.conns.get(id).is_some_and(|conn| {
        conn.layers.compression().is_some() || conn.transport == Transport::LeafWebSocket
    });
    let Ok(Some(mode)) = transport::negotiate(&core.settings.leaf.compression, &info.compression)
    else {
        return refuse(core, id, "Authorization Violation");
    };
    if is_packed {
        return refuse(core, id, "Authorization Violation");
    }
    core.begin_s2(id, mode, Vec::new());
    send_info(core, id, None);
}

/// Sends CONNECT. The hub answers with INFO, unless it does not say so.
fn say_connect(core: &mut Core, id: ConnId) {
    let Some(leaf) = leaf::leaf(core, id) else { return };
    let (Some(dialed), Some(hub)) = (&leaf.dialed, &leaf.hub) else { return };
    let connect = own_connect(core, dialed, hub, own_mode(core, id));
    let answers = hub.info_on_connect;
    let Some(conn) = core.conns.get_mut(id) else { return };
    // Not through the traced log, which would show the password.
    conn.outbox.push(&mut core.spares, |out| wire::connect(out, &connect));
    core.flush_soon(id);
    if !answers {
        return bind(core, id, None);
    }
    let due = core.times.now.saturating_add(CONNECT_INFO_NS);
    let Some(conn) = core.conns.get_mut(id) else { return };
    conn.deadlines.arm(Deadline::Login, due);
    if let Some(leaf) = leaf_mut(core, id) {
        leaf.awaits = LeafAwaits::ConnectInfo;
    }
    core.rearm(id);
}

/// Returns the name of the compression that a connection has.
fn own_mode(core: &Core, id: ConnId) -> &'static str {
    let conn = core.conns.get(id);
    conn.and_then(|conn| conn.layers.compression()).map_or("not supported", |mode| mode.name())
}

fn own_connect(core: &Core, dialed: &LeafDial, hub: &LeafInfo, mode: &str) -> LeafConnect {
    let LeafDial { remote, login, .. } = dialed;
    let info = &core.settings.leaf.info;
    let mut connect = LeafConnect {
        version: info.version.clone(),
        server_id: info.server_id.clone(),
        name: info.server_name.clone(),
        cluster: own_cluster(core),
        domain: info.domain.clone(),
        jetstream: info.jetstream,
        headers: core.settings.headers,
        is_hub: remote.is_hub,
        deny_pub: remote.deny_imports.clone(),
        compress_mode: mode.to_owned(),
        remote_account: remote.account.clone(),
        protocol: wire::PROTO,
        isolate: remote.requests_isolation,
        shardcast: true,
        ..LeafConnect::default()
    };
    if let Some(user) = &login.user {
        connect.user.clone_from(user);
        match &login.password {
            Some(password) => password.revealed().clone_into(&mut connect.pass),
            None => connect.auth_token.clone_from(user),
        }
    }
    let pair = login.seed.as_ref().and_then(|seed| nkeys::KeyPair::from_seed(seed.revealed()).ok());
    if let Some(pair) = pair {
        if let Ok(signature) = pair.sign(hub.nonce.as_bytes()) {
            connect.sig = URL_SAFE_NO_PAD.encode(signature);
        }
        match &login.jwt {
            Some(jwt) => connect.jwt.clone_from(jwt),
            None => connect.nkey = pair.public_key(),
        }
    }
    connect
}

fn on_connect_info(core: &mut Core, id: ConnId, info: &LeafInfo) {
    bind(core, id, Some(info));
}

/// Returns the requests that are for the JetStream of this server, and so do not go to the other
/// end, unless that calls its own domain the same.
fn kept_domain(core: &Core, of_peer: &str) -> Vec<String> {
    let own = core.settings.streams.as_ref().and_then(|streams| streams.domain.as_deref());
    let own = own.filter(|own| *own != of_peer);
    own.map(|own| format!("$JS.{own}.API.>")).into_iter().collect()
}

/// Binds the dialled connection to its account here; `info` is the hub's answer to CONNECT.
fn bind(core: &mut Core, id: ConnId, info: Option<&LeafInfo>) {
    let Some(dialed) = leaf::leaf(core, id).and_then(|leaf| leaf.dialed.clone()) else { return };
    let remote = &dialed.remote;
    let Some(account) = core.accounts.find(remote.account.as_bytes()) else {
        let account = encode::go_quoted(remote.account.as_bytes());
        return refuse(core, id, &format!("Unable to lookup account {account}"));
    };
    let is_system =
        core.accounts.system == Some(account) && info.is_none_or(|info| info.acc_is_sys);
    let cluster = leaf::leaf(core, id).and_then(|leaf| leaf.hub.as_deref());
    let (cluster, domain) =
        cluster.map(|hub| (hub.cluster.clone(), hub.domain.clone())).unwrap_or_default();
    let own_domain = kept_domain(core, &domain);
    let account_name = core.accounts.name(account);
    let user = User {
        name: None,
        account,
        account_name: Arc::clone(&account_name),
        permissions: None,
        connection_types: Vec::new(),
        pass: None,
        allowed_by: None,
    };
    let Some(conn) = core.conns.get_mut(id) else { return };
    conn.account = account;
    conn.login.enter(Rc::new(user), AccountLimits::default());
    let lid = conn.peer.cid;
    // The configuration binds it, so no limit turns it away.
    core.accounts.at(account).count_leaf();
    if let Some(leaf) = leaf_mut(core, id) {
        leaf.has_seat = true;
        (leaf.account, leaf.account_id) = (account_name, account);
        leaf.origin = if leaf.is_leaf { origin_of(&cluster) } else { Origin::PEER };
        leaf.cluster = cluster.into();
        leaf.is_isolated = remote.is_isolated;
        leaf.gates.add_into(Gate::denying(&remote.deny_imports));
        leaf.gates.add_out(Gate::denying(&remote.deny_exports));
        leaf.gates.add_out(Gate::denying(&own_domain));
        if let Some(info) = info {
            leaf.gates.add_out(Gate::permitting(info.export.as_ref()));
            leaf.gates.add_into(Gate::permitting(info.import.as_ref()));
        }
        leaf.gates.keeps_jetstream = !is_system;
    }
    core.out.push(Output::Leaf(Box::new(LeafNotice::Up { lid })));
    go_up(core, id);
    events::tell_connected(core, id);
}

/// Tells the leaf nodes that have dialled where else they may.
pub(crate) fn inform_leaves(core: &mut Core) {
    for id in core.links.leaves.clone() {
        let conn = core.conns.get(id).filter(|conn| conn.is_open());
        let Some(conn) = conn.filter(|conn| leaf::is_accepted(conn)) else { continue };
        let info = own_info(core, conn);
        core.reply(id, |out| wire::info(out, &info));
    }
    core.settle_deliveries();
}

/// Returns INFO for the other end of a connection, without what only one occasion needs.
fn own_info(core: &Core, conn: &Conn) -> LeafInfo {
    let settings = &core.settings;
    let mut info = settings.leaf.info.clone();
    info.cluster = own_cluster(core);
    info.ldm = core.endings.lame_duck.is_some();
    if info.ldm {
        info.leafnode_urls.clear();
    }
    info.leafnode_urls.extend(core.links.urls.leaf.iter().flatten().cloned());
    let websockets = settings.client_urls(&core.links, Transport::LeafWebSocket, info.ldm);
    info.ws_connect_urls = websockets.unwrap_or_default();
    if conn.transport == Transport::LeafWebSocket {
        info.compression = String::new();
    }
    info
}

/// Sends INFO to a server that has dialled; after its CONNECT with the account of its user.
pub(crate) fn send_info(core: &mut Core, id: ConnId, user: Option<&User>) {
    let Some(conn) = core.conns.get(id) else { return };
    let mut info = own_info(core, conn);
    info.client_id = conn.peer.cid;
    match user {
        None => {
            info.nonce = core.settings.nonce(conn.peer.cid);
            if let Some(mode) = conn.layers.compression() {
                mode.name().clone_into(&mut info.compression);
            }
        }
        Some(user) => {
            info.connect_info = true;
            (*user.account_name).clone_into(&mut info.remote_account);
            info.acc_is_sys = core.accounts.system == Some(user.account);
            info.compression = String::new();
            if let Some(grants) = &user.permissions {
                let (export, import) = grants.lists();
                info.export = permitted(export);
                info.import = permitted(import);
            }
        }
    }
    core.reply(id, |out| wire::info(out, &info));
    if let Some(leaf) = leaf_mut(core, id) {
        leaf.is_informed = true;
    }
}

fn permitted(lists: Lists) -> Option<Permitted> {
    let (allow, deny) = lists;
    let permitted = Permitted { allow, deny };
    (permitted != Permitted::default()).then_some(permitted)
}
