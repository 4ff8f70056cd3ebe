//! What shards have to know of the options: units converted, users and permissions compiled.

use std::rc::Rc;
use std::sync::Arc;

use super::accounts::GLOBAL;
use super::trust::Trust;
use super::{Auth, LogOptions, Options, RouteUrl, SubjectEntry, SubjectList, WebSocketOptions};
use crate::cluster::ClientUrls;
use crate::engine::{
    AccountId, Identity, Login, Logins, Permissions, RouteSettings, Settings, Tracing, Trusted,
    User,
};
use crate::proto::Info;
use crate::proto::route::{Permitted, RouteInfo};

const NS_PER_MS: u64 = 1_000_000;

impl Settings {
    /// Compiles `options`; all shards together may queue `memory_bytes_max` bytes per shard.
    pub fn new(options: &Options, identity: &Identity, memory_bytes_max: usize) -> Self {
        let auth = &options.auth;
        let logins = credentials(options, auth);
        let guest = auth.no_auth_user.as_ref().and_then(|name| logins.users.get(name));
        let websocket_auth =
            options.websocket.as_ref().and_then(|websocket| websocket.auth.as_ref());
        Self {
            limits: options.limits.clone(),
            rates: options.rates.clone(),
            headers: !options.no_header_support,
            ping_interval_ns: options.ping_interval_ms.saturating_mul(NS_PER_MS),
            ping_max: options.ping_max,
            write_deadline_ns: options.write_deadline_ms.saturating_mul(NS_PER_MS),
            auth_timeout_ns: auth.timeout_ms.saturating_mul(NS_PER_MS),
            memory_bytes_max,
            closed_conns_max: if options.http.is_some() { options.closed_conns_max } else { 0 },
            tracing: tracing(&options.log),
            has_mappings: options.accounts.list.iter().any(|account| !account.mappings.is_empty()),
            overflow: options.overflow.clone(),
            tls: options.tls.clone(),
            allow_non_tls: options.allow_non_tls,
            guest: guest.map(|login| Rc::clone(&login.user)),
            node: match identity.id.get(1..9) {
                Some(part) => part.to_owned(),
                None => "0".to_owned(),
            },
            route: route_settings(options, identity),
            epoch_ms: identity.epoch_ms,
            nonces: identity.nonces.clone(),
            has_nkeys: auth.users.iter().any(|user| user.has_nkey),
            proxy_protocol: options.proxy_protocol,
            trusted_proxies: options.trusted_proxies.clone(),
            websocket: options.websocket.as_ref().map(WebSocketOptions::settings),
            websocket_logins: websocket_auth
                .filter(|auth| auth.is_required())
                .map(|auth| credentials(options, auth)),
            websocket_address: identity.websocket.clone(),
            urls: urls(options, identity),
            peers: options.unix.iter().flat_map(|unix| unix.peers.iter().cloned()).collect(),
            logins,
            nobody: Rc::new(User {
                name: None,
                account: AccountId::GLOBAL,
                account_name: GLOBAL.into(),
                permissions: None,
                connection_types: Vec::new(),
                pass: None,
            }),
            trusted: trusted(options, identity.epoch_ms),
            accounts: options
                .accounts
                .list
                .iter()
                .map(|account| {
                    let name = &account.name;
                    let seats = options.accounts.seats(name);
                    (account_id(options, name), Rc::new(account.clone()), seats)
                })
                .collect(),
            names: options.accounts.list.iter().map(|account| account.name.clone()).collect(),
            system: options.accounts.system.as_ref().map(|name| account_id(options, name)),
            claims_requests: options.trust.as_ref().map(Trust::requests).unwrap_or_default(),
            info: info(options, identity),
        }
    }
}

fn account_id(options: &Options, name: &str) -> AccountId {
    options.accounts.number(name).map_or(AccountId::GLOBAL, AccountId::new)
}

/// The credentials that let somebody in by `auth`.
fn credentials(options: &Options, auth: &Auth) -> Logins {
    let compile = |user: &super::User| {
        let defaults = auth.default_permissions.as_ref();
        let defaults = defaults.filter(|_| user.account == GLOBAL);
        let permissions = user.permissions.as_ref().or(defaults);
        let compiled = User {
            name: Some(user.name.as_str().into()),
            account: account_id(options, &user.account),
            account_name: user.account.as_str().into(),
            permissions: permissions.map(Permissions::new),
            connection_types: user.connection_types.clone(),
            pass: None,
        };
        let (password, has_nkey) = (user.password.clone(), user.has_nkey);
        (user.name.clone(), Login { password, has_nkey, user: Rc::new(compiled) })
    };
    Logins { users: auth.users.iter().map(compile).collect(), token: auth.token.clone() }
}

/// The accounts whose users come by tokens.
fn trusted(options: &Options, epoch_ms: u64) -> Option<Trusted> {
    let trust = options.trust.as_ref()?;
    let accounts = trust.accounts.iter().filter_map(|(key, claims)| {
        let id = AccountId::new(options.accounts.number(key)?);
        Some((key.clone(), (id, Arc::clone(claims))))
    });
    Some(Trusted {
        accounts: accounts.collect(),
        pinned: trust.pinned.clone(),
        zone: trust.zone,
        epoch_ns: i128::from(epoch_ms) * 1_000_000,
    })
}

/// How much of messages is traced: nothing, unless the options ask for it.
fn tracing(options: &LogOptions) -> Option<Tracing> {
    let (headers_only, bytes_max) = (options.trace_headers, options.traced_message_bytes_max);
    options.trace.then_some(Tracing { headers_only, bytes_max })
}

fn info(options: &Options, identity: &Identity) -> Info {
    let (host, port) = options.shown_address(identity.port);
    Info {
        server_id: identity.id.clone(),
        server_name: identity.name.clone(),
        version: crate::NATS_VERSION.to_owned(),
        proto: 1,
        git_commit: crate::GIT_COMMIT.to_owned(),
        host: host.to_owned(),
        port,
        headers: !options.no_header_support,
        tls_required: options.tls.is_some() && !options.allow_non_tls,
        tls_available: options.tls.is_some() && options.allow_non_tls,
        tls_verify: options.tls.as_ref().is_some_and(|tls| tls.verify),
        auth_required: options.requires_login(),
        max_payload: options.limits.payload_bytes_max,
        api_lvl: crate::JETSTREAM_API_LEVEL,
        xkey: identity.xkey.clone(),
        ..Info::default()
    }
}

/// Where clients may connect, as far as others are to know.
fn urls(options: &Options, identity: &Identity) -> ClientUrls {
    let cluster = identity.cluster.as_ref().filter(|_| !options.cluster.no_advertise);
    cluster.map(|cluster| cluster.urls.clone()).unwrap_or_default()
}

fn route_settings(options: &Options, identity: &Identity) -> RouteSettings {
    let cluster = &options.cluster;
    let mut host = cluster.host.clone();
    let mut port = identity.cluster.as_ref().map_or(0, |cluster| i32::from(cluster.port));
    let mut ip = String::new();
    if let Some(advertise) = &cluster.advertise {
        // A port may be missing, and a scheme is.
        if let Ok(url) = RouteUrl::parse(&format!("nats-route://{advertise}")) {
            let has_port = advertise.trim_end_matches(|c: char| c.is_ascii_digit()).ends_with(':');
            (host, port) = (url.host, if has_port { i32::from(url.port) } else { port });
            let shown = if host.contains(':') { format!("[{host}]") } else { host.clone() };
            ip = format!("nats-route://{shown}:{port}/");
        }
    }
    let pooling = identity.cluster.as_ref().map(|cluster| cluster.pooling.clone());
    let pooling = pooling.unwrap_or_default();
    let urls = urls(options, identity);
    let info = RouteInfo {
        server_id: identity.id.clone(),
        server_name: identity.name.clone(),
        version: crate::NATS_VERSION.to_owned(),
        // From 3 on peers expect that this server tells what becomes of traced messages.
        proto: 3,
        host,
        port,
        ip,
        headers: !options.no_header_support,
        auth_required: cluster.user.is_some(),
        tls_required: cluster.tls.is_some(),
        tls_verify: cluster.tls.is_some(),
        max_payload: i64::try_from(options.limits.payload_bytes_max).unwrap_or(i64::MAX),
        connect_urls: urls.tcp.unwrap_or_default(),
        ws_connect_urls: urls.websocket.unwrap_or_default(),
        route_pool_size: i32::from(pooling.size()),
        shardcast: true,
        lnoc: true,
        lnocu: true,
        ln: true,
        compression: cluster.compression.name().to_owned(),
        import: cluster.permissions.as_ref().and_then(|p| permitted(&p.publish)),
        export: cluster.permissions.as_ref().and_then(|p| permitted(&p.subscribe)),
        ..RouteInfo::default()
    };
    RouteSettings {
        info,
        pooling,
        user: cluster.user.clone(),
        pass: cluster.user.as_ref().map(|_| cluster.password.clone()),
        auth_timeout_ns: cluster.timeout_ms.saturating_mul(NS_PER_MS),
        ping_interval_ns: cluster.ping_interval_ms.saturating_mul(NS_PER_MS),
        ping_max: cluster.ping_max,
        permissions: cluster.permissions.as_ref().map(Permissions::new),
        tls: cluster.tls.clone(),
        compression: cluster.compression.clone(),
    }
}

/// A list of a route's permissions as peers are told it.
fn permitted(list: &SubjectList) -> Option<Permitted> {
    let texts = |entries: &[SubjectEntry]| {
        entries.iter().map(|entry| entry.subject.clone()).collect::<Vec<_>>()
    };
    let permitted = Permitted { allow: texts(&list.allow), deny: texts(&list.deny) };
    (permitted != Permitted::default()).then_some(permitted)
}
