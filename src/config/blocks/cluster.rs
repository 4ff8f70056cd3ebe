//! The block `cluster`: the server's routes to other members, and how members find one another.

use super::bind::permissions;
use super::field::Action::{Ignore, Refuse, Set};
use super::field::{Field, Key, bind_map};
use super::file::ValueKind;
use super::rules::BrokenRule;
use super::tls;
use super::{Options, StartError, unsupported};
use crate::auth::{Permissions, Secret};
use crate::cluster::{POOL_SIZE_MAX, Pooling, RouteUrl};
use crate::proto::route::NO_CLUSTER;
use crate::transport::{Compression, MutualTls};

/// Options of the cluster that the server is a member of.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterOptions {
    /// The cluster's name, without blanks (none: generated, and replaced by another member's).
    pub name: Option<String>,
    /// Address or host name to listen on for routes (`0.0.0.0`).
    pub host: String,
    /// Port for routes (none: no clustering); 0 is any free port.
    pub port: Option<u16>,
    /// `host[:port]` at which other members reach this server (none: its listener's).
    pub advertise: Option<String>,
    /// Whether clients and members are not told this server's addresses for clients (false).
    pub no_advertise: bool,
    /// The user name of the other members, which this server also sends to members that it hears of
    /// (none).
    pub user: Option<String>,
    /// The user's password, or its bcrypt hash.
    pub password: Secret,
    /// Milliseconds from a route's connection to its credentials (2000).
    pub timeout_ms: u64,
    /// Members that this server connects to, and reconnects to when they are lost.
    pub routes: Vec<RouteUrl>,
    /// Further attempts to connect to a member that another member has announced (0).
    pub connect_retries: u32,
    /// Whether the pause grows after each attempt, up to 30 s, instead of being a second (false).
    pub connect_backoff: bool,
    /// Milliseconds between two PINGs, at most 30 000 (30 000).
    pub ping_interval_ms: u64,
    /// PINGs without an answer before a route counts as stale (2).
    pub ping_max: u32,
    /// Connections to each other member, over which accounts are spread (3); 0 is one for all.
    pub pool_size: u16,
    /// Accounts with a connection of their own to each other member. The system account always has
    /// one.
    pub accounts: Vec<String>,
    /// `publish` filters the interest that other members are told; `subscribe` filters the interest
    /// that is accepted from them (none: everything passes).
    pub permissions: Option<Permissions>,
    /// TLS for routes, with certificates on both sides (none: in clear, from any host).
    pub tls: Option<MutualTls>,
    /// Compression of routes (accepted if the other server asks for it).
    pub compression: Compression,
    /// Milliseconds that output may take on its way to a member (0: as for clients).
    pub write_deadline_ms: u64,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            name: None,
            host: "0.0.0.0".to_owned(),
            port: None,
            advertise: None,
            no_advertise: false,
            user: None,
            password: Secret::new(""),
            timeout_ms: 2000,
            routes: Vec::new(),
            connect_retries: 0,
            connect_backoff: false,
            ping_interval_ms: PING_INTERVAL_MS_MAX,
            ping_max: 2,
            pool_size: POOL_SIZE,
            accounts: Vec::new(),
            permissions: None,
            tls: None,
            compression: Compression::default(),
            write_deadline_ms: 0,
        }
    }
}

impl Options {
    /// Returns the assignment of accounts to connections with a member. If there is a pool, the
    /// system account has a connection of its own.
    pub fn pooling(&self) -> Pooling {
        let named = self.cluster.accounts.iter().chain(&self.accounts.system);
        Pooling::new(self.cluster.pool_size, named.map(String::as_str))
    }
}

/// Connections to each other member by default.
const POOL_SIZE: u16 = 3;
/// Milliseconds between two PINGs on a route, at most.
const PING_INTERVAL_MS_MAX: u64 = 30_000;
/// Binds the block `cluster`.
pub(super) fn bind(options: &mut Options, v: &mut Field<'_>) -> Result<(), StartError> {
    let mut cluster = ClusterOptions::default();
    bind_map(&[CLUSTER], v.map()?, &mut cluster, v.warnings)?;
    options.cluster = cluster;
    Ok(())
}

pub(super) const CLUSTER: &[Key<ClusterOptions>] = &[
    Key(&["name"], Set(|c, v| v.text().map(|name| c.name = Some(name)))),
    Key(
        &["listen"],
        Set(|c, v| {
            let (host, port) = v.address()?;
            c.port = Some(port);
            c.host = host.unwrap_or_else(|| std::mem::take(&mut c.host));
            Ok(())
        }),
    ),
    Key(&["host", "net"], Set(|c, v| v.text().map(|host| c.host = host))),
    Key(&["port"], Set(|c, v| v.port().map(|port| c.port = Some(port)))),
    Key(&["advertise", "cluster_advertise"], Set(|c, v| v.text().map(|at| c.advertise = Some(at)))),
    Key(&["no_advertise"], Set(|c, v| v.boolean().map(|no| c.no_advertise = no))),
    Key(&["authorization"], Set(authorization)),
    Key(
        &["routes"],
        Set(|c, v| {
            c.routes =
                v.one_or_each(|v| RouteUrl::parse(&v.text()?).map_err(|reason| v.error(reason)))?;
            Ok(())
        }),
    ),
    Key(
        &["connect_retries"],
        Set(|c, v| {
            v.size(i32::MAX.unsigned_abs()).map(|n| {
                c.connect_retries = u32::try_from(n).unwrap_or(u32::MAX);
            })
        }),
    ),
    Key(&["connect_backoff"], Set(|c, v| v.boolean().map(|on| c.connect_backoff = on))),
    Key(
        &["ping_interval"],
        Set(|c, v| {
            let ms = v.duration_ms()?;
            c.ping_interval_ms = if ms == 0 { PING_INTERVAL_MS_MAX } else { ms };
            if ms > PING_INTERVAL_MS_MAX {
                v.warn("ping_interval of a cluster is at most \"30s\"; 30s is used");
            }
            c.ping_interval_ms = c.ping_interval_ms.min(PING_INTERVAL_MS_MAX);
            Ok(())
        }),
    ),
    Key(
        &["ping_max"],
        Set(|c, v| {
            let max = u32::try_from(v.size(i32::MAX.unsigned_abs())?).unwrap_or(u32::MAX);
            c.ping_max = if max == 0 { ClusterOptions::default().ping_max } else { max };
            Ok(())
        }),
    ),
    Key(&["pool_size"], Set(pool_size)),
    Key(
        &["compression"],
        Set(|c, v| read_compression(v, CompressionDefault::Route).map(|mode| c.compression = mode)),
    ),
    Key(&["accounts"], Set(|c, v| v.texts().map(|names| c.accounts = names))),
    Key(&["write_deadline"], Set(|c, v| v.duration_ms().map(|ms| c.write_deadline_ms = ms))),
    Key(&["write_timeout"], Ignore(unsupported::timeout)),
    Key(&["permissions"], Set(|c, v| permissions(v).map(|p| c.permissions = Some(p)))),
    Key(&["tls"], Set(|c, v| tls::bind_mutual(v, "Router").map(|tls| c.tls = Some(tls)))),
];

fn pool_size(cluster: &mut ClusterOptions, v: &mut Field<'_>) -> Result<(), StartError> {
    cluster.pool_size = match v.integer()? {
        0 => POOL_SIZE,
        ..0 => 0,
        size => match u16::try_from(size) {
            Ok(size) if size <= POOL_SIZE_MAX => size,
            _ => {
                let reason = format!("a pool has at most {POOL_SIZE_MAX} connections; write fewer");
                return Err(v.error(reason));
            }
        },
    };
    Ok(())
}

/// Round trips in milliseconds that separate the levels of `s2_auto`, by default.
const RTT_THRESHOLDS_MS: [u64; 3] = [10, 50, 100];
/// Round trips in a list, at most: more have no level to separate.
const RTT_THRESHOLDS_MAX: usize = 4;

/// Returns the compression of that name.
fn compression_named(mode: &str) -> Option<Compression> {
    Some(match mode.to_ascii_lowercase().as_str() {
        "off" | "disabled" | "none" | "not supported" | "not_supported" => Compression::Off,
        "accept" => Compression::Accept,
        "on" | "enabled" | "fast" | "s2_fast" => Compression::Fast,
        "better" | "s2_better" => Compression::Better,
        "best" | "s2_best" => Compression::Best,
        "auto" | "s2_auto" => by_round_trip(),
        _ => return None,
    })
}

/// The block `compression`.
#[derive(Default)]
struct CompressionBlock {
    mode: Compression,
    thresholds_ms: Option<Vec<u64>>,
}

const COMPRESSION: &[Key<CompressionBlock>] = &[
    Key(&["mode"], Set(|b, v| mode(v).map(|mode| b.mode = mode))),
    Key(
        &["rtt_thresholds", "thresholds", "rtts", "rtt"],
        Set(|b, v| thresholds(v).map(|ms| b.thresholds_ms = ms)),
    ),
];

fn mode(v: &Field<'_>) -> Result<Compression, StartError> {
    compression_named(&v.text()?).ok_or_else(|| {
        v.error("compression is off, accept, s2_fast, s2_better, s2_best or s2_auto")
    })
}

/// Reads round trips in milliseconds; `None` if all are zero.
fn thresholds(v: &mut Field<'_>) -> Result<Option<Vec<u64>>, StartError> {
    let all = v.each(|v| v.duration_ms())?;
    let given: Vec<u64> = all.iter().copied().filter(|ms| *ms > 0).collect();
    if all.len() > RTT_THRESHOLDS_MAX || !given.is_sorted() {
        return Err(v.error("rtt_thresholds are at most 4 durations, the shortest first"));
    }
    Ok((!given.is_empty()).then_some(all))
}

fn by_round_trip() -> Compression {
    Compression::Auto(RTT_THRESHOLDS_MS.to_vec())
}

/// The kind of links that a `compression` is for.
#[derive(Debug, Clone, Copy)]
pub(super) enum CompressionDefault {
    Route,
    Leaf,
}

impl CompressionDefault {
    /// Returns the mode that `compression: true` stands for.
    pub(super) fn when_on(self) -> Compression {
        match self {
            Self::Route => Compression::Fast,
            Self::Leaf => by_round_trip(),
        }
    }
}

/// Reads a `compression`: a mode, a boolean, or a block.
pub(super) fn read_compression(
    v: &mut Field<'_>,
    of: CompressionDefault,
) -> Result<Compression, StartError> {
    Ok(match &v.value.kind {
        ValueKind::Boolean(true) => of.when_on(),
        ValueKind::Boolean(false) => Compression::Off,
        ValueKind::Map(map) => {
            let mut block = CompressionBlock::default();
            bind_map(&[COMPRESSION], map, &mut block, v.warnings)?;
            match (block.mode, block.thresholds_ms) {
                (Compression::Auto(_), Some(ms)) => Compression::Auto(ms),
                (mode, _) => mode,
            }
        }
        _ => mode(v)?,
    })
}

const AUTHORIZATION: &[Key<ClusterOptions>] = &[
    Key(&["user", "username"], Set(|c, v| v.text().map(|name| c.user = Some(name)))),
    Key(&["password", "pass"], Set(|c, v| v.text().map(|p| c.password = Secret::new(p)))),
    Key(&["timeout"], Set(|c, v| v.login_timeout_ms().map(|ms| c.timeout_ms = ms))),
    Key(&["token", "users"], Set(|_, v| Err(v.error(ONE_USER)))),
    Key(
        &["default_permission", "default_permissions", "permissions", "auth_callout", "auth_hook"],
        Set(|_, v| Err(v.error(ONE_USER))),
    ),
    Key(&["proxy_required"], Refuse(unsupported::any)),
];

const ONE_USER: &str = "a cluster has one user and password for all; keep only those";

fn authorization(cluster: &mut ClusterOptions, v: &mut Field<'_>) -> Result<(), StartError> {
    bind_map(&[AUTHORIZATION], v.map()?, cluster, v.warnings)
}

/// Checks the rules for the cluster, whether the options come from the file or from flags.
pub(super) fn check(options: &Options, broken: &mut Vec<BrokenRule>) {
    let cluster = &options.cluster;
    let mut refuse = |key, reason: &str| {
        broken.push(BrokenRule::of(&["cluster"], reason).within([key]));
    };
    if let Some(name) = cluster.name.as_ref().filter(|name| name.contains(' ')) {
        refuse("name", &format!("cluster name \"{name}\" cannot contain spaces"));
    }
    if cluster.name.as_deref() == Some(NO_CLUSTER) {
        refuse("name", &format!("cluster name \"{NO_CLUSTER}\" is reserved"));
    }
    if cluster.pool_size == 0 && !cluster.accounts.is_empty() {
        let reason = "cluster accounts have routes of their own beside a pool, and a negative \
                      pool_size means none: leave one of the two out";
        refuse("accounts", reason);
    }
    if cluster.port.is_none() && !cluster.routes.is_empty() {
        let reason = "routes need a port where other servers reach this one; name it in \
                      cluster { port: … } or with --cluster";
        refuse("routes", reason);
    }
}
