//! Names of operations while the kernel has them.

/// The kind of operation that a completion belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum TokenKind {
    /// Accepting on a listener; the slot is the listener's.
    Accept = 1,
    /// Receiving from a socket, once or many times.
    Receive,
    /// Waiting until a socket can be read, on tiers without buffer rings.
    Poll,
    /// Sending one part of a socket's batch.
    Send,
    /// Cancelling a receive, so that the socket pauses.
    CancelReceive,
    /// Cancelling any other operation of a closing socket.
    Cancel,
    /// Cancelling an accept; the slot is the listener's.
    CancelAccept,
    /// Discarding the input of a socket that has sent all its output.
    Linger,
    /// The end of the time for `Linger`.
    LingerTimer,
    /// Reading the counter that the reactor's own waker writes.
    BellRead,
    /// A wake of another ring, which has posted this completion here.
    Woken,
    /// Waking another ring; the slot is the waker's.
    Wake,
    /// A disk operation; the slot is the operation's.
    Disk,
    /// The sync that belongs to a durable write.
    DiskSync,
}

impl TokenKind {
    const ALL: [Self; 14] = [
        Self::Accept,
        Self::Receive,
        Self::Poll,
        Self::Send,
        Self::CancelReceive,
        Self::Cancel,
        Self::CancelAccept,
        Self::Linger,
        Self::LingerTimer,
        Self::BellRead,
        Self::Woken,
        Self::Wake,
        Self::Disk,
        Self::DiskSync,
    ];
}

/// The name of a kernel operation: its kind, its slot, and the generation of the slot.
///
/// A completion with an old generation is dropped, so that a late one cannot hit the slot's next
/// user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OpToken {
    pub(super) kind: TokenKind,
    pub(super) slot: u32,
    /// The low 24 bits of the slot's generation.
    pub(super) generation: u32,
}

/// The part of a generation that a token has room for.
pub(super) const GENERATION_MASK: u32 = 0x00ff_ffff;

impl OpToken {
    pub(super) fn new(kind: TokenKind, slot: u32, generation: u32) -> Self {
        Self { kind, slot, generation: generation & GENERATION_MASK }
    }

    /// Packs into `user_data` as `kind:8 | generation:24 | slot:32`.
    pub(super) fn to_user_data(self) -> u64 {
        (self.kind as u64) << 56 | u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    /// Unpacks a token; `None` for a number that is none.
    pub(super) fn from_user_data(user_data: u64) -> Option<Self> {
        let [kind, g2, g1, g0, slot @ ..] = user_data.to_be_bytes();
        let kind = TokenKind::ALL.into_iter().find(|known| *known as u8 == kind)?;
        let generation = u32::from_be_bytes([0, g2, g1, g0]);
        Some(Self { kind, slot: u32::from_be_bytes(slot), generation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_survives_the_way_through_the_kernel() {
        for kind in TokenKind::ALL {
            for (slot, generation) in [(0, 0), (7, 1), (u32::MAX, GENERATION_MASK)] {
                let token = OpToken::new(kind, slot, generation);
                assert_eq!(OpToken::from_user_data(token.to_user_data()), Some(token));
            }
        }
    }

    #[test]
    fn a_completion_nobody_asked_for_has_no_token() {
        assert_eq!(OpToken::from_user_data(0), None);
        assert_eq!(OpToken::from_user_data(u64::MAX), None);
    }
}
