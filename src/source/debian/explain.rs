//! Why a set of packages can't be: the chain of reasons, as a person would tell it.

use std::fmt;

use super::dependencies::Cache;
use super::index::{NameId, Universe};
use super::policy::Policy;
use super::resolve::Request;
use crate::system::Package;

/// No set of packages is right; the reasons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsolvable {
    /// One for each thing that stands in the way.
    pub reasons: Vec<Reason>,
}

/// A chain of reasons: each line is a consequence of the one before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// From what the profile asks for to what is missing or in conflict.
    pub lines: Vec<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl fmt::Display for Unsolvable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the packages that the profile asks for can't be installed together:")?;
        for reason in &self.reasons {
            for (depth, line) in reason.lines.iter().enumerate() {
                write!(f, "\n  {}{line}", "  ".repeat(depth))?;
            }
            if let Some(hint) = &reason.hint {
                write!(f, "\n  hint: {hint}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Unsolvable {}

/// The profile asks for a package or version that there isn't.
pub fn unknown(_universe: &Universe, name: &str, _wanted: &Package) -> Reason {
    Reason { lines: vec![format!("{name} is in no index")], hint: None }
}

/// The roots can't be installed together.
pub fn conflict(_: &Cache, _: &Policy, _: &[NameId], _: &Request) -> Unsolvable {
    Unsolvable { reasons: vec![Reason { lines: vec!["packages are in conflict".into()], hint: None }] }
}
