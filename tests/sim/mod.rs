//! The deterministic simulator: engines with lanes between them in one thread, fake clients on
//! fake sockets, fake time, and a naive single-table broker that knows what must and what may
//! arrive.
//!
//! * [`script`]: bytes become what a handful of clients do; a seed becomes bytes
//! * [`world`]: the engines, the lanes, the kernel's part, and the order in which it all happens
//! * [`accounts`]: who gets what of other accounts, in a world that comes to rest each time
//! * [`wire`]: a strict parser of what the server sends
//! * [`book`]: the oracle's memory: what clients sent, and when
//! * [`hear`]: what a client receives, judged as it comes
//! * [`verdict`]: what must have arrived in the end
//!
//! Whatever contradicts the protocol or its promises panics with a sentence that says so.

#[allow(dead_code, reason = "the fuzz target has no use for it")]
pub(crate) mod accounts;
mod book;
mod hear;
mod script;
mod verdict;
mod wire;
mod world;

use script::Plan;
pub(crate) use world::Outcome;
use world::World;

/// Runs what `seed` stands for; with `trace` it tells what happens.
#[allow(dead_code, reason = "the fuzz target comes with bytes of its own")]
pub(crate) fn run_seed(seed: u64, trace: bool) -> Outcome {
    run(&script::bytes_of(seed), trace)
}

/// Runs what `bytes` stand for: any bytes are a script.
pub(crate) fn run_script(bytes: &[u8]) {
    run(bytes, false);
}

fn run(bytes: &[u8], trace: bool) -> Outcome {
    let plan = Plan::decode(bytes);
    World::new(&plan, trace).run(plan)
}
