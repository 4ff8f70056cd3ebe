//! Several servers' members in one thread: the news of one arrive at the other later, in an order
//! that a seed decides.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;

/// A connection: both ends as (server, rid), the dialling one first.
struct Conn {
    ends: [(usize, u64); 2],
    /// Parts for which the two ends have registered it.
    registered: [Option<PoolPart>; 2],
    is_open: bool,
    /// News on their way to each end, in order.
    news: [VecDeque<News>; 2],
}

#[derive(Clone)]
enum News {
    Greeting(RouteInfo),
    Confirmed,
    Heard(RouteInfo),
    End { is_self: bool },
}

struct World {
    servers: Vec<Members>,
    pooling: Pooling,
    urls: Vec<Vec<String>>,
    /// Pairs of servers of which the first no longer has the second in its configuration.
    removed: BTreeSet<(usize, usize)>,
    conns: Vec<Conn>,
    by_end: BTreeMap<(usize, u64), usize>,
    next_rid: u64,
    now: u64,
    rng: fastrand::Rng,
}

fn id(server: usize) -> String {
    format!("ID{server}")
}

fn info(server: usize) -> RouteInfo {
    RouteInfo {
        server_id: id(server),
        host: format!("host{server}"),
        port: 1,
        ip: format!("nats-route://host{server}:1/"),
        connect_urls: vec![format!("client{server}")],
        shardcast: true,
        ..RouteInfo::default()
    }
}

fn plan(server: usize, to: &[usize], pooling: &Pooling) -> Plan {
    let url = |to: &usize| RouteUrl { host: format!("host{to}"), port: 1, login: None };
    let (id, routes) = (id(server), to.iter().map(url).collect());
    Plan { id, routes, pooling: pooling.clone(), ..Plan::default() }
}

impl World {
    /// Replaces the configured routes of a server.
    fn reload(&mut self, server: usize, to: &[usize]) {
        let plan = plan(server, to, &self.pooling);
        for other in 0..self.servers.len() {
            let url = format!("host{other}");
            let knew = self.servers[server].plan.routes.iter().any(|route| route.host == url);
            if knew && !to.contains(&other) {
                self.removed.insert((server, other));
            }
        }
        self.servers[server].reload(plan);
        self.steps(server);
    }

    fn new(routes: &[Vec<usize>], pooling: &Pooling, seed: u64) -> Self {
        let servers = routes.iter().enumerate().map(|(server, to)| plan(server, to, pooling));
        let servers: Vec<Members> =
            servers.zip(seed..).map(|(plan, seed)| Members::new(plan, seed)).collect();
        Self {
            pooling: pooling.clone(),
            urls: vec![Vec::new(); servers.len()],
            removed: BTreeSet::new(),
            servers,
            conns: Vec::new(),
            by_end: BTreeMap::new(),
            next_rid: 1,
            now: 0,
            rng: fastrand::Rng::with_seed(seed),
        }
    }

    fn rid(&mut self) -> u64 {
        self.next_rid += 1;
        self.next_rid
    }

    /// Returns a server's INFO on a connection for `part`.
    fn info(&self, server: usize, part: Option<&PoolPart>) -> RouteInfo {
        let mut info = info(server);
        info.route_pool_size = self.pooling.size().into();
        match part {
            Some(PoolPart::Pool(index)) => info.route_pool_idx = (*index).into(),
            Some(PoolPart::Account(name)) => info.route_account = (**name).into(),
            Some(PoolPart::All) | None => {}
        }
        info
    }

    /// Carries out all steps of a server.
    fn steps(&mut self, server: usize) {
        self.servers[server].set_now(self.now);
        while let Some(step) = self.servers[server].next_step() {
            match step {
                RouteStep::Dial { target, url, .. } => {
                    let to = url.host["host".len()..].parse().expect("a number");
                    let (own, other) = (self.rid(), self.rid());
                    let mut news = [VecDeque::new(), VecDeque::new()];
                    let is_self = to == server;
                    news[0].push_back(match is_self {
                        true => News::End { is_self },
                        false => News::Greeting(self.info(to, None)),
                    });
                    if is_self {
                        news[1].push_back(News::End { is_self: false });
                    }
                    self.by_end.insert((server, own), self.conns.len());
                    self.by_end.insert((to, other), self.conns.len());
                    let ends = [(server, own), (to, other)];
                    let registered = [None, None];
                    self.conns.push(Conn { ends, registered, is_open: !is_self, news });
                    self.servers[server].on_dialed(target, Some(own));
                    self.servers[to].on_accepted(other);
                }
                RouteStep::Register(rid, part) => {
                    let greeting = self.info(server, Some(&part));
                    let (conn, side) = self.conn(server, rid);
                    if conn.is_open {
                        conn.registered[side] = Some(part);
                        // The dialling end greets with the part, and the accepting end confirms the
                        // route.
                        conn.news[1 - side].push_back(match side {
                            0 => News::Greeting(greeting),
                            _ => News::Confirmed,
                        });
                    }
                }
                RouteStep::Close(rid) | RouteStep::Remove(rid) => {
                    let at = self.by_end[&(server, rid)];
                    let (conn, side) = self.conn(server, rid);
                    let other = conn.ends[1 - side].0;
                    if matches!(step, RouteStep::Remove(_)) && conn.registered[1 - side].is_none() {
                        // A server that has never heard of this one cannot dial it again.
                        self.removed.extend([(server, other), (other, server)]);
                    }
                    self.close(at);
                }
                RouteStep::Gossip(rid, info) => {
                    let (conn, side) = self.conn(server, rid);
                    conn.news[1 - side].push_back(News::Heard(*info));
                }
                RouteStep::Urls(urls) => self.urls[server] = urls.tcp.unwrap_or_default(),
                RouteStep::HearOn(_) => {}
                RouteStep::Ask(_) => unreachable!("two of ours agree at once"),
            }
        }
    }

    fn conn(&mut self, server: usize, rid: u64) -> (&mut Conn, usize) {
        let conn = &mut self.conns[self.by_end[&(server, rid)]];
        let side = usize::from(conn.ends[0] != (server, rid));
        (conn, side)
    }

    fn close(&mut self, at: usize) {
        let conn = &mut self.conns[at];
        if std::mem::replace(&mut conn.is_open, false) {
            conn.news.iter_mut().for_each(|news| news.push_back(News::End { is_self: false }));
        }
    }

    /// Delivers one piece of news, or lets time pass.
    fn go_on(&mut self) {
        let open: Vec<(usize, usize)> = (0..self.conns.len())
            .flat_map(|at| [(at, 0), (at, 1)])
            .filter(|(at, side)| !self.conns[*at].news[*side].is_empty())
            .collect();
        let Some(&(at, side)) = self.rng.choice(&open) else {
            let due = self.servers.iter().filter_map(Members::next_deadline).min();
            self.now = due.unwrap_or(self.now + SECOND).max(self.now);
            return (0..self.servers.len()).for_each(|server| self.steps(server));
        };
        let conn = &mut self.conns[at];
        let (server, rid) = conn.ends[side];
        let is_open = conn.is_open;
        let members = &mut self.servers[server];
        members.set_now(self.now);
        match conn.news[side].pop_front().expect("it is not empty") {
            News::Greeting(info) if is_open => members.on_greeted(rid, info, "host"),
            News::Heard(info) if is_open => members.on_heard(rid, info),
            News::Confirmed if is_open => members.on_confirmed(rid),
            News::End { is_self } => members.on_ended(rid, is_self),
            News::Greeting(_) | News::Heard(_) | News::Confirmed => {}
        }
        self.steps(server);
    }

    /// Whether two servers took each other out of their configurations: they may stay apart.
    fn may_be_apart(&self, a: usize, b: usize) -> bool {
        self.removed.contains(&(a, b)) && self.removed.contains(&(b, a))
    }

    /// Whether any two servers have exactly one connection for each part of the accounts, for the
    /// same part at both ends.
    fn is_mesh(&self) -> bool {
        let count = self.servers.len();
        let wanted = self.pooling.parts_with(self.pooling.size().into());
        let pairs = (0..count).flat_map(|a| (a + 1..count).map(move |b| (a, b)));
        let mut pairs = pairs.collect::<Vec<_>>().into_iter();
        pairs.all(|(a, b)| {
            let between = self.conns.iter().filter(|conn| {
                let ends = [conn.ends[0].0, conn.ends[1].0];
                conn.is_open && (ends == [a, b] || ends == [b, a])
            });
            let mut found: Vec<_> = between.map(|conn| conn.registered.clone()).collect();
            found.sort();
            let both = |part: &PoolPart| [Some(part.clone()), Some(part.clone())];
            found == wanted.iter().map(both).collect::<Vec<_>>()
                || (found.is_empty() && self.may_be_apart(a, b))
        })
    }
}

proptest! {
    #[test]
    fn whatever_is_configured_connected_servers_become_a_mesh(
        seed in any::<u64>(),
        more in prop::collection::vec((0..5usize, 0..5usize), 0..8),
        losses in 0..6u32,
        reloads in 0..4u32,
        count in 2..6usize,
        pool_size in 0..4u16,
        account in any::<bool>(),
    ) {
        let pooling = Pooling::new(pool_size, account.then_some("$SYS"));
        // Each server but the first knows an earlier one; some know others, or themselves.
        let mut routes: Vec<Vec<usize>> = vec![Vec::new(); count];
        let mut rng = fastrand::Rng::with_seed(seed);
        for (server, known) in routes.iter_mut().enumerate().skip(1) {
            known.push(rng.usize(..server));
        }
        for (from, to) in more {
            routes[from % count].push(to % count);
        }
        let mut world = World::new(&routes, &pooling, seed);
        (0..count).for_each(|server| world.steps(server));
        for _ in 0..losses {
            (0..rng.usize(..60)).for_each(|_| world.go_on());
            if !world.conns.is_empty() {
                let lost = rng.usize(..world.conns.len());
                world.close(lost);
            }
        }
        for _ in 0..reloads {
            (0..rng.usize(..60)).for_each(|_| world.go_on());
            // The first of the server's earlier routes stays configured, whatever the others are.
            let server = rng.usize(..count);
            let mut to: Vec<usize> = routes[server].iter().copied().take(1).collect();
            to.extend((0..rng.usize(..3)).map(|_| rng.usize(..count)));
            world.reload(server, &to);
        }
        let end = world.now + 60 * SECOND;
        let mut turns = 0;
        while world.now < end && turns < 20_000 {
            world.go_on();
            turns += 1;
        }
        prop_assert!(world.is_mesh(), "{:?}", routes);
        for (server, urls) in world.urls.iter().enumerate() {
            let others = (0..count).filter(|other| *other != server);
            for other in others.filter(|other| !world.may_be_apart(server, *other)) {
                let url = format!("client{other}");
                prop_assert!(urls.contains(&url), "{} is not told of {}", server, url);
            }
            let own = format!("client{server}");
            prop_assert!(!urls.contains(&own));
        }
    }
}

/// Times at which an unreachable server is dialled, in milliseconds, up to `max`.
fn attempts(plan: Plan, gossip: Option<RouteInfo>, max: usize) -> Vec<u64> {
    let mut members = Members::new(plan, 1);
    members.on_accepted(1);
    members.on_greeted(1, info(7), "host");
    if let Some(gossip) = gossip {
        members.on_heard(1, gossip);
    }
    let (mut now, mut times) = (0, Vec::new());
    loop {
        members.set_now(now);
        while let Some(step) = members.next_step() {
            if let RouteStep::Dial { target, .. } = step {
                times.push(now / 1_000_000);
                members.on_dialed(target, None);
            }
        }
        match members.next_deadline().filter(|_| times.len() < max) {
            Some(due) => now = now.max(due),
            None => return times,
        }
    }
}

#[test]
fn a_server_that_others_spoke_of_is_dialled_as_often_as_is_configured() {
    for retries in [0, 1, 5] {
        let plan = Plan { connect_retries: retries, ..plan(0, &[], &Pooling::default()) };
        assert_eq!(attempts(plan, Some(info(1)), 20).len(), retries as usize + 1);
    }
}

#[test]
fn a_configured_server_is_dialled_for_ever_and_with_back_off_more_and_more_seldom() {
    let gaps = |connect_backoff| {
        let times =
            attempts(Plan { connect_backoff, ..plan(0, &[1], &Pooling::default()) }, None, 9);
        // Up to a tenth of a second comes by chance.
        times.windows(2).map(|pair| (pair[1] - pair[0]) / 1000).collect::<Vec<_>>()
    };
    assert_eq!(gaps(false), [1; 8]);
    assert_eq!(gaps(true), [1, 2, 4, 8, 16, 30, 30, 30]);
}

#[test]
fn who_is_to_tell_clients_of_no_other_server_takes_back_what_it_has_told() {
    let mut members = Members::new(plan(0, &[], &Pooling::default()), 1);
    members.on_accepted(1);
    members.on_greeted(1, info(7), "host");
    let urls = |members: &mut Members| {
        let steps = std::iter::from_fn(|| members.next_step());
        steps
            .filter_map(|step| if let RouteStep::Urls(urls) = step { urls.tcp } else { None })
            .last()
    };
    assert_eq!(urls(&mut members), Some(vec!["client7".to_owned()]));
    members.reload(Plan { no_advertise: true, ..plan(0, &[], &Pooling::default()) });
    assert_eq!(urls(&mut members), Some(Vec::new()));
    members.reload(plan(0, &[], &Pooling::default()));
    assert_eq!(urls(&mut members), Some(vec!["client7".to_owned()]));
}

/// Steps and registered routes of a server after both have dialled, and the peer, which decides by
/// itself, has taken `taken` of the two routes.
fn of_two_routes(taken: u64) -> (Vec<RouteStep>, Vec<u64>) {
    const DIALED: u64 = 1;
    const ACCEPTED: u64 = 2;
    let peer = RouteInfo { shardcast: false, ..info(7) };
    let mut members = Members::new(plan(0, &[7], &Pooling::default()), 1);
    let mut steps = Vec::new();
    let mut go_on = |members: &mut Members| {
        members.set_now(0);
        steps.extend(std::iter::from_fn(|| members.next_step()));
    };
    go_on(&mut members);
    members.on_dialed(0, Some(DIALED));
    members.on_accepted(ACCEPTED);
    members.on_greeted(DIALED, peer.clone(), "host");
    members.on_greeted(ACCEPTED, peer, "host");
    go_on(&mut members);
    match taken {
        DIALED => members.on_confirmed(DIALED),
        _ => members.on_ended(DIALED, false),
    }
    go_on(&mut members);
    let registered = members.registered().map(|(rid, _)| rid).collect();
    let concerned = |step: &RouteStep| {
        matches!(step, RouteStep::Register(..) | RouteStep::Close(_) | RouteStep::Ask(_))
    };
    (steps.into_iter().filter(concerned).collect(), registered)
}

#[test]
fn of_two_routes_to_a_server_that_decides_by_itself_the_one_stays_that_it_has_taken() {
    let (steps, registered) = of_two_routes(1);
    assert_eq!(
        steps,
        [RouteStep::Register(1, PoolPart::All), RouteStep::Ask(1), RouteStep::Close(2)]
    );
    assert_eq!(registered, [1]);
    let (steps, registered) = of_two_routes(2);
    assert_eq!(
        steps,
        [
            RouteStep::Register(1, PoolPart::All),
            RouteStep::Ask(1),
            RouteStep::Register(2, PoolPart::All)
        ]
    );
    assert_eq!(registered, [2]);
}

#[test]
fn a_second_route_waits_no_longer_than_the_first_may_take_to_answer() {
    let peer = RouteInfo { shardcast: false, ..info(7) };
    let mut members = Members::new(plan(0, &[], &Pooling::default()), 1);
    for rid in [1, 2] {
        members.on_accepted(rid);
        members.on_greeted(rid, peer.clone(), "host");
    }
    let mut closed = |now| {
        members.set_now(now);
        std::iter::from_fn(|| members.next_step()).any(|step| step == RouteStep::Close(2))
    };
    assert_eq!(
        [closed(DOUBT_NS - 1), closed(DOUBT_NS), closed(2 * DOUBT_NS)],
        [false, true, false]
    );
}
