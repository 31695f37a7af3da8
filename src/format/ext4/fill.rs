//! Fills a file system: nodes in, pieces of a disk out.
//!
//! Inodes and blocks are handed out in the order in which nodes come, and nothing else is looked at, so that equal nodes
//! give equal bytes and what precedes a change keeps its place. All four times of an inode are the node's: it says nothing
//! that the tree doesn't say.

use std::collections::HashMap;

use super::dir::Dir;
use super::geometry::{Allocator, Geometry, Tables};
use super::inode::{self, Inode, MOST_LINKS, Run, allocate};
use super::xattr::{self, Wrong};
use super::{BLOCK, Ext4, FAST_SYMLINK, LOST_AND_FOUND, meta};
use crate::format::piece::{Data, Piece};
use crate::tree::{Content, Kind, Node, parent};
use crate::units::Bytes;

/// The root's inode.
const ROOT: u32 = 2;
/// That of the descriptors kept for growth.
pub(super) const RESIZE: u32 = 7;
/// The journal's.
pub(super) const JOURNAL: u32 = 8;
/// The first one that isn't reserved.
pub(super) const LOST_FOUND: u32 = 11;
/// Its name.
pub(super) const LOST_FOUND_NAME: &[u8] = b"lost+found";
/// Longest name.
const NAME_MAX: usize = 255;

/// A file system that can't be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ext4Error {
    /// Numbers that ext4 can't hold, or more tables than blocks.
    #[error(
        "an ext4 file system of {size} with {inodes} inodes is not possible: it has up to 16 TiB, and 32768 inodes for each 128 MiB"
    )]
    Impossible {
        /// The size asked for.
        size: Bytes,
        /// The inodes asked for.
        inodes: u64,
    },
    /// The files don't fit.
    #[error("/{path} doesn't fit any more on the file system of {size}: give its partition more room")]
    Full {
        /// Where room ended.
        path: String,
        /// The file system's size.
        size: Bytes,
    },
    /// What ext4 can't hold, or what is no tree.
    #[error("/{path} {why}")]
    Node {
        /// The node.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// What the writing of the tables needs to know in the end.
pub(super) struct Filled<'a> {
    pub fs: &'a Ext4,
    pub geometry: Geometry,
    pub tables: Vec<Tables>,
    pub free: Allocator,
    /// Inodes from the first on; those that are kept and not used are `None`.
    pub inodes: Vec<Option<Inode>>,
    /// Where checksums begin.
    pub seed: u32,
    pub epoch: i64,
    pub pieces: Vec<Piece<'a>>,
}

struct Filler<'a> {
    out: Filled<'a>,
    size: Bytes,
    numbers: HashMap<&'a [u8], u32>,
    /// Directories by inode.
    dirs: HashMap<u32, Dir>,
}

impl Ext4 {
    /// The pieces of a file system of `size` bytes that holds `nodes` (path within it, node), in the order in which they
    /// take inodes and blocks: directories before what lies in them, hard links behind their targets. `epoch` is the
    /// file system's own time. What no piece covers is zero.
    ///
    /// # Errors
    /// [`Ext4Error`] when they don't fit, or one can't be written.
    pub fn fill<'a>(
        &'a self,
        size: Bytes,
        epoch: i64,
        nodes: impl Iterator<Item = (&'a [u8], &'a Node)>,
    ) -> Result<Vec<Piece<'a>>, Ext4Error> {
        let mut filler = Filler::new(self, size, epoch)?;
        for (path, node) in nodes {
            filler.add(path, node)?;
        }
        filler.directories()?;
        let mut pieces = meta::finish(filler.out);
        pieces.sort_by_key(|piece| piece.at);
        Ok(pieces)
    }
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

impl<'a> Filler<'a> {
    /// A file system with what is there before any file: journal, root, lost+found, room for growth.
    fn new(fs: &'a Ext4, size: Bytes, epoch: i64) -> Result<Filler<'a>, Ext4Error> {
        let geometry = Geometry::of(size, fs.inodes);
        let impossible = Ext4Error::Impossible { size, inodes: fs.inodes };
        let placed = if geometry.is_possible() { geometry.place() } else { None };
        let (tables, taken) = placed.ok_or(impossible)?;
        let mut inodes = vec![None; LOST_FOUND as usize];
        inodes[ROOT as usize - 1] = Some(Inode::new(0x4000 | 0o755, epoch));
        inodes[LOST_FOUND as usize - 1] = Some(Inode::new(0x4000 | 0o700, epoch));
        let free = Allocator::new(taken, geometry.blocks);
        let seed = super::crc32c::crc32c(!0, fs.uuid.as_bytes());
        let out = Filled { fs, geometry, tables, free, inodes, seed, epoch, pieces: Vec::new() };
        let mut filler = Filler { out, size, numbers: HashMap::new(), dirs: HashMap::new() };
        filler.journal()?;
        filler.numbers.insert(b"", ROOT);
        filler.directory(b"", ROOT, ROOT)?;
        filler.enter(LOST_FOUND_NAME, LOST_FOUND)?;
        filler.numbers.insert(LOST_FOUND_NAME, LOST_FOUND);
        filler.directory(LOST_FOUND_NAME, LOST_FOUND, ROOT)?;
        for _ in 1..LOST_AND_FOUND {
            filler.extend(b"", LOST_FOUND)?;
        }
        let place = filler.run(b"", 1)?[0].blocks.start;
        let (inode, pieces) = meta::reserved_descriptors(&filler.out.geometry, place, epoch);
        filler.out.pieces.extend(pieces);
        filler.out.inodes[RESIZE as usize - 1] = Some(inode);
        Ok(filler)
    }

    fn full(&self, path: &[u8]) -> Ext4Error {
        Ext4Error::Full { path: shown(path), size: self.size }
    }

    fn run(&mut self, path: &[u8], blocks: u64) -> Result<Vec<Run>, Ext4Error> {
        let mut runs = Vec::new();
        let got = allocate(&mut runs, &mut self.out.free, 0, blocks);
        got.map(|()| runs).ok_or_else(|| self.full(path))
    }

    fn journal(&mut self) -> Result<(), Ext4Error> {
        let size = self.out.fs.journal.0 / BLOCK * BLOCK;
        let runs = self.run(b"", size / BLOCK)?;
        if let Some(first) = runs.first() {
            let head = meta::journal_head(size / BLOCK, self.out.fs.uuid);
            self.out.pieces.push(Piece::bytes(first.blocks.start * BLOCK, head));
        }
        let mut inode = Inode::new(0x8000 | 0o600, self.out.epoch);
        inode.size = size;
        self.map(b"", &mut inode, JOURNAL, &runs)?;
        self.out.inodes[JOURNAL as usize - 1] = Some(inode);
        Ok(())
    }

    /// Gives an inode its extents.
    fn map(&mut self, path: &[u8], inode: &mut Inode, number: u32, runs: &[Run]) -> Result<(), Ext4Error> {
        let blocks = inode::map(inode, number, runs, &mut self.out.free, self.out.seed);
        let blocks = blocks.ok_or_else(|| self.full(path))?;
        self.out.pieces.extend(blocks.into_iter().map(|(place, bytes)| Piece::bytes(place * BLOCK, bytes)));
        Ok(())
    }

    /// Begins the directory with that inode.
    fn directory(&mut self, path: &[u8], number: u32, above: u32) -> Result<(), Ext4Error> {
        let mut dir = Dir::new(number, above);
        dir.runs = self.run(path, 1)?;
        self.dirs.insert(number, dir);
        if let Some(inode) = self.inode(number) {
            inode.links = 2;
        }
        if let Some(inode) = self.inode(above).filter(|_| above != number) {
            inode.links += 1;
        }
        Ok(())
    }

    fn inode(&mut self, number: u32) -> Option<&mut Inode> {
        self.out.inodes.get_mut(number as usize - 1)?.as_mut()
    }

    /// Gives a directory another block.
    fn extend(&mut self, path: &[u8], number: u32) -> Result<(), Ext4Error> {
        let Some(dir) = self.dirs.get_mut(&number) else { return Ok(()) };
        let (logical, got) = (dir.len(), &mut self.out.free);
        if allocate(&mut dir.runs, got, logical, 1).is_none() {
            return Err(self.full(path));
        }
        dir.extend();
        Ok(())
    }

    /// Names an inode in the directory above `path`; says which that is.
    fn enter(&mut self, path: &[u8], number: u32) -> Result<u32, Ext4Error> {
        let wrong = |why| Err(Ext4Error::Node { path: shown(path), why });
        let above = parent(path);
        let name = if above.is_empty() { path } else { &path[above.len() + 1..] };
        if name.is_empty() || name.len() > NAME_MAX {
            return wrong("has a name of more than 255 bytes, which ext4 can't hold");
        }
        let Some(above) = self.numbers.get(above).copied() else {
            return wrong("comes before the directory that it lies in");
        };
        let kind = self.inode(number).map_or(0, |inode| inode.entry_type());
        match self.dirs.get(&above) {
            None => return wrong("lies below what is no directory"),
            Some(dir) if !dir.has_room(name) => self.extend(path, above)?,
            Some(_) => {}
        }
        if let Some(dir) = self.dirs.get_mut(&above) {
            dir.put(name, number, kind);
        }
        Ok(above)
    }

    fn add(&mut self, path: &'a [u8], node: &'a Node) -> Result<(), Ext4Error> {
        let wrong = |why| Ext4Error::Node { path: shown(path), why };
        if let Kind::HardLink(target) = &node.kind {
            return self.link(path, target);
        }
        if path.is_empty() || path == LOST_FOUND_NAME {
            let number = if path.is_empty() { ROOT } else { LOST_FOUND };
            if node.kind != Kind::Dir {
                return Err(wrong("has to be a directory"));
            }
            return self.describe(path, number, node);
        }
        let number = self.out.inodes.len() as u32 + 1;
        if u64::from(number) > self.out.geometry.inodes() {
            return Err(self.full(path));
        }
        let mut inode = Inode::new(0, 0);
        inode.describe(node);
        self.out.inodes.push(Some(inode));
        let above = self.enter(path, number)?;
        if self.numbers.insert(path, number).is_some() {
            return Err(wrong("stands there twice"));
        }
        match &node.kind {
            Kind::Dir => self.directory(path, number, above)?,
            Kind::File(content) => self.file(path, number, content)?,
            Kind::Symlink(target) => self.symlink(path, number, target)?,
            Kind::CharDev { major, minor } | Kind::BlockDev { major, minor } => {
                let body = inode::device(*major, *minor)
                    .ok_or_else(|| wrong("has a device number that Linux can't hold"))?;
                self.inode(number).map(|inode| inode.body = body).unwrap_or_default();
            }
            Kind::Fifo | Kind::HardLink(_) => {}
        }
        self.describe(path, number, node)
    }

    /// Gives an inode a node's metadata and attributes.
    fn describe(&mut self, path: &[u8], number: u32, node: &Node) -> Result<(), Ext4Error> {
        let stored = xattr::store(&node.xattrs).map_err(|wrong| Ext4Error::Node {
            path: shown(path),
            why: match wrong {
                Wrong::Large => {
                    "has more extended attributes than ext4 holds: a block of 4 KiB for each file"
                }
                Wrong::Acl => "has an access control list that is none",
            },
        })?;
        let mut place = 0;
        if let Some(mut block) = stored.block {
            place = self.run(path, 1)?[0].blocks.start;
            xattr::seal(&mut block, place, self.out.seed);
            self.out.pieces.push(Piece::bytes(place * BLOCK, block));
        }
        if let Some(inode) = self.inode(number) {
            inode.describe(node);
            (inode.inline, inode.attributes) = (stored.inline, place);
            inode.blocks += u64::from(place != 0);
        }
        Ok(())
    }

    fn link(&mut self, path: &'a [u8], target: &[u8]) -> Result<(), Ext4Error> {
        let wrong = |why| Err(Ext4Error::Node { path: shown(path), why });
        let Some(number) = self.numbers.get(target).copied() else {
            return wrong("is a hard link to what isn't there before it");
        };
        match self.inode(number) {
            Some(inode) if !inode.is_dir() => inode.links += 1,
            _ => return wrong("is a hard link to a directory"),
        }
        if self.inode(number).is_some_and(|inode| inode.links > MOST_LINKS) {
            return wrong("is one of more than 65000 hard links to one file, which ext4 can't hold");
        }
        self.enter(path, number)?;
        self.numbers.insert(path, number);
        Ok(())
    }

    fn file(&mut self, path: &[u8], number: u32, content: &'a Content) -> Result<(), Ext4Error> {
        let size = content.len();
        let runs = self.run(path, size.div_ceil(BLOCK))?;
        for run in &runs {
            let offset = run.logical * BLOCK;
            let len = (size - offset).min((run.blocks.end - run.blocks.start) * BLOCK);
            let data = Data::File { content, offset, len };
            self.out.pieces.push(Piece { at: run.blocks.start * BLOCK, data });
        }
        self.contents(path, number, size, &runs)
    }

    /// Gives an inode its size and extents.
    fn contents(&mut self, path: &[u8], number: u32, size: u64, runs: &[Run]) -> Result<(), Ext4Error> {
        let Some(mut inode) = self.inode(number).cloned() else { return Ok(()) };
        inode.size = size;
        self.map(path, &mut inode, number, runs)?;
        self.out.inodes[number as usize - 1] = Some(inode);
        Ok(())
    }

    fn symlink(&mut self, path: &[u8], number: u32, target: &[u8]) -> Result<(), Ext4Error> {
        if target.is_empty() || target.len() >= BLOCK as usize {
            let why = "has a target that ext4 can't hold: it takes 1 to 4095 bytes";
            return Err(Ext4Error::Node { path: shown(path), why });
        }
        if target.len() <= FAST_SYMLINK {
            if let Some(inode) = self.inode(number) {
                inode.size = target.len() as u64;
                inode.body[..target.len()].copy_from_slice(target);
            }
            return Ok(());
        }
        let runs = self.run(path, 1)?;
        self.out.pieces.push(Piece::bytes(runs[0].blocks.start * BLOCK, target.to_vec()));
        self.contents(path, number, target.len() as u64, &runs)
    }

    /// Ends all directories.
    fn directories(&mut self) -> Result<(), Ext4Error> {
        let mut dirs: Vec<Dir> = std::mem::take(&mut self.dirs).into_values().collect();
        dirs.sort_by_key(|dir| dir.inode);
        for dir in dirs {
            let (number, runs) = (dir.inode, dir.runs.clone());
            self.contents(b"", number, dir.len() * BLOCK, &runs)?;
            let places = runs.into_iter().flat_map(|run| run.blocks);
            let blocks = places.zip(dir.encode(self.out.seed));
            self.out.pieces.extend(blocks.map(|(place, bytes)| Piece::bytes(place * BLOCK, bytes)));
        }
        Ok(())
    }
}
