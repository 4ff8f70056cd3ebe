//! A bounded crowd of newcomers, such as connections that have not logged in: when it is full, the
//! oldest has to go.
//!
//! Pure: newcomers are numbers that the caller gives, each with the address it came from.

use core::net::IpAddr;

use crate::measure::network;

/// Newcomers that have not yet shown their use.
#[derive(Debug)]
pub struct Crowd {
    places: usize,
    /// Newcomers, the longest waiting first.
    waiting: Vec<(u64, IpAddr)>,
}

impl Crowd {
    /// A crowd of at most `places` newcomers.
    pub fn new(places: usize) -> Self {
        Self { places, waiting: Vec::new() }
    }

    /// Adds a newcomer from `ip`. Returns the newcomer that has to go, if all places were taken: of
    /// the address that has the most of them, the longest waiting. So no address keeps others out,
    /// however many newcomers it has; an IPv6 address counts by its first 64 bits.
    pub fn enter(&mut self, number: u64, ip: IpAddr) -> Option<u64> {
        let from = network(ip);
        self.waiting.push((number, from));
        if self.waiting.len() <= self.places {
            return None;
        }
        let of = |ip| self.waiting.iter().filter(|(_, other)| *other == ip).count();
        let others = &self.waiting[..self.places];
        let most = others.iter().map(|(_, ip)| of(*ip)).max()?;
        let at = others.iter().position(|(_, ip)| of(*ip) == most)?;
        Some(self.waiting.remove(at).0)
    }

    /// Whether a newcomer from the same address is in the crowd.
    pub fn knows(&self, ip: IpAddr) -> bool {
        let from = network(ip);
        self.waiting.iter().any(|(_, other)| *other == from)
    }

    /// Removes a newcomer that has gone or has shown its use.
    pub fn leave(&mut self, number: u64) {
        self.waiting.retain(|(other, _)| *other != number);
    }

    /// Counts a newcomer as having come just now, because it was of use.
    pub fn renew(&mut self, number: u64) {
        if let Some(at) = self.waiting.iter().position(|(other, _)| *other == number) {
            self.waiting[at..].rotate_left(1);
        }
    }

    /// Returns the number of newcomers.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether there are no newcomers.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn whoever_waits_longest_goes_and_not_who_was_of_use() {
        let mut crowd = Crowd::new(3);
        for number in 1..=3 {
            assert_eq!(crowd.enter(number, ip(1)), None);
        }
        crowd.renew(1);
        assert_eq!(crowd.enter(4, ip(1)), Some(2));
        crowd.leave(3);
        assert_eq!(crowd.enter(5, ip(1)), None);
        assert_eq!(crowd.enter(6, ip(1)), Some(1));
        assert_eq!(crowd.len(), 3);
        assert_eq!((crowd.knows(ip(1)), crowd.knows(ip(2))), (true, false));
    }

    proptest! {
        /// A flood evicts its own newcomers, and fills the places that the others leave.
        #[test]
        fn one_address_pushes_nobody_out_that_has_fewer(
            others in prop::collection::vec(2..250_u8, 0..20), flood in 1..200_u64,
        ) {
            let mut crowd = Crowd::new(40);
            let others: std::collections::BTreeSet<u8> = others.into_iter().collect();
            for last in &others {
                prop_assert_eq!(crowd.enter((*last).into(), ip(*last)), None);
            }
            for number in 1000..1000 + flood {
                if let Some(gone) = crowd.enter(number, ip(1)) {
                    prop_assert!(gone >= 1000);
                }
                prop_assert!(crowd.len() <= 40);
            }
        }
    }
}
