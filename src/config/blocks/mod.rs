//! Options with defaults and units, and the blocks of the file that set them.
//!
//! To add an option: a field here, a row in the block's table, or in `bind` for a key outside
//! blocks.

pub mod accounts;
pub mod auth;
pub(super) mod bind;
pub(super) mod certificates;
mod ciphers;
pub mod cluster;
mod insecure;
pub mod listeners;
mod mapping;
mod overflow;
pub(super) mod rules;
pub mod tls;
pub mod trust;
pub(super) mod unsupported;
mod verifier;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use super::syntax::{StartError, duration, field, file, mistakes, nearest, written};
use crate::auth::Secret;
use crate::engine::{Limits, SHARDS_MAX};
use crate::host::{Placement, ShardCount, ShardsWanted, Tier, Topology};
use crate::measure::Rates;
use crate::output::OverflowRule;
use crate::transport::{Network, Tls};
pub use accounts::Accounts;
pub use auth::{Auth, User};
pub use cluster::Cluster;
pub use listeners::{UnixOptions, WebSocketOptions};

/// Everything an operator can choose. Plain data; [`Default`] is what an empty file means.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Address or host name to listen on (`0.0.0.0`, which includes IPv6 where there is any).
    pub host: String,
    /// Client port (4222); 0 is any free port.
    pub port: u16,
    /// The Unix socket for clients of this machine (none).
    pub unix: Option<UnixOptions>,
    /// A connection may begin with the header by which a proxy names its client (false).
    pub proxy_protocol: bool,
    /// Whose word on a client's address is taken: that of a proxy's header and of
    /// `X-Forwarded-For` (none: with `proxy_protocol` anybody's header, and nobody's field).
    pub trusted_proxies: Vec<Network>,
    /// Where WebSocket clients come in (nowhere).
    pub websocket: Option<WebSocketOptions>,
    /// `host:port` that other servers tell their clients about (none: `host` and `port`).
    pub client_advertise: Option<String>,
    /// What the monitoring shows besides the tags (none).
    pub server_metadata: BTreeMap<String, String>,
    /// What becomes of clients that a write takes too long for, as the monitoring shows it (none).
    pub write_timeout: Option<&'static str>,
    /// Name of the server, without blanks (none: its id).
    pub server_name: Option<String>,
    /// Labels of the server, for its monitoring (none).
    pub server_tags: Vec<String>,
    /// Neither headers in INFO nor HPUB (false).
    pub no_header_support: bool,
    /// What a client may use of the server.
    pub limits: Limits,
    /// How often connections may come, and what one may send.
    pub rates: Rates,
    /// Milliseconds of silence after which a client is sent a PING (120 000).
    pub ping_interval_ms: u64,
    /// PINGs without an answer before a connection counts as stale (2).
    pub ping_max: u32,
    /// Milliseconds one write to a client may take (10 000).
    pub write_deadline_ms: u64,
    /// Milliseconds from entering lame duck mode to the end (120 000).
    pub lame_duck_duration_ms: u64,
    /// Milliseconds of those before the first connection is closed (10 000).
    pub lame_duck_grace_ms: u64,
    /// Who may connect, and do what.
    pub auth: Auth,
    /// The cluster it is part of.
    pub cluster: Cluster,
    /// The accounts that users are in.
    pub accounts: Accounts,
    /// Who vouches for accounts and users that come as tokens (nobody).
    pub trust: Option<trust::Trust>,
    /// Of which subjects slow clients of any account miss messages (none).
    pub overflow: Vec<OverflowRule>,
    /// TLS for clients (none).
    pub tls: Option<Tls>,
    /// With TLS: clients may also go without (false).
    pub allow_non_tls: bool,
    /// Where the monitoring listens (nowhere).
    pub http: Option<HttpOptions>,
    /// Path before those of the monitoring's pages; slashes around it do not matter (empty).
    pub http_base_path: String,
    /// Connections that have ended and are still shown by the monitoring (10 000).
    pub closed_conns_max: usize,
    /// What is logged, and where.
    pub log: LogOptions,
    /// File that receives the process id (none).
    pub pid_file: Option<PathBuf>,
    /// Directory that receives `<program>_<pid>.ports` (none).
    pub ports_file_dir: Option<PathBuf>,
    /// How the machine is used.
    pub runtime: RuntimeOptions,
    /// The file these options came from (none).
    pub source: Option<Source>,
    /// What the operator should write otherwise; logged at start, and a failure of `-t`.
    pub warnings: Vec<String>,
    /// What has no effect because this server does not have it; logged at start.
    pub missing: Vec<String>,
    /// Whole parts that clients may count on and that this server does not have; errors at start.
    pub absent: Vec<String>,
    /// Clients are to have JetStream, which this server does not have (false).
    pub wants_jetstream: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            host: "0.0.0.0".to_owned(),
            port: 4222,
            unix: None,
            proxy_protocol: false,
            trusted_proxies: Vec::new(),
            websocket: None,
            client_advertise: None,
            server_metadata: BTreeMap::new(),
            write_timeout: None,
            server_name: None,
            server_tags: Vec::new(),
            no_header_support: false,
            limits: Limits::default(),
            rates: Rates::default(),
            ping_interval_ms: 120_000,
            ping_max: 2,
            write_deadline_ms: 10_000,
            lame_duck_duration_ms: 120_000,
            lame_duck_grace_ms: 10_000,
            auth: Auth::default(),
            cluster: Cluster::default(),
            accounts: Accounts::default(),
            trust: None,
            overflow: Vec::new(),
            tls: None,
            allow_non_tls: false,
            http: None,
            http_base_path: String::new(),
            closed_conns_max: 10_000,
            log: LogOptions::default(),
            pid_file: None,
            ports_file_dir: None,
            runtime: RuntimeOptions::default(),
            source: None,
            warnings: Vec::new(),
            missing: Vec::new(),
            absent: Vec::new(),
            wants_jetstream: false,
        }
    }
}

/// Host and port as others are told of them: what is advertised, which may have no port, else where
/// the server listens.
pub fn advertised<'a>(advertise: Option<&'a str>, host: &'a str, port: u16) -> (&'a str, u16) {
    let Some(advertise) = advertise else { return (host, port) };
    let given = advertise.rsplit_once(':').and_then(|(host, given)| {
        let given = given.trim().parse::<i32>().ok()?;
        // What is no port, such as -1, is the one that is listened on.
        Some((host, u16::try_from(given).ok().filter(|given| *given > 0)))
    });
    let (host, given) = given.unwrap_or((advertise, None));
    let host = host.trim();
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    (inner.unwrap_or(host), given.unwrap_or(port))
}

impl Options {
    /// Whether a client without credentials is turned away.
    pub fn requires_login(&self) -> bool {
        (self.auth.is_required() && self.auth.no_auth_user.is_none()) || self.trust.is_some()
    }

    /// What an account is called by people: the name that its token has, else its own.
    pub fn account_label<'a>(&'a self, name: &'a str) -> &'a str {
        let claims = self.trust.as_ref().and_then(|trust| trust.accounts.get(name));
        claims.map(|claims| claims.name.as_str()).filter(|label| !label.is_empty()).unwrap_or(name)
    }

    /// Host and port where clients are told to connect, if `port` is listened on.
    pub fn shown_address(&self, port: u16) -> (&str, u16) {
        advertised(self.client_advertise.as_deref(), &self.host, port)
    }

    /// Takes where the monitoring listens from another key or flag; what says the port alone
    /// leaves the host.
    pub(in crate::config) fn listen_http(
        &mut self,
        host: Option<String>,
        port: u16,
        is_tls: bool,
    ) -> Result<(), StartError> {
        let before = self.http.take();
        if before.as_ref().is_some_and(|http| http.is_tls != is_tls) {
            return Err(StartError::new("the monitoring has http or https, not both; keep one"));
        }
        let host = host.or_else(|| before.and_then(|http| http.host));
        self.http = Some(HttpOptions { host, port, is_tls });
        Ok(())
    }
}

/// Where the monitoring listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpOptions {
    /// Address or host name (none: the client listener's).
    pub host: Option<String>,
    /// Port; 0 is any free port.
    pub port: u16,
    /// Over TLS, with the certificate that clients see, and without asking for theirs.
    pub is_tls: bool,
}

/// What is logged, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogOptions {
    /// The log file (none: standard error).
    pub file: Option<PathBuf>,
    /// Bytes after which the log file is put aside and begun anew; 0 is never (0).
    pub file_bytes_max: u64,
    /// Log files that are kept, the current one included; 0 is all of them (0).
    pub files_max: usize,
    /// The system's log to write to instead, unless there is a file (none).
    pub syslog: Option<Syslog>,
    /// How a line looks (`text`).
    pub format: LogFormat,
    /// Date and time before each line (true).
    pub timestamps: bool,
    /// Date and time in UTC instead of local time (false).
    pub utc: bool,
    /// Log what happens to connections (false).
    pub debug: bool,
    /// Log every operation (false).
    pub trace: bool,
    /// Log also those of the system account (false).
    pub trace_verbose: bool,
    /// Log of traced messages the headers only (false).
    pub trace_headers: bool,
    /// Bytes of a traced payload that are logged; 0 is all (0).
    pub traced_message_bytes_max: usize,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            file: None,
            file_bytes_max: 0,
            files_max: 0,
            syslog: None,
            format: LogFormat::Text,
            timestamps: true,
            utc: false,
            debug: false,
            trace: false,
            trace_verbose: false,
            trace_headers: false,
            traced_message_bytes_max: 0,
        }
    }
}

/// A system log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Syslog {
    /// This machine's.
    Local,
    /// `host:port`, by datagrams.
    Udp(String),
    /// `host:port`, over a connection.
    Tcp(String),
}

impl FromStr for Syslog {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, String> {
        match url.split_once("://") {
            Some(("udp", address)) if address.contains(':') => Ok(Self::Udp(address.to_owned())),
            Some(("tcp", address)) if address.contains(':') => Ok(Self::Tcp(address.to_owned())),
            _ => Err("expected udp://host:port or tcp://host:port".to_owned()),
        }
    }
}

/// How a line of the log looks; the system's log has its own form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// nats-server's.
    Text,
    /// A JSON object with `time` (UTC), `pid`, `level` and `message`.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("expected text or json".to_owned()),
        }
    }
}

/// How the machine is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeOptions {
    /// How many shards there are (`auto`).
    pub shards: ShardCount,
    /// Where the next connection goes (the shard with the fewest).
    pub seating: Seating,
    /// The io_uring tier to use (none: the best one that works here).
    pub uring_tier: Option<Tier>,
    /// Keep each shard on one core (true).
    pub pin: bool,
    /// Microseconds a shard looks for work before it sleeps (0).
    pub busy_poll_us: u32,
    /// Microseconds the kernel polls network cards before a shard sleeps (0).
    pub napi_us: u32,
}

impl Default for RuntimeOptions {
    fn default() -> Self {
        Self {
            shards: ShardCount::Auto,
            seating: Seating::Fewest,
            uring_tier: None,
            pin: true,
            busy_poll_us: 0,
            napi_us: 0,
        }
    }
}

impl RuntimeOptions {
    /// Where that many shards live on a host like this.
    pub fn placement(&self, topology: &Topology) -> Placement {
        Placement::plan(
            topology,
            ShardsWanted { shards: self.shards, pin: self.pin, max: SHARDS_MAX },
        )
    }
}

/// On which shard a new connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seating {
    /// On the one with the fewest.
    Fewest,
    /// On the one after that of the connection before.
    RoundRobin,
}

/// The configuration file that was used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The path as it was given.
    pub path: PathBuf,
    /// SHA-256 of its bytes, in hexadecimal; files it includes do not count.
    pub sha256: String,
    /// There is no key in it.
    pub is_empty: bool,
}
