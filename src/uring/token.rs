//! What an operation is called while the kernel has it.

/// What kind of operation a completion belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Accepting on a listener; the slot is the listener's.
    Accept = 1,
    /// Receiving from a socket, once or many times.
    Receive,
    /// Waiting until a socket can be read, on tiers without buffer rings.
    Poll,
    /// Sending one part of a socket's batch.
    Send,
    /// Stopping a receive, so that the socket pauses.
    CancelReceive,
    /// Stopping whatever else a closing socket still has in the kernel.
    Cancel,
    /// Stopping an accept; the slot is the listener's.
    CancelAccept,
    /// Throwing away what a peer still sends after we have said all we had to say.
    Linger,
    /// The end of the patience for `Linger`.
    LingerTimer,
    /// Reading what our own waker wrote.
    BellRead,
    /// Another ring rang: it posted this completion here.
    Woken,
    /// Waking another ring; the slot is the waker's.
    Wake,
    /// Something done to a file; the slot is the operation's.
    Disk,
    /// The sync that belongs to a durable write.
    DiskSync,
}

impl Kind {
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

/// Names one kernel operation: its kind, its slot, and which life of that slot it belongs to.
///
/// A completion whose generation is old is dropped, so nothing that comes late can hit whoever
/// has the slot now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) slot: u32,
    /// The low 24 bits of the slot's generation.
    pub(super) generation: u32,
}

/// As much of a generation as a token has room for.
pub(super) const GENERATION_MASK: u32 = 0x00ff_ffff;

impl Token {
    pub(super) fn new(kind: Kind, slot: u32, generation: u32) -> Self {
        Self { kind, slot, generation: generation & GENERATION_MASK }
    }

    /// Packs into `user_data` as `kind:8 | generation:24 | slot:32`.
    pub(super) fn to_user_data(self) -> u64 {
        (self.kind as u64) << 56 | u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    /// The token that was packed, or nothing when we never packed such a one.
    pub(super) fn from_user_data(user_data: u64) -> Option<Self> {
        let [kind, g2, g1, g0, slot @ ..] = user_data.to_be_bytes();
        let kind = Kind::ALL.into_iter().find(|known| *known as u8 == kind)?;
        let generation = u32::from_be_bytes([0, g2, g1, g0]);
        Some(Self { kind, slot: u32::from_be_bytes(slot), generation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_survives_the_way_through_the_kernel() {
        for kind in Kind::ALL {
            for (slot, generation) in [(0, 0), (7, 1), (u32::MAX, GENERATION_MASK)] {
                let token = Token::new(kind, slot, generation);
                assert_eq!(Token::from_user_data(token.to_user_data()), Some(token));
            }
        }
    }

    #[test]
    fn a_completion_nobody_asked_for_has_no_token() {
        assert_eq!(Token::from_user_data(0), None);
        assert_eq!(Token::from_user_data(u64::MAX), None);
    }
}
