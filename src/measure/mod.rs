//! Histograms, rates, and limits that many share.

#![forbid(unsafe_code)]

mod crowd;
mod histogram;
mod rates;

pub use crowd::Crowd;
pub use histogram::Histogram;
pub(crate) use rates::BURST_NS;
pub use rates::{Meter, Rates, network};
