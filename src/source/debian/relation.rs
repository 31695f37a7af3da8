//! Relationships between packages: `Depends: a (>= 1) | b, c:any` (Debian Policy, chapter 7; deb-control(5)).

use std::fmt;

use super::version::Version;

/// One package that a relationship names, as in `libc6 (>= 2.36)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relation<'a> {
    /// Name of the package, possibly a virtual one.
    pub name: &'a str,
    /// What follows the name's colon: `any`, `native` or an architecture.
    pub qualifier: Option<&'a str>,
    /// The versions that are meant; all when absent.
    pub constraint: Option<Constraint<'a>>,
}

/// Alternatives, the preferred one first; never empty.
pub type Alternatives<'a> = Vec<Relation<'a>>;

/// A range of versions, as in `>= 2.36`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Constraint<'a> {
    /// How versions are compared with [`Self::version`].
    pub operator: Operator,
    /// The version they are compared with.
    pub version: &'a str,
}

/// A comparison of versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// `<<`
    Earlier,
    /// `<=`, and the deprecated `<`
    EarlierOrEqual,
    /// `=`
    Equal,
    /// `>=`, and the deprecated `>`
    LaterOrEqual,
    /// `>>`
    Later,
}

/// A relationship field that can't be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no relationship: {problem}")]
pub struct RelationError {
    /// The part that is wrong, shortened.
    pub text: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl Constraint<'_> {
    /// Whether `version` lies within the range.
    #[must_use]
    pub fn holds(&self, version: &str) -> bool {
        let order = Version(version).cmp(&Version(self.version));
        match self.operator {
            Operator::Earlier => order.is_lt(),
            Operator::EarlierOrEqual => order.is_le(),
            Operator::Equal => order.is_eq(),
            Operator::LaterOrEqual => order.is_ge(),
            Operator::Later => order.is_gt(),
        }
    }
}

impl Relation<'_> {
    /// Whether a package of that name with `version` is meant.
    #[must_use]
    pub fn holds(&self, version: &str) -> bool {
        self.constraint.is_none_or(|constraint| constraint.holds(version))
    }

    /// Whether a package that provides the name, with `version` if it states one, is meant (Policy 7.5).
    #[must_use]
    pub fn holds_for_provided(&self, version: Option<&str>) -> bool {
        match (self.constraint, version) {
            (None, _) => true,
            (Some(constraint), Some(version)) => constraint.holds(version),
            (Some(_), None) => false,
        }
    }
}

/// Reads a relationship field: a conjunction of alternatives. Alternatives that are restricted to other architectures
/// than `arch` are left out; build profiles, which binary packages don't have, are skipped.
///
/// # Errors
/// A [`RelationError`] naming the part that can't be understood.
pub fn parse<'a>(field: &'a str, arch: &str) -> Result<Vec<Alternatives<'a>>, RelationError> {
    let mut groups = Vec::new();
    for group in field.split(',').map(str::trim).filter(|group| !group.is_empty()) {
        let mut alternatives = Vec::with_capacity(1);
        for text in group.split('|') {
            alternatives.extend(parse_one(text.trim(), arch)?);
        }
        if !alternatives.is_empty() {
            groups.push(alternatives);
        }
    }
    Ok(groups)
}

/// Reads one relation; `None` when it is restricted to other architectures.
fn parse_one<'a>(text: &'a str, arch: &str) -> Result<Option<Relation<'a>>, RelationError> {
    let error = |problem| RelationError { text: text.chars().take(60).collect(), problem };
    let name_end = text.find(|c: char| c.is_ascii_whitespace() || "([<".contains(c)).unwrap_or(text.len());
    let (name, mut rest) = (&text[..name_end], text[name_end..].trim_start());
    let (name, qualifier) = match name.split_once(':') {
        Some((name, qualifier)) => (name, Some(qualifier)),
        None => (name, None),
    };
    if !is_package_name(name) || qualifier.is_some_and(|q| !is_package_name(q)) {
        return Err(error("a package's name is expected"));
    }
    let (mut constraint, mut applies) = (None, true);
    while let Some(open) = rest.chars().next() {
        let close = match open {
            '(' => ')',
            '[' => ']',
            '<' => '>',
            _ => return Err(error("`(`, `[` or the end is expected after the name")),
        };
        let end = rest.find(close).ok_or_else(|| error("a bracket is not closed"))?;
        let inner = rest[1..end].trim();
        match open {
            '(' if constraint.is_some() => return Err(error("only one version range is allowed")),
            '(' => constraint = Some(parse_constraint(inner).map_err(error)?),
            '[' => applies = architecture_applies(inner, arch),
            _ => {}
        }
        rest = rest[end + 1..].trim_start();
    }
    Ok(applies.then_some(Relation { name, qualifier, constraint }))
}

fn parse_constraint(text: &str) -> Result<Constraint<'_>, &'static str> {
    let digits = text.find(|c| !"<>=".contains(c)).unwrap_or(text.len());
    let operator = match &text[..digits] {
        "<<" => Operator::Earlier,
        "<=" | "<" => Operator::EarlierOrEqual,
        "=" => Operator::Equal,
        ">=" | ">" => Operator::LaterOrEqual,
        ">>" => Operator::Later,
        _ => return Err("one of <<, <=, =, >=, >> is expected in the parentheses"),
    };
    let version = text[digits..].trim();
    match version.is_empty() || version.contains(|c: char| c.is_ascii_whitespace()) {
        true => Err("a version is expected after the operator"),
        false => Ok(Constraint { operator, version }),
    }
}

/// Whether `[amd64 arm64]` or `[!i386]` lets `arch` in (Policy 7.1).
fn architecture_applies(list: &str, arch: &str) -> bool {
    let matches = |name: &str| matches!(name, "any" | "linux-any") || name == arch;
    let negated = list.split_ascii_whitespace().any(|name| name.starts_with('!'));
    match negated {
        true => !list.split_ascii_whitespace().any(|name| matches(name.trim_start_matches('!'))),
        false => list.split_ascii_whitespace().any(matches),
    }
}

/// Whether `text` can name a package. Archives hold a few that Policy 5.6.1 would not allow, with capitals or `_`.
fn is_package_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._".contains(&b))
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operator::Earlier => "<<",
            Operator::EarlierOrEqual => "<=",
            Operator::Equal => "=",
            Operator::LaterOrEqual => ">=",
            Operator::Later => ">>",
        })
    }
}

impl fmt::Display for Constraint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.operator, self.version)
    }
}

impl fmt::Display for Relation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        if let Some(qualifier) = self.qualifier {
            write!(f, ":{qualifier}")?;
        }
        match self.constraint {
            Some(constraint) => write!(f, " ({constraint})"),
            None => Ok(()),
        }
    }
}

/// Alternatives as they are written in a control file.
#[must_use]
pub fn show(alternatives: &[Relation]) -> String {
    alternatives.iter().map(Relation::to_string).collect::<Vec<_>>().join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(field: &str) -> Result<Vec<String>, String> {
        let groups = parse(field, "amd64").map_err(|e| e.to_string())?;
        Ok(groups.iter().map(|group| show(group)).collect())
    }

    #[test]
    fn fields_are_read() {
        let field = "libc6 (>= 2.36),a(<<1:2-3)|b:any ( = 1 ),\n c [amd64 arm64] <!nocheck> , d [!amd64], e [i386] | f,";
        assert_eq!(shown(field).unwrap(), ["libc6 (>= 2.36)", "a (<< 1:2-3) | b:any (= 1)", "c", "f"]);
        assert_eq!(shown("").unwrap(), Vec::<String>::new());
        assert_eq!(shown("a (> 1), b (< 2)").unwrap(), ["a (>= 1)", "b (<= 2)"]);
    }

    #[test]
    fn nonsense_is_named() {
        for (field, problem) in [
            ("a (>= 1", "`a (>= 1` is no relationship: a bracket is not closed"),
            ("a (1)", "`a (1)` is no relationship: one of <<, <=, =, >=, >> is expected in the parentheses"),
            ("a (>=)", "`a (>=)` is no relationship: a version is expected after the operator"),
            ("a b", "`a b` is no relationship: `(`, `[` or the end is expected after the name"),
            ("a | | b", "`` is no relationship: a package's name is expected"),
            ("é", "`é` is no relationship: a package's name is expected"),
        ] {
            assert_eq!(shown(field).unwrap_err(), problem);
        }
    }

    #[test]
    fn versioned_relations_need_versioned_provides() {
        let groups = parse("a (>= 2)", "amd64").unwrap();
        let relation = groups[0][0];
        assert!(relation.holds("2.0") && !relation.holds("1.9"));
        assert!(relation.holds_for_provided(Some("3")) && !relation.holds_for_provided(None));
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(name in "[a-z][a-z0-9+.-]{1,6}", version in "[0-9][0-9a-z.+~-]{0,6}") {
            for operator in ["<<", "<=", "=", ">=", ">>"] {
                let text = format!("{name}:any ({operator} {version}) | {name}");
                prop_assert_eq!(shown(&text).unwrap(), vec![text]);
            }
        }

        #[test]
        fn no_text_panics(text in "([a-z]{0,2}[ (<>=:|,)\\[\\]!é]{0,3}){0,12}") {
            let _ = parse(&text, "amd64");
        }
    }
}
