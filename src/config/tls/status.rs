//! The key `ocsp_peer`: demands on the status of peers' certificates.

use super::StartError;
use super::ValueKind;
use super::field::Action::Set;
use super::field::{Field, Key, bind_map};
use crate::ocsp::PeerPolicy;

/// The block `ocsp_peer` as it is written.
#[derive(Default)]
struct PeerBlock {
    verify: bool,
    policy: PeerPolicy,
}

const PEERS: &[Key<PeerBlock>] = &[
    Key(&["verify"], Set(|b, v| v.boolean().map(|on| b.verify = on))),
    Key(&["ca_timeout"], Set(|b, v| some_ms(v).map(|ms| set_some(&mut b.policy.timeout_ms, ms)))),
    Key(
        &["allowed_clockskew"],
        Set(|b, v| some_ms(v).map(|ms| set_some(&mut b.policy.skew_s, ms.map(seconds)))),
    ),
    Key(
        &["cache_ttl_when_next_update_unset"],
        Set(|b, v| some_ms(v).map(|ms| set_some(&mut b.policy.ttl_s, ms.map(seconds)))),
    ),
    Key(&["warn_only"], Set(|b, v| v.boolean().map(|on| b.policy.warns_only = on))),
    Key(&["unknown_is_good"], Set(|b, v| v.boolean().map(|on| b.policy.unknown_is_good = on))),
    Key(
        &["allow_when_ca_unreachable"],
        Set(|b, v| v.boolean().map(|on| b.policy.allows_silence = on)),
    ),
];

/// Binds `ocsp_peer`; `None` if nothing is demanded.
pub(super) fn peers(v: &mut Field<'_>) -> Result<Option<PeerPolicy>, StartError> {
    let map = match &v.value.kind {
        ValueKind::Boolean(on) => return Ok(on.then(PeerPolicy::default)),
        ValueKind::Map(map) => map,
        _ => return Err(v.expected("true, false, or a block { verify: true, … }")),
    };
    let mut block = PeerBlock::default();
    bind_map(&[PEERS], map, &mut block, v.warnings)?;
    if !block.verify {
        v.warn_missing("ocsp_peer without verify: true has no effect: it demands nothing");
    }
    Ok(block.verify.then_some(block.policy))
}

fn set_some<T>(to: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *to = value;
    }
}

/// Reads milliseconds from a number of seconds or a duration; `None` if it is negative, which
/// leaves the default.
fn some_ms(v: &mut Field<'_>) -> Result<Option<u64>, StartError> {
    match v.value.kind {
        ValueKind::Integer(..0) => Ok(None),
        ValueKind::Float(value) if value < 0.0 => Ok(None),
        ValueKind::Text(_) => v.signed_duration_ms().map(|ms| u64::try_from(ms).ok()),
        _ => v.seconds_ms().map(Some),
    }
}

/// Returns whole seconds.
fn seconds(ms: u64) -> i64 {
    i64::try_from(ms / 1000).unwrap_or(i64::MAX)
}
