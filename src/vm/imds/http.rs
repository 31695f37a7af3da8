//! HTTP/1.1 as far as the metadata service needs it: the head of a request in, a whole response out, one a connection.

use std::fmt::Write as _;

use crate::date::Timestamp;

/// A longer head is none that a client of this service sends.
const HEAD_LIMIT: usize = 16 << 10;
/// More headers than any client sends.
const HEADERS: usize = 64;

/// The head of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `PUT`, ….
    pub method: String,
    /// What is asked for, as it was written.
    pub target: String,
    /// Names and values, in their order.
    pub headers: Vec<(String, String)>,
}

impl Request {
    /// The first header of this name, whatever its case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim())
    }

    /// What is asked for without a query, and without a host as proxies are told it.
    #[must_use]
    pub fn path(&self) -> &str {
        let target = self.target.split(['?', '#']).next().unwrap_or_default();
        match target.strip_prefix("http://") {
            Some(rest) => rest.find('/').map_or("/", |at| &rest[at..]),
            None => target,
        }
    }
}

/// What the bytes received so far are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Head {
    /// The beginning of a request.
    Partial,
    /// A request.
    Whole(Request),
    /// Neither.
    Malformed,
}

/// Reads the head of a request.
#[must_use]
pub fn parse(bytes: &[u8]) -> Head {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let headers = request.headers.iter().map(|h| (h.name.to_owned(), text(h.value))).collect();
            let word = |word: Option<&str>| word.unwrap_or_default().to_owned();
            Head::Whole(Request { method: word(request.method), target: word(request.path), headers })
        }
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_LIMIT => Head::Partial,
        Ok(httparse::Status::Partial) | Err(_) => Head::Malformed,
    }
}

/// A response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// 200, 404, ….
    pub status: u16,
    /// Of the body.
    pub content_type: &'static str,
    /// Further headers.
    pub headers: Vec<(&'static str, String)>,
    /// What it says.
    pub body: Vec<u8>,
}

impl Response {
    pub(super) fn ok(body: impl Into<Vec<u8>>) -> Response {
        Response { status: 200, content_type: "text/plain", headers: Vec::new(), body: body.into() }
    }

    /// A status other than 200, with the page that EC2 sends along.
    pub(super) fn error(status: u16) -> Response {
        let title = format!("{status} - {}", reason(status));
        let page = format!(
            "<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>\n\
             <!DOCTYPE html PUBLIC \"-//W3C//DTD XHTML 1.0 Transitional//EN\"\n\
             \t\"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd\">\n\
             <html xmlns=\"http://www.w3.org/1999/xhtml\" xml:lang=\"en\" lang=\"en\">\n <head>\n  \
             <title>{title}</title>\n </head>\n <body>\n  <h1>{title}</h1>\n </body>\n</html>\n"
        );
        Response { status, content_type: "text/html", headers: Vec::new(), body: page.into_bytes() }
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Response {
        self.headers.push((name, value.into()));
        self
    }

    /// The bytes on the wire; those of a body are left away for `HEAD`.
    #[must_use]
    pub fn to_bytes(&self, now: Timestamp, head_only: bool) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        for (name, value) in &self.headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        let _ =
            write!(head, "Content-Type: {}\r\nContent-Length: {}\r\n", self.content_type, self.body.len());
        let _ = write!(head, "Date: {}\r\nServer: EC2ws\r\nConnection: close\r\n\r\n", now.http());
        let mut bytes = head.into_bytes();
        if !head_only {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        301 => "Moved Permanently",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        _ => "Internal Server Error",
    }
}
