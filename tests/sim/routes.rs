//! The servers of a cluster: who dials whom, and the routes between them, which stall and break.
//!
//! Who is a member is decided by the real [`Members`]; dialling, and everything that the threads
//! of a server say to one another, is played here, and takes as long as the schedule likes.

use std::collections::VecDeque;

use shardcast::cluster::gateways::{GatewayPlan, GatewayStep, OtherClusters};
use shardcast::cluster::{ClientUrls, LeafRemotes, Members, Plan, Pooling, RouteStep as Task};
use shardcast::config::{Options, RouteUrl};
use shardcast::engine::{
    ClusterIdentity, DialedGateway, GatewayIdentity, GatewayNotice, Identity, LeafNotice,
    NewGateway, NewRoute, Peer, RouteNotice,
};
use shardcast::shard::{Control, GatewayOrder, RouteOrder};

use super::kernel::Heard;
use super::leaves;
use super::pipe::Pipe;
use super::script::Flavour;
use super::shards::{Order, Shard};
use super::sockets::{ended, piece_of, received};
use super::world::{NS_PER_MS, World, tell};

/// What the kernels of both ends keep of a route that is not read.
const ROUTE_BYTES_MAX: usize = 6_000;
/// The same in a run with large payloads.
const HEAVY_ROUTE_BYTES_MAX: usize = 1_000_000;

/// What a server has besides its shards.
pub(super) struct Server {
    members: Members,
    notices: VecDeque<RouteNotice>,
    /// Where each server is a cluster of its own: what it knows of the others.
    others: Option<OtherClusters>,
    gateway_notices: VecDeque<GatewayNotice>,
    /// Where servers are leaf nodes: what it knows of its hub.
    pub(super) hubs: Option<LeafRemotes>,
    pub(super) leaf_notices: VecDeque<LeafNotice>,
    pub(super) last_rid: u64,
}

/// A server waits for the first words of a peer for this long, in nanoseconds.
const INTRODUCTION_NS: u64 = 5_000_000_000;
/// The same for a peer of another cluster.
const GATEWAY_INTRODUCTION_NS: u64 = 2_000_000_000;
/// Milliseconds between two PINGs of a gateway, at most.
const GATEWAY_PING_MS_MAX: u64 = 15_000;

/// One end of a route.
pub(super) struct End {
    pub(super) pipe: Pipe,
    pub(super) server: usize,
    pub(super) rid: u64,
    /// The other end.
    pub(super) other: usize,
    since: u64,
    /// Its server has dialled another cluster.
    is_outbound: bool,
    /// Its server has heard who the peer is, and has let it stay.
    pub(super) is_registered: bool,
    /// The network has lost it.
    is_reset: bool,
    /// It has to go by order of the members.
    pub(super) is_dismissed: bool,
}

pub(super) fn name(server: usize) -> String {
    format!("server{server}")
}

/// The cluster of a server that has one for itself.
fn cluster_of(server: usize) -> String {
    format!("C{server}")
}

fn pooling(flavour: &Flavour) -> Pooling {
    let mut options = Options::default();
    options.cluster.pool_size = flavour.pool_size;
    options.pooling()
}

fn identity(server: usize, lives: u32, flavour: &Flavour) -> Identity {
    if flavour.gateways {
        let gateway = GatewayIdentity {
            name: cluster_of(server),
            host: name(server),
            port: 1,
            url: format!("{}:1", name(server)),
        };
        return Identity {
            id: format!("N{server}L{lives}LONGENOUGH"),
            name: name(server),
            gateway: Some(gateway),
            ..Identity::default()
        };
    }
    if flavour.leaves {
        return leaves::identity(server, lives);
    }
    Identity {
        // Its first characters name a server in subjects.
        id: format!("N{server}L{lives}LONGENOUGH"),
        name: name(server),
        cluster: Some(ClusterIdentity {
            name: "C".to_owned(),
            port: 1,
            urls: ClientUrls {
                tcp: Some(vec![format!("{}:2", name(server))]),
                ..ClientUrls::default()
            },
            pooling: pooling(flavour),
            ..ClusterIdentity::default()
        }),
        ..Identity::default()
    }
}

/// The shards of a server that begins its life with this number.
pub(super) fn shards(
    server: usize,
    lives: u32,
    count: u8,
    (flavour, is_cluster): (&Flavour, bool),
    rng: &mut fastrand::Rng,
) -> Vec<Shard> {
    let identity = if is_cluster { identity(server, lives, flavour) } else { Identity::default() };
    let seeds: Vec<u64> = (0..count).map(|_| rng.u64(..)).collect();
    Shard::all(server, &identity, flavour, &seeds)
}

impl Server {
    /// A server that dials those in `dials`.
    pub(super) fn new(
        server: usize,
        lives: u32,
        dials: &[usize],
        flavour: &Flavour,
        seed: u64,
    ) -> Self {
        let url = |to: &usize| RouteUrl { host: name(*to), port: 1, login: None };
        let others = flavour.gateways.then(|| {
            let plan = GatewayPlan {
                name: cluster_of(server),
                server_id: identity(server, lives, flavour).id,
                server_name: name(server),
                url: format!("{}:1", name(server)),
                remotes: dials.iter().map(|to| (cluster_of(*to), vec![url(to)])).collect(),
                // Nobody is given up for an attempt that fails.
                connect_retries: u32::MAX,
                ..GatewayPlan::default()
            };
            OtherClusters::new(plan, seed)
        });
        let hubs = flavour.leaves.then(|| LeafRemotes::new(leaves::plan(dials), seed));
        let dials = if flavour.gateways || flavour.leaves { &[][..] } else { dials };
        let plan = Plan {
            id: identity(server, lives, flavour).id,
            pooling: pooling(flavour),
            routes: dials.iter().map(url).collect(),
            // Nobody is given up for an attempt that fails.
            connect_retries: u32::MAX,
            ..Plan::default()
        };
        let members = Members::new(plan, seed);
        Self {
            members,
            notices: VecDeque::new(),
            others,
            gateway_notices: VecDeque::new(),
            hubs,
            leaf_notices: VecDeque::new(),
            last_rid: 0,
        }
    }

    pub(super) fn next_deadline(&self) -> Option<u64> {
        let others = self.others.as_ref().and_then(OtherClusters::next_deadline);
        let hubs = self.hubs.as_ref().and_then(LeafRemotes::next_deadline);
        self.members.next_deadline().into_iter().chain(others).chain(hubs).min()
    }
}

impl World {
    /// The thread of a server that decides about its members. False if it has nothing to do.
    pub(super) fn decide(&mut self, server: usize, eager: bool) -> bool {
        let count = if eager { usize::MAX } else { self.rng.usize(..4) };
        let Some(Server { members, notices, .. }) = self.servers.get_mut(server) else {
            return false;
        };
        members.set_now(self.now);
        let mut moved = false;
        for _ in 0..count {
            let Some(notice) = notices.pop_front() else { break };
            moved = true;
            match notice {
                RouteNotice::Greeted { rid, info, ip } => members.on_greeted(rid, *info, &ip),
                RouteNotice::Confirmed { rid } => members.on_confirmed(rid),
                RouteNotice::Heard { rid, info } => members.on_heard(rid, *info),
                RouteNotice::Ended { rid, is_self } => members.on_ended(rid, is_self),
                notice @ RouteNotice::Named { .. } => panic!("the cluster has a name: {notice:?}"),
            }
        }
        while let Some(task) = self.servers[server].members.next_step() {
            moved = true;
            tell!(self, "server {server}: {task:?}");
            self.carry_out_task(server, task, eager);
        }
        moved |= self.decide_on_hubs(server, count, eager);
        moved | self.decide_on_clusters(server, count, eager)
    }

    /// The same for the thread that decides about other clusters.
    fn decide_on_clusters(&mut self, server: usize, count: usize, eager: bool) -> bool {
        let Server { others, gateway_notices, .. } = &mut self.servers[server];
        let Some(others) = others else { return false };
        others.set_now(self.now);
        let mut moved = false;
        for _ in 0..count {
            let Some(notice) = gateway_notices.pop_front() else { break };
            moved = true;
            match notice {
                GatewayNotice::Greeted { rid, info } => others.on_greeted(rid, &info),
                GatewayNotice::Heard { rid, info } => others.on_heard(rid, &info),
                GatewayNotice::Ended { rid } => others.on_ended(rid),
                other => panic!("there are no routes: {other:?}"),
            }
        }
        while let Some(step) = self.servers[server].others.as_mut().and_then(|o| o.next_step()) {
            moved = true;
            tell!(self, "server {server}: {step:?}");
            self.carry_out_step(server, step, eager);
        }
        moved
    }

    fn carry_out_step(&mut self, server: usize, step: GatewayStep, eager: bool) {
        let (rid, order) = match step {
            GatewayStep::Dial { cluster, url, .. } => {
                return self.dial_cluster(server, &cluster, &url, eager);
            }
            GatewayStep::Register(rid, others) => {
                for end in self.ends.iter_mut().filter(|e| e.server == server && e.rid == rid) {
                    end.is_registered = true;
                }
                (rid, GatewayOrder::Register(rid, others))
            }
            GatewayStep::Close(rid, reason) => {
                for end in self.ends.iter_mut().filter(|e| e.server == server && e.rid == rid) {
                    end.is_dismissed = true;
                }
                (rid, GatewayOrder::Close(rid, reason))
            }
            GatewayStep::HearOn(rid) => (rid, GatewayOrder::HearOn(rid)),
            GatewayStep::HearRoute(_) => panic!("there are no routes"),
            // Only members of the same cluster are told.
            GatewayStep::Urls(_) | GatewayStep::Members(_) | GatewayStep::Clusters(_) => return,
        };
        let end = self.ends.iter().find(|end| end.server == server && end.rid == rid);
        let Some(shard) = end.map(|end| end.pipe.shard) else { return };
        self.shards[shard].orders.push_back(Order::Tell(Control::Gateway(order)));
    }

    fn dial_cluster(&mut self, from: usize, cluster: &str, url: &RouteUrl, eager: bool) {
        let to = (0..self.servers.len()).find(|to| name(*to) == url.host);
        let Some(to) = to else { panic!("nobody listens at {url:?}") };
        let fails = self.are_parted(from, to) || (!eager && self.rng.u32(..6) == 0);
        let dialed = (!fails).then(|| {
            let dialed = self.open_gateway(from, Some(cluster), 1);
            let accepted = self.open_gateway(to, None, -1);
            let others = self.servers[to].others.as_mut().expect("a cluster of its own");
            others.on_accepted(accepted);
            dialed
        });
        let others = self.servers[from].others.as_mut().expect("a cluster of its own");
        others.on_dialed(cluster, dialed);
    }

    /// Opens the end of a gateway whose other end is so many places further on.
    fn open_gateway(&mut self, server: usize, dialed: Option<&str>, other: isize) -> u64 {
        self.servers[server].last_rid += 1;
        let rid = self.servers[server].last_rid;
        let is_outbound = dialed.is_some();
        let shard = match is_outbound {
            true => self.shards_of(server).end - 1,
            false => self.shard_of_route(server, rid),
        };
        let id = self.shards[shard].take_slot();
        let peer = Peer { cid: rid, ip: "127.0.0.1".into(), port: 1 };
        let dialed = dialed.map(|cluster| DialedGateway {
            cluster: cluster.to_owned(),
            is_configured: true,
            login: None,
            host: String::new(),
        });
        let gateway = NewGateway { rid, dialed };
        let adopt = Control::AdoptGateway { socket: id, peer, gateway };
        self.shards[shard].orders.push_back(Order::Tell(adopt));
        tell!(self, "server {server} has gateway {rid} on shard {shard} as {id:?}");
        self.push_end(server, rid, Pipe::new(shard, id), other);
        if let Some(end) = self.ends.last_mut() {
            end.is_outbound = is_outbound;
        }
        rid
    }

    pub(super) fn push_end(&mut self, server: usize, rid: u64, pipe: Pipe, other: isize) {
        self.ends.push(End {
            pipe,
            server,
            rid,
            other: self.ends.len().saturating_add_signed(other),
            since: self.now,
            is_outbound: false,
            is_registered: false,
            is_reset: false,
            is_dismissed: false,
        });
    }

    fn carry_out_task(&mut self, server: usize, task: Task, eager: bool) {
        let order = match task {
            Task::Dial { target, url, .. } => return self.dial(server, target, &url, eager),
            Task::Urls(urls) => {
                for shard in self.shards_of(server) {
                    self.shards[shard]
                        .orders
                        .push_back(Order::Tell(Control::Route(RouteOrder::Urls(urls.clone()))));
                }
                return;
            }
            Task::Register(rid, part) => {
                for end in self.ends.iter_mut().filter(|e| e.server == server && e.rid == rid) {
                    end.is_registered = true;
                }
                (rid, RouteOrder::Register(rid, part))
            }
            Task::Close(rid) => {
                for end in self.ends.iter_mut().filter(|e| e.server == server && e.rid == rid) {
                    end.is_dismissed = true;
                }
                (rid, RouteOrder::Close(rid))
            }
            Task::Ask(rid) => (rid, RouteOrder::Ask(rid)),
            Task::Remove(rid) => (rid, RouteOrder::Remove(rid)),
            Task::HearOn(rid) => (rid, RouteOrder::HearOn(rid)),
            Task::Gossip(rid, info) => (rid, RouteOrder::Gossip(rid, info)),
        };
        let shard = self.shard_of_route(server, order.0);
        self.shards[shard].orders.push_back(Order::Tell(Control::Route(order.1)));
    }

    /// Routes go round the shards.
    pub(super) fn shard_of_route(&self, server: usize, rid: u64) -> usize {
        let shards = self.shards_of(server);
        let at = usize::try_from(rid % shards.len() as u64).unwrap_or(0);
        shards.start + at
    }

    fn dial(&mut self, from: usize, target: u64, url: &RouteUrl, eager: bool) {
        let to = (0..self.servers.len()).find(|to| name(*to) == url.host);
        let Some(to) = to else { panic!("nobody listens at {url:?}") };
        if !eager && self.rng.u32(..6) == 0 {
            return self.servers[from].members.on_dialed(target, None);
        }
        let dialed = self.open_end(from, Some(None), 1);
        let accepted = self.open_end(to, None, -1);
        self.servers[from].members.on_dialed(target, Some(dialed));
        self.servers[to].members.on_accepted(accepted);
    }

    /// Opens an end whose other end is so many places further on. Returns what it is called.
    fn open_end(&mut self, server: usize, dialed: Option<Option<Login>>, other: isize) -> u64 {
        self.servers[server].last_rid += 1;
        let rid = self.servers[server].last_rid;
        let shard = self.shard_of_route(server, rid);
        let id = self.shards[shard].take_slot();
        let peer = Peer { cid: rid, ip: "127.0.0.1".into(), port: 1 };
        let route = NewRoute { rid, dialed, host: "".into() };
        let adopt = Control::AdoptRoute { socket: id, peer, route };
        self.shards[shard].orders.push_back(Order::Tell(adopt));
        tell!(self, "server {server} has route {rid} on shard {shard} as {id:?}");
        self.push_end(server, rid, Pipe::new(shard, id), other);
        rid
    }

    pub(super) fn take_notices(&mut self, shard: usize) {
        let here = &self.shards[shard];
        while let Some(notice) = here.pop_notice() {
            self.servers[here.server].notices.push_back(notice);
        }
        while let Some(notice) = here.pop_gateway_notice() {
            self.servers[here.server].gateway_notices.push_back(notice);
        }
        while let Some(notice) = here.pop_leaf_notice() {
            self.servers[here.server].leaf_notices.push_back(notice);
        }
    }

    /// Moves bytes from one kernel to the other. False if there was nothing to do.
    pub(super) fn move_route(&mut self, at: usize, all: bool) -> bool {
        let is_heavy = self.flavour.heavy;
        let bytes_max = if is_heavy { HEAVY_ROUTE_BYTES_MAX } else { ROUTE_BYTES_MAX };
        let other_reads = self.ends[self.ends[at].other].pipe.is_open();
        let End { pipe, is_reset, .. } = &mut self.ends[at];
        if *is_reset || pipe.gone || pipe.batch.is_none() {
            return false;
        }
        let mut left = if all { usize::MAX } else { self.rng.usize(1..2000) };
        if is_heavy && !all {
            left *= 200;
        }
        let took = pipe.take(left.min(bytes_max.saturating_sub(pipe.sent.len())));
        if !other_reads {
            pipe.sent.clear();
        }
        took
    }

    /// What a shard is told of a route's output, and of the route.
    pub(super) fn complete_route(&mut self, at: usize, eager: bool) -> Option<Heard> {
        if !eager && self.rng.bool() {
            return None;
        }
        let End { pipe, is_reset, .. } = &mut self.ends[at];
        self.shards[pipe.shard].complete(pipe, *is_reset)
    }

    /// Hands what has come over a route to its shard, in some pieces.
    pub(super) fn hand_in_route(&mut self, at: usize, eager: bool, events: &mut Vec<Heard>) {
        let rounds = if eager { 16 } else { self.rng.u32(..4) };
        for _ in 0..rounds {
            let is_over = !self.ends[self.ends[at].other].pipe.is_open();
            let End { pipe, other, is_reset, .. } = &mut self.ends[at];
            let (other, id) = (*other, pipe.id);
            if !self.shards[pipe.shard].has_chunk(events) || !pipe.hears() {
                break;
            }
            let is_reset = *is_reset;
            let rest = self.ends[other].pipe.sent.len();
            if is_reset || (rest == 0 && is_over) {
                self.ends[at].pipe.end_handed = true;
                events.push(ended(id, is_reset));
                tell!(self, "end {at} of a route has ended");
                return;
            }
            if rest == 0 {
                break;
            }
            let len = piece_of(rest, self.flavour.cuts, &mut self.rng);
            let bytes: Vec<u8> = self.ends[other].pipe.sent.drain(..len).collect();
            tell!(self, "end {at} of a route hears {}", super::wire::show(&bytes));
            events.push(received(id, bytes));
        }
    }

    /// The server closes its end of a route.
    pub(super) fn close_end(&mut self, at: usize, abort: bool) {
        self.book.step += 1;
        tell!(self, "end {at} of a route is closed, abort: {abort}");
        let end = &self.ends[at];
        let other = self.ends[end.other].server;
        let deadline = self.flavour.write_deadline_ms * NS_PER_MS;
        let late = end.pipe.batch.as_ref().is_some_and(|b| b.since + deadline <= self.now);
        // A peer that does not answer is stale after two intervals, and one that says nothing.
        let interval_ms = self.flavour.ping_interval_ms;
        let (interval_ms, introduction_ns) = match self.flavour {
            Flavour { gateways: true, .. } => {
                (interval_ms.min(GATEWAY_PING_MS_MAX), GATEWAY_INTRODUCTION_NS)
            }
            Flavour { leaves: true, .. } => (interval_ms, leaves::INTRODUCTION_NS),
            _ => (interval_ms, INTRODUCTION_NS),
        };
        let stale = self.now - end.since >= 2 * interval_ms * NS_PER_MS;
        // What a peer says first may be longer on its way than it is waited for, at either end.
        let is_introduced = end.is_registered && self.ends[end.other].is_registered;
        let unheard = !is_introduced && self.now - end.since >= introduction_ns;
        let over = end.is_reset || end.pipe.end_handed || end.is_dismissed || unheard;
        let is_narrow = self.flavour.pending_bytes_min() < 64 * 1024 * 1024;
        assert!(
            over || late || stale || is_narrow || self.is_leaving,
            "end {at} of a route is closed for no reason"
        );
        let own = end.server;
        self.book.part(own, other);
        let pipe = &mut self.ends[at].pipe;
        pipe.closing = true;
        if abort {
            let kept = self.rng.usize(..=pipe.sent.len());
            pipe.sent.truncate(kept);
        }
    }

    /// One of the ends that are open.
    fn pick_end(&self, which: u8) -> Option<usize> {
        let open = |at: &usize| self.ends[*at].pipe.is_open() && !self.ends[*at].is_reset;
        let open: Vec<usize> = (0..self.ends.len()).filter(open).collect();
        (!open.is_empty()).then(|| open[usize::from(which) % open.len()])
    }

    /// The network loses a route, and some of what is on its way.
    pub(super) fn cut_route(&mut self, which: u8) {
        if let Some(at) = self.pick_end(which) {
            self.lose(at);
        }
    }

    /// A server loses all its routes, and gets no others for now.
    pub(super) fn part_server(&mut self, server: u8) {
        let server = usize::from(server) % self.servers.len();
        tell!(self, "server {server} is parted from the others");
        self.parted = Some(server);
        let lost = |end: &&End| end.server == server && end.pipe.is_open() && !end.is_reset;
        let others: Vec<usize> = self.ends.iter().filter(lost).map(|end| end.other).collect();
        others.into_iter().for_each(|end| self.lose(end));
    }

    /// Whether nobody gets from one server to the other.
    pub(super) fn are_parted(&self, from: usize, to: usize) -> bool {
        self.parted.is_some_and(|parted| parted == from || parted == to)
    }

    fn lose(&mut self, at: usize) {
        let other = self.ends[at].other;
        tell!(self, "ends {at} and {other} of a route are lost");
        self.book.step += 1;
        self.book.part(self.ends[at].server, self.ends[other].server);
        for end in [at, other] {
            self.ends[end].is_reset = true;
            self.ends[end].pipe.sent.clear();
        }
    }

    /// One direction of a route takes nothing for now.
    pub(super) fn stall_route(&mut self, which: u8) {
        if let Some(at) = self.pick_end(which) {
            tell!(self, "end {at} of a route stalls");
            self.ends[at].pipe.stalled = true;
        }
    }

    /// All routes take what they are given again; whether one did not.
    pub(super) fn unstall_routes(&mut self) -> bool {
        let mut any = self.parted.take().is_some();
        for end in &mut self.ends {
            any |= std::mem::take(&mut end.pipe.stalled);
        }
        any
    }

    /// What is missing until every pair of servers has its routes, in both their opinions.
    pub(super) fn cluster_unrest(&self) -> Option<String> {
        let pool = pooling(&self.flavour);
        let routes_of_pair = pool.parts_with(pool.size().into()).len();
        let mut ends = self.ends.iter().filter(|end| end.pipe.is_open());
        if let Some(end) = ends.find(|end| !end.pipe.reading) {
            return Some(format!("route {} of server {} is paused", end.rid, end.server));
        }
        if self.flavour.gateways {
            return self.clusters_unrest();
        }
        if self.flavour.leaves {
            return self.leaves_unrest();
        }
        for (server, Server { notices, .. }) in self.servers.iter().enumerate() {
            if self.is_leaving {
                break;
            }
            assert!(notices.is_empty(), "nobody has looked at {notices:?}");
            let shards = &self.shards[self.shards_of(server)];
            let routes = shards.iter().flat_map(|shard| shard.engine().view().routes(false));
            let mut remotes: Vec<String> = routes.map(|route| route.remote_name).collect();
            remotes.sort_unstable();
            let others = (0..self.servers.len()).filter(|other| *other != server);
            let wanted = others.flat_map(|other| vec![name(other); routes_of_pair]);
            let wanted: Vec<String> = wanted.collect();
            let open = self.ends.iter().filter(|e| e.server == server && !e.pipe.gone).count();
            if remotes != wanted || open != wanted.len() {
                return Some(format!("server {server} has {open} routes, to {remotes:?}"));
            }
        }
        None
    }

    /// The same for clusters: each has one gateway to each other one, and one from there.
    fn clusters_unrest(&self) -> Option<String> {
        for (server, Server { gateway_notices, .. }) in self.servers.iter().enumerate() {
            if self.is_leaving {
                break;
            }
            assert!(gateway_notices.is_empty(), "nobody has looked at {gateway_notices:?}");
            let shards = &self.shards[self.shards_of(server)];
            let gateways = shards.iter().flat_map(|shard| shard.engine().view().gateways(false));
            let mut known: Vec<(String, bool)> =
                gateways.map(|gateway| (gateway.cluster, gateway.is_outbound)).collect();
            known.sort_unstable();
            let others = (0..self.servers.len()).filter(|other| *other != server);
            let wanted = others.flat_map(|other| [false, true].map(|out| (cluster_of(other), out)));
            let wanted: Vec<(String, bool)> = wanted.collect();
            let open = self.ends.iter().filter(|e| e.server == server && !e.pipe.gone).count();
            if known != wanted || open != wanted.len() {
                return Some(format!("server {server} has {open} gateways, to {known:?}"));
            }
        }
        None
    }

    /// All servers end.
    pub(super) fn leave_cluster(&mut self) {
        self.is_leaving = true;
        for shard in &mut self.shards {
            shard.orders.push_back(Order::Tell(Control::Stop));
        }
        for _ in 0..100 {
            for at in 0..self.ends.len() {
                self.move_route(at, true);
            }
            for shard in 0..self.shards.len() {
                self.turn(shard, true);
            }
        }
        assert!(self.ends.iter().all(|end| end.pipe.gone), "a route remains");
        for (at, shard) in self.shards.iter().enumerate() {
            assert_eq!(
                shard.engine().view().filters(),
                0,
                "interest of peers remains on shard {at}"
            );
            assert_eq!(shard.engine().view().output_bytes(), 0, "output remains on shard {at}");
        }
    }
}

type Login = (String, shardcast::config::Secret);
