//! The process as the kernel counts it: processor time, memory, open files.

use chrono::{DateTime, Utc};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// Memory of the process, in bytes; 0 if unknown.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ProcessMemory {
    pub(super) resident_bytes: u64,
    pub(super) virtual_bytes: u64,
}

pub(super) fn memory() -> ProcessMemory {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let page_bytes = rustix::param::page_size() as u64;
    let mut pages = statm.split_whitespace().map_while(|pages| pages.parse::<u64>().ok());
    let mut bytes = || pages.next().unwrap_or(0).saturating_mul(page_bytes);
    let (virtual_bytes, resident_bytes) = (bytes(), bytes());
    ProcessMemory { resident_bytes, virtual_bytes }
}

/// Returns the number of open files; `None` if the process may not look.
pub(super) fn open_files() -> Option<usize> {
    // Since Linux 6.2 the size of the directory is their number, without a list of them.
    let told = std::fs::metadata("/proc/self/fd").ok()?.len();
    match usize::try_from(told) {
        Ok(count) if count > 0 => Some(count),
        _ => Some(std::fs::read_dir("/proc/self/fd").ok()?.count()),
    }
}

/// Returns the limit of open files; `None` if there is none.
pub(super) fn open_files_max() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// The share of one core that the process uses, in percent.
pub(super) struct CpuShare {
    /// The beginning of the span that is measured.
    since: DateTime<Utc>,
    used_s: f64,
    percent: f64,
}

impl CpuShare {
    pub(super) fn new() -> Self {
        Self { since: Utc::now(), used_s: used_s(), percent: 0.0 }
    }

    /// Returns the share since the last call, in percent; a span under a second yields the last
    /// value.
    pub(super) fn percent(&mut self) -> f64 {
        const SPAN_S_MIN: f64 = 1.0;
        let (now, used_s) = (Utc::now(), used_s());
        let span_s = (now - self.since).as_seconds_f64();
        if span_s >= SPAN_S_MIN {
            self.percent = (100.0 * (used_s - self.used_s) / span_s).round();
            (self.since, self.used_s) = (now, used_s);
        }
        self.percent
    }
}

/// Returns the processor time of the process, in seconds.
#[expect(clippy::cast_precision_loss, reason = "a share needs no more digits")]
pub(super) fn used_s() -> f64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}
