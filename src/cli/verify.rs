//! `kiln verify AMI`: reads an image's snapshot back and compares it with the image.

use std::fmt::Write as _;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;

use super::Context;
use super::aws::{AwsArgs, block_on};
use super::report::Failure;
use super::store;
use crate::aws::cloud::Region;
use crate::aws::list;
use crate::aws::snapshot::pace::Pace;
use crate::aws::snapshot::verify::{Difference, Verified, verify};
use crate::aws::snapshot::{Listener, Progress};
use crate::bake::{blocks_in, known_blocks};
use crate::digest::Digest;
use crate::publish::blocks::DiskBlocks;
use crate::units::Bytes;

/// Arguments of `kiln verify`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image: its id, in the region that `--region` names
    #[arg(value_name = "AMI")]
    image: String,
    /// Compare with this raw image, instead of with the one that the store knows by the digest in the AMI's tags
    #[arg(long, value_name = "FILE")]
    with: Option<PathBuf>,
    #[command(flatten)]
    aws: AwsArgs,
}

/// Differing blocks that are named one by one.
const NAMED: usize = 20;

/// Compares, and prints what differs.
///
/// # Errors
/// When the snapshot is not the image, or can't be read.
pub fn run(args: &Args, cx: &Context) -> Result<(), Failure> {
    let store = store::open(cx)?;
    let wanted = |digest: Option<Digest>| -> Result<DiskBlocks, Failure> {
        if let Some(path) = &args.with {
            let mut file = File::open(path)
                .map_err(crate::host::fs::FileError::at("can't open", path))
                .map_err(Failure::from)?;
            return Ok(blocks_in(&mut file, path)?);
        }
        let digest = digest.ok_or_else(|| {
            Failure::usage("verify", format!("{} has no tag that says what it was made of", args.image))
                .hint("`--with FILE` names the raw image")
        })?;
        known_blocks(&store, &digest).ok_or_else(|| {
            Failure::usage("verify", format!("this store doesn't know the image {}", digest.short()))
                .hint("`--with FILE` names the raw image; or bake it again from its profile and lock")
        })
    };
    let (snapshot, verified) = block_on(read_back(args, cx, &wanted))?;
    let value = json!({
        "image": args.image, "snapshot": snapshot, "same": verified.is_same(), "blocks": verified.same,
        "absent": verified.absent, "differing": verified.differing.keys().collect::<Vec<_>>(),
    });
    cx.print(&value, || describe(&snapshot, &verified))?;
    match verified.differing.len() {
        0 => Ok(()),
        count => Err(Failure::new("differs", format!("{snapshot} differs from the image in {count} blocks"))),
    }
}

async fn read_back(
    args: &Args,
    cx: &Context,
    wanted: &dyn Fn(Option<Digest>) -> Result<DiskBlocks, Failure>,
) -> Result<(String, Verified), Failure> {
    let cloud = args.aws.connect(None).await?;
    let name = args.aws.regions.first().map_or(cloud.home(), String::as_str);
    let region = cloud.region(name, None).await?;
    let found = list::image(&region, &args.image).await?.ok_or_else(|| {
        Failure::usage("verify", format!("there is no image {} in {name}", args.image))
            .hint("`--region` names the region; `kiln images` lists what Kiln published")
    })?;
    let snapshot = found.snapshots.first().cloned().unwrap_or_default();
    let blocks = wanted(found.digest)?;
    let bar = Bar { task: cx.progress.task("verify", &snapshot, blocks.size) };
    let verified = compared(&region, &snapshot, &blocks, &bar).await?;
    Ok((snapshot, verified))
}

async fn compared(
    region: &Region,
    snapshot: &str,
    blocks: &DiskBlocks,
    bar: &Bar,
) -> Result<Verified, Failure> {
    let done = verify(&region.ebs, &region.name, snapshot, blocks, Arc::new(Pace::default()), bar).await;
    Ok(done.map_err(crate::aws::deliver::DeliverError::from)?)
}

struct Bar {
    task: super::progress::Task,
}

impl Listener for Bar {
    fn progress(&self, progress: Progress) {
        self.task.at(progress.bytes, "");
    }
}

fn describe(snapshot: &str, verified: &Verified) -> String {
    let mut text = String::new();
    for (index, difference) in verified.differing.iter().take(NAMED) {
        let at = Bytes(u64::from(*index) * crate::artifact::BLOCK);
        let how = match difference {
            Difference::Missing => "was never written",
            Difference::Other { .. } => "holds something else",
        };
        let _ = writeln!(text, "block {index} (at {at}) {how}");
    }
    let more = verified.differing.len().saturating_sub(NAMED);
    if more > 0 {
        let _ = writeln!(text, "and {more} more");
    }
    let _ = writeln!(
        text,
        "{snapshot}: {} blocks are those of the image, {} differ, {} holes were never written",
        verified.same,
        verified.differing.len(),
        verified.absent
    );
    text
}
