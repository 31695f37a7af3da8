//! The report as one page that needs nothing else: no request, no script, light and dark, readable by eye, by screen
//! reader and on paper. Its policy (Content-Security-Policy) has the browser refuse whatever else might get in.

mod escape;
mod machine;
#[cfg(test)]
pub(super) mod sample;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;

use self::escape::escape;
use super::report::{CheckResult, MachineReport, Report, Verdict};
use crate::date::Timestamp;

const STYLE: &str = include_str!("style.css");
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";

/// The page.
#[must_use]
pub fn html(report: &Report) -> String {
    let mut page = String::new();
    let title = format!("{} {}: image test", escape(&report.name), report.verdict.word());
    let _ = writeln!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\">\n<meta http-equiv=\"Content-Security-Policy\" \
         content=\"{POLICY}\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>"
    );
    header(&mut page, report);
    page.push_str("<main>\n");
    matrix(&mut page, report);
    if !report.statics.is_empty() {
        page.push_str("<section class=\"section\" aria-labelledby=\"disk\">\n<h2 id=\"disk\">The disk ");
        let _ = writeln!(
            page,
            "{}</h2>",
            badge(Verdict::worst(report.statics.iter().map(|check| check.verdict)))
        );
        checks(&mut page, &report.statics, "the disk itself, before any machine was started");
        page.push_str("</section>\n");
    }
    for (number, machine) in (1..).zip(&report.machines) {
        machine::section(&mut page, number, machine);
    }
    let _ =
        writeln!(page, "<footer>Made by Kiln {}.</footer>\n</main>\n</body>\n</html>", escape(&report.kiln));
    page
}

/// A verdict as a coloured word.
fn badge(verdict: Verdict) -> String {
    let word = verdict.word();
    format!("<span class=\"verdict {word}\">{word}</span>")
}

/// Seconds for people: `0.3 s`, `1 min 5 s`.
fn time(seconds: f64) -> String {
    if seconds < 120.0 || !seconds.is_finite() {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    format!("{} min {} s", whole / 60, whole % 60)
}

/// Terms and what they are.
fn facts(page: &mut String, list: &[(&str, String)]) {
    page.push_str("<dl class=\"facts\">\n");
    for (term, fact) in list {
        let _ = writeln!(page, "<dt>{term}</dt><dd>{fact}</dd>");
    }
    page.push_str("</dl>\n");
}

fn header(page: &mut String, report: &Report) {
    let _ = writeln!(page, "<header>\n<h1>{} {}</h1>", escape(&report.name), badge(report.verdict));
    let count = |verdict| report.count(verdict);
    let mut accelerators: Vec<&str> = report.machines.iter().map(|m| m.accel.as_str()).collect();
    accelerators.sort_unstable();
    accelerators.dedup();
    let began = Timestamp(report.began).to_string().replace('T', " ").replace('Z', " UTC");
    let mut list = vec![
        ("Image", format!("<code>{}</code>, {}", escape(&report.image.to_string()), report.size)),
        (
            "Checks",
            format!(
                "{} passed, {} failed, {} skipped",
                count(Verdict::Passed),
                count(Verdict::Failed),
                count(Verdict::Skipped)
            ),
        ),
        ("Machines", format!("{} of {} passed", passed(&report.machines), report.machines.len())),
        ("Began", escape(&began)),
        ("Took", time(report.seconds)),
    ];
    if !accelerators.is_empty() {
        list.push(("Ran under", escape(&accelerators.join("; "))));
    }
    list.push(("Tests", format!("<code>{}</code>", escape(&report.tests.to_string()))));
    facts(page, &list);
    page.push_str("</header>\n");
}

fn passed(machines: &[MachineReport]) -> usize {
    machines.iter().filter(|machine| machine.verdict == Verdict::Passed).count()
}

/// The machines, a row each.
fn matrix(page: &mut String, report: &Report) {
    if report.machines.is_empty() {
        return;
    }
    page.push_str(
        "<h2 id=\"machines\">Machines</h2>\n<div class=\"table\" role=\"region\" aria-labelledby=\"machines\" \
         tabindex=\"0\">\n<table>\n<caption>Every machine on which the image was booted, and how it went</caption>\n\
         <thead><tr><th scope=\"col\">Machine</th><th scope=\"col\">Platform</th><th scope=\"col\">Firmware</th>\
         <th scope=\"col\">Disk</th><th scope=\"col\" class=\"number\">Settled</th><th scope=\"col\" \
         class=\"number\">Took</th><th scope=\"col\">Checks</th><th scope=\"col\">Outcome</th></tr></thead>\n<tbody>\n",
    );
    for (number, m) in (1..).zip(&report.machines) {
        let settled = m.boot_seconds.map_or("–".to_owned(), time);
        let failed = m.checks.iter().filter(|c| c.verdict == Verdict::Failed).count();
        let done = m.checks.iter().filter(|c| c.verdict != Verdict::Skipped).count();
        let checks = match (failed, done) {
            (_, 0) => "none done".to_owned(),
            (0, all) => format!("{all}"),
            (failed, all) => format!("{failed} of {all} failed"),
        };
        let why =
            m.failure.as_ref().map_or(String::new(), |f| format!(" {}", escape(&f.kind.replace('-', " "))));
        let _ = writeln!(
            page,
            "<tr><th scope=\"row\"><a href=\"#machine-{number}\">{}</a></th><td>{}</td><td>{}</td><td>{}</td>\
             <td class=\"number\">{settled}</td><td class=\"number\">{}</td><td>{checks}</td><td>{}{why}</td></tr>",
            escape(&m.name),
            escape(&m.platform),
            escape(&m.firmware),
            escape(&m.disk),
            time(m.seconds),
            badge(m.verdict),
        );
    }
    page.push_str("</tbody>\n</table>\n</div>\n");
}

/// The checks: what failed first and open, then what was skipped, then what passed, folded away.
fn checks(page: &mut String, checks: &[CheckResult], of: &str) {
    let groups = [
        (Verdict::Failed, "Failed checks", true),
        (Verdict::Skipped, "Skipped checks", false),
        (Verdict::Passed, "Passed checks", false),
    ];
    for (verdict, name, open) in groups {
        let rows: Vec<&CheckResult> = checks.iter().filter(|check| check.verdict == verdict).collect();
        if rows.is_empty() {
            continue;
        }
        let open = if open { " open" } else { "" };
        let _ = writeln!(
            page,
            "<details{open}>\n<summary>{name} ({})</summary>\n<div class=\"table\">\n<table class=\"checks\">\n\
             <caption>{name} of {}</caption>\n<thead><tr><th scope=\"col\">Outcome</th><th scope=\"col\">Check</th>\
             <th scope=\"col\">Found</th><th scope=\"col\">Kind</th><th scope=\"col\" class=\"number\">Took</th></tr></thead>\n\
             <tbody>",
            rows.len(),
            escape(of),
        );
        for check in rows {
            row(page, check);
        }
        page.push_str("</tbody>\n</table>\n</div>\n</details>\n");
    }
}

fn row(page: &mut String, check: &CheckResult) {
    let took = match (check.seconds, check.tries) {
        (seconds, _) if seconds <= 0.0 => "–".to_owned(),
        (seconds, 0 | 1) => time(seconds),
        (seconds, tries) => format!("{} in {tries} tries", time(seconds)),
    };
    let output = match check.output.trim_end() {
        "" => String::new(),
        output => format!("<pre>{}</pre>", escape(output)),
    };
    let _ = writeln!(
        page,
        "<tr><td>{}</td><td class=\"name\">{}</td><td>{}{output}</td><td class=\"kind\">{}</td><td \
         class=\"number\">{took}</td></tr>",
        badge(check.verdict),
        escape(&check.name),
        escape(&check.detail),
        escape(&check.kind),
    );
}
