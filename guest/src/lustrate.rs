//! The clean slate: all state but the keep-list is put aside, and the machine begins as at its first boot.
//!
//! Asked for by the file `/kiln/lustrate` or on the kernel's command line, done by the initrd before anything of the state is in
//! use. The power may go at any moment; the next boot then goes on:
//!
//! | on the disk | means | next |
//! |---|---|---|
//! | `lustrate`, no `lustrate.record` | asked for; `state` is the old one and whole, `state.new` may be there by half | make a fresh `state.new` with `.lustrated` in it; then write the record, which names the old state's place |
//! | record, `.lustrated` in `state.new` | the fresh state has reached the disk | exchange `state` and `state.new`, in one step |
//! | record, `state.new` without `.lustrated` | it is the old state | rename it to the place in the record |
//! | record, no `state.new` | `state` is the fresh one | move what is kept from the old one to it, each path by removing the fresh one and renaming the old one; then remove `lustrate`, `.lustrated`, the record |
//! | neither | all done | |
//!
//! Until the exchange the machine has its old state, from then on the new one; never a mixture. Each step that is done twice does
//! nothing the second time.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::copy;
use crate::error::{At, FileError};
use crate::state::{self, FRESH, Places};
use crate::steps::{Steps, Stopped};
use crate::sys;

/// The file that asks for a clean slate at the next boot.
pub const MARKER: &str = "lustrate";
/// Names the old state's place from when the fresh one is complete to when all is done.
const RECORD: &str = "lustrate.record";
/// In the fresh state, so that it is told from the old one.
const LUSTRATED: &str = ".lustrated";
/// How the places of old states begin; the date follows.
const OLD: &str = "state.old-";

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lustrated {
    /// Nobody asked for it.
    Not,
    /// A fresh state begins; the old one is in this folder, but for what is kept.
    Done(PathBuf),
    /// There was no room for a fresh state, or the like: the machine goes on with its old one, and it is tried again at the next
    /// boot.
    Failed(String),
}

fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Does what is asked for or was begun. What can't be kept is said.
///
/// # Errors
/// When something can't be moved after the old state was put aside.
pub fn lustrate(
    places: &Places,
    keep: &[PathBuf],
    requested: bool,
    now: SystemTime,
    steps: &mut Steps,
) -> Result<(Lustrated, Vec<String>), Stopped> {
    let (marker, record) = (places.kiln.join(MARKER), places.kiln.join(RECORD));
    let begun = match fs::read_to_string(&record) {
        Ok(text) => Some(text),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        result => Some(result.at("read", &record)?),
    };
    let old = match begun {
        Some(text) => old_name(text.trim()).unwrap_or_else(|| unused(&places.kiln, now)),
        None if !(requested || exists(&marker)) => return Ok((Lustrated::Not, Vec::new())),
        // Nothing to put aside: it is a first boot already.
        None if !exists(&places.state()) => {
            copy::remove(&marker)?;
            return Ok((Lustrated::Not, Vec::new()));
        }
        None => match begin(places, now, steps) {
            Ok(old) => old,
            Err(Stopped::File(e)) => {
                copy::remove(&places.kiln.join(FRESH))?;
                return Ok((Lustrated::Failed(e.to_string()), Vec::new()));
            }
            Err(interrupted) => return Err(interrupted),
        },
    };
    let old = places.kiln.join(old);
    exchange(places, &old, steps)?;
    let mut said = Vec::new();
    for path in keep {
        said.extend(keep_path(places, &old, path, steps)?);
    }
    finish(places, steps)?;
    Ok((Lustrated::Done(old), said))
}

/// Makes a fresh state and notes that it is complete; gives the name of the old one's place.
fn begin(places: &Places, now: SystemTime, steps: &mut Steps) -> Result<String, Stopped> {
    let old = unused(&places.kiln, now);
    let fresh = state::build_fresh(places, steps)?;
    steps.step()?;
    let mark = fresh.join(LUSTRATED);
    fs::write(&mark, "").at("create", &mark)?;
    copy::sync(&mark)?;
    copy::sync(&fresh)?;
    steps.step()?;
    copy::write_atomically(&places.kiln.join(RECORD), format!("{old}\n").as_bytes())?;
    Ok(old)
}

/// Puts the fresh state in the place of the old one, and the old one where it is to be.
fn exchange(places: &Places, old: &Path, steps: &mut Steps) -> Result<(), Stopped> {
    let (fresh, state) = (places.kiln.join(FRESH), places.state());
    if exists(&fresh.join(LUSTRATED)) {
        steps.step()?;
        if exists(&state) {
            sys::exchange(&fresh, &state).at("replace", &state)?;
        } else {
            fs::rename(&fresh, &state).at("create", &state)?;
        }
        copy::sync(&places.kiln)?;
    }
    if exists(&fresh) {
        steps.step()?;
        fs::rename(&fresh, old).at("create", old)?;
        copy::sync(&places.kiln)?;
    }
    Ok(())
}

/// Moves a path from the old state to the fresh one; says so when that can't be.
fn keep_path(places: &Places, old: &Path, path: &Path, steps: &mut Steps) -> Result<Option<String>, Stopped> {
    let (from, to) = (old.join(path), places.state().join(path));
    let parent = path.parent().unwrap_or(Path::new(""));
    if !exists(&from) {
        return Ok(None);
    }
    if [old, &places.state()].iter().any(|root| leads_astray(root, parent)) {
        let path = path.display();
        return Ok(Some(format!("/{path} is not kept: a link leads there; it is in {}", old.display())));
    }
    steps.step()?;
    copy::create_folders(&places.state(), &[&places.image, old], parent)?;
    steps.step()?;
    copy::remove(&to)?;
    steps.step()?;
    fs::rename(&from, &to).at("keep", &to)?;
    to.parent().map_or(Ok(()), copy::sync)?;
    Ok(from.parent().map_or(Ok(()), copy::sync).map(|()| None)?)
}

/// Whether something on the way is there and no folder: in the initrd, links lead somewhere else than they mean.
fn leads_astray(root: &Path, relative: &Path) -> bool {
    let mut path = root.to_owned();
    relative.components().any(|part| {
        path.push(part);
        fs::symlink_metadata(&path).is_ok_and(|metadata| !metadata.is_dir())
    })
}

fn finish(places: &Places, steps: &mut Steps) -> Result<(), Stopped> {
    for done in [places.kiln.join(MARKER), places.state().join(LUSTRATED), places.kiln.join(RECORD)] {
        steps.step()?;
        copy::remove(&done)?;
        done.parent().map_or(Ok(()), copy::sync)?;
    }
    Ok(())
}

/// The name in a record: one that is ours, or none.
fn old_name(text: &str) -> Option<String> {
    let mut parts = Path::new(text).components();
    let one = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
    (one && text.starts_with(OLD)).then(|| text.to_owned())
}

/// A name for the old state that nothing has yet.
fn unused(kiln: &Path, now: SystemTime) -> String {
    let name = format!("{OLD}{}", date(now));
    let numbered = (2..).map(|number| format!("{name}-{number}"));
    std::iter::once(name.clone()).chain(numbered).find(|name| !exists(&kiln.join(name))).unwrap_or(name)
}

/// Date and time, UTC, in a form that sorts: `20260102T030405Z`.
fn date(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days are counted from 1 March of the year 0, so that the leap day is the last of its year; 400 years have 146,097 days.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + later;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

/// Asks for a clean slate at the next boot.
///
/// # Errors
/// When the marker can't be written.
pub fn request(kiln: &Path) -> Result<(), FileError> {
    copy::write_atomically(&kiln.join(MARKER), b"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_772_323_445)
    }

    #[test]
    fn dates_are_written_as_they_are() {
        let of = |seconds| date(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(of(0), "19700101T000000Z");
        assert_eq!(of(951_782_399), "20000228T235959Z");
        assert_eq!(of(951_782_400), "20000229T000000Z");
        assert_eq!(of(1_772_323_445), "20260301T000405Z");
        assert_eq!(of(4_102_444_799), "20991231T235959Z");
    }

    /// A machine with a state that was used, below a temporary folder.
    struct Machine {
        root: tempfile::TempDir,
    }

    impl Machine {
        fn new() -> Machine {
            // In memory where that is to be had: there is much waiting for disks otherwise.
            let root = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
            let machine = Machine { root: root.unwrap() };
            for (path, text) in [
                ("image/var/lib/app/default", "image"),
                ("image/var/log/.keep", ""),
                ("image/var/lib/dpkg/status", "image"),
                ("image/etc/passwd", "image"),
                ("image/root/.profile", "image"),
                ("kiln/state/var/lib/app/default", "machine"),
                ("kiln/state/var/lib/app/data", "machine"),
                ("kiln/state/var/lib/other", "machine"),
                ("kiln/state/var/spool/deep/mail", "machine"),
                ("kiln/state/etc/machine-id", "machine"),
                ("kiln/state/etc/app/key", "machine"),
                ("kiln/state/root/.profile", "machine"),
                ("kiln/lustrate", ""),
            ] {
                machine.write(path, text);
            }
            machine
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn places(&self) -> Places {
            let at = |name| self.root.path().join(name);
            Places { kiln: at("kiln"), image: at("image"), system: "s".to_owned() }
        }

        fn run(&self, steps: &mut Steps) -> Result<Lustrated, Stopped> {
            let keep = ["var/lib/app", "var/spool/deep", "etc/app", "srv/none", "var/new"].map(PathBuf::from);
            let places = self.places();
            let result = lustrate(&places, &keep, false, now(), steps)?;
            assert_eq!(result.1, Vec::<String>::new());
            state::prepare(&places, steps)?;
            Ok(result.0)
        }

        fn files(&self, of: &str) -> Vec<String> {
            fn walk(root: &Path, path: &Path, found: &mut Vec<String>) {
                for entry in fs::read_dir(path).into_iter().flatten().flatten() {
                    let path = entry.path();
                    if path.is_dir() {
                        walk(root, &path, found);
                    } else {
                        let name = path.strip_prefix(root).unwrap().display().to_string();
                        found.push(format!("{name}={}", fs::read_to_string(&path).unwrap().trim()));
                    }
                }
            }
            let (root, mut found) = (self.root.path().join("kiln").join(of), Vec::new());
            walk(&root, &root, &mut found);
            found.sort();
            found
        }

        fn assert_clean(&self) {
            assert_eq!(
                self.files("state"),
                [
                    ".seeded=s",
                    "etc/app/key=machine",
                    "root/.profile=image",
                    "var/lib/app/data=machine",
                    "var/lib/app/default=machine",
                    "var/log/.keep=",
                    "var/spool/deep/mail=machine",
                ]
            );
            assert_eq!(
                self.files("state.old-20260301T000405Z"),
                ["etc/machine-id=machine", "root/.profile=machine", "var/lib/other=machine",]
            );
            let mut names: Vec<_> = fs::read_dir(self.root.path().join("kiln"))
                .unwrap()
                .map(|e| e.unwrap().file_name())
                .collect();
            names.sort();
            assert_eq!(names, ["state", "state.old-20260301T000405Z"]);
        }

        /// Either the old state, whole, or the fresh one without anything that isn't kept.
        fn assert_not_mixed(&self) {
            let state = self.files("state");
            let has = |name: &str| state.iter().any(|file| file.starts_with(name));
            if has("etc/machine-id") {
                assert_eq!(state.len(), 7 + usize::from(has(".seeded")), "{state:?}");
                assert!(has("var/lib/app/data"));
            } else {
                assert!(
                    has("var/log/.keep") && !has("var/lib/other") && has("root/.profile=image"),
                    "{state:?}"
                );
                let kept = self.files("state.old-20260301T000405Z");
                let fresh = self.files("state.new");
                let key = "etc/app/key=machine".to_owned();
                assert!([&state, &kept, &fresh].iter().any(|files| files.contains(&key)));
            }
        }
    }

    #[test]
    fn a_clean_slate_keeps_what_is_to_be_kept() {
        let machine = Machine::new();
        assert!(matches!(machine.run(&mut Steps::all()), Ok(Lustrated::Done(_))));
        machine.assert_clean();
        assert!(matches!(machine.run(&mut Steps::all()), Ok(Lustrated::Not)));
        machine.assert_clean();
    }

    #[test]
    fn it_survives_a_cut_at_every_step_and_another_one() {
        let steps = (0..).take_while(|last| {
            let machine = Machine::new();
            let interrupted = machine.run(&mut Steps::until(*last)).is_err();
            machine.assert_not_mixed();
            interrupted && {
                machine.run(&mut Steps::all()).unwrap();
                machine.assert_clean();
                true
            }
        });
        let steps = steps.count() as u32;
        assert!(steps > 15, "{steps}");
        for first in 0..steps {
            for second in 0..steps {
                let machine = Machine::new();
                let _ = machine.run(&mut Steps::until(first));
                let _ = machine.run(&mut Steps::until(second));
                machine.assert_not_mixed();
                machine.run(&mut Steps::all()).unwrap();
                machine.assert_clean();
            }
        }
    }

    #[test]
    fn a_first_boot_needs_no_clean_slate() {
        let machine = Machine::new();
        fs::remove_dir_all(machine.places().state()).unwrap();
        assert!(matches!(machine.run(&mut Steps::all()), Ok(Lustrated::Not)));
        assert_eq!(machine.files("").len(), 4, "{:?}", machine.files(""));
    }

    #[test]
    fn without_room_the_old_state_stays() {
        let machine = Machine::new();
        // What is to be copied can't be.
        fs::remove_file(machine.root.path().join("image/etc/passwd")).unwrap();
        fs::remove_dir(machine.root.path().join("image/etc")).unwrap();
        let result = lustrate(&machine.places(), &[], false, now(), &mut Steps::all()).unwrap();
        assert!(matches!(result.0, Lustrated::Failed(_)), "{result:?}");
        assert!(machine.files("state").contains(&"etc/machine-id=machine".to_owned()));
        assert!(!machine.places().kiln.join(FRESH).exists());
    }

    #[test]
    fn links_lead_nowhere() {
        let machine = Machine::new();
        let elsewhere = machine.root.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join("file"), "mine").unwrap();
        symlink(&elsewhere, machine.places().state().join("var/run")).unwrap();
        let keep = [PathBuf::from("var/run/file")];
        let (_, said) = lustrate(&machine.places(), &keep, false, now(), &mut Steps::all()).unwrap();
        assert!(said[0].starts_with("/var/run/file is not kept: a link leads there"), "{said:?}");
        assert!(elsewhere.join("file").exists());
    }

    #[test]
    fn names_of_old_states_differ_and_records_are_not_believed() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("state.old-20260301T000405Z")).unwrap();
        assert_eq!(unused(root.path(), now()), "state.old-20260301T000405Z-2");
        for text in ["", "state", "state.old-/../x", "/state.old-1", "../state.old-1"] {
            assert_eq!(old_name(text), None, "{text}");
        }
    }
}
