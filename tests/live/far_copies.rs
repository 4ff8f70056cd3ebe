//! Mirrors and sources whose origins are in other accounts, or in domains behind leaf connections.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use async_nats::{Client, ConnectOptions};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::broker::members::{Kind, Original, Ours, client, has_original, start, until};
use crate::broker::peers::within;
use crate::broker::wire::Wire;
use crate::broker::{Broker, PATIENCE};

/// Messages that an origin has before its copies begin: more than go without an answer to flow
/// control, with the bytes of each.
const MESSAGES: u64 = 3000;
const PAYLOAD_BYTES: usize = 2048;

async fn ask(client: &Client, subject: String, body: Value) -> Value {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let answer = within(client.request(subject, body.into())).await.unwrap();
    serde_json::from_slice(&answer.payload).unwrap()
}

async fn make(client: &Client, config: Value) {
    let name = config["name"].as_str().unwrap();
    let made = ask(client, format!("$JS.API.STREAM.CREATE.{name}"), config.clone()).await;
    assert!(made["error"].is_null(), "{made}");
}

async fn info(client: &Client, stream: &str) -> Value {
    ask(client, format!("$JS.API.STREAM.INFO.{stream}"), Value::Null).await
}

async fn message(client: &Client, stream: &str, seq: u64) -> Value {
    let got = ask(client, format!("$JS.API.STREAM.MSG.GET.{stream}"), json!({"seq": seq})).await;
    got["message"].clone()
}

/// The headers of a message as text.
fn headers_of(message: &Value) -> String {
    use base64::Engine;
    let text = message["hdrs"].as_str().unwrap_or_default();
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// Publishes messages to `o.a` and `o.b` by turns.
async fn publish(client: &Client, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let subject = if number % 2 == 0 { "o.a" } else { "o.b" };
        let mut payload = format!("{number} ").into_bytes();
        payload.resize(PAYLOAD_BYTES, b'.');
        client.publish(subject, payload.into()).await.unwrap();
    }
    client.flush().await.unwrap();
}

/// Makes the origin `O`, which lacks two of its messages.
async fn make_origin(client: &Client) {
    make(client, json!({"name": "O", "subjects": ["o.>"]})).await;
    publish(client, 0..MESSAGES).await;
    until(|| async { info(client, "O").await["state"]["last_seq"] == MESSAGES }).await;
    for seq in [1, 5] {
        ask(client, "$JS.API.STREAM.MSG.DELETE.O".to_owned(), json!({"seq": seq})).await;
    }
}

/// A mirror `M`, a mirror `T` of the end of it under other subjects, and `S` with a source of one
/// subject, of the origin that is reached so.
async fn make_copies(client: &Client, external: &Value) {
    make(client, json!({"name": "M", "mirror": {"name": "O", "external": external}})).await;
    let transforms = json!([{"src": "o.a", "dest": "t.a"}, {"src": "o.b", "dest": "t.b"}]);
    let mirror = json!({"name": "O", "external": external, "opt_start_seq": MESSAGES - 9,
        "subject_transforms": transforms});
    make(client, json!({"name": "T", "mirror": mirror})).await;
    let source = json!({"name": "O", "external": external, "filter_subject": "o.a"});
    make(client, json!({"name": "S", "subjects": ["own"], "sources": [source]})).await;
}

/// Waits until a stream has so many messages, and the last one of the origin.
async fn until_copied(client: &Client, stream: &str, messages: u64, last: u64) {
    let has_all = || async {
        let state = info(client, stream).await["state"].clone();
        state["messages"] == messages && (last == 0 || state["last_seq"] == last)
    };
    let copied = async {
        while !has_all().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, copied).await.is_err() {
        panic!("{stream}: {}", info(client, stream).await);
    }
}

async fn check_copies(origin: &Client, copies: &Client, last: u64) {
    until_copied(copies, "M", last - 2, last).await;
    until_copied(copies, "T", last - (MESSAGES - 10), last).await;
    // Of `o.a` are the odd sequences; the first and the third one of them are deleted.
    until_copied(copies, "S", last.div_ceil(2) - 2, 0).await;
    for seq in [2, 3, 6, MESSAGES - 9, MESSAGES, last] {
        assert_eq!(message(copies, "M", seq).await, message(origin, "O", seq).await, "{seq}");
    }
    let (of_mirror, of_origin) =
        (message(copies, "T", MESSAGES).await, message(origin, "O", MESSAGES).await);
    assert_eq!((&of_mirror["subject"], &of_origin["subject"]), (&json!("t.b"), &json!("o.b")));
    assert_eq!(of_mirror["time"], of_origin["time"]);
    let first = message(copies, "S", 1).await;
    assert_eq!(first["subject"], "o.a");
    assert_eq!(first["data"], message(origin, "O", 3).await["data"]);
}

/// The header by which a message of a source names its origin, whose API has this prefix.
async fn check_header(copies: &Client, hash: &str) {
    let headers = headers_of(&message(copies, "S", 1).await);
    let start = format!("NATS/1.0\r\nNats-Stream-Source: O:{hash} 3 o.a > o.a");
    assert!(headers.starts_with(&start), "{headers:?}");
}

async fn check_infos(copies: &Client, external: &Value) {
    let of_mirror = || async { info(copies, "M").await["mirror"].clone() };
    until(|| async { of_mirror().await["lag"] == 0 }).await;
    let shown = of_mirror().await;
    assert_eq!((&shown["name"], &shown["external"]), (&json!("O"), external), "{shown}");
    assert!(shown["active"].as_i64().unwrap() >= 0 && shown["error"].is_null(), "{shown}");
    let shown = info(copies, "S").await["sources"][0].clone();
    assert_eq!((&shown["lag"], &shown["external"]), (&json!(0), external), "{shown}");
    assert_eq!(shown["filter_subject"], "o.a", "{shown}");
    assert!(shown["active"].as_i64().unwrap() >= 0 && shown["error"].is_null(), "{shown}");
}

fn kinds() -> Vec<Kind> {
    let mut kinds = vec![Ours(1), Ours(4)];
    if has_original() {
        kinds.push(Original);
    }
    kinds
}

fn accounts(store: &TempDir) -> String {
    format!(
        "jetstream {{ store_dir: {:?} }}\naccounts {{\n\
         ORIGIN {{ jetstream: enabled, users: [{{ user: origin, password: p }}]\n\
         exports [ {{ service: \"$JS.API.CONSUMER.>\" }}, {{ service: \"$JS.FC.>\" }}, \
         {{ stream: \"deliver.>\" }} ] }}\n\
         COPY {{ jetstream: enabled, users: [{{ user: copy, password: p }}]\n\
         imports [ {{ service: {{ account: ORIGIN, subject: \"$JS.API.CONSUMER.>\" }}, to: \
         \"far.api.CONSUMER.>\" }}, {{ service: {{ account: ORIGIN, subject: \"$JS.FC.>\" }} }}, \
         {{ stream: {{ account: ORIGIN, subject: \"deliver.>\" }} }} ] }}\n}}\n",
        store.path()
    )
}

async fn client_of(broker: &Broker, user: &str) -> Client {
    let options = ConnectOptions::with_user_and_password(user.to_owned(), "p".to_owned());
    within(options.retry_on_initial_connect().connect(broker.url())).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_have_what_an_origin_in_another_account_has_and_go_on_after_a_kill() {
    let external = json!({"api": "far.api", "deliver": "deliver.copy"});
    for kind in kinds() {
        println!("{kind:?}");
        let store = tempfile::tempdir().unwrap();
        let mut broker = start(kind, &accounts(&store));
        let (origin, copies) =
            (client_of(&broker, "origin").await, client_of(&broker, "copy").await);
        make_origin(&origin).await;
        make_copies(&copies, &external).await;
        check_copies(&origin, &copies, MESSAGES).await;
        check_header(&copies, "7nMpFGEv").await;
        check_infos(&copies, &external).await;
        publish(&origin, MESSAGES..MESSAGES + 10).await;
        check_copies(&origin, &copies, MESSAGES + 10).await;
        broker.restart();
        let (origin, copies) =
            (client_of(&broker, "origin").await, client_of(&broker, "copy").await);
        publish(&origin, MESSAGES + 10..MESSAGES + 20).await;
        check_copies(&origin, &copies, MESSAGES + 20).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_shows_the_error_of_its_origin_and_begins_when_that_is_there() {
    let external = json!({"api": "far.api", "deliver": "deliver.copy"});
    for kind in kinds() {
        println!("{kind:?}");
        let store = tempfile::tempdir().unwrap();
        let broker = start(kind, &accounts(&store));
        let (origin, copies) =
            (client_of(&broker, "origin").await, client_of(&broker, "copy").await);
        make(&copies, json!({"name": "M", "mirror": {"name": "O", "external": external}})).await;
        let error = || async { info(&copies, "M").await["mirror"]["error"]["err_code"].clone() };
        until(|| async { error().await == 10059 }).await;
        make(&origin, json!({"name": "O", "subjects": ["o.>"]})).await;
        publish(&origin, 0..10).await;
        until_copied(&copies, "M", 10, 10).await;
        assert!(error().await.is_null());
    }
}

/// A hub and its leaf node, with streams of the domains `far` and `near`.
struct Domains {
    hub: Broker,
    leaf: Broker,
    _stores: [TempDir; 2],
}

fn domains([hub, leaf]: [Kind; 2]) -> Domains {
    let stores = [0; 2].map(|_| tempfile::tempdir().unwrap());
    let streams = |domain: &str, at: usize| {
        format!("jetstream {{ domain: {domain}, store_dir: {:?} }}", stores[at].path())
    };
    let listen = "leafnodes { listen: \"127.0.0.1:-1\" }\n";
    let mut hub = start(hub, &format!("server_name: hub\n{}\n{listen}", streams("far", 0)));
    let port = hub.logged_port("Listening for leafnode connections on ");
    let remote = format!(
        "leafnodes {{ reconnect: \"100ms\", remotes: [ {{ url: \"nats-leaf://127.0.0.1:{port}\" }} \
         ] }}\n"
    );
    let leaf = start(leaf, &format!("server_name: edge\n{}\n{remote}", streams("near", 1)));
    Domains { hub, leaf, _stores: stores }
}

fn pairs() -> Vec<[Kind; 2]> {
    let mut pairs = vec![[Ours(1), Ours(2)], [Ours(4), Ours(1)]];
    if has_original() {
        pairs.extend([[Ours(2), Original], [Original, Ours(2)]]);
    }
    pairs
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_at_a_leaf_node_have_what_their_hub_has_and_go_on_after_a_kill() {
    let external = json!({"api": "$JS.far.API", "deliver": ""});
    for kinds in pairs() {
        println!("{kinds:?}");
        let mut both = domains(kinds);
        let (origin, copies) = (client(&both.hub).await, client(&both.leaf).await);
        make_origin(&origin).await;
        make_copies(&copies, &external).await;
        check_copies(&origin, &copies, MESSAGES).await;
        check_header(&copies, "FfTMOXvu").await;
        check_infos(&copies, &external).await;
        both.leaf.restart();
        let copies = client(&both.leaf).await;
        publish(&origin, MESSAGES..MESSAGES + 10).await;
        check_copies(&origin, &copies, MESSAGES + 10).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_at_a_hub_have_what_their_leaf_node_has_and_go_on_after_its_kill() {
    let external = json!({"api": "$JS.near.API", "deliver": "deliver.here"});
    for kinds in pairs() {
        println!("{kinds:?}");
        let mut both = domains(kinds);
        let (origin, copies) = (client(&both.leaf).await, client(&both.hub).await);
        make_origin(&origin).await;
        make_copies(&copies, &external).await;
        check_copies(&origin, &copies, MESSAGES).await;
        check_infos(&copies, &external).await;
        both.leaf.restart();
        let origin = client(&both.leaf).await;
        publish(&origin, MESSAGES..MESSAGES + 10).await;
        check_copies(&origin, &copies, MESSAGES + 10).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_begins_anew_where_its_origin_was_made_anew() {
    let external = json!({"api": "far.api", "deliver": "deliver.copy"});
    for kind in kinds() {
        println!("{kind:?}");
        let store = tempfile::tempdir().unwrap();
        let broker = start(kind, &accounts(&store));
        let (origin, copies) =
            (client_of(&broker, "origin").await, client_of(&broker, "copy").await);
        let source = json!({"name": "O", "external": external});
        make(&copies, json!({"name": "S", "sources": [source]})).await;
        for (first, messages, copied) in [(0, 10, 10), (100, 3, 13)] {
            ask(&origin, "$JS.API.STREAM.DELETE.O".to_owned(), Value::Null).await;
            make(&origin, json!({"name": "O", "subjects": ["o.>"]})).await;
            publish(&origin, first..first + messages).await;
            until_copied(&copies, "S", copied, copied).await;
        }
        let last = message(&copies, "S", 13).await;
        assert!(headers_of(&last).contains("Nats-Stream-Source: O:7nMpFGEv 3 > > o.a "));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_has_what_a_consumer_that_was_made_for_it_delivers() {
    let external = json!({"api": "far.api", "deliver": ""});
    for kind in kinds() {
        println!("{kind:?}");
        let store = tempfile::tempdir().unwrap();
        let mut broker = start(kind, &accounts(&store));
        let (origin, copies) =
            (client_of(&broker, "origin").await, client_of(&broker, "copy").await);
        make(&origin, json!({"name": "O", "subjects": ["o.>"], "retention": "workqueue"})).await;
        let config = json!({"durable_name": "E", "deliver_subject": "deliver.e",
            "ack_policy": "flow_control", "flow_control": true, "idle_heartbeat": 1_000_000_000,
            "max_ack_pending": 100});
        let request = json!({"stream_name": "O", "config": config});
        let made = ask(&origin, "$JS.API.CONSUMER.CREATE.O.E".to_owned(), request).await;
        assert!(made["error"].is_null(), "{made}");
        let consumer = json!({"name": "E", "deliver_subject": "deliver.e"});
        let source = json!({"name": "O", "external": external, "consumer": consumer});
        make(&copies, json!({"name": "S", "sources": [source]})).await;
        publish(&origin, 0..1000).await;
        until_copied(&copies, "S", 1000, 1000).await;
        // What the copy has stored is acknowledged, and leaves the origin.
        until(|| async { info(&origin, "O").await["state"]["messages"] == 0 }).await;
        broker.restart();
        let (origin, copies) =
            (client_of(&broker, "origin").await, client_of(&broker, "copy").await);
        publish(&origin, 1000..1010).await;
        until_copied(&copies, "S", 1010, 1010).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_consumer_of_a_copy_ends_with_it_and_is_not_shown() {
    let external = json!({"api": "far.api", "deliver": "deliver.copy"});
    for kind in kinds() {
        println!("{kind:?}");
        let store = tempfile::tempdir().unwrap();
        let broker = start(kind, &accounts(&store));
        let (origin, copies) =
            (client_of(&broker, "origin").await, client_of(&broker, "copy").await);
        make(&origin, json!({"name": "O", "subjects": ["o.>"]})).await;
        make(&copies, json!({"name": "M", "mirror": {"name": "O", "external": external}})).await;
        publish(&origin, 0..10).await;
        until_copied(&copies, "M", 10, 10).await;
        let of_account = || async {
            let info = ask(&origin, "$JS.API.INFO".to_owned(), Value::Null).await;
            info["consumers"].as_u64().unwrap()
        };
        assert_eq!(of_account().await, 1);
        assert_eq!(info(&origin, "O").await["state"]["consumer_count"], 0);
        let names = ask(&origin, "$JS.API.CONSUMER.NAMES.O".to_owned(), Value::Null).await;
        assert_eq!(names["total"], 0, "{names}");
        ask(&copies, "$JS.API.STREAM.DELETE.M".to_owned(), Value::Null).await;
        until(|| async { of_account().await == 0 }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_has_what_its_account_imports() {
    for kind in kinds() {
        println!("{kind:?}");
        let store = tempfile::tempdir().unwrap();
        let broker = start(kind, &accounts(&store));
        let (origin, copies) =
            (client_of(&broker, "origin").await, client_of(&broker, "copy").await);
        make(&copies, json!({"name": "I", "subjects": ["deliver.>"]})).await;
        for number in 0..10 {
            origin.publish(format!("deliver.{number}"), "x".into()).await.unwrap();
        }
        origin.flush().await.unwrap();
        until_copied(&copies, "I", 10, 10).await;
        assert_eq!(message(&copies, "I", 10).await["subject"], "deliver.9");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_of_a_hub_is_emptied_into_a_source_and_keeps_what_that_has_not_stored() {
    let external = json!({"api": "$JS.far.API", "deliver": ""});
    for kinds in pairs() {
        println!("{kinds:?}");
        let mut both = domains(kinds);
        let (origin, copies) = (client(&both.hub).await, client(&both.leaf).await);
        make(&origin, json!({"name": "O", "subjects": ["o.>"], "retention": "workqueue"})).await;
        publish(&origin, 0..500).await;
        let source = json!({"name": "O", "external": external});
        make(&copies, json!({"name": "S", "sources": [source]})).await;
        until_copied(&copies, "S", 500, 500).await;
        let left = || async { info(&origin, "O").await["state"]["messages"].clone() };
        until(|| async { left().await == 0 }).await;
        both.leaf.kill();
        publish(&origin, 500..510).await;
        until(|| async { left().await == 10 }).await;
        both.leaf.restart();
        let copies = client(&both.leaf).await;
        until_copied(&copies, "S", 510, 510).await;
        until(|| async { left().await == 0 }).await;
        // The consumer, which is for the source alone, ends with it.
        let consumers = || async { info(&origin, "O").await["state"]["consumer_count"].clone() };
        assert_eq!(consumers().await, 1);
        ask(&copies, "$JS.API.STREAM.DELETE.S".to_owned(), Value::Null).await;
        until(|| async { consumers().await == 0 }).await;
    }
}

/// A leaf node that says that it has an origin.
struct FalseOrigin {
    wire: Wire,
    deliver: String,
    /// Lines that came.
    heard: Vec<String>,
}

impl FalseOrigin {
    fn at(port: u16) -> Self {
        let mut wire = Wire::at(port);
        wire.send(b"CONNECT {\"name\":\"edge\",\"headers\":true}\r\n");
        for filter in ["$JS.bad.API.>", "$JS.FC.>", "orders.>"] {
            wire.send(format!("LS+ {filter}\r\n").as_bytes());
        }
        Self { wire, deliver: String::new(), heard: Vec::new() }
    }

    /// The next line with this text.
    fn line(&mut self, text: &str) -> String {
        loop {
            let line = self.wire.line();
            self.heard.push(line.clone());
            if line.contains(text) {
                return line;
            }
        }
    }

    /// The next request for a consumer, with the subject of its answer.
    fn request(&mut self) -> (Value, String) {
        let head = self.line("MSG $JS.bad.API.CONSUMER.CREATE.O ");
        let body: Value = serde_json::from_str(&self.line("\"stream_name\"")).unwrap();
        let config = body["config"].clone();
        self.deliver = config["deliver_subject"].as_str().unwrap().to_owned();
        (config, head.split(' ').nth(2).unwrap().to_owned())
    }

    /// Answers the next request as an origin does. Returns the configuration that was asked for.
    fn serve(&mut self) -> Value {
        let (config, reply) = self.request();
        let answer = json!({"name": "E", "config": config, "delivered": {"stream_seq": 0}});
        self.say(&reply, "", &answer.to_string());
        config
    }

    fn say(&mut self, subject: &str, reply: &str, body: &str) {
        let reply = if reply.is_empty() { String::new() } else { format!(" {reply}") };
        let line = format!("LMSG {subject}{reply} {}\r\n{body}\r\n", body.len());
        self.wire.send(line.as_bytes());
    }

    fn deliver(&mut self, number: u64, sequence: u64, subject: &str) {
        let reply = format!("$JS.ACK.O.E.1.{sequence}.{number}.1700000000000000000.0@{subject}");
        self.say(&self.deliver.clone(), &reply, "x");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_says_what_none_says_harms_its_copy_only_as_long_as_it_does() {
    let external = json!({"api": "$JS.bad.API", "deliver": ""});
    for kind in [Ours(1), Ours(4)] {
        let store = tempfile::tempdir().unwrap();
        let mut broker = start(
            kind,
            &format!(
                "server_name: hub\njetstream {{ store_dir: {:?} }}\nleafnodes {{ listen: \
                 \"127.0.0.1:-1\" }}\n",
                store.path()
            ),
        );
        let port = broker.logged_port("Listening for leafnode connections on ");
        let copies = client(&broker).await;
        make(&copies, json!({"name": "M", "mirror": {"name": "O", "external": external}})).await;
        let mut origin = FalseOrigin::at(port);
        // Two requests are answered with what is no answer.
        for _ in 0..2 {
            let (_, reply) = origin.request();
            origin.say(&reply, "", "[[[[");
        }
        let shown = || async { info(&copies, "M").await["mirror"]["error"]["err_code"].clone() };
        until(|| async { shown().await == 10025 }).await;
        assert_eq!(origin.serve()["deliver_policy"], "all");
        origin.deliver(1, 7, "a.b");
        origin.deliver(2, u64::MAX, "a.b");
        for subject in ["a..b", "a.*", ">"] {
            assert_eq!(origin.serve()["opt_start_seq"], 8);
            origin.deliver(1, 8, subject);
        }
        assert_eq!(origin.serve()["opt_start_seq"], 8);
        origin.deliver(1, 8, "a.c");
        origin.heard.clear();
        for reply in ["orders.cancel", "$JS.FC.O.E.abcd"] {
            let asking = "NATS/1.0 100 FlowControl Request\r\n\r\n";
            let (deliver, len) = (&origin.deliver, asking.len());
            let line = format!("HMSG {deliver} {reply} {len} {len}\r\n{asking}\r\n");
            origin.wire.send(line.as_bytes());
        }
        // The first one of them is on a subject that is not for it, and has no answer.
        origin.line("HMSG $JS.FC.O.E.abcd ");
        origin.line("Nats-Last-Stream: 8");
        assert!(!origin.heard.iter().any(|line| line.contains("orders")), "{:?}", origin.heard);
        until_copied(&copies, "M", 2, 8).await;
        assert_eq!(message(&copies, "M", 7).await["subject"], "a.b");
        assert_eq!(message(&copies, "M", 8).await["subject"], "a.c");
    }
}
