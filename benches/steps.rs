//! What each step of a message's way costs: parsing, matching, rendering, a hop between shards, a
//! change of interest; and all of it without the kernel.
//!
//! `cargo bench --bench steps [-- FILTER]`. Times are CPU times of the thread, so that others on
//! the machine disturb as little as can be.

#![forbid(unsafe_code)]

mod scenarios;

use std::hint::black_box;
use std::rc::Rc;
use std::time::Duration;

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BenchmarkId, Criterion, Throughput};
use rustix::time::{ClockId, clock_gettime};
use shardcast::config::Options;
use shardcast::engine::{Engine, Identity, Record, Settings, ShardId};
use shardcast::mesh::{DRAIN_RECORDS_MAX, LANE_RECORDS_MAX, Mesh, Receiver};
use shardcast::proto::{Op, ParseLimits, Parsed, encode, parse};
use shardcast::subject::Table;

use scenarios::{Scenario, Sids, World, publish_with_header};

/// The thread's CPU time in nanoseconds, shown as criterion shows time.
struct ThreadTime;

impl Measurement for ThreadTime {
    type Intermediate = u64;
    type Value = u64;

    fn start(&self) -> u64 {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
    }

    fn end(&self, start: u64) -> u64 {
        self.start() - start
    }

    fn add(&self, a: &u64, b: &u64) -> u64 {
        a + b
    }

    fn zero(&self) -> u64 {
        0
    }

    fn to_f64(&self, value: &u64) -> f64 {
        *value as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

const PAYLOADS: [usize; 3] = [16, 128, 1024];
/// As much as a chunk of the reactor holds.
const CHUNK_BYTES: usize = 64 * 1024;
const LIMITS: ParseLimits =
    ParseLimits { control_line_bytes_max: 4096, payload_bytes_max: 1024 * 1024, headers: true };

fn main() {
    let mut criterion = Criterion::default()
        .with_measurement(ThreadTime)
        .sample_size(20)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500))
        .configure_from_args();
    parsing(&mut criterion);
    matching(&mut criterion);
    rendering(&mut criterion);
    hopping(&mut criterion);
    changing_interest(&mut criterion);
    fanning_out(&mut criterion);
    crossing(&mut criterion);
    the_rest(&mut criterion);
    criterion.final_summary();
}

fn publish(payload_bytes: usize) -> Vec<u8> {
    format!("PUB bench.fan.out {payload_bytes}\r\n{}\r\n", "x".repeat(payload_bytes)).into_bytes()
}

/// Each operation as often as a chunk of the reactor holds it.
fn parsing(criterion: &mut Criterion<ThreadTime>) {
    let mut operations = Vec::from(PAYLOADS.map(|n| (format!("PUB {n} B"), publish(n))));
    operations.push(("HPUB 128 B".to_owned(), publish_with_header(128)));
    operations.push(("SUB".to_owned(), b"SUB bench.fan.out 1234\r\n".to_vec()));
    let mut group = criterion.benchmark_group("parse");
    for (name, operation) in operations {
        let count = CHUNK_BYTES / operation.len();
        let chunk = operation.repeat(count);
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let mut rest = chunk.as_slice();
                while let Ok(Parsed::Op { op, used }) = parse(rest, &LIMITS) {
                    black_box(op);
                    rest = &rest[used..];
                }
                assert!(rest.is_empty(), "all operations are whole");
            });
        });
    }
}

/// A thousand subjects that have subscriptions (a hit), and as many that have none (a miss).
fn matching(criterion: &mut Criterion<ThreadTime>) {
    let mut group = criterion.benchmark_group("match");
    let literal = |number: usize| format!("bench.{}.subject.{number}", number % 10);
    let wild = |number: usize| match number % 4 {
        0 => format!("bench.*.subject.{number}"),
        1 => format!("bench.{}.>", number % 1000),
        2 => format!("*.{}.*.{number}", number % 10),
        _ => literal(number),
    };
    // As long as the others, and different only where it is at its end or at its beginning.
    let unknown = |number: usize| format!("bench.{}.subject.x{number}", number % 10);
    let elsewhere = |number: usize| format!("other.x.subject.{number}");
    type Subject<'a> = &'a dyn Fn(usize) -> String;
    let tables: [(&str, Vec<String>, Subject<'_>); 2] = [
        ("literals, 100 k", (0..100_000).map(literal).collect(), &unknown),
        ("wildcards, 10 k", (0..10_000).map(wild).collect(), &elsewhere),
    ];
    for (name, filters, missed) in tables {
        let mut table = Table::<u64>::with_seed(1);
        for filter in &filters {
            *table.entry(filter.as_bytes()) += 1;
        }
        let count = |subjects: &[String]| {
            let mut found = 0;
            for subject in subjects {
                table.for_each_match(subject.as_bytes(), |value| found += value);
            }
            found
        };
        for (outcome, subject) in [("hit", &literal as Subject<'_>), ("miss", missed)] {
            let mut rng = fastrand::Rng::with_seed(1);
            let subjects: Vec<String> =
                (0..1000).map(|_| subject(rng.usize(..filters.len()))).collect();
            assert_eq!(count(&subjects) > 0, outcome == "hit", "{name}");
            group.throughput(Throughput::Elements(subjects.len() as u64));
            group.bench_function(BenchmarkId::new(outcome, name), |bencher| {
                bencher.iter(|| black_box(count(&subjects)));
            });
        }
    }
}

/// MSG and HMSG as subscribers get them, each operation as often as one run holds it.
fn rendering(criterion: &mut Criterion<ThreadTime>) {
    let mut operations = Vec::from(PAYLOADS.map(|n| (format!("MSG {n} B"), publish(n))));
    operations.push(("HMSG 128 B".to_owned(), publish_with_header(128)));
    let mut group = criterion.benchmark_group("render");
    for (name, operation) in operations {
        let Ok(Parsed::Op { op: Op::Pub(message), .. }) = parse(&operation, &LIMITS) else {
            panic!("{name}: not a publish");
        };
        let count = CHUNK_BYTES / operation.len();
        let mut out = Vec::new();
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                out.clear();
                for _ in 0..count {
                    encode::msg(&mut out, black_box(&message), b"1234", true);
                }
                black_box(out.len())
            });
        });
    }
}

/// A record from one engine to the other's hands, both on this thread: answers to barriers, which
/// are the smallest there are. See `lanes` for two threads.
fn hopping(criterion: &mut Criterion<ThreadTime>) {
    let settings = Settings::new(&Options::default(), &Identity::default(), usize::MAX);
    let mut engine = Engine::new(ShardId(0), 2, Rc::new(settings), 1);
    let mut meshes = Mesh::all(2, LANE_RECORDS_MAX);
    let (mut there, mut here) = (meshes.remove(1), meshes.remove(0));
    let mut group = criterion.benchmark_group("lane hop");
    for records in [1, DRAIN_RECORDS_MAX as u64] {
        group.throughput(Throughput::Elements(records));
        group.bench_function(format!("{records} in a turn"), |bencher| {
            bencher.iter(|| {
                for epoch in 1..=records {
                    engine.on_record(ShardId(1), Record::Barrier { epoch });
                }
                engine.end_turn();
                here.publish(&mut engine, |_| {});
                let mut seen = Seen(0);
                there.drain(&mut seen, |_| {});
                assert_eq!(seen.0, records, "all have come");
            });
        });
    }
}

/// Counts answers to barriers.
struct Seen(u64);

impl Receiver for Seen {
    fn takes(&self, _from: ShardId) -> bool {
        true
    }

    fn take(&mut self, _from: ShardId, record: Record) {
        self.0 += u64::from(matches!(record, Record::Settled { .. }));
    }
}

/// SUB and UNSUB, of one operation each; with two shards the other one is told of both.
fn changing_interest(criterion: &mut Criterion<ThreadTime>) {
    for (wildcard, shards) in [(false, 1), (true, 1), (false, 2)] {
        measure(criterion, "interest change", &Scenario::Churn { wildcard, shards });
    }
}

/// One publisher, one subject: deliveries a second for each number of subscribers.
fn fanning_out(criterion: &mut Criterion<ThreadTime>) {
    for (group, sids, shards) in [
        ("equal sids", Sids::Equal, 1),
        ("distinct sids", Sids::Distinct, 1),
        ("equal sids, across shards", Sids::Equal, 2),
    ] {
        for subscribers in [1, 10, 100, 1000] {
            if subscribers == 1 && sids == Sids::Distinct {
                continue; // The same as with equal ones.
            }
            for payload_bytes in PAYLOADS {
                let scenario = Scenario::Fanout { subscribers, payload_bytes, sids, shards };
                measure(criterion, group, &scenario);
            }
        }
    }
}

/// Many to many on one shard, and across two: deliveries a second of both shards together.
fn crossing(criterion: &mut Criterion<ThreadTime>) {
    let payload_bytes = 128;
    for shards in [1, 2] {
        for scenario in [
            Scenario::Pairs { pairs: 10, payload_bytes, shards },
            Scenario::Queue { members: 10, payload_bytes, shards },
            Scenario::RoundTrips { requesters: 10, responders: 10, payload_bytes, shards },
        ] {
            measure(criterion, "crossing", &scenario);
        }
    }
}

fn the_rest(criterion: &mut Criterion<ThreadTime>) {
    let payload_bytes = 128;
    let count = 100_000;
    for scenario in [
        Scenario::Mqtt { subscribers: 100, payload_bytes },
        Scenario::Headers { payload_bytes },
        Scenario::Permitted { subscribers: 100, payload_bytes },
        Scenario::Queue { members: 4, payload_bytes, shards: 1 },
        Scenario::Requests { subjects: 4, payload_bytes: 16 },
        Scenario::Subjects { count, payload_bytes, wildcard: false },
        Scenario::Subjects { count, payload_bytes, wildcard: true },
    ] {
        measure(criterion, "other", &scenario);
    }
}

/// One iteration is one chunk of 64 KiB; elements are deliveries, or operations of a churn.
fn measure(criterion: &mut Criterion<ThreadTime>, group: &str, scenario: &Scenario) {
    let mut group = criterion.benchmark_group(group);
    // Made when needed: a filter may leave this one out.
    let mut world = None;
    let id = BenchmarkId::from_parameter(scenario.name());
    group.throughput(Throughput::Elements(scenario.elements(1)));
    group.bench_function(id, |bencher| {
        let world = world.get_or_insert_with(|| World::new(scenario));
        bencher.iter(|| world.step());
    });
    group.finish();
}
