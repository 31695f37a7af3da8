//! `kiln publish PROFILE`: bakes, tests and publishes; each part is skipped that is done already.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use super::Context;
use super::aws::{AwsArgs, Teller, with_runtime};
use super::report::{Failure, Status};
use super::session::ProfileArgs;
use super::test::{can_be_written, make, test_for_publication};
use crate::aws::cloud::{Cloud, Region};
use crate::aws::deliver::{self, DeliverError, Delivery, Outcome};
use crate::aws::error::AwsError;
use crate::aws::preflight::{self, Finding, Question, State};
use crate::aws::together::all;
use crate::aws::{observe, snapshot};
use crate::bake::{Carried, Locked, Publishable, RECORD, Ready, Session, known_blocks, recorded};
use crate::date::Timestamp;
use crate::publish::Publication;
use crate::publish::observed::Observed;
use crate::publish::plan::{Action, Plan, PlanError, Way};
use crate::units::Bytes;

/// Arguments of `kiln publish`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    profile: ProfileArgs,
    /// Where `publication.json` and the tests' reports go [default: out/NAME]
    #[arg(short, long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Publish an image that nobody has tested; its tags and the record will say so
    #[arg(long)]
    untested: bool,
    #[command(flatten)]
    aws: AwsArgs,
}

/// A session that ends within this time is told of before anything is uploaded.
const LEAST: Duration = Duration::from_secs(20 * 60);

/// Publishes.
///
/// # Errors
/// With status 3 when the image failed its tests, 1 when a required region has not got the image.
pub fn run(args: &Args, cx: &Context) -> Result<(), Failure> {
    let began = Instant::now();
    let started = Timestamp::now();
    let request = args.profile.request(cx);
    with_runtime(|runtime| {
        args.profile.in_session(cx, |session| {
            let evaluated = session.evaluate(&request)?;
            let system = evaluated.system();
            let chosen = args.aws.chosen(&system.publish.aws.names())?;
            let folder = args.out.clone().unwrap_or_else(|| Path::new("out").join(&system.name));
            can_be_written(&folder)?;
            // Whoever has to be asked for a code is asked now, not after the bake.
            let cloud = runtime.block_on(args.aws.connect(Some(LEAST)))?;
            let locked = session.locked(evaluated)?;
            let mut ready = ready(args, session, &locked, &folder, cx)?;
            ready.publication.targets.retain(|name, _| chosen.contains(name));
            let teller = Teller::new(cx);
            let work = Work { session, ready: &ready, cloud: &cloud, teller: &teller, cx };
            let done = runtime.block_on(work.publish())?;
            interrupted(&done.outcome)?;
            let carried = Carried {
                publication: &ready.publication,
                profile: &locked.profile.path,
                regions: &done.regions,
                outcome: &done.outcome,
                started,
                finished: Timestamp::now(),
                before: recorded(&folder),
            };
            make(&folder)?;
            carried.write(&folder)?;
            print(&carried, &folder, began.elapsed(), cx)?;
            verdict(&ready.publication, done.outcome)
        })
    })
}

/// Bakes and tests, as far as that isn't done.
fn ready(
    args: &Args,
    session: &Session<'_>,
    locked: &Locked,
    folder: &Path,
    cx: &Context,
) -> Result<Ready, Failure> {
    let tree = session.tree(locked)?;
    let disk = session.disk(locked, &tree)?;
    let image = if args.untested {
        match session.verdict(locked, &tree, &disk)?.and_then(|t| crate::bake::passed(disk.image.clone(), t))
        {
            Some(tested) => tested,
            None => {
                cx.progress.say("WARNING", "nobody has tested this image: tags and record will say so");
                Publishable::Untested(disk.image.clone())
            }
        }
    } else {
        test_for_publication(session, locked, &tree, &disk, &folder.join("test"), cx)?
    };
    Ok(session.ready(locked, &image)?)
}

/// What it takes to publish.
struct Work<'a> {
    session: &'a Session<'a>,
    ready: &'a Ready,
    cloud: &'a Cloud,
    teller: &'a Teller<'a>,
    cx: &'a Context,
}

/// What came of it.
struct Done {
    regions: BTreeMap<String, Region>,
    outcome: Outcome,
}

impl Work<'_> {
    async fn publish(&self) -> Result<Done, Failure> {
        let publication = &self.ready.publication;
        let (regions, observed) = look(self.cloud, publication).await;
        let plan = self.session.publish_plan(self.ready, &observed);
        self.teller.event(&json!({ "event": "plan", "plan": plan }));
        plan.check().map_err(refused)?;
        if plan.is_done() {
            self.cx.progress.say("publish", "everything is there already");
        } else {
            self.preflight(&regions, &plan).await?;
        }
        let known = |digest: &_| known_blocks(self.session.store, digest);
        let tell = |region: &str, event| self.teller.tell(region, &event);
        let delivery = Delivery {
            publication,
            plan,
            regions,
            observed,
            image: snapshot::Image::open(&self.ready.image.path)?,
            blocks: &self.ready.blocks,
            known: &known,
            journals: self.session.journals(),
            tell: &tell,
        };
        let mut outcome = deliver::deliver(&delivery).await;
        // A region that could not even be signed in to has an outcome, too.
        for (name, seen) in &delivery.observed {
            if let (Err(why), false) = (seen, outcome.contains_key(name)) {
                outcome.insert(name.clone(), Err(DeliverError::Unseen(why.clone())));
            }
        }
        Ok(Done { regions: delivery.regions, outcome })
    }

    /// Everything that can be found out before the first byte, in one table.
    async fn preflight(&self, regions: &BTreeMap<String, Region>, plan: &Plan) -> Result<(), Failure> {
        let publication = &self.ready.publication;
        let takes = Duration::from_secs(plan.cost.bytes.0 / SLOW_LINE + 300);
        let one = async |name: &String, region: &Region| match way(&plan.regions[name].action) {
            Some(way) => {
                let target = &publication.targets[name];
                preflight::region(region, &Question { publication, target, way, takes }).await
            }
            None => Ok(Vec::new()),
        };
        let _task = self.cx.progress.task("preflight", "looking for what could go wrong", 0);
        let mut found = Vec::new();
        for answer in all(regions.iter().map(|(name, region)| one(name, region))).await {
            found.extend(answer?);
        }
        let failed: Vec<&Finding> = found.iter().filter(|finding| finding.state == State::Failed).collect();
        for finding in found.iter().filter(|finding| finding.state != State::Ok) {
            self.teller.event(&json!({ "event": "preflight", "finding": finding }));
        }
        let required = |finding: &&&Finding| {
            publication.targets.get(&finding.region).is_none_or(|target| target.required)
        };
        if failed.iter().any(|finding| required(&finding)) {
            let count = match failed.len() {
                1 => "something stands".to_owned(),
                count => format!("{count} things stand"),
            };
            let message = format!("{count} in the way:\n{}", findings(&failed));
            return Err(Failure::new("preflight", message.trim_end()).hint("nothing was uploaded or changed"));
        }
        for finding in failed {
            self.cx.progress.say(&finding.region, &format!("{}: {}", finding.check, finding.seen));
        }
        Ok(())
    }
}

/// Bytes a second of a line that is slow: a session should last at least as long as such an upload.
const SLOW_LINE: u64 = 20 << 20;

/// How the image gets to a region, as preflight asks; nothing where it is there.
fn way(action: &Action) -> Option<preflight::Way<'_>> {
    match action {
        Action::Create { way, .. } => Some(match way {
            Way::CopySnapshot { from } => preflight::Way::CopySnapshot(from),
            Way::CopyImage { from } => preflight::Way::CopyImage(from),
            Way::S3Import { .. } => preflight::Way::Import,
            Way::Register { .. } | Way::Await { .. } => preflight::Way::Nothing,
            Way::Upload { .. } | Way::Delta { .. } | Way::Resume { .. } => preflight::Way::Direct,
        }),
        Action::Change { .. } => Some(preflight::Way::Nothing),
        Action::Nothing { .. } | Action::Refused { .. } | Action::Unreachable { .. } => None,
    }
}

fn findings(found: &[&Finding]) -> String {
    let mut text = String::new();
    for finding in found {
        let _ = writeln!(text, "  {:16} {:20} {}", finding.region, finding.check, finding.seen);
        if !finding.next.is_empty() {
            let _ = writeln!(text, "  {:16} {:20} next: {}", "", "", finding.next);
        }
    }
    text
}

/// A plan that can't be carried out.
pub(super) fn refused(error: PlanError) -> Failure {
    Failure::of("plan", &error).hint("`kiln plan` shows all of it")
}

/// The regions of a publication, and what is in them.
pub(super) async fn look(cloud: &Cloud, publication: &Publication) -> (BTreeMap<String, Region>, Observed) {
    let one = async |name: &String| -> Result<_, AwsError> {
        let target = &publication.targets[name];
        let region = cloud.target(target).await?;
        let seen = observe::region(&region, &publication.system, target).await;
        Ok((region, seen))
    };
    let names: Vec<&String> = publication.targets.keys().collect();
    let answers = all(names.iter().map(|name| one(name))).await;
    let (mut regions, mut observed) = (BTreeMap::new(), Observed::new());
    for (name, answer) in names.into_iter().zip(answers) {
        match answer {
            Ok((region, seen)) => {
                regions.insert(name.clone(), region);
                observed.insert(name.clone(), seen.map_err(|e| told(&e)));
            }
            Err(error) => drop(observed.insert(name.clone(), Err(told(&error)))),
        }
    }
    (regions, observed)
}

fn told(error: &AwsError) -> String {
    match error.hint() {
        Some(hint) => format!("{error}\n  next: {hint}"),
        None => error.to_string(),
    }
}

/// Prints what came of a publication.
fn print(carried: &Carried<'_>, folder: &Path, took: Duration, cx: &Context) -> Result<(), Failure> {
    let record = folder.join(RECORD);
    if cx.json {
        let value = json!({ "event": "done", "record": record, "publication": carried.record() });
        return super::output(format!("{value}\n").as_bytes());
    }
    cx.progress.clear();
    cx.print(&(), || {
        let mut text = String::new();
        for (name, result) in carried.outcome {
            let _ = match result {
                Ok(done) => {
                    let sent =
                        if done.sent > 0 { format!(", {} sent", Bytes(done.sent)) } else { String::new() };
                    let changes = match done.changes.len() {
                        0 => String::new(),
                        1 => ", 1 setting changed".to_owned(),
                        count => format!(", {count} settings changed"),
                    };
                    let snapshot = done.ami.snapshots.first().map(String::as_str).unwrap_or_default();
                    writeln!(text, "{name:16} {}  {snapshot}  {}{sent}{changes}", done.ami.id, done.way)
                }
                Err(error) => writeln!(text, "{name:16} FAILED: {error}"),
            };
        }
        let _ = writeln!(text, "{}  {:.1} s", record.display(), took.as_secs_f64());
        text
    })
}

/// What is left to do when the user has stopped it. The record of an earlier publication stays as it is.
fn interrupted(outcome: &Outcome) -> Result<(), Failure> {
    let failed = |result: &Result<_, DeliverError>| result.as_ref().is_err_and(DeliverError::is_interrupted);
    if !outcome.values().any(failed) {
        return Ok(());
    }
    let left: Vec<&str> = outcome.iter().filter(|(_, r)| r.is_err()).map(|(name, _)| name.as_str()).collect();
    let message = format!("interrupted; not published yet: {}", left.join(", "));
    let hint = "the same command goes on where this one stopped";
    Err(Failure::new("interrupted", message).hint(hint).status(Status::Interrupted))
}

/// The failure of the publication, when a required region has failed.
fn verdict(publication: &Publication, outcome: Outcome) -> Result<(), Failure> {
    let mut failed = Vec::new();
    let released = outcome.values().flatten().any(|delivered| !delivered.changes.is_empty());
    for (name, result) in outcome {
        let Err(error) = result else { continue };
        if publication.targets.get(&name).is_none_or(|target| target.required) {
            failed.push((name, error));
        }
    }
    let count = failed.len();
    let Some((name, error)) = failed.into_iter().next() else { return Ok(()) };
    let first = Failure::from(error);
    let more = if count > 1 { format!(" (and {} more regions failed)", count - 1) } else { String::new() };
    let hint = first.hint.unwrap_or_else(|| "the same command goes on where this one stopped".to_owned());
    // When phase two fails, some of it may have happened.
    let nothing = if released { "" } else { "; nothing was released" };
    let message = format!("{name}: {}{more}{nothing}", first.message);
    Err(Failure::new("publish", message).hint(hint).status(Status::Failed))
}
