//! Clusters: of this broker alone, and mixed with the nats-server on the path.
//!
//! Without nats-server the mixed tests say so and pass, except under `CI`; the same holds for the
//! nats-server 2.9 that `SHARDCAST_NATS_SERVER_2_9` names.

use crate::broker::http::json;
use crate::broker::members::{
    Original, Ours, check, client, has_original, meet, member, originals, routes_to_each, start,
    until,
};
use crate::broker::peers::{next, within};
use crate::broker::wire::Wire;
use crate::broker::{Broker, shard_counts};
use async_nats::{ConnectOptions, RequestErrorKind};
use futures::StreamExt;

#[tokio::test(flavor = "multi_thread")]
async fn two_of_ours_are_one_system() {
    for &shards in shard_counts() {
        let mut first = member(Ours(shards), "a", &mut [], "");
        let second = member(Ours(shards), "b", &mut [&mut first], "");
        check(&first, &second).await;
        check(&second, &first).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ours_and_the_original_are_one_system_whoever_dials() {
    let pairs = originals().into_iter().flat_map(|kind| [[Ours(2), kind], [kind, Ours(2)]]);
    for kinds in pairs {
        let mut first = member(kinds[0], "a", &mut [], "");
        let second = member(kinds[1], "b", &mut [&mut first], "");
        check(&first, &second).await;
        check(&second, &first).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_members_find_one_another_by_one_of_them() {
    let mut meshes = vec![[Ours(2), Ours(2), Ours(2)]];
    for kind in originals() {
        meshes.extend([
            [Ours(2), kind, Original],
            [kind, Ours(2), Ours(2)],
            [kind, Original, Ours(2)],
        ]);
    }
    for kinds in meshes {
        let mut seed = member(kinds[0], "a", &mut [], "");
        let second = member(kinds[1], "b", &mut [&mut seed], "");
        let third = member(kinds[2], "c", &mut [&mut seed], "");
        let all = [&seed, &second, &third];
        for from in all {
            for to in all.iter().filter(|to| !std::ptr::eq(**to, from)) {
                check(from, to).await;
            }
        }
        // Every member tells its clients of all.
        for broker in all {
            until(|| async { urls(broker) == 3 }).await;
        }
    }
}

/// How many addresses for clients a member tells them.
fn urls(broker: &Broker) -> usize {
    let greeting = Wire::ungreeted(broker).line();
    let json = greeting.strip_prefix("INFO ").expect("a greeting");
    let info: serde_json::Value = serde_json::from_str(json).expect("JSON");
    info["connect_urls"].as_array().map_or(0, Vec::len)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_members_that_dial_each_other_keep_one_pool_of_routes() {
    let mut first = member(Ours(2), "a", &mut [], "");
    let mut second = member(Ours(2), "b", &mut [&mut first], "");
    // A third one dials both, and twice the same.
    let port = first.route_port();
    let routes: String = [port, second.route_port(), port]
        .map(|port| format!("\"nats-route://127.0.0.1:{port}\""))
        .join(", ");
    let config = format!(
        "server_name: c\nhttp: \"127.0.0.1:-1\"\ncluster {{ name: C, listen: \"127.0.0.1:-1\", \
         routes: [{routes}] }}\n"
    );
    let third = Broker::with_config(2, &config);
    for broker in [&first, &second, &third] {
        // Three of the pool and one for the system account, and no more after a while.
        until(|| async { routes_to_each(broker) == [4, 4] }).await;
    }
    check(&first, &third).await;
    check(&third, &second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_killed_comes_back() {
    for kind in [Some(Ours(2)), has_original().then_some(Original)].into_iter().flatten() {
        let mut seed = member(Ours(2), "a", &mut [], "");
        let mut second = member(kind, "b", &mut [&mut seed], "");
        check(&seed, &second).await;
        second.kill();
        let alone = || async { json(&seed, "/varz")["routes"] == 0 };
        until(alone).await;
        until(|| async { urls(&seed) == 1 }).await;
        let asker = client(&seed).await;
        let gone = asker.request("check-nobody", "".into()).await.expect_err("nobody listens");
        assert_eq!(gone.kind(), RequestErrorKind::NoResponders);
        second.restart();
        check(&seed, &second).await;
        check(&second, &seed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn interest_in_a_hundred_thousand_subjects_is_told_at_once() {
    const SUBJECTS: usize = 100_000;
    for kinds in [[Ours(2), Ours(2)], [Ours(2), Original], [Original, Ours(2)]] {
        if kinds.contains(&Original) && !has_original() {
            continue;
        }
        let mut first = member(kinds[0], "a", &mut [], "");
        let mut wire = Wire::connect(&first);
        let subs: String = (0..SUBJECTS).map(|at| format!("SUB many.{at}.x {at}\r\n")).collect();
        wire.send(subs.as_bytes());
        wire.sync();
        let second = member(kinds[1], "b", &mut [&mut first], "");
        let publisher = client(&second).await;
        let listener = client(&first).await;
        meet(&listener, &publisher).await;
        for at in [0, 4711, SUBJECTS - 1] {
            publisher.publish(format!("many.{at}.x"), "y".into()).await.expect("connected");
        }
        for at in [0, 4711, SUBJECTS - 1] {
            wire.expect(format!("MSG many.{at}.x {at} 1\r\ny\r\n").as_bytes());
        }
    }
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

/// The next line that is about `$G`.
fn line(wire: &mut Wire) -> String {
    loop {
        let line = wire.line();
        if line.contains(" $G ") && !line.contains(" $SYS") && !line.contains("$G _R_") {
            return line;
        }
    }
}

#[test]
fn what_a_peer_sees_is_what_the_original_shows() {
    let mut kinds = vec![Ours(1), Ours(2)];
    if has_original() {
        kinds.push(Original);
    }
    for kind in kinds {
        let mut broker = member(kind, "a", &mut [], "");
        let mut early = Wire::connect(&broker);
        early.send(b"SUB early q 9\r\n");
        early.sync();
        let mut peer = peer(&mut broker, "PEER");
        assert_eq!(line(&mut peer), "RS+ $G early q 1", "{kind:?}");

        let mut own = Wire::connect(&broker);
        own.send(b"SUB foo 1\r\nSUB foo 2\r\nSUB bar q1 3\r\nSUB bar q1 4\r\nUNSUB 1\r\n");
        own.send(b"UNSUB 2\r\nUNSUB 3\r\nUNSUB 4\r\n");
        own.sync();
        for wanted in [
            "RS+ $G foo",
            "RS+ $G bar q1 1",
            "RS+ $G bar q1 2",
            "RS- $G foo",
            "RS+ $G bar q1 1",
            "RS- $G bar q1",
        ] {
            assert_eq!(line(&mut peer), wanted, "{kind:?}");
        }

        peer.send(b"RS+ $G t.a\r\nRS+ $G t.*\r\nRS+ $G t.q g1 1\r\nRS+ $G t.q g2 3\r\nPING\r\n");
        assert_eq!(peer.line(), "PONG");
        own.send(b"PUB t.a 5\r\nhello\r\nPUB t.a 0\r\n\r\nPUB t.b rep.1 5\r\nhello\r\n");
        own.sync();
        assert_eq!(line(&mut peer), "RMSG $G t.a 5", "{kind:?}");
        assert_eq!(peer.line(), "hello");
        assert_eq!(line(&mut peer), "RMSG $G t.a 0", "{kind:?}");
        assert_eq!(peer.line(), "");
        assert_eq!(line(&mut peer), "RMSG $G t.b rep.1 5", "{kind:?}");
        assert_eq!(peer.line(), "hello");
        own.send(b"PUB t.q 5\r\nhello\r\nPUB t.q rep.2 5\r\nhello\r\n");
        own.sync();
        let groups = |line: String| line.replace("g2 g1", "g1 g2");
        assert_eq!(groups(line(&mut peer)), "RMSG $G t.q | g1 g2 5", "{kind:?}");
        assert_eq!(peer.line(), "hello");
        assert_eq!(groups(line(&mut peer)), "RMSG $G t.q + rep.2 g1 g2 5", "{kind:?}");
        assert_eq!(peer.line(), "hello");

        // What comes over a route goes to clients, and to members of groups that are named.
        own.send(b"SUB in.* 10\r\nSUB in.x grp 11\r\n");
        own.sync();
        peer.send(b"RMSG $G in.x 1\r\na\r\nRMSG $G in.x | grp 1\r\nb\r\n");
        own.expect(b"MSG in.x 10 1\r\na\r\n");
        let both = [own.line(), own.line(), own.line(), own.line()].join(" ");
        assert!(both.contains("MSG in.x 10 1 b") && both.contains("MSG in.x 11 1 b"), "{both}");
        peer.send(b"RMSG $G in.x $JS.ACK.S.P.1.1.1.179.0@s.one 1\r\nc\r\n");
        own.expect(b"MSG s.one 10 $JS.ACK.S.P.1.1.1.179.0 1\r\nc\r\n");

        // With the connection its interest ends.
        drop(peer);
        let mut asker = Wire::open(&broker);
        asker.send(b"CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true}\r\n");
        asker.send(b"SUB rep.* 1\r\nPING\r\n");
        while asker.line() != "PONG" {}
        let mut answer = String::new();
        while !answer.starts_with("HMSG rep.9") {
            asker.send(b"PUB t.b rep.9 0\r\n\r\nPING\r\n");
            answer = asker.line();
        }
    }
}

#[test]
fn a_peer_that_may_not_stay_is_told_why_and_nobody_else_is_harmed() {
    let mut kinds = vec![Ours(2)];
    if has_original() {
        kinds.push(Original);
    }
    for kind in kinds {
        let mut broker = member(kind, "a", &mut [], "");
        let port = broker.route_port();
        let mut neighbour = Wire::connect(&broker);
        for (hello, answer) in [
            (
                &b"CONNECT {\"name\":\"X\",\"cluster\":\"D\"}\r\n"[..],
                "-ERR 'Rejecting connection, cluster name \"D\" does not match \"C\"'",
            ),
            (
                b"CONNECT {\"name\":\"X\",\"cluster\":\"C\",\"lang\":\"go\"}\r\n",
                "-ERR 'attempted to connect to route port'",
            ),
            (
                b"CONNECT {\"name\":\"X\",\"cluster\":\"C\",\"gateway\":\"g\"}\r\n",
                "-ERR 'Rejecting connection from gateway \"g\" on the Route port'",
            ),
            (b"PING\r\n", "-ERR 'Authorization Violation'"),
        ] {
            let mut wire = Wire::at(port);
            wire.send(hello);
            assert_eq!(wire.line(), answer, "{kind:?}");
            wire.expect_end();
        }
        let mut registered = peer(&mut broker, "GARBAGE");
        registered.send(b"RS+ $G a\r\nMSG a 1 1\r\nx\r\n");
        while registered.line() != "-ERR 'Unknown Protocol Operation'" {}
        neighbour.send(b"SUB a 1\r\nPUB a 1\r\nx\r\n");
        neighbour.expect(b"MSG a 1 1\r\nx\r\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_need_the_clusters_user_if_it_has_one() {
    let config = |routes: &str| {
        format!(
            "cluster {{ name: C, listen: \"127.0.0.1:-1\", authorization {{ user: u, password: \
             \"p q\" }}, routes: [{routes}] }}"
        )
    };
    let mut first = Broker::with_config(2, &config(""));
    let port = first.route_port();
    let mut wire = Wire::at(port);
    wire.send(b"CONNECT {\"name\":\"X\",\"cluster\":\"C\",\"user\":\"u\",\"pass\":\"x\"}\r\n");
    assert_eq!(wire.line(), "-ERR 'Authorization Violation'");
    let mut kinds = vec![Ours(2)];
    if has_original() {
        kinds.push(Original);
    }
    for kind in kinds {
        let config = config(&format!("\"nats-route://u:p%20q@127.0.0.1:{port}\""));
        let second = start(kind, &config);
        check(&first, &second).await;
        check(&second, &first).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_without_a_name_for_the_cluster_takes_that_of_the_others() {
    let mut first = member(Ours(2), "a", &mut [], "");
    let port = first.route_port();
    let route = format!(
        "cluster {{ listen: \"127.0.0.1:-1\", routes: \
                         [\"nats-route://127.0.0.1:{port}\"] }}"
    );
    let second = Broker::with_config(2, &route);
    check(&first, &second).await;
    let told = || async {
        let mut wire = Wire::ungreeted(&second);
        wire.line().contains("\"cluster\":\"C\"")
    };
    until(told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_stay_apart_across_the_cluster() {
    let accounts = "accounts { A { users: [{user: a, password: a}] }\nB { users: [{user: b, \
                    password: b}] } }";
    let mut kinds = vec![[Ours(2), Ours(2)]];
    if has_original() {
        kinds.extend([[Ours(2), Original], [Original, Ours(2)]]);
    }
    for kinds in kinds {
        let mut first = member(kinds[0], "a", &mut [], accounts);
        let second = member(kinds[1], "b", &mut [&mut first], accounts);
        let of = async |broker: &Broker, user: &str| {
            let options = ConnectOptions::with_user_and_password(user.to_owned(), user.to_owned());
            within(options.connect(broker.url())).await.expect("it accepts")
        };
        let (publisher, same) = (of(&first, "a").await, of(&second, "a").await);
        let (other_publisher, other) = (of(&first, "b").await, of(&second, "b").await);
        let mut heard = same.subscribe("x").await.expect("connected");
        let mut overheard = other.subscribe("x").await.expect("connected");
        meet(&same, &publisher).await;
        meet(&other, &other_publisher).await;
        publisher.publish("x", "for a".into()).await.expect("connected");
        publisher.flush().await.expect("connected");
        assert_eq!(next(&mut heard).await.payload, "for a");
        meet(&other, &other_publisher).await;
        other_publisher.publish("x", "for b".into()).await.expect("connected");
        assert_eq!(next(&mut overheard).await.payload, "for b");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_uses_the_jetstream_of_other_members() {
    if !has_original() {
        return;
    }
    let stores = [(); 2].map(|()| tempfile::tempdir().expect("a scratch directory"));
    let jetstream = |at: usize| format!("jetstream {{ store_dir: {:?} }}", stores[at].path());
    let mut ours = member(Ours(2), "a", &mut [], "");
    let mut second = member(Original, "b", &mut [&mut ours], &jetstream(0));
    let _third = member(Original, "c", &mut [&mut ours, &mut second], &jetstream(1));
    let client = client(&ours).await;
    let context = async_nats::jetstream::new(client);
    let config = async_nats::jetstream::stream::Config {
        name: "S".to_owned(),
        subjects: vec!["s.>".to_owned()],
        ..Default::default()
    };
    let created = || async { context.create_stream(config.clone()).await.is_ok() };
    until(created).await;
    for number in 0..20 {
        let ack = context.publish("s.x", number.to_string().into()).await.expect("connected");
        within(ack.into_future()).await.expect("it is stored");
    }
    let stream = within(context.get_stream("S")).await.expect("it is there");
    let pull = async_nats::jetstream::consumer::pull::Config {
        durable_name: Some("pull".to_owned()),
        ..Default::default()
    };
    let consumer = within(stream.create_consumer(pull)).await.expect("it is made");
    // Interest in the consumer comes over another route than the answer that it is made, also
    // between nats-servers: what is asked first may be lost, and is asked again.
    let mut number = 0;
    while number < 20 {
        let asked = consumer.stream().heartbeat(std::time::Duration::from_millis(500)).messages();
        let mut messages = within(asked).await.expect("it is asked");
        while number < 20
            && let Ok(message) = within(messages.next()).await.expect("there are more")
        {
            assert_eq!(message.payload, number.to_string().as_bytes());
            assert_eq!(message.subject.as_str(), "s.x");
            within(message.double_ack()).await.expect("it is taken");
            number += 1;
        }
    }

    let config = async_nats::jetstream::kv::Config { bucket: "K".to_owned(), ..Default::default() };
    let store = within(context.create_key_value(config)).await.expect("it is made");
    let mut watch = within(store.watch("k.>")).await.expect("it is watched");
    let revision = within(store.put("k.one", "1".into())).await.expect("it is stored");
    within(store.update("k.one", "2".into(), revision)).await.expect("it is of that revision");
    within(store.update("k.one", "3".into(), revision)).await.expect_err("it is no more");
    assert_eq!(within(store.get("k.one")).await.expect("it is asked").expect("it is there"), "2");
    within(store.delete("k.one")).await.expect("it is there");
    assert_eq!(within(store.get("k.one")).await.expect("it is asked"), None);
    for value in ["1", "2", ""] {
        let entry = within(watch.next()).await.expect("there are more").expect("an entry");
        assert_eq!((entry.key.as_str(), &*entry.value), ("k.one", value.as_bytes()));
    }

    let config = async_nats::jetstream::object_store::Config {
        bucket: "O".to_owned(),
        ..Default::default()
    };
    let store = within(context.create_object_store(config)).await.expect("it is made");
    let content: Vec<u8> = (0..1_000_000u32).map(|at| (at % 251) as u8).collect();
    within(store.put("big", &mut &content[..])).await.expect("it is stored");
    let mut object = within(store.get("big")).await.expect("it is there");
    assert_eq!(object.info().size, content.len());
    let mut read = Vec::new();
    within(tokio::io::AsyncReadExt::read_to_end(&mut object, &mut read)).await.expect("it is read");
    assert!(read == content, "what was stored comes back");
    within(store.delete("big")).await.expect("it is there");
    assert!(within(store.get("big")).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn monitoring_shows_routes() {
    let mut first = member(Ours(2), "a", &mut [], "");
    let second = member(Ours(2), "b", &mut [&mut first], "");
    check(&first, &second).await;
    let (varz, routez) = (json(&second, "/varz"), json(&second, "/routez?subs=1"));
    assert_eq!(varz["cluster"]["name"], "C");
    assert_eq!(varz["cluster"]["pool_size"], 3);
    assert_eq!((&varz["routes"], &varz["remotes"]), (&4.into(), &1.into()));
    let routes = routez["routes"].as_array().expect("a list");
    assert_eq!((routes.len(), &routez["num_routes"]), (4, &4.into()));
    for route in routes {
        assert_eq!(route["remote_name"], "a");
        assert_eq!((&route["did_solicit"], &route["is_configured"]), (&true.into(), &true.into()));
    }
    let accounts: Vec<_> = routes.iter().filter_map(|route| route["account"].as_str()).collect();
    assert_eq!(accounts, ["$SYS"]);
    let busy = routes.iter().filter(|route| route["in_msgs"].as_u64() >= Some(200)).count();
    assert_eq!(busy, 1, "an account has one connection: {routes:?}");
    // The test's own clients are leaving meanwhile; a route is none of them.
    let is_empty = || async {
        let connections = json(&second, "/varz")["connections"].clone();
        json(&second, "/connz")["num_connections"] == 0 && connections == 0
    };
    until(is_empty).await;
}
