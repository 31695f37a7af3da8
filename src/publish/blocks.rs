//! The blocks of a disk, and which of them go up to a snapshot: all that matter, or those that a parent snapshot lacks.

use std::ops::Range;

use crate::artifact::{BLOCK, BlockMap, ZERO_BLOCK};
use crate::digest::{Digest, Hasher, hex};
use crate::units::GIB;

/// What stands before the encoded blocks of a disk. The number changes with what [`super::holes`] calls read: a map says
/// how the image was uploaded, and one that was made otherwise would say it wrongly.
const MAGIC: &[u8; 16] = b"kiln blocks 2\n\0\0";

/// A block of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// It holds something.
    Data(Digest),
    /// Zeroes that something reads.
    Zero,
    /// Zeroes that nothing reads.
    Hole,
}

/// All blocks of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskBlocks {
    /// Size of the disk in bytes.
    pub size: u64,
    /// What each of its blocks is. The last counts as filled up with zeroes.
    pub classes: Vec<Class>,
}

/// The blocks that go up to one snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sending {
    /// Size of the snapshot's volume in GiB.
    pub volume_size: u32,
    /// The snapshot that they go on top of.
    pub parent: Option<String>,
    /// Their indexes, ascending, and their digests; none for zeroes.
    pub blocks: Vec<(u32, Option<Digest>)>,
}

/// A snapshot that there is already, as far as it matters to one that may go on top of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// Its id.
    pub snapshot: String,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// The size of its volume in GiB.
    pub volume_size: u32,
    /// The digest of the disk that it was made of.
    pub image: Digest,
}

/// Why all blocks go up, not only those that changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoDelta {
    /// There is no snapshot of an earlier image of this system.
    #[error("there is no completed snapshot of an earlier image")]
    NoParent,
    /// What the earlier snapshot holds isn't known here.
    #[error("this store doesn't know the blocks of {snapshot} (image {image}), which another machine uploaded, or which \
             were collected", image = image.short())]
    Unknown {
        /// The snapshot.
        snapshot: String,
        /// The digest of its disk.
        image: Digest,
    },
    /// The new snapshot is to be encrypted: one with a parent can't be.
    #[error("the snapshot is to be encrypted, and EBS takes no parent for such a one")]
    Encrypted,
    /// The earlier snapshot is encrypted.
    #[error("the earlier snapshot {0} is encrypted, the new one is not to be")]
    ParentEncrypted(String),
    /// The earlier snapshot's volume is larger: a snapshot can't be smaller than its parent.
    #[error("the earlier snapshot {snapshot} has {parent} GiB, the new one only {size} GiB")]
    Shrunk {
        /// The snapshot.
        snapshot: String,
        /// Its size in GiB.
        parent: u32,
        /// The new one's.
        size: u32,
    },
}

impl DiskBlocks {
    /// The blocks of a disk whose digests are `map`, of which something reads the bytes in `read`, ranges in order.
    #[must_use]
    pub fn new(map: &BlockMap, read: &[Range<u64>]) -> DiskBlocks {
        let mut at = 0;
        let class = |(index, digest): (u64, &Option<Digest>)| {
            let (start, end) = (index * BLOCK, (index + 1) * BLOCK);
            while read.get(at).is_some_and(|range| range.end <= start) {
                at += 1;
            }
            let is_read = read.get(at).is_some_and(|range| range.start < end);
            match digest {
                Some(digest) => Class::Data(*digest),
                None if is_read => Class::Zero,
                None => Class::Hole,
            }
        };
        DiskBlocks { size: map.size, classes: (0..).zip(&map.blocks).map(class).collect() }
    }

    /// The digests alone.
    #[must_use]
    pub fn map(&self) -> BlockMap {
        let digest = |class: &Class| if let Class::Data(digest) = class { Some(*digest) } else { None };
        BlockMap { size: self.size, blocks: self.classes.iter().map(digest).collect() }
    }

    /// The size of a volume that the disk fits, in GiB.
    #[must_use]
    pub fn volume_size(&self) -> u32 {
        u32::try_from(self.size.div_ceil(GIB)).unwrap_or(u32::MAX).max(1)
    }

    /// How many blocks hold something, how many are zeroes that something reads, how many are holes.
    #[must_use]
    pub fn counts(&self) -> (usize, usize, usize) {
        let (mut data, mut zero, mut hole) = (0, 0, 0);
        for class in &self.classes {
            match class {
                Class::Data(_) => data += 1,
                Class::Zero => zero += 1,
                Class::Hole => hole += 1,
            }
        }
        (data, zero, hole)
    }

    /// All that must go up to a snapshot without a parent: what matters, or every block when it will be `encrypted`.
    #[must_use]
    pub fn full(&self, encrypted: bool) -> Sending {
        let wanted = |(index, class): (u32, &Class)| match class {
            Class::Data(digest) => Some((index, Some(*digest))),
            Class::Zero => Some((index, None)),
            Class::Hole => encrypted.then_some((index, None)),
        };
        let blocks = (0..).zip(&self.classes).filter_map(wanted).collect();
        Sending { volume_size: self.volume_size(), parent: None, blocks }
    }

    /// What must go up on top of an unencrypted snapshot that was made of `old` as [`DiskBlocks::full`] or this says.
    ///
    /// What `old` holds and this disk doesn't goes up as zeroes, although nothing may read it: what is read back is the
    /// disk, to the byte.
    #[must_use]
    pub fn changed(&self, old: &DiskBlocks, parent: &str) -> Sending {
        let count = self.classes.len().max(old.classes.len());
        let class = |disk: &DiskBlocks, index| disk.classes.get(index).copied().unwrap_or(Class::Hole);
        let changed = |index: usize| match (class(self, index), class(old, index)) {
            (Class::Data(new), Class::Data(old)) if new == old => None,
            (Class::Data(new), _) => Some(Some(new)),
            (Class::Zero, Class::Zero) | (Class::Hole, Class::Zero | Class::Hole) => None,
            (Class::Zero | Class::Hole, _) => Some(None),
        };
        let mut blocks: Vec<_> =
            (0..count).filter_map(|index| Some((index as u32, changed(index)?))).collect();
        if blocks.is_empty() {
            // A snapshot to which nothing was put is one that EBS may refuse to complete.
            blocks.extend(self.full(false).blocks.first());
        }
        Sending { volume_size: self.volume_size(), parent: Some(parent.to_owned()), blocks }
    }

    /// What goes up: what changed since `parent`, if that can be, else everything, with the reason. `known` finds the
    /// blocks of an earlier disk by its digest.
    #[must_use]
    pub fn sending(
        &self,
        parent: Option<&Parent>,
        encrypted: bool,
        known: impl FnOnce(&Digest) -> Option<DiskBlocks>,
    ) -> (Sending, Option<NoDelta>) {
        match self.delta(parent, encrypted, known) {
            Ok(sending) => (sending, None),
            Err(why) => (self.full(encrypted), Some(why)),
        }
    }

    fn delta(
        &self,
        parent: Option<&Parent>,
        encrypted: bool,
        known: impl FnOnce(&Digest) -> Option<DiskBlocks>,
    ) -> Result<Sending, NoDelta> {
        let parent = parent.ok_or(NoDelta::NoParent)?;
        let snapshot = parent.snapshot.clone();
        if encrypted {
            return Err(NoDelta::Encrypted);
        }
        if parent.encrypted {
            return Err(NoDelta::ParentEncrypted(snapshot));
        }
        let size = self.volume_size();
        if parent.volume_size > size {
            return Err(NoDelta::Shrunk { snapshot, parent: parent.volume_size, size });
        }
        match known(&parent.image) {
            Some(old) => Ok(self.changed(&old, &snapshot)),
            None => Err(NoDelta::Unknown { snapshot, image: parent.image }),
        }
    }

    /// The blocks as bytes, for [`DiskBlocks::decode`].
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.size.to_le_bytes());
        for class in &self.classes {
            match class {
                Class::Hole => bytes.push(0),
                Class::Zero => bytes.push(1),
                Class::Data(digest) => {
                    bytes.push(2);
                    bytes.extend(digest.0);
                }
            }
        }
        bytes
    }

    /// What [`DiskBlocks::encode`] wrote; `None` for anything else.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<DiskBlocks> {
        let (size, mut rest) = bytes.strip_prefix(MAGIC)?.split_first_chunk()?;
        let size = u64::from_le_bytes(*size);
        let mut classes = Vec::new();
        while let Some((kind, after)) = rest.split_first() {
            rest = after;
            classes.push(match kind {
                0 => Class::Hole,
                1 => Class::Zero,
                2 => {
                    let (digest, after) = rest.split_first_chunk()?;
                    rest = after;
                    Class::Data(Digest(*digest))
                }
                _ => return None,
            });
        }
        (classes.len() as u64 == size.div_ceil(BLOCK)).then_some(DiskBlocks { size, classes })
    }
}

impl Sending {
    /// Its identity: a snapshot that was begun with one must not be gone on with by another.
    #[must_use]
    pub fn id(&self) -> Digest {
        let mut hasher = Hasher::new();
        hasher.update(b"kiln sending 1");
        hasher.update(&self.volume_size.to_le_bytes());
        let parent = self.parent.as_deref().unwrap_or_default();
        hasher.update(&(parent.len() as u64).to_le_bytes());
        hasher.update(parent.as_bytes());
        for (index, digest) in &self.blocks {
            hasher.update(&index.to_le_bytes());
            hasher.update(&digest.unwrap_or(*ZERO_BLOCK).0);
        }
        hasher.finish()
    }

    /// The checksum of all its blocks as `CompleteSnapshot` takes it: SHA-256 over their digests in order of index.
    #[must_use]
    pub fn checksum(&self) -> Digest {
        let mut hasher = Hasher::new();
        for (_, digest) in &self.blocks {
            hasher.update(&digest.unwrap_or(*ZERO_BLOCK).0);
        }
        hasher.finish()
    }

    /// How many bytes go up.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.blocks.len() as u64 * BLOCK
    }
}

/// A text of 64 ASCII characters for calls that EC2 and EBS are to do once only: the digest of what they are about.
#[must_use]
pub fn client_token(parts: &[&str]) -> String {
    let mut hasher = Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hex(&hasher.finish().0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: Digest = Digest([1; 32]);
    const B: Digest = Digest([2; 32]);

    fn disk(classes: &[Class]) -> DiskBlocks {
        DiskBlocks { size: classes.len() as u64 * BLOCK, classes: classes.to_vec() }
    }

    fn parent() -> Parent {
        Parent { snapshot: "snap-1".into(), encrypted: false, volume_size: 1, image: A }
    }

    #[test]
    fn blocks_are_classed_by_what_reads_them() {
        let map = BlockMap { size: 5 * BLOCK + 1, blocks: vec![Some(A), None, None, None, None, None] };
        let read = [0..1, BLOCK * 2 - 1..BLOCK * 2, BLOCK * 3..BLOCK * 4, BLOCK * 5..BLOCK * 5 + 1];
        let blocks = DiskBlocks::new(&map, &read);
        use Class::{Data, Hole, Zero};
        assert_eq!(blocks.classes, [Data(A), Zero, Hole, Zero, Hole, Zero]);
        assert_eq!((blocks.counts(), blocks.volume_size()), ((1, 3, 2), 1));
        assert_eq!(blocks.map(), map);
        let indexes = |s: Sending| s.blocks.iter().map(|b| b.0).collect::<Vec<_>>();
        assert_eq!(indexes(blocks.full(false)), [0, 1, 3, 5]);
        assert_eq!(indexes(blocks.full(true)), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn only_what_changed_goes_up() {
        use Class::{Data, Hole, Zero};
        let old = disk(&[Data(A), Data(A), Data(A), Data(A), Zero, Zero, Zero, Hole, Hole, Hole]);
        let new = disk(&[Data(A), Data(B), Zero, Hole, Data(A), Zero, Hole, Data(A), Zero, Hole]);
        let sending = new.changed(&old, "snap-1");
        assert_eq!(
            sending.blocks,
            [(1, Some(B)), (2, None), (3, None), (4, Some(A)), (7, Some(A)), (8, None)]
        );
        let longer = disk(&[Data(A), Data(A), Data(A)]);
        assert_eq!(disk(&[Data(A)]).changed(&longer, "s").blocks, [(1, None), (2, None)]);
        assert_eq!(longer.changed(&disk(&[Data(A)]), "s").blocks, [(1, Some(A)), (2, Some(A))]);
        assert_eq!(longer.changed(&longer, "s").blocks, [(0, Some(A))]);
    }

    #[test]
    fn reasons_are_told() {
        let new = disk(&[Class::Data(B), Class::Hole]);
        let old = || Some(disk(&[Class::Data(A), Class::Data(B)]));
        let why = |parent: Option<Parent>, encrypted, old: Option<DiskBlocks>| {
            let (sending, why) = new.sending(parent.as_ref(), encrypted, |_| old);
            assert_eq!(sending.parent.is_some(), why.is_none());
            assert!(why.is_none() || sending == new.full(encrypted));
            why.map_or("a delta".to_owned(), |why| why.to_string())
        };
        let reasons = [
            why(None, false, old()),
            why(Some(parent()), true, old()),
            why(Some(Parent { encrypted: true, ..parent() }), false, old()),
            why(Some(Parent { volume_size: 2, ..parent() }), false, old()),
            why(Some(parent()), false, None),
            why(Some(parent()), false, old()),
        ];
        insta::assert_snapshot!(reasons.join("\n"));
    }

    #[test]
    fn a_sending_has_an_identity_and_a_checksum() {
        let sending = disk(&[Class::Data(A), Class::Zero]).full(false);
        let bytes = [A.0, ZERO_BLOCK.0].concat();
        assert_eq!(sending.checksum(), Digest::of(&bytes));
        assert_eq!(sending.bytes(), 2 * BLOCK);
        let other = Sending { parent: Some("snap-1".into()), ..sending.clone() };
        assert_ne!(sending.id(), other.id());
        assert_eq!(client_token(&["a", "b"]).len(), 64);
        assert_ne!(client_token(&["ab"]), client_token(&["a", "b"]));
    }

    fn any_disk() -> impl Strategy<Value = DiskBlocks> {
        let class = (0u8..5).prop_map(|n| match n {
            0 => Class::Hole,
            1 => Class::Zero,
            n => Class::Data(Digest([n; 32])),
        });
        proptest::collection::vec(class, 0..20).prop_map(|classes| disk(&classes))
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(disk in any_disk(), cut in 0usize..100) {
            let bytes = disk.encode();
            prop_assert_eq!(DiskBlocks::decode(&bytes), Some(disk.clone()));
            let cut = cut.min(bytes.len());
            prop_assert!(cut == 0 || DiskBlocks::decode(&bytes[..bytes.len() - cut]) != Some(disk));
        }

        /// A snapshot that was filled by one sending after the other reads back as the last disk, and what is read of it
        /// was written at some time.
        #[test]
        fn deltas_add_up(disks in proptest::collection::vec(any_disk(), 1..6)) {
            let mut snapshot = std::collections::BTreeMap::new();
            let mut last: Option<&DiskBlocks> = None;
            for disk in &disks {
                let sending = last.map_or_else(|| disk.full(false), |old| disk.changed(old, "s"));
                snapshot.extend(sending.blocks);
                for (index, class) in (0u32..).zip(&disk.classes) {
                    match (class, snapshot.get(&index)) {
                        (Class::Data(digest), Some(Some(there))) => prop_assert_eq!(digest, there),
                        (Class::Zero, Some(None)) | (Class::Hole, None | Some(None)) => {}
                        other => prop_assert!(false, "{:?}", other),
                    }
                }
                let behind = snapshot.range(disk.classes.len() as u32..);
                prop_assert!(behind.into_iter().all(|(_, block)| block.is_none()));
                last = Some(disk);
            }
        }
    }
}
