//! The server as a part of another program.
//!
//! The control thread (see the room `server`) runs beside the program's own threads. It has no
//! signals, no log and no limits of the process: those are the program's. What the program wants
//! goes to it over a channel, and the handle's end is the server's.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, bounded, never};

use crate::config::{Configuration, Options, Secret, ShardCount, StartError};
use crate::engine::SHARDS_MAX;
use crate::identity::ServerIdentity;
use crate::server::{self, OwnerRequest, Surroundings};

/// Requests to the server that wait, at most; a further one blocks its caller.
const REQUESTS_MAX: usize = 1;

/// A running server inside this program, stopped when dropped.
///
/// Several can run at the same time. All methods that wait do so without an async runtime; in an
/// async program they belong on a thread that may block, such as that of
/// `tokio::task::spawn_blocking`.
pub struct Server {
    requests: Sender<OwnerRequest>,
    thread: Option<JoinHandle<Result<(), StartError>>>,
    ports: ServerPorts,
}

/// The ports of a running server.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerPorts {
    /// The host of the port for clients, as it was asked for.
    pub host: String,
    /// The port for clients; never 0.
    pub client: u16,
    /// The port for clients over WebSocket, if there is one.
    pub websocket: Option<u16>,
    /// The port of the monitoring, if there is one.
    pub monitoring: Option<u16>,
    /// The port for leaf nodes, if there is one.
    pub leaf: Option<u16>,
    /// The port for clients of MQTT, if there is one.
    pub mqtt: Option<u16>,
    /// The port for other servers of the cluster, if there is one.
    pub cluster: Option<u16>,
    /// The port for other clusters, if there is one.
    pub gateway: Option<u16>,
}

/// The options of a server that is about to start.
///
/// They come from three places, of which the later wins: defaults for a server inside a program
/// (on `127.0.0.1`, any free port, one shard that is pinned to no core), a configuration file or
/// its text, and the methods here.
#[derive(Clone)]
#[must_use = "a server runs once it is started"]
pub struct ServerBuilder {
    configuration: Configuration,
}

impl Server {
    /// Returns the options of a server, to be changed and started.
    pub fn builder() -> ServerBuilder {
        let mut base = Options::default();
        "127.0.0.1".clone_into(&mut base.network.host);
        base.network.port = 0;
        base.runtime.shards = ShardCount::Exactly(1);
        base.runtime.pin = false;
        let configuration = Configuration { base, is_embedded: true, ..Configuration::default() };
        ServerBuilder { configuration }
    }

    /// Returns the ports, which are known because the server has started.
    pub fn ports(&self) -> &ServerPorts {
        &self.ports
    }

    /// Returns the URL for clients of this machine, such as `nats://127.0.0.1:4222`.
    pub fn client_url(&self) -> String {
        server::files::url("nats", &self.ports.host, self.ports.client)
    }

    /// Reads the configuration file again and puts it in force; options of the builder still win.
    /// Returns when all shards have it.
    ///
    /// # Errors
    ///
    /// Fails, and changes nothing, if there is neither file nor text, it has mistakes, all that it
    /// changes needs a restart, or the server has ended.
    pub fn reload(&self) -> Result<(), StartError> {
        self.reload_from(None)
    }

    /// Puts the text of another configuration file in force, as [`Server::reload`] does.
    ///
    /// # Errors
    ///
    /// As [`Server::reload`].
    pub fn reload_text(&self, text: impl Into<String>) -> Result<(), StartError> {
        self.reload_from(Some(text.into()))
    }

    fn reload_from(&self, text: Option<String>) -> Result<(), StartError> {
        let ended = |()| StartError::new("cannot reload: the server has ended");
        let (to, outcome) = bounded(1);
        self.requests.send(OwnerRequest::Reload(text, to)).map_err(|_| ended(()))?;
        outcome.recv().map_err(|_| ended(()))?
    }

    /// Begins lame duck mode: no client is accepted any more, and those there are go elsewhere one
    /// after the other, within `lame_duck_duration`. Then the server ends; [`Server::wait`] returns
    /// at that time.
    pub fn lame_duck(&self) {
        // A server that has ended has no clients.
        let _ = self.requests.send(OwnerRequest::LameDuck);
    }

    /// Whether the server runs. It ends by itself after lame duck mode, and if a shard fails.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Waits until the server ends by itself.
    ///
    /// # Errors
    ///
    /// Fails with the reason if the server could not go on.
    pub fn wait(mut self) -> Result<(), StartError> {
        self.join()
    }

    /// Stops the server, and returns when its threads have ended and its ports are free. Clients
    /// that read get what is queued for them.
    ///
    /// # Errors
    ///
    /// Fails with the reason if the server has ended before because it could not go on.
    pub fn stop(mut self) -> Result<(), StartError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), StartError> {
        // A server that has ended needs no order.
        let _ = self.requests.send(OwnerRequest::Stop);
        self.join()
    }

    fn join(&mut self) -> Result<(), StartError> {
        self.thread.take().map_or(Ok(()), outcome)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!("The server inside this program has ended: {error}");
        }
    }
}

impl ServerBuilder {
    /// Takes options from a configuration file, which [`Server::reload`] reads again.
    pub fn config_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.configuration.args.config = Some(path.into());
        self.configuration.text = None;
        self
    }

    /// Takes options from the text of a configuration file.
    pub fn config_text(mut self, text: impl Into<String>) -> Self {
        self.configuration.text = Some(text.into());
        self.configuration.args.config = None;
        self
    }

    /// Sets the host of the port for clients (`127.0.0.1`).
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.configuration.args.addr = Some(host.into());
        self
    }

    /// Sets the port for clients; 0 is any free port (0).
    pub fn port(mut self, port: u16) -> Self {
        self.configuration.args.port = Some(port);
        self
    }

    /// Opens a port for the monitoring; 0 is any free port (none).
    pub fn monitoring_port(mut self, port: u16) -> Self {
        self.configuration.args.http_port = Some(port);
        self
    }

    /// Sets the server's name (its id).
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.configuration.args.server_name = Some(name.into());
        self
    }

    /// Sets the number of shards, each of which is a thread with an io_uring (1). Values below 1
    /// count as 1; [`ServerBuilder::start`] fails if there are too many.
    pub fn shards(mut self, shards: usize) -> Self {
        self.configuration.args.shards = Some(ShardCount::Exactly(shards.clamp(1, SHARDS_MAX + 1)));
        self
    }

    /// Pins each shard to a core of its own, or to none (none).
    pub fn pinned(mut self, is_pinned: bool) -> Self {
        self.configuration.args.no_pin = Some(!is_pinned);
        self
    }

    /// Demands a name and a password of all clients (neither). The password may be a bcrypt hash.
    pub fn user(mut self, name: impl Into<String>, password: impl Into<String>) -> Self {
        self.configuration.args.user = Some(name.into());
        self.configuration.args.pass = Some(Secret::new(password.into()));
        self
    }

    /// Demands a token of all clients (none). The token may be a bcrypt hash.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.configuration.args.auth = Some(Secret::new(token.into()));
        self
    }

    /// Turns JetStream on, with its streams in this directory (off). One server at a time can have
    /// a directory.
    pub fn jetstream(mut self, directory: impl Into<PathBuf>) -> Self {
        self.configuration.args.jetstream = Some(true);
        self.configuration.args.store_dir = Some(directory.into());
        self
    }

    /// Starts the server, and returns it once it accepts clients.
    ///
    /// # Errors
    ///
    /// Fails with cause and remedy if options are wrong, a port or directory is taken, or this host
    /// lacks something: io_uring, memory for it, or open files.
    pub fn start(self) -> Result<Server, StartError> {
        let (requests_to, requests) = bounded(REQUESTS_MAX);
        let (ready_to, ready) = bounded(1);
        let run = move || {
            server::embedded(Surroundings {
                configuration: self.configuration,
                program: env!("CARGO_PKG_NAME").to_owned(),
                log: None,
                signals: never(),
                requests,
                ready: Some(ready_to),
            })
        };
        let thread = std::thread::Builder::new().name("shardcast".to_owned()).spawn(run);
        let thread = thread.map_err(|error| {
            StartError::new(format!("cannot start a thread: {error}; raise `ulimit -u`"))
        })?;
        match ready.recv() {
            Ok(identity) => {
                let ports = ServerPorts::of(&identity);
                Ok(Server { requests: requests_to, thread: Some(thread), ports })
            }
            Err(_) => Err(outcome(thread)
                .err()
                .unwrap_or_else(|| StartError::new("the server ended during its start"))),
        }
    }
}

impl ServerPorts {
    fn of(identity: &Arc<ServerIdentity>) -> Self {
        let port = |endpoint: &Option<crate::identity::Endpoint>| {
            endpoint.as_ref().map(|endpoint| endpoint.port)
        };
        Self {
            host: identity.host.clone(),
            client: identity.port,
            websocket: port(&identity.websocket),
            monitoring: port(&identity.http),
            leaf: port(&identity.leaf),
            mqtt: port(&identity.mqtt),
            cluster: identity.cluster.as_ref().map(|cluster| cluster.port),
            gateway: identity.gateway.as_ref().map(|gateway| gateway.port),
        }
    }
}

fn outcome(thread: JoinHandle<Result<(), StartError>>) -> Result<(), StartError> {
    let panicked = |_| StartError::new("the server has panicked; please report it");
    thread.join().unwrap_or_else(|panic| Err(panicked(panic)))
}
