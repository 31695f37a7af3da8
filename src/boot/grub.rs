//! GRUB's images: what grub-mkimage is asked for, and the places that are patched for a disk.

use uuid::Uuid;

pub use kiln_guest::menu::word;

use crate::format::mbr::CODE_SIZE;
use crate::units::{Lba, SECTOR};

/// Modules of both images.
const COMMON: [&str; 15] = [
    "part_gpt",
    "ext2",
    "search_fs_uuid",
    "normal",
    "linux",
    "configfile",
    "serial",
    "terminal",
    "echo",
    "test",
    "boot",
    "minicmd",
    "ls",
    "reboot",
    "halt",
];
/// Modules that only the BIOS image has.
const BIOS: [&str; 1] = ["biosdisk"];
/// Modules that only the UEFI image has.
const UEFI: [&str; 4] = ["fat", "search", "all_video", "efi_gop"];

/// Modules that the BIOS image of the store layout has besides: the kernels lie on a FAT, inside of other files, and tries are
/// counted.
const STORE: [&str; 4] = ["fat", "loopback", "regexp", "loadenv"];

/// An image that grub-mkimage makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// `core.img`, loaded by `boot.img` from the BIOS boot partition.
    Bios,
    /// `BOOTX64.EFI`.
    Uefi,
}

/// An image that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrubError {
    /// `boot.img` or `core.img` is not what GRUB 2 makes.
    #[error("GRUB's {0} is not as expected: {1}")]
    Unexpected(&'static str, &'static str),
    /// The core image is larger than its partition.
    #[error("GRUB's core image of {size} bytes doesn't fit into its partition of {room}")]
    TooLarge {
        /// Its size.
        size: usize,
        /// The partition's.
        room: u64,
    },
}

impl Target {
    /// GRUB's name of the platform, which is also the folder of its modules.
    #[must_use]
    pub fn platform(self) -> &'static str {
        match self {
            Target::Bios => "i386-pc",
            Target::Uefi => "x86_64-efi",
        }
    }

    /// The modules that are put into the image: nothing is loaded from the disk at boot.
    #[must_use]
    pub fn modules(self) -> Vec<&'static str> {
        let own: &[&str] = match self {
            Target::Bios => &BIOS,
            Target::Uefi => &UEFI,
        };
        own.iter().chain(&COMMON).copied().collect()
    }
}

/// The modules of the BIOS image of the store layout.
#[must_use]
pub fn store_modules() -> Vec<&'static str> {
    let mut modules = Target::Bios.modules();
    modules.extend(STORE);
    modules
}

/// The configuration inside the images. The parser that reads it knows neither `if` nor functions. Normal mode, which
/// follows, reads `grub.cfg` below the prefix.
#[must_use]
pub fn early_config(root_fs: Uuid) -> String {
    format!("search.fs_uuid {root_fs} root hd0,gpt1\nset prefix=($root)/boot/grub\n")
}

/// The same for the store layout, whose menu lies on the EFI system partition with that serial number.
#[must_use]
pub fn store_config(esp: u32) -> String {
    let (high, low) = (esp >> 16, esp & 0xffff);
    format!("search.fs_uuid {high:04X}-{low:04X} root hd0,gpt15\nset prefix=($root)/kiln\n")
}

/// The MBR's boot code: `boot.img`, told at which block the core image begins.
///
/// # Errors
/// [`GrubError::Unexpected`] when this is no `boot.img`.
pub fn boot_code(boot_img: &[u8], core: Lba) -> Result<[u8; CODE_SIZE], GrubError> {
    let wrong = |why| GrubError::Unexpected("boot.img", why);
    if boot_img.len() != SECTOR as usize {
        return Err(wrong("it is not one sector long"));
    }
    // GRUB's include/grub/i386/pc/boot.h: GRUB_BOOT_MACHINE_KERNEL_SECTOR, …_BOOT_DRIVE, …_DRIVE_CHECK.
    let (kernel_sector, boot_drive, drive_check) = (0x5c, 0x64, 0x66);
    if boot_img[drive_check..drive_check + 2] != [0xeb, 0x05] {
        return Err(wrong("its drive check is not where it should be"));
    }
    let mut code = [0; CODE_SIZE];
    code.copy_from_slice(&boot_img[..CODE_SIZE]);
    code[kernel_sector..kernel_sector + 8].copy_from_slice(&core.0.to_le_bytes());
    code[boot_drive] = 0xff; // the drive that the BIOS names
    // What grub-install does for hard disks: the check is for floppies and some BIOSes fail it.
    code[drive_check..drive_check + 2].copy_from_slice(&[0x90, 0x90]);
    Ok(code)
}

/// The core image as it lies in a partition that begins at `first` and has `room` bytes, told where its second sector is.
///
/// # Errors
/// [`GrubError`] when it is too large or no core image.
pub fn place_core(core_img: &[u8], first: Lba, room: u64) -> Result<Vec<u8>, GrubError> {
    if core_img.len() as u64 > room {
        return Err(GrubError::TooLarge { size: core_img.len(), room });
    }
    let mut core = core_img.to_vec();
    core.resize(core.len().next_multiple_of(SECTOR as usize), 0);
    // The first entry of diskboot.img's list of blocks, at its sector's end: start (8 bytes), length, load segment.
    let list = SECTOR as usize - 12;
    let sectors = core.len() / SECTOR as usize;
    let (Some(entry), Ok(rest)) = (core.get_mut(list..list + 12), u16::try_from(sectors.saturating_sub(1)))
    else {
        return Err(GrubError::Unexpected("core.img", "its size is not possible"));
    };
    if entry[8..10] != rest.to_le_bytes() || entry[10..12] != 0x820u16.to_le_bytes() {
        return Err(GrubError::Unexpected("core.img", "its list of blocks is not where it should be"));
    }
    entry[..8].copy_from_slice(&(first.0 + 1).to_le_bytes());
    Ok(core)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_code_knows_where_the_core_is() {
        let mut boot_img = vec![0x11; 512];
        boot_img[0x66..0x68].copy_from_slice(&[0xeb, 0x05]);
        let code = boot_code(&boot_img, Lba(2048)).unwrap();
        assert_eq!(code[0x5c..0x68], [0, 8, 0, 0, 0, 0, 0, 0, 0xff, 0x11, 0x90, 0x90]);
        assert!(boot_code(&boot_img[..511], Lba(1)).is_err());
        assert!(boot_code(&[0; 512], Lba(1)).is_err());
    }

    #[test]
    fn the_core_knows_where_it_goes_on() {
        let mut core = vec![0; 1300];
        core[508..512].copy_from_slice(&[2, 0, 0x20, 0x08]);
        let placed = place_core(&core, Lba(2048), 1 << 20).unwrap();
        assert_eq!(placed.len(), 1536);
        assert_eq!(placed[500..512], [1, 8, 0, 0, 0, 0, 0, 0, 2, 0, 0x20, 8]);
        assert_eq!(
            place_core(&core, Lba(0), 1299).unwrap_err(),
            GrubError::TooLarge { size: 1300, room: 1299 }
        );
        for len in [0, 100, 511, 1300] {
            assert!(place_core(&vec![0; len], Lba(0), 1 << 20).is_err(), "{len}");
        }
    }

    #[test]
    fn words_are_quoted_when_they_must_be() {
        assert_eq!(word("root=PARTUUID=12-ab"), "root=PARTUUID=12-ab");
        assert_eq!(word("a b"), "'a b'");
        assert_eq!(word("$x"), "'$x'");
        assert_eq!(word("it's"), r"'it'\''s'");
        assert_eq!(word(""), "''");
    }
}
