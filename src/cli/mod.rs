//! The command line: one verb a file. What was typed ([`Cli`]) becomes what it means ([`Context`]) once, here.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

pub mod aws;
pub mod build;
pub mod completions;
pub mod doctor;
pub mod eval;
pub mod export;
pub mod gc;
pub mod generation;
pub mod images;
pub mod init;
pub mod internal;
mod internal_aws;
mod internal_upload;
pub mod layout;
pub mod lock;
pub mod plan;
pub mod progress;
pub mod publish;
pub mod report;
pub mod retire;
pub mod run;
pub mod session;
pub mod store;
mod terminal;
pub mod test;
pub mod tree;
pub mod verify;
pub mod why;

use progress::Progress;
use report::{Failure, Status};

/// Bakes golden machine images: a pure profile in, a tested, reproducible disk image out.
#[derive(Debug, Parser)]
#[command(name = "kiln", version, max_term_width = 100, styles = STYLES, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const AFTER_HELP: &str =
    "Exit status: 0 done, 1 failed, 2 usage or profile wrong, 3 smoke tests failed, 130 interrupted.";

/// Options that every verb takes.
#[derive(Debug, Args)]
struct Global {
    /// Print the result as JSON, for machines
    #[arg(long, global = true, help_heading = "Everywhere")]
    json: bool,
    // KILN_STORE is read where the default is: one that is set and empty counts as not set.
    /// Where results are kept [default: $KILN_STORE, else $XDG_CACHE_HOME/kiln]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Everywhere")]
    store: Option<PathBuf>,
    /// Say more: each step with its key, whether its result was kept, and how long it took; the programs that are run.
    /// Twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Everywhere")]
    verbose: u8,
    /// Show no progress: only the result, and what went wrong
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Everywhere")]
    quiet: bool,
}

/// The verbs.
#[derive(Debug, Subcommand)]
enum Verb {
    /// Write a starter profile that bakes as it is
    Init(init::Args),
    /// Print what a profile evaluates to, as JSON
    Eval(eval::Args),
    /// Resolve packages against their archives and write the lock
    Lock(lock::Args),
    /// Bake the image: raw, qcow2, or a generation for machines that run an earlier one
    Build(build::Args),
    /// Boot an image in QEMU, or what a profile bakes
    Run(run::Args),
    /// Boot an image on every machine that it is for, and check it there
    Test(test::Args),
    /// Show what publishing would do in each region; touch nothing
    Plan(plan::Args),
    /// Bake, test and publish: an AMI in every region of the profile
    Publish(publish::Args),
    /// Read an AMI's snapshot back and compare it with the image
    Verify(verify::Args),
    /// List what Kiln has published
    Images(images::Args),
    /// Remove images that retention doesn't keep, and what interrupted publications left
    Retire(retire::Args),
    /// Add a further generation to a disk of the store layout
    Generation(generation::Args),
    /// Say what the next build would do, and which input makes it so
    Why(why::Args),
    /// Print the image's file tree
    Tree(tree::Args),
    /// Print the disk's partition table
    Layout(layout::Args),
    /// Write a raw image as qcow2
    Export(export::Args),
    /// Say what the store holds, or verify it
    Store(store::Args),
    /// Free what no build needs any more
    Gc(gc::Args),
    /// Say what this host can do, and what to do about the rest
    Doctor(doctor::Args),
    /// Print the completion script of a shell
    Completions(completions::Args),
    /// Write the manual pages
    Man(completions::ManArgs),
}

/// What every verb needs to know of how it was called.
pub struct Context {
    /// Results are printed as JSON.
    pub json: bool,
    /// The store's folder, when one was named.
    pub store: Option<PathBuf>,
    /// Colours may be used on standard output and error.
    pub color: bool,
    /// Where long work shows how far it is.
    pub progress: Progress,
}

impl Context {
    fn new(global: Global) -> Context {
        let terminal = nix::unistd::isatty(std::io::stderr()).unwrap_or(false);
        let color = terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        // Lines of a log and bars would write over each other.
        let progress = match (global.quiet, global.json || !terminal || global.verbose > 0) {
            (true, _) => Progress::silent(),
            (false, true) => Progress::lines(),
            (false, false) => Progress::bars(color),
        };
        start_tracing(global.verbose, color);
        Context { json: global.json, store: global.store, color, progress }
    }

    /// Prints a verb's result: `value` as JSON when that was asked for, else `text`.
    ///
    /// # Errors
    /// When standard output can't be written to; a closed pipe is no error.
    pub fn print(&self, value: &impl serde::Serialize, text: impl FnOnce() -> String) -> Result<(), Failure> {
        let mut out = if self.json {
            serde_json::to_string_pretty(value).map_err(|e| Failure::new("json", e.to_string()))?
        } else {
            text()
        };
        if !out.is_empty() && !out.ends_with('\n') {
            out.push('\n');
        }
        output(out.as_bytes())
    }
}

/// Writes to standard output. A closed pipe is no error: whoever reads had enough.
fn output(bytes: &[u8]) -> Result<(), Failure> {
    use std::io::Write;
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new("output", format!("can't write to standard output: {e}")))
        }
        _ => Ok(()),
    }
}

/// Prints the answer of an internal part, a line.
fn answer(line: &str) -> std::process::ExitCode {
    match output(format!("{line}\n").as_bytes()) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(failure) => {
            failure.print(false, false);
            std::process::ExitCode::FAILURE
        }
    }
}

/// Warnings always; once verbose, what Kiln itself tells; twice, what its libraries tell as well.
fn start_tracing(verbose: u8, color: bool) {
    use tracing::level_filters::LevelFilter;
    use tracing_subscriber::filter::Targets;
    use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
    use tracing_subscriber::util::SubscriberInitExt as _;
    // The AWS SDK writes a hundred lines for each call, with parts of requests in them: nothing that helps a user.
    let quiet = ["aws", "h2", "hyper", "rustls"].map(|target| (target, LevelFilter::ERROR));
    let targets = match verbose {
        0 => Targets::new().with_default(LevelFilter::WARN),
        1 => Targets::new().with_default(LevelFilter::WARN).with_target("kiln", LevelFilter::DEBUG),
        _ => Targets::new().with_default(LevelFilter::TRACE),
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(color)
        .with_target(false)
        .without_time()
        // A line that can't be written is lost, not a panic.
        .log_internal_errors(false)
        .with_filter(targets.with_targets(quiet));
    // A second subscriber in the same process (tests) is no failure.
    let _ = tracing_subscriber::registry().with(lines).try_init();
}

/// An error of the command line as one of Kiln's own: what is wrong, and how the verb is called.
fn usage_failure(usage: &clap::Error) -> Failure {
    let text = usage.render().to_string();
    let text = text.trim().strip_prefix("error: ").unwrap_or(text.trim());
    let (message, rest) = text.split_once("\n\nUsage: ").unwrap_or((text, ""));
    let call = rest.lines().next().unwrap_or_default();
    let failure = Failure::usage("usage", message.trim());
    if call.is_empty() { failure } else { failure.hint(format!("usage: {call}")) }
}

/// The whole command with its verbs, as completions, the manual and the reference are made from it.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command().mut_subcommand("test", |test| {
        test.mut_arg("profile", |target| {
            target
                .value_name("PROFILE|IMAGE")
                .help("A profile, which is baked first when it has to be; or an image, raw or qcow2")
        })
    })
}

/// Parses `args`, runs the verb and answers the exit status.
pub fn main(args: impl IntoIterator<Item = OsString>) -> Status {
    let args: Vec<OsString> = args.into_iter().collect();
    // Set and empty counts as not set, here as elsewhere.
    if std::env::var_os("TMPDIR").is_some_and(|folder| folder.is_empty()) {
        let _ = tempfile::env::override_temp_dir(Path::new("/tmp"));
    }
    // What follows `--` is a guest's.
    let json = args.iter().take_while(|arg| *arg != "--").any(|arg| arg == "--json");
    let parse =
        |args: &[OsString]| command().try_get_matches_from(args).and_then(|m| Cli::from_arg_matches(&m));
    let other = |error| lock::profile_first(&args).and_then(|args| parse(&args).ok()).ok_or(error);
    let cli = match parse(&args).or_else(other) {
        Ok(cli) => cli,
        Err(usage) if json && usage.use_stderr() => {
            usage_failure(&usage).print(true, false);
            return Status::Usage;
        }
        Err(usage) => return printed(&usage),
    };
    let context = Context::new(cli.global);
    if let Err(e) = crate::host::interrupt::install() {
        tracing::warn!("Ctrl-C ends Kiln at once: {e}");
    }
    match run(cli.verb, &context) {
        Ok(()) => Status::Done,
        Err(failure) => {
            // Whatever failed after Ctrl-C, a program that the same signal reached among them, failed because of it.
            let failure = failure.unless_interrupted();
            context.progress.clear();
            failure.print(context.json, context.color);
            failure.status
        }
    }
}

/// Prints what clap answers itself: help and version to standard output, errors to standard error.
fn printed(usage: &clap::Error) -> Status {
    let lost = |e: &std::io::Error| e.kind() != std::io::ErrorKind::BrokenPipe;
    match usage.print() {
        _ if usage.use_stderr() => Status::Usage,
        Err(e) if lost(&e) => Status::Failed,
        _ => Status::Done,
    }
}

fn run(verb: Verb, cx: &Context) -> Result<(), Failure> {
    match verb {
        Verb::Build(args) => build::run(&args, cx),
        Verb::Lock(args) => lock::run(&args, cx),
        Verb::Why(args) => why::run(&args, cx),
        Verb::Generation(args) => generation::run(&args, cx),
        Verb::Tree(args) => tree::run(&args, cx),
        Verb::Layout(args) => layout::run(&args, cx),
        Verb::Export(args) => export::run(&args, cx),
        Verb::Doctor(args) => doctor::run(&args, cx),
        Verb::Gc(args) => gc::run(&args, cx),
        Verb::Store(args) => store::run(&args, cx),
        Verb::Init(args) => init::run(&args, cx),
        Verb::Eval(args) => eval::run(&args, cx),
        Verb::Run(args) => run::run(&args, cx),
        Verb::Test(args) => test::run(&args, cx),
        Verb::Plan(args) => plan::run(&args, cx),
        Verb::Publish(args) => publish::run(&args, cx),
        Verb::Verify(args) => verify::run(&args, cx),
        Verb::Images(args) => images::run(&args, cx),
        Verb::Retire(args) => retire::run(&args, cx),
        Verb::Completions(args) => completions::run(&args),
        Verb::Man(args) => completions::man(&args, cx),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_command_line_is_taken_apart() {
        let usage = command().try_get_matches_from(["kiln", "build", "--colour", "p.ncl"]).unwrap_err();
        let failure = usage_failure(&usage);
        assert_eq!(failure.kind, "usage");
        assert!(failure.message.starts_with("unexpected argument '--colour' found"), "{}", failure.message);
        assert!(!failure.message.contains("Usage"), "{}", failure.message);
        assert!(failure.hint.is_some_and(|hint| hint.starts_with("usage: kiln build")));
    }
}
