//! Options of the log: its content, its destination, and the form of its lines.

use std::path::PathBuf;
use std::str::FromStr;

use super::Options;
use super::field::Action::Set;
use super::field::Key;

/// Content, destination and form of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogOptions {
    /// The log file (none: standard error).
    pub file: Option<PathBuf>,
    /// Bytes after which the log file is renamed and a new one begun; 0: never (0).
    pub file_bytes_max: u64,
    /// Log files to keep, the current one included; 0: all (0).
    pub files_max: usize,
    /// The system log to write to if `file` is not set (none).
    pub syslog: Option<Syslog>,
    /// The form of a line (`text`).
    pub format: LogFormat,
    /// Date and time before each line (true).
    pub timestamps: bool,
    /// Date and time in UTC instead of local time (false).
    pub utc: bool,
    /// Log events of connections (false).
    pub debug: bool,
    /// Log every operation (false).
    pub trace: bool,
    /// Log operations of the system account, too (false).
    pub trace_verbose: bool,
    /// Log only the headers of traced messages (false).
    pub trace_headers: bool,
    /// Bytes of a traced payload to log, at most; 0: all (0).
    pub traced_message_bytes_max: usize,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            file: None,
            file_bytes_max: 0,
            files_max: 0,
            syslog: None,
            format: LogFormat::Text,
            timestamps: true,
            utc: false,
            debug: false,
            trace: false,
            trace_verbose: false,
            trace_headers: false,
            traced_message_bytes_max: 0,
        }
    }
}

/// The destination of system log messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Syslog {
    /// The system log of this host.
    Local,
    /// A system log at `host:port`, over UDP.
    Udp(String),
    /// A system log at `host:port`, over TCP.
    Tcp(String),
}

impl FromStr for Syslog {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, String> {
        match url.split_once("://") {
            Some(("udp", address)) if address.contains(':') => Ok(Self::Udp(address.to_owned())),
            Some(("tcp", address)) if address.contains(':') => Ok(Self::Tcp(address.to_owned())),
            _ => Err("expected udp://host:port or tcp://host:port".to_owned()),
        }
    }
}

/// The form of a log line; a system log has its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// A line of text, as nats-server writes it.
    Text,
    /// A JSON object with `time` (UTC), `pid`, `level` and `message`.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("expected text or json".to_owned()),
        }
    }
}

pub(super) const KEYS: &[Key<Options>] = &[
    Key(&["log_file", "logfile"], Set(|o, v| v.text().map(|f| o.log.file = Some(f.into())))),
    Key(
        &["log_size_limit", "logfile_size_limit"],
        Set(|o, v| v.limit().map(|n| o.log.file_bytes_max = n.unwrap_or(0) as u64)),
    ),
    Key(
        &["log_max_num", "logfile_max_num"],
        Set(|o, v| v.limit().map(|n| o.log.files_max = n.unwrap_or(0))),
    ),
    Key(
        &["syslog"],
        Set(|o, v| {
            let local = v.boolean()?.then_some(Syslog::Local);
            // The remote log takes precedence, wherever its key stands.
            let remote = o.log.syslog.take().filter(|to| *to != Syslog::Local);
            o.log.syslog = remote.or(local);
            Ok(())
        }),
    ),
    Key(
        &["remote_syslog"],
        Set(|o, v| {
            let url = v.text()?;
            if !url.is_empty() {
                o.log.syslog = Some(url.parse().map_err(|reason: String| v.error(reason))?);
            }
            Ok(())
        }),
    ),
    Key(
        &["log_format"],
        Set(|o, v| {
            o.log.format = v.text()?.parse().map_err(|reason: String| v.error(reason))?;
            Ok(())
        }),
    ),
    Key(&["logtime"], Set(|o, v| v.boolean().map(|on| o.log.timestamps = on))),
    Key(&["logtime_utc"], Set(|o, v| v.boolean().map(|on| o.log.utc = on))),
    Key(&["debug"], Set(|o, v| v.boolean().map(|on| o.log.debug = on))),
    Key(&["trace"], Set(|o, v| v.boolean().map(|on| o.log.trace = on))),
    Key(
        &["trace_verbose"],
        Set(|o, v| {
            o.log.trace_verbose = v.boolean()?;
            o.log.trace |= o.log.trace_verbose;
            Ok(())
        }),
    ),
    Key(
        &["trace_headers"],
        Set(|o, v| {
            o.log.trace_headers = v.boolean()?;
            o.log.trace |= o.log.trace_headers;
            Ok(())
        }),
    ),
    Key(
        &["max_traced_msg_len"],
        Set(|o, v| v.limit().map(|n| o.log.traced_message_bytes_max = n.unwrap_or(0))),
    ),
];
