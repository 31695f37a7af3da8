//! Every way to credentials, through the program itself and the local AWS, whose STS takes each MFA code once.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::local::Local;
use crate::machine::KILN;

const SERIAL: &str = "arn:aws:iam::123456789012:mfa/me";
const BAKE: &str = "arn:aws:iam::123456789012:role/Bake";
const SECRET: &str = "hush-base-secret-key";
const KEYS: &str =
    "[base]\naws_access_key_id = AKIAKILNTESTBASE0000\naws_secret_access_key = hush-base-secret-key\n";

/// A home folder, and an AWS.
pub struct Desk {
    pub local: Local,
    home: tempfile::TempDir,
}

impl Desk {
    /// With `~/.aws/config`; `~/.aws/credentials` has the profile `base`.
    pub fn new(config: &str) -> Desk {
        let desk = Desk { local: Local::start(), home: tempfile::tempdir().unwrap() };
        desk.write(".aws/config", config);
        desk.write(".aws/credentials", KEYS);
        let key = json!({ "access_key": "AKIAKILNTESTBASE0000", "secret": SECRET, "account": "123456789012", "user": "me" });
        desk.local.post("keys", &key);
        desk
    }

    /// One whose profile `work` is a role that takes an MFA code.
    pub fn with_mfa() -> Desk {
        let desk = Desk::new(&format!(
            "[profile work]\nrole_arn = {BAKE}\nsource_profile = base\nmfa_serial = {SERIAL}\n"
        ));
        desk.local.post(
            "mfa",
            &json!({ "serial": SERIAL, "secret": "JBSWY3DPEHPK3PXP", "account": "123456789012" }),
        );
        desk.local.post("roles", &json!({ "arn": BAKE, "mfa": true }));
        desk
    }

    pub fn write(&self, path: &str, text: &str) {
        let path = self.home.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// The device's code of now. Each call moves AWS's clock on to the next one.
    pub fn code(&self, step: i64) -> String {
        self.local.settings(&json!({ "clock_offset": 30 * step }));
        let url = format!("{}/_kiln/mfa?serial={SERIAL}", self.local.url());
        let mut answer = ureq::get(url).call().unwrap();
        let value: Value = serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap();
        value["code"].as_str().unwrap().to_owned()
    }

    /// `program` at this desk, in an environment of its own.
    fn at_home(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", self.home.path());
        command.env("AWS_ENDPOINT_URL", self.local.url()).env("AWS_EC2_METADATA_DISABLED", "true");
        command.stdin(Stdio::null());
        command
    }

    /// Who Kiln is, without a terminal.
    pub fn kiln(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Answer {
        let mut command = self.at_home("setsid");
        command.args(["--wait", KILN, "internal", "aws-identity"]).args(arguments);
        Answer(command.envs(variables.iter().copied()).output().unwrap())
    }

    /// Runs Python with botocore as the AWS CLI sets it up, with its cache; `code` is what it types when it is asked.
    fn botocore(&self, profile: &str, code: &str) -> Answer {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/aws-local");
        let mut command = self.at_home(script.to_str().unwrap());
        let cache = std::env::var_os("XDG_CACHE_HOME")
            .map_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"), PathBuf::from);
        command.args(["--python", "-c", BOTOCORE, profile, code]).env("XDG_CACHE_HOME", cache);
        command.env("AWS_DEFAULT_REGION", "eu-central-1");
        Answer(command.output().unwrap())
    }

    /// The parameters of each call of an operation.
    pub fn calls(&self, operation: &str) -> Vec<Value> {
        let url = format!("{}/_kiln/log?operation={operation}", self.local.url());
        let lines = ureq::get(url).call().unwrap().body_mut().read_to_string().unwrap();
        lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["parameters"].take()).collect()
    }

    /// The files of the AWS CLI's cache.
    fn cached(&self) -> Vec<PathBuf> {
        let folder = std::fs::read_dir(self.home.path().join(".aws/cli/cache"));
        folder.into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
    }
}

const BOTOCORE: &str = "
import os, sys, botocore.session
from botocore.utils import JSONFileCache
profile, code = sys.argv[1:]
session = botocore.session.Session(profile=profile)
provider = session.get_component('credential_provider').get_provider('assume-role')
provider.cache = JSONFileCache(os.path.expanduser('~/.aws/cli/cache'))
provider._prompter = lambda text: code or sys.exit('asked for a code')
print(session.create_client('sts', 'eu-central-1').get_caller_identity()['Arn'])
";

/// What a program said.
pub struct Answer(Output);

impl Answer {
    fn text(&self) -> String {
        format!("{}{}", String::from_utf8_lossy(&self.0.stdout), String::from_utf8_lossy(&self.0.stderr))
    }

    /// The ARN that it worked as.
    #[track_caller]
    pub fn arn(&self) -> String {
        let text = String::from_utf8_lossy(&self.0.stdout).into_owned();
        assert!(self.0.status.success(), "{}", self.text());
        let value: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        value["arn"].as_str().unwrap().to_owned()
    }

    /// Seconds left, as it says.
    fn remaining(&self) -> Option<u64> {
        let value: Value = serde_json::from_slice(&self.0.stdout).unwrap();
        value["remaining"].as_u64()
    }

    /// What went wrong.
    #[track_caller]
    pub fn error(&self) -> String {
        assert!(!self.0.status.success(), "{}", self.text());
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }
}

/// A program on a terminal of its own, which somebody types on.
pub struct Typist {
    program: std::process::Child,
    pub said: String,
}

impl Typist {
    fn new(desk: &Desk, arguments: &str) -> Typist {
        Typist::running(desk, &format!("{KILN} internal aws-identity {arguments}"))
    }

    /// One in front of a shell's line.
    pub fn running(desk: &Desk, line: &str) -> Typist {
        // util-linux's script makes the pseudo-terminal, and makes it the program's controlling one.
        let mut command = desk.at_home("script");
        command.args(["--quiet", "--flush", "--return", "--echo", "never", "--command", line, "/dev/null"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Typist { program: command.spawn().unwrap(), said: String::new() }
    }

    /// Waits until the program asks, and types.
    pub fn types(&mut self, asked: &str, text: &str) {
        let mut byte = [0];
        let start = self.said.len();
        while !self.said[start..].contains(asked) {
            let read = self.program.stdout.as_mut().unwrap().read(&mut byte).unwrap();
            assert!(read == 1, "it never said {asked:?}, but {:?}", self.said);
            self.said.push(char::from(byte[0]));
        }
        self.program.stdin.as_mut().unwrap().write_all(format!("{text}\n").as_bytes()).unwrap();
    }

    /// All that it said, and whether it succeeded.
    pub fn ends(mut self) -> (String, bool) {
        let mut rest = Vec::new();
        self.program.stdout.as_mut().unwrap().read_to_end(&mut rest).unwrap();
        self.said.push_str(&String::from_utf8_lossy(&rest));
        (self.said, self.program.wait().unwrap().success())
    }
}

#[test]
fn roles_chain_over_profiles_and_regions_have_their_own() {
    let desk = Desk::new(
        "[profile low]\nrole_arn = arn:aws:iam::111111111111:role/Low\nsource_profile = base\n\
         [profile top]\nrole_arn = arn:aws:iam::222222222222:role/Top\nsource_profile = low\nexternal_id = e-1\n\
         role_session_name = me\nduration_seconds = 1800\n",
    );
    let role = json!({ "arn": "arn:aws:iam::222222222222:role/Top", "external_id": "e-1", "principals": ["arn:aws:iam::111111111111:role/Low"] });
    desk.local.post("roles", &role);
    let answer = desk.kiln(&["--profile", "top"], &[]);
    assert_eq!(answer.arn(), "arn:aws:sts::222222222222:assumed-role/Top/me");
    assert_eq!(answer.remaining(), None, "roles without MFA are renewed");
    let calls = desk.calls("AssumeRole");
    assert_eq!((calls.len(), &calls[1]["DurationSeconds"]), (2, &json!(1800)));
    assert_eq!(desk.cached().len(), 2);

    let arguments = [
        "--profile",
        "top",
        "--role",
        "arn:aws:iam::333333333333:role/Publish",
        "--region",
        "eu-west-1",
        "--region",
        "us-east-1",
    ];
    assert!(
        desk.kiln(&arguments, &[])
            .arn()
            .starts_with("arn:aws:sts::333333333333:assumed-role/Publish/kiln-session-")
    );
    // Both roles of the chain came out of the cache, and both regions share one session.
    assert_eq!(desk.calls("AssumeRole").len(), 3);

    let refused = desk.kiln(&["--profile", "wrong"], &[("AWS_CONFIG_FILE", "~/.aws/other")]).error();
    assert!(refused.contains("there is no profile `wrong` in"), "{refused}");
    desk.write(
        ".aws/other",
        "[profile no]\nrole_arn = arn:aws:iam::222222222222:role/Top\nsource_profile = base\n",
    );
    let refused = desk.kiln(&["--profile", "no"], &[("AWS_CONFIG_FILE", "~/.aws/other")]).error();
    for told in [
        "sts AssumeRole in us-east-1: AccessDenied",
        "(profile `no`, role arn:aws:iam::222222222222:role/Top)",
        "hint: the role's trust policy",
        "external_id",
    ] {
        assert!(refused.contains(told), "{refused}");
    }
}

#[test]
fn the_endpoint_reaches_the_chain_from_wherever_it_is_named() {
    let desk = Desk::new("");
    let role = "role_arn = arn:aws:iam::111111111111:role/Low\nsource_profile = base\n";
    let none = [("AWS_ENDPOINT_URL", "")];
    let url = desk.local.url();
    desk.write(".aws/config", &format!("[profile p]\n{role}endpoint_url = {url}\nregion = ap-south-1\n"));
    assert!(desk.kiln(&["--profile", "p"], &none).arn().contains("assumed-role/Low"));
    desk.write(
        ".aws/config",
        &format!("[profile p]\n{role}services = l\n[services l]\nsts =\n  endpoint_url = {url}\n"),
    );
    assert!(desk.kiln(&["--profile", "p"], &none).arn().contains("assumed-role/Low"));
    desk.write(".aws/config", &format!("[profile p]\n{role}"));
    assert!(
        desk.kiln(&["--profile", "p"], &[none[0], ("AWS_ENDPOINT_URL_STS", url)])
            .arn()
            .contains("assumed-role/Low")
    );
    for file in desk.cached() {
        std::fs::remove_file(file).unwrap();
    }
    // The AWS CLI knows nothing of --endpoint: its cache is not for what is made there.
    let given = desk.kiln(
        &["--profile", "p", "--endpoint", url],
        &[none[0], ("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:9")],
    );
    assert!(given.arn().contains("assumed-role/Low"));
    assert_eq!(desk.cached(), Vec::<PathBuf>::new());

    let start = Instant::now();
    let error = desk.kiln(&["--profile", "base", "--endpoint", "http://127.0.0.1:9"], &[]).error();
    assert!(error.contains("sts GetCallerIdentity") && error.contains("hint: is the network up"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(15));
}

#[test]
fn a_code_is_typed_once_for_all_regions_and_runs() {
    let desk = Desk::with_mfa();
    let mut typist = Typist::new(&desk, "--profile work --region eu-central-1 --region us-east-1");
    let asked = format!("MFA code for {SERIAL} (profile `work`): ");
    typist.types(&asked, "12ab");
    typist.types("an MFA code has 6 digits", "");
    let code = desk.code(0);
    let wrong = if code == "000000" { "000001" } else { "000000" };
    typist.types(&asked, wrong);
    typist.types("AWS did not take this code", "");
    typist.types(&asked, &code);
    let (said, success) = typist.ends();
    assert!(success && said.matches("assumed-role/Bake").count() == 2, "{said}");
    assert_eq!(desk.calls("AssumeRole").len(), 2, "the wrong code and the right one");
    // The next run asks nobody: there is nobody.
    let again = desk.kiln(&["--profile", "work"], &[]);
    assert!(again.arn().contains("assumed-role/Bake"));
    let left = again.remaining().unwrap();
    assert!((3000..=3600).contains(&left), "{left}");
    assert_eq!(desk.calls("AssumeRole").len(), 2);
}

#[test]
fn three_wrong_codes_are_enough() {
    let desk = Desk::with_mfa();
    let mut typist = Typist::new(&desk, "--profile work");
    let used = desk.code(0);
    assert!(desk.kiln(&["--profile", "work", "--mfa-code", &used], &[]).0.status.success());
    // That code was taken, and two are made up.
    for code in [used.as_str(), "000000", "000001"] {
        typist.types("(profile `work`): ", code);
    }
    let (said, success) = typist.ends();
    assert!(
        !success && said.contains("MultiFactorAuthentication failed with invalid MFA one time pass code"),
        "{said}"
    );
    assert!(
        said.contains("hint: codes change every 30 seconds")
            && said.contains("role arn:aws:iam::123456789012:role/Bake"),
        "{said}"
    );
}

#[test]
fn without_a_terminal_codes_come_otherwise_or_it_fails_at_once() {
    let desk = Desk::with_mfa();
    let start = Instant::now();
    let error = desk.kiln(&["--profile", "work"], &[]).error();
    assert!(error.contains(&format!("profile `work` asks for a code of the MFA device {SERIAL}")), "{error}");
    assert!(
        error.contains("no terminal") && error.contains("--mfa-code") && error.contains("KILN_MFA_COMMAND"),
        "{error}"
    );
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(desk.calls("AssumeRole").len(), 0);

    type WithCode<'a> = &'a dyn Fn(&str) -> Answer;
    let ways: [(i64, WithCode<'_>); 3] = [
        (0, &|code| desk.kiln(&["--profile", "work", "--mfa-code", code], &[])),
        (1, &|code| desk.kiln(&["--profile", "work"], &[("KILN_MFA_CODE", code)])),
        (2, &|code| {
            desk.kiln(
                &["--profile", "work"],
                &[("KILN_MFA_COMMAND", &format!("echo \"$KILN_MFA_SERIAL\" {code}"))],
            )
        }),
    ];
    for (step, way) in ways {
        let code = desk.code(step);
        assert!(way(&code).arn().contains("assumed-role/Bake"));
        desk.cached().iter().for_each(|file| std::fs::remove_file(file).unwrap());
        let error = way(&code).error();
        assert!(
            error.contains("invalid MFA one time pass code") && error.contains("hint: codes change"),
            "{error}"
        );
        assert!(!error.contains(&code), "{error}");
    }
    let error = desk.kiln(&["--profile", "work"], &[("KILN_MFA_COMMAND", "exit 3")]).error();
    assert!(error.contains("KILN_MFA_COMMAND: `sh` failed (exit status: 3)"), "{error}");
}

#[test]
fn the_aws_clis_cache_is_shared_both_ways() {
    let desk = Desk::with_mfa();
    assert!(desk.kiln(&["--profile", "work", "--mfa-code", &desk.code(0)], &[]).0.status.success());
    let theirs = desk.botocore("work", "");
    assert!(theirs.text().contains("assumed-role/Bake/kiln-session-"), "{}", theirs.text());
    desk.cached().iter().for_each(|file| std::fs::remove_file(file).unwrap());
    assert!(desk.botocore("work", "").error().contains("asked for a code"));
    let theirs = desk.botocore("work", &desk.code(1));
    assert!(theirs.text().contains("assumed-role/Bake/botocore-session-"), "{}", theirs.text());
    assert!(desk.kiln(&["--profile", "work"], &[]).arn().contains("assumed-role/Bake/botocore-session-"));
    assert_eq!(desk.cached().len(), 1, "one name for one role");
}

#[test]
fn a_session_that_has_ended_or_soon_will_is_made_anew() {
    let desk = Desk::with_mfa();
    desk.local.post("roles", &json!({ "arn": BAKE, "mfa": true, "session_seconds": 880 }));
    assert!(desk.kiln(&["--profile", "work", "--mfa-code", &desk.code(0)], &[]).0.status.success());
    // Less than a quarter of an hour left is as good as nothing.
    assert!(desk.kiln(&["--profile", "work"], &[]).error().contains("no terminal"));
    desk.local.post("roles", &json!({ "arn": BAKE, "mfa": true, "session_seconds": 1200 }));
    assert!(desk.kiln(&["--profile", "work", "--mfa-code", &desk.code(1)], &[]).0.status.success());
    let short = desk.kiln(&["--profile", "work", "--least", "3600"], &[]);
    assert!(short.remaining().unwrap() <= 1260, "told, so that the work need not begin");
    // AWS may end it early.
    desk.local.post("expire", &json!({}));
    let ended = desk.kiln(&["--profile", "work"], &[]).error();
    assert!(ended.contains("ExpiredToken") && ended.contains("hint: sign in again"), "{ended}");
}

#[test]
fn a_program_hands_out_credentials() {
    let desk = Desk::new("[profile p]\ncredential_process = \"/bin/sh\" -c 'cat \"$HOME/answer.json\"'\n");
    desk.write(
        "answer.json",
        &json!({ "Version": 1, "AccessKeyId": "AKIAKILNTESTBASE0000", "SecretAccessKey": SECRET })
            .to_string(),
    );
    assert_eq!(desk.kiln(&["--profile", "p"], &[]).arn(), "arn:aws:iam::123456789012:user/me");
    desk.write("answer.json", "{}");
    let error = desk.kiln(&["--profile", "p"], &[]).error();
    assert!(error.contains("credential_process of profile `p`: `/bin/sh` printed Version null"), "{error}");
}

#[test]
fn a_web_identity_is_traded_for_a_session() {
    let desk = Desk::new(
        "[profile p]\nrole_arn = arn:aws:iam::123456789012:role/Ci\nweb_identity_token_file = ~/token\nrole_session_name = ci\n",
    );
    desk.write("token", "header.payload.signature\n");
    assert_eq!(desk.kiln(&["--profile", "p"], &[]).arn(), "arn:aws:sts::123456789012:assumed-role/Ci/ci");
    let token = desk.home.path().join("token");
    let variables = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap()),
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/Env"),
        ("AWS_ROLE_SESSION_NAME", "env"),
    ];
    assert_eq!(desk.kiln(&[], &variables).arn(), "arn:aws:sts::123456789012:assumed-role/Env/env");
    desk.write("token", "expired");
    let error = desk.kiln(&["--profile", "p"], &[]).error();
    assert!(error.contains("sts AssumeRoleWithWebIdentity in us-east-1: ExpiredTokenException"), "{error}");
    std::fs::remove_file(token).unwrap();
    assert!(desk.kiln(&["--profile", "p"], &[]).error().contains("can't read the web identity's token"));
}

#[test]
fn a_sign_in_of_identity_center_is_used_and_prolonged() {
    let desk = Desk::new(
        "[profile s]\nsso_session = corp\nsso_account_id = 444444444444\nsso_role_name = Baker\n\
         [sso-session corp]\nsso_start_url = https://corp.example/start\nsso_region = eu-west-1\n\
         [profile old]\nsso_start_url = https://corp.example/start\nsso_region = eu-west-1\nsso_account_id = 444444444444\nsso_role_name = Baker\n",
    );
    let error = desk.kiln(&["--profile", "s"], &[]).error();
    assert!(error.contains("nobody is signed in at https://corp.example/start"), "{error}");
    assert!(error.contains("hint: `aws sso login --profile s` signs in"), "{error}");
    let names = [sha1("corp"), sha1("https://corp.example/start")];
    let token = |ends: &str| {
        json!({
            "startUrl": "https://corp.example/start", "region": "eu-west-1", "accessToken": "kiln-sso-token", "expiresAt": ends,
            "clientId": "c", "clientSecret": "cs", "registrationExpiresAt": "2100-01-01T00:00:00Z",
        })
    };
    for (name, profile) in names.iter().zip(["s", "old"]) {
        let file = format!(".aws/sso/cache/{name}.json");
        desk.write(&file, &token("2100-01-01T00:00:00Z").to_string());
        let arn = desk.kiln(&["--profile", profile], &[]).arn();
        assert!(arn.starts_with("arn:aws:sts::444444444444:assumed-role/AWSReservedSSO_Baker_"), "{arn}");
        desk.write(&file, &token("2020-01-01T00:00:00Z").to_string());
        let error = desk.kiln(&["--profile", profile], &[]).error();
        assert!(
            error.contains("has ended") && error.contains(&format!("aws sso login --profile {profile}`")),
            "{error}"
        );
    }
    // A session of the newer form is prolonged with its refresh token.
    let mut ended = token("2020-01-01T00:00:00Z");
    ended["refreshToken"] = json!("kiln-refresh-token");
    desk.write(&format!(".aws/sso/cache/{}.json", names[0]), &ended.to_string());
    assert!(desk.kiln(&["--profile", "s"], &[]).arn().contains("AWSReservedSSO_Baker_"));
}

pub fn sha1(text: &str) -> String {
    let output = Command::new("sh").args(["-c", "printf %s \"$1\" | sha1sum", "sh", text]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..40].to_owned()
}

#[test]
fn machines_and_containers_have_credentials() {
    let desk = Desk::new(
        "[profile role]\nrole_arn = arn:aws:iam::123456789012:role/On\ncredential_source = Ec2InstanceMetadata\n",
    );
    let metadata =
        [("AWS_EC2_METADATA_DISABLED", "false"), ("AWS_EC2_METADATA_SERVICE_ENDPOINT", desk.local.url())];
    assert!(desk.kiln(&[], &metadata).arn().contains("assumed-role/kiln-machine/i-"));
    assert!(desk.kiln(&["--profile", "role"], &metadata).arn().contains("assumed-role/On/"));
    let container = format!("{}/container-credentials", desk.local.url());
    assert!(
        desk.kiln(&[], &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &container)]).arn().contains("kiln-machine")
    );
    // Nobody there: told within seconds.
    let start = Instant::now();
    let nobody =
        [("AWS_EC2_METADATA_DISABLED", "false"), ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")];
    let error = desk.kiln(&[], &nobody).error();
    assert!(error.contains("EC2's metadata service"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(desk.kiln(&[], &[]).error().contains("no credentials: neither AWS_ACCESS_KEY_ID"));
}

#[test]
fn nothing_that_is_printed_shows_a_secret() {
    let desk = Desk::with_mfa();
    let code = desk.code(0);
    let answer = desk.kiln(&["--profile", "work", "--mfa-code", &code, "-vv"], &[]);
    assert!(answer.0.status.success(), "{}", answer.text());
    let file = std::fs::read(&desk.cached()[0]).unwrap();
    let kept: Value = serde_json::from_slice(&file).unwrap();
    let secrets = ["SecretAccessKey", "SessionToken"]
        .map(|name| kept["Credentials"][name].as_str().unwrap().to_owned());
    for secret in secrets.iter().map(String::as_str).chain([SECRET, code.as_str()]) {
        assert!(secret.len() >= 6 && !answer.text().contains(secret), "{}", answer.text());
    }
}
