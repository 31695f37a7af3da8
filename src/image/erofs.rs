//! Writes a tree as an immutable file system: EROFS, and behind it the hash tree of dm-verity.
//!
//! It is written in two parts, the second on top of the first. mkfs.erofs lays files in the order of their paths, so that one
//! file more below /etc would move all of /usr: what changes often is the second part, and lies behind the first.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use kiln_guest::verity::{self, RootHash};
use uuid::Uuid;

use super::ImageError;
use super::boot_files::run;
use crate::digest::Digest;
use crate::format::tar;
use crate::host::fs::FileError;
use crate::host::tools;
use crate::tree::{Packs, Tree};
use crate::units::Bytes;

/// How files are compressed. LZ4 unpacks at several times the speed of zstd, which a booting machine feels. Of a server's tree the
/// highest level saves another 6 % of the image, and takes 28 s of processor time instead of 1.3 at every change.
const COMPRESSION: &str = "-zlz4hc,1";
/// How much is compressed at once, in bytes: the larger, the smaller the image, and the more is read for one page.
const CLUSTER: &str = "-C65536";

/// What a system's image is made of.
#[derive(Clone, Copy)]
pub struct SystemJob<'a> {
    /// What is in the part that is written; that of the first has all the directories above it once more.
    pub tree: &'a Tree,
    /// Where packed contents are.
    pub packs: &'a dyn Packs,
    /// UUID of the file system and of its hash tree.
    pub uuid: Uuid,
    /// The time stamped on the file system, in seconds since 1970.
    pub epoch: i64,
    /// The tools tree.
    pub tools: &'a Path,
}

/// A written image of a system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SystemFile {
    /// SHA-256 of all of it.
    pub digest: Digest,
    /// Its size.
    pub size: Bytes,
    /// The hash that stands for all blocks of its file system.
    pub roothash: RootHash,
}

/// Writes the part of the image that is made first to `out`: an EROFS image of `job.tree`; answers its digest.
///
/// # Errors
/// [`ImageError`] when mkfs.erofs is missing or fails, or a file can't be read or written.
pub fn write_base(job: &SystemJob<'_>, out: &Path) -> Result<Digest, ImageError> {
    make(job, false, out)?;
    Ok(digest(out)?.0)
}

/// Writes the image to `out`: `job.tree` on top of the image `base`, and the hash tree behind both.
///
/// # Errors
/// As [`write_base`].
pub fn write(job: &SystemJob<'_>, base: &Path, out: &Path) -> Result<SystemFile, ImageError> {
    fs::copy(base, out).map_err(FileError::at("can't copy", base))?;
    let wrong = |what| FileError::at(what, out);
    // Blobs are read-only, and so are their copies.
    fs::set_permissions(out, Permissions::from_mode(0o600)).map_err(wrong("can't write"))?;
    make(job, true, out)?;
    let mut file = OpenOptions::new().read(true).write(true).open(out).map_err(wrong("can't open"))?;
    let size = file.metadata().map_err(wrong("can't read"))?.len().next_multiple_of(verity::BLOCK as u64);
    let tree = verity::tree(BufReader::with_capacity(1 << 20, &file), job.uuid.into_bytes());
    let tree = tree.map_err(wrong("can't read"))?;
    file.set_len(size).map_err(wrong("can't write"))?;
    file.seek(SeekFrom::End(0)).and_then(|_| file.write_all(&tree.bytes)).map_err(wrong("can't write"))?;
    let (digest, size) = digest(out)?;
    Ok(SystemFile { digest, size: Bytes(size), roothash: tree.root })
}

/// Streams the tree to mkfs.erofs.
fn make(job: &SystemJob<'_>, on_top: bool, out: &Path) -> Result<(), ImageError> {
    let mut command = tools::command(job.tools, "mkfs.erofs")?;
    command.args(["--quiet", "--tar=f", COMPRESSION, CLUSTER, "-b4096"]);
    command.arg(format!("-U{}", job.uuid)).arg(format!("-T{}", job.epoch)).arg("--mkfs-time");
    if on_top {
        command.arg("--incremental=data");
    }
    // Without a source it reads its standard input.
    command.arg(out);
    run("mkfs.erofs", command, |pipe| {
        stream(job, pipe)
            .map_err(|source| ImageError::Tree { partition: "the system's image".into(), source })
    })
}

fn digest(path: &Path) -> Result<(Digest, u64), FileError> {
    let wrong = FileError::at("can't read", path);
    File::open(path).and_then(Digest::of_reader).map_err(wrong)
}

fn stream(job: &SystemJob<'_>, pipe: &mut dyn Write) -> std::io::Result<()> {
    let mut writer = tar::Writer::new(pipe, job.packs);
    for (path, node) in job.tree.iter() {
        if crate::host::interrupt::check().is_err() {
            return Err(std::io::Error::other("interrupted"));
        }
        writer.entry(path, node)?;
    }
    writer.finish().map(drop)
}

/// systemd's programs for UEFI in a tools tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UefiPrograms {
    /// systemd-boot.
    pub loader: Vec<u8>,
    /// The stub of unified kernel images.
    pub stub: Vec<u8>,
}

/// Reads them.
///
/// # Errors
/// When one is missing.
pub fn uefi_programs(tools: &Path) -> Result<UefiPrograms, FileError> {
    let read = |name: &str| {
        let path = tools.join("usr/lib/systemd/boot/efi").join(name);
        fs::read(&path).map_err(FileError::at("can't read", &path))
    };
    Ok(UefiPrograms { loader: read("systemd-bootx64.efi")?, stub: read("linuxx64.efi.stub")? })
}
