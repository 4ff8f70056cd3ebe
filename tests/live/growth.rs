//! What a server is asked to do over and over again leaves nothing behind.

use std::fmt::Write;

use crate::broker::wire::Wire;
use crate::broker::{Broker, is_nats_server, shard_counts};

/// A file with so many accounts of a user each.
fn accounts(count: usize, more: &str) -> String {
    let mut config = String::from("accounts {\n");
    for at in 0..count {
        let user = format!("users: [ {{ user: u{at}, password: p }} ]");
        let exports = format!("exports: [ {{ stream: \"out.{at}.>\" }} ]");
        writeln!(config, "  A{at} {{ {user}, {exports} }}").expect("it is text");
    }
    config + "}\n" + more + "\n"
}

fn log_in(broker: &Broker, user: usize) -> Wire {
    let mut wire = Wire::open(broker);
    let login = format!("CONNECT {{\"verbose\":false,\"user\":\"u{user}\",\"pass\":\"p\"}}\r\n");
    wire.send(login.as_bytes());
    wire.sync();
    wire
}

#[test]
fn subjects_that_nobody_wants_cost_next_to_nothing_in_however_many_accounts() {
    for &shards in shard_counts() {
        let broker = Broker::with_config(shards, &accounts(12, ""));
        let mut wires: Vec<Wire> = (0..12).map(|user| log_in(&broker, user)).collect();
        let before = broker.resident_kib();
        for from in (0..30_000).step_by(1000) {
            let publish = |at| format!("PUB nobody.wants.this.subject.{at} 0\r\n\r\n");
            let publishes: String = (from..from + 1000).map(publish).collect();
            wires.iter_mut().for_each(|wire| wire.send(publishes.as_bytes()));
        }
        wires.iter_mut().for_each(Wire::sync);
        let grown = broker.resident_kib().saturating_sub(before);
        // Of 360,000 subjects with 30 bytes each.
        assert!(grown < 24 * 1024, "{grown} KiB more with {shards} shards");
    }
}

#[test]
fn reloads_leave_nothing_of_the_options_before() {
    for &shards in shard_counts() {
        // Options of more than half a MiB.
        let tags =
            format!("server_tags: [{}]\n", format!("\"{}\", ", "t".repeat(100)).repeat(5000));
        let config = |ping_max| accounts(300, &format!("ping_max: {ping_max}\n{tags}"));
        let mut broker = Broker::with_config(shards, &config(9));
        let reload = |broker: &mut Broker, times: u32| {
            for time in 0..times {
                let line = broker.reload(&config(time % 2 + 2));
                assert!(line.contains("Reloaded server configuration"), "{line}");
            }
        };
        // What the allocator keeps is there after some.
        reload(&mut broker, 10);
        let before = broker.resident_kib();
        reload(&mut broker, 40);
        let grown = broker.resident_kib().saturating_sub(before);
        assert!(is_nats_server() || grown < 12 * 1024, "{grown} KiB more with {shards} shards");
        log_in(&broker, 299);
    }
}

#[test]
fn an_idle_shard_takes_less_than_a_mebibyte() {
    if is_nats_server() {
        return;
    }
    let resident_kib = |shards| Broker::with_config(shards, "").resident_kib();
    let (few, many) = (resident_kib(2), resident_kib(18));
    let each = many.saturating_sub(few) / 16;
    assert!(each < 1024, "{each} KiB for each shard");
}
