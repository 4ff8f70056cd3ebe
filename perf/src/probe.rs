//! Measurements that need no load: round trips, connection storms, idle connections.

use crate::beside;
use crate::client::{Conn, Inbox, Target, with_ring};
use crate::clock::{Clock, Ticker, duration_ns};
use crate::fault::{Fault, Outcome};
use crate::load::{histogram, leave_half_of_the_cpus};
use crate::measure::Figures;
use crate::report::{Progress, Quantiles, human, quantiles_text, usage_text};
use crate::server::Usage;
use crate::wire::{Scanner, push_sub};
use hdrhistogram::Histogram;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// How often progress is shown and the end looked for.
pub(crate) const LOOK_NS: u64 = 20_000_000;
/// A reply that takes longer is missing.
const REPLY_PATIENCE: Duration = Duration::from_secs(5);

/// A server to measure, and how to stop.
pub(crate) struct Site<'a> {
    /// How to reach it.
    pub(crate) target: &'a Target,
    /// Its process, when it is known.
    pub(crate) pid: Option<u32>,
    /// Ends the measurement early.
    pub(crate) stop: &'a AtomicBool,
}

impl Site<'_> {
    fn usage(&self) -> Option<Usage> {
        self.pid.and_then(Usage::of)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Refuses to settle for the memory of a process that nobody named.
    fn check_memory(&self, settle: Duration) -> Outcome<()> {
        if !settle.is_zero() && self.pid.is_none() {
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

fn used(after: Option<Usage>, before: Option<Usage>) -> Option<Usage> {
    after.zip(before).map(|(after, before)| after.since(before))
}

/// How to measure round trips.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct RoundTrips {
    /// Connections that ask, each with one request under way.
    pub(crate) requesters: usize,
    /// Connections that answer, in one queue group; 0: the server answers a PING.
    pub(crate) responders: usize,
    /// Connections that publish as fast as they can meanwhile, to a subject that nobody hears.
    pub(crate) flooders: usize,
    /// Connections that come and go all at once meanwhile, over and over.
    pub(crate) stormers: usize,
    /// Payload of request and reply, in bytes.
    pub(crate) payload_bytes: usize,
    /// Requests a second of all together; none: the next one as soon as the reply is there.
    pub(crate) rate: Option<f64>,
    /// Time before the measured window.
    pub(crate) warmup: Duration,
    /// Length of the measured window.
    pub(crate) duration: Duration,
}

/// What `rtt` found.
#[derive(Debug, Serialize)]
pub(crate) struct RttReport {
    plan: RoundTrips,
    /// Replies in the window.
    replies: u64,
    /// Replies per second.
    replies_per_s: f64,
    /// From the request's (intended) time to the reply, in microseconds.
    rtt_us: Option<Quantiles>,
    server: Option<Usage>,
    generator: Usage,
    /// How often all connections of the storm have come.
    storms: u64,
    /// Replies that never came.
    pub(crate) missing: u64,
    /// Whether the user ended it early.
    pub(crate) interrupted: bool,
}

struct Asking {
    plan: RoundTrips,
    clock: Clock,
    start_ns: u64,
    times: RefCell<Histogram<u64>>,
    asked: Cell<u64>,
    answered: Cell<u64>,
    /// No more requests.
    over: Cell<bool>,
    /// The connections end because we end them.
    closed: Cell<bool>,
    fault: RefCell<Option<Fault>>,
}

impl Asking {
    fn window_ns(&self) -> std::ops::Range<u64> {
        let from = self.start_ns + duration_ns(self.plan.warmup);
        from..from + duration_ns(self.plan.duration)
    }

    fn note(&self, outcome: Outcome<()>) {
        if let (Err(fault), false) = (outcome, self.closed.get()) {
            self.fault.borrow_mut().get_or_insert(fault);
        }
    }
}

/// Measures round trips; gives them in nanoseconds too.
pub(crate) fn rtt(
    site: &Site<'_>,
    plan: &RoundTrips,
    progress: &mut Progress,
) -> Outcome<(RttReport, Histogram<u64>)> {
    if plan.requesters == 0 {
        return Err(Fault::new("nobody asks", "give --requesters at least 1"));
    }
    raise_file_limit(
        (plan.stormers + plan.requesters + plan.responders + plan.flooders) as u64 + 64,
    )?;
    std::thread::scope(|scope| {
        let measuring = scope.spawn(|| {
            // On a thread of its own: whatever is started later, servers too, inherits it.
            leave_half_of_the_cpus();
            rtt_beside(site, plan, progress)
        });
        measuring.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Measures with all that is to go on beside it.
fn rtt_beside(
    site: &Site<'_>,
    plan: &RoundTrips,
    progress: &mut Progress,
) -> Outcome<(RttReport, Histogram<u64>)> {
    let (over, storms) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let flood = || with_ring(plan.flooders, beside::flood(site.target, plan, &over));
        let flooding = (plan.flooders > 0).then(|| scope.spawn(flood));
        let come = || {
            let storm = beside::storms(site.target, plan.stormers, &over, &storms);
            with_ring(plan.stormers, storm)
        };
        let storming = (plan.stormers > 0).then(|| scope.spawn(come));
        let asked = with_ring(plan.requesters + plan.responders, rtt_on_ring(site, plan, progress));
        over.store(true, Ordering::Relaxed);
        for thread in [flooding, storming].into_iter().flatten() {
            thread.join().unwrap_or(Ok(()))?;
        }
        let (mut report, times) = asked?;
        report.storms = storms.load(Ordering::Relaxed);
        Ok((report, times))
    })
}

async fn rtt_on_ring(
    site: &Site<'_>,
    plan: &RoundTrips,
    progress: &mut Progress,
) -> Outcome<(RttReport, Histogram<u64>)> {
    let conns = open_all(site.target, plan).await?;
    let clock = Clock::start();
    let asking = Rc::new(Asking {
        plan: plan.clone(),
        clock,
        start_ns: clock.now_ns() + 1_000_000,
        times: RefCell::new(histogram()),
        asked: Cell::new(0),
        answered: Cell::new(0),
        over: Cell::new(false),
        closed: Cell::new(false),
        fault: RefCell::new(None),
    });
    for (number, conn) in conns.iter().enumerate() {
        let (asking, conn) = (Rc::clone(&asking), conn.clone());
        drop(tokio_uring::spawn(async move {
            asking.note(match number.checked_sub(asking.plan.responders) {
                None => respond(&conn).await,
                Some(asker) => ask(&asking, &conn, asker).await,
            });
        }));
    }
    let window = asking.window_ns();
    let mut ticker = Ticker::new()?;
    let sample = || (site.usage(), Usage::of_self(), clock.now_ns());
    let (mut before, mut warm) = (sample(), true);
    while clock.now_ns() < window.end && !site.stopped() && asking.fault.borrow().is_none() {
        ticker.wait_ns(LOOK_NS.min(window.end.saturating_sub(clock.now_ns()))).await?;
        if warm && clock.now_ns() >= window.start {
            (before, warm) = (sample(), false);
        }
        progress.show(clock.now_ns(), window.end, asking.answered.get());
    }
    let after = sample();
    asking.over.set(true);
    let patient_until = clock.now_ns() + duration_ns(REPLY_PATIENCE);
    while asking.asked.get() > asking.answered.get() && clock.now_ns() < patient_until {
        if asking.fault.borrow().is_some() || site.stopped() {
            break;
        }
        ticker.wait_ns(1_000_000).await?;
    }
    progress.clear();
    let missing = asking.asked.get() - asking.answered.get();
    asking.closed.set(true);
    conns.iter().for_each(Conn::shut_down);
    if let Some(fault) = asking.fault.borrow_mut().take() {
        return Err(fault.at(format!("{missing} of {} replies are missing", asking.asked.get())));
    }
    let times = asking.times.borrow().clone();
    let report = RttReport {
        plan: plan.clone(),
        replies: times.len(),
        replies_per_s: times.len() as f64 / ((after.2 - before.2).max(1) as f64 / 1e9),
        rtt_us: Quantiles::of(&times),
        server: used(after.0, before.0),
        generator: after.1.since(before.1),
        storms: 0,
        missing,
        interrupted: site.stopped(),
    };
    Ok((report, times))
}

/// Opens all connections, the responders first, with their subscriptions in force.
async fn open_all(target: &Target, plan: &RoundTrips) -> Outcome<Vec<Conn>> {
    let mut conns = Vec::new();
    for number in 0..plan.responders + plan.requesters {
        let (conn, ..) = Conn::open(target, number).await?;
        let mut wire = Vec::new();
        match number.checked_sub(plan.responders) {
            None => push_sub("perf.rtt", Some("q"), 1, &mut wire),
            Some(asker) => push_sub(&inbox_subject(asker), None, 1, &mut wire),
        }
        wire.extend_from_slice(b"PING\r\n");
        conn.write(wire).await?;
        conn.await_pong(&mut Inbox::new(4096), &mut Scanner::new(0)).await?;
        conns.push(conn);
    }
    Ok(conns)
}

fn inbox_subject(asker: usize) -> String {
    format!("_INBOX.perf.{asker}")
}

/// Sends each request's payload size back.
pub(crate) async fn respond(conn: &Conn) -> Outcome<()> {
    let (mut inbox, mut scanner) = (Inbox::new(256 << 10), Scanner::new(0));
    loop {
        conn.fill(&mut inbox).await?;
        let mut replies = Vec::new();
        let seen = scanner.scan(inbox.bytes(), |message| {
            let bytes = message.line.rsplit(|&b| b == b' ').next().unwrap_or(b"0");
            let bytes = std::str::from_utf8(bytes).ok().and_then(|n| n.parse().ok()).unwrap_or(0);
            if let Some(reply) = message.reply() {
                push_pub(&String::from_utf8_lossy(reply), "", bytes, &mut replies);
            }
        })?;
        inbox.consume(seen.used);
        conn.answer(seen.pings).await?;
        if !replies.is_empty() {
            conn.write(replies).await?;
        }
    }
}

fn push_pub(subject: &str, reply: &str, payload_bytes: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(format!("PUB {subject} {reply} {payload_bytes}\r\n").as_bytes());
    out.resize(out.len() + payload_bytes, b'r');
    out.extend_from_slice(b"\r\n");
}

/// Asks, one request at a time, until the window is over.
async fn ask(asking: &Asking, conn: &Conn, asker: usize) -> Outcome<()> {
    let (mut inbox, mut scanner) = (Inbox::new(64 << 10), Scanner::new(0));
    let mut ticker = Ticker::new()?;
    let mut request = Vec::new();
    if asking.plan.responders == 0 {
        request.extend_from_slice(b"PING\r\n");
    } else {
        let reply = inbox_subject(asker);
        push_pub("perf.rtt", &reply, asking.plan.payload_bytes, &mut request);
    }
    let window = asking.window_ns();
    for number in 0.. {
        let planned_ns = asking.plan.rate.map(|rate| {
            let before = (number * asking.plan.requesters + asker) as f64;
            asking.start_ns + duration_ns(Duration::from_secs_f64(before / rate))
        });
        while let now_ns = asking.clock.now_ns()
            && let Some(due_ns) = planned_ns
            && due_ns > now_ns
            && !asking.over.get()
        {
            ticker.wait_ns((due_ns - now_ns).min(LOOK_NS)).await?;
        }
        let begun_ns = planned_ns.unwrap_or_else(|| asking.clock.now_ns());
        if asking.over.get() || begun_ns >= window.end {
            break;
        }
        asking.asked.set(asking.asked.get() + 1);
        request = conn.write(request).await?;
        loop {
            conn.fill(&mut inbox).await?;
            let mut replies = 0;
            let seen = scanner.scan(inbox.bytes(), |_| replies += 1)?;
            inbox.consume(seen.used);
            conn.answer(seen.pings).await?;
            if replies + seen.pongs > 0 {
                break;
            }
        }
        asking.answered.set(asking.answered.get() + 1);
        if window.contains(&begun_ns) {
            let took_ns = asking.clock.now_ns().saturating_sub(begun_ns);
            asking.times.borrow_mut().saturating_record(took_ns);
        }
    }
    Ok(())
}

impl RttReport {
    /// What to compare it by.
    pub(crate) fn figures(&self) -> Figures {
        Figures {
            per_server_cpu_s: per_cpu_s(self.replies, self.server),
            per_s: Some(self.replies_per_s),
            times: self.rtt_us,
            ..Figures::default()
        }
    }

    /// Why the figures must not be used; empty when they may.
    pub(crate) fn invalid(&self) -> Vec<String> {
        let missing = (self.missing > 0).then(|| format!("{} replies are missing", self.missing));
        let stormless = (self.plan.stormers > 0 && self.storms == 0)
            .then(|| "the storm's connections have not come once: give --duration more".to_owned());
        missing.into_iter().chain(stormless).collect()
    }

    /// A few lines for people.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(out, "replies    {}/s", human(self.replies_per_s));
        if let Some(q) = self.rtt_us {
            let _ = writeln!(out, "{}", quantiles_text("round trip", &q));
        }
        if self.plan.stormers > 0 {
            let (storms, conns) = (self.storms, self.plan.stormers);
            let _ = writeln!(out, "beside     {storms} times {conns} connections at once");
        }
        push_usage(&mut out, self.server, self.generator);
        for fault in self.invalid() {
            let _ = writeln!(out, "INVALID    {fault}");
        }
        if self.interrupted {
            let _ = writeln!(out, "ended early by the user");
        }
        out
    }
}

fn push_usage(out: &mut String, server: Option<Usage>, generator: Usage) {
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
fn raise_file_limit(wanted: u64) -> Outcome<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    let raised = Rlimit { current: Some(wanted), maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).map_err(|e| {
        Fault::new(
            format!("{wanted} files cannot be open at once ({e})"),
            format!("run `ulimit -Hn {wanted}` as root first, or lower --conns"),
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
    let (mut inbox, mut scanner) = (Inbox::new(4096), Scanner::new(0));
    let outcome: Outcome<()> = async {
        loop {
            conn.fill(&mut inbox).await?;
            let seen = scanner.scan(inbox.bytes(), |_| {})?;
            inbox.consume(seen.used);
            conn.answer(seen.pings).await?;
        }
    }
    .await;
    if let (Err(fault), false) = (outcome, opening.over.get()) {
        opening.fault.borrow_mut().get_or_insert(fault);
    }
}

/// How many of `count` a second of the server's CPU gives.
fn per_cpu_s(count: u64, server: Option<Usage>) -> Option<f64> {
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
