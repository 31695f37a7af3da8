//! What a check makes of an answer.

use std::collections::BTreeMap;

use regex::{Regex, RegexBuilder};

use super::ask::Answer;
use super::{Check, FileFacts, What};

/// `Ok`: what was found, on one line; `Err`: what was found and what was expected.
pub type Judgement = Result<String, String>;

/// How large a regular expression may become, in bytes.
const PATTERN_LIMIT: usize = 1 << 20;

impl Check {
    /// Whether the answer to [`Check::script`] is as it should be.
    ///
    /// # Errors
    /// What is wrong, on one line.
    pub fn judge(&self, answer: &Answer) -> Judgement {
        // What nobody expects to take long was stopped; a command may itself end with 124, and expect it.
        if answer.status == 124 && !matches!(&self.what, What::Command { status: 124, .. }) {
            return Err(format!("no end within its limit of {} s", self.timeout.as_secs()));
        }
        match &self.what {
            What::Command { status, output, .. } => command(answer, *status, output.as_deref()),
            What::Script { .. } => command(answer, 0, None),
            What::Unit { may_rest, .. } => unit(answer, *may_rest),
            What::Masked { .. } => masked(answer),
            What::NoFailedUnit => no_failed_unit(answer),
            What::Port(port) => match answer.stdout.trim() {
                "" => Err(format!("nothing listens on port {port}")),
                _ => Ok(format!("port {port} is listened on")),
            },
            What::File(facts) => file(answer, facts),
            What::User { name, uid, home, shell } => {
                let wanted = [
                    (2, "uid", uid.map(|n| n.to_string())),
                    (5, "home", home.clone()),
                    (6, "shell", shell.clone()),
                ];
                account(answer, "user", name, &wanted)
            }
            What::Group { name, gid } => {
                account(answer, "group", name, &[(2, "gid", gid.map(|n| n.to_string()))])
            }
            What::Sysctl { key, value } => sysctl(answer, key, value),
            What::Mount { path, fs } => mount(answer, path, fs),
            What::Swap => match answer.stdout.lines().nth(1) {
                Some(line) => Ok(format!("swap on {}", line.split_whitespace().next().unwrap_or_default())),
                None => Err("no swap is on".to_owned()),
            },
            What::RootSize { at_least } => root_size(answer, *at_least),
            What::Packages { except } => packages(answer, except),
            What::BootTime
            | What::Http(_)
            | What::ImdsV1Refused
            | What::SshLogin
            | What::Reboot
            | What::UserData { .. } => Err("this is not asked inside the system".to_owned()),
        }
    }
}

/// A pattern as profiles write it: `^` and `$` are the ends of a line.
///
/// # Errors
/// What is wrong with it.
pub fn pattern(text: &str) -> Result<Regex, String> {
    RegexBuilder::new(text)
        .multi_line(true)
        .size_limit(PATTERN_LIMIT)
        .build()
        .map_err(|e| format!("`{text}` is no regular expression: {}", last_line(&e.to_string())))
}

fn last_line(text: &str) -> &str {
    text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or_default().trim().trim_start_matches("error: ")
}

/// The first line that isn't empty, cut to a readable length.
fn first_line(text: &str) -> String {
    let line = text.lines().map(str::trim).find(|l| !l.is_empty()).unwrap_or("nothing");
    let cut: String = line.chars().take(120).collect();
    if cut.len() < line.len() { cut + "…" } else { cut }
}

fn matched(what: &str, text: &str, wanted: &str) -> Judgement {
    match pattern(wanted)?.find(text) {
        Some(found) => Ok(format!("{what} has `{}`", first_line(found.as_str()))),
        None => {
            Err(format!("{what} has no line that matches `{wanted}`; it begins with: {}", first_line(text)))
        }
    }
}

fn command(answer: &Answer, status: i32, output: Option<&str>) -> Judgement {
    if answer.status != status {
        let said = if answer.stderr.trim().is_empty() { &answer.stdout } else { &answer.stderr };
        return Err(format!("ended with status {} instead of {status}: {}", answer.status, first_line(said)));
    }
    match output {
        Some(wanted) => matched("its output", &answer.stdout, wanted),
        None => Ok(format!("ended with status {status}")),
    }
}

fn unit(answer: &Answer, may_rest: bool) -> Judgement {
    let facts: BTreeMap<&str, &str> = answer.stdout.lines().filter_map(|l| l.split_once('=')).collect();
    let fact = |name: &str| facts.get(name).copied().unwrap_or_default();
    if fact("LoadState") != "loaded" {
        return Err(match fact("LoadState") {
            "" => format!("systemctl gave no answer: {}", first_line(&answer.stderr)),
            "not-found" => "there is no such unit".to_owned(),
            other => format!("it is {other}"),
        });
    }
    let state = format!("{} ({})", fact("ActiveState"), fact("SubState"));
    match fact("ActiveState") {
        "active" | "reloading" => Ok(state),
        "inactive" if may_rest && fact("ConditionResult") == "no" => {
            Ok("not needed: its condition isn't met".to_owned())
        }
        "inactive" if may_rest && matches!(fact("Result"), "success" | "") => {
            Ok(format!("{state}, its work done"))
        }
        _ => {
            let result = fact("Result");
            let why =
                if matches!(result, "" | "success") { String::new() } else { format!(", result {result}") };
            Err(format!("it is {state}{why}"))
        }
    }
}

fn masked(answer: &Answer) -> Judgement {
    match answer.stdout.lines().find_map(|l| l.strip_prefix("LoadState=")) {
        Some("masked") => Ok("masked".to_owned()),
        Some(other) => Err(format!("it is {other} instead of masked")),
        None => Err(format!("systemctl gave no answer: {}", first_line(&answer.stderr))),
    }
}

fn no_failed_unit(answer: &Answer) -> Judgement {
    let failed: Vec<&str> = answer.stdout.lines().filter(|l| !l.is_empty()).collect();
    match failed[..] {
        [] if answer.status == 0 => Ok("no unit failed".to_owned()),
        [] => Err(format!("systemctl gave no answer: {}", first_line(&answer.stderr))),
        [one] => Err(format!("{one} failed")),
        _ => Err(format!("{} units failed: {}", failed.len(), failed.join(", "))),
    }
}

fn file(answer: &Answer, facts: &FileFacts) -> Judgement {
    let mut lines = answer.stdout.splitn(3, '\n');
    let (stat, digest, text) = (
        lines.next().unwrap_or_default(),
        lines.next().unwrap_or_default(),
        lines.next().unwrap_or_default(),
    );
    match (stat == "missing", facts.exists) {
        (true, true) => return Err("it is not there".to_owned()),
        (true, false) => return Ok("it is not there, as it should be".to_owned()),
        (false, false) => return Err("it is there, but should not be".to_owned()),
        (false, true) => {}
    }
    let words: Vec<&str> = stat.splitn(6, ' ').collect();
    let [mode, user, group, uid, gid, kind] = words[..] else {
        return Err(format!("it can't be looked at: {}", first_line(&answer.stderr)));
    };
    let mut wrong = Vec::new();
    if let Some(wanted) = facts.mode
        && u32::from_str_radix(mode, 8) != Ok(wanted)
    {
        wrong.push(format!("mode {mode} instead of {wanted:o}"));
    }
    for (what, wanted, name, number) in
        [("owner", &facts.user, user, uid), ("group", &facts.group, group, gid)]
    {
        if let Some(wanted) = wanted
            && wanted != name
            && wanted != number
        {
            wrong.push(format!("{what} {name} instead of {wanted}"));
        }
    }
    if let Some(wanted) = facts.sha256 {
        let found = digest.split(' ').next().unwrap_or_default();
        if found != wanted.to_string() {
            let found: String = found.chars().take(12).collect();
            wrong.push(format!("SHA-256 {found}… instead of {}…", wanted.short()));
        }
    }
    if let Some(wanted) = &facts.contains
        && let Err(why) = matched("it", text, wanted)
    {
        wrong.push(why);
    }
    if wrong.is_empty() { Ok(format!("{kind}, {mode} {user}:{group}")) } else { Err(wrong.join("; ")) }
}

fn account(answer: &Answer, what: &str, name: &str, wanted: &[(usize, &str, Option<String>)]) -> Judgement {
    let Some(line) = answer.stdout.lines().find(|l| l.split(':').next() == Some(name)) else {
        return Err(format!("there is no {what} {name}"));
    };
    let fields: Vec<&str> = line.split(':').collect();
    let wrong: Vec<String> = wanted
        .iter()
        .filter_map(|(at, field, wanted)| {
            Some((field, wanted.as_deref()?, fields.get(*at).copied().unwrap_or_default()))
        })
        .filter(|(_, wanted, found)| wanted != found)
        .map(|(field, wanted, found)| format!("{field} {found} instead of {wanted}"))
        .collect();
    let number = fields.get(2).copied().unwrap_or_default();
    if wrong.is_empty() { Ok(format!("{what} {name} ({number})")) } else { Err(wrong.join("; ")) }
}

fn sysctl(answer: &Answer, key: &str, value: &str) -> Judgement {
    if answer.status != 0 {
        return Err(format!("the kernel has no parameter {key}"));
    }
    let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (found, wanted) = (plain(&answer.stdout), plain(value));
    if found == wanted {
        Ok(format!("{key} = {found}"))
    } else {
        Err(format!("{key} is {found} instead of {wanted}"))
    }
}

fn mount(answer: &Answer, path: &str, fs: &str) -> Judgement {
    // What was mounted last lies on top.
    let Some((device, found)) = answer.stdout.lines().next_back().and_then(|l| l.rsplit_once(' ')) else {
        return Err(format!("nothing is mounted at {path}"));
    };
    let auto = device == "systemd-1" || found == "autofs";
    if fs.is_empty() || fs == found || fs == "auto" || auto {
        Ok(format!("{device} ({found})"))
    } else {
        Err(format!("{device} is mounted at {path} as {found} instead of {fs}"))
    }
}

fn root_size(answer: &Answer, at_least: u64) -> Judgement {
    let numbers: Vec<u64> = answer.stdout.split_whitespace().filter_map(|w| w.parse().ok()).collect();
    let [block, blocks] = numbers[..] else {
        return Err(format!("`stat` gave no answer: {}", first_line(&answer.stderr)));
    };
    let mib = |bytes: u64| bytes >> 20;
    let size = block.saturating_mul(blocks);
    if size >= at_least {
        Ok(format!("the root has {} MiB", mib(size)))
    } else {
        Err(format!(
            "the root has {} MiB instead of at least {} MiB: it did not grow",
            mib(size),
            mib(at_least)
        ))
    }
}

/// `dpkg --verify` prints `??5?????? c /path`, or `missing     /path`.
fn packages(answer: &Answer, except: &[String]) -> Judgement {
    if answer.status == 42 {
        return Ok("this system has no dpkg".to_owned());
    }
    let path_of = |line: &str| line.find('/').map(|at| line[at..].trim_end().to_owned());
    let mut changed: Vec<String> =
        answer.stdout.lines().filter_map(path_of).filter(|path| !except.contains(path)).collect();
    let audit = answer.stderr.trim();
    match (changed.len(), audit.is_empty()) {
        (0, true) => Ok("all files of all packages are as they were installed".to_owned()),
        (0, false) => Err(format!("dpkg --audit: {}", first_line(audit))),
        (count, _) => {
            changed.truncate(5);
            Err(format!("{count} files of packages are changed or missing: {}", changed.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer(status: i32, stdout: &str, stderr: &str) -> Answer {
        Answer { status, stdout: stdout.into(), stderr: stderr.into() }
    }

    fn judged(what: What, stdout: &str) -> Judgement {
        Check::new("x", what).judge(&answer(0, stdout, ""))
    }

    #[test]
    fn commands() {
        let what = |output: Option<&str>| What::Command {
            command: String::new(),
            status: 0,
            output: output.map(str::to_owned),
        };
        assert_eq!(judged(what(Some("^b+$")), "a\nbb\n"), Ok("its output has `bb`".into()));
        assert_eq!(
            judged(what(Some("^c")), "a\nbb\n"),
            Err("its output has no line that matches `^c`; it begins with: a".into())
        );
        assert!(judged(what(Some("(")), "").unwrap_err().contains("is no regular expression"));
        let failed = Check::new("x", what(None)).judge(&answer(7, "", "it broke\nbadly"));
        assert_eq!(failed, Err("ended with status 7 instead of 0: it broke".into()));
        let late = Check::new("x", what(None)).judge(&answer(124, "", ""));
        assert_eq!(late, Err("no end within its limit of 30 s".into()));
    }

    #[test]
    fn units() {
        let unit = |may_rest| What::Unit { name: "x.service".into(), may_rest };
        let active = "LoadState=loaded\nActiveState=active\nSubState=running\nResult=success\n";
        assert_eq!(judged(unit(false), active), Ok("active (running)".into()));
        let dead =
            "LoadState=loaded\nActiveState=inactive\nSubState=dead\nResult=success\nConditionResult=yes\n";
        assert_eq!(judged(unit(true), dead), Ok("inactive (dead), its work done".into()));
        assert_eq!(judged(unit(false), dead), Err("it is inactive (dead)".into()));
        let failed = "LoadState=loaded\nActiveState=failed\nSubState=failed\nResult=exit-code\n";
        assert_eq!(judged(unit(true), failed), Err("it is failed (failed), result exit-code".into()));
        assert_eq!(judged(unit(true), "LoadState=not-found\n"), Err("there is no such unit".into()));
        assert!(judged(unit(true), "").is_err());
        let masked = What::Masked { name: "x.service".into() };
        assert_eq!(judged(masked.clone(), "LoadState=masked\n"), Ok("masked".into()));
        assert!(judged(masked, active).is_err());
        assert_eq!(
            judged(What::NoFailedUnit, "a.service\nb.mount\n"),
            Err("2 units failed: a.service, b.mount".into())
        );
        assert!(judged(What::NoFailedUnit, "").is_ok());
    }

    #[test]
    fn files() {
        let facts = FileFacts { path: "/x".into(), exists: true, ..FileFacts::default() };
        let said = "644 root root 0 0 regular file\n-\nhello\nworld\n";
        assert_eq!(judged(What::File(facts.clone()), said), Ok("regular file, 644 root:root".into()));
        let wrong = FileFacts {
            mode: Some(0o600),
            user: Some("web".into()),
            contains: Some("^w.*x".into()),
            ..facts.clone()
        };
        assert_eq!(
            judged(What::File(wrong), said),
            Err("mode 644 instead of 600; owner root instead of web; it has no line that matches `^w.*x`; it begins with: hello".into())
        );
        assert_eq!(judged(What::File(facts.clone()), "missing\n"), Err("it is not there".into()));
        let none = FileFacts { exists: false, ..facts };
        assert!(judged(What::File(none.clone()), "missing\n").is_ok());
        assert!(judged(What::File(none), said).is_err());
    }

    #[test]
    fn accounts_sysctl_mounts_and_sizes() {
        let user =
            What::User { name: "web".into(), uid: Some(900), home: None, shell: Some("/bin/sh".into()) };
        assert_eq!(judged(user.clone(), "web:x:900:900::/home/web:/bin/sh\n"), Ok("user web (900)".into()));
        assert_eq!(judged(user.clone(), "web:x:901:900::/:/bin/sh\n"), Err("uid 901 instead of 900".into()));
        assert_eq!(judged(user, ""), Err("there is no user web".into()));
        let sysctl = What::Sysctl { key: "a.b".into(), value: "1 2".into() };
        assert!(judged(sysctl.clone(), "1\t2\n").is_ok());
        assert_eq!(judged(sysctl, "3\n"), Err("a.b is 3 instead of 1 2".into()));
        let mount = What::Mount { path: "/data".into(), fs: "ext4".into() };
        assert!(judged(mount.clone(), "/dev/vdb ext4\n").is_ok());
        assert_eq!(
            judged(mount.clone(), "/dev/vdb xfs\n"),
            Err("/dev/vdb is mounted at /data as xfs instead of ext4".into())
        );
        assert_eq!(judged(mount, ""), Err("nothing is mounted at /data".into()));
        assert!(judged(What::RootSize { at_least: 4096 * 100 }, "4096 100\n").is_ok());
        assert!(judged(What::RootSize { at_least: 4096 * 101 }, "4096 100\n").is_err());
    }

    #[test]
    fn changed_files_of_packages() {
        let packages = What::Packages { except: vec!["/etc/motd".into()] };
        assert!(judged(packages.clone(), "??5?????? c /etc/motd\n").is_ok());
        assert_eq!(
            judged(packages, "??5?????? c /etc/motd\nmissing     /usr/bin/x y\n"),
            Err("1 files of packages are changed or missing: /usr/bin/x y".into())
        );
    }

    proptest! {
        #[test]
        fn no_answer_panics(stdout in ".{0,200}", stderr in ".{0,50}", status in any::<i32>()) {
            let said = answer(status, &stdout, &stderr);
            let facts = FileFacts { exists: true, contains: Some("x".into()), mode: Some(0o644), ..FileFacts::default() };
            for what in [
                What::Unit { name: String::new(), may_rest: true }, What::NoFailedUnit, What::Port(1), What::Swap,
                What::File(facts), What::Group { name: String::new(), gid: Some(1) }, What::RootSize { at_least: 1 },
                What::Mount { path: String::new(), fs: String::new() }, What::Packages { except: vec![] },
            ] {
                let _ = Check::new("x", what).judge(&said);
            }
        }
    }
}
