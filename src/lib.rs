//! Kiln bakes golden machine images: one pure profile in, a tested, reproducible disk image out.
//!
//! ```text
//! profile.ncl ──evaluate──▶ System ──lock──▶ Lock ──realise──▶ Closure ──compose──▶ Tree ──lay out──▶ Layout
//!      ──write──▶ RawImage ──boot──▶ TestedImage ──publish──▶ Ami (in each region)
//!                     └──export──▶ qcow2 · …
//! ```
//!
//! A module imports only from floors below its own; siblings don't import each other.
//!
//! | floor | modules |
//! |---|---|
//! | 5 | [`cli`]: one verb a file |
//! | 4 | [`bake`]: the phases, chained; cache keys |
//! | 3, effects | [`store`], [`fetch`], [`sandbox`], [`image`], [`export`], [`vm`] |
//! | 2, pure | [`profile`], [`source`], [`lock`], [`rootfs`], [`boot`], [`layout`], [`format`], [`check`] |
//! | 1, data | [`system`], [`package`], [`tree`], [`artifact`] |
//! | 0 | [`units`], [`digest`], [`date`], [`base64`], [`arch`], [`host`] |
#![deny(missing_docs)]
#![deny(unsafe_code)]

pub mod arch;
pub mod artifact;
pub mod bake;
pub mod base64;
pub mod boot;
pub mod check;
pub mod cli;
pub mod date;
pub mod digest;
pub mod export;
pub mod fetch;
pub mod format;
pub mod host;
pub mod image;
pub mod layout;
pub mod lock;
pub mod package;
pub mod profile;
pub mod rootfs;
pub mod sandbox;
pub mod source;
pub mod store;
pub mod system;
pub mod tree;
pub mod units;
pub mod vm;
