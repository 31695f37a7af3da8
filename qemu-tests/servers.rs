//! Servers that make data of their own when they are installed: two bakes give the same bytes all the same, and each
//! machine makes its own at its first boot.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kiln::vm::until_settled;

use crate::bake::{finished, folder_in, shared_store, store_with};
use crate::machine::{self, KILN, SETTLED, said};

const PROFILE: &str = r#"{
  name = "servers",
  packages = { mariadb-server = {}, default-jre-headless = {}, ssl-cert = {}, slapd = {} },
  debconf.slapd."slapd/no_configuration" = { type = 'boolean, value = "true" },
  # It has nothing to serve before somebody makes a directory.
  units."slapd.service".state = 'masked,
}
"#;

/// Asks Java itself how many certificates it trusts.
const TRUST: &str = "keytool -list -cacerts -storepass changeit | grep -c trustedCertEntry";

#[test]
fn databases_and_key_stores_are_the_same_in_two_bakes() {
    let folder = folder_in("/var/tmp");
    let profile = folder.path().join("servers.ncl");
    fs::write(&profile, PROFILE).expect("a profile");
    let (first, image) = baked(&profile, &shared_store(), &folder.path().join("first"));
    let lock = fs::read_to_string(profile.with_extension("lock")).expect("a lock");
    let store = store_with(&lock, folder.path());
    let (second, _) = baked(&profile, &store, &folder.path().join("second"));
    fs::remove_dir_all(&store).expect("removed");
    assert_eq!(first, second);

    machine::with_channel(machine::setup(&image), |vm, channel| {
        let settled = until_settled(vm, channel, Duration::ZERO, SETTLED).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((settled.state.as_str(), settled.failed.len()), ("running", 0), "{settled:?}");
        assert_eq!(said(channel, "mariadb -N -e 'select 6 * 7'").trim(), "42");
        assert_eq!(
            said(channel, "ls /var/lib/mysql/kiln-unfinished 2>&1 || true").matches("No such file").count(),
            1
        );
        let trusted: u32 = said(channel, TRUST).trim().parse().expect("a number");
        assert!(trusted > 100, "{trusted}");
    });
}

/// The digest of the blocks, and the image.
fn baked(profile: &Path, store: &Path, out: &Path) -> (String, PathBuf) {
    let mut command = Command::new(KILN);
    command.arg("--store").arg(store).arg("build").arg(profile).arg("-o").arg(out);
    let output = finished(command);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("warning"), "{said}");
    let manifest = fs::read_to_string(out.join("manifest.json")).expect("a manifest");
    let blocks = manifest.lines().find(|l| l.contains("\"blocks\"")).expect("blocks").to_owned();
    (blocks, out.join("servers.raw"))
}
