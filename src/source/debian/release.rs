//! Release files: what an archive says of itself, signed.
//!
//! The format is that of <https://wiki.debian.org/DebianRepository/Format>, "Release" files: one deb822 paragraph. A
//! [`Release`] is only made from bytes whose signature was good.

use std::collections::BTreeMap;

use crate::arch::Arch;
use crate::date::Timestamp;
use crate::digest::Digest;
use crate::source::debian::signature::{
    self, Keyring, SKEW, SignatureError, verify_clearsigned, verify_detached,
};

/// Why a Release file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    /// Its signature is missing or not good.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// It is not written as it should be.
    #[error("line {line}: {what}")]
    Syntax {
        /// Line of the signed text, counted from 1.
        line: usize,
        /// What is wrong there.
        what: String,
    },
    /// A field that is needed is not there.
    #[error("it has no field {0}")]
    Missing(&'static str),
    /// It lists its files by weak digests only.
    #[error("it lists its files by {0} only, which can be forged; SHA256 is needed")]
    WeakDigests(String),
    /// It is another suite than the one asked for.
    #[error(
        "it is for {found}, not for {wanted}: the mirror serves a wrong file, or the suite's name is wrong"
    )]
    WrongSuite {
        /// The suite asked for.
        wanted: String,
        /// What it says it is.
        found: String,
    },
    /// A component that is asked for and not there.
    #[error("it has no component {wanted}; it has {found}")]
    NoComponent {
        /// The component asked for.
        wanted: String,
        /// Those it has.
        found: String,
    },
    /// The architecture is not there.
    #[error("it has nothing for {wanted}; it has {found}")]
    NoArchitecture {
        /// The architecture asked for.
        wanted: String,
        /// Those it has.
        found: String,
    },
    /// It is older than it may be.
    #[error(
        "it expired at {until}, and now it is {now}: the mirror is out of date, or this host's clock is wrong"
    )]
    Expired {
        /// Its last moment.
        until: Timestamp,
        /// The time at which it was looked at.
        now: Timestamp,
    },
    /// It comes from the future.
    #[error("it is dated {date}, and now it is {now}: this host's clock is wrong")]
    Future {
        /// Its date.
        date: Timestamp,
        /// The time at which it was looked at.
        now: Timestamp,
    },
    /// It is older than one that was seen before.
    #[error(
        "it is of {found}, older than that of {known} which is locked: the mirror is out of date \
         (to go back on purpose, remove the lock first)"
    )]
    Older {
        /// Its date.
        found: Timestamp,
        /// The locked one's date.
        known: Timestamp,
    },
}

/// One file that a Release lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    /// Size in bytes.
    pub size: u64,
    /// SHA-256 of its bytes.
    pub sha256: Digest,
}

/// A Release file whose signature was good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Who made the archive, as in `Debian`.
    pub origin: String,
    /// Label, as in `Debian-Security`.
    pub label: String,
    /// Suite, as in `stable`; may be empty.
    pub suite: String,
    /// Codename, as in `trixie`; may be empty.
    pub codename: String,
    /// Version, as in `13.7`; may be empty.
    pub version: String,
    /// When it was made.
    pub date: Timestamp,
    /// Until when it may be used.
    pub valid_until: Option<Timestamp>,
    /// apt doesn't choose packages from here by itself (backports).
    pub not_automatic: bool,
    /// … but upgrades those that were chosen.
    pub but_automatic_upgrades: bool,
    /// Files are also there under names made of their digests.
    pub acquire_by_hash: bool,
    /// Packages of architecture `all` are listed with each architecture, not (only) in an index of their own.
    pub no_index_for_all: bool,
    /// Components, without a leading path (`updates/main` is `main`).
    pub components: Vec<String>,
    /// Architectures.
    pub architectures: Vec<String>,
    /// The files listed by SHA-256, by path relative to the Release file.
    pub files: BTreeMap<String, Listed>,
    /// Fingerprints of the keys that signed it.
    pub signers: Vec<String>,
    /// SHA-256 of the file as it was fetched: InRelease, or Release when the signature is detached.
    pub digest: Digest,
}

/// What a Release must be to be used.
#[derive(Debug, Clone)]
pub struct Expected<'a> {
    /// The suite asked for: its suite name or codename.
    pub suite: &'a str,
    /// The components asked for.
    pub components: &'a [String],
    /// The architecture asked for.
    pub arch: Arch,
    /// The present, when it must be still valid; `None` for a release that is locked already.
    pub now: Option<Timestamp>,
    /// Date of the release that is known already: it must not be older.
    pub known: Option<Timestamp>,
}

impl Release {
    /// Verifies and reads an `InRelease`.
    ///
    /// # Errors
    /// When the signature isn't good at the time `at`, or the text is no Release.
    pub fn from_inrelease(bytes: &[u8], keyring: &Keyring, at: Timestamp) -> Result<Release, ReleaseError> {
        let signed = verify_clearsigned(bytes, keyring, at)?;
        Release::from_signed(&signed, Digest::of(bytes))
    }

    /// Verifies and reads a `Release` with its `Release.gpg`.
    ///
    /// # Errors
    /// As for [`Release::from_inrelease`].
    pub fn from_detached(
        release: &[u8],
        signature: &[u8],
        keyring: &Keyring,
        at: Timestamp,
    ) -> Result<Release, ReleaseError> {
        let signed = verify_detached(release, signature, keyring, at)?;
        Release::from_signed(&signed, Digest::of(release))
    }

    fn from_signed(signed: &signature::Signed, digest: Digest) -> Result<Release, ReleaseError> {
        let mut release = parse(&String::from_utf8_lossy(&signed.text))?;
        release.signers.clone_from(&signed.signers);
        release.digest = digest;
        Ok(release)
    }

    /// Whether it is what was asked for.
    ///
    /// # Errors
    /// The first thing that it is not.
    pub fn check(&self, expected: &Expected) -> Result<(), ReleaseError> {
        self.check_name(expected.suite)?;
        let missing = |wanted: &&String| !self.components.contains(*wanted);
        if let Some(wanted) = expected.components.iter().find(missing) {
            let found = self.components.join(" ");
            return Err(ReleaseError::NoComponent { wanted: wanted.clone(), found });
        }
        let arch = expected.arch.debian();
        if !self.architectures.is_empty() && !self.architectures.iter().any(|a| a == arch || a == "all") {
            let found = self.architectures.join(" ");
            return Err(ReleaseError::NoArchitecture { wanted: arch.to_owned(), found });
        }
        self.check_time(expected)
    }

    /// A suite that ends in `/` is a path (a flat repository) and names nothing.
    fn check_name(&self, wanted: &str) -> Result<(), ReleaseError> {
        let names = [self.suite.as_str(), self.codename.as_str()];
        if wanted.ends_with('/') || names == ["", ""] || names.contains(&wanted) {
            return Ok(());
        }
        let found = names.into_iter().filter(|n| !n.is_empty()).collect::<Vec<_>>().join(" / ");
        Err(ReleaseError::WrongSuite { wanted: wanted.to_owned(), found })
    }

    fn check_time(&self, expected: &Expected) -> Result<(), ReleaseError> {
        if let Some(known) = expected.known.filter(|known| self.date < *known) {
            return Err(ReleaseError::Older { found: self.date, known });
        }
        let Some(now) = expected.now else { return Ok(()) };
        if self.date > now.plus(SKEW) {
            return Err(ReleaseError::Future { date: self.date, now });
        }
        match self.valid_until {
            Some(until) if until < now => Err(ReleaseError::Expired { until, now }),
            _ => Ok(()),
        }
    }
}

/// The fields of the paragraph by lower-case name, each with the line it begins in and its lines.
type Fields<'a> = BTreeMap<String, (usize, Vec<&'a str>)>;

/// Reads the text of a Release file. Digest and signers are left empty: nothing is trusted yet.
///
/// # Errors
/// When a line is no field, or a field that is needed is missing or wrong.
pub fn parse(text: &str) -> Result<Release, ReleaseError> {
    let fields = read_fields(text)?;
    let word = |name: &str| fields.get(name).map(|(_, lines)| lines[0].to_owned()).unwrap_or_default();
    let words =
        |name: &str| -> Vec<String> { word(name).split_ascii_whitespace().map(str::to_owned).collect() };
    let yes = |name: &str| word(name) == "yes";
    let components = words("components").into_iter().map(|c| c.rsplit('/').next().unwrap_or(&c).to_owned());
    Ok(Release {
        origin: word("origin"),
        label: word("label"),
        suite: word("suite"),
        codename: word("codename"),
        version: word("version"),
        date: date(&fields, "date")?.ok_or(ReleaseError::Missing("Date"))?,
        valid_until: date(&fields, "valid-until")?,
        not_automatic: yes("notautomatic"),
        but_automatic_upgrades: yes("butautomaticupgrades"),
        acquire_by_hash: yes("acquire-by-hash"),
        no_index_for_all: words("no-support-for-architecture-all").iter().any(|w| w == "Packages"),
        components: components.collect(),
        architectures: words("architectures"),
        files: files(&fields)?,
        signers: Vec::new(),
        digest: Digest([0; 32]),
    })
}

fn read_fields(text: &str) -> Result<Fields<'_>, ReleaseError> {
    let mut fields = Fields::new();
    let mut current: Option<String> = None;
    let wrong = |line: usize, what: &str| ReleaseError::Syntax { line, what: what.to_owned() };
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        if line.trim().is_empty() {
            // One paragraph only: what follows a blank line would be another one.
            match text.lines().skip(number).position(|l| !l.trim().is_empty()) {
                Some(_) if fields.is_empty() => continue,
                Some(more) => return Err(wrong(number + more + 1, "a second paragraph")),
                None => break,
            }
        }
        if line.starts_with([' ', '\t']) {
            let name = current.as_ref().ok_or_else(|| wrong(number, "a continuation of nothing"))?;
            if let Some((_, lines)) = fields.get_mut(name) {
                lines.push(line.trim());
            }
        } else {
            let (name, value) = line
                .split_once(':')
                .ok_or_else(|| wrong(number, "neither `Field: value` nor a continuation"))?;
            let name = name.to_ascii_lowercase();
            if fields.insert(name.clone(), (number, vec![value.trim()])).is_some() {
                return Err(ReleaseError::Syntax {
                    line: number,
                    what: format!("field {name} a second time"),
                });
            }
            current = Some(name);
        }
    }
    Ok(fields)
}

fn date(fields: &Fields, name: &str) -> Result<Option<Timestamp>, ReleaseError> {
    let Some((line, text)) = fields.get(name) else { return Ok(None) };
    let wrong = || ReleaseError::Syntax { line: *line, what: format!("`{}` is no date in UTC", text[0]) };
    Timestamp::from_rfc5322(text[0]).map(Some).ok_or_else(wrong)
}

/// The table of files by SHA-256: lines of digest, size, path.
fn files(fields: &Fields) -> Result<BTreeMap<String, Listed>, ReleaseError> {
    let Some((first, lines)) = fields.get("sha256") else {
        let weak = ["MD5Sum", "SHA1"].into_iter().filter(|n| fields.contains_key(&n.to_ascii_lowercase()));
        let weak = weak.collect::<Vec<_>>().join(" and ");
        return Err(if weak.is_empty() {
            ReleaseError::Missing("SHA256")
        } else {
            ReleaseError::WeakDigests(weak)
        });
    };
    let mut files = BTreeMap::new();
    for (index, line) in lines.iter().enumerate().filter(|(_, line)| !line.is_empty()) {
        let wrong = |what: String| ReleaseError::Syntax { line: first + index, what };
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let &[digest, size, path] = words.as_slice() else {
            return Err(wrong(format!("`{line}` is not a digest, a size and a path")));
        };
        let sha256 = digest.parse().map_err(|e: crate::digest::DigestError| wrong(e.to_string()))?;
        let size = size.parse().map_err(|_| wrong(format!("`{size}` is no size")))?;
        let listed = Listed { size, sha256 };
        if files.insert(path.to_owned(), listed).is_some_and(|earlier| earlier != listed) {
            return Err(wrong(format!("{path} is listed twice, differently")));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "Origin: Debian\nSuite: stable-security\nCodename: trixie-security\n\
        Date: Sat, 21 Nov 2026 00:53:03 UTC\nComponents: updates/main updates/contrib\nArchitectures: amd64\n\
        NotAutomatic: yes\nNo-Support-for-Architecture-all: Packages\nDescription: one\n two\n\
        SHA256:\n e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 0 main/binary-amd64/Packages\n";

    #[test]
    fn fields_are_read() {
        let release = parse(TEXT).unwrap();
        assert_eq!(release.components, ["main", "contrib"]);
        assert_eq!(release.date.to_string(), "2026-11-21T00:53:03Z");
        assert!(release.not_automatic && !release.but_automatic_upgrades && release.no_index_for_all);
        assert_eq!(release.files["main/binary-amd64/Packages"].sha256, Digest::of(b""));
        assert_eq!(release.valid_until, None);
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "([A-Za-z0-9-]{0,8}:? ?\\PC{0,20}\n){0,8}") {
            let _ = parse(&text);
        }

        #[test]
        fn no_change_panics(at in 0..500_usize, put in "\\PC{0,6}") {
            let mut text = TEXT.to_owned();
            let at = at.min(text.len());
            text.insert_str(at, &put);
            if let Ok(release) = parse(&text) {
                prop_assert!(release.files.len() <= 2);
            }
        }
    }
}
