//! From a profile to a [`System`]: Nickel in, plain data out.
//!
//! A profile is a Nickel record (or a TOML, YAML or JSON file). Kiln evaluates
//! `(profile & overrides) | System`, where `System` is the contract of `ncl/kiln/system.ncl`: it holds what each field may
//! be, its documentation and its default. The contract comes last, so that a misspelt field is caught wherever it was
//! written, and its error points at the source.
//!
//! Evaluation is pure. It happens in a child process with limits on memory and time and an empty environment
//! ([`child`]); every file that is imported lies below the project's root ([`project`]) and is recorded with its digest
//! ([`sources`]). What a contract can't say because it concerns several fields is checked afterwards ([`validate`]), and the
//! files that fields name are looked for ([`named`]).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::system::System;

mod child;
mod diagnostics;
mod files;
mod modules;
mod named;
mod nickel;
mod path;
mod places;
mod project;
mod quoting;
pub mod reference;
mod sets;
mod sources;
mod validate;

pub use child::child_main;
pub use files::{ProfileFile, ProfileFiles};
pub use modules::{Module, modules, write_modules};
pub use path::{FieldPath, PathError};
pub use validate::Problem;

/// What to evaluate.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct EvalRequest {
    /// The profile's file: `.ncl`, `.toml`, `.yaml`, `.yml` or `.json`.
    pub profile: PathBuf,
    /// Overrides: a field's path and its value, which is JSON or else plain text. Of two for one field the last counts.
    pub sets: Vec<(String, String)>,
    /// Further folders from which the profile may take files.
    pub roots: Vec<PathBuf>,
    /// Whether errors are rendered with colours.
    pub color: bool,
}

/// A file that evaluation read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Input {
    /// Its path relative to the project's root; absolute when it lies in a further folder.
    pub path: PathBuf,
    /// SHA-256 of its bytes.
    pub sha256: Digest,
}

/// An evaluated profile.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluated {
    /// The system, every default filled in.
    pub system: System,
    /// The same as JSON, its fields in the order of their names.
    pub json: serde_json::Value,
    /// The files that evaluation read, in the order of their paths.
    pub inputs: Vec<Input>,
    /// The project's root, canonical: nothing outside it was read.
    pub root: PathBuf,
    /// The profile's folder, canonical: paths in the profile count from here.
    pub folder: PathBuf,
    /// The further folders that were allowed, canonical.
    pub roots: Vec<PathBuf>,
}

/// Why a profile can't be used. All of them are the author's to mend: exit status 2.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The profile isn't there or can't be read.
    #[error("can't read the profile {path}: {reason}", path = path.display())]
    Unreadable {
        /// The profile.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A file that the profile names is out of bounds or can't be read.
    #[error("{name}: {reason}")]
    File {
        /// Its name, as the profile writes it.
        name: String,
        /// Why it is refused.
        reason: String,
    },
    /// An override can't be understood.
    #[error("--set {set}: {reason}")]
    Set {
        /// The override as typed.
        set: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nickel's own diagnostics, rendered.
    #[error("{0}")]
    Nickel(String),
    /// Evaluation was ended by its limits.
    #[error("{0}")]
    Limit(String),
    /// Fields that contradict each other, or name files that aren't there.
    #[error("{shown}")]
    Invalid {
        /// Each with its field's path.
        problems: Vec<Problem>,
        /// All of them, with the places where they are written.
        shown: String,
    },
    /// The user ended Kiln.
    #[error("interrupted")]
    Interrupted(#[source] crate::host::interrupt::Interrupted),
    /// Evaluation could not be run, or gave what no contract lets through.
    #[error("the profile could not be evaluated: {0}")]
    Internal(String),
}

/// Evaluates a profile in a child process.
///
/// # Errors
/// [`ProfileError`], with Nickel's diagnostics where the profile is wrong.
pub fn evaluate(request: &EvalRequest) -> Result<Evaluated, ProfileError> {
    finish(child::evaluate(request)?)
}

/// Evaluates a profile in this process, without limits on memory and time.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_here(request: &EvalRequest) -> Result<Evaluated, ProfileError> {
    finish(nickel::evaluate_on_big_stack(request)?)
}

/// What evaluation itself yields, as it passes from child to parent.
#[derive(Debug, Serialize, Deserialize)]
struct Raw {
    json: String,
    inputs: Vec<Input>,
    root: PathBuf,
    folder: PathBuf,
    roots: Vec<PathBuf>,
}

fn finish(raw: Raw) -> Result<Evaluated, ProfileError> {
    let unfit = |e: serde_json::Error| ProfileError::Internal(format!("it doesn't fit the types: {e}"));
    let json: serde_json::Value = serde_json::from_str(&raw.json).map_err(unfit)?;
    let system: System = serde_json::from_str(&raw.json).map_err(unfit)?;
    let Raw { inputs, root, folder, roots, .. } = raw;
    Ok(Evaluated { system, json, inputs, root, folder, roots })
}
