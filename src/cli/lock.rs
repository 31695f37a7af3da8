//! `kiln lock PROFILE`: resolves the profile against its archives and writes `NAME.lock` beside it.

use std::ffi::OsString;
use std::path::Path;

use serde_json::json;

use super::Context;
use super::report::Failure;
use super::run::is_profile;
use super::session::ProfileArgs;
use crate::bake::{LockUpdate, Update};
use crate::lock::PackageDiff;

/// Arguments of `kiln lock`.
#[derive(Debug, clap::Args)]
#[command(override_usage = "kiln lock [OPTIONS] <PROFILE> [--update [PACKAGE]...]")]
pub struct Args {
    #[command(flatten)]
    profile: ProfileArgs,
    /// Take what the archives have now: of these packages and what they need, or of all when none is named.
    /// Without it only what the profile newly asks for is resolved; the rest stays as it is locked.
    #[arg(long, value_name = "PACKAGE", num_args = 0..)]
    update: Option<Vec<String>>,
}

/// `--update` takes every word behind it, also a profile that stands there: the words with that in front. `None` when none
/// does.
#[must_use]
pub fn profile_first(args: &[OsString]) -> Option<Vec<OsString>> {
    let place = |word: &str| args.iter().position(|arg| arg == word);
    let (verb, update) = (place("lock")?, place("--update")?);
    let words = args[update + 1..].iter().take_while(|arg| !arg.as_encoded_bytes().starts_with(b"-")).count();
    let last = update + words;
    if verb > update || words == 0 || !is_profile(Path::new(&args[last])) {
        return None;
    }
    let mut args = args.to_vec();
    let profile = args.remove(last);
    args.insert(verb + 1, profile);
    Some(args)
}

/// Locks, and prints what changed.
///
/// # Errors
/// When an archive can't be had or trusted, or the packages can't be resolved.
pub fn run(args: &Args, cx: &Context) -> Result<(), Failure> {
    let update = match &args.update {
        None => Update::Needed,
        Some(names) if names.is_empty() => Update::All,
        Some(names) => Update::Packages(names.clone()),
    };
    let request = args.profile.request(cx);
    let update = args
        .profile
        .in_session(cx, |session| Ok(session.update_lock(session.evaluate(&request)?, &update)?))?;
    cx.print(&machine(&update), || describe(&update))
}

fn describe(update: &LockUpdate) -> String {
    let path = update.path.display();
    let count = update.locked.lock.packages.len();
    if update.first {
        return format!("{path}: {count} packages\n");
    }
    if update.changes.is_empty() {
        return format!("{path}: {count} packages, nothing changed\n");
    }
    format!("{}{path}: {count} packages\n", update.changes)
}

fn machine(update: &LockUpdate) -> serde_json::Value {
    let set = |diff: &PackageDiff| {
        let changed = diff.changed.iter().map(|c| json!({ "name": c.name, "old": c.old, "new": c.new }));
        let named = |list: &[(String, String)]| -> Vec<_> {
            list.iter().map(|(name, version)| json!({ "name": name, "version": version })).collect()
        };
        json!({
            "added": named(&diff.added), "removed": named(&diff.removed), "changed": changed.collect::<Vec<_>>(),
        })
    };
    json!({
        "lock": update.path,
        "first": update.first,
        "packages": update.locked.lock.packages.len(),
        "changes": {
            "packages": set(&update.changes.packages),
            "tools": set(&update.changes.tools),
            "vm_tools": set(&update.changes.vm_tools),
        },
    })
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn a_profile_behind_update_comes_first() {
        let first = |line: &str| {
            let args: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            profile_first(&args).map(|args| args.join(OsStr::new(" ")).into_string().unwrap())
        };
        assert_eq!(first("kiln lock --update p.ncl").as_deref(), Some("kiln lock p.ncl --update"));
        let moved = "kiln -q lock p.toml --json --update nginx --set a=b";
        assert_eq!(first("kiln -q lock --json --update nginx p.toml --set a=b").as_deref(), Some(moved));
        for line in
            ["kiln lock --update nginx", "kiln lock --update", "kiln lock p.ncl", "kiln build --update p.ncl"]
        {
            assert_eq!(first(line), None, "{line}");
        }
    }
}
