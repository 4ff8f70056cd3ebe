//! Latency of services: the reports that the exporting account gets, here and at nats-server, with
//! the same clients. Requester, responder and the reader of the reports are connections of their
//! own, which more than one shard has on different shards.

use std::time::Duration;

use async_nats::{ConnectOptions, HeaderMap};
use nkeys::KeyPair;
use serde_json::{Value, json};

use crate::broker::members::{self, Kind, Ours, member};
use crate::broker::peers::{meet, next};
use crate::broker::tokens::{World, credentials, unlimited};
use crate::broker::wire::Wire;
use crate::broker::{Broker, has_original, shard_counts};

const ACCOUNTS: &str = "
    accounts {
        EXP {
            users [{user: exp, password: p}]
            exports [
                {service: \"all.>\", latency: \"lat.all\"}
                {service: \"late.>\", latency: lat.late, response_threshold: 300ms}
                {service: \"head.>\", latency: {subject: \"lat.head\", sampling: headers}}
                {service: \"deep.>\", latency: {subject: \"lat.deep\", sampling: \"100%\"}}
                {service: \"plain.>\"}
            ]
        }
        MID {
            users [{user: mid, password: p}]
            exports [{service: \"way.>\", latency: \"lat.way\"}]
            imports [{service: {account: EXP, subject: \"deep.>\"}, to: \"way.>\", share: true}]
        }
        IMP {
            users [{user: imp, password: p}]
            imports [
                {service: {account: EXP, subject: \"all.>\"}}
                {service: {account: EXP, subject: \"all.told\"}, to: \"told\", share: true}
                {service: {account: EXP, subject: \"late.>\"}}
                {service: {account: EXP, subject: \"head.>\"}}
                {service: {account: EXP, subject: \"plain.>\"}}
                {service: {account: MID, subject: \"way.>\"}}
            ]
        }
    }
";

/// How long a service thinks about its answer.
const THINKING: Duration = Duration::from_millis(50);

fn brokers() -> Vec<Broker> {
    let config = format!("server_name: one\n{ACCOUNTS}");
    let ours = shard_counts().iter().map(|shards| Broker::with_config(*shards, &config));
    let original = has_original().then(|| Broker::original(&config));
    ours.chain(original).collect()
}

fn connect(broker: &Broker, user: &str, name: &str) -> Wire {
    let mut wire = Wire::open(broker);
    let connect = json!({
        "user": user, "pass": "p", "name": name, "lang": "test", "version": "1",
        "verbose": false, "headers": true, "no_responders": true,
    });
    wire.send(format!("CONNECT {connect}\r\n").as_bytes());
    wire.sync();
    wire
}

/// The connections of a test, which have subscribed to everything they need.
struct Scene {
    /// Reads the reports.
    reader: Wire,
    responder: Wire,
    requester: Wire,
}

impl Scene {
    fn of(broker: &Broker) -> Self {
        let mut reader = connect(broker, "exp", "reader");
        let mut responder = connect(broker, "exp", "responder");
        let mut requester = connect(broker, "imp", "requester");
        reader.send(b"SUB lat.* 9\r\n");
        reader.sync();
        let services =
            ["all.answered", "all.told", "all.silent", "late.silent", "head.x", "deep.x"];
        for (sid, service) in services.iter().enumerate() {
            responder.send(format!("SUB {service} {sid}\r\n").as_bytes());
        }
        responder.sync();
        requester.send(b"SUB in.* 2\r\n");
        requester.sync();
        Self { reader, responder, requester }
    }

    /// Takes a request and answers it.
    #[expect(clippy::disallowed_methods, reason = "a service that takes its time")]
    fn answer(&mut self) {
        let reply = request(&mut self.responder);
        std::thread::sleep(THINKING);
        self.responder.send(format!("PUB {reply} 2\r\nok\r\n").as_bytes());
        let answer = self.requester.line();
        assert!(answer.starts_with("MSG in.") || answer.starts_with("HMSG in."), "{answer}");
        assert_eq!(self.requester.line(), "ok");
    }

    fn ask(&mut self, subject: &str, header: &str) {
        let (block, reply) = (format!("NATS/1.0\r\n{header}\r\n\r\n"), "in.1");
        let message = match header {
            "" => format!("PUB {subject} {reply} 1\r\nx\r\n"),
            _ => {
                let bytes = block.len();
                format!("HPUB {subject} {reply} {bytes} {}\r\n{block}x\r\n", bytes + 1)
            }
        };
        self.requester.send(message.as_bytes());
    }
}

/// Reads a request of a service, and returns its reply subject.
fn request(responder: &mut Wire) -> String {
    let line = responder.line();
    let words: Vec<&str> = line.split(' ').collect();
    assert!(words[0] == "HMSG" && words.len() == 6, "{line}");
    while responder.line() != "x" {}
    words[3].to_owned()
}

/// Reads the next report: its subject and its document.
fn report(reader: &mut Wire) -> (String, Value) {
    let line = reader.line();
    let subject = line.split(' ').nth(1).expect("a message").to_owned();
    let document = reader.line();
    (subject, serde_json::from_str(&document).expect("JSON"))
}

/// What a report says without what differs from run to run, and without the names of other
/// clusters (`alts`), which ours does not tell.
fn form(of: &Value) -> Value {
    const SHOWN: &[&str] = &[
        "type",
        "status",
        "description",
        "acc",
        "svc",
        "user",
        "name",
        "lang",
        "ver",
        "server",
        "cluster",
        "kind",
        "client_type",
        "host",
    ];
    let Value::Object(map) = of else { return json!(null) };
    let member = |(key, value): (&String, &Value)| {
        let shown = match key.as_str() {
            "header" => value.clone(),
            key if SHOWN.contains(&key) => value.clone(),
            _ => form(value),
        };
        (key.clone(), shown)
    };
    map.iter().filter(|(key, _)| *key != "alts").map(member).collect()
}

/// Nanoseconds of a member.
fn ns(report: &Value, path: &str) -> u64 {
    report.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path} of {report}"))
}

/// Runs a test with each server: what it returns has to be equal.
fn compare(observe: impl Fn(&Broker) -> Vec<String>) {
    let mut seen: Vec<(bool, Vec<String>)> = Vec::new();
    for broker in brokers() {
        println!("the original: {}", broker.is_original());
        seen.push((broker.is_original(), observe(&broker)));
    }
    for pair in seen.windows(2) {
        assert_eq!(pair[0].1, pair[1].1, "the second is the original: {}", pair[1].0);
    }
}

fn told((subject, report): &(String, Value)) -> String {
    format!("{subject} {}", form(report))
}

#[test]
fn the_exporter_hears_how_long_requester_and_service_have_taken() {
    compare(|broker| {
        let mut scene = Scene::of(broker);
        let mut seen = Vec::new();
        for (asked, is_told) in [("all.answered", false), ("told", true), ("all.answered", false)] {
            scene.ask(asked, "");
            scene.answer();
            let one = report(&mut scene.reader);
            let (service, total) = (ns(&one.1, "/service"), ns(&one.1, "/total"));
            let rtts = (ns(&one.1, "/requestor/rtt"), ns(&one.1, "/responder/rtt"));
            let thinking = u64::try_from(THINKING.as_nanos()).expect("short");
            assert!(service + rtts.1 >= thinking && total >= service + rtts.0, "{}", one.1);
            assert!(total < 100 * thinking, "{}", one.1);
            assert_eq!(one.1["id"].as_str().map(str::len), Some(22), "{}", one.1);
            assert_eq!(one.1["requestor"].get("user").is_some(), is_told, "{}", one.1);
            seen.push(told(&one));
        }
        seen
    });
}

#[test]
fn a_request_that_gets_no_answer_is_reported_with_the_reason() {
    compare(|broker| {
        let mut scene = Scene::of(broker);
        let mut seen = Vec::new();
        // Without a reply subject.
        scene.requester.send(b"PUB all.answered 1\r\nx\r\n");
        seen.push(told(&report(&mut scene.reader)));
        scene.requester.send(b"PUB all.nobody 1\r\nx\r\n");
        seen.push(told(&report(&mut scene.reader)));
        // Without a service.
        scene.ask("all.nobody", "");
        seen.push(told(&report(&mut scene.reader)));
        // Without one that is there in time.
        scene.ask("late.silent", "");
        seen.push(told(&report(&mut scene.reader)));
        // Without a requester that waits.
        for waits in ["in.2", "in.*"] {
            let mut leaver = connect(broker, "imp", "leaver");
            scene.requester.send(b"UNSUB 2\r\nPING\r\n");
            scene.requester.until_pong_or_end();
            leaver.send(format!("SUB {waits} 7\r\nPUB all.silent in.2 1\r\nx\r\n").as_bytes());
            while scene.responder.line() != "x" {}
            leaver.send(b"UNSUB 7\r\n");
            seen.push(told(&report(&mut scene.reader)));
            leaver.send(b"SUB in.2 8\r\nPUB all.silent in.2 1\r\nx\r\n");
            while scene.responder.line() != "x" {}
            drop(leaver);
            seen.push(told(&report(&mut scene.reader)));
        }
        let statuses = ["400", "400", "503", "504", "408", "408", "408", "408"];
        for (seen, status) in seen.iter().zip(statuses) {
            assert!(seen.contains(&format!("\"status\":{status}")), "{status}: {seen}");
        }
        seen
    });
}

#[test]
fn headers_of_a_trace_have_a_request_measured_and_are_in_the_report() {
    const TRACED: &[&str] = &[
        "Uber-Trace-Id: a:b:c:1\r\nuberctx-x: 7\r\nOther: 1",
        "X-B3-Sampled: 1\r\nX-B3-TraceId: t\r\nX-B3-SpanId: s\r\nX-B3-ParentSpanId: p",
        "x-b3-traceid: t",
        "b3: t-s-1-p",
        "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\ntracestate: v=1",
    ];
    const UNTRACED: &[&str] = &[
        "",
        "Other: 1",
        "Uber-Trace-Id: a:b:c:2",
        "X-B3-Sampled: 0\r\nX-B3-TraceId: t",
        "b3: 0",
        "b3: t-s-0",
        "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
        "traceparent: 00-a-b-ff",
        "tracestate: v=1",
    ];
    compare(|broker| {
        let mut scene = Scene::of(broker);
        let mut seen = Vec::new();
        for (at, traced) in TRACED.iter().enumerate() {
            // Of these there would be a report first.
            for untraced in UNTRACED.iter().skip(2 * at).take(2) {
                scene.ask("head.x", untraced);
                scene.answer();
            }
            scene.ask("head.x", traced);
            scene.answer();
            let one = report(&mut scene.reader);
            assert!(one.1.get("header").is_some(), "{traced}: {}", one.1);
            seen.push(told(&one));
        }
        seen
    });
}

#[test]
fn each_service_on_the_way_of_a_request_has_a_report_of_its_own() {
    compare(|broker| {
        let mut scene = Scene::of(broker);
        let mut middle = connect(broker, "mid", "middle");
        middle.send(b"SUB lat.* 9\r\n");
        middle.sync();
        scene.ask("way.x", "");
        scene.answer();
        vec![told(&report(&mut scene.reader)), told(&report(&mut middle))]
    });
}

#[test]
fn wherever_requester_and_member_of_a_group_are_the_report_names_the_member() {
    for broker in brokers() {
        let mut reader = connect(&broker, "exp", "reader");
        reader.send(b"SUB lat.* 9\r\n");
        reader.sync();
        let all = |user: &str| -> Vec<Wire> {
            (0..4).map(|at| connect(&broker, user, &format!("{user} {at}"))).collect()
        };
        let (mut members, mut requesters) = (all("exp"), all("imp"));
        for requester in &mut requesters {
            requester.send(b"SUB in.* 2\r\n");
            requester.sync();
        }
        for (at, member) in members.iter_mut().enumerate() {
            member.send(b"SUB all.group g 1\r\n");
            member.sync();
            for (asked, requester) in requesters.iter_mut().enumerate() {
                let inbox = format!("in.{asked}");
                requester.send(format!("PUB all.group {inbox} 1\r\nx\r\n").as_bytes());
                let reply = request(member);
                member.send(format!("PUB {reply} 2\r\nok\r\n").as_bytes());
                assert_eq!(report(&mut reader).1["responder"]["name"], format!("exp {at}"));
            }
            member.send(b"UNSUB 1\r\n");
            member.sync();
        }
    }
}

/// The accounts with a system account that has a user.
fn accounts_and_system() -> String {
    let accounts = ACCOUNTS.trim_end().strip_suffix('}').expect("a block");
    format!("{accounts} SYS {{ users [{{user: sys, password: p}}] }}\n}}\nsystem_account: SYS\n")
}

/// All pairs of the requester's and the responder's server, with that of two nats-servers last.
fn pairs() -> Vec<[Kind; 2]> {
    let mut pairs = vec![[Ours(1), Ours(1)], [Ours(3), Ours(2)]];
    if members::has_original() {
        let original = Kind::Original;
        pairs.extend([[Ours(3), original], [original, Ours(3)], [original, original]]);
    }
    pairs
}

/// A scene on two servers: reader and requester near, the responder far. Returns with it the reply
/// subject of a request that the responder has got.
fn two_servers(near: &Broker, far: &Broker) -> (Scene, String) {
    let mut responder = connect(far, "exp", "responder");
    responder.send(b"SUB all.answered 1\r\n");
    responder.sync();
    let mut reader = connect(near, "exp", "reader");
    reader.send(b"SUB lat.* 9\r\n");
    reader.sync();
    let mut requester = connect(near, "imp", "requester");
    requester.send(b"SUB in.* 2\r\n");
    let mut is_refused = || {
        requester.send(b"PUB all.answered in.1 1\r\nx\r\nPING\r\n");
        let told = requester.until_pong_or_end();
        memchr::memmem::find(&told, b"503").is_some()
    };
    // Until the servers are linked nobody answers.
    while is_refused() {
        assert_eq!(report(&mut reader).1["status"], 503);
    }
    let reply = request(&mut responder);
    (Scene { reader, responder, requester }, reply)
}

/// Answers a request, and returns the report on it.
#[expect(clippy::disallowed_methods, reason = "a service that takes its time")]
fn answered(scene: &mut Scene, reply: &str) -> (String, Value) {
    std::thread::sleep(THINKING);
    scene.responder.send(format!("PUB {reply} 2\r\nok\r\n").as_bytes());
    let one = report(&mut scene.reader);
    let thinking = u64::try_from(THINKING.as_nanos()).expect("short");
    let (service, system) = (ns(&one.1, "/service"), ns(&one.1, "/system"));
    assert_eq!(one.1["status"], 200, "{}", one.1);
    assert!(ns(&one.1, "/total") >= service + system, "{}", one.1);
    assert!(ns(&one.1, "/total") >= thinking, "{}", one.1);
    one
}

/// The reports on three requests from one server to another, which have the responder's half.
fn reports_of(near: &Broker, far: &Broker) -> Vec<String> {
    let (mut scene, mut reply) = two_servers(near, far);
    let mut seen = Vec::new();
    for at in 0..3 {
        if at > 0 {
            scene.ask("all.answered", "");
            reply = request(&mut scene.responder);
        }
        let one = answered(&mut scene, &reply);
        assert_eq!(one.1["responder"]["name"], "responder", "{}", one.1);
        let thinking = u64::try_from(THINKING.as_nanos()).expect("short");
        let rtt = ns(&one.1, "/responder/rtt");
        assert!(ns(&one.1, "/service") + rtt >= thinking, "{}", one.1);
        seen.push(told(&one));
    }
    seen
}

/// Runs all pairs, each started by `start` from the kinds of the requester's and the responder's
/// server: what is reported has to be equal.
fn compare_pairs(start: impl Fn([Kind; 2]) -> [Broker; 2]) {
    let mut seen: Vec<Vec<String>> = Vec::new();
    for kinds in pairs() {
        println!("{kinds:?}");
        let [near, far] = start(kinds);
        seen.push(reports_of(&near, &far));
    }
    let differs = seen.windows(2).position(|pair| pair[0] != pair[1]);
    assert_eq!(differs, None, "{seen:#?}");
}

#[test]
fn the_halves_of_two_members_of_a_cluster_are_joined() {
    compare_pairs(|[near, far]| {
        let mut far = member(far, "far", &mut [], ACCOUNTS);
        [member(near, "near", &mut [&mut far], ACCOUNTS), far]
    });
}

#[test]
fn the_halves_of_two_clusters_are_joined() {
    compare_pairs(|[near, far]| {
        let config = |name: &str, remotes: &str| {
            format!(
                "server_name: {name}\nhttp: \"127.0.0.1:-1\"\ngateway {{ name: {name}, listen: \
                 \"127.0.0.1:-1\", gateways: [{remotes}] }}\n{ACCOUNTS}"
            )
        };
        let mut far = members::start(far, &config("far", ""));
        let port = far.logged_port("Listening for gateways connections on ");
        let remote = format!("{{ name: far, url: \"nats://127.0.0.1:{port}\" }}");
        [members::start(near, &config("near", &remote)), far]
    });
}

#[test]
fn the_halves_of_a_hub_and_its_leaf_node_are_joined() {
    compare_pairs(|[near, far]| {
        let listens = "leafnodes { listen: \"127.0.0.1:-1\" }";
        let accounts = accounts_and_system();
        let config = format!("server_name: near\n{listens}\n{accounts}");
        let mut near = members::start(near, &config);
        let port = near.logged_port("Listening for leafnode connections on ");
        let remote = |user: &str, account: &str| {
            format!("{{ url: \"nats-leaf://{user}:p@127.0.0.1:{port}\", account: {account} }}")
        };
        let remotes = [remote("exp", "EXP"), remote("sys", "SYS")].join(", ");
        let leaf = format!("leafnodes {{ remotes: [{remotes}] }}");
        let config = format!("server_name: far\n{leaf}\n{accounts}");
        [near, members::start(far, &config)]
    });
}

#[test]
fn a_report_is_not_lost_where_the_other_server_measures_nothing() {
    let plain = "accounts { EXP { users [{user: exp, password: p}] } }";
    for [near, far] in pairs().into_iter().filter(|[near, _]| *near != Kind::Original) {
        let mut far = member(far, "far", &mut [], plain);
        let near = member(near, "near", &mut [&mut far], ACCOUNTS);
        let (mut scene, reply) = two_servers(&near, &far);
        let (_, report) = answered(&mut scene, &reply);
        assert_eq!(report.get("responder"), None, "{report}");
        assert!(ns(&report, "/total") > ns(&report, "/service"), "{report}");
    }
}

#[test]
fn false_halves_lose_no_report_and_take_no_longer_than_the_whole() {
    for [near, far] in pairs().into_iter().filter(|[near, _]| *near != Kind::Original) {
        let more = accounts_and_system();
        let mut far = member(far, "far", &mut [], &more);
        let near = member(near, "near", &mut [&mut far], &more);
        let (mut scene, mut reply) = two_servers(&near, &far);
        let mut forger = connect(&near, "sys", "forger");
        let mut forge = |reply: &str, half: &str| {
            let node = reply.rsplit('.').nth(1).expect("a measured request");
            let message = format!("PUB $SYS.LATENCY.M2.{node} {}\r\n{half}\r\n", half.len());
            forger.send(message.as_bytes());
            forger.sync();
        };
        let half = |account: &str, id: &str, name: &str| {
            let responder = json!({"name": name, "rtt": i64::MAX});
            let m2 = json!({"responder": responder, "service": i64::MAX});
            json!({"account": account, "req_id": id, "m2": m2}).to_string()
        };
        // Of another account, of no request, and what is no half at all.
        forge(&reply, &half("IMP", &reply, "forger"));
        forge(&reply, &half("EXP", "_R_.a.b", "forger"));
        let server = reply.rsplit('.').nth(1).expect("a measured request");
        for shard in ["00", "01", "02", "ff"] {
            let other = format!("_R_.{server}.{shard}{:016x}.{server}.T", 1);
            forge(&reply, &half("EXP", &other, "forger"));
        }
        for nonsense in ["", "null", "{\"account\":", &"[".repeat(1000), &" ".repeat(100_000)] {
            forge(&reply, nonsense);
        }
        let (_, first) = answered(&mut scene, &reply);
        assert_eq!(first["responder"]["name"], "responder", "{first}");
        // A false one that names its request.
        scene.ask("all.answered", "");
        reply = request(&mut scene.responder);
        for _ in 0..100 {
            forge(&reply, &half("EXP", &reply, "forger"));
        }
        let (_, second) = answered(&mut scene, &reply);
        assert_eq!(ns(&second, "/system"), 0, "{second}");
        scene.ask("all.answered", "");
        reply = request(&mut scene.responder);
        let (_, third) = answered(&mut scene, &reply);
        assert_eq!(third["responder"]["name"], "responder", "{third}");
    }
}

#[tokio::test]
async fn tokens_of_accounts_and_of_users_say_what_is_measured_and_who_has_asked() {
    let mut world = World::new();
    let (exporter, importer) = (KeyPair::new_account(), KeyPair::new_account());
    let service = |subject: &str, latency: Value| {
        json!({"name": subject, "subject": subject, "type": "service", "response_type": "Singleton",
            "service_latency": latency})
    };
    world.account(
        &exporter,
        json!({"exports": [
            service("all", json!({"sampling": 100, "results": "lat.all"})),
            service("head", json!({"sampling": "headers", "results": "lat.head"})),
            // The reports would be requests.
            service("wrong", json!({"sampling": 100, "results": "wrong"})),
        ]}),
    );
    let import = |subject: &str| {
        json!({"name": subject, "subject": subject, "account": exporter.public_key(),
            "type": "service", "share": true})
    };
    world.account(&importer, json!({"imports": [import("all"), import("head"), import("wrong")]}));
    let of = |account: &KeyPair| credentials(account, unlimited(), json!({"name": "the user"}));
    let config = world.config();
    let ours = shard_counts().iter().map(|shards| Broker::with_config(*shards, &config));
    let original = has_original().then(|| Broker::original(&config));
    let mut seen: Vec<Value> = Vec::new();
    for broker in ours.chain(original) {
        let connect = async |credentials: &str| {
            let options = ConnectOptions::with_credentials(credentials).expect("credentials");
            options.name("one").connect(broker.url()).await.expect("good credentials")
        };
        let (service, asker) = (connect(&of(&exporter)).await, connect(&of(&importer)).await);
        let mut reports = service.subscribe("lat.*").await.expect("connected");
        let mut requests = service.subscribe("*").await.expect("connected");
        let mut answers = asker.subscribe("in").await.expect("connected");
        meet(&service, &service).await;
        meet(&asker, &asker).await;
        let mut traced = HeaderMap::new();
        traced.insert("B3", "1");
        for (subject, headers) in [
            ("wrong", HeaderMap::new()),
            ("all", HeaderMap::new()),
            ("head", HeaderMap::new()),
            ("head", traced),
        ] {
            let asked = asker.publish_with_reply_and_headers(subject, "in", headers, "x".into());
            asked.await.expect("connected");
            let reply = next(&mut requests).await.reply.expect("a request");
            service.publish(reply, "y".into()).await.expect("connected");
            next(&mut answers).await;
        }
        let mut two = Vec::new();
        for subject in ["lat.all", "lat.head"] {
            let message = next(&mut reports).await;
            assert_eq!(message.subject.as_str(), subject);
            let report: Value = serde_json::from_slice(&message.payload).expect("JSON");
            let key = |account: &KeyPair| json!(account.public_key());
            assert_eq!(report["requestor"]["issuer_key"], key(&importer), "{report}");
            assert_eq!(report["responder"]["issuer_key"], key(&exporter), "{report}");
            assert_eq!(report["requestor"]["name_tag"], "the user", "{report}");
            two.push(shape(&report));
        }
        seen.push(json!(two));
    }
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:#?}");
}

/// The names of members, and of those in them.
fn shape(of: &Value) -> Value {
    let Value::Object(map) = of else { return json!(null) };
    map.iter().map(|(key, value)| (key.clone(), shape(value))).collect()
}
