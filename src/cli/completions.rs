//! `kiln completions SHELL` and `kiln man DIR`: made from the same definitions as the command line itself.

use std::path::{Path, PathBuf};

use clap_complete::Shell;

use super::Context;
use super::report::Failure;
use crate::host::fs::write_atomically;

/// Arguments of `kiln completions`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// For which shell
    shell: Shell,
}

/// Prints the completion script of a shell.
///
/// # Errors
/// When standard output can't be written to.
pub fn run(args: &Args) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "kiln", &mut script);
    super::output(&script)
}

/// Arguments of `kiln man`.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// Folder to write the pages to, as in /usr/local/share/man/man1
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Writes the manual: a page for `kiln` and one for each verb.
///
/// # Errors
/// When a page can't be written.
pub fn man(args: &ManArgs, cx: &Context) -> Result<(), Failure> {
    let mut command = super::command().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    page(&command, "kiln", &args.folder, &mut pages)?;
    for verb in command.get_subcommands().filter(|c| !c.is_hide_set()) {
        page(verb, &format!("kiln-{}", verb.get_name()), &args.folder, &mut pages)?;
    }
    cx.print(&pages, || pages.iter().map(|p| format!("{}\n", p.display())).collect())
}

fn page(command: &clap::Command, name: &str, folder: &Path, pages: &mut Vec<PathBuf>) -> Result<(), Failure> {
    let mut text = Vec::new();
    let titled = command.clone().display_name(name.to_owned());
    let manual = clap_mangen::Man::new(titled).title(name.to_uppercase());
    manual.render(&mut text).map_err(|e| Failure::of("man", &e))?;
    let path = folder.join(format!("{name}.1"));
    write_atomically(&path, &text)?;
    pages.push(path);
    Ok(())
}
