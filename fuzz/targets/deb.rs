//! A package file: the ar archive, its control part, and every entry of its data part.
#![no_main]

use std::io::{self, Cursor, Read};

use kiln::source::debian::deb::{Deb, DebError};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(mut deb) = Deb::new(Cursor::new(bytes)) else { return };
    if let Ok(control) = deb.control() {
        let _ = control.required("Package");
    }
    let _ = deb.data(&mut |_entry, reader: &mut dyn Read| -> Result<(), DebError> {
        io::copy(&mut reader.take(1 << 20), &mut io::sink())?;
        Ok(())
    });
});
