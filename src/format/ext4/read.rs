//! Which bytes of an ext2, ext3 or ext4 file system something reads: those that its bitmaps call allocated, but for what
//! is written before it is ever read (inodes that were never in use, an empty journal, room for growth).
//!
//! It is answered for file systems whose every feature is known, which are clean and whose counts agree; of others
//! nothing is said, and the caller takes all of their bytes for read. Field offsets are those of Linux'
//! Documentation/filesystems/ext4/{super,group_descr}.rst.

use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

mod journal;

use super::has_superblock;
use crate::format::merged;

/// Where the superblock lies, whatever the size of blocks.
const SUPERBLOCK: u64 = 1024;
/// What lies before the first file system's block may be looked at by whoever searches for signatures.
const HEAD: u64 = 64 << 10;
/// More groups than this are damage or a disk that no image is made for: 128 TiB with blocks of 4 KiB.
const MOST_GROUPS: u64 = 1 << 20;

/// has_journal, ext_attr, resize_inode, dir_index, fast_commit, stable_inodes, orphan_file, dir_prealloc.
const COMPAT: u32 = 0x4 | 0x8 | 0x10 | 0x20 | 0x400 | 0x800 | 0x1000 | 0x1;
/// filetype, extent, 64bit, mmp, flex_bg, ea_inode, metadata_csum_seed, large_dir, inline_data, encrypt, casefold. Not
/// among them: a journal that is to be replayed, for then the bitmaps aren't what they will be.
const INCOMPAT: u32 =
    0x2 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x1_0000 | 0x2_0000;
const COMPAT_JOURNAL: u32 = 0x4;
const INCOMPAT_64BIT: u32 = 0x80;
/// sparse_super, large_file, huge_file, uninit_bg, dir_nlink, extra_isize, quota, metadata_csum, read-only, project,
/// verity. Not among them: bigalloc, whose bitmaps count clusters.
const RO_COMPAT: u32 = 0x1 | 0x2 | 0x8 | 0x10 | 0x20 | 0x40 | 0x100 | 0x400 | 0x1000 | 0x2000 | 0x8000;
const SPARSE_SUPER: u32 = 0x1;
/// uninit_bg or metadata_csum: groups' flags mean something.
const GROUP_FLAGS: u32 = 0x10 | 0x400;

/// The group's inode table holds no used inode behind `itable_unused`, and its block bitmap was never written.
const BLOCK_UNINIT: u16 = 0x2;
/// The inode table reads as zeroes where no inode was ever in use: readers rely on it.
const INODE_ZEROED: u16 = 0x4;

/// Why nothing is said of a file system.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It isn't ext2, ext3 or ext4.
    #[error("this is no ext file system")]
    NotExt,
    /// It uses what isn't known here, or isn't clean.
    #[error("the ext file system {0}")]
    Unknown(&'static str),
    /// Reading failed.
    #[error("can't read: {0}")]
    Io(#[from] io::Error),
}

/// What of the superblock matters.
struct Super {
    block: u64,
    blocks: u64,
    first: u64,
    per_group: u64,
    groups: u64,
    /// Blocks of a group's inode table.
    table: u64,
    inode: u64,
    descriptor: u64,
    /// Blocks of all descriptors.
    descriptors: u64,
    /// Blocks behind them that are kept for more of them.
    reserved: u64,
    inodes_per_group: u64,
    /// Number of the journal's inode; zero without one.
    journal: u64,
    sparse: bool,
    flags: bool,
}

/// A group's descriptor.
struct Group {
    block_bitmap: u64,
    inode_bitmap: u64,
    table: u64,
    free: u64,
    unused_inodes: u64,
    flags: u16,
}

/// The ranges of bytes that something reads in the file system on `disk`, of which it may have `size` bytes; in order,
/// none empty, none touching the next.
///
/// Three things that are allocated count as unread: of inode tables the part where no inode was ever in use, if the file
/// system doesn't promise that there are zeroes; the body of an empty journal ([`journal`]); and the room for more
/// descriptors behind copies of the superblock, of which Linux and e2fsprogs read the first one only and write the others
/// as a whole.
///
/// # Errors
/// [`ReadError`] when that can't be said.
pub fn in_use(disk: &mut (impl Read + Seek), size: u64) -> Result<Vec<Range<u64>>, ReadError> {
    let sb = superblock(disk, size)?;
    let groups = descriptors(disk, &sb)?;
    let mut used = Vec::new();
    let mut never = journal::body(disk, &sb, &groups)?;
    for (number, group) in (0..).zip(&groups) {
        group_in_use(disk, &sb, number, group, &mut used)?;
        never.extend(never_in_use(&sb, group));
        never.extend(kept_for_growth(&sb, number));
    }
    let mut used = without(merged(used), &merged(never));
    for range in &mut used {
        *range = range.start * sb.block..range.end * sb.block;
    }
    used.push(0..HEAD.min(size));
    Ok(merged(used))
}

fn bytes(disk: &mut (impl Read + Seek), at: u64, count: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    disk.seek(SeekFrom::Start(at))?;
    disk.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

fn superblock(disk: &mut (impl Read + Seek), size: u64) -> Result<Super, ReadError> {
    if size < SUPERBLOCK * 2 {
        return Err(ReadError::NotExt);
    }
    let b = bytes(disk, SUPERBLOCK, 1024)?;
    if u16_at(&b, 0x38) != 0xef53 {
        return Err(ReadError::NotExt);
    }
    let unknown = |what| Err(ReadError::Unknown(what));
    // A file system of revision 0 has no feature words.
    let (compat, incompat, ro) = (u32_at(&b, 0x5c), u32_at(&b, 0x60), u32_at(&b, 0x64));
    if u32_at(&b, 0x4c) != 1 || compat & !COMPAT != 0 || incompat & !INCOMPAT != 0 || ro & !RO_COMPAT != 0 {
        return unknown("has features that aren't known here, or a journal to be replayed");
    }
    if u16_at(&b, 0x3a) & 0x3 != 1 {
        return unknown("isn't clean");
    }
    let (log, wide) = (u32_at(&b, 0x18), incompat & INCOMPAT_64BIT != 0);
    let block = if log <= 6 { 1024 << log } else { return unknown("has blocks of an impossible size") };
    let blocks = u64::from(u32_at(&b, 4)) | if wide { u64::from(u32_at(&b, 0x150)) << 32 } else { 0 };
    let (first, per_group) = (u64::from(u32_at(&b, 0x14)), u64::from(u32_at(&b, 0x20)));
    let (inodes_per_group, inode) = (u64::from(u32_at(&b, 0x28)), u64::from(u16_at(&b, 0x58)));
    let descriptor = if wide { u64::from(u16_at(&b, 0xfe)) } else { 32 };
    let fits = blocks.checked_mul(block).is_some_and(|end| end <= size);
    if !fits || first != u64::from(block == 1024) || blocks <= first {
        return unknown("is larger than its partition");
    }
    if !(8..=block * 8).contains(&per_group)
        || !per_group.is_multiple_of(8)
        || !(128..=block).contains(&inode)
        || !inode.is_power_of_two()
        || inodes_per_group == 0
        || inodes_per_group > block * 8
        || !(32..=1024).contains(&descriptor)
        || !descriptor.is_power_of_two()
    {
        return unknown("holds impossible numbers");
    }
    let groups = (blocks - first).div_ceil(per_group);
    if groups > MOST_GROUPS {
        return unknown("has more groups than are looked at");
    }
    Ok(Super {
        block,
        blocks,
        first,
        per_group,
        groups,
        table: (inodes_per_group * inode).div_ceil(block),
        inode,
        descriptor,
        descriptors: (groups * descriptor).div_ceil(block),
        reserved: u64::from(u16_at(&b, 0xce)),
        inodes_per_group,
        journal: if compat & COMPAT_JOURNAL == 0 { 0 } else { u64::from(u32_at(&b, 0xe0)) },
        sparse: ro & SPARSE_SUPER != 0,
        flags: ro & GROUP_FLAGS != 0,
    })
}

fn descriptors(disk: &mut (impl Read + Seek), sb: &Super) -> Result<Vec<Group>, ReadError> {
    let table = bytes(disk, (sb.first + 1) * sb.block, (sb.groups * sb.descriptor) as usize)?;
    let groups: Vec<Group> = table
        .chunks_exact(sb.descriptor as usize)
        .map(|d| {
            // Behind the first 32 bytes lie the upper halves, if there are any.
            let wide = |low: usize, high: usize| u64::from(u32_at(d, low)) | u64::from(u32_at(d, high)) << 32;
            let half = |low: usize, high: usize| u64::from(u16_at(d, low)) | u64::from(u16_at(d, high)) << 16;
            Group {
                block_bitmap: wide(0, 0x20),
                inode_bitmap: wide(4, 0x24),
                table: wide(8, 0x28),
                free: half(0xc, 0x2c),
                unused_inodes: half(0x1c, 0x32),
                flags: if sb.flags { u16_at(d, 0x12) } else { 0 },
            }
        })
        .collect();
    let inside =
        |at: u64, count: u64| at >= sb.first && at.checked_add(count).is_some_and(|e| e <= sb.blocks);
    let sound =
        |g: &Group| inside(g.block_bitmap, 1) && inside(g.inode_bitmap, 1) && inside(g.table, sb.table);
    if groups.iter().all(sound) { Ok(groups) } else { Err(ReadError::Unknown("holds impossible numbers")) }
}

/// Appends the ranges of blocks that the group has allocated, and those of its own tables, wherever they lie.
fn group_in_use(
    disk: &mut (impl Read + Seek),
    sb: &Super,
    number: u64,
    group: &Group,
    used: &mut Vec<Range<u64>>,
) -> Result<(), ReadError> {
    for (at, count) in [(group.block_bitmap, 1), (group.inode_bitmap, 1), (group.table, sb.table)] {
        used.push(at..at + count);
    }
    let start = sb.first + number * sb.per_group;
    let count = sb.per_group.min(sb.blocks - start);
    if !sb.sparse || has_superblock(number) {
        used.push(start..start + (1 + sb.descriptors + sb.reserved).min(count));
    }
    if group.flags & BLOCK_UNINIT != 0 {
        return Ok(());
    }
    let bitmap = bytes(disk, group.block_bitmap * sb.block, sb.per_group as usize / 8)?;
    let is_set = |bit: u64| bitmap[(bit / 8) as usize] >> (bit % 8) & 1 != 0;
    let mut free = 0;
    let mut bit = 0;
    while bit < count {
        let run = (bit..count).take_while(|&b| is_set(b) == is_set(bit)).count() as u64;
        if is_set(bit) {
            used.push(start + bit..start + bit + run);
        } else {
            free += run;
        }
        bit += run;
    }
    let agrees = free == group.free;
    if agrees { Ok(()) } else { Err(ReadError::Unknown("has a bitmap that disagrees with its count")) }
}

/// The blocks of the group's inode table where no inode was ever in use and nobody was promised zeroes: whoever uses one
/// first writes all of it.
fn never_in_use(sb: &Super, group: &Group) -> Option<Range<u64>> {
    if !sb.flags || group.flags & INODE_ZEROED != 0 {
        return None;
    }
    let unused = group.unused_inodes * sb.inode / sb.block;
    let start = (group.table + sb.table).checked_sub(unused).filter(|&start| start >= group.table)?;
    Some(start..group.table + sb.table)
}

/// The blocks that a group with a copy of the superblock keeps for more descriptors. The first group's hold the addresses
/// of all others and are read.
fn kept_for_growth(sb: &Super, number: u64) -> Option<Range<u64>> {
    let has_copy = number > 0 && (!sb.sparse || has_superblock(number));
    let start = sb.first + number * sb.per_group;
    let end = (start + 1 + sb.descriptors + sb.reserved).min(start + sb.per_group).min(sb.blocks);
    let range = start + 1 + sb.descriptors..end;
    (has_copy && range.start < range.end).then_some(range)
}

/// What of `from` doesn't lie in `holes`; both are in order.
fn without(from: Vec<Range<u64>>, holes: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut left = Vec::with_capacity(from.len());
    for mut range in from {
        let begin = holes.partition_point(|hole| hole.end <= range.start);
        for hole in holes[begin..].iter().take_while(|hole| hole.start < range.end) {
            if range.start < hole.start {
                left.push(range.start..hole.start);
            }
            range.start = hole.end;
        }
        if range.start < range.end {
            left.push(range);
        }
    }
    left
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::process::Command;

    use super::*;
    use proptest::prelude::*;

    fn run(program: &str, args: &[&str], file: &Path) -> String {
        let mut command = Command::new(program);
        command.env("MKE2FS_CONFIG", "/dev/null").args(args).arg(file);
        let out = command.output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "{program}: {text}{}", String::from_utf8_lossy(&out.stderr));
        text
    }

    fn made(args: &[&str], mib: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(mib << 20).unwrap();
        run("mke2fs", &[&["-q", "-F", "-T", "default"], args].concat(), file.path());
        file
    }

    /// The blocks that debugfs takes for free, as ranges.
    fn free(file: &Path, blocks: u64) -> Vec<Range<u64>> {
        let text = run("dumpe2fs", &[], file);
        // The superblock's own count isn't indented.
        let lines = text.lines().filter_map(|l| l.strip_prefix("  Free blocks: "));
        let ranges = lines.flat_map(|l| l.split(", ")).filter(|r| !r.is_empty());
        let ranges = ranges.map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            first.parse().unwrap()..last.parse::<u64>().unwrap() + 1
        });
        ranges.inspect(|range| assert!(range.end <= blocks)).collect()
    }

    /// What dumpe2fs calls allocated must be in use here, but for inode tables that were never used (when they are `lazy`),
    /// the body of a journal that is mapped by extents, and room for growth; and what it calls free must not, but for the
    /// first bytes.
    fn compare(args: &[&str], mib: u64, block: u64, lazy: bool) {
        let file = made(args, mib);
        let used = in_use(&mut File::open(file.path()).unwrap(), mib << 20).unwrap();
        let blocks = (mib << 20) / block;
        let free = free(file.path(), blocks);
        let allocated = without(vec![u64::from(block == 1024)..blocks], &free);
        let in_blocks = used.iter().map(|r| r.start / block..r.end.div_ceil(block)).collect();
        let in_blocks = merged(in_blocks);
        let missed = without(allocated.clone(), &in_blocks);
        let tables = listed(file.path(), "Inode table at ", 0);
        let growth = listed(file.path(), "Reserved GDT blocks at ", 1);
        let journal = journal(file.path());
        let others = without(missed.clone(), &tables);
        assert_eq!(others, without(merged([journal, growth].concat()), &merged(tables)), "{args:?}");
        assert_eq!(lazy, missed != others, "{args:?}: tables");
        let head = HEAD / block;
        let wrong = without(in_blocks, &merged(allocated));
        assert!(wrong.iter().all(|r| r.end <= head), "{args:?}: {wrong:?}");
    }

    /// Ranges that dumpe2fs names so in each group, but for the first `skipped` of them.
    fn listed(file: &Path, what: &str, skipped: usize) -> Vec<Range<u64>> {
        let text = run("dumpe2fs", &[], file);
        let places = text.lines().filter_map(|l| l.trim().strip_prefix(what));
        let places = places.skip(skipped).map(|place| {
            let (first, last) = place.split_whitespace().next().unwrap().split_once('-').unwrap();
            first.parse().unwrap()..last.parse::<u64>().unwrap() + 1
        });
        merged(places.collect())
    }

    /// What debugfs calls the journal's extents, without its superblock.
    fn journal(file: &Path) -> Vec<Range<u64>> {
        let text = run("debugfs", &["-R", "dump_extents <8>"], file);
        let mut pieces: Vec<Range<u64>> = Vec::new();
        for line in text.lines().filter(|line| line.trim_start().starts_with("0/")) {
            let numbers: Vec<u64> = line.split(|c: char| !c.is_ascii_digit()).flat_map(str::parse).collect();
            let [_, _, _, _, logical, _, start, end, ..] = numbers[..] else { panic!("{line}") };
            pieces.push(start + u64::from(logical == 0)..end + 1);
        }
        pieces
    }

    #[test]
    fn it_agrees_with_dumpe2fs() {
        let modern = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,\
                      large_file,huge_file,dir_nlink,extra_isize,metadata_csum";
        let lazy = "lazy_itable_init=1,nodiscard";
        let zeroed = "lazy_itable_init=0,assume_storage_prezeroed=1,nodiscard";
        compare(&["-b", "4096", "-O", modern, "-E", lazy], 700, 4096, true);
        compare(&["-b", "4096", "-O", modern, "-E", zeroed], 700, 4096, false);
        compare(&["-b", "1024", "-O", modern, "-E", lazy], 100, 1024, true);
        let narrow = "none,has_journal,resize_inode,filetype,sparse_super,uninit_bg";
        compare(&["-b", "1024", "-O", narrow, "-E", lazy], 100, 1024, true);
        compare(&["-b", "2048", "-O", "none,filetype"], 64, 2048, false);
        compare(&["-b", "4096", "-g", "8192", "-O", modern, "-E", lazy], 100, 4096, true);
    }

    #[test]
    fn what_is_not_understood_is_said_to_be() {
        let reason = |args: &[&str], change: &dyn Fn(&File)| {
            let file = made(args, 32);
            change(file.as_file());
            in_use(&mut File::open(file.path()).unwrap(), 32 << 20).unwrap_err().to_string()
        };
        let at = |offset: u64| 1024 + offset;
        let reasons = [
            reason(&["-O", "bigalloc,extent"], &|_| ()),
            reason(&["-O", "meta_bg,^resize_inode"], &|_| ()),
            reason(&["-O", "sparse_super2"], &|_| ()),
            reason(&[], &|f| f.write_all_at(&[2, 0], at(0x3a)).unwrap()),
            reason(&[], &|f| f.write_all_at(&[0; 4], at(0x20)).unwrap()),
            reason(&[], &|f| f.write_all_at(&[0xff; 4], at(4)).unwrap()),
            reason(&["-b", "4096"], &|f| f.write_all_at(&[1], 4096 + 0xc).unwrap()),
            reason(&[], &|f| f.write_all_at(&[0], at(0x38)).unwrap()),
        ];
        insta::assert_snapshot!(reasons.join("\n"));
        let short = in_use(&mut io::Cursor::new(vec![0; 1500]), 1500);
        assert!(matches!(short, Err(ReadError::NotExt)));
    }

    #[test]
    fn ranges_are_cut() {
        let left = without(vec![0..10, 20..30, 40..50], &[2..4, 8..22, 29..45]);
        assert_eq!(left, [0..2, 4..8, 22..29, 45..50]);
    }

    proptest! {
        #[test]
        fn nothing_panics(changes in proptest::collection::vec((0usize..12_288, any::<u8>()), 1..40)) {
            use std::sync::LazyLock;
            static IMAGE: LazyLock<Vec<u8>> = LazyLock::new(|| std::fs::read(made(&["-b", "1024"], 4).path()).unwrap());
            let mut image = IMAGE.clone();
            for (at, byte) in changes {
                image[at] = byte;
            }
            if let Ok(ranges) = in_use(&mut io::Cursor::new(&image), image.len() as u64) {
                prop_assert!(ranges.iter().all(|r| r.start < r.end && r.end <= image.len() as u64));
            }
        }
    }
}
