//! `/`, a page that shows the shards at work, and `/shardz`, the figures on it.
//!
//! The page is one file. The browser is told to run its one script and nothing else, so that text
//! from clients can never run.

use std::sync::LazyLock;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use chrono::Utc;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{MonitorState, text};
use crate::VERSION;
use crate::measure::Histogram;
use crate::shard::Figures;

/// The page as it is sent.
pub(super) const PAGE: &str = include_str!("page.html");

/// The policy for the page: to run the script and the style in it, and to connect to this server.
pub(super) static POLICY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'self'; \
         form-action 'none'; frame-ancestors 'none'; script-src {}; style-src {}",
        fingerprint("script"),
        fingerprint("style"),
    )
});

/// Returns the hash by which a policy names the page's only element of this kind.
fn fingerprint(element: &str) -> String {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    let inside = PAGE.split_once(&open).and_then(|(_, rest)| rest.split_once(&close));
    let hash = Sha256::digest(inside.map_or("", |(inside, _)| inside));
    format!("'sha256-{}'", BASE64_STANDARD.encode(hash))
}

/// All figures of all shards that have answered. Counters begin at the start.
#[derive(Serialize)]
pub(super) struct Shardz<'a> {
    server_id: &'a str,
    server_name: &'a str,
    version: &'static str,
    now: String,
    start: String,
    uptime: String,
    tier: Option<String>,
    shards_started: usize,
    shards: Vec<ShardRow>,
}

/// Figures of one shard. Times are nanoseconds, unless the name says otherwise.
#[derive(Serialize)]
struct ShardRow {
    shard: u8,
    /// The time of these figures, since the start.
    at_ns: u64,
    cpu_ns: u64,
    connections: usize,
    connections_back_pressured: usize,
    subscriptions: usize,
    cached_subjects: usize,
    in_msgs: u64,
    in_bytes: u64,
    out_msgs: u64,
    out_bytes: u64,
    slow_consumers: u64,
    dropped_newest: u64,
    dropped_oldest: u64,
    conflated: u64,
    stale_connections: u64,
    queue_msgs_lost: u64,
    pending_bytes: usize,
    turns: u64,
    system_calls: u64,
    completions: u64,
    sends: u64,
    sent_bytes: u64,
    wakeups_sent: u64,
    wakeups_received: u64,
    turn: BucketCounts,
    receive_to_send: BucketCounts,
    lanes: Vec<LaneRow>,
}

/// A histogram. Bucket `i` counts durations of up to `2^i` ns that are in no earlier bucket.
#[derive(Serialize)]
struct BucketCounts {
    sum_ns: u64,
    buckets: Vec<u64>,
}

/// Figures of the lane to another shard.
#[derive(Serialize)]
struct LaneRow {
    to: u8,
    records: u64,
    pub(crate) bytes: u64,
    waiting_records: usize,
    waiting_bytes: usize,
}

impl<'a> Shardz<'a> {
    pub(super) fn new(state: &'a MonitorState, figures: &[Figures]) -> Self {
        let now = Utc::now();
        Self {
            server_id: &state.identity.id,
            server_name: &state.identity.name,
            version: VERSION,
            now: text::time(now),
            start: text::time(state.started_at),
            uptime: text::between(state.started_at, now),
            tier: figures.iter().map(|shard| shard.tier).min().map(|tier| tier.to_string()),
            shards_started: state.reporter.shards(),
            shards: figures.iter().map(ShardRow::new).collect(),
        }
    }
}

impl ShardRow {
    fn new(figures: &Figures) -> Self {
        let (report, reactor) = (&figures.report, &figures.reactor);
        let lanes = figures.lanes.iter().map(|(to, lane)| LaneRow {
            to: to.0,
            records: lane.records,
            bytes: lane.bytes,
            waiting_records: lane.waiting_records,
            waiting_bytes: lane.waiting_bytes,
        });
        Self {
            shard: report.shard.0,
            at_ns: figures.at_ns,
            cpu_ns: u64::try_from(figures.cpu.as_nanos()).unwrap_or(u64::MAX),
            connections: report.conns,
            connections_back_pressured: figures.braked_conns,
            subscriptions: report.subscriptions,
            cached_subjects: report.cached_subjects,
            in_msgs: report.stats.in_msgs,
            in_bytes: report.stats.in_bytes,
            out_msgs: report.stats.out_msgs,
            out_bytes: report.stats.out_bytes,
            slow_consumers: report.stats.slow_consumers.total(),
            dropped_newest: report.stats.dropped.newest,
            dropped_oldest: report.stats.dropped.oldest,
            conflated: report.stats.dropped.conflated,
            stale_connections: report.stats.stale_connections.total(),
            queue_msgs_lost: report.stats.queue_msgs_lost,
            pending_bytes: figures.output_bytes,
            turns: reactor.turns,
            system_calls: reactor.enters,
            completions: reactor.completions,
            sends: reactor.sent_bytes.count(),
            sent_bytes: reactor.sent_bytes.sum(),
            wakeups_sent: figures.rings,
            wakeups_received: reactor.woken,
            turn: BucketCounts::new(&figures.turn_ns),
            receive_to_send: BucketCounts::new(&figures.delay_ns),
            lanes: lanes.collect(),
        }
    }
}

impl BucketCounts {
    fn new(histogram: &Histogram) -> Self {
        Self { sum_ns: histogram.sum(), buckets: histogram.buckets().to_vec() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_one_script_and_one_style_and_needs_nothing_from_elsewhere() {
        for element in ["script", "style"] {
            assert_eq!(PAGE.matches(&format!("<{element}")).count(), 1, "{element}");
            assert_eq!(PAGE.matches(&format!("<{element}>")).count(), 1, "{element}");
        }
        let allowed = "http://www.w3.org/2000/svg";
        let elsewhere = PAGE.replace(allowed, "");
        assert!(!elsewhere.contains("://") && !elsewhere.contains("src="), "{elsewhere}");
        assert!(!PAGE.contains(" on") || !PAGE.contains("onclick="), "no handler in an attribute");
    }

    #[test]
    fn the_page_writes_no_markup_from_its_script() {
        for way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!PAGE.contains(way), "{way}");
        }
    }
}
