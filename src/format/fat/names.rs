//! Names on FAT: short ones of eight and three letters, and the long ones written beside them.

use super::{ENTRY, LONG_NAME};

/// UTF-16 units of an entry of a long name.
const UNITS: usize = 13;
/// UTF-16 units that a long name may have.
const LONG_MAX: usize = 255;

/// A name that FAT can't hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the name `{name}` {why}")]
pub struct NameError {
    /// The name.
    pub name: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// A name as its directory holds it.
pub(super) struct Name {
    /// Eight letters and three, filled up with spaces.
    pub short: [u8; 11],
    /// The name itself in UTF-16, empty when the short one says it all.
    long: Vec<u16>,
}

impl Name {
    /// How many entries it takes.
    pub fn slots(&self) -> usize {
        1 + self.long.len().div_ceil(UNITS)
    }

    /// The entries of the long name, the last part first, as they precede the short one.
    pub fn long_entries(&self) -> Vec<u8> {
        let checksum = self.short.iter().fold(0u8, |sum, &b| sum.rotate_right(1).wrapping_add(b));
        let count = self.slots() - 1;
        let mut bytes = Vec::with_capacity(count * ENTRY);
        for index in (0..count).rev() {
            let mut e = [0; ENTRY];
            e[0] = (index + 1) as u8 | if index + 1 == count { 0x40 } else { 0 };
            e[11] = LONG_NAME;
            e[13] = checksum;
            let places = (1..11).step_by(2).chain((14..26).step_by(2)).chain((28..32).step_by(2));
            for (unit, at) in (index * UNITS..).zip(places) {
                // A zero ends a name that doesn't fill its last entry; the rest is all ones.
                let filler = if unit == self.long.len() { 0 } else { 0xffff };
                let value = self.long.get(unit).copied().unwrap_or(filler);
                e[at..at + 2].copy_from_slice(&value.to_le_bytes());
            }
            bytes.extend_from_slice(&e);
        }
        bytes
    }
}

/// The names of one directory, in the order given.
pub(super) fn in_directory<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Result<Vec<Name>, NameError> {
    let mut folded = std::collections::HashSet::new();
    let mut taken: std::collections::HashSet<[u8; 11]> = names.clone().filter_map(exact).collect();
    names
        .map(|name| {
            let wrong = |why| Err(NameError { name: name.to_owned(), why });
            if let Some(why) = fault(name) {
                return wrong(why);
            }
            if !folded.insert(name.to_uppercase()) {
                return wrong("differs from another of its directory only in upper and lower case");
            }
            Ok(match exact(name) {
                Some(short) => Name { short, long: Vec::new() },
                None => Name { short: numbered(name, &mut taken), long: name.encode_utf16().collect() },
            })
        })
        .collect()
}

/// A volume's label in the form of a short name.
pub(super) fn label(label: &str) -> Result<[u8; 11], NameError> {
    let fits = (1..=11).contains(&label.len()) && label.bytes().all(|b| short_letter(b) || b == b' ');
    if !fits {
        let why = "is no label for FAT: it takes one to eleven upper-case letters, digits or `_`";
        return Err(NameError { name: label.to_owned(), why });
    }
    let mut bytes = [b' '; 11];
    bytes[..label.len()].copy_from_slice(label.as_bytes());
    Ok(bytes)
}

fn fault(name: &str) -> Option<&'static str> {
    if name.encode_utf16().count() > LONG_MAX {
        Some("is longer than 255 UTF-16 units")
    } else if name.chars().any(|c| c < ' ' || c == '\x7f' || "\"*/:<>?\\|".contains(c)) {
        Some("holds a character that FAT doesn't allow")
    } else if name.ends_with(['.', ' ']) || name.starts_with(' ') {
        Some("begins with a space or ends with a dot or space, which FAT doesn't allow")
    } else {
        None
    }
}

fn short_letter(b: u8) -> bool {
    b.is_ascii_uppercase() || b.is_ascii_digit() || b"!#$%&'()-@^_`{}~".contains(&b)
}

/// The short name that is the name itself, when it is one.
fn exact(name: &str) -> Option<[u8; 11]> {
    let (base, extension) = name.split_once('.').unwrap_or((name, ""));
    let letters = base.bytes().chain(extension.bytes()).all(short_letter);
    if !letters || base.is_empty() || base.len() > 8 || extension.len() > 3 || name.ends_with('.') {
        return None;
    }
    let mut short = [b' '; 11];
    short[..base.len()].copy_from_slice(base.as_bytes());
    short[8..8 + extension.len()].copy_from_slice(extension.as_bytes());
    Some(short)
}

/// A short name of the kind `LONGNA~1` that is not yet taken.
fn numbered(name: &str, taken: &mut std::collections::HashSet<[u8; 11]>) -> [u8; 11] {
    let letters = |text: &str, most: usize| -> Vec<u8> {
        let kept = text.chars().filter(|c| !matches!(c, ' ' | '.'));
        let upper = kept.map(|c| u8::try_from(c.to_ascii_uppercase()).unwrap_or(b'_'));
        upper.map(|b| if short_letter(b) { b } else { b'_' }).take(most).collect()
    };
    let trimmed = name.trim_start_matches('.');
    let (base, extension) = trimmed.rsplit_once('.').unwrap_or((trimmed, ""));
    let (base, extension) = (letters(base, 8), letters(extension, 3));
    let mut number = 1u32;
    loop {
        let tail = format!("~{number}");
        let kept = base.len().min(8 - tail.len().min(8));
        let mut short = [b' '; 11];
        short[..kept].copy_from_slice(&base[..kept]);
        short[kept..kept + tail.len()].copy_from_slice(tail.as_bytes());
        short[8..8 + extension.len()].copy_from_slice(&extension);
        // A directory holds at most 65,536 entries of 32 bytes, so that five digits are enough.
        if taken.insert(short) {
            return short;
        }
        number += 1;
    }
}
