//! Outlets: ways of messages into other accounts, and the subjects of answers of services.

use std::rc::Rc;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::interest::account_settings::{Export, LatencyRule, Response};
use crate::interest::ids::{AccountId, ShardId};
use crate::interest::taps::Tap;
use crate::subject::Transform;

/// Nanoseconds for which an answer to an answer is taken.
pub(crate) const ANSWER_BACK_NS: u64 = 120_000_000_000;

pub(super) const ANSWER_PREFIX: &[u8] = b"_R_.";

/// The end of the subject of a measured answer, behind the name of the server that measures it.
const MEASURED_END: &str = ".T";

/// The beginning of subjects by which loops of leaf connections are detected.
pub(crate) const LOOP_PREFIX: &[u8] = b"$LDS.";

/// A way of messages of an account into another one.
#[derive(Debug)]
pub(crate) enum Outlet {
    /// A stream, to the subscriptions of an account that imports it.
    Stream {
        /// The importing account.
        to: AccountId,
        /// Change of subjects from those of the exporting account to those of the importing one.
        transform: Transform,
        /// Whether traced messages are traced beyond the outlet.
        trace: bool,
    },
    /// A service, to the account that answers requests.
    Service {
        /// The answering account.
        to: AccountId,
        /// Change of subjects from those of the importing account to those of the exporting one.
        transform: Transform,
        /// Number of answers.
        response: Response,
        /// Nanoseconds for which an answer is taken.
        threshold_ns: u64,
        /// Whether the service gets information about the requester.
        share: bool,
        /// Whether traced messages are traced beyond the outlet.
        trace: bool,
        /// The measurement of requests, if they are measured.
        latency: Option<Arc<LatencyRule>>,
    },
}

/// Nanoseconds for which an answer of JetStream is taken.
const JETSTREAM_NS: u64 = 120_000_000_000;

impl Outlet {
    /// The outlet for requests to an exported service; with `share` it hears who has asked.
    pub(crate) fn service(
        to: AccountId,
        transform: Transform,
        export: &Export,
        share: bool,
    ) -> Self {
        Self::Service {
            to,
            transform,
            response: export.response,
            threshold_ns: export.response_threshold_ms.saturating_mul(1_000_000),
            share,
            trace: export.allow_trace,
            latency: export.latency.clone().map(Arc::new),
        }
    }

    /// The outlet for requests to JetStream, which other servers of the cluster may have.
    pub(crate) fn jetstream(system: AccountId) -> Option<Self> {
        Some(Self::Service {
            to: system,
            transform: Transform::new(b"$JS.API.>", b"$JS.API.>").ok()?,
            response: Response::Stream,
            threshold_ns: JETSTREAM_NS,
            share: true,
            trace: false,
            latency: None,
        })
    }

    /// Returns the account that answers, if the outlet is a service.
    pub(crate) fn asked(&self) -> Option<AccountId> {
        match self {
            Self::Service { to, .. } => Some(*to),
            _ => None,
        }
    }

    /// The outlet for requests about an account, which every server answers for its own part of it.
    pub(crate) fn own_account(system: AccountId, from: &str, to: &str) -> Option<Self> {
        Some(Self::Service {
            to: system,
            transform: Transform::new(from.as_bytes(), to.as_bytes()).ok()?,
            response: Response::Stream,
            threshold_ns: ANSWER_BACK_NS,
            share: false,
            trace: false,
            latency: None,
        })
    }

    /// Whether interest in the outlet's subjects is advertised to other servers.
    pub(crate) fn is_told(&self) -> bool {
        matches!(self, Self::Stream { .. })
    }
}

/// An outlet for one subject.
#[derive(Debug)]
pub(crate) struct Exit {
    pub(crate) outlet: Rc<Outlet>,
    /// The subject behind the outlet.
    pub(crate) subject: Box<[u8]>,
}

impl Exit {
    /// The exit for `subject`; `None` if the outlet is not for it.
    pub(crate) fn of(outlet: &Rc<Outlet>, subject: &[u8]) -> Option<Self> {
        let mut mapped = Vec::new();
        match &**outlet {
            Outlet::Stream { transform, .. } | Outlet::Service { transform, .. } => {
                // Imports have nothing random in them.
                let mut rng = fastrand::Rng::with_seed(0);
                transform.apply(subject, &mut rng, &mut mapped).then_some(())?;
            }
        }
        Some(Self { outlet: Rc::clone(outlet), subject: mapped.into() })
    }
}

/// Receivers of a filter besides subscriptions.
#[derive(Debug, Default)]
pub(crate) struct Inside {
    pub(super) outlets: Vec<Rc<Outlet>>,
    pub(super) taps: SmallVec<[Tap; 1]>,
}

impl Inside {
    /// Whether interest in the filter is advertised to other servers.
    pub(super) fn is_told(&self) -> bool {
        self.outlets.iter().any(|outlet| outlet.is_told())
            || self.taps.iter().any(|tap| tap.is_told())
    }
}

/// Returns server, shard and number in the subject of an answer.
pub(crate) fn parse_answer(subject: &[u8]) -> Option<(&[u8], ShardId, u64)> {
    let text = std::str::from_utf8(subject.strip_prefix(ANSWER_PREFIX)?).ok()?;
    let (server, rest) = text.split_once('.')?;
    let unmarked = rest.strip_suffix(MEASURED_END).and_then(|rest| rest.strip_suffix(server));
    let rest = unmarked.and_then(|rest| rest.strip_suffix('.')).unwrap_or(rest);
    let (shard, id) = rest.split_at_checked(2)?;
    let shard = u8::from_str_radix(shard, 16).ok()?;
    Some((server.as_bytes(), ShardId(shard), u64::from_str_radix(id, 16).ok()?))
}

pub(crate) fn answer_subject(server: &str, shard: ShardId, id: u64) -> Vec<u8> {
    let mut subject = ANSWER_PREFIX.to_vec();
    subject.extend_from_slice(format!("{server}.{:02x}{id:016x}", shard.0).as_bytes());
    subject
}

/// Returns the subject of an answer that this server measures, as other servers are told by it.
pub(crate) fn measured_answer_subject(server: &str, shard: ShardId, id: u64) -> Vec<u8> {
    let mut subject = answer_subject(server, shard, id);
    subject.extend_from_slice(format!(".{server}{MEASURED_END}").as_bytes());
    subject
}

/// Returns the name of the server that measures the request with this reply subject.
pub(crate) fn measuring_server(reply: &[u8]) -> Option<&[u8]> {
    let rest = reply.strip_suffix(MEASURED_END.as_bytes())?.strip_prefix(ANSWER_PREFIX)?;
    rest.get(memchr::memrchr(b'.', rest)? + 1..)
}

/// Returns the subject on which a server takes the halves of other servers.
pub(crate) fn halves_subject(server: &str) -> String {
    format!("$SYS.LATENCY.M2.{server}")
}

/// Returns the subject by which an account of a server knows its own interest when that comes back:
/// leaf connections in a circle.
pub(crate) fn loop_filter(server_id: &str, account: &str) -> Vec<u8> {
    const WORD: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    const LETTERS: u32 = 11;
    let mut filter = LOOP_PREFIX.to_vec();
    for seed in [0x6c6f_6f70, 0x706f_6f6c] {
        // Equal on all shards, and another one after each start of the server.
        let hash = ahash::RandomState::with_seeds(seed, 1, 2, 3).hash_one((server_id, account));
        filter.extend((0..LETTERS).map(|at| WORD[(hash / 62_u64.pow(at) % 62) as usize]));
    }
    filter
}

/// Returns the filter of all answers to a server, as it is advertised to other servers.
pub(crate) fn answers_filter(server: &str) -> Vec<u8> {
    [ANSWER_PREFIX, server.as_bytes(), b".>"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subject_of_a_measured_answer_names_the_server_that_hears_of_it() {
        let subject = measured_answer_subject("ABC", ShardId(3), 7);
        assert_eq!(subject, b"_R_.ABC.030000000000000007.ABC.T");
        assert_eq!(parse_answer(&subject), Some((&b"ABC"[..], ShardId(3), 7)));
        assert_eq!(measuring_server(&subject), Some(&b"ABC"[..]));
        assert_eq!(measuring_server(b"_R_.Ab12Cd.Ef34Gh.NUmM6c99.T"), Some(&b"NUmM6c99"[..]));
        for other in [
            &answer_subject("ABC", ShardId(3), 7)[..],
            b"_R_.T",
            b"_R_.x.T.",
            b"_INBOX.a.b.T",
            b".T",
            b"",
        ] {
            assert_eq!(measuring_server(other), None, "{}", other.escape_ascii());
        }
        for other in [&b"_R_.ABC.030000000000000007.AB.T"[..], b"_R_.ABC.ABC.T", b"_R_.ABC..ABC.T"]
        {
            assert_eq!(parse_answer(other), None, "{}", other.escape_ascii());
        }
    }
}
