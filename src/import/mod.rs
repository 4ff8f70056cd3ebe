//! `shardcast import`: the streams of a stopped nats-server come into the store of this one.
//!
//! - `foreign`: the directory of a nats-server, read only
//! - `target`: our own store, written without a running server
//! - `disk`: disk operations, each done at once
//!
//! A stream is there when all of it is on the disk: after an import that was broken off, the next
//! one takes it from its beginning. Streams that are there already stay as they are. Messages keep
//! their sequences, times and headers, consumers their positions.
//!
//! **Bounds.** One block of messages is in memory at a time, beside what the store keeps.

#![forbid(unsafe_code)]

mod disk;
mod foreign;
mod target;

use std::io::{self, Write};
use std::path::Path;

use crate::config::StartError;
use foreign::{ForeignStore, ForeignStream};
use target::{ImportTarget, Imported};

/// Imports all streams of the nats-server's store in `from` into the logs in these directories, and
/// prints a line about each. Returns whether all could be imported whole.
///
/// # Errors
///
/// Fails if `from` is no such store, or is encrypted, or if our own store cannot be written.
pub(crate) fn run(from: &Path, logs: &[Box<Path>]) -> Result<bool, StartError> {
    let store = ForeignStore::open(from)?;
    let mut target = ImportTarget::open(logs)?;
    let mut is_whole = true;
    for stream in store.streams()? {
        let told = match import(&mut target, &stream) {
            Ok(imported) => {
                is_whole &= imported.problems.is_empty();
                imported.told()
            }
            Err(why) => {
                is_whole = false;
                format!("not imported: {why}")
            }
        };
        say(&format!("{} > {}: {told}", stream.account, stream.name));
    }
    Ok(is_whole)
}

/// Imports a stream.
///
/// # Errors
///
/// Returns the reason for which nothing of it was imported.
fn import(target: &mut ImportTarget, stream: &ForeignStream) -> Result<Imported, String> {
    let meta = stream.meta()?;
    let mut coming = target.begin(&stream.account, &stream.name, &meta)?;
    for block in stream.blocks()? {
        target.take_block(&mut coming, stream.block(&block)?)?;
    }
    target.finish(coming, stream.consumers()?)
}

/// Writes a line; a failure is ignored.
fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}
