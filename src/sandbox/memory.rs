//! How much memory may be used for a scratch tree.

use std::fs;
use std::path::{Path, PathBuf};

/// What is left over beside a scratch tree for the scripts that run in it, and for the host.
const RESERVE: u64 = 1 << 30;

/// Whether a tree of `bytes` may lie in memory: at most half of what is free.
pub(super) fn is_enough_for(bytes: u64) -> bool {
    free().is_some_and(|free| bytes.saturating_mul(2).saturating_add(RESERVE) <= free)
}

/// Free memory in bytes: of the host, and of every control group that this process is in.
fn free() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let mut free = available(&meminfo)?;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = groups.lines().find_map(|l| l.strip_prefix("0::/")).unwrap_or_default();
    let mut folder = PathBuf::from("/sys/fs/cgroup").join(own);
    while folder.starts_with("/sys/fs/cgroup") {
        if let (Some(most), Some(now)) =
            (number(&folder.join("memory.max")), number(&folder.join("memory.current")))
        {
            // What the page cache holds counts as used there, but gives way.
            let cache =
                fs::read_to_string(folder.join("memory.stat")).ok().and_then(|t| file_pages(&t)).unwrap_or(0);
            free = free.min(most.saturating_sub(now.saturating_sub(cache)));
        }
        folder.pop();
    }
    Some(free)
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

fn file_pages(stat: &str) -> Option<u64> {
    stat.lines().find_map(|l| l.strip_prefix("inactive_file "))?.parse().ok()
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_prints_is_read() {
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:       16 kB\n"), Some(16 << 10));
        assert_eq!(available("MemTotal: 9 kB\n"), None);
        assert_eq!(file_pages("anon 3\ninactive_file 4096\n"), Some(4096));
    }

    #[test]
    fn no_host_has_an_exabyte_to_spare() {
        assert!(!is_enough_for(1 << 60));
    }
}
