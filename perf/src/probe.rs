//! Measurements that need no load: connection storms, idle connections, subscriptions.

use crate::client::{Conn, Inbox, Target, with_ring};
use crate::clock::{Clock, Ticker, duration_ns};
use crate::fault::{Fault, Outcome};
use crate::load::histogram;
use crate::measure::Figures;
use crate::monitor::Counters;
use crate::report::{Progress, Quantiles, human, quantiles_text, usage_text};
use crate::server::Usage;
use crate::wire::{Scanner, push_sub};
use hdrhistogram::Histogram;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often progress is shown and the end looked for.
pub(crate) const LOOK_NS: u64 = 20_000_000;

/// A server to measure, and how to stop.
pub(crate) struct Site<'a> {
    /// How to reach it.
    pub(crate) target: &'a Target,
    /// Where those are who answer; see [`Subject`](crate::cli::Subject).
    pub(crate) far: &'a Target,
    /// Its process, when it is known; of two linked servers both.
    pub(crate) pids: &'a [u32],
    /// Where its monitoring listens, when that is known.
    pub(crate) monitor: Option<SocketAddr>,
    /// Ends the measurement early.
    pub(crate) stop: &'a AtomicBool,
}

impl Site<'_> {
    /// What the server has used.
    pub(crate) fn usage(&self) -> Option<Usage> {
        Usage::of_all(self.pids)
    }

    /// What the server has counted.
    pub(crate) fn counters(&self) -> Option<Counters> {
        self.monitor.and_then(Counters::of)
    }

    /// Whether the user ends it.
    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Refuses to settle for the memory of a process that nobody named.
    fn check_memory(&self, settle: Duration) -> Outcome<()> {
        if !settle.is_zero() && self.pids.is_empty() {
            return Err(Fault::new(
                "the memory of an unknown process cannot be read",
                "give --pid of the server, or --server to start it",
            ));
        }
        Ok(())
    }
}

/// How much more memory there is `after`, for each of `count`, in bytes.
fn grown_each(after: Option<Usage>, before: Option<Usage>, count: u64) -> Option<f64> {
    let grown = after.zip(before).map(|(a, b)| a.rss_bytes as f64 - b.rss_bytes as f64);
    grown.map(|bytes| bytes / count.max(1) as f64)
}

/// What was used between, where both are known.
pub(crate) fn used(after: Option<Usage>, before: Option<Usage>) -> Option<Usage> {
    after.zip(before).map(|(after, before)| after.since(before))
}

/// Appends what the server and this program used.
pub(crate) fn push_usage(out: &mut String, server: Option<Usage>, generator: Usage) {
    if let Some(server) = server {
        let _ = writeln!(out, "server     {}", usage_text(&server));
    }
    let _ = writeln!(out, "generator  {}", usage_text(&generator));
}

/// How to open connections.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Storm {
    /// Connections to open.
    pub(crate) conns: usize,
    /// Connections that are being opened at the same time.
    pub(crate) concurrency: usize,
    /// How long they stay open and idle afterwards.
    pub(crate) settle: Duration,
    /// Whether all are closed then, and the server rests as long once more.
    pub(crate) burst: bool,
    /// Whether they speak MQTT.
    pub(crate) mqtt: bool,
}

/// What `connect` and `idle` found.
#[derive(Debug, Serialize)]
pub(crate) struct StormReport {
    plan: Storm,
    /// Connections that were opened.
    opened: u64,
    /// Connections per second.
    opened_per_s: f64,
    /// From the call to the TCP connection, in microseconds.
    connected_us: Option<Quantiles>,
    /// From the call to the PONG behind CONNECT, in microseconds.
    ready_us: Option<Quantiles>,
    /// What the server used while they were opened.
    server: Option<Usage>,
    generator: Usage,
    /// What the server used while they were idle.
    server_idle: Option<Usage>,
    /// The server's memory per connection, in bytes, once they had settled.
    server_bytes_each: Option<f64>,
    /// The server's memory before, and after all connections have been closed, in bytes.
    server_bytes_before_and_after: Option<[u64; 2]>,
    /// Whether the user ended it early.
    pub(crate) interrupted: bool,
}

/// Opens connections and keeps them for a while; gives the times to ready in nanoseconds too.
pub(crate) fn storm(
    site: &Site<'_>,
    plan: &Storm,
    progress: &mut Progress,
) -> Outcome<(StormReport, Histogram<u64>)> {
    site.check_memory(plan.settle)?;
    if plan.conns == 0 || plan.concurrency == 0 {
        return Err(Fault::new("no connections", "give --conns and --concurrency at least 1"));
    }
    raise_file_limit(plan.conns as u64 + 64)?;
    with_ring(plan.conns, storm_on_ring(site, plan, progress))
}

/// Lets this process open `wanted` files.
pub(crate) fn raise_file_limit(wanted: u64) -> Outcome<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    let raised = Rlimit { current: Some(wanted), maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).map_err(|e| {
        Fault::new(
            format!("{wanted} files cannot be open at once ({e})"),
            format!("run `ulimit -Hn {wanted}` as root first, or use fewer connections"),
        )
    })
}

struct Opening {
    target: Target,
    left: Cell<usize>,
    connected: RefCell<Histogram<u64>>,
    ready: RefCell<Histogram<u64>>,
    conns: RefCell<Vec<Conn>>,
    over: Cell<bool>,
    fault: RefCell<Option<Fault>>,
}

async fn storm_on_ring(
    site: &Site<'_>,
    plan: &Storm,
    progress: &mut Progress,
) -> Outcome<(StormReport, Histogram<u64>)> {
    let opening = Rc::new(Opening {
        target: site.target.clone(),
        left: Cell::new(plan.conns),
        connected: RefCell::new(histogram()),
        ready: RefCell::new(histogram()),
        conns: RefCell::new(Vec::with_capacity(plan.conns)),
        over: Cell::new(false),
        fault: RefCell::new(None),
    });
    let clock = Clock::start();
    let (before, own_before) = (site.usage(), Usage::of_self());
    for _ in 0..plan.concurrency.min(plan.conns) {
        drop(tokio_uring::spawn(open_some(Rc::clone(&opening))));
    }
    let mut ticker = Ticker::new()?;
    let opened = || opening.conns.borrow().len();
    while opened() < plan.conns && !site.stopped() && opening.fault.borrow().is_none() {
        ticker.wait_ns(1_000_000).await?;
        let (now_ns, done) = (clock.now_ns(), opened() as u64);
        let end_ns = now_ns * plan.conns as u64 / done.max(1);
        progress.show(now_ns, end_ns, done);
    }
    let (opened_ns, opened) = (clock.now_ns(), opened());
    let (stormed, own_after) = (site.usage(), Usage::of_self());
    let settled_ns = opened_ns + duration_ns(plan.settle);
    while clock.now_ns() < settled_ns && !site.stopped() && opening.fault.borrow().is_none() {
        progress.show(clock.now_ns(), settled_ns, opened as u64);
        ticker.wait_ns(LOOK_NS).await?;
    }
    let idle = site.usage();
    progress.clear();
    opening.over.set(true);
    opening.conns.borrow().iter().for_each(Conn::shut_down);
    if plan.burst {
        opening.conns.borrow_mut().clear();
        let rested_ns = clock.now_ns() + duration_ns(plan.settle);
        while clock.now_ns() < rested_ns && !site.stopped() {
            ticker.wait_ns(LOOK_NS).await?;
        }
    }
    let rested = if plan.burst { site.usage() } else { None };
    if let Some(fault) = opening.fault.borrow_mut().take() {
        let missing = plan.conns - opened;
        return Err(fault.at(format!("{missing} of {} connections are missing", plan.conns)));
    }
    let times = opening.ready.borrow().clone();
    let report = StormReport {
        plan: plan.clone(),
        opened: opened as u64,
        opened_per_s: opened as f64 * 1e9 / opened_ns.max(1) as f64,
        connected_us: Quantiles::of(&opening.connected.borrow()),
        ready_us: Quantiles::of(&times),
        server: used(stormed, before),
        generator: own_after.since(own_before),
        server_idle: used(idle, stormed),
        server_bytes_each: grown_each(idle, before, opened as u64),
        server_bytes_before_and_after: before
            .zip(rested)
            .map(|(before, rested)| [before.rss_bytes, rested.rss_bytes]),
        interrupted: site.stopped(),
    };
    Ok((report, times))
}

/// Opens one connection after the other until there are enough.
async fn open_some(opening: Rc<Opening>) {
    while let Some(left) = opening.left.get().checked_sub(1) {
        if opening.over.get() {
            return;
        }
        opening.left.set(left);
        match Conn::open(&opening.target, left).await {
            Ok((conn, _, steps)) => {
                opening.connected.borrow_mut().saturating_record(steps.connected_ns);
                opening.ready.borrow_mut().saturating_record(steps.ready_ns);
                drop(tokio_uring::spawn(stay(Rc::clone(&opening), conn.clone())));
                opening.conns.borrow_mut().push(conn);
            }
            Err(fault) => {
                opening.fault.borrow_mut().get_or_insert(fault);
                return;
            }
        }
    }
}

/// Answers the server's PINGs.
async fn stay(opening: Rc<Opening>, conn: Conn) {
    let (mut inbox, mut scanner) = (Inbox::new(4096), conn.scanner(0));
    let outcome: Outcome<()> = async {
        loop {
            conn.fill(&mut inbox).await?;
            let seen = scanner.scan(inbox.bytes(), |_| {})?;
            inbox.consume(seen.used);
            conn.answer(seen.owed).await?;
        }
    }
    .await;
    if let (Err(fault), false) = (outcome, opening.over.get()) {
        opening.fault.borrow_mut().get_or_insert(fault);
    }
}

/// How many of `count` a second of the server's CPU gives.
pub(crate) fn per_cpu_s(count: u64, server: Option<Usage>) -> Option<f64> {
    server.map(Usage::cpu_s).filter(|seconds| *seconds > 0.0).map(|s| count as f64 / s)
}

impl StormReport {
    /// What to compare it by.
    pub(crate) fn figures(&self) -> Figures {
        Figures {
            per_server_cpu_s: per_cpu_s(self.opened, self.server),
            per_s: Some(self.opened_per_s),
            times: self.ready_us,
            server_bytes_each: self.server_bytes_each,
            memory_kept: self.server_bytes_before_and_after.map(|[b, a]| a as f64 / b as f64),
            ..Figures::default()
        }
    }

    /// A few lines for people.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(out, "opened     {} ({}/s)", self.opened, human(self.opened_per_s));
        for (name, quantiles) in [("connected", self.connected_us), ("ready", self.ready_us)] {
            if let Some(q) = quantiles {
                let _ = writeln!(out, "{}", quantiles_text(name, &q));
            }
        }
        push_usage(&mut out, self.server, self.generator);
        if let (Some(idle), false) = (self.server_idle, self.plan.settle.is_zero()) {
            let seconds = self.plan.settle.as_secs_f64();
            let _ = writeln!(out, "idle       {} (in {seconds} s)", usage_text(&idle));
        }
        if let Some(bytes) = self.server_bytes_each {
            let _ = writeln!(out, "memory     {:.2} KiB per connection", bytes / 1024.0);
        }
        if let Some([before, after]) = self.server_bytes_before_and_after {
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            let _ = writeln!(
                out,
                "burst      {:.1} MiB before, {:.1} MiB after all were closed: {:.2} times",
                mib(before),
                mib(after),
                after as f64 / before as f64
            );
        }
        if self.interrupted {
            let _ = writeln!(out, "ended early by the user");
        }
        out
    }
}

/// Subscriptions written at once, at most.
const SUBS_PER_WRITE: usize = 1000;

/// How to subscribe.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Subscribing {
    /// Subscriptions, each to a subject of its own.
    pub(crate) count: usize,
    /// How long they stay before the server's memory is read.
    pub(crate) settle: Duration,
}

/// What `subs` found.
#[derive(Debug, Serialize)]
pub(crate) struct SubscribingReport {
    plan: Subscribing,
    /// Subscriptions that were made.
    made: u64,
    /// Subscriptions per second, up to the PONG behind the last one.
    made_per_s: f64,
    /// Subscriptions per second of the server's CPU.
    per_server_cpu_s: Option<f64>,
    /// What the server used until then.
    server: Option<Usage>,
    generator: Usage,
    /// The server's memory per subscription, in bytes, once it had settled.
    server_bytes_each: Option<f64>,
    /// Whether the user ended it early.
    pub(crate) interrupted: bool,
}

/// Makes subscriptions on one connection, as fast as they are taken.
pub(crate) fn subscribe(
    site: &Site<'_>,
    plan: &Subscribing,
    progress: &mut Progress,
) -> Outcome<SubscribingReport> {
    site.check_memory(plan.settle)?;
    if plan.count == 0 {
        return Err(Fault::new("no subscriptions", "give --count at least 1"));
    }
    with_ring(1, subscribe_on_ring(site, plan, progress))
}

async fn subscribe_on_ring(
    site: &Site<'_>,
    plan: &Subscribing,
    progress: &mut Progress,
) -> Outcome<SubscribingReport> {
    let (conn, ..) = Conn::open(site.target, 0).await?;
    let (mut inbox, mut scanner) = (Inbox::new(4096), Scanner::new(0));
    let clock = Clock::start();
    let (before, own_before) = (site.usage(), Usage::of_self());
    let (mut wire, mut made) = (Vec::new(), 0);
    while made < plan.count && !site.stopped() {
        wire.clear();
        let until = plan.count.min(made + SUBS_PER_WRITE);
        for number in made..until {
            push_sub(&format!("perf.subs.{number}"), None, number + 1, &mut wire);
        }
        wire = conn.write(wire).await?;
        made = until;
        let (now_ns, done) = (clock.now_ns(), made as u64);
        progress.show(now_ns, now_ns * plan.count as u64 / done, done);
    }
    let missing = |fault: Fault| fault.at(format!("of {} subscriptions some are missing", made));
    conn.write(b"PING\r\n".to_vec()).await.map_err(missing)?;
    conn.await_pong(&mut inbox, &mut scanner).await.map_err(missing)?;
    let made_ns = clock.now_ns();
    let (after, own_after) = (site.usage(), Usage::of_self());
    let settled_ns = made_ns + duration_ns(plan.settle);
    let mut ticker = Ticker::new()?;
    while clock.now_ns() < settled_ns && !site.stopped() {
        progress.show(clock.now_ns(), settled_ns, made as u64);
        ticker.wait_ns(LOOK_NS).await?;
    }
    let settled = site.usage();
    progress.clear();
    conn.shut_down();
    let (made, server) = (made as u64, used(after, before));
    Ok(SubscribingReport {
        plan: plan.clone(),
        made,
        made_per_s: made as f64 * 1e9 / made_ns.max(1) as f64,
        per_server_cpu_s: per_cpu_s(made, server),
        server,
        generator: own_after.since(own_before),
        server_bytes_each: grown_each(settled, before, made),
        interrupted: site.stopped(),
    })
}

impl SubscribingReport {
    /// What to compare it by.
    pub(crate) fn figures(&self) -> Figures {
        Figures {
            per_server_cpu_s: self.per_server_cpu_s,
            per_s: Some(self.made_per_s),
            server_bytes_each: self.server_bytes_each,
            ..Figures::default()
        }
    }

    /// A few lines for people.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(out, "subscribed {} ({}/s)", self.made, human(self.made_per_s));
        push_usage(&mut out, self.server, self.generator);
        if let Some(each) = self.per_server_cpu_s {
            let _ = writeln!(out, "           {} per CPU second", human(each));
        }
        if let Some(bytes) = self.server_bytes_each {
            let _ = writeln!(out, "memory     {bytes:.0} bytes per subscription");
        }
        if self.interrupted {
            let _ = writeln!(out, "ended early by the user");
        }
        out
    }
}
