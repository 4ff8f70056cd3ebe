//! The host as the kernel's files under `/proc` and `/sys` describe it.
//!
//! Everything is read through a [`Tree`], so any directory with such files is a host: the tests
//! build machines that way.

#![forbid(unsafe_code)]

mod addresses;
mod cgroup;
mod company;
mod cpuset;
#[cfg(test)]
pub(crate) mod machine;
mod placement;
mod tier;
mod topology;

use std::path::{Path, PathBuf};

pub use cgroup::{Quota, memory_bytes};
pub use company::Company;
pub use cpuset::CpuSet;
pub use placement::{Placement, ShardCount, ShardsWanted, pin};
pub use tier::Tier;
pub use topology::{Cpu, Topology};

/// The directory that contains `proc` and `sys`.
#[derive(Debug, Clone)]
pub struct Tree {
    root: PathBuf,
    /// The process that `proc/self` is; without one it is this one.
    process: Option<u32>,
}

impl Default for Tree {
    /// Returns the tree of this host.
    fn default() -> Self {
        Self::at("/")
    }
}

impl Tree {
    /// The tree of the host whose `proc` and `sys` are in `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), process: None }
    }

    /// Returns the same host as it is for another process.
    pub fn of_process(self, id: u32) -> Self {
        Self { process: Some(id), ..self }
    }

    /// Returns the path of a file in the host's own tree.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        match (self.process, path.strip_prefix("proc/self")) {
            (Some(id), Ok(rest)) => self.root.join(format!("proc/{id}")).join(rest),
            _ => self.root.join(path),
        }
    }

    /// Returns the text of a file without the blanks around it; `None` if there is no such text.
    pub fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        let text = std::fs::read_to_string(self.path(path)).ok()?;
        Some(text.trim().to_owned())
    }

    /// Returns the number in a file that holds only one.
    pub fn number(&self, path: impl AsRef<Path>) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    /// Returns the CPUs in a file that holds a list of them.
    pub fn cpus(&self, path: impl AsRef<Path>) -> Option<CpuSet> {
        self.text(path)?.parse().ok()
    }

    /// Returns the value of the line `key: value` in a file.
    pub fn field(&self, path: impl AsRef<Path>, key: &str) -> Option<String> {
        let text = self.text(path)?;
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        value.map(|value| value.trim().to_owned())
    }

    /// Returns the names in a directory that begin with `prefix`, those with numbers by number.
    pub fn names(&self, directory: impl AsRef<Path>, prefix: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(directory)).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| name.starts_with(prefix)).collect();
        names.sort_by_key(|name| (name.len(), name.clone()));
        names
    }

    /// Returns the last part of a symbolic link's target.
    pub fn link(&self, path: impl AsRef<Path>) -> Option<String> {
        let target = std::fs::read_link(self.path(path)).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }
}

/// Returns bytes in hexadecimal, two digits each.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // Writing to a String cannot fail.
        text
    })
}
