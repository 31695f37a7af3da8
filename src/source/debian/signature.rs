//! OpenPGP signatures of Release files (RFC 9580), checked against a keyring that is an input.

use std::io::Read;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sequoia_openpgp::cert::prelude::{Cert, CertParser, ValidErasedKeyAmalgamation};
use sequoia_openpgp::packet::key::PublicParts;
use sequoia_openpgp::parse::stream::{
    DetachedVerifierBuilder, MessageLayer, MessageStructure, VerificationError, VerificationHelper,
    VerifierBuilder,
};
use sequoia_openpgp::parse::{PacketParser, Parse};
use sequoia_openpgp::policy::StandardPolicy;
use sequoia_openpgp::{KeyHandle, anyhow};

use crate::date::Timestamp;

/// Seconds by which the signer's clock, or the time it takes to sign, may be ahead of the time of the policy.
pub const SKEW: i64 = 3600;

/// The public keys that Debian signs its archives with, from its package `debian-archive-keyring`: see `keys/README.md`.
const DEBIAN_KEYS: [(&str, &[u8]); 6] = [
    ("trixie-automatic", include_bytes!("keys/debian-archive-trixie-automatic.pgp")),
    ("trixie-security-automatic", include_bytes!("keys/debian-archive-trixie-security-automatic.pgp")),
    ("trixie-stable", include_bytes!("keys/debian-archive-trixie-stable.pgp")),
    ("bookworm-automatic", include_bytes!("keys/debian-archive-bookworm-automatic.pgp")),
    ("bookworm-security-automatic", include_bytes!("keys/debian-archive-bookworm-security-automatic.pgp")),
    ("bookworm-stable", include_bytes!("keys/debian-archive-bookworm-stable.pgp")),
];

/// Why a signature is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// A key file that holds no usable public key.
    #[error("{file} holds no OpenPGP public key: {why}")]
    Key {
        /// The key file.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// There is no signature at all.
    #[error("it is not signed")]
    Unsigned,
    /// Something stands before or after the signed text.
    #[error("there is text outside of what is signed")]
    Outside,
    /// Signed by keys of which the keyring has none.
    #[error("it is signed by {}, which {} not among the trusted keys", keys.join(", "), if keys.len() == 1 { "is" } else { "are" })]
    UnknownSigner {
        /// Fingerprints or key ids that the signatures name.
        keys: Vec<String>,
    },
    /// A known key's signature that is not good, or whose key is not.
    #[error("no good signature by a trusted key: {}", reasons.join("; "))]
    Bad {
        /// Each signature's fault.
        reasons: Vec<String>,
    },
    /// Bytes that are no OpenPGP message.
    #[error("its signature can't be read: {0}")]
    Malformed(String),
}

/// Public keys that are trusted to sign an archive.
#[derive(Debug, Clone, Default)]
pub struct Keyring {
    certs: Vec<Cert>,
}

impl Keyring {
    /// The keys of Debian's own archives.
    ///
    /// # Errors
    /// Never in practice: the embedded keys are checked by a test.
    pub fn debian() -> Result<Keyring, SignatureError> {
        let mut ring = Keyring::default();
        for (name, bytes) in DEBIAN_KEYS {
            ring.add(name, bytes)?;
        }
        Ok(ring)
    }

    /// Adds the keys of a key file, armoured (any number of blocks) or binary. `name` is named in errors.
    ///
    /// # Errors
    /// [`SignatureError::Key`] when the file holds no key or anything else than keys.
    pub fn add(&mut self, name: &str, bytes: &[u8]) -> Result<(), SignatureError> {
        let wrong = |why: String| SignatureError::Key { file: name.to_owned(), why };
        let before = self.certs.len();
        for block in armour_blocks(bytes) {
            let parser = CertParser::from_bytes(block).map_err(|e| wrong(e.to_string()))?;
            for cert in parser {
                self.certs.push(cert.map_err(|e| wrong(e.to_string()))?.strip_secret_key_material());
            }
        }
        if self.certs.len() == before { Err(wrong("it is empty".to_owned())) } else { Ok(()) }
    }
}

/// The armoured blocks of a key file; the whole file when it is binary.
fn armour_blocks(bytes: &[u8]) -> Vec<&[u8]> {
    const BEGIN: &[u8] = b"-----BEGIN PGP PUBLIC KEY BLOCK-----";
    let starts: Vec<usize> = memchr::memmem::find_iter(bytes, BEGIN).collect();
    if starts.is_empty() {
        return vec![bytes];
    }
    let ends = starts.iter().skip(1).copied().chain([bytes.len()]);
    starts.iter().zip(ends).map(|(&start, end)| &bytes[start..end]).collect()
}

/// A text whose signature is good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// The signed text, without the signature.
    pub text: Vec<u8>,
    /// Fingerprints of the keys (primary keys) that made a good signature, sorted.
    pub signers: Vec<String>,
}

/// Checks a clear-signed text (`InRelease`). One good signature by a key of `keyring` is enough, at the time `at`: the
/// present when an archive is locked, the release's own date when a lock is looked at again years later.
///
/// # Errors
/// See [`SignatureError`].
pub fn verify_clearsigned(bytes: &[u8], keyring: &Keyring, at: Timestamp) -> Result<Signed, SignatureError> {
    check_frame(bytes)?;
    let (policy, time) = policy_at(at);
    let helper = Helper::new(keyring, &policy, time);
    let malformed = |e: anyhow::Error| SignatureError::Malformed(e.to_string());
    let builder = VerifierBuilder::from_bytes(bytes).map_err(malformed)?;
    let mut verifier = builder.with_policy(&policy, time, helper).map_err(into_signature_error)?;
    let mut text = Vec::with_capacity(bytes.len());
    verifier.read_to_end(&mut text).map_err(|e| into_signature_error(anyhow::Error::from(e)))?;
    Ok(Signed { text, signers: verifier.into_helper().signers() })
}

/// Checks a detached signature (`Release.gpg`) of `text` (`Release`), as [`verify_clearsigned`] does.
///
/// # Errors
/// See [`SignatureError`].
pub fn verify_detached(
    text: &[u8],
    signature: &[u8],
    keyring: &Keyring,
    at: Timestamp,
) -> Result<Signed, SignatureError> {
    let (policy, time) = policy_at(at);
    let helper = Helper::new(keyring, &policy, time);
    // A stray text instead of a signature would otherwise count as a message without signatures.
    let malformed = |e: anyhow::Error| SignatureError::Malformed(e.to_string());
    PacketParser::from_bytes(signature).map_err(malformed)?;
    let builder = DetachedVerifierBuilder::from_bytes(signature).map_err(malformed)?;
    let mut verifier = builder.with_policy(&policy, time, helper).map_err(into_signature_error)?;
    verifier.verify_bytes(text).map_err(into_signature_error)?;
    Ok(Signed { text: text.to_vec(), signers: verifier.into_helper().signers() })
}

/// Refuses text before or after the clear-signed message, which a careless reader could take for signed.
fn check_frame(bytes: &[u8]) -> Result<(), SignatureError> {
    const BEGIN: &[u8] = b"-----BEGIN PGP SIGNED MESSAGE-----";
    const END: &[u8] = b"-----END PGP SIGNATURE-----";
    let begins: Vec<usize> = memchr::memmem::find_iter(bytes, BEGIN).collect();
    match begins.as_slice() {
        [] => Err(SignatureError::Unsigned),
        [0] if bytes.trim_ascii_end().ends_with(END)
            && memchr::memmem::find_iter(bytes, END).count() == 1 =>
        {
            Ok(())
        }
        _ => Err(SignatureError::Outside),
    }
}

/// What was secure at the time, and the time by which signatures and keys must be valid.
fn policy_at(at: Timestamp) -> (StandardPolicy<'static>, SystemTime) {
    let seconds = u64::try_from(at.plus(SKEW).0).unwrap_or(0).min(u64::from(u32::MAX));
    let time = UNIX_EPOCH + Duration::from_secs(seconds);
    (StandardPolicy::at(time), time)
}

/// Gives sequoia the keys, and decides over what it found.
struct Helper<'a> {
    keyring: &'a Keyring,
    policy: &'a StandardPolicy<'static>,
    time: SystemTime,
    signers: Vec<String>,
}

impl<'a> Helper<'a> {
    fn new(keyring: &'a Keyring, policy: &'a StandardPolicy<'static>, time: SystemTime) -> Helper<'a> {
        Helper { keyring, policy, time, signers: Vec::new() }
    }

    fn signers(mut self) -> Vec<String> {
        self.signers.sort();
        self.signers.dedup();
        self.signers
    }

    /// Whether the key is still good at the policy's time. Sequoia itself looks at the time that the signature names,
    /// which the holder of an expired key could choose.
    fn still_good(&self, ka: &ValidErasedKeyAmalgamation<PublicParts>) -> anyhow::Result<()> {
        let cert = ka.cert().with_policy(self.policy, self.time)?;
        cert.alive()?;
        let fingerprint = ka.key().fingerprint();
        let key = cert.keys().find(|k| k.key().fingerprint() == fingerprint);
        key.ok_or_else(|| anyhow::anyhow!("the signing key is no longer bound to its certificate"))?.alive()
    }
}

impl VerificationHelper for Helper<'_> {
    fn get_certs(&mut self, ids: &[KeyHandle]) -> anyhow::Result<Vec<Cert>> {
        let named = |cert: &&Cert| cert.keys().any(|k| ids.iter().any(|id| id.aliases(k.key().key_handle())));
        Ok(self.keyring.certs.iter().filter(named).cloned().collect())
    }

    fn check(&mut self, structure: MessageStructure) -> anyhow::Result<()> {
        let (mut unknown, mut reasons) = (Vec::new(), Vec::new());
        for layer in structure {
            let MessageLayer::SignatureGroup { results } = layer else {
                return Err(SignatureError::Malformed("it is encrypted or compressed".to_owned()).into());
            };
            for result in results {
                match result {
                    Ok(good) => match self.still_good(&good.ka) {
                        Ok(()) => self.signers.push(good.ka.cert().fingerprint().to_hex()),
                        Err(e) => reasons.push(format!("key {}: {e}", good.ka.key().fingerprint().to_hex())),
                    },
                    Err(VerificationError::MissingKey { sig }) => {
                        unknown.extend(sig.get_issuers().into_iter().map(|id| id.to_hex()).take(1))
                    }
                    Err(error) => reasons.push(describe(&error)),
                }
            }
        }
        match (self.signers.is_empty(), unknown.is_empty(), reasons.is_empty()) {
            (false, ..) => Ok(()),
            (true, _, false) => Err(SignatureError::Bad { reasons }.into()),
            (true, false, true) => Err(SignatureError::UnknownSigner { keys: unknown }.into()),
            (true, true, true) => Err(SignatureError::Unsigned.into()),
        }
    }
}

/// A failed signature in words, with the chain of its causes.
fn describe(error: &VerificationError) -> String {
    let chain = |key: String, e: &anyhow::Error| {
        let causes: Vec<String> = e.chain().map(ToString::to_string).collect();
        format!("key {key}: {}", causes.join(": "))
    };
    match error {
        VerificationError::UnboundKey { cert, error, .. } => chain(cert.fingerprint().to_hex(), error),
        VerificationError::BadKey { ka, error, .. } | VerificationError::BadSignature { ka, error, .. } => {
            chain(ka.key().fingerprint().to_hex(), error)
        }
        other => other.to_string(),
    }
}

/// Takes our own error out of sequoia's wrapping.
fn into_signature_error(error: anyhow::Error) -> SignatureError {
    let own = |e: &(dyn std::error::Error + 'static)| e.downcast_ref::<SignatureError>().cloned();
    let inner_of_io = error
        .downcast_ref::<std::io::Error>()
        .and_then(|e| e.get_ref())
        .and_then(|e| own(e).or_else(|| e.source().and_then(own)));
    let found = error.downcast_ref::<SignatureError>().cloned().or(inner_of_io);
    found
        .or_else(|| error.chain().find_map(own))
        .unwrap_or_else(|| SignatureError::Malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debians_keys_are_whole() {
        let ring = Keyring::debian().unwrap();
        assert_eq!(ring.certs.len(), DEBIAN_KEYS.len());
        assert!(ring.certs.iter().all(|cert| !cert.is_tsk()), "only public keys");
    }
}
