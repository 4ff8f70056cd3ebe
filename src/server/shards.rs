//! The shards as the control thread sees them: started together, told things, joined.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::credential_checker;
use crate::config::{Options, StartError};
use crate::engine::{self, AccountId, RouteNotice, SHARDS_MAX, ShardId};
use crate::host::Tier;
use crate::host::{self, Tree};
use crate::mesh::{LANE_RECORDS_MAX, Mesh};
use crate::shard::{
    Address, Check, Control, Listener, NEWS_MAX, News, Outcome, Parts, Reporter, Seats, Shard,
    SystemClock, Uring,
};
use crate::uring::{self, Reactor, Waker};

/// The running shards.
pub struct Shards {
    addresses: Vec<Address>,
    threads: Vec<JoinHandle<()>>,
    outcomes: Receiver<Outcome>,
    notices: Receiver<RouteNotice>,
    started: Instant,
    news: (Sender<News>, Receiver<News>),
    started_at: DateTime<Utc>,
    tier: Tier,
}

/// What a shard says at most of its fate: that its clients are gone, and that it has failed.
const OUTCOMES_PER_SHARD: usize = 2;
/// Credentials that wait to be checked. What does not fit is not: who showed it is cut when the
/// time for it is over, as behind a longer queue.
const CHECKS_MAX: usize = 4096;

/// What a shard's thread is started with; it makes its reactor itself.
struct Seed {
    id: ShardId,
    /// The CPU it is pinned to, if any.
    cpu: Option<usize>,
    reactor: uring::Options,
    control: Receiver<Control>,
    mesh: Mesh,
    ready: Sender<Ready>,
    parts: Receiver<SharedParts>,
    outcome: Sender<Outcome>,
}

/// A shard has its reactor, or cannot have one.
type Ready = (ShardId, Result<(Waker, Tier), StartError>);

/// What all shards get alike, once all reactors are there.
#[derive(Clone)]
struct SharedParts {
    addresses: Vec<Address>,
    seats: Arc<Seats>,
    options: Arc<Options>,
    identity: engine::Identity,
    memory_bytes_max: usize,
    wish_bytes: engine::WishBytes,
    started: Instant,
    proofs: Sender<Check>,
    routes: Sender<RouteNotice>,
    news: Sender<News>,
}

impl Shards {
    /// Starts one shard for each entry of `cpus`, pinned to it if there is one.
    pub fn start(
        options: &Arc<Options>,
        identity: &engine::Identity,
        cpus: &[Option<usize>],
    ) -> Result<Self, StartError> {
        let count = u8::try_from(cpus.len()).unwrap_or(u8::MAX);
        if cpus.len() > SHARDS_MAX {
            return Err(StartError::new(format!("--shards can be at most {SHARDS_MAX}")));
        }
        let (ready, reports) = bounded(cpus.len());
        let (outcome, outcomes) = bounded(OUTCOMES_PER_SHARD * cpus.len());
        let (mut threads, mut controls, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        for (mesh, (id, cpu)) in
            Mesh::all(count, LANE_RECORDS_MAX).into_iter().zip((0..).map(ShardId).zip(cpus))
        {
            // Who sends bounds it: sockets are bounded by the limit of open files, questions by
            // those who wait for the answers, orders by those who reload or end the server, and
            // what the system account tells by its own queue. A shard takes all in each turn.
            let (control, controlled) = unbounded();
            let (parts_to, parts_from) = bounded(1);
            let seed = Seed {
                id,
                cpu: *cpu,
                reactor: uring::Options {
                    tier: options.runtime.uring_tier,
                    napi_us: options.runtime.napi_us,
                    ..uring::Options::default()
                },
                control: controlled,
                mesh,
                ready: ready.clone(),
                parts: parts_from,
                outcome: outcome.clone(),
            };
            let thread = std::thread::Builder::new().name(format!("shard-{}", id.0));
            let spawned = thread.spawn(move || grow(seed)).map_err(|error| {
                StartError::new(format!("cannot start a thread for shard {}: {error}", id.0))
            })?;
            threads.push(spawned);
            controls.push(control);
            parts.push(parts_to);
        }
        let (wakers, tier) = collect(&reports, cpus.len())?;
        let addresses: Vec<Address> = controls
            .into_iter()
            .zip(wakers)
            .map(|(control, waker)| Address { control, waker })
            .collect();
        let started_at = Utc::now();
        let news = bounded(NEWS_MAX);
        let (to_check, checks) = bounded(CHECKS_MAX);
        threads.push(credential_checker::start(checks, addresses.clone())?);
        // A route waits for the answer to what it gives notice of, or ends: there are no more than
        // a few of each.
        let (routes, notices) = unbounded();
        let started = now();
        let shared = SharedParts {
            addresses: addresses.clone(),
            seats: Arc::new(Seats::new(cpus.len(), options.runtime.seating)),
            options: Arc::clone(options),
            identity: identity.clone(),
            // Half of what there is, for the output of all connections.
            memory_bytes_max: host::memory_bytes(&Tree::default()) / 2 / cpus.len().max(1),
            wish_bytes: engine::WishBytes::default(),
            started,
            proofs: to_check,
            routes,
            news: news.0.clone(),
        };
        for parts in parts {
            // A shard that is gone by now has reported why.
            let _ = parts.send(shared.clone());
        }
        Ok(Self { addresses, threads, outcomes, notices, started, news, started_at, tier })
    }

    /// Accepts connections there: the first shard does so for all.
    pub fn open(&self, listeners: Vec<Listener>) {
        if let Some(first) = self.addresses.first() {
            first.send(Control::Open(listeners));
        }
    }

    /// What of io_uring is used.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// Where to reach the shards, what they say of routes, and the zero of their times.
    pub(super) fn for_cluster(&self) -> (Vec<Address>, Receiver<RouteNotice>, Instant) {
        (self.addresses.clone(), self.notices.clone(), self.started)
    }

    /// What the shards come to; disconnected when the last has ended.
    pub fn outcomes(&self) -> &Receiver<Outcome> {
        &self.outcomes
    }

    /// New options for all shards. Returns how many connections are closed because there are more
    /// than `max_connections` now, or an account has more than it may: the oldest, as in
    /// nats-server.
    pub fn reload(&self, options: &Arc<Options>) -> usize {
        self.tell(|| Control::Reload(Arc::clone(options)));
        // Which are left is known once the shards have done that, and no more than those come.
        let conns = self.reporter().conns();
        let mut by_account: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for conn in &conns {
            by_account.entry(&conn.account).or_default().push(conn.cid);
        }
        let all = conns.iter().map(|conn| conn.cid).collect();
        let mut closed = self.shed(all, options.limits.connections_max, None);
        for (name, cids) in by_account {
            let max = options.accounts.get(name).and_then(|account| account.limits.connections_max);
            if let (Some(max), Some(number)) = (max, options.accounts.number(name)) {
                closed += self.shed(cids, max, Some(AccountId::new(number)));
            }
        }
        closed
    }

    fn shed(&self, mut cids: Vec<u64>, max: usize, account: Option<AccountId>) -> usize {
        let excess = cids.len().saturating_sub(max);
        if excess > 0 {
            cids.sort_unstable();
            self.tell(|| Control::Shed { cid_max: cids[excess - 1], account });
        }
        excess
    }

    /// Accepts no more connections and sends those that are there away.
    pub fn lame_duck(&self, options: &Options) {
        let grace = Duration::from_millis(options.lame_duck_grace_ms);
        let all = Duration::from_millis(options.lame_duck_duration_ms);
        let spread = all.saturating_sub(grace);
        self.tell(|| Control::LameDuck { grace, spread });
    }

    /// Both ends of what shards tell whoever speaks for the server in the system account.
    pub fn news(&self) -> (Sender<News>, Receiver<News>) {
        self.news.clone()
    }

    /// Whoever has it can ask how the shards are.
    pub fn reporter(&self) -> Reporter {
        let (addresses, started_at) = (self.addresses.clone(), self.started_at);
        Reporter::new(addresses, started_at, self.tier)
    }

    /// Lets clients take what is queued for them, within bounds, and ends.
    pub fn stop(self) {
        self.tell(|| Control::Stop);
        for thread in self.threads {
            // A shard that panicked has said so.
            let _ = thread.join();
        }
    }

    fn tell(&self, control: impl Fn() -> Control) {
        self.addresses.iter().for_each(|address| address.send(control()));
    }
}

/// A shard's thread from its beginning to its end.
fn grow(seed: Seed) {
    let id = seed.id;
    if !host::pin(seed.cpu) {
        tracing::warn!("Shard {} could not be pinned to its core", id.0);
    }
    let reactor = match Reactor::new(&seed.reactor) {
        Ok(reactor) => reactor,
        Err(error) => {
            let _ = seed.ready.send((id, Err(StartError::new(error.to_string()))));
            return;
        }
    };
    let _ = seed.ready.send((id, Ok((reactor.waker(), reactor.tier()))));
    drop(seed.ready);
    let Ok(shared) = seed.parts.recv() else { return };
    let outcome = seed.outcome;
    let parts = Parts {
        id,
        outcome: outcome.clone(),
        addresses: shared.addresses,
        control: seed.control,
        mesh: seed.mesh,
        seats: shared.seats,
        options: shared.options,
        identity: shared.identity,
        memory_bytes_max: shared.memory_bytes_max,
        wish_bytes: shared.wish_bytes,
        started: shared.started,
        seed: fastrand::u64(..),
        proofs: shared.proofs,
        routes: shared.routes,
        news: shared.news,
    };
    if let Err(error) = Shard::new(parts, Uring(reactor), SystemClock).run() {
        // The control thread may be about to end for another reason.
        let _ = outcome.send(Outcome::Failed(format!("shard {} has failed: {error}", id.0)));
    }
}

/// Waits until every shard has its reactor.
fn collect(reports: &Receiver<Ready>, count: usize) -> Result<(Vec<Waker>, Tier), StartError> {
    let mut wakers = Vec::new();
    let mut tier = Tier::TaskRun;
    for _ in 0..count {
        let Ok((id, report)) = reports.recv() else {
            return Err(StartError::new("a shard ended before it began"));
        };
        let (waker, its_tier) = report?;
        wakers.push((id, waker));
        tier = tier.min(its_tier);
    }
    wakers.sort_by_key(|(id, _)| *id);
    Ok((wakers.into_iter().map(|(_, waker)| waker).collect(), tier))
}

#[expect(clippy::disallowed_methods, reason = "the control thread may look at the clock")]
fn now() -> Instant {
    Instant::now()
}
