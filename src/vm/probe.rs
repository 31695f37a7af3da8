//! Whether an accelerator can really run a guest here: tried, not assumed.
//!
//! A KVM device can open and still be of no use: nested or emulated virtualisation that fails at the first unusual
//! instruction, a kernel that refuses a register. Such a machine hangs, or QEMU stops it with an internal error. So before
//! a machine is started, a ROM of our own (`probe.S`) is run under the same QEMU; it answers in a tenth of a second.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::failure::VmError;
use super::machine::Accel;
use super::process::tied;
use super::qemu::Qemu;
use crate::host::fs::FileError;
use crate::host::interrupt;

/// `probe.S`, assembled.
const CODE: &[u8] = include_bytes!("probe.bin");
const ROM_SIZE: usize = 64 << 10;
/// Where the processor begins: 16 bytes below the end of the ROM, with room for one far jump.
const RESET: usize = ROM_SIZE - 16;
/// `ljmp $0xf000, $0`: to the beginning of the ROM.
const JUMP: [u8; 5] = [0xea, 0, 0, 0, 0xf0];
/// A sound KVM needs 0.1 s; a broken one may hang.
const KVM_LIMIT: Duration = Duration::from_millis(1800);
/// Emulation needs no more on an idle host, and doesn't hang on a busy one.
const EMULATION_LIMIT: Duration = Duration::from_secs(30);

/// Which accelerator is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Wish {
    /// KVM when it works, else emulation.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// Emulation.
    Emulation,
}

/// What an accelerator did with the ROM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Everything came out right.
    Works,
    /// Only CMPXCHG16B came out wrong, as under QEMU 7's emulation.
    StaleFlags,
    /// It is of no use, and why.
    Broken(String),
}

/// The choice that was made, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Choice {
    /// The accelerator.
    pub accel: Accel,
    /// What KVM did, when it was tried.
    pub kvm: Option<Verdict>,
}

impl Choice {
    /// The choice in words.
    #[must_use]
    pub fn describe(&self) -> String {
        match (self.accel, &self.kvm) {
            (Accel::Kvm, _) => "KVM".to_owned(),
            (Accel::Emulation { .. }, Some(Verdict::Broken(why))) => {
                format!("emulation; KVM is of no use here: {why}")
            }
            (Accel::Emulation { .. }, _) => "emulation".to_owned(),
        }
    }
}

/// Chooses an accelerator by trying. `scratch` takes a file for a moment; `kiln` is as in [`super::Setup`].
///
/// # Errors
/// [`VmError`] when QEMU can't be started, or KVM was asked for and doesn't work.
pub fn choose(qemu: &Qemu, wish: Wish, scratch: &Path, kiln: Option<&Path>) -> Result<Choice, VmError> {
    let kvm = match wish {
        Wish::Emulation => None,
        Wish::Auto | Wish::Kvm => Some(kvm(qemu, scratch, kiln)?),
    };
    match (&kvm, wish) {
        (Some(Verdict::Works), _) => return Ok(Choice { accel: Accel::Kvm, kvm }),
        (Some(verdict), Wish::Kvm) => {
            let why = match verdict {
                Verdict::Broken(why) => why.as_str(),
                _ => "CMPXCHG16B gives wrong results",
            };
            return Err(VmError::Start(std::io::Error::other(format!("KVM can't run a guest here: {why}"))));
        }
        _ => {}
    }
    match run(qemu, "tcg", scratch, kiln)? {
        Verdict::Works => Ok(Choice { accel: Accel::Emulation { cx16: true }, kvm }),
        Verdict::StaleFlags => Ok(Choice { accel: Accel::Emulation { cx16: false }, kvm }),
        Verdict::Broken(why) => {
            Err(VmError::Start(std::io::Error::other(format!("QEMU can't emulate a processor: {why}"))))
        }
    }
}

/// Tries KVM.
///
/// # Errors
/// [`VmError`] when QEMU can't be started.
pub fn kvm(qemu: &Qemu, scratch: &Path, kiln: Option<&Path>) -> Result<Verdict, VmError> {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => run(qemu, "kvm", scratch, kiln),
        Err(e) => Ok(Verdict::Broken(format!("/dev/kvm: {e}"))),
    }
}

fn rom() -> Vec<u8> {
    let mut rom = vec![0; ROM_SIZE];
    rom[..CODE.len()].copy_from_slice(CODE);
    rom[RESET..RESET + JUMP.len()].copy_from_slice(&JUMP);
    rom
}

fn run(qemu: &Qemu, accel: &str, scratch: &Path, kiln: Option<&Path>) -> Result<Verdict, VmError> {
    fs::create_dir_all(scratch).map_err(FileError::at("can't make", scratch))?;
    let folder = tempfile::Builder::new().prefix("probe-").tempdir_in(scratch);
    let folder = folder.map_err(FileError::at("can't make a folder in", scratch))?;
    let path = std::path::absolute(folder.path()).map_err(VmError::Start)?.join("rom");
    fs::write(&path, rom()).map_err(FileError::at("can't write", &path))?;
    let cpu = if accel == "kvm" { "host" } else { "max" };
    let mut command = tied(kiln, qemu, None);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc", "-m", "32"]);
    command.args(["-accel", accel, "-cpu", cpu, "-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-bios"]);
    command.arg(&path).stdin(Stdio::null()).stdout(Stdio::null());
    verdict(command, if accel == "kvm" { KVM_LIMIT } else { EMULATION_LIMIT })
}

/// Runs QEMU to its end, or to the limit; a broken KVM leaves it standing.
fn verdict(mut command: Command, limit: Duration) -> Result<Verdict, VmError> {
    let mut child = command.stderr(Stdio::piped()).spawn().map_err(VmError::Start)?;
    let stderr = child.stderr.take();
    let said = std::thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(stderr) = stderr {
            let _ = stderr.take(16 << 10).read_to_end(&mut text);
        }
        text
    });
    let status = wait(&mut child, limit);
    if !matches!(status, Ok(Some(_))) {
        let _ = child.kill();
        let _ = child.wait();
    }
    let said = said.join().unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    // The first line tells; a dump of registers may follow.
    let said = said.lines().find(|l| !l.contains("warning:")).unwrap_or_default().trim();
    let said = said.strip_prefix("qemu-system-x86_64: ").unwrap_or(said);
    let said = said.strip_prefix("error: ").unwrap_or(said);
    Ok(match status? {
        Some(status) => match (status.code(), said) {
            (Some(67), _) => Verdict::Works,
            (Some(71), _) => Verdict::StaleFlags,
            (Some(75), _) => Verdict::Broken("an instruction gave a wrong result".to_owned()),
            (_, "") => Verdict::Broken(format!("QEMU ended with {status}")),
            (_, said) => Verdict::Broken(said.to_owned()),
        },
        None if said.is_empty() => Verdict::Broken(format!("no answer within {:.1} s", limit.as_secs_f64())),
        None => Verdict::Broken(said.to_owned()),
    })
}

fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>, VmError> {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().map_err(VmError::Start)? {
            return Ok(Some(status));
        }
        interrupt::check()?;
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rust links through a C compiler, so that an assembler is at hand wherever these tests are built.
    #[test]
    fn the_bytes_are_what_the_source_says() {
        let folder = tempfile::tempdir().unwrap();
        let (object, bytes) = (folder.path().join("probe.o"), folder.path().join("probe.bin"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/vm/probe.S");
        let run = |program: &str, args: &[&std::ffi::OsStr]| {
            let status = Command::new(program).args(args).status().unwrap();
            assert!(status.success(), "{program}: {status}");
        };
        run("as", &["--64".as_ref(), source.as_ref(), "-o".as_ref(), object.as_ref()]);
        let raw = ["--oformat", "binary", "-Ttext", "0", "-e", "0"].map(AsRef::as_ref);
        run("ld", &[&raw[..], &[object.as_ref(), "-o".as_ref(), bytes.as_ref()]].concat());
        assert!(fs::read(bytes).unwrap() == CODE, "probe.bin is not what probe.S assembles to");
    }

    #[test]
    fn the_rom_ends_with_a_jump_to_its_beginning() {
        let rom = rom();
        assert_eq!((rom.len(), rom[RESET], rom[0]), (ROM_SIZE, 0xea, 0xfa), "the first instruction is cli");
    }

    #[test]
    fn an_accelerator_that_says_what_is_wrong_is_quoted() {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "echo 'q: warning: x' >&2; echo 'KVM internal error' >&2; echo regs >&2; exit 1"]);
        assert_eq!(verdict(command, KVM_LIMIT).unwrap(), Verdict::Broken("KVM internal error".to_owned()));
    }

    #[test]
    fn one_that_hangs_is_given_up() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exec sleep 60"]);
        let begun = Instant::now();
        assert_eq!(
            verdict(command, KVM_LIMIT).unwrap(),
            Verdict::Broken("no answer within 1.8 s".to_owned())
        );
        assert!(begun.elapsed() < Duration::from_secs(3));
    }
}
