//! Systems that fit.

use serde_json::json;

use super::{Beside, EPOCH, base, composed, file, link, rights, system, text, try_compose};
use crate::rootfs::{ComposeContext, SourceNode, compose, seal};
use crate::tree::{Content, Kind, NoPacks, Node};

#[test]
fn a_user_with_keys_groups_and_sudo() {
    let key = "ssh-ed25519 AAAAC3Nz a@b";
    let tree = composed(
        base(),
        json!({
            "groups": { "ops": { "enable": true, "gid": 2000, "members": { "www-data": true } } },
            "users": { "ann": {
                "enable": true, "uid": 1000, "groups": { "adm": true, "sudo": false }, "gecos": "Ann", "home": "/home/ann",
                "create_home": true, "shell": "/bin/bash", "ssh_keys": { "laptop": key }, "sudo": "nopasswd",
            } },
        }),
    );
    assert!(
        text(&tree, "etc/passwd").ends_with(":/usr/sbin/nologin\nann:x:1000:1000:Ann:/home/ann:/bin/bash\n")
    );
    assert_eq!(
        text(&tree, "etc/group"),
        "root:x:0:\nadm:x:4:ann\nsudo:x:27:\nwww-data:x:33:\nshadow:x:42:\nops:x:2000:www-data\nann:x:1000:\n"
    );
    assert!(text(&tree, "etc/shadow").ends_with("\nann:!:20455:0:99999:7:::\n"));
    assert!(
        text(&tree, "etc/gshadow")
            .ends_with("adm:*::ann\nsudo:*::\nwww-data:*::\nshadow:*::\nops:!::www-data\nann:!::\n")
    );
    assert_eq!(rights(&tree, "home/ann"), "0700 1000:1000");
    assert_eq!(rights(&tree, "home/ann/.profile"), "0644 1000:1000");
    assert_eq!(rights(&tree, "home/ann/.ssh"), "0700 1000:1000");
    assert_eq!(rights(&tree, "home/ann/.ssh/authorized_keys"), "0600 1000:1000");
    assert_eq!(text(&tree, "home/ann/.ssh/authorized_keys"), format!("{key}\n"));
    assert_eq!(rights(&tree, "etc/sudoers.d/ann"), "0440 0:0");
    assert_eq!(text(&tree, "etc/sudoers.d/ann"), "ann ALL=(ALL:ALL) NOPASSWD: ALL\n");
}

#[test]
fn a_packages_account_is_added_to_or_declared_anew() {
    let key = json!({ "k": "ssh-ed25519 AAAA" });
    let json = json!({ "users": {
        "root": { "enable": true, "home": "/root", "create_home": true, "shell": "/bin/bash", "ssh_keys": key,
            "hashed_password": "$y$j9T$abcdefgh$ijklmnop" },
        "www-data": { "enable": true, "uid": 33, "home": "/srv/www", "create_home": false, "shell": "/bin/bash" },
    } });
    let tree = composed(base(), json);
    let expected = "root:x:0:0:root:/root:/bin/bash\nwww-data:x:33:33:www-data:/srv/www:/bin/bash\n";
    assert_eq!(text(&tree, "etc/passwd"), expected);
    assert!(text(&tree, "etc/shadow").starts_with("root:$y$j9T$abcdefgh$ijklmnop:20000:"));
    assert_eq!(rights(&tree, "root/.ssh/authorized_keys"), "0600 0:0");
    assert_eq!(rights(&tree, "srv/www"), "absent");
}

#[test]
fn files_go_through_links_of_directories_and_replace_links_of_files() {
    let mut tree = base();
    file(&mut tree, "usr/lib/motd", "old");
    link(&mut tree, "etc/motd", "../usr/lib/motd");
    let file = |text: &str, mode: &str, user: &str| json!({ "enable": true, "text": text, "mode": mode, "user": user, "group": "root" });
    let tree = composed(
        tree,
        json!({
            "directories": { "/srv/www": { "enable": true, "mode": "0750", "user": "www-data", "group": "33" } },
            "files": { "/bin/hello": file("#!/bin/sh\n", "0755", "root"), "/etc/motd": file("new", "0644", "www-data") },
            "symlinks": { "/srv/www/here": { "enable": true, "target": "." } },
        }),
    );
    assert_eq!(rights(&tree, "usr/bin/hello"), "0755 0:0");
    assert_eq!(rights(&tree, "bin"), "-> usr/bin");
    assert_eq!((text(&tree, "etc/motd").as_str(), text(&tree, "usr/lib/motd").as_str()), ("new", "old"));
    assert_eq!(rights(&tree, "etc/motd"), "0644 33:0");
    assert_eq!((rights(&tree, "srv"), rights(&tree, "srv/www")), ("0755 0:0".into(), "0750 33:33".into()));
    assert_eq!(rights(&tree, "srv/www/here"), "-> .");
    assert_eq!(tree.get("etc/motd").map(|n| n.mtime), Some(EPOCH));
}

#[test]
fn folders_keep_the_executable_bit_and_links() {
    let content = |text: &str, executable| SourceNode::File { content: Content::bytes(text), executable };
    let entries = [
        ("run", content("x", true)),
        ("data", content("y", false)),
        ("link", SourceNode::Symlink("data".into())),
    ];
    let folder = SourceNode::Folder(entries.map(|(name, node)| (name.to_owned(), node)).into());
    let beside = Beside([("site", folder)].into());
    let system = system(json!({
        "files": { "/opt/site": { "enable": true, "source": "site", "mode": "0640", "user": "root", "group": "www-data" } },
    }));
    let ctx = ComposeContext { epoch: EPOCH, ..ComposeContext::default() };
    let composed = compose(base(), &NoPacks, &system, &beside, &ctx).unwrap();
    let of = |path| rights(&composed.tree, path);
    assert_eq!(
        [of("opt/site"), of("opt/site/run"), of("opt/site/data"), of("opt/site/link")],
        ["0750 0:33", "0750 0:33", "0640 0:33", "-> data"]
    );
    assert!(composed.written.contains(&b"opt/site/data"[..]));
}

#[test]
fn other_names_of_a_replaced_file_keep_its_bytes() {
    let mut tree = base();
    file(&mut tree, "usr/bin/perl", "perl");
    for name in ["usr/bin/perl5", "usr/bin/perl5.40"] {
        tree.insert(name, Node::new(Kind::HardLink(b"usr/bin/perl".to_vec()), 0o644, 0));
    }
    let tree = composed(
        tree,
        json!({ "files": { "/usr/bin/perl": { "enable": true, "text": "mine", "mode": "0755", "user": "root", "group": "root" } } }),
    );
    assert_eq!(
        (text(&tree, "usr/bin/perl").as_str(), text(&tree, "usr/bin/perl5").as_str()),
        ("mine", "perl")
    );
    assert_eq!(tree.get("usr/bin/perl5.40").unwrap().kind, Kind::HardLink(b"usr/bin/perl5".to_vec()));
}

#[test]
fn units_are_enabled_disabled_and_masked() {
    let mut tree = base();
    link(
        &mut tree,
        "etc/systemd/system/multi-user.target.wants/nginx.service",
        "/usr/lib/systemd/system/nginx.service",
    );
    let tree = composed(
        tree,
        json!({
            "units": {
                "nginx.service": { "state": "disabled", "drop_ins": { "limits": "[Service]\nLimitNOFILE=9\n" } },
                "getty@.service": { "state": "enabled" },
                "getty@tty2.service": { "state": "enabled" },
                "static.service": { "state": "masked" },
                "own.service": { "state": "enabled", "text": "[Install]\nWantedBy=multi-user.target\nAlias=other.service\nAlso=own.timer\n" },
                "own.timer": { "text": "[Timer]\nOnBootSec=1\n[Install]\nWantedBy=timers.target" },
            },
        }),
    );
    let etc = |path: &str| rights(&tree, &format!("etc/systemd/system/{path}"));
    assert_eq!(etc("multi-user.target.wants/nginx.service"), "absent");
    assert_eq!(etc("nginx.service.d/limits.conf"), "0644 0:0");
    assert_eq!(etc("getty.target.wants/getty@tty1.service"), "-> /usr/lib/systemd/system/getty@.service");
    assert_eq!(etc("getty.target.wants/getty@tty2.service"), "-> /usr/lib/systemd/system/getty@.service");
    assert_eq!(etc("static.service"), "-> /dev/null");
    assert_eq!(etc("multi-user.target.wants/own.service"), "-> /etc/systemd/system/own.service");
    assert_eq!(etc("other.service"), "-> /etc/systemd/system/own.service");
    assert_eq!(etc("timers.target.wants/own.timer"), "-> /etc/systemd/system/own.timer");
    assert!(text(&tree, "etc/systemd/system/own.timer").ends_with("timers.target\n"));
}

#[test]
fn host_name_and_hosts() {
    let tree = composed(
        base(),
        json!({ "hostname": "db.example.org", "network": { "hosts": { "peer": "10.0.0.2" } } }),
    );
    assert_eq!(text(&tree, "etc/hostname"), "db.example.org\n");
    let expected = "127.0.0.1 localhost\n127.0.1.1 db.example.org db\n\n::1 localhost ip6-localhost ip6-loopback\n\
                    ff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n\n10.0.0.2 peer\n";
    assert_eq!(text(&tree, "etc/hosts"), expected);
    assert_eq!(text(&tree, "etc/os-release"), "ID=debian\nIMAGE_ID=test\n");
    assert_eq!(rights(&composed(base(), json!({})), "etc/hostname"), "absent");
}

#[test]
fn time_zone_locale_and_keyboard() {
    let mut tree = base();
    file(&mut tree, "usr/share/zoneinfo/Europe/Berlin", "TZif");
    file(&mut tree, "usr/sbin/locale-gen", "");
    file(&mut tree, "usr/bin/setupcon", "");
    file(&mut tree, "etc/default/keyboard", "XKBLAYOUT=\"us\"\nXKBVARIANT=\"\"\n");
    file(&mut tree, "etc/console-setup/cached_UTF-8_del.kmap.gz", "");
    file(&mut tree, "usr/share/i18n/SUPPORTED", "de_DE.UTF-8 UTF-8\nde_DE ISO-8859-1\nja_JP.EUC-JP EUC-JP\n");
    let done = try_compose(
        tree,
        json!({
            "timezone": "Europe/Berlin", "locale": "de_DE.UTF-8", "locales": { "ja_JP.EUC-JP": { "enable": true } },
            "keyboard": { "layout": "de", "variant": "nodeadkeys" },
        }),
    )
    .unwrap();
    assert_eq!(rights(&done.tree, "etc/localtime"), "-> /usr/share/zoneinfo/Europe/Berlin");
    assert_eq!(text(&done.tree, "etc/locale.conf"), "LANG=de_DE.UTF-8\n");
    assert_eq!(rights(&done.tree, "etc/default/locale"), "-> ../locale.conf");
    let lines: Vec<_> = done.work.locales.iter().map(String::as_str).collect();
    assert_eq!(lines, ["de_DE.UTF-8 UTF-8", "ja_JP.EUC-JP EUC-JP"]);
    assert!(text(&done.tree, "etc/locale.gen").ends_with("\nde_DE.UTF-8 UTF-8\nja_JP.EUC-JP EUC-JP\n"));
    assert!(
        text(&done.tree, "etc/default/keyboard").contains("XKBLAYOUT=\"de\"\nXKBVARIANT=\"nodeadkeys\"\n")
    );
}

#[test]
fn kernel_parameters_and_modules() {
    let mut tree = base();
    file(&mut tree, "boot/vmlinuz-6.12", "");
    file(&mut tree, "boot/initrd.img-6.12", "");
    let json = json!({
        "sysctl": { "vm.swappiness": 10, "net.ipv4.ip_forward": true, "kernel.core_pattern": "/tmp/core" },
        "kernel": { "load": { "br_netfilter": true }, "deny": { "floppy": true, "pcspkr": false } },
    });
    let done = try_compose(tree.clone(), json).unwrap();
    let expected = "kernel.core_pattern = /tmp/core\nnet.ipv4.ip_forward = 1\nvm.swappiness = 10\n";
    assert_eq!(text(&done.tree, "etc/sysctl.d/60-kiln.conf"), expected);
    assert_eq!(text(&done.tree, "etc/modules-load.d/kiln.conf"), "br_netfilter\n");
    assert_eq!(
        text(&done.tree, "etc/modprobe.d/kiln-deny.conf"),
        "blacklist floppy\ninstall floppy /bin/false\n"
    );
    assert_eq!(done.work.initrd.iter().collect::<Vec<_>>(), ["/etc/modprobe.d/kiln-deny.conf changed"]);
    assert!(try_compose(tree.clone(), json!({})).unwrap().work.is_empty());
    tree.remove("boot/initrd.img-6.12");
    let work = try_compose(tree, json!({})).unwrap().work;
    assert_eq!(work.initrd.iter().collect::<Vec<_>>(), ["the kernel 6.12 has none"]);
}

#[test]
fn networkd_with_dhcp_and_name_servers() {
    let json = json!({ "network": { "manager": "networkd", "dhcp": true, "networks": { "10-lan": "[Match]\nName=lan" },
        "nameservers": ["192.0.2.1", "2001:db8::1"] } });
    let tree = composed(base(), json.clone());
    assert_eq!(text(&tree, "etc/systemd/network/10-lan.network"), "[Match]\nName=lan\n");
    assert!(text(&tree, "etc/systemd/network/zz-kiln-dhcp.network").contains("DHCP=yes"));
    assert_eq!(text(&tree, "etc/resolv.conf"), "nameserver 192.0.2.1\nnameserver 2001:db8::1\n");
    let wants = "etc/systemd/system/multi-user.target.wants";
    let target = "-> /usr/lib/systemd/system/systemd-networkd.service";
    assert_eq!(rights(&tree, &format!("{wants}/systemd-networkd.service")), target);
    let mut with_resolved = base();
    let unit = "[Install]\nWantedBy=sysinit.target\nAlias=dbus-org.freedesktop.resolve1.service\n";
    file(&mut with_resolved, "usr/lib/systemd/system/systemd-resolved.service", unit);
    let tree = composed(with_resolved, json);
    assert_eq!(rights(&tree, "etc/resolv.conf"), "-> ../run/systemd/resolve/stub-resolv.conf");
    assert_eq!(
        text(&tree, "etc/systemd/resolved.conf.d/60-kiln.conf"),
        "[Resolve]\nDNS=192.0.2.1 2001:db8::1\n"
    );
}

#[test]
fn fstab_has_root_first_and_swap_last() {
    let json = json!({
        "disk": { "grow": true, "partitions": {
            "data": { "enable": true, "fs": "ext4", "mount": "/srv/data" }, "swap": { "enable": true, "fs": "swap" } } },
        "mounts": {
            "/": { "enable": true, "options": { "noatime": true } },
            "/srv/my files": { "enable": true, "device": "LABEL=x", "fs": "ext4", "options": { "nofail": true } },
        },
        "swap": { "file": "1GiB", "zram_percent": 50 },
    });
    let partitions =
        [("data", 3), ("swap", 4)].map(|(name, id)| (name.to_owned(), uuid::Uuid::from_u128(id)));
    let ctx = ComposeContext {
        epoch: EPOCH,
        root_uuid: uuid::Uuid::from_u128(1),
        esp_partuuid: Some(uuid::Uuid::from_u128(2)),
        partitions: partitions.into(),
        ..ComposeContext::default()
    };
    let tree = compose(base(), &NoPacks, &system(json), &Beside::default(), &ctx).unwrap().tree;
    insta::assert_snapshot!(text(&tree, "etc/fstab"), @r"
    # device mount-point type options dump pass
    UUID=00000000-0000-0000-0000-000000000001 / ext4 errors=remount-ro,x-systemd.growfs,noatime 0 1
    PARTUUID=00000000-0000-0000-0000-000000000002 /boot/efi vfat noauto,umask=0077 0 0
    PARTUUID=00000000-0000-0000-0000-000000000003 /srv/data ext4 defaults 0 2
    PARTUUID=00000000-0000-0000-0000-000000000004 none swap sw,x-systemd.makefs 0 0
    LABEL=x /srv/my\040files ext4 nofail 0 2
    /swapfile none swap sw,nofail 0 0
    ");
    assert_eq!(text(&tree, "etc/repart.d/50-root.conf"), "[Partition]\nType=root\n");
    assert_eq!(rights(&tree, "srv/my files"), "0755 0:0");
    assert!(
        text(&tree, "etc/systemd/system/kiln-swap-file.service")
            .contains("fallocate -l 1073741824 /swapfile.new")
    );
    assert_ne!(rights(&tree, "etc/systemd/system/swap.target.wants/kiln-zram.service"), "absent");
}

#[test]
fn cloud_init_is_told_what_kiln_does_itself() {
    let mut tree = base();
    file(&mut tree, "usr/bin/cloud-init", "");
    let off = composed(tree.clone(), json!({}));
    assert_eq!(text(&off, "etc/cloud/cloud-init.disabled"), "");
    let on = composed(
        tree,
        json!({
            "hostname": "fixed", "disk": { "grow": true },
            "cloud_init": { "enable": true, "datasources": ["Ec2", "None"], "settings": {
                "apt": { "proxy": "http://proxy" }, "growpart": { "mode": "auto" }, "ssh_pwauth": false } },
        }),
    );
    insta::assert_snapshot!(text(&on, "etc/cloud/cloud.cfg.d/95-kiln.cfg"), @r#"
    # Written by Kiln from the profile's cloud_init.
    datasource_list: [Ec2, None]
    apt:
      preserve_sources_list: true
      proxy: "http://proxy"
    growpart:
      mode: "auto"
    network:
      config: "disabled"
    preserve_hostname: true
    resize_rootfs: false
    ssh_pwauth: false
    "#);
}

#[test]
fn ssh_settings_and_host_keys() {
    let mut tree = base();
    file(&mut tree, "usr/sbin/sshd", "");
    file(
        &mut tree,
        "usr/lib/systemd/system/ssh.service",
        "[Install]\nWantedBy=multi-user.target\nAlias=sshd.service\n",
    );
    file(&mut tree, "etc/ssh/ssh_host_rsa_key", "secret");
    let json = json!({ "ssh": { "enable": true, "settings": { "PasswordAuthentication": false, "MaxAuthTries": 3 } } });
    let old = composed(tree.clone(), json.clone());
    assert_eq!(
        text(&old, "etc/ssh/sshd_config.d/60-kiln.conf"),
        "MaxAuthTries 3\nPasswordAuthentication no\n"
    );
    assert_eq!(rights(&old, "etc/ssh/ssh_host_rsa_key"), "absent");
    assert!(text(&old, "etc/systemd/system/sshd-keygen.service").contains("ssh-keygen -A"));
    let wants = "etc/systemd/system/ssh.service.wants/sshd-keygen.service";
    assert_eq!(rights(&old, wants), "-> /etc/systemd/system/sshd-keygen.service");
    file(&mut tree, "usr/lib/systemd/system/sshd-keygen.service", "[Install]\nWantedBy=ssh.service\n");
    let new = composed(tree, json);
    assert!(
        text(&new, "etc/systemd/system/sshd-keygen.service.d/kiln.conf")
            .starts_with("[Unit]\nConditionFirstBoot=\n")
    );
    assert_eq!(rights(&new, wants), "-> /usr/lib/systemd/system/sshd-keygen.service");
}

#[test]
fn apt_knows_the_profiles_archives_by_their_public_address() {
    let mut tree = base();
    file(&mut tree, "etc/apt/sources.list", "deb http://build.example/debian trixie main\n");
    file(&mut tree, "usr/share/keyrings/debian-archive-keyring.pgp", "");
    let json = json!({
        "sources": {
            "debian": { "enable": true, "archive": "debian", "suite": "trixie", "components": ["main", "contrib"],
                "pockets": { "updates": true, "backports": false } },
            "security": { "enable": true, "archive": "debian-security", "suite": "trixie-security", "components": ["main"],
                "mirrors": ["https://mirror.example/debian-security/"] },
            "silent": { "enable": true, "archive": "mine", "suite": "./" },
            "off": { "archive": "debian" },
        },
        "pins": { "linux-*": { "suite": "trixie-backports", "priority": 500 } },
    });
    let done = try_compose(tree, json).unwrap();
    let keyring = "/usr/share/keyrings/debian-archive-keyring.pgp";
    let stanza = |rest: &str| format!("Types: deb\nURIs: {rest}\nSigned-By: {keyring}\n");
    let debian = "http://ftp.debian.org/debian\nSuites: trixie trixie-updates\nComponents: main contrib";
    assert_eq!(text(&done.tree, "etc/apt/sources.list.d/debian.sources"), stanza(debian));
    let security = "https://mirror.example/debian-security\nSuites: trixie-security\nComponents: main";
    assert_eq!(text(&done.tree, "etc/apt/sources.list.d/security.sources"), stanza(security));
    assert_eq!(rights(&done.tree, "etc/apt/sources.list"), "absent");
    let expected = "Package: linux-*\nPin: release n=trixie-backports\nPin-Priority: 500\n";
    assert_eq!(text(&done.tree, "etc/apt/preferences.d/60-kiln"), expected);
    assert_eq!(
        done.warnings,
        ["sources.silent has no address, so apt in the image doesn't know it: give mirrors"]
    );
}

#[test]
fn identity_goes_and_the_first_boot_is_prepared() {
    let mut tree = base();
    for path in
        ["etc/passwd-", "var/lib/dpkg/status-old", "var/lib/apt/lists/x_Packages", "run/lock/x", "tmp/x"]
    {
        file(&mut tree, path, "x");
    }
    file(&mut tree, "var/log/nginx/access.log", "GET");
    file(&mut tree, "var/log/dpkg.log", "x");
    file(&mut tree, "etc/machine-id", "0123\n");
    file(&mut tree, "usr/sbin/make-ssl-cert", "");
    file(&mut tree, "etc/ssl/certs/ssl-cert-snakeoil.pem", "x");
    link(&mut tree, "etc/ssl/certs/0a1b2c3d.0", "ssl-cert-snakeoil.pem");
    let tree = composed(tree, json!({}));
    let gone = [
        "etc/passwd-",
        "var/lib/dpkg/status-old",
        "var/lib/apt/lists/x_Packages",
        "run/lock",
        "tmp/x",
        "var/log/dpkg.log",
        "etc/ssl/certs/ssl-cert-snakeoil.pem",
        "etc/ssl/certs/0a1b2c3d.0",
    ];
    assert!(gone.iter().all(|path| tree.get(path).is_none()));
    assert_eq!(text(&tree, "var/log/nginx/access.log"), "");
    assert_eq!(text(&tree, "etc/machine-id"), "uninitialized\n");
    assert_eq!(rights(&tree, "var/lib/dbus/machine-id"), "-> /etc/machine-id");
    assert!(text(&tree, "etc/systemd/system-preset/00-kiln.preset").ends_with("ignore *\n"));
    assert!(text(&tree, "var/.updated").ends_with("TIMESTAMP_NSEC=1767312000000000000\n"));
    let wants = "etc/systemd/system/sysinit.target.wants/kiln-ssl-cert-snakeoil.service";
    assert_ne!(rights(&tree, wants), "absent");
}

#[test]
fn a_databases_data_are_made_by_each_machine() {
    let mut tree = base();
    let conf = "#data_directory = 'x'\ndata_directory = '/var/lib/postgresql/17/main'  # here\nlc_messages = 'de_DE.UTF-8'\n";
    file(&mut tree, "etc/postgresql/17/main/postgresql.conf", conf);
    file(&mut tree, "usr/lib/systemd/system/postgresql@.service", "[Install]\nWantedBy=multi-user.target\n");
    tree.insert_with_parents("var/lib/postgresql/17/main", Node::new(Kind::Dir, 0o700, 0).owned_by(7, 8));
    file(&mut tree, "var/lib/postgresql/17/main/PG_VERSION", "17\n");
    file(&mut tree, "var/lib/postgresql/17/main/base/1/112", "x");
    let tree = composed(tree, json!({}));
    assert_eq!(rights(&tree, "var/lib/postgresql/17/main"), "0700 7:8");
    assert_eq!(tree.below(b"var/lib/postgresql/17/main").count(), 0);
    assert_eq!(text(&tree, "etc/postgresql/17/main/postgresql.conf"), conf);
    let unit = text(&tree, "etc/systemd/system/kiln-postgresql-17-main.service");
    assert!(unit.contains("initdb --pgdata=/var/lib/postgresql/17/main.new --locale=de_DE.UTF-8 "), "{unit}");
    let link = "etc/systemd/system/postgresql@17-main.service.requires/kiln-postgresql-17-main.service";
    assert_eq!(rights(&tree, link), "-> /etc/systemd/system/kiln-postgresql-17-main.service");
}

#[test]
fn mariadbs_data_are_made_by_each_machine() {
    let mut tree = base();
    file(&mut tree, "usr/bin/mariadb-install-db", "");
    file(&mut tree, "usr/lib/systemd/system/mariadb.service", "[Install]\nWantedBy=multi-user.target\n");
    tree.insert_with_parents("var/lib/mysql", Node::new(Kind::Dir, 0o755, 0).owned_by(7, 8));
    file(&mut tree, "var/lib/mysql/debian-11.8.flag", "");
    file(&mut tree, "var/lib/mysql/ibdata1", "x");
    file(&mut tree, "var/lib/mysql/mysql/user.frm", "x");
    let tree = composed(tree, json!({}));
    assert_eq!(rights(&tree, "var/lib/mysql"), "0755 7:8");
    let left: Vec<_> = tree.below(b"var/lib/mysql").map(|(path, _)| String::from_utf8_lossy(path)).collect();
    assert_eq!(left, ["var/lib/mysql/debian-11.8.flag"]);
    let link = "etc/systemd/system/mariadb.service.requires/kiln-mariadb.service";
    assert_eq!(rights(&tree, link), "-> /etc/systemd/system/kiln-mariadb.service");
}

#[test]
fn slapds_directory_and_an_odd_key_store_are_warned_of() {
    let mut tree = base();
    file(&mut tree, "etc/ldap/slapd.d/cn=config.ldif", "x");
    file(&mut tree, "etc/ssl/certs/java/cacerts", "x");
    let warnings = try_compose(tree, json!({})).unwrap().warnings.join("\n");
    assert!(warnings.contains("slapd/no_configuration") && warnings.contains("no key store"), "{warnings}");
}

#[test]
fn sealing_keeps_what_the_profile_wrote() {
    let json = json!({ "files": { "/var/log/mine": { "enable": true, "text": "kept", "mode": "0644", "user": "root", "group": "root" } } });
    let done = try_compose(base(), json).unwrap();
    let mut tree = done.tree.clone();
    file(&mut tree, "var/log/alternatives.log", "x");
    tree.insert("etc/late", Node::new(Kind::Dir, 0o755, EPOCH + 5));
    file(&mut tree, "etc/machine-id", "0123\n");
    let sealed = seal(tree, &NoPacks, &done.written, EPOCH).unwrap();
    assert_eq!(text(&sealed, "etc/machine-id"), "uninitialized\n");
    assert_eq!(text(&sealed, "var/log/mine"), "kept");
    assert_eq!(rights(&sealed, "var/log/alternatives.log"), "absent");
    assert_eq!(sealed.get("etc/late").map(|n| n.mtime), Some(EPOCH));
    assert_eq!(seal(done.tree.clone(), &NoPacks, &done.written, EPOCH).unwrap().digest(), done.tree.digest());
}

#[test]
fn the_same_inputs_give_the_same_tree() {
    let json = json!({ "hostname": "a", "users": { "u": { "enable": true, "uid": 1000, "home": "/home/u", "create_home": true, "shell": "/bin/bash" } } });
    assert_eq!(composed(base(), json.clone()).dump(), composed(base(), json).dump());
}
