//! The log in a system log, on this host or another.
//!
//! A message is `<priority>time host program[pid]: text` as nats-server sends it; on this host the
//! old form without the host, whose time has no year.

use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use chrono::{Local, SecondsFormat};

use super::log::{LogEntry, Severity};
use crate::config::{StartError, Syslog};

/// The socket of the system log on this host.
const LOCAL_SOCKET: &str = "/dev/log";
/// The part of a priority that names the source of a message: system daemons.
const FACILITY: u8 = 3 << 3;
/// The time that the other end has to accept a connection, or a message.
const PATIENCE: Duration = Duration::from_secs(1);

/// A connection to the system log; connected anew after an error.
#[derive(Debug)]
pub(super) struct SyslogWriter {
    to: Syslog,
    way: Option<SyslogSocket>,
    host: String,
}

#[derive(Debug)]
enum SyslogSocket {
    Local(UnixDatagram),
    Udp(UdpSocket),
    Tcp(TcpStream),
}

impl SyslogWriter {
    pub(super) fn open(to: &Syslog) -> Result<Self, StartError> {
        let failed = |error: io::Error| {
            let place = match to {
                Syslog::Local => LOCAL_SOCKET.to_owned(),
                Syslog::Udp(address) => format!("udp://{address}"),
                Syslog::Tcp(address) => format!("tcp://{address}"),
            };
            let remedy = "start a system log there, or log to a file with -l";
            StartError::new(format!("error connecting to syslog at {place}: {error}; {remedy}"))
        };
        let way = Some(SyslogSocket::find(to).map_err(failed)?);
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Ok(Self { to: to.clone(), way, host })
    }

    pub(super) fn write(&mut self, entry: &LogEntry) -> io::Result<()> {
        let message = self.message(entry);
        for _ in 0..2 {
            if self.way.is_none() {
                self.way = Some(SyslogSocket::find(&self.to)?);
            }
            // A restarted system log has a new socket.
            match self.way.as_mut().map(|way| way.send(message.as_bytes())) {
                Some(Ok(())) => return Ok(()),
                _ => self.way = None,
            }
        }
        Err(io::ErrorKind::NotConnected.into())
    }

    fn message(&self, entry: &LogEntry) -> String {
        let priority = FACILITY | severity_code(entry.severity);
        let (pid, time, text) = (std::process::id(), entry.at.with_timezone(&Local), &entry.text);
        let program = env!("CARGO_PKG_NAME");
        if self.to == Syslog::Local {
            return format!("<{priority}>{} {program}[{pid}]: {text}", time.format("%b %e %T"));
        }
        let time = time.to_rfc3339_opts(SecondsFormat::Secs, true);
        format!("<{priority}>{time} {} {program}[{pid}]: {text}\n", self.host)
    }
}

/// Returns the number of a severity that nats-server uses.
fn severity_code(severity: Severity) -> u8 {
    match severity {
        Severity::Fatal => 2,
        Severity::Error => 3,
        Severity::Warning => 4,
        Severity::Info | Severity::Trace => 5,
        Severity::Debug => 7,
    }
}

impl SyslogSocket {
    fn find(to: &Syslog) -> io::Result<Self> {
        match to {
            Syslog::Local => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(LOCAL_SOCKET)?;
                socket.set_write_timeout(Some(PATIENCE))?;
                Ok(Self::Local(socket))
            }
            Syslog::Udp(address) => {
                let address = resolve(address)?;
                let own: SocketAddr = match address {
                    SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                    SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
                };
                let socket = UdpSocket::bind(own)?;
                socket.connect(address)?;
                Ok(Self::Udp(socket))
            }
            Syslog::Tcp(address) => {
                let stream = TcpStream::connect_timeout(&resolve(address)?, PATIENCE)?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(Self::Tcp(stream))
            }
        }
    }

    fn send(&mut self, message: &[u8]) -> io::Result<()> {
        match self {
            Self::Local(socket) => socket.send(message).map(drop),
            Self::Udp(socket) => match socket.send(message) {
                // The answer to an earlier message: there is no listener now, but there may be one
                // later.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
                sent => sent.map(drop),
            },
            Self::Tcp(stream) => stream.write_all(message),
        }
    }
}

fn resolve(address: &str) -> io::Result<SocketAddr> {
    let no_address = || io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    address.to_socket_addrs()?.next().ok_or_else(no_address)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;

    use chrono::Utc;

    use super::*;

    fn entry(severity: Severity, text: &str) -> LogEntry {
        LogEntry { at: Utc::now(), severity, text: text.to_owned() }
    }

    fn end(pid_and_text: &str) -> String {
        format!(" shardcast[{}]: {pid_and_text}", std::process::id())
    }

    #[test]
    fn a_remote_log_gets_datagrams_with_priority_time_and_host() {
        let log = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = log.local_addr().unwrap().to_string();
        let mut writer = SyslogWriter::open(&Syslog::Udp(address)).unwrap();
        writer.write(&entry(Severity::Error, "no")).unwrap();
        let mut bytes = [0; 1000];
        let length = log.recv(&mut bytes).unwrap();
        let message = std::str::from_utf8(&bytes[..length]).unwrap();
        assert!(message.starts_with("<27>20"), "{message}");
        assert!(message.ends_with(&end("no\n")), "{message}");
        assert_eq!(message.split(' ').nth(1), Some(writer.host.as_str()));
    }

    #[test]
    fn a_remote_log_that_comes_back_gets_lines_again() {
        let log = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = log.local_addr().unwrap().to_string();
        let mut writer = SyslogWriter::open(&Syslog::Tcp(address)).unwrap();
        drop(log.accept().unwrap());
        // The first write after the end is lost on the way; the next one finds out.
        let again = (0..1000).find_map(|_| {
            writer.write(&entry(Severity::Info, "yes")).unwrap();
            log.set_nonblocking(true).unwrap();
            log.accept().ok()
        });
        let stream = again.unwrap().0;
        stream.set_nonblocking(false).unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        assert!(line.starts_with("<29>20") && line.ends_with(&end("yes\n")), "{line}");
    }

    #[test]
    fn a_log_that_is_not_there_is_an_error_with_a_remedy() {
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let error = SyslogWriter::open(&Syslog::Tcp(gone)).unwrap_err().to_string();
        assert!(error.contains("log to a file with -l"), "{error}");
    }
}
