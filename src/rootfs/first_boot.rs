//! The state in which systemd finds the image the first time it starts.

use crate::rootfs::editor::Editor;
use crate::rootfs::error::RootfsError;
use crate::rootfs::units::{self, Requests};
use crate::system::UnitState;

/// machine-id(5): the first boot sees that it is the first, and makes an id.
const UNINITIALIZED: &str = "uninitialized\n";

/// The first boot presets every unit (systemd.preset(5)); units are in the state that the profile wants already.
const PRESET: &str =
    "# Units are in the state that the image's profile gave them: the first boot changes none.\nignore *\n";

/// systemd-firstboot(1) still takes what a machine's credentials give it, but never waits for somebody at the console.
const NO_QUESTIONS: &str = "[Service]\nExecStart=\nExecStart=systemd-firstboot\nStandardInput=null\n\
    StandardOutput=journal\nStandardError=journal\n";

/// A secret that a package's scripts make when it is installed, and each machine must make for itself.
struct Secret {
    /// Name of the unit that makes it.
    unit: &'static str,
    /// What it is.
    description: &'static str,
    /// The file without which it has to be made.
    file: &'static str,
    /// The program that makes it; there is nothing to do when it isn't installed.
    program: &'static str,
    /// The program's arguments.
    arguments: &'static str,
}

const SECRETS: [Secret; 2] = [
    Secret {
        unit: "kiln-ssl-cert-snakeoil.service",
        description: "Make the self-signed certificate of ssl-cert",
        file: "/etc/ssl/private/ssl-cert-snakeoil.key",
        program: "/usr/sbin/make-ssl-cert",
        arguments: "generate-default-snakeoil",
    },
    Secret {
        unit: "kiln-rndc-key.service",
        description: "Make the key by which rndc controls BIND",
        file: "/etc/bind/rndc.key",
        program: "/usr/sbin/rndc-confgen",
        arguments: "-a -A hmac-sha256 -u bind",
    },
];

/// Files that tell systemd what is done and what is left to do.
pub(super) fn apply(editor: &mut Editor, requests: &mut Requests) -> Result<(), RootfsError> {
    no_machine_id(editor)?;
    if editor.is_dir("/var/lib/dbus") {
        editor.link("first boot", "/var/lib/dbus/machine-id", "/etc/machine-id")?;
    }
    for kind in ["system", "user"] {
        editor.write("first boot", &format!("/etc/systemd/{kind}-preset/00-kiln.preset"), PRESET)?;
    }
    // systemd-update-done.service(8): without them ldconfig and others run at the first boot, for seconds.
    for dir in ["/etc", "/var"] {
        let text = format!(
            "# This file was created by systemd-update-done. Its only\n\
             # purpose is to hold a timestamp of the time this directory\n\
             # was updated. See man:systemd-update-done.service(8).\n\
             TIMESTAMP_NSEC={}\n",
            i128::from(editor.epoch) * 1_000_000_000
        );
        editor.write("first boot", &format!("{dir}/.updated"), text)?;
    }
    if units::exists(editor, "systemd-firstboot.service") {
        let path = "/etc/systemd/system/systemd-firstboot.service.d/kiln.conf";
        editor.write("first boot", path, NO_QUESTIONS)?;
    }
    for secret in &SECRETS {
        if !editor.has(secret.program) {
            continue;
        }
        editor.write("first boot", &format!("/etc/systemd/system/{}", secret.unit), secret.text())?;
        requests.insert(secret.unit.to_owned(), UnitState::Enabled);
    }
    Ok(())
}

/// Takes the machine's id out.
pub(super) fn no_machine_id(editor: &mut Editor) -> Result<(), RootfsError> {
    editor.write_mode("first boot", "/etc/machine-id", 0o444, UNINITIALIZED)
}

impl Secret {
    /// The unit that makes it, before any server starts.
    fn text(&self) -> String {
        let Secret { description, file, program, arguments, .. } = self;
        format!(
            "[Unit]\n\
             Description={description}\n\
             DefaultDependencies=no\n\
             ConditionPathExists=!{file}\n\
             After=local-fs.target systemd-tmpfiles-setup.service\n\
             Before=sysinit.target shutdown.target\n\
             Conflicts=shutdown.target\n\
             \n\
             [Service]\n\
             Type=oneshot\n\
             RemainAfterExit=yes\n\
             ExecStart={program} {arguments}\n\
             \n\
             [Install]\n\
             WantedBy=sysinit.target\n"
        )
    }
}
