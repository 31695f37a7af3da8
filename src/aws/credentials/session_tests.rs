//! Sessions against an STS of a few lines, which hands out numbered keys and takes each code once.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex as Lock;

use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::DateTime;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::date_time::Format;

use super::super::way::Keys;
use super::*;
use crate::aws::endpoint::Endpoints;

/// What one request said: its parameters, and as `signer` whose key signed it.
type Request = BTreeMap<String, String>;

#[derive(Debug, Default)]
struct State {
    requests: Vec<Request>,
    codes: Vec<&'static str>,
    /// Seconds that sessions last.
    lasts: u64,
}

#[derive(Debug, Clone, Default)]
struct FakeSts(Arc<Lock<State>>);

impl FakeSts {
    fn new(lasts: u64, codes: &[&'static str]) -> FakeSts {
        FakeSts(Arc::new(Lock::new(State { requests: Vec::new(), codes: codes.to_vec(), lasts })))
    }

    fn requests(&self) -> Vec<Request> {
        self.0.lock().unwrap().requests.clone()
    }

    fn answer(&self, request: &HttpRequest) -> (u16, String) {
        let mut state = self.0.lock().unwrap();
        let body = String::from_utf8(request.body().bytes().unwrap().to_vec()).unwrap();
        let mut said: Request = body
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.replace("%3A", ":").replace("%2F", "/")))
            .collect();
        let signer = request.headers().get("authorization").unwrap_or_default();
        let signer = signer.split("Credential=").nth(1).and_then(|s| s.split('/').next()).unwrap_or("nobody");
        said.insert("signer".to_owned(), signer.to_owned());
        state.requests.push(said.clone());
        if said.contains_key("SerialNumber") {
            let known =
                state.codes.iter().position(|code| Some(*code) == said.get("TokenCode").map(String::as_str));
            match known {
                Some(known) => drop(state.codes.remove(known)),
                None => {
                    let said = "MultiFactorAuthentication failed with invalid MFA one time pass code.";
                    return (
                        403,
                        format!(
                            "<ErrorResponse><Error><Code>AccessDenied</Code><Message>{said}</Message></Error></ErrorResponse>"
                        ),
                    );
                }
            }
        }
        let ends = DateTime::from(SystemTime::now() + Duration::from_secs(state.lasts));
        let (ends, number) = (ends.fmt(Format::DateTime).unwrap(), state.requests.len());
        let role = &said["RoleArn"];
        (
            200,
            format!(
                "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult><Credentials>\
             <AccessKeyId>S{number}</AccessKeyId><SecretAccessKey>hush</SecretAccessKey><SessionToken>hush-token</SessionToken>\
             <Expiration>{ends}</Expiration></Credentials><AssumedRoleUser><AssumedRoleId>AROA:x</AssumedRoleId>\
             <Arn>{role}</Arn></AssumedRoleUser></AssumeRoleResult></AssumeRoleResponse>"
            ),
        )
    }
}

impl HttpConnector for FakeSts {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (status, body) = self.answer(&request);
        let status = StatusCode::try_from(status).unwrap();
        HttpConnectorFuture::ready(Ok(HttpResponse::new(status, SdkBody::from(body))))
    }
}

fn hop(role: &str) -> Hop {
    Hop {
        profile: "work".to_owned(),
        role: format!("arn:aws:iam::1:role/{role}"),
        external_id: None,
        session_name: None,
        duration: None,
        mfa_serial: None,
    }
}

fn mfa_hop(role: &str) -> Hop {
    Hop { mfa_serial: Some("arn:aws:iam::1:mfa/me".to_owned()), ..hop(role) }
}

/// What a session is opened with.
struct Case {
    sts: FakeSts,
    hops: Vec<Hop>,
    mfa: Mfa,
    least: u64,
}

impl Case {
    fn new(sts: &FakeSts, hops: &[Hop]) -> Case {
        Case { sts: sts.clone(), hops: hops.to_vec(), mfa: Mfa::default(), least: 900 }
    }

    fn open(self, home: &Path) -> Result<Session, AwsError> {
        let environment = Environment::new(home, &[]);
        let keys = Keys { id: "BASE".to_owned(), secret: Secret::new("hush"), token: None, expiration: None };
        let connector = SharedHttpConnector::new(self.sts);
        let opening = Opening {
            way: Way { profile: "work".to_owned(), base: Base::Keys(keys), hops: self.hops },
            sts: Sts {
                http: http_client_fn(move |_, _| connector.clone()),
                endpoints: Endpoints::default(),
                region: "eu-central-1".to_owned(),
            },
            cache: Some(Cache::new(environment.in_home(".aws/cli/cache"))),
            mfa: self.mfa,
            environment,
            least: Duration::from_secs(self.least),
        };
        run(Session::open(opening))
    }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(work)
}

fn key(session: &Session) -> String {
    run(session.credentials()).unwrap().access_key_id().to_owned()
}

fn home() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn roles_are_assumed_one_from_the_other_with_what_the_profiles_say() {
    let (home, sts) = (home(), FakeSts::new(3600, &[]));
    let last = Hop {
        external_id: Some("ext".to_owned()),
        session_name: Some("me".to_owned()),
        duration: Some(1800),
        ..hop("Two")
    };
    let session = Case::new(&sts, &[hop("One"), last]).open(home.path()).unwrap();
    assert_eq!((key(&session), session.remaining()), ("S2".to_owned(), None));
    let requests = sts.requests();
    assert_eq!((requests[0]["signer"].as_str(), requests[1]["signer"].as_str()), ("BASE", "S1"));
    assert!(requests[0]["RoleSessionName"].starts_with("kiln-session-"));
    for (name, value) in [("ExternalId", "ext"), ("RoleSessionName", "me"), ("DurationSeconds", "1800")] {
        assert_eq!(requests[1][name], value);
    }
}

#[test]
fn one_code_makes_one_session_that_everybody_shares() {
    let (home, sts) = (home(), FakeSts::new(3600, &["111111"]));
    let case = Case { mfa: Mfa::of_script(Some("111111"), &[]), ..Case::new(&sts, &[mfa_hop("Bake")]) };
    let session = case.open(home.path()).unwrap();
    for _ in 0..3 {
        assert_eq!(key(&session), "S1");
    }
    let left = session.remaining().unwrap().as_secs();
    assert!((3500..=3600).contains(&left), "{left}");
    assert_eq!(sts.requests()[0]["TokenCode"], "111111");
    // The next run finds it in the cache and asks nobody.
    let again = Case::new(&sts, &[mfa_hop("Bake")]).open(home.path()).unwrap();
    assert_eq!((key(&again), sts.requests().len()), ("S1".to_owned(), 1));
}

#[test]
fn a_wrong_code_may_be_typed_again_but_not_for_ever() {
    let (first, sts) = (home(), FakeSts::new(3600, &["333333"]));
    let typed = Mfa::of_script(None, &["111111", "222222", "333333"]);
    let case = Case { mfa: typed, ..Case::new(&sts, &[mfa_hop("Bake")]) };
    assert_eq!(key(&case.open(first.path()).unwrap()), "S3");

    let (second, sts) = (home(), FakeSts::new(3600, &[]));
    let typed = Mfa::of_script(None, &["111111", "222222", "333333", "444444"]);
    let case = Case { mfa: typed, ..Case::new(&sts, &[mfa_hop("Bake")]) };
    let error = case.open(second.path()).unwrap_err();
    assert_eq!((error.kind, sts.requests().len()), (Kind::Mfa, 3));
    assert!(error.to_string().contains("invalid MFA one time pass code"), "{error}");
    assert!(error.hint().unwrap().contains("wait for the next one"));

    let (third, sts) = (home(), FakeSts::new(3600, &[]));
    let case = Case { mfa: Mfa::of_script(Some("111111"), &[]), ..Case::new(&sts, &[mfa_hop("Bake")]) };
    assert_eq!((case.open(third.path()).unwrap_err().kind, sts.requests().len()), (Kind::Mfa, 1));
}

#[test]
fn nobody_is_asked_after_the_beginning() {
    // A session of four minutes is renewed at every use, but for a code nobody is there.
    let (home, sts) = (home(), FakeSts::new(240, &["111111"]));
    let case =
        Case { mfa: Mfa::of_script(None, &["111111", "222222"]), ..Case::new(&sts, &[mfa_hop("Bake")]) };
    let session = case.open(home.path()).unwrap();
    assert_eq!((key(&session), sts.requests().len()), ("S1".to_owned(), 1));

    let (other, sts) = (self::home(), FakeSts::new(0, &["111111"]));
    let case =
        Case { mfa: Mfa::of_script(None, &["111111", "222222"]), ..Case::new(&sts, &[mfa_hop("Bake")]) };
    let session = case.open(other.path()).unwrap();
    let error = run(session.credentials()).unwrap_err();
    assert_eq!((error.kind, sts.requests().len()), (Kind::Expired, 1));
    assert_eq!(session.remaining(), Some(Duration::ZERO));
}

#[test]
fn sessions_without_a_code_are_renewed() {
    let (home, sts) = (home(), FakeSts::new(240, &[]));
    let session = Case::new(&sts, &[hop("Bake")]).open(home.path()).unwrap();
    assert_eq!((key(&session), session.remaining()), ("S2".to_owned(), None));
    assert_eq!(key(&session), "S3");
}

#[test]
fn a_kept_session_that_ends_too_early_is_replaced_if_that_can_be() {
    let (home, sts) = (home(), FakeSts::new(1200, &["111111", "222222"]));
    let open = |mfa| Case { mfa, least: 3600, ..Case::new(&sts, &[mfa_hop("Bake")]) }.open(home.path());
    assert_eq!(key(&open(Mfa::of_script(Some("111111"), &[])).unwrap()), "S1");
    assert_eq!(key(&open(Mfa::of_script(Some("222222"), &[])).unwrap()), "S2");
    let short = open(Mfa::default()).unwrap();
    assert_eq!(key(&short), "S2");
    assert!(short.remaining().unwrap() <= Duration::from_secs(1200));
}

#[test]
fn an_ended_session_of_the_cache_is_none() {
    let (home, sts) = (home(), FakeSts::new(890, &["111111", "222222"]));
    let open = |code| {
        Case { mfa: Mfa::of_script(Some(code), &[]), ..Case::new(&sts, &[mfa_hop("Bake")]) }.open(home.path())
    };
    assert_eq!(key(&open("111111").unwrap()), "S1");
    assert_eq!(key(&open("222222").unwrap()), "S2");
}

#[test]
fn a_regions_role_comes_on_top_and_lasts_with_it() {
    let (home, sts) = (home(), FakeSts::new(3600, &["111111"]));
    let case = Case { mfa: Mfa::of_script(Some("111111"), &[]), ..Case::new(&sts, &[mfa_hop("Bake")]) };
    let session = case.open(home.path()).unwrap();
    let role = Role {
        arn: "arn:aws:iam::2:role/R".to_owned(),
        external_id: None,
        session_name: None,
        duration: Some(900),
    };
    let region = run(session.assume(&role)).unwrap();
    assert_eq!((key(&region), sts.requests()[1]["signer"].as_str()), ("S2".to_owned(), "S1"));
    assert!(region.remaining().is_some());
}

#[test]
fn nothing_shows_a_secret() {
    let (home, sts) = (home(), FakeSts::new(3600, &["111111"]));
    let case = Case { mfa: Mfa::of_script(Some("111111"), &[]), ..Case::new(&sts, &[mfa_hop("Bake")]) };
    let session = case.open(home.path()).unwrap();
    let shown =
        format!("{session:?} {:?} {:?}", run(session.credentials()), Mfa::of_script(Some("111111"), &[]));
    assert!(!shown.contains("hush") && !shown.contains("111111"), "{shown}");
}
