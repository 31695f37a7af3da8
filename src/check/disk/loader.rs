//! What firmware starts: boot code of the MBR for a BIOS, a program on the EFI system partition for UEFI.

use super::binary::{pe, pe_machine, pe_machine_name, removable_loader};
use super::config::HEAD;
use super::device::Disk;
use super::table::{Scheme, Table, u64_at};
use super::volume::{Files, Volume, hides};
use super::{Expect, Finding, failed, passed, skipped};
use crate::format::gpt::{BIOS_BOOT, ESP};
use crate::format::mbr::CODE_SIZE;
use crate::system::Firmware;
use crate::units::{MIB, SECTOR};

/// An EFI system partition on a disk with an MBR.
const ESP_MBR_TYPE: u8 = 0xef;
/// A boot loader larger than this is not searched for the configuration within it.
const LARGEST_LOADER: usize = 16 * MIB as usize;
/// Where GRUB's boot.img keeps the sector of the core image (GRUB_BOOT_MACHINE_KERNEL_SECTOR).
const GRUB_KERNEL_SECTOR: usize = 0x5c;

/// The boot code of the first sector, and what it loads.
pub(super) fn bios(disk: &Disk, table: &Table, expect: &Expect) -> Finding {
    if expect.firmware == Firmware::Uefi {
        return skipped("the image boots under UEFI only");
    }
    if table.scheme == Scheme::None {
        return skipped("there is no partition table");
    }
    let code = &table.first_sector[..CODE_SIZE];
    if code.iter().all(|&b| b == 0) {
        return failed(
            "the first sector holds no boot code, so that a BIOS finds nothing to start: install one (grub-install \
             --target=i386-pc), or say that the image is for UEFI only",
        );
    }
    let is_grub = code.windows(4).any(|w| w == b"GRUB");
    let partition = table.partitions.iter().find(|p| p.type_guid == Some(BIOS_BOOT));
    let blank = |at: u64| disk.bytes(at, SECTOR as usize).is_ok_and(|sector| sector.iter().all(|&b| b == 0));
    if let Some(p) = partition.filter(|p| blank(p.start)) {
        return failed(format!(
            "partition {} is for the BIOS boot loader but holds nothing: install it (grub-install --target=i386-pc)",
            p.number
        ));
    }
    if !is_grub {
        return passed("boot code of a maker that isn't known here");
    }
    let sector = u64_at(&table.first_sector, GRUB_KERNEL_SECTOR);
    let Some(at) = sector.checked_mul(SECTOR).filter(|&at| at > 0 && at < disk.size()) else {
        return failed(format!(
            "GRUB's boot code loads its core image from sector {sector}, which is not on this disk: install GRUB anew"
        ));
    };
    if blank(at) {
        return failed(format!(
            "GRUB's boot code loads its core image from sector {sector}, where nothing is: install GRUB anew"
        ));
    }
    match (table.scheme, partition) {
        (Scheme::Gpt, Some(p)) if !(p.start..p.start + p.size).contains(&at) => failed(format!(
            "GRUB's boot code loads its core image from sector {sector}, outside of the BIOS boot partition {}: install GRUB \
             anew",
            p.number
        )),
        (_, Some(p)) => passed(format!("GRUB, its core image in partition {}", p.number)),
        (_, None) => passed(format!("GRUB, its core image at sector {sector}")),
    }
}

/// The EFI system partition among the volumes.
fn find_esp(volumes: &[Volume]) -> Option<&Volume> {
    volumes.iter().find(|v| v.partition.type_guid == Some(ESP) || v.partition.mbr_type == ESP_MBR_TYPE)
}

/// Whether there is an EFI system partition that firmware can read.
pub(super) fn esp(table: &Table, volumes: &[Volume], expect: &Expect) -> Finding {
    if expect.firmware == Firmware::Bios {
        return skipped("the image boots under BIOS only");
    }
    if table.scheme == Scheme::None {
        return skipped("there is no partition table");
    }
    let Some(esp) = find_esp(volumes) else {
        return failed(
            "there is no EFI system partition, so that UEFI firmware finds nothing to start: add one with a boot loader, or \
             say that the image is for BIOS only",
        );
    };
    let place = esp.place();
    match (&esp.files, esp.kind) {
        (Files::Fat(_), _) => passed(format!("{place}, a FAT file system")),
        (Files::Damaged(why), "FAT") => {
            failed(format!("the FAT file system of {place} can't be read: {why}"))
        }
        (_, "") => failed(format!(
            "{place} is the EFI system partition but holds no file system: format it as FAT and install a boot loader"
        )),
        (_, kind) => {
            failed(format!("{place} is the EFI system partition but holds {kind}; firmware reads only FAT"))
        }
    }
}

/// Whether a program for this machine lies where firmware looks for it without further entries.
pub(super) fn efi(volumes: &[Volume], expect: &Expect) -> Finding {
    if expect.firmware == Firmware::Bios {
        return skipped("the image boots under BIOS only");
    }
    let Some(esp) = find_esp(volumes).filter(|v| v.is_read()) else {
        return skipped("there is no EFI system partition that can be read");
    };
    let path = removable_loader(expect.arch);
    let (bytes, size) = match esp.head(path, LARGEST_LOADER) {
        Err(why) => return failed(format!("/{path} on {} can't be read: {why}", esp.place())),
        Ok(None) => return failed(missing(esp, path, expect)),
        Ok(Some(found)) => found,
    };
    let Some(program) = pe(&bytes[..bytes.len().min(HEAD)]) else {
        let what = if size == 0 { "is empty" } else { "is no PE/COFF program" };
        return failed(format!("/{path} on {} {what}: install the boot loader anew", esp.place()));
    };
    if program.machine != pe_machine(expect.arch) {
        return failed(format!(
            "/{path} is a program for {}, but the machine is {}: install the boot loader of that architecture",
            pe_machine_name(program.machine),
            expect.arch
        ));
    }
    let searched = embedded_search(&bytes);
    if let Some(uuid) = searched.as_ref().filter(|uuid| is_absent(volumes, uuid)) {
        return failed(format!(
            "GRUB in /{path} searches for the file system UUID={uuid}, which isn't on this disk: give the root this UUID back \
             (tune2fs -U), or install GRUB anew"
        ));
    }
    let kind = if searched.is_some() { "GRUB, which finds its file system" } else { "a program" };
    passed(format!("/{path} on {}, {kind}, for {}", esp.place(), expect.arch))
}

fn is_absent(volumes: &[Volume], uuid: &str) -> bool {
    hides(volumes).is_none() && !volumes.iter().any(|v| v.is_named(&format!("UUID={uuid}")))
}

/// What to say of a loader that isn't there; another architecture's is named.
fn missing(esp: &Volume, path: &str, expect: &Expect) -> String {
    let names = esp.list("EFI/BOOT");
    let other = names.iter().find(|n| {
        let name = n.to_ascii_uppercase();
        name.starts_with("BOOT") && name.ends_with(".EFI")
    });
    let vendors: Vec<String> =
        esp.list("EFI").into_iter().filter(|n| !n.eq_ignore_ascii_case("boot")).collect();
    let why = match (other, vendors.is_empty()) {
        (Some(other), _) => {
            format!("; there is EFI/BOOT/{other}, of another architecture than {}", expect.arch)
        }
        (None, false) => format!(
            "; EFI/{} is only started through an entry in a machine's own memory, which a new machine doesn't have",
            vendors.join(", EFI/")
        ),
        (None, true) => String::new(),
    };
    format!(
        "/{path} is missing on {}{why}: install the boot loader there (grub-install --removable, bootctl install)",
        esp.place()
    )
}

/// The UUID for which a GRUB image's own configuration searches, when it has one that does.
fn embedded_search(bytes: &[u8]) -> Option<String> {
    const COMMAND: &[u8] = b"search.fs_uuid ";
    let at = memchr::memmem::find_iter(bytes, COMMAND);
    // The command's name stands in GRUB's module as well, without a value.
    at.map(|at| &bytes[at + COMMAND.len()..]).find_map(|rest| {
        let end = rest.iter().take(64).position(|&b| !(b.is_ascii_hexdigit() || b == b'-'))?;
        let value = std::str::from_utf8(&rest[..end]).ok()?;
        (value.len() >= 9).then(|| value.to_owned())
    })
}
