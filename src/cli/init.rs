//! `kiln init [DIR]`: a starter profile that bakes as it is.

use std::path::PathBuf;

use super::Context;
use super::report::Failure;
use crate::host::fs::{FileError, write_atomically};

/// The starter profile.
const STARTER: &str = include_str!("starter/image.ncl");
/// Its name.
const NAME: &str = "image.ncl";

/// Arguments of `kiln init`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to put it; made when it isn't there
    #[arg(value_name = "DIR", default_value = ".")]
    folder: PathBuf,
}

/// Writes the starter profile; never over an existing file.
///
/// # Errors
/// When there is such a file already, or it can't be written.
pub fn run(args: &Args, cx: &Context) -> Result<(), Failure> {
    let path = args.folder.join(NAME);
    match path.symlink_metadata() {
        Ok(_) => {
            let message = format!("{} is there already", path.display());
            return Err(Failure::usage("exists", message).hint("`kiln init DIR` starts in another folder"));
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(FileError::at("can't look for", &path)(e).into()),
    }
    write_atomically(&path, STARTER.as_bytes())?;
    let written = serde_json::json!({ "profile": path });
    cx.print(&written, || format!("{0} is a starter profile\nnext: kiln build {0}\n", path.display()))
}
