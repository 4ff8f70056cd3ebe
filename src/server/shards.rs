//! The shards as the control thread handles them: started together, given orders, joined.

use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::{callouts, credential_checker};
use crate::auth::callout::ServerKeys;
use crate::config::{Options, StartError};
use crate::engine::{self, AccountId, Excess, GatewayNotice, LeafNotice, RouteNotice, ShardId};
use crate::host::Tier;
use crate::host::{self, Tree};
use crate::mesh::{LANE_RECORDS_MAX, Mesh};
use crate::shard::{
    Address, CalloutNews, CheckRequest, Control, Listener, News, NewsQueue, Outcome, Reporter,
    Shard, ShardParts, ShardSeats, SystemClock, Uring,
};
use crate::uring::{self, Reactor, Unavailable, Waker};

/// Parts of the shards for the thread that dials remotes of leaf nodes.
pub(super) struct LeafParts {
    pub(super) addresses: Vec<Address>,
    pub(super) notices: Receiver<LeafNotice>,
    /// The zero of the shards' times.
    pub(super) started: Instant,
    pub(super) seats: Arc<ShardSeats>,
}

/// The running shards.
pub struct Shards {
    addresses: Vec<Address>,
    seats: Arc<ShardSeats>,
    threads: Vec<JoinHandle<()>>,
    outcomes: Receiver<Outcome>,
    notices: Receiver<RouteNotice>,
    gateway_notices: Receiver<GatewayNotice>,
    leaf_notices: Receiver<LeafNotice>,
    started: Instant,
    news: NewsQueue,
    started_at: DateTime<Utc>,
    tier: Tier,
}

/// Outcomes that a shard reports, at most: that its clients are gone, and that it has failed.
const OUTCOMES_PER_SHARD: usize = 2;
/// Credentials that wait to be checked, at most. Further ones are dropped: their client is
/// disconnected when its login times out, as it would be behind a longer queue.
const CHECKS_MAX: usize = 4096;

/// Questions to services about clients, and answers to them, that wait, at most. Further ones are
/// dropped, with the same result.
const CALLOUTS_MAX: usize = 4096;
/// Attempts to get memory for a ring, 20 ms apart.
const RING_ATTEMPTS: usize = 50;

/// Parts that a shard's thread starts with; it creates its reactor itself.
struct NewShard {
    id: ShardId,
    /// The CPU to pin the shard to, if any.
    cpu: Option<usize>,
    reactor: uring::ReactorOptions,
    control: Receiver<Control>,
    mesh: Mesh,
    ready: Sender<Ready>,
    parts: Receiver<SharedParts>,
    outcome: Sender<Outcome>,
}

/// A shard's report that it has a reactor, or cannot have one.
type Ready = (ShardId, Result<(Waker, Tier), StartError>);

/// Parts that all shards get alike, once all reactors exist.
#[derive(Clone)]
struct SharedParts {
    addresses: Vec<Address>,
    seats: Arc<ShardSeats>,
    options: Arc<Options>,
    identity: engine::Identity,
    memory_bytes_max: usize,
    remote_bytes: engine::RemoteInterestBytes,
    started: Instant,
    checks: Sender<CheckRequest>,
    callouts: Sender<CalloutNews>,
    routes: Sender<RouteNotice>,
    gateways: Sender<GatewayNotice>,
    leaves: Sender<LeafNotice>,
    news: Sender<News>,
}

/// Threads of shards that have begun, and the channels to them.
#[derive(Default)]
struct Spawned {
    threads: Vec<JoinHandle<()>>,
    controls: Vec<Sender<Control>>,
    parts: Vec<Sender<SharedParts>>,
}

/// Channels by which new shards report.
struct Reports {
    ready: Sender<Ready>,
    outcome: Sender<Outcome>,
}

/// Starts a thread for each entry of `cpus`; each waits for the parts that all get alike.
fn spawn(
    options: &Options,
    count: u8,
    cpus: &[Option<usize>],
    reports: &Reports,
) -> Result<Spawned, StartError> {
    let mut spawned = Spawned::default();
    for (mesh, (id, cpu)) in
        Mesh::all(count, LANE_RECORDS_MAX).into_iter().zip((0..).map(ShardId).zip(cpus))
    {
        // The senders bound this channel: sockets by the limit of open files, questions by the
        // requesters that wait for answers, orders by reloads and the end of the server, and
        // messages of the system account by its own queue. A shard takes all of them in each
        // turn.
        let (control, controlled) = unbounded();
        let (parts_to, parts_from) = bounded(1);
        let seed = NewShard {
            id,
            cpu: *cpu,
            reactor: uring::ReactorOptions {
                tier: options.runtime.uring_tier,
                napi_us: options.runtime.napi_us,
                ..uring::ReactorOptions::default()
            },
            control: controlled,
            mesh,
            ready: reports.ready.clone(),
            parts: parts_from,
            outcome: reports.outcome.clone(),
        };
        let thread = std::thread::Builder::new().name(format!("shard-{}", id.0));
        let thread = thread.spawn(move || grow(seed)).map_err(|error| {
            StartError::new(format!("cannot start a thread for shard {}: {error}", id.0))
        })?;
        spawned.threads.push(thread);
        spawned.controls.push(control);
        spawned.parts.push(parts_to);
    }
    Ok(spawned)
}

impl Shards {
    /// Starts one shard for each entry of `cpus`, pinned to that CPU if there is one.
    pub fn start(
        options: &Arc<Options>,
        identity: &engine::Identity,
        keys: ServerKeys,
        cpus: &[Option<usize>],
    ) -> Result<Self, StartError> {
        let count = u8::try_from(cpus.len()).unwrap_or(u8::MAX);
        let (ready, reports) = bounded(cpus.len());
        let (outcome, outcomes) = bounded(OUTCOMES_PER_SHARD * cpus.len());
        let Spawned { mut threads, controls, parts } =
            spawn(options, count, cpus, &Reports { ready, outcome })?;
        let (wakers, tier) = collect(&reports, cpus.len())?;
        let addresses: Vec<Address> = controls
            .into_iter()
            .zip(wakers)
            .map(|(control, waker)| Address { control, waker })
            .collect();
        let started_at = Utc::now();
        let news = NewsQueue::new();
        let (to_check, checks) = bounded(CHECKS_MAX);
        threads.push(credential_checker::start(checks, addresses.clone())?);
        let (to_ask, questions) = bounded(CALLOUTS_MAX);
        threads.push(callouts::start(questions, addresses.clone(), keys)?);
        // A route waits for the answer to its notice, or ends: there are only a few of each.
        let (routes, notices) = unbounded();
        // A gateway waits in the same way.
        let (gateways, gateway_notices) = unbounded();
        // So does a dialled leaf connection.
        let (leaves, leaf_notices) = unbounded();
        let started = now();
        let seats = Arc::new(ShardSeats::new(cpus.len(), options.runtime.seating));
        let shared = SharedParts {
            addresses: addresses.clone(),
            seats: Arc::clone(&seats),
            options: Arc::clone(options),
            identity: identity.clone(),
            // Half of the memory, for the output of all connections.
            memory_bytes_max: host::memory_bytes(&Tree::default()) / 2 / cpus.len().max(1),
            remote_bytes: engine::RemoteInterestBytes::default(),
            started,
            checks: to_check,
            callouts: to_ask,
            routes,
            gateways,
            leaves,
            news: news.to.clone(),
        };
        for parts in parts {
            // A shard that has ended has reported the reason.
            let _ = parts.send(shared.clone());
        }
        Ok(Self {
            addresses,
            seats,
            threads,
            outcomes,
            notices,
            gateway_notices,
            leaf_notices,
            started,
            news,
            started_at,
            tier,
        })
    }

    /// Accepts connections on `listeners`: the first shard does so for all.
    pub fn open(&self, listeners: Vec<Listener>) {
        if let Some(first) = self.addresses.first() {
            first.send(Control::Open(listeners));
        }
    }

    /// Returns the io_uring tier in use.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// Returns the addresses of the shards, their notices about routes, and the zero of their
    /// times.
    pub(super) fn for_cluster(&self) -> (Vec<Address>, Receiver<RouteNotice>, Instant) {
        (self.addresses.clone(), self.notices.clone(), self.started)
    }

    /// Returns the addresses of the shards, their notices about gateways, and the zero of their
    /// times.
    pub(super) fn for_gateways(&self) -> (Vec<Address>, Receiver<GatewayNotice>, Instant) {
        (self.addresses.clone(), self.gateway_notices.clone(), self.started)
    }

    /// Returns what the thread that dials remotes of leaf nodes needs of the shards.
    pub(super) fn for_leaves(&self) -> LeafParts {
        LeafParts {
            addresses: self.addresses.clone(),
            notices: self.leaf_notices.clone(),
            started: self.started,
            seats: Arc::clone(&self.seats),
        }
    }

    /// Returns the outcomes of shards; disconnected when the last shard has ended.
    pub fn outcomes(&self) -> &Receiver<Outcome> {
        &self.outcomes
    }

    /// Puts options in force in all shards. Returns the number of connections that are closed
    /// because there are more than `max_connections`, or than an account may have: the oldest, as
    /// in nats-server.
    pub fn reload(&self, options: &Arc<Options>) -> usize {
        self.tell(|| Control::Reload(Arc::clone(options)));
        // The remaining connections are known once the shards have the options; no more than the
        // limit come after that.
        let conns = self.reporter().conns();
        let mut by_account: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for conn in &conns {
            by_account.entry(&conn.account).or_default().push(conn.cid);
        }
        let all = conns.iter().map(|conn| conn.cid).collect();
        let mut closed = self.shed(all, options.limits.connections_max, Excess::Clients);
        for (name, cids) in by_account {
            let max = options.accounts.get(name).and_then(|account| account.limits.connections_max);
            if let (Some(max), Some(number)) = (max, options.accounts.number(name)) {
                closed += self.shed(cids, max, Excess::OfAccount(AccountId::new(number)));
            }
        }
        closed
    }

    fn shed(&self, mut cids: Vec<u64>, max: usize, excess: Excess) -> usize {
        let count = cids.len().saturating_sub(max);
        if count > 0 {
            cids.sort_unstable();
            self.tell(|| Control::Shed { cids: 0..=cids[count - 1], excess });
        }
        count
    }

    /// Stops accepting connections, and disconnects those there are over the lame duck period.
    pub fn lame_duck(&self, options: &Options) {
        let grace = Duration::from_millis(options.lame_duck.grace_ms);
        let all = Duration::from_millis(options.lame_duck.duration_ms);
        let spread = all.saturating_sub(grace);
        self.tell(|| Control::LameDuck { grace, spread });
    }

    /// Returns the queue from the shards to the thread of the system account.
    pub fn news(&self) -> NewsQueue {
        self.news.clone()
    }

    /// Returns a reporter, which asks shards for their state.
    pub fn reporter(&self) -> Reporter {
        let (addresses, started_at) = (self.addresses.clone(), self.started_at);
        Reporter::new(addresses, started_at, self.tier)
    }

    fn tell(&self, control: impl Fn() -> Control) {
        self.addresses.iter().for_each(|address| address.send(control()));
    }
}

impl Drop for Shards {
    /// Ends the shards, after clients have taken their queued output, within bounds.
    fn drop(&mut self) {
        self.tell(|| Control::Stop);
        for thread in self.threads.drain(..) {
            // A panicked thread has reported it.
            let _ = thread.join();
        }
    }
}

/// Sets up a reactor. The kernel gives back the memory of rings a moment after their process has
/// ended, so a restart may have to wait for it.
#[expect(clippy::disallowed_methods, reason = "the shard does not serve yet")]
fn reactor(options: &uring::ReactorOptions) -> Result<Reactor, Unavailable> {
    for _ in 1..RING_ATTEMPTS {
        match Reactor::new(options) {
            Err(Unavailable::Memlock) => std::thread::sleep(Duration::from_millis(20)),
            outcome => return outcome,
        }
    }
    Reactor::new(options)
}

/// Runs a shard's thread from its beginning to its end.
fn grow(seed: NewShard) {
    let id = seed.id;
    if !host::pin(seed.cpu) {
        tracing::warn!("Shard {} could not be pinned to its core", id.0);
    }
    let reactor = match reactor(&seed.reactor) {
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
    let parts = ShardParts {
        id,
        outcome: outcome.clone(),
        addresses: shared.addresses,
        control: seed.control,
        mesh: seed.mesh,
        seats: shared.seats,
        options: shared.options,
        identity: shared.identity,
        memory_bytes_max: shared.memory_bytes_max,
        remote_bytes: shared.remote_bytes,
        started: shared.started,
        seed: fastrand::u64(..),
        checks: shared.checks,
        callouts: shared.callouts,
        routes: shared.routes,
        gateways: shared.gateways,
        leaves: shared.leaves,
        news: shared.news,
    };
    let run = move || Shard::new(parts, Uring(reactor), SystemClock).run();
    // Without one of its shards a server is of no use. Where a panic does not end the process, the
    // server ends, and what it is part of goes on.
    let failure = match panic::catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => return,
        Ok(Err(error)) => format!("shard {} has failed: {error}", id.0),
        Err(_) => format!("shard {} has panicked; please report it", id.0),
    };
    // The control thread may be about to end for another reason.
    let _ = outcome.send(Outcome::Failed(failure));
}

/// Waits until every shard has its reactor.
fn collect(reports: &Receiver<Ready>, count: usize) -> Result<(Vec<Waker>, Tier), StartError> {
    let mut wakers = Vec::new();
    let mut tier = Tier::TaskRun;
    for _ in 0..count {
        let Ok((id, report)) = reports.recv() else {
            return Err(StartError::new("a shard ended during its start"));
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
