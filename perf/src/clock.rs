//! Time: one origin for all threads, durations as people write them, precise waiting.

use crate::fault::{Fault, Outcome};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use std::fs::File;
use std::time::{Duration, Instant};

/// Nanoseconds since an origin that all threads of a run share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock that reads 0 now.
    pub(crate) fn start() -> Self {
        Self { origin: Instant::now() }
    }

    /// Nanoseconds since the origin.
    pub(crate) fn now_ns(self) -> u64 {
        duration_ns(self.origin.elapsed())
    }
}

/// A duration in nanoseconds; 584 years is as good as for ever.
pub(crate) fn duration_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Wakes a task at a given time: a timerfd that is read through the ring. The runtime's own
/// timers are only good to a millisecond, which is longer than most latencies measured here.
pub(crate) struct Ticker {
    file: tokio_uring::fs::File,
    /// Shares the descriptor with `file`, which hides it.
    setter: File,
    count: Vec<u8>,
}

impl Ticker {
    /// A ticker that is not set.
    pub(crate) fn new() -> Outcome<Self> {
        let broken = |error: std::io::Error| {
            Fault::new(format!("no timer: {error}"), "raise the limit of open files (ulimit -n)")
        };
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)
            .map_err(|errno| broken(errno.into()))?;
        let setter = File::from(timer);
        let file = tokio_uring::fs::File::from_std(setter.try_clone().map_err(broken)?);
        Ok(Self { file, setter, count: Vec::with_capacity(8) })
    }

    /// Waits for about `ns` nanoseconds (at least one).
    pub(crate) async fn wait_ns(&mut self, ns: u64) -> Outcome<()> {
        let value = Timespec {
            tv_sec: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(ns.max(1) % 1_000_000_000).unwrap_or(0),
        };
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let times = Itimerspec { it_interval: zero, it_value: value };
        let failed = |error: std::io::Error| {
            Fault::new(format!("the timer failed: {error}"), "check io_uring with a newer kernel")
        };
        timerfd_settime(&self.setter, TimerfdTimerFlags::empty(), &times)
            .map_err(|errno| failed(errno.into()))?;
        let buffer = std::mem::take(&mut self.count);
        let (read, buffer) = self.file.read_at(buffer, 0).await;
        self.count = buffer;
        self.count.clear();
        read.map(|_| ()).map_err(failed)
    }
}

/// Reads `500ms`, `2s`, `1m`, `1h`, `250us`; a bare number means seconds.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("write it as 500ms, 2s, 1m or 1h".to_owned()),
    };
    let number: f64 = number.parse().map_err(|_| "write it as 500ms, 2s, 1m or 1h".to_owned())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| "too long".to_owned())
}

/// Reads `128`, `16k`, `1KiB`, `64MiB`; the factors are powers of 1024.
pub(crate) fn parse_bytes(text: &str) -> Result<usize, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        _ => return Err("write it as 128, 16KiB or 1MiB".to_owned()),
    };
    let number: usize = number.parse().map_err(|_| "write it as 128, 16KiB or 1MiB".to_owned())?;
    number.checked_mul(factor).ok_or_else(|| "too large".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_read_as_people_write_them() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2"), Ok(Duration::from_secs(2)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("1m"), Ok(Duration::from_secs(60)));
        assert!(parse_duration("soon").is_err());
        assert_eq!(parse_bytes("128"), Ok(128));
        assert_eq!(parse_bytes("16KiB"), Ok(16384));
        assert_eq!(parse_bytes("1m"), Ok(1 << 20));
        assert!(parse_bytes("1x").is_err());
    }

    #[test]
    fn a_ticker_wakes_after_its_time() {
        let clock = Clock::start();
        tokio_uring::start(async {
            let mut ticker = Ticker::new().unwrap();
            ticker.wait_ns(200_000).await.unwrap();
            ticker.wait_ns(200_000).await.unwrap();
        });
        assert!(clock.now_ns() >= 400_000);
    }
}
