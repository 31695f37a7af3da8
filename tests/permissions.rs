//! The policies in docs/guide/publishing.md allow what Kiln calls, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use kiln::aws::Call;
use kiln::aws::iam::permission;
use serde_json::Value;

/// What AWS asks of the caller although no call of Kiln's has that name.
const INDIRECT: [(&str, &str); 5] = [
    ("kms:CreateGrant", "EBS keeps using the key"),
    ("kms:Decrypt", "EBS unwraps data keys"),
    ("kms:GenerateDataKeyWithoutPlaintext", "EBS makes data keys"),
    ("kms:ReEncrypt*", "a copy changes its key"),
    ("s3:GetBucketLocation", "ImportSnapshot looks where the bucket is"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: PathBuf, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(path, found);
        } else {
            found.push(path);
        }
    }
}

/// The texts in quotes among the first arguments of a call.
fn quoted(arguments: &str) -> Vec<&str> {
    let end = arguments.find([')', '|', ';']).unwrap_or(arguments.len());
    arguments[..end].split('"').skip(1).step_by(2).collect()
}

/// Every operation that is called in src/aws, with the file.
fn calls() -> BTreeMap<(&'static str, &'static str), PathBuf> {
    let mut files = Vec::new();
    sources(root().join("src/aws"), &mut files);
    let mut found = BTreeMap::new();
    for path in files {
        let text: &'static str = fs::read_to_string(&path).unwrap().leak();
        // What the tests of a module call themselves isn't called.
        let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
        for begin in ["Call::new(", ".call("] {
            for arguments in text.split(begin).skip(1) {
                if let [service, operation, ..] = *quoted(arguments)
                    && !operation.is_empty()
                {
                    found.insert((service, operation), path.clone());
                }
            }
        }
        for arguments in text.split("ask::ec2(").skip(1) {
            let operation = quoted(arguments);
            assert_eq!(operation.len(), 1, "{}: ask::ec2({arguments:.80}", path.display());
            found.insert(("ec2", operation[0]), path.clone());
        }
    }
    found
}

/// The policies' actions, of statements that have a Sid: the others are not the caller's.
fn allowed() -> BTreeSet<String> {
    let guide = fs::read_to_string(root().join("docs/guide/publishing.md")).unwrap();
    let mut actions = BTreeSet::new();
    for block in guide.split("```json\n").skip(1).filter_map(|rest| rest.split("```").next()) {
        let policy: Value = serde_json::from_str(block).unwrap_or_else(|e| panic!("{e}:\n{block}"));
        assert_eq!(policy["Version"], "2012-10-17", "{block}");
        for statement in policy["Statement"].as_array().unwrap() {
            assert_eq!(statement["Effect"], "Allow");
            if statement.get("Sid").is_none() {
                continue;
            }
            match &statement["Action"] {
                Value::String(action) => drop(actions.insert(action.clone())),
                Value::Array(list) => {
                    actions.extend(list.iter().map(|action| action.as_str().unwrap().to_owned()));
                }
                other => panic!("{other} is no action"),
            }
        }
    }
    actions
}

#[test]
fn the_guides_policies_allow_what_is_called() {
    let calls = calls();
    assert!(calls.len() > 45, "only {} calls were found in src/aws", calls.len());
    let allowed = allowed();
    let lacking: Vec<String> = calls
        .iter()
        .filter_map(|((service, operation), path)| {
            let needed = permission(Call::new(service, operation, ""))?;
            (!allowed.contains(&needed)).then(|| format!("{needed} ({})", path.display()))
        })
        .collect();
    assert!(lacking.is_empty(), "no policy in docs/guide/publishing.md has {lacking:#?}");
}

#[test]
fn the_guides_policies_allow_nothing_else() {
    let mut needed: BTreeSet<String> = calls()
        .keys()
        .filter_map(|(service, operation)| permission(Call::new(service, operation, "")))
        .collect();
    needed.extend(INDIRECT.iter().map(|(action, _)| (*action).to_owned()));
    let more: Vec<_> = allowed().into_iter().filter(|action| !needed.contains(action)).collect();
    assert!(more.is_empty(), "nothing calls {more:?}");
}
