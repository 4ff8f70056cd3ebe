//! The blocks of what nats-server has and this server does not: a mistake in them is found anyway.

use super::bind::permissions;
use super::field::Action::Set;
use super::field::{Field, Key, bind_map};
use super::file::Kind;
use super::{StartError, duration, tls};
use crate::auth::jwt;
use crate::subject::is_valid_filter;

/// What is missed without JetStream.
pub(in crate::config) const NO_STREAMS: &str =
    "clients have no streams, consumers, key-value or object stores";

/// A row whose value is of a kind.
const fn key(
    names: &'static [&'static str],
    set: fn(&mut (), &mut Field<'_>) -> Checked,
) -> Key<()> {
    Key(names, Set(set))
}

type Checked = Result<(), StartError>;

/// A value of any kind.
pub(super) fn any(_: &mut Field<'_>) -> Checked {
    Ok(())
}

fn anything(_: &mut (), _: &mut Field<'_>) -> Checked {
    Ok(())
}

fn text(_: &mut (), v: &mut Field<'_>) -> Checked {
    v.text().map(drop)
}

fn texts(_: &mut (), v: &mut Field<'_>) -> Checked {
    v.each(|v| v.text()).map(drop)
}

fn text_or_texts(_: &mut (), v: &mut Field<'_>) -> Checked {
    v.texts().map(drop)
}

fn subjects(_: &mut (), v: &mut Field<'_>) -> Checked {
    let subject = |v: &mut Field<'_>| {
        let text = v.text()?;
        let is_valid = is_valid_filter(text.as_bytes());
        if is_valid { Ok(()) } else { Err(v.error(format!("\"{text}\" is not a valid subject"))) }
    };
    v.one_or_each(subject).map(drop)
}

fn switch(_: &mut (), v: &mut Field<'_>) -> Checked {
    v.boolean().map(drop)
}

fn number(_: &mut (), v: &mut Field<'_>) -> Checked {
    v.integer().map(drop)
}

fn duration(_: &mut (), v: &mut Field<'_>) -> Checked {
    v.signed_duration_ms().map(drop)
}

/// A duration that was never a number of seconds.
fn duration_text(_: &mut (), v: &mut Field<'_>) -> Checked {
    duration::parse_ns(&v.text()?).map(drop).map_err(|reason| v.error(reason))
}

fn seconds(_: &mut (), v: &mut Field<'_>) -> Checked {
    v.login_timeout_ms().map(drop)
}

/// Bytes: a number, or a text such as `10G`.
fn size_of(v: &Field<'_>) -> Result<i64, StartError> {
    let Kind::Text(text) = &v.value.kind else { return v.integer() };
    if text.is_empty() {
        return Ok(0);
    }
    let number = text.strip_suffix(['K', 'M', 'G', 'T']);
    let number = number.and_then(|number| number.parse().ok());
    number.ok_or_else(|| v.error(format!("{} is a size, such as 1GB without quotes", v.key)))
}

fn size(_: &mut (), v: &mut Field<'_>) -> Checked {
    size_of(v).map(drop)
}

fn size_from_zero(_: &mut (), v: &mut Field<'_>) -> Checked {
    match size_of(v)? {
        0.. => Ok(()),
        _ => Err(v.error(format!("{} cannot be negative", v.key))),
    }
}

fn number_from_zero(_: &mut (), v: &mut Field<'_>) -> Checked {
    v.integer()?;
    size_from_zero(&mut (), v)
}

fn one_of(v: &Field<'_>, words: &[&str]) -> Checked {
    if words.contains(&v.text()?.as_str()) {
        return Ok(());
    }
    Err(v.error(format!("{} is one of {}", v.key, words.join(", "))))
}

fn write_timeout(_: &mut (), v: &mut Field<'_>) -> Checked {
    one_of(v, &["default", "close", "retry"])
}

fn address(_: &mut (), v: &mut Field<'_>) -> Checked {
    match v.value.kind {
        Kind::Integer(_) => Ok(()),
        _ => v.address().map(drop),
    }
}

fn block(keys: &[Key<()>], v: &mut Field<'_>) -> Checked {
    bind_map(&[keys], v.map()?, &mut (), v.warnings)
}

fn blocks(keys: &[Key<()>], v: &mut Field<'_>) -> Checked {
    v.each(|v| block(keys, v)).map(drop)
}

/// `jetstream`, also that of an account, is a block or a switch; says whether it is on.
fn is_on(keys: &[Key<()>], v: &mut Field<'_>) -> Result<bool, StartError> {
    match &v.value.kind {
        Kind::Boolean(wanted) => Ok(*wanted),
        Kind::Text(text) => match text.to_ascii_lowercase().as_str() {
            "enable" | "enabled" => Ok(true),
            "disable" | "disabled" => Ok(false),
            _ => Err(v.expected("enabled, disabled, or a block { … }")),
        },
        Kind::Map(map) => {
            block(keys, v)?;
            let is_off = |name: &str| ["enable", "enabled"].contains(&name);
            Ok(!map.entries().any(|entry| {
                is_off(&entry.key.to_ascii_lowercase()) && entry.value.kind == Kind::Boolean(false)
            }))
        }
        _ => Err(v.expected("enabled, disabled, or a block { … }")),
    }
}

/// `jetstream`
pub(super) fn jetstream(v: &mut Field<'_>) -> Result<bool, StartError> {
    is_on(JETSTREAM, v)
}

/// `jetstream` of an account
pub(super) fn account_jetstream(v: &mut Field<'_>) -> Result<bool, StartError> {
    is_on(ACCOUNT_JETSTREAM, v)
}

/// `gateway`
pub(super) fn gateway(v: &mut Field<'_>) -> Result<bool, StartError> {
    block(GATEWAY, v).map(|()| true)
}

/// `leafnodes`
pub(super) fn leafnodes(v: &mut Field<'_>) -> Result<bool, StartError> {
    block(LEAFNODES, v).map(|()| true)
}

/// `mqtt`
pub(super) fn mqtt(v: &mut Field<'_>) -> Result<bool, StartError> {
    block(MQTT, v).map(|()| true)
}

/// `tls`, wherever it stands
pub(super) fn tls(v: &mut Field<'_>) -> Checked {
    bind_map(&[tls::HERE, TLS_ELSEWHERE], v.map()?, &mut tls::Block::default(), v.warnings)
}

fn tls_block(_: &mut (), v: &mut Field<'_>) -> Checked {
    tls(v)
}

/// What is refused where this server has TLS.
const TLS_ELSEWHERE: &[Key<tls::Block>] = &[
    Key(&["cert_store", "cert_match", "cert_match_by"], Set(|_, v| v.text().map(drop))),
    Key(
        &["cert_match_skip_invalid", "verify_cert_and_check_known_urls"],
        Set(|_, v| v.boolean().map(drop)),
    ),
    Key(&["ocsp_peer", "ca_certs_match"], Set(|_, _| Ok(()))),
];

const GATEWAY: &[Key<()>] = &[
    key(&["name"], gateway_name),
    key(&["host", "net", "advertise"], text),
    key(&["listen"], address),
    key(&["port", "connect_retries"], number),
    key(&["connect_backoff", "reject_unknown", "reject_unknown_cluster"], switch),
    key(&["authorization"], |_, v| block(GATEWAY_LOGIN, v)),
    key(&["tls"], tls_block),
    key(&["gateways"], |_, v| blocks(GATEWAY_REMOTE, v)),
    key(&["write_deadline"], duration),
    key(&["write_timeout"], write_timeout),
];

fn gateway_name(_: &mut (), v: &mut Field<'_>) -> Checked {
    if v.text()?.contains(' ') {
        return Err(v.error("the name of a cluster cannot contain spaces"));
    }
    Ok(())
}

/// An entry of `gateways`
const GATEWAY_REMOTE: &[Key<()>] =
    &[key(&["name", "url"], text), key(&["urls"], texts), key(&["tls"], tls_block)];

/// `authorization` of a gateway, which has no users of its own.
const GATEWAY_LOGIN: &[Key<()>] = &[
    key(&["user", "username", "pass", "password"], text),
    key(&["timeout"], seconds),
    key(&["token", "users", "auth_callout", "auth_hook"], |_, v| {
        Err(v.error(format!("a gateway has no {}; give it a user and a password", v.key)))
    }),
    key(&["default_permission", "default_permissions", "permissions"], |_, v| {
        permissions(v).map(drop)
    }),
    key(&["proxy_required"], switch),
];

const LEAFNODES: &[Key<()>] = &[
    key(&["listen"], address),
    key(&["port"], number),
    key(&["host", "net", "advertise", "leafnode_advertise"], text),
    key(&["no_advertise", "isolate", "isolate_leafnode_interest"], switch),
    key(&["min_version", "minimum_version"], leaf_version),
    key(&["reconnect", "reconnect_delay", "reconnect_interval", "dial_timeout"], duration),
    key(&["authorization"], |_, v| block(LEAF_LOGINS, v)),
    key(&["compression"], compression),
    key(&["tls"], tls_block),
    key(&["remotes"], |_, v| blocks(LEAF_REMOTE, v)),
    key(&["write_deadline"], duration),
    key(&["write_timeout"], write_timeout),
];

/// Leaf nodes are as old as this, at most.
const LEAF_VERSION_MIN: [u64; 3] = [2, 8, 0];

fn leaf_version(_: &mut (), v: &mut Field<'_>) -> Checked {
    let text = v.text()?;
    let number = text.split('-').next().unwrap_or_default();
    let parts: Option<Vec<u64>> = number.split('.').map(|part| part.parse().ok()).collect();
    match parts {
        Some(parts) if parts.len() == 3 && parts[..] >= LEAF_VERSION_MIN[..] => Ok(()),
        _ => Err(v.error(format!("{} is a version from 2.8.0 on, such as 2.10.0", v.key))),
    }
}

/// An entry of `remotes`
const LEAF_REMOTE: &[Key<()>] = &[
    key(&["account", "local", "creds", "credentials"], text),
    key(&["url", "urls"], text_or_texts),
    key(&["deny_import", "deny_imports", "deny_export", "deny_exports"], subjects),
    key(&["no_randomize", "dont_randomize", "disabled", "hub"], switch),
    key(&["ignore_discovered_servers", "request_isolation"], switch),
    key(&["isolate", "isolate_leafnode_interest"], switch),
    key(&["ws_compress", "ws_compression", "ws_no_masking"], switch),
    key(&["websocket_compress", "websocket_compression", "websocket_no_masking"], switch),
    key(&["first_info_timeout", "dial_timeout"], duration),
    key(&["nkey", "seed"], seed),
    key(&["compression"], compression),
    key(&["tls"], tls_block),
    key(&["js_cluster_migrate", "jetstream_cluster_migrate"], migration),
    key(&["proxy"], |_, v| block(LEAF_PROXY, v)),
];

fn seed(_: &mut (), v: &mut Field<'_>) -> Checked {
    // The text is a secret.
    let is_seed = nkeys::KeyPair::from_seed(&v.text()?)
        .is_ok_and(|pair| pair.key_pair_type() == nkeys::KeyPairType::User);
    if is_seed { Ok(()) } else { Err(v.expected("the seed of a user, which begins with SU")) }
}

fn migration(_: &mut (), v: &mut Field<'_>) -> Checked {
    match &v.value.kind {
        Kind::Boolean(_) => Ok(()),
        Kind::Map(_) => v
            .each_entry(|entry, v| match entry.key.as_str() {
                "leader_migrate_delay" => duration(&mut (), v),
                _ => Ok(()),
            })
            .map(drop),
        _ => Err(v.expected("true, false, or {leader_migrate_delay: …}")),
    }
}

const LEAF_PROXY: &[Key<()>] = &[
    key(&["url", "username", "password"], text),
    key(&["timeout"], duration),
    key(&["tls"], tls_block),
];

/// `authorization` of leafnodes
const LEAF_LOGINS: &[Key<()>] = &[
    key(&["user", "username", "pass", "password", "account"], text),
    key(&["nkey"], |_, v| {
        let is_key = jwt::is_key(&v.text()?, &['U']);
        if is_key { Ok(()) } else { Err(v.expected("the public key of a user")) }
    }),
    key(&["timeout"], seconds),
    key(&["proxy_required"], switch),
    key(&["users"], |_, v| blocks(LEAF_USER, v)),
];

/// An entry of their `users`
const LEAF_USER: &[Key<()>] = &[
    key(&["user", "username", "pass", "password", "account"], text),
    key(&["proxy_required"], switch),
];

/// `proxies`
pub(super) fn proxies(v: &mut Field<'_>) -> Result<bool, StartError> {
    block(PROXIES, v).map(|()| true)
}

const PROXIES: &[Key<()>] = &[key(&["trusted"], |_, v| blocks(PROXY, v))];

const PROXY: &[Key<()>] = &[key(&["key", "public_key"], |_, v| {
    let text = v.text()?;
    let is_key = jwt::is_key(&text, &['N', 'C', 'O', 'A', 'U', 'X']);
    if is_key { Ok(()) } else { Err(v.error(format!("\"{text}\" is no public key"))) }
})];

const COMPRESSION: &[Key<()>] = &[
    key(&["mode"], text),
    key(&["rtt_thresholds", "thresholds", "rtts", "rtt"], |_, v| {
        v.each(|v| duration_text(&mut (), v)).map(drop)
    }),
];

fn compression(_: &mut (), v: &mut Field<'_>) -> Checked {
    match v.value.kind {
        Kind::Text(_) | Kind::Boolean(_) => Ok(()),
        _ => block(COMPRESSION, v),
    }
}

const MQTT: &[Key<()>] = &[
    key(&["listen"], address),
    key(&["port", "stream_replicas"], number),
    key(&["host", "net", "no_auth_user", "js_domain"], text),
    key(&["tls"], tls_block),
    key(&["authorization", "authentication"], |_, v| block(LOGIN, v)),
    key(&["ack_wait", "ackwait", "js_api_timeout", "api_timeout"], duration),
    key(&["consumer_inactive_threshold", "consumer_auto_cleanup"], duration),
    key(&["max_ack_pending", "max_pending", "max_inflight"], |_, v| {
        v.size(u16::MAX.into()).map(drop)
    }),
    key(&["consumer_replicas"], |_, v| {
        v.warn("consumer_replicas is ignored by nats-server too; leave it out");
        Ok(())
    }),
    key(&["consumer_memory_storage"], switch),
    key(&["reject_qos2_publish", "downgrade_qos2_subscribe"], switch),
];

/// `authorization` of listeners with users of their own
const LOGIN: &[Key<()>] = &[
    key(&["user", "username", "pass", "password", "token"], text),
    // nats-server looks at no timeout here but a number.
    key(&["timeout"], anything),
];

const JETSTREAM: &[Key<()>] = &[
    key(&["strict", "enable", "enabled", "meta_compact_sync"], switch),
    key(&["store", "store_dir", "storedir", "domain", "extension_hint", "unique_tag"], text),
    key(&["key", "ek", "encryption_key"], text),
    key(&["prev_key", "prev_ek", "prev_encryption_key"], text),
    key(&["sync", "sync_interval"], |_, v| match &v.value.kind {
        Kind::Text(text) if text.eq_ignore_ascii_case("always") => Ok(()),
        _ => duration(&mut (), v),
    }),
    key(&["max_memory_store", "max_mem_store", "max_mem"], size),
    key(&["max_file_store", "max_file"], size),
    key(&["max_outstanding_catchup", "max_buffered_size"], size),
    key(&["meta_compact_size"], size_from_zero),
    key(&["meta_compact"], number_from_zero),
    key(&["max_buffered_msgs", "request_queue_limit", "info_queue_limit"], number),
    key(&["max_concurrent_io"], |_, v| match v.integer()? {
        4..=8192 => Ok(()),
        _ => Err(v.expected("a number from 4 to 8192")),
    }),
    key(&["cipher"], cipher),
    key(&["limits"], |_, v| block(JETSTREAM_LIMITS, v)),
    key(&["tpm"], |_, v| block(JETSTREAM_TPM, v)),
];

fn cipher(_: &mut (), v: &mut Field<'_>) -> Checked {
    match v.text()?.to_ascii_lowercase().as_str() {
        "aes" | "chacha" | "chachapoly" => Ok(()),
        _ => Err(v.expected("aes or chacha")),
    }
}

/// `limits` of `jetstream`
const JETSTREAM_LIMITS: &[Key<()>] = &[
    key(&["max_ack_pending", "max_ha_assets", "max_request_batch"], number),
    key(&["default_max_consumers"], number),
    key(&["duplicate_window"], duration_text),
    key(&["batch"], |_, v| block(JETSTREAM_BATCH, v)),
];

const JETSTREAM_BATCH: &[Key<()>] = &[
    key(&["max_inflight_per_stream", "max_inflight_total", "max_msgs"], number),
    key(&["timeout"], duration_text),
];

const JETSTREAM_TPM: &[Key<()>] = &[
    key(&["keys_file", "encryption_password", "srk_password"], text),
    key(&["pcr"], number),
    key(&["cipher"], cipher),
];

const ACCOUNT_JETSTREAM: &[Key<()>] = &[
    key(&["max_memory", "max_mem", "mem", "memory"], number),
    key(&["max_store", "max_file", "max_disk", "store", "disk"], number),
    key(&["max_streams", "streams", "max_consumers", "consumers", "max_ack_pending"], number),
    key(&["max_bytes_required", "max_stream_bytes", "max_bytes"], switch),
    key(&["mem_max_stream_bytes", "memory_max_stream_bytes"], number),
    key(&["disk_max_stream_bytes", "store_max_stream_bytes"], number),
    key(&["cluster_traffic"], |_, v| one_of(v, &["system", "owner", ""])),
];
