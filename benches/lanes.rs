//! Rings between two shards: how much CPU a record takes on both sides together.
//!
//! `cargo bench --bench lanes`. *One thread* fills and empties the ring in turn: the work alone.
//! *Two threads* adds what it costs that two cores share the lines; whoever has to wait yields,
//! so on a busy machine this column is worth little.

#![forbid(unsafe_code)]

mod measure;

use std::env;
use std::hint::{black_box, spin_loop};
use std::iter;
use std::sync::Arc;
use std::thread;

use crossbeam_queue::ArrayQueue;
use rustix::time::ClockId;
use shardcast::engine::Record;
use shardcast::mesh::{DRAIN_RECORDS_MAX, LANE_RECORDS_MAX};

use measure::{cpu_ns, median};

/// Records that are sent in one measurement.
const RECORDS: u64 = 1_000_000;
/// Measurements of each ring, taken in turn; the median counts.
const ROUNDS: usize = 7;
/// How often somebody looks again before it yields.
const LOOKS: u32 = 64;

/// Takes numbers from the iterator while there is room; no number is lost.
trait Sender: Send {
    fn send(&mut self, records: &mut impl Iterator<Item = Record>) -> usize;
}

/// Gives the records that are there to a closure, a bounded number.
trait Receiver: Send {
    fn receive(&mut self, take: &mut impl FnMut(Record)) -> usize;
}

/// Each record by itself.
struct RtrbItems<R>(R);

/// All records of a turn at once, as `shardcast::mesh` has them.
struct RtrbChunks<R>(R);

impl Sender for RtrbItems<rtrb::Producer<Record>> {
    fn send(&mut self, records: &mut impl Iterator<Item = Record>) -> usize {
        // Asked before a record is taken: what the iterator has given cannot go back.
        while_some(|| if self.0.is_full() { None } else { self.0.push(records.next()?).ok() })
    }
}

impl Receiver for RtrbItems<rtrb::Consumer<Record>> {
    fn receive(&mut self, take: &mut impl FnMut(Record)) -> usize {
        while_some(|| self.0.pop().ok().map(&mut *take))
    }
}

impl Sender for RtrbChunks<rtrb::Producer<Record>> {
    fn send(&mut self, records: &mut impl Iterator<Item = Record>) -> usize {
        let room = self.0.slots().min(DRAIN_RECORDS_MAX);
        let chunk = self.0.write_chunk_uninit(room);
        chunk.map_or(0, |chunk| chunk.fill_from_iter(records))
    }
}

impl Receiver for RtrbChunks<rtrb::Consumer<Record>> {
    fn receive(&mut self, take: &mut impl FnMut(Record)) -> usize {
        let waiting = self.0.slots().min(DRAIN_RECORDS_MAX);
        self.0.read_chunk(waiting).map_or(0, |chunk| chunk.into_iter().map(take).count())
    }
}

impl Sender for crossbeam_channel::Sender<Record> {
    fn send(&mut self, records: &mut impl Iterator<Item = Record>) -> usize {
        while_some(|| if self.is_full() { None } else { self.try_send(records.next()?).ok() })
    }
}

impl Receiver for crossbeam_channel::Receiver<Record> {
    fn receive(&mut self, take: &mut impl FnMut(Record)) -> usize {
        while_some(|| self.try_recv().ok().map(&mut *take))
    }
}

impl Sender for Arc<ArrayQueue<Record>> {
    fn send(&mut self, records: &mut impl Iterator<Item = Record>) -> usize {
        while_some(|| if self.is_full() { None } else { self.push(records.next()?).ok() })
    }
}

impl Receiver for Arc<ArrayQueue<Record>> {
    fn receive(&mut self, take: &mut impl FnMut(Record)) -> usize {
        while_some(|| self.pop().map(&mut *take))
    }
}

/// As many as one turn moves at most.
fn while_some(step: impl FnMut() -> Option<()>) -> usize {
    iter::from_fn(step).take(DRAIN_RECORDS_MAX).count()
}

fn main() {
    if !env::args().any(|argument| argument == "--bench") {
        println!("lanes: not measured; run `cargo bench --bench lanes`");
        return;
    }
    let mut results: [Results; 4] = Default::default();
    for _ in 0..ROUNDS {
        measure(&mut results[0], || {
            let (sender, receiver) = rtrb::RingBuffer::new(LANE_RECORDS_MAX);
            (RtrbItems(sender), RtrbItems(receiver))
        });
        measure(&mut results[1], || {
            let (sender, receiver) = rtrb::RingBuffer::new(LANE_RECORDS_MAX);
            (RtrbChunks(sender), RtrbChunks(receiver))
        });
        measure(&mut results[2], || crossbeam_channel::bounded(LANE_RECORDS_MAX));
        measure(&mut results[3], || {
            let queue = Arc::new(ArrayQueue::new(LANE_RECORDS_MAX));
            (Arc::clone(&queue), queue)
        });
    }
    println!("{:<28} {:>14} {:>14}", "CPU ns per record", "one thread", "two threads");
    let names =
        ["rtrb, record by record", "rtrb, in chunks", "crossbeam-channel", "crossbeam ArrayQueue"];
    for (name, Results { one_thread, two_threads }) in names.into_iter().zip(results) {
        println!("{name:<28} {:>14.1} {:>14.1}", median(one_thread), median(two_threads));
    }
}

/// CPU nanoseconds for each record, both sides together.
#[derive(Default)]
struct Results {
    one_thread: Vec<f64>,
    two_threads: Vec<f64>,
}

fn measure<S: Sender, R: Receiver>(results: &mut Results, make: impl Fn() -> (S, R)) {
    results.one_thread.push(one_thread(make()));
    results.two_threads.push(two_threads(make()));
}

fn records() -> impl Iterator<Item = Record> {
    (0..RECORDS).map(|epoch| Record::Barrier { epoch })
}

/// Sees that the records come in order.
fn check(record: &Record, next: &mut u64) {
    match black_box(record) {
        Record::Barrier { epoch } if epoch == next => *next += 1,
        record => panic!("{record:?} instead of {next}"),
    }
}

fn one_thread<S: Sender, R: Receiver>((mut sender, mut receiver): (S, R)) -> f64 {
    let mut records = records();
    let mut next = 0;
    let start = cpu_ns(ClockId::ThreadCPUTime);
    while next < RECORDS {
        sender.send(&mut records);
        receiver.receive(&mut |record| check(&record, &mut next));
    }
    (cpu_ns(ClockId::ThreadCPUTime) - start) / RECORDS as f64
}

fn two_threads<S: Sender, R: Receiver>((mut sender, mut receiver): (S, R)) -> f64 {
    let both = thread::scope(|scope| {
        let sending = scope.spawn(|| {
            on_core(0, || {
                let mut records = records();
                let mut sent = 0;
                persist(|| {
                    let more = sender.send(&mut records);
                    sent += more as u64;
                    (more, sent == RECORDS)
                });
            })
        });
        let receiving = scope.spawn(|| {
            on_core(1, || {
                let mut next = 0;
                persist(|| {
                    let more = receiver.receive(&mut |record| check(&record, &mut next));
                    (more, next == RECORDS)
                });
            })
        });
        [sending, receiving].map(|side| side.join().expect("neither side panics"))
    });
    both.iter().sum::<f64>() / RECORDS as f64
}

/// Repeats `step` until it is done. While it achieves nothing, others may run.
fn persist(mut step: impl FnMut() -> (usize, bool)) {
    let mut idle = 0;
    loop {
        match step() {
            (_, true) => return,
            (0, _) if idle < LOOKS => {
                idle += 1;
                spin_loop();
            }
            (0, _) => thread::yield_now(),
            _ => idle = 0,
        }
    }
}

/// The CPU nanoseconds of `work` on one of this process's cores, as far as there are so many.
fn on_core(number: usize, work: impl FnOnce()) -> f64 {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    if let Some(core) = cores.get(number) {
        core_affinity::set_for_current(*core);
    }
    let start = cpu_ns(ClockId::ThreadCPUTime);
    work();
    cpu_ns(ClockId::ThreadCPUTime) - start
}
