//! Rates: limits of events per second, and their use.
//!
//! Pure: times are nanoseconds since the start of the process.

use core::net::IpAddr;

/// The span whose share of a rate may be used at once, after as long without use.
pub(crate) const BURST_NS: u64 = 1_000_000_000;

/// Limits of connections and of each connection's input, per second; as much as a second's worth
/// may come at once; 0 is no limit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rates {
    /// New client connections (0); those beyond get an error and are closed.
    pub connections: u64,
    /// New client connections from one address, or from one IPv6 network of 64 bits (0).
    pub connections_per_ip: u64,
    /// Messages that one connection publishes (0); beyond that its input is read later.
    pub msgs_per_connection: u64,
    /// Bytes that one connection sends, operations included (0); beyond that its input is read
    /// later.
    pub bytes_per_connection: u64,
}

impl Rates {
    /// Whether the input of a connection is limited.
    pub fn pace_connections(&self) -> bool {
        self.msgs_per_connection > 0 || self.bytes_per_connection > 0
    }
}

/// The used part of a rate. It takes one number, whatever the rate.
#[derive(Debug, Clone, Copy, Default)]
pub struct Meter {
    /// The time at which all use would be over, had it come evenly.
    even: u64,
}

impl Meter {
    /// Uses `amount` of `per_second`, which is not 0. Returns the time at which more may come: not
    /// after `now` as long as no more than a second's worth came at once.
    pub fn take(&mut self, amount: u64, per_second: u64, now: u64) -> u64 {
        let cost = u128::from(amount) * u128::from(BURST_NS) / u128::from(per_second);
        let cost = u64::try_from(cost).unwrap_or(u64::MAX);
        self.even = self.even.max(now).saturating_add(cost);
        self.even.saturating_sub(BURST_NS)
    }

    /// Uses one of `per_second` if there is one left. Returns whether there was.
    pub(crate) fn take_one(&mut self, per_second: u64, now: u64) -> bool {
        let mut after = *self;
        let fits = after.take(1, per_second, now) <= now;
        if fits {
            *self = after;
        }
        fits
    }

    /// Whether all use is over.
    pub(crate) fn is_unused(&self, now: u64) -> bool {
        self.even <= now
    }
}

/// Returns the address by which a client counts: of IPv6 only the first 64 bits, because a client
/// has all addresses of such a network.
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
        /// Any span of time sees at most its share and a second's worth.
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
                    // Times are whole nanoseconds: one more for the rest of rounding.
                    let share = u128::from(to - from) * u128::from(rate) / u128::from(SECOND);
                    prop_assert!(u128::from(count) <= share + u128::from(rate) + 1);
                }
            }
        }

        /// A client within the rate is never refused.
        #[test]
        fn who_keeps_to_the_rate_is_never_refused(rate in 1_u64..100_000) {
            let mut meter = Meter::default();
            for turn in 0..1000 {
                prop_assert!(meter.take_one(rate, turn * SECOND.div_ceil(rate)));
            }
        }
    }
}
