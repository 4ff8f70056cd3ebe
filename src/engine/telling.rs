//! Announced interest: what this server's clients want, told to other servers.
//!
//! A peer is told of a filter when its first subscription on any shard comes and when its last one
//! goes, and of each change of a queue group's count. Announcements are queued in the route's
//! outbox, behind earlier output. A SUB and a publish of one client travel on the same lane, so an
//! answer never overtakes the interest in it.
//!
//! A new peer is told everything in pieces, 2048 places of the table per turn (`PLACES_PER_TURN`),
//! and changes at once. A change may be told before the piece that its filter is in, and then
//! again with it: a repeated announcement has no effect, and counts of queue groups are replaced.
//! A peer is not read from until it was told everything. So no message can come from it, and be
//! answered, before it knows where the answer is waited for.

#![forbid(unsafe_code)]

use super::imports::answers_filter;
use super::settings::RouteSettings;
use super::{AccountId, ConnId, Engine};
use crate::proto::route as wire;
use crate::subject::Scan;

/// Places of the table of filters that one turn looks at for new peers.
const PLACES_PER_TURN: usize = 2048;

/// How far a new peer has been told what clients want.
#[derive(Debug)]
pub(super) struct Telling {
    peer: ConnId,
    account: usize,
    /// Where in its table of filters; none before its first piece.
    scan: Option<Scan>,
}

impl Engine {
    /// Tells all peers what clients of this server want of a filter.
    pub(super) fn tell_routes(
        &mut self,
        account: AccountId,
        (subject, queue): (&[u8], Option<&[u8]>),
        members: u32,
    ) {
        if self.cluster.routes.is_empty() {
            return;
        }
        let name = self.accounts.name(account);
        let interest = &self.accounts.at(account).interest;
        if name.is_empty() || (members == 0 && queue.is_none() && interest.has_outlet(subject)) {
            return; // Not configured, or still wanted by another account.
        }
        if !self.settings.route.tells(subject) {
            return;
        }
        for at in 0..self.cluster.routes.len() {
            let id = self.cluster.routes[at];
            let Some(route) = self.conns.get(id).and_then(|conn| conn.route.as_ref()) else {
                continue;
            };
            if !self.settings.route.pooling.is_on(&name, &route.part, route.modulus) {
                continue;
            }
            let name = if route.is_dedicated() { b"" } else { name.as_bytes() };
            self.reply(id, |out| match members {
                0 => wire::no_interest(out, name, subject, queue),
                _ => wire::interest(out, name, subject, queue.map(|queue| (queue, members))),
            });
        }
    }

    /// Tells a peer what it may be told now and might not before, and the other way round.
    pub(super) fn tell_changed(&mut self, id: ConnId, old: &RouteSettings) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let Some(route) = &conn.route else { return };
        let (spares, new) = (&mut self.spares, &self.settings.route);
        for account in self.accounts.iter().filter(|account| !account.name.is_empty()) {
            if !new.pooling.is_on(&account.name, &route.part, route.modulus) {
                continue;
            }
            let name = if route.is_dedicated() { b"" } else { account.name.as_bytes() };
            let all = (&mut Scan::default(), &mut usize::MAX.clone());
            account.interest.of_clients(all.0, all.1, |subject, queue| {
                match (old.tells(subject), new.tells(subject)) {
                    (false, true) => {
                        conn.outbox.push(spares, |out| wire::interest(out, name, subject, queue));
                    }
                    (true, false) => {
                        let queue = queue.map(|(queue, _)| queue);
                        conn.outbox
                            .push(spares, |out| wire::no_interest(out, name, subject, queue));
                    }
                    _ => {}
                }
            });
        }
        self.flush_soon(id);
    }

    /// A new peer is to be told what clients of this server want.
    pub(super) fn start_telling(&mut self, peer: ConnId) {
        let route = self.conns.get_mut(peer).and_then(|conn| conn.route.as_mut());
        let Some(route) = route else { return };
        // What is told now may be pending besides; what was told before should have been taken.
        route.pending_bytes_max = self.settings.limits.pending_bytes_max;
        self.tellings.push_back(Telling { peer, account: 0, scan: None });
    }

    /// Tells new peers the next piece.
    pub(super) fn advance_tellings(&mut self) {
        let mut places = PLACES_PER_TURN;
        while places > 0
            && let Some(mut telling) = self.tellings.pop_front()
        {
            match self.tell(&mut telling, &mut places) {
                true => self.hear_route(telling.peer),
                false => self.tellings.push_back(telling),
            }
        }
    }

    /// Goes on until `places` are used up. Returns whether the peer was told everything.
    fn tell(&mut self, telling: &mut Telling, places: &mut usize) -> bool {
        let id = telling.peer;
        let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.is_open()) else { return true };
        let Some(route) = &mut conn.route else { return true };
        let (outbox, spares, mut bytes) = (&mut conn.outbox, &mut self.spares, 0);
        let is_dedicated = route.is_dedicated();
        for account in self.accounts.iter().skip(telling.account) {
            // An account costs something even if nothing is to be said of it.
            let Some(left) = places.checked_sub(1) else { break };
            *places = left;
            let is_on =
                self.settings.route.pooling.is_on(&account.name, &route.part, route.modulus);
            if !account.name.is_empty() && is_on {
                let name = if is_dedicated { b"" } else { account.name.as_bytes() };
                let mut tell = |subject: &[u8], queue: Option<(&[u8], u32)>| {
                    if self.settings.route.tells(subject) {
                        let write = |out: &mut Vec<u8>| wire::interest(out, name, subject, queue);
                        bytes += outbox.push(spares, write);
                    }
                };
                let scan = telling.scan.get_or_insert_with(|| {
                    if account.answers {
                        tell(&answers_filter(&self.settings.node), None);
                    }
                    account.interest.of_imports(|subject| tell(subject, None));
                    Scan::default()
                });
                if !account.interest.of_clients(scan, places, &mut tell) {
                    break;
                }
            }
            (telling.account, telling.scan) = (telling.account + 1, None);
        }
        // It may be more than a peer may otherwise have pending.
        route.pending_bytes_max = route.pending_bytes_max.saturating_add(bytes);
        let is_over = telling.account >= self.accounts.ids().len();
        if is_over && outbox.pending_bytes() > route.pending_bytes_max {
            conn.is_doomed = true;
            self.doomed.push(id);
        }
        self.flush_soon(id);
        is_over
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::rc::Rc;

    use proptest::prelude::*;

    use super::*;
    use crate::cluster::Part;
    use crate::config::Options;
    use crate::engine::{
        ClusterIdentity, Identity, NewRoute, Peer, RouteNotice, Settings, ShardId,
    };

    const CLIENT: ConnId = ConnId { slot: 0, generation: 0 };
    const PEER: ConnId = ConnId { slot: 1, generation: 0 };

    /// A member with a client that wants `subjects`, and a peer that has said who it is.
    fn member(subjects: usize) -> Engine {
        let cluster = ClusterIdentity { name: "C".to_owned(), ..Default::default() };
        let identity = Identity { cluster: Some(cluster), ..Default::default() };
        let settings = Settings::new(&Default::default(), &identity, usize::MAX);
        let mut engine = Engine::new(ShardId(0), 1, Rc::new(settings), 1);
        let peer = Peer { cid: 1, ip: "".into(), port: 1 };
        engine.open(CLIENT, peer.clone(), true);
        engine.on_bytes(CLIENT, b"CONNECT {\"verbose\":false}\r\n");
        for at in 0..subjects {
            engine.on_bytes(CLIENT, format!("SUB {0} {0}\r\n", name(at)).as_bytes());
            engine.end_turn();
        }
        engine.name_cluster("C", false);
        engine.open_route(PEER, peer, NewRoute { rid: 1, dialed: None, host: "".into() });
        engine.on_bytes(PEER, b"CONNECT {\"name\":\"P\",\"cluster\":\"C\"}\r\n");
        engine.on_bytes(PEER, b"INFO {\"server_id\":\"P\",\"server_name\":\"p\"}\r\n");
        output(&mut engine);
        engine.register_route(1, Part::All);
        engine.on_bytes(PEER, b"PING\r\n");
        engine
    }

    /// What a peer says of another server.
    fn gossip(id: usize) -> String {
        format!("INFO {{\"server_id\":\"{id}\",\"ip\":\"nats-route://127.0.0.1:1/\"}}\r\n")
    }

    #[test]
    fn a_peer_that_never_stops_speaking_of_others_is_heard_one_thing_at_a_time() {
        let mut engine = member(0);
        engine.tick();
        while engine.pop_route_notice().is_some() {}
        let storm: String = (0..1000).map(gossip).collect();
        engine.on_bytes(PEER, storm.as_bytes());
        for at in 0..1000 {
            engine.end_turn();
            let notices: Vec<_> = std::iter::from_fn(|| engine.pop_route_notice()).collect();
            let [RouteNotice::Heard { rid, info }] = &notices[..] else { panic!("{notices:?}") };
            assert_eq!((*rid, &info.server_id), (1, &at.to_string()));
            engine.hear_on(1);
            engine.tick();
        }
        assert_eq!(output(&mut engine).last().map(String::as_str), Some("PONG"));
        engine.on_bytes(PEER, b"PING\r\n");
        engine.end_turn();
        assert_eq!(output(&mut engine), ["PONG"]);
    }

    #[test]
    fn who_is_told_everything_again_and_again_and_takes_nothing_is_cut() {
        let (subjects, options) = (1000, Options::default());
        let mut engine = member(subjects);
        let told_max = options.limits.pending_bytes_max / (subjects * "RS+ $G s.1\r\n".len());
        for at in 0..told_max + 2 {
            let allow = if at % 2 == 0 { "a" } else { "b" };
            let info =
                format!("INFO {{\"server_id\":\"P\",\"import\":{{\"allow\":[\"{allow}\"]}}}}");
            engine.on_bytes(PEER, format!("{info}\r\n").as_bytes());
            engine.hear_on(1);
            engine.tick();
            engine.end_turn();
        }
        let ends = |notice| matches!(notice, RouteNotice::Ended { rid: 1, .. });
        assert!(std::iter::from_fn(|| engine.pop_route_notice()).any(ends));
    }

    /// Subjects with and without wildcards.
    fn name(at: usize) -> String {
        if at.is_multiple_of(10) { format!("s.{at}.*") } else { format!("s.{at}") }
    }

    /// What the peer is sent.
    fn output(engine: &mut Engine) -> Vec<String> {
        let mut bytes = Vec::new();
        while let Some(batch) = engine.take_batch(PEER) {
            let before = bytes.len();
            bytes.extend(batch.iter().flat_map(|piece| piece.bytes()));
            engine.on_sent(PEER, bytes.len() - before, Some(batch));
        }
        let text = String::from_utf8(bytes).expect("the protocol is text");
        text.lines().map(str::to_owned).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn a_peer_is_told_everything_in_bounded_pieces_and_heard_only_then(
            subjects in 0..12_000usize,
            changes in prop::collection::vec(
                prop::collection::vec((any::<bool>(), 0..14_000usize), 0..40),
                0..12,
            ),
        ) {
            let mut engine = member(subjects);
            let mut wanted: BTreeSet<usize> = (0..subjects).collect();
            let (mut known, mut changes) = (BTreeSet::new(), changes.into_iter());
            let mut turns = 0;
            loop {
                engine.tick();
                engine.end_turn();
                let mut lines = output(&mut engine);
                let is_over = lines.last().is_some_and(|line| line == "PONG");
                if is_over {
                    lines.pop();
                }
                prop_assert!(!lines.contains(&"PONG".to_owned()));
                // A node of the tree of wildcards has two filters at most.
                prop_assert!(lines.len() <= 2 * PLACES_PER_TURN, "{} in one turn", lines.len());
                // Changes leave at once.
                let changes = changes.next().unwrap_or_default();
                for (comes, at) in changes {
                    let (verb, is_new) = match comes {
                        true => ("SUB", wanted.insert(at)),
                        false => ("UNSUB", wanted.remove(&at)),
                    };
                    let name = name(at);
                    let line = match comes {
                        true => format!("{verb} {name} {name}\r\n"),
                        false => format!("{verb} {name}\r\n"),
                    };
                    engine.on_bytes(CLIENT, line.as_bytes());
                    let told = output(&mut engine);
                    prop_assert_eq!(told.len(), usize::from(is_new));
                    lines.extend(told);
                }
                for line in lines {
                    match line.split_once(" $G ") {
                        Some(("RS+", subject)) => drop(known.insert(subject.to_owned())),
                        Some((_, subject)) => drop(known.remove(subject)),
                        None => {} // What the server answers itself, in its own account.
                    }
                }
                turns += 1;
                if is_over {
                    break;
                }
                prop_assert!(engine.next_deadline() == Some(0), "nobody sleeps meanwhile");
                prop_assert!(turns < 100, "it comes to an end");
            }
            let wanted: BTreeSet<String> = wanted.into_iter().map(name).collect();
            prop_assert_eq!(known, wanted);
            prop_assert!(turns > subjects / (2 * PLACES_PER_TURN));
        }
    }
}
