//! TLS of leaf connections, accepted or dialled.

use std::sync::Arc;

use crate::core::timers::Deadline;
use crate::core::{Core, layers};
use crate::interest::ids::ConnId;
use crate::transport::HandshakeFirst;

const NS_PER_MS: u64 = 1_000_000;

/// Begins TLS on an accepted connection, if it is configured. Returns whether INFO goes out in
/// clear.
pub(crate) fn begin_accepted(core: &mut Core, id: ConnId) -> bool {
    let Some(conn) = core.conns.get_mut(id) else { return false };
    let Some(tls) = &core.settings.leaf.tls else { return true };
    conn.layers.expect_tls();
    let after = |ms: u64| core.times.now.saturating_add(ms.saturating_mul(NS_PER_MS));
    conn.deadlines.arm(Deadline::Login, after(tls.timeout_ms));
    match tls.first {
        HandshakeFirst::No => true,
        HandshakeFirst::Always => false,
        HandshakeFirst::Within(ms) => {
            conn.deadlines.arm(Deadline::Info, after(ms));
            false
        }
    }
}

/// Begins the handshake with a hub that was dialled.
pub(crate) fn begin_dialed(core: &mut Core, id: ConnId) {
    let Some(conn) = core.conns.get_mut(id) else { return };
    let label = conn.label();
    let dialed = conn.link.as_ref().and_then(|link| link.leaf()?.dialed.clone());
    let Some(dialed) = dialed else { return };
    let Some(tls) = &dialed.remote.tls else {
        return layers::fail_handshake(core, id, "the remote needs a block tls");
    };
    tracing::debug!("{label} - Starting TLS leafnode client handshake");
    let timeout_ns = tls.timeout_ms.saturating_mul(NS_PER_MS);
    conn.deadlines.arm(Deadline::Login, core.times.now.saturating_add(timeout_ns));
    match conn.layers.dial_tls(Arc::clone(&tls.client), &dialed.host) {
        Ok(()) => core.flush_if_wanted(id),
        Err(error) => layers::fail_handshake(core, id, &error),
    }
    core.rearm(id);
}
