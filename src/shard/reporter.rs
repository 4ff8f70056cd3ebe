//! Requests for state and figures of all shards, from any thread.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use crossbeam_channel::{Sender, bounded};

use super::messages::{Address, Control, Figures, ShardReport};
use crate::engine::ClientOrder;
use crate::engine::{
    AccountFigures, ClosedConn, ConnSnapshot, GatewaySnapshot, LeafSnapshot, Page, RouteSnapshot,
    ShardId, StreamFigures, SubSnapshot, UsageFigures,
};
use crate::host::Tier;

/// The longest time a shard may take to answer; one that takes longer is left out.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// A requester of state and figures of all shards, for any thread.
#[derive(Clone)]
pub struct Reporter {
    addresses: Vec<Address>,
    started_at: DateTime<Utc>,
    tier: Tier,
}

impl Reporter {
    /// A reporter of the shards at `addresses`, which count time from `started_at` and use `tier`.
    pub(crate) fn new(addresses: Vec<Address>, started_at: DateTime<Utc>, tier: Tier) -> Self {
        Self { addresses, started_at, tier }
    }

    /// Returns the number of shards.
    pub fn shards(&self) -> usize {
        self.addresses.len()
    }

    /// Returns the tier of io_uring that all shards use.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// Returns the zero of the times in answers of shards.
    pub fn started_at(&self) -> DateTime<Utc> {
        self.started_at
    }

    /// Sends a message to one shard.
    pub fn tell(&self, shard: ShardId, control: Control) {
        if let Some(address) = self.addresses.get(shard.index()) {
            address.send(control);
        }
    }

    /// Has an order about a client carried out; `false` if no shard has a client with this number.
    pub fn order(&self, cid: u64, order: ClientOrder) -> bool {
        self.ask_all(|to| Control::Client { cid, order, to }).contains(&true)
    }

    /// Returns the reports of all shards that answer in time, in no order.
    pub fn report(&self) -> Vec<ShardReport> {
        self.ask_all(Control::Report)
    }

    /// Returns the figures of all shards that answer in time, by shard.
    pub fn figures(&self) -> Vec<Figures> {
        let mut figures = self.ask_all(Control::Figures);
        figures.sort_by_key(|figures| figures.report.shard);
        figures
    }

    /// Returns the figures of each account, summed over the shards that answer in time, in the
    /// order of the accounts' names.
    pub fn accounts(&self) -> Vec<AccountFigures> {
        AccountFigures::summed(self.ask_all(Control::Accounts).into_iter().flatten())
    }

    /// Returns one answer of each shard, in no order.
    fn ask_all<T>(&self, ask: impl Fn(Sender<T>) -> Control) -> Vec<T> {
        let (to, answers) = bounded(self.addresses.len());
        for address in &self.addresses {
            address.send(ask(to.clone()));
        }
        drop(to);
        let by = now() + ANSWER_MAX;
        std::iter::from_fn(|| answers.recv_deadline(by).ok()).collect()
    }

    /// Returns the open connections, in no order.
    pub fn conns(&self) -> Vec<ConnSnapshot> {
        let mut conns = Vec::new();
        self.pages(|from, to| Control::Conns { from, to }, |conn| conns.push(conn));
        conns
    }

    /// Returns the connections that have ended and are remembered, in no order.
    pub fn closed(&self) -> Vec<ClosedConn> {
        let mut all = Vec::new();
        self.pages(|from, to| Control::Closed { from, to }, |closed| all.push(closed));
        all
    }

    /// Returns the streams of all shards, in no order.
    pub fn streams(&self, with_consumers: bool) -> Vec<StreamFigures> {
        let mut streams = Vec::new();
        let ask = |from, to| Control::Streams { from, with_consumers, to };
        self.pages(ask, |stream| streams.push(stream));
        streams
    }

    /// Returns the use of JetStream by each account.
    pub fn stream_usage(&self) -> Vec<UsageFigures> {
        let (to, answer) = bounded(1);
        self.tell(ShardId(0), Control::StreamUsage(to));
        answer.recv_timeout(ANSWER_MAX).unwrap_or_default()
    }

    /// Returns the registered routes, in the order of their numbers.
    pub fn routes(&self, with_interest: bool) -> Vec<RouteSnapshot> {
        let mut routes = self.ask_all(|to| Control::Routes { with_interest, to }).concat();
        routes.sort_by_key(|route| route.rid);
        routes
    }

    /// Returns the registered gateways, in the order of their numbers.
    pub fn gateways(&self, with_interest: bool) -> Vec<GatewaySnapshot> {
        let mut all = self.ask_all(|to| Control::Gateways { with_interest, to }).concat();
        all.sort_by_key(|gateway| gateway.rid);
        all
    }

    /// Returns the leaf connections.
    pub fn leaves(&self, with_interest: bool) -> Vec<LeafSnapshot> {
        self.ask_all(|to| Control::Leaves { with_interest, to }).concat()
    }

    /// Calls `show` for each subscription.
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
