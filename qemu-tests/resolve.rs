//! The resolver chooses what apt itself chooses, from the real archives, for many sets of packages.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use kiln::arch::Arch;
use kiln::source::debian::index::{IndexFile, Universe};
use kiln::source::debian::resolve::{Request, resolve};
use kiln::system::{Package, Set};

/// What is asked for: space-separated packages as `apt-get install` takes them, and whether with recommended packages.
const SETS: &[(&str, bool)] = &[
    ("", false),
    ("apt systemd-sysv udev dbus linux-image-cloud-amd64 openssh-server cloud-init netbase ifupdown", false),
    ("postgresql", false),
    ("postgresql", true),
    ("mariadb-server", false),
    ("mariadb-server", true),
    ("docker.io", false),
    ("docker.io docker-compose", true),
    ("nginx", false),
    ("nginx certbot python3-certbot-nginx", true),
    ("apache2 libapache2-mod-php", false),
    ("apache2 php php-mysql php-curl php-xml", true),
    ("openjdk-21-jdk", false),
    ("default-jre maven", true),
    ("tomcat10", false),
    ("xfce4", false),
    ("xfce4 lightdm", true),
    ("gnome-core", false),
    ("task-gnome-desktop", true),
    ("kde-plasma-desktop sddm", true),
    ("lxqt-core", false),
    ("python3-numpy python3-pandas python3-matplotlib", false),
    ("python3-django python3-psycopg2 gunicorn", true),
    ("jupyter-notebook python3-scipy", true),
    ("ruby-rails", false),
    ("ruby-full puma bundler", true),
    ("nodejs npm", false),
    ("golang rustc cargo", true),
    ("build-essential git cmake", true),
    ("linux-image-cloud-amd64/trixie-backports", false),
    ("linux-image-amd64/trixie-backports firmware-linux-free", true),
    ("linux-image-amd64 linux-headers-amd64/trixie-backports", false),
    ("linux-image-amd64 dkms linux-headers-amd64 wireguard-tools", true),
    ("postfix dovecot-imapd", true),
    ("exim4 mailutils", false),
    ("mail-transport-agent", false),
    ("default-mta bsd-mailx mutt", true),
    ("samba winbind krb5-user", true),
    ("qemu-system-x86 libvirt-daemon-system virtinst", true),
    ("qemu-system-x86 ovmf", false),
    ("libreoffice", false),
    ("libreoffice texlive-latex-recommended", true),
    ("chromium firefox-esr", false),
    ("prometheus grafana-agent redis-server", false),
    ("prometheus prometheus-node-exporter redis-server memcached", true),
    ("haproxy keepalived varnish", true),
    ("kubernetes-client podman buildah", true),
    ("ansible", true),
    ("systemd-resolved systemd-timesyncd network-manager", true),
    ("chrony sudo vim less man-db bash-completion", true),
    ("emacs", false),
    ("r-base octave", true),
    ("perl libdbi-perl libwww-perl", true),
    ("lvm2 mdadm cryptsetup zfsutils-linux", false),
    ("asterisk", false),
    ("bind9 unbound isc-dhcp-server", false),
    ("wine", false),
    ("gimp inkscape blender", true),
    ("ceph-common glusterfs-client nfs-kernel-server", false),
    ("slapd ldap-utils sssd", true),
    ("cups printer-driver-all", true),
    ("sysvinit-core", false),
    ("awk editor x-terminal-emulator", false),
];

#[test]
fn chooses_what_apt_chooses() {
    let apt = Apt::new();
    let files = apt.indexes();
    let started = Instant::now();
    let universe = Universe::new(&files, Arch::Amd64).unwrap();
    eprintln!("indexes read in {:?}", started.elapsed());
    let only = std::env::var("KILN_SETS").unwrap_or_default();
    let mut differing = Vec::new();
    for (set, recommends) in SETS.iter().filter(|(set, _)| set.contains(&only)) {
        let theirs = apt.install(set, *recommends);
        let started = Instant::now();
        let ours = ours(&universe, set, *recommends);
        let elapsed = started.elapsed();
        match difference(&theirs, &ours) {
            None => {
                eprintln!("same: {set} ({recommends}), {} packages, {elapsed:?}", ours.map_or(0, |o| o.len()))
            }
            Some(difference) => {
                eprintln!("DIFFERS: {set} ({recommends})\n{difference}");
                differing.push(format!("{set} (recommends: {recommends})\n{difference}"))
            }
        }
    }
    assert!(differing.is_empty(), "{} sets differ:\n{}", differing.len(), differing.join("\n"));
}

type Chosen = Result<BTreeMap<String, String>, String>;

fn ours(universe: &Universe, set: &str, recommends: bool) -> Chosen {
    let wanted: Set<Package> = set
        .split_whitespace()
        .map(|item| match item.split_once('/') {
            Some((name, suite)) => {
                (name.to_owned(), Package { enable: true, suite: Some(suite.to_owned()), version: None })
            }
            None => (item.to_owned(), Package { enable: true, ..Package::default() }),
        })
        .collect();
    let request = Request { wanted: &wanted, recommends, pins: &Set::new(), essential: true };
    let locked = resolve(universe, &request).map_err(|e| e.to_string())?;
    Ok(locked.into_iter().map(|package| (package.name, package.version)).collect())
}

/// What apt chose otherwise; `None` when it is the same, or when both refuse.
fn difference(theirs: &Chosen, ours: &Chosen) -> Option<String> {
    let (theirs, ours) = match (theirs, ours) {
        (Ok(theirs), Ok(ours)) => (theirs, ours),
        (Err(_), Err(_)) => return None,
        (Ok(_), Err(error)) => return Some(format!("  only apt finds a solution: {error}")),
        (Err(error), Ok(_)) => return Some(format!("  only Kiln finds a solution: {error}")),
    };
    let mut lines = Vec::new();
    for (name, version) in theirs {
        if ours.get(name) != Some(version) {
            lines.push(format!(
                "  apt: {name} {version}, Kiln: {}",
                ours.get(name).map_or("-", String::as_str)
            ));
        }
    }
    lines.extend(
        ours.iter().filter(|(name, _)| !theirs.contains_key(*name)).map(|(n, v)| format!("  Kiln: {n} {v}")),
    );
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// A private apt with nothing installed, over trixie's four suites.
struct Apt {
    root: PathBuf,
}

impl Apt {
    fn new() -> Apt {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("apt");
        for dir in ["etc/apt/preferences.d", "etc/apt/apt.conf.d", "lists/partial", "cache/archives/partial"]
        {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        fs::write(root.join("status"), "").unwrap();
        let mirror = mirror();
        let stanza = |uri: &str, suites: &str| {
            format!(
                "Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n"
            )
        };
        let sources = stanza(&mirror, "trixie trixie-updates trixie-backports")
            + &stanza(&format!("{mirror}-security"), "trixie-security");
        fs::write(root.join("etc/apt/sources.list.d.sources"), &sources).unwrap();
        fs::create_dir_all(root.join("etc/apt/sources.list.d")).unwrap();
        fs::write(root.join("etc/apt/sources.list.d/test.sources"), sources).unwrap();
        let dir = root.display();
        fs::write(
            root.join("apt.conf"),
            format!(
                "Dir \"{dir}\";\nDir::Etc \"etc/apt\";\nDir::State \"{dir}\";\nDir::State::status \"{dir}/status\";\n\
                 Dir::Cache \"cache\";\nDir::Bin::methods \"/usr/lib/apt/methods\";\nAPT::Architecture \"amd64\";\n\
                 APT::Architectures {{ \"amd64\"; }};\nAcquire::Languages \"none\";\nAPT::Sandbox::User \"root\";\n\
                 APT::Install-Suggests \"false\";\n\
                 pkgCacheGen::ForceEssential \"dpkg\";\nAcquire::GzipIndexes \"false\";\n"
            ),
        )
        .unwrap();
        let apt = Apt { root };
        let output = apt.command("apt-get").arg("update").output().unwrap();
        assert!(output.status.success(), "apt-get update: {}", String::from_utf8_lossy(&output.stderr));
        apt
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.root.join("apt.conf")).env("LC_ALL", "C");
        command
    }

    /// The Packages files that apt has fetched.
    fn indexes(&self) -> Vec<IndexFile> {
        ["trixie", "trixie-updates", "trixie-backports", "trixie-security"]
            .map(|suite| self.index(suite))
            .into()
    }

    fn index(&self, suite: &str) -> IndexFile {
        let end = format!("dists_{suite}_main_binary-amd64_Packages");
        let mut entries = fs::read_dir(self.root.join("lists")).unwrap().map(|e| e.unwrap().path());
        let path = entries.find(|path| path.to_string_lossy().ends_with(&end)).unwrap();
        IndexFile {
            archive: suite.into(),
            suite: suite.into(),
            arch: "amd64".into(),
            component: "main".into(),
            not_automatic: suite == "trixie-backports",
            but_automatic_upgrades: suite == "trixie-backports",
            text: fs::read_to_string(path).unwrap(),
            ..IndexFile::default()
        }
    }

    /// What apt would install for `set`.
    fn install(&self, set: &str, recommends: bool) -> Chosen {
        let mut command = self.command("apt-get");
        command.args(["-s", "-o", &format!("APT::Install-Recommends={recommends}"), "install", "?essential"]);
        // Which alternative is taken depends on what was asked for before; a profile's packages come in order of name.
        let mut packages: Vec<_> = set.split_whitespace().collect();
        packages.sort_unstable();
        let output = command.args(packages).output().unwrap();
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr));
        }
        let text = String::from_utf8(output.stdout).unwrap();
        let installed = text.lines().filter_map(|line| line.strip_prefix("Inst "));
        Ok(installed
            .map(|line| {
                let (name, rest) = line.split_once(" (").unwrap();
                (name.to_owned(), rest.split(' ').next().unwrap().to_owned())
            })
            .collect())
    }
}

/// The base URL of the Debian archive: KILN_MIRROR, or the host's own.
fn mirror() -> String {
    if let Ok(mirror) = std::env::var("KILN_MIRROR") {
        return mirror.split_whitespace().next().unwrap().trim_end_matches('/').to_owned();
    }
    let sources = fs::read_dir("/etc/apt/sources.list.d").unwrap().map(|e| e.unwrap().path());
    let texts = sources.filter_map(|path| fs::read_to_string(path).ok()).collect::<Vec<_>>().join("\n");
    let uris = texts.lines().filter_map(|line| line.strip_prefix("URIs:")).flat_map(str::split_whitespace);
    let mut uris = uris.map(|uri| uri.trim_end_matches('/'));
    uris.find(|uri| uri.ends_with("/debian"))
        .expect("the host's apt sources name no Debian archive")
        .to_owned()
}
