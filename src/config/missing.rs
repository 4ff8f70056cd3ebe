//! The keys of what nats-server has and this server does not: a mistake in them is found anyway.

#![forbid(unsafe_code)]

use super::StartError;
use super::field::unknown;
use super::file::{Entry, Kind, Map, Value};
use super::mistakes::all;

/// What is missed without JetStream.
pub(super) const NO_STREAMS: &str =
    "clients have no streams, consumers, key-value or object stores";

/// What may stand in a block.
pub(super) struct Block {
    keys: &'static [&'static str],
    /// Blocks within it that are looked into; they are among its keys.
    blocks: &'static [(&'static str, &'static Block)],
}

impl Block {
    /// Finds the keys in `value`, a block or a list of them, that nats-server does not know.
    pub(super) fn check(&self, value: &Value) -> Result<(), StartError> {
        match &value.kind {
            Kind::Map(map) => self.check_map(map),
            Kind::List(values) => all(values.iter().map(|value| self.check(value))).map(drop),
            _ => Ok(()),
        }
    }

    fn check_map(&self, map: &Map) -> Result<(), StartError> {
        if self.keys.is_empty() {
            return Ok(());
        }
        all(map.entries().map(|entry| self.check_entry(entry))).map(drop)
    }

    fn check_entry(&self, entry: &Entry) -> Result<(), StartError> {
        let key = entry.key.to_ascii_lowercase();
        if let Some((_, block)) = self.blocks.iter().find(|(name, _)| *name == key) {
            return block.check(&entry.value);
        }
        if !self.keys.contains(&key.as_str()) {
            let is_unknown = !entry.is_variable;
            return if is_unknown {
                Err(unknown(self.keys.iter().copied(), entry))
            } else {
                Ok(())
            };
        }
        let kind = &entry.value.kind;
        let wanted = match key.as_str() {
            name if TEXTS.contains(&name) && !matches!(kind, Kind::Text(_)) => "text",
            name if SWITCHES.contains(&name) && !matches!(kind, Kind::Boolean(_)) => {
                "true or false, without quotes"
            }
            name if NUMBERS.contains(&name) && !matches!(kind, Kind::Integer(_)) => {
                "a whole number, without quotes"
            }
            _ => return Ok(()),
        };
        Err(entry.value.position.error(format!("{key} is {wanted}")))
    }
}

/// Keys whose values are the same kind of thing in whichever of these blocks they stand.
const TEXTS: &[&str] = &[
    "advertise",
    "ca_file",
    "cert_file",
    "credentials",
    "creds",
    "domain",
    "js_domain",
    "key_file",
    "nkey",
    "no_auth_user",
    "store_dir",
    "storedir",
    "unique_tag",
];
const SWITCHES: &[&str] = &[
    "disabled",
    "downgrade_qos2_subscribe",
    "enable",
    "enabled",
    "hub",
    "ignore_discovered_servers",
    "insecure",
    "no_advertise",
    "reject_qos2_publish",
    "reject_unknown",
    "reject_unknown_cluster",
    "verify",
    "verify_and_map",
    "websocket_compression",
    "websocket_no_masking",
    "ws_compress",
    "ws_compression",
    "ws_no_masking",
];
const NUMBERS: &[&str] = &[
    "connect_retries",
    "consumer_replicas",
    "info_queue_limit",
    "max_ha_assets",
    "port",
    "request_queue_limit",
    "stream_replicas",
];

/// A value that is no block, or one whose keys are anybody's.
pub(super) static ANY: Block = Block { keys: &[], blocks: &[] };

/// `gateway`
pub(super) static GATEWAY: Block = Block {
    keys: &[
        "advertise",
        "authorization",
        "connect_backoff",
        "connect_retries",
        "gateways",
        "host",
        "listen",
        "name",
        "net",
        "port",
        "reject_unknown",
        "reject_unknown_cluster",
        "tls",
        "write_deadline",
        "write_timeout",
    ],
    blocks: &[("authorization", &LOGINS), ("tls", &TLS), ("gateways", &GATEWAY_REMOTE)],
};

/// An entry of `gateways`
static GATEWAY_REMOTE: Block =
    Block { keys: &["name", "tls", "url", "urls"], blocks: &[("tls", &TLS)] };

/// `leafnodes`
pub(super) static LEAFNODES: Block = Block {
    keys: &[
        "advertise",
        "authorization",
        "compression",
        "host",
        "isolate",
        "isolate_leafnode_interest",
        "listen",
        "min_version",
        "net",
        "no_advertise",
        "port",
        "reconnect",
        "reconnect_delay",
        "reconnect_interval",
        "remotes",
        "tls",
        "write_deadline",
        "write_timeout",
    ],
    blocks: &[
        ("authorization", &LEAF_LOGINS),
        ("compression", &COMPRESSION),
        ("tls", &TLS),
        ("remotes", &LEAF_REMOTE),
    ],
};

/// An entry of `remotes`
static LEAF_REMOTE: Block = Block {
    keys: &[
        "account",
        "compression",
        "credentials",
        "creds",
        "deny_export",
        "deny_exports",
        "deny_import",
        "deny_imports",
        "disabled",
        "first_info_timeout",
        "hub",
        "ignore_discovered_servers",
        "isolate",
        "isolate_leafnode_interest",
        "js_cluster_migrate",
        "local",
        "nkey",
        "proxy",
        "request_isolation",
        "tls",
        "url",
        "urls",
        "websocket_compression",
        "websocket_no_masking",
        "ws_compress",
        "ws_compression",
        "ws_no_masking",
    ],
    blocks: &[("compression", &COMPRESSION), ("tls", &TLS)],
};

/// `mqtt`
pub(super) static MQTT: Block = Block {
    keys: &[
        "ack_wait",
        "ackwait",
        "authorization",
        "consumer_auto_cleanup",
        "consumer_inactive_threshold",
        "consumer_memory_storage",
        "consumer_replicas",
        "downgrade_qos2_subscribe",
        "host",
        "js_api_timeout",
        "js_domain",
        "listen",
        "max_ack_pending",
        "max_inflight",
        "max_pending",
        "net",
        "no_auth_user",
        "port",
        "reject_qos2_publish",
        "stream_replicas",
        "tls",
    ],
    blocks: &[("authorization", &LOGIN), ("tls", &TLS)],
};

/// `jetstream`
pub(super) static JETSTREAM: Block = Block {
    keys: &[
        "cipher",
        "domain",
        "ek",
        "enable",
        "enabled",
        "encryption_key",
        "extension_hint",
        "info_queue_limit",
        "key",
        "limits",
        "max_buffered_msgs",
        "max_buffered_size",
        "max_file",
        "max_file_store",
        "max_mem",
        "max_mem_store",
        "max_memory_store",
        "max_outstanding_catchup",
        "meta_compact",
        "meta_compact_size",
        "prev_key",
        "request_queue_limit",
        "store",
        "store_dir",
        "storedir",
        "strict",
        "sync",
        "sync_interval",
        "tpm",
        "unique_tag",
    ],
    blocks: &[("limits", &JETSTREAM_LIMITS)],
};

/// `limits` of `jetstream`
static JETSTREAM_LIMITS: Block = Block {
    keys: &["batch", "duplicate_window", "max_ack_pending", "max_ha_assets", "max_request_batch"],
    blocks: &[],
};

/// `jetstream` of an account
pub(super) static ACCOUNT_JETSTREAM: Block = Block {
    keys: &[
        "cluster_traffic",
        "consumers",
        "disk",
        "disk_max_stream_bytes",
        "max_ack_pending",
        "max_bytes_required",
        "max_consumers",
        "max_file",
        "max_mem",
        "max_store",
        "max_stream_bytes",
        "max_streams",
        "mem",
        "mem_max_stream_bytes",
        "memory_max_stream_bytes",
        "store",
        "streams",
    ],
    blocks: &[],
};

/// `tls`, wherever it stands
pub(super) static TLS: Block = Block {
    keys: &[
        "allow_insecure_cipher_suites",
        "ca_certs_match",
        "ca_file",
        "cert_file",
        "cert_match",
        "cert_match_by",
        "cert_match_skip_invalid",
        "cert_store",
        "certs",
        "cipher_suites",
        "connection_rate_limit",
        "curve_preferences",
        "first",
        "handshake_first",
        "immediate",
        "insecure",
        "key_file",
        "min_version",
        "ocsp_peer",
        "pinned_certs",
        "timeout",
        "verify",
        "verify_and_map",
        "verify_cert_and_check_known_urls",
    ],
    blocks: &[("handshake_first", &ANY)],
};

/// `compression`
pub(super) static COMPRESSION: Block =
    Block { keys: &["mode", "rtt_thresholds", "thresholds"], blocks: &[] };

/// `authorization` of a cluster
static LOGINS: Block = Block {
    keys: &[
        "auth_callout",
        "auth_hook",
        "default_permission",
        "default_permissions",
        "pass",
        "password",
        "permissions",
        "proxy_required",
        "timeout",
        "token",
        "user",
        "username",
        "users",
    ],
    blocks: &[],
};

/// `authorization` of leafnodes
static LEAF_LOGINS: Block = Block {
    keys: &[
        "account",
        "nkey",
        "pass",
        "password",
        "proxy_required",
        "timeout",
        "user",
        "username",
        "users",
    ],
    blocks: &[],
};

/// `authorization` of listeners with users of their own
static LOGIN: Block =
    Block { keys: &["pass", "password", "timeout", "token", "user", "username"], blocks: &[] };
