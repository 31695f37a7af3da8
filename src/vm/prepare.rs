//! From what is wanted to a machine that is ready to start: overlay, firmware variables and credentials as files in a
//! folder of its own, and QEMU's argv.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::credentials::{self, Credential};
use super::disk::{Image, create_overlay};
use super::ec2::{Instance, Platform};
use super::failure::{BootFailure, VmError};
use super::machine::{Accel, Boots, Bus, Flash, Forward, Machine, Network};
use super::qemu::Qemu;
use crate::date::Timestamp;
use crate::host::fs::FileError;
use crate::units::{Bytes, GIB};

/// What is wanted of a machine.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Which QEMU.
    pub qemu: Qemu,
    /// The image to boot, raw or qcow2; never written to.
    pub image: PathBuf,
    /// What runs the guest; see [`super::probe::choose`].
    pub accel: Accel,
    /// The firmware.
    pub firmware: Boots,
    /// How the disk is attached.
    pub bus: Bus,
    /// Main memory.
    pub memory: Bytes,
    /// Number of processors.
    pub cpus: u32,
    /// Size of the disk, when it is to be larger than the image.
    pub disk_size: Option<Bytes>,
    /// What it pretends to be. An instance always has [`Network::Isolated`].
    pub platform: Platform,
    /// Whom the guest can reach.
    pub network: Network,
    /// Forwarded ports.
    pub forwards: Vec<Forward>,
    /// Said to the guest's systemd.
    pub credentials: Vec<Credential>,
    /// Whether a [`super::Channel`] is wanted.
    pub channel: bool,
    /// Whether a guest that resets itself boots again.
    pub reboots: bool,
    /// Failures that the machine is expected to get over by itself: a boot loader with another system to fall back to.
    pub survives: Vec<BootFailure>,
    /// Whether the machine has a screen.
    pub screen: bool,
    /// What the guest's clock says at the start, in UTC; the host's time when not given.
    pub clock: Option<Timestamp>,
    /// Where the machine's own folder is made; it goes away with the machine.
    pub scratch: PathBuf,
    /// Keeps what the guest writes in this new file, instead of throwing it away.
    pub keep: Option<PathBuf>,
    /// Takes the file of `keep` as it is when it is there: what an earlier machine wrote to the same image.
    pub resume: bool,
    /// The `kiln` program, through which QEMU is started; this very program when not given.
    pub kiln: Option<PathBuf>,
}

impl Setup {
    /// A machine as most images want it: SeaBIOS, virtio, 1 GiB, 2 processors, and nothing reachable.
    #[must_use]
    pub fn new(qemu: Qemu, image: &Path, accel: Accel, scratch: &Path) -> Setup {
        Setup {
            qemu,
            image: image.to_owned(),
            accel,
            firmware: Boots::Seabios,
            bus: Bus::Virtio,
            memory: Bytes(GIB),
            cpus: 2,
            disk_size: None,
            platform: Platform::Plain,
            network: Network::Restricted,
            forwards: Vec::new(),
            credentials: Vec::new(),
            channel: false,
            reboots: true,
            survives: Vec::new(),
            screen: false,
            clock: None,
            scratch: scratch.to_owned(),
            keep: None,
            resume: false,
            kiln: None,
        }
    }

    /// The same machine as an EC2 instance: an NVMe disk, a network of its own, SSH's port forwarded.
    #[must_use]
    pub fn ec2(mut self, instance: Instance) -> Setup {
        self.platform = Platform::Ec2(Box::new(instance));
        self.bus = Bus::Nvme;
        self.network = Network::Isolated;
        self.forward(22);
        self
    }

    /// Forwards a port of the guest, for a machine with [`Network::Isolated`]: there every port of the other side is
    /// free, so that none has to be looked for.
    pub fn forward(&mut self, guest: u16) {
        if self.forwards.iter().all(|forward| forward.guest != guest) {
            // Those below 1024 are for privileged programs, in a namespace as well.
            let taken = |host: &u16| self.forwards.iter().any(|forward| forward.host == *host);
            let first = guest.max(1024);
            let host = (first..=u16::MAX).chain(1024..first).find(|host| !taken(host)).unwrap_or(first);
            self.forwards.push(Forward { host, guest });
        }
    }
}

/// A machine that is ready to start, and its folder.
#[derive(Debug)]
pub struct Prepared {
    /// What it is made of.
    pub machine: Machine,
    pub(super) qemu: Qemu,
    pub(super) kiln: Option<PathBuf>,
    pub(super) survives: Vec<BootFailure>,
    pub(super) folder: TempDir,
}

impl Prepared {
    /// QEMU's whole command line.
    #[must_use]
    pub fn argv(&self) -> Vec<OsString> {
        let mut argv = self.qemu.words();
        argv.extend(self.machine.argv());
        argv
    }
}

/// Makes the files that a machine needs.
///
/// # Errors
/// [`VmError`] when the image is none, QEMU's firmware is missing, or a file can't be written.
pub fn prepare(mut setup: Setup) -> Result<Prepared, VmError> {
    if let Some(instance) = setup.platform.instance() {
        instance.check()?;
        setup.network = Network::Isolated;
    }
    let image = Image::open(&setup.image)?;
    std::fs::create_dir_all(&setup.scratch).map_err(FileError::at("can't make", &setup.scratch))?;
    let folder = tempfile::Builder::new().prefix("vm-").tempdir_in(&setup.scratch);
    let folder = folder.map_err(FileError::at("can't make a folder in", &setup.scratch))?;
    let folder_path =
        std::path::absolute(folder.path()).map_err(FileError::at("can't find", folder.path()))?;
    let overlay = match &setup.keep {
        Some(keep) => std::path::absolute(keep).map_err(FileError::at("can't find", keep))?,
        None => folder_path.join("overlay.qcow2"),
    };
    if !(setup.resume && overlay.exists()) {
        create_overlay(&overlay, &image, setup.disk_size)?;
    }
    let flash = match setup.firmware {
        Boots::Seabios => None,
        Boots::Ovmf => Some(flash(&setup.qemu, &folder_path)?),
    };
    if setup.channel {
        setup.credentials.push(super::channel::credential());
    }
    let credentials = credentials::write(&setup.credentials, &folder_path)?;
    let machine = Machine {
        flash,
        accel: setup.accel,
        memory: setup.memory,
        cpus: setup.cpus,
        image: image.path,
        format: image.format,
        overlay,
        bus: setup.bus,
        platform: setup.platform,
        network: setup.network,
        forwards: setup.forwards,
        credentials,
        channel: setup.channel,
        reboots: setup.reboots,
        screen: setup.screen,
        clock: setup.clock,
    };
    Ok(Prepared { machine, qemu: setup.qemu, kiln: setup.kiln, survives: setup.survives, folder })
}

fn flash(qemu: &Qemu, folder: &Path) -> Result<Flash, VmError> {
    let (code, template) = qemu.ovmf()?;
    let variables = folder.join("uefi-variables.fd");
    let bytes = std::fs::read(&template).map_err(FileError::at("can't read", &template))?;
    std::fs::write(&variables, bytes).map_err(FileError::at("can't write", &variables))?;
    Ok(Flash { code, variables })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prepared_machine_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image.raw");
        std::fs::write(&image, [1; 4096]).unwrap();
        let scratch = folder.path().join("scratch");
        let qemu = Qemu::Host { program: "/usr/bin/qemu-system-x86_64".into() };
        let mut setup = Setup::new(qemu, &image, Accel::Emulation { cx16: true }, &scratch);
        setup.channel = true;
        let prepared = prepare(setup).unwrap();
        assert_eq!(prepared.argv()[0], "/usr/bin/qemu-system-x86_64");
        assert!(prepared.machine.overlay.is_file() && prepared.machine.credentials[0].is_file());
        drop(prepared);
        assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0);
    }
}
