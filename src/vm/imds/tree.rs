//! What the metadata service has to tell, as a tree: which categories there are and what each says.
//!
//! The names are those of an instance of the Nitro system with one network interface. All dated versions show the same
//! tree; EC2 leaves out of the older ones what came later.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::json;

use super::super::ec2::{Instance, SUBNET, VPC};
use crate::base64::base64;

/// The versions that the service's root lists.
pub(super) const VERSIONS: [&str; 30] = [
    "1.0",
    "2007-01-19",
    "2007-03-01",
    "2007-08-29",
    "2007-10-10",
    "2007-12-15",
    "2008-02-01",
    "2008-09-01",
    "2009-04-04",
    "2011-01-01",
    "2011-05-01",
    "2012-01-12",
    "2014-02-25",
    "2014-11-05",
    "2015-10-20",
    "2016-04-19",
    "2016-06-30",
    "2016-09-02",
    "2018-03-28",
    "2018-08-17",
    "2018-09-24",
    "2019-10-01",
    "2020-10-27",
    "2021-01-03",
    "2021-03-23",
    "2021-07-15",
    "2022-07-09",
    "2022-09-24",
    "2024-04-11",
    "latest",
];

/// A place of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    /// A list of names.
    Folder(Folder),
    /// A value.
    Leaf(Leaf),
}

/// A value and how it is marked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leaf {
    pub bytes: Vec<u8>,
    pub content_type: &'static str,
}

/// What lies below a path that ends with a slash.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Folder {
    entries: BTreeMap<String, Node>,
    /// What the list says instead of the entries' own names.
    listed: Option<String>,
}

impl Folder {
    fn leaf(mut self, name: &str, value: impl Into<Vec<u8>>) -> Folder {
        let leaf = Leaf { bytes: value.into(), content_type: "text/plain" };
        self.entries.insert(name.to_owned(), Node::Leaf(leaf));
        self
    }

    fn folder(mut self, name: &str, folder: Folder) -> Folder {
        self.entries.insert(name.to_owned(), Node::Folder(folder));
        self
    }

    fn folder_if(self, name: &str, folder: Option<Folder>) -> Folder {
        match folder {
            Some(folder) => self.folder(name, folder),
            None => self,
        }
    }

    fn leaf_if(self, name: &str, value: Option<String>) -> Folder {
        match value {
            Some(value) => self.leaf(name, value),
            None => self,
        }
    }

    /// The names, one a line, without an end of the last line; folders end with a slash.
    pub fn list(&self) -> String {
        if let Some(listed) = &self.listed {
            return listed.clone();
        }
        let name = |(name, node): (&String, &Node)| match node {
            Node::Folder(_) => format!("{name}/"),
            Node::Leaf(_) => name.clone(),
        };
        self.entries.iter().map(name).collect::<Vec<_>>().join("\n")
    }

    /// What lies at a path below.
    pub fn find<'a>(&self, path: impl Iterator<Item = &'a str>) -> Option<Node> {
        let mut node = Node::Folder(self.clone());
        for name in path {
            node = match node {
                Node::Folder(mut folder) => folder.entries.remove(name)?,
                Node::Leaf(_) => return None,
            };
        }
        Some(node)
    }
}

/// The tree below a version: its list has no slashes.
pub(super) fn of(instance: &Instance) -> Folder {
    let mut tree =
        Folder::default().folder("dynamic", dynamic(instance)).folder("meta-data", meta_data(instance));
    if let Some(data) = &instance.user_data {
        let leaf = Leaf { bytes: data.clone(), content_type: "application/octet-stream" };
        tree.entries.insert("user-data".to_owned(), Node::Leaf(leaf));
    }
    tree.listed = Some(tree.entries.keys().cloned().collect::<Vec<_>>().join("\n"));
    tree
}

fn meta_data(instance: &Instance) -> Folder {
    let public_ip = instance.public_ip.map(|ip| ip.to_string());
    Folder::default()
        .leaf("ami-id", instance.image_id.as_str())
        .leaf("ami-launch-index", "0")
        .leaf("ami-manifest-path", "(unknown)")
        .folder("block-device-mapping", Folder::default().leaf("ami", "/dev/xvda").leaf("root", "/dev/xvda"))
        .folder("events", events())
        .folder("hibernation", Folder::default().leaf("configured", "false"))
        .leaf("hostname", instance.hostname())
        .folder_if("iam", instance.role.as_deref().map(|role| iam(instance, role)))
        .folder("identity-credentials", Folder::default().folder("ec2", identity_credentials(instance)))
        .leaf("instance-action", "none")
        .leaf("instance-id", instance.instance_id.as_str())
        .leaf("instance-life-cycle", "on-demand")
        .leaf("instance-type", instance.instance_type.as_str())
        .leaf("local-hostname", instance.hostname())
        .leaf("local-ipv4", instance.private_ip.to_string())
        .leaf("mac", instance.mac.as_str())
        .folder("metrics", Folder::default().leaf("vhostmd", "<?xml version=\"1.0\" encoding=\"UTF-8\"?>"))
        .folder(
            "network",
            Folder::default().folder("interfaces", Folder::default().folder("macs", macs(instance))),
        )
        .folder("placement", placement(instance))
        .leaf("profile", "default-hvm")
        .leaf_if("public-hostname", instance.public_hostname())
        .leaf_if("public-ipv4", public_ip)
        .folder_if("public-keys", public_keys(instance))
        .leaf("reservation-id", instance.reservation_id.as_str())
        .leaf("security-groups", "default")
        .folder("services", Folder::default().leaf("domain", "amazonaws.com").leaf("partition", "aws"))
        .leaf("system", "nitro")
        .folder_if("tags", tags(instance))
}

fn events() -> Folder {
    let maintenance = Folder::default().leaf("history", "[]").leaf("scheduled", "[]");
    Folder::default().folder("maintenance", maintenance)
}

fn placement(instance: &Instance) -> Folder {
    Folder::default()
        .leaf("availability-zone", instance.availability_zone.as_str())
        .leaf("availability-zone-id", instance.availability_zone_id.as_str())
        .leaf("region", instance.region.as_str())
}

fn macs(instance: &Instance) -> Folder {
    let local = instance.private_ip.to_string();
    let public = instance.public_ip.map(|ip| ip.to_string());
    let associations = public.as_ref().map(|ip| Folder::default().leaf(ip, local.as_str()));
    let interface = Folder::default()
        .leaf("device-number", "0")
        .leaf("interface-id", instance.interface_id.as_str())
        .folder_if("ipv4-associations", associations)
        .leaf("local-hostname", instance.hostname())
        .leaf("local-ipv4s", local)
        .leaf("mac", instance.mac.as_str())
        .leaf("owner-id", instance.owner_id.as_str())
        .leaf_if("public-hostname", instance.public_hostname())
        .leaf_if("public-ipv4s", public)
        .leaf("security-group-ids", instance.security_group_id.as_str())
        .leaf("security-groups", "default")
        .leaf("subnet-id", instance.subnet_id.as_str())
        .leaf("subnet-ipv4-cidr-block", SUBNET)
        .leaf("vpc-id", instance.vpc_id.as_str())
        .leaf("vpc-ipv4-cidr-block", VPC)
        .leaf("vpc-ipv4-cidr-blocks", VPC);
    Folder::default().folder(&instance.mac, interface)
}

/// The one list that names its entries by something else than their path: `0=name` lies at `0/`.
fn public_keys(instance: &Instance) -> Option<Folder> {
    let key = instance.public_key.as_ref()?;
    let text = format!("{}\n", key.openssh.trim_end());
    let mut keys = Folder::default().folder("0", Folder::default().leaf("openssh-key", text));
    keys.listed = Some(format!("0={}", key.name));
    Some(keys)
}

fn tags(instance: &Instance) -> Option<Folder> {
    let leaves = instance
        .tags
        .iter()
        .fold(Folder::default(), |folder, (name, value)| folder.leaf(name, value.as_str()));
    (!instance.tags.is_empty()).then(|| Folder::default().folder("instance", leaves))
}

fn iam(instance: &Instance, role: &str) -> Folder {
    let arn = format!("arn:aws:iam::{}:instance-profile/{role}", instance.owner_id);
    let info = json!({
        "Code": "Success", "LastUpdated": instance.launched, "InstanceProfileArn": arn,
        "InstanceProfileId": "AIPAKILNLOOKALIKE0000",
    });
    Folder::default()
        .leaf("info", pretty(&info))
        .folder("security-credentials", Folder::default().leaf(role, credentials(instance)))
}

fn identity_credentials(instance: &Instance) -> Folder {
    let info = json!({ "Code": "Success", "LastUpdated": instance.launched, "AccountId": instance.owner_id });
    Folder::default()
        .leaf("info", pretty(&info))
        .folder("security-credentials", Folder::default().leaf("ec2-instance", credentials(instance)))
}

/// Of the right shape, and of no use to anybody.
fn credentials(instance: &Instance) -> String {
    pretty(&json!({
        "Code": "Success", "LastUpdated": instance.launched, "Type": "AWS-HMAC",
        "AccessKeyId": "ASIAKILNLOOKALIKE000", "SecretAccessKey": "kiln-lookalike-no-secret-0000000000000000",
        "Token": "kiln-lookalike-no-token", "Expiration": "2099-01-01T00:00:00Z",
    }))
}

fn dynamic(instance: &Instance) -> Folder {
    let document = pretty(&json!({
        "accountId": instance.owner_id, "architecture": "x86_64", "availabilityZone": instance.availability_zone,
        "billingProducts": null, "devpayProductCodes": null, "marketplaceProductCodes": null,
        "imageId": instance.image_id, "instanceId": instance.instance_id, "instanceType": instance.instance_type,
        "kernelId": null, "pendingTime": instance.launched, "privateIp": instance.private_ip.to_string(),
        "ramdiskId": null, "region": instance.region, "version": "2017-09-30",
    }));
    let identity = Folder::default()
        .leaf("document", document)
        .leaf("pkcs7", unsigned(900, 64))
        .leaf("rsa2048", unsigned(1100, 64))
        .leaf("signature", unsigned(128, 76));
    Folder::default().folder("instance-identity", identity)
}

/// As EC2 writes its documents: `"key" : value`, one a line.
fn pretty(value: &serde_json::Value) -> String {
    let empty = serde_json::Map::new();
    let fields = value.as_object().unwrap_or(&empty);
    let lines: Vec<String> = fields.iter().map(|(key, value)| format!("  \"{key}\" : {value}")).collect();
    format!("{{\n{}\n}}", lines.join(",\n"))
}

/// In the place of a signature: base64 of as many bytes, which say what they are, in lines of that length.
fn unsigned(bytes: usize, line: usize) -> String {
    let text: Vec<u8> =
        b"Kiln's lookalike: not signed by anyone. ".iter().copied().cycle().take(bytes).collect();
    let mut lines = String::new();
    for part in base64(&text).as_bytes().chunks(line) {
        let _ = writeln!(lines, "{}", String::from_utf8_lossy(part));
    }
    lines.truncate(lines.trim_end().len());
    lines
}
