//! Streams on a disk that does what it may: clients publish, read and acknowledge, and the server
//! ends at any moment and comes back, perhaps with another number of shards.
//!
//! * [`ledger`]: what is known of streams, and what must be there
//! * [`clients`]: what clients do, and what they hear
//! * [`audit`]: all that is there, compared with what must be
//!
//! The loops are those of real shards, with JetStream, over the simulated kernel and its disk.

mod audit;
mod clients;
mod ledger;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use shardcast::config::Options;
use shardcast::engine::{AssetLimits, Identity, Peer, Transport};
use shardcast::shard::Control;
use shardcast::store::LogSizes;
use shardcast::uring::Closing;

use super::disk::Disk;
use super::kernel::{Asked, Heard, Kernel};
use super::pipe::Pipe;
use super::shards::{Order, Shard, now};
use super::sockets::{piece_of, received};
use super::world::NS_PER_MS;
use clients::{Held, Link, Request};
use ledger::Ledger;

/// Logs on the disk, of which each shard has some.
const LOGS: u8 = 3;
/// Rounds in which everybody may act until all must be at rest.
const ROUNDS_MAX: usize = 100_000;
/// Times the clock may have to be advanced for that.
const JUMPS_MAX: usize = 100;
const PAGE_BYTES: u64 = 4096;
/// What a shard hears of a connection in one turn: no more than small files take at once.
const PIECE_BYTES_MAX: usize = 8_000;

/// What a run amounted to.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) lives: u64,
    pub(crate) power_cuts: u64,
    /// Lives in which the disk failed or was full.
    pub(crate) rough: u64,
    pub(crate) stored: u64,
    pub(crate) duplicates: u64,
    pub(crate) refused: u64,
    pub(crate) removed: u64,
    pub(crate) deliveries: u64,
    pub(crate) again: u64,
    pub(crate) confirmed: u64,
    /// Messages that were stored, and nobody was told.
    pub(crate) found: u64,
    /// Messages that were on their way, and are lost.
    pub(crate) lost: u64,
}

impl std::ops::AddAssign for Outcome {
    fn add_assign(&mut self, other: Self) {
        self.lives += other.lives;
        self.power_cuts += other.power_cuts;
        self.rough += other.rough;
        self.stored += other.stored;
        self.duplicates += other.duplicates;
        self.refused += other.refused;
        self.removed += other.removed;
        self.deliveries += other.deliveries;
        self.again += other.again;
        self.confirmed += other.confirmed;
        self.found += other.found;
        self.lost += other.lost;
    }
}

struct World {
    rng: fastrand::Rng,
    disk: Rc<RefCell<Disk>>,
    started: Instant,
    now: u64,
    sizes: LogSizes,
    /// How bytes are cut, as in the other worlds.
    cuts: u8,
    clients: usize,
    shards: Vec<Shard>,
    /// Connections of this life and of those before.
    links: Vec<Link>,
    /// The first connection of this life.
    first_link: usize,
    requests: Vec<Request>,
    ledger: Ledger,
    /// Deliveries that are to be acknowledged.
    held: Vec<Held>,
    /// What an audit has found: messages of streams, …
    found: BTreeMap<usize, BTreeMap<u64, usize>>,
    /// … their first and last sequences and counts, …
    infos: HashMap<usize, [u64; 3]>,
    /// … and for how many messages and acknowledgements consumers wait.
    waiting: BTreeMap<(usize, usize), [u64; 2]>,
    /// The disk has failed in this life, …
    is_rough: bool,
    /// … or in the last one.
    was_rough: bool,
    is_stopping: bool,
    outcome: Outcome,
    trace: bool,
}

macro_rules! tell {
    ($world:expr, $($args:tt)*) => {
        if $world.trace {
            eprintln!("life {} {:>9}µs {}", $world.outcome.lives, $world.now / 1000,
                format!($($args)*));
        }
    };
}
use tell;

/// Runs what `seed` stands for; with `trace` it tells what happens.
pub(crate) fn run_seed(seed: u64, trace: bool) -> Outcome {
    let mut world = World::new(seed, trace);
    for _ in 0..world.rng.u32(1..5) {
        world.begin();
        world.live();
        world.end();
    }
    world.begin();
    world.drain();
    world.outcome
}

impl World {
    fn new(seed: u64, trace: bool) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let disk = Disk::new(rng.u64(..));
        let memory_bytes = [0, 8 << 10, 100 << 10, 1 << 30][rng.usize(..4)];
        let sizes = LogSizes { file_bytes: rng.u64(20..60) * PAGE_BYTES, memory_bytes };
        Self {
            disk: Rc::new(RefCell::new(disk)),
            started: now(),
            now: 0,
            sizes,
            cuts: rng.u8(..3),
            clients: rng.usize(1..5),
            shards: Vec::new(),
            links: Vec::new(),
            first_link: 0,
            requests: Vec::new(),
            ledger: Ledger::default(),
            held: Vec::new(),
            found: BTreeMap::new(),
            infos: HashMap::new(),
            waiting: BTreeMap::new(),
            is_rough: false,
            was_rough: false,
            is_stopping: false,
            outcome: Outcome::default(),
            trace,
            rng,
        }
    }

    /// The server begins, and everybody connects; now and then it ends before that.
    fn begin(&mut self) {
        loop {
            self.outcome.lives += 1;
            self.start();
            let patience = if self.rng.u32(..6) == 0 { self.rng.usize(..60) } else { usize::MAX };
            if self.recover(patience) {
                break;
            }
            self.crash();
        }
        tell!(self, "all streams are known");
        for client in 0..self.clients {
            self.connect(client);
        }
        self.settle();
        self.audit();
        self.was_rough = false;
    }

    fn start(&mut self) {
        let count = self.rng.u8(1..=LOGS);
        let mut logs: Vec<Vec<Box<Path>>> = vec![Vec::new(); usize::from(count)];
        for log in 0..LOGS {
            let path = format!("/d/log-{log}");
            logs[usize::from(log % count)].push(Path::new(&path).into());
        }
        let assets = AssetLimits { memory_bytes_max: 1 << 30, file_bytes_max: 1 << 40 };
        let identity = Identity {
            id: "NSERVER0LONGENOUGH".to_owned(),
            name: "server".to_owned(),
            epoch_ms: 1_700_000_000_000,
            logs,
            log_sizes: self.sizes,
            assets,
            ..Identity::default()
        };
        let mut options = Options::default();
        options.jetstream.is_enabled = true;
        // Nobody is too slow here, or silent for too long.
        options.timeouts.write_deadline_ms = 24 * 60 * 60 * 1000;
        options.timeouts.ping_interval_ms = 24 * 60 * 60 * 1000;
        let seeds: Vec<u64> = (0..count).map(|_| self.rng.u64(..)).collect();
        let kernel = |owner| Kernel::on(self.started, Rc::clone(&self.disk), owner);
        let kernels: Vec<Kernel> = (0..count).map(kernel).collect();
        tell!(self, "{count} shards begin");
        self.shards = Shard::on((0, &identity, options), &kernels, self.started, &seeds);
        let work = [1_000, 10_000, 100_000, 3_000_000][self.rng.usize(..4)];
        self.shards.iter_mut().for_each(|shard| shard.engine_mut().set_turn_work(work));
    }

    /// Lets shards read their logs. False if they had not done so after so many turns.
    fn recover(&mut self, patience: usize) -> bool {
        let mut turns = 0;
        while !self.shards[0].engine().view().is_ready() {
            if turns == patience {
                return false;
            }
            let shard = self.rng.usize(..self.shards.len());
            if !self.turn(shard, false) && self.rng.u32(..100) == 0 {
                self.pass_time();
            }
            turns += 1;
            assert!(turns < ROUNDS_MAX, "its streams are never known");
        }
        true
    }

    fn live(&mut self) {
        if self.rng.u32(..5) == 0 {
            self.is_rough = true;
            self.outcome.rough += 1;
            let file_bytes = usize::try_from(self.sizes.file_bytes).unwrap_or(usize::MAX);
            let mut disk = self.disk.borrow_mut();
            match self.rng.u32(..3) {
                0 => disk.bytes_max = self.rng.usize(1..20) * file_bytes,
                _ => disk.failures = [1, 3, 10][self.rng.usize(..3)],
            }
            tell!(self, "fails {} in a hundred, {} bytes", disk.failures, disk.bytes_max);
        }
        let patience = self.rng.usize(50..600);
        for _ in 0..patience {
            match self.rng.u32(..100) {
                0..50 => {
                    let shard = self.rng.usize(..self.shards.len());
                    self.turn(shard, false);
                }
                50..70 => {
                    let link = self.rng.usize(self.first_link..self.links.len());
                    self.move_bytes(link, false);
                }
                70..97 => self.act(),
                _ => self.pass_time(),
            }
        }
        if self.rng.u32(..3) == 0 {
            self.calm_disk();
            self.settle();
            self.ledger.rests += 1;
        }
    }

    fn calm_disk(&mut self) {
        let mut disk = self.disk.borrow_mut();
        (disk.failures, disk.bytes_max) = (0, usize::MAX);
    }

    fn pass_time(&mut self) {
        let ms = [1, 20, 300, 1_500][self.rng.usize(..4)];
        self.now += self.rng.u64(..ms * NS_PER_MS);
    }

    /// The end of a life, in one way or another.
    fn end(&mut self) {
        self.calm_disk();
        if self.rng.u32(..4) == 0 {
            tell!(self, "it is to stop");
            self.is_stopping = true;
            for shard in &mut self.shards {
                shard.orders.push_back(Order::Tell(Control::Stop));
            }
            for _ in 0..self.rng.usize(..60) {
                let shard = self.rng.usize(..self.shards.len());
                self.turn(shard, true);
                for link in self.first_link..self.links.len() {
                    self.move_bytes(link, true);
                }
            }
        }
        self.crash();
    }

    fn crash(&mut self) {
        self.shards.clear();
        let mut disk = self.disk.borrow_mut();
        if self.rng.bool() {
            self.outcome.power_cuts += 1;
            disk.crash();
        } else {
            disk.let_go();
        }
        tell!(self, "it has ended");
        drop(disk);
        for link in &mut self.links {
            link.is_over = true;
        }
        self.first_link = self.links.len();
        (self.was_rough, self.is_rough) = (self.was_rough || self.is_rough, false);
        self.is_stopping = false;
        self.ledger.rests += 1;
    }

    fn connect(&mut self, client: usize) {
        let shard = self.rng.usize(..self.shards.len());
        let id = self.shards[shard].take_slot();
        let cid = self.links.len() as u64 + 1;
        let peer = Peer { cid, ip: "127.0.0.1".into(), port: 1 };
        let adopt = Control::Adopt { socket: id, peer, transport: Transport::Tcp, admitted: true };
        self.shards[shard].orders.push_back(Order::Tell(adopt));
        tell!(self, "client {client} is link {} on shard {shard}", self.links.len());
        self.links.push(Link::new(client, Pipe::new(shard, id)));
    }

    /// One turn of a shard, if it has a reason for one. False if not.
    fn turn(&mut self, shard: usize, eager: bool) -> bool {
        let is_told = self.shards[shard].tell_orders();
        let events = self.happenings(shard, eager);
        let is_due = self.shards[shard].wakes_at().is_some_and(|due| due <= self.now);
        if events.is_empty() && !is_due && !is_told {
            return false;
        }
        for asked in self.shards[shard].step(self.now, events) {
            self.carry_out(shard, asked);
        }
        if self.now.is_multiple_of(3) {
            self.shards[shard].engine_mut().shrink();
        }
        true
    }

    fn happenings(&mut self, shard: usize, eager: bool) -> Vec<Heard> {
        let rounds = if eager { usize::MAX } else { self.rng.usize(..3) };
        let disk = std::iter::from_fn(|| self.shards[shard].finish_on_disk());
        let mut events: Vec<Heard> = disk.take(rounds).collect();
        for at in self.first_link..self.links.len() {
            let link = &mut self.links[at];
            if link.pipe.shard != shard || link.pipe.gone {
                continue;
            }
            if eager || self.rng.bool() {
                events.extend(self.shards[shard].complete(&mut link.pipe, false));
            }
            let rest = link.out.len() - link.given;
            let has_room = self.shards[shard].has_chunk(&events);
            if rest > 0 && has_room && link.pipe.hears() {
                let cuts = if eager && self.rng.bool() { 2 } else { self.cuts };
                let len = piece_of(rest, cuts, &mut self.rng).min(PIECE_BYTES_MAX);
                let bytes = link.out[link.given..link.given + len].to_vec();
                link.given += len;
                events.push(received(link.pipe.id, bytes));
            }
        }
        events
    }

    fn carry_out(&mut self, shard: usize, asked: Asked) {
        if let Asked::Recycle(..) = asked {
            return;
        }
        let id = asked.id();
        let is_it = |link: &&mut Link| link.pipe.shard == shard && link.pipe.id == id;
        let links = &mut self.links[self.first_link..];
        let link = links.iter_mut().filter(|link| !link.pipe.gone).find(is_it);
        let Some(link) = link else { panic!("{asked:?} of shard {shard} is for nobody") };
        match asked {
            Asked::Recycle(..) => {}
            Asked::Adopt(_) => link.pipe.is_adopted = true,
            Asked::Send(_, batch) => _ = link.pipe.send(batch.pieces, self.now),
            Asked::Pause(_) => link.pipe.reading = false,
            Asked::Read(_) => link.pipe.reading = true,
            Asked::Close(_, how) => {
                assert!(self.is_stopping && how != Closing::Abort, "link {id:?}: {how:?}");
                link.pipe.closing = true;
            }
        }
    }

    /// Moves bytes from the kernel to the client. False if there was nothing to do.
    fn move_bytes(&mut self, at: usize, all: bool) -> bool {
        let left = if all { usize::MAX } else { self.rng.usize(1..2000) };
        let link = &mut self.links[at];
        let took = link.pipe.batch.is_some() && link.pipe.take(left);
        let bytes = std::mem::take(&mut link.pipe.sent);
        if bytes.is_empty() || link.is_over {
            return took;
        }
        self.hear(at, &bytes);
        true
    }

    /// Lets everybody act until nothing happens any more, and all requests are answered.
    fn settle(&mut self) {
        tell!(self, "settling");
        let mut jumps = 0;
        for round in 0..ROUNDS_MAX {
            let mut moved = false;
            for link in self.first_link..self.links.len() {
                moved |= self.move_bytes(link, true);
            }
            for shard in 0..self.shards.len() {
                let turned = self.turn(shard, true);
                if turned && round + 10 > ROUNDS_MAX {
                    let link = self.links.last().map(|l| (l.out.len(), l.given));
                    tell!(self, "round {round}: shard {shard} has something to do, {link:?}");
                }
                moved |= turned;
            }
            if moved {
                continue;
            }
            let Some(unrest) = self.unrest() else { return tell!(self, "at rest") };
            let due = self.shards.iter().filter_map(Shard::wakes_at).min();
            let Some(due) = due.filter(|_| jumps < JUMPS_MAX) else {
                assert!(self.is_rough, "nothing happens any more, but {unrest}");
                return tell!(self, "at rest, but {unrest}");
            };
            jumps += 1;
            assert!(due > self.now, "a deadline of the past is never met");
            tell!(self, "waiting because {unrest}");
            self.now = due;
        }
        for (at, shard) in self.shards.iter().enumerate() {
            let (engine, wakes) = (shard.engine(), shard.wakes_at());
            let (due, has_more) = (engine.next_deadline(), engine.view().has_more());
            eprintln!("shard {at} wakes at {wakes:?}, due {due:?} has more: {has_more}");
        }
        panic!("it never comes to rest at {}", self.now);
    }

    /// What still has to happen.
    fn unrest(&self) -> Option<String> {
        for (at, link) in self.links.iter().enumerate().skip(self.first_link) {
            if !link.is_greeted || link.given < link.out.len() {
                return Some(format!("link {at} is not heard"));
            }
        }
        let first = self.first_link;
        let mut open = self.requests.iter().filter(|r| r.link >= first && self.must_answer(r));
        open.next()
            .map(|request| format!("nobody answers {:?} of link {}", request.ask, request.link))
    }
}
