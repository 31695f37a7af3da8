//! `kiln internal aws-upload`: uploads a raw image to a snapshot, and nothing else of publishing. For the benchmark, which
//! compares just that, and for tests that interrupt it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use serde_json::json;

use super::report::Failure;
use crate::aws::snapshot::pace::Pace;
use crate::aws::snapshot::verify::verify;
use crate::aws::snapshot::{Image, Make, Patience, SnapshotError, Start, Wait, make, start};
use crate::aws::{AwsError, Cloud, Options, runtime};
use crate::host::fs::FileError;
use crate::host::interrupt;
use crate::image::block_map;
use crate::publish::blocks::{DiskBlocks, client_token};
use crate::publish::holes::read_ranges;

/// The name of the part.
pub const PART: &str = "aws-upload";

#[derive(Debug, Parser)]
#[command(no_binary_name = true)]
struct Arguments {
    /// The raw image.
    image: PathBuf,
    #[arg(long)]
    endpoint: Option<String>,
    #[arg(long, default_value = "eu-central-1")]
    region: String,
    /// Where the journal of blocks is kept.
    #[arg(long)]
    journals: PathBuf,
    /// Holes are written too.
    #[arg(long)]
    encrypted: bool,
    /// Reads the snapshot back in the end.
    #[arg(long)]
    verify: bool,
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

/// Prints the snapshot and what was sent, as a line of JSON.
pub fn main(arguments: &[OsString]) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    super::start_tracing(arguments.verbose, false);
    let installed = interrupt::install().and_then(|()| runtime());
    let done = match installed {
        Ok(runtime) => runtime.block_on(uploaded(arguments)),
        Err(error) => Err(AwsError::credentials(error.to_string()).into()),
    };
    match done {
        Ok(line) => super::answer(&line),
        Err(error) => {
            Failure::of("aws", &error).print(false, false);
            ExitCode::from(if error.is_interrupted() { 130 } else { 1 })
        }
    }
}

async fn uploaded(arguments: Arguments) -> Result<String, SnapshotError> {
    let image = Image::open(&arguments.image)?;
    let wrong = || FileError::at("can't read", &arguments.image);
    let mut file = std::fs::File::open(&arguments.image).map_err(wrong())?;
    let map = block_map(&file).map_err(wrong())?;
    let blocks = DiskBlocks::new(&map, &read_ranges(&mut file).map_err(wrong())?);
    let sending = blocks.full(arguments.encrypted);
    let options = Options { endpoint: arguments.endpoint, ..Options::default() };
    let region = Cloud::connect(options).await?.region(&arguments.region, None).await?;
    let token = client_token(&["upload", &sending.id().to_string()]);
    let begun = Start {
        volume_size: sending.volume_size,
        parent: None,
        description: "",
        tags: &BTreeMap::new(),
        encrypted: arguments.encrypted,
        kms_key: None,
        token: &token,
    };
    let begun = start(&region.ebs, &region.name, &begun).await?;
    let job = Make {
        ebs: &region.ebs,
        ec2: &region.ec2,
        region: &region.name,
        image: &image,
        sending: &sending,
        journals: &arguments.journals,
        patience: Patience::default(),
        wait: Wait::default(),
        pace: Arc::new(Pace::default()),
        listener: &(),
    };
    let done = make(&job, &begun).await?;
    let mut same = None;
    if arguments.verify {
        let pace = Arc::new(Pace::default());
        let found = verify(&region.ebs, &region.name, &begun.snapshot, &blocks, pace, &()).await?;
        same = Some(found.is_same() && found.unwritten.is_empty());
    }
    let (data, zero, hole) = blocks.counts();
    let line = json!({
        "snapshot": begun.snapshot, "sent": done.sent, "earlier": done.earlier, "again": done.again,
        "seconds": done.seconds, "data": data, "zero": zero, "hole": hole, "same": same,
    });
    Ok(line.to_string())
}
