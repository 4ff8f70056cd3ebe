//! The commit that is built, for the banner, `-v` and INFO; and the end of a build for a system that
//! the broker cannot run on.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=SHARDCAST_GIT_COMMIT");
    let system = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if system != "linux" {
        println!(
            "cargo::error=shardcast runs on Linux only, because it needs io_uring (Linux 5.11); \
             build it there, or in a container"
        );
        return;
    }
    if std::env::var_os("SHARDCAST_GIT_COMMIT").is_some() {
        return;
    }
    // A build for development would begin anew with each commit.
    if std::env::var("PROFILE").is_ok_and(|profile| profile == "debug") {
        return;
    }
    if let Some(commit) = of_package().or_else(of_repository) {
        println!("cargo::rustc-env=SHARDCAST_GIT_COMMIT={commit}");
    }
}

/// The commit that `cargo package` wrote into the package.
fn of_package() -> Option<String> {
    let text = std::fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let (_, rest) = text.split_once("\"sha1\"")?;
    let commit = rest.split('"').nth(1)?;
    Some(commit.get(..7)?.to_owned())
}

/// The commit of the working tree, if this is one and git is there.
fn of_repository() -> Option<String> {
    // Not that of a repository in which this source is a directory of something else.
    if !std::path::Path::new(".git").exists() {
        return None;
    }
    for file in ["HEAD", "logs/HEAD"] {
        println!("cargo::rerun-if-changed={}", git(&["rev-parse", "--git-path", file])?);
    }
    git(&["rev-parse", "--short=7", "HEAD"])
}

fn git(words: &[&str]) -> Option<String> {
    let output = Command::new("git").args(words).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
