//! Identity of the server: keys, name, and the addresses where it listens.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use rustix::rand::GetRandomFlags;

use crate::cluster::{ClientUrls, Pooling};
use crate::engine;
use crate::store::LogSizes;

/// The server's identity, for INFO, the monitoring and the banner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerIdentity {
    /// The program's name, as it was called.
    pub program: String,
    /// Public key of the server, 56 characters, new at each start.
    pub id: String,
    /// Public key for messages sealed for the server, 56 characters, new at each start.
    pub xkey: String,
    /// The configured name, else the id.
    pub name: String,
    /// The host as configured.
    pub host: String,
    /// The port for clients; never 0.
    pub port: u16,
    /// The listener for WebSocket clients.
    pub websocket: Option<Endpoint>,
    /// The listener of the monitoring.
    pub http: Option<Endpoint>,
    /// The listener for leaf nodes.
    pub leaf: Option<Endpoint>,
    /// The listener for MQTT clients.
    pub mqtt: Option<Endpoint>,
    /// The server's membership in a cluster.
    pub cluster: Option<ClusterMembership>,
    /// The server's place among other clusters.
    pub gateway: Option<engine::GatewayIdentity>,
    /// The place of the streams; `None` while JetStream is off.
    pub streams: Option<StreamsPlace>,
}

/// The place of the streams, and the space for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamsPlace {
    /// The directory of all logs.
    pub directory: PathBuf,
    /// Directories of logs, by shard.
    pub logs: Vec<Vec<Box<Path>>>,
    /// Bytes of all streams where the configuration sets no limit.
    pub limits: engine::AssetLimits,
}

/// The name of the cluster and the listener for its routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterMembership {
    /// The host for routes as configured.
    pub host: String,
    /// The cluster's name.
    pub name: String,
    /// Whether the name was generated.
    pub is_dynamic: bool,
    /// The port for routes; never 0.
    pub port: u16,
    /// Addresses for clients.
    pub urls: ClientUrls,
    /// The assignment of accounts to connections with a member.
    pub pooling: Pooling,
}

/// The address of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The host as configured.
    pub host: String,
    /// The port; never 0.
    pub port: u16,
    /// Whether the listener uses TLS.
    pub is_tls: bool,
}

impl ServerIdentity {
    /// Returns the settings for the shards, with new secrets.
    pub(crate) fn of_engine(&self) -> engine::Identity {
        let nonces = engine::NonceKey::new(random());
        let hash_seed = u64::from_ne_bytes(random());
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
        let streams = self.streams.as_ref();
        engine::Identity {
            id,
            xkey,
            name,
            port: self.port,
            websocket,
            nonces,
            hash_seed,
            epoch_ms,
            leaf_port: self.leaf.as_ref().map(|endpoint| endpoint.port),
            cluster,
            gateway: self.gateway.clone(),
            logs: streams.map(|streams| streams.logs.clone()).unwrap_or_default(),
            log_sizes: LogSizes::default(),
            assets: streams.map(|streams| streams.limits).unwrap_or_default(),
        }
    }
}

/// Returns bytes that nobody can guess.
fn random<const LEN: usize>() -> [u8; LEN] {
    let mut secret = [0; LEN];
    // A request for so few bytes is never cut, and waits only until the kernel's generator is
    // ready.
    let _ = rustix::rand::getrandom(&mut secret, GetRandomFlags::empty());
    secret
}
