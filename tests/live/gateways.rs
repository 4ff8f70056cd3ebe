//! Clusters that are joined by gateways, ours and nats-server's.
//!
//! Without nats-server the mixed tests say so and pass, except under `CI`. The probe of the
//! conformance corpus runs where the corpus is (`conformance.rs`).

use std::path::Path;
use std::process::{Command, Stdio};

use crate::broker::authority::Authority;
use crate::broker::http::json;
use crate::broker::members::{
    Kind, Original, Ours, client, has_original, meet, pairs, start, until,
};
use crate::broker::peers::next;
use crate::broker::wire::Wire;
use crate::broker::{Broker, server_command};
use async_nats::{Client, HeaderMap, RequestErrorKind};
use rcgen::SanType;

/// A server of a cluster of that name that dials the clusters in `seeds`, with more in its block.
fn cluster(
    kind: Kind,
    name: &str,
    seeds: &mut [(&str, &mut Broker)],
    block: &str,
    more: &str,
) -> Broker {
    let own = config(&format!("{name}1"), name, &remotes("127.0.0.1", seeds), block);
    start(kind, &(own + more))
}

fn config(server: &str, cluster: &str, remotes: &str, block: &str) -> String {
    format!(
        "server_name: {server}\nhttp: \"127.0.0.1:-1\"\ngateway {{ name: {cluster}, listen: \
         \"127.0.0.1:-1\", gateways: [{remotes}]\n{block} }}\n"
    )
}

/// Entries of `gateways` for these clusters, under that host name.
fn remotes(host: &str, seeds: &mut [(&str, &mut Broker)]) -> String {
    let remote = |(name, seed): &mut (&str, &mut Broker)| {
        let port = gateway_port(seed);
        format!("{{ name: {name}, url: \"nats://{host}:{port}\" }}")
    };
    seeds.iter_mut().map(remote).collect::<Vec<_>>().join(", ")
}

fn gateway_port(broker: &mut Broker) -> u16 {
    broker.logged_port("Listening for gateways connections on ")
}

/// Waits until a server has gateways to so many clusters, in both directions.
async fn joined(broker: &Broker, clusters: usize) {
    until(|| async {
        let page = json(broker, "/gatewayz");
        let count = |field: &str| page[field].as_object().map_or(0, serde_json::Map::len);
        count("outbound_gateways") == clusters && count("inbound_gateways") == clusters
    })
    .await;
}

/// Messages with and without headers, requests from fresh inboxes and queue groups, from one
/// cluster to another.
async fn check(from: &Broker, to: &Broker) {
    let (publisher, subscriber) = (client(from).await, client(to).await);
    let mut plain = subscriber.subscribe("check.*").await.expect("connected");
    meet(&subscriber, &publisher).await;
    let mut headers = HeaderMap::new();
    headers.insert("A", "1");
    for number in 0..100 {
        let payload = number.to_string().into();
        let sent = match number % 3 {
            0 => publisher.publish_with_headers("check.a", headers.clone(), payload).await,
            _ => publisher.publish("check.a", payload).await,
        };
        sent.expect("connected");
    }
    for number in 0..100 {
        let message = next(&mut plain).await;
        assert_eq!(message.payload, number.to_string().as_bytes(), "in order, each once");
        assert_eq!(message.headers.is_some(), number % 3 == 0);
    }
    check_group(&publisher, &subscriber).await;
    let gone = publisher.request("check-nobody", "".into()).await.expect_err("nobody listens");
    assert_eq!(gone.kind(), RequestErrorKind::NoResponders);
}

/// A member of a group in another cluster is served as long as there is none in the own one.
async fn check_group(own: &Client, other: &Client) {
    let group = || "g".to_owned();
    let mut far = other.queue_subscribe("group.*", group()).await.expect("connected");
    meet(other, own).await;
    for number in 0..50 {
        own.publish("group.a", number.to_string().into()).await.expect("connected");
    }
    for number in 0..50 {
        assert_eq!(next(&mut far).await.payload, number.to_string().as_bytes());
    }
    let mut near = own.queue_subscribe("group.*", group()).await.expect("connected");
    meet(own, other).await;
    for number in 0..50 {
        own.publish("group.a", number.to_string().into()).await.expect("connected");
    }
    for number in 0..50 {
        assert_eq!(next(&mut near).await.payload, number.to_string().as_bytes());
    }
    meet(other, own).await;
    let more = futures::FutureExt::now_or_never(futures::StreamExt::next(&mut far));
    assert!(more.is_none(), "the own cluster's member is enough");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clusters_are_joined_whoever_dials() {
    for kinds in pairs().into_iter().chain([[Ours(1), Ours(4)]]) {
        let mut first = cluster(kinds[0], "A", &mut [], "", "");
        let second = cluster(kinds[1], "B", &mut [("A", &mut first)], "", "");
        joined(&first, 1).await;
        joined(&second, 1).await;
        check(&first, &second).await;
        check(&second, &first).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_a_fresh_inbox_finds_the_member_that_has_asked() {
    let mut sides = vec![[Ours(2), Ours(4)]];
    if has_original() {
        sides.extend([[Original, Ours(2)], [Ours(2), Original]]);
    }
    for [asking, answering] in sides {
        let block = |routes: &str| {
            format!("cluster {{ name: A, listen: \"127.0.0.1:-1\", routes: [{routes}] }}\n")
        };
        let mut one = start(asking, &(config("a1", "A", "", "") + &block("")));
        let routes = format!("\"nats-route://127.0.0.1:{}\"", one.route_port());
        let mut other = start(asking, &(config("a2", "A", "", "") + &block(&routes)));
        let far = cluster(answering, "B", &mut [("A", &mut one)], "", "");
        // Every server of a cluster has a gateway of its own, and an answer may come by any.
        for broker in [&one, &other] {
            until(|| async { json(broker, "/gatewayz")["outbound_gateways"]["B"].is_object() })
                .await;
        }
        let responder = client(&far).await;
        let mut requests = responder.queue_subscribe("svc", "g".to_owned()).await.expect("open");
        let answers = tokio::spawn(async move {
            while let Some(request) = futures::StreamExt::next(&mut requests).await {
                let reply = request.reply.expect("a reply");
                assert!(!reply.starts_with("_GR_."), "a client sees the plain reply: {reply}");
                responder.publish(reply, request.payload).await.expect("connected");
            }
        });
        for broker in [&mut one, &mut other] {
            for number in 0..20 {
                // Each client has an inbox that nobody else has heard of.
                let asker = client(broker).await;
                let answer = async {
                    loop {
                        match asker.request("svc", number.to_string().into()).await {
                            Ok(answer) => break answer,
                            Err(error) => {
                                assert_eq!(error.kind(), RequestErrorKind::NoResponders);
                            }
                        }
                    }
                };
                let answer = crate::broker::peers::within(answer).await;
                assert_eq!(answer.payload, number.to_string().as_bytes());
            }
        }
        answers.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clusters_find_each_other_by_a_third_and_lose_each_other_without_harm() {
    let mut first = cluster(Ours(2), "A", &mut [], "", "");
    let second = cluster(Ours(2), "B", &mut [("A", &mut first)], "", "");
    let mut third = cluster(Ours(2), "C", &mut [("A", &mut first)], "", "");
    for broker in [&first, &second, &third] {
        joined(broker, 2).await;
    }
    check(&second, &third).await;
    check(&third, &second).await;
    third.kill();
    joined(&first, 1).await;
    joined(&second, 1).await;
    check(&first, &second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn imports_and_the_system_account_reach_over_gateways() {
    let accounts = "accounts { S { users: [{user: s, password: x}], \
         exports: [{service: \"ask.*\"}, {stream: \"e.>\"}] }, \
         T { users: [{user: t, password: x}], \
         imports: [{service: {account: S, subject: \"ask.*\"}}, \
         {stream: {account: S, subject: \"e.>\"}, prefix: got}] }, \
         SYS { users: [{user: sys, password: x}] } }\nsystem_account: SYS\n";
    for kinds in pairs() {
        let mut first = cluster(kinds[0], "A", &mut [], "", accounts);
        let second = cluster(kinds[1], "B", &mut [("A", &mut first)], "", accounts);
        joined(&first, 1).await;
        joined(&second, 1).await;
        let log_in = |broker: &Broker, user: &str| {
            let options =
                async_nats::ConnectOptions::with_user_and_password(user.to_owned(), "x".to_owned());
            options.connect(broker.url())
        };
        let server = log_in(&first, "s").await.expect("a user");
        let user = log_in(&second, "t").await.expect("a user");
        let mut asked = server.subscribe("ask.*").await.expect("connected");
        server.flush().await.expect("connected");
        let answering = server.clone();
        tokio::spawn(async move {
            while let Some(request) = futures::StreamExt::next(&mut asked).await {
                answering.publish(request.reply.expect("a reply"), "yes".into()).await.ok();
            }
        });
        let answer = crate::broker::peers::within(async {
            loop {
                if let Ok(answer) = user.request("ask.a", "".into()).await {
                    break answer;
                }
            }
        });
        assert_eq!(answer.await.payload, "yes");
        let mut events = user.subscribe("got.e.*").await.expect("connected");
        user.flush().await.expect("connected");
        let event = async {
            let mut events = std::pin::pin!(futures::StreamExt::next(&mut events));
            loop {
                server.publish("e.x", "event".into()).await.expect("connected");
                let wait = tokio::time::sleep(std::time::Duration::from_millis(50));
                tokio::select! {
                    event = &mut events => break event.expect("it goes on"),
                    () = wait => {}
                }
            }
        };
        let event = crate::broker::peers::within(event).await;
        assert_eq!((&*event.subject, &event.payload[..]), ("got.e.x", &b"event"[..]));
        let system = log_in(&first, "sys").await.expect("a user");
        let inbox = system.new_inbox();
        let mut pongs = system.subscribe(inbox.clone()).await.expect("connected");
        let mut names = std::collections::BTreeSet::new();
        system.publish_with_reply("$SYS.REQ.SERVER.PING", inbox, "".into()).await.expect("ok");
        while names.len() < 2 {
            let pong: serde_json::Value =
                serde_json::from_slice(&next(&mut pongs).await.payload).expect("JSON");
            names.insert(pong["server"]["name"].as_str().expect("a name").to_owned());
        }
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["A1", "B1"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clusters_with_certificates_and_a_password_are_joined() {
    let authority = Authority::new("the authority of this test");
    let name = SanType::DnsName("localhost".try_into().expect("a name"));
    authority.sign("member", "member", vec![name]);
    let file = |name: &str| authority.file(name).display().to_string();
    let block = format!(
        "authorization {{ user: g, password: w }}\ntls {{ cert_file: \"{}\", key_file: \"{}\", \
         ca_file: \"{}\", timeout: 5 }}",
        file("member.pem"),
        file("member.key"),
        file("ca.pem")
    );
    // Clusters that are learnt of are dialled by the name that they advertise.
    let block = block + "\nadvertise: \"localhost\"";
    for kinds in pairs() {
        let mut first = cluster(kinds[0], "A", &mut [], &block, "");
        let to_first = remotes("localhost", &mut [("A", &mut first)]);
        let second = start(kinds[1], &config("B1", "B", &to_first, &block));
        joined(&first, 1).await;
        joined(&second, 1).await;
        check(&first, &second).await;
        let varz = &json(&first, "/varz")["gateway"];
        assert_eq!((&varz["name"], &varz["tls_required"]), (&"A".into(), &true.into()), "{varz}");
    }
}

#[test]
fn who_is_not_known_or_has_no_password_is_refused() {
    let known = "authorization { user: g, password: w, timeout: 1 }, reject_unknown: true";
    let mut broker = cluster(Ours(2), "A", &mut [], known, "");
    let refused =
        answer(gateway_port(&mut broker), "CONNECT {\"name\":\"N\",\"gateway\":\"B\"}\r\n");
    assert!(refused.contains("-ERR 'Connection to gateway \"A\" rejected'"), "{refused}");
    let login = "authorization { user: g, password: w, timeout: 1 }";
    let mut broker = cluster(Ours(2), "A", &mut [], login, "");
    let port = gateway_port(&mut broker);
    for line in [
        "CONNECT {\"name\":\"N\",\"gateway\":\"B\"}\r\n",
        "CONNECT {\"name\":\"N\",\"gateway\":\"B\",\"user\":\"g\",\"pass\":\"x\"}\r\n",
        "RMSG $G a 1\r\nx\r\n",
        "RS+ $G a\r\n",
        "A- $G\r\n",
    ] {
        let refused = answer(port, line);
        assert!(refused.contains("-ERR 'Authorization Violation'"), "{line}: {refused}");
    }
    assert!(answer(port, "").contains("-ERR 'Authentication Timeout'"));
}

/// All that a gateway port says to a stranger that sends this behind its INFO.
fn answer(port: u16, line: &str) -> String {
    let mut wire = Wire::at(port);
    wire.send(line.as_bytes());
    String::from_utf8_lossy(&wire.drain_to_end()).into_owned()
}

#[test]
fn the_probe_of_gateways_passes_with_one_shard() {
    probe(1);
}

#[test]
fn the_probe_of_gateways_passes_with_two_shards() {
    probe(2);
}

#[test]
#[ignore = "CI has the time for all of them"]
fn the_probe_of_gateways_passes_with_four_shards() {
    probe(4);
}

/// Runs the probe of the conformance corpus against ours, with nats-server on the other side.
fn probe(shards: u32) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let probe = crate::conformance::shared(root).join("links/gateway_probe.py");
    if !probe.exists() || !has_original() {
        assert!(std::env::var_os("CI").is_none(), "{} is not here", probe.display());
        eprintln!("skipped: the probe of gateways, {shards} shards");
        return;
    }
    let low = 22_000 + shards * 500 + std::process::id() % 3 * 100;
    let output = Command::new("python3")
        .arg(&probe)
        .args(["--server", &format!("{} -c {{config}} --shards {shards}", server_command())])
        .args(["--real", "nats-server -c {config}", "--slow", "3"])
        .args(["--ports", &format!("{low}-{}", low + 99)])
        .stdin(Stdio::null())
        .output()
        .expect("python3 runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
}
