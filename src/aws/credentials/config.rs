//! The AWS CLI's files, `~/.aws/config` and `~/.aws/credentials`: INI with a nested block, as Python's `configparser` and
//! botocore read it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::environment::Environment;
use crate::aws::AwsError;

/// A section: values by their names, in lower case.
pub type Section = BTreeMap<String, Value>;

/// A value, and the file that it comes from.
#[derive(Clone, PartialEq, Eq)]
pub struct Value {
    /// The text behind `=`; empty where a nested block follows.
    pub text: String,
    /// The block of indented lines below it.
    pub nested: BTreeMap<String, String>,
    /// The file.
    pub file: Arc<Path>,
}

impl std::fmt::Debug for Value {
    /// The file only: some values are secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "(in {})", self.file.display())
    }
}

/// What both files hold.
#[derive(Debug, Clone, Default)]
pub struct Files {
    /// Where the first file is, or would be.
    pub config: PathBuf,
    /// Where the second file is, or would be.
    pub credentials: PathBuf,
    /// Profiles by name. What the second file says of one wins.
    pub profiles: BTreeMap<String, Section>,
    /// `[sso-session NAME]`.
    pub sso_sessions: BTreeMap<String, Section>,
    /// `[services NAME]`.
    pub services: BTreeMap<String, Section>,
}

impl Files {
    /// Reads both files; one that is not there is empty.
    ///
    /// # Errors
    /// When a file is there and can't be read, or a line has no meaning.
    pub fn read(environment: &Environment) -> Result<Files, AwsError> {
        let mut files = Files {
            config: environment.file("AWS_CONFIG_FILE", ".aws/config"),
            credentials: environment.file("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials"),
            ..Files::default()
        };
        for (name, section) in sections(&files.config)? {
            let (kind, rest) = name.split_once([' ', '\t']).unwrap_or((&name, ""));
            let rest = unquoted(rest);
            match (kind, rest.is_empty()) {
                ("default", true) => files.profiles.entry(name).or_default().extend(section),
                ("profile", false) => files.profiles.entry(rest).or_default().extend(section),
                ("sso-session", false) => drop(files.sso_sessions.insert(rest, section)),
                ("services", false) => drop(files.services.insert(rest, section)),
                _ => {}
            }
        }
        for (name, section) in sections(&files.credentials)? {
            files.profiles.entry(name).or_default().extend(section);
        }
        Ok(files)
    }
}

/// A section's name without quotes around it: `"my profile"`.
fn unquoted(name: &str) -> String {
    let name = name.trim();
    let inner = ['"', '\''].iter().find_map(|&q| name.strip_prefix(q)?.strip_suffix(q));
    inner.unwrap_or(name).to_owned()
}

/// The sections of a file in order.
fn sections(path: &Path) -> Result<Vec<(String, Section)>, AwsError> {
    let text = match std::fs::read(path) {
        Ok(bytes) => String::from_utf8(bytes)
            .map_err(|_| AwsError::credentials(format!("{} is no UTF-8 text", path.display())))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(AwsError::credentials(format!("can't read {}: {error}", path.display()))),
    };
    parse(&text, path)
}

/// The sections of a file's `text` in order.
fn parse(text: &str, path: &Path) -> Result<Vec<(String, Section)>, AwsError> {
    let file: Arc<Path> = path.into();
    let wrong = |number: usize, what: &str| {
        AwsError::credentials(format!("{}:{}: {what}", path.display(), number + 1))
    };
    let mut found: Vec<(String, Section)> = Vec::new();
    // The name of the value that indented lines belong to.
    let mut open: Option<String> = None;
    for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let bare = line.trim();
        if bare.is_empty() || bare.starts_with(['#', ';']) {
            continue;
        }
        let indented = line.starts_with([' ', '\t']);
        if let (true, Some((_, section)), Some(name)) = (indented, found.last_mut(), &open) {
            let Some(value) = section.get_mut(name) else { continue };
            match bare.split_once('=') {
                Some((name, nested)) if value.text.is_empty() => {
                    value.nested.insert(name.trim().to_ascii_lowercase(), nested.trim().to_owned());
                }
                _ => {
                    value.text.push('\n');
                    value.text.push_str(bare);
                }
            }
            continue;
        }
        if let Some(rest) = bare.strip_prefix('[') {
            let (name, _) = rest.split_once(']').ok_or_else(|| wrong(number, "a section needs its `]`"))?;
            found.push((name.trim().to_owned(), Section::new()));
            open = None;
            continue;
        }
        // Never the line itself: it may hold a key.
        let (name, value) =
            bare.split_once('=').ok_or_else(|| wrong(number, "neither a section nor `name = value`"))?;
        let (_, section) =
            found.last_mut().ok_or_else(|| wrong(number, "a value before the first section"))?;
        let name = name.trim().to_ascii_lowercase();
        // A command may hold the signs of a comment.
        let text = if name == "credential_process" { value.trim() } else { without_comment(value) };
        let value = Value { text: text.to_owned(), nested: BTreeMap::new(), file: file.clone() };
        section.insert(name.clone(), value);
        open = Some(name);
    }
    Ok(found)
}

/// A value up to a comment, which only ` #` and ` ;` begin: keys may hold either sign.
fn without_comment(value: &str) -> &str {
    let end = [" #", " ;", "\t#", "\t;"].iter().filter_map(|mark| value.find(mark)).min();
    value[..end.unwrap_or(value.len())].trim()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn home(config: &str, credentials: &str) -> (tempfile::TempDir, Environment) {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join(".aws");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("config"), config).unwrap();
        std::fs::write(folder.join("credentials"), credentials).unwrap();
        let environment = Environment::new(home.path(), &[]);
        (home, environment)
    }

    #[test]
    fn both_files_make_a_profile() {
        let (_home, environment) = home(
            "# mine\n[default]\nregion = eu-central-1 ; here\naws_access_key_id = OLD\n\n[profile \"my own\"]\n\
             Role_Arn=arn:aws:iam::1:role/a#b\nservices = local\ns3 =\n  endpoint_url = http://s3\n  x = y\n\
             [preview]\nfoo = 1\n[sso-session corp]\nsso_region = us-east-1\n[services local]\n\
             sts =\n\tendpoint_url = http://sts\n",
            "[default]\naws_access_key_id = NEW\n[my own]\naws_session_token = a=b==\n",
        );
        let files = Files::read(&environment).unwrap();
        let default = &files.profiles["default"];
        assert_eq!(default["region"].text, "eu-central-1");
        assert_eq!(default["aws_access_key_id"].text, "NEW");
        assert!(default["aws_access_key_id"].file.ends_with("credentials"));
        let own = &files.profiles["my own"];
        assert_eq!(own["role_arn"].text, "arn:aws:iam::1:role/a#b");
        assert_eq!(own["s3"].nested["endpoint_url"], "http://s3");
        assert_eq!(own["aws_session_token"].text, "a=b==");
        assert_eq!(files.sso_sessions["corp"]["sso_region"].text, "us-east-1");
        assert_eq!(files.services["local"]["sts"].nested["endpoint_url"], "http://sts");
        assert_eq!(files.profiles.len(), 2);
    }

    #[test]
    fn a_wrong_line_is_named_but_not_shown() {
        for (text, line) in [("[a]\naws_secret_access_key hush\n", 2), ("x = hush", 1), ("[a\n", 1)] {
            let (home, environment) = home(text, "");
            let error = Files::read(&environment).unwrap_err().to_string();
            let place = format!("{}:{line}: ", home.path().join(".aws/config").display());
            assert!(error.starts_with(&place) && !error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn no_files_are_no_profiles() {
        let home = tempfile::tempdir().unwrap();
        assert!(Files::read(&Environment::new(home.path(), &[])).unwrap().profiles.is_empty());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[\\[\\]a-c= \t\n#;\"é]{0,60}") {
            let _ = parse(&text, Path::new("x"));
        }
    }
}
