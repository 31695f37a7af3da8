//! The Nickel modules that Kiln brings: the contracts, and parts of systems to build profiles from. They live in this
//! program; profiles import them as `import "kiln/server.ncl"`.

use std::path::{Path, PathBuf};

use crate::host::fs::{FileError, write_atomically};

/// A module that Kiln brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Module {
    /// What profiles import, as in `kiln/system.ncl`.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

macro_rules! modules {
    ($($name:literal),* $(,)?) => {
        &[$(Module { name: concat!("kiln/", $name), text: include_str!(concat!("ncl/kiln/", $name)) }),*]
    };
}

const MODULES: &[Module] =
    modules!["nginx.ncl", "postgresql.ncl", "publish.ncl", "server.ncl", "system.ncl", "types.ncl"];

/// All modules, `kiln/system.ncl` with the contract of a whole system among them.
#[must_use]
pub fn modules() -> &'static [Module] {
    MODULES
}

/// Writes all modules below `folder`, for editors: their language server finds them when `NICKEL_IMPORT_PATH` names it.
/// Answers the files written.
///
/// # Errors
/// [`FileError`] when one can't be written.
pub fn write_modules(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    let write = |module: &Module| {
        let path = folder.join(module.name);
        write_atomically(&path, module.text.as_bytes()).map(|()| path)
    };
    MODULES.iter().map(write).collect()
}
