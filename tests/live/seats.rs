//! Limits of an account's connections, which count all servers of the system, ours and
//! nats-server's beside each other.

#![expect(clippy::disallowed_methods, reason = "tests bound how long they wait for servers")]

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::broker::members::{Kind, Original, Ours, has_original, member, start};
use crate::broker::wire::Wire;
use crate::broker::{Broker, PATIENCE};

const REFUSAL: &str = "maximum account active connections exceeded";

/// An account with these limits, and a system account.
fn accounts(limits: &str) -> String {
    format!(
        "accounts {{\nA {{ users [{{user: a, password: p}}]\nlimits {{ {limits} }} }}\n\
         SYS {{ users [{{user: sys, password: p}}] }}\n}}\nsystem_account: SYS\n"
    )
}

/// The pairs of which one at least is ours.
fn pairs() -> Vec<[Kind; 2]> {
    let mut pairs = vec![[Ours(1), Ours(1)], [Ours(3), Ours(2)]];
    if has_original() {
        pairs.extend([[Ours(3), Original], [Original, Ours(3)]]);
    }
    pairs
}

/// Logs in, and returns the connection with what it was told.
fn login(broker: &Broker) -> (Wire, String) {
    let mut wire = Wire::open(broker);
    wire.try_send(b"CONNECT {\"user\":\"a\",\"pass\":\"p\",\"verbose\":false}\r\nPING\r\n");
    let told = wire.until_pong_or_end();
    (wire, String::from_utf8_lossy(&told).into_owned())
}

/// Logs in once there is room.
fn seated(broker: &Broker) -> Wire {
    let end = Instant::now() + PATIENCE;
    loop {
        let (wire, told) = login(broker);
        if told.ends_with("PONG\r\n") {
            return wire;
        }
        assert!(told.contains(REFUSAL) && Instant::now() < end, "{told}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Tries until one more is refused.
fn until_refused(broker: &Broker) {
    let end = Instant::now() + PATIENCE;
    while !login(broker).1.contains(REFUSAL) {
        assert!(Instant::now() < end, "all come in");
        // The server has to see that the last one has gone.
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Whether the connection is still there.
fn is_there(wire: &mut Wire) -> bool {
    wire.try_send(b"PING\r\n");
    wire.until_pong_or_end().ends_with(b"PONG\r\n")
}

/// A limit that is never reached: a server with one counts, and takes part in the counting.
const ROOMY: &str = "max_connections: 1000, max_leafnodes: 1000";

#[test]
fn an_account_has_no_more_connections_than_it_may_have_on_all_servers() {
    for kinds in pairs() {
        println!("{kinds:?}");
        let (near, far) = (kinds[0], kinds[1]);
        let mut far = member(far, "far", &mut [], &accounts(ROOMY));
        // Before the servers know each other.
        let early = [seated(&far), seated(&far)];
        let near = member(near, "near", &mut [&mut far], &accounts("max_connections: 4"));
        let mut first = seated(&near);
        let late = seated(&far);
        until_refused(&near);
        assert!(is_there(&mut first), "it came in time");
        // Whoever goes leaves a seat on all servers.
        drop(late);
        let mut instead = seated(&near);
        until_refused(&near);
        assert!(is_there(&mut first) && is_there(&mut instead), "they came in time");
        drop(early);
    }
}

#[test]
fn what_was_there_before_two_servers_met_counts_too() {
    for kinds in pairs() {
        println!("{kinds:?}");
        let (near, far) = (kinds[0], kinds[1]);
        let mut far = member(far, "far", &mut [], &accounts(ROOMY));
        let _early = [seated(&far), seated(&far)];
        let near = member(near, "near", &mut [&mut far], &accounts("max_connections: 3"));
        let _first = seated(&near);
        until_refused(&near);
    }
}

#[test]
fn the_connections_of_a_server_that_ends_count_no_more() {
    for kinds in pairs() {
        println!("{kinds:?}");
        let (near, far) = (kinds[0], kinds[1]);
        let mut far = member(far, "far", &mut [], &accounts(ROOMY));
        let near = member(near, "near", &mut [&mut far], &accounts("max_connections: 3"));
        let _here = seated(&near);
        let _there = [seated(&far), seated(&far)];
        until_refused(&near);
        far.signal(Signal::TERM);
        far.wait_for_exit();
        let _instead = [seated(&near), seated(&near)];
        until_refused(&near);
    }
}

#[test]
fn where_another_server_lets_in_too_many_the_newest_go() {
    for kinds in pairs() {
        println!("{kinds:?}");
        let (near, far) = (kinds[0], kinds[1]);
        let mut far = member(far, "far", &mut [], &accounts(ROOMY));
        let near = member(near, "near", &mut [&mut far], &accounts("max_connections: 3"));
        let mut here = [seated(&near), seated(&near), seated(&near)];
        let _there = seated(&far);
        let end = Instant::now() + PATIENCE;
        while is_there(&mut here[2]) {
            assert!(Instant::now() < end, "the newest stays");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(is_there(&mut here[0]) && is_there(&mut here[1]), "the older ones stay");
    }
}

#[test]
fn an_account_has_no_more_leaf_nodes_than_it_may_have_on_all_servers() {
    for kinds in pairs() {
        println!("{kinds:?}");
        let (near, far) = (kinds[0], kinds[1]);
        let listens = "leafnodes { listen: \"127.0.0.1:-1\" }\n";
        let config = |limits: &str| format!("{listens}{}", accounts(limits));
        let mut far = member(far, "far", &mut [], &config(ROOMY));
        let mut near = member(near, "near", &mut [&mut far], &config("max_leafnodes: 1"));
        let leaf = |hub: &mut Broker, name: &str| {
            let port = hub.logged_port("Listening for leafnode connections on ");
            let remote = format!("{{ url: \"nats-leaf://a:p@127.0.0.1:{port}\" }}");
            let remotes = format!("leafnodes {{ reconnect: \"1s\", remotes: [{remote}] }}");
            start(Ours(1), &format!("server_name: {name}\n{remotes}\n"))
        };
        let _first = leaf(&mut near, "first");
        near.wait_for_line("eafnode connection");
        let _second = leaf(&mut far, "second");
        near.wait_for_line(REFUSAL);
    }
}
