//! Where AWS is, when it is not where it usually is: one address for everything, or one for a service.

use super::credentials::config::Files;
use super::credentials::environment::Environment;

/// Addresses of services, in the order in which the AWS CLI looks: the command line, the environment, the profile.
#[derive(Debug, Clone, Default)]
pub struct Endpoints {
    given: Option<String>,
    environment: Option<Environment>,
    files: Files,
    profile: String,
}

impl Endpoints {
    /// `given` is the command line's; the others count unless AWS_IGNORE_CONFIGURED_ENDPOINT_URLS is set.
    #[must_use]
    pub fn new(given: Option<String>, environment: &Environment, files: &Files, profile: &str) -> Endpoints {
        let ignored = environment.is_true("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS");
        let environment = (!ignored).then(|| environment.clone());
        Endpoints { given, environment, files: files.clone(), profile: profile.to_owned() }
    }

    /// The address of `service` (`ec2`, `sts`), when it is not AWS's own.
    #[must_use]
    pub fn of(&self, service: &str) -> Option<String> {
        if let Some(url) = &self.given {
            return Some(url.clone());
        }
        let environment = self.environment.as_ref()?;
        let variable = format!("AWS_ENDPOINT_URL_{}", service.to_ascii_uppercase());
        let set = environment.get(&variable).or_else(|| environment.get("AWS_ENDPOINT_URL"));
        set.map(str::to_owned).or_else(|| self.of_profile(service))
    }

    /// Whether the command line names an address: then the AWS CLI talks to other servers than Kiln does.
    #[must_use]
    pub fn is_given(&self) -> bool {
        self.given.is_some()
    }

    fn of_profile(&self, service: &str) -> Option<String> {
        let profile = self.files.profiles.get(&self.profile)?;
        let services = profile.get("services").and_then(|name| self.files.services.get(&name.text));
        let own = services.and_then(|section| section.get(service)?.nested.get("endpoint_url").cloned());
        own.or_else(|| profile.get("endpoint_url").map(|value| value.text.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_address_counts() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        let config = "[profile a]\nservices = l\nendpoint_url = http://p\n[services l]\nsts =\n  endpoint_url = http://ps\n";
        std::fs::write(home.path().join(".aws/config"), config).unwrap();
        let of = |given: Option<&str>, variables: &[(&str, &str)], service| {
            let environment = Environment::new(home.path(), variables);
            let files = Files::read(&environment).unwrap();
            let endpoints = Endpoints::new(given.map(str::to_owned), &environment, &files, "a");
            endpoints.of(service).unwrap_or_default()
        };
        assert_eq!(of(None, &[], "sts"), "http://ps");
        assert_eq!(of(None, &[], "ec2"), "http://p");
        let all = ("AWS_ENDPOINT_URL", "http://e");
        assert_eq!(of(None, &[all], "sts"), "http://e");
        assert_eq!(of(None, &[all, ("AWS_ENDPOINT_URL_STS", "http://es")], "sts"), "http://es");
        assert_eq!(of(None, &[all, ("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")], "sts"), "");
        assert_eq!(of(Some("http://g"), &[all], "sts"), "http://g");
    }
}
