//! Chooses the packages that `apt-get install` would choose on an empty system.
//!
//! First a greedy pass after apt's own manner ([`super::mark`]); where that ends in a conflict, a SAT solver
//! ([`super::sat`]) finds a solution or proves that there is none, which [`super::explain`] then puts into words.

use std::collections::BTreeSet;

use super::conflict;
use super::dependencies::Cache;
use super::explain::{self, Unsolvable};
use super::index::{EntryId, IndexError, NameId, Universe};
use super::mark::Marker;
use super::policy::{Policy, glob};
use super::relation::Relation;
use super::sat;
use crate::package::LockedPackage;
use crate::system::{Package, Pin, Set};

/// What is to be installed.
#[derive(Debug, Clone, Copy)]
pub struct Request<'r> {
    /// The packages asked for, by name; those that are off are ignored.
    pub wanted: &'r Set<Package>,
    /// Whether recommended packages come along.
    pub recommends: bool,
    /// apt's pins.
    pub pins: &'r Set<Pin>,
    /// Whether the packages that Debian marks Essential are asked for as well, as any whole system needs them.
    pub essential: bool,
}

/// Why packages can't be resolved.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ResolveError {
    /// No set of packages is right.
    #[error(transparent)]
    Unsolvable(#[from] Unsolvable),
    /// An index lacks what is needed of it.
    #[error(transparent)]
    Index(#[from] IndexError),
}

/// Resolves `request` to packages, sorted by name. The result depends on the arguments only.
///
/// # Errors
/// [`ResolveError::Unsolvable`] with the chain of reasons, or [`ResolveError::Index`].
pub fn resolve(universe: &Universe, request: &Request) -> Result<Vec<LockedPackage>, ResolveError> {
    let cache = &Cache::new(universe);
    let mut policy = Policy::new(universe, request.pins);
    let named = choose_named(cache, request, &mut policy)?;
    let mut roots = match request.essential {
        true => essential(universe, &policy),
        false => Vec::new(),
    };
    roots.extend(named.iter().copied());
    let roots = without_duplicates(roots);

    let installed = match greedy(cache, &policy, &roots, request.recommends, None) {
        Some(installed) => installed,
        None => by_sat(cache, &policy, &roots, &named, request.recommends)?,
    };
    let manual: BTreeSet<NameId> = named.into_iter().collect();
    let mut locked = installed
        .into_iter()
        .map(|entry| universe.locked(entry, manual.contains(&universe.entry(entry).name)))
        .collect::<Result<Vec<_>, _>>()?;
    locked.sort();
    Ok(locked)
}

fn without_duplicates(names: Vec<NameId>) -> Vec<NameId> {
    let mut seen = BTreeSet::new();
    names.into_iter().filter(|name| seen.insert(*name)).collect()
}

/// The packages whose candidate is `Essential: yes`, by name.
fn essential(universe: &Universe, policy: &Policy) -> Vec<NameId> {
    let candidates = universe.names().filter_map(|name| policy.candidate(name));
    let mut essential: Vec<_> = candidates
        .filter(|entry| universe.entry(*entry).essential)
        .map(|entry| universe.entry(entry).name)
        .collect();
    essential.sort_by_key(|name| universe.name(*name));
    essential
}

/// One greedy pass; `None` when it ends in a conflict.
fn greedy(
    cache: &Cache,
    policy: &Policy,
    roots: &[NameId],
    recommends: bool,
    solution: Option<&[EntryId]>,
) -> Option<Vec<EntryId>> {
    let mut marker = Marker::new(cache, policy.clone(), recommends);
    if let Some(solution) = solution {
        marker.prefer(solution);
    }
    marker.mark_all(roots);
    marker.sweep(roots);
    let complete = roots.iter().all(|root| marker.is_marked(*root));
    (complete && marker.is_sound()).then(|| marker.installed().collect())
}

/// The SAT solver's solution, with recommended packages added where they fit.
fn by_sat(
    cache: &Cache,
    policy: &Policy,
    roots: &[NameId],
    named: &[NameId],
    recommends: bool,
) -> Result<Vec<EntryId>, Unsolvable> {
    match sat::solve(cache, policy, roots) {
        Some(solution) if recommends => {
            let with_more = greedy(cache, policy, roots, true, Some(&solution));
            Ok(with_more.unwrap_or(solution))
        }
        Some(solution) => Ok(solution),
        None => Err(conflict::explain(cache, policy, roots, named)),
    }
}

/// Finds what the profile names, and makes the versions and suites that it asks for the candidates.
fn choose_named(cache: &Cache, request: &Request, policy: &mut Policy) -> Result<Vec<NameId>, Unsolvable> {
    let universe = cache.universe;
    let mut named = Vec::new();
    let mut problems = Vec::new();
    let mut by_suite = Vec::new();
    for (name, package) in request.wanted.iter().filter(|(_, package)| package.enable) {
        match choose(universe, policy, name, package) {
            Ok(entry) => {
                let id = universe.entry(entry).name;
                named.push(id);
                if package.version.is_some() || package.suite.is_some() {
                    policy.set(id, Some(entry));
                }
                by_suite.extend(package.suite.as_deref().map(|suite| (entry, suite)));
            }
            Err(problem) => problems.push(problem),
        }
    }
    if !problems.is_empty() {
        return Err(Unsolvable { reasons: problems });
    }
    for (entry, suite) in by_suite {
        switch_to_suite(cache, policy, entry, suite, &mut vec![entry]);
    }
    Ok(named)
}

/// The version that a profile's entry means.
fn choose(
    universe: &Universe,
    policy: &Policy,
    name: &str,
    wanted: &Package,
) -> Result<EntryId, explain::Reason> {
    let unknown = || explain::unknown(universe, policy, name, wanted);
    let id = universe.find(name).ok_or_else(unknown)?;
    if universe.versions(id).is_empty() {
        return only_provider(universe, policy, name).ok_or_else(unknown);
    }
    let fits = |entry: EntryId| {
        wanted.version.as_deref().is_none_or(|pattern| glob(pattern, universe.entry(entry).version))
            && wanted.suite.as_deref().is_none_or(|suite| universe.origins(entry).any(|o| o.is_of(suite)))
    };
    let candidate = policy.candidate(id).filter(|entry| fits(*entry));
    if wanted.version.is_none() && wanted.suite.is_none() {
        return candidate.ok_or_else(unknown);
    }
    candidate.or_else(|| universe.versions(id).iter().copied().find(|e| fits(*e))).ok_or_else(unknown)
}

/// A virtual package can be asked for as long as only one package provides it.
fn only_provider(universe: &Universe, policy: &Policy, name: &str) -> Option<EntryId> {
    let relation = Relation { name, qualifier: None, constraint: None };
    let mut providers = universe.satisfying(&relation).filter(|id| policy.is_candidate(universe, *id));
    let first = providers.next()?;
    providers.all(|other| other == first).then_some(first)
}

/// After a package was taken from `suite`, takes from there as well what it can't have from elsewhere, and so on.
/// `switched` holds what was taken from there already. False when a need stays open.
fn switch_to_suite(
    cache: &Cache,
    policy: &mut Policy,
    entry: EntryId,
    suite: &str,
    switched: &mut Vec<EntryId>,
) -> bool {
    let before = switched.len();
    let dependencies = cache.of(entry);
    for (_, group) in dependencies.needs.iter().filter(|(need, _)| need.is_critical()) {
        let fine = group.iter().any(|relation| {
            let mut all = cache.universe.satisfying(relation);
            all.any(|id| policy.is_candidate(cache.universe, id) && has_candidates(cache, policy, id))
        });
        let mut versioned = group.iter().filter(|relation| relation.constraint.is_some());
        if !fine && !versioned.any(|relation| switch_one(cache, policy, relation, suite, switched)) {
            switched.truncate(before);
            return false;
        }
    }
    true
}

/// Takes what `relation` needs from `suite`. False, and nothing changed, if that has no version that will do.
fn switch_one(
    cache: &Cache,
    policy: &mut Policy,
    relation: &Relation,
    suite: &str,
    switched: &mut Vec<EntryId>,
) -> bool {
    let Some(entry) = from_suite(cache.universe, relation, suite) else { return false };
    if switched.contains(&entry) {
        return true;
    }
    let name = cache.universe.entry(entry).name;
    let old = policy.candidate(name);
    policy.set(name, Some(entry));
    switched.push(entry);
    let done = switch_to_suite(cache, policy, entry, suite, switched);
    if !done {
        policy.set(name, old);
        switched.retain(|id| *id != entry);
    }
    done
}

/// Whether every need of a package could be met by candidates.
fn has_candidates(cache: &Cache, policy: &Policy, entry: EntryId) -> bool {
    let universe = cache.universe;
    let dependencies = cache.of(entry);
    let mut needs = dependencies.needs.iter().filter(|(need, _)| need.is_critical());
    needs.all(|(_, group)| {
        let mut all = group.iter().flat_map(|relation| universe.satisfying(relation));
        all.any(|id| policy.is_candidate(universe, id))
    })
}

/// The newest version of a relation's package in `suite`, if it satisfies the relation.
fn from_suite(universe: &Universe, relation: &Relation, suite: &str) -> Option<EntryId> {
    let versions = universe.versions(universe.find(relation.name)?);
    let newest = versions.iter().copied().find(|id| universe.origins(*id).any(|o| o.is_of(suite)))?;
    relation.holds(universe.entry(newest).version).then_some(newest)
}
