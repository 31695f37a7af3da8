//! The store layout: the system is an immutable image, and what Kiln's own program in it is told.

use crate::guest;
use crate::rootfs::editor::Editor;
use crate::rootfs::error::RootfsError;
use crate::rootfs::units::{self, Requests};
use crate::system::{DiskLayout, System, UnitState};
use crate::tree::{Content, Kind, Node, Tree};

/// Kiln's own program in the image.
const PROGRAM: &str = "/usr/bin/kiln";
/// What it is told.
const SETTINGS: &str = "/usr/lib/kiln/state";
/// Where state may be kept: what the initrd makes writable.
const WRITABLE: [&str; 5] = ["/etc", "/home", "/root", "/srv", "/var"];
/// Timers and services that would change packages or watch over their database.
const OF_PACKAGES: [&str; 5] = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "unattended-upgrades.service",
    "packagekit.service",
];

/// Says why to whoever uses apt, in one line, and lets the command fail. apt repeats the names of programs that fail, so that the
/// line stands in one of its own.
const REFUSAL: (&str, &str) = (
    "/usr/lib/kiln/immutable",
    "#!/bin/sh\n\
     echo 'apt: this system is immutable: its packages come with the next generation (kiln switch)' >&2\n\
     exit 1\n",
);
const APT: &str = "// This system is immutable.\n\
    DPkg::Pre-Invoke { \"/usr/lib/kiln/immutable\"; };\n\
    APT::Update::Pre-Invoke { \"/usr/lib/kiln/immutable\"; };\n";
const MOTD: &str = "This system is immutable: packages come with the next generation (kiln switch). State is below /kiln/state.\n";

/// Ends a generation's time of trial once the machine is up.
const BLESS: (&str, &str) = (
    "kiln-bless.service",
    "[Unit]\n\
     Description=Note that this generation has come up\n\
     DefaultDependencies=no\n\
     Requires=boot-complete.target\n\
     After=boot-complete.target multi-user.target local-fs.target\n\
     Conflicts=shutdown.target\n\
     Before=shutdown.target\n\
     \n\
     [Service]\n\
     Type=oneshot\n\
     RemainAfterExit=yes\n\
     ExecStart=/usr/bin/kiln bless\n\
     \n\
     [Install]\n\
     WantedBy=multi-user.target\n",
);
/// Gives up a generation that ends in emergency mode, or isn't up after a quarter of an hour.
const UNWELL: (&str, &str) = (
    "kiln-unwell.service",
    "[Unit]\n\
     Description=Leave a generation that doesn't come up\n\
     DefaultDependencies=no\n\
     \n\
     [Service]\n\
     Type=oneshot\n\
     ExecStart=/usr/bin/kiln unwell\n\
     \n\
     [Install]\n\
     WantedBy=emergency.target rescue.target\n",
);
const TRIAL: (&str, &str) = (
    "kiln-unwell.timer",
    "[Unit]\n\
     Description=A new generation has a quarter of an hour to come up\n\
     DefaultDependencies=no\n\
     Conflicts=shutdown.target\n\
     Before=shutdown.target\n\
     \n\
     [Timer]\n\
     OnBootSec=15min\n\
     \n\
     [Install]\n\
     WantedBy=sysinit.target\n",
);

/// Mounts that are in use until the end: the system itself lies on the one, the journal is written to the other. They are left to
/// systemd-shutdown, which unmounts what is there once no process is left. Services name /var before systemd knows that it is
/// mounted, and a mount that is named so has no drop-ins: it needs a unit.
const USED_TO_THE_END: [(&str, &str, &str); 2] = [
    ("kiln", "kiln.mount.d/kiln.conf", "[Unit]\nDefaultDependencies=no\n"),
    (
        "var",
        "var.mount",
        "[Unit]\n\
         Description=The state below /var\n\
         DefaultDependencies=no\n\
         \n\
         [Mount]\n\
         What=/kiln/state/var\n\
         Where=/var\n\
         Options=bind\n",
    ),
];

/// The verified device is made by the initrd, without the programs from whose rules systemd would learn that it is ready.
const UDEV: &str = "SUBSYSTEM==\"block\", ACTION!=\"remove\", KERNEL==\"dm-*\", ENV{DM_NAME}!=\"?*\", \
    ATTR{dm/name}==\"?*\", ENV{DM_NAME}=\"$attr{dm/name}\"\n";

/// Writes the program, its settings and units, and takes the system's packages out of apt's hands.
pub(super) fn apply(
    editor: &mut Editor,
    system: &System,
    requests: &mut Requests,
) -> Result<(), RootfsError> {
    if system.disk.layout != DiskLayout::Store {
        return Ok(());
    }
    let field = "disk.layout";
    editor.write_mode(field, PROGRAM, 0o755, guest::PROGRAM.to_vec())?;
    editor.write(field, SETTINGS, settings(system)?)?;
    for folder in ["/kiln", "/etc", "/home", "/root", "/srv", "/var", "/tmp", "/mnt", "/media"] {
        editor.directory(field, folder)?;
    }
    editor.write(field, "/usr/lib/udev/rules.d/98-kiln.rules", UDEV)?;
    for (mount, unit, text) in USED_TO_THE_END {
        if !system.disk.mounts().any(|own| own == mount) {
            editor.write(field, &format!("/usr/lib/systemd/system/{unit}"), text)?;
        }
    }
    for (name, text) in [BLESS, UNWELL, TRIAL] {
        editor.write(field, &format!("/etc/systemd/system/{name}"), text)?;
    }
    requests.insert(BLESS.0.to_owned(), UnitState::Enabled);
    requests.insert(UNWELL.0.to_owned(), UnitState::Enabled);
    requests.insert(TRIAL.0.to_owned(), UnitState::Enabled);
    if units::exists(editor, "tmp.mount") {
        requests.insert("tmp.mount".to_owned(), UnitState::Enabled);
    }
    for name in OF_PACKAGES.iter().filter(|name| units::exists(editor, name)) {
        requests.insert((*name).to_owned(), UnitState::Masked);
    }
    if editor.has("/usr/bin/apt") {
        editor.write_mode(field, REFUSAL.0, 0o755, REFUSAL.1)?;
        editor.write(field, "/etc/apt/apt.conf.d/00kiln", APT)?;
    }
    editor.write(field, "/usr/lib/motd.d/kiln", MOTD)
}

/// The lines that the guest's program reads.
fn settings(system: &System) -> Result<String, RootfsError> {
    let mut text = format!("generations {}\n", system.state.generations);
    if system.state.ephemeral {
        text.push_str("ephemeral\n");
    }
    for path in system.state.keep.iter().filter(|(_, on)| **on).map(|(path, _)| path) {
        let inside =
            |root: &str| path.strip_prefix(root).is_some_and(|rest| rest.len() > 1 && rest.starts_with('/'));
        if !WRITABLE.iter().any(|root| inside(root)) || path.chars().any(char::is_control) {
            let why = "state is kept below /etc, /home, /root, /srv or /var";
            return Err(RootfsError::value("state.keep", path, why));
        }
        text.push_str(&format!("keep {}\n", path.trim_end_matches('/')));
    }
    Ok(text)
}

/// What of the tree becomes the system's image. What lies on further partitions is left out, and an initrd with which its
/// kernel would not be started.
#[must_use]
pub fn of_image(tree: &Tree, system: &System) -> Tree {
    let mut image = tree.clone();
    image.retain(|path, _| {
        let initrd = path.starts_with(b"boot/initrd.img") || path.starts_with(b"initrd.img");
        !initrd && !system.disk.mounts().any(|mount| is_below(path, mount))
    });
    image
}

/// What the file systems of the disk hold: that of the partition `root`, which the machine sees below /kiln, the image
/// `file` of the system; and those of further partitions what the tree holds at their mount points.
#[must_use]
pub fn partition(tree: &Tree, system: &System, file: &str, image: Content, epoch: i64) -> Tree {
    let mut disk = Tree::new();
    let folder = || Node::new(Kind::Dir, 0o755, epoch);
    disk.insert("", folder());
    disk.insert("store", folder());
    disk.insert(format!("store/{file}"), Node::new(Kind::File(image), 0o444, epoch));
    for mount in system.disk.mounts() {
        for (path, node) in tree.iter().filter(|(path, _)| *path == mount.as_bytes() || is_below(path, mount))
        {
            disk.insert_with_parents(path, node.clone());
        }
    }
    disk
}

fn is_below(path: &[u8], mount: &str) -> bool {
    path.strip_prefix(mount.as_bytes()).is_some_and(|rest| rest.starts_with(b"/"))
}
