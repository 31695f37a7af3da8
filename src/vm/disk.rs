//! Disks that a machine may write to while the image stays as it is: a qcow2 overlay that holds only what was written.
//!
//! The overlay is made here, without qemu-img: an empty qcow2 file is a header, one refcount table with one block, and an
//! empty L1 table (QEMU's docs/interop/qcow2.txt, version 3).

use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::machine::Format;
use crate::host::fs::FileError;
use crate::units::{Bytes, SECTOR};

const MAGIC: [u8; 4] = *b"QFI\xfb";
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// What one entry of the L1 table maps: a cluster full of 8-byte entries, each of them a cluster.
const L1_REACH: u64 = CLUSTER / 8 * CLUSTER;
/// Length of a version 3 header without extensions.
const HEADER: u32 = 104;
/// Header extension that names the backing file's format.
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// qcow2 allows no longer name of the backing file.
const NAME_LIMIT: usize = 1023;
/// Refcounts (16 bits each) in the one refcount block: more clusters than the tables of any disk take.
const REFCOUNTS: u64 = CLUSTER / 2;

/// Why an image can't be booted from.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A file can't be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The image is damaged or not an image at all.
    #[error("{}: no disk image: {why}", path.display())]
    NoImage {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The disk is asked to be smaller than the image.
    #[error("the disk can't be {asked}: the image has {image} (give at least that)")]
    TooSmall {
        /// The size that was asked for.
        asked: Bytes,
        /// The image's size.
        image: Bytes,
    },
    /// The path doesn't fit into a qcow2 header, or the disk is too large for the overlay.
    #[error("{}: {why}", path.display())]
    Limit {
        /// The file.
        path: PathBuf,
        /// Which limit.
        why: &'static str,
    },
}

/// An image as a guest sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Absolute path of its file.
    pub path: PathBuf,
    /// How the file is laid out.
    pub format: Format,
    /// Size of the disk.
    pub size: Bytes,
}

impl Image {
    /// Looks at a file: qcow2 by its magic number, else raw.
    ///
    /// # Errors
    /// [`DiskError`] when it can't be read, is no regular file or empty, or has a qcow2 header that makes no sense.
    pub fn open(path: &Path) -> Result<Image, DiskError> {
        let wrong = || FileError::at("can't read", path);
        let no_image = |why: String| DiskError::NoImage { path: path.to_owned(), why };
        let mut file = File::open(path).map_err(wrong())?;
        let metadata = file.metadata().map_err(wrong())?;
        if !metadata.is_file() {
            return Err(no_image("it is no regular file".to_owned()));
        }
        let absolute = std::path::absolute(path).map_err(wrong())?;
        let mut header = [0; 32];
        let read = read_up_to(&mut file, &mut header).map_err(wrong())?;
        if !header.starts_with(&MAGIC) {
            let size = Bytes(metadata.len());
            return match size.0 {
                0 => Err(no_image("it is empty".to_owned())),
                _ => Ok(Image { path: absolute, format: Format::Raw, size }),
            };
        }
        if read < header.len() {
            return Err(no_image(format!("its qcow2 header ends after {read} bytes")));
        }
        // Offset 24: size of the disk in bytes, big endian, as everything in qcow2.
        let size = u64::from_be_bytes(header[24..32].try_into().expect("8 bytes"));
        if size == 0 {
            return Err(no_image("its qcow2 header says that the disk has 0 bytes".to_owned()));
        }
        Ok(Image { path: absolute, format: Format::Qcow2, size: Bytes(size) })
    }
}

fn read_up_to(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read(&mut buffer[read..])? {
            0 => break,
            n => read += n,
        }
    }
    Ok(read)
}

/// Makes the new file `path`: an empty overlay over `image`, as a disk of `size` (the image's own when not given).
///
/// # Errors
/// [`DiskError`]: `size` is below the image's, a limit of qcow2, or the file can't be written or exists.
pub fn create_overlay(path: &Path, image: &Image, size: Option<Bytes>) -> Result<(), DiskError> {
    let size = size.unwrap_or(image.size).round_up(SECTOR);
    if size < image.size {
        return Err(DiskError::TooSmall { asked: size, image: image.size });
    }
    let limit = |why| DiskError::Limit { path: image.path.clone(), why };
    let name = image.path.as_os_str().as_bytes();
    if name.len() > NAME_LIMIT {
        return Err(limit("its path is longer than the 1023 bytes that qcow2 allows for a backing file"));
    }
    let l1_entries = size.0.div_ceil(L1_REACH);
    let l1_clusters = (l1_entries * 8).div_ceil(CLUSTER);
    let clusters = 3 + l1_clusters;
    if clusters > REFCOUNTS || u32::try_from(l1_entries).is_err() {
        return Err(limit("the disk is too large for an overlay"));
    }
    let mut table = [0; 8];
    table.copy_from_slice(&(2 * CLUSTER).to_be_bytes());
    let counts: Vec<u8> = (0..clusters).flat_map(|_| 1u16.to_be_bytes()).collect();

    let wrong = || FileError::at("can't write", path);
    let file = File::options().write(true).create_new(true).open(path).map_err(wrong())?;
    file.set_len(clusters * CLUSTER).map_err(wrong())?;
    file.write_all_at(&header(name, image.format, size, l1_entries as u32), 0).map_err(wrong())?;
    file.write_all_at(&table, CLUSTER).map_err(wrong())?;
    file.write_all_at(&counts, 2 * CLUSTER).map_err(wrong())?;
    Ok(())
}

/// The first cluster: header, the backing format as extension, the backing file's name. Cluster 1 is the refcount table,
/// 2 its block, 3 and on the L1 table.
fn header(name: &[u8], format: Format, size: Bytes, l1_entries: u32) -> Vec<u8> {
    let format = format.name().as_bytes();
    let mut extensions = Vec::new();
    extensions.extend(BACKING_FORMAT.to_be_bytes());
    extensions.extend((format.len() as u32).to_be_bytes());
    extensions.extend(format);
    extensions.resize(extensions.len().next_multiple_of(8), 0);
    extensions.extend([0; 8]); // end of the extensions
    let name_at = u64::from(HEADER) + extensions.len() as u64;

    let mut bytes = MAGIC.to_vec();
    let u32s =
        |bytes: &mut Vec<u8>, values: &[u32]| values.iter().for_each(|v| bytes.extend(v.to_be_bytes()));
    u32s(&mut bytes, &[3]);
    bytes.extend(name_at.to_be_bytes());
    u32s(&mut bytes, &[name.len() as u32, CLUSTER_BITS]);
    bytes.extend(size.0.to_be_bytes());
    u32s(&mut bytes, &[0, l1_entries]); // not encrypted
    bytes.extend((3 * CLUSTER).to_be_bytes());
    bytes.extend(CLUSTER.to_be_bytes());
    u32s(&mut bytes, &[1, 0]); // one cluster of refcount table, no snapshots
    bytes.extend([0; 8 + 3 * 8]); // snapshots' offset; incompatible, compatible and autoclear features
    u32s(&mut bytes, &[4, HEADER]); // refcounts of 1 << 4 bits
    bytes.extend(extensions);
    bytes.extend(name);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(folder: &Path, size: u64) -> Image {
        let path = folder.join("image.raw");
        File::create(&path).unwrap().set_len(size).unwrap();
        Image::open(&path).unwrap()
    }

    #[test]
    fn an_overlay_is_an_image_of_the_asked_size() {
        let folder = tempfile::tempdir().unwrap();
        let image = image(folder.path(), 3 << 20);
        assert_eq!((image.format, image.size), (Format::Raw, Bytes(3 << 20)));
        let overlay = folder.path().join("overlay.qcow2");
        create_overlay(&overlay, &image, Some(Bytes(5 << 30))).unwrap();
        let seen = Image::open(&overlay).unwrap();
        assert_eq!((seen.format, seen.size), (Format::Qcow2, Bytes(5 << 30)));
        assert_eq!(std::fs::metadata(&overlay).unwrap().len(), 4 * CLUSTER);
    }

    #[test]
    fn a_disk_below_its_image_is_refused_with_both_sizes() {
        let folder = tempfile::tempdir().unwrap();
        let image = image(folder.path(), 3 << 20);
        let error = create_overlay(&folder.path().join("o"), &image, Some(Bytes(1 << 20))).unwrap_err();
        assert_eq!(error.to_string(), "the disk can't be 1 MiB: the image has 3 MiB (give at least that)");
        assert!(!folder.path().join("o").exists());
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        for (bytes, why) in [
            (&b""[..], "it is empty"),
            (b"QFI\xfb\0\0\0\x03", "its qcow2 header ends after 8 bytes"),
            (&[&MAGIC[..], &[0; 60]].concat(), "its qcow2 header says that the disk has 0 bytes"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let error = Image::open(&path).unwrap_err().to_string();
            assert!(error.ends_with(why), "{error}");
        }
        assert!(Image::open(folder.path()).unwrap_err().to_string().contains("no regular file"));
    }
}
