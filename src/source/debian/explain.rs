//! What is told where no set of packages is right: the chain of reasons, as a person would give it.

use std::fmt;

use super::index::{EntryId, LOCAL, Universe};
use super::policy::Policy;
use super::relation::{Relation, show};
use crate::system::Package;

/// How many names or versions a message lists at most.
const LISTED: usize = 4;

/// No set of packages is right; the reasons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsolvable {
    /// One for each thing that stands in the way.
    pub reasons: Vec<Reason>,
}

/// A chain of reasons: each line is a consequence of the one before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reason {
    /// From what the profile asks for to what is missing or excluded.
    pub lines: Vec<String>,
    /// Where two things exclude each other, the chain that leads to the other one.
    pub against: Vec<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl fmt::Display for Unsolvable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the packages that the profile asks for can't be installed:")?;
        for reason in &self.reasons {
            write_chain(f, &reason.lines)?;
            if !reason.against.is_empty() {
                f.write_str("\n  and at the same time")?;
                write_chain(f, &reason.against)?;
            }
            if let Some(hint) = &reason.hint {
                write!(f, "\n  hint: {hint}")?;
            }
        }
        Ok(())
    }
}

fn write_chain(f: &mut fmt::Formatter<'_>, lines: &[String]) -> fmt::Result {
    for (depth, line) in lines.iter().enumerate() {
        write!(f, "\n  {}{line}", "  ".repeat(depth))?;
    }
    Ok(())
}

impl std::error::Error for Unsolvable {}

/// The profile asks for a package or version that can't be had.
#[must_use]
pub fn unknown(universe: &Universe, policy: &Policy, name: &str, wanted: &Package) -> Reason {
    let asked = match (&wanted.version, &wanted.suite) {
        (Some(version), Some(suite)) => format!("`{name}` is asked for in version {version} from {suite}"),
        (Some(version), None) => format!("`{name}` is asked for in version {version}"),
        (None, Some(suite)) => format!("`{name}` is asked for from {suite}"),
        (None, None) => format!("`{name}` is asked for"),
    };
    let relation = Relation { name, qualifier: None, constraint: None };
    let versions = universe.find(name).map_or(&[][..], |id| universe.versions(id));
    let providers = providers(universe, policy, &relation);
    let (line, hint) = if !versions.is_empty() {
        let there = list(versions.iter().map(|id| with_origin(universe, *id)));
        match wanted.version.is_none() && wanted.suite.is_none() {
            true => (format!("pins forbid every version: {there}"), None),
            false => (format!("there is only {there}"), None),
        }
    } else if !providers.is_empty() {
        let hint = format!("ask for one that provides it: {}", list(providers.into_iter()));
        ("it is a virtual package, which several packages provide".to_owned(), Some(hint))
    } else {
        (NOWHERE.to_owned(), close_names(universe, name))
    };
    Reason { lines: vec![asked, line], hint, ..Reason::default() }
}

const NOWHERE: &str = "no package of that name is in the configured archives";

/// Why no candidate satisfies any of `group`, as the end of a sentence, and what to do.
#[must_use]
pub fn missing(universe: &Universe, policy: &Policy, group: &[Relation]) -> (String, Option<String>) {
    let mut hint = None;
    let mut causes = Vec::new();
    for relation in group {
        let (cause, advice) = missing_one(universe, policy, relation);
        causes.push(if group.len() > 1 { format!("{}: {cause}", relation.name) } else { cause });
        hint = hint.or(advice);
    }
    (causes.join("; "), hint)
}

fn missing_one(universe: &Universe, policy: &Policy, relation: &Relation) -> (String, Option<String>) {
    if let Some(entry) = universe.satisfying(relation).next() {
        let (name, from) = (universe.name_of(entry), with_origin(universe, entry));
        let suite = universe.origins(entry).next().map_or("", |origin| &origin.suite);
        let chosen = policy.candidate(universe.entry(entry).name);
        return match chosen {
            Some(_) if suite == LOCAL => (format!("only {from} would do"), None),
            chosen => {
                let instead = chosen.map(|id| format!(", but {} would be chosen", with_origin(universe, id)));
                let line = format!(
                    "only {from} would do{}",
                    instead.unwrap_or_else(|| ", which pins forbid".into())
                );
                (line, chosen.map(|_| format!("set packages.{}.suite = \"{suite}\"", field(name))))
            }
        };
    }
    let versions = universe.find(relation.name).map_or(&[][..], |id| universe.versions(id));
    let any = Relation { constraint: None, ..*relation };
    let providers = providers(universe, policy, &any);
    if !versions.is_empty() {
        (format!("there is only {}", list(versions.iter().map(|id| with_origin(universe, *id)))), None)
    } else if !providers.is_empty() {
        (format!("it is only provided, without a fitting version, by {}", list(providers.into_iter())), None)
    } else {
        (NOWHERE.to_owned(), close_names(universe, relation.name))
    }
}

/// A record's field name as Nickel writes it: quoted when it is no identifier.
fn field(name: &str) -> String {
    match name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') {
        true => name.to_owned(),
        false => format!("\"{name}\""),
    }
}

fn providers<'a>(universe: &Universe<'a>, policy: &Policy, relation: &Relation) -> Vec<&'a str> {
    // The relation is looked up by its own text, which lives shorter than the universe's.
    let Some(id) = universe.find(relation.name) else { return Vec::new() };
    let own = Relation { name: universe.name(id), qualifier: None, constraint: None };
    let mut names: Vec<_> = universe
        .satisfying(&own)
        .filter(|entry| policy.is_candidate(universe, *entry))
        .map(|entry| universe.name_of(entry))
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// `name version (suite)`.
#[must_use]
pub fn with_origin(universe: &Universe, entry: EntryId) -> String {
    let suites: Vec<_> = universe.origins(entry).map(|origin| origin.suite.as_str()).collect();
    format!("{} {} ({})", universe.name_of(entry), universe.entry(entry).version, suites.join(", "))
}

/// `name version`.
#[must_use]
pub fn with_version(universe: &Universe, entry: EntryId) -> String {
    format!("{} {}", universe.name_of(entry), universe.entry(entry).version)
}

/// A need as a sentence: `app 2.0 depends on libx (>= 3) | liby`.
#[must_use]
pub fn sentence(universe: &Universe, entry: EntryId, verb: &str, group: &[Relation]) -> String {
    format!("{} {verb} {}", with_version(universe, entry), show(group))
}

fn list<T: fmt::Display>(items: impl ExactSizeIterator<Item = T>) -> String {
    let more = items.len().saturating_sub(LISTED);
    let mut text = items.take(LISTED).map(|item| item.to_string()).collect::<Vec<_>>().join(", ");
    if more > 0 {
        text += &format!(" and {more} more");
    }
    text
}

/// Names that `name` may have been meant to be, nearest first.
fn close_names(universe: &Universe, name: &str) -> Option<String> {
    let limit = (name.len() / 4).clamp(1, 3);
    let mut close: Vec<_> = universe
        .names()
        .filter(|id| !universe.versions(*id).is_empty())
        .map(|id| universe.name(id))
        .filter(|other| other.len().abs_diff(name.len()) <= limit)
        .map(|other| (distance(name, other), other))
        .filter(|(distance, _)| *distance <= limit)
        .collect();
    close.sort_unstable();
    (!close.is_empty()).then(|| format!("did you mean {}?", list(close.into_iter().map(|(_, other)| other))))
}

/// How many letters are inserted, left out, replaced or swapped with their neighbour (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut row = vec![i + 1];
        for j in 0..b.len() {
            let mut best = (last[j] + usize::from(a[i] != b[j])).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, expected) in
            [("", "ab", 2), ("nginx", "ngnix", 1), ("nginx", "nginx", 0), ("curl", "url", 1)]
        {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }
}
