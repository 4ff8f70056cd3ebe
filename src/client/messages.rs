//! Publishes of clients: checked, mapped, and gathered into runs.

use crate::auth::grants::is_reserved_subject;
use crate::core::conn::Conn;
use crate::core::{Core, message_trace};
use crate::delivery::publish::{self, PublisherInfo};
use crate::delivery::traced::{self, Traced};
use crate::interest::cost::OPERATION_WORK;
use crate::interest::ids::ConnId;
use crate::interest::mapping::Mapped;
use crate::proto::{Publish, encode};
use crate::run::Run;
use crate::{client, subject};

/// The decision on a publish.
enum Verdict {
    /// A publish that becomes part of a run. `is_alone`: of a run of its own, since it was answered
    /// by itself.
    Joins { publisher: PublisherInfo, is_alone: bool },
    /// A publish that is not delivered; its publisher gets the error.
    Refused(String),
    /// A publish without an open connection, or one that has to wait for its turn.
    Dropped,
}

/// Takes a publish into the run, or handles it now. `false` if it is not taken: its turn has not
/// come, or its connection has ended.
#[inline]
pub(super) fn on_publish<'a>(
    core: &mut Core,
    id: ConnId,
    publish: &Publish<'a>,
    wire: &'a [u8],
    run: &mut Run<'a>,
) -> bool {
    if publish.header.is_some()
        && let Some(account) = core.conns.get(id).map(|conn| conn.account)
        && message_trace::is_traced(core, account, publish)
    {
        return on_traced_publish(core, id, publish, wire, run);
    }
    take_publish(core, id, publish, wire, run)
}

/// Handles a publish that may have to be traced, by itself; `false` if it is not taken.
fn on_traced_publish<'a>(
    core: &mut Core,
    id: ConnId,
    publish: &Publish<'a>,
    wire: &'a [u8],
    run: &mut Run<'a>,
) -> bool {
    flush_run(core, id, run);
    if !core.may_go_on(id) {
        return false;
    }
    let Some(account) = core.conns.get(id).map(|conn| conn.account) else { return false };
    match traced::begin_trace(core, id, account, publish) {
        Traced::No | Traced::Yes => {
            take_publish(core, id, publish, wire, run);
            flush_run(core, id, run);
            message_trace::end_trace(core);
            core.budget.spend(OPERATION_WORK);
        }
        Traced::Ends => {
            warn_of_subject(core, id, publish.subject);
        }
        Traced::Denied(dest) => {
            warn_of_subject(core, id, publish.subject);
            client::refuse(core, id, &encode::publish_violation(&dest));
        }
    }
    true
}

fn take_publish<'a>(
    core: &mut Core,
    id: ConnId,
    publish: &Publish<'a>,
    wire: &'a [u8],
    run: &mut Run<'a>,
) -> bool {
    let mut continues = run.continues_with(publish);
    if !continues {
        let mapped = map(core, id, publish.subject);
        continues = run.resumes_with(publish, mapped.as_ref());
        if !continues {
            flush_run(core, id, run);
            message_trace::note_mapped(core, publish.subject, mapped.as_ref());
            run.map(mapped);
        }
    }
    match judge(core, id, publish, run.mapped(), wire, continues) {
        Verdict::Joins { publisher, is_alone } => {
            if is_alone {
                flush_run(core, id, run);
            }
            if is_alone || !continues {
                publish::begin_run(core, publisher, run, publish);
            }
            run.push(*publish, wire.len());
            if is_alone {
                flush_run(core, id, run);
            }
        }
        Verdict::Refused(error) => {
            // Earlier publishes come before the error.
            flush_run(core, id, run);
            message_trace::note_refused(core, &error);
            core.budget.spend(OPERATION_WORK);
            client::refuse(core, id, &error);
        }
        Verdict::Dropped => return false,
    }
    true
}

/// Returns the subject that a mapping of the connection's account makes of `subject`, if any does.
pub(crate) fn map(core: &mut Core, id: ConnId, subject: &[u8]) -> Option<Mapped> {
    if !core.settings.accounts.has_mappings {
        return None;
    }
    let account = core.conns.get(id)?.account;
    let mappings = core.accounts.at(account).mappings.as_ref()?;
    mappings.map(subject, &mut core.random.rng)
}

/// Checks a publish. With `continues` its subject is that of the run, which was found good. The
/// mapped subject counts.
fn judge(
    core: &mut Core,
    id: ConnId,
    publish: &Publish<'_>,
    mapped: Option<&Mapped>,
    wire: &[u8],
    continues: bool,
) -> Verdict {
    let Some(mut conn) = core.conns.get_mut(id).filter(|conn| conn.is_open()) else {
        return Verdict::Dropped;
    };
    // Where a trace has begun, the turn was asked for before.
    let asks_for_turn = !continues && core.tracer.trace.is_none();
    if asks_for_turn && (core.budget.is_spent() || conn.input.brakes.holds()) {
        return Verdict::Dropped;
    }
    if let Some(tracing) = core.settings.tracing {
        tracing.publish(conn, publish, mapped, wire);
    }
    conn.liveness.last_active = core.times.now;
    let (verbose, pedantic) = (conn.connect.verbose, conn.connect.pedantic);
    let mut invalid = false;
    if pedantic && !continues {
        invalid = warn_of_subject(core, id, publish.subject);
        let Some(again) = core.conns.get_mut(id) else { return Verdict::Dropped };
        conn = again;
    }
    let subject = mapped.map_or(publish.subject, |mapped| &mapped.subject);
    let reserved =
        !continues && is_reserved_subject(subject, core.accounts.system == Some(conn.account));
    if reserved || !may_publish(conn, subject, continues, core.times.now) {
        let name = encode::go_quoted(subject);
        tracing::error!("{} - Publish Violation - Subject {name}", conn.label());
        return Verdict::Refused(encode::publish_violation(subject));
    }
    if let Some(reply) = publish.reply.filter(|reply| is_reserved_reply(reply)) {
        let text = encode::go_quoted(reply);
        tracing::error!("{} - Publish Violation - Reply {text}", conn.label());
        return Verdict::Refused(encode::reply_violation(reply));
    }
    let publisher =
        PublisherInfo { account: conn.account, wants_status: conn.connect.no_responders };
    if verbose {
        // The reply confirms earlier publishes; this message follows it.
        core.confirm(id, encode::ok);
    }
    Verdict::Joins { publisher, is_alone: verbose || invalid }
}

/// Warns a pedantic client of an invalid subject, even if the publish has other faults; `true` if
/// it was warned.
fn warn_of_subject(core: &mut Core, id: ConnId, subject: &[u8]) -> bool {
    let is_pedantic = core.conns.get(id).is_some_and(|conn| conn.connect.pedantic);
    let warns = is_pedantic && !subject::is_valid_publish(subject);
    if warns {
        client::refuse(core, id, "Invalid Publish Subject");
    }
    warns
}

pub(crate) fn flush_run(core: &mut Core, id: ConnId, run: &mut Run<'_>) {
    if !run.is_empty() {
        match run.mapped() {
            None => publish::publish(core, id, run),
            Some(mapped) => publish::publish(core, id, &run.renamed(&mapped.subject)),
        }
        run.clear();
    }
}

/// Whether a connection may publish to `subject`. With `continues` it just did: then only permitted
/// responses have to be counted.
pub(crate) fn may_publish(conn: &mut Conn, subject: &[u8], continues: bool, now: u64) -> bool {
    if conn.permissions().is_none_or(|user| continues && !user.allows_responses()) {
        return true;
    }
    conn.login.checks().is_none_or(|(user, checks)| checks.may_publish(user, subject, now))
}

fn is_reserved_reply(reply: &[u8]) -> bool {
    matches!(reply.first(), Some(b'_' | b'$'))
        && [&b"_R_."[..], b"_GR_.", b"$JS.ACK."].iter().any(|prefix| reply.starts_with(prefix))
}
