//! The header by which a proxy names its client: before everything else, or absent.

use super::{Failure, LayerStep};
use crate::proto::proxy::{self, Beginning};

/// The first bytes of a connection that may begin with a proxy's header.
#[derive(Debug, Default)]
pub(super) struct ProxyHeader(Vec<u8>);

impl ProxyHeader {
    /// Takes the bytes of the header. Only `LayerStep::HeaderBegins` and `LayerStep::Done` wait for
    /// more.
    pub(super) fn next(&mut self, wire: &mut &[u8]) -> LayerStep {
        let Self(head) = self;
        let held_bytes = head.len();
        let input = if held_bytes > 0 {
            head.extend_from_slice(wire);
            head.as_slice()
        } else {
            *wire
        };
        match proxy::parse(input) {
            Ok(Beginning::Incomplete) if wire.is_empty() => LayerStep::Done,
            Ok(Beginning::Incomplete) => {
                if held_bytes == 0 {
                    head.extend_from_slice(wire);
                }
                *wire = &[];
                if held_bytes == 0 { LayerStep::HeaderBegins } else { LayerStep::Done }
            }
            Ok(Beginning::Header { source, used }) => {
                // The header was not whole before, so it ends in the new bytes.
                *wire = &wire[used.saturating_sub(held_bytes)..];
                LayerStep::Header(source)
            }
            Ok(Beginning::Other) => {
                head.truncate(held_bytes);
                LayerStep::NoHeader(std::mem::take(head))
            }
            Err(error) => LayerStep::Failed(Failure::Header(error)),
        }
    }
}
