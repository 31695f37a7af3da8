//! `kiln generation add DISK PROFILE`: a further generation on a disk of the store layout that lies in a file.

use std::path::PathBuf;

use clap::Subcommand;
use kiln_guest::switch::Outcome;
use serde_json::json;

use super::Context;
use super::report::Failure;
use super::session::ProfileArgs;

/// Arguments of `kiln generation`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

/// What is done.
#[derive(Debug, Subcommand)]
enum What {
    /// Add what a profile bakes to a disk, as the generation that it boots next
    Add(AddArgs),
}

/// Arguments of `kiln generation add`.
#[derive(Debug, clap::Args)]
struct AddArgs {
    /// The disk: a raw file that no machine is using
    disk: PathBuf,
    #[command(flatten)]
    profile: ProfileArgs,
}

/// Adds the generation, and prints what became of it.
///
/// # Errors
/// Those of baking; a disk that the generation doesn't fit. The disk is then as it was.
pub fn run(args: &Args, cx: &Context) -> Result<(), Failure> {
    let What::Add(args) = &args.what;
    let request = args.profile.request(cx);
    let switched = args.profile.in_session(cx, |session| {
        let locked = session.locked(session.evaluate(&request)?)?;
        Ok(session.add_generation(&locked, &args.disk)?)
    })?;
    let outcome = match switched.outcome {
        Outcome::Added => "added",
        Outcome::There => "there",
        Outcome::TriedAgain => "tried-again",
    };
    let value = json!({
        "generation": switched.generation, "title": switched.title, "outcome": outcome, "removed": switched.removed,
    });
    cx.print(&value, || {
        let how = match switched.outcome {
            Outcome::Added => "boots next",
            Outcome::There => "was there already",
            Outcome::TriedAgain => "was there already; it is tried again",
        };
        let mut text = format!("generation {}, {}: {how}\n", switched.generation, switched.title);
        for number in &switched.removed {
            text.push_str(&format!("removed generation {number}\n"));
        }
        text
    })
}
