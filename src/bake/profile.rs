//! Profile → [`Profile`].

use std::path::PathBuf;

use super::{BakeError, Session};
use crate::profile::{EvalRequest, Evaluated, ProfileFiles, evaluate};
use crate::system::System;

/// An evaluated profile and the files beside it.
pub struct Profile {
    /// The profile's file as it was named.
    pub path: PathBuf,
    /// What it evaluates to.
    pub evaluated: Evaluated,
    /// Its files.
    pub files: ProfileFiles,
}

impl Profile {
    /// The system that it describes.
    #[must_use]
    pub fn system(&self) -> &System {
        &self.evaluated.system
    }

    /// Where its lock lies: beside it, named as the file is.
    #[must_use]
    pub fn lock_path(&self) -> PathBuf {
        self.path.with_extension("lock")
    }
}

impl Session<'_> {
    /// Evaluates a profile.
    ///
    /// # Errors
    /// [`BakeError::Profile`].
    pub fn evaluate(&self, request: &EvalRequest) -> Result<Profile, BakeError> {
        let evaluated = evaluate(request)?;
        let files = ProfileFiles::new(&evaluated);
        Ok(Profile { path: request.profile.clone(), evaluated, files })
    }
}
