//! Message tracing (`Nats-Trace-Dest`, `Nats-Trace-Only`), beside nats-server and mixed with it.

use std::collections::BTreeMap;

use crate::broker::wire::Wire;
use crate::broker::{Broker, has_original, is_nats_server, shard_counts};
use serde_json::{Value, json};

const DEST: (&str, &str) = ("Nats-Trace-Dest", "tr.x");
const ONLY: (&str, &str) = ("Nats-Trace-Only", "true");
const PARENT: (&str, &str) =
    ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");

type Headers = &'static [(&'static str, &'static str)];

const CONFIG: &str = r#"
server_name: S
accounts {
    A {
        users: [
            {user: a, password: x}
            {
                user: some, password: x
                permissions: {publish: {deny: "no.>"}, subscribe: {deny: "deaf.x"}}
            }
        ]
        exports: [
            {stream: "st.>"}, {stream: "st2.>"}, {service: "svc.>"}
            {service: "asvc.>", allow_trace: true}
        ]
        mappings: {"m.a": "m.b", lost: [{dest: lost, weight: 0%}]}
    }
    B {
        users: [{user: b, password: x}]
        msg_trace: {dest: tr.rule, sampling: 100}
        imports: [
            {stream: {account: A, subject: "st.>"}}
            {stream: {account: A, subject: "st2.>"}, allow_trace: true}
            {service: {account: A, subject: "svc.x"}, to: "b.svc"}
            {service: {account: A, subject: "asvc.x"}, to: "b.asvc"}
        ]
    }
}
"#;

/// A client that shows what it got.
struct Peer(Wire);

impl Peer {
    fn new(broker: &Broker, user: &str, name: &str) -> Self {
        let mut wire = Wire::open(broker);
        let connect = json!({
            "user": user, "pass": "x", "name": name, "headers": true, "no_responders": true,
            "verbose": false, "echo": name != "quiet",
        });
        wire.send(format!("CONNECT {connect}\r\n").as_bytes());
        let mut peer = Self(wire);
        peer.sync();
        peer
    }

    fn subscribe(mut self, subscriptions: &str) -> Self {
        for (sid, words) in (1..).zip(subscriptions.split(',')) {
            self.0.send(format!("SUB {words} {sid}\r\n").as_bytes());
        }
        self.sync();
        self
    }

    /// What came up to the answer to a PING, line by line.
    fn sync(&mut self) -> Vec<String> {
        self.0.send(b"PING\r\n");
        let mut lines = Vec::new();
        loop {
            match self.0.line() {
                line if line == "PONG" => return lines,
                line => lines.push(line),
            }
        }
    }

    fn publish(&mut self, subject: &str, reply: &str, headers: &[(&str, &str)]) {
        let lines: String =
            headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let block = format!("NATS/1.0\r\n{lines}\r\n");
        let (len, all) = (block.len(), block.len() + 2);
        self.0.send(format!("HPUB {subject} {reply} {len} {all}\r\n{block}hi\r\n").as_bytes());
    }

    /// The next trace, and the subject that it came on.
    fn trace(&mut self) -> (String, Value) {
        loop {
            let line = self.0.line();
            let Some(rest) = line.strip_prefix("MSG ") else { continue };
            let subject = rest.split(' ').next().unwrap_or_default().to_owned();
            let text = self.0.line();
            return (subject, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}")));
        }
    }
}

/// A trace without what differs from one run to another; deliveries have no order.
fn comparable(trace: &Value) -> Value {
    let mut trace = trace.clone();
    trace["server"] = trace["server"]["name"].take();
    let events = trace["events"].as_array_mut().expect("a trace has events");
    for event in events.iter_mut() {
        let event = event.as_object_mut().expect("an event has fields");
        let at = event.remove("ts").and_then(|ts| ts.as_str().map(str::to_owned));
        assert!(at.is_some_and(|at| at.starts_with("20") && at.ends_with('Z')), "{event:?}");
        event.remove("cid");
        event.remove("shard");
    }
    events.sort_by_key(|event| {
        let text = |field: &str| event[field].to_string();
        (event["type"] == "eg").then(|| (text("name"), text("sub"), text("queue")))
    });
    trace
}

/// The same of a line, in which `_R_` and a header block's length stand for those of any server.
fn without_answers(line: &str) -> String {
    let words = line.split(' ').map(|word| if word.starts_with("_R_.") { "_R_" } else { word });
    let words: Vec<&str> = words.collect();
    match words[..] {
        ["HMSG", subject, sid, "_R_", ..] => format!("HMSG {subject} {sid} _R_"),
        ["HMSG", subject, sid, _, _] => format!("HMSG {subject} {sid}"),
        ["Nats-Request-Info:", ..] => "Nats-Request-Info:".to_owned(),
        _ => words.join(" "),
    }
}

/// What is told and what is delivered of messages of all sorts.
fn everything(broker: &Broker) -> Vec<(String, Vec<Value>, Vec<String>)> {
    let mut tracers = ["a", "b"].map(|user| Peer::new(broker, user, "tracer").subscribe("tr.>"));
    let plain = "foo,foo,q.* g,q.x,m.b,deaf.>,svc.>,asvc.>";
    let mut peers = BTreeMap::from([
        ("a", Peer::new(broker, "a", "a")),
        ("plain", Peer::new(broker, "a", "plain").subscribe(plain)),
        ("some", Peer::new(broker, "some", "some").subscribe("deaf.>,foo")),
        ("b", Peer::new(broker, "b", "b").subscribe("st.>,st2.*")),
        ("quiet", Peer::new(broker, "a", "quiet").subscribe("foo,rep")),
    ]);
    let cases: &[(&str, &str, &str, Headers)] = &[
        ("a", "foo", "", &[DEST]),
        ("a", "foo", "", &[DEST, ONLY]),
        ("a", "foo", "", &[DEST, ("Nats-Trace-Only", "ON")]),
        ("a", "foo", "", &[DEST, ("Nats-Trace-Only", "1")]),
        ("a", "foo", "", &[DEST, ("Nats-Trace-Only", "yes")]),
        ("a", "foo", "", &[ONLY]),
        ("a", "foo", "", &[("nats-trace-dest", "tr.x")]),
        ("a", "foo", "", &[("Nats-Trace-Dest", "tr.*"), ONLY]),
        ("a", "foo", "", &[("Nats-Trace-Dest", ""), ONLY]),
        ("a", "foo", "", &[DEST, ONLY, ("Nats-Trace-Origin-Account", "Q")]),
        ("a", "foo", "", &[("Nats-Trace-Dest", "trace disabled"), ONLY]),
        ("a", "foo", "", &[("X", "1"), ("A", "\"<&>\\\t"), DEST, ("X", "2"), ("E", "")]),
        ("a", "foo", "rep", &[DEST, ONLY]),
        ("a", "nobody", "", &[DEST]),
        ("quiet", "foo", "", &[DEST]),
        ("quiet", "nobody", "rep", &[DEST, ONLY]),
        ("a", "q.x", "", &[DEST]),
        ("a", "q.x", "", &[DEST, ONLY]),
        ("a", "m.a", "", &[DEST]),
        ("a", "lost", "", &[DEST]),
        ("a", "deaf.x", "", &[DEST]),
        ("some", "no.x", "", &[DEST]),
        ("some", "foo", "_R_.x", &[DEST, ONLY]),
        ("a", "st.a", "", &[DEST]),
        ("a", "st.a", "", &[DEST, ONLY]),
        ("a", "st2.a", "", &[DEST]),
        ("a", "st2.a", "", &[DEST, ONLY]),
        ("b", "b.svc", "rep", &[DEST]),
        ("b", "b.svc", "rep", &[DEST, ONLY]),
        ("b", "b.asvc", "rep", &[DEST]),
        ("b", "b.asvc", "", &[DEST, ONLY]),
        ("b", "st.b", "", &[PARENT]),
        ("b", "st.b", "", &[PARENT, ONLY]),
        ("b", "st.b", "", &[("TraceParent", "00-x-y-00")]),
        ("a", "foo", "", &[PARENT]),
    ];
    let mut found = Vec::new();
    for (from, subject, reply, headers) in cases {
        let publisher = peers.get_mut(from).expect("it is one of them");
        publisher.publish(subject, reply, headers);
        // All shards have reported when the answer comes; and what is published then is told of
        // behind all that.
        let mut got = publisher.sync();
        publisher.publish("end", "", &[("Nats-Trace-Dest", "tr.end"), ONLY]);
        let tracer = &mut tracers[usize::from(*from == "b")];
        let mut told = Vec::new();
        loop {
            match tracer.trace() {
                (subject, _) if subject == "tr.end" => break,
                (subject, trace) => told.push(json!([subject, comparable(&trace)])),
            }
        }
        got.extend(peers.values_mut().flat_map(Peer::sync));
        let mut got: Vec<String> = got.iter().map(|line| without_answers(line)).collect();
        // In which order nats-server serves the subscriptions of one client is open.
        got.sort();
        found.push((format!("{from} {subject} {reply} {headers:?}"), told, got));
    }
    found
}

#[test]
fn all_that_nats_server_tells_of_a_message_is_told_over_all_shards() {
    if is_nats_server() || !has_original() {
        return;
    }
    let expected = everything(&Broker::original(CONFIG));
    for &shards in shard_counts() {
        let found = everything(&Broker::with_config(shards, CONFIG));
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found, expected, "on {shards} shards");
        }
    }
}

#[test]
fn what_is_told_of_deliveries_is_what_was_delivered_and_with_only_it_is_nothing() {
    const PEERS: usize = 12;
    const MESSAGES: usize = 150;
    const FILTERS: [&str; 6] = ["a.b", "a.*", "*.b", "a.>", "c", ">"];
    const SUBJECTS: [&str; 4] = ["a.b", "a.c", "c", "d.b"];
    for &shards in shard_counts() {
        let mut rng = fastrand::Rng::with_seed(u64::from(shards));
        let broker = Broker::with_config(shards, "");
        // Account $G knows no users: credentials are not looked at. The tracer has no filter
        // that matches what is published.
        let mut tracer = Peer::new(&broker, "x", "tracer").subscribe("tr.x");
        let mut publisher = Peer::new(&broker, "x", "publisher");
        let mut peers: Vec<Peer> = (0..PEERS)
            .map(|number| {
                let filters = (0..rng.usize(1..4)).map(|_| {
                    let filter = FILTERS[rng.usize(..FILTERS.len())];
                    let group =
                        if rng.bool() { format!(" g{}", rng.u32(..2)) } else { String::new() };
                    format!("{filter}{group}")
                });
                let filters: Vec<String> = filters.collect();
                Peer::new(&broker, "x", &format!("p{number}")).subscribe(&filters.join(","))
            })
            .collect();
        for _ in 0..MESSAGES {
            let subject = SUBJECTS[rng.usize(..SUBJECTS.len())];
            let only = rng.bool();
            let headers = [DEST, if only { ONLY } else { ("A", "1") }];
            publisher.publish(subject, "", &headers);
            publisher.sync();
            let mut got: BTreeMap<String, usize> = BTreeMap::new();
            for (number, peer) in peers.iter_mut().enumerate() {
                let came = peer.sync();
                let messages = came.iter().filter(|line| {
                    line.strip_prefix("HMSG ").is_some_and(|rest| rest.starts_with(subject))
                });
                let count = messages.count();
                if count > 0 {
                    got.insert(format!("p{number}"), count);
                }
            }
            let (_, trace) = tracer.trace();
            let mut told: BTreeMap<String, usize> = BTreeMap::new();
            let mut groups = Vec::new();
            for event in trace["events"].as_array().expect("a trace has events") {
                if event["type"] == "eg" {
                    assert!(event.get("error").is_none(), "{event}");
                    let name = event["name"].as_str().expect("it has a name");
                    *told.entry(name.to_owned()).or_default() += 1;
                    groups.extend(event["queue"].as_str().map(str::to_owned));
                }
            }
            groups.sort();
            assert!(groups.windows(2).all(|pair| pair[0] != pair[1]), "{trace}");
            if only {
                assert!(got.is_empty(), "{got:?}");
            } else {
                assert_eq!(told, got, "{trace}");
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Ours,
    Original,
}

fn member(kind: Kind, name: &str, seed: Option<u16>) -> Broker {
    let route = seed.map(|port| format!("\"nats-route://127.0.0.1:{port}\"")).unwrap_or_default();
    let config = CONFIG.replace("server_name: S", &format!("server_name: {name}"));
    let config =
        format!("{config}\ncluster {{ name: C, listen: \"127.0.0.1:-1\", routes: [{route}] }}\n");
    match kind {
        Kind::Ours => Broker::with_config(2, &config),
        Kind::Original => Broker::original(&config),
    }
}

/// What both members of a cluster tell of messages that cross it.
fn across(kinds: [Kind; 2]) -> Vec<Vec<Value>> {
    let mut first = member(kinds[0], "first", None);
    let second = member(kinds[1], "second", Some(first.route_port()));
    let mut far = Peer::new(&second, "a", "far").subscribe("foo,foo,g.x g1,m.b,ready,asvc.>,rep");
    let mut far_b = Peer::new(&second, "b", "far b").subscribe("st2.>,st.>");
    let mut tracers = ["a", "b"].map(|user| Peer::new(&first, user, "tracer").subscribe("tr.>"));
    let mut near = Peer::new(&first, "a", "near").subscribe("foo,answer");
    let mut near_b = Peer::new(&first, "b", "near b");
    // Interest travels in order: when the last of it is known so is all.
    loop {
        near.publish("ready", "answer", &[("A", "1")]);
        let statuses = near.sync();
        if !statuses.iter().any(|line| line.contains("503")) {
            break;
        }
        std::thread::yield_now();
    }
    // And that of both importers: the stream's interest is part of account B.
    loop {
        near.publish("st2.ready", "answer", &[("A", "1")]);
        near.sync();
        if far_b.sync().iter().any(|line| line.contains("st2.ready")) {
            break;
        }
    }
    let cases: &[(bool, &str, Headers, usize)] = &[
        (false, "foo", &[DEST], 2),
        (false, "foo", &[DEST, ONLY], 2),
        (false, "g.x", &[DEST], 2),
        (false, "g.x", &[DEST, ONLY], 2),
        (false, "m.a", &[DEST], 2),
        (false, "st2.a", &[DEST], 2),
        (false, "st2.a", &[DEST, ONLY], 2),
        (false, "st.a", &[DEST], 2),
        (false, "nobody", &[DEST], 1),
        (true, "b.asvc", &[DEST], 2),
        (true, "b.asvc", &[DEST, ONLY], 2),
    ];
    let mut found = Vec::new();
    for (is_b, subject, headers, traces) in cases {
        let publisher = if *is_b { &mut near_b } else { &mut near };
        publisher.publish(subject, "", headers);
        let tracer = &mut tracers[usize::from(*is_b)];
        let mut told: Vec<Value> = (0..*traces)
            .map(|_| {
                let mut trace = comparable(&tracer.trace().1);
                // Names of servers and sizes of their answers' subjects.
                let header = trace["request"]["header"].as_object_mut().expect("it has headers");
                if header.remove("Nats-Request-Info").is_some() {
                    header.remove("Nats-Trace-Dest");
                    trace["request"]["msgsize"] = Value::Null;
                }
                // Shards number their routes apart.
                let mut text = trace.to_string();
                for hop in ["1", "2"] {
                    text = text.replace(&format!("\"hop\":\"{hop}\""), "\"hop\":\"N\"");
                    let header = format!("\"Nats-Trace-Hop\":[\"{hop}\"]");
                    text = text.replace(&header, "\"Nats-Trace-Hop\":[\"N\"]");
                }
                serde_json::from_str(&text).expect("it is still JSON")
            })
            .collect();
        told.sort_by_key(|trace| trace["server"].to_string());
        let mut got = far.sync();
        got.extend(far_b.sync());
        got.extend(near.sync());
        let count = got.iter().filter(|line| line.starts_with("HMSG")).count();
        let is_only = headers.contains(&ONLY);
        assert_eq!(count == 0, is_only || *subject == "nobody", "{subject}: {got:?}");
        found.push(told);
    }
    found
}

#[test]
fn each_server_of_a_cluster_tells_its_part_and_a_trace_alone_crosses_it_too() {
    if is_nats_server() || !has_original() {
        return;
    }
    let expected = across([Kind::Original, Kind::Original]);
    for kinds in [[Kind::Ours, Kind::Original], [Kind::Original, Kind::Ours], [Kind::Ours; 2]] {
        for (found, expected) in across(kinds).iter().zip(&expected) {
            assert_eq!(found, expected, "{kinds:?}");
        }
    }
}
