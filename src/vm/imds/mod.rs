//! A metadata service like EC2's (IMDS): what an instance asks at 169.254.169.254 to learn who it is.
//!
//! [`answer`] is a pure function of the instance, the time and the request; [`server`] is the thin layer of sockets
//! around it. As on EC2: version 2 asks for a token first (`PUT /latest/api/token`), a folder named without its last slash
//! is answered with a redirect, a value may be asked for with or without one.

pub mod http;
pub mod server;
mod tree;

use serde::{Deserialize, Serialize};

use super::ec2::{Instance, Metadata};
use crate::base64::{base64, from_base64};
use crate::digest::Hasher;
pub use http::{Request, Response};
use tree::Node;

/// Where the service listens.
pub const ADDRESS: std::net::Ipv4Addr = std::net::Ipv4Addr::new(169, 254, 169, 254);
/// On which port.
pub const PORT: u16 = 80;

const TTL: &str = "X-aws-ec2-metadata-token-ttl-seconds";
const TOKEN: &str = "X-aws-ec2-metadata-token";
const TOKEN_PATH: &str = "/latest/api/token";
/// Six hours.
const TTL_LIMIT: u64 = 21_600;

/// What tokens are made with. They carry their end and a seal, so that none has to be remembered.
#[derive(Debug, Clone)]
pub struct Tokens {
    secret: [u8; 32],
}

impl Tokens {
    /// Tokens that only the holder of the same seed accepts.
    #[must_use]
    pub fn new(seed: &str) -> Tokens {
        let mut hasher = Hasher::new();
        hasher.update(b"metadata tokens\0");
        hasher.update(seed.as_bytes());
        Tokens { secret: hasher.finish().0 }
    }

    /// A token that is good up to a point in time.
    #[must_use]
    pub fn issue(&self, end: u64) -> String {
        let mut bytes = end.to_be_bytes().to_vec();
        bytes.extend_from_slice(&self.seal(end)[..32]);
        base64(&bytes)
    }

    /// How many seconds a token is still good for; none when it is over or was never issued.
    #[must_use]
    pub fn left(&self, token: &str, now: u64) -> Option<u64> {
        let bytes = from_base64(token)?;
        let end = u64::from_be_bytes(bytes.get(..8)?.try_into().ok()?);
        let known = bytes[8..] == self.seal(end);
        end.checked_sub(now).filter(|&left| known && left > 0)
    }

    fn seal(&self, end: u64) -> [u8; 32] {
        let mut hasher = Hasher::new();
        for part in [&self.secret[..], &end.to_be_bytes(), &self.secret] {
            hasher.update(part);
        }
        hasher.finish().0
    }
}

/// Answers a request at `now`, in seconds.
#[must_use]
pub fn answer(instance: &Instance, tokens: &Tokens, now: u64, request: &Request) -> Response {
    match (request.method.as_str(), request.path()) {
        ("PUT", TOKEN_PATH) => token(tokens, now, request),
        ("PUT", _) => Response::error(403),
        ("GET" | "HEAD", TOKEN_PATH) => Response::error(405).with("Allow", "OPTIONS, PUT"),
        ("GET" | "HEAD", path) => match (request.header(TOKEN), instance.metadata) {
            (None, Metadata::Required) => Response::error(401),
            (None, Metadata::Optional) => look_up(instance, path),
            (Some(token), _) => match tokens.left(token, now) {
                None => Response::error(401),
                Some(left) => look_up(instance, path).with(TTL, left.to_string()),
            },
        },
        _ => Response::error(405).with("Allow", "OPTIONS, GET, HEAD"),
    }
}

fn token(tokens: &Tokens, now: u64, request: &Request) -> Response {
    // A request that came through a proxy is one that somebody may have smuggled in.
    if request.header("X-Forwarded-For").is_some() {
        return Response::error(403);
    }
    let digits = request.header(TTL).filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    match digits.and_then(|text| text.parse::<u64>().ok()) {
        Some(ttl @ 1..=TTL_LIMIT) => {
            Response::ok(tokens.issue(now.saturating_add(ttl))).with(TTL, ttl.to_string())
        }
        _ => Response::error(400),
    }
}

fn look_up(instance: &Instance, path: &str) -> Response {
    if path == "/" {
        return Response::ok(tree::VERSIONS.join("\n"));
    }
    let mut names = path.split('/').filter(|name| !name.is_empty());
    let known =
        path.starts_with('/') && names.next().is_some_and(|version| tree::VERSIONS.contains(&version));
    let found = if known { tree::of(instance).find(names) } else { None };
    match found {
        None => Response::error(404),
        Some(Node::Leaf(leaf)) => Response {
            content_type: leaf.content_type,
            ..Response::ok(leaf.bytes).with("Accept-Ranges", "none")
        },
        Some(Node::Folder(folder)) if path.ends_with('/') => Response::ok(folder.list()),
        Some(Node::Folder(_)) => {
            let location = format!("http://{ADDRESS}{path}/");
            Response { status: 301, ..Response::ok("") }.with("Location", location)
        }
    }
}

/// A request that was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logged {
    /// Milliseconds since the service began.
    pub at: u64,
    /// `GET`, `PUT`, …; empty when the request could not be read.
    pub method: String,
    /// What was asked for.
    pub path: String,
    /// How it was answered.
    pub status: u16,
    /// Whether it showed a token, good or not.
    pub token: bool,
    /// Who asked, in its own words.
    pub agent: String,
}

impl Logged {
    pub(super) fn of(at: u64, request: &Request, status: u16) -> Logged {
        // A client may write as much as it likes there.
        let short = |text: &str| text.chars().take(200).collect();
        Logged {
            at,
            method: short(&request.method),
            path: short(request.path()),
            status,
            token: request.header(TOKEN).is_some(),
            agent: short(request.header("User-Agent").unwrap_or_default()),
        }
    }

    /// Whether it was a request of version 1: a question without a token.
    #[must_use]
    pub fn is_version_1(&self) -> bool {
        ["GET", "HEAD"].contains(&self.method.as_str()) && !self.token && self.path != TOKEN_PATH
    }
}

impl std::fmt::Display for Logged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Logged { at, method, path, status, agent, .. } = self;
        let version = if self.is_version_1() { " (version 1)" } else { "" };
        write!(f, "{:8.3} {method} {path} {status}{version} {agent}", *at as f64 / 1000.0)
    }
}

/// What a log says of version 1: how many of its requests were answered, and how many refused.
#[must_use]
pub fn version_1(log: &[Logged]) -> (usize, usize) {
    let answered = |logged: &&Logged| logged.status < 400;
    let asked: Vec<&Logged> = log.iter().filter(|logged| logged.is_version_1()).collect();
    let answered = asked.iter().copied().filter(answered).count();
    let refused = asked.iter().filter(|logged| logged.status == 401).count();
    (answered, refused)
}

#[cfg(test)]
mod tests;
