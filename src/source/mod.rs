//! Where packages come from.
pub mod debian;
