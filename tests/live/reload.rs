//! Changing the configuration of a running server, as its operator and its clients see it.
//!
//! Where nats-server can reload the setting in question, these tests hold for it too.

use rustix::process::Signal;

use crate::broker::wire::Wire;
use crate::broker::{Broker, is_nats_server, shard_counts};

const VIOLATION: &[u8] = b"-ERR 'Authorization Violation'\r\n";

fn login(broker: &Broker, connect: &str) -> Wire {
    let mut wire = Wire::open(broker);
    wire.send(format!("CONNECT {connect}\r\n").as_bytes());
    wire.sync();
    wire
}

fn reloaded(broker: &mut Broker, config: &str) {
    let line = broker.reload(config);
    assert!(line.contains("Reloaded server configuration"), "{line}");
}

#[test]
fn when_credentials_are_asked_for_those_who_never_showed_any_are_cut_and_the_others_stay() {
    for &shards in shard_counts() {
        let mut broker = Broker::with_config(shards, "");
        let mut silent = Wire::open(&broker);
        let mut nameless: Vec<Wire> = (0..4).map(|_| Wire::connect(&broker)).collect();
        let ann = r#"{"verbose":false,"user":"ann","pass":"secret"}"#;
        let mut known: Vec<Wire> = (0..4).map(|_| login(&broker, ann)).collect();
        let mut wrong = login(&broker, r#"{"verbose":false,"user":"ann","pass":"guess"}"#);
        reloaded(&mut broker, "authorization { users: [{user: ann, password: secret}] }");
        for wire in nameless.iter_mut().chain([&mut silent]) {
            wire.expect(VIOLATION);
            wire.expect_end();
        }
        let last = wrong.drain_to_end();
        let refused = last.is_empty() || last == VIOLATION;
        assert!(refused, "{}", String::from_utf8_lossy(&last));
        for wire in &mut known {
            wire.sync();
        }
    }
}

#[test]
fn whoever_is_no_user_any_more_is_cut_and_who_still_is_one_stays() {
    for &shards in shard_counts() {
        let both = "authorization { users: [{user: ann, password: a}, {user: bob, password: b}] }";
        let mut broker = Broker::with_config(shards, both);
        let mut ann = login(&broker, r#"{"verbose":false,"user":"ann","pass":"a"}"#);
        let mut bob = login(&broker, r#"{"verbose":false,"user":"bob","pass":"b"}"#);
        reloaded(&mut broker, "authorization { users: [{user: bob, password: b}] }");
        ann.expect_end();
        bob.sync();
        reloaded(&mut broker, "authorization { users: [{user: bob, password: other}] }");
        bob.expect(VIOLATION);
        bob.expect_end();
    }
}

#[test]
fn above_a_lower_max_connections_the_oldest_are_closed_and_no_more_come_in() {
    for &shards in shard_counts() {
        let mut broker = Broker::with_config(shards, "max_connections: 10\n");
        let mut old: Vec<Wire> = (0..3).map(|_| Wire::connect(&broker)).collect();
        let mut young: Vec<Wire> = (0..2).map(|_| Wire::connect(&broker)).collect();
        reloaded(&mut broker, "max_connections: 2\n");
        for wire in &mut old {
            wire.expect(b"-ERR 'maximum connections exceeded'\r\n");
            wire.expect_end();
        }
        young.iter_mut().for_each(Wire::sync);
        let mut late = Wire::open(&broker);
        late.expect(b"-ERR 'maximum connections exceeded'\r\n");
        assert!(broker.banner().contains("Closed 3 connections to fall within max_connections"));
    }
}

#[test]
fn a_new_max_payload_holds_for_open_connections() {
    for &shards in shard_counts() {
        let mut broker = Broker::with_config(shards, "max_payload: 1000\n");
        let mut wire = Wire::connect(&broker);
        let mut told = Wire::open(&broker);
        told.send(b"CONNECT {\"verbose\":false,\"protocol\":1}\r\nPING\r\n");
        told.expect(b"PONG\r\n");
        assert!(told.line().starts_with("INFO {"));
        reloaded(&mut broker, "max_payload: 100\n");
        // The original tells only those who come.
        told.sync();
        wire.send(b"PUB a 101\r\n");
        wire.expect(b"-ERR 'Maximum Payload Violation'\r\n");
        let info = Wire::ungreeted(&broker).line();
        assert!(info.contains("\"max_payload\":100,"), "{info}");
    }
}

#[test]
fn a_shorter_ping_interval_holds_for_open_connections() {
    for &shards in shard_counts() {
        let mut broker = Broker::with_config(shards, "ping_interval: \"10m\"\n");
        let mut wire = Wire::connect(&broker);
        reloaded(&mut broker, "ping_interval: \"50ms\"\nping_max: 1\n");
        // It answers nothing, which the server notices after two intervals; with the old
        // interval this would not come before the test gives up.
        let last = wire.drain_to_end();
        let text = String::from_utf8_lossy(&last);
        assert!(text.ends_with("PING\r\n-ERR 'Stale Connection'\r\n"), "{text}");
    }
}

#[test]
fn a_client_that_is_owed_more_than_a_lower_max_pending_is_cut() {
    if is_nats_server() {
        return; // It cannot reload this.
    }
    for &shards in shard_counts() {
        let mut broker = Broker::with_config(shards, "max_pending: 64MB\n");
        let mut lazy = Wire::open_narrow(&broker);
        lazy.send(b"CONNECT {\"verbose\":false}\r\nSUB big 1\r\n");
        lazy.sync();
        let mut source = Wire::connect(&broker);
        let message = [&b"PUB big 500000\r\n"[..], &[b'x'; 500_000], b"\r\n"].concat();
        (0..20).for_each(|_| source.send(&message));
        source.sync();
        reloaded(&mut broker, "max_pending: 1MB\n");
        let log = broker.banner();
        assert!(log.contains("Slow Consumer Detected: MaxPending of 1048576 Exceeded"), "{log}");
        source.sync();
    }
}

#[test]
fn an_invalid_file_changes_nothing_and_the_log_says_why() {
    let mut broker = Broker::with_config(1, "max_payload: 1000\n");
    let mut wire = Wire::connect(&broker);
    for (config, reason) in [
        ("max_payload: 10\nnosuch: 1\n", "unknown field \"nosuch\""),
        ("max_payload: 10\na {\n", "Failed"),
        ("max_payload: 10\nno_auth_user: nobody\nauthorization { user: a, password: b }", "Failed"),
    ] {
        let line = broker.reload(config);
        assert!(line.contains("[ERR] Failed to reload server configuration: "), "{line}");
        assert!(line.contains(reason), "{line}");
        wire.send(b"PUB a 11\r\nhello world\r\n");
        wire.sync();
    }
}

#[test]
fn all_mistakes_of_a_reloaded_file_are_logged() {
    if is_nats_server() {
        return; // It puts them all into one line.
    }
    let mut broker = Broker::with_config(1, "");
    broker.reconfigure("max_payload: 10\nnosuch: 1\nping_max: a\n");
    for mistake in [":2:1: unknown field \"nosuch\"", ":3:11: ping_max is a whole number"] {
        let line = broker.wait_for_line("Failed to reload server configuration: ");
        assert!(line.contains("[ERR] ") && line.contains(mistake), "{mistake}\n{line}");
    }
}

#[test]
fn an_empty_file_takes_nothing_away() {
    if is_nats_server() {
        return; // It lets everybody in.
    }
    let mut broker = Broker::with_config(1, "authorization { user: ann, password: secret }");
    for config in ["", "# written anew\n", "{}"] {
        let line = broker.reload(config);
        let reason = "[ERR] Failed to reload server configuration: the file is empty";
        assert!(line.contains(reason), "{line}");
        let mut stranger = Wire::ungreeted(&broker);
        stranger.line();
        stranger.send(b"CONNECT {}\r\nPING\r\n");
        stranger.expect(b"-ERR 'Authorization Violation'\r\n");
    }
}

#[test]
fn a_reload_that_only_a_restart_could_carry_out_fails_in_plain_words() {
    if is_nats_server() {
        return; // It has other words.
    }
    let mut broker = Broker::with_config(1, "debug: true");
    for (more, words) in [
        (
            "cluster { name: C, listen: \"127.0.0.1:-1\" }",
            "cluster: this server is no member of one",
        ),
        ("server_name: other", "server_name: from none to \"other\""),
        ("http: \"127.0.0.1:8222\"", "http: from none to http://127.0.0.1:8222"),
    ] {
        let line = broker.reload(&format!("debug: true\n{more}"));
        let failed = "[ERR] Failed to reload server configuration: a reload does not change ";
        assert!(line.contains(failed), "{line}");
        assert!(line.contains(words), "{line}");
        assert!(!line.contains("Some(") && !line.contains("None"), "{line}");
    }
    assert!(!broker.banner().contains("Reloaded: "), "{}", broker.banner());
}

#[test]
fn what_needs_a_restart_is_named_and_the_rest_applies() {
    if is_nats_server() {
        return; // It refuses the whole file.
    }
    let mut broker = Broker::with_config(2, "");
    reloaded(&mut broker, "server_name: other\nhttp: 127.0.0.1:-1\nmax_payload: 100\n");
    let log = broker.banner();
    for name in ["server_name: ", "http: "] {
        let warning = format!("[WRN] Reload does not change {name}");
        assert!(log.contains(&warning), "{warning:?} is not in\n{log}");
    }
    assert!(log.contains("Reloaded: max_payload = 100"), "{log}");
    let info = Wire::ungreeted(&broker).line();
    assert!(info.contains("\"max_payload\":100,") && !info.contains("other"), "{info}");
    // What was kept is not a change that the next reload has to name as undone.
    reloaded(&mut broker, "max_payload: 100\n");
    assert_eq!(broker.banner().matches("Reload does not change").count(), 2);
}

#[test]
fn log_settings_hold_from_the_reload_on() {
    for &shards in shard_counts() {
        let dir = tempfile::tempdir().unwrap();
        let mut broker = Broker::with_config(shards, "logtime: false\n");
        let mut wire = Wire::connect(&broker);
        wire.send(b"SUB unseen 1\r\n");
        wire.sync();
        reloaded(&mut broker, "logtime: false\ndebug: true\ntrace: true\n");
        wire.send(b"SUB seen 2\r\n");
        let line = broker.wait_for_line("<<- [SUB seen 2]");
        assert!(line.contains("] [TRC] 127.0.0.1:"), "{line}");
        assert!(!broker.banner().contains("unseen"));
        let path = dir.path().join("log");
        let config = format!("log_file: '{}'\n", path.display());
        reloaded_into(&mut broker, &config, &path);
        wire.send(b"SUB unseen 3\r\n");
        wire.sync();
        broker.signal(Signal::TERM);
        broker.wait_for_exit();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.ends_with("Server Exiting..\n") && !text.contains("unseen"), "{text}");
    }
}

/// The same as `reloaded` when what the server says goes to a file from then on.
fn reloaded_into(broker: &mut Broker, config: &str, path: &std::path::Path) {
    broker.reconfigure(config);
    let done = (0..1_000_000).any(|_| {
        std::thread::yield_now();
        std::fs::read_to_string(path).is_ok_and(|text| text.contains("Reloaded server config"))
    });
    assert!(done, "{:?}", std::fs::read_to_string(path));
}

#[test]
fn a_log_file_that_cannot_be_opened_makes_the_reload_fail_as_a_whole() {
    if is_nats_server() {
        return; // It ends.
    }
    let mut broker = Broker::with_config(1, "");
    let line = broker.reload("max_payload: 10\nlog_file: '/dev/null/log'\n");
    assert!(line.contains("Failed") && line.contains("/dev/null/log"), "{line}");
    assert!(!Wire::ungreeted(&broker).line().contains("\"max_payload\":10,"));
}

#[test]
fn lame_duck_settings_hold_from_the_reload_on() {
    if is_nats_server() {
        return; // It cannot reload them.
    }
    for &shards in shard_counts() {
        let config = "lame_duck_duration: \"30m\"\nlame_duck_grace_period: \"20m\"\n";
        let mut broker = Broker::with_config(shards, config);
        let mut wire = Wire::connect(&broker);
        let config = "lame_duck_duration: \"30s\"\nlame_duck_grace_period: \"10ms\"\n";
        reloaded(&mut broker, config);
        broker.signal(Signal::USR2);
        wire.expect_end();
        assert_eq!(broker.wait_for_exit().code(), Some(0));
    }
}

#[test]
fn the_files_that_tell_of_the_process_move_with_the_reload() {
    let dir = tempfile::tempdir().unwrap();
    let (pid, ports) = (dir.path().join("pid"), dir.path().join("ports"));
    std::fs::create_dir(&ports).unwrap();
    let mut broker = Broker::with_config(1, "");
    let (pid_file, ports_dir) = (pid.display(), ports.display());
    reloaded(&mut broker, &format!("pid_file: '{pid_file}'\nports_file_dir: '{ports_dir}'\n"));
    let pid = std::fs::read_to_string(pid).unwrap();
    let entries: Vec<_> = std::fs::read_dir(&ports).unwrap().map(Result::unwrap).collect();
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert!(entries[0].file_name().to_string_lossy().contains(&format!("_{pid}.ports")));
}
