//! Deadlines of connections that have passed.

use crate::auth::token_users::Pass;
use crate::client::{callout, info};
use crate::core::close::Reason;
use crate::core::conn::Phase;
use crate::core::timers::Deadline;
use crate::core::{layers, timers};
use crate::engine::{Engine, leaves};
use crate::interest::ids::ConnId;
use crate::leaf::handshake;
use crate::mqtt;

impl Engine {
    pub(crate) fn on_timer(&mut self, id: ConnId) {
        let core = &mut self.core;
        let Some(conn) = core.conns.get_mut(id) else { return };
        if let Phase::Flushing { until } = conn.phase {
            if until <= core.times.now {
                core.close(id, true);
            }
            return;
        }
        let deadline_ns = core.settings.write_deadline_ns_of(conn.kind());
        let overdue = conn.outgoing.write_due(deadline_ns);
        if conn.outbox.is_in_flight() && overdue <= core.times.now {
            let bytes = conn.outbox.pending_bytes();
            tracing::info!(
                "{} - Slow Consumer Detected: WriteDeadline of {:?} exceeded with {} total bytes.",
                conn.label(),
                std::time::Duration::from_nanos(deadline_ns),
                bytes
            );
            core.abort(id, Reason::SlowConsumerDeadline);
            return;
        }
        match conn.deadlines.pop_due(core.times.now) {
            None => {}
            Some(Deadline::Info) if conn.link.is_some() => leaves::inform_leaf(core, id),
            Some(Deadline::Info) => info::send_info(core, id, false),
            Some(Deadline::Read) => core.release(id, |brakes| brakes.pace = false),
            Some(Deadline::Expiry) => {
                if let Some(farewell) = conn.pass().map(Pass::farewell) {
                    tracing::error!("{} - {farewell}", conn.label());
                    let reason = Reason::Protocol("Authentication Expired");
                    core.fail(id, Some(farewell), reason);
                }
            }
            Some(Deadline::Header) => layers::fail_header(core, id, "it takes too long"),
            Some(Deadline::Login) if conn.layers.awaits_tls() => {
                layers::on_handshake_timeout(core, id);
            }
            Some(Deadline::Login) if !conn.layers.is_understood() => {
                layers::fail_upgrade(core, id, "timeout");
            }
            Some(Deadline::Login) if conn.login.asked().is_some() => {
                callout::on_timeout(core, id);
            }
            Some(Deadline::Login)
                if conn.link.as_ref().is_some_and(|link| link.leaf().is_some()) =>
            {
                handshake::on_deadline(core, id);
            }
            Some(Deadline::Login) => {
                tracing::error!("{} - authentication timeout", conn.label());
                let reason = Reason::Protocol("Authentication Timeout");
                core.fail(id, Some("Authentication Timeout"), reason);
            }
            Some(Deadline::Ping) if conn.transport.is_mqtt() => mqtt::on_silence(core, id),
            Some(Deadline::Ping) => timers::on_ping_timer(core, id),
        }
    }
}
