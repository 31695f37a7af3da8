//! Package indexes: every paragraph as a package that could be locked.
#![no_main]

use kiln::arch::Arch;
use kiln::source::debian::index::{IndexFile, Universe};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let files = [IndexFile { suite: "fuzz".into(), text: text.to_owned(), ..IndexFile::default() }];
    let Ok(universe) = Universe::new(&files, Arch::Amd64) else { return };
    for name in universe.names() {
        for entry in universe.versions(name) {
            let _ = universe.locked(*entry, false);
        }
    }
});
