//! The system calls that have no safe wrapper elsewhere. The only module of the guest with `unsafe` in it.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::libc;

/// `LOOP_CTL_GET_FREE` of linux/loop.h.
const LOOP_CTL_GET_FREE: u64 = 0x4C82;
/// `LOOP_CONFIGURE` of linux/loop.h.
const LOOP_CONFIGURE: u64 = 0x4C0A;
/// `BLKPG` of linux/blkpg.h.
const BLKPG: u64 = 0x1269;
/// `EXT4_IOC_RESIZE_FS`: `_IOW('f', 16, __u64)`.
const EXT4_IOC_RESIZE_FS: u64 = 0x4008_6610;
/// `sizeof(struct loop_config)`.
pub const LOOP_CONFIG_SIZE: usize = 304;
/// `sizeof(struct dm_ioctl)`: the least that a request to the device mapper has.
pub const DM_IOCTL_SIZE: usize = 312;
/// The group of netlink's uevents that the kernel itself sends to.
const KERNEL_EVENTS: u32 = 1;

fn checked(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A path as the kernel wants it.
fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Loads a kernel module.
///
/// # Errors
/// The kernel's; `EEXIST` when it is there already.
pub fn load_module(file: BorrowedFd<'_>, parameters: &CStr) -> io::Result<()> {
    // SAFETY: the descriptor is open, the string ends with a zero and outlives the call, which copies it.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), 0) };
    checked(result as i64).map(drop)
}

/// The number of a loop device that nobody uses.
///
/// # Errors
/// The kernel's.
pub fn free_loop_device(control: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: this request takes no argument.
    let result = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) };
    checked(i64::from(result)).map(|number| number as u32)
}

/// Makes a loop device show a file; `config` is a `struct loop_config`.
///
/// # Errors
/// The kernel's; `EBUSY` when somebody else was faster.
pub fn configure_loop_device(device: BorrowedFd<'_>, config: &[u8; LOOP_CONFIG_SIZE]) -> io::Result<()> {
    // SAFETY: the kernel reads exactly `LOOP_CONFIG_SIZE` bytes there.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, config.as_ptr()) };
    checked(i64::from(result)).map(drop)
}

/// A request to the device mapper. `request` begins with a `struct dm_ioctl`, whose `data_size` this function sets.
///
/// # Errors
/// The kernel's, and `InvalidInput` for a request that is too short.
pub fn device_mapper(control: BorrowedFd<'_>, number: u8, request: &mut [u8]) -> io::Result<()> {
    let size = u32::try_from(request.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    match request.get_mut(12..16) {
        Some(data_size) if size as usize >= DM_IOCTL_SIZE => data_size.copy_from_slice(&size.to_ne_bytes()),
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    }
    // `_IOWR(0xfd, number, struct dm_ioctl)`.
    let code = (3u64 << 30) | ((DM_IOCTL_SIZE as u64) << 16) | (0xfd << 8) | u64::from(number);
    // SAFETY: the kernel reads and writes at most `data_size` bytes there, which was just set to the slice's length.
    let result = unsafe { libc::ioctl(control.as_raw_fd(), code as _, request.as_mut_ptr()) };
    checked(i64::from(result)).map(drop)
}

/// What is to be done with a partition of which the kernel knows.
#[derive(Debug, Clone, Copy)]
pub enum PartitionChange {
    /// It is made known.
    Add = 1,
    /// Its size changes.
    Resize = 3,
}

/// Tells the kernel of a partition; `start` and `length` in bytes.
///
/// # Errors
/// The kernel's.
pub fn change_partition(
    disk: BorrowedFd<'_>,
    change: PartitionChange,
    number: u32,
    start: u64,
    length: u64,
) -> io::Result<()> {
    #[repr(C)]
    struct Partition {
        start: i64,
        length: i64,
        number: i32,
        names: [u8; 128],
    }
    #[repr(C)]
    struct Argument {
        operation: i32,
        flags: i32,
        size: i32,
        data: *mut Partition,
    }
    let mut data =
        Partition { start: start as i64, length: length as i64, number: number as i32, names: [0; 128] };
    let argument = Argument {
        operation: change as i32,
        flags: 0,
        size: size_of::<Partition>() as i32,
        data: &raw mut data,
    };
    // SAFETY: both structures are laid out as in linux/blkpg.h and outlive the call.
    let result = unsafe { libc::ioctl(disk.as_raw_fd(), BLKPG as _, &raw const argument) };
    checked(i64::from(result)).map(drop)
}

/// Lets a mounted ext4 file system have so many blocks; `file` is its root.
///
/// # Errors
/// The kernel's.
pub fn resize_ext4(file: BorrowedFd<'_>, blocks: u64) -> io::Result<()> {
    // SAFETY: the kernel reads eight bytes there.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), EXT4_IOC_RESIZE_FS as _, &raw const blocks) };
    checked(i64::from(result)).map(drop)
}

/// Lets two files or folders change places, in one step.
///
/// # Errors
/// The kernel's.
pub fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    let (one, other) = (c_path(one)?, c_path(other)?);
    // SAFETY: both strings end with a zero and outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            libc::AT_FDCWD,
            one.as_ptr(),
            libc::AT_FDCWD,
            other.as_ptr(),
            libc::RENAME_EXCHANGE,
        )
    };
    checked(result as i64).map(drop)
}

/// Takes this process out of its mount namespace into a copy of it.
///
/// # Errors
/// The kernel's.
pub fn leave_mount_namespace() -> io::Result<()> {
    // SAFETY: no memory is involved.
    checked(i64::from(unsafe { libc::unshare(libc::CLONE_NEWNS) })).map(drop)
}

/// A socket that tells what becomes of devices (netlink(7), `NETLINK_KOBJECT_UEVENT`).
///
/// # Errors
/// The kernel's.
pub fn device_events() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no memory is involved.
    let fd =
        checked(i64::from(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_KOBJECT_UEVENT) }))?;
    // SAFETY: the descriptor was just opened and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    // SAFETY: a structure of integers, for which zeroes are valid.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as u16;
    address.nl_groups = KERNEL_EVENTS;
    // SAFETY: the kernel reads the structure, whose size is given.
    let result = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_nl>() as u32)
    };
    checked(i64::from(result))?;
    Ok(socket)
}

/// Waits until there is something to read, at most so long; whether there is.
///
/// # Errors
/// The kernel's.
pub fn wait_readable(file: BorrowedFd<'_>, milliseconds: i32) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one structure, and its number is given as one.
    match checked(i64::from(unsafe { libc::poll(&raw mut poll, 1, milliseconds) })) {
        Ok(ready) => Ok(ready > 0),
        Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(false),
        Err(e) => Err(e),
    }
}

/// Names of the extended attributes of a file, which may be a link.
///
/// # Errors
/// The kernel's; none when the file system has no attributes.
pub fn attributes(path: &Path) -> io::Result<Vec<CString>> {
    let path = c_path(path)?;
    let names = grown(|buffer| {
        // SAFETY: the kernel writes at most as many bytes as the buffer has.
        unsafe { libc::llistxattr(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) as i64 }
    });
    match names {
        Ok(names) => Ok(names.split(|b| *b == 0).filter(|n| !n.is_empty()).flat_map(CString::new).collect()),
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// An extended attribute's value.
///
/// # Errors
/// The kernel's.
pub fn attribute(path: &Path, name: &CStr) -> io::Result<Vec<u8>> {
    let path = c_path(path)?;
    grown(|buffer| {
        // SAFETY: the kernel writes at most as many bytes as the buffer has.
        unsafe {
            libc::lgetxattr(path.as_ptr(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) as i64
        }
    })
}

/// Sets an extended attribute.
///
/// # Errors
/// The kernel's.
pub fn set_attribute(path: &Path, name: &CStr, value: &[u8]) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: the kernel reads as many bytes as are given.
    let result =
        unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    checked(i64::from(result)).map(drop)
}

/// Calls with a buffer, and with a larger one for as long as it is too small.
fn grown(mut call: impl FnMut(&mut [u8]) -> i64) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 256];
    loop {
        match checked(call(&mut buffer)) {
            Ok(len) => {
                buffer.truncate(len as usize);
                return Ok(buffer);
            }
            Err(e) if e.raw_os_error() == Some(libc::ERANGE) && buffer.len() < 1 << 20 => {
                buffer.resize(buffer.len() * 4, 0);
            }
            Err(e) => return Err(e),
        }
    }
}
