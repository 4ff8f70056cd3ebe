//! A message broker that speaks the NATS protocol, thread per core on io_uring.
//!
//! Most run it as a program. As a library it is a part of another program:
//!
//! ```no_run
//! # fn main() -> Result<(), shardcast::StartError> {
//! let server = shardcast::Server::builder().token("secret").start()?;
//! println!("clients connect to {}", server.client_url());
//! server.stop()
//! # }
//! ```
//!
//! It starts threads of its own: the program may be async or not. It leaves to the program what
//! belongs to a process: signals, the limit of open files, and the log, whose lines are `tracing`
//! events for whatever subscriber there is. `docs/embedding.md` says more.
//!
//! **Versions.** What is documented here follows semantic versioning; so do the keys of the
//! configuration. Everything else, which tests and tools of the same repository use, is hidden and
//! may change at any time. `ARCHITECTURE.md` is the way into the code.

#[doc(hidden)]
pub mod api;
mod archive;
#[doc(hidden)]
pub mod auth;
mod client;
#[doc(hidden)]
pub mod cluster;
#[doc(hidden)]
pub mod config;
#[doc(hidden)]
pub mod consumer;
mod core;
mod delivery;
#[doc(hidden)]
pub mod disk;
#[doc(hidden)]
pub mod doctor;
mod embed;
#[doc(hidden)]
pub mod engine;
mod gateway;
#[doc(hidden)]
pub mod host;
#[doc(hidden)]
pub mod identity;
mod import;
mod interest;
mod jetstream;
mod leaf;
mod link;
#[doc(hidden)]
pub mod measure;
#[doc(hidden)]
pub mod mesh;
mod monitor;
mod mqtt;
#[doc(hidden)]
pub mod ocsp;
#[doc(hidden)]
pub mod origin;
#[doc(hidden)]
pub mod output;
#[doc(hidden)]
pub mod proto;
mod record;
mod route;
mod run;
#[doc(hidden)]
pub mod server;
mod session;
#[doc(hidden)]
pub mod shard;
#[doc(hidden)]
pub mod store;
#[doc(hidden)]
pub mod stream;
#[doc(hidden)]
pub mod subject;
mod system;
#[doc(hidden)]
pub mod transport;
#[doc(hidden)]
pub mod uring;

pub use config::StartError;
pub use embed::{Server, ServerBuilder, ServerPorts};

/// The version of this server.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The nats-server version whose behaviour clients may count on; they derive features from it.
pub const NATS_VERSION: &str = "2.15.1";
/// The level of JetStream's API in that nats-server version, also reported while JetStream is off.
pub const JETSTREAM_API_LEVEL: u32 = 5;
/// The commit of this build, if the build was given one.
pub const GIT_COMMIT: &str = match option_env!("SHARDCAST_GIT_COMMIT") {
    Some(commit) => commit,
    None => "not set",
};
