//! `/usr/bin/kiln` of a running machine.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::error::{At, FileError};
use crate::generations::{Firmware, Generation, Running};
use crate::lustrate;
use crate::machine::{KILN, Machine, MachineError};
use crate::steps::{Steps, Stopped};
use crate::switch::{self, Outcome, SwitchError, Switched, Target};

const USAGE: &str = "\
kiln: the generations and the state of this machine

Usage: kiln COMMAND

  switch FILE         adds the generation in FILE (- for standard input), which the next boot starts
  generations         lists the generations; --json for programs
  lustrate            asks for a clean slate: the next boot begins with fresh state, the old one is kept in
                      /kiln/state.old-DATE; --now boots at once
  bless               notes that the running generation has come up (done by kiln-bless.service)
  unwell              starts anew when the running generation has not come up yet and there is another one to
                      fall back to (done by kiln-unwell.service)

Generation files come from `kiln build --format generation`, where images are built.
";

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error("{0}\n\n{USAGE}")]
    Usage(String),
    #[error("only root can do this: try `sudo kiln {0}`")]
    NotRoot(String),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error("{0}: {1}")]
    Switch(String, SwitchError),
    #[error(transparent)]
    Stopped(#[from] Stopped),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("this machine was not started from a generation that is on its disk: there is nothing to {0}")]
    NoGeneration(&'static str),
    #[error("this machine has no {KILN}: it was not started from a store of Kiln's")]
    NoStore,
    #[error("cannot run /usr/bin/systemctl to start the machine anew: {0}; `reboot -f` does without it")]
    Reboot(io::Error),
}

/// Does what the arguments ask for; gives the exit code.
#[must_use]
pub fn run(arguments: &[String]) -> i32 {
    match command(arguments) {
        Ok(text) => {
            // Who closed standard output doesn't want to know.
            let _ = io::Write::write_all(&mut io::stdout(), text.as_bytes());
            0
        }
        Err(e) => {
            eprintln!("kiln: {e}");
            if matches!(e, CliError::Usage(_)) { 2 } else { 1 }
        }
    }
}

/// A command and what it does with its one argument.
type Verb = fn(&str) -> Result<String, CliError>;

fn command(arguments: &[String]) -> Result<String, CliError> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["help" | "--help" | "-h"] => return Ok(USAGE.to_owned()),
        ["version" | "--version" | "-V"] => return Ok(format!("kiln {}\n", env!("CARGO_PKG_VERSION"))),
        [] => return Err(CliError::Usage("a command is missing".to_owned())),
        _ => {}
    }
    let (run, argument): (Verb, &str) = match words.as_slice() {
        ["switch", file] => (switch, file),
        ["generations"] => (generations, ""),
        ["generations", "--json"] => (generations, "--json"),
        ["lustrate"] => (lustrate, ""),
        ["lustrate", "--now"] => (lustrate, "--now"),
        ["bless"] => (bless, ""),
        ["unwell"] => (unwell, ""),
        _ => return Err(CliError::Usage(format!("`{}` is not understood", words.join(" ")))),
    };
    if !nix::unistd::geteuid().is_root() {
        return Err(CliError::NotRoot(words.join(" ")));
    }
    run(argument)
}

fn switch(file: &str) -> Result<String, CliError> {
    // Opened first: paths are meant as the caller's mounts show them.
    let from: Box<dyn Read> = match file {
        "-" => Box::new(io::stdin()),
        path => Box::new(File::open(path).at("open", path)?),
    };
    let machine = Machine::open()?;
    let generations = machine.roots.generations()?;
    let target = Target {
        running: machine.running(&generations),
        arch: Machine::arch().to_owned(),
        partition: machine.partition.clone(),
        keep: machine.config.generations,
        roots: machine.roots,
    };
    let switched = switch::switch(&target, from, &mut Steps::all())
        .map_err(|e| CliError::Switch(if file == "-" { "standard input" } else { file }.to_owned(), e))?;
    Ok(told(&switched, &target.running))
}

fn told(switched: &Switched, running: &Running) -> String {
    let Switched { generation, title, outcome, removed } = switched;
    let mut text = match outcome {
        Outcome::Added => format!("generation {generation} is there: {title}\n"),
        Outcome::There => format!("generation {generation} is there already: {title}\n"),
        Outcome::TriedAgain => {
            format!(
                "generation {generation} is there already and did not come up: it is tried again: {title}\n"
            )
        }
    };
    if running.generation != Some(*generation) {
        text.push_str("the next boot starts it; should it not come up, the machine goes back by itself\n");
    }
    if !removed.is_empty() {
        let numbers: Vec<String> = removed.iter().map(u32::to_string).collect();
        let _ = writeln!(text, "removed: {}", numbers.join(", "));
    }
    text
}

fn generations(format: &str) -> Result<String, CliError> {
    let machine = Machine::open()?;
    let generations = machine.roots.generations()?;
    let running = machine.running(&generations).generation;
    Ok(if format == "--json" {
        json(&generations, running, machine.firmware)
    } else {
        table(&generations, running, machine.firmware)
    })
}

fn title(generation: &Generation) -> &str {
    generation.entry.as_ref().map_or("its kernel image can't be read", |entry| &entry.title)
}

fn table(generations: &[Generation], running: Option<u32>, firmware: Firmware) -> String {
    let mut text = String::new();
    for g in generations.iter().rev() {
        let mark = if running == Some(g.number()) { '*' } else { ' ' };
        let standing = match g.left(firmware) {
            None => "good".to_owned(),
            Some(0) => "did not come up".to_owned(),
            Some(1) => "new, 1 try left".to_owned(),
            Some(left) => format!("new, {left} tries left"),
        };
        let system = g.system().unwrap_or_default();
        let short = system.get(..12).unwrap_or_default();
        let _ = writeln!(text, "{mark} {:>5}  {standing:<18} {short:<12}  {}", g.number(), title(g));
    }
    text
}

fn json(generations: &[Generation], running: Option<u32>, firmware: Firmware) -> String {
    let object = |g: &Generation| {
        let left = g.left(firmware).map_or("null".to_owned(), |left| left.to_string());
        let system = g.system().map_or("null".to_owned(), |system| quoted(&system));
        format!(
            "  {{\"generation\": {}, \"title\": {}, \"system\": {system}, \"running\": {}, \"good\": {}, \
             \"tries_left\": {left}}}",
            g.number(),
            quoted(title(g)),
            running == Some(g.number()),
            g.left(firmware).is_none(),
        )
    };
    let objects: Vec<String> = generations.iter().map(object).collect();
    format!("[\n{}\n]\n", objects.join(",\n"))
}

/// A text as JSON has it.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c < ' ' => {
                let _ = write!(quoted, "\\u{:04x}", c as u32);
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

fn bless(_: &str) -> Result<String, CliError> {
    let machine = Machine::open()?;
    let generations = machine.roots.generations()?;
    let running = machine.running(&generations).generation.ok_or(CliError::NoGeneration("bless"))?;
    let new = machine.roots.bless(running, &mut Steps::all())?;
    let before = if new { "" } else { " already" };
    Ok(format!("generation {running} is good{before}\n"))
}

fn unwell(_: &str) -> Result<String, CliError> {
    let machine = Machine::open()?;
    let generations = machine.roots.generations()?;
    let running = machine.running(&generations).generation;
    let (firmware, number) = (machine.firmware, running.ok_or(CliError::NoGeneration("fall back from"))?);
    if generations.iter().any(|g| g.number() == number && g.left(firmware).is_none()) {
        return Ok(format!("generation {number} has come up before: it goes on\n"));
    }
    let other = generations.iter().any(|g| g.number() != number && g.may_start(firmware));
    if !other {
        return Ok(format!(
            "generation {number} is not well, but there is none to fall back to: it goes on\n"
        ));
    }
    match reboot(&format!("generation {number} is not well: the machine starts anew\n"))? {}
}

fn lustrate(when: &str) -> Result<String, CliError> {
    let kiln = Path::new(KILN);
    if !kiln.join(crate::state::STATE).is_dir() {
        return Err(CliError::NoStore);
    }
    let text = std::fs::read_to_string(Path::new("/").join(crate::config::FILE)).unwrap_or_default();
    let (config, _) = crate::config::Config::parse(&text);
    lustrate::request(kiln)?;
    let mut text = if config.ephemeral {
        "this machine keeps no state but what is listed here, and that is not touched\n".to_owned()
    } else {
        "the next boot begins with a clean slate; the old state will be in /kiln/state.old-DATE\n".to_owned()
    };
    if !config.keep.is_empty() {
        let paths: Vec<String> = config.keep.iter().map(|path| format!("/{}", path.display())).collect();
        let _ = writeln!(text, "kept: {}", paths.join(", "));
    }
    if when == "--now" {
        match reboot(&text)? {}
    }
    text.push_str("to take it back: rm /kiln/lustrate\n");
    Ok(text)
}

/// Through systemd, so that services are stopped. It takes this process' place: the text is shown before.
fn reboot(text: &str) -> Result<Infallible, CliError> {
    let _ = io::Write::write_all(&mut io::stdout(), text.as_bytes());
    let arguments = [c"systemctl", c"--no-block", c"reboot"];
    nix::unistd::execv(c"/usr/bin/systemctl", &arguments).map_err(|e| CliError::Reboot(e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::menu::{EntryName, Standing, Tries};

    fn list() -> Vec<Generation> {
        let of = |generation, tries, grub| {
            let name = EntryName { generation, tries };
            Generation { name, file: name.to_string(), entry: None, grub }
        };
        let tries = |left, done| Some(Tries { left, done });
        vec![of(1, None, None), of(2, tries(0, 3), None), of(3, tries(3, 0), Some(Standing::Left(1)))]
    }

    #[test]
    fn generations_are_listed() {
        let line = |mark, number, standing| {
            format!("{mark}     {number}  {standing:<18} {:<12}  its kernel image can't be read\n", "")
        };
        let expected =
            [line(' ', 3, "new, 3 tries left"), line(' ', 2, "did not come up"), line('*', 1, "good")]
                .concat();
        assert_eq!(table(&list(), Some(1), Firmware::Uefi), expected);
        assert!(table(&list(), None, Firmware::Bios).contains("new, 1 try left"));
    }

    #[test]
    fn programs_are_told_the_same() {
        let text = json(&list(), Some(1), Firmware::Uefi);
        assert!(text.starts_with(
            "[\n  {\"generation\": 1, \"title\": \"its kernel image can't be read\", \"system\": null, \
             \"running\": true, \"good\": true, \"tries_left\": null},\n"
        ));
        assert!(text.ends_with("\"good\": false, \"tries_left\": 3}\n]\n"));
        assert_eq!(quoted("a\"\\\n"), "\"a\\\"\\\\\\u000a\"");
    }

    #[test]
    fn what_is_not_understood_is_said() {
        let error = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
            command(&words).unwrap_err().to_string()
        };
        assert!(error(&[]).starts_with("a command is missing\n\nkiln: the generations"));
        assert!(error(&["switch"]).starts_with("`switch` is not understood"));
        assert!(error(&["generations", "--yaml"]).starts_with("`generations --yaml` is not understood"));
        assert!(command(&["--version".to_owned()]).unwrap().starts_with("kiln "));
    }
}
