//! The inner side of [`super::install`]: packages become a configured tree.
//!
//! The order matters: see the steps of [`run`]. It is the one in which nothing differs from what apt and dpkg make of the same
//! packages, although all of them are unpacked at once and in parallel.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::ahead::Ahead;
use super::capture::Capture;
use super::error::{Doing, Failure, Inner};
use super::extract::Root;
use super::fast::Stubs;
use super::scripts::{Ran, Runner};
use super::serve::Servers;
use super::unpack::{Package, Unpacker, read_all};
use super::wire::{Outcome, Teller};
use super::{DUMP, InstallJob, LOG, PACK, ROOT, Timing, mounts, wipe};
use crate::source::debian::dpkg::{self, Meta, Order};

/// Files of the scratch folder that stay open after it is out of sight.
pub(super) struct Outputs {
    pub dump: File,
    pub pack: File,
    pub log: File,
}

impl Outputs {
    pub fn open(scratch: &Path) -> Inner<Outputs> {
        let open = |name: &str| {
            let mut options = File::options();
            options.write(true).create(true);
            if name == LOG {
                options.append(true)
            } else {
                options.truncate(true)
            };
            options.open(scratch.join(name)).doing("opening a file of the scratch folder")
        };
        Ok(Outputs { dump: open(DUMP)?, pack: open(PACK)?, log: open(LOG)? })
    }
}

/// Seconds since the epoch by the host's clock: only to tell what was changed in the sandbox from what was not.
pub(super) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

/// Measures phases.
pub(super) struct Clock {
    last: Instant,
    pub timings: Vec<Timing>,
}

impl Clock {
    pub fn new() -> Clock {
        Clock { last: Instant::now(), timings: Vec::new() }
    }

    pub fn lap(&mut self, phase: &str) {
        let seconds = self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
        self.timings.push(Timing { phase: phase.to_owned(), seconds });
    }
}

/// Captures the tree that is the root now, tells it, and deletes it unless it ends with its mount.
pub(super) fn hand_over(
    capture: &Capture<'_>,
    in_memory: bool,
    mut outputs: Outputs,
    clock: &mut Clock,
) -> Inner<Outcome> {
    mounts::uncover()?;
    let (tree, pack) = capture.run(Path::new("/"), &mut outputs.pack)?;
    outputs.dump.write_all(tree.dump().as_bytes()).doing("writing the tree")?;
    clock.lap("capture");
    if in_memory {
        return Ok(Outcome { pack, timings: std::mem::take(&mut clock.timings) });
    }
    // Here, as what belongs to mapped users can't be deleted from outside.
    wipe::empty(Path::new("/")).doing("deleting the scratch tree")?;
    clock.lap("delete");
    Ok(Outcome { pack, timings: std::mem::take(&mut clock.timings) })
}

/// Installs `job`'s packages below `scratch`.
pub(super) fn run(job: &InstallJob, scratch: &Path, teller: &Teller) -> Inner<Outcome> {
    let started = now() - 1;
    let mut clock = Clock::new();
    let outputs = Outputs::open(scratch)?;
    let runner = Runner::new(outputs.log.try_clone().doing("opening the log")?, job.epoch);
    let paths: Vec<PathBuf> = job.packages.iter().map(|p| p.path.clone()).collect();
    let mut packages = read_all(&paths)?;
    check(&packages, job)?;
    let metas: Vec<Meta> = packages.iter().map(|p| p.meta.clone()).collect();
    let order = dpkg::order(&metas);
    for &index in &order.essential {
        packages[index].late = false;
    }
    clock.lap("read");

    // 1. Files, but for packages that divert others' files.
    let host = scratch.join(ROOT);
    let in_memory = mounts::prepare(&host, unpacked_size(&packages))?;
    let outside = Root::open(&host).doing("opening the scratch tree")?;
    let mut unpacker = Unpacker::new(&outside, &packages, ranks(&order), teller);
    unpacker.unpack_early()?;
    // 2. dpkg's database, as if it had unpacked them.
    for file in dpkg::database(&unpacker.unpacked(), job.arch) {
        outside
            .write(file.path.as_bytes(), &file.bytes, file.mode, file.mtime)
            .doing_at("writing", file.path.as_bytes())?;
    }
    for folder in ["updates", "parts", "alternatives"] {
        let path = format!("{}/{folder}", dpkg::ADMIN_DIR);
        outside.dir_made(path.as_bytes()).doing_at("making", path.as_bytes())?;
    }
    clock.lap("unpack");

    mounts::enter(&host)?;
    let inside = Root::open(Path::new("/")).doing("opening the tree")?;
    let policy = Policy::place()?;
    let stubs = Stubs::place()?;
    let configure = Configure { runner: &runner, packages: &packages, teller, total: packages.len() as u64 };
    // 3. and 4. The essential packages.
    configure.preinst(&order.essential)?;
    clock.lap("preinst of essential packages");
    let names: Vec<String> = order.essential.iter().map(|&i| packages[i].meta.name.clone()).collect();
    configure.dpkg(
        &[&["--no-triggers", "--configure"], names.iter().map(String::as_str).collect::<Vec<_>>().as_slice()]
            .concat(),
    )?;
    clock.lap("configure essential packages");
    preseed(&runner, job)?;
    // 5. All others, and what diverts files of theirs.
    configure.preinst(&order.rest)?;
    let mut unpacker = unpacker.moved_to(&inside);
    unpacker.unpack_late()?;
    clock.lap("preinst");
    let servers = Servers::start(&runner)?;
    let ahead = std::thread::scope(|scope| {
        let ahead = scope.spawn(|| Ahead::make(&runner, job.epoch, started));
        configure.dpkg(&["--configure", "-a"])?;
        Ok(ahead.join().unwrap_or_default())
    })?;
    servers.end()?;
    clock.lap("configure");
    stubs.make_up(&runner, &ahead, job.epoch, started)?;
    clock.lap("batch");
    // 6. What nobody asked for.
    extended_states(job, &packages)?;
    policy.remove()?;
    wipe::wipe()?;
    clock.lap("wipe");
    teller.progress("capture", 0, 1, "");
    let known = HashMap::new();
    let capture = Capture { epoch: job.epoch, worked: started..=now() + 1, known: &known };
    hand_over(&capture, in_memory, outputs, &mut clock)
}

/// What the packages say they take when installed, and as much as scripts usually add.
fn unpacked_size(packages: &[Package]) -> u64 {
    let kib = |p: &Package| p.control.field("Installed-Size").and_then(|v| v.parse::<u64>().ok());
    let sum: u64 = packages.iter().map(|p| kib(p).unwrap_or(p.size >> 8).saturating_mul(1 << 10)).sum();
    sum + sum / 4 + (256 << 20)
}

/// Refuses what can't become one tree.
fn check(packages: &[Package], job: &InstallJob) -> Inner<()> {
    let mut known: BTreeMap<&str, &Package> = BTreeMap::new();
    for package in packages {
        let refuse = |why: String| Err(Failure::Package { path: package.path.clone(), why });
        let meta = &package.meta;
        if meta.arch != "all" && meta.arch != job.arch.debian() {
            return refuse(format!("it is for {}, the tree for {}", meta.arch, job.arch));
        }
        if let Some(other) = known.insert(&meta.name, package) {
            return refuse(format!(
                "it is {} {}, which {} is as well",
                meta.name,
                meta.version,
                other.path.display()
            ));
        }
    }
    for needed in ["base-files", "base-passwd", "dpkg"] {
        if !known.contains_key(needed) {
            let why = format!("the package {needed} is missing, without which no Debian system can be made");
            return Err(Failure::Failed { doing: "looking at the packages".into(), why });
        }
    }
    Ok(())
}

fn ranks(order: &Order) -> Vec<usize> {
    let mut ranks = vec![0; order.essential.len() + order.rest.len()];
    for (rank, &index) in order.essential.iter().chain(&order.rest).enumerate() {
        ranks[index] = rank;
    }
    ranks
}

/// Keeps services from being started: invoke-rc.d asks it.
struct Policy {
    made: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl Policy {
    fn place() -> Inner<Policy> {
        let made = !Path::new(POLICY).exists();
        if made {
            fs::write(POLICY, "#!/bin/sh\nexit 101\n").doing("writing policy-rc.d")?;
            fs::set_permissions(POLICY, std::os::unix::fs::PermissionsExt::from_mode(0o755))
                .doing("writing policy-rc.d")?;
        }
        Ok(Policy { made })
    }

    fn remove(self) -> Inner<()> {
        if self.made { fs::remove_file(POLICY).doing("deleting policy-rc.d") } else { Ok(()) }
    }
}

/// Writes the answers given to debconf.
fn preseed(runner: &Runner, job: &InstallJob) -> Inner<()> {
    let mut text = String::new();
    for (package, answers) in &job.debconf {
        for (question, answer) in answers {
            let line = [package, question, &answer.kind, &answer.value].map(|word| word.replace('\n', "\\n"));
            text.push_str(&line.join(" "));
            text.push('\n');
        }
    }
    if text.is_empty() {
        return Ok(());
    }
    let path = "/tmp/answers";
    fs::write(path, text).doing("writing debconf's answers")?;
    let mut command = runner.command("debconf-set-selections");
    command.arg(path);
    let ran = runner.run(command, &mut |_| {})?;
    let _ = fs::remove_file(path);
    if ran.status.success() { Ok(()) } else { Err(failed("debconf", "debconf-set-selections", ran)) }
}

fn failed(package: &str, script: &str, ran: Ran) -> Failure {
    Failure::Script {
        package: package.to_owned(),
        script: script.to_owned(),
        status: ran.status(),
        tail: ran.tail,
    }
}

fn extended_states(job: &InstallJob, packages: &[Package]) -> Inner<()> {
    if !Path::new("/var/lib/apt").is_dir() {
        return Ok(());
    }
    let automatic = job.packages.iter().zip(packages).filter(|(deb, _)| !deb.manual);
    let text = dpkg::extended_states(automatic.map(|(_, p)| p.meta.name.as_str()), job.arch);
    fs::write("/var/lib/apt/extended_states", text).doing("writing apt's extended_states")
}

/// Runs packages' scripts.
struct Configure<'a> {
    runner: &'a Runner,
    packages: &'a [Package],
    teller: &'a Teller,
    total: u64,
}

/// Where dpkg keeps the control files of the package that it unpacks; debconf learns from it whose script it runs.
const CONTROL_DIR: &str = "/var/lib/dpkg/tmp.ci";

impl Configure<'_> {
    /// Runs the preinst scripts of some packages, as dpkg does before it unpacks them.
    fn preinst(&self, which: &[usize]) -> Inner<()> {
        let version = self.packages.iter().find(|p| p.meta.name == "dpkg").map(|p| p.meta.version.as_str());
        for &index in which {
            let package = &self.packages[index];
            if !package.control.files.contains_key("preinst") {
                continue;
            }
            self.lay_out_control(package).doing("laying out control files")?;
            let list = format!("/{}/info/{}.list", dpkg::ADMIN_DIR, package.meta.info_name());
            let hidden = format!("{list}.hidden");
            fs::rename(&list, &hidden).doing("hiding a package's list")?;
            let mut command = self.runner.command(&format!("{CONTROL_DIR}/preinst"));
            command.arg("install").envs([
                ("DPKG_MAINTSCRIPT_PACKAGE", package.meta.name.as_str()),
                ("DPKG_MAINTSCRIPT_ARCH", package.meta.arch.as_str()),
                ("DPKG_MAINTSCRIPT_NAME", "preinst"),
                ("DPKG_MAINTSCRIPT_PACKAGE_REFCOUNT", "1"),
                ("DPKG_MAINTSCRIPT_DEBUG", "0"),
                ("DPKG_ADMINDIR", "/var/lib/dpkg"),
                ("DPKG_ROOT", ""),
                ("DPKG_FORCE", ""),
                ("DPKG_COLORS", "never"),
                ("DPKG_RUNNING_VERSION", version.unwrap_or_default()),
            ]);
            self.runner.note(&format!("preinst of {}", package.meta.name));
            let ran = self.runner.run(command, &mut |_| {})?;
            fs::rename(&hidden, &list).doing("showing a package's list")?;
            if !ran.status.success() {
                return Err(failed(&package.meta.name, "preinst", ran));
            }
        }
        let _ = fs::remove_dir_all(CONTROL_DIR);
        Ok(())
    }

    fn lay_out_control(&self, package: &Package) -> std::io::Result<()> {
        let _ = fs::remove_dir_all(CONTROL_DIR);
        fs::create_dir(CONTROL_DIR)?;
        for (name, file) in &package.control.files {
            let path = format!("{CONTROL_DIR}/{name}");
            fs::write(&path, &file.bytes)?;
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(file.mode & 0o755))?;
        }
        Ok(())
    }

    /// Runs dpkg and follows which package it is at.
    fn dpkg(&self, arguments: &[&str]) -> Inner<()> {
        let mut command = self.runner.command("dpkg");
        command.arg("--force-unsafe-io").args(arguments);
        let mut watch = Watch::default();
        let ran = self.runner.run(command, &mut |line| {
            if let Some(package) = watch.see(line) {
                self.teller.progress("configure", watch.count, self.total, &package);
            }
        })?;
        if ran.status.success() {
            return Ok(());
        }
        match watch.failure {
            Some(failure) => Err(failure),
            None => Err(failed("dpkg", "--configure", ran)),
        }
    }
}

/// Follows dpkg's output.
#[derive(Default)]
struct Watch {
    count: u64,
    lines: Vec<String>,
    broken: Option<String>,
    failure: Option<Failure>,
}

impl Watch {
    /// Looks at a line; answers the package whose turn it is, when that changes.
    fn see(&mut self, line: &str) -> Option<String> {
        let word = |rest: &str| rest.split([' ', '(']).next().unwrap_or_default().to_owned();
        let begun =
            line.strip_prefix("Setting up ").or_else(|| line.strip_prefix("Processing triggers for "));
        if let Some(rest) = begun {
            self.lines.clear();
            self.count += u64::from(line.starts_with("Setting up "));
            return Some(word(rest));
        }
        if let Some(rest) = line.strip_prefix("dpkg: error processing package ") {
            self.broken = Some(word(rest));
        } else if let Some(package) = self.broken.take() {
            // "installed X package post-installation script subprocess returned error exit status 1"
            if self.failure.is_none() {
                let script =
                    if line.contains("post-installation script") { "postinst" } else { "configuration" };
                let status =
                    line.rsplit_once("returned error ").map_or(line.trim(), |(_, status)| status.trim());
                let from = self.lines.len().saturating_sub(15);
                let (script, status) = (script.to_owned(), status.to_owned());
                self.failure =
                    Some(Failure::Script { package, script, status, tail: self.lines[from..].to_vec() });
            }
        } else {
            self.lines.push(line.to_owned());
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_script_is_found_in_what_dpkg_prints() {
        let mut watch = Watch::default();
        for line in [
            "Setting up good (1) ...",
            "Setting up bad (2:1) ...",
            "cannot frobnicate",
            "dpkg: error processing package bad (--configure):",
            " installed bad package post-installation script subprocess returned error exit status 3",
            "Errors were encountered while processing:",
        ] {
            watch.see(line);
        }
        let (package, script, status) = ("bad".to_owned(), "postinst".to_owned(), "exit status 3".to_owned());
        let tail = vec!["cannot frobnicate".to_owned()];
        assert_eq!(watch.failure, Some(Failure::Script { package, script, status, tail }));
        assert_eq!(watch.count, 2);
    }
}
