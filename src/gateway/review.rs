//! Gateways under new settings: the peers that may stay.

use crate::core::Core;
use crate::core::settings::Settings;
use crate::gateway::{self, handshake, interest, telling};
use crate::interest::ids::ConnId;

/// Applies new settings, with which accounts may have come and gone, to the registered gateways.
pub(crate) fn review_gateways(core: &mut Core, old: &Settings) {
    let (Some(was), Some(is)) = (&old.gateway, &core.settings.gateway) else { return };
    let has_new_login = was.user != is.user || was.pass != is.pass;
    let has_new_info = was.info != is.info;
    let has_new_names = was.known != is.known;
    for id in core.links.gateways.inbounds.clone() {
        if (has_new_login && !may_still(core, id)) || (has_new_names && !is_known(core, id)) {
            gateway::refuse(core, id, "Authorization Violation");
        } else if has_new_info {
            handshake::send_info(core, id);
        }
    }
    telling::review_accounts(core);
    interest::review_accounts(core);
}

/// Whether a peer that has dialled knows the credentials that are valid now.
fn may_still(core: &Core, id: ConnId) -> bool {
    let Some(settings) = &core.settings.gateway else { return false };
    let (Some(user), Some(secret)) = (&settings.user, &settings.pass) else { return true };
    let link = core.conns.get(id).and_then(|conn| conn.link.as_ref());
    // A hash takes too long to be compared here; a peer with its password dials again.
    link.and_then(|link| link.login.as_ref()).is_some_and(|(name, given)| {
        name == user && !secret.is_bcrypt() && secret.matches(given.revealed())
    })
}

/// Whether the peer's cluster may connect.
fn is_known(core: &Core, id: ConnId) -> bool {
    let known = core.settings.gateway.as_ref().and_then(|settings| settings.known.as_ref());
    let link = core.conns.get(id).and_then(|conn| conn.link.as_ref());
    let peer = link.and_then(|link| link.gateway());
    known.is_none_or(|known| peer.is_some_and(|peer| known.contains(&*peer.cluster)))
}
