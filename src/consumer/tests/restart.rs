//! Consumers that are found again after a restart.

use super::*;

#[test]
fn positions_survive_and_what_waited_comes_again() {
    let mut bench = Bench::with(&["s", "s", "s", "s", "s"]);
    let config = json!({"durable_name":"D","ack_policy":"explicit","ack_wait":60 * SECOND,
        "metadata":{"a":"b"}});
    bench.create("D", &config).unwrap();
    bench.pull("D", "in", "3");
    let deliveries = bench.deliveries();
    bench.ack(&deliveries[0], "", Some("r"));
    bench.ack(&deliveries[2], "", Some("r"));
    bench.run();
    bench.restart();
    let info = bench.info("D");
    assert_eq!(info["delivered"], json!({"consumer_seq":3,"stream_seq":3}));
    assert_eq!(info["ack_floor"], json!({"consumer_seq":1,"stream_seq":1}));
    assert_eq!((&info["num_ack_pending"], &info["num_pending"]), (&json!(1), &json!(2)));
    assert_eq!(info["config"]["metadata"]["a"], "b");
    assert_eq!(info["created"], "2023-11-14T22:13:20Z");
    bench.pull("D", "in", "9");
    let deliveries = bench.deliveries();
    let numbers: Vec<_> =
        deliveries.iter().map(|it| (it.sequence, it.consumer_sequence, it.pending)).collect();
    assert_eq!(numbers, [(4, 4, 1), (5, 5, 0)]);
    bench.pass(60 * SECOND);
    let again = bench.deliveries();
    assert_eq!((again[0].sequence, again[0].deliveries), (2, 2));
}

#[test]
fn waits_and_counts_go_on_where_they_were() {
    let mut bench = Bench::with(&["s"]);
    let config = json!({"durable_name":"D","ack_policy":"explicit","ack_wait":10 * SECOND});
    bench.create("D", &config).unwrap();
    bench.pull("D", "in", "1");
    bench.run();
    bench.pass(10 * SECOND);
    bench.pull("D", "in", "1");
    assert_eq!(bench.seen(), ["in:1*"]);
    bench.pass(7 * SECOND);
    bench.run();
    bench.restart();
    assert_eq!(bench.info("D")["num_redelivered"], 1);
    bench.pull("D", "in", "1");
    assert!(bench.seen().is_empty());
    bench.pass(2 * SECOND);
    assert!(bench.seen().is_empty());
    bench.pass(SECOND);
    let again = bench.deliveries().remove(0);
    assert_eq!((again.deliveries, again.consumer_sequence), (3, 3));
}

#[test]
fn consumers_in_memory_are_lost_and_others_are_not() {
    let mut bench = Bench::with(&["s"]);
    let file = json!({"ack_policy":"explicit"});
    let memory = json!({"durable_name":"DM","mem_storage":true});
    bench.create("EF", &file).unwrap();
    bench.create("DM", &memory).unwrap();
    bench.create("P", &json!({"durable_name":"P","deliver_subject":"d"})).unwrap();
    bench.create("X", &file).unwrap();
    bench.consumers.delete("X", bench.now).unwrap();
    assert_eq!(bench.seen(), ["d:1"]);
    bench.pass(SECOND);
    bench.restart();
    let names: Value = serde_json::from_slice(&bench.consumers.list_names(b"").unwrap()).unwrap();
    assert_eq!(names["consumers"], json!(["EF", "P"]));
    bench.store("s");
    assert_eq!(bench.seen(), ["d:2"], "the first one had been delivered");
    bench.pass(10 * SECOND);
    bench.run();
    assert!(!bench.consumers.has("EF") && bench.consumers.has("P"));
}

#[test]
fn a_snapshot_replaces_all_records_before_it() {
    let mut bench = Bench::with(&["s", "s", "s"]);
    for name in ["A", "B"] {
        bench.create(name, &json!({"durable_name":name,"ack_policy":"explicit"})).unwrap();
        bench.pull(name, "in", "2");
    }
    let deliveries = bench.deliveries();
    bench.ack(&deliveries[0], "", Some("r"));
    bench.run();
    let infos = [bench.info("A"), bench.info("B")];
    bench.records = bench.consumers.snapshot(bench.now);
    bench.ack(&deliveries[3], "", Some("r"));
    bench.run();
    bench.restart();
    assert_eq!(bench.info("A")["ack_floor"]["stream_seq"], infos[0]["ack_floor"]["stream_seq"]);
    assert_eq!(bench.info("A")["num_ack_pending"], 1);
    assert_eq!(bench.info("B")["num_ack_pending"], 1);
}

#[test]
fn a_record_that_is_not_kept_at_once_comes_again_before_its_confirmation() {
    let mut bench = Bench::with(&["s"]);
    bench.create("C", &json!({"durable_name":"C","ack_policy":"explicit"})).unwrap();
    bench.pull("C", "in", "1");
    let delivery = bench.deliveries().remove(0);
    bench.ack(&delivery, "", Some("r"));
    // A snapshot that is not kept takes nothing away.
    assert!(!bench.consumers.snapshot(bench.now).is_empty());
    while bench.consumers.poll(bench.now, &mut bench.stream) {}
    let record = bench.consumers.next_output().unwrap();
    assert!(matches!(record, ConsumerOutput::Keep(_)));
    bench.consumers.put_back(record.clone(), bench.now);
    assert!(bench.consumers.has_outputs());
    assert!(bench.consumers.next_deadline().is_some());
    assert_eq!(bench.consumers.next_output(), Some(record));
    assert!(matches!(bench.consumers.next_output(), Some(ConsumerOutput::Confirm { .. })));
}

#[test]
fn last_messages_of_subjects_that_were_not_delivered_come_after_it() {
    let mut bench = Bench::with(&["s.a", "s.b", "s.a", "s.b", "s.c"]);
    let config = json!({"durable_name":"L","ack_policy":"explicit",
        "deliver_policy":"last_per_subject","filter_subject":"s.*"});
    bench.create("L", &config).unwrap();
    bench.pull("L", "in", "1");
    assert_eq!(bench.seen(), ["in:3"]);
    bench.pass(SECOND);
    bench.restart();
    bench.store("s.d");
    assert_eq!(bench.info("L")["num_pending"], 3);
    bench.pull("L", "in", "9");
    assert_eq!(bench.seen(), ["in:4", "in:5", "in:6"]);
}

#[test]
fn a_stream_that_has_lost_messages_is_followed_from_its_end() {
    let mut bench = Bench::with(&["s", "s", "s", "s"]);
    bench.create("C", &json!({"durable_name":"C","ack_policy":"explicit"})).unwrap();
    bench.pull("C", "in", "4");
    bench.run();
    bench.pass(SECOND);
    bench.run();
    bench.stream.messages.truncate(2);
    bench.restart();
    assert_eq!(bench.info("C")["num_ack_pending"], 2);
    bench.store("s");
    bench.pull("C", "in", "1");
    assert_eq!(bench.seen(), ["in:3"]);
}

#[test]
fn damaged_records_are_refused_and_hurt_nothing() {
    let mut bench = Bench::with(&["s"]);
    bench.create("C", &json!({"durable_name":"C","ack_policy":"explicit"})).unwrap();
    bench.run();
    let record = bench.records[0].clone();
    for end in 1..record.len() {
        let mut consumers = Consumers::new(about(&bench.config), ConsumerRules::default(), 1);
        consumers.restore(&record[..end]);
        consumers.start(bench.now, &mut bench.stream);
        consumers.poll(bench.now, &mut bench.stream);
    }
    assert!(!bench.consumers.restore(b"") && !bench.consumers.restore(b"\x63"));
}
