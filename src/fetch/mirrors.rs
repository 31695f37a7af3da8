//! Which base URLs an archive has.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::date::{DAY, Timestamp};
use crate::fetch::apt;
use crate::system::Source;

/// The alias that Debian itself gives to a mirror nearby; the last resort.
const PUBLIC_ALIAS: &str = "http://ftp.debian.org/debian";

/// Wrong configuration of mirrors.
#[derive(Debug, thiserror::Error)]
pub enum MirrorsError {
    /// An option or a variable that is no mirror.
    #[error(
        "{place}: `{text}` is no mirror: write URL or ARCHIVE=URL, with http://, https://, file:// or a path from /"
    )]
    NoUrl {
        /// The option, variable or file.
        place: String,
        /// What stands there.
        text: String,
    },
    /// A configuration file that can't be read.
    #[error("can't read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A configuration file that is wrong.
    #[error("{}: {message}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What the TOML reader says.
        message: String,
    },
}

/// What of the host's environment configures mirrors. [`Environment::of_host`] is the real one; tests make their own.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// KILN_MIRROR: `[ARCHIVE=]URL` separated by spaces.
    pub mirror: Option<String>,
    /// KILN_SNAPSHOT: the same for the snapshot archive.
    pub snapshot: Option<String>,
    /// The user's configuration file; it need not exist.
    pub config: Option<PathBuf>,
    /// The host's `/etc/apt`.
    pub apt: Option<PathBuf>,
    /// Whether the built-in public alias is tried last.
    pub public: bool,
}

impl Environment {
    /// The environment of this process and host.
    #[must_use]
    pub fn of_host() -> Environment {
        let var = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let config = var("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(var("HOME")?).join(".config")))
            .map(|folder| folder.join("kiln/config.toml"));
        Environment {
            mirror: var("KILN_MIRROR"),
            snapshot: var("KILN_SNAPSHOT"),
            config,
            apt: Some(PathBuf::from("/etc/apt")),
            public: true,
        }
    }
}

/// A base URL that was given, for one archive or for whichever it fits.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Given {
    archive: Option<String>,
    url: String,
}

/// The base URLs of each archive, in the order in which they are tried: the command line's, KILN_MIRROR's, the user's
/// configuration's, the profile's own, those of the host's apt, and last a public alias.
#[derive(Debug, Clone, Default)]
pub struct Mirrors {
    given: Vec<Given>,
    own: Vec<Given>,
    host: Vec<String>,
    public: bool,
    snapshots: Vec<Given>,
}

/// The user's configuration file.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(default)]
    mirrors: BTreeMap<String, OneOrMany>,
    #[serde(default)]
    snapshot: BTreeMap<String, OneOrMany>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl Mirrors {
    /// The mirrors that `options` (each `[ARCHIVE=]URL`, from `--mirror`) and the environment give.
    ///
    /// # Errors
    /// See [`MirrorsError`].
    pub fn new(options: &[String], environment: &Environment) -> Result<Mirrors, MirrorsError> {
        let mut mirrors = Mirrors { public: environment.public, ..Mirrors::default() };
        for option in options {
            mirrors.given.push(given("--mirror", option)?);
        }
        for word in environment.mirror.iter().flat_map(|v| v.split_ascii_whitespace()) {
            mirrors.given.push(given("KILN_MIRROR", word)?);
        }
        for word in environment.snapshot.iter().flat_map(|v| v.split_ascii_whitespace()) {
            mirrors.snapshots.push(given("KILN_SNAPSHOT", word)?);
        }
        if let Some(path) = &environment.config {
            let config = read_config(path)?;
            mirrors.given.extend(from_config(path, config.mirrors)?);
            mirrors.snapshots.extend(from_config(path, config.snapshot)?);
        }
        if let Some(etc) = &environment.apt {
            mirrors.host = apt::bases(etc);
        }
        Ok(mirrors)
    }

    /// The mirrors with which this process was started.
    ///
    /// # Errors
    /// See [`MirrorsError`].
    pub fn of_host(options: &[String]) -> Result<Mirrors, MirrorsError> {
        Mirrors::new(options, &Environment::of_host())
    }

    /// Adds the `mirrors` that a profile's source names itself.
    ///
    /// # Errors
    /// [`MirrorsError::NoUrl`].
    pub fn add_source(&mut self, source: &Source) -> Result<(), MirrorsError> {
        for url in &source.mirrors {
            let place = || format!("the mirrors of source {}", source.archive);
            let url =
                checked(url).ok_or_else(|| MirrorsError::NoUrl { place: place(), text: url.clone() })?;
            self.own.push(Given { archive: Some(source.archive.clone()), url });
        }
        Ok(())
    }

    /// The base URLs of `archive`, without a trailing slash, in the order in which they are tried; each once.
    #[must_use]
    pub fn bases(&self, archive: &str) -> Vec<String> {
        let host = self.host.iter().filter(|url| last_segment(url) == archive).cloned();
        let mut bases: Vec<String> =
            self.given.iter().chain(&self.own).filter_map(|g| g.for_archive(archive)).collect();
        bases.extend(host.map(|url| url.trim_end_matches('/').to_owned()));
        bases.extend(sibling(PUBLIC_ALIAS, archive).filter(|_| self.public));
        let mut seen = std::collections::BTreeSet::new();
        bases.retain(|base| seen.insert(base.clone()));
        bases
    }

    /// The URLs of `path`, which is relative to the base of `archive`.
    #[must_use]
    pub fn urls(&self, archive: &str, path: &str) -> Vec<String> {
        self.bases(archive).iter().map(|base| join(base, path)).collect()
    }

    /// The URLs of `path` in the snapshot archives. A snapshot is named by the time at which it was taken, which is
    /// after `date`, the release's own; so times a little later are tried as well. A snapshot archive redirects to its
    /// newest one that isn't newer than the time asked for.
    #[must_use]
    pub fn snapshot_urls(&self, archive: &str, date: Timestamp, path: &str) -> Vec<String> {
        let mut bases: Vec<&str> = Vec::new();
        for given in &self.snapshots {
            let fits = match given.archive.as_deref() {
                None | Some("debian") => is_debian(archive),
                Some(name) => name == archive,
            };
            if fits && !bases.contains(&given.url.as_str()) {
                bases.push(&given.url);
            }
        }
        let at = |base: &str, late: i64| {
            join(base, &format!("archive/{archive}/{}/{path}", date.plus(late).compact()))
        };
        bases.iter().flat_map(|base| [0, DAY / 2, 2 * DAY].map(|late| at(base, late))).collect()
    }

    /// Whether a snapshot archive is configured for `archive`.
    #[must_use]
    pub fn has_snapshot(&self, archive: &str) -> bool {
        !self.snapshot_urls(archive, Timestamp(0), "").is_empty()
    }
}

impl Given {
    /// The base of `archive` that this mirror gives. A mirror of one Debian archive that keeps the usual name usually
    /// has its siblings beside it: `…/debian` and `…/debian-security`.
    fn for_archive(&self, archive: &str) -> Option<String> {
        match self.archive.as_deref() {
            Some(name) if name == archive => Some(self.url.clone()),
            None if last_segment(&self.url) == archive => Some(self.url.clone()),
            None if archive == "debian" && !is_debian(last_segment(&self.url)) => Some(self.url.clone()),
            Some(name) if name != last_segment(&self.url) => None,
            _ => sibling(&self.url, archive),
        }
    }
}

fn is_debian(archive: &str) -> bool {
    archive == "debian" || archive.starts_with("debian-")
}

/// The base of `archive` beside `base`, when both are Debian's.
fn sibling(base: &str, archive: &str) -> Option<String> {
    (is_debian(archive) && is_debian(last_segment(base))).then_some(())?;
    let (root, _) = base.trim_end_matches('/').rsplit_once('/')?;
    Some(format!("{root}/{archive}"))
}

fn last_segment(url: &str) -> &str {
    let url = url.trim_end_matches('/');
    url.rsplit('/').next().unwrap_or(url)
}

/// `path` below `base`; percent-encoded unless it is a file of this host.
fn join(base: &str, path: &str) -> String {
    let path = path.trim_start_matches("./");
    if !base.starts_with("http") {
        return format!("{base}/{path}");
    }
    let mut url = format!("{base}/");
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~+:=@,!".contains(&byte) {
            url.push(char::from(byte));
        } else {
            url.push_str(&format!("%{byte:02X}"));
        }
    }
    url
}

/// The URL without trailing slashes, when it is one that can be fetched.
fn checked(url: &str) -> Option<String> {
    let rest = ["http://", "https://", "file://"].iter().find_map(|scheme| url.strip_prefix(scheme));
    let good = match rest {
        Some(rest) => !rest.is_empty(),
        None => url.starts_with('/') || url.starts_with("file:/"),
    };
    (good && !url.contains(char::is_whitespace)).then(|| url.trim_end_matches('/').to_owned())
}

/// Reads `[ARCHIVE=]URL`.
fn given(place: &str, text: &str) -> Result<Given, MirrorsError> {
    let name = |n: &str| !n.is_empty() && n.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    let (archive, url) = match text.split_once('=') {
        Some((archive, url)) if name(archive) => (Some(archive.to_owned()), url),
        _ => (None, text),
    };
    let wrong = || MirrorsError::NoUrl { place: place.to_owned(), text: text.to_owned() };
    Ok(Given { archive, url: checked(url).ok_or_else(wrong)? })
}

fn read_config(path: &Path) -> Result<Config, MirrorsError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Config::default()),
        Err(source) => return Err(MirrorsError::Unreadable { path: path.to_owned(), source }),
    };
    toml::from_str(&text).map_err(|e| MirrorsError::Config {
        path: path.to_owned(),
        message: e.to_string().trim_end().to_owned(),
    })
}

fn from_config(path: &Path, table: BTreeMap<String, OneOrMany>) -> Result<Vec<Given>, MirrorsError> {
    let mut all = Vec::new();
    for (archive, urls) in table {
        let urls = match urls {
            OneOrMany::One(url) => vec![url],
            OneOrMany::Many(urls) => urls,
        };
        for text in urls {
            let Some(url) = checked(&text) else {
                return Err(MirrorsError::NoUrl { place: path.display().to_string(), text });
            };
            all.push(Given { archive: Some(archive.clone()), url });
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirrors(options: &[&str], environment: &Environment) -> Mirrors {
        let options: Vec<String> = options.iter().map(|&o| o.to_owned()).collect();
        Mirrors::new(&options, environment).unwrap()
    }

    #[test]
    fn each_place_has_its_turn() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.toml");
        let text = "[mirrors]\ndebian = ['http://config/debian/', '/srv/mirror']\nother = 'http://other/x'\n";
        fs::write(&config, text).unwrap();
        fs::write(
            folder.path().join("sources.list"),
            "deb http://host/debian trixie main\ndeb http://host/ubuntu x y\n",
        )
        .unwrap();
        let environment = Environment {
            mirror: Some("http://env/debian  other=http://env/other".into()),
            config: Some(config),
            apt: Some(folder.path().to_owned()),
            public: true,
            ..Environment::default()
        };
        let mut mirrors = mirrors(&["http://option/debian"], &environment);
        let source = Source {
            archive: "debian".into(),
            mirrors: vec!["http://own/debian".into()],
            ..Source::default()
        };
        mirrors.add_source(&source).unwrap();
        let expected = [
            "http://option/debian",
            "http://env/debian",
            "http://config/debian",
            "/srv/mirror",
            "http://own/debian",
            "http://host/debian",
            PUBLIC_ALIAS,
        ];
        assert_eq!(mirrors.bases("debian"), expected);
        assert_eq!(mirrors.bases("other"), ["http://env/other", "http://other/x"]);
        let security =
            ["http://option", "http://env", "http://config", "http://own", "http://ftp.debian.org"];
        assert_eq!(mirrors.bases("debian-security"), security.map(|s| format!("{s}/debian-security")));
    }

    #[test]
    fn a_bare_url_is_debians_unless_it_says_otherwise() {
        let given = mirrors(&["http://127.0.0.1:1/", "http://x/debian-security"], &Environment::default());
        assert_eq!(given.bases("debian"), ["http://127.0.0.1:1", "http://x/debian"]);
        assert_eq!(given.bases("debian-security"), ["http://x/debian-security"]);
        assert!(given.bases("mine").is_empty());
    }

    #[test]
    fn snapshots_are_named_by_time() {
        let environment =
            Environment { snapshot: Some("http://snap/ mine=http://m".into()), ..Environment::default() };
        let mirrors = mirrors(&[], &environment);
        let urls = mirrors.snapshot_urls("debian-security", Timestamp(1_789_199_741), "pool/a_1%3a2.deb");
        assert_eq!(urls[0], "http://snap/archive/debian-security/20260912T075541Z/pool/a_1%253a2.deb");
        assert_eq!(urls.len(), 3);
        assert!(mirrors.has_snapshot("mine"));
        assert!(!mirrors.has_snapshot("other"));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "debian=", "ftp://x/debian", "mirror/debian", "http://"] {
            assert!(Mirrors::new(&[text.to_owned()], &Environment::default()).is_err(), "{text}");
        }
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.toml");
        for text in
            ["[mirrors]\ndebian = 1\n", "mirrors", "[snapshot]\ndebian = 'x'\n", "[mirror]\ndebian = '/x'\n"]
        {
            fs::write(&config, text).unwrap();
            let environment = Environment { config: Some(config.clone()), ..Environment::default() };
            assert!(Mirrors::new(&[], &environment).is_err(), "{text}");
        }
    }
}
