//! `kiln doctor`: what this host can do, tried where that is possible, and what to do about the rest.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use super::Context;
use super::report::Failure;
use crate::store::{Store, StoreError};
use crate::units::{Bytes, GIB};
use crate::vm::Qemu;
use crate::vm::probe::{self, Verdict};

/// Arguments of `kiln doctor`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// A cold build of a server image keeps about this much: packages, tools, trees, one disk and its exports.
const STORE_WANTED: Bytes = Bytes(4 * GIB);
/// A build writes little there: what `grub-mkimage` and the like keep for themselves.
const TMP_WANTED: Bytes = Bytes(GIB / 4);

/// How something on this host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// As it should be.
    Good,
    /// Kiln works, but not at its best.
    Poor,
    /// Kiln can't build here.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    state: State,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Finding {
    fn good(what: &'static str, found: impl Into<String>) -> Finding {
        Finding { what, state: State::Good, found: found.into(), advice: None }
    }

    fn not(what: &'static str, state: State, found: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { what, state, found: found.into(), advice: Some(advice.into()) }
    }
}

/// Looks at everything and prints it.
///
/// # Errors
/// When something is missing without which nothing can be built.
pub fn run(_args: &Args, cx: &Context) -> Result<(), Failure> {
    let open = super::store::open_existing(cx);
    let mut findings =
        vec![kernel(), store(&open), room("temporary files", &std::env::temp_dir(), TMP_WANTED, "TMPDIR")];
    findings.push(scripts());
    findings.push(machines(open.ok().as_ref()));
    let bad = findings.iter().filter(|f| f.state == State::Bad).count();
    cx.print(&findings, || findings.iter().map(|f| line(f, cx.color)).collect())?;
    match bad {
        0 => Ok(()),
        1 => Err(Failure::new("host", "one thing on this host keeps Kiln from building")),
        n => Err(Failure::new("host", format!("{n} things on this host keep Kiln from building"))),
    }
}

fn line(finding: &Finding, color: bool) -> String {
    let (word, code) = match finding.state {
        State::Good => ("ok", "32"),
        State::Poor => ("poor", "33"),
        State::Bad => ("bad", "31"),
    };
    let mark = if color { format!("\x1b[1;{code}m{word:>5}\x1b[0m") } else { format!("{word:>5}") };
    let mut out = format!("{mark}  {:<16} {}\n", finding.what, finding.found);
    if let Some(advice) = &finding.advice {
        let _ = writeln!(out, "{:24}{advice}", "");
    }
    out
}

/// The oldest kernel whose user namespaces, overlays and system calls are known to do.
const KERNEL_WANTED: (u32, u32) = (5, 10);

fn kernel() -> Finding {
    let release = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned());
    let release = release.unwrap_or_else(|_| "unknown".to_owned());
    let mut numbers = release.split(['.', '-']).map_while(|n| n.parse::<u32>().ok());
    let found = format!("Linux {release} on {}", std::env::consts::ARCH);
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) < KERNEL_WANTED => {
            let (major, minor) = KERNEL_WANTED;
            Finding::not(
                "kernel",
                State::Poor,
                found,
                format!("{major}.{minor} is the oldest that Kiln is tried on"),
            )
        }
        _ => Finding::good("kernel", found),
    }
}

fn store(open: &Result<Store, StoreError>) -> Finding {
    match open {
        Ok(store) => room("store", store.root(), STORE_WANTED, SETTING),
        Err(StoreError::Absent(root)) => to_be_made(root),
        Err(e) => {
            let advice = e.hint().unwrap_or("name a folder that you may write to with --store or KILN_STORE");
            Finding::not("store", State::Bad, e.to_string(), advice)
        }
    }
}

/// What names another place for the store.
const SETTING: &str = "KILN_STORE or --store";

/// A store that the first build makes: in the nearest folder above it that is there.
fn to_be_made(root: &Path) -> Finding {
    let above = root.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    if nix::unistd::access(above, nix::unistd::AccessFlags::W_OK).is_err() {
        let advice = format!("name another folder with {SETTING}");
        let found =
            format!("{}: it isn't there yet, and you may not write into {}", root.display(), above.display());
        return Finding::not("store", State::Bad, found, advice);
    }
    let mut finding = room("store", above, STORE_WANTED, SETTING);
    finding.found += &format!(" for {}, which the first build makes", root.display());
    finding
}

/// Whether there is room in a folder's file system.
fn room(what: &'static str, folder: &Path, wanted: Bytes, setting: &str) -> Finding {
    let found = match nix::sys::statvfs::statvfs(folder) {
        Ok(stat) => Bytes(stat.blocks_available() * stat.fragment_size()),
        Err(e) => {
            let advice = format!("name another folder with {setting}");
            return Finding::not(what, State::Bad, format!("{}: {e}", folder.display()), advice);
        }
    };
    let text = format!("{}: {found} free", folder.display());
    if found >= wanted {
        Finding::good(what, text)
    } else {
        let advice =
            format!("a build may need {wanted}: free some (`kiln gc`) or name another folder with {setting}");
        Finding::not(what, State::Poor, text, advice)
    }
}

/// Whether machines run at full speed: the QEMU of a locked tools tree is asked, else the host's.
fn machines(store: Option<&Store>) -> Finding {
    let what = "machines";
    let tools = store
        .and_then(|store| store.dirs().ok())
        .unwrap_or_default()
        .into_iter()
        .find_map(|tree| Qemu::tools(&tree).ok());
    let Some(qemu) = tools.map_or_else(|| Qemu::host().ok(), Some) else {
        return match std::fs::File::options().read(true).write(true).open("/dev/kvm") {
            Ok(_) => {
                let advice = "`kiln run` fetches the locked QEMU and tries it; then ask again";
                Finding::not(what, State::Poor, "/dev/kvm opens; not tried, for there is no QEMU yet", advice)
            }
            Err(e) => slow(&format!("/dev/kvm: {e}")),
        };
    };
    let kvm = tempfile::tempdir()
        .map_err(|e| e.to_string())
        .and_then(|scratch| probe::kvm(&qemu, scratch.path(), None).map_err(|e| e.to_string()));
    let kvm = kvm.unwrap_or_else(Verdict::Broken);
    match kvm {
        Verdict::Works => Finding::good(what, "KVM runs guests"),
        Verdict::StaleFlags => slow("CMPXCHG16B gives wrong results"),
        Verdict::Broken(why) => slow(&why),
    }
}

fn slow(why: &str) -> Finding {
    let advice = "images boot under emulation, about ten times slower; an ordinary user needs the group kvm";
    Finding::not("machines", State::Poor, format!("KVM is of no use: {why}"), advice)
}

/// How packages' scripts run.
fn scripts() -> Finding {
    let what = "sandbox";
    match crate::sandbox::tier() {
        Ok(tier) => Finding::good(what, tier.to_string()),
        Err(refusal) => Finding::not(what, State::Bad, refusal.missing, refusal.help),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_room_is_said_with_both_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let finding = room("store", folder.path(), Bytes(1 << 60), "KILN_STORE");
        assert_eq!(finding.state, State::Poor);
        assert!(finding.advice.unwrap().contains("1048576 TiB") && finding.found.contains("free"));
        let absent = to_be_made(&folder.path().join("not/yet"));
        assert!(absent.found.contains("not/yet, which the first build makes"), "{}", absent.found);
        assert_eq!(room("x", Path::new("/nonexistent"), Bytes(1), "TMPDIR").state, State::Bad);
    }
}
