//! The menus of boot loaders: names of entries with systemd-boot's counters, GRUB's menu and environment block.
//!
//! Every generation is one unified kernel image. systemd-boot finds it by itself and counts in the file's name; GRUB, on
//! machines with a BIOS, is told where kernel and initrd lie in it and counts in its environment block. Both take the newest
//! generation that has come up before or has tries left.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use crate::uki::{self, NotAnImage};

/// The folder of unified kernel images on the EFI system partition (UAPI group's specification 1, type 2 entries).
pub const ENTRIES: &str = "EFI/Linux";
/// GRUB's menus on the EFI system partition. One of them is in use, and stays as it is while the other one is written.
pub const MENUS: [&str; 2] = ["kiln/menu.cfg", "kiln/menu-2.cfg"];
/// The variable of the environment block that says which menu is in use, and what it says of each.
const IN_USE: (&str, [&str; 2]) = ("kiln_menu", ["", "-2"]);
/// GRUB's environment block on the EFI system partition.
pub const ENVIRONMENT: &str = "kiln/grubenv";
/// How often a new generation may fail to come up.
pub const TRIES: u32 = 3;
/// Size of an environment block: GRUB rewrites it in place.
const ENVIRONMENT_SIZE: usize = 1024;
/// Room for the menu of some sixteen generations.
const MENU_SIZE: usize = 16 << 10;
const ENVIRONMENT_HEAD: &str = "# GRUB Environment Block\n";
const SECTOR: u64 = 512;

/// Counts how often an entry was started without coming up (UAPI group's specification 1, "Boot counting").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tries {
    /// How often it may still be tried.
    pub left: u32,
    /// How often it was.
    pub done: u32,
}

/// The file name of a generation's entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryName {
    /// The generation, from 1.
    pub generation: u32,
    /// `None` once it has come up.
    pub tries: Option<Tries>,
}

impl EntryName {
    /// The name of a generation that is still to come up.
    #[must_use]
    pub fn untried(generation: u32) -> EntryName {
        EntryName { generation, tries: Some(Tries { left: TRIES, done: 0 }) }
    }

    /// Reads a name; `None` for files that are none of Kiln's.
    #[must_use]
    pub fn parse(name: &str) -> Option<EntryName> {
        let stem = name.strip_prefix("kiln-")?.strip_suffix(".efi")?;
        let (generation, tries) = match stem.split_once('+') {
            None => (stem, None),
            Some((generation, tries)) => {
                let (left, done) = tries.split_once('-').unwrap_or((tries, "0"));
                (generation, Some(Tries { left: number(left)?, done: number(done)? }))
            }
        };
        Some(EntryName { generation: number(generation)?, tries })
    }

    /// Whether it may be started: it has come up before or has tries left.
    #[must_use]
    pub fn may_start(&self) -> bool {
        self.tries.is_none_or(|tries| tries.left > 0)
    }
}

fn number(text: &str) -> Option<u32> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kiln-{:05}", self.generation)?;
        match self.tries {
            None => {}
            Some(Tries { left, done: 0 }) => write!(f, "+{left}")?,
            Some(Tries { left, done }) => write!(f, "+{left}-{done}")?,
        }
        write!(f, ".efi")
    }
}

/// A part of a file, in sectors of 512 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sectors {
    /// The first.
    pub first: u64,
    /// How many.
    pub count: u64,
}

/// A generation as GRUB is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The generation.
    pub generation: u32,
    /// What the menu shows.
    pub title: String,
    /// The kernel's command line.
    pub cmdline: String,
    /// Where the kernel lies in the image.
    pub linux: Sectors,
    /// Where the initrd lies in the image.
    pub initrd: Sectors,
}

impl Entry {
    /// What a unified kernel image says of itself.
    ///
    /// # Errors
    /// When it is none, or lacks a section.
    pub fn of(generation: u32, image: &[u8]) -> Result<Entry, NotAnImage> {
        let sections = uki::sections(image)?;
        let section = |name: &str| {
            sections.iter().find(|s| s.name == name).ok_or(uki::NotAnImage("a section is missing"))
        };
        let text = |name: &str| {
            let section = section(name)?;
            let (offset, size) = (section.offset as usize, section.size as usize);
            let bytes = image.get(offset..offset + size).ok_or(NotAnImage("it is cut off"))?;
            Ok::<_, NotAnImage>(String::from_utf8_lossy(bytes).into_owned())
        };
        let sectors = |name: &str| {
            let section = section(name)?;
            if !section.offset.is_multiple_of(SECTOR) || section.offset + section.size > image.len() as u64 {
                return Err(NotAnImage("its sections don't lie on sectors"));
            }
            Ok(Sectors { first: section.offset / SECTOR, count: section.size.div_ceil(SECTOR) })
        };
        let title = text(".osrel")?
            .lines()
            .find_map(|line| line.strip_prefix("PRETTY_NAME="))
            .map_or_else(|| format!("generation {generation}"), |title| title.trim_matches('"').to_owned());
        let cmdline = text(".cmdline")?.trim_matches(['\0', '\n', ' ']).to_owned();
        Ok(Entry { generation, title, cmdline, linux: sectors(".linux")?, initrd: sectors(".initrd")? })
    }
}

/// A menu as a file: with blank lines behind it, so that it can be written anew where it is, whatever generations come.
#[must_use]
pub fn menu_file(menu: &str) -> Vec<u8> {
    let mut bytes = menu.as_bytes().to_vec();
    bytes.resize(bytes.len().max(MENU_SIZE), b'\n');
    bytes
}

/// What GRUB's configuration ends with: it reads the menu that is in use.
#[must_use]
pub fn grub_source() -> String {
    let name = IN_USE.0;
    format!("load_env -f ($root)/{ENVIRONMENT} {name}\nsource ($root)/kiln/menu${{{name}}}.cfg\n")
}

/// GRUB's menu of generations, the newest first.
#[must_use]
pub fn grub_menu(entries: &[Entry]) -> String {
    let mut entries: Vec<&Entry> = entries.iter().collect();
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.generation));
    let mut text = String::from("# Written by Kiln whenever a generation comes or goes.\n");
    let variables: Vec<String> = entries.iter().map(|entry| variable(entry.generation)).collect();
    let _ = writeln!(text, "load_env -f ($root)/{ENVIRONMENT} {}", variables.join(" "));
    text.push_str("set default=\nset fallback=\n");
    for entry in &entries {
        let name = variable(entry.generation);
        // A generation without a value is one that a lost write forgot: it may be tried.
        let _ = write!(
            text,
            "if [ \"${name}\" != 0 ]; then\n  if [ -z \"$default\" ]; then set default=kiln-{0}\n  \
             elif [ -z \"$fallback\" ]; then set fallback=kiln-{0}; fi\nfi\n",
            entry.generation
        );
    }
    if let Some(newest) = entries.first() {
        let _ = writeln!(text, "if [ -z \"$default\" ]; then set default=kiln-{}; fi", newest.generation);
    }
    for entry in entries {
        text.push_str(&menu_entry(entry));
    }
    text
}

fn variable(generation: u32) -> String {
    format!("kiln_{generation}")
}

fn menu_entry(entry: &Entry) -> String {
    let Entry { generation, title, cmdline, linux, initrd } = entry;
    let name = variable(*generation);
    let arguments: Vec<String> = cmdline.split_whitespace().map(word).collect();
    let mut text = format!("menuentry {} --id kiln-{generation} {{\n", word(title));
    for left in (1..=TRIES).rev() {
        let test = if left == TRIES { "if" } else { "elif" };
        let _ = writeln!(text, "  {test} [ \"${name}\" = {left} ]; then set {name}={}", left - 1);
    }
    let _ = write!(
        text,
        "  fi\n  if [ -n \"${name}\" ]; then save_env -f ($root)/{ENVIRONMENT} {name}; fi\n  \
         for image in ($root)/{ENTRIES}/kiln-{generation:05}*.efi; do loopback uki $image; done\n  \
         linux (uki){}+{} {}\n  initrd (uki){}+{}\n}}\n",
        linux.first,
        linux.count,
        arguments.join(" "),
        initrd.first,
        initrd.count,
    );
    text
}

/// A word of GRUB's script language: in single quotes unless it needs none.
#[must_use]
pub fn word(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-+=.,:/@%".contains(&b);
    if !text.is_empty() && text.bytes().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// GRUB's environment block: what its menu remembers from one boot to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    values: BTreeMap<String, String>,
}

impl Environment {
    /// Reads a block; what is no assignment is passed over, so that a damaged block is an empty one.
    #[must_use]
    pub fn parse(block: &[u8]) -> Environment {
        let text = String::from_utf8_lossy(block);
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let values = lines.filter_map(|line| line.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned()));
        Environment { values: values.collect() }
    }

    /// The block as it is to be written; `None` when there is too much for it.
    #[must_use]
    pub fn print(&self) -> Option<Vec<u8>> {
        let mut text = ENVIRONMENT_HEAD.to_owned();
        for (name, value) in &self.values {
            let _ = writeln!(text, "{name}={value}");
        }
        let mut block = text.into_bytes();
        (block.len() <= ENVIRONMENT_SIZE).then(|| {
            block.resize(ENVIRONMENT_SIZE, b'#');
            block
        })
    }

    /// How a generation stands: its tries, or that it has come up; `None` when nothing is known of it.
    #[must_use]
    pub fn standing(&self, generation: u32) -> Option<Standing> {
        match self.values.get(&variable(generation)).map(String::as_str)? {
            "good" => Some(Standing::Good),
            text => number(text).map(Standing::Left),
        }
    }

    /// Which of [`MENUS`] is in use.
    #[must_use]
    pub fn menu(&self) -> usize {
        let (name, values) = IN_USE;
        usize::from(self.values.get(name).is_some_and(|value| value == values[1]))
    }

    /// Takes another of [`MENUS`].
    pub fn set_menu(&mut self, menu: usize) {
        let (name, values) = IN_USE;
        self.values.insert(name.to_owned(), values[menu.min(1)].to_owned());
    }

    /// The same without anything of generations.
    #[must_use]
    pub fn of_no_generation(&self) -> Environment {
        let mut environment = Environment::default();
        environment.set_menu(self.menu());
        environment
    }

    /// The generations of which something is known.
    #[must_use]
    pub fn generations(&self) -> Vec<u32> {
        self.values.keys().filter_map(|name| number(name.strip_prefix("kiln_")?)).collect()
    }

    /// Notes how a generation stands; `None` forgets it.
    pub fn set(&mut self, generation: u32, standing: Option<Standing>) {
        match standing {
            None => drop(self.values.remove(&variable(generation))),
            Some(Standing::Good) => drop(self.values.insert(variable(generation), "good".to_owned())),
            Some(Standing::Left(left)) => drop(self.values.insert(variable(generation), left.to_string())),
        }
    }
}

/// How a generation stands in GRUB's environment block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It has come up.
    Good,
    /// It may be tried so often.
    Left(u32),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        let tried = |left, done| EntryName { generation: 7, tries: Some(Tries { left, done }) };
        for (text, name) in [
            ("kiln-00007.efi", EntryName { generation: 7, tries: None }),
            ("kiln-00007+3.efi", EntryName::untried(7)),
            ("kiln-00007+2-1.efi", tried(2, 1)),
            ("kiln-00007+0-3.efi", tried(0, 3)),
        ] {
            assert_eq!(EntryName::parse(text), Some(name));
            assert_eq!(name.to_string(), text);
        }
        for other in [
            "kiln-.efi",
            "kiln-1+.efi",
            "kiln-1+3-.efi",
            "debian.efi",
            "kiln-1.efi.tmp",
            "kiln-99999999999.efi",
        ] {
            assert_eq!(EntryName::parse(other), None, "{other}");
        }
        assert!(!tried(0, 3).may_start() && tried(1, 2).may_start());
    }

    fn entry(generation: u32) -> Entry {
        Entry {
            generation,
            title: format!("web 1.{generation}"),
            cmdline: "kiln.system=a quiet dyndbg=$x".to_owned(),
            linux: Sectors { first: 8, count: 100 },
            initrd: Sectors { first: 108, count: 9 },
        }
    }

    #[test]
    fn the_menu_as_it_is_written() {
        let text = grub_menu(&[entry(1), entry(2)]);
        let expected = "\
# Written by Kiln whenever a generation comes or goes.
load_env -f ($root)/kiln/grubenv kiln_2 kiln_1
set default=
set fallback=
if [ \"$kiln_2\" != 0 ]; then
  if [ -z \"$default\" ]; then set default=kiln-2
  elif [ -z \"$fallback\" ]; then set fallback=kiln-2; fi
fi
if [ \"$kiln_1\" != 0 ]; then
  if [ -z \"$default\" ]; then set default=kiln-1
  elif [ -z \"$fallback\" ]; then set fallback=kiln-1; fi
fi
if [ -z \"$default\" ]; then set default=kiln-2; fi
menuentry 'web 1.2' --id kiln-2 {
  if [ \"$kiln_2\" = 3 ]; then set kiln_2=2
  elif [ \"$kiln_2\" = 2 ]; then set kiln_2=1
  elif [ \"$kiln_2\" = 1 ]; then set kiln_2=0
  fi
  if [ -n \"$kiln_2\" ]; then save_env -f ($root)/kiln/grubenv kiln_2; fi
  for image in ($root)/EFI/Linux/kiln-00002*.efi; do loopback uki $image; done
  linux (uki)8+100 kiln.system=a quiet 'dyndbg=$x'
  initrd (uki)108+9
}
";
        assert!(text.starts_with(expected), "{text}");
        assert!(text.contains("menuentry 'web 1.1' --id kiln-1 {"));
    }

    #[test]
    fn the_environment_block_keeps_its_size() {
        let mut environment = Environment::default();
        environment.set(1, Some(Standing::Good));
        environment.set(2, Some(Standing::Left(3)));
        let block = environment.print().unwrap();
        assert_eq!(block.len(), 1024);
        assert!(block.starts_with(b"# GRUB Environment Block\nkiln_1=good\nkiln_2=3\n####"));
        assert_eq!(Environment::parse(&block), environment);
        assert_eq!(environment.standing(2), Some(Standing::Left(3)));
        assert_eq!(environment.generations(), [1, 2]);
        environment.set(2, None);
        assert_eq!((environment.standing(2), environment.generations()), (None, vec![1]));
        assert_eq!(Environment::parse(&[0xff; 1024]), Environment::default());
        assert_eq!(environment.menu(), 0);
        environment.set_menu(1);
        environment = Environment::parse(&environment.print().unwrap());
        assert_eq!((environment.menu(), environment.generations()), (1, vec![1]));
        (0..200).for_each(|generation| environment.set(generation, Some(Standing::Good)));
        assert_eq!(environment.print(), None);
        let begun_anew = environment.of_no_generation();
        assert_eq!((begun_anew.menu(), begun_anew.generations()), (1, vec![]));
        assert_eq!(
            grub_source(),
            "load_env -f ($root)/kiln/grubenv kiln_menu\nsource ($root)/kiln/menu${kiln_menu}.cfg\n"
        );
    }
}
