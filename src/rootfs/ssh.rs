//! OpenSSH's server: its settings, and host keys that every machine makes for itself.

use crate::rootfs::editor::Editor;
use crate::rootfs::error::RootfsError;
use crate::rootfs::units::{self, Requests};
use crate::system::{System, UnitState, Value};

/// Debian 13's unit makes keys in the very first boot only: one that is cut short would leave a machine without any.
const KEEP_TRYING: &str = "[Unit]\nConditionFirstBoot=\nConditionPathExistsGlob=!/etc/ssh/ssh_host_*_key\n";

/// The unit for releases whose package has none; after cloud-init, which makes keys itself when it finds its data.
const HOST_KEYS: &str = "[Unit]\n\
    Description=Make the SSH host keys\n\
    ConditionPathExistsGlob=!/etc/ssh/ssh_host_*_key\n\
    After=cloud-init.service\n\
    Before=ssh.service sshd.service\n\
    \n\
    [Service]\n\
    Type=oneshot\n\
    RemainAfterExit=yes\n\
    ExecStart=/usr/bin/ssh-keygen -A\n\
    \n\
    [Install]\n\
    WantedBy=ssh.service sshd.service ssh.socket\n";

/// Settings of sshd_config(5) as a drop-in, the unit, the host keys.
pub(super) fn apply(
    editor: &mut Editor,
    system: &System,
    requests: &mut Requests,
) -> Result<(), RootfsError> {
    let installed = editor.has("/usr/sbin/sshd");
    if system.ssh.enable && !installed {
        let (field, what) = ("ssh.enable".to_owned(), "/usr/sbin/sshd".to_owned());
        return Err(RootfsError::NeedsPackage { field, what, package: "openssh-server" });
    }
    if !installed {
        return Ok(());
    }
    let keygen = "sshd-keygen.service";
    if units::exists(editor, keygen) {
        editor.write("ssh", &format!("/etc/systemd/system/{keygen}.d/kiln.conf"), KEEP_TRYING)?;
    } else {
        editor.write("ssh", &format!("/etc/systemd/system/{keygen}"), HOST_KEYS)?;
    }
    requests.insert(keygen.to_owned(), UnitState::Enabled);
    if !system.ssh.enable {
        return Ok(());
    }
    requests.insert("ssh.service".to_owned(), UnitState::Enabled);
    let mut text = String::new();
    for (key, value) in &system.ssh.settings {
        let field = || format!("ssh.settings.{key}");
        if key.is_empty() || !key.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Err(RootfsError::value(field(), key, "a keyword of sshd_config(5) is expected"));
        }
        let value = match value {
            Value::Bool(true) => "yes".to_owned(),
            Value::Bool(false) => "no".to_owned(),
            Value::Number(number) => number.to_string(),
            Value::Text(text) if !text.chars().any(char::is_control) => text.clone(),
            Value::Text(text) => return Err(RootfsError::value(field(), text, "it must be one line")),
        };
        text.push_str(&format!("{key} {value}\n"));
    }
    if text.is_empty() {
        return Ok(());
    }
    // sshd takes the first value that it reads; the drop-ins come before the main file's own settings.
    editor.write("ssh.settings", "/etc/ssh/sshd_config.d/60-kiln.conf", text)
}
