//! A way into a guest, whichever it is.

use std::time::Duration;

use super::failure::VmError;

/// What a command said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit status; 124 when it ran into its limit.
    pub status: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// How long it took, seen from here.
    pub took: Duration,
}

/// The system once nothing starts or stops any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// What `systemctl is-system-running` says: `running`, `degraded`, ….
    pub state: String,
    /// The units that failed.
    pub failed: Vec<String>,
}

/// Runs commands in a guest as root: over a [`super::Channel`] or over [`super::Ssh`].
pub trait Guest {
    /// Runs a shell script as root and answers what it said, at most 1 MiB of each stream.
    ///
    /// # Errors
    /// [`VmError`]: the machine ended, the way into it broke off, no answer some time after `limit`, Ctrl-C.
    fn run(&mut self, script: &str, limit: Duration) -> Result<Output, VmError>;

    /// Waits until the system has settled: three equal answers a second apart, no job queued, no unit on its way up or
    /// down. (`is-system-running --wait` alone is too early when a service restarts itself.)
    ///
    /// # Errors
    /// [`VmError`] as for [`Guest::run`]; [`VmError::Timeout`] when units keep starting.
    fn wait_until_settled(&mut self, limit: Duration) -> Result<Settled, VmError> {
        let script = SETTLE.replace("LIMIT", &limit.as_secs().to_string());
        let output = self.run(&script, limit + MARGIN)?;
        let mut lines = output.stdout.lines();
        match (output.status, lines.next()) {
            (0, Some(state)) => {
                Ok(Settled { state: state.to_owned(), failed: lines.map(str::to_owned).collect() })
            }
            _ => Err(VmError::Timeout {
                what: "end of the boot: units keep starting".to_owned(),
                limit,
                tail: output.stdout.lines().map(str::to_owned).collect(),
            }),
        }
    }
}

/// The script counts to the limit by itself.
const MARGIN: Duration = Duration::from_secs(20);

/// First line: the state; then the failed units. Status 1 and the jobs at hand when it never settles.
const SETTLE: &str = r#"samples=0 last=
while [ $((i += 1)) -le LIMIT ]; do
  state=$(systemctl is-system-running)
  jobs=$(systemctl list-jobs --no-legend | wc -l)
  moving=$(systemctl list-units --no-legend --plain --state=activating,auto-restart,deactivating,reloading | grep -vc '\.timer')
  now="$state $jobs $moving"
  if [ "$now" = "$last" ] && [ "$jobs $moving" = "0 0" ] && [ "$state" != starting ]; then samples=$((samples + 1)); else samples=0; fi
  last=$now
  if [ $samples -ge 2 ]; then
    echo "$state"
    systemctl --failed --no-legend --plain --full | cut -d' ' -f1
    exit 0
  fi
  sleep 1
done
echo "$last"
systemctl list-jobs --no-legend
systemctl list-units --no-legend --plain --state=activating,auto-restart,deactivating,reloading
exit 1
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shell_reads_our_script() {
        let status = std::process::Command::new("/bin/sh").args(["-n", "-c", SETTLE]).status().unwrap();
        assert!(status.success());
    }
}
