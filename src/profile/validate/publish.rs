//! What of `publish.aws` contradicts itself, in the region where it does.

use super::{Problem, problem};
use crate::arch::Arch;
use crate::system::publish::{BootMode, Facts, Region, Settings, Volume, VolumeType, Way, expand};
use crate::system::publish::{wrong_ami_name, wrong_description, wrong_parameter_name};
use crate::system::{Firmware, System};
use crate::units::{Bytes, GIB};

/// Tags that Kiln adds: its own six, and `Name`.
const OWN_TAGS: usize = 7;
/// Tags that a resource may have.
const TAGS: usize = 50;
/// Days after which a public image is deprecated at the latest: two years.
const PUBLIC_DAYS: u32 = 730;

/// All problems of `publish.aws`. What is wrong in every region in the same way is told once.
pub(super) fn aws(system: &System, found: &mut Vec<Problem>) {
    let aws = &system.publish.aws;
    // What holds for all regions is looked at by itself only while there are none.
    let none = Region::default();
    let mut places: Vec<(&str, &Region)> = aws.enabled().collect();
    if places.is_empty() {
        places.push(("", &none));
    }
    let mut problems = Vec::new();
    for (name, region) in places {
        let place = Place { system, region, name, settings: aws.in_region(region) };
        place.texts(&mut problems);
        place.boot(&mut problems);
        place.volume(&mut problems);
        place.encryption(&mut problems);
        place.rest(&mut problems);
    }
    for problem in problems {
        if !found.contains(&problem) {
            found.push(problem);
        }
    }
}

/// One region and what holds there.
struct Place<'a> {
    system: &'a System,
    region: &'a Region,
    name: &'a str,
    settings: Settings,
}

impl Place<'_> {
    /// The path of a field: the region's own when `own`, else that for all regions.
    fn at(&self, own: bool, field: &str) -> String {
        if own {
            format!("publish.aws.regions.{}.{field}", self.name)
        } else {
            format!("publish.aws.{field}")
        }
    }

    /// What templates are filled in with, as long as it gets.
    fn facts(&self) -> Facts {
        Facts {
            name: self.system.name.clone(),
            version: self.system.version.clone(),
            date: "20260101".to_owned(),
            digest: "0123456789ab".to_owned(),
            arch: self.system.arch.debian().to_owned(),
            region: if self.name.is_empty() { "eu-central-1" } else { self.name }.to_owned(),
        }
    }

    fn texts(&self, found: &mut Vec<Problem>) {
        let (settings, region) = (&self.settings, self.region);
        let mut look = |template: &str, field: String, wrong: fn(&str) -> Option<String>| match expand(
            template,
            &self.facts(),
        ) {
            Err(e) => problem(found, field, e.to_string()),
            Ok(text) => {
                if let Some(message) = wrong(&text) {
                    problem(found, field, message);
                }
            }
        };
        // What never saw the contract has no name.
        if !settings.name.is_empty() {
            look(&settings.name, self.at(region.name.is_some(), "name"), wrong_ami_name);
        }
        look(&settings.description, self.at(region.description.is_some(), "description"), wrong_description);
        for template in &settings.parameters {
            let own = region.parameters.contains_key(template);
            look(template, self.at(own, &format!("parameters.\"{template}\"")), wrong_parameter_name);
        }
    }

    fn boot(&self, found: &mut Vec<Problem>) {
        let (settings, region) = (&self.settings, self.region);
        let firmware = self.system.boot.firmware;
        let boots = settings.boots(firmware, self.system.arch);
        let field = self.at(region.boot_mode.is_some(), "boot_mode");
        let can = match boots {
            BootMode::LegacyBios => firmware != Firmware::Uefi,
            BootMode::Uefi => firmware != Firmware::Bios,
            BootMode::UefiPreferred => firmware == Firmware::Both,
        };
        if self.system.arch == Arch::Arm64 && boots != BootMode::Uefi {
            problem(found, field, "arm64 instances boot by UEFI only: leave it out, or say 'uefi");
        } else if settings.boot_mode.is_some() && !can {
            let message = "the image can't boot so: it is made for the firmware that `boot.firmware` names";
            problem(found, field, message);
        }
        if settings.nitro_tpm && boots != BootMode::Uefi {
            let message = "a NitroTPM needs instances that boot by UEFI alone: add `boot_mode = 'uefi`";
            problem(found, self.at(region.nitro_tpm.is_some(), "nitro_tpm"), message);
        }
        if settings.uefi_data.is_some() && boots == BootMode::LegacyBios {
            let message = "instances that boot by the BIOS have no variables of UEFI";
            problem(found, self.at(region.uefi_data.is_some(), "uefi_data"), message);
        }
    }

    fn volume(&self, found: &mut Vec<Problem>) {
        let (volume, own) = (&self.settings.volume, &self.region.volume);
        let size = volume.size.or(self.system.disk.size).map(|size| size.0.div_ceil(GIB));
        let largest = u64::from(volume.kind.largest());
        let field = self.at(own.size.is_some(), "volume.size");
        if let (Some(asked), Some(image)) = (volume.size, self.system.disk.size)
            && asked < image
        {
            problem(found, field, format!("asked for {asked}, but the image's disk has {image}"));
        } else if let Some(size) = size.filter(|size| *size == 0 || *size > largest) {
            let (size, largest) = (Bytes(size * GIB), Bytes(largest * GIB));
            problem(
                found,
                field,
                format!("asked for {size}, {} has 1 GiB to {largest}", a_volume(volume.kind)),
            );
        }
        if let Some(message) = wrong_iops(volume, size) {
            problem(found, self.at(own.iops.is_some(), "volume.iops"), message);
        }
        if let Some(message) = wrong_throughput(volume) {
            problem(found, self.at(own.throughput.is_some(), "volume.throughput"), message);
        }
    }

    fn encryption(&self, found: &mut Vec<Problem>) {
        let (settings, region) = (&self.settings, self.region);
        let own_key = region.kms_key.is_some();
        if let Some(key) = &settings.kms_key {
            if settings.encrypt == Some(false) {
                let message = "is a key for a snapshot that `encrypt = false` leaves unencrypted: leave one of them out";
                problem(found, self.at(own_key, "kms_key"), message);
            }
            let of = key.strip_prefix("arn:").and_then(|rest| rest.split(':').nth(2));
            if let Some(of) = of.filter(|of| !self.name.is_empty() && *of != self.name) {
                let message = format!(
                    "is a key of {of} and can't be used in {}: give that region a `kms_key` of its own",
                    self.name
                );
                problem(found, self.at(own_key, "kms_key"), message);
            }
        }
        if !settings.encrypts() {
            return;
        }
        let public = |own: bool, field: &str| {
            (
                self.at(own, field),
                "an encrypted snapshot can't be public: leave out `encrypt` and `kms_key`, or this",
            )
        };
        if settings.launch.public {
            let (field, message) = public(region.launch.public.is_some(), "launch.public");
            problem(found, field, message);
        }
        if settings.snapshot.public {
            let (field, message) = public(region.snapshot.public.is_some(), "snapshot.public");
            problem(found, field, message);
        }
        let default_key = settings.kms_key.as_deref().is_none_or(|key| key.ends_with("alias/aws/ebs"));
        if default_key && settings.shared() && !settings.public() {
            let message = "what is encrypted under the account's default key can't be shared with others: give a `kms_key` that they may use";
            problem(found, self.at(region.encrypt.is_some(), "encrypt"), message);
        }
    }

    fn rest(&self, found: &mut Vec<Problem>) {
        let (settings, region) = (&self.settings, self.region);
        if let Some(days) =
            settings.deprecate_after.filter(|days| settings.launch.public && *days > PUBLIC_DAYS)
        {
            let message = format!(
                "asked for {days} days, a public image is deprecated after {PUBLIC_DAYS} at the latest"
            );
            problem(found, self.at(region.deprecate_after.is_some(), "deprecate_after"), message);
        }
        if settings.upload.way == Way::S3Import && settings.upload.bucket.is_none() {
            let field = self.at(region.upload.way.is_some(), "upload.bucket");
            problem(found, field, "the way 's3-import needs a bucket in the region");
        }
        let named = usize::from(settings.snapshot_tags.contains_key("Name"));
        let tags = settings.snapshot_tags.len() + OWN_TAGS - named;
        if tags > TAGS {
            let own = !region.tags.is_empty() || !region.snapshot_tags.is_empty();
            let message = format!("the snapshot gets {tags} tags with Kiln's own, AWS allows {TAGS}");
            problem(found, self.at(own, "tags"), message);
        }
    }
}

fn a_volume(kind: VolumeType) -> String {
    let article = if matches!(kind, VolumeType::Io1 | VolumeType::Io2) { "an" } else { "a" };
    format!("{article} {} volume", kind.as_str())
}

/// `size` is in GiB, where it is known already.
fn wrong_iops(volume: &Volume, size: Option<u64>) -> Option<String> {
    let name = a_volume(volume.kind);
    let Some((range, _)) = volume.kind.iops() else {
        let given = volume.iops.is_some();
        return given.then(|| format!("{name} has no provisioned operations: leave it out"));
    };
    let Some(iops) = volume.iops else {
        let needed = volume.kind != VolumeType::Gp3;
        return needed.then(|| format!("{name} needs it: say how many operations a second"));
    };
    if !range.contains(&iops) {
        return Some(format!("asked for {iops}, {name} has {} to {}", range.start(), range.end()));
    }
    let size = size?;
    let most = volume.kind.most_iops(size)?;
    (u64::from(iops) > most).then(|| format!("asked for {iops}, {name} of {size} GiB has at most {most}"))
}

fn wrong_throughput(volume: &Volume) -> Option<String> {
    let throughput = volume.throughput?;
    if volume.kind != VolumeType::Gp3 {
        let name = a_volume(volume.kind);
        return Some(format!("{name} has no provisioned throughput, only gp3 has: leave it out"));
    }
    // A MiB/s for every four operations; a gp3 volume has 3000 when nothing is said.
    let needed = throughput.saturating_mul(4);
    (needed > volume.iops.unwrap_or(3_000)).then(|| {
        format!("asked for {throughput} MiB/s, needs at least {needed} operations a second (`iops`; 3000 when left out)")
    })
}
