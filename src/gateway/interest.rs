//! Interest of another cluster: `RS+`, `RS-`, `A+`, `A-`, and the modes of accounts.
//!
//! Where messages are sent without interest in them, the peer has an entry of its own making for
//! `>`, with the origin `*`, which no peer can write; what it refuses is left out when messages are
//! sent (`delivery::relay`).

use std::collections::BTreeMap;

use crate::core::Core;
use crate::core::close::Reason;
use crate::gateway;
use crate::interest::ids::ConnId;
use crate::link::Link;
use crate::link::gateway_state::{AccountModeSnapshot, GatewayState};
use crate::link::remote_interest::{RemoteInterest, too_much};
use crate::proto::encode;
use crate::proto::gateway::FORM;
use crate::proto::route::{self as wire, InterestEntry};
use crate::subject;

/// Returns the key of the entry for everything in an account.
fn everything(account: &[u8]) -> Vec<u8> {
    [b"* ", account, b" >"].concat()
}

/// Enters an entry of a peer's interest, within the bound of memory; `false` if the peer had it, or
/// is at its end.
fn enter(core: &mut Core, id: ConnId, entry: &InterestEntry<'_>) -> bool {
    let bytes_max = core.remote_bytes_max();
    let Some(conn) = core.conns.get_mut(id) else { return false };
    let Some(link) = &mut conn.link else { return false };
    if !link.remote.insert(entry) {
        return false;
    }
    let cost = RemoteInterest::cost_bytes(entry, core.lanes.to.len());
    if core.links.remote_bytes.add(cost) > bytes_max {
        tracing::error!("{} - {}", conn.label(), too_much(bytes_max));
        let reason = Reason::Protocol("Maximum Subscriptions Exceeded");
        core.fail(id, Some("maximum subscriptions exceeded"), reason);
        return false;
    }
    if let Some(account) = core.account_of(id, entry.account) {
        core.set_remote_interest(id, account, entry, 1);
    }
    true
}

/// Takes out an entry of a peer's interest, if it is there.
fn take_out(core: &mut Core, id: ConnId, entry: &InterestEntry<'_>) {
    let account = core.account_of(id, entry.account);
    let link = core.conns.get_mut(id).and_then(|conn| conn.link.as_mut());
    if link.is_some_and(|link| link.remote.remove(entry)) {
        core.links.remote_bytes.sub(RemoteInterest::cost_bytes(entry, core.lanes.to.len()));
        if let Some(account) = account {
            core.set_remote_interest(id, account, entry, 0);
        }
    }
}

/// Makes the entry for everything in an account agree with the account's mode.
fn review_mode(core: &mut Core, id: ConnId, account: &[u8]) {
    let Some(link) = core.conns.get(id).and_then(|conn| conn.link.as_ref()) else { return };
    let Some(peer) = link.gateway() else { return };
    let is_optimistic = peer.is_optimistic_in(account);
    let key = everything(account);
    let Some(entry) = wire::parse_entry(&key, true, FORM) else { return };
    if is_optimistic {
        enter(core, id, &entry);
    } else {
        take_out(core, id, &entry);
    }
}

/// Begins to send a new peer everything, in all accounts, unless it tells all its interest.
pub(crate) fn begin_optimistic(core: &mut Core, id: ConnId) {
    let link = core.conns.get(id).and_then(|conn| conn.link.as_ref());
    if link.and_then(|link| link.gateway()).is_none_or(|peer| peer.tells_all) {
        return;
    }
    core.links.gateways.is_optimistic = true;
    let names: Vec<_> = core.accounts.iter().map(|account| account.name.clone()).collect();
    for name in names.iter().filter(|name| !name.is_empty()) {
        review_mode(core, id, name.as_bytes());
    }
}

/// Begins to send everything in accounts that are new to the peers that want it.
pub(crate) fn review_accounts(core: &mut Core) {
    if !core.links.gateways.is_optimistic {
        return;
    }
    for id in core.links.gateways.outbounds.clone() {
        begin_optimistic(core, id);
    }
}

pub(crate) fn on_no_account(core: &mut Core, id: ConnId, account: &[u8]) {
    with_peer(core, id, account, |peer| peer.refuse_account(account));
}

pub(crate) fn on_account(core: &mut Core, id: ConnId, account: &[u8]) {
    with_peer(core, id, account, |peer| peer.take_account(account));
}

pub(crate) fn on_all_begins(core: &mut Core, id: ConnId, account: &[u8]) {
    with_peer(core, id, account, |peer| peer.begin_all(account));
}

pub(crate) fn on_all_told(core: &mut Core, id: ConnId, account: &[u8]) {
    with_peer(core, id, account, |peer| peer.end_all(account));
}

fn with_peer(core: &mut Core, id: ConnId, account: &[u8], change: impl FnOnce(&mut GatewayState)) {
    let link = core.conns.get_mut(id).and_then(|conn| conn.link.as_mut());
    let Some(peer) = link.and_then(|link| link.gateway_mut()) else { return };
    change(peer);
    review_mode(core, id, account);
}

pub(crate) fn on_interest(
    core: &mut Core,
    id: ConnId,
    entry: &InterestEntry<'_>,
    members: Option<u32>,
) {
    let Some(conn) = core.conns.get_mut(id) else { return };
    let is_valid = subject::is_valid_filter(entry.subject) && entry.origin.is_none();
    if !is_valid || entry.queue.is_some() != members.is_some() {
        let subject = encode::go_quoted(entry.subject);
        tracing::error!("{} - Invalid subscription to {subject}", conn.label());
        return gateway::violate(core, id, "Protocol Violation");
    }
    let peer = conn.link.as_mut().and_then(|link| link.gateway_mut());
    let Some(peer) = peer else { return };
    if entry.queue.is_none() && !peer.takes_plain(entry.account) {
        return peer.allow(entry.account, entry.subject);
    }
    enter(core, id, entry);
}

pub(crate) fn on_interest_end(core: &mut Core, id: ConnId, entry: &InterestEntry<'_>) {
    let link = core.conns.get_mut(id).and_then(|conn| conn.link.as_mut());
    let Some(peer) = link.and_then(|link| link.gateway_mut()) else { return };
    if entry.queue.is_none() && !peer.takes_plain(entry.account) {
        peer.refuse(entry.account, entry.subject);
        return review_mode(core, id, entry.account);
    }
    take_out(core, id, entry);
}

/// Returns the modes of all accounts of which the peer has spoken, with the number of its filters.
pub(crate) fn modes(link: &Link) -> Vec<AccountModeSnapshot> {
    let Some(peer) = link.gateway() else { return Vec::new() };
    let mut modes: BTreeMap<&[u8], AccountModeSnapshot> = peer.modes().collect();
    for entry in link.remote.iter(link.form()).filter(|entry| entry.origin.is_none()) {
        let mode = modes.entry(entry.account).or_insert_with(|| AccountModeSnapshot {
            account: String::from_utf8_lossy(entry.account).into_owned(),
            mode: "Optimistic",
            refused: 0,
            filters: 0,
            queues: 0,
        });
        mode.filters += usize::from(entry.queue.is_none());
        mode.queues += usize::from(entry.queue.is_some());
    }
    modes.into_values().collect()
}
