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
//! - `proofs`: credential checks, at a lower priority; a channel from the shards, answers as
//!   `Control::Proven`
//! - `cluster`: membership, with a port for routes, beside it `cluster-accept` and one
//!   `cluster-dial` per server being dialled; channels, orders to shards as `Control::Route`
//! - `log`: log lines, bounded in lines and bytes, what does not fit is dropped and counted; a
//!   bounded channel
//!
//! The control thread speaks to a shard by `shard::Control` on a channel and wakes it by an
//! eventfd; shards answer with `shard::Outcome`.

#![forbid(unsafe_code)]

mod credential_checker;
pub mod files;
mod links;
pub mod listen;
pub mod log;
mod log_file;
mod reload;
pub mod shards;
pub mod signals;
mod syslog;
mod unix;

use std::ffi::OsString;
use std::io::{self, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use crossbeam_channel::{Receiver, bounded, select};
use nkeys::{KeyPair, XKey};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::VERSION;
use crate::config::args::{self, Args, Command};
use crate::config::{self, Options, RuntimeOptions, StartError};
use crate::doctor;
use crate::host::{Placement, Topology, Tree};
use crate::identity::{ClusterIdentity, Endpoint, Identity};
use crate::monitor::{Monitor, Standing};
use crate::shard::{Door, Listener, Outcome};
use crate::system::{Order, System};
use files::PortsFile;
use links::Cluster;
use log::{FATAL, Log};
use shards::Shards;
use signals::Request;
use unix::SocketFile;

/// What the system account has ordered and is not obeyed yet: who orders waits for the outcome.
const ORDERS_MAX: usize = 1;
/// Payloads above this deserve a warning.
const PAYLOAD_BYTES_USUAL: usize = 8 * 1024 * 1024;

/// The running server, as far as a signal may change it.
struct Running<'a> {
    args: &'a Args,
    options: Arc<Options>,
    identity: Arc<Identity>,
    log: &'a mut Log,
    shards: &'a Shards,
    /// What monitoring and system account go by.
    told: watch::Sender<Standing>,
    system: &'a System,
    cluster: Option<&'a Cluster>,
    ports_file: Option<PortsFile>,
}

/// Does what the command line asks for.
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
        Command::Version => say(&mut io::stdout(), &format!("{program}: v{VERSION}")),
        Command::Signal(request) => signals::send(&request)?,
        Command::Doctor(words) => return Ok(doctor::main(&words)),
        Command::TestConfig(args) => return test_config(&config::load(&args)?, program),
        Command::Serve(args) => return run(&args, program.to_owned()),
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes a line; if nobody reads it, that is that.
fn say(to: &mut dyn Write, line: &str) {
    let _ = writeln!(to, "{line}");
}

fn test_config(options: &Options, program: &str) -> Result<ExitCode, StartError> {
    let remarks = options.warnings.iter().chain(&options.missing).chain(&options.absent);
    for warning in remarks {
        say(&mut io::stderr(), &format!("{program}: {warning}"));
    }
    if !options.warnings.is_empty() {
        return Ok(ExitCode::FAILURE);
    }
    let Some(source) = &options.source else {
        return Err(StartError::new("there is no configuration file to check; give one with -c"));
    };
    let (path, sha256) = (source.path.display(), &source.sha256);
    let line = format!("{program}: configuration file {path} is valid (sha256:{sha256})");
    say(&mut io::stderr(), &line);
    Ok(ExitCode::SUCCESS)
}

/// Runs the server until a signal ends it. Errors are those of the start, with cause and
/// remedy.
pub fn run(args: &Args, program: String) -> Result<ExitCode, StartError> {
    let options = config::load(args)?;
    let mut log = Log::start(&options.log)?;
    let elsewhere = options.log.file.is_some() || options.log.syslog.is_some();
    let ended = serve(args, Arc::new(options), program, &mut log);
    if let Err(error) = &ended {
        error!(target: FATAL, "{error}");
    }
    drop(log);
    match ended {
        Ok(()) => Ok(ExitCode::SUCCESS),
        // Who started the server looks at standard error, not into the log file.
        Err(error) if elsewhere => Err(error),
        Err(_) => Ok(ExitCode::FAILURE),
    }
}

fn serve(
    args: &Args,
    options: Arc<Options>,
    program: String,
    log: &mut Log,
) -> Result<(), StartError> {
    raise_open_files_limit();
    let signals = signals::listen()?;
    let listener = listen::bind(&options.host, options.port)?;
    let websocket_listener = bind_websocket(&options)?;
    let http_listener = bind_monitor(&options)?;
    let cluster_listener = links::bind(&options)?;
    let bound = Bound {
        clients: &listener,
        websocket: websocket_listener.as_ref(),
        http: http_listener.as_ref(),
    };
    let mut identity = identify(&options, program, &bound)?;
    identity.cluster = links::identify(&options, cluster_listener.as_ref(), &identity)?;
    let identity = Arc::new(identity);
    let placement = options.runtime.placement(&Topology::read(&Tree::default()));

    log_banner(&options, &identity, &placement);
    let shards = Shards::start(&options, &identity.of_engine(), &placement.cpus)?;
    info!("  io_uring: tier {}", shards.tier());
    log_remarks(&options);
    if let Some(path) = &options.pid_file {
        files::write_pid(path)?;
    }
    let (told, standing) = watch::channel(Standing::new(Arc::clone(&options)));
    let monitor = start_monitor(http_listener, &identity, standing.clone(), &shards)?;
    let (orders_to, orders) = bounded(ORDERS_MAX);
    let reporter = shards.reporter();
    let system = System::start(shards.news(), &identity, standing, reporter, orders_to)?;
    let directory = options.ports_file_dir.as_deref();
    let ports_file = directory.map(|dir| PortsFile::write(dir, &identity)).transpose()?;
    let cluster = Cluster::start(cluster_listener, &identity, &options, &shards)?;
    // Who gets in now is served, and finds the files that tell of it.
    let (listeners, socket_file) = open(&options, listener, websocket_listener)?;
    shards.open(listeners);
    log_listeners(&options, &identity);
    info!("Server is ready");

    let shards_ref = &shards;
    let mut running = Running {
        args,
        options,
        identity,
        log,
        shards: shards_ref,
        told,
        system: &system,
        cluster: cluster.as_ref(),
        ports_file,
    };
    let ended = running.control(&signals, &orders);
    // Whoever waits for an order to be carried out waits no more.
    drop(orders);
    info!("Initiating Shutdown...");
    let ports_file = running.ports_file.take();
    drop(monitor);
    drop(cluster);
    system.stop();
    shards.stop();
    drop((ports_file, socket_file));
    info!("Server Exiting..");
    ended
}

/// What was bound, in clear TCP or with TLS.
struct Bound<'a> {
    clients: &'a TcpListener,
    websocket: Option<&'a TcpListener>,
    http: Option<&'a TcpListener>,
}

fn identify(options: &Options, program: String, bound: &Bound<'_>) -> Result<Identity, StartError> {
    let port_of = |listener: &TcpListener| match listener.local_addr() {
        Ok(address) => Ok(address.port()),
        Err(error) => Err(StartError::new(format!("cannot tell the port: {error}"))),
    };
    let port = port_of(bound.clients)?;
    let http = bound.http.map(port_of).transpose()?;
    let is_tls = options.http.as_ref().is_some_and(|http| http.is_tls);
    let http = http.map(|port| Endpoint { host: http_host(options).to_owned(), port, is_tls });
    let websocket = bound.websocket.map(port_of).transpose()?;
    let is_wss = options.websocket.as_ref().is_some_and(|websocket| websocket.tls.is_some());
    let websocket = websocket.map(|port| Endpoint {
        host: websocket_host(options).to_owned(),
        port,
        is_tls: is_wss,
    });
    let id = KeyPair::new_server().public_key();
    let xkey = XKey::new().public_key();
    let name = options.server_name.clone().unwrap_or_else(|| id.clone());
    let host = options.host.clone();
    Ok(Identity { program, id, xkey, name, host, port, websocket, http, cluster: None })
}

/// Listens everywhere where clients come in. Returns that, and the Unix socket's file.
fn open(
    options: &Options,
    clients: TcpListener,
    websocket: Option<TcpListener>,
) -> Result<(Vec<Listener>, Option<SocketFile>), StartError> {
    listen::open(&clients, listen::CLIENTS)?;
    if let Some(websocket) = &websocket {
        listen::open(websocket, listen::WEBSOCKET)?;
    }
    let mut listeners = vec![Listener { socket: clients.into(), door: Door::Tcp }];
    if let Some(websocket) = websocket {
        listeners.push(Listener { socket: websocket.into(), door: Door::WebSocket });
    }
    let Some(unix) = &options.unix else { return Ok((listeners, None)) };
    let (socket, file) = unix::bind(unix)?;
    listeners.push(Listener { socket, door: Door::Unix(unix.path.as_str().into()) });
    Ok((listeners, file))
}

fn bind_websocket(options: &Options) -> Result<Option<TcpListener>, StartError> {
    let port = options.websocket.as_ref().and_then(|websocket| websocket.port);
    port.map(|port| listen::bind_websocket(websocket_host(options), port)).transpose()
}

/// The host of WebSocket clients; unless they have their own, that of the others.
fn websocket_host(options: &Options) -> &str {
    let host = options.websocket.as_ref().and_then(|websocket| websocket.host.as_deref());
    host.unwrap_or(&options.host)
}

fn log_listeners(options: &Options, identity: &Identity) {
    if let Some(websocket) = &identity.websocket {
        let scheme = if websocket.is_tls { "wss" } else { "ws" };
        let address = listen::host_port(&websocket.host, websocket.port);
        info!("Listening for websocket clients on {scheme}://{address}");
        if !websocket.is_tls {
            warn!("Websocket not configured with TLS. DO NOT USE IN PRODUCTION!");
        }
    }
    if let Some(unix) = &options.unix {
        info!("Listening for clients of this machine on {}", unix.path);
    }
    let address = listen::host_port(&identity.host, identity.port);
    info!("Listening for client connections on {address}");
    if options.proxy_protocol {
        info!("PROXY protocol enabled for client connections");
    }
}

/// The monitoring's host; unless it has its own, that of the clients.
fn http_host(options: &Options) -> &str {
    options.http.as_ref().and_then(|http| http.host.as_deref()).unwrap_or(&options.host)
}

fn bind_monitor(options: &Options) -> Result<Option<TcpListener>, StartError> {
    let Some(http) = &options.http else { return Ok(None) };
    listen::bind_monitor(http_host(options), http.port).map(Some)
}

fn start_monitor(
    listener: Option<TcpListener>,
    identity: &Arc<Identity>,
    told: watch::Receiver<Standing>,
    shards: &Shards,
) -> Result<Option<Monitor>, StartError> {
    let (Some(listener), Some(http)) = (listener, &identity.http) else { return Ok(None) };
    let scheme = if http.is_tls { "https" } else { "http" };
    info!("Starting {scheme} monitor on {}", listen::host_port(&http.host, http.port));
    Monitor::start(listener, identity, told, shards.reporter()).map(Some)
}

fn log_banner(options: &Options, identity: &Identity, placement: &Placement) {
    info!("Starting shardcast");
    info!("  Version:  {VERSION}");
    info!("  Git:      [{}]", crate::GIT_COMMIT);
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
        warn!("Maximum payloads over 8 MB are discouraged: they hold up everybody else's messages");
    }
    for warning in options.warnings.iter().chain(&options.missing) {
        warn!("{warning}");
    }
    for absent in &options.absent {
        error!("{absent}");
    }
    if let Some(source) = &options.source {
        let path = source.path.display();
        info!("Using configuration file: {path} (sha256:{})", source.sha256);
    }
}

impl Running<'_> {
    /// Waits for what ends the server.
    fn control(
        &mut self,
        signals: &Receiver<Request>,
        orders: &Receiver<Order>,
    ) -> Result<(), StartError> {
        let mut is_lame_duck = false;
        let gone = "all shards have stopped; see the log above";
        loop {
            let request = select! {
                recv(signals) -> request => request.unwrap_or(Request::Terminate),
                recv(self.shards.outcomes()) -> outcome => match outcome {
                    Ok(Outcome::Drained) => return Ok(()),
                    Ok(Outcome::Failed(reason)) => return Err(StartError::new(reason)),
                    Err(_) => return Err(StartError::new(gone)),
                },
                recv(orders) -> order => {
                    if let Ok(order) = order {
                        self.obey(order);
                    }
                    continue;
                }
            };
            info!("Trapped \"{}\" signal", request.signal_name());
            match request {
                Request::Reload => {
                    if let Err(error) = self.reload() {
                        for line in error.lines() {
                            error!("Failed to reload server configuration: {line}");
                        }
                    }
                }
                Request::ReopenLog => {
                    if self.options.log.file.is_some() {
                        self.log.reopen();
                        info!("File log re-opened");
                    } else {
                        info!("File log re-open ignored, not a file logger");
                    }
                }
                Request::LameDuck if is_lame_duck => {}
                Request::LameDuck => {
                    is_lame_duck = true;
                    self.enter_lame_duck_mode();
                }
                Request::Terminate if is_lame_duck => {}
                Request::Terminate | Request::Quit => return Ok(()),
            }
        }
    }

    fn enter_lame_duck_mode(&self) {
        info!("Entering lame duck mode, stop accepting new clients");
        self.shards.lame_duck(&self.options);
        info!("Closing existing clients");
        self.told.send_modify(|standing| standing.is_lame_duck = true);
        self.system.wake();
    }

    /// Reads the configuration again and puts it in force: nothing of it if it is not valid, else
    /// all but what needs a restart.
    fn reload(&mut self) -> Result<(), StartError> {
        if self.args.config.is_none() {
            let reason = "can only reload config when a file is provided using -c or --config";
            return Err(StartError::new(reason));
        }
        let mut options = config::load(self.args)?;
        // Somebody is about to write it, most likely; and all users would be gone.
        if options.source.as_ref().is_some_and(|source| source.is_empty) {
            return Err(StartError::new("the file is empty; what was in force stays so"));
        }
        let kept = reload::keep_fixed(&self.options, &mut options);
        let changes = reload::changes(&self.options, &options);
        if changes.is_empty() && !kept.is_empty() {
            return Err(reload::needs_restart(&kept));
        }
        // What can fail comes first, and what cannot be undone last.
        let ports_file = self.new_ports_file(&options)?;
        if let Some(path) =
            options.pid_file.as_ref().filter(|_| options.pid_file != self.options.pid_file)
        {
            files::write_pid(path)?;
        }
        self.log.reload(&options.log)?;
        if let Some(ports_file) = ports_file {
            self.ports_file = ports_file;
        }
        self.put_in_force(options);
        for change in changes {
            info!("Reloaded: {change}");
        }
        for change in kept {
            warn!("Reload does not change {change}; restart the server for that");
        }
        for warning in self.options.warnings.iter().chain(&self.options.missing) {
            warn!("{warning}");
        }
        for absent in &self.options.absent {
            error!("{absent}");
        }
        match &self.options.source {
            Some(source) => info!("Reloaded server configuration (sha256:{})", source.sha256),
            None => info!("Reloaded server configuration"),
        }
        Ok(())
    }

    /// Shards, monitoring and system account go by these options from now on.
    fn put_in_force(&mut self, options: Options) {
        let options = Arc::new(options);
        let closed = self.shards.reload(&options);
        self.told.send_modify(|standing| {
            let is_lame_duck = standing.is_lame_duck;
            *standing = Standing { is_lame_duck, ..Standing::new(Arc::clone(&options)) };
        });
        self.system.wake();
        if let Some(cluster) = self.cluster {
            cluster.reload(&options);
        }
        self.options = options;
        if closed > 0 {
            info!("Closed {closed} connections to fall within max_connections");
        }
    }

    fn obey(&mut self, order: Order) {
        // Whoever waits may have given up.
        match order {
            Order::Reload(to) => {
                let _ = to.send(self.reload());
            }
            Order::Accounts(changes, done) => {
                for (account, claims) in &changes {
                    match claims {
                        Some(_) => info!("Account {account}: its token has changed"),
                        None => info!("Account {account}: it is deleted"),
                    }
                }
                let known = self.options.warnings.clone();
                self.put_in_force(config::trust::update(&self.options, changes));
                for warning in self.options.warnings.iter().filter(|text| !known.contains(text)) {
                    warn!("{warning}");
                }
                let _ = done.send(());
            }
        }
    }

    /// The ports file if it is somewhere else now; within, none if there is to be none.
    fn new_ports_file(&self, new: &Options) -> Result<Option<Option<PortsFile>>, StartError> {
        if new.ports_file_dir == self.options.ports_file_dir {
            return Ok(None);
        }
        let directory = new.ports_file_dir.as_deref();
        directory.map(|dir| PortsFile::write(dir, &self.identity)).transpose().map(Some)
    }
}

/// Every connection is an open file: as many as we are allowed to have.
fn raise_open_files_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        warn!("Cannot raise the limit of open files: {error}");
    }
}
