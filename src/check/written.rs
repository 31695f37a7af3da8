//! Checks that a profile writes, as checks.

use std::time::Duration;

use super::judge::pattern;
use super::{Check, FileFacts, What};
use crate::system::Set;
use crate::system::test::{Check as Written, FileCheck};

/// Reads the text of a script that lies beside the profile.
pub type ReadScript<'a> = &'a dyn Fn(&str) -> Result<String, String>;

/// A check that can't be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("test.checks.\"{name}\": {why}")]
pub struct BadCheck {
    /// Its name.
    pub name: String,
    /// What is wrong.
    pub why: String,
}

/// The checks that are on, in the order of their names. `read` reads scripts beside the profile.
///
/// # Errors
/// [`BadCheck`] names one whose pattern, mode or script is wrong.
pub fn written(checks: &Set<Written>, read: ReadScript<'_>) -> Result<Vec<Check>, BadCheck> {
    let on = checks.iter().filter(|(_, check)| check.enable && check.reboot != Some(false));
    on.map(|(name, check)| {
        let what = what(check, read).map_err(|why| BadCheck { name: name.clone(), why })?;
        Ok(Check {
            name: name.clone(),
            timeout: Duration::from_secs(u64::from(check.timeout.max(1))),
            retry: check.retry,
            what,
        })
    })
    .collect()
}

fn what(check: &Written, read: ReadScript<'_>) -> Result<What, String> {
    for text in [&check.output].into_iter().flatten() {
        pattern(text)?;
    }
    if let Some(command) = &check.command {
        let (status, output) = (check.status.unwrap_or(0), check.output.clone());
        return Ok(What::Command { command: command.clone(), status, output });
    }
    if let Some(name) = &check.unit {
        return Ok(What::Unit { name: name.clone(), may_rest: false });
    }
    if let Some(port) = check.port {
        return Ok(What::Port(port));
    }
    if let Some(http) = &check.http {
        http.body.as_deref().map(pattern).transpose()?;
        return Ok(What::Http(http.clone()));
    }
    if let Some(wanted) = &check.file {
        return Ok(What::File(file(wanted)?));
    }
    if let Some(script) = &check.script {
        let text = match (&script.text, &script.source) {
            (Some(text), None) => text.clone(),
            (None, Some(source)) => read(source)?,
            _ => return Err("give its `text` or its `source`".to_owned()),
        };
        if !text.starts_with("#!") {
            return Err("a script begins with `#!` and its interpreter, as in `#!/bin/sh`".to_owned());
        }
        return Ok(What::Script { text });
    }
    if let Some(data) = &check.user_data {
        let checks = written(&data.checks, read).map_err(|bad| bad.to_string())?;
        let again = |c: &Check| matches!(c.what, What::UserData { .. } | What::Reboot);
        if let Some(nested) = checks.iter().find(|c| again(c)) {
            return Err(format!(
                "its check \"{}\" would boot once more again: write it on its own",
                nested.name
            ));
        }
        return Ok(What::UserData { text: data.text.clone(), checks });
    }
    if check.reboot == Some(true) {
        return Ok(What::Reboot);
    }
    Err("checks nothing".to_owned())
}

fn file(wanted: &FileCheck) -> Result<FileFacts, String> {
    wanted.contains.as_deref().map(pattern).transpose()?;
    let mode = wanted.mode.as_deref().map(|mode| u32::from_str_radix(mode, 8)).transpose();
    Ok(FileFacts {
        path: wanted.path.clone(),
        exists: wanted.exists,
        contains: wanted.contains.clone(),
        sha256: wanted.sha256,
        mode: mode.map_err(|_| "its mode is no octal number".to_owned())?,
        user: wanted.user.clone(),
        group: wanted.group.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::File;
    use crate::system::test::UserData;

    fn one(check: Written) -> Result<Check, String> {
        let set = Set::from([("x".to_owned(), Written { enable: true, timeout: 9, ..check })]);
        let read = |name: &str| {
            if name == "a.sh" { Ok("#!/bin/sh\n".to_owned()) } else { Err("no file".to_owned()) }
        };
        written(&set, &read).map(|mut checks| checks.remove(0)).map_err(|e| e.to_string())
    }

    #[test]
    fn every_kind() {
        let command =
            one(Written { command: Some("true".into()), output: Some("a".into()), ..Written::default() });
        let what = What::Command { command: "true".into(), status: 0, output: Some("a".into()) };
        assert_eq!(command, Ok(Check { name: "x".into(), timeout: Duration::from_secs(9), retry: 0, what }));
        let script = File { source: Some("a.sh".into()), ..File::default() };
        let found = one(Written { script: Some(script), ..Written::default() }).unwrap().what;
        assert_eq!(found, What::Script { text: "#!/bin/sh\n".into() });
        assert_eq!(one(Written { reboot: Some(true), ..Written::default() }).unwrap().what, What::Reboot);
        let off = Written { enable: true, reboot: Some(false), ..Written::default() };
        assert_eq!(written(&Set::from([("x".to_owned(), off)]), &|_| Err(String::new())), Ok(vec![]));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong =
            one(Written { command: Some("x".into()), output: Some("(".into()), ..Written::default() });
        assert!(wrong.unwrap_err().starts_with("test.checks.\"x\": `(` is no regular expression: "));
        let script = File { source: Some("b.sh".into()), ..File::default() };
        assert_eq!(
            one(Written { script: Some(script), ..Written::default() }),
            Err("test.checks.\"x\": no file".into())
        );
        let nested = Written { enable: true, reboot: Some(true), ..Written::default() };
        let data = UserData { text: String::new(), checks: Set::from([("r".to_owned(), nested)]) };
        assert!(
            one(Written { user_data: Some(data), ..Written::default() })
                .unwrap_err()
                .contains("\"r\" would boot")
        );
    }
}
