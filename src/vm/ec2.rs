//! An EC2 instance as data: what the metadata service says of it, what its firmware says, how its network looks.
//!
//! Everything that EC2 would make up is derived from a seed, so that one image boots the same instance every time.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::base64::{base64, from_base64};
use crate::digest::{Digest, hex};
use crate::system::test::USER_DATA_LIMIT;

/// The default VPC's addresses.
pub const VPC: &str = "172.31.0.0/16";
/// One of its subnets, in which the instance lies.
pub const SUBNET: &str = "172.31.16.0/20";
/// The subnet's router: the emulated network's own address.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(172, 31, 16, 1);
/// Where the guest is told to ask for names; nobody answers.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(172, 31, 16, 2);
/// First address that the instance may have, as a number, and how many there are: EC2 keeps the first four and the
/// last one for itself, and QEMU hands out a few from the instance's own on.
const ADDRESSES: (u32, u32) = (0xac1f_1004, 4096 - 32);

/// Which requests the metadata service answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metadata {
    /// Only those with a token of a session (version 2).
    #[default]
    Required,
    /// Those without one as well (version 1).
    Optional,
}

/// A key that the instance was launched with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicKey {
    /// EC2's name of it.
    pub name: String,
    /// One line, as OpenSSH writes it.
    pub openssh: String,
}

/// An instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// `i-…`.
    pub instance_id: String,
    /// `ami-…`.
    pub image_id: String,
    /// `m7i.large` or another.
    pub instance_type: String,
    /// `us-east-1` or another.
    pub region: String,
    /// The region with a letter.
    pub availability_zone: String,
    /// The zone's name that is the same for all accounts.
    pub availability_zone_id: String,
    /// The account's number, 12 digits.
    pub owner_id: String,
    /// `r-…`.
    pub reservation_id: String,
    /// `vol-…`: the root volume.
    pub volume_id: String,
    /// `eni-…`: the network interface.
    pub interface_id: String,
    /// `subnet-…`.
    pub subnet_id: String,
    /// `vpc-…`.
    pub vpc_id: String,
    /// `sg-…`: the security group, which is named `default`.
    pub security_group_id: String,
    /// Within [`SUBNET`].
    pub private_ip: Ipv4Addr,
    /// What the world reaches it by, when it has one. Nothing listens there.
    pub public_ip: Option<Ipv4Addr>,
    /// The network card's address.
    pub mac: String,
    /// The machine's number in its firmware; begins with ec2.
    pub uuid: Uuid,
    /// When it was launched, as in `2025-01-01T00:00:00Z`.
    pub launched: String,
    /// The key to log in with.
    pub public_key: Option<PublicKey>,
    /// What the launch gave to cloud-init.
    #[serde(with = "as_base64")]
    pub user_data: Option<Vec<u8>>,
    /// Tags, which the metadata service shows when there are any.
    pub tags: BTreeMap<String, String>,
    /// The name of its role, with credentials that are plainly none.
    pub role: Option<String>,
    /// Which requests the metadata service answers.
    pub metadata: Metadata,
}

/// An instance that EC2 would not launch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InstanceError {
    /// Too much user data.
    #[error(
        "the user data has {0} bytes; EC2 takes at most {USER_DATA_LIMIT} (compress it, or have it fetch the rest)"
    )]
    UserData(usize),
    /// An address outside of the subnet, or one that EC2 keeps for itself.
    #[error("the private address {0} can't be an instance's: take one from 172.31.16.4 to 172.31.31.227")]
    Address(Ipv4Addr),
    /// A value that would end up as something else in QEMU's arguments or in the metadata.
    #[error("{field} can't be {value:?}: {why}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl Instance {
    /// An m7i.large in us-east-1a whose numbers follow from `seed`.
    #[must_use]
    pub fn new(seed: &str) -> Instance {
        let id = |kind: &str| {
            let digits = hex(&derived(seed, kind).0);
            format!("{kind}-0{}", &digits[..16])
        };
        let bytes = derived(seed, "mac").0;
        let mac =
            format!("02:{}", bytes[..5].iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":"));
        let number =
            |kind: &str| u32::from_be_bytes(derived(seed, kind).0[..4].try_into().unwrap_or_default());
        Instance {
            instance_id: id("i"),
            image_id: id("ami"),
            instance_type: "m7i.large".to_owned(),
            region: "us-east-1".to_owned(),
            availability_zone: "us-east-1a".to_owned(),
            availability_zone_id: "use1-az1".to_owned(),
            owner_id: format!("{:012}", 100_000_000_000 + u64::from(number("owner"))),
            reservation_id: id("r"),
            volume_id: id("vol"),
            interface_id: id("eni"),
            subnet_id: id("subnet"),
            vpc_id: id("vpc"),
            security_group_id: id("sg"),
            private_ip: Ipv4Addr::from(ADDRESSES.0 + number("address") % ADDRESSES.1),
            public_ip: None,
            mac,
            uuid: uuid(seed),
            launched: "2025-01-01T00:00:00Z".to_owned(),
            public_key: None,
            user_data: None,
            tags: BTreeMap::new(),
            role: None,
            metadata: Metadata::Required,
        }
    }

    /// The name of the host: `ip-172-31-16-15`.
    #[must_use]
    pub fn short_hostname(&self) -> String {
        format!("ip-{}", self.private_ip.to_string().replace('.', "-"))
    }

    /// The domain of all instances of the region.
    #[must_use]
    pub fn domain(&self) -> String {
        match self.region.as_str() {
            "us-east-1" => "ec2.internal".to_owned(),
            region => format!("{region}.compute.internal"),
        }
    }

    /// `ip-172-31-16-15.ec2.internal`.
    #[must_use]
    pub fn hostname(&self) -> String {
        format!("{}.{}", self.short_hostname(), self.domain())
    }

    /// The public name, when there is a public address.
    #[must_use]
    pub fn public_hostname(&self) -> Option<String> {
        let dashed = self.public_ip?.to_string().replace('.', "-");
        Some(match self.region.as_str() {
            "us-east-1" => format!("ec2-{dashed}.compute-1.amazonaws.com"),
            region => format!("ec2-{dashed}.{region}.compute.amazonaws.com"),
        })
    }

    /// The root volume's serial number as its NVMe device says it: without the dash.
    #[must_use]
    pub fn volume_serial(&self) -> String {
        self.volume_id.replacen('-', "", 1)
    }

    /// Refuses what EC2 would not launch and what QEMU would misread.
    ///
    /// # Errors
    /// [`InstanceError`].
    pub fn check(&self) -> Result<(), InstanceError> {
        if let Some(data) = self.user_data.as_ref().filter(|data| data.len() > USER_DATA_LIMIT) {
            return Err(InstanceError::UserData(data.len()));
        }
        let (first, count) = ADDRESSES;
        if !(first..first + count).contains(&u32::from(self.private_ip)) {
            return Err(InstanceError::Address(self.private_ip));
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
        for (field, value) in [
            ("the instance id", &self.instance_id),
            ("the instance type", &self.instance_type),
            ("the region", &self.region),
            ("the volume id", &self.volume_id),
            ("the MAC address", &self.mac),
        ] {
            if value.is_empty() || !value.chars().all(plain) {
                let why = "only letters, digits, dots, dashes and colons can stand there";
                return Err(InstanceError::Field { field, value: value.clone(), why });
            }
        }
        // The metadata service makes paths and lines of these.
        let names = self.tags.keys().map(|name| ("a tag's name", name));
        let key = self.public_key.iter().map(|key| ("the key's name", &key.name));
        for (field, value) in names.chain(key).chain(self.role.iter().map(|role| ("the role", role))) {
            if value.is_empty() || [".", ".."].contains(&value.as_str()) || value.contains(['/', '\n', ' ']) {
                let why = "it would be no path of the metadata service";
                return Err(InstanceError::Field { field, value: value.clone(), why });
            }
        }
        Ok(())
    }

    /// What the firmware's tables say on a Nitro machine.
    #[must_use]
    pub(super) fn smbios(&self) -> [String; 4] {
        let Instance { instance_type, instance_id, uuid, .. } = self;
        [
            "type=0,vendor=Amazon EC2,version=1.0,date=10/16/2017".to_owned(),
            format!("type=1,manufacturer=Amazon EC2,product={instance_type},serial={uuid},uuid={uuid}"),
            format!("type=2,manufacturer=Amazon EC2,asset={instance_id}"),
            "type=3,manufacturer=Amazon EC2,asset=Amazon EC2".to_owned(),
        ]
    }

    /// The card's network as QEMU emulates it: an address, a router and a name by DHCP, as EC2 gives them.
    #[must_use]
    pub(super) fn netdev(&self) -> String {
        format!(
            "net={SUBNET},host={ROUTER},dhcpstart={},dns={RESOLVER},hostname={},domainname={}",
            self.private_ip,
            self.short_hostname(),
            self.domain()
        )
    }
}

/// What a machine pretends to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    /// Nothing but itself.
    #[default]
    Plain,
    /// An instance on EC2.
    Ec2(Box<Instance>),
}

impl Platform {
    /// The instance, if it is one.
    #[must_use]
    pub fn instance(&self) -> Option<&Instance> {
        match self {
            Platform::Plain => None,
            Platform::Ec2(instance) => Some(instance),
        }
    }

    /// The words of QEMU's command line that only such a platform has.
    pub(super) fn words(&self) -> Vec<OsString> {
        let tables = self.instance().map(Instance::smbios).into_iter().flatten();
        tables.flat_map(|table| ["-smbios".into(), table.into()]).collect()
    }
}

fn derived(seed: &str, kind: &str) -> Digest {
    Digest::of(format!("{kind}\0{seed}").as_bytes())
}

fn uuid(seed: &str) -> Uuid {
    let mut bytes: [u8; 16] = derived(seed, "uuid").0[..16].try_into().unwrap_or_default();
    bytes[0] = 0xec;
    bytes[1] = 0x20 | bytes[1] & 0x0f;
    Uuid::from_bytes(bytes)
}

mod as_base64 {
    use super::{base64, from_base64};
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(bytes: &Option<Vec<u8>>, to: S) -> Result<S::Ok, S::Error> {
        bytes.as_ref().map(|bytes| base64(bytes)).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<u8>>, D::Error> {
        let text: Option<String> = Option::deserialize(from)?;
        text.map(|text| from_base64(&text).ok_or_else(|| D::Error::custom("no base64"))).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_follows_from_its_seed() {
        let (one, again, other) = (Instance::new("a"), Instance::new("a"), Instance::new("b"));
        assert_eq!(one, again);
        assert_ne!(one.instance_id, other.instance_id);
        assert_ne!(one.private_ip, other.private_ip);
        assert_eq!(one.instance_id.len(), 19, "{}", one.instance_id);
        assert!(one.uuid.to_string().starts_with("ec2"), "{}", one.uuid);
        assert!(one.mac.starts_with("02:") && one.mac.len() == 17, "{}", one.mac);
        assert_eq!(one.owner_id.len(), 12);
        assert_eq!(one.volume_serial(), one.volume_id.replace("vol-", "vol"));
        for seed in 0..500 {
            Instance::new(&seed.to_string()).check().unwrap();
        }
    }

    #[test]
    fn names_follow_from_addresses() {
        let mut instance = Instance::new("a");
        instance.private_ip = Ipv4Addr::new(172, 31, 16, 15);
        assert_eq!(instance.hostname(), "ip-172-31-16-15.ec2.internal");
        instance.public_ip = Some(Ipv4Addr::new(203, 0, 113, 9));
        assert_eq!(instance.public_hostname().unwrap(), "ec2-203-0-113-9.compute-1.amazonaws.com");
        instance.region = "eu-west-1".to_owned();
        assert_eq!(instance.hostname(), "ip-172-31-16-15.eu-west-1.compute.internal");
        assert_eq!(instance.public_hostname().unwrap(), "ec2-203-0-113-9.eu-west-1.compute.amazonaws.com");
    }

    #[test]
    fn what_ec2_would_not_launch_is_refused() {
        let wrong = |change: &dyn Fn(&mut Instance)| {
            let mut instance = Instance::new("a");
            change(&mut instance);
            instance.check().unwrap_err().to_string()
        };
        assert_eq!(
            wrong(&|i| i.user_data = Some(vec![0; USER_DATA_LIMIT + 1])),
            "the user data has 16385 bytes; EC2 takes at most 16384 (compress it, or have it fetch the rest)"
        );
        assert!(wrong(&|i| i.private_ip = ROUTER).contains("172.31.16.1 can't be"));
        assert!(wrong(&|i| i.instance_type = "m7i,large".to_owned()).contains("\"m7i,large\""));
        assert!(wrong(&|i| drop(i.tags.insert("a/b".to_owned(), String::new()))).contains("a tag's name"));
    }

    #[test]
    fn an_instance_survives_being_written_down() {
        let mut instance = Instance::new("a");
        instance.user_data = Some(vec![0, 255, 10]);
        let text = serde_json::to_string(&instance).unwrap();
        assert_eq!(serde_json::from_str::<Instance>(&text).unwrap(), instance);
    }
}
