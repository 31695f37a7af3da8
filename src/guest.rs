//! The program that runs inside images of the store layout, as it was built with this Kiln: the whole of their initrd, and
//! `/usr/bin/kiln` of the running machine. Its source is the crate `kiln-guest`.

/// The program, linked statically.
pub const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kiln-guest"));
