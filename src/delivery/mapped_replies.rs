//! Replies that name their cluster: mapped on the way to other clusters, and answers to them.
//!
//! **There.** A reply that recent interest covers is mapped when the request leaves for another
//! cluster: it names this cluster and this server, because the interest in it may not have come
//! there yet.
//!
//! **At the responder.** Its server shows it the plain reply, and sends the answer straight to the
//! cluster that the mapped one names, whatever that is interested in, and to nobody else. A leaf
//! node sends it to its hub, which tells all its leaf nodes that it wants mapped subjects.
//!
//! **Home.** A server of the requester's cluster passes the answer on to the one that is named, by
//! its route, or delivers it as a message to the plain subject.
//!
//! Dialled gateways are on the last shard, and the routes to a member on any: answers travel
//! between shards under their mapped subjects, and go over links only.

use smallvec::SmallVec;

use crate::core::Core;
use crate::delivery::publish::{Audience, Source};
use crate::delivery::{crossing, deliver, relay, services, taps};
use crate::interest::ids::{AccountId, ShardSet};
use crate::interest::reach::{Kind, LinkSlot};
use crate::interest::targets::{Member, Targets};
use crate::link::Link;
use crate::proto::gateway::{self as wire, NameHash, split_mapped};
use crate::proto::route;
use crate::run::Run;

/// The replies of a run's messages, in order, as they go to other clusters; `None` for one that
/// stays.
pub(super) type Replies = Vec<Option<Box<[u8]>>>;

/// Returns the replies of a run for other clusters; `None` if all stay.
pub(super) fn mapped(core: &mut Core, account: AccountId, run: &Run<'_>) -> Option<Replies> {
    if !run.has_reply || core.links.gateways.outbounds.is_empty() {
        return None;
    }
    let (cluster, server) = core.settings.gateway.as_ref().map(|own| (own.cluster, own.server))?;
    let (recent, now) = (&mut core.links.gateways.recent, core.times.now);
    let mut map = |reply: &[u8]| {
        let covers = !wire::is_mapped(reply) && recent.covers(account, reply, now);
        covers.then(|| wire::mapped_subject(cluster, server, reply).into())
    };
    let replies: Replies = run.publishes().map(|publish| map(publish.reply?)).collect();
    replies.iter().any(Option::is_some).then_some(replies)
}

/// Remembers the mapped replies of a run for the plain subscriptions that it was delivered to.
#[cold]
pub(super) fn remember_all(core: &mut Core, run: &Run<'_>, targets: &Targets) {
    for member in targets.groups.iter().flat_map(|group| &group.members) {
        remember(core, run, *member);
    }
}

/// Remembers the mapped replies of a run for a subscription that it was delivered to.
#[cold]
pub(super) fn remember(core: &mut Core, run: &Run<'_>, member: Member) {
    let Some(id) = core.conns.at(member.conn).map(|conn| conn.id) else { return };
    let (replies, now) = (&mut core.links.gateways.replies, core.times.now);
    for publish in run.publishes() {
        if let Some(mapped) = publish.reply.filter(|reply| wire::is_mapped(reply)) {
            let shown = route::delivered(publish);
            let shown = shown.reply.unwrap_or_default();
            replies.remember(id, mapped, shown, now);
        }
    }
}

/// Sends what a client has published to the cluster that waits for it as an answer; `false` if
/// none does.
#[cold]
pub(super) fn answer(core: &mut Core, source: &Source, run: &Run<'_>) -> bool {
    let (conn, now) = (source.publisher.conn, core.times.now);
    let mapped = core.links.gateways.replies.find(conn, run.subject(), now);
    let Some(mapped) = mapped else { return false };
    send(core, source, &run.renamed(&mapped));
    true
}

/// Sends answers under their mapped subject to the cluster that it names, if it is another one:
/// over a gateway, or to the hubs of this server, which may have one.
pub(crate) fn send(core: &mut Core, source: &Source, run: &Run<'_>) {
    if core.settings.gateway.is_none() {
        return send_to_hubs(core, source, run);
    }
    let to = core.lanes.gateway_shard();
    if core.shard != to {
        let shards = ShardSet::default().with(to);
        return crossing::send_run(core, source, run, shards);
    }
    let Some(mapped) = split_mapped(run.subject()) else { return };
    let is_it = |link: &Link| link.gateway().is_some_and(|peer| peer.hash == mapped.cluster);
    let link = core.links.gateways.outbounds.iter().find(|id| {
        let conn = core.conns.get(**id);
        conn.and_then(|conn| conn.link.as_deref()).is_some_and(is_it)
    });
    let Some(id) = link else { return send_to_hubs(core, source, run) };
    let link = LinkSlot::new(id.slot, Kind::Gateway);
    relay::deliver_to_links(core, source, run, &[link], &[], Vec::new());
}

/// Sends answers to hubs that want them, from whichever shard has the link.
fn send_to_hubs(core: &mut Core, source: &Source, run: &Run<'_>) {
    let shards = send_to_own_hubs(core, source, run);
    if !shards.is_empty() {
        crossing::send_run(core, source, run, shards);
    }
}

/// Sends answers to hubs over links of this shard. Returns the other shards with such links.
fn send_to_own_hubs(core: &mut Core, source: &Source, run: &Run<'_>) -> ShardSet {
    let targets = core.targets(source.account, run.subject());
    let own = targets.links.iter().copied().filter(|link| link.kind() == Kind::Hub);
    let own: SmallVec<[LinkSlot; 2]> = own.collect();
    relay::deliver_to_links(core, source, run, &own, &[], Vec::new());
    targets.shards.of(Kind::Hub)
}

/// Takes answers under their mapped subject that another server has sent.
pub(super) fn take_in(core: &mut Core, source: &Source, run: &Run<'_>) {
    let Some(own) = &core.settings.gateway else { return };
    let Some(mapped) = split_mapped(run.subject()) else { return };
    let is_of_leaf = matches!(source.from, Kind::Leaf | Kind::Hub);
    if mapped.cluster != own.cluster {
        if is_of_leaf {
            send(core, source, run);
        }
        return;
    }
    if is_of_leaf {
        return; // Answers for this cluster come by gateways. Here permissions would be passed by.
    }
    let is_here = mapped.server == own.server;
    let is_members = !is_here && core.links.gateways.members.contains(&mapped.server);
    if source.from == Kind::Gateway && is_members {
        if !pass_on(core, source, run, mapped.server) {
            let others = core.others().collect();
            crossing::send_run(core, source, run, others);
        }
        return;
    }
    come_home(core, source, run, mapped.plain);
}

/// Takes answers under their mapped subject from another shard: they go over a link of this one, if
/// it has the link.
pub(super) fn on_record(core: &mut Core, source: &Source, run: &Run<'_>) {
    let Some(mapped) = split_mapped(run.subject()) else { return };
    match &core.settings.gateway {
        Some(own) if mapped.cluster == own.cluster => {
            pass_on(core, source, run, mapped.server);
        }
        Some(_) if core.shard == core.lanes.gateway_shard() => send(core, source, run),
        _ => {
            send_to_own_hubs(core, source, run);
        }
    }
}

/// Passes answers on to another member, by an own route that carries the account; `false` if there
/// is none.
fn pass_on(core: &mut Core, source: &Source, run: &Run<'_>, member: NameHash) -> bool {
    let account = core.accounts.name(source.account);
    let is_it = |link: &Link| {
        link.route().is_some_and(|route| route.member == member)
            && link.carries(&core.settings.route.pooling, &account)
    };
    let link = core.links.routes.iter().find(|id| {
        let conn = core.conns.get(**id);
        conn.and_then(|conn| conn.link.as_deref()).is_some_and(is_it)
    });
    let Some(slot) = link.map(|id| id.slot) else { return false };
    let link = LinkSlot::new(slot, Kind::Route);
    relay::deliver_to_links(core, source, run, &[link], &[], Vec::new());
    true
}

/// Delivers answers as messages to the plain subject, which may be wanted in other clusters, too.
fn come_home(core: &mut Core, source: &Source, run: &Run<'_>, subject: &[u8]) {
    let is_of_service = subject.starts_with(b"_R_.");
    let from = match source.from {
        from if is_of_service => from,
        // The other members of the cluster get no message from here that came by a route; other
        // clusters do. That is the reach of a hub.
        Kind::Route => Kind::Hub,
        _ => Kind::Client,
    };
    let source = &Source { from, named_by: None, ..*source };
    let run = &run.renamed(subject);
    let targets = core.targets(source.account, subject);
    core.charge(run, &targets);
    deliver::deliver_at_home(core, source, run, &targets, Audience::All);
    if targets.leaves_account() {
        services::deliver_abroad(core, source, run, &targets);
        taps::deliver_to_taps(core, source, run, &targets);
    }
}
