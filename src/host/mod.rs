//! What of the host the floors above may use: files, interrupts, programs of a tools tree.
pub mod fs;
pub mod interrupt;
pub mod tools;
