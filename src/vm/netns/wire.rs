//! What Kiln and the process in the namespace say to each other: one JSON value a line.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use super::super::imds::Logged;

/// The socket's name in the machine's folder, through which connections are led into the namespace.
pub(super) const GATE: &str = "net.sock";
/// The gate's first byte: whether something listens there.
pub(super) const CONNECTED: u8 = 1;
/// The gate's first byte: nothing listens there.
pub(super) const REFUSED: u8 = 0;

/// What the process tells.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Event {
    /// The namespace is there; whether a user namespace had to be made around it.
    Ready { users: bool },
    /// It can't be made.
    Failed { doing: String, why: String, number: Option<i32> },
    /// The metadata service was asked something.
    Asked(Logged),
}

/// Tells an event. Nobody listening any more is no error of its own: the process is about to end then.
pub(super) fn tell(event: &Event) {
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    let mut out = io::stdout().lock();
    let _ = out.write_all(&line).and_then(|()| out.flush());
}
