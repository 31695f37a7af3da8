//! The house stays in order: no module imports from its own floor or one above (the table in `src/lib.rs`).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

#[test]
fn modules_import_only_from_floors_below() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let text = fs::read_to_string(source.join("lib.rs")).unwrap();
    let mut floors = BTreeMap::new();
    for row in text.lines().filter_map(|line| line.strip_prefix("//! | ")) {
        let Some(floor) = row.split([' ', ',']).next().and_then(|digits| digits.parse::<u32>().ok()) else {
            continue;
        };
        for module in row.split("[`").skip(1).filter_map(|part| part.split_once("`]")) {
            assert_eq!(floors.insert(module.0.to_owned(), floor), None, "{} lies on two floors", module.0);
        }
    }
    let declared = text.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let declared: Vec<&str> = declared.collect();
    assert_eq!(declared.len(), floors.len());
    for module in declared {
        let floor = floors.get(module).unwrap_or_else(|| panic!("{module} has no floor"));
        let code = fs::read_to_string(source.join(format!("{module}.rs"))).unwrap();
        for named in code.split("crate::").skip(1) {
            let named: Vec<String> = match named.strip_prefix('{') {
                None => vec![named.to_owned()],
                Some(group) => group.split([',', '}']).map(|part| part.trim().to_owned()).collect(),
            };
            let word = |text: &String| {
                text.split(|c: char| !c.is_alphanumeric() && c != '_').next().map(str::to_owned)
            };
            for other in named.iter().filter_map(word).filter(|name| floors.contains_key(name)) {
                assert!(floors[&other] < *floor || other == module, "{module} imports from {other}");
            }
        }
    }
}
