//! Which way the credentials come: decided by environment and files alone, in the AWS CLI's order, before anything is
//! called.

use std::path::PathBuf;

use super::config::{Files, Section};
use super::environment::{Environment, Secret};
use crate::aws::AwsError;

/// A way to credentials: from the base, role by role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// The profile that was asked for, or `default`.
    pub profile: String,
    /// Where it begins.
    pub base: Base,
    /// The roles on top, in the order in which they are assumed.
    pub hops: Vec<Hop>,
}

/// Where credentials begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// Keys, as they stand in the environment or a file.
    Keys(Keys),
    /// A program prints them.
    Process {
        /// Its command line.
        command: String,
        /// The profile that names it.
        profile: String,
    },
    /// A token in a file is traded for a role's session.
    WebIdentity {
        /// The role.
        role: String,
        /// The token's file, read anew each time.
        token: PathBuf,
        /// The session's name.
        session_name: Option<String>,
    },
    /// A sign-in that `aws sso login` made.
    Sso(Sso),
    /// The container's host hands them out.
    Container,
    /// EC2's metadata service hands them out.
    Instance,
}

/// An access key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    /// Its id.
    pub id: String,
    /// Its secret.
    pub secret: Secret,
    /// The session's token, when it is a temporary one.
    pub token: Option<Secret>,
    /// When it ends, as RFC 3339.
    pub expiration: Option<String>,
}

/// A profile of IAM Identity Center.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sso {
    /// The profile's name, for `aws sso login --profile`.
    pub profile: String,
    /// The name of its `[sso-session]`; none in the older form.
    pub session: Option<String>,
    /// Where one signs in.
    pub start_url: String,
    /// Identity Center's region.
    pub region: String,
    /// The account.
    pub account: String,
    /// The permission set.
    pub role: String,
}

/// A role on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hop {
    /// The profile that names it, for messages.
    pub profile: String,
    /// Its ARN.
    pub role: String,
    /// What its trust policy asks for.
    pub external_id: Option<String>,
    /// The session's name.
    pub session_name: Option<String>,
    /// How long the session lasts, in seconds.
    pub duration: Option<i32>,
    /// The MFA device whose code it takes.
    pub mfa_serial: Option<String>,
}

impl Way {
    /// The way from here: `profile` is what the command line names.
    ///
    /// # Errors
    /// When a profile is missing or incomplete, profiles go round in circles, or nothing has credentials.
    pub fn find(environment: &Environment, files: &Files, profile: Option<&str>) -> Result<Way, AwsError> {
        let named = profile
            .or_else(|| environment.get("AWS_PROFILE"))
            .or_else(|| environment.get("AWS_DEFAULT_PROFILE"));
        let name = named.unwrap_or("default");
        let finder = Finder { environment, files, explicit: profile.is_some() };
        let way = |base, hops| Ok(Way { profile: name.to_owned(), base, hops });
        // A profile on the command line goes before keys in the environment, one in the environment does not.
        if !finder.explicit
            && let Some(keys) = finder.environment_keys()?
        {
            return way(Base::Keys(keys), Vec::new());
        }
        if let Some(section) = files.profiles.get(name) {
            if is_role(section) {
                let (base, hops) = finder.chain(name)?;
                return way(base, hops);
            }
        } else if named.is_some() {
            return Err(finder.missing(name));
        }
        if let Some(base) = finder.base_of_profile(name, true)? {
            return way(base, Vec::new());
        }
        match finder.of_the_host() {
            Some(base) => way(base, Vec::new()),
            None => Err(finder.nothing(name)),
        }
    }

    /// Whether a person is asked for a code on the way.
    #[must_use]
    pub fn has_mfa(&self) -> bool {
        self.hops.iter().any(|hop| hop.mfa_serial.is_some())
    }
}

/// Whether a profile stands for a role that other credentials assume.
fn is_role(section: &Section) -> bool {
    section.contains_key("role_arn") && !section.contains_key("web_identity_token_file")
}

/// Whether a profile has keys, or half of them.
fn has_keys(section: &Section) -> bool {
    section.contains_key("aws_access_key_id") || section.contains_key("aws_secret_access_key")
}

fn text(section: &Section, name: &str) -> Option<String> {
    section.get(name).map(|value| value.text.clone()).filter(|text| !text.is_empty())
}

struct Finder<'a> {
    environment: &'a Environment,
    files: &'a Files,
    /// The profile was named on the command line: the environment's keys and token don't count.
    explicit: bool,
}

impl Finder<'_> {
    /// An error about a profile, with the file that it stands in.
    fn wrong(&self, profile: &str, what: &str) -> AwsError {
        let section = self.files.profiles.get(profile);
        let file = section.and_then(|s| s.values().next()).map_or(&*self.files.config, |value| &*value.file);
        AwsError::credentials(format!("profile `{profile}` in {}: {what}", file.display()))
    }

    fn missing(&self, profile: &str) -> AwsError {
        let known: Vec<&str> = self.files.profiles.keys().map(String::as_str).collect();
        let known = if known.is_empty() { "there are none".to_owned() } else { known.join(", ") };
        AwsError::credentials(format!(
            "there is no profile `{profile}` in {} or {}: {known}",
            self.files.config.display(),
            self.files.credentials.display()
        ))
    }

    fn nothing(&self, profile: &str) -> AwsError {
        AwsError::credentials(format!(
            "no credentials: neither AWS_ACCESS_KEY_ID nor a profile `{profile}` in {} or {}, no web identity, no container, and \
             AWS_EC2_METADATA_DISABLED is set; `aws configure` or `aws sso login` makes some",
            self.files.config.display(),
            self.files.credentials.display()
        ))
    }

    fn environment_keys(&self) -> Result<Option<Keys>, AwsError> {
        let get = |name| self.environment.get(name);
        let (id, secret) = match (get("AWS_ACCESS_KEY_ID"), get("AWS_SECRET_ACCESS_KEY")) {
            (None, _) => return Ok(None),
            (Some(id), Some(secret)) => (id, secret),
            (Some(_), None) => {
                return Err(AwsError::credentials("AWS_ACCESS_KEY_ID is set, AWS_SECRET_ACCESS_KEY is not"));
            }
        };
        let token = get("AWS_SESSION_TOKEN").or_else(|| get("AWS_SECURITY_TOKEN"));
        let expiration = get("AWS_CREDENTIAL_EXPIRATION").map(str::to_owned);
        Ok(Some(Keys {
            id: id.to_owned(),
            secret: Secret::new(secret),
            token: token.map(Secret::new),
            expiration,
        }))
    }

    /// The roles from `start` down to the base.
    fn chain(&self, start: &str) -> Result<(Base, Vec<Hop>), AwsError> {
        let mut hops = Vec::new();
        let mut visited = vec![start.to_owned()];
        let mut name = start.to_owned();
        let base = loop {
            let section = &self.files.profiles[&name];
            hops.push(self.hop(&name, section)?);
            let source = match (text(section, "source_profile"), text(section, "credential_source")) {
                (Some(_), Some(_)) => {
                    return Err(
                        self.wrong(&name, "has source_profile and credential_source: one of them goes")
                    );
                }
                (None, None) => {
                    return Err(
                        self.wrong(&name, "has a role_arn, but neither source_profile nor credential_source")
                    );
                }
                (None, Some(source)) => break self.named_source(&name, &source)?,
                (Some(source), None) => source,
            };
            let Some(next) = self.files.profiles.get(&source) else {
                return Err(self.wrong(&name, &format!("its source_profile `{source}` is in neither file")));
            };
            // A profile may name itself, for the keys that stand in it.
            let itself = source == name && has_keys(next);
            if visited.contains(&source) && !itself {
                visited.push(source);
                return Err(
                    self.wrong(&name, &format!("profiles go round in circles: {}", visited.join(" → ")))
                );
            }
            if has_keys(next) || !is_role(next) {
                break self.base_of_profile(&source, false)?.ok_or_else(|| {
                    self.wrong(&source, &format!("has no credentials, and is the source_profile of `{name}`"))
                })?;
            }
            visited.push(source.clone());
            name = source;
        };
        hops.reverse();
        Ok((base, hops))
    }

    fn hop(&self, profile: &str, section: &Section) -> Result<Hop, AwsError> {
        let duration = match text(section, "duration_seconds") {
            None => None,
            Some(text) => match text.parse() {
                Ok(seconds @ 900..=43_200) => Some(seconds),
                _ => {
                    let what = format!("duration_seconds is `{text}`: a number from 900 to 43200 is meant");
                    return Err(self.wrong(profile, &what));
                }
            },
        };
        let role = text(section, "role_arn").ok_or_else(|| self.wrong(profile, "its role_arn is empty"))?;
        Ok(Hop {
            profile: profile.to_owned(),
            role,
            external_id: text(section, "external_id"),
            session_name: text(section, "role_session_name"),
            duration,
            mfa_serial: text(section, "mfa_serial"),
        })
    }

    /// `credential_source`.
    fn named_source(&self, profile: &str, source: &str) -> Result<Base, AwsError> {
        match source.to_ascii_lowercase().as_str() {
            "environment" => match self.environment_keys()? {
                Some(keys) => Ok(Base::Keys(keys)),
                None => {
                    Err(self
                        .wrong(profile, "credential_source is Environment, and AWS_ACCESS_KEY_ID is not set"))
                }
            },
            "ec2instancemetadata" => Ok(Base::Instance),
            "ecscontainer" => Ok(Base::Container),
            _ => {
                let what = format!(
                    "credential_source is `{source}`: Environment, Ec2InstanceMetadata and EcsContainer are known"
                );
                Err(self.wrong(profile, &what))
            }
        }
    }

    /// What a profile has by itself, in the CLI's order. `outer`: it is the one that was asked for, and the environment's
    /// web identity comes before it.
    fn base_of_profile(&self, profile: &str, outer: bool) -> Result<Option<Base>, AwsError> {
        let empty = Section::new();
        let section = self.files.profiles.get(profile).unwrap_or(&empty);
        if let Some(base) = self.web_identity(profile, section, outer && !self.explicit)? {
            return Ok(Some(base));
        }
        if section.contains_key("sso_account_id") || section.contains_key("sso_role_name") {
            return Ok(Some(Base::Sso(self.sso(profile, section)?)));
        }
        // Keys in the credentials file go before a process, those in the config file after it.
        let in_credentials =
            section.get("aws_access_key_id").is_some_and(|v| *v.file == *self.files.credentials);
        let process = text(section, "credential_process");
        match process {
            Some(command) if !in_credentials => {
                Ok(Some(Base::Process { command, profile: profile.to_owned() }))
            }
            _ if has_keys(section) => Ok(Some(Base::Keys(self.keys(profile, section)?))),
            Some(command) => Ok(Some(Base::Process { command, profile: profile.to_owned() })),
            None => Ok(None),
        }
    }

    fn keys(&self, profile: &str, section: &Section) -> Result<Keys, AwsError> {
        let need = |name: &str| {
            text(section, name).ok_or_else(|| self.wrong(profile, &format!("{name} is missing")))
        };
        Ok(Keys {
            id: need("aws_access_key_id")?,
            secret: Secret::new(need("aws_secret_access_key")?),
            token: text(section, "aws_session_token").map(Secret::new),
            expiration: None,
        })
    }

    fn web_identity(
        &self,
        profile: &str,
        section: &Section,
        environment: bool,
    ) -> Result<Option<Base>, AwsError> {
        let get = |variable, name| {
            let set = environment.then(|| self.environment.get(variable)).flatten();
            set.map(str::to_owned).or_else(|| text(section, name))
        };
        let Some(token) = get("AWS_WEB_IDENTITY_TOKEN_FILE", "web_identity_token_file") else {
            return Ok(None);
        };
        let Some(role) = get("AWS_ROLE_ARN", "role_arn") else {
            return Err(
                self.wrong(profile, "there is a web identity's token file, but no role_arn or AWS_ROLE_ARN")
            );
        };
        let session_name = get("AWS_ROLE_SESSION_NAME", "role_session_name");
        Ok(Some(Base::WebIdentity { role, token: self.environment.expand(&token), session_name }))
    }

    fn sso(&self, profile: &str, section: &Section) -> Result<Sso, AwsError> {
        let need = |section: &Section, name: &str| {
            text(section, name).ok_or_else(|| {
                self.wrong(profile, &format!("{name} is missing; `aws configure sso` sets it"))
            })
        };
        let session = text(section, "sso_session");
        let place = match &session {
            None => section,
            Some(name) => self.files.sso_sessions.get(name).ok_or_else(|| {
                self.wrong(
                    profile,
                    &format!("there is no [sso-session {name}] in {}", self.files.config.display()),
                )
            })?,
        };
        Ok(Sso {
            profile: profile.to_owned(),
            start_url: need(place, "sso_start_url")?,
            region: need(place, "sso_region")?,
            account: need(section, "sso_account_id")?,
            role: need(section, "sso_role_name")?,
            session,
        })
    }

    /// What the host hands out.
    fn of_the_host(&self) -> Option<Base> {
        let container = ["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"];
        if container.iter().any(|name| self.environment.get(name).is_some()) {
            return Some(Base::Container);
        }
        (!self.environment.is_true("AWS_EC2_METADATA_DISABLED")).then_some(Base::Instance)
    }
}

#[cfg(test)]
#[path = "way_tests.rs"]
mod tests;
