//! The wire: bytes of clients and servers become operations, and answers are rendered.
//!
//! No input or output, and no state between two calls: the caller keeps the bytes until an
//! operation is complete. Limits are arguments. The protocol is as nats-server 2.14 speaks it.

#![forbid(unsafe_code)]

pub mod connect;
pub mod encode;
pub mod gateway;
pub mod headers;
pub mod leaf;
pub mod mqtt;
pub mod parse;
pub mod proxy;
pub mod route;

use std::fmt;

pub use connect::{Connect, ConnectError};
pub use encode::Info;
pub use parse::parse;

/// Limits of a client; the same for all operations of one call of [`parse()`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseLimits {
    /// Longest argument part of a control line, in bytes: from the first argument byte to the
    /// last one before the line end, blanks included (`max_control_line`).
    pub control_line_bytes_max: usize,
    /// Largest payload in bytes, headers included (`max_payload`).
    pub payload_bytes_max: usize,
    /// Whether HPUB is allowed: the server has headers and the client's CONNECT asked for them.
    pub headers: bool,
}

/// An operation of a client, borrowed from the bytes it arrived in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op<'a> {
    /// CONNECT with its JSON text, without the blanks around it; see [`Connect::apply`].
    Connect(&'a [u8]),
    /// PING: to be answered with PONG.
    Ping,
    /// PONG: the answer to a PING of the server.
    Pong,
    /// PUB or HPUB.
    Pub(Publish<'a>),
    /// SUB. The receiver decides whether the subject is valid.
    Sub {
        /// The filter, perhaps with wildcards, perhaps invalid.
        subject: &'a [u8],
        /// The queue group.
        queue: Option<&'a [u8]>,
        /// The client's name for the subscription: any text.
        sid: &'a [u8],
    },
    /// UNSUB.
    Unsub {
        /// The client's name for the subscription that ends.
        sid: &'a [u8],
        /// Messages since SUB after which it ends; never 0. `None`: now, as also for a limit
        /// that is 0 or not a number of 1 to 9 digits.
        max: Option<u64>,
    },
    /// An operation without effect: `+OK`, `INFO {…}`.
    Nothing,
}

/// A message as its publisher sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish<'a> {
    /// Subject of the message; unchecked, at least one byte, no blanks.
    pub subject: &'a [u8],
    /// Reply subject; unchecked, at least one byte, no blanks.
    pub reply: Option<&'a [u8]>,
    /// The header block that begins the payload. `None` for PUB, and for an HPUB whose header size
    /// is 0: all receivers get such a message as MSG.
    pub header: Option<Header<'a>>,
    /// The payload's size as the client wrote it, 1 to 9 digits; it is passed on unchanged.
    pub size_text: &'a [u8],
    /// Header block and body, without the line end behind them.
    pub payload: &'a [u8],
    /// Everything behind `<subject> ` up to and including the CRLF behind the payload:
    /// `[reply SP] [header size SP] size CRLF payload CRLF`. It is there when the client wrote
    /// single blanks and CRLF, and when nothing in it has to be left out for receivers with
    /// headers. A delivery is then [`encode::msg_prefix`] and this.
    pub tail: Option<&'a [u8]>,
}

impl<'a> Publish<'a> {
    /// Returns the payload without its header block, for receivers without headers.
    pub fn body(&self) -> &'a [u8] {
        &self.payload[self.header.map_or(0, |header| header.len)..]
    }

    /// Returns the header block; empty if there is none.
    pub fn header_block(&self) -> &'a [u8] {
        &self.payload[..self.header.map_or(0, |header| header.len)]
    }
}

/// The header block at the beginning of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header<'a> {
    /// Length of the header block in bytes; at least 1, at most that of the payload.
    pub len: usize,
    /// The length as the client wrote it, 1 to 9 digits.
    pub text: &'a [u8],
}

/// The result of [`parse()`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// A whole operation.
    Op {
        /// The operation.
        op: Op<'a>,
        /// Bytes of the operation; they may be released once it is handled.
        used: usize,
    },
    /// The beginning of an operation.
    Incomplete {
        /// The bytes to be shown to the next call. More than were shown; in a payload up to the CR
        /// behind it, so that a payload with a wrong end is noticed at once. A buffer for the whole
        /// operation needs one byte more.
        need: usize,
    },
}

/// A violation of the protocol by a client. Its connection is to be closed, after
/// [`ProtoError::wire`].
///
/// `Display` gives the text for the log, the one of nats-server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProtoError {
    /// A byte that no operation has there, or a payload that does not end with CRLF.
    UnknownOperation {
        /// Offset of the byte from the start of the operation.
        at: usize,
        /// Whether the byte is behind a payload.
        behind_payload: bool,
        /// Some bytes from the wrong one on, quoted.
        snippet: String,
    },
    /// Arguments longer than [`ParseLimits::control_line_bytes_max`].
    ControlLineTooLong,
    /// A payload larger than [`ParseLimits::payload_bytes_max`].
    PayloadTooLarge {
        /// The announced size, in bytes.
        size: usize,
        /// The largest size allowed, in bytes.
        limit: usize,
    },
    /// A wrong number of arguments, or a size that is not a number.
    BadArguments {
        /// The problem, in nats-server's words.
        problem: &'static str,
        /// The arguments, quoted.
        args: String,
    },
    /// An HPUB without [`ParseLimits::headers`].
    HeadersNotSupported,
    /// An INFO that is not a JSON object.
    BadInfo,
    /// An `-ERR` of the client, with its text.
    ErrorFromClient(String),
}

impl ProtoError {
    /// Returns the text of the `-ERR` that precedes the close; `None`: the connection closes
    /// silently.
    pub fn wire(&self) -> Option<&'static str> {
        match self {
            Self::UnknownOperation { .. } => Some("Unknown Protocol Operation"),
            Self::ControlLineTooLong => Some("maximum control line exceeded"),
            Self::PayloadTooLarge { .. } => Some("Maximum Payload Violation"),
            Self::BadArguments { .. }
            | Self::HeadersNotSupported
            | Self::BadInfo
            | Self::ErrorFromClient(_) => None,
        }
    }

    /// Returns the reason of the close, for monitoring and the log.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ControlLineTooLong => "Maximum Control Line Exceeded",
            Self::PayloadTooLarge { .. } => "Maximum Message Payload Exceeded",
            Self::ErrorFromClient(_) => "Parse Error",
            Self::UnknownOperation { .. }
            | Self::BadArguments { .. }
            | Self::HeadersNotSupported
            | Self::BadInfo => "Protocol Violation",
        }
    }
}

impl fmt::Display for ProtoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownOperation { at, behind_payload, snippet } => write!(
                f,
                "Client parser ERROR, state={}, i={at}: proto='{snippet}...'",
                u8::from(*behind_payload)
            ),
            Self::ControlLineTooLong => f.write_str("maximum control line exceeded"),
            Self::PayloadTooLarge { size, limit } => {
                write!(f, "maximum payload exceeded: {size} vs {limit}")
            }
            Self::BadArguments { problem, args } => write!(f, "{problem}: {args}"),
            Self::HeadersNotSupported => f.write_str("message headers not supported"),
            Self::BadInfo => f.write_str("INFO is not a JSON object"),
            Self::ErrorFromClient(text) => write!(f, "Client Error {text}"),
        }
    }
}

impl std::error::Error for ProtoError {}
