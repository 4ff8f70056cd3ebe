//! Identity of the server: keys, name, and the addresses where it listens.

#![forbid(unsafe_code)]

use rustix::rand::GetRandomFlags;

use crate::cluster::{ClientUrls, Pooling};
use crate::engine;

/// Who this server is, for INFO, the monitoring and the banner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The program's name, as it was called.
    pub program: String,
    /// Public key of the server, 56 characters, new at each start.
    pub id: String,
    /// Public key for what is sealed for the server, 56 characters, new at each start.
    pub xkey: String,
    /// The configured name, else the id.
    pub name: String,
    /// The host as configured.
    pub host: String,
    /// The port that is listened on; never 0.
    pub port: u16,
    /// Where WebSocket clients come in.
    pub websocket: Option<Endpoint>,
    /// Where the monitoring listens.
    pub http: Option<Endpoint>,
    /// What it is as a member of a cluster.
    pub cluster: Option<ClusterIdentity>,
}

/// What a member of a cluster is called, and where it listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterIdentity {
    /// The address where it listens for routes, as it was configured.
    pub host: String,
    /// The cluster's name.
    pub name: String,
    /// The name was made up.
    pub is_dynamic: bool,
    /// The port for routes; never 0.
    pub port: u16,
    /// Where clients may connect.
    pub urls: ClientUrls,
    /// What goes over which of the connections to a member.
    pub pooling: Pooling,
}

/// Where something listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The host as configured.
    pub host: String,
    /// The port; never 0.
    pub port: u16,
    /// Over TLS.
    pub is_tls: bool,
}

impl Identity {
    /// What shards have to know of it, with a new key for nonces.
    pub(crate) fn of_engine(&self) -> engine::Identity {
        let mut secret = [0; 32];
        // As many bytes as this come whole, and at once since the machine has started.
        let _ = rustix::rand::getrandom(&mut secret, GetRandomFlags::empty());
        let nonces = engine::NonceKey::new(secret);
        let cluster = self.cluster.as_ref().map(|cluster| engine::ClusterIdentity {
            name: cluster.name.clone(),
            is_dynamic: cluster.is_dynamic,
            port: cluster.port,
            urls: cluster.urls.clone(),
            pooling: cluster.pooling.clone(),
        });
        let epoch_ms = u64::try_from(chrono::Utc::now().timestamp_millis()).unwrap_or(0);
        let websocket =
            self.websocket.as_ref().map(|endpoint| (endpoint.host.clone(), endpoint.port));
        let (id, xkey, name) = (self.id.clone(), self.xkey.clone(), self.name.clone());
        engine::Identity { id, xkey, name, port: self.port, websocket, nonces, cluster, epoch_ms }
    }
}
