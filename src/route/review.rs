//! Routes under new settings: the peers that may stay, and the interest that they are to have.

use crate::core::Core;
use crate::core::close::Reason;
use crate::core::settings::{RouteSettings, Settings};
use crate::interest::ids::ConnId;
use crate::route::{self, handshake, subscriptions};
use crate::transport::{self, Compression};

fn was_changed(old: &RouteSettings, new: &RouteSettings) -> bool {
    (&old.info.import, &old.info.export) != (&new.info.import, &new.info.export)
}

/// Applies new settings to the registered routes.
pub(crate) fn review_routes(core: &mut Core, old: &Settings) {
    let (was, is) = (&old.route, &core.settings.route);
    let has_new_login = was.user != is.user || was.pass != is.pass;
    let has_new_info = was.info != is.info;
    for id in core.links.routes.clone() {
        if has_new_login && !may_still(core, id) {
            route::refuse_route(core, id, "Authorization Violation");
            continue;
        }
        if was_changed(&old.route, &core.settings.route) {
            core.advertise_changed(id, &old.route);
            subscriptions::drop_untaken(core, id);
        }
        if old.route.compression != core.settings.route.compression {
            review_packing(core, id);
        }
        if has_new_info {
            handshake::send_route_info(core, id);
        }
    }
}

/// Changes the compression of a route; one that is to be compressed, or not to be any more, begins
/// anew.
fn review_packing(core: &mut Core, id: ConnId) {
    let own = &core.settings.route.compression;
    let Some(conn) = core.conns.get_mut(id) else { return };
    let theirs = conn.link.as_ref().and_then(|link| link.offered.as_deref());
    let agreed = transport::negotiate(own, theirs.unwrap_or_default()).unwrap_or(None);
    match (agreed, conn.layers.compression()) {
        (Some(mode), Some(_)) => conn.layers.set_compression(mode),
        // A peer that has dialled says "off" also where this server asked for that.
        (None, None) if *own == Compression::Off || !matches!(theirs, Some("off")) => {}
        _ => core.fail(id, None, Reason::ClientClosed),
    }
}

/// Whether a peer that has dialled knows the credentials that are valid now.
fn may_still(core: &Core, id: ConnId) -> bool {
    let link = core.conns.get(id).and_then(|conn| conn.link.as_ref());
    let Some(link) = link.filter(|link| link.dialed.is_none()) else { return true };
    let (Some(user), Some(secret)) = (&core.settings.route.user, &core.settings.route.pass) else {
        return true;
    };
    // A hash takes too long to be compared here; a peer with its password dials again.
    link.login.as_ref().is_some_and(|(name, given)| {
        name == user && !secret.is_bcrypt() && secret.matches(given.revealed())
    })
}
