//! The server's process: starting and stopping it, and what it used.

use crate::client::{Access, Target, await_server};
use crate::fault::{Fault, Outcome};
use crate::link::Link;
use crate::wire::Dialect;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a server may take until it answers, and until it is gone.
const START_PATIENCE: Duration = Duration::from_secs(10);
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether it is gone.
const END_LOOK: Duration = Duration::from_millis(5);
/// The unit of /proc/PID/stat on Linux (USER_HZ), in ticks per second.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a scenario needs of the server's command besides its port.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Setup {
    /// What stands for `{shards}`.
    pub(crate) shards: usize,
    /// The text of a configuration file that is added to it.
    pub(crate) config: Option<String>,
    /// What joins it to a second server.
    pub(crate) link: Option<Link>,
    /// The quality of service that is spoken with it over MQTT, if anything is.
    pub(crate) mqtt: Option<u8>,
}

impl Default for Setup {
    fn default() -> Self {
        Self { shards: 1, config: None, link: None, mqtt: None }
    }
}

/// A configuration for this broker and the original: who gives no name may publish and subscribe
/// below `prefix` only, and not everything there.
pub(crate) fn permissions(prefix: &str) -> String {
    let subjects = format!("\"{prefix}.>\", \"{prefix}-churn.>\", \"_INBOX.>\"");
    let rights = format!("{{ allow: [{subjects}], deny: [\"{prefix}.secret.>\"] }}");
    format!(
        "no_auth_user: perf\nauthorization {{ users: [ {{ user: perf, password: perf, \
         permissions: {{ publish: {rights}, subscribe: {rights} }} }} ] }}\n"
    )
}

/// A server that this program started; it ends with this value.
#[derive(Debug)]
pub(crate) struct Started {
    child: Child,
    port: u16,
    monitor: Option<SocketAddr>,
    config: Option<PathBuf>,
    /// Where it speaks MQTT, and with which quality of service.
    mqtt: Option<(u16, u8)>,
    /// What it stores, which goes with it.
    store: Option<PathBuf>,
}

impl Started {
    /// Starts `command` with free ports in place of `{port}`, `{mqtt}` and `{monitor}`, and a
    /// directory of its own in place of `{store}`. Waits for its INFO, or, if `access` begins with
    /// TLS, until it can be connected to.
    pub(crate) fn start(command: &str, access: &Access, setup: &Setup) -> Outcome<Self> {
        if !(command.contains("{port}") || command.contains("{mqtt}")) {
            let cause = format!("the server's command '{command}' has no {{port}}");
            return Err(Fault::new(cause, "write it like 'nats-server -p {port}'"));
        }
        let port = free_port()?;
        let monitor = if command.contains("{monitor}") { Some(free_port()?) } else { None };
        let mqtt = setup.mqtt.map(|qos| Ok((free_port()?, qos))).transpose()?;
        let mut config = setup.config.clone();
        if let (Some((mqtt, _)), false) = (mqtt, command.contains("{mqtt}")) {
            let listen = format!("server_name: perf\nmqtt {{ listen: \"127.0.0.1:{mqtt}\" }}\n");
            config = Some(config.unwrap_or_default() + &listen);
        }
        let config = config.as_deref().map(|text| write_config(port, text)).transpose()?;
        let store = command.contains("{store}").then(|| make_store(port)).transpose()?;
        let filled = command
            .replace("{port}", &port.to_string())
            .replace("{mqtt}", &mqtt.map_or(0, |(mqtt, _)| mqtt).to_string())
            .replace("{monitor}", &monitor.unwrap_or(0).to_string())
            .replace("{store}", &store.as_deref().map_or("".into(), Path::to_string_lossy))
            .replace("{shards}", &setup.shards.to_string());
        let mut words = split_words(&filled);
        if let Some(config) = &config {
            words.extend(["-c".to_owned(), config.display().to_string()]);
        }
        let (program, arguments) = words
            .split_first()
            .ok_or_else(|| Fault::new("the server's command is empty", "name a program"))?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0) // Ctrl-C is for this program, which then stops the server.
            .spawn()
            .map_err(|e| {
                Fault::new(format!("cannot start '{program}' ({e})"), "build it or fix its path")
            })?;
        let monitor = monitor.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let mut started = Self { child, port, monitor, config, mqtt, store };
        let nats = command.contains("{port}").then(|| Target::local(port, access.clone()));
        let spoken = mqtt.map(|_| started.target(access));
        for target in nats.into_iter().chain(spoken) {
            await_server(&target, START_PATIENCE, || started.check()).map_err(|f| f.at(command))?;
        }
        Ok(started)
    }

    /// How clients reach it.
    pub(crate) fn target(&self, access: &Access) -> Target {
        let (port, dialect) = match self.mqtt {
            None => (self.port, Dialect::Nats),
            Some((port, qos)) => (port, Dialect::Mqtt(qos)),
        };
        Target::local_of(dialect, port, access.clone())
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The port it listens on.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Where its monitoring listens, if its command has `{monitor}`.
    pub(crate) fn monitor(&self) -> Option<SocketAddr> {
        self.monitor
    }

    /// Tells it to send its clients away and to end.
    pub(crate) fn make_lame_duck(&self) {
        self.signal(Signal::USR2);
    }

    /// Has it read a configuration of this text, in place of the one it was started with.
    pub(crate) fn reload(&self, config: &str) -> Outcome<()> {
        write_config(self.port, config)?;
        self.signal(Signal::HUP);
        Ok(())
    }

    /// Waits until it has ended by itself.
    pub(crate) fn await_end(&mut self, patience: Duration) -> Outcome<()> {
        let began = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if began.elapsed() > patience {
                let cause = format!("the server has not ended within {patience:?}");
                return Err(Fault::new(cause, "look into its log"));
            }
            std::thread::sleep(END_LOOK);
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may have died; then there is nobody to tell.
            let _ = kill_process(pid, signal);
        }
    }

    fn check(&mut self) -> Outcome<()> {
        match self.child.try_wait() {
            Ok(Some(status)) => Err(Fault::new(
                format!("the server ended at once ({status})"),
                "try its command by hand, with a port for {port}",
            )),
            _ => Ok(()),
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(config) = &self.config {
            // It may have been removed by somebody else, which is all that was wanted.
            let _ = fs::remove_file(config);
        }
        self.signal(Signal::TERM);
        if self.await_end(STOP_PATIENCE).is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if let Some(store) = &self.store {
            // What cannot be removed lies in the directory for such things.
            let _ = fs::remove_dir_all(store);
        }
    }
}

fn write_config(port: u16, text: &str) -> Outcome<PathBuf> {
    let name = format!("shardcast-perf-{}-{port}.conf", std::process::id());
    let path = std::env::temp_dir().join(name);
    let cause = |e| format!("the server's configuration cannot be written ({e})");
    fs::write(&path, text).map_err(|e| Fault::new(cause(e), "make room, or set TMPDIR"))?;
    Ok(path)
}

/// A new directory on a disk.
fn make_store(port: u16) -> Outcome<PathBuf> {
    let root = std::env::temp_dir();
    let remedy = "set TMPDIR to a directory on a disk";
    if file_system(&root).is_some_and(|name| name.starts_with("tmpfs")) {
        return Err(Fault::new(format!("{} is no disk, but memory", root.display()), remedy));
    }
    let path = root.join(format!("shardcast-perf-{}-{port}.store", std::process::id()));
    let cause = |e| format!("no directory for what the server stores ({e})");
    fs::create_dir(&path).map_err(|e| Fault::new(cause(e), remedy))?;
    Ok(path)
}

/// The file system in which servers have their `{store}`, and its device.
pub(crate) fn store_file_system() -> Option<String> {
    file_system(&std::env::temp_dir())
}

fn file_system(path: &Path) -> Option<String> {
    let path = fs::canonicalize(path).ok()?;
    file_system_of(&fs::read_to_string("/proc/self/mounts").ok()?, &path)
}

/// The file system that holds `path`, by the text of /proc/self/mounts.
fn file_system_of(mounts: &str, path: &Path) -> Option<String> {
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ');
        Some((words.next()?, Path::new(words.next()?), words.next()?))
    });
    let holding = mounts.filter(|(_, place, _)| path.starts_with(place));
    // Of two at the same place the later one hides the other.
    let (device, _, kind) = holding.max_by_key(|(_, place, _)| place.components().count())?;
    Some(format!("{kind} on {device}"))
}

/// A port for a server, below those that connections get from the kernel: one of those could be
/// taken before the server listens.
pub(crate) fn free_port() -> Outcome<u16> {
    const FIRST: u32 = 12_000;
    const COUNT: u32 = 18_000;
    /// More than one program needs: each has a part of its own, for what it has found free it does
    /// not hold until its server listens.
    const PART: u32 = 16;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..COUNT {
        let part = std::process::id().wrapping_mul(PART);
        let at = part.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(FIRST + at % COUNT).unwrap_or(u16::MAX);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err(Fault::new("no port from 12000 to 29999 is free", "close other programs"))
}

/// Splits a command as a shell would, quotes included, without expanding anything.
fn split_words(command: &str) -> Vec<String> {
    let (mut words, mut word, mut open) = (Vec::new(), String::new(), None);
    let mut started = false;
    for c in command.chars() {
        match (open, c) {
            (Some(quote), c) if c == quote => open = None,
            (None, '\'' | '"') => (open, started) = (Some(c), true),
            (None, c) if c.is_whitespace() => {
                if started {
                    words.push(std::mem::take(&mut word));
                }
                started = false;
            }
            (_, c) => {
                word.push(c);
                started = true;
            }
        }
    }
    if started {
        words.push(word);
    }
    words
}

/// What a process and its children have used since they started.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub(crate) struct Usage {
    /// Seconds of CPU outside of the kernel.
    pub(crate) user_s: f64,
    /// Seconds of CPU in the kernel.
    pub(crate) system_s: f64,
    /// Times a thread gave up its CPU by itself, and times it was taken away.
    pub(crate) switches_voluntary: u64,
    /// See `switches_voluntary`.
    pub(crate) switches_forced: u64,
    /// Resident memory now, in bytes (not a difference).
    pub(crate) rss_bytes: u64,
}

impl Usage {
    /// Reads what `pid` and its descendants have used; nothing when there is no such process.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let mut usage = Self::default();
        usage.add_process(pid)?;
        for child in children(pid) {
            usage.add_tree(child);
        }
        Some(usage)
    }

    /// What all of these have used; nothing of none, or when one is missing.
    pub(crate) fn of_all(pids: &[u32]) -> Option<Self> {
        let usages: Option<Vec<Self>> = pids.iter().map(|pid| Self::of(*pid)).collect();
        usages?.into_iter().reduce(|sum, usage| Self {
            user_s: sum.user_s + usage.user_s,
            system_s: sum.system_s + usage.system_s,
            switches_voluntary: sum.switches_voluntary + usage.switches_voluntary,
            switches_forced: sum.switches_forced + usage.switches_forced,
            rss_bytes: sum.rss_bytes + usage.rss_bytes,
        })
    }

    /// This program's own usage.
    pub(crate) fn of_self() -> Self {
        let mut usage = Self::default();
        // Without /proc all figures stay zero, and the CPU is reported as unknown.
        let _ = usage.add_process(std::process::id());
        usage
    }

    fn add_tree(&mut self, pid: u32) {
        if self.add_process(pid).is_some() {
            for child in children(pid) {
                self.add_tree(child);
            }
        }
    }

    fn add_process(&mut self, pid: u32) -> Option<()> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (user_s, system_s) = cpu_seconds(&stat)?;
        self.user_s += user_s;
        self.system_s += system_s;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        self.rss_bytes += field(&status, "VmRSS:") * 1024;
        for task in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
            // A thread may end while its neighbours are read.
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            self.switches_voluntary += field(&status, "voluntary_ctxt_switches:");
            self.switches_forced += field(&status, "nonvoluntary_ctxt_switches:");
        }
        Some(())
    }

    /// What was used since `before`; memory is as it is now.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            user_s: self.user_s - before.user_s,
            system_s: self.system_s - before.system_s,
            switches_voluntary: self.switches_voluntary.saturating_sub(before.switches_voluntary),
            switches_forced: self.switches_forced.saturating_sub(before.switches_forced),
            rss_bytes: self.rss_bytes,
        }
    }

    /// Seconds of CPU, in and out of the kernel.
    pub(crate) fn cpu_s(self) -> f64 {
        self.user_s + self.system_s
    }
}

fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// User and system seconds from the text of /proc/PID/stat, whose second field may hold blanks.
fn cpu_seconds(stat: &str) -> Option<(f64, f64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user / TICKS_PER_SECOND, system / TICKS_PER_SECOND))
}

fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_split_as_a_shell_does() {
        assert_eq!(split_words("a -c 'b c' \"\" d"), ["a", "-c", "b c", "", "d"]);
        assert_eq!(split_words("  "), Vec::<String>::new());
    }

    #[test]
    fn cpu_time_is_found_behind_a_name_with_blanks_and_parentheses() {
        let stat = "7 (a b) c) S 1 2 3 4 5 6 7 8 9 10 150 250 0 0 20 0 1 0";
        assert_eq!(cpu_seconds(stat), Some((1.5, 2.5)));
    }

    #[test]
    fn fields_of_status_are_not_mixed_up() {
        let status = "VmRSS:\t  12 kB\nvoluntary_ctxt_switches:\t3\nnonvoluntary_ctxt_switches:\t4";
        assert_eq!(field(status, "VmRSS:"), 12);
        assert_eq!(field(status, "voluntary_ctxt_switches:"), 3);
        assert_eq!(field(status, "nonvoluntary_ctxt_switches:"), 4);
    }

    #[test]
    fn the_file_system_of_a_path_is_the_nearest_that_was_mounted_last() {
        let mounts = "/dev/vda / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/b /tmp xfs rw 0 0\n";
        let of = |path| file_system_of(mounts, Path::new(path));
        assert_eq!(of("/tmp/a").as_deref(), Some("xfs on /dev/b"));
        assert_eq!(of("/tmpa").as_deref(), Some("ext4 on /dev/vda"));
    }

    #[test]
    fn a_command_without_a_port_is_refused() {
        let fault =
            Started::start("nats-server", &Access::none().unwrap(), &Setup::default()).unwrap_err();
        assert!(fault.to_string().contains("{port}"), "{fault}");
    }
}
