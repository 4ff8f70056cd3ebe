//! `LS+` and `LS-`: the other end of a leaf connection announces its interest, within the bound of
//! memory.

use crate::core::Core;
use crate::core::close::Reason;
use crate::interest::ids::ConnId;
use crate::interest::outlets::{LOOP_PREFIX, loop_filter};
use crate::leaf::{self, leaf_mut};
use crate::link::leaf_gates::is_exempt;
use crate::link::leaf_state::LeafEnd;
use crate::link::remote_interest::{RemoteInterest, too_much};
use crate::proto::encode;
use crate::proto::route::InterestEntry;
use crate::subject;

pub(super) fn on_interest(
    core: &mut Core,
    id: ConnId,
    entry: &InterestEntry<'_>,
    members: Option<u32>,
) {
    let Some(account) = leaf::leaf(core, id).map(|leaf| leaf.account_id) else { return };
    let bytes_max = core.remote_bytes_max();
    let Some(conn) = core.conns.get(id) else { return };
    if !subject::is_valid_filter(entry.subject) {
        let subject = encode::go_quoted(entry.subject);
        tracing::error!("{} - Invalid subscription to {subject}", conn.label());
        return core.reply(id, |out| encode::err(out, "Invalid Subscription"));
    }
    if entry.subject.starts_with(LOOP_PREFIX) && is_own(core, id, entry.subject) {
        return end_loop(core, id);
    }
    let is_permitted = is_exempt(entry.subject)
        || !subject::is_literal(entry.subject)
        || conn.permissions().is_none_or(|user| user.may_subscribe(entry.subject, entry.queue));
    if !is_permitted {
        let error = encode::subscription_violation(entry.subject, entry.queue);
        return leaf::violate(core, id, &error);
    }
    let subscriptions_max = conn.subscriptions_max(&core.settings.limits);
    let Some(link) = core.conns.get_mut(id).and_then(|conn| conn.link.as_mut()) else { return };
    if link.leaf().is_some_and(|leaf| !leaf.gates.hears(entry.subject)) {
        return;
    }
    let is_full = link.remote.len() >= subscriptions_max;
    if link.remote.insert(entry) {
        if is_full {
            link.remote.remove(entry);
            return core.reply(id, |out| encode::err(out, "maximum subscriptions exceeded"));
        }
        let cost = RemoteInterest::cost_bytes(entry, core.lanes.to.len());
        if core.links.remote_bytes.add(cost) > bytes_max {
            let error = "maximum subscriptions exceeded";
            if let Some(conn) = core.conns.get(id) {
                tracing::error!("{} - {}", conn.label(), too_much(bytes_max));
            }
            let reason = Reason::Protocol("Maximum Subscriptions Exceeded");
            return core.fail(id, Some(error), reason);
        }
    } else if members.is_none() {
        return;
    }
    core.set_remote_interest(id, account, entry, members.unwrap_or(1));
}

pub(super) fn on_interest_end(core: &mut Core, id: ConnId, entry: &InterestEntry<'_>) {
    let Some(account) = leaf::leaf(core, id).map(|leaf| leaf.account_id) else { return };
    let Some(link) = core.conns.get_mut(id).and_then(|conn| conn.link.as_mut()) else { return };
    if link.remote.remove(entry) {
        core.links.remote_bytes.sub(RemoteInterest::cost_bytes(entry, core.lanes.to.len()));
        core.set_remote_interest(id, account, entry, 0);
    }
}

/// Whether a subject is the one by which this server detects loops in the account.
fn is_own(core: &Core, id: ConnId, subject: &[u8]) -> bool {
    let Some(leaf) = leaf::leaf(core, id) else { return false };
    *loop_filter(core.settings.server_id(), &leaf.account) == *subject
}

/// Ends a connection by which this server's own interest has come back to it.
fn end_loop(core: &mut Core, id: ConnId) {
    let Some(leaf) = leaf_mut(core, id) else { return };
    leaf.end = LeafEnd::Misplaced;
    let account = encode::go_quoted(leaf.account.as_bytes());
    let error = format!(
        "Loop detected for leafnode account={account}. Delaying attempt to reconnect for 30s"
    );
    if let Some(conn) = core.conns.get(id) {
        tracing::error!("{} - {error}", conn.label());
    }
    core.fail(id, Some(&error), Reason::Protocol("Protocol Violation"));
}
