//! Servers that are leaf nodes of one another: who dials whom, and what is missing.
//!
//! When to dial is decided by the real [`LeafRemotes`](shardcast::cluster::LeafRemotes); dialling
//! is played here, and takes as long as the schedule likes.

use std::sync::Arc;

use shardcast::cluster::{LeafPause, LeafPlan, LeafStep, LeafTarget, LeafUrl};
use shardcast::config::{LeafUser, Secret};
use shardcast::engine::{
    Identity, LeafDial, LeafEnd, LeafLogin, LeafNotice, LeafRemote, NewLeaf, Peer,
};
use shardcast::shard::Control;

use super::pipe::Pipe;
use super::routes::{self, Server};
use super::shards::Order;
use super::world::{World, tell};

/// A server waits for the first words of the other one for this long, in nanoseconds, at least.
pub(super) const INTRODUCTION_NS: u64 = 1_000_000_000;
/// The same in milliseconds, for the first of all.
const FIRST_INFO_MS: u64 = 1_000;
/// Nanoseconds before a lost hub is dialled again.
const RECONNECT_NS: u64 = 1_000_000_000;

/// Whom hubs take for leaf nodes: no rules for guests apply to them.
const USER: (&str, &str) = ("leaf", "secret");

pub(super) fn user() -> LeafUser {
    LeafUser {
        name: USER.0.to_owned(),
        password: Secret::new(USER.1),
        has_nkey: false,
        account: "$G".to_owned(),
    }
}

pub(super) fn identity(server: usize, lives: u32) -> Identity {
    Identity {
        id: format!("N{server}L{lives}LONGENOUGH"),
        name: routes::name(server),
        leaf_port: Some(1),
        ..Identity::default()
    }
}

/// What a server knows that dials those in `dials`.
pub(super) fn plan(dials: &[usize]) -> LeafPlan {
    let url = |hub: usize| LeafUrl::parse(&format!("nats-leaf://{}:1", routes::name(hub)));
    let target = |(number, hub): (usize, &usize)| LeafTarget {
        number,
        identity: String::new(),
        urls: url(*hub).into_iter().collect(),
        no_randomize: true,
        ignores_discovered: true,
        is_disabled: false,
        revision: 0,
    };
    let targets = dials.iter().enumerate().map(target).collect();
    LeafPlan { reconnect_ns: RECONNECT_NS, targets }
}

impl World {
    /// The thread of a server that dials its hub. False if it has nothing to do.
    pub(super) fn decide_on_hubs(&mut self, server: usize, count: usize, eager: bool) -> bool {
        let Server { hubs, leaf_notices, .. } = &mut self.servers[server];
        let Some(hubs) = hubs else { return false };
        hubs.set_now(self.now);
        let (mut moved, mut up) = (false, Vec::new());
        for _ in 0..count {
            let Some(notice) = leaf_notices.pop_front() else { break };
            moved = true;
            match notice {
                LeafNotice::Up { lid } => {
                    hubs.on_up(lid);
                    up.push(lid);
                }
                LeafNotice::Urls { lid, urls } => hubs.on_urls(lid, &urls),
                LeafNotice::Ended { lid, end } => {
                    let pause = match end {
                        LeafEnd::Other => LeafPause::Usual,
                        end => panic!("a tree has no {end:?}"),
                    };
                    hubs.on_ended(lid, pause);
                }
            }
        }
        for lid in up {
            let dialed = self.ends.iter().position(|end| end.server == server && end.rid == lid);
            let Some(dialed) = dialed else { continue };
            let accepted = self.ends[dialed].other;
            [dialed, accepted].into_iter().for_each(|end| self.ends[end].is_registered = true);
        }
        while let Some(step) = self.servers[server].hubs.as_mut().and_then(|hubs| hubs.next_step())
        {
            moved = true;
            tell!(self, "server {server}: {step:?}");
            match step {
                LeafStep::Dial { target, url, .. } => self.dial_hub(server, target, &url, eager),
                LeafStep::Close(lid) => self.close_leaf(server, lid),
            }
        }
        moved
    }

    /// A reload configures the hub of a server otherwise: their connection ends, and another one
    /// takes its place.
    pub(super) fn reload_remotes(&mut self, server: usize) {
        let Some(hubs) = &mut self.servers[server].hubs else { return };
        tell!(self, "server {server} has its remotes configured otherwise");
        let mut plan = hubs.plan().clone();
        plan.targets.iter_mut().for_each(|target| target.revision += 1);
        hubs.reload(plan);
    }

    fn close_leaf(&mut self, server: usize, lid: u64) {
        let end = self.ends.iter().position(|end| end.server == server && end.rid == lid);
        let Some(end) = end else { panic!("nobody has dialled {lid}") };
        // The hub may be dialled anew before it hears of the end, and then ends the older one.
        for end in [end, self.ends[end].other] {
            self.ends[end].is_dismissed = true;
        }
        let shard = self.ends[end].pipe.shard;
        self.shards[shard].orders.push_back(Order::Tell(Control::CloseLeaf(lid)));
    }

    fn dial_hub(&mut self, from: usize, target: u64, url: &LeafUrl, eager: bool) {
        let to = (0..self.servers.len()).find(|to| routes::name(*to) == url.host);
        let Some(to) = to else { panic!("nobody listens at {url:?}") };
        let fails = self.are_parted(from, to) || (!eager && self.rng.u32(..6) == 0);
        let dialed = (!fails).then(|| {
            let remote = LeafRemote {
                account: "$G".to_owned(),
                first_info_timeout_ms: FIRST_INFO_MS,
                ..LeafRemote::default()
            };
            let dial = LeafDial {
                remote: Arc::new(remote),
                login: LeafLogin {
                    user: Some(USER.0.to_owned()),
                    password: Some(Secret::new(USER.1)),
                    ..LeafLogin::default()
                },
                host: url.host.clone(),
                websocket: None,
                is_tls: false,
            };
            let dialed = self.open_leaf(from, Some(dial), 1);
            self.open_leaf(to, None, -1);
            dialed
        });
        if let Some(hubs) = &mut self.servers[from].hubs {
            hubs.on_dialed(target, dialed);
        }
    }

    /// Opens an end whose other end is so many places further on. Returns what it is called.
    fn open_leaf(&mut self, server: usize, dialed: Option<LeafDial>, other: isize) -> u64 {
        self.servers[server].last_rid += 1;
        let lid = self.servers[server].last_rid;
        let shard = self.shard_of_route(server, lid);
        let id = self.shards[shard].take_slot();
        let peer = Peer { cid: lid, ip: "127.0.0.1".into(), port: 1 };
        let leaf = NewLeaf { lid, dialed: dialed.map(Box::new) };
        let adopt = Control::AdoptLeaf { socket: id, peer, leaf };
        self.shards[shard].orders.push_back(Order::Tell(adopt));
        tell!(self, "server {server} has leaf connection {lid} on shard {shard} as {id:?}");
        self.push_end(server, lid, Pipe::new(shard, id), other);
        lid
    }

    /// What is missing until each leaf node is joined with its hub, in both their opinions.
    pub(super) fn leaves_unrest(&self) -> Option<String> {
        if self.is_leaving {
            return None;
        }
        for (server, Server { leaf_notices, .. }) in self.servers.iter().enumerate() {
            assert!(leaf_notices.is_empty(), "nobody has looked at {leaf_notices:?}");
            let hubs = self.hubs_of(server);
            let leaves =
                (0..self.servers.len()).filter(|leaf| self.hubs_of(*leaf).contains(&server));
            let mut wanted: Vec<(String, bool)> =
                hubs.iter().map(|hub| (routes::name(*hub), true)).collect();
            wanted.extend(leaves.map(|leaf| (routes::name(leaf), false)));
            wanted.sort_unstable();
            let shards = &self.shards[self.shards_of(server)];
            let all = shards.iter().flat_map(|shard| shard.engine().view().leaves(false));
            let mut known: Vec<(String, bool)> =
                all.map(|leaf| (leaf.name, leaf.is_spoke)).collect();
            known.sort_unstable();
            let open = self.ends.iter().filter(|e| e.server == server && !e.pipe.gone).count();
            if known != wanted || open != wanted.len() {
                return Some(format!("server {server} has {open} leaf connections: {known:?}"));
            }
        }
        None
    }

    fn hubs_of(&self, server: usize) -> Vec<usize> {
        let targets = self.servers[server].hubs.iter().flat_map(|hubs| &hubs.plan().targets);
        let hub = |target: &LeafTarget| {
            let url = target.urls.first()?;
            (0..self.servers.len()).find(|hub| routes::name(*hub) == url.host)
        };
        targets.filter_map(hub).collect()
    }
}
