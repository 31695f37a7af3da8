//! Where a way begins: credentials from keys, programs, tokens, sign-ins, and from what the host hands out.

use std::time::{Duration, SystemTime};

use aws_config::ecs::EcsCredentialsProvider;
use aws_config::imds;
use aws_config::provider_config::ProviderConfig;
use aws_config::sso::SsoCredentialsProvider;
use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_types::region::Region;
use serde_json::Value;
use sha1::{Digest as _, Sha1};

use super::environment::Environment;
use super::sts::Sts;
use super::way::{Base, Keys, Sso};
use super::{cache, process, sso};
use crate::aws::error::{AwsError, Call, Kind, story};
use crate::aws::{http, retry};

/// A base's credentials, as they are now.
///
/// # Errors
/// When they can't be had; the message says from where, the hint what to do.
pub async fn credentials(base: &Base, sts: &Sts, environment: &Environment) -> Result<Credentials, AwsError> {
    match base {
        Base::Keys(keys) => of_keys(keys),
        Base::Process { command, profile } => {
            let (command, profile) = (command.clone(), profile.clone());
            let run = tokio::task::spawn_blocking(move || process::credentials(&command, &profile));
            run.await.map_err(|e| AwsError::credentials(e.to_string()))?
        }
        Base::WebIdentity { role, token, session_name } => {
            let text = tokio::fs::read_to_string(token).await.map_err(|error| {
                AwsError::credentials(format!(
                    "can't read the web identity's token {}: {error}",
                    token.display()
                ))
            })?;
            sts.assume_role_with_web_identity(role, session_name.as_deref(), text.trim()).await
        }
        Base::Sso(profile) => of_sso(profile, environment, sts).await,
        Base::Container => {
            let config = ProviderConfig::default().with_http_client(http::local_client());
            let provider = EcsCredentialsProvider::builder().configure(&config).build();
            provided("the container's credentials", provider.provide_credentials()).await
        }
        Base::Instance => of_instance(environment).await,
    }
}

fn of_keys(keys: &Keys) -> Result<Credentials, AwsError> {
    let ends = match &keys.expiration {
        None => None,
        Some(text) => Some(cache::time(text).ok_or_else(|| {
            AwsError::credentials(format!("AWS_CREDENTIAL_EXPIRATION is `{text}`, which is no time"))
        })?),
    };
    if ends.is_some_and(|ends| ends <= SystemTime::now()) {
        let message = "the session in the environment has ended (AWS_CREDENTIAL_EXPIRATION)";
        return Err(Call::new("sts", "", "").error(Kind::Expired, message));
    }
    let token = keys.token.as_ref().map(|token| token.reveal().to_owned());
    Ok(Credentials::new(&keys.id, keys.secret.reveal(), token, ends, "Keys"))
}

/// Waits for one of the SDK's own providers.
async fn provided(
    from: &str,
    answer: impl Future<Output = Result<Credentials, CredentialsError>>,
) -> Result<Credentials, AwsError> {
    let answer = retry::interruptible(answer).await?;
    answer.map_err(|error| AwsError::credentials(format!("{from}: {}", story(&error))))
}

async fn of_sso(profile: &Sso, environment: &Environment, sts: &Sts) -> Result<Credentials, AwsError> {
    let login = format!("`aws sso login --profile {}` signs in", profile.profile);
    signed_in(profile, environment, SystemTime::now()).map_err(|what| {
        let message = format!("profile `{}`: {what}", profile.profile);
        Call::new("sso", "", "").error(Kind::Expired, message).advise(login.clone())
    })?;
    let region = Region::new(profile.region.clone());
    let http = sso::client(sts.http.clone(), &sts.endpoints);
    let config = ProviderConfig::default().with_region(Some(region.clone())).with_http_client(http);
    let mut builder = SsoCredentialsProvider::builder()
        .configure(&config)
        .account_id(&profile.account)
        .role_name(&profile.role)
        .start_url(&profile.start_url)
        .region(region);
    builder.set_session_name(profile.session.clone());
    let from = format!("profile `{}`, {} in account {}", profile.profile, profile.role, profile.account);
    let provider = builder.build();
    provided(&from, provider.provide_credentials()).await.map_err(|error| match error.kind {
        Kind::Interrupted => error,
        _ => error.advise(login),
    })
}

/// Whether there is a sign-in that lasts, or can be prolonged. Else what is wrong with it.
fn signed_in(profile: &Sso, environment: &Environment, now: SystemTime) -> Result<(), String> {
    let name = profile.session.as_ref().unwrap_or(&profile.start_url);
    let digest: String = Sha1::digest(name).iter().map(|byte| format!("{byte:02x}")).collect();
    let file = environment.in_home(&format!(".aws/sso/cache/{digest}.json"));
    let text = std::fs::read(file).map_err(|_| format!("nobody is signed in at {}", profile.start_url))?;
    let token: Value = serde_json::from_slice(&text).unwrap_or_default();
    let ends = token["expiresAt"].as_str().and_then(cache::time);
    let prolonged = token["refreshToken"].is_string() && profile.session.is_some();
    match ends {
        Some(ends) if ends > now || prolonged => Ok(()),
        _ => Err(format!("the sign-in at {} has ended", profile.start_url)),
    }
}

/// EC2's metadata service, asked in vain for a second or two where there is none.
async fn of_instance(environment: &Environment) -> Result<Credentials, AwsError> {
    if environment.is_true("AWS_EC2_METADATA_DISABLED") {
        return Err(AwsError::credentials(
            "EC2's metadata service is meant, and AWS_EC2_METADATA_DISABLED is set",
        ));
    }
    let number =
        |name, or: u64| environment.get(name).and_then(|text| text.parse().ok()).unwrap_or(or).clamp(1, 60);
    let wait = Duration::from_secs(number("AWS_METADATA_SERVICE_TIMEOUT", 1));
    let config = ProviderConfig::default().with_http_client(http::local_client());
    let mut client = imds::Client::builder()
        .configure(&config)
        .connect_timeout(wait)
        .read_timeout(wait)
        .max_attempts(number("AWS_METADATA_SERVICE_NUM_ATTEMPTS", 1) as u32);
    if let Some(endpoint) = environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") {
        client = client.endpoint(endpoint).map_err(|error| {
            AwsError::credentials(format!("AWS_EC2_METADATA_SERVICE_ENDPOINT is `{endpoint}`: {error}"))
        })?;
    }
    let provider = imds::credentials::ImdsCredentialsProvider::builder()
        .configure(&config)
        .imds_client(client.build())
        .build();
    provided("EC2's metadata service", provider.provide_credentials()).await
}
