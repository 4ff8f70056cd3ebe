//! Queue messages without a local receiver: another shard, or another server, gets them.
//!
//! A queue group is its name over all filters that match. For each message one member is drawn at
//! random over all members on all shards. A local draw starts at a random member and goes on to
//! the next one that can take the message. A remote draw puts the group and the messages (`Pick`)
//! into the record of the run. If no member there can take a message, `Engine::forward` passes it
//! on to a shard with members that it has not visited, or to a peer that has some (`Resort`).
//! Without any, the message is lost and counted (`Stats::queue_msgs_lost`). A forwarded message
//! may arrive after later messages of its publisher.

use super::interest::{Behind, QueueTargets, Remote, Targets};
use super::publish::Source;
use super::relay::{Places, draw};
use super::{Engine, ShardId};

/// Where a member of a queue group is that is not connected here.
#[derive(Debug, Clone, Copy)]
pub(super) enum Away {
    /// On another shard, or behind a route of that.
    Shard(ShardId),
    /// Behind an own route, by its slot.
    Route(u32),
}

/// How much is done for a message to reach a member of its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resort {
    /// It goes to clients on other shards, and to those of other servers if this one has it from a
    /// client.
    First,
    /// It goes to leaf nodes, and wherever members are if another server has named the group.
    Last,
    /// It does though plain subscribers there may have had it: as between nats-servers, a message
    /// that comes twice is better than one that is lost. Peers of this kind know better.
    Any,
}

impl Away {
    fn behind(behind: &Behind) -> (Self, u64) {
        (Self::Route(behind.route), u64::from(behind.members))
    }

    /// Those of the places that are behind own routes.
    pub(super) fn routes(places: &Places<Self>) -> Places<u32> {
        let route = |(away, members): &(Self, u64)| match away {
            Self::Route(route) => Some((*route, *members)),
            Self::Shard(_) => None,
        };
        places.iter().filter_map(route).collect()
    }

    /// Those that are on other shards.
    pub(super) fn shards(places: &Places<Self>) -> Places<ShardId> {
        let shard = |(away, members): &(Self, u64)| match away {
            Self::Shard(shard) => Some((*shard, *members)),
            Self::Route(_) => None,
        };
        places.iter().filter_map(shard).collect()
    }
}

impl Engine {
    /// Where members of a group are that are not connected here, by the group's place: on shards
    /// that were not visited, and behind own routes.
    pub(super) fn places(
        &self,
        source: &Source,
        (number, targets): (usize, &Targets),
        resort: Resort,
    ) -> Places<Away> {
        let Source { routed, origin, visited, .. } = *source;
        let is_late = source.is_late();
        let is_over = match resort {
            Resort::First => false,
            Resort::Last => routed && origin.is_none(),
            Resort::Any => !is_late || (routed && origin.is_none()),
        };
        if is_over {
            return Places::new();
        }
        let QueueTargets { routes, remote, .. } = &targets.queues[number];
        let takes = |behind: &Behind| {
            let counts = match resort {
                Resort::First => !routed && behind.is_peers(),
                _ if behind.is_peers() => routed || resort == Resort::Any,
                _ => Some(behind.origin) != origin,
            };
            let is_known_apart =
                || targets.is_only_for(behind.route, number) || self.tells_passed_on(behind.route);
            counts
                && self.is_open(behind.route)
                && (!is_late || resort == Resort::Any || is_known_apart())
                && (resort == Resort::First || self.may_go_back(source, behind.route))
        };
        let routes = routes.iter().filter(|behind| takes(behind)).map(Away::behind);
        let members = |remote: &Remote| {
            let is_told = is_late && targets.routers.contains(remote.shard);
            match resort {
                Resort::First => remote.members(routed || is_told),
                Resort::Last if is_told => 0,
                Resort::Last => remote.last_resorts(routed),
                Resort::Any => remote.members(false) + remote.last_resorts(false),
            }
        };
        let shards = remote.iter().filter(|remote| !visited.contains(remote.shard));
        routes.chain(shards.map(|remote| (Away::Shard(remote.shard), members(remote)))).collect()
    }

    /// One of those places at random; none if there are none.
    pub(super) fn place_away(
        &mut self,
        source: &Source,
        group: (usize, &Targets),
        resort: Resort,
    ) -> Option<Away> {
        let places = self.places(source, group, resort);
        draw(&mut self.rng, &places)
    }

    /// Whether a message may go over a route that it may have come by. Peers of this kind want none
    /// back: nobody knows there any more who has published it, and wants no echo.
    fn may_go_back(&self, source: &Source, route: u32) -> bool {
        let Source { publisher, echo, .. } = *source;
        let is_senders = publisher.shard == self.shard && publisher.conn.slot == route;
        echo || !is_senders
    }

    /// Whether the peer tells what was passed on for queue groups from what is for everybody.
    fn tells_passed_on(&self, slot: u32) -> bool {
        let route = self.conns.at(slot).and_then(|conn| conn.route.as_ref());
        route.is_some_and(|route| route.tells_passed_on())
    }

    fn is_open(&self, slot: u32) -> bool {
        self.conns.at(slot).is_some_and(|conn| conn.is_open())
    }
}
