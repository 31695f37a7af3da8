//! The certificate authorities that the host trusts.

use std::path::PathBuf;

use ureq::tls::{Certificate, PemItem, RootCerts};

/// Those that the host trusts, so that those of a company's proxy count; else Mozilla's.
#[must_use]
pub fn root_certs() -> RootCerts {
    let from_env =
        ["SSL_CERT_FILE", "CURL_CA_BUNDLE"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    let usual =
        ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
    let files = from_env.chain(usual.map(PathBuf::from));
    let mut found = files.filter_map(|path| std::fs::read(path).ok()).map(|pem| certificates(&pem));
    found.find(|certs| !certs.is_empty()).map_or(RootCerts::WebPki, RootCerts::from)
}

/// The certificates of a file in PEM; what isn't one is left out.
#[must_use]
pub fn certificates(pem: &[u8]) -> Vec<Certificate<'static>> {
    let items = ureq::tls::parse_pem(pem);
    items
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(cert)) => Some(cert),
            _ => None,
        })
        .collect()
}
