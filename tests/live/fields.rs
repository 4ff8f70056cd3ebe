//! The fields that tools and clients read: the same as those of a nats-server that runs beside, in
//! INFO on every port, and on the monitoring's pages, however the server is configured.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;

use crate::broker::authority::Authority;
use crate::broker::tokens::{World, token, unlimited};
use crate::broker::wire::Wire;
use crate::broker::{Broker, PATIENCE, has_original, http, is_nats_server};
use crate::jwt::login;
use crate::monitor::shape;
use nkeys::KeyPair;
use serde_json::{Value, json};

const PORTS: &str = "
    http: \"127.0.0.1:-1\"
    server_name: one
    cluster { name: C, listen: \"127.0.0.1:-1\", pool_size: 3 }
    websocket { listen: \"127.0.0.1:-1\", no_tls: true }
";

/// What people configure, in short, and the accounts whose users come by tokens.
fn configurations(authority: &Authority) -> Vec<(&'static str, String, Vec<KeyPair>)> {
    authority.sign("server", "localhost", vec![]);
    let (cert, key) = (authority.file("server.pem"), authority.file("server.key"));
    let mut world = World::new();
    let (shop, fan) = (KeyPair::new_account(), KeyPair::new_account());
    let exports = json!([{"name": "p", "subject": "price", "type": "service"},
        {"name": "s", "subject": "offers.>", "type": "stream", "token_req": true}]);
    let user = KeyPair::new_user().public_key();
    world.account(
        &shop,
        json!({"exports": exports, "tags": ["red"], "revocations": {user.clone(): 7},
            "mappings": {"a.*": [{"subject": "b.$1", "weight": 30}]}}),
    );
    let imports = json!([
        {"name": "p", "subject": "price", "account": shop.public_key(), "type": "service"}]);
    world.account(&fan, json!({"imports": imports}));
    vec![
        ("nothing", String::new(), vec![]),
        (
            "tls",
            format!(
                "tls {{ cert_file: {cert:?}, key_file: {key:?} }}, write_timeout: close
                 server_metadata {{ place: here }}, client_advertise: \"example.org\""
            ),
            vec![],
        ),
        ("token", "authorization { token: t }".to_owned(), vec![]),
        (
            "users",
            "authorization { users [{user: a, password: p, permissions: {publish: a}}] }
             no_auth_user: a, server_tags: [\"az:1\"], max_subscriptions: 100"
                .to_owned(),
            vec![],
        ),
        ("nkeys", format!("authorization {{ users [{{nkey: {user}}}] }}"), vec![]),
        (
            "accounts",
            "accounts {
                A { users [{user: a, password: p}]
                    exports [{service: s, accounts: [B]}, {stream: \"t.>\"}]
                    mappings { m: [{destination: n, weight: 20%}] } }
                B { users [{user: b, password: p}]
                    imports [{service: {account: A, subject: s}, to: x},
                             {stream: {account: A, subject: \"t.>\"}, prefix: y}] }
                SYS { users [{user: sys, password: p}] } }
             system_account: SYS"
                .to_owned(),
            vec![],
        ),
        ("tokens", world.config(), vec![shop, fan]),
    ]
}

/// The object of an INFO line, which may have more before it.
fn info(line: &str) -> Value {
    let start = line.find('{').unwrap_or_else(|| panic!("no INFO in {line:?}"));
    serde_json::from_str(line[start..].trim_end()).unwrap()
}

/// The INFO of a WebSocket client.
fn websocket_info(broker: &Broker) -> Value {
    let banner = broker.banner();
    let (_, rest) = banner.split_once("websocket clients on ws://").expect("it listens");
    let mut stream = TcpStream::connect(rest.lines().next().unwrap().trim()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let upgrade = "GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                   Sec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
    stream.write_all(upgrade.as_bytes()).unwrap();
    let (mut seen, mut byte) = (Vec::new(), [0]);
    while !(seen.ends_with(b"} \r\n") || seen.ends_with(b"}\r\n")) {
        stream.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }
    info(&String::from_utf8_lossy(&seen))
}

/// What of INFO is always the same, or has a form; `None` if a field has nothing of that.
fn form(field: &str, value: &Value) -> Option<String> {
    match field {
        "version" | "proto" | "headers" | "max_payload" | "api_lvl" | "cluster"
        | "tls_required" | "auth_required" | "acc_is_sys" | "server_name" | "client_ip"
        | "host" => Some(value.to_string()),
        "xkey" | "server_id" | "nonce" => {
            let text = value.as_str()?;
            let first = if field == "nonce" { "" } else { &text[..1] };
            Some(format!("{first} {}", text.len()))
        }
        _ => None,
    }
}

#[test]
fn info_has_the_fields_of_nats_servers_on_every_port() {
    if is_nats_server() || !has_original() {
        return;
    }
    let authority = Authority::new("fields");
    for (name, configuration, _) in configurations(&authority) {
        let config = format!("{PORTS}{configuration}");
        let mut brokers = [Broker::original(&config), Broker::with_config(2, &config)];
        let [theirs, ours] = brokers.each_mut().map(|broker| {
            // From then on it says where clients may connect.
            let mut route = Wire::ungreeted_at(broker.route_port());
            let mut client = Wire::ungreeted(broker);
            BTreeMap::from([
                ("client", info(&client.line())),
                ("websocket", websocket_info(broker)),
                ("route", info(&route.line())),
            ])
        });
        for (port, info) in theirs {
            let told = |info: &Value| -> BTreeMap<String, Option<String>> {
                let fields = info.as_object().unwrap().iter();
                fields.map(|(field, value)| (field.clone(), form(field, value))).collect()
            };
            let (theirs, mut ours) = (told(&info), told(&ours[port]));
            if port == "route" {
                // A member says so of itself to others.
                ours.remove("shardcast");
            }
            assert_eq!(ours, theirs, "{name}, {port}");
        }
    }
}

/// A user of each account.
fn users_of(broker: &Broker, accounts: &[KeyPair]) -> Vec<Wire> {
    let mut said = unlimited();
    said["tags"] = json!(["red"]);
    let user_of = |account: &KeyPair| {
        let user = KeyPair::new_user();
        let text = token(account, &user.public_key(), "user", said.clone(), json!({}));
        let mut wire = Wire::open_with(broker, |nonce| login(&user, &text, nonce));
        wire.sync();
        wire
    };
    accounts.iter().map(user_of).collect()
}

#[test]
fn pages_have_the_fields_of_nats_servers_however_they_are_configured() {
    if is_nats_server() || !has_original() {
        return;
    }
    let authority = Authority::new("fields");
    for (name, configuration, accounts) in configurations(&authority) {
        let config = format!("{PORTS}{configuration}");
        let (theirs, ours) = (Broker::original(&config), Broker::with_config(2, &config));
        // Until somebody comes nats-server has not heard of them.
        let _users = [&theirs, &ours].map(|broker| users_of(broker, &accounts));
        let mut paths: Vec<String> = [
            "/varz",
            "/connz",
            "/connz?auth=1",
            "/routez",
            "/subsz",
            "/accountz",
            "/healthz",
            "/leafz",
            "/gatewayz",
            "/jsz",
            "/accstatz",
        ]
        .map(str::to_owned)
        .into();
        let accounts = http::json(&ours, "/accountz");
        let accounts = accounts["accounts"].as_array().unwrap();
        let system = http::json(&ours, "/varz")["system_account"].clone();
        for account in accounts.iter().filter(|account| **account != system) {
            paths.push(format!("/accountz?acc={}", account.as_str().unwrap()));
        }
        for path in &paths {
            let told = |broker: &Broker| {
                let mut shape = shape(&http::json(broker, path));
                shape.retain(|field, _| {
                    let is_of_one = ["/shardcast", "/http_req_stats/", "decoded_jwt/"];
                    !is_of_one.iter().any(|one| field.contains(one))
                });
                shape
            };
            let (theirs, ours) = (told(&theirs), told(&ours));
            let fields = |shape: &BTreeMap<String, &'static str>| -> BTreeSet<String> {
                shape.iter().map(|(field, kind)| format!("{field}: {kind}")).collect()
            };
            let (theirs, ours) = (fields(&theirs), fields(&ours));
            let missing: Vec<_> = theirs.difference(&ours).collect();
            let more: Vec<_> = ours.difference(&theirs).collect();
            assert!(
                missing.is_empty() && more.is_empty(),
                "{name}, {path}: {missing:#?} are missing, {more:#?} are too many"
            );
        }
    }
}

#[test]
fn clients_are_told_of_the_address_that_is_advertised() {
    if is_nats_server() || !has_original() {
        return;
    }
    for advertised in ["example.org", "example.org:77", "example.org:-1", "[::1]:78", "[::1]"] {
        let config = format!("{PORTS}client_advertise: \"{advertised}\"\n");
        let told = |broker: &mut Broker| {
            // From then on it says where clients may connect.
            let _route = Wire::ungreeted_at(broker.route_port());
            let own = broker.port().to_string();
            let info = info(&Wire::ungreeted(broker).line());
            let varz = http::json(broker, "/varz");
            let fields = |from: &Value| {
                let fields = ["host", "port", "connect_urls"].map(|field| from[field].to_string());
                fields.map(|field| field.replace(&own, "OWN"))
            };
            [fields(&info), fields(&varz)]
        };
        let theirs = told(&mut Broker::original(&config));
        assert_eq!(told(&mut Broker::with_config(2, &config)), theirs, "{advertised}");
    }
}

#[test]
fn an_untidy_path_leads_to_the_tidy_one() {
    const PATHS: [&str; 14] = [
        "//varz",
        "/./varz",
        "/../varz",
        "/x/../varz?a=b",
        "/varz/../connz",
        "//",
        "/varz//",
        "/varz/.",
        "//varz?x=%3c'&y",
        "///healthz",
        "/nonesuch/../nonesuch2",
        "/varz/",
        "/.varz",
        "/varz..",
    ];
    if is_nats_server() || !has_original() {
        return;
    }
    let config = "http: \"127.0.0.1:-1\"\n";
    let (theirs, ours) = (Broker::original(config), Broker::with_config(2, config));
    for path in PATHS {
        let told = |broker: &Broker| {
            let (status, head, body) = http::get(broker, path);
            let fields = ["location:", "content-type:"];
            let lines = head.lines().filter(|line| fields.iter().any(|one| line.starts_with(one)));
            let head: BTreeSet<String> = lines.map(str::to_owned).collect();
            (status, head, body)
        };
        assert_eq!(told(&ours), told(&theirs), "{path}");
    }
}
