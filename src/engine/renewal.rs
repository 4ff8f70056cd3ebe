//! What other accounts than before mean between servers: interest of peers in accounts that come,
//! and what peers are told that this server wants now.

#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::sync::Arc;

use super::accounts::AccountId;
use super::imports::answers_filter;
use super::{ConnId, Engine};

/// How accounts were before they changed.
pub(super) struct Before {
    names: HashSet<Arc<str>>,
    /// What each wants of other servers for itself, not for its clients.
    wanted: Vec<(AccountId, Vec<u8>)>,
}

impl Engine {
    /// Remembers how accounts are, if there is another server for whom it matters.
    pub(super) fn before_accounts_change(&self) -> Option<Before> {
        if self.cluster.routes.is_empty() {
            return None;
        }
        let names = self.accounts.iter().map(|account| Arc::clone(&account.name)).collect();
        Some(Before { names, wanted: self.wanted_of_routes() })
    }

    /// Takes up what peers have wanted of accounts that came, and tells them what has changed here.
    pub(super) fn after_accounts_changed(&mut self, before: &Before) {
        // How many members a group has is said again when that changes.
        self.set_wishes(|name| !before.names.contains(name), 1);
        let wanted = self.wanted_of_routes();
        let old: HashSet<_> = before.wanted.iter().collect();
        let new: HashSet<_> = wanted.iter().collect();
        for (account, filter) in wanted.iter().filter(|wanted| !old.contains(wanted)) {
            self.tell_routes(*account, (filter, None), 1);
        }
        for (account, filter) in before.wanted.iter().filter(|wanted| !new.contains(wanted)) {
            if !self.accounts.at(*account).interest.is_wanted_by_clients(filter) {
                self.tell_routes(*account, (filter, None), 0);
            }
        }
    }

    /// Gives up what peers want of accounts that are about to go, for `goes` says so.
    pub(super) fn forget_wishes(&mut self, goes: impl Fn(&str) -> bool) {
        self.set_wishes(goes, 0);
    }

    /// Sets how many members count of what peers want of accounts of which `of` says so.
    fn set_wishes(&mut self, of: impl Fn(&str) -> bool, members: u32) {
        let mut wanted: Vec<(ConnId, AccountId, bool, Vec<u8>)> = Vec::new();
        for id in &self.cluster.routes {
            let route = self.conns.get(*id).and_then(|conn| conn.route.as_ref());
            for (wish, name) in route.into_iter().flat_map(|route| route.wishes()) {
                if std::str::from_utf8(name).is_ok_and(&of)
                    && let Some(account) = self.accounts.find(name)
                {
                    wanted.push((*id, account, wish.origin.is_some(), wish.key.to_vec()));
                }
            }
        }
        for (id, account, of_leaves, key) in wanted {
            self.set_known_wish((id, account), (of_leaves, &key), members);
        }
    }

    /// What this server wants of others for accounts that import, and for requests to itself.
    fn wanted_of_routes(&self) -> Vec<(AccountId, Vec<u8>)> {
        let mut wanted = Vec::new();
        for (id, account) in self.accounts.numbered() {
            if account.name.is_empty() {
                continue;
            }
            wanted
                .extend(account.interest.outlets_for_routes().map(|filter| (id, filter.to_vec())));
            wanted.extend(account.answers.then(|| (id, answers_filter(&self.settings.node))));
        }
        wanted
    }
}
