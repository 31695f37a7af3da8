//! The dpkg database (dpkg(1), deb-triggers(5)) as values: unpacked packages in, files of /var/lib/dpkg out.
//!
//! [`database`] writes what `dpkg --unpack` of all packages would have left, so that dpkg itself can configure them;
//! [`order`] tells in which order that has to happen.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;

use md5::{Digest as _, Md5};

use super::deb::{Control, DebError};
use crate::arch::Arch;
use crate::digest::hex;
use crate::tree::TreePath;

/// Folder of the database in a tree.
pub const ADMIN_DIR: &str = "var/lib/dpkg";

/// What ordering and ownership of files need of a package's control file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// The package's name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its architecture: that of the machine, or `all`.
    pub arch: String,
    /// Whether it is `Multi-Arch: same`, so that its files in the database carry the architecture.
    pub same: bool,
    /// Whether the system can't do without it (`Essential: yes`).
    pub essential: bool,
    /// `Pre-Depends` and then `Depends`: groups of alternatives, by name alone.
    pub depends: Vec<Vec<String>>,
    /// Names that it provides.
    pub provides: Vec<String>,
    /// Packages whose files it may take over.
    pub replaces: Vec<String>,
}

/// A conffile line: its path, and the flag in front of it (`remove-on-upgrade`), if any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conffile {
    /// Path below the root.
    pub path: TreePath,
    /// The flag, or empty.
    pub flag: String,
}

/// A package whose files lie in the tree.
#[derive(Debug, Clone)]
pub struct Unpacked {
    /// What its control file says.
    pub meta: Meta,
    /// Its control part.
    pub control: Control,
    /// The paths of its data part in the archive's order, the root itself as the empty path.
    pub paths: Vec<TreePath>,
    /// MD5 of its conffiles that are regular files, in hexadecimal.
    pub md5: BTreeMap<TreePath, String>,
}

/// A file of the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DbFile {
    /// Path below the tree's root.
    pub path: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Its time; `None`: that of the build.
    pub mtime: Option<i64>,
}

impl Meta {
    /// Reads the fields of a control part.
    ///
    /// # Errors
    /// When name, version or architecture are missing or malformed.
    pub fn of(control: &Control) -> Result<Meta, DebError> {
        let name = control.required("Package")?;
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b);
        if !name.bytes().all(plain) || !name.as_bytes()[0].is_ascii_alphanumeric() {
            return Err(DebError::Control(format!(
                "names the package `{}`, which is no name",
                name.escape_debug()
            )));
        }
        let arch = control.required("Architecture")?;
        if !arch.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
            return Err(DebError::Control(format!("names the architecture `{}`", arch.escape_debug())));
        }
        let groups = |field: &str| control.field(field).map(|v| relations(&v)).unwrap_or_default();
        let flat = |field: &str| groups(field).into_iter().flatten().collect();
        let yes =
            |field: &str, value: &str| control.field(field).is_some_and(|v| v.eq_ignore_ascii_case(value));
        Ok(Meta {
            version: control.required("Version")?,
            same: yes("Multi-Arch", "same"),
            essential: yes("Essential", "yes"),
            depends: [groups("Pre-Depends"), groups("Depends")].concat(),
            provides: flat("Provides"),
            replaces: flat("Replaces"),
            name,
            arch,
        })
    }

    /// The first part of its file names below `info/`: the architecture belongs to it for `Multi-Arch: same`.
    #[must_use]
    pub fn info_name(&self) -> String {
        if self.same { format!("{}:{}", self.name, self.arch) } else { self.name.clone() }
    }
}

/// A relation field as groups of alternatives, versions and architecture qualifiers left out.
fn relations(text: &str) -> Vec<Vec<String>> {
    let name = |one: &str| {
        let end = one.find(|c: char| c == '(' || c == '[' || c == '<' || c == ':' || c.is_whitespace());
        one[..end.unwrap_or(one.len())].to_owned()
    };
    let group = |g: &str| g.split('|').map(|a| name(a.trim())).filter(|n| !n.is_empty()).collect::<Vec<_>>();
    text.split(',').map(group).filter(|g| !g.is_empty()).collect()
}

/// The conffiles that a package names.
#[must_use]
pub fn conffiles(control: &Control) -> Vec<Conffile> {
    let text = control.text("conffiles").unwrap_or_default();
    let parse = |line: &str| {
        let (flag, path) = match line.split_once(' ') {
            Some((flag, path)) if !flag.starts_with('/') => (flag.to_owned(), path),
            _ => (String::new(), line),
        };
        let path = crate::tree::normal(path.trim().as_bytes());
        (!path.is_empty()).then_some(Conffile { path, flag })
    };
    text.lines().map(str::trim_end).filter_map(parse).collect()
}

/// MD5 as dpkg notes it for conffiles.
#[must_use]
pub fn md5_hex(bytes: &[u8]) -> String {
    hex(&Md5::digest(bytes))
}

/// In which order packages are configured: positions in the given list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The essential packages and all they depend on; `base-passwd`, which makes /etc/passwd, first.
    pub essential: Vec<usize>,
    /// All others.
    pub rest: Vec<usize>,
}

/// Orders packages so that each comes after those it depends on; cycles are cut where they are met.
#[must_use]
pub fn order(packages: &[Meta]) -> Order {
    let mut names: Vec<usize> = (0..packages.len()).collect();
    names.sort_by(|&a, &b| {
        (&packages[a].name, &packages[a].arch).cmp(&(&packages[b].name, &packages[b].arch))
    });
    let mut walk =
        Walk { packages, real: HashMap::new(), virt: HashMap::new(), seen: BTreeSet::new(), out: Vec::new() };
    for &index in &names {
        walk.real.entry(&packages[index].name).or_insert(index);
        for name in &packages[index].provides {
            walk.virt.entry(name).or_default().push(index);
        }
    }
    if let Some(&first) = walk.real.get("base-passwd") {
        walk.seen.insert(first);
        walk.out.push(first);
        walk.below(first);
    }
    for &index in names.iter().filter(|&&i| packages[i].essential) {
        walk.visit(index);
    }
    let essential = std::mem::take(&mut walk.out);
    for &index in &names {
        walk.visit(index);
    }
    Order { essential, rest: walk.out }
}

struct Walk<'a> {
    packages: &'a [Meta],
    real: HashMap<&'a str, usize>,
    virt: HashMap<&'a str, Vec<usize>>,
    seen: BTreeSet<usize>,
    out: Vec<usize>,
}

impl Walk<'_> {
    /// Post-order, without recursion: chains of dependencies are long.
    fn visit(&mut self, index: usize) {
        if !self.seen.insert(index) {
            return;
        }
        self.below(index);
        self.out.push(index);
    }

    fn below(&mut self, index: usize) {
        let mut stack = vec![(index, self.needs(index))];
        stack[0].1.reverse();
        while let Some((at, todo)) = stack.last_mut() {
            match todo.pop() {
                Some(next) if self.seen.insert(next) => {
                    let mut needs = self.needs(next);
                    needs.reverse();
                    stack.push((next, needs));
                }
                Some(_) => {}
                None => {
                    let done = *at;
                    stack.pop();
                    if !stack.is_empty() {
                        self.out.push(done);
                    }
                }
            }
        }
    }

    /// What a package depends on, among those that are there: of each group the first real one, else providers.
    fn needs(&self, index: usize) -> Vec<usize> {
        let mut out = Vec::new();
        for group in &self.packages[index].depends {
            let real = group.iter().find_map(|n| self.real.get(n.as_str()));
            match real {
                Some(&found) => out.push(found),
                None => {
                    out.extend(group.iter().find_map(|n| self.virt.get(n.as_str())).into_iter().flatten())
                }
            }
        }
        out
    }
}

/// The database that `dpkg --unpack` of `packages` leaves.
#[must_use]
pub fn database(packages: &[Unpacked], arch: Arch) -> Vec<DbFile> {
    let mut sorted: Vec<&Unpacked> = packages.iter().collect();
    sorted.sort_by(|a, b| (&a.meta.name, &a.meta.arch).cmp(&(&b.meta.name, &b.meta.arch)));
    let mut files = Vec::new();
    let mut put = |path: String, bytes: Vec<u8>, mode, mtime| {
        files.push(DbFile { path: format!("{ADMIN_DIR}/{path}"), bytes, mode, mtime });
    };
    let mut status = String::new();
    let mut by_path = String::new();
    let mut by_name: BTreeMap<String, String> = BTreeMap::new();
    for package in sorted {
        status.push_str(&stanza(package));
        status.push('\n');
        let base = package.meta.info_name();
        put(format!("info/{base}.list"), list(&package.paths), 0o644, None);
        for (name, file) in package.control.files.iter().filter(|(name, _)| *name != "control") {
            put(format!("info/{base}.{name}"), file.bytes.clone(), file.mode & 0o755, Some(file.mtime));
        }
        for (trigger, awaits) in interests(&package.control) {
            let who = if awaits { base.clone() } else { format!("{base}/noawait") };
            if trigger.starts_with('/') {
                let _ = writeln!(by_path, "{trigger} {who}");
            } else {
                let _ = writeln!(by_name.entry(trigger).or_default(), "{who}");
            }
        }
    }
    put("status".to_owned(), status.into_bytes(), 0o644, None);
    put("triggers/File".to_owned(), by_path.into_bytes(), 0o644, None);
    put("triggers/Unincorp".to_owned(), Vec::new(), 0o644, None);
    for (trigger, who) in by_name {
        put(format!("triggers/{trigger}"), who.into_bytes(), 0o644, None);
    }
    put("info/format".to_owned(), b"1\n".to_vec(), 0o644, None);
    for name in ["arch", "arch-native"] {
        put(name.to_owned(), format!("{arch}\n").into_bytes(), 0o644, None);
    }
    files
}

fn stanza(package: &Unpacked) -> String {
    let text = package.control.text("control").unwrap_or_default();
    let mut out = String::with_capacity(text.len() + 64);
    for line in text.lines().filter(|l| !l.trim().is_empty()) {
        out.push_str(line);
        out.push('\n');
        if line.get(..8).is_some_and(|start| start.eq_ignore_ascii_case("package:")) {
            out.push_str("Status: install ok unpacked\n");
        }
    }
    let conffiles = conffiles(&package.control);
    if !conffiles.is_empty() {
        out.push_str("Conffiles:\n");
    }
    for Conffile { path, flag } in conffiles {
        let sum = package.md5.get(&path).map_or("newconffile", String::as_str);
        let space = if flag.is_empty() { "" } else { " " };
        let _ = writeln!(out, " /{} {sum}{space}{flag}", String::from_utf8_lossy(&path));
    }
    out
}

fn list(paths: &[TreePath]) -> Vec<u8> {
    let mut out = Vec::with_capacity(paths.iter().map(|p| p.len() + 2).sum());
    for path in paths {
        out.push(b'/');
        out.extend_from_slice(if path.is_empty() { b"." } else { path });
        out.push(b'\n');
    }
    out
}

/// The triggers that a package waits for, and whether the one that sets them off waits for it.
fn interests(control: &Control) -> Vec<(String, bool)> {
    let text = control.text("triggers").unwrap_or_default();
    let parse = |line: &str| {
        let mut words = line.split('#').next()?.split_whitespace();
        let (verb, trigger) = (words.next()?, words.next()?);
        let named = trigger.starts_with('/') || trigger.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
        let awaits = match verb {
            "interest" | "interest-await" => true,
            "interest-noawait" => false,
            _ => return None,
        };
        named.then(|| (trigger.to_owned(), awaits))
    };
    text.lines().filter_map(parse).collect()
}

/// apt's note of which packages nobody asked for, so that `apt autoremove` knows them (`/var/lib/apt/extended_states`).
#[must_use]
pub fn extended_states<'a>(automatic: impl IntoIterator<Item = &'a str>, arch: Arch) -> Vec<u8> {
    let names: BTreeSet<&str> = automatic.into_iter().collect();
    let mut out = String::new();
    for name in names {
        let _ = write!(out, "Package: {name}\nArchitecture: {arch}\nAuto-Installed: 1\n\n");
    }
    out.into_bytes()
}

/// Reads `diversions` (path, where it is diverted to, by which package; a line each): path to target and package.
#[must_use]
pub fn diversions(text: &[u8]) -> BTreeMap<TreePath, (TreePath, String)> {
    let lines: Vec<&[u8]> = text.split(|&b| b == b'\n').collect();
    let entry = |three: &[&[u8]]| {
        let path = crate::tree::normal(three[0]);
        (path, (crate::tree::normal(three[1]), String::from_utf8_lossy(three[2]).into_owned()))
    };
    lines.chunks_exact(3).map(entry).collect()
}

/// Numbers of the users and groups that packages may own files by, from base-passwd's master files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ids(HashMap<String, u32>);

impl Ids {
    /// Reads passwd(5) or group(5): name and number are the first and the third field in both.
    #[must_use]
    pub fn parse(text: &str) -> Ids {
        let line = |l: &str| {
            let mut fields = l.split(':');
            Some((fields.next()?.to_owned(), fields.nth(1)?.parse().ok()?))
        };
        Ids(text.lines().filter_map(line).collect())
    }

    /// The number of `name`; `number` for one that is unknown.
    #[must_use]
    pub fn of(&self, name: &str, number: u32) -> u32 {
        self.0.get(name).copied().unwrap_or(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::debian::deb::ControlFile;

    fn control(files: &[(&str, &str)]) -> Control {
        let file = |bytes: &str| ControlFile { bytes: bytes.as_bytes().to_vec(), mode: 0o755, mtime: 7 };
        Control { files: files.iter().map(|(name, text)| ((*name).to_owned(), file(text))).collect() }
    }

    fn meta(name: &str, more: &str) -> Meta {
        Meta::of(&control(&[(
            "control",
            &format!("Package: {name}\nVersion: 1\nArchitecture: amd64\n{more}"),
        )]))
        .unwrap()
    }

    #[test]
    fn the_database_is_what_dpkg_would_have_written() {
        let text = "Package: libx\nVersion: 1:2\nArchitecture: amd64\nMulti-Arch: same\nDescription: x\n";
        let control = control(&[
            ("control", text),
            ("conffiles", "/etc/x\nremove-on-upgrade /etc/old\n"),
            ("triggers", "# comment\ninterest /usr/share/x\ninterest-noawait x-named\nactivate ldconfig\n"),
        ]);
        let package = Unpacked {
            meta: Meta::of(&control).unwrap(),
            paths: vec![b"".to_vec(), b"etc".to_vec(), b"etc/x".to_vec()],
            md5: [(b"etc/x".to_vec(), md5_hex(b"x\n"))].into(),
            control,
        };
        let printed: Vec<String> = database(&[package], Arch::Amd64)
            .iter()
            .map(|f| format!("== {}\n{}", f.path, String::from_utf8_lossy(&f.bytes)))
            .collect();
        insta::assert_snapshot!(printed.join("\n"));
    }

    #[test]
    fn essential_packages_come_first_with_all_they_need_providers_included() {
        let packages = [
            meta("zed", "Depends: libz | other"),
            meta("base-files", "Essential: yes\nPre-Depends: awk\n"),
            meta("mawk", "Provides: awk\nDepends: libc6 (>= 2)\n"),
            meta("libc6", "Depends: libgcc-s1\n"),
            meta("libgcc-s1", "Depends: libc6\n"),
            meta("base-passwd", "Essential: yes\nDepends: libc6\n"),
            meta("other", ""),
        ];
        let order = order(&packages);
        let names = |which: &[usize]| which.iter().map(|&i| packages[i].name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&order.essential), ["base-passwd", "libgcc-s1", "libc6", "mawk", "base-files"]);
        assert_eq!(names(&order.rest), ["other", "zed"]);
    }

    #[test]
    fn names_that_would_be_paths_are_refused() {
        for (name, arch) in [("../x", "amd64"), ("x/y", "amd64"), ("-x", "amd64"), ("x", "../y")] {
            let text = format!("Package: {name}\nVersion: 1\nArchitecture: {arch}\n");
            assert!(Meta::of(&control(&[("control", &text)])).is_err(), "{name} {arch}");
        }
    }

    #[test]
    fn diversions_and_ids_are_read() {
        let read = diversions(b"/usr/bin/a\n/usr/bin/a.real\npkg\n/b\n/c\n:\n");
        assert_eq!(read[b"usr/bin/a".as_slice()], (b"usr/bin/a.real".to_vec(), "pkg".to_owned()));
        assert_eq!(read.len(), 2);
        let ids = Ids::parse("root:*:0:0::/root:/bin/sh\nman:*:6:12::/:/\nbad\n");
        assert_eq!((ids.of("man", 9), ids.of("else", 9)), (6, 9));
    }

    #[test]
    fn automatic_packages_are_noted_once_and_sorted() {
        let text = extended_states(["b", "a", "b"], Arch::Amd64);
        assert_eq!(String::from_utf8(text).unwrap().matches("Auto-Installed: 1").count(), 2);
    }
}
