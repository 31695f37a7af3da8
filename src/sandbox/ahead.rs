//! Work that can be foreseen is done while dpkg configures, which uses one processor: the index of a kernel's modules and
//! the compiling of Python's modules. What comes out lies beside the tree and is taken over when a script has asked for it
//! and what it was made of is unchanged; else it is made again.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::error::{Doing, Inner};
use super::fast::{DIR, PYTHON_COMPILE, PYTHON_LISTS, kernels, pythons};
use super::scripts::Runner;

/// Where depmod's configuration lies (depmod.d(5)).
const DEPMOD_CONFIGURATION: [&str; 5] =
    ["/etc/depmod.d", "/run/depmod.d", "/usr/local/lib/depmod.d", "/usr/lib/depmod.d", "/lib/depmod.d"];

/// Where Debian's packages put Python modules for every interpreter.
const PYTHON_PACKAGES: &str = "/usr/lib/python3/dist-packages";

/// How one file looks from outside: inode, size, time of its content and of its inode.
type Look = (u64, u64, (i64, i64), (i64, i64));

/// What was made ahead.
#[derive(Default)]
pub(super) struct Ahead {
    /// Kernel versions whose modules were indexed, and of what.
    indexed: BTreeMap<String, BTreeMap<PathBuf, Look>>,
}

impl Ahead {
    /// Does the work. What fails is left to those who do it again.
    pub fn make(runner: &Runner, epoch: i64, started: i64) -> Ahead {
        let mut ahead = Ahead::default();
        for version in kernels().unwrap_or_default() {
            let before = depmod_inputs(&version);
            let mut command = runner.command(&format!("{DIR}/kmod/depmod"));
            command.args(["-o", &format!("{DIR}/ahead"), &version]);
            if runner.beside(command, "depmod, ahead").is_ok() {
                ahead.indexed.insert(version, before);
            }
        }
        let _ = python(runner, epoch, started);
        ahead
    }

    /// Puts in place what depmod would make with these arguments; false when it has to be run.
    pub fn depmod(&self, arguments: &[String]) -> Inner<bool> {
        let ([version] | [_, version]) = arguments else { return Ok(false) };
        if arguments.len() == 2 && arguments[0] != "-a" {
            return Ok(false);
        }
        if self.indexed.get(version).is_none_or(|before| *before != depmod_inputs(version)) {
            return Ok(false);
        }
        // Which of the two depends on how kmod was configured.
        let made = ["lib", "usr/lib"].map(|lib| format!("{DIR}/ahead/{lib}/modules/{version}"));
        let Some(entries) = made.iter().find_map(|folder| fs::read_dir(folder).ok()) else {
            return Ok(false);
        };
        for entry in entries {
            let entry = entry.doing("looking for what depmod made")?;
            let target = Path::new("/usr/lib/modules").join(version).join(entry.file_name());
            // As depmod does: a new file, renamed.
            let new = target.with_extension("kiln");
            fs::copy(entry.path(), &new).doing("taking over what depmod made")?;
            fs::rename(&new, &target).doing("taking over what depmod made")?;
        }
        Ok(true)
    }
}

/// All that depmod reads: modules, their order, its configuration.
fn depmod_inputs(version: &str) -> BTreeMap<PathBuf, Look> {
    let mut found = BTreeMap::new();
    // Beside them the packages' scripts leave notes to each other there.
    let is_read = |name: &str| name.contains(".ko") || name.starts_with("modules.");
    looks(&Path::new("/usr/lib/modules").join(version), &is_read, &mut found);
    for folder in DEPMOD_CONFIGURATION {
        looks(Path::new(folder), &|_| true, &mut found);
    }
    found
}

fn looks(folder: &Path, which: &dyn Fn(&str) -> bool, found: &mut BTreeMap<PathBuf, Look>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        if meta.is_dir() {
            looks(&path, which, found);
        } else if which(&entry.file_name().to_string_lossy()) {
            let look = (
                meta.ino(),
                meta.size(),
                (meta.mtime(), meta.mtime_nsec()),
                (meta.ctime(), meta.ctime_nsec()),
            );
            found.insert(path, look);
        }
    }
}

/// Compiles the modules of the one interpreter that there is, as nearly all of them are wanted in the end.
fn python(runner: &Runner, epoch: i64, started: i64) -> Inner<()> {
    let [library] = pythons().try_into().unwrap_or_else(|_| [PathBuf::new()]);
    let Some(interpreter) = library.file_name().map(|n| n.to_string_lossy().into_owned()) else {
        return Ok(());
    };
    let mut files = Vec::new();
    for folder in [&library, Path::new(PYTHON_PACKAGES)] {
        sources(folder, &mut files);
    }
    files.sort();
    let mut lists: BTreeMap<u32, String> = BTreeMap::new();
    for file in files {
        let list = lists.entry(python_list(&file)).or_default();
        list.push_str(&file);
        list.push('\n');
    }
    for (number, text) in lists {
        let list = format!("{DIR}/ahead.{number}");
        fs::write(&list, text).doing("writing what is to be compiled")?;
        let mut command = runner.command(&format!("/usr/bin/{interpreter}"));
        command.args(["-S", "-c", PYTHON_COMPILE, "ahead", &list, &epoch.to_string(), &started.to_string()]);
        command.arg(python_store(&interpreter, number));
        command.env_remove("SOURCE_DATE_EPOCH");
        runner.beside(command, "compiling Python modules, ahead")?;
    }
    Ok(())
}

/// In which list a Python file is.
pub(super) fn python_list(file: &str) -> u32 {
    crc32fast::hash(file.as_bytes()) % PYTHON_LISTS
}

/// Where what was compiled of a list ahead lies.
pub(super) fn python_store(interpreter: &str, list: u32) -> String {
    format!("{DIR}/{interpreter}.{list}.compiled")
}

fn sources(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
        if kind.is_dir() {
            sources(&path, found);
        } else if kind.is_file()
            && path.extension().is_some_and(|e| e == "py")
            && let Some(text) = path.to_str().filter(|t| !t.contains('\n'))
        {
            found.push(text.to_owned());
        }
    }
}

/// A program that goes by several names: a copy of it under each, and a stub that tells whether it was called as `noted`.
pub(super) fn copies(program: &Path, names: &[&str]) -> Inner<()> {
    let folder = PathBuf::from(format!("{DIR}/kmod"));
    fs::create_dir_all(&folder).doing("making a folder for copies")?;
    let copy = folder.join("kmod");
    fs::copy(program, &copy).doing("copying a program")?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).doing("copying a program")?;
    for name in names {
        std::os::unix::fs::symlink("kmod", folder.join(name)).doing("naming a program")?;
    }
    Ok(())
}
