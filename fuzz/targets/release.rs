//! Release files: the signed message around them, and the text itself.
#![no_main]

use kiln::date::Timestamp;
use kiln::source::debian::release::{self, Release};
use kiln::source::debian::signature::Keyring;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let keyring = Keyring::default();
    assert!(Release::from_inrelease(bytes, &keyring, Timestamp(0)).is_err(), "no key can have signed it");
    let _ = release::parse(&String::from_utf8_lossy(bytes));
});
