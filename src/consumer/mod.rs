//! Consumers: readers of one stream, each with its place, its deliveries and its clients.
//!
//! - `config`: configurations and their checks
//! - `requests`: requests of the API; `info`: a consumer as answers show it
//! - `consumers`: all of them; `live`: one as it runs
//! - `schedule`: which is looked at when; `hungry`: those that wait for new messages
//! - `cursor`: the place in the stream; `pending`: deliveries, acknowledged or not
//! - `pulls`: requests for messages; `push`: messages without requests; `acks`: acknowledgements
//! - `retention`: messages that nobody needs any more
//! - `journal`: records, and `restore`: consumers that are found again in them
//! - `source`: the stream as consumers see it; `output`: what they want done; `advisory`: events
//!
//! No input or output, no clock: consumers are told the time, look at messages through a
//! [`ConsumerSource`], and say what is to be done by [`ConsumerOutput`]s.
//!
//! **In** go requests, acknowledgements, and what happens to the stream and to interest; then
//! [`Consumers::poll`] delivers, and is to be called at [`Consumers::next_deadline`] too. **Out**
//! come outputs, which the owner carries out in their order after each call.
//!
//! **Records.** What has to survive comes as [`ConsumerOutput::Keep`]: acknowledgements that are to
//! be confirmed at once, others within 10 ms, deliveries within 50 ms. A confirmation waits for the
//! commit of the last record before it; messages are let go behind it in the log. So a confirmed
//! acknowledgement is never lost, and what was not confirmed may be delivered again.
//!
//! **Bounds.** A call to `poll` looks at 512 messages (`STEPS_MAX`) and 1024 consumers
//! (`LOOKS_MAX`). A consumer has `max_waiting` requests, 65,536 (`REQUESTS_MAX`) at most, and
//! `max_ack_pending` messages that wait, a million (`ACK_PENDING_MAX`) at most. A consumer without
//! clients takes less than 2 KiB and is not looked at.

#![forbid(unsafe_code)]

mod acks;
mod advisory;
mod archive;
mod config;
mod consumers;
mod cursor;
mod hungry;
mod info;
mod journal;
mod live;
mod output;
mod pending;
mod pulls;
mod push;
mod requests;
mod restore;
mod retention;
mod schedule;
mod source;
#[cfg(test)]
mod tests;

pub use acks::{AckMessage, AckSubject};
pub use advisory::{AckedDelivery, Advisory, AdvisoryPlace, ConsumerEvent};
pub(crate) use archive::{
    ArchivedConsumer, ConsumerPosition, consumers_of_archive, keep_all, take_consumer,
};
pub use config::{
    AckPolicy, ConsumerConfig, ConsumerRules, DeliverPolicy, PriorityPolicy, ReplayPolicy,
};
pub use consumers::{Consumers, StreamAbout, on_purged};
pub use output::{ConsumerOutput, Delivery, LAST_CONSUMER, LAST_STREAM, STALLED, StatusMessage};
pub use pulls::PullMessage;
pub use requests::{
    ConsumerAction, ConsumerForm, ConsumerRequest, check_pause, check_unpin, shown_consumers,
};
pub use source::{ConsumerSource, Look, Moment, StreamBounds};
