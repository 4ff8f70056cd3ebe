//! A consumer as answers show it.

use serde::Serialize;

use super::config::ConsumerConfig;
use super::live::{LiveConsumer, Turn};
use super::pending::SequencePair;
use crate::stream::time::{NO_TIME, Timestamp, rfc3339};

/// A position as answers show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct PositionShown {
    consumer_seq: u64,
    stream_seq: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_active: Option<Timestamp>,
}

/// A group of requests as answers show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct GroupShown {
    group: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pinned_client_id: String,
    pinned_ts: String,
}

/// A consumer as answers show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct ConsumerInfo {
    stream_name: String,
    name: String,
    created: Timestamp,
    config: ConsumerConfig,
    delivered: PositionShown,
    ack_floor: PositionShown,
    num_ack_pending: usize,
    num_redelivered: usize,
    num_waiting: usize,
    num_pending: u64,
    #[serde(skip_serializing_if = "is_false")]
    push_bound: bool,
    #[serde(skip_serializing_if = "is_false")]
    paused: bool,
    #[serde(skip_serializing_if = "is_zero")]
    pause_remaining: i64,
    ts: Timestamp,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    priority_groups: Vec<GroupShown>,
    /// The sequence that a reset went back to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reset_seq: Option<u64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

impl PositionShown {
    fn of(pair: SequencePair, last: Option<i64>) -> Self {
        let SequencePair { consumer, stream } = pair;
        let last_active = last.map(Timestamp);
        Self { consumer_seq: consumer, stream_seq: stream, last_active }
    }
}

impl LiveConsumer {
    /// Returns the consumer as answers show it; all but lists show the server's version.
    pub(super) fn info(&mut self, shows_version: bool, turn: &mut Turn<'_>) -> ConsumerInfo {
        if !self.config.is_push() {
            self.look_at_requests(false, turn);
            self.drop_unheard(turn);
        }
        let num_pending = self.pending(turn);
        let is_paused = self.is_paused_at(turn.moment);
        let until = self.config.pause_until.filter(|_| is_paused);
        let mut delivered = self.acks.delivered;
        if self.config.direct {
            delivered.stream = self.place.next().saturating_sub(1);
        }
        let redelivered = self.acks.redelivered_count();
        ConsumerInfo {
            stream_name: turn.about.name.clone(),
            name: self.name.to_string(),
            created: self.created,
            config: self.config.shown(shows_version),
            delivered: PositionShown::of(delivered, self.last_delivered),
            ack_floor: PositionShown::of(self.acks.floor, self.last_acked),
            num_ack_pending: self.acks.pending_count(),
            // A message that may not be delivered again is not shown as if it were.
            num_redelivered: if self.config.max_deliver == 1 { 0 } else { redelivered },
            num_waiting: self.pulls.len(),
            num_pending,
            push_bound: self.push.as_ref().is_some_and(|push| push.is_active),
            paused: is_paused,
            pause_remaining: until.map_or(0, |until| until.0 - turn.moment.wall_time()),
            ts: Timestamp(turn.moment.wall_time()),
            priority_groups: self.groups_shown(),
            reset_seq: None,
        }
    }

    fn groups_shown(&self) -> Vec<GroupShown> {
        let Some(group) = self.config.priority_groups.first() else { return Vec::new() };
        let pin = self.pulls.pin.as_ref();
        vec![GroupShown {
            group: group.clone(),
            pinned_client_id: pin.map_or_else(String::new, |pin| pin.id.to_string()),
            pinned_ts: pin.map_or_else(|| NO_TIME.to_owned(), |pin| rfc3339(pin.since)),
        }]
    }
}
