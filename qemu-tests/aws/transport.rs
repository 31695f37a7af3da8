//! The way to AWS: certificates of a company's own, proxies, and addresses for IAM Identity Center.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use super::credentials::{Desk, sha1};
use super::wire;

/// A server before the local AWS: `tls` speaks TLS and passes on what is in it, `proxy` is an HTTP proxy by which every
/// host is the one server. It prints its port, and as a proxy what it is asked.
const FRONT: &str = r#"
import asyncio, re, ssl, sys
mode, target, *tls = sys.argv[1:]
host, port = target.rsplit(":", 1)
async def pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        pass
async def serve(reader, writer):
    try:
        server_reader, server_writer = await asyncio.open_connection(host, int(port))
        if mode == "proxy":
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            print(head.split("\r\n")[0], flush=True)
            if head.startswith("CONNECT "):
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            else:
                head = re.sub(r"^(\S+) http://[^/]+", r"\1 ", head)
                head = re.sub(r"(?im)^(proxy-)?connection:.*\r\n", "", head)
                server_writer.write(head.replace("\r\n", "\r\nConnection: close\r\n", 1).encode())
        await asyncio.gather(pump(reader, server_writer), pump(server_reader, writer))
        server_writer.close()
        writer.close()
    except (OSError, asyncio.IncompleteReadError):
        writer.close()
async def main():
    context = None
    if mode == "tls":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"#;

/// A running front.
struct Front {
    server: Child,
    output: BufReader<ChildStdout>,
    port: u16,
}

impl Front {
    fn start(mode: &str, target: &str, more: &[&Path]) -> Front {
        let mut python = wire::python();
        python.args(["-c", FRONT, mode, target]).args(more).stdout(Stdio::piped());
        let mut server = python.spawn().expect("a front");
        let mut output = BufReader::new(server.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).expect("a port");
        Front { server, output, port: line.trim().parse().expect("a port") }
    }

    /// The next line that it was asked.
    fn asked(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a line");
        line
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// An authority, and a certificate by it for `localhost` and `aws.invalid`, in `folder`.
fn certificates(folder: &Path) {
    let run = |line: &str| {
        let mut command = Command::new("openssl");
        let output = command.args(line.split(' ')).current_dir(folder).output().expect("openssl");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    };
    std::fs::write(folder.join("names"), "subjectAltName=DNS:localhost,DNS:aws.invalid\n").unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    run(&format!("req -x509 {key} -days 2 -subj /CN=Company -keyout ca.key -out ca.pem"));
    run(&format!("req {key} -subj /CN=localhost -keyout key.pem -out request.pem"));
    run(
        "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out cert.pem",
    );
}

const KEYS: [(&str, &str); 2] =
    [("AWS_ACCESS_KEY_ID", "AKIAKILNTESTBASE0000"), ("AWS_SECRET_ACCESS_KEY", "hush-base-secret-key")];

/// Who Kiln is with the keys and these variables.
fn with<'a>(variables: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [&KEYS[..], variables].concat()
}

#[test]
fn servers_prove_that_they_are_the_ones() {
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let file = |name: &str| folder.path().join(name);
    let ca = file("ca.pem");
    let ca = ca.to_str().unwrap();
    let desk = Desk::new(&format!("[profile company]\nca_bundle = {ca}\n"));
    let target = desk.local.url().trim_start_matches("http://").to_owned();
    let front = Front::start("tls", &target, &[&file("cert.pem"), &file("key.pem")]);
    let url = format!("https://localhost:{}", front.port);
    let endpoint = ("AWS_ENDPOINT_URL", url.as_str());

    let began = Instant::now();
    let error = desk.kiln(&[], &with(&[endpoint])).error();
    assert!(error.contains("UnknownIssuer") && error.contains("hint: the server, or a proxy"), "{error}");
    assert!(error.contains("AWS_CA_BUNDLE names a file"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());

    for by in [("AWS_CA_BUNDLE", ca), ("AWS_PROFILE", "company"), ("SSL_CERT_FILE", ca)] {
        let arn = desk.kiln(&[], &with(&[endpoint, by])).arn();
        assert!(arn.starts_with("arn:aws:iam::123456789012:user/"), "{by:?}: {arn}");
    }
    // Only the bundle's authorities count, as with the AWS CLI.
    let other = file("other");
    std::fs::create_dir(&other).unwrap();
    certificates(&other);
    let other = other.join("ca.pem");
    let error = desk.kiln(&[], &with(&[endpoint, ("AWS_CA_BUNDLE", other.to_str().unwrap())])).error();
    assert!(error.contains("invalid peer certificate"), "{error}");
    let key = file("key.pem");
    let error = desk.kiln(&[], &with(&[endpoint, ("AWS_CA_BUNDLE", key.to_str().unwrap())])).error();
    assert!(error.contains("there is no certificate in it"), "{error}");
    let error = desk.kiln(&[], &with(&[endpoint, ("AWS_CA_BUNDLE", "/nowhere.pem")])).error();
    assert!(error.contains("AWS_CA_BUNDLE names /nowhere.pem: No such file"), "{error}");
}

#[test]
fn proxies_are_followed() {
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let file = |name: &str| folder.path().join(name);
    let desk = Desk::new("");
    let target = desk.local.url().trim_start_matches("http://").to_owned();
    let tls = Front::start("tls", &target, &[&file("cert.pem"), &file("key.pem")]);
    let mut plain = Front::start("proxy", &target, &[]);
    let mut tunnel = Front::start("proxy", &format!("127.0.0.1:{}", tls.port), &[]);
    let (http, https) =
        (format!("http://127.0.0.1:{}", plain.port), format!("http://127.0.0.1:{}", tunnel.port));

    // The name has no address: only the proxy can be the way.
    let plainly = ("AWS_ENDPOINT_URL", "http://aws.invalid");
    let is_user = |arn: String| assert!(arn.starts_with("arn:aws:iam::123456789012:user/"), "{arn}");
    is_user(desk.kiln(&[], &with(&[plainly, ("HTTP_PROXY", &http)])).arn());
    assert_eq!(plain.asked(), "POST http://aws.invalid/ HTTP/1.1\n");
    let safely = ("AWS_ENDPOINT_URL", "https://aws.invalid");
    let ca = file("ca.pem");
    let bundle = ("AWS_CA_BUNDLE", ca.to_str().unwrap());
    is_user(desk.kiln(&[], &with(&[safely, bundle, ("HTTPS_PROXY", &https)])).arn());
    assert_eq!(tunnel.asked(), "CONNECT aws.invalid:443 HTTP/1.1\n");

    let began = Instant::now();
    let not = [plainly, ("HTTP_PROXY", http.as_str()), ("NO_PROXY", "other.invalid,aws.invalid")];
    let error = desk.kiln(&[], &with(&not)).error();
    assert!(error.contains("hint: is the network up"), "{error}");
    let error = desk.kiln(&[], &with(&[plainly, ("HTTP_PROXY", "http://127.0.0.1:9")])).error();
    assert!(error.contains("hint: is the network up"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
}

#[test]
fn identity_center_is_where_the_command_line_says() {
    let desk = Desk::new(
        "[profile s]\nsso_session = corp\nsso_account_id = 444444444444\nsso_role_name = Baker\n\
         [sso-session corp]\nsso_start_url = https://corp.example/start\nsso_region = eu-west-1\n",
    );
    let mut token = json!({
        "startUrl": "https://corp.example/start", "region": "eu-west-1", "accessToken": "kiln-sso-token",
        "expiresAt": "2100-01-01T00:00:00Z", "clientId": "c", "clientSecret": "cs",
        "registrationExpiresAt": "2100-01-01T00:00:00Z",
    });
    let file = format!(".aws/sso/cache/{}.json", sha1("corp"));
    // An address that nobody listens at: the command line's comes before it.
    let elsewhere = [("AWS_ENDPOINT_URL", "http://127.0.0.1:9")];
    let url = desk.local.url().to_owned();
    let arn = || desk.kiln(&["--profile", "s", "--endpoint", &url], &elsewhere).arn();
    desk.write(&file, &token.to_string());
    assert!(arn().starts_with("arn:aws:sts::444444444444:assumed-role/AWSReservedSSO_Baker_"));
    token["expiresAt"] = json!("2020-01-01T00:00:00Z");
    token["refreshToken"] = json!("kiln-refresh-token");
    desk.write(&file, &token.to_string());
    assert!(arn().contains("AWSReservedSSO_Baker_"));
}
