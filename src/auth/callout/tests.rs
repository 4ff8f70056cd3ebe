//! Tests of callouts: what is asked, and which answers are taken.

use proptest::prelude::*;
use serde_json::Value;

use super::*;

const NOW: i64 = 1_000_000;

/// A server, a service, and a question that waits.
struct Scene {
    keys: ServerKeys,
    issuer: KeyPair,
    xkey: XKey,
    asked: OpenQuestion,
    request: CalloutRequest,
}

fn scene(is_sealed: bool) -> Scene {
    let (keys, issuer, xkey) = (ServerKeys::default(), KeyPair::new_account(), XKey::new());
    let service = Service {
        account: AccountId::new(3),
        account_name: "AUTH".into(),
        issuer: issuer.public_key(),
        signing_keys: Vec::new(),
        xkey: is_sealed.then(|| xkey.public_key()),
        has_operator: false,
    };
    let question = Question {
        service: Arc::new(service),
        server: AskingServer { id: keys.id.public_key(), ..AskingServer::default() },
        client: AskedClient { kind: "Client", protocol: "nats", id: 7, ..AskedClient::default() },
        connect: AskedConnect { user: "ann".into(), protocol: 1, ..AskedConnect::default() },
        tls: None,
    };
    let (request, asked) = question.ask(&keys, &KeyPair::new_user(), NOW, NOW + 2).unwrap();
    Scene { keys, issuer, xkey, asked, request }
}

impl Scene {
    fn user(&self) -> Value {
        json!({"iss": self.issuer.public_key(), "sub": self.asked.user_nkey, "aud": "APP",
            "nats": {"type": "user", "version": 2, "subs": -1}})
    }

    fn answer_of(&self, user: &Value) -> Value {
        json!({"iss": self.issuer.public_key(), "sub": self.asked.user_nkey,
            "aud": self.keys.id.public_key(),
            "nats": {"type": "authorization_response", "version": 2,
                "jwt": jwt::encode(user, &self.issuer)}})
    }

    fn verdict(&self, answer: &Value, signer: &KeyPair) -> Result<Box<Claims<UserClaims>>, String> {
        self.asked.judge(jwt::encode(answer, signer).unwrap().as_bytes(), &self.keys, NOW)
    }

    /// The reason why a changed answer is refused.
    fn objection(&self, change: impl Fn(&mut Value)) -> String {
        let mut answer = self.answer_of(&self.user());
        change(&mut answer);
        self.verdict(&answer, &self.issuer).expect_err("a changed answer")
    }

    /// The reason why an answer with a changed user is refused.
    fn objection_to_user(&self, change: impl Fn(&mut Value)) -> String {
        let mut user = self.user();
        change(&mut user);
        self.verdict(&self.answer_of(&user), &self.issuer).expect_err("a changed user")
    }
}

#[test]
fn a_question_is_a_token_of_the_server_and_names_a_new_user() {
    let scene = scene(false);
    assert!(scene.request.header.is_empty());
    let text = String::from_utf8(scene.request.payload.clone()).unwrap();
    let claims = jwt::document(&text);
    assert_eq!(claims["iss"], scene.keys.id.public_key());
    assert_eq!(claims["aud"], "nats-authorization-request");
    assert_eq!(claims["sub"], scene.issuer.public_key());
    assert_eq!((&claims["iat"], &claims["exp"]), (&json!(NOW), &json!(NOW + 2)));
    let body = &claims["nats"];
    assert_eq!(body["user_nkey"], scene.asked.user_nkey);
    let wanted = json!({"host": "", "id": 7, "kind": "Client", "type": "nats"});
    assert_eq!(body["client_info"], wanted);
    assert_eq!(body["connect_opts"], json!({"user": "ann", "protocol": 1}));
    assert_eq!((&body["client_tls"], &body["server_id"]["xkey"]), (&Value::Null, &Value::Null));
}

#[test]
fn the_answer_of_the_service_is_taken_and_says_who_the_user_is() {
    let scene = scene(false);
    let user = scene.verdict(&scene.answer_of(&scene.user()), &scene.issuer).unwrap();
    assert_eq!((user.audience.as_str(), &user.subject), ("APP", &scene.asked.user_nkey));
}

#[test]
fn a_sealed_question_is_for_the_service_and_so_is_its_answer_for_the_server() {
    let scene = scene(true);
    let own = scene.keys.xkey.public_key();
    let header = String::from_utf8(scene.request.header.clone()).unwrap();
    assert_eq!(header, format!("NATS/1.0\r\nNats-Server-Xkey: {own}\r\n\r\n"));
    let server = XKey::from_public_key(&own).unwrap();
    let token = scene.xkey.open(&scene.request.payload, &server).unwrap();
    let claims = jwt::document(std::str::from_utf8(&token).unwrap());
    assert_eq!(claims["nats"]["server_id"]["xkey"], own);
    let answer = jwt::encode(&scene.answer_of(&scene.user()), &scene.issuer).unwrap();
    let judge = |bytes: &[u8]| scene.asked.judge(bytes, &scene.keys, NOW);
    assert!(judge(answer.as_bytes()).is_ok(), "it may come bare");
    let sealed = scene.xkey.seal(answer.as_bytes(), &server).unwrap();
    assert!(judge(&sealed).is_ok());
    let of_other = XKey::new().seal(answer.as_bytes(), &server).unwrap();
    assert!(judge(&of_other).unwrap_err().starts_with("Error decrypting"));
    assert!(judge(b"xkv1").unwrap_err().starts_with("Error decrypting"));
}

#[test]
fn who_seals_an_answer_need_not_sign_it_with_the_known_key() {
    let scene = scene(true);
    let other = KeyPair::new_account();
    let mut answer = scene.answer_of(&scene.user());
    answer["iss"] = other.public_key().into();
    assert_eq!(scene.verdict(&answer, &other), Err("Auth callout signing key is unknown".into()));
    let server = XKey::from_public_key(&scene.keys.xkey.public_key()).unwrap();
    let token = jwt::encode(&answer, &other).unwrap();
    let sealed = scene.xkey.seal(token.as_bytes(), &server).unwrap();
    assert!(scene.asked.judge(&sealed, &scene.keys, NOW).is_ok());
}

#[test]
fn an_answer_for_anything_else_is_refused_with_the_reason() {
    let scene = scene(false);
    let key = |kind: KeyPair| Value::from(kind.public_key());
    let cases = [
        (scene.objection(|it| it["sub"] = key(KeyPair::new_user())), "not for expected user"),
        (scene.objection(|it| it["aud"] = key(KeyPair::new_server())), "not for server"),
        (scene.objection(|it| it["aud"] = Value::Null), "no valid token"),
        (scene.objection(|it| it["iss"] = key(KeyPair::new_account())), "no valid token"),
        (scene.objection(|it| it["exp"] = NOW.into()), "not valid now"),
        (scene.objection(|it| it["nats"]["jwt"] = "".into()), "Error or Jwt is required"),
        (scene.objection(|it| it["nats"]["error"] = "no".into()), "Only Error or Jwt"),
        (scene.objection(|it| it["nats"]["type"] = "user".into()), "no valid token"),
        (
            scene.objection(|it| {
                (it["nats"]["jwt"], it["nats"]["error"]) = ("".into(), "no entry".into());
            }),
            "returned an error: no entry",
        ),
        (scene.objection_to_user(|it| it["sub"] = key(KeyPair::new_user())), "Expected authorized"),
        (scene.objection_to_user(|it| it["exp"] = (NOW - 5).into()), "not valid now"),
        (scene.objection_to_user(|it| it["nbf"] = (NOW + 5).into()), "not valid now"),
        (scene.objection_to_user(|it| it["iss"] = key(KeyPair::new_account())), "user JWT"),
        (
            scene.objection_to_user(|it| {
                it["nats"]["issuer_account"] = key(KeyPair::new_account());
            }),
            "attempted to use issuer_account",
        ),
    ];
    for (reason, wanted) in cases {
        assert!(reason.contains(wanted), "{reason}, not {wanted}");
    }
    let empty = scene.asked.judge(b"", &scene.keys, NOW).unwrap_err();
    assert_eq!(empty, "Auth callout violation: \"no reason supplied\" on account \"AUTH\"");
}

#[test]
fn the_answer_to_one_question_is_none_to_another() {
    let (first, second) = (scene(false), scene(false));
    let answer = jwt::encode(&first.answer_of(&first.user()), &first.issuer).unwrap();
    assert!(second.asked.judge(answer.as_bytes(), &second.keys, NOW).is_err());
}

proptest! {
    #[test]
    fn no_answer_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        for scene in [scene(false), scene(true)] {
            prop_assert!(scene.asked.judge(&bytes, &scene.keys, NOW).is_err());
        }
    }
}
