//! The files that a system names, with the field that names each: all are looked for before anything else is done.

use std::fs::{self, File};

use super::path::FieldPath;
use super::project::{Project, normalise};
use super::validate::Problem;
use crate::system::test::Check;
use crate::system::{Set, System};

/// What a field names.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Named<'a> {
    /// The field.
    field: FieldPath,
    /// The name, relative to the profile.
    name: &'a str,
    /// Whether a folder does as well.
    or_folder: bool,
}

/// A problem for each file that `system` names and that can't be read, or lies outside the project.
pub(super) fn missing(system: &System, project: &Project) -> Vec<Problem> {
    let wrong = |named: &Named<'_>| {
        look(named, project).err().map(|reason| Problem {
            field: named.field.to_string(),
            message: format!("`{}`: {reason}", named.name),
        })
    };
    named(system).iter().filter_map(wrong).collect()
}

fn look(named: &Named<'_>, project: &Project) -> Result<(), String> {
    let path = normalise(&project.folder().join(named.name));
    if fs::symlink_metadata(&path).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
        return Err(format!("there is no {}; names count from the profile's folder", path.display()));
    }
    let real = project.admit(&path)?;
    let meta = fs::metadata(&real).map_err(|e| e.to_string())?;
    match meta.is_dir() {
        true if named.or_folder => Ok(()),
        true => Err("it is a folder, and a file is wanted".to_owned()),
        false if !meta.is_file() => Err("it is neither a file nor a folder".to_owned()),
        false => File::open(&real).map(drop).map_err(|e| e.to_string()),
    }
}

fn named<'a>(system: &'a System) -> Vec<Named<'a>> {
    let mut found: Vec<Named<'a>> = Vec::new();
    let mut add = |path: &[&str], name: Option<&'a String>, or_folder| {
        let field = FieldPath(path.iter().map(|&part| part.to_owned()).collect());
        found.extend(name.map(|name| Named { field, name, or_folder }));
    };
    for (path, file) in system.files.iter().filter(|(_, f)| f.enable) {
        add(&["files", path, "source"], file.source.as_ref(), true);
    }
    for (name, script) in system.run.iter().filter(|(_, s)| s.enable) {
        add(&["run", name, "source"], script.source.as_ref(), false);
    }
    for (name, deb) in system.local_debs.iter().filter(|(_, d)| d.enable) {
        add(&["local_debs", name, "path"], Some(&deb.path), false);
    }
    for (name, source) in system.sources.iter().filter(|(_, s)| s.enable) {
        for key in &source.keys {
            add(&["sources", name, "keys"], Some(key), false);
        }
    }
    for key in &system.tools.keys {
        add(&["tools", "keys"], Some(key), false);
    }
    scripts(&["test", "checks"].map(str::to_owned), &system.test.checks, &mut found);
    found
}

/// The scripts of checks, those of further machines too.
fn scripts<'a>(set: &[String], checks: &'a Set<Check>, found: &mut Vec<Named<'a>>) {
    for (name, check) in checks.iter().filter(|(_, check)| check.enable) {
        let at = |fields: &[&str]| -> Vec<String> {
            let fields = fields.iter().map(|&field| field.to_owned());
            set.iter().cloned().chain([name.clone()]).chain(fields).collect()
        };
        if let Some(source) = check.script.as_ref().and_then(|script| script.source.as_deref()) {
            let field = FieldPath(at(&["script", "source"]));
            found.push(Named { field, name: source, or_folder: false });
        }
        if let Some(data) = &check.user_data {
            scripts(&at(&["user_data", "checks"]), &data.checks, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::{LocalDeb, Script};

    #[test]
    fn each_missing_file_is_named_with_its_field() {
        let dir = tempfile::tempdir().unwrap();
        let folder = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir(folder.join("site")).unwrap();
        let project = Project { root: folder.clone(), roots: Vec::new(), profile: folder.join("p.ncl") };
        let mut system = System::default();
        let file = |source: &str| crate::system::File {
            enable: true,
            source: Some(source.to_owned()),
            ..crate::system::File::default()
        };
        system.files.insert("/srv/site".to_owned(), file("site"));
        system.files.insert("/etc/motd".to_owned(), file("absent"));
        let script = Script { enable: true, source: Some("site".to_owned()), ..Script::default() };
        system.run.insert("setup".to_owned(), script);
        system.local_debs.insert("off".to_owned(), LocalDeb { enable: false, path: "absent.deb".to_owned() });
        let checked = Check { enable: true, script: Some(file("check.sh")), ..Check::default() };
        system.test.checks.insert("it answers".to_owned(), checked);
        let problems = missing(&system, &project);
        let fields: Vec<&str> = problems.iter().map(|p| p.field.as_str()).collect();
        assert_eq!(
            fields,
            ["files.\"/etc/motd\".source", "run.setup.source", "test.checks.\"it answers\".script.source"]
        );
        assert!(problems[0].message.starts_with("`absent`: there is no "), "{}", problems[0]);
        assert_eq!(problems[1].message, "`site`: it is a folder, and a file is wanted");
    }
}
