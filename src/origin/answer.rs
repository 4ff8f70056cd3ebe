//! Answers of origins to requests for consumers, of which nothing is believed.

use serde::Deserialize;

use crate::store::SEQUENCE_MAX;
use crate::stream::{ApiError, Incoming, headers, is_valid_name};
use crate::subject::is_word;

/// Characters of an error's text that are kept.
const ERROR_CHARACTERS_MAX: usize = 256;
/// Bytes of the text that tells an origin from others, at most.
const IDENTITY_BYTES_MAX: usize = 64;
/// Name of the policy by which answers to flow control are acknowledgements.
const FLOW_CONTROL: &str = "flow_control";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AnswerText {
    error: Option<ApiError>,
    name: String,
    config: Option<AnsweredConfig>,
    delivered: AnsweredPlace,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AnsweredConfig {
    deliver_subject: String,
    ack_policy: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AnsweredPlace {
    consumer_seq: u64,
    stream_seq: u64,
}

/// A consumer of the origin that is for the copy.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct AnsweredConsumer {
    pub(super) name: Box<[u8]>,
    /// Whether answers to flow control are acknowledgements.
    pub(super) acknowledges: bool,
    /// The last sequence of the origin that the consumer has passed over without a delivery.
    pub(super) passed: u64,
    /// A text that tells the origin from others of its name; empty if none is given.
    pub(super) identity: Box<str>,
}

/// Reads an answer.
///
/// # Errors
///
/// Returns the error that the origin's server gives; 10025 for what cannot be read; `unfit` for a
/// consumer that is not as it was asked for.
pub(super) fn read_answer(
    message: &Incoming<'_>,
    deliver: &str,
    unfit: impl Fn(&str) -> ApiError,
) -> Result<AnsweredConsumer, ApiError> {
    let text: Result<AnswerText, _> = serde_json::from_slice(message.payload);
    let Ok(text) = text else {
        return Err(ApiError::invalid_json("the answer of the origin cannot be read"));
    };
    if let Some(error) = text.error {
        let description = error.description.chars().take(ERROR_CHARACTERS_MAX).collect::<String>();
        return Err(ApiError { description: description.into(), ..error });
    }
    let config = text.config.filter(|config| config.deliver_subject == deliver);
    let config = config.filter(|_| is_valid_name(&text.name));
    let Some(config) = config.filter(|_| text.delivered.stream_seq <= SEQUENCE_MAX) else {
        return Err(unfit("invalid consumer create response"));
    };
    // A busy origin delivers before it answers. These messages are on their way, or lost.
    let passed = if text.delivered.consumer_seq == 0 { text.delivered.stream_seq } else { 0 };
    let identity =
        headers::text(message.headers, headers::name::STREAM_IDENTITY).unwrap_or_default();
    let is_one = is_word(identity.as_bytes()) && identity.len() <= IDENTITY_BYTES_MAX;
    Ok(AnsweredConsumer {
        name: text.name.into_bytes().into(),
        acknowledges: config.ack_policy == FLOW_CONTROL,
        passed,
        identity: if is_one { identity.into() } else { "".into() },
    })
}
