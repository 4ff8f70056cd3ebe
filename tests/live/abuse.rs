//! What strangers do to a server that is open to them, and what becomes of it: each test says the
//! outcome in its name, and a witness who is served all the while shows that nobody else noticed.

use std::io::Read;
use std::net::TcpStream;

use crate::broker::wire::Wire;
use crate::broker::{Broker, has_original, is_nats_server, shard_counts};
use rcgen::CertifiedKey;
use tempfile::TempDir;

const LOGIN: &str = "authorization { user: ann, password: secret, timeout: 0.5 }\n";

/// Somebody who is served, whatever happens to others.
struct Witness(Wire);

impl Witness {
    fn of(broker: &Broker) -> Self {
        let mut wire = Wire::open(broker);
        wire.send(
            b"CONNECT {\"verbose\":false,\"user\":\"ann\",\"pass\":\"secret\"}\r\n\
              SUB witness 1\r\n",
        );
        wire.sync();
        Self(wire)
    }

    fn is_served(&mut self) {
        self.0.send(b"PUB witness 2\r\nok\r\n");
        self.0.expect(b"MSG witness 1 2\r\nok\r\n");
    }
}

fn with_login(test: impl Fn(&mut Broker, &mut Witness)) {
    for &shards in shard_counts() {
        println!("with {shards} shards");
        let mut broker = Broker::with_config(shards, LOGIN);
        let mut witness = Witness::of(&broker);
        test(&mut broker, &mut witness);
        witness.is_served();
    }
}

#[test]
fn who_dribbles_a_connect_byte_by_byte_is_cut_at_the_timeout() {
    with_login(|broker, witness| {
        let mut loris: Vec<Wire> = (0..50).map(|_| Wire::open(broker)).collect();
        let mut open = loris.len();
        let said = b"CONNECT {\"user\":\"".iter().chain(std::iter::repeat(&b'x'));
        for byte in said {
            // The server closes, and what is sent then fails sooner or later.
            loris.retain_mut(|wire| wire.try_send(&[*byte]));
            witness.is_served();
            open = open.min(loris.len());
            if loris.is_empty() {
                break;
            }
        }
        assert_eq!(open, 0);
    });
}

#[test]
fn who_connects_and_says_nothing_is_told_why_and_cut() {
    with_login(|broker, witness| {
        let mut silent: Vec<Wire> = (0..200).map(|_| Wire::open(broker)).collect();
        witness.is_served();
        for wire in &mut silent {
            wire.expect(b"-ERR 'Authentication Timeout'\r\n");
            wire.expect_end();
        }
    });
}

/// nats-server passes this too.
#[test]
fn a_guest_who_says_nothing_is_cut_like_who_does_not_log_in() {
    let config = "no_auth_user: ann\n\
                  authorization { timeout: 0.5, users: [{user: ann, password: secret}] }";
    let broker = Broker::with_config(1, config);
    let (mut silent, mut guest) = (Wire::open(&broker), Wire::open(&broker));
    guest.send(b"PING\r\n");
    guest.expect(b"PONG\r\n");
    silent.expect(b"-ERR 'Authentication Timeout'\r\n");
    silent.expect_end();
    guest.sync();
}

#[test]
fn who_half_closes_and_waits_is_closed_too() {
    with_login(|broker, witness| {
        let files = broker.open_files();
        for said in
            [&b""[..], b"CONN", b"CONNECT {\"user\":\"ann\",\"pass\":\"secret\"}\r\nPUB a 9\r\n"]
        {
            let mut leaving = Wire::open(broker);
            leaving.send(said);
            leaving.half_close();
            leaving.drain_to_end();
        }
        comes_true(witness, || broker.open_files() <= files);
    });
}

#[test]
fn a_connect_as_long_as_it_likes_takes_no_memory_and_is_closed_at_the_control_line() {
    with_login(|broker, witness| {
        let before = broker.resident_kib();
        let long = [b"CONNECT {\"user\":\"".to_vec(), vec![b'x'; 4_000_000]].concat();
        let mut rude: Vec<Wire> = (0..20).map(|_| Wire::open(broker)).collect();
        for wire in &mut rude {
            wire.try_send(&long);
            witness.is_served();
        }
        for mut wire in rude {
            wire.drain_to_end();
        }
        // Of 80 MB that were sent.
        let grown = broker.resident_kib().saturating_sub(before);
        assert!(is_nats_server() || grown < 20_000, "{grown} KiB more");
    });
}

#[test]
fn a_crowd_that_has_not_logged_in_holds_a_few_kibibytes_each() {
    with_login(|broker, witness| {
        let before = broker.resident_kib();
        let most = [b"CONNECT {\"user\":\"".to_vec(), vec![b'x'; 4_000]].concat();
        let mut crowd: Vec<Wire> = (0..500).map(|_| Wire::open(broker)).collect();
        for wire in &mut crowd {
            wire.try_send(&most);
        }
        witness.is_served();
        let grown = broker.resident_kib().saturating_sub(before);
        // Sockets' own memory is the kernel's.
        assert!(is_nats_server() || grown < 500 * 24, "{grown} KiB more");
        for wire in &mut crowd {
            wire.drain_to_end();
        }
    });
}

#[test]
fn json_nested_as_deep_as_a_line_allows_is_read_or_refused_and_nothing_else_happens() {
    for &shards in shard_counts() {
        let broker = Broker::with_config(shards, &format!("{LOGIN}max_control_line: 1MB\n"));
        let mut witness = Witness::of(&broker);
        let (open, close) = ("[".repeat(400_000), "]".repeat(400_000));
        let objects = "{\"a\":".repeat(100_000);
        for json in [
            format!("{{\"x\":{open}{close}}}"),
            format!("{{\"x\":{open}"),
            format!("{{\"user\":{open}{close}}}"),
            format!("{{\"x\":{objects}1"),
            objects,
            open,
        ] {
            let mut deep = Wire::open(&broker);
            deep.try_send(format!("CONNECT {json}\r\nPING\r\n").as_bytes());
            deep.drain_to_end();
            witness.is_served();
        }
    }
}

#[test]
fn bytes_that_are_no_tls_end_their_own_connection_only() {
    let (config, _dir) = tls("timeout: 0.5");
    for &shards in shard_counts() {
        let mut broker = Broker::with_config(shards, &config);
        let files = broker.open_files();
        let garbage: [&[u8]; 7] = [
            &[0x16; 70_000],
            &[0; 70_000],
            b"CONNECT {}\r\nPING\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            // A record that promises a hello, and never keeps it.
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            // A hello of no length, an alert, a record of 65,535 bytes.
            b"\x16\x03\x01\x00\x04\x01\x00\x00\x00",
            b"\x15\x03\x03\x00\x02\x02\x28\x16\x03\x03\xff\xff",
        ];
        for bytes in garbage {
            let mut noisy = Wire::open(&broker);
            noisy.try_send(bytes);
            noisy.drain_to_end();
        }
        // The log has one line for each that is no hello; the server is there for the next.
        broker.wait_for_line("TLS handshake error");
        let mut next = Wire::open(&broker);
        next.half_close();
        next.drain_to_end();
        assert!((0..1_000_000).any(|_| {
            std::thread::yield_now();
            broker.open_files() <= files
        }));
    }
}

#[test]
fn ten_thousand_connections_that_come_at_once_leave_the_others_served() {
    with_login(|broker, witness| {
        let files = broker.open_files();
        for _ in 0..100 {
            let batch: Vec<TcpStream> = (0..100).filter_map(|_| dial(broker)).collect();
            witness.is_served();
            drop(batch);
        }
        comes_true(witness, || broker.open_files() <= files);
    });
}

#[test]
fn over_the_rate_of_all_connections_are_told_so_and_closed() {
    if is_nats_server() {
        return; // It has no such rate.
    }
    for &shards in shard_counts() {
        let config = format!("{LOGIN}rate_limits {{ connections: 5 }}\n");
        let mut broker = Broker::with_config(shards, &config);
        let mut witness = Witness::of(&broker);
        // However slow the machine, more than two hundred cannot be let in within 20 s.
        let turned_away =
            (0..5000).find(|_| is_turned_away(&mut dial(&broker).expect("it listens")));
        assert!(turned_away.is_some(), "nobody was");
        let line = broker.wait_for_line("due to rate limiting");
        assert!(line.contains("[WRN] Rejected "), "{line}");
        witness.is_served();
        // A reload can take the limit away; who was let in stays.
        let line = broker.reload(LOGIN);
        assert!(line.contains("Reloaded"), "{line}");
        for _ in 0..100 {
            assert!(!is_turned_away(&mut dial(&broker).expect("it listens")));
        }
        witness.is_served();
    }
}

#[test]
fn one_address_over_its_rate_keeps_no_other_out() {
    if is_nats_server() {
        return; // It has no such rate.
    }
    for &shards in shard_counts() {
        let config = format!("{LOGIN}rate_limits {{ connections_per_ip: 2 }}\n");
        let broker = Broker::with_config(shards, &config);
        let mut witness = Witness::of(&broker);
        assert!((0..5000).any(|_| is_turned_away(&mut dial(&broker).expect("it listens"))));
        let mut other = dial_from([127, 0, 0, 2], &broker);
        assert!(!is_turned_away(&mut other));
        witness.is_served();
    }
}

#[test]
fn tls_has_a_rate_of_its_own_that_answers_as_nats_server_does() {
    let (config, _dir) = tls("connection_rate_limit: 3");
    for &shards in shard_counts() {
        let broker = Broker::with_config(shards, &config);
        assert!((0..5000).any(|_| is_turned_away(&mut dial(&broker).expect("it listens"))));
    }
}

#[test]
fn a_publisher_over_its_rate_loses_nothing_and_waits() {
    if is_nats_server() {
        return; // It has no such rate.
    }
    for &shards in shard_counts() {
        let config = format!(
            "{LOGIN}rate_limits {{ msgs_per_connection: 1000, bytes_per_connection: 1MB }}\n"
        );
        let mut broker = Broker::with_config(shards, &config);
        let mut witness = Witness::of(&broker);
        let mut fast = Wire::open(&broker);
        fast.send(b"CONNECT {\"verbose\":false,\"user\":\"ann\",\"pass\":\"secret\"}\r\n");
        fast.send(&b"PUB load 0\r\n\r\n".repeat(2500));
        witness.is_served();
        fast.sync();
        // The rest would take its time: without the rates there is nothing to wait for.
        fast.send(&b"PUB load 0\r\n\r\n".repeat(60_000));
        let line = broker.reload(LOGIN);
        assert!(line.contains("Reloaded"), "{line}");
        witness.is_served();
    }
}

#[test]
fn a_queue_of_slow_passwords_that_nobody_waits_for_is_passed_over() {
    // A hash of cost 10 takes its tenth of a second; a hundred of them would take ten.
    let config = "authorization { timeout: 0.5, users: [\n\
        { user: bob, password: \"$2a$10$abcdefghijklmnopqrstuuAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\" }\n\
        { user: ann, password: secret } ] }\n";
    for &shards in shard_counts() {
        let broker = Broker::with_config(shards, config);
        let mut witness = Witness::of(&broker);
        let mut crowd: Vec<Wire> = (0..100).map(|_| Wire::open(&broker)).collect();
        for wire in &mut crowd {
            wire.try_send(b"CONNECT {\"user\":\"bob\",\"pass\":\"guess\"}\r\n");
            witness.is_served();
        }
        for wire in &mut crowd {
            let end = wire.drain_to_end();
            let end = String::from_utf8_lossy(&end).into_owned();
            assert!(
                end == "-ERR 'Authentication Timeout'\r\n"
                    || end == "-ERR 'Authorization Violation'\r\n",
                "{end}"
            );
        }
    }
}

/// Whether the server says at once that it has no time for this connection.
fn is_turned_away(stream: &mut TcpStream) -> bool {
    let mut heard = Vec::new();
    let mut bytes = [0; 4096];
    while !heard.ends_with(b"\r\n") {
        match stream.read(&mut bytes) {
            Ok(0) | Err(_) => break,
            Ok(count) => heard.extend_from_slice(&bytes[..count]),
        }
    }
    let text = String::from_utf8_lossy(&heard);
    assert!(text.starts_with("INFO {"), "{text}");
    let error = "-ERR 'Connection throttling is active. Please try again later.'\r\n";
    let turned_away = text.ends_with(error);
    if turned_away {
        assert_eq!(stream.read(&mut bytes).unwrap_or(0), 0, "the end follows");
    }
    turned_away
}

fn dial(broker: &Broker) -> Option<TcpStream> {
    TcpStream::connect(("127.0.0.1", broker.port())).ok()
}

/// A connection from another address of the loopback network.
fn dial_from(source: [u8; 4], broker: &Broker) -> TcpStream {
    use rustix::net::{AddressFamily, SocketAddrV4, SocketType, bind, connect, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    bind(&socket, &SocketAddrV4::new(source.into(), 0)).expect("an address of loopback");
    let server = SocketAddrV4::new([127, 0, 0, 1].into(), broker.port());
    connect(&socket, &server).expect("it listens");
    socket.into()
}

/// Waits behind round trips of the witness until something has come true.
fn comes_true(witness: &mut Witness, is_so: impl Fn() -> bool) {
    assert!((0..100_000).any(|_| {
        witness.is_served();
        is_so()
    }));
}

/// A configuration with TLS, and the directory of its files.
fn tls(more: &str) -> (String, TempDir) {
    let CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let dir = tempfile::tempdir().expect("a scratch directory");
    let (cert_file, key_file) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert_file, cert.pem()).expect("written");
    std::fs::write(&key_file, signing_key.serialize_pem()).expect("written");
    let (cert_file, key_file) = (cert_file.display(), key_file.display());
    (format!("tls {{ cert_file: '{cert_file}', key_file: '{key_file}', {more} }}\n"), dir)
}

/// Sends `flood` and a PING behind it, and has somebody else served until that is answered, or
/// `rounds` times. Says whether it was answered by then.
fn flood_beside(
    broker: &Broker,
    witness: &mut Witness,
    flood: &[u8],
    rounds: usize,
) -> (TcpStream, bool) {
    let mut stream = TcpStream::connect(("127.0.0.1", broker.port())).expect("it accepts");
    let hello = b"CONNECT {\"verbose\":false,\"user\":\"ann\",\"pass\":\"secret\"}\r\n";
    std::io::Write::write_all(&mut stream, &[hello, flood, b"PING\r\n"].concat()).expect("room");
    stream.set_nonblocking(true).expect("it is a socket");
    let mut heard = Vec::new();
    for _ in 0..rounds {
        witness.is_served();
        let mut bytes = [0; 4096];
        if let Ok(len) = stream.read(&mut bytes) {
            heard.extend_from_slice(&bytes[..len]);
        }
        if heard.windows(6).any(|text| text == b"PONG\r\n") {
            return (stream, true);
        }
    }
    (stream, false)
}

/// Connections with so many subscriptions to each of two subjects.
fn crowd(broker: &Broker, conns: usize, subs: usize) -> Vec<Wire> {
    let hello = "CONNECT {\"verbose\":false,\"user\":\"ann\",\"pass\":\"secret\"}\r\n";
    let subs: String = (0..subs).map(|at| format!("SUB a {at}\r\nSUB b x{at}\r\n")).collect();
    let join = |_| {
        let mut wire = Wire::open_narrow(broker);
        wire.send(format!("{hello}{subs}").as_bytes());
        wire.sync();
        wire
    };
    (0..conns).map(join).collect()
}

#[test]
fn a_flood_of_short_messages_for_who_reads_nothing_takes_little_memory_and_lets_others_be_served() {
    with_login(|broker, witness| {
        let _deaf = crowd(broker, 20, 500);
        let before = broker.resident_kib();
        let flood = b"PUB a 0\r\n\r\nPUB b 0\r\n\r\n".repeat(95 * 1024 / 22);
        let _flood = flood_beside(broker, witness, &flood, 50);
        let grown = broker.resident_kib().saturating_sub(before);
        assert!(grown < 200_000, "{grown} KiB more");
    });
}

#[test]
fn subjects_that_very_many_filters_match_let_others_be_served_before_all_are_looked_up() {
    with_login(|broker, witness| {
        let mut wide = Wire::open(broker);
        wide.send(b"CONNECT {\"verbose\":false,\"user\":\"ann\",\"pass\":\"secret\"}\r\n");
        for at in 0..8192 {
            let tokens = (0..13).map(|bit| if at >> bit & 1 == 0 { "*" } else { "x" });
            let filter: Vec<&str> = tokens.chain(["end"]).collect();
            wide.send(format!("SUB {} {at}\r\n", filter.join(".")).as_bytes());
        }
        wide.sync();
        let publish = |at: usize| format!("PUB {}{at} 0\r\n\r\n", "x.".repeat(13));
        let flood: String = (0..2000).map(publish).collect();
        let (_flood, is_over) = flood_beside(broker, witness, flood.as_bytes(), 20);
        assert!(is_nats_server() || !is_over, "it is served between two of them");
    });
}

#[test]
fn who_sends_itself_more_than_may_be_pending_is_waited_for_and_gets_all_of_it() {
    for &shards in shard_counts() {
        let broker = Broker::start(shards, &[]);
        let narrow = Wire::open_narrow(&broker);
        let (mut reads, mut writes) = narrow.into_halves();
        let message = [&b"PUB a 1000000\r\n"[..], &[b'x'; 1_000_000], b"\r\n"].concat();
        const MESSAGES: usize = 100;
        let writer = std::thread::spawn(move || {
            let hello = b"CONNECT {\"verbose\":false}\r\nSUB a 1\r\n";
            std::io::Write::write_all(&mut writes, hello).expect("it is read");
            for _ in 0..MESSAGES {
                std::io::Write::write_all(&mut writes, &message).expect("it is waited for");
            }
            std::io::Write::write_all(&mut writes, b"PING\r\n").expect("it is waited for");
            writes
        });
        let (mut bytes, mut got, mut end) = (vec![0; 64 * 1024], 0, Vec::new());
        while !end.windows(6).any(|text| text == b"PONG\r\n") {
            let len = reads.read(&mut bytes).expect("nobody cuts it");
            assert!(len > 0, "cut after {got} bytes");
            got += bytes[..len].iter().filter(|byte| **byte == b'x').count();
            end = bytes[len.saturating_sub(16)..len].to_vec();
        }
        assert_eq!(got, MESSAGES * 1_000_000);
        drop(writer.join());
    }
}

const SLOW_MESSAGES: usize = 960;
const SLOW_MESSAGE_BYTES: usize = 64 * 1024;

/// How many of very many messages a subscriber gets that takes less in a second than comes.
fn got_slowly(broker: &Broker) -> usize {
    let mut slow = Wire::open_narrow(broker);
    slow.send(b"CONNECT {\"verbose\":false}\r\nSUB a 1\r\nPING\r\n");
    slow.expect(b"PONG\r\n");
    let (mut reads, _writes) = slow.into_halves();
    let mut witness = Wire::connect(broker);
    let mut publisher = Wire::connect(broker);
    let writer = std::thread::spawn(move || {
        let head = format!("PUB a {SLOW_MESSAGE_BYTES}\r\n");
        let message = [head.as_bytes(), &[b'x'; SLOW_MESSAGE_BYTES], b"\r\n"].concat();
        (0..SLOW_MESSAGES).for_each(|_| publisher.send(&message));
        publisher.sync();
    });
    let (mut bytes, mut got, mut taken) = (vec![0; SLOW_MESSAGE_BYTES], 0, 0);
    while got < SLOW_MESSAGES * SLOW_MESSAGE_BYTES {
        let Ok(len @ 1..) = reads.read(&mut bytes) else { break };
        got += bytes[..len].iter().filter(|byte| **byte == b'x').count();
        taken += len;
        if taken >= SLOW_MESSAGE_BYTES {
            // A round trip for each piece: it takes less in a second than comes.
            witness.sync();
            taken = 0;
        }
    }
    writer.join().expect("the publisher is held back and never cut");
    println!("{} of {SLOW_MESSAGES} messages", got / SLOW_MESSAGE_BYTES);
    got / SLOW_MESSAGE_BYTES
}

#[test]
fn a_slow_subscriber_that_takes_what_it_can_gets_all_that_one_publisher_sends() {
    // A quarter of what comes. Nothing less may be pending than lanes between shards hold.
    const LIMIT: &str = "max_pending: 16MB\n";
    if has_original() {
        got_slowly(&Broker::original(LIMIT));
    }
    for &shards in shard_counts() {
        let broker = Broker::with_config(shards, LIMIT);
        // Nobody is waited for who does not catch up within a second, and a busy machine may keep
        // this one from it, but not each time.
        let gets_all = (0..8).any(|_| got_slowly(&broker) == SLOW_MESSAGES);
        assert!(gets_all, "{shards} shards");
    }
}
