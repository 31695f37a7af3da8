//! `kiln export IMAGE`: a raw image as qcow2.

use std::path::PathBuf;

use serde_json::json;

use super::Context;
use super::report::Failure;
use crate::export::{self, Compression};
use crate::units::Bytes;

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
    let compression = if args.plain { Compression::None } else { Compression::default() };
    let task = cx.progress.task("exporting", &args.out.display().to_string(), 0);
    export::qcow2(&args.image, &args.out, compression).map_err(|e| Failure::of("export", &e))?;
    drop(task);
    let size = std::fs::metadata(&args.out).map_err(|e| Failure::of("file", &e))?.len();
    cx.print(&json!({ "file": args.out, "size": size }), || {
        format!("{}  {}\n", args.out.display(), Bytes(size))
    })
}
