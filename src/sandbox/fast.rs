//! The fast path: slow helpers of packages' scripts are only noted while packages are configured, and run once at the end,
//! side by side. What comes out is what the helpers would have made one by one.
//!
//! A stub is bound over each helper inside the mount namespace, so that the tree itself stays clean.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::ahead::{self, Ahead};
use super::error::{Doing, Failure, Inner};
use super::scripts::Runner;

/// Where stubs and their notes lie: on the sandbox's own /dev, which is never captured.
pub(super) const DIR: &str = "/dev/kiln";

/// Helpers whose calls are noted and made up for.
const NOTED: [(&str, &str); 2] =
    [("py3compile", "/usr/bin/py3compile"), ("update-ca-certificates", "/usr/sbin/update-ca-certificates")];

/// The program behind depmod, whose calls are noted, and the other names that it goes by.
const KMOD: &str = "/usr/bin/kmod";
const KMOD_NAMES: [&str; 6] = ["depmod", "insmod", "lsmod", "modinfo", "modprobe", "rmmod"];

/// Helpers that only make identity, which would be wiped anyway; and the one that makes initrds, once for the kernel and
/// again for every trigger, where once at the end is enough. `INITRD=No`, which kernel packages know, is not the same:
/// with it they leave out the link /initrd.img.
const NEEDLESS: [&str; 3] = ["/usr/bin/ssh-keygen", "/usr/bin/systemd-machine-id-setup", UPDATE_INITRAMFS];

/// initramfs-tools' program.
const UPDATE_INITRAMFS: &str = "/usr/sbin/update-initramfs";

/// Into how many lists Python's files are split. Fixed, as what a compiler writes can depend on what it compiled before.
pub(super) const PYTHON_LISTS: u32 = 4;

/// Works out what noted calls of py3compile would compile: runs its own code with another `compile`.
const PYTHON_COLLECT: &str = include_str!("collect.py");
/// Compiles the files named in a list.
pub(super) const PYTHON_COMPILE: &str = include_str!("compile.py");
/// Stands for py_compile.py while packages are configured.
const PYTHON_STUB: &str = include_str!("py_compile_stub.py");

/// The stubs while they are in place.
pub(super) struct Stubs {
    bound: Vec<PathBuf>,
    initrd: bool,
}

impl Stubs {
    /// Puts stubs over the helpers that are there.
    pub fn place() -> Inner<Stubs> {
        fs::create_dir_all(format!("{DIR}/calls")).doing("making a folder for stubs")?;
        let mut stubs = Stubs { bound: Vec::new(), initrd: Path::new(UPDATE_INITRAMFS).exists() };
        for (name, path) in NOTED {
            // The hooks of certificates (Java's key store) run in the order that packages expect.
            if name == "update-ca-certificates" && has_entries(Path::new("/etc/ca-certificates/update.d")) {
                continue;
            }
            stubs.bind(&format!("{DIR}/{name}"), &format!("#!/bin/sh\n{}\n", note(name)), Path::new(path))?;
        }
        if fs::symlink_metadata(KMOD).is_ok_and(|m| m.is_file()) {
            ahead::copies(Path::new(KMOD), &KMOD_NAMES)?;
            let depmod = note("depmod");
            let text = format!(
                "#!/bin/sh\ncase \"${{0##*/}}\" in\ndepmod) {depmod} ;;\n*) exec {DIR}/kmod/\"${{0##*/}}\" \"$@\" ;;\nesac\n"
            );
            stubs.bind(&format!("{DIR}/depmod"), &text, Path::new(KMOD))?;
        }
        for path in NEEDLESS {
            stubs.bind(&format!("{DIR}/nothing"), "#!/bin/sh\nexit 0\n", Path::new(path))?;
        }
        for library in pythons() {
            let original = library.join("py_compile.py");
            if let Ok(text) = fs::read(&original) {
                let name = library.file_name().unwrap_or_default().to_string_lossy().into_owned();
                fs::write(format!("{DIR}/{name}.original"), text).doing("keeping py_compile.py")?;
                stubs.bind(
                    &format!("{DIR}/{name}"),
                    &PYTHON_STUB.replace("@DIR@", DIR).replace("@NAME@", &name),
                    &original,
                )?;
            }
        }
        Ok(stubs)
    }

    fn bind(&mut self, stub: &str, text: &str, over: &Path) -> Inner<()> {
        if !fs::symlink_metadata(over).is_ok_and(|m| m.is_file()) {
            return Ok(());
        }
        if !Path::new(stub).exists() {
            fs::write(stub, text).doing("writing a stub")?;
            fs::set_permissions(stub, fs::Permissions::from_mode(0o755)).doing("writing a stub")?;
        }
        mount(Some(stub), over, None::<&str>, MsFlags::MS_BIND, None::<&str>).doing("placing a stub")?;
        self.bound.push(over.to_owned());
        Ok(())
    }

    /// Takes the stubs away and makes up for what they left out. `started` is when the tree began to be worked on.
    pub fn make_up(self, runner: &Runner, ahead: &Ahead, epoch: i64, started: i64) -> Inner<()> {
        for path in &self.bound {
            umount2(path, MntFlags::MNT_DETACH).doing("taking a stub away")?;
        }
        std::thread::scope(|scope| {
            let kernel = scope.spawn(|| kernel(runner, ahead, self.initrd));
            let rest = certificates(runner).and_then(|()| python(runner, epoch, started));
            let kernel = kernel.join().unwrap_or_else(|_| Err(lost("making the initrd")));
            kernel.and(rest)
        })
    }
}

/// Shell's words that note a call.
fn note(name: &str) -> String {
    format!("{{ printf 'call\\n'; for word; do printf ' %s\\n' \"$word\"; done; }} >> {DIR}/calls/{name}")
}

fn lost(doing: &str) -> Failure {
    Failure::Failed { doing: doing.to_owned(), why: "its thread was lost".to_owned() }
}

fn has_entries(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some())
}

/// The library folders of Python interpreters, sorted.
pub(super) fn pythons() -> Vec<PathBuf> {
    let is_python =
        |name: &str| name.strip_prefix("python3.").is_some_and(|v| v.bytes().all(|b| b.is_ascii_digit()));
    let entries = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        entries.filter(|e| e.file_name().to_str().is_some_and(is_python)).map(|e| e.path()).collect();
    found.sort();
    found
}

/// The noted calls of a helper: their arguments.
fn calls(name: &str) -> Inner<Vec<Vec<String>>> {
    let text = match fs::read_to_string(format!("{DIR}/calls/{name}")) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.doing("reading the notes of a stub")?,
    };
    let mut calls: Vec<Vec<String>> = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix(' '), calls.last_mut()) {
            (Some(word), Some(call)) => call.push(word.to_owned()),
            _ => calls.push(Vec::new()),
        }
    }
    Ok(calls)
}

/// The versions of the kernels that are installed with their modules, sorted.
pub(super) fn kernels() -> Inner<Vec<String>> {
    let entries = match fs::read_dir("/boot") {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.doing("looking for kernels")?,
    };
    let mut versions: Vec<String> = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(version) =
            name.strip_prefix("vmlinuz-").filter(|v| Path::new("/usr/lib/modules").join(v).is_dir())
        {
            versions.push(version.to_owned());
        }
    }
    versions.sort();
    Ok(versions)
}

/// depmod, and then the initrd of every kernel that is installed.
fn kernel(runner: &Runner, ahead: &Ahead, initrd: bool) -> Inner<()> {
    let noted: BTreeSet<Vec<String>> = calls("depmod")?.into_iter().collect();
    for arguments in noted {
        if !ahead.depmod(&arguments)? {
            let mut command = runner.command("depmod");
            command.args(arguments);
            runner.beside(command, "depmod")?;
        }
    }
    if !initrd {
        return Ok(());
    }
    for version in kernels()? {
        let mut command = runner.command("update-initramfs");
        command.args(["-c", "-k", &version]).env("TMPDIR", "/tmp");
        runner.beside(command, &format!("update-initramfs for {version}"))?;
    }
    Ok(())
}

fn certificates(runner: &Runner) -> Inner<()> {
    if calls("update-ca-certificates")?.is_empty() {
        return Ok(());
    }
    runner.beside(runner.command("update-ca-certificates"), "update-ca-certificates")
}

/// Compiles what py3compile and py_compile were called for.
fn python(runner: &Runner, epoch: i64, started: i64) -> Inner<()> {
    let mut files: BTreeSet<(String, String)> = BTreeSet::new();
    for library in pythons() {
        let name = library.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.extend(calls(&name)?.into_iter().flatten().map(|file| (name.clone(), file)));
    }
    let noted = calls("py3compile")?;
    if !noted.is_empty() {
        let text = serde_json::to_string(&noted).unwrap_or_default();
        fs::write(format!("{DIR}/py3compile.json"), text).doing("writing what is to be compiled")?;
        let out = format!("{DIR}/py3compile.files");
        let mut command = runner.command("/usr/bin/python3");
        command.args(["-c", PYTHON_COLLECT, &format!("{DIR}/py3compile.json"), &out]);
        runner.beside(command, "py3compile")?;
        let text = fs::read_to_string(&out).doing("reading what is to be compiled")?;
        files.extend(
            text.lines().filter_map(|l| l.split_once(' ')).map(|(v, f)| (v.to_owned(), f.to_owned())),
        );
    }
    let mut lists: std::collections::BTreeMap<(String, u32), String> = std::collections::BTreeMap::new();
    for (interpreter, file) in files {
        let list = ahead::python_list(&file);
        let lines = lists.entry((interpreter, list)).or_default();
        lines.push_str(&file);
        lines.push('\n');
    }
    let lists: Vec<((String, u32), String)> = lists.into_iter().collect();
    super::unpack::parallel(lists.len(), super::unpack::workers(), |at| {
        let ((interpreter, number), text) = &lists[at];
        let list = format!("{DIR}/{interpreter}.{number}");
        fs::write(&list, text).doing("writing what is to be compiled")?;
        let mut command = runner.command(&format!("/usr/bin/{interpreter}"));
        command.args(["-S", "-c", PYTHON_COMPILE, "now", &list, &epoch.to_string(), &started.to_string()]);
        command.arg(ahead::python_store(interpreter, *number));
        // With it set, Python would write files that it has to check against their source by hash at every import.
        command.env_remove("SOURCE_DATE_EPOCH");
        runner.beside(command, "compiling Python modules")
    })
    .map(drop)
}
