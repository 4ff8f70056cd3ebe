//! Connections to other clusters on the control side: the port for gateways, dialling, and what is
//! known of other clusters.
//!
//! A thread of its own decides, with [`crate::cluster::gateways`], as `server::links` does for
//! routes. Dialled gateways go to the last shard, which knows the nearest cluster; accepted ones to
//! the shards in turn.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never, select};
use tracing::{debug, info};

use super::ServerIdentity;
use super::deciders::{DecidingInputs, DecidingThreads};
use super::links::{DIALS_MAX, connect, greeted, now, report_attempt};
use super::listen::{self, host_port};
use super::shards::Shards;
use super::strangers::Strangers;
use crate::cluster::gateways::{ClusterMember, GatewayPlan, GatewayStep, OtherClusters};
use crate::config::{Options, RouteUrl, StartError, advertised};
use crate::engine::{DialedGateway, GatewayIdentity, GatewayNotice, NewGateway};
use crate::host::Tree;
use crate::shard::{Address, Control, GatewayOrder, RouteOrder};

/// An address that is dialled.
#[derive(Debug, Clone)]
struct Attempt {
    cluster: String,
    is_configured: bool,
    url: RouteUrl,
    round: u32,
}

/// The outcome of dialling: the socket or the error.
type DialOutcome = (Attempt, io::Result<TcpStream>);

/// Listens for other clusters, if a port for them is configured.
pub(super) fn bind(options: &Options) -> Result<Option<TcpListener>, StartError> {
    let gateway = &options.gateway;
    let port = gateway.port.filter(|_| gateway.name.is_some());
    port.map(|port| listen::bind_gateway(&gateway.host, port)).transpose()
}

/// Returns this server's place among other clusters; `None` without a `listener`.
pub(super) fn identify(
    options: &Options,
    listener: Option<&TcpListener>,
) -> Result<Option<GatewayIdentity>, StartError> {
    let (Some(listener), Some(name)) = (listener, &options.gateway.name) else { return Ok(None) };
    let address = listener.local_addr();
    let address =
        address.map_err(|error| StartError::new(format!("cannot tell the port: {error}")))?;
    let (host, port) = (options.gateway.host.clone(), address.port());
    let url = url(options.gateway.advertise.as_deref(), &host, port);
    Ok(Some(GatewayIdentity { name: name.clone(), host, port, url }))
}

/// Returns the address for other clusters: `advertise`, else that of the listener, or the first
/// address of this host if it listens on all.
fn url(advertise: Option<&str>, host: &str, port: u16) -> String {
    if advertise.is_some() {
        let (host, port) = advertised(advertise, host, port);
        return host_port(host, port);
    }
    let is_any = host.parse::<IpAddr>().is_ok_and(|host| host.is_unspecified());
    let first = || Tree::default().addresses().first().map(|ip| ip.to_string());
    match is_any.then(first).flatten() {
        Some(ip) => host_port(&ip, port),
        None => host_port(host, port),
    }
}

/// Starts the threads that decide about gateways, if there is a `listener`.
pub(super) fn start(
    listener: Option<TcpListener>,
    identity: &ServerIdentity,
    options: &Arc<Options>,
    shards: &Shards,
) -> Result<Option<DecidingThreads>, StartError> {
    let (Some(listener), Some(own)) = (listener, &identity.gateway) else { return Ok(None) };
    let failed = |error: io::Error| StartError::new(format!("cannot listen for gateways: {error}"));
    info!("Gateway name is {}", own.name);
    info!("Listening for gateways connections on {}", host_port(&own.host, own.port));
    info!("Address for gateway {:?} is {}", own.name, own.url);
    warn_if_insecure(options);
    let (addresses, notices, started) = shards.for_gateways();
    let (dialed_to, dialed) = bounded(DIALS_MAX);
    let plan = plan(identity, own, options);
    let begun = u64::try_from(now().duration_since(started).as_nanos()).unwrap_or(u64::MAX);
    let mut clusters = OtherClusters::new(plan, fastrand::u64(..));
    clusters.set_now(begun);
    let side = GatewayDecider {
        clusters,
        addresses,
        started,
        identity: identity.clone(),
        own: own.clone(),
        last_rid: 0,
        outbound: BTreeSet::new(),
        strangers: Strangers::new("Gateway"),
        dialing: 0,
        dialed_to,
    };
    let decide = move |inputs: &DecidingInputs| side.run(&notices, &dialed, inputs);
    let threads = DecidingThreads::start("gateway", Some((listener, "gateway")), decide);
    threads.map(Some).map_err(failed)
}

/// Warns about `insecure`, if it is in force.
fn warn_if_insecure(options: &Options) {
    let remotes = options.gateway.others().filter_map(|remote| remote.tls.as_ref());
    if options.gateway.tls.iter().chain(remotes).any(|tls| tls.is_insecure) {
        tracing::warn!(
            "TLS certificate chain and hostname of solicited gateways will not be verified. \
             DO NOT USE IN PRODUCTION!"
        );
    }
}

/// Returns the plan for other clusters from the options.
fn plan(identity: &ServerIdentity, own: &GatewayIdentity, options: &Options) -> GatewayPlan {
    let gateway = &options.gateway;
    let remotes = gateway.others().map(|remote| (remote.name.clone(), remote.urls.clone()));
    GatewayPlan {
        name: own.name.clone(),
        server_id: identity.id.clone(),
        server_name: identity.name.clone(),
        url: own.url.clone(),
        remotes: remotes.collect(),
        login: gateway.user.clone().map(|user| (user, gateway.password.clone())),
        connect_retries: gateway.connect_retries,
        connect_backoff: gateway.connect_backoff,
        reject_unknown: gateway.reject_unknown,
    }
}

/// State of the deciding thread.
struct GatewayDecider {
    clusters: OtherClusters,
    addresses: Vec<Address>,
    started: Instant,
    identity: ServerIdentity,
    own: GatewayIdentity,
    last_rid: u64,
    /// Gateways that this server has dialled.
    outbound: BTreeSet<u64>,
    strangers: Strangers,
    dialing: usize,
    dialed_to: Sender<DialOutcome>,
}

impl GatewayDecider {
    fn run(
        mut self,
        notices: &Receiver<GatewayNotice>,
        dialed: &Receiver<DialOutcome>,
        inputs: &DecidingInputs,
    ) {
        let DecidingInputs { accepted, reloads, stopped } = inputs;
        loop {
            let now_ns = now().duration_since(self.started).as_nanos();
            self.clusters.set_now(u64::try_from(now_ns).unwrap_or(u64::MAX));
            while let Some(step) = self.clusters.next_step() {
                self.carry_out(step);
            }
            let due = self.clusters.next_deadline().map(Duration::from_nanos);
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
                recv(dialed) -> dialed => if let Ok((attempt, outcome)) = dialed {
                    self.on_dialed(&attempt, outcome);
                },
                recv(reloads) -> options => if let Ok(options) = options {
                    warn_if_insecure(&options);
                    self.clusters.reload(plan(&self.identity, &self.own, &options));
                },
                recv(timer) -> _ => {}
            }
        }
    }

    fn on_notice(&mut self, notice: GatewayNotice) {
        match notice {
            GatewayNotice::Greeted { rid, info } => {
                self.strangers.on_known(rid);
                self.clusters.on_greeted(rid, &info);
            }
            GatewayNotice::Heard { rid, info } => self.clusters.on_heard(rid, &info),
            GatewayNotice::Gossip { route, info } => self.clusters.on_gossip(route, &info),
            GatewayNotice::Member { route, id, name, url } => {
                self.clusters.on_member(route, ClusterMember { id, name, url });
            }
            GatewayNotice::MemberGone { route } => self.clusters.on_member_gone(route),
            GatewayNotice::Ended { rid } => {
                self.strangers.on_ended(rid);
                self.clusters.on_ended(rid);
                self.outbound.remove(&rid);
            }
        }
    }

    fn on_accepted(&mut self, socket: TcpStream, from: IpAddr) {
        if !self.strangers.admits(from, self.clusters.gateways()) {
            return;
        }
        let Some(rid) = self.hand_over(socket, None) else { return };
        self.clusters.on_accepted(rid);
        if let Some(longest) = self.strangers.enter(rid, from) {
            self.order(longest, GatewayOrder::Close(longest, "Maximum Connections Exceeded"));
        }
    }

    fn on_dialed(&mut self, attempt: &Attempt, outcome: io::Result<TcpStream>) {
        self.dialing -= 1;
        let Attempt { cluster, url, round, .. } = attempt;
        let rid = match outcome {
            Ok(socket) => self.hand_over(socket, Some(attempt)),
            Err(error) => {
                let kind = if attempt.is_configured { "explicit" } else { "implicit" };
                let (at, number) = (host_port(&url.host, url.port), round.saturating_add(1));
                let line = format!(
                    "Error connecting to {kind} gateway {cluster:?} ({at}) (attempt {number}): \
                     dial tcp {at}: {error}"
                );
                report_attempt(*round, &line);
                None
            }
        };
        self.clusters.on_dialed(cluster, rid);
    }

    /// Hands a socket to a shard. Returns the gateway's number; `None` if the peer has gone.
    fn hand_over(&mut self, socket: TcpStream, dialed: Option<&Attempt>) -> Option<u64> {
        let rid = self.last_rid + 1;
        let peer = greeted(&socket, rid)?;
        self.last_rid = rid;
        let dialed = dialed.map(|attempt| DialedGateway {
            cluster: attempt.cluster.clone(),
            is_configured: attempt.is_configured,
            login: attempt.url.login.clone(),
            host: attempt.url.host.clone(),
        });
        if dialed.is_some() {
            self.outbound.insert(rid);
        }
        let gateway = NewGateway { rid, dialed };
        let control = Control::AdoptGateway { socket: socket.into(), peer, gateway };
        self.shard_of(rid).send(control);
        Some(rid)
    }

    /// Returns the shard of a gateway: the last one for those that were dialled, the others one
    /// after the other.
    fn shard_of(&self, rid: u64) -> &Address {
        let shards = self.addresses.len();
        let in_turn = usize::try_from(rid % shards.max(1) as u64).unwrap_or(0);
        let at = if self.outbound.contains(&rid) { shards - 1 } else { in_turn };
        &self.addresses[at]
    }

    fn order(&self, rid: u64, order: GatewayOrder) {
        self.shard_of(rid).send(Control::Gateway(order));
    }

    fn carry_out(&mut self, step: GatewayStep) {
        match step {
            GatewayStep::Register(rid, others) => {
                self.order(rid, GatewayOrder::Register(rid, others));
            }
            GatewayStep::Close(rid, reason) => self.order(rid, GatewayOrder::Close(rid, reason)),
            GatewayStep::HearOn(rid) => self.order(rid, GatewayOrder::HearOn(rid)),
            GatewayStep::HearRoute(route) => {
                self.tell_all(|| Control::Route(RouteOrder::HearOn(route)));
            }
            GatewayStep::Urls(urls) => {
                self.tell_all(|| Control::Gateway(GatewayOrder::Urls(urls.clone())));
            }
            GatewayStep::Members(members) => {
                self.tell_all(|| Control::Gateway(GatewayOrder::Members(members.clone())));
            }
            GatewayStep::Clusters(clusters) => {
                self.tell_all(|| Control::Gateway(GatewayOrder::Clusters(clusters.clone())));
            }
            GatewayStep::Dial { cluster, is_configured, url, round } => {
                self.dial(Attempt { cluster, is_configured, url, round });
            }
        }
    }

    fn tell_all(&self, control: impl Fn() -> Control) {
        self.addresses.iter().for_each(|address| address.send(control()));
    }

    fn dial(&mut self, attempt: Attempt) {
        let at = host_port(&attempt.url.host, attempt.url.port);
        let kind = if attempt.is_configured { "explicit" } else { "implicit" };
        debug!("Connecting to {kind} gateway {:?} at {at}", attempt.cluster);
        let (to, cluster) = (self.dialed_to.clone(), attempt.cluster.clone());
        let dial = move || {
            let outcome = connect(&attempt.url);
            // If the receiver has gone, the server is about to end.
            let _ = to.send((attempt, outcome));
        };
        let thread = std::thread::Builder::new().name("gateway-dial".to_owned());
        if self.dialing < DIALS_MAX && thread.spawn(dial).is_ok() {
            self.dialing += 1;
        } else {
            self.clusters.on_dialed(&cluster, None);
        }
    }
}
