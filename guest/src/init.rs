//! The first process of the initrd: from a kernel with nothing to a running system, or to a line that says why not.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::mount::MsFlags;
use nix::sys::reboot::{RebootMode, reboot};

use crate::cmdline::{self, CmdlineError, OnFailure, Request};
use crate::config::{self, Config};
use crate::console::Console;
use crate::copy;
use crate::disk::{self, DiskError};
use crate::error::{At, FileError};
use crate::generations::STORE;
use crate::lustrate::{self, Lustrated};
use crate::modules::Loader;
use crate::mounts;
use crate::state::{self, Places};
use crate::steps::{Steps, Stopped};
use crate::verity_device::{Image, SystemError};

/// How long the reason of a failure can be read before the machine starts anew.
const TIME_TO_READ: Duration = Duration::from_secs(10);
/// Where the initrd mounts the partition with store and state, and where the running system has it.
const KILN: &str = "/kiln";
/// Where the initrd puts the running system together.
const SYSROOT: &str = "/sysroot";
/// Where a part of the image is while what hides it is mounted.
const ASIDE: &str = "/aside";
/// Where a state in memory is while the mounts are made.
const MEMORY: &str = "/state";

/// Why a system can't be started.
#[derive(Debug, thiserror::Error)]
enum InitError {
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("{0} is not in the store: it was removed, or not completely written")]
    NotInStore(PathBuf),
    #[error(transparent)]
    System(#[from] SystemError),
    #[error(transparent)]
    State(#[from] Stopped),
    #[error(transparent)]
    File(#[from] FileError),
}

/// Starts the system that the kernel's command line names. Never returns: the system takes over, or the machine starts anew
/// or stops.
pub fn run() -> ! {
    let early = [("devtmpfs", "/dev", "mode=0755"), ("proc", "/proc", ""), ("sysfs", "/sys", "")]
        .into_iter()
        .try_for_each(|(kind, at, options)| mounts::kernel_file_system(kind, at, options));
    let console = Console::open();
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let arguments = cmdline::arguments(&line);
    let system = cmdline::value(&arguments, "kiln.system").unwrap_or("the system").to_owned();
    let error = match early.map_err(InitError::from).and_then(|()| start(&arguments, &console)) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    console.fail(format_args!("cannot start {system}: {error}"));
    give_up(OnFailure::of(&arguments), &console)
}

fn start(arguments: &[String], console: &Console) -> Result<Infallible, InitError> {
    let request = Request::of(arguments)?;
    let mut loader = Loader::open(Path::new("/modules"))?;
    loader.load_for_devices(arguments).iter().for_each(|e| console.warn(e));
    // While disks are still being looked for.
    loader.load_always(arguments).iter().for_each(|e| console.warn(e));
    mount_partition(&request, &mut loader, arguments, console)?;
    mount_system(&request, console)?;
    let places = Places { kiln: KILN.into(), image: SYSROOT.into(), system: request.system.clone() };
    lay_state_over(&places, &request, console)?;
    Ok(switch_root(&request.init)?)
}

/// Mounts the partition with store and state, as large as it can be if that is wanted.
fn mount_partition(
    request: &Request,
    loader: &mut Loader,
    arguments: &[String],
    console: &Console,
) -> Result<(), InitError> {
    let mut found = disk::wait(&request.partition, loader, arguments, console)?;
    if request.grow {
        match found.grow() {
            Ok(true) => console.say("the partition now reaches to the end of the disk"),
            Ok(false) => {}
            // A machine that is too small is better than none.
            Err(e) => console.warn(format_args!("the partition can't grow: {e}")),
        }
    }
    let gone = || DiskError::NotFound { partition: request.partition.clone(), disks: String::new() };
    let node = found.node(&found.partition).ok_or_else(gone)?;
    mounts::device(&node, Path::new(KILN), "ext4", MsFlags::MS_RELATIME, None)?;
    if request.grow
        && let Err(e) = disk::grow_file_system(&node, Path::new(KILN))
    {
        console.warn(format_args!("the file system can't grow: {e}"));
    }
    Ok(())
}

/// Mounts the system's image once it has proved to be the right one.
fn mount_system(request: &Request, console: &Console) -> Result<(), InitError> {
    let path = Path::new(KILN).join(STORE).join(&request.system);
    if !path.is_file() {
        return Err(InitError::NotInStore(path));
    }
    let image = Image::open(&path, request.roothash)?;
    if request.verify_all {
        image.check_data()?;
        console.say("every block of the system is as it was built");
    }
    let node = image.device()?;
    mounts::device(&node, Path::new(SYSROOT), "erofs", MsFlags::MS_RDONLY, None)?;
    Ok(())
}

/// Puts the machine's state over the system.
fn lay_state_over(places: &Places, request: &Request, console: &Console) -> Result<(), InitError> {
    let text = fs::read_to_string(places.image.join(config::FILE)).unwrap_or_default();
    let (config, wrong) = Config::parse(&text);
    wrong.iter().for_each(|line| console.warn(line));
    if config.ephemeral {
        let memory = Path::new(MEMORY);
        mounts::memory(memory)?;
        state::seed(places, memory)?;
        mounts::lay_over(&places.image, memory, Path::new(ASIDE))?;
        mounts::bind_kept(places, &config, memory)?;
        // This is what it asks for.
        copy::remove(&places.kiln.join(lustrate::MARKER))?;
        return Ok(());
    }
    let (outcome, said) =
        lustrate::lustrate(places, &config.keep, request.lustrate, SystemTime::now(), &mut Steps::all())?;
    said.iter().for_each(|message| console.warn(message));
    match outcome {
        Lustrated::Not => {}
        Lustrated::Done(old) => {
            console.say(format_args!("a clean slate; the old state is in {}", old.display()));
        }
        Lustrated::Failed(why) => console.warn(format_args!("no clean slate, the old state stays: {why}")),
    }
    state::prepare(places, &mut Steps::all())?.iter().for_each(|message| console.say(message));
    mounts::lay_over(&places.image, &places.state(), Path::new(ASIDE))?;
    Ok(())
}

/// Hands over to the system's own first process.
fn switch_root(init: &str) -> Result<Infallible, FileError> {
    let root = Path::new(SYSROOT);
    for mounted in ["/dev", "/proc", "/sys", KILN] {
        let to = root.join(&mounted[1..]);
        if !to.is_dir() {
            return Err(io::Error::from(io::ErrorKind::NotFound)).at("mount", to);
        }
        mounts::shift(Path::new(mounted), &to)?;
    }
    // The initrd's files lie in memory.
    if let Ok(metadata) = fs::symlink_metadata("/") {
        empty(Path::new("/"), metadata.dev());
    }
    std::env::set_current_dir(root).at("enter", root)?;
    mounts::shift(Path::new("."), Path::new("/"))?;
    nix::unistd::chroot(".").at("enter", root)?;
    std::env::set_current_dir("/").at("enter", "/")?;
    // The kernel hands what it doesn't know on its command line to the first process.
    let arguments = std::iter::once(init.to_owned()).chain(std::env::args().skip(1));
    let arguments: Vec<CString> = arguments.flat_map(CString::new).collect();
    let program = CString::new(init).unwrap_or_default();
    nix::unistd::execv(&program, &arguments).at("start", init)
}

/// Removes what is in a folder and on the same file system. What can't be removed stays.
fn empty(folder: &Path, device: u64) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.dev() != device => {}
            Ok(metadata) if metadata.is_dir() => {
                empty(&path, device);
                let _ = fs::remove_dir(&path);
            }
            _ => drop(copy::remove(&path)),
        }
    }
}

/// Ends a boot that failed, so that the boot loader may take another generation.
fn give_up(on_failure: OnFailure, console: &Console) -> ! {
    nix::unistd::sync();
    let mode = match on_failure {
        OnFailure::Reboot => {
            console.fail(format_args!("starting anew in {} seconds", TIME_TO_READ.as_secs()));
            std::thread::sleep(TIME_TO_READ);
            RebootMode::RB_AUTOBOOT
        }
        OnFailure::Halt => {
            console.fail("stopped");
            RebootMode::RB_HALT_SYSTEM
        }
    };
    loop {
        let _ = reboot(mode);
        std::thread::sleep(TIME_TO_READ);
    }
}
