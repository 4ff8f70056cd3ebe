//! Interest of this cluster, told to peers of other clusters that have dialled.
//!
//! A peer is told all queue groups first, then account by account all plain interest, between two
//! commands that say so: from the second on it sends nothing without interest. This goes in pieces,
//! as with routes (`core::interest_sync`); changes are told at once (`announce::tell_clusters`).
//! What is told is the interest of the whole cluster: of clients, members and leaf nodes.

use crate::core::Core;
use crate::interest::ids::{AccountId, ConnId};
use crate::interest::outlets::answers_filter;
use crate::link::InterestSync;
use crate::link::gateway_state::{AccountModeSnapshot, GatewayState};
use crate::proto::gateway::{self as wire, ALL_INTEREST_BEGINS, ALL_INTEREST_IS_TOLD};
use crate::proto::route as route_wire;
use crate::subject::Scan;

/// A peer, and the account of which it is told.
#[derive(Clone, Copy)]
struct ToldAccount {
    peer: ConnId,
    account: AccountId,
}

/// Continues to tell a peer all interest until `places` are used up. Returns whether that is
/// complete; to a peer that was dialled nothing is told.
pub(crate) fn sync(core: &mut Core, id: ConnId, places: &mut usize) -> bool {
    let accounts: Vec<AccountId> = core.accounts.ids().collect();
    let Some(mut sync) = take_sync(core, id) else { return true };
    let mut is_over = false;
    let mut bytes = 0;
    while let Some(left) = places.checked_sub(1) {
        *places = left;
        match accounts.get(sync.account).copied() {
            Some(account) => {
                let told = ToldAccount { peer: id, account };
                if !tell(core, told, &mut sync, places, &mut bytes) {
                    break;
                }
                (sync.account, sync.scan) = (sync.account + 1, None);
            }
            None if sync.is_plain => {
                is_over = true;
                break;
            }
            None => (sync.account, sync.is_plain) = (0, true),
        }
    }
    let Some(conn) = core.conns.get_mut(id) else { return true };
    let Some(link) = &mut conn.link else { return true };
    // The output may be more than a peer may otherwise have pending.
    link.pending_bytes_max = link.pending_bytes_max.saturating_add(bytes);
    link.sync = (!is_over).then_some(sync);
    if is_over && conn.outbox.pending_bytes() > link.pending_bytes_max {
        conn.takes.doom();
        core.endings.doomed.push(id);
    }
    core.flush_soon(id);
    is_over
}

/// Takes the progress of what a peer is told; `None` for a peer that was dialled, or is at its end.
fn take_sync(core: &mut Core, id: ConnId) -> Option<InterestSync> {
    let conn = core.conns.get_mut(id).filter(|conn| conn.is_open())?;
    let link = conn.link.as_mut()?;
    let sync = link.sync.take()?;
    link.dialed.is_none().then_some(sync)
}

/// Tells a peer a piece of the interest in an account: of its queue groups, or the plain one.
/// Returns whether that is all of it. Bytes that were written are added to `bytes`.
fn tell(
    core: &mut Core,
    told: ToldAccount,
    sync: &mut InterestSync,
    places: &mut usize,
    bytes: &mut usize,
) -> bool {
    let ToldAccount { peer: id, account } = told;
    let Some(settings) = &core.settings.gateway else { return true };
    let Some(conn) = core.conns.get_mut(id) else { return true };
    let Some(peer) = conn.link.as_mut().and_then(|link| link.gateway_mut()) else { return true };
    let of = core.accounts.at(account);
    let begins = sync.scan.is_none();
    if of.name.is_empty() || (begins && peer.is_told(account)) {
        return true;
    }
    let (name, cluster) = (&*of.name, &settings.info.gateway);
    if begins && sync.is_plain {
        peer.begin_telling(account, name.as_bytes());
        let command = |out: &mut Vec<u8>| wire::command(out, cluster, ALL_INTEREST_BEGINS, name);
        *bytes += conn.outbox.push(&mut core.spares, command);
    }
    let (outbox, spares) = (&mut conn.outbox, &mut core.spares);
    let mut write = |subject: &[u8], queue: Option<&[u8]>| {
        let queue = queue.map(|queue| (queue, 1));
        let line = |out: &mut Vec<u8>| {
            route_wire::interest(out, name.as_bytes(), subject, queue);
        };
        *bytes += outbox.push(spares, line);
    };
    if begins && sync.is_plain {
        if of.answers {
            write(&answers_filter(&core.settings.node), None);
        }
        of.interest.of_imports(|subject| write(subject, None));
    }
    let scan = sync.scan.get_or_insert_with(Scan::default);
    let is_over = of.interest.of_cluster(scan, places, !sync.is_plain, &mut write);
    if is_over && sync.is_plain {
        let command = |out: &mut Vec<u8>| wire::command(out, cluster, ALL_INTEREST_IS_TOLD, name);
        *bytes += outbox.push(spares, command);
    }
    is_over
}

/// Tells peers all interest in accounts that are new; those that are gone are forgotten.
pub(crate) fn review_accounts(core: &mut Core) {
    let gone: Vec<AccountId> =
        core.accounts.numbered().filter(|(_, of)| of.name.is_empty()).map(|(id, _)| id).collect();
    for id in core.links.gateways.inbounds.clone() {
        let link = core.conns.get_mut(id).and_then(|conn| conn.link.as_mut());
        if let Some(peer) = link.and_then(|link| link.gateway_mut()) {
            gone.iter().for_each(|account| peer.forget(*account));
        }
        core.start_sync(id);
    }
}

/// Tells a peer, once, that there is no such account, so that it sends no more of it.
pub(crate) fn refuse_account(core: &mut Core, id: ConnId, account: &[u8]) {
    if core.accounts.find(account).is_some() {
        return;
    }
    let link = core.conns.get_mut(id).and_then(|conn| conn.link.as_mut());
    let peer = link.and_then(|link| link.gateway_mut());
    if peer.is_some_and(|peer| peer.tell_unknown(account)) {
        core.reply(id, |out| wire::no_account(out, account));
    }
}

/// Returns the modes of the accounts of which a peer is told all interest.
pub(crate) fn modes(core: &Core, peer: &GatewayState) -> Vec<AccountModeSnapshot> {
    let told = core.accounts.numbered().filter(|(id, _)| peer.is_told(*id));
    let mode = |name: &str| AccountModeSnapshot {
        account: name.to_owned(),
        mode: "Interest-Only",
        refused: 0,
        filters: 0,
        queues: 0,
    };
    told.map(|(_, account)| mode(&account.name)).collect()
}
