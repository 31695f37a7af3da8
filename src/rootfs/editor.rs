//! A tree under the hands of [`compose`](super::compose): writes that go where the kernel would let them go.
//!
//! Directories above a path are followed through symbolic links (`/bin/x` is written to `usr/bin/x`); a link that the
//! path itself names is replaced, never followed. Replacing or removing a file that has other names leaves those with
//! the bytes that they had.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::rootfs::error::{PathError, RootfsError, what_is};
use crate::tree::{Content, Kind, Node, Packs, Tree, TreePath, normal, parent};

/// Places on which a fresh file system lies once the machine runs, so that nothing written there would be seen.
const VOLATILE: [&str; 5] = ["dev", "proc", "run", "sys", "tmp"];

/// The tree, what was written to it, and what the user should know.
pub(super) struct Editor<'a> {
    tree: Tree,
    packs: &'a dyn Packs,
    /// The time stamped on all that is written.
    pub epoch: i64,
    /// Paths written so far.
    pub written: BTreeSet<TreePath>,
    /// Things that are probably not meant.
    pub warnings: Vec<String>,
    /// The other names of each file that has several, by its first one.
    names: BTreeMap<TreePath, Vec<TreePath>>,
}

impl<'a> Editor<'a> {
    /// Begins to edit `tree`.
    pub fn new(tree: Tree, packs: &'a dyn Packs, epoch: i64) -> Editor<'a> {
        let mut names: BTreeMap<TreePath, Vec<TreePath>> = BTreeMap::new();
        for (path, node) in tree.iter() {
            if let Kind::HardLink(first) = &node.kind {
                names.entry(first.clone()).or_default().push(path.clone());
            }
        }
        Editor { tree, packs, epoch, written: BTreeSet::new(), warnings: Vec::new(), names }
    }

    /// The tree as it is now.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Ends the work.
    pub fn into_tree(self) -> (Tree, BTreeSet<TreePath>, Vec<String>) {
        (self.tree, self.written, self.warnings)
    }

    /// The node that `path` leads to, all links followed.
    pub fn node(&self, path: &str) -> Option<&Node> {
        let node = self.tree.get(self.tree.resolve(path)?)?;
        match &node.kind {
            Kind::HardLink(first) => self.tree.get(first),
            _ => Some(node),
        }
    }

    /// Whether `path` leads to anything.
    pub fn has(&self, path: &str) -> bool {
        self.node(path).is_some()
    }

    /// Whether `path` leads to a directory.
    pub fn is_dir(&self, path: &str) -> bool {
        self.node(path).is_some_and(|n| n.kind == Kind::Dir)
    }

    /// The content of the file that `path` leads to; `None` when it leads nowhere or to something else.
    pub fn content(&self, path: &str) -> Option<&Content> {
        match &self.node(path)?.kind {
            Kind::File(content) => Some(content),
            _ => None,
        }
    }

    /// The bytes of the file that `path` leads to; `None` when there is no such file.
    pub fn bytes(&self, path: &str) -> Result<Option<Vec<u8>>, RootfsError> {
        let wrong = |error| RootfsError::Base { path: path.trim_start_matches('/').to_owned(), error };
        self.content(path).map(|content| content.read(self.packs).map_err(wrong)).transpose()
    }

    /// The text of the file that `path` leads to; `None` when there is no such file.
    pub fn text(&self, path: &str) -> Result<Option<String>, RootfsError> {
        let wrong = |error| RootfsError::Base { path: path.trim_start_matches('/').to_owned(), error };
        let Some(bytes) = self.bytes(path)? else { return Ok(None) };
        let text = String::from_utf8(bytes);
        text.map(Some).map_err(|e| wrong(io::Error::new(io::ErrorKind::InvalidData, e.utf8_error())))
    }

    /// Names of the entries of the directory that `path` leads to, sorted.
    pub fn entries(&self, path: &str) -> Vec<String> {
        let Some(dir) = self.tree.resolve(path) else { return Vec::new() };
        let skip = if dir.is_empty() { 0 } else { dir.len() + 1 };
        let direct = self.tree.below(&dir).filter(|(p, _)| !p[skip..].contains(&b'/'));
        direct.map(|(p, _)| String::from_utf8_lossy(&p[skip..]).into_owned()).collect()
    }

    /// Where `path` really lies: its parents followed and made directories where nothing is.
    fn place(&mut self, path: &str) -> Result<TreePath, PathError> {
        let path = plain(path)?;
        let (above, name) = path.rsplit_once('/').unwrap_or(("", &path));
        let mut place = self.tree.resolve(above).ok_or(PathError::Loop)?;
        self.make_parents(&place)?;
        if !place.is_empty() {
            place.push(b'/');
        }
        place.extend_from_slice(name.as_bytes());
        Ok(place)
    }

    fn make_parents(&mut self, dir: &[u8]) -> Result<(), PathError> {
        let mut missing = Vec::new();
        let mut at = dir;
        while !at.is_empty() {
            match self.tree.get(at).map(|n| &n.kind) {
                Some(Kind::Dir) => break,
                Some(other) => {
                    return Err(PathError::ParentIsNotDirectory(
                        String::from_utf8_lossy(at).into(),
                        what_is(other),
                    ));
                }
                None => missing.push(at.to_vec()),
            }
            at = parent(at);
        }
        for path in missing {
            self.written.insert(path.clone());
            self.tree.insert(path, Node::new(Kind::Dir, 0o755, self.epoch));
        }
        Ok(())
    }

    /// Puts a file or link at `path`, replacing what is no directory; says where it lies.
    pub fn put(&mut self, path: &str, mut node: Node) -> Result<TreePath, PathError> {
        let place = self.place(path)?;
        if self.tree.get(&place).is_some_and(|n| n.kind == Kind::Dir) {
            return Err(PathError::IsDirectory(self.tree.below(&place).count()));
        }
        self.detach(&place);
        node.mtime = self.epoch;
        self.tree.insert(place.clone(), node);
        self.written.insert(place.clone());
        Ok(place)
    }

    /// Makes `path` a directory with this mode and owner, or gives them to the one that it leads to.
    pub fn put_dir(&mut self, path: &str, mode: u32, uid: u32, gid: u32) -> Result<TreePath, PathError> {
        let mut place = self.place(path)?;
        if matches!(self.tree.get(&place).map(|n| &n.kind), Some(Kind::Symlink(_))) {
            place = self.tree.resolve(&place).ok_or(PathError::Loop)?;
            self.make_parents(parent(&place))?;
        }
        let mut node = match self.tree.get(&place) {
            Some(node) if node.kind != Kind::Dir => {
                return Err(PathError::IsNotDirectory(what_is(&node.kind)));
            }
            Some(node) => node.clone(),
            None => Node::new(Kind::Dir, mode, self.epoch),
        };
        (node.mode, node.uid, node.gid) = (mode, uid, gid);
        self.tree.insert(place.clone(), node);
        self.written.insert(place.clone());
        Ok(place)
    }

    /// Writes a text of root's, mode 0644, on behalf of `field`.
    pub fn write(&mut self, field: &str, path: &str, text: impl Into<Vec<u8>>) -> Result<(), RootfsError> {
        self.write_mode(field, path, 0o644, text)
    }

    /// Writes a text of root's with a mode, on behalf of `field`.
    pub fn write_mode(
        &mut self,
        field: &str,
        path: &str,
        mode: u32,
        text: impl Into<Vec<u8>>,
    ) -> Result<(), RootfsError> {
        let node = Node::new(Kind::File(Content::bytes(text)), mode, self.epoch);
        self.put(path, node).map(drop).map_err(in_field(field, path))
    }

    /// Makes a symbolic link on behalf of `field`.
    pub fn link(&mut self, field: &str, path: &str, target: &str) -> Result<(), RootfsError> {
        let node = Node::new(Kind::Symlink(target.into()), 0o777, self.epoch);
        self.put(path, node).map(drop).map_err(in_field(field, path))
    }

    /// Makes a directory of root's, mode 0755, on behalf of `field`; one that exists stays as it is.
    pub fn directory(&mut self, field: &str, path: &str) -> Result<(), RootfsError> {
        if self.is_dir(path) {
            return Ok(());
        }
        self.put_dir(path, 0o755, 0, 0).map(drop).map_err(in_field(field, path))
    }

    /// Gives the file at `path` other bytes, its owner, mode and attributes staying as they are.
    pub fn rewrite(
        &mut self,
        field: &str,
        path: &str,
        mode: u32,
        text: impl Into<Vec<u8>>,
    ) -> Result<(), RootfsError> {
        let mut node = match self.node(path) {
            Some(node) if matches!(node.kind, Kind::File(_)) => node.clone(),
            _ => Node::new(Kind::Dir, mode, self.epoch),
        };
        node.kind = Kind::File(Content::bytes(text));
        self.put(path, node).map(drop).map_err(in_field(field, path))
    }

    /// Gives the node that `path` leads to another owner.
    pub fn own(&mut self, path: &str, uid: u32, gid: u32) -> Option<()> {
        let place = self.tree.resolve(path)?;
        let node = self.tree.get(&place)?.clone().owned_by(uid, gid);
        self.tree.insert(place, node);
        Some(())
    }

    /// Takes out what `path` names (a link itself, not its target) and all below it; says whether there was any.
    pub fn remove(&mut self, path: impl AsRef<[u8]>) -> bool {
        let path = normal(path.as_ref());
        let below: Vec<TreePath> = self.tree.below(&path).map(|(p, _)| p.clone()).collect();
        for path in below.iter().chain([&path]) {
            self.detach(path);
        }
        self.tree.remove(&path)
    }

    /// Changes nodes in place. Only times and contents may change; kinds and paths must not.
    pub fn nodes_mut(&mut self) -> impl DoubleEndedIterator<Item = (&TreePath, &mut Node)> {
        self.tree.iter_mut()
    }

    /// Sees to it that the other names of the file at `path` do without it.
    fn detach(&mut self, path: &[u8]) {
        if let Some(Kind::HardLink(first)) = self.tree.get(path).map(|n| &n.kind) {
            if let Some(others) = self.names.get_mut(first) {
                others.retain(|other| other != path);
            }
            return;
        }
        let Some(mut others) = self.names.remove(path) else { return };
        let Some(node) = self.tree.get(path).cloned() else { return };
        others.sort_unstable();
        let mut others = others.into_iter();
        let Some(heir) = others.next() else { return };
        self.tree.insert(heir.clone(), node);
        let rest: Vec<TreePath> = others.collect();
        for other in &rest {
            if let Some(mut link) = self.tree.get(other).cloned() {
                link.kind = Kind::HardLink(heir.clone());
                self.tree.insert(other.clone(), link);
            }
        }
        self.names.insert(heir, rest);
    }
}

/// Adds the field and path to an error.
pub(super) fn in_field(field: &str, path: &str) -> impl FnOnce(PathError) -> RootfsError {
    let (field, path) = (field.to_owned(), path.to_owned());
    move |why| RootfsError::Path { field, path, why }
}

/// An absolute, plain path without its first slash.
fn plain(path: &str) -> Result<String, PathError> {
    let rest = path.strip_prefix('/').ok_or(PathError::NotAbsolute)?;
    if rest.contains('\0') || rest.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(PathError::NotPlain);
    }
    match rest.split('/').map(str::len).max() {
        Some(longest) if longest > 255 => Err(PathError::TooLong(longest)),
        _ => Ok(rest.to_owned()),
    }
}

/// The first directory of `place` when an empty file system covers it at boot.
pub(super) fn volatile(place: &[u8]) -> Option<&'static str> {
    let first = place.split(|&b| b == b'/').next()?;
    VOLATILE.into_iter().find(|dir| dir.as_bytes() == first && place.len() > dir.len())
}
