//! The log, in nats-server's line format.
//!
//! Whoever logs never waits for a disk or a terminal: lines go through a bounded queue to a thread
//! of their own, and what does not fit is dropped and counted.

#![forbid(unsafe_code)]

use std::fmt::{self, Write as _};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use chrono::{Local, Utc};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};

use crate::config::{LogOptions, StartError};

/// Lines that may wait for the disk or terminal.
const WAITING_LINES_MAX: usize = 64 * 1024;
/// The target of errors that end the process; tracing has no level for them.
pub const FATAL: &str = "fatal";

/// The running log. Dropping it writes what still waits.
#[derive(Debug)]
pub struct Log {
    reopen: Arc<AtomicBool>,
    dropped: ErrorCounter,
    _writer: WorkerGuard,
}

impl Log {
    /// Starts logging for the whole process; works once.
    pub fn start(options: &LogOptions) -> Result<Self, StartError> {
        let reopen = Arc::new(AtomicBool::new(false));
        let queue = NonBlockingBuilder::default()
            .buffered_lines_limit(WAITING_LINES_MAX)
            .thread_name("log");
        let (queue, writer) = match &options.file {
            Some(path) => queue.finish(LogFile::open(path, options, Arc::clone(&reopen))?),
            None => queue.finish(io::stderr()),
        };
        let dropped = queue.error_counter();
        let lines = Lines {
            queue,
            pid: std::process::id(),
            timestamps: options.timestamps,
            utc: options.utc,
            debug: options.debug,
            trace: options.trace,
        };
        tracing::subscriber::set_global_default(tracing_subscriber::registry().with(lines))
            .map_err(|_| StartError::new("the log is running already; start it once"))?;
        Ok(Self { reopen, dropped, _writer: writer })
    }

    /// Closes the log file and opens it again by its name before the next line.
    pub fn reopen(&self) {
        self.reopen.store(true, Ordering::Release);
    }

    /// Lines that were dropped so far because too many waited.
    pub fn dropped_lines(&self) -> usize {
        self.dropped.dropped_lines()
    }
}

/// Turns events into lines.
struct Lines {
    queue: NonBlocking,
    pid: u32,
    timestamps: bool,
    utc: bool,
    debug: bool,
    trace: bool,
}

impl Lines {
    fn line(&self, metadata: &Metadata<'_>, text: &str) -> String {
        const TIME: &str = "%Y/%m/%d %H:%M:%S%.6f";
        let time = match (self.timestamps, self.utc) {
            (false, _) => String::new(),
            (true, true) => format!("{} ", Utc::now().format(TIME)),
            (true, false) => format!("{} ", Local::now().format(TIME)),
        };
        let level = match *metadata.level() {
            Level::ERROR if metadata.target() == FATAL => "FTL",
            Level::ERROR => "ERR",
            Level::WARN => "WRN",
            Level::INFO => "INF",
            Level::DEBUG => "DBG",
            Level::TRACE => "TRC",
        };
        format!("[{}] {time}[{level}] {text}\n", self.pid)
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        match *metadata.level() {
            Level::DEBUG => self.debug,
            Level::TRACE => self.trace,
            _ => true,
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match (self.debug, self.trace) {
            (_, true) => LevelFilter::TRACE,
            (true, false) => LevelFilter::DEBUG,
            (false, false) => LevelFilter::INFO,
        })
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        let line = self.line(event.metadata(), &text.0);
        // The queue takes the line or counts it as dropped; it does not fail.
        let _ = self.queue.clone().write_all(line.as_bytes());
    }
}

/// An event's message and fields, as one line whatever clients put into them.
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let start = self.0.len();
        // Writing to a String cannot fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
        if self.0[start..].contains(char::is_control) {
            let added = self.0.split_off(start);
            for c in added.chars() {
                if c.is_control() {
                    self.0.extend(c.escape_default());
                } else {
                    self.0.push(c);
                }
            }
        }
    }
}

/// A log file that can be opened again, and put aside when it has grown.
struct LogFile {
    path: PathBuf,
    file: File,
    length: u64,
    /// Bytes after which the file is put aside; 0 is never.
    length_max: u64,
    /// Files put aside that are kept; 0 is all.
    kept_max: usize,
    reopen: Arc<AtomicBool>,
}

impl LogFile {
    fn open(
        path: &Path,
        options: &LogOptions,
        reopen: Arc<AtomicBool>,
    ) -> Result<Self, StartError> {
        let (file, length) = append_to(path).map_err(|error| {
            StartError::new(format!("cannot open log file {}: {error}", path.display()))
        })?;
        Ok(Self {
            path: path.to_owned(),
            file,
            length,
            length_max: options.file_bytes_max,
            kept_max: options.files_kept_max,
            reopen,
        })
    }

    /// Opens the file by its name. If that fails the old one stays: some log beats none.
    fn open_again(&mut self) {
        match append_to(&self.path) {
            Ok((file, length)) => (self.file, self.length) = (file, length),
            Err(error) => {
                let path = self.path.display();
                let _ = writeln!(io::stderr(), "cannot open log file {path} again: {error}");
            }
        }
    }

    fn put_aside(&mut self) {
        let mut aside = self.path.clone().into_os_string();
        aside.push(Local::now().format(".%Y.%m.%d.%H.%M.%S.%f").to_string());
        if fs::rename(&self.path, aside).is_ok() {
            self.open_again();
            self.remove_oldest();
        }
        // A file that cannot be moved grows by as much again before that is tried again.
        self.length = 0;
    }

    fn remove_oldest(&self) {
        let directory = self.path.parent().filter(|path| !path.as_os_str().is_empty());
        let Some(name) = self.path.file_name().filter(|_| self.kept_max > 0) else {
            return;
        };
        let prefix = format!("{}.", name.to_string_lossy());
        let is_aside = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let date = name.strip_prefix(&prefix).unwrap_or_default();
            date.len() > 20 && date.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
        };
        let entries = fs::read_dir(directory.unwrap_or(Path::new(".")));
        let paths = entries.into_iter().flatten().flatten().map(|entry| entry.path());
        let mut aside: Vec<PathBuf> = paths.filter(is_aside).collect();
        aside.sort();
        for path in aside.iter().rev().skip(self.kept_max) {
            // What cannot be removed now is tried again the next time.
            let _ = fs::remove_file(path);
        }
    }
}

impl Write for LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.reopen.swap(false, Ordering::AcqRel) {
            self.open_again();
        }
        if self.length_max > 0 && self.length >= self.length_max {
            self.put_aside();
        }
        let written = self.file.write(line)?;
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn append_to(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    let length = file.metadata()?.len();
    Ok((file, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_file(path: &Path, length_max: u64, kept_max: usize) -> (LogFile, Arc<AtomicBool>) {
        let options = LogOptions {
            file_bytes_max: length_max,
            files_kept_max: kept_max,
            ..LogOptions::default()
        };
        let reopen = Arc::new(AtomicBool::new(false));
        (LogFile::open(path, &options, Arc::clone(&reopen)).unwrap(), reopen)
    }

    #[test]
    fn a_log_file_moved_away_is_created_anew_on_reopen() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("log"), dir.path().join("moved"));
        let (mut log, reopen) = log_file(&path, 0, 0);
        log.write_all(b"one\n").unwrap();
        fs::rename(&path, &moved).unwrap();
        log.write_all(b"two\n").unwrap();
        reopen.store(true, Ordering::Release);
        log.write_all(b"three\n").unwrap();
        assert_eq!(fs::read_to_string(moved).unwrap(), "one\ntwo\n");
        assert_eq!(fs::read_to_string(path).unwrap(), "three\n");
    }

    #[test]
    fn a_log_file_that_has_grown_is_put_aside_and_only_so_many_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (mut log, _) = log_file(&path, 8, 2);
        for line in 0..20 {
            log.write_all(format!("line {line:03}\n").as_bytes()).unwrap();
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "the log and two put aside");
        assert_eq!(fs::read_to_string(path).unwrap(), "line 019\n");
    }

    #[test]
    fn a_log_goes_on_after_a_restart_where_it_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        for line in [b"one\n", b"two\n"] {
            log_file(&path, 0, 0).0.write_all(line).unwrap();
        }
        assert_eq!(fs::read_to_string(path).unwrap(), "one\ntwo\n");
    }
}
