//! Generations of io_uring features, by the kernel that first had them.

use std::fmt;
use std::str::FromStr;

/// A generation of io_uring features; a later one includes the earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Linux 5.11: one request for each operation, sockets polled before they are read.
    Base,
    /// Linux 6.0: multishot receive, buffer rings, wakes by `MSG_RING`, `SEND_ZC`.
    Rings,
    /// Linux 6.1: completions are processed only when the shard asks for them.
    TaskRun,
}

impl Tier {
    /// All tiers, the best first.
    pub const ALL: [Self; 3] = [Self::TaskRun, Self::Rings, Self::Base];

    /// Returns the first kernel release that has the tier.
    pub fn kernel(self) -> &'static str {
        match self {
            Self::Base => "5.11",
            Self::Rings => "6.0",
            Self::TaskRun => "6.1",
        }
    }
}

/// Writes the tier as in `--uring-tier`: `base`, `rings`, `taskrun`.
impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Base => "base",
            Self::Rings => "rings",
            Self::TaskRun => "taskrun",
        })
    }
}

impl FromStr for Tier {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|tier| tier.to_string() == name)
            .ok_or_else(|| format!("unknown io_uring tier {name:?}; use base, rings or taskrun"))
    }
}
