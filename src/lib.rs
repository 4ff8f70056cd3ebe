//! A message broker that speaks the NATS protocol, thread per core on io_uring.
//!
//! A message's way from bytes in to bytes out, in six hops:
//!
//! 1. [`uring::Reactor::turn`]: a completion becomes [`uring::Event::Received`]
//! 2. [`shard::Shard::step`]: takes a bounded amount of input and hands each chunk to the engine
//! 3. [`proto::parse()`]: `&[u8]` becomes [`proto::Op`], borrowed, nothing copied
//! 4. [`engine::Engine::on_bytes`]: decides; a run of publishes to one subject is matched once
//! 5. `output::Outbox`: the run is rendered once per sid and shared by its subscribers
//! 6. [`uring::Reactor::send`]: once per connection that has bytes, once per turn
//!
//! To another shard: 4' the run is staged on a lane of the [`mesh`], and there
//! [`engine::Engine::on_record`] goes on with that shard's own interest (nothing is published a
//! second time), then 5 and 6.
//!
//! `ARCHITECTURE.md` has the whole picture.

pub mod auth;
pub mod cluster;
pub mod config;
pub mod disk;
pub mod doctor;
pub mod engine;
pub mod host;
pub mod identity;
pub mod measure;
pub mod mesh;
mod monitor;
pub mod output;
pub mod proto;
pub mod server;
pub mod shard;
pub mod subject;
mod system;
pub mod transport;
pub mod uring;

/// The release of this server.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The nats-server release whose behaviour clients may count on; they test features by it.
pub const NATS_VERSION: &str = "2.15.1";
/// What that release says of the JetStream requests it knows, even where JetStream is off.
pub const JETSTREAM_API_LEVEL: u32 = 5;
/// The commit this was built from, if the build was told.
pub const GIT_COMMIT: &str = match option_env!("SHARDCAST_GIT_COMMIT") {
    Some(commit) => commit,
    None => "not set",
};
