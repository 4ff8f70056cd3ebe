//! Decentralised trust with real clients: operators, accounts and users as tokens, made here and
//! taken by us and by nats-server alike.

use crate::broker::peers::{meet, next, within};
use crate::broker::tokens::{
    World, credentials, credentials_of, old_credentials, old_token, token, unix_now, unlimited,
};
use crate::broker::wire::Wire;
use crate::broker::{Broker, has_original, is_nats_server, shard_counts};
use async_nats::{Client, ConnectErrorKind, ConnectOptions};
use futures::StreamExt;
use nkeys::KeyPair;
use serde_json::{Value, json};

/// Ours with each number of shards, and the original, which says whether our tokens are right.
async fn on_each(config: &str, test: impl AsyncFn(&mut Broker)) {
    for &shards in shard_counts() {
        println!("with {shards} shards");
        test(&mut Broker::with_config(shards, config)).await;
    }
    if has_original() && !is_nats_server() {
        println!("nats-server");
        test(&mut Broker::original(config)).await;
    }
}

fn options(credentials: &str) -> ConnectOptions {
    ConnectOptions::with_credentials(credentials).expect("credentials as clients read them")
}

async fn connect(broker: &Broker, credentials: &str) -> Client {
    options(credentials).connect(broker.url()).await.expect("good credentials")
}

async fn is_refused(broker: &Broker, credentials: &str) {
    let error = options(credentials).connect(broker.url()).await.expect_err("bad credentials");
    assert_eq!(error.kind(), ConnectErrorKind::AuthorizationViolation, "{error}");
}

async fn sends_to_itself(client: &Client) {
    let mut inbox = client.subscribe("self").await.expect("connected");
    client.publish("self", "me".into()).await.expect("connected");
    assert_eq!(next(&mut inbox).await.payload, "me");
}

#[tokio::test]
async fn a_user_comes_in_by_a_token_that_its_account_has_signed_and_by_no_other() {
    let mut world = World::new();
    let (account, signing, stranger) =
        (KeyPair::new_account(), KeyPair::new_account(), KeyPair::new_account());
    world.account(&account, json!({"signing_keys": [signing.public_key()]}));
    let by_key = json!({"issuer_account": account.public_key(), "subs": -1, "payload": -1,
        "data": -1});
    on_each(&world.config(), async |broker| {
        let direct = connect(broker, &credentials(&account, unlimited(), json!({}))).await;
        sends_to_itself(&direct).await;
        let signed = connect(broker, &credentials(&signing, by_key.clone(), json!({}))).await;
        sends_to_itself(&signed).await;
        meet(&direct, &signed).await;
        // An account that nobody knows, and its key in the name of one that is known.
        is_refused(broker, &credentials(&stranger, unlimited(), json!({}))).await;
        is_refused(broker, &credentials(&stranger, by_key.clone(), json!({}))).await;
        // A signing key that does not say for whom it signs.
        is_refused(broker, &credentials(&signing, unlimited(), json!({}))).await;
        // Tokens out of their time.
        let (past, future) = (unix_now() - 10, unix_now() + 1000);
        is_refused(broker, &credentials(&account, unlimited(), json!({"exp": past}))).await;
        is_refused(broker, &credentials(&account, unlimited(), json!({"nbf": future}))).await;
        // Somebody else's token, with a seed of one's own.
        let mine = credentials(&account, unlimited(), json!({}));
        let (token, _) = mine.split_once("-----BEGIN USER").expect("two parts");
        let other = credentials(&account, unlimited(), json!({}));
        let (_, seed) = other.split_once("-----BEGIN USER").expect("two parts");
        is_refused(broker, &format!("{token}-----BEGIN USER{seed}")).await;
        let plain = ConnectOptions::new().connect(broker.url()).await;
        let error = plain.expect_err("without credentials");
        assert_eq!(error.kind(), ConnectErrorKind::AuthorizationViolation);
    })
    .await;
}

#[tokio::test]
async fn a_bearer_needs_no_signature_unless_the_account_wants_one() {
    let mut world = World::new();
    let (lax, strict) = (KeyPair::new_account(), KeyPair::new_account());
    world.account(&lax, json!({}));
    let limits = json!({"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1,
        "wildcards": true, "conn": -1, "leaf": -1, "disallow_bearer": true});
    world.account(&strict, json!({"limits": limits}));
    let bearer = |issuer: &KeyPair, is_bearer: bool| {
        let user = KeyPair::new_user().public_key();
        let nats = json!({"bearer_token": is_bearer, "subs": -1, "data": -1, "payload": -1});
        token(issuer, &user, "user", nats, json!({}))
    };
    on_each(&world.config(), async |broker| {
        let comes_in = |token: String| {
            let mut wire = Wire::open(broker);
            wire.send(format!("CONNECT {{\"verbose\":true,\"jwt\":\"{token}\"}}\r\n").as_bytes());
            wire.line() == "+OK"
        };
        assert!(comes_in(bearer(&lax, true)));
        assert!(!comes_in(bearer(&lax, false)));
        assert!(!comes_in(bearer(&strict, true)));
    })
    .await;
}

#[tokio::test]
async fn a_user_may_do_what_its_token_says_or_the_scope_of_the_key_that_signed_it() {
    let mut world = World::new();
    let (account, scoped) = (KeyPair::new_account(), KeyPair::new_account());
    let template = json!({"pub": {"allow": ["u.{{name()}}.>"], "deny": ["u.*.secret"]},
        "sub": {"allow": ["u.{{name()}}.>", "t.{{tag(team)}}"]}, "subs": 2, "data": -1,
        "payload": 10});
    world.account(
        &account,
        json!({"signing_keys": [
        {"kind": "user_scope", "key": scoped.public_key(), "role": "r", "template": template}]}),
    );
    let own = json!({"pub": {"allow": ["u.ann.>"], "deny": ["u.*.secret"]},
        "sub": {"allow": ["u.ann.>", "t.red"]}, "subs": 2, "data": -1, "payload": 10});
    let scope = json!({"issuer_account": account.public_key(), "tags": ["team:red"]});
    let name = json!({"name": "ann"});
    on_each(&world.config(), async |broker| {
        for (issuer, nats) in [(&account, &own), (&scoped, &scope)] {
            let (user, nats) = (KeyPair::new_user(), nats.clone());
            let mut wire = Wire::open_with(broker, |nonce| {
                let text = token(issuer, &user.public_key(), "user", nats.clone(), name.clone());
                login(&user, &text, nonce)
            });
            wire.send(b"SUB u.ann.* 1\r\nSUB t.red 2\r\nSUB u.ann.x 3\r\n");
            wire.expect(b"-ERR 'maximum subscriptions exceeded'\r\n");
            wire.send(b"UNSUB 2\r\nSUB t.blue 2\r\n");
            wire.expect(b"-ERR 'Permissions Violation for Subscription to \"t.blue\"'\r\n");
            wire.send(b"PUB u.ann.a 2\r\nhi\r\nPUB u.ann.secret 2\r\nhi\r\n");
            wire.expect(b"MSG u.ann.a 1 2\r\nhi\r\n");
            wire.expect(b"-ERR 'Permissions Violation for Publish to \"u.ann.secret\"'\r\n");
            wire.send(b"PUB u.bob.a 2\r\nhi\r\n");
            wire.expect(b"-ERR 'Permissions Violation for Publish to \"u.bob.a\"'\r\n");
            wire.send(b"PUB u.ann.a 11\r\n");
            wire.expect(b"-ERR 'Maximum Payload Violation'\r\n");
            wire.expect_end();
        }
        // A scoped key's tokens say nothing themselves.
        let mut both = own.clone();
        both["issuer_account"] = account.public_key().into();
        is_refused(broker, &credentials(&scoped, both, name.clone())).await;
    })
    .await;
}

/// A CONNECT that shows a token, and signs the nonce.
pub(crate) fn login(user: &KeyPair, token: &str, nonce: &str) -> String {
    use base64::Engine as _;
    let signature = user.sign(nonce.as_bytes()).expect("a key with a seed");
    let sig = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(signature);
    let connect = json!({"verbose": false, "pedantic": false, "jwt": token, "sig": sig});
    format!("CONNECT {connect}\r\n")
}

#[tokio::test]
async fn who_is_there_when_the_token_expires_is_told_so_and_closed() {
    let mut world = World::new();
    let account = KeyPair::new_account();
    world.account(&account, json!({}));
    on_each(&world.config(), async |broker| {
        let user = KeyPair::new_user();
        let mut wire = Wire::open_with(broker, |nonce| {
            let soon = json!({"exp": unix_now() + 3});
            login(&user, &token(&account, &user.public_key(), "user", unlimited(), soon), nonce)
        });
        wire.sync();
        wire.expect(b"-ERR 'User Authentication Expired'\r\n");
        wire.expect_end();
    })
    .await;
}

#[tokio::test]
async fn a_revocation_sends_away_who_is_there_and_keeps_out_who_comes() {
    for &shards in shard_counts() {
        let mut world = World::new();
        let account = KeyPair::new_account();
        world.account(&account, json!({}));
        let directory = tempfile::tempdir().expect("a scratch directory");
        let config = world.stored(directory.path());
        let mut broker = Broker::with_config(shards, &config);
        let (ann, bob) = (KeyPair::new_user(), KeyPair::new_user());
        let of =
            |user: &KeyPair| token(&account, &user.public_key(), "user", unlimited(), json!({}));
        let mut revoked = Wire::open_with(&broker, |nonce| login(&ann, &of(&ann), nonce));
        let mut other = Wire::open_with(&broker, |nonce| login(&bob, &of(&bob), nonce));
        revoked.sync();
        other.sync();
        if is_nats_server() {
            return; // It is told by a message, not by a reload.
        }
        let revocations: Value = json!({ ann.public_key(): unix_now() + 1 });
        world.account(&account, json!({"revocations": revocations}));
        let line = broker.reload(&world.stored(directory.path()));
        assert!(line.contains("Reloaded"), "{line}");
        revoked.expect(b"-ERR 'User Authentication Revoked'\r\n");
        revoked.expect_end();
        other.sync();
        is_refused(&broker, &credentials_of(&ann, &account, unlimited(), json!({}))).await;
        other.sync();
    }
}

#[tokio::test]
async fn an_import_of_what_is_private_needs_a_good_activation() {
    let mut world = World::new();
    let (exporter, good, bad) =
        (KeyPair::new_account(), KeyPair::new_account(), KeyPair::new_account());
    let export = json!([
        {"name": "p", "subject": "private.>", "type": "stream", "token_req": true},
        {"name": "o", "subject": "open.>", "type": "stream"},
    ]);
    world.account(&exporter, json!({"exports": export}));
    let nats = json!({"subject": "private.>", "kind": "stream"});
    let leave = token(&exporter, &good.public_key(), "activation", nats, json!({}));
    for (importer, leave) in [(&good, leave.as_str()), (&bad, "")] {
        let imports = json!([
            {"name": "p", "subject": "private.>", "account": exporter.public_key(),
             "type": "stream", "token": leave, "local_subject": "p.>"},
            {"name": "o", "subject": "open.>", "account": exporter.public_key(), "type": "stream"},
        ]);
        world.account(importer, json!({"imports": imports}));
    }
    on_each(&world.config(), async |broker| {
        let of = |account: &KeyPair| credentials(account, unlimited(), json!({}));
        let publisher = connect(broker, &of(&exporter)).await;
        let (let_in, kept_out) =
            (connect(broker, &of(&good)).await, connect(broker, &of(&bad)).await);
        assert_eq!(heard(&publisher, &let_in, "private.a").await, ["open.a", "p.a"]);
        assert_eq!(heard(&publisher, &kept_out, "private.a").await, ["open.a"]);
    })
    .await;
}

/// Subjects that a client hears of a message on `subject` and one that all may hear.
async fn heard(publisher: &Client, client: &Client, subject: &str) -> Vec<String> {
    let mut all = client.subscribe("*.>").await.expect("connected");
    loop {
        publisher.publish(subject.to_owned(), "x".into()).await.expect("connected");
        publisher.publish("open.a", "x".into()).await.expect("connected");
        publisher.flush().await.expect("connected");
        let mut subjects = Vec::new();
        let wait = std::time::Duration::from_millis(300);
        while let Ok(Some(message)) = tokio::time::timeout(wait, all.next()).await {
            subjects.push(message.subject.to_string());
        }
        if subjects.iter().any(|subject| subject == "open.a") {
            subjects.sort();
            return subjects;
        }
    }
}

#[tokio::test]
async fn an_export_by_a_token_of_its_subject_is_for_the_account_that_the_token_names() {
    let mut world = World::new();
    let (exporter, named, other) =
        (KeyPair::new_account(), KeyPair::new_account(), KeyPair::new_account());
    let export = json!([
        {"name": "p", "subject": "orders.*", "type": "stream", "account_token_position": 2},
        {"name": "o", "subject": "open.>", "type": "stream"},
    ]);
    world.account(&exporter, json!({"exports": export}));
    let subject = format!("orders.{}", named.public_key());
    for importer in [&named, &other] {
        let imports = json!([
            {"name": "p", "subject": subject, "account": exporter.public_key(), "type": "stream"},
            {"name": "o", "subject": "open.>", "account": exporter.public_key(), "type": "stream"},
        ]);
        world.account(importer, json!({"imports": imports}));
    }
    on_each(&world.config(), async |broker| {
        let of = |account: &KeyPair| credentials(account, unlimited(), json!({}));
        let publisher = connect(broker, &of(&exporter)).await;
        let (let_in, kept_out) =
            (connect(broker, &of(&named)).await, connect(broker, &of(&other)).await);
        assert_eq!(heard(&publisher, &let_in, &subject).await, ["open.a", &*subject]);
        assert_eq!(heard(&publisher, &kept_out, &subject).await, ["open.a"]);
    })
    .await;
}

#[tokio::test]
async fn limits_of_streams_by_tiers_are_told_with_the_tier() {
    let mut world = World::new();
    let account = KeyPair::new_account();
    let none = json!(-1);
    let tier = json!({"disk_storage": 1_000_000, "mem_storage": 0, "streams": 1, "consumer": -1});
    let limits = json!({"subs": none, "data": none, "payload": none, "imports": none,
        "exports": none, "wildcards": true, "conn": none, "leaf": none,
        "tiered_limits": {"R1": tier}});
    world.account(&account, json!({"limits": limits}));
    let store = tempfile::tempdir().expect("a directory");
    let streams = format!("jetstream {{ store_dir: \"{}\" }}\n", store.path().display());
    on_each(&(world.config() + &streams), async |broker| {
        let client = connect(broker, &credentials(&account, unlimited(), json!({}))).await;
        let ask = async |subject: &str, body: &str| -> Value {
            let answer = client.request(subject.to_owned(), body.to_owned().into());
            let answer = within(answer).await.expect("an answer");
            serde_json::from_slice(&answer.payload).expect("an object")
        };
        let made = ask("$JS.API.STREAM.CREATE.A", r#"{"name":"A","subjects":["a"]}"#).await;
        assert_eq!(made.get("error"), None);
        let refused = ask("$JS.API.STREAM.CREATE.B", r#"{"name":"B","subjects":["b"]}"#).await;
        assert_eq!(refused["error"]["err_code"], 10027, "{refused}");
        let info = ask("$JS.API.INFO", "").await;
        assert_eq!((&info["streams"], &info["limits"]["max_storage"]), (&json!(1), &json!(0)));
        let tier = &info["tiers"]["R1"];
        assert_eq!((&tier["streams"], &tier["limits"]["max_streams"]), (&json!(1), &json!(1)));
        assert_eq!(tier["limits"]["max_storage"], 1_000_000, "{info}");
        ask("$JS.API.STREAM.DELETE.A", "").await;
    })
    .await;
}

#[test]
fn a_chain_of_trust_with_a_weak_link_does_not_start() {
    if is_nats_server() {
        return; // It has messages of its own.
    }
    let mut world = World::new();
    let account = KeyPair::new_account();
    world.account(&account, json!({}));
    let good = world.config();
    let mut other = World::new();
    other.account(&account, json!({}));
    // The accounts of one operator, and the word of another.
    let (_, rest) = good.split_once('\n').expect("lines");
    let forged = format!("operator: {}\n{rest}", other.operator());
    let refusals = [
        (forged, "not signed by a key of the operator"),
        (good.replace("resolver: MEMORY\n", ""), "an operator needs a resolver"),
        (format!("{good}authorization {{ token: t }}\n"), "leave users and tokens out"),
        (format!("{good}accounts {{ A {{}} }}\n"), "leave accounts out"),
        ("operator: eyJ.a.b\nresolver: MEMORY\n".to_owned(), "operator: it is not"),
        ("trusted_keys: ABC\n".to_owned(), "a trusted key is the public key"),
        ("resolver: MEMORY\n".to_owned(), "a resolver needs an operator"),
        (good.replace("MEMORY", "\"URL(http://localhost)\""), "resolver preloads only available"),
        (good.replace("MEMORY", "URL(\"ftp:/x\")"), "could not fetch <\"ftp:/x\">"),
        (good.replace("MEMORY", "{ type: cache, dir: d, interval: 1m }"), "does not accept sync"),
        (good.replace("MEMORY", "{ type: full, dir: d, ttl: 1h }"), "does not accept ttl"),
        (good.replace("MEMORY", "{ type: full, dir: d, hard_delete: true }"), "allow_delete"),
        (format!("{good}resolver_pinned_accounts: [A]\n"), "a pinned account is its public key"),
    ];
    for (config, reason) in refusals {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let path = dir.path().join("c.conf");
        std::fs::write(&path, &config).expect("written");
        let output = std::process::Command::new(crate::broker::server_command())
            .args(["-t", "-c"])
            .arg(&path)
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(reason), "{reason}: {said}");
    }
}

#[tokio::test]
async fn tokens_of_version_1_are_taken_beside_those_of_version_2() {
    let mut world = World::of_version_1();
    let (shop, fan, signing) =
        (KeyPair::new_account(), KeyPair::new_account(), KeyPair::new_account());
    let exports = json!([
        {"name": "o", "subject": "offers.>", "type": "stream"},
        {"name": "p", "subject": "private.>", "type": "stream", "token_req": true}]);
    world.account(&shop, json!({"exports": exports, "signing_keys": [signing.public_key()]}));
    let activation = |issuer: &KeyPair, more: Value| {
        let nats = json!({"subject": "private.>", "type": "stream"});
        old_token(issuer, &fan.public_key(), "activation", nats, more)
    };
    // What is left out of version 1 there is left out here: a limit of an activation, and what
    // only version 2 has.
    let leave = activation(&signing, json!({"issuer_account": shop.public_key()}));
    let imports = json!([
        {"name": "o", "subject": "offers.>", "account": shop.public_key(), "type": "stream"},
        {"name": "p", "subject": "private.>", "account": shop.public_key(), "type": "stream",
         "token": leave}]);
    let default_permissions = json!({"pub": {"deny": [">"]}});
    world.account(&fan, json!({"imports": imports, "default_permissions": default_permissions}));
    on_each(&world.config(), async |broker| {
        let by_key = json!({"issuer_account": shop.public_key()});
        let seller = connect(broker, &old_credentials(&signing, json!({}), by_key)).await;
        let limited = json!({"pub": {"deny": ["x"]}, "src": "127.0.0.0/8,10.0.0.0/8"});
        let buyer = connect(broker, &old_credentials(&fan, limited, json!({}))).await;
        sends_to_itself(&buyer).await;
        // A token of today in an account of then.
        sends_to_itself(&connect(broker, &credentials(&fan, unlimited(), json!({}))).await).await;
        let elsewhere = json!({"src": "10.0.0.0/8"});
        is_refused(broker, &old_credentials(&fan, elsewhere, json!({}))).await;
        let past = json!({"exp": unix_now() - 10});
        is_refused(broker, &old_credentials(&fan, json!({}), past)).await;
        let mut private = buyer.subscribe("private.>").await.expect("connected");
        let got = async {
            loop {
                seller.publish("private.a", "x".into()).await.expect("connected");
                let soon = std::time::Duration::from_millis(100);
                if let Ok(message) = tokio::time::timeout(soon, private.next()).await {
                    break message.expect("connected");
                }
            }
        };
        assert_eq!(within(got).await.subject.as_str(), "private.a");
        // It is not the header that says which part is signed.
        let user = KeyPair::new_user();
        let text = old_token(&fan, &user.public_key(), "user", json!({}), json!({}));
        let (_, rest) = text.split_once('.').expect("three parts");
        for (header, is_good) in [
            (r#"{"typ":"JWT","alg":"ed25519-nkey"}"#, true),
            (r#"{"typ":"x","alg":"ed25519"}"#, false),
            (r#"{"typ":"jwt","alg":"none"}"#, false),
        ] {
            use base64::Engine as _;
            let header = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(header);
            let mut wire =
                Wire::open_with(broker, |nonce| login(&user, &format!("{header}.{rest}"), nonce));
            wire.send(b"PING\r\n");
            assert_eq!(wire.line() == "PONG", is_good, "{header}");
        }
    })
    .await;
}

#[tokio::test]
async fn mappings_of_an_account_are_in_force() {
    let mut world = World::new();
    let (account, other) = (KeyPair::new_account(), KeyPair::new_account());
    let mappings = json!({
        "old.*": [{"subject": "new.$1"}],
        "lost": [{"subject": "lost", "weight": 0}, {"subject": "nowhere", "cluster": "elsewhere"}],
        "split": [{"subject": "half", "weight": 50}, {"subject": "rest", "weight": 50}],
    });
    world.account(&account, json!({"mappings": mappings}));
    world.account(&other, json!({}));
    on_each(&world.config(), async |broker| {
        let client = connect(broker, &credentials(&account, unlimited(), json!({}))).await;
        let mut all = client.subscribe(">").await.expect("connected");
        let mut published = std::collections::BTreeMap::new();
        for subject in ["old.a", "lost", "split"] {
            for _ in 0..100 {
                client.publish(subject, "x".into()).await.expect("connected");
            }
        }
        client.publish("end", "x".into()).await.expect("connected");
        loop {
            let subject = next(&mut all).await.subject.to_string();
            if subject == "end" {
                break;
            }
            *published.entry(subject).or_insert(0) += 1;
        }
        assert_eq!((published["new.a"], published["lost"]), (100, 100), "{published:?}");
        assert_eq!(published["half"] + published["rest"], 100, "{published:?}");
        assert_eq!(published.len(), 4, "{published:?}");
        let unmapped = connect(broker, &credentials(&other, unlimited(), json!({}))).await;
        let mut old = unmapped.subscribe("old.a").await.expect("connected");
        unmapped.publish("old.a", "x".into()).await.expect("connected");
        next(&mut old).await;
    })
    .await;
}

/// Nobody answers for the account, so that nobody else may come in.
#[tokio::test]
async fn where_users_are_decided_outside_only_those_who_decide_come_in() {
    let mut world = World::new();
    let account = KeyPair::new_account();
    let decider = KeyPair::new_user();
    let authorization = json!({"auth_users": [decider.public_key()]});
    world.account(&account, json!({"authorization": authorization}));
    on_each(&world.config(), async |broker| {
        let credentials_of_decider = credentials_of(&decider, &account, unlimited(), json!({}));
        sends_to_itself(&connect(broker, &credentials_of_decider).await).await;
        is_refused(broker, &credentials(&account, unlimited(), json!({}))).await;
        is_refused(broker, &old_credentials(&account, json!({}), json!({}))).await;
    })
    .await;
}

#[tokio::test]
async fn who_a_user_is_is_told_by_the_names_of_its_tokens() {
    let mut world = World::new();
    let account = KeyPair::new_account();
    world.account(&account, json!({}));
    let user = json!({"pub": {"allow": ["a", "$SYS.REQ.USER.INFO"]},
        "resp": {"max": 2, "ttl": 9_000_000_000_i64},
        "subs": -1, "data": -1, "payload": -1});
    let told = std::cell::RefCell::new(Vec::new());
    let (ann, in_an_hour) = (KeyPair::new_user(), unix_now() + 3600);
    on_each(&world.config(), async |broker| {
        let more = json!({"name": "ann", "exp": in_an_hour});
        let client = connect(broker, &credentials_of(&ann, &account, user.clone(), more)).await;
        let info = within(client.request("$SYS.REQ.USER.INFO", "".into())).await;
        let info: Value = serde_json::from_slice(&info.expect("an answer").payload).unwrap();
        let mut data = info["data"].clone();
        let expires = data["expires"].take().as_i64().expect("a number") / 1_000_000_000;
        assert!((3000..=3600).contains(&expires), "{info}");
        assert_eq!((&data["user_name"], &data["account_name"]), (&json!("ann"), &json!("account")));
        // nats-server lists them in any order.
        let allowed = data["permissions"]["publish"]["allow"].as_array_mut().expect("a list");
        allowed.sort_by_key(Value::to_string);
        told.borrow_mut().push(data);
    })
    .await;
    let told = told.into_inner();
    assert!(told.windows(2).all(|pair| pair[0] == pair[1]), "{told:#?}");
}
