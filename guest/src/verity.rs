//! The hash tree of dm-verity, as veritysetup(8) writes it.
//!
//! A superblock, then the levels of the tree with the topmost first: each block of a level holds the SHA-256 of 128 blocks
//! of the level below, the lowest those of the data. The root hash is that of the topmost block. Kernel documentation:
//! `admin-guide/device-mapper/verity.rst`; the superblock is described in cryptsetup's wiki, "DMVerity".

use std::fmt;
use std::io::{self, Read};
use std::ops::Range;
use std::str::FromStr;

use sha2::{Digest, Sha256};

/// Size of the blocks of data and of those of the tree, in bytes.
pub const BLOCK: usize = 4096;
/// How many hashes a block of the tree holds.
const FAN: u64 = (BLOCK / HASH) as u64;
const HASH: usize = 32;
const SIGNATURE: [u8; 8] = *b"verity\0\0";
const ALGORITHM: [u8; 6] = *b"sha256";
/// Room for the salt in a superblock.
const LONGEST_SALT: usize = 256;

/// The hash that stands for all of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootHash(pub [u8; HASH]);

/// A superblock that can't be used, or a tree that doesn't belong to its root hash.
#[derive(Debug, thiserror::Error)]
pub enum VerityError {
    /// No superblock.
    #[error("there is no hash tree: its superblock is missing or damaged")]
    NoSuperblock,
    /// Another format of superblock than is written here.
    #[error("the hash tree is of another kind: {0}")]
    Unsupported(&'static str),
    /// A block whose hash isn't the one that stands above it.
    #[error("block {block} of the hash tree is not what the root hash stands for")]
    Tree {
        /// Counted from the superblock.
        block: u64,
    },
    /// A block of the data whose hash isn't the one in the tree.
    #[error("block {block} of the data is not what the hash tree stands for")]
    Data {
        /// Counted from the beginning of the data.
        block: u64,
    },
    /// The data or the tree can't be read.
    #[error("can't be read: {0}")]
    Io(#[from] io::Error),
}

/// What is known of a hash tree beside its hashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Identifies the tree; nothing depends on it.
    pub uuid: [u8; 16],
    /// How many blocks of data there are.
    pub data_blocks: u64,
    /// Hashed before each block; may be empty.
    pub salt: Vec<u8>,
}

/// A hash tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// Superblock and all levels, as they lie behind the data.
    pub bytes: Vec<u8>,
    /// The hash that stands for all.
    pub root: RootHash,
}

/// Computes the tree of `data`, without salt; an incomplete last block counts as filled with zeroes.
///
/// # Errors
/// When the data can't be read.
pub fn tree(mut data: impl Read, uuid: [u8; 16]) -> io::Result<Tree> {
    let mut lowest = Vec::new();
    let mut block = [0; BLOCK];
    let mut data_blocks = 0;
    loop {
        let len = fill(&mut data, &mut block)?;
        if len == 0 {
            break;
        }
        block[len..].fill(0);
        lowest.extend_from_slice(&hash(&[], &block).0);
        data_blocks += 1;
    }
    let mut levels = vec![lowest];
    while levels.last().is_some_and(|level| level.len() > HASH) {
        let below = levels.last_mut().map_or(&mut [][..], |level| {
            level.resize(level.len().next_multiple_of(BLOCK), 0);
            level
        });
        let above = below.chunks(BLOCK).flat_map(|block| hash(&[], block).0).collect();
        levels.push(above);
    }
    let top = levels.pop().unwrap_or_default();
    let root = RootHash(top.try_into().unwrap_or([0; HASH]));
    let mut bytes = Superblock { uuid, data_blocks, salt: Vec::new() }.encode();
    levels.iter().rev().for_each(|level| bytes.extend_from_slice(level));
    Ok(Tree { bytes, root })
}

fn fill(from: &mut impl Read, block: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < block.len() {
        match from.read(&mut block[len..]) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(len)
}

fn hash(salt: &[u8], block: &[u8]) -> RootHash {
    RootHash(Sha256::new().chain_update(salt).chain_update(block).finalize().into())
}

impl Superblock {
    /// The superblock as it lies on the disk: a whole block.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(BLOCK);
        bytes.extend_from_slice(&SIGNATURE);
        bytes.extend_from_slice(&1u32.to_le_bytes()); // version of the superblock
        bytes.extend_from_slice(&1u32.to_le_bytes()); // hash type: salt before the block, blocks of hashes filled up
        bytes.extend_from_slice(&self.uuid);
        bytes.extend_from_slice(&ALGORITHM);
        bytes.resize(bytes.len() + 32 - ALGORITHM.len(), 0);
        bytes.extend_from_slice(&(BLOCK as u32).to_le_bytes());
        bytes.extend_from_slice(&(BLOCK as u32).to_le_bytes());
        bytes.extend_from_slice(&self.data_blocks.to_le_bytes());
        bytes.extend_from_slice(&(self.salt.len() as u16).to_le_bytes());
        bytes.extend_from_slice(&[0; 6]);
        bytes.extend_from_slice(&self.salt);
        bytes.resize(BLOCK, 0);
        bytes
    }

    /// Reads a superblock.
    ///
    /// # Errors
    /// When it is none, or one of a tree that is made in another way.
    pub fn decode(bytes: &[u8]) -> Result<Superblock, VerityError> {
        let field = |range: Range<usize>| bytes.get(range).ok_or(VerityError::NoSuperblock);
        let number = |range: Range<usize>| {
            field(range).map(|bytes| bytes.iter().rev().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte)))
        };
        if field(0..8)? != SIGNATURE {
            return Err(VerityError::NoSuperblock);
        }
        if (number(8..12)?, number(12..16)?) != (1, 1) {
            return Err(VerityError::Unsupported("its version is not 1"));
        }
        if field(32..64)?.strip_prefix(&ALGORITHM).is_none_or(|rest| rest[0] != 0) {
            return Err(VerityError::Unsupported("its hashes are not SHA-256"));
        }
        if (number(64..68)?, number(68..72)?) != (BLOCK as u64, BLOCK as u64) {
            return Err(VerityError::Unsupported("its blocks don't have 4096 bytes"));
        }
        let salt = number(80..82)? as usize;
        if salt > LONGEST_SALT {
            return Err(VerityError::Unsupported("its salt is too long"));
        }
        let mut uuid = [0; 16];
        uuid.copy_from_slice(field(16..32)?);
        Ok(Superblock { uuid, data_blocks: number(72..80)?, salt: field(88..88 + salt)?.to_vec() })
    }

    /// The blocks of each level, counted from the superblock, the topmost level first.
    #[must_use]
    pub fn levels(&self) -> Vec<Range<u64>> {
        let mut sizes = Vec::new();
        let mut blocks = self.data_blocks;
        while blocks > 1 {
            blocks = blocks.div_ceil(FAN);
            sizes.push(blocks);
        }
        let mut at = 1;
        let range = |size: u64| {
            at += size;
            at - size..at
        };
        sizes.into_iter().rev().map(range).collect()
    }

    /// How many blocks superblock and tree take.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.levels().last().map_or(1, |lowest| lowest.end)
    }

    /// Reads the tree behind the superblock and compares all of it with the root hash; gives the hashes of the data's blocks,
    /// one after the other.
    ///
    /// # Errors
    /// [`VerityError::Tree`] for the first block that is wrong.
    pub fn check(&self, mut tree: impl Read, root: &RootHash) -> Result<Vec<u8>, VerityError> {
        let mut above = root.0.to_vec();
        for level in self.levels() {
            let mut hashes = Vec::new();
            for (block, wanted) in level.zip(above.chunks(HASH)) {
                let start = hashes.len();
                hashes.resize(start + BLOCK, 0);
                tree.read_exact(&mut hashes[start..])?;
                if hash(&self.salt, &hashes[start..]).0 != wanted {
                    return Err(VerityError::Tree { block });
                }
            }
            above = hashes;
        }
        above.truncate((self.data_blocks as usize).saturating_mul(HASH));
        Ok(above)
    }

    /// Reads all of the data and compares it with `hashes`, which [`Superblock::check`] gave.
    ///
    /// # Errors
    /// [`VerityError::Data`] for the first block that is wrong.
    pub fn check_data(&self, mut data: impl Read, hashes: &[u8]) -> Result<(), VerityError> {
        let mut block = [0; BLOCK];
        for (number, wanted) in (0..).zip(hashes.chunks(HASH)) {
            data.read_exact(&mut block)?;
            if hash(&self.salt, &block).0 != wanted {
                return Err(VerityError::Data { block: number });
            }
        }
        Ok(())
    }
}

impl fmt::Display for RootHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for RootHash {
    type Err = NotAHash;

    fn from_str(text: &str) -> Result<RootHash, NotAHash> {
        let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect();
        let bytes: Vec<u8> = digits
            .ok_or(NotAHash)?
            .chunks(2)
            .map(|pair| pair.iter().fold(0, |sum, d| sum << 4 | d))
            .collect();
        if text.len() == 2 * HASH {
            bytes.try_into().map(RootHash).map_err(|_| NotAHash)
        } else {
            Err(NotAHash)
        }
    }
}

/// A text that is no hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a root hash has 64 hexadecimal digits")]
pub struct NotAHash;

#[cfg(test)]
mod tests {
    use super::*;

    fn data(blocks: usize) -> Vec<u8> {
        (0..blocks * BLOCK).map(|i| (i / BLOCK * 7 + i % 251) as u8).collect()
    }

    #[test]
    fn levels_follow_each_other_from_the_top() {
        let of = |data_blocks| Superblock { uuid: [0; 16], data_blocks, salt: vec![] }.levels();
        assert_eq!(of(1), Vec::<Range<u64>>::new());
        assert_eq!(of(2), vec![1..2]);
        assert_eq!(of(128), vec![1..2]);
        assert_eq!(of(129), vec![1..2, 2..4]);
        assert_eq!(of(128 * 128 + 1), vec![1..2, 2..4, 4..133]);
    }

    #[test]
    fn what_is_written_is_found_right() {
        for blocks in [1, 2, 128, 129, 300] {
            let data = data(blocks);
            let tree = tree(data.as_slice(), [7; 16]).unwrap();
            let superblock = Superblock::decode(&tree.bytes).unwrap();
            assert_eq!(superblock.data_blocks, blocks as u64);
            assert_eq!(superblock.blocks() as usize * BLOCK, tree.bytes.len());
            let hashes = superblock.check(&tree.bytes[BLOCK..], &tree.root).unwrap();
            superblock.check_data(data.as_slice(), &hashes).unwrap();
            assert_eq!(tree.root.to_string().parse(), Ok(tree.root));
        }
    }

    #[test]
    fn any_changed_bit_is_noticed() {
        let data = data(300);
        let tree = tree(data.as_slice(), [0; 16]).unwrap();
        let superblock = Superblock::decode(&tree.bytes).unwrap();
        for at in (BLOCK..tree.bytes.len()).step_by(97) {
            let mut wrong = tree.bytes.clone();
            wrong[at] ^= 1;
            let block = (at / BLOCK) as u64;
            let error = superblock.check(&wrong[BLOCK..], &tree.root).unwrap_err();
            assert!(matches!(error, VerityError::Tree { block: found } if found == block), "{error}");
        }
        let hashes = superblock.check(&tree.bytes[BLOCK..], &tree.root).unwrap();
        let mut wrong = data.clone();
        wrong[250 * BLOCK + 9] ^= 128;
        let error = superblock.check_data(wrong.as_slice(), &hashes).unwrap_err();
        assert!(matches!(error, VerityError::Data { block: 250 }), "{error}");
    }

    #[test]
    fn superblocks_of_other_trees_are_refused() {
        let good = Superblock { uuid: [1; 16], data_blocks: 9, salt: vec![5; 32] };
        assert_eq!(Superblock::decode(&good.encode()).unwrap(), good);
        for (at, value) in [(0, b'V'), (8, 2), (12, 0), (33, b'm'), (65, 2), (69, 2), (81, 9)] {
            let mut bytes = good.encode();
            bytes[at] = value;
            assert!(Superblock::decode(&bytes).is_err(), "{at}");
        }
        assert!(Superblock::decode(&good.encode()[..80]).is_err());
        assert!(Superblock::decode(&[]).is_err());
        for text in ["", "00", &"0g".repeat(32), &"ab".repeat(33)] {
            assert_eq!(text.parse::<RootHash>(), Err(NotAHash));
        }
    }
}
