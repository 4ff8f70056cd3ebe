//! Streams that keep messages for their consumers.

use super::*;

fn removed(outputs: &[ConsumerOutput]) -> Vec<u64> {
    let removable = |output: &ConsumerOutput| match output {
        ConsumerOutput::Removable(sequences) => Some(sequences.clone()),
        _ => None,
    };
    outputs.iter().filter_map(removable).flatten().collect()
}

fn kept(bench: &Bench) -> Vec<u64> {
    bench.stream.all().map(|(sequence, _)| sequence).collect()
}

fn queue() -> Bench {
    Bench::new(&json!({"retention":"workqueue","subjects":["w.>"]}))
}

fn interest() -> Bench {
    Bench::new(&json!({"retention":"interest","subjects":["i.>"]}))
}

fn durable(bench: &mut Bench, name: &str, more: &Value) {
    let mut config = json!({"durable_name":name,"ack_policy":"explicit"});
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    bench.create(name, &config).unwrap();
    bench.run();
}

#[test]
fn acknowledged_messages_leave_a_work_queue_behind_their_record() {
    let mut bench = queue();
    (0..3).for_each(|_| bench.store("w.a"));
    durable(&mut bench, "C", &json!({}));
    bench.pull("C", "in", "2");
    let deliveries = bench.deliveries();
    bench.ack(&deliveries[1], "+ACK", Some("r"));
    while bench.consumers.poll(bench.now, &mut bench.stream) {}
    let outputs: Vec<_> = std::iter::from_fn(|| bench.consumers.next_output()).collect();
    let kinds: Vec<_> = outputs
        .iter()
        .map(|output| match output {
            ConsumerOutput::Keep(_) => "keep",
            ConsumerOutput::Confirm { .. } => "confirm",
            ConsumerOutput::Removable(_) => "remove",
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(kinds, ["keep", "confirm", "remove"]);
    assert_eq!(removed(&outputs), [2]);
    bench.ack(&deliveries[0], "+TERM", None);
    assert!(removed(&bench.run()).is_empty(), "it is kept soon");
    bench.pass(10 * MILLISECOND);
    assert_eq!(removed(&bench.run()), [1]);
}

#[test]
fn consumers_of_a_work_queue_share_no_message() {
    let mut bench = queue();
    let mut refused = |config: Value| bench.create("C", &config).unwrap_err().err_code;
    assert_eq!(refused(json!({"ack_policy":"none"})), 10084);
    assert_eq!(refused(json!({"ack_policy":"all"})), 10098);
    assert_eq!(refused(json!({"ack_policy":"explicit","deliver_policy":"new"})), 10101);
    durable(&mut bench, "A", &json!({"filter_subject":"w.a"}));
    let mut refused = |filter: Value| {
        let mut config = json!({"ack_policy":"explicit"});
        config.as_object_mut().unwrap().extend(filter.as_object().unwrap().clone());
        bench.create("D", &config).unwrap_err().err_code
    };
    assert_eq!(refused(json!({})), 10099);
    assert_eq!(refused(json!({"filter_subject":"w.>"})), 10100);
    durable(&mut bench, "B", &json!({"filter_subject":"w.b"}));
    let config = json!({"durable_name":"B","ack_policy":"explicit","filter_subject":"w.*"});
    assert_eq!(bench.create("B", &config).unwrap_err().err_code, 10100);
    assert!(bench.consumers.wants(b"w.a") && !bench.consumers.wants(b"w.c"));
}

#[test]
fn a_message_goes_when_all_that_are_interested_have_acknowledged_it() {
    let mut bench = interest();
    durable(&mut bench, "C1", &json!({}));
    durable(&mut bench, "C2", &json!({"filter_subject":"i.a"}));
    bench.store("i.a");
    bench.store("i.b");
    bench.pull("C1", "in", "2");
    let deliveries = bench.deliveries();
    for delivery in &deliveries {
        bench.ack(delivery, "+ACK", Some("r"));
    }
    assert_eq!(removed(&bench.run()), [2]);
    bench.pull("C2", "in", "1");
    let delivery = bench.deliveries().remove(0);
    bench.ack(&delivery, "", Some("r"));
    assert_eq!(removed(&bench.run()), [1]);
}

#[test]
fn the_last_one_interested_releases_messages_when_it_goes() {
    let mut bench = interest();
    durable(&mut bench, "C1", &json!({"filter_subject":"i.a"}));
    durable(&mut bench, "C2", &json!({}));
    for subject in ["i.a", "i.b", "i.a", "i.b"] {
        bench.store(subject);
    }
    bench.consumers.delete("C2", bench.now).unwrap();
    assert_eq!(removed(&bench.run()), [2, 4]);
    let config = json!({"durable_name":"C1","ack_policy":"explicit","filter_subject":"i.c"});
    bench.create("C1", &config).unwrap();
    assert_eq!(removed(&bench.run()), [1, 3]);
    bench.store("i.c");
    bench.consumers.delete("C1", bench.now).unwrap();
    assert_eq!(removed(&bench.run()), [5]);
}

#[test]
fn policies_without_acknowledgement_of_each_message_let_messages_go_too() {
    let mut bench = interest();
    bench.create("A", &json!({"durable_name":"A","ack_policy":"all"})).unwrap();
    (0..3).for_each(|_| bench.store("i.a"));
    bench.pull("A", "in", "3");
    let deliveries = bench.deliveries();
    bench.ack(&deliveries[1], "", Some("r"));
    assert_eq!(removed(&bench.run()), [1, 2]);
    bench.consumers.delete("A", bench.now).unwrap();
    bench.run();
    bench.create("N", &json!({"durable_name":"N","ack_policy":"none"})).unwrap();
    bench.store("i.a");
    bench.pull("N", "in", "1");
    assert_eq!(bench.deliveries().len(), 1);
    bench.pass(SECOND);
    bench.run();
    assert!(kept(&bench).is_empty());
}

#[test]
fn a_stream_that_keeps_its_messages_now_loses_none() {
    let mut bench = interest();
    durable(&mut bench, "C", &json!({"filter_subject":"i.b"}));
    (0..600).for_each(|_| bench.store("i.a"));
    bench.consumers.on_stream_updated(about(&bench.config));
    assert!(bench.consumers.poll(bench.now, &mut bench.stream));
    bench.config.retention = crate::stream::Retention::Limits;
    bench.consumers.on_stream_updated(about(&bench.config));
    bench.run();
    assert!(kept(&bench).len() > 300, "the walk has ended");
}

#[test]
fn a_message_that_was_given_up_stays() {
    let mut bench = interest();
    durable(&mut bench, "C1", &json!({"max_deliver":1,"ack_wait":SECOND}));
    durable(&mut bench, "C2", &json!({}));
    bench.store("i.a");
    bench.pull("C1", "in", "1");
    bench.run();
    bench.pass(SECOND);
    bench.run();
    bench.pull("C2", "in", "1");
    let delivery = bench.deliveries().remove(0);
    bench.ack(&delivery, "", Some("r"));
    assert!(removed(&bench.run()).is_empty());
    bench.consumers.delete("C1", bench.now).unwrap();
    assert_eq!(removed(&bench.run()), [1]);
}

#[test]
fn what_was_acknowledged_before_a_crash_leaves_after_it() {
    let mut bench = queue();
    (0..3).for_each(|_| bench.store("w.a"));
    durable(&mut bench, "C", &json!({}));
    bench.pull("C", "in", "2");
    let deliveries = bench.deliveries();
    bench.ack(&deliveries[0], "", Some("r"));
    let before = bench.stream.messages.clone();
    bench.run();
    // The record was kept, the removal was not.
    bench.stream.messages = before;
    bench.restart();
    assert_eq!(removed(&bench.run()), [1]);
    assert_eq!(kept(&bench), [2, 3]);
}
