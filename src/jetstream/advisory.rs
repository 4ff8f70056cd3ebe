//! Advisories: events of JetStream, as messages in the account of the asset.

use serde::Serialize;

use crate::core::Core;
use crate::delivery::inside;
use crate::interest::ids::AccountId;
use crate::stream::time;

const PREFIX: &str = "$JS.EVENT.ADVISORY.";
const ID_LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// An event, with the fields that all have.
#[derive(Serialize)]
struct AdvisoryText<'a, T> {
    #[serde(rename = "type")]
    kind: String,
    id: String,
    timestamp: String,
    #[serde(flatten)]
    fields: &'a T,
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<&'a str>,
}

/// Fields of an event about a stream.
#[derive(Serialize)]
pub(super) struct StreamAction<'a> {
    pub(super) stream: &'a str,
    pub(super) action: &'a str,
}

/// Fields of the event that a batch was given up.
#[derive(Serialize)]
pub(super) struct BatchAbandoned<'a> {
    pub(super) stream: &'a str,
    pub(super) batch: &'a str,
    pub(super) reason: &'a str,
}

/// Returns the time in nanoseconds since 1970.
pub(super) fn wall(core: &Core) -> u64 {
    core.settings.epoch_ms.saturating_mul(1_000_000).saturating_add(core.times.now)
}

/// Returns a new id of 22 letters and digits.
pub(super) fn new_id(rng: &mut fastrand::Rng) -> String {
    (0..22).map(|_| char::from(ID_LETTERS[rng.usize(..ID_LETTERS.len())])).collect()
}

/// Returns subject and text of an event, if somebody would receive it.
pub(super) fn advisory(
    core: &mut Core,
    account: AccountId,
    subject: &str,
    kind: &str,
    fields: &impl Serialize,
) -> Option<(String, Vec<u8>)> {
    let subject = format!("{PREFIX}{subject}");
    if !inside::has_receivers(core, account, subject.as_bytes(), None) {
        return None;
    }
    let text = serde_json::to_vec(&AdvisoryText {
        kind: format!("io.nats.jetstream.advisory.v1.{kind}"),
        id: new_id(&mut core.random.rng),
        timestamp: time::rfc3339_or_none(wall(core)),
        fields,
        domain: core.settings.streams.as_ref().and_then(|streams| streams.domain.as_deref()),
    });
    Some((subject, text.ok()?))
}
