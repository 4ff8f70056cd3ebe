//! How the shards are, asked from any thread.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use crossbeam_channel::{Sender, bounded};

use super::messages::{Address, ClientOrder, Control, Figures, Report};
use crate::engine::{
    AccountFigures, ClosedConn, ConnSnapshot, Page, RouteSnapshot, ShardId, SubSnapshot,
};
use crate::host::Tier;

/// How long a shard may take to answer; one that hangs is left out.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// Asks the shards how they are, from any thread.
#[derive(Clone)]
pub struct Reporter {
    addresses: Vec<Address>,
    started_at: DateTime<Utc>,
    tier: Tier,
}

impl Reporter {
    /// Asks the shards at `addresses`, which count time from `started_at` and use `tier`.
    pub(crate) fn new(addresses: Vec<Address>, started_at: DateTime<Utc>, tier: Tier) -> Self {
        Self { addresses, started_at, tier }
    }

    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.addresses.len()
    }

    /// What of io_uring they use.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// The zero of the times that shards tell.
    pub fn started_at(&self) -> DateTime<Utc> {
        self.started_at
    }

    /// Tells one shard something.
    pub fn tell(&self, shard: ShardId, control: Control) {
        if let Some(address) = self.addresses.get(shard.index()) {
            address.send(control);
        }
    }

    /// Has something done to a client; `false` if no shard has one with this number.
    pub fn order(&self, cid: u64, order: ClientOrder) -> bool {
        self.ask_all(|to| Control::Client { cid, order, to }).contains(&true)
    }

    /// How things are on each shard, as far as they answer in time.
    pub fn report(&self) -> Vec<Report> {
        self.ask_all(Control::Report)
    }

    /// How each shard works, by shard, as far as they answer in time.
    pub fn figures(&self) -> Vec<Figures> {
        let mut figures = self.ask_all(Control::Figures);
        figures.sort_by_key(|figures| figures.report.shard);
        figures
    }

    /// How each account is, over the shards that answer in time, in the order of their names.
    pub fn accounts(&self) -> Vec<AccountFigures> {
        let mut all: BTreeMap<Arc<str>, AccountFigures> = BTreeMap::new();
        for account in self.ask_all(Control::Accounts).into_iter().flatten() {
            match all.entry(Arc::clone(&account.name)) {
                Entry::Vacant(slot) => drop(slot.insert(account)),
                Entry::Occupied(mut slot) => slot.get_mut().add(&account),
            }
        }
        all.into_values().collect()
    }

    /// One answer of each shard, in no order.
    fn ask_all<T>(&self, ask: impl Fn(Sender<T>) -> Control) -> Vec<T> {
        let (to, answers) = bounded(self.addresses.len());
        for address in &self.addresses {
            address.send(ask(to.clone()));
        }
        drop(to);
        let by = now() + ANSWER_MAX;
        std::iter::from_fn(|| answers.recv_deadline(by).ok()).collect()
    }

    /// The open connections, in no order.
    pub fn conns(&self) -> Vec<ConnSnapshot> {
        let mut conns = Vec::new();
        self.pages(|from, to| Control::Conns { from, to }, |conn| conns.push(conn));
        conns
    }

    /// The connections that have ended and are remembered, in no order.
    pub fn closed(&self) -> Vec<ClosedConn> {
        let mut all = Vec::new();
        self.pages(|from, to| Control::Closed { from, to }, |closed| all.push(closed));
        all
    }

    /// The registered routes, in the order of their numbers.
    pub fn routes(&self, wishes: bool) -> Vec<RouteSnapshot> {
        let mut routes = self.ask_all(|to| Control::Routes { wishes, to }).concat();
        routes.sort_by_key(|route| route.rid);
        routes
    }

    /// Shows each subscription.
    pub fn subs(&self, show: impl FnMut(SubSnapshot)) {
        self.pages(|from, to| Control::Subs { from, to }, show);
    }

    /// Fetches a table of each shard, page by page, so that the shard can work between them.
    fn pages<T>(&self, ask: impl Fn(u64, Sender<Page<T>>) -> Control, mut show: impl FnMut(T)) {
        for address in &self.addresses {
            let mut from = Some(0);
            while let Some(slot) = from {
                let (to, page) = bounded(1);
                address.send(ask(slot, to));
                let Ok(page) = page.recv_timeout(ANSWER_MAX) else { break };
                page.entries.into_iter().for_each(&mut show);
                from = page.next;
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "who asks is not a shard, and may look at the clock")]
fn now() -> Instant {
    Instant::now()
}
