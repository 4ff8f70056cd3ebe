//! The process: from arguments to exit status.
//!
//! [`main`] reads the command line. [`run`] sets up the log, the listening socket, the shards and
//! the files. The thread it is called on then is the control thread: it waits for signals, reports
//! of shards and orders of the system account, and puts new options in force.
//!
//! Threads, and what each shares with others:
//!
//! - `shardcast`: the control thread (start, signals, reload, end); channels to the shards
//! - `shard-0`, …: all work for its connections, `shard-0` also accepts; lanes, `mesh::Sleep`,
//!   seats (atomic counters), options in an `Arc` that are read when they change
//! - `signals`: signals become messages to the control thread; a channel
//! - `monitor`: HTTP, with `-m`; channels, and a wait of at most 1 s for a shard
//! - `system`: events and requests of the system account; a bounded channel from the shards,
//!   answers as `Control::Publish`
//! - `ocsp`: the status of certificates, asked of responders, beside certificates that are stapled
//!   and where `ocsp_peer` is set; a bounded channel from `system`, answers as `Control::Login`
//! - `credentials`: credential checks, at a lower priority; a channel from the shards, answers as
//!   `Control::Login`
//! - `callouts`: questions to services about clients, their answers judged; a bounded channel from
//!   the shards, decisions as `Control::Login`
//! - `cluster`: membership, with a port for routes, beside it `cluster-accept` and one
//!   `cluster-dial` per server being dialled; channels, orders to shards as `Control::Route`
//! - `gateway`: connections to other clusters, in the same way, with `gateway-accept` and
//!   `gateway-dial`
//! - `leafnodes`: dialling of remotes, beside it one `leaf-dial` per server being dialled;
//!   channels, orders to shards as `Control::AdoptLeaf` and `Control::CloseLeaf`
//! - `log`: log lines, bounded in lines and bytes, what does not fit is dropped and counted; a
//!   bounded channel
//!
//! The control thread speaks to a shard by `shard::Control` on a channel and wakes it by an
//! eventfd; shards answer with `shard::Outcome`.

#![forbid(unsafe_code)]

mod callouts;
mod credential_checker;
mod deciders;
pub mod files;
mod gateways;
mod leaves;
mod links;
pub mod listen;
pub mod log;
mod log_file;
mod notify;
#[cfg(test)]
mod reference;
mod reload;
pub mod shards;
pub mod signals;
mod strangers;
pub mod streams;
mod syslog;
mod unix;

use std::ffi::OsString;
use std::io::{self, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded, never, select};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::auth::callout::ServerKeys;
use crate::config::args::{self, Args, Command};
use crate::config::{
    self, ConfigNotes, Configuration, Options, RuntimeOptions, StartError, manual,
};
use crate::doctor;
use crate::engine::SHARDS_MAX;
use crate::host::{Placement, Topology, Tree};
use crate::identity::{ClusterMembership, Endpoint, ServerIdentity};
use crate::import;
use crate::monitor::{Monitor, ServerStatus};
use crate::shard::{Door, Listener, Outcome};
use crate::system::{self, System, SystemOrder};
use crate::{GIT_COMMIT, VERSION};
use deciders::DecidingThreads;
use files::PortsFile;
use log::{FATAL, Log};
use notify::ServiceManager;
use shards::Shards;
use signals::SignalRequest;
use unix::SocketFile;

/// Orders of the system account that wait; a further one blocks its sender.
const ORDERS_MAX: usize = 1;
/// The largest payload without a warning, in bytes.
const PAYLOAD_BYTES_USUAL: usize = 8 * 1024 * 1024;

/// The surroundings of a server: a process of its own, or a program that has it as a part.
pub(crate) struct Surroundings<'a> {
    pub(crate) configuration: Configuration,
    /// The program's name, for files and the monitoring.
    pub(crate) program: String,
    /// The log; `None` if it is that of the program around.
    pub(crate) log: Option<&'a mut Log>,
    pub(crate) signals: Receiver<SignalRequest>,
    pub(crate) requests: Receiver<OwnerRequest>,
    /// Gets the identity once clients are accepted.
    pub(crate) ready: Option<Sender<Arc<ServerIdentity>>>,
}

/// A request of the program around the server.
pub(crate) enum OwnerRequest {
    /// Read the configuration again, from this text if there is one; send the outcome.
    Reload(Option<String>, Sender<Result<(), StartError>>),
    /// Stop accepting, and stop once the clients have gone.
    LameDuck,
    /// Stop now, in any state.
    Stop,
}

/// The parts of the running server that a signal may change.
struct Running<'a> {
    configuration: Configuration,
    options: Arc<Options>,
    identity: Arc<ServerIdentity>,
    log: Option<&'a mut Log>,
    shards: &'a Shards,
    /// The status that the monitoring and the system account read.
    told: watch::Sender<ServerStatus>,
    system: &'a System,
    cluster: Option<&'a DecidingThreads>,
    gateways: Option<&'a DecidingThreads>,
    leaves: &'a DecidingThreads,
    ports_file: Option<PortsFile>,
    is_lame_duck: bool,
    manager: ServiceManager,
}

/// Carries out the command of the command line.
pub fn main(mut argv: impl Iterator<Item = OsString>) -> ExitCode {
    let program = argv.next().unwrap_or_default();
    let program = Path::new(&program).file_name().unwrap_or("shardcast".as_ref());
    let program = program.to_string_lossy().into_owned();
    let done = argv
        .map(OsString::into_string)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|arg| StartError::new(format!("argument {} is not text", arg.display())))
        .and_then(args::parse)
        .and_then(|command| execute(command, &program));
    done.unwrap_or_else(|error| {
        for line in error.lines() {
            say(&mut io::stderr(), &format!("{program}: {line}"));
        }
        ExitCode::FAILURE
    })
}

fn execute(command: Command, program: &str) -> Result<ExitCode, StartError> {
    match command {
        Command::Help => say(&mut io::stdout(), &args::usage(program)),
        Command::HelpTls => say(&mut io::stdout(), &args::usage_of_tls()),
        Command::Version => say(&mut io::stdout(), &version(program)),
        Command::Completions(shell) => write(&manual::completions(&shell)?),
        Command::Man => write(&manual::man()?),
        Command::Signal(request) => signals::send(&request)?,
        Command::Doctor(words) => return Ok(doctor::main(&words)),
        Command::Import(from, args) => return import_streams(&from, &config::load(&args)?),
        Command::TestConfig(args) => return test_config(&config::load(&args)?, program),
        Command::Serve(args) => return run(&args, program.to_owned()),
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the line of `-v`: the version and, if the build knows it, the commit.
fn version(program: &str) -> String {
    match GIT_COMMIT {
        "not set" => format!("{program}: v{VERSION}"),
        commit => format!("{program}: v{VERSION} [{commit}]"),
    }
}

/// Writes to standard output; a failure is ignored.
fn write(text: &[u8]) {
    let _ = io::stdout().write_all(text);
}

/// Writes a line; a failure is ignored.
fn say(to: &mut dyn Write, line: &str) {
    let _ = writeln!(to, "{line}");
}

/// Returns the places of the shards. An error says that there are too many.
fn placement(options: &Options) -> Result<Placement, StartError> {
    let placement = options.runtime.placement(&Topology::read(&Tree::default()));
    if placement.cpus.len() > SHARDS_MAX {
        return Err(StartError::new(format!("--shards can be at most {SHARDS_MAX}")));
    }
    Ok(placement)
}

/// Imports the streams of a nats-server that has ended into the store that the options name.
fn import_streams(from: &Path, options: &Options) -> Result<ExitCode, StartError> {
    let Some(store_dir) = &options.jetstream.store_dir else {
        return Err(StartError::new(
            "import: where to? name the configuration file with -c, or a store_dir with -sd",
        ));
    };
    // The streams are divided among as many logs as the server has shards.
    let placement = placement(options)?;
    let directory = streams::StreamDirectory::open(store_dir, placement.cpus.len())?;
    let is_whole = import::run(from, &directory.logs().concat())?;
    Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn test_config(options: &Options, program: &str) -> Result<ExitCode, StartError> {
    let notes = &options.notes;
    for warning in notes.warnings.iter().chain(&notes.missing).chain(&notes.absent) {
        say(&mut io::stderr(), &format!("{program}: {warning}"));
    }
    if !notes.warnings.is_empty() {
        return Ok(ExitCode::FAILURE);
    }
    let Some(source) = &options.source else {
        return Err(StartError::new("no configuration file to check; give one with -c"));
    };
    let (path, sha256) = (source.path.display(), &source.sha256);
    let line = format!("{program}: configuration file {path} is valid (sha256:{sha256})");
    say(&mut io::stderr(), &line);
    Ok(ExitCode::SUCCESS)
}

/// Runs the server until a signal ends it. Errors are those of the start, with cause and remedy.
pub fn run(args: &Args, program: String) -> Result<ExitCode, StartError> {
    let options = config::load(args)?;
    let mut log = Log::start(&options.log)?;
    let elsewhere = options.log.file.is_some() || options.log.syslog.is_some();
    raise_open_files_limit();
    let ended = system::prepare(options).and_then(|options| {
        let around = Surroundings {
            configuration: Configuration { args: args.clone(), ..Configuration::default() },
            program,
            log: Some(&mut log),
            signals: signals::listen()?,
            requests: never(),
            ready: None,
        };
        serve(around, Arc::new(options))
    });
    if let Err(error) = &ended {
        error!(target: FATAL, "{error}");
    }
    drop(log);
    match ended {
        Ok(()) => Ok(ExitCode::SUCCESS),
        // A user who starts the server reads standard error, not the log file.
        Err(error) if elsewhere => Err(error),
        Err(_) => Ok(ExitCode::FAILURE),
    }
}

/// Runs a server that is part of a program until the program ends it. Errors are those of the
/// start, and of shards that fail.
pub(crate) fn embedded(around: Surroundings<'_>) -> Result<(), StartError> {
    let options = system::prepare(around.configuration.load()?)?;
    serve(around, Arc::new(options))
}

/// Checks what only all options together tell, and fetches the staples of certificates.
fn check(options: &Arc<Options>) -> Result<(), StartError> {
    options.check_leaf_accounts()?;
    options.check_mqtt()?;
    system::prepare_staples(options, None)
}

fn serve(around: Surroundings<'_>, options: Arc<Options>) -> Result<(), StartError> {
    // Of a program around a server its own manager does not want to hear.
    let manager = ServiceManager { listens: around.log.is_some() };
    check(&options)?;
    let accepting = AcceptingSockets::bind(&options)?;
    let http_listener = bind_monitor(&options)?;
    let cluster_listener = links::bind(&options)?;
    let gateway_listener = gateways::bind(&options)?;
    let bound = Bound { accepting: &accepting, http: http_listener.as_ref() };
    let keys = ServerKeys::default();
    let mut identity = identify(&options, around.program, &bound, &keys)?;
    identity.cluster = links::identify(&options, cluster_listener.as_ref(), &identity)?;
    identity.gateway = gateways::identify(&options, gateway_listener.as_ref())?;
    let placement = placement(&options)?;
    log_banner(&options, &identity, &placement);
    let streams = streams::start(&options.jetstream, placement.cpus.len())?;
    identity.streams = streams.as_ref().map(streams::StreamDirectory::place);
    let identity = Arc::new(identity);
    let shards = Shards::start(&options, &identity.of_engine(), keys, &placement.cpus)?;
    info!("  io_uring: tier {}", shards.tier());
    log_remarks(&options);
    if let Some(path) = &options.server.pid_file {
        files::write_pid(path)?;
    }
    let (told, standing) = watch::channel(ServerStatus::new(Arc::clone(&options)));
    let monitor = start_monitor(http_listener, &identity, standing.clone(), &shards)?;
    let (orders_to, orders) = bounded(ORDERS_MAX);
    let reporter = shards.reporter();
    let system = System::start(shards.news(), &identity, standing, reporter, orders_to)?;
    // Dropped before the system account, whose thread may wait for room.
    let orders = orders;
    let directory = options.server.ports_file_dir.as_deref();
    let ports_file = directory.map(|dir| PortsFile::write(dir, &identity)).transpose()?;
    let gateways = gateways::start(gateway_listener, &identity, &options, &shards)?;
    let cluster = links::start(cluster_listener, &identity, &options, &shards)?;
    let leaves = leaves::start(&options, &shards)?;
    // A client that is accepted now is served, and finds the files about the server.
    let (listeners, socket_file) = open(&options, accepting)?;
    shards.open(listeners);
    log_listeners(&options, &identity);
    info!("Server is ready");
    manager.ready();
    if let Some(ready) = around.ready {
        // Whoever does not wait for it has gone, and ends the server.
        let _ = ready.send(Arc::clone(&identity));
    }

    let mut running = Running {
        configuration: around.configuration,
        options,
        identity,
        log: around.log,
        shards: &shards,
        told,
        system: &system,
        cluster: cluster.as_ref(),
        gateways: gateways.as_ref(),
        leaves: &leaves,
        ports_file,
        is_lame_duck: false,
        manager,
    };
    let ended = running.control(&around.signals, &around.requests, &orders);
    // A requester that waits for an order gets no answer any more.
    drop(orders);
    info!("Initiating Shutdown...");
    manager.stopping("shutting down");
    let ports_file = running.ports_file.take();
    drop(monitor);
    drop(leaves);
    drop((cluster, gateways));
    drop(system);
    drop(shards);
    drop((ports_file, socket_file, streams));
    info!("Server Exiting..");
    ended
}

/// The bound sockets, in clear TCP or with TLS.
struct Bound<'a> {
    accepting: &'a AcceptingSockets,
    http: Option<&'a TcpListener>,
}

/// Sockets on which shards are to accept.
struct AcceptingSockets {
    clients: TcpListener,
    websocket: Option<TcpListener>,
    leaf: Option<TcpListener>,
    mqtt: Option<TcpListener>,
}

impl AcceptingSockets {
    fn bind(options: &Options) -> Result<Self, StartError> {
        Ok(Self {
            clients: listen::bind(&options.network.host, options.network.port)?,
            websocket: bind_websocket(options)?,
            leaf: bind_leaf(options)?,
            mqtt: bind_mqtt(options)?,
        })
    }
}

fn identify(
    options: &Options,
    program: String,
    bound: &Bound<'_>,
    keys: &ServerKeys,
) -> Result<ServerIdentity, StartError> {
    let port_of = |listener: &TcpListener| match listener.local_addr() {
        Ok(address) => Ok(address.port()),
        Err(error) => Err(StartError::new(format!("cannot tell the port: {error}"))),
    };
    let port = port_of(&bound.accepting.clients)?;
    let http = bound.http.map(port_of).transpose()?;
    let (monitoring, network) = (&options.monitoring, &options.network);
    let (host, is_tls) = (monitoring.host(&network.host), monitoring.is_tls());
    let http = http.map(|port| Endpoint { host: host.to_owned(), port, is_tls });
    let websocket = bound.accepting.websocket.as_ref().map(port_of).transpose()?;
    let is_wss = network.websocket.as_ref().is_some_and(|websocket| websocket.tls.is_some());
    let websocket = websocket.map(|port| Endpoint {
        host: websocket_host(options).to_owned(),
        port,
        is_tls: is_wss,
    });
    let (id, xkey) = (keys.id.public_key(), keys.xkey.public_key());
    let name = options.server.name.clone().unwrap_or_else(|| id.clone());
    let host = options.network.host.clone();
    let leaf = bound.accepting.leaf.as_ref().map(port_of).transpose()?.map(|port| Endpoint {
        host: options.leaf.host.clone(),
        port,
        is_tls: options.leaf.tls.is_some(),
    });
    let mqtt = bound.accepting.mqtt.as_ref().map(port_of).transpose()?.map(|port| Endpoint {
        host: mqtt_host(options).to_owned(),
        port,
        is_tls: network.mqtt.as_ref().is_some_and(|mqtt| mqtt.tls.is_some()),
    });
    Ok(ServerIdentity {
        program,
        id,
        xkey,
        name,
        host,
        port,
        websocket,
        http,
        leaf,
        mqtt,
        cluster: None,
        gateway: None,
        streams: None,
    })
}

/// Listens for clients on all sockets. Returns the listeners, and the Unix socket's file.
fn open(
    options: &Options,
    AcceptingSockets { clients, websocket, leaf, mqtt }: AcceptingSockets,
) -> Result<(Vec<Listener>, Option<SocketFile>), StartError> {
    listen::open(&clients, listen::CLIENTS)?;
    if let Some(websocket) = &websocket {
        listen::open(websocket, listen::WEBSOCKET)?;
    }
    let mut listeners = vec![Listener { socket: clients.into(), door: Door::Tcp }];
    if let Some(websocket) = websocket {
        listeners.push(Listener { socket: websocket.into(), door: Door::WebSocket });
    }
    if let Some(leaf) = leaf {
        listen::open(&leaf, listen::LEAF)?;
        listeners.push(Listener { socket: leaf.into(), door: Door::Leaf });
    }
    if let Some(mqtt) = mqtt {
        listen::open(&mqtt, listen::MQTT)?;
        listeners.push(Listener { socket: mqtt.into(), door: Door::Mqtt });
    }
    let Some(unix) = &options.network.unix else { return Ok((listeners, None)) };
    let (socket, file) = unix::bind(unix)?;
    listeners.push(Listener { socket, door: Door::Unix(unix.path.as_str().into()) });
    Ok((listeners, file))
}

fn bind_leaf(options: &Options) -> Result<Option<TcpListener>, StartError> {
    options.leaf.port.map(|port| listen::bind_leaf(&options.leaf.host, port)).transpose()
}

fn bind_mqtt(options: &Options) -> Result<Option<TcpListener>, StartError> {
    let port = options.network.mqtt.as_ref().and_then(|mqtt| mqtt.port);
    port.map(|port| listen::bind_mqtt(mqtt_host(options), port)).transpose()
}

/// Returns the host for MQTT clients; if they have none of their own, that of the client listener.
fn mqtt_host(options: &Options) -> &str {
    let host = options.network.mqtt.as_ref().and_then(|mqtt| mqtt.host.as_deref());
    host.unwrap_or(&options.network.host)
}

fn bind_websocket(options: &Options) -> Result<Option<TcpListener>, StartError> {
    let port = options.network.websocket.as_ref().and_then(|websocket| websocket.port);
    port.map(|port| listen::bind_websocket(websocket_host(options), port)).transpose()
}

/// Returns the host for WebSocket clients; if they have none of their own, that of the client
/// listener.
fn websocket_host(options: &Options) -> &str {
    let host = options.network.websocket.as_ref().and_then(|websocket| websocket.host.as_deref());
    host.unwrap_or(&options.network.host)
}

/// Returns the scheme of URLs of the port for MQTT clients.
fn mqtt_scheme(mqtt: &Endpoint) -> &'static str {
    if mqtt.is_tls { "tls" } else { "mqtt" }
}

fn log_listeners(options: &Options, identity: &ServerIdentity) {
    if let Some(websocket) = &identity.websocket {
        let scheme = if websocket.is_tls { "wss" } else { "ws" };
        let address = listen::host_port(&websocket.host, websocket.port);
        info!("Listening for websocket clients on {scheme}://{address}");
        if !websocket.is_tls {
            warn!("Websocket not configured with TLS. DO NOT USE IN PRODUCTION!");
        }
    }
    if let Some(leaf) = &identity.leaf {
        let address = listen::host_port(&leaf.host, leaf.port);
        info!("Listening for leafnode connections on {address}");
    }
    if let Some(mqtt) = &identity.mqtt {
        let address = listen::host_port(&mqtt.host, mqtt.port);
        info!("Listening for MQTT clients on {}://{address}", mqtt_scheme(mqtt));
    }
    if let Some(unix) = &options.network.unix {
        info!("Listening for local client connections on {}", unix.path);
    }
    let address = listen::host_port(&identity.host, identity.port);
    info!("Listening for client connections on {address}");
    if options.network.proxy_protocol {
        info!("PROXY protocol enabled for client connections");
    }
}

fn bind_monitor(options: &Options) -> Result<Option<TcpListener>, StartError> {
    let Some(http) = &options.monitoring.http else { return Ok(None) };
    let host = options.monitoring.host(&options.network.host);
    listen::bind_monitor(host, http.port).map(Some)
}

fn start_monitor(
    listener: Option<TcpListener>,
    identity: &Arc<ServerIdentity>,
    told: watch::Receiver<ServerStatus>,
    shards: &Shards,
) -> Result<Option<Monitor>, StartError> {
    let (Some(listener), Some(http)) = (listener, &identity.http) else { return Ok(None) };
    let scheme = if http.is_tls { "https" } else { "http" };
    info!("Starting {scheme} monitor on {}", listen::host_port(&http.host, http.port));
    Monitor::start(listener, identity, told, shards.reporter()).map(Some)
}

fn log_banner(options: &Options, identity: &ServerIdentity, placement: &Placement) {
    info!("Starting shardcast");
    info!("  Version:  {VERSION}");
    info!("  Git:      [{}]", GIT_COMMIT);
    info!("  Name:     {}", identity.name);
    info!("  ID:       {}", identity.id);
    info!("  Shards:   {placement}");
    if let Some(cluster) = &identity.cluster {
        info!("  Cluster:  {}", cluster.name);
    }
    let RuntimeOptions { busy_poll_us, napi_us, .. } = options.runtime;
    if busy_poll_us > 0 || napi_us > 0 {
        info!("  Polling:  {busy_poll_us} µs by shards, {napi_us} µs by the kernel");
    }
}

fn log_remarks(options: &Options) {
    if options.auth.has_plaintext() {
        warn!("Plaintext passwords detected, use nkeys or bcrypt");
    }
    if options.limits.payload_bytes_max > PAYLOAD_BYTES_USUAL {
        warn!(
            "Maximum payloads over 8 MB are discouraged: they delay the messages of other clients"
        );
    }
    log_notes(&options.notes);
    if let Some(source) = &options.source {
        let path = source.path.display();
        info!("Using configuration file: {path} (sha256:{})", source.sha256);
    }
}

fn log_notes(notes: &ConfigNotes) {
    for warning in notes.warnings.iter().chain(&notes.missing) {
        warn!("{warning}");
    }
    for absent in &notes.absent {
        error!("{absent}");
    }
}

impl Running<'_> {
    /// Handles signals, requests, orders and outcomes of shards until the server ends.
    fn control(
        &mut self,
        signals: &Receiver<SignalRequest>,
        requests: &Receiver<OwnerRequest>,
        orders: &Receiver<SystemOrder>,
    ) -> Result<(), StartError> {
        let gone = "all shards have stopped; see the log above";
        loop {
            let goes_on = select! {
                recv(signals) -> request => {
                    let request = request.unwrap_or(SignalRequest::Terminate);
                    info!("Trapped \"{}\" signal", request.signal_name());
                    self.on_signal(request)
                }
                // A program that has dropped its handle wants the server no more.
                recv(requests) -> request => self.on_request(request.unwrap_or(OwnerRequest::Stop)),
                recv(self.shards.outcomes()) -> outcome => match outcome {
                    Ok(Outcome::Drained) => false,
                    Ok(Outcome::Failed(reason)) => return Err(StartError::new(reason)),
                    Err(_) => return Err(StartError::new(gone)),
                },
                recv(orders) -> order => {
                    match order {
                        Ok(SystemOrder::End(reason)) => return Err(StartError::new(reason)),
                        Ok(order) => self.obey(order),
                        Err(_) => {}
                    }
                    true
                }
            };
            if !goes_on {
                return Ok(());
            }
        }
    }

    /// Returns whether the server goes on.
    fn on_signal(&mut self, request: SignalRequest) -> bool {
        match request {
            SignalRequest::Reload => {
                self.manager.reloading();
                let outcome = self.reload(self.configuration.again());
                self.manager.ready();
                if let Err(error) = outcome {
                    for line in error.lines() {
                        error!("Failed to reload server configuration: {line}");
                    }
                }
            }
            SignalRequest::ReopenLog => match self.log.as_deref_mut() {
                Some(log) if self.options.log.file.is_some() => {
                    log.reopen();
                    info!("File log re-opened");
                }
                _ => info!("File log re-open ignored, not a file logger"),
            },
            SignalRequest::LameDuck => self.enter_lame_duck_mode(),
            SignalRequest::Terminate => return self.is_lame_duck,
            SignalRequest::Quit => return false,
        }
        true
    }

    /// Returns whether the server goes on.
    fn on_request(&mut self, request: OwnerRequest) -> bool {
        match request {
            OwnerRequest::Reload(text, to) => {
                let again = self.configuration.again();
                let configuration = match text {
                    Some(_) => Configuration { text, ..again },
                    None => again,
                };
                // The program may have given up.
                let _ = to.send(self.reload(configuration));
            }
            OwnerRequest::LameDuck => self.enter_lame_duck_mode(),
            OwnerRequest::Stop => return false,
        }
        true
    }

    fn enter_lame_duck_mode(&mut self) {
        if std::mem::replace(&mut self.is_lame_duck, true) {
            return;
        }
        info!("Entering lame duck mode, stop accepting new clients");
        self.manager.stopping("lame duck mode: clients are moving to other servers");
        self.shards.lame_duck(&self.options);
        info!("Closing existing clients");
        self.told.send_modify(|standing| standing.is_lame_duck = true);
        self.system.wake();
    }

    /// Reads the configuration again and puts it in force. An invalid one changes nothing; settings
    /// that need a restart are kept.
    fn reload(&mut self, configuration: Configuration) -> Result<(), StartError> {
        if !configuration.is_written() {
            let reason = "can only reload config when a file is provided using -c or --config";
            return Err(StartError::new(reason));
        }
        let mut options = configuration.load()?;
        options.check_leaf_accounts()?;
        // Probably the file is about to be written; and all users would be gone.
        if options.source.as_ref().is_some_and(|source| source.is_empty) {
            return Err(StartError::new("the file is empty; the configuration in force stays"));
        }
        let kept = reload::keep_fixed(&self.options, &mut options);
        let options = config::trust::keep_fetched(&self.options, options);
        system::prepare_staples(&options, Some(&self.options))?;
        let changes = reload::changes(&self.options, &options);
        if changes.is_empty() && !kept.is_empty() {
            return Err(reload::needs_restart(&kept));
        }
        // Steps that can fail come first, and those that cannot be undone last.
        let ports_file = self.new_ports_file(&options)?;
        let (was, is) = (&self.options.server.pid_file, &options.server.pid_file);
        if let Some(path) = is.as_ref().filter(|_| was != is) {
            files::write_pid(path)?;
        }
        if let Some(log) = &mut self.log {
            log.reload(&options.log)?;
        }
        if let Some(ports_file) = ports_file {
            self.ports_file = ports_file;
        }
        self.put_in_force(options);
        self.configuration = configuration;
        for change in changes {
            info!("Reloaded: {change}");
        }
        for change in kept {
            warn!("Reload does not change {change}; restart the server for that");
        }
        log_notes(&self.options.notes);
        match &self.options.source {
            Some(source) => info!("Reloaded server configuration (sha256:{})", source.sha256),
            None => info!("Reloaded server configuration"),
        }
        Ok(())
    }

    /// Puts options in force in shards, monitoring, system account and cluster.
    fn put_in_force(&mut self, options: Options) {
        let options = Arc::new(options);
        let closed = self.shards.reload(&options);
        self.told.send_modify(|standing| {
            let is_lame_duck = standing.is_lame_duck;
            *standing = ServerStatus { is_lame_duck, ..ServerStatus::new(Arc::clone(&options)) };
        });
        self.system.wake();
        if let Some(cluster) = self.cluster {
            cluster.reload(&options);
        }
        if let Some(gateways) = self.gateways {
            gateways.reload(&options);
        }
        self.leaves.reload(&options);
        self.options = options;
        if closed > 0 {
            info!("Closed {closed} connections to fall within max_connections");
        }
    }

    fn obey(&mut self, order: SystemOrder) {
        // The requester may have given up.
        match order {
            SystemOrder::End(_) => {}
            SystemOrder::Reload(to) => {
                let _ = to.send(self.reload(self.configuration.again()));
            }
            SystemOrder::Accounts(changes, done) => {
                for (account, claims) in &changes {
                    match claims {
                        Some(_) => info!("Account {account}: token updated"),
                        None => info!("Account {account}: deleted"),
                    }
                }
                let known = self.options.notes.warnings.clone();
                self.put_in_force(config::trust::update(&self.options, changes));
                let warnings = &self.options.notes.warnings;
                for warning in warnings.iter().filter(|text| !known.contains(text)) {
                    warn!("{warning}");
                }
                let _ = done.send(());
            }
        }
    }

    /// Returns the new ports file if its directory has changed; the inner option is `None` if there
    /// is to be no file.
    fn new_ports_file(&self, new: &Options) -> Result<Option<Option<PortsFile>>, StartError> {
        if new.server.ports_file_dir == self.options.server.ports_file_dir {
            return Ok(None);
        }
        let directory = new.server.ports_file_dir.as_deref();
        directory.map(|dir| PortsFile::write(dir, &self.identity)).transpose().map(Some)
    }
}

/// Raises the soft limit of open files to the hard one, because every connection is an open file.
fn raise_open_files_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        warn!("Cannot raise the limit of open files: {error}");
    }
}
