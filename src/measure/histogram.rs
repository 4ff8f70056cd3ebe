//! How often a figure had which size, in buckets that double.

/// Buckets of a histogram; what is over the last one's bound counts in it, too.
const BUCKETS: usize = 40;

/// Counts values by the power of two that they do not exceed. Fixed in size: counting costs a few
/// instructions and no memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram {
    /// Bucket `i` counts the values up to `2^i` that no earlier one counts.
    buckets: [u64; BUCKETS],
    sum: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], sum: 0 }
    }
}

impl Histogram {
    /// Counts `value` as often as `times` says.
    #[inline]
    pub fn add(&mut self, value: u64, times: u64) {
        let bits = u64::BITS - value.saturating_sub(1).leading_zeros();
        self.buckets[(bits as usize).min(BUCKETS - 1)] += times;
        self.sum = self.sum.wrapping_add(value.wrapping_mul(times));
    }

    /// How many values each bucket has, from the one for 0 and 1 on.
    pub fn buckets(&self) -> &[u64; BUCKETS] {
        &self.buckets
    }

    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// All values together.
    pub fn sum(&self) -> u64 {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_in_the_bucket_whose_bound_it_just_does_not_exceed() {
        for (value, bucket) in [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (1 << 20, 20)] {
            let mut histogram = Histogram::default();
            histogram.add(value, 3);
            assert_eq!(histogram.buckets()[bucket], 3, "{value}");
            assert_eq!((histogram.count(), histogram.sum()), (3, 3 * value));
        }
    }

    #[test]
    fn what_is_larger_than_all_bounds_is_counted_all_the_same() {
        let mut histogram = Histogram::default();
        histogram.add(u64::MAX, 1);
        histogram.add(1 << 39, 1);
        assert_eq!(histogram.buckets()[BUCKETS - 1], 2);
    }
}
