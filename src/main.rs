//! The broker's executable.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    shardcast::server::main(std::env::args_os())
}
