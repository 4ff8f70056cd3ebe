//! Options of the server, from the command line and from the configuration file.
//!
//! [`args`] reads the command line, `syntax` turns the configuration file into a tree of values
//! with positions, and `blocks` turns that tree into [`Options`]. Flags win over the file.
//! `settings` converts options into the settings of shards, in their units.

#![forbid(unsafe_code)]

pub mod args;
mod blocks;
mod settings;
mod syntax;

use std::path::Path;

use sha2::{Digest, Sha256};

pub use crate::auth::{ConnectionType, Permissions, Responses, Secret, SubjectEntry, SubjectList};
pub use crate::cluster::{POOL_SIZE_MAX, RouteUrl};
pub use crate::engine::account_settings::{
    Account, AccountLimits, Export, Import, Response, Seats, Shared, TraceRule,
};
pub use crate::engine::{Destination, Limits, Mapping, PeerUser};
pub use crate::host::ShardCount;
use crate::host::hex;
pub use crate::measure::Rates;
pub use crate::output::{OverflowKind, OverflowRule};
pub use crate::transport::{Compression, Cookies, HandshakeFirst, MutualTls, Network, Tls};
use args::Args;
pub use blocks::{
    Accounts, Auth, Cluster, HttpOptions, LogFormat, LogOptions, Options, RuntimeOptions, Seating,
    Source, Syslog, UnixOptions, User, WebSocketOptions, advertised,
};
pub use blocks::{accounts, auth, cluster, listeners, tls, trust};
use blocks::{bind, rules};
pub use syntax::StartError;
use syntax::file;
use syntax::mistakes::Mistakes;
use syntax::written::Written;

/// The options that flags and the file they name amount to.
///
/// # Errors
///
/// All that is wrong with either, unless the file cannot be read at all.
pub fn load(args: &Args) -> Result<Options, StartError> {
    let (mut options, mut mistakes) = (Options::default(), Mistakes::default());
    let written = match &args.config {
        Some(path) => read_file(path, &mut options, &mut mistakes)?,
        None => Written::default(),
    };
    mistakes.take(args.apply(&mut options));
    written.tell(&rules::check(&options), &mut mistakes);
    mistakes.result().map(|()| options)
}

fn read_file(
    path: &Path,
    options: &mut Options,
    mistakes: &mut Mistakes,
) -> Result<Written, StartError> {
    let bytes = file::read(path).map_err(StartError::new)?;
    let map = file::parse(path, &bytes, mistakes);
    let is_empty = map.entries().next().is_none();
    if is_empty {
        options.warnings.push(format!("{}: config has no values or is empty", path.display()));
    }
    let sha256 = hex(&Sha256::digest(&bytes));
    options.source = Some(Source { path: path.to_owned(), sha256, is_empty });
    Ok(bind::bind(map, options, mistakes))
}

/// The options that a file of this text, `c.conf`, amounts to.
#[cfg(test)]
fn of_text(text: &str) -> Result<Options, StartError> {
    let (mut options, mut mistakes) = (Options::default(), Mistakes::default());
    let map = file::parse(Path::new("c.conf"), text.as_bytes(), &mut mistakes);
    let written = bind::bind(map, &mut options, &mut mistakes);
    written.tell(&rules::check(&options), &mut mistakes);
    mistakes.result().map(|()| options)
}
