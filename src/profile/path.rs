//! Paths of fields, as `--set` and `--field` take them: names between dots, quoted where a name holds a dot.

use std::fmt;
use std::str::FromStr;

use serde_json::Value;

/// A path of field names: `disk.size`, `sysctl."vm.swappiness"`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FieldPath(pub Vec<String>);

/// A text that is no path of fields.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is no field: {reason}; write names between dots, quoted where a name holds a dot, as in `sysctl.\"vm.swappiness\"`"
)]
pub struct PathError {
    text: String,
    reason: &'static str,
}

impl FromStr for FieldPath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<FieldPath, PathError> {
        let wrong = |reason| PathError { text: text.to_owned(), reason };
        let mut names = Vec::new();
        let mut rest = text;
        loop {
            let name;
            (name, rest) = next_name(rest).map_err(wrong)?;
            names.push(name);
            match rest.strip_prefix('.') {
                Some(after) => rest = after,
                None if rest.is_empty() => return Ok(FieldPath(names)),
                None => return Err(wrong("a quoted name is followed by a dot or nothing")),
            }
        }
    }
}

/// The first name of `text` and what follows it.
fn next_name(text: &str) -> Result<(String, &str), &'static str> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find('.').unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        return match name {
            "" => Err("a name is empty"),
            _ if name.contains(|c: char| c == '"' || c.is_control()) => {
                Err("a name holds a quote or control character")
            }
            _ => Ok((name.to_owned(), rest)),
        };
    };
    let end = quoted.find('"').ok_or("a quote is never closed")?;
    let name = &quoted[..end];
    match name {
        "" => Err("a name is empty"),
        _ if name.contains(char::is_control) => Err("a name holds a control character"),
        _ => Ok((name.to_owned(), &quoted[end + 1..])),
    }
}

impl FieldPath {
    /// The value of this field in `json`; a number is an index where an array stands.
    #[must_use]
    pub fn get<'a>(&self, json: &'a Value) -> Option<&'a Value> {
        self.0.iter().try_fold(json, |value, name| match value {
            Value::Array(items) => items.get(name.parse::<usize>().ok()?),
            other => other.get(name),
        })
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, name) in self.0.iter().enumerate() {
            let dot = if index == 0 { "" } else { "." };
            if name.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c)) {
                write!(f, "{dot}{name}")?;
            } else {
                write!(f, "{dot}\"{name}\"")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_read_and_print() {
        for (text, names) in [
            ("name", vec!["name"]),
            ("disk.size", vec!["disk", "size"]),
            ("sysctl.\"vm.swappiness\"", vec!["sysctl", "vm.swappiness"]),
            ("files.\"/etc/motd\".text", vec!["files", "/etc/motd", "text"]),
        ] {
            let path: FieldPath = text.parse().unwrap();
            assert_eq!(path.0, names);
            assert_eq!(path.to_string(), text);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", ".", "a.", ".a", "a..b", "a.\"b", "a.\"b\"c", "a\"b", "\"\"", "a\nb"] {
            assert!(text.parse::<FieldPath>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn fields_are_found() {
        let json = serde_json::json!({ "a": { "b.c": [1, 2] } });
        let path: FieldPath = "a.\"b.c\".1".parse().unwrap();
        assert_eq!(path.get(&json), Some(&serde_json::json!(2)));
        let path: FieldPath = "a.x".parse().unwrap();
        assert_eq!(path.get(&json), None);
    }
}
