//! The commands of docs/guide/publishing.md that need no account do what it says.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::local::Local;
use crate::machine::{self, KILN};

/// The commands below a heading of the guide, but for those that start the server and say where it is.
fn commands(heading: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guide/publishing.md");
    let guide = std::fs::read_to_string(path).expect("the guide");
    let section = guide.split("\n## ").find(|section| section.starts_with(heading)).expect(heading);
    let lines = section.lines().filter_map(|line| line.strip_prefix("$ "));
    lines
        .filter(|line| !line.starts_with("scripts/") && !line.starts_with("export "))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_guide_works_without_an_account() {
    let folder = tempfile::tempdir().expect("a folder");
    let profile = machine::profile("server");
    std::os::unix::fs::symlink(profile.parent().expect("a folder"), folder.path().join("profiles"))
        .expect("a link");
    let local = Local::start();
    let commands = commands("Without an account");
    assert!(commands.len() >= 7, "{commands:?}");
    // The smoke tests take minutes, and have tests of their own.
    let script =
        format!("set -eux\n{}\n", commands.join("\n")).replace("kiln publish", "kiln publish --untested");
    let mut path = vec![Path::new(KILN).parent().expect("a folder").to_owned()];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(&folder)
        .env("PATH", std::env::join_paths(path).expect("a PATH"))
        .env("KILN_STORE", machine::cache().join("store"))
        .env("AWS_ENDPOINT_URL", local.url())
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test")
        .env("AWS_CONFIG_FILE", "/dev/null")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        .env_remove("AWS_PROFILE")
        .env_remove("AWS_SESSION_TOKEN")
        .output()
        .expect("bash runs");
    let (out, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{said}");
    for (told, what) in [(&said, "everything is there already"), (&out, "blocks are those of the image")] {
        assert!(told.contains(what), "`{what}` is missing:\n{out}\n{said}");
    }
    let record = std::fs::read(folder.path().join("out/server/publication.json")).expect("a record");
    documented(&serde_json::from_slice(&record).expect("JSON"));
}

/// Every field of the record stands in docs/reference/publication.md.
fn documented(record: &Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/publication.md");
    let page = std::fs::read_to_string(path).expect("the page");
    let region = record["regions"].as_object().and_then(|regions| regions.values().next()).expect("a region");
    for (field, _) in record.as_object().into_iter().chain(region.as_object()).flatten() {
        assert!(page.contains(&format!("`{field}`")), "docs/reference/publication.md has no `{field}`");
    }
}
