//! What clients do, decoded from bytes: any bytes are a script, so that a fuzzer can write them.

use std::collections::VecDeque;

use shardcast::config::OverflowKind;

/// What is published to. `*` and `>` are ordinary here, and an empty token reaches nobody.
pub(crate) const SUBJECTS: [&str; 12] =
    ["a", "b", "a.b", "a.c", "b.c", "a.b.c", "c.b.a", "x.y", "a.*", "b.>", "a..b", ".a"];
/// What is subscribed to.
pub(crate) const FILTERS: [&str; 14] = [
    "a", "b", "a.b", "a.*", "*.b", "*.*", "a.>", ">", "*", "a.b.c", "a.*.c", "*.b.>", "b.c", "x.y",
];
/// What cannot be subscribed to.
pub(crate) const BAD_FILTERS: [&str; 4] = ["a..b", "a.>.b", ".", "a."];
/// Subjects of which a client that is behind misses messages, in a run with overflow policies.
pub(crate) const OVERFLOW: [(&str, OverflowKind, usize); 3] = [
    ("x.y", OverflowKind::Conflate, 1_500),
    ("b.>", OverflowKind::DropNewest, 1_000),
    ("a.b", OverflowKind::DropOldest, 2_000),
];
/// What nobody may publish to, where that is denied.
pub(crate) const UNPUBLISHED: &str = "a.c";
/// What is delivered to nobody, where that is denied.
pub(crate) const UNDELIVERED: &str = "c.b.a";
/// A filter that may be denied, and the sid of those who subscribe to it.
pub(crate) const PRIVATE: (&str, u32) = ("private", 777_777);
/// Queue groups; their names know upper and lower case.
pub(crate) const QUEUES: [&str; 3] = ["q", "Q", "workers"];

/// A small `max_pending`.
pub(crate) const NARROW_BYTES_MAX: usize = 3_000;
const CLIENTS_MAX: u8 = 8;
const SHARDS_MAX: u8 = 4;
const SERVERS_MAX: usize = 4;
const OPS_MAX: usize = 400;

/// One thing a client does.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Op {
    /// To a filter, or with none to its own inboxes.
    Sub {
        filter: Option<usize>,
        queue: Option<usize>,
        reuse: bool,
    },
    /// With a sid that is in use: without effect.
    SubTwice {
        which: u8,
        filter: usize,
    },
    /// With a filter that is none.
    SubInvalid {
        filter: usize,
    },
    Unsub {
        which: u8,
    },
    UnsubMax {
        which: u8,
        max: u64,
    },
    UnsubUnknown,
    Publish {
        subject: usize,
        shape: u8,
        count: u8,
    },
    /// PING; goes on at once.
    Ping,
    /// PING; waits for the PONG.
    Barrier,
    /// Another CONNECT.
    Connect {
        flags: u8,
    },
    /// An unexpected PONG.
    Pong,
    /// Waits until another client has got all its PONGs.
    Meet {
        client: usize,
    },
    /// Its socket takes nothing any more.
    Stall,
    Unstall,
    /// Sends no more, but still reads.
    HalfClose,
    Reset,
    /// Breaks the protocol.
    Garbage {
        which: u8,
    },
    /// The network loses a route.
    CutRoute {
        which: u8,
    },
    /// One direction of a route takes nothing, …
    StallRoute {
        which: u8,
    },
    /// … until this, or until all is to come to rest.
    UnstallRoutes,
    /// A server loses all its routes, and gets none until then.
    Part {
        server: u8,
    },
    /// A server gets another configuration.
    Reload {
        server: u8,
        rules: Rules,
    },
    /// To what may be denied.
    SubPrivate,
}

/// What a reload changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each may be so or not")]
pub(crate) struct Rules {
    pub(crate) unpublished: bool,
    pub(crate) undelivered: bool,
    /// `max_pending` is small, …
    pub(crate) narrow: bool,
    /// … and so is the memory of all output together.
    pub(crate) tight: bool,
    /// There is no overflow policy, even if there was one.
    pub(crate) strict: bool,
}

impl Rules {
    fn of(byte: u8) -> Self {
        let bit = |bit: u8| byte & 1 << bit != 0;
        Self {
            unpublished: bit(0),
            undelivered: bit(1),
            narrow: bit(2) && bit(3),
            tight: bit(4) && bit(5),
            strict: bit(6),
        }
    }
}

impl Op {
    /// Whether it is no client's doing.
    pub(crate) fn is_about_servers(self) -> bool {
        let is_about_routes =
            matches!(self, Self::CutRoute { .. } | Self::StallRoute { .. } | Self::UnstallRoutes);
        is_about_routes || matches!(self, Self::Part { .. } | Self::Reload { .. })
    }
}

/// What a run is about; the same bytes are another script for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The shards of one server.
    Server,
    /// Several servers that are joined by routes.
    Cluster,
    /// One server or several, which get other limits and permissions all the while.
    Reloads,
    /// Several clusters of one server each, which are joined by gateways.
    Clusters,
    /// A tree of servers, each but the first a leaf node of one before it.
    Leaves,
}

/// How the server and its surroundings are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flavour {
    /// Large payloads: lanes and outboxes fill up.
    pub(crate) heavy: bool,
    /// Some subjects have overflow policies.
    pub(crate) overflow: bool,
    /// The configuration changes.
    pub(crate) reloads: bool,
    /// How bytes are cut: 0 single ones, 1 anything, 2 rarely.
    pub(crate) cuts: u8,
    pub(crate) pending_bytes_max: usize,
    pub(crate) write_deadline_ms: u64,
    pub(crate) ping_interval_ms: u64,
    /// Routes between each two servers; 0: one, without a pool.
    pub(crate) pool_size: u16,
    /// Each server is a cluster of its own.
    pub(crate) gateways: bool,
    /// Each server but the first is a leaf node of another one.
    pub(crate) leaves: bool,
}

impl Flavour {
    /// The smallest `max_pending` that may ever be in force.
    pub(crate) fn pending_bytes_min(&self) -> usize {
        if self.reloads {
            NARROW_BYTES_MAX.min(self.pending_bytes_max)
        } else {
            self.pending_bytes_max
        }
    }
}

/// A whole run.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Decides everything that the script leaves open.
    pub(crate) schedule: u64,
    pub(crate) shards: u8,
    /// For each server those that it dials.
    pub(crate) servers: Vec<Vec<usize>>,
    pub(crate) flavour: Flavour,
    /// What each client does, in phases: between two of them everything comes to rest.
    pub(crate) phases: Vec<Vec<VecDeque<Op>>>,
}

/// The script of a seed.
#[allow(dead_code, reason = "the fuzz target comes with bytes of its own")]
pub(crate) fn bytes_of(seed: u64) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed ^ 0x5aa5_0ff0_1234_9876);
    let len = rng.usize(60..500);
    (0..len).map(|_| rng.u8(..)).collect()
}

struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn or_zero(&mut self) -> u8 {
        self.next().unwrap_or(0)
    }
}

impl Plan {
    pub(crate) fn decode(kind: Kind, bytes: &[u8]) -> Self {
        let mut bytes = Bytes(bytes);
        let schedule = u64::from_le_bytes(std::array::from_fn(|_| bytes.or_zero()));
        let servers = match kind {
            Kind::Server => vec![Vec::new()],
            Kind::Cluster | Kind::Clusters => servers(&mut bytes),
            Kind::Leaves => tree(servers(&mut bytes)),
            Kind::Reloads if bytes.or_zero() < 128 => vec![Vec::new()],
            Kind::Reloads => servers(&mut bytes),
        };
        let shards = bytes.or_zero() % SHARDS_MAX + 1;
        let clients = bytes.or_zero() % (CLIENTS_MAX - 1) + 2;
        let mut flavour = flavour(bytes.or_zero(), bytes.or_zero());
        let may_reload = matches!(kind, Kind::Clusters | Kind::Leaves);
        flavour.reloads = kind == Kind::Reloads || (may_reload && schedule.is_multiple_of(3));
        flavour.gateways = kind == Kind::Clusters;
        flavour.leaves = kind == Kind::Leaves;
        let new_phase = || vec![VecDeque::new(); usize::from(clients)];
        let mut phases = vec![new_phase()];
        for _ in 0..OPS_MAX {
            let Some(client) = bytes.next() else { break };
            if client >= 252 {
                phases.push(new_phase());
                continue;
            }
            let how = (kind, flavour.reloads);
            let Some(op) = op(how, &mut bytes, clients) else { break };
            if let Some(phase) = phases.last_mut() {
                phase[usize::from(client % clients)].push_back(op);
            }
        }
        Self { schedule, shards, servers, flavour, phases }
    }
}

/// Who dials whom: each at least one of those before it, so that all hear of one another.
fn servers(bytes: &mut Bytes<'_>) -> Vec<Vec<usize>> {
    let count = usize::from(bytes.or_zero()) % (SERVERS_MAX - 1) + 2;
    let mut dials = vec![Vec::new(); count];
    for at in 1..count {
        let byte = usize::from(bytes.or_zero());
        dials[at].push(byte % at);
        let more = byte / 16 % count;
        if byte >= 128 && more != at && more != byte % at {
            dials[at].push(more);
        }
        if (byte / 64).is_multiple_of(2) && byte.is_multiple_of(3) {
            dials[byte % at].push(at);
        }
    }
    dials
}

/// Of whom each dials only the first, and the very first dials nobody.
fn tree(servers: Vec<Vec<usize>>) -> Vec<Vec<usize>> {
    let hub =
        |(at, dials): (usize, Vec<usize>)| dials.into_iter().filter(move |to| *to < at).take(1);
    servers.into_iter().enumerate().map(|server| hub(server).collect()).collect()
}

fn flavour(first: u8, second: u8) -> Flavour {
    let heavy = first % 16 == 15;
    Flavour {
        heavy,
        overflow: matches!(first % 16, 11..15),
        reloads: false,
        cuts: if heavy { 2 } else { first / 16 % 3 },
        pending_bytes_max: match second % 8 {
            0..4 => 64 * 1024 * 1024,
            4 | 5 if !heavy => 3_000,
            6 if !heavy => 12_000,
            _ => 4 * 1024 * 1024,
        },
        write_deadline_ms: if (second / 8).is_multiple_of(4) { 500 } else { 10_000 },
        ping_interval_ms: if (second / 32).is_multiple_of(4) { 1_000 } else { 120_000 },
        pool_size: u16::from(second % 4),
        gateways: false,
        leaves: false,
    }
}

fn op((kind, reloads): (Kind, bool), bytes: &mut Bytes<'_>, clients: u8) -> Option<Op> {
    let first = bytes.next()?;
    let is_cluster = kind != Kind::Server;
    let op = match first % 64 {
        45 | 55 if reloads => Op::Reload { server: bytes.next()?, rules: Rules::of(bytes.next()?) },
        12 if reloads => Op::SubPrivate,
        54 if is_cluster => match bytes.next()? {
            which @ 0..100 => Op::CutRoute { which },
            which @ 100..200 => Op::StallRoute { which },
            server @ 200..225 if matches!(kind, Kind::Clusters | Kind::Leaves) => {
                Op::Part { server }
            }
            _ => Op::UnstallRoutes,
        },
        0..13 => {
            let (first, second) = (bytes.next()?, bytes.next()?);
            let queue = (first % 8 >= 5).then(|| usize::from(first / 8) % QUEUES.len());
            let filter = usize::from(second) % (FILTERS.len() + 4);
            let inbox = filter >= FILTERS.len();
            Op::Sub {
                filter: (!inbox).then_some(filter),
                queue: queue.filter(|_| !inbox),
                reuse: first / 64 == 3,
            }
        }
        13 => {
            let filter = usize::from(bytes.next()?) % FILTERS.len();
            Op::SubTwice { which: bytes.next()?, filter }
        }
        14 => Op::SubInvalid { filter: usize::from(bytes.next()?) % BAD_FILTERS.len() },
        15..19 => Op::Unsub { which: bytes.next()? },
        19..22 => Op::UnsubMax { which: bytes.next()?, max: u64::from(bytes.next()?) % 8 + 1 },
        22 => Op::UnsubUnknown,
        23..45 => {
            let (subject, shape, count) = (bytes.next()?, bytes.next()?, bytes.next()?);
            let subject = usize::from(subject) % SUBJECTS.len();
            Op::Publish { subject, shape, count: if count < 128 { 1 } else { count % 12 + 1 } }
        }
        45..47 => Op::Ping,
        47..53 => Op::Barrier,
        53 => Op::Connect { flags: bytes.next()? },
        54 => Op::Barrier,
        55 => Op::Pong,
        56..59 => Op::Meet { client: usize::from(bytes.next()? % clients) },
        59 => Op::Stall,
        60 => Op::Unstall,
        61 => Op::Barrier,
        _ => match bytes.next()? {
            0..80 => Op::HalfClose,
            80..160 => Op::Reset,
            160..200 => Op::Garbage { which: bytes.next()? },
            _ => Op::Ping,
        },
    };
    Some(op)
}
