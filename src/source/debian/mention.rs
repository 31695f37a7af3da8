//! Where a package's name is first mentioned in the indexes.
//!
//! Between providers that are equal in all else apt prefers the one whose name its cache has met last: the cache numbers
//! names as they appear while it reads the indexes, be it as a package or in another one's relationships.

use memchr::memmem;

use super::control::Paragraph;
use super::index::{EntryId, Universe};

/// The fields in the order in which apt takes up names.
const FIELDS: [&str; 10] = [
    "Package",
    "Pre-Depends",
    "Depends",
    "Conflicts",
    "Breaks",
    "Recommends",
    "Suggests",
    "Replaces",
    "Enhances",
    "Provides",
];

/// A place in the indexes: file, byte offset of the paragraph, field, byte offset in its value.
pub type Place = (usize, usize, usize, usize);

/// Where the name of `entry`'s package is first mentioned.
pub fn rank(universe: &Universe, entry: EntryId) -> Option<Place> {
    let name = universe.name_of(entry);
    let finder = memmem::Finder::new(name);
    for (number, file) in universe.files().iter().enumerate() {
        let text = file.text.as_str();
        let mut from = 0;
        while let Some(at) = finder.find(&text.as_bytes()[from..]).map(|at| from + at) {
            let start = memmem::rfind(&text.as_bytes()[..at], b"\n\n").map_or(0, |blank| blank + 2);
            let end = memmem::find(&text.as_bytes()[at..], b"\n\n").map_or(text.len(), |blank| at + blank);
            let paragraph = Paragraph { text: &text[start..end], offset: start };
            if let Some((field, offset)) = in_paragraph(paragraph, name) {
                return Some((number, start, field, offset));
            }
            from = end;
        }
    }
    None
}

fn in_paragraph(paragraph: Paragraph, name: &str) -> Option<(usize, usize)> {
    let fields = paragraph.fields().flatten();
    let found = fields.filter_map(|(field, value)| {
        let order = FIELDS.iter().position(|f| *f == field)?;
        whole_word(value, name).map(|offset| (order, offset))
    });
    found.min()
}

/// Where `name` stands in a relationship field as a name of its own.
fn whole_word(value: &str, name: &str) -> Option<usize> {
    let part_of_name = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_alphanumeric() || b"+-._~".contains(b));
    let bytes = value.as_bytes();
    memmem::find_iter(bytes, name).find(|&at| {
        let before = at.checked_sub(1).and_then(|i| bytes.get(i));
        !part_of_name(before) && !part_of_name(bytes.get(at + name.len()))
    })
}
