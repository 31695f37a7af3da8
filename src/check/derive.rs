//! Checks that follow from a system's description and its tree: whoever declared something expects it to be so.

use std::collections::BTreeSet;

use super::{Check, FileFacts, What};
use crate::system::{Mount, System, UnitState, Value};
use crate::tree::{Kind, Tree, normal};
use std::time::Duration;

/// Files that the running system writes itself, cloud-init's among them.
const LIVING: [&str; 5] =
    ["/etc/hostname", "/etc/hosts", "/etc/machine-id", "/etc/resolv.conf", "/etc/fstab"];
/// Reading every file of every package takes its time.
const VERIFY_LIMIT: Duration = Duration::from_secs(120);
/// Port of the SSH server, when the profile says nothing else.
const SSH_PORT: u16 = 22;

/// The checks of a system whose image has `tree` as its root.
#[must_use]
pub fn derived(system: &System, tree: &Tree) -> Vec<Check> {
    let on = &system.test.derived;
    let mut checks = Vec::new();
    let mut add = |wanted: bool, more: Vec<Check>| checks.extend(more.into_iter().filter(|_| wanted));
    add(on.boot_time, vec![Check::new("boot time", What::BootTime)]);
    add(on.units, units(system, tree));
    add(on.accounts, accounts(system));
    add(on.files, files(system, tree));
    add(on.sysctl, sysctl(system));
    add(on.mounts, mounts(system));
    add(on.ports, ports(system));
    add(on.packages, vec![packages(system)]);
    checks
}

/// The checks of an image of which nothing is known.
#[must_use]
pub fn of_any_system() -> Vec<Check> {
    let verify =
        Check { timeout: VERIFY_LIMIT, ..Check::new("packages", What::Packages { except: Vec::new() }) };
    vec![Check::new("boot time", What::BootTime), Check::new("no failed unit", What::NoFailedUnit), verify]
}

fn units(system: &System, tree: &Tree) -> Vec<Check> {
    let mut names: BTreeSet<String> = enabled_in(tree);
    let mut checks = vec![Check::new("no failed unit", What::NoFailedUnit)];
    for (name, unit) in &system.units {
        match unit.state {
            UnitState::Enabled => {
                names.insert(name.clone());
            }
            UnitState::Masked => {
                names.remove(name);
                let what = What::Masked { name: name.clone() };
                checks.push(Check::new(format!("{name} is masked"), what));
            }
            UnitState::Disabled => {
                names.remove(name);
            }
            UnitState::Package => {}
        }
    }
    // A template's instances are units of their own; the template itself is none.
    names.retain(|name| !name.contains("@."));
    checks.extend(
        names.into_iter().map(|name| Check::new(format!("unit {name}"), What::Unit { name, may_rest: true })),
    );
    checks
}

/// The units that something in /etc/systemd/system wants; a masked one isn't started by that.
fn enabled_in(tree: &Tree) -> BTreeSet<String> {
    let below = tree.iter().filter_map(|(path, node)| {
        let path = std::str::from_utf8(path).ok()?.strip_prefix("etc/systemd/system/")?;
        let (folder, name) = path.split_once('/')?;
        let wants = folder.ends_with(".target.wants") || folder.ends_with(".target.requires");
        (wants && !name.contains('/') && matches!(node.kind, Kind::Symlink(_))).then(|| name.to_owned())
    });
    below.filter(|name| !is_masked(tree, name)).collect()
}

fn is_masked(tree: &Tree, unit: &str) -> bool {
    let node = tree.get(format!("etc/systemd/system/{unit}"));
    node.is_some_and(|node| matches!(&node.kind, Kind::Symlink(target) if *target == *b"/dev/null"))
}

fn accounts(system: &System) -> Vec<Check> {
    let users = system.users.iter().filter(|(_, u)| u.enable).map(|(name, user)| {
        // What a package makes is the package's own business but for its being there.
        let own = user.uid.is_some() || name == "root";
        let given = |text: &String| (own && !text.is_empty()).then(|| text.clone());
        let what = What::User {
            name: name.clone(),
            uid: user.uid,
            home: given(&user.home),
            shell: given(&user.shell),
        };
        Check::new(format!("user {name}"), what)
    });
    let groups = system.groups.iter().filter(|(_, g)| g.enable).map(|(name, group)| {
        Check::new(format!("group {name}"), What::Group { name: name.clone(), gid: group.gid })
    });
    users.chain(groups).collect()
}

fn files(system: &System, tree: &Tree) -> Vec<Check> {
    let own = system.files.iter().filter(|(_, f)| f.enable).map(|(path, _)| path);
    let fetched = system.fetch.iter().filter(|(_, f)| f.enable).map(|(path, _)| path);
    let paths = own.chain(fetched).filter(|path| !LIVING.contains(&path.as_str()));
    let checks = paths.filter_map(|path| {
        let node = tree.get(normal(path.as_bytes()))?;
        let sha256 = match &node.kind {
            Kind::File(content) => Some(content.sha256()),
            _ => None,
        };
        let facts = FileFacts {
            path: path.clone(),
            exists: true,
            contains: None,
            sha256,
            mode: Some(node.mode),
            user: Some(node.uid.to_string()),
            group: Some(node.gid.to_string()),
        };
        Some(Check::new(format!("file {path}"), What::File(facts)))
    });
    checks.collect()
}

fn sysctl(system: &System) -> Vec<Check> {
    // A pattern stands for whatever is there; which it is only the machine knows. What begins with a dash may fail (sysctl.d(5)).
    let plain = system.sysctl.iter().filter(|(key, _)| !key.starts_with('-') && !key.contains(['*', '?']));
    plain
        .map(|(key, value)| {
            let value = match value {
                Value::Bool(on) => u8::from(*on).to_string(),
                Value::Number(number) => number.to_string(),
                Value::Text(text) => text.clone(),
            };
            Check::new(format!("sysctl {key}"), What::Sysctl { key: key.clone(), value })
        })
        .collect()
}

fn mounts(system: &System) -> Vec<Check> {
    let own = system.mounts.iter().filter(|(_, m)| m.enable);
    let any = |mount: &Mount, options: [&str; 2]| {
        options.iter().any(|&option| mount.options.get(option).copied().unwrap_or_default())
    };
    let own = own.filter(|(_, mount)| !any(mount, ["noauto", "nofail"]));
    let own = own.map(|(path, mount)| {
        // What is bound has the file system of where it comes from.
        let bound = mount.fs == "none" || any(mount, ["bind", "rbind"]);
        (path.clone(), if bound { String::new() } else { mount.fs.clone() })
    });
    let extra = system.disk.partitions.values().filter(|p| p.enable && !p.mount.is_empty());
    let extra = extra.map(|p| (p.mount.clone(), "ext4".to_owned()));
    let mut checks: Vec<Check> = own
        .chain(extra)
        .map(|(path, fs)| Check::new(format!("mount {path}"), What::Mount { path, fs }))
        .collect();
    if system.swap.file.0 > 0 || system.swap.zram_percent > 0 {
        checks.push(Check::new("swap", What::Swap));
    }
    checks
}

fn ports(system: &System) -> Vec<Check> {
    if !system.ssh.enable {
        return Vec::new();
    }
    let port = match system.ssh.settings.get("Port") {
        Some(Value::Number(port)) => u16::try_from(*port).unwrap_or(SSH_PORT),
        Some(Value::Text(port)) => port.parse().unwrap_or(SSH_PORT),
        _ => SSH_PORT,
    };
    vec![Check::new(format!("port {port}"), What::Port(port))]
}

fn packages(system: &System) -> Check {
    let files = system.files.iter().filter(|(_, f)| f.enable).map(|(path, _)| path);
    let links = system.symlinks.iter().filter(|(_, l)| l.enable).map(|(path, _)| path);
    let fetched = system.fetch.iter().filter(|(_, f)| f.enable).map(|(path, _)| path);
    let except = files.chain(links).chain(fetched).cloned().collect();
    Check { timeout: VERIFY_LIMIT, ..Check::new("packages", What::Packages { except }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::test::Derived;
    use crate::system::{File, Unit, User};
    use crate::tree::{Content, Node};

    fn all() -> Derived {
        Derived {
            units: true,
            accounts: true,
            files: true,
            sysctl: true,
            mounts: true,
            ports: true,
            packages: true,
            boot_time: true,
        }
    }

    #[test]
    fn what_is_declared_is_checked() {
        let mut system = System::default();
        system.test.derived = all();
        system.users.insert(
            "web".into(),
            User { enable: true, uid: Some(900), home: "/srv".into(), ..User::default() },
        );
        system.files.insert("/etc/motd".into(), File { enable: true, ..File::default() });
        system.files.insert("/etc/hosts".into(), File { enable: true, ..File::default() });
        system.sysctl.insert("vm.swappiness".into(), Value::Number(10));
        system.sysctl.insert("net.ipv4.conf.*.rp_filter".into(), Value::Bool(true));
        system.sysctl.insert("net.ipv4.conf.eth?.rp_filter".into(), Value::Bool(true));
        system.sysctl.insert("-net.netfilter.nf_conntrack_max".into(), Value::Number(9));
        system.mounts.insert("/data".into(), Mount { enable: true, fs: "xfs".into(), ..Mount::default() });
        let mut bound = Mount { enable: true, fs: "none".into(), ..Mount::default() };
        bound.options.insert("bind".into(), true);
        system.mounts.insert("/srv/data".into(), bound);
        system.units.insert("a.service".into(), Unit { state: UnitState::Masked, ..Unit::default() });
        system.ssh.enable = true;
        system.ssh.settings.insert("Port".into(), Value::Number(2222));
        let mut tree = Tree::new();
        tree.insert_with_parents("etc/motd", Node::new(Kind::File(Content::bytes("hi")), 0o644, 0));
        for name in ["a.service", "b.timer", "c@.service"] {
            let link = Node::new(Kind::Symlink(b"/usr/lib/x".to_vec()), 0o777, 0);
            tree.insert_with_parents(format!("etc/systemd/system/multi-user.target.wants/{name}"), link);
        }
        // Wanted by its package, masked by the image.
        for path in ["timers.target.wants/d.timer", "d.timer"] {
            let link = Node::new(Kind::Symlink(b"/dev/null".to_vec()), 0o777, 0);
            tree.insert_with_parents(format!("etc/systemd/system/{path}"), link);
        }
        let checks = derived(&system, &tree);
        let fs = |path: &str| {
            checks.iter().find_map(|check| match &check.what {
                What::Mount { path: at, fs } if at == path => Some(fs.clone()),
                _ => None,
            })
        };
        assert_eq!((fs("/data"), fs("/srv/data")), (Some("xfs".to_owned()), Some(String::new())));
        let names: Vec<String> = checks.into_iter().map(|c| c.name).collect();
        assert_eq!(
            names,
            [
                "boot time",
                "no failed unit",
                "a.service is masked",
                "unit b.timer",
                "user web",
                "file /etc/motd",
                "sysctl vm.swappiness",
                "mount /data",
                "mount /srv/data",
                "port 2222",
                "packages",
            ]
        );
        system.test.derived = Derived::default();
        assert_eq!(derived(&system, &tree), []);
    }
}
