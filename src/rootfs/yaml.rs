//! JSON values as YAML in block style: readable, and every text in quotes, so that none changes its type.

use serde_json::{Map, Value};

/// A map as a YAML document, its keys sorted.
pub(super) fn print(map: &Map<String, Value>) -> String {
    let mut out = String::new();
    entries(&mut out, map, 0);
    out
}

fn entries(out: &mut String, map: &Map<String, Value>, depth: usize) {
    let mut keys: Vec<&String> = map.keys().collect();
    keys.sort_unstable();
    for key in keys {
        out.push_str(&"  ".repeat(depth));
        out.push_str(&name(key));
        out.push(':');
        nested(out, &map[key], depth);
    }
}

/// What follows a key's colon or an item's dash.
fn nested(out: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            out.push('\n');
            entries(out, map, depth + 1);
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            for item in items {
                out.push_str(&"  ".repeat(depth + 1));
                out.push('-');
                nested(out, item, depth + 1);
            }
        }
        // JSON's scalars, and its empty map and list, are YAML (YAML 1.2, 1.3).
        scalar => out.push_str(&format!(" {scalar}\n")),
    }
}

/// A key, in quotes unless it is a plain word that YAML 1.1 doesn't take for something else.
fn name(key: &str) -> String {
    let words = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    let plain = key.starts_with(|c: char| c.is_ascii_alphabetic())
        && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
        && !words.contains(&key.to_ascii_lowercase().as_str());
    if plain { key.to_owned() } else { Value::from(key).to_string() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn block_style_with_quoted_texts() {
        let value = json!({
            "b": [1, "on", { "x": null, "y": [] }, [true, []]],
            "a": { "k: 1": "line\nbreak", "empty": {} },
        });
        let text = super::print(value.as_object().unwrap());
        let expected = "a:\n  empty: {}\n  \"k: 1\": \"line\\nbreak\"\nb:\n  - 1\n  - \"on\"\n  -\n    x: null\n    \"y\": []\n  -\n    - true\n    - []\n";
        assert_eq!(text, expected);
    }
}
