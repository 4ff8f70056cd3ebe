//! Sequences of operations over several connections, shards and servers: any bytes are a script
//! for the simulator, which checks what the broker does with it against a single table.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/sim/mod.rs"]
mod sim;

fuzz_target!(|bytes: &[u8]| {
    // The more they mean harm, the less the oracle knows: no panic, and nothing past permissions.
    if bytes.last().is_some_and(|last| last % 8 == 7) {
        sim::hostile::run_script(bytes);
        return;
    }
    let kind = match bytes.last().map_or(0, |last| last % 4) {
        1 => sim::Kind::Cluster,
        2 => sim::Kind::Reloads,
        _ => sim::Kind::Server,
    };
    sim::run_script(kind, bytes);
});
