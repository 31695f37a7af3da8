//! The first pass of resolution: marks packages for installation as apt's internal solver does on an empty system.
//!
//! The procedure, depth first: what the profile names is marked first and *protected*. Marking a package puts away what
//! it conflicts with, then satisfies its Pre-Depends, Depends and Recommends in turn, unless something marked already
//! does: alternatives are tried in their order, a real package before those that provide its name. Whatever a
//! protected package can only have in one way becomes protected itself. A package whose marking fails is never tried
//! again. There is no backtracking beyond that; [`super::sat`] stands behind it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::dependencies::{Cache, Dependencies, Need};
use super::index::{EntryId, NameId, Universe};
use super::mention;
use super::policy::Policy;
use super::relation::{Alternatives, Relation};

/// How deep the recursion may go, as in apt; real distributions stay below some hundred.
const MAX_DEPTH: usize = 1000;

/// What was decided about a package.
#[derive(Debug, Clone, Copy, Default)]
struct State {
    /// The version that is to be installed.
    install: Option<EntryId>,
    /// The decision is final.
    protected: bool,
}

/// The marks.
pub struct Marker<'u, 'a> {
    universe: &'u Universe<'a>,
    cache: &'u Cache<'u, 'a>,
    policy: Policy,
    recommends: bool,
    states: Vec<State>,
    /// Packages to be chosen before others that would do as well.
    preferred: Vec<bool>,
    /// Whether there are preferred ones.
    guided: bool,
    /// Where names are first mentioned, as far as it was asked for.
    mentions: RefCell<HashMap<NameId, Option<mention::Place>>>,
}

impl<'u, 'a> Marker<'u, 'a> {
    /// Nothing marked; candidates as in `policy`.
    pub fn new(cache: &'u Cache<'u, 'a>, policy: Policy, recommends: bool) -> Self {
        let universe = cache.universe;
        let states = vec![State::default(); universe.name_count()];
        let preferred = vec![false; universe.name_count()];
        Marker {
            universe,
            cache,
            policy,
            recommends,
            states,
            preferred,
            guided: false,
            mentions: RefCell::default(),
        }
    }

    /// Marks and protects `roots`, then all that they need.
    pub fn mark_all(&mut self, roots: &[NameId]) {
        for &root in roots {
            self.states[root.index()] = State { install: self.policy.candidate(root), protected: true };
        }
        for &root in roots {
            self.mark(root, true, 0);
        }
    }

    /// Lets the marking choose from `solution` wherever it has a choice, and never choose what conflicts with it.
    pub fn prefer(&mut self, solution: &[EntryId]) {
        for &entry in solution {
            self.preferred[self.universe.entry(entry).name.index()] = true;
            for (_, relation) in &self.cache.of(entry).against {
                for excluded in self.cache.excluded(entry, relation) {
                    if self.policy.is_candidate(self.universe, excluded) {
                        self.policy.set(self.universe.entry(excluded).name, None);
                    }
                }
            }
        }
        self.guided = true;
    }

    /// Whether a package that the preferred solution is without excludes one that is in it.
    fn is_against_preferred(&self, candidate: EntryId) -> bool {
        if !self.guided || self.preferred[self.universe.entry(candidate).name.index()] {
            return false;
        }
        let dependencies = self.cache.of(candidate);
        let mut excluded = dependencies.against.iter().flat_map(|(_, r)| self.cache.excluded(candidate, r));
        excluded.any(|id| {
            self.preferred[self.universe.entry(id).name.index()]
                && self.policy.is_candidate(self.universe, id)
        })
    }

    /// Whether a package is marked for installation.
    pub fn is_marked(&self, name: NameId) -> bool {
        self.states[name.index()].install.is_some()
    }

    /// All packages marked for installation.
    pub fn installed(&self) -> impl Iterator<Item = EntryId> + '_ {
        self.states.iter().filter_map(|state| state.install)
    }

    /// Whether everything marked has all that it needs and nothing that it excludes.
    pub fn is_sound(&self) -> bool {
        !self.installed().any(|entry| self.is_broken(entry, false))
    }

    /// Drops what `roots` don't need, recommend or suggest: left-overs of attempts that failed.
    pub fn sweep(&mut self, roots: &[NameId]) {
        let mut keep = vec![false; self.states.len()];
        let mut queue: Vec<NameId> = roots.to_vec();
        while let Some(name) = queue.pop() {
            let Some(entry) = self.states[name.index()].install else { continue };
            if std::mem::replace(&mut keep[name.index()], true) {
                continue;
            }
            let dependencies = self.cache.of(entry);
            let suggests = self.universe.field(entry, "Suggests").unwrap_or("");
            let suggests =
                super::relation::parse(suggests, self.universe.arch().debian()).unwrap_or_default();
            let needs = dependencies.needs.iter().map(|(_, group)| group).chain(&suggests);
            for relation in needs.flatten() {
                let satisfying = self.universe.satisfying(relation).filter(|id| self.is_installed(*id));
                queue.extend(satisfying.map(|id| self.universe.entry(id).name));
            }
        }
        for (state, keep) in self.states.iter_mut().zip(keep) {
            state.install = state.install.filter(|_| keep);
        }
    }

    fn is_installed(&self, entry: EntryId) -> bool {
        self.states[self.universe.entry(entry).name.index()].install == Some(entry)
    }

    fn satisfied(&self, group: &[Relation<'a>]) -> bool {
        group.iter().any(|relation| self.universe.satisfying(relation).any(|id| self.is_installed(id)))
    }

    fn is_broken(&self, entry: EntryId, with_recommends: bool) -> bool {
        let dependencies = self.cache.of(entry);
        let needs = dependencies.needs.iter().filter(|(need, _)| need.is_critical() || with_recommends);
        needs.into_iter().any(|(_, group)| !self.satisfied(group))
            || dependencies
                .against
                .iter()
                .any(|(_, relation)| self.cache.excluded(entry, relation).any(|id| self.is_installed(id)))
    }

    /// Marks `name`'s candidate for installation, with all that it needs when `deep`. False when that can't be.
    fn mark(&mut self, name: NameId, deep: bool, depth: usize) -> bool {
        let state = self.states[name.index()];
        let Some(candidate) = self.policy.candidate(name) else { return false };
        if depth > MAX_DEPTH || (state.protected && state.install.is_none()) {
            return false;
        }
        if !state.protected && state.install.is_some() && !self.is_broken(candidate, self.recommends) {
            return true;
        }
        let dependencies = self.cache.of(candidate);
        let impossible = dependencies.malformed.is_some() || self.is_against_preferred(candidate);
        if impossible || (deep && !self.is_satisfiable(&dependencies)) {
            if !state.protected {
                self.policy.set(name, None);
            }
            return false;
        }
        if !deep {
            self.states[name.index()].install = Some(candidate);
            return true;
        }
        let open = self.open_needs(&dependencies, state.protected);
        let mut complete = self.exclude(candidate, &dependencies, state.protected);
        if !complete && !state.protected {
            return false;
        }
        self.states[name.index()] = State { install: Some(candidate), protected: true };
        complete &= self.mark_needs(&open, state.protected, depth);
        self.states[name.index()].protected = state.protected;
        if !complete && !state.protected {
            self.states[name.index()].install = None;
            self.policy.set(name, None);
        }
        complete
    }

    /// Whether for each need there is at least a candidate.
    fn is_satisfiable(&self, dependencies: &Dependencies<'a>) -> bool {
        let mut needs = dependencies.needs.iter().filter(|(need, _)| need.is_critical());
        needs.all(|(_, group)| {
            let mut all = group.iter().flat_map(|relation| self.universe.satisfying(relation));
            all.any(|id| self.is_installed(id) || self.policy.is_candidate(self.universe, id))
        })
    }

    /// The needs to look at: those not satisfied yet, and all of a protected package.
    fn open_needs(
        &self,
        dependencies: &Rc<Dependencies<'a>>,
        protected: bool,
    ) -> Vec<(Need, Alternatives<'a>)> {
        let wanted = |need: &Need| need.is_critical() || self.recommends;
        let open = dependencies.needs.iter().filter(|(need, _)| wanted(need));
        open.filter(|(_, group)| protected || !self.satisfied(group)).cloned().collect()
    }

    /// Puts away what a package excludes: for good if that package is protected. False if something can't be.
    fn exclude(&mut self, entry: EntryId, dependencies: &Dependencies<'a>, protected: bool) -> bool {
        let mut complete = true;
        for (_, relation) in &dependencies.against {
            let excluded: Vec<_> = self.cache.excluded(entry, relation).collect();
            for other in excluded {
                if !self.policy.is_candidate(self.universe, other) {
                    continue;
                }
                let name = self.universe.entry(other).name;
                let state = &mut self.states[name.index()];
                if state.install.is_some() && state.protected {
                    complete = false;
                    if !protected {
                        return false;
                    }
                    continue;
                }
                state.install = None;
                if protected {
                    state.protected = true;
                    self.policy.set(name, None);
                }
            }
        }
        complete
    }

    fn mark_needs(&mut self, needs: &[(Need, Alternatives<'a>)], protected: bool, depth: usize) -> bool {
        let mut complete = true;
        for (need, group) in needs {
            if self.satisfied(group) {
                if protected && need.is_critical() {
                    complete &= self.protect_only_solution(group, depth);
                }
            } else if !self.mark_one_of(group, protected && need.is_critical(), depth) && need.is_critical() {
                complete = false;
                if !protected {
                    break;
                }
            }
        }
        complete
    }

    /// What a protected package has no alternative to becomes protected too.
    fn protect_only_solution(&mut self, group: &[Relation<'a>], depth: usize) -> bool {
        let solutions = self.solutions(group, false);
        match solutions[..] {
            [only] => {
                let name = self.universe.entry(only).name;
                if self.states[name.index()].protected {
                    return true;
                }
                self.states[name.index()].protected = true;
                self.mark(name, true, depth + 1)
            }
            _ => true,
        }
    }

    fn mark_one_of(&mut self, group: &[Relation<'a>], protect: bool, depth: usize) -> bool {
        let solutions = self.solutions(group, true);
        for &entry in &solutions {
            if !self.policy.is_candidate(self.universe, entry) {
                continue;
            }
            let name = self.universe.entry(entry).name;
            if protect && solutions.len() == 1 {
                if !self.mark(name, false, depth + 1) {
                    continue;
                }
                self.states[name.index()].protected = true;
            }
            if self.mark(name, true, depth + 1) {
                return true;
            }
        }
        false
    }

    /// The candidates that satisfy one of the alternatives, best first when `sorted`.
    fn solutions(&self, group: &[Relation<'a>], sorted: bool) -> Vec<EntryId> {
        let mut solutions: Vec<EntryId> = Vec::new();
        for relation in group {
            let all = self.universe.satisfying(relation);
            let mut found: Vec<_> = all.filter(|id| self.policy.is_candidate(self.universe, *id)).collect();
            if sorted && found.len() > 1 {
                self.sort(relation, &mut found);
            }
            for entry in found {
                if !solutions.contains(&entry) {
                    solutions.push(entry);
                }
            }
        }
        solutions.retain(|id| {
            let state = self.states[self.universe.entry(*id).name.index()];
            !(state.protected && state.install.is_none())
        });
        solutions.sort_by_key(|id| !self.preferred[self.universe.entry(*id).name.index()]);
        solutions
    }

    /// Orders the candidates for one relation as apt does: the package that bears the name, then by Essential and
    /// Protected flags and priority; and last, those whose name the indexes mention later.
    fn sort(&self, relation: &Relation<'a>, found: &mut [EntryId]) {
        let rank = |id: &EntryId| {
            let entry = self.universe.entry(*id);
            let real = relation.qualifier.is_none() && self.universe.name(entry.name) == relation.name;
            let protected = self.states[entry.name.index()].protected;
            (!protected, !real, !entry.essential, !entry.important, entry.priority)
        };
        found.sort_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| self.mention(*b).cmp(&self.mention(*a))));
    }

    fn mention(&self, entry: EntryId) -> Option<mention::Place> {
        let name = self.universe.entry(entry).name;
        *self.mentions.borrow_mut().entry(name).or_insert_with(|| mention::rank(self.universe, entry))
    }
}
