//! A configured package tree and a system make the tree of the image: a pure function.
//!
//! [`compose`] reads top to bottom as what happens to the tree. Later steps win: what the profile's `files` write stands
//! over what Kiln writes by itself. What can't be done by looking and writing alone, as generating a locale does, comes
//! back as [`SandboxWork`]; [`seal`] is for afterwards, when programs have run in the tree.
//!
//! | file | topic |
//! |---|---|
//! | `editor` | writing into a tree as the kernel would: links followed, hard links kept apart |
//! | `accounts`, `users` | passwd(5) and its kin; homes, keys, sudo |
//! | `files` | files, directories, links, fetched files of the profile |
//! | `unit_file`, `units` | unit files; enable, disable, mask |
//! | `host` | host name, time zone, locale, keyboard, os-release |
//! | `kernel` | sysctl, modules, the initrd |
//! | `store` | what the store layout adds, and what of the tree becomes its system's image |
//! | `network`, `mounts`, `cloud`, `yaml`, `ssh`, `apt` | what their names say |
//! | `wipe`, `databases`, `servers`, `first_boot` | identity taken out, and made anew by each machine |

mod accounts;
mod apt;
mod cloud;
mod databases;
mod editor;
mod error;
mod files;
mod first_boot;
mod host;
mod kernel;
mod mounts;
mod near;
mod network;
mod servers;
mod ssh;
pub mod store;
mod unit_file;
mod units;
mod users;
mod wipe;
mod yaml;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use crate::system::{DiskLayout, Set, System};
use crate::tree::{Content, Packs, Tree, TreePath};

use editor::Editor;
pub use error::{AccountError, PathError, RootfsError, UnitError};
pub use near::Near;

/// What the tree depends on beside packages and profile.
#[derive(Debug, Clone, Default)]
pub struct ComposeContext {
    /// The time stamped on all that is written, in seconds since 1970; no node stays newer.
    pub epoch: i64,
    /// UUID of the root's file system.
    pub root_uuid: Uuid,
    /// PARTUUID of the EFI system partition, when there is one.
    pub esp_partuuid: Option<Uuid>,
    /// PARTUUIDs of further partitions, by their name in `disk.partitions`.
    pub partitions: BTreeMap<String, Uuid>,
    /// Fetched files by the path that they get: the keys of `fetch`.
    pub fetched: BTreeMap<String, Content>,
}

/// Files beside the profile: names are relative to it, and nothing but bytes, the executable bit and links is seen of
/// them.
pub trait SourceFiles {
    /// The file or folder called `name`.
    ///
    /// # Errors
    /// When it isn't there, can't be read or lies outside.
    fn source(&self, name: &str) -> Result<SourceNode, SourceError>;

    /// The bytes of a key file, among which the built-in ones may be.
    ///
    /// # Errors
    /// As [`SourceFiles::source`].
    fn key(&self, name: &str) -> Result<Vec<u8>, SourceError>;
}

/// Why a source can't be had.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// A file, folder or link beside the profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceNode {
    /// A file.
    File {
        /// Its bytes.
        content: Content,
        /// Whether its owner may execute it.
        executable: bool,
    },
    /// A folder, by the names of what lies in it.
    Folder(BTreeMap<String, SourceNode>),
    /// A symbolic link inside a folder, copied as it stands.
    Symlink(Vec<u8>),
}

/// A tree that the profile has shaped.
#[derive(Debug, Clone)]
pub struct Composed {
    /// The image's tree, except for what [`SandboxWork`] is still to do.
    pub tree: Tree,
    /// Every path that was written because of the profile. They are laid last on the disk, for they change most.
    pub written: BTreeSet<TreePath>,
    /// What only programs in the tree can do.
    pub work: SandboxWork,
    /// What is probably not meant, a sentence each.
    pub warnings: Vec<String>,
}

/// What only programs inside the tree can do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxWork {
    /// Lines of /etc/locale.gen for which `locale-gen` is to run (the file is written already).
    pub locales: BTreeSet<String>,
    /// Why `update-initramfs -u -k all` is to run (`-c` for a kernel without initrd); empty when it need not.
    pub initrd: BTreeSet<String>,
    /// The profile's scripts by name, in the order in which they run, before the initrd is made.
    pub scripts: BTreeMap<String, Vec<u8>>,
}

impl SandboxWork {
    /// Whether nothing is left to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.locales.is_empty() && self.initrd.is_empty() && self.scripts.is_empty()
    }
}

/// Makes the image's tree from the tree of configured packages.
///
/// # Errors
/// [`RootfsError`] when the system and the packages don't fit together, or a source can't be read.
pub fn compose(
    base: Tree,
    packs: &dyn Packs,
    system: &System,
    sources: &dyn SourceFiles,
    ctx: &ComposeContext,
) -> Result<Composed, RootfsError> {
    let mut editor = Editor::new(base.clone(), packs, ctx.epoch);
    let mut work = SandboxWork { scripts: scripts(system, packs, sources)?, ..SandboxWork::default() };
    let mut requests = units::Requests::new();

    wipe::apply(&mut editor);
    let accounts = users::apply(&mut editor, system)?;
    host::apply(&mut editor, system, &mut work)?;
    kernel::apply(&mut editor, system)?;
    network::apply(&mut editor, system, &mut requests)?;
    let growth = mounts::growth(&editor, system)?;
    mounts::apply(&mut editor, system, ctx, growth, &mut requests)?;
    cloud::apply(&mut editor, system, growth)?;
    ssh::apply(&mut editor, system, &mut requests)?;
    apt::apply(&mut editor, system, sources)?;
    databases::apply(&mut editor, &mut requests)?;
    servers::apply(&mut editor, &mut requests)?;
    first_boot::apply(&mut editor, &mut requests)?;
    store::apply(&mut editor, system, &mut requests)?;
    units::write(&mut editor, &system.units)?;
    files::apply(&mut editor, system, &accounts, sources, ctx)?;
    units::apply(&mut editor, system, &requests)?;

    let (mut tree, written, warnings) = editor.into_tree();
    clamp(&mut tree, ctx.epoch);
    if system.disk.layout == DiskLayout::Mutable {
        kernel::initrd(&base, &tree, &mut work);
    }
    Ok(Composed { tree, written, work, warnings })
}

/// Brings a tree in which programs ran after [`compose`] back into order: what they left of identity, logs and caches
/// goes, unless it is `written`, and no time is newer than `epoch`.
///
/// # Errors
/// When a program made a directory of /etc/machine-id, or the like.
pub fn seal(
    tree: Tree,
    packs: &dyn Packs,
    written: &BTreeSet<TreePath>,
    epoch: i64,
) -> Result<Tree, RootfsError> {
    let mut editor = Editor::new(tree, packs, epoch);
    editor.written.clone_from(written);
    wipe::apply(&mut editor);
    servers::java(&mut editor)?;
    first_boot::no_machine_id(&mut editor)?;
    let (mut tree, ..) = editor.into_tree();
    clamp(&mut tree, epoch);
    Ok(tree)
}

fn clamp(tree: &mut Tree, epoch: i64) {
    for (_, node) in tree.iter_mut() {
        node.mtime = node.mtime.min(epoch);
    }
}

/// The texts of the profile's scripts.
fn scripts(
    system: &System,
    packs: &dyn Packs,
    sources: &dyn SourceFiles,
) -> Result<BTreeMap<String, Vec<u8>>, RootfsError> {
    let mut scripts = Set::new();
    for (name, script) in system.run.iter().filter(|(_, s)| s.enable) {
        let field = format!("run.{name}");
        let text = match (&script.text, &script.source) {
            (Some(text), None) => text.as_bytes().to_vec(),
            (None, Some(source)) => {
                let wrong = |error| RootfsError::Source { field: field.clone(), name: source.clone(), error };
                match sources.source(source).map_err(wrong)? {
                    SourceNode::File { content, .. } => content.read(packs).map_err(|e| wrong(e.into()))?,
                    _ => return Err(RootfsError::value(&field, source, "a script is one file")),
                }
            }
            _ => return Err(RootfsError::value(&field, "", "exactly one of text and source must be given")),
        };
        if !text.starts_with(b"#!/") {
            let first = String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned();
            return Err(RootfsError::value(
                &field,
                first,
                "a script begins with its interpreter, as in #!/bin/sh",
            ));
        }
        scripts.insert(name.clone(), text);
    }
    Ok(scripts)
}
