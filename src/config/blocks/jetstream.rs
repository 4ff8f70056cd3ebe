//! JetStream: the block `jetstream` of the server and that of an account.

use std::path::PathBuf;

use super::field::Action::{Ignore, Set};
use super::field::{Field, Key, bind_map};
use super::file::ValueKind;
use super::written::BrokenRule;
use super::{Options, StartError, duration, unsupported};
use crate::auth::jwt::AccountStreamsClaim;
use crate::engine::account_settings::AccountAssetLimits;
use crate::engine::{AssetLimits, BatchLimits, SyncPolicy};
use crate::subject::is_word;

/// JetStream of the server: whether it runs, where it stores, and limits for all accounts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JetStreamOptions {
    /// Whether JetStream runs (false).
    pub is_enabled: bool,
    /// The directory above that of the streams (none: one for temporary files).
    pub store_dir: Option<PathBuf>,
    /// Bytes of all streams in memory; 0 forbids them (none: three quarters of the memory).
    pub memory_bytes_max: Option<u64>,
    /// Bytes of all streams on disk; 0 forbids them (none: three quarters of the free space).
    pub file_bytes_max: Option<u64>,
    /// The name under which other domains reach this server's API (none).
    pub domain: Option<String>,
    /// Whether requests with unknown fields are taken (false).
    pub is_lenient: bool,
    /// Point at which messages are forced to the disk (every 2 minutes).
    pub sync: SyncPolicy,
    /// Beginning of the tag that sets servers apart as places of replicas (none).
    pub unique_tag: Option<String>,
    /// Limits of streams, consumers and requests.
    pub limits: JetStreamLimits,
    /// Bounds of queues.
    pub queues: JetStreamQueues,
    /// Whether both the file as a whole and its block `jetstream` name a `store_dir`.
    has_two_store_dirs: bool,
}

impl JetStreamOptions {
    /// Returns the storage of all accounts, of which `found` is the default.
    pub fn asset_limits(&self, found: AssetLimits) -> AssetLimits {
        AssetLimits {
            memory_bytes_max: self.memory_bytes_max.unwrap_or(found.memory_bytes_max),
            file_bytes_max: self.file_bytes_max.unwrap_or(found.file_bytes_max),
        }
    }
}

/// Limits of streams, consumers and requests of all accounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JetStreamLimits {
    /// Messages that a consumer may have unacknowledged, also the default; 0 is no limit (0).
    pub ack_pending_max: u64,
    /// Replicated streams and consumers of the server; 0 is no limit (0).
    pub replicated_assets_max: u64,
    /// Messages of one pull request; 0 is no limit (0).
    pub request_batch_max: u64,
    /// Consumers of a stream that has no limit of its own (1000).
    pub stream_consumers_max: u64,
    /// Longest window of duplicates in nanoseconds, also the default; 0 is no limit (0).
    pub duplicate_window_max_ns: u64,
    /// Atomic batches.
    pub batch: BatchLimits,
}

impl Default for JetStreamLimits {
    fn default() -> Self {
        Self {
            ack_pending_max: 0,
            replicated_assets_max: 0,
            request_batch_max: 0,
            stream_consumers_max: 1000,
            duplicate_window_max_ns: 0,
            batch: BatchLimits::default(),
        }
    }
}

/// Bounds of the queues of JetStream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JetStreamQueues {
    /// Requests to the API that wait at one time (10 000).
    pub requests_max: usize,
    /// Messages for a stream that wait to be stored (10 000).
    pub messages_max: usize,
    /// Bytes of messages for a stream that wait to be stored (128 MiB).
    pub message_bytes_max: usize,
}

const REQUESTS_MAX: usize = 10_000;
const MESSAGES_MAX: usize = 10_000;
const MESSAGE_BYTES_MAX: usize = 128 << 20;

impl Default for JetStreamQueues {
    fn default() -> Self {
        Self {
            requests_max: REQUESTS_MAX,
            messages_max: MESSAGES_MAX,
            message_bytes_max: MESSAGE_BYTES_MAX,
        }
    }
}

/// Reads `jetstream` of the server or of an account as a switch; `None` if it is a block.
fn switched(v: &Field<'_>) -> Result<Option<bool>, StartError> {
    match &v.value.kind {
        ValueKind::Boolean(wanted) => Ok(Some(*wanted)),
        ValueKind::Text(text) => match text.to_ascii_lowercase().as_str() {
            "enable" | "enabled" => Ok(Some(true)),
            "disable" | "disabled" => Ok(Some(false)),
            _ => Err(v.expected(FORMS)),
        },
        ValueKind::Map(_) => Ok(None),
        _ => Err(v.expected(FORMS)),
    }
}

const FORMS: &str = "enabled, disabled, or a block { … }";

/// Binds the block `jetstream` of the server.
fn bind(options: &mut Options, v: &mut Field<'_>) -> Result<(), StartError> {
    if let Some(wanted) = switched(v)? {
        options.jetstream.is_enabled = wanted;
        return Ok(());
    }
    options.jetstream.is_enabled = true;
    bind_map(&[SERVER], v.map()?, &mut options.jetstream, v.warnings)
}

/// Binds the block `jetstream` of an account.
pub(super) fn bind_account(
    limits: &mut Option<AccountAssetLimits>,
    v: &mut Field<'_>,
) -> Result<(), StartError> {
    *limits = match switched(v)? {
        Some(wanted) => wanted.then(AccountAssetLimits::default),
        None => {
            let mut own = AccountAssetLimits::default();
            bind_map(&[ACCOUNT], v.map()?, &mut own, v.warnings)?;
            Some(own)
        }
    };
    Ok(())
}

pub(super) const KEYS: &[Key<Options>] = &[
    Key(&["jetstream"], Set(bind)),
    Key(&["store_dir", "storedir"], Set(|o, v| store_dir(&mut o.jetstream, v))),
    Key(&["default_js_domain"], Ignore(unsupported::any)),
];

const SERVER: &[Key<JetStreamOptions>] = &[
    Key(&["enable", "enabled"], Set(|j, v| v.boolean().map(|yes| j.is_enabled = yes))),
    Key(&["strict"], Set(|j, v| v.boolean().map(|yes| j.is_lenient = !yes))),
    Key(&["store", "store_dir", "storedir"], Set(store_dir)),
    Key(
        &["max_memory_store", "max_mem_store", "max_mem"],
        Set(|j, v| size(v).map(|bytes| j.memory_bytes_max = bytes)),
    ),
    Key(&["max_file_store", "max_file"], Set(|j, v| size(v).map(|bytes| j.file_bytes_max = bytes))),
    Key(&["domain"], Set(domain)),
    Key(&["sync", "sync_interval"], Set(sync)),
    Key(&["unique_tag"], Set(|j, v| unique_tag(v).map(|tag| j.unique_tag = tag))),
    Key(
        &["limits"],
        Set(|j, v| {
            j.limits = JetStreamLimits::default();
            bind_map(&[LIMITS], v.map()?, &mut j.limits, v.warnings)
        }),
    ),
    Key(&["request_queue_limit"], Set(|j, v| bound(&mut j.queues.requests_max, REQUESTS_MAX, v))),
    Key(&["max_buffered_msgs"], Set(|j, v| bound(&mut j.queues.messages_max, MESSAGES_MAX, v))),
    Key(&["max_buffered_size"], Set(|j, v| buffered_bytes(&mut j.queues, v))),
    // Of a cluster, and of threads and queues that this server does not have.
    Key(&["extension_hint"], Set(|_, v| v.text().map(drop))),
    Key(&["max_outstanding_catchup"], Set(|_, v| size(v).map(drop))),
    Key(&["meta_compact"], Set(|_, v| count(v).map(drop))),
    Key(&["meta_compact_size"], Set(|_, v| size_from_zero(v))),
    Key(&["meta_compact_sync"], Set(|_, v| v.boolean().map(drop))),
    Key(&["info_queue_limit"], Set(|_, v| v.integer().map(drop))),
    Key(
        &["max_concurrent_io"],
        Set(|_, v| match v.integer()? {
            4..=8192 => Ok(()),
            _ => Err(v.expected("a number from 4 to 8192")),
        }),
    ),
    Key(&["key", "ek", "encryption_key"], Set(|_, v| encryption(v))),
    Key(&["prev_key", "prev_ek", "prev_encryption_key"], Set(|_, v| encryption(v))),
    Key(&["cipher"], Set(|_, v| cipher(v).and_then(|()| Err(v.error(NO_ENCRYPTION))))),
    Key(
        &["tpm"],
        Set(|_, v| {
            bind_map(&[TPM], v.map()?, &mut (), v.warnings)?;
            Err(v.error(NO_ENCRYPTION))
        }),
    ),
];

/// The complaint about keys of encryption.
const NO_ENCRYPTION: &str = "messages are not encrypted on the disk yet: leave keys and cipher \
                             out, or put store_dir on an encrypted disk";

fn encryption(v: &Field<'_>) -> Result<(), StartError> {
    match v.text()?.is_empty() {
        true => Ok(()),
        false => Err(v.error(NO_ENCRYPTION)),
    }
}

fn cipher(v: &Field<'_>) -> Result<(), StartError> {
    match v.text()?.to_ascii_lowercase().as_str() {
        "aes" | "chacha" | "chachapoly" => Ok(()),
        _ => Err(v.expected("aes or chacha")),
    }
}

const TPM: &[Key<()>] = &[
    Key(&["keys_file", "encryption_password", "srk_password"], Set(|(), v| v.text().map(drop))),
    Key(&["pcr"], Set(|(), v| v.integer().map(drop))),
    Key(&["cipher"], Set(|(), v| cipher(v))),
];

fn store_dir(options: &mut JetStreamOptions, v: &mut Field<'_>) -> Result<(), StartError> {
    let text = v.text()?;
    if !text.is_empty() && options.store_dir.replace(text.into()).is_some() {
        options.has_two_store_dirs = true;
    }
    Ok(())
}

fn domain(options: &mut JetStreamOptions, v: &mut Field<'_>) -> Result<(), StartError> {
    let text = v.text()?;
    if text.is_empty() {
        return Ok(());
    }
    if !is_word(text.as_bytes()) || text.contains(['.', '*', '>']) {
        return Err(v.error("the name of a domain is one token of a subject, without wildcards"));
    }
    options.domain = Some(text);
    Ok(())
}

fn unique_tag(v: &Field<'_>) -> Result<Option<String>, StartError> {
    let tag = v.text()?.trim().to_lowercase();
    Ok((!tag.is_empty()).then_some(tag))
}

fn sync(options: &mut JetStreamOptions, v: &mut Field<'_>) -> Result<(), StartError> {
    options.sync = match &v.value.kind {
        ValueKind::Text(text) if text.eq_ignore_ascii_case("always") => SyncPolicy::Always,
        _ => SyncPolicy::Every(v.duration_ms()?.saturating_mul(1_000_000)),
    };
    Ok(())
}

/// Reads a size in bytes: a number, or a text such as `10G`. A negative one is none.
fn size(v: &Field<'_>) -> Result<Option<u64>, StartError> {
    let ValueKind::Text(text) = &v.value.kind else {
        return v.integer().map(|bytes| u64::try_from(bytes).ok());
    };
    if text.is_empty() {
        return Ok(Some(0));
    }
    let units = [("K", 10), ("M", 20), ("G", 30), ("T", 40)];
    let parsed = units.into_iter().find_map(|(unit, bits)| {
        let number: i64 = text.strip_suffix(unit)?.parse().ok()?;
        Some(u64::try_from(number).ok().map(|number| number.saturating_mul(1 << bits)))
    });
    parsed.ok_or_else(|| v.error(format!("{} is a size, such as 1GB without quotes", v.key)))
}

fn size_from_zero(v: &Field<'_>) -> Result<(), StartError> {
    match size(v)? {
        Some(_) => Ok(()),
        None => Err(v.error(format!("{} cannot be negative", v.key))),
    }
}

/// Reads a number from zero.
fn count(v: &Field<'_>) -> Result<u64, StartError> {
    let number = u64::try_from(v.integer()?);
    number.map_err(|_| v.error(format!("{} cannot be negative", v.key)))
}

/// Reads a limit: a negative one, as 0, is none.
fn limit(v: &Field<'_>) -> Result<u64, StartError> {
    v.integer().map(|number| u64::try_from(number).unwrap_or(0))
}

/// Reads the bound of a queue; 0 and less is the default.
fn bound(queue: &mut usize, default: usize, v: &mut Field<'_>) -> Result<(), StartError> {
    let given = usize::try_from(v.integer()?).ok().filter(|max| *max > 0);
    *queue = given.unwrap_or(default);
    Ok(())
}

fn buffered_bytes(queues: &mut JetStreamQueues, v: &mut Field<'_>) -> Result<(), StartError> {
    let given = size(v)?.and_then(|bytes| usize::try_from(bytes).ok()).filter(|max| *max > 0);
    queues.message_bytes_max = given.unwrap_or(MESSAGE_BYTES_MAX);
    Ok(())
}

/// Reads a duration that cannot be a number of seconds; a negative one is none.
fn nanoseconds(v: &Field<'_>) -> Result<u64, StartError> {
    let ns = duration::parse_ns(&v.text()?).map_err(|reason| v.error(reason))?;
    Ok(u64::try_from(ns).unwrap_or(0))
}

const LIMITS: &[Key<JetStreamLimits>] = &[
    Key(&["max_ack_pending"], Set(|l, v| limit(v).map(|max| l.ack_pending_max = max))),
    Key(&["max_ha_assets"], Set(|l, v| limit(v).map(|max| l.replicated_assets_max = max))),
    Key(&["max_request_batch"], Set(|l, v| limit(v).map(|max| l.request_batch_max = max))),
    Key(
        &["default_max_consumers"],
        Set(|l, v| {
            let given = limit(v)?;
            let default = JetStreamLimits::default().stream_consumers_max;
            l.stream_consumers_max = if given == 0 { default } else { given };
            Ok(())
        }),
    ),
    Key(&["duplicate_window"], Set(|l, v| nanoseconds(v).map(|ns| l.duplicate_window_max_ns = ns))),
    Key(&["batch"], Set(|l, v| bind_map(&[BATCH], v.map()?, &mut l.batch, v.warnings))),
];

/// Stores a limit of batches, unless it is 0 or less, which is the default.
fn batch_limit(slot: &mut usize, v: &mut Field<'_>) -> Result<(), StartError> {
    if let Some(max) = usize::try_from(v.integer()?).ok().filter(|max| *max > 0) {
        *slot = max;
    }
    Ok(())
}

const BATCH: &[Key<BatchLimits>] = &[
    Key(&["max_inflight_per_stream"], Set(|b, v| batch_limit(&mut b.batches_per_stream_max, v))),
    Key(&["max_inflight_total"], Set(|b, v| batch_limit(&mut b.batches_max, v))),
    Key(&["max_msgs"], Set(|b, v| batch_limit(&mut b.messages_max, v))),
    Key(
        &["timeout"],
        Set(|b, v| {
            b.timeout_ns = match nanoseconds(v)? {
                0 => BatchLimits::default().timeout_ns,
                ns => ns,
            };
            Ok(())
        }),
    ),
];

/// Reads a limit of an account of which 0 forbids all.
fn bytes(v: &Field<'_>) -> Result<Option<u64>, StartError> {
    v.integer().map(|number| u64::try_from(number).ok())
}

/// Reads a limit of an account of which 0 is none.
fn number(v: &Field<'_>) -> Result<Option<u64>, StartError> {
    Ok(bytes(v)?.filter(|max| *max > 0))
}

const ACCOUNT: &[Key<AccountAssetLimits>] = &[
    Key(
        &["max_memory", "max_mem", "mem", "memory"],
        Set(|l, v| bytes(v).map(|max| l.memory_bytes_max = max)),
    ),
    Key(
        &["max_store", "max_file", "max_disk", "store", "disk"],
        Set(|l, v| bytes(v).map(|max| l.file_bytes_max = max)),
    ),
    Key(&["max_streams", "streams"], Set(|l, v| number(v).map(|max| l.streams_max = max))),
    Key(&["max_consumers", "consumers"], Set(|l, v| number(v).map(|max| l.consumers_max = max))),
    Key(&["max_ack_pending"], Set(|l, v| number(v).map(|max| l.max_ack_pending = max))),
    Key(
        &["max_bytes_required", "max_stream_bytes", "max_bytes"],
        Set(|l, v| v.boolean().map(|yes| l.max_bytes_required = yes)),
    ),
    Key(
        &["mem_max_stream_bytes", "memory_max_stream_bytes"],
        Set(|l, v| number(v).map(|max| l.memory_stream_bytes_max = max)),
    ),
    Key(
        &["disk_max_stream_bytes", "store_max_stream_bytes"],
        Set(|l, v| number(v).map(|max| l.file_stream_bytes_max = max)),
    ),
    Key(
        &["cluster_traffic"],
        Set(|_, v| match v.text()?.as_str() {
            "system" | "owner" | "" => Ok(()),
            _ => Err(v.error("cluster_traffic is one of system, owner")),
        }),
    ),
];

/// Returns the limits that a token gives an account; `None` if it may have no streams.
///
/// Of tiers the one for a single replica counts: there are no others here.
pub(super) fn of_claims(
    plain: &AccountStreamsClaim,
    tiers: &std::collections::BTreeMap<String, AccountStreamsClaim>,
) -> Option<AccountAssetLimits> {
    let is_tiered = !tiers.is_empty();
    let claim = if is_tiered { tiers.get("R1")? } else { plain };
    if claim.mem_storage == 0 && claim.disk_storage == 0 {
        return None;
    }
    let bytes = |max: i64| u64::try_from(max).ok();
    let number = |max: i64| bytes(max).filter(|max| *max > 0);
    Some(AccountAssetLimits {
        memory_bytes_max: bytes(claim.mem_storage),
        file_bytes_max: bytes(claim.disk_storage),
        streams_max: number(claim.streams),
        consumers_max: number(claim.consumer),
        max_ack_pending: number(claim.max_ack_pending),
        memory_stream_bytes_max: number(claim.mem_max_stream_bytes),
        file_stream_bytes_max: number(claim.disk_max_stream_bytes),
        max_bytes_required: claim.max_bytes_required,
        is_tiered,
    })
}

/// Adds the rules that the options break.
pub(super) fn check(options: &Options, broken: &mut Vec<BrokenRule>) {
    if options.jetstream.has_two_store_dirs {
        let reason = "duplicate store_dir: keep that of the block jetstream";
        broken.push(BrokenRule::of(&["store_dir", "storedir", "jetstream"], reason));
    }
    let accounts = &options.accounts;
    let system = accounts.system.as_ref().and_then(|name| accounts.get(name));
    if let Some(system) = system.filter(|account| account.streams.is_some()) {
        let name = &system.name;
        let reason = format!("jetstream cannot be enabled in \"{name}\", the system account");
        broken.push(BrokenRule::of(&["accounts"], reason).within([name]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound_to(text: &str) -> JetStreamOptions {
        crate::config::of_text(text).unwrap_or_else(|error| panic!("{text}\n{error}")).jetstream
    }

    fn refused(text: &str) -> String {
        match crate::config::of_text(text) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{text} is accepted"),
        }
    }

    #[test]
    fn a_switch_and_a_block_turn_it_on_and_off() {
        for text in ["true", "enabled", "ENABLE", "{}", "{enabled: true}", "{max_mem: 1}"] {
            assert!(bound_to(&format!("jetstream: {text}")).is_enabled, "{text}");
        }
        for text in ["false", "disabled", "{enabled: false, max_mem: 1}"] {
            assert!(!bound_to(&format!("jetstream: {text}")).is_enabled, "{text}");
        }
        assert!(!bound_to("store_dir: x").is_enabled);
    }

    #[test]
    fn sizes_are_numbers_or_texts_with_a_unit_and_a_negative_one_is_the_default() {
        let sizes = |text: &str| bound_to(&format!("jetstream {{ max_mem: {text} }}"));
        for (text, bytes) in [
            ("1GB", Some(1 << 30)),
            ("\"2K\"", Some(2048)),
            ("\"\"", Some(0)),
            ("0", Some(0)),
            ("-1", None),
            ("\"-3M\"", None),
        ] {
            assert_eq!(sizes(text).memory_bytes_max, bytes, "{text}");
        }
        assert_eq!(bound_to("jetstream { max_file: 5 }").file_bytes_max, Some(5));
    }

    #[test]
    fn limits_and_queues_have_defaults_where_nothing_or_nothing_sensible_is_set() {
        let options = bound_to(
            "jetstream { strict: false, domain: hub, sync: always, unique_tag: \" AZ:\"\n\
             limits { max_ack_pending: 5, max_request_batch: 6, duplicate_window: \"90s\"\n\
             default_max_consumers: 0, batch { max_msgs: 7, timeout: \"2s\" } }\n\
             request_queue_limit: -1, max_buffered_msgs: 8 }",
        );
        assert!(options.is_lenient && options.sync == SyncPolicy::Always);
        assert_eq!(
            (options.domain.as_deref(), options.unique_tag.as_deref()),
            (Some("hub"), Some("az:"))
        );
        let limits = &options.limits;
        assert_eq!((limits.ack_pending_max, limits.request_batch_max), (5, 6));
        assert_eq!(limits.duplicate_window_max_ns, 90_000_000_000);
        assert_eq!(limits.stream_consumers_max, 1000);
        assert_eq!((limits.batch.messages_max, limits.batch.timeout_ns), (7, 2_000_000_000));
        assert_eq!(limits.batch.batches_max, BatchLimits::default().batches_max);
        assert_eq!((options.queues.requests_max, options.queues.messages_max), (REQUESTS_MAX, 8));
        assert_eq!(bound_to("jetstream { sync: \"1s\" }").sync, SyncPolicy::Every(1_000_000_000));
        assert_eq!(SyncPolicy::default(), SyncPolicy::Every(120_000_000_000));
    }

    #[test]
    fn what_is_not_there_yet_is_refused_and_the_key_is_not_told() {
        for text in ["key: hush", "prev_ek: hush", "cipher: aes", "tpm { keys_file: hush }"] {
            let error = refused(&format!("jetstream {{ {text} }}"));
            assert!(error.contains("not encrypted") && !error.contains("hush"), "{error}");
        }
        assert!(refused("jetstream { cipher: rot13 }").contains("aes or chacha"));
        assert!(refused("jetstream { domain: a.b }").contains("one token"));
        assert!(
            refused("store_dir: a\njetstream { store_dir: b }").contains("duplicate store_dir")
        );
    }

    #[test]
    fn an_account_has_streams_if_it_says_so() {
        let streams = |text: &str| {
            let text = format!("accounts {{ A {{ {text} }} }}");
            let options = crate::config::of_text(&text).unwrap();
            options.accounts.get("A").unwrap().streams
        };
        assert_eq!(streams(""), None);
        assert_eq!(streams("jetstream: disabled"), None);
        assert_eq!(streams("jetstream: enabled"), Some(AccountAssetLimits::default()));
        let own = streams(
            "jetstream { max_mem: 0, max_file: 10, streams: 2, consumers: 0, max_bytes: true }",
        );
        let wanted = AccountAssetLimits {
            memory_bytes_max: Some(0),
            file_bytes_max: Some(10),
            streams_max: Some(2),
            max_bytes_required: true,
            ..AccountAssetLimits::default()
        };
        assert_eq!(own, Some(wanted));
        assert!(refused("accounts { $SYS { jetstream: true } }").contains("system account"));
    }

    #[test]
    fn a_token_without_storage_has_no_streams_and_of_tiers_that_of_one_replica_counts() {
        let claim = AccountStreamsClaim { disk_storage: -1, streams: 3, ..Default::default() };
        let none = std::collections::BTreeMap::new();
        assert_eq!(of_claims(&AccountStreamsClaim::default(), &none), None);
        let wanted = AccountAssetLimits {
            memory_bytes_max: Some(0),
            streams_max: Some(3),
            ..AccountAssetLimits::default()
        };
        assert_eq!(of_claims(&claim, &none), Some(wanted));
        let tiers = [("R3".to_owned(), claim.clone())].into();
        assert_eq!(of_claims(&claim, &tiers), None);
        let tiers = [("R1".to_owned(), claim)].into();
        let tiered = AccountAssetLimits { is_tiered: true, ..wanted };
        assert_eq!(of_claims(&AccountStreamsClaim::default(), &tiers), Some(tiered));
    }
}
