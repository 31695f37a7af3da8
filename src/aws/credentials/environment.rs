//! What of the process's environment decides about credentials, taken once: tests make their own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The variables that begin with `AWS_` or `KILN_MFA_`, and the home folder.
#[derive(Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    home: Option<PathBuf>,
}

impl Environment {
    /// As this process has it.
    #[must_use]
    pub fn of_process() -> Environment {
        // A value that is no UTF-8 is none that AWS would take.
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| name.starts_with("AWS_") || name.starts_with("KILN_MFA_"))
            .collect();
        Environment { variables, home: std::env::home_dir() }
    }

    /// With these variables and this home folder.
    #[must_use]
    pub fn new(home: &Path, variables: &[(&str, &str)]) -> Environment {
        let variables = variables.iter().map(|&(n, v)| (n.to_owned(), v.to_owned())).collect();
        Environment { variables, home: Some(home.to_owned()) }
    }

    /// A variable's value; an empty one counts as absent, as with the AWS CLI.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Whether a variable says `true`.
    #[must_use]
    pub fn is_true(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    /// A file named by the variable `name`, else `default` (`.aws/config`) in the home folder.
    #[must_use]
    pub fn file(&self, name: &str, default: &str) -> PathBuf {
        match self.get(name) {
            Some(path) => self.expand(path),
            None => self.in_home(default),
        }
    }

    /// A path in the home folder.
    #[must_use]
    pub fn in_home(&self, path: &str) -> PathBuf {
        self.home.clone().unwrap_or_default().join(path)
    }

    /// A path whose `~/` stands for the home folder.
    #[must_use]
    pub fn expand(&self, path: &str) -> PathBuf {
        match path.strip_prefix("~/") {
            Some(rest) => self.in_home(rest),
            None => PathBuf::from(path),
        }
    }
}

impl std::fmt::Debug for Environment {
    /// Names only: some values are secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.variables.keys()).finish()
    }
}

/// A text that never shows in messages, logs or debug output.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides `text`.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text, for the one place that needs it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_stand_where_a_variable_says_or_in_the_home_folder() {
        let environment =
            Environment::new(Path::new("/home/u"), &[("AWS_CONFIG_FILE", "~/x"), ("AWS_PROFILE", "")]);
        assert_eq!(environment.file("AWS_CONFIG_FILE", ".aws/config"), Path::new("/home/u/x"));
        let other = environment.file("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials");
        assert_eq!(other, Path::new("/home/u/.aws/credentials"));
        assert_eq!(environment.get("AWS_PROFILE"), None);
    }

    #[test]
    fn values_do_not_show() {
        let environment = Environment::new(Path::new("/"), &[("AWS_SECRET_ACCESS_KEY", "hush")]);
        assert_eq!(
            format!("{environment:?} {:?}", Secret::new("hush")),
            r#"{"AWS_SECRET_ACCESS_KEY"} (secret)"#
        );
    }
}
