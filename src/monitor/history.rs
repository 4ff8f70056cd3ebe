//! `/historyz`: rates and latency of the last hour, so that a look begins with what was before it.
//!
//! The monitoring's thread asks the shards for their counters every 10 s, and keeps what changed in
//! 360 rows of a few numbers: some 40 KiB, whatever the load.

use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;

use super::process;
use crate::engine::ShardId;
use crate::measure::Histogram;
use crate::shard::Figures;

/// The time between two rows.
pub(super) const INTERVAL: Duration = Duration::from_secs(10);
/// Rows that are kept: an hour.
const ROWS_MAX: usize = 360;
const NS_PER_S: f64 = 1e9;

/// Figures of the last hour.
#[derive(Debug, Default)]
pub(super) struct History {
    last: Option<CounterTotals>,
    rows: VecDeque<HistoryRow>,
}

/// Counters at one moment, over all shards.
#[derive(Debug, Default, Clone)]
struct CounterTotals {
    /// Shards that have answered.
    shards: Vec<ShardId>,
    at_ns: u64,
    cpu_s: f64,
    in_msgs: u64,
    out_msgs: u64,
    in_bytes: u64,
    out_bytes: u64,
    cut: u64,
    dropped: u64,
    delay_ns: Histogram,
}

/// Figures of the time before `at_ms`. Rates are those of a second.
#[derive(Debug, Clone, Copy, Serialize, PartialEq)]
struct HistoryRow {
    /// Milliseconds since 1970.
    at_ms: i64,
    in_msgs: u64,
    out_msgs: u64,
    in_bytes: u64,
    out_bytes: u64,
    /// The median of the delay from arrival to send, in nanoseconds; 0 without messages.
    delay50_ns: u64,
    delay99_ns: u64,
    connections: usize,
    pending_bytes: usize,
    /// Slow clients that were cut in this time.
    cut: u64,
    /// Messages that overflow policies have dropped in this time.
    dropped: u64,
    /// The share of one core, in percent.
    cpu_percent: u64,
    memory_bytes: u64,
}

/// The page `/historyz`.
#[derive(Serialize)]
pub(super) struct Historyz<'a> {
    server_id: &'a str,
    interval_s: u64,
    rows: &'a VecDeque<HistoryRow>,
}

impl History {
    /// Adds a row, if this is not the first look, and all shards of the last one have answered.
    pub(super) fn note(&mut self, at_ms: i64, figures: &[Figures]) {
        let now = CounterTotals::of(figures);
        let last = self.last.replace(now.clone());
        let Some(last) = last.filter(|last| last.shards == now.shards && last.at_ns < now.at_ns)
        else {
            return;
        };
        let sum = |of: fn(&Figures) -> usize| figures.iter().map(of).sum();
        self.push(HistoryRow {
            connections: sum(|shard| shard.report.conns),
            pending_bytes: sum(|shard| shard.output_bytes),
            memory_bytes: process::memory().resident_bytes,
            ..now.since(&last, at_ms)
        });
    }

    fn push(&mut self, row: HistoryRow) {
        if self.rows.len() == ROWS_MAX {
            self.rows.pop_front();
        }
        self.rows.push_back(row);
    }

    pub(super) fn page<'a>(&'a self, server_id: &'a str) -> Historyz<'a> {
        Historyz { server_id, interval_s: INTERVAL.as_secs(), rows: &self.rows }
    }
}

impl CounterTotals {
    fn of(figures: &[Figures]) -> Self {
        let mut all = Self {
            shards: figures.iter().map(|shard| shard.report.shard).collect(),
            cpu_s: process::used_s(),
            ..Self::default()
        };
        for shard in figures {
            let (stats, dropped) = (&shard.report.stats, &shard.report.stats.dropped);
            all.at_ns = all.at_ns.max(shard.at_ns);
            all.in_msgs += stats.in_msgs;
            all.out_msgs += stats.out_msgs;
            all.in_bytes += stats.in_bytes;
            all.out_bytes += stats.out_bytes;
            all.cut += stats.slow_consumers.total();
            all.dropped += dropped.newest + dropped.oldest + dropped.conflated;
            all.delay_ns.merge(&shard.delay_ns);
        }
        all
    }

    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate for people needs no more digits"
    )]
    fn since(&self, last: &Self, at_ms: i64) -> HistoryRow {
        let seconds = (self.at_ns - last.at_ns) as f64 / NS_PER_S;
        let rate = |now: u64, then: u64| (now.saturating_sub(then) as f64 / seconds).round() as u64;
        let delays = self.delay_ns.since(&last.delay_ns);
        HistoryRow {
            at_ms,
            in_msgs: rate(self.in_msgs, last.in_msgs),
            out_msgs: rate(self.out_msgs, last.out_msgs),
            in_bytes: rate(self.in_bytes, last.in_bytes),
            out_bytes: rate(self.out_bytes, last.out_bytes),
            delay50_ns: delays.quantile(0.5),
            delay99_ns: delays.quantile(0.99),
            cut: self.cut.saturating_sub(last.cut),
            dropped: self.dropped.saturating_sub(last.dropped),
            cpu_percent: (100.0 * (self.cpu_s - last.cpu_s) / seconds).round().max(0.0) as u64,
            connections: 0,
            pending_bytes: 0,
            memory_bytes: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(seconds: u64, msgs: u64) -> CounterTotals {
        let mut delay_ns = Histogram::default();
        delay_ns.add(1000, msgs);
        let at_ns = seconds * 1_000_000_000;
        CounterTotals {
            shards: vec![ShardId(0)],
            at_ns,
            in_msgs: msgs,
            out_msgs: 3 * msgs,
            delay_ns,
            ..CounterTotals::default()
        }
    }

    #[test]
    fn a_row_has_what_changed_in_a_second_of_its_time() {
        let row = totals(20, 1500).since(&totals(10, 500), 7);
        assert_eq!((row.at_ms, row.in_msgs, row.out_msgs), (7, 100, 300));
        assert!((512..=1024).contains(&row.delay50_ns), "{row:?}");
        let idle = totals(30, 1500).since(&totals(20, 1500), 8);
        assert_eq!((idle.in_msgs, idle.delay50_ns, idle.delay99_ns), (0, 0, 0));
    }

    #[test]
    fn no_more_than_an_hour_is_kept() {
        let mut history = History::default();
        for at_ms in 0..1000 {
            history.push(totals(2, 1).since(&totals(1, 0), at_ms));
        }
        assert_eq!(history.rows.back().unwrap().at_ms, 999);
        assert_eq!(history.rows.len(), ROWS_MAX);
    }
}
