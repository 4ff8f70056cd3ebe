//! Settings of MQTT, as shards use them.

use crate::transport::Tls;

/// Settings of MQTT clients and of their streams.
#[derive(Debug, Clone)]
pub(crate) struct MqttSettings {
    /// TLS of the port.
    pub(crate) tls: Option<Tls>,
    /// Milliseconds that a login may take (none: as for all clients).
    pub(crate) auth_timeout_ms: Option<u64>,
    /// The user of clients without credentials (none: that of all clients).
    pub(crate) no_auth_user: Option<String>,
    /// Nanoseconds until a message that is not acknowledged is sent again.
    pub(crate) ack_wait_ns: u64,
    /// Messages of one filter that may be unacknowledged.
    pub(crate) ack_pending_max: u16,
    /// The domain of the JetStream in which state is kept (none: that of this server).
    pub(crate) domain: Option<String>,
    /// Copies of each stream (0: one).
    pub(crate) replicas: u32,
    /// Whether the state of consumers is in memory only.
    pub(crate) has_memory_consumers: bool,
    /// Nanoseconds after which the consumer of an absent session is deleted; 0 is never.
    pub(crate) inactive_ns: u64,
    /// Nanoseconds that requests to JetStream may take.
    pub(crate) api_timeout_ns: u64,
    /// Whether clients that publish with QoS 2 are sent away.
    pub(crate) rejects_qos2: bool,
    /// Whether filters get QoS 1 where 2 was asked for.
    pub(crate) downgrades_qos2: bool,
}
