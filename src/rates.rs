//! How often something may happen: what a connection sends, and how many connections come.
//!
//! Pure: times are nanoseconds since the start of the process.

#![forbid(unsafe_code)]

use core::net::IpAddr;
use std::collections::HashMap;

use ahash::RandomState;

/// As much as a second's worth may come at once, after a second of nothing.
const BURST_NS: u64 = 1_000_000_000;
/// Addresses that are remembered; IPv6 ones count by their first 64 bits.
const ADDRESSES_MAX: usize = 64 * 1024;

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
    fn take_one(&mut self, per_second: u64, now: u64) -> bool {
        let mut after = *self;
        let fits = after.take(1, per_second, now) <= now;
        if fits {
            *self = after;
        }
        fits
    }

    fn is_unused(&self, now: u64) -> bool {
        self.even <= now
    }
}

/// Lets new connections in at the configured rates.
#[derive(Debug, Default)]
pub struct Gate {
    all: Meter,
    tls: Meter,
    addresses: HashMap<IpAddr, Meter, RandomState>,
    rejected: u64,
    /// Of these, those the log knows of.
    reported: u64,
    /// When the log is told again.
    report_due: u64,
}

impl Gate {
    /// Whether a connection from `ip` may come in; of TLS `tls` may in a second, and 0 is without
    /// limit.
    pub fn admits(&mut self, rates: &Rates, tls: u64, ip: IpAddr, now: u64) -> bool {
        let admitted = self.admits_address(rates.connections_per_ip, ip, now)
            && (tls == 0 || self.tls.take_one(tls, now))
            && (rates.connections == 0 || self.all.take_one(rates.connections, now));
        self.rejected += u64::from(!admitted);
        admitted
    }

    fn admits_address(&mut self, per_second: u64, ip: IpAddr, now: u64) -> bool {
        if per_second == 0 {
            return true;
        }
        if self.addresses.len() >= ADDRESSES_MAX {
            self.addresses.retain(|_, meter| !meter.is_unused(now));
            if self.addresses.len() >= ADDRESSES_MAX {
                // Whoever has so many addresses is held by the rate of all.
                self.addresses.clear();
            }
        }
        self.addresses.entry(network(ip)).or_default().take_one(per_second, now)
    }

    /// Connections that were not let in.
    pub fn rejected(&self) -> u64 {
        self.rejected
    }

    /// How many were not let in since this was last asked, at most once a second.
    pub fn to_report(&mut self, now: u64) -> Option<u64> {
        let count = self.rejected - self.reported;
        if count == 0 || now < self.report_due {
            return None;
        }
        self.reported = self.rejected;
        self.report_due = now.saturating_add(BURST_NS);
        Some(count)
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

    fn rates(connections: u64, connections_per_ip: u64) -> Rates {
        Rates { connections, connections_per_ip, ..Rates::default() }
    }

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

    #[test]
    fn one_address_that_comes_too_often_keeps_nobody_else_out() {
        let (rates, mut gate) = (rates(0, 3), Gate::default());
        let (loud, quiet) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let admitted = (0..1000).filter(|_| gate.admits(&rates, 0, loud, 0)).count();
        assert_eq!(admitted, 3);
        assert!(gate.admits(&rates, 0, quiet, 0));
        assert!(gate.admits(&rates, 0, loud, SECOND));
        assert_eq!(gate.rejected(), 997);
    }

    #[test]
    fn the_addresses_of_one_ipv6_network_are_one() {
        let (rates, mut gate) = (rates(0, 1), Gate::default());
        assert!(gate.admits(&rates, 0, "2001:db8::1".parse().unwrap(), 0));
        assert!(!gate.admits(&rates, 0, "2001:db8::2".parse().unwrap(), 0));
        assert!(gate.admits(&rates, 0, "2001:db8:0:1::1".parse().unwrap(), 0));
        assert!(gate.admits(&rates, 0, "::ffff:10.0.0.1".parse().unwrap(), 0));
        assert!(!gate.admits(&rates, 0, "10.0.0.1".parse().unwrap(), 0));
    }

    #[test]
    fn addresses_take_a_bounded_room_and_those_beyond_it_are_held_by_the_rate_of_all() {
        let (rates, mut gate) = (rates(100_000, 1), Gate::default());
        let ips = (0..200_000_u32).map(|number| IpAddr::from(number.to_be_bytes()));
        let admitted = ips.filter(|ip| gate.admits(&rates, 0, *ip, 0)).count();
        assert_eq!(admitted, 100_000);
        assert!(gate.addresses.len() <= ADDRESSES_MAX);
    }

    #[test]
    fn the_log_is_told_once_a_second() {
        let (rates, mut gate) = (rates(1, 0), Gate::default());
        assert_eq!(gate.to_report(0), None);
        let admitted = (0..5).filter(|_| gate.admits(&rates, 0, [1, 1, 1, 1].into(), 0)).count();
        assert_eq!(admitted, 1);
        assert_eq!((gate.to_report(0), gate.to_report(0)), (Some(4), None));
        gate.admits(&rates, 0, [1, 1, 1, 1].into(), 0);
        assert_eq!((gate.to_report(SECOND - 1), gate.to_report(SECOND)), (None, Some(1)));
    }
}
