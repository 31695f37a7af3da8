//! `kiln why PROFILE`: what the next build would do, and which input makes it so.

use std::fmt::Write as _;

use super::Context;
use super::report::Failure;
use super::session::ProfileArgs;
use crate::bake::Why;

/// Arguments of `kiln why`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    profile: ProfileArgs,
}

/// Prints a line for each step, and one for each input that changed since the last build.
///
/// # Errors
/// When the profile or its lock is wrong.
pub fn run(args: &Args, cx: &Context) -> Result<(), Failure> {
    let request = args.profile.request(cx);
    let why = args.profile.in_session(cx, |session| {
        let locked = session.locked(session.evaluate(&request)?)?;
        Ok(session.why(&locked)?)
    })?;
    cx.print(&why, || describe(&why))
}

fn describe(why: &Why) -> String {
    let mut text = String::new();
    for step in &why.steps {
        let state = match step.cached {
            Some(true) => "cached",
            Some(false) => "to do",
            None => "to do, after the step before it",
        };
        let _ = writeln!(text, "{:>10}  {state}", step.step);
        for change in &step.changed {
            let was = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".to_owned());
            let _ =
                writeln!(text, "{:>10}  {}: {} → {}", "", change.name, was(&change.old), was(&change.new));
        }
    }
    if !why.built_before {
        text += "it was not built before with this store, so there is nothing to compare with\n";
    }
    text
}
