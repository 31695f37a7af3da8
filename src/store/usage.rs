//! What the store holds, by kind.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;

use super::dir::allocated;
use super::step::Shelf;
use super::{Store, StoreError};
use crate::digest::Digest;
use crate::host::fs::FileError;
use crate::units::Bytes;

/// How many things of a kind there are, and what they take on the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Share {
    /// How many.
    pub count: u64,
    /// Allocated bytes; holes don't count.
    pub size: Bytes,
}

impl Share {
    pub(super) fn add(&mut self, size: Bytes) {
        self.count += 1;
        self.size.0 += size.0;
    }
}

/// What the store holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Blobs: packages, indexes, trees and their packs.
    pub blobs: Share,
    /// Raw disk images.
    pub images: Share,
    /// Directory trees: unpacked tools.
    pub dirs: Share,
    /// Recorded results of steps.
    pub steps: Share,
    /// Downloads that can be resumed.
    pub partial: Share,
    /// Blobs that were found damaged.
    pub damaged: Share,
    /// What steps are working on now.
    pub scratch: Share,
    /// All of it together.
    pub total: Share,
    /// Output folders that keep what they need, stale ones included.
    pub roots: u64,
    /// Of these, those whose folder is gone.
    pub stale_roots: u64,
    /// What the store's file system can still take.
    pub free: Bytes,
}

/// What lies in one of the store's folders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Step,
    On(Shelf),
    Partial,
    Damaged,
}

/// One thing of the store, as a collection sees it.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) kind: Kind,
    pub(super) name: Digest,
    pub(super) path: PathBuf,
    pub(super) size: Bytes,
    pub(super) used: SystemTime,
}

impl Store {
    /// Counts what the store holds.
    ///
    /// # Errors
    /// When a folder can't be read.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let mut usage = Usage { free: self.free_space()?, ..Usage::default() };
        for item in self.items()? {
            let share = match item.kind {
                Kind::Step => &mut usage.steps,
                Kind::On(Shelf::Blob) => &mut usage.blobs,
                Kind::On(Shelf::Image) => &mut usage.images,
                Kind::On(Shelf::Dir) => &mut usage.dirs,
                Kind::Partial => &mut usage.partial,
                Kind::Damaged => &mut usage.damaged,
            };
            share.add(item.size);
            usage.total.add(item.size);
        }
        for path in list(&self.root.join("tmp"))?.iter().filter(|p| p.is_dir()) {
            // A running step adds and removes files meanwhile, and some belong to other users: what can be seen counts.
            let size = allocated(path).unwrap_or_default();
            usage.scratch.add(size);
            usage.total.add(size);
        }
        let roots = self.roots()?;
        usage.roots = roots.len() as u64;
        usage.stale_roots = roots.iter().filter(|r| r.is_stale()).count() as u64;
        Ok(usage)
    }

    /// Everything with a final name, in no particular order.
    pub(super) fn items(&self) -> Result<Vec<Item>, StoreError> {
        let mut items = Vec::new();
        for (folder, kind) in [("blobs", Kind::On(Shelf::Blob)), ("steps", Kind::Step)] {
            for fan in list(&self.root.join(folder))? {
                for path in list(&fan)? {
                    items.extend(file_item(kind, path));
                }
            }
        }
        for (folder, kind) in [("partial", Kind::Partial), ("damaged", Kind::Damaged)] {
            items.extend(list(&self.root.join(folder))?.into_iter().filter_map(|p| file_item(kind, p)));
        }
        for path in list(&self.root.join("images"))? {
            if path.extension().is_some_and(|e| e == "raw") {
                items.extend(file_item(Kind::On(Shelf::Image), path));
            }
        }
        for path in list(&self.root.join("dirs"))? {
            if let Some(name) = name_of(&path).filter(|_| path.is_dir()) {
                let used = [&self.dir_sidecar(&name), &path].into_iter().find_map(|p| used(p).ok());
                let used = used.unwrap_or(SystemTime::UNIX_EPOCH);
                items.push(Item { kind: Kind::On(Shelf::Dir), name, path, size: self.dir_size(&name), used });
            }
        }
        Ok(items)
    }
}

/// The paths in a folder, without hidden ones (files that are being written).
fn list(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let wrong = || FileError::at("can't read", folder);
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(wrong())? {
        let entry = entry.map_err(wrong())?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            paths.push(entry.path());
        }
    }
    Ok(paths)
}

/// The digest that a file's name says, without an extension.
fn name_of(path: &Path) -> Option<Digest> {
    if path.extension().is_some_and(|e| e != "raw") {
        return None;
    }
    path.file_stem()?.to_str()?.parse().ok()
}

fn used(path: &Path) -> io::Result<SystemTime> {
    fs::metadata(path)?.modified()
}

/// A file as an item; `None` when it vanished meanwhile or its name is no digest.
fn file_item(kind: Kind, path: PathBuf) -> Option<Item> {
    let name = name_of(&path)?;
    let used = used(&path).ok()?;
    let size = allocated(&path).ok()?;
    Some(Item { kind, name, path, size, used })
}
