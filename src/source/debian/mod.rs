//! Debian: indexes, signatures, resolution, `.deb` files, the dpkg database.
pub mod archive;
mod conflict;
pub mod control;
pub mod deb;
pub mod dependencies;
pub mod dpkg;
pub mod explain;
pub mod index;
mod mark;
mod mention;
pub mod policy;
pub mod relation;
pub mod release;
pub mod resolve;
mod sat;
#[cfg(test)]
mod scenarios;
pub mod signature;
pub mod version;
