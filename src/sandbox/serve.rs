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
        let folder = folder(program);
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
                let _ = answer.write_all(b"gone\n");
            }
            // Not closed: what is written there is to be found.
            std::mem::forget((requests, answers));
        });
        Ok(())
    }

    /// Takes the stubs away. Packages' scripts don't always look at how a program ended: an answer that was none has to be
    /// told here.
    pub fn end(self) -> Inner<()> {
        for program in &self.bound {
            umount2(program, MntFlags::MNT_DETACH).doing("taking a stub away")?;
            let call = fs::read_to_string(folder(program).join("broken"));
            if let Some(call) = call.ok().as_deref().and_then(|calls| calls.lines().next()) {
                let why = std::io::Error::other(format!("no answer to {} {call}", program.display()));
                return Err(why).doing("serving a program of packages' scripts");
            }
        }
        Ok(())
    }
}

/// Where a server of a program has its files.
fn folder(program: &Path) -> PathBuf {
    Path::new(DIR).join(program.file_name().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};
    use std::time::Duration;

    use super::*;

    /// A stub whose server is this test.
    struct Served(tempfile::TempDir);

    impl Served {
        fn new() -> Served {
            let folder = tempfile::tempdir().unwrap();
            let stub = STUB.replace("@PATH@", "/usr/bin/program");
            let stub = stub.replace("@DIR@", &folder.path().display().to_string());
            fs::write(folder.path().join("stub"), stub.replace("@PID@", &std::process::id().to_string()))
                .unwrap();
            for pipe in ["requests", "reply.1"] {
                mkfifo(&folder.path().join(pipe), Mode::from_bits_truncate(0o600)).unwrap();
            }
            Served(folder)
        }

        /// Calls the program; the request was made.
        fn call(&self) -> (Child, File) {
            let requests = self.0.path().join("requests");
            let requests = File::options().read(true).write(true).open(requests).unwrap();
            let mut command = Command::new("/bin/sh");
            command.arg(self.0.path().join("stub")).arg("enable").stdin(Stdio::null());
            (command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap(), requests)
        }

        /// The pipe of the answer, once the stub waits for it.
        fn answer(&self) -> File {
            File::options().write(true).open(self.0.path().join("reply.1")).unwrap()
        }
    }

    #[test]
    fn a_call_lasts_until_its_answer_is_closed() {
        let served = Served::new();
        let (mut call, _requests) = served.call();
        let mut answer = served.answer();
        answer.write_all(b"7\n").unwrap();
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(call.try_wait().unwrap(), None, "the next call would read this pipe's end");
        drop(answer);
        assert_eq!(call.wait().unwrap().code(), Some(7));
    }

    #[test]
    fn an_answer_that_is_none_is_remembered() {
        let served = Served::new();
        let (mut call, _requests) = served.call();
        drop(served.answer());
        assert_eq!(call.wait().unwrap().code(), Some(255));
        assert_eq!(fs::read_to_string(served.0.path().join("broken")).unwrap(), "enable: \n");
    }
}
