//! The command line: every option with its default and unit.

use crate::admin::{self, Admin};
use crate::client::{Access, Identity, Target};
use crate::clock::{parse_bytes, parse_duration};
use crate::fault::{Fault, Outcome};
use crate::link::Link;
use crate::load::{Pace, Plan, Workload};
use crate::measure::Work;
use crate::neighbour::Neighbour;
use crate::probe::{Storm, Subscribing};
use crate::requests::{RoundTrips, Service};
use crate::server::{Setup, Started, Usage, free_port, permissions};
use crate::stored::{Reading, Way};
use crate::tls::{Tls, TlsArgs};
use crate::wire::Dialect;
use clap::{Args, Parser, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Measures latency under load, throughput and CPU of any NATS server.
#[derive(Debug, Parser)]
#[command(name = "shardcast-perf", version, about)]
pub(crate) struct Cli {
    /// What to measure.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The measurements.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Publish as fast as the server delivers; rates, CPU, verified counts.
    Throughput(One<ThroughputArgs>),
    /// Publish at a fixed rate, whatever the server does; latency from the intended send time.
    Latency(One<LatencyArgs>),
    /// Request and reply
    Rtt(One<RttArgs>),
    /// Fill a stream, and read it again and again
    Read(One<ReadArgs>),
    /// Open many connections at once; rate, and time until each is ready
    Connect(One<ConnectArgs>),
    /// Hold many idle connections; the server's memory for each
    Idle(One<IdleArgs>),
    /// Make very many subscriptions; rate, and the server's memory for each
    Subs(One<SubsArgs>),
    /// The most that sending can reach: one thread pours prepared deliveries to all subscribers
    /// through the broker's own reactor; its CPU, in the place of a server's
    Ceiling(CeilingArgs),
    /// What `ceiling` starts and measures.
    #[command(hide = true)]
    Pour(PourArgs),
    /// Everything at once for a long time on one server: samples of memory, files and latency
    Soak(SoakArgs),
    /// Compare servers: each scenario on each server in turn, several times.
    Compare(CompareArgs),
}

/// A measurement of one server.
#[derive(Debug, Args)]
pub(crate) struct One<T: Args> {
    /// The server.
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// What to do to it.
    #[command(flatten)]
    pub(crate) work: T,
    /// Where the results go.
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Which server, and as whom.
#[derive(Clone, Debug, Args)]
pub(crate) struct TargetArgs {
    /// nats://user:pass@host:port, tls://… or unix:/path, or a list with commas
    #[arg(long, default_value = "nats://127.0.0.1:4222", conflicts_with = "server")]
    url: String,
    /// Start this server and stop it at the end: 'COMMAND with {port}', and, if that is wanted,
    /// with {monitor} for its monitoring port
    #[arg(long, value_name = "COMMAND")]
    server: Option<String>,
    /// Process id of the server, for its CPU and memory
    #[arg(long, conflicts_with = "server")]
    pid: Option<u32>,
    /// Where a running shardcast's monitoring listens, to print what it counts
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "server")]
    monitor: Option<SocketAddr>,
    /// What gets a client in.
    #[command(flatten)]
    access: AccessArgs,
}

/// Credentials and TLS.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct AccessArgs {
    /// Credentials file (JWT and seed)
    #[arg(long, value_name = "FILE", conflicts_with = "nkey")]
    creds: Option<String>,
    /// File with the user's nkey seed
    #[arg(long, value_name = "FILE")]
    nkey: Option<String>,
    /// How to speak TLS.
    #[command(flatten)]
    tls: TlsArgs,
}

impl AccessArgs {
    /// Reads the files.
    pub(crate) fn load(&self) -> Outcome<Access> {
        let identity = Identity::load(self.creds.as_deref(), self.nkey.as_deref())?;
        Ok(Access { identity, tls: Tls::load(&self.tls)? })
    }
}

/// A server that can be measured now. It ends with this value, if this program started it.
#[derive(Debug)]
pub(crate) struct Subject {
    /// How to reach it.
    pub(crate) target: Target,
    /// How those reach it who subscribe and answer: of two linked servers the other one.
    pub(crate) far: Target,
    /// Its process, when it is known; of two linked servers both.
    pub(crate) pids: Vec<u32>,
    /// Where its monitoring listens, when that is known.
    pub(crate) monitor: Option<SocketAddr>,
    /// It, or both, if this program started it.
    pub(crate) started: Vec<Started>,
}

impl Subject {
    /// What its processes have used.
    pub(crate) fn usage(&self) -> Option<Usage> {
        Usage::of_all(&self.pids)
    }

    /// Whether it is two servers.
    pub(crate) fn is_linked(&self) -> bool {
        self.started.len() > 1
    }
}

impl TargetArgs {
    /// Starts the server if that was asked for.
    pub(crate) fn prepare(&self, setup: &Setup) -> Outcome<Subject> {
        let access = self.access.load()?;
        if let Some(command) = &self.server {
            return start(command, access, setup);
        }
        if let Some(pid) = self.pid
            && !PathBuf::from(format!("/proc/{pid}/stat")).exists()
        {
            let cause = format!("there is no process {pid}");
            return Err(Fault::new(cause, "give --pid of the running server"));
        }
        let target = Target::parse(&self.url, access)?;
        let (far, pids) = (target.clone(), self.pid.into_iter().collect());
        Ok(Subject { target, far, pids, monitor: self.monitor, started: Vec::new() })
    }
}

/// Starts `command`, which listens on `{port}`; where they are to be linked, a second server too,
/// by the command behind `&&`, or by the same.
pub(crate) fn start(command: &str, access: Access, setup: &Setup) -> Outcome<Subject> {
    let (near, far) = command.split_once(" && ").unwrap_or((command, command));
    let mut started = Vec::new();
    match setup.link {
        None => started.push(Started::start(near, &access, setup)?),
        Some(link) => {
            let configs = link.configs([free_port()?, free_port()?]);
            for (command, linked) in [near, far].into_iter().zip(configs) {
                let config = Some(setup.config.clone().unwrap_or_default() + &linked);
                let setup = Setup { config, ..setup.clone() };
                started.push(Started::start(command, &access, &setup)?);
            }
        }
    }
    let target = |server: &Started| server.target(&access);
    let pids = started.iter().map(Started::pid).collect();
    let monitor = started[0].monitor();
    let [near, far] = [&started[0], &started[started.len() - 1]].map(target);
    Ok(Subject { target: near, far, pids, monitor, started })
}

/// Where results go besides the terminal.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct OutputArgs {
    /// Write all figures as JSON here ('-': standard output, without the text)
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write HdrHistogram percentile files (milliseconds) here; a name is put before '.hgrm'
    /// when there are several
    #[arg(long, value_name = "FILE")]
    pub(crate) hgrm: Option<PathBuf>,
    /// Draw the percentile curves, or deliveries per CPU second, as SVG
    #[arg(long, value_name = "FILE")]
    pub(crate) plot: Option<PathBuf>,
}

/// Who publishes what to whom, and for how long.
#[derive(Clone, Debug, Args)]
pub(crate) struct LoadArgs {
    /// Publishing connections
    #[arg(long, default_value_t = 1)]
    pubs: usize,
    /// Subscribing connections
    #[arg(long, default_value_t = 1)]
    subs: usize,
    /// Distinct subjects, published to in a random order
    #[arg(long, default_value_t = 1)]
    subjects: usize,
    /// Connections that subscribe to each subject [default: all; 1 when there are several subjects]
    #[arg(long)]
    fanout: Option<usize>,
    /// Subscribe to one wildcard on each connection in place of the subjects
    #[arg(long, conflicts_with = "fanout")]
    wildcard: bool,
    /// Subscribe to as many wildcards as there are subjects in place of these, so that each
    /// subject has 1 to 5 subscriptions
    #[arg(long, conflicts_with = "fanout")]
    overlapping: bool,
    /// Deal the subscribers to so many queue groups; 0: none
    #[arg(long, default_value_t = 0)]
    queue_groups: usize,
    /// Give no two subscriptions the same sid
    #[arg(long)]
    own_sids: bool,
    /// Deal the subjects to the publishers; otherwise all publish to all
    #[arg(long)]
    own_subjects: bool,
    /// Open an idle connection before each subscribing one: a server that deals connections to two
    /// threads in turn then has publisher and subscribers on different ones
    #[arg(long)]
    idle_between: bool,
    /// Pairs of SUB and UNSUB per second on one more connection, during the load
    #[arg(long, default_value_t = 0.0)]
    churn: f64,
    /// Connections that subscribe as the first so many do, and then read nothing
    #[arg(long, default_value_t = 0)]
    stalled: usize,
    /// First token of all subjects
    #[arg(long, default_value = "perf")]
    subject: String,
    /// Payload in bytes (128, 16KiB, …)
    #[arg(long, default_value = "128", value_parser = parse_bytes)]
    payload: usize,
    /// Header block in bytes; 0: no headers
    #[arg(long, default_value = "0", value_parser = parse_bytes)]
    headers: usize,
    /// Reply subject in bytes (8 or more); 0: none
    #[arg(long, default_value = "0", value_parser = parse_bytes)]
    reply: usize,
    /// Start the server with permissions to publish and subscribe (adds `-c FILE` to its command)
    #[arg(long)]
    permissions: bool,
    /// Start two servers, linked so: publishers are at the first, subscribers at the second
    #[arg(long, value_enum)]
    link: Option<Link>,
    /// Speak MQTT, with messages of this quality of service; a server without {mqtt} in its
    /// command is given a configuration with its port
    #[arg(long, value_name = "QOS", value_parser = clap::value_parser!(u8).range(..=1))]
    mqtt: Option<u8>,
    /// What stands for {shards} in the server's command
    #[arg(long, default_value_t = 1)]
    shards: usize,
    /// Check that each subscriber gets each publisher's messages in order
    #[arg(long)]
    verify: bool,
    /// Time before the measured window
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    warmup: Duration,
    /// Length of the measured window
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    duration: Duration,
    /// What a publisher writes at once in bytes, a message at least and a quarter of the window at
    /// most; with a fixed rate it writes what is due
    #[arg(long, default_value = "64KiB", value_parser = parse_bytes)]
    write: usize,
    /// Threads for the publishing connections
    #[arg(long, default_value_t = 1)]
    pub_threads: usize,
    /// Threads for the subscribing connections
    #[arg(long, default_value_t = 1)]
    sub_threads: usize,
    /// Read buffer of a subscribing connection in bytes; 0: 16 to 256 KiB by their number
    #[arg(long, default_value = "0", value_parser = parse_bytes)]
    read_buffer: usize,
}

impl LoadArgs {
    fn plan(&self, pace: impl FnOnce(&Workload) -> Pace) -> Outcome<Plan> {
        if self.pub_threads == 0 || self.sub_threads == 0 || self.duration.is_zero() {
            return Err(Fault::new("no thread or no time to run", "give more than 0"));
        }
        let bad = |c: char| c.is_whitespace() || matches!(c, '*' | '>');
        if self.subject.is_empty() || self.subject.contains(bad) {
            let cause = format!("'{}' is no first token of a subject", self.subject);
            return Err(Fault::new(cause, "give --subject a word without blanks and wildcards"));
        }
        let whole = self.subjects == 1 || self.queue_groups > 0 || self.wildcard;
        let usual = if whole { self.subs } else { self.subs.min(1) };
        let workload = Workload {
            pubs: self.pubs,
            subs: self.subs,
            subjects: self.subjects,
            fanout: self.fanout.unwrap_or(usual),
            wildcard: self.wildcard,
            overlapping: self.overlapping,
            own_sids: self.own_sids,
            own_subjects: self.own_subjects,
            idle_between: self.idle_between,
            churn_rate: self.churn,
            stalled: self.stalled,
            queue_groups: self.queue_groups,
            prefix: self.subject.clone(),
            payload_bytes: self.payload,
            header_bytes: self.headers,
            reply_bytes: self.reply,
            verify: self.verify,
            dialect: self.mqtt.map_or(Dialect::Nats, Dialect::Mqtt),
        };
        let pace = pace(&workload);
        workload.check(pace)?;
        Ok(Plan {
            workload,
            pace,
            warmup: self.warmup,
            duration: self.duration,
            pub_threads: self.pub_threads,
            sub_threads: self.sub_threads,
            setup: Setup {
                shards: self.shards,
                link: self.link,
                mqtt: self.mqtt,
                config: self.permissions.then(|| permissions(&self.subject)),
            },
            write_bytes: self.write,
            read_buffer_bytes: self.read_buffer,
        })
    }
}

/// Options that say what to measure.
pub(crate) trait Measures {
    /// What they say.
    fn work(&self) -> Outcome<Work>;
}

/// The window that was asked for, or else the one that suits the load.
fn window(given: Option<usize>, load: &Workload) -> u64 {
    given.map_or_else(|| load.usual_window_bytes(), |bytes| bytes as u64)
}

/// Options of `throughput`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ThroughputArgs {
    /// The load.
    #[command(flatten)]
    load: LoadArgs,
    /// Bytes that publishers may be ahead of the slowest subscriber (less when the copies of all
    /// subscribers exceed 256 MiB) [default: 2 MiB for all subscribers together, but 256 KiB to 1
    /// MiB for each]
    #[arg(long, value_parser = parse_bytes)]
    window: Option<usize>,
}

impl Measures for ThroughputArgs {
    fn work(&self) -> Outcome<Work> {
        let pace = |load: &Workload| Pace::Closed { window_bytes: window(self.window, load) };
        let plan = self.load.plan(pace)?;
        Ok(Work::Load { plan, lag_max_us: f64::INFINITY })
    }
}

/// Options of `latency`.
#[derive(Clone, Debug, Args)]
pub(crate) struct LatencyArgs {
    /// The load.
    #[command(flatten)]
    load: LoadArgs,
    /// Messages published per second, by all publishers together
    #[arg(long, default_value_t = 10_000.0)]
    rate: f64,
    /// How late the generator itself may be (99th percentile) before the run is invalid
    #[arg(long, default_value = "1ms", value_parser = parse_duration)]
    lag_max: Duration,
}

impl Measures for LatencyArgs {
    fn work(&self) -> Outcome<Work> {
        if !self.rate.is_finite() || self.rate <= 0.0 {
            return Err(Fault::new("the rate is not positive", "give --rate above 0"));
        }
        let plan = self.load.plan(|_| Pace::Open { rate: self.rate })?;
        Ok(Work::Load { plan, lag_max_us: self.lag_max.as_secs_f64() * 1e6 })
    }
}

/// Options of `ceiling`.
#[derive(Clone, Debug, Args)]
pub(crate) struct CeilingArgs {
    /// What to deliver to whom.
    #[command(flatten)]
    load: LoadArgs,
    /// Bytes that the slowest subscriber may be behind; see throughput
    #[arg(long, value_parser = parse_bytes)]
    window: Option<usize>,
    /// Bytes sent to a subscriber at once, at most
    #[arg(long, default_value = "256KiB", value_parser = parse_bytes)]
    batch: usize,
    /// Where the results go.
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

impl Measures for CeilingArgs {
    fn work(&self) -> Outcome<Work> {
        let plan = self.load.plan(|load| Pace::Poured {
            window_bytes: window(self.window, load),
            batch_bytes: self.batch as u64,
        })?;
        Ok(Work::Load { plan, lag_max_us: f64::INFINITY })
    }
}

/// Options of `pour`.
#[derive(Clone, Debug, Args)]
pub(crate) struct PourArgs {
    /// Port to listen on, on the loopback interface
    #[arg(long)]
    pub(crate) port: u16,
    /// Subscribers that will come
    #[arg(long)]
    pub(crate) subs: usize,
    /// Payload in bytes
    #[arg(long)]
    pub(crate) payload: usize,
    /// Header block in bytes; 0: no headers
    #[arg(long)]
    pub(crate) headers: usize,
    /// Reply subject in bytes; 0: none
    #[arg(long)]
    pub(crate) reply: usize,
    /// Bytes sent to a subscriber at once, about
    #[arg(long)]
    pub(crate) batch: usize,
    /// Bytes that are waited for before they are sent, unless they are the last
    #[arg(long)]
    pub(crate) least: usize,
}

/// Options of `soak`.
#[derive(Clone, Debug, Args)]
pub(crate) struct SoakArgs {
    /// The server.
    #[command(flatten)]
    pub(crate) target: TargetArgs,
    /// The load of each round; its window is the round's
    #[command(flatten)]
    load: LoadArgs,
    /// Messages published per second, by all publishers together
    #[arg(long, default_value_t = 2_000.0)]
    rate: f64,
    /// How long to go on
    #[arg(long, default_value = "1h", value_parser = parse_duration)]
    pub(crate) total: Duration,
    /// Connections that come and go after each round
    #[arg(long, default_value_t = 500)]
    pub(crate) storm: usize,
    /// Length of the flood after each round: as fast as the server delivers
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    flood: Duration,
    /// Start a second node of the server's cluster meanwhile, with clients of its own, and let it
    /// leave as a lame duck, again and again: 'COMMAND with {port}', and routes to the server
    #[arg(long, value_name = "COMMAND")]
    neighbour: Option<String>,
    /// Accounts of the server, which has an operator then; in each round it reads its
    /// configuration again, and is pushed tokens. Needs --server [default: none of that]
    #[arg(long, default_value_t = 0)]
    accounts: usize,
    /// How often a server with --accounts reads its configuration in a round
    #[arg(long, default_value_t = 5)]
    reloads: usize,
    /// Tokens that a server with --accounts is pushed in a round
    #[arg(long, default_value_t = 50)]
    pushes: usize,
    /// Where the results go.
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

impl SoakArgs {
    /// The steady load of a round.
    pub(crate) fn steady(&self) -> Outcome<Work> {
        let load = LoadArgs { verify: true, ..self.load.clone() };
        let plan = load.plan(|_| Pace::Open { rate: self.rate })?;
        Ok(Work::Load { plan, lag_max_us: f64::INFINITY })
    }

    /// The flood behind it.
    pub(crate) fn flood(&self) -> Outcome<Work> {
        let load = LoadArgs {
            verify: true,
            duration: self.flood,
            churn: 0.0, // It has a rate of its own, which a flood takes from it.
            warmup: Duration::from_millis(100),
            ..self.load.clone()
        };
        let plan = load.plan(|_| Pace::Closed { window_bytes: FLOOD_WINDOW_BYTES })?;
        Ok(Work::Load { plan, lag_max_us: f64::INFINITY })
    }

    /// The server, and its administration if there is to be any.
    pub(crate) fn prepare(&self) -> Outcome<(Subject, Option<Admin>)> {
        let setup = self.steady()?.setup();
        if self.accounts == 0 {
            return Ok((self.target.prepare(&setup)?, None));
        }
        let clash = |what: &str| {
            let cause = format!("--accounts does not go with {what}");
            Err(Fault::new(cause, "give --server 'COMMAND with {port}' alone"))
        };
        let Some(command) = &self.target.server else { return clash("a server that runs already") };
        if setup.config.is_some() {
            return clash("permissions");
        }
        if self.neighbour.is_some() {
            return clash("a neighbour");
        }
        let Self { accounts, reloads, pushes, .. } = *self;
        let mut admin = Admin::new(admin::Plan { accounts, reloads, pushes })?;
        let access = admin.access(self.target.access.load()?.tls)?;
        let setup = Setup { config: Some(admin.config()?), ..setup };
        Ok((start(command, access, &setup)?, Some(admin)))
    }

    /// The node beside it that comes and goes, if there is to be one.
    pub(crate) fn neighbour(&self) -> Outcome<Option<Neighbour>> {
        let Some(command) = self.neighbour.clone() else { return Ok(None) };
        let (access, prefix) = (self.target.access.load()?, self.load.subject.clone());
        Ok(Some(Neighbour { command, access, prefix }))
    }

    /// The connections that come and go.
    pub(crate) fn storm(&self) -> Work {
        let (conns, concurrency) = (self.storm, FLOOD_CONNS);
        Work::Storm(Storm { conns, concurrency, settle: Duration::ZERO, burst: false, mqtt: false })
    }
}

/// How far the publishers of a soak's flood are ahead, and connections opened at a time after it.
const FLOOD_WINDOW_BYTES: u64 = 256 << 10;
const FLOOD_CONNS: usize = 64;

/// Options of `rtt`.
#[derive(Clone, Debug, Args)]
pub(crate) struct RttArgs {
    /// Connections that ask
    #[arg(long, default_value_t = 1)]
    requesters: usize,
    /// Connections that answer, in one queue group; 0: the server answers PINGs
    #[arg(long, default_value_t = 1)]
    responders: usize,
    /// Start two servers, linked so: requesters are at the first, responders at the second
    #[arg(long, value_enum)]
    link: Option<Link>,
    /// Who answers; all but responders need a server with streams
    #[arg(long = "of", value_enum, default_value_t = Service::Reply)]
    service: Service,
    /// Requests that each connection has under way
    #[arg(long, default_value_t = 1)]
    outstanding: usize,
    /// Connections that watch what is put; their messages are what is counted then
    #[arg(long, default_value_t = 0)]
    watchers: usize,
    /// Payload of request and reply in bytes
    #[arg(long, default_value = "128", value_parser = parse_bytes)]
    payload: usize,
    /// Connections that publish as fast as they can meanwhile, to a subject that nobody hears
    #[arg(long, default_value_t = 0)]
    flood: usize,
    /// Connections that come all at once meanwhile, go when all are ready, and come again
    #[arg(long, default_value_t = 0)]
    storm: usize,
    /// Requests per second of all connections together [default: as soon as the reply is there]
    #[arg(long)]
    rate: Option<f64>,
    /// Time before the measured window
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    warmup: Duration,
    /// Length of the measured window
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    duration: Duration,
}

impl Measures for RttArgs {
    fn work(&self) -> Outcome<Work> {
        if self.rate.is_some_and(|rate| !rate.is_finite() || rate <= 0.0) {
            return Err(Fault::new("the rate is not positive", "give --rate above 0"));
        }
        Ok(Work::RoundTrips(RoundTrips {
            requesters: self.requesters,
            responders: if self.service == Service::Reply { self.responders } else { 0 },
            service: self.service,
            link: self.link,
            outstanding: self.outstanding,
            watchers: self.watchers,
            flooders: self.flood,
            stormers: self.storm,
            payload_bytes: self.payload,
            rate: self.rate,
            warmup: self.warmup,
            duration: self.duration,
        }))
    }
}

/// Options of `read`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ReadArgs {
    /// How it is read
    #[arg(long = "by", value_enum, default_value_t = Way::Fetch)]
    way: Way,
    /// Acknowledge each message
    #[arg(long)]
    acked: bool,
    /// Messages that are fetched at once
    #[arg(long, default_value_t = 500)]
    batch: usize,
    /// Messages that the stream has
    #[arg(long, default_value_t = 200_000)]
    messages: usize,
    /// Payload in bytes
    #[arg(long, default_value = "128", value_parser = parse_bytes)]
    payload: usize,
    /// Time before the measured window
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    warmup: Duration,
    /// Length of the measured window
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    duration: Duration,
}

impl Measures for ReadArgs {
    fn work(&self) -> Outcome<Work> {
        Ok(Work::Reading(Reading {
            way: self.way,
            acked: self.acked,
            batch: self.batch,
            messages: self.messages,
            payload_bytes: self.payload,
            warmup: self.warmup,
            duration: self.duration,
        }))
    }
}

/// Options of `connect`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ConnectArgs {
    /// Connections to open
    #[arg(long, default_value_t = 1000)]
    conns: usize,
    /// Connections that are being opened at the same time
    #[arg(long, default_value_t = 64)]
    concurrency: usize,
    /// Speak MQTT; see throughput
    #[arg(long)]
    mqtt: bool,
}

/// Options of `idle`.
#[derive(Clone, Debug, Args)]
pub(crate) struct IdleArgs {
    /// The connections.
    #[command(flatten)]
    connect: ConnectArgs,
    /// How long the connections stay idle before the server's memory is read
    #[arg(long, default_value = "3s", value_parser = parse_duration)]
    settle: Duration,
    /// Then close all of them, and see what memory the server has kept after as long a rest
    #[arg(long)]
    burst: bool,
}

impl ConnectArgs {
    fn storm(&self, settle: Duration, burst: bool) -> Work {
        let Self { conns, concurrency, mqtt } = *self;
        Work::Storm(Storm { conns, concurrency, settle, burst, mqtt })
    }
}

impl Measures for ConnectArgs {
    fn work(&self) -> Outcome<Work> {
        Ok(self.storm(Duration::ZERO, false))
    }
}

impl Measures for IdleArgs {
    fn work(&self) -> Outcome<Work> {
        Ok(self.connect.storm(self.settle, self.burst))
    }
}

/// Options of `subs`.
#[derive(Clone, Debug, Args)]
pub(crate) struct SubsArgs {
    /// Subscriptions to make, each to a subject of its own
    #[arg(long, default_value_t = 1_000_000)]
    count: usize,
    /// How long the server rests before its memory is read; 0: it is not read
    #[arg(long, default_value = "3s", value_parser = parse_duration)]
    settle: Duration,
}

impl Measures for SubsArgs {
    fn work(&self) -> Outcome<Work> {
        Ok(Work::Subscribing(Subscribing { count: self.count, settle: self.settle }))
    }
}

/// Options of `compare`.
#[derive(Clone, Debug, Args)]
pub(crate) struct CompareArgs {
    /// A server: 'NAME=COMMAND with {port}'; give it once for each server, the yardstick first.
    /// {shards} becomes 2 in scenarios across shards; {monitor} is a port for what it counts
    #[arg(long, value_name = "NAME=COMMAND", required = true)]
    pub(crate) server: Vec<String>,
    /// Compare a server whose command has {shards} with itself too, once with each of these numbers
    /// [default: as the scenario says]
    #[arg(long, value_name = "N,N,…", value_delimiter = ',')]
    pub(crate) shards: Vec<usize>,
    /// A built-in set of scenarios
    #[arg(long, value_enum)]
    pub(crate) suite: Vec<crate::suites::Suite>,
    /// Runs of each scenario on each server
    #[arg(long, default_value_t = 5)]
    pub(crate) runs: usize,
    /// Measure the ceiling of each fan-out too, as one more server
    #[arg(long)]
    pub(crate) ceiling: bool,
    /// Measured window of each throughput, latency and rtt
    #[arg(long, value_parser = parse_duration)]
    pub(crate) duration: Option<Duration>,
    /// Options for every scenario, before its own
    #[arg(long, value_name = "OPTIONS", allow_hyphen_values = true)]
    pub(crate) with: Option<String>,
    /// What gets a client in.
    #[command(flatten)]
    pub(crate) access: AccessArgs,
    /// Where the results go.
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    /// A scenario: 'NAME: throughput …', or latency, rtt, connect, idle, subs; NAME is optional
    #[arg(value_name = "SCENARIO")]
    pub(crate) scenarios: Vec<String>,
}

/// A scenario, read with the options of the commands it names.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true, args_override_self = true)]
pub(crate) struct ScenarioCli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Measurement,
}

/// The measurements that can be compared; see [`Command`].
#[derive(Debug, Subcommand)]
#[command(args_override_self = true)]
pub(crate) enum Measurement {
    #[command(args_override_self = true)]
    Throughput(ThroughputArgs),
    #[command(args_override_self = true)]
    Latency(LatencyArgs),
    #[command(args_override_self = true)]
    Rtt(RttArgs),
    #[command(args_override_self = true)]
    Read(ReadArgs),
    #[command(args_override_self = true)]
    Connect(ConnectArgs),
    #[command(args_override_self = true)]
    Idle(IdleArgs),
    #[command(args_override_self = true)]
    Subs(SubsArgs),
}

impl Measures for Measurement {
    fn work(&self) -> Outcome<Work> {
        match self {
            Self::Throughput(args) => args.work(),
            Self::Latency(args) => args.work(),
            Self::Rtt(args) => args.work(),
            Self::Read(args) => args.work(),
            Self::Connect(args) => args.work(),
            Self::Idle(args) => args.work(),
            Self::Subs(args) => args.work(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_options_do_not_contradict_each_other() {
        Cli::command().debug_assert();
        ScenarioCli::command().debug_assert();
    }
}
