//! Listening sockets for clients, routes and monitoring.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};

use crate::config::StartError;

/// Connections in the kernel's accept queue; the kernel allows at most `net.core.somaxconn`.
pub(super) const BACKLOG: i32 = 4096;
/// Attempts to bind a port in use, one per `BUSY_PAUSE`: half a second in all. The kernel frees the
/// port of a killed server only when it has taken down that server's rings, a little after the end
/// of the process.
const BUSY_TRIES_MAX: usize = 50;
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// The beginning of errors about the port for clients.
pub const CLIENTS: &str = "Error listening on port";
/// The beginning of errors about the port for WebSocket clients.
pub const WEBSOCKET: &str = "Unable to listen for websocket connections";

/// The beginning of errors about the port for leaf nodes.
pub const LEAF: &str = "Error listening on leafnode port";

/// Binds the port for leaf nodes as [`bind`] does.
pub fn bind_leaf(host: &str, port: u16) -> Result<TcpListener, StartError> {
    take(host, port, LEAF)
}

/// The beginning of errors about the port for clients of MQTT.
pub const MQTT: &str = "Unable to listen for MQTT connections";

/// Binds the port for clients of MQTT as [`bind`] does.
pub fn bind_mqtt(host: &str, port: u16) -> Result<TcpListener, StartError> {
    take(host, port, MQTT)
}

/// Binds the port for clients; [`open`] starts to accept. An unspecified address includes IPv4 and,
/// where available, IPv6.
///
/// # Errors
///
/// Fails if the host is not an address of this host or the port is taken.
pub fn bind(host: &str, port: u16) -> Result<TcpListener, StartError> {
    take(host, port, CLIENTS)
}

/// Binds the port for WebSocket clients as [`bind`] does.
pub fn bind_websocket(host: &str, port: u16) -> Result<TcpListener, StartError> {
    take(host, port, WEBSOCKET)
}

/// Binds the port for routes and starts to accept.
pub fn bind_cluster(host: &str, port: u16) -> Result<TcpListener, StartError> {
    const COMPLAINT: &str = "Error listening on router port";
    let listener = take(host, port, COMPLAINT)?;
    open(&listener, COMPLAINT).map(|()| listener)
}

/// Binds the port for other clusters and starts to accept.
pub fn bind_gateway(host: &str, port: u16) -> Result<TcpListener, StartError> {
    const COMPLAINT: &str = "Error listening on gateway port";
    let listener = take(host, port, COMPLAINT)?;
    open(&listener, COMPLAINT).map(|()| listener)
}

/// Binds the port for monitoring and starts to accept.
pub fn bind_monitor(host: &str, port: u16) -> Result<TcpListener, StartError> {
    const COMPLAINT: &str = "Can't start monitoring: can't listen to the monitor port";
    let listener = take(host, port, COMPLAINT)?;
    open(&listener, COMPLAINT).map(|()| listener)
}

/// Starts to accept connections.
///
/// # Errors
///
/// Fails if another process has begun to listen on the port.
pub fn open(listener: &TcpListener, complaint: &str) -> Result<(), StartError> {
    net::listen(listener, BACKLOG).map_err(|error| {
        let address = listener.local_addr().map(|address| address.to_string());
        failed(&address.unwrap_or_default(), complaint, &error.into())
    })
}

fn failed(address: &str, complaint: &str, error: &io::Error) -> StartError {
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => "; stop the process on that port or choose another port",
        io::ErrorKind::AddrNotAvailable => "; choose an address of this machine",
        io::ErrorKind::PermissionDenied => "; choose a port above 1023",
        _ if lacks_files(error) => "; raise the limit of open files with `ulimit -n`",
        _ => "",
    };
    StartError::new(format!("{complaint}: {address}, \"{error}\"{remedy}"))
}

/// Whether the error is that no more files may be open.
pub(super) fn lacks_files(error: &io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(|errno| [Errno::MFILE, Errno::NFILE].contains(&errno))
}

fn take(host: &str, port: u16, complaint: &str) -> Result<TcpListener, StartError> {
    let failed = |error: io::Error| failed(&host_port(host, port), complaint, &error);
    let addresses = addresses(host, port).map_err(failed)?;
    for _ in 0..BUSY_TRIES_MAX {
        match first_listener(&addresses) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => pause(),
            outcome => return outcome.map_err(failed),
        }
    }
    first_listener(&addresses).map_err(failed)
}

#[expect(clippy::disallowed_methods, reason = "before the first shard nobody else is kept waiting")]
fn pause() {
    std::thread::sleep(BUSY_PAUSE);
}

/// Formats `host:port`, with brackets around an IPv6 address.
pub fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Returns the addresses to try, in order. For a name only its first address counts, IPv4 before
/// IPv6.
fn addresses(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let everywhere_v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    if let Ok(ip) = host.parse::<IpAddr>() {
        if ip.is_unspecified() {
            return Ok(vec![SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)), everywhere_v4]);
        }
        return Ok(vec![SocketAddr::from((ip, port))]);
    }
    let mut addresses: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
    addresses.sort_by_key(SocketAddr::is_ipv6);
    addresses.truncate(1);
    Ok(addresses)
}

fn first_listener(addresses: &[SocketAddr]) -> io::Result<TcpListener> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in addresses {
        match listener(*address) {
            Ok(listener) => return Ok(listener),
            // On a host without IPv6, its address fails; the next address may succeed.
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // A restarted server can have its port back at once. A port that is bound but not listened on
    // yet must not count as free.
    sockopt::set_socket_reuseaddr(&socket, address.port() != 0)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, !address.ip().is_unspecified())?;
    }
    net::bind(&socket, &address)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    Ok(TcpListener::from(socket))
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    fn bind(host: &str, port: u16) -> Result<TcpListener, StartError> {
        let listener = super::bind(host, port)?;
        open(&listener, CLIENTS).map(|()| listener)
    }

    #[test]
    fn port_zero_becomes_a_real_port_that_accepts() {
        let listener = bind("127.0.0.1", 0).unwrap();
        let address = listener.local_addr().unwrap();
        assert_ne!(address.port(), 0);
        TcpStream::connect(address).unwrap();
    }

    #[test]
    fn every_address_includes_ipv4() {
        let port = bind("0.0.0.0", 0).unwrap().local_addr().unwrap().port();
        let listener = bind("0.0.0.0", port).unwrap();
        TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (_, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip().to_canonical(), Ipv4Addr::LOCALHOST);
    }

    #[test]
    fn a_name_is_resolved_to_ipv4_first() {
        let listener = bind("localhost", 0).unwrap();
        assert_eq!(listener.local_addr().unwrap().ip(), Ipv4Addr::LOCALHOST);
    }

    #[test]
    fn a_port_in_use_is_refused_with_address_and_remedy() {
        let taken = bind("127.0.0.1", 0).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = bind("127.0.0.1", port).unwrap_err().to_string();
        let start = format!("Error listening on port: 127.0.0.1:{port}, \"Address already in use");
        assert!(error.starts_with(&start), "{error}");
        assert!(error.contains("choose another port"), "{error}");
    }

    #[test]
    fn a_port_that_is_about_to_be_free_is_waited_for() {
        let taken = bind("127.0.0.1", 0).unwrap();
        let port = taken.local_addr().unwrap().port();
        let leaving = std::thread::spawn(move || {
            pause();
            drop(taken);
        });
        bind("127.0.0.1", port).unwrap();
        leaving.join().unwrap();
    }

    #[test]
    fn a_port_can_be_had_back_although_a_connection_lingers() {
        let listener = bind("127.0.0.1", 0).unwrap();
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect(address).unwrap();
        drop(listener.accept().unwrap()); // The server closes first, so the port is in TIME_WAIT.
        drop(listener);
        drop(client);
        bind("127.0.0.1", address.port()).unwrap();
    }

    #[test]
    fn ipv6_addresses_are_bracketed() {
        assert_eq!(host_port("::1", 4222), "[::1]:4222");
        assert_eq!(host_port("0.0.0.0", 4222), "0.0.0.0:4222");
    }
}
