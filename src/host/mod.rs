//! What of the host the floors above may use: files, interrupts, system calls, programs of a tools tree.
pub mod fs;
pub mod interrupt;
pub mod part;
pub mod roots;
pub(crate) mod sys;
pub mod tools;
