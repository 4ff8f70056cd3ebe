use super::super::tail::Tail;
use super::*;
use crate::record::checksum::LogKey;
use crate::record::record::{LogRecord, StreamId};

fn message(sequence: u64, subject: &[u8]) -> StoredMessage<'_> {
    StoredMessage { sequence, time: 0, flags: 0, subject, headers: b"", payload: b"" }
}

/// Adds messages with the subjects that `name` gives, as they come from a log.
fn filled(count: u64, name: impl Fn(u64) -> String) -> (Stream, Tail) {
    let mut stream = Stream::new(RandomState::with_seeds(1, 2, 3, 4));
    let mut tail = Tail::new(LogKey(1), 1, usize::MAX);
    for sequence in 1..=count {
        let subject = name(sequence);
        let message = message(sequence, subject.as_bytes());
        let place = tail.stage(StreamId(1), &LogRecord::Message(message)).unwrap();
        stream.append(&message, Staged { commit: 1, place });
    }
    (stream, tail)
}

#[test]
fn a_message_takes_twenty_eight_bytes_and_a_subject_seventy_five() {
    const COUNT: u32 = 250_000;
    let (one, _) = filled(COUNT.into(), |_| "orders.new".to_owned());
    let (all, _) = filled(COUNT.into(), |number| format!("orders.region.{number:010}.updated"));
    let bytes = |stream: &Stream| u32::try_from(stream.memory_bytes()).map(f64::from).unwrap();
    let of_message = bytes(&one) / f64::from(COUNT);
    let of_subject = (bytes(&all) - bytes(&one)) / f64::from(COUNT);
    assert!((28.0..28.5).contains(&of_message), "{of_message} bytes a message");
    assert!((70.0..75.0).contains(&of_subject), "{of_subject} bytes a subject");
}

#[test]
fn a_stream_of_one_message_is_small() {
    let (stream, _) = filled(1, |_| "a".to_owned());
    assert!(stream.memory_bytes() < 1024, "{} bytes", stream.memory_bytes());
}

#[test]
fn memory_is_given_back_with_the_messages() {
    let (mut stream, _) = filled(5000, |number| format!("a.{number}"));
    stream.commit(1);
    let full = stream.memory_bytes();
    for sequence in 1..=5000 {
        assert!(stream.remove(sequence).is_some());
    }
    assert!(stream.memory_bytes() < full / 20, "{} bytes", stream.memory_bytes());
    assert_eq!(stream.state(), StreamState { first: 5001, last: 5000, ..StreamState::default() });
}

#[test]
fn the_number_of_a_subject_that_is_gone_is_used_again_for_no_message_of_it() {
    let (mut stream, mut tail) = filled(4, |number| format!("a.{}", number % 2));
    stream.remove(1);
    stream.remove(3);
    assert_eq!(stream.newest_of(b"a.1"), None);
    let place = tail.stage(StreamId(1), &LogRecord::Message(message(5, b"b"))).unwrap();
    stream.append(&message(5, b"b"), Staged { commit: 1, place });
    stream.commit(1);
    let state = SubjectState { first: 5, last: 5, messages: 1 };
    assert_eq!(stream.subject(b"b"), Some(state));
    assert_eq!(stream.state().subjects, 2);
    assert_eq!(stream.next(&[b"b"], 1, &mut 9), NextMessage::Found(5));
    assert_eq!(stream.subjects_from(0).count(), 2);
}

#[test]
fn a_search_takes_no_more_steps_than_it_may_and_goes_on_where_it_was() {
    let (mut stream, _) = filled(1000, |number| format!("a.{number}"));
    stream.commit(1);
    let (mut from, mut calls) = (1, 0);
    let found = loop {
        calls += 1;
        match stream.next(&[b"*.990", b"a.*.c"], from, &mut 100) {
            NextMessage::Later(at) => from = at,
            found => break found,
        }
    };
    assert_eq!((found, calls), (NextMessage::Found(990), 10));
    let mut steps = 100;
    assert_eq!(stream.next(&[b"a.990"], 1, &mut steps), NextMessage::Found(990));
    assert!(steps > 90, "a subject that is rare is not searched for");
}
