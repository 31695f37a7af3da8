//! What of the host every floor may use: files and processes.
pub mod fs;
pub mod interrupt;
pub mod tools;
