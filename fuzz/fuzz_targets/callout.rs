//! Whatever a service answers: nobody comes in but the user who was asked about.

#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use nkeys::{KeyPair, XKey};
use serde_json::Value;
use shardcast::auth::callout::{
    AskedClient, AskedConnect, AskingServer, OpenQuestion, Question, ServerKeys, Service,
};
use shardcast::auth::jwt;
use shardcast::engine::AccountId;

const NOW: i64 = 1000;

struct Scene {
    keys: ServerKeys,
    issuer: KeyPair,
    user: String,
    asked: OpenQuestion,
    sealed: OpenQuestion,
}

static SCENE: LazyLock<Scene> = LazyLock::new(|| {
    let (keys, issuer, user) = (ServerKeys::default(), KeyPair::new_account(), KeyPair::new_user());
    let ask = |xkey: Option<String>| {
        let service = Service {
            account: AccountId::new(1),
            account_name: "AUTH".into(),
            issuer: issuer.public_key(),
            signing_keys: Vec::new(),
            xkey,
            has_operator: false,
        };
        let question = Question {
            service: Arc::new(service),
            server: AskingServer { id: keys.id.public_key(), ..AskingServer::default() },
            client: AskedClient::default(),
            connect: AskedConnect::default(),
            tls: None,
        };
        question.ask(&keys, &user, NOW, NOW + 2).expect("good keys").1
    };
    let (asked, sealed) = (ask(None), ask(Some(XKey::new().public_key())));
    let user = user.public_key();
    Scene { asked, sealed, user, issuer, keys }
});

/// Claims with members of the input, and otherwise such as the service would make.
fn claims(text: &[u8], mut usual: Value) -> Option<String> {
    let given: Value = serde_json::from_slice(text).ok()?;
    for (key, value) in given.as_object()? {
        match (&mut usual[key], value) {
            (Value::Object(body), Value::Object(more)) => body.extend(more.clone()),
            (member, value) => *member = value.clone(),
        }
    }
    jwt::encode(&usual, &SCENE.issuer)
}

// The first byte says whether the rest is the answer itself, or changes what a good one says: its
// own claims up to the first zero byte, then those of its user.
fuzz_target!(|data: &[u8]| {
    let [choice, rest @ ..] = data else { return };
    let Scene { keys, issuer, user, asked, sealed } = &*SCENE;
    let mut answer = rest.to_vec();
    if choice & 1 == 1 {
        let mut parts = rest.splitn(2, |byte| *byte == 0);
        let (own, of_user) = (parts.next().unwrap_or_default(), parts.next().unwrap_or(b"{}"));
        let usual = serde_json::json!({"iss": issuer.public_key(), "sub": user, "aud": "APP",
            "nats": {"type": "user", "version": 2}});
        let Some(token) = claims(of_user, usual) else { return };
        let usual = serde_json::json!({"iss": issuer.public_key(), "sub": user,
            "aud": keys.id.public_key(),
            "nats": {"type": "authorization_response", "version": 2, "jwt": token}});
        let Some(token) = claims(own, usual) else { return };
        answer = token.into_bytes();
    }
    for asked in [asked, sealed] {
        if let Ok(allowed) = asked.judge(&answer, keys, NOW) {
            assert_eq!((&allowed.subject, allowed.issuer.clone()), (user, issuer.public_key()));
            assert!(allowed.is_in_time(NOW) && allowed.body.issuer_account.is_empty());
        }
    }
});
