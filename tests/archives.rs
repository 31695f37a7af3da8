//! Archives that are signed, and those that are wrong: each refused at the right place, nothing of it kept.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sequoia_openpgp::Cert;
use sequoia_openpgp::armor;
use sequoia_openpgp::cert::CertBuilder;
use sequoia_openpgp::crypto::KeyPair;
use sequoia_openpgp::policy::StandardPolicy;
use sequoia_openpgp::serialize::SerializeInto;
use sequoia_openpgp::serialize::stream::{Armorer, Message, Signer};
use sequoia_openpgp::types::HashAlgorithm;

use kiln::arch::Arch;
use kiln::date::{DAY, Timestamp};
use kiln::digest::Digest;
use kiln::fetch::{Environment, Mirrors, Options, Remote};
use kiln::package::LockedRelease;
use kiln::source::debian::archive::{ArchiveError, Updater};
use kiln::source::debian::index::IndexFile;
use kiln::source::debian::release::Release;
use kiln::source::debian::signature::Keyring;
use kiln::system::Source;
use proptest::prelude::*;

use crate::server::{Reply, Server};

const PACKAGES: &str = "Package: hello\nVersion: 1.0\nArchitecture: amd64\nFilename: pool/hello.deb\n\n";

/// When all this happens: 2026-01-10T00:00:00Z.
const NOW: Timestamp = Timestamp(1_768_003_200);

fn system_time(time: Timestamp) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(time.0 as u64)
}

/// A key made for one test.
struct TestKey(Cert);

impl TestKey {
    fn new() -> TestKey {
        TestKey::valid_for(None)
    }

    /// A key made a hundred days ago that is valid for so many days.
    fn valid_for(days: Option<u64>) -> TestKey {
        let builder = CertBuilder::new()
            .add_userid("Test Archive")
            .set_creation_time(system_time(NOW.plus(-100 * DAY)))
            .set_validity_period(days.map(|d| Duration::from_secs(d * DAY as u64)))
            .add_signing_subkey();
        TestKey(builder.generate().unwrap().0)
    }

    fn public(&self) -> Vec<u8> {
        self.0.armored().to_vec().unwrap()
    }

    fn pair(&self, time: Timestamp) -> KeyPair {
        let policy = StandardPolicy::new();
        let mut keys =
            self.0.keys().with_policy(&policy, Some(system_time(time))).alive().for_signing().secret();
        keys.next().unwrap().key().clone().into_keypair().unwrap()
    }

    fn clearsign(&self, text: &str, time: Timestamp, hash: HashAlgorithm) -> Vec<u8> {
        let mut out = Vec::new();
        let signer = Signer::new(Message::new(&mut out), self.pair(time)).unwrap().cleartext();
        let signer = signer.creation_time(system_time(time)).hash_algo(hash).unwrap();
        let mut message = signer.build().unwrap();
        message.write_all(text.as_bytes()).unwrap();
        message.finalize().unwrap();
        out
    }

    fn detach(&self, text: &str, time: Timestamp) -> Vec<u8> {
        let mut out = Vec::new();
        let message = Armorer::new(Message::new(&mut out)).kind(armor::Kind::Signature).build().unwrap();
        let signer = Signer::new(message, self.pair(time)).unwrap().detached();
        let mut message = signer.creation_time(system_time(time)).build().unwrap();
        message.write_all(text.as_bytes()).unwrap();
        message.finalize().unwrap();
        out
    }
}

fn rfc5322(time: Timestamp) -> String {
    let iso = time.to_string();
    let (date, clock) = iso.trim_end_matches('Z').split_once('T').unwrap();
    let parts: Vec<&str> = date.split('-').collect();
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    format!("Sat, {} {} {} {clock} UTC", parts[2], months[parts[1].parse::<usize>().unwrap() - 1], parts[0])
}

/// An archive in a folder, which a test changes before it is signed.
struct TestArchive {
    folder: tempfile::TempDir,
    key: TestKey,
    signed_at: Timestamp,
    hash: HashAlgorithm,
    fields: Vec<(&'static str, String)>,
    /// Listed files by path below the suite.
    files: BTreeMap<String, Vec<u8>>,
    /// A last change of the signed file.
    change: Option<(&'static str, &'static str)>,
}

fn xz(text: &str) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 0);
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

impl TestArchive {
    fn new() -> TestArchive {
        let field = |name, value: &str| (name, value.to_owned());
        TestArchive {
            folder: tempfile::tempdir().unwrap(),
            key: TestKey::new(),
            signed_at: NOW.plus(-DAY),
            hash: HashAlgorithm::SHA256,
            fields: vec![
                field("Origin", "Test"),
                field("Suite", "stable"),
                field("Codename", "trixie"),
                field("Version", "13.7"),
                field("Date", &rfc5322(NOW.plus(-DAY))),
                field("Valid-Until", &rfc5322(NOW.plus(DAY))),
                field("Acquire-By-Hash", "yes"),
                field("Components", "main contrib"),
                field("Architectures", "amd64 arm64"),
            ],
            files: BTreeMap::from([
                ("main/binary-amd64/Packages".to_owned(), PACKAGES.as_bytes().to_vec()),
                ("main/binary-amd64/Packages.xz".to_owned(), xz(PACKAGES)),
            ]),
            change: None,
        }
    }

    fn set(mut self, name: &str, value: &str) -> TestArchive {
        let field = self.fields.iter_mut().find(|(n, _)| *n == name).unwrap();
        value.clone_into(&mut field.1);
        self
    }

    fn text(&self) -> String {
        let mut text: String = self.fields.iter().map(|(n, v)| format!("{n}: {v}\n")).collect();
        text += "SHA256:\n";
        for (path, bytes) in &self.files {
            text += &format!(" {} {} {path}\n", Digest::of(bytes), bytes.len());
        }
        text
    }

    fn suite(&self) -> PathBuf {
        self.folder.path().join("debian/dists/trixie")
    }

    /// Writes the files, under their names and their digests, and the signed Release.
    fn write(&self) -> &TestArchive {
        self.write_files();
        let mut signed =
            String::from_utf8(self.key.clearsign(&self.text(), self.signed_at, self.hash)).unwrap();
        if let Some((from, to)) = self.change {
            assert!(signed.contains(from));
            signed = signed.replacen(from, to, 1);
        }
        fs::write(self.suite().join("InRelease"), signed).unwrap();
        self
    }

    fn write_signed(&self, text: &str) {
        let signed = self.key.clearsign(text, self.signed_at, self.hash);
        fs::write(self.suite().join("InRelease"), signed).unwrap();
    }

    fn write_files(&self) {
        fs::create_dir_all(self.suite()).unwrap();
        for (path, bytes) in &self.files {
            let path = self.suite().join(path);
            // As on real mirrors, the uncompressed file is listed and not there.
            if path.extension().is_none() && self.files.len() > 1 {
                continue;
            }
            let by_hash = path.parent().unwrap().join("by-hash/SHA256");
            fs::create_dir_all(&by_hash).unwrap();
            fs::write(by_hash.join(Digest::of(bytes).to_string()), bytes).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }

    fn source(&self) -> Source {
        Source {
            enable: true,
            archive: "debian".into(),
            suite: "trixie".into(),
            components: vec!["main".into()],
            keys: vec!["archive.asc".into()],
            ..Source::default()
        }
    }

    fn update(&self) -> Result<(Vec<LockedRelease>, Vec<IndexFile>), ArchiveError> {
        self.update_from(&self.source(), &[self.folder.path().join("debian").display().to_string()], &[])
    }

    fn update_from(
        &self,
        source: &Source,
        mirrors: &[String],
        known: &[LockedRelease],
    ) -> Result<(Vec<LockedRelease>, Vec<IndexFile>), ArchiveError> {
        let mirrors: Vec<String> = mirrors.iter().map(|m| format!("debian={m}")).collect();
        let mirrors = Mirrors::new(&mirrors, &Environment::default()).unwrap();
        let kept = self.folder.path().join("kept");
        let remote = Remote {
            mirrors: &mirrors,
            kept: &|digest| kept.join(digest.to_string()),
            partial: &|digest| kept.join(format!("partial/{digest}")),
            options: Options { backoff: Duration::from_millis(5), ..Options::default() },
        };
        let read_key = |file: &str| match file {
            "archive.asc" => Ok(self.key.public()),
            "garbage.asc" => Ok(b"no key at all".to_vec()),
            _ => Err("no such file".to_owned()),
        };
        Updater::new(&remote, &read_key, NOW, known).update(&[source], Arch::Amd64)
    }

    /// The error with folders and fingerprints that change from run to run replaced.
    fn told(&self, error: &ArchiveError) -> String {
        let text = error.to_string().replace(&self.folder.path().display().to_string(), "TEST");
        let mut out = String::new();
        let mut word = String::new();
        for c in text.chars().chain(['\n']) {
            if c.is_ascii_hexdigit() {
                word.push(c);
                continue;
            }
            out.push_str(if word.len() >= 16 { "HEX" } else { &word });
            word.clear();
            out.push(c);
        }
        out.trim_end().to_owned()
    }

    /// Files that were kept.
    fn kept(&self) -> Vec<String> {
        fn walk(folder: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                match entry.file_type().unwrap().is_dir() {
                    true => walk(&entry.path(), found),
                    false => found.push(entry.path().display().to_string()),
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.folder.path().join("kept"), &mut found);
        found
    }
}

/// Expects a refusal that keeps nothing, and shows it.
#[track_caller]
fn refused(name: &str, archive: &TestArchive) {
    refused_from(name, archive, &archive.source());
}

#[track_caller]
fn refused_from(name: &str, archive: &TestArchive, source: &Source) {
    let mirror = archive.folder.path().join("debian").display().to_string();
    let error = archive.update_from(source, &[mirror], &[]).unwrap_err();
    insta::assert_snapshot!(format!("wrong_archive__{name}"), archive.told(&error));
    assert_eq!(archive.kept(), Vec::<String>::new(), "{name}: something was kept");
}

#[test]
fn a_good_archive_gives_its_release_and_indexes() {
    let archive = TestArchive::new();
    let (releases, indexes) = archive.write().update().unwrap();
    let bytes = fs::read(archive.suite().join("InRelease")).unwrap();
    assert_eq!(
        releases,
        [LockedRelease {
            archive: "debian".into(),
            suite: "trixie".into(),
            version: "13.7".into(),
            date: NOW.plus(-DAY),
            valid_until: Some(NOW.plus(DAY)),
            sha256: Digest::of(&bytes),
            signers: vec![archive.key.0.fingerprint().to_hex()],
        }]
    );
    let [index] = indexes.as_slice() else { panic!("{} indexes", indexes.len()) };
    assert_eq!((index.text.as_str(), index.origin.as_str()), (PACKAGES, "Test"));
    assert_eq!((index.suite.as_str(), index.codename.as_str()), ("trixie", "trixie"));
}

#[test]
fn a_detached_signature_does_as_well() {
    let archive = TestArchive::new();
    archive.write_files();
    let text = archive.text();
    fs::write(archive.suite().join("Release"), &text).unwrap();
    fs::write(archive.suite().join("Release.gpg"), archive.key.detach(&text, NOW.plus(-DAY))).unwrap();
    let (releases, _) = archive.update().unwrap();
    assert_eq!(releases[0].sha256, Digest::of(text.as_bytes()));

    fs::write(archive.suite().join("Release"), text.replace("13.7", "13.8")).unwrap();
    let error = archive.update().unwrap_err();
    insta::assert_snapshot!("wrong_archive__detached_tampered", archive.told(&error));
}

#[test]
fn packages_for_all_architectures_may_have_an_index_of_their_own() {
    let mut archive = TestArchive::new().set("Architectures", "all amd64");
    archive.files.insert("main/binary-all/Packages.xz".to_owned(), xz("Package: doc\n\n"));
    let (_, indexes) = archive.write().update().unwrap();
    assert_eq!(indexes.iter().map(|i| i.arch.as_str()).collect::<Vec<_>>(), ["amd64", "all"]);
    assert_eq!(indexes[1].text, "Package: doc\n\n");

    // Debian has the index as well, and says that it is not to be used.
    archive.fields.push(("No-Support-for-Architecture-all", "Packages".to_owned()));
    assert_eq!(archive.write().update().unwrap().1.len(), 1);
}

#[test]
fn a_flat_repository_is_a_path() {
    let archive = TestArchive::new();
    let root = archive.folder.path().join("debian/sub");
    fs::create_dir_all(&root).unwrap();
    fs::write(root.join("Packages"), PACKAGES).unwrap();
    let (digest, size) = (Digest::of(PACKAGES.as_bytes()), PACKAGES.len());
    let text = format!("Date: {}\nSHA256:\n {digest} {size} Packages\n", rfc5322(NOW));
    fs::write(root.join("InRelease"), archive.key.clearsign(&text, NOW, HashAlgorithm::SHA512)).unwrap();
    let base = archive.folder.path().join("debian").display().to_string();
    for (mirror, suite) in
        [(base.clone(), "sub/"), (format!("{base}/sub"), "./"), (format!("{base}/sub"), "/")]
    {
        let source = Source { suite: suite.into(), components: Vec::new(), ..archive.source() };
        let updated = archive.update_from(&source, &[mirror], &[]);
        match suite {
            "/" => assert!(updated.is_err(), "a path from the root is no suite"),
            _ => assert_eq!(updated.unwrap().1[0].text, PACKAGES, "{suite}"),
        }
    }
}

#[test]
fn no_change_of_a_signed_file_changes_what_is_read() {
    let archive = TestArchive::new();
    let signed = archive.key.clearsign(&archive.text(), NOW, HashAlgorithm::SHA256);
    let mut keyring = Keyring::default();
    keyring.add("key", &archive.key.public()).unwrap();
    let good = Release::from_inrelease(&signed, &keyring, NOW).unwrap();
    proptest!(|(at in 0..signed.len(), cut in 0..3_usize, put in proptest::collection::vec(any::<u8>(), 0..4))| {
        let mut changed = signed.clone();
        changed.splice(at..(at + cut).min(signed.len()), put);
        if let Ok(mut read) = Release::from_inrelease(&changed, &keyring, NOW) {
            // White space at the end of a line and the armour's own lines are not signed.
            read.digest = good.digest;
            prop_assert_eq!(&read, &good);
        }
    });
    proptest!(|(bytes in proptest::collection::vec(any::<u8>(), 0..200))| {
        let _ = Keyring::default().add("key", &bytes);
        let _ = Release::from_detached(b"Date: x", &bytes, &keyring, NOW);
    });
}

#[test]
fn a_lock_made_again_fetches_only_the_signed_file() {
    let archive = TestArchive::new();
    archive.write();
    let root = archive.folder.path().to_owned();
    let server = Server::start(move |request, _| match fs::read(root.join(&request.path[1..])) {
        Ok(bytes) => Reply::of(&bytes, request),
        Err(_) => Reply::status(404),
    });
    let mirrors = [format!("{}/debian", server.url)];
    let first = archive.update_from(&archive.source(), &mirrors, &[]).unwrap();
    let again = archive.update_from(&archive.source(), &mirrors, &first.0).unwrap();
    assert_eq!(first, again);
    let asked: Vec<String> = server.requests().into_iter().map(|r| r.path).collect();
    let index = Digest::of(&archive.files["main/binary-amd64/Packages.xz"]);
    assert_eq!(
        asked,
        [
            "/debian/dists/trixie/InRelease".to_owned(),
            format!("/debian/dists/trixie/main/binary-amd64/by-hash/SHA256/{index}"),
            "/debian/dists/trixie/InRelease".to_owned(),
        ]
    );
    // A damaged copy is fetched anew.
    let [kept] = archive.kept().try_into().unwrap();
    fs::write(&kept, "damaged").unwrap();
    assert_eq!(archive.update_from(&archive.source(), &mirrors, &[]).unwrap(), first);
}

#[test]
fn the_next_mirror_helps_out() {
    let (good, old) = (TestArchive::new(), TestArchive::new().set("Valid-Until", &rfc5322(NOW.plus(-3600))));
    good.write();
    old.write();
    let mirrors = ["old", "nowhere", "good"].map(|name| match name {
        "good" => good.folder.path().join("debian").display().to_string(),
        "old" => old.folder.path().join("debian").display().to_string(),
        _ => "/nowhere".to_owned(),
    });
    assert_eq!(good.update_from(&good.source(), &mirrors, &[]).unwrap().0.len(), 1);
}

#[test]
fn signatures_that_are_not_good() {
    let archive = TestArchive::new();
    archive.write_files();
    fs::write(archive.suite().join("InRelease"), archive.text()).unwrap();
    refused("unsigned", &archive);

    let archive = TestArchive::new();
    let stranger = TestKey::new();
    archive.write_files();
    let signed = stranger.clearsign(&archive.text(), NOW, HashAlgorithm::SHA256);
    fs::write(archive.suite().join("InRelease"), signed).unwrap();
    refused("stranger", &archive);

    refused("tampered", TestArchive { change: Some(("13.7", "13.8")), ..TestArchive::new() }.write());
    refused("weak_hash", TestArchive { hash: HashAlgorithm::SHA1, ..TestArchive::new() }.write());
    let key = TestKey::valid_for(Some(99));
    let archive = TestArchive { key, signed_at: NOW.plus(-3 * DAY), ..TestArchive::new() };
    refused("expired_key", archive.write());
    let before = Some(("-----BEGIN PGP SIGNED", "Origin: Evil\n\n-----BEGIN PGP SIGNED"));
    refused("text_before", TestArchive { change: before, ..TestArchive::new() }.write());
    let garbled = Some(("-----BEGIN PGP SIGNATURE-----\n", "-----BEGIN PGP SIGNATURE-----\n\nAAAA"));
    refused("garbled", TestArchive { change: garbled, ..TestArchive::new() }.write());
    let future = TestArchive { signed_at: NOW.plus(2 * DAY), ..TestArchive::new() };
    refused("signed_in_the_future", future.write());
}

#[test]
fn releases_that_are_not_what_was_asked_for() {
    refused("expired", TestArchive::new().set("Valid-Until", &rfc5322(NOW.plus(-3600))).write());
    refused("future", TestArchive::new().set("Date", &rfc5322(NOW.plus(DAY))).write());
    refused("other_suite", TestArchive::new().set("Codename", "bookworm").set("Suite", "oldstable").write());
    refused("no_component", TestArchive::new().set("Components", "contrib non-free").write());
    refused("no_architecture", TestArchive::new().set("Architectures", "arm64 riscv64").write());
    refused("no_date", TestArchive::new().set("Date", "yesterday").write());

    let archive = TestArchive::new();
    let (mut known, _) = archive.write().update().unwrap();
    known[0].date = NOW;
    let mirror = archive.folder.path().join("debian").display().to_string();
    let error = archive.update_from(&archive.source(), &[mirror], &known).unwrap_err();
    insta::assert_snapshot!("wrong_archive__older", archive.told(&error));
}

/// Expects a refusal of a well signed text.
#[track_caller]
fn refused_text(name: &str, change: impl Fn(&str) -> String) {
    let archive = TestArchive::new();
    archive.write_files();
    archive.write_signed(&change(&archive.text()));
    refused(name, &archive);
}

#[test]
fn releases_that_are_not_well_formed() {
    let weak = |text: &str| text.replace("SHA256:", "MD5Sum:");
    let table = |text: &str| text.replace("SHA256:\n", "SHA256:\n abc 12 main/x\n");
    let second = |text: &str| format!("{text}\nOrigin: Second\n");
    let twice = |text: &str| format!("{text}Origin: Again\n");
    let nothing = |_: &str| String::new();
    refused_text("weak_digests", weak);
    refused_text("bad_table", table);
    refused_text("second_paragraph", second);
    refused_text("field_twice", twice);
    refused_text("empty", nothing);
}

#[test]
fn indexes_that_are_not_as_listed() {
    let archive = TestArchive::new();
    archive.write();
    let folder = archive.suite().join("main/binary-amd64");
    fs::remove_dir_all(folder.join("by-hash")).unwrap();
    let mut bytes = fs::read(folder.join("Packages.xz")).unwrap();
    bytes[30] ^= 1;
    fs::write(folder.join("Packages.xz"), &bytes).unwrap();
    refused("index_other_bytes", &archive);
    fs::write(folder.join("Packages.xz"), "short").unwrap();
    refused("index_other_size", &archive);
    fs::remove_file(folder.join("Packages.xz")).unwrap();
    refused("index_gone", &archive);

    let mut archive = TestArchive::new();
    archive.files.clear();
    archive.files.insert("main/Contents-amd64".to_owned(), Vec::new());
    refused("index_not_listed", archive.write());
}

#[test]
fn indexes_that_can_not_be_unpacked() {
    // Their bytes are as listed and signed, so they are kept; only their text is refused.
    for (name, bytes) in
        [("index_no_xz", b"not compressed".to_vec()), ("index_too_long", xz(&PACKAGES.repeat(9)))]
    {
        let mut archive = TestArchive::new();
        archive.files.insert("main/binary-amd64/Packages.xz".to_owned(), bytes);
        let error = archive.write().update().unwrap_err();
        insta::assert_snapshot!(format!("wrong_archive__{name}"), archive.told(&error));
    }
}

#[test]
fn sources_that_can_not_be_used() {
    let archive = TestArchive::new();
    archive.write();
    let source = archive.source();
    let keys = |file: &str| Source { keys: vec![file.to_owned()], ..source.clone() };
    refused_from("key_missing", &archive, &keys("nowhere.asc"));
    refused_from("key_garbage", &archive, &keys("garbage.asc"));
    refused_from("key_of_debian_only", &archive, &Source { keys: Vec::new(), ..source.clone() });
    refused_from("no_mirror", &archive, &Source { archive: "other".into(), ..source.clone() });
    refused_from("no_suite", &archive, &Source { suite: "forky".into(), ..source.clone() });
    refused_from("suite_leads_out", &archive, &Source { suite: "../../secret".into(), ..source.clone() });
    let component = vec!["main/../../x".to_owned()];
    refused_from("component_leads_out", &archive, &Source { components: component, ..source });
}

#[test]
fn pockets_lie_where_debian_keeps_them() {
    let source = Source {
        archive: "debian".into(),
        suite: "trixie".into(),
        pockets: [("updates", true), ("security", true), ("backports", false)]
            .map(|(name, on)| (name.to_owned(), on))
            .into(),
        ..Source::default()
    };
    let suites = kiln::source::debian::archive::suites(&source);
    let names: Vec<_> = suites.iter().map(|s| (s.archive.as_str(), s.suite.as_str())).collect();
    let expected =
        [("debian", "trixie"), ("debian-security", "trixie-security"), ("debian", "trixie-updates")];
    assert_eq!(names, expected);
}
