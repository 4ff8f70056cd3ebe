//! Taps: receivers inside the server. A tap takes whole runs; a connection takes bytes.

use crate::interest::ids::ShardId;

/// The number of a queued tap, unique on its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct TapId(pub(crate) u32);

impl TapId {
    /// The lowest number of taps of MQTT; those of JetStream are below.
    pub(crate) const OF_MQTT: u32 = 1 << 31;

    /// Whether the tap takes answers for clients of MQTT.
    pub(crate) fn is_of_mqtt(self) -> bool {
        self.0 >= Self::OF_MQTT
    }
}

/// A receiver inside the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tap {
    /// Requests to the server itself, answered on the shard of the requester: another shard might
    /// not have the interest in the answer yet.
    Server {
        /// Whether requests of other servers come here, too: each server answers for itself.
        of_cluster: bool,
    },
    /// Answers to questions about clients that log in, wherever they arrive.
    Callouts,
    /// Answers of services, on the shard that remembers the requests.
    Answers,
    /// A receiver whose runs wait for the end of the turn: see `run::tapped`.
    Queued(TapId),
}

impl Tap {
    /// Whether the tap takes all runs at once, whatever their length: they wait for their work.
    pub(crate) fn is_queued(self) -> bool {
        matches!(self, Self::Queued(_))
    }

    /// Whether interest in the tap's subjects is advertised to other servers.
    pub(super) fn is_told(self) -> bool {
        matches!(self, Self::Server { of_cluster: true } | Self::Callouts)
    }
}

/// Returns the beginning of the subjects of answers to questions about clients; `node` is the
/// server's name in subjects.
pub(crate) fn callout_inbox(node: &str) -> String {
    format!("$SYS._INBOX.{node}.")
}

/// The place of a shard among those of the server, which taps with a home of their own need.
#[derive(Debug, Clone, Default)]
pub(crate) struct Home {
    /// The server's name in subjects: a part of its id.
    pub(crate) node: String,
    pub(crate) shard: ShardId,
    /// Number of shards of the server.
    pub(crate) shards: usize,
}
