//! Lag of a connection behind its messages: waits of publishers, and dropped messages.

use std::collections::BTreeSet;

use crate::output::Dropped;

/// Effects of a connection's backlog on the publishers of its messages.
#[derive(Debug, Default)]
pub(crate) struct Lag {
    /// Dependents of the connection's catching up; nearly always none.
    lateness: Option<Box<Lateness>>,
    /// Messages for the connection dropped by overflow policies.
    pub(crate) dropped: Dropped,
}

/// Dependents of a connection that is late.
#[derive(Debug, Default)]
struct Lateness {
    /// Waits of publishers that the connection is part of.
    waits: BTreeSet<u64>,
    /// Pending output at which the connection counts as caught up, in bytes.
    relief_bytes: usize,
    is_slow: bool,
}

impl Lag {
    /// Whether a publisher has waited for the connection in vain: none waits for it until it has
    /// caught up.
    pub(crate) fn is_slow(&self) -> bool {
        self.lateness.as_ref().is_some_and(|late| late.is_slow)
    }

    /// Whether anything depends on the connection's catching up.
    pub(crate) fn matters(&self) -> bool {
        self.lateness.as_ref().is_some_and(|late| late.is_slow || !late.waits.is_empty())
    }

    /// Makes the connection part of a publisher's wait that began when more than `level_bytes` were
    /// pending: it has caught up at half of that. `false` if it is slow, or is part of that wait
    /// already.
    pub(crate) fn join(&mut self, wait: u64, level_bytes: usize) -> bool {
        let late = self.lateness.get_or_insert_default();
        if late.is_slow || late.waits.last() == Some(&wait) {
            return false;
        }
        let relief_bytes = level_bytes / 2;
        late.relief_bytes =
            if late.waits.is_empty() { relief_bytes } else { late.relief_bytes.max(relief_bytes) };
        late.waits.insert(wait)
    }

    /// Notes that a wait has ended for another reason.
    pub(crate) fn leave(&mut self, wait: u64) {
        if let Some(late) = &mut self.lateness {
            late.waits.remove(&wait);
        }
    }

    /// Notes that a wait has lasted too long: the connection is slow if it is still part of that.
    pub(crate) fn give_up(&mut self, wait: u64) {
        if let Some(late) = &mut self.lateness {
            late.is_slow |= late.waits.contains(&wait);
        }
    }

    /// Checks whether the connection has caught up with `pending` bytes. Returns the waits that it
    /// was part of then.
    pub(crate) fn catch_up(&mut self, pending: usize) -> BTreeSet<u64> {
        let has = |late: &mut Box<Lateness>| pending <= late.relief_bytes;
        self.lateness.take_if(has).map(|late| late.waits).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_caught_up_at_half_of_the_highest_level_of_its_waits() {
        let mut lag = Lag::default();
        assert!(lag.join(1, 100) && lag.join(2, 200) && lag.join(3, 40));
        assert!(!lag.join(3, 40), "it is part of that wait");
        assert!(lag.catch_up(101).is_empty() && lag.matters());
        assert_eq!(lag.catch_up(100).into_iter().collect::<Vec<_>>(), [1, 2, 3]);
        assert!(!lag.matters());
        assert!(lag.join(4, 40) && lag.catch_up(21).is_empty(), "old waits count no more");
    }

    #[test]
    fn nobody_waits_for_one_that_was_waited_for_in_vain_until_it_has_caught_up() {
        let mut lag = Lag::default();
        assert!(lag.join(1, 100));
        lag.give_up(2);
        assert!(!lag.is_slow(), "it had caught up with that wait");
        lag.give_up(1);
        lag.leave(1);
        assert!(lag.is_slow() && lag.matters() && !lag.join(3, 100));
        lag.catch_up(50);
        assert!(!lag.is_slow() && lag.join(4, 100));
    }
}
