//! Routes that are encrypted, compressed or restricted, with nats-server at either end.
//!
//! Without nats-server the mixed tests say so and pass, except under `CI`.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;

use crate::broker::Broker;
use crate::broker::authority::Authority;
use crate::broker::http::json;
use crate::broker::members::{
    Kind, Original, Ours, check, client, config, has_original, meet, pairs, routes, start, until,
};
use crate::broker::peers::next;
use crate::broker::wire::Wire;
use futures::StreamExt;
use rcgen::SanType;

/// An authority that has signed a certificate `member` for the host `localhost`.
fn authority() -> Authority {
    authority_called("the authority of this test")
}

fn authority_called(name_of_authority: &str) -> Authority {
    let authority = Authority::new(name_of_authority);
    authority.sign("member", "member", vec![name("localhost")]);
    authority
}

fn name(name: &str) -> SanType {
    SanType::DnsName(name.try_into().expect("a name"))
}

/// The block `tls` of a member with that certificate, who believes `roots`.
fn tls(signer: &Authority, certificate: &str, roots: &Authority, more: &str) -> String {
    let file = |kind: &str| signer.file(&format!("{certificate}.{kind}")).display().to_string();
    let (cert, key, ca) = (file("pem"), file("key"), roots.file("ca.pem").display().to_string());
    format!(
        "tls {{ cert_file: \"{cert}\", key_file: \"{key}\", ca_file: \"{ca}\", timeout: 5, \
         {more} }}"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn members_with_certificates_are_one_system_whoever_dials() {
    let authority = authority();
    let block = tls(&authority, "member", &authority, "");
    for kinds in pairs() {
        let mut first = start(kinds[0], &config("a", "", &block, ""));
        let to_first = routes("localhost", &mut [&mut first]);
        let second = start(kinds[1], &config("b", &to_first, &block, ""));
        check(&first, &second).await;
        check(&second, &first).await;
        for broker in [&first, &second] {
            let cluster = &json(broker, "/varz")["cluster"];
            assert_eq!(cluster["tls_required"], true, "{kinds:?}: {cluster}");
            assert_eq!(
                (&cluster["tls_verify"], &cluster["tls_timeout"]),
                (&true.into(), &5.into())
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_known_by_its_address_alone_shows_the_certificate_of_the_configured_name() {
    let authority = authority();
    let block = tls(&authority, "member", &authority, "");
    let mut meshes = vec![[Ours(2), Ours(2), Ours(2)]];
    if has_original() {
        meshes.extend([[Ours(2), Original, Ours(2)], [Original, Ours(2), Original]]);
    }
    for kinds in meshes {
        let mut seed = start(kinds[0], &config("a", "", &block, ""));
        let to_seed = routes("localhost", &mut [&mut seed]);
        let second = start(kinds[1], &config("b", &to_seed, &block, ""));
        let third = start(kinds[2], &config("c", &to_seed, &block, ""));
        check(&second, &third).await;
        check(&third, &second).await;
    }
}

/// A pair of members who do not come to an understanding; each logs one of its lines.
fn refuse(kinds: [Kind; 2], blocks: [&str; 2], host: &str, lines: [&[&str]; 2]) {
    let mut first = start(kinds[0], &config("a", "", blocks[0], "debug: true"));
    let to_first = routes(host, &mut [&mut first]);
    let mut second = start(kinds[1], &config("b", &to_first, blocks[1], "debug: true"));
    for (broker, kind, lines) in
        [(&mut first, kinds[0], lines[0]), (&mut second, kinds[1], lines[1])]
    {
        if kind != Original && !lines.is_empty() {
            let line = broker.wait_for_line("TLS route handshake error: ");
            assert!(lines.iter().any(|text| line.contains(text)), "{kinds:?}: {line}");
            broker.wait_for_line("Router connection closed: TLS Handshake Failure");
        }
    }
    for broker in [&first, &second] {
        assert_eq!(json(broker, "/routez")["num_routes"], 0, "{kinds:?}");
    }
}

#[test]
fn who_cannot_show_a_certificate_that_holds_has_no_route() {
    let (good, bad) = (authority(), authority_called("another one"));
    good.sign("other", "other", vec![name("other.example")]);
    let known = &tls(&good, "member", &good, "");
    let stranger = &tls(&bad, "member", &good, "");
    let suspicious = &tls(&good, "member", &bad, "");
    let pinned = &tls(&good, "member", &good, &format!("pinned_certs: [\"{}\"]", "0".repeat(64)));
    for kinds in pairs() {
        let named_otherwise = &tls(&good, "other", &good, "");
        refuse(
            kinds,
            [named_otherwise, known],
            "localhost",
            [&["BadCertificate", "CertificateUnknown"], &["not valid for name"]],
        );
        refuse(kinds, [known, stranger], "localhost", [&["UnknownIssuer", "no certificate"], &[]]);
        refuse(
            kinds,
            [known, suspicious],
            "localhost",
            [&["UnknownCA", "BadCertificate"], &["UnknownIssuer"]],
        );
        refuse(kinds, [pinned, known], "localhost", [&["not in pinned_certs"], &[]]);
        // One of them knows nothing of TLS.
        let hasty = &tls(&good, "member", &good, "timeout: 1");
        refuse(kinds, [hasty, ""], "localhost", [&["corrupt message", "timeout"], &[]]);
        refuse(kinds, ["", known], "localhost", [&[], &["corrupt message"]]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_insecure_dials_anybody_says_so_and_is_asked_for_its_own_certificate() {
    let (good, bad) = (authority(), authority_called("another one"));
    let unknown = tls(&bad, "member", &good, "");
    let insecure = tls(&good, "member", &good, "insecure: true");
    const WARNING: &str = "TLS certificate chain and hostname of solicited routes will not be \
                           verified. DO NOT USE IN PRODUCTION!";
    for kinds in pairs() {
        // It is dialled under a name that its certificate is not for, and nobody vouches for it.
        let mut first = start(kinds[0], &config("a", "", &unknown, ""));
        let to_first = routes("127.0.0.1", &mut [&mut first]);
        let mut second = start(kinds[1], &config("b", &to_first, &insecure, ""));
        if !second.banner().contains(WARNING) {
            second.wait_for_line(WARNING);
        }
        assert!(!first.banner().contains(WARNING), "{kinds:?}");
        check(&first, &second).await;
        check(&second, &first).await;
        // Who dials an insecure one is asked as ever.
        let lines: [&[&str]; 2] = [&["UnknownIssuer", "no certificate"], &[]];
        let strange = tls(&bad, "member", &bad, "insecure: true");
        refuse(kinds, [&insecure, &strange], "localhost", lines);
    }
}

/// However long a round trip takes here, it is short.
const AUTO: &str = "{mode: s2_auto, rtt_thresholds: [60s]}";

#[tokio::test(flavor = "multi_thread")]
async fn members_compress_as_they_agree_whoever_dials() {
    for kinds in pairs() {
        for (modes, shown) in [
            (["accept", "accept"], ["off", "off"]),
            (["s2_fast", "accept"], ["s2_fast", "s2_fast"]),
            (["accept", "true"], ["s2_fast", "s2_fast"]),
            (["s2_best", "s2_better"], ["s2_best", "s2_better"]),
            ([AUTO, "s2_fast"], ["s2_uncompressed", "s2_fast"]),
            (["s2_fast", AUTO], ["s2_fast", "s2_uncompressed"]),
            ([AUTO, "accept"], ["s2_uncompressed", "s2_fast"]),
            (["accept", AUTO], ["s2_fast", "s2_uncompressed"]),
            ([AUTO, AUTO], ["s2_uncompressed", "s2_uncompressed"]),
            (["off", "s2_fast"], ["off", "off"]),
        ] {
            let block = |at: usize| format!("compression: {}", modes[at]);
            let mut first = start(kinds[0], &config("a", "", &block(0), ""));
            let to_first = routes("127.0.0.1", &mut [&mut first]);
            let second = start(kinds[1], &config("b", &to_first, &block(1), ""));
            check(&first, &second).await;
            check(&second, &first).await;
            for (broker, shown) in [(&first, shown[0]), (&second, shown[1])] {
                // What an automatic mode comes to is known after the first round trip.
                let is_shown = || async {
                    let routez = json(broker, "/routez");
                    let all = routez["routes"].as_array().expect("routes").clone();
                    all.iter().all(|route| route["compression"] == shown)
                };
                until(is_shown).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_are_compressed_within_tls() {
    let authority = authority();
    let block = tls(&authority, "member", &authority, "") + "\ncompression: s2_fast";
    for kinds in pairs() {
        let mut first = start(kinds[0], &config("a", "", &block, ""));
        let to_first = routes("localhost", &mut [&mut first]);
        let second = start(kinds[1], &config("b", &to_first, &block, ""));
        check(&first, &second).await;
        check(&second, &first).await;
    }
}

/// Messages that are long, some of which can be made short.
#[tokio::test(flavor = "multi_thread")]
async fn long_messages_arrive_whole_over_compressed_routes() {
    for kinds in pairs() {
        let mut first = start(kinds[0], &config("a", "", "compression: s2_fast", ""));
        let to_first = routes("127.0.0.1", &mut [&mut first]);
        let second = start(kinds[1], &config("b", &to_first, "", ""));
        for (from, to) in [(&first, &second), (&second, &first)] {
            let (publisher, subscriber) = (client(from).await, client(to).await);
            let mut long = subscriber.subscribe("long").await.expect("connected");
            meet(&subscriber, &publisher).await;
            let mut rng = fastrand::Rng::with_seed(1);
            let payloads: Vec<Vec<u8>> = (0..12)
                .map(|at| match at % 3 {
                    0 => (0..900_000).map(|_| rng.u8(..)).collect(),
                    1 => b"over and over ".repeat(60_000),
                    _ => vec![b'x'; rng.usize(..100)],
                })
                .collect();
            for payload in &payloads {
                publisher.publish("long", payload.clone().into()).await.expect("connected");
            }
            for payload in &payloads {
                assert!(next(&mut long).await.payload == payload[..], "{kinds:?}");
            }
        }
    }
}

/// A peer of the test's own, accepted as a route by the member.
fn peer(broker: &mut Broker, login: &str) -> Wire {
    let mut wire = Wire::ungreeted_at(broker.route_port());
    let hello = format!(
        "CONNECT {{\"name\":\"PEER\",\"cluster\":\"C\"{login}}}\r\nINFO {{\"proto\":1,\
         \"server_id\":\"PEER\",\
         \"server_name\":\"peer\",\"headers\":true,\"cluster\":\"C\"}}\r\n"
    );
    wire.send(hello.as_bytes());
    wire
}

/// The next line of a peer that begins with one of `starts`.
fn line(wire: &mut Wire, starts: &[&str]) -> String {
    loop {
        let line = wire.line();
        if starts.iter().any(|start| line.starts_with(start)) {
            return line;
        }
    }
}

/// One route for each pair: a nats-server that has more begins anew with each reload.
const ALONE: &str = "pool_size: -1";
const PERMITTED: &str = "permissions { import: {allow: [\"in.>\", \"both\"], deny: \"in.no\"}, \
                         export: [\"out.*\", \"both\"] }";

#[test]
fn permissions_say_what_interest_crosses_a_route() {
    for kind in [Some(Ours(2)), has_original().then_some(Original)].into_iter().flatten() {
        let mut broker = start(kind, &config("a", "", &format!("{ALONE}, {PERMITTED}"), ""));
        let mut own = Wire::connect(&broker);
        own.send(b"SUB in.no 1\r\nSUB out.a 2\r\nSUB in.a 3\r\n");
        own.sync();
        let mut peer = peer(&mut broker, "");
        let info = line(&mut peer, &["INFO"]);
        let json: serde_json::Value = serde_json::from_str(&info[5..]).expect("JSON");
        assert_eq!(json["import"]["allow"], serde_json::json!(["in.>", "both"]), "{kind:?}");
        assert_eq!(json["import"]["deny"], serde_json::json!(["in.no"]), "{kind:?}");
        assert_eq!(json["export"]["allow"], serde_json::json!(["out.*", "both"]), "{kind:?}");
        assert_eq!(line(&mut peer, &["RS"]), "RS+ $G in.a", "{kind:?}");
        own.send(b"SUB in.no.more 4\r\nSUB other 5\r\nSUB both q 6\r\nUNSUB 2\r\nUNSUB 3\r\n");
        own.sync();
        for wanted in ["RS+ $G in.no.more", "RS+ $G both q 1", "RS- $G in.a"] {
            assert_eq!(line(&mut peer, &["RS"]), wanted, "{kind:?}");
        }
        peer.send(b"RS+ $G out.x\r\nRS+ $G elsewhere\r\nRS+ $G both\r\nPING\r\n");
        line(&mut peer, &["PONG"]);
        own.send(b"PUB elsewhere 1\r\na\r\nPUB out.x 1\r\nb\r\nPUB both 1\r\nc\r\n");
        for wanted in ["RMSG $G out.x 1", "RMSG $G both"] {
            let message = line(&mut peer, &["RMSG"]);
            assert!(message.starts_with(wanted), "{kind:?}: {message}");
        }
        own.expect(b"MSG both 6 1\r\nc\r\n");
        // What comes nevertheless is delivered.
        own.send(b"SUB in.no 7\r\n");
        own.sync();
        peer.send(b"RMSG $G in.no 1\r\nd\r\n");
        loop {
            let line = own.line();
            if line.starts_with("MSG in.no") {
                break;
            }
        }
    }
}

#[test]
fn who_says_much_or_sends_messages_before_it_is_part_of_the_cluster_gets_no_route() {
    let mut broker = start(Ours(2), &config("a", "", ALONE, ""));
    let much = "RS+ $G much\r\n".repeat(64 * 1024 / 12 + 1);
    for early in ["RMSG $G foo 2\r\nhi\r\n", "LMSG o $G foo 0 2\r\nhi\r\n", &much] {
        let mut wire = Wire::ungreeted_at(broker.route_port());
        let hello = "CONNECT {\"name\":\"PEER\",\"cluster\":\"C\"}\r\n";
        wire.send(format!("{hello}{early}").as_bytes());
        assert_eq!(line(&mut wire, &["-ERR"]), "-ERR 'Authorization Violation'", "{early}");
        wire.expect_end();
    }
}

#[test]
fn a_reload_of_permissions_tells_peers_what_has_changed() {
    for kind in [Some(Ours(2)), has_original().then_some(Original)].into_iter().flatten() {
        let mut broker = start(kind, &config("a", "", ALONE, ""));
        let mut own = Wire::connect(&broker);
        own.send(b"SUB in.a 1\r\nSUB other 2\r\n");
        own.sync();
        let mut peer = peer(&mut broker, "");
        line(&mut peer, &["INFO"]);
        let mut both = [line(&mut peer, &["RS+ $G"]), line(&mut peer, &["RS+ $G"])];
        both.sort();
        assert_eq!(both, ["RS+ $G in.a", "RS+ $G other"], "{kind:?}");
        peer.send(b"RS+ $G gone\r\nRS+ $G out.x\r\nPING\r\n");
        line(&mut peer, &["PONG"]);
        let reloaded = broker.reload(&config("a", "", &format!("{ALONE}, {PERMITTED}"), ""));
        assert!(reloaded.contains("Reloaded server"), "{kind:?}: {reloaded}");
        let mut told = [
            line(&mut peer, &["INFO {\"server", "RS- $G other"]),
            line(&mut peer, &["INFO {\"server", "RS- $G other"]),
        ];
        told.sort();
        assert!(told[0].contains("\"export\""), "{kind:?}: {told:?}");
        assert_eq!(told[1], "RS- $G other", "{kind:?}");
        own.send(b"PUB gone 1\r\na\r\nPUB out.x 1\r\nb\r\n");
        assert_eq!(line(&mut peer, &["RMSG"]), "RMSG $G out.x 1", "{kind:?}");
        broker.reload(&config("a", "", ALONE, ""));
        let mut told = [
            line(&mut peer, &["INFO {\"server", "RS+ $G other"]),
            line(&mut peer, &["INFO {\"server", "RS+ $G other"]),
        ];
        told.sort();
        assert!(told[0].starts_with("INFO"), "{kind:?}: {told:?}");
        assert_eq!(told[1], "RS+ $G other", "{kind:?}");
    }
}

/// Members whose permissions meet: what one may not tell, or the other does not take, stays away.
#[tokio::test(flavor = "multi_thread")]
async fn interest_that_became_permitted_is_told_again() {
    for kinds in pairs() {
        let mut first = start(kinds[0], &config("a", "", "permissions { export: \"x.*\" }", ""));
        let to_first = routes("127.0.0.1", &mut [&mut first]);
        let second = start(kinds[1], &config("b", &to_first, "", ""));
        let (publisher, subscriber) = (client(&first).await, client(&second).await);
        let mut wanted = subscriber.subscribe("y.a").await.expect("connected");
        let mut taken = subscriber.subscribe("x.a").await.expect("connected");
        let arrives = async |subject: &'static str, to: &mut async_nats::Subscriber| {
            let mut is_there = false;
            while !is_there {
                publisher.publish(subject, "".into()).await.expect("connected");
                let patience = std::time::Duration::from_millis(50);
                is_there = tokio::time::timeout(patience, to.next()).await.is_ok();
            }
        };
        arrives("x.a", &mut taken).await;
        publisher.publish("y.a", "early".into()).await.expect("connected");
        first.reload(&config("a", "", "permissions { export: [\"x.*\", \"y.*\"] }", ""));
        arrives("y.a", &mut wanted).await;
    }
}

#[test]
fn a_reload_closes_routes_that_are_configured_no_more_and_dials_new_ones() {
    let listen = || TcpListener::bind("127.0.0.1:0").expect("a free port");
    for kind in [Some(Ours(2)), has_original().then_some(Original)].into_iter().flatten() {
        let (old, new) = (listen(), listen());
        let route = |to: &TcpListener| {
            format!("\"nats-route://127.0.0.1:{}\"", to.local_addr().expect("bound").port())
        };
        let block = "pool_size: -1";
        let mut broker = start(kind, &config("a", &route(&old), block, ""));
        let (mut socket, _) = old.accept().expect("it dials");
        let info = b"INFO {\"server_id\":\"P\",\"server_name\":\"p\",\"cluster\":\"C\"}\r\n";
        std::io::Write::write_all(&mut socket, info).expect("connected");
        let mut lines = BufReader::new(socket).lines().map_while(Result::ok);
        assert!(lines.any(|line| line.starts_with("INFO")), "{kind:?}: it is a route");
        broker.reload(&config("a", &route(&new), block, ""));
        assert_eq!(lines.last().filter(|line| line.starts_with("-ERR")), None, "{kind:?}: it ends");
        new.accept().expect("it dials");
    }
}

#[test]
fn a_reload_of_the_clusters_user_closes_routes_of_who_does_not_know_it() {
    let block = |password: &str| format!("authorization {{ user: u, password: \"{password}\" }}");
    let login = ",\"user\":\"u\",\"pass\":\"one\"";
    for kind in [Some(Ours(2)), has_original().then_some(Original)].into_iter().flatten() {
        let mut broker = start(kind, &config("a", "", &block("one"), ""));
        let mut peer = peer(&mut broker, login);
        line(&mut peer, &["RS+"]);
        broker.reload(&config("a", "", &block("two"), ""));
        assert_eq!(line(&mut peer, &["-ERR"]), "-ERR 'Authorization Violation'", "{kind:?}");
        peer.expect_end();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clusters_password_may_be_a_hash() {
    // Of "tok3n".
    let hash = "$2a$04$zyxwvutsrqponmlkjihgfurQNWOPnczANr9Lnsgmk2Svikvt0pD4G";
    let block = format!("authorization {{ user: u, password: \"{hash}\" }}");
    for kinds in pairs() {
        let mut first = start(kinds[0], &config("a", "", &block, ""));
        let mut wrong = peer(&mut first, ",\"user\":\"u\",\"pass\":\"wrong\"");
        assert_eq!(line(&mut wrong, &["-ERR"]), "-ERR 'Authorization Violation'", "{kinds:?}");
        let to_first = routes("u:tok3n@127.0.0.1", &mut [&mut first]);
        let second = start(kinds[1], &config("b", &to_first, "", ""));
        check(&first, &second).await;
        check(&second, &first).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_changes_how_routes_are_compressed() {
    for kinds in pairs() {
        let mut first = start(kinds[0], &config("a", "", "", ""));
        let to_first = routes("127.0.0.1", &mut [&mut first]);
        let second = start(kinds[1], &config("b", &to_first, "", ""));
        check(&first, &second).await;
        for mode in ["s2_fast", "s2_best", "off"] {
            first.reload(&config("a", "", &format!("compression: {mode}"), ""));
            let is_shown = || async {
                let routez = json(&first, "/routez");
                let all = routez["routes"].as_array().expect("routes").clone();
                !all.is_empty() && all.iter().all(|route| route["compression"] == mode)
            };
            until(is_shown).await;
            check(&first, &second).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_changes_the_certificates_of_routes_to_come() {
    let (old, new) = (authority(), authority_called("another one"));
    for kinds in pairs() {
        let old_block = tls(&old, "member", &old, "");
        let new_block = tls(&new, "member", &new, "");
        let mut first = start(kinds[0], &config("a", "", &old_block, ""));
        let reloaded = first.reload(&config("a", "", &new_block, ""));
        assert!(reloaded.contains("Reloaded server"), "{kinds:?}: {reloaded}");
        let to_first = routes("localhost", &mut [&mut first]);
        let mut second = start(kinds[1], &config("b", &to_first, &old_block, ""));
        second.wait_for_line("route handshake error");
        second.reload(&config("b", &to_first, &new_block, ""));
        check(&first, &second).await;
    }
}

/// What a server says of where it is, in its first INFO.
fn place(kind: Kind, block: &str) -> [serde_json::Value; 4] {
    let mut broker = start(kind, &config("a", "", block, "client_advertise: \"c.example:1\""));
    let port = broker.route_port();
    let mut wire = Wire::ungreeted_at(port);
    let info: serde_json::Value = serde_json::from_str(&wire.line()[5..]).expect("JSON");
    let own = if info["port"] == port { "own".into() } else { info["port"].clone() };
    let ip = info["ip"].to_string().replace(&format!(":{port}/"), ":own/");
    [info["host"].clone(), own, ip.into(), info["connect_urls"].clone()]
}

#[test]
fn others_are_told_what_is_advertised_as_by_the_original() {
    if !has_original() {
        return;
    }
    for block in [
        "",
        "advertise: \"1.2.3.4\"",
        "advertise: \"host.example:99\"",
        "advertise: \"[::1]:5\"",
        "no_advertise: true",
    ] {
        assert_eq!(place(Ours(2), block), place(Original, block), "{block}");
    }
}

#[test]
fn who_advertises_nothing_tells_clients_of_nobody() {
    for kind in [Some(Ours(2)), has_original().then_some(Original)].into_iter().flatten() {
        for (block, told) in [("", true), ("no_advertise: true", false)] {
            let mut broker = start(kind, &config("a", "", &format!("{ALONE}, {block}"), ""));
            let mut wire = Wire::ungreeted_at(broker.route_port());
            wire.send(
                b"CONNECT {\"name\":\"P\",\"cluster\":\"C\"}\r\nINFO {\"server_id\":\"P\",\
                \"server_name\":\"p\",\"proto\":1,\"cluster\":\"C\",\
                \"connect_urls\":[\"9.9.9.9:9\"]}\r\nPING\r\n",
            );
            line(&mut wire, &["PONG"]);
            // A client that comes later is told; when it is told is the server's to say.
            let mut greeting = Wire::ungreeted(&broker).line();
            while told && !greeting.contains("9.9.9.9:9") {
                greeting = Wire::ungreeted(&broker).line();
            }
            assert_eq!(greeting.contains("9.9.9.9:9"), told, "{kind:?}: {greeting}");
        }
    }
}
