//! `RS+`, `RS-` and their like: a peer announces its interest, within the bound of memory.

use crate::core::Core;
use crate::core::close::Reason;
use crate::interest::ids::ConnId;
use crate::link::remote_interest::{Known, RemoteInterest, too_much};
use crate::proto::encode;
use crate::proto::route::InterestEntry;
use crate::subject;

pub(crate) fn on_interest(
    core: &mut Core,
    id: ConnId,
    entry: &InterestEntry<'_>,
    members: Option<u32>,
) {
    // Interest in an account that is not known yet counts once it is.
    let account = core.account_of(id, entry.account);
    let bytes_max = core.remote_bytes_max();
    let Some(conn) = core.conns.get_mut(id) else { return };
    if !subject::is_valid_filter(entry.subject) {
        let subject = encode::go_quoted(entry.subject);
        tracing::error!("{} - Invalid subscription to {subject}", conn.label());
        return core.reply(id, |out| encode::err(out, "Invalid Subscription"));
    }
    if !core.settings.route.takes(entry.subject) {
        return;
    }
    let Some(link) = &mut conn.link else { return };
    if !link.remote.insert(entry) {
        if members.is_none() {
            return;
        }
    } else {
        let cost = RemoteInterest::cost_bytes(entry, core.lanes.to.len());
        let bytes = core.links.remote_bytes.add(cost);
        if bytes > bytes_max {
            let error = "maximum subscriptions exceeded";
            tracing::error!("{} - {}", conn.label(), too_much(bytes_max));
            let reason = Reason::Protocol("Maximum Subscriptions Exceeded");
            return core.fail(id, Some(error), reason);
        }
    }
    if let Some(account) = account {
        core.set_remote_interest(id, account, entry, members.unwrap_or(1));
    }
}

pub(crate) fn on_interest_end(core: &mut Core, id: ConnId, entry: &InterestEntry<'_>) {
    let account = core.account_of(id, entry.account);
    let Some(conn) = core.conns.get_mut(id) else { return };
    let Some(link) = &mut conn.link else { return };
    if link.remote.remove(entry) {
        core.links.remote_bytes.sub(RemoteInterest::cost_bytes(entry, core.lanes.to.len()));
        if let Some(account) = account {
            core.set_remote_interest(id, account, entry, 0);
        }
    }
}

/// Retracts interest of a peer that is not taken any more.
pub(super) fn drop_untaken(core: &mut Core, id: ConnId) {
    let Some(link) = core.conns.get_mut(id).and_then(|conn| conn.link.as_mut()) else { return };
    let (settings, form) = (&core.settings.route, link.form());
    let over = link.remote.iter(form).filter(|entry| !settings.takes(entry.subject));
    let over: Vec<Known> = over.map(|entry| Known::of(&entry)).collect();
    for known in over {
        if let Some(entry) = known.parse(form) {
            on_interest_end(core, id, &entry);
        }
    }
}
