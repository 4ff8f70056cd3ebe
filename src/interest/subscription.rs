//! One subscription of one connection.

use crate::interest::count;

/// Index of a subscription on its shard.
pub(crate) type SubKey = u32;

/// `max` of a subscription without one.
pub(crate) const NO_MAX: u64 = u64::MAX;

/// One subscription of one local connection.
#[derive(Debug)]
pub(crate) struct Sub {
    /// The slot of the subscription's connection.
    pub(crate) conn: u32,
    /// The subscription's position in the list of its filter.
    pub(crate) position: u32,
    /// Text of sid, subject and queue group: there are millions of subscriptions, and memory for
    /// one text costs less than for three.
    text: Box<[u8]>,
    sid_bytes: u32,
    subject_bytes: u32,
    /// Messages delivered since SUB.
    pub(crate) delivered: u64,
    /// Value of `delivered` at which the subscription ends.
    pub(crate) max: u64,
}

impl Sub {
    pub(crate) fn new(conn: u32, subject: &[u8], queue: Option<&[u8]>, sid: &[u8]) -> Self {
        Self {
            conn,
            position: 0,
            text: [sid, subject, queue.unwrap_or_default()].concat().into(),
            sid_bytes: count(sid.len()),
            subject_bytes: count(subject.len()),
            delivered: 0,
            max: NO_MAX,
        }
    }

    pub(crate) fn sid(&self) -> &[u8] {
        &self.text[..self.sid_bytes as usize]
    }

    pub(crate) fn subject(&self) -> &[u8] {
        &self.text[self.sid_bytes as usize..][..self.subject_bytes as usize]
    }

    /// Returns the bytes of sid, subject and queue group.
    pub(crate) fn text_bytes(&self) -> usize {
        self.text.len()
    }

    /// Returns the queue group, if there is one; never empty, as no argument of an operation is.
    pub(crate) fn queue(&self) -> Option<&[u8]> {
        let queue = &self.text[(self.sid_bytes + self.subject_bytes) as usize..];
        (!queue.is_empty()).then_some(queue)
    }
}
