//! What is configured, as an engine uses it: units converted, users and permissions compiled.

#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use chrono::{DateTime, SecondsFormat, TimeDelta};

use super::account_settings::{self, Seats};
use super::accounts::{AccountId, Accounts};
use super::conn::{Conn, Peer, User};
use super::permissions::Permissions;
use super::proof::{NonceKey, Proof};
use super::route::Cluster;
use super::timers::NEVER;
use super::tokens::{Refusal, Trusted};
use super::trace::Tracing;
use crate::auth::Secret;
use crate::auth::certificate;
use crate::cluster::{ClientUrls, Pooling};
use crate::measure::Rates;
use crate::output::{Overflow, OverflowRule};
use crate::proto::Info;
use crate::proto::route::RouteInfo;
use crate::transport::{Compression, MutualTls, Network, Tls, Transport, WebSocketSettings};

/// Who this server is, decided at its start.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// A public key of 56 characters that begins with `N`.
    pub id: String,
    /// A public key of 56 characters that begins with `X`.
    pub xkey: String,
    /// The configured name, else the id.
    pub name: String,
    /// The port in use, also if any free one was asked for.
    pub port: u16,
    /// Host and port for WebSocket clients.
    pub websocket: Option<(String, u16)>,
    /// Makes what clients with nkeys have to sign.
    pub nonces: NonceKey,
    /// The zero of the engine's time, in milliseconds since 1970.
    pub epoch_ms: u64,
    /// Identity in the cluster; `None` without a port for routes.
    pub cluster: Option<ClusterIdentity>,
}

/// Identity of the server as a member of a cluster.
#[derive(Debug, Clone, Default)]
pub struct ClusterIdentity {
    /// The cluster's name.
    pub name: String,
    /// Whether the name was generated, not configured.
    pub is_dynamic: bool,
    /// The port for routes in use, also if any free one was asked for.
    pub port: u16,
    /// Addresses for clients of this server.
    pub urls: ClientUrls,
    /// Assignment of accounts to the connections to a member; a reload does not change it.
    pub pooling: Pooling,
}

/// Limits of one client, and of the number of clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes in the arguments of one operation (4096).
    pub control_line_bytes_max: usize,
    /// Bytes of header and payload of one message (1 MiB).
    pub payload_bytes_max: usize,
    /// Unsent bytes for one client (64 MiB).
    pub pending_bytes_max: usize,
    /// Client connections at one time (65 536); 0 is none at all.
    pub connections_max: usize,
    /// Subscriptions of one connection; 0 is without limit (0).
    pub subscriptions_max: usize,
    /// Tokens in the subject of a SUB, at most 255; 0 is without limit (0).
    pub subscription_tokens_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            control_line_bytes_max: 4096,
            payload_bytes_max: 1024 * 1024,
            pending_bytes_max: 64 * 1024 * 1024,
            connections_max: 65_536,
            subscriptions_max: 0,
            subscription_tokens_max: 0,
        }
    }
}

/// Assignment of local processes to a user of the server, by the ids of the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerUser {
    /// The process's effective user id (none: any).
    pub uid: Option<u32>,
    /// The process's effective group id (none: any).
    pub gid: Option<u32>,
    /// One of the configured users.
    pub user: String,
}

/// Configuration of the block `cluster`, as an engine uses it.
#[derive(Debug)]
pub(crate) struct RouteSettings {
    /// What this server says of itself, but for the cluster's name.
    pub(crate) info: RouteInfo,
    pub(crate) pooling: Pooling,
    pub(crate) user: Option<String>,
    pub(crate) pass: Option<Secret>,
    pub(crate) auth_timeout_ns: u64,
    pub(crate) ping_interval_ns: u64,
    pub(crate) ping_max: u32,
    /// What may be told of the interest here, as what may be published, and what of others' may
    /// be taken, as what may be subscribed to.
    pub(crate) permissions: Option<Permissions>,
    pub(crate) tls: Option<MutualTls>,
    pub(crate) compression: Compression,
}

/// Configuration of an engine: units converted, users and permissions compiled.
#[derive(Debug)]
pub struct Settings {
    pub(crate) limits: Limits,
    pub(crate) rates: Rates,
    pub(crate) headers: bool,
    pub(crate) ping_interval_ns: u64,
    pub(crate) ping_max: u32,
    pub(crate) write_deadline_ns: u64,
    pub(crate) auth_timeout_ns: u64,
    /// Bytes of output that all connections of the shard together may have queued.
    pub(crate) memory_bytes_max: usize,
    /// Connections that have ended and are remembered for the monitoring.
    pub(crate) closed_conns_max: usize,
    /// Trace of every operation in the log, if it is on.
    pub(crate) tracing: Option<Tracing>,
    /// Whether any account has mappings.
    pub(crate) has_mappings: bool,
    /// Of which subjects slow clients of any account miss messages.
    pub(crate) overflow: Vec<OverflowRule>,
    /// TLS for new connections.
    pub(crate) tls: Option<Tls>,
    /// Whether clients may also connect without TLS.
    pub(crate) allow_non_tls: bool,
    /// Whether connections over TCP may begin with a proxy's header.
    pub(crate) proxy_protocol: bool,
    /// Networks of trusted proxies; empty: all are trusted.
    pub(crate) trusted_proxies: Vec<Network>,
    /// How WebSockets are made.
    pub(crate) websocket: Option<WebSocketSettings>,
    /// The credentials that count for those, unless they are everybody's.
    pub(crate) websocket_logins: Option<Logins>,
    pub(crate) websocket_address: Option<(String, u16)>,
    /// Where clients of this server may connect, as far as they are to know.
    pub(crate) urls: ClientUrls,
    /// Which users processes of this machine are.
    pub(crate) peers: Vec<PeerUser>,
    /// Names the server in subjects: a part of its id.
    pub(crate) node: String,
    pub(crate) route: RouteSettings,
    /// The zero of the engine's time, in milliseconds since 1970.
    pub(crate) epoch_ms: u64,
    pub(crate) nonces: NonceKey,
    /// Whether any user has an nkey.
    pub(crate) has_nkeys: bool,
    pub(crate) logins: Logins,
    pub(crate) guest: Option<Rc<User>>,
    pub(crate) nobody: Rc<User>,
    /// Claims and keys for users that log in by token.
    pub(crate) trusted: Option<Trusted>,
    /// The configured accounts.
    pub(crate) accounts: Vec<(AccountId, Rc<account_settings::Account>, Seats)>,
    /// Their names.
    pub(crate) names: HashSet<String>,
    /// The one that the server tells of itself in.
    pub(crate) system: Option<AccountId>,
    /// What may be asked there of accounts that come by tokens.
    pub(crate) claims_requests: &'static [&'static str],
    pub(crate) info: Info,
}

/// Credentials that let somebody in: a token, or those of users.
#[derive(Debug)]
pub(crate) struct Logins {
    pub(crate) users: HashMap<String, Login>,
    pub(crate) token: Option<Secret>,
}

#[derive(Debug)]
pub(crate) struct Login {
    pub(crate) password: Secret,
    pub(crate) has_nkey: bool,
    pub(crate) user: Rc<User>,
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
    /// Puts in force what is configured of accounts; the others are nobody's any more.
    pub(super) fn configure(&self, accounts: &mut Accounts) {
        accounts.retire();
        for (id, account, seats) in &self.accounts {
            accounts.configure(*id, Rc::clone(account), seats.clone());
            let rules = account.overflow.iter().chain(&self.overflow);
            let account = accounts.at(*id);
            account.interest.set_overflow(Overflow::new(rules, self.limits.pending_bytes_max));
        }
        accounts.system = self.system;
        accounts.claims_requests = self.claims_requests;
        accounts.link(&self.info.server_id);
    }

    /// Whether there is an account of that name.
    pub(super) fn has_account(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// An instant of the engine's time as people write it.
    pub(super) fn wall_clock(&self, at_ns: u64) -> String {
        let epoch = i64::try_from(self.epoch_ms).ok().and_then(DateTime::from_timestamp_millis);
        let at = i64::try_from(at_ns).map(TimeDelta::nanoseconds).unwrap_or_default();
        (epoch.unwrap_or_default() + at).to_rfc3339_opts(SecondsFormat::Nanos, true)
    }

    /// The server's id.
    pub(super) fn server_id(&self) -> &str {
        &self.info.server_id
    }

    /// The server's name.
    pub(super) fn server_name(&self) -> &str {
        &self.info.server_name
    }

    /// TLS of connections over this transport.
    pub(super) fn tls_of(&self, transport: Transport) -> Option<&Tls> {
        match transport {
            Transport::Tcp => self.tls.as_ref(),
            Transport::Unix(_) => None,
            Transport::WebSocket => self.websocket.as_ref()?.tls.as_ref(),
        }
    }

    /// TLS of a connection, of a client or a route.
    pub(super) fn tls_for(&self, conn: &Conn) -> Option<&Tls> {
        match conn.route {
            Some(_) => self.route.tls.as_ref().map(|mutual| &mutual.tls),
            None => self.tls_of(conn.transport),
        }
    }

    /// Nanoseconds of silence before a PING.
    pub(super) fn ping_interval_of(&self, transport: Transport) -> u64 {
        let own = self.websocket.as_ref().filter(|_| transport == Transport::WebSocket);
        let own_ms = own.and_then(|websocket| websocket.ping_interval_ms).filter(|ms| *ms > 0);
        own_ms.map_or(self.ping_interval_ns, |ms| ms.saturating_mul(NS_PER_MS))
    }

    /// When a client that can speak from `now` on must have shown who it is, or have begun to
    /// speak as a guest.
    pub(super) fn auth_due(&self, transport: Transport, now: u64) -> u64 {
        if self.admits_everybody(transport) {
            return NEVER;
        }
        now.saturating_add(self.auth_timeout_ns_of(transport))
    }

    /// How long that may take, in nanoseconds.
    pub(super) fn auth_timeout_ns_of(&self, transport: Transport) -> u64 {
        let own = self.websocket.as_ref().filter(|_| transport == Transport::WebSocket);
        let own_ms = own.and_then(|websocket| websocket.auth_timeout_ms);
        own_ms.map_or(self.auth_timeout_ns, |ms| ms.saturating_mul(NS_PER_MS))
    }

    /// The credentials that count for a transport.
    fn logins(&self, transport: Transport) -> &Logins {
        match &self.websocket_logins {
            Some(logins) if transport == Transport::WebSocket => logins,
            _ => &self.logins,
        }
    }

    /// Who a client without credentials is.
    fn guest(&self, transport: Transport) -> Option<&Rc<User>> {
        let user = |name: &String| self.logins.users.get(name).map(|login| &login.user);
        let own = match transport {
            Transport::Tcp => None,
            Transport::Unix(process) => {
                let fits = |id: Option<u32>, actual| id.is_none_or(|id| id == actual);
                let is = |p: &&PeerUser| fits(p.uid, process.uid) && fits(p.gid, process.gid);
                self.peers.iter().find(is).and_then(|peer| user(&peer.user))
            }
            Transport::WebSocket => {
                let websocket = self.websocket.as_ref();
                websocket.and_then(|websocket| websocket.no_auth_user.as_ref()).and_then(user)
            }
        };
        let everybodys = || self.guest.as_ref();
        own.or_else(everybodys).filter(|user| user.may_use(transport))
    }

    /// Whether somebody without credentials is turned away.
    pub(super) fn auth_required(&self, transport: Transport) -> bool {
        let secrets = !self.logins(transport).is_empty() && self.guest(transport).is_none();
        secrets || self.trusted.is_some()
    }

    /// Who a client is before it has sent CONNECT.
    pub(super) fn user_before_connect(&self, transport: Transport) -> Option<Rc<User>> {
        if self.admits_everybody(transport) {
            return Some(Rc::clone(&self.nobody));
        }
        self.guest(transport).cloned()
    }

    /// Whether nobody has to be anybody.
    pub(super) fn admits_everybody(&self, transport: Transport) -> bool {
        self.logins(transport).is_empty() && self.trusted.is_none()
    }

    /// Who a client is by its credentials, if it may be that over its transport.
    ///
    /// `names` are those of its certificate, where certificates say who somebody is.
    pub(super) fn log_in(
        &self,
        conn: &Conn,
        names: Option<&certificate::Names>,
        now: u64,
    ) -> Identified {
        match self.identify(conn, names, now) {
            Identified::Is(user) | Identified::IsIf(user, _) if !user.may_use(conn.transport) => {
                tracing::debug!("{} - connection type not allowed", conn.label());
                Identified::Refused
            }
            identified => identified,
        }
    }

    fn identify(&self, conn: &Conn, names: Option<&certificate::Names>, now: u64) -> Identified {
        let Conn { peer, connect, transport, .. } = conn;
        if let Some(trusted) = &self.trusted {
            let nonce = self.nonces.nonce(peer.cid);
            return match trusted.identify((peer, *transport), connect, nonce, now) {
                Ok((user, proof)) => Identified::IsIf(Rc::new(user), proof),
                Err(refusal) => {
                    tracing::debug!("cid:{} - token refused: {refusal:?}", peer.cid);
                    Identified::Refused
                }
            };
        }
        let Logins { users, token } = self.logins(*transport);
        if let Some(token) = token {
            return check(token, &connect.auth_token, &self.nobody);
        }
        if users.is_empty() {
            return Identified::Is(Rc::clone(&self.nobody));
        }
        let maps = self.tls_of(*transport).is_some_and(|tls| tls.map);
        let given = [&connect.user, &connect.pass, &connect.auth_token, &connect.nkey];
        if !maps
            && given.iter().all(|text| text.is_empty())
            && let Some(guest) = self.guest(*transport)
        {
            return Identified::Is(Rc::clone(guest));
        }
        let name = if maps {
            names.and_then(|names| names.user(users.keys().map(String::as_str)))
        } else if connect.nkey.is_empty() {
            Some(connect.user.as_str())
        } else {
            Some(connect.nkey.as_str())
        };
        let Some(login) = name.and_then(|name| users.get(name)) else {
            return Identified::Refused;
        };
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
    fn log_in_at_once(&self, conn: &Conn, now: u64) -> Option<Rc<User>> {
        // Without names, certificates that say who somebody is are asked for anew.
        match self.log_in(conn, None, now) {
            Identified::Is(user) => Some(user),
            Identified::IsIf(..) | Identified::Refused => None,
        }
    }

    /// Whether what `user` is to prove under `old` is as good now.
    pub(super) fn claims_hold(&self, user: &User, old: &Self) -> bool {
        let both = self.trusted.as_ref().zip(old.trusted.as_ref());
        both.is_some_and(|(now, old)| now.says_the_same_of(&user.account_name, old))
    }

    /// What has become of a user of `old`, who came by `conn`.
    pub(super) fn standing(&self, user: &Rc<User>, conn: &Conn, old: &Self, now: u64) -> Standing {
        if let Some(trusted) = &self.trusted {
            if self.claims_hold(user, old) {
                return Standing::Stays(Rc::clone(user));
            }
            // Its signatures have held before, and it shows the same token.
            return match trusted.identify(
                (&conn.peer, conn.transport),
                &conn.connect,
                String::new(),
                now,
            ) {
                Ok((new, _)) if new.account != user.account => Standing::Moved,
                Ok((new, _)) => Standing::Stays(Rc::new(new)),
                Err(Refusal::Revoked) => Standing::Revoked,
                Err(_) => Standing::Gone,
            };
        }
        let (logins, old) = (self.logins(conn.transport), old.logins(conn.transport));
        let Some(name) = user.name.as_deref() else {
            // It came by a token, or without needing any credentials.
            if logins.users.is_empty() && (logins.token.is_none() || logins.token == old.token) {
                return Standing::Stays(Rc::clone(&self.nobody));
            }
            return self.log_in_at_once(conn, now).map_or(Standing::Changed, Standing::Stays);
        };
        match (logins.users.get(name), old.users.get(name)) {
            (Some(new), Some(_)) if new.user.account != user.account => Standing::Moved,
            (Some(new), Some(old))
                if new.password == old.password && new.user.may_use(conn.transport) =>
            {
                Standing::Stays(Rc::clone(&new.user))
            }
            (Some(_), _) => Standing::Changed,
            (None, _) => Standing::Gone,
        }
    }

    /// What the connection with this number may have to sign.
    pub(super) fn nonce(&self, cid: u64) -> String {
        self.nonces.nonce(cid)
    }

    /// Where clients over `transport` may connect, once it is known of another server: here, unless
    /// it is a lame duck, and there.
    pub(super) fn client_urls(
        &self,
        cluster: &Cluster,
        transport: Transport,
        lame_duck: bool,
    ) -> Option<Vec<String>> {
        let others = cluster.urls.of(transport)?;
        let own = self.urls.of(transport).filter(|_| !lame_duck).unwrap_or_default();
        Some(own.iter().chain(others).cloned().collect())
    }

    /// The INFO for one client, as JSON.
    ///
    /// After CONNECT it says in which account the client is, and whether that is the system's.
    pub(super) fn info(
        &self,
        (peer, transport): (&Peer, Transport),
        cluster: &Cluster,
        lame_duck: bool,
        account: Option<(&str, bool)>,
    ) -> String {
        let mut info = self.info.clone();
        if let Some(name) = &cluster.name {
            (info.cluster, info.cluster_dynamic) = (Some(name.clone()), cluster.is_dynamic);
        }
        info.connect_urls = self.client_urls(cluster, transport, lame_duck).unwrap_or_default();
        info.client_id = peer.cid;
        info.client_ip = peer.ip.to_string();
        info.ldm = lame_duck;
        let signs = self.has_nkeys || self.trusted.is_some();
        info.nonce = signs.then(|| self.nonces.nonce(peer.cid));
        if transport != Transport::Tcp {
            let tls = self.tls_of(transport);
            info.tls_required = tls.is_some();
            info.tls_available = false;
            info.auth_required = self.auth_required(transport);
        }
        if transport == Transport::WebSocket {
            // As nats-server has it: the TLS that it has is also available, who verifies is the
            // client port, and guests are not mentioned.
            info.tls_available = info.tls_required;
            info.auth_required = !self.admits_everybody(transport);
            if let Some((host, port)) = &self.websocket_address {
                (info.host, info.port) = (host.clone(), *port);
            }
        }
        if let Some((account, is_system)) = account {
            info.connect_info = true;
            info.remote_account = Some(account.to_owned());
            info.acc_is_sys = is_system;
        }
        info.to_json()
    }
}

impl ClientUrls {
    /// What clients over `transport` are told of these.
    pub(super) fn of(&self, transport: Transport) -> Option<&[String]> {
        match transport {
            Transport::WebSocket => self.websocket.as_deref(),
            Transport::Tcp | Transport::Unix(_) => self.tcp.as_deref(),
        }
    }
}

impl User {
    /// Whether it may connect over this transport.
    fn may_use(&self, transport: Transport) -> bool {
        let types = &self.connection_types;
        types.is_empty() || types.contains(&transport.kind())
    }
}

impl Logins {
    /// Whether everybody is let in.
    fn is_empty(&self) -> bool {
        self.token.is_none() && self.users.is_empty()
    }
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
