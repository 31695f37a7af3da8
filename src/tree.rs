//! The heart: a file tree as a value. A sorted map from path to node, exact in owners, modes, links and attributes.
//!
//! A tree is held in memory, compared, merged, printed and hashed. Contents of files lie either in the node or in a
//! *pack*: one blob of the store that many files share, so that a tree of fifteen thousand files is two blobs.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::digest::{Digest, hex, unhex};

/// A path inside a tree: bytes, relative to the root, no leading, trailing or doubled slash; the root itself is empty.
pub type TreePath = Vec<u8>;

/// The bytes of a regular file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Held in memory.
    Bytes(Arc<[u8]>),
    /// `len` bytes at `offset` of the blob `pack`, with SHA-256 `sha256`.
    Packed {
        /// Digest of the pack in the store.
        pack: Digest,
        /// Where the file's bytes begin in it.
        offset: u64,
        /// How many bytes they are.
        len: u64,
        /// SHA-256 of the file's bytes alone.
        sha256: Digest,
    },
}

impl Content {
    /// Content held in memory.
    #[must_use]
    pub fn bytes(bytes: impl Into<Vec<u8>>) -> Content {
        Content::Bytes(bytes.into().into())
    }

    /// Size in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Content::Bytes(b) => b.len() as u64,
            Content::Packed { len, .. } => *len,
        }
    }

    /// Whether there is no byte in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes themselves; meant for small files, such as /etc/passwd or a unit.
    ///
    /// # Errors
    /// When the pack can't be read.
    pub fn read(&self, packs: &dyn Packs) -> io::Result<Vec<u8>> {
        match self {
            Content::Bytes(bytes) => Ok(bytes.to_vec()),
            Content::Packed { pack, offset, len, .. } => {
                let mut bytes = vec![0; *len as usize];
                packs.open(pack)?.read_exact_at(&mut bytes, *offset)?;
                Ok(bytes)
            }
        }
    }

    /// SHA-256 of the bytes.
    #[must_use]
    pub fn sha256(&self) -> Digest {
        match self {
            Content::Bytes(b) => Digest::of(b),
            Content::Packed { sha256, .. } => *sha256,
        }
    }
}

/// Where packs are read from: the store, or a folder in a test.
pub trait Packs: Sync {
    /// Opens the pack for reading.
    ///
    /// # Errors
    /// When it is not there or can't be opened.
    fn open(&self, pack: &Digest) -> io::Result<Arc<File>>;
}

/// No packs at all: for trees that hold all their bytes themselves.
#[derive(Debug, Clone, Copy)]
pub struct NoPacks;

impl Packs for NoPacks {
    fn open(&self, pack: &Digest) -> io::Result<Arc<File>> {
        Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no pack {pack}")))
    }
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A regular file.
    File(Content),
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// Another name of the node at this path, which sorts before it and is itself no hard link.
    HardLink(TreePath),
    /// A character device.
    CharDev {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDev {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// A node with its metadata. Those of a hard link are the target's and are not looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky: at most `0o7777`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time in seconds since the epoch.
    pub mtime: i64,
    /// Extended attributes by their full name (`security.capability`, `system.posix_acl_access`, …), in the kernel's format.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Node {
    /// A node that root owns.
    #[must_use]
    pub fn new(kind: Kind, mode: u32, mtime: i64) -> Node {
        Node { kind, mode, uid: 0, gid: 0, mtime, xattrs: BTreeMap::new() }
    }

    /// Changes owner and group.
    #[must_use]
    pub fn owned_by(mut self, uid: u32, gid: u32) -> Node {
        (self.uid, self.gid) = (uid, gid);
        self
    }
}

/// A file tree. See the module's documentation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    nodes: BTreeMap<TreePath, Node>,
}

/// A dump that can't be read back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the tree's dump is wrong: {why}")]
pub struct DumpError {
    line: usize,
    why: &'static str,
}

/// First line of a dump; the number is the version of the format.
const DUMP_HEADER: &str = "kiln-tree 1";

/// Brings a path to the form of [`TreePath`]: no slash in front, behind or doubled, no `.` parts.
#[must_use]
pub fn normal(path: &[u8]) -> TreePath {
    let parts: Vec<&[u8]> = path.split(|&b| b == b'/').filter(|p| !p.is_empty() && *p != b".").collect();
    parts.join(&b'/')
}

/// The directory that holds `path`; the root for names without slash.
#[must_use]
pub fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|&b| b == b'/').map_or(b"", |at| &path[..at])
}

impl Tree {
    /// A tree without any node.
    #[must_use]
    pub fn new() -> Tree {
        Tree::default()
    }

    /// How many nodes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is no node.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// All nodes, sorted by path as bytes.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&TreePath, &Node)> {
        self.nodes.iter()
    }

    /// All nodes, sorted by path, to be changed in place.
    pub fn iter_mut(&mut self) -> impl DoubleEndedIterator<Item = (&TreePath, &mut Node)> {
        self.nodes.iter_mut()
    }

    /// The nodes whose path begins with `prefix` and a slash (all but the root itself for an empty prefix).
    pub fn below<'a>(&'a self, prefix: &[u8]) -> impl Iterator<Item = (&'a TreePath, &'a Node)> + use<'a> {
        let mut start = normal(prefix);
        if !start.is_empty() {
            start.push(b'/');
        }
        self.nodes
            .range(start.clone()..)
            .take_while(move |(path, _)| path.starts_with(&start))
            .filter(|(path, _)| !path.is_empty())
    }

    /// The node at `path` itself, not following symbolic links.
    #[must_use]
    pub fn get(&self, path: impl AsRef<[u8]>) -> Option<&Node> {
        self.nodes.get(&normal(path.as_ref()))
    }

    /// Puts `node` at `path`, replacing what was there. Parents are not made: see [`Tree::insert_with_parents`].
    pub fn insert(&mut self, path: impl AsRef<[u8]>, node: Node) -> Option<Node> {
        self.nodes.insert(normal(path.as_ref()), node)
    }

    /// Puts `node` at `path`; missing directories above it are made as root's, mode 0755, with the node's time.
    pub fn insert_with_parents(&mut self, path: impl AsRef<[u8]>, node: Node) {
        let path = normal(path.as_ref());
        let mut above = parent(&path);
        while !above.is_empty() && !self.nodes.contains_key(above) {
            self.nodes.insert(above.to_vec(), Node::new(Kind::Dir, 0o755, node.mtime));
            above = parent(above);
        }
        self.nodes.insert(path, node);
    }

    /// Takes out the node at `path` and all below it; says whether there was any.
    /// Hard links elsewhere that named a removed node must not remain: the caller sees to it.
    pub fn remove(&mut self, path: impl AsRef<[u8]>) -> bool {
        let path = normal(path.as_ref());
        let below: Vec<TreePath> = self.below(&path).map(|(p, _)| p.clone()).collect();
        let mut any = self.nodes.remove(&path).is_some();
        for path in below {
            any |= self.nodes.remove(&path).is_some();
        }
        any
    }

    /// Keeps only the nodes for which `keep` answers true.
    pub fn retain(&mut self, mut keep: impl FnMut(&[u8], &Node) -> bool) {
        self.nodes.retain(|path, node| keep(path, node));
    }

    /// The path that `path` names once every symbolic link on the way is followed, its last part included. Parts that
    /// don't exist are taken as they stand. `None` after 40 links (Linux's `MAXSYMLINKS`) or above the root.
    #[must_use]
    pub fn resolve(&self, path: impl AsRef<[u8]>) -> Option<TreePath> {
        let mut todo: Vec<Vec<u8>> = path.as_ref().split(|&b| b == b'/').rev().map(<[u8]>::to_vec).collect();
        let mut at: TreePath = Vec::new();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    at = parent(&at).to_vec();
                    continue;
                }
                _ => {}
            }
            let mut next = at.clone();
            if !next.is_empty() {
                next.push(b'/');
            }
            next.extend_from_slice(&part);
            match self.nodes.get(&next).map(|n| &n.kind) {
                Some(Kind::Symlink(target)) => {
                    links += 1;
                    if links > 40 {
                        return None;
                    }
                    if target.first() == Some(&b'/') {
                        at.clear();
                    }
                    todo.extend(target.split(|&b| b == b'/').rev().map(<[u8]>::to_vec));
                }
                _ => at = next,
            }
        }
        Some(at)
    }

    /// The packs that contents of this tree lie in.
    #[must_use]
    pub fn packs(&self) -> Vec<Digest> {
        let mut packs: Vec<Digest> = self
            .nodes
            .values()
            .filter_map(|n| match &n.kind {
                Kind::File(Content::Packed { pack, .. }) => Some(*pack),
                _ => None,
            })
            .collect();
        packs.sort_unstable();
        packs.dedup();
        packs
    }

    /// The digest of the tree's meaning: equal trees have it in common, wherever their contents lie.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(self.print(false).as_bytes())
    }

    /// The tree as text, a node a line, with the places of packed contents: [`Tree::parse`] reads it back.
    #[must_use]
    pub fn dump(&self) -> String {
        self.print(true)
    }

    fn print(&self, places: bool) -> String {
        let mut out = String::with_capacity(self.nodes.len() * 160);
        out.push_str(DUMP_HEADER);
        out.push('\n');
        for (path, node) in &self.nodes {
            let _ = write!(out, "{:04o} {} {} {} ", node.mode, node.uid, node.gid, node.mtime);
            print_kind(&mut out, &node.kind, places);
            out.push(' ');
            out.push_str(&escape(path));
            for (name, value) in &node.xattrs {
                let _ = write!(out, " {}={}", escape(name), hex(value));
            }
            out.push('\n');
        }
        out
    }

    /// Reads what [`Tree::dump`] printed.
    ///
    /// # Errors
    /// [`DumpError`] names the first line that is not of a dump's form.
    pub fn parse(text: &str) -> Result<Tree, DumpError> {
        let mut lines = text.lines().enumerate();
        if lines.next().map(|l| l.1) != Some(DUMP_HEADER) {
            return Err(DumpError { line: 1, why: "it doesn't name the format's version" });
        }
        let mut nodes = BTreeMap::new();
        for (index, line) in lines {
            let (path, node) = parse_line(line).map_err(|why| DumpError { line: index + 1, why })?;
            nodes.insert(path, node);
        }
        Ok(Tree { nodes })
    }
}

fn print_kind(out: &mut String, kind: &Kind, places: bool) {
    let _ = match kind {
        Kind::Dir => write!(out, "d -"),
        Kind::File(content) => {
            let _ = write!(out, "f {}:{}", content.len(), content.sha256());
            match content {
                Content::Packed { pack, offset, .. } if places => write!(out, ":{pack}:{offset}"),
                Content::Bytes(bytes) if places => write!(out, ":={}", hex(bytes)),
                _ => Ok(()),
            }
        }
        Kind::Symlink(target) => write!(out, "l {}", escape(target)),
        Kind::HardLink(target) => write!(out, "h {}", escape(target)),
        Kind::CharDev { major, minor } => write!(out, "c {major}:{minor}"),
        Kind::BlockDev { major, minor } => write!(out, "b {major}:{minor}"),
        Kind::Fifo => write!(out, "p -"),
    };
}

fn parse_line(line: &str) -> Result<(TreePath, Node), &'static str> {
    let mut words = line.split(' ');
    let mut word = || words.next().ok_or("it is too short");
    let mode = u32::from_str_radix(word()?, 8).map_err(|_| "its mode is no octal number")?;
    let uid = word()?.parse().map_err(|_| "its owner is no number")?;
    let gid = word()?.parse().map_err(|_| "its group is no number")?;
    let mtime = word()?.parse().map_err(|_| "its time is no number")?;
    let kind = parse_kind(word()?, word()?)?;
    let path = unescape(word()?).ok_or("its path is badly escaped")?;
    let mut xattrs = BTreeMap::new();
    for attribute in words {
        let (name, value) = attribute.rsplit_once('=').ok_or("an attribute has no value")?;
        let name = unescape(name).ok_or("an attribute's name is badly escaped")?;
        xattrs.insert(name, unhex(value).ok_or("an attribute's value is not hexadecimal")?);
    }
    Ok((path, Node { kind, mode, uid, gid, mtime, xattrs }))
}

fn parse_kind(letter: &str, rest: &str) -> Result<Kind, &'static str> {
    let device = || {
        let (major, minor) = rest.split_once(':').ok_or("a device needs two numbers")?;
        let number = |text: &str| text.parse::<u32>().map_err(|_| "a device's number is none");
        Ok::<_, &'static str>((number(major)?, number(minor)?))
    };
    Ok(match letter {
        "d" => Kind::Dir,
        "f" => Kind::File(parse_content(rest)?),
        "l" => Kind::Symlink(unescape(rest).ok_or("its target is badly escaped")?),
        "h" => Kind::HardLink(unescape(rest).ok_or("its target is badly escaped")?),
        "c" => device().map(|(major, minor)| Kind::CharDev { major, minor })?,
        "b" => device().map(|(major, minor)| Kind::BlockDev { major, minor })?,
        "p" => Kind::Fifo,
        _ => return Err("its kind is unknown"),
    })
}

fn parse_content(text: &str) -> Result<Content, &'static str> {
    let wrong = "its content is badly written";
    let parts: Vec<&str> = text.split(':').collect();
    match parts.as_slice() {
        [len, sha256, pack, offset] => Ok(Content::Packed {
            pack: pack.parse().map_err(|_| wrong)?,
            offset: offset.parse().map_err(|_| wrong)?,
            len: len.parse().map_err(|_| wrong)?,
            sha256: sha256.parse().map_err(|_| wrong)?,
        }),
        [_, sha256, bytes] => {
            let bytes = bytes.strip_prefix('=').and_then(unhex).ok_or(wrong)?;
            let content = Content::bytes(bytes);
            let same = sha256.parse() == Ok(content.sha256());
            same.then_some(content).ok_or("its content doesn't have the digest that it names")
        }
        _ => Err(wrong),
    }
}

/// Prints bytes as one word: what is not graphic ASCII, and `\` and `=`, as `\xNN`; an empty one as `/`, a lone slash not.
fn escape(bytes: &[u8]) -> Cow<'_, str> {
    let plain = |b: &u8| b.is_ascii_graphic() && *b != b'\\' && *b != b'=';
    if bytes.is_empty() {
        return "/".into();
    }
    if bytes == b"/" {
        return "\\x2f".into();
    }
    if bytes.iter().all(plain) {
        return String::from_utf8_lossy(bytes);
    }
    let mut out = String::with_capacity(bytes.len() + 8);
    for byte in bytes {
        if plain(byte) {
            out.push(char::from(*byte));
        } else {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out.into()
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    if text == "/" {
        return Some(Vec::new());
    }
    let mut parts = text.split("\\x");
    let mut out = parts.next()?.as_bytes().to_vec();
    for part in parts {
        out.extend(unhex(part.get(..2)?)?);
        out.extend_from_slice(&part.as_bytes()[2..]);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(text: &str) -> Node {
        Node::new(Kind::File(Content::bytes(text)), 0o644, 7)
    }

    #[test]
    fn parents_appear_and_removal_takes_what_is_below() {
        let mut tree = Tree::new();
        tree.insert_with_parents("/a/b/c", file("x"));
        tree.insert("a/b2", file("y"));
        let paths: Vec<_> = tree.iter().map(|(p, _)| String::from_utf8_lossy(p)).collect();
        assert_eq!(paths, ["a", "a/b", "a/b/c", "a/b2"]);
        assert!(tree.remove("a/b"));
        assert_eq!(tree.len(), 2);
        assert!(!tree.remove("a/b"));
    }

    #[test]
    fn links_are_followed_inside_the_tree() {
        let mut tree = Tree::new();
        let link = |to: &str| Node::new(Kind::Symlink(to.into()), 0o777, 0);
        tree.insert_with_parents("usr/bin/sh", link("dash"));
        tree.insert("bin", link("usr/bin"));
        tree.insert("up", link("../../bin"));
        tree.insert("loop", link("/loop"));
        assert_eq!(tree.resolve("/up/sh").as_deref(), Some(&b"usr/bin/dash"[..]));
        assert_eq!(tree.resolve("bin/../x").as_deref(), Some(&b"usr/x"[..]));
        assert_eq!(tree.resolve("loop"), None);
    }

    #[test]
    fn equal_trees_have_equal_digests_wherever_contents_lie() {
        let mut tree = Tree::new();
        tree.insert("f", file("abc"));
        let mut packed = tree.clone();
        let sha256 = Digest::of(b"abc");
        let content = Content::Packed { pack: Digest([1; 32]), offset: 9, len: 3, sha256 };
        packed.insert("f", Node::new(Kind::File(content), 0o644, 7));
        assert_eq!(tree.digest(), packed.digest());
        assert_eq!(packed.packs(), [Digest([1; 32])]);
        assert_eq!(Tree::parse(&packed.dump()), Ok(packed));
    }

    fn any_kind() -> impl Strategy<Value = Kind> {
        let bytes = || proptest::collection::vec(any::<u8>(), 1..40);
        prop_oneof![
            Just(Kind::Dir),
            Just(Kind::Fifo),
            bytes().prop_map(|b| Kind::File(Content::bytes(b))),
            bytes().prop_map(Kind::Symlink),
            bytes().prop_map(|b| Kind::HardLink(normal(&b))),
            any::<(u32, u32)>().prop_map(|(major, minor)| Kind::CharDev { major, minor }),
        ]
    }

    proptest! {
        #[test]
        fn a_dump_reads_back(nodes in proptest::collection::vec(
            (proptest::collection::vec(any::<u8>(), 0..20), any_kind(), 0u32..0o10000, any::<(u32, u32, i64)>(),
             proptest::collection::btree_map(proptest::collection::vec(any::<u8>(), 1..9), proptest::collection::vec(any::<u8>(), 0..9), 0..3)), 0..20)) {
            let mut tree = Tree::new();
            for (path, kind, mode, (uid, gid, mtime), xattrs) in nodes {
                tree.insert(path, Node { kind, mode, uid, gid, mtime, xattrs });
            }
            prop_assert_eq!(Tree::parse(&tree.dump()), Ok(tree));
        }

        #[test]
        fn no_dump_panics(text in "(kiln-tree 1\n)?[0-9a-f :=\\\\xéдlhdfcp/\n-]{0,200}") {
            let _ = Tree::parse(&text);
        }
    }
}
