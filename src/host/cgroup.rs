//! Control groups, version 1 and 2: the limits of this process.

use std::fmt;

use super::Tree;

/// Bytes of memory that are assumed where the machine's memory cannot be seen.
const MEMORY_BYTES_UNKNOWN: u64 = 1 << 30;

/// CPU time that a control group may use: `time_us` in each `period_us`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Microseconds of CPU time in a period, all CPUs together.
    pub time_us: u64,
    /// Length of the period in microseconds; never 0.
    pub period_us: u64,
}

impl Quota {
    /// Returns the whole CPUs that the quota is worth, rounded down.
    pub fn whole_cpus(self) -> usize {
        usize::try_from(self.time_us / self.period_us).unwrap_or(usize::MAX)
    }

    /// Reads the narrowest quota of the process's group and those above it.
    pub(super) fn read(tree: &Tree) -> Option<Self> {
        let of = |time: &str, period: &str| {
            let (time_us, period_us) = (time.parse().ok()?, period.parse().ok()?);
            (period_us > 0).then_some(Self { time_us, period_us })
        };
        let two = groups(tree, None).into_iter().filter_map(|group| {
            let text = tree.text(format!("{group}/cpu.max"))?;
            let (time, period) = text.split_once(' ')?;
            of(time, period)
        });
        let one = groups(tree, Some("cpu")).into_iter().filter_map(|group| {
            let file = |name| tree.text(format!("{group}/cpu.cfs_{name}_us"));
            // No quota is -1, which is no number here.
            of(&file("quota")?, &file("period")?)
        });
        // a/b < c/d, without the fractions.
        let cost = |x: &Self, y: &Self| u128::from(x.time_us) * u128::from(y.period_us);
        two.chain(one).min_by(|a, b| cost(a, b).cmp(&cost(b, a)))
    }
}

/// Writes the quota in CPUs, with two decimals at most.
impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hundredths = u128::from(self.time_us) * 100 / u128::from(self.period_us);
        let text = format!("{}.{:02}", hundredths / 100, hundredths % 100);
        f.pad(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

/// Returns the bytes of memory that this process may use: the machine's, or less if its groups say
/// so.
pub fn memory_bytes(tree: &Tree) -> usize {
    let total = tree.field("proc/meminfo", "MemTotal");
    let kib = total.and_then(|text| text.trim_end_matches(" kB").parse::<u64>().ok());
    let machine = kib.map_or(MEMORY_BYTES_UNKNOWN, |kib| kib.saturating_mul(1024));
    let two = groups(tree, None).into_iter().map(|group| format!("{group}/memory.max"));
    let one = groups(tree, Some("memory"));
    let one = one.into_iter().map(|group| format!("{group}/memory.limit_in_bytes"));
    let limits = two.chain(one).filter_map(|file| tree.number(file));
    let bytes = limits.fold(machine, u64::min);
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Returns the directories of the process's group and those above it as far as they can be seen,
/// the own one first; of version 1's hierarchy with this controller, or of version 2's.
fn groups(tree: &Tree, controller: Option<&str>) -> Vec<String> {
    let Some((top, mount)) = mount(tree, controller) else { return Vec::new() };
    let own = tree.text("proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (names, path) = (parts.next()?, parts.next()?);
        let found =
            controller.map_or(names.is_empty(), |wanted| names.split(',').any(|n| n == wanted));
        found.then_some(path)
    });
    // A container sees its own group as the mount's top, whatever the group's path says.
    let below = own.and_then(|path| path.strip_prefix(top.trim_end_matches('/')));
    let below = below.filter(|path| path.starts_with('/') && !path.contains("/.."));
    let mut group = format!("{mount}{}", below.unwrap_or_default().trim_end_matches('/'));
    let mut groups = vec![group.clone()];
    while group.len() > mount.len() {
        group.truncate(group.rfind('/').unwrap_or(0));
        groups.push(group.clone());
    }
    groups
}

/// Returns the mount point of the hierarchy, relative to the tree's root, and the group on its top.
fn mount(tree: &Tree, controller: Option<&str>) -> Option<(String, String)> {
    let mounts = tree.text("proc/self/mountinfo")?;
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let (top, mount) = (before.next()?, before.next()?);
        let mut after = after.split(' ');
        let (kind, options) = (after.next()?, after.nth(1)?);
        let found = match controller {
            None => kind == "cgroup2",
            Some(wanted) => kind == "cgroup" && options.split(',').any(|option| option == wanted),
        };
        found.then(|| (top.to_owned(), mount.trim_start_matches('/').to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::super::machine::Machine;
    use super::*;

    fn quota(machine: &Machine) -> Option<String> {
        Quota::read(&machine.tree()).map(|quota| quota.to_string())
    }

    #[test]
    fn the_quota_of_either_version_is_found() {
        let two = Machine::new(1, 4, 1).quota_v2("/a/b", &[("/a/b", "250000 100000")]);
        assert_eq!(quota(&two).as_deref(), Some("2.5"));
        let one = Machine::new(1, 4, 1).quota_v1("/docker/x", 250_000);
        assert_eq!(quota(&one).as_deref(), Some("2.5"));
        assert_eq!(quota(&Machine::new(1, 4, 1)), None);
    }

    #[test]
    fn the_narrowest_group_counts_and_max_is_none() {
        let groups = [("/a/b", "max 100000"), ("/a", "150000 50000"), ("", "1000000 100000")];
        assert_eq!(quota(&Machine::new(1, 4, 1).quota_v2("/a/b", &groups)).as_deref(), Some("3"));
        let none = Machine::new(1, 4, 1).quota_v2("/a", &[("/a", "max 100000")]);
        assert_eq!(quota(&none), None);
        assert_eq!(quota(&Machine::new(1, 4, 1).quota_v1("/", u64::MAX)), None);
    }

    #[test]
    fn in_a_container_the_mounts_top_is_the_own_group() {
        // Version 1 without a namespace of its own: the path is the host's, the mount is not.
        let machine = Machine::new(1, 4, 1).with(&[
            ("proc/self/cgroup", "4:cpu,cpuacct:/docker/x\n"),
            (
                "proc/self/mountinfo",
                "31 23 0:28 /docker/x /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n",
            ),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000"),
        ]);
        assert_eq!(quota(&machine).as_deref(), Some("0.5"));
        // A group outside of the namespace.
        let outside = Machine::new(1, 4, 1).quota_v2("/../../x", &[("", "150000 100000")]);
        assert_eq!(quota(&outside).as_deref(), Some("1.5"));
    }

    #[test]
    fn memory_is_the_machines_or_what_a_group_allows() {
        let machine = || Machine::new(1, 2, 1).with(&[("proc/meminfo", "MemTotal:  2048 kB\n")]);
        assert_eq!(memory_bytes(&machine().tree()), 2 << 20);
        let limited = machine()
            .quota_v2("/a", &[("/a", "max 100000")])
            .with(&[("sys/fs/cgroup/memory.max", "max"), ("sys/fs/cgroup/a/memory.max", "4096")]);
        assert_eq!(memory_bytes(&limited.tree()), 4096);
        assert!(memory_bytes(&Tree::default()) > 1 << 20);
        assert_eq!(memory_bytes(&Machine::new(1, 1, 1).tree()), 1 << 30);
    }
}
