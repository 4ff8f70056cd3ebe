//! Requests of the API by their subjects.

use crate::consumer::{ConsumerForm, ConsumerRequest, check_pause, check_unpin};
use crate::core::Core;
use crate::stream::{AnswerKind, ApiError, refused_body};

/// Prefix of the API's subjects.
const API: &str = "$JS.API.";

/// Subjects of the API that come to the meta shard, without their prefix. Pulls and direct gets are
/// not among them: where there is no such consumer or stream, nobody takes them.
pub(super) const META_FILTERS: [&str; 15] = [
    "*",
    "ACCOUNT.>",
    "META.>",
    "SERVER.>",
    "STREAM.>",
    "CONSUMER.CREATE.>",
    "CONSUMER.DURABLE.>",
    "CONSUMER.DELETE.>",
    "CONSUMER.INFO.>",
    "CONSUMER.NAMES.>",
    "CONSUMER.LIST.>",
    "CONSUMER.PAUSE.>",
    "CONSUMER.RESET.>",
    "CONSUMER.UNPIN.>",
    "CONSUMER.LEADER.>",
];

/// A request to a consumer's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConsumerCall<'a> {
    /// A consumer is to be made: the tokens behind the stream's name, as text.
    Create {
        rest: Option<&'a str>,
        is_durable_form: bool,
    },
    Names,
    List,
    Info(&'a str),
    Delete(&'a str),
    Pause(&'a str),
    Unpin(&'a str),
    StepDown(&'a str),
    Reset(&'a str),
}

impl ConsumerCall<'_> {
    /// Whether its answer says what the log keeps.
    pub(super) fn is_kept(self) -> bool {
        match self {
            Self::Create { .. } | Self::Delete(_) | Self::Pause(_) => true,
            Self::Unpin(_) | Self::Reset(_) => true,
            Self::Names | Self::List | Self::Info(_) | Self::StepDown(_) => false,
        }
    }
}

/// A request about one stream that its owner answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamCall<'a> {
    Info,
    Delete,
    Purge,
    GetMessage,
    DeleteMessage,
    Snapshot,
    Consumer(ConsumerCall<'a>),
}

/// A request of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ApiCall<'a> {
    AccountInfo,
    StreamNames,
    StreamList,
    StreamCreate(&'a str),
    StreamUpdate(&'a str),
    StreamRestore(&'a str),
    /// A request that only a cluster can carry out.
    ClusterOnly(AnswerKind),
    OfStream(&'a str, StreamCall<'a>),
}

impl<'a> ApiCall<'a> {
    /// Reads a subject without the prefix of the API; `None` for one that nobody answers.
    pub(super) fn parse(subject: &'a str) -> Option<Self> {
        let (group, rest) = match subject.split_once('.') {
            None => return (subject == "INFO").then_some(Self::AccountInfo),
            Some(parts) => parts,
        };
        match group {
            "STREAM" => Self::parse_stream(rest),
            "CONSUMER" => Self::parse_consumer(rest),
            _ => None,
        }
    }

    fn parse_stream(rest: &'a str) -> Option<Self> {
        let Some((verb, name)) = rest.split_once('.') else {
            return match rest {
                "NAMES" => Some(Self::StreamNames),
                "LIST" => Some(Self::StreamList),
                _ => None,
            };
        };
        let of = |call| Some(Self::OfStream(name, call));
        if let Some((verb2, name)) = name.split_once('.') {
            if name.contains('.') {
                return None;
            }
            return match (verb, verb2) {
                ("MSG", "GET") => Some(Self::OfStream(name, StreamCall::GetMessage)),
                ("MSG", "DELETE") => Some(Self::OfStream(name, StreamCall::DeleteMessage)),
                ("LEADER", "STEPDOWN") => Some(Self::ClusterOnly(AnswerKind::STREAM_STEP_DOWN)),
                ("PEER", "REMOVE") => Some(Self::ClusterOnly(AnswerKind::STREAM_REMOVE_PEER)),
                _ => None,
            };
        }
        match verb {
            "CREATE" => Some(Self::StreamCreate(name)),
            "UPDATE" => Some(Self::StreamUpdate(name)),
            "RESTORE" => Some(Self::StreamRestore(name)),
            "INFO" => of(StreamCall::Info),
            "DELETE" => of(StreamCall::Delete),
            "PURGE" => of(StreamCall::Purge),
            "SNAPSHOT" => of(StreamCall::Snapshot),
            _ => None,
        }
    }

    fn parse_consumer(rest: &'a str) -> Option<Self> {
        let (verb, rest) = rest.split_once('.')?;
        let of = |stream, call| Some(Self::OfStream(stream, StreamCall::Consumer(call)));
        let pair = || rest.split_once('.').filter(|(_, consumer)| !consumer.contains('.'));
        match verb {
            "CREATE" => match rest.split_once('.') {
                None => of(rest, ConsumerCall::Create { rest: None, is_durable_form: false }),
                Some((stream, rest)) => {
                    let rest = Some(rest);
                    of(stream, ConsumerCall::Create { rest, is_durable_form: false })
                }
            },
            "DURABLE" => {
                let (stream, consumer) = rest.strip_prefix("CREATE.")?.split_once('.')?;
                let rest = Some(consumer).filter(|consumer| !consumer.contains('.'));
                rest?;
                of(stream, ConsumerCall::Create { rest, is_durable_form: true })
            }
            "NAMES" if !rest.contains('.') => of(rest, ConsumerCall::Names),
            "LIST" if !rest.contains('.') => of(rest, ConsumerCall::List),
            "INFO" => pair().and_then(|(stream, name)| of(stream, ConsumerCall::Info(name))),
            "DELETE" => pair().and_then(|(stream, name)| of(stream, ConsumerCall::Delete(name))),
            "PAUSE" => pair().and_then(|(stream, name)| of(stream, ConsumerCall::Pause(name))),
            "RESET" => pair().and_then(|(stream, name)| of(stream, ConsumerCall::Reset(name))),
            "UNPIN" => pair().and_then(|(stream, name)| of(stream, ConsumerCall::Unpin(name))),
            "LEADER" => {
                let (stream, consumer) = rest.strip_prefix("STEPDOWN.")?.split_once('.')?;
                of(stream, ConsumerCall::StepDown(consumer))
            }
            _ => None,
        }
    }

    /// Returns the kind of the request's answer.
    pub(super) fn kind(&self) -> AnswerKind {
        match self {
            Self::AccountInfo => AnswerKind::ACCOUNT_INFO,
            Self::StreamNames => AnswerKind::STREAM_NAMES,
            Self::StreamList => AnswerKind::STREAM_LIST,
            Self::StreamCreate(_) => AnswerKind::STREAM_CREATE,
            Self::StreamUpdate(_) => AnswerKind::STREAM_UPDATE,
            Self::StreamRestore(_) => AnswerKind::STREAM_RESTORE,
            Self::ClusterOnly(kind) => *kind,
            Self::OfStream(_, call) => call.kind(),
        }
    }
}

impl StreamCall<'_> {
    pub(super) fn kind(&self) -> AnswerKind {
        match self {
            Self::Info => AnswerKind::STREAM_INFO,
            Self::Delete => AnswerKind::STREAM_DELETE,
            Self::Purge => AnswerKind::STREAM_PURGE,
            Self::GetMessage => AnswerKind::MESSAGE_GET,
            Self::DeleteMessage => AnswerKind::MESSAGE_DELETE,
            Self::Snapshot => AnswerKind::STREAM_SNAPSHOT,
            Self::Consumer(call) => match call {
                ConsumerCall::Create { .. } => AnswerKind::CONSUMER_CREATE,
                ConsumerCall::Names => AnswerKind::CONSUMER_NAMES,
                ConsumerCall::List => AnswerKind::CONSUMER_LIST,
                ConsumerCall::Info(_) => AnswerKind::CONSUMER_INFO,
                ConsumerCall::Delete(_) => AnswerKind::CONSUMER_DELETE,
                ConsumerCall::Pause(_) => AnswerKind::CONSUMER_PAUSE,
                ConsumerCall::Reset(_) => AnswerKind::CONSUMER_RESET,
                ConsumerCall::Unpin(_) => AnswerKind::CONSUMER_UNPIN,
                ConsumerCall::StepDown(_) => AnswerKind::CONSUMER_STEP_DOWN,
            },
        }
    }
}

/// Returns what a request's subject says of the consumer, from the tokens behind the stream's name.
pub(super) fn form_of(rest: Option<&str>, is_durable_form: bool) -> ConsumerForm<'_> {
    match rest.map(|rest| rest.split_once('.').unwrap_or((rest, ""))) {
        None => ConsumerForm::Ephemeral,
        Some((name, _)) if is_durable_form => ConsumerForm::Durable(name),
        Some((name, "")) => ConsumerForm::Named(name, None),
        Some((name, filter)) => ConsumerForm::Named(name, Some(filter)),
    }
}

/// Checks what is asked of a stream that is not there: nobody looks for that before.
pub(super) fn check_body(
    stream: &str,
    call: StreamCall<'_>,
    body: &[u8],
    is_strict: bool,
) -> Result<(), ApiError> {
    match call {
        StreamCall::Consumer(ConsumerCall::Create { rest, is_durable_form }) => {
            let form = form_of(rest, is_durable_form);
            ConsumerRequest::parse(body, is_strict)?.check_subject(stream, form)
        }
        StreamCall::Consumer(ConsumerCall::Pause(_)) => check_pause(body, is_strict),
        StreamCall::Consumer(ConsumerCall::Unpin(_)) => check_unpin(body),
        _ => refused_body(call.kind(), body, is_strict).map_or(Ok(()), Err),
    }
}

/// Returns the prefixes of the API's subjects: the plain one, and that of the domain.
pub(super) fn api_prefixes(core: &Core) -> Vec<String> {
    let domain = core.settings.streams.as_ref().and_then(|streams| streams.domain.as_deref());
    let of_domain = domain.map(|domain| format!("$JS.{domain}.API."));
    [API.to_owned()].into_iter().chain(of_domain).collect()
}

/// Returns a subject of the API without its prefix, plain or with a domain.
pub(super) fn without_prefix(subject: &[u8]) -> Option<&str> {
    let subject = std::str::from_utf8(subject).ok()?;
    if let Some(rest) = subject.strip_prefix(API) {
        return Some(rest);
    }
    let (_, rest) = subject.strip_prefix("$JS.")?.split_once('.')?;
    rest.strip_prefix("API.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_with_a_wrong_number_of_tokens_are_no_requests() {
        let info = |stream| Some(ApiCall::OfStream(stream, StreamCall::Info));
        for (subject, call) in [
            ("INFO", Some(ApiCall::AccountInfo)),
            ("INFO.x", None),
            ("STREAM.NAMES", Some(ApiCall::StreamNames)),
            ("STREAM.NAMES.x", None),
            ("STREAM.INFO.S", info("S")),
            ("STREAM.INFO", None),
            ("STREAM.INFO.S.x", None),
            ("STREAM.MSG.GET.S", Some(ApiCall::OfStream("S", StreamCall::GetMessage))),
            ("CONSUMER.INFO.S", None),
            ("CONSUMER.INFO.S.C.D", None),
            ("CONSUMER.DURABLE.CREATE.S.C.D", None),
            ("FOO", None),
        ] {
            assert_eq!(ApiCall::parse(subject), call, "{subject}");
        }
        let create = ConsumerCall::Create { rest: Some("C.a.b"), is_durable_form: false };
        let call = ApiCall::OfStream("S", StreamCall::Consumer(create));
        assert_eq!(ApiCall::parse("CONSUMER.CREATE.S.C.a.b"), Some(call));
    }
}
