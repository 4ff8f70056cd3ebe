//! Tests of the state machine of copies whose origins are elsewhere.

use serde_json::{Value, json};

use super::*;
use crate::stream::{ApiError, CopyPlace, CopyStart, Incoming, StreamConfig};

const SECOND: u64 = 1_000_000_000;

/// A follower, with its time and what it has wished.
struct Bench {
    follower: Follower,
    now: u64,
    place: CopyPlace,
    /// Whether anybody takes its requests.
    is_taken: bool,
}

/// A request of a follower.
#[derive(Debug)]
struct Asked {
    deliver: String,
    subject: String,
    headers: String,
    body: Value,
}

fn config(of_copy: Value) -> StreamConfig {
    let mut config = json!({"name": "C"});
    config.as_object_mut().unwrap().append(&mut of_copy.as_object().unwrap().clone());
    serde_json::from_value(config).unwrap()
}

fn terms(of_copy: Value) -> FollowTerms {
    let home = CopyHome { account: "$G", domain: Some("near") };
    FollowTerms::of(&config(of_copy), 0, home).expect("the origin is elsewhere")
}

fn mirror() -> Value {
    json!({"mirror": {"name": "O", "external": {"api": "$JS.hub.API", "deliver": "to.me"}}})
}

fn source() -> Value {
    let external = json!({"api": "$JS.hub.API", "deliver": ""});
    json!({"sources": [{"name": "O", "external": external, "filter_subject": "o.>"}]})
}

impl Bench {
    fn new(of_copy: Value) -> Self {
        let place = CopyPlace { start: CopyStart::Sequence(1), identity: "".into() };
        let follower = Follower::new(terms(of_copy), 1, 0);
        Self { follower, now: 0, place, is_taken: true }
    }

    /// Lets time pass until something is due, and does it.
    fn tick(&mut self) {
        self.now = self.now.max(self.follower.next_due());
        let is_taken = self.is_taken;
        self.follower.tick(self.now, Some(self.place.clone()), &mut |_| is_taken);
    }

    fn wishes(&mut self) -> Vec<FollowWish> {
        std::iter::from_fn(|| self.follower.next_wish()).collect()
    }

    /// Lets the follower ask.
    fn ask(&mut self) -> Asked {
        self.tick();
        let wishes = self.wishes();
        let [
            FollowWish::Listen { deliver, answer: heard },
            FollowWish::Ask { subject, answer, headers, body },
        ] = &wishes[..]
        else {
            panic!("{wishes:?}")
        };
        assert_eq!(heard, answer, "it listens before it asks");
        let body = serde_json::from_slice(body).unwrap_or_default();
        let headers = String::from_utf8(headers.clone()).unwrap();
        Asked { deliver: deliver.clone(), subject: subject.clone(), headers, body }
    }

    fn answer_with(&mut self, headers: &[u8], body: &[u8]) -> AnswerOfOrigin {
        let message = Incoming { subject: b"r", reply: b"", headers, payload: body };
        self.follower.on_answer(self.now, &message)
    }

    fn answer(&mut self, body: &Value) -> AnswerOfOrigin {
        self.answer_with(b"", body.to_string().as_bytes())
    }

    /// The consumer `E` is made as it was asked for.
    fn follow(&mut self, asked: &Asked) {
        let made = made(&asked.deliver, 0);
        assert_eq!(self.answer(&made), AnswerOfOrigin::Follows(Vec::new()));
    }

    fn hear(&mut self, reply: &str, headers: &str, payload: &str) -> Option<(u64, String)> {
        let (reply, headers, payload) = (reply.as_bytes(), headers.as_bytes(), payload.as_bytes());
        let message = Incoming { subject: b"to.me.M.x", reply, headers, payload };
        match self.follower.on_message(self.now, &message) {
            HeardOfOrigin::Nothing => None,
            HeardOfOrigin::Message { sequence, subject, .. } => {
                Some((sequence, String::from_utf8(subject.to_vec()).unwrap()))
            }
        }
    }

    /// Delivery `number` of the message `sequence`.
    fn deliver(&mut self, number: u64, sequence: u64) -> Option<(u64, String)> {
        self.hear(&reply(number, sequence), "", "x")
    }
}

fn made(deliver: &str, passed: u64) -> Value {
    let config = json!({"deliver_subject": deliver, "ack_policy": "none"});
    json!({"name": "E", "config": config, "delivered": {"stream_seq": passed}})
}

fn reply(number: u64, sequence: u64) -> String {
    format!("$JS.ACK.O.E.1.{sequence}.{number}.77.3@o.a")
}

fn heard(sequence: u64) -> Option<(u64, String)> {
    Some((sequence, "o.a".to_owned()))
}

#[test]
fn the_request_is_that_of_nats_server() {
    let mut bench = Bench::new(mirror());
    let asked = bench.ask();
    assert!(asked.deliver.starts_with("to.me.M.") && asked.deliver.len() == 16, "{asked:?}");
    assert_eq!(asked.subject, "$JS.hub.API.CONSUMER.CREATE.O");
    assert_eq!(asked.headers, "NATS/1.0\r\nNats-Required-Api-Level: 4\r\n\r\n");
    let expected = json!({
        "name": "JS_MIRROR_tKHH8DM1", "deliver_policy": "all", "ack_policy": "none",
        "ack_wait": 79_200 * SECOND, "max_deliver": 1, "replay_policy": "instant",
        "flow_control": true, "deliver_subject": asked.deliver, "idle_heartbeat": SECOND,
        "inactive_threshold": 10 * SECOND, "num_replicas": 0, "direct": true, "sourcing": true,
        "metadata": {"_nats.mirror.stream": "C", "_nats.mirror.acc": "$G",
            "_nats.mirror.domain": "near"},
    });
    assert_eq!(asked.body, json!({"stream_name": "O", "config": expected, "action": ""}));
    let mut bench = Bench::new(source());
    bench.place = CopyPlace { start: CopyStart::Sequence(7), identity: "abc".into() };
    let asked = bench.ask();
    assert!(asked.deliver.starts_with("$JS.S."), "{asked:?}");
    let name = asked.body["config"]["name"].as_str().unwrap();
    assert_eq!(asked.subject, format!("$JS.hub.API.CONSUMER.CREATE.O.{name}.o.>"));
    let headers = "NATS/1.0\r\nNats-Required-Api-Level: 5\r\nNats-Stream-Identity: abc\r\n\r\n";
    assert_eq!(asked.headers, headers);
    let config = &asked.body["config"];
    let start = (&config["deliver_policy"], &config["opt_start_seq"], &config["filter_subject"]);
    assert_eq!(start, (&json!("by_start_sequence"), &json!(7), &json!("o.>")));
}

#[test]
fn nobody_is_asked_before_somebody_takes_requests() {
    let mut bench = Bench::new(mirror());
    bench.is_taken = false;
    for _ in 0..3 {
        bench.tick();
        assert_eq!(bench.wishes(), []);
    }
    bench.is_taken = true;
    bench.ask();
}

#[test]
fn each_message_is_heard_once_and_in_order() {
    let mut bench = Bench::new(mirror());
    let asked = bench.ask();
    bench.follow(&asked);
    assert_eq!(bench.deliver(1, 4), heard(4));
    assert_eq!(bench.deliver(1, 4), None);
    assert_eq!(bench.deliver(2, 9), heard(9));
    // Those of another consumer, those that come again, and others are none.
    assert_eq!(bench.hear("$JS.ACK.O.F.1.10.3.77.3@o.a", "", "x"), None);
    assert_eq!(bench.hear("$JS.ACK.O.E.2.10.3.77.3@o.a", "", "x"), None);
    assert_eq!(bench.hear("inbox", "", "x"), None);
    assert_eq!(bench.wishes(), []);
    assert_eq!(bench.hear("$JS.ACK.hub.hash.O.E.1.10.3.77.3.rest@o.b", "", ""), {
        Some((10, "o.b".to_owned()))
    });
    assert!(bench.follower.follows());
    // An `@` may be in the name of the origin, too.
    assert_eq!(bench.hear("$JS.ACK.O@1.E.1.11.4.77.3@o.a", "", "x"), heard(11));
}

#[test]
fn what_comes_before_the_answer_is_heard_after_it() {
    let mut bench = Bench::new(mirror());
    let asked = bench.ask();
    assert_eq!((bench.deliver(1, 1), bench.deliver(2, 2)), (None, None));
    let AnswerOfOrigin::Follows(early) = bench.answer(&made(&asked.deliver, 0)) else { panic!() };
    let of_early = early.iter().map(|message| {
        match bench.follower.on_message(bench.now, &message.incoming()) {
            HeardOfOrigin::Message { sequence, .. } => sequence,
            HeardOfOrigin::Nothing => 0,
        }
    });
    assert_eq!(of_early.collect::<Vec<_>>(), [1, 2]);
    assert_eq!(bench.deliver(3, 3), heard(3));
}

#[test]
fn what_was_delivered_before_the_answer_was_written_is_heard_and_only_then_confirmed() {
    for of_copy in [mirror(), source()] {
        let mut bench = Bench::new(of_copy);
        let asked = bench.ask();
        assert_eq!(bench.deliver(1, 7), None);
        let mut answer = made(&asked.deliver, 8);
        answer["delivered"]["consumer_seq"] = json!(2);
        let AnswerOfOrigin::Follows(early) = bench.answer(&answer) else { panic!() };
        let heard_of = bench.follower.on_message(bench.now, &early[0].incoming());
        assert!(matches!(heard_of, HeardOfOrigin::Message { sequence: 7, .. }), "{heard_of:?}");
        let ask_flow = "NATS/1.0 100 FlowControl Request\r\n\r\n";
        bench.hear("$JS.FC.O.E.1", ask_flow, "");
        let wishes = bench.wishes();
        let [FollowWish::Confirm { headers, .. }] = &wishes[..] else { panic!("{wishes:?}") };
        let said = String::from_utf8_lossy(headers);
        assert!(said.contains("Nats-Last-Stream: 7\r\n"), "{said}");
        assert_eq!(bench.deliver(2, 8), heard(8));
    }
}

#[test]
fn what_comes_before_the_answer_has_a_bound() {
    let mut bench = Bench::new(mirror());
    let asked = bench.ask();
    let big = "x".repeat(1 << 20);
    for number in 1..=40 {
        bench.hear(&reply(number, number), "", &big);
    }
    let AnswerOfOrigin::Follows(early) = bench.answer(&made(&asked.deliver, 0)) else { panic!() };
    assert!(early.len() <= 5, "{}", early.len());
}

#[test]
fn a_gap_ends_in_a_new_request_but_not_at_once() {
    let gaps: [fn(&mut Bench); 4] = [
        |bench| assert_eq!(bench.deliver(3, 3), None),
        |bench| {
            let beat = "NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 2\r\n\r\n";
            assert_eq!(bench.hear("", beat, ""), None);
        },
        // What no origin sends.
        |bench| assert_eq!(bench.hear("$JS.ACK.O.E.1.2.2.77.3@o..a", "", "x"), None),
        |bench| {
            let reply = format!("$JS.ACK.O.E.1.{}.2.77.3@o.a", u64::MAX);
            assert_eq!(bench.hear(&reply, "", "x"), None);
        },
    ];
    for gap in gaps {
        let mut bench = Bench::new(mirror());
        let first = bench.ask();
        bench.follow(&first);
        assert_eq!(bench.deliver(1, 1), heard(1));
        let asked_at = bench.now;
        gap(&mut bench);
        assert_eq!(bench.wishes(), [FollowWish::Unlisten]);
        assert_eq!(bench.deliver(2, 2), None, "it follows no more");
        let second = bench.ask();
        assert!(bench.now >= asked_at + 2 * SECOND);
        assert_ne!(first.deliver, second.deliver);
    }
}

#[test]
fn silence_ends_in_a_new_request_and_a_sign_of_life_does_not() {
    let mut bench = Bench::new(mirror());
    let asked = bench.ask();
    bench.follow(&asked);
    for _ in 0..20 {
        bench.now += 9 * SECOND;
        let beat = "NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 0\r\n\r\n";
        assert_eq!(bench.hear("", beat, ""), None);
        bench.follower.tick(bench.now, None, &mut |_| true);
        assert!(bench.follower.follows() && bench.wishes().is_empty());
    }
    let heard_at = bench.now;
    bench.tick();
    assert_eq!(bench.now, heard_at + 10 * SECOND);
    assert_eq!(bench.wishes(), [FollowWish::Unlisten]);
    bench.ask();
}

#[test]
fn flow_control_is_answered_with_how_far_the_copy_is_and_only_where_it_belongs() {
    let mut bench = Bench::new(mirror());
    let asked = bench.ask();
    bench.follow(&asked);
    bench.deliver(1, 5);
    let request = "NATS/1.0 100 FlowControl Request\r\n\r\n";
    for _ in 0..3 {
        bench.hear("$JS.FC.O.E.abcd", request, "");
    }
    let confirm = || {
        let headers = b"NATS/1.0\r\nNats-Last-Consumer: 1\r\nNats-Last-Stream: 5\r\n\r\n".to_vec();
        let subject = b"$JS.FC.O.E.abcd".to_vec();
        [FollowWish::Confirm { subject, headers }]
    };
    assert_eq!(bench.wishes(), confirm());
    let stalled = "NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 1\r\n\
                   Nats-Consumer-Stalled: $JS.FC.O.E.abcd\r\n\r\n";
    bench.hear("", stalled, "");
    assert_eq!(bench.wishes(), confirm());
    for reply in ["orders.cancel", "$JS.FC.", "$JS.FC.>", "$JS.FC.a b"] {
        bench.hear(reply, request, "");
        assert_eq!(bench.wishes(), [], "{reply}");
    }
    // What could not be stored is not confirmed.
    bench.hear("$JS.FC.O.E.abcd", request, "");
    bench.follower.ask_anew(bench.now);
    assert_eq!(bench.wishes(), [FollowWish::Unlisten]);
}

#[test]
fn each_request_in_vain_makes_the_next_one_wait_longer_up_to_a_bound() {
    let mut bench = Bench::new(mirror());
    let mut waits = Vec::new();
    for _ in 0..40 {
        bench.ask();
        let asked_at = bench.now;
        let answer = json!({"error": ApiError::STREAM_NOT_FOUND});
        assert_eq!(bench.answer(&answer), AnswerOfOrigin::Failed(ApiError::STREAM_NOT_FOUND));
        assert_eq!(bench.wishes(), [FollowWish::Unlisten]);
        waits.push((bench.follower.next_due() - asked_at) / SECOND);
    }
    assert_eq!(waits[..4], [3, 5, 9, 17]);
    assert!(waits[8..].iter().all(|wait| *wait == 122), "{waits:?}");
    let asked = bench.ask();
    bench.follow(&asked);
    bench.follower.ask_anew(bench.now);
    assert!(bench.follower.next_due() < bench.now + 3 * SECOND, "success ends the patience");
}

#[test]
fn a_request_without_an_answer_is_made_again() {
    let mut bench = Bench::new(mirror());
    bench.ask();
    let asked_at = bench.now;
    bench.tick();
    assert_eq!(bench.now, asked_at + 30 * SECOND);
    assert_eq!(bench.wishes(), [FollowWish::Unlisten]);
    bench.ask();
}

#[test]
fn answers_that_are_none_are_errors_and_nothing_worse() {
    let consumer = |name: &str, subject: &str, passed: &str| -> String {
        let config = format!("{{\"deliver_subject\":\"{subject}\"}}");
        let passed = format!("{{\"stream_seq\":{passed}}}");
        format!("{{\"name\":\"{name}\",\"config\":{config},\"delivered\":{passed}}}")
    };
    let bodies = [
        String::new(),
        "{}".to_owned(),
        "[[[[".to_owned(),
        "{\"error\":{\"code\":-1}}".to_owned(),
        consumer("E", ">", "0"),
        consumer("a.b", "X", "0"),
        consumer("E", "X", "18446744073709551615"),
        consumer("E", "X", "1e300"),
    ];
    for body in bodies {
        // A first error of this kind may be that of an old server.
        let mut bench = Bench::new(mirror());
        let mut is_failed = false;
        for _ in 0..3 {
            let asked = bench.ask();
            let body = body.replace('X', &asked.deliver);
            is_failed |=
                matches!(bench.answer_with(b"", body.as_bytes()), AnswerOfOrigin::Failed(_));
            assert!(!bench.follower.follows());
            bench.wishes();
        }
        assert!(is_failed, "{body}");
    }
}

#[test]
fn an_error_of_a_length_of_its_own_is_kept_in_part() {
    let mut bench = Bench::new(mirror());
    bench.ask();
    let error = json!({"code": 500, "err_code": 1, "description": "x".repeat(1 << 20)});
    let AnswerOfOrigin::Failed(error) = bench.answer(&json!({"error": error})) else { panic!() };
    assert_eq!(error.description.len(), 256);
}

#[test]
fn an_older_server_is_asked_for_less() {
    let mut bench = Bench::new(source());
    let refused = json!({"error": ApiError::REQUIRED_API_LEVEL});
    assert!(bench.ask().headers.contains("Level: 5"));
    assert_eq!(bench.answer(&refused), AnswerOfOrigin::Nothing);
    bench.wishes();
    assert!(bench.ask().headers.contains("Level: 4"));
    assert_eq!(bench.answer(&refused), AnswerOfOrigin::Nothing);
    bench.wishes();
    let asked = bench.ask();
    let (headers, config) = (&asked.headers, &asked.body["config"]);
    assert!(headers.is_empty() && config["sourcing"].is_null(), "{asked:?}");
    let name = config["name"].as_str().unwrap();
    assert!(name.contains('_') && asked.subject.contains(name), "{asked:?}");
    assert_eq!(bench.answer(&refused), AnswerOfOrigin::Failed(ApiError::REQUIRED_API_LEVEL));
}

#[test]
fn a_source_begins_anew_where_its_origin_is_another_one() {
    let other = || json!({"error": ApiError::consumer_stream_identity_mismatch("b")});
    let mut bench = Bench::new(source());
    bench.place = CopyPlace { start: CopyStart::Sequence(7), identity: "a".into() };
    bench.ask();
    assert_eq!(bench.answer(&other()), AnswerOfOrigin::Anew);
    bench.wishes();
    // A server that tells the identity, and does not compare it.
    let asked = bench.ask();
    let made = made(&asked.deliver, 6).to_string();
    let headers = b"NATS/1.0\r\nNats-Stream-Identity: b\r\n\r\n";
    assert_eq!(bench.answer_with(headers, made.as_bytes()), AnswerOfOrigin::Anew);
    bench.wishes();
    bench.place = CopyPlace { start: CopyStart::Sequence(1), identity: "".into() };
    let asked = bench.ask();
    let made = self::made(&asked.deliver, 0).to_string();
    let follows = bench.answer_with(headers, made.as_bytes());
    assert_eq!((follows, bench.follower.identity()), (AnswerOfOrigin::Follows(Vec::new()), "b"));
}

#[test]
fn a_consumer_that_is_there_is_reset_and_heard_from_its_first_delivery_on() {
    let external = json!({"api": "$JS.hub.API", "deliver": "to.me"});
    let consumer = json!({"name": "E", "deliver_subject": "their"});
    let source = json!({"name": "O", "external": external, "consumer": consumer});
    let mut bench = Bench::new(json!({"sources": [source]}));
    bench.tick();
    let wishes = bench.wishes();
    let [_, FollowWish::Ask { subject, body, .. }] = &wishes[..] else { panic!("{wishes:?}") };
    assert_eq!((&**subject, &body[..]), ("$JS.hub.API.CONSUMER.RESET.O.E", &b""[..]));
    let answer = |policy: &str| {
        let config = json!({"deliver_subject": "their", "ack_policy": policy});
        json!({"name": "E", "config": config, "delivered": {"stream_seq": 4}})
    };
    let failed = AnswerOfOrigin::Failed(ApiError::SOURCE_CONSUMER_REQUIRES_ACK_FLOW_CONTROL);
    assert_eq!(bench.answer(&answer("none")), failed);
    bench.wishes();
    bench.tick();
    assert_eq!(bench.answer(&answer("flow_control")), AnswerOfOrigin::Follows(Vec::new()));
    bench.wishes();
    assert_eq!(bench.deliver(12, 12), None, "it was sent before");
    assert_eq!(bench.deliver(1, 5), heard(5));
    assert_eq!(bench.wishes(), []);
}

#[test]
fn a_consumer_that_stays_is_deleted_with_the_copy() {
    let mut bench = Bench::new(source());
    let asked = bench.ask();
    let config = json!({"deliver_subject": asked.deliver, "ack_policy": "flow_control"});
    bench.answer(&json!({"name": "E", "config": config}));
    assert_eq!(bench.deliver(9, 9), None, "it was sent to the receiver before");
    assert_eq!(bench.deliver(1, 9), heard(9));
    bench.follower.end();
    let wishes = bench.wishes();
    let [FollowWish::Unlisten, FollowWish::Ask { subject, .. }] = &wishes[..] else {
        panic!("{wishes:?}")
    };
    assert_eq!(subject, "$JS.hub.API.CONSUMER.DELETE.O.E");
}

#[test]
fn whatever_an_origin_says_a_copy_goes_on_within_its_bounds() {
    let mut rng = fastrand::Rng::with_seed(7);
    for _ in 0..200 {
        let mut bench = Bench::new(if rng.bool() { mirror() } else { source() });
        for _ in 0..100 {
            let number = |rng: &mut fastrand::Rng| match rng.u8(..5) {
                0 => rng.u64(..),
                1 => u64::MAX - rng.u64(..2),
                2 => 0,
                _ => rng.u64(..6),
            };
            match rng.u8(..6) {
                0 => bench.tick(),
                1 => {
                    let deliver = if rng.bool() { "$JS.S.x" } else { ">" };
                    bench.answer(&made(deliver, number(&mut rng)));
                }
                2 => bench.now = bench.now.saturating_add(number(&mut rng) / 1000),
                3 => {
                    let last = number(&mut rng);
                    let beat = format!("NATS/1.0 100 x\r\nNats-Last-Consumer: {last}\r\n\r\n");
                    bench.hear(if rng.bool() { "" } else { "$JS.FC.a" }, &beat, "");
                }
                4 => {
                    bench.hear(&"$JS.ACK.".repeat(usize::from(rng.u8(..9))), "", "x");
                }
                _ => {
                    let (number, sequence) = (number(&mut rng), number(&mut rng));
                    bench.deliver(number, sequence);
                }
            }
            let is_asked = bench.follower.asked_for();
            if let Some(deliver) = is_asked.filter(|_| rng.bool()) {
                bench.answer(&made(&deliver, number(&mut rng)));
            }
            if rng.bool() {
                let wishes = bench.wishes().len();
                assert!(wishes < 300, "{wishes}");
            }
        }
    }
}

#[test]
fn an_ended_copy_wishes_for_nothing_and_nothing_is_due() {
    let mut bench = Bench::new(mirror());
    let asked = bench.ask();
    bench.follow(&asked);
    bench.follower.end();
    assert_eq!(bench.wishes(), [FollowWish::Unlisten]);
    assert_eq!((bench.follower.next_due(), bench.deliver(1, 1)), (u64::MAX, None));
}
