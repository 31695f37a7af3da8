//! The mounts that make a running system of an image and a state.

use std::fs;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::config::{Config, ETC, FOLDERS};
use crate::copy::{self, Copier};
use crate::error::{At, FileError};
use crate::state::{DPKG, ETC_WORK, Places};

const NOTHING: Option<&str> = None;

/// Mounts a file system of the kernel's own; one that is there already is fine.
///
/// # Errors
/// When it can't be mounted.
pub fn kernel_file_system(kind: &str, at: &str, options: &str) -> Result<(), FileError> {
    if !Path::new(at).is_dir() {
        fs::create_dir(at).at("create", at)?;
    }
    // As systemd would mount them, which leaves what is mounted as it is: programs map devices executable.
    let flags = match kind {
        "devtmpfs" => MsFlags::MS_NOSUID | MsFlags::MS_STRICTATIME,
        _ => MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
    };
    match mount(Some(kind), at, Some(kind), flags, Some(options)) {
        Err(nix::errno::Errno::EBUSY) => Ok(()),
        result => result.at("mount", at),
    }
}

/// Mounts a device.
///
/// # Errors
/// When it can't be mounted.
pub fn device(
    node: &Path,
    at: &Path,
    kind: &str,
    flags: MsFlags,
    options: Option<&str>,
) -> Result<(), FileError> {
    if !at.is_dir() {
        fs::create_dir_all(at).at("create", at)?;
    }
    mount(Some(node), at, Some(kind), flags, options).at("mount", node)
}

/// Shows a file or folder at another place as well.
///
/// # Errors
/// When it can't be mounted.
pub fn bind(from: &Path, to: &Path) -> Result<(), FileError> {
    mount(Some(from), to, NOTHING, MsFlags::MS_BIND, NOTHING).at("mount", to)
}

/// Moves a mount.
///
/// # Errors
/// When it can't be moved.
pub fn shift(from: &Path, to: &Path) -> Result<(), FileError> {
    mount(Some(from), to, NOTHING, MsFlags::MS_MOVE, NOTHING).at("mount", to)
}

/// Mounts an empty file system in memory.
///
/// # Errors
/// When it can't be mounted.
pub fn memory(at: &Path) -> Result<(), FileError> {
    if !at.is_dir() {
        fs::create_dir(at).at("create", at)?;
    }
    mount(Some("state"), at, Some("tmpfs"), MsFlags::empty(), Some("mode=0755")).at("mount", at)
}

/// Lays a state over a system whose image is mounted: /etc as overlay, /var and its like bound, the package database as the
/// image has it. That is held at `aside` for a moment, while the state's /var hides it.
///
/// # Errors
/// When one of them can't be mounted.
pub fn lay_over(image: &Path, state: &Path, aside: &Path) -> Result<(), FileError> {
    let database = image.join(DPKG);
    let has_database = database.is_dir();
    if has_database {
        fs::create_dir_all(aside).at("create", aside)?;
        bind(&database, aside)?;
    }
    etc(image, state)?;
    for folder in FOLDERS {
        let (from, to) = (state.join(folder), image.join(folder));
        if fs::symlink_metadata(&to).is_ok_and(|m| m.is_dir()) && from.is_dir() {
            bind(&from, &to)?;
        }
    }
    if has_database {
        copy::create_folders(state, &[image], Path::new(DPKG))?;
        shift(aside, &database)?;
    }
    Ok(())
}

fn etc(image: &Path, state: &Path) -> Result<(), FileError> {
    let (lower, upper, work) = (image.join(ETC), state.join(ETC), state.join(ETC_WORK));
    for folder in [&upper, &work] {
        if !folder.is_dir() {
            fs::create_dir(folder).at("create", folder)?;
        }
    }
    // The lower layer comes from another image with every generation: nothing may be remembered of it.
    let options = format!(
        "lowerdir={},upperdir={},workdir={},index=off,metacopy=off",
        lower.display(),
        upper.display(),
        work.display()
    );
    mount(Some("etc"), &lower, Some("overlay"), MsFlags::empty(), Some(options.as_str())).at("mount", lower)
}

/// Shows what is kept over a state that is only in memory. What is not kept yet begins as the image has it, and as an empty folder
/// when the image doesn't have it either.
///
/// # Errors
/// When something can't be copied or mounted.
pub fn bind_kept(places: &Places, config: &Config, memory: &Path) -> Result<(), FileError> {
    let persistent = places.state();
    if !persistent.is_dir() {
        fs::create_dir(&persistent).at("create", &persistent)?;
    }
    for path in &config.keep {
        let (kept, shown) = (persistent.join(path), places.image.join(path));
        if fs::symlink_metadata(&kept).is_err() {
            begin(path, &persistent, &places.image)?;
        }
        if fs::symlink_metadata(&shown).is_err() {
            copy::create_folders(&places.image, &[&persistent], path)?;
        }
        bind(&kept, &shown)?;
    }
    // What was mounted from it stays; nobody needs its own place.
    umount2(memory, MntFlags::MNT_DETACH).at("unmount", memory)
}

/// Begins to keep a path; complete under its name or not there at all.
fn begin(path: &Path, persistent: &Path, image: &Path) -> Result<(), FileError> {
    let parent = path.parent().unwrap_or(Path::new(""));
    copy::create_folders(persistent, &[image], parent)?;
    let new = persistent.join(".keep.new");
    copy::remove(&new)?;
    let from = image.join(path);
    if fs::symlink_metadata(&from).is_ok() {
        Copier::default().copy(&from, &new, &|_| false)?;
    } else {
        fs::create_dir(&new).at("create", &new)?;
    }
    copy::sync_file_system(persistent)?;
    let to = persistent.join(path);
    fs::rename(&new, &to).at("create", to)
}
