//! Listeners for clients besides the TCP port: the Unix socket and WebSocket, and trusted proxies.

use std::path::Path;

use super::field::Action::Set;
use super::field::{Field, Key, bind_map};
use super::file::ValueKind;
use super::rules::BrokenRule;
use super::{Auth, Options, Secret, StartError, UserOptions};
use crate::engine::PeerUser;
use crate::transport::{Cookies, Network, Tls, WebSocketSettings};

/// The Unix socket for clients on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixOptions {
    /// The socket's path, or `@name` for one in the abstract namespace.
    pub path: String,
    /// Permissions of the socket's file (0666), which decide about the processes that may connect.
    pub mode: u32,
    /// Id of the file's owner (none: the process's).
    pub owner: Option<u32>,
    /// Id of the file's group (none: the process's).
    pub group: Option<u32>,
    /// Users for clients without credentials, by the process at the other end; the first match
    /// counts.
    pub peers: Vec<PeerUser>,
}

impl UnixOptions {
    /// Returns options for a socket at `path` that any process may connect to.
    pub fn at(path: &str) -> Self {
        Self { path: path.to_owned(), mode: 0o666, owner: None, group: None, peers: Vec::new() }
    }
}

/// Options of the listener for WebSocket clients.
#[derive(Debug, Clone, PartialEq)]
pub struct WebSocketOptions {
    /// Address or host name (none: the client port's).
    pub host: Option<String>,
    /// Port (none: no listener); 0 is any free port.
    pub port: Option<u16>,
    /// Whether the listener may be without TLS (false).
    pub no_tls: bool,
    /// TLS for WebSocket clients (none).
    pub tls: Option<Tls>,
    /// Whether a browser's page must come from the address that it connects to (false).
    pub same_origin: bool,
    /// Origins of pages that browsers may connect from (empty: all).
    pub allowed_origins: Vec<String>,
    /// Whether messages are compressed for clients that support it (false).
    pub compression: bool,
    /// Milliseconds a client has for TLS and upgrade together (2000).
    pub handshake_timeout_ms: u64,
    /// Milliseconds of silence before a PING (none: the clients' `ping_interval`).
    pub ping_interval_ms: Option<u64>,
    /// `host:port` that other servers announce to their clients (none). Without effect on a server
    /// that has no cluster.
    pub advertise: Option<String>,
    /// Names of cookies that replace members missing in CONNECT (none).
    pub cookies: Cookies,
    /// Credentials for this listener (none: those of the client listener).
    pub auth: Option<Auth>,
    /// The user for clients without credentials (none).
    pub no_auth_user: Option<String>,
    /// Header fields to add to the answer to an upgrade.
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
    /// Returns the settings for the shards; whether MQTT and leaf nodes may come is said elsewhere.
    pub(in crate::config) fn settings(
        &self,
        speaks_mqtt: bool,
        speaks_leaf: bool,
    ) -> WebSocketSettings {
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
            speaks_mqtt,
            speaks_leaf,
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

/// Binds `listen_unix`: a path, or a block with one.
pub(super) fn bind_unix(v: &mut Field<'_>) -> Result<UnixOptions, StartError> {
    let mut unix = UnixOptions::at("");
    match &v.value.kind {
        ValueKind::Map(map) => bind_map(&[UNIX], map, &mut unix, v.warnings)?,
        _ => unix.path = v.text()?,
    }
    check_path(&unix.path).map_err(|reason| v.error(reason))?;
    Ok(unix)
}

/// Checks that a socket may have this path.
pub(in crate::config) fn check_path(path: &str) -> Result<(), String> {
    /// Bytes of a path in the kernel, its closing zero included.
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

/// Reads permissions in octal, as `chmod` takes them.
fn mode(v: &mut Field<'_>) -> Result<u32, StartError> {
    let digits = match &v.value.kind {
        ValueKind::Integer(number) => number.to_string(),
        _ => v.text()?,
    };
    let mode = u32::from_str_radix(&digits, 8).ok().filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| v.error("mode is an octal number up to 0777, such as \"0660\""))
}

/// Reads the id of a user or group of this host; a name is looked up in `table`.
fn id(v: &mut Field<'_>, table: &str) -> Result<u32, StartError> {
    if let ValueKind::Integer(id) = v.value.kind {
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

/// Returns the third field of the line that begins with `name`.
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

/// Binds a list of networks: `proxy_protocol_trusted`.
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

/// Binds the block `websocket`.
pub(super) fn bind_websocket(v: &mut Field<'_>) -> Result<Option<WebSocketOptions>, StartError> {
    let mut websocket = WebSocketOptions::default();
    bind_map(&[WEBSOCKET], v.map()?, &mut websocket, v.warnings)?;
    // As in nats-server, without a port there is no listener.
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
        let ValueKind::Text(value) = &entry.value.kind else {
            return Err(v.error("a header's value is text; put it in quotes"));
        };
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.!#$%&'*+^`|~".contains(&byte);
        let clean = !value.contains(char::is_control) && entry.key.bytes().all(is_name);
        if !clean || entry.key.is_empty() {
            return Err(entry.position.error("not a valid HTTP header; leave it out"));
        }
        Ok((entry.key.clone(), value.clone()))
    })
}

const LOGIN: &[Key<WebSocketLogin>] = &[
    Key(&["user", "username"], Set(|l, v| v.text().map(|name| l.user = Some(name)))),
    Key(&["password", "pass"], Set(|l, v| v.text().map(|p| l.password = Some(Secret::new(p))))),
    Key(&["token"], Set(|l, v| v.text().map(|token| l.token = Some(Secret::new(token))))),
    Key(&["timeout"], Set(|l, v| v.seconds_ms().map(|ms| l.timeout_ms = Some(ms)))),
];

#[derive(Default)]
struct WebSocketLogin {
    user: Option<String>,
    password: Option<Secret>,
    token: Option<Secret>,
    timeout_ms: Option<u64>,
}

/// Binds `authorization` of WebSocket: one user, or a token.
fn login(v: &mut Field<'_>) -> Result<Auth, StartError> {
    let mut login = WebSocketLogin::default();
    bind_map(&[LOGIN], v.map()?, &mut login, v.warnings)?;
    if login.token.is_some() && (login.user.is_some() || login.password.is_some()) {
        return Err(v.error("cannot have a user/password and a token; keep one"));
    }
    let password = login.password.unwrap_or_else(|| Secret::new(""));
    let users = login
        .user
        .map(|name| UserOptions { password, ..UserOptions::named(name) })
        .into_iter()
        .collect();
    let timeout_ms = login.timeout_ms.unwrap_or(Auth::default().timeout_ms);
    Ok(Auth { timeout_ms, users, token: login.token, ..Auth::default() })
}

/// Checks the rules between the options of listeners and others.
pub(super) fn check(options: &Options, broken: &mut Vec<BrokenRule>) {
    let knows = |name: &str| options.auth.users.iter().any(|user| user.name == name);
    for (at, peer) in options.network.unix.iter().flat_map(|unix| &unix.peers).enumerate() {
        if !knows(&peer.user) {
            let reason = format!("peer \"{}\" is not in users; add it there", peer.user);
            let keys = &["listen_unix", "authorization", "accounts"];
            let violation = BrokenRule::of(keys, reason);
            broken.push(violation.within(["peers", &at.to_string(), "user"]));
        }
    }
    check_mqtt(options, broken);
    let Some(websocket) = &options.network.websocket else { return };
    if websocket.auth.as_ref().is_some_and(Auth::is_required) && !options.auth.users.is_empty() {
        let reason = "websocket cannot have an authorization of its own beside users; \
                      give the user allowed_connection_types: [WEBSOCKET] instead";
        broken.push(BrokenRule::of(WEBSOCKET_AND_USERS, reason).within(["authorization"]));
    }
    if let Some(name) = websocket.no_auth_user.as_ref().filter(|name| !knows(name)) {
        let reason = format!("websocket no_auth_user \"{name}\" is not in users; add it there");
        broken.push(BrokenRule::of(WEBSOCKET_AND_USERS, reason).within(["no_auth_user"]));
    }
}

/// Checks the rules between the options of MQTT and others.
fn check_mqtt(options: &Options, broken: &mut Vec<BrokenRule>) {
    let Some(mqtt) = &options.network.mqtt else { return };
    let mut refuse = |reason: String| broken.push(BrokenRule::of(MQTT_AND_USERS, reason));
    let what = if mqtt.login.token.is_some() { "token" } else { "username" };
    if mqtt.login.is_required() && !options.auth.users.is_empty() {
        refuse(format!(
            "mqtt authentication {what} not compatible with presence of users/nkeys; give the \
             user allowed_connection_types: [MQTT] instead"
        ));
    }
    let knows = |name: &str| options.auth.users.iter().any(|user| user.name == name);
    if let Some(name) = mqtt.no_auth_user.as_ref().filter(|name| !knows(name)) {
        refuse(format!("mqtt no_auth_user \"{name}\" is not in users; add it there"));
    }
    if mqtt.tls.as_ref().is_some_and(|tls| !tls.has_certificate) {
        refuse("tls of mqtt needs cert_file and key_file; name both".to_owned());
    }
}

const MQTT_AND_USERS: &[&str] = &["mqtt", "authorization", "accounts"];
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
        let unix = |text: &str| outcome(text).unwrap().network.unix.unwrap();
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
        assert!(refused(block).contains("peer \"ann\" is not in users"));
        assert!(refused("listen_unix: \"\"").contains("needs the path of a socket"));
        assert!(refused(&format!("listen_unix: /{}", "x".repeat(107))).contains("at most 107"));
        for wrong in ["mode: 999", "mode: 1777", "user: nobody-here", "peers: [{user: ann}]"] {
            refused(&format!("listen_unix {{ path: /run/s, {wrong} }}"));
        }
    }

    #[test]
    fn a_websocket_has_tls_or_says_that_it_has_not() {
        assert_eq!(
            outcome("websocket {}").unwrap().network.websocket,
            None,
            "no port, no WebSocket"
        );
        assert!(refused("websocket { port: 1 }").contains("websocket needs a block tls"));
        let options = outcome(
            "websocket { listen: \"h:1\", no_tls: true, allowed_origins: \"http://a\", \
             user_cookie: u, headers { X-A: b }, handshake_timeout: 1s, \
             authorization { user: a, password: b, timeout: 0.5 } }",
        );
        let websocket = options.unwrap().network.websocket.unwrap();
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
