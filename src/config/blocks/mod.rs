//! Options with defaults and units, and the blocks of the file that set them.
//!
//! To add an option: a field of its group, and a row in the table beside it. `bind` has the keys of
//! users and of what this server does not have.

pub mod accounts;
pub mod auth;
pub(super) mod bind;
mod callout;
pub mod cluster;
pub mod gateway;
mod jetstream;
mod latency;
mod leafnodes;
mod limits;
pub mod listeners;
mod log;
mod mapping;
mod monitoring;
mod network;
mod overflow;
mod resolver;
pub(super) mod rules;
mod runtime;
mod server;
pub mod trust;
pub(super) mod unsupported;

use std::path::PathBuf;

use super::mqtt;
pub use super::mqtt::MqttOptions;
pub use super::ocsp::{OcspOptions, PeerCacheOptions, StapleMode};
#[cfg(test)]
use super::syntax::consulted;
use super::syntax::{StartError, duration, field, file, mistakes, nearest, written};
use super::tls;
use crate::auth::Secret;
use crate::engine::Limits;
use crate::engine::account_settings::{Account, AccountAssetLimits};
use crate::measure::Rates;
use crate::output::OverflowRule;
pub use accounts::AccountOptions;
pub use auth::{Auth, UserOptions};
pub use callout::CalloutOptions;
pub use cluster::ClusterOptions;
pub use gateway::GatewayOptions;
pub use jetstream::{JetStreamLimits, JetStreamOptions, JetStreamQueues};
pub use leafnodes::{LeafOptions, LeafProxy, LeafRemoteOptions, LeafUser};
pub use limits::{LameDuckOptions, TimeoutOptions};
pub use listeners::{UnixOptions, WebSocketOptions};
pub use log::{LogFormat, LogOptions, Syslog};
pub use monitoring::{HttpOptions, MonitoringOptions};
pub use network::{NetworkOptions, advertised};
pub use runtime::{RuntimeOptions, Seating};
pub use server::ServerOptions;

/// All options of an operator, as plain data. [`Default`] is the result of an empty file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Options {
    /// The listeners of clients.
    pub network: NetworkOptions,
    /// Name, labels and files of the server.
    pub server: ServerOptions,
    /// The monitoring's listener, and its memory of closed connections.
    pub monitoring: MonitoringOptions,
    /// Content, destination and form of the log.
    pub log: LogOptions,
    /// Sizes and numbers that bound what clients use of the server.
    pub limits: Limits,
    /// Rates of new connections, and of what one client sends.
    pub rates: Rates,
    /// Subjects whose messages slow clients of any account may miss (none).
    pub overflow: Vec<OverflowRule>,
    /// Times after which silent or slow clients are closed.
    pub timeouts: TimeoutOptions,
    /// The pace of lame duck mode.
    pub lame_duck: LameDuckOptions,
    /// Users, and their permissions.
    pub auth: Auth,
    /// The accounts that users are in.
    pub accounts: AccountOptions,
    /// Operators that vouch for accounts and users with tokens (none).
    pub trust: Option<trust::TrustOptions>,
    /// The status of certificates: staples, and the memory of answers about peers.
    pub ocsp: OcspOptions,
    /// Streams, and where they are stored.
    pub jetstream: JetStreamOptions,
    /// The cluster that the server is part of.
    pub cluster: ClusterOptions,
    /// The connections to other clusters.
    pub gateway: GatewayOptions,
    /// Leaf nodes of the server, and hubs that it is a leaf node of.
    pub leaf: LeafOptions,
    /// Shards, cores and io_uring.
    pub runtime: RuntimeOptions,
    /// The file these options came from (none).
    pub source: Option<ConfigSource>,
    /// Remarks about the file and the flags.
    pub notes: ConfigNotes,
}

impl Options {
    /// Whether a client without credentials is refused.
    pub fn requires_login(&self) -> bool {
        let admits = self.auth.no_auth_user.is_some() || self.has_open_global();
        (self.auth.is_required() && !admits) || self.trust.is_some()
    }

    /// Whether clients without credentials are in `$G`: only the system account has users. As in
    /// nats-server, whoever gives that account a password need not give one to everybody.
    pub fn has_open_global(&self) -> bool {
        let system = self.accounts.system.as_deref();
        let users = &self.auth.users;
        !users.is_empty()
            && users.iter().all(|user| Some(&*user.account) == system)
            && self.auth.token.is_none()
            && self.auth.callout.is_none()
            && !self.accounts.has_own()
            && self.trust.is_none()
    }

    /// Returns the limits of an account's streams; `None` if it may have none.
    ///
    /// Who has no accounts of his own has streams in that of everybody.
    pub fn streams_of(&self, account: &Account) -> Option<AccountAssetLimits> {
        if !self.jetstream.is_enabled {
            return None;
        }
        let is_everybodys = account.name == accounts::GLOBAL && !self.accounts.has_own();
        let of_everybody = || is_everybodys.then(AccountAssetLimits::default);
        account.streams.or_else(of_everybody)
    }

    /// Returns the account's name for humans: that in its token, else its own.
    pub fn account_label<'a>(&'a self, name: &'a str) -> &'a str {
        let claims = self.trust.as_ref().and_then(|trust| trust.accounts.get(name));
        claims.map(|claims| claims.name.as_str()).filter(|label| !label.is_empty()).unwrap_or(name)
    }
}

/// The configuration file that was used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigSource {
    /// The path as it was given.
    pub path: PathBuf,
    /// SHA-256 of the file's bytes, in hexadecimal; included files do not count.
    pub sha256: String,
    /// Whether the file has no key.
    pub is_empty: bool,
}

/// Remarks about the configuration; all are logged at start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigNotes {
    /// Doubtful settings that the operator should change; each makes `-t` fail.
    pub warnings: Vec<String>,
    /// Keys and flags without effect, because they belong to features that this server does not
    /// have.
    pub missing: Vec<String>,
    /// Whole features that clients may count on and that this server does not have; logged as
    /// errors.
    pub absent: Vec<String>,
}
