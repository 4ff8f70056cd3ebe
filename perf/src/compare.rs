//! Several servers, the same scenarios, in turn: A B A B.
//!
//! A machine's speed drifts, so the servers alternate within each scenario, each run gets a fresh
//! server, and what is compared are medians.

use crate::cli::{CompareArgs, Measures as _, ScenarioCli, start};
use crate::client::Access;
use crate::fault::{Fault, Outcome};
use crate::load::histogram;
use crate::measure::{Figures, Kind, Run, Work};
use crate::monitor::Rates;
use crate::report::{Progress, human};
use crate::server::Setup;
use crate::stats::{Summary, table};
use clap::Parser as _;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::sync::atomic::{AtomicBool, Ordering};

/// A built-in set of scenarios.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Suite {
    /// Throughput from one publisher to 1, 10, 100 and 1000 subscribers, and 100,000 subjects
    Fanout,
    /// Latency at fixed rates
    Latency,
    /// 100 subscribers that read, beside 0, 1, 10 and 50 that do not: latency at a fixed rate, and
    /// as fast as it goes
    Slow,
    /// All that a broker is judged by: rates, memory, times, and what could spoil them
    Limits,
    /// One short run of each kind, to see that all works
    Smoke,
}

impl Suite {
    fn scenarios(self) -> Vec<String> {
        match self {
            Self::Fanout => fanout(),
            Self::Latency => [
                ("1→1 128 B, 1 k/s", "--rate 1000"),
                ("1→1 128 B, 20 k/s", "--rate 20000"),
                ("1→100 128 B, 1 k/s", "--rate 1000 --subs 100"),
                ("1→100 128 B, 5 k/s", "--rate 5000 --subs 100"),
                ("1→10 16 KiB, 1 k/s", "--rate 1000 --subs 10 --payload 16KiB"),
                (
                    "10→10 of 1000 subjects, 20 k/s",
                    "--rate 20000 --pubs 10 --subs 10 \
                    --subjects 1000",
                ),
            ]
            .iter()
            .map(|(name, options)| format!("{name}: latency --duration 5s {options}"))
            .collect(),
            Self::Slow => slow(),
            Self::Limits => LIMITS.iter().map(|text| (*text).to_owned()).collect(),
            Self::Smoke => SMOKE.iter().map(|text| (*text).to_owned()).collect(),
        }
    }
}

const LIMITS: [&str; 29] = [
    "1→1 16 B: throughput --payload 16",
    "1→1 128 B: throughput",
    "1→10 128 B: throughput --subs 10",
    "1→100 16 B: throughput --subs 100 --payload 16",
    "1→100 128 B: throughput --subs 100",
    "1→100 1 KiB: throughput --subs 100 --payload 1KiB",
    "1→100 16 KiB: throughput --subs 100 --payload 16KiB",
    "1→100 64 KiB: throughput --subs 100 --payload 64KiB",
    "1→1000 16 B: throughput --subs 1000 --payload 16",
    "1→1000 128 B: throughput --subs 1000",
    "1→100, own sids: throughput --subs 100 --own-sids",
    "1→100, headers of 32 B: throughput --subs 100 --headers 32",
    "1→100, replies of 32 B: throughput --subs 100 --reply 32",
    "1→100, 10 k/s SUB and UNSUB: throughput --subs 100 --churn 10000",
    "1→1000, 10 k/s SUB and UNSUB: throughput --subs 1000 --churn 10000",
    "1→100, permissions: throughput --subs 100 --permissions",
    "1→100, idle between: throughput --subs 100 --idle-between",
    "1→100 across shards: throughput --subs 100 --idle-between --shards 2",
    "10 times 1→10: throughput --pubs 10 --own-subjects --subjects 10 --subs 100 --fanout 10",
    "queue group of 10: throughput --subs 10 --queue-groups 1",
    "100,000 subjects: throughput --subs 10 --subjects 100000",
    "10,000 wildcards, 1 to 5 match: throughput --subs 10 --subjects 10000 --overlapping",
    "request and reply: rtt",
    "PING beside a flood: rtt --responders 0 --flood 1 --rate 1000",
    "request and reply beside a flood: rtt --flood 1 --rate 1000",
    "1→100, 15 k/s: latency --subs 100 --rate 15000",
    "1→1000, 1 k/s: latency --subs 1000 --rate 1000",
    "10,000 idle connections: idle --conns 10000 --burst",
    "1,000,000 subscriptions: subs",
];

const SMOKE: [&str; 16] = [
    "1→2 128 B: throughput --subs 2 --verify --warmup 100ms --duration 300ms",
    "2→4, 2 queue groups: throughput --pubs 2 --subs 4 --queue-groups 2 --verify \
     --warmup 100ms --duration 300ms",
    "100 subjects, headers: throughput --subjects 100 --subs 4 --headers 64 --verify \
     --warmup 100ms --duration 300ms",
    "wildcard: throughput --subjects 10 --subs 2 --wildcard --verify \
     --warmup 100ms --duration 300ms",
    "overlapping: throughput --subjects 50 --subs 7 --overlapping --own-sids --verify \
     --warmup 100ms --duration 300ms",
    "2 times 1→2, replies: throughput --pubs 2 --own-subjects --subjects 2 --subs 4 --fanout 2 \
     --reply 32 --verify --warmup 100ms --duration 300ms",
    "churn: throughput --subs 2 --churn 500 --idle-between --verify \
     --warmup 100ms --duration 1s",
    "1→2, 2 k/s: latency --rate 2000 --subs 2 --verify --lag-max 100ms \
     --warmup 100ms --duration 300ms",
    "permissions: throughput --subs 2 --permissions --reply 32 --verify \
     --warmup 100ms --duration 300ms",
    "across shards: throughput --subs 2 --idle-between --shards 2 --verify \
     --warmup 100ms --duration 300ms",
    "beside a flood: rtt --flood 1 --rate 200 --warmup 100ms --duration 300ms",
    "beside a storm: rtt --storm 20 --rate 200 --warmup 100ms --duration 500ms",
    "1→2 beside 2 stalled: throughput --subs 2 --stalled 2 --verify --warmup 100ms \
     --duration 300ms",
    "round trips: rtt --warmup 100ms --duration 300ms",
    "idle: idle --conns 100 --settle 100ms --burst",
    "subs: subs --count 10000 --settle 100ms",
];

fn slow() -> Vec<String> {
    let stalled = [0, 1, 10, 50];
    // While a server still waits for them, and once it has cut them off.
    let kinds = ["latency --rate 500 --duration 8s", "throughput --warmup 3s --duration 4s"];
    let scenario = |kind: &str, stalled: usize| {
        let (what, _) = kind.split_once(' ').unwrap_or((kind, ""));
        format!("1→100 beside {stalled} stalled, {what}: {kind} --subs 100 --stalled {stalled}")
    };
    kinds.iter().flat_map(|kind| stalled.map(|stalled| scenario(kind, stalled))).collect()
}

fn fanout() -> Vec<String> {
    let mut scenarios = Vec::new();
    for subs in [1, 10, 100, 1000] {
        for payload in ["16 B", "128 B", "1 KiB", "16 KiB"] {
            let bytes = payload.replace(' ', "");
            scenarios
                .push(format!("1→{subs} {payload}: throughput --subs {subs} --payload {bytes}"));
        }
    }
    scenarios.push("100,000 subjects 128 B: throughput --subjects 100000 --subs 10".to_owned());
    scenarios.iter().map(|text| format!("{text} --warmup 500ms --duration 2s")).collect()
}

/// A scenario with its name.
struct Scenario {
    name: String,
    work: Work,
}

/// Reads `[NAME:] throughput …`. `before` and `after` are options around its own, for those
/// measurements that have them.
fn parse_scenario(text: &str, before: &str, after: &str) -> Outcome<Scenario> {
    let (name, command) = text.split_once(": ").unwrap_or((text, text));
    let (kind, own) = command.trim().split_once(' ').unwrap_or((command.trim(), ""));
    let load = matches!(kind, "throughput" | "latency");
    let before = if load { before } else { "" };
    let after = if load || kind == "rtt" { after } else { "" };
    let words = [kind, before, own, after].into_iter().flat_map(str::split_whitespace);
    let parsed = ScenarioCli::try_parse_from(words).map_err(|e| {
        let reason = e.to_string();
        let reason = reason.lines().next().unwrap_or_default().trim_start_matches("error: ");
        let cause = format!("the scenario '{text}' cannot be read: {reason}");
        Fault::new(cause, "write it like 'throughput --subs 10'; see throughput --help")
    })?;
    let work = parsed.command.work().map_err(|fault| fault.at(name))?;
    Ok(Scenario { name: name.to_owned(), work })
}

struct Server {
    name: String,
    command: String,
}

fn parse_server(text: &str) -> Outcome<Server> {
    match text.split_once('=') {
        Some((name, command)) if !name.trim().is_empty() && command.contains("{port}") => {
            Ok(Server { name: name.trim().to_owned(), command: command.to_owned() })
        }
        _ => Err(Fault::new(
            format!("the server '{text}' cannot be read"),
            "write it like 'nats=nats-server -p {port}'",
        )),
    }
}

/// All runs of one scenario on one server. See [`Figures`] for what each is.
#[derive(Debug, Serialize)]
pub(crate) struct Entry {
    /// The server's name.
    pub(crate) server: String,
    /// Deliveries, or whatever is counted, per second of the server's CPU.
    pub(crate) per_server_cpu_s: Option<Summary>,
    /// This program's own CPU for each, in nanoseconds.
    pub(crate) generator_ns_each: Option<Summary>,
    /// Deliveries, or whatever is counted, per second.
    pub(crate) per_s: Option<Summary>,
    /// The median time, in microseconds.
    pub(crate) time_p50_us: Option<Summary>,
    /// The 99th percentile of the times, in microseconds.
    pub(crate) time_p99_us: Option<Summary>,
    /// The 99.9th percentile of the times, in microseconds.
    pub(crate) time_p999_us: Option<Summary>,
    /// The server's memory for each, in bytes.
    pub(crate) server_bytes_each: Option<Summary>,
    /// What part of its memory before the server has after connections have come and gone.
    pub(crate) memory_kept: Option<Summary>,
    /// What the server counts, the median of each.
    pub(crate) counted: Option<Rates>,
    /// Every run.
    pub(crate) runs: Vec<Run>,
    /// The times of all runs, in nanoseconds.
    #[serde(skip)]
    pub(crate) times: Histogram<u64>,
}

impl Entry {
    fn new(server: &str) -> Self {
        Self {
            server: server.to_owned(),
            per_server_cpu_s: None,
            generator_ns_each: None,
            per_s: None,
            time_p50_us: None,
            time_p99_us: None,
            time_p999_us: None,
            server_bytes_each: None,
            memory_kept: None,
            counted: None,
            runs: Vec::new(),
            times: histogram(),
        }
    }

    fn add(&mut self, run: Run, times: &Histogram<u64>) {
        self.runs.push(run);
        // Both have the same bounds, so adding cannot fail.
        let _ = self.times.add(times);
        let figures: Vec<Figures> = self.runs.iter().map(Run::figures).collect();
        let sum =
            |figure: fn(&Figures) -> Option<f64>| Summary::of(figures.iter().filter_map(figure));
        self.per_server_cpu_s = sum(|f| f.per_server_cpu_s);
        self.generator_ns_each = sum(|f| f.generator_ns_each);
        self.per_s = sum(|f| f.per_s);
        self.time_p50_us = sum(|f| f.times.map(|q| q.p50));
        self.time_p99_us = sum(|f| f.times.map(|q| q.p99));
        self.time_p999_us = sum(|f| f.times.map(|q| q.p999));
        self.server_bytes_each = sum(|f| f.server_bytes_each);
        self.memory_kept = sum(|f| f.memory_kept);
        let counted: Vec<Rates> = figures.iter().filter_map(|f| f.counted).collect();
        self.counted = Rates::median(&counted);
    }

    /// Whether its figures may be used.
    pub(crate) fn is_valid(&self) -> bool {
        self.runs.iter().all(|run| run.invalid().is_empty())
    }
}

/// A figure of a table: its name, and how to find it.
type Figure = (&'static str, fn(&Entry) -> Option<Summary>);

/// `1→10 16 KiB` as a part of a file name: `1-10-16-KiB`.
fn slug(name: &str) -> String {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-")
}

/// One scenario on all servers.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    /// The scenario's name.
    pub(crate) scenario: String,
    /// Which of its figures matter.
    pub(crate) kind: Kind,
    /// What its times are.
    pub(crate) times: &'static str,
    /// One entry per server, in the order they were given; the ceiling, if there is one, last.
    pub(crate) servers: Vec<Entry>,
}

/// All that `compare` found.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    /// The machine.
    pub(crate) machine: Machine,
    /// The servers' commands by name.
    pub(crate) commands: Vec<(String, String)>,
    /// One row per scenario.
    pub(crate) rows: Vec<Row>,
    /// Whether the user ended it early.
    pub(crate) interrupted: bool,
    /// What ended it early otherwise.
    #[serde(skip)]
    pub(crate) fault: Option<Fault>,
}

/// What a reader must know about the machine.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    /// Cores this program may use.
    pub(crate) cores: usize,
    /// The kernel's release.
    pub(crate) kernel: String,
    /// The processor's name.
    pub(crate) processor: String,
}

impl Machine {
    /// This machine.
    pub(crate) fn here() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let processor = info.lines().find_map(|line| line.strip_prefix("model name"));
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor: processor.unwrap_or("").trim_start_matches(['\t', ' ', ':']).to_owned(),
        }
    }
}

/// Runs everything, printing each scenario's line to standard error as it is done.
pub(crate) fn run(args: &CompareArgs, stop: &AtomicBool) -> Outcome<Comparison> {
    let servers: Vec<Server> =
        args.server.iter().map(|text| parse_server(text)).collect::<Outcome<_>>()?;
    let before = args.with.as_deref().unwrap_or("");
    let after = args.duration.map(|d| format!("--duration {}us", d.as_micros()));
    let texts = args.suite.iter().flat_map(|suite| suite.scenarios());
    let scenarios: Vec<Scenario> = texts
        .chain(args.scenarios.iter().cloned())
        .map(|text| parse_scenario(&text, before, after.as_deref().unwrap_or("")))
        .collect::<Outcome<_>>()?;
    if scenarios.is_empty() {
        return Err(Fault::new("there is no scenario", "give --suite fanout, or scenarios"));
    }
    let session = Session { args, servers: &servers, access: args.access.load()?, stop };
    let mut comparison = Comparison {
        machine: Machine::here(),
        commands: servers.iter().map(|s| (s.name.clone(), s.command.clone())).collect(),
        rows: Vec::new(),
        interrupted: false,
        fault: None,
    };
    for (number, scenario) in scenarios.iter().enumerate() {
        let label = format!("scenario {}/{}", number + 1, scenarios.len());
        match session.run(scenario, &label) {
            Ok(row) => comparison.rows.push(row),
            // What was measured before it is not lost.
            Err(fault) if !comparison.rows.is_empty() => {
                comparison.fault = Some(fault);
                break;
            }
            Err(fault) => return Err(fault),
        }
        comparison.interrupted = stop.load(Ordering::Relaxed);
        if comparison.interrupted {
            break;
        }
    }
    Ok(comparison)
}

/// The name of the ceiling in tables and files.
const CEILING: &str = "ceiling";

struct Session<'a> {
    args: &'a CompareArgs,
    servers: &'a [Server],
    access: Access,
    stop: &'a AtomicBool,
}

impl Session<'_> {
    /// Runs one scenario on all servers in turn, and again, until it is done or stopped.
    fn run(&self, scenario: &Scenario, label: &str) -> Outcome<Row> {
        let ceilings = if self.args.ceiling { scenario.work.ceilings()? } else { Vec::new() };
        let server = |server: &Server| {
            (vec![(scenario.work.clone(), server.command.clone())], Entry::new(&server.name))
        };
        let mut entries: Vec<(Vec<(Work, String)>, Entry)> =
            self.servers.iter().map(server).collect();
        if !ceilings.is_empty() {
            entries.push((ceilings, Entry::new(CEILING)));
        }
        let mut row = Row {
            scenario: scenario.name.clone(),
            kind: scenario.work.kind(),
            times: scenario.work.times(),
            servers: Vec::new(),
        };
        'runs: for run in 1..=self.args.runs {
            for (ways, entry) in &mut entries {
                let place = format!("{} on {}", scenario.name, entry.server);
                let label = format!("{label}, run {run}/{}: {place}", self.args.runs);
                let mut best: Option<(Run, Histogram<u64>)> = None;
                for (work, command) in ways {
                    let (access, setup) = match &*entry.server {
                        CEILING => (Access::none()?, Setup::default()),
                        _ => (self.access.clone(), work.setup()),
                    };
                    let subject = start(command, access, &setup)?;
                    match work.run(&subject, self.stop, &mut Progress::new(&*label)) {
                        Err(_) if self.stop.load(Ordering::Relaxed) => break 'runs,
                        Err(fault) => return Err(fault.at(&place)),
                        Ok(ran) if best.as_ref().is_none_or(|best| ran.0.beats(&best.0)) => {
                            best = Some(ran);
                        }
                        Ok(_) => {}
                    }
                    if self.stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
                if let Some((run, times)) = best {
                    entry.add(run, &times);
                }
                if self.stop.load(Ordering::Relaxed) {
                    break 'runs;
                }
            }
        }
        row.servers = entries.into_iter().map(|(_, entry)| entry).collect();
        Ok(row)
    }
}

impl Comparison {
    /// Whether every run of it may be used.
    pub(crate) fn is_valid(&self) -> bool {
        self.rows.iter().flat_map(|row| &row.servers).all(Entry::is_valid)
    }

    /// The latencies of each scenario on each server, with names fit for files.
    pub(crate) fn latencies(&self) -> impl Iterator<Item = (String, &Histogram<u64>)> {
        let entries = self.rows.iter().flat_map(|row| row.servers.iter().map(move |e| (row, e)));
        let timed = entries.filter(|(_, entry)| !entry.times.is_empty());
        timed.map(|(row, entry)| {
            let name = format!("{}.{}", slug(&row.scenario), slug(&entry.server));
            (name, &entry.times)
        })
    }

    /// The tables, in Markdown.
    pub(crate) fn text(&self) -> String {
        let tables: [(&str, Kind, &[Figure]); 5] = [
            (
                "Deliveries per second of the server's CPU",
                Kind::Throughput,
                &[("", |entry| entry.per_server_cpu_s)],
            ),
            ("Deliveries per second", Kind::Throughput, &[("", |entry| entry.per_s)]),
            (
                "CPU of the load generator itself per delivery, in ns",
                Kind::Throughput,
                &[("", |entry| entry.generator_ns_each)],
            ),
            (
                "Latency from the intended send time, round trip, or time to ready, in µs",
                Kind::Time,
                &[
                    (" p50", |entry| entry.time_p50_us),
                    (" p99", |entry| entry.time_p99_us),
                    (" p99.9", |entry| entry.time_p999_us),
                ],
            ),
            (
                "Connections or subscriptions: server's memory for each, in bytes, rates, and what \
                 part of its memory before a burst it has after",
                Kind::Memory,
                &[
                    (" memory", |entry| entry.server_bytes_each),
                    (" per s", |entry| entry.per_s),
                    (" per CPU s", |entry| entry.per_server_cpu_s),
                    (" kept", |entry| entry.memory_kept),
                ],
            ),
        ];
        let mut out = String::new();
        for (title, kind, figures) in tables {
            let rows: Vec<&Row> = self.rows.iter().filter(|row| row.kind == kind).collect();
            if !rows.is_empty() {
                out.push_str(&format!("{title} (median of the runs ± half their spread)\n\n"));
                out.push_str(&self.table(&rows, figures));
                out.push('\n');
            }
        }
        out.push_str(&self.counted());
        out.push_str(&self.faults());
        if self.interrupted {
            out.push_str("ended early by the user\n");
        }
        out
    }

    /// What those servers count that say so, in a table for each.
    fn counted(&self) -> String {
        let mut out = String::new();
        for (number, (name, _)) in self.commands.iter().enumerate() {
            let counted = |row: &Row| row.servers.get(number).and_then(|entry| entry.counted);
            let rows: Vec<(&str, Rates)> = self
                .rows
                .iter()
                .filter_map(|row| Some((row.scenario.as_str(), counted(row)?)))
                .collect();
            let Some((_, first)) = rows.first() else { continue };
            let names = first.cells().map(|(name, _)| name.to_owned());
            let mut cells = vec![[vec!["scenario".to_owned()], names.to_vec()].concat()];
            for (scenario, rates) in rows {
                let values = rates.cells().map(|(_, value)| value);
                cells.push([vec![scenario.to_owned()], values.to_vec()].concat());
            }
            out.push_str(&format!("What {name} counts (medians of the runs)\n\n"));
            out.push_str(&table(&cells));
            out.push('\n');
        }
        out
    }

    /// One line for each server and scenario whose figures must not be used.
    fn faults(&self) -> String {
        let mut out = String::new();
        for row in &self.rows {
            for entry in row.servers.iter().filter(|entry| !entry.is_valid()) {
                let bad = || entry.runs.iter().map(Run::invalid).filter(|why| !why.is_empty());
                let first = bad().flatten().next().unwrap_or_default();
                out.push_str(&format!(
                    "INVALID {} on {}, {} of {} runs: {first}\n",
                    row.scenario,
                    entry.server,
                    bad().count(),
                    entry.runs.len()
                ));
            }
        }
        out
    }

    /// A table with, for each figure, one column per server and one with the ratio to the first;
    /// behind them the ceiling, where there is one, and what part of it each server reaches.
    fn table(&self, rows: &[&Row], figures: &[Figure]) -> String {
        let first = &self.commands[0].0;
        let capped = rows.iter().any(|row| row.servers.len() > self.commands.len());
        let mut head = vec!["scenario".to_owned()];
        for (figure, _) in figures {
            for (number, (name, _)) in self.commands.iter().enumerate() {
                head.push(format!("{name}{figure}"));
                head.extend((number > 0).then(|| format!("×{first}")));
            }
            if capped {
                head.push(CEILING.to_owned());
                head.extend(self.commands.iter().map(|(name, _)| format!("{name}/{CEILING}")));
            }
        }
        let mut cells = vec![head];
        for row in rows {
            let mut line = vec![row.scenario.clone()];
            for (_, figure) in figures {
                let of = |number: usize| row.servers.get(number).and_then(figure);
                let servers = 0..self.commands.len();
                let ratio = |number: usize, to: usize| {
                    let ratio = of(number).zip(of(to)).map(|(a, b)| a.median / b.median);
                    ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}"))
                };
                for number in servers.clone() {
                    line.push(cell(row.servers.get(number), figure));
                    line.extend((number > 0).then(|| ratio(number, 0)));
                }
                if capped {
                    line.push(cell(row.servers.get(servers.end), figure));
                    line.extend(servers.clone().map(|number| ratio(number, servers.end)));
                }
            }
            cells.push(line);
        }
        table(&cells)
    }
}

/// A figure with its spread; a dash where there is none.
fn cell(entry: Option<&Entry>, figure: &fn(&Entry) -> Option<Summary>) -> String {
    let Some((entry, summary)) = entry.and_then(|entry| Some((entry, figure(entry)?))) else {
        return "–".to_owned();
    };
    let flag = if entry.is_valid() { "" } else { " INVALID" };
    format!("{} ±{:.0} %{flag}", human(summary.median), summary.spread() * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum as _;

    #[test]
    fn every_scenario_of_every_suite_can_be_read() {
        for suite in Suite::value_variants() {
            for text in suite.scenarios() {
                let scenario = parse_scenario(&text, "", "--duration 1s").unwrap();
                if let Work::Load { plan, .. } = scenario.work {
                    assert_eq!(plan.duration.as_secs(), 1, "{text}");
                }
            }
        }
    }

    #[test]
    fn a_bad_scenario_is_named_with_the_reason() {
        let fault = parse_scenario("throughput --sub 3", "", "").err().unwrap().to_string();
        assert!(fault.contains("--sub"), "{fault}");
        let fault = parse_scenario("x: latency --payload 4", "", "").err().unwrap().to_string();
        assert!(fault.contains("--payload 8"), "{fault}");
    }

    #[test]
    fn a_server_has_a_name_and_a_port() {
        assert!(parse_server("nats-server -p {port}").is_err());
        assert!(parse_server("a=nats-server").is_err());
        assert_eq!(parse_server("a=b -c=d -p {port}").unwrap().command, "b -c=d -p {port}");
    }
}
