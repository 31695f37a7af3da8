//! The state in which systemd finds the image the first time it starts.

use crate::rootfs::editor::Editor;
use crate::rootfs::error::RootfsError;
use crate::rootfs::units::Requests;
use crate::system::UnitState;

/// machine-id(5): the first boot sees that it is the first, and makes an id.
const UNINITIALIZED: &str = "uninitialized\n";

/// The first boot presets every unit (systemd.preset(5)); units are in the state that the profile wants already.
const PRESET: &str =
    "# Units are in the state that the image's profile gave them: the first boot changes none.\nignore *\n";

const SNAKEOIL_KEY: &str = "/etc/ssl/private/ssl-cert-snakeoil.key";

/// Files that tell systemd what is done and what is left to do.
pub(super) fn apply(editor: &mut Editor, requests: &mut Requests) -> Result<(), RootfsError> {
    editor.write_mode("first boot", "/etc/machine-id", 0o444, UNINITIALIZED)?;
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
    snakeoil(editor, requests)
}

/// ssl-cert's self-signed pair: a machine makes its own before any server starts.
fn snakeoil(editor: &mut Editor, requests: &mut Requests) -> Result<(), RootfsError> {
    if !editor.has("/usr/sbin/make-ssl-cert") {
        return Ok(());
    }
    let name = "kiln-ssl-cert-snakeoil.service";
    let unit = format!(
        "[Unit]\n\
         Description=Make the self-signed certificate of ssl-cert\n\
         DefaultDependencies=no\n\
         ConditionPathExists=!{SNAKEOIL_KEY}\n\
         After=local-fs.target systemd-tmpfiles-setup.service\n\
         Before=sysinit.target shutdown.target\n\
         Conflicts=shutdown.target\n\
         \n\
         [Service]\n\
         Type=oneshot\n\
         RemainAfterExit=yes\n\
         ExecStart=/usr/sbin/make-ssl-cert generate-default-snakeoil\n\
         \n\
         [Install]\n\
         WantedBy=sysinit.target\n"
    );
    editor.write("first boot", &format!("/etc/systemd/system/{name}"), unit)?;
    requests.insert(name.to_owned(), UnitState::Enabled);
    Ok(())
}
