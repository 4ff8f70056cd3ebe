//! Clusters in which something fails: members that are killed or sent away, networks that drop
//! packets, peers that are silent, slow, or send anything.

use std::time::Duration;

use crate::broker::http::json;
use crate::broker::namespaces::{self, Partitionable};
use crate::broker::peers::{ask_until_answered, next, within};
use crate::broker::wire::Wire;
use crate::broker::{Broker, is_nats_server};
use async_nats::{Client, ConnectOptions};
use rustix::process::Signal;

const QUIET: &[u8] = b"CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true}\r\n";

/// The text of a member's configuration; `at` is where it listens for routes.
fn config(name: &str, at: &str, routes: &[String], cluster: &str, more: &str) -> String {
    let routes: Vec<String> =
        routes.iter().map(|route| format!("\"nats-route://{route}\"")).collect();
    format!(
        "server_name: {name}\nhttp: \"127.0.0.1:-1\"\ncluster {{ name: C, listen: \"{at}\", \
         routes: [{}]\n{cluster} }}\n{more}\n",
        routes.join(", ")
    )
}

fn seeds_of(seeds: &mut [&mut Broker]) -> Vec<String> {
    seeds.iter_mut().map(|seed| format!("127.0.0.1:{}", seed.route_port())).collect()
}

fn member(name: &str, seeds: &mut [&mut Broker], cluster: &str, more: &str) -> Broker {
    Broker::with_config(2, &config(name, "127.0.0.1:-1", &seeds_of(seeds), cluster, more))
}

/// Where the server that a connection begins at says that clients may connect.
fn urls_in(info: &str) -> Vec<String> {
    let json = info.strip_prefix("INFO ").expect("an INFO");
    let info: serde_json::Value = serde_json::from_str(json).expect("JSON");
    let urls = info["connect_urls"].as_array().cloned().unwrap_or_default();
    urls.iter().map(|url| url.as_str().expect("text").to_owned()).collect()
}

fn urls(broker: &Broker) -> usize {
    urls_in(&Wire::ungreeted(broker).line()).len()
}

/// Asks again until it is so.
fn until(mut holds: impl FnMut() -> bool) {
    let asking = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime").block_on(within(asking));
}

/// A peer of the test's own, accepted by the member as a route.
fn peer(broker: &mut Broker, id: &str) -> Wire {
    let mut wire = Wire::at(broker.route_port());
    let hello = format!(
        "CONNECT {{\"name\":\"{id}\",\"cluster\":\"C\",\"echo\":false}}\r\nINFO \
         {{\"server_id\":\"{id}\",\"server_name\":\"{id}\",\"headers\":true,\"cluster\":\"C\"}}\r\n"
    );
    wire.send(hello.as_bytes());
    wire
}

async fn client(broker: &Broker) -> Client {
    let options = ConnectOptions::new().retry_on_initial_connect();
    within(options.connect(broker.url())).await.expect("it accepts")
}

/// A client that knows one member only goes on at others when that one is killed, and comes to no
/// harm when it is back: nothing that was answered is lost, nothing comes twice or out of order.
#[tokio::test(flavor = "multi_thread")]
async fn clients_of_a_killed_member_go_on_at_others_and_lose_nothing_that_was_answered() {
    let mut first = member("a", &mut [], "", "");
    let mut second = member("b", &mut [&mut first], "", "");
    let third = member("c", &mut [&mut first, &mut second], "", "");
    tokio::task::block_in_place(|| until(|| [&first, &second, &third].map(urls) == [3; 3]));
    let listener = client(&first).await;
    let mut numbers = listener.subscribe("numbers").await.expect("connected");
    let mut calls = listener.subscribe("answer").await.expect("connected");
    let answering = tokio::spawn({
        let listener = listener.clone();
        async move {
            while let Some(call) = futures::StreamExt::next(&mut calls).await {
                let reply = call.reply.expect("a request has a reply subject");
                listener.publish(reply, "".into()).await.ok();
            }
        }
    });
    let publisher = client(&second).await;
    ask_until_answered(&publisher, "answer", "").await;
    let mut answered: Vec<usize> = Vec::new();
    let mut number = 0;
    for round in 0..30 {
        let begin = number;
        for _ in 0..20 {
            // What does not leave is not answered either.
            publisher.publish("numbers", number.to_string().into()).await.ok();
            number += 1;
        }
        if round == 10 {
            second.kill();
        }
        if round == 20 {
            second.restart();
        }
        // What a client writes while it is between two servers is in no order with the rest: only
        // an answer that comes at once is one for this round.
        match within(publisher.request("answer", "".into())).await {
            Ok(_) if round != 10 => answered.extend(begin..number),
            _ => {
                ask_again(&publisher).await;
            }
        }
    }
    assert!(answered.len() >= 400, "{} of {number} were answered", answered.len());
    publisher.publish("numbers", "end".into()).await.expect("connected");
    let mut got: Vec<usize> = Vec::new();
    loop {
        let message = next(&mut numbers).await;
        let text = std::str::from_utf8(&message.payload).expect("text");
        if text == "end" {
            break;
        }
        got.push(text.parse().expect("a number"));
    }
    assert!(got.is_sorted_by(|one, other| one < other), "in order, and none twice: {got:?}");
    let missing: Vec<_> = answered.iter().filter(|number| !got.contains(number)).collect();
    assert!(missing.is_empty(), "{missing:?} are lost");
    answering.abort();
}

/// Asks until somebody answers, whatever comes between.
async fn ask_again(client: &Client) {
    let asking = async {
        while client.request("answer", "".into()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(asking).await;
}

#[test]
fn when_a_member_is_sent_away_the_clients_of_others_are_told_to_avoid_it() {
    let slow = "lame_duck_duration: \"30s\"\nlame_duck_grace_period: \"20s\"\n";
    let mut first = member("a", &mut [], "", "");
    let second = member("b", &mut [&mut first], "", slow);
    let mut others = vec![first];
    if !is_nats_server() && crate::broker::has_original() {
        let seeds = seeds_of(&mut [&mut others[0]]);
        others.push(Broker::original(&config("o", "127.0.0.1:-1", &seeds, "", "")));
    }
    let all = others.len() + 1;
    until(|| urls(&second) == all && others.iter().all(|other| urls(other) == all));
    let gone = format!("127.0.0.1:{}", second.port());
    let mut told: Vec<Wire> = others
        .iter()
        .map(|other| {
            let mut wire = Wire::open(other);
            wire.send(b"CONNECT {\"verbose\":false,\"protocol\":1}\r\nPING\r\n");
            while wire.line() != "PONG" {}
            wire
        })
        .collect();
    let mut staying = Wire::connect(&second);
    second.signal(Signal::USR2);
    for wire in &mut told {
        loop {
            let urls = urls_in(&wire.line());
            if !urls.contains(&gone) {
                assert_eq!(urls.len(), all - 1, "{urls:?}");
                break;
            }
        }
    }
    // Those who are there are served on.
    staying.send(b"SUB a 1\r\nPUB a 1\r\nx\r\n");
    staying.expect(b"MSG a 1 1\r\nx\r\n");
}

#[test]
fn a_peer_that_does_not_answer_is_stale_and_what_it_wanted_is_forgotten() {
    let mut broker = member("a", &mut [], "ping_interval: \"150ms\", ping_max: 2", "");
    let mut peer = peer(&mut broker, "SILENT");
    peer.send(b"RS+ $G wanted\r\n");
    let mut asker = Wire::open(&broker);
    asker.send(QUIET);
    asker.send(b"SUB reply 1\r\nPING\r\n");
    while asker.line() != "PONG" {}
    // Nothing that it reads is answered from here on.
    let heard = String::from_utf8(peer.drain_to_end()).expect("text");
    assert_eq!(heard.lines().filter(|line| *line == "PING").count(), 2, "{heard}");
    assert!(heard.ends_with("-ERR 'Stale Connection'\r\n"), "{heard}");
    until(|| json(&broker, "/varz")["routes"] == 0);
    asker.send(b"PUB wanted reply 0\r\n\r\n");
    assert!(asker.line().starts_with("HMSG reply 1"), "nobody is there any more");
}

#[test]
fn a_peer_that_reads_nothing_is_cut_and_nobody_else_misses_anything() {
    const WINDOW: usize = 50;
    for limit in ["max_pending: 2MB", "write_deadline: \"500ms\""] {
        let mut broker = member("a", &mut [], "", limit);
        let mut slow = peer(&mut broker, "SLOW");
        slow.send(b"RS+ $G flood\r\n");
        let healthy = member("b", &mut [&mut broker], "", "");
        let mut near = Wire::connect(&broker);
        near.send(b"SUB flood 1\r\n");
        near.sync();
        let mut far = Wire::connect(&healthy);
        far.send(b"SUB flood 1\r\n");
        far.sync();
        let mut publisher = Wire::open(&broker);
        publisher.send(QUIET);
        // The far subscriber is known when a message of another subject comes through.
        far.send(b"SUB ready 2\r\n");
        far.sync();
        publisher.send(b"SUB none 1\r\nPING\r\n");
        while publisher.line() != "PONG" {}
        loop {
            publisher.send(b"PUB ready none 0\r\n\r\nPING\r\n");
            if publisher.line() == "PONG" {
                break;
            }
            while publisher.line() != "PONG" {}
        }
        far.expect(b"MSG ready 2 none 0\r\n\r\n");
        let payload = [b'x'; 4096];
        let published = [b"PUB flood 4096\r\n", &payload[..], b"\r\n"].concat().repeat(WINDOW);
        let wanted = [b"MSG flood 1 4096\r\n", &payload[..], b"\r\n"].concat().repeat(WINDOW);
        // No more is under way than who reads can take; who does not read is soon behind.
        until(|| {
            publisher.send(&published);
            near.expect(&wanted);
            far.expect(&wanted);
            json(&broker, "/varz")["remotes"] == 1
        });
        let name = json(&broker, "/routez")["routes"][0]["remote_name"].clone();
        assert_eq!(name, "b", "{limit}");
        assert!(json(&broker, "/varz")["slow_consumers"].as_u64() >= Some(1), "{limit}");
        drop(slow);
    }
}

#[test]
fn whatever_a_peer_sends_its_server_goes_on() {
    let mut broker = member("a", &mut [], "", "");
    let mut neighbour = Wire::connect(&broker);
    let files = broker.open_files();
    let seed = fastrand::u64(..);
    let mut rng = fastrand::Rng::with_seed(seed);
    println!("seed {seed}");
    let good: &[&[u8]] = &[
        b"RS+ $G a\r\n",
        b"RS+ $G a.> q 3\r\n",
        b"RS- $G a\r\n",
        b"RMSG $G near 1\r\nx\r\n",
        b"RMSG $G near | q 1\r\nx\r\n",
        b"HMSG $G near + r q 12 13\r\nNATS/1.0\r\n\r\nx\r\n",
        b"PING\r\nPONG\r\n",
        b"INFO {\"server_id\":\"P\",\"connect_urls\":[\"x:1\"]}\r\n",
        b"INFO {\"server_id\":\"Q\",\"ip\":\"nats-route://127.0.0.1:1/\"}\r\n",
        b"LS+ $G x\r\nAS+ $G\r\nLMSG $G near 1\r\nx\r\n",
    ];
    for round in 0..60 {
        let registers = rng.u32(..4) > 0;
        let mut wire = match registers {
            true => peer(&mut broker, &format!("P{round}")),
            false => Wire::at(broker.route_port()),
        };
        let mut bytes: Vec<u8> = Vec::new();
        for _ in 0..rng.usize(1..40) {
            bytes.extend_from_slice(good[rng.usize(..good.len())]);
        }
        for _ in 0..rng.usize(..6) {
            let at = rng.usize(..bytes.len());
            match rng.u32(..4) {
                0 => bytes[at] = rng.u8(..),
                1 => bytes.truncate(at + 1),
                2 => drop(bytes.remove(at)),
                _ => bytes.insert(at, b"0 \r\n\0|+"[rng.usize(..7)]),
            }
            if bytes.is_empty() {
                break;
            }
        }
        for piece in bytes.chunks(rng.usize(1..200)) {
            // It may have closed already.
            if !wire.try_send(piece) {
                break;
            }
        }
        if rng.bool() {
            wire.reset();
        }
        neighbour.send(format!("SUB own.{round} {round}\r\nPUB own.{round} 1\r\nx\r\n").as_bytes());
        neighbour.expect(format!("MSG own.{round} {round} 1\r\nx\r\n").as_bytes());
    }
    until(|| json(&broker, "/varz")["routes"] == 0);
    until(|| broker.open_files() <= files);
}

#[test]
fn members_that_a_network_parts_go_on_alone_and_find_each_other_again() {
    let Some(network) = Partitionable::new() else { return };
    let (near, far) = (network.side(0), network.side(1));
    let at = |side| format!("{}:6222", Partitionable::address(side));
    let start = |side: usize, routes: &[String]| {
        let cluster = "ping_interval: \"200ms\"";
        let config = config(&format!("m{side}"), &at(side), routes, cluster, "");
        Broker::in_namespace(&network.side(side), 2, &config)
    };
    let first = start(0, &[]);
    let second = start(1, &[at(0)]);
    let open = |namespace: &str, broker: &Broker| {
        let port = broker.port();
        let mut wire = namespaces::within(namespace, move || Wire::at(port));
        wire.send(QUIET);
        wire
    };
    let mut publisher = open(&near, &first);
    publisher.send(b"SUB reply 1\r\nSUB near 2\r\nPING\r\n");
    while publisher.line() != "PONG" {}
    let mut listener = open(&far, &second);
    listener.send(b"SUB far 1\r\nPING\r\n");
    while listener.line() != "PONG" {}
    /// Whether anybody is there for what is published to `far`.
    fn is_heard(publisher: &mut Wire) -> bool {
        publisher.send(b"PUB near 0\r\n\r\n");
        publisher.expect(b"MSG near 2 0\r\n\r\n");
        publisher.send(b"PUB far reply 1\r\nx\r\nPING\r\n");
        let mut is_heard = true;
        loop {
            match publisher.line() {
                line if line == "PONG" => return is_heard,
                line if line.starts_with("HMSG reply") => is_heard = false,
                _ => {}
            }
        }
    }
    let mut heard = 0;
    for _ in 0..2 {
        until(|| is_heard(&mut publisher));
        listener.expect(b"MSG far 1 reply 1\r\nx\r\n");
        heard += 1;
        network.join(false);
        // Alone it serves its own, and in the end says that nobody else is there.
        until(|| !is_heard(&mut publisher));
        network.join(true);
        // What was sent into the broken route may have been on its way.
        drop(listener);
        listener = open(&far, &second);
        listener.send(b"SUB far 1\r\nPING\r\n");
        while listener.line() != "PONG" {}
    }
    assert_eq!(heard, 2);
}
