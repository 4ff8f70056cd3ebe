//! Changes of accounts between servers: interest of peers in accounts that come, and interest of
//! this server to advertise.

use std::collections::HashSet;
use std::sync::Arc;

use crate::core::announce::{self, Changed};
use crate::core::{Core, leaf_interest};
use crate::interest::Wanted;
use crate::interest::accounts::AccountState;
use crate::interest::ids::{AccountId, ConnId};
use crate::interest::mapping::Mappings;
use crate::interest::outlets::answers_filter;
use crate::interest::reach::Via;
use crate::link::remote_interest::Known;

/// The accounts before a change.
pub(crate) struct Before {
    names: HashSet<Arc<str>>,
    /// Filters that each account wants from other servers for itself, not for its clients.
    wanted: Vec<(AccountId, Vec<u8>)>,
    /// Filters with receivers inside the server, for leaf nodes.
    inside: Vec<(AccountId, Vec<u8>)>,
    /// Sources of mappings, for leaf nodes.
    mapped: Vec<(AccountId, Vec<u8>)>,
}

/// Returns the accounts before a change, if there are peers to which it matters.
pub(crate) fn before_accounts_change(core: &Core) -> Option<Before> {
    let gateways = &core.links.gateways;
    let has_gateways = !gateways.outbounds.is_empty() || !gateways.inbounds.is_empty();
    if core.links.routes.is_empty() && core.links.leaves.is_empty() && !has_gateways {
        return None;
    }
    let names = core.accounts.iter().map(|account| Arc::clone(&account.name)).collect();
    Some(Before {
        names,
        wanted: wanted_of_routes(core),
        inside: inside(core),
        mapped: mapped(core),
    })
}

/// Enters the interest of peers in accounts that came, and advertises the changes here.
pub(crate) fn after_accounts_changed(core: &mut Core, before: &Before) {
    // The members of a group are announced again when they change.
    set_all_remote_interest(core, |name| !before.names.contains(name), 1);
    tell_leaves(core, before);
    let wanted = wanted_of_routes(core);
    let old: HashSet<_> = before.wanted.iter().collect();
    let new: HashSet<_> = wanted.iter().collect();
    for (account, filter) in wanted.iter().filter(|wanted| !old.contains(wanted)) {
        let wanted = Wanted { filter, queue: None };
        core.advertise(*account, wanted, 1);
        announce::tell_clusters(core, *account, wanted, true);
    }
    for (account, filter) in before.wanted.iter().filter(|wanted| !new.contains(wanted)) {
        let (wanted, interest) =
            (Wanted { filter, queue: None }, &core.accounts.at(*account).interest);
        let is_of_cluster = interest.is_wanted_by_cluster(filter);
        if !interest.is_wanted_by_clients(filter) {
            core.advertise(*account, wanted, 0);
        }
        if !is_of_cluster {
            announce::tell_clusters(core, *account, wanted, false);
        }
    }
}

/// Tells leaf nodes of filters that are wanted inside the server now, and of those that are no
/// more.
fn tell_leaves(core: &mut Core, before: &Before) {
    let inside = inside(core);
    let old: HashSet<_> = before.inside.iter().collect();
    let new: HashSet<_> = inside.iter().collect();
    let is_news = |(account, filter): &(AccountId, Vec<u8>), core: &mut Core, members| {
        let change = Changed { via: Via::CLIENTS, link: None, members };
        leaf_interest::tell_leaves(core, *account, change, Wanted { filter, queue: None });
    };
    inside.iter().filter(|one| !old.contains(one)).for_each(|one| is_news(one, core, 1));
    before.inside.iter().filter(|one| !new.contains(one)).for_each(|one| is_news(one, core, 0));
    let mapped = mapped(core);
    let old: HashSet<_> = before.mapped.iter().collect();
    let new: HashSet<_> = mapped.iter().collect();
    for (account, filter) in mapped.iter().filter(|one| !old.contains(one)) {
        leaf_interest::tell_source(core, *account, filter, true);
    }
    for (account, filter) in before.mapped.iter().filter(|one| !new.contains(one)) {
        leaf_interest::tell_source(core, *account, filter, false);
    }
}

/// Returns the filters that each account has receivers for inside the server.
fn inside(core: &Core) -> Vec<(AccountId, Vec<u8>)> {
    for_leaves(core, |account| account.interest.inside_filters().map(<[u8]>::to_vec).collect())
}

/// Returns the sources of each account's mappings.
fn mapped(core: &Core) -> Vec<(AccountId, Vec<u8>)> {
    let sources = |account: &AccountState| {
        account.mappings.iter().flat_map(Mappings::sources).map(<[u8]>::to_vec).collect()
    };
    for_leaves(core, sources)
}

/// Returns filters of each account, if there are leaf connections that could be told of them.
fn for_leaves(
    core: &Core,
    of: impl Fn(&AccountState) -> Vec<Vec<u8>>,
) -> Vec<(AccountId, Vec<u8>)> {
    if core.links.leaves.is_empty() {
        return Vec::new();
    }
    let of_account = |(id, account): (AccountId, &AccountState)| {
        of(account).into_iter().map(move |filter| (id, filter))
    };
    core.accounts.numbered().flat_map(of_account).collect()
}

/// Retracts the interest of peers in accounts that are about to go, as `goes` decides by name.
pub(crate) fn forget_remote_interest(core: &mut Core, goes: impl Fn(&str) -> bool) {
    set_all_remote_interest(core, goes, 0);
}

/// Sets the members for all interest of peers in the accounts that `of` selects by name.
fn set_all_remote_interest(core: &mut Core, of: impl Fn(&str) -> bool, members: u32) {
    let mut wanted: Vec<(ConnId, AccountId, Known)> = Vec::new();
    for id in core.links.routes.iter().chain(&core.links.gateways.outbounds) {
        let link = core.conns.get(*id).and_then(|conn| conn.link.as_ref());
        for (entry, name) in link.into_iter().flat_map(|link| link.remote_interest()) {
            if std::str::from_utf8(name).is_ok_and(&of)
                && let Some(account) = core.accounts.find(name)
            {
                wanted.push((*id, account, Known::of(&entry)));
            }
        }
    }
    for (id, account, known) in wanted {
        core.set_known_interest(id, account, &known, members);
    }
}

/// Returns the filters that this server wants from others for accounts that import, and for
/// requests to itself.
fn wanted_of_routes(core: &Core) -> Vec<(AccountId, Vec<u8>)> {
    let mut wanted = Vec::new();
    for (id, account) in core.accounts.numbered() {
        if account.name.is_empty() {
            continue;
        }
        wanted.extend(account.interest.outlets_for_servers().map(|filter| (id, filter.to_vec())));
        wanted.extend(account.answers.then(|| (id, answers_filter(&core.settings.node))));
    }
    wanted
}
