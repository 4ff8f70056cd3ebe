//! Interest as other servers are told it: leaf nodes and hubs, and members of the cluster about
//! leaf nodes.
//!
//! Each leaf node is told a filter once, whoever wants it, and the sum of all members of a queue
//! group (`interest::census`). Members of the cluster are told of leaf nodes apart from clients, by
//! the cluster of these: a message that a leaf node's cluster has need not come back to it. Peers
//! that do not know of leaf nodes, or of those without a cluster, are told of them as of clients.

use std::sync::Arc;

use crate::interest::Wanted;
use crate::interest::census::{Census, InterestListener};
use crate::interest::ids::Origin;
use crate::link::Link;
use crate::link::leaf_clusters::LeafClusters;
use crate::proto::leaf;
use crate::proto::route::{self as wire, NO_CLUSTER};

/// Appends the interest that a leaf node or hub is told, or its end.
pub(crate) fn write_for_leaf(out: &mut Vec<u8>, wanted: Wanted<'_>, count: u32) {
    let Wanted { filter, queue } = wanted;
    match count {
        0 => leaf::no_interest(out, filter, queue),
        _ => leaf::interest(out, filter, queue.map(|queue| (queue, count))),
    }
}

/// Appends the interest in a filter that a leaf node or hub is told, if there is some.
pub(crate) fn write_all_for_leaf(
    out: &mut Vec<u8>,
    listener: &InterestListener,
    wanted: Wanted<'_>,
    census: &Census,
) {
    let count = census.heard_by(listener);
    if count > 0 {
        write_for_leaf(out, wanted, count);
    }
}

/// The origin as which a member of the cluster is told interest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ToldAs {
    /// Interest of this server itself.
    Own,
    /// Interest of leaf nodes of the cluster with this number and name.
    Leaves(Origin, Arc<str>),
}

/// A member of the cluster that is told interest in an account.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ToldMember<'a> {
    pub(crate) clusters: &'a LeafClusters,
    pub(crate) link: &'a Link,
    /// Name of the account as it is written.
    pub(crate) account: &'a [u8],
}

impl ToldMember<'_> {
    /// Returns the origin as which the member is told interest of `origin`.
    pub(crate) fn told_as(&self, origin: Origin) -> ToldAs {
        let peer = &self.link.peer;
        match origin {
            Origin::PEER => ToldAs::Own,
            Origin::NO_CLUSTER if peer.ln => ToldAs::Leaves(origin, NO_CLUSTER.into()),
            Origin::NO_CLUSTER => ToldAs::Own,
            _ if !(peer.lnoc || peer.ln) => ToldAs::Own,
            _ => match self.clusters.name(origin) {
                Some(name) => ToldAs::Leaves(origin, Arc::clone(name)),
                None => ToldAs::Own,
            },
        }
    }

    /// Returns the interest in a filter that the member is told as `told`.
    pub(crate) fn count(&self, told: &ToldAs, census: &Census) -> u32 {
        match told {
            ToldAs::Leaves(origin, _) => census.of_leaves(*origin),
            ToldAs::Own => {
                let is_own = |origin| self.told_as(origin) == ToldAs::Own;
                let leaves = census.leaves().filter(|(origin, _)| is_own(*origin));
                leaves.fold(census.own(), |all, (_, count)| all.saturating_add(count))
            }
        }
    }

    /// Appends interest, or its end.
    pub(crate) fn write(&self, out: &mut Vec<u8>, told: &ToldAs, wanted: Wanted<'_>, members: u32) {
        let (Wanted { filter, queue }, account) = (wanted, self.account);
        let members_of = queue.map(|queue| (queue, members));
        match (told, members) {
            (ToldAs::Own, 0) => wire::no_interest(out, account, filter, queue),
            (ToldAs::Own, _) => wire::interest(out, account, filter, members_of),
            (ToldAs::Leaves(_, name), 0) => {
                let name = if self.link.form().origins { name.as_bytes() } else { b"" };
                wire::no_interest_of_leaves(out, name, account, filter, queue);
            }
            (ToldAs::Leaves(_, name), _) => {
                wire::interest_of_leaves(out, name.as_bytes(), account, filter, members_of);
            }
        }
    }

    /// Appends all interest in a filter, or, if it is `over`, its end.
    pub(crate) fn write_all(
        &self,
        out: &mut Vec<u8>,
        wanted: Wanted<'_>,
        census: &Census,
        is_over: bool,
    ) {
        let members = |count: u32| if is_over { 0 } else { count };
        let own = self.count(&ToldAs::Own, census);
        if own > 0 {
            self.write(out, &ToldAs::Own, wanted, members(own));
        }
        for (origin, count) in census.leaves() {
            let told = self.told_as(origin);
            if told != ToldAs::Own {
                self.write(out, &told, wanted, members(count));
            }
        }
    }
}
