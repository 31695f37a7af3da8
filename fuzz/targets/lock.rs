//! Locks: whatever is read prints as it must be read again.
#![no_main]

use kiln::lock::Lock;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let Ok(lock) = Lock::parse(text, "fuzz.lock") else { return };
    let printed = lock.print();
    let again = Lock::parse(&printed, "fuzz.lock").expect("what was printed reads");
    assert_eq!(again.print(), printed);
});
