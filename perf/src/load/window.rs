//! The window of a closed loop: how far publishers may be ahead of their subscribers.

/// Deliveries that are under way at most, in bytes, so that no server runs out of memory.
const UNDER_WAY_BYTES_MAX: u64 = 256 << 20;
/// As many of them are usual: more leave the caches, and what is measured then is memory.
const UNDER_WAY_BYTES_USUAL: u64 = 2 << 20;
/// With less ahead of each subscriber the publishers are what a fast server waits for.
const BYTES_USUAL: std::ops::RangeInclusive<u64> = 256 << 10..=1 << 20;

/// The window in bytes, if nobody says, of messages that have so many `deliveries` each.
pub(super) fn usual_bytes(deliveries: u64) -> u64 {
    let (least, most) = BYTES_USUAL.into_inner();
    (UNDER_WAY_BYTES_USUAL / deliveries.max(1)).clamp(least, most)
}

/// Messages that may be under way, of all publishers together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Window {
    messages: u64,
}

impl Window {
    /// A window of `bytes`, or fewer where the copies of the messages would fill memory, but of one
    /// message at least.
    pub(super) fn new(bytes: u64, message_bytes: u64, deliveries: u64) -> Self {
        let memory = UNDER_WAY_BYTES_MAX / deliveries.max(1);
        Self { messages: (bytes.min(memory) / message_bytes).max(1) }
    }

    /// Messages that are written at once: `bytes` of them, a quarter of the window at most, and one
    /// at least.
    pub(super) fn batch(self, bytes: u64, message_bytes: u64) -> u64 {
        (bytes / message_bytes).clamp(1, (self.messages / 4).max(1))
    }
}

/// Messages that publishers have claimed room for, and those that had arrived at the last look.
#[derive(Debug, Default)]
pub(super) struct UnderWay {
    claimed: u64,
    settled: u64,
}

impl UnderWay {
    /// Whether so many more have room. When nothing is under way any number has.
    pub(super) fn has_room(&self, messages: u64, window: Window) -> bool {
        self.claimed <= self.settled || self.claimed + messages <= self.settled + window.messages
    }

    /// Claims room for so many more, if there is room.
    pub(super) fn claim(&mut self, messages: u64, window: Window) -> bool {
        let has_room = self.has_room(messages, window);
        self.claimed += if has_room { messages } else { 0 };
        has_room
    }

    /// Takes note that `settled` messages have arrived, counted from the beginning.
    pub(super) fn settle(&mut self, settled: u64) {
        self.settled = settled;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_window_is_smaller_with_more_copies() {
        let windows = [1, 4, 100, 1000].map(usual_bytes);
        assert_eq!(windows, [1 << 20, 512 << 10, 256 << 10, 256 << 10]);
    }

    #[test]
    fn the_window_keeps_the_copies_of_a_large_fanout_in_memory() {
        assert_eq!(Window::new(4 << 20, 1024, 1).messages, 4096);
        assert_eq!(Window::new(4 << 20, 16384, 1000).messages, 16);
        assert_eq!(Window::new(1, 16384, 1000).messages, 1);
    }

    #[test]
    fn a_write_has_a_message_at_least_and_leaves_room_for_others() {
        let window = Window { messages: 100 };
        assert_eq!([1, 1000, 1 << 20].map(|bytes| window.batch(bytes, 100)), [1, 10, 25]);
        assert_eq!(Window { messages: 1 }.batch(1 << 20, 100), 1);
    }

    #[test]
    fn publishers_together_are_never_ahead_by_more_than_the_window() {
        let window = Window { messages: 10 };
        let mut under_way = UnderWay::default();
        assert!(under_way.claim(4, window) && under_way.claim(6, window));
        assert!(!under_way.claim(1, window), "it is full");
        under_way.settle(3);
        assert!(!under_way.claim(4, window), "only 3 have arrived");
        assert!(under_way.claim(3, window));
        under_way.settle(13);
        assert!(under_way.claim(20, window), "nothing is under way");
        assert!(!under_way.claim(1, window));
    }
}
