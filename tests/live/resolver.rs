//! Accounts that are pushed while the server runs: by requests in the system account, as `nsc`
//! makes them, here and at nats-server alike.

use crate::broker::peers::{ask_until_answered, next, within};
use crate::broker::tokens::{World, credentials, credentials_of, token, unix_now, unlimited};
use crate::broker::{Broker, PATIENCE, has_original, is_nats_server, shard_counts};
use async_nats::{Client, ConnectOptions, RequestErrorKind};
use futures::StreamExt;
use nkeys::KeyPair;
use serde_json::{Value, json};

/// Ours with each number of shards, and the original; each has a directory of its own.
async fn on_each(world: &World, more: &str, test: impl AsyncFn(&mut Broker, &Client)) {
    let dirs: Vec<_> = (0..4).map(|_| tempfile::tempdir().expect("a directory")).collect();
    let mut dirs = dirs.iter();
    let mut config = || world.pushed(dirs.next().expect("one for each").path(), more);
    for &shards in shard_counts() {
        println!("with {shards} shards");
        let mut broker = Broker::with_config(shards, &config());
        let system = connect(&broker, &world.system_credentials()).await;
        test(&mut broker, &system).await;
    }
    if has_original() && !is_nats_server() {
        println!("nats-server");
        let mut broker = Broker::original(&config());
        let system = connect(&broker, &world.system_credentials()).await;
        test(&mut broker, &system).await;
    }
}

async fn try_connect(broker: &Broker, credentials: &str) -> Result<Client, ()> {
    let options = ConnectOptions::with_credentials(credentials).expect("credentials");
    options.connection_timeout(PATIENCE).connect(broker.url()).await.map_err(drop)
}

async fn connect(broker: &Broker, credentials: &str) -> Client {
    try_connect(broker, credentials).await.expect("good credentials")
}

/// Connects as soon as the server knows the account.
async fn connect_when_known(broker: &Broker, credentials: &str) -> Client {
    loop {
        if let Ok(client) = try_connect(broker, credentials).await {
            return client;
        }
    }
}

async fn ask(client: &Client, subject: impl Into<String>, payload: impl Into<String>) -> String {
    let payload: String = payload.into();
    let answer = within(client.request(subject.into(), payload.into())).await;
    String::from_utf8(answer.expect("an answer").payload.to_vec()).expect("text")
}

async fn push(system: &Client, token: impl Into<String>) -> Value {
    parse(&ask(system, "$SYS.REQ.CLAIMS.UPDATE", token).await)
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn limits(connections: i64) -> Value {
    json!({"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1,
        "wildcards": true, "conn": connections, "leaf": -1})
}

#[tokio::test]
async fn an_account_that_is_pushed_is_there_at_once_and_after_a_restart() {
    let mut world = World::new();
    let later = KeyPair::new_account();
    let initial = world.clone_of_keys();
    let text = world.account(&later, json!({}));
    on_each(&initial, "", async |broker, system| {
        let user = credentials(&later, unlimited(), json!({}));
        assert!(try_connect(broker, &user).await.is_err(), "nobody knows the account");
        let answer = push(system, text.clone()).await;
        let wanted = json!({"account": later.public_key(), "code": 200, "message": "jwt updated"});
        assert_eq!(answer["data"], wanted);
        for _ in 0..8 {
            connect(broker, &user).await;
        }
        let lookup = format!("$SYS.REQ.ACCOUNT.{}.CLAIMS.LOOKUP", later.public_key());
        assert_eq!(ask(system, lookup, "").await, text);
        let list = parse(&ask(system, "$SYS.REQ.CLAIMS.LIST", "").await);
        assert!(list["data"].as_array().expect("a list").contains(&json!(later.public_key())));
        broker.restart();
        connect(broker, &user).await;
    })
    .await;
}

#[tokio::test]
async fn what_is_pushed_holds_for_those_who_are_there() {
    let mut world = World::new();
    let (shop, fan) = (KeyPair::new_account(), KeyPair::new_account());
    let initial = world.clone_of_keys();
    let before = world.account(&shop, json!({"limits": limits(-1)}));
    let fan_before = world.account(&fan, json!({}));
    let exports = json!([{"name": "p", "subject": "price", "type": "service"},
        {"name": "s", "subject": "offers.>", "type": "stream"}]);
    let with_exports = world.account(&shop, json!({"exports": exports}));
    let imports = json!([
        {"name": "p", "subject": "price", "account": shop.public_key(), "type": "service"},
        {"name": "s", "subject": "offers.>", "account": shop.public_key(), "type": "stream"}]);
    let with_imports = world.account(&fan, json!({"imports": imports}));
    let fewer = world.account(&shop, json!({"exports": exports, "limits": limits(2)}));
    on_each(&initial, "", async |broker, system| {
        for text in [&before, &fan_before] {
            assert_eq!(push(system, text).await["data"]["code"], 200);
        }
        let of = |account: &KeyPair| credentials(account, unlimited(), json!({}));
        let (seller, buyer) = (connect(broker, &of(&shop)).await, connect(broker, &of(&fan)).await);
        let mut asked = seller.subscribe("price").await.expect("connected");
        seller.flush().await.expect("connected");
        let refused = buyer.request("price", "".into()).await.expect_err("not imported");
        assert_eq!(refused.kind(), RequestErrorKind::NoResponders);
        // In either order: an import waits for its export.
        for text in [&with_imports, &with_exports] {
            assert_eq!(push(system, text).await["data"]["code"], 200);
        }
        let answers = {
            let seller = seller.clone();
            tokio::spawn(async move {
                while let Some(request) = asked.next().await {
                    let reply = request.reply.expect("a request");
                    seller.publish(reply, "3".into()).await.expect("connected");
                }
            })
        };
        assert_eq!(ask_until_answered(&buyer, "price", "").await.payload, "3");
        let mut offers = buyer.subscribe("offers.tea").await.expect("connected");
        ask_until_answered(&buyer, "price", "").await;
        seller.publish("offers.tea", "hot".into()).await.expect("connected");
        assert_eq!(next(&mut offers).await.payload, "hot");
        // Fewer connections: the oldest have to go, and there is no more room.
        let (_second, _third) =
            (connect(broker, &of(&shop)).await, connect(broker, &of(&shop)).await);
        answers.abort();
        assert_eq!(push(system, &fewer).await["data"]["code"], 200);
        let page = format!("$SYS.REQ.ACCOUNT.{}.CONNZ", shop.public_key());
        while parse(&ask(system, page.clone(), "").await)["data"]["num_connections"] != 2 {}
    })
    .await;
}

#[tokio::test]
async fn pushes_leave_nothing_of_the_tokens_before() {
    if is_nats_server() {
        return; // It is another's memory.
    }
    let mut world = World::new();
    let pushed = KeyPair::new_account();
    let texts = [1, 2].map(|conns| world.account(&pushed, json!({"limits": limits(conns)})));
    let repeat = async |system: &Client, times: usize| {
        for text in texts.iter().cycle().take(times) {
            assert_eq!(push(system, text.clone()).await["data"]["code"], 200);
        }
    };
    for &shards in shard_counts() {
        let dir = tempfile::tempdir().expect("a directory");
        // Options of more than half a MiB.
        let tags =
            format!("server_tags: [{}]\n", format!("\"{}\", ", "t".repeat(100)).repeat(5000));
        let broker = Broker::with_config(shards, &(world.pushed(dir.path(), "") + &tags));
        let system = connect(&broker, &world.system_credentials()).await;
        // What the allocator keeps is there after some.
        repeat(&system, 10).await;
        let before = broker.resident_kib();
        repeat(&system, 40).await;
        let grown = broker.resident_kib().saturating_sub(before);
        assert!(grown < 12 * 1024, "{grown} KiB more with {shards} shards");
    }
}

#[tokio::test]
async fn who_is_revoked_by_a_push_goes_and_others_stay() {
    let mut world = World::new();
    let account = KeyPair::new_account();
    let initial = world.clone_of_keys();
    let before = world.account(&account, json!({}));
    let (ann, bob) = (KeyPair::new_user(), KeyPair::new_user());
    let revocations = json!({ann.public_key(): unix_now() + 100});
    let after = world.account(&account, json!({"revocations": revocations}));
    on_each(&initial, "", async |broker, system| {
        push(system, &before).await;
        let of = |user| credentials_of(user, &account, unlimited(), json!({}));
        let (ended, mut ends) = futures::channel::mpsc::unbounded();
        let options = ConnectOptions::with_credentials(&of(&ann)).expect("credentials");
        let options = options.event_callback(move |event| {
            let ended = ended.clone();
            async move {
                let _ = ended.unbounded_send(event);
            }
        });
        let _ann = options.connect(broker.url()).await.expect("good credentials");
        let other = connect(broker, &of(&bob)).await;
        let mut heard = other.subscribe("a").await.expect("connected");
        assert_eq!(push(system, &after).await["data"]["code"], 200);
        while within(ends.next()).await.expect("events") != async_nats::Event::Disconnected {}
        assert!(try_connect(broker, &of(&ann)).await.is_err());
        other.publish("a", "still here".into()).await.expect("connected");
        assert_eq!(next(&mut heard).await.payload, "still here");
    })
    .await;
}

#[tokio::test]
async fn an_account_is_deleted_by_the_operator_and_nobody_else() {
    let mut world = World::new();
    let (account, stranger) = (KeyPair::new_account(), KeyPair::new_operator());
    let initial = world.clone_of_keys();
    let text = world.account(&account, json!({}));
    let user = credentials(&account, unlimited(), json!({}));
    let request = |issuer: &KeyPair, key: &str| {
        let accounts = json!({"accounts": [key]});
        token(issuer, &issuer.public_key(), "generic", accounts, json!({}))
    };
    let of_nsc = |issuer: &KeyPair, subject: &KeyPair, accounts: Value| {
        token(issuer, &subject.public_key(), "", json!({"accounts": accounts}), json!({}))
    };
    let (operator, system_key) = (initial.operator_key(), initial.system_key());
    on_each(&initial, "allow_delete: true", async |broker, system| {
        push(system, &text).await;
        connect(broker, &user).await;
        let refusals = [
            (request(&stranger, &account.public_key()), "not trusted"),
            (request(operator, "xyz"), "malformed request"),
            (of_nsc(operator, operator, Value::Null), "malformed request"),
            (of_nsc(operator, &stranger, json!([account.public_key()])), "not self signed"),
            (request(operator, &system_key), "not allowed to delete system account"),
        ];
        for (request, reason) in refusals {
            let answer = parse(&ask(system, "$SYS.REQ.CLAIMS.DELETE", request).await);
            let said = answer["error"]["description"].as_str().expect("an error");
            assert!(said.ends_with(reason), "{said}");
        }
        for named in [true, false] {
            push(system, &text).await;
            let good = match named {
                true => request(operator, &account.public_key()),
                false => of_nsc(operator, operator, json!([account.public_key()])),
            };
            let answer = parse(&ask(system, "$SYS.REQ.CLAIMS.DELETE", good).await);
            assert_eq!(answer["data"], json!({"code": 200, "message": "deleted 1 accounts"}));
        }
        let list = parse(&ask(system, "$SYS.REQ.CLAIMS.LIST", "").await);
        assert_eq!(list["data"], json!([system_key]));
        if !broker.is_original() {
            // There, who comes is let in until the account would expire.
            assert!(try_connect(broker, &user).await.is_err());
        }
    })
    .await;
    on_each(&initial, "", async |_, system| {
        let good = request(operator, &account.public_key());
        let answer = parse(&ask(system, "$SYS.REQ.CLAIMS.DELETE", good).await);
        let said = answer["error"]["description"].as_str().expect("an error");
        assert!(said.ends_with("delete must be enabled in server config"), "{said}");
    })
    .await;
}

#[tokio::test]
async fn an_account_with_mappings_that_cannot_be_is_refused() {
    let mut world = World::new();
    let account = KeyPair::new_account();
    let initial = world.clone_of_keys();
    let mut with = |mappings: Value| world.account(&account, json!({"mappings": mappings}));
    let bad = [
        with(json!({"a b": [{"subject": "c"}]})),
        with(json!({"a": [{"subject": "b", "weight": 60}, {"subject": "c", "weight": 60}]})),
        with(json!({"a": [{"subject": "b", "weight": 10}, {"subject": "b", "weight": 10}]})),
        with(json!({"a.*": [{"subject": "b.$2"}]})),
    ];
    let good = with(json!({"a.*": [{"subject": "b.$1"}]}));
    on_each(&initial, "", async |broker, system| {
        for text in &bad {
            assert_eq!(push(system, text).await["error"]["code"], 500);
        }
        assert_eq!(push(system, &good).await["data"]["code"], 200);
        let client = connect(broker, &credentials(&account, unlimited(), json!({}))).await;
        let mut mapped = client.subscribe("b.*").await.expect("connected");
        client.publish("a.x", "hi".into()).await.expect("connected");
        assert_eq!(next(&mut mapped).await.subject.as_str(), "b.x");
    })
    .await;
}

#[tokio::test]
async fn what_is_no_token_of_an_account_is_refused() {
    let mut world = World::new();
    let (one, other) = (KeyPair::new_account(), KeyPair::new_account());
    let initial = world.clone_of_keys();
    let good = world.account(&one, json!({}));
    let forged = format!("{}AAAA", &good[..good.len() - 4]);
    let user = token(&one, &KeyPair::new_user().public_key(), "user", json!({}), json!({}));
    let stranger = KeyPair::new_operator();
    let untrusted = token(&stranger, &one.public_key(), "account", json!({}), json!({}));
    on_each(&initial, "limit: 2", async |broker, system| {
        let by_key = |key: &KeyPair| format!("$SYS.REQ.ACCOUNT.{}.CLAIMS.UPDATE", key.public_key());
        for text in ["hello", &forged, &user] {
            let answer = push(system, text).await;
            assert_eq!(answer["error"]["code"], 500, "{text}");
            assert_eq!(answer["error"]["account"], "n/a", "{text}");
        }
        let answer = parse(&ask(system, by_key(&other), &good).await);
        let said = &answer["error"]["description"];
        assert_eq!(said, "jwt update resulted in error - subject does not match jwt content");
        if !broker.is_original() {
            // There, it is kept, and found out when somebody comes.
            assert_eq!(push(system, &untrusted).await["error"]["code"], 500);
        }
        assert_eq!(parse(&ask(system, by_key(&one), &good).await)["data"]["code"], 200);
        // The system account is the other one.
        let text = world.signed(&other);
        let answer = push(system, text).await;
        let said = &answer["error"]["description"];
        assert_eq!(said, "jwt update resulted in error - jwt store is full");
        let lookup = format!("$SYS.REQ.ACCOUNT.{}.CLAIMS.LOOKUP", other.public_key());
        assert_eq!(ask(system, lookup, "").await, "");
    })
    .await;
}

#[tokio::test]
async fn in_memory_only_accounts_of_the_file_are_updated() {
    let mut world = World::new();
    let (known, unknown) = (KeyPair::new_account(), KeyPair::new_account());
    let user = KeyPair::new_user();
    world.account(&known, json!({}));
    let config = world.config();
    let revocations = json!({user.public_key(): unix_now() + 100});
    let revoked = world.account(&known, json!({"revocations": revocations}));
    let other = world.account(&unknown, json!({}));
    let brokers = shard_counts().iter().map(|shards| Broker::with_config(*shards, &config));
    let original = has_original().then(|| Broker::original(&config));
    for broker in brokers.chain(original) {
        let system = connect(&broker, &world.system_credentials()).await;
        let mine = credentials_of(&user, &known, unlimited(), json!({}));
        let _client = connect(&broker, &mine).await;
        for (key, text, message) in
            [(&known, &revoked, "jwt updated"), (&unknown, &other, "jwt update skipped")]
        {
            let subject = format!("$SYS.REQ.ACCOUNT.{}.CLAIMS.UPDATE", key.public_key());
            let answer = parse(&ask(&system, subject, text.as_str()).await);
            assert_eq!(answer["data"]["message"], message);
        }
        assert!(try_connect(&broker, &mine).await.is_err());
        for subject in ["UPDATE", "LIST", "PACK", "DELETE"] {
            let request = system.request(format!("$SYS.REQ.CLAIMS.{subject}"), "".into()).await;
            let error = request.expect_err("nobody listens");
            assert_eq!(error.kind(), RequestErrorKind::NoResponders, "{subject}");
        }
    }
}

#[tokio::test]
async fn only_users_of_pinned_accounts_come_in() {
    let mut world = World::new();
    let (pinned, other) = (KeyPair::new_account(), KeyPair::new_account());
    world.account(&pinned, json!({}));
    world.account(&other, json!({}));
    let key = pinned.public_key();
    let config = format!("{}resolver_pinned_accounts: [{key}]\n", world.config());
    let brokers = shard_counts().iter().map(|shards| Broker::with_config(*shards, &config));
    let original = has_original().then(|| Broker::original(&config));
    for broker in brokers.chain(original) {
        connect(&broker, &credentials(&pinned, unlimited(), json!({}))).await;
        connect(&broker, &world.system_credentials()).await;
        let refused = try_connect(&broker, &credentials(&other, unlimited(), json!({}))).await;
        assert!(refused.is_err());
    }
}

#[tokio::test]
async fn a_user_comes_in_at_its_hours_only_and_has_to_go_when_they_end() {
    let mut world = World::new();
    let account = KeyPair::new_account();
    world.account(&account, json!({}));
    let config = world.config();
    let clock = |seconds: i64| {
        let of_day = (unix_now() + seconds).rem_euclid(86_400);
        format!("{:02}:{:02}:{:02}", of_day / 3600, of_day / 60 % 60, of_day % 60)
    };
    let hours = |start: i64, end: i64, zone: &str| {
        json!({"subs": -1, "data": -1, "payload": -1, "times_location": zone,
            "times": [{"start": clock(start), "end": clock(end)}]})
    };
    let brokers = shard_counts().iter().map(|shards| Broker::with_config(*shards, &config));
    let original = has_original().then(|| Broker::original(&config));
    for broker in brokers.chain(original) {
        let of = |nats: Value| credentials(&account, nats, json!({}));
        connect(&broker, &of(hours(-3600, 3600, "UTC"))).await;
        for wrong in [
            hours(3600, 7200, "UTC"),
            // The same clock elsewhere shows this at another time.
            hours(-3600, 3600, "Asia/Tokyo"),
            hours(-3600, 3600, "Nowhere/Else"),
        ] {
            assert!(try_connect(&broker, &of(wrong)).await.is_err());
        }
        let options = ConnectOptions::with_credentials(&of(hours(-3600, 4, "UTC")));
        let (ended, mut ends) = futures::channel::mpsc::unbounded();
        let options = options.expect("credentials").event_callback(move |event| {
            let ended = ended.clone();
            async move {
                let _ = ended.unbounded_send(event);
            }
        });
        let _client = options.connect(broker.url()).await.expect("it is early enough");
        while within(ends.next()).await.expect("events") != async_nats::Event::Disconnected {}
    }
}

/// Whether each member is ours.
const CLUSTERS: [[bool; 2]; 3] = [[true, true], [true, false], [false, true]];

#[tokio::test]
async fn members_of_a_cluster_have_the_same_accounts_whoever_was_told() {
    for kinds in CLUSTERS {
        if kinds.contains(&false) && !has_original() {
            continue;
        }
        let mut world = World::new();
        let (early, late) = (KeyPair::new_account(), KeyPair::new_account());
        let (before, after) = (
            world.clone_of_keys(),
            [world.account(&early, json!({})), world.account(&late, json!({}))],
        );
        let dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir().expect("a directory")).collect();
        let start = |at: usize, name: &str, seed: Option<u16>| {
            let routes = seed.map(|port| format!("\"nats-route://127.0.0.1:{port}\""));
            let config = format!(
                "server_name: {name}\n{}cluster {{ name: C, listen: \"127.0.0.1:-1\", \
                 routes: [{}] }}\n",
                before.pushed(dirs[at].path(), "interval: \"1s\""),
                routes.unwrap_or_default()
            );
            if kinds[at] { Broker::with_config(2, &config) } else { Broker::original(&config) }
        };
        let mut first = start(0, "first", None);
        let system = connect(&first, &world.system_credentials()).await;
        // Before there is another one, and afterwards.
        assert_eq!(push(&system, &after[0]).await["data"]["code"], 200);
        let second = start(1, "second", Some(first.route_port()));
        while all_answer(&system).await < 2 {}
        assert_eq!(push(&system, &after[1]).await["data"]["code"], 200);
        for account in [&late, &early] {
            let user = || credentials(account, unlimited(), json!({}));
            // It is told by the push, or asks for what it does not have.
            // Either member may have answered the push, and the other one not have it yet.
            let one = connect_when_known(&first, &user()).await;
            let mut heard = one.subscribe("a").await.expect("connected");
            let other = connect_when_known(&second, &user()).await;
            // What was wanted of an account that the other did not know yet counts, too.
            loop {
                other.publish("a", "x".into()).await.expect("connected");
                other.flush().await.expect("connected");
                let patience = std::time::Duration::from_millis(50);
                if tokio::time::timeout(patience, heard.next()).await.is_ok() {
                    break;
                }
            }
        }
    }
}

/// How many servers answer in the system account.
async fn all_answer(system: &Client) -> usize {
    let inbox = system.new_inbox();
    let answers = system.subscribe(inbox.clone()).await.expect("connected");
    let ping = "$SYS.REQ.SERVER.PING.IDZ";
    system.publish_with_reply(ping, inbox, "".into()).await.expect("connected");
    let patience = std::time::Duration::from_millis(200);
    answers.take_until(tokio::time::sleep(patience)).count().await
}
