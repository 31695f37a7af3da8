//! Makes checks on a running machine: those inside it over the channel, the others from outside.

use std::time::{Duration, Instant};

use super::http;
use crate::check::ask::{Answer, answers, batch};
use crate::check::report::{CheckResult, Verdict};
use crate::check::{Check, What};
use crate::vm::ssh::{Key, Ssh};
use crate::vm::{Guest, Vm, VmError, imds};

/// Between two tries.
const PAUSE: Duration = Duration::from_secs(1);
/// At most this many scripts are asked at once.
const BATCH: usize = 40;
/// How much of what a failed check printed is kept.
const OUTPUT: usize = 8 << 10;

/// Asks the metadata service without a token, as old programs do, with nothing but bash.
const IMDS_V1: &str = "exec 2>&1; exec timeout 20 bash -c 'exec 3<>/dev/tcp/169.254.169.254/80 && \
                       printf \"GET /latest/meta-data/instance-id HTTP/1.0\\r\\nHost: 169.254.169.254\\r\\n\\r\\n\" >&3 && \
                       head -n 1 <&3'";

/// A way to ask everything of one machine.
pub(super) struct Asker<'a> {
    pub(super) vm: &'a Vm,
    pub(super) guest: &'a mut dyn Guest,
    /// By how much limits are stretched.
    pub(super) factor: u32,
    pub(super) key: Option<&'a Key>,
    pub(super) login: &'a str,
    pub(super) boot_seconds: Option<f64>,
    pub(super) boot_limit: u32,
    /// Units have failed: what fails with them doesn't mend itself while it is waited for.
    pub(super) degraded: bool,
    pub(super) doing: &'a dyn Fn(&str),
}

/// What a try came to: `Err` is the image's failure.
struct Tried {
    judgement: Result<String, String>,
    output: String,
}

impl Asker<'_> {
    /// Makes all checks, in order, and tells each result.
    pub(super) fn all(&mut self, checks: &[Check], told: &mut dyn FnMut(CheckResult)) -> Result<(), VmError> {
        let mut rest = checks;
        while let Some(first) = rest.first() {
            let count = rest.iter().take(BATCH).take_while(|c| is_quick(c)).count();
            if count > 1 {
                let (now, later) = rest.split_at(count);
                self.quick(now, told)?;
                rest = later;
            } else {
                (self.doing)(&format!("checking {}", first.name));
                told(self.one(first, None)?);
                rest = &rest[1..];
            }
        }
        Ok(())
    }

    /// Asks many small questions at once; a round trip into an emulated machine costs more than most of them.
    fn quick(&mut self, checks: &[Check], told: &mut dyn FnMut(CheckResult)) -> Result<(), VmError> {
        (self.doing)(&format!("{} small checks", checks.len()));
        let begun = Instant::now();
        let scripts: Vec<(String, Duration)> =
            checks.iter().map(|c| (c.script().unwrap_or_default(), c.timeout * self.factor)).collect();
        let limit = scripts.iter().map(|(_, limit)| *limit).max().unwrap_or_default() * 4;
        let said = self.guest.run(&batch(&scripts), limit)?;
        let took = begun.elapsed() / u32::try_from(checks.len()).unwrap_or(1);
        for (check, answer) in checks.iter().zip(answers(&said.stdout, checks.len())) {
            let first = answer.map(|answer| (self.judged(check, &answer), took));
            told(self.one(check, first)?);
        }
        Ok(())
    }

    /// One check with its retries; `first` is what the first try came to, when it was made already.
    fn one(&mut self, check: &Check, mut first: Option<(Tried, Duration)>) -> Result<CheckResult, VmError> {
        let mut begun = Instant::now();
        if let Some((_, took)) = &first {
            begun = begun.checked_sub(*took).unwrap_or(begun);
        }
        let mut tries = 0;
        loop {
            tries += 1;
            let tried = match first.take() {
                Some((tried, _)) => tried,
                None => self.attempt(check)?,
            };
            if tried.judgement.is_ok() || self.degraded || tries > check.retry {
                return Ok(result(check, tried, begun.elapsed(), tries));
            }
            self.vm.news(&mut self.vm.line_count(), "the next try")?;
            std::thread::sleep(PAUSE);
        }
    }

    fn attempt(&mut self, check: &Check) -> Result<Tried, VmError> {
        let limit = check.timeout * self.factor;
        let plain = |judgement| Tried { judgement, output: String::new() };
        Ok(match &check.what {
            What::BootTime => plain(self.boot_time()),
            What::Http(wanted) => plain(http::ask(self.vm, wanted, limit)?),
            What::ImdsV1Refused => plain(self.imds_v1(limit)?),
            What::SshLogin => plain(self.ssh_login(limit)?),
            What::Reboot | What::UserData { .. } => plain(Err("this takes a machine of its own".to_owned())),
            _ => {
                let script = check.script().unwrap_or_default();
                let said = self.guest.run(&script, limit)?;
                let answer = Answer { status: said.status, stdout: said.stdout, stderr: said.stderr };
                self.judged(check, &answer)
            }
        })
    }

    fn judged(&self, check: &Check, answer: &Answer) -> Tried {
        let stretched = Check { timeout: check.timeout * self.factor, ..check.clone() };
        Tried { judgement: stretched.judge(answer), output: said(answer) }
    }

    fn boot_time(&self) -> Result<String, String> {
        let limit = f64::from(self.boot_limit * self.factor);
        match self.boot_seconds {
            Some(took) if took <= limit => Ok(format!("up after {took:.1} s")),
            Some(took) => Err(format!("up after {took:.1} s instead of {limit:.0} s")),
            None => Err("it did not come up".to_owned()),
        }
    }

    fn imds_v1(&mut self, limit: Duration) -> Result<Result<String, String>, VmError> {
        let said = self.guest.run(IMDS_V1, limit)?;
        let (answered, refused) = imds::version_1(&self.vm.metadata_log());
        let line = said.stdout.lines().next().unwrap_or_default().trim().to_owned();
        Ok(if line.contains(" 401 ") && answered == 0 && refused > 0 {
            Ok(format!("refused: {line}"))
        } else {
            Err(format!(
                "a caller without token got `{line}` instead of 401 ({answered} such requests were answered, {refused} refused)"
            ))
        })
    }

    fn ssh_login(&mut self, limit: Duration) -> Result<Result<String, String>, VmError> {
        let Some(key) = self.key else { return Ok(Err("this machine has no key".to_owned())) };
        let mut ssh = match Ssh::log_in(self.vm, key, self.login, limit) {
            Ok(ssh) => ssh,
            Err(VmError::Timeout { what, .. }) => return Ok(Err(format!("no {what}"))),
            Err(VmError::Channel(why)) => return Ok(Err(why)),
            Err(e) => return Err(e),
        };
        let said = ssh.run("id -un; hostname", limit)?;
        let words: Vec<&str> = said.stdout.split_whitespace().collect();
        Ok(match words[..] {
            ["root", host] => Ok(format!("{} logged in to {host} and became root", self.login)),
            _ => Err(format!("{} logged in, but did not become root: {}", self.login, said.stderr.trim())),
        })
    }
}

/// Asked with others: what ends at once and needs no way of its own.
fn is_quick(check: &Check) -> bool {
    let own = matches!(check.what, What::Command { .. } | What::Script { .. } | What::Packages { .. });
    !own && check.script().is_some()
}

fn said(answer: &Answer) -> String {
    let text = [answer.stdout.trim_end(), answer.stderr.trim_end()].join("\n");
    let text = text.trim();
    // The end tells more than the beginning.
    let from = text.len().saturating_sub(OUTPUT);
    let from = (from..=text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    text[from..].to_owned()
}

fn result(check: &Check, tried: Tried, took: Duration, tries: u32) -> CheckResult {
    let failed = tried.judgement.is_err();
    let detail = match tried.judgement {
        Ok(found) => found,
        Err(wrong) => wrong,
    };
    CheckResult {
        name: check.name.clone(),
        kind: check.what.kind().to_owned(),
        verdict: if failed { Verdict::Failed } else { Verdict::Passed },
        detail,
        output: if failed { tried.output } else { String::new() },
        seconds: took.as_secs_f64(),
        tries,
    }
}

/// The result of a reboot.
pub(super) fn again(name: &str, took: Duration, ended: Result<(), &VmError>) -> CheckResult {
    let detail = match ended {
        Ok(()) => format!("up again after {:.1} s", took.as_secs_f64()),
        Err(e) => e.to_string().lines().next().unwrap_or_default().to_owned(),
    };
    CheckResult {
        name: name.to_owned(),
        kind: What::Reboot.kind().to_owned(),
        verdict: if ended.is_ok() { Verdict::Passed } else { Verdict::Failed },
        detail,
        output: String::new(),
        seconds: took.as_secs_f64(),
        tries: 1,
    }
}
