//! A network of a machine's own: what is in it, what is not, and that nothing of it outlives Kiln.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kiln::vm::netns::Namespace;
use kiln::vm::{Instance, prepare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getuid};

use crate::machine::{self, KILN};

/// Set where a test was started once more by another one.
const AGAIN: &str = "KILN_TEST_AGAIN";

/// Where the program under test is, when not where it was built.
const PROGRAM: &str = "KILN_TEST_PROGRAM";

fn namespace(folder: &Path) -> Namespace {
    let instance = Instance::new("netns");
    let program = std::env::var_os(PROGRAM).unwrap_or_else(|| KILN.into());
    Namespace::start(Some(Path::new(&program)), folder, Some(&instance)).unwrap_or_else(|e| panic!("{e}"))
}

/// What a shell says in a namespace.
fn said(namespace: &Namespace, script: &str) -> String {
    let output = namespace.command().args(["/bin/bash", "-c", script]).output().expect("a shell");
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn this_program() -> PathBuf {
    std::env::current_exe().expect("this program")
}

/// This test's program with one test of it.
fn this(program: &Path, test: &str) -> Command {
    let mut command = Command::new(program);
    command.args(["--exact", test, "--include-ignored", "--nocapture"]).env(AGAIN, "1").stdin(Stdio::null());
    command
}

#[test]
fn it_holds_the_metadata_service_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let namespace = namespace(folder.path());
    let names = said(&namespace, "sed 1,2d /proc/net/dev | cut -d: -f1; sed 1d /proc/net/route");
    assert_eq!(names.trim(), "lo");
    let ask =
        "exec 3<>/dev/tcp/169.254.169.254/80; printf 'GET /latest/ HTTP/1.1\\r\\n\\r\\n' >&3; head -1 <&3";
    assert_eq!(said(&namespace, ask).trim(), "HTTP/1.1 401 Unauthorized");
    // The service writes its log after it has answered.
    let deadline = Instant::now() + Duration::from_secs(10);
    while namespace.log().is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    let log = namespace.log();
    assert_eq!(kiln::vm::imds::version_1(&log), (0, 1), "{log:?}");

    // A listener of the host's, which is out of reach.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("a port").port();
    let refused = namespace.connect(port, Duration::from_secs(5)).expect_err("nothing listens in there");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    for address in ["1.1.1.1/53", "10.0.0.1/80", "172.31.16.1/80", "169.254.169.253/53"] {
        let answer = said(&namespace, &format!("echo > /dev/tcp/{address}"));
        assert!(answer.contains("Network is unreachable"), "{address}: {answer}");
    }
    assert!(said(&namespace, &format!("echo > /dev/tcp/127.0.0.1/{port}")).contains("Connection refused"));

    // What joins is whom it was before, without rights in there unless it had them outside.
    let ids = format!("{}\n", getuid());
    assert_eq!(said(&namespace, "id -u"), ids);
    if !getuid().is_root() {
        assert_eq!(said(&namespace, "grep CapEff /proc/self/status"), "CapEff:\t0000000000000000\n");
    }

    let pid = namespace.pid();
    drop(namespace);
    assert!(!runs(pid), "its process is still there");
}

#[test]
fn an_ordinary_user_has_one_as_well() {
    if !getuid().is_root() {
        return; // The test above was one.
    }
    // What was built below /root is not for other users.
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
    let copy = |name: &str, from: &Path| {
        let to = folder.path().join(name);
        fs::copy(from, &to).expect("a copy");
        to
    };
    let kiln = copy("kiln", Path::new(KILN));
    let mut again =
        this(&copy("tests", &this_program()), "netns::it_holds_the_metadata_service_and_nothing_else");
    again.uid(65534).gid(65534).env("TMPDIR", "/tmp").env(PROGRAM, kiln).current_dir("/");
    let output = again.output().expect("this program");
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn where_no_namespace_can_be_made_it_says_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    // In a user namespace of its own, the limit can be lowered to none for all below.
    let script = "echo 0 > /proc/sys/user/max_user_namespaces && echo 0 > /proc/sys/user/max_net_namespaces && \
                  echo null | \"$0\" internal vm-net $$";
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "/bin/sh", "-c", script, KILN]).current_dir(folder.path());
    let output = unshare.output().expect("unshare");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.starts_with("{\"Failed\":{\"doing\":\"making a "), "{said}");
}

/// Starts a machine and programs in its network, and waits to be killed.
#[test]
#[ignore = "part of the next test"]
fn victim() {
    if std::env::var_os(AGAIN).is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("empty.raw");
    std::fs::File::create(&image).and_then(|f| f.set_len(64 << 20)).expect("an empty disk");
    let setup = machine::setup(&image).ec2(Instance::new("victim"));
    let vm = prepare(setup).and_then(|prepared| prepared.start(None)).unwrap_or_else(|e| panic!("{e}"));
    let namespace = vm.namespace().expect("a network of its own");
    let mut joined = namespace.command().args(["/bin/sleep", "1000"]).spawn().expect("sleep");
    println!("\npids {} {} {}", vm.pid(), namespace.pid(), joined.id());
    let _ = std::io::stdout().flush();
    let _ = joined.wait();
}

#[test]
fn a_killed_kiln_leaves_nothing_running() {
    let mut victim =
        this(&this_program(), "netns::victim").stdout(Stdio::piped()).spawn().expect("this program");
    let out = BufReader::new(victim.stdout.take().expect("its output"));
    let line =
        out.lines().map_while(Result::ok).find(|line| line.starts_with("pids ")).expect("its processes");
    let pids: Vec<u32> = line.split(' ').skip(1).map(|pid| pid.parse().expect("a number")).collect();
    assert_eq!(pids.len(), 3);
    assert!(pids.iter().all(|&pid| runs(pid)), "{line}");
    kill(Pid::from_raw(victim.id() as i32), Signal::SIGKILL).expect("a signal");
    victim.wait().expect("its end");
    let begun = Instant::now();
    while pids.iter().any(|&pid| runs(pid)) {
        assert!(begun.elapsed() < Duration::from_secs(10), "still running: {pids:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether a process is there and no zombie, which nobody may be there to collect.
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}
