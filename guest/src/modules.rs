//! The kernel's modules that the initrd brings: which are needed, in which order, loading them.
//!
//! `/modules/list` has a line for each: its file, then words: `always`, `needs=FILE,FILE` (what must be loaded before), and
//! patterns of the devices that it drives (`virtio:d00000002v*`), which are compared with the kernel's `modalias` of each
//! device. What no device asks for isn't loaded.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::libc;

use crate::cmdline;
use crate::error::{At, FileError};
use crate::sys;

/// A module.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Module {
    file: String,
    always: bool,
    needs: Vec<String>,
    aliases: Vec<String>,
}

/// A list of modules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct List {
    modules: Vec<Module>,
}

impl List {
    /// Reads a list.
    #[must_use]
    pub fn parse(text: &str) -> List {
        let module = |line: &str| {
            let mut words = line.split_whitespace();
            let file = words.next()?.to_owned();
            let mut module = Module { file, always: false, needs: Vec::new(), aliases: Vec::new() };
            for word in words {
                match word.strip_prefix("needs=") {
                    Some(needs) => module.needs.extend(needs.split(',').map(str::to_owned)),
                    None if word == "always" => module.always = true,
                    None => module.aliases.push(word.to_owned()),
                }
            }
            Some(module)
        };
        List { modules: text.lines().filter_map(module).collect() }
    }

    /// The files of the modules that are always needed, what they need before them.
    #[must_use]
    pub fn always(&self) -> Vec<&str> {
        self.with_needs(|module| module.always)
    }

    /// The files of the modules that drive one of these devices, what they need before them.
    #[must_use]
    pub fn driving(&self, devices: &[String]) -> Vec<&str> {
        let drives =
            |alias: &String| devices.iter().any(|device| matches(alias.as_bytes(), device.as_bytes()));
        self.with_needs(|module| module.aliases.iter().any(drives))
    }

    fn with_needs(&self, wanted: impl Fn(&Module) -> bool) -> Vec<&str> {
        let mut files = Vec::new();
        for (index, module) in self.modules.iter().enumerate() {
            if wanted(module) {
                self.add(index, &mut files);
            }
        }
        files
    }

    /// Adds a module behind those that it needs. They stand before it in the list, so that this ends.
    fn add<'a>(&'a self, index: usize, files: &mut Vec<&'a str>) {
        let module = &self.modules[index];
        if files.contains(&module.file.as_str()) {
            return;
        }
        for need in &module.needs {
            if let Some(before) = self.modules[..index].iter().position(|m| m.file == *need) {
                self.add(before, files);
            }
        }
        files.push(&module.file);
    }
}

/// Whether a text matches a pattern in fnmatch(3)'s manner: `*`, `?`, `[…]`, `[!…]`.
#[must_use]
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to go on when what follows the last star doesn't fit: the star then takes one byte more.
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, t));
                p += 1;
                continue;
            }
            Some(_) => {
                if let Some(len) = one(&pattern[p..], text[t]) {
                    (p, t) = (p + len, t + 1);
                    continue;
                }
            }
            None => {}
        }
        let Some((after, at)) = retry else { return false };
        retry = Some((after, at + 1));
        (p, t) = (after, at + 1);
    }
    pattern[p..].iter().all(|b| *b == b'*')
}

/// How long the pattern's first element is, when the byte fits it.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'[', rest @ ..] if rest.contains(&b']') => {
            let end = 1 + rest.iter().skip(1).position(|b| *b == b']')?;
            let (not, set) = match &rest[..end] {
                [b'!' | b'^', set @ ..] => (true, set),
                set => (false, set),
            };
            let mut found = false;
            let mut at = 0;
            while let Some(&first) = set.get(at) {
                let range = set.get(at + 1) == Some(&b'-') && at + 2 < set.len();
                let last = if range { set[at + 2] } else { first };
                found |= (first..=last).contains(&byte);
                at += if range { 3 } else { 1 };
            }
            (found != not).then_some(end + 2)
        }
        [first, ..] => (*first == byte).then_some(1),
        [] => None,
    }
}

/// Loads modules, each once.
#[derive(Debug)]
pub struct Loader {
    folder: PathBuf,
    list: List,
    loaded: Vec<String>,
}

impl Loader {
    /// A loader of the modules in a folder. Without a list there are none: a kernel may have all that it needs built in.
    ///
    /// # Errors
    /// When the list is there and can't be read.
    pub fn open(folder: &Path) -> Result<Loader, FileError> {
        let path = folder.join("list");
        let list = match fs::read_to_string(&path) {
            Ok(text) => List::parse(&text),
            Err(e) if e.kind() == io::ErrorKind::NotFound => List::default(),
            Err(e) => return Err(e).at("read", path),
        };
        Ok(Loader { folder: folder.to_owned(), list, loaded: Vec::new() })
    }

    /// Loads what the devices need that are there now; the modules that can't be loaded are returned, with the reason.
    #[must_use]
    pub fn load_for_devices(&mut self, arguments: &[String]) -> Vec<FileError> {
        let files: Vec<String> = self.list.driving(&devices()).into_iter().map(str::to_owned).collect();
        self.load(files, arguments)
    }

    /// Loads what is always needed.
    #[must_use]
    pub fn load_always(&mut self, arguments: &[String]) -> Vec<FileError> {
        let files: Vec<String> = self.list.always().into_iter().map(str::to_owned).collect();
        self.load(files, arguments)
    }

    fn load(&mut self, files: Vec<String>, arguments: &[String]) -> Vec<FileError> {
        let new: Vec<String> = files.into_iter().filter(|file| !self.loaded.contains(file)).collect();
        let failed = new.iter().filter_map(|file| load(&self.folder.join(file), arguments).err()).collect();
        self.loaded.extend(new);
        failed
    }
}

fn load(path: &Path, arguments: &[String]) -> Result<(), FileError> {
    let file = File::open(path).at("open", path)?;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    // `NNN-name.ko`: the number only is there for the order.
    let numbered = stem.split_once('-').filter(|(number, _)| number.bytes().all(|b| b.is_ascii_digit()));
    let name = numbered.map_or(&*stem, |(_, name)| name);
    let parameters = CString::new(cmdline::module_parameters(arguments, name)).unwrap_or_default();
    match sys::load_module(file.as_fd(), &parameters) {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        result => result.at("load", path),
    }
}

/// What the kernel calls the devices that it sees, on all buses.
fn devices() -> Vec<String> {
    let folder = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path());
    folder(Path::new("/sys/bus"))
        .flat_map(|bus| folder(&bus.join("devices")).collect::<Vec<_>>())
        .filter_map(|device| fs::read_to_string(device.join("modalias")).ok())
        .map(|alias| alias.trim_end().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_the_kernel_means_them() {
        for (pattern, text, expected) in [
            ("virtio:d00000002v*", "virtio:d00000002v00001AF4", true),
            ("virtio:d00000002v*", "virtio:d00000001v00001AF4", false),
            ("pci:v*d*sv*sd*bc01sc08i02*", "pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02", true),
            ("pci:v*d*sv*sd*bc01sc06i01*", "pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02", false),
            ("a[0-3]c", "a2c", true),
            ("a[!0-3]c", "a2c", false),
            ("a[b-", "a[b-", true),
            ("a]?", "a]x", true),
            ("*a*b", "xxaxxabb", true),
            ("*a*b", "xxaxxabc", false),
            ("", "", true),
            ("**", "", true),
            ("a", "", false),
            ("[]x]", "]", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn only_what_is_needed_is_loaded_in_order() {
        let list = List::parse(
            "001-virtio.ko\n002-ring.ko needs=001-virtio.ko\n\
             003-pci.ko pci:v00001AF4d* needs=001-virtio.ko,002-ring.ko\n\
             004-blk.ko virtio:d00000002v* needs=002-ring.ko\n\
             005-dm.ko\n006-verity.ko always needs=005-dm.ko\n007-loop.ko always\n",
        );
        assert_eq!(list.always(), ["005-dm.ko", "006-verity.ko", "007-loop.ko"]);
        let devices = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            list.driving(&devices(&["pci:v00001AF4d00001001sv"])),
            ["001-virtio.ko", "002-ring.ko", "003-pci.ko"]
        );
        assert_eq!(list.driving(&devices(&["acpi:PNP0A03:"])), Vec::<&str>::new());
    }

    #[test]
    fn a_list_that_needs_itself_ends() {
        let list = List::parse("a always needs=a,b\nb always needs=a\n\n");
        assert_eq!(list.always(), ["a", "b"]);
    }

    #[test]
    fn no_list_means_no_modules() {
        let mut loader = Loader::open(Path::new("/nowhere")).unwrap();
        assert!(loader.load_always(&[]).is_empty());
    }
}
