//! CRC-32C (Castagnoli), which ext4 protects its metadata with: eight bytes at a time, by tables.

/// The polynomial, bits in reverse (RFC 3720, appendix B.4).
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// `TABLES[n][b]`: what byte `b` does to the sum when `n` more bytes follow.
static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut sum = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            sum = if sum & 1 == 1 { sum >> 1 ^ POLYNOMIAL } else { sum >> 1 };
            bit += 1;
        }
        tables[0][byte] = sum;
        byte += 1;
    }
    let mut more = 1;
    while more < 8 {
        let mut byte = 0;
        while byte < 256 {
            let sum = tables[more - 1][byte];
            tables[more][byte] = sum >> 8 ^ tables[0][(sum & 0xff) as usize];
            byte += 1;
        }
        more += 1;
    }
    tables
}

/// Goes on from `seed` over `bytes`. As the file system wants it: a sum begins with all ones, and isn't inverted.
pub(super) fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    let mut sum = seed;
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let low = sum ^ u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        let [l0, l1, l2, l3] = low.to_le_bytes();
        let t = |more: usize, byte: u8| TABLES[more][usize::from(byte)];
        sum = t(7, l0) ^ t(6, l1) ^ t(5, l2) ^ t(4, l3);
        sum ^= t(3, chunk[4]) ^ t(2, chunk[5]) ^ t(1, chunk[6]) ^ t(0, chunk[7]);
    }
    for byte in chunks.remainder() {
        sum = TABLES[0][usize::from(sum as u8 ^ byte)] ^ sum >> 8;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, appendix B.4, and the usual check value.
    #[test]
    fn known_sums() {
        let sum = |bytes: &[u8]| !crc32c(!0, bytes);
        assert_eq!(sum(b"123456789"), 0xe306_9283);
        assert_eq!(sum(&[0; 32]), 0x8a91_36aa);
        assert_eq!(sum(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
        let (head, tail) = b"123456789".split_at(4);
        assert_eq!(crc32c(crc32c(!0, head), tail), !0xe306_9283);
    }
}
