//! Java's key stores (JKS, the form of `cacerts`): certificates with the times at which they were added, in the order of a
//! hash table. The same certificates give the same bytes once the times are one and the order is that of the names.
//!
//! The form is that of OpenJDK's `sun.security.provider.JavaKeyStore`: big-endian, and behind everything a SHA-1 over the
//! password, a phrase, and all bytes before.

/// The first four bytes.
const MAGIC: u32 = 0xfeed_feed;
/// What is hashed between password and bytes.
const PHRASE: &[u8] = b"Mighty Aphrodite";
/// Length of a SHA-1.
const HASH: usize = 20;
/// The tag of a certificate that is trusted; the other one is a private key with its chain.
const TRUSTED: u32 = 2;

/// The store with every time set to `seconds` since 1970 and its certificates in the order of their names. Nothing when
/// `bytes` are no key store of version 2, hold something else than trusted certificates, or have another password.
#[must_use]
pub fn normalised(bytes: &[u8], password: &str, seconds: i64) -> Option<Vec<u8>> {
    let (body, hash) = bytes.split_at_checked(bytes.len().checked_sub(HASH)?)?;
    (seal(body, password) == hash).then_some(())?;
    let mut rest = body;
    let mut number = || u32_of(&mut rest);
    let (magic, version, count) = (number()?, number()?, number()?);
    (magic == MAGIC && version == 2).then_some(())?;
    let mut entries = Vec::new();
    for _ in 0..count {
        (u32_of(&mut rest)? == TRUSTED).then_some(())?;
        let name = text_of(&mut rest)?;
        take(&mut rest, 8)?;
        let kind = text_of(&mut rest)?;
        let len = u32_of(&mut rest)?;
        entries.push((name, kind, take(&mut rest, len as usize)?));
    }
    rest.is_empty().then_some(())?;
    entries.sort_unstable();
    let mut out = [MAGIC, version, count].map(u32::to_be_bytes).concat();
    for (name, kind, certificate) in entries {
        out.extend(TRUSTED.to_be_bytes());
        put_text(&mut out, name);
        out.extend(seconds.checked_mul(1000)?.to_be_bytes());
        put_text(&mut out, kind);
        // It was read from a number of this size.
        out.extend(u32::try_from(certificate.len()).ok()?.to_be_bytes());
        out.extend(certificate);
    }
    out.extend(seal(&out, password));
    Some(out)
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(len)?;
    *rest = left;
    Some(taken)
}

fn u32_of(rest: &mut &[u8]) -> Option<u32> {
    take(rest, 4).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes)
}

/// A text with its length in two bytes.
fn text_of<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = take(rest, 2).and_then(|b| b.try_into().ok()).map(u16::from_be_bytes)?;
    take(rest, usize::from(len))
}

fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    // It was read with a length of two bytes.
    out.extend((text.len() as u16).to_be_bytes());
    out.extend(text);
}

fn seal(body: &[u8], password: &str) -> [u8; HASH] {
    let mut bytes: Vec<u8> = password.encode_utf16().flat_map(u16::to_be_bytes).collect();
    bytes.extend(PHRASE);
    bytes.extend(body);
    sha1(bytes)
}

/// SHA-1 (FIPS 180-4), which nothing but this form still asks for.
fn sha1(mut bytes: Vec<u8>) -> [u8; HASH] {
    let bits = (bytes.len() as u64).wrapping_mul(8);
    bytes.push(0x80);
    // Room for the length, in eight bytes.
    bytes.resize((bytes.len() + 8).next_multiple_of(64), 0);
    let end = bytes.len() - 8;
    bytes[end..].copy_from_slice(&bits.to_be_bytes());
    let mut h = [0x6745_2301u32, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
    for block in bytes.chunks_exact(64) {
        let mut w = [0u32; 80];
        for (word, four) in w.iter_mut().zip(block.chunks_exact(4)) {
            *word = four.iter().fold(0, |word, &b| word << 8 | u32::from(b));
        }
        for t in 16..80 {
            w[t] = (w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16]).rotate_left(1);
        }
        let [mut a, mut b, mut c, mut d, mut e] = h;
        for (t, word) in w.into_iter().enumerate() {
            let (f, k) = match t / 20 {
                0 => (b & c | !b & d, 0x5a82_7999u32),
                1 => (b ^ c ^ d, 0x6ed9_eba1),
                2 => (b & c | b & d | c & d, 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6),
            };
            let next = a.rotate_left(5).wrapping_add(f).wrapping_add(e).wrapping_add(k).wrapping_add(word);
            (a, b, c, d, e) = (next, a, b.rotate_left(30), c, d);
        }
        for (sum, value) in h.iter_mut().zip([a, b, c, d, e]) {
            *sum = sum.wrapping_add(value);
        }
    }
    let mut hash = [0; HASH];
    for (place, word) in hash.chunks_exact_mut(4).zip(h) {
        place.copy_from_slice(&word.to_be_bytes());
    }
    hash
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A store as Java writes it.
    fn store(entries: &[(&str, i64, &[u8])], password: &str) -> Vec<u8> {
        let mut out = [MAGIC, 2, entries.len() as u32].map(u32::to_be_bytes).concat();
        for (name, millis, certificate) in entries {
            out.extend(TRUSTED.to_be_bytes());
            put_text(&mut out, name.as_bytes());
            out.extend(millis.to_be_bytes());
            put_text(&mut out, b"X.509");
            out.extend((certificate.len() as u32).to_be_bytes());
            out.extend(*certificate);
        }
        out.extend(seal(&out, password));
        out
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn sha1_as_in_the_specification() {
        for (text, wanted) in [
            ("", "da39a3ee5e6b4b0d3255bfef95601890afd80709"),
            ("abc", "a9993e364706816aba3e25717850c26c9cd0d89d"),
            (
                "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
                "84983e441c3bd26ebaae4aa1f95129e5e54670f1",
            ),
        ] {
            assert_eq!(hex(&sha1(text.into())), wanted);
        }
        // Around the length at which the padding takes another block; from sha1sum(1).
        let long: Vec<_> = [55, 56, 63, 64, 65].map(|n| hex(&sha1(vec![b'a'; n]))).to_vec();
        assert_eq!(
            long,
            [
                "c1c8bbdc22796e28c0e15163d20899b65621d65a",
                "c2db330f6083854c99d4b5bfb6e8f29f201be699",
                "03f09f5b158a7a8cdad920bddc29b81c18a551f5",
                "0098ba824b5c16427bd7a1122a5a442a25ec644d",
                "11655326c708d70319be2610e8a57d9a5b959d3b"
            ]
        );
    }

    #[test]
    fn times_and_order_leave_no_trace() {
        let one = store(&[("b", 17, b"two"), ("a", 18, b"one")], "changeit");
        let two = store(&[("a", 99, b"one"), ("b", 98, b"two")], "changeit");
        let wanted = store(&[("a", 5000, b"one"), ("b", 5000, b"two")], "changeit");
        assert_eq!(normalised(&one, "changeit", 5), Some(wanted.clone()));
        assert_eq!(normalised(&two, "changeit", 5), Some(wanted));
        assert_eq!(normalised(&one, "another", 5), None);
        assert_eq!(normalised(&one[..40], "changeit", 5), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(body in any::<Vec<u8>>(), count in 0u32..3, at in 0usize..64, byte in any::<u8>()) {
            let mut bytes = [MAGIC, 2, count].map(u32::to_be_bytes).concat();
            bytes.extend(&body);
            bytes.extend(seal(&bytes, "x"));
            let _ = normalised(&bytes, "x", 1);
            let mut whole = store(&[("a", 1, b"one"), ("b", 2, b"two")], "x");
            whole.truncate(whole.len() - HASH);
            if let Some(place) = whole.get_mut(at) { *place = byte; }
            whole.extend(seal(&whole, "x"));
            let _ = normalised(&whole, "x", 1);
        }
    }
}
