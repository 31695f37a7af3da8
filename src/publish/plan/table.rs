//! A plan as text for people.

use std::fmt::Write as _;

use super::{Action, Change, Plan, RegionPlan, Way};
use crate::units::Bytes;

/// Settings of a new image that are told one by one; the others go without saying.
const TOLD: [&str; 5] = ["launch", "snapshot account", "snapshot all", "deprecation", "protection"];

/// The plan as a table, a line for each region, and what is behind it below.
#[must_use]
pub fn table(plan: &Plan) -> String {
    let untested = if plan.tested { "" } else { ", not tested" };
    let mut out = format!(
        "{} {}: image {}, {}, {} of {} blocks hold something{untested}\n\n",
        plan.system,
        plan.version,
        plan.image.short(),
        plan.size,
        plan.needed,
        plan.blocks
    );
    let head = ["region", "account", "action", "how", "to send", "calls", "price"].map(str::to_owned);
    let mut rows = vec![head];
    rows.extend(plan.regions.iter().map(|(name, region)| row(name, region)));
    if plan.regions.len() > 1 {
        let cost = &plan.cost;
        let all = ["in all", "", "", "", &sent(cost.bytes), &cost.calls.to_string(), &cost.usd.to_string()];
        rows.push(all.map(str::to_owned));
    }
    lines(&mut out, &rows);
    for (name, region) in &plan.regions {
        details(&mut out, name, region);
    }
    if plan.cost.usd_a_month.0 > 0 {
        let month = plan.cost.usd_a_month;
        let _ = write!(out, "\nKeeping the new snapshots costs about {month} a month. ");
        let _ = writeln!(out, "List prices of {}; yours may differ.", plan.prices_of);
    }
    out
}

fn sent(bytes: Bytes) -> String {
    if bytes.0 == 0 { "-".to_owned() } else { bytes.to_string() }
}

fn row(name: &str, plan: &RegionPlan) -> [String; 7] {
    let (action, how) = match &plan.action {
        Action::Create { way, .. } => ("create", told(way)),
        Action::Change { image } => ("change", image.clone()),
        Action::Nothing { image } => ("nothing", image.clone()),
        Action::Refused { .. } => ("REFUSED", String::new()),
        Action::Unreachable { .. } => ("UNREACHABLE", String::new()),
    };
    let name = if plan.required { name.to_owned() } else { format!("{name} (best effort)") };
    let account = plan.account.clone().unwrap_or_else(|| "-".to_owned());
    let none = || "-".to_owned();
    let calls = if plan.cost.calls == 0 { none() } else { plan.cost.calls.to_string() };
    let price = if plan.cost.usd.0 == 0 { none() } else { plan.cost.usd.to_string() };
    [name, account, action.to_owned(), how, sent(plan.cost.bytes), calls, price]
}

fn told(way: &Way) -> String {
    match way {
        Way::Upload { blocks } => format!("upload of {blocks} blocks"),
        Way::Delta { parent, blocks, .. } => format!("delta of {blocks} blocks on {parent}"),
        Way::Resume { snapshot, blocks } => format!("{snapshot} goes on, {blocks} blocks"),
        Way::Register { snapshot } => format!("of {snapshot}"),
        Way::Await { snapshot, from } => format!("of {snapshot}, on its way from {from}"),
        Way::CopySnapshot { from } => format!("snapshot copied from {from}"),
        Way::CopyImage { from } => format!("image copied from {from}"),
        Way::S3Import { bucket } => format!("import from s3://{bucket}"),
    }
}

/// Columns as wide as they need; the last three to the right.
fn lines(out: &mut String, rows: &[[String; 7]]) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..7).map(width).collect();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(
                |(column, (cell, width))| {
                    if column > 3 { format!("{cell:>width$}") } else { format!("{cell:width$}") }
                },
            )
            .collect();
        let _ = writeln!(out, "{}", cells.join("  ").trim_end());
    }
}

fn details(out: &mut String, name: &str, plan: &RegionPlan) {
    let creates = matches!(plan.action, Action::Create { .. });
    let shown = |change: &&Change| {
        !creates
            || change.what.starts_with("parameter")
            || TOLD.iter().any(|told| change.what.starts_with(told))
    };
    let mut lines: Vec<String> = Vec::new();
    match &plan.action {
        Action::Create { replaces, .. } => {
            lines.push(format!("+ {}", plan.name));
            lines.extend(replaces.iter().map(|id| format!("- {id}, which failed")));
        }
        Action::Refused { reasons } => lines.extend(reasons.iter().map(|reason| format!("! {reason}"))),
        Action::Unreachable { reason } => lines.push(format!("! {reason}")),
        _ => {}
    }
    lines.extend(plan.changes.iter().filter(shown).map(line));
    lines.extend(plan.retires.iter().map(|(id, name)| format!("- {id} ({name}), by `kiln retire`")));
    lines.extend(plan.notes.iter().map(|note| format!("  {note}")));
    if !lines.is_empty() {
        let _ = write!(out, "\n{name}\n");
        for line in lines {
            let _ = writeln!(out, "  {line}");
        }
    }
}

fn line(change: &Change) -> String {
    let what = &change.what;
    match (&change.old, &change.new) {
        (None, Some(new)) => format!("+ {what}: {new}"),
        (Some(old), Some(new)) => format!("~ {what}: {old} → {new}"),
        (Some(old), None) => format!("- {what}: {old}"),
        (None, None) => format!("  {what}"),
    }
}
