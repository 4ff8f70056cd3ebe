//! Messages that are pushed.

use super::*;

#[test]
fn messages_go_to_the_subject_while_somebody_listens() {
    let mut bench = Bench::with(&["s.a", "s.b"]);
    bench.stream.deaf.insert(b"d".to_vec());
    let config = json!({"durable_name":"C","deliver_subject":"d","ack_policy":"explicit"});
    let info = bench.create("C", &config).unwrap();
    assert!(info.get("push_bound").is_none());
    assert!(bench.seen().is_empty());
    bench.stream.deaf.clear();
    bench.consumers.on_interest_changed(b"d", bench.now, &mut bench.stream);
    assert_eq!(bench.seen(), ["d:1", "d:2"]);
    assert_eq!(bench.info("C")["push_bound"], true);
    bench.store("s.c");
    assert_eq!(bench.seen(), ["d:3"]);
    bench.stream.deaf.insert(b"d".to_vec());
    bench.consumers.on_interest_changed(b"d", bench.now, &mut bench.stream);
    bench.store("s.d");
    assert!(bench.seen().is_empty());
}

#[test]
fn the_owner_is_told_which_subjects_are_of_interest() {
    let mut bench = Bench::with(&[]);
    let listens = |bench: &mut Bench| {
        let listen = |output| match output {
            ConsumerOutput::Listens { before, now } => Some((before, now)),
            _ => None,
        };
        bench.run().into_iter().filter_map(listen).collect::<Vec<_>>()
    };
    let of = |subject: &'static str| Some(Bytes::from_static(subject.as_bytes()));
    let config = |subject: &str| json!({"durable_name":"C","deliver_subject":subject});
    bench.create("C", &config("d.1")).unwrap();
    assert_eq!(listens(&mut bench), [(None, of("d.1"))]);
    assert_eq!(bench.create("C", &config("d.2")).unwrap_err().err_code, 10013);
    bench.stream.deaf.insert(b"d.1".to_vec());
    let info = bench.create("C", &config("d.2")).unwrap();
    assert!(info.get("push_bound").is_none(), "nobody has looked yet");
    assert_eq!(listens(&mut bench), [(of("d.1"), of("d.2"))]);
    assert_eq!(bench.info("C")["push_bound"], true);
    bench.store("s");
    assert_eq!(bench.seen(), ["d.2:1"]);
    bench.consumers.delete("C", bench.now).unwrap();
    assert_eq!(listens(&mut bench), [(of("d.2"), None)]);
    assert!(bench.consumers.listeners.is_empty());
}

#[test]
fn another_subject_gets_all_that_waits_for_its_acknowledgement() {
    let mut bench = Bench::with(&["s", "s"]);
    let config = |subject: &str| {
        let policy = "explicit";
        json!({"durable_name":"C","deliver_subject":subject,"ack_policy":policy})
    };
    bench.create("C", &config("d.1")).unwrap();
    assert_eq!(bench.seen(), ["d.1:1", "d.1:2"]);
    bench.stream.deaf.insert(b"d.1".to_vec());
    bench.create("C", &config("d.2")).unwrap();
    assert_eq!(bench.seen(), ["d.2:1*", "d.2:2*"]);
}

#[test]
fn a_group_gets_what_is_pushed() {
    let mut bench = Bench::with(&["s"]);
    bench.stream.deaf.insert(b"d g".to_vec());
    bench.create("C", &json!({"deliver_subject":"d","deliver_group":"g"})).unwrap();
    assert!(bench.deliveries().is_empty(), "who listens for himself does not count");
    bench.stream.deaf.clear();
    bench.consumers.on_interest_changed(b"d", bench.now, &mut bench.stream);
    assert_eq!(bench.deliveries()[0].queue, Some(Bytes::from_static(b"g")));
}

#[test]
fn signs_of_life_tell_the_last_sequences() {
    let mut bench = Bench::with(&["s"]);
    let config = json!({"deliver_subject":"d","idle_heartbeat":400 * MILLISECOND});
    bench.create("C", &config).unwrap();
    assert_eq!(bench.seen(), ["d:1"]);
    let beat = ["d 100 Idle Heartbeat|Nats-Last-Consumer: 1|Nats-Last-Stream: 1"];
    let next = |bench: &mut Bench| loop {
        let seen = bench.wait();
        if !seen.is_empty() {
            break seen;
        }
    };
    assert_eq!(next(&mut bench), beat);
    assert_eq!(next(&mut bench), beat);
    assert_eq!(bench.now.mono, 100 * SECOND + 800 * MILLISECOND);
}

#[test]
fn a_paused_consumer_goes_on_with_signs_of_life() {
    let mut bench = Bench::with(&["s"]);
    let config = json!({"deliver_subject":"d","idle_heartbeat":300 * MILLISECOND,
        "pause_until":"2099-01-01T00:00:00Z"});
    assert_eq!(bench.create("C", &config).unwrap()["paused"], true);
    assert!(bench.seen().is_empty());
    let beat = ["d 100 Idle Heartbeat|Nats-Last-Consumer: 0|Nats-Last-Stream: 0"];
    assert_eq!(bench.wait(), beat);
}

#[test]
fn delivery_stops_until_flow_control_is_answered() {
    let mut bench = Bench::with(&[]);
    (0..60).for_each(|_| bench.store_as("s", &[b'x'; 65_536]));
    let config = json!({"deliver_subject":"d","idle_heartbeat":SECOND,"flow_control":true});
    bench.create("C", &config).unwrap();
    let outputs = bench.run();
    let asked = outputs.iter().find_map(|output| match output {
        ConsumerOutput::Status(status) => status.reply.clone(),
        _ => None,
    });
    let asked = asked.unwrap();
    assert!(asked.starts_with(b"$JS.FC.S.C.") && asked.len() == 15);
    let count = outputs.iter().filter_map(short).filter(|it| it.starts_with("d:")).count();
    assert!((31..60).contains(&count), "{count}");
    let mut seen = Vec::new();
    while seen.is_empty() {
        seen = bench.wait();
    }
    let stalled = seen.pop().unwrap();
    let end = format!("|Nats-Consumer-Stalled: {}", String::from_utf8_lossy(&asked));
    assert!(stalled.ends_with(&end), "{stalled}");
    let mut reply = |subject: &[u8]| {
        bench.consumers.on_flow_reply(subject, b"", bench.now, &mut bench.stream);
        bench.seen()
    };
    assert!(reply(b"$JS.FC.S.C.none").is_empty());
    assert!(reply(b"$JS.FC").is_empty());
    let seen = reply(&asked);
    assert_eq!(seen.iter().filter(|it| it.starts_with("d:")).count(), 60 - count);
}

#[test]
fn flow_control_acknowledges_if_that_is_the_policy() {
    let mut bench = Bench::with(&["s", "s", "s"]);
    let config = json!({"durable_name":"C","deliver_subject":"d","ack_policy":"flow_control",
        "max_ack_pending":2});
    bench.create("C", &config).unwrap();
    let outputs = bench.run();
    let ask = |output: &ConsumerOutput| match output {
        ConsumerOutput::Status(status) => status.reply.clone(),
        _ => None,
    };
    let asked = outputs.iter().find_map(ask).unwrap();
    assert!(!bench.consumers.takes_acks("C"));
    let headers = b"NATS/1.0\r\nNats-Last-Consumer: 2\r\nNats-Last-Stream: 2\r\n\r\n";
    bench.consumers.on_flow_reply(&asked, headers, bench.now, &mut bench.stream);
    assert_eq!(bench.seen()[0], "d:3");
    assert_eq!(bench.info("C")["ack_floor"]["stream_seq"], 2);
}

#[test]
fn a_new_message_is_looked_for_by_those_alone_that_wait_for_its_subject() {
    let mut bench = Bench::with(&[]);
    for (name, filter) in [("A", "s.a"), ("B", "s.b"), ("C", "s.*")] {
        let config = json!({"deliver_subject":name,"filter_subject":filter});
        bench.create(name, &config).unwrap();
    }
    assert!(bench.seen().is_empty());
    for _ in 0..3 {
        let before = bench.stream.searches;
        bench.store("s.b");
        assert_eq!(bench.seen().len(), 2);
        assert!(bench.stream.searches - before <= 4, "{}", bench.stream.searches - before);
    }
    (0..300).for_each(|_| bench.store("s.c"));
    bench.store("s.a");
    let seen = bench.seen();
    assert_eq!(seen.iter().filter(|it| it.starts_with("A:")).count(), 1);
    assert_eq!(seen.len(), 302);
    bench.create("A", &json!({"deliver_subject":"A","filter_subject":"s.d"})).unwrap();
    bench.store("s.d");
    assert_eq!(bench.seen(), ["A:305", "C:305"]);
}

#[test]
fn a_rate_spreads_messages_over_time() {
    let mut bench = Bench::new(&json!({"max_msg_size":2000}));
    (0..20).for_each(|_| bench.store_as("s", &[b'x'; 1000]));
    bench.create("C", &json!({"deliver_subject":"d","rate_limit_bps":80_000})).unwrap();
    let mut count = bench.seen().len();
    assert_eq!(count, 1, "a second message is over the burst");
    let start = bench.now.mono;
    while count < 20 {
        count += bench.wait().len();
    }
    let passed = bench.now.mono - start;
    assert!((SECOND..3 * SECOND).contains(&passed), "{passed}");
}

#[test]
fn an_unbound_consumer_without_a_name_to_stay_ends() {
    let mut bench = Bench::with(&[]);
    bench.create("C", &json!({"deliver_subject":"d","inactive_threshold":2 * SECOND})).unwrap();
    bench.run();
    bench.pass(10 * SECOND);
    bench.run();
    assert!(bench.consumers.has("C"));
    bench.stream.deaf.insert(b"d".to_vec());
    bench.consumers.on_interest_changed(b"d", bench.now, &mut bench.stream);
    bench.run();
    bench.pass(SECOND);
    bench.run();
    assert!(bench.consumers.has("C"));
    bench.pass(SECOND);
    assert_eq!(bench.events(), ["$JS.EVENT.ADVISORY.CONSUMER.DELETED.S.C"]);
    assert!(!bench.consumers.has("C"));
}

#[test]
fn who_reads_all_values_has_not_come_to_the_end_while_one_is_being_changed() {
    let mut bench = Bench::new(&json!({"max_msgs_per_subject": 1}));
    ["s.a", "s.b", "s.a"].into_iter().for_each(|subject| bench.store(subject));
    bench.stream.staged = 1;
    bench.remove(1, 1);
    let config = json!({"deliver_subject":"d","deliver_policy":"last_per_subject",
        "ack_policy":"none","filter_subject":"s.>"});
    assert_eq!(bench.create("C", &config).unwrap()["num_pending"], 2);
    let left = |bench: &mut Bench| {
        let deliveries = bench.deliveries();
        deliveries.iter().map(|it| (it.sequence, it.pending)).collect::<Vec<_>>()
    };
    assert_eq!(left(&mut bench), [(2, 1)]);
    // It changes once more before that.
    bench.store("s.a");
    bench.stream.staged = 2;
    bench.remove(3, 3);
    assert_eq!(bench.info("C")["num_pending"], 1);
    assert_eq!(left(&mut bench), []);
    bench.stream.staged = 0;
    bench.consumers.on_stored();
    assert_eq!(left(&mut bench), [(4, 0)]);
}

#[test]
fn the_consumer_of_a_copy_looks_for_its_listener_of_whose_account_nobody_hears() {
    let mut bench = Bench::with(&["s"]);
    bench.stream.deaf.insert(b"d".to_vec());
    let config = json!({"direct":true,"deliver_subject":"d","idle_heartbeat":SECOND,
        "inactive_threshold":10 * SECOND});
    bench.create("C", &config).unwrap();
    assert!(bench.seen().is_empty() && bench.wait().is_empty());
    bench.stream.deaf.clear();
    let seen: Vec<String> = (0..3).flat_map(|_| bench.wait()).collect();
    assert!(seen.contains(&"d:1".to_owned()), "{seen:?}");
    bench.stream.deaf.insert(b"d".to_vec());
    let left_at = bench.now.mono;
    while bench.consumers.has("C") {
        assert!(bench.wait().is_empty(), "nobody listens");
    }
    assert!(bench.now.mono <= left_at + 11 * SECOND);
}
