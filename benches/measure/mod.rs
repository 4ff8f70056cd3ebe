//! CPU time, and what is made of several measurements.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds that the thread or process of `clock` has spent on a CPU, kernel included.
pub(crate) fn cpu_ns(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// The middle one, or the mean of the two middle ones.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { values[middle - 1].midpoint(values[middle]) }
}
