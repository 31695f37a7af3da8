//! AWS as one sees it with certain credentials: a region of it, with a client for each service.

use std::collections::HashMap;
use std::time::Duration;

use aws_config::SdkConfig;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use tokio::sync::Mutex;

use super::credentials::cache::Cache;
use super::credentials::mfa::Mfa;
use super::credentials::session::Opening;
use super::credentials::sts::Sts;
use super::credentials::{Environment, Files, Session, Way};
use super::endpoint::Endpoints;
use super::error::{AwsError, Call, Kind};
use super::retry::{self, Policy};
use super::trust::Trust;
use super::{credentials, http};
use crate::publish::target::{Role, Target};

/// Where STS is asked when nothing names a region.
const ANYWHERE: &str = "us-east-1";

/// What the command line says about AWS.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The profile: `--profile`. Else AWS_PROFILE, else `default`.
    pub profile: Option<String>,
    /// The address of every service: `--endpoint`.
    pub endpoint: Option<String>,
    /// A code of the MFA device: `--mfa-code`.
    pub mfa_code: Option<credentials::Secret>,
    /// A region to ask STS in when neither the environment nor the profile names one.
    pub region: Option<String>,
    /// How long the work will take about: a session out of the cache that ends earlier is replaced if that can be.
    pub least: Option<Duration>,
}

/// Who one is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The account's id.
    pub account: String,
    /// The ARN of the user, or of the role's session.
    pub arn: String,
}

/// AWS, with credentials.
#[derive(Debug)]
pub struct Cloud {
    session: Session,
    profile: String,
    home: String,
    endpoints: Endpoints,
    trust: Trust,
    http: SharedHttpClient,
    /// Sessions of regions' roles and who one is in them, by role.
    known: Mutex<HashMap<Option<RoleKey>, (Session, Identity)>>,
}

type RoleKey = (String, Option<String>, Option<String>, Option<u32>);

impl Cloud {
    /// Finds credentials and opens their session. A person may be asked for an MFA code on the terminal now, and never
    /// afterwards.
    ///
    /// # Errors
    /// When there are no credentials, or they don't work.
    pub async fn connect(options: Options) -> Result<Cloud, AwsError> {
        Cloud::connect_in(options, Environment::of_process()).await
    }

    /// Like [`Cloud::connect`], with another environment than the process has.
    ///
    /// # Errors
    /// As [`Cloud::connect`].
    pub async fn connect_in(options: Options, environment: Environment) -> Result<Cloud, AwsError> {
        let files = Files::read(&environment)?;
        let way = Way::find(&environment, &files, options.profile.as_deref())?;
        let profile = way.profile.clone();
        let endpoints = Endpoints::new(options.endpoint, &environment, &files, &profile);
        let home = region_of(&environment, &files, &profile).or(options.region);
        let home = home.unwrap_or_else(|| ANYWHERE.to_owned());
        let trust = Trust::find(&environment, &files, &profile)?;
        let http = http::trusting(&trust);
        let sts = Sts { http: http.clone(), endpoints: endpoints.clone(), region: home.clone() };
        // The AWS CLI would go to AWS with a session that was made by an address which only Kiln was given.
        let shared = !endpoints.is_given();
        let session = Session::open(Opening {
            sts,
            cache: shared.then(|| Cache::new(environment.in_home(".aws/cli/cache"))),
            mfa: Mfa::new(options.mfa_code.map(|code| code.reveal().to_owned()), &environment),
            least: options.least.unwrap_or(credentials::cache::LEAST),
            way,
            environment,
        })
        .await?;
        Ok(Cloud { session, profile, home, endpoints, trust, http, known: Mutex::default() })
    }

    /// The profile's name.
    #[must_use]
    pub fn profile(&self) -> &str {
        &self.profile
    }

    /// The region that environment or profile name.
    #[must_use]
    pub fn home(&self) -> &str {
        &self.home
    }

    /// How long work can go on before a person has to sign in again; `None`: for as long as it takes. Only what was opened
    /// so far counts: ask after all regions are.
    pub async fn remaining(&self) -> Option<Duration> {
        let known = self.known.lock().await;
        let sessions = known.values().map(|(session, _)| session).chain([&self.session]);
        sessions.filter_map(Session::remaining).min()
    }

    /// The region of a target, as its role.
    ///
    /// # Errors
    /// As [`Cloud::region`].
    pub async fn target(&self, target: &Target) -> Result<Region, AwsError> {
        self.region(&target.region, target.role.as_ref()).await
    }

    /// A region, as `role` where one is given. Who one is there is asked once for each role.
    ///
    /// # Errors
    /// When the role can't be assumed, or the credentials are not taken.
    pub async fn region(&self, name: &str, role: Option<&Role>) -> Result<Region, AwsError> {
        let key = role.map(|role| {
            (role.arn.clone(), role.external_id.clone(), role.session_name.clone(), role.duration)
        });
        let known = self.known.lock().await.get(&key).cloned();
        let (session, identity) = match known {
            Some(known) => known,
            None => {
                let session = match role {
                    None => self.session.clone(),
                    Some(role) => self.session.assume(role).await?,
                };
                let identity = self.identity(&self.home, &session).await?;
                self.known.lock().await.entry(key).or_insert((session, identity)).clone()
            }
        };
        Ok(self.clients(name, session, identity))
    }

    async fn identity(&self, region: &str, session: &Session) -> Result<Identity, AwsError> {
        let config = http::config(region, &self.http, Some(SharedCredentialsProvider::new(session.clone())));
        let client = self.sts(&config);
        let call = Call::new("sts", "GetCallerIdentity", region);
        let answer = retry::call(call, &Policy::QUICK, || client.get_caller_identity().send()).await?;
        match (answer.account, answer.arn) {
            (Some(account), Some(arn)) => Ok(Identity { account, arn }),
            _ => Err(call.error(Kind::Other, "the answer has no account")),
        }
    }

    fn sts(&self, config: &SdkConfig) -> aws_sdk_sts::Client {
        let mut own = aws_sdk_sts::config::Builder::from(config);
        own.set_endpoint_url(self.endpoints.of("sts"));
        aws_sdk_sts::Client::from_conf(own.build())
    }

    fn clients(&self, name: &str, session: Session, identity: Identity) -> Region {
        let config = http::config(name, &self.http, Some(SharedCredentialsProvider::new(session.clone())));
        let mut ec2 = aws_sdk_ec2::config::Builder::from(&config);
        ec2.set_endpoint_url(self.endpoints.of("ec2"));
        let mut ebs = aws_sdk_ebs::config::Builder::from(&config);
        ebs.set_endpoint_url(self.endpoints.of("ebs"));
        let mut ssm = aws_sdk_ssm::config::Builder::from(&config);
        ssm.set_endpoint_url(self.endpoints.of("ssm"));
        let mut s3 = aws_sdk_s3::config::Builder::from(&config);
        let own = self.endpoints.of("s3");
        // A bucket's name in front of some server's address resolves to nothing.
        s3.set_force_path_style(Some(own.is_some()));
        s3.set_endpoint_url(own);
        Region {
            name: name.to_owned(),
            account: identity.account,
            arn: identity.arn,
            ec2: aws_sdk_ec2::Client::from_conf(ec2.build()),
            ebs: aws_sdk_ebs::Client::from_conf(ebs.build()),
            s3: aws_sdk_s3::Client::from_conf(s3.build()),
            ssm: aws_sdk_ssm::Client::from_conf(ssm.build()),
            sts: self.sts(&config),
            session,
            endpoints: self.endpoints.clone(),
            trust: self.trust.clone(),
        }
    }
}

/// The region that the environment or the profile names.
fn region_of(environment: &Environment, files: &Files, profile: &str) -> Option<String> {
    let set = environment.get("AWS_REGION").or_else(|| environment.get("AWS_DEFAULT_REGION"));
    let own = || Some(files.profiles.get(profile)?.get("region")?.text.clone());
    set.map(str::to_owned).or_else(own)
}

/// One region, seen by one account. Clones share connections and credentials.
#[derive(Debug, Clone)]
pub struct Region {
    /// The region's name.
    pub name: String,
    /// The account's id.
    pub account: String,
    /// The ARN of the caller.
    pub arn: String,
    /// Images, snapshots, settings.
    pub ec2: aws_sdk_ec2::Client,
    /// Snapshots' blocks.
    pub ebs: aws_sdk_ebs::Client,
    /// Buckets.
    pub s3: aws_sdk_s3::Client,
    /// Parameters.
    pub ssm: aws_sdk_ssm::Client,
    /// The caller.
    pub sts: aws_sdk_sts::Client,
    session: Session,
    endpoints: Endpoints,
    trust: Trust,
}

impl Region {
    /// A call of `operation` here, for [`retry::call`].
    #[must_use]
    pub fn call(&self, service: &'static str, operation: &'static str) -> Call<'_> {
        Call::new(service, operation, &self.name)
    }

    /// How long work can go on before a person has to sign in again; `None`: for as long as it takes.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        self.session.remaining()
    }

    /// What requests are signed with that no client here makes.
    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    /// Whom requests believe that no client here makes.
    pub(super) fn trust(&self) -> &Trust {
        &self.trust
    }

    /// The address of a service, when it is not AWS's own.
    pub(super) fn endpoint(&self, service: &str) -> Option<String> {
        self.endpoints.of(service)
    }
}
