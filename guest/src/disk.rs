//! Finding the disk and the partition that Kiln's store is on, and letting it take the whole disk.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::console::Console;
use crate::error::{At, FileError};
use crate::gpt::{self, Geometry, Partition, Table};
use crate::modules::Loader;
use crate::sys::{self, PartitionChange};

/// How long a disk may take until it is there: those of machines in a cloud take seconds at worst.
const PATIENCE: Duration = Duration::from_secs(30);
/// After how long somebody who looks at the console is told what is waited for.
const SILENCE: Duration = Duration::from_secs(3);
/// sysfs counts in sectors of this size, whatever the disk's are.
const SYSFS_SECTOR: u64 = 512;
/// Disks that are none, or that show a file of another one.
const NOT_DISKS: [&str; 8] = ["loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd"];

/// A partition that is not there.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// No disk has it.
    #[error("no disk has the partition {partition}; there are: {}", if .disks.is_empty() { "no disks" } else { .disks })]
    NotFound {
        /// Its identity.
        partition: String,
        /// The disks that were looked at.
        disks: String,
    },
    /// A file could not be used.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A partition, and the disk that it is on.
#[derive(Debug)]
pub struct Found {
    /// The disk's device.
    pub disk: PathBuf,
    /// What the kernel calls the disk.
    name: String,
    geometry: Geometry,
    /// The disk's partitions.
    pub table: Table,
    /// The partition that was looked for.
    pub partition: Partition,
}

/// Names of the disks that there are, in order.
fn disks() -> Vec<String> {
    let entries = fs::read_dir("/sys/class/block").into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| !NOT_DISKS.iter().any(|not| name.starts_with(not)));
    names.retain(|name| !Path::new("/sys/class/block").join(name).join("partition").exists());
    names.sort();
    names
}

fn device(name: &str) -> PathBuf {
    Path::new("/dev").join(name.replace('!', "/"))
}

fn attribute(name: &str, attribute: &str) -> Option<u64> {
    let path = Path::new("/sys/class/block").join(name).join(attribute);
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Looks for a partition on the disks that there are now; the first disk that has it is taken.
#[must_use]
pub fn find(partition: &str) -> Option<Found> {
    disks().into_iter().find_map(|name| {
        let sector = attribute(&name, "queue/logical_block_size")?;
        let size = attribute(&name, "size")? * SYSFS_SECTOR;
        let geometry = Geometry { sector, sectors: size.checked_div(sector)? };
        let disk = device(&name);
        let file = File::open(&disk).ok()?;
        let table = Table::read(geometry, &|at, buffer| file.read_exact_at(buffer, at)).ok()??;
        let partition = table.partitions().into_iter().find(|p| p.guid == partition)?;
        Some(Found { disk, name, geometry, table, partition })
    })
}

/// Waits until a partition is there, loading the modules that devices ask for.
///
/// # Errors
/// [`DiskError::NotFound`] when it doesn't come.
pub fn wait(
    partition: &str,
    loader: &mut Loader,
    arguments: &[String],
    console: &Console,
) -> Result<Found, DiskError> {
    let begun = Instant::now();
    // Opened before the first look, so that nothing is missed between the two.
    let events = sys::device_events().at("listen to", "the kernel's events of devices")?;
    let mut told = false;
    loop {
        loader.load_for_devices(arguments).iter().for_each(|e| console.warn(e));
        if let Some(found) = find(partition) {
            if found.node(&found.partition).is_some() {
                return Ok(found);
            }
            if found.table.from_backup() {
                // The kernel only believes the table at the beginning.
                console.warn(format_args!(
                    "the partition table of {} is damaged; its backup is used",
                    found.name
                ));
                found.tell_kernel(PartitionChange::Add, &found.partition)?;
                continue;
            }
        }
        let waited = begun.elapsed();
        if waited >= PATIENCE {
            return Err(DiskError::NotFound { partition: partition.to_owned(), disks: disks().join(", ") });
        }
        if waited >= SILENCE && !told {
            told = true;
            console.say(format_args!("waiting for partition {partition}"));
        }
        let until = if told { PATIENCE } else { SILENCE };
        // A millisecond more than is left, so that the last turn isn't taken too early.
        let left = i32::try_from((until - waited.min(until)).as_millis()).unwrap_or_default() + 1;
        wait_for_event(&events, left).at("wait for", "the kernel's events of devices")?;
    }
}

fn wait_for_event(events: &std::os::fd::OwnedFd, milliseconds: i32) -> io::Result<()> {
    if sys::wait_readable(events.as_fd(), milliseconds)? {
        let mut buffer = [0; 8192];
        // What they say is of no interest: all that changed is looked at anew. The kernel also reports here that it dropped
        // some (ENOBUFS), which comes to the same.
        while nix::unistd::read(events, &mut buffer).is_ok() {}
    }
    Ok(())
}

impl Found {
    /// The device of one of the disk's partitions; `None` while the kernel doesn't show it.
    #[must_use]
    pub fn node(&self, partition: &Partition) -> Option<PathBuf> {
        let folder = Path::new("/sys/class/block").join(&self.name);
        let names =
            fs::read_dir(folder).ok()?.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
        let number = u64::from(partition.number);
        let name = names
            .filter(|n| n.starts_with(&self.name))
            .find(|n| attribute(n, "partition") == Some(number))?;
        let node = device(&name);
        node.exists().then_some(node)
    }

    /// The partition that boot loaders read.
    #[must_use]
    pub fn esp(&self) -> Option<Partition> {
        self.table.partitions().into_iter().find(|p| p.kind == gpt::ESP)
    }

    fn tell_kernel(&self, change: PartitionChange, partition: &Partition) -> Result<(), FileError> {
        let file = File::open(&self.disk).at("open", &self.disk)?;
        let start = partition.first * self.geometry.sector;
        let length = (partition.last + 1 - partition.first) * self.geometry.sector;
        sys::change_partition(file.as_fd(), change, partition.number, start, length)
            .at("change the partitions of", &self.disk)
    }

    /// Lets the partition reach to the end of the disk, when nothing is in its way; whether it has grown.
    ///
    /// # Errors
    /// When the disk can't be written: it then still has one right table at least.
    pub fn grow(&mut self) -> Result<bool, FileError> {
        let Some(growth) = self.table.grow(&self.partition) else { return Ok(false) };
        let disk = OpenOptions::new().read(true).write(true).open(&self.disk).at("open", &self.disk)?;
        for (offset, bytes) in &growth.writes {
            disk.write_all_at(bytes, *offset).at("write the partition table of", &self.disk)?;
            disk.sync_data().at("write the partition table of", &self.disk)?;
        }
        let mut mbr = [0; 512];
        disk.read_exact_at(&mut mbr, 0).at("read", &self.disk)?;
        if let Some(mbr) = gpt::protective_mbr(&mbr, self.geometry) {
            disk.write_all_at(&mbr, 0).at("write the boot record of", &self.disk)?;
            disk.sync_data().at("write the boot record of", &self.disk)?;
        }
        let grown = growth.partition.last != self.partition.last;
        if grown {
            self.tell_kernel(PartitionChange::Resize, &growth.partition)?;
        }
        self.partition = growth.partition;
        Ok(grown)
    }
}

/// Lets an ext4 file system that is mounted at `mounted` take all of its partition; whether it has grown.
///
/// # Errors
/// When it can't be read, or the kernel refuses.
pub fn grow_file_system(node: &Path, mounted: &Path) -> Result<bool, FileError> {
    let mut file = File::open(node).at("open", node)?;
    let mut superblock = [0; 1024];
    file.read_exact_at(&mut superblock, 1024).at("read", node)?;
    let size = io::Seek::seek(&mut file, io::SeekFrom::End(0)).at("measure", node)?;
    let (block, blocks) = ext4_size(&superblock);
    if size / block <= blocks {
        return Ok(false);
    }
    let root = File::open(mounted).at("open", mounted)?;
    sys::resize_ext4(root.as_fd(), size / block).at("enlarge the file system of", node)?;
    Ok(true)
}

/// Size of a block, and how many blocks there are (kernel documentation: filesystems/ext4/globals.rst).
fn ext4_size(superblock: &[u8; 1024]) -> (u64, u64) {
    let number = |at: usize| {
        let bytes = superblock[at..at + 4].iter().rev();
        bytes.fold(0u64, |sum, byte| sum << 8 | u64::from(*byte))
    };
    const HAS_64_BITS: u64 = 0x80;
    let high = if number(0x60) & HAS_64_BITS != 0 { number(0x150) } else { 0 };
    (1024 << number(0x18).min(6), high << 32 | number(0x4))
}
