//! Leaf nodes and gateways that do not read: everybody else is served, and they are cut.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use rustix::net::{AddressFamily, SocketType};

use crate::broker::http::json;
use crate::broker::members::{Ours, start};
use crate::broker::wire::Wire;
use crate::broker::{Broker, PATIENCE, is_nats_server, shard_counts};

/// Messages of the flood, more than the sockets and the bound of one link hold together.
const MESSAGES: usize = 16 * 1024;
/// Bytes of each.
const BYTES: usize = 1024;

/// Another server at the other end of a link, with the smallest buffer, which says `said` and
/// reads until `known` has come, and nothing more.
fn deaf(port: u16, said: &str, known: &str) -> TcpStream {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None);
    let socket = socket.expect("a socket");
    rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 4096).expect("it is a socket");
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    rustix::net::connect(&socket, &address).expect("the server accepts");
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).expect("not zero");
    stream.write_all(said.as_bytes()).expect("the server takes it");
    let (mut heard, mut bytes) = (String::new(), [0; 4096]);
    while !heard.contains(known) {
        let count = stream.read(&mut bytes).expect("the server answers");
        assert!(count > 0, "closed after {heard}");
        heard.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    stream
}

/// Floods `flood`: who is here gets all of it, and the link is cut with a line in the log.
fn floods_past(hub: &mut Broker, link: TcpStream, noun: &str, field: &str) {
    let mut subscriber = Wire::connect(hub);
    subscriber.send(b"SUB flood 1\r\n");
    subscriber.sync();
    let mut publisher = Wire::connect(hub);
    let message = format!("PUB flood {BYTES}\r\n{}\r\n", "x".repeat(BYTES));
    let (batch, rest) = (message.repeat(64), format!("MSG flood 1 {BYTES}\r\n"));
    for _ in 0..MESSAGES / 64 {
        publisher.send(batch.as_bytes());
        let mut got = 0;
        while got < 64 {
            let line = subscriber.line();
            got += usize::from(line == rest.trim_end());
        }
    }
    let line = hub.wait_for_line("Slow Consumer Detected: MaxPending of 104");
    assert!(line.contains(noun), "{line}");
    let stats = &json(hub, "/varz")["slow_consumer_stats"];
    assert_eq!((&stats[field], &stats["clients"]), (&1.into(), &0.into()), "{stats}");
    drop(link);
}

#[test]
fn a_leaf_node_that_does_not_read_is_cut_at_its_bound_and_everybody_else_is_served() {
    if is_nats_server() {
        return;
    }
    for &shards in shard_counts() {
        let config = "server_name: hub\nhttp: \"127.0.0.1:-1\"\nmax_pending: 1MB\n\
                      leafnodes { listen: \"127.0.0.1:-1\" }\n";
        let mut hub = start(Ours(shards), config);
        let port = hub.logged_port("Listening for leafnode connections on ");
        let said = "CONNECT {\"name\":\"deaf\"}\r\nLS+ flood\r\nPING\r\n";
        let link = deaf(port, said, "PONG\r\n");
        floods_past(&mut hub, link, "lid:", "leafs");
    }
}

#[test]
fn a_gateway_that_does_not_read_is_cut_at_its_bound_and_everybody_else_is_served() {
    if is_nats_server() {
        return;
    }
    for &shards in shard_counts() {
        // It is the dialled end of a gateway that gets messages.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let config = format!(
            "server_name: a1\nhttp: \"127.0.0.1:-1\"\nmax_pending: 1MB\ngateway {{ name: A, \
             listen: \"127.0.0.1:-1\", gateways: [ {{ name: B, url: \"nats://127.0.0.1:{port}\" \
             }} ] }}\n"
        );
        let mut hub = start(Ours(shards), &config);
        rustix::net::sockopt::set_socket_recv_buffer_size(&listener, 4096).expect("a socket");
        let (mut link, _) = listener.accept().expect("it is dialled");
        link.set_read_timeout(Some(PATIENCE)).expect("not zero");
        // Not interest-only: it is sent what it has not refused.
        let info = "INFO {\"server_id\":\"PEER\",\"server_name\":\"b1\",\"gateway\":\"B\",\
                    \"headers\":true}\r\nPING\r\n";
        link.write_all(info.as_bytes()).expect("it reads");
        let (mut heard, mut bytes) = (String::new(), [0; 4096]);
        while !heard.contains("PONG\r\n") {
            let count = link.read(&mut bytes).expect("the server answers");
            assert!(count > 0, "closed after {heard}");
            heard.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
        floods_past(&mut hub, link, "gid:", "gateways");
    }
}

#[test]
fn a_write_deadline_of_the_block_cuts_a_leaf_node_that_takes_nothing() {
    if is_nats_server() {
        return;
    }
    let config = "server_name: hub\nhttp: \"127.0.0.1:-1\"\nwrite_deadline: \"1h\"\n\
                  leafnodes { listen: \"127.0.0.1:-1\", write_deadline: \"300ms\" }\n";
    let mut hub = start(Ours(2), config);
    let port = hub.logged_port("Listening for leafnode connections on ");
    let _link = deaf(port, "CONNECT {\"name\":\"deaf\"}\r\nLS+ flood\r\nPING\r\n", "PONG\r\n");
    let mut publisher = Wire::connect(&hub);
    let message = format!("PUB flood {BYTES}\r\n{}\r\n", "x".repeat(BYTES)).repeat(64);
    // More than the sockets take, and less than the bound of what may be pending.
    for _ in 0..256 {
        publisher.send(message.as_bytes());
    }
    publisher.sync();
    let line = hub.wait_for_line("Slow Consumer Detected: WriteDeadline of 300ms exceeded");
    assert!(line.contains("lid:"), "{line}");
    assert_eq!(json(&hub, "/varz")["slow_consumer_stats"]["leafs"], 1);
}
