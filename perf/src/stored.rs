//! What a server stores: streams and key-value buckets, and how fast a stream is read.

use crate::client::{Conn, Inbox, with_ring};
use crate::clock::{Clock, Ticker, duration_ns};
use crate::desk::Desk;
use crate::fault::{Fault, Outcome};
use crate::load::{histogram, leave_half_of_the_cpus};
use crate::measure::Figures;
use crate::probe::{Site, per_cpu_s, push_usage, used};
use crate::report::{Progress, Quantiles, human, quantiles_text};
use crate::server::Usage;
use crate::wire::{Message, Scanner, push_sub};
use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::time::Duration;

/// The stream, and the subject that it stores.
const STREAM: &str = "PERF";
pub(crate) const SUBJECT: &str = "perf.stored";
/// The stream of the key-value bucket, and what its subjects begin with.
const BUCKET: &str = "KV_perf";
const KEYS: usize = 1000;
/// Messages that are stored before the last of them has to be acknowledged: a server may refuse
/// what it has no room to wait.
const FILL_MESSAGES: usize = 1000;
/// Behind the window a message that takes longer is missing.
const PATIENCE: Duration = Duration::from_secs(30);
/// Where a consumer's messages go.
const DELIVERIES: &str = "_INBOX.perf.stored";
/// Messages that a consumer has waiting for their acknowledgement, at most.
const ACKS_PENDING: usize = 1000;

/// The subjects of the bucket's keys.
pub(crate) fn keys() -> Vec<String> {
    (0..KEYS).map(|key| format!("$KV.perf.key-{key}")).collect()
}

/// What reads the value of the key with this subject, without its stream's leader.
pub(crate) fn direct_get(key: &str) -> String {
    format!("$JS.API.DIRECT.GET.{BUCKET}.{key}")
}

impl Desk {
    /// Asks the JetStream API.
    async fn api(&mut self, what: &str, body: Option<&Value>) -> Outcome<Value> {
        let subject = format!("$JS.API.{what}");
        let body = body.map(Value::to_string).unwrap_or_default();
        let answer = self.ask(&subject, &body).await?;
        match answer.get("error") {
            None => Ok(answer),
            Some(error) => Err(Fault::new(
                format!("{subject} is refused: {error}"),
                "start the server with streams, as in '-js -sd {store}'",
            )),
        }
    }

    /// Makes the stream.
    pub(crate) async fn make_stream(&mut self) -> Outcome<()> {
        let stream = json!({
            "name": STREAM, "subjects": [SUBJECT], "storage": "file", "retention": "limits",
        });
        self.api(&format!("STREAM.CREATE.{STREAM}"), Some(&stream)).await.map(|_| ())
    }

    /// Makes the key-value bucket, as clients do.
    pub(crate) async fn make_bucket(&mut self) -> Outcome<()> {
        let bucket = json!({
            "name": BUCKET, "subjects": ["$KV.perf.>"], "storage": "file", "discard": "new",
            "max_msgs_per_subject": 1, "allow_direct": true, "allow_rollup_hdrs": true,
            "deny_delete": true,
        });
        self.api(&format!("STREAM.CREATE.{BUCKET}"), Some(&bucket)).await.map(|_| ())
    }

    /// Stores `count` messages of `payload_bytes` to `subjects` in turn.
    pub(crate) async fn fill(
        &mut self,
        subjects: &[String],
        count: usize,
        payload_bytes: usize,
    ) -> Outcome<()> {
        let payload = "s".repeat(payload_bytes);
        let mut wire = Vec::new();
        for number in 1..=count {
            let subject = &subjects[number % subjects.len()];
            if !number.is_multiple_of(FILL_MESSAGES) && number < count {
                let publish = format!("PUB {subject} {payload_bytes}\r\n{payload}\r\n");
                wire.extend_from_slice(publish.as_bytes());
                continue;
            }
            wire = self.conn.write(wire).await?;
            wire.clear();
            let stored = self.ask(subject, &payload).await?;
            if stored["seq"] != number {
                let cause = format!("message {number} is acknowledged with {stored}");
                return Err(Fault::new(cause, "look into the server's log"));
            }
        }
        Ok(())
    }
}

/// How a stream is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
pub(crate) enum Way {
    /// In batches that the client asks for, one after the other
    Fetch,
    /// The server sends on by itself, with flow control
    Push,
}

/// How to read a stream.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Reading {
    /// How.
    pub(crate) way: Way,
    /// Whether each message is acknowledged.
    pub(crate) acked: bool,
    /// Messages of a batch.
    pub(crate) batch: usize,
    /// Messages that the stream has. It is read again and again.
    pub(crate) messages: usize,
    /// Payload of each, in bytes.
    pub(crate) payload_bytes: usize,
    /// Time before the measured window.
    pub(crate) warmup: Duration,
    /// Length of the measured window.
    pub(crate) duration: Duration,
}

/// What `read` found.
#[derive(Debug, Serialize)]
pub(crate) struct ReadingReport {
    plan: Reading,
    /// Messages that came in the window.
    read: u64,
    read_per_s: f64,
    per_server_cpu_s: Option<f64>,
    /// From a request to the last message of its batch, in microseconds.
    batch_us: Option<Quantiles>,
    server: Option<Usage>,
    generator: Usage,
    generator_ns_each: f64,
    /// Messages that came too often, or never.
    pub(crate) miscounted: u64,
    /// Whether the user ended it early.
    pub(crate) interrupted: bool,
}

/// Fills a stream and reads it; gives the times of the batches in nanoseconds too.
pub(crate) fn read(
    site: &Site<'_>,
    plan: &Reading,
    progress: &mut Progress,
) -> Outcome<(ReadingReport, Histogram<u64>)> {
    if plan.messages == 0 || plan.batch == 0 {
        return Err(Fault::new("nothing to read", "give --messages and --batch at least 1"));
    }
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            leave_half_of_the_cpus();
            with_ring(2, read_on_ring(site, plan, progress))
        });
        reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

async fn read_on_ring(
    site: &Site<'_>,
    plan: &Reading,
    progress: &mut Progress,
) -> Outcome<(ReadingReport, Histogram<u64>)> {
    let mut desk = Desk::open(site.target).await?;
    desk.make_stream().await?;
    desk.fill(&[SUBJECT.to_owned()], plan.messages, plan.payload_bytes).await?;
    let mut reader = Reader::open(site, plan).await?;
    let clock = reader.clock;
    let from_ns = clock.now_ns() + duration_ns(plan.warmup);
    let window = from_ns..from_ns + duration_ns(plan.duration);
    let window_ns = duration_ns(plan.warmup + plan.duration);
    let watched = [desk.conn.clone(), reader.conn.clone()];
    let mut ticker = Ticker::new()?;
    let watch = tokio_uring::spawn(async move {
        // Who waits for a message then finds the connection closed.
        if ticker.wait_ns(window_ns + duration_ns(PATIENCE)).await.is_ok() {
            watched.iter().for_each(Conn::shut_down);
        }
    });
    let mut miscounted = 0;
    while clock.now_ns() < window.end && !site.stopped() {
        let consumer = desk.make_consumer(plan).await?;
        miscounted += reader.read_all(&consumer, window.clone(), progress).await?;
        desk.api(&format!("CONSUMER.DELETE.{STREAM}.{consumer}"), None).await?;
    }
    watch.abort();
    progress.clear();
    // The window may have ended while a consumer was made, or the run before the window.
    reader.sample(clock.now_ns().max(window.end), &window);
    let [before, after] = reader.samples.map(Option::unwrap_or_default);
    let (read, server) = (after.read - before.read, used(after.server, before.server));
    let generator = after.generator.since(before.generator);
    let report = ReadingReport {
        plan: plan.clone(),
        read,
        read_per_s: read as f64 * 1e9 / after.at_ns.saturating_sub(before.at_ns).max(1) as f64,
        per_server_cpu_s: per_cpu_s(read, server),
        batch_us: Quantiles::of(&reader.times),
        server,
        generator,
        generator_ns_each: generator.cpu_s() * 1e9 / read.max(1) as f64,
        miscounted,
        interrupted: site.stopped(),
    };
    Ok((report, reader.times))
}

impl Desk {
    /// Makes a consumer of the stream from its first message on; gives its name.
    async fn make_consumer(&mut self, plan: &Reading) -> Outcome<String> {
        let mut config = json!({
            "deliver_policy": "all", "replay_policy": "instant",
            "ack_policy": if plan.acked { "explicit" } else { "none" },
        });
        if plan.acked {
            config["max_ack_pending"] = ACKS_PENDING.max(plan.batch).into();
        }
        if plan.way == Way::Push {
            config["deliver_subject"] = DELIVERIES.into();
            config["flow_control"] = true.into();
            config["idle_heartbeat"] = 5_000_000_000_u64.into();
        }
        self.make_consumer_of(STREAM, &config).await
    }

    /// Makes a consumer of the bucket that sends what is put to `subject`, as a watch does.
    pub(crate) async fn watch(&mut self, subject: &str) -> Outcome<()> {
        let config = json!({
            "deliver_policy": "last_per_subject", "filter_subject": "$KV.perf.>",
            "replay_policy": "instant", "ack_policy": "none",
            "deliver_subject": subject, "flow_control": true, "max_deliver": 1,
            "idle_heartbeat": 5_000_000_000_u64, "mem_storage": true, "num_replicas": 1,
        });
        self.make_consumer_of(BUCKET, &config).await.map(|_| ())
    }

    async fn make_consumer_of(&mut self, stream: &str, config: &Value) -> Outcome<String> {
        let body = json!({"stream_name": stream, "config": config});
        let made = self.api(&format!("CONSUMER.CREATE.{stream}"), Some(&body)).await?;
        made["name"].as_str().map(str::to_owned).ok_or_else(|| {
            Fault::new(format!("a consumer has no name: {made}"), "look into the server's log")
        })
    }
}

/// What a consumer has sent, besides messages.
#[derive(Default)]
pub(crate) struct Delivered {
    /// Messages of the stream.
    pub(crate) messages: u64,
    /// Heartbeats, and why a batch ends early.
    notices: u64,
    /// What is owed to the server for them.
    pub(crate) answers: Vec<u8>,
}

impl Delivered {
    /// Counts `message`, which may be a question of flow control in place of one.
    pub(crate) fn count(&mut self, message: &Message<'_>, acked: bool) {
        let Some(reply) = message.reply() else {
            self.notices += 1;
            return;
        };
        let flow = reply.starts_with(b"$JS.FC.");
        self.messages += u64::from(!flow);
        if flow || acked {
            self.answers.extend_from_slice(b"PUB ");
            self.answers.extend_from_slice(reply);
            self.answers.extend_from_slice(b" 0\r\n\r\n");
        }
    }
}

/// The counters at one end of the window.
#[derive(Clone, Copy, Default)]
struct Sample {
    at_ns: u64,
    read: u64,
    server: Option<Usage>,
    generator: Usage,
}

struct Reader<'a> {
    site: &'a Site<'a>,
    plan: &'a Reading,
    conn: Conn,
    inbox: Inbox,
    scanner: Scanner,
    clock: Clock,
    read: u64,
    samples: [Option<Sample>; 2],
    times: Histogram<u64>,
}

impl<'a> Reader<'a> {
    async fn open(site: &'a Site<'a>, plan: &'a Reading) -> Outcome<Self> {
        let (conn, ..) = Conn::open(site.target, 0).await?;
        let mut wire = Vec::new();
        push_sub(DELIVERIES, None, 1, &mut wire);
        wire.extend_from_slice(b"PING\r\n");
        conn.write(wire).await?;
        let (mut inbox, mut scanner) = (Inbox::new(256 << 10), Scanner::new(0));
        conn.await_pong(&mut inbox, &mut scanner).await?;
        let (clock, samples, times) = (Clock::start(), [None; 2], histogram());
        Ok(Self { site, plan, conn, inbox, scanner, clock, read: 0, samples, times })
    }

    /// Reads all that `consumer` has, or until the window ends; gives how many messages were
    /// too many.
    async fn read_all(
        &mut self,
        consumer: &str,
        window: std::ops::Range<u64>,
        progress: &mut Progress,
    ) -> Outcome<u64> {
        let (all, plan) = (self.plan.messages as u64, self.plan);
        let (mut left, mut asked, mut asked_ns) = (all, 0, 0);
        while left > 0 && !self.site.stopped() {
            let mut delivered = Delivered::default();
            let seen = self.scanner.scan(self.inbox.bytes(), |message| {
                delivered.count(&message, plan.acked);
            })?;
            self.inbox.consume(seen.used);
            self.conn.answer(seen.owed).await?;
            self.read += delivered.messages;
            let now_ns = self.clock.now_ns();
            progress.show(now_ns, window.end, self.read);
            self.sample(now_ns, &window);
            if plan.way == Way::Fetch && delivered.notices > 0 {
                return Err(Fault::new("a batch is refused or ended early", "report this bug"));
            }
            if delivered.messages > left {
                return Ok(delivered.messages - left);
            }
            left -= delivered.messages;
            let mut wire = delivered.answers;
            if plan.way == Way::Fetch && left > 0 && asked <= delivered.messages {
                if asked > 0 && window.contains(&asked_ns) {
                    self.times.saturating_record(now_ns - asked_ns);
                }
                asked = left.min(plan.batch as u64);
                asked_ns = now_ns;
                push_fetch(consumer, asked, &mut wire);
            } else {
                asked -= delivered.messages.min(asked);
            }
            if !wire.is_empty() {
                self.conn.write(wire).await?;
            }
            if left == 0 || self.samples[1].is_some() {
                return Ok(0);
            }
            self.conn.fill(&mut self.inbox).await?;
        }
        Ok(0)
    }

    fn sample(&mut self, now_ns: u64, window: &std::ops::Range<u64>) {
        let due = [window.start, window.end].map(|end_ns| now_ns >= end_ns);
        for (at, due) in due.into_iter().enumerate() {
            if due && self.samples[at].is_none() {
                let (server, generator) = (self.site.usage(), Usage::of_self());
                let at_ns = self.clock.now_ns();
                self.samples[at] = Some(Sample { at_ns, read: self.read, server, generator });
            }
        }
    }
}

fn push_fetch(consumer: &str, messages: u64, out: &mut Vec<u8>) {
    let body = json!({"batch": messages, "expires": 5_000_000_000_u64}).to_string();
    let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{consumer}");
    let request = format!("PUB {subject} {DELIVERIES} {}\r\n{body}\r\n", body.len());
    out.extend_from_slice(request.as_bytes());
}

impl ReadingReport {
    /// What to compare it by.
    pub(crate) fn figures(&self) -> Figures {
        Figures {
            per_server_cpu_s: self.per_server_cpu_s,
            per_s: Some(self.read_per_s),
            generator_ns_each: Some(self.generator_ns_each),
            times: self.batch_us,
            ..Figures::default()
        }
    }

    /// Why the figures must not be used; empty when they may.
    pub(crate) fn invalid(&self) -> Vec<String> {
        let wrong = self.miscounted > 0;
        let wrong = wrong.then(|| format!("{} messages came too often", self.miscounted));
        wrong.into_iter().chain((self.read == 0).then(|| "nothing was read".to_owned())).collect()
    }

    /// A few lines for people.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(out, "read       {}/s", human(self.read_per_s));
        if let Some(q) = self.batch_us {
            let _ = writeln!(out, "{}", quantiles_text("batch", &q));
        }
        push_usage(&mut out, self.server, self.generator);
        if let Some(each) = self.per_server_cpu_s {
            let _ = writeln!(out, "           {} per CPU second", human(each));
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
