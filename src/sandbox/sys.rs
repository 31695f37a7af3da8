//! The system calls that have no safe wrapper.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::libc;
use nix::unistd::{ForkResult, fork};

/// Forks. Only for a process that has one thread.
pub(super) fn fork_single_threaded() -> nix::Result<ForkResult> {
    // SAFETY: the callers run at the start of a process of Kiln's own, before any thread was made, so that the child
    // may do everything that the parent may.
    unsafe { fork() }
}

fn answer(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn c_path(path: &[u8]) -> io::Result<CString> {
    CString::new(path).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// Brings up the loopback interface of the network namespace that the process is in.
pub(super) fn loopback_up() -> io::Result<()> {
    // SAFETY: plain system calls; `request` is a valid ifreq for the whole of the second one, all of its bytes set.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(socket);
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        answer(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request))
    }
}

/// Sets the NIS domain name of the UTS namespace, which is the host's at first.
pub(super) fn set_domain_name(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length are of one live string.
    answer(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) })
}

/// The extended attributes of `path` itself, not of what it links to: names.
pub(super) fn list_xattrs(path: &CStr) -> io::Result<Vec<Vec<u8>>> {
    let mut buffer = vec![0_u8; 4096];
    loop {
        // SAFETY: pointer and length are of one live buffer; the path ends with a zero byte.
        let n = unsafe { libc::llistxattr(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
        if n >= 0 {
            let names = buffer[..n as usize].split(|&b| b == 0).filter(|n| !n.is_empty());
            return Ok(names.map(<[u8]>::to_vec).collect());
        }
        match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ENOTSUP) => return Ok(Vec::new()),
            e if e.raw_os_error() == Some(libc::ERANGE) && buffer.len() < 1 << 20 => {
                buffer.resize(buffer.len() * 4, 0)
            }
            e => return Err(e),
        }
    }
}

/// The value of an extended attribute of `path` itself.
pub(super) fn get_xattr(path: &CStr, name: &[u8]) -> io::Result<Vec<u8>> {
    let name = c_path(name)?;
    let mut buffer = vec![0_u8; 64 << 10];
    // SAFETY: pointer and length are of one live buffer (as long as Linux's XATTR_SIZE_MAX); both strings end with zero.
    let n =
        unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
    if n < 0 {
        return Err(io::Error::last_os_error());
    }
    buffer.truncate(n as usize);
    Ok(buffer)
}

/// Sets an extended attribute of `path` itself.
pub(super) fn set_xattr(path: &CStr, name: &[u8], value: &[u8]) -> io::Result<()> {
    let name = c_path(name)?;
    // SAFETY: pointer and length are of one live buffer; both strings end with zero.
    answer(unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) })
}

/// `path` as the kernel wants it.
pub(super) fn c_string(path: &OsStr) -> io::Result<CString> {
    c_path(path.as_bytes())
}

/// A copy of an open file that programs started from now on inherit, until it is dropped.
pub(super) struct Inherited(OwnedFd);

impl Inherited {
    /// Copies `file`.
    pub fn of(file: &std::fs::File) -> io::Result<Inherited> {
        // SAFETY: a plain system call; what it answers is a new descriptor that nobody else owns.
        unsafe {
            match libc::fcntl(file.as_raw_fd(), libc::F_DUPFD, 3) {
                -1 => Err(io::Error::last_os_error()),
                fd => Ok(Inherited(OwnedFd::from_raw_fd(fd))),
            }
        }
    }

    /// Its number, the same in the program that inherits it.
    pub fn number(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

/// Takes over a descriptor that this program was started with. `None` when there is no such one.
pub(super) fn take_inherited(number: i32) -> Option<std::fs::File> {
    // SAFETY: the number was passed by the outer side for this one use, and it is checked that it is open; scripts don't
    // get it, as it is closed on exec from here on.
    unsafe {
        let open = libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) == 0;
        open.then(|| std::fs::File::from_raw_fd(number))
    }
}
