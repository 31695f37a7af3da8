//! Files beside the profile, as the composition of the tree sees them: bytes and the executable bit, nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{BakeError, Profile};
use crate::digest::{Digest, Hasher};
use crate::profile::{ProfileFile, ProfileFiles};
use crate::rootfs::{SourceError, SourceFiles, SourceNode};
use crate::store::Store;
use crate::system::System;
use crate::tree::Content;

/// Files larger than this are put into the store instead of being held in memory.
const INLINE: u64 = 64 << 10;

/// The profile's files; large ones pass through the store.
pub(super) struct Sources<'a> {
    pub(super) files: &'a ProfileFiles,
    pub(super) store: &'a Store,
}

impl SourceFiles for Sources<'_> {
    fn source(&self, name: &str) -> Result<SourceNode, SourceError> {
        let mut listed = self.files.list(name)?;
        self.node(Path::new(""), &mut listed)
    }

    fn key(&self, name: &str) -> Result<Vec<u8>, SourceError> {
        Ok(self.files.read(name)?)
    }
}

impl Sources<'_> {
    /// The node at `path` of a listing, with all below it.
    fn node(
        &self,
        path: &Path,
        listed: &mut BTreeMap<std::path::PathBuf, ProfileFile>,
    ) -> Result<SourceNode, SourceError> {
        match listed.remove(path).ok_or("it changed while it was being read")? {
            ProfileFile::File { path, executable } => {
                Ok(SourceNode::File { content: self.content(&path)?, executable })
            }
            ProfileFile::Link(target) => Ok(SourceNode::Symlink(target.as_os_str().as_bytes().to_vec())),
            ProfileFile::Folder => {
                let children: Vec<_> = listed.keys().filter(|p| p.parent() == Some(path)).cloned().collect();
                let mut nodes = BTreeMap::new();
                for child in children {
                    let name = child.file_name().and_then(|n| n.to_str());
                    let name =
                        name.ok_or_else(|| format!("{} has a name that is no UTF-8", child.display()))?;
                    nodes.insert(name.to_owned(), self.node(&child, listed)?);
                }
                Ok(SourceNode::Folder(nodes))
            }
        }
    }

    fn content(&self, path: &Path) -> Result<Content, SourceError> {
        let mut file = fs::File::open(path)?;
        let size = file.metadata()?.len();
        if size <= INLINE {
            let bytes = fs::read(path)?;
            self.files.record(path, Digest::of(&bytes));
            return Ok(Content::bytes(bytes));
        }
        let mut writer = self.store.writer()?;
        std::io::copy(&mut file, &mut writer)?;
        let (sha256, len) = writer.finish()?;
        self.files.record(path, sha256);
        Ok(Content::Packed { pack: sha256, offset: 0, len, sha256 })
    }
}

/// The digest of each file or folder that the system names, by its name: what the tree's key holds of them.
pub(super) fn digests(profile: &Profile) -> Result<BTreeMap<String, Digest>, BakeError> {
    let names = named(profile.system());
    names.into_iter().map(|name| Ok((name.clone(), digest(&profile.files, &name)?))).collect()
}

/// Looks at everything that `profile` names, without reading it.
pub(super) fn check(profile: &Profile) -> Result<(), BakeError> {
    named(profile.system())
        .iter()
        .try_for_each(|name| profile.files.list(name).map(drop).map_err(BakeError::from))
}

fn named(system: &System) -> Vec<String> {
    let files = system.files.values().filter(|f| f.enable).filter_map(|f| f.source.clone());
    let scripts = system.run.values().filter(|s| s.enable).filter_map(|s| s.source.clone());
    let keys = system.sources.values().filter(|s| s.enable).flat_map(|s| s.keys.clone());
    files.chain(scripts).chain(keys).collect()
}

fn digest(files: &ProfileFiles, name: &str) -> Result<Digest, BakeError> {
    let mut hasher = Hasher::new();
    for (relative, node) in files.list(name)? {
        let (kind, digest) = match node {
            ProfileFile::Folder => ("folder", Digest::of(b"")),
            ProfileFile::Link(target) => ("link", Digest::of(target.as_os_str().as_bytes())),
            ProfileFile::File { path, executable } => {
                let file =
                    fs::File::open(&path).map_err(crate::host::fs::FileError::at("can't read", &path))?;
                let (digest, _) =
                    Digest::of_reader(file).map_err(crate::host::fs::FileError::at("can't read", &path))?;
                files.record(&path, digest);
                (if executable { "program" } else { "file" }, digest)
            }
        };
        hasher.update(format!("{kind} {digest} ").as_bytes());
        hasher.update(relative.as_os_str().as_bytes());
        hasher.update(b"\0");
    }
    Ok(hasher.finish())
}
