//! Configuration of the block `leafnodes`, as an engine uses it.

use crate::cluster::Version;
use crate::core::settings::Logins;
use crate::proto::leaf::LeafInfo;
use crate::transport::{Compression, Tls};

/// Configuration of leaf connections.
#[derive(Debug)]
pub(crate) struct LeafSettings {
    /// INFO of this server for leaf nodes, without the cluster's name.
    pub(crate) info: LeafInfo,
    /// Credentials of leaf nodes; `None` if they are those of clients.
    pub(crate) logins: Option<Logins>,
    pub(crate) auth_timeout_ns: u64,
    /// Nanoseconds that output may take; 0: as for clients.
    pub(crate) write_deadline_ns: u64,
    /// TLS of accepted connections.
    pub(crate) tls: Option<Tls>,
    pub(crate) compression: Compression,
    /// Whether no leaf node is told the interest of others.
    pub(crate) is_isolated: bool,
    /// The oldest version that a leaf node may have.
    pub(crate) min_version: Option<Version>,
}
