//! Systems that don't fit, and what they are told.

use serde_json::{Value, json};

use super::{base, file, link, try_compose};

fn refusal(json: Value) -> String {
    try_compose(base(), json).expect_err("it must be refused").to_string()
}

fn user(fields: Value) -> Value {
    let mut user = json!({ "enable": true, "uid": 1000, "home": "/home/ann", "create_home": true, "shell": "/bin/bash" });
    super::merge(&mut user, fields);
    json!({ "users": { "ann": user } })
}

fn files(path: &str, fields: Value) -> Value {
    let mut file = json!({ "enable": true, "text": "", "mode": "0644", "user": "root", "group": "root" });
    super::merge(&mut file, fields);
    json!({ "files": { path: file } })
}

#[test]
fn accounts() {
    let wrong = [
        user(json!({ "uid": 33 })),
        user(json!({ "uid": null })),
        user(json!({ "shell": "/bin/fish" })),
        user(json!({ "groups": { "sodo": true } })),
        user(json!({ "group": "people" })),
        user(json!({ "hashed_password": "secret" })),
        user(json!({ "gecos": "a:b" })),
        user(json!({ "create_home": false, "ssh_keys": { "a": "ssh-ed25519 AAAA" } })),
        user(json!({ "ssh_keys": { "a": "hello" } })),
        json!({ "users": { "www-data": { "enable": true, "uid": 34 } } }),
        json!({ "users": { "Ann": { "enable": true, "uid": 1000 } } }),
        json!({ "groups": { "ops": { "enable": true, "gid": 4 } } }),
        json!({ "groups": { "www-dat": { "enable": true } } }),
        json!({ "groups": { "adm": { "enable": true, "members": { "rot": true } } } }),
    ];
    insta::assert_snapshot!(wrong.map(refusal).join("\n"));
}

#[test]
fn files_and_paths() {
    let wrong = [
        files("etc/motd", json!({})),
        files("/etc/../x", json!({})),
        files("/etc/passwd/x", json!({})),
        files("/etc/skel", json!({})),
        files("/run/x", json!({})),
        files("/etc/shadow", json!({})),
        files("/boot/grub/grub.cfg", json!({})),
        files("/etc/x", json!({ "mode": "rw-r--r--" })),
        files("/etc/x", json!({ "user": "www_data" })),
        files("/etc/x", json!({ "text": null, "source": "missing" })),
        files("/etc/x", json!({ "source": "both" })),
        json!({ "symlinks": { "/etc/x": { "enable": true, "target": "" } } }),
        json!({ "directories": { "/etc/passwd": { "enable": true, "mode": "0755", "user": "root", "group": "root" } } }),
        json!({ "fetch": { "/opt/x": { "enable": true, "url": "https://example.org/x", "sha256": "0".repeat(64), "mode": "0644", "user": "root", "group": "root" } } }),
    ];
    insta::assert_snapshot!(wrong.map(refusal).join("\n"));
}

#[test]
fn two_fields_for_one_path() {
    let mut json = files("/bin/x", json!({}));
    super::merge(&mut json, files("/usr/bin/x", json!({})));
    let expected = "files.\"/usr/bin/x\": /usr/bin/x can't be written: files.\"/bin/x\" writes it as well";
    assert_eq!(refusal(json), expected);
}

#[test]
fn links_in_a_circle() {
    let mut tree = base();
    link(&mut tree, "etc/a", "b");
    link(&mut tree, "etc/b", "a");
    let error = try_compose(tree, files("/etc/a/x", json!({}))).unwrap_err().to_string();
    assert_eq!(
        error,
        "files.\"/etc/a/x\": /etc/a/x can't be written: symbolic links on the way lead in a circle"
    );
}

#[test]
fn units() {
    let unit = |name: &str, fields: Value| json!({ "units": { name: fields } });
    let wrong = [
        unit("ngnix.service", json!({ "state": "enabled" })),
        unit("nginx", json!({ "state": "enabled" })),
        unit("static.service", json!({ "state": "enabled" })),
        unit("own.service", json!({ "state": "masked", "text": "[Service]\n" })),
        unit("own.service", json!({ "text": "[Service]\nExecStart /bin/true\n" })),
        unit("nginx.service", json!({ "drop_ins": { "x": "LimitNOFILE=1\n" } })),
        unit(
            "own@.service",
            json!({ "state": "enabled", "text": "[Install]\nWantedBy=multi-user.target\n" }),
        ),
        unit("own.service", json!({ "state": "enabled", "text": "[Install]\nAlias=own.timer\n" })),
        unit("own.service", json!({ "state": "enabled", "text": "[Install]\nWantedBy=%H.target\n" })),
        json!({ "units": {
            "a.service": { "state": "enabled", "text": "[Install]\nAlias=c.service\n" },
            "b.service": { "state": "enabled", "text": "[Install]\nAlias=c.service\n" },
        } }),
        unit("own.timer", json!({ "text": "[Timer]\nOnBootSec=1\n" })),
    ];
    insta::assert_snapshot!(wrong.map(refusal).join("\n"));
    let mut tree = base();
    link(&mut tree, "usr/lib/systemd/system/hidden.service", "/dev/null");
    let error =
        try_compose(tree, unit("hidden.service", json!({ "state": "enabled" }))).unwrap_err().to_string();
    let place = "/usr/lib/systemd/system/hidden.service leads to /dev/null";
    assert_eq!(
        error,
        format!("units.\"hidden.service\": it can't be enabled: its package masks it ({place})")
    );
}

#[test]
fn missing_packages() {
    let mut bare = base();
    for path in ["usr/bin/sudo", "usr/bin/systemd-repart", "usr/lib/systemd/system/systemd-networkd.service"]
    {
        bare.remove(path);
    }
    let wrong = [
        user(json!({ "sudo": "nopasswd" })),
        json!({ "disk": { "grow": true } }),
        json!({ "network": { "manager": "networkd" } }),
        json!({ "timezone": "Europe/Berlin" }),
        json!({ "locale": "de_DE.UTF-8" }),
        json!({ "cloud_init": { "enable": true } }),
        json!({ "ssh": { "enable": true } }),
    ];
    let refused =
        wrong.map(|json| try_compose(bare.clone(), json).expect_err("it must be refused").to_string());
    insta::assert_snapshot!(refused.join("\n"));
}

#[test]
fn values() {
    let wrong = [
        json!({ "hostname": "under score" }),
        json!({ "network": { "nameservers": ["dns.example"] } }),
        json!({ "network": { "hosts": { "peer": "ten" } } }),
        json!({ "network": { "networks": { "lan": "" } } }),
        json!({ "sysctl": { "net..x": 1 } }),
        json!({ "sysctl": { "a.b": "1\n2" } }),
        json!({ "kernel": { "load": { "a-b": true }, "deny": { "a_b": true } } }),
        json!({ "kernel": { "load": { "a b": true } } }),
        json!({ "keyboard": { "layout": "de\"" } }),
        json!({ "mounts": { "/data": { "enable": true, "device": "", "fs": "ext4" } } }),
        json!({ "mounts": { "/": { "enable": true, "device": "/dev/sda1", "fs": "ext4" } } }),
        json!({ "swap": { "zram_percent": 500 } }),
        json!({ "pins": { "x": { "version": "1", "suite": "s" } } }),
        json!({ "disk": { "partitions": { "data": { "enable": true, "fs": "ext4", "mount": "/data" } } } }),
        json!({ "run": { "x": { "enable": true, "text": "echo" } } }),
    ];
    insta::assert_snapshot!(wrong.map(refusal).join("\n"));
    let mut tree = base();
    file(&mut tree, "usr/share/zoneinfo/Europe/Berlin", "TZif");
    let error = try_compose(tree, json!({ "timezone": "Europe/Berlni" })).unwrap_err().to_string();
    assert!(error.contains("is Europe/Berlin meant?"), "{error}");
}
