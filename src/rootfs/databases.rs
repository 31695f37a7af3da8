//! PostgreSQL's clusters: their configuration is the image's, their data each machine's own.
//!
//! Debian's package makes a cluster when it is installed. Its data hold a random system identifier, times and
//! checksums of both: nothing that two machines should share, nor that two builds could have in common. The data are
//! taken out, and a unit makes them again before the cluster starts for the first time.

use std::collections::BTreeMap;

use crate::rootfs::editor::Editor;
use crate::rootfs::error::RootfsError;
use crate::rootfs::units::Requests;
use crate::system::UnitState;

/// A cluster, as pg_lscluster(1) names it.
struct Cluster {
    version: String,
    name: String,
    /// Settings of its postgresql.conf, without their quotes.
    settings: BTreeMap<String, String>,
}

/// Takes out the data of all clusters; leaves the configuration.
pub(super) fn apply(editor: &mut Editor, requests: &mut Requests) -> Result<(), RootfsError> {
    for cluster in clusters(editor)? {
        let data = cluster.data();
        if !editor.has(&format!("{data}/PG_VERSION")) {
            continue;
        }
        for entry in editor.entries(&data) {
            editor.remove(format!("{data}/{entry}"));
        }
        let unit = format!("kiln-postgresql-{}-{}.service", cluster.version, cluster.name);
        editor.write("first boot", &format!("/etc/systemd/system/{unit}"), cluster.unit())?;
        requests.insert(unit, UnitState::Enabled);
    }
    Ok(())
}

fn clusters(editor: &Editor) -> Result<Vec<Cluster>, RootfsError> {
    let mut found = Vec::new();
    for version in editor.entries("/etc/postgresql") {
        for name in editor.entries(&format!("/etc/postgresql/{version}")) {
            if let Some(text) = editor.text(&format!("/etc/postgresql/{version}/{name}/postgresql.conf"))? {
                found.push(Cluster { version: version.clone(), name, settings: settings(&text) });
            }
        }
    }
    Ok(found)
}

/// `name = 'value'` lines of postgresql.conf; the last of a name counts.
fn settings(text: &str) -> BTreeMap<String, String> {
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs
        .filter(|(name, _)| !name.trim_start().starts_with('#'))
        .filter_map(|(name, rest)| Some((name.trim().to_owned(), rest.split('\'').nth(1)?.to_owned())))
        .collect()
}

impl Cluster {
    fn data(&self) -> String {
        let usual = || format!("/var/lib/postgresql/{}/{}", self.version, self.name);
        self.settings.get("data_directory").cloned().unwrap_or_else(usual)
    }

    /// As pg_createcluster(1) calls initdb, but whole or not at all: a first boot that is cut short starts again.
    fn unit(&self) -> String {
        let Cluster { version, name, settings } = self;
        let data = self.data();
        let locale = settings.get("lc_messages").map_or("C.UTF-8", String::as_str);
        format!(
            "[Unit]\n\
             Description=Make the data of the PostgreSQL cluster {version}/{name}\n\
             ConditionPathExists=!{data}/PG_VERSION\n\
             RequiresMountsFor={data}\n\
             Before=postgresql@{version}-{name}.service\n\
             \n\
             [Service]\n\
             Type=oneshot\n\
             RemainAfterExit=yes\n\
             User=postgres\n\
             ExecStartPre=/usr/bin/rm -rf {data}.new\n\
             ExecStart=/usr/lib/postgresql/{version}/bin/initdb --pgdata={data}.new --locale={locale} --encoding=UTF8 \
             --auth-local=peer --auth-host=scram-sha-256 --no-instructions\n\
             ExecStart=/usr/bin/rm {data}.new/postgresql.conf {data}.new/pg_hba.conf {data}.new/pg_ident.conf\n\
             ExecStart=/usr/bin/mv -T {data}.new {data}\n\
             \n\
             [Install]\n\
             RequiredBy=postgresql@{version}-{name}.service\n"
        )
    }
}
