//! What AWS says when it says no: one error for all services, with a kind that decides whether a call is tried again.

use std::error::Error;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use aws_types::request_id::RequestId as _;

use crate::host::interrupt::Interrupted;

/// What is called, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call<'a> {
    /// The service as IAM spells it: `ec2`, `ebs`, `s3`, `ssm`, `sts`.
    pub service: &'static str,
    /// The operation's name: `StartSnapshot`.
    pub operation: &'static str,
    /// The region's name.
    pub region: &'a str,
}

impl<'a> Call<'a> {
    /// A call of `operation` in `region`.
    #[must_use]
    pub fn new(service: &'static str, operation: &'static str, region: &'a str) -> Call<'a> {
        Call { service, operation, region }
    }

    /// An error of this call that AWS did not send.
    #[must_use]
    pub fn error(&self, kind: Kind, message: impl Into<String>) -> AwsError {
        let details = Details {
            service: self.service,
            operation: self.operation,
            region: self.region.to_owned(),
            message: message.into(),
            ..Details::default()
        };
        AwsError { kind, details: Box::new(details) }
    }

    /// What a failed attempt means.
    pub fn explain<E>(&self, error: &SdkError<E, HttpResponse>) -> AwsError
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        if let Some(inner) = causes(error).find_map(|cause| cause.downcast_ref::<AwsError>()) {
            return inner.clone();
        }
        let status = error.raw_response().map(|response| response.status().as_u16());
        // A HEAD's answer has no body, and so no code.
        let code = error.code().filter(|code| !code.is_empty()).map(str::to_owned);
        let message = match (error.message(), error, status) {
            (Some(message), ..) if !message.is_empty() => message.to_owned(),
            (_, SdkError::ServiceError(_), Some(status)) => format!("HTTP status {status}"),
            _ => story(error),
        };
        let kind = match error {
            SdkError::ServiceError(_) => Kind::of(code.as_deref().unwrap_or(""), status.unwrap_or(0)),
            SdkError::TimeoutError(_) => Kind::Timeout,
            SdkError::DispatchFailure(_) if is_untrusted(error) => Kind::Untrusted,
            SdkError::DispatchFailure(failure) if failure.is_timeout() => Kind::Timeout,
            SdkError::DispatchFailure(failure) if failure.is_user() => Kind::Invalid,
            SdkError::DispatchFailure(failure) if failure.is_io() && never_connected(error) => {
                Kind::Unreachable
            }
            SdkError::DispatchFailure(failure) if failure.is_io() => Kind::Transient,
            SdkError::DispatchFailure(failure) if failure.as_other().is_some() => Kind::Transient,
            // An answer that can't be read: cut off, or a proxy's page.
            SdkError::ResponseError(_) => Kind::of("", status.filter(|s| *s >= 400).unwrap_or(500)),
            _ => Kind::Other,
        };
        let mut told = self.error(kind, message);
        told.request_id = error.request_id().map(str::to_owned);
        told.retry_after = error.raw_response().and_then(retry_after);
        told.code = code;
        told
    }
}

/// `error` and what lies below it.
pub fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let cause = next?;
        next = cause.source();
        Some(cause)
    })
}

/// What lies below an error in one line, each cause said once. The outermost of the SDK's only says at which stage it was.
pub fn story(error: &(dyn Error + 'static)) -> String {
    let mut told = String::new();
    for cause in causes(error).skip(usize::from(error.source().is_some())) {
        let text = cause.to_string();
        if !told.contains(&text) {
            told = if told.is_empty() { text } else { format!("{told}: {text}") };
        }
    }
    told
}

/// Whether the connection itself could not be made: nobody listens, or the name has no address.
fn never_connected(error: &(dyn Error + 'static)) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
    causes(error).any(|cause| match cause.downcast_ref::<std::io::Error>() {
        Some(io) => matches!(io.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable),
        None => cause.to_string().contains("dns error"),
    })
}

/// Whether the server's certificate is none that is believed. TLS libraries say so in words only.
pub fn is_untrusted(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|cause| cause.to_string().contains("invalid peer certificate"))
}

/// How long the service asks to wait.
fn retry_after(response: &HttpResponse) -> Option<Duration> {
    let seconds: u64 = response.headers().get("retry-after")?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds.min(60)))
}

/// A call that failed for good, or an attempt of one. Its [`Details`] are read and changed as if they were its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwsError {
    /// What sort of failure it is.
    pub kind: Kind,
    details: Box<Details>,
}

/// What is known of a failure.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Details {
    /// The service as IAM spells it.
    pub service: &'static str,
    /// The operation's name; empty for what failed before any call.
    pub operation: &'static str,
    /// The region's name; empty where there is none.
    pub region: String,
    /// AWS's own code: `InvalidAMIName.Duplicate`.
    pub code: Option<String>,
    /// What AWS says.
    pub message: String,
    /// What AWS's support asks for.
    pub request_id: Option<String>,
    /// How long the service asked to wait.
    pub retry_after: Option<Duration>,
    /// What to do about it, where the one who failed knows better than [`AwsError::hint`].
    pub advice: Option<String>,
}

impl Deref for AwsError {
    type Target = Details;

    fn deref(&self) -> &Details {
        &self.details
    }
}

impl DerefMut for AwsError {
    fn deref_mut(&mut self) -> &mut Details {
        &mut self.details
    }
}

impl AwsError {
    /// Adds what to do about it.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> AwsError {
        self.advice = Some(advice.into());
        self
    }

    /// Whether AWS's code is `code`.
    #[must_use]
    pub fn is(&self, code: &str) -> bool {
        self.code.as_deref() == Some(code)
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let Details { service, operation, region, .. } = &**self;
        if self.advice.is_some() {
            return self.advice.clone();
        }
        Some(match self.kind {
            Kind::Denied => {
                let call = Call { service, operation, region };
                let needed = match super::iam::permission(call) {
                    Some(permission) => format!("the permission `{permission}` in {region}"),
                    None => "more permissions".to_owned(),
                };
                format!("the caller needs {needed}; docs/guide/publishing.md has the policies")
            }
            Kind::Expired => {
                "sign in again and give the same command: it goes on where it stopped".to_owned()
            }
            Kind::Credentials if self.is("AuthFailure") || self.is("UnrecognizedClientException") => format!(
                "either the keys are wrong (`aws sts get-caller-identity` tells), or {region} is not enabled in the account"
            ),
            Kind::Credentials if self.is("RequestTimeTooSkewed") || self.is("SignatureDoesNotMatch") => {
                "the secret key is wrong, or this host's clock is".to_owned()
            }
            Kind::Credentials if self.code.is_some() => {
                "`aws sts get-caller-identity` tells whether the keys work".to_owned()
            }
            Kind::NotEnabled => format!("enable {region} in the account's settings, or leave it out"),
            Kind::Limit => {
                format!("the account's quota in {region} is used up: ask for more, or remove what is old")
            }
            Kind::Throttled => {
                "other work in the account uses up the rate of calls: try again later".to_owned()
            }
            Kind::Untrusted => {
                "the server, or a proxy on the way, shows a certificate that nothing here vouches for: \
                                AWS_CA_BUNDLE names a file of certificate authorities in PEM"
                    .to_owned()
            }
            Kind::Unreachable => "is the network up, and the region or endpoint spelled right?".to_owned(),
            Kind::Transient | Kind::Timeout => {
                "give the same command again: it goes on where it stopped".to_owned()
            }
            _ => return None,
        })
    }

    /// An error before any call: what credentials are made of is wrong.
    #[must_use]
    pub fn credentials(message: impl Into<String>) -> AwsError {
        Call::new("sts", "", "").error(Kind::Credentials, message)
    }
}

impl std::fmt::Display for AwsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.kind == Kind::Interrupted {
            return write!(f, "{Interrupted}");
        }
        if !self.operation.is_empty() {
            write!(f, "{} {}", self.service, self.operation)?;
            if !self.region.is_empty() {
                write!(f, " in {}", self.region)?;
            }
            write!(f, ": ")?;
        }
        match &self.code {
            Some(code) => write!(f, "{code}: {}", self.message.trim_end())?,
            None => write!(f, "{}", self.message.trim_end())?,
        }
        match &self.request_id {
            Some(id) => write!(f, " (request {id})"),
            None => Ok(()),
        }
    }
}

impl Error for AwsError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        // So that whoever walks the causes sees that the user stopped it.
        (self.kind == Kind::Interrupted).then_some(&Interrupted as &(dyn Error + 'static))
    }
}

impl From<Interrupted> for AwsError {
    fn from(_: Interrupted) -> AwsError {
        Call::new("", "", "").error(Kind::Interrupted, "")
    }
}

/// Sorts of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Too many calls: slower, then again.
    Throttled,
    /// Their fault or the network's: again.
    Transient,
    /// No answer in time: again.
    Timeout,
    /// No connection at all: again, but not for long.
    Unreachable,
    /// The server can't prove that it is the one.
    Untrusted,
    /// The caller is known and may not.
    Denied,
    /// The caller's session has ended.
    Expired,
    /// The caller is not known: no credentials, or wrong ones.
    Credentials,
    /// No code of an MFA device, or a wrong one.
    Mfa,
    /// The account does not use this region.
    NotEnabled,
    /// There is no such thing (yet).
    NotFound,
    /// The name is taken.
    Duplicate,
    /// It goes against what is there or under way.
    Conflict,
    /// A quota is used up.
    Limit,
    /// A dry run that would have gone through.
    DryRun,
    /// The request is wrong.
    Invalid,
    /// The user asked to stop.
    Interrupted,
    /// None of these.
    Other,
}

const THROTTLED: [&str; 12] = [
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "RequestThrottled",
    "RequestThrottledException",
    "RequestLimitExceeded",
    "EC2ThrottledException",
    "TooManyRequestsException",
    "BandwidthLimitExceeded",
    "PriorRequestNotComplete",
    "ProvisionedThroughputExceededException",
    "SlowDown",
];
const TRANSIENT: [&str; 8] = [
    "InternalError",
    "InternalFailure",
    "InternalServerError",
    "InternalServerException",
    "ServiceUnavailable",
    "Unavailable",
    "RequestTimeout",
    "IDPCommunicationError",
];
const DENIED: [&str; 5] = [
    "UnauthorizedOperation",
    "AccessDenied",
    "AccessDeniedException",
    "AuthorizationError",
    "AllAccessDisabled",
];
const EXPIRED: [&str; 5] = [
    "ExpiredToken",
    "ExpiredTokenException",
    "RequestExpired",
    "TokenRefreshRequired",
    "UnauthorizedException",
];
const CREDENTIALS: [&str; 10] = [
    "AuthFailure",
    "InvalidClientTokenId",
    "UnrecognizedClientException",
    "InvalidAccessKeyId",
    "InvalidToken",
    "InvalidIdentityToken",
    "IncompleteSignature",
    "SignatureDoesNotMatch",
    "InvalidSignatureException",
    "RequestTimeTooSkewed",
];

impl Kind {
    /// The kind of an answer, by AWS's code and the HTTP status.
    #[must_use]
    pub fn of(code: &str, status: u16) -> Kind {
        // EC2's older codes begin with whose fault it is; JSON services may put a namespace in front.
        let code = code.rsplit('#').next().unwrap_or(code);
        let code = code.strip_prefix("Client.").or_else(|| code.strip_prefix("Server.")).unwrap_or(code);
        let ends = |suffixes: &[&str]| suffixes.iter().any(|suffix| code.ends_with(suffix));
        match code {
            "DryRunOperation" => Kind::DryRun,
            "OptInRequired" | "RegionDisabledException" => Kind::NotEnabled,
            _ if THROTTLED.contains(&code) => Kind::Throttled,
            _ if TRANSIENT.contains(&code) => Kind::Transient,
            _ if DENIED.contains(&code) => Kind::Denied,
            _ if EXPIRED.contains(&code) => Kind::Expired,
            _ if CREDENTIALS.contains(&code) => Kind::Credentials,
            "InvalidAMIID.Unavailable" | "ResourceNotFoundException" => Kind::NotFound,
            _ if code.starts_with("NoSuch") || ends(&["NotFound", "NotFoundException"]) => Kind::NotFound,
            _ if ends(&["Duplicate", "AlreadyExists"]) => Kind::Duplicate,
            "IdempotentParameterMismatch" => Kind::Conflict,
            _ if ends(&["ConflictException", "InUse"]) => Kind::Conflict,
            _ if ends(&[
                "LimitExceeded",
                "LimitExceededException",
                "QuotaExceeded",
                "QuotaExceededException",
            ]) =>
            {
                Kind::Limit
            }
            _ => Kind::of_status(status),
        }
    }

    fn of_status(status: u16) -> Kind {
        match status {
            401 | 403 => Kind::Denied,
            404 => Kind::NotFound,
            408 => Kind::Timeout,
            409 => Kind::Conflict,
            429 => Kind::Throttled,
            400..=499 => Kind::Invalid,
            500..=599 => Kind::Transient,
            _ => Kind::Other,
        }
    }

    /// Whether the same call may succeed the next time.
    #[must_use]
    pub fn passes(self) -> bool {
        matches!(self, Kind::Throttled | Kind::Transient | Kind::Timeout | Kind::Unreachable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_kinds() {
        for (code, status, kind) in [
            ("RequestLimitExceeded", 503, Kind::Throttled),
            ("RequestThrottledException", 400, Kind::Throttled),
            ("SlowDown", 503, Kind::Throttled),
            ("InternalServerException", 500, Kind::Transient),
            ("", 502, Kind::Transient),
            ("Server.InternalError", 500, Kind::Transient),
            ("UnauthorizedOperation", 403, Kind::Denied),
            ("AccessDeniedException", 403, Kind::Denied),
            ("", 403, Kind::Denied),
            ("ExpiredTokenException", 403, Kind::Expired),
            ("RequestExpired", 400, Kind::Expired),
            ("AuthFailure", 401, Kind::Credentials),
            ("com.amazonaws#UnrecognizedClientException", 400, Kind::Credentials),
            ("OptInRequired", 401, Kind::NotEnabled),
            ("InvalidSnapshot.NotFound", 400, Kind::NotFound),
            ("ResourceNotFoundException", 404, Kind::NotFound),
            ("ParameterNotFound", 400, Kind::NotFound),
            ("NoSuchBucket", 404, Kind::NotFound),
            ("InvalidAMIName.Duplicate", 400, Kind::Duplicate),
            ("ParameterAlreadyExists", 400, Kind::Duplicate),
            ("ConflictException", 503, Kind::Conflict),
            ("InvalidSnapshot.InUse", 400, Kind::Conflict),
            ("ServiceQuotaExceededException", 402, Kind::Limit),
            ("ResourceLimitExceeded", 400, Kind::Limit),
            ("DryRunOperation", 412, Kind::DryRun),
            ("InvalidParameterValue", 400, Kind::Invalid),
            ("ValidationException", 400, Kind::Invalid),
            ("Unheard", 0, Kind::Other),
        ] {
            assert_eq!(Kind::of(code, status), kind, "{code} {status}");
        }
    }

    #[test]
    fn an_error_tells_what_where_and_the_request() {
        let mut error = Call::new("ec2", "RegisterImage", "eu-central-1").error(Kind::Duplicate, "taken\n");
        assert_eq!(error.to_string(), "ec2 RegisterImage in eu-central-1: taken");
        error.code = Some("InvalidAMIName.Duplicate".to_owned());
        error.request_id = Some("r-1".to_owned());
        assert_eq!(
            error.to_string(),
            "ec2 RegisterImage in eu-central-1: InvalidAMIName.Duplicate: taken (request r-1)"
        );
        let denied = Call::new("s3", "HeadBucket", "eu-central-1").error(Kind::Denied, "no");
        let hint = denied.hint().unwrap();
        assert!(hint.contains("`s3:ListBucket` in eu-central-1") && hint.contains("publishing.md"), "{hint}");
        assert_eq!(AwsError::credentials("no profile").to_string(), "no profile");
        assert!(AwsError::from(Interrupted).source().is_some_and(|e| e.is::<Interrupted>()));
    }
}
