//! State that only routes have: their place in a pool, and lines from before registration.

use crate::cluster::PoolPart;
use crate::proto::gateway::NameHash;
use crate::proto::route::{self as wire, AccountNaming, Form, RouteOp, RouteParsed};

/// State that only a route has.
#[derive(Debug)]
pub(crate) struct RouteState {
    /// The part of the accounts that the route carries; known from its registration on.
    pub(crate) part: PoolPart,
    /// Modulus that an account's position in the pool follows from.
    pub(crate) modulus: u16,
    /// Whether the peer has answered a PING.
    pub(crate) is_confirmed: bool,
    /// Whether the peer takes interest that it did not take before, so that another interest sync
    /// is due.
    pub(crate) is_to_be_told: bool,
    /// The hash of the peer's id, once it is registered; for mapped answers from other clusters.
    pub(crate) member: NameHash,
    /// Lines of interest that came before the peer's INFO.
    pub(crate) early: Vec<u8>,
}

impl Default for RouteState {
    fn default() -> Self {
        let (part, early, member) = (PoolPart::All, Vec::new(), NameHash::default());
        Self { part, modulus: 0, is_confirmed: false, is_to_be_told: false, member, early }
    }
}

impl RouteState {
    /// Takes the early lines as a peer that writes in this form would send them now: without the
    /// account, if the route is for that one only.
    pub(super) fn take_early(&mut self, form: Form) -> Vec<u8> {
        let early = std::mem::take(&mut self.early);
        let PoolPart::Account(name) = &self.part else { return early };
        let (mut lines, mut rest) = (Vec::new(), &early[..]);
        let form = Form { accounts: AccountNaming::Named, ..form };
        while let Ok(RouteParsed::Op { op, used }) = wire::parse(rest, 0, form) {
            rest = &rest[used..];
            match op {
                RouteOp::Interest(entry, members) if entry.account == name.as_bytes() => {
                    wire::interest(&mut lines, b"", entry.subject, entry.queue.zip(members));
                }
                RouteOp::NoInterest(entry) if entry.account == name.as_bytes() => {
                    wire::no_interest(&mut lines, b"", entry.subject, entry.queue);
                }
                _ => {}
            }
        }
        lines
    }
}
