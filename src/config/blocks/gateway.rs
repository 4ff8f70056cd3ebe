//! The block `gateway`: connections to other clusters.

use super::bind::permissions;
use super::field::Action::{Ignore, Refuse, Set};
use super::field::{Field, Key, bind_map};
use super::rules::BrokenRule;
use super::tls;
use super::{Options, StartError, unsupported};
use crate::auth::Secret;
use crate::cluster::RouteUrl;
use crate::proto::route::NO_CLUSTER;
use crate::transport::MutualTls;

/// Options of the server as a member of a cluster that is connected to others.
#[derive(Debug, Clone, PartialEq)]
pub struct GatewayOptions {
    /// The name of this server's cluster among the others, without blanks (none: no gateways).
    pub name: Option<String>,
    /// Address or host name to listen on for other clusters (`0.0.0.0`).
    pub host: String,
    /// Port for other clusters; 0 is any free port.
    pub port: Option<u16>,
    /// `host[:port]` at which other clusters reach this server (none: its listener's).
    pub advertise: Option<String>,
    /// The user name of servers of other clusters, which this server also sends to those whose
    /// address has none (none).
    pub user: Option<String>,
    /// The user's password, or its bcrypt hash.
    pub password: Secret,
    /// Milliseconds from a gateway's connection to its credentials (2000).
    pub timeout_ms: u64,
    /// Further attempts to connect to a cluster that was announced by others (0).
    pub connect_retries: u32,
    /// Whether the pause grows after each attempt, up to 30 s, instead of being a second (false).
    pub connect_backoff: bool,
    /// Whether clusters that are not among the remotes are refused (false).
    pub reject_unknown: bool,
    /// Milliseconds that output may take on its way to another cluster (0: as for clients).
    pub write_deadline_ms: u64,
    /// Clusters that this server connects to.
    pub remotes: Vec<RemoteGatewayOptions>,
    /// TLS for gateways, with certificates on both sides (none: in clear, from any host).
    pub tls: Option<MutualTls>,
}

/// Another cluster that this server connects to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RemoteGatewayOptions {
    /// The name of the cluster.
    pub name: String,
    /// The addresses of its servers.
    pub urls: Vec<RouteUrl>,
    /// TLS for connections to it (none: as for all gateways).
    pub tls: Option<MutualTls>,
}

impl Default for GatewayOptions {
    fn default() -> Self {
        Self {
            name: None,
            host: "0.0.0.0".to_owned(),
            port: None,
            advertise: None,
            user: None,
            password: Secret::new(""),
            timeout_ms: 2000,
            connect_retries: 0,
            connect_backoff: false,
            reject_unknown: false,
            write_deadline_ms: 0,
            remotes: Vec::new(),
            tls: None,
        }
    }
}

impl GatewayOptions {
    /// Returns the clusters that this server connects to: all remotes but its own.
    pub fn others(&self) -> impl Iterator<Item = &RemoteGatewayOptions> {
        self.remotes.iter().filter(|remote| Some(&remote.name) != self.name.as_ref())
    }
}

impl Options {
    /// Returns the name of the server's cluster, if it is configured; the block `gateway` names
    /// it, too.
    pub fn cluster_name(&self) -> Option<&String> {
        self.cluster.name.as_ref().or(self.gateway.name.as_ref())
    }
}

/// Binds the block `gateway`.
pub(super) fn bind(options: &mut Options, v: &mut Field<'_>) -> Result<(), StartError> {
    let mut gateway = GatewayOptions::default();
    bind_map(&[GATEWAY], v.map()?, &mut gateway, v.warnings)?;
    options.gateway = gateway;
    Ok(())
}

pub(super) const GATEWAY: &[Key<GatewayOptions>] = &[
    Key(&["name"], Set(name)),
    Key(
        &["listen"],
        Set(|g, v| {
            let (host, port) = v.address()?;
            g.port = Some(port);
            g.host = host.unwrap_or_else(|| std::mem::take(&mut g.host));
            Ok(())
        }),
    ),
    Key(&["host", "net"], Set(|g, v| v.text().map(|host| g.host = host))),
    Key(&["port"], Set(|g, v| v.port().map(|port| g.port = Some(port)))),
    Key(&["advertise"], Set(|g, v| v.text().map(|at| g.advertise = Some(at)))),
    Key(&["authorization"], Set(authorization)),
    Key(&["tls"], Set(|g, v| tls::bind_mutual(v, "Gateway").map(|tls| g.tls = Some(tls)))),
    Key(&["gateways"], Set(|g, v| v.each(remote).map(|all| g.remotes = all))),
    Key(
        &["connect_retries"],
        Set(|g, v| {
            v.size(i32::MAX.unsigned_abs()).map(|n| {
                g.connect_retries = u32::try_from(n).unwrap_or(u32::MAX);
            })
        }),
    ),
    Key(&["connect_backoff"], Set(|g, v| v.boolean().map(|on| g.connect_backoff = on))),
    Key(
        &["reject_unknown", "reject_unknown_cluster"],
        Set(|g, v| v.boolean().map(|on| g.reject_unknown = on)),
    ),
    Key(&["write_deadline"], Set(|g, v| v.duration_ms().map(|ms| g.write_deadline_ms = ms))),
    Key(&["write_timeout"], Ignore(write_timeout)),
];

fn write_timeout(v: &mut Field<'_>) -> Result<(), StartError> {
    match v.text()?.as_str() {
        "default" | "close" | "retry" => Ok(()),
        _ => Err(v.error("write_timeout is one of default, close, retry")),
    }
}

fn name(gateway: &mut GatewayOptions, v: &mut Field<'_>) -> Result<(), StartError> {
    let name = v.text()?;
    if name.contains(' ') {
        return Err(v.error("gateway name cannot contain spaces"));
    }
    if name == NO_CLUSTER {
        return Err(v.error(format!("gateway name \"{NO_CLUSTER}\" is reserved")));
    }
    gateway.name = Some(name);
    Ok(())
}

const REMOTE: &[Key<RemoteGatewayOptions>] = &[
    Key(&["name"], Set(|r, v| v.text().map(|name| r.name = name))),
    Key(&["url"], Set(|r, v| url(v).map(|url| r.urls.push(url)))),
    Key(&["urls"], Set(|r, v| v.each(url).map(|urls| r.urls.extend(urls)))),
    Key(&["tls"], Set(|r, v| tls::bind_mutual(v, "Gateway").map(|tls| r.tls = Some(tls)))),
];

fn url(v: &mut Field<'_>) -> Result<RouteUrl, StartError> {
    RouteUrl::parse(&v.text()?).map_err(|_| {
        v.error("a gateway is reached at nats://host:port, perhaps with user:password@")
    })
}

fn remote(v: &mut Field<'_>) -> Result<RemoteGatewayOptions, StartError> {
    let mut remote = RemoteGatewayOptions::default();
    bind_map(&[REMOTE], v.map()?, &mut remote, v.warnings)?;
    Ok(remote)
}

const AUTHORIZATION: &[Key<GatewayOptions>] = &[
    Key(&["user", "username"], Set(|g, v| v.text().map(|name| g.user = Some(name)))),
    Key(&["password", "pass"], Set(|g, v| v.text().map(|p| g.password = Secret::new(p)))),
    Key(&["timeout"], Set(|g, v| v.login_timeout_ms().map(|ms| g.timeout_ms = ms))),
    Key(
        &["users"],
        Set(|_, v| Err(v.error("Gateway authorization does not allow multiple users"))),
    ),
    Key(&["token"], Set(|_, v| Err(v.error("Gateway authorization does not support tokens")))),
    Key(
        &["auth_callout", "auth_hook"],
        Set(|_, v| Err(v.error("Gateway authorization does not support callouts"))),
    ),
    Key(
        &["default_permission", "default_permissions", "permissions"],
        Ignore(|v| permissions(v).map(drop)),
    ),
    Key(&["proxy_required"], Refuse(unsupported::any)),
];

fn authorization(gateway: &mut GatewayOptions, v: &mut Field<'_>) -> Result<(), StartError> {
    bind_map(&[AUTHORIZATION], v.map()?, gateway, v.warnings)
}

/// Checks the rules for gateways.
pub(super) fn check(options: &Options, broken: &mut Vec<BrokenRule>) {
    let gateway = &options.gateway;
    let mut refuse = |key, reason: String| {
        broken.push(BrokenRule::of(&["gateway"], reason).within([key]));
    };
    let name = match (&gateway.name, gateway.port) {
        (None, None) => return,
        (None, Some(_)) => return refuse("port", "gateway has no name".to_owned()),
        (Some(name), None) => {
            let reason =
                format!("gateway \"{name}\" has no port specified (select -1 for random port)");
            return refuse("name", reason);
        }
        (Some(name), Some(_)) => name,
    };
    for (at, remote) in gateway.remotes.iter().enumerate() {
        if remote.name.is_empty() {
            refuse("gateways", format!("gateway in the list {at} has no name"));
        } else if remote.urls.is_empty() {
            refuse("gateways", format!("gateway \"{}\" has no URL", remote.name));
        }
    }
    if options.cluster.name.as_ref().is_some_and(|cluster| cluster != name) {
        let reason = "cluster name conflicts between cluster and gateway definitions";
        refuse("name", reason.to_owned());
    }
}
