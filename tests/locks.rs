//! Locks: written, read, compared; and wrong ones, each refused with its line.

use std::collections::BTreeMap;

use kiln::arch::Arch;
use kiln::date::Timestamp;
use kiln::digest::Digest;
use kiln::lock::{Goals, Lock, diff};
use kiln::package::{LockedPackage, LockedRelease};
use kiln::system::{self, Package, Pin, Source, System};
use proptest::prelude::*;

fn package(name: &str, version: &str, archive: &str) -> LockedPackage {
    LockedPackage {
        name: name.to_owned(),
        version: version.to_owned(),
        arch: "amd64".to_owned(),
        size: 1234,
        sha256: Digest::of(name.as_bytes()),
        archive: archive.to_owned(),
        path: format!("pool/main/{name}_{version}_amd64.deb"),
        manual: name == "nginx",
    }
}

fn release(archive: &str, suite: &str, valid_until: Option<Timestamp>) -> LockedRelease {
    LockedRelease {
        archive: archive.to_owned(),
        suite: suite.to_owned(),
        version: "13.7".to_owned(),
        date: Timestamp(1_768_003_200),
        valid_until,
        sha256: Digest::of(suite.as_bytes()),
        signers: vec!["41587F7DB8C774BCCF131416762F67A0B2C39DE4".to_owned()],
    }
}

fn keys() -> BTreeMap<String, Digest> {
    [("our.asc".to_owned(), Digest::of(b"a key"))].into()
}

fn system() -> System {
    let source = Source {
        enable: true,
        archive: "debian".into(),
        suite: "trixie".into(),
        components: vec!["main".into()],
        pockets: [("security".to_owned(), true), ("backports".to_owned(), false)].into(),
        mirrors: vec!["http://mirror/debian".into()],
        keys: vec!["our.asc".into()],
    };
    let wanted =
        |version: Option<&str>| Package { enable: true, version: version.map(str::to_owned), suite: None };
    System {
        name: "web".into(),
        arch: Arch::Amd64,
        sources: [("debian".to_owned(), source.clone())].into(),
        tools: source,
        packages: [("nginx".to_owned(), wanted(Some("1.26*"))), ("curl".to_owned(), wanted(None))].into(),
        pins: [(
            "linux-*".to_owned(),
            Pin { suite: Some("trixie-backports".into()), priority: 500, version: None },
        )]
        .into(),
        local_debs: [("agent".to_owned(), system::LocalDeb { enable: true, path: "debs/agent.deb".into() })]
            .into(),
        kernel: system::Kernel { package: "linux-image-cloud-amd64".into(), ..system::Kernel::default() },
        ..System::default()
    }
}

pub fn lock() -> Lock {
    let mut lock = Lock {
        goals: Goals::of(&system(), &keys(), &["e2fsprogs", "grub-pc-bin"], &["qemu-system-x86"]),
        releases: vec![
            release("debian", "trixie", None),
            release("debian-security", "trixie-security", Some(Timestamp(1_768_603_200))),
        ],
        packages: vec![
            package("nginx", "1.26.3-3+deb13u1", "debian"),
            package("curl", "8.14.1-2", "debian"),
            package("openssl", "3.5.1-1+deb13u2", "debian-security"),
            package("agent", "2:1.0~rc1", "local"),
        ],
        tools: vec![package("e2fsprogs", "1.47.2-3", "debian")],
        vm_tools: vec![package("qemu-system-x86", "1:10.0.2", "debian")],
    };
    lock.sort();
    lock
}

#[test]
fn a_lock_reads_well() {
    insta::assert_snapshot!(lock().print());
}

#[test]
fn it_is_written_again_byte_for_byte() {
    let text = lock().print();
    let read = Lock::parse(&text, "web.lock").unwrap();
    assert_eq!(read, lock());
    assert_eq!(read.print(), text);
    // The order in which packages were found doesn't matter.
    let mut shuffled = lock();
    shuffled.packages.reverse();
    shuffled.releases.reverse();
    assert_eq!(shuffled.print(), text);
}

#[test]
fn it_satisfies_what_it_was_made_for() {
    let goals = Goals::of(&system(), &keys(), &["e2fsprogs", "grub-pc-bin"], &["qemu-system-x86"]);
    lock().satisfies(&goals).unwrap();
    // Where packages come from is transport, and a name is only a name.
    let mut other = system();
    other.sources.get_mut("debian").unwrap().mirrors = vec!["http://elsewhere/debian".into()];
    other.name = "other".into();
    lock()
        .satisfies(&Goals::of(&other, &keys(), &["e2fsprogs", "grub-pc-bin"], &["qemu-system-x86"]))
        .unwrap();
}

#[test]
fn every_difference_to_the_profile_is_named() {
    let mut other = system();
    other.packages.remove("curl");
    other.packages.get_mut("nginx").unwrap().version = None;
    other.packages.insert("vim".into(), Package { enable: true, ..Package::default() });
    other.packages.insert("off".into(), Package::default());
    other.pins.clear();
    other.recommends = true;
    other.kernel.package = "linux-image-amd64".into();
    other.local_debs.get_mut("agent").unwrap().path = "debs/agent-2.deb".into();
    other.sources.get_mut("debian").unwrap().pockets.insert("backports".into(), true);
    other.tools.suite = "forky".into();
    let file = system::Fetch {
        enable: true,
        url: "http://x/y".into(),
        sha256: Digest::of(b"y"),
        mode: String::new(),
        user: String::new(),
        group: String::new(),
    };
    other.fetch.insert("/opt/y".into(), file);
    let changed = [("our.asc".to_owned(), Digest::of(b"another key"))].into();
    let goals = Goals::of(&other, &changed, &["e2fsprogs", "mtools"], &["qemu-system-x86"]);
    insta::assert_snapshot!(lock().satisfies(&goals).unwrap_err());
}

#[test]
fn what_changed_is_told_in_lines() {
    let (old, mut new) = (lock(), lock());
    new.releases[0].sha256 = Digest::of(b"newer");
    new.releases[0].date = Timestamp(1_769_003_200);
    new.releases.remove(1);
    new.packages.retain(|p| p.name != "curl");
    new.packages.push(package("vim", "2:9.1", "debian"));
    new.packages[1].version = "1.28.0-1".into();
    new.packages[1].sha256 = Digest::of(b"newer");
    new.tools[0].sha256 = Digest::of(b"rebuilt");
    insta::assert_snapshot!(diff(&old, &new));
    assert!(diff(&old, &old).is_empty());
}

/// A lock's text with one change, and what is said of it.
#[track_caller]
fn wrong(name: &str, from: &str, to: &str) {
    let text = lock().print();
    assert!(text.contains(from), "{name}: no `{from}` in the lock");
    let error = Lock::parse(&text.replacen(from, to, 1), "web.lock").unwrap_err();
    insta::assert_snapshot!(format!("wrong_lock__{name}"), error);
}

#[test]
fn wrong_locks() {
    wrong("newer", "version = 1\n", "version = 2\nnovelty = true\n");
    wrong("version_zero", "version = 1\n", "version = 0\n");
    wrong("version_missing", "version = 1\n", "");
    wrong("version_text", "version = 1\n", "version = \"1\"\n");
    wrong("no_toml", "[goals]", "[goals");
    wrong("conflict_markers", "[[release]]", "<<<<<<< HEAD\n[[release]]");
    wrong("unknown_field", "recommends = false", "recommends = false\nsuggests = false");
    wrong("missing_field", "recommends = false\n", "");
    wrong("missing_set", "[vm-tools]\npackages", "[goals.fetch]\npackages");
    wrong("unknown_arch", "arch = \"amd64\"", "arch = \"m68k\"");
    wrong("date_with_zone", "date = 2026-01-10T00:00:00Z", "date = 2026-01-10T00:00:00+01:00");
    wrong("date_text", "date = 2026-01-10T00:00:00Z", "date = \"today\"");
    wrong("expired_before_made", "valid-until = 2026-01-16", "valid-until = 2025-01-16");
    wrong("nobody_signed", "signers = [\"41587F7DB8C774BCCF131416762F67A0B2C39DE4\"]", "signers = []");
    wrong(
        "release_twice",
        "archive = \"debian-security\"\nsuite = \"trixie-security\"",
        "archive = \"debian\"\nsuite = \"trixie\"",
    );
    wrong("digest_short", &Digest::of(b"curl").to_string(), "abc123");
    wrong("digest_other", &Digest::of(b"curl").to_string(), &"z".repeat(64));
    wrong("digest_missing", &format!("sha256 = \"{}\", ", Digest::of(b"curl")), "");
    wrong("package_twice", "name = \"curl\"", "name = \"nginx\"");
    wrong("package_other_arch", "arch = \"amd64\", size", "arch = \"arm64\", size");
    wrong("package_name", "name = \"curl\"", "name = \"Curl!\"");
    wrong("package_version", "version = \"8.14.1-2\"", "version = \"8.14 1\"");
    wrong("package_empty", "size = 1234", "size = 0");
    wrong("package_negative", "size = 1234", "size = -1");
    wrong("package_unknown_archive", "archive = \"debian\", path", "archive = \"elsewhere\", path");
    wrong("path_leads_out", "pool/main/curl", "pool/../../etc/curl");
    wrong("path_absolute", "path = \"pool/main/curl", "path = \"/etc/curl");
    wrong("path_is_a_url", "path = \"pool/main/curl", "path = \"http://evil/curl");
    wrong("unknown_package_field", "manual = true", "manually = true");
}

#[test]
fn a_cut_lock_is_refused() {
    let text = lock().print();
    for at in (0..text.len()).filter(|at| text.is_char_boundary(*at)) {
        // Only the last newline may be missing.
        assert_eq!(Lock::parse(&text[..at], "web.lock").is_ok(), at + 1 >= text.len(), "cut at {at}");
    }
}

fn any_package() -> impl Strategy<Value = LockedPackage> {
    let fields =
        ("[a-z0-9][a-z0-9+.-]{1,9}", "[0-9][A-Za-z0-9.+~:-]{0,9}", any::<[u8; 32]>(), 1..u64::MAX / 2);
    (fields, any::<bool>(), "[ -~]{0,9}é?").prop_map(|((name, version, sha256, size), all, odd)| {
        LockedPackage {
            arch: if all { "all" } else { "amd64" }.to_owned(),
            path: format!("pool/{}x", odd.replace(['/', '\\'], "_").replace("..", "")),
            archive: "debian".to_owned(),
            sha256: Digest(sha256),
            manual: all,
            name,
            version,
            size,
        }
    })
}

fn any_lock() -> impl Strategy<Value = Lock> {
    let sets = proptest::collection::vec(any_package(), 0..6);
    let names = proptest::collection::btree_map("\\PC{0,8}", proptest::option::of("\\PC{0,8}"), 0..4);
    (sets, names, -1_000_000_000_i64..10_000_000_000).prop_map(|(mut packages, names, date)| {
        let mut lock = lock();
        packages.sort();
        packages.dedup_by(|a, b| a.name == b.name);
        lock.packages = packages;
        lock.releases[0].date = Timestamp(date);
        let wanted = |version| Package { enable: true, version, suite: None };
        lock.goals.fetch = names.keys().map(|n| (n.clone(), Digest::of(n.as_bytes()))).collect();
        lock.goals.packages = names.into_iter().map(|(n, v)| (n, wanted(v))).collect();
        lock
    })
}

proptest! {
    #[test]
    fn any_lock_reads_back(lock in any_lock()) {
        let text = lock.print();
        let read = Lock::parse(&text, "x.lock").unwrap();
        prop_assert_eq!(read.print(), text);
        prop_assert_eq!(read, lock);
    }

    #[test]
    fn no_change_makes_it_panic(at in 0..4000_usize, len in 0..9_usize, put in "\\PC{0,6}") {
        let mut text = lock().print();
        let floor = |at: usize, text: &str| (0..=at.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap();
        let (start, end) = (floor(at, &text), floor(at + len, &text));
        text.replace_range(start..end, &put);
        if let Ok(lock) = Lock::parse(&text, "x.lock") {
            let again = lock.print();
            prop_assert_eq!(Lock::parse(&again, "x.lock").unwrap(), lock);
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in "(?s)(version = 1\n)?(\\PC|\n){0,200}") {
        let _ = Lock::parse(&text, "x.lock");
    }
}
