//! Signals: their effect on this process, and sending them to another server.

use std::fs;
use std::path::Path;

use crossbeam_channel::{Receiver, bounded};
use rustix::process::{Pid, Signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use super::listen::lacks_files;
use crate::config::StartError;

/// Signals that wait for the control thread, at most; further ones are merged.
const REQUESTS_MAX: usize = 16;

/// A request made by a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalRequest {
    /// Read the configuration again.
    Reload,
    /// Open the log file again.
    ReopenLog,
    /// Stop accepting, and stop once the clients have gone.
    LameDuck,
    /// Stop now, in any state.
    Quit,
    /// Stop now, unless lame duck mode will do so anyway.
    Terminate,
}

impl SignalRequest {
    /// Returns the signal's name, for the log.
    pub fn signal_name(self) -> &'static str {
        match self {
            Self::Reload => "hangup",
            Self::ReopenLog => "user defined signal 1",
            Self::LameDuck => "user defined signal 2",
            Self::Quit => "interrupt",
            Self::Terminate => "terminated",
        }
    }
}

/// Redirects signals to the receiver, so that they do not end the process.
pub fn listen() -> Result<Receiver<SignalRequest>, StartError> {
    let failed = |error| {
        let remedy = match lacks_files(&error) {
            true => "; raise the limit of open files with `ulimit -n`",
            false => "",
        };
        StartError::new(format!("cannot handle signals: {error}{remedy}"))
    };
    let handled = [SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2];
    let mut signals = Signals::new(handled).map_err(failed)?;
    let (sender, receiver) = bounded(REQUESTS_MAX);
    let forward = move || {
        for signal in signals.forever() {
            let request = match signal {
                SIGHUP => SignalRequest::Reload,
                SIGUSR1 => SignalRequest::ReopenLog,
                SIGUSR2 => SignalRequest::LameDuck,
                SIGINT => SignalRequest::Quit,
                _ => SignalRequest::Terminate,
            };
            if sender.send(request).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(forward).map_err(failed)?;
    Ok(receiver)
}

/// Sends the signal that `--signal` asks for: `command`, `command=pid`, `command=pidfile`, or
/// `command=12*` for all servers whose process ids begin so.
pub fn send(request: &str) -> Result<(), StartError> {
    let (command, to) = match request.split_once('=') {
        Some((command, to)) => (command, Some(to)),
        None => (request, None),
    };
    let signal = match command {
        "stop" => Signal::KILL,
        "quit" => Signal::INT,
        "term" => Signal::TERM,
        "reopen" => Signal::USR1,
        "reload" => Signal::HUP,
        "ldm" => Signal::USR2,
        _ => {
            let reason = format!(
                "unknown signal \"{command}\"; it is one of ldm, stop, quit, term, reopen, reload"
            );
            return Err(StartError::new(reason));
        }
    };
    let pids = match to.map(|to| (to, to.strip_suffix('*'))) {
        Some((_, Some(prefix))) => all_servers(prefix)?,
        Some((to, None)) => vec![pid_of(to)?],
        None => vec![only_server()?],
    };
    for pid in pids {
        rustix::process::kill_process(pid, signal)
            .map_err(|error| StartError::new(format!("signal \"{command}\" to {pid}: {error}")))?;
    }
    Ok(())
}

fn pid_of(text: &str) -> Result<Pid, StartError> {
    let content = fs::read_to_string(text).unwrap_or_else(|_| text.to_owned());
    // Not 0 or a negative number, which would mean whole groups of processes.
    let pid = content.trim().parse().ok().filter(|pid| *pid > 0).and_then(Pid::from_raw);
    pid.ok_or_else(|| {
        let reason = format!("invalid pid \"{text}\"; give a process id or the path of a pid file");
        StartError::new(reason)
    })
}

/// Returns the only other process of this program's name.
fn only_server() -> Result<Pid, StartError> {
    let (name, pids) = servers();
    match pids.as_slice() {
        [pid] => Ok(*pid),
        [] => Err(StartError::new(format!("no {name} processes running"))),
        [first, ..] => {
            let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
            let pids = pids.join(", ");
            let reason = format!(
                "multiple {name} processes running: {pids}; say which one, as in ldm={first}"
            );
            Err(StartError::new(reason))
        }
    }
}

/// Returns the other processes of this program's name whose ids begin with `prefix`.
fn all_servers(prefix: &str) -> Result<Vec<Pid>, StartError> {
    let (name, mut pids) = servers();
    pids.retain(|pid| pid.to_string().starts_with(prefix));
    if pids.is_empty() {
        return Err(StartError::new(format!("no {name} processes running with id {prefix}*")));
    }
    Ok(pids)
}

/// Returns this program's name, and the other processes with that name.
fn servers() -> (String, Vec<Pid>) {
    let name_of = |process: &Path| fs::read_to_string(process.join("comm")).ok();
    let own_name = name_of(Path::new("/proc/self")).unwrap_or_default();
    let own_id = rustix::process::getpid();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<Pid> = processes
        .filter(|process| name_of(&process.path()).as_ref() == Some(&own_name))
        .filter_map(|process| process.file_name().to_str()?.parse().ok())
        .filter_map(Pid::from_raw)
        .filter(|pid| *pid != own_id)
        .collect();
    pids.sort_by_key(|pid| pid.as_raw_nonzero());
    (own_name.trim().to_owned(), pids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_single_processes_can_be_named() {
        for text in ["0", "-1", "-12", "", "x", "/nonexistent", "99999999999"] {
            assert!(pid_of(text).is_err(), "{text}");
        }
        assert_eq!(pid_of("12").unwrap(), Pid::from_raw(12).unwrap());
    }

    #[test]
    fn a_pid_file_stands_for_its_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        fs::write(&path, "34\n").unwrap();
        assert_eq!(pid_of(path.to_str().unwrap()).unwrap(), Pid::from_raw(34).unwrap());
    }

    #[test]
    fn a_star_stands_for_servers_of_this_name_only() {
        // The first process of a machine is no test.
        let error = send("reload=0*").unwrap_err().to_string();
        assert!(error.ends_with("processes running with id 0*"), "{error}");
    }

    #[test]
    fn an_unknown_command_is_refused_before_anybody_gets_a_signal() {
        let error = send("nonsense=1").unwrap_err().to_string();
        assert!(error.contains("one of ldm"), "{error}");
    }
}
