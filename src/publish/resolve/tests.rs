use proptest::prelude::*;

use super::super::samples::{aws, facts, publication, region, system};
use super::*;
use crate::system::Firmware;
use crate::system::publish::{Aws, FanOut, Role, VolumeType};

fn refused(aws: Aws) -> String {
    refused_as(&system(aws))
}

fn refused_as(system: &System) -> String {
    resolve(system, &facts(), &|_| Ok(b"junk".to_vec())).unwrap_err().to_string()
}

#[test]
fn templates_tags_and_the_volume_are_filled_in() {
    let mut wanted = aws(&["eu-central-1", "us-east-1"]);
    wanted.tags.insert("Team".into(), "base".into());
    wanted.snapshot_tags.insert("Team".into(), "storage".into());
    wanted.parameters.insert("/images/{name}/{region}".into(), true);
    let publication = publication(wanted);
    let target = &publication.targets["us-east-1"];
    let digest = facts().image.short();
    assert_eq!(target.name, format!("web-1.2-amd64-20260912-{digest}"));
    assert_eq!(target.description, "web 1.2 (amd64), packages of 20260912");
    assert_eq!(target.parameters.iter().collect::<Vec<_>>(), ["/images/web/us-east-1"]);
    assert_eq!(target.volume.size, 2);
    assert_eq!(target.boot_mode, BootMode::UefiPreferred);
    assert_eq!(target.encryption, Encryption::AccountDefault);
    assert!(target.imds_v2 && target.ena && !target.nitro_tpm);
    assert_eq!(target.image_tags["Team"], "base");
    assert_eq!(target.snapshot_tags["Team"], "storage");
    for tags in [&target.image_tags, &target.snapshot_tags] {
        assert_eq!(tags[tags::NAME], target.name);
        assert_eq!(tags[tags::PUBLICATION], target.id.to_string());
        assert_eq!(tags[tags::IMAGE], facts().image.to_string());
        assert_eq!(tags[tags::LOCK], facts().lock.to_string());
        assert_eq!((tags[tags::SYSTEM].as_str(), tags[tags::VERSION].as_str()), ("web", "1.2"));
        assert_eq!(tags[tags::TESTED], "yes");
    }
}

#[test]
fn a_region_says_otherwise_for_itself() {
    let mut wanted = aws(&["eu-central-1", "us-east-1"]);
    wanted.kms_key = Some("alias/images".into());
    wanted.volume.kind = VolumeType::Io2;
    wanted.volume.iops = Some(500);
    wanted.tags.insert("Team".into(), "base".into());
    wanted.launch.accounts.insert("111122223333".into(), true);
    wanted.launch.accounts.insert("444455556666".into(), true);
    let own = wanted.regions.get_mut("us-east-1").unwrap();
    own.required = false;
    own.encrypt = Some(false);
    own.volume.kind = Some(VolumeType::Gp3);
    own.tags.insert("Team".into(), "us".into());
    own.launch.accounts.insert("111122223333".into(), false);
    own.launch.accounts.insert("777788889999".into(), true);
    own.name = Some("{name}-us-{digest}".into());
    own.role = Some(Role { arn: "arn:aws:iam::111122223333:role/us".into(), ..Role::default() });
    own.upload.fan_out = Some(FanOut::CopyImage);
    let publication = publication(wanted);
    let (eu, us) = (&publication.targets["eu-central-1"], &publication.targets["us-east-1"]);
    assert_eq!(eu.encryption, Encryption::Key("alias/images".into()));
    assert_eq!(us.encryption, Encryption::AccountDefault);
    assert_eq!((eu.volume.iops, us.volume.iops), (Some(500), None));
    assert!(eu.required && !us.required);
    assert_eq!((eu.image_tags["Team"].as_str(), us.image_tags["Team"].as_str()), ("base", "us"));
    assert_eq!(us.launch.accounts.iter().collect::<Vec<_>>(), ["444455556666", "777788889999"]);
    assert!(us.name.starts_with("web-us-"));
    assert!(us.role.is_some() && eu.role.is_none());
    assert_eq!(us.upload, Upload::EbsDirect(FanOut::CopyImage));
}

#[test]
fn how_it_boots_follows_from_the_image() {
    for (firmware, arch, mode) in [
        (Firmware::Both, crate::arch::Arch::Amd64, BootMode::UefiPreferred),
        (Firmware::Bios, crate::arch::Arch::Amd64, BootMode::LegacyBios),
        (Firmware::Uefi, crate::arch::Arch::Amd64, BootMode::Uefi),
        (Firmware::Both, crate::arch::Arch::Arm64, BootMode::Uefi),
    ] {
        let mut system = system(aws(&["eu-central-1"]));
        system.boot.firmware = firmware;
        system.arch = arch;
        let publication = resolve(&system, &facts(), &|_| Err(String::new())).unwrap();
        assert_eq!(publication.targets["eu-central-1"].boot_mode, mode);
    }
}

#[test]
fn what_cannot_be_published_is_told_all_at_once() {
    assert!(refused(aws(&[])).contains("no region is named"));
    let mut wanted = aws(&["eu-central-1", "us-east-1"]);
    wanted.name = "{name}:{digits}".into();
    wanted.volume.size = Some(Bytes(GIB));
    wanted.nitro_tpm = true;
    wanted.uefi_data = Some("keys".into());
    wanted.upload.way = Way::S3Import;
    insta::assert_snapshot!(refused(wanted), @"
    the image can't be published so:
      eu-central-1: name: `{digits}` is no field of a template: there are {name}, {version}, {date}, {digest}, {arch}, {region}
      eu-central-1: nitro_tpm: needs boot mode uefi, this is uefi-preferred
      eu-central-1: volume.size: asked for 1 GiB, needs at least 1.9 GiB for the image
      eu-central-1: uefi_data: keys: holds no variables of UEFI as EC2 keeps them: they begin with AMZNUEFI, or with QU1aTlVFRkk in base64
      eu-central-1: upload.bucket: the way s3-import needs a bucket in the region
      us-east-1: name: `{digits}` is no field of a template: there are {name}, {version}, {date}, {digest}, {arch}, {region}
      us-east-1: nitro_tpm: needs boot mode uefi, this is uefi-preferred
      us-east-1: volume.size: asked for 1 GiB, needs at least 1.9 GiB for the image
      us-east-1: uefi_data: keys: holds no variables of UEFI as EC2 keeps them: they begin with AMZNUEFI, or with QU1aTlVFRkk in base64
      us-east-1: upload.bucket: the way s3-import needs a bucket in the region
    ");
    let mut odd = system(aws(&["eu-central-1"]));
    odd.version = "1+deb13".into();
    assert!(refused_as(&odd).contains("holds `+`"), "{}", refused_as(&odd));
    let mut long = aws(&["eu-central-1"]);
    long.name = "x".repeat(129);
    assert!(refused(long).contains("has 129 characters: AMI names have 3 to 128"));
    let mut fast = aws(&["eu-central-1"]);
    fast.volume.iops = Some(3_001);
    assert!(refused(fast).contains("a gp3 volume of 2 GiB has at most 3000"));
}

#[test]
fn variables_of_uefi_are_taken_binary_or_as_text() {
    let data = [UEFI_MAGIC, b"\x01\x02\x03".as_slice()].concat();
    let text = base64(&data);
    assert_eq!(uefi_base64(&data).as_ref(), Ok(&text));
    let broken: String = text.chars().flat_map(|c| [c, '\n']).collect();
    assert_eq!(uefi_base64(broken.as_bytes()), Ok(text));
    assert!(uefi_base64(&[UEFI_MAGIC, &[0; 60_000]].concat()).unwrap_err().contains("at most 64000"));
    assert!(uefi_base64(b"").is_err());
}

fn id(wanted: Aws) -> Digest {
    publication(wanted).targets["eu-central-1"].id
}

/// The identity, pinned: a change of it makes every publication that is under way start anew.
#[test]
fn the_identity_is_of_what_lasts() {
    let base = id(aws(&["eu-central-1"]));
    insta::assert_snapshot!(base, @"5cffc4285319a21a0bb213722610e647120c42f39a238907a6c814fac9148a16");
    let same = |change: &dyn Fn(&mut Aws)| {
        let mut wanted = aws(&["eu-central-1"]);
        change(&mut wanted);
        assert_eq!(id(wanted), base);
    };
    same(&|aws| aws.role = Some(Role { arn: "arn:aws:iam::111122223333:role/x".into(), ..Role::default() }));
    same(&|aws| aws.retention.keep = Some(3));
    same(&|aws| aws.upload.fan_out = FanOut::Upload);
    same(&|aws| {
        let region = wanted::Region { required: false, ..region() };
        aws.regions.insert("eu-central-1".into(), region);
    });
    same(&|aws| drop(aws.tags.insert("A".into(), "b".into())));
    same(&|aws| drop(aws.regions.insert("us-east-1".into(), region())));
    same(&|aws| aws.launch.public = true);
    same(&|aws| aws.deprecate_after = 9);
    let mut what = vec![base, publication(aws(&["us-east-1"])).targets["us-east-1"].id];
    let mut changed = |change: &dyn Fn(&mut Aws)| {
        let mut wanted = aws(&["eu-central-1"]);
        change(&mut wanted);
        what.push(id(wanted));
    };
    changed(&|aws| aws.ena = false);
    changed(&|aws| aws.encrypt = Some(true));
    changed(&|aws| aws.name = "other-{digest}".into());
    changed(&|aws| aws.root_device = "/dev/sda1".into());
    let many = what.len();
    what.sort();
    what.dedup();
    assert_eq!(what.len(), many);
}

proptest! {
    /// Whatever a profile says: an answer that AWS would take, or an error.
    #[test]
    fn what_is_resolved_is_allowed(
        name in "[a-z{}()+ -]{0,12}\\{(name|digest|date|region)\\}[A-Za-z./'@_:]{0,130}",
        version in "[0-9A-Za-z.+~_-]{1,20}",
        size in 1u64..80 * GIB,
        asked in proptest::option::of(1u64..90_000 * GIB),
        iops in proptest::option::of(0u32..300_000),
    ) {
        let mut wanted = aws(&["eu-central-1"]);
        wanted.name = name;
        wanted.volume.size = asked.map(Bytes);
        wanted.volume.iops = iops;
        let mut system = system(wanted);
        system.version = version;
        let facts = ImageFacts { size: Bytes(size), ..facts() };
        if let Ok(publication) = resolve(&system, &facts, &|_| Err(String::new())) {
            let target = &publication.targets["eu-central-1"];
            prop_assert_eq!(wrong_ami_name(&target.name), None);
            prop_assert!(u64::from(target.volume.size) * GIB >= size);
            prop_assert!(target.image_tags.len() <= tags::MOST);
            prop_assert_eq!(resolve(&system, &facts, &|_| Err(String::new())), Ok(publication));
        }
    }
}
