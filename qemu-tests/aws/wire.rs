//! What was said to the local AWS.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::local::Local;

/// `scripts/aws-local --python`: a Python with AWS's own library.
pub fn python() -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/aws-local"));
    command.arg("--python");
    command
}

fn text(local: &Local) -> String {
    let mut answer = ureq::get(format!("{}/_kiln/log", local.url())).call().expect("the log");
    answer.body_mut().with_config().limit(1 << 30).read_to_string().expect("the log")
}

/// Every request so far, in order.
pub fn log(local: &Local) -> Vec<Value> {
    text(local).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Every request so far is one that the models of AWS's services allow.
pub fn check(local: &Local) {
    let mut command = python();
    command.args(["-m", "aws.wire", "validate", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut check = command.stderr(Stdio::piped()).spawn().unwrap();
    check.stdin.take().unwrap().write_all(text(local).as_bytes()).unwrap();
    let output = check.wait_with_output().unwrap();
    let (said, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{told}");
}

/// Runs a line of Python with a client of AWS's own library for a service of a region, `c`; gives what it prints.
pub fn boto3(local: &Local, service: &str, region: &str, line: &str) -> String {
    let code = format!(
        "import boto3\nc = boto3.client('{service}', '{region}', endpoint_url='{}', aws_access_key_id='a', \
         aws_secret_access_key='b')\nprint({line})",
        local.url()
    );
    let output = python().args(["-c", &code]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A new key of the account in a region: its ARN.
pub fn key(local: &Local, region: &str) -> String {
    boto3(local, "kms", region, "c.create_key()['KeyMetadata']['Arn']")
}
