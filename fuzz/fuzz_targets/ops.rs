//! Sequences of operations over several connections and shards: any bytes are a script for the
//! simulator, which checks what the broker does with it against a single table.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/sim/mod.rs"]
mod sim;

fuzz_target!(|bytes: &[u8]| sim::run_script(sim::Kind::Server, bytes));
