//! The machine's state: /var, /home, /root, /srv and the changes of /etc, in one folder beside the store.
//!
//! It begins as a copy of what the image has there. A generation that comes later adds what the state lacks, once, and never
//! overwrites anything.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::accounts;
use crate::config::{ETC, FOLDERS};
use crate::copy::{self, Copier};
use crate::error::{At, FileError};
use crate::steps::{Steps, Stopped};

/// The folder of the state.
pub const STATE: &str = "state";
/// The state while it is made, and the old one for a moment of a clean slate.
pub const FRESH: &str = "state.new";
/// What a generation adds, before it is moved to its place.
const ADDED: &str = "state.add";
/// Names the systems whose files the state has got.
const SEEDED: &str = ".seeded";
/// What overlayfs needs beside /etc's upper layer.
pub const ETC_WORK: &str = ".etc-work";
/// The package database: always that of the running system.
pub const DPKG: &str = "var/lib/dpkg";

/// Where things are.
#[derive(Debug, Clone)]
pub struct Places {
    /// The root of the partition with store and state.
    pub kiln: PathBuf,
    /// The root of the system's image.
    pub image: PathBuf,
    /// The system's name in the store.
    pub system: String,
}

impl Places {
    /// The folder of the state.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.kiln.join(STATE)
    }
}

/// Fills an empty folder with what the image has for a machine's first boot.
///
/// # Errors
/// When it can't be read or written.
pub fn seed(places: &Places, fresh: &Path) -> Result<(), FileError> {
    let database = places.image.join(DPKG);
    let mut copier = Copier::default();
    for folder in FOLDERS {
        let from = places.image.join(folder);
        if is_folder(&from) {
            copier.copy(&from, &fresh.join(folder), &|path| path == database)?;
        }
    }
    let (from, to) = (places.image.join(ETC), fresh.join(ETC));
    fs::create_dir(&to).at("create", &to)?;
    copy::like(&fs::symlink_metadata(&from).at("read", &from)?, &from, &to)?;
    let work = fresh.join(ETC_WORK);
    fs::create_dir(&work).at("create", &work)?;
    let seeded = fresh.join(SEEDED);
    fs::write(&seeded, format!("{}\n", places.system)).at("write", seeded)
}

fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

/// Makes a fresh state beside the one that there may be; it has reached the disk when this returns.
///
/// # Errors
/// When it can't be written.
pub fn build_fresh(places: &Places, steps: &mut Steps) -> Result<PathBuf, Stopped> {
    let fresh = places.kiln.join(FRESH);
    steps.step()?;
    copy::remove(&fresh)?;
    fs::create_dir(&fresh).at("create", &fresh)?;
    steps.step()?;
    seed(places, &fresh)?;
    steps.step()?;
    copy::sync_file_system(&fresh)?;
    Ok(fresh)
}

/// Sees to it that there is state, with all that the image has for it; what was added or is doubtful is said.
///
/// # Errors
/// When it can't be written.
pub fn prepare(places: &Places, steps: &mut Steps) -> Result<Vec<String>, Stopped> {
    let state = places.state();
    if !is_folder(&state) {
        let fresh = build_fresh(places, steps)?;
        steps.step()?;
        fs::rename(&fresh, &state).at("create", &state)?;
        copy::sync(&places.kiln)?;
        return Ok(vec!["first boot: the state begins as the image has it".to_owned()]);
    }
    // Of a clean slate that nobody wants any longer.
    copy::remove(&places.kiln.join(FRESH))?;
    let path = state.join(SEEDED);
    let seeded = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        result => result.at("read", &path)?,
    };
    if seeded.lines().any(|line| line == places.system) {
        return Ok(Vec::new());
    }
    let mut said = add_missing(places, steps)?;
    said.extend(accounts::merge(&places.image.join(ETC), &state.join(ETC), steps)?);
    steps.step()?;
    copy::write_atomically(&path, format!("{seeded}{}\n", places.system).as_bytes())?;
    Ok(said)
}

/// Adds the files and folders that the image has and the state lacks. They are copied aside and have reached the disk before the
/// first is moved, so that none of them is ever there by half.
fn add_missing(places: &Places, steps: &mut Steps) -> Result<Vec<String>, Stopped> {
    let aside = places.kiln.join(ADDED);
    steps.step()?;
    copy::remove(&aside)?;
    let mut missing = Vec::new();
    for folder in FOLDERS {
        find_missing(places, Path::new(folder), &mut missing)?;
    }
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    fs::create_dir(&aside).at("create", &aside)?;
    let database = places.image.join(DPKG);
    let mut copier = Copier::default();
    for (number, path) in missing.iter().enumerate() {
        let copy = aside.join(number.to_string());
        copier.copy(&places.image.join(path), &copy, &|path| path == database)?;
    }
    steps.step()?;
    copy::sync_file_system(&aside)?;
    for (number, path) in missing.iter().enumerate() {
        steps.step()?;
        let to = places.state().join(path);
        fs::rename(aside.join(number.to_string()), &to).at("create", &to)?;
    }
    steps.step()?;
    copy::sync_file_system(&aside)?;
    copy::remove(&aside)?;
    Ok(vec![format!("the state lacked {} of the system's files and folders: added", missing.len())])
}

/// The paths of which the state has nothing, where it has the folder around.
fn find_missing(places: &Places, path: &Path, missing: &mut Vec<PathBuf>) -> Result<(), FileError> {
    let (from, to) = (places.image.join(path), places.state().join(path));
    let Ok(metadata) = fs::symlink_metadata(&from) else { return Ok(()) };
    match fs::symlink_metadata(&to) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            missing.push(path.to_owned());
            Ok(())
        }
        Err(e) => Err(e).at("read", to),
        Ok(existing) if metadata.is_dir() && existing.is_dir() && path != Path::new(DPKG) => {
            let entries = fs::read_dir(&from).at("read", &from)?;
            let names: io::Result<Vec<_>> = entries.map(|entry| entry.map(|e| e.file_name())).collect();
            names
                .at("read", &from)?
                .iter()
                .try_for_each(|name| find_missing(places, &path.join(name), missing))
        }
        Ok(_) => Ok(()),
    }
}
