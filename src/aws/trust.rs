//! Whom to believe that a server is AWS's: the certificate authorities of the host, or only those of the file that
//! AWS_CA_BUNDLE or the profile's `ca_bundle` names, as with the AWS CLI.

use std::path::Path;
use std::sync::Arc;

use aws_smithy_http_client::tls::TrustStore;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use ureq::tls::RootCerts;

use super::credentials::{Environment, Files};
use super::error::AwsError;
use crate::host::roots;

/// Certificate authorities.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    /// Certificates in PEM, each of which was looked at. None: those of the host.
    bundle: Option<Arc<Vec<u8>>>,
}

impl Trust {
    /// What the environment says, else the profile.
    ///
    /// # Errors
    /// When the file can't be read, or holds no certificates.
    pub fn find(environment: &Environment, files: &Files, profile: &str) -> Result<Trust, AwsError> {
        let own = || Some(files.profiles.get(profile)?.get("ca_bundle")?.text.as_str());
        let (path, from) = match (environment.get("AWS_CA_BUNDLE"), own()) {
            (Some(path), _) => (path, "AWS_CA_BUNDLE".to_owned()),
            (None, Some(path)) => (path, format!("ca_bundle of the profile `{profile}`")),
            (None, None) => return Ok(Trust::default()),
        };
        let path = environment.expand(path);
        let bundle = read(&path).map_err(|why| {
            let message = format!("{from} names {}: {why}", path.display());
            AwsError::credentials(message).advise("it has to be a file of certificates in PEM")
        })?;
        Ok(Trust { bundle: Some(Arc::new(bundle)) })
    }

    /// For the SDK's clients.
    pub(super) fn store(&self) -> TrustStore {
        match &self.bundle {
            None => TrustStore::default(),
            Some(bundle) => TrustStore::empty().with_pem_certificate(bundle.to_vec()),
        }
    }

    /// For requests that no client of the SDK makes.
    pub(super) fn roots(&self) -> RootCerts {
        match &self.bundle {
            None => roots::root_certs(),
            Some(bundle) => RootCerts::from(roots::certificates(bundle)),
        }
    }
}

/// Reads a bundle. All of it has to be understood: the SDK panics at what isn't.
fn read(path: &Path) -> Result<Vec<u8>, String> {
    let pem = std::fs::read(path).map_err(|e| e.to_string())?;
    let mut store = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(&pem) {
        let added =
            cert.map_err(|e| e.to_string()).and_then(|cert| store.add(cert).map_err(|e| e.to_string()));
        added.map_err(|why| format!("one of its certificates is damaged: {why}"))?;
    }
    if store.is_empty() { Err("there is no certificate in it".to_owned()) } else { Ok(pem) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_bundle_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let find = |text: Option<&str>| {
            let path = home.path().join("bundle.pem");
            if let Some(text) = text {
                std::fs::write(&path, text).unwrap();
            }
            let environment = Environment::new(home.path(), &[("AWS_CA_BUNDLE", "~/bundle.pem")]);
            let files = Files::read(&environment).unwrap();
            Trust::find(&environment, &files, "default").unwrap_err().to_string()
        };
        let said = find(None);
        assert!(said.contains("AWS_CA_BUNDLE names") && said.contains("No such file"), "{said}");
        assert!(find(Some("nothing")).contains("no certificate in it"));
        let pem = |body: &str| format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
        for body in ["AAAA", "!!!!", "MIIB", ""] {
            let said = find(Some(&pem(body)));
            assert!(said.contains("damaged"), "{body}: {said}");
        }
    }

    #[test]
    fn the_environment_comes_before_the_profile() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        let config = "[profile a]\nca_bundle = /nowhere/profile.pem\n";
        std::fs::write(home.path().join(".aws/config"), config).unwrap();
        let find = |variables: &[(&str, &str)], profile| {
            let environment = Environment::new(home.path(), variables);
            let files = Files::read(&environment).unwrap();
            Trust::find(&environment, &files, profile).map_err(|e| e.to_string())
        };
        assert!(find(&[], "default").is_ok());
        let said = find(&[], "a").unwrap_err();
        assert!(said.starts_with("ca_bundle of the profile `a` names /nowhere/profile.pem"), "{said}");
        let said = find(&[("AWS_CA_BUNDLE", "/nowhere/variable.pem")], "a").unwrap_err();
        assert!(said.contains("/nowhere/variable.pem"), "{said}");
    }
}
