//! The metadata service's sockets: a thread a connection, one request on each.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::http::{self, Head, Request, Response};
use super::{Logged, Tokens, answer};
use crate::date::Timestamp;
use crate::vm::ec2::Instance;

/// More at once than any guest needs; further ones are closed unanswered.
const CONNECTIONS: usize = 64;
/// A guest that says nothing is waited for this long.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a client may keep on sending once it is answered.
const LINGER: Duration = Duration::from_millis(500);

/// Serves an instance's metadata on a listener, until the process ends. Each request is logged before it is answered.
pub fn serve(listener: &TcpListener, instance: Instance, log: impl Fn(&Logged) + Send + Sync + 'static) {
    let tokens = Tokens::new(&instance.instance_id);
    let service = Arc::new(Service { instance, tokens, begun: Instant::now(), log });
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            // Out of file descriptors, or a client that was gone already: either passes.
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS {
            open.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (service, counted) = (service.clone(), open.clone());
        let spawned = std::thread::Builder::new().name("imds".to_owned()).spawn(move || {
            // A client that breaks off is its own business.
            let _ = service.attend(stream);
            counted.fetch_sub(1, Ordering::Relaxed);
        });
        if spawned.is_err() {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

struct Service<L> {
    instance: Instance,
    tokens: Tokens,
    begun: Instant,
    log: L,
}

impl<L: Fn(&Logged)> Service<L> {
    fn attend(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let Some(head) = read_head(&mut stream)? else { return Ok(()) };
        let now = Timestamp::now();
        let (request, response) = match head {
            Head::Whole(request) => {
                let seconds = u64::try_from(now.0).unwrap_or_default();
                let response = answer(&self.instance, &self.tokens, seconds, &request);
                (request, response)
            }
            Head::Partial | Head::Malformed => (Request::default(), Response::error(400)),
        };
        let at = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        (self.log)(&Logged::of(at, &request, response.status));
        stream.write_all(&response.to_bytes(now, request.method == "HEAD"))?;
        // Closing while something is unread would throw away what the client has not read yet.
        stream.shutdown(Shutdown::Write)?;
        stream.set_read_timeout(Some(LINGER))?;
        let begun = Instant::now();
        let mut rest = [0; 4096];
        while begun.elapsed() < LINGER && stream.read(&mut rest)? > 0 {}
        Ok(())
    }
}

/// Nothing when the client left without a word.
fn read_head(stream: &mut TcpStream) -> io::Result<Option<Head>> {
    let begun = Instant::now();
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) if bytes.is_empty() => return Ok(None),
            Ok(0) => return Ok(Some(Head::Malformed)),
            Ok(n) => bytes.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        }
        match http::parse(&bytes) {
            Head::Partial if begun.elapsed() < PATIENCE => {}
            Head::Partial => return Ok(Some(Head::Malformed)),
            head => return Ok(Some(head)),
        }
    }
}
