//! The logs of a shard: found again at the start, and written to since.

use std::io;
use std::path::Path;

use crate::core::Core;
use crate::core::outputs::Output;
use crate::delivery::held::HeldMessages;
use crate::delivery::inside::{self, InnerMessage};
use crate::disk::DiskDone;
use crate::interest::ids::AccountId;
use crate::store::{
    LogKey, LogSizes, Recovery, RecoveryError, RecoveryReport, StreamStore, WalEvent, WalSettings,
};

/// Directories of the logs of one shard; each exists.
pub(crate) type LogDirectories = Vec<Box<Path>>;

/// Names of operations of one log: its place is in their upper half.
const TOKEN_BITS: u32 = 32;
/// Numbers of files of one log.
const FILE_NUMBERS: u32 = 1 << 20;
/// Time after which a log that found no room on the disk is tried again, and one that could not be
/// read, in nanoseconds.
const RETRY_NS: u64 = 1_000_000_000;
/// Failures of one read between two lines about it in the log.
const FAILURES_TOLD: u32 = 60;

#[derive(Debug)]
enum State {
    /// The log is being read.
    Reading(Box<Recovery>),
    Open(Box<StreamStore>),
    /// The log cannot be used; its streams are not served.
    Failed,
}

/// A message that tells of a commit; there is none without a subject.
#[derive(Debug, Clone, Copy)]
pub(super) struct Notice<'a> {
    pub(super) account: AccountId,
    pub(super) subject: &'a [u8],
    pub(super) body: &'a [u8],
}

/// One log.
#[derive(Debug)]
struct StreamLog {
    directory: Box<Path>,
    state: State,
    held: HeldMessages,
    /// The last commit that was handed on.
    committed: u64,
    /// The time at which the log is tried again, in nanoseconds since the start of the process.
    retry: Option<u64>,
    /// Failures to write since the last commit.
    write_failures: u32,
    /// The time at which records that could not be read are read again.
    reread: Option<u64>,
}

/// The logs of a shard.
#[derive(Debug)]
pub(super) struct Logs {
    all: Vec<StreamLog>,
    /// Keys of indexes: see [`StreamStore::new`].
    seed: u64,
    /// Whether messages have come from the disk.
    have_loaded: bool,
    /// Operations that the disk has.
    in_flight: usize,
}

impl Logs {
    /// Begins to read the logs in these directories.
    pub(super) fn new(
        directories: LogDirectories,
        sizes: LogSizes,
        rng: &mut fastrand::Rng,
    ) -> Self {
        let begin = |(at, directory): (u32, Box<Path>)| {
            let settings = WalSettings {
                directory: directory.clone(),
                file_bytes: sizes.file_bytes,
                first_file: at * FILE_NUMBERS,
                first_token: u64::from(at) << TOKEN_BITS,
                memory_bytes: sizes.memory_bytes,
            };
            let recovery = Recovery::new(settings, LogKey(rng.u64(..)));
            let state = State::Reading(Box::new(recovery));
            StreamLog {
                directory,
                state,
                held: HeldMessages::default(),
                committed: 0,
                retry: None,
                write_failures: 0,
                reread: None,
            }
        };
        let all = (0..).zip(directories).map(begin).collect();
        Self { all, seed: rng.u64(..), have_loaded: false, in_flight: 0 }
    }

    /// Number of logs.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether no log is still being read.
    pub(super) fn are_found(&self) -> bool {
        let is_found = |log: &StreamLog| match &log.state {
            State::Reading(_) => false,
            State::Open(store) => store.is_ready(),
            State::Failed => true,
        };
        self.all.iter().all(is_found)
    }

    /// Whether all that the logs had at the start is on the disk for sure, or no disk takes it.
    pub(super) fn are_settled(&self) -> bool {
        let is_settled = |log: &StreamLog| match &log.state {
            State::Open(store) => store.wal().is_at_rest() || log.retry.is_some(),
            _ => true,
        };
        self.all.iter().all(is_settled)
    }

    /// Whether nothing waits for the disk.
    pub(super) fn is_at_rest(&self) -> bool {
        let rests = |log: &StreamLog| match &log.state {
            State::Open(store) => store.wal().is_at_rest() && log.held.is_empty(),
            _ => true,
        };
        self.in_flight == 0 && self.all.iter().all(rests)
    }

    /// The store of a log, if it is open.
    pub(super) fn store(&self, log: usize) -> Option<&StreamStore> {
        match &self.all.get(log)?.state {
            State::Open(store) => Some(store),
            _ => None,
        }
    }

    /// The store of a log, if it is open.
    pub(super) fn store_mut(&mut self, log: usize) -> Option<&mut StreamStore> {
        match &mut self.all.get_mut(log)?.state {
            State::Open(store) => Some(store),
            _ => None,
        }
    }

    /// The store of a log, and what waits for its commits.
    pub(super) fn parts(&mut self, log: usize) -> Option<(&mut StreamStore, &mut HeldMessages)> {
        let log = self.all.get_mut(log)?;
        match &mut log.state {
            State::Open(store) => Some((store, &mut log.held)),
            _ => None,
        }
    }

    /// Whether a log takes nothing before its next commit, which is on its way.
    pub(super) fn is_full(&self, log: usize) -> bool {
        self.store(log).is_some_and(|store| store.wal().is_full()) && !self.refuses(log)
    }

    /// Whether a log takes nothing, and nobody knows until when: the disk is full, or fails.
    pub(super) fn refuses(&self, log: usize) -> bool {
        let Some(log) = self.all.get(log) else { return true };
        let State::Open(store) = &log.state else { return true };
        log.retry.is_some() || store.wal().is_read_only()
    }

    /// Sends a message once a commit is on the disk: at once, if it is.
    pub(super) fn send(&mut self, core: &mut Core, log: usize, commit: u64, message: &Notice<'_>) {
        let Some(log) = self.all.get_mut(log) else { return };
        let Notice { account, subject, body } = *message;
        if commit > log.committed {
            log.held.push(commit, account, subject, b"", body);
        } else if !subject.is_empty() {
            let message = InnerMessage { subject, reply: b"", headers: b"", body };
            inside::publish(core, account, &message);
        }
    }

    /// The last commit of a log that was handed on.
    pub(super) fn committed(&self, log: usize) -> u64 {
        self.all.get(log).map_or(0, |log| log.committed)
    }

    /// Hands all operations on to the disk.
    pub(super) fn pump(&mut self, core: &mut Core) {
        for log in &mut self.all {
            loop {
                let op = match &mut log.state {
                    State::Reading(recovery) => recovery.next_op(),
                    State::Open(store) => store.next_op(),
                    State::Failed => None,
                };
                let Some(op) = op else { break };
                self.in_flight += 1;
                core.out.push(Output::Disk(Box::new(op)));
            }
        }
    }

    /// Begins a commit in each log.
    pub(super) fn end_turn(&mut self, core: &mut Core) {
        for log in &mut self.all {
            if let State::Open(store) = &mut log.state {
                store.end_turn();
            }
        }
        self.pump(core);
    }

    /// Takes the end of an operation.
    pub(super) fn on_disk(&mut self, core: &mut Core, done: DiskDone) {
        self.in_flight = self.in_flight.saturating_sub(1);
        let at = usize::try_from(done.token >> TOKEN_BITS).unwrap_or(usize::MAX);
        let Some(log) = self.all.get_mut(at) else { return };
        match &mut log.state {
            State::Reading(recovery) => {
                recovery.on_disk(done);
                if recovery.is_over() {
                    core.monitor.stats.lost_stream_records += log.open(self.seed);
                }
            }
            State::Open(store) => store.on_disk(done),
            State::Failed => {}
        }
        self.pump(core);
    }

    /// Publishes what commits have set free. Returns whether there were commits.
    pub(super) fn take_commits(&mut self, core: &mut Core) -> bool {
        let mut any = false;
        for log in &mut self.all {
            let State::Open(store) = &mut log.state else { continue };
            while let Some(event) = store.next_event() {
                match event {
                    WalEvent::Committed(number) => {
                        any = true;
                        log.committed = log.committed.max(number);
                        log.write_failures = 0;
                    }
                    WalEvent::NoFile(error) => {
                        if log.write_failures % FAILURES_TOLD == 0 {
                            report_no_file(error, &log.directory);
                        }
                        log.write_failures = log.write_failures.wrapping_add(1);
                        core.monitor.stats.stream_write_failures += 1;
                        log.retry = Some(core.times.now.saturating_add(RETRY_NS));
                    }
                    WalEvent::Loaded => self.have_loaded = true,
                    WalEvent::NoRead { commit, error, failures } => {
                        let is_first = log.reread.is_none();
                        log.reread.get_or_insert(core.times.now.saturating_add(RETRY_NS));
                        if is_first && failures % FAILURES_TOLD == 1 {
                            tracing::error!(
                                "Cannot read records of the commit {commit} in {}: {error}; trying \
                                 again every second, for five minutes (check the disk, and the \
                                 limit of open files)",
                                log.directory.display()
                            );
                        }
                    }
                    WalEvent::Damaged { commit, lost } => {
                        // Those who wait for it have to look at something else.
                        self.have_loaded = true;
                        core.monitor.stats.lost_stream_records += lost;
                        tracing::error!(
                            "Damage in {}: {lost} records of the commit {commit} cannot be read, \
                             and are lost",
                            log.directory.display()
                        );
                    }
                    WalEvent::ReadOnly(error) => {
                        core.monitor.stats.stream_write_failures += 1;
                        tracing::error!(
                            "Cannot write to {}: {error}; its streams are read-only: repair the \
                             disk and restart the server",
                            log.directory.display()
                        );
                    }
                }
            }
            log.committed = log.committed.max(store.wal().committed());
            log.held.release(core, log.committed);
        }
        any
    }

    /// Whether messages have come from the disk since this was asked last.
    pub(super) fn take_loaded(&mut self) -> bool {
        std::mem::take(&mut self.have_loaded)
    }

    /// Tries full logs again, and reads that failed.
    pub(super) fn tick(&mut self, core: &mut Core) {
        for log in &mut self.all {
            if log.retry.take_if(|retry| *retry <= core.times.now).is_some()
                && let State::Open(store) = &mut log.state
            {
                store.wal_mut().try_again();
            }
            if log.reread.take_if(|reread| *reread <= core.times.now).is_some()
                && let State::Open(store) = &mut log.state
            {
                store.wal_mut().read_again();
                // What was not asked for, because too much was, is asked for now.
                self.have_loaded = true;
            }
        }
        self.pump(core);
    }

    /// The time at which [`Self::tick`] is needed, in nanoseconds since the start of the process.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.all.iter().flat_map(|log| log.retry.into_iter().chain(log.reread)).min()
    }
}

impl StreamLog {
    /// Opens the log, which has been read. Returns the records that were lost, at most.
    fn open(&mut self, seed: u64) -> u64 {
        let State::Reading(recovery) = std::mem::replace(&mut self.state, State::Failed) else {
            return 0;
        };
        let directory = self.directory.display();
        match recovery.finish() {
            Ok(recovered) => {
                let (store, report) = StreamStore::new(recovered, seed);
                report_faults(&report, &self.directory);
                self.committed = store.wal().committed();
                self.state = State::Open(Box::new(store));
                return report.damage.iter().map(|damage| u64::from(damage.lost_max)).sum();
            }
            Err(RecoveryError::CannotOpen(file, error)) => tracing::error!(
                "Streams in {directory} are not served: file {file} cannot be opened: {error}"
            ),
            Err(RecoveryError::KeyLost) => tracing::error!(
                "Streams in {directory} are not served: the first page of all its files is \
                 damaged (restore the directory from a backup)"
            ),
        }
        0
    }
}

/// Tells that there is no file for what comes: the disk is full, or fails.
fn report_no_file(error: io::ErrorKind, directory: &Path) {
    let directory = directory.display();
    if matches!(error, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        tracing::error!(
            "No room for streams in {directory}: {error}; trying again every second (free space \
             on the disk)"
        );
    } else {
        tracing::error!(
            "Cannot write to {directory}: {error}; trying again every second (check the disk, its \
             mount, and the log of the kernel)"
        );
    }
}

fn report_faults(report: &RecoveryReport, directory: &Path) {
    let directory = directory.display();
    for damage in &report.damage {
        tracing::error!(
            "Damage in {directory}: records of the commits {} to {} are lost, {} at most; {} were \
             kept",
            damage.first,
            damage.last,
            damage.lost_max,
            damage.kept
        );
    }
    if report.unreadable_pages > 0 {
        tracing::error!("{directory}: {} pages cannot be read", report.unreadable_pages);
    }
    for file in &report.foreign {
        tracing::warn!("{directory}: file {file} belongs to another log, and is left alone");
    }
}
