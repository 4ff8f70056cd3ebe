//! Requests of the API.

use super::*;

fn code<T: std::fmt::Debug>(result: Result<T, ApiError>) -> u16 {
    result.unwrap_err().err_code
}

fn check(stream: &str, form: ConsumerForm<'_>, config: &Value) -> Result<ConsumerConfig, u16> {
    let body = json!({"stream_name":"S","config":config}).to_string();
    let mut request = ConsumerRequest::parse(body.as_bytes(), true).unwrap();
    let checked = request.check_subject(stream, form);
    checked.map(|()| request.config).map_err(|error| error.err_code)
}

#[test]
fn the_subject_of_a_request_names_the_consumer() {
    use ConsumerForm::{Durable, Ephemeral, Named};
    assert_eq!(check("T", Ephemeral, &json!({})), Err(10056));
    assert_eq!(check("S", Ephemeral, &json!({"durable_name":"D"})), Err(10020));
    assert_eq!(check("S", Durable("D"), &json!({})), Err(10018));
    assert_eq!(check("S", Durable("D"), &json!({"durable_name":"E"})), Err(10017));
    assert_eq!(check("S", Durable("D"), &json!({"durable_name":"D"})).unwrap().name, "D");
    assert_eq!(check("S", Named("C", None), &json!({"name":"x y"})).unwrap().name, "C");
    assert_eq!(check("S", Named("C", None), &json!({"durable_name":"E"})), Err(10017));
    assert_eq!(check("S", Named("a/b", None), &json!({})), Err(10127));
    let filter = Named("C", Some("s.a"));
    assert_eq!(check("S", filter, &json!({"filter_subject":"s.b"})), Err(10131));
    assert_eq!(check("S", filter, &json!({"filter_subjects":["s.a","s.b"]})), Err(10137));
    assert!(check("S", filter, &json!({"filter_subject":"s.a"})).is_ok());
    assert_eq!(check("S", Named("C", None), &json!({"num_replicas":3})), Err(10074));
    for body in [r#"{"action":"frob"}"#, r#"{"config":{"ack_policy":"maybe"}}"#, r#"{"x":1}"#] {
        assert_eq!(code(ConsumerRequest::parse(body.as_bytes(), true)), 10025);
    }
}

#[test]
fn a_new_consumer_is_shown_with_all_its_values() {
    let mut bench = Bench::with(&["s.a"]);
    let info = bench.create("D", &json!({"durable_name":"D","ack_policy":"explicit"})).unwrap();
    let expected = json!({
        "type": "io.nats.jetstream.api.v1.consumer_create_response",
        "stream_name": "S", "name": "D", "created": "2023-11-14T22:13:20Z",
        "config": {
            "durable_name": "D", "name": "D", "deliver_policy": "all", "ack_policy": "explicit",
            "ack_wait": 30_000_000_000_i64, "max_deliver": -1, "replay_policy": "instant",
            "max_waiting": 512, "max_ack_pending": 1000, "num_replicas": 0,
            "metadata": {
                "_nats.level": "5", "_nats.req.level": "0", "_nats.ver": crate::NATS_VERSION
            }
        },
        "delivered": {"consumer_seq": 0, "stream_seq": 0},
        "ack_floor": {"consumer_seq": 0, "stream_seq": 0},
        "num_ack_pending": 0, "num_redelivered": 0, "num_waiting": 0, "num_pending": 1,
        "ts": "2023-11-14T22:13:20Z"
    });
    assert_eq!(info, expected);
    assert_eq!(bench.info("D")["type"], "io.nats.jetstream.api.v1.consumer_info_response");
}

#[test]
fn a_consumer_without_a_name_gets_one_and_ends_by_itself() {
    let mut bench = Bench::with(&[]);
    let body = json!({"stream_name":"S","config":{}}).to_string();
    let mut request = ConsumerRequest::parse(body.as_bytes(), true).unwrap();
    request.check_subject("S", ConsumerForm::Ephemeral).unwrap();
    let made = bench.consumers.create(&request, &bench.config, bench.now, &mut bench.stream);
    let info: Value = serde_json::from_slice(&made.unwrap()).unwrap();
    assert_eq!(info["name"].as_str().unwrap().len(), 8);
    assert!(info["config"].get("name").is_none());
    assert_eq!(info["config"]["inactive_threshold"], 5_000_000_000_i64);
    bench.run();
    let deadline = bench.consumers.next_deadline().unwrap();
    assert!(deadline <= bench.now.mono + 6 * SECOND);
    bench.pass(6 * SECOND);
    let outputs = bench.run();
    assert!(outputs.iter().any(|output| matches!(output, ConsumerOutput::Ended(_))));
    assert!(bench.consumers.is_empty());
    assert_eq!(bench.consumers.next_deadline(), None);
}

#[test]
fn actions_say_whether_a_consumer_may_be_there() {
    let mut bench = Bench::with(&[]);
    let config = json!({"durable_name":"C","ack_policy":"explicit"});
    let ask =
        |action: &str, config: &Value| json!({"stream_name":"S","action":action,"config":config});
    assert_eq!(code(bench.ask("C", &ask("update", &config))), 10149);
    assert!(bench.ask("C", &ask("create", &config)).is_ok());
    assert!(bench.ask("C", &ask("create", &config)).is_ok());
    let mut other = config.clone();
    other["description"] = "x".into();
    assert_eq!(code(bench.ask("C", &ask("create", &other))), 10148);
    let info = bench.ask("C", &ask("update", &other)).unwrap();
    assert_eq!(info["config"]["description"], "x");
    assert_eq!(bench.events(), ["$JS.EVENT.ADVISORY.CONSUMER.CREATED.S.C"]);
    other["deliver_policy"] = "new".into();
    let error = bench.ask("C", &ask("", &other)).unwrap_err();
    assert_eq!((error.err_code, &*error.description), (10012, "deliver policy can not be updated"));
}

#[test]
fn an_update_changes_filters_and_counts_anew() {
    let mut bench = Bench::with(&["s.a", "s.b", "s.a", "s.c"]);
    let config =
        |filter: &str| json!({"durable_name":"C","ack_policy":"explicit","filter_subject":filter});
    assert_eq!(bench.create("C", &config("s.a")).unwrap()["num_pending"], 2);
    bench.pull("C", "in", "1");
    assert_eq!(bench.seen(), ["in:1"]);
    assert_eq!(bench.create("C", &config("s.*")).unwrap()["num_pending"], 3);
    bench.pull("C", "in", "5");
    assert_eq!(bench.seen(), ["in:2", "in:3", "in:4"]);
}

#[test]
fn consumers_are_listed_by_name_in_pages() {
    let mut bench = Bench::with(&[]);
    for name in ["C2", "C1", "C3"] {
        bench.create(name, &json!({"ack_policy":"explicit"})).unwrap();
    }
    let hidden = json!({"direct":true,"deliver_subject":"d"});
    bench.create("H", &hidden).unwrap();
    let names = |bench: &Bench, body: &str| -> Value {
        serde_json::from_slice(&bench.consumers.list_names(body.as_bytes()).unwrap()).unwrap()
    };
    let page = names(&bench, "");
    assert_eq!((&page["total"], &page["limit"]), (&json!(3), &json!(1024)));
    assert_eq!(page["consumers"], json!(["C1", "C2", "C3"]));
    let page = names(&bench, r#"{"offset":2}"#);
    assert_eq!((&page["offset"], &page["consumers"]), (&json!(2), &json!(["C3"])));
    assert_eq!(names(&bench, r#"{"offset":9}"#)["offset"], 3);
    assert_eq!(code(bench.consumers.list_names(b"{\"offset\":\"x\"}")), 10025);
    let text = bench.consumers.list(b"", bench.now, &mut bench.stream).unwrap();
    let list: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!((&list["total"], &list["limit"]), (&json!(3), &json!(256)));
    assert_eq!(list["consumers"][1]["name"], "C2");
    let metadata = list["consumers"][1]["config"]["metadata"].as_object().unwrap();
    assert_eq!(metadata.len(), 1);
}

#[test]
fn limits_bound_the_number_of_consumers() {
    let mut bench = Bench::new(&json!({"max_consumers":1}));
    bench.create("C1", &json!({})).unwrap();
    assert_eq!(code(bench.create("C2", &json!({}))), 10026);
    assert!(bench.create("C1", &json!({"description":"x"})).is_ok());
    let long = "c".repeat(256);
    let mut bench = Bench::with(&[]);
    assert!(bench.create(&long[1..], &json!({})).is_ok());
    let error = bench.create(&long, &json!({})).unwrap_err();
    assert_eq!((error.err_code, &*error.description), (10012, "error creating store for consumer"));
    assert_eq!(code(bench.create(&long, &json!({"durable_name":long}))), 10102);
}

#[test]
fn consumers_beyond_limits_of_their_stream_are_named() {
    let mut bench = Bench::with(&[]);
    let config = json!({"ack_policy":"explicit","inactive_threshold":9 * SECOND});
    bench.create("A", &config).unwrap();
    bench
        .create("B", &json!({"durable_name":"B","ack_policy":"explicit","max_ack_pending":9}))
        .unwrap();
    let beyond = |inactive_threshold: i64, max_ack_pending: i64| {
        let limits = crate::stream::ConsumerLimits { inactive_threshold, max_ack_pending };
        bench.consumers.beyond(limits)
    };
    assert!(beyond(0, 0).is_empty() && beyond(9_000_000_000, 1000).is_empty());
    assert_eq!(beyond(1, 0), ["A"]);
    assert_eq!(beyond(0, 8), ["A", "B"]);
}

#[test]
fn a_deleted_consumer_is_gone_and_its_clients_are_told() {
    let mut bench = Bench::with(&[]);
    bench.create("C", &json!({"ack_policy":"explicit"})).unwrap();
    bench.pull("C", "in", r#"{"batch":3,"expires":20000000000}"#);
    bench.run();
    let text = bench.consumers.delete("C", bench.now).unwrap();
    let expected = r#"{"type":"io.nats.jetstream.api.v1.consumer_delete_response","success":true}"#;
    assert_eq!(text, expected.as_bytes());
    assert_eq!(bench.seen(), ["in 409 Consumer Deleted"]);
    assert_eq!(code(bench.consumers.delete("C", bench.now)), 10014);
    assert_eq!(code(bench.consumers.info("C", bench.now, &mut bench.stream)), 10014);
    assert_eq!(bench.consumers.next_deadline(), None);
}

#[test]
fn a_pause_holds_messages_until_it_ends() {
    let mut bench = Bench::with(&["s.a"]);
    bench.create("C", &json!({"durable_name":"C","deliver_subject":"d"})).unwrap();
    let pause = |bench: &mut Bench, body: &str| -> Value {
        let (consumers, stream) = (&mut bench.consumers, &mut bench.stream);
        let text = consumers.pause("C", body.as_bytes(), bench.now, stream).unwrap();
        serde_json::from_slice(&text).unwrap()
    };
    let shown = pause(&mut bench, r#"{"pause_until":"2023-11-14T22:14:20Z"}"#);
    assert_eq!(
        (&shown["paused"], &shown["pause_until"]),
        (&json!(true), &json!("2023-11-14T22:14:20Z"))
    );
    assert_eq!(shown["pause_remaining"], 60_000_000_000_i64);
    assert_eq!(bench.info("C")["paused"], true);
    assert_eq!(bench.info("C")["config"]["metadata"]["_nats.req.level"], "1");
    let outputs = bench.run();
    assert!(outputs.iter().filter_map(short).next().is_none());
    bench.pass(60 * SECOND);
    let outputs = bench.run();
    assert_eq!(outputs.iter().filter_map(short).collect::<Vec<_>>(), ["d:1"]);
    let ended = |output: &&ConsumerOutput| match output {
        ConsumerOutput::Advise(advisory) => {
            matches!(advisory.event, ConsumerEvent::Paused { paused: false, .. })
        }
        _ => false,
    };
    assert_eq!(outputs.iter().filter(ended).count(), 1);
    pause(&mut bench, r#"{"pause_until":"2099-01-01T00:00:00Z"}"#);
    bench.store("s.b");
    assert!(bench.seen().is_empty());
    let shown = pause(&mut bench, "");
    assert_eq!(
        (&shown["paused"], &shown["pause_until"]),
        (&json!(false), &json!("0001-01-01T00:00:00Z"))
    );
    assert_eq!(bench.seen(), ["d:2"]);
}

#[test]
fn a_reset_goes_back_to_what_was_not_acknowledged_or_to_a_sequence() {
    let mut bench = Bench::with(&["s", "s", "s", "s"]);
    bench.create("C", &json!({"durable_name":"C","ack_policy":"explicit"})).unwrap();
    bench.pull("C", "in", "3");
    let first = bench.deliveries().remove(0);
    bench.ack(&first, "", None);
    let reset = |bench: &mut Bench, body: &str| -> Result<Value, ApiError> {
        let (consumers, stream) = (&mut bench.consumers, &mut bench.stream);
        let text = consumers.reset("C", body.as_bytes(), bench.now, stream)?;
        Ok(serde_json::from_slice(&text).unwrap())
    };
    let info = reset(&mut bench, "").unwrap();
    assert_eq!(info["type"], "io.nats.jetstream.api.v1.consumer_reset_response");
    assert_eq!((&info["reset_seq"], &info["num_pending"]), (&json!(2), &json!(3)));
    assert_eq!(info["delivered"], json!({"consumer_seq":0,"stream_seq":1}));
    bench.pull("C", "in", "1");
    let again = bench.deliveries().remove(0);
    assert_eq!((again.sequence, again.deliveries, again.consumer_sequence), (2, 1, 1));
    assert_eq!(reset(&mut bench, r#"{"seq":4}"#).unwrap()["delivered"]["stream_seq"], 3);
    let config = json!({"deliver_policy":"by_start_sequence","opt_start_seq":3});
    bench.create("B", &config).unwrap();
    let refused = bench.consumers.reset("B", br#"{"seq":2}"#, bench.now, &mut bench.stream);
    assert_eq!(refused.unwrap_err().description, "invalid reset: below start seq");
}

#[test]
fn an_idle_consumer_takes_less_than_two_kib_and_is_not_looked_at() {
    const COUNT: usize = 2_000;
    let mut bench = Bench::with(&["s.a"]);
    bench.consumers.set_rules(ConsumerRules { default_max_consumers: 0, ..<_>::default() });
    for number in 0..COUNT {
        let config = json!({"durable_name":format!("C{number}"),"ack_policy":"explicit",
            "filter_subject":"s.a"});
        bench.create(&format!("C{number}"), &config).unwrap();
    }
    bench.run();
    assert_eq!(bench.consumers.next_deadline(), None);
    let bytes = bench.consumers.memory_bytes() / COUNT;
    assert!(bytes < 2048, "{bytes}");
    let before = bench.stream.searches;
    for _ in 0..10 {
        bench.store("s.a");
        assert!(!bench.consumers.poll(bench.now, &mut bench.stream));
    }
    assert_eq!(bench.stream.searches, before);
}
