//! Extended attributes: within the inode while there is room, else in a block of their own.
//!
//! Layouts are those of Linux' Documentation/filesystems/ext4/attributes.rst. Access control lists are stored in a shorter
//! form than the one in which the kernel hands them out (fs/ext4/acl.h).

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::crc32c::crc32c;
use super::{BLOCK, INLINE_XATTRS, put16, put32};

/// Before the attributes within an inode, and at the beginning of a block of them.
const MAGIC: u32 = 0xea02_0000;
/// The fixed part of an entry.
const ENTRY: usize = 16;
/// The head of a block of attributes.
const HEAD: usize = 32;
/// Zeroes that end a list of entries.
const END: usize = 4;
/// Prefixes that are stored as a number.
const PREFIXES: [(&[u8], u8); 7] = [
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"system.richacl", 8),
    (b"user.", 1),
    (b"trusted.", 4),
    (b"security.", 6),
    (b"system.", 7),
];

/// Why attributes can't be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrong {
    /// They don't fit.
    Large,
    /// An access control list is none.
    Acl,
}

/// A node's attributes as they are stored.
#[derive(Debug, Default)]
pub(super) struct Stored {
    /// Behind the inode's fixed part; may be empty.
    pub inline: Vec<u8>,
    /// The block, unless there is none; its checksum is missing.
    pub block: Option<Vec<u8>>,
}

struct Entry<'a> {
    index: u8,
    name: &'a [u8],
    value: Cow<'a, [u8]>,
}

impl Entry<'_> {
    fn head(&self) -> usize {
        ENTRY + self.name.len().next_multiple_of(4)
    }

    fn size(&self) -> usize {
        self.head() + self.value.len().next_multiple_of(4)
    }

    /// libext2fs' `ext2fs_ext_attr_hash_entry`.
    fn hash(&self) -> u32 {
        let name = self.name.iter().fold(0_u32, |hash, &byte| hash.rotate_left(5) ^ u32::from(byte));
        self.value.chunks(4).fold(name, |hash, word| {
            let mut bytes = [0; 4];
            bytes[..word.len()].copy_from_slice(word);
            hash.rotate_left(16) ^ u32::from_le_bytes(bytes)
        })
    }

    /// Writes the entry; its value lies at `offset` of what holds both.
    fn put(&self, out: &mut Vec<u8>, offset: usize, hash: u32) {
        let start = out.len();
        out.resize(start + self.head(), 0);
        let entry = &mut out[start..];
        entry[0] = self.name.len() as u8;
        entry[1] = self.index;
        put16(entry, 2, if self.value.is_empty() { 0 } else { offset as u16 });
        put32(entry, 8, self.value.len() as u32);
        put32(entry, 12, hash);
        entry[ENTRY..ENTRY + self.name.len()].copy_from_slice(self.name);
    }
}

/// Stores attributes: what fits goes into the inode.
pub(super) fn store(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<Stored, Wrong> {
    let mut entries = xattrs.iter().map(|(name, value)| entry(name, value)).collect::<Result<Vec<_>, _>>()?;
    // The kernel searches a block of them in this order.
    entries.sort_by_key(|e| (e.index, e.name.len(), e.name));
    let mut room = INLINE_XATTRS as usize - END;
    let (inside, outside): (Vec<Entry<'_>>, Vec<Entry<'_>>) = entries.into_iter().partition(|entry| {
        let fits = entry.size() <= room;
        room -= if fits { entry.size() } else { 0 };
        fits
    });
    if outside.iter().map(Entry::size).sum::<usize>() > BLOCK as usize - HEAD - END {
        return Err(Wrong::Large);
    }
    let inline = if inside.is_empty() { Vec::new() } else { inline(&inside) };
    Ok(Stored { inline, block: (!outside.is_empty()).then(|| block(&outside)) })
}

fn entry<'a>(name: &'a [u8], value: &'a [u8]) -> Result<Entry<'a>, Wrong> {
    let (rest, index) = PREFIXES
        .iter()
        .find_map(|(prefix, index)| Some((name.strip_prefix(*prefix)?, *index)))
        .unwrap_or((name, 0));
    if rest.len() > 255 {
        return Err(Wrong::Large);
    }
    let is_acl = rest.is_empty() && matches!(index, 2 | 3);
    let value = if is_acl { acl(value).ok_or(Wrong::Acl)?.into() } else { value.into() };
    Ok(Entry { index, name: rest, value })
}

fn inline(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(INLINE_XATTRS as usize);
    let mut values = vec![0; INLINE_XATTRS as usize];
    let mut at = values.len();
    for entry in entries {
        at -= entry.value.len().next_multiple_of(4);
        values[at..at + entry.value.len()].copy_from_slice(&entry.value);
        entry.put(&mut out, at, 0);
    }
    values[..out.len()].copy_from_slice(&out);
    [&MAGIC.to_le_bytes()[..], &values].concat()
}

fn block(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut block = vec![0; BLOCK as usize];
    let mut out = vec![0; HEAD];
    let mut at = block.len();
    let mut all = 0_u32;
    for entry in entries {
        at -= entry.value.len().next_multiple_of(4);
        block[at..at + entry.value.len()].copy_from_slice(&entry.value);
        let hash = entry.hash();
        all = all.rotate_left(16) ^ hash;
        entry.put(&mut out, at, hash);
    }
    block[..out.len()].copy_from_slice(&out);
    // One inode refers to it, and it is one block.
    for (at, value) in [(0, MAGIC), (4, 1), (8, 1), (12, all)] {
        put32(&mut block, at, value);
    }
    block
}

/// Completes a block of attributes that lies at `number`.
pub(super) fn seal(block: &mut [u8], number: u64, seed: u32) {
    let sum = crc32c(crc32c(seed, &number.to_le_bytes()), block);
    put32(block, 16, sum);
}

/// An access control list from the form in which the kernel hands it out (linux/posix_acl_xattr.h: version 2, entries of
/// eight bytes) to the stored one (version 1, a number only where there is somebody to be named).
fn acl(value: &[u8]) -> Option<Vec<u8>> {
    /// Entries for a user or a group by number.
    const NAMED: [u16; 2] = [2, 8];
    let (version, entries) = value.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != 2 || !entries.len().is_multiple_of(8) {
        return None;
    }
    let mut stored = 1_u32.to_le_bytes().to_vec();
    for entry in entries.chunks_exact(8) {
        let named = NAMED.contains(&u16::from_le_bytes([entry[0], entry[1]]));
        stored.extend_from_slice(if named { entry } else { &entry[..4] });
    }
    Some(stored)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(list: &[(&str, usize)]) -> Result<Stored, Wrong> {
        store(&list.iter().map(|(name, len)| (name.as_bytes().to_vec(), vec![7; *len])).collect())
    }

    #[test]
    fn what_fits_lies_in_the_inode() {
        let one = stored(&[("user.a", 20)]).unwrap();
        assert!(one.block.is_none() && one.inline.len() == INLINE_XATTRS as usize + 4);
        let both = stored(&[("security.capability", 20), ("user.large", 100)]).unwrap();
        assert!(both.block.is_some() && !both.inline.is_empty());
        let large = stored(&[("user.large", 4000)]).unwrap();
        assert!(large.block.is_some() && large.inline.is_empty());
        assert_eq!(stored(&[("user.large", 4100)]).unwrap_err(), Wrong::Large);
        assert_eq!(stored(&[("system.posix_acl_access", 3)]).unwrap_err(), Wrong::Acl);
    }

    #[test]
    fn an_access_control_list_is_shortened() {
        let user = [2, 0, 4, 0, 0xe8, 3, 0, 0];
        let value = [&[2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255][..], &user].concat();
        assert_eq!(acl(&value).unwrap(), [&[1, 0, 0, 0, 1, 0, 7, 0][..], &user].concat());
    }
}
