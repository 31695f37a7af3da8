//! Hosts on which no sandbox can be made are told what is missing, and what helps.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::bake::folder_in;
use crate::machine::KILN;

/// What `kiln doctor` says of the sandbox when it is started by this shell script, in which `$@` stands for it.
fn told(script: &str) -> String {
    let folder = folder_in("/var/tmp");
    // The program's own folder may be closed to others, and each user makes a store.
    let program = folder.path().join("kiln");
    fs::copy(KILN, &program).expect("a copy");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("a mode");
    let mut command = Command::new("sh");
    command
        .args(["-c", script, "sh"])
        .arg(&program)
        .arg("--store")
        .arg(folder.path().join("store"))
        .arg("doctor");
    let output = command.output().expect("sh starts");
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<&str> =
        said.lines().skip_while(|line| !line.contains("sandbox")).take(2).map(str::trim).collect();
    lines.join("\n")
}

#[test]
fn a_user_without_ranges() {
    let said = told("exec setpriv --reuid 64999 --regid 64999 --clear-groups \"$@\"");
    assert!(said.contains("/etc/subuid has no line for the user 64999"), "{said}");
    assert!(said.contains("usermod --add-subuids"), "{said}");
}

#[test]
fn a_host_without_newuidmap() {
    // Only in this mount namespace: a line for the user, and no program.
    let said = told(
        "exec unshare --mount sh -c 'mount -t tmpfs none /mnt && echo 64999:700000:65536 > /mnt/subid \
         && mount --bind /mnt/subid /etc/subuid && mount --bind /mnt/subid /etc/subgid \
         && mount --bind /dev/null /usr/bin/newuidmap \
         && exec setpriv --reuid 64999 --regid 64999 --clear-groups \"$@\"' sh \"$@\"",
    );
    assert!(said.contains("the program newuidmap is not installed"), "{said}");
    assert!(said.contains("Install the package `uidmap`"), "{said}");
}

#[test]
fn user_namespaces_switched_off() {
    let said = told(
        "exec unshare --user --map-user=1000 --keep-caps sh -c \
         'echo 0 > /proc/sys/user/max_user_namespaces; exec \"$@\"' sh \"$@\"",
    );
    assert!(said.contains("user namespaces are switched off (user.max_user_namespaces is 0)"), "{said}");
    assert!(said.contains("sysctl -w user.max_user_namespaces"), "{said}");
}

#[test]
fn root_of_a_namespace_with_one_id() {
    let said = told("exec unshare --user --map-root-user \"$@\"");
    assert!(said.contains("root of this user namespace has 1 user ids; 65535 are needed"), "{said}");
    assert!(said.contains("give it a range of ids"), "{said}");
}
