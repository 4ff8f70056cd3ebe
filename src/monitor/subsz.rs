//! `/subsz`: subscriptions, and figures of their lookups.

use chrono::Utc;
use serde::Serialize;

use super::connz::{LIMIT, SubDetail, is_known};
use super::query::{BadQuery, Query};
use super::{MonitorState, text};
use crate::engine::{AccountFigures, InterestStats, SubSnapshot};
use crate::subject;

#[derive(Serialize)]
pub(super) struct Subsz<'a> {
    server_id: &'a str,
    now: String,
    #[serde(flatten)]
    stats: SublistStats,
    total: usize,
    offset: usize,
    limit: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    subscriptions_list: Vec<SubDetail>,
}

/// Figures of lookups over all shards: each shard counts its own, and those for messages from other
/// shards. Fan-outs are those of lookups that missed the cache.
#[derive(Serialize, Default)]
pub(super) struct SublistStats {
    num_subscriptions: usize,
    num_cache: usize,
    num_inserts: u64,
    num_removes: u64,
    num_matches: u64,
    #[serde(serialize_with = "text::number")]
    cache_hit_rate: f64,
    max_fanout: u64,
    #[serde(serialize_with = "text::number")]
    avg_fanout: f64,
}

impl SublistStats {
    pub(super) fn new<'f>(accounts: impl IntoIterator<Item = &'f AccountFigures>) -> Self {
        let (mut stats, mut sums) = (Self::default(), InterestStats::default());
        for account in accounts {
            stats.num_subscriptions += account.subscriptions;
            stats.num_cache += account.cached_subjects;
            sums.add(&account.interest);
        }
        stats.num_inserts = sums.inserts;
        stats.num_removes = sums.removes;
        stats.num_matches = sums.lookups;
        stats.cache_hit_rate = ratio(sums.cache_hits, sums.lookups);
        stats.max_fanout = sums.fanout_max;
        stats.avg_fanout = ratio(sums.fanout_sum, sums.lookups - sums.cache_hits);
        stats
    }
}

#[expect(clippy::cast_precision_loss, reason = "a ratio needs no more digits")]
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

impl<'a> Subsz<'a> {
    pub(super) fn new(state: &'a MonitorState, query: &Query) -> Result<Self, BadQuery> {
        let listed = query.boolean("subs")?;
        let offset = query.count("offset")?;
        let limit = Some(query.count("limit")?).filter(|limit| *limit > 0).unwrap_or(LIMIT);
        let (test, account) = (query.text("test"), query.text("acc"));
        if !test.is_empty() && !subject::is_valid_publish(test.as_bytes()) {
            let reason = format!("invalid test subject, must be valid publish subject: {test}");
            return Err(BadQuery(reason));
        }
        let mut subsz = Self {
            server_id: &state.identity.id,
            now: text::time(Utc::now()),
            stats: SublistStats::default(),
            total: 0,
            offset,
            limit,
            subscriptions_list: Vec::new(),
        };
        if !is_known(state, account) {
            return Ok(subsz);
        }
        let wanted = |name: &str| account.is_empty() || name == account;
        let accounts = state.reporter.accounts();
        subsz.stats = SublistStats::new(accounts.iter().filter(|figures| wanted(&figures.name)));
        if listed {
            state.reporter.subs(|sub| {
                if wanted(&sub.account) {
                    subsz.add(sub, test, state);
                }
            });
        }
        Ok(subsz)
    }

    fn add(&mut self, sub: SubSnapshot, test: &str, state: &MonitorState) {
        if !test.is_empty() && !subject::matches(sub.subject.as_bytes(), test.as_bytes()) {
            return;
        }
        self.total += 1;
        if self.total > self.offset && self.subscriptions_list.len() < self.limit {
            self.subscriptions_list.push(SubDetail::with_account(sub, state));
        }
    }
}
