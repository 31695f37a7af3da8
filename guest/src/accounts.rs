//! Accounts of a new system for a machine that has changed its files of accounts.
//!
//! The machine's copy of such a file hides the image's. What a new system brings there (a service's user, say) is added to the
//! copy by its name; what the machine has is never changed.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::Path;

use crate::copy;
use crate::error::{At, FileError};
use crate::steps::{Steps, Stopped};

/// Files of accounts: a name, then fields, with colons between them.
const FILES: [&str; 6] = ["passwd", "group", "shadow", "gshadow", "subuid", "subgid"];
/// Those in which the third field is a number that should stand for one name only.
const NUMBERED: [&str; 2] = ["passwd", "group"];

/// What is to be written, and what is doubtful about it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Merged {
    text: String,
    added: Vec<String>,
    /// A name that was added, and the one that has its number already.
    shared: Vec<(String, String)>,
}

/// Adds the lines of `image` whose names `machine` doesn't have; `None` when there are none.
fn merged(machine: &str, image: &str) -> Option<Merged> {
    let name = |line: &str| line.split(':').next().unwrap_or_default().to_owned();
    let number = |line: &str| line.split(':').nth(2).filter(|n| !n.is_empty()).map(str::to_owned);
    let names: HashSet<String> = machine.lines().map(name).collect();
    let numbers: HashMap<String, String> =
        machine.lines().filter_map(|line| Some((number(line)?, name(line)))).collect();
    let new: Vec<&str> =
        image.lines().filter(|line| !line.trim().is_empty() && !names.contains(&name(line))).collect();
    if new.is_empty() {
        return None;
    }
    let mut text = machine.to_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    for line in &new {
        text.push_str(line);
        text.push('\n');
    }
    let taken = |line: &&str| Some((name(line), numbers.get(&number(line)?)?.clone()));
    let shared = new.iter().filter_map(taken).collect();
    Some(Merged { text, added: new.iter().map(|line| name(line)).collect(), shared })
}

/// Adds accounts of the image's /etc to the machine's changed copies of the files; says what it did.
///
/// # Errors
/// When they can't be read or written.
pub fn merge(image: &Path, machine: &Path, steps: &mut Steps) -> Result<Vec<String>, Stopped> {
    let mut said = Vec::new();
    for file in FILES {
        let (from, to) = (image.join(file), machine.join(file));
        let (Some(from), Some(text)) = (text(&from)?, text(&to)?) else { continue };
        let Some(merged) = merged(&text, &from) else { continue };
        steps.step()?;
        replace(&to, &merged.text)?;
        said.push(format!("/etc/{file}: added {} of the new system", merged.added.join(", ")));
        if NUMBERED.contains(&file) {
            let doubt =
                |(new, old)| format!("/etc/{file}: {new} of the new system has the same number as {old}");
            said.extend(merged.shared.into_iter().map(doubt));
        }
    }
    Ok(said)
}

/// The text of a regular file, if it is one. Lines that aren't UTF-8 are no lines of accounts: the file is left alone.
fn text(path: &Path) -> Result<Option<String>, FileError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(String::from_utf8(fs::read(path).at("read", path)?).ok()),
        Ok(_) => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).at("read", path),
    }
}

/// Replaces a file's content; owner, mode and attributes stay.
fn replace(path: &Path, text: &str) -> Result<(), FileError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".kiln-new");
    let new = path.with_file_name(name);
    copy::remove(&new)?;
    // As secret as the one that it replaces, from the beginning.
    copy::Copier::default().copy(path, &new, &|_| false)?;
    fs::write(&new, text).at("write", &new)?;
    copy::sync(&new)?;
    fs::rename(&new, path).at("replace", path)?;
    path.parent().map_or(Ok(()), copy::sync)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_lack_are_added() {
        let machine = "root:x:0:0::/root:/bin/zsh\nann:x:1000:1000::/home/ann:/bin/sh\nown:x:105:105::/:";
        let image = "root:x:0:0::/root:/bin/bash\nsshd:x:104:1::/run/sshd:\nweb:x:105:1::/:\n\n";
        let merged = merged(machine, image).unwrap();
        assert_eq!(merged.text, format!("{machine}\nsshd:x:104:1::/run/sshd:\nweb:x:105:1::/:\n"));
        assert_eq!(merged.added, ["sshd", "web"]);
        assert_eq!(merged.shared, [("web".to_owned(), "own".to_owned())]);
        assert_eq!(super::merged(&merged.text, image), None);
    }

    #[test]
    fn files_that_the_machine_has_not_changed_are_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let (image, machine) = (root.path().join("image"), root.path().join("machine"));
        fs::create_dir(&image).unwrap();
        fs::create_dir(&machine).unwrap();
        fs::write(image.join("passwd"), "a:x:1:\n").unwrap();
        fs::write(image.join("group"), "a:x:1:\nb:x:2:\n").unwrap();
        fs::write(machine.join("group"), "c:x:2:\n").unwrap();
        let said = merge(&image, &machine, &mut Steps::all()).unwrap();
        assert_eq!(
            said,
            [
                "/etc/group: added a, b of the new system",
                "/etc/group: b of the new system has the same number as c"
            ]
        );
        assert!(!machine.join("passwd").exists());
        assert_eq!(fs::read_to_string(machine.join("group")).unwrap(), "c:x:2:\na:x:1:\nb:x:2:\n");
        assert_eq!(fs::read_dir(&machine).unwrap().count(), 1);
        assert!(merge(&image, &machine, &mut Steps::all()).unwrap().is_empty());
    }
}
