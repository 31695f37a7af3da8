//! `kiln run`: boots an image in QEMU, with its console on the terminal or a login over SSH. The image stays as it is.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::Serialize;

use super::Context;
use super::report::{Failure, Status};
use super::session::ProfileArgs;
use super::terminal::{self, Leave};
use crate::bake::{ToolSet, is_disk};
use crate::host::interrupt;
use crate::store::Store;
use crate::units::{Bytes, MIB};
use crate::vm::credentials::Credential;
use crate::vm::disk::{DiskError, Image};
use crate::vm::machine::{Machine, shell_line};
use crate::vm::probe::{self, Wish};
use crate::vm::{Boots, Bus, Forward, Network, Prepared, Qemu, Setup, Vm, VmError, prepare};

/// Arguments of `kiln run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A profile, which is baked first when it has to be; or an image, raw or qcow2
    #[arg(value_name = "PROFILE|IMAGE")]
    target: PathBuf,
    /// Lead this TCP port of 127.0.0.1 to a port of the guest
    #[arg(short, long = "forward", value_name = "HOST:GUEST")]
    ports: Vec<PortPair>,
    /// Log in over SSH instead of showing the console; as root, with a key made for this run
    #[arg(long)]
    ssh: bool,
    /// Log in as this user, with keys of your own
    #[arg(long, requires = "ssh", value_name = "NAME")]
    user: Option<String>,
    /// Run this over SSH instead of a shell, and power off
    #[arg(last = true, requires = "ssh", value_name = "COMMAND")]
    command: Vec<OsString>,
    /// Which firmware boots it
    #[arg(long, value_enum, default_value_t = FirmwareArg::Bios)]
    firmware: FirmwareArg,
    /// How the disk is attached
    #[arg(long, value_enum, default_value_t = DiskArg::Virtio)]
    disk: DiskArg,
    /// Main memory
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse_memory)]
    memory: Bytes,
    /// Number of processors
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=255))]
    cpus: u32,
    /// A larger disk than the image's, to see it grow
    #[arg(long, value_name = "SIZE")]
    size: Option<Bytes>,
    /// Whom the guest can reach: nobody but through forwarded ports, whatever this host reaches, or no card at all
    #[arg(long, value_enum, default_value_t = NetArg::Restricted)]
    net: NetArg,
    /// What runs it; KVM is tried before it is used
    #[arg(long, value_enum, default_value_t = AccelArg::Auto)]
    accel: AccelArg,
    /// Which QEMU: the host's, or that of a tools tree in a folder [default: the locked one, else the host's]
    #[arg(long, value_name = "host|DIR", env = "KILN_QEMU")]
    qemu: Option<PathBuf>,
    /// Keep what the guest writes: a new qcow2 file over the image
    #[arg(long, value_name = "FILE")]
    keep: Option<PathBuf>,
    /// Go on from what a guest wrote earlier: the qcow2 file of `--keep`, or of a test that failed
    #[arg(long, value_name = "FILE", conflicts_with = "keep")]
    overlay: Option<PathBuf>,
    /// Only print QEMU's command line
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum FirmwareArg {
    /// SeaBIOS
    Bios,
    /// OVMF
    Uefi,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum DiskArg {
    /// virtio-blk
    Virtio,
    /// NVMe
    Nvme,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum NetArg {
    Restricted,
    User,
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum AccelArg {
    Auto,
    Kvm,
    Emulation,
}

impl AccelArg {
    /// What it asks for.
    pub(super) fn wish(self) -> Wish {
        match self {
            AccelArg::Auto => Wish::Auto,
            AccelArg::Kvm => Wish::Kvm,
            AccelArg::Emulation => Wish::Emulation,
        }
    }
}

/// `HOST:GUEST`, or one number for both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PortPair(Forward);

impl FromStr for PortPair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, guest) = text.split_once(':').unwrap_or((text, text));
        let port = |text: &str| match text.parse::<u16>() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(format!("`{text}` is no port: write HOST:GUEST, as in 8080:80")),
        };
        Ok(PortPair(Forward { host: port(host)?, guest: port(guest)? }))
    }
}

/// How long a guest may take to shut down by itself.
const POWER_DOWN: Duration = Duration::from_secs(60);
/// Within this an SSH server answers, under emulation on a busy host.
const SSH_LIMIT: Duration = Duration::from_secs(600);
/// Where clouds answer with their machines' credentials.
const METADATA: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), 80);

/// Boots the image.
///
/// # Errors
/// When there is no image or no QEMU, the boot fails, or the user interrupts it.
pub fn run(args: &Args, cx: &Context) -> Result<(), Failure> {
    if !is_profile(&args.target) {
        disk_of(&args.target)?;
    }
    free_ports(args)?;
    let store = super::store::open(cx)?;
    let scratch = store.scratch("vm")?;
    let (image, locked) = image_of(args, cx)?;
    let qemu = qemu_of(args.qemu.as_deref(), locked, &store)?;
    refuse_metadata(args)?;
    if let Some(overlay) = args.overlay.as_ref().filter(|o| !o.is_file()) {
        let missing = format!("there is no overlay {}", overlay.display());
        return Err(Failure::usage("overlay", missing).hint("`--keep FILE` begins a new one"));
    }
    let wish = args.accel.wish();
    let session = Session { args, cx, image, qemu, scratch: scratch.path() };
    if let Some(keep) = args.keep.as_deref().filter(|_| !args.dry_run) {
        let name = args.target.file_stem().unwrap_or_default().to_string_lossy();
        store.keep_under(keep, &name, &session.image)?;
    }
    session.run(wish)
}

/// Whether a path names a profile rather than an image: by its ending.
pub(super) fn is_profile(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    ["ncl", "toml", "yaml", "yml", "json"].contains(&extension)
}

/// The image at `path`: a file of a size and a beginning that disks to boot from have.
pub(super) fn disk_of(path: &Path) -> Result<Image, Failure> {
    let image = Image::open(path).map_err(|e| failure(&e.into()))?;
    if is_disk(path)? {
        return Ok(image);
    }
    let why = "neither an MBR nor a GUID partition table is at its beginning";
    Err(Failure::usage("no-image", format!("{}: no disk image: {why}", path.display())))
}

/// Refuses forwarded ports that are asked for twice, or that something on this host listens on already: QEMU would end
/// at once.
fn free_ports(args: &Args) -> Result<(), Failure> {
    let mut seen = BTreeSet::new();
    for Forward { host, guest } in args.ports.iter().map(|pair| pair.0) {
        if !seen.insert(host) {
            let message = format!("port {host} of 127.0.0.1 is forwarded twice");
            return Err(Failure::usage("port", message).hint("give each `-p` a port of its own"));
        }
        if args.dry_run {
            continue;
        }
        if let Err(e) = TcpListener::bind((Ipv4Addr::LOCALHOST, host)) {
            let message = format!("port {host} of 127.0.0.1 can't be forwarded: {e}");
            let hint = format!("forward another one, as in `-p {}:{guest}`", another(host));
            return Err(Failure::usage("port", message).hint(hint));
        }
    }
    Ok(())
}

/// A port that may do instead: one that needs no privilege.
fn another(port: u16) -> u16 {
    match port {
        ..1024 => 8000 + port,
        u16::MAX => 8080,
        port => port + 1,
    }
}

/// Less memory than this and not even a boot loader with its kernel fits.
const LEAST_MEMORY: Bytes = Bytes(64 * MIB);

/// Reads the size of main memory.
fn parse_memory(text: &str) -> Result<Bytes, String> {
    let size: Bytes = text.parse().map_err(|e| format!("{e}"))?;
    if size < LEAST_MEMORY {
        return Err(format!(
            "asked for {size}, a machine needs at least {LEAST_MEMORY}; write a unit, as in 1GiB"
        ));
    }
    Ok(size)
}

/// The image to boot, and the folder of the locked QEMU when it is a profile's, which is baked first.
fn image_of(args: &Args, cx: &Context) -> Result<(PathBuf, Option<PathBuf>), Failure> {
    if !is_profile(&args.target) {
        return Ok((args.target.clone(), None));
    }
    let profile = ProfileArgs::plain(args.target.clone());
    let request = profile.request(cx);
    profile.in_session(cx, |session| {
        let profile = session.evaluate(&request)?;
        let locked = if args.dry_run { session.locked_already(profile) } else { session.locked(profile) }?;
        let image = session.disk(&locked, &session.tree(&locked)?)?.image;
        let tools = args.qemu.is_none().then(|| session.tools(&locked, ToolSet::Vm)).transpose()?;
        Ok((image.path, tools))
    })
}

/// The QEMU that was asked for; else the profile's locked one, else that of any tools tree in the store, else the host's.
pub(super) fn qemu_of(asked: Option<&Path>, locked: Option<PathBuf>, store: &Store) -> Result<Qemu, Failure> {
    let found = match (asked, locked) {
        (Some(host), _) if host.as_os_str() == "host" => Qemu::host(),
        (Some(tree), _) => Qemu::tools(tree),
        (None, Some(tree)) => Qemu::tools(&tree),
        (None, None) => {
            let tools = store.dirs().unwrap_or_default().into_iter().find_map(|tree| Qemu::tools(&tree).ok());
            tools.map_or_else(Qemu::host, Ok)
        }
    };
    found.map_err(|e| Failure::of("qemu", &e).hint(if asked.is_none() { NO_QEMU } else { OTHER_QEMU }))
}

/// For an image without a profile there may be no locked QEMU at all.
const NO_QEMU: &str = "`kiln run PROFILE --dry-run` fetches the QEMU that a profile's lock names, which then runs images as well; \
    or install QEMU for x86";
const OTHER_QEMU: &str = "`--qemu host` takes the host's, `--qemu DIR` that of a tools tree";

/// A guest that reaches whatever the host reaches must not run where that includes credentials.
fn refuse_metadata(args: &Args) -> Result<(), Failure> {
    if args.net != NetArg::User || args.dry_run {
        return Ok(());
    }
    match TcpStream::connect_timeout(&METADATA, Duration::from_millis(300)) {
        Err(_) => Ok(()),
        Ok(_) => Err(Failure::usage(
            "metadata",
            "this host is a cloud machine: with `--net user` the guest could read its credentials at 169.254.169.254",
        )
        .hint("leave `--net` away and forward the ports that you need with `-p`")),
    }
}

pub(super) fn failure(error: &VmError) -> Failure {
    let told = Failure::of("run", error);
    match error {
        VmError::Disk(DiskError::File(_) | DiskError::NoImage { .. } | DiskError::TooSmall { .. }) => {
            told.status(Status::Usage)
        }
        VmError::Qemu(_) => told.hint(OTHER_QEMU),
        VmError::Paused { .. } if error.is_host_disk() => {
            told.hint("what the guest writes is kept in the store meanwhile: `kiln gc` frees room there, `--store DIR` names another place")
        }
        VmError::Ended { ending, .. } if ending.reason.is_none() => {
            told.hint("it was QEMU that ended, not the guest: was it killed for want of memory? (`dmesg` says)")
        }
        VmError::Paused { .. } => told.hint("`--accel emulation` needs no KVM"),
        VmError::Timeout { .. } => told.hint("without `--ssh` you see the whole console"),
        _ => told,
    }
}

/// One `kiln run`.
struct Session<'a> {
    args: &'a Args,
    cx: &'a Context,
    image: PathBuf,
    qemu: Qemu,
    scratch: &'a Path,
}

/// What `--dry-run` prints.
#[derive(Serialize)]
struct DryRun<'a> {
    argv: Vec<String>,
    machine: &'a Machine,
}

impl Session<'_> {
    /// Boots; under emulation when KVM breaks down.
    fn run(&self, wish: Wish) -> Result<(), Failure> {
        match self.boot(wish) {
            Err(e) if e.is_accelerator() && wish == Wish::Auto => {
                self.cx.progress.say("run", "KVM broke down under this guest: once more, under emulation");
                if let Some(keep) = &self.args.keep {
                    std::fs::remove_file(keep).map_err(|e| Failure::of("file", &e))?;
                }
                self.boot(Wish::Emulation).map_err(|e| failure(&e))
            }
            other => other.map_err(|e| failure(&e)),
        }
    }

    fn boot(&self, wish: Wish) -> Result<(), VmError> {
        let choice = probe::choose(&self.qemu, wish, self.scratch, None)?;
        let args = self.args;
        let mut setup = Setup::new(self.qemu.clone(), &self.image, choice.accel, self.scratch);
        setup.firmware = match args.firmware {
            FirmwareArg::Bios => Boots::Seabios,
            FirmwareArg::Uefi => Boots::Ovmf,
        };
        setup.bus = match args.disk {
            DiskArg::Virtio => Bus::Virtio,
            DiskArg::Nvme => Bus::Nvme,
        };
        setup.network = match args.net {
            NetArg::Restricted => Network::Restricted,
            NetArg::User => Network::User,
            NetArg::None => Network::None,
        };
        setup.memory = args.memory;
        setup.cpus = args.cpus;
        setup.disk_size = args.size;
        setup.keep = args.overlay.clone().or_else(|| args.keep.clone());
        setup.resume = args.overlay.is_some();
        setup.forwards = args.ports.iter().map(|p| p.0).collect();
        let login = if args.ssh { Some(Login::prepare(self, &mut setup)?) } else { None };
        let prepared = prepare(setup)?;
        if args.dry_run {
            return self.print(&prepared);
        }
        let name = self.image.file_name().unwrap_or_default().to_string_lossy();
        self.cx.progress.say("run", &format!("{name} under {}", choice.describe()));
        match login {
            None => self.console(prepared),
            Some(login) => self.ssh(prepared, &login),
        }
    }

    fn print(&self, prepared: &Prepared) -> Result<(), VmError> {
        let argv = prepared.argv();
        let words = argv.iter().map(|a| a.to_string_lossy().into_owned()).collect();
        let shown = DryRun { argv: words, machine: &prepared.machine };
        if let Some(keep) = &self.args.keep {
            let _ = std::fs::remove_file(keep);
        }
        let printed = self.cx.print(&shown, || shell_line(&argv));
        printed.map_err(|e| VmError::Start(std::io::Error::other(e.message)))
    }

    /// The console on the terminal, until the guest shuts down or the user leaves.
    fn console(&self, prepared: Prepared) -> Result<(), VmError> {
        if terminal::is_one() {
            self.cx.progress.say("run", "Ctrl-] switches the machine off");
        }
        self.cx.progress.clear();
        let vm = prepared.start(Some(Box::new(|bytes| {
            let mut out = std::io::stdout().lock();
            let _ = out.write_all(bytes).and_then(|()| out.flush());
        })))?;
        match terminal::attend(&vm) {
            Ok(Leave::Ended(ending)) if ending.reason.is_none() => {
                Err(VmError::Ended { what: "the guest".to_owned(), ending, tail: vm.tail() })
            }
            Ok(Leave::Ended(ending)) => {
                self.cx.progress.say("run", &ending.to_string());
                Ok(())
            }
            Ok(Leave::Asked) => {
                self.switch_off(vm);
                Ok(())
            }
            Err(e) => {
                self.switch_off(vm);
                Err(e)
            }
        }
    }

    /// What is kept is shut down properly; what is thrown away needs no care.
    fn switch_off(&self, vm: Vm) {
        if self.args.keep.is_some() || self.args.overlay.is_some() {
            self.cx.progress.say("run", "shutting down");
            let ending = vm.power_down(POWER_DOWN);
            self.cx.progress.say("run", &ending.to_string());
        }
    }

    fn ssh(&self, prepared: Prepared, login: &Login) -> Result<(), VmError> {
        let vm = prepared.start(None)?;
        login.wait(&vm, self.cx)?;
        self.cx.progress.clear();
        let mut ssh = login.command(self.args);
        tracing::debug!("runs {ssh:?}");
        let status = ssh.status().map_err(VmError::Start)?;
        self.switch_off(vm);
        interrupt::check()?;
        match status.success() {
            true => Ok(()),
            false => Err(VmError::Channel(format!("ssh ended with {status}"))),
        }
    }
}

/// How to log in over SSH.
struct Login {
    port: u16,
    /// A private key made for this run; nobody else's login needs one.
    key: Option<PathBuf>,
}

impl Login {
    /// Forwards a port and has the guest accept a new key for root, by a credential.
    fn prepare(session: &Session<'_>, setup: &mut Setup) -> Result<Login, VmError> {
        let port = match setup.forwards.iter().find(|f| f.guest == 22) {
            Some(forward) => forward.host,
            None => {
                let port = free_port().map_err(VmError::Start)?;
                setup.forwards.push(Forward { host: port, guest: 22 });
                port
            }
        };
        if session.args.user.is_some() {
            return Ok(Login { port, key: None });
        }
        let key = session.scratch.join("key");
        let public = session.scratch.join("key.pub");
        if !key.exists() {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "kiln run", "-f"]).arg(&key);
            let status = keygen.stdin(Stdio::null()).status().map_err(|e| missing("ssh-keygen", &e))?;
            if !status.success() {
                return Err(VmError::Start(std::io::Error::other(format!("ssh-keygen ended with {status}"))));
            }
        }
        let public = std::fs::read_to_string(&public).map_err(|e| missing("ssh-keygen's public key", &e))?;
        setup.credentials.push(Credential::ssh_key(&public));
        Ok(Login { port, key: Some(key) })
    }

    /// Waits until an SSH server says its name.
    fn wait(&self, vm: &Vm, cx: &Context) -> Result<(), VmError> {
        let task = cx.progress.task("run", "waiting for the guest's SSH server", 0);
        let (begun, mut lines) = (Instant::now(), 0);
        loop {
            let news = vm.news(&mut lines, "the guest's SSH server")?;
            if let Some(line) = news.iter().rev().find(|l| !l.trim().is_empty()) {
                task.at(0, line);
            }
            if self.greets() {
                return Ok(());
            }
            if begun.elapsed() > SSH_LIMIT {
                let what = "answer of an SSH server on the guest's port 22".to_owned();
                return Err(VmError::Timeout { what, limit: SSH_LIMIT, tail: vm.tail() });
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    fn greets(&self) -> bool {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let mut greeting = [0; 4];
        TcpStream::connect_timeout(&address, Duration::from_secs(1))
            .and_then(|mut stream| {
                stream.set_read_timeout(Some(Duration::from_secs(2)))?;
                stream.read_exact(&mut greeting)
            })
            .is_ok_and(|()| greeting == *b"SSH-")
    }

    /// The system's `ssh`. The guest's host key is new at every run, so that it is neither asked about nor kept.
    fn command(&self, args: &Args) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(["-p", &self.port.to_string()]);
        for option in ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"] {
            ssh.args(["-o", option]);
        }
        if let Some(key) = &self.key {
            ssh.args(["-o", "IdentitiesOnly=yes", "-i"]).arg(key);
        }
        ssh.arg(format!("{}@127.0.0.1", args.user.as_deref().unwrap_or("root")));
        ssh.args(&args.command);
        ssh
    }
}

fn missing(what: &str, error: &std::io::Error) -> VmError {
    VmError::Start(std::io::Error::new(error.kind(), format!("{what}: {error} (install OpenSSH's client)")))
}

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_has_a_lower_limit() {
        assert_eq!(parse_memory("64MiB"), Ok(LEAST_MEMORY));
        let error = parse_memory("1").unwrap_err();
        assert!(error.starts_with("asked for 1 B, a machine needs at least 64 MiB"), "{error}");
        assert!(parse_memory("lots").is_err());
    }

    #[test]
    fn another_port_is_proposed_without_overflow() {
        assert_eq!([80, 8080, u16::MAX].map(another), [8080, 8081, 8080]);
    }

    #[test]
    fn ports_are_pairs_or_one_for_both() {
        let pair = |text: &str| text.parse::<PortPair>().map(|p| (p.0.host, p.0.guest));
        assert_eq!((pair("8080:80"), pair("5432")), (Ok((8080, 80)), Ok((5432, 5432))));
        for wrong in ["", "0:80", "80:", "70000", "a:b", "1:2:3"] {
            assert!(pair(wrong).is_err(), "{wrong}");
        }
    }
}
