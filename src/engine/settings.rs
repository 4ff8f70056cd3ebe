//! The options as an engine uses them: units converted, users and permissions compiled.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::rc::Rc;

use super::accounts::{AccountId, Accounts};
use super::conn::{Peer, User};
use super::mapping::Mappings;
use super::overflow::Overflow;
use super::permissions::Permissions;
use super::proof::{NonceKey, Proof};
use super::route::Cluster;
use super::tokens::{Refusal, Trusted};
use super::trace::Tracing;
use crate::certificate;
use crate::config::{self, ConnectionType, Limits, Options, Rates, RouteUrl, Secret, Tls};
use crate::proto::route::RouteInfo;
use crate::proto::{Connect, Info};

/// Who this server is, decided at its start.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// A public key of 56 characters that begins with `N`.
    pub id: String,
    /// The configured name, else the id.
    pub name: String,
    /// The port it really listens on.
    pub port: u16,
    /// Makes what clients with nkeys have to sign.
    pub nonces: NonceKey,
    /// The zero of the engine's time, in milliseconds since 1970.
    pub epoch_ms: u64,
    /// There if this server can be part of a cluster.
    pub cluster: Option<ClusterIdentity>,
}

/// What else it is as a member of a cluster.
#[derive(Debug, Clone, Default)]
pub struct ClusterIdentity {
    /// The cluster's name.
    pub name: String,
    /// The name was made up.
    pub is_dynamic: bool,
    /// The port where it really listens for routes.
    pub port: u16,
    /// `host:port` where its clients may connect.
    pub urls: Vec<String>,
}

/// What an engine has to know of the cluster's configuration.
#[derive(Debug)]
pub(super) struct RouteSettings {
    /// What this server says of itself, but for the cluster's name.
    pub(super) info: RouteInfo,
    pub(super) user: Option<String>,
    pub(super) pass: Option<Secret>,
    pub(super) auth_timeout_ns: u64,
    pub(super) ping_interval_ns: u64,
    pub(super) ping_max: u32,
}

/// What an engine has to know of the configuration.
#[derive(Debug)]
pub struct Settings {
    pub(super) limits: Limits,
    pub(super) rates: Rates,
    pub(super) headers: bool,
    pub(super) ping_interval_ns: u64,
    pub(super) ping_max: u32,
    pub(super) write_deadline_ns: u64,
    pub(super) auth_timeout_ns: u64,
    /// Bytes of output that all connections of the shard together may have queued.
    pub(super) memory_bytes_max: usize,
    /// Connections that have ended and are remembered for the monitoring.
    pub(super) closed_conns_max: usize,
    /// Log every operation.
    pub(super) tracing: Option<Tracing>,
    /// What published subjects become.
    pub(super) mappings: Option<Mappings>,
    /// Of which subjects slow clients miss messages.
    pub(super) overflow: Option<Rc<Overflow>>,
    /// TLS for new connections.
    pub(super) tls: Option<Tls>,
    /// They may also go without.
    pub(super) allow_non_tls: bool,
    /// Names the server in subjects: a part of its id.
    pub(super) node: String,
    pub(super) route: RouteSettings,
    nonces: NonceKey,
    /// Some users have nkeys.
    has_nkeys: bool,
    users: HashMap<String, Login>,
    token: Option<Secret>,
    guest: Option<Rc<User>>,
    pub(super) nobody: Rc<User>,
    /// Users come by tokens.
    trusted: Option<Trusted>,
    /// The configured accounts.
    accounts: Vec<(AccountId, Rc<config::Account>)>,
    /// The one that the server tells of itself in.
    system: Option<AccountId>,
    info: Info,
}

#[derive(Debug)]
struct Login {
    connection_types: Vec<ConnectionType>,
    password: Secret,
    has_nkey: bool,
    user: Rc<User>,
}

/// What the credentials in a CONNECT come to.
#[derive(Debug)]
pub(super) enum Identified {
    /// The client is this user.
    Is(Rc<User>),
    /// It is if that holds.
    IsIf(Rc<User>, Proof),
    /// It is nobody.
    Refused,
}

/// What a reload means for a user.
#[derive(Debug)]
pub(super) enum Standing {
    /// May stay, with these permissions.
    Stays(Rc<User>),
    /// Has to show other credentials.
    Changed,
    /// Is in another account now.
    Moved,
    /// Is not known any more.
    Gone,
    /// Has a token that its account has revoked.
    Revoked,
}

const NS_PER_MS: u64 = 1_000_000;

impl Settings {
    /// Compiles `options`; all shards together may queue `memory_bytes_max` bytes per shard.
    pub fn new(options: &Options, identity: &Identity, memory_bytes_max: usize) -> Self {
        let auth = &options.auth;
        let compile = |user: &config::User| {
            let defaults = auth.default_permissions.as_ref();
            let defaults = defaults.filter(|_| user.account == config::accounts::GLOBAL);
            let permissions = user.permissions.as_ref().or(defaults);
            let user_of = User {
                name: Some(user.name.as_str().into()),
                account: account_id(options, &user.account),
                account_name: user.account.as_str().into(),
                permissions: permissions.map(Permissions::new),
                pass: None,
            };
            let login = Login {
                connection_types: user.connection_types.clone(),
                password: user.password.clone(),
                has_nkey: user.has_nkey,
                user: Rc::new(user_of),
            };
            (user.name.clone(), login)
        };
        let users: HashMap<_, _> = auth.users.iter().map(compile).collect();
        let guest = auth.no_auth_user.as_ref().and_then(|name| users.get(name));
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
            tracing: Tracing::new(&options.log),
            mappings: Mappings::new(&options.mappings, None),
            overflow: Overflow::new(&options.overflow, options.limits.pending_bytes_max)
                .map(Rc::new),
            tls: options.tls.clone(),
            allow_non_tls: options.allow_non_tls,
            guest: guest.map(|login| Rc::clone(&login.user)),
            node: match identity.id.get(1..9) {
                Some(part) => part.to_owned(),
                None => "0".to_owned(),
            },
            route: route_settings(options, identity),
            nonces: identity.nonces.clone(),
            has_nkeys: auth.users.iter().any(|user| user.has_nkey),
            users,
            token: auth.token.clone(),
            nobody: Rc::new(User {
                name: None,
                account: AccountId::GLOBAL,
                account_name: config::accounts::GLOBAL.into(),
                permissions: None,
                pass: None,
            }),
            trusted: Trusted::new(options, identity.epoch_ms),
            accounts: options
                .accounts
                .list
                .iter()
                .map(|account| (account_id(options, &account.name), Rc::new(account.clone())))
                .collect(),
            system: options.accounts.system.as_ref().map(|name| account_id(options, name)),
            info: info(options, identity),
        }
    }

    /// Puts in force what is configured of accounts; the others are nobody's any more.
    pub(super) fn configure(&self, accounts: &mut Accounts) {
        accounts.retire();
        for (id, account) in &self.accounts {
            accounts.configure(*id, Rc::clone(account));
        }
        accounts.set_overflow(self.overflow.as_ref());
        accounts.system = self.system;
        accounts.link(&self.info.server_id);
    }

    /// The server's id.
    pub(super) fn server_id(&self) -> &str {
        &self.info.server_id
    }

    /// The server's name.
    pub(super) fn server_name(&self) -> &str {
        &self.info.server_name
    }

    /// Whether somebody without credentials is turned away.
    pub(super) fn auth_required(&self) -> bool {
        let secrets = self.token.is_some() || !self.users.is_empty();
        (secrets && self.guest.is_none()) || self.trusted.is_some()
    }

    /// Who a client is before it has sent CONNECT.
    pub(super) fn user_before_connect(&self) -> Option<Rc<User>> {
        if !self.auth_required() && self.guest.is_none() {
            return Some(Rc::clone(&self.nobody));
        }
        self.guest.clone()
    }

    /// Who a client is by its credentials.
    ///
    /// `names` are those of its certificate, where certificates say who somebody is.
    pub(super) fn log_in(
        &self,
        peer: &Peer,
        connect: &Connect,
        names: Option<&certificate::Names>,
        now: u64,
    ) -> Identified {
        if let Some(trusted) = &self.trusted {
            let nonce = self.nonces.nonce(peer.cid);
            return match trusted.identify(peer, connect, nonce, now) {
                Ok((user, proof)) => Identified::IsIf(Rc::new(user), proof),
                Err(refusal) => {
                    tracing::debug!("cid:{} - token refused: {refusal:?}", peer.cid);
                    Identified::Refused
                }
            };
        }
        if let Some(token) = &self.token {
            return check(token, &connect.auth_token, &self.nobody);
        }
        if self.users.is_empty() {
            return Identified::Is(Rc::clone(&self.nobody));
        }
        let maps = self.tls.as_ref().is_some_and(|tls| tls.map);
        let given = [&connect.user, &connect.pass, &connect.auth_token, &connect.nkey];
        if !maps
            && given.iter().all(|text| text.is_empty())
            && let Some(guest) = &self.guest
        {
            return Identified::Is(Rc::clone(guest));
        }
        let name = if maps {
            names.and_then(|names| names.user(self.users.keys().map(String::as_str)))
        } else if connect.nkey.is_empty() {
            Some(connect.user.as_str())
        } else {
            Some(connect.nkey.as_str())
        };
        let Some(login) = name.and_then(|name| self.users.get(name)) else {
            return Identified::Refused;
        };
        let types = &login.connection_types;
        if !types.is_empty() && !types.contains(&ConnectionType::Standard) {
            tracing::debug!("cid:{} - connection type not allowed", peer.cid);
            return Identified::Refused;
        }
        if maps && !connect.user.is_empty() && login.user.name.as_deref() != Some(&connect.user) {
            let user = &connect.user;
            tracing::warn!("User {user:?} found in connect proto, but user required from cert");
        }
        match (login.has_nkey, connect.nkey.is_empty()) {
            (false, true) => check(&login.password, &connect.pass, &login.user),
            (true, false) => Identified::IsIf(
                Rc::clone(&login.user),
                Proof::Signature {
                    key: connect.nkey.clone(),
                    nonce: self.nonces.nonce(peer.cid),
                    signature: connect.sig.clone(),
                },
            ),
            _ => Identified::Refused,
        }
    }

    /// The same for credentials shown before, unless checking them takes long: all connections
    /// are asked about in one go, which must not hold up the shard.
    fn log_in_at_once(&self, peer: &Peer, connect: &Connect, now: u64) -> Option<Rc<User>> {
        // Without names, certificates that say who somebody is are asked for anew.
        match self.log_in(peer, connect, None, now) {
            Identified::Is(user) => Some(user),
            Identified::IsIf(..) | Identified::Refused => None,
        }
    }

    /// What has become of a user of `old`, who sent `connect`.
    pub(super) fn standing(
        &self,
        user: &User,
        peer: &Peer,
        connect: &Connect,
        old: &Self,
        now: u64,
    ) -> Standing {
        if let Some(trusted) = &self.trusted {
            // Its signatures have held before, and it shows the same token.
            return match trusted.identify(peer, connect, String::new(), now) {
                Ok((new, _)) if new.account != user.account => Standing::Moved,
                Ok((new, _)) => Standing::Stays(Rc::new(new)),
                Err(Refusal::Revoked) => Standing::Revoked,
                Err(_) => Standing::Gone,
            };
        }
        let Some(name) = user.name.as_deref() else {
            // It came by a token, or without needing any credentials.
            if self.users.is_empty() && (self.token.is_none() || self.token == old.token) {
                return Standing::Stays(Rc::clone(&self.nobody));
            }
            return self
                .log_in_at_once(peer, connect, now)
                .map_or(Standing::Changed, Standing::Stays);
        };
        match (self.users.get(name), old.users.get(name)) {
            (Some(new), Some(_)) if new.user.account != user.account => Standing::Moved,
            (Some(new), Some(old)) if new.password == old.password => {
                Standing::Stays(Rc::clone(&new.user))
            }
            (Some(_), _) => Standing::Changed,
            (None, _) => Standing::Gone,
        }
    }

    /// The INFO for one client, as JSON.
    ///
    /// After CONNECT it says in which account the client is.
    pub(super) fn info(
        &self,
        peer: &Peer,
        cluster: &Cluster,
        lame_duck: bool,
        account: Option<&str>,
    ) -> String {
        let mut info = self.info.clone();
        if let Some(name) = &cluster.name {
            (info.cluster, info.cluster_dynamic) = (Some(name.clone()), cluster.is_dynamic);
            if lame_duck {
                info.connect_urls.clear();
            }
            info.connect_urls.extend(cluster.urls.iter().cloned());
        }
        info.client_id = peer.cid;
        info.client_ip = peer.ip.to_string();
        info.ldm = lame_duck;
        let signs = self.has_nkeys || self.trusted.is_some();
        info.nonce = signs.then(|| self.nonces.nonce(peer.cid));
        if let Some(account) = account {
            info.connect_info = true;
            info.remote_account = Some(account.to_owned());
        }
        info.to_json()
    }
}

fn account_id(options: &Options, name: &str) -> AccountId {
    options.accounts.number(name).map_or(AccountId::GLOBAL, AccountId::new)
}

/// Whether `given` is the secret of `user`, as far as that is to be seen at once.
fn check(secret: &Secret, given: &str, user: &Rc<User>) -> Identified {
    let user = Rc::clone(user);
    if secret.is_bcrypt() {
        return Identified::IsIf(
            user,
            Proof::Password { secret: secret.clone(), given: given.to_owned() },
        );
    }
    if secret.matches(given) { Identified::Is(user) } else { Identified::Refused }
}

fn info(options: &Options, identity: &Identity) -> Info {
    Info {
        server_id: identity.id.clone(),
        server_name: identity.name.clone(),
        version: crate::NATS_VERSION.to_owned(),
        proto: 1,
        host: options.host.clone(),
        port: identity.port,
        headers: !options.no_header_support,
        tls_required: options.tls.is_some() && !options.allow_non_tls,
        tls_available: options.tls.is_some() && options.allow_non_tls,
        tls_verify: options.tls.as_ref().is_some_and(|tls| tls.verify),
        auth_required: options.requires_login(),
        max_payload: options.limits.payload_bytes_max,
        connect_urls: urls(options, identity),
        ..Info::default()
    }
}

/// Where clients may connect, as far as others are to know.
fn urls(options: &Options, identity: &Identity) -> Vec<String> {
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
    let info = RouteInfo {
        server_id: identity.id.clone(),
        server_name: identity.name.clone(),
        version: crate::NATS_VERSION.to_owned(),
        proto: 1,
        host,
        port,
        ip,
        headers: !options.no_header_support,
        auth_required: cluster.user.is_some(),
        max_payload: i64::try_from(options.limits.payload_bytes_max).unwrap_or(i64::MAX),
        connect_urls: urls(options, identity),
        shardcast: true,
        ..RouteInfo::default()
    };
    RouteSettings {
        info,
        user: cluster.user.clone(),
        pass: cluster.user.as_ref().map(|_| cluster.password.clone()),
        auth_timeout_ns: cluster.timeout_ms.saturating_mul(NS_PER_MS),
        ping_interval_ns: cluster.ping_interval_ms.saturating_mul(NS_PER_MS),
        ping_max: cluster.ping_max,
    }
}
