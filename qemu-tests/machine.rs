//! Machines for tests: which QEMU, which image, and a boot that is retried under emulation when KVM breaks down.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use kiln::vm::probe::{self, Wish};
use kiln::vm::{Channel, Qemu, Setup, Vm, VmError, prepare};

/// The program under test, through which every QEMU is started.
pub const KILN: &str = env!("CARGO_BIN_EXE_kiln");

/// A boot to the agent's answer, under emulation on a busy host.
pub const BOOT: Duration = Duration::from_secs(400);
/// From there until nothing starts any more.
pub const SETTLED: Duration = Duration::from_secs(240);
/// A command that reads much of the disk.
pub const COMMAND: Duration = Duration::from_secs(240);
/// Shutting down.
pub const SHUTDOWN: Duration = Duration::from_secs(90);

/// What the tests share between runs: a store and baked images.
pub fn cache() -> PathBuf {
    match std::env::var_os("KILN_TEST_CACHE") {
        Some(folder) => folder.into(),
        None => Path::new(env!("CARGO_TARGET_TMPDIR")).join("machines"),
    }
}

/// What `kiln run --qemu` is given: what `KILN_QEMU` says; else the tools tree of a profile's lock.
pub fn qemu_argument() -> PathBuf {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| std::env::var_os("KILN_QEMU").map_or_else(locked_tools, PathBuf::from)).clone()
}

/// The tools tree of the lock as it is now: the store may hold those of earlier ones as well, made of other packages.
fn locked_tools() -> PathBuf {
    const QEMU: &str = "/usr/bin/qemu-system-x86_64";
    let profile = profile("minimal");
    let output = kiln(Command::new(KILN).arg("run").arg(profile).args(["--dry-run", "--json"]));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let mut argv = said["argv"].as_array().expect("an argv").iter().filter_map(|a| a.as_str());
    argv.find_map(|argument| argument.strip_suffix(QEMU)).expect("the tools tree").into()
}

/// The QEMU of [`qemu_argument`].
pub fn qemu() -> Qemu {
    let argument = qemu_argument();
    let found = if argument.as_os_str() == "host" { Qemu::host() } else { Qemu::tools(&argument) };
    found.unwrap_or_else(|e| panic!("{e}"))
}

/// The raw image of one of `profiles/`, baked once; from the folder `KILN_TEST_IMAGES` when that has it.
pub fn image(profile: &str) -> PathBuf {
    if let Some(folder) = std::env::var_os("KILN_TEST_IMAGES") {
        let path = Path::new(&folder).join(format!("{profile}.raw"));
        assert!(path.is_file(), "{} is missing", path.display());
        return path;
    }
    // Bakes of two tests at once would only take each other's processors.
    static BAKING: Mutex<()> = Mutex::new(());
    let _one = BAKING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let out = cache().join("out").join(profile);
    kiln(
        Command::new(KILN).arg("build").arg(self::profile(profile)).args(["--format", "raw", "-o"]).arg(&out),
    );
    out.join(format!("{profile}.raw"))
}

/// One of `profiles/`, with a lock beside it, as a file that may be built from.
pub fn profile(name: &str) -> PathBuf {
    let path = profiles().join(format!("{name}.ncl"));
    refresh_lock(&path);
    path
}

/// A copy of `profiles/` outside the source, so that locks are made there.
fn profiles() -> PathBuf {
    static COPIED: OnceLock<PathBuf> = OnceLock::new();
    let copy = || {
        let folder = cache().join("profiles");
        copy_changed(&Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles"), &folder);
        folder
    };
    COPIED.get_or_init(copy).clone()
}

/// Copies what differs, each file at once: another test's process may be reading it.
fn copy_changed(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("a folder").flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy_changed(&from, &to);
            continue;
        }
        let bytes = std::fs::read(&from).expect("a file");
        if std::fs::read(&to).ok().as_ref() != Some(&bytes) && from.extension().is_none_or(|e| e != "lock") {
            kiln::host::fs::write_atomically(&to, &bytes).expect("a copy");
        }
    }
}

/// Locks anew what was locked a day ago or is not locked: mirrors drop versions that are superseded.
fn refresh_lock(profile: &Path) {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let modified = std::fs::metadata(profile.with_extension("lock")).and_then(|m| m.modified());
    let fresh = modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age < DAY));
    // Reading all package lists takes seconds; whether the lock still answers the profile is known at once.
    let answers = |mut command: Command| command.output().is_ok_and(|output| output.status.success());
    let mut why = Command::new(KILN);
    why.arg("why").arg(profile).arg("--store").arg(cache().join("store"));
    if fresh && answers(why) {
        return;
    }
    let update: &[&str] = if fresh { &[] } else { &["--update"] };
    kiln(Command::new(KILN).arg("lock").arg(profile).args(update));
}

/// Runs Kiln with the tests' store.
fn kiln(command: &mut Command) -> Output {
    let output = command.arg("--store").arg(cache().join("store")).output().expect("kiln runs");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// A setup with all that tests have in common; the accelerator is tried once.
pub fn setup(image: &Path) -> Setup {
    static ACCEL: OnceLock<kiln::vm::Accel> = OnceLock::new();
    let scratch = cache().join("scratch");
    let accel = ACCEL.get_or_init(|| {
        let choice = probe::choose(&qemu(), Wish::Auto, &scratch, Some(Path::new(KILN)));
        choice.unwrap_or_else(|e| panic!("{e}")).accel
    });
    let mut setup = Setup::new(qemu(), image, *accel, &scratch);
    setup.kiln = Some(KILN.into());
    setup
}

/// Starts a machine.
pub fn start(setup: Setup) -> Vm {
    prepare(setup).and_then(|prepared| prepared.start(None)).unwrap_or_else(|e| panic!("{e}"))
}

/// Boots a machine and hands it to `check` with a channel into it. When KVM breaks down under it, it is booted once more
/// under emulation.
pub fn with_channel(mut setup: Setup, check: impl Fn(&Vm, &mut Channel<'_>)) -> Vm {
    setup.channel = true;
    setup.reboots = false;
    let vm = start(setup.clone());
    match Channel::attach(&vm, BOOT) {
        Ok(mut channel) => {
            check(&vm, &mut channel);
            drop(channel);
            vm
        }
        Err(e) if e.is_accelerator() => {
            drop(vm);
            setup.accel = kiln::vm::Accel::Emulation { cx16: true };
            with_channel(setup, check)
        }
        Err(e) => panic!("{e}"),
    }
}

/// Runs a command that must succeed, and answers what it printed.
pub fn said(channel: &mut Channel<'_>, script: &str) -> String {
    let output = channel.run(script, COMMAND).unwrap_or_else(|e| panic!("{script}: {e}"));
    assert_eq!(output.status, 0, "{script}: {}{}", output.stdout, output.stderr);
    output.stdout
}

/// A boot that must fail: how.
pub fn failure(setup: Setup, limit: Duration) -> VmError {
    let vm = start(setup);
    vm.wait_for("login prompt", limit, |line| line.ends_with("login: ")).expect_err("it must not boot")
}
