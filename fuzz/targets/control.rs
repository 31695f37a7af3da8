//! Control files: paragraphs, fields, relations between packages, versions.
#![no_main]

use kiln::source::debian::control::paragraphs;
use kiln::source::debian::relation;
use kiln::source::debian::version::Version;

libfuzzer_sys::fuzz_target!(|text: &str| {
    for paragraph in paragraphs(text) {
        for (_, value) in paragraph.fields().flatten() {
            let _ = relation::parse(value, "amd64");
        }
    }
    // The order of versions is one: whatever they are, a < b exactly when b > a.
    if let Some((a, b)) = text.split_once('\n') {
        assert_eq!(Version(a).cmp(&Version(b)), Version(b).cmp(&Version(a)).reverse());
    }
});
