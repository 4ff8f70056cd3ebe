//! One server under everything at once for a long time, and what became of it meanwhile.
//!
//! A round is a steady load at a fixed rate, with every delivery checked, beside subscribers that
//! read nothing and a connection that subscribes and unsubscribes; then a flood as fast as the
//! server goes; then a storm of connections; and where the server has accounts, reloads and pushed
//! tokens. All connections are new in each round. What the server holds when a round is over and
//! everybody has left is its sample: a leak shows as a line that rises, which is a fault.

use crate::admin::{Admin, Administered};
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
/// Memory that is more than it was by less than this says nothing, in bytes.
const GROWTH_BYTES_MIN: u64 = 4 << 20;
/// Nor does what is less than this part of it.
const GROWTH_PART: u64 = 20;
/// Of fewer samples it is not known whether memory grows.
const GROWTH_SAMPLES_MIN: usize = 6;
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
    /// What administration there was, where there is any.
    pub(crate) administered: Option<Administered>,
    /// What has become of its neighbours so far.
    pub(crate) visits: Visits,
}

/// Goes on for as long as `args` say, or until `stop`.
pub(crate) fn run(args: &SoakArgs, stop: &AtomicBool) -> Outcome<Soak> {
    let (subject, mut admin) = args.prepare()?;
    let neighbour = args.neighbour()?;
    let (over, visits) = (AtomicBool::new(false), Mutex::new(Visits::default()));
    thread::scope(|scope| {
        let beside = neighbour
            .as_ref()
            .map(|neighbour| scope.spawn(|| neighbour.come_and_go(&over, &visits)));
        let soaked = rounds(args, &subject, admin.as_mut(), &visits, stop);
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
    mut admin: Option<&mut Admin>,
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
        let administered = match (&mut admin, subject.started.first()) {
            (Some(admin), Some(server)) => {
                let done = admin.act(server, &subject.target.access().tls);
                Some(done.map_err(|fault| fault.at(format!("round {round}, administration")))?)
            }
            _ => None,
        };
        thread::sleep(SETTLE);
        let usage = subject.usage();
        if !subject.pids.is_empty() && usage.is_none() {
            return Err(Fault::new("the server has ended", "look into its log"));
        }
        soak.samples.push(Sample {
            at_s: began.elapsed().as_secs_f64(),
            rss_bytes: usage.map(|usage| usage.rss_bytes),
            files: subject.pids.first().copied().and_then(open_files),
            cpu_s: usage.map(Usage::cpu_s),
            latency_us: calm.figures().times,
            steady_per_s: calm.figures().per_s.unwrap_or(0.0),
            flood_per_s: rush.figures().per_s.unwrap_or(0.0),
            storm_per_s: crowd.figures().per_s.unwrap_or(0.0),
            administered,
            visits: visits_of(visits),
        });
    }
    soak.faults.extend(growth(&soak.samples));
    Ok(soak)
}

/// Whether the server's memory keeps growing: whatever it needs at all it has after a third of the
/// rounds, so the last third never has less than the one before had at most, and more.
fn growth(samples: &[Sample]) -> Option<String> {
    let memory: Vec<u64> = samples.iter().filter_map(|sample| sample.rss_bytes).collect();
    let third = memory.len() / 3;
    if memory.len() < GROWTH_SAMPLES_MIN {
        return None;
    }
    let (before, last) = memory[third..].split_at(memory.len() - 2 * third);
    let (before, last) = (before.iter().max()?, last.iter().min()?);
    let grown = last.checked_sub(*before)?;
    (grown > GROWTH_BYTES_MIN.max(before / GROWTH_PART)).then(|| {
        format!("the server's memory keeps growing: {} KiB more, and no less since", grown >> 10)
    })
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
        if let Some(last) = self.samples.last().and_then(|sample| sample.administered) {
            let Administered { reloads, reload_ms, pushes, push_ms } = last;
            out.push_str(&format!(
                "In each round {reloads} reloads, of {} ms in the last one, and {pushes} pushed \
                 tokens of {} ms\n",
                human(reload_ms),
                human(push_ms)
            ));
        }
        for fault in &self.faults {
            out.push_str(&format!("INVALID {fault}\n"));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(mib: &[u64]) -> Vec<Sample> {
        let sample = |mib: &u64| Sample {
            at_s: 0.0,
            rss_bytes: Some(mib << 20),
            files: None,
            cpu_s: None,
            latency_us: None,
            steady_per_s: 0.0,
            flood_per_s: 0.0,
            storm_per_s: 0.0,
            administered: None,
            visits: Visits::default(),
        };
        mib.iter().map(sample).collect()
    }

    #[test]
    fn memory_that_rises_to_the_end_is_a_fault_and_what_levels_off_is_none() {
        let fault = growth(&samples(&[20, 25, 30, 35, 40, 45, 50, 55, 60])).expect("it rises");
        assert!(fault.contains("5120 KiB more"), "{fault}");
        assert_eq!(growth(&samples(&[20, 40, 60, 61, 60, 62, 61, 63, 62])), None);
        assert_eq!(growth(&samples(&[20, 60, 40, 45, 41, 60, 45, 70, 80])), None, "it went down");
        assert_eq!(growth(&samples(&[20, 80, 200])), None, "it is too early to say");
        assert_eq!(growth(&[]), None);
    }
}
