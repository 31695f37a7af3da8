//! The files of accounts as values: passwd(5), group(5), shadow(5), gshadow(5), subuid(5).
//!
//! All of them are lines of fields with colons between them. Lines keep their order and their exact bytes unless a
//! field of theirs is changed; new ones come last, as `useradd` puts them. Lines that are no entries (comments, NIS's
//! `+`) stay.

/// A file of accounts: its lines, split into fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Table {
    lines: Vec<Vec<String>>,
    /// Whether the last line ends properly, so that printing gives back what was read.
    terminated: bool,
}

impl Table {
    /// Reads a file.
    pub fn parse(text: &str) -> Table {
        let lines = text.split_terminator('\n').map(|l| l.split(':').map(str::to_owned).collect()).collect();
        Table { lines, terminated: text.is_empty() || text.ends_with('\n') }
    }

    /// The file's text.
    pub fn print(&self) -> String {
        let lines: Vec<String> = self.lines.iter().map(|fields| fields.join(":")).collect();
        let mut text = lines.join("\n");
        if self.terminated && !self.lines.is_empty() {
            text.push('\n');
        }
        text
    }

    /// The entry called `name`.
    pub fn get(&self, name: &str) -> Option<&[String]> {
        self.entries().find(|fields| fields[0] == name)
    }

    /// The entry called `name`, to be changed; its number of fields must stay.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut [String]> {
        self.lines
            .iter_mut()
            .filter(|fields| is_entry(fields))
            .find(|fields| fields[0] == name)
            .map(Vec::as_mut_slice)
    }

    /// All entries.
    pub fn entries(&self) -> impl Iterator<Item = &[String]> {
        self.lines.iter().filter(|fields| is_entry(fields)).map(Vec::as_slice)
    }

    /// Names of all entries.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries().map(|fields| fields[0].as_str())
    }

    /// The number in field `at` of the entry called `name`.
    pub fn number(&self, name: &str, at: usize) -> Option<u32> {
        self.get(name)?.get(at)?.parse().ok()
    }

    /// The name of the first entry that has `number` in field `at`.
    pub fn holder(&self, number: u32, at: usize) -> Option<&str> {
        let has = |fields: &&[String]| fields.get(at).and_then(|f| f.parse().ok()) == Some(number);
        self.entries().find(has).map(|fields| fields[0].as_str())
    }

    /// Adds an entry at the end.
    pub fn push<const N: usize>(&mut self, fields: [&str; N]) {
        self.terminated = true;
        self.lines.push(fields.map(str::to_owned).to_vec());
    }
}

fn is_entry(fields: &[String]) -> bool {
    fields.len() > 1 && !fields[0].is_empty() && !fields[0].starts_with(['#', '+', '-'])
}

/// Adds `member` to a list of names with commas between them, if it isn't there.
pub(super) fn add_member(list: &mut String, member: &str) {
    if list.split(',').any(|m| m == member) {
        return;
    }
    if !list.is_empty() {
        list.push(',');
    }
    list.push_str(member);
}

/// Whether Debian's tools take `name` for an account or group: `NAME_REGEX` of adduser(8) and its system counterpart.
pub(super) fn is_valid_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_');
    first
        && name.len() <= 32
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-.".contains(&b))
}

/// Whether a field of these files can hold `text`.
pub(super) fn is_valid_field(text: &str) -> bool {
    !text.contains(|c: char| c == ':' || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn entries_are_found_and_added() {
        let mut table = Table::parse("# by hand\nroot:x:0:\nadm:x:4:a\n+:::\n");
        assert_eq!(table.names().collect::<Vec<_>>(), ["root", "adm"]);
        assert_eq!((table.number("adm", 2), table.holder(0, 2)), (Some(4), Some("root")));
        add_member(&mut table.get_mut("adm").unwrap()[3], "b");
        add_member(&mut table.get_mut("adm").unwrap()[3], "a");
        table.push(["new", "x", "1000", ""]);
        assert_eq!(table.print(), "# by hand\nroot:x:0:\nadm:x:4:a,b\n+:::\nnew:x:1000:\n");
    }

    #[test]
    fn a_missing_last_line_break_is_kept_until_a_line_is_added() {
        let mut table = Table::parse("a:b");
        assert_eq!(table.print(), "a:b");
        table.push(["c", "d"]);
        assert_eq!(table.print(), "a:b\nc:d\n");
    }

    #[test]
    fn names_are_those_that_debian_takes() {
        assert!(["www-data", "_apt", "a.b", "x9"].into_iter().all(is_valid_name));
        assert!(!["", "Root", "9x", "a b", "-a", "a:b", "ä"].into_iter().any(is_valid_name));
    }

    proptest! {
        #[test]
        fn what_is_read_is_printed_again(text in "[a-z:#+\n,0-9é]{0,80}") {
            prop_assert_eq!(Table::parse(&text).print(), text);
        }
    }
}
