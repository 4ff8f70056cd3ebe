//! The rate limits for new connections: one for all, one for TLS, one for each address.
//!
//! Pure: times are nanoseconds since the start of the process.

use core::net::IpAddr;
use std::collections::HashMap;

use ahash::RandomState;

use crate::measure::{BURST_NS, Meter, Rates, network};

/// Addresses that are remembered; IPv6 ones count by their first 64 bits.
const ADDRESSES_MAX: usize = 64 * 1024;

/// Rate limits for new connections, with a count of those that were rejected.
#[derive(Debug, Default)]
pub(super) struct AcceptLimit {
    all: Meter,
    tls: Meter,
    addresses: HashMap<IpAddr, Meter, RandomState>,
    rejected: u64,
    /// Rejected connections that the log knows of.
    reported: u64,
    /// The earliest time of the next report to the log, in nanoseconds since the start.
    report_due: u64,
}

impl AcceptLimit {
    /// Whether a connection from `ip` is within the limits; `tls` is the limit for TLS, in
    /// connections per second, and 0 is no limit.
    pub(super) fn admits(&mut self, rates: &Rates, tls: u64, ip: IpAddr, now: u64) -> bool {
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
                // A peer with so many addresses is held by the rate of all.
                self.addresses.clear();
            }
        }
        self.addresses.entry(network(ip)).or_default().take_one(per_second, now)
    }

    /// Connections that were rejected.
    pub(super) fn rejected(&self) -> u64 {
        self.rejected
    }

    /// Returns the connections rejected since the last report, at most once a second.
    pub(super) fn take_report(&mut self, now: u64) -> Option<u64> {
        let count = self.rejected - self.reported;
        if count == 0 || now < self.report_due {
            return None;
        }
        self.reported = self.rejected;
        self.report_due = now.saturating_add(BURST_NS);
        Some(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn rates(connections: u64, connections_per_ip: u64) -> Rates {
        Rates { connections, connections_per_ip, ..Rates::default() }
    }

    #[test]
    fn one_address_that_comes_too_often_keeps_nobody_else_out() {
        let (rates, mut gate) = (rates(0, 3), AcceptLimit::default());
        let (loud, quiet) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let admitted = (0..1000).filter(|_| gate.admits(&rates, 0, loud, 0)).count();
        assert_eq!(admitted, 3);
        assert!(gate.admits(&rates, 0, quiet, 0));
        assert!(gate.admits(&rates, 0, loud, SECOND));
        assert_eq!(gate.rejected(), 997);
    }

    #[test]
    fn the_addresses_of_one_ipv6_network_are_one() {
        let (rates, mut gate) = (rates(0, 1), AcceptLimit::default());
        assert!(gate.admits(&rates, 0, "2001:db8::1".parse().unwrap(), 0));
        assert!(!gate.admits(&rates, 0, "2001:db8::2".parse().unwrap(), 0));
        assert!(gate.admits(&rates, 0, "2001:db8:0:1::1".parse().unwrap(), 0));
        assert!(gate.admits(&rates, 0, "::ffff:10.0.0.1".parse().unwrap(), 0));
        assert!(!gate.admits(&rates, 0, "10.0.0.1".parse().unwrap(), 0));
    }

    #[test]
    fn addresses_take_a_bounded_room_and_those_beyond_it_are_held_by_the_rate_of_all() {
        let (rates, mut gate) = (rates(100_000, 1), AcceptLimit::default());
        let ips = (0..200_000_u32).map(|number| IpAddr::from(number.to_be_bytes()));
        let admitted = ips.filter(|ip| gate.admits(&rates, 0, *ip, 0)).count();
        assert_eq!(admitted, 100_000);
        assert!(gate.addresses.len() <= ADDRESSES_MAX);
    }

    #[test]
    fn the_log_is_told_once_a_second() {
        let (rates, mut gate) = (rates(1, 0), AcceptLimit::default());
        assert_eq!(gate.take_report(0), None);
        let admitted = (0..5).filter(|_| gate.admits(&rates, 0, [1, 1, 1, 1].into(), 0)).count();
        assert_eq!(admitted, 1);
        assert_eq!((gate.take_report(0), gate.take_report(0)), (Some(4), None));
        gate.admits(&rates, 0, [1, 1, 1, 1].into(), 0);
        assert_eq!((gate.take_report(SECOND - 1), gate.take_report(SECOND)), (None, Some(1)));
    }
}
