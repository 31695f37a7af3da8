//! What the boot configuration names, and the system on the root: kernel, initrd, consoles, init, fstab.

use uuid::{Uuid, uuid};

use super::binary::{self, elf, elf_machine, elf_machine_name, pe};
use super::config::{Entry, HEAD, Kernel};
use super::volume::{Files, Volume, device_number, hides};
use super::{Expect, Finding, failed, passed, skipped};
use crate::arch::Arch;
use crate::check::report::Verdict;
use crate::units::Bytes;

/// What is read of a program: its headers, and the name of its dynamic loader, which stands right behind them.
const PROGRAM_HEAD: usize = 64 << 10;
const NO_ENTRY: &str = "there is no boot configuration that would say it";
/// Why another init system than systemd is refused.
const ASKED: &str =
    "Kiln asks its questions inside a system through systemd (252 or later); install systemd-sysv";
const NO_ROOT: &str = "there is no root file system that can be read";

/// The type of the root's partition by which systemd finds it (Discoverable Partitions Specification).
fn root_type(arch: Arch) -> Uuid {
    match arch {
        Arch::Amd64 => uuid!("4f68bce3-e8cd-4db1-96e7-fbcaf984b709"),
        Arch::Arm64 => uuid!("b921b045-1df0-41c3-af44-4c6f280d3fae"),
    }
}

/// The root: what the kernel is told, and whether it is there.
pub(super) fn find<'a>(
    volumes: &'a [Volume],
    entry: Option<&Entry>,
    expect: &Expect,
) -> (Option<&'a Volume>, Finding) {
    let by_type = volumes.iter().find(|v| v.partition.type_guid == Some(root_type(expect.arch)));
    let like_a_root = || volumes.iter().find(|v| v.exists("etc/fstab") || v.exists("sbin/init"));
    let named = entry.and_then(|e| e.argument("root"));
    if volumes.is_empty() {
        return (None, skipped("there is no partition to look at"));
    }
    let Some(reference) = named else {
        let Some(root) = by_type.or_else(like_a_root) else {
            return (
                None,
                failed("no partition holds a root file system, and no boot configuration names one"),
            );
        };
        let by_type = by_type.is_some();
        let how = if by_type { "by its partition's type" } else { "by its content, as nothing names it" };
        return (Some(root), state(root, how, entry.is_none() || by_type));
    };
    if !names_partition(reference) {
        return (
            None,
            skipped(format!("root={reference} is put together in the initrd, or comes over the network")),
        );
    }
    match volumes.iter().find(|v| v.is_named(reference)) {
        Some(root) => (Some(root), state(root, &format!("as root={reference} names it"), true)),
        None => {
            if let Some(hidden) = hides(volumes) {
                return (
                    None,
                    skipped(format!("root={reference} is no partition's own file system: {hidden}")),
                );
            }
            let fallback = by_type.or_else(like_a_root);
            (fallback, absent(reference, fallback))
        }
    }
}

/// Whether a reference is of a kind that a partition of this disk answers to.
fn names_partition(reference: &str) -> bool {
    let tags = ["UUID=", "PARTUUID=", "LABEL=", "PARTLABEL=", "/dev/disk/by-"];
    tags.iter().any(|tag| reference.starts_with(tag)) || device_number(reference).is_some()
}

fn absent(reference: &str, found: Option<&Volume>) -> Finding {
    let other = found.map_or(String::new(), |v| {
        format!("; the root seems to be {} (UUID={}, PARTUUID={})", v.place(), v.uuid, v.partition.part_uuid)
    });
    failed(format!(
        "the kernel is told root={reference}, which isn't on this disk{other}: the system would stop in its initrd; correct \
         the argument or the identity"
    ))
}

fn state(root: &Volume, how: &str, sure: bool) -> Finding {
    let place = root.place();
    match (&root.files, root.kind) {
        _ if !sure => {
            failed(format!("the kernel is told no root, and {place} has no type by which systemd finds it"))
        }
        (Files::Ext(_), _) => passed(format!("{place}, ext4, found {how}")),
        (Files::Damaged(why), kind) => failed(format!(
            "the {kind} file system of {place} is damaged: {why}; look at it with e2fsck -fn, then bake the image anew"
        )),
        (_, "") => failed(format!("{place}, found {how}, holds no file system that is known")),
        (_, "swap") => failed(format!("{place}, found {how}, is a swap area")),
        (_, kind) => skipped(format!("{place}, found {how}, is {kind}, whose files aren't read here")),
    }
}

/// Whether the kernel is there and for this machine.
pub(super) fn kernel(volumes: &[Volume], entry: Option<&Entry>, expect: &Expect) -> Finding {
    let Some(entry) = entry else { return skipped(NO_ENTRY) };
    let (index, path) = match &entry.kernel {
        Kernel::Elsewhere(device) => {
            return failed(format!("{} loads it from {device}, which isn't on this disk", entry.source));
        }
        Kernel::File(index, path) | Kernel::Unified(index, path) => (*index, path),
    };
    let volume = &volumes[index];
    if !volume.is_read() {
        return skipped(format!(
            "{path} lies on {}, {}, whose files aren't read here",
            volume.place(),
            volume.kind
        ));
    }
    let place = format!("{path} on {}", volume.place());
    let (head, size) = match volume.head(path, HEAD) {
        Err(why) => return failed(format!("{place} can't be read: {why}")),
        Ok(None) => {
            return failed(format!(
                "{place} is missing, but {} boots it: install a kernel, or correct the path",
                entry.source
            ));
        }
        Ok(Some(found)) => found,
    };
    let unified = matches!(entry.kernel, Kernel::Unified(..));
    let arch = if unified {
        pe(&head).map(|pe| binary::pe_machine_name(pe.machine)).ok_or("it is no PE/COFF program")
    } else {
        binary::kernel_arch(&head)
    };
    match arch {
        Err(why) => failed(format!("{place} can't be booted: {why}; install the kernel anew")),
        Ok(arch) if arch != expect.arch.debian() => failed(format!(
            "{place} is a kernel for {arch}, but the machine is {}: install that architecture's",
            expect.arch
        )),
        Ok(arch) => passed(format!("{place}, {}, for {arch}", Bytes(size))),
    }
}

/// Whether the initrd is there.
pub(super) fn initrd(volumes: &[Volume], entry: Option<&Entry>) -> Finding {
    let Some(entry) = entry else { return skipped(NO_ENTRY) };
    let index = match &entry.kernel {
        Kernel::File(index, _) => *index,
        Kernel::Unified(..) => return skipped("the unified kernel image holds it"),
        Kernel::Elsewhere(_) => return skipped("the kernel isn't on this disk"),
    };
    if entry.initrds.is_empty() {
        return skipped(format!("{} names none", entry.source));
    }
    let volume = &volumes[index];
    if !volume.is_read() {
        return skipped(format!(
            "it lies on {}, {}, whose files aren't read here",
            volume.place(),
            volume.kind
        ));
    }
    for path in &entry.initrds {
        let place = format!("{path} on {}", volume.place());
        match volume.head(path, 512) {
            Err(why) => return failed(format!("{place} can't be read: {why}")),
            Ok(None) => {
                return failed(format!(
                    "{place} is missing, but {} loads it: make it (update-initramfs -c -k all), or correct the path",
                    entry.source
                ));
            }
            Ok(Some((head, size))) if size < 512 || head.iter().all(|&b| b == 0) => {
                return failed(format!("{place} is empty: make it anew (update-initramfs -u -k all)"));
            }
            Ok(Some(_)) => {}
        }
    }
    passed(format!("{} on {}", entry.initrds.join(", "), volume.place()))
}

/// Whether the kernel speaks on the serial line.
pub(super) fn console(entry: Option<&Entry>, expect: &Expect) -> Finding {
    if !expect.serial {
        return skipped("no serial console is asked for");
    }
    let Some(entry) = entry else { return skipped(NO_ENTRY) };
    let consoles: Vec<&str> = entry.arguments_named("console").collect();
    let serial = |c: &&&str| c.starts_with("ttyS") || c.starts_with("ttyAMA");
    match consoles.iter().find(serial) {
        Some(console) => passed(format!("console={console}")),
        None => failed(format!(
            "{} passes the kernel {}: nothing will be seen on the serial console (in a cloud: no console output); add \
             console=ttyS0,115200n8",
            entry.source,
            if consoles.is_empty() {
                "no console=".to_owned()
            } else {
                format!("console={} only", consoles.join(", console="))
            }
        )),
    }
}

/// Whether the first program can run.
pub(super) fn init(root: Option<&Volume>, entry: Option<&Entry>, expect: &Expect) -> Finding {
    let Some(root) = root.filter(|root| root.is_read()) else { return skipped(NO_ROOT) };
    let wanted = entry.and_then(|e| e.argument("init")).filter(|path| root.exists(path));
    let path = wanted.unwrap_or("/sbin/init");
    let head = match root.head(path, PROGRAM_HEAD) {
        Err(why) => return failed(format!("{path} can't be read: {why}")),
        Ok(None) => {
            return failed(format!(
                "{path} is missing on {}, so that the kernel has nothing to start: install systemd-sysv or another init",
                root.place()
            ));
        }
        Ok(Some((head, _))) => head,
    };
    if let Some(script) = head.strip_prefix(b"#!") {
        let line = script.split(|&b| b == b'\n').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        let interpreter = line.split_whitespace().next().unwrap_or_default();
        if !root.exists(interpreter) {
            return failed(format!("{path} is a script for {interpreter}, which is missing"));
        }
        // The first process stays the first only by becoming the init system itself.
        if !head.windows(4).any(|word| word == b"exec") {
            return failed(format!("{path} is a script for {interpreter} that starts no systemd: {ASKED}"));
        }
        return passed(format!("{path}, a script for {interpreter}"));
    }
    let program = program(root, path, &head, expect);
    if program.verdict == Verdict::Passed && is_another(root, path) {
        return failed(format!("{path} is not systemd: {ASKED}"));
    }
    program
}

/// Whether a program is another init system than the systemd of the places where distributions have it.
fn is_another(root: &Volume, path: &str) -> bool {
    let program = |path: &str| root.head(path, PROGRAM_HEAD).ok().flatten();
    let places = ["usr/lib/systemd/systemd", "lib/systemd/systemd"];
    let elsewhere = root.exists("nix/store") || root.exists("gnu/store");
    let found = program(path);
    !elsewhere && found.is_some() && places.iter().all(|place| program(place) != found)
}

fn program(root: &Volume, path: &str, head: &[u8], expect: &Expect) -> Finding {
    let Some(program) = elf(head) else {
        return failed(format!("{path} is no program: install the init system anew"));
    };
    let right = elf_machine(expect.arch);
    let wrong = |path: &str, machine| {
        let is = elf_machine_name(machine);
        failed(format!(
            "{path} is a program for {is}, but the machine is {}: bake for that architecture",
            expect.arch
        ))
    };
    if program.machine != right {
        return wrong(path, program.machine);
    }
    let Some(loader) = program.loader else { return passed(format!("{path}, linked statically")) };
    match root.head(&loader, PROGRAM_HEAD) {
        Err(why) => return failed(format!("{loader}, which starts {path}, can't be read: {why}")),
        Ok(None) => {
            return failed(format!(
                "missing libc: {path} needs the dynamic loader {loader}, which isn't there; install the C library (libc6) anew"
            ));
        }
        Ok(Some((head, _))) => match elf(&head) {
            None => {
                return failed(format!(
                    "{loader}, which starts {path}, is no program: install the C library anew"
                ));
            }
            Some(elf) if elf.machine != right => return wrong(&loader, elf.machine),
            Some(_) => {}
        },
    }
    if loader.contains("/ld-linux") && !has_libc(root, expect.arch) {
        return failed(format!(
            "missing libc: libc.so.6, which {path} needs, is in none of the directories of libraries; install the C library \
             (libc6) anew"
        ));
    }
    passed(format!("{path}, started by {loader}"))
}

/// Whether the GNU C library is in one of the places where its loader looks.
fn has_libc(root: &Volume, arch: Arch) -> bool {
    let multiarch = arch.triplet();
    let folders = [
        &format!("lib/{multiarch}"),
        &format!("usr/lib/{multiarch}"),
        "lib64",
        "usr/lib64",
        "lib",
        "usr/lib",
    ];
    // A system that keeps its loader elsewhere (NixOS, Guix) keeps its library elsewhere too.
    root.exists("nix/store")
        || root.exists("gnu/store")
        || folders.iter().any(|f| root.exists(&format!("{f}/libc.so.6")))
}

/// Whether the devices that fstab waits for are on this disk.
pub(super) fn fstab(root: Option<&Volume>, volumes: &[Volume]) -> Finding {
    let Some(root) = root.filter(|root| root.is_read()) else { return skipped(NO_ROOT) };
    let Some(text) = root.text("etc/fstab", 1 << 20) else { return skipped("the root has no /etc/fstab") };
    let (mut found, mut optional) = (0, 0);
    for (number, line) in (1..).zip(text.lines()) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [device, mount, ..] = fields[..] else { continue };
        if device.starts_with('#') || !device.contains('=') && !device.starts_with("/dev/disk/by-") {
            continue;
        }
        let options = fields.get(3).copied().unwrap_or_default();
        if volumes.iter().any(|v| v.is_named(device)) {
            found += 1;
        } else if options.split(',').any(|o| matches!(o, "nofail" | "noauto")) || hides(volumes).is_some() {
            optional += 1;
        } else {
            return failed(format!(
                "line {number} of /etc/fstab mounts {device} on {mount}, which isn't on this disk: the boot would wait for it \
                 and end in emergency mode; correct it or add the option nofail"
            ));
        }
    }
    let optional = match optional {
        0 => String::new(),
        n => format!(", {n} others may be absent"),
    };
    passed(match (found, optional.as_str()) {
        (0, "") => "it names no file system by its identity".to_owned(),
        (1, _) => format!("the file system that it names is there{optional}"),
        (n, _) => format!("all {n} file systems that it names are there{optional}"),
    })
}
