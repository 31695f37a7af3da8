//! Messages of the initrd: into the kernel's log, and failures on the console as well.

use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::Write;

/// syslog's priorities, as /dev/kmsg takes them.
const ERROR: u8 = 3;
const WARNING: u8 = 4;
const NOTICE: u8 = 5;

/// Whether the kernel shows messages of this priority on its consoles.
fn shown(priority: u8) -> bool {
    let levels = fs::read_to_string("/proc/sys/kernel/printk").unwrap_or_default();
    let level = levels.split_whitespace().next().and_then(|level| level.parse::<u8>().ok());
    level.is_some_and(|level| priority < level)
}

/// Where messages go.
#[derive(Debug, Default)]
pub struct Console {
    log: Option<File>,
}

impl Console {
    /// Opens the kernel's log; without it, messages go to the console.
    #[must_use]
    pub fn open() -> Console {
        Console { log: OpenOptions::new().write(true).open("/dev/kmsg").ok() }
    }

    /// Something that is as it should be; seen on the console unless the command line says `quiet`.
    pub fn say(&self, message: impl Display) {
        self.write(NOTICE, &message.to_string());
    }

    /// Something that isn't as it should be but doesn't stop the boot.
    pub fn warn(&self, message: impl Display) {
        self.write(WARNING, &message.to_string());
    }

    /// Why there is no boot: who looks at a machine that doesn't start must find the reason. The log reaches every console of
    /// the kernel; where its level keeps even errors off them, the message is written there too.
    pub fn fail(&self, message: impl Display) {
        let message = message.to_string();
        self.write(ERROR, &message);
        if self.log.is_some() && !shown(ERROR) {
            Console::print(&message);
        }
    }

    fn write(&self, priority: u8, message: &str) {
        // A record of the log is one write; a line break would only be shown as an escape.
        let record = format!("<{priority}>kiln: {}\n", message.replace('\n', " "));
        match &self.log {
            Some(log) if (&*log).write_all(record.as_bytes()).is_ok() => {}
            _ => Console::print(message),
        }
    }

    fn print(message: &str) {
        let Ok(mut console) = OpenOptions::new().write(true).open("/dev/console") else { return };
        // A console that fails can't be told of it.
        let _ = console.write_all(format!("kiln: {message}\r\n").as_bytes());
    }
}
