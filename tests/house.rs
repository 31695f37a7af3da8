//! The house stays in order: no module imports from its own floor or one above (the table in `src/lib.rs`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Each module's floor, from the table.
fn floors() -> BTreeMap<String, u32> {
    let text = fs::read_to_string(source().join("lib.rs")).unwrap();
    let mut floors = BTreeMap::new();
    for row in text.lines().filter_map(|l| l.strip_prefix("//! | ")) {
        let digits: String = row.chars().take_while(char::is_ascii_digit).collect();
        let Ok(floor) = digits.parse() else { continue };
        for module in row.split("[`").skip(1).filter_map(|part| part.split_once("`]")) {
            assert_eq!(floors.insert(module.0.to_owned(), floor), None, "{} lies on two floors", module.0);
        }
    }
    floors
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The modules that a line of code names: `crate::a::b` and `use crate::{a, b::c}`.
fn named(code: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|&c| c.is_alphanumeric() || c == '_').collect::<String>();
    let mut names = Vec::new();
    for rest in code.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            None => names.push(word(rest)),
            Some(group) => {
                let mut depth = 0;
                let outer = group.split_inclusive(['{', ',', '}']).filter_map(|part| {
                    let first = (depth == 0).then(|| word(part.trim()));
                    depth += i32::from(part.ends_with('{')) - i32::from(part.ends_with('}'));
                    first
                });
                names.extend(outer.filter(|name| !name.is_empty()));
            }
        }
    }
    names
}

#[test]
fn modules_import_only_from_floors_below() {
    let floors = floors();
    let text = fs::read_to_string(source().join("lib.rs")).unwrap();
    for module in text.lines().filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';')) {
        assert!(floors.contains_key(module), "{module} has no floor in the table of src/lib.rs");
    }
    let mut all = Vec::new();
    files(&source(), &mut all);
    let mut wrong = Vec::new();
    for path in all {
        let name = path.strip_prefix(source()).unwrap();
        let module = name.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        let Some(floor) = floors.get(module) else { continue };
        let text = fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            assert!(
                !code.ends_with("crate::{"),
                "src/{}:{}: name modules on one line",
                name.display(),
                number + 1
            );
            for other in named(code).into_iter().filter(|other| other != module) {
                match floors.get(&other) {
                    Some(below) if below < floor => {}
                    Some(above) => wrong.push(format!(
                        "src/{}:{}: {module} (floor {floor}) imports {other} (floor {above})",
                        name.display(),
                        number + 1
                    )),
                    None => wrong.push(format!(
                        "src/{}:{}: {other} is no module of the table",
                        name.display(),
                        number + 1
                    )),
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn names_are_found_in_every_form() {
    let found = |code| named(code).join(" ");
    assert_eq!(found("use crate::tree::{Kind, Node};"), "tree");
    assert_eq!(found("use crate::{date, units::{Bytes, MIB}, vm};"), "date units vm");
    assert_eq!(found("crate::a::b(crate::c::D)"), "a c");
    assert_eq!(found("let crates = 1;"), "");
}
