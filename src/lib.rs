//! Kiln bakes golden machine images: one pure profile in, a tested, reproducible disk image out.
//!
//! ```text
//! profile.ncl ──evaluate──▶ System ──lock──▶ Lock ──realise──▶ Closure ──compose──▶ Tree ──lay out──▶ Layout
//!      ──write──▶ RawImage ──boot──▶ TestedImage ──publish──▶ Ami (in each region)
//!                     └──export──▶ qcow2 · …
//! ```
//!
//! A module imports only from floors below its own; siblings don't import each other. `tests/house.rs` reads this table
//! and every module, and compares.
//!
//! | floor | modules |
//! |---|---|
//! | 7 | [`cli`]: one verb a file |
//! | 6 | [`bake`]: the phases, chained; cache keys |
//! | 5, effects | [`store`], [`fetch`], [`sandbox`], [`image`], [`export`], [`vm`], [`aws`] |
//! | 4, pure | [`profile`], [`source`], [`lock`], [`rootfs`], [`boot`], [`layout`], [`check`], [`publish`] |
//! | 3, formats | [`format`]: bytes on a disk, and how much room they take |
//! | 2, data | [`system`], [`package`], [`tree`], [`artifact`] |
//! | 1 | [`host`]: files, interrupts, programs of a tools tree |
//! | 0 | [`units`], [`digest`], [`date`], [`base64`], [`arch`], [`guest`] |
#![deny(missing_docs)]
#![deny(unsafe_code)]

pub mod arch;
pub mod artifact;
#[cfg(feature = "program")]
pub mod aws;
#[cfg(feature = "program")]
pub mod bake;
pub mod base64;
pub mod boot;
pub mod check;
#[cfg(feature = "program")]
pub mod cli;
pub mod date;
pub mod digest;
pub mod export;
pub mod fetch;
pub mod format;
pub mod guest;
pub mod host;
pub mod image;
pub mod layout;
pub mod lock;
pub mod package;
pub mod profile;
pub mod publish;
pub mod rootfs;
pub mod sandbox;
pub mod source;
pub mod store;
pub mod system;
pub mod tree;
pub mod units;
pub mod vm;
