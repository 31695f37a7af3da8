//! A generation as a file: what `kiln build --format generation` writes and `kiln switch` reads.
//!
//! An archive (POSIX ustar) of three files in this order: [`MANIFEST`], [`UKI`], [`SYSTEM`]. The manifest is text, a key and
//! a value a line.

use crate::verity::RootHash;

/// Name of the manifest in the archive.
pub const MANIFEST: &str = "manifest";
/// Name of the unified kernel image in the archive.
pub const UKI: &str = "uki.efi";
/// Name of the system's image in the archive.
pub const SYSTEM: &str = "system";
/// The version of the format that is written and read.
const FORMAT: &str = "1";
/// The longest manifest that is read, in bytes.
pub const LONGEST_MANIFEST: u64 = 64 << 10;

/// What a generation consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The system's name.
    pub name: String,
    /// The system's version.
    pub version: String,
    /// What the boot menu shows.
    pub title: String,
    /// Its architecture, as Debian names it.
    pub arch: String,
    /// File name of the system's image: SHA-256 of its bytes, a dash, the system's name.
    pub system: String,
    /// Root hash of the image's hash tree.
    pub roothash: RootHash,
    /// Size of the image, in bytes.
    pub size: u64,
}

/// A manifest that can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// A key that must be there.
    #[error("it says nothing of `{0}`")]
    Missing(&'static str),
    /// A value that is none.
    #[error("`{value}` is no {key}")]
    Value {
        /// The key.
        key: &'static str,
        /// What stands there.
        value: String,
    },
    /// A later format.
    #[error("it is of format {0}; this Kiln reads format {FORMAT}: update it")]
    Format(String),
}

impl Manifest {
    /// The text of the manifest.
    #[must_use]
    pub fn print(&self) -> String {
        let Manifest { name, version, title, arch, system, roothash, size } = self;
        format!(
            "format {FORMAT}\nname {name}\nversion {version}\ntitle {title}\narch {arch}\nsystem {system}\n\
             roothash {roothash}\nsize {size}\n"
        )
    }

    /// Reads a manifest; keys that aren't known are passed over.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn parse(text: &str) -> Result<Manifest, ManifestError> {
        let value = |key: &'static str| {
            let found = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
            found.map(str::to_owned).ok_or(ManifestError::Missing(key))
        };
        let format = value("format")?;
        if format != FORMAT {
            return Err(ManifestError::Format(format));
        }
        let wrong = |key, value: &str| ManifestError::Value { key, value: value.to_owned() };
        let (system, roothash, size) = (value("system")?, value("roothash")?, value("size")?);
        if !is_system_name(&system) {
            return Err(wrong("system", &system));
        }
        Ok(Manifest {
            name: value("name")?,
            version: value("version").unwrap_or_default(),
            title: value("title")?,
            arch: value("arch")?,
            system,
            roothash: roothash.parse().map_err(|_| wrong("roothash", &roothash))?,
            size: size.parse().map_err(|_| wrong("size", &size))?,
        })
    }
}

/// Whether a file name is that of a system's image: a digest, a dash, a name without a slash.
#[must_use]
pub fn is_system_name(name: &str) -> bool {
    let Some((digest, rest)) = name.split_once('-') else { return false };
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    digest.len() == 64 && digest.bytes().all(hex) && !rest.is_empty() && !rest.contains(['/', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            name: "web".into(),
            version: "1.2".into(),
            title: "web 1.2 (0123456789ab)".into(),
            arch: "amd64".into(),
            system: format!("{}-web", "0123456789abcdef".repeat(4)),
            roothash: RootHash([0xab; 32]),
            size: 4096,
        }
    }

    #[test]
    fn manifests_read_back() {
        let text = manifest().print();
        assert_eq!(Manifest::parse(&text), Ok(manifest()));
        assert_eq!(Manifest::parse(&format!("{text}later more\n")), Ok(manifest()));
    }

    #[test]
    fn wrong_manifests_are_explained() {
        let text = manifest().print();
        let error = |from: &str, to: &str| Manifest::parse(&text.replace(from, to)).unwrap_err().to_string();
        assert_eq!(error("format 1", "format 2"), "it is of format 2; this Kiln reads format 1: update it");
        assert_eq!(error("size 4096", "size x"), "`x` is no size");
        assert_eq!(error("roothash ab", "roothash "), format!("`{}` is no roothash", "ab".repeat(31)));
        assert_eq!(error("title", "titel"), "it says nothing of `title`");
        assert!(error("-web\nroothash", "-../x\nroothash").ends_with("is no system"));
        assert!(Manifest::parse("").is_err());
    }
}
