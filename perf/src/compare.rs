//! Several servers, the same scenarios, in turn: A B A B.
//!
//! A machine's speed drifts, so the servers alternate within each scenario, each run gets a fresh
//! server, and what is compared are medians.

use crate::cli::{CompareArgs, ScenarioCli, ScenarioLoad, start};
use crate::fault::{Fault, Outcome};
use crate::load::{self, Plan, Seen, histogram};
use crate::report::{LoadReport, Progress, human};
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
            Self::Smoke => [
                "1→2 128 B: throughput --subs 2 --verify",
                "2→4, 2 queue groups: throughput --pubs 2 --subs 4 --queue-groups 2 --verify",
                "100 subjects, headers: throughput --subjects 100 --subs 4 --headers 64 --verify",
                "wildcard: throughput --subjects 10 --subs 2 --wildcard --verify",
                "1→2, 2 k/s: latency --rate 2000 --subs 2 --verify --lag-max 100ms",
            ]
            .iter()
            .map(|text| format!("{text} --warmup 100ms --duration 300ms"))
            .collect(),
        }
    }
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
    plan: Plan,
    lag_max_us: f64,
}

/// Reads `[NAME:] throughput …`; `before` and `after` are options around its own.
fn parse_scenario(text: &str, before: &str, after: &str) -> Outcome<Scenario> {
    let (name, command) = text.split_once(": ").unwrap_or((text, text));
    let mut words = command.split_whitespace();
    let kind = words.next().into_iter();
    let all = kind.chain(before.split_whitespace()).chain(words).chain(after.split_whitespace());
    let parsed: ScenarioLoad = ScenarioCli::try_parse_from(all)
        .map_err(|e| {
            let reason = e.to_string();
            let reason = reason.lines().next().unwrap_or_default().trim_start_matches("error: ");
            let cause = format!("the scenario '{text}' cannot be read: {reason}");
            Fault::new(cause, "write it like 'throughput --subs 10'; see throughput --help")
        })?
        .load;
    let load = parsed.load();
    let plan = load.plan().map_err(|fault| fault.at(name))?;
    Ok(Scenario { name: name.to_owned(), plan, lag_max_us: load.lag_max_us() })
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

/// All runs of one scenario on one server.
#[derive(Debug, Serialize)]
pub(crate) struct Entry {
    /// The server's name.
    pub(crate) server: String,
    /// Deliveries per second of the server's CPU.
    pub(crate) per_server_cpu_s: Option<Summary>,
    /// This program's own CPU per delivery, in nanoseconds.
    pub(crate) generator_ns_each: Option<Summary>,
    /// Deliveries per second.
    pub(crate) delivered_per_s: Option<Summary>,
    /// The median latency, in microseconds.
    pub(crate) latency_p50_us: Option<Summary>,
    /// The 99th percentile of the latency, in microseconds.
    pub(crate) latency_p99_us: Option<Summary>,
    /// The 99.9th percentile of the latency, in microseconds.
    pub(crate) latency_p999_us: Option<Summary>,
    /// Every run.
    pub(crate) runs: Vec<LoadReport>,
    /// The latencies of all runs, in nanoseconds.
    #[serde(skip)]
    pub(crate) latency: Histogram<u64>,
}

impl Entry {
    fn new(server: &Server) -> Self {
        Self {
            server: server.name.clone(),
            per_server_cpu_s: None,
            generator_ns_each: None,
            delivered_per_s: None,
            latency_p50_us: None,
            latency_p99_us: None,
            latency_p999_us: None,
            runs: Vec::new(),
            latency: histogram(),
        }
    }

    fn add(&mut self, report: LoadReport, seen: &Seen) {
        self.runs.push(report);
        // Both have the same bounds, so adding cannot fail.
        let _ = self.latency.add(&seen.latency);
        let runs = || self.runs.iter();
        self.per_server_cpu_s = Summary::of(runs().filter_map(|run| run.per_server_cpu_s));
        self.delivered_per_s = Summary::of(runs().map(|run| run.delivered_per_s));
        self.generator_ns_each = Summary::of(runs().map(|run| run.generator_ns_each));
        let latencies = || runs().filter_map(|run| run.latency_us);
        self.latency_p50_us = Summary::of(latencies().map(|q| q.p50));
        self.latency_p99_us = Summary::of(latencies().map(|q| q.p99));
        self.latency_p999_us = Summary::of(latencies().map(|q| q.p999));
    }

    /// Whether its figures may be used.
    pub(crate) fn is_valid(&self) -> bool {
        self.runs.iter().all(|run| run.invalid.is_empty())
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
    /// One entry per server, in the order they were given.
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
    let identity = args.identity.load()?;
    let mut comparison = Comparison {
        machine: Machine::here(),
        commands: servers.iter().map(|s| (s.name.clone(), s.command.clone())).collect(),
        rows: Vec::new(),
        interrupted: false,
    };
    for (number, scenario) in scenarios.iter().enumerate() {
        let mut entries: Vec<Entry> = servers.iter().map(Entry::new).collect();
        for run in 0..args.runs {
            for (server, entry) in servers.iter().zip(&mut entries) {
                let place = format!("{} on {}", scenario.name, server.name);
                let mut progress = Progress::new(format!(
                    "scenario {}/{}, run {}/{}: {place}",
                    number + 1,
                    scenarios.len(),
                    run + 1,
                    args.runs
                ));
                let subject = start(&server.command, identity.clone())?;
                let seen =
                    load::run(&scenario.plan, &subject.target, subject.pid, stop, &mut progress);
                let seen = match seen {
                    Err(_) if stop.load(Ordering::Relaxed) => break,
                    other => other.map_err(|fault| fault.at(&place))?,
                };
                entry.add(LoadReport::new(&scenario.plan, &seen, scenario.lag_max_us), &seen);
            }
            comparison.interrupted = stop.load(Ordering::Relaxed);
            if comparison.interrupted {
                break;
            }
        }
        comparison.rows.push(Row { scenario: scenario.name.clone(), servers: entries });
        if comparison.interrupted {
            break;
        }
    }
    Ok(comparison)
}

impl Comparison {
    /// Whether every run of it may be used.
    pub(crate) fn is_valid(&self) -> bool {
        self.rows.iter().flat_map(|row| &row.servers).all(Entry::is_valid)
    }

    /// The latencies of each scenario on each server, with names fit for files.
    pub(crate) fn latencies(&self) -> impl Iterator<Item = (String, &Histogram<u64>)> {
        let entries = self.rows.iter().flat_map(|row| row.servers.iter().map(move |e| (row, e)));
        let timed = entries.filter(|(_, entry)| !entry.latency.is_empty());
        timed.map(|(row, entry)| {
            let name = format!("{}.{}", slug(&row.scenario), slug(&entry.server));
            (name, &entry.latency)
        })
    }

    /// The tables, in Markdown.
    pub(crate) fn text(&self) -> String {
        let timed = |row: &&Row| row.servers.iter().any(|e| e.latency_p50_us.is_some());
        let (timed, loads): (Vec<&Row>, Vec<&Row>) = self.rows.iter().partition(timed);
        let tables: [(&str, &[&Row], &[Figure]); 4] = [
            (
                "Deliveries per second of the server's CPU",
                &loads,
                &[("", |entry| entry.per_server_cpu_s)],
            ),
            ("Deliveries per second", &loads, &[("", |entry| entry.delivered_per_s)]),
            (
                "CPU of the load generator itself per delivery, in ns",
                &loads,
                &[("", |entry| entry.generator_ns_each)],
            ),
            (
                "Latency from the intended send time, in µs",
                &timed,
                &[
                    (" p50", |entry| entry.latency_p50_us),
                    (" p99", |entry| entry.latency_p99_us),
                    (" p99.9", |entry| entry.latency_p999_us),
                ],
            ),
        ];
        let mut out = String::new();
        for (title, rows, figures) in tables.iter().filter(|(_, rows, _)| !rows.is_empty()) {
            out.push_str(&format!("{title} (median of the runs ± half their spread)\n\n"));
            out.push_str(&self.table(rows, figures));
            out.push('\n');
        }
        out.push_str(&self.faults());
        if self.interrupted {
            out.push_str("ended early by the user\n");
        }
        out
    }

    /// One line for each server and scenario whose figures must not be used.
    fn faults(&self) -> String {
        let mut out = String::new();
        for row in &self.rows {
            for entry in row.servers.iter().filter(|entry| !entry.is_valid()) {
                let bad = || entry.runs.iter().filter(|run| !run.invalid.is_empty());
                let first = bad().flat_map(|run| &run.invalid).next().map_or("", String::as_str);
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

    /// A table with, for each figure, one column per server and one with the ratio to the first.
    fn table(&self, rows: &[&Row], figures: &[Figure]) -> String {
        let mut head = vec!["scenario".to_owned()];
        let first = &self.commands[0].0;
        for (figure, _) in figures {
            head.push(format!("{first}{figure}"));
            for (name, _) in &self.commands[1..] {
                head.extend([format!("{name}{figure}"), format!("×{first}")]);
            }
        }
        let mut cells = vec![head];
        for row in rows {
            let mut line = vec![row.scenario.clone()];
            for (_, figure) in figures {
                let yardstick = row.servers.first().and_then(figure);
                for (number, entry) in row.servers.iter().enumerate() {
                    let summary = figure(entry);
                    let flag = if entry.is_valid() { "" } else { " INVALID" };
                    line.push(summary.map_or("–".to_owned(), |s| {
                        format!("{} ±{:.0} %{flag}", human(s.median), s.spread() * 100.0)
                    }));
                    if number > 0 {
                        let ratio = summary.zip(yardstick).map(|(s, y)| s.median / y.median);
                        line.push(ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}")));
                    }
                }
            }
            cells.push(line);
        }
        table(&cells)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_of_every_suite_can_be_read() {
        for suite in [Suite::Fanout, Suite::Latency, Suite::Smoke] {
            for text in suite.scenarios() {
                let scenario = parse_scenario(&text, "", "--duration 1s").unwrap();
                assert_eq!(scenario.plan.duration.as_secs(), 1, "{text}");
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
