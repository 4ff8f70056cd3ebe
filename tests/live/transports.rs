//! The ways in besides plain TCP: Unix sockets, proxies with a header, WebSocket.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::broker::authority::Authority;
use crate::broker::members::{has_original, member, pairs, until};
use crate::broker::peers::{meet, next, within};
use crate::broker::wire::Wire;
use crate::broker::{Broker, PATIENCE, http, is_nats_server, server_command, shard_counts};
use async_nats::{Client, ConnectOptions};
use futures::future::try_join_all;
use rustix::process::Signal;
use serde_json::Value;

/// A connection over a Unix socket, greeted.
struct Local {
    stream: BufReader<UnixStream>,
    info: Value,
}

impl Local {
    fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut local = Self { stream: BufReader::new(stream), info: Value::Null };
        let line = local.line();
        local.info = serde_json::from_str(line.strip_prefix("INFO ").unwrap()).unwrap();
        local
    }

    fn at(path: &Path) -> Self {
        Self::new(UnixStream::connect(path).unwrap())
    }

    fn say(&mut self, text: &str) {
        self.stream.get_mut().write_all(text.as_bytes()).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

#[test]
fn clients_of_a_unix_socket_and_of_tcp_hear_one_another() {
    if is_nats_server() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for &shards in shard_counts() {
        let path = dir.path().join("broker.sock");
        let config = format!("listen_unix: \"{}\"\nhttp: 127.0.0.1:-1", path.display());
        let mut broker = Broker::with_config(shards, &config);
        let mut locals: Vec<Local> = (0..4).map(|_| Local::at(&path)).collect();
        for local in &mut locals {
            assert_eq!(local.info["tls_required"], Value::Null);
            local.say("CONNECT {\"verbose\":false,\"name\":\"near\"}\r\nSUB a 1\r\nPING\r\n");
            assert_eq!(local.line(), "PONG");
        }
        let mut far = Wire::connect(&broker);
        far.send(b"SUB b 2\r\nPUB a 2\r\nhi\r\n");
        far.sync();
        for local in &mut locals {
            assert_eq!([local.line(), local.line()], ["MSG a 1 2", "hi"]);
            local.say("PUB b 1\r\nx\r\nPING\r\n");
            assert_eq!(local.line(), "PONG");
        }
        far.expect(b"MSG b 2 1\r\nx\r\n".repeat(4).as_slice());
        let shown = http::json(&broker, "/connz");
        let shown = shown["connections"].as_array().unwrap();
        let near: Vec<&Value> = shown.iter().filter(|conn| conn["name"] == "near").collect();
        assert_eq!(near.len(), 4);
        assert_eq!(near[0]["ip"], path.display().to_string());
        assert_eq!(near[0]["unix_peer"]["pid"], std::process::id());
        broker.signal(Signal::TERM);
        broker.wait_for_exit();
        assert!(!path.exists(), "the socket goes with its server");
    }
}

#[test]
fn the_socket_of_a_killed_server_is_taken_over_and_that_of_a_live_one_is_not() {
    if is_nats_server() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("broker.sock");
    let flag = format!("--listen-unix={}", path.display());
    let mut broker = Broker::start(1, &[&flag]);
    let second = Command::new(server_command())
        .args(["-a", "127.0.0.1", "-p", "-1", &flag])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("another server listens on"), "{said}");
    broker.restart();
    Local::at(&path);
}

#[test]
fn an_abstract_name_needs_no_file() {
    if is_nats_server() {
        return;
    }
    let name = format!("shardcast-transports-{}", std::process::id());
    let _broker = Broker::start(1, &["--listen-unix", &format!("@{name}")]);
    let address = SocketAddr::from_abstract_name(name).unwrap();
    Local::new(UnixStream::connect_addr(&address).unwrap());
}

#[test]
fn the_kernel_says_who_is_at_the_other_end_of_a_unix_socket() {
    if is_nats_server() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("broker.sock");
    let config = |uid: u32| {
        let path = path.display();
        format!(
            "authorization {{ users: [\n\
             {{user: ann, password: p, permissions: {{publish: a}}}} ] }}\n\
             listen_unix {{ path: \"{path}\", mode: 0600, peers: [{{uid: {uid}, user: ann}}] }}"
        )
    };
    let own = rustix::process::geteuid().as_raw();
    let mut broker = Broker::with_config(1, &config(own));
    let mut local = Local::at(&path);
    assert_eq!(local.info["auth_required"], Value::Null);
    local.say("CONNECT {\"verbose\":false}\r\nPUB a 0\r\n\r\nPUB b 0\r\n\r\n");
    assert_eq!(local.line(), "-ERR 'Permissions Violation for Publish to \"b\"'");
    assert!(broker.reload(&config(own + 1)).contains("Reloaded"));
    let mut stranger = Local::at(&path);
    assert_eq!(stranger.info["auth_required"], true);
    stranger.say("CONNECT {\"verbose\":false}\r\n");
    assert_eq!(stranger.line(), "-ERR 'Authorization Violation'");
}

/// Sends `bytes` behind the greeting, and returns what comes before and behind them.
fn exchange(broker: &Broker, bytes: &[u8]) -> (String, String) {
    let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", broker.port())).unwrap());
    stream.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut info, mut answer) = (String::new(), String::new());
    stream.read_line(&mut info).unwrap();
    stream.get_mut().write_all(bytes).unwrap();
    stream.get_mut().shutdown(std::net::Shutdown::Write).unwrap();
    // The server may have hung up on what it did not read.
    let _ = stream.read_to_string(&mut answer);
    (info, answer)
}

/// nats-server passes this too.
#[test]
fn the_client_that_a_proxy_speaks_for_is_shown() {
    let config = "proxy_protocol: true\nhttp: 127.0.0.1:-1";
    let broker = Broker::with_config(1, config);
    let mut v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x07\x07\x07\x07\x01\x02\x03\x04".to_vec();
    v2.extend_from_slice(b"\x04\x57\0\x01PING\r\n");
    let v1 = b"PROXY TCP4 9.8.7.6 1.2.3.4 1111 4222\r\nPING\r\n".to_vec();
    for (wire, ip) in [(v1, "9.8.7.6"), (v2, "7.7.7.7"), (b"PING\r\n".to_vec(), "127.0.0.1")] {
        assert_eq!(exchange(&broker, &wire).1, "PONG\r\n");
        let closed = http::json(&broker, "/connz?state=closed&sort=stop");
        assert_eq!(closed["connections"][0]["ip"], ip);
    }
    assert_eq!(exchange(&broker, b"PROXY TCP4 nobody\r\nPING\r\n").1, "");
}

#[test]
fn a_proxy_that_is_not_trusted_is_not_believed() {
    if is_nats_server() {
        return;
    }
    let config = "proxy_protocol: true\nproxy_protocol_trusted: [\"10.0.0.0/8\", \"::2\"]";
    let broker = Broker::with_config(2, config);
    let answer = exchange(&broker, b"PROXY TCP4 9.8.7.6 1.2.3.4 1111 4222\r\nPING\r\n").1;
    assert_eq!(answer, "-ERR 'Unknown Protocol Operation'\r\n");
}

const WEBSOCKET: &str =
    "http: 127.0.0.1:-1\nwebsocket { listen: \"127.0.0.1:-1\", no_tls: true, compression: true }";

/// Where WebSocket clients come in, as the log names it.
fn websocket_url(broker: &Broker) -> String {
    let banner = broker.banner();
    let at = banner.find("ws://").or_else(|| banner.find("wss://")).unwrap();
    banner[at..].lines().next().unwrap().to_owned()
}

async fn over_websocket(broker: &Broker) -> Client {
    let options = ConnectOptions::new().connection_timeout(PATIENCE);
    within(options.connect(websocket_url(broker))).await.unwrap()
}

/// Messages of all sizes arrive in order and unharmed.
async fn send_all_sizes(from: &Client, to: &Client) {
    let mut inbox = to.subscribe("sizes").await.unwrap();
    meet(to, from).await;
    let payload = |size: usize| -> Vec<u8> {
        (0..size).map(|at| u8::try_from((at * 31 + at / 251) % 256).unwrap()).collect()
    };
    let sizes = [0, 1, 60, 125, 126, 5000, 65_535, 65_536, 1_000_000];
    for size in sizes {
        from.publish("sizes", payload(size).into()).await.unwrap();
    }
    for size in sizes {
        assert!(*next(&mut inbox).await.payload == *payload(size), "{size} bytes");
    }
}

#[tokio::test]
async fn messages_of_any_size_pass_between_websockets_and_tcp() {
    for &shards in shard_counts() {
        let broker = Broker::with_config(shards, WEBSOCKET);
        let plain = async_nats::connect(broker.url()).await.unwrap();
        let clients = [over_websocket(&broker).await, over_websocket(&broker).await];
        send_all_sizes(&clients[0], &clients[1]).await;
        send_all_sizes(&clients[1], &plain).await;
        send_all_sizes(&plain, &clients[0]).await;
        let shown = http::json(&broker, "/connz");
        let kinds = shown["connections"].as_array().unwrap();
        let websockets = kinds.iter().filter(|conn| conn["type"] == "websocket").count();
        assert_eq!((kinds.len(), websockets), (3, 2));
        assert_eq!(http::json(&broker, "/varz")["websocket"]["compression"], true);
    }
}

#[tokio::test]
async fn a_crowd_of_websockets_gets_every_message_in_order() {
    for &shards in shard_counts() {
        let broker = Broker::with_config(shards, WEBSOCKET);
        let clients = try_join_all((0..20).map(|_| async {
            let client = over_websocket(&broker).await;
            let inbox = client.subscribe("crowd").await?;
            client.flush().await.map(|()| (client, inbox)).map_err(async_nats::Error::from)
        }));
        let clients: Vec<_> = clients.await.map_err(|error: async_nats::Error| error).unwrap();
        let publisher = over_websocket(&broker).await;
        for (client, _) in &clients {
            meet(client, &publisher).await;
        }
        for number in 0..2000 {
            let payload = format!("{number} {}", "x".repeat(number));
            publisher.publish("crowd", payload.into()).await.unwrap();
        }
        for (_, mut inbox) in clients {
            for number in 0..2000 {
                let message = next(&mut inbox).await;
                assert!(message.payload.starts_with(format!("{number} ").as_bytes()));
                assert!(message.payload.len() >= number);
            }
        }
    }
}

/// An upgraded connection, without a client library.
struct RawSocket {
    stream: TcpStream,
    info: Value,
}

impl RawSocket {
    fn open(broker: &Broker, fields: &str) -> Self {
        Self::greeted(websocket_url(broker).strip_prefix("ws://").unwrap(), fields)
    }

    fn greeted(address: &str, fields: &str) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = format!(
            "GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{fields}\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut socket = Self { stream, info: Value::Null };
        // The answer, and INFO behind it, up to its line end.
        let mut seen = Vec::new();
        while !(seen.ends_with(b"} \r\n") || seen.ends_with(b"}\r\n")) {
            seen.push(socket.take(1)[0]);
        }
        let json = seen.windows(5).position(|bytes| bytes == b"INFO ").unwrap() + 5;
        socket.info = serde_json::from_slice(&seen[json..]).unwrap();
        socket
    }

    /// Sends a frame with a mask of zeros.
    fn frame(&mut self, first: u8, payload: &[u8]) {
        let len = u8::try_from(payload.len()).ok().filter(|len| *len < 126).unwrap();
        self.stream.write_all(&[&[first, 0x80 | len, 0, 0, 0, 0], payload].concat()).unwrap();
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn expect(&mut self, wanted: &[u8]) {
        assert_eq!(
            String::from_utf8_lossy(&self.take(wanted.len())),
            String::from_utf8_lossy(wanted)
        );
    }

    fn expect_end(&mut self) {
        // A reset is an end, too, where input was left unread.
        let mut rest = Vec::new();
        let _ = self.stream.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{rest:?}");
    }
}

/// What a WebSocket's INFO says of who gets in, how, and where else.
fn greeting(broker: &Broker) -> Vec<Value> {
    let info = RawSocket::open(broker, "").info;
    let ways = ["host", "tls_required", "tls_available", "tls_verify", "auth_required"];
    ways.iter().chain(&["cluster", "connect_urls"]).map(|field| info[field].clone()).collect()
}

#[test]
fn a_websocket_is_greeted_as_by_the_original() {
    if !has_original() {
        return;
    }
    let authority = Authority::new("the authority of this test");
    authority.sign("server", "server", Vec::new());
    let file = |name: &str| authority.file(name).display().to_string();
    let (cert, key, ca) = (file("server.pem"), file("server.key"), file("ca.pem"));
    let tls = format!("tls {{ cert_file: \"{cert}\", key_file: \"{key}\", ca_file: \"{ca}\"");
    let users = "authorization { users: [{user: ann, password: p}, {user: bob, password: p}] }";
    for (around, inside) in [
        ("", ""),
        ("", "authorization { user: a, password: b }"),
        ("", "authorization { token: t }"),
        ("authorization { token: t }", ""),
        (users, ""),
        (users, "no_auth_user: bob"),
        (&format!("no_auth_user: ann\n{users}"), ""),
        (&format!("no_auth_user: ann\n{users}"), "no_auth_user: bob"),
        (&format!("{tls} }}"), ""),
        (&format!("{tls}, verify: true }}"), ""),
        (&format!("{tls} }}\nallow_non_tls: true"), ""),
        ("cluster { name: C, listen: \"127.0.0.1:-1\" }", "advertise: \"a.example:1\""),
    ] {
        let websocket = "listen: \"127.0.0.1:-1\", no_tls: true";
        let config = format!("{around}\nwebsocket {{ {websocket}\n{inside} }}");
        let (ours, original) = (Broker::with_config(1, &config), Broker::original(&config));
        assert_eq!(greeting(&ours), greeting(&original), "{config}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_are_told_of_websockets_and_others_of_others() {
    let websocket = |name: &str| {
        format!(
            "client_advertise: {name}.tcp\nwebsocket {{ listen: \"127.0.0.1:-1\", no_tls: true, \
             advertise: \"{name}.ws:7\" }}"
        )
    };
    for kinds in pairs() {
        let mut first = member(kinds[0], "a", &mut [], &websocket("a"));
        let second = member(kinds[1], "b", &mut [&mut first], &websocket("b"));
        let told = |info: &Value| {
            let urls = info["connect_urls"].as_array().cloned().unwrap_or_default();
            let mut urls: Vec<_> = urls.iter().filter_map(Value::as_str).collect();
            urls.sort_unstable();
            urls.join(" ")
        };
        let tcp = format!("a.tcp:{} b.tcp:{}", first.port(), second.port());
        for broker in [&first, &second] {
            let websocket = || async { told(&RawSocket::open(broker, "").info) == "a.ws:7 b.ws:7" };
            until(websocket).await;
            let line = Wire::ungreeted(broker).line();
            let info: Value = serde_json::from_str(&line[5..]).unwrap();
            assert_eq!(told(&info), tcp, "{kinds:?}");
            assert_eq!(info["ws_connect_urls"], Value::Null);
        }
    }
}

/// nats-server passes this too.
#[test]
fn frames_are_answered_as_nats_server_answers_them() {
    let broker = Broker::with_config(1, WEBSOCKET);
    let open = || RawSocket::open(&broker, "");
    let mut socket = open();
    socket.frame(0x89, b"hey");
    socket.expect(b"\x8a\x03hey");
    socket.frame(0x8a, b"nobody asked");
    socket.frame(0x02, b"CONNECT {\"ver");
    socket.frame(0x89, b"k");
    socket.expect(b"\x8a\x01k");
    socket.frame(0x80, b"bose\":true}\r\nPING\r\n");
    socket.expect(b"\x82\x0b+OK\r\nPONG\r\n");
    socket.frame(0x81, b"PING\r\n");
    socket.expect(b"\x82\x06PONG\r\n");
    socket.frame(0x88, b"\x03\xe8bye");
    socket.expect(b"\x88\x05\x03\xe8bye");
    socket.expect_end();
    let mut socket = open();
    socket.frame(0x88, b"\x03\xe8\xff\xfe");
    socket.expect(b"\x88\x22\x03\xefinvalid utf8 body in close frame");
    socket.expect_end();
    if is_nats_server() {
        // It says the same, but does not always get to say it before it hangs up.
        return;
    }
    let mut socket = open();
    socket.frame(0xa2, b"x");
    socket.expect(b"\x88\x1d\x03\xeaRSV2 and RSV3 must be clear");
    socket.expect_end();
    let mut socket = open();
    socket.frame(0x80, b"x");
    socket.expect(b"\x88\x1c\x03\xeainvalid continuation frame");
    socket.expect_end();
    let mut socket = open();
    socket.frame(0x82, b"bogus\r\n");
    socket.expect(b"\x82\x23-ERR 'Unknown Protocol Operation'\r\n");
}

#[tokio::test]
async fn users_and_cookies_say_who_may_use_a_websocket() {
    let config = "authorization { users: [\n\
         {user: web, password: w, allowed_connection_types: [WEBSOCKET]},\n\
         {user: plain, password: p, allowed_connection_types: STANDARD} ] }\n\
         websocket { listen: \"127.0.0.1:-1\", no_tls: true, user_cookie: u, pass_cookie: p }";
    let broker = Broker::with_config(1, config);
    let (ws, tcp) = (websocket_url(&broker), broker.url());
    for (url, user, pass, admitted) in [
        (&ws, "web", "w", true),
        (&tcp, "web", "w", false),
        (&ws, "plain", "p", false),
        (&tcp, "plain", "p", true),
    ] {
        let options = ConnectOptions::with_user_and_password(user.to_owned(), pass.to_owned());
        let outcome = within(options.connection_timeout(PATIENCE).connect(url)).await;
        assert_eq!(outcome.is_ok(), admitted, "{user} at {url}: {:?}", outcome.err());
    }
    let mut socket = RawSocket::open(&broker, "Cookie: u=web; p=w\r\n");
    socket.frame(0x82, b"CONNECT {\"verbose\":false}\r\nPING\r\n");
    socket.expect(b"\x82\x06PONG\r\n");
}

#[test]
fn a_server_that_ends_says_goodbye_to_websockets() {
    let mut broker = Broker::with_config(2, WEBSOCKET);
    let mut socket = RawSocket::open(&broker, "");
    socket.frame(0x82, b"CONNECT {\"verbose\":false}\r\nPING\r\n");
    socket.expect(b"\x82\x06PONG\r\n");
    broker.signal(Signal::TERM);
    assert_eq!(socket.take(2)[0], 0x88);
    broker.wait_for_exit();
}

/// What nats.js does over WebSocket, as far as one process can tell.
const NATS_JS: &str = r#"
import { wsconnect } from "@nats-io/nats-core";
const [alice, bob] = [await wsconnect({ servers: process.argv[2] }),
    await wsconnect({ servers: process.argv[2] })];
const inbox = alice.subscribe("big.*");
alice.subscribe("add", { callback: (_, m) => m.respond(String(m.json().a + m.json().b)) });
await alice.flush();
for (let n = 0; n < 500; n++) bob.publish("big." + n, new Uint8Array(n * 37).fill(n));
let n = 0;
for await (const m of inbox) {
    if (m.subject !== "big." + n || m.data.length !== n * 37) throw new Error(m.subject);
    if (m.data.some((byte) => byte !== n % 256)) throw new Error("payload " + n);
    if (++n === 500) break;
}
const sum = await bob.request("add", JSON.stringify({ a: 2, b: 3 }));
if (sum.string() !== "5") throw new Error(sum.string());
await alice.drain();
await bob.close();
console.log("done");
"#;

#[test]
fn nats_js_works_over_websocket() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nats-js");
    std::fs::create_dir_all(&dir).unwrap();
    let has_library = dir.join("node_modules/@nats-io/nats-core").exists()
        || Command::new("npm")
            .args(["install", "--silent", "--no-fund", "--no-audit", "@nats-io/nats-core@3"])
            .current_dir(&dir)
            .stdin(Stdio::null())
            .output()
            .is_ok_and(|done| done.status.success());
    if !has_library {
        let required = std::env::var("CI").is_ok_and(|ci| ci == "true");
        assert!(!required, "npm cannot install @nats-io/nats-core: `apt-get install nodejs npm`");
        println!("skipped: npm cannot install @nats-io/nats-core; `apt-get install nodejs npm`");
        return;
    }
    std::fs::write(dir.join("peer.mjs"), NATS_JS).unwrap();
    for &shards in shard_counts() {
        let broker = Broker::with_config(shards, WEBSOCKET);
        let done = Command::new("node")
            .args(["--experimental-websocket", "peer.mjs", &websocket_url(&broker)])
            .current_dir(&dir)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        assert_eq!(said.trim(), "done", "{}", String::from_utf8_lossy(&done.stderr));
    }
}
