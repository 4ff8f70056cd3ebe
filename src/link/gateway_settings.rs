//! Settings of gateways, as an engine uses them.

use std::collections::{BTreeMap, BTreeSet};

use crate::auth::Secret;
use crate::proto::gateway::{GatewayInfo, NameHash};
use crate::transport::MutualTls;

/// Identity of the server as a member of a cluster that is connected to others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GatewayIdentity {
    /// The cluster's name.
    pub name: String,
    /// The host for other clusters, as configured.
    pub host: String,
    /// The port for other clusters in use, also if any free one was asked for.
    pub port: u16,
    /// `host:port` where other clusters reach this server.
    pub url: String,
}

/// Configuration of the block `gateway`, as an engine uses it.
#[derive(Debug)]
pub(crate) struct GatewaySettings {
    /// INFO of this server for other clusters, with its own address alone.
    pub(crate) info: GatewayInfo,
    /// Hash of the own cluster's name.
    pub(crate) cluster: NameHash,
    /// Hash of the server's id.
    pub(crate) server: NameHash,
    pub(crate) user: Option<String>,
    pub(crate) pass: Option<Secret>,
    pub(crate) auth_timeout_ns: u64,
    pub(crate) ping_interval_ns: u64,
    pub(crate) ping_max: u32,
    /// Nanoseconds that output may take; 0: as for clients.
    pub(crate) write_deadline_ns: u64,
    /// TLS of all gateways but those that have their own.
    pub(crate) tls: Option<MutualTls>,
    /// TLS of connections to configured clusters, where they have their own.
    pub(crate) tls_of: BTreeMap<String, MutualTls>,
    /// Names of the configured clusters.
    pub(crate) remotes: BTreeSet<String>,
    /// The clusters that may connect; `None`: all.
    pub(crate) known: Option<BTreeSet<String>>,
}
