//! Roots: what built outputs need, so that a collection keeps it for as long as the output folder exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Store, StoreError};
use crate::digest::Digest;
use crate::host::fs::FileError;

/// Something that the user still has, and what of the store it needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// What it is called: the profile's name.
    pub name: String,
    /// The output folder, or an overlay's file. Once it is gone, the root is stale and a collection drops it.
    pub out: PathBuf,
    /// Keys of the steps whose records and outputs it needs.
    #[serde(default)]
    pub steps: BTreeSet<Digest>,
    /// Blobs, images and directories that it needs besides, such as the packages of its lock.
    #[serde(default)]
    pub digests: BTreeSet<Digest>,
}

impl Root {
    /// Whether what needs it is gone.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        matches!(fs::symlink_metadata(&self.out), Err(e) if e.kind() == std::io::ErrorKind::NotFound)
    }
}

impl Store {
    /// Sets the root of an output folder, replacing an earlier one of that folder.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn add_root(&self, root: &Root) -> Result<(), StoreError> {
        let out = std::path::absolute(&root.out).map_err(FileError::at("can't find", &root.out))?;
        let path = self.root_path(&out);
        self.write_json(&path, &Root { out, ..root.clone() })
    }

    /// Keeps an image for as long as an overlay over it is there: without the image it is of no use. An image that is none
    /// of the store's is left to itself.
    ///
    /// # Errors
    /// When the root can't be written.
    pub fn keep_under(&self, overlay: &Path, name: &str, image: &Path) -> Result<(), StoreError> {
        let digest = image.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
        let Some(digest) = digest.filter(|digest| self.image_file(digest) == image) else { return Ok(()) };
        self.add_root(&Root {
            name: format!("{name}, a machine's disk"),
            out: overlay.to_owned(),
            steps: BTreeSet::new(),
            digests: BTreeSet::from([digest]),
        })
    }

    /// All roots, stale ones too, by name and folder.
    ///
    /// # Errors
    /// When one can't be read: a collection must not go on without it.
    pub fn roots(&self) -> Result<Vec<Root>, StoreError> {
        let folder = self.root.join("roots");
        let mut roots: Vec<Root> = Vec::new();
        for entry in fs::read_dir(&folder).map_err(FileError::at("can't read", &folder))? {
            let path = entry.map_err(FileError::at("can't read", &folder))?.path();
            if path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b".")) {
                continue;
            }
            let bytes = fs::read(&path).map_err(FileError::at("can't read", &path))?;
            let root = serde_json::from_slice(&bytes).map_err(std::io::Error::other);
            roots.push(root.map_err(FileError::at("can't understand", &path))?);
        }
        roots.sort_by(|a, b| (&a.name, &a.out).cmp(&(&b.name, &b.out)));
        Ok(roots)
    }

    /// Drops the root of an output folder, if there is one.
    ///
    /// # Errors
    /// When it is there and can't be removed.
    pub fn drop_root(&self, out: &Path) -> Result<(), StoreError> {
        let out = std::path::absolute(out).map_err(FileError::at("can't find", out))?;
        let path = self.root_path(&out);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(FileError::at("can't remove", &path)(e).into())
            }
            _ => Ok(()),
        }
    }

    fn root_path(&self, out: &Path) -> PathBuf {
        self.root.join("roots").join(Digest::of(out.as_os_str().as_encoded_bytes()).to_string())
    }
}
