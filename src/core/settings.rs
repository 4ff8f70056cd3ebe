//! Configuration as an engine uses it: units converted, users and permissions compiled.

use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;

use chrono::{DateTime, SecondsFormat, TimeDelta};

use crate::auth::Secret;
use crate::auth::credential_check::NonceKey;
use crate::auth::grants::Grants;
pub(crate) use crate::auth::logins::{Login, Logins};
use crate::auth::token_users::{Callout, Trusted};
pub use crate::auth::user::PeerUser;
use crate::auth::user::{Peer, User};
use crate::cluster::{ClientUrls, Pooling};
use crate::core::conn::Conn;
use crate::core::leaf_settings::LeafSettings;
use crate::core::protocol_trace::Tracing;
use crate::interest::account_settings::{self, Seats};
use crate::interest::accounts::Accounts;
use crate::interest::ids::AccountId;
use crate::interest::reach::Kind;
pub use crate::interest::stream_settings::{AssetLimits, BatchLimits, StreamSettings, SyncPolicy};
pub use crate::link::gateway_settings::GatewayIdentity;
pub(crate) use crate::link::gateway_settings::GatewaySettings;
use crate::link::{Link, Links};
use crate::measure::{NEVER, Rates};
use crate::output::{Overflow, OverflowRule};
use crate::proto::Info;
use crate::proto::route::RouteInfo;
use crate::session::settings::MqttSettings;
use crate::store::LogSizes;
use crate::transport::{Compression, MutualTls, Network, Tls, Transport, WebSocketSettings};

/// Identity of this server, decided at its start.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// The server's id: a public key of 56 characters that begins with `N`.
    pub id: String,
    /// The server's xkey: a public key of 56 characters that begins with `X`.
    pub xkey: String,
    /// The configured name, else the id.
    pub name: String,
    /// The port in use, also if any free one was asked for.
    pub port: u16,
    /// Host and port for WebSocket clients.
    pub websocket: Option<(String, u16)>,
    /// Key of the nonces that clients with nkeys have to sign.
    pub nonces: NonceKey,
    /// Secret seed of hashes that all shards share.
    pub hash_seed: u64,
    /// The zero of the engine's time, in milliseconds since 1970.
    pub epoch_ms: u64,
    /// The port for leaf nodes, also if any free one was asked for.
    pub leaf_port: Option<u16>,
    /// Identity in the cluster; `None` without a port for routes.
    pub cluster: Option<ClusterIdentity>,
    /// Identity among clusters; `None` without gateways.
    pub gateway: Option<GatewayIdentity>,
    /// Directories of logs by shard; empty while JetStream is off.
    pub logs: Vec<Vec<Box<Path>>>,
    /// The sizes of each log.
    pub log_sizes: LogSizes,
    /// Bytes that streams of all accounts may have where the configuration sets no limit.
    pub assets: AssetLimits,
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

/// Configuration of the block `cluster`, as an engine uses it.
#[derive(Debug)]
pub(crate) struct RouteSettings {
    /// INFO of this server for peers, without the cluster's name.
    pub(crate) info: RouteInfo,
    pub(crate) pooling: Pooling,
    pub(crate) user: Option<String>,
    pub(crate) pass: Option<Secret>,
    pub(crate) auth_timeout_ns: u64,
    pub(crate) ping_interval_ns: u64,
    pub(crate) ping_max: u32,
    /// Permissions of routes: own interest is advertised where publishing is allowed, remote
    /// interest is taken where subscribing is.
    pub(crate) permissions: Option<Grants>,
    pub(crate) tls: Option<MutualTls>,
    pub(crate) compression: Compression,
    /// Nanoseconds that output may take; 0: as for clients.
    pub(crate) write_deadline_ns: u64,
}

/// Configuration of an engine: units converted, users and permissions compiled.
#[derive(Debug)]
pub struct Settings {
    pub(crate) limits: Limits,
    pub(crate) rates: Rates,
    pub(crate) headers: bool,
    /// Bytes of output that all connections of the shard together may have queued.
    pub(crate) memory_bytes_max: usize,
    /// Connections that have ended and are remembered for the monitoring.
    pub(crate) closed_conns_max: usize,
    /// Trace of every operation in the log, if it is on.
    pub(crate) tracing: Option<Tracing>,
    /// Name of the server in subjects: a part of its id.
    pub(crate) node: String,
    pub(crate) route: RouteSettings,
    /// Settings of gateways; `None` without them.
    pub(crate) gateway: Option<Box<GatewaySettings>>,
    /// Secret seed of hashes that all shards share.
    pub(crate) hash_seed: u64,
    pub(crate) leaf: LeafSettings,
    /// The zero of the engine's time, in milliseconds since 1970.
    pub(crate) epoch_ms: u64,
    pub(crate) intervals: Intervals,
    pub(crate) listen: ListenSettings,
    pub(crate) auth: AuthSettings,
    pub(crate) accounts: AccountsSettings,
    /// JetStream, if it runs.
    pub streams: Option<StreamSettings>,
    /// Settings of MQTT; `None` without it.
    pub(crate) mqtt: Option<Box<MqttSettings>>,
}

/// Intervals and deadlines of clients.
#[derive(Debug)]
pub(crate) struct Intervals {
    pub(crate) ping_interval_ns: u64,
    pub(crate) ping_max: u32,
    pub(crate) write_deadline_ns: u64,
    pub(crate) auth_timeout_ns: u64,
}

/// Ways in which clients may connect, and their INFO.
#[derive(Debug)]
pub(crate) struct ListenSettings {
    /// TLS for new connections.
    pub(crate) tls: Option<Tls>,
    /// Whether clients may also connect without TLS.
    pub(crate) allow_non_tls: bool,
    /// Whether connections over TCP may begin with a proxy's header.
    pub(crate) proxy_protocol: bool,
    /// Networks of trusted proxies; empty: all are trusted.
    pub(crate) trusted_proxies: Vec<Network>,
    /// Settings of WebSockets, if there is a port for them.
    pub(crate) websocket: Option<WebSocketSettings>,
    pub(crate) websocket_address: Option<(String, u16)>,
    /// Addresses of this server that clients are informed of.
    pub(crate) urls: ClientUrls,
    pub(crate) info: Info,
}

/// Users and their credentials.
#[derive(Debug)]
pub(crate) struct AuthSettings {
    /// Credentials for WebSockets; `None` if they are those of all clients.
    pub(crate) websocket_logins: Option<Logins>,
    /// Credentials for MQTT; `None` if they are those of all clients.
    pub(crate) mqtt_logins: Option<Logins>,
    /// Users for processes of this machine.
    pub(crate) peers: Vec<PeerUser>,
    pub(crate) nonces: NonceKey,
    /// Whether any user has an nkey.
    pub(crate) has_nkeys: bool,
    pub(crate) logins: Logins,
    pub(crate) guest: Option<Rc<User>>,
    pub(crate) nobody: Rc<User>,
    /// Claims and keys for users that log in by token.
    pub(crate) trusted: Option<Trusted>,
    /// The token of clients that show none (none: they are refused).
    pub(crate) default_sentinel: Option<Box<str>>,
    /// The configured service that decides about clients.
    pub(crate) callout: Option<Callout>,
    /// Labels of the server, as services are told.
    pub(crate) tags: Vec<String>,
}

/// The accounts, and rules for their subjects.
#[derive(Debug)]
pub(crate) struct AccountsSettings {
    /// Whether any account has mappings.
    pub(crate) has_mappings: bool,
    /// Rules for the subjects of which slow clients of any account miss messages.
    pub(crate) overflow: Vec<OverflowRule>,
    /// The configured accounts.
    pub(crate) all: Vec<(AccountId, Rc<account_settings::Account>, Seats)>,
    /// Numbers of the configured accounts by name.
    pub(crate) numbers: HashMap<String, AccountId>,
    /// The system account, in which the server publishes its own messages.
    pub(crate) system: Option<AccountId>,
    /// Requests in the system account about accounts that come by tokens.
    pub(crate) claims_requests: &'static [&'static str],
}

const NS_PER_MS: u64 = 1_000_000;

impl Settings {
    /// Applies the configured accounts; the others are configured no more.
    pub(crate) fn configure(&self, accounts: &mut Accounts) {
        accounts.retire();
        for (id, account, seats) in &self.accounts.all {
            accounts.configure(*id, Rc::clone(account), seats.clone());
            let rules = account.overflow.iter().chain(&self.accounts.overflow);
            let account = accounts.at(*id);
            account.interest.set_overflow(Overflow::new(rules, self.limits.pending_bytes_max));
        }
        accounts.system = self.accounts.system;
        accounts.claims_requests = self.accounts.claims_requests;
        accounts.link(&self.listen.info.server_id);
    }

    /// Whether an account of that name is configured.
    pub(crate) fn has_account(&self, name: &str) -> bool {
        self.accounts.numbers.contains_key(name)
    }

    /// Returns an instant of the engine's time as UTC in RFC 3339, with nanoseconds.
    pub(crate) fn wall_clock(&self, at_ns: u64) -> String {
        let epoch = i64::try_from(self.epoch_ms).ok().and_then(DateTime::from_timestamp_millis);
        let at = i64::try_from(at_ns).map(TimeDelta::nanoseconds).unwrap_or_default();
        (epoch.unwrap_or_default() + at).to_rfc3339_opts(SecondsFormat::Nanos, true)
    }

    /// The server's id.
    pub(crate) fn server_id(&self) -> &str {
        &self.listen.info.server_id
    }

    /// The server's name.
    pub(crate) fn server_name(&self) -> &str {
        &self.listen.info.server_name
    }

    /// Returns the TLS of client connections over `transport`, if it has any.
    pub(crate) fn tls_of(&self, transport: Transport) -> Option<&Tls> {
        match transport {
            Transport::Tcp => self.listen.tls.as_ref(),
            Transport::Unix(_) => None,
            Transport::WebSocket | Transport::LeafWebSocket | Transport::MqttWebSocket => {
                self.listen.websocket.as_ref()?.tls.as_ref()
            }
            Transport::Mqtt => self.mqtt.as_ref()?.tls.as_ref(),
            Transport::Leaf => self.leaf.tls.as_ref(),
        }
    }

    /// Returns the TLS of a connection, of a client or a route, if it has any.
    pub(crate) fn tls_for(&self, conn: &Conn) -> Option<&Tls> {
        match &conn.link {
            // What was dialled has settings of its own.
            Some(link) if link.leaf().is_some() && link.dialed.is_some() => None,
            Some(link) if link.leaf().is_none() => self.mutual_tls(link).map(|mutual| &mutual.tls),
            _ => self.tls_of(conn.transport),
        }
    }

    /// Returns the TLS of a connection to another server, if it has any.
    pub(crate) fn mutual_tls(&self, link: &Link) -> Option<&MutualTls> {
        let Some(peer) = link.gateway() else { return self.route.tls.as_ref() };
        let gateway = self.gateway.as_ref()?;
        let own = gateway.tls_of.get(&*peer.cluster).filter(|_| link.dialed.is_some());
        own.or(gateway.tls.as_ref())
    }

    /// Returns the nanoseconds that output may take on its way to the other end of a connection.
    pub(crate) fn write_deadline_ns_of(&self, kind: Kind) -> u64 {
        let own = match kind {
            Kind::Client => 0,
            Kind::Route => self.route.write_deadline_ns,
            Kind::Leaf | Kind::Hub => self.leaf.write_deadline_ns,
            Kind::Gateway => self.gateway.as_ref().map_or(0, |own| own.write_deadline_ns),
        };
        if own == 0 { self.intervals.write_deadline_ns } else { own }
    }

    /// Returns the nanoseconds of silence before a PING.
    pub(crate) fn ping_interval_of(&self, transport: Transport) -> u64 {
        let is_own = matches!(transport, Transport::WebSocket | Transport::LeafWebSocket);
        let own = self.listen.websocket.as_ref().filter(|_| is_own);
        let own_ms = own.and_then(|websocket| websocket.ping_interval_ms).filter(|ms| *ms > 0);
        own_ms.map_or(self.intervals.ping_interval_ns, |ms| ms.saturating_mul(NS_PER_MS))
    }

    /// Returns the time by which a client that can speak from `now` on must have logged in, or have
    /// begun to speak as a guest; [`NEVER`] where no login is needed.
    pub(crate) fn auth_due(&self, transport: Transport, now: u64) -> u64 {
        if self.admits_everybody(transport) && !transport.is_leaf() {
            return NEVER;
        }
        now.saturating_add(self.auth_timeout_ns_of(transport))
    }

    /// Returns the nanoseconds that a login over `transport` may take.
    pub(crate) fn auth_timeout_ns_of(&self, transport: Transport) -> u64 {
        let own = self.listen.websocket.as_ref().filter(|_| transport == Transport::WebSocket);
        let own_ms = own.and_then(|websocket| websocket.auth_timeout_ms);
        if transport.is_leaf() {
            return self.leaf.auth_timeout_ns;
        }
        let mqtt = self.mqtt.as_ref().filter(|_| transport.is_mqtt());
        let own_ms = own_ms.or_else(|| mqtt.and_then(|mqtt| mqtt.auth_timeout_ms));
        own_ms.map_or(self.intervals.auth_timeout_ns, |ms| ms.saturating_mul(NS_PER_MS))
    }

    /// Returns the credentials for logins over `transport`.
    pub(crate) fn logins(&self, transport: Transport) -> &Logins {
        match &self.auth.websocket_logins {
            Some(logins) if transport == Transport::WebSocket => logins,
            _ if transport.is_mqtt() => self.auth.mqtt_logins.as_ref().unwrap_or(&self.auth.logins),
            _ if transport.is_leaf() => self.leaf.logins.as_ref().unwrap_or(&self.auth.logins),
            _ => &self.auth.logins,
        }
    }

    /// Returns the user of clients without credentials, if there is one.
    pub(crate) fn guest(&self, transport: Transport) -> Option<&Rc<User>> {
        let user = |name: &String| self.auth.logins.users.get(name).map(|login| &login.user);
        let own = match transport {
            Transport::Tcp | Transport::Leaf => None,
            Transport::LeafWebSocket if self.leaf.logins.is_some() => None,
            Transport::Mqtt | Transport::MqttWebSocket => {
                let mqtt = self.mqtt.as_ref();
                mqtt.and_then(|mqtt| mqtt.no_auth_user.as_ref()).and_then(user)
            }
            Transport::Unix(process) => {
                let fits = |id: Option<u32>, actual| id.is_none_or(|id| id == actual);
                let is = |p: &&PeerUser| fits(p.uid, process.uid) && fits(p.gid, process.gid);
                self.auth.peers.iter().find(is).and_then(|peer| user(&peer.user))
            }
            Transport::WebSocket | Transport::LeafWebSocket => {
                let websocket = self.listen.websocket.as_ref();
                websocket.and_then(|websocket| websocket.no_auth_user.as_ref()).and_then(user)
            }
        };
        let has_own = (transport.is_leaf() && self.leaf.logins.is_some())
            || (transport.is_mqtt() && self.auth.mqtt_logins.is_some());
        let everybodys = || self.auth.guest.as_ref().filter(|_| !has_own);
        own.or_else(everybodys).filter(|user| user.may_use(transport.kind()))
    }

    /// Whether clients without credentials are refused.
    pub(crate) fn auth_required(&self, transport: Transport) -> bool {
        let secrets = !self.logins(transport).is_empty() && self.guest(transport).is_none();
        let decides = self.auth.callout.is_some() && self.guest(transport).is_none();
        secrets || self.auth.trusted.is_some() || decides
    }

    /// Returns the user of a client before its CONNECT; `None` if it has to send one first.
    pub(crate) fn user_before_connect(&self, transport: Transport) -> Option<Rc<User>> {
        if self.admits_everybody(transport) {
            return Some(Rc::clone(&self.auth.nobody));
        }
        let is_asked_about = |user: &User| match &self.auth.callout {
            Some(callout) => !callout.exempts(user),
            None => false,
        };
        self.guest(transport).filter(|user| !is_asked_about(user)).cloned()
    }

    /// Whether clients need no login.
    pub(crate) fn admits_everybody(&self, transport: Transport) -> bool {
        let AuthSettings { trusted, callout, .. } = &self.auth;
        self.logins(transport).is_empty() && trusted.is_none() && callout.is_none()
    }

    /// Whether INFO has a nonce: clients may have to sign one.
    pub(crate) fn offers_nonces(&self) -> bool {
        self.auth.has_nkeys || self.auth.trusted.is_some()
    }

    /// Returns the nonce that the connection with this number may have to sign.
    pub(crate) fn nonce(&self, cid: u64) -> String {
        self.auth.nonces.nonce(cid)
    }

    /// Returns the addresses to which clients over `transport` may connect: those of this server,
    /// unless it is a lame duck, and of others. `None` until one of another server is known.
    pub(crate) fn client_urls(
        &self,
        links: &Links,
        transport: Transport,
        lame_duck: bool,
    ) -> Option<Vec<String>> {
        let others = links.urls.of(transport)?;
        let own = self.listen.urls.of(transport).filter(|_| !lame_duck).unwrap_or_default();
        Some(own.iter().chain(others).cloned().collect())
    }

    /// Returns the INFO for one client, as JSON.
    ///
    /// After CONNECT it names the account of the client, and says whether that is the system
    /// account.
    pub(crate) fn info(
        &self,
        peer: &Peer,
        transport: Transport,
        links: &Links,
        lame_duck: bool,
        account: Option<(&str, bool)>,
    ) -> String {
        let mut info = self.listen.info.clone();
        if let Some(name) = &links.name {
            (info.cluster, info.cluster_dynamic) = (Some(name.clone()), links.is_dynamic);
        }
        info.connect_urls = self.client_urls(links, transport, lame_duck).unwrap_or_default();
        info.client_id = peer.cid;
        info.client_ip = peer.ip.to_string();
        info.ldm = lame_duck;
        info.nonce = self.offers_nonces().then(|| self.auth.nonces.nonce(peer.cid));
        if transport != Transport::Tcp {
            let tls = self.tls_of(transport);
            info.tls_required = tls.is_some();
            info.tls_available = false;
            info.auth_required = self.auth_required(transport);
        }
        if transport == Transport::WebSocket {
            // As in nats-server: TLS that is required is also available, `tls_verify` is that of
            // the client port, and guests are not mentioned.
            info.tls_available = info.tls_required;
            info.auth_required = !self.admits_everybody(transport);
            if let Some((host, port)) = &self.listen.websocket_address {
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
    /// Returns the addresses for clients over `transport`, if any are known.
    pub(crate) fn of(&self, transport: Transport) -> Option<&[String]> {
        match transport {
            Transport::WebSocket | Transport::LeafWebSocket | Transport::MqttWebSocket => {
                self.websocket.as_deref()
            }
            Transport::Tcp | Transport::Unix(_) | Transport::Mqtt => self.tcp.as_deref(),
            Transport::Leaf => self.leaf.as_deref(),
        }
    }
}
