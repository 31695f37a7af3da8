//! Perl programs that packages' scripts call a hundred times, loaded once: most of what such a call takes is to read and
//! compile the program. A server is the program itself, unchanged, stopped after it was compiled and before it runs; a stub
//! that is bound over the program asks it for a fork that goes on from there with the stub's arguments, environment, folder
//! and files. Where no fork is to be had, the stub runs a copy of the program.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::error::{Doing, Inner};
use super::fast::DIR;
use super::scripts::Runner;

/// The programs: Perl scripts that read nothing behind `__DATA__`.
const PROGRAMS: [&str; 2] = ["/usr/bin/deb-systemd-helper", "/usr/share/debconf/frontend"];

/// How many calls of one program can be answered at once: `slot in 1 2 3 4` of the stub.
const SLOTS: u32 = 4;

const SERVER: &str = include_str!("serve.pl");
const STUB: &str = include_str!("serve_stub.sh");

/// The servers while they run. They end with [`Runner::run`], which ends every process that is left.
pub(super) struct Servers {
    bound: Vec<PathBuf>,
}

impl Servers {
    /// Starts a server for each program that is there and puts the stubs over them.
    pub fn start(runner: &Runner) -> Inner<Servers> {
        let mut servers = Servers { bound: Vec::new() };
        // Where the host's /proc is bound, its numbers are not ours.
        let own = fs::read_link("/proc/self").ok();
        if own != Some(PathBuf::from(std::process::id().to_string())) || !Path::new("/usr/bin/perl").exists()
        {
            return Ok(servers);
        }
        for program in PROGRAMS.map(Path::new) {
            let is_file = fs::symlink_metadata(program).is_ok_and(|m| m.is_file());
            let text = fs::read_to_string(program).unwrap_or_default();
            if is_file && text.starts_with("#!/usr/bin/perl") && !text.contains("__DATA__") {
                servers.serve(runner, program, &text)?;
            }
        }
        Ok(servers)
    }

    fn serve(&mut self, runner: &Runner, program: &Path, text: &str) -> Inner<()> {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        let folder = PathBuf::from(format!("{DIR}/{name}"));
        fs::create_dir_all(&folder).doing("making a folder for a server")?;
        let write = |name: &str, text: &str| fs::write(folder.join(name), text).doing("writing a server");
        write("original", text)?;
        write("serve.pl", SERVER)?;
        let (path, at) = (program.display(), folder.display());
        write("program", &format!("INIT {{ require '{at}/serve.pl' }}\n#line 1 \"{path}\"\n{text}"))?;
        let pipes: Vec<PathBuf> = std::iter::once("requests".to_owned())
            .chain((1..=SLOTS).map(|slot| format!("reply.{slot}")))
            .map(|name| folder.join(name))
            .collect();
        for pipe in &pipes {
            mkfifo(pipe, Mode::from_bits_truncate(0o600)).doing("making a pipe for a server")?;
        }
        let mut command = runner.command("/usr/bin/perl");
        command.arg(folder.join("program")).arg(&folder);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut server = command.spawn().doing("starting a server")?;
        let stub = STUB.replace("@PATH@", &path.to_string()).replace("@DIR@", &at.to_string());
        write("stub", &stub.replace("@PID@", &server.id().to_string()))?;
        let stub = folder.join("stub");
        fs::set_permissions(&stub, fs::Permissions::from_mode(0o755)).doing("writing a stub")?;
        mount(Some(&stub), program, None::<&str>, MsFlags::MS_BIND, None::<&str>).doing("placing a stub")?;
        self.bound.push(program.to_owned());
        // Open here for as long as the server lives, so that a stub neither waits for a reader that is gone nor, once the
        // server is, for an answer.
        let open = |path: &PathBuf| File::options().read(true).write(true).open(path);
        let requests = open(&pipes[0]).doing("opening a pipe of a server")?;
        std::thread::spawn(move || {
            let _ = server.wait();
            let answers: Vec<File> = pipes[1..].iter().filter_map(|pipe| open(pipe).ok()).collect();
            for mut answer in &answers {
                let _ = answer.write_all(b"!\n");
            }
            // Not closed: what is written there is to be found.
            std::mem::forget((requests, answers));
        });
        Ok(())
    }

    /// Takes the stubs away.
    pub fn end(self) -> Inner<()> {
        for program in &self.bound {
            umount2(program, MntFlags::MNT_DETACH).doing("taking a stub away")?;
        }
        Ok(())
    }
}
