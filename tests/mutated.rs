//! Every parser of outside bytes meets right inputs that were changed a little: it answers or refuses, and never panics, hangs
//! or takes memory without end. `scripts/fuzz` looks further with coverage, for as long as one likes; this runs anywhere, for
//! as many rounds as `KILN_ROUNDS` says.

use std::fs;
use std::io::{self, Cursor, Read};
use std::path::Path;
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

/// Gives the parser every seed of `scripts/fuzz` as it is, which it must take, and changed. It says whether it took what it
/// was given.
fn survive(name: &str, parser: impl Fn(&[u8]) -> bool) {
    let rounds = std::env::var("KILN_ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(ROUNDS);
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(name);
    let mut seeds: Vec<_> = fs::read_dir(seeds).unwrap().map(|entry| entry.unwrap().path()).collect();
    seeds.sort();
    assert!(!seeds.is_empty());
    for path in seeds {
        let seed = fs::read(&path).unwrap();
        assert!(parser(&seed), "{} is refused", path.display());
        for round in 0..rounds {
            let bytes = mutated(&seed, &mut numbers);
            let begun = Instant::now();
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| parser(&bytes)));
            let took = begun.elapsed();
            if outcome.is_err() || took > LIMIT {
                let found = std::env::temp_dir().join(format!("kiln-{name}-{round}"));
                fs::write(&found, &bytes).unwrap();
                panic!(
                    "{} of {}: it makes the parser panic, or takes {took:?}",
                    found.display(),
                    path.display()
                );
            }
        }
    }
}

fn text(parser: impl Fn(&str) -> bool) -> impl Fn(&[u8]) -> bool {
    move |bytes| parser(&String::from_utf8_lossy(bytes))
}

#[test]
fn control_files() {
    survive(
        "control",
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
    survive("release", |bytes| {
        let keyring = Keyring::default();
        assert!(Release::from_inrelease(bytes, &keyring, Timestamp(0)).is_err(), "no key can have signed it");
        // A signed one is refused before it is read; the text inside is the other seed.
        release::parse(&String::from_utf8_lossy(bytes)).is_ok() || bytes.starts_with(b"-----BEGIN")
    });
}

#[test]
fn locks() {
    survive(
        "lock",
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
    survive(
        "tree",
        text(|text| {
            let Ok(tree) = Tree::parse(text) else { return false };
            assert_eq!(Tree::parse(&tree.dump()).expect("what was printed reads"), tree);
            true
        }),
    );
}

#[test]
fn packages() {
    survive("deb", |bytes| {
        let Ok(mut deb) = Deb::new(Cursor::new(bytes)) else { return false };
        let named = deb.control().is_ok_and(|control| control.required("Package").is_ok());
        let data = deb.data(&mut |_entry, reader: &mut dyn Read| -> Result<(), DebError> {
            io::copy(&mut reader.take(1 << 20), &mut io::sink())?;
            Ok(())
        });
        named && data.is_ok()
    });
}
