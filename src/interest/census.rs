//! Census: the interest in one filter by where it is. What another server is told follows from it.
//!
//! Leaf nodes and hubs are told the interest of the account from anyone but themselves, as far as
//! [`InterestListener::hears`] it; members of the cluster what this server has to itself: its
//! clients, and its leaf nodes by their clusters.

use smallvec::SmallVec;

use crate::interest::ids::Origin;
use crate::interest::outlets::Inside;
use crate::interest::reach::{KINDS, Kind, LinkSlot, Via};
use crate::interest::{Filter, Interest, Queue, Wanted};
use crate::subject::Scan;

/// A leaf node or a hub, as a listener to interest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InterestListener {
    pub(crate) link: LinkSlot,
    /// The cluster of a leaf node.
    pub(crate) origin: Origin,
    /// Whether it is not told the interest of leaf nodes.
    pub(crate) is_isolated: bool,
}

impl InterestListener {
    /// Whether the listener is told interest on this way.
    pub(crate) fn hears(&self, via: Via) -> bool {
        let is_of_leaves = via.is_to_leaves();
        match self.link.kind() {
            Kind::Hub => match via.kind {
                Kind::Client => true,
                Kind::Leaf => !self.is_isolated,
                Kind::Route | Kind::Hub | Kind::Gateway => false,
            },
            _ => !is_of_leaves || !(self.is_isolated || self.origin.has_served(via.origin)),
        }
    }
}

/// The interest in one filter, plainly or in one queue group: of plain interest the number of
/// places that have it, else members.
#[derive(Debug, Default)]
pub(crate) struct Census {
    /// Clients of this server on all shards, and streams.
    clients: u32,
    /// Receivers inside the server.
    inside: u32,
    /// Receivers inside the server of which members of the cluster are told.
    inside_told: u32,
    /// Sums by kind: of others than leaf nodes, and of leaf nodes.
    kinds: [[u32; 2]; KINDS],
    /// Sums by way, in order.
    ways: SmallVec<[(Via, u32); 4]>,
    /// Own links, in order.
    links: SmallVec<[(LinkSlot, u32); 4]>,
}

impl Census {
    fn of_plain(filter: Option<&Filter>, inside: Option<&Inside>, is_tapped: bool) -> Self {
        let inside_told = inside.is_some_and(Inside::is_told).into();
        let clients = is_tapped.into();
        let own = Self { clients, inside: inside.is_some().into(), inside_told, ..Self::default() };
        let Some(filter) = filter else { return own };
        let clients = (is_tapped || filter.has_clients()).into();
        let mut census = Self { clients, ..own };
        for behind in &filter.links {
            census.ways.push((behind.via(), 1));
            census.links.push((behind.link, 1));
        }
        let far = filter.shards.ways().filter(|(via, _)| *via != Via::CLIENTS);
        census.ways.extend(far);
        census.sum_up()
    }

    fn of_queue(queue: &Queue) -> Self {
        let mut census = Self { clients: queue.clients(), ..Self::default() };
        for behind in &queue.links {
            census.ways.push((behind.via(), behind.members));
            census.links.push((behind.link, behind.members));
        }
        let far = queue.remote.iter().filter(|remote| remote.via != Via::CLIENTS);
        census.ways.extend(far.map(|remote| (remote.via, remote.members)));
        census.sum_up()
    }

    fn sum_up(mut self) -> Self {
        for (via, count) in &self.ways {
            let sum = &mut self.kinds[via.kind as usize][usize::from(via.is_to_leaves())];
            *sum = sum.saturating_add(*count);
        }
        self.ways.sort_unstable_by_key(|(via, _)| *via);
        self.ways.dedup_by(|(via, count), (first, all)| {
            let is_same = via == first;
            if is_same {
                *all = all.saturating_add(*count);
            }
            is_same
        });
        self.links.sort_unstable_by_key(|(link, _)| *link);
        self
    }

    /// Returns the interest of this server's clients, and of what is inside it, as members of the
    /// cluster are told it.
    pub(crate) fn own(&self) -> u32 {
        self.clients.saturating_add(self.inside_told)
    }

    /// Returns each cluster of own leaf nodes with its interest.
    pub(crate) fn leaves(&self) -> impl Iterator<Item = (Origin, u32)> + '_ {
        let leaves = self.ways.iter().filter(|(via, _)| via.kind == Kind::Leaf);
        leaves.map(|(via, count)| (via.origin, *count))
    }

    /// Returns the interest of the own leaf nodes of a cluster.
    pub(crate) fn of_leaves(&self, origin: Origin) -> u32 {
        self.on_way(Via { kind: Kind::Leaf, origin })
    }

    fn on_way(&self, via: Via) -> u32 {
        let at = self.ways.binary_search_by_key(&via, |(via, _)| *via);
        at.map_or(0, |at| self.ways[at].1)
    }

    fn over(&self, link: LinkSlot) -> u32 {
        let from = self.links.partition_point(|(other, _)| *other < link);
        let same = self.links[from..].iter().take_while(|(other, _)| *other == link);
        same.fold(0, |all, (_, count)| all.saturating_add(*count))
    }

    /// Returns the interest that a leaf node or a hub is told.
    pub(crate) fn heard_by(&self, listener: &InterestListener) -> u32 {
        let sum = |kind: Kind| self.kinds[kind as usize];
        let [_, leaves] = sum(Kind::Leaf);
        let inside = self.clients.saturating_add(self.inside);
        if listener.link.kind() == Kind::Hub {
            let leaves = if listener.is_isolated { 0 } else { leaves };
            return inside.saturating_add(leaves);
        }
        let [members, behind_members] = sum(Kind::Route);
        let [hubs, _] = sum(Kind::Hub);
        let gateways = sum(Kind::Gateway).into_iter().fold(0, u32::saturating_add);
        let mut all = [members, hubs, gateways].into_iter().fold(inside, u32::saturating_add);
        if !listener.is_isolated {
            let origin = listener.origin;
            let same = match origin > Origin::NO_CLUSTER {
                true => {
                    let behind = self.on_way(Via { kind: Kind::Route, origin });
                    self.of_leaves(origin).saturating_add(behind)
                }
                false => self.over(listener.link),
            };
            let others = leaves.saturating_add(behind_members).saturating_sub(same);
            all = all.saturating_add(others);
        }
        all
    }
}

impl Interest {
    /// Returns the census of a filter, plainly or in a queue group.
    pub(crate) fn census(&self, Wanted { filter, queue }: Wanted<'_>) -> Census {
        let found = self.table.get(filter);
        match queue {
            None => Census::of_plain(found, self.inside.get(filter), self.is_tapped(filter)),
            Some(name) => {
                let queue =
                    found.and_then(|filter| filter.queues.place(name).map(|at| &filter.queues[at]));
                queue.map(Census::of_queue).unwrap_or_default()
            }
        }
    }

    /// Shows the census of all filters: a piece of them, as by [`crate::subject::Table::scan`].
    /// Those that only receivers inside the server want are not among them.
    pub(crate) fn censuses(
        &self,
        at: &mut Scan,
        places: &mut usize,
        mut show: impl FnMut(Wanted<'_>, &Census),
    ) -> bool {
        self.table.scan(at, places, |filter, found| {
            let (inside, is_tapped) = (self.inside.get(filter), self.is_tapped(filter));
            let census = Census::of_plain(Some(found), inside, is_tapped);
            show(Wanted { filter, queue: None }, &census);
            for queue in found.queues.iter() {
                show(Wanted { filter, queue: Some(&queue.name) }, &Census::of_queue(queue));
            }
        })
    }

    /// Returns the filters of all receivers inside the server but streams.
    pub(crate) fn inside_filters(&self) -> impl Iterator<Item = &[u8]> {
        self.inside.iter().map(|(filter, _)| filter)
    }

    /// Returns the filters of the streams of this shard.
    pub(crate) fn tapped_filters(&self) -> impl Iterator<Item = &[u8]> {
        self.taps.iter().map(|(filter, _)| filter)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::interest::cache::Tally;
    use crate::interest::ids::ShardId;
    use crate::interest::{Behind, Remote};

    const WANTED: Wanted<'static> = Wanted { filter: b"a", queue: None };

    fn origin(number: u8) -> Origin {
        match number {
            0 => Origin::NO_CLUSTER,
            number => Origin::of_leaves(&[b'a' + number]),
        }
    }

    proptest! {
        /// The rule in words, for places one by one.
        #[test]
        fn a_listener_is_told_of_each_place_that_it_hears_but_itself(
            links in prop::collection::vec((0..3_u8, 0..3_u8), 0..8),
            shards in prop::collection::vec((0..4_u8, 0..3_u8, 1..4_u8), 0..8),
            is_isolated: bool,
        ) {
            let mut interest = Interest::new(7, &std::rc::Rc::new(Tally::new(7)));
            let mut places = Vec::new();
            for (slot, (kind, of)) in (0..).zip(links) {
                let (kind, origin) = match kind {
                    0 => (Kind::Route, Origin::PEER),
                    1 => (Kind::Leaf, origin(of)),
                    _ => (Kind::Hub, Origin::PEER),
                };
                let link = LinkSlot::new(slot, kind);
                let behind = Behind { link, members: 1, origin };
                interest.set_link(behind, WANTED);
                places.push((behind.via(), Some(link)));
            }
            let mut remotes = Vec::new();
            for (kind, of, shard) in shards {
                let via = match kind {
                    0 => Via::direct(Kind::Route),
                    1 => Via { kind: Kind::Leaf, origin: origin(of) },
                    2 => Via { kind: Kind::Route, origin: origin(of) },
                    _ => Via::direct(Kind::Hub),
                };
                let remote = Remote { shard: ShardId(shard), via, members: 1 };
                interest.set_remote(remote, WANTED);
                if !remotes.contains(&(shard, via)) {
                    remotes.push((shard, via));
                    places.push((via, None));
                }
            }
            let census = interest.census(WANTED);
            for slot in 0..8 {
                for (kind, of) in [(Kind::Leaf, 0), (Kind::Leaf, 1), (Kind::Hub, 0)] {
                    let link = LinkSlot::new(slot, kind);
                    let own = places.iter().find(|(_, other)| *other == Some(link));
                    if own.is_some_and(|(via, _)| via.is_to_leaves() && via.origin != origin(of)) {
                        continue; // The slot is another leaf node's.
                    }
                    let listener = InterestListener { link, origin: origin(of), is_isolated };
                    let hears = |(via, other): &&(Via, Option<LinkSlot>)| {
                        listener.hears(*via) && *other != Some(link)
                    };
                    let wanted = places.iter().filter(hears).count();
                    prop_assert_eq!(census.heard_by(&listener) as usize, wanted, "{:?}", listener);
                }
            }
        }
    }
}
