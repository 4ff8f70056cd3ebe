//! The server's name, and the files by which others find its process.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::Options;
use super::field::Action::Set;
use super::field::Key;

/// Name and labels of the server, and the files that it writes about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerOptions {
    /// Name, without blanks (none: the server's id).
    pub name: Option<String>,
    /// Labels, for the monitoring (none).
    pub tags: Vec<String>,
    /// Keys and values that the monitoring shows besides the tags (none).
    pub metadata: BTreeMap<String, String>,
    /// File that receives the process id (none).
    pub pid_file: Option<PathBuf>,
    /// Directory that receives `<program>_<pid>.ports` (none).
    pub ports_file_dir: Option<PathBuf>,
}

pub(super) const KEYS: &[Key<Options>] = &[
    Key(&["server_name"], Set(|o, v| v.text().map(|name| o.server.name = Some(name)))),
    Key(
        &["server_tags"],
        Set(|o, v| {
            o.server.tags = v.texts()?;
            Ok(())
        }),
    ),
    Key(&["pid_file", "pidfile"], Set(|o, v| v.text().map(|f| o.server.pid_file = Some(f.into())))),
    Key(
        &["ports_file_dir"],
        Set(|o, v| v.text().map(|d| o.server.ports_file_dir = Some(d.into()))),
    ),
    Key(
        &["server_metadata"],
        Set(|o, v| {
            let entries = v.each_entry(|entry, v| Ok((entry.key.clone(), v.text()?)))?;
            o.server.metadata = entries.into_iter().collect();
            Ok(())
        }),
    ),
];
