//! The two calls of STS that make sessions.

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_sts::Client;
use aws_smithy_runtime_api::client::http::SharedHttpClient;

use super::environment::Secret;
use super::way::Hop;
use crate::aws::endpoint::Endpoints;
use crate::aws::error::{AwsError, Call, Kind};
use crate::aws::http;
use crate::aws::retry::{self, Policy};

/// A session of a role, and who one is in it: the id and the ARN of the assumed role.
pub type Session = (Credentials, (String, String));

/// Where STS is.
#[derive(Debug, Clone)]
pub struct Sts {
    /// The client for HTTP.
    pub http: SharedHttpClient,
    /// Where its servers are.
    pub endpoints: Endpoints,
    /// The region.
    pub region: String,
}

impl Sts {
    /// A client that signs with `credentials`.
    fn client(&self, credentials: Option<Credentials>) -> Client {
        let config = http::config(&self.region, &self.http, credentials.map(SharedCredentialsProvider::new));
        let mut config = aws_sdk_sts::config::Builder::from(&config);
        config.set_endpoint_url(self.endpoints.of("sts"));
        Client::from_conf(config.build())
    }

    /// Assumes a role with the credentials `from`.
    ///
    /// # Errors
    /// STS's; a code that it refuses is [`Kind::Mfa`].
    pub async fn assume_role(
        &self,
        hop: &Hop,
        from: &Credentials,
        code: Option<&Secret>,
    ) -> Result<Session, AwsError> {
        let client = self.client(Some(from.clone()));
        let request = client
            .assume_role()
            .role_arn(&hop.role)
            .role_session_name(session_name(hop.session_name.as_deref()))
            .set_external_id(hop.external_id.clone())
            .set_duration_seconds(hop.duration)
            .set_serial_number(hop.mfa_serial.clone())
            .set_token_code(code.map(|code| code.reveal().to_owned()));
        let call = Call::new("sts", "AssumeRole", &self.region);
        // A code counts as used even where the answer got lost.
        let policy = if code.is_some() { Policy::QUICK.attempts(1) } else { Policy::QUICK };
        let answer = retry::call(call, &policy, || request.clone().send()).await;
        let answer = answer.map_err(|error| about_role(error, hop, code.is_some()))?;
        let user = answer.assumed_role_user.map(|user| (user.assumed_role_id, user.arn)).unwrap_or_default();
        Ok((session(call, answer.credentials)?, user))
    }

    /// Trades a web identity's token for a role's session.
    ///
    /// # Errors
    /// STS's.
    pub async fn assume_role_with_web_identity(
        &self,
        role: &str,
        name: Option<&str>,
        token: &str,
    ) -> Result<Credentials, AwsError> {
        let request = self
            .client(None)
            .assume_role_with_web_identity()
            .role_arn(role)
            .role_session_name(session_name(name))
            .web_identity_token(token);
        let call = Call::new("sts", "AssumeRoleWithWebIdentity", &self.region);
        let answer = retry::call(call, &Policy::QUICK, || request.clone().send()).await?;
        session(call, answer.credentials)
    }
}

/// The name of a session that has none.
fn session_name(name: Option<&str>) -> String {
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    name.map_or_else(|| format!("kiln-session-{seconds}"), str::to_owned)
}

fn session(call: Call<'_>, answer: Option<aws_sdk_sts::types::Credentials>) -> Result<Credentials, AwsError> {
    let answer = answer.ok_or_else(|| call.error(Kind::Other, "the answer has no credentials"))?;
    let ends = SystemTime::try_from(answer.expiration).ok();
    let token = Some(answer.session_token);
    Ok(Credentials::new(answer.access_key_id, answer.secret_access_key, token, ends, "AssumeRole"))
}

/// Says which role it was about, and whether it was the code's fault.
fn about_role(error: AwsError, hop: &Hop, with_code: bool) -> AwsError {
    let said = error.message.to_ascii_lowercase();
    let multi = said.contains("multifactorauthentication") || said.contains("one time pass code");
    let mut error = error;
    error.message = format!("{} (profile `{}`, role {})", error.message.trim_end(), hop.profile, hop.role);
    if with_code && multi {
        error.kind = Kind::Mfa;
        return error.advise("codes change every 30 seconds and are taken only once: wait for the next one");
    }
    match error.kind {
        Kind::Denied => error.advise(
            "the role's trust policy must name the caller, and what it asks for must be given: external_id, mfa_serial",
        ),
        _ => error,
    }
}
