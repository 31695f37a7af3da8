//! A layout as a table for people.

use std::fmt;

use super::{Holds, Layout, Partition};

const HEADINGS: [&str; 8] = ["no", "name", "type", "first", "last", "size", "GUID", "holds"];
/// Columns with numbers, which are aligned to the right.
const RIGHT: [bool; 8] = [true, false, false, true, true, true, false, false];

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: Vec<[String; 8]> = self.partitions.iter().map(row).collect();
        let mut widths = HEADINGS.map(str::len);
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        writeln!(
            f,
            "disk of {} ({} blocks of 512 bytes), GUID {}",
            self.size,
            self.size.sectors(),
            self.guid
        )?;
        for row in std::iter::once(HEADINGS.map(str::to_owned)).chain(rows) {
            let cells = row.iter().zip(widths).zip(RIGHT).map(|((cell, width), right)| {
                if right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
            });
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

fn row(p: &Partition) -> [String; 8] {
    [
        p.number.to_string(),
        p.name.clone(),
        kind(p),
        p.first.to_string(),
        p.last.to_string(),
        p.size().to_string(),
        p.guid.to_string(),
        p.holds.to_string(),
    ]
}

/// The type's usual name, or the first part of its GUID.
fn kind(p: &Partition) -> String {
    match (&p.holds, p.type_guid) {
        (Holds::GrubCore, crate::format::gpt::BIOS_BOOT) => "BIOS boot".to_owned(),
        (_, crate::format::gpt::ESP) => "EFI system".to_owned(),
        (_, super::TYPE_LINUX) => "Linux".to_owned(),
        (_, t) if t == super::root_type(crate::arch::Arch::Amd64) => "root x86-64".to_owned(),
        (_, t) if t == super::root_type(crate::arch::Arch::Arm64) => "root arm64".to_owned(),
        (_, t) => t.to_string()[..8].to_owned(),
    }
}

impl fmt::Display for Holds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holds::GrubCore => f.write_str("GRUB for BIOS"),
            Holds::Esp { serial } => {
                write!(f, "GRUB for UEFI, FAT32 {:04X}-{:04X}", serial >> 16, serial & 0xffff)
            }
            Holds::Ext4 { fs, mount } => {
                write!(f, "ext4 {}", fs.uuid)?;
                match mount {
                    Some(mount) => write!(f, " on /{mount}"),
                    None => f.write_str(", empty"),
                }
            }
            Holds::Swap => f.write_str("swap, made at first boot"),
            Holds::Nothing => f.write_str("nothing"),
        }
    }
}
