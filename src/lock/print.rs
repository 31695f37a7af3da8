//! A lock as text: TOML, written by hand so that a package takes one line and equal locks give equal bytes.

use std::fmt::Write as _;

use crate::lock::goals::{Goals, SourceGoal};
use crate::lock::{Lock, VERSION};
use crate::package::{LockedPackage, LockedRelease};

const HEAD: &str = "\
# What `kiln lock` resolved the profile to. It is checked when read; change the profile and run `kiln lock` instead of
# editing it.
";

pub(super) fn print(lock: &Lock) -> String {
    let mut lock = lock.clone();
    lock.sort();
    let mut out = format!("{HEAD}version = {VERSION}\n");
    goals(&mut out, &lock.goals);
    for one in &lock.releases {
        release(&mut out, one);
    }
    for (name, set) in [("image", &lock.packages), ("tools", &lock.tools), ("vm-tools", &lock.vm_tools)] {
        packages(&mut out, name, set);
    }
    out
}

/// A TOML basic string: fit for values and keys alike, and always on one line.
fn text(value: &str) -> String {
    let mut out = String::with_capacity(value.len() + 2);
    out.push('"');
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\0'..='\x1f' | '\x7f' => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A TOML key.
fn key(name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    if bare { name.to_owned() } else { text(name) }
}

/// A TOML array of strings on one line.
fn list<'a>(values: impl IntoIterator<Item = &'a String>) -> String {
    format!("[{}]", values.into_iter().map(|v| text(v)).collect::<Vec<_>>().join(", "))
}

/// A TOML inline table of those fields that have a value.
fn inline(fields: &[(&str, Option<String>)]) -> String {
    let fields: Vec<String> =
        fields.iter().filter_map(|(name, value)| Some(format!("{name} = {}", value.as_ref()?))).collect();
    if fields.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", fields.join(", ")) }
}

fn line(out: &mut String, name: &str, value: &str) {
    // Writing to a String can't fail.
    let _ = writeln!(out, "{name} = {value}");
}

fn head(out: &mut String, name: &str) {
    let _ = writeln!(out, "\n[{name}]");
}

fn goals(out: &mut String, goals: &Goals) {
    head(out, "goals");
    line(out, "name", &text(&goals.name));
    line(out, "arch", &text(goals.arch.debian()));
    line(out, "recommends", if goals.recommends { "true" } else { "false" });
    if !goals.local_debs.is_empty() {
        line(out, "local-debs", &list(&goals.local_debs));
    }
    head(out, "goals.packages");
    for (name, package) in &goals.packages {
        let version = package.version.as_deref().map(text);
        line(
            out,
            &key(name),
            &inline(&[("version", version), ("suite", package.suite.as_deref().map(text))]),
        );
    }
    if !goals.pins.is_empty() {
        head(out, "goals.pins");
    }
    for (name, pin) in &goals.pins {
        let fields = [
            ("version", pin.version.as_deref().map(text)),
            ("suite", pin.suite.as_deref().map(text)),
            ("priority", Some(pin.priority.to_string())),
        ];
        line(out, &key(name), &inline(&fields));
    }
    if !goals.fetch.is_empty() {
        head(out, "goals.fetch");
    }
    for (path, digest) in &goals.fetch {
        line(out, &key(path), &text(&digest.to_string()));
    }
    for (name, goal) in &goals.sources {
        head(out, &format!("goals.sources.{}", key(name)));
        source(out, goal);
    }
    head(out, "goals.tools");
    source(out, &goals.tools);
    line(out, "packages", &list(&goals.tool_packages));
    line(out, "vm-packages", &list(&goals.vm_tool_packages));
}

fn source(out: &mut String, goal: &SourceGoal) {
    line(out, "archive", &text(&goal.archive));
    line(out, "suite", &text(&goal.suite));
    line(out, "components", &list(&goal.components));
    line(out, "pockets", &list(&goal.pockets));
    if !goal.keys.is_empty() {
        let keys: Vec<String> = goal
            .keys
            .iter()
            .map(|(name, sha256)| format!("{} = {}", key(name), text(&sha256.to_string())))
            .collect();
        line(out, "keys", &format!("{{ {} }}", keys.join(", ")));
    }
}

fn release(out: &mut String, release: &LockedRelease) {
    out.push_str("\n[[release]]\n");
    line(out, "archive", &text(&release.archive));
    line(out, "suite", &text(&release.suite));
    if !release.version.is_empty() {
        line(out, "version", &text(&release.version));
    }
    line(out, "date", &release.date.to_string());
    if let Some(until) = release.valid_until {
        line(out, "valid-until", &until.to_string());
    }
    line(out, "sha256", &text(&release.sha256.to_string()));
    line(out, "signers", &list(&release.signers));
}

fn packages(out: &mut String, name: &str, packages: &[LockedPackage]) {
    head(out, name);
    out.push_str("packages = [\n");
    for package in packages {
        let fields = [
            ("name", Some(text(&package.name))),
            ("version", Some(text(&package.version))),
            ("arch", Some(text(&package.arch))),
            ("manual", package.manual.then(|| "true".to_owned())),
            ("size", Some(package.size.to_string())),
            ("sha256", Some(text(&package.sha256.to_string()))),
            ("archive", Some(text(&package.archive))),
            ("path", Some(text(&package.path))),
        ];
        let _ = writeln!(out, "  {},", inline(&fields));
    }
    out.push_str("]\n");
}
