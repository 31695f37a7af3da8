//! systemd credentials (systemd.exec(5), systemd-creds(1)) passed to a guest as SMBIOS strings of type 11: a way to say
//! something to an image without changing it.

use std::path::{Path, PathBuf};

pub use crate::base64::{base64, from_base64};
use crate::host::fs::{FileError, write_atomically};

/// A credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// Its name, as in `ssh.authorized_keys.root`.
    pub name: String,
    /// Its bytes. All credentials of a machine together must stay below 48 KiB: the SMBIOS table ends at 64 KiB.
    pub value: Vec<u8>,
}

impl Credential {
    /// A credential that lets the holder of a key log in as root over SSH (systemd 252 or newer writes it to
    /// ~root/.ssh/authorized_keys, when there is no such file).
    #[must_use]
    pub fn ssh_key(public_key: &str) -> Credential {
        Credential { name: "ssh.authorized_keys.root".to_owned(), value: public_key.as_bytes().to_vec() }
    }

    /// The SMBIOS string that carries it.
    #[must_use]
    pub fn smbios(&self) -> String {
        format!("io.systemd.credential.binary:{}={}", self.name, base64(&self.value))
    }
}

/// Writes each credential to a file of its own in `folder`, as QEMU takes them.
///
/// # Errors
/// When a file can't be written.
pub fn write(credentials: &[Credential], folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    let mut files = Vec::new();
    for (number, credential) in credentials.iter().enumerate() {
        let path = folder.join(format!("credential-{number}"));
        write_atomically(&path, credential.smbios().as_bytes())?;
        files.push(path);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_becomes_an_smbios_string() {
        assert_eq!(
            Credential::ssh_key("ssh-ed25519 AAAA").smbios(),
            "io.systemd.credential.binary:ssh.authorized_keys.root=c3NoLWVkMjU1MTkgQUFBQQ=="
        );
    }
}
