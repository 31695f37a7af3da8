//! Profiles: what they evaluate to, how modules and overrides merge, what evaluation may read.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn kiln(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.args(args).current_dir(folder).env_clear().output().unwrap()
}

/// A folder with files, as a project of its own.
struct Project(tempfile::TempDir);

impl Project {
    fn new(files: &[(&str, &str)]) -> Project {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Project(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn eval(&self, args: &[&str]) -> Value {
        let output = kiln(self.path(), &[&["eval"], args].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn refused(&self, args: &[&str]) -> String {
        let output = kiln(self.path(), &[&["eval"], args].concat());
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{error}");
        error
    }
}

fn names(record: &Value) -> Vec<&str> {
    record.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn the_profiles_that_come_with_kiln_evaluate() {
    let packages = |name: &str| {
        let path = format!("profiles/{name}.ncl");
        let output = kiln(root(), &["eval", &path, "--field", "packages"]);
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let packages: Value = serde_json::from_slice(&output.stdout).unwrap();
        names(&packages).join(" ")
    };
    insta::assert_snapshot!(packages("minimal"), @"apt dbus e2fsprogs init initramfs-tools iproute2 kmod libpam-systemd linux-image-cloud-amd64 login netbase passwd systemd-resolved systemd-sysv tzdata udev zstd");
    insta::assert_snapshot!(packages("server"), @"apt ca-certificates cloud-init dbus e2fsprogs init initramfs-tools iproute2 kmod libpam-systemd linux-image-cloud-amd64 login netbase openssh-server passwd sudo systemd-repart systemd-resolved systemd-sysv systemd-timesyncd tzdata udev zstd");
    assert!(packages("web").contains(" nginx "));
    assert!(packages("postgres").contains(" postgresql-17 "));
}

#[test]
fn modules_add_and_switch_off() {
    let project = Project::new(&[
        ("a.ncl", "{ packages = { nginx = {}, curl = {} }, users.ann.groups.adm = true }"),
        ("b.ncl", "{ packages.htop = {}, users.ann.groups.sudo = true, users.ann.uid = 1000 }"),
        (
            "p.ncl",
            r#"(import "a.ncl") & (import "b.ncl") & { name = "p", packages.nginx.enable = false, users.ann.groups.adm | force = false }"#,
        ),
    ]);
    let system = project.eval(&["p.ncl"]);
    assert_eq!(system["packages"]["nginx"], json!({ "enable": false }));
    assert_eq!(system["packages"]["curl"], json!({ "enable": true }));
    assert_eq!(system["packages"]["htop"], json!({ "enable": true }));
    assert_eq!(system["users"]["ann"]["groups"], json!({ "adm": false, "sudo": true }));
    assert_eq!(system["users"]["ann"]["home"], "/home/ann");
}

#[test]
fn what_follows_from_other_fields_can_be_taken_back() {
    let project = Project::new(&[(
        "p.ncl",
        r#"{
            name = "p",
            ssh.enable = true,
            packages.systemd-resolved.enable = false,
            units."systemd-networkd.service".state = 'disabled,
            sources.debian.suite = "bookworm",
        }"#,
    )]);
    let system = project.eval(&["p.ncl"]);
    assert_eq!(system["packages"]["openssh-server"]["enable"], true);
    assert_eq!(system["packages"]["systemd-resolved"]["enable"], false);
    assert_eq!(system["units"]["systemd-networkd.service"]["state"], "disabled");
    assert_eq!(system["sources"]["security"]["suite"], "bookworm-security");
    let system = project.eval(&["p.ncl", "--set", "sources.debian.suite=sid"]);
    assert_eq!(system["sources"]["security"]["enable"], false);
    assert_eq!(system["sources"]["debian"]["pockets"]["updates"], false);
}

#[test]
fn overrides_win_over_the_profile() {
    let project = Project::new(&[(
        "p.ncl",
        r#"{ name = "p", disk.size = "2GiB", sysctl."vm.swappiness" = 10, packages.nginx.version = "1.26.3-3" }"#,
    )]);
    let system = project.eval(&[
        "p.ncl",
        "--set=disk.size=4GiB",
        "--set=sysctl.\"vm.swappiness\"=60",
        "--set=boot.firmware=uefi",
        "--set=packages.nginx={}",
        "--set=packages.curl={}",
        "--set=network.nameservers=[\"192.0.2.53\"]",
        "--set=hostname=first",
        "--set=hostname=%{second}",
        "--set=hostname=second",
    ]);
    assert_eq!(system["disk"]["size"], "4GiB");
    assert_eq!(system["sysctl"]["vm.swappiness"], 60);
    assert_eq!(system["boot"]["firmware"], "uefi");
    assert_eq!(system["packages"]["nginx"], json!({ "enable": true, "version": "1.26.3-3" }));
    assert_eq!(system["packages"]["curl"], json!({ "enable": true }));
    assert_eq!(system["network"]["nameservers"], json!(["192.0.2.53"]));
    assert_eq!(system["hostname"], "second");
}

#[test]
fn where_an_image_is_published_is_said_piecewise() {
    let project = Project::new(&[
        ("base.ncl", r#"{ publish.aws = { tags.Team = "base", launch.accounts."111122223333" = true } }"#),
        (
            "p.ncl",
            r#"(import "base.ncl") & {
                name = "p",
                publish.aws = {
                    regions.eu-central-1.launch.accounts."111122223333" = false,
                    launch.accounts."444455556666" = true,
                    volume = { size = "16GiB", iops = 4000 },
                },
            }"#,
        ),
    ]);
    let aws = |args: &[&str]| project.eval(&[&["p.ncl"], args].concat())["publish"]["aws"].clone();
    let plain = aws(&[]);
    assert_eq!(plain["launch"]["accounts"], json!({ "111122223333": true, "444455556666": true }));
    assert_eq!(plain["tags"], json!({ "Team": "base" }));
    assert_eq!(plain["volume"]["type"], "gp3");
    assert_eq!(plain["regions"]["eu-central-1"]["required"], true);
    let set = aws(&["--set=publish.aws.regions.us-east-1={}", "--set=publish.aws.volume.iops=5000"]);
    assert_eq!(names(&set["regions"]), ["eu-central-1", "us-east-1"]);
    assert_eq!(set["volume"]["iops"], 5000);
}

/// Every field that the contracts know is taken, for all regions and for one.
#[test]
fn every_setting_of_a_publication_is_taken() {
    let settings = r#"
        role = { arn = "arn:aws:iam::111122223333:role/a/b", external_id = "id:1", session_name = "kiln", duration = 3600 },
        name = "{name}/{version} ({region})",
        description = "{name} of {date}",
        boot_mode = 'uefi,
        ena = false,
        imds = 'optional,
        nitro_tpm = true,
        uefi_data = "keys.aws",
        root_device = "/dev/sda1",
        volume = { type = 'gp3, size = "16GiB", iops = 4000, throughput = 500, delete_on_termination = false },
        encrypt = true,
        kms_key = "alias/images",
        tags.Team = "base",
        snapshot_tags.Kind = "image",
        launch = {
            accounts."444455556666" = true,
            organizations."arn:aws:organizations::111122223333:organization/o-a1b2c3d4e5" = true,
            organizational_units."arn:aws:organizations::111122223333:ou/o-a1b2c3d4e5/ou-ab12-11111111" = true,
            public = false,
        },
        snapshot = { accounts."777788889999" = true, public = false },
        deprecate_after = 180,
        protection = { enable = true, cooldown = true },
        parameters."/images/{name}" = true,
        retention = { keep = 3, days = 30 },
        upload = { way = 's3-import, fan_out = 'copy-image, bucket = "images", prefix = "a/", role = "importer" },
    "#;
    let text = format!(
        "{{ name = \"p\", publish.aws = {{ regions.us-gov-west-1 = {{ enable = true, required = false, {settings} }}, {settings} }} }}"
    );
    let project = Project::new(&[("p.ncl", &text)]);
    let aws = project.eval(&["p.ncl"])["publish"]["aws"].clone();
    let region = &aws["regions"]["us-gov-west-1"];
    let fields = kiln::profile::reference::contracts();
    for (record, contract) in [(&aws, "Publish.aws"), (region, "AwsRegion")] {
        let mut known: Vec<&str> = fields[contract].iter().map(|field| field.name.as_str()).collect();
        known.sort_unstable();
        assert_eq!(names(record), known, "a field is missing here");
    }
    for field in names(region).into_iter().filter(|field| !matches!(*field, "enable" | "required")) {
        assert_eq!(region[field], aws[field], "{field}");
    }
}

#[test]
fn a_wrong_override_is_named() {
    let project = Project::new(&[("p.ncl", r#"{ name = "p", disk.label | force = "data" }"#)]);
    for (set, expected) in [
        ("disk.size=lots", "--set disk.size=lots:1:"),
        ("pakages.nginx={}", "did you mean `packages`?"),
        ("hostname=-3", "--set hostname=-3:1:"),
        ("a..b=1", "`a..b` is no field: a name is empty"),
        ("disk.label=other", "--set disk.label=other:1:"),
        ("disk", "write PATH=VALUE"),
    ] {
        let error = project.refused(&["p.ncl", "--set", set]);
        assert!(error.contains(expected), "{set}: {error}");
    }
}

#[test]
fn data_files_are_profiles_too() {
    let project = Project::new(&[
        (
            "p.toml",
            "name = \"p\"\n[boot]\nfirmware = \"bios\"\n[packages.nginx]\n[users.ann]\nuid = 1000\nsudo = \"nopasswd\"\n[sysctl]\n\"vm.swappiness\" = 10\n",
        ),
        (
            "p.yaml",
            "name: p\nboot: { firmware: bios }\npackages: { nginx: {} }\nusers: { ann: { uid: 1000, sudo: nopasswd } }\nsysctl: { vm.swappiness: 10 }\n",
        ),
        (
            "p.json",
            r#"{"name":"p","boot":{"firmware":"bios"},"packages":{"nginx":{}},"users":{"ann":{"uid":1000,"sudo":"nopasswd"}},"sysctl":{"vm.swappiness":10}}"#,
        ),
        (
            "p.ncl",
            r#"{ name = "p", boot.firmware = 'bios, packages.nginx = {}, users.ann = { uid = 1000, sudo = 'nopasswd }, sysctl."vm.swappiness" = 10 }"#,
        ),
        ("site.ncl", r#"(import "p.toml") & { disk.size = "3GiB" }"#),
    ]);
    let nickel = project.eval(&["p.ncl"]);
    for file in ["p.toml", "p.yaml", "p.json"] {
        assert_eq!(project.eval(&[file]), nickel, "{file}");
        let text = fs::read_to_string(project.path().join(file)).unwrap();
        fs::write(project.path().join(file), format!("\u{feff}{text}")).unwrap();
        assert_eq!(project.eval(&[file]), nickel, "{file} with a byte order mark");
    }
    assert_eq!(project.eval(&["site.ncl"])["disk"]["size"], "3GiB");
}

#[test]
fn every_file_that_is_read_is_recorded() {
    let project = Project::new(&[
        ("kiln.toml", ""),
        ("parts/a.ncl", r#"{ files."/etc/motd".text = import "motd.txt" }"#),
        ("parts/motd.txt", "hello\n"),
        ("images/p.ncl", r#"(import "../parts/a.ncl") & (import "kiln/server.ncl") & { name = "p" }"#),
        ("images/unused.ncl", "{}"),
    ]);
    let inputs = project.eval(&["images/p.ncl", "--inputs", "--json"]);
    let paths: Vec<_> = inputs.as_array().unwrap().iter().map(|i| i["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["images/p.ncl", "parts/a.ncl", "parts/motd.txt"]);
    let hello = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
    assert_eq!(inputs[2]["sha256"], hello);
}

#[test]
fn further_folders_are_readable_when_named() {
    let outside = Project::new(&[("shared.ncl", "{ packages.htop = {} }")]);
    let import = format!("(import \"{}\") & {{ name = \"p\" }}", outside.path().join("shared.ncl").display());
    let project = Project::new(&[("p.ncl", &import)]);
    assert!(project.refused(&["p.ncl"]).contains("outside the project"));
    let root = outside.path().to_str().unwrap();
    assert_eq!(project.eval(&["p.ncl", "--root", root])["packages"]["htop"]["enable"], true);
}

#[test]
fn fields_are_printed_alone() {
    let project = Project::new(&[("p.ncl", r#"{ name = "p", files."/etc/motd".text = "hi\n" }"#)]);
    let field = |path: &str| {
        String::from_utf8(kiln(project.path(), &["eval", "p.ncl", "--field", path]).stdout).unwrap()
    };
    assert_eq!(field("name"), "p\n");
    assert_eq!(field("files.\"/etc/motd\".text"), "hi\n");
    assert_eq!(field("boot.consoles.0"), "tty0\n");
    assert_eq!(field("disk.grow"), "true\n");
    assert!(project.refused(&["p.ncl", "--field", "disk.size"]).contains("no field `disk.size`"));
}

#[test]
fn growth_without_end_is_ended() {
    let project = Project::new(&[(
        "p.ncl",
        "{ name = \"p\", epoch = std.array.length (std.array.range 0 1000000000) }",
    )]);
    let error = project.refused(&["p.ncl"]);
    assert!(error.contains("the profile needs more than 2 GiB of memory"), "{error}");
}

#[test]
fn the_starter_evaluates_and_is_never_overwritten() {
    let project = Project::new(&[]);
    assert!(kiln(project.path(), &["init", "new"]).status.success());
    assert_eq!(project.eval(&["new/image.ncl"])["name"], "new");
    let again = kiln(project.path(), &["init", "new"]);
    assert_eq!(again.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&again.stderr).contains("is there already"));
}

#[test]
fn modules_are_written_for_editors() {
    let project = Project::new(&[]);
    assert!(kiln(project.path(), &["eval", "--contracts", "ncl"]).status.success());
    let written = project.path().join("ncl/kiln/system.ncl");
    assert_eq!(fs::read(written).unwrap(), fs::read(root().join("src/profile/ncl/kiln/system.ncl")).unwrap());
}

#[test]
fn the_reference_of_profiles_is_up_to_date() {
    let path = root().join("docs/reference/profile.md");
    let page = kiln::profile::reference::markdown();
    if std::env::var_os("KILN_UPDATE_DOCS").is_some() {
        fs::write(&path, page).unwrap();
        return;
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == page, "docs/reference/profile.md is stale: `just reference` writes it anew");
}

/// Each wrong profile ends with status 2 and the error that its snapshot holds.
#[test]
fn wrong_profiles_are_explained() {
    let folder = root().join("tests/wrong/profiles");
    let mut profiles: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
    profiles.retain(|p| p.is_file() && p.file_name().is_some_and(|n| n != "kiln.toml"));
    profiles.sort();
    assert!(profiles.len() >= 60, "{}", profiles.len());
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("wrong/snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    for profile in profiles {
        let name = profile.file_name().unwrap().to_str().unwrap();
        let output = kiln(&folder, &["eval", name]);
        let error = String::from_utf8(output.stderr).unwrap().replace(folder.to_str().unwrap(), "[FOLDER]");
        assert_eq!(output.status.code(), Some(2), "{name}: {error}");
        assert!(!error.contains("panic"), "{name}: {error}");
        settings.bind(|| insta::assert_snapshot!(name.replace('.', "-"), without_our_lines(&error)));
    }
}

/// Numbers of lines in Kiln's own modules are left out: they move whenever something is added there. The margin's width
/// follows the longest number.
fn without_our_lines(error: &str) -> String {
    let (mut own, mut text) = (false, String::new());
    for line in error.lines() {
        let Some(at) = line
            .find(['│', '┌', '='])
            .filter(|at| line[..*at].chars().all(|c| c == ' ' || c.is_ascii_digit()))
        else {
            text += &format!("{line}\n");
            continue;
        };
        let (margin, rest) = line.split_at(at);
        if let Some(place) = rest.strip_prefix("┌─ ") {
            own = place.starts_with("kiln/");
            let shown = if own { place.split(':').next().unwrap_or_default() } else { place };
            text += &format!("    ┌─ {shown}\n");
        } else {
            let number = if own { "" } else { margin.trim() };
            text += &format!("{number:>3} {rest}\n");
        }
    }
    text
}

mod any_text {
    use proptest::prelude::*;

    use kiln::profile::{EvalRequest, ProfileError, evaluate_here};

    fn try_out(extension: &str, text: &str) -> Result<(), TestCaseError> {
        let dir = tempfile::tempdir().unwrap();
        let profile = dir.path().join(format!("p.{extension}"));
        std::fs::write(&profile, text).unwrap();
        let request = EvalRequest { profile, ..EvalRequest::default() };
        match evaluate_here(&request) {
            Err(ProfileError::Internal(reason)) => Err(TestCaseError::fail(reason)),
            _ => Ok(()),
        }
    }

    /// Pieces of which wrong profiles are likely made.
    fn pieces() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "{",
            "}",
            "name",
            "=",
            "\"x\"",
            ",",
            "packages",
            ".",
            "nginx",
            "&",
            "|",
            "default",
            "'both",
            "1",
            "-",
            "[",
            "]",
            "import",
            "(",
            ")",
            "%{",
            "\"",
            "m%\"",
            "\"%",
            "let",
            "in",
            "fun",
            "=>",
            "disk.size",
            "users",
            "/",
            "..",
            ";",
            "null",
        ]);
        prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.join(" "))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn ends_in_a_system_or_an_error(text in pieces(), kind in prop::sample::select(vec!["ncl", "toml", "yaml", "json"])) {
            try_out(kind, &text)?;
        }

        #[test]
        fn as_value_of_a_field_too(text in "\\PC{0,60}", field in prop::sample::select(vec![
            "hostname", "version", "timezone", "locale", "disk.size", "users.a.hashed_password", "users.a.ssh_keys.k",
            "files.\"/f\".mode", "files.\"/f\".source", "kernel.package",
        ])) {
            let quoted = serde_json::to_string(&text).unwrap().replace('%', "\\u{25}");
            try_out("ncl", &format!("{{ name = \"x\", {field} = {quoted} }}"))?;
        }
    }
}
