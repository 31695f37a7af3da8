//! Which way the credentials come, for many homes and environments.

use super::*;

/// The way from a home with these two files, an environment and `--profile`, in one line.
fn way(
    config: &str,
    credentials: &str,
    variables: &[(&str, &str)],
    profile: Option<&str>,
) -> Result<Way, String> {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join(".aws");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("config"), config).unwrap();
    std::fs::write(folder.join("credentials"), credentials).unwrap();
    let environment = Environment::new(home.path(), variables);
    let files = Files::read(&environment).unwrap();
    let way = Way::find(&environment, &files, profile);
    way.map_err(|error| error.to_string().replace(&*folder.to_string_lossy(), "~/.aws"))
}

/// In short: the base, then the roles.
fn short(way: Result<Way, String>) -> String {
    let way = match way {
        Ok(way) => way,
        Err(error) => return format!("error: {error}"),
    };
    let base = match way.base {
        Base::Keys(keys) => format!("keys {}", keys.id),
        Base::Process { command, .. } => format!("process {command}"),
        Base::WebIdentity { role, token, .. } => format!("web {role} {}", token.display()),
        Base::Sso(sso) => format!("sso {} {} {}", sso.start_url, sso.account, sso.role),
        Base::Container => "container".to_owned(),
        Base::Instance => "instance".to_owned(),
    };
    let hops = way.hops.into_iter().map(|hop| format!(" > {}", hop.role));
    hops.fold(base, |text, hop| text + &hop)
}

const ENV: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "ENV"), ("AWS_SECRET_ACCESS_KEY", "hush")];
const KEYS: &str = "[default]\naws_access_key_id=DEF\naws_secret_access_key=hush\n[b]\naws_access_key_id=B\naws_secret_access_key=hush\n";

#[test]
fn the_environment_goes_first_unless_a_profile_is_named_on_the_command_line() {
    let with_profile = [ENV[0], ENV[1], ("AWS_PROFILE", "b")];
    assert_eq!(short(way("", KEYS, &[], None)), "keys DEF");
    assert_eq!(short(way("", KEYS, &[("AWS_PROFILE", "b")], None)), "keys B");
    assert_eq!(short(way("", KEYS, &ENV, None)), "keys ENV");
    assert_eq!(short(way("", KEYS, &with_profile, None)), "keys ENV");
    assert_eq!(short(way("", KEYS, &with_profile, Some("default"))), "keys DEF");
    assert_eq!(
        short(way("", KEYS, &ENV[..1], None)),
        "error: AWS_ACCESS_KEY_ID is set, AWS_SECRET_ACCESS_KEY is not"
    );
}

#[test]
fn a_profile_has_one_of_many_things() {
    for (config, expected) in [
        (
            "[default]\naws_access_key_id=A\naws_secret_access_key=s\ncredential_process=p --x\n",
            "process p --x",
        ),
        ("[default]\nrole_arn=R\nweb_identity_token_file=/t\ncredential_process=p\n", "web R /t"),
        (
            "[default]\nsso_session=c\nsso_account_id=1\nsso_role_name=dev\n[sso-session c]\nsso_start_url=https://c\nsso_region=r\n",
            "sso https://c 1 dev",
        ),
        (
            "[default]\nsso_start_url=https://d\nsso_region=r\nsso_account_id=1\nsso_role_name=dev\n",
            "sso https://d 1 dev",
        ),
        ("[default]\nregion=eu-central-1\n", "instance"),
        ("", "instance"),
    ] {
        assert_eq!(short(way(config, "", &[], None)), expected, "{config}");
    }
    let both = short(way("[default]\ncredential_process=p\n", KEYS, &[], None));
    assert_eq!(both, "keys DEF", "keys of the credentials file go before a process");
}

#[test]
fn the_host_comes_last() {
    let container = ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/x");
    let disabled = ("AWS_EC2_METADATA_DISABLED", "TRUE");
    assert_eq!(short(way("", "", &[container, disabled], None)), "container");
    let none = short(way("", "", &[disabled], None));
    assert!(none.starts_with("error: no credentials: neither AWS_ACCESS_KEY_ID"), "{none}");
    let web = [("AWS_WEB_IDENTITY_TOKEN_FILE", "/t"), ("AWS_ROLE_ARN", "R")];
    assert_eq!(short(way("", KEYS, &web, None)), "web R /t");
    assert_eq!(short(way("", KEYS, &web, Some("b"))), "keys B");
    let half = short(way("", "", &web[..1], None));
    assert!(half.contains("no role_arn or AWS_ROLE_ARN"), "{half}");
}

#[test]
fn roles_chain_down_to_their_base() {
    let config = "[profile top]\nrole_arn=R3\nsource_profile=mid\nexternal_id=x\nduration_seconds=1800\n\
                  [profile mid]\nrole_arn=R2\nsource_profile=low\nmfa_serial=M\nrole_session_name=me\n\
                  [profile low]\nrole_arn=R1\nsource_profile=b\n\
                  [profile self]\nrole_arn=RS\nsource_profile=self\naws_access_key_id=S\naws_secret_access_key=s\n\
                  [profile web]\nrole_arn=RW\nsource_profile=w\n[profile w]\nrole_arn=W\nweb_identity_token_file=/t\n\
                  [profile env]\nrole_arn=RE\ncredential_source=Environment\n\
                  [profile ec2]\nrole_arn=RI\ncredential_source=Ec2InstanceMetadata\n\
                  [profile ecs]\nrole_arn=RC\ncredential_source=EcsContainer\n\
                  [profile proc]\nrole_arn=RP\nsource_profile=p\n[profile p]\ncredential_process=x\n";
    let of = |profile| way(config, KEYS, &ENV, Some(profile));
    assert_eq!(short(of("top")), "keys B > R1 > R2 > R3");
    let hops = of("top").unwrap().hops;
    assert_eq!((hops[2].external_id.as_deref(), hops[2].duration), (Some("x"), Some(1800)));
    assert_eq!((hops[1].mfa_serial.as_deref(), hops[1].session_name.as_deref()), (Some("M"), Some("me")));
    assert!(of("top").unwrap().has_mfa() && !of("low").unwrap().has_mfa());
    assert_eq!(short(of("self")), "keys S > RS");
    assert_eq!(short(of("web")), "web W /t > RW");
    assert_eq!(short(of("env")), "keys ENV > RE");
    assert_eq!(short(of("ec2")), "instance > RI");
    assert_eq!(short(of("ecs")), "container > RC");
    assert_eq!(short(of("proc")), "process x > RP");
}

#[test]
fn what_is_wrong_with_a_profile_is_told_with_its_file() {
    let config = "[profile loop1]\nrole_arn=R\nsource_profile=loop2\n[profile loop2]\nrole_arn=R\nsource_profile=loop1\n\
                  [profile self]\nrole_arn=R\nsource_profile=self\n\
                  [profile gone]\nrole_arn=R\nsource_profile=nowhere\n\
                  [profile two]\nrole_arn=R\nsource_profile=b\ncredential_source=Environment\n\
                  [profile none]\nrole_arn=R\n\
                  [profile odd]\nrole_arn=R\ncredential_source=Moon\n\
                  [profile noenv]\nrole_arn=R\ncredential_source=Environment\n\
                  [profile empty]\nrole_arn=R\nsource_profile=bare\n[profile bare]\nregion=x\n\
                  [profile half]\naws_access_key_id=H\n\
                  [profile long]\nrole_arn=R\nsource_profile=b\nduration_seconds=10h\n\
                  [profile sso]\nsso_session=c\nsso_account_id=1\nsso_role_name=dev\n";
    for (profile, told) in [
        ("loop1", "profile `loop2` in ~/.aws/config: profiles go round in circles: loop1 → loop2 → loop1"),
        ("self", "profile `self` in ~/.aws/config: profiles go round in circles: self → self"),
        ("gone", "profile `gone` in ~/.aws/config: its source_profile `nowhere` is in neither file"),
        ("two", "profile `two` in ~/.aws/config: has source_profile and credential_source: one of them goes"),
        (
            "none",
            "profile `none` in ~/.aws/config: has a role_arn, but neither source_profile nor credential_source",
        ),
        (
            "odd",
            "profile `odd` in ~/.aws/config: credential_source is `Moon`: Environment, Ec2InstanceMetadata and EcsContainer are known",
        ),
        (
            "noenv",
            "profile `noenv` in ~/.aws/config: credential_source is Environment, and AWS_ACCESS_KEY_ID is not set",
        ),
        (
            "empty",
            "profile `bare` in ~/.aws/config: has no credentials, and is the source_profile of `empty`",
        ),
        ("half", "profile `half` in ~/.aws/config: aws_secret_access_key is missing"),
        (
            "long",
            "profile `long` in ~/.aws/config: duration_seconds is `10h`: a number from 900 to 43200 is meant",
        ),
        ("sso", "profile `sso` in ~/.aws/config: there is no [sso-session c] in ~/.aws/config"),
        ("nobody", "there is no profile `nobody` in ~/.aws/config or ~/.aws/credentials: b, bare, default,"),
    ] {
        let error = way(config, KEYS, &[], Some(profile)).unwrap_err();
        assert!(error.starts_with(told), "{profile}: {error}");
        assert!(!error.contains("hush"));
    }
    let error = way("", "", &[("AWS_PROFILE", "x")], None).unwrap_err();
    assert!(error.contains("there is no profile `x`") && error.ends_with("there are none"), "{error}");
}

#[test]
fn a_way_shows_no_secret() {
    let shown = format!("{:?}", way("", KEYS, &[], None));
    assert!(shown.contains("DEF") && !shown.contains("hush"), "{shown}");
}
