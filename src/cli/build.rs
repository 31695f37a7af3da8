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
    /// Which formats: raw, qcow2, or both
    #[arg(long, value_name = "FORMAT,…", value_delimiter = ',', default_value = "raw")]
    format: Vec<Format>,
}

/// Bakes the image and prints the manifest.
///
/// # Errors
/// Those of the phase that failed.
pub fn run(args: &Args, cx: &Context) -> Result<(), Failure> {
    let outputs = build(&args.profile, args.out.clone(), &args.format, cx)?;
    cx.print(&outputs.manifest, || describe(&outputs))
}

/// Bakes a profile: also for the verbs that go on with the image.
///
/// # Errors
/// Those of the phase that failed.
pub fn build(
    profile: &ProfileArgs,
    out: Option<PathBuf>,
    formats: &[Format],
    cx: &Context,
) -> Result<Outputs, Failure> {
    let mut formats = formats.to_vec();
    formats.sort_unstable();
    formats.dedup();
    let request = BuildRequest { profile: profile.request(cx), out, formats };
    profile.in_session(cx, |session| Ok(session.build(&request)?))
}

fn describe(outputs: &Outputs) -> String {
    let manifest = &outputs.manifest;
    let mut text = String::new();
    for image in &manifest.images {
        let path = outputs.folder.join(&image.file);
        text += &format!("{}  {}  sha256:{}\n", path.display(), Bytes(image.size), image.sha256);
    }
    let path = outputs.folder.join("manifest.json");
    let same = if outputs.changed { "" } else { ", nothing changed" };
    text + &format!("{}  {} packages{same}\n", path.display(), manifest.packages.len())
}
