//! A message broker that speaks the NATS protocol, thread per core on io_uring.
//!
//! A message's way from bytes in to bytes out, in six hops:
//!
//! 1. [`uring::Reactor::turn`]: a completion becomes `Event::Received { conn, chunk }`
//! 2. [`shard`]: hands the chunk to the engine
//! 3. [`proto::Parser`]: `&[u8]` becomes `Op<'_>`, borrowed, nothing copied
//! 4. [`engine::Engine::on_bytes`]: decides; a run of publishes is matched once
//! 5. [`engine::outbox`]: the run is rendered once per sid and shared by its subscribers
//! 6. [`uring::Reactor::send`]: once per connection that has bytes, once per turn
//!
//! To another shard: 4' the run is staged on a [`mesh`] lane, and `Engine::on_record` goes on
//! there with its own interest (no second publish), then 5 and 6.

pub mod config;
pub mod engine;
pub mod mesh;
pub mod proto;
pub mod segment;
pub mod server;
pub mod shard;
pub mod subject;

/// The nats-server release whose behaviour clients may count on; they test features by it.
pub const NATS_VERSION: &str = "2.14.5";
pub mod uring;
