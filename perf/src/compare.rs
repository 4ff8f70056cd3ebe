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
use crate::server::{Setup, store_file_system};
use crate::stats::{Summary, table};
use clap::Parser as _;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::sync::atomic::{AtomicBool, Ordering};

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
    let after = if load || matches!(kind, "rtt" | "read") { after } else { "" };
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

/// A server as it is started.
#[derive(Clone, Debug, PartialEq)]
struct Server {
    name: String,
    command: String,
    /// Which of all servers is the first that differs from it in the number of shards alone; itself
    /// perhaps. None where that number is not varied.
    first: Option<usize>,
}

fn has_port(command: &str) -> bool {
    command.contains("{port}") || command.contains("{mqtt}")
}

fn parse_server(text: &str) -> Outcome<Server> {
    match text.split_once('=') {
        Some((name, command)) if !name.trim().is_empty() && has_port(command) => {
            Ok(Server { name: name.trim().to_owned(), command: command.to_owned(), first: None })
        }
        _ => Err(Fault::new(
            format!("the server '{text}' cannot be read"),
            "write it like 'nats=nats-server -p {port}'",
        )),
    }
}

/// The servers of these texts; one for each number of `shards` where the command has `{shards}`.
fn parse_servers(texts: &[String], shards: &[usize]) -> Outcome<Vec<Server>> {
    let mut servers = Vec::new();
    let mut varied = shards.is_empty();
    for text in texts {
        let server = parse_server(text)?;
        if shards.is_empty() || !server.command.contains("{shards}") {
            servers.push(server);
            continue;
        }
        let first = Some(servers.len());
        servers.extend(shards.iter().map(|count| Server {
            name: format!("{} {count}", server.name),
            command: server.command.replace("{shards}", &count.to_string()),
            first,
        }));
        varied = true;
    }
    if !varied {
        let remedy = "write a server's command with --shards {shards}";
        return Err(Fault::new("no server has the numbers of --shards", remedy));
    }
    Ok(servers)
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

    /// The server's CPU for each delivery, or whatever is counted, in nanoseconds.
    fn cpu_ns_each(&self) -> Option<Summary> {
        let each = self.per_server_cpu_s?;
        // The most a second is the least for each.
        let (median, min, max) = (1e9 / each.median, 1e9 / each.max, 1e9 / each.min);
        Some(Summary { median, min, max })
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
    /// Of each server the first that differs from it in the number of shards alone.
    #[serde(skip)]
    first_of: Vec<Option<usize>>,
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
    /// The file system of what servers store.
    pub(crate) store: Option<String>,
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
            store: store_file_system(),
        }
    }
}

/// Runs everything, printing each scenario's line to standard error as it is done.
pub(crate) fn run(args: &CompareArgs, stop: &AtomicBool) -> Outcome<Comparison> {
    let servers = parse_servers(&args.server, &args.shards)?;
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
        first_of: servers.iter().map(|server| server.first).collect(),
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
        let tables: [(&str, &[Kind], &[Figure]); 7] = [
            (
                "Deliveries per second of the server's CPU",
                &[Kind::Throughput],
                &[("", |entry| entry.per_server_cpu_s)],
            ),
            ("Deliveries per second", &[Kind::Throughput], &[("", |entry| entry.per_s)]),
            (
                "CPU of the load generator itself per delivery, in ns",
                &[Kind::Throughput],
                &[("", |entry| entry.generator_ns_each)],
            ),
            (
                "Replies, or what is watched, per second of the server's CPU",
                &[Kind::Requests],
                &[("", |entry| entry.per_server_cpu_s)],
            ),
            (
                "Replies, or what is watched, per second",
                &[Kind::Requests],
                &[("", |entry| entry.per_s)],
            ),
            (
                "Latency from the intended send time, round trip, or time to ready, in µs",
                &[Kind::Time, Kind::Requests],
                &[
                    (" p50", |entry| entry.time_p50_us),
                    (" p99", |entry| entry.time_p99_us),
                    (" p99.9", |entry| entry.time_p999_us),
                ],
            ),
            (
                "Connections or subscriptions: server's memory for each, in bytes, rates, and what \
                 part of its memory before a burst it has after",
                &[Kind::Memory],
                &[
                    (" memory", |entry| entry.server_bytes_each),
                    (" per s", |entry| entry.per_s),
                    (" per CPU s", |entry| entry.per_server_cpu_s),
                    (" kept", |entry| entry.memory_kept),
                ],
            ),
        ];
        let mut out = self.cpu_each();
        for (title, kinds, figures) in tables {
            let rows: Vec<&Row> =
                self.rows.iter().filter(|row| kinds.contains(&row.kind)).collect();
            if !rows.is_empty() {
                out.push_str(&format!("{title} (median of the runs ± half their spread)\n\n"));
                out.push_str(&self.table(&rows, figures));
                out.push('\n');
            }
        }
        let stored = self.commands.iter().any(|(_, command)| command.contains("{store}"));
        if let (true, Some(store)) = (stored, &self.machine.store) {
            out.push_str(&format!("What is stored is on {store}.\n\n"));
        }
        out.push_str(&self.counted());
        out.push_str(&self.faults());
        if self.interrupted {
            out.push_str("ended early by the user\n");
        }
        out
    }

    /// The CPU of a delivery or round trip, where the number of shards is varied: what it is with
    /// each, in parts of that with the first number, and how many times as much the first server
    /// takes.
    fn cpu_each(&self) -> String {
        if self.first_of.iter().all(Option::is_none) {
            return String::new();
        }
        let yardstick = &self.commands[0].0;
        let mut head = vec!["scenario".to_owned()];
        for (number, (name, _)) in self.commands.iter().enumerate() {
            head.push(name.clone());
            if let Some(first) = self.first_of[number].filter(|first| *first != number) {
                head.push(format!("/{}", self.commands[first].0));
            }
            head.extend((number > 0).then(|| format!("×{yardstick}")));
        }
        let mut cells = vec![head];
        for row in self.rows.iter().filter(|row| row.kind != Kind::Memory) {
            let of = |number: usize| row.servers.get(number).and_then(Entry::cpu_ns_each);
            let ratio = |over: usize, under: usize| {
                let ratio = of(over).zip(of(under)).map(|(a, b)| a.median / b.median);
                ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}"))
            };
            let mut line = vec![row.scenario.clone()];
            for number in 0..self.commands.len() {
                line.push(cell(row.servers.get(number), Entry::cpu_ns_each));
                let first = self.first_of[number].filter(|first| *first != number);
                line.extend(first.map(|first| ratio(number, first)));
                line.extend((number > 0).then(|| ratio(0, number)));
            }
            cells.push(line);
        }
        let title = "CPU of the server for each delivery or round trip, in ns (median of the runs \
                     ± half their spread); behind / in parts of what it is there (less is better); \
                     behind × how many times as much that server takes (more is better)";
        format!("{title}\n\n{}\n", table(&cells))
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
fn cell(entry: Option<&Entry>, figure: impl Fn(&Entry) -> Option<Summary>) -> String {
    let Some((entry, summary)) = entry.and_then(|entry| Some((entry, figure(entry)?))) else {
        return "–".to_owned();
    };
    let flag = if entry.is_valid() { "" } else { " INVALID" };
    format!("{} ±{:.0} %{flag}", human(summary.median), summary.spread() * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suites::Suite;
    use clap::ValueEnum as _;

    #[test]
    fn every_scenario_of_every_suite_can_be_read() {
        for suite in Suite::value_variants() {
            for text in suite.scenarios() {
                let scenario = parse_scenario(&text, "", "--duration 1s").unwrap();
                match scenario.work {
                    Work::Load { plan, .. } => assert_eq!(plan.duration.as_secs(), 1, "{text}"),
                    Work::RoundTrips(plan) => assert_eq!(plan.duration.as_secs(), 1, "{text}"),
                    Work::Reading(plan) => assert_eq!(plan.duration.as_secs(), 1, "{text}"),
                    Work::Storm(_) | Work::Subscribing(_) => {}
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
    #[test]
    fn a_server_that_leaves_its_shards_open_is_one_for_each_number_of_them() {
        let texts = ["n=nats -p {port}", "s=cast -p {port} -s {shards}"].map(str::to_owned);
        let servers = parse_servers(&texts, &[1, 4]).unwrap();
        let server = |name: &str, command: &str, first| Server {
            name: name.to_owned(),
            command: command.to_owned(),
            first,
        };
        let expected = [
            server("n", "nats -p {port}", None),
            server("s 1", "cast -p {port} -s 1", Some(1)),
            server("s 4", "cast -p {port} -s 4", Some(1)),
        ];
        assert_eq!(servers, expected);
        assert_eq!(parse_servers(&texts, &[]).unwrap().len(), 2, "a scenario says how many");
        let fault = parse_servers(&texts[..1], &[1, 4]).unwrap_err().to_string();
        assert!(fault.contains("{shards}"), "{fault}");
    }

    #[test]
    fn the_cpu_of_a_delivery_is_compared_with_one_shard_and_with_the_first_server() {
        let entry = |server: &str, ns: f64| Entry {
            per_server_cpu_s: Summary::of([1e9 / ns]),
            ..Entry::new(server)
        };
        let row = |scenario: &str, kind, servers| {
            let scenario = scenario.to_owned();
            Row { scenario, kind, times: "round trip", servers }
        };
        let all = || vec![entry("n", 800.0), entry("s 1", 200.0), entry("s 2", 400.0)];
        let comparison = Comparison {
            machine: Machine::here(),
            commands: ["n", "s 1", "s 2"].map(|name| (name.to_owned(), String::new())).to_vec(),
            first_of: vec![None, Some(1), Some(1)],
            rows: vec![
                row("pairs", Kind::Throughput, all()),
                row("idle", Kind::Memory, all()),
                row("requests", Kind::Requests, vec![entry("n", 900.0), entry("s 1", 300.0)]),
            ],
            interrupted: false,
            fault: None,
        };
        let text = comparison.cpu_each();
        let lines = text.lines().filter(|line| line.starts_with('|'));
        let cells: Vec<Vec<&str>> =
            lines.map(|line| line.split('|').map(str::trim).collect()).collect();
        let expected = [
            vec!["", "scenario", "n", "s 1", "×n", "s 2", "/s 1", "×n", ""],
            vec!["", "pairs", "800 ±0 %", "200 ±0 %", "4.00", "400 ±0 %", "2.00", "2.00", ""],
            vec!["", "requests", "900 ±0 %", "300 ±0 %", "3.00", "–", "–", "–", ""],
        ];
        assert_eq!([&cells[0], &cells[2], &cells[3]], [&expected[0], &expected[1], &expected[2]]);
        let fixed = Comparison { first_of: vec![None; 3], ..comparison };
        assert_eq!(fixed.cpu_each(), "", "without --shards the rates say as much");
    }
}
