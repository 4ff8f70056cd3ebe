//! Members of clusters, of either kind, and whether two of them are one system.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::{Client, ConnectOptions, HeaderMap, RequestErrorKind};
use futures::StreamExt;

use super::http::json;
use super::peers::{ask_until_answered, next, within};
use super::{Broker, is_nats_server};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ours(u32),
    Original,
    /// As Debian 12 has it: without pools.
    Old,
}
pub(crate) use Kind::{Old, Original, Ours};

/// A member of cluster `C` that dials the members in `seeds`.
pub(crate) fn member(kind: Kind, name: &str, seeds: &mut [&mut Broker], more: &str) -> Broker {
    start(kind, &config(name, &routes("127.0.0.1", seeds), "", more))
}

/// Where `seeds` are dialled, under this host name.
pub(crate) fn routes(host: &str, seeds: &mut [&mut Broker]) -> String {
    let url = |seed: &mut &mut Broker| format!("\"nats-route://{host}:{}\"", seed.route_port());
    seeds.iter_mut().map(url).collect::<Vec<_>>().join(", ")
}

/// The configuration of a member of cluster `C`, with `block` in its block `cluster`.
pub(crate) fn config(name: &str, routes: &str, block: &str, more: &str) -> String {
    format!(
        "server_name: {name}\nhttp: \"127.0.0.1:-1\"\ncluster {{ name: C, listen: \
         \"127.0.0.1:-1\", routes: [{routes}]\n{block} }}\n{more}\n"
    )
}

pub(crate) fn start(kind: Kind, config: &str) -> Broker {
    match kind {
        Ours(shards) => Broker::with_config(shards, config),
        Original => Broker::original(config),
        Old => Broker::of_program(&super::old_original().expect("it was looked for"), config),
    }
}

/// Both ways to pair ours with the original, if that is here, and a pair of ours.
pub(crate) fn pairs() -> Vec<[Kind; 2]> {
    let mut pairs = vec![[Ours(2), Ours(2)]];
    if has_original() {
        pairs.extend([[Ours(2), Original], [Original, Ours(2)]]);
    }
    pairs
}

/// Whether nats-server is here; says so if it is not.
pub(crate) fn has_original() -> bool {
    let found = !is_nats_server() && super::has_original();
    if !found {
        say("skipped: no nats-server\n");
    }
    found
}

/// The nats-servers that are here; says so if one is not.
pub(crate) fn originals() -> Vec<Kind> {
    let mut kinds = Vec::new();
    if has_original() {
        kinds.push(Original);
        match super::old_original() {
            Some(_) => kinds.push(Old),
            None => say("skipped: SHARDCAST_NATS_SERVER_2_9 names no nats-server 2.9\n"),
        }
    }
    kinds
}

fn say(line: &str) {
    std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).ok();
}

/// How many routes a member has to each other one.
pub(crate) fn routes_to_each(broker: &Broker) -> Vec<usize> {
    let routes = json(broker, "/routez")["routes"].as_array().cloned().unwrap_or_default();
    let mut counts: HashMap<String, usize> = HashMap::new();
    for route in routes {
        *counts.entry(route["remote_id"].to_string()).or_default() += 1;
    }
    counts.into_values().collect()
}

pub(crate) async fn client(broker: &Broker) -> Client {
    let options = ConnectOptions::new().retry_on_initial_connect();
    within(options.connect(broker.url())).await.expect("it accepts")
}

/// What `subscriber` wants holds where `publisher` publishes: a request gets through, and
/// interest travels in order.
pub(crate) async fn meet(subscriber: &Client, publisher: &Client) {
    let subject = subscriber.new_inbox();
    let mut calls = subscriber.subscribe(subject.clone()).await.expect("connected");
    subscriber.flush().await.expect("connected");
    let answer = async {
        let call = next(&mut calls).await;
        let reply = call.reply.expect("a request has a reply subject");
        subscriber.publish(reply, "".into()).await.expect("connected");
    };
    futures::join!(answer, ask_until_answered(publisher, &subject, ""));
}

/// Messages, headers, answers and queue groups between two members.
pub(crate) async fn check(from: &Broker, to: &Broker) {
    let (publisher, subscriber) = (client(from).await, client(to).await);
    let mut plain = subscriber.subscribe("check.*").await.expect("connected");
    meet(&subscriber, &publisher).await;
    let mut headers = HeaderMap::new();
    headers.insert("A", "1");
    for number in 0..200 {
        let payload = number.to_string().into();
        let sent = match number % 3 {
            0 => publisher.publish_with_headers("check.a", headers.clone(), payload).await,
            _ => publisher.publish("check.a", payload).await,
        };
        sent.expect("connected");
    }
    for number in 0..200 {
        let message = next(&mut plain).await;
        assert_eq!(message.payload, number.to_string().as_bytes(), "in order, each once");
        let has_header = message.headers.is_some_and(|headers| headers.get("A").is_some());
        assert_eq!(has_header, number % 3 == 0);
    }
    check_queue_group(&publisher, &subscriber).await;
    let gone = publisher.request("check-nobody", "".into()).await.expect_err("nobody listens");
    assert_eq!(gone.kind(), RequestErrorKind::NoResponders);
}

/// Exactly one member of a group, on whichever server, gets each message, and each member some.
async fn check_queue_group(one: &Client, other: &Client) {
    const MESSAGES: usize = 400;
    let group = || "g".to_owned();
    let mut members = Vec::new();
    for client in [one, other, other] {
        members.push(client.queue_subscribe("group.*", group()).await.expect("connected"));
    }
    meet(other, one).await;
    meet(one, other).await;
    for number in 0..MESSAGES {
        one.publish("group.a", number.to_string().into()).await.expect("connected");
    }
    let mut got: HashMap<Vec<u8>, usize> = HashMap::new();
    let mut by_member = [0; 3];
    let mut all = futures::stream::select_all(
        members.into_iter().enumerate().map(|(at, member)| member.map(move |m| (at, m)).boxed()),
    );
    while got.len() < MESSAGES {
        let (at, message) = within(all.next()).await.expect("subscriptions go on");
        *got.entry(message.payload.to_vec()).or_default() += 1;
        by_member[at] += 1;
    }
    // What is sent twice would be on its way before this answer.
    meet(other, one).await;
    let more = futures::FutureExt::now_or_never(all.next());
    assert!(more.is_none() && got.values().all(|times| *times == 1), "{by_member:?}");
    assert!(by_member.iter().all(|count| *count > 0), "{by_member:?}");
}

/// Asks again until it is so.
pub(crate) async fn until<F: Future<Output = bool>>(mut holds: impl FnMut() -> F) {
    let asking = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(asking).await;
}
