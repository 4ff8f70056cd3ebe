//! The log, in nats-server's line format or as JSON.
//!
//! A thread that logs never waits for a disk or a terminal: entries go through a queue, bounded in
//! lines and bytes, to a thread that writes them. Entries that do not fit are dropped and counted,
//! and the log reports the number once there is room again.

use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use chrono::{DateTime, Local, SecondsFormat, Utc};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use serde_json::json;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};

use super::log_file::LogFile;
use super::syslog::SyslogWriter;
use crate::config::{LogFormat, LogOptions, StartError};

/// Lines that may wait for the disk or terminal, at most.
const WAITING_LINES_MAX: usize = 64 * 1024;
/// Bytes of waiting text, at most: traces can show whole payloads.
const WAITING_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The time that the end of the process waits for the disk or terminal to take waiting lines.
const END_MAX: Duration = Duration::from_secs(2);
/// The target of errors that end the process; tracing has no level for them.
pub const FATAL: &str = "fatal";

/// The running log. Writes waiting lines when dropped.
#[derive(Debug)]
pub struct Log {
    shared: Arc<LogState>,
    queue: Sender<Item>,
    orders: Sender<LogOrder>,
    /// A channel that is disconnected when the writing thread has ended.
    ended: Receiver<()>,
    options: LogOptions,
}

/// State shared by the threads that log and the thread that writes.
#[derive(Debug, Default)]
struct LogState {
    debug: AtomicBool,
    trace: AtomicBool,
    waiting_bytes: AtomicUsize,
    dropped_lines: AtomicU64,
}

/// An item of the queue.
#[derive(Debug)]
enum Item {
    Entry(LogEntry),
    /// The end of the queue.
    End,
}

/// An entry of the log.
#[derive(Debug)]
pub(super) struct LogEntry {
    pub(super) at: DateTime<Utc>,
    pub(super) severity: Severity,
    pub(super) text: String,
}

/// An order to the writing thread, carried out before the next line.
#[derive(Debug)]
enum LogOrder {
    /// An order to open the file again by its name.
    Reopen,
    /// An order to change the form of lines, and the destination if it is another.
    Change(Box<LogOptions>, Option<Sink>),
}

/// The levels of nats-server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Severity {
    Fatal,
    Error,
    Warning,
    Info,
    Debug,
    Trace,
}

impl Log {
    /// Starts logging for the whole process; works once.
    pub fn start(options: &LogOptions) -> Result<Self, StartError> {
        let sink = Sink::open(options)?;
        let shared = Arc::new(LogState::default());
        let (queue, waiting) = bounded(WAITING_LINES_MAX);
        // The number of orders is bounded by reloads: a line follows each order, and the order is
        // carried out before it.
        let (orders, ordered) = unbounded();
        let (alive, ended) = bounded(0);
        let writer = Writer {
            waiting,
            orders: ordered,
            shared: Arc::clone(&shared),
            sink,
            options: options.clone(),
            told_lines: 0,
            _alive: alive,
        };
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || writer.run())
            .map_err(|error| StartError::new(format!("cannot start a thread to log: {error}")))?;
        shared.set_levels(options);
        let lines = Lines { shared: Arc::clone(&shared), queue: queue.clone() };
        tracing::subscriber::set_global_default(tracing_subscriber::registry().with(lines))
            .map_err(|_| StartError::new("the log is running already; start it once"))?;
        Ok(Self { shared, queue, orders, ended, options: options.clone() })
    }

    /// Orders that the log file is closed, and opened again by its name, before the next line.
    pub fn reopen(&self) {
        self.order(LogOrder::Reopen);
    }

    /// Puts new options in force from the next line on.
    ///
    /// # Errors
    ///
    /// Fails if a new destination cannot be opened; then nothing has changed.
    pub fn reload(&mut self, options: &LogOptions) -> Result<(), StartError> {
        if *options == self.options {
            return Ok(());
        }
        let moved = (&options.file, &options.syslog) != (&self.options.file, &self.options.syslog);
        let sink = moved.then(|| Sink::open(options)).transpose()?;
        self.order(LogOrder::Change(Box::new(options.clone()), sink));
        self.shared.set_levels(options);
        self.options = options.clone();
        Ok(())
    }

    /// Returns the number of lines dropped so far because too many waited.
    pub fn dropped_lines(&self) -> u64 {
        self.shared.dropped_lines.load(Ordering::Relaxed)
    }

    fn order(&self, order: LogOrder) {
        // Without the thread nothing can be logged, not even this failure.
        let _ = self.orders.send(order);
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if self.queue.send_timeout(Item::End, END_MAX).is_ok() {
            // No value is ever sent: the wait ends with the thread, or after `END_MAX`.
            let _ = self.ended.recv_timeout(END_MAX);
        }
    }
}

impl LogState {
    fn set_levels(&self, options: &LogOptions) {
        self.debug.store(options.debug, Ordering::Relaxed);
        self.trace.store(options.trace, Ordering::Relaxed);
        // Each place that logs caches whether its line is wanted.
        tracing::callsite::rebuild_interest_cache();
    }
}

/// A layer that turns events into entries of the queue.
struct Lines {
    shared: Arc<LogState>,
    queue: Sender<Item>,
}

impl Lines {
    fn push(&self, entry: LogEntry) {
        let (shared, bytes) = (&self.shared, entry.text.len());
        let fits = shared.waiting_bytes.fetch_add(bytes, Ordering::Relaxed) < WAITING_BYTES_MAX;
        if !fits || self.queue.try_send(Item::Entry(entry)).is_err() {
            shared.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            shared.dropped_lines.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        match *metadata.level() {
            Level::DEBUG => self.shared.debug.load(Ordering::Relaxed),
            Level::TRACE => self.shared.trace.load(Ordering::Relaxed),
            _ => true,
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let debug = self.shared.debug.load(Ordering::Relaxed);
        Some(match (debug, self.shared.trace.load(Ordering::Relaxed)) {
            (_, true) => LevelFilter::TRACE,
            (true, false) => LevelFilter::DEBUG,
            (false, false) => LevelFilter::INFO,
        })
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = EventText(String::new());
        event.record(&mut text);
        let severity = Severity::of(event.metadata());
        self.push(LogEntry { at: Utc::now(), severity, text: text.0 });
    }
}

impl Severity {
    fn of(metadata: &Metadata<'_>) -> Self {
        match *metadata.level() {
            Level::ERROR if metadata.target() == FATAL => Self::Fatal,
            Level::ERROR => Self::Error,
            Level::WARN => Self::Warning,
            Level::INFO => Self::Info,
            Level::DEBUG => Self::Debug,
            Level::TRACE => Self::Trace,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Fatal => "FTL",
            Self::Error => "ERR",
            Self::Warning => "WRN",
            Self::Info => "INF",
            Self::Debug => "DBG",
            Self::Trace => "TRC",
        }
    }
}

/// An event's message and fields, as one line whatever control characters clients put into them.
struct EventText(String);

impl Visit for EventText {
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

/// State of the writing thread.
struct Writer {
    waiting: Receiver<Item>,
    orders: Receiver<LogOrder>,
    shared: Arc<LogState>,
    sink: Sink,
    options: LogOptions,
    /// Dropped lines that the log has reported.
    told_lines: u64,
    _alive: Sender<()>,
}

impl Writer {
    fn run(mut self) {
        while let Ok(item) = self.waiting.recv() {
            while let Ok(order) = self.orders.try_recv() {
                self.obey(order);
            }
            if let Item::Entry(entry) = &item {
                self.shared.waiting_bytes.fetch_sub(entry.text.len(), Ordering::Relaxed);
                self.write(entry);
            }
            self.tell_of_dropped();
            if matches!(item, Item::End) {
                return;
            }
        }
    }

    fn obey(&mut self, order: LogOrder) {
        match order {
            LogOrder::Reopen => {
                if let Sink::File(file) = &mut self.sink {
                    file.open_again();
                }
            }
            LogOrder::Change(options, sink) => {
                self.options = *options;
                if let Some(sink) = sink {
                    self.sink = sink;
                }
            }
        }
    }

    fn tell_of_dropped(&mut self) {
        let dropped = self.shared.dropped_lines.load(Ordering::Relaxed);
        if dropped > self.told_lines {
            let count = dropped - std::mem::replace(&mut self.told_lines, dropped);
            let text = format!("{count} log lines dropped: the queue of the log was full");
            self.write(&LogEntry { at: Utc::now(), severity: Severity::Warning, text });
        }
    }

    /// Writes an entry. A failure is ignored, because it could not be reported.
    fn write(&mut self, entry: &LogEntry) {
        if let Sink::File(file) = &mut self.sink {
            for text in file.put_aside_if_grown(&self.options) {
                let entry = LogEntry { at: Utc::now(), severity: Severity::Info, text };
                let _ = file.write(&line(&entry, &self.options));
            }
        }
        let line = || line(entry, &self.options);
        let _ = match &mut self.sink {
            Sink::Stderr => io::stderr().write_all(line().as_bytes()),
            Sink::File(file) => file.write(&line()),
            Sink::Syslog(syslog) => syslog.write(entry),
        };
    }
}

/// The destination of lines.
#[derive(Debug)]
enum Sink {
    Stderr,
    File(LogFile),
    Syslog(SyslogWriter),
}

impl Sink {
    /// Opens the destination; as in nats-server, a file takes precedence over the system log.
    fn open(options: &LogOptions) -> Result<Self, StartError> {
        match (&options.file, &options.syslog) {
            (Some(path), _) => LogFile::open(path).map(Self::File),
            (None, Some(to)) => SyslogWriter::open(to).map(Self::Syslog),
            (None, None) => Ok(Self::Stderr),
        }
    }
}

fn line(entry: &LogEntry, options: &LogOptions) -> String {
    const TIME: &str = "%Y/%m/%d %H:%M:%S%.6f";
    let (pid, severity, text) = (std::process::id(), entry.severity.label(), &entry.text);
    if options.format == LogFormat::Json {
        let time = entry.at.to_rfc3339_opts(SecondsFormat::Micros, true);
        let line = json!({ "time": time, "pid": pid, "level": severity, "message": text });
        return format!("{line}\n");
    }
    let time = match (options.timestamps, options.utc) {
        (false, _) => String::new(),
        (true, true) => format!("{} ", entry.at.format(TIME)),
        (true, false) => format!("{} ", entry.at.with_timezone(&Local).format(TIME)),
    };
    format!("[{pid}] {time}[{severity}] {text}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(text: &str) -> LogEntry {
        let at = DateTime::from_timestamp_micros(1_700_000_000_123_456).unwrap();
        LogEntry { at, severity: Severity::Warning, text: text.to_owned() }
    }

    fn lines(shared: &Arc<LogState>, lines_max: usize) -> (Lines, Receiver<Item>) {
        let (queue, waiting) = bounded(lines_max);
        (Lines { shared: Arc::clone(shared), queue }, waiting)
    }

    #[test]
    fn lines_are_nats_servers_or_json() {
        let pid = std::process::id();
        let mut options = LogOptions { utc: true, ..LogOptions::default() };
        let text = line(&entry("a \"b\""), &options);
        assert_eq!(text, format!("[{pid}] 2023/11/14 22:13:20.123456 [WRN] a \"b\"\n"));
        options.timestamps = false;
        assert_eq!(line(&entry("a"), &options), format!("[{pid}] [WRN] a\n"));
        options.format = LogFormat::Json;
        let json: serde_json::Value =
            serde_json::from_str(&line(&entry("a \"b\""), &options)).unwrap();
        let time = "2023-11-14T22:13:20.123456Z";
        let wanted = json!({"time": time, "pid": pid, "level": "WRN", "message": "a \"b\""});
        assert_eq!(json, wanted);
    }

    #[test]
    fn what_does_not_fit_the_queue_is_dropped_and_counted() {
        let shared = Arc::new(LogState::default());
        let (lines, waiting) = lines(&shared, 2);
        (0..5).for_each(|_| lines.push(entry("a")));
        assert_eq!(waiting.len(), 2);
        assert_eq!(shared.dropped_lines.load(Ordering::Relaxed), 3);
        assert_eq!(shared.waiting_bytes.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn lines_that_are_too_long_together_are_dropped_however_few() {
        let shared = Arc::new(LogState::default());
        let (lines, waiting) = lines(&shared, 100);
        let long = "x".repeat(WAITING_BYTES_MAX);
        lines.push(entry(&long));
        lines.push(entry("a"));
        assert_eq!(waiting.len(), 1);
        assert_eq!(shared.dropped_lines.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn the_log_tells_of_a_gap_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let shared = Arc::new(LogState::default());
        let (lines, waiting) = lines(&shared, 2);
        (0..5).for_each(|_| lines.push(entry("a")));
        waiting.try_recv().unwrap();
        lines.queue.send(Item::End).unwrap();
        // The test sends no orders.
        let (_orders, ordered) = unbounded();
        let options = LogOptions { file: Some(path.clone()), ..LogOptions::default() };
        Writer {
            waiting,
            orders: ordered,
            shared,
            sink: Sink::open(&options).unwrap(),
            options,
            told_lines: 0,
            _alive: bounded(0).0,
        }
        .run();
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(text.matches(" 3 log lines dropped").count(), 1, "{text}");
    }
}
