//! What peers want: interest behind routes.

#![forbid(unsafe_code)]

use std::collections::HashSet;

use ahash::RandomState;

use super::{RouteNotice, Stage};
use crate::engine::{AccountId, ConnId, Engine, Origin, Reason};
use crate::proto::encode;
use crate::proto::route::{self as wire, Form, Wish};
use crate::subject;

/// What a wish costs on each shard besides what was written, in bytes: its place among the others,
/// and its filter's in the table of interest.
const WISH_BYTES: usize = 256;
/// What peers want together may cost half of a shard's memory for output, and this in any case, in
/// bytes: a mesh needs its interest however little memory there is.
const WISHES_BYTES_MIN: usize = 4 * 1024 * 1024;

/// Everything a peer wants, by what it wrote.
#[derive(Debug)]
pub(in crate::engine) struct Wishes {
    /// For its own clients, and for leaf nodes behind it.
    keys: [HashSet<Box<[u8]>, RandomState>; 2],
}

impl Wishes {
    pub(super) fn new(hasher: &RandomState) -> Self {
        Self { keys: [(); 2].map(|()| HashSet::with_hasher(hasher.clone())) }
    }

    /// What is written of a wish is kept twice.
    fn cost_bytes(key: &[u8]) -> usize {
        2 * key.len() + WISH_BYTES
    }

    /// Enters a wish; false if it was known.
    fn insert(&mut self, wish: &Wish<'_>) -> bool {
        let keys = &mut self.keys[usize::from(wish.origin.is_some())];
        let is_new = !keys.contains(wish.key);
        if is_new {
            keys.insert(wish.key.into());
        }
        is_new
    }

    /// Takes a wish out; false if there was none.
    fn remove(&mut self, wish: &Wish<'_>) -> bool {
        self.keys[usize::from(wish.origin.is_some())].remove(wish.key)
    }

    /// Takes out up to so many, and tells of each whether it is of leaf nodes.
    fn take(&mut self, count: usize) -> Vec<(bool, Box<[u8]>)> {
        let [own, leaves] = &mut self.keys;
        let own = own.extract_if(|_| true).map(|key| (false, key));
        own.chain(leaves.extract_if(|_| true).map(|key| (true, key))).take(count).collect()
    }

    pub(in crate::engine) fn len(&self) -> usize {
        self.keys.iter().map(HashSet::len).sum()
    }

    /// All of them, from a peer that writes in this form.
    pub(super) fn iter(&self, form: Form) -> impl Iterator<Item = Wish<'_>> {
        let [own, leaves] = &self.keys;
        let own = own.iter().filter_map(move |key| wire::parse_wish(key, false, form));
        own.chain(leaves.iter().filter_map(move |key| wire::parse_wish(key, true, form)))
    }
}

impl Engine {
    pub(super) fn on_wish(&mut self, id: ConnId, wish: &Wish<'_>, members: Option<u32>) {
        // Of an account that is not known yet, it counts once that is.
        let account = self.account_of(id, wish.account);
        let Some(conn) = self.conns.get_mut(id) else { return };
        if !subject::is_valid_filter(wish.subject) {
            let subject = encode::go_quoted(wish.subject);
            tracing::error!("{} - Invalid subscription to {subject}", conn.label());
            return self.reply(id, |out| encode::err(out, "Invalid Subscription"));
        }
        if !self.settings.route.takes(wish.subject) {
            return;
        }
        let Some(route) = &mut conn.route else { return };
        if !route.wishes.insert(wish) {
            if members.is_none() {
                return;
            }
        } else {
            self.cluster.wish_bytes += Wishes::cost_bytes(wish.key);
            // Every shard has to know of it.
            let bytes = self.cluster.wish_bytes.saturating_mul(self.lanes.len());
            if bytes > (self.settings.memory_bytes_max / 2).max(WISHES_BYTES_MIN) {
                let error = "maximum subscriptions exceeded";
                tracing::error!("{} - more interest of peers than memory for it", conn.label());
                let reason = Reason::Protocol("Maximum Subscriptions Exceeded");
                return self.fail(id, Some(error), reason);
            }
        }
        if let Some(account) = account {
            self.set_wish(id, account, wish, members.unwrap_or(1));
        }
    }

    pub(super) fn on_wish_end(&mut self, id: ConnId, wish: &Wish<'_>) {
        let account = self.account_of(id, wish.account);
        let Some(conn) = self.conns.get_mut(id) else { return };
        let Some(route) = &mut conn.route else { return };
        if route.wishes.remove(wish) {
            self.cluster.wish_bytes -= Wishes::cost_bytes(wish.key);
            if let Some(account) = account {
                self.set_wish(id, account, wish, 0);
            }
        }
    }

    pub(in crate::engine) fn set_wish(
        &mut self,
        id: ConnId,
        account: AccountId,
        wish: &Wish<'_>,
        members: u32,
    ) {
        let (subject, queue) = (wish.subject, wish.queue);
        let by = (id.slot, Origin::of(wish.origin));
        let interest = &mut self.accounts.at(account).interest;
        if let Some((side, all)) = interest.set_route(by, subject, queue, members) {
            self.announce(id, account, side, (subject, queue), all);
        }
    }

    /// The same for a wish that is known, by its key.
    pub(in crate::engine) fn set_known_wish(
        &mut self,
        (id, account): (ConnId, AccountId),
        (of_leaves, key): (bool, &[u8]),
        members: u32,
    ) {
        let Some(route) = self.conns.get(id).and_then(|conn| conn.route.as_ref()) else { return };
        if let Some(wish) = wire::parse_wish(key, of_leaves, route.form()) {
            self.set_wish(id, account, &wish, members);
        }
    }

    /// Takes a route out of every table, but for what its peer wants.
    pub(in crate::engine) fn leave_route(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let Some(route) = &mut conn.route else { return };
        conn.claim = None;
        let rid = route.rid;
        if std::mem::replace(&mut route.stage, Stage::Ended) != Stage::Ended {
            self.cluster.notices.push_back(RouteNotice::Ended { rid, is_self: false });
        }
        self.cluster.routes.retain(|route| *route != id);
    }

    /// Gives up to `count` wishes of a peer up, and says how many.
    pub(in crate::engine) fn retract_wishes(&mut self, id: ConnId, count: usize) -> usize {
        let route = self.conns.get_mut(id).and_then(|conn| conn.route.as_mut());
        let Some(route) = route else { return 0 };
        let (form, keys) = (route.form(), route.wishes.take(count));
        let taken = keys.len();
        for (of_leaves, key) in keys {
            self.cluster.wish_bytes -= Wishes::cost_bytes(&key);
            if let Some(wish) = wire::parse_wish(&key, of_leaves, form)
                && let Some(account) = self.account_of(id, wish.account)
            {
                self.set_wish(id, account, &wish, 0);
            }
        }
        taken
    }

    /// Forgets what a peer wants and is not taken any more.
    pub(super) fn drop_wishes(&mut self, id: ConnId) {
        let Some(route) = self.conns.get_mut(id).and_then(|conn| conn.route.as_mut()) else {
            return;
        };
        let (settings, form) = (&self.settings.route, route.form());
        let over = route.wishes.iter(form).filter(|wish| !settings.takes(wish.subject));
        let over: Vec<(bool, Box<[u8]>)> =
            over.map(|wish| (wish.origin.is_some(), wish.key.into())).collect();
        for (of_leaves, key) in over {
            if let Some(wish) = wire::parse_wish(&key, of_leaves, form) {
                self.on_wish_end(id, &wish);
            }
        }
    }
}
