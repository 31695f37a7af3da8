use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::super::ec2::PublicKey;
use super::http::{Head, parse};
use super::*;
use crate::date::Timestamp;

const NOW: u64 = 1_000_000;

/// An instance with all that can be given, and without anything made up.
fn instance() -> Instance {
    let mut instance = Instance::new("test");
    let text = |text: &str| text.to_owned();
    instance.instance_id = text("i-00000000000000001");
    instance.image_id = text("ami-00000000000000002");
    instance.owner_id = text("123456789012");
    instance.mac = text("02:00:00:00:00:15");
    instance.private_ip = Ipv4Addr::new(172, 31, 16, 15);
    instance.public_key = Some(PublicKey { name: text("kiln"), openssh: text("ssh-ed25519 AAAA kiln\n") });
    instance.user_data = Some(b"#cloud-config\n\xff".to_vec());
    instance.tags.insert(text("Name"), text("golden"));
    instance
}

fn request(method: &str, target: &str, headers: &[(&str, &str)]) -> Request {
    let owned = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
    Request {
        method: method.to_owned(),
        target: target.to_owned(),
        headers: headers.iter().map(owned).collect(),
    }
}

fn tokens() -> Tokens {
    Tokens::new("test")
}

/// Status and body of a GET with a good token.
fn get_of(instance: &Instance, target: &str) -> (u16, String) {
    let token = tokens().issue(NOW + 60);
    let response = answer(instance, &tokens(), NOW, &request("GET", target, &[(TOKEN, &token)]));
    (response.status, String::from_utf8_lossy(&response.body).into_owned())
}

fn get(target: &str) -> (u16, String) {
    get_of(&instance(), target)
}

#[test]
fn every_folder_and_value() {
    for (path, body) in [
        ("/latest/", "dynamic\nmeta-data\nuser-data"),
        (
            "/latest/meta-data/",
            "ami-id\nami-launch-index\nami-manifest-path\nblock-device-mapping/\nevents/\nhibernation/\nhostname\n\
             identity-credentials/\ninstance-action\ninstance-id\ninstance-life-cycle\ninstance-type\n\
             local-hostname\nlocal-ipv4\nmac\nmetrics/\nnetwork/\nplacement/\nprofile\npublic-keys/\n\
             reservation-id\nsecurity-groups\nservices/\nsystem\ntags/",
        ),
        ("/latest/meta-data/ami-id", "ami-00000000000000002"),
        ("/2021-03-23/meta-data/instance-id", "i-00000000000000001"),
        ("/1.0/meta-data/instance-id/", "i-00000000000000001"),
        ("/latest/meta-data/ami-launch-index", "0"),
        ("/latest/meta-data/ami-manifest-path", "(unknown)"),
        ("/latest/meta-data/block-device-mapping/", "ami\nroot"),
        ("/latest/meta-data/block-device-mapping/root", "/dev/xvda"),
        ("/latest/meta-data/events/", "maintenance/"),
        ("/latest/meta-data/events/maintenance/", "history\nscheduled"),
        ("/latest/meta-data/events/maintenance/scheduled", "[]"),
        ("/latest/meta-data/hibernation/configured", "false"),
        ("/latest/meta-data/hostname", "ip-172-31-16-15.ec2.internal"),
        ("/latest/meta-data/identity-credentials/ec2/", "info\nsecurity-credentials/"),
        ("/latest/meta-data/identity-credentials/ec2/security-credentials/", "ec2-instance"),
        ("/latest/meta-data/instance-life-cycle", "on-demand"),
        ("/latest/meta-data/instance-type", "m7i.large"),
        ("/latest/meta-data/local-ipv4?x=1", "172.31.16.15"),
        ("/latest/meta-data/mac", "02:00:00:00:00:15"),
        ("/latest/meta-data/network/interfaces/macs/", "02:00:00:00:00:15/"),
        (
            "/latest/meta-data/network/interfaces/macs/02:00:00:00:00:15/",
            "device-number\ninterface-id\nlocal-hostname\nlocal-ipv4s\nmac\nowner-id\nsecurity-group-ids\n\
             security-groups\nsubnet-id\nsubnet-ipv4-cidr-block\nvpc-id\nvpc-ipv4-cidr-block\n\
             vpc-ipv4-cidr-blocks",
        ),
        (
            "/latest/meta-data/network/interfaces/macs/02:00:00:00:00:15/subnet-ipv4-cidr-block",
            "172.31.16.0/20",
        ),
        ("/latest/meta-data/network/interfaces/macs/02:00:00:00:00:15/owner-id", "123456789012"),
        ("/latest/meta-data/placement/", "availability-zone\navailability-zone-id\nregion"),
        ("/latest/meta-data/placement/region", "us-east-1"),
        ("/latest/meta-data/profile", "default-hvm"),
        ("/latest/meta-data/public-keys/", "0=kiln"),
        ("/latest/meta-data/public-keys/0/", "openssh-key"),
        ("/latest/meta-data/public-keys/0/openssh-key", "ssh-ed25519 AAAA kiln\n"),
        ("/latest/meta-data/services/", "domain\npartition"),
        ("/latest/meta-data/system", "nitro"),
        ("/latest/meta-data/tags/instance/", "Name"),
        ("http://169.254.169.254/latest/meta-data/tags/instance/Name", "golden"),
        ("/latest/user-data", "#cloud-config\n\u{fffd}"),
        ("/latest/dynamic/", "instance-identity/"),
        ("/latest/dynamic/instance-identity/", "document\npkcs7\nrsa2048\nsignature"),
    ] {
        assert_eq!(get(path), (200, body.to_owned()), "{path}");
    }
    let (_, versions) = get("/");
    assert!(versions.starts_with("1.0\n2007-01-19\n") && versions.ends_with("\n2024-04-11\nlatest"));
}

#[test]
fn the_identity_document_is_json_in_the_form_of_ec2() {
    let (_, document) = get("/latest/dynamic/instance-identity/document");
    assert!(
        document.starts_with("{\n  \"accountId\" : \"123456789012\",\n  \"architecture\" : \"x86_64\",\n")
    );
    let read: serde_json::Value = serde_json::from_str(&document).unwrap();
    assert_eq!((&read["privateIp"], &read["kernelId"]), (&"172.31.16.15".into(), &serde_json::Value::Null));
    let (_, signature) = get("/latest/dynamic/instance-identity/signature");
    assert_eq!(signature.lines().map(str::len).collect::<Vec<_>>(), [76, 76, 20]);
    let bytes = from_base64(&signature.replace('\n', "")).unwrap();
    assert!(bytes.len() == 128 && bytes.starts_with(b"Kiln's lookalike: not signed"));
}

#[test]
fn what_is_not_there() {
    for path in [
        "/latest/meta-data/iam/",
        "/latest/meta-data/public-ipv4",
        "/latest/meta-data/nothing",
        "/2999-01-01/",
        "/latest/meta-data/instance-id/x",
        "/latest/api/",
        "relative",
        "",
        "*",
        "/latest/meta-data/../user-data",
    ] {
        let (status, body) = get(path);
        assert_eq!(status, 404, "{path}");
        assert!(body.contains("<title>404 - Not Found</title>"), "{body}");
    }
    let bare = Instance { public_key: None, user_data: None, tags: Default::default(), ..instance() };
    for path in ["/latest/user-data", "/latest/meta-data/public-keys/", "/latest/meta-data/tags/"] {
        assert_eq!(get_of(&bare, path).0, 404, "{path}");
    }
    assert_eq!(get_of(&bare, "/latest/").1, "dynamic\nmeta-data");
}

#[test]
fn a_role_and_a_public_address_show_when_there_are_any() {
    let more = Instance {
        role: Some("web".to_owned()),
        public_ip: Some(Ipv4Addr::new(203, 0, 113, 9)),
        ..instance()
    };
    assert_eq!(get_of(&more, "/latest/meta-data/iam/security-credentials/").1, "web");
    let (_, credentials) = get_of(&more, "/latest/meta-data/iam/security-credentials/web");
    let read: serde_json::Value = serde_json::from_str(&credentials).unwrap();
    assert_eq!(read["SecretAccessKey"], "kiln-lookalike-no-secret-0000000000000000");
    let macs = "/latest/meta-data/network/interfaces/macs/02:00:00:00:00:15";
    assert_eq!(get_of(&more, &format!("{macs}/ipv4-associations/")).1, "203.0.113.9");
    assert_eq!(get_of(&more, &format!("{macs}/ipv4-associations/203.0.113.9")).1, "172.31.16.15");
    assert_eq!(get_of(&more, "/latest/meta-data/public-ipv4").1, "203.0.113.9");
}

#[test]
fn a_folder_without_its_slash_is_a_redirect() {
    for path in ["/latest", "/latest/meta-data", "/latest/meta-data/public-keys/0"] {
        let token = tokens().issue(NOW + 60);
        let response = answer(&instance(), &tokens(), NOW, &request("GET", path, &[(TOKEN, &token)]));
        assert_eq!((response.status, response.body.len()), (301, 0), "{path}");
        let location = ("Location", format!("http://169.254.169.254{path}/"));
        assert!(response.headers.contains(&location), "{:?}", response.headers);
    }
}

#[test]
fn tokens_are_asked_for_and_shown() {
    let put =
        |headers: &[(&str, &str)]| answer(&instance(), &tokens(), NOW, &request("PUT", TOKEN_PATH, headers));
    for ttl in ["1", "21600", " 60 "] {
        assert_eq!(put(&[("x-aws-ec2-metadata-token-ttl-seconds", ttl)]).status, 200, "{ttl}");
    }
    for ttl in ["0", "21601", "-1", "+60", "6e1", "", "x", "99999999999999999999"] {
        assert_eq!(put(&[(TTL, ttl)]).status, 400, "{ttl}");
    }
    assert_eq!(put(&[]).status, 400);
    assert_eq!(put(&[(TTL, "60"), ("x-forwarded-for", "10.0.0.1")]).status, 403);

    let response = put(&[(TTL, "60")]);
    assert_eq!(response.headers, [(TTL, "60".to_owned())]);
    let token = String::from_utf8(response.body).unwrap();
    assert_eq!(token.len(), 56);
    let with = |token: &str, now: u64| {
        let asked = request("GET", "/latest/meta-data/system", &[("X-AWS-EC2-Metadata-Token", token)]);
        answer(&instance(), &tokens(), now, &asked)
    };
    assert_eq!((with(&token, NOW).status, with(&token, NOW + 59).status), (200, 200));
    assert!(with(&token, NOW + 59).headers.contains(&(TTL, "1".to_owned())));
    assert_eq!(with(&token, NOW + 60).status, 401, "it is over");
    let strange = Tokens::new("another").issue(NOW + 60);
    let longer = format!("{token}AAAA");
    for wrong in ["", "x", "AAAA", strange.as_str(), longer.as_str()] {
        assert_eq!(with(wrong, NOW).status, 401, "{wrong}");
    }
}

#[test]
fn version_1_is_refused_unless_it_is_optional() {
    let plain = request("GET", "/latest/meta-data/system", &[]);
    let optional = Instance { metadata: Metadata::Optional, ..instance() };
    assert_eq!(answer(&instance(), &tokens(), NOW, &plain).status, 401);
    assert_eq!(answer(&optional, &tokens(), NOW, &plain).status, 200);
    let wrong = request("GET", "/latest/meta-data/system", &[(TOKEN, "wrong")]);
    assert_eq!(answer(&optional, &tokens(), NOW, &wrong).status, 401);

    let logged = |request: &Request, status| Logged::of(0, request, status);
    assert_eq!(version_1(&[logged(&plain, 401), logged(&wrong, 401), logged(&plain, 404)]), (0, 1));
    assert_eq!(version_1(&[logged(&plain, 200), logged(&plain, 301)]), (2, 0));
    assert_eq!(logged(&plain, 401).to_string(), "   0.000 GET /latest/meta-data/system 401 (version 1) ");
}

#[test]
fn other_methods() {
    let token = tokens().issue(NOW + 60);
    for (method, path, status) in [
        ("POST", "/latest/meta-data/", 405),
        ("DELETE", TOKEN_PATH, 405),
        ("GET", TOKEN_PATH, 405),
        ("PUT", "/latest/api/token/", 403),
        ("PUT", "/latest/user-data", 403),
        ("HEAD", "/latest/meta-data/system", 200),
        ("", "", 405),
    ] {
        let asked = request(method, path, &[(TOKEN, &token), (TTL, "60")]);
        assert_eq!(answer(&instance(), &tokens(), NOW, &asked).status, status, "{method} {path}");
    }
}

#[test]
fn the_wire_has_a_head_and_a_body() {
    let response = answer(&instance(), &tokens(), NOW, &request("PUT", TOKEN_PATH, &[(TTL, "60")]));
    let head = "HTTP/1.1 200 OK\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\nContent-Type: text/plain\r\n\
                Content-Length: 56\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nServer: EC2ws\r\nConnection: close\r\n\r\n";
    assert_eq!(String::from_utf8_lossy(&response.to_bytes(Timestamp(0), true)), head);
    assert_eq!(response.to_bytes(Timestamp(0), false).len(), head.len() + 56);
}

#[test]
fn requests_are_read_whole_or_not_at_all() {
    let whole = b"GET /latest/ HTTP/1.1\r\nHost: 169.254.169.254\r\nX-Aws-Ec2-Metadata-Token:  t \r\n\r\n";
    for end in 0..whole.len() {
        assert_eq!(parse(&whole[..end]), Head::Partial, "{end}");
    }
    let Head::Whole(read) = parse(whole) else { panic!("it is whole") };
    assert_eq!((read.path(), read.header(TOKEN)), ("/latest/", Some("t")));
    let headers = "a: b\r\n".repeat(65);
    let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(20_000));
    for wrong in
        ["\0", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", &format!("GET / HTTP/1.1\r\n{headers}\r\n"), &long]
    {
        assert_eq!(parse(wrong.as_bytes()), Head::Malformed, "{wrong}");
    }
}

#[test]
fn it_serves_and_keeps_a_log() {
    use std::io::{Read, Write};
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let log = Arc::new(Mutex::new(Vec::new()));
    let kept = log.clone();
    std::thread::spawn(move || {
        server::serve(&listener, instance(), move |logged| kept.lock().unwrap().push(logged.clone()));
    });
    let ask = |request: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(ask("GET /latest/ HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 401 Unauthorized\r\n"));
    assert!(ask("rubbish\r\n\r\n").starts_with("HTTP/1.1 400 Bad Request\r\n"));
    let answer = ask(&format!("PUT {TOKEN_PATH} HTTP/1.1\r\n{TTL}: 60\r\nContent-Length: 3\r\n\r\nabc"));
    let token = answer.lines().last().unwrap();
    let answer =
        ask(&format!("GET /latest/meta-data/system HTTP/1.1\r\nUser-Agent: me\r\n{TOKEN}: {token}\r\n\r\n"));
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nnitro"), "{answer}");
    let log = log.lock().unwrap();
    let seen: Vec<_> = log.iter().map(|l| (l.method.as_str(), l.path.as_str(), l.status, l.token)).collect();
    let system = "/latest/meta-data/system";
    assert_eq!(
        seen,
        [
            ("GET", "/latest/", 401, false),
            ("", "", 400, false),
            ("PUT", TOKEN_PATH, 200, false),
            ("GET", system, 200, true)
        ]
    );
    assert_eq!(log[3].agent, "me");
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in any::<Vec<u8>>(), line in "[A-Z]{0,4} [ -~]{0,60} HTTP/1.[01]\r\n\r\n") {
        for bytes in [&bytes, line.as_bytes()] {
            if let Head::Whole(request) = parse(bytes) {
                let response = answer(&instance(), &tokens(), NOW, &request);
                prop_assert!([200, 301, 400, 401, 403, 404, 405].contains(&response.status));
            }
        }
    }

    #[test]
    fn no_path_and_no_header_make_it_panic(
        path in "(/latest|/1.0)?(/(meta-data|dynamic|user-data|public-keys|0|\\PC{0,5})){0,5}/?",
        value in "\\PC{0,60}",
        ttl in any::<u64>(),
    ) {
        let _ = get(&path);
        let ttl = ttl.to_string();
        for asked in [request("PUT", TOKEN_PATH, &[(TTL, &ttl)]), request("GET", &path, &[(TOKEN, &value)])] {
            let response = answer(&instance(), &tokens(), u64::MAX, &asked);
            prop_assert!(!response.to_bytes(Timestamp(0), false).is_empty());
        }
    }
}
