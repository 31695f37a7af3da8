//! What Kiln and the machines that it bakes must agree on, and what runs inside of them.
//!
//! The library holds the formats, pure: who bakes an image writes with it what the machine reads. The binary is the whole of the
//! initrd, and `/usr/bin/kiln` of the running system; it is linked statically and runs under any distribution's kernel.
#![deny(missing_docs)]
#![deny(unsafe_code)]

pub mod accounts;
pub mod cli;
pub mod cmdline;
pub mod config;
pub mod console;
pub mod copy;
pub mod disk;
pub mod error;
pub mod generation;
pub mod generations;
pub mod gpt;
pub mod init;
pub mod lustrate;
pub mod machine;
pub mod menu;
pub mod modules;
pub mod mounts;
pub mod state;
pub mod steps;
pub mod switch;
pub mod sys;
pub mod uki;
pub mod ustar;
pub mod verity;
pub mod verity_device;
