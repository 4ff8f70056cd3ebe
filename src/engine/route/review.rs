//! Routes under new settings: who may stay, and what peers are told.

#![forbid(unsafe_code)]

use crate::engine::settings::RouteSettings;
use crate::engine::{ConnId, Engine, Reason, Settings};
use crate::transport::{self, Compression};

impl Engine {
    /// Puts new settings in force for the routes there are.
    pub(in crate::engine) fn review_routes(&mut self, old: &Settings) {
        let (was, is) = (&old.route, &self.settings.route);
        let has_new_login = was.user != is.user || was.pass != is.pass;
        let has_new_info = was.info != is.info;
        for id in self.cluster.routes.clone() {
            if has_new_login && !self.may_still(id) {
                self.refuse_route(id, "Authorization Violation");
                continue;
            }
            if was_changed(&old.route, &self.settings.route) {
                self.tell_changed(id, &old.route);
                self.drop_wishes(id);
            }
            if old.route.compression != self.settings.route.compression {
                self.review_packing(id);
            }
            if has_new_info {
                self.send_route_info(id);
            }
        }
    }

    /// Compresses otherwise; a route that is to be compressed, or not to be any more, begins anew.
    fn review_packing(&mut self, id: ConnId) {
        let own = &self.settings.route.compression;
        let Some(conn) = self.conns.get_mut(id) else { return };
        let theirs = conn.route.as_ref().and_then(|route| route.offered.as_deref());
        let agreed = transport::negotiate(own, theirs.unwrap_or_default()).unwrap_or(None);
        match (agreed, conn.layers.compression()) {
            (Some(mode), Some(_)) => conn.layers.set_compression(mode),
            // Who has dialled says "off" also where that was this server's wish.
            (None, None) if *own == Compression::Off || !matches!(theirs, Some("off")) => {}
            _ => self.fail(id, None, Reason::ClientClosed),
        }
    }

    /// Whether a peer that has dialled knows the credentials that count now.
    fn may_still(&self, id: ConnId) -> bool {
        let route = self.conns.get(id).and_then(|conn| conn.route.as_ref());
        let Some(route) = route.filter(|route| route.dialed.is_none()) else { return true };
        let (Some(user), Some(secret)) = (&self.settings.route.user, &self.settings.route.pass)
        else {
            return true;
        };
        // A hash takes too long to be compared here; whoever knows its password comes again.
        route.login.as_ref().is_some_and(|(name, given)| {
            name == user && !secret.is_bcrypt() && secret.matches(given.revealed())
        })
    }
}

fn was_changed(old: &RouteSettings, new: &RouteSettings) -> bool {
    (&old.info.import, &old.info.export) != (&new.info.import, &new.info.export)
}
