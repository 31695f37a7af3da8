//! The files that a profile names: sources of files and scripts, key files, local packages. They lie beside the profile,
//! within its project, and each one read is recorded as an input.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::project::{Project, normalise};
use super::{Evaluated, Input, ProfileError};
use crate::digest::{Digest, Hasher};

/// Most entries that a copied folder may hold. It stops `source = "."` at the top of a large tree.
const MAX_ENTRIES: usize = 100_000;

/// One thing found below a `source`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProfileFile {
    /// A file.
    File {
        /// Where its bytes are.
        path: PathBuf,
        /// Whether its owner may execute it.
        executable: bool,
    },
    /// A folder.
    Folder,
    /// A symbolic link, which is copied as it is.
    Link(PathBuf),
}

/// Reads files beside a profile.
#[derive(Debug)]
pub struct ProfileFiles {
    project: Project,
    folder: PathBuf,
    seen: Mutex<BTreeMap<PathBuf, Digest>>,
}

impl ProfileFiles {
    /// The files of an evaluated profile.
    #[must_use]
    pub fn new(evaluated: &Evaluated) -> ProfileFiles {
        let (root, roots) = (evaluated.root.clone(), evaluated.roots.clone());
        let project = Project { root, roots, profile: evaluated.folder.join("profile") };
        ProfileFiles { project, folder: evaluated.folder.clone(), seen: Mutex::default() }
    }

    /// Where the file that the profile calls `name` lies, links followed.
    ///
    /// # Errors
    /// When it isn't there or lies outside the project.
    pub fn resolve(&self, name: &str) -> Result<PathBuf, ProfileError> {
        let path = normalise(&self.folder.join(name));
        self.project.admit(&path).map_err(|reason| wrong(name, reason))
    }

    /// The bytes of the file `name`.
    ///
    /// # Errors
    /// When it can't be read or lies outside the project.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, ProfileError> {
        let path = self.resolve(name)?;
        let bytes = fs::read(&path).map_err(|e| wrong(name, e.to_string()))?;
        self.record(&path, Digest::of(&bytes));
        Ok(bytes)
    }

    /// The digest and size of the file `name`, which is recorded as an input.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn digest(&self, name: &str) -> Result<(Digest, u64), ProfileError> {
        let path = self.resolve(name)?;
        let file = fs::File::open(&path).map_err(|e| wrong(name, e.to_string()))?;
        let mut hasher = Hasher::new();
        let mut reader = io::BufReader::with_capacity(256 << 10, file);
        let size = io::copy(&mut reader, &mut hasher).map_err(|e| wrong(name, e.to_string()))?;
        let digest = hasher.finish();
        self.record(&path, digest);
        Ok((digest, size))
    }

    /// What `name` is and, for a folder, all below it by relative path, in the order of names. The entry for `name` itself
    /// has an empty path.
    ///
    /// # Errors
    /// When something can't be read, lies outside the project or is neither file, folder nor link.
    pub fn list(&self, name: &str) -> Result<BTreeMap<PathBuf, ProfileFile>, ProfileError> {
        let top = self.resolve(name)?;
        let mut found = BTreeMap::new();
        let mut open = vec![PathBuf::new()];
        while let Some(relative) = open.pop() {
            let path = top.join(&relative);
            let path = if relative.as_os_str().is_empty() { top.clone() } else { path };
            let entry =
                self.entry(&path).map_err(|reason| wrong(name, format!("{}: {reason}", path.display())))?;
            if entry == ProfileFile::Folder {
                let listed = fs::read_dir(&path).and_then(|d| d.collect::<Result<Vec<_>, _>>());
                let listed = listed.map_err(|e| wrong(name, format!("{}: {e}", path.display())))?;
                open.extend(listed.into_iter().map(|e| relative.join(e.file_name())));
            }
            found.insert(relative, entry);
            if found.len() > MAX_ENTRIES {
                return Err(wrong(name, format!("holds more than {MAX_ENTRIES} files")));
            }
        }
        Ok(found)
    }

    fn entry(&self, path: &Path) -> Result<ProfileFile, String> {
        let meta = fs::symlink_metadata(path).map_err(|e| e.to_string())?;
        let kind = meta.file_type();
        if kind.is_symlink() {
            return fs::read_link(path).map(ProfileFile::Link).map_err(|e| e.to_string());
        }
        if kind.is_dir() {
            return Ok(ProfileFile::Folder);
        }
        if !kind.is_file() {
            return Err("is neither file, folder nor link".to_owned());
        }
        let executable = meta.permissions().mode() & 0o100 != 0;
        Ok(ProfileFile::File { path: path.to_owned(), executable })
    }

    /// Records a file that was read by its path from [`list`](Self::list).
    pub fn record(&self, path: &Path, sha256: Digest) {
        let mut seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        seen.insert(self.project.name(path), sha256);
    }

    /// The files read so far, in the order of their paths.
    #[must_use]
    pub fn inputs(&self) -> Vec<Input> {
        let seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        seen.iter().map(|(path, sha256)| Input { path: path.clone(), sha256: *sha256 }).collect()
    }
}

fn wrong(name: &str, reason: String) -> ProfileError {
    ProfileError::File { name: name.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(base: &Path) -> ProfileFiles {
        fs::create_dir_all(base.join("p/site/sub")).unwrap();
        fs::write(base.join("p/site/index.html"), "hello").unwrap();
        fs::write(base.join("outside"), "x").unwrap();
        std::os::unix::fs::symlink("index.html", base.join("p/site/sub/link")).unwrap();
        std::os::unix::fs::symlink("../outside", base.join("p/leak")).unwrap();
        let folder = fs::canonicalize(base.join("p")).unwrap();
        let project = Project { root: folder.clone(), roots: Vec::new(), profile: folder.join("p.ncl") };
        ProfileFiles { project, folder, seen: Mutex::default() }
    }

    #[test]
    fn files_are_read_and_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path());
        assert_eq!(files.read("site/index.html").unwrap(), b"hello");
        let input = Input { path: "site/index.html".into(), sha256: Digest::of(b"hello") };
        assert_eq!(files.inputs(), [input]);
        assert_eq!(files.digest("site/index.html").unwrap(), (Digest::of(b"hello"), 5));
    }

    #[test]
    fn folders_are_listed_with_their_links() {
        let dir = tempfile::tempdir().unwrap();
        let found = files(dir.path()).list("site").unwrap();
        let names: Vec<_> = found.keys().map(|p| p.to_str().unwrap()).collect();
        assert_eq!(names, ["", "index.html", "sub", "sub/link"]);
        assert_eq!(found[Path::new("sub/link")], ProfileFile::Link("index.html".into()));
    }

    #[test]
    fn nothing_outside_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path());
        for name in ["../outside", "leak", "/etc/hostname", "site/../../outside"] {
            let error = files.read(name).unwrap_err().to_string();
            assert!(error.contains("outside the project"), "{error}");
        }
        assert!(files.read("absent").is_err());
    }
}
