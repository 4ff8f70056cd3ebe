//! Many lives of a store on a disk that may do what disks do, each decided by one number.
//!
//! `STORE_SEEDS=<n> cargo test --test store` runs n seeds from the first on, or from
//! `STORE_FROM=<n>`; `STORE_SEED=<n>` runs one and tells what happens.

#[allow(dead_code, reason = "the simulator looks whether it is idle; here nobody does")]
#[path = "sim/disk.rs"]
mod disk;
#[path = "store/model.rs"]
mod model;
#[path = "store/world.rs"]
mod world;

use std::sync::atomic::{AtomicU64, Ordering};

/// Seeds that run if nobody says how many.
const SEEDS: u64 = 200;
/// Seeds that once failed, as long as lives are made in the same way. What lasts is a test by name
/// beside each mended bug.
const REGRESSIONS: &[u64] = &[1_831, 4_367, 5_328, 100_059, 200_726, 201_246];

/// Says how to run a seed again if it panics.
struct Culprit(u64);

impl Drop for Culprit {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self(seed) = self;
            eprintln!("\nseed {seed} fails: STORE_SEED={seed} cargo test --test store lives\n");
        }
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

fn run(seed: u64, trace: bool) -> world::Outcome {
    let _culprit = Culprit(seed);
    world::run_seed(seed, trace)
}

/// Runs `seed_at(0)`, `seed_at(1)` and so on, until there is none.
fn run_all(seed_at: impl Fn(u64) -> Option<u64> + Sync) -> world::Outcome {
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        let mut sum = world::Outcome::default();
        while let Some(seed) = seed_at(next.fetch_add(1, Ordering::Relaxed)) {
            sum += run(seed, false);
        }
        sum
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut sum = world::Outcome::default();
        for worker in workers {
            match worker.join() {
                Ok(outcome) => sum += outcome,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        sum
    })
}

#[test]
fn lives_end_and_begin_anew_and_what_was_acknowledged_is_there_once_and_unchanged() {
    if let Some(seed) = number("STORE_SEED") {
        println!("{:?}", run(seed, true));
        return;
    }
    let seeds = number("STORE_SEEDS").unwrap_or(SEEDS);
    let first = number("STORE_FROM").unwrap_or(0);
    let sum = run_all(|at| (at < seeds).then_some(first + at));
    println!("{seeds} seeds: {sum:?}");
    assert!(seeds < SEEDS || sum.has_seen_all(), "some of it never happens: {sum:?}");
}

#[test]
fn seeds_that_once_failed_do_so_no_more() {
    run_all(|at| REGRESSIONS.get(usize::try_from(at).ok()?).copied());
}
