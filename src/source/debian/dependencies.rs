//! What a package version needs and what it can't be beside, read from its paragraph when first asked for.

use std::rc::Rc;

use super::index::{EntryId, Universe};
use super::relation::{self, Alternatives, Relation};

/// The kinds of relationship that need something (Debian Policy 7.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// `Pre-Depends`
    PreDepends,
    /// `Depends`
    Depends,
    /// `Recommends`
    Recommends,
}

/// The kinds of relationship that exclude something (Debian Policy 7.3 and 7.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Against {
    /// `Conflicts`
    Conflicts,
    /// `Breaks`
    Breaks,
}

/// The relationships of one package version.
#[derive(Debug, Default)]
pub struct Dependencies<'a> {
    /// What it needs, in the order Pre-Depends, Depends, Recommends, each as written.
    pub needs: Vec<(Need, Alternatives<'a>)>,
    /// What it can't be beside.
    pub against: Vec<(Against, Relation<'a>)>,
    /// Says which field can't be understood, if one can't: such a package is never installed.
    pub malformed: Option<String>,
}

impl Need {
    /// Whether a package is broken without it.
    #[must_use]
    pub fn is_critical(self) -> bool {
        self != Need::Recommends
    }

    /// As a verb: `depends on`, ….
    #[must_use]
    pub fn verb(self) -> &'static str {
        match self {
            Need::PreDepends => "pre-depends on",
            Need::Depends => "depends on",
            Need::Recommends => "recommends",
        }
    }
}

impl Against {
    /// As a verb.
    #[must_use]
    pub fn verb(self) -> &'static str {
        match self {
            Against::Conflicts => "conflicts with",
            Against::Breaks => "breaks",
        }
    }
}

impl<'a> Dependencies<'a> {
    fn read(universe: &Universe<'a>, entry: EntryId) -> Dependencies<'a> {
        let arch = universe.arch().debian();
        let mut found = Dependencies::default();
        let paragraph = universe.paragraph(entry);
        for (name, value) in paragraph.fields().flatten() {
            let need = match name {
                "Pre-Depends" => Ok(Need::PreDepends),
                "Depends" => Ok(Need::Depends),
                "Recommends" => Ok(Need::Recommends),
                "Conflicts" => Err(Against::Conflicts),
                "Breaks" => Err(Against::Breaks),
                _ => continue,
            };
            match (relation::parse(value, arch), need) {
                (Ok(groups), Ok(need)) => found.needs.extend(groups.into_iter().map(|g| (need, g))),
                (Ok(groups), Err(against)) => {
                    found.against.extend(groups.into_iter().flatten().map(|r| (against, r)));
                }
                (Err(error), _) => found.malformed = Some(format!("{name}: {error}")),
            }
        }
        // The order in the paragraph is the archive's affair.
        found.needs.sort_by_key(|(need, _)| *need);
        found
    }
}

/// The relationships read so far.
#[derive(Debug)]
pub struct Cache<'u, 'a> {
    /// The packages.
    pub universe: &'u Universe<'a>,
    read: std::cell::RefCell<std::collections::HashMap<EntryId, Rc<Dependencies<'a>>>>,
}

impl<'u, 'a> Cache<'u, 'a> {
    /// A cache that holds nothing yet.
    #[must_use]
    pub fn new(universe: &'u Universe<'a>) -> Self {
        Cache { universe, read: Default::default() }
    }

    /// The relationships of `entry`.
    #[must_use]
    pub fn of(&self, entry: EntryId) -> Rc<Dependencies<'a>> {
        let mut read = self.read.borrow_mut();
        Rc::clone(read.entry(entry).or_insert_with(|| Rc::new(Dependencies::read(self.universe, entry))))
    }

    /// The entries that `relation` of `owner` excludes: a package is never in conflict with its own name.
    pub fn excluded<'s>(
        &'s self,
        owner: EntryId,
        relation: &Relation<'s>,
    ) -> impl Iterator<Item = EntryId> + use<'s, 'u, 'a> {
        let own = self.universe.entry(owner).name;
        self.universe.satisfying(relation).filter(move |id| self.universe.entry(*id).name != own)
    }
}
