//! Machines for tests: trees of `/proc` and `/sys` files as Linux writes them.

use std::fs;

use tempfile::TempDir;

use super::Tree;

/// A directory that looks like a host.
pub(crate) struct Machine {
    root: TempDir,
}

impl Machine {
    /// A machine with as many sockets (a NUMA node each), cores in each and threads of each core.
    /// CPUs are numbered as most firmware does: all first threads, socket by socket, then all
    /// second ones.
    pub(crate) fn new(sockets: usize, cores: usize, threads: usize) -> Self {
        let machine = Self { root: tempfile::tempdir().unwrap() };
        let all = sockets * cores;
        let of = |range: &mut dyn Iterator<Item = usize>| {
            range.map(|cpu| cpu.to_string()).collect::<Vec<_>>().join(",")
        };
        for cpu in 0..all * threads {
            let siblings = of(&mut (0..threads).map(|thread| cpu % all + thread * all));
            let path = format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
            machine.write(&path, &siblings);
        }
        for socket in 0..sockets {
            let cpus = (0..all * threads).filter(|cpu| cpu % all / cores == socket);
            let path = format!("sys/devices/system/node/node{socket}/cpulist");
            machine.write(&path, &of(&mut cpus.into_iter()));
        }
        let online = format!("0-{}", all * threads - 1);
        machine.write("sys/devices/system/cpu/online", &online);
        machine.write("sys/devices/system/cpu/isolated", "");
        machine.allowed(&online)
    }

    /// Allows these CPUs only.
    pub(crate) fn allowed(self, cpus: &str) -> Self {
        self.with(&[("proc/self/status", &format!("Name:\tx\nCpus_allowed_list:\t{cpus}\n"))])
    }

    /// Puts the process into the group `own`, and gives these groups their `cpu.max`.
    pub(crate) fn quota_v2(self, own: &str, groups: &[(&str, &str)]) -> Self {
        for (group, max) in groups {
            self.write(&format!("sys/fs/cgroup{group}/cpu.max"), max);
        }
        self.with(&[
            ("proc/self/cgroup", &format!("0::{own}\n")),
            ("proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
        ])
    }

    /// Puts the process into the group `own`, with this quota in each 100 ms; `u64::MAX` is none.
    pub(crate) fn quota_v1(self, own: &str, quota_us: u64) -> Self {
        let quota = if quota_us == u64::MAX { "-1".to_owned() } else { quota_us.to_string() };
        let directory = format!("sys/fs/cgroup/cpu,cpuacct{own}");
        self.with(&[
            (&format!("{directory}/cpu.cfs_quota_us"), &quota),
            (&format!("{directory}/cpu.cfs_period_us"), "100000"),
            ("proc/self/cgroup", &format!("5:memory:/x\n4:cpu,cpuacct:{own}\n0::/\n")),
            (
                "proc/self/mountinfo",
                "31 23 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n",
            ),
        ])
    }

    /// Adds files to the machine.
    pub(crate) fn with(self, files: &[(&str, &str)]) -> Self {
        for (path, text) in files {
            self.write(path, text);
        }
        self
    }

    /// Returns the tree of the machine's files.
    pub(crate) fn tree(&self) -> Tree {
        Tree::at(self.root.path())
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}
