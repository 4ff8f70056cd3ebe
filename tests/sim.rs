//! Many runs of the simulator, each decided by one number.
//!
//! `SIM_SEEDS=<n> cargo test --test sim` runs n seeds, shared between the kinds of runs, each from
//! the first on; `SIM_SECONDS=<n>` runs seeds that nobody has run yet for so long. With the name of
//! one test `SEED=<n>` runs one and tells what happens; `SHRINK=<n>` makes a short script of one
//! that fails.

#[path = "sim/mod.rs"]
mod sim;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sim::Kind;

/// Seeds that once failed. Each stands for the same script and schedule only as long as neither
/// how scripts are made nor how worlds are played changes; what lasts is the test by name that each
/// mended bug has besides.
const REGRESSIONS: &[(Kind, &[u64])] = &[
    (Kind::Server, &[1516, 2083, 9636, 16040]),
    (Kind::Cluster, &[65, 289, 425, 661, 684, 958, 1773, 2178, 2337, 15272045336277739129]),
    (Kind::Reloads, &[522, 1495]),
];
/// Seeds that run if nobody says how many.
const SEEDS: u64 = 500;

/// Says how to run a seed again if it panics.
struct Culprit(&'static str, u64);

impl Drop for Culprit {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self(test, seed) = self;
            eprintln!("\nseed {seed} fails: SEED={seed} cargo test --test sim {test}");
            eprintln!("a short script of it: SHRINK={seed} cargo test --test sim {test}\n");
        }
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

fn run(kind: Kind, seed: u64, trace: bool) -> sim::Outcome {
    let _culprit = Culprit(name(kind), seed);
    sim::run_seed(kind, seed, trace)
}

/// Runs `seed_at(0)`, `seed_at(1)` and so on, until there is none.
fn run_all(kind: Kind, seed_at: impl Fn(u64) -> Option<u64> + Sync) {
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        let mut sum = sim::Outcome::default();
        let mut seeds = 0;
        while let Some(seed) = seed_at(next.fetch_add(1, Ordering::Relaxed)) {
            sum += run(kind, seed, false);
            seeds += 1;
        }
        (sum, seeds)
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let (mut sum, mut seeds) = (sim::Outcome::default(), 0);
        for worker in workers {
            match worker.join() {
                Ok((outcome, count)) => {
                    sum += outcome;
                    seeds += count;
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        println!("{kind:?}, {seeds} seeds: {sum:?}");
    });
}

/// Runs seeds from a random one on.
#[expect(clippy::disallowed_methods, reason = "how long to look is asked for in seconds")]
fn run_for(kind: Kind, time: Duration) {
    let (first, end) = (fastrand::u64(..), Instant::now() + time);
    println!("from seed {first} on");
    run_all(kind, |at| (Instant::now() < end).then(|| first.wrapping_add(at)));
}

/// Runs what the environment asks for.
fn run_as_asked(kind: Kind) {
    if let Some(seed) = number("SEED") {
        run(kind, seed, true);
        return;
    }
    if let Some(seed) = number("SHRINK") {
        assert_eq!(sim::shortest(kind, seed), None, "seed {seed} fails");
        return;
    }
    if let Some(seconds) = number("SIM_SECONDS") {
        run_for(kind, Duration::from_secs(seconds));
        return;
    }
    let seeds = number("SIM_SEEDS").unwrap_or(SEEDS) * share(kind) / 10;
    run_all(kind, |at| (at < seeds).then_some(at));
}

/// How many of ten seeds are for a kind of run: the others take longer.
fn share(kind: Kind) -> u64 {
    match kind {
        Kind::Server => 6,
        Kind::Cluster | Kind::Reloads => 2,
    }
}

/// The test that is about a kind of run.
fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Server => "shards_agree",
        Kind::Cluster => "servers_agree",
        Kind::Reloads => "configurations_that_change",
    }
}

#[test]
fn shards_agree_with_a_single_table_whatever_happens_when() {
    run_as_asked(Kind::Server);
}

#[test]
fn servers_agree_with_a_single_table_whatever_becomes_of_routes() {
    run_as_asked(Kind::Cluster);
}

#[test]
fn configurations_that_change_change_nothing_else() {
    run_as_asked(Kind::Reloads);
}

#[test]
fn seeds_that_once_failed_do_so_no_more() {
    for (kind, seeds) in REGRESSIONS {
        run_all(*kind, |at| seeds.get(usize::try_from(at).ok()?).copied());
    }
}

#[test]
fn nobody_gets_anything_of_another_account_but_by_export_and_import() {
    let seeds =
        number("SEED").map_or(0..number("SIM_SEEDS").unwrap_or(SEEDS), |seed| seed..seed + 1);
    let (mut abroad, mut answers) = (0, 0);
    for seed in seeds.clone() {
        let _culprit = Culprit("nobody_gets", seed);
        let (deliveries, answered) = sim::accounts::run_seed(seed);
        (abroad, answers) = (abroad + deliveries, answers + answered);
    }
    let enough = seeds.end - seeds.start < 10 || (abroad > 0 && answers > 0);
    assert!(enough, "{abroad} deliveries and {answers} answers between accounts are no test");
}

#[test]
fn whoever_means_harm_ends_nothing_and_publishes_nowhere_but_where_that_is_allowed() {
    let seeds =
        number("SEED").map_or(0..number("SIM_SEEDS").unwrap_or(SEEDS), |seed| seed..seed + 1);
    let mut heard = 0;
    for seed in seeds.clone() {
        let _culprit = Culprit("whoever_means_harm", seed);
        heard += sim::hostile::run_seed(seed);
    }
    assert!(seeds.end - seeds.start < 10 || heard > 0, "nobody heard anything");
}

#[test]
fn any_bytes_are_a_script() {
    for len in 0..40 {
        sim::hostile::run_script(&vec![0xff; len]);
        sim::hostile::run_script(&vec![0; len * 8]);
        for kind in [Kind::Server, Kind::Cluster, Kind::Reloads] {
            sim::run_script(kind, &vec![0xff; len]);
            sim::run_script(kind, &vec![0; len * 8]);
        }
    }
}
