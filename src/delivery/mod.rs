//! Delivery: a run of publishes, from its subject to the outboxes of its receivers.

#![forbid(unsafe_code)]

pub(crate) mod crossing;
pub(crate) mod deliver;
pub(crate) mod droppable;
pub(crate) mod held;
pub(crate) mod inside;
pub(crate) mod latency;
pub(crate) mod mapped_replies;
pub(crate) mod mqtt;
pub(crate) mod no_responders;
pub(crate) mod publish;
pub(crate) mod queue_groups;
pub(crate) mod relay;
pub(crate) mod row;
pub(crate) mod services;
pub(crate) mod taps;
pub(crate) mod traced;

/// A place in a run or in a list of groups; both are far shorter than this can count.
pub(crate) fn index(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}
