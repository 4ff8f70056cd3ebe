//! Tests of transforms against nats-server's results, and against a naive implementation.

use proptest::prelude::*;

use super::*;
use crate::subject::{has_empty_token, matches};

fn applied(source: &str, destination: &str, subject: &str) -> Option<String> {
    let transform = Transform::new(source.as_bytes(), destination.as_bytes()).unwrap();
    let mut out = Vec::new();
    let mut rng = fastrand::Rng::with_seed(1);
    transform.apply(subject.as_bytes(), &mut rng, &mut out).then(|| String::from_utf8(out).unwrap())
}

#[test]
fn functions_give_what_nats_server_gives() {
    // Results of nats-server 2.15; one with an empty token reaches no subscriber there.
    for (source, destination, subject, expected) in [
        ("*", "$0", "a", "a"),
        ("*.*", "x.$-1", "a.b", "x.a"),
        ("*", "x.$+1", "a", "x.a"),
        ("*", "x.{{partition(10)}}", "foo", "x.3"),
        ("foo.*", "x.{{partition(10)}}", "foo.a", "x.2"),
        ("foo.*", "x.{{partition(10,1)}}", "foo.a", "x.0"),
        ("foo.bar", "x.{{partition(1000)}}", "foo.bar", "x.261"),
        ("foo.>", "x.{{partition(1000)}}.>", "foo.bar.baz", "x.615.bar.baz"),
        ("foo.*", "x.{{partition(0,1)}}", "foo.a", "x.0"),
        ("foo.*", "x.{{partition(-1,1)}}", "foo.a", "x.3826002220"),
        ("*.*.*", "x.{{partition(1000,1,3,2)}}", "foo.bar.baz", "x.549"),
        ("*.*.*", "x.{{ Partition ( 1000 , 3,3 ) }}", "a.b.c", "x.707"),
        ("*", "x.{{}}", "a", "x.{{}}"),
        ("*", "x.{{split(1,)}}", "abc", "x.a.b.c"),
        ("*", "x.{{split(1,-)}}", "a-b-c", "x.a.b.c"),
        ("*", "x.{{split(1,-)}}", "-a-b-", "x.a.b"),
        ("*", "x.{{split(1,-)}}", "a--b", "x.a.b"),
        ("*", "x.{{split(1,-)}}", "---a", "x..a"),
        ("*", "x.{{split(1,-)}}", "--", "x."),
        ("*", "x.{{split(1,--)}}", "a---b", "x.a.-b"),
        ("*", "x.{{splitFromLeft(1,2)}}", "abcd", "x.ab.cd"),
        ("*", "x.{{splitFromLeft(1,2)}}", "ab", "x.ab"),
        ("*", "x.{{splitfromright(1,2)}}", "abc", "x.a.bc"),
        ("*", "x.{{sliceFromLeft(1,3)}}", "abcdefgh", "x.abc.def.gh"),
        ("*", "x.{{SliceFromRight(1,3)}}", "abcdefgh", "x.ab.cde.fgh"),
        ("*", "x.{{sliceFromRight(1,-1)}}", "abc", "x.abc"),
        ("*", "x.{{left(1,2)}}", "abc", "x.ab"),
        ("*", "x.{{right(1,2)}}", "abc", "x.bc"),
        ("*", "x.{{right(1,0)}}", "abc", "x.abc"),
        ("foo", "x.{{random(0)}}", "foo", "x.0"),
        ("*", "x.x{{wildcard(1)}}", "a", "x.x{{wildcard(1)}}"),
        ("foo", "x.$x", "foo", "x.$x"),
        ("foo.*.>", ">", "foo.a.b.c", "b.c"),
        ("foo.*.>", "$1.>", "foo.a.b.c", "a.b.c"),
        ("*", "x.{{split(1,.)}}", "abc", "x.{{split(1,.)}}"),
    ] {
        let found = applied(source, destination, subject);
        assert_eq!(found.as_deref(), Some(expected), "{source} to {destination}");
    }
    assert_eq!(applied("foo.*", "x.$1", "foo.>"), None);
    assert_eq!(applied("foo.*", "x.$1", "foo."), None);
}

#[test]
fn errors_are_those_of_nats_server() {
    for (source, destination, expected) in [
        ("foo.*", "bar.$2", "wildcard index out of range in $2: [2]"),
        ("foo", "bar.$1", "wildcard index out of range in $1"),
        (
            "foo.*",
            "bar.{{partition(10,2)}}",
            "wildcard index out of range in {{partition(10,2)}}: [2]",
        ),
        (
            "foo.*",
            "bar.{{wildcard()}}",
            "not enough arguments passed to the function in {{wildcard()}}",
        ),
        (
            "foo.*",
            "bar.{{split(1,-,x)}}",
            "too many arguments passed to the function in {{split(1,-,x)}}",
        ),
        (
            "foo.*",
            "bar.{{random(5,1)}}",
            "not enough arguments passed to the function in {{random(5,1)}}",
        ),
        ("foo.*", "bar.{{WILDCARD(1)}}", "unknown function in {{WILDCARD(1)}}"),
        ("foo.*", "bar.{{partition}}", "unknown function in {{partition}}"),
        ("foo.*", "bar.{{1}}", "unknown function in {{1}}"),
        ("foo", "bar..x", "invalid transform"),
        ("foo", "b ar", "invalid transform"),
        ("foo", "", "invalid transform"),
        ("a.*", "b.>.c.$1", "invalid transform in c"),
    ] {
        let error = Transform::new(source.as_bytes(), destination.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), format!("invalid mapping destination: {}", expected));
    }
    for destination in [
        "{{wildcard(a)}}",
        "{{partition()}}",
        "{{partition(2147483648,1)}}",
        "{{left(,1)}}",
        "{{left(1,2147483648)}}",
        "{{split(1,- )}}",
        "{{wildcard(1))}}",
    ] {
        let error = Transform::new(b"*", destination.as_bytes()).unwrap_err();
        assert_eq!(error, bad(BAD_ARGUMENT, destination.as_bytes()));
    }
    for (source, destination) in
        [("a.*", "b.*"), ("a.*", "b.>"), ("a.>", "b"), ("a", "b.>"), ("a..", "b")]
    {
        let error = Transform::new(source.as_bytes(), destination.as_bytes());
        assert_eq!(error, Err(TransformError::BadSubject), "{source} to {destination}");
    }
}

#[test]
fn an_import_may_move_tokens_but_neither_compute_nor_lose_them() {
    assert!(Transform::strict(b"a.*.*", b"b.$2.$1").is_ok());
    assert!(Transform::strict(b"a.*.>", b"$1.>").is_ok());
    assert_eq!(Transform::strict(b"a.*", b"b"), Err(TransformError::UnusedWildcards));
    assert!(Transform::strict(b"a.*", b"b.{{left(1,2)}}.$1").is_err());
}

#[test]
fn filters_go_through_a_transform() {
    for (source, destination, filter, image) in [
        ("a.*", "b.$1", "a.>", Some("b.*")),
        ("a.*", "b.$1", "*.x", Some("b.x")),
        ("a.*", "b.$1", "c.*", None),
        ("a.>", "b.>", "a.*.x", Some("b.*.x")),
        ("*.*", "$2.$1", "x.*", Some("*.x")),
        ("a.*", "b.{{left(1,1)}}", "a.xy", Some("b.x")),
        ("a.*", "b.{{left(1,1)}}", "a.*", Some("b.*")),
        ("a.*", "b.{{split(1,-)}}", "a.*", None),
    ] {
        let transform = Transform::new(source.as_bytes(), destination.as_bytes()).unwrap();
        let found = transform.apply_filter(filter.as_bytes());
        assert_eq!(found.as_deref(), image.map(str::as_bytes), "{source} {filter}");
    }
}

fn name() -> impl Strategy<Value = String> {
    let token = prop::sample::select(vec!["a", "b", "ab", "a-b", "abcde"]);
    prop::collection::vec(token, 1..5).prop_map(|tokens| tokens.join("."))
}

fn filter() -> impl Strategy<Value = String> {
    let token = prop::sample::select(vec!["a", "b", "ab", "*", "*"]);
    (prop::collection::vec(token, 1..4), any::<bool>()).prop_map(|(mut tokens, rest)| {
        if rest {
            tokens.push(">");
        }
        tokens.join(".")
    })
}

fn destination() -> impl Strategy<Value = String> {
    let token = prop::sample::select(vec![
        "x",
        "a",
        "$1",
        "$2",
        "{{wildcard(1)}}",
        "{{partition(5)}}",
        "{{partition(7,2,1)}}",
        "{{split(1,-)}}",
        "{{splitFromLeft(1,2)}}",
        "{{splitFromRight(2,1)}}",
        "{{sliceFromLeft(1,2)}}",
        "{{sliceFromRight(1,2)}}",
        "{{left(1,1)}}",
        "{{right(2,3)}}",
    ]);
    (prop::collection::vec(token, 1..4), any::<bool>()).prop_map(|(mut tokens, rest)| {
        if rest {
            tokens.push(">");
        }
        tokens.join(".")
    })
}

fn moves() -> impl Strategy<Value = String> {
    let token = prop::sample::select(vec!["x", "a", "$1", "$2", "$3"]);
    (prop::collection::vec(token, 1..5), any::<bool>()).prop_map(|(mut tokens, rest)| {
        if rest {
            tokens.push(">");
        }
        tokens.join(".")
    })
}

/// Transforms a subject by text alone: names and arguments of functions are parsed for each
/// subject, and all values are lists of strings.
fn naive(source: &str, destination: &str, subject: &str) -> Option<String> {
    if !matches(source.as_bytes(), subject.as_bytes()) {
        return None;
    }
    let given: Vec<&str> = subject.split('.').collect();
    let mut stars = vec![given[0]];
    let wanted: Vec<&str> = source.split('.').collect();
    stars.extend((0..wanted.len()).filter(|at| wanted[*at] == "*").map(|at| given[at]));
    let mut made: Vec<String> = Vec::new();
    for token in destination.split('.') {
        if token == ">" {
            made.extend(given[wanted.len() - 1..].iter().map(|token| (*token).to_owned()));
        } else if let Some(number) = token.strip_prefix('$') {
            made.push(stars[number.parse::<usize>().unwrap()].to_owned());
        } else if let Some((name, arguments)) =
            token.trim_matches(['{', '}']).trim_end_matches(')').split_once('(')
        {
            let arguments: Vec<&str> = arguments.split(',').collect();
            let number = |at: usize| arguments[at].parse::<usize>().unwrap();
            let star: Vec<char> = stars[number(0).min(stars.len() - 1)].chars().collect();
            let mut pieces = match name {
                "wildcard" => vec![star],
                "partition" => {
                    let chosen: String = (1..arguments.len()).map(|at| stars[number(at)]).collect();
                    let of = if arguments.len() == 1 { subject } else { &chosen };
                    let mut hash = 2_166_136_261_u64;
                    for byte in of.bytes() {
                        hash = (hash ^ u64::from(byte)) * 16_777_619 % (1 << 32);
                    }
                    vec![(hash % number(0) as u64).to_string().chars().collect()]
                }
                "split" => star.split(|c| *c == '-').map(<[_]>::to_vec).collect(),
                "splitFromLeft" => {
                    let at = number(1).min(star.len());
                    vec![star[..at].to_vec(), star[at..].to_vec()]
                }
                "splitFromRight" => {
                    let at = star.len() - number(1).min(star.len());
                    vec![star[..at].to_vec(), star[at..].to_vec()]
                }
                "sliceFromLeft" => star.chunks(number(1)).map(<[_]>::to_vec).collect(),
                "sliceFromRight" => star.rchunks(number(1)).rev().map(<[_]>::to_vec).collect(),
                "left" => vec![star.into_iter().take(number(1)).collect()],
                _ => vec![star[star.len() - number(1).min(star.len())..].to_vec()],
            };
            pieces.retain(|piece| !piece.is_empty());
            made.extend(pieces.into_iter().map(|piece| piece.into_iter().collect::<String>()));
        } else {
            made.push(token.to_owned());
        }
    }
    Some(made.join("."))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn a_compiled_transform_agrees_with_taking_it_apart_each_time(
        source in filter(), destination in destination(), subject in name(),
    ) {
        let Ok(transform) = Transform::new(source.as_bytes(), destination.as_bytes()) else {
            return Ok(());
        };
        prop_assume!(source.contains(['*', '>']));
        let mut out = Vec::new();
        let mut rng = fastrand::Rng::with_seed(1);
        let found = transform.apply(subject.as_bytes(), &mut rng, &mut out);
        let expected = naive(&source, &destination, &subject);
        prop_assert_eq!(found.then(|| String::from_utf8(out).unwrap()), expected);
        prop_assert!(transform.is_certain());
    }

    #[test]
    fn filters_follow_their_subjects(
        source in filter(), destination in moves(), wanted in filter(), subject in name(),
    ) {
        let Ok(transform) = Transform::new(source.as_bytes(), destination.as_bytes()) else {
            return Ok(());
        };
        let (wanted, subject) = (wanted.as_bytes(), subject.as_bytes());
        let mut image = Vec::new();
        if !transform.apply(subject, &mut fastrand::Rng::with_seed(1), &mut image) {
            return Ok(());
        }
        // Every subject of a filter has its image in the filter's.
        if matches(wanted, subject) {
            let through = transform.apply_filter(wanted);
            prop_assert!(through.is_some_and(|filter| matches(&filter, &image)));
        }
        if let Some(back) = transform.reversed() {
            let mut again = Vec::new();
            prop_assert!(back.apply(&image, &mut fastrand::Rng::with_seed(1), &mut again));
            prop_assert_eq!(&again[..], subject);
        }
    }

    #[test]
    fn no_text_makes_it_panic(
        source in filter(),
            destination in "[a{}$(),.*> 0-9lefspitrndom-]{0,24}",
        subject in name(),
    ) {
        if let Ok(transform) = Transform::new(source.as_bytes(), destination.as_bytes()) {
            let mut out = Vec::new();
            transform.apply(subject.as_bytes(), &mut fastrand::Rng::with_seed(1), &mut out);
            transform.apply_filter(subject.as_bytes());
            transform.reversed();
            prop_assert!(out.is_empty() || !has_empty_token(&out));
        }
    }
}
