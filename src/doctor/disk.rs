//! What a commit of a stream costs on a disk, measured as the store commits: a write at the end of
//! a file whose space is taken, then a sync of its data.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, OFlags, fallocate, fdatasync};

use super::Finding;
use crate::host::Tree;

/// Bytes of a write, a page of the store.
const WRITE_BYTES: usize = 4096;
/// Writes of each kind, at most.
const WRITES_MAX: usize = 200;
/// The time for writes of each kind.
const MEASURED_MAX: Duration = Duration::from_millis(700);
/// The longest commit without a tip, at the median.
const COMMIT_USUAL: Duration = Duration::from_millis(5);
/// The shortest commit that a disk can have waited for, at the median.
const COMMIT_MIN: Duration = Duration::from_micros(15);

/// Times that were measured on the disk of one directory.
#[derive(Debug)]
pub(super) struct Measured {
    /// Times of a write and a sync, shortest first.
    commits: Vec<Duration>,
    /// Times of a write past all caches, shortest first; empty where the file system has none.
    direct: Vec<Duration>,
    /// The device's number, major and minor.
    device: (u32, u32),
}

/// Measures in a file of `directory` that has no name.
///
/// # Errors
///
/// Fails if the directory cannot be written.
pub(super) fn measure(directory: &Path) -> io::Result<Measured> {
    let file = nameless(directory, OFlags::empty())?;
    let room = (WRITES_MAX * WRITE_BYTES) as u64;
    // Where the file system cannot take space ahead, each write takes its own.
    let _ = fallocate(&file, FallocateFlags::empty(), 0, room);
    file.sync_all()?;
    let page = [0x5a; 2 * WRITE_BYTES];
    let commits = timed(|offset| {
        file.write_all_at(&page[..WRITE_BYTES], offset)?;
        Ok(fdatasync(&file)?)
    })?;
    // A direct write needs memory at a multiple of its size.
    let start = page.as_ptr().align_offset(WRITE_BYTES).min(WRITE_BYTES);
    let direct = nameless(directory, OFlags::DIRECT | OFlags::DSYNC).and_then(|file| {
        let _ = fallocate(&file, FallocateFlags::empty(), 0, room);
        timed(|offset| file.write_all_at(&page[start..start + WRITE_BYTES], offset))
    });
    let device = file.metadata()?.dev();
    let device = (rustix::fs::major(device), rustix::fs::minor(device));
    Ok(Measured { commits, direct: direct.unwrap_or_default(), device })
}

/// Opens a file that goes when it is closed.
fn nameless(directory: &Path, flags: OFlags) -> io::Result<File> {
    let flags = i32::try_from((OFlags::TMPFILE | flags).bits()).map_err(io::Error::other)?;
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(directory)
}

/// Returns the times of `write` at rising offsets, shortest first.
#[expect(clippy::disallowed_methods, reason = "the doctor measures, and keeps no shard waiting")]
fn timed(write: impl Fn(u64) -> io::Result<()>) -> io::Result<Vec<Duration>> {
    let (began, mut times) = (Instant::now(), Vec::with_capacity(WRITES_MAX));
    while times.len() < WRITES_MAX && began.elapsed() < MEASURED_MAX {
        let offset = (times.len() * WRITE_BYTES) as u64;
        let start = Instant::now();
        write(offset)?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Ok(times)
}

/// Says what to expect of a disk.
pub(super) fn findings(tree: &Tree, measured: &Measured) -> Vec<Finding> {
    vec![commits(&measured.commits), cache(tree, measured)]
}

fn commits(times: &[Duration]) -> Finding {
    let (median, slow) = (quantile(times, 50), quantile(times, 99));
    let wanted = format!("{} or less for a sync", shown(COMMIT_USUAL));
    let rate = 1_000_000_000 / median.as_nanos().max(1);
    let now = format!(
        "a write and sync take {}, 1 in 100 {}: {rate} commits/s for each shard; publishers that \
         wait for each acknowledgement get that rate each, all that wait at once share a commit",
        shown(median),
        shown(slow),
    );
    let finding = Finding::new("disk: commit", now);
    if median > COMMIT_USUAL {
        finding.advise(
            wanted,
            "each acknowledgement of a stream in files waits that long",
            "put store_dir on an SSD with protection from power loss; publish without waiting for \
             each acknowledgement",
        )
    } else if median < COMMIT_MIN {
        finding.advise(
            format!("at least {}, as of a disk that waits", shown(COMMIT_MIN)),
            "a loss of power can take what was acknowledged, unless the cache has a battery",
            "put store_dir on a disk, not in memory; see the host's setting for sync on guests",
        )
    } else {
        finding.pass(wanted)
    }
}

fn cache(tree: &Tree, measured: &Measured) -> Finding {
    let (major, minor) = measured.device;
    let device = format!("sys/dev/block/{major}:{minor}");
    // A partition is below its disk.
    let of_queue = |name: &str| {
        let file = |up: &str| tree.text(format!("{device}{up}/queue/{name}"));
        file("").or_else(|| file("/.."))
    };
    let cache = of_queue("write_cache").unwrap_or_else(|| "not visible".to_owned());
    let fua = match of_queue("fua").as_deref() {
        Some("1") => "yes",
        Some(_) => "no: a durable write is a write and a flush",
        None => "not visible",
    };
    let direct = match measured.direct.is_empty() {
        true => "not possible here".to_owned(),
        false => shown(quantile(&measured.direct, 50)),
    };
    let now = format!("{cache}; FUA: {fua}; a direct durable write takes {direct}");
    Finding::new("disk: write cache", now).pass("write through, or FUA")
}

/// Returns the time that `percent` of all do not exceed; zero if there is none.
fn quantile(sorted: &[Duration], percent: usize) -> Duration {
    let at = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(at).copied().unwrap_or_default()
}

fn shown(time: Duration) -> String {
    let us = time.as_micros();
    match us {
        0..10_000 => format!("{us} µs"),
        _ => format!("{}.{} ms", us / 1000, us % 1000 / 100),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::FindingLevel;
    use crate::host::machine::Machine;

    fn times(us: &[u64]) -> Vec<Duration> {
        us.iter().copied().map(Duration::from_micros).collect()
    }

    #[test]
    fn a_directory_is_measured_and_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let measured = measure(dir.path()).unwrap();
        assert!(!measured.commits.is_empty() && measured.commits.is_sorted());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(findings(&Tree::default(), &measured).len(), 2);
        assert!(measure(&dir.path().join("none")).is_err());
    }

    #[test]
    fn slow_commits_and_those_that_cannot_be_durable_are_tips() {
        let finding = commits(&times(&[100, 200, 300, 12_345]));
        assert_eq!(finding.verdict, FindingLevel::Pass);
        assert!(
            finding.now.contains("take 200 µs, 1 in 100 12.3 ms: 5000 commits/s"),
            "{finding:?}"
        );
        let finding = commits(&times(&[8000, 9000]));
        assert_eq!(finding.verdict, FindingLevel::Advise);
        let finding = commits(&times(&[2, 3]));
        assert!(finding.costs.unwrap().contains("loss of power"));
    }

    #[test]
    fn the_cache_of_a_partition_is_that_of_its_disk() {
        let machine = Machine::new(1, 1, 1).with(&[
            ("sys/dev/block/8:1/partition", "1"),
            ("sys/dev/block/queue/write_cache", "write back\n"),
            ("sys/dev/block/queue/fua", "1\n"),
        ]);
        let measured = Measured { commits: Vec::new(), direct: times(&[50]), device: (8, 1) };
        let now = cache(&machine.tree(), &measured).now;
        assert_eq!(now, "write back; FUA: yes; a direct durable write takes 50 µs");
        let measured = Measured { direct: Vec::new(), device: (9, 9), ..measured };
        let now = cache(&machine.tree(), &measured).now;
        assert_eq!(
            now,
            "not visible; FUA: not visible; a direct durable write takes not possible here"
        );
    }
}
