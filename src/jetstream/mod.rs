//! JetStream on a shard: streams and consumers, between their subjects and their store.
//!
//! - `meta`: the catalogue of all streams, and the requests that need it, on the first shard
//! - `streams`: the streams that this shard owns; `consumers`: their consumers; `copies`:
//!   their mirrors and sources, and `follow`: those with origins in other accounts and domains
//! - `call`: requests of the API by their subjects; `order`: messages between the two
//! - `snapshots`, `restores`: streams that leave as archives, or come
//! - `logs`: the logs of this shard, found again and written to
//! - `held`: messages that wait for a commit
//! - `advisory`: events; `audit`: requests as events; `figures`: what monitoring shows
//!
//! **Ways.** Interest is the dispatcher. A stream's owner has taps for the stream's subjects, its
//! direct gets, its consumers' acknowledgements and pulls; so a publish comes to the owner as to
//! any subscriber. All other requests come to the first shard, the *meta shard*, which knows all
//! streams. It decides what needs the catalogue, and hands the rest on to the owner, in order.
//!
//! **Turns.** Runs for taps wait until the end of the turn (`run::tapped`), for what they cause
//! cannot happen in the middle of a delivery. [`JetStream::turn`] handles them, then begins a
//! commit of all that was staged. What says that something is stored is held until the commit's
//! end.
//!
//! **Start.** The shard reads its logs first. Connections are taken when the meta shard knows the
//! streams of all shards.

#![forbid(unsafe_code)]

mod advisory;
mod audit;
mod call;
mod catalogue;
mod consumers;
mod copies;
mod figures;
mod follow;
mod logs;
mod meta;
mod order;
mod restores;
mod snapshots;
mod streams;

use std::any::Any;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use ahash::RandomState;
use bytes::Bytes;
use smallvec::SmallVec;

use crate::core::announce::{self, announce_own};
use crate::core::shard_message::Record;
use crate::core::{Core, backpressure};
use crate::disk::DiskDone;
use crate::interest::ids::{AccountId, Publisher, ShardId};
use crate::interest::reach::Via;
use crate::interest::taps::TapId;
use crate::interest::{Change, Wanted};
use crate::run::tapped::{TapQueue, TapRun};
use crate::store::{LogSizes, StreamId};
use advisory::wall;
use audit::publish_audit;
use call::ConsumerCall;
use follow::CopyAt;
use logs::Logs;
use meta::{Meta, on_restored};
use order::{Order, ReplyTo};
use restores::{on_restore, on_restore_chunk};
use snapshots::{Archives, advance_archives, on_snapshot_ack, tick_archives};
use streams::OwnedStreams;

pub(crate) use logs::LogDirectories;

/// The shard with the catalogue.
const META: ShardId = ShardId(0);
/// Rounds of runs for taps in one turn: a message of a stream may go into another stream.
const ROUNDS_MAX: usize = 4;

/// The purpose of a tap.
#[derive(Debug, Clone, PartialEq, Eq)]
enum TapUse {
    /// Requests to the API.
    Api,
    /// Requests to the API in an account that has no JetStream.
    NoApi,
    /// Messages for a stream.
    Publish(StreamId),
    /// Direct gets of a stream.
    Direct(StreamId),
    /// Pulls of a consumer.
    Next(StreamId, Box<str>),
    /// Requests that a consumer goes back.
    Reset(StreamId, Box<str>),
    /// Acknowledgements for a consumer.
    Ack(StreamId),
    /// Answers to flow control of a consumer.
    Flow(StreamId),
    /// Acknowledgements of the chunks of an archive that leaves.
    SnapshotAck(StreamId),
    /// Chunks of an archive that comes.
    RestoreChunk(StreamId),
    /// Answers to a copy's request for a consumer of its origin.
    OriginAnswer(CopyAt),
    /// Deliveries of that consumer.
    OriginMessage(CopyAt),
}

/// JetStream on a shard, if it is on.
#[derive(Debug, Default)]
pub(crate) struct JetStream(Option<Box<ActiveJetStream>>);

/// JetStream as it runs.
#[derive(Debug)]
struct ActiveJetStream {
    logs: Logs,
    streams: OwnedStreams,
    archives: Archives,
    /// The catalogue, on the meta shard.
    meta: Option<Meta>,
    taps: HashMap<TapId, TapUse, RandomState>,
    last_tap: u32,
    /// Runs for logs that take nothing before their next commits, by their places in their queues.
    /// Their publishers are paused, so each has no more here than it sent in one turn.
    waiting: VecDeque<(TapQueue, Vec<usize>)>,
    paused: HashSet<Publisher, RandomState>,
    /// The stream that has stored messages of the last runs and has not been settled since, and the
    /// commit of the last one.
    unsettled: Option<(StreamId, u64)>,
    /// Streams by account, and by the subjects whose interest their consumers hear of.
    listens: BTreeMap<AccountId, BTreeMap<Bytes, Vec<StreamId>>>,
}

impl JetStream {
    /// Begins to find the logs again, if JetStream is on.
    pub(crate) fn start(core: &mut Core, directories: LogDirectories, sizes: LogSizes) -> Self {
        if core.settings.streams.is_none() {
            return Self::default();
        }
        let shards = core.lanes.to.len();
        let mut running = Box::new(ActiveJetStream {
            logs: Logs::new(directories, sizes, &mut core.random.rng),
            streams: OwnedStreams::default(),
            archives: Archives::default(),
            meta: (core.shard == META).then(|| Meta::new(shards)),
            taps: HashMap::with_hasher(core.random.hasher.clone()),
            last_tap: 0,
            waiting: VecDeque::new(),
            paused: HashSet::with_hasher(core.random.hasher.clone()),
            unsettled: None,
            listens: BTreeMap::new(),
        });
        running.tap_api(core);
        running.logs.pump(core);
        running.on_recovered(core);
        Self(Some(running))
    }

    /// Whether clients may come: all streams are known.
    pub(crate) fn is_ready(&self) -> bool {
        self.0.as_ref().is_none_or(|running| running.is_ready())
    }

    /// Whether nothing waits for the disk.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.0.as_ref().is_none_or(|running| running.logs.is_at_rest())
    }

    /// Handles the runs of the turn, and begins a commit of what they have changed.
    pub(crate) fn turn(&mut self, core: &mut Core) {
        let Some(running) = &mut self.0 else { return };
        running.advance_waiting(core);
        for _ in 0..ROUNDS_MAX {
            if core.input.tapped.is_empty() {
                break;
            }
            let queue = core.input.tapped.take();
            let all = (0..queue.runs().len()).collect();
            let mut full = running.full_logs();
            running.on_runs(core, queue, all, &mut full);
        }
        consumers::poll_consumers(running, core);
        consumers::begin_checkpoints(running, core);
        advance_archives(running, core);
        running.flush(core);
    }

    /// Takes the end of a disk operation.
    pub(crate) fn on_disk(&mut self, core: &mut Core, done: DiskDone) {
        let Some(running) = &mut self.0 else { return };
        running.logs.on_disk(core, done);
        running.on_commits(core);
        running.on_recovered(core);
    }

    /// Takes a message of JetStream on another shard.
    pub(crate) fn on_record(&mut self, core: &mut Core, from: ShardId, record: Box<dyn Any>) {
        let Some(running) = &mut self.0 else { return };
        if let Ok(order) = record.downcast::<Order>() {
            running.on_order(core, from, *order);
        }
    }

    /// Does what is due.
    pub(crate) fn tick(&mut self, core: &mut Core) {
        let Some(running) = &mut self.0 else { return };
        running.tick_streams(core);
        tick_archives(running, core);
        running.logs.tick(core);
    }

    /// Returns the time at which [`Self::tick`] is needed next, in nanoseconds since the start of
    /// the process.
    pub(crate) fn next_deadline(&self, core: &Core) -> Option<u64> {
        let running = self.0.as_ref()?;
        let archives = running.archives.next_deadline();
        [running.streams.next_deadline(), running.logs.next_deadline(), archives]
            .into_iter()
            .flatten()
            .map(|due| due.max(core.times.now))
            .min()
    }

    /// Whether there is work for the next turn.
    pub(crate) fn has_more(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|running| running.streams.has_awake() || running.archives.has_awake())
    }

    /// Ends what waits, as the server ends.
    pub(crate) fn shut_down(&mut self, core: &mut Core) {
        if let Some(running) = &mut self.0 {
            consumers::shut_down_consumers(running, core);
            running.flush(core);
        }
    }

    /// Takes over accounts that have changed.
    pub(crate) fn reload(&mut self, core: &mut Core) {
        if let Some(running) = &mut self.0 {
            running.tap_api(core);
            running.bring_back(core);
        }
    }
}

impl ActiveJetStream {
    fn is_ready(&self) -> bool {
        self.meta.as_ref().is_none_or(Meta::is_complete)
    }

    /// Handles runs that have waited for room in their logs, as far as there is room now.
    fn advance_waiting(&mut self, core: &mut Core) {
        if self.waiting.is_empty() {
            return;
        }
        let mut full = SmallVec::new();
        for (queue, left) in std::mem::take(&mut self.waiting) {
            self.on_runs(core, queue, left, &mut full);
        }
        if self.waiting.is_empty() {
            for publisher in std::mem::take(&mut self.paused) {
                backpressure::resume_for_log(core, publisher);
            }
        }
    }

    /// Returns the logs for which runs wait: what comes now is behind them.
    fn full_logs(&self) -> SmallVec<[usize; 2]> {
        let mut full = SmallVec::new();
        for (queue, left) in &self.waiting {
            for log in left.iter().filter_map(|at| self.log_of(queue.runs().get(*at)?)) {
                if !full.contains(&log) {
                    full.push(log);
                }
            }
        }
        full
    }

    /// Handles those runs of a queue, but for messages to logs that take nothing before their next
    /// commits, which are entered in `full`. These wait, in order, and so do their publishers.
    /// Other runs do not wait for them.
    fn on_runs(
        &mut self,
        core: &mut Core,
        queue: TapQueue,
        runs: Vec<usize>,
        full: &mut SmallVec<[usize; 2]>,
    ) {
        let mut left = Vec::new();
        for at in runs {
            let Some(run) = queue.runs().get(at).copied() else { continue };
            let log = self.log_of(&run).filter(|log| full.contains(log) || self.logs.is_full(*log));
            let Some(log) = log else {
                self.on_run(core, &queue, &run);
                continue;
            };
            if !full.contains(&log) {
                full.push(log);
            }
            left.push(at);
            if self.paused.insert(run.publisher) {
                backpressure::pause_for_log(core, run.publisher);
            }
        }
        streams::settle_stored(self, core);
        if left.is_empty() {
            core.input.tapped.reuse(queue);
        } else {
            self.waiting.push_back((queue, left));
        }
    }

    /// Returns the log of the stream that a run's messages are for, if they are to be stored.
    fn log_of(&self, run: &TapRun) -> Option<usize> {
        let stream = match self.taps.get(&run.tap)? {
            TapUse::Publish(stream) => stream,
            TapUse::OriginMessage(at) => &at.stream,
            _ => return None,
        };
        self.streams.all.get(stream).map(|stream| stream.log)
    }

    fn on_run(&mut self, core: &mut Core, queue: &TapQueue, run: &TapRun) {
        // The tap may have been removed by a run before.
        let Some(purpose) = self.taps.get(&run.tap).cloned() else { return };
        if !matches!(purpose, TapUse::Publish(_)) {
            streams::settle_stored(self, core);
        }
        match purpose {
            TapUse::Api | TapUse::NoApi => {
                for message in queue.messages(run) {
                    self.on_request(core, run, &message, purpose == TapUse::Api);
                }
            }
            TapUse::Publish(stream) => self.on_publishes(core, stream, queue.messages(run)),
            TapUse::Direct(stream) => {
                queue.messages(run).for_each(|message| self.on_direct(core, stream, &message));
            }
            TapUse::Next(stream, consumer) => {
                let consumer = consumer.as_ref();
                queue
                    .messages(run)
                    .for_each(|it| consumers::on_pull(self, core, stream, consumer, &it));
            }
            TapUse::Reset(stream, consumer) => {
                let call = ConsumerCall::Reset(&consumer);
                for it in queue.messages(run) {
                    let reply = ReplyTo::of(core, run, &it);
                    consumers::on_consumers_call(self, core, stream, reply, call, it.body);
                }
            }
            TapUse::Ack(stream) => {
                queue.messages(run).for_each(|it| consumers::on_ack(self, core, stream, &it));
            }
            TapUse::SnapshotAck(stream) => {
                for _ in queue.messages(run) {
                    on_snapshot_ack(self, stream);
                }
            }
            TapUse::RestoreChunk(stream) => {
                queue.messages(run).for_each(|it| on_restore_chunk(self, core, stream, run, &it));
            }
            TapUse::Flow(stream) => {
                queue.messages(run).for_each(|it| consumers::on_flow(self, core, stream, &it));
            }
            TapUse::OriginAnswer(at) => {
                queue.messages(run).for_each(|it| follow::on_origin_answer(self, core, at, &it));
            }
            TapUse::OriginMessage(at) => {
                follow::on_origin_messages(self, core, at, queue.messages(run));
            }
        }
    }

    /// Adds a tap for a filter in an account.
    fn add_tap(
        &mut self,
        core: &mut Core,
        account: AccountId,
        filter: &[u8],
        purpose: TapUse,
    ) -> TapId {
        self.last_tap += 1;
        let tap = TapId(self.last_tap);
        self.taps.insert(tap, purpose);
        let change = core.accounts.at(account).interest.add_tap(filter, tap);
        tell(core, account, filter, change);
        tap
    }

    fn remove_tap(&mut self, core: &mut Core, account: AccountId, filter: &[u8], tap: TapId) {
        self.taps.remove(&tap);
        let change = core.accounts.at(account).interest.remove_tap(filter, tap);
        tell(core, account, filter, change);
    }

    /// Sends an order to JetStream on a shard, which may be this one.
    fn send(&mut self, core: &mut Core, to: ShardId, order: Order) {
        if to == core.shard {
            self.on_order(core, to, order);
        } else {
            core.push_record(to, Record::Inside(Box::new(order)));
        }
    }

    fn on_order(&mut self, core: &mut Core, from: ShardId, order: Order) {
        match order {
            Order::Found(found) => self.on_found(core, from, found),
            Order::Create(create) => self.on_create(core, *create),
            Order::Restore(create) => on_restore(self, core, *create),
            Order::Update(update) => self.on_update(core, *update),
            Order::Call(call) => self.on_call(core, *call),
            Order::Describe { listing, streams } => self.on_describe(core, from, listing, &streams),
            Order::Described { listing, infos } => self.on_described(core, listing, infos),
            Order::FindOrigin(call) => self.find_origin(core, *call),
            Order::Ask(call) => self.on_ask(core, *call),
            Order::Page(reply) => self.on_page(core, *reply),
            Order::Audit(event) => publish_audit(core, &event),
            Order::Restored(stream) => on_restored(self, stream),
            Order::Gone(stream) => self.on_gone(stream),
            Order::Kept(stream, config) => self.on_kept(stream, *config),
        }
    }

    /// Begins commits, and hands on what is ready.
    fn flush(&mut self, core: &mut Core) {
        self.logs.end_turn(core);
        self.on_commits(core);
        // Consumers may have something to be kept, now that they have seen messages.
        self.logs.end_turn(core);
    }

    /// Publishes what commits have set free, and lets consumers go on.
    fn on_commits(&mut self, core: &mut Core) {
        if self.logs.take_commits(core) {
            self.archives.wake_all();
            for stream in self.streams.take_stored(&self.logs) {
                consumers::on_stored(self, stream);
            }
            consumers::poll_consumers(self, core);
            self.feed_copies(core);
            self.logs.pump(core);
        }
        if self.logs.take_loaded() {
            self.archives.wake_all();
            self.on_loaded(core);
            consumers::poll_consumers(self, core);
            self.logs.pump(core);
        }
        if self.streams.has_announced() {
            self.release_announced(core);
        }
    }
}

/// Informs other shards and servers of a change of interest.
fn tell(core: &mut Core, account: AccountId, filter: &[u8], change: Change) {
    let wanted = Wanted { filter, queue: None };
    if let Some(members) = change.announce {
        announce_own(core, account, Via::CLIENTS, wanted, members);
    }
    announce::tell_servers(core, account, wanted, change);
}
