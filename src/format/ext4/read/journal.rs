//! The body of a journal that holds nothing.
//!
//! A journal whose `s_start` is zero is empty, and whoever opens one looks no further than its superblock: Linux'
//! `jbd2_journal_recover` (which is called in no other way), e2fsck's recovery, which is the same code, GRUB, which takes no
//! notice of journals. What lies behind it is written before it is read. After a crash recovery reads on behind the last
//! transaction to find that nothing follows; there it may meet what was never written, as it meets what an earlier
//! round left. A block counts only with the magic number, the type and the number of the next transaction, and with
//! checksums, which Linux turns on when it mounts, only with those. mke2fs' `lazy_journal_init` rests on the same.
//!
//! What isn't understood counts as read: other features, a journal in many pieces, one of ext3's that maps its blocks
//! without extents. Fields are those of Linux' Documentation/filesystems/ext4/{journal,inodes,ifork}.rst.

use std::io::{self, Read, Seek};
use std::ops::Range;

use super::{Group, Super, bytes, u16_at, u32_at};

/// `i_flags`: the inode's blocks are mapped by extents.
const EXTENTS: u32 = 0x8_0000;
/// Magic number of an extents' header.
const EXTENTS_MAGIC: u16 = 0xf30a;
/// Extents that lie in the inode itself.
const MOST_EXTENTS: u16 = 4;
/// Longest extent whose blocks count as written; longer ones are marked as not.
const LONGEST: u64 = 32_768;
/// Magic number of a journal's blocks.
const MAGIC: u32 = 0xc03b_3998;
/// The second version of its superblock.
const SUPERBLOCK_V2: u32 = 4;
/// revoke, 64bit, async_commit, csum_v2, csum_v3. Not among them: fast_commit, which keeps an area of its own.
const INCOMPAT: u32 = 0x1 | 0x2 | 0x4 | 0x8 | 0x10;

/// The ranges of blocks that an empty journal's body takes; none when it isn't empty or isn't understood.
pub(super) fn body(
    disk: &mut (impl Read + Seek),
    sb: &Super,
    groups: &[Group],
) -> io::Result<Vec<Range<u64>>> {
    let Some(number) = sb.journal.checked_sub(1) else { return Ok(Vec::new()) };
    let Some(group) = groups.get((number / sb.inodes_per_group) as usize) else { return Ok(Vec::new()) };
    let place = group.table * sb.block + number % sb.inodes_per_group * sb.inode;
    let inode = bytes(disk, place, 128)?;
    let extents = extents(&inode, sb).unwrap_or_default();
    let Some(start) = extents.first().map(|extent| extent.start) else { return Ok(Vec::new()) };
    let super_block = bytes(disk, start * sb.block, 1024)?;
    let blocks = extents.iter().map(|extent| extent.end - extent.start).sum();
    let Some(mut skipped) = head_of_empty(&super_block, sb.block, blocks) else { return Ok(Vec::new()) };
    let mut body = Vec::new();
    for extent in extents {
        let skip = skipped.min(extent.end - extent.start);
        skipped -= skip;
        if extent.start + skip < extent.end {
            body.push(extent.start + skip..extent.end);
        }
    }
    Ok(body)
}

/// Where a file lies whose extents its inode holds itself, one behind the other with nothing left out.
fn extents(inode: &[u8], sb: &Super) -> Option<Vec<Range<u64>>> {
    let tree = &inode[0x28..0x28 + 60];
    let (magic, entries, depth) = (u16_at(tree, 0), u16_at(tree, 2), u16_at(tree, 6));
    if u32_at(inode, 0x20) & EXTENTS == 0 || magic != EXTENTS_MAGIC || depth != 0 || entries > MOST_EXTENTS {
        return None;
    }
    let mut next = 0;
    let mut found = Vec::new();
    for entry in tree[12..].chunks_exact(12).take(usize::from(entries)) {
        let count = u64::from(u16_at(entry, 4));
        let start = u64::from(u16_at(entry, 6)) << 32 | u64::from(u32_at(entry, 8));
        let sound = u64::from(u32_at(entry, 0)) == next && (1..=LONGEST).contains(&count);
        if !sound || start < sb.first || start + count > sb.blocks {
            return None;
        }
        next += count;
        found.push(start..start + count);
    }
    Some(found)
}

/// How many blocks at the beginning of an empty journal don't belong to its body, by its superblock.
fn head_of_empty(sb: &[u8], block: u64, blocks: u64) -> Option<u64> {
    let field = |at: usize| u32::from_be_bytes([sb[at], sb[at + 1], sb[at + 2], sb[at + 3]]);
    let known = field(0) == MAGIC && field(4) == SUPERBLOCK_V2 && field(0x28) & !INCOMPAT == 0;
    let (size, length, first) = (u64::from(field(0xc)), u64::from(field(0x10)), u64::from(field(0x14)));
    let (start, error) = (field(0x1c), field(0x20));
    let sound = size == block && length <= blocks && (1..length).contains(&first);
    (known && sound && start == 0 && error == 0).then_some(first)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::process::Command;

    use super::super::in_use;
    use crate::units::MIB;

    /// Runs one of e2fsprogs; `Err` with what it said when it found something.
    fn run(program: &str, args: &[&str], file: &Path) -> Result<String, String> {
        let mut command = Command::new(program);
        let out = command.env("MKE2FS_CONFIG", "/dev/null").args(args).arg(file).output().unwrap();
        let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        if out.status.success() { Ok(said) } else { Err(format!("{program} {args:?}: {said}")) }
    }

    /// A file system as those of images are, with a few files in it.
    fn made(mib: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(mib * MIB).unwrap();
        let features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,\
                        large_file,huge_file,dir_nlink,extra_isize,metadata_csum";
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/format");
        let inodes = (mib * 64).to_string();
        let options = "nodiscard,lazy_itable_init=1,lazy_journal_init=1";
        let args = ["-q", "-F", "-T", "default", "-b", "4096", "-I", "256", "-N", &inodes, "-O", features];
        let args = [&args[..], &["-J", "size=8", "-E", options, "-d", folder]].concat();
        run("mke2fs", &args, file.path()).unwrap();
        file
    }

    /// Writes noise wherever nothing reads; how many bytes of it.
    fn fill_holes(file: &File, size: u64) -> u64 {
        let noise: Vec<u8> = (0..MIB).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 29) as u8).collect();
        let used = in_use(&mut &*file, size).unwrap();
        let ends = used.iter().map(|range| range.end);
        let starts = used.iter().skip(1).map(|range| range.start).chain([size]);
        let mut written = 0;
        for (mut at, end) in ends.zip(starts) {
            while at < end {
                let count = (end - at).min(MIB);
                file.write_all_at(&noise[..count as usize], at).unwrap();
                (at, written) = (at + count, written + count);
            }
        }
        written
    }

    /// What a volume is that was made encrypted of a snapshot without the holes: sound, in use, grown.
    #[test]
    fn noise_in_what_is_not_read_is_never_seen() {
        let (mib, grown) = (160, 320);
        let file = made(mib);
        let noise = fill_holes(file.as_file(), mib * MIB);
        // Of 10 MiB the journal takes 8, descriptors and inodes that are in use most of the rest.
        assert!(noise > (mib - 10) * MIB, "{noise}");
        let check = |args: &[&str]| run("e2fsck", args, file.path()).unwrap_or_else(|said| panic!("{said}"));
        check(&["-fn"]);
        // Files come, more than the first group has inodes for, and the file system grows.
        let mut script = String::new();
        for number in 0..6000 {
            script += &format!("write /dev/null /file{number}\n");
        }
        let requests = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(requests.path(), script).unwrap();
        run("debugfs", &["-w", "-f", requests.path().to_str().unwrap()], file.path()).unwrap();
        check(&["-fn"]);
        file.as_file().set_len(grown * MIB).unwrap();
        run("resize2fs", &[], file.path()).unwrap();
        check(&["-fn"]);
        run("debugfs", &["-R", "stat /file5999"], file.path()).unwrap();
    }

    #[test]
    fn a_journal_that_is_not_empty_is_read() {
        let file = made(64);
        let read = || in_use(&mut File::open(file.path()).unwrap(), 64 * MIB).unwrap();
        let bytes = || read().iter().map(|range| range.end - range.start).sum::<u64>();
        let empty = bytes();
        let all = empty + 8 * MIB - 4096;
        let blocks = run("debugfs", &["-R", "blocks <8>"], file.path()).unwrap();
        let first = blocks.split(' ').next().unwrap().parse::<u64>().unwrap() * 4096;
        // Its start, its error, its features (an area of fast commits), its version, its length.
        for (at, byte) in [(0x1f, 1), (0x23, 1), (0x2b, 0x20), (7, 3), (0x10, 1), (0, 0)] {
            let mut old = [0];
            file.as_file().read_exact_at(&mut old, first + at).unwrap();
            file.as_file().write_all_at(&[byte], first + at).unwrap();
            assert_eq!(bytes(), all, "{at:#x}");
            file.as_file().write_all_at(&old, first + at).unwrap();
            assert_eq!(bytes(), empty);
        }
    }
}
