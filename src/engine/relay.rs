//! Runs to other servers: rendered once per route, or once for all routes that get the same.
//!
//! `Engine::deliver_to_routes` names the queue groups of which members behind a route were picked.
//! A pick is by weight, in two steps: first a shard or one of its own routes, then, on that shard,
//! a client or a route. A run that came over a route is for clients of this server only and never
//! leaves by another route. The exception is a queue message that was named for a group without a
//! client left here: it goes on to another peer, never back to its origin. Members of a queue
//! group at a leaf node of a peer come after all others (`Engine::last_resorts`).

#![forbid(unsafe_code)]

use smallvec::SmallVec;

use super::Engine;
use super::interest::{Member, QueueTargets};
use super::message_trace::Numbered;
use super::publish::{Backlog, Source};
use super::run::Run;
use crate::output::Segment;
use crate::proto::route;

/// A run of less than this is copied to each of several routes; beyond, it is shared.
const COPY_RUN_BYTES_MAX: usize = 1024;

/// A run as it is rendered for several routes: without headers or with; with the name of its
/// account, or without.
type Shared = [[Option<Segment>; 2]; 2];

/// A message of a run, from 0, that goes over a route to a member of a queue group.
#[derive(Debug, Clone, Copy)]
pub(super) struct RoutePick {
    /// The slot of the route.
    pub(super) route: u32,
    /// The group's place among those that the subject resolves to.
    pub(super) group: u32,
    pub(super) at: u32,
}

/// What of a run goes over a route.
#[derive(Debug, Clone, Copy)]
struct Picked<'a> {
    /// All of it: there is plain interest.
    is_plain: bool,
    /// The peer is told that only queue groups may get it.
    is_late: bool,
    /// What goes there for queue groups, in order.
    mine: &'a [RoutePick],
    groups: &'a [QueueTargets],
}

/// Places where members of a queue group are: routes or shards, and how many are there.
pub(super) type Places<T> = SmallVec<[(T, u64); 4]>;

/// How many those are.
pub(super) fn members<T>(places: &Places<T>) -> u64 {
    places.iter().map(|(_, members)| members).sum()
}

/// One of the places, at random by their members; none if there are none.
pub(super) fn draw<T: Copy>(rng: &mut fastrand::Rng, places: &Places<T>) -> Option<T> {
    let all = members(places);
    let mut pick = (all > 0).then(|| rng.u64(..all))?;
    for (place, members) in places {
        match pick.checked_sub(*members) {
            Some(rest) => pick = rest,
            None => return Some(*place),
        }
    }
    None
}

impl Engine {
    /// Sends the run over the own routes in `plain`, and of those in `picks` what was picked: one
    /// copy of each message for each route.
    pub(super) fn deliver_to_routes(
        &mut self,
        source: &Source,
        run: &Run<'_>,
        plain: &[u32],
        groups: &[QueueTargets],
        mut picks: Vec<RoutePick>,
    ) {
        if plain.is_empty() && picks.is_empty() {
            return;
        }
        let traced = self.trace.is_some();
        let account = self.accounts.name(source.account);
        let account = account.as_bytes();
        picks.sort_by_key(|pick| (pick.route, pick.at));
        let mut shared = Shared::default();
        let mut backlog =
            Backlog { level_bytes: self.backlog_level_bytes(1), ..Backlog::default() };
        let mut members: SmallVec<[Member; 4]> = SmallVec::new();
        let picked = picks.chunk_by(|one, other| one.route == other.route);
        let picked_only = picked.clone().map(|mine| mine[0].route);
        let picked_only = picked_only.filter(|route| !plain.contains(route));
        for slot in plain.iter().copied().chain(picked_only) {
            let mine = picked.clone().find(|mine| mine[0].route == slot).unwrap_or_default();
            let is_plain = plain.contains(&slot);
            let numbered = if traced { self.trace_hop(slot, run) } else { None };
            if traced && numbered.is_none() {
                continue;
            }
            let numbered = numbered.as_ref().map(Numbered::run);
            let is_shared = mine.is_empty() && plain.len() > 1 && !traced;
            let is_late = source.is_late() && !is_plain;
            let picked = Picked { is_plain, is_late, mine, groups };
            let run = numbered.as_ref().unwrap_or(run);
            if self.relay(account, run, slot, picked, is_shared, &mut shared) {
                self.conns.at(slot).into_iter().for_each(|conn| backlog.count(conn));
                members.push(Member { conn: slot, sub: 0 });
                self.place_first(if is_plain { run.len() } else { 0 });
                mine.iter().for_each(|pick| self.place_at(pick.at as usize));
            }
        }
        shared
            .into_iter()
            .flatten()
            .flatten()
            .for_each(|segment| self.spares.keep_segment(segment));
        if backlog.behind * 2 > backlog.members {
            self.wait_for(source, members.iter(), backlog.level_bytes);
        }
    }

    /// Sends over one route what it is to get.
    fn relay(
        &mut self,
        account: &[u8],
        run: &Run<'_>,
        slot: u32,
        mut picked: Picked<'_>,
        is_shared: bool,
        shared: &mut Shared,
    ) -> bool {
        let Some(conn) = self.conns.at_mut(slot).filter(|conn| conn.takes_deliveries()) else {
            return false;
        };
        let Some(route) = &conn.route else { return false };
        let (headers, spares) = (route.headers, &mut self.spares);
        picked.is_late &= route.tells_passed_on();
        let account = if route.is_dedicated() { b"" } else { account };
        let (mut count, mut bytes) = (run.len(), run.payload_bytes());
        let whole = |out: &mut Vec<u8>| render(run, account, headers, out);
        if is_shared {
            let shared = &mut shared[usize::from(headers)][usize::from(route.is_dedicated())];
            let segment = shared.get_or_insert_with(|| spares.segment(whole));
            if run.wire_bytes() < COPY_RUN_BYTES_MAX {
                conn.outbox.push(spares, |out| out.extend_from_slice(segment));
            } else {
                conn.outbox.push_shared(segment, 0..segment.len());
            }
        } else if picked.mine.is_empty() {
            conn.outbox.push(spares, whole);
        } else {
            conn.outbox.push(spares, |out| {
                (count, bytes) = render_picked(run, account, headers, picked, out);
            });
        }
        conn.traffic.out_msgs += count as u64;
        conn.traffic.out_bytes += bytes as u64;
        self.stats.routed.out_msgs += count as u64;
        self.stats.routed.out_bytes += bytes as u64;
        if conn.outbox.pending_bytes() > route.pending_bytes_max {
            self.doomed.push(conn.id);
            conn.is_doomed = true;
        }
        if !conn.dirty {
            conn.timing.last_delivered = self.now;
            conn.timing.oldest_arrived = conn.timing.oldest_arrived.min(self.arrived);
            conn.flush(&mut self.flushes, true);
        }
        true
    }
}

fn render(run: &Run<'_>, account: &[u8], headers: bool, out: &mut Vec<u8>) {
    out.reserve(run.wire_bytes() + run.len() * (account.len() + 3));
    let start = out.len();
    route::msg_prefix(out, false, account, run.subject());
    let prefix: SmallVec<[u8; 96]> = SmallVec::from_slice(&out[start..]);
    out.truncate(start);
    for message in run.publishes() {
        match (&message.header, message.tail) {
            (None, Some(tail)) => {
                out.extend_from_slice(&prefix);
                out.extend_from_slice(tail);
            }
            _ => route::msg(out, account, message, &[], headers),
        }
    }
}

/// Renders the messages of `mine` with the names of their groups, and the others if it is plain.
/// Returns how many those are, and the bytes of their payloads.
fn render_picked(
    run: &Run<'_>,
    account: &[u8],
    headers: bool,
    Picked { is_plain, is_late, mine, groups }: Picked<'_>,
    out: &mut Vec<u8>,
) -> (usize, usize) {
    let mut rest = mine;
    let (mut count, mut bytes) = (0, 0);
    for (at, message) in run.publishes().enumerate() {
        let picked = rest.iter().take_while(|pick| pick.at as usize == at).count();
        let (now, later) = rest.split_at(picked);
        rest = later;
        if is_plain || !now.is_empty() {
            let name = |pick: &RoutePick| &*groups[pick.group as usize].name;
            let mut queues: SmallVec<[&[u8]; 4]> = now.iter().map(name).collect();
            if is_late {
                route::pass_on(&mut queues);
            }
            route::msg(out, account, message, &queues, headers);
            count += 1;
            bytes += message.payload.len();
        }
    }
    (count, bytes)
}
