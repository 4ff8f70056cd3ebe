//! Who has to go where only so many may be: those who take up places without being of use.
//!
//! Pure: what is counted are numbers that its user gives, each with the address it came from.

use core::net::IpAddr;

use crate::measure::network;

/// Those who have come in, and have not shown yet what they have come for.
#[derive(Debug)]
pub struct Crowd {
    places: usize,
    /// Whoever has waited longest first.
    waiting: Vec<(u64, IpAddr)>,
}

impl Crowd {
    /// Room for so many at one time.
    pub fn new(places: usize) -> Self {
        Self { places, waiting: Vec::new() }
    }

    /// Somebody has come, from `ip`. Returns who has to go for that, if all places were taken: of
    /// the address that has the most of them, whoever has waited longest. So nobody keeps others
    /// out, however many come from one address; an IPv6 address counts by its first 64 bits.
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

    /// Whether some are here from the same address already.
    pub fn knows(&self, ip: IpAddr) -> bool {
        let from = network(ip);
        self.waiting.iter().any(|(_, other)| *other == from)
    }

    /// Somebody has gone, or is not one of the crowd any more.
    pub fn leave(&mut self, number: u64) {
        self.waiting.retain(|(other, _)| *other != number);
    }

    /// Somebody was of use: it counts as having come just now.
    pub fn renew(&mut self, number: u64) {
        if let Some(at) = self.waiting.iter().position(|(other, _)| *other == number) {
            self.waiting[at..].rotate_left(1);
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether there is nobody.
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
        /// The flood evicts its own, and fills what the others leave.
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
