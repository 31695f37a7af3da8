//! A session: the credentials at the end of a way, renewed in time where that takes nobody.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, future};
use tokio::sync::Mutex;

use super::base;
use super::cache::Cache;
use super::environment::{Environment, Secret};
use super::mfa::{Mfa, PROMPTS};
use super::sts::Sts;
use super::way::{Base, Hop, Way};
use crate::aws::error::{AwsError, Call, Kind};
use crate::publish::target::Role;

/// Credentials with less time left are renewed before they are used.
const RENEW: Duration = Duration::from_secs(5 * 60);

/// What all regions share.
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

struct Inner {
    start: Start,
    hops: Vec<Hop>,
    sts: Sts,
    cache: Option<Cache>,
    mfa: Arc<Mfa>,
    environment: Environment,
    /// What is held of the way: the base's credentials, then each role's. One renews at a time.
    held: Mutex<Vec<Option<Credentials>>>,
    /// The last ones, for those who only read.
    last: RwLock<Option<Last>>,
}

/// Where a session begins.
enum Start {
    Base(Base),
    Session(Session),
}

/// The credentials in use.
#[derive(Clone)]
struct Last {
    credentials: Credentials,
    /// When they end and nobody but a person can make new ones.
    ends: Option<SystemTime>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("hops", &self.inner.hops).finish_non_exhaustive()
    }
}

/// How a session is made.
#[derive(Debug)]
pub struct Opening {
    /// The way to go.
    pub way: Way,
    /// Where STS is.
    pub sts: Sts,
    /// Where sessions of roles are kept between runs.
    pub cache: Option<Cache>,
    /// Where codes come from.
    pub mfa: Mfa,
    /// What the host's own credentials depend on.
    pub environment: Environment,
    /// A kept session with less time left is not good enough, if another one can be made.
    pub least: Duration,
}

impl Session {
    /// Goes the way once. This is where a person may be asked for a code; never afterwards.
    ///
    /// # Errors
    /// When a step of the way fails.
    pub async fn open(opening: Opening) -> Result<Session, AwsError> {
        let least = opening.least;
        let session = Session {
            inner: Arc::new(Inner {
                held: Mutex::new(vec![None; opening.way.hops.len() + 1]),
                start: Start::Base(opening.way.base),
                hops: opening.way.hops,
                sts: opening.sts,
                cache: opening.cache,
                mfa: Arc::new(opening.mfa),
                environment: opening.environment,
                last: RwLock::new(None),
            }),
        };
        session.inner.open(least).await?;
        Ok(session)
    }

    /// A session as `role`, on top of this one.
    ///
    /// # Errors
    /// When the role can't be assumed.
    pub async fn assume(&self, role: &Role) -> Result<Session, AwsError> {
        let hop = Hop {
            profile: "publish.aws".to_owned(),
            role: role.arn.clone(),
            external_id: role.external_id.clone(),
            session_name: role.session_name.clone(),
            duration: role.duration.and_then(|seconds| i32::try_from(seconds).ok()),
            mfa_serial: None,
        };
        let session = Session {
            inner: Arc::new(Inner {
                start: Start::Session(self.clone()),
                hops: vec![hop],
                sts: self.inner.sts.clone(),
                cache: None,
                mfa: Arc::default(),
                environment: self.inner.environment.clone(),
                held: Mutex::new(vec![None; 2]),
                last: RwLock::new(None),
            }),
        };
        session.credentials().await?;
        Ok(session)
    }

    /// Credentials that last a while yet.
    ///
    /// # Errors
    /// When they have ended and can't be renewed without a person: [`Kind::Expired`].
    pub async fn credentials(&self) -> Result<Credentials, AwsError> {
        let inner = &self.inner;
        if let Some(last) = inner.last().filter(|last| lasts(&last.credentials, RENEW)) {
            return Ok(last.credentials);
        }
        let mut held = inner.held.lock().await;
        // Somebody else may have renewed them meanwhile.
        if let Some(last) = inner.last().filter(|last| lasts(&last.credentials, RENEW)) {
            return Ok(last.credentials);
        }
        match Box::pin(inner.walk(&mut held, RENEW, false)).await {
            Ok(credentials) => Ok(credentials),
            Err(error) if error.kind == Kind::Interrupted => Err(error),
            // The old ones do as long as they last.
            Err(error) => match inner.last().filter(|last| lasts(&last.credentials, Duration::ZERO)) {
                Some(last) => {
                    tracing::debug!(%error, "credentials not renewed yet");
                    Ok(last.credentials)
                }
                None => Err(error),
            },
        }
    }

    /// How long work can go on without a person; `None`: for as long as it takes.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        let ends = self.inner.last()?.ends?;
        Some(ends.duration_since(SystemTime::now()).unwrap_or_default())
    }
}

/// Whether `credentials` last for longer than `time`.
fn lasts(credentials: &Credentials, time: Duration) -> bool {
    credentials.expiry().is_none_or(|ends| ends > SystemTime::now() + time)
}

impl Inner {
    fn last(&self) -> Option<Last> {
        self.last.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn open(&self, least: Duration) -> Result<Credentials, AwsError> {
        let mut held = self.held.lock().await;
        match self.walk(&mut held, least.max(RENEW), true).await {
            // Better a short session out of the cache than none.
            Err(error) if error.kind == Kind::Mfa && error.code.is_none() => {
                match self.walk(&mut held, RENEW, false).await {
                    Err(other) if other.kind == Kind::Interrupted => Err(other),
                    answer => answer.map_err(|_| error),
                }
            }
            answer => answer,
        }
    }

    /// Goes the way from the last step whose credentials last for `least`.
    async fn walk(
        &self,
        held: &mut [Option<Credentials>],
        least: Duration,
        person: bool,
    ) -> Result<Credentials, AwsError> {
        for step in (1..held.len()).rev() {
            if held[step].as_ref().is_some_and(|credentials| lasts(credentials, least)) {
                break;
            }
            let hop = &self.hops[step - 1];
            let kept = self.cache.as_ref().and_then(|cache| cache.get(hop, SystemTime::now()));
            if let Some(kept) = kept.filter(|kept| lasts(kept, least)) {
                held[step] = Some(kept);
                break;
            }
        }
        let from =
            (1..held.len()).rev().find(|&s| held[s].as_ref().is_some_and(|c| lasts(c, least))).unwrap_or(0);
        let mut credentials = match (from, &held[from]) {
            (1.., Some(credentials)) => credentials.clone(),
            _ => self.begin(&held[0]).await?,
        };
        held[from] = Some(credentials.clone());
        for (step, hop) in self.hops.iter().enumerate().skip(from).map(|(index, hop)| (index + 1, hop)) {
            credentials = self.step(hop, &credentials, person).await?;
            held[step] = Some(credentials.clone());
        }
        let last = Last { credentials: credentials.clone(), ends: self.ends(held) };
        *self.last.write().unwrap_or_else(PoisonError::into_inner) = Some(last);
        Ok(credentials)
    }

    /// The base's credentials: those that are held, while they last.
    async fn begin(&self, held: &Option<Credentials>) -> Result<Credentials, AwsError> {
        match &self.start {
            Start::Session(session) => session.credentials().await,
            Start::Base(base) => match held.as_ref().filter(|held| lasts(held, RENEW)) {
                Some(held) => Ok(held.clone()),
                None => base::credentials(base, &self.sts, &self.environment).await,
            },
        }
    }

    async fn step(&self, hop: &Hop, from: &Credentials, person: bool) -> Result<Credentials, AwsError> {
        let Some(serial) = &hop.mfa_serial else {
            return self.assume(hop, from, None).await;
        };
        if !person {
            let message =
                format!("the session that a code of {serial} began (profile `{}`) has ended", hop.profile);
            return Err(Call::new("sts", "", "").error(Kind::Expired, message));
        }
        let mut prompts = 1;
        loop {
            let code = self.code(serial, &hop.profile).await?;
            match self.assume(hop, from, Some(&code)).await {
                Err(error) if error.kind == Kind::Mfa && self.mfa.asks_a_person() && prompts < PROMPTS => {
                    self.mfa.complain("AWS did not take this code: wait for the next one");
                    prompts += 1;
                }
                answer => return answer,
            }
        }
    }

    /// A code, which somebody may have to type: not on a thread that others wait for.
    async fn code(&self, serial: &str, profile: &str) -> Result<Secret, AwsError> {
        let (mfa, serial, profile) = (self.mfa.clone(), serial.to_owned(), profile.to_owned());
        let asked = tokio::task::spawn_blocking(move || mfa.code(&serial, &profile));
        asked.await.map_err(|error| AwsError::credentials(error.to_string()))?
    }

    async fn assume(
        &self,
        hop: &Hop,
        from: &Credentials,
        code: Option<&Secret>,
    ) -> Result<Credentials, AwsError> {
        let (session, (id, arn)) = self.sts.assume_role(hop, from, code).await?;
        if let Some(cache) = &self.cache
            && let Err(error) = cache.put(hop, &session, (&id, &arn))
        {
            tracing::warn!("can't keep the session for the AWS CLI and the next run: {error}");
        }
        Ok(session)
    }

    /// When only a person can make new credentials.
    fn ends(&self, held: &[Option<Credentials>]) -> Option<SystemTime> {
        let expiry = |step: usize| held[step].as_ref().and_then(Credentials::expiry);
        let base = match &self.start {
            Start::Session(session) => session.inner.last().and_then(|last| last.ends),
            // Keys stay as they are, with a token or without.
            Start::Base(Base::Keys(_)) => expiry(0),
            Start::Base(_) => None,
        };
        let mut ends = base;
        for (index, hop) in self.hops.iter().enumerate() {
            let own = expiry(index + 1);
            if hop.mfa_serial.is_some() {
                // Unknown where a later role's session came out of the cache.
                ends = Some(own.unwrap_or(SystemTime::UNIX_EPOCH));
            } else if ends.is_some() {
                // What was begun in time lasts on.
                ends = ends.max(own);
            }
        }
        ends
    }
}

impl ProvideCredentials for Session {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            self.credentials().await.map_err(CredentialsError::provider_error)
        })
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
