//! How large things have to be: counted from the tree, before anything is written.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::format::ext4::{BLOCK, Ext4, Need};
use crate::system::{Disk, ExtraFs};
use crate::tree::{Kind, Tree, TreePath, normal};
use crate::units::Bytes;

/// A thousandth of the blocks is added to what was counted: for extent blocks of files that lie scattered.
const SCATTER: u64 = 1000;
/// How many directories an error names.
const NAMED: usize = 6;

/// What the nodes need that lie on the file system mounted at `mount`: those below it that are on no other one.
/// Nothing lies on a file system that is mounted nowhere.
pub(super) fn need_below(tree: &Tree, mount: Option<&str>, disk: &Disk) -> Need {
    let Some(mount) = mount else { return Need::of(std::iter::empty()) };
    let mount = normal(mount.as_bytes());
    let others: Vec<TreePath> = mount_points(disk).filter(|other| *other != mount).collect();
    let nodes = tree.iter().filter_map(|(path, node)| {
        let inner = relative(path, &mount)?;
        let elsewhere = others.iter().any(|other| relative(other, &mount).is_some() && below(path, other));
        (!elsewhere).then_some((inner, node))
    });
    Need::of(nodes)
}

fn mount_points(disk: &Disk) -> impl Iterator<Item = TreePath> {
    let extra = disk.partitions.values().filter(|p| p.enable && p.fs == ExtraFs::Ext4);
    extra.map(|p| normal(p.mount.as_bytes())).filter(|mount| !mount.is_empty())
}

/// `path` as seen from `mount`; `None` when it lies elsewhere.
pub(super) fn relative<'a>(path: &'a [u8], mount: &[u8]) -> Option<&'a [u8]> {
    if mount.is_empty() {
        return Some(path);
    }
    match path.strip_prefix(mount)? {
        [] => Some(b""),
        [b'/', rest @ ..] => Some(rest),
        _ => None,
    }
}

/// Whether `path` lies below `mount` without being it.
pub(super) fn below(path: &[u8], mount: &[u8]) -> bool {
    relative(path, mount).is_some_and(|inner| !inner.is_empty())
}

/// The smallest size at which the file system `fs` holds `need` and leaves `free`.
pub(super) fn smallest(fs: &Ext4, need: Need, free: Bytes) -> Bytes {
    solve(need, free, &|_| fs.clone())
}

/// The smallest size at which the file system that `make` makes of it holds `need` and leaves `free`.
pub(super) fn solve(need: Need, free: Bytes, make: &dyn Fn(Bytes) -> Ext4) -> Bytes {
    let content = need.blocks + need.blocks / SCATTER + free.0.div_ceil(BLOCK);
    let mut size = Bytes(content * BLOCK);
    loop {
        let next = Bytes((content + make(size).overhead(size)) * BLOCK);
        if next <= size {
            return size;
        }
        size = next;
    }
}

/// The largest directories below `mount`, two levels deep, with the sizes of what they hold; the largest first.
pub(super) fn largest(tree: &Tree, mount: &str) -> Vec<(String, Bytes)> {
    let mount = normal(mount.as_bytes());
    let mut sizes: BTreeMap<&[u8], u64> = BTreeMap::new();
    for (path, node) in tree.iter() {
        let (Some(inner), Kind::File(content)) = (relative(path, &mount), &node.kind) else { continue };
        let slashes = inner.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
        let end = slashes.take(2).last().unwrap_or(0);
        let dir = &path[..path.len() - inner.len() + end];
        *sizes.entry(dir).or_default() += content.len();
    }
    let mut list: Vec<_> = sizes
        .into_iter()
        .map(|(p, size)| (format!("/{}", String::from_utf8_lossy(p).trim_end_matches('/')), Bytes(size)))
        .collect();
    list.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    list.truncate(NAMED);
    list
}

/// The directories as lines of an error.
pub(super) fn largest_text(largest: &[(String, Bytes)]) -> String {
    let mut text = String::from(if largest.is_empty() { "" } else { "; the largest directories:" });
    for (path, size) in largest {
        let _ = write!(text, "\n  {:>10}  {path}", size.to_string());
    }
    text
}
