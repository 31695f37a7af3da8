//! QEMU's monitor protocol: a line of JSON for each command, answer and event (QEMU's docs/interop/qmp-spec).

use serde_json::{Value, json};

/// A line that QEMU wrote.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// The answer to a command: what it returns, or the error's description.
    Reply {
        /// Number of the command.
        id: u64,
        /// Its result.
        result: Result<Value, String>,
    },
    /// Something happened.
    Event {
        /// Its name, as in `SHUTDOWN`.
        name: String,
        /// What belongs to it.
        data: Value,
    },
    /// The greeting, or something that Kiln doesn't know.
    Other,
}

/// Reads one line.
#[must_use]
pub fn parse(line: &[u8]) -> Message {
    let Ok(mut value) = serde_json::from_slice::<Value>(line) else { return Message::Other };
    if let Some(name) = value.get("event").and_then(Value::as_str) {
        return Message::Event { name: name.to_owned(), data: value["data"].take() };
    }
    let Some(id) = value.get("id").and_then(Value::as_u64) else { return Message::Other };
    let result = match value.get("error") {
        Some(error) => Err(error.get("desc").and_then(Value::as_str).unwrap_or("unknown error").to_owned()),
        None => Ok(value["return"].take()),
    };
    Message::Reply { id, result }
}

/// A command as a line.
#[must_use]
pub fn command(id: u64, name: &str, arguments: &Value) -> Vec<u8> {
    let mut command = json!({ "execute": name, "id": id });
    if !arguments.is_null() {
        command["arguments"] = arguments.clone();
    }
    let mut line = command.to_string().into_bytes();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn answers_and_events_are_told_apart() {
        assert_eq!(
            parse(br#"{"return": {"status": "running"}, "id": 7}"#),
            Message::Reply { id: 7, result: Ok(json!({"status": "running"})) }
        );
        assert_eq!(
            parse(br#"{"id": 8, "error": {"class": "GenericError", "desc": "no such device"}}"#),
            Message::Reply { id: 8, result: Err("no such device".to_owned()) }
        );
        assert_eq!(
            parse(br#"{"timestamp": {}, "event": "SHUTDOWN", "data": {"reason": "guest-reset"}}"#),
            Message::Event { name: "SHUTDOWN".to_owned(), data: json!({"reason": "guest-reset"}) }
        );
        assert_eq!(parse(br#"{"QMP": {"version": {}}}"#), Message::Other);
    }

    #[test]
    fn a_command_is_a_line() {
        let line = command(3, "device_del", &json!({ "id": "p0" }));
        assert_eq!(line, b"{\"execute\":\"device_del\",\"id\":3,\"arguments\":{\"id\":\"p0\"}}\n");
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(line in any::<Vec<u8>>(), json in "[{}\\[\\]\",:a-z0-9]{0,40}") {
            let _ = parse(&line);
            let _ = parse(json.as_bytes());
        }
    }
}
