//! Asks a guest's HTTP server for a page, as a browser without any habits would: HTTP/1.0, one request a connection
//! (RFC 1945), so that nothing comes in pieces.

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use crate::check::judge::pattern;
use crate::system::test::Http;
use crate::vm::{Vm, VmError};

/// A page larger than this is cut off.
const PAGE_LIMIT: u64 = 4 << 20;
/// How long one look for more of the page takes at most.
const TICK: Duration = Duration::from_millis(500);

/// Asks for the page; the inner `Err` is what is wrong with the answer.
///
/// # Errors
/// [`VmError`] when the machine failed meanwhile, or Kiln is to end.
pub(super) fn ask(vm: &Vm, wanted: &Http, limit: Duration) -> Result<Result<String, String>, VmError> {
    let (mut lines, mut failed) = (vm.line_count(), None);
    let answer = page(vm, wanted, limit, &mut || {
        failed = vm.news(&mut lines, "a page").err();
        failed.is_none()
    });
    failed.map_or(Ok(answer), Err)
}

/// The same, as long as `goes_on` says so.
fn page(
    vm: &Vm,
    wanted: &Http,
    limit: Duration,
    goes_on: &mut dyn FnMut() -> bool,
) -> Result<String, String> {
    let where_from = format!("port {}", wanted.port);
    let deadline = Instant::now() + limit;
    let mut stream = vm.connect(wanted.port, limit).map_err(|e| format!("{where_from}: {e}"))?;
    let no_answer = |e: std::io::Error| format!("{where_from}: no answer: {e}");
    stream.set_read_timeout(Some(TICK)).map_err(no_answer)?;
    let request = format!(
        "GET {} HTTP/1.0\r\nHost: {}\r\nUser-Agent: kiln\r\nConnection: close\r\n\r\n",
        wanted.path, wanted.host
    );
    stream.write_all(request.as_bytes()).map_err(no_answer)?;
    let mut bytes = Vec::new();
    let mut part = [0; 64 << 10];
    loop {
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(n) => {
                bytes.extend_from_slice(&part[..n]);
                // Whoever answers with something else may do so for ever.
                begins_as_http(&bytes)?;
            }
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) =>
            {
                if !goes_on() || (bytes.is_empty() && Instant::now() > deadline) {
                    return Err(format!("{where_from}: no answer within {} s", limit.as_secs()));
                }
            }
            // A server that closes hard after its last byte has still answered.
            Err(_) if !bytes.is_empty() => break,
            Err(e) => return Err(no_answer(e)),
        }
        if bytes.len() as u64 > PAGE_LIMIT || Instant::now() > deadline {
            break;
        }
    }
    judge(&bytes, wanted)
}

fn begins_as_http(bytes: &[u8]) -> Result<(), String> {
    let mut headers = [httparse::EMPTY_HEADER; 100];
    let parsed = httparse::Response::new(&mut headers).parse(bytes);
    parsed.map(|_| ()).map_err(|e| format!("the answer is no HTTP: {e}"))
}

/// Whether an answer is the page that is wanted.
fn judge(bytes: &[u8], wanted: &Http) -> Result<String, String> {
    let mut headers = [httparse::EMPTY_HEADER; 100];
    let mut response = httparse::Response::new(&mut headers);
    let head = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.is_empty() => {
            return Err(format!("nothing answers on port {}", wanted.port));
        }
        Ok(httparse::Status::Partial) => return Err("the answer ends before its head does".to_owned()),
        Err(e) => return Err(format!("the answer is no HTTP: {e}")),
    };
    let status = response.code.unwrap_or_default();
    if status != wanted.status {
        return Err(format!("{} answers {status} instead of {}", wanted.path, wanted.status));
    }
    let body = String::from_utf8_lossy(&bytes[head..]);
    if let Some(text) = &wanted.body
        && !pattern(text)?.is_match(&body)
    {
        let begin: String = body.chars().take(80).collect();
        return Err(format!("the body has no match of `{text}`; it begins with: {}", begin.trim()));
    }
    Ok(format!("{status}, {} bytes", bytes.len() - head))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(body: Option<&str>) -> Http {
        Http { port: 80, path: "/".into(), host: "x".into(), status: 200, body: body.map(str::to_owned) }
    }

    #[test]
    fn answers_are_judged() {
        let page = b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\n<h1>Hello</h1>\n";
        assert_eq!(judge(page, &wanted(Some("^<h1>H"))), Ok("200, 15 bytes".into()));
        assert_eq!(
            judge(page, &wanted(Some("Bye"))),
            Err("the body has no match of `Bye`; it begins with: <h1>Hello</h1>".into())
        );
        let missing = b"HTTP/1.1 404 Not Found\r\n\r\n";
        assert_eq!(judge(missing, &wanted(None)), Err("/ answers 404 instead of 200".into()));
        assert_eq!(judge(b"", &wanted(None)), Err("nothing answers on port 80".into()));
        assert!(judge(b"HTTP/1.1 200", &wanted(None)).is_err());
        assert!(judge(b"SSH-2.0-OpenSSH\r\n", &wanted(None)).is_err());
        assert!(begins_as_http(b"HT").is_ok() && begins_as_http(b"HTTP/1.1 200 O").is_ok());
        assert!(begins_as_http(b"GET / HTTP/1.0").is_err());
    }
}
