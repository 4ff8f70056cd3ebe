//! Changes of interest: announced to the other shards, advertised to other servers.

use crate::core::shard_message::{InterestRecord, Record};
use crate::core::{Core, leaf_interest};
use crate::interest::ids::{AccountId, ConnId};
use crate::interest::reach::{Kind, LinkSlot, Via};
use crate::interest::{Change, Wanted};
use crate::link::leaf_told::ToldMember;
use crate::proto::route as wire;

impl Core {
    /// Announces to the other shards the members that are reached here, in this way, for what is
    /// wanted: of plain interest 1 or 0.
    pub(crate) fn announce(
        &mut self,
        id: ConnId,
        account: AccountId,
        via: Via,
        wanted: Wanted<'_>,
        members: u32,
    ) {
        announce_own(self, account, via, wanted, members);
        for shard in self.others() {
            self.mark_staged(id, shard);
        }
    }

    /// Advertises to other servers the members among this server's clients for what is wanted: of
    /// plain interest 1 or 0.
    pub(crate) fn advertise(&mut self, account: AccountId, wanted: Wanted<'_>, members: u32) {
        let change = Changed { via: Via::CLIENTS, link: None, members };
        if !self.links.leaves.is_empty() {
            leaf_interest::tell_leaves(self, account, change, wanted);
        }
        if !self.links.routes.is_empty() {
            advertise_to_routes(self, account, change, wanted);
        }
    }
}

/// Advertises to other servers the members behind a link of this shard, or on another shard in that
/// way, for what is wanted: of plain interest 1 or 0.
pub(crate) fn advertise_behind(
    core: &mut Core,
    account: AccountId,
    change: Changed,
    wanted: Wanted<'_>,
) {
    if !core.links.leaves.is_empty() {
        leaf_interest::tell_leaves(core, account, change, wanted);
    }
    if change.via.kind == Kind::Leaf {
        note_recent(core, account, wanted, change.members);
        if !core.links.routes.is_empty() {
            advertise_to_routes(core, account, change, wanted);
        }
    }
}

fn advertise_to_routes(core: &mut Core, account: AccountId, change: Changed, wanted: Wanted<'_>) {
    let name = core.accounts.name(account);
    let interest = &core.accounts.at(account).interest;
    let is_of_clients = change.via == Via::CLIENTS;
    let is_wanted_inside = is_of_clients
        && change.members == 0
        && wanted.queue.is_none()
        && interest.has_outlet(wanted.filter);
    if name.is_empty() || is_wanted_inside {
        return; // Not configured, or still wanted by another account.
    }
    if !core.settings.route.advertises(wanted.filter) {
        return;
    }
    let (mut census, mut line) = (None, Vec::new());
    for at in 0..core.links.routes.len() {
        let id = core.links.routes[at];
        let Some(link) = core.conns.get(id).and_then(|conn| conn.link.as_ref()) else { continue };
        if !link.carries(&core.settings.route.pooling, &name) {
            continue;
        }
        let account_name = link.written_account(name.as_bytes());
        let to = ToldMember { clusters: &core.links.clusters, link, account: account_name };
        let told = to.told_as(change.via.origin);
        // Most peers are told of clients apart from all others.
        let members = if is_of_clients && link.peer.ln {
            Some(change.members)
        } else {
            let census = census.get_or_insert_with(|| core.accounts.census(account, wanted));
            let count = to.count(&told, census);
            let is_new = wanted.queue.is_some() || count == u32::from(change.members > 0);
            is_new.then_some(count)
        };
        let Some(members) = members else { continue };
        line.clear();
        to.write(&mut line, &told, wanted, members);
        core.reply(id, |out| out.extend_from_slice(&line));
    }
}

/// Announces interest as [`Core::announce`] does, without a connection that waits for it.
pub(crate) fn announce_own(
    core: &mut Core,
    account: AccountId,
    via: Via,
    wanted: Wanted<'_>,
    members: u32,
) {
    for shard in core.others() {
        let record = InterestRecord {
            account,
            via,
            filter: wanted.filter.into(),
            queue: wanted.queue.map(Into::into),
            members,
        };
        core.push_record(shard, Record::Interest(Box::new(record)));
        core.lanes.announced_epoch = core.lanes.epoch;
    }
}

/// Tells other servers of a change of interest: those of the cluster, and other clusters.
pub(crate) fn tell_servers(
    core: &mut Core,
    account: AccountId,
    wanted: Wanted<'_>,
    change: Change,
) {
    if let Some(members) = change.advertise {
        note_recent(core, account, wanted, members);
        core.advertise(account, wanted, members);
    }
    if let Some(is_wanted) = change.cluster {
        tell_clusters(core, account, wanted, is_wanted);
    }
}

/// Notes new interest of clients and leaf nodes: the first request for an answer from another
/// cluster may come at once.
fn note_recent(core: &mut Core, account: AccountId, wanted: Wanted<'_>, members: u32) {
    if members > 0 && !core.links.gateways.outbounds.is_empty() {
        core.links.gateways.recent.note(account, wanted.filter, core.times.now);
    }
}

/// Tells peers of other clusters that have dialled whether this cluster wants something.
pub(crate) fn tell_clusters(
    core: &mut Core,
    account: AccountId,
    wanted: Wanted<'_>,
    is_wanted: bool,
) {
    let Wanted { filter: subject, queue } = wanted;
    if core.links.gateways.inbounds.is_empty() {
        return;
    }
    let name = core.accounts.name(account);
    let interest = &core.accounts.at(account).interest;
    if name.is_empty() || (!is_wanted && queue.is_none() && interest.has_outlet(subject)) {
        return; // Not configured, or still wanted by another account.
    }
    let name = name.as_bytes();
    for at in 0..core.links.gateways.inbounds.len() {
        let id = core.links.gateways.inbounds[at];
        let link = core.conns.get(id).and_then(|conn| conn.link.as_ref());
        let peer = link.and_then(|link| link.gateway());
        // Before that it is told with all other interest.
        if queue.is_none() && !peer.is_some_and(|peer| peer.is_told(account)) {
            continue;
        }
        core.reply(id, |out| match is_wanted {
            false => wire::no_interest(out, name, subject, queue),
            true => wire::interest(out, name, subject, queue.map(|queue| (queue, 1))),
        });
    }
}

/// A change of interest in a filter: members on a way, of plain interest 1 or 0.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Changed {
    pub(crate) via: Via,
    /// The own link that it came over, if it did.
    pub(crate) link: Option<LinkSlot>,
    pub(crate) members: u32,
}
