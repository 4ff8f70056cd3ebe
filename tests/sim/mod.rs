//! The deterministic simulator: the loops of real shards with the real lanes between them, step by
//! step in one thread, over a fake kernel and fake time, with fake clients, and a naive
//! single-table broker that knows what must and what may arrive.
//!
//! * [`script`]: bytes become what a handful of clients do; a seed becomes bytes
//! * [`world`]: what there is, and the order in which it all happens
//! * [`kernel`]: what a shard's loop takes for its reactor and its clock
//! * [`disk`]: a disk that does, and forgets, what it may
//! * [`shards`], [`sockets`], [`routes`], [`leaves`], [`pipe`]: the shards' turns, clients'
//!   connections, servers and the links between them, the kernel's part of a connection
//! * [`accounts`]: who gets what of other accounts, in a world that comes to rest each time
//! * [`streams`]: streams on a disk, and a server that ends at any moment and comes back
//! * [`hostile`]: whoever means harm: nothing is asserted, and nothing gets past permissions
//! * [`wire`]: a strict parser of what the server sends
//! * [`book`]: the oracle's memory: what clients sent, and when
//! * [`hear`]: what a client receives, judged as it comes
//! * [`verdict`]: what must have arrived in the end
//! * [`shrink`]: a failing run becomes a short one
//!
//! Whatever contradicts the protocol or its promises panics with a sentence that says so.

#[allow(dead_code, reason = "the fuzz target has no use for it")]
pub(crate) mod accounts;
mod book;
#[allow(dead_code, reason = "the simulator of the store does more with it")]
mod disk;
mod hear;
pub(crate) mod hostile;
mod kernel;
mod leaves;
mod pipe;
mod routes;
mod script;
mod shards;
#[allow(dead_code, reason = "the fuzz target has a shrinker of its own")]
mod shrink;
mod sockets;
#[allow(dead_code, reason = "the fuzz target has no use for it")]
pub(crate) mod streams;
mod verdict;
mod wire;
mod world;

pub(crate) use script::Kind;
use script::Plan;
pub(crate) use world::Outcome;
use world::World;

/// Runs what `seed` stands for; with `trace` it tells what happens.
#[allow(dead_code, reason = "the fuzz target comes with bytes of its own")]
pub(crate) fn run_seed(kind: Kind, seed: u64, trace: bool) -> Outcome {
    run(kind, &script::bytes_of(seed), trace)
}

/// What is left of `seed` when all is taken away without which it still fails; nothing when it
/// does not fail at all.
#[allow(dead_code, reason = "the fuzz target comes with bytes of its own")]
pub(crate) fn shortest(kind: Kind, seed: u64) -> Option<String> {
    let failure = |plan: &Plan| {
        let run = || World::new(plan, false).run(plan.clone());
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).err()?;
        Some(gist(&*panic))
    };
    let plan = Plan::decode(kind, &script::bytes_of(seed));
    let first = failure(&plan)?;
    // What is short must fail in the same way, or it would be another failure in the end.
    let short = shrink::shrink(plan, |plan| failure(plan).as_ref() == Some(&first));
    eprintln!("{}", short.text());
    World::new(&short, true).run(short.clone());
    Some(short.text())
}

/// What a failure says, without numbers.
#[allow(dead_code, reason = "the fuzz target comes with bytes of its own")]
pub(crate) fn gist(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default();
    text.chars().filter(|c| !c.is_ascii_digit()).take(60).collect()
}

/// Runs what `bytes` stand for: any bytes are a script.
pub(crate) fn run_script(kind: Kind, bytes: &[u8]) {
    run(kind, bytes, false);
}

fn run(kind: Kind, bytes: &[u8], trace: bool) -> Outcome {
    let plan = Plan::decode(kind, bytes);
    World::new(&plan, trace).run(plan)
}
