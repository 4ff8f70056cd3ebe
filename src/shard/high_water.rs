//! The high-water mark of a shard's tables: it shows when a burst is over.

use std::time::{Duration, Instant};

/// Entries that must be gone before a burst is over, besides half of the mark.
const GONE_MIN: usize = 32;
/// The time for which the entries must be gone: clients that come and go all the time need the
/// memory again.
const GONE_FOR: Duration = Duration::from_secs(1);

/// The most entries there were since the last burst, and when that burst counts as over.
#[derive(Debug, Default)]
pub(super) struct HighWater {
    mark: usize,
    due: Option<Instant>,
}

impl HighWater {
    /// Whether at least half of the entries, and at least 32, have been gone for 1 s. The mark is
    /// then the `held` entries there are, so the answer is yes once after each burst.
    pub(super) fn has_ebbed(&mut self, held: usize, now: Instant) -> bool {
        self.mark = self.mark.max(held);
        if self.mark - held < GONE_MIN.max(self.mark / 2) {
            self.due = None;
            return false;
        }
        if now < *self.due.get_or_insert(now + GONE_FOR) {
            return false;
        }
        self.due = None;
        self.mark = held;
        true
    }

    /// Returns the time at which `has_ebbed` may become true without another event.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any time will do as a beginning")]
    fn a_burst_is_over_once_half_of_it_has_been_gone_for_a_second() {
        let (mut mark, start) = (HighWater::default(), Instant::now());
        let almost = start + GONE_FOR - Duration::from_nanos(1);
        assert!(!mark.has_ebbed(100, start));
        assert_eq!(mark.due(), None);
        assert!(!mark.has_ebbed(51, start), "less than half is gone");
        assert!(!mark.has_ebbed(50, start) && !mark.has_ebbed(40, almost));
        assert_eq!(mark.due(), Some(start + GONE_FOR));
        assert!(mark.has_ebbed(40, start + GONE_FOR));
        assert!(!mark.has_ebbed(40, start + 2 * GONE_FOR), "once is enough");
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any time will do as a beginning")]
    fn a_burst_whose_entries_come_back_is_not_over() {
        let (mut mark, start) = (HighWater::default(), Instant::now());
        assert!(!mark.has_ebbed(100, start) && !mark.has_ebbed(10, start));
        assert!(!mark.has_ebbed(90, start + GONE_FOR));
        assert!(!mark.has_ebbed(10, start + GONE_FOR), "the second begins anew");
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any time will do as a beginning")]
    fn a_few_entries_are_no_burst() {
        let (mut mark, start) = (HighWater::default(), Instant::now());
        assert!(!mark.has_ebbed(GONE_MIN - 1, start) && !mark.has_ebbed(0, start));
        assert!(!mark.has_ebbed(0, start + GONE_FOR));
    }
}
