//! What further servers make of themselves when they are installed: MariaDB's data, slapd's directory, Java's trusted
//! certificates. None of it may be shared by machines, or differ between two bakes.

use crate::format::jks;
use crate::rootfs::editor::Editor;
use crate::rootfs::error::RootfsError;
use crate::rootfs::units::Requests;
use crate::system::UnitState;
use crate::tree::{Content, Kind};

const MARIADB_DATA: &str = "/var/lib/mysql";
const MARIADB_UNIT: &str = "kiln-mariadb.service";
const MARIADB_INSTALL: &str = "/usr/bin/mariadb-install-db";

/// As Debian's postinst calls mariadb-install-db. The folder may be a mount point, so that the data can't be made elsewhere
/// and moved; a mark says that they are not finished, and a first boot that was cut short starts again.
const MARIADB_TEXT: &str = "[Unit]\n\
    Description=Make MariaDB's data\n\
    ConditionPathExists=|!/var/lib/mysql/mysql\n\
    ConditionPathExists=|/var/lib/mysql/kiln-unfinished\n\
    RequiresMountsFor=/var/lib/mysql\n\
    Before=mariadb.service\n\
    \n\
    [Service]\n\
    Type=oneshot\n\
    RemainAfterExit=yes\n\
    ExecStartPre=/bin/sh -c 'if [ -e /var/lib/mysql/kiln-unfinished ]; then \
    find /var/lib/mysql -mindepth 1 -maxdepth 1 ! -name lost+found ! -name \"debian-*.flag\" ! -name kiln-unfinished \
    -exec rm -rf {} +; fi; touch /var/lib/mysql/kiln-unfinished'\n\
    ExecStart=/usr/bin/mariadb-install-db --rpm --cross-bootstrap --user=mysql --disable-log-bin --skip-test-db\n\
    ExecStart=/usr/bin/sync --file-system /var/lib/mysql\n\
    ExecStart=/usr/bin/rm /var/lib/mysql/kiln-unfinished\n\
    \n\
    [Install]\n\
    RequiredBy=mariadb.service\n";

const SLAPD_CONFIG: &str = "/etc/ldap/slapd.d/cn=config.ldif";
const CACERTS: &str = "/etc/ssl/certs/java/cacerts";
/// The settings of ca-certificates-java, the store's password among them.
const CACERTS_SETTINGS: &str = "/etc/default/cacerts";

/// Takes out what each machine makes for itself, and brings the rest into one form.
pub(super) fn apply(editor: &mut Editor, requests: &mut Requests) -> Result<(), RootfsError> {
    mariadb(editor, requests)?;
    if editor.has(SLAPD_CONFIG) {
        editor.warnings.push(
            "slapd made its directory while the image was baked: identifiers and the administrator's password are the same on \
             all machines and differ from bake to bake. Say \
             debconf.slapd.\"slapd/no_configuration\" = { type = 'boolean, value = \"true\" }, and let each machine make its own"
                .to_owned(),
        );
    }
    if !java(editor)? {
        editor.warnings.push(format!(
            "{CACERTS} is no key store of the form that ca-certificates-java makes: it differs from bake to bake, for it holds the \
             time at which it was made"
        ));
    }
    Ok(())
}

fn mariadb(editor: &mut Editor, requests: &mut Requests) -> Result<(), RootfsError> {
    if !editor.has(MARIADB_INSTALL) || !editor.is_dir(&format!("{MARIADB_DATA}/mysql")) {
        return Ok(());
    }
    // The flag tells the package's scripts which version's data these are.
    let kept = |name: &str| name.starts_with("debian-") && name.ends_with(".flag");
    for entry in editor.entries(MARIADB_DATA).into_iter().filter(|name| !kept(name)) {
        editor.remove(format!("{MARIADB_DATA}/{entry}"));
    }
    editor.write("first boot", &format!("/etc/systemd/system/{MARIADB_UNIT}"), MARIADB_TEXT)?;
    requests.insert(MARIADB_UNIT.to_owned(), UnitState::Enabled);
    Ok(())
}

/// Brings Java's key store into the form that depends on its certificates alone; false when it can't be.
pub(super) fn java(editor: &mut Editor) -> Result<bool, RootfsError> {
    let Some(bytes) = editor.bytes(CACERTS)? else { return Ok(true) };
    let settings = editor.text(CACERTS_SETTINGS)?.unwrap_or_default();
    let password = settings.lines().find_map(|line| line.strip_prefix("storepass="));
    let password = password.map_or("changeit", |word| word.trim().trim_matches(['\'', '"']));
    let place = editor.tree().resolve(CACERTS);
    if place.as_ref().is_some_and(|place| editor.written.contains(place)) {
        return Ok(true);
    }
    let Some(one) = jks::normalised(&bytes, password, editor.epoch) else { return Ok(false) };
    let node = editor.nodes_mut().find(|(path, _)| Some(*path) == place.as_ref());
    if let Some((_, node)) = node
        && one != bytes
    {
        node.kind = Kind::File(Content::bytes(one));
    }
    Ok(true)
}
