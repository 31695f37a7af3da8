//! Unified kernel images: a kernel, its initrd and its command line in one program for UEFI.
//!
//! The stub of systemd-boot(7), a PE32+ image, gets a section for each of them. UAPI group's specification 5, "Unified Kernel
//! Image"; PE by Microsoft's "PE Format".

use std::fmt;

/// Where a section's bytes lie in the file: what boot loaders that know nothing of PE are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Its name, without the zeroes behind it.
    pub name: String,
    /// Where it begins in the file, in bytes; a multiple of 512 in the images that are written here.
    pub offset: u64,
    /// How many bytes it has; behind them it may be filled up.
    pub size: u64,
}

/// What a unified kernel image is made of.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// systemd's stub, `linuxx64.efi.stub`.
    pub stub: &'a [u8],
    /// os-release(5) of the entry: boot loaders take title and sort key from it.
    pub os_release: &'a str,
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// The kernel's release, as `uname -r` tells it.
    pub release: &'a str,
    /// The kernel.
    pub linux: &'a [u8],
    /// The initrd.
    pub initrd: &'a [u8],
}

/// A program that is none, or has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAnImage(pub(crate) &'static str);

impl fmt::Display for NotAnImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a PE image that can be used: {}", self.0)
    }
}

impl std::error::Error for NotAnImage {}

/// Size of a section's header.
const HEADER: usize = 40;
/// Initialised data, readable.
const CHARACTERISTICS: u32 = 0x4000_0040;

/// The places in a PE image that adding sections touches.
struct Pe {
    /// Where the file header begins, behind the signature.
    file_header: usize,
    /// Where the optional header begins.
    optional: usize,
    /// Where the section headers begin.
    sections: usize,
    count: usize,
}

impl Pe {
    fn of(bytes: &[u8]) -> Result<Pe, NotAnImage> {
        let short = NotAnImage("it is too short");
        let signature = read(bytes, 0x3c, 4).ok_or(short)? as usize;
        if bytes.get(signature..).is_none_or(|at| !at.starts_with(b"PE\0\0")) || !bytes.starts_with(b"MZ") {
            return Err(NotAnImage("it has no PE header"));
        }
        let file_header = signature + 4;
        let optional = file_header + 20;
        let count = read(bytes, file_header + 2, 2).ok_or(short)? as usize;
        let sections = optional + read(bytes, file_header + 16, 2).ok_or(short)? as usize;
        if read(bytes, optional, 2) != Some(0x20b) {
            return Err(NotAnImage("it is no PE32+"));
        }
        match bytes.get(sections..sections + count * HEADER) {
            Some(_) => Ok(Pe { file_header, optional, sections, count }),
            None => Err(short),
        }
    }
}

fn read(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(len)?)?;
    Some(field.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
}

fn write(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// The sections of an image, of which only the beginning needs to be given.
///
/// # Errors
/// When it is no PE32+ image.
pub fn sections(bytes: &[u8]) -> Result<Vec<Section>, NotAnImage> {
    let pe = Pe::of(bytes)?;
    let section = |header: &[u8]| Section {
        name: String::from_utf8_lossy(&header[..8]).trim_end_matches('\0').to_owned(),
        offset: read(header, 20, 4).unwrap_or_default(),
        size: read(header, 8, 4).unwrap_or_default().min(read(header, 16, 4).unwrap_or_default()),
    };
    Ok(bytes[pe.sections..][..pe.count * HEADER].chunks(HEADER).map(section).collect())
}

/// Puts an image together.
///
/// # Errors
/// When the stub is no PE32+ image or has no room for further section headers.
pub fn build(parts: &Parts<'_>) -> Result<Vec<u8>, NotAnImage> {
    let pe = Pe::of(parts.stub)?;
    let field = |at: usize| read(parts.stub, pe.optional + at, 4).ok_or(NotAnImage("it is too short"));
    // PE Format, "Optional Header Windows-Specific Fields".
    let (alignment, file_alignment) = (field(32)?.max(1) as u32, field(36)?.max(512) as u32);
    let added = [
        (".osrel", parts.os_release.as_bytes()),
        (".cmdline", parts.cmdline.as_bytes()),
        (".uname", parts.release.as_bytes()),
        (".initrd", parts.initrd),
        // Last: the kernel is loaded where it lies and may need memory behind it.
        (".linux", parts.linux),
    ];
    let first = sections(parts.stub)?.iter().filter(|s| s.size > 0).map(|s| s.offset).min();
    let headers = pe.sections + pe.count * HEADER;
    if first.is_some_and(|first| (headers + added.len() * HEADER) as u64 > first) {
        return Err(NotAnImage("there is no room for further sections' headers"));
    }
    let mut image = parts.stub.to_vec();
    let mut address = end_of_image(&image, &pe).next_multiple_of(alignment);
    for (number, (name, bytes)) in added.iter().enumerate() {
        let size = u32::try_from(bytes.len()).map_err(|_| NotAnImage("a section has over 4 GiB"))?;
        image.resize(image.len().next_multiple_of(file_alignment as usize), 0);
        let offset = u32::try_from(image.len()).map_err(|_| NotAnImage("it has over 4 GiB"))?;
        let header = headers + number * HEADER;
        image[header..header + HEADER].fill(0);
        image[header..header + name.len()].copy_from_slice(name.as_bytes());
        let values = [size, address, size.next_multiple_of(file_alignment), offset];
        for (place, value) in (8..).step_by(4).zip(values) {
            write(&mut image, header + place, value);
        }
        write(&mut image, header + 36, CHARACTERISTICS);
        image.extend_from_slice(bytes);
        address = address
            .checked_add(size)
            .and_then(|end| end.checked_next_multiple_of(alignment))
            .ok_or(NotAnImage("it has over 4 GiB"))?;
    }
    image.resize(image.len().next_multiple_of(file_alignment as usize), 0);
    let count = (pe.count + added.len()) as u16;
    image[pe.file_header + 2..pe.file_header + 4].copy_from_slice(&count.to_le_bytes());
    let initialised: usize = added.iter().map(|(_, bytes)| bytes.len()).sum();
    write(&mut image, pe.optional + 8, field(8)? as u32 + initialised as u32);
    write(&mut image, pe.optional + 56, address);
    // The checksum is optional for programs of UEFI.
    write(&mut image, pe.optional + 64, 0);
    Ok(image)
}

/// The first address behind all sections.
fn end_of_image(image: &[u8], pe: &Pe) -> u32 {
    let headers = image[pe.sections..][..pe.count * HEADER].chunks(HEADER);
    let end = headers.map(|h| {
        read(h, 12, 4).unwrap_or_default()
            + read(h, 8, 4).unwrap_or_default().max(read(h, 16, 4).unwrap_or_default())
    });
    end.max().unwrap_or_default().min(u64::from(u32::MAX / 2)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PE32+ image with one section of code, as small as they come.
    fn stub() -> Vec<u8> {
        let mut bytes = vec![0; 1024];
        bytes[..2].copy_from_slice(b"MZ");
        bytes[0x3c] = 0x40;
        bytes[0x40..0x44].copy_from_slice(b"PE\0\0");
        bytes[0x46] = 1; // sections
        bytes[0x54] = 240; // size of the optional header
        bytes[0x58..0x5a].copy_from_slice(&[0x0b, 2]);
        write(&mut bytes, 0x58 + 32, 4096);
        write(&mut bytes, 0x58 + 36, 512);
        let header = 0x58 + 240;
        bytes[header..header + 5].copy_from_slice(b".text");
        for (at, value) in [(8, 300), (12, 4096), (16, 512), (20, 896)] {
            write(&mut bytes, header + at, value);
        }
        bytes
    }

    fn parts(stub: &[u8]) -> Parts<'_> {
        Parts {
            stub,
            os_release: "ID=kiln\n",
            cmdline: "quiet",
            release: "6.12",
            linux: &[0xab; 5000],
            initrd: &[0xcd; 700],
        }
    }

    #[test]
    fn sections_are_found_where_they_were_put() {
        let stub = stub();
        let image = build(&parts(&stub)).unwrap();
        let found = sections(&image).unwrap();
        let names: Vec<&str> = found.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, [".text", ".osrel", ".cmdline", ".uname", ".initrd", ".linux"]);
        let bytes = |s: &Section| &image[s.offset as usize..][..s.size as usize];
        assert_eq!(bytes(&found[2]), b"quiet");
        assert_eq!(bytes(&found[5]), [0xab; 5000]);
        assert!(found[1..].iter().all(|s| s.offset.is_multiple_of(512)));
        assert_eq!(build(&parts(&stub)).unwrap(), image);
    }

    #[test]
    fn what_is_no_image_is_refused() {
        for bytes in [&b""[..], b"MZ", &[0; 1024]] {
            assert!(sections(bytes).is_err());
            assert!(build(&parts(bytes)).is_err());
        }
        for cut in 0..stub().len() {
            let _ = build(&parts(&stub()[..cut]));
        }
        let mut full = stub();
        let header = 0x58 + 240;
        write(&mut full, header + 20, header as u32 + 80);
        assert!(build(&parts(&full)).is_err());
    }
}
