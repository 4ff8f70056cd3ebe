//! Other clusters as one server sees them: which to dial, and what to say about them.
//!
//! Pure: notices of the shards, outcomes of dialling and the time come in; [`GatewayStep`]s come
//! out. Times are nanoseconds since the start of the process.
//!
//! Every server dials one server of each other cluster. Those that are not configured are learnt:
//! from a peer that has dialled, from one that was dialled, or from a member of the own cluster. A
//! round of attempts tries all addresses of a cluster, in any order; configured clusters are tried
//! for ever. A reload brings a new plan.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::RouteUrl;
use crate::auth::Secret;
use crate::proto::gateway::{GOSSIP, GatewayInfo, NameHash};

/// Nanoseconds from the start to the first attempt, so that the own cluster can form before.
const FIRST_DIAL_NS: u64 = 1_000_000_000;
/// Nanoseconds between two rounds of attempts, and before a lost configured cluster is tried again.
const ROUND_NS: u64 = 1_000_000_000;
/// Nanoseconds between two rounds with back-off, at most.
const ROUND_NS_MAX: u64 = 30_000_000_000;
/// Nanoseconds of random delay before a lost cluster is tried again.
const JITTER_NS: u64 = 100_000_000;
/// Clusters that are learnt, at most; further ones are ignored.
const LEARNT_MAX: usize = 1024;
/// Addresses learnt of one cluster, at most.
const URLS_MAX: usize = 256;
/// Bytes of an address or a name that is learnt, at most.
const TEXT_BYTES_MAX: usize = 512;

/// Settings of this server that concern other clusters.
#[derive(Debug, Clone, Default)]
pub struct GatewayPlan {
    /// The name of the own cluster.
    pub name: String,
    /// The id of this server.
    pub server_id: String,
    /// The name of this server.
    pub server_name: String,
    /// `host:port` where other clusters reach this server.
    pub url: String,
    /// The configured clusters, without the own one.
    pub remotes: Vec<(String, Vec<RouteUrl>)>,
    /// The credentials for addresses without any.
    pub login: Option<(String, Secret)>,
    /// Rounds of attempts to reach a cluster that is not configured, after the first one.
    pub connect_retries: u32,
    /// Whether the time between rounds grows.
    pub connect_backoff: bool,
    /// Whether clusters that are not configured are refused.
    pub reject_unknown: bool,
}

/// A task for the caller.
#[derive(Debug, Clone, PartialEq)]
pub enum GatewayStep {
    /// A server of a cluster to dial; the result goes to [`OtherClusters::on_dialed`].
    Dial {
        /// The name of the cluster.
        cluster: String,
        /// Whether the cluster is configured.
        is_configured: bool,
        /// The address.
        url: RouteUrl,
        /// Rounds before this one without success.
        round: u32,
    },
    /// A gateway whose peer is accepted, and is told of these clusters if it has dialled.
    Register(u64, Vec<GatewayInfo>),
    /// A gateway to close, for this reason.
    Close(u64, &'static str),
    /// A gateway whose last INFO is handled, so that the next may be read.
    HearOn(u64),
    /// A route whose last INFO is handled, so that the next may be read.
    HearRoute(u64),
    /// Addresses of the own cluster's servers, for peers that have dialled.
    Urls(Vec<String>),
    /// The members of the own cluster, by the hashes of their ids.
    Members(Vec<NameHash>),
    /// The clusters to which there is a gateway, for the members of the own cluster.
    Clusters(Vec<GatewayInfo>),
}

/// Another cluster.
#[derive(Debug)]
struct OtherCluster {
    configured: Vec<RouteUrl>,
    /// Addresses that its servers, or others, have told.
    learnt: BTreeSet<String>,
    is_configured: bool,
    state: DialState,
    /// Rounds without success since the last connection.
    rounds: u32,
}

#[derive(Debug, PartialEq)]
enum DialState {
    Waiting {
        until: u64,
    },
    /// Being dialled; these addresses of the round are left.
    Dialing(Vec<RouteUrl>),
    /// A cluster with a gateway.
    Linked(u64),
}

impl OtherCluster {
    fn urls(&self, login: Option<&(String, Secret)>) -> Vec<RouteUrl> {
        let mut urls = self.configured.clone();
        for text in &self.learnt {
            let Ok(url) = RouteUrl::parse(&format!("nats://{text}")) else { continue };
            if !urls.iter().any(|other| (&other.host, other.port) == (&url.host, url.port)) {
                urls.push(url);
            }
        }
        for url in &mut urls {
            url.login = url.login.take().or_else(|| login.cloned());
        }
        urls
    }

    fn learn(&mut self, urls: &[String]) {
        for url in urls {
            let is_fit = url.len() <= TEXT_BYTES_MAX && self.learnt.len() < URLS_MAX;
            if is_fit && RouteUrl::parse(&format!("nats://{url}")).is_ok() {
                self.learnt.insert(url.clone());
            }
        }
    }

    /// Returns the addresses for other servers, without credentials.
    fn told_urls(&self) -> Vec<String> {
        let urls = self.urls(None);
        urls.iter().map(|url| shown(&url.host, url.port)).collect()
    }
}

fn shown(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// A gateway, from the moment its socket is connected.
#[derive(Debug)]
struct GatewayEntry {
    /// Name of the peer's cluster; empty until it is known.
    cluster: String,
    is_dialed: bool,
    is_registered: bool,
}

/// A member of the own cluster.
#[derive(Debug)]
pub struct ClusterMember {
    /// The id of the server.
    pub id: String,
    /// The name of the server.
    pub name: String,
    /// `host:port` where other clusters reach it; empty if they do not.
    pub url: String,
}

/// The other clusters, and the gateways to them.
#[derive(Debug)]
pub struct OtherClusters {
    plan: GatewayPlan,
    clusters: BTreeMap<String, OtherCluster>,
    gateways: BTreeMap<u64, GatewayEntry>,
    /// Members by their routes.
    members: BTreeMap<u64, ClusterMember>,
    hashes: Vec<NameHash>,
    urls: Vec<String>,
    steps: VecDeque<GatewayStep>,
    now: u64,
    rng: fastrand::Rng,
}

impl OtherClusters {
    /// The other clusters before the first connection.
    pub fn new(plan: GatewayPlan, seed: u64) -> Self {
        let mut all = Self {
            clusters: BTreeMap::new(),
            gateways: BTreeMap::new(),
            members: BTreeMap::new(),
            hashes: Vec::new(),
            urls: vec![plan.url.clone()],
            steps: VecDeque::new(),
            now: 0,
            rng: fastrand::Rng::with_seed(seed),
            plan,
        };
        all.configure(FIRST_DIAL_NS);
        all
    }

    /// Enters the configured clusters; new ones are dialled after `wait_ns`.
    fn configure(&mut self, wait_ns: u64) {
        for (name, urls) in self.plan.remotes.clone() {
            let until = self.now + wait_ns;
            let cluster = self.clusters.entry(name).or_insert_with(|| OtherCluster {
                configured: Vec::new(),
                learnt: BTreeSet::new(),
                is_configured: true,
                state: DialState::Waiting { until },
                rounds: 0,
            });
            (cluster.configured, cluster.is_configured) = (urls, true);
        }
    }

    /// Replaces the plan. Gateways to clusters that are not configured any more end.
    pub fn reload(&mut self, plan: GatewayPlan) {
        let is_kept = |name: &String| plan.remotes.iter().any(|(other, _)| other == name);
        let gone = self.clusters.iter().filter(|(name, c)| c.is_configured && !is_kept(name));
        let gone: Vec<String> = gone.map(|(name, _)| name.clone()).collect();
        for name in gone {
            if let Some(cluster) = self.clusters.remove(&name)
                && let DialState::Linked(rid) = cluster.state
            {
                self.steps.push_back(GatewayStep::Close(rid, "Gateway Removed"));
            }
        }
        self.plan = plan;
        self.configure(0);
        self.announce();
    }

    /// Sets the time of all later events. Clusters whose time has come are dialled.
    pub fn set_now(&mut self, now: u64) {
        self.now = self.now.max(now);
        let due = |cluster: &OtherCluster| match cluster.state {
            DialState::Waiting { until } => until <= self.now,
            _ => false,
        };
        let due = self.clusters.iter().filter(|(_, cluster)| due(cluster));
        let due: Vec<String> = due.map(|(name, _)| name.clone()).collect();
        due.into_iter().for_each(|name| self.begin_round(&name));
    }

    /// Returns the time at which [`OtherClusters::set_now`] is needed next.
    pub fn next_deadline(&self) -> Option<u64> {
        let due = |cluster: &OtherCluster| match cluster.state {
            DialState::Waiting { until } => Some(until),
            _ => None,
        };
        self.clusters.values().filter_map(due).min()
    }

    /// Returns the next step to take; `None` when there are no more.
    pub fn next_step(&mut self) -> Option<GatewayStep> {
        self.steps.pop_front()
    }

    /// Returns the number of gateways, registered or not.
    pub fn gateways(&self) -> usize {
        self.gateways.len()
    }

    fn begin_round(&mut self, name: &str) {
        let Some(cluster) = self.clusters.get_mut(name) else { return };
        let mut urls = cluster.urls(self.plan.login.as_ref());
        self.rng.shuffle(&mut urls);
        cluster.state = DialState::Dialing(urls);
        self.dial_next(name);
    }

    /// Dials the next address of a round, or ends the round.
    fn dial_next(&mut self, name: &str) {
        let Some(cluster) = self.clusters.get_mut(name) else { return };
        let DialState::Dialing(urls) = &mut cluster.state else { return };
        let Some(url) = urls.pop() else { return self.end_round(name) };
        let (is_configured, round) = (cluster.is_configured, cluster.rounds);
        let cluster = name.to_owned();
        self.steps.push_back(GatewayStep::Dial { cluster, is_configured, url, round });
    }

    /// Puts off the next round, or gives up the cluster.
    fn end_round(&mut self, name: &str) {
        let has_inbound = self.has_inbound(name);
        let Some(cluster) = self.clusters.get_mut(name) else { return };
        cluster.rounds = cluster.rounds.saturating_add(1);
        if !cluster.is_configured && cluster.rounds > self.plan.connect_retries && !has_inbound {
            self.clusters.remove(name);
            return;
        }
        let doubled = cluster.rounds.saturating_sub(1).min(5);
        let pause = if self.plan.connect_backoff { ROUND_NS << doubled } else { ROUND_NS };
        cluster.state = DialState::Waiting { until: self.now + pause.min(ROUND_NS_MAX) };
    }

    fn has_inbound(&self, name: &str) -> bool {
        let mut all = self.gateways.values();
        all.any(|gateway| !gateway.is_dialed && gateway.cluster == name)
    }

    /// Takes the result of dialling a cluster: a gateway, or `None` for a failure.
    pub fn on_dialed(&mut self, name: &str, rid: Option<u64>) {
        let cluster = self.clusters.get_mut(name);
        let Some(rid) = rid else { return self.dial_next(name) };
        let is_wanted = cluster.is_some_and(|cluster| {
            let is_dialing = matches!(cluster.state, DialState::Dialing(_));
            if is_dialing {
                cluster.state = DialState::Linked(rid);
            }
            is_dialing
        });
        let entry =
            GatewayEntry { cluster: name.to_owned(), is_dialed: true, is_registered: false };
        self.gateways.insert(rid, entry);
        if !is_wanted {
            self.steps.push_back(GatewayStep::Close(rid, "Gateway Removed"));
        }
    }

    /// Takes a gateway that another server has dialled.
    pub fn on_accepted(&mut self, rid: u64) {
        let entry = GatewayEntry { cluster: String::new(), is_dialed: false, is_registered: false };
        self.gateways.insert(rid, entry);
    }

    /// Takes the first INFO of a peer; its gateway is registered or closed.
    pub fn on_greeted(&mut self, rid: u64, info: &GatewayInfo) {
        if self.is_own_name(&info.server_name) {
            return self.steps.push_back(GatewayStep::Close(rid, "Duplicate Server Name"));
        }
        let Some(entry) = self.gateways.get_mut(&rid) else { return };
        entry.is_registered = true;
        if entry.is_dialed {
            let name = entry.cluster.clone();
            self.steps.push_back(GatewayStep::Register(rid, Vec::new()));
            self.update_urls(&name, &info.gateway_urls);
            if let Some(cluster) = self.clusters.get_mut(&name) {
                cluster.rounds = 0;
            }
            return self.announce();
        }
        entry.cluster.clone_from(&info.gateway);
        let known = self.clusters.iter().filter(|(name, _)| **name != info.gateway);
        let known = known.map(|(name, cluster)| self.gossip(name, cluster.told_urls(), ""));
        let known = known.filter(|info| !info.gateway_urls.is_empty()).collect();
        self.steps.push_back(GatewayStep::Register(rid, known));
        self.learn(info);
    }

    /// Whether a server of the own cluster has this name.
    fn is_own_name(&self, name: &str) -> bool {
        name == self.plan.server_name || self.members.values().any(|member| member.name == name)
    }

    /// Takes another INFO of a registered peer: about its cluster, or another one.
    pub fn on_heard(&mut self, rid: u64, info: &GatewayInfo) {
        let name = self.gateways.get(&rid).filter(|entry| entry.is_dialed);
        let name = name.map(|entry| entry.cluster.clone()).unwrap_or_default();
        let is_configured = self.clusters.get(&info.gateway).is_some_and(|c| c.is_configured);
        if name == info.gateway && info.gateway_cmd == 0 {
            self.update_urls(&name, &info.gateway_urls);
            self.announce();
        } else if info.gateway_cmd == GOSSIP && (is_configured || !self.plan.reject_unknown) {
            self.learn(info);
        }
        self.steps.push_back(GatewayStep::HearOn(rid));
    }

    /// Takes the announcement of a cluster by a member of the own one.
    pub fn on_gossip(&mut self, route: u64, info: &GatewayInfo) {
        self.learn(info);
        self.steps.push_back(GatewayStep::HearRoute(route));
    }

    /// Learns of a cluster, which is dialled if it is new.
    fn learn(&mut self, info: &GatewayInfo) {
        let name = &info.gateway;
        if name.is_empty() || *name == self.plan.name || name.len() > TEXT_BYTES_MAX {
            return;
        }
        if let Some(cluster) = self.clusters.get_mut(name) {
            return cluster.learn(&info.gateway_urls);
        }
        let learnt = self.clusters.values().filter(|cluster| !cluster.is_configured);
        if learnt.count() >= LEARNT_MAX {
            return;
        }
        let mut cluster = OtherCluster {
            configured: Vec::new(),
            learnt: BTreeSet::new(),
            is_configured: false,
            state: DialState::Waiting { until: self.now },
            rounds: 0,
        };
        cluster.learn(&info.gateway_urls);
        if !cluster.learnt.is_empty() {
            self.clusters.insert(name.clone(), cluster);
        }
    }

    /// Replaces the addresses that a cluster has told.
    fn update_urls(&mut self, name: &str, urls: &[String]) {
        let Some(cluster) = self.clusters.get_mut(name).filter(|_| !urls.is_empty()) else {
            return;
        };
        let old = std::mem::take(&mut cluster.learnt);
        cluster.learn(urls);
        if cluster.learnt.is_empty() {
            cluster.learnt = old;
        }
    }

    fn gossip(&self, name: &str, urls: Vec<String>, prefix: &str) -> GatewayInfo {
        GatewayInfo {
            server_id: format!("{prefix}{}", self.plan.server_id),
            gateway: name.to_owned(),
            gateway_urls: urls,
            gateway_cmd: GOSSIP,
            ..GatewayInfo::default()
        }
    }

    /// Tells members of the clusters to which there is a gateway.
    fn announce(&mut self) {
        let is_up = |rid: &u64| self.gateways.get(rid).is_some_and(|entry| entry.is_registered);
        let linked = self
            .clusters
            .iter()
            .filter(|(_, cluster)| matches!(&cluster.state, DialState::Linked(rid) if is_up(rid)));
        let infos = linked.map(|(name, cluster)| self.gossip(name, cluster.told_urls(), "GW"));
        let infos = infos.collect();
        self.steps.push_back(GatewayStep::Clusters(infos));
    }

    /// Takes the end of a gateway; a cluster that was dialled is dialled again.
    pub fn on_ended(&mut self, rid: u64) {
        let Some(entry) = self.gateways.remove(&rid) else { return };
        let name = entry.cluster;
        let Some(cluster) = self.clusters.get_mut(&name) else { return };
        if cluster.state != DialState::Linked(rid) {
            return;
        }
        let jitter = self.rng.u64(..=JITTER_NS);
        if !entry.is_registered {
            // The peer does not want this server, or is another one than was expected.
            cluster.state = DialState::Dialing(Vec::new());
            return self.end_round(&name);
        }
        let pause = if cluster.is_configured { ROUND_NS } else { 0 };
        cluster.state = DialState::Waiting { until: self.now + pause + jitter };
        self.announce();
    }

    /// Takes a member of the own cluster, by its route.
    pub fn on_member(&mut self, route: u64, mut member: ClusterMember) {
        if member.url.len() > TEXT_BYTES_MAX {
            member.url.clear();
        }
        self.members.insert(route, member);
        self.review_urls();
    }

    /// Takes the end of a route to a member.
    pub fn on_member_gone(&mut self, route: u64) {
        self.members.remove(&route);
        self.review_urls();
    }

    fn review_urls(&mut self) {
        let ids: BTreeSet<&String> = self.members.values().map(|member| &member.id).collect();
        let hashes: Vec<NameHash> = ids.into_iter().map(|id| NameHash::of(id)).collect();
        if hashes != self.hashes {
            self.hashes.clone_from(&hashes);
            self.steps.push_back(GatewayStep::Members(hashes));
        }
        let urls = self.members.values().map(|member| &member.url);
        let others: BTreeSet<&String> =
            urls.filter(|url| !url.is_empty() && **url != self.plan.url).collect();
        let urls: Vec<String> =
            std::iter::once(&self.plan.url).chain(others).take(URLS_MAX).cloned().collect();
        if urls != self.urls {
            self.urls.clone_from(&urls);
            self.steps.push_back(GatewayStep::Urls(urls));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn plan(remotes: &[(&str, &[&str])]) -> GatewayPlan {
        let url = |text: &&str| RouteUrl::parse(&format!("nats://{text}")).unwrap();
        let remote =
            |(name, urls): &(&str, &[&str])| ((*name).to_owned(), urls.iter().map(url).collect());
        GatewayPlan {
            name: "A".to_owned(),
            server_name: "a1".to_owned(),
            url: "a:1".to_owned(),
            remotes: remotes.iter().map(remote).collect(),
            ..GatewayPlan::default()
        }
    }

    fn about(cluster: &str, urls: &[&str]) -> GatewayInfo {
        GatewayInfo {
            server_name: format!("{cluster}-1"),
            gateway: cluster.to_owned(),
            gateway_urls: urls.iter().map(|url| (*url).to_owned()).collect(),
            ..GatewayInfo::default()
        }
    }

    fn steps(all: &mut OtherClusters) -> Vec<GatewayStep> {
        std::iter::from_fn(|| all.next_step()).collect()
    }

    /// Clusters that are dialled, each with the port.
    fn dials(all: &mut OtherClusters) -> Vec<(String, u16)> {
        let dial = |step| match step {
            GatewayStep::Dial { cluster, url, .. } => Some((cluster, url.port)),
            _ => None,
        };
        steps(all).into_iter().filter_map(dial).collect()
    }

    #[test]
    fn a_configured_cluster_is_tried_at_all_addresses_round_after_round() {
        let mut all = OtherClusters::new(plan(&[("B", &["b:1", "b:2"])]), 1);
        assert_eq!(dials(&mut all), []);
        for round in 1..5 {
            all.set_now(all.next_deadline().expect("it is tried for ever"));
            let mut tried = dials(&mut all);
            all.on_dialed("B", None);
            tried.extend(dials(&mut all));
            all.on_dialed("B", None);
            tried.sort();
            assert_eq!(tried, [("B".to_owned(), 1), ("B".to_owned(), 2)]);
            assert_eq!(all.next_deadline(), Some((round + 1) * SECOND));
        }
    }

    #[test]
    fn the_pause_grows_to_half_a_minute_with_back_off() {
        let plan = GatewayPlan { connect_backoff: true, ..plan(&[("B", &["b:1"])]) };
        let mut all = OtherClusters::new(plan, 1);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            let now = all.next_deadline().unwrap();
            all.set_now(now);
            all.on_dialed("B", None);
            pauses.push((all.next_deadline().unwrap() - now) / SECOND);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn who_dials_is_dialled_back_and_told_of_the_others() {
        let mut all = OtherClusters::new(plan(&[("B", &["b:1"])]), 1);
        all.on_accepted(7);
        all.on_greeted(7, &about("C", &["c:1"]));
        let told = steps(&mut all);
        let [GatewayStep::Register(7, known)] = &told[..] else { panic!("{told:?}") };
        assert_eq!((known.len(), &*known[0].gateway), (1, "B"));
        assert_eq!(known[0].gateway_urls, ["b:1"]);
        all.set_now(0);
        assert_eq!(dials(&mut all), [("C".to_owned(), 1)]);
        // While it stays connected it is tried for ever, and otherwise not again.
        all.on_dialed("C", None);
        assert!(all.clusters.contains_key("C"));
        all.on_ended(7);
        all.set_now(SECOND);
        all.on_dialed("C", None);
        assert!(!all.clusters.contains_key("C"));
    }

    #[test]
    fn members_are_told_of_a_cluster_when_there_is_a_gateway_to_it() {
        let mut all = OtherClusters::new(plan(&[("B", &["b:1"])]), 1);
        all.set_now(SECOND);
        steps(&mut all);
        all.on_dialed("B", Some(1));
        assert_eq!(steps(&mut all), []);
        all.on_greeted(1, &about("B", &["b:1", "b:2"]));
        let told = steps(&mut all);
        let [GatewayStep::Register(1, _), GatewayStep::Clusters(clusters)] = &told[..] else {
            panic!("{told:?}")
        };
        assert_eq!(clusters[0].gateway_urls, ["b:1", "b:2"]);
        assert!(clusters[0].server_id.starts_with("GW"));
        all.on_ended(1);
        assert_eq!(steps(&mut all), [GatewayStep::Clusters(Vec::new())]);
        let due = all.next_deadline().unwrap();
        assert!((2 * SECOND..=2 * SECOND + JITTER_NS).contains(&due), "{due}");
    }

    #[test]
    fn gossip_about_unknown_clusters_is_ignored_where_they_are_refused() {
        for (reject_unknown, dialled) in [(false, 1), (true, 0)] {
            let plan = GatewayPlan { reject_unknown, ..plan(&[("B", &["b:1"])]) };
            let mut all = OtherClusters::new(plan, 1);
            all.set_now(SECOND);
            all.on_dialed("B", Some(1));
            all.on_greeted(1, &about("B", &[]));
            steps(&mut all);
            let gossip = GatewayInfo { gateway_cmd: GOSSIP, ..about("C", &["c:1"]) };
            all.on_heard(1, &gossip);
            all.on_heard(1, &GatewayInfo { gateway_cmd: GOSSIP, ..about("A", &["a:9"]) });
            all.set_now(SECOND);
            assert_eq!(dials(&mut all).len(), dialled);
        }
    }

    #[test]
    fn a_server_with_the_name_of_a_member_is_turned_away() {
        let mut all = OtherClusters::new(plan(&[]), 1);
        let (id, name, url) = ("N2".to_owned(), "a2".to_owned(), "a:2".to_owned());
        all.on_member(5, ClusterMember { id, name, url });
        let urls = GatewayStep::Urls(vec!["a:1".to_owned(), "a:2".to_owned()]);
        assert_eq!(steps(&mut all), [GatewayStep::Members(vec![NameHash::of("N2")]), urls]);
        for (rid, name) in [(1, "a1"), (2, "a2")] {
            all.on_accepted(rid);
            let server_name = name.to_owned();
            all.on_greeted(rid, &GatewayInfo { server_name, ..about("B", &["b:1"]) });
            assert!(matches!(steps(&mut all)[..], [GatewayStep::Close(_, _)]));
        }
        all.on_member_gone(5);
        let urls = GatewayStep::Urls(vec!["a:1".to_owned()]);
        assert_eq!(steps(&mut all), [GatewayStep::Members(Vec::new()), urls]);
    }

    #[test]
    fn no_peer_can_have_more_remembered_than_there_is_room_for() {
        let mut all = OtherClusters::new(plan(&[]), 1);
        let many: Vec<String> = (0..2 * URLS_MAX).map(|port| format!("h:{port}")).collect();
        for at in 0..2 * LEARNT_MAX {
            let info = GatewayInfo { gateway_urls: many.clone(), ..about(&at.to_string(), &[]) };
            all.on_gossip(1, &info);
        }
        assert_eq!(all.clusters.len(), LEARNT_MAX);
        assert!(all.clusters.values().all(|cluster| cluster.learnt.len() == URLS_MAX));
    }

    #[test]
    fn a_peer_that_is_not_the_expected_one_is_tried_again_with_the_next_round() {
        let mut all = OtherClusters::new(plan(&[("B", &["b:1"])]), 1);
        all.set_now(SECOND);
        all.on_dialed("B", Some(1));
        all.on_ended(1);
        assert_eq!(all.next_deadline(), Some(2 * SECOND));
    }

    #[test]
    fn a_reload_drops_clusters_and_dials_new_ones() {
        let mut all = OtherClusters::new(plan(&[("B", &["b:1"])]), 1);
        all.set_now(SECOND);
        all.on_dialed("B", Some(1));
        all.on_greeted(1, &about("B", &[]));
        steps(&mut all);
        all.reload(plan(&[("C", &["c:1"])]));
        assert!(steps(&mut all).contains(&GatewayStep::Close(1, "Gateway Removed")));
        all.on_ended(1);
        all.set_now(SECOND);
        assert_eq!(dials(&mut all), [("C".to_owned(), 1)]);
    }
}
