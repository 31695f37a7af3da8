//! systemd's unit files as far as installing them needs: systemd.syntax(7) and the `[Install]` section of
//! systemd.unit(5).

/// One assignment of a unit file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Assignment<'a> {
    /// Section it stands in.
    pub section: &'a str,
    /// Its key.
    pub key: &'a str,
    /// Its value, continued lines joined by a blank.
    pub value: String,
}

/// A line that systemd would pass over with a warning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadLine {
    /// Its number, from 1.
    pub line: usize,
    /// What is expected.
    pub why: &'static str,
}

/// All assignments of a unit file, in order, and the lines that are none.
pub(super) fn parse(text: &str) -> (Vec<Assignment<'_>>, Vec<BadLine>) {
    let (mut found, mut bad) = (Vec::new(), Vec::new());
    let mut section = "";
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let start = line.trim();
        if start.is_empty() || is_comment(start) {
            continue;
        }
        if let Some(name) = start.strip_prefix('[') {
            match name.strip_suffix(']') {
                Some(name) if !name.is_empty() => section = name,
                _ => bad.push(BadLine { line: index + 1, why: "a section is written [Name]" }),
            }
            continue;
        }
        let Some((key, first)) = start.split_once('=') else {
            bad.push(BadLine { line: index + 1, why: "expected [Section], Key=Value or a comment" });
            continue;
        };
        let mut value = first.trim().to_owned();
        // Comments between continued lines are left out (systemd.syntax(7)).
        while let Some(begun) = value.strip_suffix('\\') {
            let next = lines.by_ref().map(|(_, line)| line).find(|line| !is_comment(line.trim_start()));
            value = format!("{} {}", begun.trim_end(), next.unwrap_or_default().trim());
            if next.is_none() {
                break;
            }
        }
        if section.is_empty() {
            bad.push(BadLine { line: index + 1, why: "an assignment needs a [Section] above it" });
        } else {
            found.push(Assignment { section, key: key.trim(), value: value.trim().to_owned() });
        }
    }
    (found, bad)
}

fn is_comment(line: &str) -> bool {
    line.starts_with(['#', ';'])
}

/// The `[Install]` section of a unit with its drop-ins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Install {
    /// Other names.
    pub alias: Vec<String>,
    /// Units that want it.
    pub wanted_by: Vec<String>,
    /// Units that require it.
    pub required_by: Vec<String>,
    /// Units that uphold it.
    pub upheld_by: Vec<String>,
    /// Units installed along with it.
    pub also: Vec<String>,
    /// Instance of a template that is enabled by itself.
    pub default_instance: Option<String>,
}

impl Install {
    /// Adds what the unit file or drop-in `text` says. An empty value takes back what came before.
    pub fn read(&mut self, text: &str) {
        for Assignment { key, value, .. } in parse(text).0.into_iter().filter(|a| a.section == "Install") {
            let list = match key {
                "Alias" => &mut self.alias,
                "WantedBy" => &mut self.wanted_by,
                "RequiredBy" => &mut self.required_by,
                "UpheldBy" => &mut self.upheld_by,
                "Also" => &mut self.also,
                "DefaultInstance" => {
                    self.default_instance = (!value.is_empty()).then_some(value);
                    continue;
                }
                _ => continue,
            };
            // systemd never takes back `Also=`.
            if value.is_empty() && key != "Also" {
                list.clear();
            }
            list.extend(value.split_whitespace().map(|word| word.trim_matches(['"', '\'']).to_owned()));
        }
    }

    /// Whether nothing is said that makes links.
    pub fn is_empty(&self) -> bool {
        [&self.alias, &self.wanted_by, &self.required_by, &self.upheld_by, &self.also]
            .iter()
            .all(|l| l.is_empty())
    }
}

/// Types of units (systemd.unit(5)).
const TYPES: [&str; 11] = [
    "service",
    "socket",
    "device",
    "mount",
    "automount",
    "swap",
    "target",
    "path",
    "timer",
    "slice",
    "scope",
];

/// Whether `name` is a unit's full name: at most 255 bytes, a known type behind the last dot.
pub(super) fn is_valid_name(name: &str) -> bool {
    let Some((stem, kind)) = name.rsplit_once('.') else { return false };
    let allowed = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    let plain = !stem.is_empty() && !stem.starts_with('@') && name.len() <= 255;
    plain && stem.chars().all(allowed) && TYPES.contains(&kind)
}

/// The parts of `prefix@instance.type`; `None` for a plain unit. A template's instance is empty.
pub(super) fn instance(name: &str) -> Option<(&str, &str, &str)> {
    let (stem, kind) = name.rsplit_once('.')?;
    let (prefix, instance) = stem.split_once('@')?;
    Some((prefix, instance, kind))
}

/// The template of an instance; `None` for anything else.
pub(super) fn template_of(name: &str) -> Option<String> {
    let (prefix, instance, kind) = instance(name)?;
    (!instance.is_empty()).then(|| format!("{prefix}@.{kind}"))
}

/// `text` with the specifiers of systemd.unit(5) that only depend on the unit's name.
///
/// # Errors
/// The specifier that needs a running system.
pub(super) fn expand(text: &str, unit: &str) -> Result<String, char> {
    let (stem, _) = unit.rsplit_once('.').unwrap_or((unit, ""));
    let (prefix, inst) = instance(unit).map_or((stem, ""), |(prefix, inst, _)| (prefix, inst));
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('i') => out.push_str(inst),
            Some('n') => out.push_str(unit),
            Some('N') => out.push_str(stem),
            Some('p') => out.push_str(prefix),
            Some('j') => out.push_str(prefix.rsplit('-').next().unwrap_or(prefix)),
            Some('%') => out.push('%'),
            other => return Err(other.unwrap_or('%')),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sections_comments_and_continued_lines() {
        let text = "# c\n[Unit]\nDescription = a \\\n; not this\n  b\n\n[Install]\nWantedBy=x.target\nWantedBy=\nWantedBy=a.target b.target\nAlso=c.socket\nwrong\n";
        let (found, bad) = parse(text);
        assert_eq!(found[0], Assignment { section: "Unit", key: "Description", value: "a b".into() });
        assert_eq!(bad, [BadLine { line: 12, why: "expected [Section], Key=Value or a comment" }]);
        let mut install = Install::default();
        install.read(text);
        assert_eq!(install.wanted_by, ["a.target", "b.target"]);
        assert_eq!(install.also, ["c.socket"]);
    }

    #[test]
    fn names_and_instances() {
        assert!(
            ["a.service", "getty@.service", "getty@tty1.service", "-.mount"].into_iter().all(is_valid_name)
        );
        assert!(!["a", ".service", "a.conf", "@x.service", "a/b.service"].into_iter().any(is_valid_name));
        assert_eq!(template_of("getty@tty1.service").as_deref(), Some("getty@.service"));
        assert_eq!((template_of("getty@.service"), template_of("a.service")), (None, None));
        assert_eq!(expand("%p-%i-%n%%", "a@b.service").as_deref(), Ok("a-b-a@b.service%"));
        assert_eq!(expand("%H", "a.service"), Err('H'));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[\\[\\]A-Za-z=\\\\#; \n%é]{0,120}") {
            let (found, bad) = parse(&text);
            prop_assert!(found.len() + bad.len() <= text.lines().count());
            let _ = expand(&text, &text);
            let _ = (is_valid_name(&text), instance(&text));
        }

        #[test]
        fn assignments_read_back(pairs in proptest::collection::vec(("[A-Z][a-z]{0,8}", "[a-z0-9/.]{0,12}"), 0..8)) {
            let lines: String = pairs.iter().map(|(k, v)| format!("{k}={v}\n")).collect();
            let text = format!("[Service]\n{lines}");
            let (found, bad) = parse(&text);
            prop_assert!(bad.is_empty());
            let back: Vec<_> = found.into_iter().map(|a| (a.key.to_owned(), a.value)).collect();
            prop_assert_eq!(back, pairs);
        }
    }
}
