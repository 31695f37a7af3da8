//! `--set PATH=VALUE`: overrides of single fields, as Nickel records of higher priority than the profile.

use serde_json::Value;

use super::ProfileError;
use super::path::FieldPath;

/// One override as a Nickel record.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Override {
    /// The option as it was typed.
    pub(super) typed: String,
    /// The Nickel record.
    pub(super) text: String,
}

/// Turns overrides into records. A value that is JSON is taken as that, else as text. Objects set each of their fields;
/// of two values for one field the last counts.
pub(super) fn overrides(sets: &[(String, String)]) -> Result<Vec<Override>, ProfileError> {
    let mut leaves: Vec<(FieldPath, Value, String)> = Vec::new();
    for (path, value) in sets {
        let typed = format!("{path}={value}");
        let parsed: FieldPath = path
            .parse()
            .map_err(|e: super::PathError| ProfileError::Set { set: typed.clone(), reason: e.to_string() })?;
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.clone()));
        add(parsed, value, &typed, &mut leaves);
    }
    Ok(leaves
        .iter()
        .map(|(path, value, typed)| Override { typed: typed.clone(), text: record(path, value) })
        .collect())
}

fn add(path: FieldPath, value: Value, typed: &str, leaves: &mut Vec<(FieldPath, Value, String)>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                let mut path = path.clone();
                path.0.push(name);
                add(path, value, typed, leaves);
            }
        }
        value => {
            // What was set before at, below or above this field gives way, except that an empty record adds to others.
            let empty = is_empty_record(&value);
            leaves.retain(|(other, old, _)| {
                let above = path.0.starts_with(&other.0) && !is_empty_record(old);
                let below = other.0.starts_with(&path.0) && !empty;
                !above && !below
            });
            leaves.push((path, value, typed.to_owned()));
        }
    }
}

fn is_empty_record(value: &Value) -> bool {
    matches!(value, Value::Object(fields) if fields.is_empty())
}

/// `{ "a"."b" | force = value }`; an empty record has no need of force, and adds to what is there.
fn record(path: &FieldPath, value: &Value) -> String {
    let names: Vec<_> = path.0.iter().map(|name| string(name)).collect();
    let force = if is_empty_record(value) { "" } else { " | force" };
    format!("{{ {}{force} = {} }}", names.join("."), literal(value))
}

/// `value` as a Nickel expression.
fn literal(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(on) => on.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => string(text),
        Value::Array(items) => format!("[{}]", items.iter().map(literal).collect::<Vec<_>>().join(", ")),
        Value::Object(fields) => {
            let fields: Vec<_> =
                fields.iter().map(|(k, v)| format!("{} = {}", string(k), literal(v))).collect();
            if fields.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", fields.join(", ")) }
        }
    }
}

/// `text` as a Nickel string: what begins an escape or an interpolation is escaped.
pub(super) fn string(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '%' => out.push_str("\\%"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(sets: &[(&str, &str)]) -> Vec<String> {
        let sets: Vec<_> = sets.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        overrides(&sets).unwrap().into_iter().map(|o| o.text).collect()
    }

    #[test]
    fn values_are_json_or_text() {
        assert_eq!(texts(&[("disk.size", "4GiB")]), [r#"{ "disk"."size" | force = "4GiB" }"#]);
        assert_eq!(texts(&[("boot.timeout", "3")]), [r#"{ "boot"."timeout" | force = 3 }"#]);
        assert_eq!(texts(&[("hostname", "\"3\"")]), [r#"{ "hostname" | force = "3" }"#]);
        assert_eq!(texts(&[("hostname", "%{x}\\")]), [r#"{ "hostname" | force = "\%{x}\\" }"#]);
    }

    #[test]
    fn the_last_value_counts() {
        assert_eq!(texts(&[("a", "1"), ("a", "2")]), [r#"{ "a" | force = 2 }"#]);
        assert_eq!(texts(&[("a.b", "1"), ("a", "2")]), [r#"{ "a" | force = 2 }"#]);
        assert_eq!(texts(&[("a", "2"), ("a.b", "1")]), [r#"{ "a"."b" | force = 1 }"#]);
    }

    #[test]
    fn records_set_their_fields_and_empty_ones_add() {
        assert_eq!(
            texts(&[("disk", r#"{"size":"1GiB","grow":false}"#)]),
            [r#"{ "disk"."size" | force = "1GiB" }"#, r#"{ "disk"."grow" | force = false }"#]
        );
        assert_eq!(
            texts(&[("packages.nginx", "{}"), ("packages.nginx.version", "\"1\"")]),
            [r#"{ "packages"."nginx" = {} }"#, r#"{ "packages"."nginx"."version" | force = "1" }"#]
        );
    }

    #[test]
    fn a_wrong_path_names_the_option() {
        let error = overrides(&[("a..b".into(), "1".into())]).unwrap_err();
        assert!(
            error.to_string().starts_with("--set a..b=1: `a..b` is no field: a name is empty"),
            "{error}"
        );
    }
}
