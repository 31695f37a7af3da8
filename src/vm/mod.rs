//! Virtual machines: an image is booted by QEMU through a throw-away overlay, watched on its serial console, and asked
//! questions over a channel that needs no change in the image.
//!
//! ```text
//! Setup ──prepare──▶ Prepared (overlay, firmware variables, argv: all of it data) ──start──▶ Vm ──attach──▶ Channel
//! ```
//!
//! - [`machine`]: QEMU's command line as data; [`qemu`]: where QEMU and its firmware come from;
//! - [`probe`]: whether KVM can really run a guest here, tried rather than assumed;
//! - [`disk`]: the overlay over an image that is opened read-only;
//! - [`process`]: QEMU as a child that dies with Kiln, its serial [`console`], its monitor ([`qmp`]);
//! - [`failure`]: how a boot that failed looks on the console;
//! - [`channel`] and [`credentials`]: commands inside an unchanged image; [`ssh`]: the same as its users log in; both are
//!   a [`Guest`];
//! - [`netns`]: a network of the machine's own, without a way out;
//! - [`ec2`] and [`imds`]: a lookalike of an EC2 instance, and of the service that tells it who it is.

mod agent;
pub mod channel;
mod child;
pub mod console;
pub mod credentials;
pub mod disk;
pub mod ec2;
pub mod failure;
pub mod guest;
pub mod imds;
pub mod launch;
pub mod machine;
pub mod netns;
pub mod prepare;
pub mod probe;
pub mod process;
mod pulse;
pub mod qemu;
pub mod qmp;
mod settle;
pub mod smoke;
pub mod ssh;

pub use channel::Channel;
pub use ec2::{Instance, Platform};
pub use failure::{BootFailure, VmError};
pub use guest::{Guest, Output};
pub use machine::{Accel, Boots, Bus, Forward, Machine, Network};
pub use prepare::{Prepared, Setup, prepare};
pub use process::Vm;
pub use qemu::Qemu;
pub use settle::{Settled, until_settled};
pub use ssh::Ssh;

/// What the tools tree must hold so that images of amd64 boot and can be logged in to: QEMU, both kinds of firmware, and
/// OpenSSH's client. Nothing recommended is needed; all pictures, sounds and foreign machines stay away.
pub const TOOL_PACKAGES: &[&str] = &["qemu-system-x86", "seabios", "ovmf", "openssh-client"];
