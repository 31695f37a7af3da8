//! What is kept of a machine that failed: the screen, the journal, the serial log, and the disk as it then was.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Job, SmokeError};
use crate::check::Plan;
use crate::check::plan::{Boots, Bus, MachinePlan};
use crate::check::report::{Evidence, MachineReport};
use crate::host::fs::{FileError, copy_sparse, set_mode_by_umask, write_atomically};
use crate::vm::machine::shell_line;
use crate::vm::{Channel, Vm};

/// How much of the journal is kept, in bytes.
const JOURNAL: &str = "journalctl --boot --no-pager --output=short-monotonic | tail -c 700000";
/// A guest that answers at all does so within this.
const ANSWER: Duration = Duration::from_secs(40);
/// The channel of a machine that came up answers soon; of one that did not, nobody waits for it.
const ATTACH: Duration = Duration::from_secs(15);

/// A machine's name as part of a file's.
pub(super) fn file_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' }).collect()
}

/// What a machine may leave, by the ends of its files' names.
const ENDINGS: [&str; 4] = ["serial.log", "png", "journal.log", "qcow2"];

/// Removes what an earlier test left of the machines of `plan`, but for the image that is to be tested now. What can't be
/// removed is replaced later, or stays.
pub fn forget(folder: &Path, plan: &Plan, image: &Path) {
    let image = image.canonicalize().ok();
    for machine in &plan.machines {
        for ending in ENDINGS {
            let path = folder.join(format!("{}.{ending}", file_name(&machine.name)));
            if path.canonicalize().is_ok_and(|path| Some(path) != image) {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

/// The disks that are kept of machines of `plan`.
#[must_use]
pub fn overlays(folder: &Path, plan: &Plan) -> Vec<PathBuf> {
    let names =
        plan.machines.iter().map(|machine| folder.join(format!("{}.qcow2", file_name(&machine.name))));
    names.filter(|path| path.is_file()).collect()
}

/// Collects what there is; ends the machine. What can't be had is left out, only files that can't be written are errors.
/// `answers` tells whether the guest may be asked for its journal.
pub(super) fn collect(
    job: &Job<'_>,
    plan: &MachinePlan,
    vm: Vm,
    overlay: &Path,
    report: &MachineReport,
    answers: bool,
) -> Result<Evidence, SmokeError> {
    let folder = job.evidence;
    std::fs::create_dir_all(folder).map_err(FileError::at("can't make the folder", folder))?;
    let name = file_name(&plan.name);
    let mut evidence = Evidence::default();
    let serial = folder.join(format!("{name}.serial.log"));
    write_atomically(&serial, report.console.as_bytes())?;
    evidence.files.push(("serial".to_owned(), serial));
    let picture = folder.join(format!("{name}.png"));
    // QEMU writes piece by piece: elsewhere, and only the whole picture gets its name.
    let taken = job.scratch.join(format!("{name}.png"));
    if vm.ending().is_none() && vm.screenshot(&taken).is_ok() {
        evidence.screenshot = std::fs::read(&taken).unwrap_or_default();
        write_atomically(&picture, &evidence.screenshot)?;
        evidence.files.push(("screenshot".to_owned(), picture));
    }
    if answers && vm.ending().is_none() {
        evidence.journal = journal(&vm).unwrap_or_default();
        let path = folder.join(format!("{name}.journal.log"));
        write_atomically(&path, evidence.journal.as_bytes())?;
        evidence.files.push(("journal".to_owned(), path));
    }
    drop(vm);
    let kept = folder.join(format!("{name}.qcow2"));
    move_file(overlay, &kept)?;
    evidence.enter = Some(enter(job, plan, &kept));
    evidence.overlay = Some(kept);
    Ok(evidence)
}

fn journal(vm: &Vm) -> Option<String> {
    let mut channel = Channel::attach_again(vm, ATTACH).ok()?;
    channel.run(JOURNAL, ANSWER).ok().map(|said| said.stdout)
}

/// The command that boots the machine from where it stopped.
fn enter(job: &Job<'_>, plan: &MachinePlan, overlay: &Path) -> String {
    let words: Vec<std::ffi::OsString> = vec![
        "kiln".into(),
        "run".into(),
        job.image.into(),
        "--overlay".into(),
        overlay.into(),
        "--firmware".into(),
        match plan.firmware {
            Boots::Seabios => "bios",
            Boots::Ovmf => "uefi",
        }
        .into(),
        "--disk".into(),
        match plan.disk {
            Bus::Virtio => "virtio",
            Bus::Nvme => "nvme",
        }
        .into(),
    ];
    shell_line(&words)
}

/// Moves a file, to another file system if need be: a copy gets its name when it is whole.
fn move_file(from: &Path, to: &Path) -> Result<(), FileError> {
    if std::fs::rename(from, to).is_ok() {
        return Ok(());
    }
    let wrong = || FileError::at("can't write", to);
    let folder = to.parent().unwrap_or(Path::new("."));
    let source = std::fs::File::open(from).map_err(FileError::at("can't read", from))?;
    let copy = tempfile::Builder::new().prefix(".kiln-").tempfile_in(folder).map_err(wrong())?;
    copy_sparse(&source, copy.as_file()).map_err(wrong())?;
    set_mode_by_umask(copy.as_file()).map_err(wrong())?;
    copy.persist(to).map_err(|e| wrong()(e.error))?;
    let _ = std::fs::remove_file(from);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::plan::Platform;
    use crate::system::Firmware;

    #[test]
    fn what_an_earlier_test_left_goes_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let plan = Plan::of_image(Firmware::Both, Platform::Plain);
        for name in ["seabios-virtio.qcow2", "ovmf-nvme.serial.log", "notes.png", "ovmf-nvme.qcow2"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let kept = ["seabios-virtio.qcow2", "ovmf-nvme.qcow2"].map(|name| folder.path().join(name));
        assert_eq!(overlays(folder.path(), &plan), kept);
        forget(folder.path(), &plan, &kept[1]);
        let mut left: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["notes.png", "ovmf-nvme.qcow2"]);
    }
}
