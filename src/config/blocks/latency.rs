//! The block `latency` of an exported service.

use super::StartError;
use super::accounts::sampling;
use super::field::Action::Set;
use super::field::{Field, Key, bind_map};
use super::file::ValueKind;
use crate::engine::account_settings::LatencyRule;
use crate::subject::is_valid_publish;

/// Percentage that is measured, unless the block says something else.
const ALL: u8 = 100;

#[derive(Default)]
struct LatencyDraft {
    subject: String,
    percent: Option<u8>,
}

const LATENCY: &[Key<LatencyDraft>] = &[
    Key(&["subject"], Set(|l, v| subject(v).map(|subject| l.subject = subject))),
    Key(
        &["sampling"],
        Set(|l, v| {
            l.percent = Some(match &v.value.kind {
                ValueKind::Text(text) if text.trim().eq_ignore_ascii_case("headers") => 0,
                _ => sampling(v)?,
            });
            Ok(())
        }),
    ),
];

fn subject(v: &mut Field<'_>) -> Result<String, StartError> {
    let subject = v.text()?;
    match is_valid_publish(subject.as_bytes()) {
        true => Ok(subject),
        false => Err(v.error("the subject of latencies has no wildcards")),
    }
}

/// Reads the subject of the reports, or the block.
pub(super) fn bind(v: &mut Field<'_>) -> Result<LatencyRule, StartError> {
    if !matches!(v.value.kind, ValueKind::Map(_)) {
        return Ok(LatencyRule { subject: subject(v)?, percent: ALL });
    }
    let mut draft = LatencyDraft::default();
    bind_map(&[LATENCY], v.map()?, &mut draft, v.warnings)?;
    if draft.subject.is_empty() {
        return Err(v.error("latency needs a subject for its reports"));
    }
    Ok(LatencyRule { subject: draft.subject, percent: draft.percent.unwrap_or(ALL) })
}
