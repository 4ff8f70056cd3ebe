//! Leaf connections under new settings: those that may stay, and what they are told.

use crate::client::identify::Standing;
use crate::core::Core;
use crate::core::close::Reason;
use crate::core::settings::Settings;
use crate::interest::ids::ConnId;

/// Applies new settings to the leaf connections that were accepted. What was dialled is the
/// process's to end.
pub(crate) fn review_leaves(core: &mut Core, old: &Settings) {
    for id in core.links.leaves.clone() {
        review_leaf(core, id, old);
    }
}

/// Ends a leaf connection whose user may not stay as it is: the other end dials again, and is bound
/// anew.
fn review_leaf(core: &mut Core, id: ConnId, old: &Settings) {
    let settings = &core.settings;
    let Some(conn) = core.conns.get(id).filter(|conn| conn.is_open()) else { return };
    let Some(link) = &conn.link else { return };
    let (Some(leaf), Some(user)) = (link.leaf(), conn.login.user()) else { return };
    if leaf.dialed.is_some() {
        if !settings.has_account(&leaf.account) {
            core.fail(id, None, Reason::Protocol("Missing Account"));
        }
        return;
    }
    let (was, is) = (&old.leaf, &settings.leaf);
    let is_otherwise = was.is_isolated != is.is_isolated || was.compression != is.compression;
    let stays = match settings.standing(user, conn, old, core.times.now) {
        Standing::Stays(new) => {
            let lists =
                |user: &crate::auth::user::User| user.permissions.as_ref().map(|p| p.lists());
            lists(&new) == lists(user)
        }
        _ => false,
    };
    if !stays {
        core.fail(id, Some("Authorization Violation"), Reason::Protocol("Authentication Failure"));
    } else if is_otherwise {
        core.fail(id, None, Reason::Protocol("Client Closed"));
    }
}
