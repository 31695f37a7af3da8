//! Checks of an image: what a profile expects of it, derived and written, how each is asked and judged, and the report.
//!
//! All of it is data and pure functions: whoever has a way into a system (a machine under QEMU today) runs the scripts of
//! [`report::Report`]'s checks there and hands back what they said.

pub mod report;
