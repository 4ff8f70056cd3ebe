//! Interest of peers (interest behind routes), and the bound of its memory.

#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use ahash::RandomState;

use super::{RouteNotice, Stage};
use crate::engine::{AccountId, ConnId, Engine, Origin, Reason};
use crate::proto::encode;
use crate::proto::route::{self as wire, Form, Wish};
use crate::subject;

/// What a wish costs on the shard of its route besides twice what was written, in bytes: its place
/// among the others, and its filter's in the table of interest.
const WISH_BYTES: usize = 192;
/// What it costs on each other shard besides what was written.
const FILTER_BYTES: usize = 152;
/// What a queue group costs on each shard.
const QUEUE_BYTES: usize = 176;
/// Memory that interest of peers may have in any case, in bytes: a mesh needs its interest
/// however little memory there is.
const WISHES_BYTES_MIN: usize = 4 * 1024 * 1024;

/// Memory of all interest of peers on all shards of a server, in bytes, counted by all shards
/// together: one peer may announce all of it to one shard.
#[derive(Debug, Clone, Default)]
pub struct WishBytes(Arc<AtomicUsize>);

impl WishBytes {
    /// It costs so many bytes more. Returns how many that are.
    fn add(&self, bytes: usize) -> usize {
        self.0.fetch_add(bytes, Relaxed) + bytes
    }

    fn sub(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Relaxed);
    }

    /// How many bytes.
    pub(in crate::engine) fn total(&self) -> usize {
        self.0.load(Relaxed)
    }
}

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

    /// What a wish costs on so many shards.
    fn cost_bytes(wish: &Wish<'_>, shards: usize) -> usize {
        let filter = if wish.queue.is_some() { QUEUE_BYTES } else { 0 } + wish.key.len();
        let others = shards.saturating_sub(1) * (filter + FILTER_BYTES);
        filter + wish.key.len() + WISH_BYTES + others
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

/// What is said where peers want more than that.
fn too_much(bytes_max: usize) -> String {
    let mib = bytes_max / 1024 / 1024;
    format!(
        "What the cluster's servers want takes more than {mib} MiB, three quarters of the memory: \
         have more of it or fewer shards (--shards), or take less (cluster.permissions.export)"
    )
}

impl Engine {
    /// Counts what peers want together with the other shards.
    pub fn share_wish_bytes(&mut self, wish_bytes: WishBytes) {
        self.cluster.wish_bytes = wish_bytes;
    }

    /// What everything that peers want may cost on all shards: three quarters of the machine's
    /// memory. Half of it, at most, is for output, which has to do with the rest.
    fn wishes_bytes_max(&self) -> usize {
        let half = self.settings.memory_bytes_max.saturating_mul(self.lanes.len());
        half.saturating_add(half / 2).max(WISHES_BYTES_MIN)
    }

    /// What this shard's output may take, in bytes.
    pub(in crate::engine) fn output_bytes_max(&self) -> usize {
        let half = self.settings.memory_bytes_max;
        let wishes = self.cluster.wish_bytes.total() / self.lanes.len().max(1);
        half.min(half.saturating_mul(2).saturating_sub(wishes).max(half / 2))
    }

    pub(super) fn on_wish(&mut self, id: ConnId, wish: &Wish<'_>, members: Option<u32>) {
        // Of an account that is not known yet, it counts once that is.
        let account = self.account_of(id, wish.account);
        let bytes_max = self.wishes_bytes_max();
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
            let cost = Wishes::cost_bytes(wish, self.lanes.len());
            let bytes = self.cluster.wish_bytes.add(cost);
            if bytes > bytes_max {
                let error = "maximum subscriptions exceeded";
                tracing::error!("{} - {}", conn.label(), too_much(bytes_max));
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
            self.cluster.wish_bytes.sub(Wishes::cost_bytes(wish, self.lanes.len()));
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
            let Some(wish) = wire::parse_wish(&key, of_leaves, form) else { continue };
            self.cluster.wish_bytes.sub(Wishes::cost_bytes(&wish, self.lanes.len()));
            if let Some(account) = self.account_of(id, wish.account) {
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
