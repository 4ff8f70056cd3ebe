//! Every port against every way to get at a server without logging in: its memory stays, and a
//! proper user of the same port is served all the while.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketType};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tempfile::TempDir;

use crate::broker::authority::Authority;
use crate::broker::{Broker, PATIENCE, is_nats_server, shard_counts};

/// What may be added to the server's memory by all that one attack sends, in KiB. Each sends some
/// 80 MB, or comes a thousand times.
const GROWN_KIB_MAX: u64 = 24 * 1024;
/// More than any port has places for strangers.
const CROWD: usize = 1100;
/// So many times one byte is sent.
const DRIBBLED: usize = 40;

/// A way in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Port {
    Client,
    WebSocket,
    Route,
    Gateway,
    Leaf,
    Monitoring,
    Unix,
}
use Port::{Client, Gateway, Leaf, Monitoring, Route, Unix, WebSocket};

/// Either kind of socket, or what is said within TLS.
trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// A connection from which nothing is read.
enum Raw {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Raw {
    fn stream(&mut self) -> &mut dyn Stream {
        match self {
            Self::Tcp(stream) => stream,
            Self::Unix(stream) => stream,
        }
    }

    /// Sends what the server takes at once; it may have closed the connection.
    fn push(&mut self, bytes: &[u8]) {
        let _ = self.stream().write(bytes);
    }

    fn half_close(&self) {
        // It may be closed already.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
        };
    }
}

/// A server with all ports, in clear or with TLS.
struct Target {
    broker: Broker,
    authority: Option<Authority>,
    dir: TempDir,
}

impl Target {
    fn start(shards: u32, is_tls: bool) -> Self {
        let (authority, dir) = (is_tls.then(authority), tempfile::tempdir().unwrap());
        let file = |name: &str| authority.as_ref().map(|a| a.file(name).display().to_string());
        let tls = file("server.pem").zip(file("server.key")).map(|(cert, key)| {
            format!("tls {{ cert_file: '{cert}', key_file: '{key}', timeout: 5 }}")
        });
        let own = tls.as_deref().unwrap_or_default();
        let within = tls.as_deref().unwrap_or("no_tls: true");
        let members = file("ca.pem").map_or_else(String::new, |ca| {
            own.replace("timeout: 5", &format!("timeout: 5, ca_file: '{ca}'"))
        });
        let (http, unix) = (if is_tls { "https" } else { "http" }, dir.path().join("socket"));
        let config = format!(
            "authorization {{ user: ann, password: secret, timeout: 5 }}\n{own}\n\
             {http}: \"127.0.0.1:-1\"\nlisten_unix: '{}'\n\
             websocket {{ listen: \"127.0.0.1:-1\", {within} }}\n\
             server_name: s\ncluster {{ name: C, listen: \"127.0.0.1:-1\", pool_size: -1\n\
             authorization {{ user: ann, password: secret, timeout: 5 }}\n{members} }}\n\
             gateway {{ name: C, listen: \"127.0.0.1:-1\"\n\
             authorization {{ user: ann, password: secret, timeout: 5 }}\n{members} }}\n\
             leafnodes {{ listen: \"127.0.0.1:-1\"\n\
             authorization {{ user: ann, password: secret, timeout: 5 }}\n{own} }}\n",
            unix.display()
        );
        Self { broker: Broker::with_config(shards, &config), authority, dir }
    }

    fn port(&self, port: Port) -> u16 {
        let banner = self.broker.banner();
        let starts = match port {
            WebSocket => ["Listening for websocket clients on ", ""],
            Route => ["Listening for route connections on ", ""],
            Gateway => ["Listening for gateways connections on ", ""],
            Leaf => ["Listening for leafnode connections on ", ""],
            Monitoring => ["Starting http monitor on ", "Starting https monitor on "],
            Client | Unix => return self.broker.port(),
        };
        let is_it = |line: &&str| starts.iter().any(|s| !s.is_empty() && line.contains(s));
        let line = banner.lines().find(is_it).unwrap();
        line.trim_end().rsplit(':').next().unwrap().parse().unwrap()
    }

    fn dial(&self, port: Port) -> Raw {
        match port {
            Unix => Raw::Unix(UnixStream::connect(self.dir.path().join("socket")).unwrap()),
            port => Raw::Tcp(TcpStream::connect(("127.0.0.1", self.port(port))).unwrap()),
        }
    }

    /// Somebody who does not wait.
    fn stranger(&self, port: Port) -> Raw {
        let raw = self.dial(port);
        match &raw {
            Raw::Tcp(stream) => stream.set_nonblocking(true).unwrap(),
            Raw::Unix(stream) => stream.set_nonblocking(true).unwrap(),
        }
        raw
    }

    /// Somebody new uses the port as it is meant to be used.
    fn serves(&self, port: Port) {
        let mut raw = self.dial(port);
        match &raw {
            Raw::Tcp(stream) => stream.set_read_timeout(Some(PATIENCE)).unwrap(),
            Raw::Unix(stream) => stream.set_read_timeout(Some(PATIENCE)).unwrap(),
        }
        // Clients of TCP are greeted in clear, those of this machine stay so.
        let is_link = matches!(port, Route | Gateway);
        let is_clear =
            matches!(port, Client | Unix | Leaf) || (is_link && self.authority.is_none());
        let greeting = is_clear.then(|| line(raw.stream()));
        assert!(greeting.is_none_or(|greeting| greeting.starts_with("INFO {")));
        let mut stream: Box<dyn Stream> = match (&self.authority, port, raw) {
            (Some(authority), port, Raw::Tcp(tcp)) => Box::new(secured(authority, port, tcp)),
            (None, _, Raw::Tcp(tcp)) => Box::new(tcp),
            (_, _, Raw::Unix(unix)) => Box::new(unix),
        };
        use_properly(port, &mut *stream);
    }
}

fn authority() -> Authority {
    let authority = Authority::new("the authority of this test");
    let name = rcgen::SanType::DnsName("localhost".try_into().unwrap());
    authority.sign("server", "server", vec![name]);
    authority
}

fn secured(authority: &Authority, port: Port, tcp: TcpStream) -> impl Stream + use<> {
    let mut roots = RootCertStore::empty();
    let own = CertificateDer::from_pem_file(authority.file("ca.pem")).unwrap();
    roots.add(own).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    // Members show one another who they are.
    let config = if matches!(port, Route | Gateway) {
        let own = CertificateDer::from_pem_file(authority.file("server.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(authority.file("server.key")).unwrap();
        config.with_client_auth_cert(vec![own], key).unwrap()
    } else {
        config.with_no_client_auth()
    };
    let name = "localhost".try_into().unwrap();
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), tcp)
}

fn use_properly(port: Port, stream: &mut dyn Stream) {
    let login = "CONNECT {\"verbose\":false,\"user\":\"ann\",\"pass\":\"secret\"";
    match port {
        Client | Unix => {
            write!(stream, "{login}}}\r\nSUB a 1\r\nPUB a 2\r\nhi\r\nPING\r\n").unwrap();
            until(stream, "MSG a 1 2\r\nhi\r\nPONG\r\n");
        }
        Route => {
            write!(
                stream,
                "{login},\"name\":\"PEER\",\"cluster\":\"C\"}}\r\nINFO {{\"proto\":1,\
                 \"server_id\":\"PEER\",\"server_name\":\"peer\",\"cluster\":\"C\"}}\r\n\
                 RS+ $G a\r\nPING\r\n"
            )
            .unwrap();
            until(stream, "PONG\r\n");
        }
        Gateway => {
            write!(
                stream,
                "{login},\"name\":\"PEER\",\"gateway\":\"P\"}}\r\nINFO {{\"proto\":1,\
                 \"server_id\":\"PEER\",\"server_name\":\"peer\",\"gateway\":\"P\"}}\r\n\
                 RMSG $G a 1\r\nx\r\nPING\r\n"
            )
            .unwrap();
            until(stream, "PONG\r\n");
        }
        Leaf => {
            write!(stream, "{login},\"name\":\"peer\"}}\r\nLS+ a\r\nPING\r\n").unwrap();
            until(stream, "PONG\r\n");
        }
        Monitoring => {
            write!(stream, "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                .unwrap();
            until(stream, r#"{"status":"ok"}"#);
        }
        WebSocket => {
            write!(
                stream,
                "GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            )
            .unwrap();
            until(stream, "INFO {");
            let said = format!("{login}}}\r\nPING\r\n");
            // A frame with a mask of zeros.
            let head = [0x82, 0x80 | u8::try_from(said.len()).unwrap(), 0, 0, 0, 0];
            stream.write_all(&[&head, said.as_bytes()].concat()).unwrap();
            until(stream, "PONG\r\n");
        }
    }
}

fn line(stream: &mut dyn Stream) -> String {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while !line.ends_with(b"\r\n") {
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    String::from_utf8_lossy(&line).into_owned()
}

/// Reads until `wanted` has come.
fn until(stream: &mut dyn Stream, wanted: &str) {
    let (mut heard, mut bytes) = (Vec::new(), [0; 4096]);
    while !heard.windows(wanted.len()).any(|window| window == wanted.as_bytes()) {
        match stream.read(&mut bytes) {
            Ok(count @ 1..) => heard.extend_from_slice(&bytes[..count]),
            end => {
                panic!("{end:?} instead of {wanted:?} after {}", String::from_utf8_lossy(&heard))
            }
        }
    }
}

/// Beginnings of what would be long.
fn bombs(port: Port) -> &'static [&'static [u8]] {
    match port {
        Client | Unix => &[
            b"CONNECT {\"user\":\"",
            b"PUB a 62914560\r\n",
            b"HPUB a 62914560 62914560\r\nNATS/1.0\r\n",
            b"SUB ",
            b"\x16\x03\x01\xff\xff\x01\xff\xff\xff",
        ],
        Gateway => &[
            b"RMSG A x 62914560\r\n",
            b"CONNECT {\"name\":\"",
            b"A+ ",
            b"RS+ $G ",
            b"INFO {\"server_id\":\"",
            b"\x16\x03\x01\xff\xff\x01\xff\xff\xff",
        ],
        Route => &[
            b"RMSG A x 62914560\r\n",
            b"CONNECT {\"name\":\"",
            b"HMSG A x 62914560 62914560\r\nNATS/1.0\r\n",
            b"RS+ $G ",
            b"INFO {\"server_id\":\"",
            b"\xff\x06\0\0S2sTwO\0\xff\xff\x3f",
            b"\x16\x03\x01\xff\xff\x01\xff\xff\xff",
        ],
        Leaf => &[
            b"LMSG x 62914560\r\n",
            b"CONNECT {\"name\":\"",
            b"LS+ ",
            b"INFO {\"compression\":\"",
            b"INFO {\"compression\":\"s2_fast\"}\r\n\xff\x06\0\0S2sTwO\0\xff\xff\x3f",
            b"\x16\x03\x01\xff\xff\x01\xff\xff\xff",
        ],
        Monitoring => &[
            b"GET /",
            b"GET /healthz HTTP/1.1\r\nX: ",
            b"POST /varz HTTP/1.1\r\nHost: x\r\nContent-Length: 62914560\r\n\r\n",
            b"\x16\x03\x01\xff\xff\x01\xff\xff\xff",
        ],
        WebSocket => &[
            b"GET / HTTP/1.1\r\nHost: ",
            b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
              Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n\
              \x82\xff\0\0\0\0\x03\xc0\0\0\0\0\0\0CONNECT {\"user\":\"",
            b"GET /leafnode HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
              Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n\
              \x82\xff\0\0\0\0\x03\xc0\0\0\0\0\0\0CONNECT {\"user\":\"",
            b"\x16\x03\x01\xff\xff\x01\xff\xff\xff",
        ],
    }
}

/// One way to get at a port: what is left open of it.
type Attack = fn(&Target, Port) -> Vec<Raw>;

/// Announces more than there will be, and sends it as long as the server takes it.
fn length_bombs(target: &Target, port: Port) -> Vec<Raw> {
    let mut all = Vec::new();
    let filler = [b'x'; 64 * 1024];
    for bomb in bombs(port).iter().cycle().take(40) {
        let mut raw = target.stranger(port);
        raw.push(bomb);
        all.push(raw);
    }
    for _ in 0..32 {
        for raw in &mut all {
            raw.push(&filler);
        }
        target.serves(port);
    }
    all
}

/// Connects and says nothing.
fn idle_crowd(target: &Target, port: Port) -> Vec<Raw> {
    (0..CROWD).map(|_| target.stranger(port)).collect()
}

/// Says what is proper, byte by byte.
fn slow_loris(target: &Target, port: Port) -> Vec<Raw> {
    let mut all: Vec<Raw> = (0..200).map(|_| target.stranger(port)).collect();
    let said = bombs(port)[0].iter().chain(std::iter::repeat(&b'x'));
    for byte in said.take(DRIBBLED) {
        for raw in &mut all {
            raw.push(&[*byte]);
        }
        target.serves(port);
    }
    all
}

fn garbage(target: &Target, port: Port) -> Vec<Raw> {
    let mut all = Vec::new();
    let noise: Vec<u8> = (0..70_000_u32).map(|at| at.wrapping_mul(at).to_le_bytes()[1]).collect();
    let lines = b"\r\n".repeat(30_000);
    for bytes in [&noise[..], &lines, &[0; 70_000], &[0xff; 70_000], b"-ERR 'x'\r\n+OK\r\nPONG\r\n"]
    {
        for _ in 0..40 {
            let mut raw = target.stranger(port);
            raw.push(bytes);
            all.push(raw);
        }
        target.serves(port);
    }
    all
}

/// Closes its own half, after a word or none; some vanish altogether.
fn half_open(target: &Target, port: Port) -> Vec<Raw> {
    let mut all = Vec::new();
    for at in 0..600 {
        let mut raw = target.stranger(port);
        let said = bombs(port)[0];
        raw.push(&said[..at % said.len()]);
        raw.half_close();
        if at % 3 > 0 {
            all.push(raw);
        }
    }
    all
}

/// Asks, and never reads the answer.
fn deaf(target: &Target, port: Port) -> Vec<Raw> {
    let mut all = Vec::new();
    let asked: &[u8] = match port {
        Monitoring => b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
        WebSocket => b"GET / HTTP/1.1\r\n\r\n",
        Client | Unix | Route | Gateway | Leaf => b"PING\r\n",
    };
    let asked = asked.repeat(200);
    for _ in 0..200 {
        let mut raw = target.stranger(port);
        raw.push(&asked);
        all.push(raw);
    }
    all
}

const ATTACKS: [(&str, Attack); 6] = [
    ("length bombs", length_bombs),
    ("an idle crowd", idle_crowd),
    ("slow loris", slow_loris),
    ("garbage", garbage),
    ("half-open", half_open),
    ("deaf", deaf),
];

/// Each attack at `port`, on one server, and what it comes to.
fn withstands(port: Port, is_tls: bool) {
    if is_nats_server() {
        return; // It has neither these bounds nor all of these ports.
    }
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).unwrap();
    for &shards in shard_counts() {
        let target = Target::start(shards, is_tls);
        target.serves(port);
        for (name, attack) in ATTACKS {
            println!("{port:?}, {name}, {shards} shards");
            let before = target.broker.resident_kib();
            let left_open = attack(&target, port);
            target.serves(port);
            let grown = target.broker.resident_kib().saturating_sub(before);
            assert!(grown < GROWN_KIB_MAX, "{name}: {grown} KiB more");
            drop(left_open);
            target.serves(port);
        }
    }
}

#[test]
fn the_port_of_clients_withstands_strangers() {
    withstands(Client, false);
}

#[test]
fn the_port_of_clients_with_tls_withstands_strangers() {
    withstands(Client, true);
}

#[test]
fn the_port_of_websockets_withstands_strangers() {
    withstands(WebSocket, false);
}

#[test]
fn the_port_of_websockets_with_tls_withstands_strangers() {
    withstands(WebSocket, true);
}

#[test]
fn the_port_of_routes_withstands_strangers() {
    withstands(Route, false);
}

#[test]
fn the_port_of_gateways_withstands_strangers() {
    withstands(Gateway, false);
}

#[test]
fn the_port_of_gateways_with_tls_withstands_strangers() {
    withstands(Gateway, true);
}

#[test]
fn the_port_of_routes_with_tls_withstands_strangers() {
    withstands(Route, true);
}

#[test]
fn the_port_of_leaf_nodes_withstands_strangers() {
    withstands(Leaf, false);
}

#[test]
fn the_port_of_leaf_nodes_with_tls_withstands_strangers() {
    withstands(Leaf, true);
}

/// A peer at the port for routes of a cluster that asks for no password.
fn member(port: u16, from: [u8; 4], name: usize) -> Option<TcpStream> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddr::from((from, 0))).unwrap();
    rustix::net::connect(&socket, &SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // Nobody is told of it.
    let hello = format!(
        "CONNECT {{\"name\":\"P{name}\",\"cluster\":\"C\"}}\r\nINFO {{\"server_id\":\"P{name}\",\
         \"server_name\":\"P{name}\",\"cluster\":\"C\",\"gossip_mode\":1,\"ldm\":true}}\r\nPING\r\n"
    );
    stream.write_all(hello.as_bytes()).ok()?;
    let (mut heard, mut bytes) = (Vec::new(), [0; 4096]);
    while !heard.ends_with(b"PONG\r\n") {
        match stream.read(&mut bytes) {
            Ok(count @ 1..) => heard.extend_from_slice(&bytes[..count]),
            _ => return None,
        }
    }
    Some(stream)
}

#[test]
fn one_address_leaves_others_their_places_among_the_members() {
    if is_nats_server() {
        return; // It has no such bound.
    }
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).unwrap();
    let config = "server_name: s\ncluster { name: C, listen: \"127.0.0.1:-1\", pool_size: -1 }\n";
    let mut broker = Broker::with_config(1, config);
    let port = broker.route_port();
    let mut members: Vec<_> = (0..1024).map_while(|at| member(port, [127, 0, 0, 1], at)).collect();
    assert_eq!(members.len(), 512);
    let others: Vec<_> = (2000..2010).filter_map(|at| member(port, [127, 0, 0, 2], at)).collect();
    assert_eq!(others.len(), 10);
    // A place is free again when its connection is gone.
    members.pop();
    while member(port, [127, 0, 0, 1], 3000).is_none() {}
}

#[test]
fn the_port_of_the_monitoring_withstands_strangers() {
    withstands(Monitoring, false);
}

#[test]
fn the_port_of_the_monitoring_with_tls_withstands_strangers() {
    withstands(Monitoring, true);
}

#[test]
fn the_unix_socket_withstands_strangers() {
    withstands(Unix, false);
}
