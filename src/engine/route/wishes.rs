//! What peers want: interest behind routes.

#![forbid(unsafe_code)]

use super::{RouteNotice, Stage};
use crate::engine::interest::Side;
use crate::engine::{AccountId, ConnId, Engine, Reason};
use crate::proto::encode;
use crate::proto::route::{self as wire, Wish};
use crate::subject;

impl Engine {
    pub(super) fn on_wish(&mut self, id: ConnId, wish: &Wish<'_>, members: Option<u32>) {
        // Of an account that is not known yet, it counts once that is.
        let account = self.account_of(id, wish.account);
        let Some(conn) = self.conns.get_mut(id) else { return };
        if !subject::is_valid_filter(wish.subject) {
            let subject = encode::go_quoted(wish.subject);
            tracing::error!("{} - Invalid subscription to {subject}", conn.label());
            return;
        }
        if !self.settings.route.takes(wish.subject) {
            return;
        }
        let Some(route) = &mut conn.route else { return };
        let is_known = route.wishes.contains(wish.key);
        if is_known && members.is_none() {
            return;
        }
        if !is_known {
            route.wishes_bytes += wish.key.len() + size_of::<Box<[u8]>>();
            route.wishes.insert(wish.key.into());
            if route.wishes_bytes > self.settings.memory_bytes_max {
                tracing::error!("{} - more interest than memory", conn.label());
                return self.fail(id, None, Reason::Protocol("Maximum Subscriptions Exceeded"));
            }
        }
        if let Some(account) = account {
            self.set_wish(id, account, wish.subject, wish.queue, members.unwrap_or(1));
        }
    }

    pub(super) fn on_wish_end(&mut self, id: ConnId, wish: &Wish<'_>) {
        let account = self.account_of(id, wish.account);
        let Some(conn) = self.conns.get_mut(id) else { return };
        let Some(route) = &mut conn.route else { return };
        if route.wishes.remove(wish.key) {
            route.wishes_bytes -= wish.key.len() + size_of::<Box<[u8]>>();
            if let Some(account) = account {
                self.set_wish(id, account, wish.subject, wish.queue, 0);
            }
        }
    }

    pub(in crate::engine) fn set_wish(
        &mut self,
        id: ConnId,
        account: AccountId,
        subject: &[u8],
        queue: Option<&[u8]>,
        members: u32,
    ) {
        let interest = &mut self.accounts.at(account).interest;
        if let Some(all) = interest.set_route(id.slot, subject, queue, members) {
            self.announce(id, account, Side::Routes, (subject, queue), all);
        }
    }

    /// Takes a route out of every table.
    pub(in crate::engine) fn leave_route(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let Some(route) = &mut conn.route else { return };
        conn.claim = None;
        let (rid, wishes) = (route.rid, std::mem::take(&mut route.wishes));
        if std::mem::replace(&mut route.stage, Stage::Ended) != Stage::Ended {
            self.cluster.notices.push_back(RouteNotice::Ended { rid, is_self: false });
        }
        self.cluster.routes.retain(|route| *route != id);
        let accounts = route.accounts();
        for key in wishes {
            let Some(wish) = wire::wish(&key, accounts) else { continue };
            if let Some(account) = self.account_of(id, wish.account) {
                self.set_wish(id, account, wish.subject, wish.queue, 0);
            }
        }
    }

    /// Forgets what a peer wants and is not taken any more.
    pub(super) fn drop_wishes(&mut self, id: ConnId) {
        let Some(route) = self.conns.get_mut(id).and_then(|conn| conn.route.as_mut()) else {
            return;
        };
        let (settings, accounts) = (&self.settings.route, route.accounts());
        let is_over = |key: &[u8]| {
            wire::wish(key, accounts).is_some_and(|wish| !settings.takes(wish.subject))
        };
        let over: Vec<Box<[u8]>> =
            route.wishes.iter().filter(|key| is_over(key)).cloned().collect();
        for key in over {
            if let Some(wish) = wire::wish(&key, accounts) {
                self.on_wish_end(id, &wish);
            }
        }
    }
}
