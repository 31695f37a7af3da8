//! Which machines an image is booted on, and what is checked on each: a value, made before anything is started.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{Check, What, derive};
use crate::digest::Digest;
use crate::system::test::Imds;
use crate::system::{Firmware, System};
use crate::tree::Tree;
use crate::units::{Bytes, GIB, MIB};

/// What a machine seems to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    /// A plain PC.
    Plain,
    /// An EC2 instance.
    Ec2,
}

/// The firmware that starts the boot loader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Boots {
    /// SeaBIOS: the classic PC BIOS.
    Seabios,
    /// OVMF: UEFI.
    Ovmf,
}

/// How the disk is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bus {
    /// virtio-blk on PCI, as on most clouds.
    Virtio,
    /// NVMe, as on EC2's Nitro machines.
    Nvme,
}

/// One machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MachinePlan {
    /// Its name, unique within the plan: `seabios-virtio`, `ec2-ovmf-nvme`, ….
    pub name: String,
    /// What it seems to be.
    pub platform: Platform,
    /// Its firmware.
    pub firmware: Boots,
    /// Its disk.
    pub disk: Bus,
    /// The user-data of an EC2 instance.
    pub user_data: Option<String>,
    /// What is checked once it is up, in this order.
    pub checks: Vec<Check>,
    /// Whether it is then rebooted and checked again: the name of the check that asks for it.
    pub reboot: Option<String>,
}

/// A whole test.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// The machines, in the order in which they are started.
    pub machines: Vec<MachinePlan>,
    /// What says the same on every machine, and takes its time: it is asked on the first that has no user-data.
    pub once: Vec<Check>,
    /// Firmware that the image is to boot under, for the checks of the disk.
    pub firmware: Firmware,
    /// Whether it is to have a console on the serial port.
    pub serial: bool,
    /// Main memory of each.
    pub memory: Bytes,
    /// Processors of each.
    pub cpus: u32,
    /// Size of their disks, when larger than the image.
    pub disk_size: Option<Bytes>,
    /// Seconds to boot, on a machine with KVM.
    pub boot_limit: u32,
    /// What EC2's metadata service wants of callers.
    pub imds: Imds,
}

/// What is known of the image's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskFacts {
    /// Its size.
    pub size: Bytes,
    /// Where its root partition begins, the last one, that grows.
    pub root: Bytes,
}

/// What of a plan is wanted; everything when nothing is said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Only {
    /// Only this platform.
    pub platform: Option<Platform>,
    /// Only this firmware.
    pub firmware: Option<Boots>,
    /// Only this bus.
    pub disk: Option<Bus>,
}

/// The checks of a plan by where they come from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Checks {
    /// Those made on every machine.
    pub everywhere: Vec<Check>,
    /// The one that asks for a reboot, if any does.
    pub reboot: Option<Check>,
    /// Those that boot a machine of their own.
    pub instances: Vec<Check>,
}

impl Checks {
    /// Sorts derived and written checks.
    #[must_use]
    pub fn of(derived: Vec<Check>, written: Vec<Check>) -> Checks {
        let mut checks = Checks { everywhere: derived, ..Checks::default() };
        for check in written {
            match check.what {
                What::Reboot => checks.reboot = checks.reboot.or(Some(check)),
                What::UserData { .. } => checks.instances.push(check),
                _ => checks.everywhere.push(check),
            }
        }
        checks
    }
}

/// Beyond the image's own size, so that growth shows.
const GROWTH: u64 = GIB;
/// A lookalike of an EC2 instance has a volume of at least this size: the smallest default.
const EC2_VOLUME: u64 = 8 * GIB;
/// A grown ext4 keeps this share of its partition for data, in percent: the rest holds inodes, journal and tables.
const DATA_SHARE: u64 = 90;

impl Plan {
    /// The plan for the image of `system`, whose root is `tree`; `written` are the profile's own checks.
    #[must_use]
    pub fn of_system(system: &System, tree: &Tree, disk: DiskFacts, written: Vec<Check>) -> Plan {
        let test = &system.test;
        let checks = Checks::of(derive::derived(system, tree), written);
        let grown = system.disk.grow.then(|| match test.disk_size {
            Some(size) => size,
            None if test.platforms.ec2 => Bytes((disk.size.0 + GROWTH).max(EC2_VOLUME)),
            None => Bytes(disk.size.0 + GROWTH),
        });
        let disk_size = grown.or(test.disk_size).filter(|size| *size > disk.size);
        let (once, mut everywhere) = once_apart(checks.everywhere);
        let mut plan = Plan {
            machines: Vec::new(),
            once,
            firmware: system.boot.firmware,
            serial: system.boot.consoles.iter().any(|c| c.starts_with("ttyS")),
            memory: if test.memory.0 == 0 { Bytes(GIB) } else { test.memory },
            cpus: test.cpus.max(1),
            disk_size,
            boot_limit: test.boot_limit.max(1),
            imds: test.imds,
        };
        if let Some(size) = disk_size.filter(|_| system.disk.grow && test.derived.mounts) {
            let at_least = (size.0 - disk.root.0.min(size.0)) / 100 * DATA_SHARE;
            everywhere.push(Check::new("the root has grown", What::RootSize { at_least }));
        }
        let buses = [(test.disks.virtio, Bus::Virtio), (test.disks.nvme, Bus::Nvme)];
        let buses: Vec<Bus> = buses.into_iter().filter(|(on, _)| *on).map(|(_, bus)| bus).collect();
        if test.platforms.plain {
            plan.add_plain(&buses, &everywhere);
        }
        if test.platforms.ec2 {
            plan.add_ec2(&everywhere, system.ssh.enable && system.cloud_init.enable);
        }
        if let (Some(machine), Some(check)) = (plan.machines.first_mut(), checks.reboot) {
            machine.reboot = Some(check.name);
        }
        for check in checks.instances {
            plan.add_instance(check);
        }
        plan
    }

    /// What is checked on one of its machines, in this order.
    pub fn checks_of<'a>(&'a self, machine: &'a MachinePlan) -> impl Iterator<Item = &'a Check> {
        let first = self.machines.iter().find(|m| m.user_data.is_none());
        let once = if first.is_some_and(|first| first.name == machine.name) { &self.once[..] } else { &[] };
        machine.checks.iter().chain(once)
    }

    /// The name of a check that another one on the same machine has as well.
    #[must_use]
    pub fn name_taken_twice(&self) -> Option<&str> {
        self.machines.iter().find_map(|machine| {
            let mut seen = BTreeSet::new();
            self.checks_of(machine).find(|check| !seen.insert(&check.name)).map(|check| check.name.as_str())
        })
    }

    /// The plan for an image of which nothing is known but what it boots under.
    #[must_use]
    pub fn of_image(firmware: Firmware, platform: Platform) -> Plan {
        let (once, checks) = once_apart(derive::of_any_system());
        let mut plan = Plan {
            machines: Vec::new(),
            once,
            firmware,
            serial: false,
            memory: Bytes(GIB),
            cpus: 2,
            disk_size: None,
            boot_limit: 120,
            imds: Imds::Required,
        };
        match platform {
            Platform::Plain => plan.add_plain(&[Bus::Virtio, Bus::Nvme], &checks),
            Platform::Ec2 => plan.add_ec2(&checks, true),
        }
        plan
    }

    fn firmwares(&self) -> Vec<Boots> {
        match self.firmware {
            Firmware::Bios => vec![Boots::Seabios],
            Firmware::Uefi => vec![Boots::Ovmf],
            Firmware::Both => vec![Boots::Seabios, Boots::Ovmf],
        }
    }

    fn add_plain(&mut self, buses: &[Bus], checks: &[Check]) {
        for firmware in self.firmwares() {
            for &disk in buses {
                self.add(Platform::Plain, firmware, disk, checks.to_vec());
            }
        }
    }

    fn add_ec2(&mut self, checks: &[Check], login: bool) {
        let mut checks = checks.to_vec();
        if self.imds == Imds::Required {
            checks.push(Check::new("the metadata service refuses version 1", What::ImdsV1Refused));
        }
        if login {
            checks.push(Check::new("login over SSH with the instance's key", What::SshLogin));
        }
        for firmware in self.firmwares() {
            self.add(Platform::Ec2, firmware, Bus::Nvme, checks.clone());
        }
    }

    /// A machine of its own for user-data.
    fn add_instance(&mut self, check: Check) {
        let What::UserData { text, checks } = check.what else { return };
        let Some(firmware) = self.firmwares().pop() else { return };
        self.machines.push(MachinePlan {
            name: format!("ec2 with {}", check.name),
            platform: Platform::Ec2,
            firmware,
            disk: Bus::Nvme,
            user_data: Some(text),
            checks,
            reboot: None,
        });
    }

    fn add(&mut self, platform: Platform, firmware: Boots, disk: Bus, checks: Vec<Check>) {
        let prefix = if platform == Platform::Ec2 { "ec2-" } else { "" };
        let name = format!("{prefix}{}-{}", firmware.word(), disk.word());
        self.machines.push(MachinePlan {
            name,
            platform,
            firmware,
            disk,
            user_data: None,
            checks,
            reboot: None,
        });
    }

    /// Leaves out the machines that are not wanted. What is done on one machine only moves to the first that is left.
    pub fn keep(&mut self, only: Only) {
        let reboot = self.machines.iter().find_map(|m| m.reboot.clone());
        self.machines.retain(|m| {
            only.platform.is_none_or(|p| p == m.platform)
                && only.firmware.is_none_or(|f| f == m.firmware)
                && only.disk.is_none_or(|d| d == m.disk)
        });
        if let (Some(first), Some(name)) = (self.machines.first_mut(), reboot) {
            first.reboot = Some(name);
        }
    }

    /// Identity of the plan: what makes a verdict the answer to it.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(serde_json::to_string(self).unwrap_or_default().as_bytes())
    }

    /// How much memory one machine takes of the host, QEMU's own included.
    #[must_use]
    pub fn footprint(&self) -> Bytes {
        Bytes(self.memory.0 + 400 * MIB)
    }
}

/// Checks that are made on one machine only, and the others.
fn once_apart(checks: Vec<Check>) -> (Vec<Check>, Vec<Check>) {
    checks.into_iter().partition(|check| matches!(check.what, What::Packages { .. }))
}

impl Boots {
    /// Its word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Boots::Seabios => "seabios",
            Boots::Ovmf => "ovmf",
        }
    }
}

impl Bus {
    /// Its word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Bus::Virtio => "virtio",
            Bus::Nvme => "nvme",
        }
    }
}

impl Platform {
    /// Its word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Platform::Plain => "plain",
            Platform::Ec2 => "ec2",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::test::{Disks, Platforms};

    fn system() -> System {
        let mut system = System::default();
        system.test.platforms = Platforms { plain: true, ec2: true };
        system.test.disks = Disks { virtio: true, nvme: true };
        system.test.derived.mounts = true;
        system.test.derived.packages = true;
        system.disk.grow = true;
        system
    }

    fn names(plan: &Plan) -> Vec<&str> {
        plan.machines.iter().map(|m| m.name.as_str()).collect()
    }

    const DISK: DiskFacts = DiskFacts { size: Bytes(2 * GIB), root: Bytes(66 * MIB) };

    #[test]
    fn the_whole_matrix() {
        let data = What::UserData { text: "#!/bin/sh\n".into(), checks: vec![] };
        let written = vec![Check::new("survives", What::Reboot), Check::new("hello", data)];
        let mut plan = Plan::of_system(&system(), &Tree::new(), DISK, written);
        assert_eq!(
            names(&plan),
            [
                "seabios-virtio",
                "seabios-nvme",
                "ovmf-virtio",
                "ovmf-nvme",
                "ec2-seabios-nvme",
                "ec2-ovmf-nvme",
                "ec2 with hello"
            ]
        );
        assert_eq!(plan.disk_size, Some(Bytes(8 * GIB)));
        assert_eq!(plan.machines[0].reboot.as_deref(), Some("survives"));
        assert!(plan.machines[0].checks.iter().any(|c| c.name == "the root has grown"));
        let verified = |plan: &Plan| -> Vec<bool> {
            plan.machines.iter().map(|m| plan.checks_of(m).any(|c| c.name == "packages")).collect()
        };
        assert_eq!(verified(&plan), [true, false, false, false, false, false, false]);
        let all = plan.digest();
        plan.keep(Only { firmware: Some(Boots::Ovmf), platform: Some(Platform::Plain), disk: None });
        assert_eq!(names(&plan), ["ovmf-virtio", "ovmf-nvme"]);
        assert_eq!(plan.machines[0].reboot.as_deref(), Some("survives"));
        assert_eq!(verified(&plan), [true, false]);
        assert_ne!(plan.digest(), all);
    }

    #[test]
    fn a_name_that_is_taken_twice_is_found() {
        let check =
            |name: &str| Check::new(name, What::Command { command: "true".into(), status: 0, output: None });
        let plan = |name: &str| Plan::of_system(&system(), &Tree::new(), DISK, vec![check(name)]);
        assert_eq!(plan("our own").name_taken_twice(), None);
        assert_eq!(plan("packages").name_taken_twice(), Some("packages"));
        assert_eq!(plan("the root has grown").name_taken_twice(), Some("the root has grown"));
    }

    #[test]
    fn only_what_the_image_boots_under() {
        let mut uefi = system();
        uefi.boot.firmware = Firmware::Uefi;
        uefi.test.platforms.ec2 = false;
        uefi.disk.grow = false;
        let plan = Plan::of_system(&uefi, &Tree::new(), DISK, vec![]);
        assert_eq!(names(&plan), ["ovmf-virtio", "ovmf-nvme"]);
        assert_eq!(plan.disk_size, None);
        assert_eq!(
            names(&Plan::of_image(Firmware::Bios, Platform::Plain)),
            ["seabios-virtio", "seabios-nvme"]
        );
    }
}
