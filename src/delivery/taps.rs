//! Runs for taps: receivers inside the server.

use crate::core::{Core, message_trace};
use crate::delivery::publish::Source;
use crate::delivery::services::{self, HOPS_MAX};
use crate::interest::taps::Tap;
use crate::interest::targets::Targets;
use crate::run::Run;

/// Hands a run to the taps of this shard.
pub(super) fn deliver_to_taps(core: &mut Core, source: &Source, run: &Run<'_>, targets: &Targets) {
    // What an account imports is for its streams, and goes no further.
    let is_at_its_end = source.hops >= HOPS_MAX;
    for tap in &targets.taps {
        match tap {
            Tap::Queued(tap) if is_at_its_end && tap.is_of_mqtt() => {}
            Tap::Server { .. } | Tap::Callouts | Tap::Answers if is_at_its_end => {}
            Tap::Server { of_cluster } => {
                // A request of another shard was handed on there.
                if source.publisher.shard == core.shard
                    && (!source.from.has_entered_services() || *of_cluster)
                {
                    services::ask_server(core, source, run, *of_cluster);
                }
            }
            Tap::Queued(tap) => {
                if !message_trace::is_trace_only(core) {
                    core.requests.place_first(run.len());
                    let queue = match tap.is_of_mqtt() {
                        false => &mut core.input.tapped,
                        true => &mut core.input.mqtt,
                    };
                    queue.push(*tap, source.account, source.publisher, run);
                }
            }
            Tap::Callouts => {
                // An answer that another shard has received was handed on there.
                if source.publisher.shard == core.shard {
                    services::take_callout_answers(core, run);
                }
            }
            Tap::Answers => {
                // Whether an answer is still waited for is not shown to the answering account.
                core.requests.place_first(run.len());
                services::deliver_answers(core, source, run);
            }
        }
    }
}
