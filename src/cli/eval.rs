//! `kiln eval PROFILE`: what a profile evaluates to, as JSON.

use std::path::PathBuf;

use super::Context;
use super::report::{Failure, Status};
use crate::profile::{EvalRequest, FieldPath, ProfileError, evaluate};

/// Arguments of `kiln eval`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    profile: ProfileArgs,
    /// Print this field alone, as in `disk.size` or `files."/etc/motd".text`; a text is printed as it is
    #[arg(long, value_name = "PATH")]
    field: Option<FieldPath>,
    /// Print the files that evaluation read instead, with their SHA-256
    #[arg(long, conflicts_with = "field")]
    inputs: bool,
    /// Write Kiln's own modules below DIR instead: for editors, whose language server finds them by NICKEL_IMPORT_PATH
    #[arg(long, value_name = "DIR", conflicts_with_all = ["field", "inputs", "profile"])]
    contracts: Option<PathBuf>,
}

/// A profile, as every verb that works on one takes it.
#[derive(Debug, Clone, clap::Args)]
pub struct ProfileArgs {
    /// The profile: a Nickel, TOML, YAML or JSON file
    #[arg(value_name = "PROFILE", required_unless_present = "contracts")]
    profile: Option<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
}

/// Options that change how a profile is evaluated.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Overrides {
    /// Override a field, as in `disk.size=4GiB`; VALUE is JSON where the field takes that, else plain text
    #[arg(long = "set", value_name = "PATH=VALUE", value_parser = parse_set)]
    sets: Vec<(String, String)>,
    /// A further folder from which the profile may take files
    #[arg(long = "root", value_name = "DIR")]
    roots: Vec<PathBuf>,
}

impl Overrides {
    /// The request to evaluate `profile` with these options.
    #[must_use]
    pub fn request(&self, profile: &std::path::Path, cx: &Context) -> EvalRequest {
        EvalRequest {
            profile: profile.to_owned(),
            sets: self.sets.clone(),
            roots: self.roots.clone(),
            color: cx.color,
        }
    }
}

/// Splits `PATH=VALUE` at the first `=` outside quotes.
fn parse_set(text: &str) -> Result<(String, String), String> {
    let mut quoted = false;
    for (at, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '=' if !quoted => return Ok((text[..at].to_owned(), text[at + 1..].to_owned())),
            _ => {}
        }
    }
    Err("write PATH=VALUE, as in disk.size=4GiB".to_owned())
}

/// Evaluates the profile and prints it.
///
/// # Errors
/// When the profile is wrong (status 2).
pub fn run(args: &Args, cx: &Context) -> Result<(), Failure> {
    if let Some(folder) = &args.contracts {
        let written = crate::profile::write_modules(folder)?;
        return cx.print(&written, || written.iter().map(|p| format!("{}\n", p.display())).collect());
    }
    let profile = args.profile.profile.as_deref().unwrap_or(std::path::Path::new(""));
    let evaluated = evaluate(&args.profile.overrides.request(profile, cx))?;
    if args.inputs {
        let line = |i: &crate::profile::Input| format!("{}  {}\n", i.sha256, i.path.display());
        return cx.print(&evaluated.inputs, || evaluated.inputs.iter().map(line).collect());
    }
    let value = match &args.field {
        None => &evaluated.json,
        Some(path) => path.get(&evaluated.json).ok_or_else(|| {
            Failure::usage("no-field", format!("the system has no field `{path}`")).hint(
                "`kiln eval PROFILE` prints all of them; fields that are optional and not given are left out",
            )
        })?,
    };
    cx.print(value, || match value {
        serde_json::Value::String(text) => text.clone(),
        value => serde_json::to_string_pretty(value).unwrap_or_default(),
    })
}

impl From<ProfileError> for Failure {
    fn from(error: ProfileError) -> Failure {
        let (kind, status) = match &error {
            ProfileError::Interrupted(interrupted) => return (*interrupted).into(),
            ProfileError::Internal(_) => ("evaluator", Status::Failed),
            ProfileError::File { .. } => ("profile-file", Status::Usage),
            _ => ("profile", Status::Usage),
        };
        Failure::of(kind, &error).status(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_are_split_outside_quotes() {
        let split = |text: &str| parse_set(text).unwrap();
        assert_eq!(split("a.b=c=d"), ("a.b".into(), "c=d".into()));
        assert_eq!(split("files.\"/a=b\".text=x"), ("files.\"/a=b\".text".into(), "x".into()));
        assert_eq!(split("hostname="), ("hostname".into(), String::new()));
        assert!(parse_set("hostname").is_err());
    }
}
