//! A lock outlives what mirrors hold: a version that a mirror has dropped comes from a snapshot archive, and without one the
//! error says what to do. One local server plays both, with an archive of its own name, so that nobody else is asked.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use kiln::fetch::Mirrors;

use crate::bake::{folder_in, shared_store};
use crate::machine::KILN;
use crate::server::{Reply, Server};

/// Debian under another name.
const PROFILE: &str = r#"{
  name = "frozen",
  sources = { debian.archive = "frozen", security.enable = false },
  tools.archive = "frozen",
}
"#;

/// What the mirror has dropped.
const DROPPED: &str = "/b/bash/";

#[test]
fn a_dropped_version_comes_from_the_snapshot_archive() {
    let folder = folder_in("/var/tmp");
    fs::write(folder.path().join("frozen.ncl"), PROFILE).expect("a profile");
    let host = Mirrors::of_host(&[]).expect("mirrors");
    let mirror = host.urls("debian", "").first().expect("a mirror of debian").clone();
    let first = build(folder.path(), &shared_store(), &[("KILN_MIRROR", format!("frozen={mirror}"))]);
    assert!(first.status.success(), "{}", said(&first));
    let wanted = image(folder.path());
    let lock = fs::read_to_string(folder.path().join("frozen.lock")).expect("a lock");

    let server = server(&lock);
    let mirror = ("KILN_MIRROR", format!("frozen={}/mirror", server.url));
    let store = folder.path().join("store");
    let without = build(folder.path(), &store, std::slice::from_ref(&mirror));
    let told = said(&without);
    assert_eq!(without.status.code(), Some(1), "{told}");
    assert!(told.contains("can't fetch bash ") && told.contains("/mirror/pool/main/b/bash/"), "{told}");
    assert!(told.contains("name a snapshot archive with KILN_SNAPSHOT"), "{told}");
    assert!(!folder.path().join("out/frozen.raw").exists());

    let snapshot = ("KILN_SNAPSHOT", format!("frozen={}/snapshot", server.url));
    let with = build(folder.path(), &store, &[mirror, snapshot]);
    assert!(with.status.success(), "{}", said(&with));
    assert_eq!(image(folder.path()), wanted);
    let asked: Vec<String> = server.requests().into_iter().map(|r| r.path).collect();
    let asked: Vec<&String> = asked.iter().filter(|p| p.starts_with("/snapshot/")).collect();
    // At the time of the locked release, and for nothing that the mirror has.
    let time = newest(&lock).replace(['-', ':'], "");
    let begin = format!("/snapshot/archive/frozen/{time}/pool/main/b/bash/");
    assert!(!asked.is_empty() && asked.iter().all(|path| path.starts_with(&begin)), "{asked:?}, not {begin}");
}

/// A mirror that has what the lock names, from the shared store, but for what it dropped; and a snapshot archive.
fn server(lock: &str) -> Server {
    let field = |line: &str, name: &str| {
        let rest = line.split_once(&format!("{name} = \""))?.1;
        Some(rest.split_once('"')?.0.to_owned())
    };
    let packages = lock.lines().filter_map(|l| Some((field(l, "path")?, field(l, "sha256")?)));
    let packages: Arc<BTreeMap<String, String>> = Arc::new(packages.collect());
    Server::start(move |request, _| {
        let path = match request.path.strip_prefix("/mirror/") {
            Some(path) if !path.contains(DROPPED) => Some(path),
            Some(_) => None,
            None => request.path.find("/pool/").map(|at| &request.path[at + 1..]),
        };
        let blob = path
            .and_then(|path| packages.get(path))
            .and_then(|sha256| fs::read(shared_store().join("blobs").join(&sha256[..2]).join(sha256)).ok());
        blob.map_or_else(|| Reply::status(404), |bytes| Reply::of(&bytes, request))
    })
}

/// The date of the newest release in a lock.
fn newest(lock: &str) -> String {
    let dates = lock.lines().filter_map(|l| l.strip_prefix("date = "));
    dates.max().expect("a date").trim_matches('"').to_owned()
}

fn build(folder: &Path, store: &Path, environment: &[(&str, String)]) -> Output {
    let mut command = Command::new(KILN);
    command.arg("--store").arg(store).arg("build").arg(folder.join("frozen.ncl"));
    command.arg("-o").arg(folder.join("out")).env("HOME", folder).env_remove("XDG_CONFIG_HOME");
    for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "KILN_MIRROR", "KILN_SNAPSHOT"] {
        command.env_remove(name);
    }
    command.envs(environment.iter().map(|(name, value)| (*name, value)));
    command.output().expect("kiln starts")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Takes the image's digest and removes the image.
fn image(folder: &Path) -> String {
    let output = Command::new("sha256sum").arg(folder.join("out/frozen.raw")).output().expect("sha256sum");
    fs::remove_dir_all(folder.join("out")).expect("removed");
    String::from_utf8_lossy(&output.stdout)[..64].to_owned()
}
