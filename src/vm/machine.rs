//! QEMU's command line as data: what a machine is made of, and the arguments that say so.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::ec2::{Instance, Platform};
pub use crate::check::plan::{Boots, Bus};
use crate::date::Timestamp;
use crate::units::{Bytes, MIB};

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// The processor itself, through KVM.
    Kvm,
    /// QEMU's emulation.
    Emulation {
        /// Whether its CMPXCHG16B is right; QEMU 7's is not, and is then hidden from the guest.
        cx16: bool,
    },
}

/// Whom the guest can reach.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// There is no network card.
    None,
    /// A card with DHCP and forwarded ports; the guest reaches nothing outside.
    #[default]
    Restricted,
    /// A card through which the guest reaches whatever the host reaches.
    User,
    /// A card in a network of the machine's own ([`crate::vm::netns`]): forwarded ports are reached through
    /// [`crate::vm::Vm::connect`], and the guest reaches nothing but the metadata service that its platform has.
    Isolated,
}

/// A TCP port of 127.0.0.1 that leads to a port of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Forward {
    /// On the host.
    pub host: u16,
    /// In the guest.
    pub guest: u16,
}

/// How the bytes of a disk image are laid out in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// As they are.
    Raw,
    /// QEMU's format.
    Qcow2,
}

impl Format {
    /// QEMU's name of the format.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        }
    }
}

/// UEFI's code and this machine's own copy of its variables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Flash {
    /// The firmware, read-only.
    pub code: PathBuf,
    /// Its variables, written to by the guest.
    pub variables: PathBuf,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// UEFI flash; SeaBIOS without it.
    pub flash: Option<Flash>,
    /// What runs it.
    pub accel: Accel,
    /// Main memory; whole mebibytes count.
    pub memory: Bytes,
    /// Number of processors.
    pub cpus: u32,
    /// The image, opened read-only.
    pub image: PathBuf,
    /// The image's format.
    pub format: Format,
    /// The qcow2 file that takes all writes.
    pub overlay: PathBuf,
    /// How the disk is attached.
    pub bus: Bus,
    /// What it pretends to be.
    pub platform: Platform,
    /// Whom the guest can reach.
    pub network: Network,
    /// Forwarded ports.
    pub forwards: Vec<Forward>,
    /// Files whose text becomes an SMBIOS string of type 11, where systemd looks for credentials.
    pub credentials: Vec<PathBuf>,
    /// Whether there is a virtio-serial controller for a [`crate::vm::Channel`].
    pub channel: bool,
    /// A guest that resets itself is started again (true), or ends the machine (false).
    pub reboots: bool,
    /// Whether there is a screen, of which [`crate::vm::Vm::screenshot`] takes a picture.
    pub screen: bool,
    /// What its clock says at the start, in UTC; the host's time when not given.
    pub clock: Option<Timestamp>,
}

/// PCI address name of the virtio-serial bus.
pub(crate) const PORTS_BUS: &str = "ports";

impl Machine {
    /// QEMU's arguments, without the program. The monitor speaks on file descriptor 0 and the serial console on 1, both
    /// of them sockets that [`crate::vm::process`] hands over.
    #[must_use]
    pub fn argv(&self) -> Vec<OsString> {
        let mut argv = Argv::default();
        argv.flags(&["-nodefaults", "-no-user-config"]);
        argv.pair("-display", "none");
        argv.pair("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
        self.processor(&mut argv);
        self.console(&mut argv);
        self.disk(&mut argv);
        self.card(&mut argv);
        argv.pair("-device", "virtio-rng-pci");
        argv.pair("-device", "pvpanic-pci");
        argv.0.extend(self.platform.words());
        for file in &self.credentials {
            argv.path("-smbios", "type=11,path=", file, "");
        }
        if self.screen {
            argv.pair("-device", "VGA");
        }
        if let Some(clock) = self.clock {
            argv.pair("-rtc", &format!("base={}", clock.to_string().trim_end_matches('Z')));
        }
        argv.pair("-action", if self.reboots { "reboot=reset" } else { "reboot=shutdown" });
        argv.0
    }

    fn processor(&self, argv: &mut Argv) {
        // Without graphics SeaBIOS speaks on the serial port; OVMF does so anyway.
        argv.pair("-machine", if self.flash.is_some() { "q35" } else { "q35,graphics=off" });
        let (accel, cpu) = match self.accel {
            Accel::Kvm => ("kvm", "host"),
            Accel::Emulation { cx16: true } => ("tcg,thread=multi", "max"),
            Accel::Emulation { cx16: false } => ("tcg,thread=multi", "max,-cx16"),
        };
        argv.pair("-accel", accel);
        argv.pair("-cpu", cpu);
        argv.pair("-m", &(self.memory.0 / MIB).to_string());
        argv.pair("-smp", &self.cpus.to_string());
        argv.pair("-boot", "strict=on");
        if let Some(flash) = &self.flash {
            argv.path("-drive", "if=pflash,unit=0,format=raw,readonly=on,file=", &flash.code, "");
            argv.path("-drive", "if=pflash,unit=1,format=raw,file=", &flash.variables, "");
        }
    }

    fn console(&self, argv: &mut Argv) {
        argv.pair("-chardev", "socket,id=monitor,fd=0");
        argv.pair("-mon", "chardev=monitor,mode=control");
        argv.pair("-chardev", "socket,id=serial,fd=1");
        argv.pair("-serial", "chardev:serial");
        if self.channel {
            // The 31 ports that it has else come with 64 queues, which the guest sets up and QEMU's main loop polls all the time:
            // one port is plugged in at a time.
            argv.pair("-device", &format!("virtio-serial-pci,id={PORTS_BUS},max_ports=4,ioeventfd=off"));
        }
    }

    fn disk(&self, argv: &mut Argv) {
        let read_only = ",read-only=on,auto-read-only=off";
        argv.path("-blockdev", "driver=file,node-name=image-file,filename=", &self.image, read_only);
        let image = format!("driver={},node-name=image,file=image-file,read-only=on", self.format.name());
        argv.pair("-blockdev", &image);
        // The overlay is thrown away, so that nothing needs to reach the platters.
        let unsafe_cache = ",discard=unmap,cache.no-flush=on";
        argv.path("-blockdev", "driver=file,node-name=disk-file,filename=", &self.overlay, unsafe_cache);
        argv.pair(
            "-blockdev",
            "driver=qcow2,node-name=disk,file=disk-file,backing=image,discard=unmap,cache.no-flush=on",
        );
        let serial = self.platform.instance().map_or("kiln0".to_owned(), Instance::volume_serial);
        argv.pair(
            "-device",
            &match self.bus {
                Bus::Virtio => "virtio-blk-pci,drive=disk,bootindex=1".to_owned(),
                Bus::Nvme => format!("nvme,drive=disk,serial={serial},bootindex=1"),
            },
        );
    }

    fn card(&self, argv: &mut Argv) {
        let mut netdev = match self.network {
            Network::None => return,
            Network::Restricted => "user,id=net0,restrict=on".to_owned(),
            Network::User => "user,id=net0".to_owned(),
            Network::Isolated => "user,id=net0,ipv6=off".to_owned(),
        };
        // No option ROM: nothing boots from the network.
        let mut card = "virtio-net-pci,netdev=net0,romfile=".to_owned();
        if let Some(instance) = self.platform.instance() {
            netdev += &format!(",{}", instance.netdev());
            card += &format!(",mac={}", instance.mac);
        }
        for Forward { host, guest } in &self.forwards {
            netdev += &format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}");
        }
        argv.pair("-netdev", &netdev);
        argv.pair("-device", &card);
    }
}

#[derive(Default)]
struct Argv(Vec<OsString>);

impl Argv {
    fn flags(&mut self, flags: &[&str]) {
        self.0.extend(flags.iter().map(OsString::from));
    }

    fn pair(&mut self, option: &str, value: &str) {
        self.0.extend([option.into(), value.into()]);
    }

    /// An option whose value holds a path: QEMU reads a doubled comma as a comma.
    fn path(&mut self, option: &str, before: &str, path: &Path, after: &str) {
        let mut value = before.as_bytes().to_vec();
        for &byte in path.as_os_str().as_bytes() {
            value.extend(if byte == b',' { &b",,"[..] } else { std::slice::from_ref(&byte) });
        }
        value.extend_from_slice(after.as_bytes());
        self.0.extend([option.into(), OsString::from_vec(value)]);
    }
}

/// The arguments as one line that a shell reads back into the same arguments.
#[must_use]
pub fn shell_line<'a>(argv: impl IntoIterator<Item = &'a OsString>) -> String {
    let words: Vec<String> = argv.into_iter().map(|word| quoted(word)).collect();
    words.join(" ")
}

fn quoted(word: &OsStr) -> String {
    let text = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+,.:/@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            flash: None,
            accel: Accel::Emulation { cx16: true },
            memory: Bytes(1 << 30),
            cpus: 2,
            image: "/out/server.raw".into(),
            format: Format::Raw,
            overlay: "/run/overlay.qcow2".into(),
            bus: Bus::Virtio,
            platform: Platform::Plain,
            network: Network::Restricted,
            forwards: vec![Forward { host: 2222, guest: 22 }],
            credentials: vec![],
            channel: false,
            reboots: true,
            screen: false,
            clock: None,
        }
    }

    #[test]
    fn the_plain_machine() {
        assert_eq!(
            shell_line(&machine().argv()).replace(" -", "\n-"),
            "-nodefaults\n-no-user-config\n-display none\n\
             -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny\n\
             -machine q35,graphics=off\n-accel tcg,thread=multi\n-cpu max\n-m 1024\n-smp 2\n-boot strict=on\n\
             -chardev socket,id=monitor,fd=0\n-mon chardev=monitor,mode=control\n\
             -chardev socket,id=serial,fd=1\n-serial chardev:serial\n\
             -blockdev driver=file,node-name=image-file,filename=/out/server.raw,read-only=on,auto-read-only=off\n\
             -blockdev driver=raw,node-name=image,file=image-file,read-only=on\n\
             -blockdev driver=file,node-name=disk-file,filename=/run/overlay.qcow2,discard=unmap,cache.no-flush=on\n\
             -blockdev driver=qcow2,node-name=disk,file=disk-file,backing=image,discard=unmap,cache.no-flush=on\n\
             -device virtio-blk-pci,drive=disk,bootindex=1\n\
             -netdev user,id=net0,restrict=on,hostfwd=tcp:127.0.0.1:2222-:22\n\
             -device virtio-net-pci,netdev=net0,romfile=\n\
             -device virtio-rng-pci\n-device pvpanic-pci\n-action reboot=reset"
        );
    }

    #[test]
    fn uefi_nvme_kvm_and_credentials() {
        let flash = Flash { code: "/fw/CODE.fd".into(), variables: "/run/a,b/vars.fd".into() };
        let machine = Machine {
            flash: Some(flash),
            accel: Accel::Kvm,
            bus: Bus::Nvme,
            network: Network::None,
            credentials: vec!["/run/c".into()],
            channel: true,
            reboots: false,
            clock: Some(Timestamp(2_524_607_999)),
            ..machine()
        };
        let line = shell_line(&machine.argv());
        for part in [
            "-machine q35 -accel kvm -cpu host",
            "-drive if=pflash,unit=0,format=raw,readonly=on,file=/fw/CODE.fd",
            "-drive if=pflash,unit=1,format=raw,file=/run/a,,b/vars.fd",
            "-device nvme,drive=disk,serial=kiln0,bootindex=1",
            "-device virtio-serial-pci,id=ports,max_ports=4,ioeventfd=off",
            "-smbios type=11,path=/run/c",
            "-rtc base=2049-12-31T23:59:59",
            "-action reboot=shutdown",
        ] {
            assert!(line.contains(part), "{part} is missing in {line}");
        }
        assert!(!line.contains("netdev"), "{line}");
    }

    #[test]
    fn an_instance_has_the_numbers_that_its_metadata_tells() {
        let mut instance = Instance::new("test");
        instance.private_ip = std::net::Ipv4Addr::new(172, 31, 16, 15);
        let (mac, uuid, id) = (instance.mac.clone(), instance.uuid, instance.instance_id.clone());
        let serial = instance.volume_id.replace('-', "");
        let platform = Platform::Ec2(Box::new(instance));
        let machine = Machine { platform, bus: Bus::Nvme, network: Network::Isolated, ..machine() };
        let argv = machine.argv();
        for part in [
            "type=0,vendor=Amazon EC2,version=1.0,date=10/16/2017".to_owned(),
            format!("type=1,manufacturer=Amazon EC2,product=m7i.large,serial={uuid},uuid={uuid}"),
            format!("type=2,manufacturer=Amazon EC2,asset={id}"),
            "type=3,manufacturer=Amazon EC2,asset=Amazon EC2".to_owned(),
            format!("nvme,drive=disk,serial={serial},bootindex=1"),
            "user,id=net0,ipv6=off,net=172.31.16.0/20,host=172.31.16.1,dhcpstart=172.31.16.15,dns=172.31.16.2,\
             hostname=ip-172-31-16-15,domainname=ec2.internal,hostfwd=tcp:127.0.0.1:2222-:22"
                .to_owned(),
            format!("virtio-net-pci,netdev=net0,romfile=,mac={mac}"),
        ] {
            assert!(argv.contains(&OsString::from(&part)), "{part} is missing in {argv:?}");
        }
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        let words = ["plain".into(), "two words".into(), "it's".into(), OsString::new()];
        assert_eq!(shell_line(&words), r"plain 'two words' 'it'\''s' ''");
    }
}
