//! Messages that are asked for.

use super::*;

fn explicit(bench: &mut Bench) {
    bench.create("C", &json!({"durable_name":"C","ack_policy":"explicit"})).unwrap();
    bench.run();
}

#[test]
fn a_request_gets_what_there_is_and_then_what_comes() {
    let mut bench = Bench::with(&["s.1", "s.2", "s.3"]);
    explicit(&mut bench);
    bench.pull("C", "in", r#"{"batch":5}"#);
    let deliveries = bench.deliveries();
    let numbers: Vec<_> =
        deliveries.iter().map(|it| (it.sequence, it.consumer_sequence, it.pending)).collect();
    assert_eq!(numbers, [(1, 1, 2), (2, 2, 1), (3, 3, 0)]);
    let info = bench.info("C");
    assert_eq!((&info["num_waiting"], &info["num_ack_pending"]), (&json!(1), &json!(3)));
    bench.store("s.4");
    bench.store("s.5");
    bench.store("s.6");
    assert_eq!(bench.seen(), ["in:4", "in:5"]);
    let info = bench.info("C");
    assert_eq!((&info["num_waiting"], &info["num_pending"]), (&json!(0), &json!(1)));
    for body in ["", "abc", "1", "{}"] {
        bench.pull("C", "in", body);
        bench.store("s.7");
        assert_eq!(bench.seen().len(), 1, "{body}");
    }
}

#[test]
fn a_request_that_does_not_wait_gets_what_there_is() {
    let mut bench = Bench::with(&[]);
    explicit(&mut bench);
    let body = r#"{"batch":5,"no_wait":true}"#;
    bench.pull("C", "in", body);
    assert_eq!(bench.seen(), ["in 404 No Messages"]);
    bench.store("s.1");
    bench.store("s.2");
    bench.pull("C", "in", body);
    assert_eq!(bench.seen(), ["in:1", "in:2", "in 404 No Messages"]);
    bench.pull("C", "in", r#"{"batch":-1,"no_wait":true}"#);
    assert_eq!(bench.seen(), ["in 404 No Messages"]);
    let text = "in 408 Request Timeout|Nats-Pending-Messages: 0|Nats-Pending-Bytes: 0";
    bench.pull("C", "in", r#"{"expires":-5,"no_wait":true}"#);
    assert_eq!(bench.seen(), [text]);
    bench.pull("C", "in", r#"{"batch":2,"no_wait":true,"expires":1000000000}"#);
    assert!(bench.seen().is_empty());
    bench.store("s.3");
    assert_eq!(bench.seen(), ["in:3", "in 404 No Messages"]);
}

#[test]
fn requests_before_it_may_take_all_there_is() {
    let mut bench = Bench::with(&["s"]);
    let config = json!({"durable_name":"C","ack_policy":"explicit","max_ack_pending":1});
    bench.create("C", &config).unwrap();
    bench.pull("C", "a", "5");
    assert_eq!(bench.seen(), ["a:1"]);
    bench.store("s");
    bench.pull("C", "b", r#"{"batch":1,"no_wait":true}"#);
    assert_eq!(bench.seen(), ["b 408 Requests Pending"]);
}

#[test]
fn a_request_expires_with_what_it_lacks() {
    let mut bench = Bench::with(&["s.1"]);
    explicit(&mut bench);
    bench.pull("C", "in", r#"{"batch":3,"expires":400000000,"max_bytes":1000}"#);
    assert_eq!(bench.seen(), ["in:1"]);
    let left = 1000 - "s.1".len() - "$JS.ACK.S.C.1.1.1.1700000000000000000.0".len() - 1;
    let text =
        format!("in 408 Request Timeout|Nats-Pending-Messages: 2|Nats-Pending-Bytes: {left}");
    let mut seen = Vec::new();
    while seen.is_empty() {
        seen = bench.wait();
    }
    assert_eq!(seen, [text]);
    assert_eq!(bench.now.mono, 100 * SECOND + 400 * MILLISECOND);
}

#[test]
fn requests_are_served_in_turn() {
    let mut bench = Bench::with(&[]);
    explicit(&mut bench);
    bench.pull("C", "a", "2");
    bench.pull("C", "b", "2");
    (0..4).for_each(|_| bench.store("s"));
    assert_eq!(bench.seen(), ["a:1", "b:2", "a:3", "b:4"]);
}

#[test]
fn a_waiting_request_is_sent_signs_of_life() {
    let mut bench = Bench::with(&[]);
    explicit(&mut bench);
    bench.pull("C", "in", r#"{"batch":2,"expires":2000000000,"idle_heartbeat":500000000}"#);
    bench.run();
    let beat = "in 100 Idle Heartbeat|Nats-Last-Consumer: 0|Nats-Last-Stream: 0";
    assert_eq!((bench.wait(), bench.wait()), (vec![beat.to_owned()], vec![beat.to_owned()]));
    bench.store("s");
    assert_eq!(bench.seen(), ["in:1"]);
    let mut all = Vec::new();
    while bench.now.mono < 102 * SECOND {
        all.extend(bench.wait());
    }
    let last = "in 408 Request Timeout|Nats-Pending-Messages: 1|Nats-Pending-Bytes: 0";
    assert_eq!(all.last().unwrap(), last);
    bench.pull("C", "in", r#"{"batch":2,"idle_heartbeat":100000000}"#);
    assert_eq!(bench.seen(), ["in 400 Bad Request - heartbeat value too large"]);
    bench.pull("C", "in", "{bad");
    assert!(bench.seen()[0].starts_with("in 400 Bad Request - "));
}

#[test]
fn a_consumer_limits_its_requests() {
    let mut bench = Bench::with(&[]);
    let config = json!({"durable_name":"C","ack_policy":"explicit","max_batch":3,
        "max_expires":2 * SECOND,"max_bytes":1000,"max_waiting":2});
    bench.create("C", &config).unwrap();
    for (body, status) in [
        (r#"{"batch":4}"#, "409 Exceeded MaxRequestBatch of 3"),
        (r#"{"expires":3000000000}"#, "409 Exceeded MaxRequestExpires of 2s"),
        (r#"{"max_bytes":1001}"#, "409 Exceeded MaxRequestMaxBytes of 1000"),
    ] {
        bench.pull("C", "in", body);
        assert_eq!(bench.seen(), [format!("in {status}")]);
    }
    let body = r#"{"expires":2000000000}"#;
    (0..3).for_each(|_| bench.pull("C", "in", body));
    assert_eq!(bench.seen(), ["in 409 Exceeded MaxWaiting"]);
    bench.pull("C", "in", r#"{"expires":2000000000,"idle_heartbeat":1000000000}"#);
    assert!(bench.seen().is_empty());
    bench.create("P", &json!({"deliver_subject":"d"})).unwrap();
    bench.pull("P", "in", "");
    assert_eq!(bench.seen(), ["in 409 Consumer is push based"]);
    let reply = Bytes::from_static(b"in");
    let headers = b"NATS/1.0\r\nNats-Required-Api-Level: 99\r\n\r\n";
    let pull = PullMessage { reply, headers, body: b"" };
    bench.consumers.on_pull("C", &pull, bench.now, &mut bench.stream);
    assert_eq!(bench.seen(), ["in 412 Required Api Level"]);
}

#[test]
fn a_message_that_does_not_fit_ends_a_request() {
    let mut bench = Bench::with(&[]);
    (0..3).for_each(|_| bench.store_as("s.a", &[b'x'; 100]));
    bench.create("C", &json!({"ack_policy":"none"})).unwrap();
    bench.pull("C", "in", r#"{"batch":10,"max_bytes":400,"expires":1000000000}"#);
    let text = "in 409 Message Size Exceeds MaxBytes|Nats-Pending-Messages: 8|\
                Nats-Pending-Bytes: 116";
    assert_eq!(bench.seen(), ["in:1", "in:2", text]);
    bench.pull("C", "in", r#"{"batch":1,"max_bytes":1000}"#);
    let text = "in 409 Batch Completed|Nats-Pending-Messages: 0|Nats-Pending-Bytes: 858";
    assert_eq!(bench.seen(), ["in:3", text]);
}

#[test]
fn a_client_that_left_takes_no_messages() {
    let mut bench = Bench::with(&[]);
    explicit(&mut bench);
    bench.pull("C", "gone", "1");
    bench.pull("C", "here", "1");
    bench.stream.deaf.insert(b"gone".to_vec());
    bench.store("s");
    assert_eq!(bench.seen(), ["here:1"]);
    bench.pull("C", "gone", "1");
    assert_eq!(bench.info("C")["num_waiting"], 0);
}

#[test]
fn messages_that_wait_for_acknowledgement_hold_back_others() {
    let mut bench = Bench::with(&["s", "s", "s", "s"]);
    let config = json!({"durable_name":"C","ack_policy":"explicit","max_ack_pending":2});
    bench.create("C", &config).unwrap();
    bench.pull("C", "in", r#"{"batch":4,"no_wait":true,"expires":5000000000}"#);
    let first = bench.deliveries();
    assert_eq!(first.len(), 2);
    bench.ack(&first[0], "+ACK", None);
    assert_eq!(bench.seen(), ["in:3"]);
}

#[test]
fn a_consumer_begins_where_its_policy_says() {
    let mut bench = Bench::with(&["s.a", "s.b", "s.a"]);
    let mut make = |name: &str, more: Value| {
        let mut config = json!({"ack_policy":"none"});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let info = bench.create(name, &config).unwrap();
        let start = info["delivered"]["stream_seq"].as_u64().unwrap();
        (info["num_pending"].as_u64().unwrap(), start)
    };
    assert_eq!(make("A", json!({})), (3, 0));
    assert_eq!(make("L", json!({"deliver_policy":"last"})), (1, 2));
    assert_eq!(make("LF", json!({"deliver_policy":"last","filter_subject":"s.b"})), (1, 1));
    assert_eq!(make("N", json!({"deliver_policy":"new"})), (0, 3));
    let last = json!({"deliver_policy":"last_per_subject","filter_subject":"s.*"});
    assert_eq!(make("LPS", last), (2, 1));
    let from = json!({"deliver_policy":"by_start_sequence","opt_start_seq":2});
    assert_eq!(make("SEQ", from), (2, 1));
    let time = json!({"deliver_policy":"by_start_time","opt_start_time":"2020-01-01T00:00:00Z"});
    assert_eq!(make("TIME", time), (3, 0));
    bench.store("s.c");
    for (name, expected) in [
        ("L", vec![(3, 1), (4, 0)]),
        ("LF", vec![(2, 0)]),
        ("N", vec![(4, 0)]),
        ("LPS", vec![(2, 2), (3, 1), (4, 0)]),
        ("SEQ", vec![(2, 2), (3, 1), (4, 0)]),
        ("TIME", vec![(1, 3), (2, 2), (3, 1), (4, 0)]),
    ] {
        bench.pull(name, "in", r#"{"batch":9,"no_wait":true}"#);
        let seen: Vec<_> = bench.deliveries().iter().map(|it| (it.sequence, it.pending)).collect();
        assert_eq!(seen, expected, "{name}");
    }
}

#[test]
fn many_messages_that_no_filter_matches_take_more_than_one_call() {
    let mut bench = Bench::with(&[]);
    (0..200).for_each(|_| bench.store("s.a"));
    bench.store("s.b");
    bench.create("C", &json!({"filter_subjects":["s.b","s.c"]})).unwrap();
    bench.pull("C", "in", "1");
    assert!(bench.consumers.poll(bench.now, &mut bench.stream));
    assert_eq!(bench.seen(), ["in:201"]);
}

#[test]
fn removed_messages_are_not_counted_and_not_delivered() {
    let mut bench = Bench::with(&["s", "s", "s", "s"]);
    explicit(&mut bench);
    bench.remove(2, 2);
    assert_eq!(bench.info("C")["num_pending"], 3);
    bench.pull("C", "in", "2");
    assert_eq!(bench.seen(), ["in:1", "in:3"]);
    bench.purge("");
    let info = bench.info("C");
    for position in ["delivered", "ack_floor"] {
        assert_eq!(info[position]["consumer_seq"], 2, "{position}");
        assert_eq!(info[position]["stream_seq"], 4, "{position}");
    }
    assert_eq!((&info["num_ack_pending"], &info["num_pending"]), (&json!(0), &json!(0)));
    bench.pull("C", "in", r#"{"batch":2,"no_wait":true}"#);
    assert_eq!(bench.seen(), ["in 404 No Messages"]);
    bench.store("s");
    bench.pull("C", "in", "");
    assert_eq!(bench.seen(), ["in:5"]);
}

#[test]
fn a_replay_keeps_the_gaps_between_messages() {
    let mut bench = Bench::with(&["s"]);
    bench.pass(800 * MILLISECOND);
    bench.store("s");
    bench.create("C", &json!({"replay_policy":"original"})).unwrap();
    bench.pull("C", "in", "3");
    assert_eq!(bench.seen(), ["in:1"]);
    let start = bench.now.mono;
    let mut seen = Vec::new();
    while seen.is_empty() {
        seen = bench.wait();
    }
    assert_eq!((seen, bench.now.mono - start), (vec!["in:2".to_owned()], 800 * MILLISECOND));
    bench.pass(SECOND);
    bench.store("s");
    assert_eq!(bench.seen(), ["in:3"]);
}

#[test]
fn a_message_that_is_on_its_way_from_the_disk_is_waited_for() {
    let mut bench = Bench::with(&["s"]);
    explicit(&mut bench);
    bench.stream.is_cold = true;
    bench.pull("C", "in", "1");
    assert!(bench.seen().is_empty());
    bench.stream.is_cold = false;
    bench.consumers.on_loaded();
    assert_eq!(bench.seen(), ["in:1"]);
}

#[test]
fn an_overflow_is_served_when_enough_messages_wait() {
    let mut bench = Bench::with(&[]);
    let config = json!({"durable_name":"C","ack_policy":"explicit",
        "priority_policy":"overflow","priority_groups":["jobs"]});
    bench.create("C", &config).unwrap();
    bench.pull("C", "in", r#"{"batch":1}"#);
    bench.pull("C", "in", r#"{"group":"other"}"#);
    bench.pull("C", "in", r#"{"group":"jobs","id":"x"}"#);
    assert_eq!(
        bench.seen(),
        [
            "in 400 Bad Request - Priority Group missing",
            "in 400 Bad Request - Invalid Priority Group",
            "in 400 Bad Request - Not a Pinned Client Priority consumer",
        ]
    );
    bench.pull("C", "in", r#"{"group":"jobs","min_pending":2}"#);
    bench.store("s");
    assert!(bench.seen().is_empty());
    bench.store("s");
    assert_eq!(bench.seen(), ["in:1"]);
}

#[test]
fn one_client_is_served_while_it_is_pinned() {
    let mut bench = Bench::with(&[]);
    let config = json!({"durable_name":"C","ack_policy":"explicit",
        "priority_policy":"pinned_client","priority_groups":["g"]});
    bench.create("C", &config).unwrap();
    bench.run();
    bench.pull("C", "a", r#"{"group":"g"}"#);
    bench.pull("C", "b", r#"{"group":"g"}"#);
    bench.store("s");
    let outputs = bench.run();
    let ConsumerOutput::Advise(advisory) = &outputs[0] else { panic!("{outputs:?}") };
    assert_eq!(advisory.subject("S"), "$JS.EVENT.ADVISORY.CONSUMER.PINNED.S.C");
    let ConsumerOutput::Deliver(first) = &outputs[1] else { panic!("{outputs:?}") };
    let pin = first.pin.clone().unwrap();
    bench.store("s");
    assert!(bench.seen().is_empty(), "b waits until a is pinned no more");
    bench.pull("C", "a", r#"{"group":"g","id":"wrong"}"#);
    assert_eq!(bench.seen(), ["a 423 Nats-Pin-Id mismatch"]);
    let body: &'static str = format!(r#"{{"group":"g","id":"{pin}"}}"#).leak();
    bench.pull("C", "a", body);
    assert_eq!(bench.seen(), ["a:2"]);
    assert_eq!(bench.info("C")["priority_groups"][0]["pinned_client_id"], *pin);
    bench.consumers.unpin("C", br#"{"group":"g"}"#, bench.now).unwrap();
    bench.store("s");
    assert_eq!(bench.seen(), ["b:3"]);
    bench.pull("C", "a", body);
    assert_eq!(bench.seen(), ["a 423 Nats-Pin-Id mismatch"]);
    bench.pass(121 * SECOND);
    assert_eq!(bench.events(), ["$JS.EVENT.ADVISORY.CONSUMER.UNPINNED.S.C"]);
}

#[test]
fn lower_priorities_come_first() {
    let mut bench = Bench::with(&[]);
    let config = json!({"durable_name":"C","priority_policy":"prioritized",
        "priority_groups":["g"]});
    bench.create("C", &config).unwrap();
    bench.pull("C", "two", r#"{"group":"g","priority":2,"batch":2}"#);
    bench.pull("C", "one", r#"{"group":"g","priority":1,"batch":2}"#);
    (0..3).for_each(|_| bench.store("s"));
    assert_eq!(bench.seen(), ["one:1", "one:2", "two:3"]);
    bench.pull("C", "in", r#"{"group":"g","priority":10}"#);
    assert_eq!(bench.seen(), ["in 400 Bad Request - Priority must be between 0 and 9"]);
}
