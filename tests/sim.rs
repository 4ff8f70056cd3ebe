//! Many runs of the simulator, each decided by one number.
//!
//! `SIM_SEEDS=<n> cargo test --test sim` runs n seeds, shared between the kinds of runs, each from
//! the first on; `SIM_SECONDS=<n>` runs seeds that nobody has run yet for so long. With the name of
//! one test `SEED=<n>` runs one and tells what happens; `SHRINK=<n>` makes a short script of one
//! that fails; `SIM_SURVEY=<n>` runs n seeds, whatever fails, and counts failures of each kind.

#[path = "sim/mod.rs"]
mod sim;

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sim::Kind;

/// Seeds that once failed. Each stands for the same script and schedule only as long as neither
/// how scripts are made nor how worlds are played changes; what lasts is the test by name that each
/// mended bug has besides.
const REGRESSIONS: &[(Kind, &[u64])] = &[
    (Kind::Server, &[1516, 2083, 9636, 16040]),
    (
        Kind::Cluster,
        &[
            65,
            289,
            425,
            661,
            684,
            958,
            1773,
            2178,
            2337,
            3040699548777560138,
            15272045336277739129,
            275999343297996306,
        ],
    ),
    (Kind::Clusters, &[9292471300820870056, 9292471300820870803, 9292471300820871769]),
    (
        Kind::Leaves,
        &[
            98025012244748387,
            98025012244748400,
            98025012244751044,
            17826798850236915600,
            17826798850236916242,
        ],
    ),
    (
        Kind::Reloads,
        &[
            522,
            1495,
            3103146962396070460,
            7026064850655785522,
            7026064850655788162,
            10796409180508652409,
            12150217696887563373,
            15049553688920605762,
        ],
    ),
];
/// The same for streams.
const STREAM_REGRESSIONS: &[u64] = &[
    3403475083281985239,
    3403475083281985263,
    6955891335468344084,
    9472665903107633174,
    9472665903107634183,
];
/// Of so many seeds one is for streams: they take longer.
const STREAMS_SHARE: u64 = 50;
/// Seeds that run if nobody says how many.
const SEEDS: u64 = 500;
/// Seeds of which none need do what a run is about.
const FEW: u64 = 100;

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

/// Runs `seed_at(0)`, `seed_at(1)` and so on, until there is none. Returns what they amounted to,
/// and how many there were.
fn run_many<T: Default + AddAssign + Send>(
    seed_at: impl Fn(u64) -> Option<u64> + Sync,
    run: impl Fn(u64) -> T + Sync,
) -> (T, u64) {
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        let (mut sum, mut seeds) = (T::default(), 0);
        while let Some(seed) = seed_at(next.fetch_add(1, Ordering::Relaxed)) {
            sum += run(seed);
            seeds += 1;
        }
        (sum, seeds)
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let (mut sum, mut seeds) = (T::default(), 0);
        for worker in workers {
            match worker.join() {
                Ok((outcome, count)) => {
                    sum += outcome;
                    seeds += count;
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        (sum, seeds)
    })
}

fn run_all(kind: Kind, seed_at: impl Fn(u64) -> Option<u64> + Sync) {
    let (sum, seeds) = run_many(seed_at, |seed| run(kind, seed, false));
    println!("{kind:?}, {seeds} seeds: {sum:?}");
}

/// Seeds from a random one on, for so many seconds; each with its place among them.
#[expect(clippy::disallowed_methods, reason = "how long to look is asked for in seconds")]
fn fresh(seconds: u64) -> impl Fn(u64) -> Option<u64> + Sync {
    let (first, end) = (fastrand::u64(..), Instant::now() + Duration::from_secs(seconds));
    println!("from seed {first} on");
    move |at| (Instant::now() < end).then(|| first.wrapping_add(at))
}

/// Seeds that fail, by what they say.
#[derive(Default)]
struct Failures(BTreeMap<String, Vec<u64>>);

impl AddAssign for Failures {
    fn add_assign(&mut self, other: Self) {
        for (gist, seeds) in other.0 {
            self.0.entry(gist).or_default().extend(seeds);
        }
    }
}

/// Runs so many seeds from a random one on, and says how many fail in which way, with the first.
fn survey<T>(count: u64, run: impl Fn(u64) -> T + Sync) {
    let first = fastrand::u64(..);
    println!("from seed {first} on");
    std::panic::set_hook(Box::new(|_| ()));
    let seed_at = |at| (at < count).then(|| first.wrapping_add(at));
    let (failures, _) = run_many(seed_at, |seed| {
        let failure = std::panic::catch_unwind(AssertUnwindSafe(|| run(seed))).err();
        Failures(failure.map(|panic| (sim::gist(&*panic), vec![seed])).into_iter().collect())
    });
    let _ = std::panic::take_hook();
    for (gist, seeds) in &failures.0 {
        println!("{:>6} {gist:?}: {:?}", seeds.len(), &seeds[..seeds.len().min(4)]);
    }
    assert!(failures.0.is_empty(), "seeds fail");
}

/// Runs the seeds that the environment asks for, one after the other. Returns how many.
fn run_each(test: &'static str, mut run: impl FnMut(u64)) -> u64 {
    let seed_at: Box<dyn Fn(u64) -> Option<u64>> = match (number("SEED"), number("SIM_SECONDS")) {
        (Some(seed), _) => Box::new(move |at| (at == 0).then_some(seed)),
        (None, Some(seconds)) => Box::new(fresh(seconds)),
        (None, None) => {
            let seeds = number("SIM_SEEDS").unwrap_or(SEEDS);
            Box::new(move |at| (at < seeds).then_some(at))
        }
    };
    let mut count = 0;
    while let Some(seed) = seed_at(count) {
        let _culprit = Culprit(test, seed);
        run(seed);
        count += 1;
    }
    println!("{test}, {count} seeds: clean");
    count
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
    if let Some(count) = number("SIM_SURVEY") {
        return survey(count, |seed| sim::run_seed(kind, seed, false));
    }
    if let Some(seconds) = number("SIM_SECONDS") {
        run_all(kind, fresh(seconds));
        return;
    }
    let seeds = number("SIM_SEEDS").unwrap_or(SEEDS) * share(kind) / 10;
    run_all(kind, |at| (at < seeds).then_some(at));
}

/// How many of ten seeds are for a kind of run: the others take longer.
fn share(kind: Kind) -> u64 {
    match kind {
        Kind::Server => 5,
        Kind::Reloads => 2,
        Kind::Cluster | Kind::Clusters | Kind::Leaves => 1,
    }
}

/// The test that is about a kind of run.
fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Server => "shards_agree",
        Kind::Cluster => "servers_agree",
        Kind::Reloads => "configurations_that_change",
        Kind::Clusters => "clusters_agree",
        Kind::Leaves => "leaf_nodes_agree",
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
fn clusters_agree_with_a_single_table_whatever_becomes_of_gateways() {
    run_as_asked(Kind::Clusters);
}

#[test]
fn leaf_nodes_agree_with_a_single_table_whatever_becomes_of_their_connections() {
    run_as_asked(Kind::Leaves);
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
    let (mut abroad, mut answers) = (0, 0);
    let seeds = run_each("nobody_gets", |seed| {
        let (deliveries, answered) = sim::accounts::run_seed(seed);
        (abroad, answers) = (abroad + deliveries, answers + answered);
    });
    let enough = seeds < FEW || (abroad > 0 && answers > 0);
    assert!(enough, "{abroad} deliveries and {answers} answers between accounts are no test");
}

#[test]
fn what_was_said_of_streams_holds_whenever_the_server_ends() {
    let test = "what_was_said_of_streams";
    let run = |seed| {
        let _culprit = Culprit(test, seed);
        sim::streams::run_seed(seed, number("SEED").is_some())
    };
    if let Some(count) = number("SIM_SURVEY") {
        return survey(count, run);
    }
    let (sum, seeds) = match (number("SEED"), number("SIM_SECONDS")) {
        (Some(seed), _) => (run(seed), 1),
        (None, Some(seconds)) => run_many(fresh(seconds), run),
        (None, None) => {
            let seeds = number("SIM_SEEDS").unwrap_or(SEEDS) / STREAMS_SHARE;
            run_many(|at| (at < seeds).then_some(at), run)
        }
    };
    println!("streams, {seeds} seeds: {sum:?}");
    let enough = sum.stored > 0 && sum.found > 0 && sum.confirmed > 0 && sum.again > 0;
    assert!(seeds < FEW || enough, "{sum:?} is no test");
}

#[test]
fn streams_that_once_failed_do_so_no_more() {
    for seed in STREAM_REGRESSIONS {
        let _culprit = Culprit("what_was_said_of_streams", *seed);
        sim::streams::run_seed(*seed, false);
    }
}

#[test]
fn whoever_means_harm_ends_nothing_and_publishes_nowhere_but_where_that_is_allowed() {
    let mut heard = 0;
    let seeds = run_each("whoever_means_harm", |seed| heard += sim::hostile::run_seed(seed));
    assert!(seeds < FEW || heard > 0, "nobody heard anything");
}

#[test]
fn any_bytes_are_a_script() {
    for len in 0..40 {
        sim::hostile::run_script(&vec![0xff; len]);
        sim::hostile::run_script(&vec![0; len * 8]);
        for kind in [Kind::Server, Kind::Cluster, Kind::Reloads, Kind::Clusters, Kind::Leaves] {
            sim::run_script(kind, &vec![0xff; len]);
            sim::run_script(kind, &vec![0; len * 8]);
        }
    }
}
