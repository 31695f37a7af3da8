//! All that an evaluation reads, loaded before it begins.
//!
//! Nickel's imports are literal paths, so they are found by parsing. Each imported file is resolved as Nickel would
//! (first beside the importing file, then among Kiln's own modules), admitted by the [`Project`], read once, recorded,
//! and handed to Nickel as an in-memory source. Evaluation itself never opens a file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nickel_lang_core::ast::{Ast, AstAlloc, Import, InputFormat, Node};
use nickel_lang_core::cache::{CacheHub, SourcePath};
use nickel_lang_core::files::FileId;
use nickel_lang_core::position::TermPos;
use nickel_lang_core::traverse::{TraverseAlloc, TraverseControl};

use super::modules::modules;
use super::project::{Project, normalise, read_import};
use super::{Input, ProfileError};
use crate::digest::Digest;

/// The folder in which Kiln's own modules seem to lie. Imports are looked for here last.
pub(super) const OWN: &str = "/<kiln>";

/// An import that can't be had.
#[derive(Debug)]
pub(super) struct BadImport {
    /// What was imported, as written.
    pub(super) import: String,
    /// Why it can't be had.
    pub(super) reason: String,
    /// Where the import stands.
    pub(super) at: TermPos,
}

/// Why loading failed.
pub(super) enum LoadError {
    Parse(Box<nickel_lang_core::error::ParseErrors>),
    Import(BadImport),
    Profile(ProfileError),
}

/// Loaded sources: what Nickel calls each file, and what was recorded of it.
#[derive(Debug, Default)]
pub(super) struct Sources {
    /// Paths by which Nickel knows a source, and as which it is shown in errors.
    pub(super) shown: BTreeMap<String, String>,
    inputs: BTreeMap<PathBuf, Digest>,
}

impl Sources {
    /// Adds Kiln's own modules to `hub`.
    pub(super) fn with_own(hub: &mut CacheHub) -> Sources {
        let mut sources = Sources::default();
        hub.sources.add_import_paths(std::iter::once(OWN));
        for module in modules() {
            sources.add(
                hub,
                &Path::new(OWN).join(module.name),
                InputFormat::Nickel,
                module.text,
                module.name,
            );
        }
        sources
    }

    /// Adds one source that is shown as `shown`.
    pub(super) fn add(
        &mut self,
        hub: &mut CacheHub,
        path: &Path,
        format: InputFormat,
        text: &str,
        shown: &str,
    ) -> FileId {
        self.shown.insert(path.to_string_lossy().into_owned(), shown.to_owned());
        hub.sources.add_string(SourcePath::Path(path.to_owned(), format), text.to_owned())
    }

    /// Loads `project`'s profile and, transitively, what it imports.
    pub(super) fn load(
        &mut self,
        hub: &mut CacheHub,
        project: &Project,
        format: InputFormat,
    ) -> Result<(), LoadError> {
        let unreadable = |reason| ProfileError::Unreadable { path: project.profile.clone(), reason };
        let text = self.read(project, &project.profile).map_err(|e| LoadError::Profile(unreadable(e)))?;
        let id = self.add(hub, &project.profile, format, &text, &shown_path(&project.profile));
        let mut open =
            if format == InputFormat::Nickel { vec![(id, project.profile.clone())] } else { Vec::new() };
        while let Some((id, path)) = open.pop() {
            let alloc = AstAlloc::new();
            let ast = hub.sources.parse_nickel(&alloc, id).map_err(|e| LoadError::Parse(Box::new(e)))?;
            for found in imports(&ast) {
                let loaded = self.load_import(hub, project, &path, &found);
                let bad =
                    |reason| BadImport { import: found.path.display().to_string(), reason, at: found.at };
                open.extend(loaded.map_err(|reason| LoadError::Import(bad(reason)))?);
            }
        }
        Ok(())
    }

    /// Loads one import of the file `from`, and answers it when it may import further files.
    fn load_import(
        &mut self,
        hub: &mut CacheHub,
        project: &Project,
        from: &Path,
        found: &Found,
    ) -> Result<Option<(FileId, PathBuf)>, String> {
        let beside = normalise(&from.parent().unwrap_or(Path::new("/")).join(&found.path));
        let own = normalise(&Path::new(OWN).join(&found.path));
        if self.is_loaded(hub, &beside, found.format) {
            return Ok(None);
        }
        if beside.symlink_metadata().is_err() {
            return match self.is_loaded(hub, &own, found.format) {
                true => Ok(None),
                false => Err(missing(&beside, &found.path)),
            };
        }
        let real = project.admit(&beside)?;
        let text = self.read(project, &real)?;
        let id = self.add(hub, &beside, found.format, &text, &shown_path(&beside));
        Ok((found.format == InputFormat::Nickel).then_some((id, beside)))
    }

    fn is_loaded(&self, hub: &CacheHub, path: &Path, format: InputFormat) -> bool {
        hub.sources.file_ids.contains_key(&SourcePath::Path(path.to_owned(), format))
    }

    fn read(&mut self, project: &Project, real: &Path) -> Result<String, String> {
        let bytes = read_import(real)?;
        self.inputs.insert(project.name(real), Digest::of(&bytes));
        let text = String::from_utf8(bytes)
            .map_err(|e| format!("it is no UTF-8 text (byte {})", e.utf8_error().valid_up_to()))?;
        // Editors of some systems begin a file with a byte order mark, which Nickel's readers don't all pass over.
        Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
    }

    /// Whether Nickel holds a source that wasn't loaded here: something got past the search for imports.
    pub(super) fn stranger(&self, hub: &CacheHub) -> Option<String> {
        let names = hub.sources.file_paths.values().filter_map(|source| match source {
            SourcePath::Path(path, _) => Some(path.to_string_lossy().into_owned()),
            _ => None,
        });
        names.into_iter().find(|name| !self.shown.contains_key(name))
    }

    /// The recorded files, in the order of their paths.
    pub(super) fn inputs(&self) -> Vec<Input> {
        self.inputs.iter().map(|(path, sha256)| Input { path: path.clone(), sha256: *sha256 }).collect()
    }
}

fn missing(beside: &Path, written: &Path) -> String {
    if !written.starts_with("kiln") {
        return format!("there is no {}", beside.display());
    }
    let names: Vec<_> = modules().iter().map(|m| m.name).collect();
    format!("Kiln has no such module; it has {}", names.join(", "))
}

/// The path as errors show it: relative to the working directory where it lies below it.
fn shown_path(path: &Path) -> String {
    // At the top of the file system every path would lose its first slash.
    let here = std::env::current_dir().ok().filter(|here| here.parent().is_some());
    let shown = here.and_then(|here| path.strip_prefix(here).ok()).unwrap_or(path);
    shown.to_string_lossy().into_owned()
}

/// An import found in a file.
struct Found {
    path: PathBuf,
    format: InputFormat,
    at: TermPos,
}

fn imports<'ast>(ast: &'ast Ast<'ast>) -> Vec<Found> {
    let mut found = Vec::new();
    let mut note = |ast: &'ast Ast<'ast>, (): &()| {
        if let Node::Import(Import::Path { path, format }) = &ast.node {
            found.push(Found { path: PathBuf::from(path), format: *format, at: ast.pos });
        }
        TraverseControl::<(), ()>::Continue
    };
    ast.traverse_ref(&mut note, &());
    found
}
