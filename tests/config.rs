//! The configuration file against nats-server: which files `-t` takes, and which keys there are.
//!
//! The halves that start nats-server hundreds of times are ignored here; CI runs them.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

const OURS: &str = env!("CARGO_BIN_EXE_shardcast");
const ORIGINAL: &str = "nats-server";
/// Checks that run at one time.
const WORKERS: usize = 4;

#[test]
fn the_files_that_nats_server_takes_are_taken() {
    files_are_taken_by(OURS, |mark| matches!(mark, '+' | '<'));
}

#[test]
#[ignore = "hundreds of starts of nats-server, which CI has the time for"]
fn nats_server_takes_those_files() {
    require_original();
    files_are_taken_by(ORIGINAL, |mark| matches!(mark, '+' | '>'));
}

fn files_are_taken_by(program: &str, is_taken: impl Fn(char) -> bool + Sync) {
    let files: Vec<(char, String)> =
        include_str!("config/files.txt").lines().filter_map(case).collect();
    assert!(files.len() > 400, "{} files", files.len());
    let wrong = in_parallel(&files, |dir, (mark, text)| {
        assert!("+-<>".contains(*mark), "{mark} is no mark");
        let (taken, said) = check(program, dir, text);
        if taken == is_taken(*mark) {
            return Vec::new();
        }
        vec![format!("{mark} {text:?}: it says {said}")]
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_key_of_nats_server_is_known() {
    every_key_is_known_to(OURS);
}

#[test]
#[ignore = "hundreds of starts of nats-server, which CI has the time for"]
fn every_key_in_the_list_is_one_of_nats_server() {
    require_original();
    every_key_is_known_to(ORIGINAL);
}

fn every_key_is_known_to(program: &str) {
    let mut place = "";
    let mut keys = Vec::new();
    for line in include_str!("config/keys.txt").lines().filter(|line| !line.starts_with('#')) {
        match line.strip_prefix("    ") {
            Some(names) => keys.extend(names.split(' ').map(|key| (place, key))),
            None => place = line,
        }
    }
    assert!(keys.len() > 300, "{} keys", keys.len());
    let wrong = in_parallel(&keys, |dir, (place, key)| {
        // A number is not what most of them want; that is another complaint.
        let text = place.replace('@', &format!("\n{key}: 1\n"));
        let known = !check(program, dir, &text).1.contains("unknown field");
        if known { Vec::new() } else { vec![format!("{key} in {place}")] }
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_key_that_is_not_known_is_named_with_place_and_the_nearest_one_also_within_other_blocks() {
    let dir = tempfile::tempdir().unwrap();
    for (text, complaint) in [
        ("max_paylod: 1", ":1:1: unknown field \"max_paylod\"; did you mean \"max_payload\"?"),
        ("cluster {\n prot: 1\n}", ":2:2: unknown field \"prot\"; did you mean \"port\"?"),
        (
            "jetstream {\n  max_memm: 1\n}",
            ":2:3: unknown field \"max_memm\"; did you mean \"max_mem\"?",
        ),
        (
            "leafnodes { remotes: [\n{ ulr: a }] }",
            ":2:3: unknown field \"ulr\"; did you mean \"url\"?",
        ),
    ] {
        let (taken, said) = check(OURS, dir.path(), text);
        assert!(!taken && said.trim_end().ends_with(complaint), "{said}");
    }
}

#[test]
fn what_has_no_effect_is_named_with_its_place_and_does_not_make_the_check_fail() {
    let dir = tempfile::tempdir().unwrap();
    let (taken, said) = check(OURS, dir.path(), "debug: true\njetstream { store_dir: a }\n");
    assert!(taken, "{said}");
    assert!(
        said.contains("t.conf:2:1: jetstream is not supported yet and has no effect"),
        "{said}"
    );
    assert!(said.contains(" is valid (sha256:"), "{said}");
}

#[test]
fn a_file_without_any_key_is_a_mistake_for_the_check() {
    let dir = tempfile::tempdir().unwrap();
    let (taken, said) = check(OURS, dir.path(), "# nothing\n");
    assert!(!taken && said.contains("config has no values or is empty"), "{said}");
}

/// A line of the corpus: its mark, and the file.
fn case(line: &str) -> Option<(char, String)> {
    let (mark, escaped) = line.split_once(' ')?;
    let mark = mark.chars().next().filter(|mark| "+-><".contains(*mark))?;
    let mut text = String::new();
    let mut rest = escaped.chars();
    while let Some(c) = rest.next() {
        text.push(match c {
            '\\' => match rest.next() {
                Some('n') => '\n',
                Some('r') => '\r',
                Some('t') => '\t',
                Some('u') => {
                    let digits: String = rest.by_ref().skip(1).take_while(|c| *c != '}').collect();
                    u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32).unwrap()
                }
                Some('\\') => '\\',
                other => panic!("{other:?} after \\ in {line}"),
            },
            other => other,
        });
    }
    Some((mark, text))
}

/// Whether `program` takes a file of this text, and what it says.
fn check(program: &str, dir: &Path, text: &str) -> (bool, String) {
    let path = dir.join("t.conf");
    fs::write(&path, text).unwrap();
    for (name, text) in [
        ("port.conf", "INCPORT: 4333\ndebug: true\n"),
        ("bad.conf", "a: }\n"),
        ("login.conf", "user: a, password: b\n"),
    ] {
        fs::write(dir.join(name), text).unwrap();
    }
    let mut command = Command::new(program);
    command.arg("-t").arg("-c").arg(&path).env_remove("CONF_UNSET");
    for (name, value) in [
        ("CONF_PORT", "4333"),
        ("CONF_NAME", "joe"),
        ("CONF_LIST", "[a, b]"),
        ("CONF_EMPTY", ""),
        ("CONF_SIZE", "1MB"),
    ] {
        command.env(name, value);
    }
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).replace(&*dir.to_string_lossy(), "");
    (output.status.success(), said)
}

fn require_original() {
    let version = Command::new(ORIGINAL).arg("-v").stdout(Stdio::null()).status();
    assert!(version.is_ok_and(|status| status.success()), "nats-server is not on the PATH");
}

fn in_parallel<T: Sync>(
    cases: &[T],
    check: impl Fn(&Path, &T) -> Vec<String> + Sync,
) -> Vec<String> {
    let part = cases.len().div_ceil(WORKERS);
    std::thread::scope(|scope| {
        let worker = |cases| {
            let check = &check;
            scope.spawn(move || {
                let dir = tempfile::tempdir().unwrap();
                <[T]>::iter(cases).flat_map(|case| check(dir.path(), case)).collect::<Vec<_>>()
            })
        };
        let workers: Vec<_> = cases.chunks(part).map(worker).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    })
}
