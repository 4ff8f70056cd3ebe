//! Leaf nodes and hubs of this shard: told changes of interest, and noted on all shards.

use std::sync::Arc;

use crate::core::Core;
use crate::core::announce::Changed;
use crate::core::outputs::Output;
use crate::core::shard_message::{LeafRecord, Record};
use crate::interest::Wanted;
use crate::interest::census::InterestListener;
use crate::interest::ids::{AccountId, ConnId};
use crate::link::Stage;
use crate::link::leaf_state::LeafNotice;
use crate::link::leaf_told::write_for_leaf;

/// Notes that a leaf connection of this shard begins or ends, here and on the other shards.
pub(crate) fn note_leaf(core: &mut Core, record: LeafRecord) {
    core.links.note_leaf(&record.cluster, record.is_in);
    for shard in core.others() {
        core.push_record(shard, Record::Leaf(Box::new(record.clone())));
    }
}

/// Removes a leaf connection, which was at `stage`, from every table.
pub(super) fn leave(core: &mut Core, id: ConnId, stage: Stage) {
    core.links.leaves.retain(|leaf| *leaf != id);
    let Some(conn) = core.conns.get_mut(id) else { return };
    let lid = conn.peer.cid;
    let Some(leaf) = conn.link.as_mut().and_then(|link| link.leaf_mut()) else { return };
    let (end, is_dialed) = (leaf.end, leaf.dialed.is_some());
    let cluster = if leaf.is_leaf { Arc::clone(&leaf.cluster) } else { "".into() };
    if std::mem::take(&mut leaf.has_seat) {
        core.accounts.at(leaf.account_id).leave_leaf();
    }
    if stage == Stage::Registered {
        note_leaf(core, LeafRecord { cluster, is_in: false, key: 0, cid: lid });
    }
    if stage != Stage::Ended && is_dialed {
        core.out.push(Output::Leaf(Box::new(LeafNotice::Ended { lid, end })));
    }
}

/// Tells leaf nodes and hubs of this shard a change, as far as it is one for them.
pub(crate) fn tell_leaves(
    core: &mut Core,
    account: AccountId,
    change: Changed,
    wanted: Wanted<'_>,
) {
    let mappings = core.accounts.at(account).mappings.as_ref();
    if wanted.queue.is_none() && mappings.is_some_and(|all| all.is_source(wanted.filter)) {
        return; // It was told as such, and stays.
    }
    let mut census = None;
    for at in 0..core.links.leaves.len() {
        let id = core.links.leaves[at];
        let Some(listener) = listener(core, id, account) else { continue };
        if change.link == Some(listener.link) || !listener.hears(change.via) {
            continue;
        }
        if !tells(core, id, wanted.filter) {
            continue;
        }
        let interest = &core.accounts.at(account).interest;
        let census = census.get_or_insert_with(|| interest.census(wanted));
        let count = census.heard_by(&listener);
        if wanted.queue.is_some() || count == u32::from(change.members > 0) {
            core.reply(id, |out| write_for_leaf(out, wanted, count));
        }
    }
}

/// Tells leaf nodes and hubs of this shard that a mapping's source came, or went.
pub(crate) fn tell_source(core: &mut Core, account: AccountId, filter: &[u8], is_there: bool) {
    let wanted = Wanted { filter, queue: None };
    for at in 0..core.links.leaves.len() {
        let id = core.links.leaves[at];
        let Some(listener) = listener(core, id, account) else { continue };
        let census = core.accounts.at(account).interest.census(wanted);
        // Who hears of clients that want it has been told, and stays so.
        if census.heard_by(&listener) == 0 && tells(core, id, filter) {
            core.reply(id, |out| write_for_leaf(out, wanted, u32::from(is_there)));
        }
    }
}

/// Returns a leaf node or hub of an account as a listener.
fn listener(core: &Core, id: ConnId, account: AccountId) -> Option<InterestListener> {
    let conn = core.conns.get(id).filter(|conn| conn.is_open())?;
    let link = conn.link.as_ref()?;
    link.leaf().filter(|leaf| leaf.account_id == account)?;
    link.listener(id)
}

/// Whether a leaf node or hub may be told of interest in a filter.
fn tells(core: &Core, id: ConnId, filter: &[u8]) -> bool {
    let Some(conn) = core.conns.get(id) else { return false };
    let leaf = conn.link.as_ref().and_then(|link| link.leaf());
    leaf.is_some_and(|leaf| leaf.gates.tells(conn.permissions(), filter))
}
