//! Connections that other servers have dialled: how many there may be, from where, and which has
//! to go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use tracing::{debug, error};

use crate::measure::{Crowd, network};

/// Connections of identified servers at one time; further ones are refused.
const LINKS_MAX: usize = 1024;
/// Connections of identified servers from one address that dials. The bound leaves places to other
/// addresses, whether or not peers need a password.
const LINKS_PER_ADDRESS_MAX: usize = LINKS_MAX / 2;
/// Accepted connections of servers that are not identified yet. Beyond it, one is closed for each
/// new one. A member identifies itself at once, however many others keep a place.
const STRANGERS_MAX: usize = 256;

/// The connections that other servers have dialled, by their numbers.
pub(super) struct Strangers {
    /// The kind of the connections, for the log.
    noun: &'static str,
    /// Connections of servers that are not identified yet.
    unknown: Crowd,
    /// Connections of unidentified servers that were ordered to close and have not ended yet.
    turned_away: BTreeSet<u64>,
    /// All connections, each with its address.
    accepted: BTreeMap<u64, IpAddr>,
}

impl Strangers {
    /// No connections; the log calls them `noun`.
    pub(super) fn new(noun: &'static str) -> Self {
        Self {
            noun,
            unknown: Crowd::new(STRANGERS_MAX),
            turned_away: BTreeSet::new(),
            accepted: BTreeMap::new(),
        }
    }

    /// Whether one more connection may be taken from an address, if there are `links`, dialled ones
    /// included.
    pub(super) fn admits(&self, from: IpAddr, links: usize) -> bool {
        let noun = self.noun;
        let unknown = self.unknown.len() + self.turned_away.len();
        if links.saturating_sub(unknown) >= LINKS_MAX {
            error!("{noun} connection refused: {LINKS_MAX} are open, the maximum");
            return false;
        }
        // An address that is not among them gets twice the places, so that no address keeps out the
        // others.
        let leaving = self.turned_away.len();
        let leaving_max = if self.unknown.knows(from) { 1 } else { 2 } * STRANGERS_MAX;
        if leaving >= leaving_max {
            debug!("{noun} connection refused: {leaving} replaced ones are still open");
            return false;
        }
        let network = network(from);
        let same = self.accepted.values().filter(|other| **other == network).count();
        if same >= LINKS_PER_ADDRESS_MAX {
            error!("{noun} connection refused: {same} from {from} are open, the maximum");
            return false;
        }
        true
    }

    /// Enters a connection; returns the one that has to go for it.
    pub(super) fn enter(&mut self, rid: u64, from: IpAddr) -> Option<u64> {
        self.accepted.insert(rid, network(from));
        let longest = self.unknown.enter(rid, from)?;
        self.turned_away.insert(longest);
        Some(longest)
    }

    /// Takes note that the server behind a connection is identified.
    pub(super) fn on_known(&mut self, rid: u64) {
        self.unknown.leave(rid);
    }

    /// Takes out a connection that has ended.
    pub(super) fn on_ended(&mut self, rid: u64) {
        self.unknown.leave(rid);
        self.turned_away.remove(&rid);
        self.accepted.remove(&rid);
    }
}
