//! Signed requests that no client here makes: one question each to KMS and Service Quotas, and the address by which a
//! region fetches an encrypted snapshot from another.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials as _;
use aws_sigv4::http_request::{
    SignableBody, SignableRequest, SignatureLocation, SigningError, SigningSettings, sign,
};
use aws_sigv4::sign::v4;
use serde_json::{Value, json};
use ureq::tls::{RootCerts, TlsConfig};

use super::cloud::Region;
use super::error::{AwsError, Call, Kind, is_untrusted};
use super::retry::{self, Policy};

/// How long a signed address is good for.
const LASTS: Duration = Duration::from_secs(3600);
/// No answer of these services is near as long.
const LONGEST: u64 = 1 << 20;

/// A key of KMS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its ARN, whatever it was asked for by.
    pub arn: String,
    /// KMS's word for its state: `Enabled`, `Disabled`, `PendingDeletion`, ….
    pub state: String,
    /// Whether it is one of AWS's own, which no other account can use.
    pub aws_managed: bool,
    /// Whether it encrypts symmetrically, as EBS needs it.
    pub symmetric: bool,
}

/// The key that an id, an ARN or an alias means in a region.
///
/// # Errors
/// [`Kind::NotFound`] when there is none; else when KMS refuses.
pub async fn key(region: &Region, name: &str) -> Result<Key, AwsError> {
    let call = region.call("kms", "DescribeKey");
    let answer = ask(region, call, "TrentService", json!({ "KeyId": name })).await?;
    let text = |member: &str| answer["KeyMetadata"][member].as_str().unwrap_or_default().to_owned();
    Ok(Key {
        arn: text("Arn"),
        state: text("KeyState"),
        aws_managed: text("KeyManager") == "AWS",
        symmetric: text("KeySpec") == "SYMMETRIC_DEFAULT",
    })
}

/// The policy of a key, as JSON.
///
/// # Errors
/// When KMS refuses.
pub async fn key_policy(region: &Region, arn: &str) -> Result<String, AwsError> {
    let call = region.call("kms", "GetKeyPolicy");
    let answer = ask(region, call, "TrentService", json!({ "KeyId": arn, "PolicyName": "default" })).await?;
    Ok(answer["Policy"].as_str().unwrap_or_default().to_owned())
}

/// What a quota of the account is in a region.
///
/// # Errors
/// When Service Quotas refuses.
pub async fn quota(region: &Region, service: &str, code: &str) -> Result<f64, AwsError> {
    let call = region.call("servicequotas", "GetServiceQuota");
    let body = json!({ "ServiceCode": service, "QuotaCode": code });
    let answer = ask(region, call, "ServiceQuotasV20190624", body).await?;
    answer["Quota"]["Value"].as_f64().ok_or_else(|| call.error(Kind::Other, "the answer has no value"))
}

/// The address with which `region` fetches an encrypted snapshot from another: `CopySnapshot`'s `PresignedUrl`.
///
/// # Errors
/// When there are no credentials.
pub(super) async fn copy_address(region: &Region, from: &str, snapshot: &str) -> Result<String, AwsError> {
    let call = region.call("ec2", "CopySnapshot");
    let base = region.endpoint("ec2").unwrap_or_else(|| address("ec2", from));
    let url = format!(
        "{}/?Action=CopySnapshot&Version=2016-11-15&DestinationRegion={}&SourceRegion={from}&SourceSnapshotId={snapshot}",
        base.trim_end_matches('/'),
        region.name
    );
    presigned(&credentials(region, call).await?, from, &url, SystemTime::now())
        .map_err(|e| unsigned(call, &e))
}

/// A GET of `url` that anybody can make for an hour.
fn presigned(
    credentials: &Credentials,
    region: &str,
    url: &str,
    now: SystemTime,
) -> Result<String, SigningError> {
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(LASTS);
    let request = SignableRequest::new("GET", url, std::iter::empty(), SignableBody::Bytes(b""))?;
    let identity = credentials.clone().into();
    let parameters = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("ec2")
        .time(now)
        .settings(settings)
        .build()
        .expect("all members are given")
        .into();
    let (instructions, _) = sign(request, &parameters)?.into_parts();
    Ok(instructions
        .params()
        .iter()
        .fold(url.to_owned(), |url, (name, value)| format!("{url}&{name}={}", percent_encoded(value))))
}

/// As a query's values are written: all but RFC 3986's unreserved characters.
fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// Asks a service that speaks AWS's JSON 1.1.
async fn ask(region: &Region, call: Call<'_>, target: &str, body: Value) -> Result<Value, AwsError> {
    let policy = Policy::QUICK;
    let mut attempt = 1;
    loop {
        let request = request(region, call, target, &body).await?;
        let answer = tokio::task::spawn_blocking(move || request.send());
        let answer = match retry::interruptible(answer).await? {
            Ok(Ok(answer)) => read(call, answer.0, &answer.1),
            Ok(Err(error)) if is_untrusted(&error) => Err(call.error(Kind::Untrusted, error.to_string())),
            Ok(Err(error)) => Err(call.error(Kind::Transient, error.to_string())),
            Err(panicked) => Err(call.error(Kind::Other, panicked.to_string())),
        };
        match answer {
            Err(error) if policy.tries_again(&error, attempt) => {
                retry::sleep(policy.pause_after(attempt, error.retry_after, 0.5)).await?;
                attempt += 1;
            }
            answer => return answer,
        }
    }
}

/// A POST, ready to be sent.
struct Request {
    url: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Whom to believe that a server is AWS's.
    roots: RootCerts,
}

impl Request {
    /// The status and the body of the answer.
    fn send(self) -> Result<(u16, Vec<u8>), ureq::Error> {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(Some(Policy::QUICK.deadline))
            .http_status_as_error(false)
            .tls_config(TlsConfig::builder().root_certs(self.roots).build())
            .build()
            .into();
        let request = self.headers.iter().fold(agent.post(&self.url), |request, (name, value)| {
            request.header(name.as_str(), value.as_str())
        });
        let mut answer = request.send(&self.body[..])?;
        let body = answer.body_mut().with_config().limit(LONGEST).read_to_vec()?;
        Ok((answer.status().as_u16(), body))
    }
}

async fn request(region: &Region, call: Call<'_>, target: &str, body: &Value) -> Result<Request, AwsError> {
    let url = region.endpoint(call.service).unwrap_or_else(|| address(call.service, &region.name));
    let url = format!("{}/", url.trim_end_matches('/'));
    let body = body.to_string().into_bytes();
    let target = format!("{target}.{}", call.operation);
    let headers = [("content-type", "application/x-amz-json-1.1"), ("x-amz-target", &target)];
    let identity = credentials(region, call).await?.into();
    let parameters = v4::SigningParams::builder()
        .identity(&identity)
        .region(&region.name)
        .name(call.service)
        .time(SystemTime::now())
        .settings(SigningSettings::default())
        .build()
        .expect("all members are given")
        .into();
    let signed = SignableRequest::new("POST", &url, headers.into_iter(), SignableBody::Bytes(&body))
        .and_then(|request| sign(request, &parameters))
        .map_err(|e| unsigned(call, &e))?;
    let (instructions, _) = signed.into_parts();
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    let headers = headers.into_iter().chain(instructions.headers()).map(owned).collect();
    Ok(Request { url, headers, body, roots: region.trust().roots() })
}

async fn credentials(region: &Region, call: Call<'_>) -> Result<Credentials, AwsError> {
    let credentials = region.session().provide_credentials().await;
    credentials.map_err(|error| call.error(Kind::Credentials, error.to_string()))
}

fn unsigned(call: Call<'_>, error: &SigningError) -> AwsError {
    call.error(Kind::Invalid, format!("the request can't be signed: {error}"))
}

/// A service's usual address. China has a domain of its own.
fn address(service: &str, region: &str) -> String {
    let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    format!("https://{service}.{region}.{domain}")
}

fn read(call: Call<'_>, status: u16, body: &[u8]) -> Result<Value, AwsError> {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    if (200..300).contains(&status) {
        return Ok(value);
    }
    let code = value["__type"].as_str().map(|code| code.rsplit('#').next().unwrap_or(code).to_owned());
    let message = ["message", "Message"].iter().find_map(|name| value[*name].as_str());
    let kind = Kind::of(code.as_deref().unwrap_or_default(), status);
    let message = message.map_or_else(|| format!("HTTP status {status}"), str::to_owned);
    let mut error = call.error(kind, message);
    error.code = code;
    Err(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of AWS's own documentation of query-string signing have the service `s3`; this is the same algorithm,
    /// so what matters is checked: what is signed, and that it depends on everything.
    #[test]
    fn a_signed_address_carries_what_it_must() {
        let credentials = Credentials::new("AKIDEXAMPLE", "secret", Some("to/ken+".to_owned()), None, "test");
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_789_199_741);
        let sign = |url: &str| presigned(&credentials, "eu-central-1", url, now).unwrap();
        let url = "https://ec2.eu-central-1.amazonaws.com/?Action=CopySnapshot&SourceSnapshotId=snap-1";
        let signed = sign(url);
        for part in [
            "&X-Amz-Algorithm=AWS4-HMAC-SHA256",
            "&X-Amz-Credential=AKIDEXAMPLE%2F20260912%2Feu-central-1%2Fec2%2Faws4_request",
            "&X-Amz-Date=20260912T075541Z",
            "&X-Amz-Expires=3600",
            "&X-Amz-SignedHeaders=host",
            "&X-Amz-Security-Token=to%2Fken%2B",
        ] {
            assert!(signed.contains(part), "{part} is missing in {signed}");
        }
        let signature = |url: &str| url.split("X-Amz-Signature=").nth(1).unwrap()[..64].to_owned();
        assert_ne!(signature(&signed), signature(&sign(&url.replace("snap-1", "snap-2"))));
    }

    #[test]
    fn refusals_are_errors_with_kinds() {
        let call = Call::new("kms", "DescribeKey", "eu-central-1");
        let body = br#"{"__type":"com.amazonaws.kms#NotFoundException","message":"no such key"}"#;
        let error = read(call, 400, body).unwrap_err();
        assert_eq!((error.kind, error.code.as_deref()), (Kind::NotFound, Some("NotFoundException")));
        assert_eq!(error.message, "no such key");
        assert_eq!(read(call, 502, b"<html>").unwrap_err().kind, Kind::Transient);
        assert_eq!(read(call, 200, br#"{"a":1}"#).unwrap()["a"], 1);
    }

    #[test]
    fn services_have_addresses() {
        assert_eq!(address("kms", "eu-central-1"), "https://kms.eu-central-1.amazonaws.com");
        assert_eq!(address("kms", "cn-north-1"), "https://kms.cn-north-1.amazonaws.com.cn");
    }
}
