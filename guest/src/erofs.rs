//! As much of EROFS as tells where one ends (kernel source: fs/erofs/erofs_fs.h).

/// Where its superblock lies, in bytes.
pub const SUPERBLOCK: u64 = 1024;
/// Size of its superblock, in bytes.
pub const SUPERBLOCK_SIZE: usize = 128;
/// How it begins.
const MAGIC: [u8; 4] = 0xE0F5_E1E2u32.to_le_bytes();
/// Where it says how large a block is, as a power of two.
const BLOCK_BITS: usize = 12;
/// Where it says how many blocks there are.
const BLOCKS: usize = 36;

/// How many blocks of `block` bytes the file system has whose superblock this is; `None` when it is none, or has blocks of
/// another size.
#[must_use]
pub fn blocks(superblock: &[u8], block: usize) -> Option<u64> {
    let bits = u32::from(*superblock.get(BLOCK_BITS)?);
    let blocks = superblock.get(BLOCKS..)?.first_chunk()?;
    let fits = superblock.starts_with(&MAGIC) && 1usize.checked_shl(bits) == Some(block);
    fits.then(|| u64::from(u32::from_le_bytes(*blocks)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_superblock_is_read() {
        let mut superblock = [0; SUPERBLOCK_SIZE];
        superblock[..4].copy_from_slice(&MAGIC);
        superblock[BLOCK_BITS] = 12;
        superblock[BLOCKS] = 7;
        assert_eq!(blocks(&superblock, 4096), Some(7));
        assert_eq!(blocks(&superblock[..39], 4096), None);
        assert_eq!(blocks(&superblock, 1024), None);
        superblock[BLOCK_BITS] = 255;
        assert_eq!(blocks(&superblock, 4096), None);
        assert_eq!(blocks(&[0; SUPERBLOCK_SIZE], 4096), None);
    }
}
