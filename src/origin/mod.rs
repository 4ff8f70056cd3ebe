//! Origins in other accounts and domains: how a copy comes to have their messages.
//!
//! - `terms`: the request for a consumer of the origin; `answer`: what comes of it
//! - `follower`: the state machine of one copy: asks, follows, and asks anew
//!
//! **Way.** The API of such an origin is reached by a prefix of its own, through imports of the
//! account or over a leaf connection. The copy has a consumer made there that is for it alone:
//! nothing is acknowledged, it ends when nobody listens, it gives signs of life each second, and
//! it waits for answers to flow control. The copy listens before it asks, for elsewhere interest
//! may be known at once; what comes before the answer is kept until then.
//!
//! **Trust.** Nothing that an origin says is believed: numbers have bounds, subjects are checked,
//! and what does not fit ends in a new request, each later than the one before.
//!
//! No input or output, no clock: a [`Follower`] is told the time, and its owner carries out its
//! wishes.

#![forbid(unsafe_code)]

mod answer;
mod follower;
mod terms;
#[cfg(test)]
mod tests;

pub use follower::{AnswerOfOrigin, EarlyMessage, FollowWish, Follower, HeardOfOrigin};
pub use terms::{CopyHome, FollowTerms};
