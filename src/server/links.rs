//! The cluster on the control side: the port for routes, dialling, and who is a member.
//!
//! A thread of its own decides, with [`crate::cluster`], and hands connected sockets to shards;
//! one more accepts, and one for each server that is being dialled, which may take a second.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never, select};
use tracing::{debug, error, info};

use super::listen::host_port;
use super::shards::Shards;
use super::{ClusterIdentity, Identity, listen};
use crate::cluster::{ClientUrls, Members, Plan, Pooling, Step};
use crate::config::{Options, RouteUrl, StartError, advertised};
use crate::engine::{NewRoute, Peer, RouteNotice};
use crate::host::Tree;
use crate::measure::{Crowd, network};
use crate::shard::{ACCEPT_REST, Address, Control, RouteOrder};

/// How long a server may take to accept a connection.
const DIAL_MAX: Duration = Duration::from_secs(1);
/// Connections of servers that have said who they are, at one time; others are refused.
const LINKS_MAX: usize = 1024;
/// Of these one address that dials has at most so many: it leaves others their places, whether or
/// not a peer has to say a password.
const LINKS_PER_ADDRESS_MAX: usize = LINKS_MAX / 2;
/// Places for those who have dialled and not said who they are; beyond that one goes for each that
/// comes. A member says it at once, however many others wait for something.
const STRANGERS_MAX: usize = 256;
/// Servers that are dialled at one time; others are tried later.
const DIALS_MAX: usize = 32;
/// Options that wait to be taken over; who has others waits, too.
const RELOADS_MAX: usize = 1;
/// Accepted connections that wait to be looked at.
const ACCEPTED_MAX: usize = 16;
/// Of the attempts to reach a server the first is an error in the log, and then every so many.
const ATTEMPTS_PER_REPORT: u32 = 3600;

/// What came of dialling a target.
type Dialed = (u64, u32, RouteUrl, io::Result<TcpStream>);

/// The running cluster side. It ends when dropped.
pub(super) struct Cluster {
    listener: TcpListener,
    reload_to: Sender<Arc<Options>>,
    stop: Option<Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

/// Listens for routes, if there are to be any.
pub(super) fn bind(options: &Options) -> Result<Option<TcpListener>, StartError> {
    let cluster = &options.cluster;
    cluster.port.map(|port| listen::bind_cluster(&cluster.host, port)).transpose()
}

/// What this server, which is `identity` otherwise, is as a member.
pub(super) fn identify(
    options: &Options,
    listener: Option<&TcpListener>,
    identity: &Identity,
) -> Result<Option<ClusterIdentity>, StartError> {
    let Some(listener) = listener else { return Ok(None) };
    let address = listener.local_addr();
    let address =
        address.map_err(|error| StartError::new(format!("cannot tell the port: {error}")))?;
    let made_up = || std::iter::repeat_with(fastrand::alphanumeric).take(22).collect();
    Ok(Some(ClusterIdentity {
        name: options.cluster.name.clone().unwrap_or_else(made_up),
        is_dynamic: options.cluster.name.is_none(),
        host: options.cluster.host.clone(),
        port: address.port(),
        urls: client_urls(options, identity),
        pooling: options.pooling(),
    }))
}

fn client_urls(options: &Options, identity: &Identity) -> ClientUrls {
    let websocket = identity.websocket.as_ref();
    let advertise = options.websocket.as_ref().and_then(|options| options.advertise.as_deref());
    ClientUrls {
        tcp: Some(urls(options.client_advertise.as_deref(), &options.host, identity.port)),
        websocket: websocket.map(|endpoint| urls(advertise, &endpoint.host, endpoint.port)),
    }
}

/// Where clients may connect: what is said, else where the server listens, on all addresses of
/// this machine if it listens on all.
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

impl Cluster {
    /// Takes part in the cluster from now on, if there is a `listener`.
    pub(super) fn start(
        listener: Option<TcpListener>,
        identity: &Identity,
        options: &Arc<Options>,
        shards: &Shards,
    ) -> Result<Option<Self>, StartError> {
        let (Some(listener), Some(own)) = (listener, &identity.cluster) else { return Ok(None) };
        let failed =
            |error: io::Error| StartError::new(format!("cannot listen for routes: {error}"));
        info!("Cluster name is {}", own.name);
        if own.is_dynamic {
            tracing::warn!("Cluster name was dynamically generated, consider setting one");
        }
        warn_if_insecure(options);
        let at = host_port(&options.cluster.host, own.port);
        info!("Listening for route connections on {at}");
        let (addresses, notices, started) = shards.for_cluster();
        let (stop, stopped) = bounded(0);
        let (accepted_to, accepted) = bounded(ACCEPTED_MAX);
        let (dialed_to, dialed) = bounded(DIALS_MAX);
        let side = Side {
            members: Members::new(plan(&identity.id, &own.pooling, options), fastrand::u64(..)),
            addresses,
            started,
            id: identity.id.clone(),
            pooling: own.pooling.clone(),
            cluster: own.name.clone(),
            name: first_name(&options.cluster.routes),
            last_rid: 0,
            strangers: Crowd::new(STRANGERS_MAX),
            turned_away: BTreeSet::new(),
            accepted: BTreeMap::new(),
            dialing: 0,
            dialed_to,
        };
        let ends = listener.try_clone().map_err(failed)?;
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.to_owned()).spawn(run).map_err(failed)
        };
        let (reload_to, reloads) = bounded(RELOADS_MAX);
        let decide = move || side.run(&notices, &accepted, &dialed, &reloads, &stopped);
        let threads = vec![
            spawn("cluster", Box::new(decide))?,
            spawn("cluster-accept", Box::new(move || accept(&listener, &accepted_to)))?,
        ];
        Ok(Some(Self { listener: ends, reload_to, stop: Some(stop), threads }))
    }
}

/// Says what `insecure` means, wherever it is in force.
fn warn_if_insecure(options: &Options) {
    if options.cluster.tls.as_ref().is_some_and(|tls| tls.is_insecure) {
        tracing::warn!(
            "TLS certificate chain and hostname of solicited routes will not be verified. \
             DO NOT USE IN PRODUCTION!"
        );
    }
}

/// What its members have to know.
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

impl Cluster {
    /// Other options count, of which the shards know already.
    pub(super) fn reload(&self, options: &Arc<Options>) {
        // If nobody takes it the server is about to end.
        let _ = self.reload_to.send(Arc::clone(options));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.stop.take());
        // Wakes whoever accepts; if it fails there is nobody.
        let _ = rustix::net::shutdown(self.listener.as_fd(), rustix::net::Shutdown::Both);
        for thread in self.threads.drain(..) {
            // If it panicked, it has said so.
            let _ = thread.join();
        }
    }
}

/// Accepts until the listener is shut down or nobody wants more.
fn accept(listener: &TcpListener, to: &Sender<(TcpStream, SocketAddr)>) {
    loop {
        match listener.accept() {
            Ok(accepted) => {
                if to.send(accepted).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                error!("Error accepting route connection: {error}");
                rest();
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "this thread has nothing else to do")]
fn rest() {
    std::thread::sleep(ACCEPT_REST);
}

/// What the deciding thread has.
struct Side {
    members: Members,
    addresses: Vec<Address>,
    started: Instant,
    id: String,
    pooling: Pooling,
    /// The cluster's name.
    cluster: String,
    /// The first host of the configured routes that is a name.
    name: Option<String>,
    last_rid: u64,
    /// Who has dialled, and not said who it is.
    strangers: Crowd,
    /// Those of them who had to go, as long as they are not gone.
    turned_away: BTreeSet<u64>,
    /// The routes that others have dialled, each with where it came from.
    accepted: BTreeMap<u64, IpAddr>,
    dialing: usize,
    dialed_to: Sender<Dialed>,
}

impl Side {
    fn run(
        mut self,
        notices: &Receiver<RouteNotice>,
        accepted: &Receiver<(TcpStream, SocketAddr)>,
        dialed: &Receiver<Dialed>,
        reloads: &Receiver<Arc<Options>>,
        stopped: &Receiver<()>,
    ) {
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
        if let Some(name) = options.cluster.name.clone().filter(|name| *name != self.cluster) {
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
                self.strangers.leave(rid);
                self.members.on_greeted(rid, *info, &ip);
            }
            RouteNotice::Confirmed { rid } => self.members.on_confirmed(rid),
            RouteNotice::Heard { rid, info } => self.members.on_heard(rid, *info),
            RouteNotice::Ended { rid, is_self } => {
                self.strangers.leave(rid);
                self.turned_away.remove(&rid);
                self.accepted.remove(&rid);
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
        let unknown = self.strangers.len() + self.turned_away.len();
        if self.members.links().saturating_sub(unknown) >= LINKS_MAX {
            error!("Route connection refused: there are {LINKS_MAX} already");
            return;
        }
        // Who comes from elsewhere has another chance, for nobody may keep the others out.
        let leaving = self.turned_away.len();
        let leaving_max = if self.strangers.knows(from) { 1 } else { 2 } * STRANGERS_MAX;
        if leaving >= leaving_max {
            debug!("Route connection refused: {leaving} that had to go are not gone yet");
            return;
        }
        let network = network(from);
        let same = self.accepted.values().filter(|other| **other == network).count();
        if same >= LINKS_PER_ADDRESS_MAX {
            error!("Route connection refused: there are {same} from {from} already");
            return;
        }
        let Some(rid) = self.hand_over(socket, None) else { return };
        self.members.on_accepted(rid);
        self.accepted.insert(rid, network);
        if let Some(longest) = self.strangers.enter(rid, from) {
            self.turned_away.insert(longest);
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
                if attempt.is_multiple_of(ATTEMPTS_PER_REPORT) {
                    error!("{line}")
                } else {
                    debug!("{line}")
                }
                None
            }
        };
        self.members.on_dialed(target, rid);
    }

    /// Gives a socket to a shard. Returns the route's number; none if the peer is gone.
    fn hand_over(&mut self, socket: TcpStream, dialed: Option<&RouteUrl>) -> Option<u64> {
        let address = socket.peer_addr().ok()?;
        // Messages leave when they are there; without this only latency would suffer.
        let _ = socket.set_nodelay(true);
        self.last_rid += 1;
        let rid = self.last_rid;
        let ip = address.ip().to_canonical().to_string();
        let peer = Peer { cid: rid, ip: ip.into(), port: address.port() };
        let host = dialed.map_or(String::new(), |url| self.certified(&url.host));
        let dialed = dialed.map(|url| url.login.clone());
        let route = NewRoute { rid, dialed, host };
        self.shard_of(rid).send(Control::AdoptRoute { socket: socket.into(), peer, route });
        Some(rid)
    }

    /// Whom the certificate of the server at `host` has to be for. Certificates are seldom for
    /// addresses, which is how others speak of servers: with one, the first name that a route is
    /// configured with.
    fn certified(&self, host: &str) -> String {
        let name = self.name.as_ref().filter(|_| host.parse::<IpAddr>().is_ok());
        name.map_or(host, String::as_str).to_owned()
    }

    /// Routes go round the shards.
    fn shard_of(&self, rid: u64) -> &Address {
        let shards = self.addresses.len() as u64;
        let at = usize::try_from(rid % shards.max(1)).unwrap_or(0);
        &self.addresses[at]
    }

    fn carry_out(&mut self, step: Step) {
        let order = |rid, order| self.shard_of(rid).send(Control::Route(order));
        match step {
            Step::Register(rid, part) => order(rid, RouteOrder::Register(rid, part)),
            Step::Close(rid) => order(rid, RouteOrder::Close(rid)),
            Step::Ask(rid) => order(rid, RouteOrder::Ask(rid)),
            Step::Remove(rid) => order(rid, RouteOrder::Remove(rid)),
            Step::HearOn(rid) => order(rid, RouteOrder::HearOn(rid)),
            Step::Gossip(rid, info) => order(rid, RouteOrder::Gossip(rid, info)),
            Step::Urls(urls) => self.tell_all(&RouteOrder::Urls(urls)),
            Step::Dial { target, url, attempt } => self.dial(target, url, attempt),
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
            // If nobody waits for it the server is about to end.
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
fn connect(url: &RouteUrl) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (url.host.as_str(), url.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, DIAL_MAX) {
            // A free port of this machine may answer itself.
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
fn now() -> Instant {
    Instant::now()
}
