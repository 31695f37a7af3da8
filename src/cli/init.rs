//! `kiln init [DIR]`: a starter profile that bakes as it is.

use std::path::{Path, PathBuf};

use super::Context;
use super::report::Failure;
use crate::host::fs::{FileError, write_atomically};

/// The starter profile.
const STARTER: &str = include_str!("starter/image.ncl");
/// What the image is called in it.
const PLACEHOLDER: &str = "image";
/// The name of its file.
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
    let name = std::path::absolute(&args.folder).ok().and_then(|folder| image_name(&folder));
    write_atomically(&path, starter(name.as_deref().unwrap_or(PLACEHOLDER)).as_bytes())?;
    let written = serde_json::json!({ "profile": path });
    cx.print(&written, || format!("{0} is a starter profile\nnext: kiln build {0}\n", path.display()))
}

/// The folder's name, when an image may be called that: as the contract `Name` of profiles says.
fn image_name(folder: &Path) -> Option<String> {
    let name = folder.components().next_back()?.as_os_str().to_str()?;
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let right = (1..=63).contains(&name.len()) && name.chars().all(fits);
    (right && !name.starts_with('-') && !name.ends_with('-')).then(|| name.to_owned())
}

/// The starter profile of an image called `name`.
fn starter(name: &str) -> String {
    STARTER
        .replace("name = \"image\"", &format!("name = \"{name}\""))
        .replace("out/image/", &format!("out/{name}/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_names_the_image() {
        let name = |folder: &str| image_name(Path::new(folder));
        assert_eq!(name("/home/ann/web").as_deref(), Some("web"));
        assert_eq!(name("/srv/db-1/").as_deref(), Some("db-1"));
        for folder in ["/", "/srv/My Images", "/srv/-web", "/srv/web.d", "/srv/.."] {
            assert_eq!(name(folder), None, "{folder}");
        }
        let text = starter("web");
        assert!(text.contains("name = \"web\"") && text.contains("into out/web/"));
        assert_eq!(starter(PLACEHOLDER), STARTER);
    }
}
