//! Histograms: counts of values in buckets that double.

/// Buckets of a histogram; the last one also counts larger values.
const BUCKETS: usize = 40;

/// Counts of values by the power of two that they do not exceed. Fixed in size: counting costs a
/// few instructions and no memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram {
    /// Counts by bucket: bucket `i` has the values up to `2^i` that no earlier one has.
    buckets: [u64; BUCKETS],
    sum: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], sum: 0 }
    }
}

impl Histogram {
    /// Counts `value` `times` times.
    #[inline]
    pub fn add(&mut self, value: u64, times: u64) {
        let bits = u64::BITS - value.saturating_sub(1).leading_zeros();
        self.buckets[(bits as usize).min(BUCKETS - 1)] += times;
        self.sum = self.sum.wrapping_add(value.wrapping_mul(times));
    }

    /// Adds the counts of another histogram.
    pub fn merge(&mut self, other: &Self) {
        for (own, others) in self.buckets.iter_mut().zip(other.buckets) {
            *own += others;
        }
        self.sum = self.sum.wrapping_add(other.sum);
    }

    /// Returns what was counted since the histogram was as `before` is.
    pub fn since(&self, before: &Self) -> Self {
        let mut since = self.clone();
        for (own, before) in since.buckets.iter_mut().zip(before.buckets) {
            *own = own.saturating_sub(before);
        }
        since.sum = self.sum.wrapping_sub(before.sum);
        since
    }

    /// Returns the value that the part `q` (0 to 1) of all values do not exceed, by the logarithm
    /// within its bucket; 0 if nothing is counted.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "buckets that double are no more exact"
    )]
    pub fn quantile(&self, q: f64) -> u64 {
        let mut rest = self.count() as f64 * q;
        for (bucket, count) in self.buckets.iter().map(|count| *count as f64).enumerate() {
            if count > 0.0 && rest <= count {
                let exponent = (bucket as f64 - 1.0).max(0.0) + rest / count;
                return if bucket == 0 { 1 } else { exponent.exp2().round() as u64 };
            }
            rest -= count;
        }
        0
    }

    /// Returns the count of values in each bucket, from the one for 0 and 1 on.
    pub fn buckets(&self) -> &[u64; BUCKETS] {
        &self.buckets
    }

    /// Returns the count of values.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Returns the sum of all values.
    pub fn sum(&self) -> u64 {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_lies_in_the_bucket_of_its_value() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), 0);
        histogram.add(7, 4);
        assert_eq!((histogram.quantile(1.0), histogram.quantile(0.5)), (8, 6));
        let before = histogram.clone();
        histogram.add(1, 1);
        assert_eq!(histogram.since(&before).quantile(0.99), 1);
        let mut twice = before.clone();
        twice.merge(&before);
        assert_eq!((twice.count(), twice.sum()), (8, 56));
    }

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
