//! systemd's units: texts, drop-ins, and what `systemctl --root enable, disable, mask` would do to the tree.
//!
//! Links are made below /etc/systemd/system as systemctl(1) of systemd 257 makes them, from the `[Install]` sections of
//! units and of their drop-ins.

use std::collections::{BTreeMap, BTreeSet};

use crate::rootfs::editor::Editor;
use crate::rootfs::error::{RootfsError, UnitError};
use crate::rootfs::near::Near;
use crate::rootfs::unit_file::{self, Install};
use crate::system::{Set, System, Unit, UnitState};
use crate::tree::{Kind, TreePath};

/// Where units lie, the first place winning (systemd.unit(5), without those that only exist at run time).
const PLACES: [&str; 3] = ["/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system"];
/// Where the administrator's links lie.
const ETC: &str = "/etc/systemd/system";
/// Types that generators and the kernel make, so that drop-ins to them need no file.
const GENERATED: [&str; 6] = ["mount", "automount", "swap", "device", "slice", "scope"];

/// Units that Kiln's own configuration wants in a state, unless the profile says otherwise.
pub(super) type Requests = BTreeMap<String, UnitState>;

/// A unit's file.
struct Found {
    /// Absolute path of the file, as links name it.
    path: String,
    /// The unit's real name, once aliases are followed.
    name: String,
}

/// What looking for a unit can come to.
enum Search {
    Found(Found),
    /// A link to /dev/null, or an empty file, at this path.
    Masked(String),
    Nowhere,
}

/// Writes the texts and drop-ins of the profile.
pub(super) fn write(editor: &mut Editor, units: &Set<Unit>) -> Result<(), RootfsError> {
    for (name, unit) in units {
        if !unit_file::is_valid_name(name) {
            return Err(RootfsError::unit(name, UnitError::BadName));
        }
        let field = format!("units.\"{name}\"");
        if let Some(text) = &unit.text {
            if unit.state == UnitState::Masked {
                return Err(RootfsError::unit(name, UnitError::TextAndMasked));
            }
            check_syntax(name, "text", text)?;
            editor.write(&format!("{field}.text"), &format!("{ETC}/{name}"), with_line_end(text))?;
        }
        for (label, text) in &unit.drop_ins {
            check_syntax(name, &format!("drop_ins.{label}"), text)?;
            let path = format!("{ETC}/{name}.d/{}.conf", label.trim_end_matches(".conf"));
            editor.write(&format!("{field}.drop_ins.{label}"), &path, with_line_end(text))?;
        }
    }
    Ok(())
}

/// A text that ends with a line break.
pub(super) fn with_line_end(text: &str) -> String {
    if text.is_empty() || text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") }
}

fn check_syntax(unit: &str, place: &str, text: &str) -> Result<(), RootfsError> {
    match unit_file::parse(text).1.first() {
        None => Ok(()),
        Some(bad) => {
            let why = UnitError::Syntax { place: place.to_owned(), line: bad.line, why: bad.why };
            Err(RootfsError::unit(unit, why))
        }
    }
}

/// Brings every unit into its state: those of the profile, and those that Kiln's configuration needs. All that write
/// units, the profile's files among them, must be done.
pub(super) fn apply(editor: &mut Editor, system: &System, requests: &Requests) -> Result<(), RootfsError> {
    let mut states = requests.clone();
    for (name, unit) in &system.units {
        if !exists(editor, name) && !is_generated(name) {
            return Err(RootfsError::unit(name, UnitError::Unknown(near(editor, name))));
        }
        if unit.state != UnitState::Package {
            states.insert(name.clone(), unit.state);
        }
    }
    let of = |wanted: UnitState| states.iter().filter(move |(_, s)| **s == wanted).map(|(name, _)| name);
    // Disabling first: one unit's `Also=` must not take away what another asks for.
    for name in of(UnitState::Disabled) {
        disable(editor, name)?;
    }
    for name in of(UnitState::Masked) {
        mask(editor, name)?;
    }
    for name in of(UnitState::Enabled) {
        enable(editor, name)?;
    }
    check_timers(editor, system)
}

/// Whether a unit of this name has a file, masked or not.
pub(super) fn exists(editor: &Editor, name: &str) -> bool {
    !matches!(find(editor, name), Search::Nowhere)
}

fn is_generated(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, kind)| GENERATED.contains(&kind))
}

fn near(editor: &Editor, name: &str) -> Near {
    let all: BTreeSet<String> = PLACES.iter().flat_map(|dir| editor.entries(dir)).collect();
    Near::of(name, all.iter().map(String::as_str).filter(|n| unit_file::is_valid_name(n)))
}

/// Looks for a unit as systemd does: by its name, following aliases, then by its template.
fn find(editor: &Editor, name: &str) -> Search {
    let mut name = name.to_owned();
    // Aliases that lead to aliases: systemd follows a few, and so many don't occur.
    for _ in 0..8 {
        let template = unit_file::template_of(&name);
        let candidates = [Some(name.clone()), template.clone()].into_iter().flatten();
        let Some((path, candidate)) = candidates.flat_map(in_places).find(|(path, _)| is_entry(editor, path))
        else {
            return Search::Nowhere;
        };
        let Some(Kind::Symlink(target)) = editor.tree().get(&path).map(|n| &n.kind) else {
            return match editor.content(&path) {
                Some(content) if !content.is_empty() => Search::Found(Found { path, name }),
                Some(_) => Search::Masked(path),
                None => Search::Nowhere,
            };
        };
        let target = String::from_utf8_lossy(target).into_owned();
        if target == "/dev/null" {
            return Search::Masked(path);
        }
        let real = target.rsplit('/').next().unwrap_or(&target).to_owned();
        if real == candidate {
            // A unit linked in from elsewhere.
            return match editor.tree().resolve(&path) {
                Some(at) if editor.content(&path).is_some() => {
                    Search::Found(Found { path: format!("/{}", String::from_utf8_lossy(&at)), name })
                }
                _ => Search::Nowhere,
            };
        }
        // An alias of a template keeps the instance asked for.
        name = match (unit_file::instance(&name), unit_file::instance(&real)) {
            (Some((_, instance, _)), Some((prefix, "", kind))) => format!("{prefix}@{instance}.{kind}"),
            _ => real,
        };
    }
    Search::Nowhere
}

fn in_places(name: String) -> impl Iterator<Item = (String, String)> {
    PLACES.iter().map(move |dir| (format!("{dir}/{name}"), name.clone()))
}

/// Whether there is a file or link at `path` itself, links on the way followed.
fn is_entry(editor: &Editor, path: &str) -> bool {
    editor.tree().get(path).is_some_and(|n| n.kind != Kind::Dir)
}

/// The `[Install]` section of a unit and its drop-ins; of files with one name the first place's counts.
fn install_of(editor: &Editor, found: &Found) -> Result<Install, RootfsError> {
    let mut install = Install::default();
    install.read(&editor.text(&found.path)?.unwrap_or_default());
    let mut drop_ins: BTreeMap<String, String> = BTreeMap::new();
    let names = [Some(found.name.clone()), unit_file::template_of(&found.name)];
    for name in names.into_iter().flatten() {
        for dir in PLACES.iter().map(|place| format!("{place}/{name}.d")) {
            for file in editor.entries(&dir).into_iter().filter(|file| file.ends_with(".conf")) {
                let path = format!("{dir}/{file}");
                drop_ins.entry(file).or_insert(path);
            }
        }
    }
    for path in drop_ins.values() {
        install.read(&editor.text(path)?.unwrap_or_default());
    }
    Ok(install)
}

/// `systemctl enable`.
fn enable(editor: &mut Editor, name: &str) -> Result<(), RootfsError> {
    // A mask of the administrator's (or of a package's scripts) gives way to what the profile says.
    let own = format!("{ETC}/{name}");
    if matches!(editor.tree().get(&own).map(|n| &n.kind), Some(Kind::Symlink(target)) if target == b"/dev/null")
    {
        editor.remove(&own);
    }
    let mut todo = vec![name.to_owned()];
    let mut done = BTreeSet::new();
    while let Some(next) = todo.pop() {
        if !done.insert(next.clone()) {
            continue;
        }
        let found = match find(editor, &next) {
            Search::Found(found) => found,
            // systemctl goes on when a unit named by `Also=` is missing.
            _ if next != name => continue,
            Search::Masked(path) => return Err(RootfsError::unit(name, UnitError::Masked(path))),
            Search::Nowhere => return Err(RootfsError::unit(name, UnitError::Unknown(near(editor, name)))),
        };
        let install = install_of(editor, &found)?;
        if next == name && install.is_empty() && !is_started_anyway(editor, &found.name) {
            return Err(RootfsError::unit(name, UnitError::NoInstall));
        }
        for also in &install.also {
            todo.push(expanded(also, &found.name)?);
        }
        make_links(editor, name, &found, &install)?;
    }
    Ok(())
}

/// Whether some unit of a package pulls in `name` by a link of its own.
fn is_started_anyway(editor: &Editor, name: &str) -> bool {
    let suffixes = [".wants", ".requires", ".upholds"];
    PLACES.iter().any(|place| {
        let dirs = editor.entries(place).into_iter().filter(|dir| suffixes.iter().any(|s| dir.ends_with(s)));
        dirs.into_iter().any(|dir| is_entry(editor, &format!("{place}/{dir}/{name}")))
    })
}

fn expanded(text: &str, unit: &str) -> Result<String, RootfsError> {
    unit_file::expand(text, unit).map_err(|c| RootfsError::unit(unit, UnitError::Specifier(c)))
}

fn make_links(editor: &mut Editor, asked: &str, found: &Found, install: &Install) -> Result<(), RootfsError> {
    let bad = |name: &str| RootfsError::unit(asked, UnitError::BadInstall(name.to_owned()));
    let field = format!("units.\"{asked}\".state");
    // A template is installed under its default instance; without one only into other templates.
    let (name, only_templates) = match (&install.default_instance, unit_file::instance(&found.name)) {
        (Some(default), Some((prefix, "", kind))) => {
            (format!("{prefix}@{}.{kind}", expanded(default, &found.name)?), false)
        }
        (None, Some((_, "", _))) => (found.name.clone(), true),
        _ => (found.name.clone(), false),
    };
    let lists =
        [(&install.wanted_by, "wants"), (&install.required_by, "requires"), (&install.upheld_by, "upholds")];
    for (list, kind) in lists {
        for target in list {
            let target = expanded(target, &name)?;
            if !unit_file::is_valid_name(&target) {
                return Err(bad(&target));
            }
            if only_templates && unit_file::instance(&target).is_none() {
                let (prefix, _, kind) = unit_file::instance(&name).unwrap_or((&name, "", "service"));
                let example = format!("{prefix}@NAME.{kind}");
                return Err(RootfsError::unit(asked, UnitError::NeedsInstance(example)));
            }
            link(editor, &field, &format!("{ETC}/{target}.{kind}/{name}"), &found.path)?;
        }
    }
    for alias in &install.alias {
        let alias = expanded(alias, &name)?;
        if !unit_file::is_valid_name(&alias) || alias.rsplit('.').next() != name.rsplit('.').next() {
            return Err(bad(&alias));
        }
        if alias != name {
            let path = format!("{ETC}/{alias}");
            if let Some(node) = editor.tree().get(&path).filter(|_| !leads_to(editor, &path, &found.path)) {
                let target = match &node.kind {
                    Kind::Symlink(target) => String::from_utf8_lossy(target).into_owned(),
                    _ => path,
                };
                return Err(RootfsError::unit(asked, UnitError::AliasTaken { alias, target }));
            }
            link(editor, &field, &path, &found.path)?;
        }
    }
    Ok(())
}

/// Makes a link to a unit, unless one leads there already (perhaps by way of /lib).
fn link(editor: &mut Editor, field: &str, path: &str, unit: &str) -> Result<(), RootfsError> {
    if leads_to(editor, path, unit) { Ok(()) } else { editor.link(field, path, unit) }
}

fn leads_to(editor: &Editor, path: &str, unit: &str) -> bool {
    let is_link = matches!(editor.tree().get(path).map(|n| &n.kind), Some(Kind::Symlink(_)));
    is_link && editor.tree().resolve(path) == editor.tree().resolve(unit)
}

/// `systemctl disable`: every link of the administrator's that has the unit's name, or that of one it names by `Also=`,
/// or that leads to it.
fn disable(editor: &mut Editor, name: &str) -> Result<(), RootfsError> {
    let mut names = BTreeSet::new();
    let mut todo = vec![name.to_owned()];
    while let Some(next) = todo.pop() {
        match find(editor, &next) {
            Search::Found(found) => {
                if !names.insert(found.name.clone()) {
                    continue;
                }
                for also in install_of(editor, &found)?.also {
                    todo.push(expanded(&also, &found.name)?);
                }
            }
            Search::Nowhere if next == name => {
                return Err(RootfsError::unit(name, UnitError::Unknown(near(editor, name))));
            }
            _ => {}
        }
    }
    loop {
        let links = links_of(editor, &names);
        if links.is_empty() {
            return Ok(());
        }
        for (path, name) in links {
            editor.remove(&path);
            names.insert(name);
        }
    }
}

/// Links below /etc/systemd/system that have one of these names or lead to one; each with its own name.
fn links_of(editor: &Editor, names: &BTreeSet<String>) -> Vec<(TreePath, String)> {
    let base = |path: &[u8]| {
        let name = path.rsplit(|&b| b == b'/').next().unwrap_or(path);
        String::from_utf8_lossy(name).into_owned()
    };
    let ours = |name: &String| {
        names.contains(name) || unit_file::template_of(name).is_some_and(|t| names.contains(&t))
    };
    let below = editor.tree().below(ETC.as_bytes());
    below
        .filter_map(|(path, node)| match &node.kind {
            Kind::Symlink(target) if target != b"/dev/null" => Some((path, base(path), base(target))),
            _ => None,
        })
        .filter(|(_, name, target)| unit_file::is_valid_name(name) && (ours(name) || ours(target)))
        .map(|(path, name, _)| (path.clone(), name))
        .collect()
}

/// `systemctl mask`: links that want it stay, and do nothing.
fn mask(editor: &mut Editor, name: &str) -> Result<(), RootfsError> {
    editor.link(&format!("units.\"{name}\".state"), &format!("{ETC}/{name}"), "/dev/null")
}

/// Every timer that the profile writes must have something to start.
fn check_timers(editor: &Editor, system: &System) -> Result<(), RootfsError> {
    for (name, unit) in &system.units {
        let (Some(text), Some(stem)) = (&unit.text, name.strip_suffix(".timer")) else { continue };
        let (found, _) = unit_file::parse(text);
        let named = found.iter().rfind(|a| a.section == "Timer" && a.key == "Unit").map(|a| a.value.clone());
        let target = named.unwrap_or_else(|| format!("{stem}.service"));
        if !target.contains('%') && !exists(editor, &target) {
            return Err(RootfsError::unit(name, UnitError::NoTarget(target)));
        }
    }
    Ok(())
}
