//! `kiln gc`: frees what no build needs any more.

use std::fmt::Write as _;
use std::time::Duration;

use super::report::Failure;
use super::{Context, store};
use crate::store::{GcOptions, GcReport, StoreError};
use crate::units::Bytes;

/// Arguments of `kiln gc`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Remove only as much as brings the store down to this size, least recently used first, as in 20GiB
    #[arg(long, value_name = "SIZE")]
    max_size: Option<Bytes>,
    /// Keep also what was used within this time, as in 12h or 7d
    #[arg(long, value_name = "TIME", value_parser = parse_age)]
    keep: Option<Duration>,
    /// Forget the results of all steps as well: the next build does everything again, from packages that it has
    #[arg(long)]
    steps: bool,
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
}

/// Collects, and prints what that freed.
///
/// # Errors
/// When another process is using the store, or something can't be removed.
pub fn run(args: &Args, cx: &Context) -> Result<(), Failure> {
    let store = match store::open_existing(cx) {
        Err(StoreError::Absent(root)) => return store::absent(&root, cx),
        store => store?,
    };
    let options = GcOptions {
        max_size: args.max_size,
        keep: args.keep,
        forget_steps: args.steps,
        dry_run: args.dry_run,
    };
    let report = store.gc(&options)?;
    cx.print(&report, || describe(&report, args.dry_run))
}

fn describe(report: &GcReport, dry_run: bool) -> String {
    let mut out = String::new();
    for out_folder in &report.stale_roots {
        let _ = writeln!(out, "{out_folder} is gone: nothing is kept for it any more");
    }
    for (kind, share) in &report.removed {
        let _ = writeln!(out, "{kind:>9}  {:>7}  {:>10}", share.count, share.size.to_string());
    }
    let verb = if dry_run { "would free" } else { "freed" };
    let _ = writeln!(out, "{verb} {}; {} stay", report.freed.size, report.kept.size);
    if let Some(over) = report.over {
        let _ = writeln!(
            out,
            "still {over} more than asked for: the rest is needed by built outputs (`kiln store roots`) or was used lately"
        );
    }
    out
}

/// Reads a time such as `90s`, `30m`, `12h`, `7d`.
pub(super) fn parse_age(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no time: write a number and s, m, h or d, as in 12h");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86400,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read() {
        assert_eq!(parse_age("12h"), Ok(Duration::from_secs(43_200)));
        assert_eq!(parse_age("7d"), Ok(Duration::from_secs(604_800)));
        for text in ["", "h", "12", "1.5h", "-1h", "9999999999999999999d", "1é"] {
            assert!(parse_age(text).is_err(), "{text}");
        }
    }
}
