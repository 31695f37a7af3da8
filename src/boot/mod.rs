//! What makes a tree boot: kernel command line, GRUB's configuration in the tree, GRUB's images outside of it.
//!
//! The same GRUB configuration serves BIOS and UEFI. It is a static text in the tree that boots `/vmlinuz` and
//! `/initrd.img`, the links that Debian's kernel packages keep pointing at the newest kernel: a kernel that apt installs
//! later is booted without any GRUB package in the image. GRUB's own images hold nothing but where to find that text.

pub mod generation;
pub mod grub;
pub mod modules;

use std::fmt::Write as _;

use uuid::Uuid;

use crate::system::{System, Value};

/// Where firmware looks on the EFI system partition for a program, on a disk without further entries.
pub const EFI_LOADER: &str = "EFI/BOOT/BOOTX64.EFI";
/// Where the tree holds the configuration.
pub const GRUB_CFG_PATH: &str = "boot/grub/grub.cfg";

/// A boot configuration that can't be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BootError {
    /// A kernel argument that neither GRUB nor the kernel would read as it stands.
    #[error(
        "the kernel argument `{0}` holds a quote, backslash or control character, which can't be passed through a boot \
         loader"
    )]
    Argument(String),
    /// A kernel argument with a blank, in the store layout.
    #[error("the kernel argument `{0}` holds a blank, which the boot menus of the store layout can't pass")]
    Blank(String),
    /// A console that is no device's name.
    #[error("`{0}` is no console: write a device and its options, as in tty0 or ttyS0,115200n8")]
    Console(String),
    /// A machine that Kiln can't make bootable yet.
    #[error("disks for {0} can't be made bootable yet: only amd64 can")]
    Arch(crate::arch::Arch),
    /// A tree of the store layout without a kernel.
    #[error(
        "there is no kernel: /vmlinuz must lead to /boot/vmlinuz-RELEASE; the store layout boots the kernel of a package \
         (`kernel.package`)"
    )]
    NoKernel,
    /// A kernel that can't mount the store layout.
    #[error("the kernel {release} has no module {name}, without which the store layout can't be mounted")]
    NoModule {
        /// The kernel's release.
        release: String,
        /// The module, as the kernel names it.
        name: &'static str,
    },
    /// A file of the tree that booting takes.
    #[error("{0} is missing, which booting takes")]
    Missing(String),
    /// A file of the tree or of the tools that can't be read or unpacked.
    #[error("{0} can't be read: {1}")]
    Unreadable(String, String),
    /// A boot program that is none.
    #[error("systemd's boot program: {0}")]
    Stub(#[from] kiln_guest::uki::NotAnImage),
}

/// The kernel's arguments: the root, the profile's own in the order of their names, then the consoles in their order.
///
/// # Errors
/// [`BootError`] for an argument or console that can't be passed.
pub fn kernel_arguments(system: &System, root: Uuid) -> Result<Vec<String>, BootError> {
    arguments(vec![format!("root=PARTUUID={root}"), "ro".to_owned()], system)
}

/// `arguments`, and behind them the profile's own and the consoles.
fn arguments(mut arguments: Vec<String>, system: &System) -> Result<Vec<String>, BootError> {
    for (name, value) in &system.kernel.arguments {
        match value {
            Value::Bool(true) => arguments.push(name.clone()),
            Value::Bool(false) => {}
            Value::Number(number) => arguments.push(format!("{name}={number}")),
            Value::Text(text) => arguments.push(format!("{name}={text}")),
        }
    }
    for console in &system.boot.consoles {
        if console.is_empty() || !console.bytes().all(|b| b.is_ascii_alphanumeric() || b",_.:-".contains(&b))
        {
            return Err(BootError::Console(console.clone()));
        }
        arguments.push(format!("console={console}"));
    }
    match arguments.iter().find(|a| a.chars().any(|c| "\"'\\".contains(c) || c.is_control())) {
        Some(wrong) => Err(BootError::Argument(wrong.clone())),
        None => Ok(arguments),
    }
}

/// The text of [`GRUB_CFG_PATH`]; `root` is the GUID of the root's partition.
///
/// # Errors
/// As [`kernel_arguments`].
pub fn grub_cfg(system: &System, root: Uuid) -> Result<String, BootError> {
    let arguments: Vec<String> = kernel_arguments(system, root)?.iter().map(|a| grub::word(a)).collect();
    let arguments = arguments.join(" ");
    let mut text =
        String::from("# Written by Kiln. Both links are kept up to date by the kernel packages.\n");
    text.push_str(&menu_head(system));
    text.push_str("set default=0\nset fallback=1\n");
    text.push_str(&entry(&system.name, "", &arguments));
    // The previous kernel appears once there was an upgrade; GRUB falls back to it when the first can't be loaded.
    text.push_str("if [ -f /vmlinuz.old ]; then\n");
    text.push_str(&entry(&format!("{}, previous kernel", system.name), ".old", &arguments));
    text.push_str("fi\n");
    Ok(text)
}

/// GRUB's settings of the console and of how long its menu is shown.
fn menu_head(system: &System) -> String {
    let mut text = String::new();
    if let Some(serial) = system.boot.consoles.iter().find_map(|c| serial_command(c)) {
        // UEFI's own console includes the serial line where there is one; a BIOS has to be told.
        let _ = write!(
            text,
            "if [ \"$grub_platform\" = pc ]; then\n  if {serial}; then\n    terminal_input console serial\n    \
             terminal_output console serial\n  fi\nfi\n"
        );
    }
    let style = if system.boot.timeout == 0 { "hidden" } else { "menu" };
    let _ = writeln!(text, "set timeout_style={style}\nset timeout={}", system.boot.timeout);
    text
}

fn entry(title: &str, suffix: &str, arguments: &str) -> String {
    let title = grub::word(title);
    format!("menuentry {title} {{\n  linux /vmlinuz{suffix} {arguments}\n  initrd /initrd.img{suffix}\n}}\n")
}

/// GRUB's command for a serial console as the kernel names it (`ttyS0,115200n8`); `None` for other consoles.
fn serial_command(console: &str) -> Option<String> {
    let (device, options) = console.split_once(',').unwrap_or((console, ""));
    let unit: u8 = device.strip_prefix("ttyS")?.parse().ok()?;
    let digits: String = options.chars().take_while(char::is_ascii_digit).collect();
    let speed = if digits.is_empty() { "9600".to_owned() } else { digits };
    Some(format!("serial --unit={unit} --speed={speed}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system() -> System {
        let mut system = System { name: "server".into(), ..System::default() };
        system.boot.consoles = vec!["tty0".into(), "ttyS0,115200n8".into()];
        let arguments = [
            ("quiet", Value::Bool(true)),
            ("debug", Value::Bool(false)),
            ("panic", Value::Number(10)),
            ("dyndbg", Value::Text("file a.c +p; $x".into())),
        ];
        system.kernel.arguments = arguments.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        system
    }

    #[test]
    fn the_configuration_as_it_is_written() {
        let root = Uuid::from_u128(0x1234);
        insta::assert_snapshot!(grub_cfg(&system(), root).unwrap());
        let mut quiet = System { name: "box".into(), ..System::default() };
        quiet.boot.timeout = 5;
        insta::assert_snapshot!(grub_cfg(&quiet, root).unwrap());
    }

    #[test]
    fn what_no_boot_loader_passes_on_is_refused() {
        let with = |value: &str| {
            let mut system = system();
            system.kernel.arguments.insert("x".into(), Value::Text(value.into()));
            kernel_arguments(&system, Uuid::nil()).unwrap_err().to_string()
        };
        let mut odd = system();
        odd.boot.consoles.push("tty 0".into());
        let console = kernel_arguments(&odd, Uuid::nil()).unwrap_err().to_string();
        insta::assert_snapshot!([with("a\"b"), with("a\\b"), with("a\nb"), console].join("\n"));
    }
}
