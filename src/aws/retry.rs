//! Calls that are tried again when that can help, each attempt with a deadline, and not a moment longer than the user
//! wants: Ctrl-C ends a call within a tenth of a second.

use std::error::Error;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

use super::error::{AwsError, Call, Kind};
use crate::host::interrupt::{self, Interrupted};

/// How often the flag that Ctrl-C raises is looked at.
const GLANCE: Duration = Duration::from_millis(50);

/// A name that can't be resolved or a port where nobody listens rarely gets better: four attempts take some seconds.
const UNREACHABLE_ATTEMPTS: u32 = 4;

/// How often and how patiently a call is tried.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Attempts in all, the first one included.
    pub attempts: u32,
    /// How long one attempt may take.
    pub deadline: Duration,
    /// About how long the first pause is; each one after it is twice as long.
    pub pause: Duration,
    /// No pause is longer.
    pub longest: Duration,
    /// AWS's codes that pass here too, because what the call is about takes a while to be seen everywhere.
    pub also: &'static [&'static str],
}

impl Policy {
    /// For calls that look or change settings: given up after about two minutes of throttling.
    pub const CONTROL: Policy = Policy {
        attempts: 10,
        deadline: Duration::from_secs(30),
        pause: Duration::from_millis(300),
        longest: Duration::from_secs(20),
        also: &[],
    };

    /// For what a person waits for: is there anybody, and who am I?
    pub const QUICK: Policy = Policy {
        attempts: 4,
        deadline: Duration::from_secs(10),
        longest: Duration::from_secs(2),
        ..Policy::CONTROL
    };

    /// The same, but `codes` pass too.
    #[must_use]
    pub const fn also(self, codes: &'static [&'static str]) -> Policy {
        Policy { also: codes, ..self }
    }

    /// The same with so many attempts.
    #[must_use]
    pub const fn attempts(self, attempts: u32) -> Policy {
        Policy { attempts, ..self }
    }

    /// The same with another deadline for each attempt.
    #[must_use]
    pub const fn deadline(self, deadline: Duration) -> Policy {
        Policy { deadline, ..self }
    }

    /// Whether a call that failed with `error` at its attempt number `attempt` (from 1) is tried again.
    #[must_use]
    pub fn tries_again(&self, error: &AwsError, attempt: u32) -> bool {
        let passes =
            error.kind.passes() || error.code.as_deref().is_some_and(|code| self.also.contains(&code));
        let attempts = match error.kind {
            Kind::Unreachable => self.attempts.min(UNREACHABLE_ATTEMPTS),
            _ => self.attempts,
        };
        passes && attempt < attempts
    }

    /// The pause after attempt number `attempt` (from 1): between half of a doubling time and the whole, by `chance` in
    /// 0..=1, so that those who failed together don't come back together. Never less than what the service asked for.
    #[must_use]
    pub fn pause_after(&self, attempt: u32, asked: Option<Duration>, chance: f64) -> Duration {
        let doubled = self.pause.saturating_mul(1_u32 << attempt.saturating_sub(1).min(16));
        let whole = doubled.min(self.longest);
        whole.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0).max(asked.unwrap_or_default())
    }
}

/// Calls until it succeeds, fails for good, or the attempts are used up.
///
/// # Errors
/// The last attempt's error; [`Kind::Interrupted`] as soon as the user asks to stop.
pub async fn call<T, E, F>(call: Call<'_>, policy: &Policy, attempt: impl FnMut() -> F) -> Result<T, AwsError>
where
    F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    E: ProvideErrorMetadata + Error + 'static,
{
    call_watched(call, policy, |_| {}, attempt).await
}

/// Like [`call()`], and `failed` is told of each failed attempt: who paces many calls learns of throttling there.
///
/// # Errors
/// As [`call()`].
pub async fn call_watched<T, E, F>(
    call: Call<'_>,
    policy: &Policy,
    mut failed: impl FnMut(&AwsError),
    mut attempt: impl FnMut() -> F,
) -> Result<T, AwsError>
where
    F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    E: ProvideErrorMetadata + Error + 'static,
{
    let mut number = 1;
    loop {
        let error = match once(call, policy.deadline, attempt()).await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        failed(&error);
        if !policy.tries_again(&error, number) {
            return Err(error);
        }
        let pause = policy.pause_after(number, error.retry_after, chance());
        tracing::debug!(%error, number, ?pause, "tried again");
        sleep(pause).await?;
        number += 1;
    }
}

/// One attempt, with a deadline.
async fn once<T, E>(
    call: Call<'_>,
    deadline: Duration,
    attempt: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
) -> Result<T, AwsError>
where
    E: ProvideErrorMetadata + Error + 'static,
{
    // An SDK call's future is large, and would be part of every caller's.
    match interruptible(tokio::time::timeout(deadline, Box::pin(attempt))).await? {
        Ok(answer) => answer.map_err(|error| call.explain(&error)),
        Err(_) => Err(call.error(Kind::Timeout, format!("no answer within {} s", deadline.as_secs_f32()))),
    }
}

/// Waits for `work`, unless the user asks to stop.
///
/// # Errors
/// [`Interrupted`]; `work` is dropped then.
pub async fn interruptible<T>(work: impl Future<Output = T>) -> Result<T, Interrupted> {
    interrupt::check()?;
    tokio::select! {
        biased;
        value = work => Ok(value),
        interrupted = interrupted() => Err(interrupted),
    }
}

/// Sleeps, unless the user asks to stop.
///
/// # Errors
/// [`Interrupted`].
pub async fn sleep(time: Duration) -> Result<(), Interrupted> {
    interruptible(tokio::time::sleep(time)).await
}

/// Ends when the user asks to stop.
pub async fn interrupted() -> Interrupted {
    loop {
        if let Err(interrupted) = interrupt::check() {
            return interrupted;
        }
        tokio::time::sleep(GLANCE).await;
    }
}

/// A number in 0..1 that differs each time. The standard library's hash keys are random and count up.
fn chance() -> f64 {
    let bits = RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
#[expect(clippy::result_large_err, reason = "the SDK's errors are as large as they are")]
mod tests {
    use std::cell::{Cell, RefCell};

    use aws_smithy_runtime_api::client::result::ConnectorError;
    use aws_smithy_runtime_api::http::StatusCode;
    use aws_smithy_types::body::SdkBody;
    use aws_smithy_types::error::ErrorMetadata;

    use super::*;

    const CALL: Call<'static> =
        Call { service: "ebs", operation: "PutSnapshotBlock", region: "eu-central-1" };

    /// As [`Policy::CONTROL`], but in a hurry.
    const FAST: Policy = Policy {
        attempts: 5,
        deadline: Duration::from_millis(200),
        pause: Duration::from_millis(1),
        longest: Duration::from_millis(4),
        also: &[],
    };

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Said(ErrorMetadata);

    impl ProvideErrorMetadata for Said {
        fn meta(&self) -> &ErrorMetadata {
            &self.0
        }
    }

    type Answer = Result<&'static str, SdkError<Said, HttpResponse>>;

    fn says(status: u16, code: &str) -> Answer {
        let mut response = HttpResponse::new(StatusCode::try_from(status).unwrap(), SdkBody::empty());
        response.headers_mut().insert("x-amzn-requestid", "r-1");
        let said = ErrorMetadata::builder().code(code).message("because").build();
        Err(SdkError::service_error(Said(said), response))
    }

    /// Gives the answers of `answers` one after the other; what came of it, and how many were used.
    fn run(policy: Policy, mut answers: Vec<Answer>) -> (Result<&'static str, AwsError>, usize) {
        answers.reverse();
        let (answers, calls) = (RefCell::new(answers), Cell::new(0));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let result = runtime.block_on(call(CALL, &policy, || {
            calls.set(calls.get() + 1);
            let answer = answers.borrow_mut().pop();
            async { answer.unwrap_or_else(|| says(500, "InternalError")) }
        }));
        (result, calls.get())
    }

    #[test]
    fn what_passes_is_tried_again() {
        let (result, calls) =
            run(FAST, vec![says(500, ""), says(400, "RequestThrottledException"), Ok("yes")]);
        assert_eq!((result.unwrap(), calls), ("yes", 3));
        let reset = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let reset = Err(SdkError::dispatch_failure(ConnectorError::io(reset.into())));
        let (result, calls) = run(FAST, vec![reset, Ok("yes")]);
        assert_eq!((result.unwrap(), calls), ("yes", 2));
    }

    #[test]
    fn what_is_final_fails_at_once() {
        for code in ["AccessDeniedException", "ValidationException", "ExpiredTokenException"] {
            let (result, calls) = run(FAST, vec![says(403, code), Ok("never")]);
            let error = result.unwrap_err();
            assert_eq!((error.code.as_deref(), calls), (Some(code), 1));
            assert_eq!(error.request_id.as_deref(), Some("r-1"));
            assert_eq!(error.message, "because");
        }
    }

    #[test]
    fn attempts_are_counted() {
        let (result, calls) = run(FAST, vec![]);
        assert_eq!((result.unwrap_err().kind, calls), (Kind::Transient, 5));
        let refused = || {
            let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
            Err(SdkError::dispatch_failure(ConnectorError::io(refused.into())))
        };
        let (result, calls) = run(FAST.attempts(9), (0..9).map(|_| refused()).collect());
        assert_eq!((result.unwrap_err().kind, calls), (Kind::Unreachable, 4));
    }

    #[test]
    fn some_codes_pass_where_the_caller_says_so() {
        let late = || says(404, "ResourceNotFoundException");
        let (result, calls) = run(FAST, vec![late(), Ok("yes")]);
        assert_eq!((result.unwrap_err().kind, calls), (Kind::NotFound, 1));
        let (result, calls) = run(FAST.also(&["ResourceNotFoundException"]), vec![late(), Ok("yes")]);
        assert_eq!((result.unwrap(), calls), ("yes", 2));
    }

    #[test]
    fn an_attempt_that_hangs_has_a_deadline() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let calls = Cell::new(0);
        let policy = FAST.deadline(Duration::from_millis(20));
        let result: Result<&str, _> = runtime.block_on(call(CALL, &policy, || {
            calls.set(calls.get() + 1);
            let first = calls.get() == 1;
            async move {
                if first {
                    std::future::pending::<()>().await;
                }
                Answer::Ok("yes")
            }
        }));
        assert_eq!((result.unwrap(), calls.get()), ("yes", 2));
    }

    #[test]
    fn an_error_of_the_credentials_comes_through_whole() {
        let inner = AwsError::credentials("the session has ended");
        let wrapped = aws_credential_types::provider::error::CredentialsError::provider_error(inner.clone());
        let failed = Err(SdkError::dispatch_failure(ConnectorError::other(wrapped.into(), None)));
        let (result, calls) = run(FAST, vec![failed]);
        assert_eq!((result.unwrap_err(), calls), (inner, 1));
    }

    #[test]
    fn pauses_grow_and_stay_apart() {
        let policy = Policy::CONTROL;
        assert_eq!(policy.pause_after(1, None, 0.0), Duration::from_millis(150));
        assert_eq!(policy.pause_after(1, None, 1.0), Duration::from_millis(300));
        assert_eq!(policy.pause_after(3, None, 1.0), Duration::from_millis(1200));
        assert_eq!(policy.pause_after(60, None, 1.0), Duration::from_secs(20));
        assert_eq!(policy.pause_after(1, Some(Duration::from_secs(7)), 0.0), Duration::from_secs(7));
        let chances: Vec<f64> = (0..50).map(|_| chance()).collect();
        assert!(chances.iter().all(|c| (0.0..1.0).contains(c)));
        assert!(chances.iter().any(|c| *c < 0.5) && chances.iter().any(|c| *c >= 0.5));
    }
}
