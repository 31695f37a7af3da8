//! On-disk formats: structures apart from their writers.
//!
//! Everything here is computed in memory or streamed into a writer that the caller gives; nothing opens a file by
//! name, looks at a clock or draws a random number, so equal values give equal bytes.
pub mod ext4;
pub mod fat;
pub mod gpt;
pub mod jks;
pub mod mbr;
pub mod qcow2;
pub mod tar;
