//! Publishers and subscribers, as fast as the server goes or at a fixed rate, and what they saw.
//!
//! The caller's thread coordinates: it moves all others from phase to phase, and samples the
//! counters and the server's CPU at both ends of the measured window. Publishers share one or
//! more threads, subscribers one or more others, each thread with its own tokio-uring runtime.

mod stalled;
mod subscriber;
mod window;

use crate::ceiling;
use crate::cli::Subject;
use crate::client::{Conn, Inbox, Target, with_ring};
use crate::clock::{Clock, Ticker, duration_ns};
use crate::fault::{Fault, Outcome};
use crate::link::await_crossing;
use crate::monitor::{Counters, Rates};
use crate::probe::raise_file_limit;
use crate::report::Progress;
use crate::server::{Setup, Usage};
use crate::wire::{self, Dialect, Renderer, Stamp, push_sub};
use hdrhistogram::Histogram;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use window::{UnderWay, Window};

/// What a publisher of an open loop, and who subscribes for the churn, writes at once, in bytes.
const BATCH_BYTES: usize = 64 * 1024;
/// How often the first publisher that waits for room in the window looks again.
const WINDOW_POLL_NS: u64 = 200_000;
/// How often a thread looks whether the run is over, and measures its own lag.
const HEARTBEAT_NS: u64 = 5_000_000;
/// Without a delivery for so long, those that are missing are given up.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);
const SETUP_PATIENCE: Duration = Duration::from_secs(60);

/// Subjects and filters of which the first subject matches one, the second two, and so on. A group
/// of them has a token of its own in front.
const OVERLAPS: [(&str, &str); 5] =
    [("a", ">"), ("a.c", "*.*"), ("a.d", "*.d"), ("b.c", "b.*"), ("b.d", "b.>")];
/// How often SUB and UNSUB are written, at most.
const CHURN_NS: u64 = 1_000_000;

/// Where the order of subjects begins. It is the same in every run.
const SUBJECTS_SEED: u64 = 0x9e37_79b9_7f4a_7c15;
/// Where the order of opening publishers with subjects of their own begins. With it as many of 10
/// pairs have their two ends on different threads of a server as would on average.
const OPENING_SEED: u64 = 0x8bc9_953a_2b9f_adc3;
/// Files that a run may have open besides its connections' own.
const FILES_BESIDES: usize = 128;

/// Who publishes what to whom.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct Workload {
    /// Publishing connections.
    pub(crate) pubs: usize,
    /// Subscribing connections.
    pub(crate) subs: usize,
    /// Distinct subjects.
    pub(crate) subjects: usize,
    /// Connections that subscribe to each subject.
    pub(crate) fanout: usize,
    /// Whether each connection has one subscription, to `prefix.*`, in place of many.
    pub(crate) wildcard: bool,
    /// Whether subscriptions are wildcards that overlap, so that the subjects have 1 to 5 of them.
    pub(crate) overlapping: bool,
    /// Queue groups that the connections are dealt to; 0: none.
    pub(crate) queue_groups: usize,
    /// Whether no two subscriptions of all connections have the same sid.
    pub(crate) own_sids: bool,
    /// Whether each publisher has subjects of its own, in place of all.
    pub(crate) own_subjects: bool,
    /// Whether an idle connection is opened before each subscribing one.
    pub(crate) idle_between: bool,
    /// Pairs of SUB and UNSUB per second on one more connection; 0: none.
    pub(crate) churn_rate: f64,
    /// Connections that subscribe as the first so many do, and then read nothing.
    pub(crate) stalled: usize,
    /// The first token of all subjects.
    pub(crate) prefix: String,
    /// Payload of each message, in bytes.
    pub(crate) payload_bytes: usize,
    /// Header block of each message, in bytes; 0: no headers.
    pub(crate) header_bytes: usize,
    /// Reply subject of each message, in bytes; 0: none.
    pub(crate) reply_bytes: usize,
    /// Whether subscribers check each publisher's order.
    pub(crate) verify: bool,
    /// What is spoken.
    pub(crate) dialect: Dialect,
}

impl Workload {
    /// Deliveries that one message causes, on average over all subjects.
    pub(crate) fn deliveries(&self) -> u64 {
        if self.overlapping {
            return OVERLAPS.len().div_ceil(2) as u64;
        }
        let plain = if self.wildcard { self.subs } else { self.fanout };
        let copies = if self.queue_groups > 0 { self.queue_groups.min(plain) } else { plain };
        copies as u64
    }

    /// Deliveries that a message to subject `number` causes.
    fn copies(&self, number: usize) -> u64 {
        if self.overlapping { 1 + (number % OVERLAPS.len()) as u64 } else { self.deliveries() }
    }

    /// Whether every connection gets every message.
    fn is_broadcast(&self) -> bool {
        self.queue_groups == 0 && !self.overlapping && self.deliveries() == self.subs as u64
    }

    fn subject(&self, number: usize) -> String {
        if !self.overlapping {
            return format!("{}.{number}", self.prefix);
        }
        let (group, place) = (number / OVERLAPS.len(), number % OVERLAPS.len());
        format!("{}.{group}.{}", self.prefix, OVERLAPS[place].0)
    }

    /// A subject of which subscribing connection `conn` hears, if there is one.
    fn heard_by(&self, conn: usize) -> Option<String> {
        if self.wildcard {
            Some(self.subject(0))
        } else if self.overlapping {
            (conn < self.subjects).then(|| self.subject(conn))
        } else {
            self.filters(conn).into_iter().next()
        }
    }

    /// Filters of subscribing connection `conn`. With queue groups, `fanout` is all connections.
    fn filters(&self, conn: usize) -> Vec<String> {
        if self.wildcard {
            return vec![format!("{}.*", self.prefix)];
        }
        if self.overlapping {
            let filter = |number: usize| {
                let (group, place) = (number / OVERLAPS.len(), number % OVERLAPS.len());
                format!("{}.{group}.{}", self.prefix, OVERLAPS[place].1)
            };
            return (conn..self.subjects).step_by(self.subs).map(filter).collect();
        }
        let mine = |subject: &usize| {
            let first = subject * self.fanout % self.subs;
            (conn + self.subs - first) % self.subs < self.fanout
        };
        (0..self.subjects).filter(mine).map(|subject| self.subject(subject)).collect()
    }

    /// The sid of filter `at` of subscribing connection `conn`.
    fn sid(&self, conn: usize, at: usize) -> usize {
        1 + if self.own_sids { conn + at * self.subs } else { at }
    }

    fn queue(&self, conn: usize) -> Option<String> {
        (self.queue_groups > 0).then(|| format!("q{}", conn % self.queue_groups))
    }

    /// The numbers of the subjects that `publisher` publishes to, in turn: in an order that is
    /// random, and the same in every run.
    fn subjects_of(&self, publisher: usize) -> Vec<usize> {
        let mut subjects = shuffled(self.subjects, SUBJECTS_SEED);
        if self.own_subjects {
            subjects.retain(|subject| subject % self.pubs == publisher);
        }
        subjects
    }

    /// The publishers in the order in which they are opened. A server that deals connections to
    /// its threads in turn would have each one beside the subscriber of the same number, or never:
    /// who has a subject of its own comes out of turn.
    fn opening_order(&self) -> Vec<usize> {
        if self.own_subjects { shuffled(self.pubs, OPENING_SEED) } else { (0..self.pubs).collect() }
    }

    /// The messages of `publisher`.
    fn renderer(&self, publisher: usize) -> Renderer {
        let (addresses, payload_bytes) = (self.addresses_of(publisher), self.payload_bytes);
        Renderer::of(self.dialect, &addresses, payload_bytes, self.header_bytes)
    }

    /// Files that its connections take, at most.
    fn files(&self) -> usize {
        let subscribing = if self.idle_between { 4 } else { 2 }; // Each has a second descriptor.
        let publishing = 3; // Each has a timer, which has two.
        self.subs * subscribing + self.pubs * publishing + self.stalled + FILES_BESIDES
    }

    /// What stands between PUB and the sizes, for each of [`Workload::subjects_of`].
    fn addresses_of(&self, publisher: usize) -> Vec<String> {
        let reply = wire::reply(self.reply_bytes);
        let subjects = self.subjects_of(publisher).into_iter();
        subjects.map(|number| format!("{}{reply}", self.subject(number))).collect()
    }

    /// What publishers may be ahead of the slowest subscriber, in bytes, if nobody says.
    pub(crate) fn usual_window_bytes(&self) -> u64 {
        window::usual_bytes(self.deliveries())
    }

    /// Says which option to change when the options do not go together.
    pub(crate) fn check(&self, pace: Pace) -> Outcome<()> {
        let timed = matches!(pace, Pace::Open { .. });
        let poured = matches!(pace, Pace::Poured { .. });
        let refuse = |cause: &str, remedy: &str| Err(Fault::new(cause, remedy));
        let stamp = if self.verify { Stamp::BYTES } else { Stamp::TIME_BYTES };
        if (self.verify || timed) && self.payload_bytes < stamp {
            return Err(Fault::new(
                format!("a payload of {} bytes holds no stamp", self.payload_bytes),
                format!("give --payload {stamp} or more"),
            ));
        }
        if self.own_subjects && self.subjects < self.pubs {
            return refuse("some publishers have no subject", "give --subjects at least --pubs");
        }
        if self.overlapping {
            let others = self.wildcard || self.queue_groups > 0 || self.own_subjects;
            if others || self.subs < OVERLAPS.len() || !self.subjects.is_multiple_of(OVERLAPS.len())
            {
                return refuse(
                    "the wildcards cannot overlap so",
                    "give --subs 5 or more and a multiple of 5 as --subjects, without --wildcard, \
                     --queue-groups and --own-subjects",
                );
            }
        }
        let only_nats = self.queue_groups > 0 || self.header_bytes > 0 || self.reply_bytes > 0;
        let nats_besides = self.churn_rate > 0.0 || self.stalled > 0 || poured;
        if self.dialect != Dialect::Nats && (only_nats || nats_besides) {
            return refuse(
                "MQTT has no such thing",
                "leave queue groups, headers, replies, --churn and --stalled out",
            );
        }
        if !self.churn_rate.is_finite() || self.churn_rate < 0.0 {
            return refuse("the churn is no rate", "give --churn 0 or more");
        }
        if poured && (self.subjects > 1 || self.subs == 0 || !self.is_broadcast() || self.verify) {
            return refuse(
                "the ceiling is one of fan-out: one subject to all subscribers",
                "leave --subjects, --fanout, --queue-groups and --verify out",
            );
        }
        if self.stalled > 0 && (poured || self.subs == 0 || self.queue_groups > 0) {
            return refuse(
                "what stalls would have to be taken from what counts",
                "leave --stalled out, or give --subs and no --queue-groups",
            );
        }
        if self.pubs == 0 || self.subjects == 0 {
            return refuse("there is nothing to publish", "give --pubs and --subjects at least 1");
        }
        if timed && self.subs == 0 {
            return refuse("nobody receives, so nothing can be timed", "give --subs 1 or more");
        }
        if self.subs > 0 && !(1..=self.subs).contains(&self.fanout) {
            return refuse("the fan-out is not possible", "give --fanout from 1 to --subs");
        }
        if self.queue_groups > 0 && !self.wildcard && self.fanout != self.subs {
            return refuse("queue groups need every subscriber", "leave --fanout out");
        }
        Ok(())
    }
}

/// The numbers below `count` in a random order, the same for the same seed.
fn shuffled(count: usize, seed: u64) -> Vec<usize> {
    let mut numbers: Vec<usize> = (0..count).collect();
    let mut state = seed;
    for at in (1..count).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let other = usize::try_from(state % (at as u64 + 1)).unwrap_or(0);
        numbers.swap(at, other);
    }
    numbers
}

/// How fast to publish.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(crate) enum Pace {
    /// As fast as the server delivers, at most so many bytes ahead of the slowest subscriber.
    Closed {
        /// Bytes published and not yet delivered everywhere.
        window_bytes: u64,
    },
    /// So many messages a second in all, whatever the server does.
    Open {
        /// Messages a second of all publishers together.
        rate: f64,
    },
    /// As `Closed`, but messages are only granted: the other side pours prepared deliveries.
    Poured {
        /// Bytes granted and not yet delivered everywhere.
        window_bytes: u64,
        /// What is sent to a subscriber at once, at most.
        batch_bytes: u64,
    },
}

/// How to run a workload.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct Plan {
    /// Who publishes what to whom.
    pub(crate) workload: Workload,
    /// How fast.
    pub(crate) pace: Pace,
    /// Time before the measured window.
    pub(crate) warmup: Duration,
    /// Length of the measured window.
    pub(crate) duration: Duration,
    /// Threads for the publishing connections.
    pub(crate) pub_threads: usize,
    /// Threads for the subscribing connections.
    pub(crate) sub_threads: usize,
    /// What a publisher of a closed loop writes at once, in bytes, at most; a message at least.
    pub(crate) write_bytes: usize,
    /// Read buffer of each subscribing connection, in bytes; 0: chosen by their number.
    pub(crate) read_buffer_bytes: usize,
    /// What a server that is started for it is like.
    #[serde(skip)]
    pub(crate) setup: Setup,
}

/// What a run showed. Counts and times are of the measured window, if nothing else is said.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// The length of the window, in seconds.
    pub(crate) window_s: f64,
    /// Messages published.
    pub(crate) published: u64,
    /// Messages delivered.
    pub(crate) delivered: u64,
    /// Pairs of SUB and UNSUB that the server took.
    pub(crate) churned: u64,
    /// What the server used, when its process is known.
    pub(crate) server: Option<Usage>,
    /// What the server counted, when its monitoring is known.
    pub(crate) counted: Option<Rates>,
    /// What this program used.
    pub(crate) generator: Usage,
    /// Deliveries that never came, of the whole run.
    pub(crate) missing: u64,
    /// Deliveries too many, of the whole run.
    pub(crate) surplus: u64,
    /// Deliveries out of a publisher's order, of the whole run; only with `verify`.
    pub(crate) disordered: u64,
    /// Nanoseconds from the intended send time to the arrival, of messages meant for the window.
    pub(crate) latency: Histogram<u64>,
    /// Nanoseconds by which publishers sent late for reasons of their own (open loop only).
    pub(crate) send_lag: Histogram<u64>,
    /// Nanoseconds by which the subscribers' threads woke late, probed every few milliseconds.
    pub(crate) receive_lag: Histogram<u64>,
    /// Whether the user ended the run early.
    pub(crate) interrupted: bool,
}

/// A histogram that holds nanoseconds up to an hour with three digits.
pub(crate) fn histogram() -> Histogram<u64> {
    const HOUR_NS: u64 = 3_600_000_000_000;
    // The bounds are constants that the library accepts.
    Histogram::new_with_bounds(1, HOUR_NS, 3).expect("valid bounds")
}

/// Counters of one connection, on a cache line of their own.
#[derive(Default)]
#[repr(align(128))]
struct Counter(AtomicU64);

const PREPARE: u8 = 0;
const SEND: u8 = 1;
const DRAIN: u8 = 2;
const STOP: u8 = 3;

/// Where a run stands, and its counters.
struct Stage {
    clock: Clock,
    phase: AtomicU8,
    /// Closed once there is something to send, or never will be: a thousand publishers that look
    /// again and again keep each other from opening.
    begun: tokio::sync::Semaphore,
    ready: AtomicUsize,
    publishers_done: AtomicUsize,
    /// Of a closed loop. Who waits for room holds it, and all others wait in line.
    under_way: tokio::sync::Mutex<UnderWay>,
    sent: Vec<Counter>,
    delivered: Vec<Counter>,
    churned: Counter,
    /// Deliveries that the first so many messages of a publisher cause, for one round of all
    /// subjects; nothing when all subjects have as many.
    copies_before: Vec<u64>,
    /// When the schedule of an open loop begins, and its window, on the run's clock.
    start_ns: AtomicU64,
    window_ns: [AtomicU64; 2],
    fault: Mutex<Option<Fault>>,
}

impl Stage {
    fn new(workload: &Workload) -> Self {
        let counters = |n: usize| std::iter::repeat_with(Counter::default).take(n).collect();
        Self {
            clock: Clock::start(),
            phase: AtomicU8::new(PREPARE),
            begun: tokio::sync::Semaphore::new(0),
            ready: AtomicUsize::new(0),
            publishers_done: AtomicUsize::new(0),
            under_way: tokio::sync::Mutex::default(),
            sent: counters(workload.pubs),
            delivered: counters(workload.subs),
            churned: Counter::default(),
            copies_before: if workload.overlapping {
                let copies = workload.subjects_of(0).into_iter().map(|n| workload.copies(n));
                let sums = copies.scan(0, |sum, copies| {
                    *sum += copies;
                    Some(*sum)
                });
                [0].into_iter().chain(sums).collect()
            } else {
                Vec::new()
            },
            start_ns: AtomicU64::new(0),
            window_ns: [AtomicU64::new(0), AtomicU64::new(u64::MAX)],
            fault: Mutex::new(None),
        }
    }

    fn phase(&self) -> u8 {
        self.phase.load(Ordering::Acquire)
    }

    fn enter(&self, phase: u8) {
        self.phase.store(phase, Ordering::Release);
        if phase > PREPARE {
            self.begun.close();
        }
    }

    /// Waits for what follows the preparations.
    async fn await_begin(&self) {
        // It has no permits: what comes is its end.
        let _ = self.begun.acquire().await;
    }

    fn sent(&self) -> u64 {
        self.sent.iter().map(|c| c.0.load(Ordering::Relaxed)).sum()
    }

    fn delivered(&self) -> u64 {
        self.delivered.iter().map(|c| c.0.load(Ordering::Relaxed)).sum()
    }

    /// Deliveries that all messages which have been sent cause.
    fn expected(&self, workload: &Workload) -> u64 {
        let Some((round, before)) = self.copies_before.split_last() else {
            return self.sent() * workload.deliveries();
        };
        let messages = before.len() as u64;
        let of = |sent: u64| {
            let part = usize::try_from(sent % messages).map_or(0, |at| before[at]);
            sent / messages * round + part
        };
        self.sent.iter().map(|counter| of(counter.0.load(Ordering::Relaxed))).sum()
    }

    /// Messages that have surely been delivered to everybody; about as many, where they have
    /// different numbers of deliveries.
    fn settled(&self, workload: &Workload) -> u64 {
        if workload.overlapping && self.delivered() >= self.expected(workload) {
            return self.sent();
        }
        if workload.is_broadcast() {
            let counts = self.delivered.iter().map(|c| c.0.load(Ordering::Relaxed));
            counts.min().unwrap_or(u64::MAX)
        } else {
            self.delivered() / workload.deliveries().max(1)
        }
    }

    fn in_window(&self, at_ns: u64) -> bool {
        let [from, to] = &self.window_ns;
        (from.load(Ordering::Relaxed)..to.load(Ordering::Relaxed)).contains(&at_ns)
    }

    /// Keeps the first failure; failures while everybody goes home are none.
    fn fail(&self, fault: Fault) {
        if self.phase() < STOP {
            let mut first = self.fault.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            first.get_or_insert(fault);
        }
    }

    fn failed(&self) -> Option<Fault> {
        self.fault.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}

/// What the threads of a run share.
struct Job {
    plan: Plan,
    target: Target,
    /// Where subscribers are.
    far: Target,
    stage: Stage,
}

/// What a thread brings home.
struct Share {
    latency: Histogram<u64>,
    send_lag: Histogram<u64>,
    receive_lag: Histogram<u64>,
    disordered: u64,
}

impl Share {
    fn new() -> Self {
        Self {
            latency: histogram(),
            send_lag: histogram(),
            receive_lag: histogram(),
            disordered: 0,
        }
    }
}

/// Runs `plan` against `subject`; `stop` ends the window early.
pub(crate) fn run(
    plan: &Plan,
    subject: &Subject,
    stop: &AtomicBool,
    progress: &mut Progress,
) -> Outcome<Seen> {
    plan.workload.check(plan.pace)?;
    raise_file_limit(plan.workload.files() as u64)?;
    let stage = Stage::new(&plan.workload);
    let (target, far) = (subject.target.clone(), subject.far.clone());
    let job = Arc::new(Job { plan: plan.clone(), target, far, stage });
    let mut threads = Vec::new();
    let mut spawn = |work: fn(&Arc<Job>, usize) -> Share, count: usize| {
        threads.extend((0..count).map(|index| {
            let job = Arc::clone(&job);
            thread::spawn(move || {
                leave_half_of_the_cpus();
                work(&job, index)
            })
        }));
    };
    let coordinator = Coordinator { plan, stage: &job.stage, subject, stop };
    let measured = (|| {
        // Nobody reads these; the server may end them when it likes.
        let _stalled = with_ring(plan.workload.stalled + 1, stalled::open_and_fill(&job))?;
        spawn(subscriber::subscribers, plan.sub_threads.min(plan.workload.subs));
        coordinator.await_ready(plan.workload.subs)?;
        if subject.is_linked() {
            await_crossing(&subject.target, &subject.far)?;
        }
        spawn(publishers, plan.pub_threads.min(plan.workload.pubs));
        let churning = usize::from(plan.workload.churn_rate > 0.0);
        coordinator.await_ready(plan.workload.subs + plan.workload.pubs + churning)?;
        coordinator.measure(progress)
    })();
    progress.clear();
    job.stage.enter(STOP);
    let shares: Vec<Share> = threads.into_iter().filter_map(|t| t.join().ok()).collect();
    let mut seen = measured?;
    for share in shares {
        // All have the same bounds, so adding cannot fail.
        let _ = seen.latency.add(share.latency);
        let _ = seen.send_lag.add(share.send_lag);
        let _ = seen.receive_lag.add(share.receive_lag);
        seen.disordered += share.disordered;
    }
    Ok(seen)
}

/// Keeps the calling thread to the latter half of the CPUs that it may use. Left to itself the
/// scheduler puts it where the server is that wakes it: both share a CPU then, and another idles.
pub(crate) fn leave_half_of_the_cpus() {
    let Ok(allowed) = sched_getaffinity(None) else { return };
    let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect();
    let mut own = CpuSet::new();
    cpus[cpus.len() / 2..].iter().for_each(|cpu| own.set(*cpu));
    // Where it is not allowed the figures are worse, which is all that can happen.
    let _ = sched_setaffinity(None, &own);
}

struct Coordinator<'a> {
    plan: &'a Plan,
    stage: &'a Stage,
    subject: &'a Subject,
    stop: &'a AtomicBool,
}

/// The counters at one end of the window.
struct Sample {
    at: Instant,
    sent: u64,
    delivered: u64,
    churned: u64,
    server: Option<Usage>,
    counters: Option<Counters>,
    generator: Usage,
}

impl Coordinator<'_> {
    fn await_ready(&self, wanted: usize) -> Outcome<()> {
        let began = Instant::now();
        loop {
            let ready = self.stage.ready.load(Ordering::Acquire);
            if ready == wanted {
                return Ok(());
            }
            self.check()?;
            if self.stop.load(Ordering::Relaxed) || began.elapsed() > SETUP_PATIENCE {
                return Err(Fault::new(
                    format!("only {ready} of {wanted} connections were ready in time"),
                    "use fewer connections or subjects",
                ));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn check(&self) -> Outcome<()> {
        self.stage.failed().map_or(Ok(()), |fault| Err(self.name_missing(fault)))
    }

    /// Adds the count that is missing to what went wrong.
    fn name_missing(&self, fault: Fault) -> Fault {
        let expected = self.stage.expected(&self.plan.workload);
        let missing = expected.saturating_sub(self.stage.delivered());
        if missing == 0 {
            return fault;
        }
        fault.at(format!("{missing} of {expected} deliveries are missing"))
    }

    fn sample(&self) -> Sample {
        Sample {
            at: Instant::now(),
            sent: self.stage.sent(),
            delivered: self.stage.delivered(),
            churned: self.stage.churned.0.load(Ordering::Relaxed),
            server: self.subject.usage(),
            counters: self.subject.monitor.and_then(Counters::of),
            generator: Usage::of_self(),
        }
    }

    fn measure(&self, progress: &mut Progress) -> Outcome<Seen> {
        let stage = self.stage;
        // Ahead of now, so that no publisher begins late.
        let start_ns = stage.clock.now_ns() + 10_000_000;
        let from_ns = start_ns + duration_ns(self.plan.warmup);
        let to_ns = from_ns + duration_ns(self.plan.duration);
        stage.start_ns.store(start_ns, Ordering::Relaxed);
        stage.window_ns[0].store(from_ns, Ordering::Relaxed);
        stage.window_ns[1].store(to_ns, Ordering::Relaxed);
        stage.enter(SEND);
        self.wait_until(from_ns, progress)?;
        let before = self.sample();
        self.wait_until(to_ns, progress)?;
        let after = self.sample();
        stage.enter(DRAIN);
        let (missing, surplus) = self.drain()?;
        Ok(Seen {
            window_s: after.at.duration_since(before.at).as_secs_f64(),
            published: after.sent - before.sent,
            delivered: after.delivered - before.delivered,
            churned: after.churned - before.churned,
            server: after.server.zip(before.server).map(|(after, before)| after.since(before)),
            counted: after.counters.zip(before.counters).map(|(a, b)| a.since(b)),
            generator: after.generator.since(before.generator),
            missing,
            surplus,
            disordered: 0,
            latency: histogram(),
            send_lag: histogram(),
            receive_lag: histogram(),
            interrupted: self.stop.load(Ordering::Relaxed),
        })
    }

    fn wait_until(&self, until_ns: u64, progress: &mut Progress) -> Outcome<()> {
        loop {
            let now_ns = self.stage.clock.now_ns();
            if now_ns >= until_ns || self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.check()?;
            let done = self.stage.delivered().max(self.stage.sent());
            let end_ns = self.stage.window_ns[1].load(Ordering::Relaxed);
            progress.show(now_ns, end_ns, done);
            thread::sleep(Duration::from_nanos((until_ns - now_ns).min(50_000_000)));
        }
    }

    /// Waits for the deliveries that are under way; gives how many are missing or too many.
    fn drain(&self) -> Outcome<(u64, u64)> {
        let (mut last, mut moved) = (0, Instant::now());
        loop {
            self.check()?;
            let delivered = self.stage.delivered();
            let quiet = self.stage.publishers_done.load(Ordering::Acquire);
            let expected = self.stage.expected(&self.plan.workload);
            if quiet == self.plan.workload.pubs && delivered >= expected {
                // Copies that nobody expects would come right behind.
                thread::sleep(Duration::from_millis(5));
                return Ok((0, self.stage.delivered() - expected));
            }
            if delivered != last {
                (last, moved) = (delivered, Instant::now());
            }
            if moved.elapsed() > DRAIN_PATIENCE {
                return Ok((expected.saturating_sub(delivered), 0));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The connections of thread `index` of `threads`.
fn dealt(conns: usize, threads: usize, index: usize) -> Vec<usize> {
    (index..conns).step_by(threads).collect()
}

/// Keeps a thread's ring turning until the run stops, and records how late it woke.
async fn heartbeat(stage: &Stage, mut late: impl FnMut(u64)) -> Outcome<()> {
    let mut ticker = Ticker::new()?;
    while stage.phase() < STOP {
        let due_ns = stage.clock.now_ns() + HEARTBEAT_NS;
        ticker.wait_ns(HEARTBEAT_NS).await?;
        if stage.in_window(due_ns) {
            late(stage.clock.now_ns().saturating_sub(due_ns));
        }
    }
    Ok(())
}

/// Ends a thread's connections and waits for their tasks.
async fn go_home<T: 'static>(conns: &[Conn], tasks: Vec<impl Future<Output = T>>) {
    conns.iter().for_each(Conn::shut_down);
    for task in tasks {
        task.await;
    }
}

/// Runs the publishing connections of one thread.
fn publishers(job: &Arc<Job>, index: usize) -> Share {
    let workload = &job.plan.workload;
    let (order, threads) = (workload.opening_order(), job.plan.pub_threads.min(workload.pubs));
    let mine: Vec<usize> =
        dealt(workload.pubs, threads, index).into_iter().map(|at| order[at]).collect();
    let share = Rc::new(RefCell::new(Share::new()));
    let outcome = with_ring(mine.len() * 2, async {
        let (mut conns, mut readers, mut writers) = (Vec::new(), Vec::new(), Vec::new());
        // A thousand publishers with a thousand subjects each have a million control lines.
        let shared = (!workload.own_subjects).then(|| workload.renderer(0));
        for number in mine {
            let (conn, ..) = Conn::open(&job.target, number).await?;
            let pongs = Rc::new(Cell::new(0));
            let reader = listen(Arc::clone(job), conn.clone(), Rc::clone(&pongs));
            readers.push(tokio_uring::spawn(reader));
            conns.push(conn.clone());
            let renderer = match &shared {
                // Who counts what is owed to the subscribers goes by the order of the first.
                Some(renderer) if workload.overlapping => renderer.clone(),
                Some(renderer) => renderer.beginning_at(number, workload.pubs),
                None => workload.renderer(number),
            };
            let publisher = Publisher {
                job: Arc::clone(job),
                conn,
                number,
                renderer,
                ticker: Ticker::new()?,
                sent: 0,
                pings: 0,
                pongs,
                share: Rc::clone(&share),
            };
            writers.push(tokio_uring::spawn(publisher.work()));
            job.stage.ready.fetch_add(1, Ordering::Release);
        }
        if index == 0 && job.plan.workload.churn_rate > 0.0 {
            let (conn, ..) = Conn::open(&job.target, 0).await?;
            let reader = listen(Arc::clone(job), conn.clone(), Rc::default());
            readers.push(tokio_uring::spawn(reader));
            conns.push(conn.clone());
            writers.push(tokio_uring::spawn(churn(Arc::clone(job), conn)));
            job.stage.ready.fetch_add(1, Ordering::Release);
        }
        heartbeat(&job.stage, |_| {}).await?;
        go_home(&conns, readers).await;
        go_home(&conns, writers).await;
        Ok(())
    });
    outcome.unwrap_or_else(|fault| job.stage.fail(fault));
    share.replace(Share::new())
}

/// Reads what a publisher is sent: PONGs to its PINGs, PINGs, errors.
async fn listen(job: Arc<Job>, conn: Conn, pongs: Rc<Cell<u64>>) {
    let (mut inbox, mut scanner) = (Inbox::new(16 << 10), conn.scanner(0));
    let outcome: Outcome<()> = async {
        loop {
            conn.fill(&mut inbox).await?;
            let seen = scanner.scan(inbox.bytes(), |_| {})?;
            inbox.consume(seen.used);
            pongs.set(pongs.get() + seen.pongs as u64);
            conn.answer(seen.owed).await?;
        }
    }
    .await;
    outcome.unwrap_or_else(|fault| job.stage.fail(fault));
}

/// Subscribes and unsubscribes at a fixed rate for as long as publishers send.
async fn churn(job: Arc<Job>, conn: Conn) {
    let (stage, workload) = (&job.stage, &job.plan.workload);
    let outcome: Outcome<()> = async {
        let (mut ticker, mut wire, mut sid) = (Ticker::new()?, Vec::new(), 0);
        stage.await_begin().await;
        let start_ns = stage.start_ns.load(Ordering::Relaxed);
        let schedule =
            Schedule { start_ns, rate: workload.churn_rate, publishers: 1, publisher: 0 };
        while stage.phase() == SEND {
            let now_ns = stage.clock.now_ns();
            wire.clear();
            while schedule.intended_ns(sid as u64) <= now_ns && wire.len() < BATCH_BYTES {
                sid += 1;
                push_sub(&format!("{}-churn.{sid}", workload.prefix), None, sid, &mut wire);
                wire.extend_from_slice(format!("UNSUB {sid}\r\n").as_bytes());
            }
            if !wire.is_empty() {
                wire = conn.write(wire).await?;
                stage.churned.0.store(sid as u64, Ordering::Relaxed);
            }
            let due_ns = schedule.intended_ns(sid as u64);
            let wait_ns = due_ns.saturating_sub(stage.clock.now_ns());
            ticker.wait_ns(wait_ns.clamp(CHURN_NS, HEARTBEAT_NS)).await?;
        }
        Ok(())
    }
    .await;
    outcome.unwrap_or_else(|fault| stage.fail(fault));
}

struct Publisher {
    job: Arc<Job>,
    conn: Conn,
    number: usize,
    renderer: Renderer,
    ticker: Ticker,
    sent: u64,
    pings: u64,
    pongs: Rc<Cell<u64>>,
    share: Rc<RefCell<Share>>,
}

impl Publisher {
    async fn work(mut self) {
        let job = Arc::clone(&self.job);
        let outcome: Outcome<()> = async {
            job.stage.await_begin().await;
            match job.plan.pace {
                Pace::Closed { window_bytes } | Pace::Poured { window_bytes, .. } => {
                    self.publish_closed(window_bytes).await?;
                }
                Pace::Open { rate } => self.publish_open(rate).await?,
            }
            // What was written has been taken once the PONG is here.
            self.conn.write(self.conn.dialect().ping().to_vec()).await?;
            self.pings += 1;
            while self.pongs.get() < self.pings && job.stage.phase() < STOP {
                self.ticker.wait_ns(1_000_000).await?;
            }
            job.stage.publishers_done.fetch_add(1, Ordering::Release);
            Ok(())
        }
        .await;
        outcome.unwrap_or_else(|fault| job.stage.fail(fault));
    }

    fn push(&mut self, intended_ns: u64, batch: &mut Vec<u8>) {
        let publisher = u32::try_from(self.number).unwrap_or(u32::MAX);
        // The sequence is modulo 2^32 by definition.
        let sequence = (self.sent & u64::from(u32::MAX)).try_into().unwrap_or(0);
        self.renderer.push(Stamp { intended_ns, publisher, sequence }, batch);
        self.sent += 1;
    }

    fn count_sent(&self) {
        self.job.stage.sent[self.number].0.store(self.sent, Ordering::Relaxed);
    }

    async fn publish_closed(&mut self, window_bytes: u64) -> Outcome<()> {
        let job = Arc::clone(&self.job);
        let workload = &job.plan.workload;
        let message_bytes = self.renderer.message_bytes() as u64;
        let window = Window::new(window_bytes, message_bytes, workload.deliveries());
        let per_batch = window.batch(job.plan.write_bytes as u64, message_bytes);
        let unheard = workload.subs == 0;
        let granted = matches!(job.plan.pace, Pace::Poured { .. });
        let same_bytes = granted || (self.renderer.is_uniform() && !workload.verify);
        let mut batch = Vec::new();
        if granted {
            ceiling::push_grant(per_batch, &mut batch);
        }
        let mut own = UnderWay::default();
        loop {
            let goes_on = if unheard {
                let pongs = Rc::clone(&self.pongs);
                self.claim(&mut own, window, per_batch, || pongs.get() * per_batch).await?
            } else {
                let mut all = job.stage.under_way.lock().await;
                self.claim(&mut all, window, per_batch, || job.stage.settled(workload)).await?
            };
            if !goes_on {
                return Ok(());
            }
            if same_bytes && !batch.is_empty() {
                self.sent += per_batch;
            } else {
                batch.clear();
                for _ in 0..per_batch {
                    self.push(0, &mut batch);
                }
                if unheard {
                    batch.extend_from_slice(self.conn.dialect().ping());
                }
            }
            batch = self.conn.write(batch).await?;
            self.pings += u64::from(unheard);
            self.count_sent();
        }
    }

    /// Waits until there is room for `messages` more, and claims it; `settled` gives how many have
    /// arrived by now. False when the time for sending is over.
    async fn claim(
        &mut self,
        under_way: &mut UnderWay,
        window: Window,
        messages: u64,
        settled: impl Fn() -> u64,
    ) -> Outcome<bool> {
        let job = Arc::clone(&self.job);
        while job.stage.phase() == SEND {
            if under_way.claim(messages, window) {
                return Ok(true);
            }
            under_way.settle(settled());
            if !under_way.has_room(messages, window) {
                self.ticker.wait_ns(WINDOW_POLL_NS).await?;
            }
        }
        Ok(false)
    }

    async fn publish_open(&mut self, rate: f64) -> Outcome<()> {
        let job = Arc::clone(&self.job);
        let stage = &job.stage;
        let schedule = Schedule {
            start_ns: stage.start_ns.load(Ordering::Relaxed),
            rate,
            publishers: job.plan.workload.pubs as u64,
            publisher: self.number as u64,
        };
        let end_ns = stage.window_ns[1].load(Ordering::Relaxed);
        let mut batch = Vec::with_capacity(BATCH_BYTES * 2);
        // Until then the server kept this connection from sending; that is not our lag.
        let mut free_ns = schedule.start_ns;
        loop {
            let due_ns = schedule.intended_ns(self.sent);
            // What was meant for the window is sent however late: left out, a slow server would
            // look the better for it.
            if due_ns >= end_ns || stage.phase() == STOP {
                return Ok(());
            }
            let now_ns = stage.clock.now_ns();
            if due_ns > now_ns {
                self.ticker.wait_ns((due_ns - now_ns).min(HEARTBEAT_NS)).await?;
                continue;
            }
            batch.clear();
            let mut next_ns = due_ns;
            while next_ns <= now_ns && next_ns < end_ns && batch.len() < BATCH_BYTES {
                self.push(next_ns, &mut batch);
                next_ns = schedule.intended_ns(self.sent);
            }
            if stage.in_window(due_ns) {
                let lag_ns = now_ns.saturating_sub(due_ns.max(free_ns));
                self.share.borrow_mut().send_lag.saturating_record(lag_ns);
            }
            batch = self.conn.write(batch).await?;
            free_ns = stage.clock.now_ns();
            self.count_sent();
        }
    }
}

/// When each message of an open loop is meant to be sent: decided before the first one, so that
/// a server that stalls cannot change it.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    start_ns: u64,
    /// Messages a second of all publishers together.
    rate: f64,
    publishers: u64,
    publisher: u64,
}

impl Schedule {
    /// The time of this publisher's message `number`, on the run's clock.
    fn intended_ns(self, number: u64) -> u64 {
        let before = number * self.publishers + self.publisher;
        // Exact to a nanosecond for years at any rate worth measuring.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a positive time far below 2^63"
        )]
        let offset_ns = (before as f64 * 1e9 / self.rate) as u64;
        self.start_ns + offset_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(subs: usize, subjects: usize, fanout: usize) -> Workload {
        Workload {
            pubs: 1,
            subs,
            subjects,
            fanout,
            wildcard: false,
            overlapping: false,
            queue_groups: 0,
            own_sids: false,
            own_subjects: false,
            idle_between: false,
            churn_rate: 0.0,
            stalled: 0,
            prefix: "perf".into(),
            payload_bytes: 16,
            header_bytes: 0,
            reply_bytes: 0,
            verify: false,
            dialect: Dialect::Nats,
        }
    }

    #[test]
    fn each_subject_has_as_many_subscribers_as_the_fanout_says() {
        for (subs, subjects, fanout) in [(1, 1, 1), (10, 1, 10), (10, 37, 3), (3, 100, 2)] {
            let load = workload(subs, subjects, fanout);
            let all: Vec<String> = (0..subs).flat_map(|conn| load.filters(conn)).collect();
            for subject in load.addresses_of(0) {
                let copies = all.iter().filter(|filter| **filter == subject).count();
                assert_eq!(copies, fanout, "{subject} of {subs}, {subjects}, {fanout}");
            }
        }
    }

    #[test]
    fn overlapping_wildcards_match_as_many_as_are_expected() {
        let load = Workload { overlapping: true, ..workload(7, 20, 1) };
        let matches = |filter: &str, subject: &str| {
            let (mut subject, mut filter) = (subject.split('.'), filter.split('.'));
            loop {
                match (filter.next(), subject.next()) {
                    (Some(">"), Some(_)) | (None, None) => return true,
                    (Some(word), Some(token)) if word == "*" || word == token => {}
                    _ => return false,
                }
            }
        };
        let all: Vec<String> = (0..7).flat_map(|conn| load.filters(conn)).collect();
        assert_eq!(all.len(), 20);
        let mut owed = 0;
        let stage = Stage::new(&load);
        for (sent, number) in (1..).zip(load.subjects_of(0)) {
            let subject = load.subject(number);
            let copies = all.iter().filter(|filter| matches(filter, &subject)).count() as u64;
            assert_eq!(copies, load.copies(number), "{subject}");
            owed += copies;
            stage.sent[0].0.store(sent, Ordering::Relaxed);
            assert_eq!(stage.expected(&load), owed, "after {sent}");
        }
        stage.sent[0].0.store(41, Ordering::Relaxed);
        assert_eq!(owed, 20 * load.deliveries());
        assert_eq!(stage.expected(&load), 2 * owed + load.copies(load.subjects_of(0)[0]));
    }

    #[test]
    fn sids_and_subjects_of_ones_own_are_dealt_without_a_rest() {
        let load = Workload { pubs: 3, own_sids: true, own_subjects: true, ..workload(4, 10, 4) };
        let sids = (0..4).flat_map(|conn| (0..10).map(move |at| (conn, at)));
        let mut sids: Vec<usize> = sids.map(|(conn, at)| load.sid(conn, at)).collect();
        sids.sort_unstable();
        assert_eq!(sids, (1..=40).collect::<Vec<_>>());
        let mut subjects: Vec<usize> = (0..3).flat_map(|who| load.subjects_of(who)).collect();
        subjects.sort_unstable();
        assert_eq!(subjects, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn queue_groups_and_wildcards_change_the_number_of_deliveries() {
        let plain = workload(10, 5, 3);
        assert_eq!(plain.deliveries(), 3);
        assert_eq!(Workload { wildcard: true, ..plain.clone() }.deliveries(), 10);
        assert_eq!(Workload { queue_groups: 2, ..plain.clone() }.deliveries(), 2);
        assert_eq!(Workload { subs: 0, fanout: 0, ..plain }.deliveries(), 0);
    }

    #[test]
    fn the_publishers_of_a_schedule_take_turns() {
        let schedule = |publisher| Schedule { start_ns: 5, rate: 1000.0, publishers: 2, publisher };
        let times: Vec<u64> =
            (0..3).flat_map(|n| [schedule(0).intended_ns(n), schedule(1).intended_ns(n)]).collect();
        let expected: Vec<u64> = (0..6).map(|n| 5 + n * 1_000_000).collect();
        assert_eq!(times, expected);
    }

    #[test]
    fn a_schedule_does_not_drift() {
        let schedule = Schedule { start_ns: 0, rate: 300_000.0, publishers: 1, publisher: 0 };
        assert_eq!(schedule.intended_ns(300_000 * 3600), 3_600_000_000_000);
    }

    #[test]
    fn the_ends_of_pairs_are_on_different_threads_as_often_as_by_chance() {
        for pairs in [10, 100, 1000] {
            let load = Workload { pubs: pairs, own_subjects: true, ..workload(pairs, pairs, 1) };
            let order = load.opening_order();
            let mut all = order.clone();
            all.sort_unstable();
            assert_eq!(all, (0..pairs).collect::<Vec<_>>());
            for threads in [2, 4, 8] {
                // The subscribers come before them, and each connection goes to the next thread.
                let apart = order.iter().enumerate().filter(|(at, publisher)| {
                    let subject = load.subjects_of(**publisher)[0];
                    (pairs + at) % threads != subject % threads
                });
                let apart = apart.count() as f64 / pairs as f64;
                let by_chance = 1.0 - 1.0 / threads as f64;
                let place = format!("{apart} of {pairs} pairs on {threads} threads");
                assert!((apart - by_chance).abs() <= 0.1 + f64::EPSILON, "{place}");
            }
        }
    }

    #[test]
    fn who_publishes_to_all_subjects_is_opened_in_turn() {
        let load = Workload { pubs: 5, ..workload(5, 5, 1) };
        assert_eq!(load.opening_order(), [0, 1, 2, 3, 4]);
    }
}
