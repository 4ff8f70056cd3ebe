//! The block `leafnodes`: the port for leaf nodes, their credentials, and the remotes that this
//! server dials.

use std::path::PathBuf;

use super::cluster::{CompressionDefault, read_compression};
use super::field::Action::{Ignore, Refuse, Set};
use super::field::{Field, Key, bind_map};
use super::file::ValueKind;
use super::rules::BrokenRule;
use super::tls;
use super::{Options, Secret, StartError, unsupported};
use crate::auth::jwt;
use crate::cluster::{LeafScheme, LeafUrl, RouteUrl, Version};
use crate::engine::LeafRemote;
use crate::subject::is_valid_filter;
use crate::transport::{Compression, Tls};

/// The account of leaf nodes that are in no other one.
const GLOBAL: &str = "$G";

/// Options of leaf nodes.
#[derive(Debug, Clone, PartialEq)]
pub struct LeafOptions {
    /// Address or host name to listen on for leaf nodes (`0.0.0.0`).
    pub host: String,
    /// Port for leaf nodes (none: no listener); 0 is any free port.
    pub port: Option<u16>,
    /// `host[:port]` at which leaf nodes reach this server (none: its listener's).
    pub advertise: Option<String>,
    /// Whether leaf nodes are not told where this server and others can be dialled (false).
    pub no_advertise: bool,
    /// The oldest version that a leaf node may have (none: any).
    pub min_version: Option<Version>,
    /// Users of leaf nodes (none: those of clients).
    pub users: Vec<LeafUser>,
    /// Milliseconds from a connection to its CONNECT (2000).
    pub timeout_ms: u64,
    /// TLS for accepted connections (none).
    pub tls: Option<Tls>,
    /// Compression of accepted connections (by round trip, as far as leaf nodes want it).
    pub compression: Compression,
    /// Whether no leaf node is told the interest of others (false).
    pub is_isolated: bool,
    /// Milliseconds that output may take on its way to the other end (0: as for clients).
    pub write_deadline_ms: u64,
    /// Milliseconds before a lost remote is dialled again (1000).
    pub reconnect_ms: u64,
    /// Milliseconds that a remote has to accept a connection (1000).
    pub dial_timeout_ms: u64,
    /// The remotes that this server dials.
    pub remotes: Vec<LeafRemoteOptions>,
}

/// A user of leaf nodes.
#[derive(Debug, Clone, PartialEq)]
pub struct LeafUser {
    /// The user's name, or public key.
    pub name: String,
    /// The user's password, or its hash.
    pub password: Secret,
    /// Whether the name is a public key, to which the user has the seed.
    pub has_nkey: bool,
    /// The account that leaf nodes of this user are bound to (`$G`).
    pub account: String,
}

/// A remote that this server dials.
#[derive(Debug, Clone, PartialEq)]
pub struct LeafRemoteOptions {
    /// Addresses of the remote's servers.
    pub urls: Vec<LeafUrl>,
    /// Path of a file with a token and a seed (none).
    pub credentials: Option<PathBuf>,
    /// Seed of the user's key (none).
    pub seed: Option<Secret>,
    /// Whether the servers are dialled in the order in which they are written (false).
    pub no_randomize: bool,
    /// Whether servers that the remote tells of are not dialled (false).
    pub ignores_discovered: bool,
    /// Whether the remote is not dialled (false).
    pub is_disabled: bool,
    /// Milliseconds that a server has to accept a connection (none: as for all remotes).
    pub dial_timeout_ms: Option<u64>,
    /// The proxy by which the remote is reached (none).
    pub proxy: Option<LeafProxy>,
    /// Properties of the connection.
    pub link: LeafRemote,
}

/// A proxy for HTTP that connects to a remote.
#[derive(Debug, Clone, PartialEq)]
pub struct LeafProxy {
    /// The host: an address, without brackets, or a name.
    pub host: String,
    /// The port.
    pub port: u16,
    /// User and password for the proxy (none).
    pub login: Option<(String, Secret)>,
    /// Milliseconds that the proxy has to connect (none: as for dialling).
    pub timeout_ms: Option<u64>,
}

impl Default for LeafOptions {
    fn default() -> Self {
        Self {
            host: "0.0.0.0".to_owned(),
            port: None,
            advertise: None,
            no_advertise: false,
            min_version: None,
            users: Vec::new(),
            timeout_ms: 2000,
            tls: None,
            compression: CompressionDefault::Leaf.when_on(),
            is_isolated: false,
            write_deadline_ms: 0,
            reconnect_ms: 1000,
            dial_timeout_ms: 1000,
            remotes: Vec::new(),
        }
    }
}

impl Default for LeafRemoteOptions {
    fn default() -> Self {
        Self {
            urls: Vec::new(),
            credentials: None,
            seed: None,
            no_randomize: false,
            ignores_discovered: false,
            is_disabled: false,
            dial_timeout_ms: None,
            proxy: None,
            link: LeafRemote {
                account: GLOBAL.to_owned(),
                compression: CompressionDefault::Leaf.when_on(),
                first_info_timeout_ms: 1000,
                ..LeafRemote::default()
            },
        }
    }
}

/// Binds the block `leafnodes`.
pub(super) fn bind(options: &mut Options, v: &mut Field<'_>) -> Result<(), StartError> {
    let mut leaf = LeafOptions::default();
    bind_map(&[LEAFNODES], v.map()?, &mut leaf, v.warnings)?;
    options.leaf = leaf;
    Ok(())
}

const LEAFNODES: &[Key<LeafOptions>] = &[
    Key(
        &["listen"],
        Set(|l, v| {
            if let ValueKind::Integer(_) = v.value.kind {
                l.port = Some(v.port()?);
                return Ok(());
            }
            let (host, port) = v.address()?;
            l.port = Some(port);
            l.host = host.unwrap_or_else(|| std::mem::take(&mut l.host));
            Ok(())
        }),
    ),
    Key(&["host", "net"], Set(|l, v| v.text().map(|host| l.host = host))),
    Key(&["port"], Set(|l, v| v.port().map(|port| l.port = Some(port)))),
    Key(
        &["advertise", "leafnode_advertise"],
        Set(|l, v| v.text().map(|at| l.advertise = Some(at))),
    ),
    Key(&["no_advertise"], Set(|l, v| v.boolean().map(|no| l.no_advertise = no))),
    Key(&["min_version", "minimum_version"], Set(min_version)),
    Key(&["authorization"], Set(authorization)),
    Key(&["tls"], Set(|l, v| tls::bind(v).map(|tls| l.tls = Some(tls)))),
    Key(
        &["compression"],
        Set(|l, v| read_compression(v, CompressionDefault::Leaf).map(|mode| l.compression = mode)),
    ),
    Key(
        &["isolate", "isolate_leafnode_interest"],
        Set(|l, v| v.boolean().map(|on| l.is_isolated = on)),
    ),
    Key(
        &["reconnect", "reconnect_delay", "reconnect_interval"],
        Set(|l, v| v.duration_ms().map(|ms| l.reconnect_ms = ms)),
    ),
    Key(&["dial_timeout"], Set(|l, v| v.duration_ms().map(|ms| l.dial_timeout_ms = ms))),
    Key(&["remotes"], Set(|l, v| v.each(remote).map(|remotes| l.remotes = remotes))),
    Key(&["write_deadline"], Set(|l, v| v.duration_ms().map(|ms| l.write_deadline_ms = ms))),
    Key(&["write_timeout"], Ignore(unsupported::timeout)),
];

/// The oldest version that `min_version` may be.
const VERSION_MIN: Version = Version([2, 8, 0]);

fn min_version(leaf: &mut LeafOptions, v: &mut Field<'_>) -> Result<(), StartError> {
    let version = Version::parse(&v.text()?);
    let Some(version) = version.filter(|version| *version >= VERSION_MIN) else {
        let reason = "the minimum version should be at least 2.8.0, and is written as 2.10.0";
        return Err(v.error(reason));
    };
    leaf.min_version = Some(version);
    Ok(())
}

/// The block `authorization`, before it is known which of its forms was used.
#[derive(Default)]
struct LeafLogins {
    single: LeafUserBlock,
    users: Option<Vec<LeafUser>>,
    timeout_ms: Option<u64>,
}

#[derive(Default)]
struct LeafUserBlock {
    user: Option<String>,
    password: Option<Secret>,
    nkey: Option<String>,
    account: Option<String>,
}

const LOGINS: &[Key<LeafLogins>] = &[
    Key(&["user", "username"], Set(|l, v| v.text().map(|name| l.single.user = Some(name)))),
    Key(
        &["password", "pass"],
        Set(|l, v| v.text().map(|p| l.single.password = Some(Secret::new(p)))),
    ),
    Key(&["nkey"], Set(|l, v| public_key(v).map(|key| l.single.nkey = Some(key)))),
    Key(&["account"], Set(|l, v| v.text().map(|name| l.single.account = Some(name)))),
    Key(&["timeout"], Set(|l, v| v.login_timeout_ms().map(|ms| l.timeout_ms = Some(ms)))),
    Key(&["users"], Set(|l, v| users(v).map(|users| l.users = Some(users)))),
    Key(&["proxy_required"], Refuse(unsupported::any)),
];

const USER: &[Key<LeafUserBlock>] = &[
    Key(&["user", "username"], Set(|u, v| v.text().map(|name| u.user = Some(name)))),
    Key(&["password", "pass"], Set(|u, v| v.text().map(|p| u.password = Some(Secret::new(p))))),
    Key(&["account"], Set(|u, v| v.text().map(|name| u.account = Some(name)))),
    Key(&["proxy_required"], Refuse(unsupported::any)),
];

fn public_key(v: &mut Field<'_>) -> Result<String, StartError> {
    let key = v.text()?;
    if jwt::is_key(&key, &['U']) { Ok(key) } else { Err(v.expected("the public key of a user")) }
}

impl LeafUserBlock {
    fn user(self) -> Option<LeafUser> {
        let has_nkey = self.nkey.is_some();
        let name = self.nkey.or(self.user)?;
        let password = self.password.unwrap_or_else(|| Secret::new(""));
        let account = self.account.unwrap_or_else(|| GLOBAL.to_owned());
        Some(LeafUser { name, password, has_nkey, account })
    }
}

fn users(v: &mut Field<'_>) -> Result<Vec<LeafUser>, StartError> {
    let mut names = std::collections::HashSet::new();
    v.each(|v| {
        let mut block = LeafUserBlock::default();
        bind_map(&[USER], v.map()?, &mut block, v.warnings)?;
        let Some(user) = block.user() else {
            return Err(v.error("a user of leaf nodes has a user and a password; name both"));
        };
        if !names.insert(user.name.clone()) {
            let name = &user.name;
            let reason = format!("duplicate user \"{name}\" detected in leafnode authorization");
            return Err(v.error(reason));
        }
        Ok(user)
    })
}

fn authorization(leaf: &mut LeafOptions, v: &mut Field<'_>) -> Result<(), StartError> {
    let mut logins = LeafLogins::default();
    bind_map(&[LOGINS], v.map()?, &mut logins, v.warnings)?;
    let LeafLogins { single, users, timeout_ms } = logins;
    leaf.timeout_ms = timeout_ms.unwrap_or(leaf.timeout_ms);
    if users.is_some() && (single.user.is_some() || single.nkey.is_some()) {
        return Err(v.error("can not have a single user/pass and a users array; keep one"));
    }
    leaf.users = users.unwrap_or_else(|| single.user().into_iter().collect());
    Ok(())
}

const REMOTE: &[Key<LeafRemoteOptions>] = &[
    Key(&["url", "urls"], Set(urls)),
    Key(&["account", "local"], Set(|r, v| v.text().map(|name| r.link.account = name))),
    Key(
        &["credentials", "creds"],
        Set(|r, v| v.text().map(|path| r.credentials = Some(path.into()))),
    ),
    Key(&["nkey", "seed"], Set(|r, v| seed(v).map(|seed| r.seed = Some(seed)))),
    Key(&["tls"], Set(|r, v| tls::bind_dialed(v).map(|tls| r.link.tls = Some(tls)))),
    Key(&["hub"], Set(|r, v| v.boolean().map(|on| r.link.is_hub = on))),
    Key(
        &["deny_imports", "deny_import"],
        Set(|r, v| subjects(v).map(|list| r.link.deny_imports = list)),
    ),
    Key(
        &["deny_exports", "deny_export"],
        Set(|r, v| subjects(v).map(|list| r.link.deny_exports = list)),
    ),
    Key(&["no_randomize", "dont_randomize"], Set(|r, v| v.boolean().map(|on| r.no_randomize = on))),
    Key(
        &["compression"],
        Set(|r, v| {
            read_compression(v, CompressionDefault::Leaf).map(|mode| r.link.compression = mode)
        }),
    ),
    Key(
        &["first_info_timeout"],
        Set(|r, v| v.duration_ms().map(|ms| r.link.first_info_timeout_ms = ms)),
    ),
    Key(&["dial_timeout"], Set(|r, v| v.duration_ms().map(|ms| r.dial_timeout_ms = Some(ms)))),
    Key(&["disabled"], Set(|r, v| v.boolean().map(|on| r.is_disabled = on))),
    Key(
        &["isolate", "isolate_leafnode_interest"],
        Set(|r, v| v.boolean().map(|on| r.link.is_isolated = on)),
    ),
    Key(&["request_isolation"], Set(|r, v| v.boolean().map(|on| r.link.requests_isolation = on))),
    Key(
        &["ignore_discovered_servers"],
        Set(|r, v| v.boolean().map(|on| r.ignores_discovered = on)),
    ),
    Key(
        &["ws_compress", "ws_compression", "websocket_compress", "websocket_compression"],
        Set(|r, v| v.boolean().map(|on| r.link.ws_compression = on)),
    ),
    Key(
        &["ws_no_masking", "websocket_no_masking"],
        Set(|r, v| v.boolean().map(|on| r.link.ws_no_masking = on)),
    ),
    Key(&["js_cluster_migrate", "jetstream_cluster_migrate"], Ignore(unsupported::migration)),
    Key(&["proxy"], Set(|r, v| proxy(v).map(|proxy| r.proxy = Some(proxy)))),
];

fn remote(v: &mut Field<'_>) -> Result<LeafRemoteOptions, StartError> {
    let mut remote = LeafRemoteOptions::default();
    bind_map(&[REMOTE], v.map()?, &mut remote, v.warnings)?;
    let websockets = remote.urls.iter().filter(|url| url.scheme.is_websocket()).count();
    let reason = if remote.urls.is_empty() {
        "a remote of leafnodes has a url, or several urls"
    } else if websockets > 0 && websockets < remote.urls.len() {
        "remote leaf node configuration cannot have a mix of websocket and non-websocket urls"
    } else if remote.seed.is_some() && remote.credentials.is_some() {
        "Remote leafnode can not have both creds and nkey defined"
    } else {
        ""
    };
    if !reason.is_empty() {
        return Err(v.error(reason));
    }
    let is_tls = |url: &LeafUrl| matches!(url.scheme, LeafScheme::Tls | LeafScheme::Wss);
    if remote.link.tls.is_none() && remote.urls.iter().any(is_tls) {
        remote.link.tls = Some(tls::dialed_by_default().map_err(|error| v.place(error))?);
    }
    Ok(remote)
}

fn urls(remote: &mut LeafRemoteOptions, v: &mut Field<'_>) -> Result<(), StartError> {
    remote.urls =
        v.one_or_each(|v| LeafUrl::parse(&v.text()?).map_err(|reason| v.error(reason)))?;
    Ok(())
}

#[derive(Default)]
struct ProxyBlock {
    url: String,
    user: Option<String>,
    password: Option<Secret>,
    timeout_ms: Option<u64>,
}

const PROXY: &[Key<ProxyBlock>] = &[
    Key(&["url"], Set(|p, v| v.text().map(|url| p.url = url))),
    Key(&["username"], Set(|p, v| v.text().map(|name| p.user = Some(name)))),
    Key(&["password"], Set(|p, v| v.text().map(|text| p.password = Some(Secret::new(text))))),
    Key(&["timeout"], Set(|p, v| v.duration_ms().map(|ms| p.timeout_ms = Some(ms)))),
    Key(&["tls"], Refuse(unsupported::tls)),
];

fn proxy(v: &mut Field<'_>) -> Result<LeafProxy, StartError> {
    let mut block = ProxyBlock::default();
    bind_map(&[PROXY], v.map()?, &mut block, v.warnings)?;
    let ProxyBlock { url, user, password, timeout_ms } = block;
    if url.to_ascii_lowercase().starts_with("https://") {
        return Err(v.error("a proxy over TLS is not supported; name one with http://"));
    }
    let is_http = url.to_ascii_lowercase().starts_with("http://");
    let parsed = RouteUrl::parse(&url).ok().filter(|_| is_http);
    let Some(url) = parsed else {
        return Err(v.error("proxy URL scheme must be http or https, as in http://proxy:8080"));
    };
    if user.is_some() != password.is_some() {
        return Err(v.error("proxy username and password must both be specified"));
    }
    let login = user.zip(password).or(url.login);
    Ok(LeafProxy { host: url.host, port: url.port, login, timeout_ms })
}

fn seed(v: &mut Field<'_>) -> Result<Secret, StartError> {
    // The text is a secret.
    let text = v.text()?;
    let is_seed = nkeys::KeyPair::from_seed(&text)
        .is_ok_and(|pair| pair.key_pair_type() == nkeys::KeyPairType::User);
    if !is_seed {
        return Err(v.error("Remote leafnode nkey is not a valid seed; it begins with SU"));
    }
    Ok(Secret::new(text))
}

fn subjects(v: &mut Field<'_>) -> Result<Vec<String>, StartError> {
    v.one_or_each(|v| {
        let subject = v.text()?;
        if !is_valid_filter(subject.as_bytes()) {
            return Err(v.error(format!("\"{subject}\" is not a valid subject")));
        }
        Ok(subject)
    })
}

/// Checks the rules for leaf nodes.
pub(super) fn check(options: &Options, broken: &mut Vec<BrokenRule>) {
    const BLOCK: &[&str] = &["leafnodes", "leaf"];
    let leaf = &options.leaf;
    if options.trust.is_some() && !leaf.users.is_empty() {
        let reason = "operator mode does not allow specifying users in leafnode config";
        broken.push(BrokenRule::of(BLOCK, reason).within(["authorization"]));
    }
    for (at, remote) in leaf.remotes.iter().enumerate() {
        let account = &remote.link.account;
        let is_same = |other: &LeafRemoteOptions| {
            (&other.link.account, &other.urls, &other.credentials)
                == (account, &remote.urls, &remote.credentials)
        };
        if leaf.remotes[..at].iter().any(is_same) {
            let reason = format!("duplicate remote for account \"{account}\"; keep one of them");
            let keys = ["remotes", &at.to_string()];
            broken.push(BrokenRule::of(BLOCK, reason).within(keys));
        }
    }
}

impl Options {
    /// Checks that the accounts of leaf nodes exist, which the file alone need not say.
    ///
    /// # Errors
    ///
    /// Returns the first account that does not.
    pub fn check_leaf_accounts(&self) -> Result<(), StartError> {
        let knows = |name: &str| {
            let is_token = self.trust.is_some() && jwt::is_key(name, &['A']);
            is_token || self.accounts.get(name).is_some()
        };
        let users = self.leaf.users.iter().map(|user| (&user.account, "authorization"));
        let remotes = self.leaf.remotes.iter().map(|remote| (&remote.link.account, "remote"));
        match users.chain(remotes).find(|(account, _)| !knows(account)) {
            None => Ok(()),
            Some((account, of)) => Err(StartError::new(format!(
                "cannot find local account \"{account}\" specified in leafnode {of}; add it to \
                 accounts"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        crate::config::of_text(text).map_or_else(|error| error.to_string(), |_| String::new())
    }

    #[test]
    fn the_block_is_read_whole() {
        let text = "accounts { A {} }\nleafnodes { listen: \"127.0.0.1:7000\", advertise: h, \
            no_advertise: true, min_version: 2.10.3, reconnect: 2s, isolate: true, \
            compression: s2_fast, authorization { users: [{user: a, password: p, account: A}], \
            timeout: 1 }, remotes: [{ urls: [\"nats-leaf://u:p@h:1\", \"tls://h\"], account: A, \
            hub: true, deny_imports: \"x.>\", deny_exports: [a, b], no_randomize: true, \
            first_info_timeout: 3s, disabled: true, request_isolation: true, tls {} }] }";
        let leaf = crate::config::of_text(text).unwrap().leaf;
        assert_eq!((leaf.host.as_str(), leaf.port), ("127.0.0.1", Some(7000)));
        assert_eq!(leaf.min_version, Some(Version([2, 10, 3])));
        assert_eq!((leaf.reconnect_ms, leaf.timeout_ms), (2000, 1000));
        assert_eq!((leaf.users[0].account.as_str(), &leaf.compression), ("A", &Compression::Fast));
        let remote = &leaf.remotes[0];
        assert_eq!((remote.urls.len(), remote.link.account.as_str()), (2, "A"));
        assert_eq!(remote.link.deny_exports, ["a", "b"]);
        assert!(remote.link.is_hub && remote.is_disabled && remote.link.requests_isolation);
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let remote = |keys: &str| format!("leafnodes {{ remotes: [{{ {keys} }}] }}");
        let url = "url: \"nats-leaf://h\"";
        for (text, reason) in [
            (remote("url: \"ws://h\", urls: [\"ws://h\", \"nats://h\"]"), "mix of websocket"),
            (remote(&format!("{url}, nkey: x")), "nkey is not a valid seed"),
            (remote(&format!("{url}, deny_imports: \"a..b\"")), "not a valid subject"),
            (remote(""), "has a url"),
            (format!("leafnodes {{ remotes: [{{ {url} }}, {{ {url} }}] }}"), "duplicate remote"),
            ("leafnodes { min_version: 2.7.0 }".to_owned(), "should be at least 2.8.0"),
            (
                "leafnodes { authorization { user: a, users: [] } }".to_owned(),
                "can not have a single user/pass and a users array",
            ),
            (
                "leafnodes { authorization { users: [{user: b}, {user: b}] } }".to_owned(),
                "duplicate user \"b\" detected",
            ),
            ("leafnodes { nonsense: 1 }".to_owned(), "nonsense"),
        ] {
            assert!(refused(&text).contains(reason), "{text}: {}", refused(&text));
        }
    }
}
