//! The project: which folders a profile may take files from.

use std::fs;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use super::ProfileError;

/// Largest file that a profile may import, in bytes. Far above any configuration; it stops an accident from filling the
/// memory.
pub(super) const MAX_IMPORT: u64 = 16 << 20;

/// The folders that a profile may take files from. All paths are canonical.
#[derive(Debug, Clone)]
pub(super) struct Project {
    /// The nearest folder at or above the profile's that holds `.git` or `kiln.toml`; else the profile's own.
    pub(super) root: PathBuf,
    /// Further folders, named on the command line.
    pub(super) roots: Vec<PathBuf>,
    /// The profile itself.
    pub(super) profile: PathBuf,
}

impl Project {
    /// The project that `profile` belongs to.
    pub(super) fn of(profile: &Path, roots: &[PathBuf]) -> Result<Project, ProfileError> {
        let unreadable =
            |path: &Path, reason: String| ProfileError::Unreadable { path: path.to_owned(), reason };
        let found = canonical(profile).map_err(|reason| unreadable(profile, reason))?;
        if !found.is_file() {
            return Err(unreadable(profile, "it is no file".to_owned()));
        }
        let canonical = |root: &PathBuf| canonical(root).map_err(|reason| unreadable(root, reason));
        let roots = roots.iter().map(canonical).collect::<Result<Vec<_>, _>>()?;
        Ok(Project { root: root_of(folder_of(&found)), roots, profile: found })
    }

    /// The profile's folder.
    pub(super) fn folder(&self) -> &Path {
        folder_of(&self.profile)
    }

    /// `path` with links followed, when that lies in the project; else why not.
    pub(super) fn admit(&self, path: &Path) -> Result<PathBuf, String> {
        let real = canonical(path)?;
        if self.holds(&real) {
            return Ok(real);
        }
        let link = if real == normalise(path) {
            String::new()
        } else {
            format!(" (it leads to {})", real.display())
        };
        Err(format!(
            "it lies outside the project {}{link}; nothing else is readable, unless its folder is named with --root",
            self.root.display()
        ))
    }

    /// Whether a canonical path lies in the project.
    pub(super) fn holds(&self, real: &Path) -> bool {
        std::iter::once(&self.root).chain(&self.roots).any(|root| real.starts_with(root))
    }

    /// How an input is named: relative to the root where it lies there.
    pub(super) fn name(&self, real: &Path) -> PathBuf {
        real.strip_prefix(&self.root).unwrap_or(real).to_owned()
    }
}

/// `path` with links followed. The lock and the evaluator's answer name files as text.
fn canonical(path: &Path) -> Result<PathBuf, String> {
    let real = fs::canonicalize(path).map_err(|e| e.to_string())?;
    match real.to_str() {
        Some(_) => Ok(real),
        None => Err(format!("its path, {}, isn't UTF-8", real.display())),
    }
}

fn folder_of(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new("/"))
}

fn root_of(folder: &Path) -> PathBuf {
    let marked = |f: &&Path| f.join(".git").exists() || f.join("kiln.toml").exists();
    folder.ancestors().find(marked).unwrap_or(folder).to_owned()
}

/// The bytes of a file that `admit` let through. Special files and huge ones are refused.
pub(super) fn read_import(real: &Path) -> Result<Vec<u8>, String> {
    let file = fs::File::open(real).map_err(|e| e.to_string())?;
    let meta = file.metadata().map_err(|e| e.to_string())?;
    if !meta.is_file() {
        return Err("it is no plain file".to_owned());
    }
    let mut bytes = Vec::new();
    file.take(MAX_IMPORT + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() as u64 > MAX_IMPORT {
        return Err(format!("it has {} bytes, but at most {MAX_IMPORT} can be imported", meta.len()));
    }
    Ok(bytes)
}

/// `path`, which is absolute, without `.` and `..`; links aren't followed, as Nickel doesn't follow them.
pub(super) fn normalise(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            Component::Prefix(_) | Component::RootDir | Component::CurDir => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_mark_makes_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let base = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir_all(base.join("a/b/c")).unwrap();
        fs::write(base.join("a/b/c/p.ncl"), "{}").unwrap();
        fs::write(base.join("a/kiln.toml"), "").unwrap();
        let project = Project::of(&base.join("a/b/c/p.ncl"), &[]).unwrap();
        assert_eq!(project.root, base.join("a"));
        fs::create_dir(base.join("a/b/.git")).unwrap();
        assert_eq!(Project::of(&base.join("a/b/c/p.ncl"), &[]).unwrap().root, base.join("a/b"));
    }

    #[test]
    fn what_lies_outside_is_refused_by_path_and_by_link() {
        let dir = tempfile::tempdir().unwrap();
        let base = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir_all(base.join("in/.git")).unwrap();
        fs::write(base.join("in/p.ncl"), "{}").unwrap();
        fs::write(base.join("secret"), "x").unwrap();
        std::os::unix::fs::symlink("../secret", base.join("in/link")).unwrap();
        let project = Project::of(&base.join("in/p.ncl"), &[]).unwrap();
        assert!(project.admit(&base.join("in/../secret")).unwrap_err().contains("outside the project"));
        assert!(project.admit(&base.join("in/link")).unwrap_err().contains("(it leads to "));
        let wider = Project::of(&base.join("in/p.ncl"), std::slice::from_ref(&base)).unwrap();
        assert_eq!(wider.admit(&base.join("in/link")).unwrap(), base.join("secret"));
    }
}
