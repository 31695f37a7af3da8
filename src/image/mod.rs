//! Writes a layout and a tree into a sparse raw file.
//!
//! Nothing of it needs privilege: partition table, boot code and file systems are computed as pieces that lie somewhere on
//! the disk, and the disk is put together from them block by block. The file grows under a temporary name beside the target
//! and is renamed when it is whole.

mod add;
mod assemble;
mod blocks;
mod boot_files;
mod erofs;
mod ext4;
mod holes;

pub use add::{AddError, AddJob, add};
pub use blocks::{block_digest, block_map, block_map_of, sha256};
pub use boot_files::{BootFiles, boot_files, boot_files_of_store};
pub use erofs::{SystemFile, SystemJob, UefiPrograms, uefi_programs, write as write_system, write_base};

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use crate::artifact::RawImage;
use crate::boot::BootError;
use crate::boot::grub::{self, GrubError};
use crate::format::ext4::Ext4Error;
use crate::format::fat::{FatError, Volume};
use crate::format::gpt::{BACKUP_SECTORS, GptError};
use crate::format::mbr;
use crate::format::piece::Piece;
use crate::host::fs::{FileError, NewFile};
use crate::host::interrupt::Interrupted;
use crate::host::tools::ToolError;
use crate::layout::{Holds, Layout, Partition, Placed};
use crate::tree::{Packs, Tree, TreePath};
use crate::units::{Lba, SECTOR};

/// Packages of the tools tree that writing an image takes, for images of amd64; their dependencies come with them.
pub const TOOL_PACKAGES: [&str; 3] = ["grub-common", "grub-pc-bin", "grub-efi-amd64-bin"];

/// Those that the store layout takes beside them; e2fsprogs for adding generations to disks that machines have written to.
pub const STORE_TOOL_PACKAGES: [&str; 3] = ["e2fsprogs", "erofs-utils", "systemd-boot-efi"];

/// Label of the ESP's file system.
const ESP_LABEL: &str = "ESP";

/// What an image is made of.
#[derive(Clone, Copy)]
pub struct WriteJob<'a> {
    /// The planned disk.
    pub layout: &'a Layout,
    /// All that goes onto its file systems.
    pub tree: &'a Tree,
    /// Where packed contents are.
    pub packs: &'a dyn Packs,
    /// Paths that come last on the disk because the profile adds them: a change then moves few blocks. Directories that
    /// only the profile brings are named as well. Files that packages brought and the profile edits need not be.
    pub late: &'a BTreeSet<TreePath>,
    /// GRUB's images.
    pub boot: &'a BootFiles,
    /// The time stamped on file systems, in seconds since 1970.
    pub epoch: i64,
}

/// An image that could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file of the host.
    #[error(transparent)]
    File(#[from] FileError),
    /// A tool that is missing.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A tool that failed.
    #[error("{program} failed ({status}):\n{output}")]
    Failed {
        /// Which.
        program: &'static str,
        /// How it ended.
        status: String,
        /// What it said.
        output: String,
    },
    /// The partition table.
    #[error(transparent)]
    Gpt(#[from] GptError),
    /// The EFI system partition.
    #[error(transparent)]
    Fat(#[from] FatError),
    /// GRUB's images.
    #[error(transparent)]
    Grub(#[from] GrubError),
    /// The machine can't be booted.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The tree's contents can't be read, or the archive of them not be handed to mkfs.erofs.
    #[error("can't read the tree's files for {partition}: {source}")]
    Tree {
        /// What was to hold them.
        partition: String,
        /// Why.
        source: io::Error,
    },
    /// A file system that the tree can't be written to.
    #[error("partition `{partition}`: {source}")]
    Ext4 {
        /// The partition that was to be filled.
        partition: String,
        /// Why.
        source: Ext4Error,
    },
    /// The user asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Writes the image to `out`, which appears when it is whole and replaces what was there.
///
/// # Errors
/// [`ImageError`]; nothing is left behind.
pub fn write(job: &WriteJob<'_>, out: &Path) -> Result<RawImage, ImageError> {
    let wrong = |what| FileError::at(what, out);
    let new = NewFile::at(out)?;
    let file = new.file();
    file.set_len(job.layout.size.0).map_err(wrong("can't write"))?;
    let placed: Vec<Vec<Placed<'_>>> = job.layout.partitions.iter().map(|p| placed(job, p)).collect();
    let mut pieces = table(job)?;
    for (partition, nodes) in job.layout.partitions.iter().zip(&placed) {
        pieces.extend(contents(job, partition, nodes)?);
    }
    crate::host::interrupt::check()?;
    let map = assemble::assemble(file, job.layout.size.0, pieces, job.packs);
    crate::host::interrupt::check()?;
    let map = map.map_err(wrong("can't write"))?;
    holes::settle(file, &map).map_err(wrong("can't write"))?;
    let blocks = map.digest();
    new.finish()?;
    Ok(RawImage { path: out.to_owned(), size: job.layout.size, blocks })
}

fn placed<'a>(job: &WriteJob<'a>, partition: &Partition) -> Vec<Placed<'a>> {
    match &partition.holds {
        Holds::Ext4 { mount, .. } => ext4::placed(job, mount.as_deref()),
        _ => Vec::new(),
    }
}

/// What lies on a partition.
fn contents<'a>(
    job: &WriteJob<'_>,
    partition: &'a Partition,
    nodes: &'a [Placed<'a>],
) -> Result<Vec<Piece<'a>>, ImageError> {
    match &partition.holds {
        Holds::GrubCore => {
            let core = grub::place_core(&job.boot.core_img, partition.first, partition.size().0)?;
            Ok(vec![Piece::bytes(partition.offset().0, core)])
        }
        Holds::Esp { serial } => esp(job, partition, *serial),
        Holds::Ext4 { fs, .. } => ext4::pieces(job, partition, fs, nodes),
        Holds::Swap | Holds::Nothing => Ok(Vec::new()),
    }
}

/// Protective MBR with GRUB's boot code, and both copies of the partition table.
fn table(job: &WriteJob<'_>) -> Result<Vec<Piece<'static>>, ImageError> {
    let layout = job.layout;
    let table = layout.table();
    let encoded = table.encode()?;
    let code = match layout.partitions.iter().find(|p| p.holds == Holds::GrubCore) {
        Some(core) => grub::boot_code(&job.boot.boot_img, core.first)?,
        None => [0; mbr::CODE_SIZE],
    };
    Ok(vec![
        Piece::bytes(0, mbr::protective(&code, table.sectors).to_vec()),
        Piece::bytes(SECTOR, encoded.primary),
        Piece::bytes(Lba(table.sectors - BACKUP_SECTORS).offset().0, encoded.backup),
    ])
}

fn esp(job: &WriteJob<'_>, partition: &Partition, id: u32) -> Result<Vec<Piece<'static>>, ImageError> {
    let hidden_sectors = u32::try_from(partition.first.0).unwrap_or(u32::MAX);
    let volume = Volume {
        size: partition.size(),
        hidden_sectors,
        id,
        label: ESP_LABEL,
        time: job.epoch,
        files: &job.boot.esp,
    };
    let base = partition.offset().0;
    let mut pieces = Vec::new();
    volume.write(|at, bytes| {
        pieces.push(Piece::bytes(base + at, bytes.to_vec()));
        Ok(())
    })?;
    Ok(pieces)
}
