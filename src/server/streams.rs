//! The directory of the streams: one process's at a time, with a log for each shard or more.
//!
//! `<store_dir>/shardcast` holds a file `version`, a file `lock`, and directories `log-0`, `log-1`
//! and so on. What else is in `<store_dir>`, such as the streams of a nats-server, stays untouched.
//! A log belongs to no shard: with other shards than before each takes its share of the logs.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock, statvfs};
use tracing::{info, warn};

use crate::config::{JetStreamOptions, StartError};
use crate::engine::AssetLimits;
use crate::host::{self, Tree};
use crate::identity::StreamsPlace;

/// Name of the directory within `store_dir`.
const DIRECTORY: &str = "shardcast";
/// The content of the file `version`.
const VERSION: &str = "shardcast streams 1\n";
/// Logs of one directory, at most.
const LOGS_MAX: usize = 1024;

/// The directory of the streams. Dropping it lets another process have it.
#[derive(Debug)]
pub struct StreamDirectory {
    path: PathBuf,
    /// Directories of logs, by shard.
    logs: Vec<Vec<Box<Path>>>,
    limits: AssetLimits,
    _lock: File,
}

impl StreamDirectory {
    /// Makes the directory within `store_dir`, or takes over the one that is there, with at least
    /// one log for each of `shards`.
    ///
    /// # Errors
    ///
    /// Fails if another process has the directory, another program or version has written it, or
    /// it cannot be written.
    pub fn open(store_dir: &Path, shards: usize) -> Result<Self, StartError> {
        let path = store_dir.join(DIRECTORY);
        let unusable = |error: io::Error| {
            let place = path.display();
            StartError::new(format!(
                "jetstream: cannot use {place}: {error}; check its permissions or set another \
                 store_dir"
            ))
        };
        make(&path).map_err(unusable)?;
        check_owner(&path)?;
        let lock = lock(&path)?;
        check_version(&path)?;
        let numbers = found_logs(&path).map_err(unusable)?;
        let numbers = with_missing(numbers, shards);
        let logs: Vec<Box<Path>> =
            numbers.iter().map(|number| path.join(log_name(*number)).into()).collect();
        for log in &logs {
            make(log).map_err(unusable)?;
        }
        File::open(&path).and_then(|directory| directory.sync_all()).map_err(unusable)?;
        let limits = limits(&path, &logs).map_err(unusable)?;
        Ok(Self { logs: divided(logs, shards), path, limits, _lock: lock })
    }

    /// The place of the streams, as the server's identity has it.
    pub fn place(&self) -> StreamsPlace {
        StreamsPlace { directory: self.path.clone(), logs: self.logs.clone(), limits: self.limits }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Directories of logs, by shard.
    pub fn logs(&self) -> &[Vec<Box<Path>>] {
        &self.logs
    }

    /// Bytes that streams may have where the configuration sets no limit.
    pub fn limits(&self) -> AssetLimits {
        self.limits
    }
}

/// Opens the directory of the streams and tells the log about JetStream; `None` if it is off.
///
/// # Errors
///
/// As [`StreamDirectory::open`].
pub(super) fn start(
    options: &JetStreamOptions,
    shards: usize,
) -> Result<Option<StreamDirectory>, StartError> {
    if !options.is_enabled {
        return Ok(None);
    }
    info!("Starting JetStream");
    let store_dir = options.store_dir.clone().unwrap_or_else(|| {
        warn!("Temporary storage directory used, data could be lost on system reboot");
        std::env::temp_dir().join("nats")
    });
    let directory = StreamDirectory::open(&store_dir, shards)?;
    let limits = options.asset_limits(directory.limits());
    info!("---------------- JETSTREAM ----------------");
    if !options.is_lenient {
        info!("  Strict:          true");
    }
    info!("  Max Memory:      {}", size(limits.memory_bytes_max));
    info!("  Max Storage:     {}", size(limits.file_bytes_max));
    info!("  Store Directory: \"{}\"", directory.path().display());
    if let Some(domain) = &options.domain {
        info!("  Domain:          {domain}");
    }
    info!("  API Level:       {}", crate::JETSTREAM_API_LEVEL);
    info!("-------------------------------------------");
    Ok(Some(directory))
}

/// Returns a number of bytes for humans.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KB", "MB", "GB", "TB", "PB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
    let (mut shown, mut unit) = (bytes as f64 / 1024.0, UNITS[0]);
    for next in &UNITS[1..] {
        if shown >= 1024.0 {
            (shown, unit) = (shown / 1024.0, next);
        }
    }
    format!("{shown:.2} {unit}")
}

fn log_name(number: usize) -> String {
    format!("log-{number}")
}

fn make(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Refuses a directory of another user: what is made in it now he could not read later.
fn check_owner(path: &Path) -> Result<(), StartError> {
    let owner = fs::metadata(path).map(|is| is.uid());
    let own = rustix::process::geteuid().as_raw();
    match owner {
        Ok(owner) if owner != own => Err(StartError::new(format!(
            "jetstream: {} belongs to user {owner}, and this server runs as user {own}; start it \
             as that user, or set another store_dir",
            path.display()
        ))),
        _ => Ok(()),
    }
}

/// Takes the lock, which the kernel frees at the end of the process.
fn lock(directory: &Path) -> Result<File, StartError> {
    let path = directory.join("lock");
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(&path);
    let locked = file.and_then(|file| {
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(file)
    });
    let place = directory.display();
    locked.map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => StartError::new(format!(
            "jetstream: another server has {place}; end it, or set another store_dir"
        )),
        _ => StartError::new(format!("jetstream: cannot lock {}: {error}", path.display())),
    })
}

/// Checks which version has written the directory; a new one is marked as of this version.
fn check_version(directory: &Path) -> Result<(), StartError> {
    let path = directory.join("version");
    let failed =
        |error| StartError::new(format!("jetstream: cannot use {}: {error}", path.display()));
    match fs::read_to_string(&path) {
        Ok(text) if text == VERSION => return Ok(()),
        Ok(text) => {
            let text = text.lines().next().unwrap_or_default().chars().take(80);
            return Err(StartError::new(format!(
                "jetstream: {} is of \"{}\", and this server reads \"{}\"; start the server that \
                 wrote it, or set another store_dir",
                directory.display(),
                text.collect::<String>(),
                VERSION.trim_end()
            )));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    if !found_logs(directory).map_err(failed)?.is_empty() {
        return Err(StartError::new(format!(
            "jetstream: {} has logs and no version; put the file {} back",
            directory.display(),
            path.display()
        )));
    }
    // Under another name first: a crash leaves the whole mark, or none.
    let unfinished = path.with_extension("new");
    let written = File::create(&unfinished).and_then(|mut file| {
        file.write_all(VERSION.as_bytes())?;
        file.sync_all()
    });
    written.and_then(|()| fs::rename(&unfinished, &path)).map_err(failed)
}

/// Returns the numbers of the logs that there are, in order.
fn found_logs(directory: &Path) -> io::Result<Vec<usize>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("log-")?.parse().ok());
        numbers.extend(number.filter(|number: &usize| *number < LOGS_MAX));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Adds numbers that are free, until there are as many as shards.
fn with_missing(mut numbers: Vec<usize>, shards: usize) -> Vec<usize> {
    let missing = shards.saturating_sub(numbers.len());
    let free = (0..LOGS_MAX).filter(|number| numbers.binary_search(number).is_err());
    let new: Vec<usize> = free.take(missing).collect();
    numbers.extend(new);
    numbers.sort_unstable();
    numbers
}

/// Divides the logs among the shards by turns.
fn divided(logs: Vec<Box<Path>>, shards: usize) -> Vec<Vec<Box<Path>>> {
    let mut divided = vec![Vec::new(); shards];
    for (log, at) in logs.into_iter().zip((0..shards).cycle()) {
        divided[at].push(log);
    }
    divided
}

/// Returns three quarters of the memory, and of the space that is free or ours.
fn limits(path: &Path, logs: &[Box<Path>]) -> io::Result<AssetLimits> {
    let volume = statvfs(path)?;
    let mut bytes = volume.f_bavail.saturating_mul(volume.f_frsize);
    for log in logs {
        for entry in fs::read_dir(log)? {
            bytes = bytes.saturating_add(entry?.metadata()?.blocks().saturating_mul(512));
        }
    }
    let memory = u64::try_from(host::memory_bytes(&Tree::default())).unwrap_or(u64::MAX);
    Ok(AssetLimits { memory_bytes_max: memory / 4 * 3, file_bytes_max: bytes / 4 * 3 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &StreamDirectory) -> Vec<Vec<String>> {
        let name = |log: &Path| log.file_name().unwrap().to_string_lossy().into_owned();
        directory.logs().iter().map(|logs| logs.iter().map(|log| name(log)).collect()).collect()
    }

    fn refusal(store_dir: &Path) -> String {
        StreamDirectory::open(store_dir, 1).unwrap_err().to_string()
    }

    #[test]
    fn each_shard_has_a_log_and_none_is_lost_when_there_are_fewer_shards() {
        let dir = tempfile::tempdir().unwrap();
        let open = |shards| names(&StreamDirectory::open(dir.path(), shards).unwrap());
        assert_eq!(open(2), [["log-0"], ["log-1"]]);
        assert_eq!(open(4).concat(), ["log-0", "log-1", "log-2", "log-3"]);
        assert_eq!(open(3), [vec!["log-0", "log-3"], vec!["log-1"], vec!["log-2"]]);
        fs::remove_dir(dir.path().join("shardcast/log-1")).unwrap();
        assert_eq!(open(4).concat(), ["log-0", "log-1", "log-2", "log-3"]);
        let limits = StreamDirectory::open(dir.path(), 1).unwrap().limits();
        assert!(limits.memory_bytes_max > 1 << 20 && limits.file_bytes_max > 1 << 20);
    }

    #[test]
    fn one_process_has_a_directory_until_it_gives_it_back() {
        let dir = tempfile::tempdir().unwrap();
        let first = StreamDirectory::open(dir.path(), 1).unwrap();
        assert!(refusal(dir.path()).contains("another server has"));
        drop(first);
        StreamDirectory::open(dir.path(), 1).unwrap();
    }

    #[test]
    fn what_another_version_wrote_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        drop(StreamDirectory::open(dir.path(), 1).unwrap());
        let version = dir.path().join("shardcast/version");
        fs::write(&version, "shardcast streams 2\n").unwrap();
        let told = refusal(dir.path());
        assert!(told.contains("is of \"shardcast streams 2\""), "{told}");
        fs::remove_file(&version).unwrap();
        assert!(refusal(dir.path()).contains("has logs and no version"));
        assert!(!version.exists());
    }

    #[test]
    fn streams_of_a_nats_server_beside_it_are_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join("jetstream/$G/streams/S");
        fs::create_dir_all(&other).unwrap();
        drop(StreamDirectory::open(dir.path(), 1).unwrap());
        assert!(other.exists());
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(refusal(&file).contains("set another store_dir"));
    }

    #[test]
    fn sizes_are_for_humans() {
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1 << 20), "1.00 MB");
        assert_eq!(size(3 << 29), "1.50 GB");
    }
}
