//! `kiln internal aws-identity`: opens credentials as publishing does, and says who one is then. For the tests of
//! credentials, which need a process of their own for each environment and terminal.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use serde_json::json;

use super::report::Failure;
use crate::aws::credentials::Secret;
use crate::aws::{AwsError, Cloud, Options, runtime};
use crate::publish::target::Role;

/// The name of the part.
pub const PART: &str = "aws-identity";

#[derive(Debug, Parser)]
#[command(no_binary_name = true)]
struct Arguments {
    #[arg(long)]
    profile: Option<String>,
    #[arg(long)]
    endpoint: Option<String>,
    #[arg(long)]
    mfa_code: Option<String>,
    /// Regions that are opened one after the other.
    #[arg(long, default_value = "eu-central-1")]
    region: Vec<String>,
    /// A role in the regions.
    #[arg(long)]
    role: Option<String>,
    /// Seconds that the work takes.
    #[arg(long)]
    least: Option<u64>,
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

/// Prints who one is in each region, as a line of JSON.
pub fn main(arguments: &[OsString]) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    super::start_tracing(arguments.verbose, false);
    let found = match runtime() {
        Ok(runtime) => runtime.block_on(identities(arguments)),
        Err(error) => Err(AwsError::credentials(error.to_string())),
    };
    match found {
        Ok(lines) => super::answer(&lines),
        Err(error) => {
            Failure::from(error).print(false, false);
            ExitCode::FAILURE
        }
    }
}

async fn identities(arguments: Arguments) -> Result<String, AwsError> {
    let options = Options {
        profile: arguments.profile,
        endpoint: arguments.endpoint,
        mfa_code: arguments.mfa_code.map(Secret::new),
        region: None,
        least: arguments.least.map(std::time::Duration::from_secs),
    };
    let cloud = Cloud::connect(options).await?;
    let role = arguments.role.map(|arn| Role { arn, external_id: None, session_name: None, duration: None });
    let mut lines = Vec::new();
    for name in &arguments.region {
        let region = cloud.region(name, role.as_ref()).await?;
        let remaining = cloud.remaining().await.map(|time| time.as_secs());
        let line = json!({ "region": region.name, "account": region.account, "arn": region.arn, "remaining": remaining });
        lines.push(line.to_string());
    }
    Ok(lines.join("\n"))
}
