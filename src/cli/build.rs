//! `kiln build PROFILE`: the image, under `out/NAME/`.

use std::path::PathBuf;

use super::Context;
use super::report::Failure;
use super::session::ProfileArgs;
use crate::bake::{BuildRequest, Format, Outputs};
use crate::units::Bytes;

/// Arguments of `kiln build`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    profile: ProfileArgs,
    /// Where the files go [default: out/NAME]
    #[arg(short, long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Which formats: raw, qcow2, generation (for `kiln switch` on a machine of the store layout)
    #[arg(long, value_name = "FORMAT,…", value_delimiter = ',', default_value = "raw")]
    format: Vec<Format>,
    /// Compute the SHA-256 of a raw disk as well, as sha256sum prints it; takes 0.6 s per GiB, empty space included
    #[arg(long)]
    sha256: bool,
}

/// Bakes the image and prints the manifest.
///
/// # Errors
/// Those of the phase that failed.
pub fn run(args: &Args, cx: &Context) -> Result<(), Failure> {
    let mut formats = args.format.clone();
    formats.sort_unstable();
    formats.dedup();
    let profile = args.profile.request(cx);
    let request = BuildRequest { profile, out: args.out.clone(), formats, sha256: args.sha256 };
    let outputs = args.profile.in_session(cx, |session| Ok(session.build(&request)?))?;
    cx.print(&outputs.manifest, || describe(&outputs))
}

fn describe(outputs: &Outputs) -> String {
    let manifest = &outputs.manifest;
    let mut text = String::new();
    for image in &manifest.images {
        let path = outputs.folder.join(&image.file);
        let digest = image
            .sha256
            .map_or_else(|| format!("blocks:{}", manifest.blocks), |sha256| format!("sha256:{sha256}"));
        text += &format!("{}  {}  {digest}\n", path.display(), Bytes(image.size));
    }
    let path = outputs.folder.join("manifest.json");
    let same = if outputs.changed { "" } else { ", nothing changed" };
    text + &format!("{}  {} packages{same}\n", path.display(), manifest.packages.len())
}
