//! Plain extraction of packages whose programs Kiln runs itself: GRUB, QEMU.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::error::{Doing, Failure, Inner, SandboxError};
use super::extract::{Claim, DirMeta, Owners, Root, Writer};
use super::unpack::{Package, Stop, parallel, read_all, workers};
use crate::host::fs::FileError;
use crate::source::debian::deb::{Deb, Entry, EntryKind};
use crate::tree::TreePath;

/// Unpacks `debs` into the new folder `dir` as the calling user, without any script of theirs: owners are not kept, setuid
/// bits and device files left out. base-files, with the links of a merged /usr, must be among them for programs to find
/// their loader. Of two packages that hold one path, the first in the list wins.
///
/// # Errors
/// When a package is damaged or `dir` can't be written; `dir` is half written then.
pub fn unpack_tools(debs: &[PathBuf], dir: &Path) -> Result<(), SandboxError> {
    std::fs::create_dir_all(dir).map_err(FileError::at("can't make the folder", dir))?;
    let root = Root::open(dir).map_err(FileError::at("can't open the folder", dir))?;
    unpack(debs, &root).map_err(|failure| failure.explain(dir))
}

fn unpack(debs: &[PathBuf], root: &Root) -> Inner<()> {
    let packages = read_all(debs)?;
    let owners = Owners::default();
    let (base, mut rest): (Vec<usize>, Vec<usize>) =
        (0..packages.len()).partition(|&i| packages[i].meta.name == "base-files");
    rest.sort_by_key(|&i| (std::cmp::Reverse(packages[i].size), i));
    let mut dirs = Vec::new();
    for index in base {
        dirs.extend(one(root, &packages, index, &owners)?);
    }
    let found = parallel(rest.len(), workers(), |at| one(root, &packages, rest[at], &owners))?;
    dirs.extend(found.into_iter().flatten());
    dirs.sort();
    for (path, mode) in dirs.into_iter().rev() {
        root.finish_dir(&path, DirMeta { mode, owner: None, mtime: None })
            .doing_at("setting the mode of", &path)?;
    }
    Ok(())
}

/// Unpacks one package; answers its directories and their modes.
fn one(root: &Root, packages: &[Package], index: usize, owners: &Owners) -> Inner<Vec<(TreePath, u32)>> {
    let path = &packages[index].path;
    let mut writer = Writer::new(root, false);
    let mut dirs = Vec::new();
    let mut each = |mut entry: Entry, reader: &mut dyn Read| -> Result<(), Stop> {
        match entry.kind {
            EntryKind::CharDev(..) | EntryKind::BlockDev(..) | EntryKind::Fifo => return Ok(()),
            EntryKind::Dir => {
                writer.dir(&entry.path).map_err(io::Error::from).doing_at("making", &entry.path)?;
                dirs.push((entry.path, entry.mode & 0o777 | 0o700));
                return Ok(());
            }
            _ => {}
        }
        entry.mode = entry.mode & 0o777 | 0o400;
        let replace = match owners.claim(&entry.path, index, |a, b| a < b) {
            Claim::Free => false,
            Claim::Taken(_) => true,
            Claim::Lost(_) | Claim::Clash(_) => return Ok(()),
        };
        match writer.entry(&entry.path, &entry, reader, replace) {
            // Another package took the path over between the claim and the writing.
            Err(e)
                if e.kind() == io::ErrorKind::AlreadyExists && owners.owner(&entry.path) != Some(index) =>
            {
                Ok(())
            }
            other => Ok(other.doing_at("unpacking", &entry.path)?),
        }
    };
    let failure = |why: String| Failure::Package { path: path.clone(), why };
    match Deb::open(path).map_err(|e| failure(e.to_string()))?.data::<Stop>(&mut each) {
        Ok(()) => Ok(dirs),
        Err(Stop::Deb(e)) => Err(failure(e.to_string())),
        Err(Stop::Inner(failure)) => Err(failure),
    }
}
