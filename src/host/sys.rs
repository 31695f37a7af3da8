//! The system calls that have no safe wrapper.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::libc;
use nix::unistd::{ForkResult, fork};

/// Forks. Only for a process that has one thread.
pub(crate) fn fork_single_threaded() -> nix::Result<ForkResult> {
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

/// Takes the right to make devices from every program that this process will start.
pub(crate) fn start_no_device_makers() -> io::Result<()> {
    const CAP_MKNOD: libc::c_ulong = 27;
    // SAFETY: a plain system call on numbers.
    answer(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, CAP_MKNOD, 0, 0, 0) })
}

/// Brings up the loopback interface of the network namespace that the process is in.
pub(crate) fn loopback_up() -> io::Result<()> {
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
pub(crate) fn set_domain_name(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length are of one live string.
    answer(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) })
}

/// The extended attributes of `path` itself, not of what it links to: names.
pub(crate) fn list_xattrs(path: &CStr) -> io::Result<Vec<Vec<u8>>> {
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
pub(crate) fn get_xattr(path: &CStr, name: &[u8]) -> io::Result<Vec<u8>> {
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
pub(crate) fn set_xattr(path: &CStr, name: &[u8], value: &[u8]) -> io::Result<()> {
    let name = c_path(name)?;
    // SAFETY: pointer and length are of one live buffer; both strings end with zero.
    answer(unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) })
}

/// `path` as the kernel wants it.
pub(crate) fn c_string(path: &OsStr) -> io::Result<CString> {
    c_path(path.as_bytes())
}

/// A copy of an open file that programs started from now on inherit, until it is dropped.
pub(crate) struct Inherited(OwnedFd);

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
pub(crate) fn take_inherited(number: i32) -> Option<std::fs::File> {
    // SAFETY: the number was passed by the outer side for this one use, and it is checked that it is open; scripts don't
    // get it, as it is closed on exec from here on.
    unsafe {
        let open = libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) == 0;
        open.then(|| std::fs::File::from_raw_fd(number))
    }
}

/// From now on, fsync(2) and fdatasync(2) of this thread, and of the programs that it starts, do nothing and succeed. For
/// tools that sync files which are thrown away in a crash anyway. Fails where the kernel has no seccomp filters.
#[cfg(target_arch = "x86_64")]
pub(crate) fn ignore_syncs() -> io::Result<()> {
    // linux/audit.h: AUDIT_ARCH_X86_64, for which alone the numbers of system calls below hold.
    const ARCH: u32 = 0xc000_003e;
    // seccomp(2): struct seccomp_data begins with the call's number and the architecture.
    const NUMBER_AT: u32 = 0;
    const ARCH_AT: u32 = 4;
    let word = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let answer_with = (libc::BPF_RET | libc::BPF_K) as u16;
    let line = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut lines = [
        line(word, 0, 0, ARCH_AT),
        line(equal, 0, 4, ARCH),
        line(word, 0, 0, NUMBER_AT),
        line(equal, 1, 0, libc::SYS_fsync as u32),
        line(equal, 0, 1, libc::SYS_fdatasync as u32),
        // An error of number 0 is none.
        line(answer_with, 0, 0, libc::SECCOMP_RET_ERRNO),
        line(answer_with, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: lines.len() as u16, filter: lines.as_mut_ptr() };
    nix::sys::prctl::set_no_new_privs()?;
    // SAFETY: a plain system call; `program` and the lines that it points to are valid for all of it, and it copies them.
    answer(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) })
}

/// There is no filter for other architectures yet: their tools sync.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn ignore_syncs() -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn syncs_are_ignored_in_one_thread_and_its_programs() {
        // A pipe can't be synced: the kernel says so unless nobody asks it.
        let (pipe, _writer) = std::io::pipe().unwrap();
        let sync = |pipe: &std::io::PipeReader| nix::unistd::fsync(pipe);
        assert!(sync(&pipe).is_err());
        std::thread::scope(|scope| {
            let ignoring = scope.spawn(|| {
                ignore_syncs().unwrap();
                // dd's conv=fsync syncs what it writes, here another pipe.
                let program = std::process::Command::new("dd")
                    .args(["if=/dev/null", "conv=fsync"])
                    .stdout(std::process::Stdio::piped())
                    .output()
                    .unwrap();
                (sync(&pipe), nix::unistd::fdatasync(&pipe), program.status.success())
            });
            assert_eq!(ignoring.join().unwrap(), (Ok(()), Ok(()), true));
        });
        assert!(sync(&pipe).is_err());
    }
}
