//! A small HTTP server for tests, which misbehaves as it is told.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub path: String,
    /// Where the client wants the answer to begin.
    pub from: Option<usize>,
}

/// What is answered.
#[derive(Default, Clone)]
pub struct Reply {
    pub status: u16,
    pub body: Vec<u8>,
    /// The connection breaks after so many bytes of the body.
    pub cut: Option<usize>,
    pub content_range: Option<String>,
}

impl Reply {
    /// Only a status.
    pub fn status(status: u16) -> Reply {
        Reply { status, ..Reply::default() }
    }

    /// The whole body, whatever was asked.
    pub fn whole(body: &[u8]) -> Reply {
        Reply { status: 200, body: body.to_vec(), ..Reply::default() }
    }

    /// The part that was asked for, as a good server does.
    pub fn of(body: &[u8], request: &Request) -> Reply {
        match request.from {
            None => Reply::whole(body),
            Some(from) if from >= body.len() => Reply::status(416),
            Some(from) => Reply {
                status: 206,
                body: body[from..].to_vec(),
                content_range: Some(format!("bytes {from}-{}/{}", body.len() - 1, body.len())),
                ..Reply::default()
            },
        }
    }

    /// The connection breaks after so many bytes.
    pub fn cut(self, after: usize) -> Reply {
        Reply { cut: Some(after), ..self }
    }
}

/// A server on a free port of this host, until the test's process ends.
pub struct Server {
    pub url: String,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Starts a server that answers as `answer` says; the number counts the requests from 0.
    pub fn start(answer: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let (answer, shared) = (Arc::new(answer), Arc::clone(&log));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (answer, log) = (Arc::clone(&answer), Arc::clone(&shared));
                std::thread::spawn(move || serve(stream.unwrap(), &*answer, &log));
            }
        });
        Server { url, log }
    }

    /// All that was asked so far.
    pub fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }
}

fn serve(stream: TcpStream, answer: &dyn Fn(&Request, usize) -> Reply, log: &Mutex<Vec<Request>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 || line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_owned());
    }
    let Some(first) = lines.first() else { return };
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let range =
        lines.iter().find_map(|l| l.to_ascii_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
    let from = range.and_then(|r| r.trim_end_matches('-').parse().ok());
    let request = Request { path, from };
    let count = {
        let mut log = log.lock().unwrap();
        log.push(request.clone());
        log.len() - 1
    };
    let reply = answer(&request, count);
    let mut head = format!(
        "HTTP/1.1 {} Status\r\nContent-Length: {}\r\nConnection: close\r\n",
        reply.status,
        reply.body.len()
    );
    if let Some(range) = &reply.content_range {
        head += &format!("Content-Range: {range}\r\n");
    }
    let body = &reply.body[..reply.cut.unwrap_or(reply.body.len()).min(reply.body.len())];
    let mut stream = stream;
    // The client may have gone away: that is its business.
    let _ = stream.write_all(format!("{head}\r\n").as_bytes()).and_then(|()| stream.write_all(body));
}
