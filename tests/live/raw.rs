//! Plain TCP against the broker: what a person with telnet, a broken client, or a busy day sends.

use crate::broker::wire::Wire;
use crate::broker::{Broker, is_nats_server, shard_counts};
use rustix::process::Signal;

#[test]
fn the_protocol_demo_works_when_typed_at_a_terminal() {
    with_each_shard_count(|broker| {
        let mut typed = Wire::open(broker);
        typed.send(b"sub foo.* 90\n");
        typed.expect(b"+OK\r\n");
        typed.send(b"PUB\tfoo.bar\t 5\nhello\r\n");
        typed.expect(b"+OK\r\nMSG foo.bar 90 5\r\nhello\r\n");
        typed.send(b"Pub foo.bar INBOX.22 0\r\n\r\n");
        typed.expect(b"+OK\r\nMSG foo.bar 90 INBOX.22 0\r\n\r\n");
        typed.send(b"unsub 90\n");
        typed.expect(b"+OK\r\n");
        typed.send(b"ping\n");
        typed.expect(b"PONG\r\n");
        typed.send(b"nonsense\n");
        typed.expect(b"-ERR 'Unknown Protocol Operation'\r\n");
        typed.expect_end();
    });
}

#[test]
fn a_dialogue_sent_one_byte_at_a_time_gets_the_same_answers() {
    with_each_shard_count(|broker| {
        let mut slow = Wire::open(broker);
        let said = b"CONNECT {\"verbose\":false,\"headers\":true}\r\nSUB a.> q 1\r\n\
            PUB a.b r 5\r\nPING\n\r\nHPUB a.c 17 19\r\nNATS/1.0\r\nA:b\r\n\r\nhi\r\n\
            UNSUB 1 2\r\nPUB a.d 0\r\n\r\nPING\r\n";
        for byte in said {
            slow.send(&[*byte]);
        }
        slow.expect(
            b"MSG a.b 1 r 5\r\nPING\n\r\n\
            HMSG a.c 1 17 19\r\nNATS/1.0\r\nA:b\r\n\r\nhi\r\nPONG\r\n",
        );
        slow.sync();
    });
}

#[test]
fn a_subscription_is_in_force_everywhere_once_its_pong_came() {
    with_each_shard_count(|broker| {
        let mut publishers: Vec<Wire> = (0..4).map(|_| Wire::connect(broker)).collect();
        // The connections that stay open for a while move the next ones to other shards.
        let mut open = Vec::new();
        for round in 0..400 {
            let mut subscriber = Wire::connect(broker);
            subscriber.send(format!("SUB barrier.{round} 1\r\n").as_bytes());
            subscriber.sync();
            let publisher = &mut publishers[round % 4];
            publisher.send(format!("PUB barrier.{round} 2\r\nhi\r\n").as_bytes());
            subscriber.expect(format!("MSG barrier.{round} 1 2\r\nhi\r\n").as_bytes());
            open.push(subscriber);
            if open.len() > round % 7 {
                open.remove(0);
            }
        }
    });
}

#[test]
fn a_subscription_made_and_ended_on_one_subject_again_and_again_is_exact_at_each_pong() {
    with_each_shard_count(|broker| {
        let mut publishers: Vec<Wire> = (0..4).map(|_| Wire::connect(broker)).collect();
        let mut subscribers: Vec<Wire> = (0..4).map(|_| Wire::connect(broker)).collect();
        for round in 0..400 {
            let publisher = &mut publishers[round % 4];
            let subscriber = &mut subscribers[(round / 4) % 4];
            subscriber.send(b"SUB again.* 7\r\n");
            subscriber.sync();
            publisher.send(b"PUB again.x 2\r\nhi\r\n");
            subscriber.expect(b"MSG again.x 7 2\r\nhi\r\n");
            subscriber.send(b"UNSUB 7\r\n");
            subscriber.sync();
            publisher.send(b"PUB again.x 4\r\nlost\r\n");
            publisher.sync();
            subscriber.sync();
        }
    });
}

#[test]
fn what_was_published_before_the_publishers_pong_comes_before_the_subscribers_next_pong() {
    with_each_shard_count(|broker| {
        let mut publishers: Vec<Wire> = (0..4).map(|_| Wire::connect(broker)).collect();
        let mut subscribers: Vec<Wire> = (0..4).map(|_| Wire::connect(broker)).collect();
        for subscriber in &mut subscribers {
            subscriber.send(b"SUB handed.over 1\r\n");
            subscriber.sync();
        }
        for round in 0..200 {
            let publisher = &mut publishers[round % 4];
            publisher.send(b"PUB handed.over 2\r\nhi\r\n");
            publisher.sync();
            for subscriber in &mut subscribers {
                subscriber.send(b"PING\r\n");
                subscriber.expect(b"MSG handed.over 1 2\r\nhi\r\nPONG\r\n");
            }
        }
    });
}

#[test]
fn a_connection_that_never_reads_is_cut_and_nobody_else_notices() {
    for &shards in shard_counts() {
        let mut broker = Broker::with_config(shards, "max_pending: 1MB\n");
        let mut stuck = Wire::open_narrow(&broker);
        stuck.send(b"CONNECT {\"verbose\":false}\r\nSUB flood 1\r\nPING\r\n");
        stuck.expect(b"PONG\r\n");
        let mut readers: Vec<Wire> = (0..3).map(|_| Wire::connect(&broker)).collect();
        for reader in &mut readers {
            reader.send(b"SUB flood 1\r\n");
            reader.sync();
        }
        let mut publisher = Wire::connect(&broker);
        let payload = "x".repeat(65_536);
        let published = format!("PUB flood 65536\r\n{payload}\r\n");
        let delivered = format!("MSG flood 1 65536\r\n{payload}\r\n");
        // 16 MiB: more than the limit and all that the kernel holds for a narrow socket. The
        // readers set the pace, so they never come near the limit themselves.
        for _ in 0..256 {
            publisher.send(published.as_bytes());
            for reader in &mut readers {
                reader.expect(delivered.as_bytes());
            }
        }
        let got = stuck.drain_to_end().len();
        assert!(got < 256 * delivered.len(), "all {got} bytes came, nothing was cut");
        broker.wait_for_line("Slow Consumer");
        publisher.send(b"PUB flood 4\r\nlast\r\n");
        publisher.sync();
        for reader in &mut readers {
            reader.expect(b"MSG flood 1 4\r\nlast\r\n");
            reader.sync();
        }
    }
}

#[test]
fn what_is_queued_at_sigterm_arrives_before_the_end() {
    with_each_shard_count(|broker| {
        let mut publisher = Wire::connect(broker);
        let mut subscribers: Vec<Wire> = (0..4).map(|_| Wire::connect(broker)).collect();
        for subscriber in &mut subscribers {
            subscriber.send(b"SUB farewell 1\r\n");
            subscriber.sync();
        }
        let mut wanted = String::new();
        for number in 0..2_000 {
            publisher.send(format!("PUB farewell 4\r\n{number:04}\r\n").as_bytes());
            wanted += &format!("MSG farewell 1 4\r\n{number:04}\r\n");
        }
        publisher.sync();
        broker.signal(Signal::TERM);
        for subscriber in &mut subscribers {
            subscriber.expect(wanted.as_bytes());
            subscriber.expect_end();
        }
        publisher.expect_end();
        assert_eq!(broker.wait_for_exit().code(), Some(0));
    });
}

#[test]
fn sigint_ends_the_server_even_when_clients_are_in_the_middle_of_something() {
    with_each_shard_count(|broker| {
        let mut half_said = Wire::connect(broker);
        half_said.send(b"PUB never.finished 100\r\nhalf");
        let mut unread = Wire::open_narrow(broker);
        unread.send(b"CONNECT {\"verbose\":false}\r\nSUB unread 1\r\nPING\r\n");
        unread.expect(b"PONG\r\n");
        let mut publisher = Wire::connect(broker);
        let payload = "x".repeat(1_000_000);
        for _ in 0..16 {
            publisher.send(format!("PUB unread 1000000\r\n{payload}\r\n").as_bytes());
        }
        publisher.sync();
        broker.signal(Signal::INT);
        half_said.expect_end();
        publisher.expect_end();
        assert_eq!(broker.wait_for_exit().code(), Some(0));
    });
}

#[test]
fn lame_duck_mode_tells_the_clients_refuses_new_ones_and_goes_on_serving() {
    for &shards in shard_counts() {
        let config = "lame_duck_duration: \"30s\"\nlame_duck_grace_period: \"20s\"\n";
        let broker = Broker::with_config(shards, config);
        let mut told: Vec<Wire> = (0..4).map(|_| Wire::open(&broker)).collect();
        for wire in &mut told {
            wire.send(b"CONNECT {\"verbose\":false,\"protocol\":1}\r\nSUB duck 1\r\nPING\r\n");
            wire.expect(b"PONG\r\n");
            assert!(wire.line().contains("\"connect_info\":true"));
        }
        let mut old = Wire::connect(&broker);
        broker.signal(Signal::USR2);
        for wire in &mut told {
            let info = wire.line();
            assert!(info.starts_with("INFO {") && info.contains("\"ldm\":true"), "{info}");
        }
        // A connection that the kernel had taken before the listener closed is still reset.
        while std::net::TcpStream::connect(("127.0.0.1", broker.port())).is_ok() {
            old.sync();
        }
        old.send(b"PUB duck 5\r\nstill\r\n");
        for wire in &mut told {
            wire.expect(b"MSG duck 1 5\r\nstill\r\n");
            wire.sync();
        }
    }
}

#[test]
fn lame_duck_mode_without_clients_ends_at_once() {
    with_each_shard_count(|broker| {
        broker.signal(Signal::USR2);
        assert_eq!(broker.wait_for_exit().code(), Some(0));
    });
}

#[test]
fn what_a_client_sent_before_it_half_closed_is_handled_and_then_it_is_closed() {
    with_each_shard_count(|broker| {
        let mut subscriber = Wire::connect(broker);
        subscriber.send(b"SUB half.* 1\r\n");
        subscriber.sync();
        let mut leaving = Wire::connect(broker);
        leaving.send(b"SUB half.mine 9\r\nPUB half.last 3\r\nbye\r\nPUB half.cut 100\r\nnot all");
        leaving.half_close();
        leaving.expect_end();
        subscriber.expect(b"MSG half.last 1 3\r\nbye\r\n");
        subscriber.send(b"PUB half.mine 2\r\nhi\r\n");
        subscriber.expect(b"MSG half.mine 1 2\r\nhi\r\n");
        subscriber.sync();
    });
}

#[test]
fn whatever_one_connection_sends_the_others_go_on() {
    let noise: Vec<Vec<u8>> = vec![
        b"\0\0\0\0".to_vec(),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".to_vec(),
        b"PUB a 999999999999999999999\r\n".to_vec(),
        b"PUB a -1\r\n".to_vec(),
        b"HPUB a 9 3\r\n".to_vec(),
        b"CONNECT {\r\n".to_vec(),
        b"CONNECT []\r\n".to_vec(),
        b"SUB \r\n".to_vec(),
        b"UNSUB a b c\r\n".to_vec(),
        b"PUB a 3\r\nabcdef\r\n".to_vec(),
        b"MSG a 1 1\r\nx\r\n".to_vec(),
        b"-ERR 'x'\r\n".to_vec(),
        [b"SUB ".to_vec(), vec![b'x'; 100_000]].concat(),
        vec![0xff; 65_536],
    ];
    with_each_shard_count(|broker| {
        let mut witness = Wire::connect(broker);
        witness.send(b"SUB witness 1\r\n");
        for bytes in &noise {
            let mut noisy = Wire::open(broker);
            noisy.try_send(bytes);
            noisy.drain_to_end();
            witness.send(b"PUB witness 2\r\nok\r\n");
            witness.expect(b"MSG witness 1 2\r\nok\r\n");
            witness.sync();
        }
    });
}

#[test]
fn two_thousand_connections_that_come_and_go_leave_no_file_and_no_thread_behind() {
    with_each_shard_count(|broker| come_and_go(broker, 2_000));
}

#[test]
#[ignore = "takes minutes; run before a release"]
fn a_hundred_thousand_connections_that_come_and_go_leave_nothing_behind() {
    with_each_shard_count(|broker| {
        come_and_go(broker, 10_000);
        let before = broker.resident_kib();
        come_and_go(broker, 90_000);
        let after = broker.resident_kib();
        println!("resident: {before} KiB after 10,000 connections, {after} KiB after 100,000");
        assert!(is_nats_server() || after < before + 4_096, "memory grew");
    });
}

#[test]
#[ignore = "memory is that of a release build; run before a release"]
fn the_memory_of_a_burst_of_connections_is_given_back() {
    const BURST: usize = 10_000;
    with_each_shard_count(|broker| {
        let before = broker.resident_kib();
        let mut witness = Wire::connect(broker);
        let files = broker.open_files();
        let burst: Vec<Wire> = (0..BURST)
            .map(|_| {
                let mut wire = Wire::connect(broker);
                wire.send(b"SUB burst.> 1\r\n");
                wire.sync();
                wire
            })
            .collect();
        let between = broker.resident_kib();
        drop(burst);
        // Each look is behind a round trip: memory is given back before a shard sleeps.
        let gone = (0..1_000_000).any(|_| {
            witness.sync();
            broker.open_files() <= files && broker.resident_kib() * 10 <= before * 12
        });
        let after = broker.resident_kib();
        println!("resident: {before} KiB before, {between} KiB with {BURST}, {after} KiB after");
        assert!(is_nats_server() || gone, "more than 1.2 times what it was");
    });
}

/// Lets `cycles` connections end in every way there is, and waits until all trace of them is gone.
fn come_and_go(broker: &Broker, cycles: usize) {
    let mut witness = Wire::connect(broker);
    witness.send(b"SUB cycle.> 1\r\n");
    witness.sync();
    let (files, threads) = (broker.open_files(), broker.threads());
    for cycle in 0..cycles {
        let mut wire = Wire::open(broker);
        match cycle % 5 {
            0 => {} // Leaves without a word.
            1 => {
                wire.send(b"CONNECT {\"verbose\":false}\r\nSUB cycle.* 1\r\nSUB g q 2\r\n");
                wire.sync();
            }
            2 => wire.send(b"CONNECT {\"verbose\":false}\r\nSUB a 1\r\nPUB cycle 10\r\nhalf"),
            3 => {
                wire.send(b"bad\r\n");
                wire.expect(b"-ERR 'Unknown Protocol Operation'\r\n");
            }
            _ => wire.reset(),
        }
    }
    // Each look at the server is behind a round trip; how long it takes does not matter.
    let gone = (0..100_000).any(|_| {
        witness.sync();
        broker.open_files() <= files
    });
    assert!(gone, "{} files are open, {files} were before", broker.open_files());
    if !is_nats_server() {
        assert_eq!(broker.threads(), threads, "threads");
    }
    witness.send(b"PUB cycle.done 2\r\nok\r\n");
    witness.expect(b"MSG cycle.done 1 2\r\nok\r\n");
}

fn with_each_shard_count(test: impl Fn(&mut Broker)) {
    for &shards in shard_counts() {
        println!("with {shards} shards");
        test(&mut Broker::start(shards, &[]));
    }
}
