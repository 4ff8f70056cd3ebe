//! The broker under `tuning/seccomp.json`, applied to a thread that then starts it.
//!
//! What a container's runtime itself needs is not seen here.

#![cfg(target_arch = "x86_64")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::Command;

use crate::broker::wire::Wire;
use crate::broker::{Broker, is_nats_server, server_command, shard_counts};
use rustix::process::Signal;
use seccompiler::{TargetArch, apply_filter, compile_from_json};
use serde_json::{Value, json};

const PROFILE: &str = include_str!("../../tuning/seccomp.json");

/// Runs `test` in a thread, and all processes that it starts, under the profile without `left_out`.
fn filtered(left_out: &str, test: impl FnOnce() + Send) {
    let profile: Value = serde_json::from_str(PROFILE).unwrap();
    let (mut allowed, mut refused) = (Vec::new(), Vec::new());
    for group in profile["syscalls"].as_array().unwrap() {
        for name in group["names"].as_array().unwrap().iter().filter(|name| *name != left_out) {
            match (group["action"].as_str().unwrap(), group.get("args")) {
                ("SCMP_ACT_ALLOW", None) => allowed.push(json!({ "syscall": name })),
                ("SCMP_ACT_ALLOW", Some(args)) => allowed.push(json!({
                    "syscall": name,
                    "args": args.as_array().unwrap().iter().map(condition).collect::<Vec<_>>(),
                })),
                ("SCMP_ACT_ERRNO", None) => refused.push((name.clone(), group["errnoRet"].clone())),
                other => panic!("{other:?} is not understood"),
            }
        }
    }
    // A filter has one answer to what it names. One that refuses says more than one that allows.
    let filters = refused.into_iter().map(|(name, errno)| {
        allowed.push(json!({ "syscall": name }));
        json!({
            "filter": [{ "syscall": name }],
            "match_action": { "errno": errno },
            "mismatch_action": "allow",
        })
    });
    let mut filters: Vec<Value> = filters.collect();
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    filters.push(json!({
        "filter": allowed,
        "match_action": "allow",
        "mismatch_action": { "errno": profile["defaultErrnoRet"] },
    }));
    let programs: Vec<_> = filters
        .into_iter()
        .map(|filter| {
            let named = json!({ "only": filter }).to_string();
            compile_from_json(named.as_bytes(), TargetArch::x86_64).unwrap().remove("only").unwrap()
        })
        .collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for program in &programs {
                apply_filter(program).unwrap();
            }
            test();
        });
    });
}

/// The same condition as seccompiler writes it.
fn condition(arg: &Value) -> Value {
    assert_eq!(arg["op"], "SCMP_CMP_MASKED_EQ");
    json!({
        "index": arg["index"],
        "type": "qword",
        "op": { "masked_eq": arg["value"] },
        "val": arg["valueTwo"],
    })
}

#[test]
fn the_broker_lives_and_ends_under_the_profile() {
    filtered("", || {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(file("c"), "max_payload: 1000\n").unwrap();
        for &shards in shard_counts() {
            let (config, pid) = (file("c"), file("pid"));
            let mut broker = Broker::start(shards, &["-c", &config, "-P", &pid, "-m", "-1"]);
            let mut subscribers: Vec<Wire> = (0..8).map(|_| Wire::connect(&broker)).collect();
            for subscriber in &mut subscribers {
                subscriber.send(b"SUB a 1\r\n");
                subscriber.sync();
            }
            let mut publisher = Wire::connect(&broker);
            publisher.send(b"PUB a 5\r\nhello\r\n");
            for subscriber in &mut subscribers {
                subscriber.expect(b"MSG a 1 5\r\nhello\r\n");
            }
            broker.signal(Signal::HUP);
            broker.wait_for_line("Reloaded server configuration");
            broker.signal(Signal::INT);
            assert!(broker.wait_for_exit().success());
        }
    });
}

#[test]
fn without_io_uring_in_the_profile_the_broker_says_so() {
    if is_nats_server() {
        return;
    }
    filtered("io_uring_setup", || {
        let output = Command::new(server_command()).args(["-a", "127.0.0.1", "-p", "-1"]).output();
        let output = output.unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("seccomp=tuning/seccomp.json"), "{said}");
        assert_eq!(output.status.code(), Some(1));
        let output = Command::new(server_command()).arg("doctor").output().unwrap();
        let table = String::from_utf8(output.stdout).unwrap();
        assert!(table.contains("FAIL  seccomp filter"), "{table}");
        assert_eq!(output.status.code(), Some(2));
    });
}

#[test]
fn what_is_not_in_the_profile_is_refused() {
    filtered("", || {
        let error = Command::new("unshare").args(["--user", "true"]).output().unwrap();
        assert!(!error.status.success(), "{error:?}");
    });
}
