//! What is to be published, as values: names, tags and settings of an image in each region, which blocks go up, and what
//! differs from what a region has already. Nothing here talks to anyone.

pub mod blocks;
pub mod fan_out;
pub mod holes;
pub mod observed;
pub mod plan;
pub mod price;
pub mod resolve;
pub mod retention;
#[cfg(test)]
mod samples;
pub mod tags;
pub mod target;

pub use blocks::DiskBlocks;
pub use observed::Observed;
pub use plan::{Plan, plan};
pub use target::{Publication, Target};
