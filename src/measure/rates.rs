//! Rates: how often something may happen, and what was used of that.
//!
//! Pure: times are nanoseconds since the start of the process.

use core::net::IpAddr;

/// As much as a second's worth may come at once, after a second of nothing.
pub(crate) const BURST_NS: u64 = 1_000_000_000;

/// How often connections may come, and what one may send: all of them in a second, and as much as
/// a second's worth at once; 0 is without limit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rates {
    /// New client connections (0); those beyond are told so and closed.
    pub connections: u64,
    /// The same from one address, or from one IPv6 network of 64 bits (0).
    pub connections_per_ip: u64,
    /// Messages that one connection publishes (0); one that sends more is read from later.
    pub msgs_per_connection: u64,
    /// Bytes that one connection sends, operations included (0); the same.
    pub bytes_per_connection: u64,
}

impl Rates {
    /// Whether there is a limit to what a connection may send.
    pub fn pace_connections(&self) -> bool {
        self.msgs_per_connection > 0 || self.bytes_per_connection > 0
    }
}

/// What was used of a rate. It costs one number, whatever the rate.
#[derive(Debug, Clone, Copy, Default)]
pub struct Meter {
    /// When all that was used would be over, had it come evenly.
    even: u64,
}

impl Meter {
    /// Uses `amount` of `per_second`, which is not 0, and says when the next may come: not after
    /// `now` as long as no more than a second's worth came at once.
    pub fn take(&mut self, amount: u64, per_second: u64, now: u64) -> u64 {
        let cost = u128::from(amount) * u128::from(BURST_NS) / u128::from(per_second);
        let cost = u64::try_from(cost).unwrap_or(u64::MAX);
        self.even = self.even.max(now).saturating_add(cost);
        self.even.saturating_sub(BURST_NS)
    }

    /// Uses one of `per_second` if there is one left.
    pub(crate) fn take_one(&mut self, per_second: u64, now: u64) -> bool {
        let mut after = *self;
        let fits = after.take(1, per_second, now) <= now;
        if fits {
            *self = after;
        }
        fits
    }

    /// Whether all that was used is over.
    pub(crate) fn is_unused(&self, now: u64) -> bool {
        self.even <= now
    }
}

/// Who has an IPv6 address has 2^64 of them.
pub fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() >> 64 << 64).into()),
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    proptest! {
        /// However it comes, no window of time sees more than its share and a second's worth.
        #[test]
        fn no_span_of_time_sees_more_than_its_share_and_one_burst(
            rate in 1_u64..2000,
            steps in prop::collection::vec(0..SECOND / 4, 1..300),
        ) {
            let (mut meter, mut now, mut taken) = (Meter::default(), 0, Vec::new());
            for step in steps {
                now += step;
                if meter.take_one(rate, now) {
                    taken.push(now);
                }
            }
            for (first, from) in taken.iter().enumerate() {
                for (count, to) in (1_u64..).zip(&taken[first..]) {
                    // Times are whole nanoseconds: one more for what rounding leaves.
                    let share = u128::from(to - from) * u128::from(rate) / u128::from(SECOND);
                    prop_assert!(u128::from(count) <= share + u128::from(rate) + 1);
                }
            }
        }

        /// Who keeps to the rate is never refused.
        #[test]
        fn who_keeps_to_the_rate_is_never_refused(rate in 1_u64..100_000) {
            let mut meter = Meter::default();
            for turn in 0..1000 {
                prop_assert!(meter.take_one(rate, turn * SECOND.div_ceil(rate)));
            }
        }
    }
}
