//! Where clients come in besides the TCP port: the Unix socket, proxies that speak for them, and
//! WebSocket.

use std::path::Path;

use super::field::Action::Set;
use super::field::{Field, Key, bind_map};
use super::file::Kind;
use super::rules::Violation;
use super::{Auth, Options, Secret, StartError, User};
use crate::engine::PeerUser;
use crate::transport::{Cookies, Network, Tls, WebSocketSettings};

/// The Unix socket for clients of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixOptions {
    /// The socket's path, or `@name` for one in the abstract namespace.
    pub path: String,
    /// Permissions of the socket's file (0666): who may connect.
    pub mode: u32,
    /// Id of the file's owner (none: the process's).
    pub owner: Option<u32>,
    /// Id of the file's group (none: the process's).
    pub group: Option<u32>,
    /// Who clients without credentials are, by the process at the other end; the first that fits.
    pub peers: Vec<PeerUser>,
}

impl UnixOptions {
    /// A socket at `path`, for everybody.
    pub fn at(path: &str) -> Self {
        Self { path: path.to_owned(), mode: 0o666, owner: None, group: None, peers: Vec::new() }
    }
}

/// Where and how WebSocket clients come in.
#[derive(Debug, Clone, PartialEq)]
pub struct WebSocketOptions {
    /// Address or host name (none: the client port's).
    pub host: Option<String>,
    /// Port (none: nobody listens); 0 is any free port.
    pub port: Option<u16>,
    /// There may be no TLS (false).
    pub no_tls: bool,
    /// TLS (none).
    pub tls: Option<Tls>,
    /// A browser's page must come from the address it connects to (false).
    pub same_origin: bool,
    /// The pages that browsers may connect from (empty: all).
    pub allowed_origins: Vec<String>,
    /// Compress what is sent to clients that can take it (false).
    pub compression: bool,
    /// Milliseconds a client has for TLS and upgrade together (2000).
    pub handshake_timeout_ms: u64,
    /// Milliseconds of silence before a PING (none: the clients' `ping_interval`).
    pub ping_interval_ms: Option<u64>,
    /// `host:port` that other servers tell their clients about (none).
    /// Without effect on a server alone.
    pub advertise: Option<String>,
    /// Names of the cookies that stand for what CONNECT leaves out (none).
    pub cookies: Cookies,
    /// Who may connect here, in place of the clients' (none: theirs).
    pub auth: Option<Auth>,
    /// The user whom a client without credentials is (none).
    pub no_auth_user: Option<String>,
    /// Fields that the answer to an upgrade has besides its own.
    pub headers: Vec<(String, String)>,
}

impl Default for WebSocketOptions {
    fn default() -> Self {
        Self {
            host: None,
            port: None,
            no_tls: false,
            tls: None,
            same_origin: false,
            allowed_origins: Vec::new(),
            compression: false,
            handshake_timeout_ms: 2000,
            ping_interval_ms: None,
            advertise: None,
            cookies: Cookies::default(),
            auth: None,
            no_auth_user: None,
            headers: Vec::new(),
        }
    }
}

impl WebSocketOptions {
    /// What shards have to know of it.
    pub(in crate::config) fn settings(&self) -> WebSocketSettings {
        WebSocketSettings {
            tls: self.tls.clone(),
            same_origin: self.same_origin,
            allowed_origins: self.allowed_origins.clone(),
            compression: self.compression,
            handshake_timeout_ms: self.handshake_timeout_ms,
            ping_interval_ms: self.ping_interval_ms,
            cookies: self.cookies.clone(),
            headers: self.headers.clone(),
            auth_timeout_ms: self.auth.as_ref().map(|auth| auth.timeout_ms),
            no_auth_user: self.no_auth_user.clone(),
        }
    }
}

const UNIX: &[Key<UnixOptions>] = &[
    Key(&["path"], Set(|u, v| v.text().map(|path| u.path = path))),
    Key(&["mode"], Set(|u, v| mode(v).map(|mode| u.mode = mode))),
    Key(&["user", "owner"], Set(|u, v| id(v, "/etc/passwd").map(|id| u.owner = Some(id)))),
    Key(&["group"], Set(|u, v| id(v, "/etc/group").map(|id| u.group = Some(id)))),
    Key(&["peers"], Set(|u, v| peers(v).map(|peers| u.peers = peers))),
];

const PEER: &[Key<PeerUser>] = &[
    Key(&["uid"], Set(|p, v| id(v, "/etc/passwd").map(|id| p.uid = Some(id)))),
    Key(&["gid"], Set(|p, v| id(v, "/etc/group").map(|id| p.gid = Some(id)))),
    Key(&["user"], Set(|p, v| v.text().map(|user| p.user = user))),
];

/// `listen_unix`: a path, or a block with one.
pub(super) fn bind_unix(v: &mut Field<'_>) -> Result<UnixOptions, StartError> {
    let mut unix = UnixOptions::at("");
    match &v.value.kind {
        Kind::Map(map) => bind_map(&[UNIX], map, &mut unix, v.warnings)?,
        _ => unix.path = v.text()?,
    }
    check_path(&unix.path).map_err(|reason| v.error(reason))?;
    Ok(unix)
}

/// Whether a socket may have this path.
pub(in crate::config) fn check_path(path: &str) -> Result<(), String> {
    /// What the kernel has room for, its closing zero included.
    const PATH_BYTES_MAX: usize = 108;
    if path.is_empty() || path == "@" {
        return Err("listen_unix needs the path of a socket, or @name".to_owned());
    }
    if path.len() >= PATH_BYTES_MAX {
        let len = path.len();
        return Err(format!("the path of a socket has at most 107 bytes, not {len}; shorten it"));
    }
    Ok(())
}

/// Permissions in octal, as `chmod` takes them.
fn mode(v: &mut Field<'_>) -> Result<u32, StartError> {
    let digits = match &v.value.kind {
        Kind::Integer(number) => number.to_string(),
        _ => v.text()?,
    };
    let mode = u32::from_str_radix(&digits, 8).ok().filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| v.error("mode is an octal number up to 0777, such as \"0660\""))
}

/// The id of a user or group of this machine; a name is looked up in `table`.
fn id(v: &mut Field<'_>, table: &str) -> Result<u32, StartError> {
    if let Kind::Integer(id) = v.value.kind {
        return u32::try_from(id).map_err(|_| v.error("an id is a number from 0 on"));
    }
    let name = v.text()?;
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    let lines = std::fs::read_to_string(Path::new(table)).unwrap_or_default();
    id_in(&lines, &name)
        .ok_or_else(|| v.error(format!("\"{name}\" is not in {table}; write its number")))
}

/// The third field of the line that begins with `name`.
fn id_in(lines: &str, name: &str) -> Option<u32> {
    lines.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

fn peers(v: &mut Field<'_>) -> Result<Vec<PeerUser>, StartError> {
    v.each(|v| {
        let mut peer = PeerUser { uid: None, gid: None, user: String::new() };
        bind_map(&[PEER], v.map()?, &mut peer, v.warnings)?;
        if peer.user.is_empty() || (peer.uid.is_none() && peer.gid.is_none()) {
            return Err(v.error("a peer is {uid: …, user: …} or {gid: …, user: …}"));
        }
        Ok(peer)
    })
}

/// `proxy_protocol_trusted`: networks.
pub(super) fn bind_networks(v: &mut Field<'_>) -> Result<Vec<Network>, StartError> {
    v.one_or_each(|v| v.text()?.parse().map_err(|reason: String| v.error(reason)))
}

const WEBSOCKET: &[Key<WebSocketOptions>] = &[
    Key(
        &["listen"],
        Set(|w, v| {
            let (host, port) = v.address()?;
            w.port = Some(port);
            w.host = host.or_else(|| w.host.take());
            Ok(())
        }),
    ),
    Key(&["host", "net"], Set(|w, v| v.text().map(|host| w.host = Some(host)))),
    Key(&["port"], Set(|w, v| v.port().map(|port| w.port = Some(port)))),
    Key(&["advertise"], Set(|w, v| v.text().map(|at| w.advertise = Some(at)))),
    Key(&["no_tls"], Set(|w, v| v.boolean().map(|on| w.no_tls = on))),
    Key(&["tls"], Set(|w, v| super::tls::bind(v).map(|tls| w.tls = Some(tls)))),
    Key(&["same_origin"], Set(|w, v| v.boolean().map(|on| w.same_origin = on))),
    Key(
        &["allowed_origins", "allow_origin", "origin"],
        Set(|w, v| v.texts().map(|origins| w.allowed_origins = origins)),
    ),
    Key(&["compression"], Set(|w, v| v.boolean().map(|on| w.compression = on))),
    Key(&["handshake_timeout"], Set(|w, v| v.duration_ms().map(|ms| w.handshake_timeout_ms = ms))),
    Key(&["ping_interval"], Set(|w, v| v.duration_ms().map(|ms| w.ping_interval_ms = Some(ms)))),
    Key(&["jwt_cookie"], Set(|w, v| v.text().map(|name| w.cookies.jwt = Some(name)))),
    Key(&["user_cookie"], Set(|w, v| v.text().map(|name| w.cookies.user = Some(name)))),
    Key(&["pass_cookie"], Set(|w, v| v.text().map(|name| w.cookies.pass = Some(name)))),
    Key(&["token_cookie"], Set(|w, v| v.text().map(|name| w.cookies.token = Some(name)))),
    Key(&["no_auth_user"], Set(|w, v| v.text().map(|name| w.no_auth_user = Some(name)))),
    Key(&["authorization"], Set(|w, v| login(v).map(|auth| w.auth = Some(auth)))),
    Key(&["headers"], Set(|w, v| headers(v).map(|headers| w.headers = headers))),
];

/// The block `websocket`.
pub(super) fn bind_websocket(v: &mut Field<'_>) -> Result<Option<WebSocketOptions>, StartError> {
    let mut websocket = WebSocketOptions::default();
    bind_map(&[WEBSOCKET], v.map()?, &mut websocket, v.warnings)?;
    // As in nats-server, without a port there is none.
    if websocket.port.is_none() {
        return Ok(None);
    }
    if websocket.tls.is_none() && !websocket.no_tls {
        return Err(v.error("websocket needs a block tls; or no_tls: true, behind a proxy"));
    }
    Ok(Some(websocket))
}

fn headers(v: &mut Field<'_>) -> Result<Vec<(String, String)>, StartError> {
    v.each_entry(|entry, v| {
        let Kind::Text(value) = &entry.value.kind else {
            return Err(v.error("a header's value is text; put it in quotes"));
        };
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.!#$%&'*+^`|~".contains(&byte);
        let clean = !value.contains(char::is_control) && entry.key.bytes().all(is_name);
        if !clean || entry.key.is_empty() {
            return Err(entry.position.error("not a field that HTTP can carry; leave it out"));
        }
        Ok((entry.key.clone(), value.clone()))
    })
}

const LOGIN: &[Key<Login>] = &[
    Key(&["user", "username"], Set(|l, v| v.text().map(|name| l.user = Some(name)))),
    Key(&["password", "pass"], Set(|l, v| v.text().map(|p| l.password = Some(Secret::new(p))))),
    Key(&["token"], Set(|l, v| v.text().map(|token| l.token = Some(Secret::new(token))))),
    Key(&["timeout"], Set(|l, v| v.seconds_ms().map(|ms| l.timeout_ms = Some(ms)))),
];

#[derive(Default)]
struct Login {
    user: Option<String>,
    password: Option<Secret>,
    token: Option<Secret>,
    timeout_ms: Option<u64>,
}

/// `authorization` of WebSocket: one user, or a token.
fn login(v: &mut Field<'_>) -> Result<Auth, StartError> {
    let mut login = Login::default();
    bind_map(&[LOGIN], v.map()?, &mut login, v.warnings)?;
    if login.token.is_some() && (login.user.is_some() || login.password.is_some()) {
        return Err(v.error("cannot have a user/password and a token; keep one"));
    }
    let password = login.password.unwrap_or_else(|| Secret::new(""));
    let users = login.user.map(|name| User { password, ..User::named(name) }).into_iter().collect();
    let timeout_ms = login.timeout_ms.unwrap_or(Auth::default().timeout_ms);
    Ok(Auth { timeout_ms, users, token: login.token, ..Auth::default() })
}

/// What must hold between these and other options.
pub(super) fn check(options: &Options, broken: &mut Vec<Violation>) {
    let knows = |name: &str| options.auth.users.iter().any(|user| user.name == name);
    for (at, peer) in options.unix.iter().flat_map(|unix| &unix.peers).enumerate() {
        if !knows(&peer.user) {
            let reason = format!("peer \"{}\" is not one of the users; add it there", peer.user);
            let keys = &["listen_unix", "authorization", "accounts"];
            let violation = Violation::of(keys, reason);
            broken.push(violation.within(["peers", &at.to_string(), "user"]));
        }
    }
    let Some(websocket) = &options.websocket else { return };
    if websocket.auth.as_ref().is_some_and(Auth::is_required) && !options.auth.users.is_empty() {
        let reason = "websocket cannot have an authorization of its own beside users; \
                      give the user allowed_connection_types: [WEBSOCKET] instead";
        broken.push(Violation::of(WEBSOCKET_AND_USERS, reason).within(["authorization"]));
    }
    if let Some(name) = websocket.no_auth_user.as_ref().filter(|name| !knows(name)) {
        let reason =
            format!("websocket no_auth_user \"{name}\" is not one of the users; add it there");
        broken.push(Violation::of(WEBSOCKET_AND_USERS, reason).within(["no_auth_user"]));
    }
}

const WEBSOCKET_AND_USERS: &[&str] = &["websocket", "ws", "authorization", "accounts"];

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(text: &str) -> Result<Options, StartError> {
        crate::config::of_text(text)
    }

    fn refused(text: &str) -> String {
        outcome(text).map_or_else(|error| error.to_string(), |_| panic!("{text} is accepted"))
    }

    #[test]
    fn the_unix_socket_is_a_path_or_a_block() {
        let unix = |text: &str| outcome(text).unwrap().unix.unwrap();
        assert_eq!(unix("listen_unix: /run/s"), UnixOptions::at("/run/s"));
        assert_eq!(unix("listen_unix: \"@s\"").path, "@s");
        let users = "authorization { users: [{user: ann, password: p}] }\n";
        let block = "listen_unix { path: /run/s, mode: 0660, group: 7, user: root, \
                     peers: [{uid: root, user: ann}, {gid: 9, user: ann}] }";
        let ann = |uid, gid| PeerUser { uid, gid, user: "ann".to_owned() };
        let wanted = UnixOptions {
            mode: 0o660,
            owner: Some(0),
            group: Some(7),
            peers: vec![ann(Some(0), None), ann(None, Some(9))],
            ..UnixOptions::at("/run/s")
        };
        assert_eq!(unix(&format!("{users}{block}")), wanted);
        assert!(refused(block).contains("peer \"ann\" is not one of the users"));
        assert!(refused("listen_unix: \"\"").contains("needs the path of a socket"));
        assert!(refused(&format!("listen_unix: /{}", "x".repeat(107))).contains("at most 107"));
        for wrong in ["mode: 999", "mode: 1777", "user: nobody-here", "peers: [{user: ann}]"] {
            refused(&format!("listen_unix {{ path: /run/s, {wrong} }}"));
        }
    }

    #[test]
    fn a_websocket_has_tls_or_says_that_it_has_not() {
        assert_eq!(outcome("websocket {}").unwrap().websocket, None, "no port, no WebSocket");
        assert!(refused("websocket { port: 1 }").contains("websocket needs a block tls"));
        let options = outcome(
            "websocket { listen: \"h:1\", no_tls: true, allowed_origins: \"http://a\", \
             user_cookie: u, headers { X-A: b }, handshake_timeout: 1s, \
             authorization { user: a, password: b, timeout: 0.5 } }",
        );
        let websocket = options.unwrap().websocket.unwrap();
        assert_eq!((websocket.host.as_deref(), websocket.port), (Some("h"), Some(1)));
        assert_eq!(websocket.handshake_timeout_ms, 1000);
        assert_eq!(websocket.headers, [("X-A".to_owned(), "b".to_owned())]);
        assert_eq!(websocket.auth.map(|auth| auth.timeout_ms), Some(500));
        assert!(
            refused("websocket { port: 1, no_tls: true, headers { \"a b\": c } }").contains("HTTP")
        );
        assert!(refused("websocket { port: 1, no_tls: true, no_auth_user: a }").contains("add it"));
    }

    #[test]
    fn a_name_is_looked_up_in_the_machines_table() {
        let table = "root:x:0:0:root:/root:/bin/sh\nnats:x:104:105::/var/lib/nats:/bin/false\n";
        assert_eq!(id_in(table, "nats"), Some(104));
        assert_eq!(id_in(table, "nat"), None);
    }
}
