//! What the image is configured to boot: the entry that starts when nobody chooses, wherever it is written.

use std::collections::BTreeMap;

use super::binary::{self, removable_loader};
use super::grub;
use super::volume::{Files, Volume, hides};
use super::{Expect, Finding, failed, passed};
use crate::units::MIB;

/// Configurations larger than this are none.
const LARGEST: usize = MIB as usize;
/// What of a PE file is read for its list of sections.
pub(super) const HEAD: usize = 64 << 10;
/// Where GRUB's configuration lies, as seen from the file system that holds it.
const GRUB: [&str; 4] = ["boot/grub/grub.cfg", "grub/grub.cfg", "boot/grub2/grub.cfg", "grub2/grub.cfg"];
const ENTRIES: &str = "loader/entries";
const UNIFIED: &str = "EFI/Linux";

/// Where a kernel lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kernel {
    /// A file of the volume with this index.
    File(usize, String),
    /// Within a unified kernel image, whose own file this is.
    Unified(usize, String),
    /// On a volume that isn't on this disk.
    Elsewhere(String),
}

/// What is booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// The file that says so, with its place.
    pub(super) source: String,
    pub(super) title: String,
    pub(super) kernel: Kernel,
    pub(super) initrds: Vec<String>,
    /// The kernel's arguments.
    pub(super) arguments: Vec<String>,
}

/// All that is configured.
pub(super) struct Configuration {
    /// What is booted; the first is the one that counts.
    pub(super) entries: Vec<Entry>,
    pub(super) finding: Finding,
}

impl Entry {
    /// The value of the last argument of this name.
    pub(super) fn argument(&self, name: &str) -> Option<&str> {
        let with = |a: &'_ String| a.strip_prefix(name).is_some_and(|rest| rest.starts_with('='));
        self.arguments.iter().rfind(|a| with(a)).map(|a| &a[name.len() + 1..])
    }

    /// All values of the arguments of this name.
    pub(super) fn arguments_named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.arguments.iter().filter_map(move |a| a.strip_prefix(name)?.strip_prefix('='))
    }
}

/// Looks through all volumes.
pub(super) fn find(volumes: &[Volume], expect: &Expect) -> Configuration {
    let mut entries = Vec::new();
    let mut lost = Vec::new();
    for (index, volume) in volumes.iter().enumerate().filter(|(_, v)| v.is_read()) {
        let env = ["boot/grub/grubenv", "grub/grubenv", "boot/grub2/grubenv", "grub2/grubenv"];
        let env: BTreeMap<_, _> =
            env.iter().filter_map(|p| volume.text(p, LARGEST)).flat_map(|t| grub::environment(&t)).collect();
        for (path, text) in grub_configs(volume) {
            let config = grub::parse(&text, &env);
            let absent = config.searches.iter().filter(|s| !volumes.iter().any(|v| v.is_named(s)));
            lost.extend(
                absent.map(|s| format!("/{path} on {} searches for the file system {s}", volume.place())),
            );
            entries.extend(config.chosen().map(|entry| of_grub(entry, volumes, index, &path)));
        }
        entries.extend(of_loader_entries(volume, index, &env));
        let mut unified: Vec<String> =
            volume.list(UNIFIED).into_iter().map(|n| format!("{UNIFIED}/{n}")).collect();
        // The newest has the greatest name.
        unified.reverse();
        unified.push(removable_loader(expect.arch).to_owned());
        entries.extend(unified.iter().filter_map(|path| of_unified(volume, index, path)));
    }
    let finding = judge(&entries, &lost, volumes);
    Configuration { entries, finding }
}

fn judge(entries: &[Entry], lost: &[String], volumes: &[Volume]) -> Finding {
    if let Some(first) = lost.first().filter(|_| hides(volumes).is_none()) {
        return failed(format!(
            "{first}, which isn't on this disk: the boot loader stops there; write the configuration anew (update-grub) or \
             give the file system its identity back"
        ));
    }
    let Some(entry) = entries.first() else {
        if volumes.is_empty() {
            return super::skipped("there is no partition to look at");
        }
        let unread: Vec<String> = volumes
            .iter()
            .filter(|v| !v.is_read() && !v.kind.is_empty() && v.kind != "swap")
            .map(|v| {
                let state = if matches!(v.files, Files::Damaged(_)) { "damaged " } else { "" };
                format!("{} is {state}{}", v.place(), v.kind)
            })
            .collect();
        if !unread.is_empty() {
            return super::skipped(format!(
                "no boot configuration on the file systems that are read here; {}",
                unread.join(", ")
            ));
        }
        return failed(
            "no boot configuration was found: neither /boot/grub/grub.cfg with an entry, nor loader/entries/*.conf, nor \
             EFI/Linux/*.efi on any partition; install one (update-grub, bootctl, ukify)",
        );
    };
    let more = match entries.len() {
        1 => String::new(),
        n => format!(" (and {} more)", n - 1),
    };
    passed(format!("{}: `{}`{more}", entry.source, entry.title))
}

/// GRUB's configurations on a volume: the usual places, then those beside loaders on the ESP.
fn grub_configs(volume: &Volume) -> Vec<(String, String)> {
    let mut paths: Vec<String> = GRUB.map(str::to_owned).to_vec();
    paths.extend(volume.list("EFI").into_iter().map(|vendor| format!("EFI/{vendor}/grub.cfg")));
    let read = |path: String| volume.text(&path, LARGEST).map(|text| (path, text));
    paths.into_iter().take(64).filter_map(read).collect()
}

fn of_grub(entry: &grub::MenuEntry, volumes: &[Volume], own: usize, path: &str) -> Entry {
    let file = |path: &str| match path.strip_prefix('(').and_then(|p| p.split_once(')')) {
        Some((_, rest)) => rest.to_owned(),
        None => path.to_owned(),
    };
    let kernel = match &entry.device {
        None => Kernel::File(own, file(&entry.kernel)),
        Some(device) => match volumes.iter().position(|v| v.is_named(device)) {
            Some(index) => Kernel::File(index, file(&entry.kernel)),
            None => Kernel::Elsewhere(device.clone()),
        },
    };
    Entry {
        source: format!("/{path} on {}", volumes[own].place()),
        title: if entry.title.is_empty() { entry.kernel.clone() } else { entry.title.clone() },
        kernel,
        initrds: entry.initrds.iter().map(|i| file(i)).collect(),
        arguments: entry.arguments.clone(),
    }
}

/// The entry of the Boot Loader Specification's type #1 that is booted: the configured one, else the greatest name.
fn of_loader_entries(volume: &Volume, index: usize, env: &BTreeMap<String, String>) -> Option<Entry> {
    let mut names = volume.list(ENTRIES);
    names.retain(|name| name.to_ascii_lowercase().ends_with(".conf"));
    names.reverse();
    let loader = volume.text("loader/loader.conf", LARGEST).unwrap_or_default();
    if let Some(pattern) = field(&loader, "default").last() {
        let wanted =
            |name: &String| matches(pattern, name) || matches(pattern, name.trim_end_matches(".conf"));
        names.sort_by_key(|name| !wanted(name));
    }
    let read = |name: String| {
        let text = volume.text(&format!("{ENTRIES}/{name}"), LARGEST)?;
        let (linux, efi) = (field(&text, "linux").next(), field(&text, "efi").next());
        let kernel = match (linux, efi) {
            (Some(path), _) => Kernel::File(index, path.to_owned()),
            (None, Some(path)) => Kernel::Unified(index, path.to_owned()),
            (None, None) => return None,
        };
        let arguments = field(&text, "options").flat_map(str::split_whitespace);
        // Fedora keeps them in GRUB's environment block.
        let arguments = arguments.flat_map(|a| match a.strip_prefix('$').and_then(|name| env.get(name)) {
            Some(value) => value.split_whitespace().map(str::to_owned).collect(),
            None => vec![a.to_owned()],
        });
        Some(Entry {
            source: format!("/{ENTRIES}/{name} on {}", volume.place()),
            title: field(&text, "title").next().unwrap_or(&name).to_owned(),
            kernel,
            initrds: field(&text, "initrd").map(str::to_owned).collect(),
            arguments: arguments.collect(),
        })
    };
    names.into_iter().take(256).find_map(read)
}

/// The values of a key in lines of keys and values.
fn field<'a>(text: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter_map(move |line| {
        let rest = line.trim().strip_prefix(key)?;
        rest.starts_with(char::is_whitespace).then(|| rest.trim())
    })
}

/// Whether a name fits a pattern of `*` and letters.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let mut last = first;
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
        last = part;
    }
    rest.is_empty()
        || (last.is_empty() && pattern.ends_with('*'))
        || (pattern.contains('*') && name.ends_with(last))
}

/// A unified kernel image, which says itself what it boots; `None` for other programs.
fn of_unified(volume: &Volume, index: usize, path: &str) -> Option<Entry> {
    let (head, _) = volume.head(path, HEAD).ok()??;
    let pe = binary::pe(&head)?;
    pe.sections.iter().find(|s| s.name == ".linux")?;
    let cmdline = pe.sections.iter().find(|s| s.name == ".cmdline" && s.size <= LARGEST as u64);
    let text = cmdline.and_then(|section| {
        let end = usize::try_from(section.offset + section.size).ok().filter(|&end| end <= 128 << 20)?;
        let (bytes, _) = volume.head(path, end).ok()??;
        bytes.get(section.offset as usize..end).map(|b| String::from_utf8_lossy(b).into_owned())
    });
    let text = text.unwrap_or_default();
    Some(Entry {
        source: format!("/{path} on {}", volume.place()),
        title: "unified kernel image".to_owned(),
        kernel: Kernel::Unified(index, format!("/{path}")),
        initrds: Vec::new(),
        arguments: text.trim_end_matches('\0').split_whitespace().map(str::to_owned).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_systemd_boot_matches() {
        for (pattern, name, fits) in [
            ("a.conf", "a.conf", true),
            ("a*", "abc.conf", true),
            ("*-6.1*", "debian-6.12.conf", true),
            ("a*.conf", "ab.conf.conf", true),
            ("a", "ab", false),
            ("*b", "abc", false),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn fields_are_found() {
        let text = "title Debian\nlinux\t/vmlinuz\ninitrd /a\ninitrd  /b\nlinuxes no\n";
        assert_eq!(field(text, "linux").collect::<Vec<_>>(), ["/vmlinuz"]);
        assert_eq!(field(text, "initrd").collect::<Vec<_>>(), ["/a", "/b"]);
    }
}
