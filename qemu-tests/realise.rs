//! Packages become the tree that mmdebstrap makes of them; as root and as an ordinary user the same. Needs root, network,
//! apt and mmdebstrap; packages are kept in KILN_TEST_CACHE (a folder of /var/tmp by default) between runs.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use kiln::arch::Arch;
use kiln::digest::Digest;
use kiln::sandbox::{self, DebFile, InstallJob, Installed};
use kiln::tree::{Content, Kind, Tree};

const SERVER: &str = "apt systemd-sysv udev dbus linux-image-cloud-amd64 openssh-server cloud-init netbase ifupdown \
                      iproute2 ca-certificates";
const LARGE: &str = "apt systemd-sysv udev dbus linux-image-cloud-amd64 openssh-server cloud-init netbase ifupdown iproute2 \
                     ca-certificates postgresql nginx mariadb-server docker.io postfix default-jre-headless php php-mysql \
                     php-pgsql zutils molly-guard ssl-cert bind9 mdadm ucf locales sgml-base xml-core docbook-xml zstd sudo \
                     vim cron rsyslog python3-pip ruby git man-db samba slapd dovecot-imapd emacs-nox polkitd \
                     network-manager lvm2 cryptsetup chrony snmpd squid redis-server unattended-upgrades fontconfig";

/// Seconds since the epoch, after every package of trixie that these tests can meet.
const EPOCH: i64 = 1_795_132_800;

/// What may differ from mmdebstrap's tree, and why. A path, or the beginning of one when it ends in `*`.
const EXPLAINED: &[(&str, &str)] = &[
    ("dev/*", "mmdebstrap makes devices; an image gets them from the kernel"),
    ("run/*", "lies in memory"),
    ("etc/apt/apt.conf.d/99mmdebstrap", "mmdebstrap's own"),
    ("etc/apt/sources.list", "mmdebstrap's own"),
    ("etc/fstab", "mmdebstrap's own"),
    ("etc/hostname", "the host's, copied by mmdebstrap"),
    ("etc/resolv.conf", "the host's, copied by mmdebstrap"),
    ("etc/.pwd.lock", "a lock"),
    ("etc/passwd-", "a backup"),
    ("etc/group-", "a backup"),
    ("etc/shadow-", "a backup"),
    ("etc/gshadow-", "a backup"),
    ("etc/subuid-", "a backup"),
    ("etc/subgid-", "a backup"),
    ("var/lib/dpkg/*-old", "a backup"),
    ("var/cache/debconf/*-old", "a backup"),
    ("var/lib/ucf/*.0", "a backup"),
    ("etc/ssh/ssh_host_*", "identity"),
    ("etc/machine-id", "identity"),
    ("etc/ssl/private/ssl-cert-snakeoil.key", "identity"),
    ("etc/ssl/certs/ssl-cert-snakeoil.pem", "identity"),
    ("etc/bind/rndc.key", "identity"),
    ("var/lib/dpkg/lock*", "a lock"),
    ("var/lib/dpkg/triggers/Lock", "a lock"),
    ("var/lib/dpkg/triggers/File", "in the order of names, not of unpacking"),
    ("var/cache/apt/*", "apt was never run"),
    ("var/lib/apt/lists/*", "apt was never run"),
    ("var/lib/apt/extended_states", "in the order of names"),
    (
        "etc/systemd/system/timers.target.wants/*",
        "the same unit, named by its path without the merged /usr's link",
    ),
    ("*.pyc", "mmdebstrap's hold a hash of their source, ours its time"),
    ("etc/ssl/certs/62742064.0", "identity: the name by hash of the snakeoil certificate"),
    ("etc/aliases.db", "a database file with unused bytes"),
    ("var/log/*", "logs, which an image doesn't hold"),
    ("usr/share/info/dir", "entries in the order in which triggers run"),
    ("var/cache/man/index.db", "holds times"),
    ("var/lib/sgml-base/supercatalog.old", "a backup"),
    ("etc/postfix/main.cf", "the host's name"),
    ("var/cache/debconf/config.dat", "the host's name, and answers that scripts make up"),
    // What a server's own initialisation writes: random identifiers, times, its environment.
    ("var/lib/mysql/*", "MariaDB's initialisation"),
    ("var/lib/postgresql/*", "initdb"),
    ("etc/postgresql/17/main/postgresql.conf", "initdb"),
    ("var/lib/ldap/*", "slapd's initialisation"),
    ("etc/ldap/slapd.d/*", "slapd's initialisation"),
    ("etc/ssl/certs/java/cacerts", "a key store with times"),
    // Numbers that packages take at random follow the order in which they are configured.
    ("etc/passwd", "dynamic ids"),
    ("etc/group", "dynamic ids"),
    ("etc/shadow", "dynamic ids"),
    ("etc/gshadow", "dynamic ids"),
];

/// One node, for comparing: kind, mode, owner by name, content or target, attributes.
type Seen = BTreeMap<String, String>;

fn explained(path: &str) -> bool {
    EXPLAINED.iter().any(|(pattern, _)| match pattern.split_once('*') {
        Some((head, tail)) => path.starts_with(head) && path.ends_with(tail),
        None => path == *pattern,
    })
}

fn mirror(security: bool) -> String {
    if let (Ok(base), false) = (std::env::var("KILN_MIRROR"), security) {
        return base;
    }
    let folder = fs::read_dir("/etc/apt/sources.list.d").unwrap();
    let texts = folder.flatten().filter(|e| e.path().extension().is_some_and(|x| x == "sources"));
    let text: String = texts.map(|e| fs::read_to_string(e.path()).unwrap()).collect();
    let uris = text.lines().filter_map(|l| l.strip_prefix("URIs:")).map(str::trim);
    uris.into_iter().find(|u| u.trim_end_matches('/').ends_with("security") == security).unwrap().to_owned()
}

fn sources() -> [String; 3] {
    let (main, security) = (mirror(false), mirror(true));
    [
        format!("deb {main} trixie main"),
        format!("deb {main} trixie-updates main"),
        format!("deb {security} trixie-security main"),
    ]
}

fn cache() -> PathBuf {
    let path =
        std::env::var_os("KILN_TEST_CACHE").map_or_else(|| "/var/tmp/kiln-tests".into(), PathBuf::from);
    fs::create_dir_all(path.join("debs/partial")).unwrap();
    path
}

/// Has apt choose and download `wanted` and all that is essential, on an empty system.
fn packages(wanted: &str) -> Vec<DebFile> {
    let cache = cache();
    let apt = cache.join("apt");
    for folder in ["etc/apt/preferences.d", "etc/apt/apt.conf.d", "lists/partial", "var/lib/dpkg"] {
        fs::create_dir_all(apt.join(folder)).unwrap();
    }
    // Two tests at once: apt takes its lock or fails.
    let turn = fs::File::create(apt.join("turn")).unwrap();
    turn.lock().unwrap();
    fs::write(apt.join("status"), "").unwrap();
    fs::write(apt.join("sources.list"), sources().join("\n")).unwrap();
    let conf = format!(
        "Dir \"{0}\";\nDir::Etc \"{0}/etc/apt\";\nDir::Etc::sourcelist \"{0}/sources.list\";\nDir::State::lists \"{0}/lists\";\n\
         Dir::State::status \"{0}/status\";\nDir::Cache::archives \"{1}/debs\";\nDir::Cache \"{0}\";\n\
         Dir::Etc::trustedparts \"/usr/share/keyrings\";\nDir::Bin::methods \"/usr/lib/apt/methods\";\n\
         APT::Architecture \"amd64\";\nAPT::Install-Recommends \"false\";\nAcquire::Languages \"none\";\nAPT::Sandbox::User \"root\";\n",
        apt.display(),
        cache.display(),
    );
    fs::write(apt.join("apt.conf"), conf).unwrap();
    let run = |arguments: &[&str]| {
        let words = wanted.split_whitespace();
        let extra: Vec<&str> = if arguments[0] == "update" { vec![] } else { words.collect() };
        let output = Command::new("apt-get")
            .env("APT_CONFIG", apt.join("apt.conf"))
            .args(arguments)
            .args(extra)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    run(&["update"]);
    let list = run(&["install", "-y", "--print-uris", "?essential"]);
    run(&["install", "-y", "-d", "-o", "Debug::NoLocking=1", "?essential"]);
    let all =
        fs::read_dir(cache.join("debs")).unwrap().flatten().map(|e| e.file_name().into_string().unwrap());
    let known: std::collections::BTreeSet<String> = all.collect();
    let asked: Vec<&str> = wanted.split_whitespace().collect();
    let name = |line: &str| line.split(' ').nth(1).map(str::to_owned);
    let printed: Vec<String> = list.lines().filter(|l| l.starts_with('\'')).filter_map(name).collect();
    // What is in the cache already is not printed; `-s` names it.
    let plan = run(&["install", "-s", "?essential"]);
    let inst = plan.lines().filter_map(|l| l.strip_prefix("Inst "));
    let mut debs = Vec::new();
    for line in inst {
        let (package, rest) = line.split_once(' ').unwrap();
        let version = rest.trim_start_matches('(').split(' ').next().unwrap().replace(':', "%3a");
        let found = ["amd64", "all"].map(|arch| format!("{package}_{version}_{arch}.deb"));
        let file =
            found.iter().find(|f| known.contains(*f)).unwrap_or_else(|| panic!("{found:?} of {printed:?}"));
        debs.push(DebFile { path: cache.join("debs").join(file), manual: asked.contains(&package) });
    }
    debs
}

fn kiln() -> &'static Path {
    let path = Path::new(env!("CARGO_BIN_EXE_kiln"));
    sandbox::use_executable(path);
    path
}

fn job(wanted: &str) -> InstallJob {
    InstallJob { packages: packages(wanted), arch: Arch::Amd64, epoch: EPOCH, debconf: BTreeMap::new() }
}

fn install(job: &InstallJob, scratch: &Path) -> Installed {
    kiln();
    sandbox::install(job, scratch, &|_| {}).unwrap_or_else(|e| panic!("{e}"))
}

/// Names of ids, as two trees may number them differently.
fn names(text: &str) -> BTreeMap<u32, String> {
    let line = |l: &str| {
        let mut fields = l.split(':');
        Some((fields.next()?.to_owned(), fields.nth(1)?.parse().ok()?))
    };
    text.lines().filter_map(line).map(|(name, id)| (id, name)).collect()
}

fn name(names: &BTreeMap<u32, String>, id: u32) -> String {
    names.get(&id).cloned().unwrap_or_else(|| id.to_string())
}

fn of_tree(tree: &Tree, pack: &Path) -> Seen {
    let text = |path: &str| match &tree.get(path).unwrap().kind {
        Kind::File(Content::Packed { offset, len, .. }) => {
            let bytes = fs::read(pack).unwrap();
            String::from_utf8(bytes[*offset as usize..(*offset + *len) as usize].to_vec()).unwrap()
        }
        other => panic!("{other:?}"),
    };
    let (users, groups) = (names(&text("etc/passwd")), names(&text("etc/group")));
    let one = |node: &kiln::tree::Node| {
        let owner = format!("{:04o} {}:{}", node.mode, name(&users, node.uid), name(&groups, node.gid));
        match &node.kind {
            Kind::Dir => format!("dir {owner}"),
            Kind::File(content) => format!("file {owner} {}", content.sha256()),
            Kind::Symlink(target) => format!("link {}", String::from_utf8_lossy(target)),
            Kind::HardLink(target) => format!("hard link to {}", String::from_utf8_lossy(target)),
            _ => format!("special {owner}"),
        }
    };
    tree.iter().map(|(path, node)| (String::from_utf8_lossy(path).into_owned(), one(node))).collect()
}

fn of_folder(root: &Path) -> Seen {
    let read = |path: &str| names(&fs::read_to_string(root.join(path)).unwrap());
    let (users, groups) = (read("etc/passwd"), read("etc/group"));
    let (mut seen, mut inodes, mut todo) = (Seen::new(), BTreeMap::new(), vec![root.to_owned()]);
    let mut paths = Vec::new();
    while let Some(path) = todo.pop() {
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
        paths.push(path);
    }
    paths.sort_by_key(|p| p.as_os_str().as_encoded_bytes().to_vec());
    for path in paths {
        let meta = fs::symlink_metadata(&path).unwrap();
        let short = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
        let owner = format!(
            "{:04o} {}:{}",
            meta.permissions().mode() & 0o7777,
            name(&users, meta.uid()),
            name(&groups, meta.gid())
        );
        let kind = meta.file_type();
        let text = if kind.is_dir() {
            format!("dir {owner}")
        } else if kind.is_symlink() {
            format!("link {}", fs::read_link(&path).unwrap().display())
        } else if kind.is_fifo() || kind.is_char_device() || kind.is_block_device() {
            format!("special {owner}")
        } else if let Some(first) = inodes.get(&meta.ino()) {
            format!("hard link to {first}")
        } else {
            inodes.insert(meta.ino(), short.clone());
            let digest = Digest::of(&fs::read(&path).unwrap());
            format!("file {owner} {digest}")
        };
        seen.insert(short, text);
    }
    seen
}

/// Lists every difference that is not explained.
fn differences(ours: &Seen, theirs: &Seen) -> Vec<String> {
    let paths: std::collections::BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    let differs = |path: &&&String| ours.get(**path) != theirs.get(**path) && !explained(path);
    let absent = "nothing".to_owned();
    let say = |path: &String| {
        let (a, b) = (ours.get(path).unwrap_or(&absent), theirs.get(path).unwrap_or(&absent));
        format!("{path}: {a}; mmdebstrap: {b}")
    };
    paths.iter().filter(differs).map(|path| say(path)).collect()
}

fn mmdebstrap(wanted: &str, target: &Path) {
    let include = wanted.split_whitespace().collect::<Vec<_>>().join(",");
    let output = Command::new("mmdebstrap")
        .env("SOURCE_DATE_EPOCH", EPOCH.to_string())
        .args([
            "--mode=root",
            "--variant=essential",
            "--format=directory",
            "--aptopt=APT::Install-Recommends \"false\"",
        ])
        .arg(format!("--include={include}"))
        .arg("trixie")
        .arg(target)
        .args(sources())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn compare(wanted: &str) {
    let folder = tempfile::tempdir().unwrap();
    let installed = install(&job(wanted), &folder.path().join("scratch"));
    let root = folder.path().join("mmdebstrap");
    mmdebstrap(wanted, &root);
    let ours = of_tree(&installed.tree, &installed.pack.unwrap().path);
    let found = differences(&ours, &of_folder(&root));
    assert!(found.is_empty(), "{} differences:\n{}", found.len(), found.join("\n"));
}

#[test]
fn the_server_set_is_what_mmdebstrap_makes() {
    compare(SERVER);
}

#[test]
fn the_large_set_is_what_mmdebstrap_makes() {
    compare(LARGE);
}

/// Runs `kiln` in a sandbox of an ordinary user by means of a copy of this very test program.
#[test]
fn root_and_an_ordinary_user_make_the_same_bytes() {
    let folder = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir().unwrap();
    let job = job(SERVER);
    let first = install(&job, &folder.path().join("root"));
    let user = "kiln-test";
    let _ = Command::new("userdel").args(["-r", user]).output();
    assert!(Command::new("useradd").args(["-m", user]).status().unwrap().success());
    let ranges = ["--add-subuids", "700000-765535", "--add-subgids", "700000-765535", user];
    assert!(Command::new("usermod").args(ranges).status().unwrap().success());
    let home = PathBuf::from("/home").join(user);
    let program = home.join("test");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::copy(kiln(), home.join("kiln")).unwrap();
    fs::write(home.join("job.json"), serde_json::to_string(&job).unwrap()).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid", user, "--regid", user, "--init-groups", "--reset-env"])
        .arg(&program)
        .args(["--exact", "realise::as_the_user", "--include-ignored"])
        .output()
        .unwrap();
    let text = fs::read_to_string(home.join("tree"));
    let _ = Command::new("userdel").args(["-r", user]).output();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(text.unwrap() == first.tree.dump(), "the trees differ");
}

/// The part of [`root_and_an_ordinary_user_make_the_same_bytes`] that runs as the user, in their home folder.
#[test]
#[ignore = "started by another test"]
fn as_the_user() {
    let home = PathBuf::from(std::env::var_os("HOME").unwrap());
    sandbox::use_executable(home.join("kiln"));
    let job: InstallJob = serde_json::from_str(&fs::read_to_string(home.join("job.json")).unwrap()).unwrap();
    let installed = sandbox::install(&job, &home.join("scratch"), &|_| {}).unwrap_or_else(|e| panic!("{e}"));
    fs::write(home.join("tree"), installed.tree.dump()).unwrap();
    sandbox::remove_tree(&home.join("scratch")).unwrap();
}
