//! A system's image as a device that refuses what doesn't amount to its root hash.
//!
//! The image is one file: EROFS, and behind it a dm-verity hash tree. The whole tree is checked here, at each boot; the kernel then
//! checks each block of the data when it is read.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::libc;

use crate::erofs;
use crate::error::{At, FileError};
use crate::sys::{self, DM_IOCTL_SIZE, LOOP_CONFIG_SIZE};
use crate::verity::{BLOCK, RootHash, Superblock, VerityError};

/// What the device is called among those of the device mapper.
pub const DEVICE: &str = "kiln-system";
/// How much is read at once.
const BUFFER: usize = 1 << 20;

/// A system's image that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SystemError {
    /// It is no file system of the kind that it should be.
    #[error("its image is no EROFS with blocks of 4096 bytes: damaged, or not completely written")]
    NotErofs,
    /// A part is missing.
    #[error("its image has {len} bytes, {needed} are needed: not completely written")]
    Short {
        /// How many bytes it has.
        len: u64,
        /// How many it should have.
        needed: u64,
    },
    /// It isn't what the root hash stands for.
    #[error("its image is not the one with root hash {root}: {source}")]
    Verity {
        /// What it should amount to.
        root: RootHash,
        /// Where it differs.
        source: VerityError,
    },
    /// It can't be read, or can't be made a device.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A system's image whose hash tree is right.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    file: File,
    superblock: Superblock,
    root: RootHash,
    hashes: Vec<u8>,
}

impl Image {
    /// Opens an image and checks its hash tree.
    ///
    /// # Errors
    /// [`SystemError`].
    pub fn open(path: &Path, root: RootHash) -> Result<Image, SystemError> {
        let file = File::open(path).at("open", path)?;
        let len = file.metadata().at("read", path)?.len();
        let short = |needed| SystemError::Short { len, needed };
        let mut head = [0; erofs::SUPERBLOCK_SIZE];
        if len < erofs::SUPERBLOCK + head.len() as u64 {
            return Err(short(erofs::SUPERBLOCK + head.len() as u64));
        }
        file.read_exact_at(&mut head, erofs::SUPERBLOCK).at("read", path)?;
        let blocks = erofs::blocks(&head, BLOCK).ok_or(SystemError::NotErofs)?;
        let data = blocks * BLOCK as u64;
        if len < data + BLOCK as u64 {
            return Err(short(data + BLOCK as u64));
        }
        let wrong = |source| SystemError::Verity { root, source };
        let mut superblock = [0; BLOCK];
        file.read_exact_at(&mut superblock, data).at("read", path)?;
        let superblock = Superblock::decode(&superblock).map_err(wrong)?;
        if superblock.data_blocks != blocks {
            return Err(wrong(VerityError::Unsupported("it is that of an image of another size")));
        }
        let needed = data + superblock.blocks() * BLOCK as u64;
        if len < needed {
            return Err(short(needed));
        }
        let mut tree = BufReader::with_capacity(BUFFER, &file);
        tree.seek(SeekFrom::Start(data + BLOCK as u64)).at("read", path)?;
        let hashes = superblock.check(tree, &root).map_err(wrong)?;
        Ok(Image { path: path.to_owned(), file, superblock, root, hashes })
    }

    /// Checks every block of the data too.
    ///
    /// # Errors
    /// [`SystemError::Verity`] for the first one that is wrong.
    pub fn check_data(&self) -> Result<(), SystemError> {
        let mut data = &self.file;
        data.seek(SeekFrom::Start(0)).at("read", &self.path)?;
        let data = BufReader::with_capacity(BUFFER, data.take(self.superblock.data_blocks * BLOCK as u64));
        self.superblock
            .check_data(data, &self.hashes)
            .map_err(|source| SystemError::Verity { root: self.root, source })
    }

    /// Makes it a device.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn device(&self) -> Result<PathBuf, FileError> {
        // Kept open until the other device has it: it goes as soon as nobody has.
        let (behind, _open) = loop_device(&self.file, &self.path)?;
        let path = Path::new("/dev/mapper/control");
        let control = OpenOptions::new().read(true).write(true).open(path).at("open", path)?;
        let number = self.create(&control, &behind).at("make a device of", &self.path)?;
        let node = PathBuf::from(format!("/dev/dm-{number}"));
        if node.exists() { Ok(node) } else { Err(io::Error::from(io::ErrorKind::NotFound)).at("find", node) }
    }

    fn create(&self, control: &File, behind: &Path) -> io::Result<u64> {
        let uuid: String = self.superblock.uuid.iter().map(|byte| format!("{byte:02x}")).collect();
        // As veritysetup(8) names them, so that it and lsblk(8) know what it is.
        let uuid = format!("CRYPT-VERITY-{uuid}-{DEVICE}");
        let mut created = request(DEVICE, &uuid, 0, &[]);
        sys::device_mapper(control.as_fd(), DM_DEV_CREATE, &mut created)?;
        let table = self.table(behind);
        let length = self.superblock.data_blocks * (BLOCK as u64 / 512);
        let target = target(length, "verity", &table);
        sys::device_mapper(control.as_fd(), DM_TABLE_LOAD, &mut request(DEVICE, "", READ_ONLY, &target))?;
        // "Suspending" without the flag that asks for it resumes.
        let mut resumed = request(DEVICE, "", 0, &[]);
        sys::device_mapper(control.as_fd(), DM_DEV_SUSPEND, &mut resumed)?;
        let mut device = [0; 8];
        device.copy_from_slice(&resumed[40..48]);
        let device = u64::from_ne_bytes(device);
        // The kernel's huge_encode_dev().
        Ok(device & 0xff | device >> 12 & 0xf_ff00)
    }

    /// Kernel documentation: admin-guide/device-mapper/verity.rst.
    fn table(&self, behind: &Path) -> String {
        let Superblock { data_blocks, salt, .. } = &self.superblock;
        let salt = match salt.as_slice() {
            [] => "-".to_owned(),
            salt => salt.iter().map(|byte| format!("{byte:02x}")).collect(),
        };
        // A system of which a part is lost is not to run on with what a program makes of an input error.
        format!(
            "1 {0} {0} {BLOCK} {BLOCK} {data_blocks} {1} sha256 {2} {salt} 1 panic_on_corruption",
            behind.display(),
            data_blocks + 1,
            self.root
        )
    }
}

const DM_DEV_CREATE: u8 = 3;
const DM_DEV_SUSPEND: u8 = 6;
const DM_TABLE_LOAD: u8 = 9;
const READ_ONLY: u32 = 1;

/// A request to the device mapper: `struct dm_ioctl` of linux/dm-ioctl.h, and a target behind it.
fn request(name: &str, uuid: &str, flags: u32, target: &[u8]) -> Vec<u8> {
    let mut request = vec![0; DM_IOCTL_SIZE];
    for (at, value) in
        [(0, 4u32), (16, DM_IOCTL_SIZE as u32), (20, u32::from(!target.is_empty())), (28, flags)]
    {
        request[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    request[48..48 + name.len()].copy_from_slice(name.as_bytes());
    request[176..176 + uuid.len()].copy_from_slice(uuid.as_bytes());
    request.extend_from_slice(target);
    request
}

/// One target: `struct dm_target_spec`, and its parameters.
fn target(sectors: u64, kind: &str, parameters: &str) -> Vec<u8> {
    const SPEC: usize = 40;
    let mut target = vec![0; SPEC];
    target[8..16].copy_from_slice(&sectors.to_ne_bytes());
    target[24..24 + kind.len()].copy_from_slice(kind.as_bytes());
    target.extend_from_slice(parameters.as_bytes());
    target.push(0);
    target.resize(target.len().next_multiple_of(8), 0);
    let len = target.len() as u32;
    target[20..24].copy_from_slice(&len.to_ne_bytes());
    target
}

/// Shows a file as a block device that can't be written and that goes when nobody uses it any longer.
fn loop_device(file: &File, path: &Path) -> Result<(PathBuf, File), FileError> {
    const READ_ONLY_AUTOCLEAR: u32 = 1 | 4;
    let control = Path::new("/dev/loop-control");
    let control = OpenOptions::new().read(true).write(true).open(control).at("open", control)?;
    loop {
        let number = sys::free_loop_device(control.as_fd()).at("find a loop device for", path)?;
        let node = PathBuf::from(format!("/dev/loop{number}"));
        let device = File::open(&node).at("open", &node)?;
        let mut config = [0; LOOP_CONFIG_SIZE];
        let fd = std::os::fd::AsRawFd::as_raw_fd(file) as u32;
        // `struct loop_config` of linux/loop.h: the file, the size of a block, then `struct loop_info64`.
        for (at, value) in [(0, fd), (4, BLOCK as u32), (8 + 52, READ_ONLY_AUTOCLEAR)] {
            config[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        let len = name.len().min(63);
        config[8 + 56..8 + 56 + len].copy_from_slice(&name[..len]);
        match sys::configure_loop_device(device.as_fd(), &config) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
            result => {
                result.at("make a loop device of", path)?;
                return Ok((node, device));
            }
        }
    }
}
