//! The host as the kernel's files under `/proc` and `/sys` describe it.
//!
//! Everything is read through a [`Tree`], so any directory with such files is a host: the tests
//! build machines that way.

#![forbid(unsafe_code)]

mod addresses;
mod cgroup;
mod cpuset;
#[cfg(test)]
pub(crate) mod machine;
mod placement;
mod tier;
mod topology;

use std::path::{Path, PathBuf};

pub use cgroup::{Quota, memory_bytes};
pub use cpuset::CpuSet;
pub use placement::{Placement, ShardCount, ShardsWanted, pin};
pub use tier::Tier;
pub use topology::{Cpu, Topology};

/// The directory below which `proc` and `sys` are looked for.
#[derive(Debug, Clone)]
pub struct Tree {
    root: PathBuf,
}

impl Default for Tree {
    /// This host.
    fn default() -> Self {
        Self::at("/")
    }
}

impl Tree {
    /// The host whose `proc` and `sys` are in `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The text of a file without the blanks around it; `None` if there is no such text.
    pub fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        let text = std::fs::read_to_string(self.root.join(path)).ok()?;
        Some(text.trim().to_owned())
    }

    /// A file that holds one number.
    pub fn number(&self, path: impl AsRef<Path>) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    /// A file that holds a list of CPUs.
    pub fn cpus(&self, path: impl AsRef<Path>) -> Option<CpuSet> {
        self.text(path)?.parse().ok()
    }

    /// The value of the line `key: value` in a file.
    pub fn field(&self, path: impl AsRef<Path>, key: &str) -> Option<String> {
        let text = self.text(path)?;
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        value.map(|value| value.trim().to_owned())
    }

    /// The names in a directory that begin with `prefix`, those with numbers by number.
    pub fn names(&self, directory: impl AsRef<Path>, prefix: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.root.join(directory)).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| name.starts_with(prefix)).collect();
        names.sort_by_key(|name| (name.len(), name.clone()));
        names
    }

    /// The last part of what a symbolic link points to.
    pub fn link(&self, path: impl AsRef<Path>) -> Option<String> {
        let target = std::fs::read_link(self.root.join(path)).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }
}

/// Bytes in hexadecimal, two digits each.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // Writing to a String cannot fail.
        text
    })
}
