//! Requests and replies: of other clients, of the server itself, and of what it stores.

use crate::beside;
use crate::client::{Conn, Inbox, Target, with_ring};
use crate::clock::{Clock, Ticker, duration_ns};
use crate::desk::Desk;
use crate::fault::{Fault, Outcome};
use crate::link::{Link, cross};
use crate::load::{histogram, leave_half_of_the_cpus};
use crate::measure::Figures;
use crate::monitor::Rates;
use crate::probe::{LOOK_NS, Site, per_cpu_s, push_usage, raise_file_limit, used};
use crate::report::{Progress, Quantiles, human, quantiles_text};
use crate::server::Usage;
use crate::stored::{Delivered, SUBJECT, direct_get, keys};
use crate::wire::{Dialect, Message, Renderer, Scanner, Stamp, push_sub};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::Write as _;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// A reply that takes longer is missing.
const REPLY_PATIENCE: Duration = Duration::from_secs(5);
/// What is looked at of a reply, in bytes: enough to tell a refusal.
const SHOWN_BYTES: usize = 200;

/// Who answers a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
pub(crate) enum Service {
    /// The responders; without them the server answers a PING
    Reply,
    /// A stream: it acknowledges that it has stored a message
    Publish,
    /// A key-value bucket: it acknowledges the new value of one of 1000 keys
    Put,
    /// A key-value bucket: it gives the value of one of 1000 keys, read directly
    Get,
    /// The server: it acknowledges a message of QoS 1 over MQTT
    Mqtt,
}

impl Service {
    /// Makes what answers, and what it has to know.
    async fn prepare(self, target: &Target, payload_bytes: usize) -> Outcome<()> {
        if matches!(self, Self::Reply | Self::Mqtt) {
            return Ok(());
        }
        let mut desk = Desk::open(target).await?;
        match self {
            Self::Reply | Self::Mqtt => {}
            Self::Publish => desk.make_stream().await?,
            Self::Put => desk.make_bucket().await?,
            Self::Get => {
                desk.make_bucket().await?;
                let keys = keys();
                desk.fill(&keys, keys.len(), payload_bytes).await?;
            }
        }
        Ok(())
    }

    /// Refuses what is no answer.
    fn check(self, message: &Message<'_>) -> Outcome<()> {
        let good = match self {
            Self::Reply | Self::Mqtt => true,
            Self::Publish | Self::Put => message.prefix.starts_with(b"{\"stream\""),
            Self::Get => !message.prefix.is_empty(),
        };
        if good {
            return Ok(());
        }
        let text = String::from_utf8_lossy(message.prefix);
        let cause = format!("a request is answered with '{text}'");
        Err(Fault::new(cause, "look into the server's log, or ask for less at once"))
    }
}

/// How to measure round trips.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct RoundTrips {
    /// Connections that ask.
    pub(crate) requesters: usize,
    /// Connections that answer, in one queue group; 0: the server answers a PING.
    pub(crate) responders: usize,
    /// Connections that publish as fast as they can meanwhile, to a subject that nobody hears.
    pub(crate) flooders: usize,
    /// Connections that come and go all at once meanwhile, over and over.
    pub(crate) stormers: usize,
    /// Who answers.
    pub(crate) service: Service,
    /// What joins the server of those who ask with that of those who answer.
    pub(crate) link: Option<Link>,
    /// Requests that each connection has under way.
    pub(crate) outstanding: usize,
    /// Connections that are sent what is put.
    pub(crate) watchers: usize,
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
    /// What watchers were sent in the window.
    watched: u64,
    /// Replies, or, with watchers, what these were sent, per second.
    per_s: f64,
    /// From the request's (intended) time to the reply, in microseconds.
    rtt_us: Option<Quantiles>,
    server: Option<Usage>,
    /// What the server counted, from the first request to the last reply.
    counted: Option<Rates>,
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
    watched: Cell<u64>,
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

    /// Replies that have not come yet, and what watchers have not been sent.
    fn missing(&self) -> u64 {
        let owed = self.answered.get() * self.plan.watchers as u64;
        self.asked.get() - self.answered.get() + owed.saturating_sub(self.watched.get())
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
    if plan.requesters == 0 || plan.outstanding == 0 {
        return Err(Fault::new("nobody asks", "give --requesters and --outstanding at least 1"));
    }
    if plan.rate.is_some() && plan.outstanding > 1 {
        let cause = "a request of a fixed rate does not wait for others";
        return Err(Fault::new(cause, "leave --rate or --outstanding out"));
    }
    if plan.watchers > 0 && plan.service != Service::Put {
        return Err(Fault::new("there is nothing to watch", "give --of put, or no --watchers"));
    }
    raise_file_limit(
        (plan.stormers + plan.watchers + 3 * plan.requesters + plan.responders + plan.flooders)
            as u64
            + 64,
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
        let asked = with_ring(
            plan.requesters + plan.responders + plan.watchers,
            rtt_on_ring(site, plan, progress),
        );
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
    plan.service.prepare(site.target, plan.payload_bytes).await?;
    let watching = open_watchers(site.target, plan.watchers).await?;
    let mut conns = open_all(site, plan).await?;
    let counters = site.counters(); // Not at the window's ends: requests would wait for them.
    let clock = Clock::start();
    let asking = Rc::new(Asking {
        plan: plan.clone(),
        clock,
        start_ns: clock.now_ns() + 1_000_000,
        times: RefCell::new(histogram()),
        asked: Cell::new(0),
        answered: Cell::new(0),
        watched: Cell::new(0),
        over: Cell::new(false),
        closed: Cell::new(false),
        fault: RefCell::new(None),
    });
    spawn_all(&asking, &conns, &watching);
    conns.extend(watching);
    let window = asking.window_ns();
    let mut ticker = Ticker::new()?;
    let sample = || (site.usage(), Usage::of_self(), clock.now_ns(), asking.watched.get());
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
    while asking.missing() > 0 && clock.now_ns() < patient_until {
        if asking.fault.borrow().is_some() || site.stopped() {
            break;
        }
        ticker.wait_ns(1_000_000).await?;
    }
    progress.clear();
    let counted = site.counters().zip(counters).map(|(after, before)| after.since(before));
    let missing = asking.missing();
    asking.closed.set(true);
    conns.iter().for_each(Conn::shut_down);
    if let Some(fault) = asking.fault.borrow_mut().take() {
        return Err(fault.at(format!("{missing} of {} replies are missing", asking.asked.get())));
    }
    let times = asking.times.borrow().clone();
    let seconds = (after.2 - before.2).max(1) as f64 / 1e9;
    let watched = after.3 - before.3;
    let report = RttReport {
        plan: plan.clone(),
        replies: times.len(),
        replies_per_s: times.len() as f64 / seconds,
        watched,
        per_s: (if plan.watchers > 0 { watched } else { times.len() }) as f64 / seconds,
        rtt_us: Quantiles::of(&times),
        server: used(after.0, before.0),
        counted,
        generator: after.1.since(before.1),
        storms: 0,
        missing,
        interrupted: site.stopped(),
    };
    Ok((report, times))
}

/// Has each connection do its part.
fn spawn_all(asking: &Rc<Asking>, conns: &[Conn], watching: &[Conn]) {
    for conn in watching {
        let (asking, conn) = (Rc::clone(asking), conn.clone());
        drop(tokio_uring::spawn(async move { asking.note(watch(&asking, &conn).await) }));
    }
    for (number, conn) in conns.iter().enumerate() {
        let (asking, conn) = (Rc::clone(asking), conn.clone());
        drop(tokio_uring::spawn(async move {
            asking.note(match number.checked_sub(asking.plan.responders) {
                None => respond(&conn).await,
                Some(asker) => ask(&asking, &conn, asker).await,
            });
        }));
    }
}

/// Opens the connections of watchers, each with its consumer.
async fn open_watchers(target: &Target, count: usize) -> Outcome<Vec<Conn>> {
    let mut conns = Vec::new();
    if count > 0 {
        let mut desk = Desk::open(target).await?;
        for number in 0..count {
            let subject = format!("_INBOX.perf.watch.{number}");
            conns.push(open_with(target, number, |wire| push_sub(&subject, None, 1, wire)).await?);
            desk.watch(&subject).await?;
        }
    }
    Ok(conns)
}

/// Opens a connection; what `subscribe` writes is in force.
async fn open_with(
    target: &Target,
    number: usize,
    subscribe: impl FnOnce(&mut Vec<u8>),
) -> Outcome<Conn> {
    let (conn, ..) = Conn::open(target, number).await?;
    let mut wire = Vec::new();
    subscribe(&mut wire);
    wire.extend_from_slice(conn.dialect().ping());
    conn.write(wire).await?;
    conn.await_pong(&mut Inbox::new(4096), &mut conn.scanner(0)).await?;
    Ok(conn)
}

/// Counts what a watcher is sent.
async fn watch(asking: &Asking, conn: &Conn) -> Outcome<()> {
    let (mut inbox, mut scanner) = (Inbox::new(256 << 10), Scanner::new(0));
    loop {
        conn.fill(&mut inbox).await?;
        let mut delivered = Delivered::default();
        let seen = scanner.scan(inbox.bytes(), |message| delivered.count(&message, false))?;
        inbox.consume(seen.used);
        asking.watched.set(asking.watched.get() + delivered.messages);
        conn.answer(seen.owed).await?;
        if !delivered.answers.is_empty() {
            conn.write(delivered.answers).await?;
        }
    }
}

/// Opens all connections, the responders first, with their subscriptions in force.
async fn open_all(site: &Site<'_>, plan: &RoundTrips) -> Outcome<Vec<Conn>> {
    let mut conns = Vec::new();
    for number in 0..plan.responders + plan.requesters {
        let subscribe = |wire: &mut Vec<u8>| match number.checked_sub(plan.responders) {
            None => push_sub("perf.rtt", Some("q"), 1, wire),
            _ if plan.service == Service::Mqtt => {}
            Some(asker) if plan.service == Service::Reply => {
                push_sub(&inbox_subject(asker), None, 1, wire);
            }
            Some(asker) => push_sub(&format!("{}.*", inbox_subject(asker)), None, 1, wire),
        };
        let target = if number < plan.responders { site.far } else { site.target };
        conns.push(open_with(target, number, subscribe).await?);
    }
    if plan.link.is_some() {
        cross(site.target, site.far).await?;
        cross(site.far, site.target).await?;
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
        conn.answer(seen.owed).await?;
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

/// The requests of one connection, one after the other.
struct Requester {
    service: Service,
    /// Where requests go, in turn; nowhere where the server answers PINGs.
    subjects: Vec<String>,
    inbox: String,
    payload: Vec<u8>,
    number: usize,
    /// For MQTT.
    packets: Renderer,
}

impl Requester {
    fn new(plan: &RoundTrips, asker: usize) -> Self {
        let subjects = match plan.service {
            Service::Reply if plan.responders == 0 => Vec::new(),
            Service::Mqtt => Vec::new(),
            Service::Reply => vec!["perf.rtt".to_owned()],
            Service::Publish => vec![SUBJECT.to_owned()],
            Service::Put => keys(),
            Service::Get => keys().iter().map(|key| direct_get(key)).collect(),
        };
        let bytes = if plan.service == Service::Get { 0 } else { plan.payload_bytes };
        let (inbox, payload) = (inbox_subject(asker), vec![b'r'; bytes]);
        let to = ["perf.mqtt".to_owned()];
        let packets = Renderer::of(Dialect::Mqtt(1), &to, plan.payload_bytes, 0);
        Self { service: plan.service, subjects, inbox, payload, number: 0, packets }
    }

    /// Appends the next request. What is stored has a reply subject of its own each time, as
    /// clients do that have many requests under way.
    fn push(&mut self, out: &mut Vec<u8>) {
        let Self { subjects, inbox, payload, number, .. } = self;
        if self.service == Service::Mqtt {
            self.packets.push(Stamp { intended_ns: 0, publisher: 0, sequence: 0 }, out);
            *number += 1;
            return;
        }
        let bytes = payload.len();
        let subject = subjects.get(*number % subjects.len().max(1));
        // Writing to a Vec cannot fail.
        let _ = match (subject, self.service) {
            (None, _) => write!(out, "PING\r\n"),
            (Some(subject), Service::Reply) => write!(out, "PUB {subject} {inbox} {bytes}\r\n"),
            (Some(subject), _) => write!(out, "PUB {subject} {inbox}.{number} {bytes}\r\n"),
        };
        if subject.is_some() {
            out.extend_from_slice(payload);
            out.extend_from_slice(b"\r\n");
        }
        *number += 1;
    }
}

/// Asks, with as many requests under way as there may be, until the window is over. Replies are
/// taken to come in the order of their requests.
async fn ask(asking: &Asking, conn: &Conn, asker: usize) -> Outcome<()> {
    let plan = &asking.plan;
    let (mut inbox, mut scanner) = (Inbox::new(64 << 10), conn.scanner(SHOWN_BYTES));
    let (mut ticker, mut requester) = (Ticker::new()?, Requester::new(plan, asker));
    let (mut wire, mut under_way) = (Vec::new(), VecDeque::new());
    let window = asking.window_ns();
    loop {
        wire.clear();
        let mut now_ns = asking.clock.now_ns();
        while under_way.len() < plan.outstanding {
            let planned_ns = plan.rate.map(|rate| {
                let before = (requester.number * plan.requesters + asker) as f64;
                asking.start_ns + duration_ns(Duration::from_secs_f64(before / rate))
            });
            while let Some(due_ns) = planned_ns
                && due_ns > now_ns
                && !asking.over.get()
            {
                ticker.wait_ns((due_ns - now_ns).min(LOOK_NS)).await?;
                now_ns = asking.clock.now_ns();
            }
            let begun_ns = planned_ns.unwrap_or(now_ns);
            if asking.over.get() || begun_ns >= window.end {
                break;
            }
            requester.push(&mut wire);
            under_way.push_back(begun_ns);
            asking.asked.set(asking.asked.get() + 1);
        }
        if !wire.is_empty() {
            wire = conn.write(wire).await?;
        }
        if under_way.is_empty() {
            return Ok(());
        }
        conn.fill(&mut inbox).await?;
        let (mut replies, mut good) = (0, Ok(()));
        let seen = scanner.scan(inbox.bytes(), |message| {
            replies += 1;
            if good.is_ok() {
                good = plan.service.check(&message);
            }
        })?;
        good?;
        inbox.consume(seen.used);
        conn.answer(seen.owed).await?;
        let now_ns = asking.clock.now_ns();
        for begun_ns in under_way.drain(..(replies + seen.pongs).min(under_way.len())) {
            asking.answered.set(asking.answered.get() + 1);
            if window.contains(&begun_ns) {
                asking.times.borrow_mut().saturating_record(now_ns.saturating_sub(begun_ns));
            }
        }
    }
}

impl RttReport {
    /// What to compare it by.
    pub(crate) fn figures(&self) -> Figures {
        Figures {
            per_server_cpu_s: per_cpu_s(
                if self.plan.watchers > 0 { self.watched } else { self.replies },
                self.server,
            ),
            per_s: Some(self.per_s),
            times: self.rtt_us,
            counted: self.counted,
            ..Figures::default()
        }
    }

    /// Why the figures must not be used; empty when they may.
    pub(crate) fn invalid(&self) -> Vec<String> {
        let missing = (self.missing > 0)
            .then(|| format!("{} replies or watched values are missing", self.missing));
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
        if self.plan.watchers > 0 {
            let _ = writeln!(out, "watched    {}/s", human(self.per_s));
        }
        if self.plan.stormers > 0 {
            let (storms, conns) = (self.storms, self.plan.stormers);
            let _ = writeln!(out, "beside     {storms} times {conns} connections at once");
        }
        push_usage(&mut out, self.server, self.generator);
        if let Some(each) = self.figures().per_server_cpu_s {
            let _ = writeln!(out, "           {} per CPU second", human(each));
        }
        if let Some(counted) = self.counted {
            let _ = writeln!(out, "counted    {}", counted.text());
        }
        for fault in self.invalid() {
            let _ = writeln!(out, "INVALID    {fault}");
        }
        if self.interrupted {
            let _ = writeln!(out, "ended early by the user");
        }
        out
    }
}
