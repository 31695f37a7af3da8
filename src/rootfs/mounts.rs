//! fstab(5), swap, and the root's growth.

use crate::rootfs::ComposeContext;
use crate::rootfs::editor::Editor;
use crate::rootfs::error::RootfsError;
use crate::rootfs::units::Requests;
use crate::system::{CloudInit, DiskLayout, ExtraFs, Mount, Set, System, UnitState};

/// The swap file's path.
const SWAP_FILE: &str = "/swapfile";

/// Who lets the root grow at first boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Growth {
    /// Nobody.
    Off,
    /// systemd-repart.
    Repart,
    /// cloud-init's growpart.
    CloudInit,
}

/// Who can let the root grow, given what is installed.
pub(super) fn growth(editor: &Editor, system: &System) -> Result<Growth, RootfsError> {
    // In the store layout the initrd lets it grow.
    if !system.disk.grow || system.disk.layout == DiskLayout::Store {
        return Ok(Growth::Off);
    }
    if editor.has("/usr/bin/systemd-repart") {
        return Ok(Growth::Repart);
    }
    let CloudInit { enable, .. } = system.cloud_init;
    if enable && editor.has("/usr/bin/growpart") && editor.has("/usr/sbin/resize2fs") {
        return Ok(Growth::CloudInit);
    }
    let (field, what) = ("disk.grow".to_owned(), "/usr/bin/systemd-repart".to_owned());
    Err(RootfsError::NeedsPackage { field, what, package: "systemd-repart" })
}

/// A line of fstab(5).
struct Line {
    device: String,
    mount: String,
    fs: String,
    options: String,
    pass: u8,
}

/// /etc/fstab and all that belongs to it.
pub(super) fn apply(
    editor: &mut Editor,
    system: &System,
    ctx: &ComposeContext,
    growth: Growth,
    requests: &mut Requests,
) -> Result<(), RootfsError> {
    let mut lines = match system.disk.layout {
        DiskLayout::Mutable => vec![root(system, ctx, growth)?],
        // The initrd has mounted all that is the layout's.
        DiskLayout::Store => Vec::new(),
    };
    if let Some(partuuid) = ctx.esp_partuuid {
        // Nothing in a running system needs it: it is mounted by hand, so that no boot depends on vfat's modules.
        let device = format!("PARTUUID={partuuid}");
        lines.push(line(&device, "/boot/efi", "vfat", "noauto,umask=0077", 0));
        editor.directory("boot", "/boot/efi")?;
    }
    extra_partitions(editor, system, ctx, &mut lines)?;
    for (path, mount) in system.mounts.iter().filter(|(path, m)| m.enable && *path != "/") {
        lines.push(given(editor, path, mount)?);
    }
    if growth == Growth::Repart {
        editor.write("disk.grow", "/etc/repart.d/50-root.conf", "[Partition]\nType=root\n")?;
    }
    swap(editor, system, &mut lines, requests)?;
    let text: String = lines.iter().map(Line::print).collect();
    let head = "# device mount-point type options dump pass\n";
    editor.write("mounts", "/etc/fstab", format!("{head}{text}"))
}

fn line(device: &str, mount: &str, fs: &str, options: &str, pass: u8) -> Line {
    Line { device: device.into(), mount: mount.into(), fs: fs.into(), options: options.into(), pass }
}

impl Line {
    fn print(&self) -> String {
        let Line { device, mount, fs, options, pass } = self;
        format!("{} {} {fs} {} 0 {pass}\n", escape(device), escape(mount), escape(options))
    }
}

/// Blanks and backslashes as fstab(5) wants them.
fn escape(text: &str) -> String {
    text.replace('\\', "\\134").replace(' ', "\\040").replace('\t', "\\011").replace('\n', "\\012")
}

fn root(system: &System, ctx: &ComposeContext, growth: Growth) -> Result<Line, RootfsError> {
    let mut options = "errors=remount-ro".to_owned();
    if growth == Growth::Repart {
        options.push_str(",x-systemd.growfs");
    }
    if let Some(mount) = system.mounts.get("/").filter(|m| m.enable) {
        if !mount.device.is_empty() || !matches!(mount.fs.as_str(), "" | "auto" | "ext4") {
            let why = "the root is the image's own ext4: only its options can be given";
            return Err(RootfsError::value("mounts.\"/\"", format!("{} {}", mount.device, mount.fs), why));
        }
        for option in chosen(&mount.options) {
            options.push_str(&format!(",{option}"));
        }
    }
    Ok(line(&format!("UUID={}", ctx.root_uuid), "/", "ext4", &options, 1))
}

fn chosen(options: &Set<bool>) -> impl Iterator<Item = &str> {
    options.iter().filter(|(_, on)| **on).map(|(option, _)| option.as_str())
}

fn extra_partitions(
    editor: &mut Editor,
    system: &System,
    ctx: &ComposeContext,
    lines: &mut Vec<Line>,
) -> Result<(), RootfsError> {
    for (name, partition) in system.disk.partitions.iter().filter(|(_, p)| p.enable) {
        let field = format!("disk.partitions.{name}");
        let missing = || RootfsError::value(&field, name, "the layout has no such partition");
        let device = format!("PARTUUID={}", ctx.partitions.get(name).ok_or_else(missing)?);
        match partition.fs {
            ExtraFs::Swap => lines.push(line(&device, "none", "swap", "sw,x-systemd.makefs", 0)),
            ExtraFs::Ext4 if !partition.mount.is_empty() => {
                if system.mounts.get(&partition.mount).is_some_and(|m| m.enable) {
                    return Err(RootfsError::Contradiction {
                        first: format!("{field}.mount"),
                        second: format!("mounts.\"{}\"", partition.mount),
                        why: "both mount there".to_owned(),
                    });
                }
                editor.directory(&format!("{field}.mount"), &partition.mount)?;
                lines.push(line(&device, &partition.mount, "ext4", "defaults", 2));
            }
            ExtraFs::Ext4 | ExtraFs::None => {}
        }
    }
    Ok(())
}

fn given(editor: &mut Editor, path: &str, mount: &Mount) -> Result<Line, RootfsError> {
    let field = format!("mounts.\"{path}\"");
    let bad = |c: char| c.is_control();
    for (part, value) in [("device", &mount.device), ("fs", &mount.fs)] {
        if value.is_empty() || value.contains(bad) {
            let why = "a mount needs a device (as in LABEL=data, tmpfs) and a file system type";
            return Err(RootfsError::value(format!("{field}.{part}"), value, why));
        }
    }
    let swap = mount.fs == "swap";
    if !swap {
        editor.directory(&field, path)?;
    }
    let options: Vec<&str> = chosen(&mount.options).collect();
    let options = if options.is_empty() { "defaults".to_owned() } else { options.join(",") };
    let checked = matches!(mount.fs.as_str(), "ext2" | "ext3" | "ext4" | "vfat" | "btrfs" | "xfs" | "f2fs");
    let pass = if checked && !options.split(',').any(|o| o == "bind") { 2 } else { 0 };
    Ok(line(&mount.device, if swap { "none" } else { path }, &mount.fs, &options, pass))
}

fn swap(
    editor: &mut Editor,
    system: &System,
    lines: &mut Vec<Line>,
    requests: &mut Requests,
) -> Result<(), RootfsError> {
    let size = system.swap.file.0;
    if size > 0 {
        lines.push(line(SWAP_FILE, "none", "swap", "sw,nofail", 0));
        editor.write("swap.file", "/etc/systemd/system/kiln-swap-file.service", swap_file_unit(size))?;
        let drop_in = "[Unit]\nRequires=kiln-swap-file.service\nAfter=kiln-swap-file.service\n";
        editor.write("swap.file", "/etc/systemd/system/swapfile.swap.d/kiln.conf", drop_in)?;
    }
    let percent = system.swap.zram_percent;
    if percent == 0 {
        return Ok(());
    }
    if percent > 400 {
        return Err(RootfsError::value(
            "swap.zram_percent",
            percent.to_string(),
            "at most 400 percent of memory",
        ));
    }
    if editor.has("/usr/lib/systemd/system-generators/zram-generator") {
        let text = format!("[zram0]\nzram-size = ram * {percent} / 100\ncompression-algorithm = zstd\n");
        return editor.write("swap.zram_percent", "/etc/systemd/zram-generator.conf", text);
    }
    editor.write("swap.zram_percent", "/etc/systemd/system/kiln-zram.service", zram_unit(percent))?;
    requests.insert("kiln-zram.service".to_owned(), UnitState::Enabled);
    Ok(())
}

/// Makes the swap file once, when the root has grown; whole or not at all.
fn swap_file_unit(size: u64) -> String {
    format!(
        "[Unit]\n\
         Description=Make the swap file {SWAP_FILE}\n\
         DefaultDependencies=no\n\
         ConditionPathExists=!{SWAP_FILE}\n\
         After=local-fs.target systemd-growfs-root.service systemd-repart.service\n\
         Before=swapfile.swap shutdown.target\n\
         Conflicts=shutdown.target\n\
         \n\
         [Service]\n\
         Type=oneshot\n\
         RemainAfterExit=yes\n\
         UMask=0077\n\
         ExecStart=/usr/bin/fallocate -l {size} {SWAP_FILE}.new\n\
         ExecStart=/usr/sbin/mkswap {SWAP_FILE}.new\n\
         ExecStart=/usr/bin/sync {SWAP_FILE}.new\n\
         ExecStart=/usr/bin/mv {SWAP_FILE}.new {SWAP_FILE}\n"
    )
}

/// Swap in compressed memory, without any package but util-linux and kmod.
fn zram_unit(percent: u32) -> String {
    let script = format!(
        "set -e; size=$$(awk '/^MemTotal:/ {{ printf \"%%d\", $$2 * 1024 * {percent} / 100 }}' /proc/meminfo); \
         device=$$(zramctl --find --size $$size --algorithm zstd); mkswap $$device; swapon -p 100 $$device"
    );
    format!(
        "[Unit]\n\
         Description=Swap in compressed memory\n\
         DefaultDependencies=no\n\
         After=systemd-modules-load.service\n\
         Before=swap.target shutdown.target\n\
         Conflicts=shutdown.target\n\
         ConditionVirtualization=!container\n\
         \n\
         [Service]\n\
         Type=oneshot\n\
         RemainAfterExit=yes\n\
         ExecStartPre=/sbin/modprobe zram\n\
         ExecStart=/bin/sh -c '{}'\n\
         ExecStop=/sbin/swapoff /dev/zram0\n\
         \n\
         [Install]\n\
         WantedBy=swap.target\n",
        script.replace('\'', "\\'")
    )
}
