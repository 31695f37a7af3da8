//! Where QEMU and its firmware come from: a tools tree, or the host.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::host;

/// A QEMU that can be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Qemu {
    /// Of a tools tree: a folder with plainly unpacked packages ([`super::TOOL_PACKAGES`] and what they depend on).
    Tools(PathBuf),
    /// Of the host.
    Host {
        /// The program.
        program: PathBuf,
    },
}

/// QEMU or its firmware is missing.
#[derive(Debug, thiserror::Error)]
pub enum QemuError {
    /// The host has no QEMU.
    #[error("the host has no {program} (looked in $PATH): install QEMU for x86")]
    NotOnHost {
        /// What was looked for.
        program: &'static str,
    },
    /// The host lacks another program.
    #[error("the host has no {program} (looked in $PATH): install {package}")]
    NoProgram {
        /// What was looked for.
        program: &'static str,
        /// What brings it.
        package: &'static str,
    },
    /// A tools tree lacks a file.
    #[error("the tools tree {} has no {what}: it was made without {package}", tree.display())]
    NotInTools {
        /// The tools tree.
        tree: PathBuf,
        /// Path below it.
        what: String,
        /// Which package brings it.
        package: &'static str,
    },
    /// No UEFI firmware was found on the host.
    #[error("the host has no UEFI firmware (looked for {}): install OVMF, or boot with BIOS", looked.join(", "))]
    NoOvmf {
        /// The places.
        looked: Vec<&'static str>,
    },
}

const PROGRAM: &str = "qemu-system-x86_64";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const OVMF_CODE: &str = "usr/share/OVMF/OVMF_CODE_4M.fd";
const OVMF_VARIABLES: &str = "usr/share/OVMF/OVMF_VARS_4M.fd";

/// OVMF's code and variables as Debian, Fedora and Arch Linux lay them down.
const HOST_OVMF: [(&str, &str); 4] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
];

impl Qemu {
    /// The host's QEMU, found through `$PATH`.
    ///
    /// # Errors
    /// [`QemuError::NotOnHost`].
    pub fn host() -> Result<Qemu, QemuError> {
        let program = on_host(PROGRAM).ok_or(QemuError::NotOnHost { program: PROGRAM })?;
        Ok(Qemu::Host { program })
    }

    /// The QEMU of a tools tree.
    ///
    /// # Errors
    /// [`QemuError::NotInTools`] when it lacks QEMU or SeaBIOS.
    pub fn tools(tree: &Path) -> Result<Qemu, QemuError> {
        in_tools(tree, &format!("usr/bin/{PROGRAM}"), "qemu-system-x86")?;
        in_tools(tree, "usr/share/seabios/bios-256k.bin", "seabios")?;
        Ok(Qemu::Tools(tree.to_owned()))
    }

    /// The program with the arguments that come before those of the machine.
    #[must_use]
    pub fn words(&self) -> Vec<OsString> {
        match self {
            Qemu::Host { program } => vec![program.into()],
            Qemu::Tools(tree) => {
                let share = tree.join("usr/share");
                let folders =
                    ["-L".into(), share.join("qemu").into(), "-L".into(), share.join("seabios").into()];
                match host::tools::command(tree, PROGRAM) {
                    Ok(command) => std::iter::once(command.get_program())
                        .chain(command.get_args())
                        .map(OsString::from)
                        .chain(folders)
                        .collect(),
                    // A tree that lost its linker: starting it says so.
                    Err(_) => vec![tree.join("usr/bin").join(PROGRAM).into()],
                }
            }
        }
    }

    /// The words that run a program of OpenSSH's client, which comes from where QEMU comes from.
    ///
    /// # Errors
    /// [`QemuError`] when it is missing.
    pub fn tool(&self, program: &'static str) -> Result<Vec<OsString>, QemuError> {
        let package = "openssh-client";
        match self {
            Qemu::Host { .. } => {
                let found = on_host(program).ok_or(QemuError::NoProgram { program, package })?;
                Ok(vec![found.into()])
            }
            Qemu::Tools(tree) => {
                let command = host::tools::command(tree, program).map_err(|e| QemuError::NotInTools {
                    tree: tree.clone(),
                    what: e.what,
                    package,
                })?;
                Ok(std::iter::once(command.get_program())
                    .chain(command.get_args())
                    .map(OsString::from)
                    .collect())
            }
        }
    }

    /// Prepares a command's environment: empty but for what QEMU of a tools tree needs to find its own modules.
    pub(crate) fn environment<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env_clear();
        match self {
            Qemu::Tools(tree) => command.env("QEMU_MODULE_DIR", tree.join(LIBRARIES).join("qemu")),
            Qemu::Host { .. } => command,
        }
    }

    /// UEFI's code and the template of its variables.
    ///
    /// # Errors
    /// [`QemuError`] when there is none.
    pub fn ovmf(&self) -> Result<(PathBuf, PathBuf), QemuError> {
        match self {
            Qemu::Tools(tree) => {
                let code = in_tools(tree, OVMF_CODE, "ovmf")?;
                Ok((code, in_tools(tree, OVMF_VARIABLES, "ovmf")?))
            }
            Qemu::Host { .. } => HOST_OVMF
                .iter()
                .map(|(code, variables)| (PathBuf::from(code), PathBuf::from(variables)))
                .find(|(code, variables)| code.is_file() && variables.is_file())
                .ok_or_else(|| QemuError::NoOvmf {
                    looked: HOST_OVMF.iter().map(|(code, _)| *code).collect(),
                }),
        }
    }
}

fn on_host(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|program| program.is_file())
}

fn in_tools(tree: &Path, what: &str, package: &'static str) -> Result<PathBuf, QemuError> {
    let path = tree.join(what);
    match path.is_file() {
        true => Ok(path),
        false => Err(QemuError::NotInTools { tree: tree.to_owned(), what: what.to_owned(), package }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tools_tree_without_qemu_says_which_package_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let error = Qemu::tools(folder.path()).unwrap_err().to_string();
        assert!(
            error.ends_with("has no usr/bin/qemu-system-x86_64: it was made without qemu-system-x86"),
            "{error}"
        );
    }
}
