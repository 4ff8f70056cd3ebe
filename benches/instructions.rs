//! How many instructions a delivery takes between the reactor and the reactor, counted by
//! callgrind: the same on a busy machine and an idle one.
//!
//! ```text
//! cargo bench --bench instructions                 all scenarios, a line each
//! cargo bench --bench instructions -- 1to100       those whose names contain this
//! cargo bench --bench instructions -- --top NAME   where the instructions of one scenario are
//! cargo bench --bench instructions -- --check      fail if one is over 10 % above the record
//! cargo bench --bench instructions -- --record     make what is counted now the record
//! ```
//!
//! The record is `benches/instructions.json`. What is not in it yet is not compared, and `--check`
//! says so.
//!
//! The program runs itself under valgrind, which counts only inside [`measured`]: everybody is
//! connected and subscribed before, and everything that is cached has been seen once.

#![forbid(unsafe_code)]

mod scenarios;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use serde_json::{Value, json};

use scenarios::{Scenario, Sids, World};

/// Chunks of 64 KiB over which is counted.
const CHUNKS: usize = 4;
/// Where the counts stand that `--check` compares with.
const RECORD: &str = "benches/instructions.json"; // Cargo runs it in the package.
/// How far above the record a count may be.
const ALLOWED: f64 = 1.1;
/// How often a scenario is counted before it is too much. Where the heap lies, and with it what
/// reallocating costs, depends on the size of the environment.
const TRIES: usize = 3;
/// Lines of callgrind's list that are shown.
const TOP_LINES: usize = 70;

fn all_scenarios() -> Vec<Scenario> {
    let fanout = |subscribers, payload_bytes, sids, shards| Scenario::Fanout {
        subscribers,
        payload_bytes,
        sids,
        shards,
    };
    let count = 100_000;
    let payload_bytes = 128;
    let pairs = |shards| Scenario::Pairs { pairs: 10, payload_bytes, shards };
    let queue = |shards| Scenario::Queue { members: 10, payload_bytes, shards };
    let round_trips =
        |shards| Scenario::RoundTrips { requesters: 10, responders: 10, payload_bytes, shards };
    vec![
        fanout(1, 16, Sids::Equal, 1),
        fanout(1, 128, Sids::Equal, 1),
        fanout(1, 1024, Sids::Equal, 1),
        fanout(10, 128, Sids::Equal, 1),
        fanout(10, 128, Sids::Distinct, 1),
        fanout(100, 16, Sids::Equal, 1),
        fanout(100, 128, Sids::Equal, 1),
        fanout(100, 128, Sids::Distinct, 1),
        fanout(1000, 128, Sids::Equal, 1),
        fanout(1, 128, Sids::Equal, 2),
        fanout(100, 128, Sids::Equal, 2),
        Scenario::Mqtt { subscribers: 1, payload_bytes },
        Scenario::Mqtt { subscribers: 100, payload_bytes: 16 },
        Scenario::Mqtt { subscribers: 100, payload_bytes },
        Scenario::Headers { payload_bytes },
        Scenario::Permitted { subscribers: 1, payload_bytes },
        Scenario::Permitted { subscribers: 100, payload_bytes },
        Scenario::Queue { members: 4, payload_bytes, shards: 1 },
        queue(1),
        queue(2),
        pairs(1),
        pairs(2),
        round_trips(1),
        round_trips(2),
        Scenario::Requests { subjects: 4, payload_bytes: 16 },
        Scenario::Subjects { count, payload_bytes, wildcard: false },
        Scenario::Subjects { count, payload_bytes, wildcard: true },
        Scenario::Churn { wildcard: false, shards: 1 },
        Scenario::Churn { wildcard: true, shards: 1 },
        Scenario::Churn { wildcard: false, shards: 2 },
    ]
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let is_bench = arguments.iter().any(|argument| argument == "--bench");
    let texts = arguments.iter().map(String::as_str).filter(|text| *text != "--bench");
    let texts: Vec<&str> = texts.collect();
    match texts[..] {
        ["--run", name] => with_scenario(name, run),
        _ if !is_bench => {
            println!("instructions: not counted; run `cargo bench --bench instructions`");
            ExitCode::SUCCESS
        }
        ["--check" | "--record"] if !has_valgrind() => {
            exit_code(Err("nothing to count with: install valgrind".to_owned()))
        }
        _ if !has_valgrind() => {
            println!("instructions: not counted, because valgrind is not installed");
            ExitCode::SUCCESS
        }
        ["--top", name] => with_scenario(name, |scenario| {
            let (_, profile) = count(scenario, 0)?;
            show_top(&profile)
        }),
        ["--check"] => exit_code(check()),
        ["--record"] => exit_code(record()),
        [] => list(""),
        [part] => list(part),
        _ => {
            eprintln!("instructions: [PART OF A NAME | --top NAME | --check | --record]");
            ExitCode::FAILURE
        }
    }
}

/// Runs a scenario, and finds out whether it does what its instructions are divided by.
fn run(scenario: &Scenario) -> Result<(), String> {
    let mut world = World::new(scenario);
    let before = world.delivered();
    measured(&mut world);
    let (delivered, expected) = (world.delivered() - before, scenario.elements(CHUNKS));
    let is_churn = matches!(scenario, Scenario::Churn { .. });
    // Where a chunk cuts an operation it counts later.
    let is_right = delivered.abs_diff(expected) <= expected / 50;
    if is_right || is_churn {
        return Ok(());
    }
    Err(format!("{delivered} deliveries, and not {expected}"))
}

/// What is counted: callgrind looks for this name.
#[inline(never)]
fn measured(world: &mut World) {
    (0..CHUNKS).for_each(|_| world.step());
}

fn with_scenario(name: &str, act: impl Fn(&Scenario) -> Result<(), String>) -> ExitCode {
    let scenarios = all_scenarios();
    let Some(scenario) = scenarios.iter().find(|scenario| scenario.name() == name) else {
        eprintln!("instructions: no scenario is called {name}");
        return ExitCode::FAILURE;
    };
    exit_code(act(scenario))
}

fn exit_code(outcome: Result<(), String>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("instructions: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// Counts all scenarios whose names contain `part`.
fn list(part: &str) -> ExitCode {
    println!("{:<32} {:>14} {:>12}", "scenario", "instructions", "each");
    for scenario in all_scenarios().iter().filter(|scenario| scenario.name().contains(part)) {
        match count_each(scenario, 0) {
            Ok((instructions, each)) => {
                println!("{:<32} {instructions:>14} {each:>12.1}", scenario.name());
            }
            Err(problem) => return exit_code(Err(problem)),
        }
    }
    ExitCode::SUCCESS
}

/// Compares all counts with the record.
fn check() -> Result<(), String> {
    let text = fs::read_to_string(RECORD).map_err(|error| format!("no record: {error}"))?;
    let record: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let (mut too_many, mut unrecorded) = (Vec::new(), Vec::new());
    let mut unknown: Vec<&String> =
        record["each"].as_object().map_or(Vec::new(), |each| each.keys().collect());
    println!("{:<32} {:>12} {:>12} {:>8}", "scenario", "recorded", "each", "");
    for scenario in all_scenarios() {
        let name = scenario.name();
        unknown.retain(|recorded| **recorded != name);
        let Some(recorded) = record["each"][&name].as_f64() else {
            println!("{name:<32} {:>12} not counted", "–");
            unrecorded.push(name);
            continue;
        };
        let mut each = f64::INFINITY;
        for attempt in 0..TRIES {
            each = each.min(count_each(&scenario, attempt)?.1);
            if each <= recorded * ALLOWED {
                break;
            }
        }
        println!("{name:<32} {recorded:>12.1} {each:>12.1} {:>8.3}", each / recorded);
        if each > recorded * ALLOWED {
            too_many.push(name);
        }
    }
    if !unrecorded.is_empty() {
        let names = unrecorded.join(", ");
        println!("not in the record, and so not compared: {names}; --record puts them there");
    }
    // One that has got another name is not to be left out unnoticed.
    if let Some(name) = unknown.first() {
        return Err(format!("no scenario is called {name}, which is in the record"));
    }
    if too_many.is_empty() {
        return Ok(());
    }
    let names = too_many.join(", ");
    Err(format!(
        "more than 10 % above the record: {names}; see --top NAME, or, if that is the price of \
         something, write the record anew with --record and say in perf/JOURNAL.md what for"
    ))
}

/// Makes what is counted now the record.
fn record() -> Result<(), String> {
    let mut each = BTreeMap::new();
    for scenario in all_scenarios() {
        let (_, counted) = count_each(&scenario, 0)?;
        each.insert(scenario.name(), (counted * 10.0).round() / 10.0);
    }
    let version = Command::new("rustc").arg("--version").output();
    let version = version.map_err(|error| format!("rustc does not start: {error}"))?.stdout;
    let rustc = String::from_utf8_lossy(&version).trim().to_owned();
    let record = json!({ "rustc": rustc, "each": each });
    let text = serde_json::to_string_pretty(&record).map_err(|error| error.to_string())?;
    fs::write(RECORD, text + "\n").map_err(|error| format!("{RECORD}: {error}"))
}

/// The instructions in [`measured`], all and for each delivery or operation.
fn count_each(scenario: &Scenario, attempt: usize) -> Result<(u64, f64), String> {
    let (instructions, profile) = count(scenario, attempt)?;
    let _ = fs::remove_file(profile); // Only `--top` shows it.
    Ok((instructions, instructions as f64 / scenario.elements(CHUNKS) as f64))
}

fn has_valgrind() -> bool {
    let mut version = Command::new("valgrind");
    version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    version.status().is_ok_and(|status| status.success())
}

/// Runs a scenario under callgrind, each `attempt` with an environment of another size. Returns
/// the instructions in [`measured`] and the profile.
fn count(scenario: &Scenario, attempt: usize) -> Result<(u64, PathBuf), String> {
    let name = scenario.name();
    let profile =
        env::temp_dir().join(format!("shardcast-{}-{name}.callgrind", std::process::id()));
    let program = env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=*measured*", "--compress-strings=no"])
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .arg(program)
        .args(["--run", &name])
        .env("PADDING", "x".repeat(attempt * 1000))
        .output()
        .map_err(|error| format!("valgrind does not start: {error}"))?;
    if !output.status.success() {
        return Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let text = fs::read_to_string(&profile).map_err(|error| error.to_string())?;
    let totals = text.lines().find_map(|line| line.strip_prefix("totals: "));
    let instructions = totals.and_then(|totals| totals.trim().parse().ok());
    match instructions {
        Some(0) | None => Err(format!("{name}: callgrind has counted nothing")),
        Some(instructions) => Ok((instructions, profile)),
    }
}

fn show_top(profile: &PathBuf) -> Result<(), String> {
    let output = Command::new("callgrind_annotate")
        .args(["--auto=no", "--threshold=99"])
        .arg(profile)
        .output()
        .map_err(|error| format!("callgrind_annotate does not start: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().take(TOP_LINES).for_each(|line| println!("{line}"));
    println!("\nall of it: {}", profile.display());
    Ok(())
}
