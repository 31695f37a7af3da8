//! From an error of a machine to the image's failure by its name, or to the error that it is.

use std::time::Duration;

use super::SmokeError;
use crate::check::Check;
use crate::check::report::{CheckResult, MachineFailure, Verdict};
use crate::vm::failure::{BootFailure, Ending};
use crate::vm::{Vm, VmError};

/// Between the end of a way into the machine and the end of the machine.
const LAST_WORD: Duration = Duration::from_secs(2);

/// The failure that an error tells of the image.
///
/// # Errors
/// The error itself, when it is not the image's: QEMU can't be run, a file can't be written, Ctrl-C.
pub(super) fn named_failure(error: VmError, vm: &Vm) -> Result<MachineFailure, SmokeError> {
    let error = explained(error, vm);
    let now = vm.age().as_secs_f64();
    let failure = |kind: &str, message: String, hint: &str, at: f64| MachineFailure {
        kind: kind.to_owned(),
        message,
        hint: hint.to_owned(),
        at,
    };
    match error {
        VmError::Boot { failure: named, line, at, .. } => {
            let message = match line.trim() {
                "" => named.to_string(),
                line => format!("{named}: {line}"),
            };
            Ok(failure(kind(named), message, hint(named, &line), at.as_secs_f64()))
        }
        VmError::Timeout { what, limit, .. } => Ok(failure(
            "too-slow",
            format!("no {what} within {} s", limit.as_secs()),
            "it still moved: raise `test.boot_limit` if it is to take so long, else look at the serial log's end",
            now,
        )),
        VmError::Ended { what, ending, tail } => match ended(&ending) {
            Some((kind, hint)) => Ok(failure(kind, format!("{ending} (waiting for {what})"), hint, now)),
            None => Err(VmError::Ended { what, ending, tail }.into()),
        },
        VmError::Channel(why) => Ok(failure(
            "no-answer",
            format!("the guest gave no answer any more: {why}"),
            "it may have restarted or stopped its services: look at the serial log's end",
            now,
        )),
        other => Err(other.into()),
    }
}

/// A way that broke because the machine at its other end did: that end is the error. An answer that doesn't come from a
/// machine that only fetches what it had to forget is one of too little memory.
fn explained(error: VmError, vm: &Vm) -> VmError {
    let what = match &error {
        VmError::Timeout { tail, .. } => {
            return match vm.thrashes() {
                Some(line) => {
                    let (failure, at) = (BootFailure::OutOfMemory, vm.age());
                    VmError::Boot { failure, line, at, tail: tail.clone() }
                }
                None => error,
            };
        }
        VmError::Channel(why) => why.clone(),
        VmError::Monitor { command, .. } => format!("the answer to {command}"),
        _ => return error,
    };
    match vm.wait_for_end(LAST_WORD) {
        Ok(ending) => VmError::Ended { what, ending, tail: vm.tail() },
        Err(VmError::Timeout { .. }) => error,
        Err(other) => other,
    }
}

/// A guest that ended by itself; `None` when it was QEMU that did.
fn ended(ending: &Ending) -> Option<(&'static str, &'static str)> {
    match ending.reason.as_deref()? {
        "guest-shutdown" => Some(("powered-off", "something in the image shuts the machine down")),
        "guest-panic" => Some(("kernel-panic", "the serial log's end tells why")),
        "guest-reset" => Some(("reboot-loop", "something in the image restarts the machine")),
        _ => None,
    }
}

fn kind(failure: BootFailure) -> &'static str {
    match failure {
        BootFailure::NoBootableDevice => "no-bootable-device",
        BootFailure::NoBootCode => "no-boot-code",
        BootFailure::NoLoader => "no-boot-loader",
        BootFailure::BootLoaderPrompt => "boot-loader-prompt",
        BootFailure::NoKernel => "no-kernel",
        BootFailure::KernelPanic => "kernel-panic",
        BootFailure::InitramfsShell => "initramfs-shell",
        BootFailure::NotStarted => "not-started",
        BootFailure::EmergencyMode => "emergency-mode",
        BootFailure::LoaderReset => "no-boot-entry",
        BootFailure::RebootLoop => "reboot-loop",
        BootFailure::Hang => "hang",
        BootFailure::NoAgent => "no-agent",
        BootFailure::OutOfMemory => "out-of-memory",
    }
}

/// What to look at next, by the failure and the line that told it.
fn hint(failure: BootFailure, line: &str) -> &'static str {
    match failure {
        BootFailure::NoBootableDevice => {
            "the disk has no boot code that this firmware starts: `kiln layout` shows its partitions"
        }
        BootFailure::NoBootCode => {
            "the first 440 bytes of the disk hold no boot loader: is the image for UEFI only?"
        }
        BootFailure::NoLoader => "the EFI system partition has no EFI/BOOT/BOOTX64.EFI that UEFI can start",
        BootFailure::BootLoaderPrompt => {
            "the boot loader found no configuration or no kernel: /boot/grub/grub.cfg names them"
        }
        BootFailure::NoKernel => {
            "the boot entry names a kernel that is not there, or is of another architecture"
        }
        BootFailure::KernelPanic if line.contains("Unable to mount root") => {
            "the kernel has no driver for the root or no initrd: is an initrd named by the boot entry?"
        }
        BootFailure::KernelPanic if line.contains("Attempted to kill init") => {
            "the first program ended: is /sbin/init there, and the C library that it needs?"
        }
        BootFailure::KernelPanic => "the lines before it in the serial log tell why",
        BootFailure::InitramfsShell => {
            "the initramfs found no root: does root= in the boot entry name a file system of this disk, and is that file system sound?"
        }
        BootFailure::NotStarted => "the line says what is missing or damaged: bake the image anew",
        BootFailure::EmergencyMode => {
            "a mount or another unit that everything needs failed: does /etc/fstab name devices that are there? (`nofail` makes one optional)"
        }
        BootFailure::LoaderReset => "the boot loader has no entry, or none whose kernel is there",
        BootFailure::RebootLoop => "the serial log shows the last lines before each restart",
        BootFailure::Hang if line.contains("Freezing execution") => {
            "systemd itself gave up: the lines before it in the serial log tell why"
        }
        BootFailure::Hang => {
            "the unit that is waited for has no limit of its own: give it TimeoutStartSec=, or look at what it waits for"
        }
        BootFailure::NoAgent => {
            "systemd 252 or newer starts it from a credential: is this one older, or are credentials, systemd-tmpfiles or udev switched off? An EC2 lookalike needs none of it with `--over-ssh`"
        }
        BootFailure::OutOfMemory => {
            "give the machine more memory (`test.memory`), or the image less to do at boot"
        }
    }
}

/// The result of a check that was not made.
pub(super) fn skipped(check: &Check) -> CheckResult {
    CheckResult {
        name: check.name.clone(),
        kind: check.what.kind().to_owned(),
        verdict: Verdict::Skipped,
        detail: "not made: the machine did not come so far".to_owned(),
        output: String::new(),
        seconds: 0.0,
        tries: 0,
    }
}
