//! Every option of `publish.aws`, from the profile through the program to the wire. What each choice of a value looks like
//! there is in `images.rs`.

use serde_json::{Value, json};

use super::{Case, Said};
use crate::aws::wire;

const ORGANIZATION: &str = "arn:aws:organizations::123456789012:organization/o-kilntest00";
const UNIT: &str = "arn:aws:organizations::123456789012:ou/o-kilntest00/ou-test-00000001";

/// The parameters of the last real call of an operation in a region.
#[track_caller]
fn asked(case: &Case, operation: &str) -> Value {
    let log = wire::log(&case.local);
    let of = |entry: &&Value| entry["operation"] == operation && entry["parameters"]["DryRun"] != json!(true);
    log.iter().rfind(of).unwrap_or_else(|| panic!("no {operation}"))["parameters"].clone()
}

fn tags(specification: &Value) -> Value {
    let tag = |tag: &Value| (tag["Key"].as_str().unwrap().to_owned(), tag["Value"].clone());
    Value::Object(specification.as_array().unwrap().iter().map(tag).collect())
}

#[test]
fn every_option_of_the_profile_is_on_the_wire() {
    let case = Case::single().swift();
    case.local.post("place/123456789012/eu-central-1", &json!({ "images_private": false }));
    std::fs::write(case.folder.path().join("vars"), "AMZNUEFI\0\0\0\0").unwrap();
    let profile = case.folder.path().join("p.ncl");
    std::fs::write(&profile, full(&case)).unwrap();
    std::fs::copy(case.profile.with_extension("lock"), profile.with_extension("lock")).unwrap();
    let mut command = case.command(crate::machine::KILN);
    let said =
        Said::of(command.arg("publish").arg(&profile).args(["--untested", "--offline", "--root", "/"]))
            .good();
    assert!(said.err().contains("nobody has tested this image"), "{}", said.err());

    let register = asked(&case, "RegisterImage");
    let wanted = [
        ("/Description", json!("golden server in eu-central-1")),
        ("/Architecture", json!("x86_64")),
        ("/VirtualizationType", json!("hvm")),
        ("/BootMode", json!("uefi")),
        ("/EnaSupport", json!(false)),
        ("/ImdsSupport", json!("v2.0")),
        ("/TpmSupport", json!("v2.0")),
        ("/UefiData", json!("QU1aTlVFRkkAAAAA")),
        ("/RootDeviceName", json!("/dev/sda1")),
        ("/BlockDeviceMappings/0/DeviceName", json!("/dev/sda1")),
        ("/BlockDeviceMappings/0/Ebs/VolumeType", json!("gp3")),
        ("/BlockDeviceMappings/0/Ebs/VolumeSize", json!(12)),
        ("/BlockDeviceMappings/0/Ebs/Iops", json!(4000)),
        ("/BlockDeviceMappings/0/Ebs/Throughput", json!(300)),
        ("/BlockDeviceMappings/0/Ebs/DeleteOnTermination", json!(false)),
    ];
    for (member, value) in wanted {
        assert_eq!(register.pointer(member), Some(&value), "{member}: {register}");
    }
    let name = register["Name"].as_str().unwrap();
    let image = case.record()["image"].as_str().unwrap().to_owned();
    assert!(name.starts_with("golden-server-amd64-2") && name.ends_with(&image[..12]), "{name} {image}");
    let given = tags(&register["TagSpecifications"][0]["Tags"]);
    assert_eq!((&given["Team"], &given["Place"]), (&json!("platform"), &json!("here")));
    assert_eq!(given["Backup"], Value::Null);

    let start = asked(&case, "StartSnapshot");
    let given = tags(&start["Tags"]);
    assert_eq!((&given["Team"], &given["Backup"]), (&json!("platform"), &json!("no")));
    assert_eq!((&start["VolumeSize"], &start["Timeout"]), (&json!(2), &json!(4320)));
    assert_eq!(start["ClientToken"].as_str().map(str::len), Some(64));
    let put = asked(&case, "PutSnapshotBlock");
    assert_eq!((&put["DataLength"], &put["ChecksumAlgorithm"]), (&json!(524_288), &json!("SHA256")));
    let complete = asked(&case, "CompleteSnapshot");
    assert_eq!(complete["ChecksumAggregationMethod"], "LINEAR");
    assert_eq!(complete["ChangedBlocksCount"], case.local.count("PutSnapshotBlock"));

    let launch = json!({ "Add": [
        { "UserId": "111122223333" }, { "UserId": "444455556666" }, { "OrganizationArn": ORGANIZATION },
        { "OrganizationalUnitArn": UNIT }, { "Group": "all" },
    ] });
    assert_eq!(asked(&case, "ModifyImageAttribute")["LaunchPermission"], launch);
    let access = json!({ "Add": [{ "UserId": "111122223333" }] });
    assert_eq!(asked(&case, "ModifySnapshotAttribute")["CreateVolumePermission"], access);
    assert!(asked(&case, "EnableImageDeprecation")["DeprecateAt"].is_string());
    assert_eq!(asked(&case, "EnableImageDeregistrationProtection")["WithCooldown"], true);
    let parameter = asked(&case, "PutParameter");
    assert_eq!((&parameter["Type"], &parameter["DataType"]), (&json!("String"), &json!("aws:ec2:image")));
    assert_eq!(
        (&parameter["Name"], &parameter["Overwrite"]),
        (&json!("/golden/eu-central-1/server"), &json!(true))
    );
    let role = asked(&case, "AssumeRole");
    assert_eq!(role["RoleArn"], "arn:aws:iam::123456789012:role/Publisher");
    assert_eq!((&role["ExternalId"], &role["RoleSessionName"]), (&json!("x-1"), &json!("baker")));
    assert_eq!(role["DurationSeconds"], 1800);
}

/// A profile that says everything that can be said of one region.
fn full(case: &Case) -> String {
    format!(
        r#"(import "{}") & {{
  publish.aws = {{
    name | force = "golden-{{name}}-{{arch}}-{{date}}-{{digest}}",
    description | force = "golden {{name}} in {{region}}",
    role = {{ arn = "arn:aws:iam::123456789012:role/Publisher", external_id = "x-1", session_name = "baker", duration = 1800 }},
    boot_mode = 'uefi,
    ena | force = false,
    imds | force = 'required,
    nitro_tpm | force = true,
    uefi_data = "vars",
    root_device | force = "/dev/sda1",
    volume = {{ type | force = 'gp3, size = "12GiB", iops = 4000, throughput = 300, delete_on_termination | force = false }},
    tags = {{ Team = "platform" }},
    snapshot_tags.Backup = "no",
    launch.accounts."444455556666" = true,
    launch.accounts."111122223333" = true,
    launch.organizations."{ORGANIZATION}" = true,
    launch.organizational_units."{UNIT}" = true,
    launch.public | force = true,
    snapshot.accounts."111122223333" = true,
    deprecate_after | force = 90,
    protection = {{ enable | force = true, cooldown | force = true }},
    parameters."/golden/{{region}}/{{name}}" = true,
    parameters."/kiln/{{name}}/{{arch}}/latest" | force = false,
    regions.us-east-1.enable | force = false,
    regions.eu-central-1.tags.Place = "here",
  }},
}}
"#,
        case.profile.display()
    )
}

#[test]
fn encryption_is_on_the_wire_with_the_key_of_the_region() {
    let case = Case::new().swift();
    let key = wire::key(&case.local, "eu-west-1");
    let id = key.rsplit('/').next().unwrap().to_owned();
    let alias = format!("c.create_alias(AliasName='alias/images', TargetKeyId='{id}')");
    wire::boto3(&case.local, "kms", "eu-west-1", &alias);
    case.local.post("place/123456789012/us-east-1", &json!({ "encrypt": true }));
    let sets = [
        r#"publish.aws.regions.eu-west-1.kms_key="alias/images""#,
        "publish.aws.regions.eu-central-1.enable=false",
    ];
    case.publish(&sets).good();
    let log = wire::log(&case.local);
    let start = |region: &str| {
        let of = |entry: &&Value| entry["operation"] == "StartSnapshot" && entry["region"] == region;
        log.iter().find(of).unwrap()["parameters"].clone()
    };
    let (own, default) = (start("eu-west-1"), start("us-east-1"));
    assert_eq!((&own["Encrypted"], &own["KmsKeyArn"]), (&json!(true), &json!(key)));
    assert_eq!((&default["Encrypted"], &default["KmsKeyArn"]), (&Value::Null, &Value::Null));
    // What is encrypted reads as noise where nothing was written: nothing is left out.
    for region in ["eu-west-1", "us-east-1"] {
        let snapshot = &case.things(region, "snapshots")[0];
        assert_eq!((&snapshot["encrypted"], &snapshot["written"]), (&json!(true), &json!(4096)));
        let (_, id) = case.published(region);
        same_volume(&case, &format!("volume/{region}/{id}"));
    }
    // Encrypted images have no delta, and that is told.
    let again = case.publish(&[sets[0], sets[1], r#"publish.aws.regions.us-east-1.name="other""#]).good();
    assert!(again.err().contains("encrypted"), "{}", again.err());
}

/// A volume that is made of a snapshot holds the image.
#[track_caller]
fn same_volume(case: &Case, path: &str) {
    use std::io::Read;
    let mut answer = ureq::get(format!("{}/_kiln/{path}", case.local.url())).call().unwrap();
    let mut volume = answer.body_mut().as_reader();
    let mut image = std::fs::File::open(&case.image).unwrap();
    let (mut is, mut wanted) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for at in 0..std::fs::metadata(&case.image).unwrap().len() >> 20 {
        volume.read_exact(&mut is).unwrap();
        image.read_exact(&mut wanted).unwrap();
        assert!(is == wanted, "{path} differs in MiB {at}");
    }
}
