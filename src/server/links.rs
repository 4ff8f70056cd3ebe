//! Membership in the cluster on the control side: the port for routes, dialling, and members.
//!
//! A thread of its own decides, with [`crate::cluster`], and hands connected sockets to shards; one
//! more accepts, and there is one for each server that is being dialled, which may take a second.

use std::io;
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never, select};
use tracing::{debug, error, info};

use super::deciders::{DecidingInputs, DecidingThreads};
use super::listen::host_port;
use super::shards::Shards;
use super::strangers::Strangers;
use super::{ClusterMembership, ServerIdentity, listen};
use crate::cluster::{ClientUrls, Members, Plan, Pooling, RouteStep};
use crate::config::{Options, RouteUrl, StartError, advertised};
use crate::engine::{NewRoute, Peer, RouteNotice};
use crate::host::Tree;
use crate::shard::{Address, Control, RouteOrder};

/// The time that a server has to accept a connection.
const DIAL_MAX: Duration = Duration::from_secs(1);
/// Servers dialled at one time; the others are dialled later.
pub(super) const DIALS_MAX: usize = 32;
/// Attempts to reach a server per error in the log; the first attempt is always logged.
const ATTEMPTS_PER_REPORT: u32 = 3600;

/// The outcome of dialling: target, attempt, URL, and the socket or the error.
type Dialed = (u64, u32, RouteUrl, io::Result<TcpStream>);

/// Listens for routes, if a port for them is configured.
pub(super) fn bind(options: &Options) -> Result<Option<TcpListener>, StartError> {
    let cluster = &options.cluster;
    cluster.port.map(|port| listen::bind_cluster(&cluster.host, port)).transpose()
}

/// Returns this server's membership in the cluster; `None` without a `listener`.
pub(super) fn identify(
    options: &Options,
    listener: Option<&TcpListener>,
    identity: &ServerIdentity,
) -> Result<Option<ClusterMembership>, StartError> {
    let Some(listener) = listener else { return Ok(None) };
    let address = listener.local_addr();
    let address =
        address.map_err(|error| StartError::new(format!("cannot tell the port: {error}")))?;
    let made_up = || std::iter::repeat_with(fastrand::alphanumeric).take(22).collect();
    Ok(Some(ClusterMembership {
        name: options.cluster_name().cloned().unwrap_or_else(made_up),
        is_dynamic: options.cluster_name().is_none(),
        host: options.cluster.host.clone(),
        port: address.port(),
        urls: client_urls(options, identity),
        pooling: options.pooling(),
    }))
}

fn client_urls(options: &Options, identity: &ServerIdentity) -> ClientUrls {
    let websocket = identity.websocket.as_ref();
    let advertise =
        options.network.websocket.as_ref().and_then(|options| options.advertise.as_deref());
    ClientUrls {
        tcp: Some(urls(
            options.network.client_advertise.as_deref(),
            &options.network.host,
            identity.port,
        )),
        websocket: websocket.map(|endpoint| urls(advertise, &endpoint.host, endpoint.port)),
        leaf: None,
    }
}

/// Returns the addresses for clients: `advertise`, else that of the listener, or all addresses of
/// this host if it listens on all.
fn urls(advertise: Option<&str>, host: &str, port: u16) -> Vec<String> {
    if advertise.is_some() {
        let (host, port) = advertised(advertise, host, port);
        return vec![host_port(host, port)];
    }
    if host.parse::<IpAddr>().is_ok_and(|host| host.is_unspecified()) {
        let addresses = Tree::default().addresses();
        return addresses.iter().map(|ip| host_port(&ip.to_string(), port)).collect();
    }
    vec![host_port(host, port)]
}

/// Starts the threads that decide about routes, if there is a `listener`.
pub(super) fn start(
    listener: Option<TcpListener>,
    identity: &ServerIdentity,
    options: &Arc<Options>,
    shards: &Shards,
) -> Result<Option<DecidingThreads>, StartError> {
    let (Some(listener), Some(own)) = (listener, &identity.cluster) else { return Ok(None) };
    let failed = |error: io::Error| StartError::new(format!("cannot listen for routes: {error}"));
    info!("Cluster name is {}", own.name);
    if own.is_dynamic {
        tracing::warn!("Cluster name was dynamically generated, consider setting one");
    }
    warn_if_insecure(options);
    let at = host_port(&options.cluster.host, own.port);
    info!("Listening for route connections on {at}");
    let (addresses, notices, started) = shards.for_cluster();
    let (dialed_to, dialed) = bounded(DIALS_MAX);
    let side = RouteDecider {
        members: Members::new(plan(&identity.id, &own.pooling, options), fastrand::u64(..)),
        addresses,
        started,
        id: identity.id.clone(),
        pooling: own.pooling.clone(),
        cluster: own.name.clone(),
        name: first_name(&options.cluster.routes),
        last_rid: 0,
        strangers: Strangers::new("Route"),
        dialing: 0,
        dialed_to,
    };
    let decide = move |inputs: &DecidingInputs| side.run(&notices, &dialed, inputs);
    let threads = DecidingThreads::start("cluster", Some((listener, "route")), decide);
    threads.map(Some).map_err(failed)
}

/// Warns about `insecure`, if it is in force.
fn warn_if_insecure(options: &Options) {
    if options.cluster.tls.as_ref().is_some_and(|tls| tls.is_insecure) {
        tracing::warn!(
            "TLS certificate chain and hostname of solicited routes will not be verified. \
             DO NOT USE IN PRODUCTION!"
        );
    }
}

/// Returns the plan for the members from the options.
fn plan(id: &str, pooling: &Pooling, options: &Options) -> Plan {
    let cluster = &options.cluster;
    Plan {
        id: id.to_owned(),
        routes: cluster.routes.clone(),
        login: cluster.user.clone().map(|user| (user, cluster.password.clone())),
        connect_retries: cluster.connect_retries,
        connect_backoff: cluster.connect_backoff,
        no_advertise: cluster.no_advertise,
        pooling: pooling.clone(),
    }
}

/// State of the deciding thread.
struct RouteDecider {
    members: Members,
    addresses: Vec<Address>,
    started: Instant,
    id: String,
    pooling: Pooling,
    /// The cluster's name.
    cluster: String,
    /// The first host among the configured routes that is a name instead of an address.
    name: Option<String>,
    last_rid: u64,
    /// Routes that other servers have dialled.
    strangers: Strangers,
    dialing: usize,
    dialed_to: Sender<Dialed>,
}

impl RouteDecider {
    fn run(
        mut self,
        notices: &Receiver<RouteNotice>,
        dialed: &Receiver<Dialed>,
        inputs: &DecidingInputs,
    ) {
        let DecidingInputs { accepted, reloads, stopped } = inputs;
        loop {
            self.members.set_now(self.now());
            while let Some(step) = self.members.next_step() {
                self.carry_out(step);
            }
            let due = self.members.next_deadline().map(Duration::from_nanos);
            let due = due.map(|due| (self.started + due).saturating_duration_since(now()));
            let timer = due.map_or_else(never, crossbeam_channel::after);
            select! {
                recv(stopped) -> _ => return,
                recv(notices) -> notice => match notice {
                    Ok(notice) => self.on_notice(notice),
                    Err(_) => return,
                },
                recv(accepted) -> accepted => if let Ok((socket, address)) = accepted {
                    self.on_accepted(socket, address.ip());
                },
                recv(dialed) -> dialed => if let Ok((target, attempt, url, outcome)) = dialed {
                    self.on_dialed(target, attempt, &url, outcome);
                },
                recv(reloads) -> options => if let Ok(options) = options {
                    self.reload(&options);
                },
                recv(timer) -> _ => {}
            }
        }
    }

    fn reload(&mut self, options: &Options) {
        self.name = first_name(&options.cluster.routes);
        warn_if_insecure(options);
        self.members.reload(plan(&self.id, &self.pooling, options));
        if let Some(name) = options.cluster_name().filter(|name| **name != self.cluster).cloned() {
            info!("Cluster name updated to {name}");
            self.cluster.clone_from(&name);
            self.tell_all(&RouteOrder::Name { name, is_dynamic: false });
            self.members.on_named(None);
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(now().duration_since(self.started).as_nanos()).unwrap_or(u64::MAX)
    }

    fn on_notice(&mut self, notice: RouteNotice) {
        match notice {
            RouteNotice::Greeted { rid, info, ip } => {
                self.strangers.on_known(rid);
                self.members.on_greeted(rid, *info, &ip);
            }
            RouteNotice::Confirmed { rid } => self.members.on_confirmed(rid),
            RouteNotice::Heard { rid, info } => self.members.on_heard(rid, *info),
            RouteNotice::Ended { rid, is_self } => {
                self.strangers.on_ended(rid);
                self.members.on_ended(rid, is_self);
            }
            RouteNotice::Named { rid, name, is_dynamic } => {
                self.members.on_named(Some(rid));
                self.cluster.clone_from(&name);
                self.tell_all(&RouteOrder::Name { name, is_dynamic });
            }
        }
    }

    fn on_accepted(&mut self, socket: TcpStream, from: IpAddr) {
        if !self.strangers.admits(from, self.members.links()) {
            return;
        }
        let Some(rid) = self.hand_over(socket, None) else { return };
        self.members.on_accepted(rid);
        if let Some(longest) = self.strangers.enter(rid, from) {
            self.shard_of(longest).send(Control::Route(RouteOrder::TurnAway(longest)));
        }
    }

    fn on_dialed(
        &mut self,
        target: u64,
        attempt: u32,
        url: &RouteUrl,
        outcome: io::Result<TcpStream>,
    ) {
        self.dialing -= 1;
        let rid = match outcome {
            Ok(socket) => self.hand_over(socket, Some(url)),
            Err(error) => {
                let (at, number) = (host_port(&url.host, url.port), attempt.saturating_add(1));
                let line = format!(
                    "Error trying to connect to route (attempt {number}): dial tcp {at}: {error}"
                );
                report_attempt(attempt, &line);
                None
            }
        };
        self.members.on_dialed(target, rid);
    }

    /// Hands a socket to a shard. Returns the route's number; `None` if the peer has gone.
    fn hand_over(&mut self, socket: TcpStream, dialed: Option<&RouteUrl>) -> Option<u64> {
        let rid = self.last_rid + 1;
        let peer = greeted(&socket, rid)?;
        self.last_rid = rid;
        let host = dialed.map_or(String::new(), |url| self.certified(&url.host));
        let dialed = dialed.map(|url| url.login.clone());
        let route = NewRoute { rid, dialed, host };
        self.shard_of(rid).send(Control::AdoptRoute { socket: socket.into(), peer, route });
        Some(rid)
    }

    /// Returns the name that the certificate of the server at `host` must have. Certificates seldom
    /// have addresses, which other members announce; for an address it is the first name among the
    /// configured routes.
    fn certified(&self, host: &str) -> String {
        let name = self.name.as_ref().filter(|_| host.parse::<IpAddr>().is_ok());
        name.map_or(host, String::as_str).to_owned()
    }

    /// Returns the shard for a route: one after the other.
    fn shard_of(&self, rid: u64) -> &Address {
        let shards = self.addresses.len() as u64;
        let at = usize::try_from(rid % shards.max(1)).unwrap_or(0);
        &self.addresses[at]
    }

    fn carry_out(&mut self, step: RouteStep) {
        let order = |rid, order| self.shard_of(rid).send(Control::Route(order));
        match step {
            RouteStep::Register(rid, part) => order(rid, RouteOrder::Register(rid, part)),
            RouteStep::Close(rid) => order(rid, RouteOrder::Close(rid)),
            RouteStep::Ask(rid) => order(rid, RouteOrder::Ask(rid)),
            RouteStep::Remove(rid) => order(rid, RouteOrder::Remove(rid)),
            RouteStep::HearOn(rid) => order(rid, RouteOrder::HearOn(rid)),
            RouteStep::Gossip(rid, info) => order(rid, RouteOrder::Gossip(rid, info)),
            RouteStep::Urls(urls) => self.tell_all(&RouteOrder::Urls(urls)),
            RouteStep::Dial { target, url, attempt } => self.dial(target, url, attempt),
        }
    }

    fn tell_all(&self, order: &RouteOrder) {
        for address in &self.addresses {
            address.send(Control::Route(order.clone()));
        }
    }

    fn dial(&mut self, target: u64, url: RouteUrl, attempt: u32) {
        debug!("Trying to connect to route on {}", host_port(&url.host, url.port));
        let to = self.dialed_to.clone();
        let dial = move || {
            let outcome = connect(&url);
            // If the receiver has gone, the server is about to end.
            let _ = to.send((target, attempt, url, outcome));
        };
        let thread = std::thread::Builder::new().name("cluster-dial".to_owned());
        if self.dialing < DIALS_MAX && thread.spawn(dial).is_ok() {
            self.dialing += 1;
        } else {
            self.members.on_dialed(target, None);
        }
    }
}

fn first_name(routes: &[RouteUrl]) -> Option<String> {
    let mut hosts = routes.iter().map(|url| &url.host);
    hosts.find(|host| host.parse::<IpAddr>().is_err()).cloned()
}

/// Connects to the first address of the server that answers in time.
pub(super) fn connect(url: &RouteUrl) -> io::Result<TcpStream> {
    dial(&url.host, url.port, DIAL_MAX)
}

/// Connects to the first address of a server that answers in time.
pub(super) fn dial(host: &str, port: u16, patience: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, patience) {
            // A free port of this host may connect to itself.
            Ok(socket) if socket.local_addr().ok() == Some(address) => {
                let _ = socket.shutdown(Shutdown::Both);
                last = io::ErrorKind::ConnectionRefused.into();
            }
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[expect(clippy::disallowed_methods, reason = "the control side may look at the clock")]
pub(super) fn now() -> Instant {
    Instant::now()
}

/// Logs a failed attempt to reach another server: the first one, and then one of many.
pub(super) fn report_attempt(attempt: u32, line: &str) {
    if attempt.is_multiple_of(ATTEMPTS_PER_REPORT) {
        error!("{line}");
    } else {
        debug!("{line}");
    }
}

/// Prepares a connection to another server, and returns the peer with this number; `None` if it has
/// gone.
pub(super) fn greeted(socket: &TcpStream, number: u64) -> Option<Peer> {
    let address = socket.peer_addr().ok()?;
    // Messages are sent without delay; a failure costs only latency.
    let _ = socket.set_nodelay(true);
    let ip = address.ip().to_canonical().to_string();
    Some(Peer { cid: number, ip: ip.into(), port: address.port() })
}
