//! Archives in the "new ASCII" format of cpio(5), from which the kernel fills its first root
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::collections::BTreeSet;

/// Headers and contents begin at multiples of this.
const ALIGNMENT: usize = 4;
const DIRECTORY: u32 = 0o040_755;
const REGULAR: u32 = 0o100_000;

/// An archive in memory. Everything in it belongs to root and has one time, so that equal files give equal bytes.
#[derive(Debug, Clone)]
pub struct Archive {
    bytes: Vec<u8>,
    /// Numbers of inodes: the kernel takes equal ones for hard links.
    next: u32,
    folders: BTreeSet<String>,
    time: u32,
}

impl Archive {
    /// An empty archive; `time` in seconds since 1970 is stamped on all that comes into it.
    #[must_use]
    pub fn new(time: i64) -> Archive {
        let time = u32::try_from(time).unwrap_or_default();
        Archive { bytes: Vec::new(), next: 1, folders: BTreeSet::new(), time }
    }

    /// Adds a file, and the folders above it. `path` is relative, `mode` its permission bits.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        for (end, _) in path.match_indices('/') {
            self.folder(&path[..end]);
        }
        self.entry(path, REGULAR | mode, content);
    }

    /// Adds an empty folder, if it isn't there yet.
    pub fn folder(&mut self, path: &str) {
        if self.folders.insert(path.to_owned()) {
            self.entry(path, DIRECTORY, &[]);
        }
    }

    /// The whole archive, with its end.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        let links = if mode == DIRECTORY { 2 } else { 1 };
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let fields = [self.next, mode, 0, 0, links, self.time, size, 0, 0, 0, 0, name_size, 0];
        self.next += 1;
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    fn archive() -> Vec<u8> {
        let mut archive = Archive::new(1_700_000_000);
        archive.file("init", 0o755, b"#!");
        archive.file("a/b/c", 0o644, b"hello");
        archive.file("a/b/d", 0o600, b"");
        archive.folder("dev");
        archive.finish()
    }

    #[test]
    fn every_part_is_aligned() {
        let bytes = archive();
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.starts_with(b"070701"));
        assert_eq!(bytes, archive());
    }

    /// What cpio(1) lists of it, where there is one.
    #[test]
    fn cpio_reads_it() {
        let child = Command::new("cpio").arg("--list").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let Ok(mut child) = child else { return eprintln!("skipped: there is no cpio") };
        child.stdin.take().unwrap().write_all(&archive()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "init\na\na/b\na/b/c\na/b/d\ndev\n");
    }
}
