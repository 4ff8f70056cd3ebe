//! Callouts with a real service: a client of async-nats that decides who logs in.

#![expect(clippy::disallowed_types, reason = "tests share what they have heard between tasks")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use async_nats::{Client, ConnectOptions};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::StreamExt;
use nkeys::{KeyPair, XKey};
use rcgen::SanType;
use serde_json::{Value, json};

use crate::broker::authority::Authority;
use crate::broker::peers::{meet, next, within};
use crate::broker::tokens::{World, credentials_of, token, unix_now, unlimited};
use crate::broker::wire::Wire;
use crate::broker::{Broker, PATIENCE, server_command, shard_counts};

const SUBJECT: &str = "$SYS.REQ.USER.AUTH";

/// A service, and the claims of all requests that it has got.
struct Service {
    requests: Arc<Mutex<Vec<Value>>>,
}

/// What a service answers to a request: claims of the user's token, or an error.
type Rule = fn(&Value) -> Result<Value, String>;

fn claims_of(token: &str) -> Value {
    let body = token.split('.').nth(1).expect("three parts");
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(body).expect("base64")).expect("JSON")
}

impl Service {
    /// Serves by `client`, in the name of `issuer`; with `xkey` everything is sealed.
    async fn start(client: Client, issuer: KeyPair, xkey: Option<XKey>, rule: Rule) -> Self {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let mut inbox = client.queue_subscribe(SUBJECT, "service".into()).await.expect("permitted");
        client.flush().await.expect("connected");
        let seen = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Some(request) = inbox.next().await {
                let sender = request.headers.as_ref().map(|headers| {
                    let key = headers.get("Nats-Server-Xkey").expect("the only header");
                    XKey::from_public_key(key.as_str()).expect("a public key")
                });
                let opened = match (&xkey, &sender) {
                    (Some(own), Some(sender)) => own.open(&request.payload, sender).expect("ours"),
                    _ => request.payload.to_vec(),
                };
                let claims = claims_of(std::str::from_utf8(&opened).expect("a token"));
                let answer = answer(&issuer, &claims, rule(&claims));
                seen.lock().expect("nobody panics").push(claims);
                let answer = match (&xkey, &sender) {
                    (Some(own), Some(sender)) => own.seal(answer.as_bytes(), sender).expect("ours"),
                    _ => answer.into_bytes(),
                };
                let reply = request.reply.expect("it waits for an answer");
                client.publish(reply, answer.into()).await.expect("connected");
            }
        });
        Self { requests }
    }

    fn requests(&self) -> Vec<Value> {
        self.requests.lock().expect("nobody panics").clone()
    }
}

fn answer(issuer: &KeyPair, request: &Value, decided: Result<Value, String>) -> String {
    let user = request["nats"]["user_nkey"].as_str().expect("a key");
    let body = match decided {
        Ok(mut claims) => {
            let nats = claims["nats"].take();
            claims.as_object_mut().expect("an object").remove("nats");
            json!({"jwt": token(issuer, user, "user", nats, claims)})
        }
        Err(error) => json!({"error": error}),
    };
    let server = request["nats"]["server_id"]["id"].clone();
    token(issuer, user, "authorization_response", body, json!({"aud": server}))
}

/// Lets in whoever has the password `in`, to account APP, by the name the client has given.
fn by_password(request: &Value) -> Result<Value, String> {
    let connect = &request["nats"]["connect_opts"];
    if connect["pass"] != "in" {
        return Err(format!("no entry for {}", connect["user"]));
    }
    Ok(json!({"aud": "APP", "name": connect["user"], "nats": unlimited()}))
}

fn config(issuer: &KeyPair, inside: &str, outside: &str) -> String {
    format!(
        "accounts {{\n AUTH {{ users: [{{user: auth, password: pwd}}] }}\n APP {{}}\n\
         OTHER {{ users: [{{user: static, password: s}}] }}\n\
         SYS {{ users: [{{user: sys, password: p}}] }} }}\nsystem_account: SYS\n\
         authorization {{ timeout: 20, auth_callout {{ issuer: {}, account: AUTH,\n\
         auth_users: [auth, sys] {inside} }} }}\n{outside}\n",
        issuer.public_key()
    )
}

fn user(name: &str, password: &str) -> ConnectOptions {
    ConnectOptions::with_user_and_password(name.to_owned(), password.to_owned())
}

async fn enter(broker: &Broker, options: ConnectOptions) -> Result<Client, String> {
    let connecting = options.connection_timeout(PATIENCE).connect(broker.url());
    within(connecting).await.map_err(|error| format!("{:?}", error.kind()))
}

async fn service_of(broker: &Broker, issuer: KeyPair, rule: Rule) -> Service {
    let client = enter(broker, user("auth", "pwd")).await.expect("it is not asked about");
    Service::start(client, issuer, None, rule).await
}

fn copy(key: &KeyPair) -> KeyPair {
    KeyPair::from_seed(&key.seed().expect("a seed")).expect("its own")
}

async fn user_info(client: &Client) -> Value {
    let answer = within(client.request("$SYS.REQ.USER.INFO", "".into())).await.expect("answered");
    serde_json::from_slice::<Value>(&answer.payload).expect("JSON")["data"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_decides_who_comes_in_and_where() {
    let issuer = KeyPair::new_account();
    for &shards in shard_counts() {
        let broker = Broker::with_config(shards, &config(&issuer, "", ""));
        let service = service_of(&broker, copy(&issuer), by_password).await;
        let ann = enter(&broker, user("ann", "in")).await.expect("allowed");
        let bob = enter(&broker, user("bob", "in")).await.expect("allowed");
        meet(&ann, &bob).await;
        let info = user_info(&ann).await;
        assert_eq!((&info["user"], &info["account"]), (&json!("ann"), &json!("APP")));
        let refused = enter(&broker, user("eve", "out")).await.expect_err("refused");
        assert_eq!(refused, "AuthorizationViolation");
        // A configured user is asked about, too, and its own password does not help.
        enter(&broker, user("static", "s")).await.expect_err("refused");
        let seen = service.requests();
        let names: Vec<&str> =
            seen.iter().filter_map(|it| it["nats"]["connect_opts"]["user"].as_str()).collect();
        assert!(names.contains(&"static") && !names.contains(&"auth"), "{names:?}");
        let of_ann = seen.iter().find(|it| it["nats"]["connect_opts"]["user"] == "ann");
        let request = &of_ann.expect("asked about")["nats"];
        assert_eq!(request["client_info"]["type"], "nats");
        assert_eq!(request["client_tls"], Value::Null);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_waits_together_and_everybody_gets_the_own_answer() {
    let issuer = KeyPair::new_account();
    for &shards in shard_counts() {
        let broker = Broker::with_config(shards, &config(&issuer, "", ""));
        let _service = service_of(&broker, copy(&issuer), by_password).await;
        let crowd = (0..100).map(|number| {
            let password = if number % 2 == 0 { "in" } else { "out" };
            enter(&broker, user(&format!("user{number}"), password))
        });
        let all = futures::future::join_all(crowd).await;
        for (number, outcome) in all.iter().enumerate() {
            assert_eq!(outcome.is_ok(), number % 2 == 0, "user{number}");
        }
        let names = all.iter().flatten().map(user_info);
        let names = futures::future::join_all(names).await;
        for (number, info) in names.iter().enumerate() {
            assert_eq!(info["user"], format!("user{}", 2 * number));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_silent_holds_up_nobody_who_is_not_asked_about() {
    let issuer = KeyPair::new_account();
    for &shards in shard_counts() {
        let brief = config(&issuer, "", "").replace("timeout: 20", "timeout: 1");
        let broker = Broker::with_config(shards, &brief);
        let mut waiting: Vec<Wire> = (0..50).map(|_| Wire::open(&broker)).collect();
        for wire in &mut waiting {
            wire.send(b"CONNECT {\"user\":\"a\",\"pass\":\"in\"}\r\nPING\r\n");
        }
        // The account's own users, who are not asked about, talk meanwhile.
        let auth = enter(&broker, user("auth", "pwd")).await.expect("it is not asked about");
        let other = enter(&broker, user("auth", "pwd")).await.expect("it is not asked about");
        meet(&auth, &other).await;
        for wire in &mut waiting {
            let said = String::from_utf8_lossy(&wire.drain_to_end()).into_owned();
            assert!(said.starts_with("-ERR 'Auth"), "{said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_users_token_says_what_the_user_may_do_and_for_how_long() {
    let issuer = KeyPair::new_account();
    for &shards in shard_counts() {
        let broker = Broker::with_config(shards, &config(&issuer, "", ""));
        let rule = |request: &Value| {
            let name = request["nats"]["connect_opts"]["user"].as_str().unwrap_or_default();
            let more = match name {
                "few" => json!({"subs": 1, "payload": 5}),
                "browser" => json!({"allowed_connection_types": ["WEBSOCKET"]}),
                "far" => json!({"src": ["10.9.8.0/24"]}),
                "near" => json!({"src": ["127.0.0.0/8"]}),
                _ => json!({"pub": {"allow": ["ok.>"]}, "resp": {"max": 1, "ttl": 0}}),
            };
            let mut nats = unlimited();
            nats.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let exp = if name == "brief" { unix_now() + 2 } else { 0 };
            Ok(json!({"aud": "APP", "name": name, "exp": exp, "nats": nats}))
        };
        let _service = service_of(&broker, copy(&issuer), rule).await;
        let open = |name: &str| {
            let mut wire = Wire::open(&broker);
            wire.send(format!("CONNECT {{\"user\":\"{name}\",\"verbose\":false}}\r\n").as_bytes());
            wire
        };
        let mut few = open("few");
        few.send(b"SUB a 1\r\nSUB b 2\r\n");
        few.expect(b"-ERR 'maximum subscriptions exceeded'\r\n");
        few.send(b"PUB a 6\r\nabcdef\r\n");
        few.expect(b"-ERR 'Maximum Payload Violation'\r\n");
        for name in ["browser", "far"] {
            open(name).expect(b"-ERR 'Authorization Violation'\r\n");
        }
        open("near").sync();
        let mut other = open("other");
        other.send(b"PUB bad 0\r\n\r\n");
        other.expect(b"-ERR 'Permissions Violation for Publish to \"bad\"'\r\n");
        let mut brief = open("brief");
        brief.sync();
        brief.expect(b"-ERR 'User Authentication Expired'\r\n");
        brief.expect_end();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_in_the_services_account_can_ask_it_and_its_account_is_told_of_refusals() {
    let issuer = KeyPair::new_account();
    for &shards in shard_counts() {
        let broker = Broker::with_config(shards, &config(&issuer, "", ""));
        let rule = |request: &Value| match by_password(request) {
            Ok(mut claims) => {
                claims["aud"] = "AUTH".into();
                Ok(claims)
            }
            refused => refused,
        };
        let _service = service_of(&broker, copy(&issuer), rule).await;
        for login in ["\"user\":\"auth\",\"pass\":\"pwd\"", "\"user\":\"x\",\"pass\":\"in\""] {
            let mut wire = Wire::open(&broker);
            wire.send(format!("CONNECT {{{login},\"verbose\":false}}\r\n").as_bytes());
            wire.send(format!("PUB {SUBJECT} 0\r\n\r\n").as_bytes());
            let error = format!("-ERR 'Permissions Violation for Publish to \"{SUBJECT}\"'\r\n");
            wire.expect(error.as_bytes());
        }
        let auth = enter(&broker, user("auth", "pwd")).await.expect("it is not asked about");
        let mut told = auth.subscribe("$SYS.ACCOUNT.CLIENT.AUTH.ERR").await.expect("permitted");
        auth.flush().await.expect("connected");
        enter(&broker, user("eve", "out")).await.expect_err("refused");
        let event: Value = serde_json::from_slice(&next(&mut told).await.payload).expect("JSON");
        let reason = event["reason"].as_str().expect("a reason");
        assert_eq!(reason, "Auth callout service returned an error: no entry for \"eve\"");
        assert_eq!(
            (&event["client"]["user"], &event["client"]["acc"]),
            (&json!("eve"), &json!("AUTH"))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_and_answers_are_sealed_if_the_service_has_a_curve_key() {
    let (issuer, xkey) = (KeyPair::new_account(), XKey::new());
    let inside = format!(", xkey: {}", xkey.public_key());
    for &shards in shard_counts() {
        let broker = Broker::with_config(shards, &config(&issuer, &inside, ""));
        let client = enter(&broker, user("auth", "pwd")).await.expect("it is not asked about");
        let service = Service::start(client, copy(&issuer), Some(xkey.clone()), by_password).await;
        let ann = enter(&broker, user("ann", "in")).await.expect("allowed");
        let server = service.requests()[0]["nats"]["server_id"]["xkey"].clone();
        assert!(server.as_str().is_some_and(|key| key.starts_with('X')), "{server}");
        assert_eq!(user_info(&ann).await["user"], "ann");
        enter(&broker, user("eve", "out")).await.expect_err("refused");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_tls_and_websocket_are_asked_about_with_what_they_show() {
    let issuer = KeyPair::new_account();
    let authority = Authority::new("the authority of this test");
    let local = SanType::DnsName("localhost".try_into().expect("a name"));
    authority.sign("server", "server", vec![local]);
    authority.sign("ann", "ann", Vec::new());
    let path = |name: &str| authority.file(name).display().to_string();
    let outside = format!(
        "tls {{ cert_file: \"{}\", key_file: \"{}\", ca_file: \"{}\", verify: true }}\n\
         websocket {{ listen: \"127.0.0.1:-1\", no_tls: true }}",
        path("server.pem"),
        path("server.key"),
        path("ca.pem")
    );
    for &shards in shard_counts() {
        let mut broker = Broker::with_config(shards, &config(&issuer, "", &outside));
        let ws_port = broker.logged_port("Listening for websocket clients on");
        let over_tls = |name: &str, password: &str| {
            user(name, password)
                .require_tls(true)
                .add_root_certificates(authority.file("ca.pem"))
                .add_client_certificate(authority.file("ann.pem"), authority.file("ann.key"))
                .connection_timeout(PATIENCE)
                .connect(format!("tls://localhost:{}", broker.port()))
        };
        let auth = within(over_tls("auth", "pwd")).await.expect("it is not asked about");
        let service = Service::start(auth, copy(&issuer), None, by_password).await;
        let ann = within(over_tls("ann", "in")).await.expect("allowed");
        let url = format!("ws://127.0.0.1:{ws_port}");
        let options = user("web", "in").connection_timeout(PATIENCE);
        let web = within(options.connect(url)).await.expect("allowed");
        meet(&ann, &web).await;
        let requests = service.requests();
        let tls = &requests[0]["nats"]["client_tls"];
        assert_eq!(tls["version"], "1.3");
        let chain = tls["verified_chains"][0].as_array().expect("a chain");
        let file = |name: &str| std::fs::read_to_string(authority.file(name)).expect("a file");
        let bare = |text: &str| text.replace(['\r', '\n'], "");
        let shown: Vec<String> =
            chain.iter().map(|cert| bare(cert.as_str().expect("text"))).collect();
        assert_eq!(shown, [bare(&file("ann.pem")), bare(&file("ca.pem"))]);
        assert_eq!(requests[1]["nats"]["client_info"]["type"], "websocket");
        assert_eq!(requests[1]["nats"]["client_tls"], Value::Null);
    }
}

/// The code that a client of MQTT with this user is answered with.
fn mqtt_code(port: u16, user: &str, password: &str) -> u8 {
    let text = |text: &str| {
        let len = u16::try_from(text.len()).expect("it is short");
        [&len.to_be_bytes()[..], text.as_bytes()].concat()
    };
    let parts = [text("MQTT"), vec![4, 0xc2, 0, 0], text("id"), text(user), text(password)];
    let body = parts.concat();
    let mut packet = vec![0x10, u8::try_from(body.len()).expect("it is short")];
    packet.extend(body);
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the port is open");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(&packet).expect("connected");
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).expect("CONNACK");
    assert_eq!(answer[..3], [0x20, 2, 0]);
    answer[3]
}

#[tokio::test(flavor = "multi_thread")]
async fn leaf_nodes_and_clients_of_mqtt_are_asked_about_too() {
    let issuer = KeyPair::new_account();
    let store = tempfile::tempdir().expect("a scratch directory");
    let outside = format!(
        "server_name: m\njetstream {{ store_dir: \"{}\" }}\n\
         mqtt {{ listen: \"127.0.0.1:-1\" }}\nleafnodes {{ listen: \"127.0.0.1:-1\" }}",
        store.path().display()
    );
    let config = config(&issuer, "", &outside).replace(" APP {}", " APP { jetstream: enabled }");
    for &shards in shard_counts() {
        let mut broker = Broker::with_config(shards, &config);
        let leaf_port = broker.logged_port("Listening for leafnode connections on ");
        let mqtt_port = broker.logged_port("Listening for MQTT clients on mqtt://");
        let service = service_of(&broker, copy(&issuer), by_password).await;
        let mqtt = move |password| move || mqtt_code(mqtt_port, "thing", password);
        assert_eq!(tokio::task::spawn_blocking(mqtt("in")).await.expect("it ends"), 0);
        assert_eq!(tokio::task::spawn_blocking(mqtt("out")).await.expect("it ends"), 5);
        let leaf = move |password: &'static str| {
            move || {
                let mut wire = Wire::at(leaf_port);
                let connect = json!({"name": "edge", "user": "edge", "pass": password});
                wire.send(format!("CONNECT {connect}\r\nPING\r\n").as_bytes());
                String::from_utf8(wire.until_pong_or_end()).expect("the protocol is text")
            }
        };
        let heard = tokio::task::spawn_blocking(leaf("in")).await.expect("it ends");
        assert!(!heard.contains("-ERR"), "{heard}");
        let heard = tokio::task::spawn_blocking(leaf("out")).await.expect("it ends");
        assert!(heard.contains("-ERR 'Authorization Violation'"), "{heard}");
        let about = |request: &Value| {
            let client = &request["nats"]["client_info"];
            (client["kind"].clone(), client["type"].clone())
        };
        let thing = (json!("Client"), json!("mqtt"));
        let asked: Vec<_> = service.requests().iter().map(about).collect();
        assert_eq!(asked[..2], [thing.clone(), thing]);
        let edge = (json!("Leafnode"), Value::Null);
        assert_eq!(asked[2..], [edge.clone(), edge]);
    }
}

/// Lets in whoever says `in`, to the account named by the client's own name.
fn to_account(request: &Value) -> Result<Value, String> {
    let connect = &request["nats"]["connect_opts"];
    match connect["pass"] == "in" {
        true => Ok(json!({"name": "shown", "nats": unlimited()})),
        false => Err("no".to_owned()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_an_operator_the_account_names_its_service_and_others_are_left_alone() {
    let mut world = World::new();
    let (account, plain, own) =
        (KeyPair::new_account(), KeyPair::new_account(), KeyPair::new_user());
    world.account(&account, json!({"authorization": {"auth_users": [own.public_key()]}}));
    world.account(&plain, json!({}));
    let sentinel = |bearer: bool| {
        let nats = json!({"bearer_token": bearer, "subs": -1, "data": -1, "payload": -1,
            "pub": {"deny": [">"]}, "sub": {"deny": [">"]}});
        token(&account, &KeyPair::new_user().public_key(), "user", nats, json!({}))
    };
    for &shards in shard_counts() {
        let default = format!("default_sentinel: \"{}\"\n", sentinel(true));
        let broker = Broker::with_config(shards, &(world.config() + &default));
        let text = credentials_of(&own, &account, unlimited(), json!({}));
        let options = ConnectOptions::with_credentials(&text).expect("credentials");
        let client = enter(&broker, options).await.expect("it is not asked about");
        let service = Service::start(client, copy(&account), None, to_account).await;
        let says = |fields: &str| {
            let mut wire = Wire::open(&broker);
            wire.send(format!("CONNECT {{\"verbose\":false,{fields}}}\r\nPING\r\n").as_bytes());
            wire
        };
        let by_token = format!("\"jwt\":\"{}\",\"pass\":\"in\"", sentinel(true));
        let mut with_sentinel = says(&by_token);
        with_sentinel.expect(b"PONG\r\n");
        // The denials of the sentinel are not those of the user.
        with_sentinel.send(b"SUB a 1\r\nPUB a 2\r\nhi\r\n");
        with_sentinel.expect(b"MSG a 1 2\r\nhi\r\n");
        says("\"pass\":\"in\"").expect(b"PONG\r\n");
        says("\"pass\":\"out\"").expect(b"-ERR 'Authorization Violation'\r\n");
        let asked = service.requests().len();
        assert_eq!(asked, 3);
        // Whoever shows a token without signing for it, if it is none for bearers, is not even
        // asked about.
        let unsigned = format!("\"jwt\":\"{}\",\"pass\":\"in\"", sentinel(false));
        says(&unsigned).expect(b"-ERR 'Authorization Violation'\r\n");
        let other = credentials_of(&KeyPair::new_user(), &plain, unlimited(), json!({}));
        let options = ConnectOptions::with_credentials(&other).expect("credentials");
        enter(&broker, options).await.expect("its account has no service");
        assert_eq!(service.requests().len(), asked);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_asks_another_service_from_then_on_and_sends_nobody_away() {
    let (first, second) = (KeyPair::new_account(), KeyPair::new_account());
    for &shards in shard_counts() {
        let mut broker = Broker::with_config(shards, &config(&first, "", ""));
        let _service = service_of(&broker, copy(&first), by_password).await;
        let ann = enter(&broker, user("ann", "in")).await.expect("allowed");
        broker.reload(&config(&second, "", ""));
        enter(&broker, user("bob", "in")).await.expect_err("that key is not known any more");
        let other = enter(&broker, user("auth", "pwd")).await.expect("it is not asked about");
        drop(other);
        meet(&ann, &ann).await;
        let info = user_info(&ann).await;
        assert_eq!((&info["user"], &info["account"]), (&json!("ann"), &json!("APP")));
    }
}

/// Runs the probe of the conformance corpus; its last line is `N passed, N failed`.
#[test]
fn the_probe_of_the_corpus_passes_with_each_number_of_shards() {
    let probe = probe();
    if !probe.exists() {
        assert!(std::env::var_os("CI").is_none(), "{} is not here", probe.display());
        return;
    }
    for &shards in shard_counts() {
        let (passes, said) = run_probe(&probe, shards, &[]);
        println!("{said}");
        // Some checks have 1.5 s for a crowd: alone on a busy machine they have the time for it.
        let failed: Vec<&str> = said
            .lines()
            .filter_map(|line| line.strip_prefix("FAIL  ")?.split_whitespace().next())
            .collect();
        assert!(passes || (1..=ALONE_MAX).contains(&failed.len()), "{shards} shards:\n{said}");
        for id in failed {
            let alone = (0..ALONE_TRIES).map(|_| run_probe(&probe, shards, &["--only", id]));
            assert!(alone.into_iter().any(|(passes, _)| passes), "{shards} shards, {id}:\n{said}");
        }
    }
}

/// Failed checks that are tried again alone, at most, and how often.
const ALONE_MAX: usize = 2;
const ALONE_TRIES: usize = 3;

fn run_probe(probe: &Path, shards: u32, more: &[&str]) -> (bool, String) {
    let server = format!("'{}' -c {{config}} --shards {shards}", server_command());
    let low = 17_500 + 100 * shards + std::process::id() % 10 * 10;
    let output = Command::new("python3")
        .arg(probe)
        .args(["--server", &server, "--ports", &format!("{low}-{}", low + 9)])
        .args(["--slow", "4"])
        .args(more)
        .stdin(Stdio::null())
        .output()
        .expect("python3");
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

fn probe() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shared = std::env::var_os("SHARDCAST_CONFORMANCE")
        .map_or_else(|| root.join("../shared/conformance"), PathBuf::from);
    shared.join("links/callout_probe.py")
}
