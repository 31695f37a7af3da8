//! The report as JUnit XML, which CI systems read: a suite for the disk, one for each machine.

use std::time::Duration;

use quick_junit::{NonSuccessKind, Property, Report as Document, TestCase, TestCaseStatus, TestSuite};

use super::report::{CheckResult, MachineFailure, MachineReport, Report, Verdict};

/// What is kept of a serial log's end: CI systems cut longer texts, at the wrong end.
const LOG_BYTES: usize = 64 << 10;
/// The case of a machine that stands for its boot.
const BOOT: &str = "boot";

/// The document.
#[must_use]
pub fn junit(report: &Report) -> String {
    let mut document = Document::new(clean(&format!("kiln test {}", report.name)));
    document.set_time(seconds(report.seconds));
    if !report.statics.is_empty() {
        let mut suite = TestSuite::new(clean(&format!("{} disk", report.name)));
        properties(&mut suite, &[("image", &report.image.to_string()), ("tests", &report.tests.to_string())]);
        let class = format!("{}.disk", report.name);
        suite.add_test_cases(report.statics.iter().map(|check| case(check, &class)));
        document.add_test_suite(suite);
    }
    document.add_test_suites(report.machines.iter().map(|machine| suite(report, machine)));
    // Writing into memory fails for no text that is valid UTF-8.
    document.to_string().unwrap_or_default()
}

fn suite(report: &Report, machine: &MachineReport) -> TestSuite {
    let mut suite = TestSuite::new(clean(&format!("{} {}", report.name, machine.name)));
    suite.set_time(seconds(machine.seconds));
    properties(
        &mut suite,
        &[
            ("image", &report.image.to_string()),
            ("platform", &machine.platform),
            ("firmware", &machine.firmware),
            ("disk", &machine.disk),
            ("accelerator", &machine.accel),
        ],
    );
    let class = format!("{}.{}", report.name, machine.name);
    suite.add_test_case(boot(machine, &class));
    suite.add_test_cases(machine.checks.iter().map(|check| case(check, &class)));
    if !machine.console.is_empty() {
        suite.set_system_out(clean(end(&machine.console)));
    }
    suite
}

/// Whether the machine came up and stayed up, as a case: a failure before any check would else be no failure at all.
fn boot(machine: &MachineReport, class: &str) -> TestCase {
    // What failed on a machine that came up is a case of its own.
    let boot = |failure: &&MachineFailure| failure.kind != "check-failed" && failure.kind != "failed-unit";
    let status = match machine.failure.as_ref().filter(boot) {
        None if machine.verdict == Verdict::Skipped => TestCaseStatus::skipped(),
        None => TestCaseStatus::success(),
        Some(failure) => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            status.set_type(clean(&failure.kind)).set_message(clean(&failure.message));
            let mut text = format!("{}\n{}\nafter {:.1} s\n", failure.message, failure.hint, failure.at);
            for unit in &machine.failed_units {
                text.push_str(&format!("\n{} failed:\n{}\n", unit.name, unit.journal));
            }
            status.set_description(clean(&text));
            status
        }
    };
    let mut case = TestCase::new(BOOT, status);
    case.set_classname(clean(class));
    case.set_time(seconds(machine.boot_seconds.unwrap_or(machine.seconds)));
    case
}

fn case(check: &CheckResult, class: &str) -> TestCase {
    let mut status = match check.verdict {
        Verdict::Passed => TestCaseStatus::success(),
        Verdict::Skipped => TestCaseStatus::skipped(),
        Verdict::Failed => TestCaseStatus::non_success(NonSuccessKind::Failure),
    };
    if check.verdict != Verdict::Passed {
        status.set_message(clean(&check.detail));
    }
    if check.verdict == Verdict::Failed {
        status.set_type(clean(&check.kind));
        let output = if check.output.is_empty() { String::new() } else { format!("\n\n{}", check.output) };
        status.set_description(clean(&format!("{}{output}", check.detail)));
    }
    let mut case = TestCase::new(clean(&check.name), status);
    case.set_classname(clean(class));
    case.set_time(seconds(check.seconds));
    case
}

fn properties(suite: &mut TestSuite, list: &[(&str, &String)]) {
    suite.add_properties(list.iter().map(|(name, value)| Property::new(*name, clean(value))));
}

/// A duration for a number that may be no possible one.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

/// The last lines of a text, whole ones.
fn end(text: &str) -> &str {
    let mut from = text.len().saturating_sub(LOG_BYTES);
    if from == 0 {
        return text;
    }
    while !text.is_char_boundary(from) {
        from += 1;
    }
    let rest = &text[from..];
    rest.split_once('\n').map_or(rest, |(_, lines)| lines)
}

/// A text without the characters that XML 1.0 does not have (section 2.2), which no escape can bring in either.
fn clean(text: &str) -> String {
    let valid = |c: char| matches!(c, '\t' | '\n' | ' '..='\u{fffd}' | '\u{10000}'..);
    // Escape sequences of terminals are taken out whole later.
    text.chars()
        .filter(|&c| c != '\r')
        .map(|c| if valid(c) || c == '\x1b' { c } else { '\u{fffd}' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::html::sample;
    use proptest::prelude::*;

    #[test]
    fn a_report_as_junit() {
        insta::assert_snapshot!(junit(&sample::failing()));
    }

    #[test]
    fn who_was_not_booted_did_not_come_up() {
        let mut report = sample::failing();
        report.machines[0].failure = None;
        report.machines[0].verdict = Verdict::Skipped;
        let read = Document::deserialize_from_str(&junit(&report)).expect("it can be read again");
        let boot =
            read.test_suites.iter().flat_map(|suite| &suite.test_cases).find(|case| *case.name == *BOOT);
        assert!(boot.is_some_and(|case| matches!(case.status, TestCaseStatus::Skipped { .. })));
    }

    #[test]
    fn long_logs_keep_their_end() {
        let text = "ä line\n".repeat(20_000) + "last";
        let kept = end(&text);
        assert!(kept.len() <= LOG_BYTES && kept.starts_with("ä line") && kept.ends_with("last"));
    }

    #[test]
    fn hostile_texts_stay_texts() {
        let xml = junit(&sample::hostile());
        assert!(!xml.contains("<script"), "{xml}");
        assert!(!xml.contains("]]>"), "{xml}");
        assert!(xml.chars().all(|c| matches!(c, '\t' | '\n' | ' '..='\u{fffd}' | '\u{10000}'..)));
        let read = Document::deserialize_from_str(&xml).expect("it can be read again");
        assert_eq!(read.test_suites.len(), 2);
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_again(text in any::<String>(), number in any::<f64>()) {
            let mut report = sample::failing();
            report.machines[0].console.clone_from(&text);
            report.machines[0].checks[0].detail.clone_from(&text);
            report.machines[0].checks[0].seconds = number;
            report.statics[0].name = text;
            prop_assert!(Document::deserialize_from_str(&junit(&report)).is_ok());
        }
    }
}
