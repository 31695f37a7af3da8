//! A machine's part of the page: why it failed, how it booted, its checks, what is kept of it.

use std::fmt::Write as _;

use super::escape::escape;
use super::{badge, checks, facts, time};
use crate::base64::base64;
use crate::check::report::{Evidence, MachineReport, Mark};

/// Colours of the boot's stages, one after the other; each is told from its neighbours in light and dark.
const COLOURS: [&str; 8] =
    ["#4477aa", "#ccbb44", "#228833", "#aa3377", "#66ccee", "#ee6677", "#888888", "#994f00"];
/// Width of the time line in its own units.
const WIDTH: f64 = 1000.0;
/// Stages that are drawn; a machine that restarts for ever has more.
const MOST_MARKS: usize = 40;

/// The machine's section.
pub(super) fn section(page: &mut String, number: usize, machine: &MachineReport) {
    let _ = writeln!(
        page,
        "<section class=\"section\" aria-labelledby=\"machine-{number}\">\n<h2 id=\"machine-{number}\">{} {}</h2>",
        escape(&machine.name),
        badge(machine.verdict)
    );
    if let Some(failure) = &machine.failure {
        let _ = writeln!(
            page,
            "<div class=\"alert\" role=\"note\"><p class=\"what\">{}</p><p>{}</p><p>{} after {}</p></div>",
            escape(&failure.message),
            escape(&failure.hint),
            escape(&failure.kind.replace('-', " ")),
            time(failure.at)
        );
    }
    let mut list = vec![
        (
            "Machine",
            format!(
                "{}, {}, {}",
                escape(&machine.platform),
                escape(&machine.firmware),
                escape(&machine.disk)
            ),
        ),
        ("Ran under", escape(&machine.accel)),
    ];
    if let Some(seconds) = machine.boot_seconds {
        list.push(("Settled", format!("after {}", time(seconds))));
    }
    list.push(("Took", time(machine.seconds)));
    facts(page, &list);
    timeline(page, machine);
    if !machine.checks.is_empty() {
        page.push_str("<h3>Checks</h3>\n");
        checks(page, &machine.checks, &machine.name);
    }
    failed_units(page, machine);
    if let Some(evidence) = &machine.evidence {
        kept(page, evidence, &machine.name);
    }
    logs(page, machine);
    page.push_str("</section>\n");
}

/// A bar of the boot's stages, and the same in words.
fn timeline(page: &mut String, machine: &MachineReport) {
    let mut marks: Vec<&Mark> =
        machine.timeline.iter().filter(|mark| mark.at.is_finite() && mark.at >= 0.0).collect();
    marks.sort_by(|a, b| a.at.total_cmp(&b.at));
    marks.truncate(MOST_MARKS);
    let Some(last) = marks.last() else { return };
    let end = machine.failure.as_ref().map_or(last.at, |failure| failure.at).max(last.at).max(0.001);
    page.push_str("<h3>Boot</h3>\n");
    let _ = writeln!(
        page,
        "<svg class=\"time\" viewBox=\"0 0 {WIDTH} 24\" preserveAspectRatio=\"none\" role=\"img\" \
         aria-label=\"Time line of {}; the list below says the same\">",
        time(end)
    );
    let mut from = 0.0;
    for (index, mark) in marks.iter().enumerate() {
        // A stage lasts from its own mark to the next one's.
        let until = marks.get(index + 1).map_or(end, |next| next.at);
        let at = if index == 0 { 0.0 } else { mark.at };
        let (x, width) = (at / end * WIDTH, (until - at) / end * WIDTH);
        if width > 0.0 {
            let _ = writeln!(
                page,
                "<rect x=\"{x:.1}\" y=\"0\" width=\"{width:.1}\" height=\"24\" fill=\"{}\"><title>{}</title></rect>",
                colour(index),
                escape(&mark.what)
            );
        }
        from = until;
    }
    if from < end {
        let _ = writeln!(
            page,
            "<rect x=\"{:.1}\" y=\"0\" width=\"{WIDTH}\" height=\"24\" fill=\"#888888\"/>",
            from / end * WIDTH
        );
    }
    page.push_str("</svg>\n<ol class=\"marks\">\n");
    for (index, mark) in marks.iter().enumerate() {
        let _ = writeln!(
            page,
            "<li><svg viewBox=\"0 0 1 1\" aria-hidden=\"true\"><rect width=\"1\" height=\"1\" fill=\"{}\"/></svg>{}<b>{:.1} s</b></li>",
            colour(index),
            escape(&mark.what),
            mark.at
        );
    }
    page.push_str("</ol>\n");
}

fn colour(index: usize) -> &'static str {
    COLOURS[index % COLOURS.len()]
}

fn failed_units(page: &mut String, machine: &MachineReport) {
    if machine.failed_units.is_empty() {
        return;
    }
    page.push_str("<h3>Failed units</h3>\n");
    for unit in &machine.failed_units {
        let journal =
            if unit.journal.trim().is_empty() { "Its journal is empty." } else { unit.journal.trim_end() };
        let _ = writeln!(
            page,
            "<details open>\n<summary>{}</summary>\n<pre class=\"log\">{}</pre>\n</details>",
            escape(&unit.name),
            escape(journal)
        );
    }
}

/// What is kept of a machine that failed.
fn kept(page: &mut String, evidence: &Evidence, machine: &str) {
    if !evidence.screenshot.is_empty() {
        let _ = writeln!(
            page,
            "<h3>Screen</h3>\n<figure><img alt=\"The screen of {}\" src=\"data:image/png;base64,{}\">\
             <figcaption>The screen when it failed</figcaption></figure>",
            escape(machine),
            base64(&evidence.screenshot)
        );
    }
    let mut list = Vec::new();
    if let Some(enter) = &evidence.enter {
        list.push(("Enter it", format!("<code>{}</code>", escape(enter))));
    }
    if let Some(overlay) = &evidence.overlay {
        list.push(("Its disk", format!("<code>{}</code>", escape(&overlay.to_string_lossy()))));
    }
    let files: Vec<(String, String)> = evidence
        .files
        .iter()
        .map(|(what, path)| (escape(what), format!("<code>{}</code>", escape(&path.to_string_lossy()))))
        .collect();
    list.extend(files.iter().map(|(what, path)| (what.as_str(), path.clone())));
    if !list.is_empty() {
        page.push_str("<h3>Kept</h3>\n");
        facts(page, &list);
    }
}

/// The long texts, folded away; a browser's search opens them.
fn logs(page: &mut String, machine: &MachineReport) {
    let journal = machine.evidence.as_ref().map_or("", |evidence| evidence.journal.as_str());
    for (name, text) in [("Serial console", machine.console.as_str()), ("Journal", journal)] {
        if !text.trim().is_empty() {
            let lines = text.lines().count();
            let _ = writeln!(
                page,
                "<details>\n<summary>{name} ({lines} line{})</summary>\n<pre class=\"log\" tabindex=\"0\">{}</pre>\n</details>",
                if lines == 1 { "" } else { "s" },
                escape(text.trim_end())
            );
        }
    }
    if !machine.command.is_empty() {
        let _ = writeln!(
            page,
            "<details>\n<summary>QEMU’s command line</summary>\n<pre>{}</pre>\n</details>",
            escape(&machine.command)
        );
    }
}
