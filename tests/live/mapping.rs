//! Subject mappings beside nats-server: what it makes of subjects, we do.

use crate::broker::wire::Wire;
use crate::broker::{Broker, has_original, is_nats_server, shard_counts};

/// Rules of one configuration. Each has a first token of its own, as nats-server applies any one
/// of those that match.
const RULES: usize = 250;
/// Subjects for each of them.
const SUBJECTS: usize = 12;

const TOKENS: [&str; 10] = ["a", "b", "ab", "a-b", "abcde", "*", ">", "-x-", "--", "x-y-z-0-1-2"];
const FUNCTIONS: [&str; 16] = [
    "x",
    "$1",
    "$2",
    "$0",
    "{{wildcard(2)}}",
    "{{partition(5)}}",
    "{{partition(1000,1)}}",
    "{{partition(3,2,1)}}",
    "{{split(1,-)}}",
    "{{splitFromLeft(1,2)}}",
    "{{SplitFromRight(2,1)}}",
    "{{sliceFromLeft(1,2)}}",
    "{{slicefromright(1,2)}}",
    "{{left(1,1)}}",
    "{{ Right ( 2 , 3 ) }}",
    "{{random(1)}}",
];

#[test]
fn subjects_become_what_nats_server_makes_of_them() {
    if is_nats_server() || !has_original() {
        return;
    }
    for seed in 0..3 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (rules, subjects) = rules(&mut rng);
        let config = format!("mappings {{\n{rules}}}\n");
        let expected = becomes(&Broker::original(&config), &subjects);
        for &shards in shard_counts() {
            let found = becomes(&Broker::with_config(shards, &config), &subjects);
            for ((subject, found), expected) in subjects.iter().zip(found).zip(&expected) {
                assert_eq!(found, *expected, "{subject} (seed {seed}) of\n{rules}");
            }
        }
    }
}

#[test]
fn weights_divide_messages_and_leave_them_in_order() {
    const MESSAGES: usize = 5000;
    let config = "mappings { foo: [
        {dest: bar, weight: 30}, {dest: \"baz.{{random(2)}}\", weight: 20}
    ] }";
    for &shards in shard_counts() {
        let broker = Broker::with_config(shards, config);
        let became = becomes(&broker, &vec!["foo".to_owned(); MESSAGES]);
        for (subject, expected) in [("bar", 1500), ("baz.0", 500), ("baz.1", 500), ("foo", 2500)] {
            let count = became.iter().filter(|became| became.as_deref() == Some(subject)).count();
            assert!(count.abs_diff(expected) < 200, "{count} of {expected} became {subject}");
        }
    }
}

/// Lines of a configuration, and subjects for them.
fn rules(rng: &mut fastrand::Rng) -> (String, Vec<String>) {
    let mut lines = String::new();
    let mut subjects = Vec::new();
    for number in 0..RULES {
        let tokens = rng.usize(1..5);
        let stars: Vec<bool> = (0..tokens).map(|_| rng.bool()).collect();
        let rest = rng.bool();
        let count = stars.iter().filter(|star| **star).count();
        let mut source = format!("r{number}");
        stars.iter().for_each(|star| source += if *star { ".*" } else { ".a" });
        let mut destination = format!("d{number}");
        let usable = match count {
            0 if rest => 6..6,
            0 => 0..1,
            _ => 0..16,
        };
        for _ in 0..rng.usize(1..5) {
            let function =
                if usable.is_empty() { "x" } else { FUNCTIONS[rng.usize(usable.clone())] };
            let needs_two = function.contains('2') && !function.contains("(1,2)");
            destination += ".";
            destination += if needs_two && count < 2 { "{{left(1,1)}}" } else { function };
        }
        if rest {
            source += ".>";
            destination += ".>";
        }
        lines += &format!("  \"{source}\": \"{destination}\"\n");
        for _ in 0..SUBJECTS {
            let mut subject = format!("r{number}");
            for star in &stars {
                subject += ".";
                // Now and then one that the rule does not concern.
                let concerned = rng.u8(..20) > 0;
                subject +=
                    if *star || !concerned { TOKENS[rng.usize(..TOKENS.len())] } else { "a" };
            }
            for _ in 0..rng.usize(..3) {
                subject += ".";
                subject += TOKENS[rng.usize(..TOKENS.len())];
            }
            subjects.push(subject);
        }
    }
    (lines, subjects)
}

/// The subjects under which messages on `subjects` arrive, if they do, in the order of publishing.
fn becomes(broker: &Broker, subjects: &[String]) -> Vec<Option<String>> {
    let mut publisher = Wire::connect(broker);
    let mut subscriber = Wire::connect(broker);
    subscriber.send(b"SUB > 1\r\n");
    subscriber.sync();
    let mut arrived = vec![None; subjects.len()];
    let wire: String = (0..subjects.len())
        .map(|at| {
            let text = at.to_string();
            format!("PUB {} {}\r\n{text}\r\n", subjects[at], text.len())
        })
        .collect();
    publisher.send(wire.as_bytes());
    publisher.sync();
    subscriber.send(b"PING\r\n");
    let mut next = 0;
    loop {
        let line = subscriber.line();
        if line == "PONG" {
            return arrived;
        }
        let subject = line.split(' ').nth(1).expect("it is a message").to_owned();
        let number = subscriber.line().parse::<usize>().expect("its number");
        assert!(number >= next, "{number} comes before {next}");
        next = number + 1;
        arrived[number] = Some(subject);
    }
}
