//! Which version of each package is the candidate: apt's policy of priorities and pins (apt_preferences(5)).

use super::index::{EntryId, IndexFile, NameId, Universe};
use crate::system::{Pin, Set};

/// The candidates of all packages of a universe.
#[derive(Debug, Clone)]
pub struct Policy {
    candidates: Vec<Option<EntryId>>,
}

impl Policy {
    /// Chooses the candidates: of each package the version of the highest priority, and of those the newest.
    #[must_use]
    pub fn new(universe: &Universe, pins: &Set<Pin>) -> Policy {
        let pins = Pins::new(pins);
        let candidates = universe.names().map(|name| best(universe, &pins, name)).collect();
        Policy { candidates }
    }

    /// The version of a package that would be installed.
    #[must_use]
    pub fn candidate(&self, name: NameId) -> Option<EntryId> {
        self.candidates[name.index()]
    }

    /// Whether an entry is its package's candidate.
    #[must_use]
    pub fn is_candidate(&self, universe: &Universe, entry: EntryId) -> bool {
        self.candidate(universe.entry(entry).name) == Some(entry)
    }

    /// Makes another version the candidate, or none.
    pub fn set(&mut self, name: NameId, entry: Option<EntryId>) {
        self.candidates[name.index()] = entry;
    }
}

fn best(universe: &Universe, pins: &Pins, name: NameId) -> Option<EntryId> {
    let mut best = None;
    for &entry in universe.versions(name) {
        let priority = pins.priority(universe, entry);
        // Strictly greater: versions come newest first.
        if priority > best.map_or(0, |(highest, _)| highest) {
            best = Some((priority, entry));
        }
    }
    best.map(|(_, entry)| entry)
}

/// A profile's pins in the order in which they are asked: whole names, then globs, longer ones first.
struct Pins<'p> {
    ordered: Vec<(&'p str, &'p Pin)>,
}

impl<'p> Pins<'p> {
    fn new(pins: &'p Set<Pin>) -> Pins<'p> {
        let mut ordered: Vec<_> = pins.iter().map(|(name, pin)| (name.as_str(), pin)).collect();
        ordered.sort_by_key(|(name, _)| (is_glob(name), std::cmp::Reverse(name.len()), *name));
        Pins { ordered }
    }

    /// The priority of a version. A pin of `*` gives a priority to a whole suite, as apt's general form does; the others
    /// give one to a version wherever it is.
    fn priority(&self, universe: &Universe, entry: EntryId) -> i32 {
        let (name, version) = (universe.name_of(entry), universe.entry(entry).version);
        let specific = self.ordered.iter().find(|(pattern, pin)| {
            *pattern != "*"
                && glob(pattern, name)
                && pin.version.as_deref().is_none_or(|pattern| glob(pattern, version))
                && pin.suite.as_deref().is_none_or(|suite| universe.origins(entry).any(|o| o.is_of(suite)))
        });
        match specific {
            Some((_, pin)) => pin.priority,
            None => universe.origins(entry).map(|o| self.general(o, version)).max().unwrap_or(0),
        }
    }

    fn general(&self, origin: &IndexFile, version: &str) -> i32 {
        let matches = |pin: &Pin| {
            pin.version.as_deref().is_none_or(|pattern| glob(pattern, version))
                && pin.suite.as_deref().is_none_or(|suite| origin.is_of(suite))
        };
        let pin = self.ordered.iter().find(|(pattern, pin)| *pattern == "*" && matches(pin));
        pin.map_or_else(|| origin.priority(), |(_, pin)| pin.priority)
    }
}

fn is_glob(pattern: &str) -> bool {
    pattern.contains(['*', '?'])
}

/// Whether `text` matches `pattern`, in which `*` stands for any text and `?` for one character.
#[must_use]
pub fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where to go on when what follows the last `*` doesn't fit: after the star, one byte later in the text.
    let mut retry = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, t + 1));
                p += 1;
            }
            Some(&c) if c == b'?' || c == text[t] => (p, t) = (p + 1, t + 1),
            _ => match retry {
                Some((star, next)) => {
                    (p, t) = (star, next);
                    retry = Some((star, next + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}
