//! The order in which a file system is filled: what changes often comes last.
//!
//! Inodes and blocks are handed out in the order in which files come. Whatever precedes a change keeps its place on
//! the disk, so that of two versions of an image only few blocks differ: those are what an incremental upload moves.
//! Three classes follow each other, and within each the directories come before the files:
//!
//! 1. *Packages'*: what only another package version changes, in the order of paths.
//! 2. *State*: configuration, databases and the initrd, which scripts make or edit; the largest first, so that a file that
//!    grows moves the few small ones behind it and not the initrd.
//! 3. *Late*: what the caller names, above all the files that a profile adds; the largest first again.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

use super::size::{below, relative};
use crate::tree::{Kind, Node, Tree, TreePath, parent};

/// A node with its path within the file system that it lies on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed<'a> {
    /// The path from the file system's root.
    pub path: &'a [u8],
    /// The node; a hard link whose target lies on another file system stands as a copy of it.
    pub node: Cow<'a, Node>,
}

/// Where a node stands in the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Packages,
    State,
    Late,
}

/// The nodes of `tree` that lie on the file system mounted at `mount`, in the order in which they are to be written.
/// `others` are the mount points of further file systems, which keep their directory here and nothing below it.
#[must_use]
pub fn place<'a>(
    tree: &'a Tree,
    mount: &[u8],
    others: &[TreePath],
    late: &BTreeSet<TreePath>,
) -> Vec<Placed<'a>> {
    let inner: Vec<&TreePath> =
        others.iter().filter(|other| other.as_slice() != mount && relative(other, mount).is_some()).collect();
    let here = |path: &[u8]| relative(path, mount).is_some() && !inner.iter().any(|other| below(path, other));
    let directories = directory_classes(tree, late);
    let mut keyed: Vec<_> = tree
        .iter()
        .filter(|(path, _)| here(path))
        .map(|(path, node)| {
            let placed = Placed { path: relative(path, mount).unwrap_or(path), node: Cow::Borrowed(node) };
            match &node.kind {
                Kind::Dir => {
                    // The classes of packages and state share their directories' place: a directory that loses its
                    // last file of the one to the other must not move.
                    let class = directories.get(path.as_slice()).copied().unwrap_or(Class::Packages);
                    let class = if class == Class::State { Class::Packages } else { class };
                    ((class, 0, Reverse(0), path.as_slice()), placed)
                }
                Kind::HardLink(target) => link(tree, path, target, mount, &here, late),
                _ => (
                    (class(path, late), 1, Reverse(blocks(node, class(path, late))), path.as_slice()),
                    placed,
                ),
            }
        })
        .collect();
    keyed.sort_by(|a, b| a.0.cmp(&b.0));
    keyed.into_iter().map(|(_, placed)| placed).collect()
}

/// Divides a tree for an image that is written in two parts, the second on top of the first: what only another package
/// version changes, and the rest. All names of a file are in one part; each part has the directories above what it holds.
#[must_use]
pub fn divide(tree: &Tree, late: &BTreeSet<TreePath>) -> (Tree, Tree) {
    let file = |path: &'_ TreePath, node: &Node| match &node.kind {
        Kind::HardLink(target) => target.clone(),
        _ => path.clone(),
    };
    let (directories, files): (Vec<_>, Vec<_>) =
        tree.iter().partition(|(_, node)| matches!(node.kind, Kind::Dir));
    let changing: BTreeSet<TreePath> = files
        .iter()
        .filter(|(path, _)| class(path, late) != Class::Packages)
        .map(|(path, node)| file(path, node))
        .collect();
    let (mut packages, mut rest) = (Tree::new(), Tree::new());
    for (path, node) in files {
        let part = if changing.contains(&file(path, node)) { &mut rest } else { &mut packages };
        part.insert(path, node.clone());
    }
    let (holds_packages, holds_rest) = (all_above(&packages), all_above(&rest));
    for (path, node) in directories {
        let in_packages = holds_packages.contains(path.as_slice());
        if in_packages {
            packages.insert(path, node.clone());
        }
        if !in_packages || holds_rest.contains(path.as_slice()) {
            rest.insert(path, node.clone());
        }
    }
    (packages, rest)
}

/// The paths of all directories above nodes of `tree`.
fn all_above(tree: &Tree) -> BTreeSet<TreePath> {
    let mut above = BTreeSet::new();
    for (path, _) in tree.iter() {
        let mut path = path.as_slice();
        while !path.is_empty() {
            path = parent(path);
            if !above.insert(path.to_vec()) {
                break;
            }
        }
    }
    above
}

type Key<'a> = (Class, u8, Reverse<u64>, &'a [u8]);

/// A hard link comes after all files of its target's class.
fn link<'a>(
    tree: &'a Tree,
    path: &'a [u8],
    target: &'a [u8],
    mount: &[u8],
    here: &dyn Fn(&[u8]) -> bool,
    late: &BTreeSet<TreePath>,
) -> (Key<'a>, Placed<'a>) {
    let inside = relative(path, mount).unwrap_or(path);
    let class = class(path, late).max(class(target, late));
    let (step, node) = match tree.get(target) {
        Some(node) if !here(target) => {
            let key = (class, 1, Reverse(blocks(node, class)), path);
            return (key, Placed { path: inside, node: Cow::Borrowed(node) });
        }
        Some(node) => {
            let target = relative(target, mount).unwrap_or(target).to_vec();
            (2, Cow::Owned(Node { kind: Kind::HardLink(target), ..node.clone() }))
        }
        // A link without target is a fault of the tree, which is named when it is written.
        None => (2, Cow::Owned(Node::new(Kind::HardLink(target.to_vec()), 0, 0))),
    };
    ((class, step, Reverse(0), path), Placed { path: inside, node })
}

/// The size by which files of a class are sorted, in blocks: a change within a block keeps the order.
fn blocks(node: &Node, class: Class) -> u64 {
    match (&node.kind, class) {
        (_, Class::Packages) => 0,
        (Kind::File(content), _) => content.len().div_ceil(crate::format::ext4::BLOCK),
        _ => 0,
    }
}

fn class(path: &[u8], late: &BTreeSet<TreePath>) -> Class {
    let state = [&b"etc/"[..], b"boot/initrd", b"home/", b"root/", b"srv/", b"usr/local/", b"var/"];
    if late.contains(path) {
        Class::Late
    } else if state.iter().any(|prefix| path.starts_with(prefix)) && !path.starts_with(b"var/lib/dpkg/info/")
    {
        Class::State
    } else {
        Class::Packages
    }
}

/// A directory comes with the earliest of what lies below it, and late only when it is named itself.
fn directory_classes<'a>(tree: &'a Tree, late: &BTreeSet<TreePath>) -> HashMap<&'a [u8], Class> {
    let mut classes: HashMap<&[u8], Class> = HashMap::new();
    for (path, node) in tree.iter().rev() {
        let own = class(path, late);
        let own = match node.kind {
            Kind::Dir => classes.get(path.as_slice()).map_or(own, |below| own.min(*below)),
            _ => own,
        };
        if matches!(node.kind, Kind::Dir) {
            classes.insert(path, own);
        }
        if !path.is_empty() {
            let above = classes.entry(parent(path)).or_insert(own);
            *above = own.min(*above);
        }
    }
    classes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Content;

    fn tree(list: &[(&str, usize)]) -> Tree {
        let mut tree = Tree::new();
        tree.insert("", Node::new(Kind::Dir, 0o755, 0));
        for &(path, len) in list {
            let file = Node::new(Kind::File(Content::bytes(vec![b'x'; len])), 0o644, 0);
            tree.insert_with_parents(path, file);
        }
        tree
    }

    fn paths(placed: &[Placed<'_>]) -> Vec<String> {
        placed.iter().map(|p| String::from_utf8_lossy(p.path).into_owned()).collect()
    }

    #[test]
    fn what_changes_often_comes_last() {
        let mut tree = tree(&[
            ("boot/initrd.img-6", 90_000),
            ("boot/vmlinuz-6", 9),
            ("etc/passwd", 9),
            ("etc/large", 9000),
            ("opt/new/file", 9),
            ("usr/bin/sh", 9),
            ("usr/bin/own", 9000),
            ("var/lib/dpkg/info/sh.list", 9),
            ("var/lib/dpkg/status", 20_000),
        ]);
        tree.insert("usr/bin/dash", Node::new(Kind::HardLink(b"usr/bin/own".to_vec()), 0, 0));
        tree.insert_with_parents("etc/empty.d", Node::new(Kind::Dir, 0o755, 0));
        let late = [&b"opt"[..], b"opt/new", b"opt/new/file", b"usr/bin/own"].map(<[u8]>::to_vec).into();
        insta::assert_snapshot!(paths(&place(&tree, b"", &[], &late)).join("\n"));
    }

    #[test]
    fn a_file_in_an_empty_directory_of_a_package_moves_nothing_before_it() {
        let mut tree = tree(&[("etc/a", 1), ("usr/bin/sh", 9)]);
        tree.insert_with_parents("etc/empty.d", Node::new(Kind::Dir, 0o755, 0));
        let before = paths(&place(&tree, b"", &[], &BTreeSet::new()));
        tree.insert("etc/empty.d/new", Node::new(Kind::File(Content::bytes("x")), 0o644, 0));
        let late = [b"etc/empty.d/new".to_vec()].into();
        let after = paths(&place(&tree, b"", &[], &late));
        assert_eq!(after[..before.len()], before);
    }

    #[test]
    fn a_divided_tree_is_whole_and_keeps_the_names_of_a_file_together() {
        let mut tree = tree(&[
            ("etc/passwd", 9),
            ("usr/bin/own", 9),
            ("usr/bin/sh", 9),
            ("usr/lib/a", 9),
            ("usr/lib/b", 9),
            ("var/link", 9),
        ]);
        let link = |to: &str| Node::new(Kind::HardLink(to.into()), 0, 0);
        tree.insert("usr/lib/also-a", link("usr/lib/a"));
        tree.insert("var/b", link("usr/lib/b"));
        tree.insert_with_parents("usr/empty", Node::new(Kind::Dir, 0o755, 0));
        let (packages, rest) = divide(&tree, &[b"usr/bin/own".to_vec()].into());
        let paths = |tree: &Tree| -> Vec<String> {
            tree.iter().map(|(path, _)| String::from_utf8_lossy(path).into_owned()).collect()
        };
        let both = ["", "usr", "usr/bin", "usr/lib"];
        assert_eq!(
            paths(&packages),
            [&both[..3], &["usr/bin/sh"], &both[3..], &["usr/lib/a", "usr/lib/also-a"]].concat()
        );
        let own =
            ["", "etc", "etc/passwd", "usr", "usr/bin", "usr/bin/own", "usr/empty", "usr/lib", "usr/lib/b"];
        assert_eq!(paths(&rest), [&own[..], &["var", "var/b", "var/link"]].concat());
        for (path, node) in tree.iter() {
            assert!([&packages, &rest].iter().any(|part| part.get(path) == Some(node)));
        }
    }

    #[test]
    fn each_file_system_gets_what_lies_on_it() {
        let mut tree = tree(&[("srv/data/a", 1), ("srv/data/deep/b", 1), ("srv/other", 1)]);
        tree.insert("srv/link", Node::new(Kind::HardLink(b"srv/data/a".to_vec()), 0, 0));
        tree.insert("srv/data/link", Node::new(Kind::HardLink(b"srv/data/a".to_vec()), 0, 0));
        let others = [b"srv/data".to_vec(), b"srv/data/deep".to_vec()];
        let late = BTreeSet::new();
        let root = place(&tree, b"", &others, &late);
        assert_eq!(paths(&root), ["", "srv", "srv/data", "srv/link", "srv/other"]);
        assert!(matches!(&root[3].node.kind, Kind::File(content) if content.len() == 1));
        let data = place(&tree, b"srv/data", &others, &late);
        assert_eq!(paths(&data), ["", "deep", "a", "link"]);
        assert_eq!(data[3].node.kind, Kind::HardLink(b"a".to_vec()));
        assert_eq!(paths(&place(&tree, b"srv/data/deep", &others, &late)), ["", "b"]);
    }
}
