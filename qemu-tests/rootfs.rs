//! Composed trees on a real Debian, judged by Debian's own tools: systemctl, dpkg, visudo, sshd, pwck, apt, cloud-init.
//!
//! Needs root (for chroot) and mmdebstrap with the host's apt sources, or in `KILN_BASE_TAR` a tar that it made before.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use kiln::digest::{Digest, Hasher};
use kiln::rootfs::{ComposeContext, Composed, SourceError, SourceFiles, SourceNode, compose, seal};
use kiln::system::System;
use kiln::tree::{Content, Kind, Node, Packs, Tree, normal};
use serde_json::{Value, json};

const PACKAGES: &str = "apt,systemd-sysv,udev,dbus,linux-image-cloud-amd64,openssh-server,cloud-init,netbase,iproute2,sudo,locales,\
    systemd-repart,systemd-resolved,console-setup,ssl-cert,nginx,tzdata,initramfs-tools,postgresql,systemd-zram-generator,polkitd,\
    logrotate,unattended-upgrades";
const EPOCH: i64 = 1_893_456_000;

/// The tar is the one pack of the tree that was read from it.
struct Base {
    tree: Tree,
    tar: Arc<File>,
}

impl Packs for Base {
    fn open(&self, _: &Digest) -> io::Result<Arc<File>> {
        Ok(self.tar.clone())
    }
}

struct NoSources;

impl SourceFiles for NoSources {
    fn source(&self, _: &str) -> Result<SourceNode, SourceError> {
        Err("none".into())
    }
    fn key(&self, _: &str) -> Result<Vec<u8>, SourceError> {
        Err("none".into())
    }
}

fn base(scratch: &Path) -> Base {
    let path = match std::env::var_os("KILN_BASE_TAR") {
        Some(path) => PathBuf::from(path),
        None => {
            let path = scratch.join("base.tar");
            run(Command::new("mmdebstrap")
                .args([
                    "--variant=essential",
                    "--aptopt=APT::Install-Recommends \"false\"",
                    "--include",
                    PACKAGES,
                    "trixie",
                ])
                .arg(&path));
            path
        }
    };
    let mut archive = tar::Archive::new(File::open(&path).expect("the tar"));
    let mut tree = Tree::new();
    for entry in archive.entries().expect("a tar") {
        let mut entry = entry.expect("an entry");
        let (path, offset) = (normal(&entry.path_bytes()), entry.raw_file_position());
        let link = || entry.link_name_bytes().expect("a link's target").into_owned();
        let kind = match entry.header().entry_type() {
            tar::EntryType::Directory => Kind::Dir,
            tar::EntryType::Symlink => Kind::Symlink(link()),
            tar::EntryType::Link => Kind::HardLink(normal(&link())),
            tar::EntryType::Regular => {
                let (mut hasher, mut bytes) = (Hasher::new(), Vec::new());
                entry.read_to_end(&mut bytes).expect("bytes");
                hasher.update(&bytes);
                let len = bytes.len() as u64;
                Kind::File(Content::Packed { pack: Digest([0; 32]), offset, len, sha256: hasher.finish() })
            }
            _ => continue,
        };
        let header = entry.header();
        let node = Node::new(kind, header.mode().unwrap() & 0o7777, header.mtime().unwrap() as i64);
        tree.insert(path, node.owned_by(header.uid().unwrap() as u32, header.gid().unwrap() as u32));
    }
    // A hard link must sort behind the node that it names.
    let links: Vec<_> = tree
        .iter()
        .filter(|(p, n)| matches!(&n.kind, Kind::HardLink(t) if t > *p))
        .map(|(p, _)| p.clone())
        .collect();
    for path in links {
        let Kind::HardLink(target) = tree.get(&path).unwrap().kind.clone() else { continue };
        let node = tree.get(&target).unwrap().clone();
        tree.insert(path.clone(), node);
        let others: Vec<_> = tree
            .iter()
            .filter(|(_, n)| n.kind == Kind::HardLink(target.clone()))
            .map(|(p, _)| p.clone())
            .collect();
        for other in others.into_iter().chain([target]) {
            tree.insert(other, Node::new(Kind::HardLink(path.clone()), 0o644, 0));
        }
    }
    Base { tree, tar: Arc::new(File::open(path).expect("the tar")) }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
    text
}

fn chroot(root: &Path, program: &str, arguments: &[&str]) -> String {
    run(Command::new("chroot")
        .arg(root)
        .arg(program)
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin")
        .env("LC_ALL", "C"))
}

/// Writes a tree to a folder, through tar.
fn extract(tree: &Tree, packs: &dyn Packs, to: &Path) {
    let tar = to.with_extension("tar");
    let mut builder = tar::Builder::new(File::create(&tar).expect("a tar"));
    for (path, node) in tree.iter().filter(|(path, _)| !path.is_empty()) {
        let mut header = tar::Header::new_gnu();
        header.set_mode(node.mode);
        header.set_uid(node.uid.into());
        header.set_gid(node.gid.into());
        header.set_mtime(node.mtime as u64);
        header.set_size(0);
        let name = Path::new(std::ffi::OsStr::from_bytes(path));
        match &node.kind {
            Kind::Dir => header.set_entry_type(tar::EntryType::Directory),
            Kind::File(content) => {
                header.set_size(content.len());
                let bytes = content.read(packs).expect("content");
                builder.append_data(&mut header, name, bytes.as_slice()).expect("an entry");
                continue;
            }
            Kind::Symlink(target) | Kind::HardLink(target) => {
                let hard = matches!(node.kind, Kind::HardLink(_));
                header.set_entry_type(if hard { tar::EntryType::Link } else { tar::EntryType::Symlink });
                builder.append_link(&mut header, name, std::ffi::OsStr::from_bytes(target)).expect("a link");
                continue;
            }
            _ => continue,
        }
        builder.append_data(&mut header, name, io::empty()).expect("an entry");
    }
    builder.finish().expect("a tar");
    std::fs::create_dir_all(to).expect("a folder");
    run(Command::new("tar").arg("-xpf").arg(&tar).arg("-C").arg(to).arg("--numeric-owner"));
    std::fs::remove_file(tar).expect("removed");
}

fn composed(base: &Base, json: Value) -> Composed {
    let system: System = serde_json::from_value(json).expect("a system");
    let ctx = ComposeContext {
        epoch: EPOCH,
        root_uuid: uuid::Uuid::from_u128(1),
        esp_partuuid: Some(uuid::Uuid::from_u128(2)),
        ..ComposeContext::default()
    };
    compose(base.tree.clone(), base, &system, &NoSources, &ctx).expect("it composes")
}

/// All links below /etc/systemd/system, without those that Kiln's own units bring.
fn links(tree: &Tree) -> BTreeMap<String, String> {
    let dir = "etc/systemd/system";
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let all = tree.below(dir.as_bytes()).filter_map(|(path, node)| match &node.kind {
        Kind::Symlink(target) => Some((text(&path[dir.len() + 1..]), text(target))),
        _ => None,
    });
    all.filter(|(path, _)| !path.contains("kiln-")).collect()
}

/// The same of a folder.
fn links_on_disk(root: &Path) -> BTreeMap<String, String> {
    let dir = root.join("etc/systemd/system");
    let list = run(Command::new("find").arg(&dir).args(["-type", "l", "-printf", "%P %l\\n"]));
    list.lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(path, target)| (path.to_owned(), target.to_owned()))
        .collect()
}

/// Units of the packages that say how they are installed.
fn installable(base: &Base) -> BTreeSet<String> {
    let dir = b"usr/lib/systemd/system";
    let says = |node: &Node| match &node.kind {
        Kind::File(content) => {
            content.read(base).is_ok_and(|text| String::from_utf8_lossy(&text).contains("\n[Install]"))
        }
        _ => false,
    };
    let below =
        base.tree.below(dir).filter(|(path, node)| !path[dir.len() + 1..].contains(&b'/') && says(node));
    let names = below.map(|(path, _)| String::from_utf8_lossy(&path[dir.len() + 1..]).into_owned());
    // Templates without a default instance need one; several targets want to be ctrl-alt-del.target.
    let fits = |name: &String| match name.rsplit_once('.') {
        Some((_, "target")) => name == "reboot.target",
        _ => !name.contains("@.") || name.starts_with("getty@"),
    };
    names.filter(fits).collect()
}

fn states(units: &BTreeSet<String>, state: &str) -> Value {
    let units: BTreeMap<_, _> = units.iter().map(|unit| (unit, json!({ "state": state }))).collect();
    json!({ "name": "test", "timezone": "UTC", "network": { "manager": "none" }, "units": units })
}

#[test]
fn systemctl_makes_the_same_links() {
    let scratch = tempfile::tempdir().expect("a folder");
    let base = base(scratch.path());
    let root = scratch.path().join("root");
    extract(&base.tree, &base, &root);
    let units = installable(&base);
    assert!(units.len() > 40, "{units:?}");
    let names: Vec<&str> = units.iter().map(String::as_str).collect();
    chroot(&root, "systemctl", &[&["enable"], names.as_slice()].concat());
    similar("enable", &links(&composed(&base, states(&units, "enabled")).tree), &links_on_disk(&root));
    chroot(&root, "systemctl", &[&["disable"], names.as_slice()].concat());
    let mut ours = links(&composed(&base, states(&units, "disabled")).tree);
    let requested = |path: &String| path.contains("systemd-resolved") || path.contains("resolve1");
    ours.retain(|path, _| !requested(path));
    similar("disable", &ours, &links_on_disk(&root));
}

fn similar(what: &str, ours: &BTreeMap<String, String>, theirs: &BTreeMap<String, String>) {
    let only = |a: &BTreeMap<String, String>, b: &BTreeMap<String, String>| -> Vec<String> {
        a.iter()
            .filter(|(path, target)| b.get(*path) != Some(target))
            .map(|(p, t)| format!("{p} -> {t}"))
            .collect()
    };
    let (more, less) = (only(ours, theirs), only(theirs, ours));
    assert!(
        more.is_empty() && less.is_empty(),
        "{what}\nonly Kiln:\n{}\nonly systemctl:\n{}",
        more.join("\n"),
        less.join("\n")
    );
}

#[test]
fn debians_own_tools_find_nothing_wrong() {
    let scratch = tempfile::tempdir().expect("a folder");
    let base = base(scratch.path());
    let done = composed(
        &base,
        json!({
            "name": "test", "version": "1.2", "hostname": "host.example.org", "timezone": "Europe/Berlin", "locale": "de_DE.UTF-8",
            "keyboard": { "layout": "de" }, "network": { "manager": "networkd", "dhcp": true },
            "sources": { "debian": { "enable": true, "archive": "debian", "suite": "trixie", "components": ["main"] } },
            "pins": { "linux-*": { "suite": "trixie-backports", "priority": 400 } },
            "groups": { "ops": { "enable": true, "gid": 2000 } },
            "users": { "ann": { "enable": true, "uid": 1000, "home": "/home/ann", "create_home": true, "shell": "/bin/bash",
                "gecos": "Ann Example", "groups": { "adm": true, "ops": true }, "sudo": "nopasswd",
                "ssh_keys": { "a": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE4DUXFjgO3tEzRmrOYFBtTzEMvFdHsAgbfhDrwgB+vj ann" } } },
            "ssh": { "enable": true, "settings": { "PasswordAuthentication": false } },
            "cloud_init": { "enable": true, "datasources": ["NoCloud", "None"], "settings": { "ssh_pwauth": false } },
            "sysctl": { "vm.swappiness": 10 }, "kernel": { "deny": { "floppy": true } },
            "disk": { "grow": true }, "swap": { "file": "64MiB", "zram_percent": 50 },
            "mounts": { "/srv/data": { "enable": true, "device": "LABEL=data", "fs": "ext4", "options": { "nofail": true } } },
        }),
    );
    assert!(done.warnings.is_empty(), "{:?}", done.warnings);
    assert_eq!(
        seal(done.tree.clone(), &base, &done.written, EPOCH).expect("sealed").digest(),
        done.tree.digest()
    );
    let root = scratch.path().join("root");
    extract(&done.tree, &base, &root);
    assert_eq!(chroot(&root, "dpkg", &["--verify"]), "");
    assert_eq!(chroot(&root, "dpkg", &["--audit"]), "");
    chroot(&root, "pwck", &["-r", "-q"]);
    chroot(&root, "grpck", &["-r"]);
    chroot(&root, "visudo", &["-c"]);
    let sudo = chroot(&root, "sudo", &["-l", "-U", "ann"]);
    assert!(sudo.contains("NOPASSWD: ALL"), "{sudo}");
    let lists = chroot(&root, "apt-get", &["update", "--print-uris"]);
    assert!(lists.contains("'http://ftp.debian.org/debian/dists/trixie/InRelease'"), "{lists}");
    chroot(&root, "apt-cache", &["policy"]);
    chroot(&root, "systemd-analyze", &["cat-config", "systemd/system-preset/00-kiln.preset"]);
    let read = "from cloudinit import util; c = util.read_conf_with_confd('/etc/cloud/cloud.cfg'); print(c['datasource_list'], c['growpart'], c['apt'])";
    let read = chroot(&root, "python3", &["-c", read]);
    assert_eq!(read, "['NoCloud', 'None'] {'mode': 'off'} {'preserve_sources_list': True}\n");
    // Here nothing of it can be mounted, but findmnt reads it.
    let fstab = Command::new("findmnt")
        .args(["--verify", "--tab-file"])
        .arg(root.join("etc/fstab"))
        .output()
        .expect("findmnt");
    let fstab = String::from_utf8_lossy(&fstab.stderr).into_owned();
    assert!(fstab.contains("0 parse errors,"), "{fstab}");
    chroot(&root, "ssh-keygen", &["-A"]);
    std::fs::create_dir_all(root.join("run/sshd")).expect("a folder");
    let sshd = chroot(&root, "sshd", &["-T"]);
    assert!(sshd.contains("passwordauthentication no"), "{sshd}");
    let locale_gen = std::fs::read_to_string(root.join("etc/locale.gen")).expect("locale.gen");
    assert!(locale_gen.ends_with("\nde_DE.UTF-8 UTF-8\n"));
    let units: Vec<String> = std::fs::read_dir(root.join("etc/systemd/system"))
        .expect("units")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("kiln-"))
        .collect();
    let names: Vec<&str> = units.iter().map(String::as_str).collect();
    let complaints = chroot(
        &root,
        "systemd-analyze",
        &[&["verify", "--man=no", "--recursive-errors=no"], names.as_slice()].concat(),
    );
    assert_eq!(complaints, "");
}
