//! `shardcast-perf`: latency and load for any NATS server.
#![forbid(unsafe_code)]

mod admin;
mod beside;
mod ceiling;
mod cli;
mod client;
mod clock;
mod compare;
mod desk;
mod fault;
mod link;
mod load;
mod measure;
mod monitor;
mod mqtt;
mod neighbour;
mod plot;
mod probe;
mod report;
mod requests;
mod server;
mod soak;
mod stats;
mod stored;
mod suites;
mod tls;
mod wire;

use clap::Parser as _;
use cli::{Cli, Command, Measures, One, OutputArgs, Subject};
use client::Access;
use fault::{Fault, Outcome};
use hdrhistogram::Histogram;
use measure::Work;
use report::Progress;
use server::Setup;
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
    let outcome = match &cli.command {
        Command::Throughput(one) => measure("throughput", one),
        Command::Latency(one) => measure("latency", one),
        Command::Rtt(one) => measure("rtt", one),
        Command::Read(one) => measure("read", one),
        Command::Connect(one) => measure("connect", one),
        Command::Idle(one) => measure("idle", one),
        Command::Subs(one) => measure("subs", one),
        Command::Ceiling(args) => run_ceiling(args),
        Command::Pour(args) => ceiling::pour(args).map(|()| ExitCode::SUCCESS),
        Command::Soak(args) => run_soak(args),
        Command::Compare(args) => run_compare(args),
    };
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

fn measure<T: Measures + clap::Args>(label: &str, one: &One<T>) -> Outcome<ExitCode> {
    let work = one.work.work()?;
    run(label, &work, || one.target.prepare(&work.setup()), &one.output)
}

fn run_ceiling(args: &cli::CeilingArgs) -> Outcome<ExitCode> {
    let work = args.work()?;
    let Some((work, command)) = work.ceilings()?.pop() else {
        return Err(Fault::new("there is no such ceiling", "report this bug"));
    };
    run("ceiling", &work, || cli::start(&command, Access::none()?, &Setup::default()), &args.output)
}

fn run(
    label: &str,
    work: &Work,
    prepare: impl FnOnce() -> Outcome<Subject>,
    output: &OutputArgs,
) -> Outcome<ExitCode> {
    let stop = interruption()?;
    let subject = prepare()?;
    let mut progress = Progress::new(format!("{label} {}", subject.target.name()));
    let (run, times) = work.run(&subject, &stop, &mut progress)?;
    publish(&run, &run.text(), output.json.as_deref())?;
    keep_times(output, label, work.times(), &times)?;
    Ok(exit_code(run.invalid().is_empty(), run.is_interrupted()))
}

/// Writes the percentile file and the picture of one measurement, when they were asked for.
fn keep_times(output: &OutputArgs, title: &str, what: &str, times: &Histogram<u64>) -> Outcome<()> {
    if let (true, Some(path)) = (times.is_empty(), output.hgrm.as_ref().or(output.plot.as_ref())) {
        return Err(Fault::new(
            format!("there are no latencies for {}", path.display()),
            "leave --hgrm and --plot out, or use latency, rtt, connect or compare",
        ));
    }
    if let Some(path) = &output.hgrm {
        write_file(path, report::hgrm(times).as_bytes())?;
    }
    if let Some(path) = &output.plot {
        write_file(path, plot::latency(title, what, &[(title, times)])?.as_bytes())?;
    }
    Ok(())
}

fn run_compare(args: &cli::CompareArgs) -> Outcome<ExitCode> {
    let stop = interruption()?;
    let comparison = compare::run(args, &stop)?;
    publish(&comparison, &comparison.text(), args.output.json.as_deref())?;
    if let Some(path) = &args.output.hgrm {
        for (name, times) in comparison.latencies() {
            write_file(
                &path.with_extension(format!("{name}.hgrm")),
                report::hgrm(times).as_bytes(),
            )?;
        }
    }
    if let Some(path) = &args.output.plot {
        write_file(path, plot::comparison(&comparison)?.as_bytes())?;
    }
    if let Some(fault) = comparison.fault {
        return Err(fault);
    }
    Ok(exit_code(comparison.is_valid(), comparison.interrupted))
}

fn run_soak(args: &cli::SoakArgs) -> Outcome<ExitCode> {
    let stop = interruption()?;
    let soak = soak::run(args, &stop)?;
    publish(&soak, &soak.text(), args.output.json.as_deref())?;
    if let Some(path) = &args.output.plot {
        write_file(path, plot::soak(&soak)?.as_bytes())?;
    }
    // Ended early is not failed: what was seen until then counts.
    Ok(exit_code(soak.faults.is_empty(), false))
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
