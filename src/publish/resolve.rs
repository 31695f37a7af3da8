//! From a system and what is known of its image to a [`Publication`]: templates filled in, overrides of each region
//! applied, tags added.

use std::collections::BTreeMap;

use super::tags;
use super::target::{
    BootMode, Encryption, LaunchPermissions, Protection, Publication, SnapshotPermissions, Target, Upload,
    Volume,
};
use serde::Serialize;

use crate::arch::Arch;
use crate::base64::{base64, from_base64};
use crate::date::Timestamp;
use crate::digest::Digest;
use crate::system::publish::{self as wanted, Facts, Settings, Way, expand};
use crate::system::publish::{wrong_ami_name, wrong_description, wrong_parameter_name};
use crate::system::test::Imds;
use crate::system::{Set, System};
use crate::units::{Bytes, GIB};

/// What is known of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageFacts {
    /// Digest of its blocks.
    pub image: Digest,
    /// Size of the disk.
    pub size: Bytes,
    /// Digest of the lock that it was baked from.
    pub lock: Digest,
    /// Date of the newest locked release.
    pub date: Timestamp,
    /// Whether it passed its tests.
    pub tested: bool,
}

/// Something that can't be published so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The region; empty when it is about all of them.
    pub region: String,
    /// What is wrong, and what to do.
    pub message: String,
}

/// A profile whose image can't be published as it says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the image can't be published so:{}", problems.iter().map(line).collect::<String>())]
pub struct ResolveError {
    /// Everything that was found.
    pub problems: Vec<Problem>,
}

fn line(problem: &Problem) -> String {
    if problem.region.is_empty() {
        format!("\n  {}", problem.message)
    } else {
        format!("\n  {}: {}", problem.region, problem.message)
    }
}

/// Magic bytes of EC2's format for variables of UEFI.
const UEFI_MAGIC: &[u8] = b"AMZNUEFI";
/// Characters of base64 that `RegisterImage` takes as `UefiData`.
const UEFI_MOST: usize = 64_000;

/// What `system` publishes of an image. `read` yields the bytes of a file beside the profile.
///
/// # Errors
/// [`ResolveError`] with all that is wrong.
pub fn resolve(
    system: &System,
    facts: &ImageFacts,
    read: &dyn Fn(&str) -> Result<Vec<u8>, String>,
) -> Result<Publication, ResolveError> {
    let aws = &system.publish.aws;
    let mut problems = Vec::new();
    let mut targets = BTreeMap::new();
    for (name, region) in aws.enabled() {
        let settings = aws.in_region(region);
        match (Resolver { system, facts, region: name, settings: &settings, read }).target() {
            Ok(target) => drop(targets.insert(name.to_owned(), target)),
            Err(found) => {
                problems
                    .extend(found.into_iter().map(|message| Problem { region: name.to_owned(), message }));
            }
        }
    }
    if targets.is_empty() && problems.is_empty() {
        let message =
            "no region is named: add one to the profile, as in `publish.aws.regions.eu-central-1 = {}`";
        problems.push(Problem { region: String::new(), message: message.to_owned() });
    }
    if !problems.is_empty() {
        return Err(ResolveError { problems });
    }
    let mut publication = Publication {
        id: Digest([0; 32]),
        system: system.name.clone(),
        version: system.version.clone(),
        lock: facts.lock,
        image: facts.image,
        size: facts.size,
        tested: facts.tested,
        targets,
    };
    identify(&mut publication);
    mark(&mut publication);
    Ok(publication)
}

/// Adds Kiln's own tags, which hold the identity.
fn mark(publication: &mut Publication) {
    for target in publication.targets.values_mut() {
        let own = tags::own(&tags::Facts {
            publication: target.id,
            image: publication.image,
            system: &publication.system,
            version: &publication.version,
            lock: publication.lock,
            tested: publication.tested,
        });
        target.image_tags.extend(own.clone());
        target.snapshot_tags.extend(own);
    }
}

/// What an image has for good: what differs in any of this is another image, all else can be changed afterwards.
#[derive(Serialize)]
struct Lasting<'a> {
    system: &'a str,
    image: Digest,
    size: Bytes,
    region: &'a str,
    name: &'a str,
    arch: Arch,
    boot_mode: BootMode,
    ena: bool,
    nitro_tpm: bool,
    uefi_data: Option<&'a str>,
    root_device: &'a str,
    volume: &'a Volume,
    encryption: &'a Encryption,
}

/// Gives each region's image its identity, and the publication one of all those. Who does it, in which way, who may use it
/// and what becomes of others is left out: a publication can be taken up again, or changed, after a change of those.
fn identify(publication: &mut Publication) {
    let mut all = b"kiln publication 1\n".to_vec();
    for target in publication.targets.values_mut() {
        let lasting = Lasting {
            system: &publication.system,
            image: publication.image,
            size: publication.size,
            region: &target.region,
            name: &target.name,
            arch: target.arch,
            boot_mode: target.boot_mode,
            ena: target.ena,
            nitro_tpm: target.nitro_tpm,
            uefi_data: target.uefi_data.as_deref(),
            root_device: &target.root_device,
            volume: &target.volume,
            encryption: &target.encryption,
        };
        // Only numbers and texts in a fixed order: there is one way to write it, and writing can't fail.
        let text = serde_json::to_vec(&lasting).unwrap_or_default();
        target.id = Digest::of(&[b"kiln image 1\n", text.as_slice()].concat());
        all.extend(target.id.0);
    }
    publication.id = Digest::of(&all);
}

struct Resolver<'a> {
    system: &'a System,
    facts: &'a ImageFacts,
    region: &'a str,
    settings: &'a Settings,
    read: &'a dyn Fn(&str) -> Result<Vec<u8>, String>,
}

impl Resolver<'_> {
    fn target(&self) -> Result<Target, Vec<String>> {
        let settings = self.settings;
        let mut wrong = Vec::new();
        let name = self.text("name", &settings.name, wrong_ami_name, &mut wrong);
        let description = self.text("description", &settings.description, wrong_description, &mut wrong);
        let mut parameters = std::collections::BTreeSet::new();
        for template in &settings.parameters {
            parameters.insert(self.text("parameters", template, wrong_parameter_name, &mut wrong));
        }
        let boot_mode = settings.boots(self.system.boot.firmware, self.system.arch);
        if settings.nitro_tpm && boot_mode != BootMode::Uefi {
            wrong.push(format!("nitro_tpm: needs boot mode uefi, this is {}", boot_mode.as_str()));
        }
        let volume = self.volume(&mut wrong);
        let uefi_data = self.uefi_data(&mut wrong);
        let upload = upload(&settings.upload, &mut wrong);
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let named = |tags: &BTreeMap<String, String>| {
            [("Name".to_owned(), name.clone())].into_iter().chain(tags.clone()).collect()
        };
        Ok(Target {
            id: Digest([0; 32]),
            region: self.region.to_owned(),
            required: settings.required,
            role: settings.role.clone(),
            description,
            arch: self.system.arch,
            boot_mode,
            ena: settings.ena,
            imds_v2: settings.imds == Imds::Required,
            nitro_tpm: settings.nitro_tpm,
            uefi_data,
            root_device: settings.root_device.clone(),
            volume,
            encryption: encryption(settings),
            image_tags: named(&settings.tags),
            snapshot_tags: named(&settings.snapshot_tags),
            launch: LaunchPermissions {
                accounts: names(&settings.launch.accounts),
                organizations: names(&settings.launch.organizations),
                organizational_units: names(&settings.launch.organizational_units),
                public: settings.launch.public,
            },
            snapshot: SnapshotPermissions {
                accounts: names(&settings.snapshot.accounts),
                public: settings.snapshot.public,
            },
            deprecate_after: settings.deprecate_after,
            protection: settings
                .protection
                .enable
                .then_some(Protection { cooldown: settings.protection.cooldown }),
            parameters,
            retention: settings.retention,
            upload,
            name,
        })
    }

    fn text(
        &self,
        field: &str,
        template: &str,
        wrong_in: fn(&str) -> Option<String>,
        wrong: &mut Vec<String>,
    ) -> String {
        let facts = Facts {
            name: self.system.name.clone(),
            version: self.system.version.clone(),
            date: self.facts.date.compact().chars().take(8).collect(),
            digest: self.facts.image.short(),
            arch: self.system.arch.debian().to_owned(),
            region: self.region.to_owned(),
        };
        let text = expand(template, &facts);
        let found = match &text {
            Ok(text) => wrong_in(text),
            Err(e) => Some(e.to_string()),
        };
        wrong.extend(found.map(|message| format!("{field}: {message}")));
        text.unwrap_or_default()
    }

    fn volume(&self, wrong: &mut Vec<String>) -> Volume {
        let volume = &self.settings.volume;
        let asked = volume.size.unwrap_or(self.facts.size);
        if asked < self.facts.size {
            wrong.push(format!(
                "volume.size: asked for {asked}, needs at least {} for the image",
                self.facts.size
            ));
        }
        let size = asked.0.div_ceil(GIB).max(1);
        let largest = volume.kind.largest();
        if size > u64::from(largest) {
            let (size, largest) = (Bytes(size.saturating_mul(GIB)), Bytes(u64::from(largest) * GIB));
            wrong.push(format!(
                "volume.size: asked for {size}, a {} volume has at most {largest}",
                volume.kind.as_str()
            ));
        }
        if let (Some(most), Some(iops)) = (volume.kind.most_iops(size), volume.iops)
            && u64::from(iops) > most
        {
            wrong.push(format!(
                "volume.iops: asked for {iops}, a {} volume of {size} GiB has at most {most}",
                volume.kind.as_str()
            ));
        }
        Volume {
            kind: volume.kind.as_str().to_owned(),
            size: u32::try_from(size).unwrap_or(u32::MAX),
            iops: volume.iops,
            throughput: volume.throughput,
            delete_on_termination: volume.delete_on_termination,
        }
    }

    fn uefi_data(&self, wrong: &mut Vec<String>) -> Option<String> {
        let file = self.settings.uefi_data.as_ref()?;
        let text = (self.read)(file).and_then(|bytes| uefi_base64(&bytes));
        text.map_err(|why| wrong.push(format!("uefi_data: {file}: {why}"))).ok()
    }
}

/// Variables of UEFI as `RegisterImage` takes them, from a file that holds them binary or as base64.
fn uefi_base64(bytes: &[u8]) -> Result<String, String> {
    let text = if bytes.starts_with(UEFI_MAGIC) {
        base64(bytes)
    } else {
        let text: String = String::from_utf8_lossy(bytes).split_ascii_whitespace().collect();
        let data = from_base64(&text).filter(|data| data.starts_with(UEFI_MAGIC));
        data.ok_or("holds no variables of UEFI as EC2 keeps them: they begin with AMZNUEFI, or with QU1aTlVFRkk in base64")?;
        text
    };
    let length = text.len();
    if length > UEFI_MOST {
        return Err(format!("holds {length} characters of base64, EC2 takes at most {UEFI_MOST}"));
    }
    Ok(text)
}

fn encryption(settings: &Settings) -> Encryption {
    match &settings.kms_key {
        Some(key) if settings.encrypts() => Encryption::Key(key.clone()),
        _ if settings.encrypts() => Encryption::DefaultKey,
        _ => Encryption::AccountDefault,
    }
}

fn upload(upload: &wanted::Upload, wrong: &mut Vec<String>) -> Upload {
    match upload.way {
        Way::EbsDirect => Upload::EbsDirect(upload.fan_out),
        Way::S3Import => {
            if upload.bucket.is_none() {
                wrong.push("upload.bucket: the way s3-import needs a bucket in the region".to_owned());
            }
            Upload::S3Import {
                bucket: upload.bucket.clone().unwrap_or_default(),
                prefix: upload.prefix.clone(),
                service_role: upload.role.clone(),
            }
        }
    }
}

fn names(set: &Set<bool>) -> std::collections::BTreeSet<String> {
    set.iter().filter(|(_, on)| **on).map(|(name, _)| name.clone()).collect()
}

#[cfg(test)]
mod tests;
