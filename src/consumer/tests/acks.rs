//! Acknowledgements and what is delivered again.

use super::*;

fn delivered(config: &Value, count: usize) -> (Bench, Vec<Delivery>) {
    let mut bench = Bench::with(&[]);
    (0..count).for_each(|_| bench.store("s"));
    bench.create("C", config).unwrap();
    bench.run();
    bench.pull("C", "in", &json!({"batch":count,"expires":60 * SECOND}).to_string());
    let deliveries = bench.deliveries();
    (bench, deliveries)
}

fn explicit() -> Value {
    json!({"durable_name":"C","ack_policy":"explicit"})
}

fn confirms(outputs: &[ConsumerOutput]) -> Vec<bool> {
    let confirm = |output: &ConsumerOutput| match output {
        ConsumerOutput::Confirm { waits, .. } => Some(*waits),
        _ => None,
    };
    outputs.iter().filter_map(confirm).collect()
}

#[test]
fn an_acknowledgement_is_confirmed_behind_its_record() {
    let (mut bench, deliveries) = delivered(&explicit(), 3);
    bench.ack(&deliveries[0], "+ACK", Some("r"));
    bench.ack(&deliveries[1], "", None);
    while bench.consumers.poll(bench.now, &mut bench.stream) {}
    let outputs: Vec<_> = std::iter::from_fn(|| bench.consumers.next_output()).collect();
    let [ConsumerOutput::Keep(record), confirm] = &outputs[..] else { panic!("{outputs:?}") };
    let reply = Bytes::from_static(b"r");
    assert_eq!(*confirm, ConsumerOutput::Confirm { reply, waits: true });
    assert!(record.len() < 40, "{}", record.len());
    bench.ack(&deliveries[0], "+ACK", Some("r"));
    assert_eq!(confirms(&bench.run()), [true], "twice acknowledged is confirmed, too");
    let info = bench.info("C");
    assert_eq!(
        (&info["num_ack_pending"], &info["ack_floor"]["stream_seq"]),
        (&json!(1), &json!(2))
    );
}

#[test]
fn what_was_never_delivered_is_not_acknowledged() {
    let (mut bench, deliveries) = delivered(&explicit(), 2);
    bench.store("s");
    let ahead = Delivery { sequence: 3, consumer_sequence: 3, ..deliveries[0].clone() };
    bench.ack(&ahead, "+ACK", Some("r"));
    assert!(confirms(&bench.run()).is_empty());
    bench.pull("C", "in", "1");
    assert_eq!(bench.seen(), ["in:3"]);
    bench.create("N", &json!({"ack_policy":"none"})).unwrap();
    let about = AckSubject::parse(b"$JS.ACK.S.N.1.1.1.1.1").unwrap();
    let ack = AckMessage { about, reply: None, body: b"" };
    assert!(!bench.consumers.on_ack(&ack, bench.now, &mut bench.stream));
    let about = AckSubject { consumer: b"none", ..about };
    let ack = AckMessage { about, ..ack };
    assert!(!bench.consumers.on_ack(&ack, bench.now, &mut bench.stream));
}

#[test]
fn a_message_whose_wait_ends_is_delivered_again() {
    let config = json!({"durable_name":"C","ack_policy":"explicit","ack_wait":500 * MILLISECOND});
    let (mut bench, _) = delivered(&config, 1);
    for deliveries in 2..4 {
        bench.pull("C", "in", "1");
        assert!(bench.deliveries().is_empty());
        bench.pass(500 * MILLISECOND);
        let again = bench.deliveries().remove(0);
        assert_eq!((again.deliveries, again.consumer_sequence), (deliveries, deliveries));
        assert_eq!((again.sequence, again.pending), (1, 0));
    }
    assert_eq!(bench.info("C")["num_redelivered"], 1);
    let earlier = Delivery {
        consumer: "C".into(),
        to: Bytes::new(),
        queue: None,
        sequence: 1,
        deliveries: 1,
        consumer_sequence: 1,
        time: 0,
        pending: 0,
        headers_only: false,
        pin: None,
    };
    bench.ack(&earlier, "+ACK", Some("r"));
    assert_eq!(confirms(&bench.run()), [true]);
    let info = bench.info("C");
    assert_eq!((&info["num_ack_pending"], &info["num_redelivered"]), (&json!(0), &json!(0)));
    assert_eq!(info["ack_floor"]["consumer_seq"], 3);
}

#[test]
fn a_refused_message_comes_at_once_or_after_its_delay() {
    let (mut bench, deliveries) = delivered(&explicit(), 2);
    bench.pull("C", "in", r#"{"batch":10,"expires":10000000000}"#);
    bench.ack(&deliveries[0], "-NAK", Some("r"));
    let outputs = bench.run();
    assert_eq!(outputs.iter().filter_map(short).collect::<Vec<_>>(), ["in:1*"]);
    assert_eq!(confirms(&outputs), [false]);
    bench.ack(&deliveries[1], "-NAK {\"delay\":700000000}", None);
    assert!(bench.seen().is_empty());
    bench.pass(699 * MILLISECOND);
    assert!(bench.seen().is_empty());
    bench.pass(MILLISECOND);
    assert_eq!(bench.seen(), ["in:2*"]);
    bench.ack(&deliveries[1], "-NAK soon", None);
    let outputs = bench.run();
    let ConsumerOutput::Advise(advisory) = &outputs[0] else { panic!("{outputs:?}") };
    assert_eq!(advisory.subject("S"), "$JS.EVENT.ADVISORY.CONSUMER.MSG_NAKED.S.C");
    assert_eq!(short(&outputs[1]).unwrap(), "in:2*");
}

#[test]
fn refused_messages_come_in_the_order_of_their_refusal_and_before_new_ones() {
    let (mut bench, deliveries) = delivered(&explicit(), 2);
    bench.store("s");
    bench.ack(&deliveries[1], "-NAK", None);
    bench.ack(&deliveries[0], "-NAK", None);
    bench.pull("C", "in", "3");
    assert_eq!(bench.seen(), ["in:2*", "in:1*", "in:3"]);
}

#[test]
fn work_in_progress_begins_the_wait_anew() {
    let config = json!({"durable_name":"C","ack_policy":"explicit","ack_wait":SECOND});
    let (mut bench, deliveries) = delivered(&config, 1);
    bench.pull("C", "in", "1");
    bench.pass(600 * MILLISECOND);
    bench.ack(&deliveries[0], "+WPI", Some("r"));
    assert_eq!(confirms(&bench.run()), [false]);
    bench.pass(900 * MILLISECOND);
    assert!(bench.seen().is_empty());
    bench.pass(100 * MILLISECOND);
    assert_eq!(bench.seen(), ["in:1*"]);
}

#[test]
fn a_terminated_message_never_comes_again() {
    let config = json!({"durable_name":"C","ack_policy":"explicit","ack_wait":SECOND});
    let (mut bench, deliveries) = delivered(&config, 2);
    bench.ack(&deliveries[0], "+TERM bad format", Some("r"));
    bench.ack(&deliveries[1], "+TERM", None);
    let outputs = bench.run();
    assert_eq!(confirms(&outputs), [true]);
    let ConsumerOutput::Advise(advisory) = &outputs[0] else { panic!("{outputs:?}") };
    let ConsumerEvent::Terminated(about, reason) = &advisory.event else { panic!() };
    assert_eq!((about.sequence, about.deliveries, &**reason), (1, 1, "bad format"));
    bench.pull("C", "in", "1");
    bench.pass(2 * SECOND);
    assert!(bench.seen().is_empty());
    assert_eq!(bench.info("C")["ack_floor"]["stream_seq"], 2);
}

#[test]
fn next_acknowledges_and_asks_for_more() {
    let (mut bench, deliveries) = delivered(&explicit(), 1);
    (0..3).for_each(|_| bench.store("s"));
    bench.ack(&deliveries[0], "+NXT {\"batch\":2,\"no_wait\":true}", Some("more"));
    assert_eq!(bench.seen(), ["more:2", "more:3"]);
    let second = Delivery { sequence: 2, consumer_sequence: 2, ..deliveries[0].clone() };
    bench.ack(&second, "+NXT", Some("more"));
    assert_eq!(bench.seen(), ["more:4"]);
    assert_eq!(bench.info("C")["ack_floor"]["stream_seq"], 2);
}

#[test]
fn one_acknowledgement_is_for_all_up_to_it_if_that_is_the_policy() {
    let (mut bench, deliveries) = delivered(&json!({"durable_name":"C","ack_policy":"all"}), 4);
    bench.ack(&deliveries[2], "+ACK", Some("r"));
    assert_eq!(confirms(&bench.run()), [true]);
    let info = bench.info("C");
    assert_eq!(
        (&info["num_ack_pending"], &info["ack_floor"]["stream_seq"]),
        (&json!(1), &json!(3))
    );
    bench.ack(&deliveries[1], "+ACK", Some("r"));
    assert_eq!(confirms(&bench.run()), [true], "it is acknowledged already");
    let beyond = Delivery { consumer_sequence: u64::MAX, ..deliveries[3].clone() };
    bench.ack(&beyond, "+ACK", None);
    bench.run();
    assert_eq!(bench.info("C")["ack_floor"]["consumer_seq"], 4);
}

#[test]
fn a_message_is_given_up_after_its_last_delivery() {
    let config = json!({"durable_name":"C","ack_policy":"explicit","max_deliver":2,
        "ack_wait":300 * MILLISECOND});
    let (mut bench, _) = delivered(&config, 1);
    bench.pull("C", "in", "9");
    bench.pass(300 * MILLISECOND);
    assert_eq!(bench.seen(), ["in:1*"]);
    bench.pass(300 * MILLISECOND);
    let outputs = bench.run();
    let ConsumerOutput::Advise(advisory) = &outputs[0] else { panic!("{outputs:?}") };
    assert_eq!(advisory.subject("S"), "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.S.C");
    let ConsumerEvent::MaxDeliveries(about) = advisory.event else { panic!() };
    assert_eq!((about.sequence, about.deliveries), (1, 2));
    bench.pass(SECOND);
    assert!(bench.seen().is_empty());
    let info = bench.info("C");
    assert_eq!((&info["num_ack_pending"], &info["num_redelivered"]), (&json!(0), &json!(1)));
    assert_eq!(info["ack_floor"], json!({"consumer_seq":0,"stream_seq":0}));
    assert_eq!(info["delivered"]["consumer_seq"], 2);
}

#[test]
fn a_refusal_after_the_last_delivery_gives_a_message_up() {
    let config = json!({"durable_name":"C","ack_policy":"explicit","max_deliver":1});
    let (mut bench, deliveries) = delivered(&config, 1);
    bench.pull("C", "in", "1");
    bench.ack(&deliveries[0], "-NAK", None);
    let events = bench.events();
    assert_eq!(events.last().unwrap(), "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.S.C");
    assert_eq!(bench.info("C")["num_redelivered"], 0);
}

#[test]
fn waits_grow_with_the_deliveries() {
    let config = json!({"durable_name":"C","ack_policy":"explicit","max_deliver":4,
        "backoff":[300 * MILLISECOND, SECOND]});
    let (mut bench, _) = delivered(&config, 1);
    bench.pull("C", "in", "9");
    for wait in [300 * MILLISECOND, SECOND, SECOND] {
        bench.pass(wait - MILLISECOND);
        assert!(bench.seen().is_empty());
        bench.pass(MILLISECOND);
        assert_eq!(bench.seen(), ["in:1*"]);
    }
    bench.pass(SECOND);
    assert!(bench.seen().is_empty());
}

#[test]
fn delivered_is_acknowledged_without_a_policy() {
    let (mut bench, _) = delivered(&json!({"durable_name":"C","ack_policy":"none"}), 2);
    let info = bench.info("C");
    let floor = json!({"consumer_seq":2,"stream_seq":2});
    assert_eq!((&info["ack_floor"], &info["num_ack_pending"]), (&floor, &json!(0)));
}

#[test]
fn a_sample_of_acknowledgements_is_published() {
    let config = json!({"durable_name":"C","ack_policy":"explicit","sample_freq":"100%"});
    let (mut bench, deliveries) = delivered(&config, 1);
    bench.pass(5);
    bench.ack(&deliveries[0], "+ACK", None);
    let outputs = bench.run();
    let ConsumerOutput::Advise(advisory) = &outputs[0] else { panic!("{outputs:?}") };
    assert!(matches!(advisory.event, ConsumerEvent::Acknowledged(_, 5)));
}

#[test]
fn a_removed_message_is_waited_for_no_more() {
    let (mut bench, _) = delivered(&explicit(), 3);
    bench.remove(1, 1);
    let outputs = bench.run();
    let ConsumerOutput::Advise(advisory) = &outputs[0] else { panic!("{outputs:?}") };
    let ConsumerEvent::Terminated(_, reason) = &advisory.event else { panic!() };
    assert_eq!(&**reason, "Unacknowledged message was deleted");
    let info = bench.info("C");
    assert_eq!(
        (&info["num_ack_pending"], &info["ack_floor"]["stream_seq"]),
        (&json!(2), &json!(1))
    );
}

#[test]
fn who_works_on_a_message_keeps_the_consumer() {
    let mut bench = Bench::with(&["s"]);
    let config = json!({"ack_policy":"explicit","ack_wait":10 * SECOND,
        "inactive_threshold":SECOND});
    bench.create("C", &config).unwrap();
    bench.pull("C", "in", "1");
    assert_eq!(bench.seen(), ["in:1"]);
    bench.pass(9 * SECOND);
    bench.run();
    assert!(bench.consumers.has("C"));
    bench.pass(SECOND);
    bench.run();
    assert!(bench.consumers.has("C"));
    bench.pass(SECOND);
    bench.run();
    assert!(!bench.consumers.has("C"));
}

#[test]
fn what_a_purge_takes_is_told_to_nobody_and_consumers_go_on_behind_it() {
    let mut bench = Bench::with(&["s.a", "s.b", "s.a"]);
    for (name, filter) in [("all", ">"), ("a", "s.a"), ("b", "s.b")] {
        let config = json!({"durable_name":name,"ack_policy":"explicit","filter_subject":filter});
        bench.create(name, &config).unwrap();
        bench.pull(name, "in", "2");
    }
    bench.run();
    bench.purge("s.a");
    let outputs = bench.run();
    assert!(!outputs.iter().any(|output| matches!(output, ConsumerOutput::Advise(_))));
    let positions = |bench: &mut Bench, name: &str| {
        let info = bench.info(name);
        let floor = info["ack_floor"]["stream_seq"].as_u64().unwrap();
        (floor, info["num_ack_pending"].as_u64().unwrap())
    };
    assert_eq!(positions(&mut bench, "all"), (1, 1), "one of another subject still waits");
    assert_eq!(positions(&mut bench, "a"), (3, 0));
    assert_eq!(positions(&mut bench, "b"), (0, 1), "a purge of other subjects is none of its own");
}

#[test]
fn who_has_read_nothing_goes_on_behind_a_purge_of_one_message() {
    let mut bench = Bench::with(&["s"]);
    bench.create("C", &explicit()).unwrap();
    bench.purge("");
    let info = bench.info("C");
    assert_eq!(
        (&info["delivered"]["stream_seq"], &info["ack_floor"]["stream_seq"]),
        (&json!(1), &json!(1))
    );
    bench.store("s");
    bench.pull("C", "in", "1");
    assert_eq!(bench.seen(), ["in:2"]);
}
