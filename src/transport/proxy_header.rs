//! The header by which a proxy names its client: before everything else, or not there at all.

use super::{Failure, Step};
use crate::proto::proxy::{self, Beginning};

/// The first bytes of a connection that may begin with a proxy's header.
#[derive(Debug, Default)]
pub(super) struct ProxyHeader(Vec<u8>);

impl ProxyHeader {
    /// Takes what belongs to the header. Only `Step::HeaderBegins` and `Step::Done` wait for more.
    pub(super) fn next(&mut self, wire: &mut &[u8]) -> Step {
        let Self(head) = self;
        let held_bytes = head.len();
        let input = if held_bytes > 0 {
            head.extend_from_slice(wire);
            head.as_slice()
        } else {
            *wire
        };
        match proxy::parse(input) {
            Ok(Beginning::Incomplete) if wire.is_empty() => Step::Done,
            Ok(Beginning::Incomplete) => {
                if held_bytes == 0 {
                    head.extend_from_slice(wire);
                }
                *wire = &[];
                if held_bytes == 0 { Step::HeaderBegins } else { Step::Done }
            }
            Ok(Beginning::Header { source, used }) => {
                // It was not whole before, so it ends in what came now.
                *wire = &wire[used.saturating_sub(held_bytes)..];
                Step::Header(source)
            }
            Ok(Beginning::Other) => {
                head.truncate(held_bytes);
                Step::NoHeader(std::mem::take(head))
            }
            Err(error) => Step::Failed(Failure::Header(error)),
        }
    }
}
