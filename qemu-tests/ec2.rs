//! The unchanged image of the server profile boots as an EC2 instance: cloud-init finds its metadata, and a user logs in over
//! SSH with the key that it was launched with.

use std::net::TcpListener;
use std::time::Duration;

use kiln::units::{Bytes, GIB};
use kiln::vm::ec2::{Metadata, PublicKey};
use kiln::vm::imds::version_1;
use kiln::vm::ssh::{Key, Ssh};
use kiln::vm::{Boots, Guest, Instance, Vm, VmError, until_settled};

use crate::machine::{self, COMMAND, SETTLED, SHUTDOWN};

/// From the start to the login, of which cloud-init takes the larger part, under emulation on a busy host.
const LAUNCH: Duration = Duration::from_secs(900);

/// Who logs in to Debian's cloud images.
const USER: &str = "admin";

/// A cloud-config and a script, as one may give both at once.
fn user_data(word: &str) -> Vec<u8> {
    let parts = [
        (
            "text/cloud-config",
            format!("#cloud-config\nwrite_files:\n- path: /etc/written\n  content: {word}\n"),
        ),
        ("text/x-shellscript", format!("#!/bin/sh\necho {word} \"$(id -u)\" >> /etc/run\n")),
    ];
    let mut text = "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"=part=\"\n\n".to_owned();
    for (kind, part) in parts {
        text += &format!("--=part=\nContent-Type: {kind}; charset=\"utf-8\"\n\n{part}\n");
    }
    (text + "--=part=--\n").into_bytes()
}

fn instance(key: &Key, word: &str) -> Instance {
    let mut instance = Instance::new("server");
    instance.public_key = Some(PublicKey { name: "kiln".to_owned(), openssh: key.public().to_owned() });
    instance.user_data = Some(user_data(word));
    instance.tags.insert("Name".to_owned(), "golden".to_owned());
    instance
}

/// Boots an instance from the server's image and hands a login to `check`. When KVM breaks down, it is booted once more under
/// emulation.
fn boots(firmware: Boots, instance: &Instance, key: &Key, check: impl Fn(&Vm, Ssh<'_>)) {
    let image = machine::image("server");
    let mut setup = machine::setup(&image).ec2(instance.clone());
    setup.firmware = firmware;
    setup.disk_size = Some(Bytes(8 * GIB));
    let mut vm = machine::start(setup.clone());
    let mut ssh = Ssh::log_in(&vm, key, USER, LAUNCH);
    if ssh.as_ref().err().is_some_and(VmError::is_accelerator) {
        drop(ssh);
        drop(vm);
        setup.accel = kiln::vm::Accel::Emulation { cx16: true };
        vm = machine::start(setup);
        ssh = Ssh::log_in(&vm, key, USER, LAUNCH);
    }
    let ssh = ssh.unwrap_or_else(|e| panic!("{e}\n{}", requests(&vm)));
    println!("logged in after {:.1} s", vm.age().as_secs_f64());
    check(&vm, ssh);
    println!("{}", requests(&vm));
    let ending = vm.power_down(SHUTDOWN);
    assert_eq!(ending.reason.as_deref(), Some("guest-shutdown"), "{ending}");
}

/// What the metadata service was asked, a line each.
fn requests(vm: &Vm) -> String {
    vm.metadata_log().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn said(guest: &mut dyn Guest, script: &str) -> String {
    let output = guest.run(script, COMMAND).unwrap_or_else(|e| panic!("{script}: {e}"));
    assert_eq!(output.status, 0, "{script}: {}{}", output.stdout, output.stderr);
    output.stdout.trim_end().to_owned()
}

/// What every instance must be like once it is up.
fn is_that_instance(vm: &Vm, guest: &mut dyn Guest, instance: &Instance, word: &str) {
    let settled = until_settled(vm, guest, Duration::ZERO, SETTLED).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((settled.state.as_str(), settled.failed.len()), ("running", 0), "{:?}", settled.failed);
    let result = said(guest, "cloud-init status --wait >/dev/null; cat /run/cloud-init/result.json");
    assert!(result.contains("DataSourceEc2Local") && result.contains("\"errors\": []"), "{result}");
    let query = |name: &str| format!("cloud-init query ds.meta_data.{name}");
    assert_eq!(said(guest, &query("instance-id")), instance.instance_id);
    assert_eq!(said(guest, &query("tags.instance.Name")), "golden");
    assert_eq!(said(guest, &query("local-hostname")), instance.hostname());
    for (script, expected) in [
        ("id -u", "0".to_owned()),
        ("hostname", instance.short_hostname()),
        ("cat /etc/written", word.to_owned()),
        ("cat /etc/run", format!("{word} 0")),
        ("ip -4 -br address show scope global | awk '{print $3}'", format!("{}/20", instance.private_ip)),
        ("lsblk -dno SERIAL /dev/nvme0n1", instance.volume_serial()),
        ("cat /sys/class/dmi/id/sys_vendor", "Amazon EC2".to_owned()),
        ("cat /sys/class/dmi/id/product_name", instance.instance_type.clone()),
        ("cat /sys/class/dmi/id/product_uuid", instance.uuid.to_string()),
        ("cat /sys/class/dmi/id/board_asset_tag", instance.instance_id.clone()),
    ] {
        assert_eq!(said(guest, script), expected, "{script}");
    }
    let root: u64 = said(guest, "findmnt -bno SIZE /").parse().expect("a number");
    assert!(root > 7 * GIB, "the root has {root} bytes");
}

/// The status of a GET from within the guest, without a token.
fn version_1_status(guest: &mut dyn Guest) -> String {
    said(
        guest,
        "python3 -c 'import http.client as h; c = h.HTTPConnection(\"169.254.169.254\", timeout=10); \
         c.request(\"GET\", \"/latest/meta-data/\"); print(c.getresponse().status)'",
    )
}

/// Nothing but the metadata service is there: not the world, not the host, not the host's own loopback.
fn is_alone(guest: &mut dyn Guest) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("a port").port().to_string();
    for (address, port) in [
        ("1.1.1.1", "53"),
        ("10.0.0.1", "80"),
        ("172.31.0.2", "53"),
        ("172.31.16.2", "53"),
        ("169.254.169.253", "53"),
        ("169.254.169.254", "22"),
        ("172.31.16.1", &port),
        ("127.0.0.1", &port),
    ] {
        let script = format!(
            "timeout 20 python3 -c 'import socket; socket.create_connection((\"{address}\", {port}), 5)' 2>&1 | tail -1"
        );
        let answer = said(guest, &script);
        assert!(answer.contains("Error") || answer.contains("timed out"), "{address}:{port}: {answer:?}");
    }
}

#[test]
fn under_bios_it_is_launched_restarted_and_alone() {
    let key =
        Key::generate(&machine::qemu(), &machine::cache().join("scratch")).unwrap_or_else(|e| panic!("{e}"));
    let instance = instance(&key, "first");
    boots(Boots::Seabios, &instance, &key, |vm, mut ssh| {
        is_that_instance(vm, &mut ssh, &instance, "first");
        assert_eq!(version_1(&vm.metadata_log()), (0, 0), "cloud-init needs no version 1");
        assert_eq!(version_1_status(&mut ssh), "401");
        assert_eq!(version_1(&vm.metadata_log()), (0, 1));
        is_alone(&mut ssh);

        // The same disk boots again: nothing that belongs to the first boot is done once more.
        let mut ssh = ssh.reboot(LAUNCH).unwrap_or_else(|e| panic!("{e}"));
        println!("logged in again after {:.1} s", vm.age().as_secs_f64());
        is_that_instance(vm, &mut ssh, &instance, "first");
    });
}

#[test]
#[ignore = "minutes of what the smoke tests show as well; run by name"]
fn under_uefi_it_is_another_one_from_the_same_image() {
    let key =
        Key::generate(&machine::qemu(), &machine::cache().join("scratch")).unwrap_or_else(|e| panic!("{e}"));
    let mut instance = instance(&key, "second");
    instance.metadata = Metadata::Optional;
    boots(Boots::Ovmf, &instance, &key, |vm, mut ssh| {
        is_that_instance(vm, &mut ssh, &instance, "second");
        assert_eq!(version_1_status(&mut ssh), "200");
        assert_eq!(version_1(&vm.metadata_log()), (1, 0));
        assert_eq!(said(&mut ssh, "test -d /sys/firmware/efi && echo uefi"), "uefi");
        let failing = ssh.run("echo out; echo err >&2; exit 3", Duration::from_secs(20)).expect("an answer");
        assert_eq!((failing.status, failing.stdout.as_str(), failing.stderr.as_str()), (3, "out\n", "err\n"));
        let slow = ssh.run("sleep 60", Duration::from_secs(1)).expect("an answer");
        assert_eq!(slow.status, 124, "{slow:?}");
        let refused = vm.connect(80, Duration::from_secs(1)).expect_err("it is not forwarded");
        assert_eq!(refused.kind(), std::io::ErrorKind::Unsupported);
    });
}
