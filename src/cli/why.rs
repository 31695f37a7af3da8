//! `kiln why PROFILE`: what the next build would do, and which input makes it so.

use std::fmt::Write as _;

use super::Context;
use super::report::Failure;
use super::session::ProfileArgs;
use crate::bake::Why;
use crate::profile::FieldPath;
use crate::store::Change;

/// Arguments of `kiln why`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    profile: ProfileArgs,
}

/// Prints a line for each step, and one for each input that changed since the last build.
///
/// # Errors
/// When the profile or its lock is wrong, or there is no lock.
pub fn run(args: &Args, cx: &Context) -> Result<(), Failure> {
    let request = args.profile.request(cx);
    let why = args.profile.in_session(cx, |session| {
        let locked = session.locked_already(session.evaluate(&request)?)?;
        Ok(session.why(&locked)?)
    })?;
    cx.print(&why, || describe(&why))
}

/// Most lines that one step takes.
const MOST: usize = 20;
/// Most characters of a value.
const WIDTH: usize = 60;

fn describe(why: &Why) -> String {
    let mut text = String::new();
    for step in &why.steps {
        let state = match step.cached {
            Some(true) => "cached",
            Some(false) => "to do",
            None => "to do, after the step before it",
        };
        let _ = writeln!(text, "{:>10}  {state}", step.step);
        let lines = lines(&step.changed);
        for line in lines.iter().take(MOST) {
            let _ = writeln!(text, "{:>10}  {line}", "");
        }
        if let Some(more @ 1..) = lines.len().checked_sub(MOST) {
            let _ = writeln!(text, "{:>10}  and {more} more: `--json` lists them all", "");
        }
    }
    if !why.built_before {
        text += "it was not built before with this store, so there is nothing to compare with\n";
    }
    text
}

/// A line for each change; an entry of the profile that is new or gone as a whole takes one.
fn lines(changes: &[Change]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut whole: Option<(String, usize)> = None;
    for change in changes {
        let told = match (&change.old, &change.new) {
            (None, Some(_)) => entry(&change.name).map(|entry| format!("{entry}: new")),
            (Some(_), None) => entry(&change.name).map(|entry| format!("{entry}: gone")),
            _ => None,
        };
        match (told, &mut whole) {
            (Some(told), Some((line, count))) if *line == told => {
                *count += 1;
                if let Some(last) = lines.last_mut() {
                    *last = told;
                }
            }
            (told, whole) => {
                lines.push(line(change));
                *whole = told.map(|told| (told, 1));
            }
        }
    }
    lines
}

/// The entry of a set that a field of the profile belongs to: `profile users.ann` for `profile users.ann.uid`.
fn entry(name: &str) -> Option<String> {
    let path: FieldPath = name.strip_prefix("profile ")?.parse().ok()?;
    let names = path.0.get(..2).filter(|_| path.0.len() > 2)?;
    Some(format!("profile {}", FieldPath(names.to_vec())))
}

fn line(change: &Change) -> String {
    match (&change.old, &change.new) {
        (Some(old), Some(new)) => {
            let (old, new) = (short(old), short(new));
            // Long texts may begin alike.
            if old == new {
                format!("{}: changed", change.name)
            } else {
                format!("{}: {old} → {new}", change.name)
            }
        }
        (None, Some(new)) => format!("{}: new, {}", change.name, short(new)),
        (Some(old), None) => format!("{}: gone, was {}", change.name, short(old)),
        (None, None) => change.name.clone(),
    }
}

/// A value on one line: digests cut to what tells them apart, long texts to their beginning.
fn short(value: &str) -> String {
    let is_digest = |word: &str| word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit());
    let words: Vec<&str> = value.split(' ').map(|w| if is_digest(w) { &w[..12] } else { w }).collect();
    let text = words.join(" ");
    match text.char_indices().nth(WIDTH) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_told_and_shortly() {
        let change = |name: &str, old: Option<&str>, new: Option<&str>| Change {
            name: name.to_owned(),
            old: old.map(str::to_owned),
            new: new.map(str::to_owned),
        };
        let digests = ["ab".repeat(32), "cd".repeat(32)];
        let long = ["x".repeat(100), format!("{}y", "x".repeat(99))];
        let changes = [
            change("package nginx", Some(&format!("1 amd64 {}", digests[0])), Some("2 amd64")),
            change("profile files.\"/etc/motd\".text", Some("\"a\""), Some("\"b\"")),
            change("profile files.\"/etc/motd\".user", Some(&long[0]), Some(&long[1])),
            change("profile users.ann.gecos", None, Some("\"\"")),
            change("profile users.ann.uid", None, Some("1000")),
            change("profile users.bob.uid", Some("1001"), None),
            change("profile version", None, Some("\"1\"")),
        ];
        assert_eq!(
            lines(&changes),
            [
                "package nginx: 1 amd64 abababababab → 2 amd64",
                "profile files.\"/etc/motd\".text: \"a\" → \"b\"",
                "profile files.\"/etc/motd\".user: changed",
                "profile users.ann: new",
                "profile users.bob.uid: gone, was 1001",
                "profile version: new, \"1\"",
            ]
        );
        let steps = vec![crate::bake::StepState {
            step: "packages".to_owned(),
            cached: Some(false),
            changed: (0..30).map(|n| change(&format!("package p{n}"), None, Some("1"))).collect(),
        }];
        let text = describe(&Why { built_before: true, steps });
        assert_eq!(text.lines().count(), 1 + MOST + 1);
        assert!(text.ends_with("and 10 more: `--json` lists them all\n"), "{text}");
    }
}
