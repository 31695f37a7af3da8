//! `kiln export IMAGE`: a raw image as qcow2.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::Context;
use super::report::Failure;
use crate::export::{self, Compression};
use crate::units::{Bytes, SECTOR};
use crate::vm::disk::Image;
use crate::vm::machine::Format;

/// Arguments of `kiln export`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The raw image
    image: PathBuf,
    /// The qcow2 file to write
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Store clusters as they are
    #[arg(long)]
    plain: bool,
}

/// Writes the file; one that is there already is replaced once the new one is whole.
///
/// # Errors
/// When the image can't be read or the file can't be written.
pub fn run(args: &Args, cx: &Context) -> Result<(), Failure> {
    let image = Image::open(&args.image).map_err(|e| super::run::failure(&e.into()))?;
    if image.format != Format::Raw {
        let message = format!("{} is a qcow2 image already: what is exported is raw", args.image.display());
        return Err(Failure::usage("export", message).hint("`qemu-img convert -O raw` makes a raw one of it"));
    }
    let size = std::fs::metadata(&args.image).map_err(|e| Failure::of("file", &e))?.len();
    if size == 0 || size % SECTOR != 0 {
        let message = format!("{} is no disk: {size} bytes are no sectors of {SECTOR}", args.image.display());
        return Err(Failure::usage("export", message).hint("give a raw image, as `kiln build` writes it"));
    }
    if is_same(&args.image, &args.out) {
        let message = format!("{} would be written over itself", args.image.display());
        return Err(Failure::usage("export", message).hint("give `-o` another name"));
    }
    let compression = if args.plain { Compression::None } else { Compression::default() };
    let task = cx.progress.task("exporting", &args.out.display().to_string(), 0);
    export::qcow2(&args.image, &args.out, compression).map_err(|e| Failure::of("export", &e))?;
    drop(task);
    let size = std::fs::metadata(&args.out).map_err(|e| Failure::of("file", &e))?.len();
    cx.print(&json!({ "file": args.out, "size": size }), || {
        format!("{}  {}\n", args.out.display(), Bytes(size))
    })
}

/// Whether two names lead to one file.
fn is_same(one: &Path, other: &Path) -> bool {
    let id = |path: &Path| std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    id(one).is_some_and(|found| id(other) == Some(found))
}
