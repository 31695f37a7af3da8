//! What is typed wrongly is refused before anything is done, with the next step; looking changes nothing.

use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// A folder to work in, with a home and a profile.
fn place() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("p.ncl"), "{ name = \"p\" }").unwrap();
    folder
}

fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.args(args).current_dir(folder).env_clear().env("HOME", folder.join("home"));
    command
}

fn kiln(folder: &Path, args: &[&str]) -> Output {
    command(folder, args).output().unwrap()
}

/// The error of a call that ends with status 2.
fn refused(folder: &Path, args: &[&str]) -> String {
    let output = kiln(folder, args);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
    error
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A file that may be a disk: with the signature of an MBR.
fn disk(folder: &Path) {
    let mut bytes = vec![0; 1 << 20];
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    fs::write(folder.join("disk.raw"), bytes).unwrap();
}

#[test]
fn looking_at_a_store_makes_none() {
    let folder = place();
    for verb in [&["store"][..], &["store", "verify"], &["store", "roots"], &["gc"]] {
        let output = kiln(folder.path(), verb);
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && said.starts_with("there is no store at "), "{verb:?}: {said}");
    }
    kiln(folder.path(), &["doctor"]);
    assert_eq!(names(folder.path()), ["p.ncl"]);
}

#[test]
fn somebody_elses_folder_is_no_store_for_any_verb() {
    let folder = place();
    for verb in [&["store"][..], &["gc"], &["build", "p.ncl"], &["why", "p.ncl"], &["lock", "p.ncl"]] {
        let error = refused(folder.path(), &[verb, &["--store", "."]].concat());
        assert!(error.contains("is no store of Kiln's: it holds p.ncl"), "{verb:?}: {error}");
    }
    assert_eq!(names(folder.path()), ["p.ncl"]);
}

#[test]
fn a_store_that_is_named_by_nothing_is_the_usual_one() {
    let folder = place();
    let output = command(folder.path(), &["store"]).env("KILN_STORE", "").output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("home/.cache/kiln"), "{said}");
    let output = command(folder.path(), &["store"]).env("KILN_STORE", "there").output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("/there yet"), "{said}");
}

#[test]
fn what_only_looks_writes_no_lock() {
    let folder = place();
    for verb in [
        &["why", "p.ncl"][..],
        &["layout", "p.ncl"],
        &["tree", "p.ncl"],
        &["run", "p.ncl", "--dry-run"],
        &["test", "p.ncl", "--dry-run"],
    ] {
        let error = refused(folder.path(), verb);
        assert!(error.contains("p.lock is not there: nothing is locked yet"), "{verb:?}: {error}");
        assert!(error.contains("`kiln lock p.ncl` makes it"), "{verb:?}: {error}");
    }
    assert_eq!(names(folder.path()), ["home", "p.ncl"]);
}

#[test]
fn what_is_no_disk_is_not_booted() {
    let folder = place();
    fs::write(folder.path().join("notes.txt"), "buy milk\n".repeat(1000)).unwrap();
    for verb in ["run", "test"] {
        let error = refused(folder.path(), &[verb, "notes.txt"]);
        assert!(error.contains("notes.txt: no disk image: neither an MBR"), "{error}");
        assert!(refused(folder.path(), &[verb, "absent.raw"]).contains("can't read absent.raw"));
    }
}

#[test]
fn a_machine_needs_memory_and_free_ports() {
    let folder = place();
    disk(folder.path());
    let run = |args: &[&str]| refused(folder.path(), &[&["run", "disk.raw"], args].concat());
    assert!(run(&["--memory", "1"]).contains("asked for 1 B, a machine needs at least 64 MiB"));
    assert!(run(&["-p", "8080:80", "-p", "8080:81"]).contains("port 8080 of 127.0.0.1 is forwarded twice"));
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = run(&["-p", &format!("{port}:80")]);
    assert!(error.contains(&format!("port {port} of 127.0.0.1 can't be forwarded: ")), "{error}");
    assert!(error.contains("hint: forward another one"), "{error}");
}

#[test]
fn usage_is_explained_to_machines_too() {
    let folder = place();
    for args in [&["--json", "biuld"][..], &["build", "--json", "--colour"], &["run", "--json"]] {
        let error = refused(folder.path(), args);
        let error: Value = serde_json::from_str(&error).unwrap_or_else(|e| panic!("{args:?}: {e}: {error}"));
        assert_eq!(error["error"]["kind"], "usage");
        assert!(error["error"]["message"].as_str().is_some_and(|m| !m.is_empty() && !m.contains("Usage:")));
    }
    assert!(refused(folder.path(), &["biuld"]).starts_with("error: unrecognized subcommand"));
}

#[test]
fn numbers_where_texts_are_meant_are_texts() {
    let folder = place();
    let output = kiln(folder.path(), &["eval", "p.ncl", "--set", "version=1.10", "--field", "version"]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "1.10\n");
    assert!(
        refused(folder.path(), &["eval", "p.ncl", "--set", "boot.timeout=-1"])
            .contains("--set boot.timeout=-1")
    );
}

#[test]
fn nobody_has_to_listen() {
    let folder = place();
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    let status = |args: &[&str], stdout: Stdio| {
        let mut command = command(folder.path(), args);
        command.stdout(stdout).stderr(full()).status().unwrap().code()
    };
    assert_eq!(status(&["eval", "absent.ncl", "-vv"], Stdio::null()), Some(2));
    assert_eq!(status(&["eval", "absent.ncl", "--json"], Stdio::null()), Some(2));
    assert_eq!(status(&["biuld"], Stdio::null()), Some(2));
    assert_eq!(status(&["eval", "p.ncl"], full().into()), Some(1));
    assert_eq!(status(&["--help"], full().into()), Some(1));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(status(&["eval", "p.ncl"], writer.into()), Some(0));
}

#[test]
fn a_lock_is_left_as_it_is_when_archives_are_not_to_be_asked() {
    let folder = place();
    let lock = |args: &[&str]| refused(folder.path(), &[&["lock"], args].concat());
    assert!(lock(&["p.ncl", "--offline"]).contains("p.lock is not there, and --offline forbids making it"));
    assert!(lock(&["p.ncl", "--locked"]).contains("p.lock is not there, and --locked forbids making it"));
    let build = refused(folder.path(), &["build", "p.ncl", "--locked"]);
    assert!(build.contains("--locked forbids making it"), "{build}");
    for args in [
        &["p.ncl", "--offline", "--update"][..],
        &["--offline", "--update", "p.ncl"],
        &["--offline", "--update", "nginx", "p.ncl"],
    ] {
        assert!(lock(args).contains("only archives know what to update to"), "{args:?}");
    }
    assert!(lock(&["--update"]).contains("Usage: kiln lock [OPTIONS] <PROFILE> [--update [PACKAGE]...]"));
    assert_eq!(names(folder.path()), ["home", "p.ncl"]);
}

#[test]
fn what_is_no_lock_is_told_and_stays() {
    let folder = place();
    for bytes in [&b"\xff\xfe\0\x01"[..], b"", b"[[["] {
        fs::write(folder.path().join("p.lock"), bytes).unwrap();
        for verb in ["build", "lock"] {
            let error = refused(folder.path(), &[verb, "p.ncl"]);
            assert!(
                error.contains("p.lock") && error.contains("delete it and run `kiln lock`"),
                "{verb}: {error}"
            );
        }
        assert_eq!(fs::read(folder.path().join("p.lock")).unwrap(), bytes);
    }
    fs::remove_file(folder.path().join("p.lock")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", folder.path().join("p.lock")).unwrap();
    let output = kiln(folder.path(), &["build", "p.ncl"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("p.lock: it is no regular file"));
}

#[test]
fn an_export_replaces_files_only() {
    let folder = place();
    disk(folder.path());
    let export = |args: &[&str]| kiln(folder.path(), &[&["export"], args].concat());
    fs::create_dir(folder.path().join("kept")).unwrap();
    std::os::unix::fs::symlink("kept/disk.qcow2", folder.path().join("link")).unwrap();
    assert!(export(&["disk.raw", "-o", "link"]).status.success());
    assert!(folder.path().join("link").is_symlink() && folder.path().join("kept/disk.qcow2").is_file());
    let output = Command::new("mknod").arg(folder.path().join("null")).args(["p"]).output().unwrap();
    assert!(output.status.success());
    let output = export(&["disk.raw", "-o", "null"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("can't write null: what is there is no regular file, and stays"), "{error}");
    fs::write(folder.path().join("notes"), "buy milk").unwrap();
    assert!(
        refused(folder.path(), &["export", "notes", "-o", "x"]).contains("8 bytes are no sectors of 512")
    );
}

#[test]
fn a_folder_that_cannot_be_written_is_told_first() {
    let folder = place();
    let output = kiln(folder.path(), &["build", "p.ncl", "-o", "p.ncl/out"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("can't write into p.ncl/out"), "{error}");
    assert!(!folder.path().join("p.lock").exists());
}

#[test]
fn a_test_whose_reports_cannot_be_written_bakes_nothing() {
    let folder = place();
    disk(folder.path());
    std::os::unix::fs::symlink("/nowhere/x", folder.path().join("link")).unwrap();
    for target in ["p.ncl", "disk.raw"] {
        for out in [OsStr::new("p.ncl/out"), OsStr::new("link/out"), OsStr::from_bytes(b"\xff")] {
            let output = command(folder.path(), &["test", target, "-o"]).arg(out).output().unwrap();
            let error = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{error}");
            let told = format!("can't write into {}: ", Path::new(out).display());
            assert!(error.contains(&told), "{error}");
        }
    }
    // The store, which is in the home, was opened; nothing was locked, and nothing put beside the profile.
    assert_eq!(names(folder.path()), ["disk.raw", "home", "link", "p.ncl"]);
}

#[test]
fn a_profile_whose_path_is_not_text_is_told() {
    let (folder, name) = (place(), OsStr::from_bytes(b"\xff.ncl"));
    fs::copy(folder.path().join("p.ncl"), folder.path().join(name)).unwrap();
    let below = folder.path().join(OsStr::from_bytes(b"\xff"));
    fs::create_dir(&below).unwrap();
    fs::copy(folder.path().join("p.ncl"), below.join("p.ncl")).unwrap();
    std::os::unix::fs::symlink(name, folder.path().join("base.ncl")).unwrap();
    fs::write(folder.path().join("importer.ncl"), "import \"base.ncl\"").unwrap();
    let [plain, importer] = ["p.ncl", "importer.ncl"].map(OsStr::new);
    for (place, profile) in [(folder.path(), name), (&below, plain), (folder.path(), importer)] {
        let output = command(place, &["lock"]).arg(profile).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains("isn't UTF-8"), "{error}");
    }
}

#[test]
fn what_no_build_put_there_is_not_replaced() {
    let folder = place();
    fs::create_dir(folder.path().join("out")).unwrap();
    fs::write(folder.path().join("out/p.raw"), "mine").unwrap();
    let error = refused(folder.path(), &["build", "p.ncl", "-o", "out"]);
    assert!(error.contains("out/p.raw is in the way: no build of Kiln's put it there"), "{error}");
    assert_eq!(fs::read(folder.path().join("out/p.raw")).unwrap(), b"mine");
    assert!(!folder.path().join("p.lock").exists());
}

#[test]
fn a_file_that_is_missing_is_told_before_anything_is_locked() {
    let folder = place();
    fs::write(folder.path().join("p.ncl"), "{ name = \"p\", run.setup.source = \"setup.sh\" }").unwrap();
    for verb in ["build", "lock", "eval"] {
        let error = refused(folder.path(), &[verb, "p.ncl"]);
        assert!(error.contains("run.setup.source: `setup.sh`: there is no "), "{verb}: {error}");
        assert!(error.contains("p.ncl:1:25"), "{verb}: {error}");
    }
    assert!(!folder.path().join("p.lock").exists());
}

#[test]
fn a_package_that_is_not_locked_is_named_with_what_was_meant() {
    let folder = place();
    fs::write(folder.path().join("p.lock"), crate::locks::lock().print()).unwrap();
    let error = refused(folder.path(), &["lock", "p.ncl", "--update", "ngnix"]);
    assert!(error.contains("`ngnix` is none of the locked packages; is nginx meant?"), "{error}");
}
