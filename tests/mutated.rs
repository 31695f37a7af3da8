//! Every parser of outside bytes meets real inputs that were changed a little: it answers or refuses, and never panics, hangs
//! or takes memory without end. `scripts/fuzz` looks further with coverage, for as long as one likes; this runs anywhere, for
//! as many rounds as `KILN_ROUNDS` says.

use std::io::{self, Cursor, Read};
use std::time::{Duration, Instant};

use kiln::arch::Arch;
use kiln::date::Timestamp;
use kiln::lock::Lock;
use kiln::source::debian::control::paragraphs;
use kiln::source::debian::deb::{Deb, DebError};
use kiln::source::debian::index::{IndexFile, Universe};
use kiln::source::debian::relation;
use kiln::source::debian::release::{self, Release};
use kiln::source::debian::signature::Keyring;
use kiln::source::debian::version::Version;
use kiln::tree::Tree;

/// Rounds for each seed when nothing else is said: some seconds in all.
const ROUNDS: u32 = 400;
/// No input takes longer, on however busy a host.
const LIMIT: Duration = Duration::from_secs(10);

/// Numbers that are the same in every run (xorshift64*, Vigna 2016).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// What parsers stumble over.
const ODD: [&[u8]; 20] = [
    b"\0",
    b"\xff",
    b"\n",
    b"\n\n",
    b"\r",
    b" ",
    b":",
    b"-",
    b"~",
    b"|",
    b"(",
    b"99999999999999999999",
    b"-1",
    b"\"",
    b"[",
    b"]]",
    b"../",
    b"\xf0\x9f\xa6\x80",
    b"{",
    b"\\",
];

/// One to four changes: a bit turned, bytes taken out, doubled, cut off, or odd ones put in.
fn mutated(seed: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=numbers.below(4) {
        let at = numbers.below(bytes.len());
        let end = (at + 1 + numbers.below(40)).min(bytes.len());
        match numbers.below(6) {
            0 => bytes.iter_mut().skip(at).take(1).for_each(|b| *b ^= 1 << (at % 8)),
            1 => drop(bytes.drain(at.min(end)..end)),
            2 => {
                let copy = bytes.get(at..end).unwrap_or_default().to_vec();
                let to = numbers.below(bytes.len() + 1);
                drop(bytes.splice(to..to, copy));
            }
            3 if numbers.below(8) == 0 => bytes.truncate(at),
            _ => {
                let odd = ODD[numbers.below(ODD.len())];
                let until = if numbers.below(2) == 0 { at.min(bytes.len()) } else { end };
                drop(bytes.splice(at.min(until)..until, odd.iter().copied()));
            }
        }
    }
    bytes
}

/// Gives the parser every seed as it is, which it must take, and changed. It says whether it took what it was given.
fn survive(name: &str, seeds: &[&[u8]], parser: impl Fn(&[u8]) -> bool) {
    let rounds = std::env::var("KILN_ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(ROUNDS);
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    for (number, seed) in seeds.iter().enumerate() {
        assert!(parser(seed), "{name}: seed {number} is refused");
        for round in 0..rounds {
            let bytes = mutated(seed, &mut numbers);
            let begun = Instant::now();
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| parser(&bytes)));
            let took = begun.elapsed();
            if outcome.is_err() || took > LIMIT {
                let path = std::env::temp_dir().join(format!("kiln-{name}-{number}-{round}"));
                std::fs::write(&path, &bytes).unwrap();
                panic!("{name}: the input {} makes it panic, or takes {took:?}", path.display());
            }
        }
    }
}

fn text(parser: impl Fn(&str) -> bool) -> impl Fn(&[u8]) -> bool {
    move |bytes| parser(&String::from_utf8_lossy(bytes))
}

const INDEX: &str = "Package: bash\nArchitecture: amd64\nVersion: 5.2.37-2+b5\nMulti-Arch: foreign\nEssential: yes\n\
    Pre-Depends: libc6 (>= 2.38), libtinfo6 (>= 6)\nDepends: base-files (>= 2.1.12), debianutils (>= 5.6-0.1)\n\
    Recommends: bash-completion (>= 20060301-0) | x:any [amd64 !arm64] <!nocheck>\nConflicts: bash-completion (<< 20060301-0)\n\
    Provides: shell (= 1)\nDescription: GNU Bourne Again SHell\n Two\n .\n lines.\nFilename: pool/main/b/bash/bash_5.2.37-2+b5_amd64.deb\n\
    Size: 1497968\nSHA256: 2dd4b1b4d3fdf4a3b1e9f3cf7c3a4e7f5d6b1b2c3d4e5f60718293a4b5c6d7e8\n\n\
    Package: libc6\nArchitecture: amd64\nVersion: 2:2.41-12\nFilename: pool/main/g/glibc/libc6_2.41-12_amd64.deb\nSize: 2000\n\
    SHA256: 3dd4b1b4d3fdf4a3b1e9f3cf7c3a4e7f5d6b1b2c3d4e5f60718293a4b5c6d7e8\n";

const RELEASE: &str = "Origin: Debian\nLabel: Debian\nSuite: stable\nVersion: 13.2\nCodename: trixie\n\
    Date: Sat, 12 Sep 2026 07:55:41 UTC\nValid-Until: Sat, 19 Sep 2026 07:55:41 UTC\nAcquire-By-Hash: yes\n\
    Architectures: all amd64 arm64\nComponents: main contrib\nDescription: Debian 13.2\nSHA256:\n \
    2dd4b1b4d3fdf4a3b1e9f3cf7c3a4e7f5d6b1b2c3d4e5f60718293a4b5c6d7e8 9690728 main/binary-amd64/Packages.xz\n \
    3dd4b1b4d3fdf4a3b1e9f3cf7c3a4e7f5d6b1b2c3d4e5f60718293a4b5c6d7e8 52 main/binary-arm64/Release\n";

#[test]
fn control_files() {
    survive(
        "control",
        &[INDEX.as_bytes(), RELEASE.as_bytes()],
        text(|text| {
            for paragraph in paragraphs(text) {
                for (_, value) in paragraph.fields().flatten() {
                    let _ = relation::parse(value, "amd64");
                }
            }
            // The order of versions is one: whatever they are, a < b exactly when b > a.
            if let Some((a, b)) = text.split_once('\n') {
                assert_eq!(Version(a).cmp(&Version(b)), Version(b).cmp(&Version(a)).reverse());
            }
            paragraphs(text).flat_map(|p| p.fields().flatten().collect::<Vec<_>>()).count() > 10
        }),
    );
}

#[test]
fn indexes() {
    survive(
        "index",
        &[INDEX.as_bytes()],
        text(|text| {
            let files = [IndexFile { suite: "trixie".into(), text: text.to_owned(), ..IndexFile::default() }];
            let Ok(universe) = Universe::new(&files, Arch::Amd64) else { return false };
            let mut good = 0;
            for name in universe.names() {
                for entry in universe.versions(name) {
                    good += usize::from(universe.locked(*entry, false).is_ok());
                }
            }
            good > 0
        }),
    );
}

#[test]
fn releases() {
    let signed = format!(
        "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n{RELEASE}-----BEGIN PGP SIGNATURE-----\n\n\
         iQIzBAEBCAAdFiEETKiNRdSkwHrlK2FPb1LIkbj9DEMFAmjDyU0ACgkQb1LIkbj9\nDEMdqQ==\n=abcd\n-----END PGP SIGNATURE-----\n"
    );
    survive("release", &[RELEASE.as_bytes(), signed.as_bytes()], |bytes| {
        let keyring = Keyring::default();
        assert!(Release::from_inrelease(bytes, &keyring, Timestamp(0)).is_err(), "no key can have signed it");
        // A signed one is refused before it is read; the text inside is the other seed.
        release::parse(&String::from_utf8_lossy(bytes)).is_ok() || bytes.starts_with(b"-----BEGIN")
    });
}

#[test]
fn locks() {
    let seed = crate::locks::lock().print();
    survive(
        "lock",
        &[seed.as_bytes()],
        text(|text| {
            let Ok(lock) = Lock::parse(text, "x.lock") else { return false };
            let printed = lock.print();
            let again = Lock::parse(&printed, "x.lock").expect("what was printed reads");
            assert_eq!(again.print(), printed);
            true
        }),
    );
}

#[test]
fn trees() {
    let node = |mode, kind| kiln::tree::Node::new(kind, mode, 1_700_000_000);
    let mut tree = Tree::default();
    tree.insert_with_parents(
        "usr/bin/a file\n",
        node(0o4755, kiln::tree::Kind::File(kiln::tree::Content::bytes("text"))),
    );
    tree.insert_with_parents("etc/link", node(0o777, kiln::tree::Kind::Symlink(b"../usr".to_vec())));
    let seed = tree.dump();
    survive(
        "tree",
        &[seed.as_bytes()],
        text(|text| {
            let Ok(tree) = Tree::parse(text) else { return false };
            assert_eq!(Tree::parse(&tree.dump()).expect("what was printed reads"), tree);
            true
        }),
    );
}

#[test]
fn packages() {
    let seeds = debs();
    let seeds: Vec<&[u8]> = seeds.iter().map(Vec::as_slice).collect();
    survive("deb", &seeds, |bytes| {
        let Ok(mut deb) = Deb::new(Cursor::new(bytes)) else { return false };
        let named = deb.control().is_ok_and(|control| control.required("Package").is_ok());
        let data = deb.data(&mut |_entry, reader: &mut dyn Read| -> Result<(), DebError> {
            io::copy(&mut reader.take(1 << 20), &mut io::sink())?;
            Ok(())
        });
        named && data.is_ok()
    });
}

/// A small package in each compression, as dpkg-deb lays it out.
fn debs() -> Vec<Vec<u8>> {
    let tar = |name: &str, bytes: &[u8]| {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        builder.append_data(&mut header, name, bytes).unwrap();
        builder.into_inner().unwrap()
    };
    let control = tar("./control", b"Package: x\nVersion: 1\nArchitecture: all\n");
    let data = tar("./usr/share/x", &b"contents of a file ".repeat(40));
    let gz = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut encoder, bytes).unwrap();
        encoder.finish().unwrap()
    };
    let xz = |bytes: &[u8]| {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 0);
        io::Write::write_all(&mut encoder, bytes).unwrap();
        encoder.finish().unwrap()
    };
    let zst = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    [
        ar("", &control, &data),
        ar(".gz", &gz(&control), &gz(&data)),
        ar(".xz", &xz(&control), &xz(&data)),
        ar(".zst", &zst(&control), &zst(&data)),
    ]
    .to_vec()
}

/// ar(5): a member's header has 60 bytes, its contents are padded to an even length.
fn ar(ending: &str, control: &[u8], data: &[u8]) -> Vec<u8> {
    let mut out = b"!<arch>\n".to_vec();
    let (control_name, data_name) = (format!("control.tar{ending}"), format!("data.tar{ending}"));
    for (name, bytes) in [("debian-binary", &b"2.0\n"[..]), (&control_name, control), (&data_name, data)] {
        out.extend(
            format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100_644, bytes.len()).bytes(),
        );
        out.extend(bytes);
        out.extend((bytes.len() % 2 == 1).then_some(b'\n'));
    }
    out
}
