//! One request: opens a URL, perhaps at an offset, and says what kind of failure it was.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use ureq::Agent;
use ureq::tls::TlsConfig;

/// Longest wait for a connection, TLS included.
const CONNECT: Duration = Duration::from_secs(15);
/// Longest wait for an answer's head.
const ANSWER: Duration = Duration::from_secs(60);
/// Longest silence within an answer.
const SILENCE: Duration = Duration::from_secs(30);

/// Why a URL gives nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// The server is there, the file is not (404, 410).
    #[error("not there ({0})")]
    Gone(u16),
    /// The range that was asked for lies outside of the file (416).
    #[error("the range can't be served (416)")]
    Range,
    /// An answer that will be the same next time.
    #[error("{0}")]
    Refused(String),
    /// An answer, or none, that may be better next time.
    #[error("{0}")]
    Transient(String),
    /// The server can't be reached.
    #[error("{0}")]
    Unreachable(String),
}

impl HttpError {
    /// Whether a second try makes sense.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, HttpError::Transient(_) | HttpError::Unreachable(_))
    }
}

/// An answer that is being read.
pub(super) struct Opened {
    /// The bytes, from `start` on.
    pub reader: Box<dyn Read + Send>,
    /// Where in the file the answer begins: the offset asked for, or 0 when the server knows no ranges.
    pub start: u64,
    /// The whole file's size, when the server tells.
    pub total: Option<u64>,
}

/// Reads http, https, `file://` and plain paths. Proxies come from the environment (`http_proxy`, `https_proxy`,
/// `all_proxy`, `no_proxy`). Cloning shares the connections.
#[derive(Clone, Default)]
pub struct Client {
    agent: Arc<OnceLock<Agent>>,
    /// Servers that couldn't be reached: other files needn't wait for them again.
    unreachable: Arc<Mutex<Vec<String>>>,
}

impl Client {
    /// A client with no connection yet.
    #[must_use]
    pub fn new() -> Client {
        Client::default()
    }

    fn agent(&self) -> &Agent {
        self.agent.get_or_init(|| {
            let tls = TlsConfig::builder().root_certs(crate::host::roots::root_certs()).build();
            Agent::config_builder()
                .timeout_connect(Some(CONNECT))
                .timeout_recv_response(Some(ANSWER))
                .timeout_per_read(Some(SILENCE))
                .http_status_as_error(false)
                .user_agent(concat!("kiln/", env!("CARGO_PKG_VERSION")))
                .accept_encoding("identity")
                .tls_config(tls)
                .build()
                .into()
        })
    }

    /// Whether the server of `url` was given up.
    pub(super) fn is_unreachable(&self, url: &str) -> bool {
        let unreachable = self.unreachable.lock().unwrap_or_else(PoisonError::into_inner);
        unreachable.iter().any(|server| server == server_of(url))
    }

    /// Gives the server of `url` up.
    pub(super) fn mark_unreachable(&self, url: &str) {
        let mut unreachable = self.unreachable.lock().unwrap_or_else(PoisonError::into_inner);
        unreachable.push(server_of(url).to_owned());
    }

    /// The whole of a small file. At most `limit` bytes are read.
    ///
    /// # Errors
    /// Any [`HttpError`]; a longer file is [`HttpError::Refused`].
    pub fn get(&self, url: &str, limit: u64) -> Result<Vec<u8>, HttpError> {
        let opened = self.open(url, 0)?;
        let mut bytes = Vec::new();
        let read = opened.reader.take(limit.saturating_add(1)).read_to_end(&mut bytes);
        read.map_err(|e| HttpError::Transient(e.to_string()))?;
        match opened.total {
            _ if bytes.len() as u64 > limit => {
                Err(HttpError::Refused(format!("longer than the {limit} bytes that were expected")))
            }
            Some(total) if total != bytes.len() as u64 => {
                Err(HttpError::Transient(format!("cut off after {} of {total} bytes", bytes.len())))
            }
            _ => Ok(bytes),
        }
    }

    /// Opens `url` at `offset`.
    pub(super) fn open(&self, url: &str, offset: u64) -> Result<Opened, HttpError> {
        match local_path(url) {
            Some(path) => open_file(&path, offset),
            None => self.open_http(url, offset),
        }
    }

    fn open_http(&self, url: &str, offset: u64) -> Result<Opened, HttpError> {
        let mut request = self.agent().get(url);
        if offset > 0 {
            request = request.header("Range", format!("bytes={offset}-"));
        }
        let response = request.call().map_err(from_ureq)?;
        let status = response.status();
        let header =
            |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let (start, total) = match status.as_u16() {
            200 => (0, header("content-length").and_then(|v| v.parse().ok())),
            206 => {
                let range = header("content-range").and_then(|v| content_range(&v));
                range.ok_or_else(|| {
                    HttpError::Refused("a partial answer that doesn't say which part".into())
                })?
            }
            code @ (404 | 410) => return Err(HttpError::Gone(code)),
            416 => return Err(HttpError::Range),
            code @ (408 | 425 | 429 | 500..) => {
                return Err(HttpError::Transient(format!("the server answers {code} {}", reason(status))));
            }
            code => return Err(HttpError::Refused(format!("the server answers {code} {}", reason(status)))),
        };
        Ok(Opened { reader: Box::new(response.into_body().into_reader()), start, total })
    }
}

fn reason(status: ureq::http::StatusCode) -> &'static str {
    status.canonical_reason().unwrap_or("")
}

/// `http://host:port` of a URL.
fn server_of(url: &str) -> &str {
    let host = url.find("://").map_or(0, |i| i + 3);
    url[host..].find('/').map_or(url, |i| &url[..host + i])
}

/// The path that a `file:` URL or a plain path means.
fn local_path(url: &str) -> Option<PathBuf> {
    if url.starts_with('/') {
        return Some(PathBuf::from(url));
    }
    let rest = url.strip_prefix("file:")?;
    let path = rest.strip_prefix("//").unwrap_or(rest);
    Some(PathBuf::from(path.strip_prefix("localhost").unwrap_or(path)))
}

fn open_file(path: &Path, offset: u64) -> Result<Opened, HttpError> {
    let wrong = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => HttpError::Gone(404),
        _ => HttpError::Refused(e.to_string()),
    };
    let mut file = File::open(path).map_err(wrong)?;
    let metadata = file.metadata().map_err(wrong)?;
    if !metadata.is_file() {
        return Err(HttpError::Refused("no regular file".to_owned()));
    }
    if offset > metadata.len() {
        return Err(HttpError::Range);
    }
    file.seek(SeekFrom::Start(offset)).map_err(wrong)?;
    Ok(Opened { reader: Box::new(file), start: offset, total: Some(metadata.len()) })
}

/// Start and whole size of `bytes 100-199/200` (RFC 9110, 14.4); the size may be `*`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some((start.trim().parse().ok()?, total))
}

fn from_ureq(error: ureq::Error) -> HttpError {
    let text = error.to_string();
    match error {
        ureq::Error::HostNotFound => HttpError::Unreachable("the host's name is not known".to_owned()),
        ureq::Error::ConnectionFailed | ureq::Error::ConnectProxyFailed(_) => HttpError::Unreachable(text),
        ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => HttpError::Unreachable(text),
        ureq::Error::Io(e) => match e.kind() {
            io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown => HttpError::Unreachable(e.to_string()),
            _ => HttpError::Transient(e.to_string()),
        },
        ureq::Error::Timeout(_) | ureq::Error::Protocol(_) => HttpError::Transient(text),
        _ => HttpError::Refused(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_paths() {
        assert_eq!(content_range("bytes 100-199/200"), Some((100, Some(200))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        for wrong in ["", "bytes", "bytes */200", "lines 1-2/3", "bytes 1-2", "bytes x-2/3", "bytes 1-2/x"] {
            assert_eq!(content_range(wrong), None, "{wrong}");
        }
        for (url, path) in [
            ("/srv/x", Some("/srv/x")),
            ("file:///srv/x", Some("/srv/x")),
            ("file:/srv/x", Some("/srv/x")),
            ("file://localhost/srv/x", Some("/srv/x")),
            ("http://h/srv/x", None),
        ] {
            assert_eq!(local_path(url), path.map(PathBuf::from), "{url}");
        }
    }
}
