//! The shards, as the rest of the process sees them.

#![forbid(unsafe_code)]

use std::net::TcpListener;
use std::sync::Arc;

use core_affinity::CoreId;
use crossbeam_channel::{Receiver, Sender, unbounded};

use super::Identity;
use crate::config::{Options, StartError, UringTier};

/// What the shards have to tell without being asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// Lame duck mode is over: no client is left.
    Drained,
    /// A shard cannot go on, and why.
    Failed(String),
}

/// The running shards.
#[derive(Debug)]
pub struct Shards {
    // This stands in for the shards: it holds the listener and serves nobody.
    _listener: TcpListener,
    uring_tier: UringTier,
    sender: Sender<Report>,
    reports: Receiver<Report>,
}

impl Shards {
    /// Starts one thread for each entry of `placement`. They accept from `listener` at once.
    pub fn start(
        options: &Arc<Options>,
        _identity: &Arc<Identity>,
        listener: TcpListener,
        _placement: &[Option<CoreId>],
    ) -> Result<Self, StartError> {
        let (sender, reports) = unbounded();
        let uring_tier = options.runtime.uring_tier_max;
        Ok(Self { _listener: listener, uring_tier, sender, reports })
    }

    /// What of io_uring is used.
    pub fn uring_tier(&self) -> UringTier {
        self.uring_tier
    }

    /// Where the shards' reports arrive. It is closed once no shard runs any more.
    pub fn reports(&self) -> &Receiver<Report> {
        &self.reports
    }

    /// Stops accepting, tells the clients, and closes them over the lame duck duration. Returns
    /// at once; [`Report::Drained`] tells when it is over.
    pub fn lame_duck(&self) {
        // The receiver is held by self.
        let _ = self.sender.send(Report::Drained);
    }

    /// Closes the listener and all connections, and waits for the threads, for a bounded time.
    pub fn stop(self) {}
}
