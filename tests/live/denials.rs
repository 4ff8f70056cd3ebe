//! Every way to make the server publish something, met by a permission that denies it: the same
//! rows for nats-server and for us on each number of shards.
//!
//! Whoever adds another way adds its rows here. Ways that other kinds of connections have are met
//! by permissions beside what else these do: wills, retained messages and filters of MQTT clients
//! in `mqtt.rs`, leaf nodes in `leaf.rs` and `hostile_leaf.rs`, users whom a service lets in in
//! `callouts.rs` and the corpus' probe of it, users by tokens in `jwt.rs` and `resolver.rs`.

use crate::broker::wire::Wire;
use crate::broker::{Broker, has_original, is_nats_server, shard_counts};
use serde_json::json;

/// `limited` may publish `tick` and little else; everything else in account A is denied to it.
const CONFIG: &str = r#"
server_name: S
accounts {
    A {
        users: [
            {user: free, password: x}
            {user: limited, password: x, permissions: {
                publish: {
                    allow: ["tick", "m.*", "in.open", "in.times", "st.open"], deny: "m.closed"
                }
            }}
            {user: denied, password: x, permissions: {
                publish: {deny: ["orders", "in.closed", "in.times"]}
            }}
            {user: answers, password: x, permissions: {
                publish: "tick", allow_responses: {max: 1, expires: "1m"}
            }}
        ]
        exports: [{stream: "st.>"}]
        imports: [
            {service: {account: B, subject: "svc"}, to: "in.open"}
            {service: {account: B, subject: "svc"}, to: "in.closed"}
            {service: {account: B, subject: "timed"}, to: "in.times"}
            {service: {account: B, subject: "timed"}, to: "in.untimed"}
        ]
        mappings: {"m.open": "orders", "m.closed": "tick"}
        msg_trace: {dest: orders, sampling: 100}
    }
    B {
        users: [
            {user: b, password: x}
            {user: mute, password: x, permissions: {publish: {deny: "_R_.>"}}}
        ]
        exports: [{service: "svc"}, {service: "timed", latency: "lat"}]
        imports: [{stream: {account: A, subject: "st.>"}}]
    }
}
"#;

/// What one client sends, and all that comes of it.
struct Row {
    /// The way, and what denies it.
    name: &'static str,
    user: &'static str,
    /// Subject and reply of a request that it gets before.
    asked: Option<&'static str>,
    /// Header lines, or none at all.
    headers: &'static [&'static str],
    /// Subject and perhaps reply; `{reply}` is that of the request.
    to: &'static str,
    /// What its publisher is told.
    errors: &'static [&'static str],
    /// Subjects that messages reach others on, each with the account that sees it.
    seen: &'static [&'static str],
}

const TO_ORDERS: &str = "Permissions Violation for Publish to \"orders\"";
const TO_OTHER: &str = "Permissions Violation for Publish to \"other\"";
const TO_ANSWER: &str = "Permissions Violation for Publish to \"_R_\"";
const TO_CLOSED: &str = "Permissions Violation for Publish to \"in.closed\"";
const TO_TIMES: &str = "Permissions Violation for Publish to \"in.times\"";
const TO_UNTIMED: &str = "Permissions Violation for Publish to \"in.untimed\"";

/// A row of a message without headers.
const fn plain(
    name: &'static str,
    user: &'static str,
    to: &'static str,
    errors: &'static [&'static str],
    seen: &'static [&'static str],
) -> Row {
    Row { name, user, asked: None, headers: &[], to, errors, seen }
}

/// A row of a message to `tick`, or another subject, that is to be traced.
const fn traced(
    name: &'static str,
    user: &'static str,
    (headers, to): (&'static [&'static str], &'static str),
    errors: &'static [&'static str],
    seen: &'static [&'static str],
) -> Row {
    Row { name, user, asked: None, headers, to, errors, seen }
}

impl Row {
    /// The same for who has got a request before.
    const fn after(self, asked: &'static str) -> Self {
        Self { asked: Some(asked), ..self }
    }
}

const DEST: &str = "Nats-Trace-Dest: orders";
const ONLY: &str = "Nats-Trace-Only: true";
const PARENT: &str = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[expect(clippy::too_many_lines, reason = "a table")]
fn rows() -> Vec<Row> {
    let mut rows = vec![
        plain("plain, allowed", "limited", "tick", &[], &["A tick"]),
        plain("plain, not in the list", "limited", "orders", &[TO_ORDERS], &[]),
        plain("plain, denied", "denied", "orders", &[TO_ORDERS], &[]),
        traced("with headers", "limited", (&["X: y"], "orders"), &[TO_ORDERS], &[]),
        // A reply is a word of the publisher's to whoever answers, who needs permission, too.
        plain("reply", "limited", "tick orders", &[], &["A tick"]),
        plain(
            "reply that is the server's",
            "limited",
            "tick _R_.x",
            &["Permissions Violation for Publish with Reply of \"_R_.x\""],
            &[],
        ),
        plain(
            "reply that is JetStream's",
            "free",
            "tick $JS.ACK.x",
            &["Permissions Violation for Publish with Reply of \"$JS.ACK.x\""],
            &[],
        ),
        plain(
            "reply that is a gateway's",
            "free",
            "tick _GR_.x",
            &["Permissions Violation for Publish with Reply of \"_GR_.x\""],
            &[],
        ),
        plain("mapping to what is denied", "limited", "m.open", &[TO_ORDERS], &[]),
        plain("mapping of what is denied", "limited", "m.closed", &[], &["A tick"]),
        plain("import of a service, allowed", "limited", "in.open", &[], &["A in.open", "B svc"]),
        plain("import of a service", "limited", "in.closed", &[TO_CLOSED], &[]),
        plain("import of a service, denied", "denied", "in.closed", &[TO_CLOSED], &[]),
        // The report on a measured request, here on one without a reply, is the exporter's own.
        plain("latency, allowed", "limited", "in.times", &[], &["A in.times", "B lat", "B timed"]),
        plain("latency", "limited", "in.untimed", &[TO_UNTIMED], &[]),
        plain("latency, denied", "denied", "in.times", &[TO_TIMES], &[]),
        plain(
            "import of a stream, allowed",
            "limited",
            "st.open",
            &[],
            &["A st.open", "B st.open"],
        ),
        plain(
            "import of a stream",
            "limited",
            "st.closed",
            &["Permissions Violation for Publish to \"st.closed\""],
            &[],
        ),
        plain(
            "system request",
            "limited",
            "$SYS.REQ.SERVER.PING orders",
            &["Permissions Violation for Publish to \"$SYS.REQ.SERVER.PING\""],
            &[],
        ),
        plain(
            "reserved for servers",
            "free",
            "$NRG.x",
            &["Permissions Violation for Publish to \"$NRG.x\""],
            &[],
        ),
        plain(
            "reserved for gateways",
            "free",
            "_GR_.x",
            &["Permissions Violation for Publish to \"_GR_.x\""],
            &[],
        ),
    ];
    rows.extend(answer_rows());
    rows.extend(trace_rows());
    rows
}

fn answer_rows() -> [Row; 9] {
    [
        plain("answer that nobody asked for", "answers", "orders", &[TO_ORDERS], &[]),
        plain("answer", "answers", "orders", &[], &["A ask", "A orders"]).after("ask orders"),
        plain("answer to another", "answers", "other", &[TO_OTHER], &["A ask"]).after("ask orders"),
        plain("answer without leave", "limited", "orders", &[TO_ORDERS], &["A ask"])
            .after("ask orders"),
        traced(
            "trace in place of an answer",
            "answers",
            (&[DEST], "tick"),
            &[TO_ORDERS],
            &["A ask"],
        )
        .after("ask orders"),
        plain(
            "answer of a service",
            "b",
            "{reply}",
            &[],
            &["A in.open", "A orders", "B _R_", "B svc"],
        )
        .after("in.open orders"),
        plain(
            "answer of a service, denied",
            "mute",
            "{reply}",
            &[TO_ANSWER],
            &["A in.open", "B svc"],
        )
        .after("in.open orders"),
        plain(
            "latency of an answer",
            "b",
            "{reply}",
            &[],
            &["A in.times", "A orders", "B _R_", "B lat", "B timed"],
        )
        .after("in.times orders"),
        plain(
            "latency of an answer, denied",
            "mute",
            "{reply}",
            &[TO_ANSWER],
            &["A in.times", "B timed"],
        )
        .after("in.times orders"),
    ]
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn trace_rows() -> Vec<Row> {
    vec![
        traced("trace, allowed", "free", (&[DEST], "tick"), &[], &["A orders", "A tick"]),
        traced("trace", "limited", (&[DEST], "tick"), &[TO_ORDERS], &[]),
        traced("trace, denied", "denied", (&[DEST], "tick"), &[TO_ORDERS], &[]),
        traced("trace alone", "limited", (&[DEST, ONLY], "tick"), &[TO_ORDERS], &[]),
        traced(
            "trace of what is denied, told where that is allowed",
            "limited",
            (&["Nats-Trace-Dest: tick"], "orders"),
            &[TO_ORDERS],
            &["A tick"],
        ),
        traced("trace by the account's rule", "limited", (&[PARENT], "tick"), &[TO_ORDERS], &[]),
        traced(
            "trace by the account's rule, allowed",
            "free",
            (&[PARENT], "tick"),
            &[],
            &["A orders", "A tick"],
        ),
        traced(
            "trace into a service of another account",
            "limited",
            (&["Nats-Trace-Dest: in.closed"], "tick"),
            &[TO_CLOSED],
            &[],
        ),
        traced(
            "trace into a service of another account, allowed",
            "limited",
            (&["Nats-Trace-Dest: in.open"], "tick"),
            &[],
            &["A in.open", "A tick", "B svc"],
        ),
        traced(
            "trace to what is a gateway's",
            "free",
            (&["Nats-Trace-Dest: _GR_.x"], "tick"),
            &["Permissions Violation for Publish to \"_GR_.x\""],
            &[],
        ),
        traced(
            "trace to what is the servers'",
            "free",
            (&["Nats-Trace-Dest: $NRG.x"], "tick"),
            &["Permissions Violation for Publish to \"$NRG.x\""],
            &[],
        ),
        traced(
            "trace to no subject",
            "free",
            (&["Nats-Trace-Dest: a b c d"], "tick"),
            &[],
            &["A tick"],
        ),
        traced(
            "trace to no subject, of what is denied",
            "limited",
            (&["Nats-Trace-Dest: a b c d"], "orders"),
            &[TO_ORDERS],
            &[],
        ),
        traced(
            "trace alone to no subject",
            "limited",
            (&["Nats-Trace-Dest: a\tb", ONLY], "tick"),
            &[],
            &[],
        ),
        traced(
            "trace to no subject by any blank",
            "free",
            (&["Nats-Trace-Dest: a\rb", "X: y"], "tick"),
            &[],
            &["A tick"],
        ),
        traced(
            "trace to no subject by a line end that is none",
            "free",
            (&["Nats-Trace-Dest: a\nb", ONLY], "tick"),
            &[],
            &[],
        ),
        traced("trace to wildcards", "free", (&["Nats-Trace-Dest: >"], "tick"), &[], &["A tick"]),
        traced(
            "trace to empty tokens",
            "free",
            (&["Nats-Trace-Dest: a..b"], "tick"),
            &[],
            &["A tick"],
        ),
    ]
}

fn client(broker: &Broker, user: &str) -> Wire {
    let mut wire = Wire::open(broker);
    let connect = json!({
        "user": user, "pass": "x", "headers": true, "no_responders": true, "verbose": false,
    });
    wire.send(format!("CONNECT {connect}\r\n").as_bytes());
    wire.sync();
    wire
}

fn publish(to: &str, headers: &[&str]) -> Vec<u8> {
    if headers.is_empty() {
        return format!("PUB {to} 2\r\nhi\r\n").into_bytes();
    }
    let block = format!("NATS/1.0\r\n{}\r\n\r\n", headers.join("\r\n"));
    let len = block.len();
    format!("HPUB {to} {len} {}\r\n{block}hi\r\n", len + 2).into_bytes()
}

/// `_R_` stands for the subjects of answers to requests of other accounts.
fn without_number(text: &str) -> String {
    match text.split_once("_R_.") {
        Some((before, rest)) if rest.len() > 2 => {
            format!("{before}_R_{}", if rest.ends_with('"') { "\"" } else { "" })
        }
        _ => text.to_owned(),
    }
}

/// The subjects of what comes up to one on `end`, and until all that are `wanted` have come: what
/// leaves on different shards comes in any order. Each once.
fn seen_until_end(account: &str, watcher: &mut Wire, wanted: &[&str]) -> Vec<String> {
    let of_account = |seen: &&&str| seen.split(' ').next() == Some(account);
    let wanted: Vec<&&str> = wanted.iter().filter(of_account).collect();
    let mut seen: Vec<String> = Vec::new();
    let mut is_over = false;
    while !is_over || !wanted.iter().all(|wanted| seen.iter().any(|seen| seen == **wanted)) {
        let line = watcher.line();
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["MSG" | "HMSG", "end.told", ..] => is_over = true,
            ["MSG" | "HMSG", "end", ..] => {}
            // The line behind it is content.
            ["MSG" | "HMSG", subject, _, ..] => {
                seen.push(format!("{account} {}", without_number(subject)));
            }
            _ => {}
        }
    }
    seen.sort();
    seen.dedup();
    seen
}

/// What comes of a row: errors, and who sees what.
fn outcome(broker: &Broker, row: &Row) -> (Vec<String>, Vec<String>) {
    let mut watchers = [("A", client(broker, "free")), ("B", client(broker, "b"))];
    for (_, watcher) in &mut watchers {
        watcher.send(b"SUB > 1\r\n");
        watcher.sync();
    }
    let mut publisher = client(broker, row.user);
    let mut to = row.to.to_owned();
    if let Some(asked) = row.asked {
        publisher.send(b"SUB ask 1\r\nSUB svc 2\r\nSUB timed 3\r\n");
        publisher.sync();
        let mut asker = client(broker, "free");
        asker.send(&publish(asked, &[]));
        asker.sync();
        let line = publisher.line();
        let reply = line.split(' ').nth(3).expect("a request has a reply");
        to = to.replace("{reply}", reply);
        publisher.line();
    }
    publisher.send(&publish(&to, row.headers));
    publisher.send(b"PING\r\n");
    let mut errors = Vec::new();
    loop {
        let line = publisher.line();
        if line == "PONG" {
            break;
        }
        if let Some(error) = line.strip_prefix("-ERR '") {
            errors.push(without_number(error.trim_end_matches('\'')));
        }
    }
    let mut seen = Vec::new();
    for (account, watcher) in &mut watchers {
        // What is told of messages comes in their order, if it leaves on one shard.
        let mut last = client(broker, if *account == "A" { "free" } else { "b" });
        last.send(&publish("end", &["Nats-Trace-Dest: end.told"]));
        last.sync();
        seen.extend(seen_until_end(account, watcher, row.seen));
    }
    (errors, seen)
}

/// All rows that come to something else, by name.
fn wrong(broker: &Broker) -> Vec<String> {
    let mut wrong = Vec::new();
    for row in rows() {
        let found = outcome(broker, &row);
        let expected = (strings(row.errors), strings(row.seen));
        if found != expected {
            wrong.push(format!("{}: {found:?}, not {expected:?}", row.name));
        }
    }
    wrong
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn whatever_makes_the_server_publish_needs_its_publishers_permission() {
    for &shards in shard_counts() {
        let wrong = wrong(&Broker::with_config(shards, CONFIG));
        assert!(wrong.is_empty(), "on {shards} shards: {wrong:#?}");
    }
    if !is_nats_server() && has_original() {
        let wrong = wrong(&Broker::original(CONFIG));
        assert!(wrong.is_empty(), "nats-server: {wrong:#?}");
    }
}
