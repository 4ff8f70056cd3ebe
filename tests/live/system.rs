//! What the `nats` command asks servers for, as raw requests in the system account, here and at
//! nats-server: the same keys, the same errors, the same servers that feel meant.
//!
//! `nats server list` and `ping` ask `$SYS.REQ.SERVER.PING`; `server info` asks `…PING.VARZ` or
//! `….<id>.VARZ`; `server report connections|accounts|routes|health|cpu|mem` ask `CONNZ`,
//! `ACCOUNTZ`, `ROUTEZ`, `HEALTHZ` and `STATSZ`; `server request …` the page by its name;
//! `server account info` asks `$SYS.REQ.ACCOUNT.<name>.INFO`; `server request kick` and
//! `server config reload` ask `….<id>.KICK` and `….<id>.RELOAD`.

use crate::broker::peers::within;
use crate::broker::wire::Wire;
use crate::broker::{Broker, has_original, shard_counts};
use async_nats::{Client, ConnectOptions, Event, RequestErrorKind};
use futures::StreamExt;
use futures::future::join_all;
use serde_json::{Value, json};
use std::time::Duration;

const CONFIG: &str = "
    server_name: one
    server_tags: [\"az:1\", blue]
    cluster { name: C, listen: \"127.0.0.1:-1\" }
    accounts {
        A { users [{user: a, password: p}] }
        SYS { users [{user: sys, password: p}] }
    }
    system_account: SYS
";

/// How long an answer is waited for that is not to come.
const PATIENCE: Duration = Duration::from_millis(200);

fn brokers() -> Vec<Broker> {
    let ours = shard_counts().iter().map(|shards| Broker::with_config(*shards, CONFIG));
    let original = has_original().then(|| Broker::original(CONFIG));
    ours.chain(original).collect()
}

async fn connect(broker: &Broker, user: &str) -> Client {
    let options = ConnectOptions::with_user_and_password(user.to_owned(), "p".to_owned());
    options.connect(broker.url()).await.expect("the password is right")
}

/// The answer; `None` if there is none, an error if nobody listens.
async fn ask(client: &Client, subject: &str, payload: &str) -> Result<Option<Value>, ()> {
    ask_within(PATIENCE, client, subject, payload).await
}

async fn ask_within(
    patience: Duration,
    client: &Client,
    subject: &str,
    payload: &str,
) -> Result<Option<Value>, ()> {
    let request = client.request(subject.to_owned(), payload.to_owned().into());
    match tokio::time::timeout(patience, request).await {
        Ok(Ok(answer)) => Ok(Some(serde_json::from_slice(&answer.payload).expect("JSON"))),
        Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders => Err(()),
        Ok(Err(error)) => panic!("{subject}: {error}"),
        Err(_) => Ok(None),
    }
}

async fn id_of(system: &Client) -> String {
    let idz = ask(system, "$SYS.REQ.SERVER.PING.IDZ", "").await.expect("it listens");
    idz.expect("an answer")["id"].as_str().expect("text").to_owned()
}

/// Keys of a value and of what is in it, but of nothing that only one of both has.
fn shape(value: &Value) -> Value {
    const OF_ONE: [&str; 4] = ["memstats", "System recvQ", "shardcast", "http_req_stats"];
    match value {
        Value::Object(map) => {
            let keys = map.iter().filter(|(key, _)| !OF_ONE.contains(&key.as_str()));
            keys.map(|(key, value)| (key.clone(), shape(value))).collect()
        }
        _ => json!(null),
    }
}

#[tokio::test]
async fn pages_and_errors_have_the_form_of_nats_servers() {
    const REQUESTS: &[(&str, &str)] = &[
        ("SERVER.PING", ""),
        ("SERVER.PING", "{"),
        ("SERVER.PING.STATSZ", ""),
        ("SERVER.PING.IDZ", ""),
        ("SERVER.PING.HEALTHZ", ""),
        ("SERVER.PING.PROFILEZ", ""),
        ("SERVER.PING.PROFILEZ", "{\"name\": \"nonesuch\"}"),
        ("SERVER.PING.EXPVARZ", ""),
        ("SERVER.PING.IPQUEUESZ", ""),
        ("SERVER.PING.RAFTZ", ""),
        ("SERVER.PING.JSZ", ""),
        ("SERVER.PING.JSZ", "{\"leader_only\": true}"),
        ("SERVER.PING.JSZ", "{\"accounts\": true, \"streams\": true, \"limit\": 3}"),
        ("SERVER.PING.HEALTHZ", "{\"stream\": \"s\"}"),
        ("SERVER.PING.HEALTHZ", "{\"consumer\": \"c\", \"details\": true}"),
        ("SERVER.PING.HEALTHZ", "{\"js-enabled-only\": true}"),
        ("SERVER.PING.VARZ", ""),
        ("SERVER.PING.ACCOUNTZ", "{\"account\": \"A\"}"),
        ("ACCOUNT.A.INFO", ""),
        ("SERVER.PING.ROUTEZ", ""),
        ("SERVER.PING.GATEWAYZ", ""),
        ("SERVER.PING.LEAFZ", ""),
        ("SERVER.PING.ACCOUNTZ", ""),
        ("SERVER.PING.CONNZ", "{\"subscriptions\": true}"),
        ("SERVER.PING.CONNZ", "x"),
        ("SERVER.<id>.STATSZ", ""),
        ("SERVER.<id>.CONNZ", "{\"limit\": 1}"),
        ("SERVER.<id>.KICK", "{\"cid\": 12345678}"),
        ("SERVER.<id>.LDM", "{\"cid\": 12345678}"),
        ("SERVER.PING.KICK", "{}"),
        ("SERVER.PING.RELOAD", ""),
        ("SERVER.PING.NONESUCH", ""),
        ("SERVER.NOBODY.VARZ", ""),
        ("ACCOUNT.A.STATZ", ""),
        ("ACCOUNT.A.CONNS", ""),
        ("ACCOUNT.A.LEAFZ", ""),
        ("ACCOUNT.NONE.INFO", ""),
        ("ACCOUNT.NONE.CONNS", ""),
        ("ACCOUNT.PING.STATZ", "{\"accounts\": [\"A\"]}"),
        ("ACCOUNT.PING.CONNS", ""),
        ("ACCOUNT.NSUBS", "{\"acc\": \"A\"}"),
    ];
    let mut seen: Vec<Vec<String>> = Vec::new();
    for broker in brokers() {
        let system = connect(&broker, "sys").await;
        let _a = connect(&broker, "a").await;
        let id = id_of(&system).await;
        let mut shapes = Vec::new();
        for (subject, payload) in REQUESTS {
            let asked = format!("$SYS.REQ.{}", subject.replace("<id>", &id));
            let answer = ask(&system, &asked, payload).await;
            let shape = answer.map(|answer| answer.map(|answer| shape(&answer).to_string()));
            shapes.push(format!("{subject} {payload}: {shape:?}"));
        }
        seen.push(shapes);
    }
    let sorted = |text: &str| {
        let mut words: Vec<_> = text.split(['{', '}', ',']).map(str::to_owned).collect();
        words.sort();
        words
    };
    for pair in seen.windows(2) {
        let both = pair[0].iter().zip(&pair[1]);
        let differ: Vec<_> = both.filter(|(one, other)| sorted(one) != sorted(other)).collect();
        assert!(differ.is_empty(), "{differ:#?}");
    }
}

#[tokio::test]
async fn a_server_answers_when_it_is_meant() {
    const FILTERS: &[&str] = &[
        "{\"server_name\": \"one\"}",
        "{\"server_name\": \"on\"}",
        "{\"server_name\": \"on\", \"exact_match\": true}",
        "{\"server_name\": \"two\"}",
        "{\"host\": \"127.0.0.1\"}",
        "{\"host\": \"x\"}",
        "{\"cluster\": \"C\"}",
        "{\"cluster\": \"D\"}",
        "{\"tags\": [\"blue\"]}",
        "{\"tags\": [\"BLUE\", \"az:1\"]}",
        "{\"tags\": [\"blue\", \"red\"]}",
        "{\"domain\": \"d\"}",
        "{\"nonesuch\": 1}",
    ];
    let mut all = Vec::new();
    for broker in brokers() {
        let system = connect(&broker, "sys").await;
        let pages = ["", ".HEALTHZ", ".IDZ"];
        let each = FILTERS.iter().flat_map(|filter| pages.map(|page| (filter, page)));
        // All at once, so that there is time for late answers.
        let meant = each.map(async |(filter, page)| {
            let subject = format!("$SYS.REQ.SERVER.PING{page}");
            let answer = ask_within(PATIENCE * 20, &system, &subject, filter).await;
            (filter, page, answer.expect("it listens").is_some())
        });
        all.push(join_all(meant).await);
    }
    assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "{all:#?}");
}

#[tokio::test]
async fn subscriptions_are_counted_where_they_are() {
    for broker in brokers() {
        let (system, a) = (connect(&broker, "sys").await, connect(&broker, "a").await);
        let _subs = (
            a.subscribe("x.*").await.expect("connected"),
            a.queue_subscribe("x.1", "q".to_owned()).await.expect("connected"),
            a.subscribe("y").await.expect("connected"),
        );
        ask(&a, "$SYS.REQ.USER.INFO", "").await.expect("it listens");
        let of = |subject: &str| json!({"acc": "A", "subject": subject}).to_string();
        for (subject, count) in [("x.1", 2), ("x.2", 1), ("y", 1), ("z", 0)] {
            let answer = ask(&system, "$SYS.REQ.ACCOUNT.NSUBS", &of(subject)).await;
            assert_eq!(answer, Ok(Some(json!(count))), "{subject}");
        }
        assert_eq!(ask(&system, "$SYS.DEBUG.SUBSCRIBERS", "x.1").await, Ok(Some(json!(0))));
        assert_eq!(ask(&a, "$SYS.DEBUG.SUBSCRIBERS", "x.1").await, Err(()), "not exported");
    }
}

#[tokio::test]
async fn a_client_is_kicked_or_told_to_leave_by_its_number() {
    for broker in brokers() {
        let system = connect(&broker, "sys").await;
        let id = id_of(&system).await;
        let (ended, mut ends) = futures::channel::mpsc::unbounded();
        let options = ConnectOptions::with_user_and_password("a".to_owned(), "p".to_owned());
        let options = options.event_callback(move |event| {
            let ended = ended.clone();
            async move {
                let _ = ended.unbounded_send(event);
            }
        });
        let client = options.connect(broker.url()).await.expect("the password is right");
        let order = json!({"cid": client.server_info().client_id}).to_string();
        for (name, event) in [("LDM", Event::LameDuckMode), ("KICK", Event::Disconnected)] {
            let subject = format!("$SYS.REQ.SERVER.{id}.{name}");
            let answer = ask(&system, &subject, &order).await.expect("it listens");
            let answer = answer.expect("an answer");
            assert_eq!(answer.get("error"), None, "{name}");
            while within(ends.next()).await.expect("events") != event {}
        }
    }
}

#[tokio::test]
async fn a_reload_is_asked_for_and_its_failure_is_told() {
    for mut broker in brokers() {
        let system = connect(&broker, "sys").await;
        let subject = format!("$SYS.REQ.SERVER.{}.RELOAD", id_of(&system).await);
        broker.rewrite(&format!("{CONFIG}\nmax_payload: 1000\n"));
        let request = within(system.request(subject.clone(), "".into())).await;
        let answer: Value = serde_json::from_slice(&request.expect("an answer").payload).unwrap();
        assert_eq!(answer.get("error"), None, "{answer}");
        broker.wait_for_line("Reloaded server configuration");
        let greeting = Wire::ungreeted(&broker).line();
        assert!(greeting.contains("\"max_payload\":1000"), "in force when it is answered");
        broker.rewrite(&format!("{CONFIG}\nmax_payload: {{"));
        let request = within(system.request(subject, "".into())).await;
        let answer: Value = serde_json::from_slice(&request.expect("an answer").payload).unwrap();
        assert_eq!(answer["error"]["code"], 500, "{answer}");
    }
}
