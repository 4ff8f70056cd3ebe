//! One server under everything at once for a long time, and what became of it meanwhile.
//!
//! A round is a steady load at a fixed rate, with every delivery checked, beside subscribers that
//! read nothing and a connection that subscribes and unsubscribes; then a flood as fast as the
//! server goes; then a storm of connections. All connections are new in each round. What the
//! server holds when a round is over and everybody has left is its sample: a leak shows as a line
//! that rises.

use crate::cli::{SoakArgs, Subject};
use crate::compare::Machine;
use crate::fault::{Fault, Outcome};
use crate::measure::{Run, Work};
use crate::neighbour::Visits;
use crate::report::{Progress, Quantiles, human};
use crate::server::Usage;
use crate::stats::table;
use serde::Serialize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long a server has to let go of a round's connections before it is looked at.
const SETTLE: Duration = Duration::from_secs(2);
/// So many samples are shown as text, at most.
const ROWS_MAX: usize = 24;

/// What a soak showed.
#[derive(Debug, Serialize)]
pub(crate) struct Soak {
    /// The machine.
    pub(crate) machine: Machine,
    /// One for each round.
    pub(crate) samples: Vec<Sample>,
    /// What went wrong, with the round; empty when every delivery came once and in order.
    pub(crate) faults: Vec<String>,
}

/// One round, and the server after it.
#[derive(Debug, Serialize)]
pub(crate) struct Sample {
    /// Seconds since the start, at the round's end.
    pub(crate) at_s: f64,
    /// The server's resident memory in bytes, when its process is known.
    pub(crate) rss_bytes: Option<u64>,
    /// Its open files.
    pub(crate) files: Option<usize>,
    /// Its seconds of CPU since it started.
    pub(crate) cpu_s: Option<f64>,
    /// Of the steady load, from the intended send time.
    pub(crate) latency_us: Option<Quantiles>,
    /// Deliveries per second of the steady load.
    pub(crate) steady_per_s: f64,
    /// Deliveries per second of the flood.
    pub(crate) flood_per_s: f64,
    /// Connections per second of the storm.
    pub(crate) storm_per_s: f64,
    /// What has become of its neighbours so far.
    pub(crate) visits: Visits,
}

/// Goes on for as long as `args` say, or until `stop`.
pub(crate) fn run(args: &SoakArgs, stop: &AtomicBool) -> Outcome<Soak> {
    let subject = args.target.prepare(&args.steady()?.setup())?;
    let neighbour = args.neighbour()?;
    let (over, visits) = (AtomicBool::new(false), Mutex::new(Visits::default()));
    thread::scope(|scope| {
        let beside = neighbour
            .as_ref()
            .map(|neighbour| scope.spawn(|| neighbour.come_and_go(&over, &visits)));
        let soaked = rounds(args, &subject, &visits, stop);
        over.store(true, Ordering::Relaxed);
        let left = beside.map_or(Ok(()), |beside| beside.join().unwrap_or(Ok(())));
        let mut soak = soaked?;
        let gaps = visits_of(&visits).gaps;
        if gaps > 0 {
            soak.faults.push(format!("the neighbour's clients have found {gaps} gaps"));
        }
        if let Err(fault) = left {
            soak.faults.push(fault.at("the neighbour").to_string());
        }
        Ok(soak)
    })
}

fn visits_of(visits: &Mutex<Visits>) -> Visits {
    // Nobody panics who holds it.
    visits.lock().map_or_else(|_| Visits::default(), |visits| *visits)
}

fn rounds(
    args: &SoakArgs,
    subject: &Subject,
    visits: &Mutex<Visits>,
    stop: &AtomicBool,
) -> Outcome<Soak> {
    let (steady, flood, storm) = (args.steady()?, args.flood()?, args.storm());
    let mut soak = Soak { machine: Machine::here(), samples: Vec::new(), faults: Vec::new() };
    let began = Instant::now();
    while began.elapsed() < args.total && !stop.load(Ordering::Relaxed) {
        let round = soak.samples.len() + 1;
        let mut play = |what: &str, work: &Work| -> Outcome<Option<Run>> {
            let mut progress = Progress::new(format!("soak, round {round}, {what}"));
            match work.run(subject, stop, &mut progress) {
                Ok((run, _)) if run.is_interrupted() => Ok(None),
                Ok((run, _)) => {
                    let faults = run.invalid().into_iter();
                    soak.faults.extend(faults.map(|why| format!("round {round}, {what}: {why}")));
                    Ok(Some(run))
                }
                Err(_) if stop.load(Ordering::Relaxed) => Ok(None),
                Err(fault) => Err(fault.at(format!("round {round}, {what}"))),
            }
        };
        let Some(calm) = play("steady", &steady)? else { break };
        let Some(rush) = play("flood", &flood)? else { break };
        let Some(crowd) = play("storm", &storm)? else { break };
        thread::sleep(SETTLE);
        let usage = subject.pid.and_then(Usage::of);
        if subject.pid.is_some() && usage.is_none() {
            return Err(Fault::new("the server has ended", "look into its log"));
        }
        soak.samples.push(Sample {
            at_s: began.elapsed().as_secs_f64(),
            rss_bytes: usage.map(|usage| usage.rss_bytes),
            files: subject.pid.and_then(open_files),
            cpu_s: usage.map(Usage::cpu_s),
            latency_us: calm.figures().times,
            steady_per_s: calm.figures().per_s.unwrap_or(0.0),
            flood_per_s: rush.figures().per_s.unwrap_or(0.0),
            storm_per_s: crowd.figures().per_s.unwrap_or(0.0),
            visits: visits_of(visits),
        });
    }
    Ok(soak)
}

fn open_files(pid: u32) -> Option<usize> {
    Some(std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count())
}

impl Soak {
    /// A table of samples, evenly taken, and what went wrong.
    pub(crate) fn text(&self) -> String {
        let head = ["s", "MiB", "files", "p50 µs", "p99.9 µs", "flood/s", "conns/s"];
        let mut cells = vec![head.map(str::to_owned).to_vec()];
        let step = self.samples.len().div_ceil(ROWS_MAX).max(1);
        let dash = || "–".to_owned();
        for sample in self.samples.iter().rev().step_by(step).rev() {
            let time = |of: fn(&Quantiles) -> f64| {
                sample.latency_us.as_ref().map_or_else(dash, |times| human(of(times)))
            };
            cells.push(vec![
                format!("{:.0}", sample.at_s),
                sample
                    .rss_bytes
                    .map_or_else(dash, |bytes| format!("{:.1}", bytes as f64 / f64::from(1 << 20))),
                sample.files.map_or_else(dash, |files| files.to_string()),
                time(|times| times.p50),
                time(|times| times.p999),
                human(sample.flood_per_s),
                human(sample.storm_per_s),
            ]);
        }
        let mut out = table(&cells);
        let visits = self.samples.last().map_or_else(Visits::default, |sample| sample.visits);
        if visits.left > 0 {
            out.push_str(&format!(
                "A neighbour came and left {} times; its clients heard {} messages\n",
                visits.left, visits.heard
            ));
        }
        for fault in &self.faults {
            out.push_str(&format!("INVALID {fault}\n"));
        }
        out
    }
}
