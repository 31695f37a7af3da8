//! Identities of disks, partitions and file systems, derived from the system's name.

use uuid::Uuid;

use crate::digest::{Digest, Hasher};

/// Where identities come from: the system's name. Equal names give equal identities, whatever the system holds, so that
/// a boot loader, an fstab or a cloned configuration that names them stays right from one version to the next.
#[derive(Debug, Clone, Copy)]
pub struct Ids<'a> {
    system: &'a str,
}

impl<'a> Ids<'a> {
    /// The identities of the system of this name.
    #[must_use]
    pub fn of(system: &'a str) -> Ids<'a> {
        Ids { system }
    }

    /// The GUID of the disk.
    #[must_use]
    pub fn disk(&self) -> Uuid {
        self.derive("disk", "")
    }

    /// The GUID of a partition (`PARTUUID`) by its name in the layout: `root`, `esp`, `bios`, or an extra one's.
    #[must_use]
    pub fn partition(&self, name: &str) -> Uuid {
        self.derive("partition", name)
    }

    /// The UUID of the ext4 file system on the partition of that name.
    #[must_use]
    pub fn file_system(&self, partition: &str) -> Uuid {
        self.derive("file system", partition)
    }

    /// The seed of that file system's directory hashes.
    #[must_use]
    pub fn hash_seed(&self, partition: &str) -> Uuid {
        self.derive("hash seed", partition)
    }

    /// The serial number of the FAT file system on the ESP.
    #[must_use]
    pub fn esp_serial(&self) -> u32 {
        let digest = self.digest("file system", "esp");
        u32::from_be_bytes([digest.0[0], digest.0[1], digest.0[2], digest.0[3]])
    }

    /// A UUID of version 8 (RFC 9562, section 5.8): the first 122 bits of a digest.
    fn derive(&self, what: &str, name: &str) -> Uuid {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&self.digest(what, name).0[..16]);
        bytes[6] = bytes[6] & 0x0f | 0x80;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Uuid::from_bytes(bytes)
    }

    fn digest(&self, what: &str, name: &str) -> Digest {
        let mut hasher = Hasher::new();
        for part in ["kiln", what, self.system, name] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_pinned_and_differ() {
        let ids = Ids::of("server");
        insta::assert_snapshot!(format!(
            "{}\n{}\n{}\n{}\n{:08x}",
            ids.disk(),
            ids.partition("root"),
            ids.file_system("root"),
            ids.hash_seed("root"),
            ids.esp_serial()
        ));
        assert_ne!(ids.partition("root"), ids.partition("esp"));
        assert_ne!(ids.partition("root"), Ids::of("web").partition("root"));
        assert_eq!(ids.disk().get_version_num(), 8);
    }
}
