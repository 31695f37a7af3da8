//! The protective MBR that stands before a GUID partition table (UEFI 2.10, section 5.2.3), with or without boot code.

use crate::units::SECTOR;

/// Bytes at the beginning of the sector that BIOS boot code may fill.
pub const CODE_SIZE: usize = 440;

/// The sector at LBA 0: `code`, and one partition of type 0xEE over the whole disk.
#[must_use]
pub fn protective(code: &[u8; CODE_SIZE], sectors: u64) -> [u8; SECTOR as usize] {
    let mut sector = [0; SECTOR as usize];
    sector[..CODE_SIZE].copy_from_slice(code);
    let record = &mut sector[446..462];
    record[2] = 2; // starts at cylinder 0, head 0, sector 2, which is LBA 1
    record[4] = 0xee;
    record[5..8].fill(0xff); // ends where cylinders, heads and sectors end
    record[8..12].copy_from_slice(&1u32.to_le_bytes());
    let size = u32::try_from(sectors.saturating_sub(1)).unwrap_or(u32::MAX);
    record[12..16].copy_from_slice(&size.to_le_bytes());
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::hex;

    #[test]
    fn the_partition_covers_what_it_can() {
        let sector = protective(&[0x90; CODE_SIZE], 2048);
        assert!(sector[..CODE_SIZE].iter().all(|&b| b == 0x90));
        assert_eq!(hex(&sector[440..462]), "00000000000000000200eeffffff01000000ff070000");
        assert_eq!(hex(&sector[462..]), format!("{}55aa", "0".repeat(96)));
        let huge = protective(&[0; CODE_SIZE], 1 << 40);
        assert_eq!(hex(&huge[458..462]), "ffffffff");
    }
}
