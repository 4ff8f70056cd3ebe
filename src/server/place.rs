//! How many shards there are, and on which core each of them lives.

#![forbid(unsafe_code)]

use std::fs;
use std::num::NonZeroUsize;

use core_affinity::CoreId;

use crate::config::{RuntimeOptions, ShardCount};
use crate::engine::SHARDS_MAX;

/// One entry for each shard: the core it is to be pinned to, if any.
///
/// `auto` is one shard for each core this process may use (its cpuset, and its cgroup's quota),
/// at least one, hyperthreads of one core counted once. More shards than cores share them.
/// Under a quota smaller than the cpuset nobody is pinned: every container with such a quota
/// would choose the same first cores.
pub fn shards(options: &RuntimeOptions) -> Vec<Option<CoreId>> {
    // std counts the CPUs of the cpuset and rounds down to what a cgroup's quota pays for.
    let quota = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let cpus: Vec<Cpu> = core_affinity::get_core_ids()
        .unwrap_or_default()
        .into_iter()
        .map(|id| Cpu { id: id.id, core: first_sibling(id.id) })
        .collect();
    plan(&cpus, quota, options)
}

/// Keeps the calling thread on `core`. False if that was refused, which costs speed only.
pub fn pin(core: Option<CoreId>) -> bool {
    core.is_none_or(core_affinity::set_for_current)
}

/// Bytes of memory this process may use: the machine's, or less if its cgroup says so.
pub fn memory_bytes() -> usize {
    let info = rustix::system::sysinfo();
    let machine = u64::from(info.mem_unit).saturating_mul(info.totalram);
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    let files = [
        format!("/sys/fs/cgroup{own}/memory.max"),
        "/sys/fs/cgroup/memory.max".to_owned(),
        "/sys/fs/cgroup/memory/memory.limit_in_bytes".to_owned(),
    ];
    let limit = |file: &String| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
    let bytes = files.iter().filter_map(limit).fold(machine, u64::min);
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// A CPU as the kernel counts them, and the core it is a hyperthread of.
#[derive(Debug, Clone, Copy)]
struct Cpu {
    id: usize,
    /// The lowest of the core's CPUs.
    core: usize,
}

fn plan(cpus: &[Cpu], quota: usize, options: &RuntimeOptions) -> Vec<Option<CoreId>> {
    // One hyperthread of each core first, then the others: those are used only if N asks for it.
    let is_first = |cpu: &&Cpu| {
        let same_core = cpus.iter().filter(|other| other.core == cpu.core);
        same_core.map(|other| other.id).min() == Some(cpu.id)
    };
    let (first, rest): (Vec<&Cpu>, Vec<&Cpu>) = cpus.iter().partition(is_first);
    let count = match options.shards {
        ShardCount::Exactly(count) => count.max(1),
        ShardCount::Auto => first.len().min(quota).clamp(1, SHARDS_MAX),
    };
    if !options.pin || cpus.is_empty() || quota < cpus.len() {
        return vec![None; count];
    }
    let order = first.iter().chain(&rest).map(|cpu| Some(CoreId { id: cpu.id }));
    order.cycle().take(count).collect()
}

/// The lowest CPU of the core that CPU `id` belongs to; itself if the kernel does not say.
fn first_sibling(id: usize) -> usize {
    let path = format!("/sys/devices/system/cpu/cpu{id}/topology/thread_siblings_list");
    let list = fs::read_to_string(path).unwrap_or_default();
    // "0,64" or "0-1": sorted, so the first number is the lowest.
    let first = list.trim().split([',', '-']).next().and_then(|first| first.parse().ok());
    first.unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpus(cores: &[usize]) -> Vec<Cpu> {
        cores.iter().enumerate().map(|(id, core)| Cpu { id, core: *core }).collect()
    }

    fn placed(cores: &[usize], quota: usize, shards: ShardCount) -> Vec<Option<usize>> {
        let options = RuntimeOptions { shards, ..RuntimeOptions::default() };
        plan(&cpus(cores), quota, &options).into_iter().map(|core| core.map(|c| c.id)).collect()
    }

    #[test]
    fn auto_is_one_shard_per_core_and_counts_hyperthreads_once() {
        assert_eq!(placed(&[0, 1, 2], 3, ShardCount::Auto), [Some(0), Some(1), Some(2)]);
        assert_eq!(placed(&[0, 1, 0, 1], 4, ShardCount::Auto), [Some(0), Some(1)]);
        assert_eq!(placed(&[0, 0], 2, ShardCount::Auto), [Some(0)]);
    }

    #[test]
    fn a_number_takes_cores_first_then_hyperthreads_then_wraps() {
        let placed = placed(&[0, 1, 0, 1], 4, ShardCount::Exactly(5));
        assert_eq!(placed, [Some(0), Some(1), Some(2), Some(3), Some(0)]);
    }

    #[test]
    fn a_quota_limits_auto_and_leaves_the_placing_to_the_kernel() {
        assert_eq!(placed(&[0, 1, 2, 3], 2, ShardCount::Auto), [None, None]);
        assert_eq!(placed(&[0, 1, 2, 3], 2, ShardCount::Exactly(3)), [None, None, None]);
    }

    #[test]
    fn there_is_always_a_shard() {
        assert_eq!(placed(&[], 1, ShardCount::Auto), [None]);
        assert_eq!(placed(&[0], 0, ShardCount::Auto), [None]);
        assert!(!shards(&RuntimeOptions::default()).is_empty());
    }

    #[test]
    fn auto_stops_at_the_most_shards_there_can_be() {
        let cores: Vec<usize> = (0..200).collect();
        assert_eq!(placed(&cores, 200, ShardCount::Auto).len(), SHARDS_MAX);
    }

    #[test]
    fn nobody_is_pinned_who_does_not_want_to_be() {
        let options = RuntimeOptions { pin: false, ..RuntimeOptions::default() };
        assert_eq!(plan(&cpus(&[0, 1]), 2, &options), [None, None]);
        assert!(pin(None));
    }
}
