//! What Kiln and the machines that it bakes must agree on, and what runs inside of them.
//!
//! The library holds the formats, pure: who bakes an image writes with it what the machine reads. The binary is the whole of the
//! initrd, and `/usr/bin/kiln` of the running system; it is linked statically and runs under any distribution's kernel.
#![deny(missing_docs)]

pub mod generation;
pub mod menu;
pub mod uki;
pub mod verity;
