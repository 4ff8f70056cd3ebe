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
fn files_in_the_documents_are_taken_as_they_are_printed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pages = fs::read_dir(root.join("docs")).unwrap().map(|page| page.unwrap().path());
    let pages: Vec<_> = pages.chain([root.join("README.md")]).collect();
    let texts = pages.iter().map(|page| fs::read_to_string(page).unwrap());
    let files: Vec<String> = texts.flat_map(|text| printed(&text)).collect();
    assert!(files.len() > 10, "{} files", files.len());
    let wrong = in_parallel(&files, |dir, text| {
        let (taken, said) = check(OURS, dir, text);
        if taken { Vec::new() } else { vec![format!("{text}it says {said}")] }
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The configuration files in a page, which are marked as such.
fn printed(page: &str) -> Vec<String> {
    let blocks = page.split("```conf\n").skip(1);
    blocks.filter_map(|block| Some(block.split_once("```")?.0.to_owned())).collect()
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
        (
            "mqtt { port: \"1883\" }",
            ":1:14: port is a whole number, such as 1024 or 1MB, without quotes",
        ),
        ("jetstream { store_dir: 5 }", ":1:24: store_dir is text; put it in quotes"),
        ("gateway { reject_unknown: x }", ":1:27: reject_unknown is true or false, without quotes"),
        ("jetstream: yesplease", ":1:12: jetstream is enabled, disabled, or a block { … }"),
    ] {
        let (taken, said) = check(OURS, dir.path(), text);
        assert!(!taken && said.trim_end().ends_with(complaint), "{said}");
    }
}

#[test]
fn all_mistakes_of_a_file_are_told_at_once_each_at_its_place() {
    let text = "\
max_paylod: 1
port: 99999
server_name: \"a b\"
debug: $CONF_UNSET
accounts {
  A { exports: [{stream: \"a..b\"}, {servce: x}, 5], users: [{user: u}, {user: u}] }
  B { mappings { m: 7 }, jetstream { max_memm: 1 } }
}
no_auth_user: nobody
ping_interval: \"3\"
cluster {
  port: x
  routes: [\"a\", \"nats://b:1\", 3]
  permissions { import: [\"d e f\", \"x..\"], exprt: a }
}
tls { timeout: no }
jetstream { limits { batchh: 1 }, max_mem: 99999999999999999999 }
overflow { a: never, \"b..\": conflate }
max_payload: 100
lame_duck_grace_period: \"3m\"
system_account: X
mqtt { prot: 1";
    let wanted = [
        "t.conf:1:1: unknown field \"max_paylod\"; did you mean \"max_payload\"?",
        "t.conf:2:7: port is a port from 0 to 65535, or -1 for any free port",
        "t.conf:4:8: variable $CONF_UNSET is neither a key above nor in the environment",
        "t.conf:6:26: \"a..b\" is not a valid subject",
        "t.conf:6:36: unknown field \"servce\"; did you mean \"service\"?",
        "t.conf:6:48: exports is a block { … }",
        "t.conf:6:71: duplicate user \"u\"; keep one",
        "t.conf:7:21: a mapping is a subject, or a list of destinations, as in \
         m: [{destination: a, weight: 10%}]",
        "t.conf:7:38: unknown field \"max_memm\"; did you mean \"max_mem\"?",
        "t.conf:10:16: invalid duration \"3\": expected a unit of ns, us, ms, s, m or h, \
         as in \"1m30s\"",
        "t.conf:12:9: port is a whole number, such as 1024 or 1MB, without quotes",
        "t.conf:13:12: a route is nats-route://host:port, perhaps with user:password@",
        "t.conf:13:31: routes is text; put it in quotes",
        "t.conf:14:26: \"d e f\" is not a valid subject",
        "t.conf:14:35: \"x..\" is not a valid subject",
        "t.conf:14:43: unknown field \"exprt\"; did you mean \"export\"?",
        "t.conf:16:16: timeout is a duration in quotes, such as \"1m30s\"",
        "t.conf:17:22: unknown field \"batchh\"; did you mean \"batch\"?",
        "t.conf:17:44: number 99999999999999999999 is out of range",
        "t.conf:18:15: no such overflow policy; it is drop_newest, drop_oldest or conflate",
        "t.conf:18:22: \"b..\" is not a valid subject",
        "t.conf:22:15: expected }, not the end of the file",
    ];
    assert_eq!(mistakes(text), wanted);
}

#[test]
fn what_does_not_go_together_is_told_with_its_place_beside_mistakes_elsewhere() {
    let text = "\
zzz: 1
server_name: \"a b\"
no_auth_user: nobody
max_payload: 100KB
max_pending: 10KB
lame_duck_grace_period: \"3m\"
accounts {
  A { exports: [{stream: a}, {service: b, accounts: [C, D]}] }
  B { imports: [{stream: {account: A, subject: a}}, {stream: {account: A, subject: q}}] }
}
system_account: X
cluster { name: \"a b\", routes: [\"nats://b:1\"] }
listen_unix { path: a, peers: [{uid: 0, user: who}] }";
    let wanted = [
        "t.conf:1:1: unknown field \"zzz\"",
        "t.conf:2:1: server name \"a b\" cannot contain spaces",
        "t.conf:3:1: no_auth_user \"nobody\" is not in users; add it there",
        "t.conf:4:1: max_payload (102400) cannot be higher than max_pending (10240)",
        "t.conf:6:1: lame_duck_grace_period (180000 ms) must be less than lame_duck_duration \
         (120000 ms)",
        "t.conf:8:30: \"C\" account not defined for service export \"b\" of account \"A\"",
        "t.conf:8:30: \"D\" account not defined for service export \"b\" of account \"A\"",
        "t.conf:9:53: stream import \"q\" of account \"B\": stream import not authorized: \
         no export of account \"A\" allows it",
        "t.conf:11:1: system_account \"X\" is not in accounts; add it there",
        "t.conf:12:11: cluster name \"a b\" cannot contain spaces",
        "t.conf:12:24: routes need a port where other servers reach this one; name it in \
         cluster { port: … } or with --cluster",
        "t.conf:13:41: peer \"who\" is not in users; add it there",
    ];
    assert_eq!(mistakes(text), wanted);
}

#[test]
fn mistakes_of_included_files_are_told_after_those_of_the_including_one() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("users.conf"), "users: [\n  {usr: a}\n]\n}").unwrap();
    let text = "port: 1\nauthorization { include users.conf }\ninclude missing.conf\n\
                no_auth_user: $later\nport: x";
    let wanted = [
        "t.conf:3:9: cannot read /missing.conf: No such file or directory (os error 2)",
        "t.conf:5:7: port is a whole number, such as 1024 or 1MB, without quotes",
        "users.conf:2:4: unknown field \"usr\"; did you mean \"user\"?",
        "users.conf:4:1: expected a key, not '}'",
    ];
    assert_eq!(mistakes_beside(dir.path(), text), wanted);
}

#[test]
fn of_very_many_mistakes_a_hundred_are_told_and_the_rest_is_counted() {
    let text: String = (0..400).map(|n| format!("zzzzz{n}: 1\n")).collect();
    let lines = mistakes(&text);
    assert_eq!(lines.len(), 101);
    assert_eq!(lines[100], "300 more mistakes; mend these first");
}

/// What is wrong with a file of this text, a line each.
fn mistakes(text: &str) -> Vec<String> {
    mistakes_beside(tempfile::tempdir().unwrap().path(), text)
}

fn mistakes_beside(dir: &Path, text: &str) -> Vec<String> {
    let (taken, said) = check(OURS, dir, text);
    assert!(!taken, "{said}");
    let line = |line: &str| line.trim_start_matches("shardcast: ").trim_start_matches('/').into();
    said.lines().map(line).collect()
}

#[test]
fn what_has_no_effect_is_named_with_its_place_and_does_not_make_the_check_fail() {
    let dir = tempfile::tempdir().unwrap();
    let (taken, said) = check(OURS, dir.path(), "debug: true\nprof_port: 1\n");
    assert!(taken, "{said}");
    assert!(
        said.contains("t.conf:2:1: prof_port is not supported yet and has no effect"),
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
