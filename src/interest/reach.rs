//! Reach: the kinds of connections between which messages go on.
//!
//! A message passes two servers of a cluster at most, and never goes back over the link it came
//! by. All that follows from one table, [`may_reach`], which `tests/live/reach.rs` holds against
//! nats-server.

use smallvec::SmallVec;

use crate::interest::ids::{Origin, ShardId, ShardSet};

/// A kind of connection, as the other end of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A client of this server.
    Client,
    /// Another server of the cluster.
    Route,
    /// A leaf node of this server.
    Leaf,
    /// A server of which this one is a leaf node.
    Hub,
    /// A server of another cluster.
    Gateway,
}

/// A count for each kind.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct PerKind([u64; KINDS]);

impl PerKind {
    /// Counts one of `kind`.
    pub(crate) fn add(&mut self, kind: Kind) {
        self.0[kind as usize] += 1;
    }

    /// Returns the count of a kind.
    pub const fn of(&self, kind: Kind) -> u64 {
        self.0[kind as usize]
    }

    /// Returns the count of all kinds together.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

impl std::ops::AddAssign for PerKind {
    fn add_assign(&mut self, other: Self) {
        self.0.iter_mut().zip(other.0).for_each(|(count, more)| *count += more);
    }
}

/// Number of kinds.
pub const KINDS: usize = 5;

impl Kind {
    /// All kinds, in order.
    pub const ALL: [Self; KINDS] =
        [Self::Client, Self::Route, Self::Leaf, Self::Hub, Self::Gateway];

    /// Whether another server is at the other end.
    pub const fn is_server(self) -> bool {
        !matches!(self, Self::Client)
    }

    /// Returns the kind as the log names it.
    pub(crate) const fn noun(self) -> &'static str {
        match self {
            Self::Client => "Client",
            Self::Route => "Router",
            Self::Leaf | Self::Hub => "Leafnode",
            Self::Gateway => "Gateway",
        }
    }

    /// Returns the kind as messages about TLS name it; empty for clients.
    pub(crate) const fn lower_noun(self) -> &'static str {
        match self {
            Self::Client => "",
            Self::Route => "route",
            Self::Leaf | Self::Hub => "leafnode",
            Self::Gateway => "gateway",
        }
    }

    /// Returns the name that the log gives to the number of such a connection.
    pub(crate) const fn number_noun(self) -> &'static str {
        match self {
            Self::Client => "cid",
            Self::Route => "rid",
            Self::Leaf | Self::Hub => "lid",
            Self::Gateway => "gid",
        }
    }

    /// Whether interest from there is that of the own cluster, with its leaf nodes.
    pub const fn is_of_cluster(self) -> bool {
        !matches!(self, Self::Gateway)
    }

    /// Whether a message from there has entered the services that it is for on the server where it
    /// was published.
    pub const fn has_entered_services(self) -> bool {
        self.has_served_cluster() || matches!(self, Self::Gateway)
    }

    /// Whether other servers of the cluster get messages from there without this server.
    pub const fn has_served_cluster(self) -> bool {
        matches!(may_reach(self, Self::Route), Reach::No)
    }
}

/// The messages that go from one kind of connection to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// No message goes.
    No,
    /// All messages go.
    Yes,
    /// All messages go, but not back over the connection that they came by.
    Others,
    /// Only answers of services (`_R_.>`) go.
    ServiceReplies,
}

/// Returns the messages from a connection of one kind that go to interest behind another.
pub const fn may_reach(from: Kind, to: Kind) -> Reach {
    use Kind::{Client, Gateway, Hub, Leaf, Route};
    match (from, to) {
        (Client, _) | (_, Client) => Reach::Yes,
        // All servers of a cluster have a route to each other.
        (Route, Route | Gateway) => Reach::No,
        (Route, Leaf) => Reach::Yes,
        // Each server of a cluster may have the hub for itself, and knows the requester's.
        (Route, Hub) => Reach::ServiceReplies,
        (Leaf, Leaf) | (Hub, Hub) => Reach::Others,
        (Leaf, Route | Hub | Gateway) => Reach::Yes,
        // The other servers of the cluster have the hub for themselves.
        (Hub, Route) => Reach::No,
        (Hub, Leaf | Gateway) => Reach::Yes,
        (Gateway, Route | Leaf | Hub) => Reach::Yes,
        // All clusters have gateways to each other.
        (Gateway, Gateway) => Reach::No,
    }
}

/// Whether a message to `subject` that came from one kind of connection goes to another.
pub(crate) const fn reaches(from: Kind, to: Kind, subject: &[u8]) -> bool {
    match may_reach(from, to) {
        Reach::Yes | Reach::Others => true,
        Reach::ServiceReplies => matches!(subject, [b'_', b'R', b'_', b'.', ..]),
        Reach::No => false,
    }
}

/// The way on which a shard reaches members of a queue group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Via {
    /// The kind of the connection.
    pub(crate) kind: Kind,
    /// The leaf nodes that the members are at, directly or behind the server of the connection, if
    /// they are at some: such members are the last to be chosen.
    pub(crate) origin: Origin,
}

impl Via {
    /// The way to clients of the shard itself.
    pub(crate) const CLIENTS: Self = Self::direct(Kind::Client);

    /// The way to members behind a connection of that kind, without more servers between.
    pub(crate) const fn direct(kind: Kind) -> Self {
        Self { kind, origin: Origin::PEER }
    }

    /// Whether a member on this way may be chosen for a message as long as there are members that
    /// take it; all others are a last resort.
    pub(crate) const fn is_first_choice(self, from: Kind) -> bool {
        let is_near = !self.is_to_leaves() && matches!(self.kind, Kind::Client | Kind::Route);
        is_near && matches!(may_reach(from, self.kind), Reach::Yes)
    }

    /// Whether the members are at leaf nodes.
    pub(crate) const fn is_to_leaves(self) -> bool {
        !matches!(self.origin, Origin::PEER)
    }

    /// Whether a member on this way may be chosen at all for a message, which is of leaf nodes of
    /// that origin if it is of some.
    ///
    /// A message of a member of the cluster may go on to another member, for a queue group that it
    /// was named for and that has nobody left here.
    pub(crate) fn may_be_chosen(self, from: Kind, of: Option<Origin>) -> bool {
        let goes = match (from, self.kind) {
            (Kind::Route, Kind::Route) => true,
            (_, kind) => matches!(may_reach(from, kind), Reach::Yes | Reach::Others),
        };
        goes && !(self.is_to_leaves() && of.is_some_and(|of| of.has_served(self.origin)))
    }
}

/// Sets of shards with interest, by the kind of the connections that they have it from.
///
/// There is one for each filter, and nearly all are of clients and routes only.
#[derive(Debug, Default)]
pub(crate) struct ShardsByKind {
    /// Sets of [`Via::CLIENTS`], and of routes to members that want the filter for themselves.
    near: [ShardSet; NEAR_KINDS],
    /// All other interest; none if there is none.
    far: Option<Box<FarShards>>,
}

/// Number of the first kinds: [`Kind::Client`] and [`Kind::Route`].
const NEAR_KINDS: usize = 2;

/// Shards with interest of others than clients and members.
#[derive(Debug, Default)]
struct FarShards {
    /// Sets by kind, of interest in [`Self::ways`] only.
    sets: [ShardSet; KINDS],
    /// Each shard with each way by which it has interest.
    ways: SmallVec<[(Via, ShardId); 2]>,
}

impl FarShards {
    fn set(&mut self, via: Via, shard: ShardId, is_in: bool) {
        self.ways.retain(|way| *way != (via, shard));
        if is_in {
            self.ways.push((via, shard));
        }
        let of_kind = self.ways.iter().filter(|(other, _)| other.kind == via.kind);
        self.sets[via.kind as usize] = of_kind.map(|(_, shard)| *shard).collect();
    }
}

impl ShardsByKind {
    pub(crate) fn of(&self, kind: Kind) -> ShardSet {
        let near = self.near.get(kind as usize).copied().unwrap_or_default();
        self.far.as_ref().map_or(near, |far| near.union(far.sets[kind as usize]))
    }

    /// Whether any shard has the interest from the own cluster.
    pub(crate) fn has_cluster(&self) -> bool {
        self.near.iter().any(|set| !set.is_empty())
            || self.far.is_some()
                && Kind::ALL
                    .into_iter()
                    .any(|kind| kind.is_of_cluster() && !self.of(kind).is_empty())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.near.iter().all(|set| set.is_empty()) && self.far.is_none()
    }

    /// Whether a shard has interest in that way.
    pub(crate) fn has(&self, via: Via, shard: ShardId) -> bool {
        match (via.origin, self.near.get(via.kind as usize)) {
            (Origin::PEER, Some(near)) => near.contains(shard),
            _ => self.far.as_ref().is_some_and(|far| far.ways.contains(&(via, shard))),
        }
    }

    /// Enters a shard, or takes it out.
    pub(crate) fn set(&mut self, via: Via, shard: ShardId, is_in: bool) {
        match (via.origin, self.near.get_mut(via.kind as usize)) {
            (Origin::PEER, Some(near)) if is_in => near.insert(shard),
            (Origin::PEER, Some(near)) => near.remove(shard),
            _ if is_in || self.far.is_some() => {
                self.far.get_or_insert_default().set(via, shard, is_in);
                self.far.take_if(|far| far.ways.is_empty());
            }
            _ => {}
        }
    }

    /// Returns each way by which shards have interest, with the number of these shards.
    pub(crate) fn ways(&self) -> impl Iterator<Item = (Via, u32)> + '_ {
        let near = [Kind::Client, Kind::Route].into_iter().zip(&self.near);
        let near = near.map(|(kind, set)| (Via::direct(kind), set.len()));
        let far = self.far.iter().flat_map(|far| far.ways.iter().map(|(via, _)| (*via, 1)));
        near.filter(|(_, shards)| *shards > 0).chain(far)
    }

    /// Adds the sets of another filter.
    pub(crate) fn add(&mut self, other: &Self) {
        for (set, other) in self.near.iter_mut().zip(&other.near) {
            *set = set.union(*other);
        }
        if let Some(others) = &other.far {
            let far = self.far.get_or_insert_default();
            for (set, other) in far.sets.iter_mut().zip(&others.sets) {
                *set = set.union(*other);
            }
            // Who is asked for receivers is not asked for ways.
        }
    }

    /// Returns the shards that a message to `subject` goes to if it came from such a connection.
    pub(crate) fn reachable_from(&self, from: Kind, subject: &[u8]) -> ShardSet {
        let kinds = Kind::ALL.into_iter().filter(|to| reaches(from, *to, subject));
        kinds.fold(ShardSet::default(), |all, kind| all.union(self.of(kind)))
    }
}

/// A connection to another server, by its slot, and its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LinkSlot(u32);

impl LinkSlot {
    /// Bits of the slot, below those of the kind: there is one such value for each filter, and far
    /// fewer connections.
    const KIND_SHIFT: u32 = u32::BITS - 3;

    pub(crate) fn new(slot: u32, kind: Kind) -> Self {
        debug_assert!(slot < 1 << Self::KIND_SHIFT, "connections are far fewer");
        Self(slot | (kind as u32) << Self::KIND_SHIFT)
    }

    pub(crate) fn slot(self) -> u32 {
        self.0 & ((1 << Self::KIND_SHIFT) - 1)
    }

    pub(crate) fn kind(self) -> Kind {
        Kind::ALL[(self.0 >> Self::KIND_SHIFT) as usize % KINDS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_keeps_its_slot_and_its_kind() {
        for kind in Kind::ALL {
            for slot in [0, 1, 4095, (1 << 29) - 1] {
                let link = LinkSlot::new(slot, kind);
                assert_eq!((link.slot(), link.kind()), (slot, kind));
            }
        }
    }

    #[test]
    fn shards_are_found_from_where_the_table_says_and_take_no_memory_when_all_have_gone() {
        let mut shards = ShardsByKind::default();
        let of = |kind: Kind| ShardId(kind as u8);
        Kind::ALL.into_iter().for_each(|kind| shards.set(Via::direct(kind), of(kind), true));
        for from in Kind::ALL {
            for (subject, replies) in [(&b"a"[..], false), (b"_R_.a", true)] {
                let found = shards.reachable_from(from, subject);
                for to in Kind::ALL {
                    let goes = match may_reach(from, to) {
                        Reach::ServiceReplies => replies,
                        reach => reach != Reach::No,
                    };
                    assert_eq!(found.contains(of(to)), goes, "{from:?} to {to:?}");
                }
            }
        }
        Kind::ALL.into_iter().for_each(|kind| shards.set(Via::direct(kind), of(kind), false));
        assert!(shards.is_empty() && shards.far.is_none());
    }

    #[test]
    fn what_reaches_what_is_the_table_of_nats_server() {
        const YES: Reach = Reach::Yes;
        const NO: Reach = Reach::No;
        const OTHERS: Reach = Reach::Others;
        const REPLIES: Reach = Reach::ServiceReplies;
        #[rustfmt::skip]
        let table = [
            //               client route leaf    hub      gateway
            (Kind::Client,  [YES,   YES,  YES,    YES,     YES]),
            (Kind::Route,   [YES,   NO,   YES,    REPLIES, NO]),
            (Kind::Leaf,    [YES,   YES,  OTHERS, YES,     YES]),
            (Kind::Hub,     [YES,   NO,   YES,    OTHERS,  YES]),
            (Kind::Gateway, [YES,   YES,  YES,    YES,     NO]),
        ];
        for (from, row) in table {
            assert_eq!(Kind::ALL.map(|to| may_reach(from, to)), row, "from {from:?}");
        }
        assert_eq!(table.map(|(from, _)| from), Kind::ALL);
    }
}
