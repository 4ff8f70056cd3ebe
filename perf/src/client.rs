//! Client connections on tokio-uring: connecting, the handshake, reading and writing.

use crate::clock::Clock;
use crate::fault::{Fault, Outcome};
use crate::mqtt;
use crate::tls::{Session, Tls, TlsArgs};
use crate::wire::{self, Dialect, Scanner, ServerInfo};
use nkeys::KeyPair;
use std::cell::RefCell;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio_uring::buf::BoundedBuf as _;
use tokio_uring::net::TcpStream;

/// Room for INFO and the answers of the handshake.
const HANDSHAKE_BUFFER_BYTES: usize = 16 * 1024;
/// What is read at once of a connection that speaks TLS: four records.
const SECRET_BUFFER_BYTES: usize = 64 * 1024;

/// Where to connect, and as whom. Cheap to share between threads.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// The servers; connection `n` goes to server `n` modulo their number.
    servers: Vec<Server>,
    access: Access,
    dialect: Dialect,
}

/// What gets a client in: who it is, and how it speaks TLS.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    /// Who it is.
    pub(crate) identity: Identity,
    /// How it speaks TLS.
    pub(crate) tls: Tls,
}

impl Access {
    /// Nobody in particular.
    pub(crate) fn none() -> Outcome<Self> {
        Ok(Self { identity: Identity::default(), tls: Tls::load(&TlsArgs::default())? })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Server {
    /// Host and port.
    name: String,
    /// Whether its URL wants TLS.
    tls: bool,
    place: Place,
    login: Login,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Tcp(SocketAddr),
    /// A socket's file.
    Unix(PathBuf),
}

impl Place {
    /// Connects. Of a socket no more than that it sends and receives matters to the load, so one
    /// type stands for both.
    fn connect(&self) -> io::Result<std::net::TcpStream> {
        match self {
            Self::Tcp(address) => {
                let stream = std::net::TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                Ok(stream)
            }
            Self::Unix(path) => Ok(OwnedFd::from(UnixStream::connect(path)?).into()),
        }
    }
}

/// What a URL says about the user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Login {
    #[default]
    None,
    Token(String),
    Password(String, String),
}

/// What signs the server's nonce.
#[derive(Clone, Debug, Default)]
pub(crate) struct Identity {
    jwt: Option<String>,
    key: Option<Arc<KeyPair>>,
}

impl Identity {
    /// Who has this JWT, and the key that it names.
    pub(crate) fn new(jwt: String, key: KeyPair) -> Self {
        Self { jwt: Some(jwt), key: Some(Arc::new(key)) }
    }

    /// Reads a `.creds` file (JWT and seed) or a file with an nkey seed.
    pub(crate) fn load(creds: Option<&str>, nkey: Option<&str>) -> Outcome<Self> {
        let read = |path: &str| {
            std::fs::read_to_string(path)
                .map_err(|e| Fault::new(format!("{path}: {e}"), "check the path and its rights"))
        };
        if let Some(path) = creds {
            let text = read(path)?;
            let (Some(jwt), Some(seed)) = (block(&text, "JWT"), block(&text, "SEED")) else {
                return Err(Fault::new(
                    format!("{path} holds no user JWT and seed"),
                    "make it with `nsc generate creds`, or give a bare seed with --nkey",
                ));
            };
            return Ok(Self { jwt: Some(jwt), key: Some(key_of(path, &seed)?) });
        }
        let Some(path) = nkey else {
            return Ok(Self::default());
        };
        let text = read(path)?;
        let Some(seed) = text.lines().map(str::trim).find(|line| line.starts_with("SU")) else {
            let cause = format!("{path} holds no user seed (SU…)");
            return Err(Fault::new(cause, "make one with `nk -gen user`"));
        };
        Ok(Self { jwt: None, key: Some(key_of(path, seed)?) })
    }
}

fn key_of(path: &str, seed: &str) -> Outcome<Arc<KeyPair>> {
    let pair = KeyPair::from_seed(seed).map_err(|e| {
        Fault::new(format!("{path}: the seed cannot be used: {e}"), "check --creds or --nkey")
    })?;
    Ok(Arc::new(pair))
}

/// The text between `-----BEGIN … KIND-----` and the next line of dashes.
fn block(text: &str, kind: &str) -> Option<String> {
    let mut lines = text.lines();
    let ends = format!("{kind}-----");
    lines.find(|line| line.starts_with("-----BEGIN") && line.ends_with(&ends))?;
    lines.next().map(|line| line.trim().to_owned())
}

impl Target {
    /// Reads one URL or a list with commas: `nats://user:pass@host:port`, `tls://…`, `host:port`,
    /// `host`, `unix:/path`.
    pub(crate) fn parse(urls: &str, access: Access) -> Outcome<Self> {
        let servers: Vec<Server> = urls.split(',').map(parse_server).collect::<Outcome<_>>()?;
        Ok(Self { servers, access, dialect: Dialect::Nats })
    }

    /// The server on this machine's `port`, which speaks NATS there.
    pub(crate) fn local(port: u16, access: Access) -> Self {
        Self::local_of(Dialect::Nats, port, access)
    }

    /// The same with what it speaks there.
    pub(crate) fn local_of(dialect: Dialect, port: u16, access: Access) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let (name, place) = (address.to_string(), Place::Tcp(address));
        let servers = vec![Server { name, tls: false, place, login: Login::None }];
        Self { servers, access, dialect }
    }

    /// What gets a client in.
    pub(crate) fn access(&self) -> &Access {
        &self.access
    }

    /// The servers as the user wrote them, without passwords.
    pub(crate) fn name(&self) -> String {
        self.servers.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(",")
    }

    fn connect_line(&self, server: &Server, info: &ServerInfo, tls: bool) -> Outcome<String> {
        let mut fields = serde_json::json!({
            "verbose": false, "pedantic": false, "tls_required": tls,
            "headers": info.headers, "protocol": 1,
            "no_responders": info.headers, "name": "shardcast-perf", "lang": "rust",
            "version": env!("CARGO_PKG_VERSION"),
        });
        match &server.login {
            Login::None => {}
            Login::Token(token) => fields["auth_token"] = token.as_str().into(),
            Login::Password(user, pass) => {
                fields["user"] = user.as_str().into();
                fields["pass"] = pass.as_str().into();
            }
        }
        if let Some(key) = &self.access.identity.key {
            let signature = key.sign(info.nonce.as_bytes()).map_err(|e| {
                Fault::new(format!("the nonce cannot be signed: {e}"), "check --creds or --nkey")
            })?;
            use base64::Engine as _;
            let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
            fields["sig"] = engine.encode(signature).into();
            match &self.access.identity.jwt {
                Some(jwt) => fields["jwt"] = jwt.as_str().into(),
                None => fields["nkey"] = key.public_key().into(),
            }
        }
        Ok(format!("CONNECT {fields}\r\nPING\r\n"))
    }
}

fn parse_server(url: &str) -> Outcome<Server> {
    if let Some(path) = url.trim().strip_prefix("unix:") {
        let (name, place) = (url.trim().to_owned(), Place::Unix(path.into()));
        return Ok(Server { name, tls: false, place, login: Login::None });
    }
    let bad = |why: &str| {
        let cause = format!("the URL '{}' {why}", hide_login(url));
        Fault::new(cause, "write it as nats://user:pass@host:port, host:port or unix:/path")
    };
    let (tls, rest) = match url.trim().split_once("://") {
        Some(("nats", rest)) => (false, rest),
        Some(("tls", rest)) => (true, rest),
        Some(_) => return Err(bad("has another scheme than nats and tls")),
        None => (false, url.trim()),
    };
    let (login, place) = match rest.trim_end_matches('/').rsplit_once('@') {
        None => (Login::None, rest.trim_end_matches('/')),
        Some((login, place)) => match login.split_once(':') {
            None => (Login::Token(login.to_owned()), place),
            Some((user, pass)) => (Login::Password(user.to_owned(), pass.to_owned()), place),
        },
    };
    let has_port = place.rsplit_once(':').is_some_and(|(host, port)| {
        port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']'))
    });
    let name = if has_port { place.to_owned() } else { format!("{place}:4222") };
    let mut addresses = name.to_socket_addrs().map_err(|e| bad(&format!("is no address ({e})")))?;
    let address = addresses.next().ok_or_else(|| bad("has no address"))?;
    Ok(Server { name, tls, place: Place::Tcp(address), login })
}

/// A URL without its password, for messages.
fn hide_login(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, place))) => format!("{scheme}://…@{place}"),
        (None, Some((_, place))) => format!("…@{place}"),
        (_, None) => url.to_owned(),
    }
}

/// Bytes that have arrived and have not been used.
#[derive(Debug)]
pub(crate) struct Inbox {
    held: Vec<u8>,
}

impl Inbox {
    /// Room for `bytes`.
    pub(crate) fn new(bytes: usize) -> Self {
        Self { held: Vec::with_capacity(bytes) }
    }

    /// What is there.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.held
    }

    /// Drops the first `used` bytes.
    pub(crate) fn consume(&mut self, used: usize) {
        self.held.drain(..used);
    }
}

/// One connection. Clones are the same connection, so that one task reads and another writes.
#[derive(Clone)]
pub(crate) struct Conn {
    stream: Rc<TcpStream>,
    name: Rc<str>,
    /// Who holds it writes: what two tasks write must not mingle.
    turn: Rc<Mutex<()>>,
    secret: Option<Rc<RefCell<Secret>>>,
    dialect: Dialect,
}

/// A TLS session, and room for what the socket says.
struct Secret {
    session: Session,
    received: Vec<u8>,
}

/// How long the steps of a connection took, in nanoseconds since the connect began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Steps {
    /// The TCP connection stood.
    pub(crate) connected_ns: u64,
    /// The server answered CONNECT and PING.
    pub(crate) ready_ns: u64,
}

impl Conn {
    /// Connects as connection number `index`, says CONNECT and waits for the first PONG.
    pub(crate) async fn open(target: &Target, index: usize) -> Outcome<(Self, ServerInfo, Steps)> {
        let server = &target.servers[index % target.servers.len()];
        let clock = Clock::start();
        let failed = |e| unreachable(&e).at(&server.name);
        let stream = match &server.place {
            Place::Tcp(address) => {
                let stream = TcpStream::connect(*address).await.map_err(failed)?;
                stream.set_nodelay(true).map_err(failed)?;
                stream
            }
            place => TcpStream::from_std(place.connect().map_err(failed)?),
        };
        let connected_ns = clock.now_ns();
        let (conn, info) = Self::begin(stream, target, server).await?;
        Ok((conn, info, Steps { connected_ns, ready_ns: clock.now_ns() }))
    }

    /// The same, with the socket for who goes on without this thread's ring.
    pub(crate) async fn open_with_socket(
        target: &Target,
        index: usize,
    ) -> Outcome<(Self, ServerInfo, std::net::TcpStream)> {
        let server = &target.servers[index % target.servers.len()];
        let failed = |e| unreachable(&e).at(&server.name);
        let socket = server.place.connect().map_err(failed)?;
        let stream = TcpStream::from_std(socket.try_clone().map_err(failed)?);
        let (conn, info) = Self::begin(stream, target, server).await?;
        Ok((conn, info, socket))
    }

    async fn begin(
        stream: TcpStream,
        target: &Target,
        server: &Server,
    ) -> Outcome<(Self, ServerInfo)> {
        let name = server.name.as_str().into();
        let (stream, dialect) = (Rc::new(stream), target.dialect);
        let mut conn = Self { stream, name, turn: Rc::default(), secret: None, dialect };
        let info = conn.handshake(target, server).await.map_err(|f| f.at(&server.name))?;
        Ok((conn, info))
    }

    /// Whether the connection has TLS.
    pub(crate) fn is_secret(&self) -> bool {
        self.secret.is_some()
    }

    /// What is spoken on it.
    pub(crate) fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// A scanner for what comes; see [`Scanner::new`].
    pub(crate) fn scanner(&self, prefix_bytes: usize) -> Scanner {
        Scanner::of(self.dialect, prefix_bytes)
    }

    /// What the other side is called in messages.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    async fn handshake(&mut self, target: &Target, server: &Server) -> Outcome<ServerInfo> {
        let (mut inbox, tls) = (Inbox::new(HANDSHAKE_BUFFER_BYTES), &target.access.tls);
        if self.dialect != Dialect::Nats {
            self.write(mqtt::connect()).await?;
            self.await_pong(&mut inbox, &mut self.scanner(0)).await?;
            return Ok(ServerInfo::default());
        }
        if tls.first {
            self.encrypt(tls, server, &mut inbox).await?;
        }
        let info = loop {
            if let Some(end) = memchr::memchr(b'\n', inbox.bytes()) {
                let info = wire::parse_info(&inbox.bytes()[..end])?;
                inbox.consume(end + 1);
                break info;
            }
            self.fill(&mut inbox).await?;
        };
        let wanted = tls.wanted || server.tls;
        if self.secret.is_none() && (info.tls_required || (info.tls_available && wanted)) {
            self.encrypt(tls, server, &mut inbox).await?;
        }
        let is_secret = self.secret.is_some();
        if wanted && !is_secret {
            let remedy = "leave the tls options out, or switch TLS on in the server";
            return Err(Fault::new("the server does not speak TLS", remedy));
        }
        let keyless = target.access.identity.key.is_none();
        if info.auth_required && server.login == Login::None && keyless {
            return Err(Fault::new(
                "the server wants credentials",
                "give --url nats://user:pass@host:port, --creds or --nkey",
            ));
        }
        self.write(target.connect_line(server, &info, is_secret)?.into_bytes()).await?;
        self.await_pong(&mut inbox, &mut Scanner::new(0)).await?;
        Ok(info)
    }

    /// Goes on with TLS. What is in `inbox` came in clear, and nothing may have come behind INFO.
    async fn encrypt(&mut self, tls: &Tls, server: &Server, inbox: &mut Inbox) -> Outcome<()> {
        let host = server.name.rsplit_once(':').map_or(&*server.name, |(host, _)| host);
        let session = tls.begin(host.trim_start_matches('[').trim_end_matches(']'))?;
        let received = Vec::with_capacity(SECRET_BUFFER_BYTES);
        let secret = Rc::new(RefCell::new(Secret { session, received }));
        self.secret = Some(Rc::clone(&secret));
        loop {
            self.write_output(&secret).await?;
            if !secret.borrow().session.is_handshaking() {
                return Ok(());
            }
            self.receive_secret(&secret, inbox).await?;
        }
    }

    /// Writes what TLS has to say.
    async fn write_output(&self, secret: &RefCell<Secret>) -> Outcome<()> {
        let _turn = self.turn.lock().await;
        let output = secret.borrow_mut().session.output();
        self.write_raw(output).await.map(|_| ())
    }

    /// Reads once; `inbox` may get nothing, or more than there is room for.
    async fn receive_secret(&self, secret: &RefCell<Secret>, inbox: &mut Inbox) -> Outcome<()> {
        let buffer = std::mem::take(&mut secret.borrow_mut().received);
        let (read, buffer) = self.stream.read(buffer).await;
        let bytes = self.arrived(read)?;
        let mut secret = secret.borrow_mut();
        let outcome = secret.session.receive(&buffer[..bytes], &mut inbox.held);
        secret.received = buffer;
        outcome.map_err(|fault| fault.at(&self.name))
    }

    fn arrived(&self, read: io::Result<usize>) -> Outcome<usize> {
        match read {
            Ok(0) => Err(closed("the server closed the connection").at(&self.name)),
            Ok(bytes) => Ok(bytes),
            Err(e) => Err(closed(&format!("reading failed ({e})")).at(&self.name)),
        }
    }

    /// Reads until a PONG has come, ignoring messages.
    pub(crate) async fn await_pong(&self, inbox: &mut Inbox, scanner: &mut Scanner) -> Outcome<()> {
        loop {
            let seen = scanner.scan(inbox.bytes(), |_| {})?;
            inbox.consume(seen.used);
            if seen.pongs > 0 {
                return Ok(());
            }
            self.fill(inbox).await?;
        }
    }

    /// Reads more, behind what `inbox` holds. A closed connection is a failure.
    pub(crate) async fn fill(&self, inbox: &mut Inbox) -> Outcome<()> {
        if let Some(secret) = &self.secret {
            let held = inbox.held.len();
            while inbox.held.len() == held {
                self.receive_secret(secret, inbox).await?;
                // Keys may have to be changed.
                if secret.borrow().session.has_output() {
                    self.write_output(secret).await?;
                }
            }
            return Ok(());
        }
        let held = std::mem::take(&mut inbox.held);
        let start = held.len();
        if start == held.capacity() {
            return Err(Fault::new(
                "the server sent a line longer than the read buffer",
                "raise --read-buffer",
            ));
        }
        let (read, slice) = self.stream.read(held.slice(start..)).await;
        inbox.held = slice.into_inner();
        self.arrived(read).map(|_| ())
    }

    /// Writes everything and gives the buffer back.
    pub(crate) async fn write(&self, bytes: Vec<u8>) -> Outcome<Vec<u8>> {
        let _turn = self.turn.lock().await;
        let Some(secret) = &self.secret else {
            return self.write_raw(bytes).await;
        };
        let output = {
            let session = &mut secret.borrow_mut().session;
            session.send(&bytes);
            session.output()
        };
        self.write_raw(output).await.map(|_| bytes)
    }

    /// Writes to the socket. Only for who has the turn.
    async fn write_raw(&self, bytes: Vec<u8>) -> Outcome<Vec<u8>> {
        let (written, bytes) = self.stream.write_all(bytes).await;
        match written {
            Ok(()) => Ok(bytes),
            Err(e) => Err(closed(&format!("writing failed ({e})")).at(&self.name)),
        }
    }

    /// Answers what was seen.
    pub(crate) async fn answer(&self, owed: Vec<u8>) -> Outcome<()> {
        if !owed.is_empty() {
            self.write(owed).await?;
        }
        Ok(())
    }

    /// Ends both directions; a read that waits comes back.
    pub(crate) fn shut_down(&self) {
        // It may have been closed by the other side, which is as good.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

fn unreachable(error: &io::Error) -> Fault {
    let remedy = match error.raw_os_error() {
        Some(24) => "raise the limit of open files (ulimit -n)",
        Some(99) => "use fewer connections: the local ports are used up",
        _ => "start the server, or name another one with --url or --server",
    };
    Fault::new(format!("cannot connect ({error})"), remedy)
}

pub(crate) fn closed(what: &str) -> Fault {
    Fault::new(what, "look into the server's log (a slow consumer, a limit, or did it die?)")
}

/// Runs `work` on a tokio-uring runtime of its own, for about `conns` connections.
pub(crate) fn with_ring<T>(conns: usize, work: impl Future<Output = T>) -> T {
    let entries = u32::try_from((conns * 2).next_power_of_two()).unwrap_or(u32::MAX);
    let mut ring = tokio_uring::uring_builder();
    ring.setup_cqsize(entries.clamp(256, 4096) * 4);
    tokio_uring::builder().entries(entries.clamp(256, 4096)).uring_builder(&ring).start(work)
}

/// Waits for a server to send INFO on `target`, or, with TLS first or MQTT, to listen, for at most
/// `patience`.
pub(crate) fn await_server(
    target: &Target,
    patience: Duration,
    mut still_there: impl FnMut() -> Outcome<()>,
) -> Outcome<()> {
    use std::io::Read as _;
    let clock = Clock::start();
    let server = &target.servers[0];
    let silent = target.access.tls.first || target.dialect != Dialect::Nats;
    loop {
        still_there()?;
        let attempt = server.place.connect().and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(1)))?;
            let mut start = [0; 5];
            if !silent {
                stream.read_exact(&mut start)?;
            }
            Ok(start)
        });
        match attempt {
            Ok(_) if silent => return Ok(()),
            Ok(start) if &start == b"INFO " => return Ok(()),
            Ok(_) => {
                let cause = format!("{} does not speak NATS", server.name);
                return Err(Fault::new(cause, "check {port} in the server's command"));
            }
            Err(_) if clock.now_ns() < crate::clock::duration_ns(patience) => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(e) => {
                let cause = format!("the server does not answer on {} ({e})", server.name);
                return Err(Fault::new(cause, "try its command by hand, with a port for {port}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_with_and_without_user_and_port() {
        let server = |url| parse_server(url).unwrap();
        let tcp = |address: &str| Place::Tcp(address.parse().unwrap());
        assert_eq!(server("127.0.0.1:4333").place, tcp("127.0.0.1:4333"));
        assert_eq!(server("127.0.0.1").place, tcp("127.0.0.1:4222"));
        assert_eq!(server("unix:/run/broker").place, Place::Unix("/run/broker".into()));
        assert!(server("tls://127.0.0.1").tls && !server("nats://127.0.0.1").tls);
        assert_eq!(server("nats://[::1]:5000/").place, tcp("[::1]:5000"));
        let login = server("nats://me:p@ss@127.0.0.1:1").login;
        assert_eq!(login, Login::Password("me".into(), "p@ss".into()));
        assert_eq!(server("nats://secret@127.0.0.1:1").login, Login::Token("secret".into()));
        assert!(parse_server("http://127.0.0.1").is_err());
    }

    #[test]
    fn a_message_about_a_url_hides_the_password() {
        let fault = parse_server("http://me:secret@h:1").unwrap_err().to_string();
        assert!(!fault.contains("secret"), "{fault}");
    }

    #[test]
    fn credentials_are_found_in_a_creds_file() {
        let text = "-----BEGIN NATS USER JWT-----\nabc.def\n------END NATS USER JWT------\n\n\
            -----BEGIN USER NKEY SEED-----\nSUAXY\n------END USER NKEY SEED------\n";
        assert_eq!(block(text, "JWT").as_deref(), Some("abc.def"));
        assert_eq!(block(text, "SEED").as_deref(), Some("SUAXY"));
    }
}
