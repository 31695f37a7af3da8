//! Reading archives of POSIX's ustar format, one file after the other.

use std::io::{self, Read};

const BLOCK: usize = 512;

/// An archive that can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It is none, or damaged.
    #[error("it is no generation file, or damaged: {0}")]
    Damaged(&'static str),
    /// It ends too early, or can't be read.
    #[error("it can't be read: {0}")]
    Io(#[from] io::Error),
}

/// A file in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
}

/// An archive that is read from its beginning to its end.
#[derive(Debug)]
pub struct Archive<R> {
    from: R,
    /// Bytes of the current file that were not read, and what fills its last block.
    left: u64,
    padding: u64,
}

impl<R: Read> Archive<R> {
    /// Begins to read.
    pub fn new(from: R) -> Archive<R> {
        Archive { from, left: 0, padding: 0 }
    }

    /// The next file; what was not read of the one before is passed over. `None` at the end.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn next_file(&mut self) -> Result<Option<Header>, ArchiveError> {
        let rest = self.left + self.padding;
        let passed = io::copy(&mut self.from.by_ref().take(rest), &mut io::sink())?;
        if passed < rest {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        (self.left, self.padding) = (0, 0);
        let mut block = [0; BLOCK];
        self.from.read_exact(&mut block)?;
        if block == [0; BLOCK] {
            return Ok(None);
        }
        let header = parse(&block)?;
        self.left = header.size;
        self.padding = header.size.next_multiple_of(BLOCK as u64) - header.size;
        Ok(Some(header))
    }
}

impl<R: Read> Read for Archive<R> {
    /// Reads from the current file.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.from.read(&mut buffer[..len])?;
        if read == 0 && len > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(read)
    }
}

fn parse(block: &[u8; BLOCK]) -> Result<Header, ArchiveError> {
    if !block[257..].starts_with(b"ustar") {
        return Err(ArchiveError::Damaged("a file's header has no signature"));
    }
    let sum = block.iter().enumerate().map(|(at, byte)| {
        // The checksum's own field counts as blanks.
        u64::from(if (148..156).contains(&at) { b' ' } else { *byte })
    });
    if octal(&block[148..156]) != Some(sum.sum()) {
        return Err(ArchiveError::Damaged("a file's header has a wrong checksum"));
    }
    if !matches!(block[156], b'0' | 0) || block[345] != 0 {
        return Err(ArchiveError::Damaged("there is something in it that is no file"));
    }
    let size = octal(&block[124..136]).ok_or(ArchiveError::Damaged("a file has no size"))?;
    let name = block[..100].split(|b| *b == 0).next().unwrap_or_default();
    let name = name.strip_prefix(b"./").unwrap_or(name);
    Ok(Header { name: String::from_utf8_lossy(name).into_owned(), size })
}

/// A number in octal digits, with blanks before and blanks or a zero behind it.
fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?;
    let digits = text.trim_matches([' ', '\0']);
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| u64::from_str_radix(digits, 8).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, content) in files {
            let mut header = [0; BLOCK];
            header[..name.len()].copy_from_slice(name.as_bytes());
            header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
            header[156] = b'0';
            header[257..263].copy_from_slice(b"ustar\0");
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
            header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            bytes.extend_from_slice(&header);
            bytes.extend_from_slice(content);
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        }
        bytes.resize(bytes.len() + 2 * BLOCK, 0);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Vec<(String, Vec<u8>)>, ArchiveError> {
        let mut archive = Archive::new(bytes);
        let mut files = Vec::new();
        while let Some(header) = archive.next_file()? {
            let mut content = Vec::new();
            // Only the beginning, so that the rest is passed over.
            archive.by_ref().take(700).read_to_end(&mut content)?;
            files.push((header.name, content));
        }
        Ok(files)
    }

    #[test]
    fn files_are_read_in_order() {
        let bytes =
            archive(&[("manifest", b"text"), ("empty", b""), ("big", &[7; 1500]), ("last", &[1; 512])]);
        let files = read(&bytes).unwrap();
        let names: Vec<_> = files.iter().map(|(name, content)| (name.as_str(), content.len())).collect();
        assert_eq!(names, [("manifest", 4), ("empty", 0), ("big", 700), ("last", 512)]);
    }

    #[test]
    fn damage_is_noticed() {
        let bytes = archive(&[("manifest", b"text")]);
        for at in [0, 130, 150, 156, 257] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(matches!(read(&damaged), Err(ArchiveError::Damaged(_))), "{at}");
        }
        for len in 0..bytes.len() - BLOCK {
            assert!(matches!(read(&bytes[..len]), Err(ArchiveError::Io(_))), "{len}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(changes in prop::collection::vec((0usize..2048, any::<u8>()), 0..20), fix: bool) {
            let mut bytes = archive(&[("manifest", b"text"), ("b", &[3; 600])]);
            for (at, value) in changes {
                bytes[at] = value;
            }
            if fix {
                bytes[148..156].fill(b' ');
                let sum: u32 = bytes[..BLOCK].iter().map(|b| u32::from(*b)).sum();
                bytes[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            }
            let _ = read(&bytes);
        }
    }
}
