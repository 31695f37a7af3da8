//! Programs and kernels, as far as it shows what machine they are for: ELF, PE/COFF, Linux boot images.

use super::table::{u16_at, u32_at, u64_at};
use crate::arch::Arch;

/// Program headers and sections that are looked at.
const MOST_HEADERS: usize = 128;

/// An ELF program.
pub(super) struct Elf {
    pub(super) machine: u16,
    /// The path of its dynamic loader, when it has one.
    pub(super) loader: Option<String>,
}

/// A section of a PE file.
pub(super) struct Section {
    pub(super) name: String,
    pub(super) offset: u64,
    pub(super) size: u64,
}

/// A PE/COFF file.
pub(super) struct Pe {
    pub(super) machine: u16,
    pub(super) sections: Vec<Section>,
}

/// ELF's number of an architecture (System V ABI's `e_machine`).
pub(super) fn elf_machine(arch: Arch) -> u16 {
    match arch {
        Arch::Amd64 => 62,
        Arch::Arm64 => 183,
    }
}

/// PE's number of an architecture (`IMAGE_FILE_MACHINE_…`).
pub(super) fn pe_machine(arch: Arch) -> u16 {
    match arch {
        Arch::Amd64 => 0x8664,
        Arch::Arm64 => 0xaa64,
    }
}

/// The file that firmware starts on a disk without further entries (UEFI 2.10, section 3.5.1.1).
pub(super) fn removable_loader(arch: Arch) -> &'static str {
    match arch {
        Arch::Amd64 => "EFI/BOOT/BOOTX64.EFI",
        Arch::Arm64 => "EFI/BOOT/BOOTAA64.EFI",
    }
}

/// An ELF machine in words.
pub(super) fn elf_machine_name(machine: u16) -> String {
    let known = match machine {
        3 => "i386",
        40 => "32-bit ARM",
        62 => "amd64",
        183 => "arm64",
        243 => "riscv64",
        21 => "ppc64",
        22 => "s390x",
        other => return format!("machine {other}"),
    };
    known.to_owned()
}

/// A PE machine in words.
pub(super) fn pe_machine_name(machine: u16) -> String {
    let known = match machine {
        0x14c => "i386",
        0x1c0 | 0x1c2 | 0x1c4 => "32-bit ARM",
        0x8664 => "amd64",
        0xaa64 => "arm64",
        0x5064 => "riscv64",
        0x6264 => "loong64",
        other => return format!("machine {other:#06x}"),
    };
    known.to_owned()
}

/// Reads an ELF header and what it says of the dynamic loader; `None` when this is no ELF program.
pub(super) fn elf(bytes: &[u8]) -> Option<Elf> {
    if bytes.len() < 64 || !bytes.starts_with(b"\x7fELF") {
        return None;
    }
    let machine = u16_at(bytes, 18);
    // Programs of 32 bits have other headers; the machine says enough of them.
    if bytes[4] != 2 || bytes[5] != 1 {
        return Some(Elf { machine, loader: None });
    }
    let (at, size) = (usize::try_from(u64_at(bytes, 32)).ok()?, usize::from(u16_at(bytes, 54)));
    let headers = (0..usize::from(u16_at(bytes, 56)).min(MOST_HEADERS))
        .filter_map(|n| bytes.get(at.checked_add(n * size)?..)?.get(..56));
    let interp = headers.into_iter().find(|h| u32_at(h, 0) == 3).and_then(|h| {
        let (start, size) = (usize::try_from(u64_at(h, 8)).ok()?, usize::try_from(u64_at(h, 32)).ok()?);
        let path = bytes.get(start..start.checked_add(size)?)?;
        Some(String::from_utf8_lossy(path).trim_end_matches('\0').to_owned())
    });
    Some(Elf { machine, loader: interp })
}

/// Reads a PE header and the list of sections; `None` when this is no PE file.
pub(super) fn pe(bytes: &[u8]) -> Option<Pe> {
    let at = u32_at(bytes, 0x3c) as usize;
    if !bytes.starts_with(b"MZ") || bytes.get(at..at.checked_add(24)?)?.get(..4)? != b"PE\0\0" {
        return None;
    }
    let table = at + 24 + usize::from(u16_at(bytes, at + 20));
    let count = usize::from(u16_at(bytes, at + 6)).min(MOST_HEADERS);
    let sections =
        (0..count).filter_map(|n| bytes.get(table + n * 40..table + n * 40 + 40)).map(|s| Section {
            name: String::from_utf8_lossy(&s[..8]).trim_end_matches('\0').to_owned(),
            // A section's size in memory is that of its content; in the file it is padded.
            size: u64::from(u32_at(s, 8).min(u32_at(s, 16))),
            offset: u64::from(u32_at(s, 20)),
        });
    Some(Pe { machine: u16_at(bytes, at + 4), sections: sections.collect() })
}

/// The architecture of a Linux boot image in words, `Err` with what it is instead.
pub(super) fn kernel_arch(bytes: &[u8]) -> Result<String, &'static str> {
    // Linux' Documentation/arch/x86/boot.rst: boot_flag, header, version, xloadflags.
    if u16_at(bytes, 0x1fe) == 0xaa55 && bytes.get(0x202..0x206) == Some(b"HdrS") {
        let wide = u16_at(bytes, 0x206) >= 0x20c && u16_at(bytes, 0x236) & 1 != 0;
        return Ok(if wide { "amd64" } else { "i386" }.to_owned());
    }
    // Documentation/arch/arm64/booting.rst.
    if bytes.get(0x38..0x3c) == Some(b"ARM\x64") {
        return Ok("arm64".to_owned());
    }
    if let Some(pe) = pe(bytes) {
        return Ok(pe_machine_name(pe.machine));
    }
    Err(match bytes {
        [] => "it is empty",
        [0x1f, 0x8b, ..] => "it is compressed with gzip, which no boot loader of such machines unpacks",
        [0x7f, b'E', b'L', b'F', ..] => "it is an ELF file: vmlinux in place of the boot image",
        _ if bytes.iter().all(|&b| b == 0) => "it holds nothing but zeroes",
        _ => "it is no Linux boot image",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn this_program_is_read() {
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let elf = elf(&bytes[..bytes.len().min(1 << 16)]).unwrap();
        let Some(arch) = Arch::host() else { return };
        assert_eq!(elf.machine, elf_machine(arch));
        assert!(elf.loader.unwrap().contains("/ld-linux"));
    }

    proptest! {
        #[test]
        fn nothing_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..700), kind in 0usize..4) {
            let magic: &[u8] = [&b"\x7fELF\x02\x01"[..], b"MZ", b"", b"MZ"][kind];
            let count = magic.len().min(bytes.len());
            bytes[..count].copy_from_slice(&magic[..count]);
            if kind == 3 && bytes.len() > 0x80 {
                bytes[0x3c..0x40].copy_from_slice(&[0x40, 0, 0, 0]);
                bytes[0x40..0x44].copy_from_slice(b"PE\0\0");
            }
            let (_, _, _) = (elf(&bytes), pe(&bytes), kernel_arch(&bytes));
        }
    }
}
