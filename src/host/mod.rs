//! What of the host the floors above may use: files, interrupts, system calls, programs of a tools tree.
pub mod fs;
pub mod interrupt;
pub(crate) mod sys;
pub mod tools;
