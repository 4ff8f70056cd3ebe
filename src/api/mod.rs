//! The words of JetStream's API: configurations, requests, answers and errors.
//!
//! - `config`: configurations of streams, and `check`: what is wrong with them
//! - `error`: all errors of the API, and `answer`: the texts of answers; `account_info` is one
//! - `json`, `headers`, `time`: forms of requests and messages; `hash`: short names
//!
//! Plain values: no stream, no account and no clock is known here.

#![forbid(unsafe_code)]

pub(crate) mod account_info;
pub(crate) mod answer;
pub(crate) mod check;
pub(crate) mod config;
pub(crate) mod error;
pub(crate) mod hash;
pub mod headers;
pub mod json;
pub mod time;

pub use answer::{AnswerKind, ApiAnswer};
pub use check::{CheckContext, NAME_WANTED, StreamLimits, is_valid_name};
pub use config::{
    ConsumerLimits, Discard, ExternalStream, KeptStream, NAME_BYTES_MAX, PersistMode, Republish,
    Retention, SourceConsumer, StorageKind, StoreCompression, StreamConfig, StreamPlacement,
    StreamRequest, StreamSource, SubjectTransformConfig,
};
pub use error::ApiError;
pub use hash::short_name;
