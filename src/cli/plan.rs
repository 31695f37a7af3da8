//! `kiln plan PROFILE`: what publishing would do, before anything is touched.

use serde_json::json;

use super::Context;
use super::aws::{AwsArgs, with_runtime};
use super::publish::{look, refused};
use super::report::Failure;
use super::session::ProfileArgs;
use crate::bake::{Publishable, passed};
use crate::publish::plan::{Plan, table};

/// Arguments of `kiln plan`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    profile: ProfileArgs,
    #[command(flatten)]
    aws: AwsArgs,
}

/// Shows what is made, what is changed and what is there already, with the bytes and the price; nothing is touched.
///
/// # Errors
/// When what stands in the way of a required region would stop the publication.
pub fn run(args: &Args, cx: &Context) -> Result<(), Failure> {
    let request = args.profile.request(cx);
    let (plan, untested) = with_runtime(|runtime| {
        args.profile.in_session(cx, |session| {
            let evaluated = session.evaluate(&request)?;
            let chosen = args.aws.chosen(&evaluated.system().publish.aws.names())?;
            let cloud = runtime.block_on(args.aws.connect(None))?;
            let locked = session.locked(evaluated)?;
            let tree = session.tree(&locked)?;
            let disk = session.disk(&locked, &tree)?;
            let verdict = session.verdict(&locked, &tree, &disk)?;
            let image = verdict
                .and_then(|tested| passed(disk.image.clone(), tested))
                .unwrap_or_else(|| Publishable::Untested(disk.image.clone()));
            let mut ready = session.ready(&locked, &image)?;
            // `kiln publish` tests first: what is not tested yet will be.
            let untested = !image.is_tested();
            ready.publication.targets.retain(|name, _| chosen.contains(name));
            let task = cx.progress.task("plan", "asking the regions", 0);
            let (_, observed) = runtime.block_on(look(&cloud, &ready.publication));
            drop(task);
            Ok((session.publish_plan(&ready, &observed), untested))
        })
    })?;
    cx.print(&json!({ "plan": plan, "to_test": untested }), || shown(&plan, untested))?;
    plan.check().map_err(refused)
}

fn shown(plan: &Plan, untested: bool) -> String {
    let mut text = table(plan);
    if untested {
        text += "\nThe image has not passed its tests yet: `kiln publish` makes them first.\n";
    }
    if plan.is_done() {
        text += "\nNothing to do.\n";
    }
    text
}
