//! Why packages can't be installed together, found out by following what is inevitable.
//!
//! Two questions are asked in turn. Is there something wanted that lacks something, however one chooses? If not: which
//! few of the wanted packages exclude each other, and through which inevitable packages?

use std::collections::hash_map::Entry as MapEntry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::dependencies::{Against, Cache, Need};
use super::explain::{Reason, Unsolvable, missing, sentence, with_version};
use super::index::{EntryId, NameId};
use super::policy::Policy;
use super::relation::{Alternatives, Relation};
use super::sat;

/// Explains why `roots`, of which the profile asks for `named`, can't be installed together.
#[must_use]
pub fn explain(cache: &Cache, policy: &Policy, roots: &[NameId], named: &[NameId]) -> Unsolvable {
    let search = Search { cache, policy, named };
    let dead = search.dead(roots);
    let lacking: Vec<_> = roots.iter().filter_map(|root| policy.candidate(*root)).collect();
    let mut reasons: Vec<_> = lacking
        .into_iter()
        .filter(|entry| dead.contains_key(entry))
        .map(|entry| search.chain_to_missing(entry, &dead))
        .collect();
    if reasons.is_empty() {
        reasons.push(search.exclusion(&search.fewest(roots), &dead));
    }
    Unsolvable { reasons }
}

struct Search<'s, 'u, 'a> {
    cache: &'s Cache<'u, 'a>,
    policy: &'s Policy,
    named: &'s [NameId],
}

/// In which round of the search an entry was found to lack something.
type Dead = HashMap<EntryId, usize>;

/// Why an entry is inevitable: `None` for what is asked for.
type Parent<'a> = Option<(EntryId, Need, Alternatives<'a>)>;

/// What follows from the roots without any choice.
#[derive(Default)]
struct Forced<'a> {
    entries: BTreeMap<EntryId, Parent<'a>>,
    order: Vec<EntryId>,
    /// What the inevitable entries exclude.
    banned: HashMap<EntryId, Exclusion<'a>>,
}

/// An exclusion between two entries, as the first one's relationship states it.
#[derive(Clone, Copy)]
struct Exclusion<'a> {
    by: EntryId,
    of: EntryId,
    against: Against,
    relation: Relation<'a>,
}

impl<'a> Search<'_, '_, 'a> {
    fn solutions(&self, group: &[Relation<'a>]) -> Vec<EntryId> {
        let all = group.iter().flat_map(|relation| self.cache.universe.satisfying(relation));
        let mut found: Vec<_> = all.filter(|id| self.policy.is_candidate(self.cache.universe, *id)).collect();
        let mut seen = BTreeSet::new();
        found.retain(|id| seen.insert(*id));
        found
    }

    fn critical(&self, entry: EntryId) -> Vec<(Need, Alternatives<'a>)> {
        self.cache.of(entry).needs.iter().filter(|(need, _)| need.is_critical()).cloned().collect()
    }

    /// All entries within reach of the roots that lack something whatever is chosen.
    fn dead(&self, roots: &[NameId]) -> Dead {
        let mut reach: Vec<EntryId> = roots.iter().filter_map(|root| self.policy.candidate(*root)).collect();
        let mut needs: HashMap<EntryId, Vec<Vec<EntryId>>> = HashMap::new();
        while let Some(entry) = reach.pop() {
            if let MapEntry::Vacant(place) = needs.entry(entry) {
                let groups: Vec<_> =
                    self.critical(entry).iter().map(|(_, group)| self.solutions(group)).collect();
                reach.extend(groups.iter().flatten());
                place.insert(groups);
            }
        }
        let mut dead = Dead::new();
        for round in 0.. {
            let lacks = |groups: &[Vec<EntryId>]| {
                groups.iter().any(|group| group.iter().all(|id| dead.contains_key(id)))
            };
            let found: Vec<_> = needs
                .iter()
                .filter(|(entry, groups)| {
                    !dead.contains_key(entry) && (self.cache.of(**entry).malformed.is_some() || lacks(groups))
                })
                .map(|(entry, _)| *entry)
                .collect();
            if found.is_empty() {
                break;
            }
            dead.extend(found.into_iter().map(|entry| (entry, round)));
        }
        dead
    }

    fn chain_to_missing(&self, root: EntryId, dead: &Dead) -> Reason {
        let universe = self.cache.universe;
        let mut lines = vec![self.asked_for(root)];
        let mut entry = root;
        loop {
            if let Some(problem) = &self.cache.of(entry).malformed {
                lines.push(format!("{} is malformed: {problem}", with_version(universe, entry)));
                return Reason { lines, ..Reason::default() };
            }
            let round = dead.get(&entry).copied().unwrap_or(0);
            let earlier = |id: &EntryId| dead.get(id).is_some_and(|r| *r < round);
            let needs = self.critical(entry);
            let lacking = needs.iter().find(|(_, group)| self.solutions(group).iter().all(earlier));
            let Some((need, group)) = lacking else { return Reason { lines, ..Reason::default() } };
            let line = sentence(universe, entry, need.verb(), group);
            match self.solutions(group).into_iter().min_by_key(|id| dead.get(id).copied()) {
                Some(next) => {
                    lines.push(line);
                    entry = next;
                }
                None => {
                    let (cause, hint) = missing(universe, self.policy, group);
                    lines.push(format!("{line}: {cause}"));
                    return Reason { lines, hint, ..Reason::default() };
                }
            }
        }
    }

    fn asked_for(&self, entry: EntryId) -> String {
        let name = self.cache.universe.entry(entry).name;
        let by = if self.named.contains(&name) { "is asked for by the profile" } else { "is essential" };
        format!("{} {by}", with_version(self.cache.universe, entry))
    }

    /// As few of the roots as already exclude each other.
    fn fewest(&self, roots: &[NameId]) -> Vec<NameId> {
        let solvable = |roots: &[NameId]| sat::solve(self.cache, self.policy, roots).is_some();
        let mut kept: Vec<NameId> = roots.iter().copied().filter(|root| self.named.contains(root)).collect();
        if solvable(&kept) {
            kept = roots.to_vec();
        }
        let mut at = 0;
        while at < kept.len() {
            let mut fewer = kept.clone();
            fewer.remove(at);
            match solvable(&fewer) {
                true => at += 1,
                false => kept = fewer,
            }
        }
        kept
    }

    /// Follows what is inevitable from the roots until two of it exclude each other.
    fn exclusion(&self, roots: &[NameId], dead: &Dead) -> Reason {
        let mut forced = Forced::default();
        for entry in roots.iter().filter_map(|root| self.policy.candidate(*root)) {
            self.force(&mut forced, entry, None);
        }
        loop {
            if let Some(found) = self.excluded_pair(&forced) {
                return self.tell_pair(&forced, found);
            }
            let before = forced.order.len();
            for at in 0..before {
                let entry = forced.order[at];
                for (need, group) in self.critical(entry) {
                    let all = self.solutions(&group);
                    if all.iter().any(|id| forced.entries.contains_key(id)) {
                        continue;
                    }
                    let open =
                        |id: &&EntryId| !dead.contains_key(*id) && self.excluded_by(&forced, **id).is_none();
                    match all.iter().filter(open).collect::<Vec<_>>()[..] {
                        [] => return self.tell_group(&forced, entry, need, &group, &all),
                        [&only] => {
                            self.force(&mut forced, only, Some((entry, need, group)));
                        }
                        _ => {}
                    }
                }
            }
            if forced.order.len() == before {
                let names: Vec<_> = roots.iter().map(|root| self.cache.universe.name(*root)).collect();
                let together = if names.len() > 1 { " together" } else { "" };
                let line = format!("{} can't be installed{together}, however one chooses", names.join(", "));
                return Reason { lines: vec![line], ..Reason::default() };
            }
        }
    }

    fn exclusions(&self, by: EntryId) -> Vec<Exclusion<'a>> {
        let dependencies = self.cache.of(by);
        let mut found = Vec::new();
        for (against, relation) in &dependencies.against {
            for of in self.cache.excluded(by, relation) {
                found.push(Exclusion { by, of, against: *against, relation: *relation });
            }
        }
        found
    }

    fn force(&self, forced: &mut Forced<'a>, entry: EntryId, parent: Parent<'a>) {
        forced.entries.insert(entry, parent);
        forced.order.push(entry);
        for exclusion in self.exclusions(entry) {
            forced.banned.entry(exclusion.of).or_insert(exclusion);
        }
    }

    fn excluded_pair(&self, forced: &Forced<'a>) -> Option<Exclusion<'a>> {
        forced.order.iter().find_map(|entry| forced.banned.get(entry)).copied()
    }

    /// Which inevitable entry excludes `entry`, or is excluded by it.
    fn excluded_by(&self, forced: &Forced<'a>, entry: EntryId) -> Option<Exclusion<'a>> {
        let own = self.exclusions(entry).into_iter().find(|e| forced.entries.contains_key(&e.of));
        own.or_else(|| forced.banned.get(&entry).copied())
    }

    fn tell_pair(&self, forced: &Forced<'a>, found: Exclusion<'a>) -> Reason {
        let mut lines = self.chain_to(forced, found.by);
        lines.push(self.tell(found));
        Reason { lines, against: self.chain_to(forced, found.of), hint: None }
    }

    fn tell(&self, found: Exclusion<'a>) -> String {
        let line = sentence(self.cache.universe, found.by, found.against.verb(), &[found.relation]);
        match self.cache.universe.name_of(found.of) == found.relation.name {
            true => line,
            false => format!("{line}, which {} provides", with_version(self.cache.universe, found.of)),
        }
    }

    fn tell_group(
        &self,
        forced: &Forced<'a>,
        entry: EntryId,
        need: Need,
        group: &[Relation<'a>],
        solutions: &[EntryId],
    ) -> Reason {
        let mut lines = self.chain_to(forced, entry);
        lines.push(sentence(self.cache.universe, entry, need.verb(), group));
        let excluded = solutions.iter().find_map(|id| Some((*id, self.excluded_by(forced, *id)?)));
        let mut against = Vec::new();
        if let Some((solution, found)) = excluded {
            let other = if found.by == solution { found.of } else { found.by };
            against = self.chain_to(forced, other);
            let line = self.tell(found);
            if found.by == solution { lines.push(line) } else { against.push(line) }
        }
        Reason { lines, against, hint: None }
    }

    /// From what is asked for to `entry`.
    fn chain_to(&self, forced: &Forced<'a>, entry: EntryId) -> Vec<String> {
        let mut lines = Vec::new();
        let mut at = entry;
        while let Some(Some((parent, need, group))) = forced.entries.get(&at) {
            lines.push(sentence(self.cache.universe, *parent, need.verb(), group));
            at = *parent;
        }
        lines.push(self.asked_for(at));
        lines.reverse();
        lines
    }
}
