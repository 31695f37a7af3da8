//! What the verbs that talk to AWS share: how they get there, how they tell what goes on, how they fail.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::Context;
use super::progress::Task;
use super::report::{Failure, Status};
use crate::aws::ask::Note;
use crate::aws::cloud::{Cloud, Options};
use crate::aws::credentials::Secret;
use crate::aws::deliver::{DeliverError, Event};
use crate::aws::error::{AwsError, Kind};
use crate::units::Bytes;

/// How to get to AWS.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "AWS")]
pub struct AwsArgs {
    /// The profile of the AWS CLI's configuration [default: AWS_PROFILE, else `default`]
    #[arg(long, value_name = "NAME")]
    aws_profile: Option<String>,
    /// The address of every service, for a local AWS [default: AWS_ENDPOINT_URL]
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// A code of the MFA device, where nobody can be asked for one [default: KILN_MFA_CODE, KILN_MFA_COMMAND]
    #[arg(long, value_name = "CODE")]
    mfa_code: Option<String>,
    /// Only these regions
    #[arg(long = "region", value_name = "REGION,…", value_delimiter = ',')]
    pub regions: Vec<String>,
}

impl AwsArgs {
    /// Opens a session; work that takes about `least` is to fit into it.
    ///
    /// # Errors
    /// When there are no credentials that work.
    pub async fn connect(&self, least: Option<Duration>) -> Result<Cloud, Failure> {
        let options = Options {
            profile: self.aws_profile.clone(),
            endpoint: self.endpoint.clone(),
            mfa_code: self.mfa_code.clone().map(Secret::new),
            region: self.regions.first().cloned(),
            least,
        };
        Ok(Cloud::connect(options).await?)
    }

    /// The regions among `known` that were asked for: all when none was named.
    ///
    /// # Errors
    /// When one that was named is none of them.
    pub fn chosen(&self, known: &BTreeSet<String>) -> Result<BTreeSet<String>, Failure> {
        if self.regions.is_empty() {
            return Ok(known.clone());
        }
        match self.regions.iter().find(|name| !known.contains(*name)) {
            None => Ok(self.regions.iter().cloned().collect()),
            Some(name) => {
                let known: Vec<&str> = known.iter().map(String::as_str).collect();
                let message = format!("{name} is no region of this profile");
                Err(Failure::usage("region", message).hint(format!("it names {}", known.join(", "))))
            }
        }
    }
}

/// The runtime that calls run on, and on it `work`.
///
/// # Errors
/// Those of `work`, or when the host has no threads left.
pub fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    with_runtime(|runtime| runtime.block_on(work))
}

/// Does `work` with a runtime that calls run on, for work that is only partly calls.
///
/// # Errors
/// Those of `work`, or when the host has no threads left.
pub fn with_runtime<T>(work: impl FnOnce(&Runtime) -> Result<T, Failure>) -> Result<T, Failure> {
    let runtime = crate::aws::runtime().map_err(|e| Failure::new("runtime", e.to_string()))?;
    let result = work(&runtime);
    // What is still under way after Ctrl-C is not waited for.
    runtime.shutdown_background();
    result
}

impl From<AwsError> for Failure {
    fn from(error: AwsError) -> Failure {
        let failure = Failure::of("aws", &error);
        let failure = match error.kind {
            Kind::Interrupted => failure.status(Status::Interrupted),
            _ => failure,
        };
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

impl From<DeliverError> for Failure {
    fn from(error: DeliverError) -> Failure {
        match error.aws() {
            Some(aws) => aws.clone().into(),
            None => Failure::of("publish", &error),
        }
    }
}

/// Between two plain lines of an upload's progress.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Between two events of an upload's progress.
const EVENT_EVERY: Duration = Duration::from_secs(1);

/// Tells what goes on in regions: bars on a terminal, lines elsewhere, events as JSON when that was asked for.
pub struct Teller<'a> {
    cx: &'a Context,
    uploads: Mutex<BTreeMap<String, Uploading>>,
}

struct Uploading {
    task: Option<Task>,
    began: Instant,
    told: Option<Instant>,
    first: Option<u64>,
}

impl<'a> Teller<'a> {
    /// Nothing told yet.
    #[must_use]
    pub fn new(cx: &'a Context) -> Teller<'a> {
        Teller { cx, uploads: Mutex::default() }
    }

    /// Prints an event on a line of its own, when JSON was asked for.
    pub fn event(&self, event: &Value) {
        use std::io::Write;
        if self.cx.json {
            // A reader that went away is no reason to stop in the middle of a publication.
            let _ = writeln!(std::io::stdout().lock(), "{event}");
        }
    }

    /// Tells an event of a region.
    pub fn tell(&self, region: &str, event: &Event) {
        match event {
            Event::Progress(progress) => self.progress(region, progress),
            Event::Sending { bytes, .. } => {
                let task = self.cx.progress.task(region, "uploading", *bytes);
                let uploading =
                    Uploading { task: Some(task), began: Instant::now(), told: None, first: None };
                let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
                uploads.insert(region.to_owned(), uploading);
            }
            _ => {}
        }
        if let Some(text) = line(event) {
            self.cx.progress.say(region, &text);
        }
        if let Some(value) = machine(region, event) {
            self.event(&value);
        }
    }

    fn progress(&self, region: &str, progress: &crate::aws::snapshot::Progress) {
        let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let uploading = uploads.entry(region.to_owned()).or_insert_with(|| Uploading {
            task: None,
            began: now,
            told: None,
            first: None,
        });
        let first = *uploading.first.get_or_insert(progress.done.saturating_sub(1));
        let seconds = uploading.began.elapsed().as_secs_f64().max(0.001);
        #[allow(clippy::cast_precision_loss)] // shown with no digit behind the point
        let rate = progress.done.saturating_sub(first) as f64 / seconds;
        let text = format!("{} of {} blocks, {rate:.0} blocks/s", progress.done, progress.total);
        if let Some(task) = &uploading.task {
            task.at(progress.bytes, &text);
        }
        let finished = progress.done == progress.total;
        let every = if self.cx.json { EVENT_EVERY } else { LINE_EVERY };
        if finished || uploading.told.is_none_or(|told| told.elapsed() >= every) {
            uploading.told = Some(now);
            self.event(&json!({
                "event": "progress", "region": region, "blocks": progress.done, "of": progress.total,
                "bytes": progress.bytes, "blocks_per_second": rate.round(),
            }));
        }
        if finished {
            uploading.task = None;
        }
    }
}

/// An event as a line for people.
fn line(event: &Event) -> Option<String> {
    match event {
        Event::Doing(what) => Some(what.clone()),
        Event::Note(Note::Made(id)) => Some(format!("made {id}")),
        Event::Note(Note::Queued(what)) => Some(format!("waits for its turn: {what}")),
        Event::Note(Note::Changed(what)) => Some(what.clone()),
        Event::Sending { blocks, bytes, of, parent, why_all } => {
            let size = Bytes(*bytes);
            Some(match (parent, why_all) {
                (Some(parent), _) => {
                    format!("{blocks} of {of} blocks changed since {parent}: {size} to send")
                }
                (None, Some(why)) => format!("{blocks} of {of} blocks, {size} to send: {why}"),
                (None, None) => format!("{blocks} of {of} blocks, {size} to send"),
            })
        }
        Event::Note(Note::Waiting { .. }) | Event::Progress(_) | Event::Percent(_) => None,
    }
}

/// An event for machines; progress is told apart, less often.
fn machine(region: &str, event: &Event) -> Option<Value> {
    Some(match event {
        Event::Doing(what) => json!({ "event": "step", "region": region, "what": what }),
        Event::Note(Note::Made(id)) => json!({ "event": "made", "region": region, "id": id }),
        Event::Note(Note::Waiting { id, percent }) => {
            json!({ "event": "waiting", "region": region, "id": id, "percent": percent })
        }
        Event::Note(Note::Queued(what)) => json!({ "event": "queued", "region": region, "what": what }),
        Event::Note(Note::Changed(what)) => json!({ "event": "changed", "region": region, "what": what }),
        Event::Sending { blocks, bytes, of, parent, why_all } => json!({
            "event": "sending", "region": region, "blocks": blocks, "bytes": bytes, "of": of, "parent": parent,
            "why_all": why_all,
        }),
        Event::Percent(percent) => json!({ "event": "percent", "region": region, "percent": percent }),
        Event::Progress(_) => return None,
    })
}
