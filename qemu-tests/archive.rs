//! Debian's real archives, and one made by apt's and GnuPG's own tools.

use std::fs;
use std::path::Path;
use std::process::Command;

use kiln::arch::Arch;
use kiln::date::{DAY, Timestamp};
use kiln::digest::Digest;
use kiln::fetch::{Download, Environment, Mirrors, Options, Remote, download};
use kiln::package::LockedRelease;
use kiln::source::debian::archive::{ArchiveError, Updater, suites};
use kiln::source::debian::index::IndexFile;
use kiln::source::debian::release::Release;
use kiln::source::debian::signature::Keyring;
use kiln::system::Source;

fn source(suite: &str, pockets: &[&str]) -> Source {
    Source {
        enable: true,
        archive: "debian".into(),
        suite: suite.into(),
        components: vec!["main".into()],
        pockets: pockets.iter().map(|&p| (p.to_owned(), true)).collect(),
        ..Source::default()
    }
}

fn update(
    folder: &Path,
    mirrors: &Mirrors,
    source: &Source,
) -> Result<(Vec<LockedRelease>, Vec<IndexFile>), ArchiveError> {
    let kept = |digest: &Digest| folder.join(digest.to_string());
    let partial = |digest: &Digest| folder.join(format!("{digest}.partial"));
    let remote = Remote { mirrors, kept: &kept, partial: &partial, options: Options::default() };
    let read_key = |file: &str| fs::read(folder.join(file)).map_err(|e| e.to_string());
    Updater::new(&remote, &read_key, Timestamp::now(), &[]).update(&[source], Arch::Amd64)
}

#[test]
fn trixie_and_all_its_pockets() {
    let folder = tempfile::tempdir().unwrap();
    let mirrors = Mirrors::of_host(&[]).unwrap();
    let source = source("trixie", &["updates", "security", "backports"]);
    let (releases, indexes) = update(folder.path(), &mirrors, &source).unwrap();
    assert_eq!(releases.len(), suites(&source).len());
    assert_eq!(indexes.len(), 4);
    let packages = |index: &IndexFile| index.text.lines().filter(|l| l.starts_with("Package: ")).count();
    assert!(packages(&indexes[0]) > 60_000, "{}", packages(&indexes[0]));
    let backports = indexes.iter().find(|i| i.suite == "trixie-backports").unwrap();
    assert!(backports.not_automatic && backports.but_automatic_upgrades);
    assert!(releases.iter().all(|r| !r.signers.is_empty()), "{releases:?}");

    // One of its packages, as it is fetched for a build.
    let field = |stanza: &str, name: &str| {
        stanza.lines().find_map(|l| l.strip_prefix(&format!("{name}: "))).unwrap().to_owned()
    };
    let stanza = indexes[0].text.split("\n\n").find(|s| s.starts_with("Package: hostname\n")).unwrap();
    let item = Download {
        sha256: field(stanza, "SHA256").parse().unwrap(),
        size: Some(field(stanza, "Size").parse().unwrap()),
        urls: mirrors.urls("debian", &field(stanza, "Filename")),
        snapshot: Vec::new(),
        partial: folder.path().join("deb.partial"),
        target: folder.path().join("deb"),
        label: "hostname".into(),
    };
    download(vec![item.clone()], &Options::default()).unwrap();
    assert_eq!(Digest::of(&fs::read(&item.target).unwrap()), item.sha256);
}

#[test]
fn bookworm_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let mirrors = Mirrors::of_host(&[]).unwrap();
    let (releases, _) =
        update(folder.path(), &mirrors, &source("bookworm", &["updates", "security"])).unwrap();
    assert_eq!(releases.len(), 3);
}

/// One bit of the real file, wherever it lies, makes it worthless.
#[test]
fn a_change_of_the_real_file_is_found() {
    let mirrors = Mirrors::of_host(&[]).unwrap();
    let urls = mirrors.urls("debian", "dists/trixie/InRelease");
    let client = kiln::fetch::Client::new();
    let bytes = urls.iter().find_map(|url| client.get(url, 1 << 24).ok()).expect("a mirror");
    let (keyring, now) = (Keyring::debian().unwrap(), Timestamp::now());
    let release = Release::from_inrelease(&bytes, &keyring, now).unwrap();
    // Years later, when the keys have expired, the locked release still verifies at its own date, and only there.
    assert_eq!(Release::from_inrelease(&bytes, &keyring, release.date).unwrap(), release);
    assert!(Release::from_inrelease(&bytes, &keyring, release.date.plus(20 * 365 * DAY)).is_err());

    let signature = memchr::memmem::find(&bytes, b"-----BEGIN PGP SIGNATURE").unwrap();
    for at in (60..signature).step_by(signature / 20) {
        let mut changed = bytes.clone();
        changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
        assert!(Release::from_inrelease(&changed, &keyring, now).is_err(), "changed at {at}");
    }
}

fn run(folder: &Path, program: &str, args: &[&str]) -> Vec<u8> {
    let output = Command::new(program)
        .args(args)
        .current_dir(folder)
        .env("GNUPGHOME", folder.join("gnupg"))
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// What reprepro, aptly or a script around apt-ftparchive would publish.
#[test]
fn an_archive_made_by_apt_and_gnupg() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let binary = root.join("own/dists/stable/main/binary-amd64");
    fs::create_dir_all(&binary).unwrap();
    fs::create_dir_all(root.join("gnupg")).unwrap();
    let text =
        "Package: own\nVersion: 1\nArchitecture: amd64\nFilename: pool/own.deb\nSize: 1\nSHA256: 00\n\n";
    fs::write(binary.join("Packages"), text).unwrap();
    run(root, "gzip", &["-k", "own/dists/stable/main/binary-amd64/Packages"]);
    let fields = ["Suite=stable", "Components=main", "Architectures=amd64", "Origin=Own"];
    let fields = fields.map(|f| format!("APT::FTPArchive::Release::{f}"));
    let mut args: Vec<&str> = fields.iter().flat_map(|f| ["-o", f.as_str()]).collect();
    args.extend(["release", "own/dists/stable"]);
    let release = run(root, "apt-ftparchive", &args);
    fs::write(root.join("own/dists/stable/Release"), release).unwrap();
    let user = "Own Archive <own@example.org>";
    run(root, "gpg", &["--batch", "--passphrase", "", "--quick-generate-key", user, "rsa3072", "sign", "1y"]);
    fs::write(root.join("own.asc"), run(root, "gpg", &["--armor", "--export", user])).unwrap();

    let environment =
        Environment { mirror: Some(format!("own={}/own", root.display())), ..Environment::default() };
    let mirrors = Mirrors::new(&[], &environment).unwrap();
    let source = Source { archive: "own".into(), keys: vec!["own.asc".into()], ..source("stable", &[]) };
    assert!(update(root, &mirrors, &source).is_err(), "an unsigned archive was taken");

    run(
        root,
        "gpg",
        &[
            "--batch",
            "--armor",
            "--detach-sign",
            "-o",
            "own/dists/stable/Release.gpg",
            "own/dists/stable/Release",
        ],
    );
    let (detached, indexes) = update(root, &mirrors, &source).unwrap();
    assert_eq!(indexes[0].text, text);

    run(
        root,
        "gpg",
        &["--batch", "--clearsign", "-o", "own/dists/stable/InRelease", "own/dists/stable/Release"],
    );
    let (inline, again) = update(root, &mirrors, &source).unwrap();
    assert_eq!(again, indexes);
    assert_eq!(inline[0].signers, detached[0].signers);
    assert_ne!(inline[0].sha256, detached[0].sha256);
}
