//! docs/reference/cli.md is what the command line's definitions say.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use clap::Command;

/// Writes the page anew instead of comparing it.
const UPDATE: &str = "KILN_UPDATE_DOCS";

#[test]
fn the_reference_of_the_command_line_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/cli.md");
    let page = page();
    if std::env::var_os(UPDATE).is_some() {
        fs::write(&path, page).unwrap();
        return;
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == page, "docs/reference/cli.md is stale: `just reference` writes it anew");
}

fn page() -> String {
    let mut command = kiln::cli::command().term_width(100).disable_help_subcommand(true);
    command.build();
    let mut out = String::from(
        "# The command line\n\nMade from the program's own definitions by `just reference`; \
         `kiln VERB --help` prints the same.\n\nOptions that every verb takes:\n\n",
    );
    let everywhere = |arg: &&clap::Arg| arg.is_global_set();
    for arg in command.get_arguments().filter(everywhere) {
        argument(&mut out, arg);
    }
    out.push_str(
        "\nExit status: 0 done, 1 failed, 2 usage or profile wrong, 3 smoke tests failed, 130 interrupted.\n",
    );
    let mut verbs: Vec<&Command> = command.get_subcommands().filter(|c| !c.is_hide_set()).collect();
    verbs.sort_by_key(|c| c.get_name());
    for verb in verbs {
        section(&mut out, verb, &format!("kiln {}", verb.get_name()), 2);
    }
    out
}

fn section(out: &mut String, command: &Command, name: &str, depth: usize) {
    let _ = write!(out, "\n{} {name}\n\n", "#".repeat(depth));
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    let usage = command.clone().override_help("").render_usage().to_string();
    let usage = usage.trim().trim_start_matches("Usage: ").to_owned();
    let _ = write!(out, "{about}.\n\n```text\n{usage}\n```\n");
    let own: Vec<&clap::Arg> = command
        .get_arguments()
        .filter(|a| {
            !a.is_global_set() && !a.is_hide_set() && !matches!(a.get_id().as_str(), "help" | "version")
        })
        .collect();
    if !own.is_empty() {
        out.push('\n');
    }
    for arg in own {
        argument(out, arg);
    }
    for sub in command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help") {
        section(out, sub, &format!("{name} {}", sub.get_name()), depth + 1);
    }
}

/// A line of a list: how it is written, what it does, its values and default.
fn argument(out: &mut String, arg: &clap::Arg) {
    let mut forms = Vec::new();
    forms.extend(arg.get_short().map(|s| format!("-{s}")));
    forms.extend(arg.get_long().map(|l| format!("--{l}")));
    let names: Vec<String> =
        arg.get_value_names().unwrap_or_default().iter().map(|n| format!(" {n}")).collect();
    let form = if forms.is_empty() {
        names.concat().trim().to_owned()
    } else if arg.get_action().takes_values() {
        forms.join(", ") + &names.concat()
    } else {
        forms.join(", ")
    };
    let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let _ = write!(out, "- `{form}`: {help}");
    let values: Vec<String> = arg
        .get_possible_values()
        .iter()
        .filter(|v| !v.is_hide_set())
        .map(|v| format!("`{}`", v.get_name()))
        .collect();
    if arg.get_action().takes_values() && !values.is_empty() {
        let _ = write!(out, " ({})", values.join(", "));
    }
    let defaults: Vec<String> =
        arg.get_default_values().iter().map(|v| v.to_string_lossy().into_owned()).collect();
    if arg.get_action().takes_values() && !defaults.is_empty() {
        let _ = write!(out, "; default `{}`", defaults.join(","));
    }
    if let Some(env) = arg.get_env() {
        let _ = write!(out, "; from `{}`", env.to_string_lossy());
    }
    out.push('\n');
}
