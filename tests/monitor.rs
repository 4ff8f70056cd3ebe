//! Monitoring over HTTP, as those who watch a server see it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod broker;

use std::io::{Read, Write};
use std::net::TcpStream;

use broker::wire::Wire;
use broker::{Broker, is_nats_server, shard_counts};
use rustix::process::Signal;
use serde_json::Value;

const ARGS: &[&str] = &["-m", "-1"];

#[test]
fn a_healthy_server_says_so_and_one_that_leaves_says_that() {
    for &shards in shard_counts() {
        let mut broker = Broker::start(shards, ARGS);
        // A lame duck lives as long as it has clients.
        let wire = Wire::connect(&broker);
        let (status, head, body) = get(&broker, "/healthz");
        assert_eq!((status, body.as_str()), (200, r#"{"status":"ok"}"#));
        assert!(head.contains("content-type: application/json"), "{head}");
        assert!(head.contains("access-control-allow-origin: *"), "{head}");
        broker.signal(Signal::USR2);
        broker.wait_for_line("Entering lame duck mode");
        let (status, body) = loop {
            let (status, _, body) = get(&broker, "/healthz");
            if status != 200 {
                break (status, body);
            }
        };
        assert_eq!(status, 500);
        assert!(body.starts_with(r#"{"status":"error","error":""#), "{body}");
        let (_, _, body) = get(&broker, "/healthz?details=1");
        assert!(body.contains(r#""errors":[{"type":"CONNECTION","#), "{body}");
        drop(wire);
    }
}

#[test]
fn varz_counts_what_goes_in_and_out() {
    for &shards in shard_counts() {
        let broker = Broker::start(shards, ARGS);
        let before = json(&broker, "/varz");
        let mut publisher = Wire::connect(&broker);
        let mut subscribers: Vec<Wire> = (0..3).map(|_| Wire::connect(&broker)).collect();
        for subscriber in &mut subscribers {
            subscriber.send(b"SUB a 1\r\n");
            subscriber.sync();
        }
        publisher.send(b"PUB a 5\r\nhello\r\nPUB nobody 2\r\nhi\r\n");
        for subscriber in &mut subscribers {
            subscriber.expect(b"MSG a 1 5\r\nhello\r\n");
        }
        publisher.sync();
        let after = json(&broker, "/varz");
        let grown = |field: &str| number(&after, field) - number(&before, field);
        assert_eq!((grown("in_msgs"), grown("in_bytes")), (2, 7));
        assert_eq!((grown("out_msgs"), grown("out_bytes")), (3, 15));
        assert_eq!((grown("connections"), grown("total_connections")), (4, 4));
        assert_eq!(grown("subscriptions"), 3);
        assert_eq!(after["port"], broker.port());
        assert_eq!(after["http_req_stats"]["/varz"], 2);
        assert_eq!(number(&after, "max_payload"), 1_048_576);
        assert!(number(&after, "mem") > 1_000_000, "{after}");
    }
}

#[test]
fn connz_shows_each_client_by_name_with_its_subscriptions() {
    for &shards in shard_counts() {
        let broker = Broker::start(shards, ARGS);
        let mut wires: Vec<Wire> = (0..4).map(|_| Wire::open(&broker)).collect();
        for (at, wire) in wires.iter_mut().enumerate() {
            let connect = format!(
                "CONNECT {{\"verbose\":false,\"name\":\"n{at}\",\"lang\":\"rust\"}}\r\n\
                 SUB s{at}.> q 7\r\nUNSUB 7 {}\r\n",
                at + 10
            );
            wire.send(connect.as_bytes());
            wire.sync();
        }
        wires[2].send(b"PUB s1.x 3\r\nabc\r\n");
        wires[1].expect(b"MSG s1.x 7 3\r\nabc\r\n");
        let connz = json(&broker, "/connz?subs=detail");
        assert_eq!((number(&connz, "num_connections"), number(&connz, "total")), (4, 4));
        let conns = connz["connections"].as_array().unwrap();
        for (at, conn) in conns.iter().enumerate() {
            assert_eq!(conn["name"], format!("n{at}"), "{connz:#}");
            assert_eq!((&conn["kind"], &conn["ip"]), (&"Client".into(), &"127.0.0.1".into()));
            let sub = &conn["subscriptions_list_detail"][0];
            assert_eq!((&sub["sid"], &sub["qgroup"]), (&"7".into(), &"q".into()));
            assert_eq!(sub["max"], at + 10);
            assert_eq!((&sub["subject"], &sub["cid"]), (&format!("s{at}.>").into(), &conn["cid"]));
        }
        assert_eq!((number(&conns[2], "in_bytes"), number(&conns[1], "out_bytes")), (3, 3));
        assert_eq!(conns[1]["subscriptions_list_detail"][0]["msgs"], 1);

        let cid = number(&conns[3], "cid");
        let connz = json(&broker, &format!("/connz?cid={cid}&subs=1"));
        assert_eq!(connz["connections"][0]["name"], "n3");
        assert_eq!(connz["connections"][0]["subscriptions_list"][0], "s3.>");
        assert_eq!((number(&connz, "num_connections"), number(&connz, "total")), (1, 4));
        let connz = json(&broker, "/connz?sort=msgs_from&limit=1");
        assert_eq!(connz["connections"][0]["name"], "n2");
        let connz = json(&broker, "/connz?offset=3");
        assert_eq!(connz["connections"][0]["name"], "n3");
        assert_eq!(json(&broker, "/connz?state=closed")["num_connections"], 0);
        let subsz = json(&broker, "/subsz?subs=1&test=s2.y");
        let listed = subsz["subscriptions_list"].as_array().unwrap();
        assert!(listed.iter().any(|sub| sub["subject"] == "s2.>"), "{subsz:#}");
        assert!(number(&subsz, "num_subscriptions") >= 4);
    }
}

#[test]
fn more_connections_than_fit_one_page_are_all_shown() {
    for &shards in shard_counts() {
        let broker = Broker::start(shards, ARGS);
        let wires: Vec<Wire> = (0..700).map(|_| Wire::connect(&broker)).collect();
        let connz = json(&broker, "/connz?limit=2000");
        let mut cids: Vec<i64> =
            connz["connections"].as_array().unwrap().iter().map(|c| number(c, "cid")).collect();
        cids.dedup();
        assert_eq!(cids.len(), wires.len());
        assert!(cids.is_sorted());
    }
}

#[test]
fn a_bad_parameter_is_named_and_an_unknown_path_is_not_found() {
    let broker = Broker::start(2, ARGS);
    for (path, reason) in [
        (
            "/connz?limit=foo",
            "Error decoding int for 'limit': strconv.Atoi: parsing \"foo\": invalid syntax",
        ),
        ("/connz?sort=foo", "invalid sorting option: foo"),
        ("/connz?sort=stop", "sort by stop only valid on closed connections"),
        ("/connz?state=foo", "Error decoding state for foo"),
        ("/subsz?test=a..b", "invalid test subject, must be valid publish subject: a..b"),
        (
            "/healthz?details=x",
            "Error decoding boolean for 'details': strconv.ParseBool: parsing \"x\": \
             invalid syntax",
        ),
    ] {
        let (status, head, body) = get(&broker, path);
        assert_eq!((status, body.as_str()), (400, reason), "{path}");
        assert!(head.contains("content-type: text/plain"), "{head}");
    }
    for path in ["/nosuch", "/varz/", "/connzz"] {
        let (status, _, body) = get(&broker, path);
        assert_eq!((status, body.as_str()), (404, "404 page not found\n"), "{path}");
    }
    let (status, _, body) = get(&broker, "/");
    assert!(status == 200 && body.contains("<a href") && body.contains("./varz"), "{body}");
}

#[test]
fn bodies_have_the_fields_of_nats_server_in_its_order() {
    let broker = Broker::start(2, ARGS);
    let (_, _, body) = get(&broker, "/varz");
    let wanted = [
        "server_id",
        "version",
        "host",
        "port",
        "http_host",
        "http_port",
        "max_payload",
        "cluster",
        "write_deadline",
        "start",
        "uptime",
        "mem",
        "cpu",
        "connections",
        "in_msgs",
        "out_client_bytes",
        "subscriptions",
        "http_req_stats",
        "config_digest",
        "slow_consumer_stats",
        "disk_io_wait_stats",
    ];
    let places: Vec<usize> =
        wanted.iter().map(|field| body.find(&format!("\n  \"{field}\": ")).expect(field)).collect();
    assert!(places.is_sorted(), "{body}");
}

#[test]
fn a_watcher_that_says_nothing_or_nonsense_disturbs_nobody() {
    let broker = Broker::start(2, ARGS);
    let mut silent: Vec<TcpStream> = (0..20).map(|_| watch(&broker)).collect();
    for (at, stream) in silent.iter_mut().enumerate() {
        let nonsense: &[u8] = if at % 2 == 0 { b"\x00\xff\r\n\r\n" } else { b"GET /var" };
        stream.write_all(nonsense).unwrap();
    }
    Wire::connect(&broker).sync();
    assert_eq!(get(&broker, "/varz").0, 200);
}

#[test]
fn a_monitoring_port_in_use_is_fatal() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut command = std::process::Command::new(broker::server_command());
    let output = command.args(["-a", "127.0.0.1", "-p", "-1", "-m", &port]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let wanted = "[FTL] Can't start monitoring: can't listen to the monitor port: ";
    assert!(
        said.contains(wanted) && said.contains("address already in use")
            || said.contains("Address already in use"),
        "{said}"
    );
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn the_ports_file_names_the_monitoring_and_the_file_can_ask_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let config = format!(
        "http: \"127.0.0.1:-1\"\nports_file_dir: {:?}\nserver_tags: [a, b]\n",
        dir.path().display().to_string()
    );
    let broker = Broker::with_config(2, &config);
    let url = format!("http://127.0.0.1:{}", http_port(&broker));
    // Written before the server says that it is ready, by ours; the original may take longer.
    let ports = (0..1_000_000).find_map(|_| {
        std::thread::yield_now();
        let file = std::fs::read_dir(dir.path()).unwrap().next()?.unwrap();
        let text = std::fs::read_to_string(file.path()).ok()?;
        serde_json::from_str::<Value>(&text).ok()
    });
    assert_eq!(ports.unwrap()["monitoring"][0], url);
    assert!(is_nats_server() || json(&broker, "/varz")["tags"][1] == "b");
}

fn number(json: &Value, field: &str) -> i64 {
    json[field].as_i64().unwrap_or_else(|| panic!("{field} is no number in {json:#}"))
}

fn json(broker: &Broker, path: &str) -> Value {
    let (status, head, body) = get(broker, path);
    assert_eq!(status, 200, "{path}: {head}{body}");
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error} in {body}"))
}

fn http_port(broker: &Broker) -> u16 {
    let banner = broker.banner();
    let line = banner.lines().find(|line| line.contains("Starting http monitor on "));
    let port = line.and_then(|line| line.rsplit(':').next()).and_then(|port| port.parse().ok());
    port.unwrap_or_else(|| panic!("no monitoring port in\n{banner}"))
}

fn watch(broker: &Broker) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", http_port(broker))).unwrap();
    stream.set_read_timeout(Some(broker::PATIENCE)).unwrap();
    stream
}

/// Status, head in lower case, and body of the answer to a GET.
fn get(broker: &Broker, path: &str) -> (u16, String, String) {
    let mut stream = watch(broker);
    let request = format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.expect("a status"), head.to_ascii_lowercase(), body.to_owned())
}
