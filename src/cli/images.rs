//! `kiln images`: what Kiln has published.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::aws::together::all;

use super::Context;
use super::aws::{AwsArgs, block_on};
use super::report::Failure;
use crate::aws::list::{self, Published};

/// Arguments of `kiln images`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only images of this system: a profile's `name`
    #[arg(value_name = "SYSTEM")]
    system: Option<String>,
    #[command(flatten)]
    aws: AwsArgs,
}

/// Lists the images of all regions that the account has enabled, or of those that were named.
///
/// # Errors
/// When a region can't be asked; what the others have is printed all the same.
pub fn run(args: &Args, cx: &Context) -> Result<(), Failure> {
    let (found, failed) = block_on(collect(args, cx))?;
    cx.print(&found, || table(&found))?;
    match failed.into_iter().next() {
        None => Ok(()),
        Some(failure) => Err(failure),
    }
}

async fn collect(args: &Args, cx: &Context) -> Result<(Vec<Published>, Vec<Failure>), Failure> {
    let cloud = args.aws.connect(None).await?;
    let names = if args.aws.regions.is_empty() {
        list::regions(&cloud.region(cloud.home(), None).await?).await?
    } else {
        args.aws.regions.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect()
    };
    let task = cx.progress.task("images", &format!("asking {} regions", names.len()), 0);
    let one = async |name: &String| {
        let region = cloud.region(name, None).await?;
        list::images(&region, args.system.as_deref()).await
    };
    let answers = all(names.iter().map(one)).await;
    drop(task);
    let (mut found, mut failed) = (Vec::new(), Vec::new());
    for answer in answers {
        match answer {
            Ok(images) => found.extend(images),
            Err(error) => failed.push(error.into()),
        }
    }
    Ok((found, failed))
}

fn table(images: &[Published]) -> String {
    if images.is_empty() {
        return "nothing that Kiln published\n".to_owned();
    }
    let mut text = String::new();
    let width = images.iter().map(|i| i.name.len()).max().unwrap_or_default();
    for image in images {
        let marks = [
            (image.state != "available").then_some(image.state.as_str()),
            (!image.tested).then_some("untested"),
            image.public.then_some("public"),
            image.protected.then_some("protected"),
            image.encrypted.then_some("encrypted"),
            image.deprecated.is_some().then_some("deprecation set"),
        ];
        let marks: Vec<&str> = marks.into_iter().flatten().collect();
        let _ = writeln!(
            text,
            "{:16} {:22} {:width$}  {}  {} GiB  {}",
            image.region,
            image.image,
            image.name,
            image.created,
            image.size,
            marks.join(", ")
        );
    }
    text
}
