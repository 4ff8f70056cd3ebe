//! `shardcast-perf`: latency and load for any NATS server.
#![forbid(unsafe_code)]

mod cli;
mod client;
mod clock;
mod compare;
mod fault;
mod load;
mod report;
mod server;
mod stats;
mod wire;

use clap::Parser as _;
use cli::{Cli, Command, Load, OneLoad};
use fault::{Fault, Outcome};
use report::{LoadReport, Progress};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Exit codes: a failure, figures that must not be used, ended by Ctrl-C.
const FAILED: u8 = 1;
const INVALID: u8 = 2;
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = interruption().and_then(|stop| match &cli.command {
        Command::Throughput(one) => run_load("throughput", one, &stop),
        Command::Latency(one) => run_load("latency", one, &stop),
        Command::Compare(args) => run_compare(args, &stop),
    });
    outcome.unwrap_or_else(|fault| {
        eprintln!("shardcast-perf: {fault}");
        ExitCode::from(FAILED)
    })
}

/// A flag that the first Ctrl-C (or SIGTERM) sets; the second one ends the program at once.
fn interruption() -> Outcome<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
            .map_err(|e| Fault::new(format!("no signal handler ({e})"), "report this bug"))?;
    }
    Ok(stop)
}

fn run_load<T: Load + clap::Args>(
    label: &str,
    one: &OneLoad<T>,
    stop: &AtomicBool,
) -> Outcome<ExitCode> {
    let plan = one.load.plan()?;
    let subject = one.target.prepare()?;
    let mut progress = Progress::new(format!("{label} {}", subject.target.name()));
    let seen = load::run(&plan, &subject.target, subject.pid, stop, &mut progress)?;
    let report = LoadReport::new(&plan, &seen, one.load.lag_max_us());
    publish(&report, &report.text(), one.output.json.as_deref())?;
    Ok(exit_code(report.invalid.is_empty(), report.interrupted))
}

fn run_compare(args: &cli::CompareArgs, stop: &AtomicBool) -> Outcome<ExitCode> {
    let comparison = compare::run(args, stop)?;
    publish(&comparison, &comparison.text(), args.output.json.as_deref())?;
    Ok(exit_code(comparison.is_valid(), comparison.interrupted))
}

fn exit_code(valid: bool, interrupted: bool) -> ExitCode {
    match (interrupted, valid) {
        (true, _) => ExitCode::from(INTERRUPTED),
        (false, false) => ExitCode::from(INVALID),
        (false, true) => ExitCode::SUCCESS,
    }
}

/// Prints the text, or the JSON in its place when that is to go to standard output.
fn publish<T: serde::Serialize>(report: &T, text: &str, json: Option<&Path>) -> Outcome<()> {
    let Some(path) = json else {
        print!("{text}");
        return Ok(());
    };
    let rendered = serde_json::to_string_pretty(report)
        .map_err(|e| Fault::new(format!("no JSON ({e})"), "report this bug"))?;
    if path == Path::new("-") {
        println!("{rendered}");
        return Ok(());
    }
    print!("{text}");
    write_file(path, rendered.as_bytes())
}

fn write_file(path: &Path, bytes: &[u8]) -> Outcome<()> {
    std::fs::write(path, bytes).map_err(|e| {
        Fault::new(format!("cannot write {} ({e})", path.display()), "check the path and rights")
    })
}
