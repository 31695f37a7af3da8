//! Names that a mistyped one may have meant.

/// Up to three similar names, the most similar first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Near(pub Vec<String>);

impl Near {
    /// The names among `all` that differ from `name` by few letters, or that hold it as a part.
    #[must_use]
    pub fn of<'a>(name: &str, all: impl IntoIterator<Item = &'a str>) -> Near {
        let limit = (name.len() / 3).max(1);
        let mut scored: Vec<(usize, &str)> = all
            .into_iter()
            .filter_map(|other| {
                let part = name.len() >= 4 && other.contains(name);
                let steps =
                    if other.len().abs_diff(name.len()) > limit { usize::MAX } else { distance(name, other) };
                let score = if part { steps.min(limit) } else { steps };
                (score <= limit && score > 0).then_some((score, other))
            })
            .collect();
        scored.sort_unstable();
        scored.dedup();
        Near(scored.into_iter().take(3).map(|(_, name)| name.to_owned()).collect())
    }
}

/// How many letters have to be added, dropped, changed or swapped with a neighbour, in bytes.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut next = vec![i];
        for j in 1..=b.len() {
            let change = row[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(row[j] + 1).min(next[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            next.push(best);
        }
        before = std::mem::replace(&mut row, next);
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn similar_names_come_first() {
        let all =
            ["nginx.service", "ngircd.service", "ssh.service", "postgresql.service", "postgresql@.service"];
        assert_eq!(Near::of("ngnix.service", all).0, ["nginx.service", "ngircd.service"]);
        assert_eq!(Near::of("postgresql", all).0, ["postgresql.service", "postgresql@.service"]);
        assert!(Near::of("zzz", all).0.is_empty());
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!((distance("ngnix", "nginx"), distance("", "ab"), distance("ab", "")), (1, 2, 2));
    }
}
