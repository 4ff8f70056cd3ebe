//! Counters: messages that add to the value of their subject.

use std::borrow::Cow;
use std::collections::BTreeMap;

use num_bigint::BigInt;
use serde::{Deserialize, Serialize};

use super::error::ApiError;
use super::headers::{self, name};
use super::live::LiveStream;
use super::publish::MessageDraft;
use crate::store::StreamStore;

/// The longest increment, in bytes.
const INCREMENT_BYTES_MAX: usize = 4096;

/// The payload of a message of a counter.
#[derive(Debug, Serialize, Deserialize)]
struct CounterValue {
    val: String,
}

/// Last values of a counter by origin, and by its subject there.
type CounterSources = BTreeMap<String, BTreeMap<String, String>>;

/// Headers that a message of a counter may not have.
const EXCLUDED: [&str; 6] = [
    name::ROLLUP,
    name::EXPECTED_STREAM,
    name::EXPECTED_LAST_MSG_ID,
    name::EXPECTED_LAST_SUBJECT_SEQUENCE_SUBJECT,
    name::EXPECTED_LAST_SEQUENCE,
    name::EXPECTED_LAST_SUBJECT_SEQUENCE,
];

/// Reads a whole number of any size, with or without its sign.
fn number(text: &[u8]) -> Option<BigInt> {
    let digits = text.strip_prefix(b"-").or_else(|| text.strip_prefix(b"+")).unwrap_or(text);
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let is_number = is_number && text.len() <= INCREMENT_BYTES_MAX;
    is_number.then(|| BigInt::parse_bytes(text, 10)).flatten()
}

/// Returns the increment of a message, if it has one and may.
pub(super) fn increment_of(
    live: &LiveStream,
    draft: &MessageDraft<'_>,
) -> Result<Option<BigInt>, ApiError> {
    let Some(text) = headers::value(&draft.headers, name::INCREMENT) else { return Ok(None) };
    let increment = number(text).ok_or(ApiError::MESSAGE_INCREMENT_INVALID)?;
    if draft.is_own {
        return Ok(Some(increment));
    }
    if !live.config().allow_msg_counter {
        return Err(ApiError::MESSAGE_INCREMENT_DISABLED);
    }
    if !draft.payload.is_empty() {
        return Err(ApiError::MESSAGE_INCREMENT_PAYLOAD);
    }
    if EXCLUDED.iter().any(|name| headers::value(&draft.headers, name).is_some()) {
        return Err(ApiError::MESSAGE_INCREMENT_INVALID);
    }
    Ok(Some(increment))
}

/// Puts the new value of the counter in the message's place.
pub(super) fn add_increment(
    live: &LiveStream,
    store: &StreamStore,
    draft: &mut MessageDraft<'_>,
    mut increment: BigInt,
) -> Result<(), ApiError> {
    let broken = || ApiError::MESSAGE_COUNTER_BROKEN;
    let (mut value, mut sources) = (BigInt::default(), CounterSources::new());
    let last = live.newest(store, &draft.subject);
    if last.is_some_and(|sequence| live.is_cold(store, sequence)) {
        return Err(ApiError::INSUFFICIENT_RESOURCES);
    }
    if let Some(message) = last.and_then(|sequence| live.message(store, sequence)) {
        let stored: CounterValue = serde_json::from_slice(message.payload).map_err(|_| broken())?;
        value = number(stored.val.as_bytes()).unwrap_or_default();
        if let Some(text) = headers::value(message.headers, name::COUNTER_SOURCES) {
            sources = serde_json::from_slice(text).map_err(|_| broken())?;
        }
    }
    if let Some(origin) = headers::text(&draft.headers, name::STREAM_SOURCE) {
        let fields: Vec<&str> = origin.split(' ').collect();
        let own = String::from_utf8_lossy(&draft.subject);
        let subject = fields.get(4).map_or(&*own, |subject| subject).to_owned();
        let there: CounterValue = serde_json::from_slice(&draft.payload).map_err(|_| broken())?;
        let there = number(there.val.as_bytes()).unwrap_or_default();
        let of_origin = sources.entry(fields[0].to_owned()).or_default();
        let before = of_origin.insert(subject, there.to_string());
        let before = before.and_then(|before| number(before.as_bytes())).unwrap_or_default();
        increment = there - before;
        let text = increment.to_string();
        headers::set(draft.headers.to_mut(), name::INCREMENT, text.as_bytes());
    }
    value += increment;
    let text = value.to_string();
    if !sources.is_empty() {
        let all = serde_json::to_vec(&sources).map_err(|_| broken())?;
        headers::set(draft.headers.to_mut(), name::COUNTER_SOURCES, &all);
    }
    draft.payload = Cow::Owned(format!("{{\"val\":\"{text}\"}}").into_bytes());
    draft.value = Some(text);
    let bytes = draft.headers.len() + draft.payload.len();
    if bytes > live.limits.payload_bytes_max {
        return Err(ApiError::STREAM_MESSAGE_EXCEEDS_MAXIMUM);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_increment_is_digits_with_or_without_a_sign() {
        for (text, expected) in [("1", 1), ("+10", 10), ("-20", -20), ("0", 0), ("-0", 0)] {
            assert_eq!(number(text.as_bytes()), Some(BigInt::from(expected)), "{text}");
        }
        for text in ["", "+", "one", "1.5", " 1", "1e3", "--1", "0x1"] {
            assert_eq!(number(text.as_bytes()), None, "{text}");
        }
        assert_eq!(number(&[b'9'; INCREMENT_BYTES_MAX + 1]), None);
        let huge = "99999999999999999999999999";
        assert_eq!(number(huge.as_bytes()).unwrap().to_string(), huge);
    }
}
