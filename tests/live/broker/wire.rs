//! A connection without a client library: what is sent and what must come, byte for byte.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use rustix::net::{AddressFamily, SocketType};

use super::{Broker, PATIENCE};

const PING: &[u8] = b"PING\r\n";
const PONG: &[u8] = b"PONG\r\n";

/// A TCP connection that is read only when a test asks for it.
pub(crate) struct Wire {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Wire {
    /// Connects and reads the greeting, and nothing more.
    pub(crate) fn open(broker: &Broker) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", broker.port())).expect("the server accepts");
        Self::greeted(stream)
    }

    /// The same at another port of a server of this machine.
    pub(crate) fn at(port: u16) -> Self {
        Self::greeted(TcpStream::connect(("127.0.0.1", port)).expect("the server accepts"))
    }

    /// What it reads from, and what it writes to.
    pub(crate) fn into_halves(self) -> (TcpStream, TcpStream) {
        let reads = self.stream.try_clone().expect("a descriptor");
        (reads, self.stream)
    }

    /// The same with the smallest receive buffer, for connections that will not read.
    pub(crate) fn open_narrow(broker: &Broker) -> Self {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None);
        let socket = socket.expect("a socket");
        rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 4096).expect("it is a socket");
        let address = SocketAddr::from(([127, 0, 0, 1], broker.port()));
        rustix::net::connect(&socket, &address).expect("the server accepts");
        Self::greeted(TcpStream::from(socket))
    }

    /// Connects, says a quiet CONNECT, and waits for the first PONG.
    pub(crate) fn connect(broker: &Broker) -> Self {
        let mut wire = Self::open(broker);
        wire.send(b"CONNECT {\"verbose\":false,\"pedantic\":false}\r\n");
        wire.sync();
        wire
    }

    /// Connects, and says what `login` makes of the greeting's nonce.
    pub(crate) fn open_with(broker: &Broker, login: impl FnOnce(&str) -> String) -> Self {
        let mut wire = Self::ungreeted(broker);
        let info = wire.line();
        let (_, rest) = info.split_once("\"nonce\":\"").expect("something to sign");
        let nonce = rest.split('"').next().unwrap_or_default();
        wire.send(login(nonce).as_bytes());
        wire
    }

    /// Another port of a server of this machine, whose greeting is still to be read.
    pub(crate) fn ungreeted_at(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("the kernel accepts");
        Self::patient(stream)
    }

    /// Connects, whether or not the server takes the connection.
    pub(crate) fn ungreeted(broker: &Broker) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", broker.port())).expect("the kernel accepts");
        Self::patient(stream)
    }

    fn patient(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("it is a TCP socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("not zero");
        stream.set_write_timeout(Some(PATIENCE)).expect("not zero");
        Self { stream, unread: Vec::new() }
    }

    fn greeted(stream: TcpStream) -> Self {
        let mut wire = Self::patient(stream);
        let greeting = wire.line();
        assert!(greeting.starts_with("INFO {"), "greeted with {greeting:?}");
        wire
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server takes what is sent");
    }

    /// Sends what the server still takes; says whether it took everything.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// The next line, without its end. Not for lines of payloads.
    pub(crate) fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.unread.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                if line == PING {
                    self.try_send(PONG);
                    continue;
                }
                return String::from_utf8_lossy(&line).trim_end().to_owned();
            }
            assert!(self.fill(), "closed after {:?}", String::from_utf8_lossy(&self.unread));
        }
    }

    /// The next line, whatever it is: a PING is not answered.
    pub(crate) fn raw_line(&mut self) -> String {
        loop {
            if let Some(end) = self.unread.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return String::from_utf8_lossy(&line).trim_end().to_owned();
            }
            assert!(self.fill(), "closed after {:?}", String::from_utf8_lossy(&self.unread));
        }
    }

    /// Everything up to the first PONG, or to the end of the connection.
    pub(crate) fn until_pong_or_end(&mut self) -> Vec<u8> {
        let mut seen = 0;
        loop {
            if let Some(at) = memchr::memmem::find(&self.unread[seen..], PONG) {
                return self.unread.drain(..seen + at + PONG.len()).collect();
            }
            seen = self.unread.len().saturating_sub(PONG.len() - 1);
            if !self.fill() {
                return std::mem::take(&mut self.unread);
            }
        }
    }

    /// Exactly these bytes come next, but for a PING of the server, which is answered.
    pub(crate) fn expect(&mut self, wanted: &[u8]) {
        let differs = loop {
            while self.unread.len() < wanted.len() && self.fill() {}
            let differs = first_difference(&self.unread, wanted);
            match differs {
                Some(at) if self.answer_ping_near(at) => {}
                _ => break differs,
            }
        };
        let came = &self.unread[..wanted.len().min(self.unread.len())];
        assert!(
            differs.is_none(),
            "{:?} came instead of {:?} (they differ from {differs:?} on; {} of {} bytes)",
            String::from_utf8_lossy(&came[..came.len().min(200)]),
            String::from_utf8_lossy(&wanted[..wanted.len().min(200)]),
            came.len(),
            wanted.len(),
        );
        self.unread.drain(..wanted.len());
    }

    /// Takes a PING out that begins at `at`, or one byte before it where a PONG was wanted.
    fn answer_ping_near(&mut self, at: usize) -> bool {
        while self.unread.len() < at + PING.len() && PING.starts_with(&self.unread[at..]) {
            if !self.fill() {
                return false;
            }
        }
        let Some(start) = [at, at.wrapping_sub(1)]
            .into_iter()
            .find(|&start| self.unread.get(start..).is_some_and(|rest| rest.starts_with(PING)))
        else {
            return false;
        };
        self.unread.drain(start..start + PING.len());
        self.try_send(PONG);
        true
    }

    /// All that was sent has been handled, and nothing unexpected was waiting.
    pub(crate) fn sync(&mut self) {
        self.send(b"PING\r\n");
        self.expect(b"PONG\r\n");
    }

    /// The server closes and says nothing more.
    pub(crate) fn expect_end(&mut self) {
        let rest = self.drain_to_end();
        assert!(
            rest == PING || rest.is_empty(),
            "before the end came {:?}",
            String::from_utf8_lossy(&rest)
        );
    }

    /// Everything up to the end of the connection, by FIN or by RST.
    pub(crate) fn drain_to_end(&mut self) -> Vec<u8> {
        while self.fill() {}
        std::mem::take(&mut self.unread)
    }

    /// Closes the sending half only.
    pub(crate) fn half_close(&self) {
        self.stream.shutdown(Shutdown::Write).expect("the connection is open");
    }

    /// Closes at once, throwing away what is under way in both directions.
    pub(crate) fn reset(self) {
        let linger = Some(std::time::Duration::ZERO);
        rustix::net::sockopt::set_socket_linger(&self.stream, linger).expect("it is a socket");
    }

    /// Reads once more. False at the end of the connection.
    fn fill(&mut self) -> bool {
        let mut chunk = [0; 65536];
        match self.stream.read(&mut chunk) {
            Ok(0) => false,
            Ok(len) => {
                self.unread.extend_from_slice(&chunk[..len]);
                true
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => true,
            Err(error)
                if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) =>
            {
                false
            }
            Err(error) => {
                panic!("{error} after {:?}", String::from_utf8_lossy(&self.unread))
            }
        }
    }
}

/// Where the two first differ; also where `came` ends too early.
fn first_difference(came: &[u8], wanted: &[u8]) -> Option<usize> {
    (0..wanted.len()).find(|&at| came.get(at) != wanted.get(at))
}
