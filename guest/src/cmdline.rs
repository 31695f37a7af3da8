//! The kernel's command line, as far as it tells the initrd what to do.

use crate::generation::is_system_name;
use crate::verity::RootHash;

/// What is to be done when a system can't be started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// The machine starts anew, after a time in which somebody may read why: the boot loader then tries again, or takes the
    /// generation before.
    #[default]
    Reboot,
    /// The machine stops.
    Halt,
}

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Identity of the partition with store and state, in lower case.
    pub partition: String,
    /// File name of the system's image in the store.
    pub system: String,
    /// What all of the image must amount to.
    pub roothash: RootHash,
    /// Whether the partition takes the whole disk.
    pub grow: bool,
    /// Whether the state is to be wiped.
    pub lustrate: bool,
    /// Whether every block of the image is checked before it is used.
    pub verify_all: bool,
    /// The program that takes over.
    pub init: String,
}

/// A command line that doesn't tell what to start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CmdlineError {
    /// An argument that must be there.
    #[error("the kernel's command line has no {0}=")]
    Missing(&'static str),
    /// An argument's value that is none.
    #[error("the kernel's command line says {key}={value}, which is no {what}")]
    Value {
        /// The argument.
        key: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        what: &'static str,
    },
}

/// The arguments of a command line: separated by blanks, double quotes keep blanks together (as the kernel's `next_arg` has
/// it). What follows ` -- ` is meant for the first process, not for us.
#[must_use]
pub fn arguments(line: &str) -> Vec<String> {
    let mut arguments = vec![String::new()];
    let mut quoted = false;
    for c in line.trim_end_matches(['\n', '\0']).chars() {
        match c {
            '"' => quoted = !quoted,
            c if c.is_ascii_whitespace() && !quoted => arguments.push(String::new()),
            c => arguments.last_mut().into_iter().for_each(|last| last.push(c)),
        }
    }
    arguments.retain(|argument| !argument.is_empty());
    arguments
}

/// The value of the last argument with this name: later ones overrule earlier ones.
#[must_use]
pub fn value<'a>(arguments: &'a [String], key: &str) -> Option<&'a str> {
    let before = arguments.iter().take_while(|a| *a != "--");
    before.filter_map(|a| a.strip_prefix(key)?.strip_prefix('=')).last()
}

/// Whether a flag is given; `name=0`, `no` and `off` take it back.
#[must_use]
pub fn flag(arguments: &[String], name: &str) -> bool {
    match value(arguments, name) {
        Some(value) => !matches!(value, "0" | "no" | "off"),
        None => arguments.iter().take_while(|a| *a != "--").any(|a| a == name),
    }
}

impl OnFailure {
    /// What the command line asks for.
    #[must_use]
    pub fn of(arguments: &[String]) -> OnFailure {
        match value(arguments, "kiln.failure") {
            Some("halt") => OnFailure::Halt,
            _ => OnFailure::Reboot,
        }
    }
}

impl Request {
    /// What the command line asks for.
    ///
    /// # Errors
    /// [`CmdlineError`].
    pub fn of(arguments: &[String]) -> Result<Request, CmdlineError> {
        let text = |key| value(arguments, key).ok_or(CmdlineError::Missing(key));
        let wrong = |key, value: &str, what| CmdlineError::Value { key, value: value.to_owned(), what };
        let (partition, system, roothash) =
            (text("kiln.partition")?, text("kiln.system")?, text("kiln.roothash")?);
        if !is_system_name(system) {
            return Err(wrong("kiln.system", system, "name of a system's image"));
        }
        Ok(Request {
            partition: partition.to_ascii_lowercase(),
            system: system.to_owned(),
            roothash: roothash.parse().map_err(|_| wrong("kiln.roothash", roothash, "SHA-256"))?,
            grow: flag(arguments, "kiln.grow"),
            lustrate: flag(arguments, "kiln.lustrate"),
            verify_all: value(arguments, "kiln.verify") == Some("full"),
            init: value(arguments, "init").unwrap_or("/sbin/init").to_owned(),
        })
    }
}

/// The parameters that the command line has for a module (`module.parameter=value`), which modprobe(8) would hand over.
#[must_use]
pub fn module_parameters(arguments: &[String], module: &str) -> String {
    let same = |name: &str| name.replace('-', "_") == module.replace('-', "_");
    let parameters = arguments.iter().filter_map(|argument| {
        let (name, parameter) = argument.split_once('.')?;
        let needs_quotes = parameter.contains(char::is_whitespace);
        same(name).then(|| match parameter.split_once('=') {
            Some((key, value)) if needs_quotes => format!("{key}=\"{value}\""),
            _ => parameter.to_owned(),
        })
    });
    parameters.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(more: &str) -> Vec<String> {
        let digest = "0123456789abcdef".repeat(4);
        arguments(&format!("kiln.partition=AB-12 kiln.system={digest}-web kiln.roothash={digest} {more}\n"))
    }

    #[test]
    fn a_request_is_read() {
        let request = Request::of(&line("quiet kiln.grow console=ttyS0")).unwrap();
        assert_eq!(request.partition, "ab-12");
        assert!(request.system.ends_with("-web"));
        assert!(request.grow && !request.lustrate && !request.verify_all);
        assert_eq!(request.init, "/sbin/init");
        let request = Request::of(&line("kiln.lustrate kiln.verify=full init=/bin/x kiln.grow=0")).unwrap();
        assert!(request.lustrate && request.verify_all && !request.grow);
        assert_eq!(request.init, "/bin/x");
        assert_eq!(OnFailure::of(&line("")), OnFailure::Reboot);
        assert_eq!(OnFailure::of(&line("kiln.failure=halt")), OnFailure::Halt);
        assert_eq!(OnFailure::of(&line("kiln.failure=halt kiln.failure=reboot")), OnFailure::Reboot);
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let error = |text: &str| Request::of(&arguments(text)).unwrap_err().to_string();
        assert_eq!(error("quiet"), "the kernel's command line has no kiln.partition=");
        assert_eq!(
            error("kiln.partition=1 kiln.system=../x kiln.roothash=1"),
            "the kernel's command line says kiln.system=../x, which is no name of a system's image"
        );
        let text = line("kiln.roothash=12").join(" ");
        assert_eq!(error(&text), "the kernel's command line says kiln.roothash=12, which is no SHA-256");
    }

    #[test]
    fn arguments_follow_the_kernels_rules() {
        let found = arguments("a \"b c\" d=\"e f\"  g -- kiln.lustrate");
        assert_eq!(found, ["a", "b c", "d=e f", "g", "--", "kiln.lustrate"]);
        assert!(!flag(&found, "kiln.lustrate") && flag(&found, "g"));
    }

    #[test]
    fn modules_get_their_parameters() {
        let arguments =
            arguments("nvme_core.io_timeout=4294967295 nvme-core.multipath=N \"loop.name=a b\" x.y");
        assert_eq!(module_parameters(&arguments, "nvme-core"), "io_timeout=4294967295 multipath=N");
        assert_eq!(module_parameters(&arguments, "loop"), "name=\"a b\"");
        assert_eq!(module_parameters(&arguments, "nvme"), "");
    }
}
