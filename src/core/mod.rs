//! The core of a shard: what all protocols share, and no protocol.
//!
//! - connections: `conn`, `conns`, `close` (their ends), `timers` (deadlines), `liveness` (PINGs),
//!   `flushes`, `input` (input that waits), `brakes` (reasons not to read), `layers` (turns of TLS,
//!   WebSocket and S2)
//! - users and accounts: `login`, `settings`, `events`
//! - between shards: `shard_message`, `lanes` (barriers), `backpressure`, `lag`, `requests` (no
//!   responders), `answers` (services of other accounts)
//! - between servers: `announce` and `interest_sync` (interest for peers), `leaf_interest` (for
//!   leaf nodes), `remote_interest`
//! - messages: `message_trace`, `protocol_trace`
//! - observation: `snapshot`
//!
//! [`Core`] has the verbs that protocols use: `reply`, `confirm`, `fail`, `brake`, `release`,
//! `rearm`, `announce`.

#![forbid(unsafe_code)]

pub(crate) mod announce;
pub(crate) mod answers;
pub(crate) mod backpressure;
pub(crate) mod brakes;
pub(crate) mod close;
pub(crate) mod conn;
pub(crate) mod conns;
pub(crate) mod events;
pub(crate) mod flushes;
pub(crate) mod input;
pub(crate) mod interest_sync;
pub(crate) mod lanes;
pub(crate) mod layers;
pub(crate) mod leaf_interest;
pub(crate) mod leaf_settings;
pub(crate) mod liveness;
pub(crate) mod login;
pub(crate) mod message_trace;
pub(crate) mod outputs;
pub(crate) mod protocol_trace;
pub(crate) mod remote_interest;
pub(crate) mod requests;
pub(crate) mod settings;
pub(crate) mod shard_message;
pub(crate) mod snapshot;
pub(crate) mod timers;

use std::rc::Rc;

use ahash::RandomState;
use slab::Slab;

use crate::core::backpressure::Waits;
use crate::core::close::Endings;
use crate::core::conn::Conn;
use crate::core::conns::Conns;
use crate::core::input::Inputs;
use crate::core::lanes::Lanes;
use crate::core::message_trace::Tracer;
use crate::core::outputs::Outputs;
use crate::core::requests::Requests;
use crate::core::settings::Settings;
use crate::core::snapshot::Closed;
use crate::core::timers::Timers;
use crate::interest::accounts::Accounts;
use crate::interest::budget::Budget;
use crate::interest::cache::{Hand, Tally};
use crate::interest::ids::{AccountId, ConnId, SHARDS_MAX, ShardId};
use crate::interest::reach::PerKind;
use crate::interest::subscription::Sub;
use crate::interest::taps::Home;
use crate::interest::targets::Targets;
use crate::link::Links;
use crate::measure::{Departures, Traffic};
use crate::output::{Dropped, Outbox, Spares};
use crate::proto::encode;
use crate::run::{COPY_RUN_BYTES_MAX, Run};

/// Counters of one shard since its start.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Messages received from clients.
    pub in_msgs: u64,
    /// Payload bytes received from clients.
    pub in_bytes: u64,
    /// Messages delivered to clients.
    pub out_msgs: u64,
    /// Payload bytes delivered to clients.
    pub out_bytes: u64,
    /// Connections closed because their other end did not read fast enough.
    pub slow_consumers: PerKind,
    /// Connections closed because their other end did not answer PINGs.
    pub stale_connections: PerKind,
    /// Pauses of publishers because most receivers of a run were behind.
    pub stalls: u64,
    /// Queue messages for which no member was left when they arrived.
    pub queue_msgs_lost: u64,
    /// Runs from other shards that could not be read: a bug of this program.
    pub garbled_runs: u64,
    /// Messages and bytes from and to other servers, not part of the other figures.
    pub routed: Traffic,
    /// Messages dropped by overflow policies.
    pub dropped: Dropped,
    /// Records of streams that damage has cost, at most.
    pub lost_stream_records: u64,
    /// Times at which the disk was full or failed, so that streams could not be written.
    pub stream_write_failures: u64,
}

/// Cost of one turn.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct TurnCost {
    /// Work, in units of about a nanosecond.
    pub work: u64,
    /// Output that was added, in bytes.
    pub bytes: usize,
}

/// Deliveries to clients up to some moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Delivered {
    pub(crate) msgs: u64,
    pub(crate) bytes: u64,
}

impl Stats {
    /// Messages and bytes delivered to clients so far.
    pub(crate) fn delivered(&self) -> Delivered {
        Delivered { msgs: self.out_msgs, bytes: self.out_bytes }
    }
}

/// The state of a shard that all protocols share: connections, interest, output, lanes, time.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) shard: ShardId,
    pub(crate) settings: Rc<Settings>,
    pub(crate) times: Times,
    pub(crate) random: Random,
    pub(crate) budget: Budget,
    pub(crate) conns: Conns,
    pub(crate) subs: Slab<Sub>,
    pub(crate) accounts: Accounts,
    /// The bound of all caches of resolved subjects.
    pub(crate) hand: Hand,
    pub(crate) links: Links,
    pub(crate) input: Inputs,
    pub(crate) spares: Spares,
    pub(crate) timers: Timers,
    pub(crate) endings: Endings,
    pub(crate) lanes: Lanes,
    pub(crate) waits: Waits,
    pub(crate) requests: Requests,
    pub(crate) tracer: Tracer,
    pub(crate) monitor: Monitored,
    pub(crate) out: Outputs,
}

/// The time of the calls, in nanoseconds since the start of the process.
#[derive(Debug, Default)]
pub(crate) struct Times {
    pub(crate) now: u64,
    /// The arrival of the input being handled.
    pub(crate) arrived: u64,
}

/// Randomness that follows from the seed of the shard.
#[derive(Debug)]
pub(crate) struct Random {
    pub(crate) rng: fastrand::Rng,
    pub(crate) hasher: RandomState,
}

/// Figures and records that monitoring reads.
#[derive(Debug, Default)]
pub(crate) struct Monitored {
    pub(crate) stats: Stats,
    /// The cost of the last turn.
    pub(crate) turn_cost: TurnCost,
    /// Clients that the shard has not been told to close.
    pub(crate) open_conns: usize,
    pub(crate) closed: Closed,
    pub(crate) departures: Departures,
}

/// Bounds the output of a connection to which something other than messages was added: with more
/// pending than it may have it is cut once deliveries are settled.
pub(crate) fn bound_pending(core: &mut Core, id: ConnId) {
    let Some(conn) = core.conns.get_mut(id) else { return };
    let pending_bytes_max = conn.pending_bytes_max(&core.settings.limits);
    if !conn.takes.is_doomed() && conn.outbox.pending_bytes() > pending_bytes_max {
        conn.takes.doom();
        core.endings.doomed.push(id);
    }
}

impl Core {
    /// A shard of `shards` without connections. Equal seeds make equal choices.
    pub(crate) fn new(shard: ShardId, shards: usize, settings: Rc<Settings>, seed: u64) -> Self {
        assert!(shards <= SHARDS_MAX, "at most {SHARDS_MAX} shards");
        let mut rng = fastrand::Rng::with_seed(seed);
        let hasher = RandomState::with_seeds(rng.u64(..), rng.u64(..), rng.u64(..), rng.u64(..));
        let tally = Rc::new(Tally::new(settings.hash_seed));
        let hand = Hand::new(&tally, shards);
        let mut accounts =
            Accounts::new(rng.u64(..), tally, Home { node: settings.node.clone(), shard, shards });
        settings.configure(&mut accounts);
        Self {
            shard,
            settings,
            times: Times::default(),
            budget: Budget::default(),
            conns: Conns::default(),
            subs: Slab::new(),
            accounts,
            hand,
            links: Links::default(),
            input: Inputs::default(),
            spares: Spares::default(),
            timers: Timers::default(),
            endings: Endings::default(),
            lanes: Lanes::new(shards),
            waits: Waits::new(&hasher),
            requests: Requests::new(&hasher),
            tracer: Tracer::default(),
            monitor: Monitored::default(),
            out: Outputs::default(),
            random: Random { rng, hasher },
        }
    }

    pub(crate) fn place_conn(&mut self, conn: Box<Conn>) {
        let slot = conn.id.slot as usize;
        if self.conns.slots.len() <= slot {
            self.conns.slots.resize_with(slot + 1, || None);
        }
        assert!(self.conns.slots[slot].is_none(), "a slot is used again only after on_closed");
        self.conns.slots[slot] = Some(conn);
    }

    /// Appends to a connection's output.
    pub(crate) fn reply(&mut self, id: ConnId, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.is_closed() || conn.takes.is_doomed() {
            return;
        }
        if self.settings.tracing.is_some() {
            let mut line = Vec::new();
            write(&mut line);
            // nats-server leaves the quotes of an error out.
            let text = match conn.transport.is_mqtt() {
                true => line.escape_ascii().to_string(),
                false => String::from_utf8_lossy(&line).trim_end().replace('\'', ""),
            };
            tracing::trace!("{} - ->> [{text}]", conn.label());
            conn.outbox.push(&mut self.spares, |out| out.extend_from_slice(&line));
        } else {
            conn.outbox.push(&mut self.spares, write);
        }
        bound_pending(self, id);
        self.flush_soon(id);
    }

    /// Notes output that was appended for a connection.
    pub(crate) fn flush_soon(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.mark_dirty(self.times.arrived, &mut self.out.flushes, true);
    }

    /// Appends a reply that promises that all the connection sent is in force on every shard: it is
    /// held back until then.
    pub(crate) fn confirm(&mut self, id: ConnId, write: impl FnOnce(&mut Vec<u8>)) {
        self.hold_back(id, Outbox::hold);
        self.reply(id, write);
    }

    /// Appends a PONG: it promises as much as [`Self::confirm`], and comes behind the statuses of
    /// all requests.
    pub(crate) fn confirm_ping(&mut self, id: ConnId) {
        self.hold_back(id, Outbox::hold_behind_statuses);
        self.reply(id, encode::pong);
    }

    fn hold_back(&mut self, id: ConnId, hold: impl FnOnce(&mut Outbox, u64)) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.staged_epoch > self.lanes.settled_epoch {
            if !conn.outbox.is_held() {
                self.lanes.held.push(id);
            }
            hold(&mut conn.outbox, conn.staged_epoch);
        }
    }

    pub(crate) fn others(&self) -> impl Iterator<Item = ShardId> + use<> {
        let (own, shards) = (self.shard, u8::try_from(self.lanes.to.len()).unwrap_or(u8::MAX));
        (0..shards).map(ShardId).filter(move |shard| *shard != own)
    }

    /// Counts the work of delivering the run.
    pub(crate) fn charge(&mut self, run: &Run<'_>, targets: &Targets) {
        let is_copied = run.wire_bytes < COPY_RUN_BYTES_MAX;
        self.budget.spend(targets.price.of(run.len(), run.wire_bytes, is_copied));
    }

    /// Returns the receivers of a subject.
    #[inline]
    pub(crate) fn targets(&mut self, account: AccountId, subject: &[u8]) -> Rc<Targets> {
        let hash = self.accounts.at(account).interest.cache().hash(subject);
        self.targets_of(account, subject, hash)
    }

    /// Returns the receivers of a subject with this hash.
    #[inline]
    pub(crate) fn targets_of(
        &mut self,
        account: AccountId,
        subject: &[u8],
        hash: u64,
    ) -> Rc<Targets> {
        let conns = &self.conns;
        let interest = &mut self.accounts.at(account).interest;
        let (targets, work) = interest.targets_of(subject, hash, &self.subs, |slot| {
            conns.at(slot).is_some_and(|conn| conn.connect.headers)
        });
        if work > 0 {
            self.budget.spend(work);
        }
        self.hand.bound(&mut self.accounts);
        targets
    }
}
