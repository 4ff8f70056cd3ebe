//! `--bundle`: what a report of a fault needs, in one archive, without secrets.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use chrono::Utc;
use flate2::Compression;
use flate2::write::GzEncoder;

use super::secrets::{hidden_in_config, hidden_in_text, hidden_in_words};
use super::{DoctorReport, pages};
use crate::config::args::{self, Command};
use crate::config::{Options, load};
use crate::host::Tree;

/// Bytes of the end of a log.
const LOG_BYTES: u64 = 512 * 1024;
/// Bytes of a file of the host, at most.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Files of the host that say what the broker runs on.
const HOST_FILES: &[&str] = &[
    "proc/version",
    "proc/cpuinfo",
    "proc/meminfo",
    "proc/loadavg",
    "proc/mounts",
    "proc/interrupts",
    "proc/net/dev",
    "proc/net/softnet_stat",
    "proc/net/snmp",
    "proc/net/netstat",
    "proc/pressure/cpu",
    "proc/pressure/io",
    "proc/pressure/memory",
    "sys/devices/system/cpu/online",
    "sys/devices/system/node/online",
    "etc/os-release",
];
/// Files of the broker's process.
const PROCESS_FILES: &[&str] =
    &["status", "limits", "cgroup", "io", "smaps_rollup", "schedstat", "numa_maps"];

/// A file of the archive.
type Part = (String, String);

/// The broker that the archive is about.
#[derive(Debug, Default)]
pub(super) struct Broker {
    pid: Option<u32>,
    config: Option<PathBuf>,
    options: Option<Options>,
    /// Why there are no options.
    unread: Option<String>,
}

impl Broker {
    /// Finds out about a broker by its process, by its configuration file, or not at all.
    pub(super) fn find(pid: Option<u32>, config: Option<&Path>) -> Self {
        let words: Vec<String> = match (config, pid) {
            (Some(path), _) => vec!["-c".to_owned(), path.display().to_string()],
            (None, Some(id)) => command_line(id).into_iter().skip(1).collect(),
            (None, None) => return Self::default(),
        };
        let mut broker = Self { pid, ..Self::default() };
        let Ok(Command::Serve(mut args)) = args::parse(words) else {
            broker.unread = Some("its command line is not that of a server".to_owned());
            return broker;
        };
        if let (Some(id), Some(path), None) = (pid, args.config.as_mut(), config) {
            *path = seen_by(id, path);
        }
        broker.config = args.config.clone();
        match load(&args) {
            Ok(options) => broker.options = Some(options),
            Err(error) => broker.unread = Some(error.to_string()),
        }
        broker
    }

    /// Returns all files of the archive. What is not to be had says so in its place.
    pub(super) fn parts(&self, report: &DoctorReport, monitoring: Option<&str>) -> Vec<Part> {
        let version = format!(
            "shardcast {} ({}), {}\n",
            crate::VERSION,
            crate::GIT_COMMIT,
            Utc::now().format("%Y-%m-%dT%H:%M:%SZ"),
        );
        let mut parts = vec![
            ("version.txt".to_owned(), version),
            ("doctor.txt".to_owned(), report.table()),
            ("doctor.json".to_owned(), report.json()),
        ];
        for file in HOST_FILES {
            parts.push((format!("host/{}", file.replace('/', "-")), host_file(file)));
        }
        parts.extend(self.process());
        parts.extend(self.configuration());
        match monitoring.map(str::to_owned).or_else(|| self.monitoring()) {
            Some(base) => {
                for (page, text) in pages::ask(&base) {
                    let name = page.split('?').next().unwrap_or(page);
                    let kind = if page.contains("closed") { "-closed" } else { "" };
                    let text = text.unwrap_or_else(|error| format!("not to be had: {error}\n"));
                    parts.push((format!("pages/{name}{kind}"), hidden_in_text(&text)));
                }
            }
            None => {
                let text = "not asked; name the monitoring with --monitoring http://HOST:PORT\n";
                parts.push(("pages/none.txt".to_owned(), text.to_owned()));
            }
        }
        if let Some(path) = self.options.as_ref().and_then(|options| options.log.file.as_ref()) {
            let path = self.pid.map_or_else(|| path.clone(), |id| seen_by(id, path));
            let text = end_of(&path).unwrap_or_else(|error| format!("{error}\n"));
            parts.push(("log.txt".to_owned(), hidden_in_text(&text)));
        }
        parts
    }

    fn process(&self) -> Vec<Part> {
        let Some(id) = self.pid else { return Vec::new() };
        let words = hidden_in_words(&command_line(id)).join(" ");
        let mut parts = vec![("process/cmdline".to_owned(), words + "\n")];
        for file in PROCESS_FILES {
            parts.push((format!("process/{file}"), host_file(&format!("proc/{id}/{file}"))));
        }
        let tree = Tree::default().of_process(id);
        let mut threads = String::new();
        for thread in tree.names("proc/self/task", "") {
            let file = |name: &str| tree.text(format!("proc/self/task/{thread}/{name}"));
            let (stat, sched) = (file("stat").unwrap_or_default(), file("schedstat"));
            threads += &format!("{stat} | schedstat {}\n", sched.unwrap_or_default());
        }
        parts.push(("process/threads".to_owned(), threads));
        parts
    }

    fn configuration(&self) -> Vec<Part> {
        let mut parts = Vec::new();
        if let Some(path) = &self.config {
            let text = fs::read_to_string(path).unwrap_or_else(|error| format!("# {error}\n"));
            parts.push(("config.conf".to_owned(), hidden_in_config(&text)));
        }
        if let Some(options) = &self.options {
            let notes = &options.notes;
            let notes = notes.warnings.iter().chain(&notes.missing).chain(&notes.absent);
            let text: String = notes.map(|note| format!("{note}\n")).collect();
            parts.push(("config-notes.txt".to_owned(), hidden_in_text(&text)));
        }
        if let Some(reason) = &self.unread {
            parts.push(("config-errors.txt".to_owned(), hidden_in_text(reason) + "\n"));
        }
        parts
    }

    /// The address of the monitoring, if it is known and without TLS.
    fn monitoring(&self) -> Option<String> {
        let options = self.options.as_ref()?;
        let http = options.monitoring.http.as_ref().filter(|http| http.port != 0)?;
        let host = match options.monitoring.host(&options.network.host) {
            "0.0.0.0" | "::" => "127.0.0.1".to_owned(),
            host if host.contains(':') => format!("[{host}]"),
            host => host.to_owned(),
        };
        let base = options.monitoring.base_path.trim_matches('/');
        (!options.monitoring.is_tls()).then(|| format!("http://{host}:{}/{base}", http.port))
    }
}

/// Returns a path as a process sees it.
fn seen_by(id: u32, path: &Path) -> PathBuf {
    match path.strip_prefix("/") {
        Ok(path) => PathBuf::from(format!("/proc/{id}/root")).join(path),
        Err(_) => PathBuf::from(format!("/proc/{id}/cwd")).join(path),
    }
}

fn command_line(id: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    text.split_terminator('\0').map(str::to_owned).collect()
}

fn host_file(file: &str) -> String {
    let mut bytes = Vec::new();
    let read = File::open(Path::new("/").join(file))
        .and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes));
    match read {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => format!("{error}\n"),
    }
}

/// Returns the last lines of a file.
fn end_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(LOG_BYTES);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(LOG_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let whole = if start == 0 { 0 } else { text.find('\n').map_or(0, |end| end + 1) };
    Ok(text[whole..].to_owned())
}

/// Writes the archive, which its owner alone can read. A file that exists is left alone.
pub(super) fn write(path: &Path, parts: &[Part]) -> io::Result<()> {
    let file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    for (name, text) in parts {
        let mut head = tar::Header::new_gnu();
        head.set_size(text.len() as u64);
        head.set_mode(0o600);
        head.set_mtime(u64::try_from(Utc::now().timestamp()).unwrap_or(0));
        archive.append_data(&mut head, format!("shardcast-bundle/{name}"), text.as_bytes())?;
    }
    archive.into_inner()?.finish()?.sync_all()
}
