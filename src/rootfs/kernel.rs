//! The kernel's parameters and modules, and when the initrd has to be made again.

use crate::rootfs::SandboxWork;
use crate::rootfs::editor::Editor;
use crate::rootfs::error::RootfsError;
use crate::system::{Set, System, Value};
use crate::tree::{Kind, Tree};

/// Places from which initramfs-tools' hooks copy into the initrd.
const INITRD_INPUTS: [&str; 12] = [
    "etc/initramfs-tools/",
    "etc/modprobe.d/",
    "etc/udev/rules.d/",
    "etc/udev/hwdb.d/",
    "etc/crypttab",
    "etc/mdadm/",
    "etc/lvm/",
    "etc/multipath",
    "usr/lib/modprobe.d/",
    "usr/lib/modules/",
    "usr/lib/udev/rules.d/",
    "usr/share/initramfs-tools/",
];

/// sysctl.d(5), modules-load.d(5), modprobe.d(5).
pub(super) fn apply(editor: &mut Editor, system: &System) -> Result<(), RootfsError> {
    if !system.sysctl.is_empty() {
        editor.write("sysctl", "/etc/sysctl.d/60-kiln.conf", sysctl(&system.sysctl)?)?;
    }
    let on =
        |set: &Set<bool>| set.iter().filter(|(_, on)| **on).map(|(name, _)| name.clone()).collect::<Vec<_>>();
    let (load, deny) = (on(&system.kernel.load), on(&system.kernel.deny));
    for (field, names) in [("kernel.load", &load), ("kernel.deny", &deny)] {
        let plain = |name: &&String| !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
        if let Some(name) = names.iter().find(|name| name.is_empty() || plain(name)) {
            return Err(RootfsError::value(field, name, "a module's name has letters, digits, `_` and `-`"));
        }
    }
    let same = |a: &str, b: &str| a.replace('-', "_") == b.replace('-', "_");
    if let Some(both) = load.iter().find(|name| deny.iter().any(|other| same(name, other))) {
        return Err(RootfsError::Contradiction {
            first: format!("kernel.load.{both}"),
            second: format!("kernel.deny.{both}"),
            why: "a module is either loaded or denied".to_owned(),
        });
    }
    if !load.is_empty() {
        let lines: String = load.iter().map(|name| format!("{name}\n")).collect();
        editor.write("kernel.load", "/etc/modules-load.d/kiln.conf", lines)?;
    }
    if !deny.is_empty() {
        // `blacklist` alone only stops loading by alias; the install line stops loading by name and as a dependency.
        let lines: String =
            deny.iter().map(|name| format!("blacklist {name}\ninstall {name} /bin/false\n")).collect();
        editor.write("kernel.deny", "/etc/modprobe.d/kiln-deny.conf", lines)?;
    }
    Ok(())
}

fn sysctl(settings: &Set<Value>) -> Result<String, RootfsError> {
    let mut text = String::new();
    for (key, value) in settings {
        let field = || format!("sysctl.\"{key}\"");
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-/*?:@".contains(c);
        if key.is_empty() || !key.chars().all(plain) || key.split(['.', '/']).any(str::is_empty) {
            return Err(RootfsError::value(field(), key, "a parameter is named as in net.ipv4.ip_forward"));
        }
        let value = match value {
            Value::Bool(on) => u8::from(*on).to_string(),
            Value::Number(number) => number.to_string(),
            Value::Text(text) if !text.chars().any(char::is_control) => text.clone(),
            Value::Text(text) => return Err(RootfsError::value(field(), text, "it must be one line")),
        };
        text.push_str(&format!("{key} = {value}\n"));
    }
    Ok(text)
}

/// Notes why the initrd must be made again: a kernel has none yet, or something changed that goes into it.
pub(super) fn initrd(before: &Tree, after: &Tree, work: &mut SandboxWork) {
    let boot = |prefix: &str| -> Vec<String> {
        let files = after.below(b"boot").filter(|(_, node)| node.kind != Kind::Dir);
        let names = files.filter_map(|(path, _)| std::str::from_utf8(&path["boot/".len()..]).ok());
        names.filter_map(|name| name.strip_prefix(prefix)).map(str::to_owned).collect()
    };
    let ready = boot("initrd.img-");
    for version in boot("vmlinuz-").into_iter().filter(|version| !ready.contains(version)) {
        work.initrd.insert(format!("the kernel {version} has none"));
    }
    for place in INITRD_INPUTS {
        let inputs = |tree: &Tree| -> Vec<_> {
            let all = tree.iter().skip_while(|(path, _)| path.as_slice() < place.as_bytes());
            let ours = all.take_while(|(path, _)| path.starts_with(place.as_bytes()));
            ours.filter(|(_, n)| n.kind != Kind::Dir)
                .map(|(p, n)| (p.clone(), n.kind.clone(), n.mode))
                .collect()
        };
        let (old, new) = (inputs(before), inputs(after));
        if let Some((path, ..)) =
            new.iter().find(|n| !old.contains(n)).or(old.iter().find(|o| !new.contains(o)))
        {
            work.initrd.insert(format!("/{} changed", String::from_utf8_lossy(path)));
        }
    }
}
