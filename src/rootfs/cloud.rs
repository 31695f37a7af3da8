//! cloud-init: data sources and settings, and what Kiln already does so that cloud-init need not.

use serde_json::{Map, Value, json};

use crate::rootfs::editor::Editor;
use crate::rootfs::error::RootfsError;
use crate::rootfs::mounts::Growth;
use crate::rootfs::yaml;
use crate::system::{Manager, System};

/// Read after every file of Debian's packages, among them `90_dpkg.cfg`, and before the administrator's `99-…`.
const PATH: &str = "/etc/cloud/cloud.cfg.d/95-kiln.cfg";

/// Writes cloud-init's configuration, or switches it off when it is installed but not wanted.
pub(super) fn apply(editor: &mut Editor, system: &System, growth: Growth) -> Result<(), RootfsError> {
    let installed = editor.has("/usr/bin/cloud-init");
    if !system.cloud_init.enable {
        if installed {
            editor.write("cloud_init.enable", "/etc/cloud/cloud-init.disabled", "")?;
        }
        return Ok(());
    }
    if !installed {
        let (field, what) = ("cloud_init.enable".to_owned(), "/usr/bin/cloud-init".to_owned());
        return Err(RootfsError::NeedsPackage { field, what, package: "cloud-init" });
    }
    let mut settings = own_settings(system, growth);
    merge(&mut settings, &system.cloud_init.settings);
    let sources = &system.cloud_init.datasources;
    let plain = |name: &String| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric());
    if let Some(name) = sources.iter().find(|name| !plain(name)) {
        let why = "a data source's name is expected, as in Ec2, NoCloud, None";
        return Err(RootfsError::value("cloud_init.datasources", name, why));
    }
    let mut text = "# Written by Kiln from the profile's cloud_init.\n".to_owned();
    if !sources.is_empty() {
        // One line without quotes: ds-identify reads it with the shell.
        text.push_str(&format!("datasource_list: [{}]\n", sources.join(", ")));
    }
    text.push_str(&yaml::print(&settings));
    editor.write("cloud_init", PATH, text)
}

/// What Kiln decides unless the profile's settings say otherwise.
fn own_settings(system: &System, growth: Growth) -> Map<String, Value> {
    let mut settings = Map::new();
    // The profile's archives are the image's.
    settings.insert("apt".into(), json!({ "preserve_sources_list": true }));
    if !system.hostname.is_empty() {
        settings.insert("preserve_hostname".into(), json!(true));
    }
    if system.network.manager != Manager::CloudInit {
        settings.insert("network".into(), json!({ "config": "disabled" }));
    }
    if growth != Growth::CloudInit {
        settings.insert("growpart".into(), json!({ "mode": "off" }));
        settings.insert("resize_rootfs".into(), json!(false));
    }
    settings
}

/// Lays `over` on top of `base`, map by map.
fn merge(base: &mut Map<String, Value>, over: &Map<String, Value>) {
    for (key, value) in over {
        match (base.get_mut(key), value) {
            (Some(Value::Object(base)), Value::Object(over)) => merge(base, over),
            _ => {
                base.insert(key.clone(), value.clone());
            }
        }
    }
}
