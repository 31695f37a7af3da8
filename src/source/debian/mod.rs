//! Debian: indexes, signatures, resolution, `.deb` files, the dpkg database.
pub mod archive;
pub mod release;
pub mod signature;
