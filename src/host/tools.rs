//! The tools tree: a folder with plainly unpacked packages of the locked distribution, whose programs run from there.
//!
//! Nothing of the host takes part: a program is started through the tree's own dynamic linker with the tree's own
//! libraries, the host's linker cache is ignored and the environment is empty. No chroot and no privilege are needed.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::arch::Arch;

/// Folders of a tree that hold programs, in the order in which they are searched.
const PROGRAM_DIRS: [&str; 4] = ["usr/sbin", "usr/bin", "sbin", "bin"];

/// A tools tree that can't run a program.
#[derive(Debug, thiserror::Error)]
#[error("the tools tree {tree} has no {what}; its packages are incomplete", tree = tree.display())]
pub struct ToolError {
    /// The tree.
    pub tree: PathBuf,
    /// What is missing: a program or the dynamic linker.
    pub what: String,
}

/// The command that runs `program` (a bare name) of the tools tree, without arguments and with an empty environment
/// but for `LC_ALL=C.UTF-8` and `TZ=UTC`.
///
/// # Errors
/// [`ToolError`] when the tree lacks the program, its dynamic linker, or is for a machine of another kind.
pub fn command(tools: &Path, program: &str) -> Result<Command, ToolError> {
    let missing = |what: &str| ToolError { tree: tools.to_owned(), what: what.to_owned() };
    let arch = Arch::host().ok_or_else(|| missing("programs for this machine"))?;
    let libraries = tools.join("usr/lib").join(arch.triplet());
    let linker = libraries.join(linker_name(arch));
    if !linker.exists() {
        return Err(missing(linker_name(arch)));
    }
    let path = find(tools, program).ok_or_else(|| missing(program))?;
    let mut command = Command::new(linker);
    command.arg("--inhibit-cache").arg("--library-path").arg(library_path(tools, arch)).arg(path);
    command.env_clear().env("LC_ALL", "C.UTF-8").env("TZ", "UTC");
    Ok(command)
}

/// Where the program lies in the tree.
#[must_use]
pub fn find(tools: &Path, program: &str) -> Option<PathBuf> {
    PROGRAM_DIRS.iter().map(|dir| tools.join(dir).join(program)).find(|path| path.is_file())
}

fn linker_name(arch: Arch) -> &'static str {
    match arch {
        Arch::Amd64 => "ld-linux-x86-64.so.2",
        Arch::Arm64 => "ld-linux-aarch64.so.1",
    }
}

/// The linker's search path. Some libraries lie one folder deeper (`systemd`, `pulseaudio`); they are found by the
/// `RUNPATH`s' leaf names, so those folders come after the main ones.
fn library_path(tools: &Path, arch: Arch) -> String {
    let main = ["usr/lib", "lib"].map(|dir| tools.join(dir).join(arch.triplet()));
    let deeper = ["systemd", "pulseaudio"].map(|dir| main[0].join(dir));
    let shown = main.iter().chain(&deeper).filter(|dir| dir.is_dir()).map(|dir| dir.display().to_string());
    shown.collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let tree = tempfile::tempdir().unwrap();
        let error = command(tree.path(), "mke2fs").unwrap_err().to_string();
        assert!(error.contains("ld-linux"), "{error}");
        let arch = Arch::host().unwrap();
        let libraries = tree.path().join("usr/lib").join(arch.triplet());
        std::fs::create_dir_all(&libraries).unwrap();
        std::fs::write(libraries.join(linker_name(arch)), "").unwrap();
        let error = command(tree.path(), "mke2fs").unwrap_err().to_string();
        assert!(error.contains("mke2fs"), "{error}");
    }

    #[test]
    fn a_program_runs_through_the_trees_linker_with_a_cleared_environment() {
        let tree = tempfile::tempdir().unwrap();
        let arch = Arch::host().unwrap();
        let libraries = tree.path().join("usr/lib").join(arch.triplet());
        std::fs::create_dir_all(&libraries).unwrap();
        std::fs::create_dir_all(tree.path().join("usr/sbin")).unwrap();
        std::fs::write(libraries.join(linker_name(arch)), "").unwrap();
        std::fs::write(tree.path().join("usr/sbin/mke2fs"), "").unwrap();
        let command = command(tree.path(), "mke2fs").unwrap();
        assert_eq!(command.get_program(), libraries.join(linker_name(arch)));
        let last = command.get_args().last().unwrap();
        assert_eq!(last, tree.path().join("usr/sbin/mke2fs"));
        assert!(command.get_envs().all(|(name, _)| name == "LC_ALL" || name == "TZ"));
    }
}
