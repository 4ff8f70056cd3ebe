//! Histograms, rates, and limits that many connections share.

#![forbid(unsafe_code)]

mod crowd;
mod departures;
mod histogram;
mod rates;
mod traffic;

pub use crowd::Crowd;
pub(crate) use departures::Departures;
pub use histogram::Histogram;
pub(crate) use rates::BURST_NS;
pub use rates::{Meter, Rates, network};
pub use traffic::Traffic;

/// The time of an event that never comes, in nanoseconds since the start of the process.
pub(crate) const NEVER: u64 = u64::MAX;
