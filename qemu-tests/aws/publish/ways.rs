//! How the bytes get to a region: copies of what another region has, and by way of a bucket.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Case, REGIONS};
use crate::aws::wire;

fn ways(case: &Case) -> Vec<Value> {
    let record = case.record();
    REGIONS.map(|region| record["regions"][region]["way"].clone()).to_vec()
}

#[test]
fn copies_are_made_of_what_one_region_has() {
    let case = Case::new().swift();
    case.publish(&["publish.aws.upload.fan_out=\"copy-snapshot\""]).good();
    assert_eq!(ways(&case), ["upload", "copy-snapshot", "copy-snapshot"]);
    let written = |region: &str| case.things(region, "snapshots")[0]["blocks"].clone();
    assert_eq!(REGIONS.map(written).into_iter().map(|v| v.to_string()).collect::<BTreeSet<_>>().len(), 1);
    case.has_no_orphans();
    let from = wire::log(&case.local).len();
    case.publish(&["publish.aws.upload.fan_out=\"copy-snapshot\""]).good();
    assert_eq!(case.changes(from), Vec::<String>::new());

    let images = ["publish.aws.upload.fan_out=\"copy-image\"", r#"publish.aws.name="images""#];
    case.publish(&images).good();
    assert_eq!(ways(&case)[1..], ["copy-image", "copy-image"]);
    case.has_no_orphans();
    let from = wire::log(&case.local).len();
    case.publish(&images).good();
    assert_eq!(case.changes(from), Vec::<String>::new());

    // Where there is no source in the end, the bytes go up from here.
    let lost = r#"publish.aws.name="lost""#;
    let optional = "publish.aws.regions.eu-central-1.required=false";
    let source = "publish.aws.regions.eu-central-1.upload.fan_out=\"upload\"";
    case.local.faults(&json!({ "operation": "CompleteSnapshot", "region": "eu-central-1", "deny": true }));
    let said = case.publish(&[images[0], lost, optional, source]).good();
    assert!(said.err().contains("eu-central-1 has none: uploading instead"), "{}", said.err());
    let record = case.record();
    assert_eq!(record["regions"]["eu-central-1"]["status"], "failed");
    assert_eq!(record["complete"], false);
    assert!(ways(&case)[1..].iter().all(|way| *way != "copy-image"));
    case.local.clear();
    case.publish(&[images[0], lost, optional, source]).good();
    case.has_no_orphans();
}

#[test]
fn a_bucket_is_a_way_and_nothing_stays_in_it() {
    let case = Case::single()
        .swift()
        .set("publish.aws.upload.way=\"s3-import\"")
        .set(r#"publish.aws.upload.bucket="images""#);
    let bucket =
        "c.create_bucket(Bucket='images', CreateBucketConfiguration={'LocationConstraint': 'eu-central-1'})";
    wire::boto3(&case.local, "s3", "eu-central-1", bucket);
    // EC2 gives the import up: told, and begun anew the next time.
    case.local.faults(&json!({ "operation": "CreateTags", "times": 1, "deny": true }));
    case.publish(&[]).failed(1);
    case.local.clear();
    case.publish(&[]).good();
    assert_eq!(case.record()["regions"]["eu-central-1"]["way"], "import");
    case.local.state()["buckets"].as_array().unwrap().iter().for_each(|bucket| {
        assert_eq!((&bucket["objects"], &bucket["uploads"]), (&json!({}), &json!({})));
    });
    assert_eq!(case.things("eu-central-1", "images").len(), 1);
    let from = wire::log(&case.local).len();
    case.publish(&[]).good();
    assert_eq!(case.changes(from), Vec::<String>::new());
    // What was imported and is deleted by hand is imported once more.
    let (image, _) = case.published("eu-central-1");
    let gone = format!("c.deregister_image(ImageId='{image}', DeleteAssociatedSnapshots=True)");
    wire::boto3(&case.local, "ec2", "eu-central-1", &gone);
    case.publish(&[]).good();
    assert_ne!(case.published("eu-central-1").0, image);
    assert_eq!(case.things("eu-central-1", "images").len(), 1);
}

#[test]
fn what_was_deleted_is_made_anew_and_what_others_have_is_refused() {
    let case = Case::single().swift();
    case.publish(&[]).good();
    let (image, snapshot) = case.published("eu-central-1");
    let gone = format!("c.deregister_image(ImageId='{image}', DeleteAssociatedSnapshots=True)");
    wire::boto3(&case.local, "ec2", "eu-central-1", &gone);
    // EBS answers with the deleted snapshot's id.
    let said = case.publish(&[]).good();
    assert!(said.err().contains(&format!("{snapshot} is gone")), "{}", said.err());
    assert_ne!(case.published("eu-central-1").1, snapshot);
    case.has_no_orphans();

    let name = case.things("eu-central-1", "images")[0]["name"].clone();
    let from = wire::log(&case.local).len();
    let taken = format!("publish.aws.name={name}");
    let error = case.publish(&[super::CHANGED, &taken]).failed(1);
    assert!(error.contains("the name is taken"), "{error}");
    assert_eq!(case.changes(from), Vec::<String>::new());
}
