//! Interest of this server's clients, advertised to other servers.
//!
//! A filter is advertised to peers when its first subscription on any shard comes and when its last
//! one goes, and with each change of a queue group's count. Advertisements are queued in the
//! link's outbox, behind earlier output. A SUB and a publish of one client travel on the same
//! lane, so an answer never overtakes the interest in it.
//!
//! A new peer gets all interest in pieces (interest sync), 2048 places of the table per turn
//! (`PLACES_PER_TURN`), and changes at once. A change may come before the piece that its filter is
//! in, and then again with it: a repeated advertisement has no effect, and counts of queue groups
//! are replaced. A peer is not read from until the sync is complete. So no message can come from
//! it, and be answered, before it knows where the answer is waited for.

use crate::core::Core;
use crate::core::settings::RouteSettings;
use crate::interest::ids::ConnId;
use crate::interest::outlets::{answers_filter, loop_filter};
use crate::link::InterestSync;
use crate::link::leaf_told::{ToldMember, write_all_for_leaf};
use crate::proto::gateway::MAPPED_REPLIES;
use crate::proto::{leaf, route as wire};
use crate::subject::Scan;

/// Places of the table of filters that one turn looks at for new peers.
pub(crate) const PLACES_PER_TURN: usize = 2048;

impl Core {
    /// Advertises to a peer the interest that it may have now and might not before, and withdraws
    /// the reverse.
    pub(crate) fn advertise_changed(&mut self, id: ConnId, old: &RouteSettings) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let Some(link) = &conn.link else { return };
        let (spares, new) = (&mut self.spares, &self.settings.route);
        for account in self.accounts.iter().filter(|account| !account.name.is_empty()) {
            if !link.carries(&new.pooling, &account.name) {
                continue;
            }
            let name = link.written_account(account.name.as_bytes());
            let all = (&mut Scan::default(), &mut usize::MAX.clone());
            let to = ToldMember { clusters: &self.links.clusters, link, account: name };
            account.interest.censuses(all.0, all.1, |wanted, census| {
                match (old.advertises(wanted.filter), new.advertises(wanted.filter)) {
                    (false, true) => {
                        conn.outbox.push(spares, |out| {
                            to.write_all(out, wanted, census, false);
                        });
                    }
                    (true, false) => {
                        conn.outbox.push(spares, |out| {
                            to.write_all(out, wanted, census, true);
                        });
                    }
                    _ => {}
                }
            });
        }
        self.flush_soon(id);
    }

    /// Begins the interest sync of a new peer.
    pub(crate) fn start_sync(&mut self, peer: ConnId) {
        let link = self.conns.get_mut(peer).and_then(|conn| conn.link.as_mut());
        let Some(link) = link else { return };
        // Output of the sync may be pending besides; that of an earlier one should have been taken.
        link.pending_bytes_max = self.settings.limits.pending_bytes_max;
        if link.sync.replace(InterestSync::default()).is_none() {
            self.links.syncing.push_back(peer);
        }
    }

    /// Continues a peer's interest sync until `places` are used up. Returns whether it is
    /// complete.
    pub(crate) fn sync(&mut self, id: ConnId, places: &mut usize) -> bool {
        let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.is_open()) else { return true };
        let Some(link) = &mut conn.link else { return true };
        let Some(mut sync) = link.sync.take() else { return true };
        let (outbox, spares, mut bytes) = (&mut conn.outbox, &mut self.spares, 0);
        let user = conn.login.user().and_then(|user| user.permissions.as_ref());
        let listener = link.listener(id);
        let tells = |subject: &[u8]| match link.leaf() {
            Some(leaf) => leaf.gates.tells(user, subject),
            None => self.settings.route.advertises(subject),
        };
        for account in self.accounts.iter().skip(sync.account) {
            // An account costs something even if it has no interest to advertise.
            let Some(left) = places.checked_sub(1) else { break };
            *places = left;
            let is_on = link.carries(&self.settings.route.pooling, &account.name);
            if !account.name.is_empty() && is_on {
                let name = link.written_account(account.name.as_bytes());
                let scan = sync.scan.get_or_insert_with(|| {
                    let mut inside = |filter: &[u8]| {
                        if tells(filter) {
                            bytes += outbox.push(spares, |out| match listener {
                                Some(_) => leaf::interest(out, filter, None),
                                None => wire::interest(out, name, filter, None),
                            });
                        }
                    };
                    if account.answers {
                        inside(&answers_filter(&self.settings.node));
                    }
                    match listener {
                        Some(_) => {
                            inside(&loop_filter(self.settings.server_id(), &account.name));
                            if self.settings.gateway.is_some() {
                                inside(MAPPED_REPLIES);
                            }
                            account.of_server(&mut inside);
                        }
                        None => account.interest.of_imports(&mut inside),
                    }
                    Scan::default()
                });
                let clusters = &self.links.clusters;
                let is_over = account.interest.censuses(scan, places, |wanted, census| {
                    if tells(wanted.filter) {
                        bytes += outbox.push(spares, |out| match &listener {
                            Some(listener) => {
                                write_all_for_leaf(out, listener, wanted, census);
                            }
                            None => {
                                let to = ToldMember { clusters, link, account: name };
                                to.write_all(out, wanted, census, false);
                            }
                        });
                    }
                });
                if !is_over {
                    break;
                }
            }
            (sync.account, sync.scan) = (sync.account + 1, None);
        }
        // The output may be more than a peer may otherwise have pending.
        link.pending_bytes_max = link.pending_bytes_max.saturating_add(bytes);
        let is_over = sync.account >= self.accounts.ids().len();
        link.sync = (!is_over).then_some(sync);
        if is_over && outbox.pending_bytes() > link.pending_bytes_max {
            conn.takes.doom();
            self.endings.doomed.push(id);
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
    use crate::cluster::PoolPart;
    use crate::config::Options;
    use crate::engine::{
        ClusterIdentity, Engine, Identity, NewRoute, Output, Peer, RouteNotice, RouteOrder,
        Settings, ShardId,
    };

    const CLIENT: ConnId = ConnId { slot: 0, generation: 0 };
    const PEER: ConnId = ConnId { slot: 1, generation: 0 };

    /// A member with a client that wants `subjects`, and a peer that has sent its INFO.
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
        engine.on_route_order(RouteOrder::Name { name: "C".to_owned(), is_dynamic: false });
        engine.open_route(PEER, peer, NewRoute { rid: 1, dialed: None, host: "".into() });
        engine.on_bytes(PEER, b"CONNECT {\"name\":\"P\",\"cluster\":\"C\"}\r\n");
        engine.on_bytes(PEER, b"INFO {\"server_id\":\"P\",\"server_name\":\"p\"}\r\n");
        output(&mut engine);
        engine.on_route_order(RouteOrder::Register(1, PoolPart::All));
        engine.on_bytes(PEER, b"PING\r\n");
        engine
    }

    /// Returns the INFO by which a peer gossips about another server.
    fn gossip(id: usize) -> String {
        format!("INFO {{\"server_id\":\"{id}\",\"ip\":\"nats-route://127.0.0.1:1/\"}}\r\n")
    }

    fn notices(engine: &mut Engine) -> Vec<RouteNotice> {
        let notice = |output| match output {
            Output::Link(notice) => Some(*notice),
            _ => None,
        };
        std::iter::from_fn(|| engine.next_output()).filter_map(notice).collect()
    }

    #[test]
    fn a_peer_that_never_stops_speaking_of_others_is_heard_one_thing_at_a_time() {
        let mut engine = member(0);
        engine.tick();
        notices(&mut engine);
        let storm: String = (0..1000).map(gossip).collect();
        engine.on_bytes(PEER, storm.as_bytes());
        for at in 0..1000 {
            engine.end_turn();
            let notices = notices(&mut engine);
            let [RouteNotice::Heard { rid, info }] = &notices[..] else { panic!("{notices:?}") };
            assert_eq!((*rid, &info.server_id), (1, &at.to_string()));
            engine.on_route_order(RouteOrder::HearOn(1));
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
            engine.on_route_order(RouteOrder::HearOn(1));
            engine.tick();
            engine.end_turn();
        }
        let ends = |notice| matches!(notice, RouteNotice::Ended { rid: 1, .. });
        assert!(notices(&mut engine).into_iter().any(ends));
    }

    /// Subjects with and without wildcards.
    fn name(at: usize) -> String {
        if at.is_multiple_of(10) { format!("s.{at}.*") } else { format!("s.{at}") }
    }

    /// Returns the lines sent to the peer.
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
