//! `kiln layout PROFILE`: the partition table that the disk gets.

use super::Context;
use super::report::Failure;
use super::session::ProfileArgs;

/// Arguments of `kiln layout`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    profile: ProfileArgs,
}

/// Prints the partitions: offsets, GUIDs, sizes, use.
///
/// # Errors
/// Those of the phases up to the tree, from which sizes are computed.
pub fn run(args: &Args, cx: &Context) -> Result<(), Failure> {
    let request = args.profile.request(cx);
    args.profile.in_session(cx, |session| {
        let locked = session.locked_already(session.evaluate(&request)?)?;
        let layout = session.layout(&locked, &session.tree(&locked)?)?;
        cx.print(&layout, || layout.to_string())
    })
}
