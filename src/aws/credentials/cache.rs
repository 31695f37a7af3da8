//! The AWS CLI's own cache of role sessions, `~/.aws/cli/cache/<key>.json`: who has typed a code for `aws` is not asked
//! again here, and the other way round.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use serde_json::{Value, json};
use sha1::{Digest as _, Sha1};

use super::way::Hop;

/// A session with less time left counts as ended, as with the AWS CLI.
pub const LEAST: Duration = Duration::from_secs(15 * 60);

/// The cache's folder.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// The cache in `folder`, which is made when something is written.
    #[must_use]
    pub fn new(folder: PathBuf) -> Cache {
        Cache { folder }
    }

    fn file(&self, hop: &Hop) -> PathBuf {
        self.folder.join(format!("{}.json", key(hop)))
    }

    /// The session of a role, when one is kept that lasts for at least [`LEAST`]. What can't be read is as good as absent.
    #[must_use]
    pub fn get(&self, hop: &Hop, now: SystemTime) -> Option<Credentials> {
        let value: Value = serde_json::from_slice(&std::fs::read(self.file(hop)).ok()?).ok()?;
        let field = |name: &str| value["Credentials"][name].as_str();
        let ends = time(field("Expiration")?)?;
        if ends < now + LEAST {
            return None;
        }
        let (id, secret, token) = (field("AccessKeyId")?, field("SecretAccessKey")?, field("SessionToken")?);
        Some(Credentials::new(id, secret, Some(token.to_owned()), Some(ends), "AssumeRole"))
    }

    /// Keeps the session of a role, under the name and in the form in which the AWS CLI looks for it.
    ///
    /// # Errors
    /// When the folder or the file can't be written.
    pub fn put(&self, hop: &Hop, session: &Credentials, user: (&str, &str)) -> std::io::Result<()> {
        let ends = session.expiry().map(DateTime::from).and_then(|t| t.fmt(Format::DateTime).ok());
        let account = user.1.split(':').nth(4);
        let value = json!({
            "Credentials": {
                "AccessKeyId": session.access_key_id(),
                "SecretAccessKey": session.secret_access_key(),
                "SessionToken": session.session_token(),
                "Expiration": ends,
                "AccountId": account,
            },
            "AssumedRoleUser": { "AssumedRoleId": user.0, "Arn": user.1 },
        });
        write_private(&self.file(hop), value.to_string().as_bytes())
    }
}

/// A point in time as STS and the AWS CLI write it: `2026-11-22T10:00:00Z`, or with an offset.
#[must_use]
pub fn time(text: &str) -> Option<SystemTime> {
    // Older versions of the CLI write `UTC` behind it.
    let text = text.strip_suffix("UTC").map(|t| format!("{t}Z")).unwrap_or_else(|| text.to_owned());
    SystemTime::try_from(DateTime::from_str(&text, Format::DateTimeWithOffset).ok()?).ok()
}

/// Writes a file that only its owner may read, whole or not at all.
fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::DirBuilderExt as _;
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    // A temporary file has the mode 0600 from the start.
    let mut file = tempfile::Builder::new().prefix(".kiln-").tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}

/// The name under which botocore keeps a role's session: SHA-1 of the arguments of AssumeRole, as Python's
/// `json.dumps(…, sort_keys=True)` writes them, a made-up session name left out.
#[must_use]
pub fn key(hop: &Hop) -> String {
    let mut arguments = BTreeMap::new();
    let texts = [
        ("ExternalId", &hop.external_id),
        ("RoleSessionName", &hop.session_name),
        ("SerialNumber", &hop.mfa_serial),
    ];
    for (name, text) in texts {
        text.as_ref().map(|text| arguments.insert(name, python_string(text)));
    }
    hop.duration.map(|seconds| arguments.insert("DurationSeconds", seconds.to_string()));
    arguments.insert("RoleArn", python_string(&hop.role));
    let members: Vec<String> = arguments.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
    let digest = Sha1::digest(format!("{{{}}}", members.join(", ")));
    digest.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// A string as Python's `json.dumps` writes it: all that is not ASCII as UTF-16 escapes.
fn python_string(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            ' '..='~' => out.push(c),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn hop() -> Hop {
        Hop {
            profile: "p".to_owned(),
            role: "arn:aws:iam::123456789012:role/Bake".to_owned(),
            external_id: None,
            session_name: None,
            duration: None,
            mfa_serial: None,
        }
    }

    /// The names that botocore 1.44 gives to the same arguments.
    #[test]
    fn keys_are_botocores() {
        assert_eq!(key(&hop()), "e4586472a731332fa94a58c58597b8163f7b3c56");
        let full = Hop {
            external_id: Some("a \"b\" \\ é 😀\u{7f}\t".to_owned()),
            session_name: Some("me@example.org".to_owned()),
            duration: Some(3600),
            mfa_serial: Some("arn:aws:iam::123456789012:mfa/me".to_owned()),
            ..hop()
        };
        assert_eq!(key(&full), "52f62a3aed1c24e30154a72baf846764cf158da7");
    }

    #[test]
    fn what_is_kept_is_found_until_a_quarter_of_an_hour_before_its_end() {
        let home = tempfile::tempdir().unwrap();
        let cache = Cache::new(home.path().join(".aws/cli/cache"));
        let ends = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
        let session = Credentials::new("ID", "hush", Some("token".to_owned()), Some(ends), "test");
        cache.put(&hop(), &session, ("AROA:me", "arn:aws:sts::123456789012:assumed-role/Bake/me")).unwrap();
        let found = cache.get(&hop(), ends - LEAST).unwrap();
        assert_eq!((found.access_key_id(), found.secret_access_key()), ("ID", "hush"));
        assert_eq!((found.session_token(), found.expiry()), (Some("token"), Some(ends)));
        assert!(cache.get(&hop(), ends - LEAST + Duration::from_secs(1)).is_none());
        assert!(cache.get(&Hop { duration: Some(900), ..hop() }, ends - LEAST).is_none());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let file = cache.file(&hop());
        assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));
        let value: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        assert_eq!(value["Credentials"]["AccountId"], "123456789012");
        assert_eq!(std::fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_broken_counts_as_absent() {
        let home = tempfile::tempdir().unwrap();
        let cache = Cache::new(home.path().to_owned());
        for text in ["", "{", "[]", r#"{"Credentials":{"Expiration":"soon"}}"#] {
            std::fs::write(cache.file(&hop()), text).unwrap();
            assert!(cache.get(&hop(), SystemTime::UNIX_EPOCH).is_none());
        }
    }

    #[test]
    fn times_are_read_in_all_their_forms() {
        let expected = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_341_600));
        for text in [
            "2026-11-22T10:00:00Z",
            "2026-11-22T10:00:00+00:00",
            "2026-11-22T11:00:00+01:00",
            "2026-11-22T10:00:00UTC",
        ] {
            assert_eq!(time(text), expected, "{text}");
        }
        assert_eq!(time("tomorrow"), None);
    }
}
