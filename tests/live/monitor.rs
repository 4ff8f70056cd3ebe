//! Monitoring over HTTP, as those who watch a server see it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;

use crate::broker::wire::Wire;
use crate::broker::{Broker, is_nats_server, shard_counts};
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
        if !is_nats_server() {
            // Over HTTP nats-server does not heed it.
            let connz = json(&broker, "/connz?filter_subject=s1.*");
            assert_eq!((number(&connz, "num_connections"), number(&connz, "total")), (1, 4));
            assert_eq!(connz["connections"][0]["name"], "n1");
        }
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

/// What both servers are asked for, after the same has happened to both.
const CONNZ: &[&str] = &[
    "",
    "?auth=1",
    "?subs=1",
    "?subs=detail",
    "?state=closed&auth=1&subs=detail",
    "?state=all&auth=1&subs=1",
    "?sort=cid",
    "?sort=start",
    "?sort=subs",
    "?sort=msgs_to",
    "?sort=msgs_from",
    "?sort=bytes_from",
    "?sort=uptime",
    "?state=closed&sort=stop&limit=3",
    "?state=closed&limit=2&offset=1",
    "?state=all&limit=3&offset=2",
    "?state=all&offset=99",
    "?limit=-1&offset=-1",
    "?cid=2",
    "?cid=2&state=closed",
    "?cid=5",
    "?cid=5&state=closed",
    "?cid=5&state=all&subs=1",
    "?user=two",
    "?user=nobody&state=all&auth=1",
    "?user=app&state=closed&limit=2",
    "?user=zz",
    "?acc=$G",
    "?acc=foo&state=all",
    "?mqtt_client=x&state=all",
    "?callback=f",
    "?nonsense=1",
];

/// Requests that are refused, or say no more than that all is well.
const PLAIN: &[&str] = &[
    "/connz?limit=x",
    "/connz?offset=99999999999999999999",
    "/connz?cid=-1",
    "/connz?auth=yes",
    "/connz?subs=2",
    "/connz?state=foo",
    "/connz?sort=foo",
    "/connz?sort=CID",
    "/connz?sort=stop",
    "/connz?sort=reason&state=all",
    "/routez?subs=x",
    "/subsz?subs=detail",
    "/subsz?test=a.*&subs=1",
    "/subsz?limit=x",
    "/accountz?acc=foo",
    "/accstatz?unused=x",
    "/leafz?subs=x",
    "/gatewayz?accs=x",
    "/jsz?accounts=x",
    "/jsz?config=x",
    "/jsz?limit=x",
    "/jsz?leader-only=1",
    "/healthz",
    "/healthz?details=1",
    "/healthz?js-enabled-only=1&js-server-only=true",
    "/healthz?js-enabled=x",
    "/healthz?details=x",
    "/healthz?stream=s",
    "/healthz?stream=s&consumer=c&details=1",
    "/healthz?account=a&consumer=c",
    "/healthz?account=a&stream=s&consumer=c",
    "/ipqueuesz",
    "/ipqueuesz?all=x",
    "/raftz",
    "/nosuch",
    "/varz/",
];

/// Requests of which both answers have the same fields of the same types.
const PAGES: &[&str] = &[
    "/varz",
    "/connz?auth=1&subs=detail&state=all",
    "/connz?state=closed&subs=1",
    "/routez",
    "/subsz",
    "/subsz?subs=1",
    "/subsz?subs=1&test=orders.x&limit=1&offset=1",
    "/subsz?acc=foo",
    "/subscriptionsz",
    "/accountz",
    "/accountz?acc=$G",
    "/accstatz",
    "/accstatz?unused=1",
    "/leafz",
    "/gatewayz",
    "/jsz",
    "/jsz?acc=x&streams=1&consumers=1&offset=1",
    "/healthz",
];

#[test]
fn answers_have_the_fields_types_and_refusals_of_a_nats_server_that_runs_beside() {
    if is_nats_server() || !crate::broker::has_original() {
        return;
    }
    let config = "http: \"127.0.0.1:-1\"\nno_system_account: true\nauthorization {\n\
                  users: [{user: app, password: pw}, {user: two, password: pw}], timeout: 60 }\n";
    let original = Broker::original(config);
    let _its_clients = clients_of_all_fates(&original);
    for &shards in shard_counts() {
        let ours = Broker::with_config(shards, config);
        let _clients = clients_of_all_fates(&ours);
        for query in CONNZ {
            let path = format!("/connz{query}");
            let (theirs, ours) = (json(&original, &path), json(&ours, &path));
            assert_eq!(told_of(&ours), told_of(&theirs), "{path}");
        }
        // In no order among those with the same.
        let reasons = |broker: &Broker| -> Vec<String> {
            let connz = json(broker, "/connz?state=closed&sort=reason");
            let conns = connz["connections"].as_array().unwrap().iter();
            conns.map(|conn| conn["reason"].to_string()).collect()
        };
        assert_eq!(reasons(&ours), reasons(&original));
        for path in PLAIN {
            let (status, head, body) = get(&original, path);
            let (our_status, our_head, our_body) = get(&ours, path);
            assert_eq!((our_status, our_body), (status, body), "{path}");
            assert_eq!(content_type(&our_head), content_type(&head), "{path}");
        }
        for path in PAGES {
            let (theirs, ours) = (json(&original, path), json(&ours, path));
            let (mut theirs, mut ours) = (shape(&theirs), shape(&ours));
            // What only they have, what only we have, and counts by names that differ.
            for shape in [&mut theirs, &mut ours] {
                let mine = ["/shardcast", "/http_req_stats/"];
                shape.retain(|field, _| !mine.iter().any(|mine| field.starts_with(mine)));
            }
            assert_eq!(ours, theirs, "{path}");
        }
    }
}

/// Clients that stay, and clients that have come to all kinds of ends.
fn clients_of_all_fates(broker: &Broker) -> Vec<Wire> {
    let connected = |name: &str, user: &str, more: &str| {
        let mut wire = Wire::open(broker);
        let connect = format!(
            "CONNECT {{\"verbose\":false,\"name\":\"{name}\",\"user\":\"{user}\",\
             \"pass\":\"pw\"{more}}}\r\n"
        );
        wire.send(connect.as_bytes());
        wire
    };
    let mut stay = vec![connected("a", "app", ",\"lang\":\"x\",\"version\":\"1.2\"")];
    stay[0].send(b"SUB orders.* 1\r\nSUB work.> pool 2\r\nUNSUB 2 5\r\nPUB nobody 1\r\nx\r\n");
    stay[0].sync();
    stay.push(connected("b", "two", ""));
    stay[1].send(b"SUB orders.x 9\r\nSUB orders.y 10\r\nSUB orders.z 11\r\n");
    stay[1].send(b"PUB work.b 0\r\n\r\nPUB nobody 1\r\nx\r\nPUB nobody 2\r\nxx\r\n");
    stay[1].sync();
    stay[0].expect(b"MSG work.b 2 0\r\n\r\n");
    stay.push(connected("c", "app", ""));
    stay[2].send(b"PUB orders.x 5\r\nhello\r\nPUB orders.x 5\r\nhello\r\n");
    stay[2].sync();
    for (wire, sid) in stay[..2].iter_mut().zip([1, 9]) {
        let message = format!("MSG orders.x {sid} 5\r\nhello\r\n");
        wire.expect(message.repeat(2).as_bytes());
    }
    let mut ends = 0;
    let mut end = |wire: Wire| {
        drop(wire);
        ends += 1;
        // The next connection begins after this one's end, on both.
        while number(&json(broker, "/connz?state=closed"), "total") < ends {}
    };
    let too_long = format!("SUB {} 1\r\n", "a".repeat(5000));
    for (name, user, more, last_words) in [
        ("denied", "nobody", "", "PING\r\n"),
        ("unknown", "app", "", "FOO\r\n"),
        ("big", "app", "", "PUB x 99999999\r\n"),
        ("long", "app", "", too_long.as_str()),
        ("proto", "app", ",\"protocol\":7", "PING\r\n"),
        ("noresp", "app", ",\"no_responders\":true,\"headers\":false", "PING\r\n"),
        ("badjson", "app", "", "CONNECT {x\r\n"),
    ] {
        let mut wire = connected(name, user, more);
        wire.send(last_words.as_bytes());
        wire.drain_to_end();
        end(wire);
    }
    let mut leaves = connected("leaves", "app", "");
    leaves.send(b"SUB gone.* 3\r\nSUB gone2 q 4\r\nPUB nobody 2\r\nhi\r\n");
    leaves.sync();
    end(leaves);
    let mut silent = Wire::open(broker);
    silent.send(b"PING\r\n");
    silent.drain_to_end();
    end(silent);
    stay
}

/// What an answer to /connz tells that is the same on every run.
fn told_of(connz: &Value) -> Vec<String> {
    let told = ["num_connections", "total", "offset", "limit"].map(|field| &connz[field]);
    let mut all = vec![format!("{told:?}")];
    let fields = [
        "cid",
        "kind",
        "type",
        "ip",
        "reason",
        "in_msgs",
        "out_msgs",
        "in_bytes",
        "out_bytes",
        "subscriptions",
        "name",
        "lang",
        "version",
        "authorized_user",
        "account",
        "name_tag",
    ];
    let none = Vec::new();
    for conn in connz["connections"].as_array().unwrap_or(&none) {
        let told = fields.map(|field| format!("{field}: {}", conn[field]));
        let lists = ["subscriptions_list", "subscriptions_list_detail"].map(|field| {
            let list = conn[field].as_array().unwrap_or(&none).iter().map(Value::to_string);
            let mut list: Vec<String> = list.collect();
            list.sort_unstable();
            list
        });
        all.push(format!("{told:?} {lists:?}"));
    }
    all
}

/// The type of each field, by its path; those of all elements of an array are one.
pub(crate) fn shape(value: &Value) -> BTreeMap<String, &'static str> {
    fn visit(path: &str, value: &Value, shape: &mut BTreeMap<String, &'static str>) {
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::String(_) => "text",
            Value::Number(number) if number.is_f64() => "fraction",
            Value::Number(_) => "number",
            Value::Array(elements) => {
                elements.iter().for_each(|element| visit(&format!("{path}[]"), element, shape));
                "array"
            }
            Value::Object(fields) => {
                fields.iter().for_each(|(name, field)| {
                    visit(&format!("{path}/{name}"), field, shape);
                });
                "object"
            }
        };
        // These may have a fraction, or none for the moment.
        let loose = ["/cpu", "/cache_hit_rate", "/avg_fanout"];
        let kind = if loose.iter().any(|end| path.ends_with(end)) { "number" } else { kind };
        shape.insert(path.to_owned(), kind);
    }
    let mut all = BTreeMap::new();
    visit("", value, &mut all);
    all
}

fn content_type(head: &str) -> &str {
    head.lines().find(|line| line.starts_with("content-type:")).expect("a content type")
}

#[test]
fn ended_connections_are_shown_up_to_a_number() {
    for &shards in shard_counts() {
        let broker = Broker::with_config(shards, "http: 127.0.0.1:-1\nmax_closed_clients: 7\n");
        for ended in 1..=20 {
            drop(Wire::connect(&broker));
            while number(&json(&broker, "/connz?state=closed"), "total") < ended.min(7) {}
        }
        let last = |connz: &Value| {
            let conns = connz["connections"].as_array().unwrap();
            number(conns.last().unwrap(), "cid")
        };
        // On nats-server the server itself may have taken some numbers.
        let connz = loop {
            let connz = json(&broker, "/connz?state=closed");
            if last(&connz) >= 20 {
                break connz;
            }
        };
        assert_eq!(number(&connz, "total"), 7);
        let conns = connz["connections"].as_array().unwrap();
        assert!(conns.iter().all(|conn| conn["reason"] == "Client Closed"), "{connz:#}");
        assert!(conns.iter().all(|conn| conn["stop"].is_string()), "{connz:#}");
        assert_eq!(number(&conns[0], "cid"), last(&connz) - 6);
    }
}

#[test]
fn a_slow_client_is_counted_and_named() {
    for &shards in shard_counts() {
        let config = "http: 127.0.0.1:-1\nmax_pending: 100000\nmax_payload: 60000\n";
        let broker = Broker::with_config(shards, config);
        let mut slow = Wire::open_narrow(&broker);
        slow.send(b"CONNECT {\"verbose\":false,\"name\":\"slow\"}\r\nSUB a 1\r\n");
        slow.sync();
        let mut publisher = Wire::connect(&broker);
        let message = [b"PUB a 50000\r\n", &[b'x'; 50_000][..], b"\r\n"].concat();
        let varz = loop {
            publisher.send(&message.repeat(20));
            let varz = json(&broker, "/varz");
            if number(&varz, "slow_consumers") > 0 {
                break varz;
            }
        };
        assert_eq!(varz["slow_consumers"], 1, "{varz:#}");
        assert_eq!(varz["slow_consumer_stats"]["clients"], 1);
        assert_eq!(reason_of(&broker, "slow"), "Slow Consumer (Pending Bytes)");
        let statz = json(&broker, "/accstatz");
        assert_eq!(statz["account_statz"][0]["slow_consumers"], 1);
    }
}

#[test]
fn a_stale_client_is_counted_and_named() {
    for &shards in shard_counts() {
        let config = "http: 127.0.0.1:-1\nping_interval: \"200ms\"\nping_max: 1\n";
        let broker = Broker::with_config(shards, config);
        let mut stale = Wire::open(&broker);
        stale.send(b"CONNECT {\"verbose\":false,\"name\":\"stale\"}\r\n");
        // It never answers a PING.
        stale.drain_to_end();
        let varz = json(&broker, "/varz");
        assert_eq!(varz["stale_connections"], 1, "{varz:#}");
        assert_eq!(varz["stale_connection_stats"]["clients"], 1);
        assert_eq!(reason_of(&broker, "stale"), "Stale Connection");
    }
}

/// Why the connection of that name has ended.
fn reason_of(broker: &Broker, name: &str) -> String {
    let closed = json(broker, "/connz?state=closed");
    let conns = closed["connections"].as_array().unwrap();
    let conn = conns.iter().find(|conn| conn["name"] == name).expect(name);
    conn["reason"].as_str().unwrap().to_owned()
}

#[test]
fn varz_shows_shards_that_add_up() {
    if is_nats_server() {
        return;
    }
    for &shards in shard_counts() {
        let broker = Broker::start(shards, ARGS);
        let mut wires: Vec<Wire> = (0..9).map(|_| Wire::connect(&broker)).collect();
        for wire in &mut wires {
            wire.send(b"SUB a 1\r\n");
            wire.sync();
        }
        wires[0].send(b"PUB a 5\r\nhello\r\n");
        wires.iter_mut().for_each(|wire| wire.expect(b"MSG a 1 5\r\nhello\r\n"));
        wires[0].sync();
        let varz = json(&broker, "/varz");
        let all = varz["shardcast"]["shards"].as_array().unwrap();
        assert_eq!(all.len(), shards as usize);
        for field in ["connections", "subscriptions", "in_msgs", "out_msgs", "out_bytes"] {
            let sum: i64 = all.iter().map(|shard| number(shard, field)).sum();
            assert_eq!(sum, number(&varz, field), "{field}");
        }
        for (at, shard) in all.iter().enumerate() {
            assert_eq!(shard["shard"], at);
            assert!(shard["pending_bytes"].is_u64() && shard["waiting_records"].is_u64());
        }
        let tier = varz["shardcast"]["tier"].as_str().unwrap();
        assert!(["base", "rings", "taskrun"].contains(&tier), "{tier}");
    }
}

#[test]
fn pages_are_below_the_base_path_and_nowhere_else() {
    let config = "http_base_path: \"/ops//nats/\"\nhttp: 127.0.0.1:-1\n";
    let broker = Broker::with_config(2, config);
    assert_eq!(json(&broker, "/ops/nats/varz")["http_base_path"], "/ops//nats/");
    assert_eq!(get(&broker, "/ops/nats/healthz").0, 200);
    for path in ["/varz", "/", "/ops/varz", "/ops/natsvarz", "/ops", "/ops/nats/nats/varz"] {
        assert_eq!(get(&broker, path).0, 404, "{path}");
    }
    if !is_nats_server() {
        // Its links are relative, so it lies behind the last slash.
        let (status, head, _) = get(&broker, "/ops/nats");
        assert!(status == 307 && head.contains("location: nats/"), "{head}");
        assert!(get(&broker, "/ops/nats/").2.contains("./varz"));
    }
}

#[test]
fn watchers_that_say_nothing_or_nonsense_or_never_read_disturb_nobody() {
    let broker = Broker::start(2, ARGS);
    // The broker is usable, and so is its monitoring, whatever the others do.
    let all_is_well = || {
        Wire::connect(&broker).sync();
        assert_eq!(get(&broker, "/varz").0, 200);
    };
    let mut clients: Vec<Wire> = (0..300).map(|_| Wire::connect(&broker)).collect();
    let nonsense: [&[u8]; 8] = [
        b"\x00\xff\r\n\r\n",
        b"GET /var",
        b"GET /varz HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\nxx",
        b"POST /varz HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"PING\r\nCONNECT {}\r\n",
        b"GET \xe2\x82\xac\x00 HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ];
    let mut odd: Vec<TcpStream> = Vec::new();
    for words in nonsense {
        let mut stream = watch(&broker);
        stream.write_all(words).unwrap();
        odd.push(stream);
    }
    // A head without an end; it may be cut off while it is written.
    let mut endless = watch(&broker);
    let _ = endless.write_all(b"GET /varz HTTP/1.1\r\nx: ");
    let _ = endless.write_all(&[b'y'; 200_000]);
    odd.push(endless);
    all_is_well();
    // Much is asked for, and not read.
    let before_kib = broker.resident_kib();
    for _ in 0..20 {
        let mut greedy = watch(&broker);
        let ask = b"GET /connz?subs=detail&limit=100000 HTTP/1.1\r\nHost: x\r\n\r\n".repeat(40);
        // It is not taken when nothing is read for it.
        greedy.set_nonblocking(true).unwrap();
        let _ = greedy.write(&ask);
        odd.push(greedy);
    }
    all_is_well();
    for client in &mut clients {
        client.sync();
    }
    let grown_kib = broker.resident_kib().saturating_sub(before_kib);
    assert!(is_nats_server() || grown_kib < 64 * 1024, "{grown_kib} KiB for those who do not read");
}

#[test]
fn large_answers_that_nobody_reads_do_not_pile_up() {
    if is_nats_server() {
        return;
    }
    let broker = Broker::start(2, ARGS);
    let subscribers: Vec<Wire> = (0..40).map(|_| subscriber_of_much(&broker)).collect();
    let ask = b"GET /connz?subs=detail HTTP/1.0\r\n\r\n";
    let mut greedy: Vec<TcpStream> = (0..25).map(|_| watch(&broker)).collect();
    for watcher in &mut greedy {
        watcher.write_all(ask).unwrap();
    }
    // What is small is answered, and what is large when there is room again.
    assert_eq!(get(&broker, "/varz").0, 200);
    let mut answers = (0..25).map(|_| get(&broker, "/connz?subs=detail"));
    let refused = answers.find(|(status, ..)| *status == 503).expect("there is a bound");
    assert!(refused.2.contains("limit="), "{}", refused.2);
    greedy.clear();
    while get(&broker, "/connz?subs=detail").0 != 200 {}
    drop(subscribers);
}

/// A client whose subscriptions take more than 100 kB to tell.
fn subscriber_of_much(broker: &Broker) -> Wire {
    let mut wire = Wire::connect(broker);
    let subs = (0..100).map(|sid| format!("SUB {}.{sid} {sid}\r\n", "x".repeat(1500)));
    wire.send(subs.collect::<String>().as_bytes());
    wire.sync();
    wire
}

#[test]
fn many_watchers_wait_for_one_another_and_leave_clients_alone() {
    let broker = Broker::start(2, ARGS);
    let files_before = broker.open_files();
    let mut silent: Vec<TcpStream> = (0..200).map(|_| watch(&broker)).collect();
    let mut client = Wire::connect(&broker);
    client.send(b"SUB a 1\r\nPUB a 2\r\nhi\r\n");
    client.expect(b"MSG a 1 2\r\nhi\r\n");
    if !is_nats_server() {
        let files = broker.open_files();
        assert!(files < files_before + 100, "{files} open files, {files_before} before");
    }
    // Who waits is served when others leave.
    let mut last = watch(&broker);
    silent.clear();
    last.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    last.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with(r#"{"status":"ok"}"#), "{answer}");
}

#[test]
fn a_monitoring_port_in_use_is_fatal() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut command = std::process::Command::new(crate::broker::server_command());
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
    let line = banner.lines().find(|line| line.contains(" monitor on "));
    let port = line.and_then(|line| line.rsplit(':').next()).and_then(|port| port.parse().ok());
    port.unwrap_or_else(|| panic!("no monitoring port in\n{banner}"))
}

fn watch(broker: &Broker) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", http_port(broker))).unwrap();
    stream.set_read_timeout(Some(crate::broker::PATIENCE)).unwrap();
    stream
}

#[test]
fn monitoring_over_tls_shows_the_certificate_of_the_clients_and_asks_for_none() {
    let dir = tempfile::tempdir().unwrap();
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let file = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (cert, key) =
        (file("cert.pem", own.cert.pem()), file("key.pem", own.signing_key.serialize_pem()));
    let tls = format!(
        "tls {{ cert_file: {cert:?}, key_file: {key:?}, ca_file: {cert:?}, verify: true }}\n"
    );
    let broker = Broker::with_config(2, &format!("https: \"127.0.0.1:-1\"\n{tls}"));
    assert!(broker.banner().contains("Starting https monitor on 127.0.0.1:"));
    // Nonsense and silence in place of a handshake.
    let _silent = watch(&broker);
    let mut clear = watch(&broker);
    clear.write_all(b"GET /varz HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = clear.read_to_end(&mut answer);
    assert!(!answer.windows(9).any(|bytes| bytes == b"server_id"));

    let mut roots = rustls::RootCertStore::empty();
    roots.add(own.cert.der().clone()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let server = "localhost".try_into().unwrap();
    let client = rustls::ClientConnection::new(std::sync::Arc::new(config), server).unwrap();
    let mut stream = rustls::StreamOwned::new(client, watch(&broker));
    stream.write_all(b"GET /varz HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.0 200") || head.starts_with("HTTP/1.1 200"), "{head}");
    let varz: Value = serde_json::from_str(body).unwrap();
    // There it is the port as configured.
    assert!(is_nats_server() || varz["https_port"] == http_port(&broker));
    assert_eq!(varz["http_port"], 0);

    for (config, reason) in [
        ("https: 127.0.0.1:-1\n".to_owned(), "ert"),
        (format!("http: 127.0.0.1:-1\nhttps: 127.0.0.1:-1\n{tls}"), "both"),
    ] {
        let path = file("refused.conf", config);
        let mut command = std::process::Command::new(crate::broker::server_command());
        let output = command.args(["-a", "127.0.0.1", "-p", "-1", "-c", &path]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(reason) && !output.status.success(), "{said}");
    }
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
