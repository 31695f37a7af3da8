//! GRUB's images, made by the tools tree's grub-mkimage.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::ImageError;
use crate::arch::Arch;
use crate::boot::grub::{Target, early_config, store_config, store_modules};
use crate::boot::{BootError, EFI_LOADER};
use crate::host::fs::FileError;
use crate::host::{sys, tools};
use crate::layout::Ids;

/// What starts one system beside what its root holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFiles {
    /// The boot sector.
    pub boot_img: Vec<u8>,
    /// The core image for BIOS.
    pub core_img: Vec<u8>,
    /// All files of the EFI system partition, by their paths.
    pub esp: BTreeMap<String, Vec<u8>>,
}

/// GRUB's images for the system called `name`, which depend on it and the tools alone; a few hundredths of a second.
///
/// # Errors
/// [`ImageError`] when a tool is missing or fails, and for architectures that can't be booted yet.
pub fn boot_files(tools: &Path, name: &str, arch: Arch) -> Result<BootFiles, ImageError> {
    supported(arch)?;
    let config = early_config(Ids::of(name).file_system("root"));
    let make = |target: Target| make(tools, target, &target.modules(), &config);
    let (core_img, efi) = rayon::join(|| make(Target::Bios), || make(Target::Uefi));
    let esp = BTreeMap::from([(EFI_LOADER.to_owned(), efi?)]);
    Ok(BootFiles { boot_img: boot_img(tools)?, core_img: core_img?, esp })
}

/// GRUB's image for machines with a BIOS, which finds menu and kernels on the EFI system partition that holds `esp`.
///
/// # Errors
/// As [`boot_files`].
pub fn boot_files_of_store(
    tools: &Path,
    name: &str,
    arch: Arch,
    esp: BTreeMap<String, Vec<u8>>,
) -> Result<BootFiles, ImageError> {
    supported(arch)?;
    let config = store_config(Ids::of(name).esp_serial());
    let core_img = make(tools, Target::Bios, &store_modules(), &config)?;
    Ok(BootFiles { boot_img: boot_img(tools)?, core_img, esp })
}

fn supported(arch: Arch) -> Result<(), BootError> {
    if arch == Arch::Amd64 { Ok(()) } else { Err(BootError::Arch(arch)) }
}

fn boot_img(tools: &Path) -> Result<Vec<u8>, FileError> {
    let path = tools.join("usr/lib/grub").join(Target::Bios.platform()).join("boot.img");
    fs::read(&path).map_err(FileError::at("can't read", &path))
}

fn make(tools: &Path, target: Target, modules: &[&str], config: &str) -> Result<Vec<u8>, ImageError> {
    let scratch = tempfile::tempdir().map_err(FileError::at("can't make", &std::env::temp_dir()))?;
    let (config_path, image) = (scratch.path().join("early.cfg"), scratch.path().join("image"));
    fs::write(&config_path, config).map_err(FileError::at("can't write", &config_path))?;
    let mut command = tools::command(tools, "grub-mkimage")?;
    command.arg("--directory").arg(tools.join("usr/lib/grub").join(target.platform()));
    command.args(["--format", target.platform(), "--prefix", "/boot/grub"]);
    command.arg("--config").arg(&config_path).arg("--output").arg(&image).args(modules);
    run("grub-mkimage", command, |_| Ok(()))?;
    Ok(fs::read(&image).map_err(FileError::at("can't read", &image))?)
}

/// Runs a tool while `feed` writes to its standard input; its output is shown when it fails.
///
/// # Errors
/// [`ImageError::Failed`] with its output, which matters more than a pipe that broke because of it; then `feed`'s own.
pub(super) fn run(
    program: &'static str,
    mut command: Command,
    feed: impl FnOnce(&mut dyn Write) -> Result<(), ImageError>,
) -> Result<(), ImageError> {
    let wrong = || FileError::at("can't run", Path::new(program));
    let output = tempfile::tempfile().map_err(wrong())?;
    let copy = || output.try_clone().map_err(wrong());
    command.stdin(Stdio::piped()).stdout(copy()?).stderr(copy()?);
    tracing::debug!("runs {command:?}");
    let mut child = spawn_unsynced(&mut command).map_err(wrong())?;
    let mut fed = Ok(());
    if let Some(mut pipe) = child.stdin.take() {
        // A larger pipe halves the switches between the two processes; when it is refused, the usual one does.
        let _ = nix::fcntl::fcntl(&pipe, nix::fcntl::FcntlArg::F_SETPIPE_SZ(1 << 20));
        fed = feed(&mut pipe);
        if fed.is_err() && !is_broken_pipe(&fed) {
            let _ = child.kill();
        }
    }
    let status = child.wait().map_err(wrong())?;
    if fed.is_err() && !is_broken_pipe(&fed) {
        return fed;
    }
    if !status.success() {
        use std::io::{Read, Seek};
        let (mut text, mut output) = (Vec::new(), output);
        output.rewind().and_then(|()| output.read_to_end(&mut text)).map_err(wrong())?;
        let output = String::from_utf8_lossy(&text).trim().to_owned();
        return Err(ImageError::Failed { program, status: status.to_string(), output });
    }
    fed
}

/// Starts a tool whose syncs do nothing, where that can be had: what it writes is a file without a name that lasts, for
/// which nobody has to wait until it is on the disk.
fn spawn_unsynced(command: &mut Command) -> std::io::Result<Child> {
    std::thread::scope(|scope| {
        let started = scope.spawn(|| {
            if let Err(e) = sys::ignore_syncs() {
                tracing::debug!("tools sync what they write: {e}");
            }
            command.spawn()
        });
        started.join().unwrap_or_else(|_| Err(std::io::Error::other("its thread was lost")))
    })
}

fn is_broken_pipe(result: &Result<(), ImageError>) -> bool {
    matches!(result, Err(ImageError::Tree { source, .. }) if source.kind() == std::io::ErrorKind::BrokenPipe)
}
