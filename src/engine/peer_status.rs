//! The status of a peer's certificate: the question, and the wait before anything is said.
//!
//! The handshake is complete, and the peer has a certificate that an authority vouches for. Whether
//! it is still good, a responder has to say (`Output::PeerQuestion`). Until then the peer gets
//! nothing of the protocol but its pings, is not read from, and what it has sent already waits,
//! bounded like the input behind a CONNECT. The wait has a deadline, and nobody else waits.

use std::sync::Arc;

use crate::client::info;
use crate::core::Core;
use crate::core::conn::Conn;
use crate::core::input::Held;
use crate::core::layers;
use crate::core::outputs::Output;
use crate::core::settings::Settings;
use crate::core::timers::Deadline;
use crate::engine::Engine;
use crate::gateway;
use crate::interest::ids::ConnId;
use crate::interest::reach::Kind;
use crate::leaf::handshake;
use crate::ocsp::{LINKS_MAX, PeerQuestion, RESPONDERS_MAX};
use crate::route;

/// Nanoseconds of the wait besides the times of responders, and those for the step behind it.
const SLACK_NS: u64 = 2_000_000_000;

/// Asks about the certificate of a peer, if its status matters. Returns whether it waits.
pub(super) fn ask(core: &mut Core, id: ConnId) -> bool {
    let Some(conn) = core.conns.get_mut(id) else { return false };
    let Some(question) = question(&core.settings, conn) else { return false };
    let due = core.times.now.saturating_add(question.wait_ns).saturating_add(SLACK_NS);
    conn.deadlines.arm(Deadline::Login, due);
    core.out.push(Output::PeerQuestion(id, Box::new(question)));
    core.hold(id, Held::Status);
    core.rearm(id);
    true
}

fn question(settings: &Settings, conn: &Conn) -> Option<PeerQuestion> {
    let leaf = conn.link.as_ref().and_then(|link| link.leaf());
    let kind = if leaf.is_some() { "Leafnode" } else { "Client" };
    let dialed = leaf.and_then(|leaf| leaf.dialed.as_ref());
    let (policy, authorities) = match dialed {
        Some(dialed) => {
            let tls = dialed.remote.tls.as_ref()?;
            (tls.peers.as_ref()?, &tls.authorities)
        }
        None => {
            let tls = settings.tls_for(conn)?;
            (tls.peers.as_ref()?, &tls.authorities)
        }
    };
    let shown = conn.layers.peer_certificates().to_vec();
    let asked = shown.len().min(LINKS_MAX) * RESPONDERS_MAX;
    let timeout_ns = policy.timeout_ms.saturating_mul(1_000_000);
    let wait_ns = timeout_ns.saturating_mul(u64::try_from(asked).unwrap_or(u64::MAX));
    Some(PeerQuestion {
        shown,
        wait_ns,
        authorities: Arc::clone(authorities),
        policy: Arc::clone(policy),
        kind,
        refusal: refusal(conn),
    })
}

/// Takes the answer about a peer. Returns the input that has waited for it; `None` if nothing did.
fn on_answer(core: &mut Core, id: ConnId) -> Option<Vec<u8>> {
    let conn = core.conns.get_mut(id).filter(|conn| conn.is_open())?;
    conn.input.held().filter(|held| *held == Held::Status)?;
    let rest = conn.input.take_held();
    // The next step has its own deadline, or this one.
    let next_ns = core.settings.auth_timeout_ns_of(conn.transport).max(SLACK_NS);
    conn.deadlines.arm(Deadline::Login, core.times.now.saturating_add(next_ns));
    core.rearm(id);
    rest
}

/// Returns the reason why a peer is refused.
fn refusal(conn: &Conn) -> &'static str {
    let is_server = conn.link.as_ref().is_some_and(|link| link.dialed.is_some());
    if is_server { "server not OCSP valid" } else { "client not OCSP valid" }
}

/// Takes the answer about a peer's certificate: the peer is greeted, or refused.
pub(super) fn on_peer_status(engine: &mut Engine, id: ConnId, is_good: bool) {
    let Some(rest) = on_answer(&mut engine.core, id) else { return };
    let Some(conn) = engine.core.conns.get(id) else { return };
    if !is_good {
        let reason = refusal(conn);
        return layers::fail_handshake(&mut engine.core, id, reason);
    }
    greet_secured(&mut engine.core, id);
    engine.go_on_behind(id, &rest);
    // The request for a WebSocket may have waited.
    engine.on_wrapped(id, &[]);
}

/// Begins the protocol within TLS.
pub(super) fn greet_secured(core: &mut Core, id: ConnId) {
    let Some(conn) = core.conns.get_mut(id) else { return };
    let is_leaf = conn.link.as_ref().is_some_and(|link| link.leaf().is_some());
    if is_leaf {
        return handshake::on_secured(core, id);
    }
    if !conn.layers.is_understood() {
        return; // The request comes next.
    }
    if conn.link.is_some() {
        match conn.kind() {
            Kind::Gateway => gateway::greet(core, id),
            _ => route::greet_route(core, id),
        }
        return;
    }
    let login = core.settings.auth_due(conn.transport, core.times.now);
    conn.deadlines.arm(Deadline::Login, login);
    if !conn.login.is_informed() {
        info::send_info(core, id, false);
    }
    core.rearm(id);
}
