//! Options of the server, from the command line and from the configuration file.
//!
//! [`args`] reads the command line, [`manual`] documents it, `syntax` turns the configuration file
//! into a tree of values with positions, and `blocks` turns that tree into [`Options`]; `tls` has
//! the block that several of them contain. Flags win over the file.
//! `settings` converts options into the settings of shards, in their units.

#![forbid(unsafe_code)]

pub mod args;
mod blocks;
pub mod manual;
mod mqtt;
mod ocsp;
mod settings;
mod stapling;
mod syntax;
pub mod tls;

use std::path::Path;

use sha2::{Digest, Sha256};

pub use crate::auth::{ConnectionType, Permissions, Responses, Secret, SubjectEntry, SubjectList};
pub use crate::cluster::{POOL_SIZE_MAX, RouteUrl};
pub use crate::engine::account_settings::{
    Account, AccountAssetLimits, AccountLimits, Export, Import, LatencyRule, Response, Seats,
    Shared, TraceRule,
};
pub use crate::engine::{BatchLimits, Destination, Limits, Mapping, PeerUser, SyncPolicy};
pub use crate::host::ShardCount;
use crate::host::hex;
pub use crate::measure::Rates;
pub use crate::output::{OverflowKind, OverflowRule};
pub use crate::transport::{Compression, Cookies, HandshakeFirst, MutualTls, Network, Tls};
use args::Args;
pub use blocks::{
    AccountOptions, Auth, CalloutOptions, ClusterOptions, ConfigNotes, ConfigSource,
    GatewayOptions, HttpOptions, JetStreamLimits, JetStreamOptions, JetStreamQueues,
    LameDuckOptions, LeafOptions, LeafProxy, LeafRemoteOptions, LeafUser, LogFormat, LogOptions,
    MonitoringOptions, MqttOptions, NetworkOptions, OcspOptions, Options, PeerCacheOptions,
    RuntimeOptions, Seating, ServerOptions, StapleMode, Syslog, TimeoutOptions, UnixOptions,
    UserOptions, WebSocketOptions, advertised,
};
pub use blocks::{accounts, auth, cluster, gateway, listeners, trust};
use blocks::{bind, rules};
pub use mqtt::MqttLogin;
pub(crate) use stapling::Stapling;
pub use syntax::StartError;
#[cfg(test)]
use syntax::consulted;
#[cfg(test)]
pub(crate) use syntax::consulted::KnownKey;
use syntax::file;
use syntax::mistakes::Mistakes;
use syntax::written::Written;

/// The name of a configuration that is no file, in errors.
const TEXT: &str = "configuration";

/// The sources of options: what holds where nothing is said, a file or a text, and flags, which
/// win.
#[derive(Clone, Default)]
pub struct Configuration {
    /// The flags, and the path of the file.
    pub args: Args,
    /// The text of a configuration file, read in place of a file.
    pub text: Option<String>,
    /// The options before file and flags.
    pub base: Options,
    /// Whether the log belongs to the program around the server.
    pub is_embedded: bool,
}

impl Configuration {
    /// Whether there is a file or a text, which may have changed.
    pub fn is_written(&self) -> bool {
        self.args.config.is_some() || self.text.is_some()
    }

    /// Returns the sources for a reload: the file, if there is one, else the text.
    pub fn again(&self) -> Self {
        let has_file = self.args.config.is_some();
        Self { text: self.text.clone().filter(|_| !has_file), ..self.clone() }
    }

    /// Returns the options, with the file as it is now.
    ///
    /// # Errors
    ///
    /// Returns all mistakes in file and flags, unless the file cannot be read at all.
    pub fn load(&self) -> Result<Options, StartError> {
        let (mut options, mut mistakes) = (self.base.clone(), Mistakes::default());
        let written = match (&self.text, &self.args.config) {
            (Some(text), _) => {
                let map = file::parse(Path::new(TEXT), text.as_bytes(), &mut mistakes);
                bind::bind(map, &mut options, &mut mistakes)
            }
            (None, Some(path)) => read_file(path, &mut options, &mut mistakes)?,
            (None, None) => Written::default(),
        };
        mistakes.take(self.args.apply(&mut options));
        written.tell(&rules::check(&options), &mut mistakes);
        let has_log = options.log.file.is_some() || options.log.syslog.is_some();
        if self.is_embedded && has_log {
            let text = "log_file and syslog have no effect: the log is that of the program";
            options.notes.missing.push(text.to_owned());
        }
        mistakes.result().map(|()| options)
    }
}

/// Returns the options from the flags and the configuration file they name.
///
/// # Errors
///
/// As [`Configuration::load`].
pub fn load(args: &Args) -> Result<Options, StartError> {
    Configuration { args: args.clone(), ..Configuration::default() }.load()
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
        options
            .notes
            .warnings
            .push(format!("{}: config has no values or is empty", path.display()));
    }
    let sha256 = hex(&Sha256::digest(&bytes));
    options.source = Some(ConfigSource { path: path.to_owned(), sha256, is_empty });
    Ok(bind::bind(map, options, mistakes))
}

/// Returns the options of a file `c.conf` with this text.
#[cfg(test)]
fn of_text(text: &str) -> Result<Options, StartError> {
    let Bound { options, outcome, .. } = bound(text);
    outcome.map(|()| options)
}

/// The outcome of binding the text of a file.
#[cfg(test)]
pub(crate) struct Bound {
    /// All that was set, mistakes left out.
    pub(crate) options: Options,
    pub(crate) outcome: Result<(), StartError>,
    /// The tables of keys of the file's blocks, in the order of their beginnings.
    pub(crate) tables: Vec<Vec<KnownKey>>,
}

#[cfg(test)]
pub(crate) fn bound(text: &str) -> Bound {
    let (mut options, mut mistakes) = (Options::default(), Mistakes::default());
    let map = file::parse(Path::new("c.conf"), text.as_bytes(), &mut mistakes);
    consulted::take();
    let written = bind::bind(map, &mut options, &mut mistakes);
    let tables = consulted::take();
    written.tell(&rules::check(&options), &mut mistakes);
    Bound { options, outcome: mistakes.result(), tables }
}
