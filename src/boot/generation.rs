//! A generation of the store layout: its command line, its initrd, its unified kernel image, and what the EFI system
//! partition holds beside it. The formats that the machine reads again are those of the crate `kiln-guest`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use kiln_guest::menu::{self, Entry, EntryName, Environment, Standing};
use kiln_guest::uki::{self, Parts};
use kiln_guest::verity::RootHash;
use uuid::Uuid;

use super::modules::{Kernel, Module};
use super::{BootError, EFI_LOADER, arguments, menu_head};
use crate::format::cpio::Archive;
use crate::system::{OnFailure, System};

/// The first generation of a disk.
const FIRST: u32 = 1;
/// systemd-boot's configuration (loader.conf(5)).
const LOADER_CONF: &str = "loader/loader.conf";
/// GRUB's configuration, which its core image reads.
pub const GRUB_CFG: &str = "kiln/grub.cfg";
/// Level of zstd for the initrd: machines unpack any level equally fast.
const COMPRESSION: i32 = 19;
/// Seconds after which a kernel that panicked starts the machine anew, so that a generation's tries can run out.
const PANIC: &str = "panic=10";

/// A system's image, as a command line names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemImage {
    /// Its file name: its digest, a dash, the system's name.
    pub file: String,
    /// What stands for all its blocks.
    pub roothash: RootHash,
}

/// The kernel's arguments: where the system is and what proves it, then the profile's own and the consoles.
///
/// # Errors
/// [`BootError`] for an argument or console that can't be passed.
pub fn command_line(system: &System, image: &SystemImage, partition: Uuid) -> Result<String, BootError> {
    let mut head = vec![
        format!("kiln.partition={partition}"),
        format!("kiln.system={}", image.file),
        format!("kiln.roothash={}", image.roothash),
    ];
    if system.disk.grow {
        head.push("kiln.grow".to_owned());
    }
    if system.boot.on_failure == OnFailure::Halt {
        head.push("kiln.failure=halt".to_owned());
    }
    if !system.kernel.arguments.contains_key("panic") {
        head.push(PANIC.to_owned());
    }
    // Splash screens and the like of other distributions' defaults are none of ours: the root is read-only by nature.
    head.push("ro".to_owned());
    let arguments = arguments(head, system)?;
    match arguments.iter().find(|argument| argument.contains(' ')) {
        // There is no quote that GRUB and the kernel read alike.
        Some(wrong) => Err(BootError::Blank(wrong.clone())),
        None => Ok(arguments.join(" ")),
    }
}

/// The initrd: the guest's program, and the kernel's modules with a list of what each is for; compressed.
///
/// # Errors
/// [`BootError::Unreadable`] when it can't be compressed.
pub fn initrd(program: &[u8], modules: &[Module], epoch: i64) -> Result<Vec<u8>, BootError> {
    let mut archive = Archive::new(epoch);
    archive.file("init", 0o755, program);
    ["dev", "proc", "sys", "run"].iter().for_each(|folder| archive.folder(folder));
    let files: Vec<String> =
        modules.iter().enumerate().map(|(n, module)| format!("{n:03}-{}.ko", module.name)).collect();
    let mut list = String::new();
    for (module, file) in modules.iter().zip(&files) {
        archive.file(&format!("modules/{file}"), 0o644, &module.bytes);
        let when = if module.always { "always" } else { "match" };
        let _ = write!(list, "{file} {when}");
        let is_needed = |(other, _): &(&Module, _)| module.needs.contains(&other.name);
        let needs: Vec<&str> =
            modules.iter().zip(&files).filter(is_needed).map(|(_, file)| file.as_str()).collect();
        if !needs.is_empty() {
            let _ = write!(list, " needs={}", needs.join(","));
        }
        for alias in &module.aliases {
            let _ = write!(list, " {alias}");
        }
        list.push('\n');
    }
    archive.file("modules/list", 0o644, list.as_bytes());
    zstd::bulk::compress(&archive.finish(), COMPRESSION)
        .map_err(|e| BootError::Unreadable("the initrd".to_owned(), e.to_string()))
}

/// What the menu calls a generation of this system: name, version, and the beginning of its image's digest.
#[must_use]
pub fn title(system: &System, image: &SystemImage) -> String {
    let short: String = image.file.chars().take(12).collect();
    let version = if system.version.is_empty() { String::new() } else { format!(" {}", system.version) };
    format!("{}{version} ({short})", system.name)
}

/// The unified kernel image; `stub` is systemd's.
///
/// # Errors
/// [`BootError::Stub`] when the stub can't be used.
pub fn unified(
    stub: &[u8],
    title: &str,
    cmdline: &str,
    kernel: &Kernel,
    initrd: &[u8],
) -> Result<Vec<u8>, BootError> {
    // No version: boot loaders then order entries by file name, which holds the generation's number.
    let os_release = format!("ID=kiln\nNAME=\"{title}\"\nPRETTY_NAME=\"{title}\"\n");
    let parts = Parts {
        stub,
        os_release: &os_release,
        cmdline,
        release: &kernel.release,
        linux: &kernel.image,
        initrd,
    };
    Ok(uki::build(&parts)?)
}

/// All files of the EFI system partition of a disk with one generation; `loader` is systemd-boot.
///
/// # Errors
/// [`BootError::Stub`] when `unified` is no unified kernel image.
pub fn esp(
    system: &System,
    loader: Vec<u8>,
    unified: Vec<u8>,
) -> Result<BTreeMap<String, Vec<u8>>, BootError> {
    let menu = menu::grub_menu(&[Entry::of(FIRST, &unified)?]);
    let mut environment = Environment::default();
    environment.set(FIRST, Some(Standing::Left(menu::TRIES)));
    let grub = format!("# Written by Kiln.\n{}{}", menu_head(system), menu::grub_source());
    let entry = format!("{}/{}", menu::ENTRIES, EntryName::untried(FIRST));
    Ok(BTreeMap::from([
        (EFI_LOADER.to_owned(), loader),
        (
            LOADER_CONF.to_owned(),
            format!("timeout {}\nconsole-mode keep\n", system.boot.timeout).into_bytes(),
        ),
        (entry, unified),
        (GRUB_CFG.to_owned(), grub.into_bytes()),
        (menu::MENUS[0].to_owned(), menu::menu_file(&menu)),
        (menu::MENUS[1].to_owned(), menu::menu_file(&menu)),
        (menu::ENVIRONMENT.to_owned(), environment.print().unwrap_or_default()),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::Value;

    fn image() -> SystemImage {
        SystemImage { file: format!("{}-web", "ab".repeat(32)), roothash: RootHash([0x17; 32]) }
    }

    #[test]
    fn the_command_line_names_system_and_proof() {
        let mut system = System { name: "web".into(), ..System::default() };
        system.disk.grow = true;
        system.boot.consoles = vec!["ttyS0".into()];
        system.kernel.arguments.insert("quiet".into(), Value::Bool(true));
        let line = command_line(&system, &image(), Uuid::from_u128(5)).unwrap();
        let expected = format!(
            "kiln.partition=00000000-0000-0000-0000-000000000005 kiln.system={0}-web kiln.roothash={1} kiln.grow \
             panic=10 ro quiet console=ttyS0",
            "ab".repeat(32),
            "17".repeat(32)
        );
        assert_eq!(line, expected);
        system.kernel.arguments.insert("dyndbg".into(), Value::Text("file a +p".into()));
        assert!(command_line(&system, &image(), Uuid::nil()).is_err());
        system.kernel.arguments = [("panic".to_owned(), Value::Number(0))].into();
        system.boot.on_failure = OnFailure::Halt;
        let line = command_line(&system, &image(), Uuid::nil()).unwrap();
        assert!(line.ends_with("kiln.failure=halt ro panic=0 console=ttyS0"), "{line}");
    }

    #[test]
    fn the_list_says_what_each_module_is_for() {
        let module = |name: &str, always, needs: &[&str], aliases: &[&str]| Module {
            name: name.into(),
            bytes: name.into(),
            needs: needs.iter().map(|n| (*n).to_owned()).collect(),
            always,
            aliases: aliases.iter().map(|a| (*a).to_owned()).collect(),
        };
        let modules = [
            module("crc", false, &[], &[]),
            module("ext4", true, &["crc"], &[]),
            module("nvme", false, &[], &["pci:v*"]),
        ];
        let packed = initrd(b"program", &modules, 0).unwrap();
        let plain = zstd::stream::decode_all(packed.as_slice()).unwrap();
        let text = String::from_utf8_lossy(&plain);
        assert!(
            text.contains(
                "000-crc.ko match\n001-ext4.ko always needs=000-crc.ko\n002-nvme.ko match pci:v*\n"
            )
        );
    }
}
