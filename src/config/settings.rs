//! Settings of the shards from the options: units converted, users and permissions compiled.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use chrono_tz::Tz;

use super::accounts::GLOBAL;
use super::trust::{self, TrustOptions};
use super::{
    Account, Auth, CalloutOptions, LeafUser, LogOptions, MqttOptions, Options, RouteUrl, Secret,
    StartError, SubjectEntry, SubjectList, UserOptions, advertised,
};
use crate::cluster::ClientUrls;
use crate::engine::{
    AccountId, AccountsSettings, AuthSettings, Callout, Destination, GatewaySettings, Grants,
    Identity, Intervals, LeafSettings, ListenSettings, Login, Logins, Mapping, RouteSettings,
    Service, Settings, StreamSettings, Tracing, Trusted, User, WallClock, granted,
};
use crate::proto::Info;
use crate::proto::gateway::{GatewayInfo, NameHash};
use crate::proto::leaf::{self, LeafInfo};
use crate::proto::route::{Permitted, RouteInfo};
use crate::transport::Compression;

const NS_PER_MS: u64 = 1_000_000;

impl Settings {
    /// Compiles `options`; each shard may queue at most `memory_bytes_max` bytes.
    pub fn new(options: &Options, identity: &Identity, memory_bytes_max: usize) -> Self {
        Self {
            limits: options.limits.clone(),
            rates: options.rates.clone(),
            headers: !options.network.no_header_support,
            memory_bytes_max,
            closed_conns_max: options.monitoring.remembered_conns_max(),
            tracing: tracing(&options.log),
            node: match identity.id.get(1..9) {
                Some(part) => part.to_owned(),
                None => "0".to_owned(),
            },
            route: route_settings(options, identity),
            gateway: gateway_settings(options, identity).map(Box::new),
            hash_seed: identity.hash_seed,
            leaf: leaf_settings(options, identity),
            epoch_ms: identity.epoch_ms,
            intervals: intervals(options),
            listen: listen_settings(options, identity),
            auth: auth_settings(options, identity),
            accounts: accounts_settings(options),
            streams: stream_settings(options, identity),
            mqtt: options.network.mqtt.as_ref().map(|mqtt| Box::new(mqtt.settings())),
        }
    }
}

impl Options {
    /// Checks that the state of MQTT has a place, where MQTT is configured.
    ///
    /// # Errors
    ///
    /// Returns what is missing for that.
    pub fn check_mqtt(&self) -> Result<(), StartError> {
        if self.network.mqtt.is_none() {
            return Ok(());
        }
        let is_linked = self.cluster.port.is_some() || self.gateway.port.is_some();
        if self.server.name.is_none() && is_linked {
            let reason = "mqtt requires server name to be explicitly set: add server_name";
            return Err(StartError::new(reason));
        }
        let has_leaves = self.leaf.port.is_some() || !self.leaf.remotes.is_empty();
        if !self.jetstream.is_enabled && !is_linked && !has_leaves {
            let reason = "mqtt requires JetStream to be enabled if running in standalone mode: \
                          add jetstream: true";
            return Err(StartError::new(reason));
        }
        Ok(())
    }
}

fn stream_settings(options: &Options, identity: &Identity) -> Option<StreamSettings> {
    let jetstream = &options.jetstream;
    let (limits, queues) = (&jetstream.limits, &jetstream.queues);
    jetstream.is_enabled.then(|| StreamSettings {
        domain: jetstream.domain.as_deref().map(Box::from),
        limits: jetstream.asset_limits(identity.assets),
        duplicate_window_max: limits.duplicate_window_max_ns,
        max_ack_pending: limits.ack_pending_max,
        max_request_batch: limits.request_batch_max,
        stream_consumers_max: limits.stream_consumers_max,
        batch: limits.batch,
        requests_max: queues.requests_max,
        buffered_messages_max: queues.messages_max,
        buffered_bytes_max: queues.message_bytes_max,
        is_strict: !jetstream.is_lenient,
        sync: jetstream.sync,
    })
}

fn intervals(options: &Options) -> Intervals {
    let timeouts = &options.timeouts;
    Intervals {
        ping_interval_ns: timeouts.ping_interval_ms.saturating_mul(NS_PER_MS),
        ping_max: timeouts.ping_max,
        write_deadline_ns: timeouts.write_deadline_ms.saturating_mul(NS_PER_MS),
        auth_timeout_ns: options.auth.timeout_ms.saturating_mul(NS_PER_MS),
    }
}

fn listen_settings(options: &Options, identity: &Identity) -> ListenSettings {
    let network = &options.network;
    ListenSettings {
        tls: network.tls.clone(),
        allow_non_tls: network.allow_non_tls,
        proxy_protocol: network.proxy_protocol,
        trusted_proxies: network.trusted_proxies.clone(),
        websocket: network.websocket.as_ref().map(|websocket| {
            websocket.settings(network.mqtt.is_some(), options.leaf.port.is_some())
        }),
        websocket_address: identity.websocket.clone(),
        urls: urls(options, identity),
        info: info(options, identity),
    }
}

fn auth_settings(options: &Options, identity: &Identity) -> AuthSettings {
    let (auth, network) = (&options.auth, &options.network);
    let logins = credentials(options, auth);
    let guest = auth.no_auth_user.as_ref().and_then(|name| logins.users.get(name));
    let guest = guest.map(|login| Rc::clone(&login.user));
    let websocket_auth = network.websocket.as_ref().and_then(|listener| listener.auth.as_ref());
    let nobody = Rc::new(User {
        name: None,
        account: AccountId::GLOBAL,
        account_name: GLOBAL.into(),
        permissions: None,
        connection_types: Vec::new(),
        pass: None,
        allowed_by: None,
    });
    AuthSettings {
        guest: guest.or_else(|| options.has_open_global().then(|| Rc::clone(&nobody))),
        nonces: identity.nonces.clone(),
        has_nkeys: auth.users.iter().any(|user| user.has_nkey),
        websocket_logins: websocket_auth
            .filter(|auth| auth.is_required())
            .map(|auth| credentials(options, auth)),
        mqtt_logins: network
            .mqtt
            .as_ref()
            .filter(|mqtt| mqtt.login.is_required())
            .map(|mqtt| credentials(options, &mqtt_auth(mqtt))),
        peers: network.unix.iter().flat_map(|unix| unix.peers.iter().cloned()).collect(),
        logins,
        nobody,
        trusted: trusted(options, identity.epoch_ms),
        default_sentinel: options
            .trust
            .as_ref()
            .and_then(|trust| trust.default_sentinel.as_deref().map(Into::into)),
        callout: options
            .auth
            .callout
            .as_ref()
            .map(|callout| configured(callout, options, identity)),
        tags: options.server.tags.clone(),
    }
}

/// Returns the credentials of MQTT in the form of those of all clients.
fn mqtt_auth(mqtt: &MqttOptions) -> Auth {
    let login = &mqtt.login;
    let password = login.password.clone().unwrap_or_else(|| Secret::new(""));
    let user = login.user.as_ref().map(|name| UserOptions { password, ..UserOptions::named(name) });
    Auth { users: user.into_iter().collect(), token: login.token.clone(), ..Auth::default() }
}

/// Returns the configured service that decides about clients.
fn configured(callout: &CalloutOptions, options: &Options, identity: &Identity) -> Callout {
    let account = options.accounts.get(&callout.account).map(|account| Service {
        account: account_id(options, &account.name),
        account_name: account.name.as_str().into(),
        issuer: callout.issuer.clone(),
        signing_keys: Vec::new(),
        xkey: callout.xkey.clone(),
        has_operator: false,
    });
    let mut default_permissions = options.accounts.default_permissions.clone();
    if let Some(permissions) = &options.auth.default_permissions {
        default_permissions.insert(GLOBAL.to_owned(), permissions.clone());
    }
    Callout {
        service: account.map(Arc::new),
        auth_users: callout.auth_users.clone(),
        accounts: callout.allowed_accounts.clone(),
        default_permissions,
        clock: wall_clock(trust::zone(), identity.epoch_ms),
    }
}

fn wall_clock(zone: Tz, epoch_ms: u64) -> WallClock {
    WallClock { zone, epoch_ns: i128::from(epoch_ms) * 1_000_000 }
}

fn accounts_settings(options: &Options) -> AccountsSettings {
    let accounts = &options.accounts;
    let of_a_shard = |account: &Account| {
        let seats = accounts.seats(&account.name);
        let mut account = account.clone();
        account.streams = options.streams_of(&account);
        account.mappings.extend(domain_mappings(options, &account));
        (account_id(options, &account.name), Rc::new(account), seats)
    };
    let all: Vec<_> = accounts.list.iter().map(of_a_shard).collect();
    AccountsSettings {
        has_mappings: all.iter().any(|(_, account, _)| !account.mappings.is_empty()),
        overflow: options.overflow.clone(),
        all,
        numbers: accounts
            .list
            .iter()
            .map(|account| (account.name.clone(), account_id(options, &account.name)))
            .collect(),
        system: accounts.system.as_ref().map(|name| account_id(options, name)),
        claims_requests: options.trust.as_ref().map(TrustOptions::requests).unwrap_or_default(),
    }
}

/// Returns the mappings by which keys and objects of an account with JetStream are reached under
/// the name of the domain, like its API.
fn domain_mappings(options: &Options, account: &Account) -> Vec<Mapping> {
    let domain = options.jetstream.domain.as_ref().filter(|_| account.streams.is_some());
    let mapping = |domain: &String, view: &str| Mapping {
        source: format!("$JS.{domain}.API.{view}.>"),
        destinations: vec![Destination {
            subject: format!("{view}.>"),
            weight: 100,
            cluster: None,
        }],
    };
    domain.map_or_else(Vec::new, |domain| {
        ["$KV", "$OBJ"].iter().map(|view| mapping(domain, view)).collect()
    })
}

fn account_id(options: &Options, name: &str) -> AccountId {
    options.accounts.number(name).map_or(AccountId::GLOBAL, AccountId::new)
}

/// Compiles the credentials of clients in `auth`.
fn credentials(options: &Options, auth: &Auth) -> Logins {
    let compile = |user: &UserOptions| {
        let defaults = auth.default_permissions.as_ref();
        let defaults = defaults.filter(|_| user.account == GLOBAL);
        let permissions = user.permissions.as_ref().or(defaults);
        let has_callouts =
            options.accounts.get(&user.account).is_some_and(|account| account.has_callouts);
        let compiled = User {
            name: Some(user.name.as_str().into()),
            account: account_id(options, &user.account),
            account_name: user.account.as_str().into(),
            permissions: match has_callouts {
                true => granted(permissions.cloned().unwrap_or_default(), true),
                false => permissions.map(Grants::new),
            },
            connection_types: user.connection_types.clone(),
            pass: None,
            allowed_by: None,
        };
        let (password, has_nkey) = (user.password.clone(), user.has_nkey);
        (user.name.clone(), Login { password, has_nkey, user: Rc::new(compiled) })
    };
    Logins { users: auth.users.iter().map(compile).collect(), token: auth.token.clone() }
}

/// Returns the accounts whose users log in by token.
fn trusted(options: &Options, epoch_ms: u64) -> Option<Trusted> {
    let trust = options.trust.as_ref()?;
    let accounts = trust.accounts.iter().filter_map(|(key, claims)| {
        let id = AccountId::new(options.accounts.number(key)?);
        Some((key.clone(), (id, Arc::clone(claims))))
    });
    let with_services = trust.accounts.iter().filter(|(_, it)| it.body.authorization.is_on());
    let services = with_services.filter_map(|(key, claims)| {
        let authorization = &claims.body.authorization;
        let service = Service {
            account: AccountId::new(options.accounts.number(key)?),
            account_name: key.as_str().into(),
            issuer: key.clone(),
            signing_keys: claims.body.signing_keys.iter().map(|it| it.key().to_owned()).collect(),
            xkey: Some(authorization.xkey.clone()).filter(|key| !key.is_empty()),
            has_operator: true,
        };
        Some((key.clone(), Arc::new(service)))
    });
    Some(Trusted {
        accounts: accounts.collect(),
        pinned: trust.pinned.clone(),
        fetches: trust.fetches(),
        services: services.collect(),
        clock: wall_clock(trust.zone, epoch_ms),
    })
}

/// Returns the amount of tracing: none, unless the options ask for it.
fn tracing(options: &LogOptions) -> Option<Tracing> {
    let (headers_only, bytes_max) = (options.trace_headers, options.traced_message_bytes_max);
    options.trace.then_some(Tracing { headers_only, bytes_max })
}

fn info(options: &Options, identity: &Identity) -> Info {
    let network = &options.network;
    let (host, port) = network.shown_address(identity.port);
    Info {
        server_id: identity.id.clone(),
        server_name: identity.name.clone(),
        version: crate::NATS_VERSION.to_owned(),
        proto: 1,
        git_commit: crate::GIT_COMMIT.to_owned(),
        host: host.to_owned(),
        port,
        headers: !network.no_header_support,
        tls_required: network.requires_tls(),
        tls_available: network.tls.is_some() && network.allow_non_tls,
        tls_verify: network.tls.as_ref().is_some_and(|tls| tls.verify),
        auth_required: options.requires_login(),
        max_payload: options.limits.payload_bytes_max,
        jetstream: options.jetstream.is_enabled,
        domain: options.jetstream.domain.clone().filter(|_| options.jetstream.is_enabled),
        api_lvl: crate::JETSTREAM_API_LEVEL,
        xkey: identity.xkey.clone(),
        ..Info::default()
    }
}

/// Returns the addresses for clients that other servers are told.
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
        // From 3 on peers expect that this server reports the way of traced messages.
        proto: 3,
        host,
        port,
        ip,
        headers: !options.network.no_header_support,
        auth_required: cluster.user.is_some(),
        tls_required: cluster.tls.is_some(),
        tls_verify: cluster.tls.is_some(),
        max_payload: i64::try_from(options.limits.payload_bytes_max).unwrap_or(i64::MAX),
        connect_urls: urls.tcp.unwrap_or_default(),
        ws_connect_urls: urls.websocket.unwrap_or_default(),
        leafnode_urls: leaf_urls(options, identity),
        route_pool_size: i32::from(pooling.size()),
        shardcast: true,
        lnoc: true,
        lnocu: true,
        ln: true,
        compression: cluster.compression.name().to_owned(),
        gateway_url: identity.gateway.as_ref().map(|own| own.url.clone()).unwrap_or_default(),
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
        permissions: cluster.permissions.as_ref().map(Grants::new),
        tls: cluster.tls.clone(),
        compression: cluster.compression.clone(),
        write_deadline_ns: cluster.write_deadline_ms.saturating_mul(NS_PER_MS),
    }
}

/// Nanoseconds between two PINGs of a gateway, at most.
const GATEWAY_PING_NS_MAX: u64 = 15_000_000_000;

fn gateway_settings(options: &Options, identity: &Identity) -> Option<GatewaySettings> {
    let (gateway, own) = (&options.gateway, identity.gateway.as_ref()?);
    let address = RouteUrl::parse(&format!("nats://{}", own.url)).ok();
    let names = gateway.others().map(|remote| remote.name.clone());
    let remotes: BTreeSet<String> = names.collect();
    let tls_of = gateway.others().filter_map(|remote| {
        let tls = remote.tls.clone()?;
        Some((remote.name.clone(), tls))
    });
    let info = GatewayInfo {
        server_id: identity.id.clone(),
        server_name: identity.name.clone(),
        version: crate::NATS_VERSION.to_owned(),
        proto: 3,
        host: address.as_ref().map_or_else(|| own.host.clone(), |url| url.host.clone()),
        port: address.map_or(i32::from(own.port), |url| i32::from(url.port)),
        headers: !options.network.no_header_support,
        auth_required: gateway.user.is_some(),
        tls_required: gateway.tls.is_some(),
        tls_verify: gateway.tls.is_some(),
        max_payload: i64::try_from(options.limits.payload_bytes_max).unwrap_or(i64::MAX),
        gateway: own.name.clone(),
        gateway_urls: vec![own.url.clone()],
        gateway_url: own.url.clone(),
        gateway_nrp: true,
        gateway_iom: true,
        shardcast: true,
        ..GatewayInfo::default()
    };
    Some(GatewaySettings {
        info,
        cluster: NameHash::of(&own.name),
        server: NameHash::of(&identity.id),
        user: gateway.user.clone(),
        pass: gateway.user.as_ref().map(|_| gateway.password.clone()),
        auth_timeout_ns: gateway.timeout_ms.saturating_mul(NS_PER_MS),
        ping_interval_ns: options
            .timeouts
            .ping_interval_ms
            .saturating_mul(NS_PER_MS)
            .min(GATEWAY_PING_NS_MAX),
        ping_max: options.timeouts.ping_max,
        write_deadline_ns: gateway.write_deadline_ms.saturating_mul(NS_PER_MS),
        tls: gateway.tls.clone(),
        tls_of: tls_of.collect(),
        known: gateway.reject_unknown.then(|| remotes.clone()),
        remotes,
    })
}

fn leaf_settings(options: &Options, identity: &Identity) -> LeafSettings {
    let leaf = &options.leaf;
    let own_port = identity.leaf_port.unwrap_or_default();
    let info = LeafInfo {
        server_id: identity.id.clone(),
        server_name: identity.name.clone(),
        version: crate::NATS_VERSION.to_owned(),
        proto: leaf::PROTO,
        git_commit: crate::GIT_COMMIT.to_owned(),
        host: leaf.host.clone(),
        port: own_port.into(),
        headers: !options.network.no_header_support,
        // As in nats-server, also where anybody may come.
        auth_required: true,
        tls_required: leaf.tls.is_some(),
        tls_verify: leaf.tls.as_ref().is_some_and(|tls| tls.verify),
        max_payload: i64::try_from(options.limits.payload_bytes_max).unwrap_or(i64::MAX),
        ip: leaf_address(options, identity),
        compression: match leaf.compression {
            Compression::Off => String::new(),
            ref mode => mode.name().to_owned(),
        },
        jetstream: options.jetstream.is_enabled,
        domain: options.jetstream.domain.clone().unwrap_or_default(),
        api_lvl: crate::JETSTREAM_API_LEVEL,
        info_on_connect: true,
        leafnode_urls: leaf_urls(options, identity),
        shardcast: true,
        ..LeafInfo::default()
    };
    LeafSettings {
        info,
        logins: (!leaf.users.is_empty()).then(|| leaf_logins(options)),
        auth_timeout_ns: leaf.timeout_ms.saturating_mul(NS_PER_MS),
        write_deadline_ns: leaf.write_deadline_ms.saturating_mul(NS_PER_MS),
        tls: leaf.tls.clone(),
        compression: leaf.compression.clone(),
        is_isolated: leaf.is_isolated,
        min_version: leaf.min_version,
    }
}

/// Returns `host:port` at which leaf nodes may dial this server.
fn leaf_address(options: &Options, identity: &Identity) -> String {
    let leaf = &options.leaf;
    let own_port = identity.leaf_port.unwrap_or_default();
    let (host, port) = advertised(leaf.advertise.as_deref(), &leaf.host, own_port);
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

/// Returns that address, if leaf nodes are to be told.
fn leaf_urls(options: &Options, identity: &Identity) -> Vec<String> {
    let is_told = identity.leaf_port.is_some() && !options.leaf.no_advertise;
    is_told.then(|| leaf_address(options, identity)).into_iter().collect()
}

/// Compiles the credentials of leaf nodes.
fn leaf_logins(options: &Options) -> Logins {
    let compile = |leaf: &LeafUser| {
        let user = User {
            name: Some(leaf.name.as_str().into()),
            account: account_id(options, &leaf.account),
            account_name: leaf.account.as_str().into(),
            permissions: None,
            connection_types: Vec::new(),
            pass: None,
            allowed_by: None,
        };
        let (password, has_nkey) = (leaf.password.clone(), leaf.has_nkey);
        (leaf.name.clone(), Login { password, has_nkey, user: Rc::new(user) })
    };
    Logins { users: options.leaf.users.iter().map(compile).collect(), token: None }
}

/// Converts a list of a route's permissions into the form for peers.
fn permitted(list: &SubjectList) -> Option<Permitted> {
    let texts = |entries: &[SubjectEntry]| {
        entries.iter().map(|entry| entry.subject.clone()).collect::<Vec<_>>()
    };
    let permitted = Permitted { allow: texts(&list.allow), deny: texts(&list.deny) };
    (permitted != Permitted::default()).then_some(permitted)
}
