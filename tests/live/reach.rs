//! What reaches what between kinds of connections: our table is what a nats-server does.
//!
//! One nats-server has all kinds of connections at once, two of each, and every server has a
//! client. Without nats-server this says so and passes, except under `CI`.

#![expect(clippy::disallowed_methods, reason = "tests bound how long they wait for servers")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use shardcast::engine::{Kind, Reach, may_reach};

use crate::broker::members::has_original;
use crate::broker::wire::Wire;
use crate::broker::{Broker, PATIENCE};

/// The servers: the one in the middle, and what each of the others is to it.
const SERVERS: [(&str, Kind); 9] = [
    ("middle", Kind::Client),
    ("route-1", Kind::Route),
    ("route-2", Kind::Route),
    ("leaf-1", Kind::Leaf),
    ("leaf-2", Kind::Leaf),
    ("hub-1", Kind::Hub),
    ("hub-2", Kind::Hub),
    ("gateway-1", Kind::Gateway),
    ("gateway-2", Kind::Gateway),
];

/// The subjects of plain messages and of answers of services.
const SUBJECTS: [&str; 2] = ["all", "_R_"];

/// All servers in the order of [`SERVERS`]. Those of one cluster, and those of different clusters,
/// are connected to each other, too; the others only to the one in the middle.
fn servers() -> Vec<Broker> {
    let hub = |name| {
        let leafnodes = "leafnodes { listen: \"127.0.0.1:-1\" }";
        let mut hub = Broker::original(&format!("server_name: {name}\n{leafnodes}\n"));
        let port = hub.logged_port("Listening for leafnode connections on ");
        (hub, format!("{{ url: \"nats-leaf://127.0.0.1:{port}\" }}"))
    };
    let [(hub_1, to_hub_1), (hub_2, to_hub_2)] = ["hub-1", "hub-2"].map(hub);
    let mut middle = Broker::original(&format!(
        "server_name: middle\n\
         system_account: SYS\naccounts {{ SYS {{ users: [{{ user: sys, password: sys }}] }} }}\n\
         cluster {{ name: C, listen: \"127.0.0.1:-1\" }}\n\
         gateway {{ name: C, listen: \"127.0.0.1:-1\" }}\n\
         leafnodes {{ listen: \"127.0.0.1:-1\", remotes: [{to_hub_1}, {to_hub_2}] }}\n"
    ));
    let routes = middle.route_port();
    let leaves = middle.logged_port("Listening for leafnode connections on ");
    let gateways = middle.logged_port("Address for gateway ");
    let mut servers = vec![middle];
    for (name, kind) in &SERVERS[1..5] {
        let block = match kind {
            // Without gateways of their own: those are for the one in the middle.
            Kind::Route => format!(
                "cluster {{ name: C, listen: \"127.0.0.1:-1\", \
                 routes: [\"nats-route://127.0.0.1:{routes}\"] }}"
            ),
            _ => {
                format!("leafnodes {{ remotes: [{{ url: \"nats-leaf://127.0.0.1:{leaves}\" }}] }}")
            }
        };
        servers.push(Broker::original(&format!("server_name: {name}\n{block}\n")));
    }
    servers.extend([hub_1, hub_2]);
    for (name, _) in &SERVERS[7..] {
        servers.push(Broker::original(&format!(
            "server_name: {name}\ngateway {{ name: {name}, listen: \"127.0.0.1:-1\", gateways: \
             [{{ name: C, urls: [\"nats://127.0.0.1:{gateways}\"] }}] }}\n"
        )));
    }
    servers
}

/// How many copies of a message reach one server from another.
fn copies(subject: &str, from: usize, to: usize) -> usize {
    let (_, from_kind) = SERVERS[from];
    let (_, to_kind) = SERVERS[to];
    let is_direct = from_kind == to_kind && matches!(from_kind, Kind::Route | Kind::Gateway);
    let by_the_middle = match may_reach(from_kind, to_kind) {
        _ if from == to => false,
        Reach::Yes | Reach::Others => true,
        Reach::ServiceReplies => subject == "_R_",
        Reach::No => false,
    };
    usize::from(is_direct || from == to) + usize::from(by_the_middle)
}

/// The clients, and how many copies of what each has got.
struct World {
    wires: Vec<Wire>,
    got: Vec<BTreeMap<String, usize>>,
}

impl World {
    fn new(servers: &[Broker]) -> Self {
        let mut wires: Vec<Wire> = servers.iter().map(Wire::connect).collect();
        for wire in &mut wires {
            wire.send(b"SUB all.> 1\r\nSUB _R_.> 2\r\n");
        }
        let got = wires.iter().map(|_| BTreeMap::new()).collect();
        Self { wires, got }
    }

    fn publish(&mut self, from: usize, subject: &str) {
        self.wires[from].send(format!("PUB {subject} 0\r\n\r\n").as_bytes());
    }

    /// How many copies one client has got so far.
    fn got(&mut self, to: usize, subject: &str) -> usize {
        self.wires[to].send(b"PING\r\n");
        let text = self.wires[to].until_pong_or_end();
        let text = String::from_utf8(text).expect("the protocol is text");
        let subjects = text.lines().filter_map(|line| line.strip_prefix("MSG ")?.split(' ').next());
        subjects.for_each(|subject| *self.got[to].entry(subject.to_owned()).or_default() += 1);
        self.got[to].get(subject).copied().unwrap_or_default()
    }

    fn wait(&mut self, to: usize, subject: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.got(to, subject) == 0 {
            let name = SERVERS[to].0;
            assert!(Instant::now() < deadline, "{subject} does not come to {name}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until what goes from one server to another does.
    fn wait_for_way(&mut self, subject: &str, from: usize, to: usize) {
        let probe = format!("{subject}.probe.{from}");
        let deadline = Instant::now() + PATIENCE;
        while self.got(to, &probe) == 0 {
            let names = (SERVERS[from].0, SERVERS[to].0);
            assert!(Instant::now() < deadline, "{subject} does not go along {names:?}");
            self.publish(from, &probe);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn a_message_goes_as_far_as_the_table_says() {
    if !has_original() {
        return;
    }
    let servers = servers();
    let (mut world, all) = (World::new(&servers), 0..SERVERS.len());
    let pairs: Vec<(usize, usize)> =
        all.clone().flat_map(|from| all.clone().map(move |to| (from, to))).collect();
    for subject in SUBJECTS {
        for &(from, to) in pairs.iter().filter(|(from, to)| copies(subject, *from, *to) > 0) {
            world.wait_for_way(subject, from, to);
        }
    }
    for from in all.clone() {
        for subject in SUBJECTS {
            world.publish(from, &format!("{subject}.counted.{from}"));
        }
        world.publish(from, &format!("all.behind.{from}"));
    }
    // What came before on the same connection has gone on by then, …
    all.clone().for_each(|from| world.wait(0, &format!("all.behind.{from}")));
    world.publish(0, "all.last");
    // … and has arrived where this arrives.
    all.clone().for_each(|to| world.wait(to, "all.last"));
    for subject in SUBJECTS {
        for &(from, to) in &pairs {
            let counted = format!("{subject}.counted.{from}");
            let wanted = copies(subject, from, to);
            if wanted > 0 {
                world.wait(to, &counted);
            }
            let pair = (SERVERS[from], SERVERS[to]);
            assert_eq!(world.got(to, &counted), wanted, "{subject} along {pair:?}");
        }
    }
}
