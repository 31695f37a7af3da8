//! A folder on disk becomes a [`Tree`] and a pack: the inverse of unpacking, with nothing of the host in it.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::error::{Doing, Inner};
use super::unpack::{parallel, workers};
use crate::digest::{Digest, Hasher};
use crate::host::sys;
use crate::tree::{Content, Kind, Node, Tree, TreePath};

/// What capturing needs to know beside the folder.
pub(super) struct Capture<'a> {
    /// Time that nothing in the tree may be newer than.
    pub epoch: i64,
    /// When the tree was worked on, by the clock of its file system: what was changed then gets the epoch as its time.
    pub worked: RangeInclusive<i64>,
    /// Contents that lie in packs already, by digest and length.
    pub known: &'a HashMap<(Digest, u64), Content>,
}

/// A node before its content is known.
struct Found {
    path: TreePath,
    node: Node,
    /// For a regular file: device, inode and size.
    file: Option<(u64, u64, u64)>,
}

impl Capture<'_> {
    /// Reads the tree below `root` and writes contents that are not yet known to `pack`, each once, in the order of paths.
    /// Answers the tree and, unless there was nothing to write, digest and size of the pack.
    pub fn run(&self, root: &Path, pack: &mut File) -> Inner<(Tree, Option<(Digest, u64)>)> {
        let mut found = Vec::new();
        self.walk(root, &mut Vec::new(), &mut found)?;
        found.sort_by(|a, b| a.path.cmp(&b.path));
        link_up(&mut found);
        let files: Vec<usize> = (0..found.len()).filter(|&i| found[i].file.is_some()).collect();
        let digests = parallel(files.len(), workers(), |at| {
            let one = &found[files[at]];
            digest_of(root, &one.path, one.file.map_or(0, |f| f.2)).doing_at("reading", &one.path)
        })?;
        let (places, order) = self.place(&found, &files, &digests);
        let written = write_pack(root, &found, &order, pack)?;
        let digest = written.map(|w| w.0).unwrap_or(Digest([0; 32]));
        for ((index, digest_of_file), place) in files.iter().zip(&digests).zip(places) {
            let len = found[*index].file.map_or(0, |f| f.2);
            found[*index].node.kind = Kind::File(match place {
                Place::Empty => Content::bytes([]),
                Place::Known(content) => content,
                Place::Pack(offset) => Content::Packed { pack: digest, offset, len, sha256: *digest_of_file },
            });
        }
        let mut tree = Tree::new();
        for one in found {
            tree.insert(one.path, one.node);
        }
        Ok((tree, written))
    }

    fn walk(&self, root: &Path, at: &mut TreePath, found: &mut Vec<Found>) -> Inner<()> {
        let path = on_disk(root, at);
        let meta = std::fs::symlink_metadata(&path).doing_at("reading", at)?;
        let is_dir = meta.is_dir();
        // A socket is nothing without its process.
        if meta.mode() & nix::libc::S_IFMT == nix::libc::S_IFSOCK {
            return Ok(());
        }
        found.push(self.node(&path, at, &meta).doing_at("reading", at)?);
        if !is_dir {
            return Ok(());
        }
        for entry in std::fs::read_dir(&path).doing_at("reading", at)? {
            let name = entry.doing_at("reading", at)?.file_name();
            let length = at.len();
            if !at.is_empty() {
                at.push(b'/');
            }
            at.extend_from_slice(name.as_bytes());
            self.walk(root, at, found)?;
            at.truncate(length);
        }
        Ok(())
    }

    fn node(&self, path: &Path, at: &[u8], meta: &std::fs::Metadata) -> io::Result<Found> {
        let device = (nix::sys::stat::major(meta.rdev()) as u32, nix::sys::stat::minor(meta.rdev()) as u32);
        let mut file = None;
        let kind = match meta.mode() & nix::libc::S_IFMT {
            nix::libc::S_IFDIR => Kind::Dir,
            nix::libc::S_IFLNK => {
                Kind::Symlink(std::fs::read_link(path)?.into_os_string().as_bytes().to_vec())
            }
            nix::libc::S_IFCHR => Kind::CharDev { major: device.0, minor: device.1 },
            nix::libc::S_IFBLK => Kind::BlockDev { major: device.0, minor: device.1 },
            nix::libc::S_IFREG => {
                file = Some((meta.dev(), meta.ino(), meta.len()));
                Kind::File(Content::bytes([]))
            }
            _ => Kind::Fifo,
        };
        let is_link = matches!(kind, Kind::Symlink(_));
        let mode = if is_link { 0o777 } else { meta.mode() & 0o7777 };
        let xattrs = if is_link { BTreeMap::new() } else { xattrs(path)? };
        let node = Node { kind, mode, uid: meta.uid(), gid: meta.gid(), mtime: self.time(meta), xattrs };
        Ok(Found { path: at.to_vec(), node, file })
    }

    /// Directories change whenever something in them does, in an order that depends on the speed of workers.
    fn time(&self, meta: &std::fs::Metadata) -> i64 {
        if meta.is_dir() || self.worked.contains(&meta.mtime()) {
            self.epoch
        } else {
            meta.mtime().min(self.epoch)
        }
    }

    /// Where each file's content goes, and which files are written to the pack, in order.
    fn place(&self, found: &[Found], files: &[usize], digests: &[Digest]) -> (Vec<Place>, Vec<usize>) {
        let (mut at, mut order, mut placed) = (0_u64, Vec::new(), HashMap::new());
        let mut places = Vec::with_capacity(files.len());
        for (&index, &digest) in files.iter().zip(digests) {
            let len = found[index].file.map_or(0, |f| f.2);
            places.push(if len == 0 {
                Place::Empty
            } else if let Some(content) = self.known.get(&(digest, len)) {
                Place::Known(content.clone())
            } else {
                Place::Pack(*placed.entry(digest).or_insert_with(|| {
                    let offset = at;
                    at += len;
                    order.push(index);
                    offset
                }))
            });
        }
        (places, order)
    }
}

/// Where a file's content lies.
enum Place {
    Empty,
    Known(Content),
    Pack(u64),
}

fn on_disk(root: &Path, path: &[u8]) -> PathBuf {
    if path.is_empty() { root.to_owned() } else { root.join(std::ffi::OsStr::from_bytes(path)) }
}

/// Turns all but the first name of an inode into hard links.
fn link_up(found: &mut [Found]) {
    let mut first: HashMap<(u64, u64), TreePath> = HashMap::new();
    for one in found {
        let Some((device, inode, _)) = one.file else { continue };
        match first.get(&(device, inode)) {
            Some(path) => {
                one.node.kind = Kind::HardLink(path.clone());
                one.file = None;
            }
            None => {
                first.insert((device, inode), one.path.clone());
            }
        }
    }
}

/// The attributes that belong to an image; labels of the host's security modules don't.
fn xattrs(path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let path = sys::c_string(path.as_os_str())?;
    let keep = |name: &[u8]| {
        name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_") || name == b"security.capability"
    };
    let names = sys::list_xattrs(&path)?.into_iter().filter(|n| keep(n));
    names.map(|name| sys::get_xattr(&path, &name).map(|value| (name, value))).collect()
}

/// SHA-256 of a file that must be `len` bytes long.
fn digest_of(root: &Path, path: &[u8], len: u64) -> io::Result<Digest> {
    let (digest, size) = Digest::of_reader(File::open(on_disk(root, path))?)?;
    if size == len { Ok(digest) } else { Err(io::Error::other("it changed while it was read")) }
}

fn write_pack(
    root: &Path,
    found: &[Found],
    order: &[usize],
    pack: &mut File,
) -> Inner<Option<(Digest, u64)>> {
    if order.is_empty() {
        return Ok(None);
    }
    let (mut hasher, mut total) = (Hasher::new(), 0);
    let mut buffer = vec![0; 1 << 20];
    let mut filled = 0;
    for &index in order {
        let one = &found[index];
        let mut file = File::open(on_disk(root, &one.path)).doing_at("reading", &one.path)?;
        let mut left = one.file.map_or(0, |f| f.2);
        while left > 0 {
            let room = (buffer.len() - filled).min(usize::try_from(left).unwrap_or(usize::MAX));
            file.read_exact(&mut buffer[filled..filled + room]).doing_at("reading", &one.path)?;
            (filled, left, total) = (filled + room, left - room as u64, total + room as u64);
            if filled == buffer.len() {
                hasher.update(&buffer);
                pack.write_all(&buffer).doing("writing the pack")?;
                filled = 0;
            }
        }
    }
    hasher.update(&buffer[..filled]);
    pack.write_all(&buffer[..filled]).doing("writing the pack")?;
    Ok(Some((hasher.finish(), total)))
}
