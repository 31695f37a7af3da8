//! What Kiln and the machines that it bakes must agree on, and what runs inside of them.
//!
//! The library holds the formats, pure: who bakes an image writes with it what the machine reads. The binary is the whole of the
//! initrd, and `/usr/bin/kiln` of the running system; it is linked statically and runs under any distribution's kernel.
//!
//! A module imports only from floors below its own; `guest/tests/house.rs` reads this table and every module, and compares.
//!
//! | floor | modules |
//! |---|---|
//! | 6 | [`init`]: the first process of the initrd; [`cli`]: `/usr/bin/kiln` |
//! | 5 | [`machine`]: the one that runs |
//! | 4, the work | [`disk`], [`lustrate`], [`mounts`], [`switch`] |
//! | 3 | [`generations`], [`modules`], [`state`] |
//! | 2 | [`accounts`], [`cmdline`], [`verity_device`] |
//! | 1 | [`copy`], [`generation`], [`menu`], [`steps`] |
//! | 0 | [`config`], [`console`], [`erofs`], [`error`], [`gpt`], [`sys`], [`uki`], [`ustar`], [`verity`] |
#![deny(missing_docs)]
#![deny(unsafe_code)]

pub mod accounts;
pub mod cli;
pub mod cmdline;
pub mod config;
pub mod console;
pub mod copy;
pub mod disk;
pub mod erofs;
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
