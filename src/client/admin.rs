//! Administration of clients: review after a reload, kicks, and limits that became smaller.

use std::ops::RangeInclusive;

use crate::client::identify::Standing;
use crate::client::{self, info, login, may_subscribe};
use crate::core::Core;
use crate::core::close::Reason;
use crate::core::settings::Settings;
use crate::core::timers::Deadline;
use crate::interest::ids::{AccountId, ConnId};
use crate::interest::subscription::SubKey;
use crate::proto::encode;

/// An order of the system account about one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientOrder {
    /// Closes the client's connection.
    Kick,
    /// Advises the client to leave for another server.
    LameDuck,
}

pub(crate) fn refuse_seat(core: &mut Core, id: ConnId) {
    let reason = Reason::Protocol("Maximum Connections Exceeded");
    core.fail(id, Some("maximum connections exceeded"), reason);
}

/// Decides whether a connection may stay under the new settings, and as which user.
pub(crate) fn review_user(core: &mut Core, id: ConnId, old: &Settings) {
    let Some(conn) = core.conns.get_mut(id).filter(|conn| conn.is_open()) else { return };
    if let Some(claimed) = conn.login.claimed() {
        if !core.settings.claim_stands(claimed, old) {
            // The claim that is being checked is of the old configuration.
            login::refuse_login(core, id);
        }
        return;
    }
    if let Some(service) = conn.login.asked() {
        if !core.settings.still_asks(service) {
            login::refuse_login(core, id);
        }
        return;
    }
    let Some(user) = conn.login.user() else {
        // A client that still has to log in keeps its time for that; a client that did not need to
        // is not allowed any more.
        if !conn.layers.is_understood() {
            // The deadline is that of the WebSocket handshake.
        } else if core.settings.admits_everybody(conn.transport) {
            conn.deadlines.disarm(Deadline::Login);
        } else if core.settings.auth_required(conn.transport) && !old.auth_required(conn.transport)
        {
            login::refuse_login(core, id);
        }
        return;
    };
    match core.settings.standing(user, conn, old, core.times.now) {
        Standing::Stays(user) => {
            let limits = core.accounts.at(user.account).limits();
            conn.login.enter(user, limits);
            conn.review();
            end_unpermitted(core, id);
        }
        Standing::Changed => login::refuse_login(core, id),
        Standing::Moved => core.fail(id, None, Reason::ClientClosed),
        Standing::Revoked => {
            let reason = Reason::Protocol("Credentials Revoked");
            core.fail(id, Some("User Authentication Revoked"), reason);
        }
        Standing::Gone => core.fail(id, None, Reason::Protocol("Authentication Failure")),
    }
}

pub(crate) fn review_limits(core: &mut Core, id: ConnId, old: &Settings) {
    let settings = &core.settings;
    let Some(conn) = core.conns.get_mut(id).filter(|conn| conn.is_open()) else { return };
    if conn.outbox.pending_bytes() > settings.limits.pending_bytes_max {
        core.endings.doomed.push(id);
    }
    let interval = settings.ping_interval_of(conn.transport);
    if conn.layers.is_understood() && interval != old.ping_interval_of(conn.transport) {
        // Not all at the same instant.
        let jitter = core.random.rng.u64(..=interval / 5);
        let due = core.times.now.saturating_add(interval - jitter);
        conn.deadlines.arm_by(Deadline::Ping, due);
    }
    core.rearm(id);
}

/// The connections of which there are too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excess {
    /// All clients.
    Clients,
    /// The clients of an account.
    OfAccount(AccountId),
    /// The leaf nodes of an account.
    Leaves(AccountId),
}

/// Closes the connections with these numbers: there are too many.
pub(crate) fn shed(core: &mut Core, cids: RangeInclusive<u64>, excess: Excess) {
    for id in core.conns.ids() {
        let Some(conn) = core.conns.get(id).filter(|conn| conn.is_open()) else { continue };
        if !cids.contains(&conn.peer.cid) {
            continue;
        }
        let leaf = conn.link.as_ref().and_then(|link| link.leaf());
        match excess {
            Excess::Clients if conn.link.is_none() => {
                tracing::error!("{} - maximum connections exceeded", conn.label());
                refuse_seat(core, id);
            }
            Excess::OfAccount(account) if conn.login.has_seat() && conn.account == account => {
                login::refuse_account_seat(core, id);
            }
            Excess::Leaves(account)
                if leaf.is_some_and(|leaf| leaf.has_seat) && conn.account == account =>
            {
                login::refuse_account_seat(core, id);
            }
            _ => {}
        }
    }
}

/// Closes the connection with this number; `false` if there is none.
pub(crate) fn kick(core: &mut Core, cid: u64) -> bool {
    let id = find_client(core, cid);
    if let Some(id) = id {
        core.fail(id, None, Reason::Protocol("Kicked"));
    }
    id.is_some()
}

/// Tells the client with this number to look for another server; `false` if there is none.
pub(crate) fn advise_to_leave(core: &mut Core, cid: u64) -> bool {
    let id = find_client(core, cid);
    if let Some(id) = id
        && core.conns.get(id).is_some_and(|conn| conn.connect.protocol >= 1)
    {
        info::send_info_of(core, id, false, true);
    }
    id.is_some()
}

fn find_client(core: &Core, cid: u64) -> Option<ConnId> {
    let has_it = |id: &ConnId| {
        core.conns.get(*id).is_some_and(|conn| conn.is_open() && conn.peer.cid == cid)
    };
    core.conns.client_ids().into_iter().find(has_it)
}

fn end_unpermitted(core: &mut Core, id: ConnId) {
    let Some(conn) = core.conns.get(id) else { return };
    let unpermitted = |key: &SubKey| {
        let sub = &core.subs[*key as usize];
        !may_subscribe(conn, sub.subject(), sub.queue())
    };
    let keys: Vec<SubKey> = conn.subs.iter().copied().filter(unpermitted).collect();
    for key in keys {
        let sub = &core.subs[key as usize];
        let error = encode::removed_subscription(sub.subject(), sub.queue(), sub.sid());
        core.end_subscription(key);
        client::refuse(core, id, &error);
    }
}
