//! Resolution as a satisfiability problem, for where the greedy pass ends in a conflict.
//!
//! Each candidate is a variable; each need of it a union of the candidates that satisfy it, in the order of preference;
//! each exclusion a constraint. Recommended packages are left to the caller.

use std::fmt::Display;

use resolvo::utils::{Pool, VersionSet};
use resolvo::{
    Candidates, Condition, ConditionId, Dependencies, DependencyProvider, HintDependenciesAvailable,
    Interner, KnownDependencies, NameId as SatName, Problem, Requirement, SolvableId, Solver, SolverCache,
    StringId, VersionSetId, VersionSetUnionId,
};

use super::dependencies::Cache;
use super::index::{EntryId, NameId, Universe};
use super::policy::Policy;
use super::relation::Relation;

/// Whether a package's candidate is wanted or unwanted: with one version a package there is nothing else to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Wanted {
    Installed,
    Absent,
}

impl VersionSet for Wanted {
    type V = EntryId;
}

impl Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Wanted::Installed => "installed",
            Wanted::Absent => "absent",
        })
    }
}

/// A set of packages that contains `roots` and is complete and free of conflicts; `None` if there is none.
#[must_use]
pub fn solve(cache: &Cache, policy: &Policy, roots: &[NameId]) -> Option<Vec<EntryId>> {
    let universe = cache.universe;
    let provider = Provider { universe, cache, policy, pool: Pool::new() };
    let requirements: Vec<_> =
        roots.iter().map(|root| Requirement::from(provider.set(*root, Wanted::Installed)).into()).collect();
    let mut solver = Solver::new(provider);
    let solution = solver.solve(Problem::new().requirements(requirements)).ok()?;
    let pool = &solver.provider().pool;
    Some(solution.into_iter().map(|id| pool.resolve_solvable(id).record).collect())
}

struct Provider<'p, 'u, 'a> {
    universe: &'p Universe<'a>,
    cache: &'p Cache<'u, 'a>,
    policy: &'p Policy,
    pool: Pool<Wanted, NameId>,
}

impl Provider<'_, '_, '_> {
    fn set(&self, name: NameId, wanted: Wanted) -> VersionSetId {
        self.pool.intern_version_set(self.pool.intern_package_name(name), wanted)
    }

    /// The candidates that satisfy one of the alternatives; `None` if there is none.
    fn requirement(&self, group: &[Relation]) -> Option<Requirement> {
        let mut names: Vec<NameId> = Vec::new();
        for entry in group.iter().flat_map(|relation| self.universe.satisfying(relation)) {
            let name = self.universe.entry(entry).name;
            if self.policy.is_candidate(self.universe, entry) && !names.contains(&name) {
                names.push(name);
            }
        }
        let mut sets = names.into_iter().map(|name| self.set(name, Wanted::Installed));
        let first = sets.next()?;
        Some(match sets.len() {
            0 => first.into(),
            _ => self.pool.intern_version_set_union(first, sets).into(),
        })
    }
}

impl Interner for Provider<'_, '_, '_> {
    type NameId = SatName;
    type SolvableId = SolvableId;

    fn display_solvable(&self, solvable: SolvableId) -> impl Display + '_ {
        self.universe.name_of(self.pool.resolve_solvable(solvable).record)
    }
    fn display_name(&self, name: SatName) -> impl Display + '_ {
        self.universe.name(*self.pool.resolve_package_name(name))
    }
    fn display_version_set(&self, set: VersionSetId) -> impl Display + '_ {
        *self.pool.resolve_version_set(set)
    }
    fn display_string(&self, string: StringId) -> impl Display + '_ {
        self.pool.resolve_string(string)
    }
    fn version_set_name(&self, set: VersionSetId) -> SatName {
        self.pool.resolve_version_set_package_name(set)
    }
    fn solvable_name(&self, solvable: SolvableId) -> SatName {
        self.pool.resolve_solvable(solvable).name
    }
    fn version_sets_in_union(&self, union: VersionSetUnionId) -> impl Iterator<Item = VersionSetId> {
        self.pool.resolve_version_set_union(union)
    }
    fn resolve_condition(&self, condition: ConditionId) -> Condition {
        self.pool.resolve_condition(condition).clone()
    }
}

impl DependencyProvider for Provider<'_, '_, '_> {
    async fn filter_candidates(
        &self,
        all: &[SolvableId],
        set: VersionSetId,
        inverse: bool,
    ) -> Vec<SolvableId> {
        let installed = *self.pool.resolve_version_set(set) == Wanted::Installed;
        if installed != inverse { all.to_vec() } else { Vec::new() }
    }

    async fn get_candidates(&self, name: SatName) -> Option<Candidates> {
        let entry = self.policy.candidate(*self.pool.resolve_package_name(name))?;
        Some(Candidates {
            candidates: vec![self.pool.intern_solvable(name, entry)],
            hint_dependencies_available: HintDependenciesAvailable::None,
            ..Default::default()
        })
    }

    async fn sort_candidates(&self, _: &SolverCache<Self>, _: &mut [SolvableId]) {}

    async fn get_dependencies(&self, solvable: SolvableId) -> Dependencies {
        let entry = self.pool.resolve_solvable(solvable).record;
        let dependencies = self.cache.of(entry);
        if let Some(problem) = &dependencies.malformed {
            return Dependencies::Unknown(self.pool.intern_string(problem.as_str()));
        }
        let mut known = KnownDependencies::default();
        for (_, group) in dependencies.needs.iter().filter(|(need, _)| need.is_critical()) {
            match self.requirement(group) {
                Some(requirement) => known.requirements.push(requirement.into()),
                None => return Dependencies::Unknown(self.pool.intern_string("a need that nothing meets")),
            }
        }
        let excluded = dependencies.against.iter().flat_map(|(_, r)| self.cache.excluded(entry, r));
        let mut names: Vec<_> = excluded
            .filter(|id| self.policy.is_candidate(self.universe, *id))
            .map(|id| self.universe.entry(id).name)
            .collect();
        names.sort_unstable();
        names.dedup();
        known.constrains = names.into_iter().map(|name| self.set(name, Wanted::Absent)).collect();
        Dependencies::Known(known)
    }
}
