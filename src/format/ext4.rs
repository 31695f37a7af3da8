//! ext4 through mke2fs (e2fsprogs 1.47.1 or newer, with libarchive): its arguments, and debugfs' script, as data.
//!
//! Features are named one by one, and no configuration file is read, so that neither the host nor a newer e2fsprogs
//! changes what is made. They are those that every system in use reads: e2fsprogs from 1.43, Linux from 4.4, GRUB from
//! 2.00. `metadata_csum_seed` and `orphan_file`, which newer mke2fs turn on by themselves, are left out: an image's
//! root gets attached to whatever rescue machine is at hand, and they bring nothing at this size.

pub mod read;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::tree::{Kind, Node};
use crate::units::{Bytes, KIB, MIB};

/// Size of a block. The default below 512 MB is 1 KiB, which would stay so when the file system grows.
pub const BLOCK: u64 = 4 * KIB;
/// Size of an inode, with room for times to the nanosecond and a small attribute.
pub const INODE: u64 = 256;
/// Space for an inode's own attributes: what its fixed part (128 + 32 bytes) and the attributes' magic number leave.
const INLINE_XATTRS: u64 = INODE - 128 - 32 - 4;
/// Blocks of a group: as many as the bits of one block.
pub const BLOCKS_PER_GROUP: u64 = BLOCK * 8;
/// Size of a group's descriptor with the `64bit` feature.
const DESCRIPTOR: u64 = 64;
/// Bytes of the disk for which there is an inode; mke2fs's usual ratio, which growth keeps.
const INODE_RATIO: u64 = 16 * KIB;
/// Longest target that a symbolic link holds without a block.
const FAST_SYMLINK: usize = 59;
/// Blocks of `lost+found`.
const LOST_AND_FOUND: u64 = 4;
/// Bytes at the end of a directory's block that its checksum takes.
const DIR_TAIL: u64 = 12;
/// The journal of a file system that will grow: what mke2fs gives from 2 GiB on. It is a hole until it is written.
const LARGE_JOURNAL: u64 = 64 * MIB;
/// The smallest file system that gets it: a journal may take half of one at most.
const LARGE_JOURNAL_FROM: u64 = 256 * MIB;

/// `-O`: see the module's documentation.
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,\
                        large_file,huge_file,dir_nlink,extra_isize,metadata_csum";

/// What a file system needs, counted from what will lie in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Need {
    /// Blocks of files, directories, symbolic links and attributes.
    pub blocks: u64,
    /// Inodes, those that every file system has included.
    pub inodes: u64,
}

/// A file system to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ext4 {
    /// Its UUID.
    pub uuid: Uuid,
    /// Seed of the directories' hashes.
    pub hash_seed: Uuid,
    /// Its label, at most 16 bytes.
    pub label: String,
    /// How many inodes it gets, before mke2fs rounds up to whole blocks of them in each group.
    pub inodes: u64,
    /// Size of the journal.
    pub journal: Bytes,
}

impl Need {
    /// What the nodes (path within the file system, node) need. Directories are filled in the order given.
    pub fn of<'a>(nodes: impl Iterator<Item = (&'a [u8], &'a Node)>) -> Need {
        // 11 inodes are reserved; the last of them is lost+found.
        let mut need = Need { blocks: LOST_AND_FOUND, inodes: 11 };
        let mut room = std::collections::HashMap::<Vec<u8>, u64>::new();
        for (path, node) in nodes {
            // The root itself is among the reserved ones.
            if !path.is_empty() && !matches!(node.kind, Kind::HardLink(_)) {
                need.inodes += 1;
            }
            need.blocks += match &node.kind {
                Kind::File(content) => file_blocks(content.len()),
                Kind::Symlink(target) if target.len() > FAST_SYMLINK => 1,
                Kind::Dir => 1,
                _ => 0,
            } + u64::from(xattr_size(node) > INLINE_XATTRS);
            if matches!(node.kind, Kind::Dir) {
                room.insert(path.to_vec(), BLOCK - DIR_TAIL - 24); // `.` and `..`
            }
            if path.is_empty() {
                continue;
            }
            let name = path.rsplit(|&b| b == b'/').next().unwrap_or_default();
            let entry = (8 + name.len() as u64).next_multiple_of(4);
            let left = room.entry(crate::tree::parent(path).to_vec()).or_insert(BLOCK - DIR_TAIL - 24);
            if *left < entry {
                need.blocks += 1;
                *left = BLOCK - DIR_TAIL;
            }
            *left -= entry;
        }
        need
    }
}

/// Blocks of a file of `size` bytes with those of its extent tree, which an inode holds itself for up to four extents
/// of at most 128 MiB; one of more needs a block, and one cut apart by the groups' metadata may.
#[must_use]
pub fn file_blocks(size: u64) -> u64 {
    let blocks = size.div_ceil(BLOCK);
    blocks + u64::from(blocks > 2 * BLOCKS_PER_GROUP) + blocks / (300 * BLOCKS_PER_GROUP)
}

fn xattr_size(node: &Node) -> u64 {
    let one =
        |(name, value): (&Vec<u8>, &Vec<u8>)| 16 + (name.len() + value.len()).next_multiple_of(4) as u64 + 4;
    node.xattrs.iter().map(one).sum()
}

impl Ext4 {
    /// The number of inodes for a file system of `size` that holds `need`: by the usual ratio, but a quarter more than
    /// are needed at least.
    #[must_use]
    pub fn inodes_for(size: Bytes, need: Need) -> u64 {
        (size.0 / INODE_RATIO).max(need.inodes + need.inodes / 4 + 64).next_multiple_of(BLOCK / INODE)
    }

    /// The size of the journal: mke2fs's own choice, or that of a large disk when the file system `grows`.
    #[must_use]
    pub fn journal_for(size: Bytes, grows: bool) -> Bytes {
        if grows && size.0 >= LARGE_JOURNAL_FROM {
            return Bytes(LARGE_JOURNAL);
        }
        Bytes(match size.0 / MIB {
            0..128 => 4 * MIB,
            128..1024 => 16 * MIB,
            1024..2048 => 32 * MIB,
            2048.. => 64 * MIB,
        })
    }

    /// Blocks of a file system of `size` that no file can have: superblocks and their copies, descriptors, bitmaps,
    /// inodes, journal.
    #[must_use]
    pub fn overhead(&self, size: Bytes) -> u64 {
        let blocks = size.0 / BLOCK;
        let groups = blocks.div_ceil(BLOCKS_PER_GROUP);
        let per_block = BLOCK / DESCRIPTOR;
        let descriptors = groups.div_ceil(per_block);
        // Descriptors of the groups of a file system 1024 times as large are reserved, which is what growth needs.
        let largest = (blocks * 1024).min(u64::from(u32::MAX)).div_ceil(BLOCKS_PER_GROUP);
        let reserved = largest.div_ceil(per_block).saturating_sub(descriptors).min(BLOCK / 4);
        let copies = (0..groups).filter(|&group| has_superblock(group)).count() as u64;
        let inode_blocks = self.inodes.div_ceil(groups.max(1)).div_ceil(BLOCK / INODE) * groups;
        let journal = self.journal.0 / BLOCK;
        // The reserved descriptors' own inode has an indirect block; the journal's extents have one at most.
        copies * (1 + descriptors + reserved) + groups * 2 + inode_blocks + journal + 2
    }

    /// The arguments of mke2fs that make it at `offset` of a file from an archive on standard input; the file's name
    /// and [`size_arg`] follow. Its environment must hold `MKE2FS_CONFIG=/dev/null` and SOURCE_DATE_EPOCH.
    #[must_use]
    pub fn mke2fs_args(&self, offset: Bytes) -> Vec<String> {
        // The file is new and sparse: inode tables and journal need no zeroes written, neither now nor at first boot.
        let extended = format!(
            "hash_seed={},nodiscard,assume_storage_prezeroed=1,root_owner=0:0,offset={}",
            self.hash_seed, offset.0
        );
        let mut args: Vec<String> =
            ["-q", "-F", "-T", "default", "-m", "0", "-e", "remount-ro"].map(str::to_owned).to_vec();
        let mut add = |name: &str, value: String| args.extend([name.to_owned(), value]);
        add("-b", BLOCK.to_string());
        add("-I", INODE.to_string());
        add("-N", self.inodes.to_string());
        add("-O", FEATURES.to_owned());
        add("-U", self.uuid.to_string());
        add("-L", self.label.clone());
        add("-J", format!("size={}", self.journal.0 / MIB));
        add("-E", extended);
        add("-d", "-".to_owned());
        args
    }
}

/// mke2fs' last argument: the size of the file system.
#[must_use]
pub fn size_arg(size: Bytes) -> String {
    format!("{}k", size.0 / KIB)
}

/// Whether the group holds a copy of the superblock (`sparse_super`): 0, 1, and powers of 3, 5 and 7.
fn has_superblock(group: u64) -> bool {
    let power_of = |base: u64| {
        let mut n = base;
        while n < group {
            n *= base;
        }
        n == group
    };
    group <= 1 || [3, 5, 7].into_iter().any(power_of)
}

/// Whether mke2fs takes this attribute from an archive. Only file capabilities; others it drops without a word.
#[must_use]
pub fn taken_from_archive(name: &[u8]) -> bool {
    name == b"security.capability"
}

/// An attribute that debugfs has to restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// The node.
    pub path: &'a [u8],
    /// Its full name.
    pub name: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
}

/// debugfs' script that sets the attributes; each value is read from the file of its index in `folder`. `None` when a
/// path or name holds a newline, which no script can carry.
#[must_use]
pub fn debugfs_script(attributes: &[Attribute<'_>], folder: &str) -> Option<Vec<u8>> {
    let mut script = Vec::new();
    for (index, a) in attributes.iter().enumerate() {
        if a.path.contains(&b'\n') || a.name.contains(&b'\n') {
            return None;
        }
        script.extend_from_slice(format!("ea_set -f {folder}/{index} \"/").as_bytes());
        script.extend_from_slice(&doubled_quotes(a.path));
        script.extend_from_slice(b"\" \"");
        script.extend_from_slice(&doubled_quotes(a.name));
        script.extend_from_slice(b"\"\n");
    }
    Some(script)
}

/// What stands within a word in double quotes on libss' command lines: a quote is doubled, nothing else is special.
fn doubled_quotes(word: &[u8]) -> Vec<u8> {
    word.split(|&b| b == b'"').collect::<Vec<_>>().join(&b"\"\""[..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Content, Tree};

    fn ext4(inodes: u64, journal: u64) -> Ext4 {
        let (uuid, hash_seed) = (Uuid::from_u128(1), Uuid::from_u128(2));
        Ext4 { uuid, hash_seed, label: "root".into(), inodes, journal: Bytes(journal) }
    }

    #[test]
    fn the_arguments_as_they_are_given() {
        insta::assert_snapshot!(ext4(32_768, 16 * MIB).mke2fs_args(Bytes(MIB)).join(" "));
        assert_eq!(size_arg(Bytes(512 * MIB)), "524288k");
    }

    /// What mke2fs 1.47.2 reports as `Overhead clusters`, which leaves out lost+found.
    #[test]
    fn overhead_is_what_mke2fs_reports() {
        let sizes = [(512, 32_768, 64, 18_635)];
        for (mib, inodes, journal, clusters) in sizes {
            let overhead = ext4(inodes, journal * MIB).overhead(Bytes(mib * MIB));
            assert!((clusters..clusters + 4).contains(&overhead), "{mib} MiB: {overhead}, not {clusters}");
        }
    }

    #[test]
    fn copies_of_the_superblock_lie_in_few_groups() {
        let groups: Vec<u64> = (0..130).filter(|&group| has_superblock(group)).collect();
        assert_eq!(groups, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
    }

    #[test]
    fn what_nodes_need_is_counted() {
        let mut tree = Tree::new();
        tree.insert("", Node::new(Kind::Dir, 0o755, 0));
        let need = |tree: &Tree| Need::of(tree.iter().map(|(p, n)| (p.as_slice(), n)));
        assert_eq!(need(&tree), Need { blocks: 5, inodes: 11 });
        tree.insert("file", Node::new(Kind::File(Content::bytes(vec![1; 4097])), 0o644, 0));
        tree.insert("hard", Node::new(Kind::HardLink(b"file".to_vec()), 0, 0));
        tree.insert("short", Node::new(Kind::Symlink(vec![b'x'; 59]), 0o777, 0));
        tree.insert("slow", Node::new(Kind::Symlink(vec![b'x'; 60]), 0o777, 0));
        assert_eq!(need(&tree), Need { blocks: 8, inodes: 14 });
        for i in 0..100 {
            tree.insert(format!("{i:0>250}"), Node::new(Kind::Fifo, 0o644, 0));
        }
        // 15 entries of 260 bytes a block.
        assert_eq!(need(&tree), Need { blocks: 14, inodes: 114 });
    }

    #[test]
    fn scripts_quote_names() {
        let attribute = |path| Attribute { path, name: b"user.a", value: b"v" };
        let script = debugfs_script(&[attribute(b"plain"), attribute(b"a \"b\"\xff")], ".").unwrap();
        let expected =
            b"ea_set -f ./0 \"/plain\" \"user.a\"\nea_set -f ./1 \"/a \"\"b\"\"\xff\" \"user.a\"\n";
        assert_eq!(script, expected);
        assert_eq!(debugfs_script(&[attribute(b"a\nb")], "."), None);
    }
}
