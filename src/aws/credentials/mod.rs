//! Credentials, in the ways that the AWS CLI takes, and in its order: the environment; profiles with keys, roles in chains
//! (`source_profile`, `credential_source`), web identities, sign-ins of IAM Identity Center and programs; what containers
//! and EC2 hand out. Roles may ask for a code of an MFA device: it is asked for once, before any work, and the session is
//! shared by all regions, and with the AWS CLI through its cache.
//!
//! ```text
//! Environment + Files ──decide──▶ Way (Base, Hop…) ──open──▶ Session ──▶ credentials, renewed in time
//! ```
//!
//! Why not the SDK's own profile provider: it knows no MFA, drops `duration_seconds`, and asks inside of a cache that gives
//! up after seconds.

mod base;
pub mod cache;
pub mod config;
pub mod environment;
pub mod mfa;
mod process;
pub mod session;
mod sso;
pub mod sts;
pub mod way;

pub use config::Files;
pub use environment::{Environment, Secret};
pub use session::Session;
pub use way::Way;
