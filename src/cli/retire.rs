//! `kiln retire PROFILE`: applies retention, and removes what interrupted publications left.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use crate::aws::together::all;
use serde::Serialize;

use super::Context;
use super::aws::{AwsArgs, with_runtime};
use super::gc::parse_age;
use super::report::Failure;
use super::session::ProfileArgs;
use crate::aws::cloud::{Cloud, Region};
use crate::aws::error::AwsError;
use crate::aws::observe;
use crate::aws::retire::{self, Orphan, Outcome, Retiring};
use crate::bake::Publishable;
use crate::date::Timestamp;
use crate::publish::retention::retired;
use crate::publish::target::Upload;
use crate::publish::{Publication, Target};

/// Arguments of `kiln retire`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    profile: ProfileArgs,
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Orphans must be older: younger ones may belong to a publication that is under way elsewhere
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse_age)]
    older_than: Duration,
    #[command(flatten)]
    aws: AwsArgs,
}

/// What became of something that was to go.
#[derive(Debug, Serialize)]
struct Removal {
    region: String,
    what: String,
    /// `would go`, `gone`, `stays`.
    outcome: &'static str,
    /// Why it stays.
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
}

/// Removes, in each region of the profile, the images that its retention doesn't keep, and orphans.
///
/// # Errors
/// When a region can't be asked, or a request fails for good; the other regions are done all the same.
pub fn run(args: &Args, cx: &Context) -> Result<(), Failure> {
    let request = args.profile.request(cx);
    let (removals, failed) = with_runtime(|runtime| {
        args.profile.in_session(cx, |session| {
            let evaluated = session.evaluate(&request)?;
            let chosen = args.aws.chosen(&evaluated.system().publish.aws.names())?;
            let cloud = runtime.block_on(args.aws.connect(None))?;
            let locked = session.locked(evaluated)?;
            let disk = session.disk(&locked, &session.tree(&locked)?)?;
            let mut publication = session.publication(&locked, &Publishable::Untested(disk.image))?;
            publication.targets.retain(|name, _| chosen.contains(name));
            let _task = cx.progress.task("retire", "asking the regions", 0);
            Ok(runtime.block_on(everywhere(args, &cloud, &publication)))
        })
    })?;
    cx.print(&removals, || table(&removals))?;
    match failed.into_iter().next() {
        None => Ok(()),
        Some(error) => Err(error),
    }
}

async fn everywhere(args: &Args, cloud: &Cloud, publication: &Publication) -> (Vec<Removal>, Vec<Failure>) {
    let one = async |target: &Target| one_region(args, cloud, publication, target).await;
    let answers = all(publication.targets.values().map(one)).await;
    let (mut removals, mut failed) = (Vec::new(), Vec::new());
    for answer in answers {
        match answer {
            Ok(found) => removals.extend(found),
            Err(error) => failed.push(error.into()),
        }
    }
    (removals, failed)
}

async fn one_region(
    args: &Args,
    cloud: &Cloud,
    publication: &Publication,
    target: &Target,
) -> Result<Vec<Removal>, AwsError> {
    let region = cloud.target(target).await?;
    let mut removals = Vec::new();
    for image in images(&region, publication, target).await? {
        let outcome = match (args.dry_run, image.kept_by.is_empty()) {
            (true, true) => None,
            (true, false) => Some(Outcome::Stays(image.kept_by.join("; "))),
            (false, _) => Some(retire::retire(&region, &image).await?),
        };
        removals.push(removal(&region, &format!("{} ({})", image.image, image.name), outcome));
    }
    for orphan in orphans(args, &region, target).await? {
        let outcome = if args.dry_run { None } else { Some(retire::remove(&region, &orphan).await?) };
        removals.push(removal(&region, &orphan.to_string(), outcome));
    }
    Ok(removals)
}

/// The images that retention doesn't keep.
async fn images(
    region: &Region,
    publication: &Publication,
    target: &Target,
) -> Result<Vec<Retiring>, AwsError> {
    let seen = observe::region(region, &publication.system, target).await?;
    let named: BTreeSet<String> = seen.parameters.values().map(|parameter| parameter.value.clone()).collect();
    let current: BTreeSet<String> =
        seen.named(&target.name).map(|image| image.id.clone()).into_iter().collect();
    let now = Timestamp::now();
    let gone = retired(&seen.images, &publication.system, &target.retention, &current, &named, now);
    let ids: BTreeSet<String> = gone.into_iter().map(|image| image.id.clone()).collect();
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    retire::images(region, &ids, &target.parameters).await
}

async fn orphans(args: &Args, region: &Region, target: &Target) -> Result<Vec<Orphan>, AwsError> {
    let age = i64::try_from(args.older_than.as_secs()).unwrap_or(i64::MAX);
    let before = Timestamp::now().plus(age.saturating_neg());
    // What the next run of this very publication goes on with.
    let keep = BTreeSet::from([target.id]);
    let mut found = retire::orphans(region, before, &keep).await?;
    // AWS doesn't say how old an import is.
    found.retain(|orphan| args.older_than.is_zero() || !matches!(orphan, Orphan::Import { .. }));
    if let Upload::S3Import { bucket, prefix, .. } = &target.upload {
        found.extend(retire::uploads(region, bucket, prefix, before).await?);
    }
    Ok(found)
}

fn removal(region: &Region, what: &str, outcome: Option<Outcome>) -> Removal {
    let (outcome, reason) = match outcome {
        None => ("would go", String::new()),
        Some(Outcome::Gone) => ("gone", String::new()),
        Some(Outcome::SnapshotsStay(reason)) => ("gone", format!("its snapshots stay: {reason}")),
        Some(Outcome::Stays(reason)) => ("stays", reason),
    };
    Removal { region: region.name.clone(), what: what.to_owned(), outcome, reason }
}

fn table(removals: &[Removal]) -> String {
    if removals.is_empty() {
        return "nothing to retire\n".to_owned();
    }
    let mut text = String::new();
    for Removal { region, what, outcome, reason } in removals {
        let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        let _ = writeln!(text, "{region:16} {outcome:9} {what}{reason}");
    }
    text
}
