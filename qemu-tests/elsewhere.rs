//! A bake in another machine at another time: an image that holds Kiln, a project and its packages boots with a clock that is
//! years ahead, and bakes the project again: other hardware, another kernel and file system, and times that 32 bits don't hold.
//! The host's own clock is left alone.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use kiln::units::{Bytes, GIB};

use crate::bake::{copy_of_project, finished, folder_in, reference, shared_store, store_with_packages};
use crate::machine::{self, KILN, said};

/// Years ahead of any host, and more seconds than 31 bits hold; systemd resets a clock that is 15 years ahead of its own making.
const THEN: &str = "2038-06-07T08:09:10Z";

/// A bake of the smallest image takes a host some 20 s, and emulation fifteen times that.
const BAKE: Duration = Duration::from_secs(1200);

/// What the machine bakes, and with what.
const BAKERY: &str = r#"(import "profiles/minimal.ncl") & {
  name | force = "bakery",
  disk.free = "3GiB",
  files."/usr/local/bin/kiln" = { source = "kiln", mode = "0755" },
  files."/srv/project".source = "project",
  files."/srv/store".source = "store",
}
"#;

#[test]
fn another_machine_at_another_time_gives_the_same_bytes() {
    let folder = folder_in("/var/tmp");
    let image = bakery(folder.path());
    let mut setup = machine::setup(&image);
    setup.clock = Some(THEN.parse().expect("a time"));
    setup.memory = Bytes(4 * GIB);
    machine::with_channel(setup, |_, channel| {
        assert_eq!(said(channel, "date -u +%Y").trim(), "2038");
        let script = "export HOME=/root PATH=/usr/sbin:/usr/bin\n\
             /usr/local/bin/kiln --store /srv/store build /srv/project/same.ncl -o /srv/out --offline --format raw,qcow2 2>&1";
        let baked = channel.run(script, BAKE).unwrap_or_else(|e| panic!("{e}"));
        println!("baked in the machine in {:.0} s", baked.took.as_secs_f64());
        assert_eq!(baked.status, 0, "{}", baked.stdout);
        for (name, sha256) in &reference().images {
            let there = said(channel, &format!("sha256sum /srv/out/{name}"));
            assert_eq!(&there[..64], sha256, "{name} differs");
        }
    });
}

/// The image that bakes the project of [`reference`].
fn bakery(folder: &Path) -> std::path::PathBuf {
    let project = folder.join("bakery");
    fs::create_dir(&project).expect("a folder");
    // The project and its packages become files of the image.
    copy_of_project(&project, false);
    store_with_packages(&project);
    fs::copy(KILN, project.join("kiln")).expect("a copy");
    let profiles = Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles");
    assert!(Command::new("cp").arg("-r").args([&profiles, &project]).status().expect("cp").success());
    fs::write(project.join("kiln.toml"), "").expect("a file");
    fs::write(project.join("bakery.ncl"), BAKERY).expect("a profile");
    let mut command = Command::new(KILN);
    command.arg("--store").arg(shared_store()).arg("build").arg(project.join("bakery.ncl"));
    command.arg("-o").arg(folder.join("out"));
    finished(command);
    folder.join("out/bakery.raw")
}
