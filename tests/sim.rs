//! Many runs of the simulator, each decided by one number.
//!
//! `SIM_SEEDS=<n> cargo test --test sim` runs the first n seeds; `SEED=<n> cargo test --test sim`
//! runs one and tells what happens.

#[path = "sim/mod.rs"]
mod sim;

use std::sync::atomic::{AtomicU64, Ordering};

/// Seeds that once failed, as long as the script and the schedule they stand for are the same.
const REGRESSIONS: &[u64] = &[1516, 2083, 9636, 16040];
/// Seeds that run if nobody says how many.
const SEEDS: u64 = 300;

/// Says how to run a seed again if it panics.
struct Culprit(u64);

impl Drop for Culprit {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("\nseed {0} fails: SEED={0} cargo test --test sim\n", self.0);
        }
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

fn run(seed: u64, trace: bool) -> sim::Outcome {
    let _culprit = Culprit(seed);
    sim::run_seed(seed, trace)
}

fn run_all(seeds: &[u64]) {
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        let mut sum = sim::Outcome::default();
        while let Ok(at) = usize::try_from(next.fetch_add(1, Ordering::Relaxed))
            && let Some(seed) = seeds.get(at)
        {
            sum += run(*seed, false);
        }
        sum
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut sum = sim::Outcome::default();
        for worker in workers {
            match worker.join() {
                Ok(outcome) => sum += outcome,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        println!("{} seeds: {sum:?}", seeds.len());
    });
}

#[test]
fn shards_agree_with_a_single_table_whatever_happens_when() {
    if let Some(seed) = number("SEED") {
        run(seed, true);
        return;
    }
    let seeds: Vec<u64> = (0..number("SIM_SEEDS").unwrap_or(SEEDS)).collect();
    run_all(&seeds);
}

#[test]
fn seeds_that_once_failed_do_so_no_more() {
    run_all(REGRESSIONS);
}

#[test]
fn nobody_gets_anything_of_another_account_but_by_export_and_import() {
    let seeds =
        number("SEED").map_or(0..number("SIM_SEEDS").unwrap_or(SEEDS), |seed| seed..seed + 1);
    let (mut abroad, mut answers) = (0, 0);
    for seed in seeds.clone() {
        let _culprit = Culprit(seed);
        let (deliveries, answered) = sim::accounts::run_seed(seed);
        (abroad, answers) = (abroad + deliveries, answers + answered);
    }
    let enough = seeds.end - seeds.start < 10 || (abroad > 0 && answers > 0);
    assert!(enough, "{abroad} deliveries and {answers} answers between accounts are no test");
}

#[test]
fn any_bytes_are_a_script() {
    for len in 0..40 {
        sim::run_script(&vec![0xff; len]);
        sim::run_script(&vec![0; len * 8]);
    }
}
